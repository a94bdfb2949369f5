"""Price and stock of one SKU: read together with one simulation, sent apart or as one record, as the marketplace wants.

Both contexts are these three functions; what is a price's or a stock's own is in their files. The other side is asked
only when VTEX's value is not what the marketplace is known to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace

from hub import messages
from hub.contexts import price, stock
from hub.contexts.step import (
    OPERATIONS,
    TO_MARKETPLACE,
    Item,
    Send,
    Step,
    deliver,
    follow,
    fresh_reference,
    listing_from_json,
    next_look,
    price_from_json,
    record_json,
    refused_before,
    sentences,
    settled,
    waits_on,
)
from hub.errors import NotFound, Problem
from hub.model import (
    Action,
    Ask,
    Binding,
    BindingState,
    JsonTree,
    Listing,
    Price,
    Record,
    Row,
    SimulatedItem,
    Story,
    digest,
)
from hub.outcome import Done, Ending, Parked, Refused
from hub.ports import CartItem, Link, Manifest
from hub.rules import Rules
from hub.rules.inventory import Quantity
from hub.rules.validation import availability, standing

QUIET_STATUSES = frozenset({"waiting", "parked"})
"""A catalog row in one of these is on its way already: asking it again would change nothing."""

UNKNOWN_OFFER: Mapping[str, JsonTree] = {price.NAME: None, stock.NAME: None}
_ENDED = frozenset({"done", "refused"})


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `decide` needs to know of one SKU's price and stock.

    `rows` are the claimed rows by context. `catalog_idle`: asking the catalogue would start something;
    `catalog_refused`: it holds back what the product is now. `offered` is
    what VTEX would sell now, `None` when it is absent. `listing` and `last_price` complete the records of a
    marketplace that replaces whole offers. `beside` is what it is known to show of the context that is not claimed and
    that will not be read without us. `may_be_sold_out`: it shows no stock, or nothing is known of its stock.
    `price_refused`: the price is not claimed and rests, its last word being a refusal. `other_awaited`: a record sent
    for the other context has no answer yet.
    """

    store: int
    channel: int
    sku: str
    manifest: Manifest
    rules: Rules
    rows: Mapping[str, Row]
    references: Mapping[str, str] = field(default_factory=dict)
    binding: Binding | None = None
    catalog_idle: bool = False
    catalog_refused: bool = False
    offered: SimulatedItem | None = None
    listing: Listing | None = None
    last_price: Price | None = None
    beside: Mapping[str, JsonTree] = field(default_factory=dict)
    may_be_sold_out: bool = False
    price_refused: bool = False
    other_awaited: bool = False

    @property
    def open_rows(self) -> Mapping[str, Row]:
        """The rows whose answer is not known yet."""
        return {
            context: row
            for context, row in self.rows.items()
            if row.resolved is None and waits_on(row, self.manifest) is None
        }

    @property
    def combined(self) -> bool:
        """One record says both price and stock."""
        return self.manifest.replaces or self.manifest.offer == "combined"

    @property
    def doubtful(self) -> bool:
        """A record that said both was begun, and nobody knows whether it was taken."""
        return self.combined and any(row.intent is not None for row in self.open_rows.values())

    @property
    def published(self) -> bool:
        """The marketplace shows it."""
        return self.binding is not None and self.binding.state is BindingState.PUBLISHED


