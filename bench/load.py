"""The initial load: VTEX's homologation test of 5,000 SKUs, against the script that one would write instead.

Both peers answer in 50 ms and limit nothing. The hub and the script may have the same number of calls under way; the
limit is latency × calls ÷ that number. The second line has a marketplace that takes 50 calls a second and one call
per SKU. `BENCH_SKUS` (5000), `BENCH_ROUNDS` (5; 0 leaves the first line out) and `BENCH_LIMITED` (rounds of the second
line, 1) make a run shorter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from bench.measure import Line, Spread, most_in_a_second, percentile
from bench.whole import LOOKS, UNLIMITED, Whole, assortment, books, load_ended, running, spent
from hub import loads
from tasks.app import make_app
from tasks.wake import Waker
from tests.cell import CATEGORIES, ROOT, Shop
from tests.knobs import Knobs

knobs = Knobs(os.environ)
SKUS = knobs.whole("BENCH_SKUS", 5_000)
ROUNDS = knobs.whole("BENCH_ROUNDS", 5, least=0, most=1_000)
LIMITED = knobs.whole("BENCH_LIMITED", 1, least=0, most=1_000)
knobs.settle()
CALLS = 32
"""Calls under way at once: what one worker process has for all its claims, and the threads of the script."""
LATENCY = 0.05
BUDGET = 50.0
BURSTS = (1, 50)
"""One: no second ever has more than the budget. Fifty: what the sandbox's own manifest names."""


@dataclass(frozen=True)
class Loaded:
    """One load as it was seen. Seconds; times per SKU and call by the simulators' books."""

    seconds: float
    cpu: dict[str, float]
    skus: int
    calls: Counter[str]
    per_sku: list[float]
    per_call: list[float]
    busiest: int
    """Most writes that reached the marketplace within one second, wherever it begins."""

    def beside(self, whose: str) -> dict[str, float | str]:
        """What a table shows beside the seconds."""
        found: dict[str, float | str] = {
            f"{whose}: SKUs/s": self.skus / self.seconds,
            f"{whose}: calls per SKU": sum(self.calls.values()) / self.skus,
            f"{whose}: ms of CPU per SKU": ", ".join(
                f"{name} {1000 * cpu / self.skus:.2f}" for name, cpu in self.cpu.items()
            ),
        }
        for what, times in (("SKU", self.per_sku), ("call", self.per_call)):
            parts = [f"{1000 * percentile(times, part):.0f}" for part in (0.5, 0.95, 0.99)]
            found[f"{whose}: ms per {what}, p50/p95/p99"] = "/".join(parts)
        return found


def lines() -> list[Line]:
    """Both lines of the table."""
    with running() as whole:
        whole.vtex.fault("latency", seconds=LATENCY)
        whole.marketplace.fault(kind="latency", seconds=LATENCY)
        ours, script = [], []
        for turn in range(ROUNDS):
            shop = _shop(whole)
            skus = assortment(shop, SKUS)
            for side in ("ours", "script") if turn % 2 == 0 else ("script", "ours"):
                if side == "ours":
                    ours.append(_ours(whole, shop, skus))
                else:
                    script.append(_script(whole, shop, skus))
            whole.close_shops()
        limited = {
            burst: [_ours(whole, shop := _shop(whole, BUDGET, burst), assortment(shop, SKUS)) for _ in range(LIMITED)]
            for burst in BURSTS
        }
    found = [_line(ours, script)] if ours else []
    return [*found, *(_limited_line(seen, burst) for burst, seen in limited.items() if seen)]


def _line(ours: list[Loaded], script: list[Loaded]) -> Line:
    per_sku = sum(ours[0].calls.values()) / ours[0].skus
    spread, peer = Spread(tuple(one.seconds for one in ours)), Spread(tuple(one.seconds for one in script))
    return Line(
        bench=f"initial load of {SKUS:,} SKUs, {CALLS} calls at once",
        unit="s",
        ours=spread,
        peer=peer,
        peer_name="script",
        limit=Spread((LATENCY * per_sku * SKUS / CALLS,)),
        limit_name=f"{LATENCY * 1000:.0f} ms × {per_sku:.2g} ÷ {CALLS}",
        must="≤ 1.3 × the script",
        passed=spread.median <= 1.3 * peer.median,
        lower=True,
        beside={**_middle(ours).beside("ours"), **_middle(script).beside("script")},
    )


