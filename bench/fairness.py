"""A quiet store beside busy, limited and hanging ones; live changes beside a load (peers answer in 200 ms).

A latency is from the change in VTEX to the value on the marketplace, both by the simulators' books. Each case measures
the quiet store alone in the same run. `BENCH_SMALL=1` takes small sizes and short windows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from bench.measure import Line, Spread, most_in_a_second, say
from bench.plant import NO_LIMIT, Changes, Plant, Seller, Watched, p95, running_plant, together
from hub import loads
from tests.cell import until
from tests.knobs import Knobs

knobs = Knobs(os.environ)
SMALL = knobs.on("BENCH_SMALL")
ROWS = knobs.words("BENCH_ROWS", ("busy", "budget", "hang", "load"))
knobs.settle()
WINDOW = 15.0 if SMALL else 60.0
PENDING = 5_000 if SMALL else 100_000
EACH = 2_000 if SMALL else 20_000
CROWD = 16
REAL = 5_000 if SMALL else 15_000
"""SKUs that exist in the simulators; a store's pending keys begin with them, and the rest is never reached."""
LOADED = 2_000 if SMALL else 20_000
BUDGET = 50.0
HANG = 60.0
UNPROTECTED = {
    "pools": {name: {"reserved": 0} for name in ("orders", "offers", "catalog", "control")},
    "contexts": {name: {"cap": 16, "first_claim": 50} for name in ("price", "stock")},
}
"""The protection switched off: no reserved threads, a store may have every thread, its first claim is a big one."""


def lines() -> list[Line]:
    """The first four rows of the table, each on a plant of its own."""
    rows = {"busy": busy_stores, "budget": shared_budget, "hang": hanging_marketplace, "load": live_beside_a_load}
    return [line for name, row in rows.items() if name in ROWS for line in row()]


def _quiet(plant: Plant, **settings: object) -> Seller:
    return plant.open("quiet-store", skus=40, settings=settings)


def _beside(plant: Plant, quiet: Seller, busy: Sequence[Seller], window: float = WINDOW) -> tuple[list[float], Watched]:
    """The quiet store's latencies while the busy ones work, and what the workers did."""
    with Watched(plant, busy) as watched:
        changes = plant.change_each_second(quiet, window)
    return plant.latencies(changes), watched


