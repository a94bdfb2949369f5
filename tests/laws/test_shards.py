"""The layout `pooled` with two shards: each store lives in one of them, and whoever serves none is named."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hub.runtime.embedded import Postgres, Valkey
from tasks.app import POOLED_FROM, queues_of, shard_of
from tasks.watch import Watched, watch
from tests.cell import ROOT, Cell, Shop, running_cell, until
from tests.conftest import copied

SHARDS = 2


def sharded(tree: dict[str, Any]) -> None:
    tree["layout"] = "pooled"
    for pool in tree["pools"].values():
        pool["shards"] = SHARDS


@pytest.fixture(scope="module")
def pooled(
    valkey: Valkey, postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    copies = copied(postgres, migrated_template)
    with running_cell(valkey, postgres, next(copies), tmp_path_factory.mktemp("pooled"), queues=sharded) as running:
        for shard in range(1, SHARDS + 1):
            serve(running, shard)
        until(
            lambda: len(running.all("select 1 from workers where name not like 'sweep%%' and until > now()")) == 6,
            seconds=180,
        )
        for name in ("first", "more"):
            running.stop(name)
        yield running


def serve(cell: Cell, shard: int) -> None:
    for lane in ("first", "more"):
        cell.start(f"{lane} {shard}", "worker", "--pool", "all", "--lane", lane, "--shard", f"{shard}/{SHARDS}")


def one_in_each(cell: Cell) -> list[Shop]:
    """A store of each shard, in the order of the shards."""
    found: dict[int, Shop] = {}
    while len(found) < SHARDS:
        shop = cell.shop()
        found.setdefault(shard_of(shop.slug, SHARDS), shop)
    return [found[number] for number in range(SHARDS)]


def doctor(cell: Cell) -> dict[str, dict[str, str]]:
    """What `hub doctor` found, by what it looked at."""
    told = subprocess.run(
        [sys.executable, "-m", "hub.cli", "doctor", "--no-stores", "--json"],
        env=cell.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return {check["what"]: check for check in json.loads(told.stdout)["checks"]}


def test_every_shard_works_for_its_own_stores_and_for_no_other(pooled: Cell) -> None:
    shops = one_in_each(pooled)
    skus = [shop.grow(3) for shop in shops]
    for shop, some in zip(shops, skus, strict=True):
        shop.published(*some)

    def answered() -> Watched | None:
        """Every worker's answer; a busy one may be late with it."""
        found = watch(pooled.settings, [shop.slug for shop in shops], expected=4)
        return found if len(found.workers) == 4 else None

    seen = until(answered, why="not every worker answers")
    assert seen.unserved == frozenset()
    assert seen.empty == ()
    shards = [{queue.split(".")[1] for queue in served} for served in seen.workers.values()]
    assert sorted(map(sorted, shards)) == [["0"], ["0"], ["1"], ["1"]], "a worker serves another shard's queue"
    further = [queue for served in seen.workers.values() for queue in served if queue.endswith(".more")]
    assert len(further) == len(set(further)), "threads that are reserved for stores at rest serve others"
    well = ("layout", "queues")
    until(lambda: (found := doctor(pooled)) and {found[what]["verdict"] for what in well} == {"ok"}, why="not well")

    # The second shard stands still, and doctor says which; the first one does not notice.
    for lane in ("first", "more"):
        pooled.stop(f"{lane} 2", signal.SIGKILL)
    until(lambda: len(pooled.all("select 1 from workers where name not like 'sweep%%' and until > now()")) == 2)
    for shop, (sku, *_) in zip(shops, skus, strict=True):
        shop.change(sku, price=4444)
    shops[0].shows(skus[0][0])
    found = until(lambda: (found := doctor(pooled)) and "shard 1/2 of offers" not in found and found)
    for pool in ("offers", "catalog", "orders"):
        assert found[f"shard 2/2 of {pool}"]["do"] == f"start: hub worker --pool {pool} --shard 2/2"
        assert f"shard 1/2 of {pool}" not in found
    row = until(lambda: (row := shops[1].row("price", skus[1][0])) and row["work"] == "p" and row, why="nobody asked")
    assert (row["work"], row["asked"] - row["answered"]) == ("p", 1)

    serve(pooled, 2)
    shops[1].shows(skus[1][0], seconds=180)


def test_pooled_stores_at_rest_are_served_by_all_threads_and_busy_ones_by_those_not_reserved() -> None:
    from hub.settings import Settings

    settings = Settings.load(env={"REDIS_URL": "redis://127.0.0.1/0", "DATABASE_URL": "postgresql://u:p@127.0.0.1/hub"})
    pooled, shard = replace(settings, layout="pooled"), frozenset({0})
    assert queues_of(pooled, "offers", shard, "first", ["acme"]) == {"offers.0"}
    assert queues_of(pooled, "offers", shard, "more", ["acme"]) == {"offers.0", "offers.0.more"}
    assert queues_of(settings, "offers", shard, "more", ["acme"]) == {"offers.0.more"}, "its queues are many"


def test_doctor_advises_the_other_layout_from_the_figure_on() -> None:
    from hub.cli.doctor import _layout
    from hub.settings import Settings

    settings = Settings.load(env={"REDIS_URL": "redis://127.0.0.1/0", "DATABASE_URL": "postgresql://u:p@127.0.0.1/hub"})
    assert settings.layout == "per_store"
    assert _layout(settings, POOLED_FROM - 1).verdict == "ok"
    advised = _layout(settings, POOLED_FROM)
    assert (advised.verdict, str(POOLED_FROM) in advised.do, "pooled" in advised.do) == ("warning", True, True)