def read(link: Link, item: Item) -> Facts:
    """Simulate one unit, without an address (6.2) – unless there is nothing to send it to."""
    manifest = link.marketplace.manifest
    rows = {context: row for context, row in item.rows.items() if context in (price.NAME, stock.NAME)}
    references = {context: fresh_reference() for context in rows}
    facts = Facts(link.store, link.sales_channel, item.key, manifest, link.rules, rows, references)
    if facts.combined and any(row.resolved is not None for row in rows.values()):
        facts = replace(facts, other_awaited=_other_awaited(link, facts))
    if not facts.open_rows:
        return facts
    facts = replace(facts, binding=link.states.binding(item.key))
    if not facts.published:
        heard = any(row.heard for row in facts.open_rows.values())
        return replace(facts, catalog_idle=_idle(link.states.row_status("catalog", item.key), heard=heard))
    offered = link.vtex.simulate([CartItem(item.key)]).items.get(item.key)
    said = link.states.row_status("catalog", item.key)
    refused = said is not None and said[1] == "refused"
    known = link.states.confirmed(stock.NAME, item.key) if stock.NAME not in rows else rows[stock.NAME].confirmed
    facts = replace(
        facts,
        offered=offered,
        beside=_beside(link, facts),
        catalog_refused=refused,
        may_be_sold_out=not (known or {}).get("quantity"),
        price_refused=price.NAME not in rows and link.states.row_status(price.NAME, item.key) == ("i", "refused"),
    )
    return _completed(link, facts) if manifest.replaces else facts


def _beside(link: Link, facts: Facts) -> Mapping[str, JsonTree]:
    """Only what is at rest: who has a look coming sees by itself what moved.

    Two that were refused would ask each other for ever: who was refused tells nobody who was, too.
    """
    refused = any(row.status == "refused" for row in facts.rows.values())
    ends = {"done"} if refused else _ENDED
    others = [context for context in (price.NAME, stock.NAME) if context not in facts.rows]
    rests = [context for context in others if _rests(link.states.row_status(context, facts.sku), ends)]
    return {context: link.states.confirmed(context, facts.sku) for context in rests}


def _other_awaited(link: Link, facts: Facts) -> bool:
    if len(facts.rows) > 1:
        return any(waits_on(row, facts.manifest) for row in facts.rows.values())
    other = stock.NAME if price.NAME in facts.rows else price.NAME
    found = link.states.row_status(other, facts.sku)
    return found is not None and found[1] == "waiting"


def _rests(row_status: tuple[str, str] | None, ends: Set[str]) -> bool:
    return row_status is None or (row_status[0] == "i" and row_status[1] in ends)


def _idle(row_status: tuple[str, str] | None, *, heard: bool = False) -> bool:
    """Would asking the catalogue start something? One that has ended and looks again may be told by a stale VTEX what
    is older than what was `heard` now: it is asked, and looks again for this, too.
    """
    if row_status is None:
        return True
    work, status = row_status
    return (work == "i" and status not in QUIET_STATUSES) or (heard and status in _ENDED)


def _completed(link: Link, facts: Facts) -> Facts:
    """What a whole replacement needs besides price and stock: the registration that is listed, the price it shows."""
    confirmed = link.states.confirmed("catalog", facts.sku)
    listing = listing_from_json((confirmed or {}).get("listing"))
    if listing is None:
        listing = _registration(link, facts)
    last = price_from_json(link.states.confirmed("price", facts.sku))
    if last is None and price.wanted(facts.offered, facts.rules) is None:
        shown = link.marketplace.show(facts.sku, facts.binding.remote_id if facts.binding else None)
        last = shown.price if shown else None
    # A catalogue that refuses what is listed has asked us: asked back, it would ask again.
    asks = not facts.catalog_refused and _idle(link.states.row_status("catalog", facts.sku))
    idle = listing is not None or asks
    return replace(facts, listing=listing, last_price=last, catalog_idle=idle)


def _registration(link: Link, facts: Facts) -> Listing | None:
    """The registration as it should be, when what is listed is in doubt; `None` when there should be none.

    What may not be sold was perhaps just deleted, and a whole replacement would bring it back. What may be sold and
    cannot be registered anew (its category is not mapped any more) keeps what the marketplace shows, and its price and
    stock go on (UPD-16).
    """
    try:
        product = link.vtex.product(facts.sku)
    except NotFound:
        return None
    if standing(product, facts.sku, link.sales_channel):
        return None
    mapping = link.states.mapped(product.category)
    if mapping.remote is not None:
        rendered = link.marketplace.render(product, mapping.remote, link.rules.listing)
        if not rendered.problems:
            return rendered.listing
    shown = link.marketplace.show(facts.sku, facts.binding.remote_id if facts.binding else None)
    return shown.listing if shown else None