def _line(
    name: str,
    beside: list[float],
    alone: list[float],
    must: str,
    *,
    figures: Mapping[str, float | str],
    more: bool = True,
) -> Line:
    ours, peer = p95(beside), p95(alone)
    say(f"{name}: p95 {ours:.3f} s beside, {peer:.3f} s alone, {figures}")
    return Line(
        bench=name,
        unit="s (p95)",
        ours=Spread((ours,)),
        must=must,
        passed=ours <= 1.5 * peer and more,
        peer=Spread((peer,)),
        peer_name="alone",
        lower=True,
        beside={"p50": sorted(beside)[len(beside) // 2], "p50 alone": sorted(alone)[len(alone) // 2], **figures},
    )


def busy_stores() -> list[Line]:
    """One store with 100,000 pending keys, then sixteen with 20,000 each, on shared workers."""
    with running_plant() as plant:
        quiet = _quiet(plant)
        one = plant.open("busy-store", skus=REAL)
        crowd = [plant.open(f"crowd-{number}", skus=max(1_000, REAL // 6)) for number in range(CROWD)]
        plant.begin()
        plant.latencies(plant.change_each_second(quiet, 3))  # links are built, connections open
        alone, idle = _beside(plant, quiet, [])
        say(f"alone p95 {p95(alone):.3f}, cpu {idle.cpu}")
        with_one, rate_one = _with_backlog(plant, quiet, [one], PENDING)
        with_crowd, rate_crowd = _with_backlog(plant, quiet, crowd, EACH)
        plant.end()
        plant.configure(UNPROTECTED)
        plant.begin(workers=["worker first"])
        bare_one, free_one = _with_backlog(plant, quiet, [one], PENDING)
        bare_crowd, free_crowd = _with_backlog(plant, quiet, crowd, EACH)
    must = "B ≤ 1.5 × alone, ≥ 70 % of the keys/s without protection, workers < 60 % CPU"
    found = []
    for name, seen, kept, bare, free in (
        ("one busy store", with_one, rate_one, bare_one, free_one),
        (f"{CROWD} busy stores", with_crowd, rate_crowd, bare_crowd, free_crowd),
    ):
        found.append(
            _line(
                f"fairness: {name}",
                seen,
                alone,
                must,
                more=kept.rate >= 0.7 * free.rate and kept.busiest < 0.6,
                figures={
                    "keys/s": kept.rate,
                    "keys/s unprotected": free.rate,
                    "share": kept.rate / free.rate if free.rate else 0.0,
                    "p95 unprotected": p95(bare),
                    "busiest worker": f"{100 * kept.busiest:.0f} % CPU",
                },
            )
        )
    return found


def _with_backlog(plant: Plant, quiet: Seller, busy: list[Seller], each: int) -> tuple[list[float], Watched]:
    for seller in busy:
        plant.pend(seller, each)
    before = plant.done(busy)
    until(lambda: plant.done(busy) > before, seconds=30, why="the busy stores do not begin")
    time.sleep(3)
    seen, watched = _beside(plant, quiet, busy)
    real = plant.done(busy) - before
    known = sum(min(seller.skus, each) for seller in busy)
    say(f"{len(busy)} busy: p95 {p95(seen):.3f}, {watched.rate:.0f} keys/s, cpu {watched.cpu}, {real} of {known} real")
    if real > 0.95 * known:
        say("the keys that exist ran out: the rest is not the same work")
    _forget(plant, busy)
    return seen, watched


def _forget(plant: Plant, busy: Sequence[Seller]) -> None:
    """The backlog is taken away, as if it were done; what is held is waited for."""
    ids = [seller.store.id for seller in busy]
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        plant.do("update states set work = 'i', answered = asked, pending_since = null where store = any(%s)"
                 " and work = 'p'", ids)  # fmt: skip
        if not plant.value("select count(*) from states where store = any(%s) and work in ('p', 'h')", ids):
            break
        time.sleep(0.2)
    plant.do("delete from states where store = any(%s) and work = 'i'", ids)
    plant.do("update answers set confirmed = null where store = any(%s)", ids)


def shared_budget() -> list[Line]:
    """A busy and a quiet store whose marketplace counts both to one account: 50 calls in any second."""
    limit = {"rate": BUDGET, "burst": 1}
    with running_plant() as plant:
        quiet = plant.open("quiet-store", skus=40, budget_of="seller", settings={"marketplace_limit": limit})
        one = plant.open("busy-store", skus=REAL, budget_of="seller", settings={"marketplace_limit": limit})
        plant.begin()
        plant.latencies(plant.change_each_second(quiet, 3))
        alone, _ = _beside(plant, quiet, [])
        plant.pend(one, PENDING)
        until(lambda: plant.done([one]) > 200, seconds=60, why="the busy store does not begin")
        began = time.time()
        seen, watched = _beside(plant, quiet, [one])
        took = time.time() - began
        arrivals = _arrivals(plant, [quiet, one], began, began + took - 0.5)
    used = len(arrivals) / (took - 0.5) / BUDGET
    most = most_in_a_second(arrivals)
    return [
        _line(
            "fairness: one budget for both",
            seen,
            alone,
            "B ≤ 1.5 × alone, ≥ 95 % of 50 calls/s used, never more than 50 in any second",
            more=used >= 0.95 and most <= BUDGET,
            figures={
                "used": used,
                "most in a second": float(most),
                "busiest worker": f"{100 * watched.busiest:.0f} % CPU",
            },
        )
    ]


def _arrivals(plant: Plant, sellers: Sequence[Seller], begin: float, end: float) -> list[float]:
    """When calls of these stores reached the marketplace, Unix seconds: its journal tells the end and the length."""
    found = []
    for seller in sellers:
        for heard in plant.marketplace.journal(account=seller.slug, limit=50_000):
            ended = datetime.fromisoformat(heard.at)
            found.append((ended - timedelta(seconds=heard.seconds)).timestamp())
    return sorted(at for at in found if begin <= at <= end)


def hanging_marketplace() -> list[Line]:
    """The busy store's marketplace answers nothing for a minute; every call runs into its deadline."""
    with running_plant() as plant:
        quiet = _quiet(plant)
        one = plant.open("busy-store", skus=REAL)
        plant.begin()
        plant.latencies(plant.change_each_second(quiet, 3))
        alone, _ = _beside(plant, quiet, [])
        plant.pend(one, PENDING)
        until(lambda: plant.done([one]) > 200, seconds=60, why="the busy store does not begin")
        with Watched(plant, [one]) as before:
            time.sleep(5 if SMALL else 15)
        plant.marketplace.outage(one.slug, "hang", 3600)
        began = time.monotonic()
        changes: Changes = plant.change_each_second(quiet, HANG)
        reached = plant.marketplace.account(one.slug).counters.get("outage_calls", 0)
        plant.marketplace.outage(one.slug, "off")
        back = time.monotonic()
        seen = plant.latencies(changes)
        burnt = plant.value(
            "select coalesce(sum(s.attempts), 0) from states s where s.store = %s and s.context = 'stock'", one.store.id
        )
        dead = plant.value("select count(*) from states where store = %s and status = 'dead'", one.store.id)
        done = plant.done([one])
        until(lambda: plant.done([one]) > done + 300, seconds=300, why="it does not catch up")
        again = time.monotonic() - back
        with Watched(plant, [one]) as after:
            time.sleep(5 if SMALL else 15)
    say(f"hang: {reached} calls in {back - began:.0f} s, attempts {burnt}, dead {dead}, again after {again:.0f} s,"
         f" {before.rate:.0f} → {after.rate:.0f} keys/s")  # fmt: skip
    return [
        _line(
            "fairness: a marketplace that hangs",
            seen,
            alone,
            "B ≤ 1.5 × alone, ≤ 20 calls reach A's marketplace, no attempt burnt by the open circuit, then full speed",
            more=reached <= 20 and int(burnt) <= reached and not dead and after.rate >= 0.8 * before.rate,
            figures={
                "calls of A in the minute": float(reached),
                "attempts spent": float(burnt),
                "A again after (s)": again,
                "A before (keys/s)": before.rate,
                "A after (keys/s)": after.rate,
            },
        )
    ]


def live_beside_a_load() -> list[Line]:
    """An initial load of 20,000 SKUs of the same store runs beside its live changes of price and stock."""
    limits = {"vtex_limit": {"rate": 100.0, "burst": 200}, "marketplace_limit": NO_LIMIT}
    with running_plant() as plant:
        seller = plant.open("loading-store", skus=40, settings=limits)
        plant.begin()
        plant.latencies(plant.change_each_second(seller, 3))
        alone = _live(plant, seller)
        plant.vtex.grow(seller.account, LOADED, first_id=500_000, channels=[1], price=[9990, 9990], stock=[1, 1])
        run = loads.start(plant.pool, seller.store.id, who="bench")
        until(lambda: loads.progress(plant.pool, run).sent > 100, seconds=120, why="the load does not begin")
        with Watched(plant, [seller], contexts=("catalog", "price", "stock")) as watched:
            seen = _live(plant, seller)
        progress = loads.progress(plant.pool, run)
    return [
        _line(
            f"fairness: live {what} beside a load",
            seen[what],
            alone[what],
            "p95 ≤ 1.5 × without the load",
            more=progress.state == "running",
            figures={
                "load (keys/s)": watched.rate,
                "load": f"{progress.sent} of {LOADED}, {progress.state}",
                "busiest worker": f"{100 * watched.busiest:.0f} % CPU",
            },
        )
        for what in ("price", "stock")
    ]


def _live(plant: Plant, seller: Seller) -> dict[str, list[float]]:
    """Prices of the first half of its SKUs and stocks of the other, one each a second."""
    halves = {
        "price": Seller(seller.store, seller.url_token, seller.account, seller.first, 20),
        "stock": Seller(seller.store, seller.url_token, seller.account, seller.first + 20, 20),
    }
    made: list[Changes] = together(
        *(partial(plant.change_each_second, half, WINDOW, what=what) for what, half in halves.items())
    )
    return {changes.what: plant.latencies(changes) for changes in made}
