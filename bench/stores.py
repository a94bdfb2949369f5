"""What the number of stores costs: the same work for 10 to 10,000 of them in both layouts; 500 more at run time.

Peers answer in 200 ms. The work is the same number of keys, ten or more of each store that has any: a reading of VTEX
that finds nothing to send. Where that leaves stores without work, one key of each follows, and is told beside it.
`BENCH_SMALL=1` takes fewer keys and no more than 1,000 stores; `BENCH_STORES` names the numbers.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import redis
import requests

from bench.measure import Line, Spread, resident_bytes, say
from bench.plant import MARKETPLACE, NO_LIMIT, Plant, running_plant
from bench.whole import WORKERS
from hub.errors import Side
from hub.model import Ask, Urgency
from hub.stores import token_digest
from tests.cell import until
from tests.knobs import Knobs

knobs = Knobs(os.environ)
SMALL = knobs.on("BENCH_SMALL")
COUNTS = knobs.numbers("BENCH_STORES", (10, 100, 1_000) if SMALL else (10, 100, 1_000, 10_000), most=100_000)
ROWS = knobs.words("BENCH_ROWS", ("pooled", "per_store", "added"))
knobs.settle()
KEYS = 3_000 if SMALL else 12_000
LEAST = 10
"""Keys of a store that has work, at least."""
MOST_PER_STORE = 1_000
"""Stores up to which the layout `per_store` is measured."""
REST_SECONDS = 300.0
"""Seconds in which everything that is not measured must have come to rest."""
WORK_SECONDS = 300.0
NO_CALENDAR = {"sweep": {"reconcile_hours": 8760.0}}
"""The daily comparison reads every SKU that VTEX lists, 2,000 a store here: other work than what is measured, and of
10,000 stores seven a minute would be due meanwhile."""
IDLE_SECONDS = 8.0 if SMALL else 30.0
ACCOUNTS = 10
SKUS = 2_000
ADDED = 50 if SMALL else 500
CONSONANTS = "BCDFGHJKLMNPQRSTVWXYZ"


def lines() -> list[Line]:
    """The curve of each layout, and the stores that are added at run time."""
    found: list[Line] = []
    if "pooled" in ROWS:
        found += curve("pooled", COUNTS)
    if "per_store" in ROWS:
        found += curve("per_store", [count for count in COUNTS if count <= MOST_PER_STORE])
    if "added" in ROWS:
        found += added_at_run_time()
    return found


def curve(layout: str, counts: Sequence[int]) -> list[Line]:
    """Keys per second, the CPU of a key and of nothing to do, for each number of stores."""
    seen: dict[int, dict[str, float]] = {}
    for count in counts:
        with running_plant(latency=0.0) as plant:
            plant.configure({"layout": layout} | NO_CALENDAR)
            seen[count] = _measured(plant, count)
        say(f"{layout} {count}: {seen[count]}")
    least = seen[min(counts)]
    must = "idle ≤ 2 % CPU" + (", ≥ 1.0 × with the fewest stores" if layout == "pooled" else "")
    return [
        Line(
            bench=f"stores: {layout}, {count}",
            unit="keys/s",
            ours=Spread((figures["rate"],)),
            must=must,
            passed=figures["idle"] <= 0.02 and (layout != "pooled" or figures["rate"] >= least["rate"]),
            peer=Spread((least["rate"],)),
            peer_name=f"with {min(counts)}",
            beside={
                "worker CPU while working": f"{100 * figures['busy']:.0f} %",
                "worker CPU per key (ms)": figures["cost"],
                "idle worker CPU": f"{100 * figures['idle']:.1f} %",
                "worker MB": figures["memory"],
                "all looked through for orders at first (s)": figures["settling"],
                **_thin(figures),
            },
        )
        for count, figures in seen.items()
    ]


def _thin(figures: dict[str, float]) -> dict[str, float]:
    if "thin rate" not in figures:
        return {}
    return {
        "one key of each store (keys/s)": figures["thin rate"],
        "worker CPU per such key (ms)": figures["thin cost"],
    }


def _measured(plant: Plant, count: int) -> dict[str, float]:
    _register(plant, count)
    plant.begin()
    began = time.monotonic()
    _rest(plant, "the new stores are not at rest", polled=count)
    figures = {"settling": time.monotonic() - began}
    plant.slow_down()
    active = min(count, KEYS // LEAST)
    figures |= _worked(plant, [(number % active * count // active, 1 + number // active) for number in range(KEYS)])
    figures["idle"] = _idle(plant)
    if count > active:
        thin = _worked(plant, [(number, SKUS) for number in range(min(count, KEYS))])
        figures |= {f"thin {name}": value for name, value in thin.items()}
    figures["memory"] = max(resident_bytes(plant.processes[name].pid) for name in WORKERS) / 2**20
    return figures


def _worked(plant: Plant, places: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Bring these keys (place of the store, SKU) to their end: the rate between a tenth and nine tenths of it."""
    before, keys = _done(plant), len(places)

    def passed(share: float) -> tuple[int, float, float]:
        """When so much is done: keys, the time, the workers' CPU seconds so far."""
        seen = until(
            lambda: (done := _done(plant) - before) >= share * keys and done,
            seconds=WORK_SECONDS,
            why=f"{share:.0%} of the work is not done",
        )
        return seen, time.monotonic(), sum(plant.busy().values())

    _pend(plant, places)
    first, began, cpu = passed(0.1)
    last, ended, used = passed(0.9)
    _rest(plant, "the work is not done", finished=before + keys)
    took, done = ended - began, last - first
    return {"rate": done / took, "busy": (used - cpu) / took / len(WORKERS), "cost": 1000 * (used - cpu) / done}