def decide(facts: Facts) -> Sequence[Ending | Step]:
    """What has to be sent so that the marketplace shows VTEX's price and stock; nothing when it does."""
    endings: list[Ending | Step] = []
    for context, row in facts.rows.items():
        if row.resolved is not None:
            endings += [_answered(facts, ending) for ending in settled(row.resolved) if ending.context == context]
        elif (waiting := waits_on(row, facts.manifest)) is not None:
            endings.append(Ending(context, facts.sku, waiting, "P0"))
    if facts.open_rows:
        endings += _unpublished(facts) if _cannot_be_sent(facts) else _agree(facts)
    return endings


def _answered(facts: Facts, ending: Ending) -> Ending:
    """A lot's answer. Where two records that say both were under way at once, nobody knows which one came last.

    Each answer takes away the intent of what is still awaited, and one that finds none tells nothing; the last one has
    everything sent anew, in one record.
    """
    outcome = ending.outcome
    if not facts.combined or not isinstance(outcome, Done | Refused):
        return ending
    records = {row.resolved.record["reference"] for row in facts.rows.values() if row.resolved is not None}
    confused = facts.rows[ending.context].intent is None or len(records) > 1
    if confused and facts.other_awaited:
        return replace(ending, outcome=replace(outcome, then=()), confirmed=UNKNOWN_OFFER)
    if confused:
        asks = _asks(facts, (price.NAME, stock.NAME))
        return replace(ending, outcome=replace(outcome, then=(*outcome.then, *asks)), confirmed=UNKNOWN_OFFER)
    if facts.other_awaited and isinstance(outcome, Done):
        return replace(ending, confirmed={**UNKNOWN_OFFER, ending.context: ending.confirmed.get(ending.context)})
    return ending


def write(link: Link, step: Step) -> Sequence[Ending]:
    """Send the record."""
    if not isinstance(step, Send):
        raise TypeError(f"price and stock write records, not {type(step).__name__}")
    return deliver(link, step)


def _cannot_be_sent(facts: Facts) -> bool:
    return not facts.published or (facts.manifest.replaces and facts.listing is None)


def _unpublished(facts: Facts) -> list[Ending | Step]:
    """Not on the marketplace: wait for the publication, and see to it when nobody does (design 4).

    A deactivated listing keeps its zero; the catalogue is asked whether it may come back.
    """
    then: tuple[Ask, ...] = _asks(facts, ("catalog",)) if facts.catalog_idle else ()
    endings: list[Ending | Step] = []
    for context in facts.open_rows:
        if facts.binding is not None and facts.binding.state is BindingState.DEACTIVATED:
            endings.append(Ending(context, facts.sku, Done(then)))
        else:
            endings.append(Ending(context, facts.sku, Parked(f"publication:{facts.sku}", then=then)))
        then = ()
    return endings


def _agree(facts: Facts) -> list[Ending | Step]:
    absent = availability(facts.offered, facts.sku, facts.channel, facts.rules.pricing)
    asked = None if absent else price.wanted(facts.offered, facts.rules)
    pieces = stock.wanted(None if absent else facts.offered, facts.rules, facts.manifest.max_stock)
    pieces = replace(pieces, warnings=absent or pieces.warnings)
    wanted: dict[str, JsonTree] = {stock.NAME: stock.snapshot(pieces)}
    if asked is not None:
        wanted[price.NAME] = price.snapshot(asked)

    endings: list[Ending | Step] = []
    changed: list[str] = []
    for context, row in facts.open_rows.items():
        if context not in wanted:
            endings.append(_priceless(facts, row, absent))
        elif row.intent is not None or row.confirmed != wanted[context] or facts.doubtful:
            changed.append(context)
        else:
            endings.append(_unchanged(facts, context, row, pieces))
    for contexts in [tuple(changed)] if facts.combined and changed else [(context,) for context in changed]:
        endings += _sent(facts, contexts, wanted, asked, pieces)
    return _telling(facts, endings, wanted, carried=facts.combined and bool(changed))


