"""A lot is submitted once, by our own reference, and its answer is fetched once for all of its records.

Key: the number of the lot. Building → submitting (our reference is committed) → submitted (their ticket is) → settled,
which makes the rows that waited for it pending (RES-08, RES-09). Closed by count, bytes, age or interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hub.contexts.step import LOST_AFTER, Item, Step
from hub.errors import NotFound, Problem, Refusal
from hub.model import JsonTree, LotResult, Row
from hub.outcome import Done, Ending, Waiting
from hub.ports import Link, Lots, LotView

LOT = "lot"


@dataclass(frozen=True, slots=True)
class Facts:
    """A lot as it stands, the marketplace's rules for lots, and what it answered so far."""

    key: str
    row: Row
    lots: Lots | None
    lot: LotView | None
    result: LotResult | None = None
    found: str | None = None


@dataclass(frozen=True, kw_only=True)
class Submit(Step):
    """Send the lot now; `ticket` when a submit whose answer was lost turns out to have arrived."""

    lot: int
    kind: str
    poll: float
    ticket: str | None = None

    @property
    def intent(self) -> JsonTree:
        """The lot's reference is the intent."""
        return {"lot": self.lot, "reference": self.reference}


@dataclass(frozen=True, kw_only=True)
class Settle(Step):
    """Keep what became of each record."""

    lot: int
    result: LotResult


def read(link: Link, item: Item) -> Facts:
    """The lot, and its answer when it has been submitted."""
    row, lots = item.rows[LOT], link.marketplace.manifest.lots
    lot = link.states.lot(int(item.key))
    if lot is None or lots is None:
        return Facts(item.key, row, lots, lot)
    if lot.state == "submitted" and lot.ticket is not None:
        return Facts(item.key, row, lots, lot, result=_result(link, lot.ticket, row))
    if lot.state == "submitting":
        # A submit was begun and nobody knows how it ended: look before sending again (law 5).
        return Facts(item.key, row, lots, lot, found=link.marketplace.find_lot(lot.reference))
    return Facts(item.key, row, lots, lot)


def _result(link: Link, ticket: str, row: Row) -> LotResult | None:
    """What became of the lot. One that its marketplace said to have taken and does not know was never done; it may
    only be slow to show it for the first few looks.

    Its records are read anew then and go in another lot; without that its rows would wait for ever.
    """
    try:
        return link.marketplace.lot_result(ticket)
    except NotFound:
        if row.attempts < LOST_AFTER:
            raise
    lost = Problem("E3", "lot", ticket, "the marketplace took it and does not know it: it is sent again")
    return LotResult({}, (lost,), retry=True)


def decide(facts: Facts) -> Sequence[Ending | Step]:
    """Wait for the lot to fill or to grow old, submit it, wait for its answer, settle it."""
    lot, lots = facts.lot, facts.lots
    if lot is None or lots is None or lot.state == "settled":
        return [Ending(LOT, facts.key, Done())]
    if lot.state == "submitted":
        if facts.result is None:
            return [Ending(LOT, facts.key, Waiting(lot.ticket or "", lots.poll), "P0")]
        return [Settle(key=facts.key, contexts=(LOT,), lot=lot.lot, result=facts.result)]
    if lot.state == "building":
        ripe = 0.0 if lot.full else lots.max_age - lot.age
        pause = 0.0 if lot.since_submit is None else lots.min_interval - lot.since_submit
        wait = max(ripe, pause)
        if wait > 0:
            # Not a back-off: the record that fills the lot asks again and is heard at once.
            return [Ending(LOT, facts.key, Done(look_again=wait))]
    return [
        Submit(
            key=facts.key,
            contexts=(LOT,),
            reference=lot.reference,
            lot=lot.lot,
            kind=lot.kind,
            poll=lots.poll,
            ticket=facts.found,
        )
    ]


def write(link: Link, step: Step) -> Sequence[Ending]:
    """Submit or settle. A marketplace that refuses the lot as a whole refuses every record of it."""
    if isinstance(step, Settle):
        link.states.lot_settled(step.lot, step.result)
        return [Ending(LOT, step.key, Done(), definite=True)]
    assert isinstance(step, Submit)  # noqa: S101 – `decide` makes no other step
    ticket = step.ticket
    if ticket is None:
        lines = link.states.lot_lines(step.lot)
        try:
            ticket = link.marketplace.submit_lot(step.kind, step.reference or "", lines)
        except Refusal as refusal:
            link.states.lot_settled(step.lot, LotResult({}, fatal=refusal.problems))
            return [Ending(LOT, step.key, Done(), "E3", refusal.problems, definite=True)]
    link.states.lot_submitted(step.lot, ticket)
    return [Ending(LOT, step.key, Waiting(ticket, step.poll), "P0", definite=True)]
