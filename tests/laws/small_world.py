"""One SKU's rows between a VTEX that changes and a marketplace that falters, in imagined time.

Reading, deciding, writing, `settle` and what an ending says are the hub's own. What PostgreSQL does – enqueue, claim,
settle, remember, lots – is told here in few words; test_ledger_model.py and test_lots.py are about the real one.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hub.contexts import CONTEXTS
from hub.contexts.step import Item, Send, Step, awaited, send_from_json
from hub.errors import HubError, NotFound, Problem, Refusal, Unavailable, UnknownOutcome
from hub.marketplaces.sandbox import LOT, REPLACE, SYNC
from hub.model import (
    Action,
    Ask,
    Binding,
    BindingState,
    Claim,
    LotOutcome,
    Product,
    Record,
    Row,
    Shown,
    SimulatedItem,
    Simulation,
    Urgency,
    Written,
)
from hub.outcome import (
    Done,
    Ending,
    Failed,
    NextRow,
    Parked,
    Plan,
    Postponed,
    Refused,
    Unknown,
    Waiting,
    half_taken,
    settle,
)
from hub.ports import CartItem, Link
from hub.reconcile import LOT_PATIENCE, _ending_of
from hub.remembering import _refused_hash, _says_nothing, _ticket, _unanswered
from hub.rules import Rules
from hub.rules.validation import standing
from tests.fakes import CHANNEL, STORE, FakeMarketplace, FakeVtex, MemoryStates, a_product, an_offer

SKU = "13"
KINDS = {
    "sync": SYNC.manifest,
    "combined": replace(SYNC.manifest, offer="combined"),
    "lot": LOT.manifest,
    "replace": REPLACE.manifest,
}
PATIENT = Plan((30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0, 3600.0))
ENDED = ("done", "refused")
CLAIMED = ("status", "attempts", "urgency", "heard", "looks", "ticket", "input_hash", "reference", "intent", "marked")
STALE = 45.0
"""Seconds for which VTEX may still answer what was true before; the second look comes after 60."""


@dataclass
class Kept:
    """A row of `states` with what `answers` keeps beside it."""

    work: str = "i"
    asked: int = 0
    answered: int = 0
    claimed: int | None = None
    urgency: int = Urgency.NOTIFIED
    heard: bool = False
    looks: int = 0
    attempts: int = 0
    status: str = "new"
    due: float | None = None
    problems: tuple[Problem, ...] = ()
    why: str | None = None
    ticket: str | None = None
    parked_on: str | None = None
    input_hash: str | None = None
    reference: str | None = None
    intent: Any = None
    intent_at: float = 0.0
    confirmed: Any = None

    @property
    def marked(self) -> bool:
        told = (self.why, self.ticket, self.parked_on, self.input_hash, self.intent)
        return bool(self.problems) or any(said is not None for said in told)

    def forget(self) -> None:
        self.intent = self.reference = None


@dataclass
class Lot:
    kind: str
    state: str = "building"
    entries: list[Any] = field(default_factory=list)
    outcomes: list[LotOutcome] = field(default_factory=list)


@dataclass
class Shop(FakeVtex):
    """A VTEX that says of each reading what `view` chooses: what is true, or was a moment ago."""

    view: Callable[[str], Any] = lambda _what: None

    def product(self, sku: str) -> Product:
        found = self.view("product")
        if found is None:
            raise NotFound(f"SKU {sku}")
        return found  # type: ignore[no-any-return]  # a view is of either kind

    def simulate(self, _items: Sequence[CartItem], **_address: Any) -> Simulation:
        offered: SimulatedItem | None = self.view("offer")
        return Simulation({SKU: offered} if offered else {})


@dataclass
class Shelf(FakeMarketplace):
    """A marketplace where a write may fail before it, after it, or between two of its calls: `fault` says how.

    What is `refused at last` was taken but for a last call that changes nothing of what is kept here.
    """

    fault: Callable[[Record], str | None] = lambda _record: None
    halved: bool = False
    made: int = 0

    def write(self, record: Record) -> Written:
        self.written.append(record)
        fault = self.fault(record)
        if fault == "down":
            raise Unavailable("nobody there", side="marketplace")
        if fault == "refused":
            raise Refusal([Problem("E3", "x", "", "no")])
        parts = [record.listing, record.price, record.stock]
        if record.action in (Action.DEACTIVATE, Action.ACTIVATE):
            parts += ["the call itself"]
        if fault in ("half refused", "half down") and sum(part is not None for part in parts) > 1:
            blocks = record.action in (Action.DEACTIVATE, Action.ACTIVATE)
            both = record.price is not None and record.stock is not None
            price, stock = (None, None) if blocks else (record.price, None if both else record.stock)
            self.take(replace(record, price=price, stock=stock))
            self.halved = True
            if fault == "half down":
                raise Unavailable("nobody there any more", side="marketplace")
            raise Refusal([Problem("E3", "x", "", "no to the rest")])
        written = self.take(record)
        if fault == "refused at last":
            self.halved = True
            raise Refusal([Problem("E3", "x", "", "no to the last call")])
        if fault == "lost":
            raise UnknownOutcome("no answer")
        return written

    def take(self, record: Record) -> Written:
        manifest, shown = self.manifest, self.listings.get(SKU)
        loose = manifest.replaces or manifest.lots is not None
        if record.action is Action.DELETE:
            if shown is None and not manifest.replaces:
                raise NotFound("listing")
            self.listings.pop(SKU, None)
            return Written(record.remote_id or "")
        if shown is None:
            if record.action is not Action.REGISTER and not (manifest.replaces or (loose and record.listing)):
                raise NotFound("listing")
            if record.listing is None:
                raise Refusal([Problem("E3", "listing", "", "is needed")])
            self.made += 1
            shown = Shown(SKU, f"MK-{self.made}", active=True)
        elif record.action is Action.REGISTER and manifest.create == "create":
            raise Refusal([Problem("E3", "seller code", SKU, "is listed already")])
        if record.remote_id and record.remote_id != shown.remote_id and not loose:
            raise NotFound("listing")
        whole = manifest.replaces
        self.listings[SKU] = replace(
            shown,
            active=record.action is not Action.DEACTIVATE and (shown.active or record.action is Action.ACTIVATE),
            listing=record.listing if whole else record.listing or shown.listing,
            price=record.price if whole else record.price or shown.price,
            stock=shown.stock if record.stock is None and not whole else record.stock,
        )
        return Written(shown.remote_id, "", "taken")


class SmallWorld:
    """Time passes from event to event; `waits` are the factors by which the hub's calls and lots take their time."""

    def __init__(
        self, kind: str, waits: Sequence[float] = (0.2,), look_again: tuple[float, ...] = (60.0, 300.0)
    ) -> None:
        self.now, self.events, self.count = 0.0, list[tuple[float, int, Callable[[], None]]](), itertools.count()
        self.waits = itertools.cycle(waits)
        self.history: dict[str, list[tuple[float, Any]]] = {
            "product": [(0.0, a_product())],
            "offer": [(0.0, an_offer())],
        }
        self.shelf = Shelf(manifest=KINDS[kind])
        self.shop = Shop(view=self.true)
        self.rules = Rules(look_again=look_again)
        self.rows = {context: Kept() for context in ("catalog", "price", "stock")}
        self.binding: Binding | None = None
        self.leased: set[str] = set()
        self.lots: list[Lot] = []
        self.attempts: list[float] = []

    # ------------------------------------------------------------ VTEX, and time

    def true(self, what: str) -> Any:
        return self.history[what][-1][1]

    def recently(self, what: str, back: int) -> Any:
        """The value before the value before …, as long as it was true within `STALE`."""
        known = self.history[what]
        back = min(back, len(known) - 1)
        while back and known[-back][0] <= self.now - STALE:
            back -= 1
        return known[-1 - back][1]

    def change(self, product: Product | None, offer: SimulatedItem | None, late: float) -> None:
        """VTEX has another truth, and announces it as it does: price and stock apart, anything else as one (4.4)."""
        before, was = self.true("product"), self.true("offer")
        if product != before:
            self.history["product"].append((self.now, product))
        if offer != was:
            self.history["offer"].append((self.now, offer))
        said = {
            "price": [each and each.price for each in (was, offer)],
            "stock": [each and each.stock for each in (was, offer)],
        }
        moved = ["catalog"] if product != before else [context for context, (old, new) in said.items() if old != new]
        for place, context in enumerate(moved, 1):
            self.later(late * place, lambda context=context: self.ask(context, heard=True))  # type: ignore[misc]  # bound now

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.count), what))

    def takes_its_time(self, most: float, what: Callable[[], None]) -> None:
        self.later(most * next(self.waits), what)

    def run(self, until: float, most: int = 20_000) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
            most -= 1
            assert most, f"no rest: {len(self.attempts)} attempts until {self.now:.0f} s"
        self.now = until

    # ------------------------------------------------------------ ledger: enqueue, ripen, claim

    def ask(self, context: str, urgency: int = Urgency.NOTIFIED, *, heard: bool = False) -> None:
        row = self.rows[context]
        fresh = row.asked == (row.answered if row.claimed is None else row.claimed)
        scheduled = row.work == "s"
        looking = scheduled and row.status in ENDED
        news = heard and (not row.heard or (row.looks > 0 and row.status != "unknown"))
        more = news or (row.asked > row.answered and urgency < row.urgency)
        if not (fresh or looking or more):
            return
        if row.status != "unknown":
            row.looks = 0 if heard else min(row.looks, 1) if looking else row.looks
        row.urgency = min(row.urgency, urgency) if row.asked > row.answered else urgency
        row.asked, row.heard = row.asked + fresh, row.heard or heard
        if row.work == "i" or looking or (scheduled and row.status == "parked"):
            row.work, row.due = "p", None
        self.wake()

    def wake(self) -> None:
        self.takes_its_time(0.05, self.pick)

    def ripen(self) -> None:
        for row in self.rows.values():
            if row.work == "s" and row.due is not None and row.due <= self.now + 1e-6:
                if row.asked == row.answered:
                    row.asked, row.urgency = row.asked + 1, Urgency.SWEEP
                row.work, row.due = "p", None
                self.wake()

    def pick(self) -> None:
        for name, row in self.rows.items():
            lane = CONTEXTS[name].lane(self.shelf.manifest)
            if row.work == "p" and lane not in self.leased:
                self.claim(name, lane)

    def claim(self, name: str, lane: str) -> None:
        self.attempts.append(self.now)
        self.leased.add(lane)
        rows = {}
        for context in (name, *(each for each in CONTEXTS[name].siblings if self.rows[each].work == "p")):
            kept = self.rows[context]
            kept.work, kept.due = "h", None
            awaits = kept.status == "waiting"
            kept.claimed = kept.claimed if awaits and kept.claimed is not None else kept.asked
            resolved = self.resolved(kept.ticket, context) if awaits else None
            again = resolved is not None and resolved.retry
            row = Row(context, SKU, kept.claimed, **{name: getattr(kept, name) for name in CLAIMED})
            rows[context] = replace(
                row,
                status="delayed" if again else row.status,
                ticket=None if again else row.ticket,
                intent_age=None if row.intent is None else self.now - kept.intent_at,
                confirmed=kept.confirmed if row.intent is None else None,
                resolved=resolved,
                demands=kept.claimed - kept.answered,
            )
        states = MemoryStates(
            bindings={SKU: self.binding} if self.binding else {},
            mappings={"10": "MC-10"},
            rows={(context, SKU): (row.work, row.status) for context, row in self.rows.items() if row.asked},
            known={(context, SKU): row.confirmed for context, row in self.rows.items() if row.intent is None},
        )
        link = Link(STORE, "acme-sim", "acme", "SIM", CHANNEL, self.rules, self.shop, self.shelf, states)
        claim = Claim(0, STORE, name, lane, {SKU: rows})
        self.takes_its_time(0.3, lambda: self.look(claim, link))

    # ------------------------------------------------------------ attempt: read, decide, write

    def look(self, claim: Claim, link: Link) -> None:
        rows, work = claim.items[SKU], CONTEXTS[claim.context]
        decided: list[Ending | Step] = []
        if any(row.resolved is not None and row.resolved.retry for row in rows.values()):
            decided += [Ending(context, SKU, Failed("the lot failed"), "E2") for context in rows]
        elif all(row.status == "waiting" and row.resolved is None for row in rows.values()):
            decided += [
                Ending(context, SKU, Waiting(row.ticket or "", LOT_PATIENCE), "P0") for context, row in rows.items()
            ]
        else:
            try:
                decided += work.decide(work.read(link, Item(SKU, rows)))
            except HubError as error:
                decided += [Ending(context, SKU, _ending_of(error), "E2") for context in rows]
        endings = [one for one in decided if isinstance(one, Ending)]
        sends = [one for one in decided if isinstance(one, Send)]
        if self.shelf.manifest.lots is not None:
            endings += [ending for send in sends for ending in self.join(claim, send)]
            sends = []
        for send in sends:
            self.intend(claim, send)
        self.takes_its_time(0.3, lambda: self.carry_out(claim, link, endings, sends))

    def intend(self, claim: Claim, send: Send) -> None:
        for context in send.contexts:
            row = self.rows[context]
            row.reference, row.intent, row.intent_at = send.reference, json.loads(json.dumps(send.as_json())), self.now
            claim.begun[context, SKU] = (send.reference or "", send.as_json())

    def carry_out(self, claim: Claim, link: Link, endings: list[Ending], sends: Sequence[Send]) -> None:
        if not sends:
            self.settle(claim, endings)
            return
        send, *rest = sends
        self.shelf.halved = False
        try:
            ended = list(CONTEXTS[claim.context].write(link, send))
        except HubError as error:
            problems = tuple(error.problems) if isinstance(error, Refusal) else ()
            ended = [Ending(context, SKU, _ending_of(error), "E2", problems) for context in send.contexts]
        if self.shelf.halved:
            ended = [half_taken(one) for one in ended]
        self.takes_its_time(0.2, lambda: self.carry_out(claim, link, endings + ended, rest))

    # ------------------------------------------------------------ ledger: settle and remember

    def settle(self, claim: Claim, endings: Sequence[Ending]) -> None:
        rows = claim.items[SKU]
        ours = []
        for one in sorted(endings, key=lambda one: one.context):
            lot = one.outcome.ticket if isinstance(one.outcome, Waiting) else None
            becomes = settle(rows[one.context], one.outcome, PATIENT, 0.5)
            if lot and self.lots[int(lot.removeprefix("lot:"))].state == "settled":
                becomes = replace(becomes, work="p", wait=None)
            ours.append((one, becomes))
        for one, becomes in ours:
            self.becomes(self.rows[one.context], becomes)
        for context in rows.keys() - {one.context for one, _ in ours}:
            row = self.rows[context]
            row.work, row.claimed = "p", row.claimed if row.status == "waiting" else None
        self.remember(claim, ours)
        self.leased.remove(claim.lane)
        for row in self.rows.values():
            if row.work == "s" and row.due is not None:
                self.later(row.due - self.now, self.ripen)
        loaded = all(row.urgency >= Urgency.LOAD for row in rows.values())
        for ask in (ask for one, _ in ours for ask in _asks(one)):
            self.ask(ask.context, max(ask.urgency, Urgency.LOAD) if loaded else ask.urgency, heard=ask.heard)
        self.wake()

    def becomes(self, row: Kept, then: NextRow) -> None:
        claimed = row.claimed or 0
        dirty = row.asked > claimed
        if then.final:
            row.answered = claimed
        row.work, row.due = then.work, None if then.wait is None else self.now + then.wait
        if then.final and dirty and then.status != "dead":
            row.work, row.due = "p", None
        row.asked += then.again and not dirty
        row.claimed = row.claimed if then.keeps_claim else None
        row.status, row.attempts = then.status, then.attempts
        row.looks = 0 if dirty and not then.keeps_claim and then.status != "unknown" else then.looks
        row.heard = (then.final and then.again) or (row.heard and (dirty or not then.final))

    def remember(self, claim: Claim, ours: Sequence[tuple[Ending, NextRow]]) -> None:
        known: dict[str, tuple[Any, str | None]] = {}
        undone = set()
        for one, then in ours:
            before, row = claim.items[SKU][one.context], self.rows[one.context]
            known |= {context: (json.loads(json.dumps(value)), one.listing) for context, value in one.confirmed.items()}
            if before.intent is not None:
                if one.definite:
                    known.setdefault(one.context, (None, None))
            elif (one.context, SKU) in claim.begun and not (one.partly or _unanswered(one)):
                undone.add(one.context)
            if not _says_nothing(one, before):
                row.problems = tuple(one.problems)
                row.why = one.outcome.why if isinstance(one.outcome, Failed | Unknown | Postponed) else None
                row.ticket = _ticket(one.outcome, before, then)
                row.parked_on = one.outcome.on if isinstance(one.outcome, Parked) else None
                row.input_hash = _refused_hash(one.outcome, before)
        for context in undone - known.keys():
            self.rows[context].forget()
        for context, (value, listing) in known.items():
            ours_still = listing is None or (self.binding is not None and self.binding.remote_id == listing)
            self.rows[context].confirmed = value if ours_still else None
            self.rows[context].forget()
        for binding in (one.binding for one, _ in ours if one.binding is not None):
            self.binding = None if binding.state is BindingState.DELETED else binding
            for row in self.rows.values() if self.binding is None else ():
                row.confirmed = None
                row.forget()

    # ------------------------------------------------------------ lots

    def join(self, claim: Claim, send: Send) -> Sequence[Ending]:
        alike = [lot for lot in self.lots if lot.kind == send.kind and lot.state in ("building", "submitting")]
        if alike and alike[-1].state == "submitting":
            return [
                Ending(context, SKU, Postponed(0.3, "key", "an earlier one has not left")) for context in send.contexts
            ]
        if not alike:
            alike = [Lot(send.kind)]
            self.lots += alike
            self.takes_its_time(2.0, lambda lot=alike[0]: self.leaves(lot))  # type: ignore[misc]  # bound now
        self.intend(claim, send)
        alike[0].entries.append(send)
        return awaited(send, f"lot:{self.lots.index(alike[0])}", LOT_PATIENCE)

    def leaves(self, lot: Lot) -> None:
        lot.state = "submitting"
        self.takes_its_time(0.5, lambda: self.has_left(lot))

    def has_left(self, lot: Lot) -> None:
        lot.state = "submitted"
        self.takes_its_time(6.0, lambda: self.read_over_there(lot))

    def read_over_there(self, lot: Lot) -> None:
        for send in lot.entries:
            tree = json.loads(json.dumps(send.as_json()))
            try:
                written = self.shelf.write(send_from_json(tree).record)
                lot.outcomes.append(LotOutcome(True, written, record=tree))
            except Refusal as refusal:
                lot.outcomes.append(LotOutcome(False, problems=tuple(refusal.problems), record=tree))
            except NotFound:
                lot.outcomes.append(LotOutcome(False, problems=(Problem("E3"),), record=tree, missing=True))
            except HubError:
                lot.outcomes.append(LotOutcome(False, problems=(Problem("E3"),), record=tree, retry=True))
        self.takes_its_time(3.0, lambda: self.is_answered(lot))

    def is_answered(self, lot: Lot) -> None:
        lot.state = "settled"
        for send, outcome in zip(lot.entries, lot.outcomes, strict=True):
            for row in (self.rows[context] for context in send.contexts if outcome.retry):
                row.intent_at = self.now
        for row in self.rows.values():
            if row.work == "s" and row.status == "waiting" and row.ticket == f"lot:{self.lots.index(lot)}":
                row.work, row.due = "p", None
        self.wake()

    def resolved(self, ticket: str | None, context: str) -> LotOutcome | None:
        lot = self.lots[int((ticket or "").removeprefix("lot:"))]
        if lot.state != "settled":
            return None
        answers = zip(lot.entries, lot.outcomes, strict=True)
        return [outcome for send, outcome in answers if context in send.contexts][-1]

    # ------------------------------------------------------------ what should be shown

    def wrong(self) -> list[str]:
        """What the marketplace shows otherwise than VTEX would have it."""
        product, offer, shown = self.true("product"), self.true("offer"), self.shelf.listings.get(SKU)
        offer = offer if offer and offer.price else None
        if standing(product, SKU, CHANNEL):
            blocks = Action.DEACTIVATE in self.shelf.manifest.actions
            return ["may not be sold and is shown"] if shown and (shown.active or not blocks) else []
        rendered = self.shelf.render(product, "MC-10", self.rules.listing)
        found = []
        if rendered.listing is not None and offer is not None:
            if shown is None or not shown.active:
                return ["is sold and not shown"]
            if shown.listing != rendered.listing and offer.stock:
                found.append("the registration is not VTEX's")
        if shown is not None and shown.active:
            pieces = offer.stock if offer and offer.quantity else 0
            if (shown.stock or 0) != pieces:
                found.append(f"shows {shown.stock} pieces, not {pieces}")
            if offer is not None and (shown.price is None or shown.price.sale != offer.price):
                found.append(f"shows {shown.price}, not {offer.price}")
        return found


def _asks(one: Ending) -> Sequence[Ask]:
    return one.outcome.then if isinstance(one.outcome, Done | Parked | Postponed | Refused) else ()
