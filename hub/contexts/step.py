"""What a decision asks to be done, as values that survive a crash: item in, step out, endings back.

A step is committed as the intent of its rows before anything is written (design 2, law 5). What becomes of it is
known at once or, for lots, hours later in another process; `taken` and `rejected` give the same endings for both.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from hub.errors import NotFound, Problem, Refusal, Unavailable
from hub.model import (
    Action,
    Ask,
    Binding,
    BindingState,
    JsonTree,
    Listing,
    LotOutcome,
    Price,
    Record,
    Row,
    Story,
    Urgency,
    Written,
    known_fields,
)
from hub.outcome import Done, Ending, Refused, Waiting
from hub.ports import Link, Manifest
from hub.rules import Rules

TO_MARKETPLACE = "VTEX to Marketplace"
"""The direction of everything that catalog, price and stock do (vtex.md 15.2)."""

WAIT = 30.0
"""Seconds after which a row looks by itself whether the answer of its lot has come, should nobody have told it."""

LOST_AFTER = 3
"""Attempts after which what the marketplace took and does not know is lost: before, it may be slow to show it."""

_REMOVALS = frozenset({Action.DELETE, Action.DEACTIVATE})

MOST_LOOKS = 20
"""Looks in a row of which each found a change; a store's list of delays is shorter."""

OPERATIONS = {"catalog": "Catalog change", "price": "Price update", "stock": "Inventory update"}
"""The operation of a story, by context (vtex.md 15.2); a new listing is an `Offer creation`."""