def _idle(plant: Plant) -> float:
    """The CPU of the busier worker while there is nothing to do."""
    before, began = plant.busy(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    lasted = time.monotonic() - began
    return max((plant.busy()[name] - was) / lasted for name, was in before.items())


def _done(plant: Plant) -> int:
    return int(plant.value("select coalesce(sum(finished), 0) from counters where context = 'stock'"))


def _rest(plant: Plant, why: str, *, polled: int = 0, finished: int = 0) -> None:
    """Wait until nothing is pending or held, every key has ended well, and so many stores were looked through.

    What is left of the wake-ups finds nothing to do; but that is work of a busy hub, and not of one that is idle.
    """
    ends, waiting = time.monotonic() + REST_SECONDS, 0
    while True:
        left = plant.all(
            "select context, work, status, count(*) from states"
            " where work in ('p', 'h') or (context = 'stock' and status <> 'done') group by 1, 2, 3 order by 4 desc"
        )
        seen = plant.value("select count(*) from states where context = 'order' and status = 'done'")
        if not left and seen >= polled and _done(plant) >= finished and not (waiting := _wake_ups(plant)):
            return
        if time.monotonic() > ends:
            kinds = ", ".join(f"{row['count']} {row['context']} {row['work']} {row['status']}" for row in left)
            raise AssertionError(
                f"{why} within {REST_SECONDS:.0f} s: {kinds or 'nothing pending'};"
                f" {seen} of {polled} stores looked through for orders, {_done(plant)} of {finished} keys finished,"
                f" {waiting} wake-ups waiting"
            )
        time.sleep(0.25)


def _wake_ups(plant: Plant) -> int:
    """Messages that wait; a queue without any does not exist in Redis."""
    with redis.Redis.from_url(plant.settings.broker_url) as broker:
        return sum(broker.llen(name) for name in broker.scan_iter(f"{plant.settings.prefix}:*", 1000, _type="list"))


def _affiliates(count: int) -> list[str]:
    return ["".join(letters) for letters in itertools.islice(itertools.product(CONSONANTS, repeat=3), count)]


def _accounts(plant: Plant) -> list[str]:
    names = [f"acc{number}" for number in range(ACCOUNTS)]
    known = [{"id": one, "sales_channel": 1} for one in _affiliates(max(ADDED + 40, -(-max(COUNTS) // ACCOUNTS)))]
    for name in names:
        plant.vtex.open_account(name, "vtexappkey-bench", "secret-bench", affiliates=known)
        plant.vtex.grow(name, SKUS, first_id=1, channels=[1], price=[9990, 9990], stock=[7, 7])
    return names


def _settings(plant: Plant, marketplace_url: str) -> dict[str, Any]:
    return {
        "vtex_url": f"{plant.vtex.base_url}/{{account}}",
        "marketplace_url": marketplace_url,
        "hub_url": plant.intake_url,
        "poll_orders_seconds": 86_400.0,
        "look_again": [86_400.0],
        "vtex_limit": NO_LIMIT,
        "marketplace_limit": NO_LIMIT,
    }


def _register(plant: Plant, count: int) -> None:
    """Stores by SQL, with everything that `hub store add` writes."""
    seller = plant.marketplace.open_account("everybody", "sync")
    accounts = _accounts(plant)
    affiliates = _affiliates(-(-count // ACCOUNTS))
    rows = [
        (f"store-{number:05d}", accounts[number % ACCOUNTS], affiliates[number // ACCOUNTS]) for number in range(count)
    ]
    settings = json.dumps(_settings(plant, seller.url))
    with plant.pool.connection() as db:
        found = db.execute(
            "insert into stores (slug, account, affiliate, sales_channel, marketplace, token_digest, settings)"
            " select slug, account, affiliate, 1, %s, digest, %s::jsonb"
            " from unnest(%s::text[], %s::text[], %s::text[], %s::bytea[]) as s(slug, account, affiliate, digest)"
            " returning id, slug",
            (
                MARKETPLACE,
                settings,
                [row[0] for row in rows],
                [row[1] for row in rows],
                [row[2] for row in rows],
                [token_digest(f"token-{row[0]}") for row in rows],
            ),
        ).fetchall()
        secrets = {
            "vtex": {"app_key": "vtexappkey-bench", "app_token": "secret-bench"},
            "marketplace": {"token": seller.token},
        }
        places, sides, sealed = [], [], []
        for store, slug in found:
            for side, values in (secrets | {"hub": {"token": f"token-{slug}"}}).items():
                places.append(store)
                sides.append(side)
                sealed.append(plant.box.seal(json.dumps(values).encode()))
        db.execute(
            "insert into credentials (store, side, version, secret)"
            " select store, side, 1, secret from unnest(%s::int[], %s::text[], %s::bytea[]) as c(store, side, secret)",
            (places, sides, sealed),
        )
        db.execute("select nextval('registry_version')")


def _pend(plant: Plant, work: Sequence[tuple[int, int]]) -> None:
    """Pending SKUs; what each shows already is what VTEX would sell."""
    with plant.pool.connection() as db:
        ids = [row[0] for row in db.execute("select id from stores order by id").fetchall()]
    places = [(ids[place], str(sku)) for place, sku in work]
    plant.do(
        "insert into bindings (store, sku, remote_id, state) select store, sku, sku, 'published'"
        " from unnest(%s::int[], %s::text[]) as b(store, sku)",
        [place[0] for place in places],
        [place[1] for place in places],
    )
    plant.do(
        "insert into answers (store, context, key, confirmed) select store, 'stock', sku, '{\"quantity\": 7}'"
        " from unnest(%s::int[], %s::text[]) as b(store, sku)",
        [place[0] for place in places],
        [place[1] for place in places],
    )
    for begin in range(0, len(places), 2000):
        plant.ledger.enqueue(
            [Ask(store, "stock", sku, "notification", Urgency.NOTIFIED) for store, sku in places[begin : begin + 2000]]
        )


def added_at_run_time() -> list[Line]:
    """Stores are added one after the other beside running processes; the last with the command, then a notification."""
    with running_plant() as plant:
        _register(plant, 10)
        plant.begin()
        seller = plant.marketplace.open_account("added", "sync")
        settings = _settings(plant, seller.url)
        credentials: dict[Side, dict[str, str]] = {
            "vtex": {"app_key": "k", "app_token": "t"},
            "marketplace": {"token": seller.token},
        }
        affiliates = _affiliates(ADDED + 40)[20:]
        for number in range(ADDED - 1):
            plant.registry.add(
                slug=f"added-{number:03d}",
                account="acc0",
                affiliate=affiliates[number],
                sales_channel=1,
                marketplace=MARKETPLACE,
                who="bench",
                settings=settings,
                credentials=credentials,
            )
        told = plant.directory / "settings.json"
        told.write_text(json.dumps(settings), encoding="utf-8")
        secrets = plant.directory / "credentials.json"
        secrets.write_text(
            json.dumps(
                {
                    "vtex": {"app_key": "vtexappkey-bench", "app_token": "secret-bench"},
                    "marketplace": {"token": seller.token},
                }
            ),
            encoding="utf-8",
        )
        secrets.chmod(0o600)
        values = [
            _added(plant, f"last-{turn}", affiliates[-1 - turn], str(told), str(secrets))
            for turn in range(1 if SMALL else 5)
        ]
    took = Spread(tuple(values))
    return [
        Line(
            bench=f"stores: {ADDED} added at run time",
            unit="s until the last one's first notification is processed",
            ours=took,
            must="≤ 3 s after hub store add returns, every time",
            passed=max(values) <= 3.0,
            lower=True,
        )
    ]


def _added(plant: Plant, slug: str, affiliate: str, settings: str, credentials: str) -> float:
    argv = [sys.executable, "-m", "hub.cli", "store", "add", slug, "--account", "acc0", "--affiliate", affiliate]
    argv += ["--sales-channel", "1", "--marketplace", MARKETPLACE, "--settings", settings]
    argv += ["--credentials", credentials, "--no-check", "--json"]
    said = subprocess.run(argv, env=plant.env, capture_output=True, text=True, check=False)
    returned = time.monotonic()
    if said.returncode:
        raise RuntimeError(f"hub store add: {said.stderr[-500:]}")
    url = json.loads(said.stdout)["url"]
    body = {
        "IdSku": "77",
        "An": "acc0",
        "IdAffiliate": affiliate,
        "IsActive": True,
        "StockModified": True,
        "PriceModified": False,
        "HasStockKeepingUnitModified": False,
        "HasStockKeepingUnitRemovedFromAffiliate": False,
    }
    until(
        lambda: requests.post(url, json=body, timeout=5).status_code == 200, seconds=20, why="the intake knows it not"
    )
    answered = (
        "select count(*) from states s join stores t on t.id = s.store"
        " where t.slug = %s and s.context = 'stock' and s.answered_at is not null"
    )
    until(lambda: plant.value(answered, slug), seconds=60, why="the first notification is not processed")
    return time.monotonic() - returned
