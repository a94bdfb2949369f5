"""100,000 notifications over 5,000 SKUs arrive while no worker runs; then the workers start.

What counts is how often VTEX is read: once per SKU would be enough. (Second looks are not among them: they are a day
away, or a long drain would see them come due.) The peer is one Celery task per notification that makes the same two
calls, with as many calls at once; of its tasks a sample runs and its time is scaled to all of them, which flatters it
(a shorter queue). `BENCH_NOTIFICATIONS` (100000), `BENCH_SKUS` (5000), `BENCH_SAMPLE` (5000) and `BENCH_ROUNDS` (5)
make a run shorter.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

from bench.measure import Line, Spread
from bench.posting import closed_loop, post
from bench.whole import UNLIMITED, WORKERS, Whole, published, running, spent
from tests.cell import CATEGORIES, ROOT, Shop, until
from tests.knobs import Knobs

knobs = Knobs(os.environ)
SKUS = knobs.whole("BENCH_SKUS", 5_000)
NOTIFICATIONS = knobs.whole("BENCH_NOTIFICATIONS", 100_000)
SAMPLE = knobs.whole("BENCH_SAMPLE", 5_000)
ROUNDS = knobs.whole("BENCH_ROUNDS", 5, most=1_000)
knobs.settle()
LATENCY = 0.05
A_DAY = 86_400.0
AT_ONCE = 32


@dataclass(frozen=True)
class Drained:
    """One backlog and what it took. Seconds from the start of the workers to the last value on the marketplace."""

    seconds: float
    reads: int
    writes: int
    intake: float
    cpu: dict[str, float]


def lines() -> list[Line]:
    """Reads per SKU, and the time."""
    with running() as whole:
        unlimited = {"rate": UNLIMITED, "burst": 100_000}
        shop = whole.shop("sandbox-replace", settings={"marketplace_limit": unlimited, "look_again": [A_DAY]})
        skus = published(whole, shop, SKUS)
        whole.vtex.fault("latency", "simulation", seconds=LATENCY)
        whole.marketplace.fault(kind="latency", seconds=LATENCY)
        ours, peer = [], []
        for turn in range(ROUNDS):
            _rest(whole)
            for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
                if side == "ours":
                    ours.append(_ours(whole, shop, skus, turn))
                    _rest(whole)
                else:
                    peer.append(_peer(whole, shop))
    reads = Spread(tuple(one.reads / SKUS for one in ours))
    seconds, scaled = (Spread(tuple(one.seconds for one in side)) for side in (ours, peer))
    what = f"{NOTIFICATIONS:,} notifications over {SKUS:,} SKUs before the workers start"
    last = ours[-1]
    return [
        Line(
            bench=f"{what}: reads of VTEX",
            unit="per SKU",
            ours=reads,
            peer=Spread((NOTIFICATIONS / SKUS,)),
            peer_name="one task per notification",
            limit=Spread((1.0,)),
            must="≤ 1.05 reads per SKU, second looks apart",
            passed=reads.median <= 1.05,
            lower=True,
            beside={"writes per SKU": last.writes / SKUS, "notifications/s taken": last.intake},
        ),
        Line(
            bench=f"{what}: time to agree",
            unit="s",
            ours=seconds,
            peer=scaled,
            peer_name=f"Celery threads {AT_ONCE}, {SAMPLE:,} tasks scaled",
            limit=Spread((2 * LATENCY * SKUS / AT_ONCE,)),
            limit_name=f"2 calls ÷ {AT_ONCE}",
            must="(shown)",
            passed=True,
            lower=True,
            beside={
                "ours: ms of CPU per SKU": _words(last.cpu, SKUS),
                "peer: calls per SKU": (peer[-1].reads + peer[-1].writes) * NOTIFICATIONS / SAMPLE / SKUS,
            },
        ),
    ]


def _words(cpu: dict[str, float], count: int) -> str:
    return ", ".join(f"{name} {1000 * used / count:.2f}" for name, used in cpu.items())


def _rest(whole: Whole) -> None:
    for name in WORKERS:
        if name in whole.processes:
            whole.stop(name)


def _ours(whole: Whole, shop: Shop, skus: list[str], turn: int) -> Drained:
    whole.vtex.change_many(shop.account, [{"id": int(sku), "stock": 100 + turn} for sku in skus], notify=False)
    port = int(whole.intake_url.rpartition(":")[2])
    number = itertools.count()

    def notification() -> bytes:
        told = {"IdSku": skus[next(number) % SKUS], "An": shop.account, "IdAffiliate": shop.affiliate}
        return post(f"/{shop.token}", json.dumps({**told, "IsActive": True, "StockModified": True}).encode())

    taken = 0
    began = time.monotonic()
    while taken < NOTIFICATIONS:
        seen = closed_loop(port, notification, connections=64, seconds=1.0)
        taken += seen.statuses[200]
        if set(seen.statuses) != {200}:
            raise AssertionError(f"the intake answered {seen.statuses}")
    rate = taken / (time.monotonic() - began)
    reads, writes = _calls(whole, shop.account, shop.slug)
    before = whole.cpu()
    whole.start_workers()
    began = time.monotonic()
    shop.quiet(seconds=600)
    seconds = time.monotonic() - began
    wrong = [sku for sku, shown in shop.all_shown().items() if shown.stock != 100 + turn]
    if wrong:
        raise AssertionError(f"{len(wrong)} SKUs are not shown as VTEX sells them: {wrong[:3]}")
    after = _calls(whole, shop.account, shop.slug)
    return Drained(seconds, after[0] - reads, after[1] - writes, rate, spent(before, whole.cpu()))


def _calls(whole: Whole, account: str, seller: str) -> tuple[int, int]:
    counts: Counter[str] = Counter()
    for one in whole.marketplace._call("GET", "/calls"):  # noqa: SLF001 – counts have no method of their own
        if one["account"] == seller and one["operation"] == "offer_put":
            counts["writes"] += one["count"]
    return whole.vtex.calls("simulation", account), counts["writes"]


def _peer(whole: Whole, shop: Shop) -> Drained:
    """A sample of the tasks; seconds and calls of the sample, the seconds scaled to all notifications."""
    seller = whole.marketplace.open_account(f"each-{time.monotonic_ns()}", "full-replace")
    queue = f"each-{seller.name}"
    given = {
        "broker": whole.env["REDIS_URL"],
        "vtex": f"{whole.vtex.base_url}/{shop.account}",
        "key": f"vtexappkey-{shop.account}-ABCDEF",
        "token": f"secret-{shop.account}",
        "affiliate": shop.affiliate,
        "marketplace": seller.url,
        "seller_token": seller.token,
        "listing": {
            "title": "Article",
            "description": "What it is",
            "category": CATEGORIES[0],
            "ean": "7891234567895",
            "brand": "Brand",
            "images": ["https://example.com/1.jpg"],
            "attributes": {},
            "group": "1",
        },
    }
    env = {**whole.env, "EACH": json.dumps(given)}
    tell = f"""
from bench.peers.each import changed
for number in range({SAMPLE}):
    changed.apply_async((str(1 + number % {SKUS}),), queue="{queue}")
"""
    subprocess.run([sys.executable, "-c", tell], env=env, cwd=ROOT, check=True)
    reads, _ = _calls(whole, shop.account, seller.name)
    command = ["-m", "celery", "-A", "bench.peers.each", "worker", "-P", "threads", "-c", str(AT_ONCE), "-Q", queue]
    before = whole.cpu()
    child = subprocess.Popen(
        [sys.executable, *command, "--without-mingle", "--without-gossip", "--loglevel", "ERROR"],
        env=env,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _calls(whole, shop.account, seller.name)[1] > 0, seconds=60, why="the peer does not start")
        began = time.monotonic()
        until(lambda: _calls(whole, shop.account, seller.name)[1] >= SAMPLE, seconds=600, why="the peer does not end")
        seconds = time.monotonic() - began
    finally:
        child.terminate()
        child.wait(30)
    after = _calls(whole, shop.account, seller.name)
    used = spent(before, whole.cpu())
    return Drained(seconds * NOTIFICATIONS / SAMPLE, after[0] - reads, after[1], 0.0, used)