@dataclass(frozen=True, slots=True)
class Item:
    """One key of a claim with its claimed rows: the row of the claim's context and those of its siblings."""

    key: str
    rows: Mapping[str, Row]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that has to be done outside before the rows of `contexts` can end.

    `reference` is our own id of it (a UUID), `None` where no intent is needed. `intent` is what the runner commits to
    each of these rows before `write` starts.
    """

    key: str
    contexts: tuple[str, ...]
    reference: str | None = None

    @property
    def intent(self) -> JsonTree:
        """What is about to be done, as a JSON tree; `None` without a reference."""
        return None


@dataclass(frozen=True, kw_only=True)
class Send(Step):
    """One record for the marketplace, with everything needed to end its rows once the answer is known.

    `confirms` maps contexts to what the marketplace shows when it took the record, and `before` to what it showed
    before, which a refusal leaves as it was. `kind` chooses the lot. `story` lacks code and destination until then.
    `notes` are warnings that go along (A1, A3, Z). `then` is asked for after success, `otherwise` after a refusal.
    `look_again` (seconds) is when VTEX is read once more after either: its answer may have been stale (7.6).
    `refused_hash` keeps the same input from being sent again after a refusal (RES-13). `tried`: attempts before this
    one that did not end well. `half_told`: what it comes after was blocked or unblocked without an answer.
    """

    record: Record
    kind: Literal["listing", "offer"]
    story: Story
    confirms: Mapping[str, JsonTree]
    before: Mapping[str, JsonTree] = field(default_factory=dict)
    binding_state: BindingState | None = None
    product: str = ""
    notes: tuple[Problem, ...] = ()
    then: tuple[Ask, ...] = ()
    otherwise: tuple[Ask, ...] = ()
    look_again: float | None = None
    refused_hash: str | None = None
    half_told: bool = False
    tried: int = field(default=0, compare=False)

    @property
    def intent(self) -> JsonTree:
        """The whole step as a JSON tree (`send_from_json` reads it back)."""
        return self.as_json()

    def as_json(self) -> dict[str, JsonTree]:
        """The step as a JSON tree; lots keep it beside the encoded record."""
        return {
            "key": self.key,
            "contexts": list(self.contexts),
            "reference": self.reference,
            "record": record_json(self.record),
            "kind": self.kind,
            "story": _story_json(self.story),
            "confirms": dict(self.confirms),
            "before": dict(self.before),
            "binding_state": self.binding_state,
            "product": self.product,
            "notes": [note.as_json() for note in self.notes],
            "then": [asdict(ask) for ask in self.then],
            "otherwise": [asdict(ask) for ask in self.otherwise],
            "look_again": self.look_again,
            "refused_hash": self.refused_hash,
            "half_told": self.half_told,
        }


def send_from_json(tree: JsonTree) -> Send:
    """Read back what `Send.as_json` wrote."""
    state = tree.get("binding_state")
    return Send(
        key=tree["key"],
        contexts=tuple(tree["contexts"]),
        reference=tree["reference"],
        record=record_from_json(tree["record"]),
        kind=tree["kind"],
        story=_story_from_json(tree["story"]),
        confirms=tree["confirms"],
        before=tree.get("before") or {},
        binding_state=BindingState(state) if state else None,
        product=tree.get("product") or "",
        notes=tuple(Problem.from_json(note) for note in tree.get("notes") or ()),
        then=tuple(Ask(**known_fields(Ask, ask)) for ask in tree.get("then") or ()),
        otherwise=tuple(Ask(**known_fields(Ask, ask)) for ask in tree.get("otherwise") or ()),
        look_again=tree.get("look_again"),
        refused_hash=tree.get("refused_hash"),
        half_told=bool(tree.get("half_told")),
    )


def taken(send: Send, written: Written) -> tuple[Ending, ...]:
    """The marketplace took the record: one ending per row, each with its own story."""
    binding = None
    remote = written.remote_id or send.record.remote_id or ""
    link = written.link or send.story.params.get("link", "")
    if send.binding_state is not None:
        binding = Binding(send.key, remote, send.binding_state, link, send.product)
    others = tuple(note for note in send.notes if note.code != "A3")
    code = others[0].code if others else "S1"
    story = replace(
        send.story,
        code=code,
        problems=others,
        destination={"answer": written.answer, "remote_id": remote, "link": link},
        params={**send.story.params, "remote": remote, "link": link},
    )
    stories = (*defaults_story(send.story, send.notes), story)
    done = Done(send.then, send.look_again)
    ending = Ending(
        "", send.key, done, code, send.notes, send.confirms, listing=_at(send), definite=True, binding=binding
    )
    return tuple(_without_remarks(one) if one.context == "price" else one for one in _endings(send, ending, stories))


def _without_remarks(ending: Ending) -> Ending:
    """A price that was taken: remarks on the stock that went along are the stock's, its own log knows none (PRC-14)."""
    stories = tuple(replace(story, code="S1", problems=()) for story in ending.stories)
    return replace(ending, code="S1", problems=(), stories=stories)


def awaited(send: Send, ticket: str, wait: float) -> tuple[Ending, ...]:
    """The record is on its way and its answer comes later (NEW-12): pending, in the log too, until it does."""
    # What it was made of is told with the answer; here it would only be kept twice.
    story = replace(send.story, code="P0", source=None, params={**send.story.params, "key": send.key})
    return _endings(send, Ending("", send.key, Waiting(ticket, wait), "P0"), (story,))


def rejected(send: Send, problems: Sequence[Problem], answer: str = "") -> tuple[Ending, ...]:
    """The marketplace refused the record: E3 with every problem, and nothing has changed over there."""
    found = tuple(problems) or (Problem("E3", fix="the marketplace gave no reason: ask its support"),)
    story = replace(
        send.story,
        code="E3",
        problems=(*found, *send.notes),
        destination={"answer": answer},
        params={**send.story.params, "errors": sentences(found)},
    )
    refused = Refused(found, send.refused_hash, send.otherwise, send.look_again)
    ending = Ending("", send.key, refused, "E3", found, send.before, listing=_at(send), definite=True)
    return _endings(send, ending, (story,))


def refused_before(row: Row, input_hash: str | None) -> bool:
    """Was just this refused, and nothing else begun since? Then it is not sent again (RES-13)."""
    if input_hash is None or row.input_hash != input_hash:
        return False
    half_refused = row.status == "refused" and (row.intent or {}).get("refused_hash") == input_hash
    return row.intent is None or half_refused


