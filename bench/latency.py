"""How long a change in VTEX takes until the marketplace shows it: 50 changes a second, both peers answer in 50 ms.

Every change is of the stock of one SKU and is announced by VTEX's notification; the clock starts before VTEX is told
to change and stops when the marketplace's journal has the value. The limit is what one change's two calls take.
`BENCH_CHANGES` (1500 a round), `BENCH_ROUNDS` (5) and `BENCH_SKUS` (500) make a run shorter.
"""

from __future__ import annotations

import json
import os
import time
from datetime import datetime

from bench.measure import Line, Spread, percentile
from bench.whole import LOOKS, UNLIMITED, Whole, published, running, spent
from tests.cell import Shop
from tests.knobs import Knobs

knobs = Knobs(os.environ)
SKUS = knobs.whole("BENCH_SKUS", 500)
CHANGES = knobs.whole("BENCH_CHANGES", 1_500)
ROUNDS = knobs.whole("BENCH_ROUNDS", 5, most=1_000)
knobs.settle()
RATE = 50.0
LATENCY = 0.05
CALLS = 2
"""Of one change: simulation, offer."""


def lines() -> list[Line]:
    """One line per percentile."""
    with running() as whole:
        unlimited = {"rate": UNLIMITED, "burst": 100_000}
        shop = whole.shop("sandbox-replace", settings={"marketplace_limit": unlimited, "look_again": LOOKS})
        skus = published(whole, shop, SKUS)
        whole.vtex.fault("latency", "simulation", seconds=LATENCY)
        whole.marketplace.fault(kind="latency", seconds=LATENCY)
        rounds, cpu = [], {}
        for turn in range(ROUNDS):
            before = whole.cpu()
            rounds.append(_changes(whole, shop, skus, turn))
            cpu = spent(before, whole.cpu())
    limit = 1000 * CALLS * LATENCY
    parts = [
        ("p50", 0.5, limit + 50, "≤ limit + 50 ms"),
        ("p95", 0.95, 1000.0, "≤ 1 s"),
        ("p99", 0.99, 3000.0, "≤ 3 s"),
    ]
    found = []
    for name, part, most, must in parts:
        ours = Spread(tuple(1000 * percentile(times, part) for times in rounds))
        found.append(
            Line(
                bench=f"change → visible, {RATE:.0f} changes/s, {name}",
                unit="ms",
                ours=ours,
                limit=Spread((limit,)),
                limit_name=f"{CALLS} × {LATENCY * 1000:.0f} ms",
                must=must,
                passed=ours.median <= most,
                lower=True,
                beside={"ms of CPU per change": ", ".join(f"{n} {1000 * c / CHANGES:.2f}" for n, c in cpu.items())},
            )
        )
    return found


def _changes(whole: Whole, shop: Shop, skus: list[str], turn: int) -> list[float]:
    """Seconds from each change to its being visible."""
    mark = shop.last_call()
    changed: dict[tuple[str, int], float] = {}
    began = time.monotonic()
    for number in range(CHANGES):
        due = began + number / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        sku, stock = skus[number % len(skus)], 1000 + CHANGES * turn + number
        changed[sku, stock] = time.time()
        whole.vtex.change(shop.account, int(sku), stock=stock)
    shop.quiet(seconds=60)
    seen: dict[tuple[str, int], float] = {}
    for call in whole.marketplace.journal(account=shop.slug, operation="offer_put", after=mark, limit=100_000):
        place = (call.path.rpartition("/")[2], int(json.loads(call.body)["stock"]))
        seen.setdefault(place, datetime.fromisoformat(call.at).timestamp())
    unseen = [place for place in changed if place not in seen]
    if len(unseen) > CHANGES / 100:  # a value that the next one overtook was never to be seen
        raise AssertionError(f"{len(unseen)} changes were never visible: {unseen[:3]}")
    return [seen[place] - moment for place, moment in changed.items() if place in seen]
