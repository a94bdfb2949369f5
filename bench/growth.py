"""What grows when 1,000,000 notifications about 20,000 SKUs pass through the whole hub: memory, tables, indexes.

Real intake, workers and sweep, simulators that answer at once. SKUs are registered first; then notifications come while
workers drain them, and some of the stocks really change. `BENCH_NOTIFICATIONS` takes another number; SKUs are a
fiftieth of it.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.measure import Line, Spread, resident_bytes
from bench.posting import closed_loop, post
from bench.whole import LOOKS
from hub import loads
from hub.db import migrate
from hub.runtime.embedded import Postgres, Valkey, scratch
from tests.cell import Cell, Shop, running_cell, until
from tests.knobs import Knobs

knobs = Knobs(os.environ)
NOTIFICATIONS = knobs.whole("BENCH_NOTIFICATIONS", 1_000_000, least=100)
knobs.settle()

SETTLED = ("states", "answers", "bindings", "leases", "claims", "counters", "workers", "gates")
"""Tables that reach a size and stay there; `notices` and `interactions` grow until their days are dropped."""

COUNTED = ("states", "notices", "interactions")

MORE = 1.10
SLICE = 5.0
CHANGED = 100
"""Stocks that change in VTEX in every slice."""


@dataclass(frozen=True)
class Sample:
    """One moment. Memory in bytes by process; tables: (heap bytes, index bytes, rows, dead rows)."""

    taken: int
    memory: Mapping[str, int]
    tables: Mapping[str, tuple[int, int, int, int]]

    @property
    def settled(self) -> int:
        """Bytes of all tables that should reach a size."""
        return sum(self.tables[name][0] + self.tables[name][1] for name in SETTLED)


def lines() -> list[Line]:
    """Let them pass, look in between, judge the end by a tenth of the way."""
    wanted = NOTIFICATIONS
    with _cell() as (cell, valkey):
        shop = cell.shop(
            "sandbox-replace",
            settings={"marketplace_limit": {"rate": 5000.0, "burst": 5000}, "look_again": LOOKS},
        )
        skus = shop.grow(max(100, wanted // 50))
        run = loads.start(cell.pool, shop.store.id, who="bench")
        until(lambda: loads.progress(cell.pool, run).state != "running", seconds=3600)
        shop.quiet(seconds=3600)
        samples = _passed(cell, valkey, shop, skus, wanted)
        shop.quiet(seconds=3600)
        samples.append(_sample(cell, valkey, samples[-1].taken))
        _told(samples)
        broken = [law.name for law in cell.ledger.check() if not law.holds]
        rows = {name: cell.all(f"select count(*) as n from {name}")[0]["n"] for name in COUNTED}
        return _judged(samples, broken, rows)


@contextmanager
def _cell() -> Iterator[tuple[Cell, Valkey]]:
    with scratch("hub-bench-") as files, Valkey(files / "valkey") as valkey, Postgres(files / "postgres") as postgres:
        migrate(postgres.url)
        logs = files / "logs"
        logs.mkdir()
        with running_cell(valkey, postgres, postgres.url, logs) as cell:
            yield cell, valkey


def _passed(cell: Cell, valkey: Valkey, shop: Shop, skus: Sequence[str], wanted: int) -> list[Sample]:
    """Post until so many were answered 200; a sample for each hundredth, or slice where that is longer."""
    chance = random.Random(5)
    port = int(cell.intake_url.rpartition(":")[2])
    notification = _notifications(shop, skus, chance)
    samples = [_sample(cell, valkey, 0)]
    began, taken = time.monotonic(), 0
    seconds = SLICE if wanted >= 100_000 else 0.5
    while taken < wanted:
        changes = [{"id": int(chance.choice(skus)), "stock": chance.randint(0, 900)} for _ in range(CHANGED)]
        cell.vtex.change_many(shop.account, changes)
        seen = closed_loop(port, notification, connections=8, seconds=seconds)
        taken += seen.statuses[200]
        if set(seen.statuses) - {200}:
            print(f"not answered 200: {seen.statuses}")
        samples.append(_sample(cell, valkey, taken))
    print(f"{taken:,} notifications over {len(skus):,} SKUs in {time.monotonic() - began:.0f} s", flush=True)
    return samples


def _notifications(shop: Shop, skus: Sequence[str], chance: random.Random) -> Callable[[], bytes]:
    flags = itertools.cycle(("StockModified", "PriceModified", "StockModified", "HasStockKeepingUnitModified"))

    def one() -> bytes:
        body = (
            f'{{"IdSku":"{chance.choice(skus)}","An":"{shop.account}","IdAffiliate":"{shop.affiliate}",'
            f'"DateModified":"2026-08-20T15:11:28.1978783Z","IsActive":true,"{next(flags)}":true}}'
        )
        return post(f"/{shop.token}", body.encode())

    return one


def _sample(cell: Cell, valkey: Valkey, taken: int) -> Sample:
    pids = {name: child.pid for name, child in cell.processes.items()}
    if valkey.pid is not None:
        pids["valkey"] = valkey.pid
    found = cell.all(
        """
        select regexp_replace(c.relname, '_([0-9]{8}|default)$', '') as name,
               sum(pg_table_size(c.oid))::int8 as heap, sum(pg_indexes_size(c.oid))::int8 as indexes,
               coalesce(sum(s.n_live_tup), 0)::int8 as rows, coalesce(sum(s.n_dead_tup), 0)::int8 as dead
        from pg_class c join pg_stat_user_tables s on s.relid = c.oid
        where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r' group by 1
        """
    )
    tables = {row["name"]: (row["heap"], row["indexes"], row["rows"], row["dead"]) for row in found}
    return Sample(taken, {name: resident_bytes(pid) for name, pid in pids.items()}, tables)


def _told(samples: Sequence[Sample]) -> None:
    print("| notifications | memory MB | states MB heap + index, dead rows | answers MB, dead | settled tables MB |")
    print("| --- | --- | --- | --- | --- |")
    for sample in [samples[round(place)] for place in _tenths(len(samples))]:
        memory = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in sorted(sample.memory.items()))
        heap, indexes, _, dead = sample.tables["states"]
        wide, ids, _, gone = sample.tables["answers"]
        print(
            f"| {sample.taken:,} | {memory} | {heap / 2**20:.1f} + {indexes / 2**20:.1f}, {dead:,} |"
            f" {(wide + ids) / 2**20:.1f}, {gone:,} | {sample.settled / 2**20:.1f} |"
        )
    print(flush=True)


def _tenths(count: int) -> list[float]:
    return sorted({round(place * (count - 1) / 10) for place in range(11)})


def _judged(samples: Sequence[Sample], broken: Sequence[str], counted: Mapping[str, int]) -> list[Line]:
    last = samples[-1]
    early = next(sample for sample in samples if sample.taken >= last.taken / 10)
    half = next(sample for sample in samples if sample.taken >= last.taken / 2)
    beside: dict[str, float | str] = {"notifications": last.taken, "laws broken": "; ".join(broken) or "none"}
    found = []
    for name, size in sorted(last.memory.items()):
        grown = size / early.memory[name]
        mb = {"MB at a tenth": early.memory[name] / 2**20, "MB at the end": size / 2**20}
        must = f"≤ {MORE:.2f} of a tenth of the way"
        found.append(Line(f"growth: memory, {name}", "×", _one(grown), must, grown <= MORE, lower=True, beside=mb))
    # Dead rows come and go with autovacuum: the largest of the second half against the largest of the first.
    first = [sample for sample in samples if early.taken <= sample.taken <= half.taken]
    second = [sample for sample in samples if sample.taken >= half.taken]
    settled = max(s.settled for s in second) / max(s.settled for s in first)
    found.append(
        Line(
            "growth: tables and indexes that settle",
            "×",
            _one(settled),
            f"second half ≤ {MORE:.2f} of the first",
            settled <= MORE and not broken,
            lower=True,
            beside=beside | {f"{name} KB": sum(last.tables[name][:2]) / 1024 for name in SETTLED},
        )
    )
    dead = max(s.tables["states"][3] for s in second) / max(1, *(s.tables["states"][3] for s in first))
    found.append(
        Line(
            "growth: dead rows of states",
            "×",
            _one(dead),
            "second half ≤ 1.5 of the first",
            dead <= 1.5,
            lower=True,
            beside={"rows": last.tables["states"][2], "dead at most": max(s.tables["states"][3] for s in second)},
        )
    )
    for name, rows in counted.items():
        heap, indexes, *_ = last.tables[name]
        each = (heap + indexes) / max(1, rows)
        found.append(
            Line(
                f"growth: bytes per row of {name}",
                "bytes",
                _one(each),
                "shown",
                passed=True,
                lower=True,
                beside={"rows": rows, "heap": heap / max(1, rows), "indexes": indexes / max(1, rows)},
            )
        )
    return found


def _one(value: float) -> Spread:
    return Spread((value,))
