"""A process that is stopped in the moment of its write sends it when it wakes, over what its successor wrote (law 2).

Nothing can keep it from that, for a marketplace knows no leases. What can be promised: it does not stay so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.fernet import Fernet

from hub.contexts import CONTEXTS, Context
from hub.contexts.step import Step
from hub.crew import Crew
from hub.errors import LeaseLost, Problem
from hub.ledger import Claim, Ledger
from hub.marketplaces.sandbox import REPLACE
from hub.model import LotOutcome, LotResult, Product, Record, SimulatedItem, Written
from hub.outcome import Done, Ending, Refused, Waiting
from hub.ports import Link, Lots, Manifest
from hub.reconcile import Reconciler
from hub.settings import ContextSettings
from hub.states import LotEntry, StoreStates
from hub.stores import SecretBox
from tests.fakes import World, a_manifest, a_product, a_world, an_offer
from tests.laws.books import PATIENT, STORE, Books, Calm

CLAIM = 50.0
"""Seconds that a claim may take."""
PATIENCE = 20.0
SKU = "13"
LOTS = Lots(max_records=3, max_bytes=1000, max_age=60.0, min_interval=0.0, poll=10.0)
ABOUT_SKUS = ("catalog", "price", "stock")
TO_ITS_FIRST = "11111111-1111-4111-8111-111111111111"
TO_ITS_SECOND = "22222222-2222-4222-8222-222222222222"
KINDS: Mapping[str, Manifest] = {
    "separate": a_manifest(create="upsert"),
    "combined": a_manifest(offer="combined"),
    "replace": REPLACE.manifest,
}


@dataclass
class Heart:
    """Of one worker; `left` is what its leases last."""

    left: float = 100.0

    def remaining(self) -> float:
        return self.left


@dataclass
class Town:
    """Workers on one database, a VTEX and a marketplace; `stopped` is done before a write, `wrote` after one."""

    books: Books
    world: World
    crew: Crew
    stopped: Callable[[], None] | None = None
    wrote: Callable[[], None] | None = None

    def link(self) -> Link:
        box = SecretBox([Fernet.generate_key().decode()])
        return replace(self.world.link, store=STORE, states=StoreStates(self.books.pool, STORE, box))

    def worker(self) -> Callable[[str], None]:
        """One that makes an attempt of a context, as it is told."""
        ledger = self.books.another()
        settings = {name: ContextSettings("offers", PATIENT, deadline=CLAIM) for name in ABOUT_SKUS}
        heart = Heart()
        known = {name: replace(CONTEXTS[name], write=self.interrupted(CONTEXTS[name], heart)) for name in ABOUT_SKUS}
        reconciler = Reconciler(ledger, settings, self.crew, heart, Calm(), known=known)
        return lambda context: reconciler.attempt(self.link(), context, first=True) and None

    def interrupted(self, context: Context, heart: Heart) -> Callable[[Link, Step], Sequence[Ending]]:
        def write(link: Link, step: Step) -> Sequence[Ending]:
            stopped, self.stopped = self.stopped, None
            if stopped is not None:
                stopped()
                heart.left = 0.0
            endings = context.write(link, step)
            wrote, self.wrote = self.wrote, None
            if wrote is not None and stopped is None:
                wrote()
            return endings

        return write

    def work_off(self, attempt: Callable[[str], None]) -> None:
        """Everything that is pending or only waits until the marketplace must have shown it, by this worker."""
        for _ in range(2):
            while pending := [row[0] for row in self.books.sql("select distinct context from states where work = 'p'")]:
                for context in pending:
                    attempt(context)
            self.books.pass_time(2 * REPLACE.manifest.visibility_delay)
            self.books.sql("update states set due_at = now() where status = 'unknown'")
            self.books.ledger.ripen()

    def change(self, product: Product | None = None, offer: SimulatedItem | None = None) -> None:
        """VTEX changes and says so."""
        vtex = self.world.vtex
        vtex.products[SKU] = product or vtex.products[SKU]
        vtex.offers[SKU] = offer or vtex.offers[SKU]
        for context in ABOUT_SKUS:
            self.books.ask(SKU, context=context, heard=True)

    def expire(self) -> None:
        """The claim of whoever is stopped ends."""
        self.books.pass_time(CLAIM + 1)
        assert self.books.ledger.expire()

    def assert_shown(self) -> None:
        """The marketplace shows what VTEX sells, and of what can be bought nothing is in doubt any more."""
        product, offer = self.world.vtex.products[SKU], self.world.vtex.offers[SKU]
        listing = self.world.marketplace.listings.get(SKU)
        if not product.active:
            assert listing is None or not listing.active
        else:
            assert listing is not None
            assert listing.active
            assert listing.price is not None
            assert (listing.price.sale, listing.stock) == (offer.price, offer.stock)
            assert listing.listing is not None
            assert listing.listing.title == product.name
        doubtful = {row[0] for row in self.books.sql("select context from answers where intent is not null")}
        assert doubtful <= (set() if product.active else {"price", "stock"})
        self.books.assert_conserved()


@pytest.fixture(params=sorted(KINDS))
def unpublished(request: pytest.FixtureRequest, books: Books) -> Iterator[Town]:
    crew = Crew(2)
    world = a_world()
    world.marketplace.manifest = KINDS[request.param]
    books.sql("insert into mappings (store, category, remote, version) values (%s, '10', 'MC-10', 1)", STORE)
    yield Town(books, world, crew)
    crew.close()


@pytest.fixture
def town(unpublished: Town) -> Town:
    """Its SKU is on the marketplace."""
    unpublished.change()
    unpublished.work_off(unpublished.worker())
    unpublished.assert_shown()
    return unpublished


LATE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "price": ("price", {"offer": an_offer(price=1018)}),
    "stock": ("stock", {"offer": an_offer(stock=5)}),
    "title": ("catalog", {"product": a_product(name="A")}),
    "withdrawal": ("catalog", {"product": a_product(active=False)}),
}
NEWER: Mapping[str, Mapping[str, Any]] = {
    "price": {"offer": an_offer(price=1047)},
    "stock": {"offer": an_offer(stock=0)},
    "title": {"product": a_product(name="B")},
    "withdrawal": {"product": a_product(active=False)},
    "return to sale": {"product": a_product()},
}


def overtaken_by(town: Town, context: str, **newer: Any) -> None:
    """A worker stops before its write of this context until its successor has written what is newer."""
    written: list[Record] = []

    def meanwhile() -> None:
        town.change(**newer)
        town.expire()
        town.work_off(town.worker())
        written.extend(town.world.marketplace.written)

    town.stopped = meanwhile
    town.worker()(context)
    assert len(town.world.marketplace.written) > len(written), "it never sent what it had begun"


@pytest.mark.parametrize("newer", sorted(NEWER))
@pytest.mark.parametrize("late", sorted(LATE))
def test_what_a_stopped_worker_writes_over_a_newer_value_does_not_stay(town: Town, late: str, newer: str) -> None:
    context, older = LATE[late]
    town.change(**older)
    overtaken_by(town, context, **NEWER[newer])
    town.work_off(town.worker())
    town.assert_shown()


def test_what_a_late_registration_said_of_price_and_stock_does_not_stay(unpublished: Town) -> None:
    unpublished.books.ask(SKU, context="catalog")
    overtaken_by(unpublished, "catalog", offer=an_offer(price=1047, stock=3))
    unpublished.work_off(unpublished.worker())
    unpublished.assert_shown()


@pytest.mark.parametrize("newer", sorted(NEWER))
@pytest.mark.parametrize("late", sorted(LATE))
def test_nor_what_arrives_while_its_successor_waits_for_an_answer(town: Town, late: str, newer: str) -> None:
    context, older = LATE[late]
    town.change(**older)
    stops, goes_on = threading.Event(), threading.Event()

    def stop() -> None:
        stops.set()
        assert goes_on.wait(PATIENCE)

    def wakes() -> None:
        goes_on.set()
        stopped.join(PATIENCE)

    town.stopped = stop
    stopped = threading.Thread(target=town.worker(), args=(context,))
    stopped.start()
    assert stops.wait(PATIENCE)
    town.expire()
    town.change(product=a_product())
    town.work_off(town.worker())
    town.change(**NEWER[newer])
    town.wrote = wakes
    town.work_off(town.worker())
    wakes()  # where there was nothing to write
    assert not stopped.is_alive()
    town.work_off(town.worker())
    town.assert_shown()


def an_attempt(books: Books, reference: str, price: int) -> tuple[Ledger, Claim]:
    """The intent of a new price is committed, by a process of its own."""
    ledger = books.another()
    claim = books.claim(seconds=CLAIM, by=ledger)
    assert ledger.intend(claim, [("price", SKU, reference, {"to": price})])
    return ledger, claim


def overtaken(books: Books) -> tuple[Ledger, Claim]:
    """An attempt whose claim is gone before its end."""
    books.ask(SKU)
    stopped = an_attempt(books, TO_ITS_FIRST, 1018)
    books.pass_time(CLAIM + 1)
    books.ledger.expire()
    return stopped


def confirmed(books: Books, claim: Claim, price: int) -> None:
    books.settle(claim, Done(), confirmed={"price": {"price": price}}, definite=True)


def test_a_late_write_puts_what_was_confirmed_after_it_in_doubt(books: Books) -> None:
    stopped, claim = overtaken(books)
    _, successor = an_attempt(books, TO_ITS_SECOND, 1047)
    confirmed(books, successor, 1047)
    assert books.answer(SKU)["confirmed"] == {"price": 1047}
    assert stopped.doubt(claim, [("price", SKU)]) == {(STORE, "price")}
    found = books.answer(SKU)
    assert (found["confirmed"], found["reference"]) == (None, TO_ITS_FIRST)
    row = books.claim().items[SKU]["price"]
    assert row.intent is not None
    assert row.intent["to"] == 1018


def test_who_is_writing_while_it_is_doubted_cannot_confirm_it_and_who_comes_after_can(books: Books) -> None:
    stopped, claim = overtaken(books)
    _, successor = an_attempt(books, TO_ITS_SECOND, 1047)
    stopped.doubt(claim, [("price", SKU)])
    confirmed(books, successor, 1047)
    found = books.answer(SKU)
    assert (found["confirmed"], found["reference"]) == (None, TO_ITS_SECOND)
    assert books.row(SKU)["work"] == "p"
    confirmed(books, books.claim(), 1047)
    assert books.answer(SKU)["confirmed"] == {"price": 1047}
    assert books.answer(SKU)["intent"] is None
    assert books.row(SKU)["work"] == "i"
    books.assert_conserved()


def test_an_answer_that_nothing_was_changed_does_not_end_a_doubt_that_came_after_its_claim(books: Books) -> None:
    stopped, claim = overtaken(books)
    books.settle(books.claim(), Done(), definite=True)  # the dead attempt's intent is settled, and its reason gone
    books.ask(SKU)
    _, successor = an_attempt(books, TO_ITS_SECOND, 1047)
    stopped.doubt(claim, [("price", SKU)])
    books.settle(successor, Refused((Problem("E3", "price", "1047", "above 20"),), "hash"), definite=True)
    assert books.answer(SKU)["reference"] == TO_ITS_SECOND
    assert books.row(SKU)["work"] == "p"


@pytest.mark.parametrize("by", ["a call", "a lot"])
def test_who_begins_after_the_doubt_what_was_read_before_it_knows_that_more_has_happened(books: Books, by: str) -> None:
    stopped, claim = overtaken(books)
    books.settle(books.claim(), Done(), definite=True)
    books.ask(SKU)
    successor = books.claim()
    stopped.doubt(claim, [("price", SKU)])
    if by == "a call":
        books.ledger.intend(successor, [("price", SKU, TO_ITS_SECOND, {"to": 1047})])
    else:
        states = StoreStates(books.pool, STORE, SecretBox([Fernet.generate_key().decode()]))
        record = {"reference": TO_ITS_SECOND, "to": 1047}
        states.join_lot(successor, "offer", [LotEntry(("price",), SKU, record, b"x")], LOTS)
    found = books.answer(SKU)
    assert (found["reference"], found["intent"]["half_told"]) == (TO_ITS_SECOND, True)


def test_only_what_was_begun_is_doubted(books: Books) -> None:
    books.ask(SKU, "14")
    claim = books.claim(seconds=CLAIM)
    books.ledger.intend(claim, [("price", SKU, TO_ITS_FIRST, {"to": 1018})])
    assert books.ledger.doubt(claim, [("price", "14"), ("stock", SKU)]) == frozenset()
    assert books.answer("14")["confirmed"] is None
    books.pass_time(CLAIM + 1)
    books.ledger.expire()
    books.ledger.doubt(claim, [("price", SKU)])
    assert books.sql("select key from states where context = 'stock'") == [], "nobody ever asked for its stock"
    books.assert_conserved()


def test_every_record_of_a_lot_that_may_have_left_late_is_doubted(books: Books) -> None:
    states = StoreStates(books.pool, STORE, SecretBox([Fernet.generate_key().decode()]))
    books.ask("1", "2")
    skus = books.claim()
    record = {"reference": TO_ITS_SECOND, "to": 1018}
    lots = states.join_lot(skus, "offer", [LotEntry(("price",), key, record, b"x") for key in ("1", "2")], LOTS)
    lot = str(lots["1"])
    books.settle(skus, Waiting(f"lot:{lot}", 600.0))
    stopped = books.another()
    claim = books.claim("lot", seconds=CLAIM, by=stopped)
    stopped.intend(claim, [("lot", lot, TO_ITS_FIRST, {"lot": int(lot)})])
    books.pass_time(CLAIM + 1)
    books.ledger.expire()
    books.settle(books.claim("lot"), Done(), definite=True)
    states.lot_settled(int(lot), LotResult(dict.fromkeys(range(2), LotOutcome(taken=True, written=Written("r-1")))))
    answered = books.claim()
    assert all(row.resolved is not None for rows in answered.items.values() for row in rows.values())
    confirmed(books, answered, 1018)
    stopped.doubt(claim, [("lot", lot)])
    assert sorted(books.claim().items) == ["1", "2"]
    assert books.row(lot, "lot")["work"] == "i", "the lot itself has its answer"
    assert [books.answer(key)["intent"]["to"] for key in ("1", "2")] == [1018, 1018]


def test_the_answer_of_a_lot_that_waited_when_another_came_late_is_not_believed(books: Books) -> None:
    states = StoreStates(books.pool, STORE, SecretBox([Fernet.generate_key().decode()]))
    books.ask(SKU)
    stopped, claim = an_attempt(books, TO_ITS_FIRST, 1018)
    books.pass_time(CLAIM + 1)
    books.ledger.expire()
    successor = books.claim()
    record = {"reference": TO_ITS_SECOND, "to": 1047}
    lot = states.join_lot(successor, "offer", [LotEntry(("price",), SKU, record, b"x")], LOTS)[SKU]
    assert lot is not None
    books.settle(successor, Waiting(f"lot:{lot}", 600.0))
    stopped.doubt(claim, [("price", SKU)])
    states.lot_settled(lot, LotResult({0: LotOutcome(taken=True, written=Written("r-1"))}))
    answered = books.claim()
    assert answered.items[SKU]["price"].resolved is not None
    confirmed(books, answered, 1047)
    assert books.answer(SKU)["confirmed"] is None
    assert books.row(SKU)["work"] == "p"
    last = books.claim()
    assert last.items[SKU]["price"].intent is not None
    confirmed(books, last, 1047)
    assert books.answer(SKU)["confirmed"] == {"price": 1047}


def test_what_the_lease_kept_from_being_sent_is_asked_for_by_nobody(town: Town) -> None:
    town.change(offer=an_offer(price=1018))

    def meanwhile() -> None:
        town.expire()
        town.work_off(town.worker())
        raise LeaseLost("the lease does not outlast the write")

    town.stopped = meanwhile
    town.worker()("price")
    assert town.books.sql("select count(*) from states where work = 'p'") == [(0,)]
    town.assert_shown()
