"""A worker, a sweep and a person's command built out of the product's own parts in the test's process, so that exactly
one part of one of them can be another.

No Celery: what is pending is attempted in turn. Everything else is real: PostgreSQL, Valkey, the intake, the sweep,
both simulators.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hub.crew import Crew
from hub.db import open_pool
from hub.ledger import Ledger
from hub.links import Links
from hub.reconcile import Reconciler
from tasks.app import make_app
from tasks.sweep import Sweep
from tasks.wake import Waker
from tasks.worker import Heart
from tests.cell import Cell, Shop, until

Kind = type[Ledger]


@dataclass
class Mill:
    """Works for one process's worth. `lease`: seconds; a mill that is not stopped in order leaves its leases behind."""

    cell: Cell
    kind: Kind = Ledger
    lease: float = 300.0
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        settings = self.cell.settings
        self.pool = open_pool(settings.database_url, settings.schema, name="mill", max_size=8, seqscan=False)
        self.ledger = self.kind(self.pool)
        self.heart = Heart(self.ledger, "mill", lease=self.lease, every=self.lease / 4)
        self.heart.start()
        self.links = Links(settings, self.pool, self.cell.box, slot=self.ledger.slot)
        self.links.refresh()
        self.calls = Crew(8)
        self.reconciler = Reconciler(self.ledger, dict(settings.contexts), self.calls, self.heart, self.links)

    def close(self) -> None:
        self.heart.stop()  # a second time does no harm
        self.links.close()
        self.calls.close()
        self.pool.close()

    def turn(self, shop: Shop) -> None:
        """One attempt for each context of this store that has something pending."""
        self.links.refresh()
        for store, context, _ in self.ledger.pending():
            link = self.links.get(shop.slug)
            if store == shop.store.id and link is not None:
                self.reconciler.attempt(link, context, first=True)

    def work(self, shop: Shop, wanted: Callable[[], object], *, why: str) -> None:
        """Turn until `wanted`."""

        def step() -> object:
            self.turn(shop)
            return wanted()

        until(step, seconds=60, why=why)

    def quiet(self, shop: Shop) -> None:
        """Turn until nothing of this store is pending or held."""
        busy = "select 1 from states where store = %s and (work in ('p', 'h') or status = 'waiting') limit 1"
        self.work(shop, lambda: not self.cell.all(busy, shop.store.id), why=f"{shop.slug} does not come to rest")


@contextmanager
def mill(cell: Cell, *kinds: type, lease: float = 300.0) -> Iterator[Mill]:
    """A mill whose ledger is made of these, the first one outermost."""
    running = Mill(cell, type("Ledger", (*kinds, Ledger), {}) if kinds else Ledger, lease)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def sweeping(cell: Cell, kind: Kind) -> Iterator[None]:
    """A sweep in a thread of this process."""
    settings = cell.settings
    pool = open_pool(settings.database_url, settings.schema, name="sweep", max_size=4, seqscan=False)
    ledger = kind(pool)
    ledger.join("sweep in the test", 600.0)
    links = Links(settings, pool, cell.box, slot=ledger.slot)
    links.refresh()
    waker = Waker(settings, make_app(settings))
    sweep = Sweep(settings, pool, ledger, links, waker)
    ending = threading.Event()

    def follow() -> None:
        while not ending.wait(settings.sweep.every_seconds):
            sweep.once()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        links.close()
        waker.close()
        pool.close()


def answered(cell: Cell, shop: Shop, count: int) -> None:
    """Wait until so many of VTEX's notifications of this account were answered 200, and are out of the spool."""
    stored = "select from notices where store = %s and kind = 'notification'"

    def enough() -> bool:
        counts = cell.vtex.notifications(shop.account)["counts"]
        return bool(counts.get("status_200", 0) >= count and len(cell.all(stored, shop.store.id)) >= count)

    until(enough, why=f"{count} notifications are not answered")


def served(cell: Cell, shop: Shop, stock: int) -> None:
    """Wait until VTEX has told somebody this stock."""
    until(lambda: any(one["stock"] == stock for one in cell.vtex.served(shop.account)), why=f"nobody read {stock}")