def _telling(
    facts: Facts, endings: list[Ending | Step], wanted: Mapping[str, JsonTree], *, carried: bool
) -> list[Ending | Step]:
    """The other context is asked when this read shows that it has moved: nobody may ever announce it (it was lost, or
    came while a first publication wrote both). `carried`: one record says both, so that it need not be.

    A price that was refused while there was none says so until it is asked, even if what is shown is right again. Not
    as one that was announced: asked back by it, who asked asks no more. Nor beside the catalogue, which asks it itself.
    """
    moved = [
        context
        for context, shown in facts.beside.items()
        if not carried and shown is not None and context in wanted and shown != wanted[context]
    ]
    asks = _asks(facts, moved)
    heard = any(row.heard for row in facts.open_rows.values())
    right = price.NAME in wanted and facts.beside.get(price.NAME) == wanted[price.NAME]
    if facts.price_refused and right and heard and not any(ask.context == "catalog" for ask in _then(endings[0])):
        asks = (*asks, *follow(facts.store, facts.sku, (price.NAME,)))
    if asks:
        endings[0] = _also(endings[0], asks)
    return endings


def _then(one: Ending | Step) -> tuple[Ask, ...]:
    if isinstance(one, Send):
        return one.then
    return one.outcome.then if isinstance(one, Ending) and isinstance(one.outcome, Done | Refused) else ()


def _also(one: Ending | Step, asks: tuple[Ask, ...]) -> Ending | Step:
    """With these asks besides its own."""
    then = (*_then(one), *(ask for ask in asks if ask not in _then(one)))
    if isinstance(one, Send):
        return replace(one, then=then, otherwise=asks)
    if isinstance(one, Ending) and isinstance(one.outcome, Done | Refused):
        return replace(one, outcome=replace(one.outcome, then=then))
    return one


def _asks(facts: Facts, contexts: Sequence[str]) -> tuple[Ask, ...]:
    """Others are asked as this was: of what VTEX has announced each is looked at again."""
    return follow(facts.store, facts.sku, contexts, heard=any(row.heard for row in facts.open_rows.values()))


def _unchanged(facts: Facts, context: str, row: Row, pieces: Quantity) -> Ending:
    """Nothing to send."""
    warnings = pieces.warnings if context == stock.NAME else ()
    then = (*_restock(facts, (context,)), *_relisted(facts, (context,), None))
    done = Done(then, next_look(facts.rules, row))
    return Ending(context, facts.sku, done, messages.worst(_codes(warnings)), warnings)


def _restock(facts: Facts, contexts: Sequence[str]) -> tuple[Ask, ...]:
    """A price after a refusal: while there was none the stock was shown as zero, and VTEX need not announce it too."""
    row = facts.open_rows.get(price.NAME)
    back = price.NAME in contexts and stock.NAME not in facts.open_rows and row is not None and row.input_hash
    return _asks(facts, (stock.NAME,)) if back else ()


def _relisted(facts: Facts, contexts: Sequence[str], pieces: int | None) -> tuple[Ask, ...]:
    """On sale again: what the catalogue held back while VTEX did not offer it may go out now, and nobody says so."""
    priced = price.NAME in contexts and facts.rows[price.NAME].input_hash is not None
    back = priced or (facts.may_be_sold_out and bool(pieces))
    return _asks(facts, ("catalog",)) if facts.catalog_refused and back else ()