def _limited_line(ours: list[Loaded], burst: int) -> Line:
    limit = SKUS / BUDGET
    spread = Spread(tuple(one.seconds for one in ours))
    return Line(
        bench=f"the same, marketplace budget {BUDGET:.0f} calls/s, burst {burst}",
        unit="s",
        ours=spread,
        limit=Spread((limit,)),
        limit_name="calls ÷ budget",
        must="≤ 1.05 × the limit",
        passed=spread.median <= 1.05 * limit,
        lower=True,
        beside={"most calls in any second": float(_middle(ours).busiest), **_middle(ours).beside("ours")},
    )


def _middle(found: list[Loaded]) -> Loaded:
    return sorted(found, key=lambda one: one.seconds)[len(found) // 2]


def _shop(whole: Whole, rate: float = UNLIMITED, burst: int = 100_000) -> Shop:
    return whole.shop(
        "sandbox-replace", settings={"marketplace_limit": {"rate": rate, "burst": burst}, "look_again": LOOKS}
    )


def _ours(whole: Whole, shop: Shop, skus: list[str]) -> Loaded:
    whole.vtex.clear_journal()
    before, began = whole.cpu(), time.monotonic()
    run = loads.start(whole.pool, shop.store.id, who="bench")
    with closing(Waker(whole.settings, make_app(whole.settings))) as waker:
        waker.wake([(shop.slug, "load")])  # as `hub load` does
    load_ended(whole, shop, run)
    seconds = time.monotonic() - began
    cpu = spent(before, whole.cpu())
    return _loaded(whole, shop, seller=shop.seller.name, seconds=seconds, cpu=cpu, skus=skus)


def _script(whole: Whole, shop: Shop, skus: list[str]) -> Loaded:
    """The same work by the peer, into a seller's account of its own."""
    seller = whole.marketplace.open_account(f"script-{shop.slug}", "full-replace")
    whole.vtex.clear_journal()
    given = {
        "vtex": f"{whole.vtex.base_url}/{shop.account}",
        "key": f"vtexappkey-{shop.account}-ABCDEF",
        "token": f"secret-{shop.account}",
        "affiliate": shop.affiliate,
        "marketplace": seller.url,
        "seller_token": seller.token,
        "category": CATEGORIES[0],
        "threads": CALLS,
    }
    before = whole.cpu()
    ran = subprocess.run(
        [sys.executable, "-m", "bench.peers.script", json.dumps(given)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(ran.stdout)
    after = whole.cpu()
    cpu = {"script": told["cpu"]} | {
        name: used for name, used in spent(before, after).items() if name.endswith("simulator")
    }
    return _loaded(whole, shop, seller=seller.name, seconds=told["seconds"], cpu=cpu, skus=skus)


def _loaded(whole: Whole, shop: Shop, *, seller: str, seconds: float, cpu: dict[str, float], skus: list[str]) -> Loaded:
    """What the books say; nothing counts unless the marketplace shows every SKU as VTEX sells it."""
    shown, truths = whole.marketplace.shown(seller), whole.vtex.truth(shop.account, 1)
    wrong = [
        sku
        for sku in skus
        if sku not in shown or (shown[sku].price_cents, shown[sku].stock) != (truths[sku].price, truths[sku].stock)
    ]
    if wrong:
        raise AssertionError(f"{len(wrong)} SKUs are not shown as VTEX sells them: {wrong[:3]}")
    calls = [call for call in books(whole, shop.account, seller) if call["sku"]]
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for call in calls:
        first[call["sku"]] = min(call["begin"], first.get(call["sku"], call["begin"]))
        last[call["sku"]] = max(call["end"], last.get(call["sku"], 0.0))
    return Loaded(
        seconds,
        cpu,
        len(skus),
        Counter(str(call["operation"]) for call in calls),
        [last[sku] - first[sku] for sku in first],
        [call["seconds"] for call in calls],
        most_in_a_second(sorted(call["begin"] for call in calls if call["operation"] == "offer_put")),
    )