def _at(send: Send) -> str | None:
    """The listing that price and stock are of; a registration makes its own."""
    return send.record.remote_id if send.record.action is Action.OFFER else None


def settled(resolved: LotOutcome) -> tuple[Ending, ...]:
    """The endings of a record that went in a lot, now that the lot's answer is known."""
    send = send_from_json(resolved.record)
    if resolved.missing and send.record.action in _REMOVALS:
        return _removed(send, sentences(resolved.problems))
    if resolved.taken:
        return taken(send, resolved.written or Written(send.record.remote_id or ""))
    return rejected(send, resolved.problems)


def waits_on(row: Row, manifest: Manifest) -> Waiting | None:
    """Is the marketplace's answer to this row's record still awaited? Then nothing else may be sent for it."""
    if row.status != "waiting" or row.ticket is None or row.resolved is not None:
        return None
    return Waiting(row.ticket, max(WAIT, manifest.lots.poll if manifest.lots else 0.0))


def deliver(link: Link, send: Send) -> tuple[Ending, ...]:
    """Write one record and wait for its answer. Raises what the door raises, but for a refusal, which is an ending."""
    try:
        written = link.marketplace.write(send.record)
    except Refusal as refusal:
        return rejected(send, refusal.problems, refusal.answer)
    except NotFound as missing:
        return _gone(link, send, missing)
    return taken(send, written)


def _gone(link: Link, send: Send, missing: NotFound) -> tuple[Ending, ...]:
    """The marketplace does not know a listing that we have a pair for.

    What was to be removed is removed. Anything else may only not be visible yet: it is tried again by the plan, since
    dropping the pair too early would make a second listing. After `LOST_AFTER` attempts the marketplace is asked: a
    listing that it does not show either was deleted by somebody else, or answered as made and never was. Then the pair
    goes, and the catalogue, which looks once more, makes another.
    """
    if send.record.action in _REMOVALS:
        return _removed(send, missing.answer)
    if send.tried >= LOST_AFTER and link.marketplace.show(send.key, send.record.remote_id) is None:
        pair = Binding(send.key, send.record.remote_id or "", BindingState.DELETED, "", send.product)
        again = Done(follow(link.store, send.key, ("catalog",)))
        first, *others = send.contexts
        return (
            Ending(first, send.key, again, definite=True, binding=pair),
            *(Ending(context, send.key, Done(), definite=True) for context in others),
        )
    raise Unavailable(
        f"the marketplace does not know the listing {send.record.remote_id}", side="marketplace", answer=missing.answer
    )


def _removed(send: Send, answer: str) -> tuple[Ending, ...]:
    """What is not there any more needs no removal."""
    return taken(replace(send, binding_state=BindingState.DELETED), Written("", answer=answer))


def sentences(problems: Sequence[Problem]) -> str:
    """Every problem as one line of text, for a message's placeholder."""
    return "; ".join(problem.sentence() for problem in problems)


def defaults_story(story: Story, notes: Sequence[Problem]) -> tuple[Story, ...]:
    """The warning A3 with every default that was used, told before the success (NEW-06)."""
    defaults = tuple(note for note in notes if note.code == "A3")
    if not defaults:
        return ()
    used = ", ".join(f"{note.field} = {note.value}" for note in defaults)
    return (replace(story, code="A3", problems=defaults, params={**story.params, "defaults": used}),)


def _endings(send: Send, ending: Ending, stories: tuple[Story, ...]) -> tuple[Ending, ...]:
    """The same ending for every row of `send`; the first keeps the binding, what follows and the values of no row."""
    first, *others = send.contexts
    known = ending.confirmed
    outcome = replace(ending.outcome, then=()) if isinstance(ending.outcome, Done | Refused) else ending.outcome
    own = {context: value for context, value in known.items() if context not in others}
    return (
        replace(ending, context=first, confirmed=own, stories=stories),
        *(
            replace(
                ending,
                context=context,
                outcome=outcome,
                confirmed={context: known[context]} if context in known else {},
                binding=None,
                stories=tuple(replace(story, operation=OPERATIONS.get(context, "")) for story in stories),
            )
            for context in others
        ),
    )