def _priceless(facts: Facts, row: Row, absent: tuple[Problem, ...]) -> Ending:
    """VTEX has no price: none is sent, and the stock context sends the zero (PRC-06)."""
    together = stock.NAME in facts.open_rows
    then = () if together else _asks(facts, (stock.NAME,))
    refused_hash = digest([problem.as_json() for problem in absent])
    refused = Refused(absent, refused_hash, then, next_look(facts.rules, row))
    code = messages.worst(_codes(absent))
    told = together or row.input_hash == refused.input_hash
    stories = () if told else (_story(facts, price.NAME, code or "A1", absent, "no price"),)
    # A record of both is in doubt as a whole; a stock that is claimed with it is sent anew and says so itself.
    doubts: Mapping[str, JsonTree] = {}
    if facts.doubtful:
        doubts = {price.NAME: None} if together else UNKNOWN_OFFER
    return Ending(price.NAME, facts.sku, refused, code, absent, doubts, stories=stories)


def _sent(
    facts: Facts,
    contexts: tuple[str, ...],
    wanted: Mapping[str, JsonTree],
    asked: Price | None,
    pieces: Quantity,
) -> Sequence[Ending | Step]:
    record = Record(
        facts.sku,
        Action.OFFER,
        facts.references[contexts[0]],
        facts.binding.remote_id if facts.binding else None,
        facts.listing if facts.manifest.replaces else None,
        asked if facts.combined or contexts == (price.NAME,) else None,
        pieces.pieces if facts.combined or contexts == (stock.NAME,) else None,
    )
    if facts.manifest.replaces and record.price is None:
        record = replace(record, price=facts.last_price)
    rows = [facts.open_rows[context] for context in contexts]
    refused_hash = digest({**record_json(record), "reference": ""})  # of this listing; the next one may be given it
    moved = [row for row in rows if row.intent is not None or row.confirmed != wanted[row.context]]
    if moved and all(refused_before(row, refused_hash) for row in moved):
        # Without problems, what was said about it stays as it was.
        return [
            Ending(row.context, facts.sku, Refused((), refused_hash, look_again=next_look(facts.rules, row)), "E3")
            for row in rows
        ]
    notes = pieces.warnings if stock.NAME in contexts else ()
    asks = [price.words(record.price)] if record.price else []
    holds = [stock.words(pieces)] if record.stock is not None else []
    confirms = dict(wanted) if facts.combined else {context: wanted[context] for context in contexts}
    before = {row.context: row.confirmed for row in rows if row.confirmed is not None}
    if facts.doubtful:
        confirms, before = {**UNKNOWN_OFFER, **confirms}, dict(UNKNOWN_OFFER)
    send = Send(
        key=facts.sku,
        contexts=contexts,
        reference=record.reference,
        record=record,
        kind="offer",
        story=replace(
            _story(facts, contexts[0], "S1", notes, ", ".join(asks + holds)),
            problems=(),
            translated=record_json(record),
        ),
        confirms=confirms,
        before=before,
        notes=notes,
        then=(*_restock(facts, contexts), *_relisted(facts, contexts, record.stock)),
        look_again=max(filter(None, (next_look(facts.rules, row, changed=True) for row in rows)), default=None),
        refused_hash=refused_hash,
        tried=max(row.attempts for row in rows),
    )
    return [send]


def _codes(problems: Sequence[Problem]) -> list[str]:
    return [problem.code for problem in problems]


def _story(facts: Facts, context: str, code: str, problems: tuple[Problem, ...], words: str) -> Story:
    binding = facts.binding
    params = {
        "sku": facts.sku,
        "name": words,
        "marketplace": facts.manifest.title,
        "channel": str(facts.channel),
        "errors": sentences(problems),
        "remote": binding.remote_id if binding else "",
        "link": binding.link if binding else "",
    }
    for problem in problems:
        params |= problem.params
    source = {"simulation": simulated_json(facts.offered)}
    return Story(OPERATIONS[context], TO_MARKETPLACE, code, problems, source=source, params=params)


def simulated_json(offered: SimulatedItem | None) -> JsonTree:
    """What VTEX answered for one SKU, for logs; `None` when it was absent."""
    return None if offered is None else asdict(offered)
