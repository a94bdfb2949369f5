"""The whole hub with many stores, for benchmarks of what one does to the others.

Stores are stocked by SQL (bindings, listings) instead of by a load, and pending work is put down by the ledger's own
enqueue. Every time comes from the simulators' books: when VTEX changed, when the marketplace showed it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import redis

from bench.measure import cpu_seconds, percentile
from bench.whole import WORKERS, Whole, laid_out, shipped_queues
from hub.model import Ask, Urgency
from hub.settings import Settings
from hub.simulators.control import VtexControl
from hub.stores import Store

MARKETPLACE = "sandbox-sync"
NO_LIMIT = {"rate": 5000.0, "burst": 5000}


@dataclass(frozen=True, slots=True)
class Seller:
    """One store with what it has on both sides; its SKUs are `first` to `first + skus - 1`."""

    store: Store
    url_token: str
    account: str
    first: int
    skus: int

    @property
    def slug(self) -> str:
        """The store's name, which is also its account at the marketplace."""
        return self.store.slug


@dataclass(slots=True)
class Changes:
    """Changes made one after the other, each of another value, so that each can be found on the marketplace."""

    seller: Seller
    what: str
    made: list[tuple[int, int, datetime]] = field(default_factory=list)


@dataclass
class Plant(Whole):
    """A hub that can begin, end and begin otherwise; stores are added with `open`."""

    _next_sku: int = 1
    _values: Iterator[int] = field(default_factory=lambda: itertools.count(1001))

    # -- processes

    def configure(self, changes: Mapping[str, Any]) -> None:
        """The shipped queues.yaml with `changes` merged in, for the processes started from now on."""
        shipped_queues(self.directory / "queues.yaml", changes)
        self.settings = Settings.load(env=self.env)

    def begin(self, *, workers: Sequence[str] = tuple(WORKERS)) -> None:
        """Start intake, sweep and workers and wait until they are ready."""
        self.start_intake()
        self.start("sweep", "sweep")
        for name in workers:
            self.start_worker(name, WORKERS[name])
        self.wait_ready(workers=len(workers))

    def end(self) -> None:
        """Stop intake, sweep and workers; nothing of them is left in Redis or the table of processes."""
        self.stop_all(seconds=20)
        self.do("update workers set until = now()")
        with redis.Redis.from_url(self.settings.redis_url) as client:
            client.flushall()

    def busy(self) -> dict[str, float]:
        """CPU seconds of each worker so far."""
        return {name: cpu_seconds(self.processes[name].pid) for name in WORKERS if name in self.processes}

    def value(self, query: str, *values: Any) -> Any:
        """The first column of the first row; `None` when there is no row."""
        row = self.one(query, *values)
        return next(iter(row.values())) if row else None

    def slow_down(self, latency: float = 0.2) -> None:
        """From now on each answer of the simulators comes `latency` seconds late."""
        self.vtex.fault("latency", seconds=latency)
        self.marketplace.fault("latency", seconds=latency)

    # -- stores

    def open(
        self,
        slug: str,
        *,
        skus: int,
        shown: bool = True,
        budget_of: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> Seller:
        """A store with `skus` SKUs in VTEX; `shown`: they are listed already, and the hub knows it.

        `budget_of`: name of the seller's account whose budget the marketplace counts it to.
        """
        account, first = slug.replace("-", ""), self._next_sku
        self._next_sku += skus
        self.vtex.open_account(account, "vtexappkey-bench", f"secret-{account}")
        self.vtex.grow(account, skus, first_id=first, channels=[1], price=[9990, 9990], stock=[1, 1])
        seller = self.marketplace.open_account(slug, "sync")
        named = {"account": budget_of} if budget_of else {}
        store, token = self.registry.add(
            slug=slug,
            account=account,
            affiliate="MKP",
            sales_channel=1,
            marketplace=MARKETPLACE,
            who="bench",
            settings={
                "vtex_url": f"{self.vtex.base_url}/{{account}}",
                "marketplace_url": seller.url,
                "hub_url": self.intake_url,
                "poll_orders_seconds": 86_400.0,
                "vtex_limit": NO_LIMIT,
                "marketplace_limit": NO_LIMIT,
                **(settings or {}),
            },
            credentials={
                "vtex": {"app_key": "vtexappkey-bench", "app_token": f"secret-{account}"},
                "marketplace": {"token": seller.token, **named},
            },
        )
        self.vtex.put_affiliate(account, "MKP", sales_channel=1, endpoint=f"{self.intake_url}/{token}")
        self.do(
            "insert into mappings (store, category, remote, version) values (%s, '1', 'MC-130', 1)", store.id
        )  # category 1 of the simulated account
        if shown:
            ids: dict[str, str] = {}
            for begin in range(first, first + skus, 5000):
                ids |= self.marketplace.shelve(slug, begin, min(5000, first + skus - begin))
            self.do(
                "insert into bindings (store, sku, remote_id, state)"
                " select %s, sku, remote, 'published' from unnest(%s::text[], %s::text[]) as b(sku, remote)",
                store.id,
                list(ids),
                list(ids.values()),
            )
        return Seller(store, token, account, first, skus)

    def pend(self, seller: Seller, count: int, context: str = "stock") -> None:
        """`count` pending keys, put down by the ledger's enqueue: those that exist in the simulators come first."""
        keys = [seller.first + number for number in range(min(count, seller.skus))]
        keys += [900_000_000 + number for number in range(count - len(keys))]
        for begin in range(0, count, 2000):
            self.ledger.enqueue(
                [
                    Ask(seller.store.id, context, str(key), "notification", Urgency.NOTIFIED)
                    for key in keys[begin : begin + 2000]
                ]
            )

    def done(self, sellers: Sequence[Seller], contexts: Sequence[str] = ("stock",)) -> int:
        """Keys of these stores that were brought to their end so far, from the ledger's counters."""
        found = self.value(
            "select coalesce(sum(finished), 0) from counters where store = any(%s) and context = any(%s)",
            [seller.store.id for seller in sellers],
            list(contexts),
        )
        return int(found)

    # -- changes in VTEX, seen on the marketplace

    def change_each_second(self, seller: Seller, seconds: float, *, every: float = 1.0, what: str = "stock") -> Changes:
        """Change one SKU each second (in turn, each time to another value) for so long."""
        changes = Changes(seller, what)
        vtex = VtexControl(self.vtex.base_url)  # not shared between threads
        begin = time.monotonic()
        while (turn := len(changes.made)) * every < seconds:
            pause = begin + turn * every - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            sku, value = seller.first + turn % seller.skus, next(self._values)
            changes.made.append((sku, value, vtex.change_at(seller.account, sku, **{what: value})))
        return changes

    def latencies(self, changes: Changes, *, within: float = 30.0) -> list[float]:
        """Seconds from each change in VTEX to its value being shown; infinite for one that never was."""
        shown_as = "price" if changes.what == "price" else "stock"
        ends = time.monotonic() + within
        found: dict[int, float] = {}
        while len(found) < len(changes.made) and time.monotonic() < ends:
            for turn, (sku, value, at) in enumerate(changes.made):
                if turn in found:
                    continue
                history = self.marketplace.sku(changes.seller.slug, str(sku)).history
                for shown in history:
                    if shown.field == shown_as and shown.value == value:
                        found[turn] = (datetime.fromisoformat(shown.at) - at).total_seconds()
                        break
            time.sleep(0.2)
        return [found.get(turn, float("inf")) for turn in range(len(changes.made))]


@dataclass(slots=True)
class Watched:
    """What the workers did meanwhile: keys per second of the busy stores, CPU share of the busiest worker."""

    plant: Plant
    busy: Sequence[Seller]
    contexts: Sequence[str] = ("stock",)
    rate: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    _began: float = 0.0
    _done: int = 0
    _cpu: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Watched:
        self._done = self.plant.done(self.busy, self.contexts)
        self._cpu = self.plant.busy()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self._began
        self.rate = (self.plant.done(self.busy, self.contexts) - self._done) / took
        now = self.plant.busy()
        self.cpu = {name: (now[name] - before) / took for name, before in self._cpu.items() if name in now}

    @property
    def busiest(self) -> float:
        """CPU of the busiest worker process, 1.0 is one core."""
        return max(self.cpu.values(), default=0.0)


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, in seconds."""
    return percentile(values, 0.95)


def together(*tasks: Any) -> list[Any]:
    """Run callables at the same time; their answers in order. The first error is raised."""
    answers: list[Any] = [None] * len(tasks)
    faults: list[BaseException] = []

    def run(place: int, task: Any) -> None:
        try:
            answers[place] = task()
        except BaseException as fault:  # noqa: BLE001 – handed on below
            faults.append(fault)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return answers


@contextmanager
def running_plant(*, latency: float = 0.2) -> Iterator[Plant]:
    """Servers and simulators (each answer `latency` seconds late); the hub's processes are begun by the caller."""
    with laid_out(Plant) as plant:
        if latency:
            plant.slow_down(latency)
        yield plant