def price_json(price: Price | None) -> JsonTree:
    """A price as it is kept: integer cents."""
    return None if price is None else {"sale": price.sale, "list": price.list}


def price_from_json(tree: JsonTree) -> Price | None:
    """Read back what `price_json` wrote."""
    return Price(int(tree["sale"]), int(tree["list"])) if tree else None


def stock_json(quantity: int | None) -> JsonTree:
    """A quantity as it is kept."""
    return None if quantity is None else {"quantity": quantity}


def listing_json(listing: Listing | None) -> JsonTree:
    """A listing as it is kept."""
    if listing is None:
        return None
    return {
        "title": listing.title,
        "description": listing.description,
        "category": listing.category,
        "brand": listing.brand,
        "ean": listing.ean,
        "images": list(listing.images),
        "attributes": dict(listing.attributes),
        "group": listing.group,
    }


def listing_from_json(tree: JsonTree) -> Listing | None:
    """Read back what `listing_json` wrote."""
    return Listing(**{**known_fields(Listing, tree), "images": tuple(tree["images"])}) if tree else None


def record_json(record: Record) -> JsonTree:
    """A record as it is kept."""
    return {
        "sku": record.sku,
        "action": record.action.value,
        "reference": record.reference,
        "remote_id": record.remote_id,
        "listing": listing_json(record.listing),
        "price": price_json(record.price),
        "stock": record.stock,
    }


def record_from_json(tree: JsonTree) -> Record:
    """Read back what `record_json` wrote."""
    return Record(
        sku=tree["sku"],
        action=Action(tree["action"]),
        reference=tree["reference"],
        remote_id=tree["remote_id"],
        listing=listing_from_json(tree["listing"]),
        price=price_from_json(tree["price"]),
        stock=tree["stock"],
    )


def _story_json(story: Story) -> JsonTree:
    return {
        "operation": story.operation,
        "direction": story.direction,
        "code": story.code,
        "source": story.source,
        "translated": story.translated,
        "params": dict(story.params),
    }


def _story_from_json(tree: JsonTree) -> Story:
    return Story(
        tree["operation"],
        tree["direction"],
        tree["code"],
        source=tree["source"],
        translated=tree["translated"],
        params=tree["params"],
    )


def next_look(rules: Rules, row: Row, *, changed: bool = False) -> float | None:
    """Seconds until VTEX is read again for what it announced, `None` when it has been read often enough (7.6).

    Its answer may be stale, also one that shows a change: of two in a row it may be the first, and whoever takes that
    for the news misses the last; what nobody announced may even be older than what is shown. So both are looked at
    again, and whatever differs from what was shown is too (`changed`) – up to `MOST_LOOKS` after an announcement, for a
    VTEX that answers now this, now that would be written for ever. So is a write whose answer was lost.
    """
    looks = rules.look_again
    if not looks or not (row.heard or row.looks > 0 or (changed and row.confirmed is not None)):
        return None
    if changed:
        return looks[0] if row.looked < MOST_LOOKS else None
    return looks[row.looked] if row.looked < len(looks) else None


def fresh_reference() -> str:
    """An id of our own for a write that may be about to begin."""
    return str(uuid.uuid4())


def follow(
    store: int, sku: str, contexts: Sequence[str], urgency: int = Urgency.FOLLOW, *, heard: bool = False
) -> tuple[Ask, ...]:
    """What an answer made necessary: the same SKU in other contexts; `heard` when VTEX had announced what was read."""
    return tuple(Ask(store, context, sku, "follow", urgency, heard) for context in contexts)
