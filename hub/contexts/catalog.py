"""The marketplace lists what VTEX sells in the store's channel, as VTEX describes it – or says all that is missing.

The gate of vtex.md 7.1: every check runs, every problem is told at once, and only then something is written. What the
catalogue of VTEX says counts, whatever the notification said (UPD-07, UPD-08).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from hub import messages
from hub.contexts.offer import UNKNOWN_OFFER, simulated_json
from hub.contexts.step import (
    OPERATIONS,
    TO_MARKETPLACE,
    Item,
    Send,
    Step,
    defaults_story,
    deliver,
    follow,
    fresh_reference,
    listing_json,
    next_look,
    price_from_json,
    price_json,
    record_json,
    refused_before,
    sentences,
    settled,
    stock_json,
    taken,
    waits_on,
)
from hub.contexts.step import listing_from_json as listing_of
from hub.errors import NotFound, Problem
from hub.model import (
    Action,
    Ask,
    Binding,
    BindingState,
    JsonTree,
    Listing,
    Price,
    Product,
    Record,
    Row,
    Shown,
    SimulatedItem,
    Story,
    Urgency,
    Written,
    digest,
)
from hub.outcome import Done, Ending, Parked, Refused, Unknown
from hub.ports import CartItem, Link, Manifest, MappedCategory, Rendered
from hub.rules import Rules
from hub.rules.inventory import Quantity, quantity_of
from hub.rules.pricing import price_of
from hub.rules.validation import availability, defaults_problems, standing

_STANDS = {Action.ACTIVATE: BindingState.PUBLISHED, Action.DEACTIVATE: BindingState.DEACTIVATED}
"""How a listing stands after a write that only changes that."""

_OFFER = ("price", "stock")

SHOWN_DESCRIPTION = 500
"""Characters of a description that a log record keeps."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `decide` needs to know of one SKU. `None` where nothing was found or nothing was asked.

    `offered` is what VTEX would sell now. `looked` tells that the marketplace was asked for the listing, and `shown`
    what it answered; `moved`: it stands otherwise than the pair said, and `binding` is corrected already; `hidden`: it
    is not shown after it was blocked or unblocked without an answer; `dropped`: the pair that it does not show any
    more, after a removal whose answer was lost. `price` is the price it is known to show; `confirmed` is what price and
    stock are known to show, where that matters, and `refused` those of them that rest, their last word being a refusal.
    `following` are the contexts that are asked once it is published.
    """

    store: int
    channel: int
    manifest: Manifest
    rules: Rules
    row: Row
    reference: str
    binding: Binding | None = None
    product: Product | None = None
    mapping: MappedCategory | None = None
    rendered: Rendered | None = None
    offered: SimulatedItem | None = None
    looked: bool = False
    shown: Shown | None = None
    moved: bool = False
    hidden: bool = False
    dropped: Binding | None = None
    price: Price | None = None
    confirmed: Mapping[str, JsonTree] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    following: tuple[str, ...] = _OFFER

    @property
    def sku(self) -> str:
        """The key."""
        return self.row.key

    @property
    def listed(self) -> Binding | None:
        """The pair that is stored, or the one that the marketplace has just shown (NEW-02)."""
        if self.binding is not None or self.shown is None:
            return self.binding
        state = BindingState.PUBLISHED if self.shown.active else BindingState.DEACTIVATED
        product = self.product.product if self.product else ""
        return Binding(self.sku, self.shown.remote_id, state, self.shown.link, product)

    @property
    def adopted(self) -> Binding | None:
        """A pair that has to be stored, because only the marketplace knew it or how it stands."""
        return self.listed if self.binding is None or self.moved else None

    @property
    def begun(self) -> Action | None:
        """What an attempt before this one began to write, and nobody knows whether it was done."""
        action = ((self.row.intent or {}).get("record") or {}).get("action")
        return Action(action) if action else None

    @property
    def half_told(self) -> bool:
        """It was blocked or unblocked, maybe both, without an answer: what it sells for, and how many, is not known."""
        return self.begun in _STANDS or bool((self.row.intent or {}).get("half_told"))

    @property
    def in_doubt(self) -> bool:
        """Something was begun, and that it cannot be seen yet proves nothing (design 2, law 5)."""
        if self.listed is None:
            unseen = self.row.intent is not None
        else:
            stands = _STANDS.get(self.begun) if self.looked and self.begun else None
            unseen = self.hidden or (stands is not None and self.listed.state is not stands)
        return unseen and (self.row.intent_age or 0.0) < self.manifest.visibility_delay


def read(link: Link, item: Item) -> Facts:
    """Ask VTEX for the SKU and, when it may be sold, for its offer; ask the marketplace where a pair is missing."""
    row = item.rows["catalog"]
    manifest = link.marketplace.manifest
    facts = Facts(link.store, link.sales_channel, manifest, link.rules, row, fresh_reference())
    if row.resolved is not None or waits_on(row, manifest) is not None:
        return facts
    binding = link.states.binding(item.key)
    try:
        product = link.vtex.product(item.key)
    except NotFound:
        product = None
    facts = replace(facts, binding=binding, product=product)
    sellable = product is not None and not standing(product, item.key, link.sales_channel)
    if _must_look(facts, sellable=sellable):
        facts = _looked(facts, link.marketplace.show(item.key, binding.remote_id if binding else None))
    if manifest.replaces:
        facts = replace(
            facts,
            price=price_from_json(link.states.confirmed("price", item.key)),
            following=_following(link, item.key, manifest),
        )
    if product is None or not sellable:
        return facts
    mapping = _mapped(link, product.category)
    if row.heard and facts.listed is not None:
        facts = replace(
            facts,
            confirmed={context: link.states.confirmed(context, item.key) for context in _OFFER},
            refused=tuple(one for one in _OFFER if link.states.row_status(one, item.key) == ("i", "refused")),
        )
    return replace(
        facts,
        mapping=mapping,
        rendered=link.marketplace.render(product, mapping.remote or "", link.rules.listing),
        offered=link.vtex.simulate([CartItem(item.key)]).items.get(item.key),
    )


def _following(link: Link, sku: str, manifest: Manifest) -> tuple[str, ...]:
    """Where one write carries price and stock, they are asked again only if somebody has ever asked for them.

    They share the catalogue's lane: a row that is not there while we hold it can only come pending and is read when we
    are done, so that no change is missed. The answer of a lot comes when the lane was free: there both are asked.
    """
    if not manifest.replaces or manifest.lots is not None:
        return _OFFER
    return tuple(context for context in _OFFER if link.states.row_status(context, sku) is not None)


def _mapped(link: Link, category: str) -> MappedCategory:
    """The table's word, else that of the seller's mapper, which is kept (8.2)."""
    mapping = link.states.mapped(category)
    if mapping.remote is not None or link.mapper is None:
        return mapping
    remote = link.mapper.remote(category)
    return link.states.keep_mapping(category, remote) if remote else mapping


def _looked(facts: Facts, shown: Shown | None) -> Facts:
    """With what the marketplace shows, which is truer than the pair."""
    binding = facts.binding
    if binding is None or not facts.half_told:
        dropped = None if shown else binding
        return replace(facts, looked=True, shown=shown, binding=binding if shown else None, dropped=dropped)
    if shown is None:
        # A pair that is dropped too early makes a second listing. What is not shown for good cannot be bought.
        moved = binding.state is BindingState.PUBLISHED
        return replace(facts, binding=replace(binding, state=BindingState.DEACTIVATED), moved=moved, hidden=True)
    state = BindingState.PUBLISHED if shown.active else BindingState.DEACTIVATED
    moved = state is not binding.state
    return replace(facts, looked=True, shown=shown, binding=replace(binding, state=state), moved=moved)


def _must_look(facts: Facts, *, sellable: bool) -> bool:
    """Does the marketplace know better than the pair: none is stored, or the listing may just have been deleted?"""
    if facts.binding is None:
        # What can be blocked may stand there, blocked, without a pair: a registration would not bring it back.
        may_stand = facts.manifest.create == "create" or Action.ACTIVATE in facts.manifest.actions
        return facts.row.intent is not None or (sellable and may_stand)
    # Whether it can be bought is in doubt. A withdrawal is sent again; what is held back would leave it so.
    return sellable and (facts.begun is Action.DELETE or facts.half_told)


def decide(facts: Facts) -> Sequence[Ending | Step]:
    """What the marketplace should show of this SKU, or what somebody must correct first."""
    if facts.row.resolved is not None:
        return settled(facts.row.resolved)
    if (waiting := waits_on(facts.row, facts.manifest)) is not None:
        return (Ending("catalog", facts.sku, waiting, "P0"),)
    barred = standing(facts.product, facts.sku, facts.channel)
    if barred:
        return _withdraw(facts, barred)
    return _publish(facts)


def write(link: Link, step: Step) -> Sequence[Ending]:
    """Send the record."""
    if not isinstance(step, Send):
        raise TypeError(f"catalog writes records, not {type(step).__name__}")
    return deliver(link, step)


# ---------------------------------------------------------------- withdraw


def _withdraw(facts: Facts, barred: tuple[Problem, ...]) -> Sequence[Ending | Step]:
    """Vtex.md 7.5: stock zero and block; delete where blocking is not possible; nothing where nothing is listed."""
    listed, row = facts.listed, facts.row
    code = messages.worst(problem.code for problem in barred)
    if facts.in_doubt:
        return (_unseen(facts),)
    if listed is None and row.status == "done" and row.looks > 0 and row.intent is None:
        # Second look after its removal.
        return (Ending("catalog", facts.sku, Done(look_again=next_look(facts.rules, row)), code, barred),)
    if listed is None:
        refused = Refused(barred, _gate_hash(barred), look_again=next_look(facts.rules, row))
        told = () if row.input_hash == refused.input_hash else (_story(facts, code or "A2", barred),)
        definite = row.intent is not None
        return (Ending("catalog", facts.sku, refused, code, barred, definite=definite, stories=told),)
    if listed.state is BindingState.DEACTIVATED and row.intent is None and facts.adopted is None:
        return (Ending("catalog", facts.sku, Done(look_again=next_look(facts.rules, row)), code, barred),)
    deletes = Action.DEACTIVATE not in facts.manifest.actions and Action.DELETE in facts.manifest.actions
    blocks = Action.DEACTIVATE in facts.manifest.actions
    action = Action.DELETE if deletes else Action.DEACTIVATE if blocks else Action.OFFER
    known = (row.confirmed or {}).get("listing")
    record = Record(facts.sku, action, facts.reference, listed.remote_id, stock=None if deletes else 0)
    if facts.manifest.replaces and not deletes:
        record = replace(record, listing=listing_of(known), price=facts.price)
    # A pair is kept to activate the listing again; nothing activates what VTEX does not know any more (UPD-15). Should
    # it come back all the same, the marketplace is asked for its listing before one is made.
    gone = deletes or facts.product is None
    state = BindingState.DELETED if gone else BindingState.DEACTIVATED
    # A price or stock write in another lane may still be under way, so only a whole replacement is sure of the zero.
    shows: dict[str, JsonTree] = {
        "catalog": {"listing": known, "state": state.value},
        "stock": stock_json(0) if facts.manifest.replaces else None,
    }
    send = _send(facts, record, {} if gone else shows, state, barred)
    return (replace(send, look_again=next_look(facts.rules, row, changed=True)),)


# ---------------------------------------------------------------- publish


def _publish(facts: Facts) -> Sequence[Ending | Step]:
    rendered, mapping, product = facts.rendered, facts.mapping, facts.product
    if rendered is None or mapping is None or product is None:
        raise ValueError(f"SKU {facts.sku} may be sold, but its facts were not read")
    unmapped = _unmapped(facts, product) if mapping.remote is None else ()
    broken = rendered.problems
    if rendered.listing is None and not broken and not unmapped:
        broken = (Problem("E1", "listing", "", "the product could not be turned into a listing"),)
    absent = availability(facts.offered, facts.sku, facts.channel, facts.rules.pricing)
    defaults = defaults_problems(rendered.defaults_used)
    held = bool(unmapped or broken or absent) or rendered.listing is None
    if facts.dropped is not None:
        return (_unseen(facts) if facts.in_doubt else _gone(facts, facts.dropped),)
    if facts.in_doubt and (held or facts.manifest.create == "create"):
        return (_unseen(facts),)
    if held or rendered.listing is None:
        return (_hold_back(facts, mapping, (*unmapped, *broken, *absent), defaults, withdraw_stock=bool(absent)),)
    return (_agree(facts, rendered.listing, mapping, defaults),)


def _gone(facts: Facts, dropped: Binding) -> Ending:
    """The removal was done: nothing that was known of the listing holds for one that is made from here on."""
    pair = replace(dropped, state=BindingState.DELETED)
    return Ending("catalog", facts.sku, Done(_asks(facts, ("catalog",))), definite=True, binding=pair)


def _unmapped(facts: Facts, product: Product) -> tuple[Problem, ...]:
    name = product.category_path or product.category_name or product.category
    return (
        Problem(
            "E4",
            "category",
            f"{product.category} {name}".strip(),
            f"map it to a category of {facts.manifest.title}: {_mapping_link(facts.rules)}",
        ),
    )


def _outdated(facts: Facts) -> tuple[Ask, ...]:
    """Price and stock, where what a notification announced is not what the marketplace is known to show or was refused.

    What was refused, for want of a price, say, tells so until it is asked again, even if what is shown is right
    (PRC-06).
    A notification that says more than price and stock asks the catalogue alone, which covers both (4.4); it may have
    been the only one (a change made while the SKU was inactive, and now it is not).
    """
    sale = price_of(facts.offered, facts.rules.pricing)
    if not facts.confirmed or sale is None:
        return ()
    pieces = quantity_of(facts.offered, facts.rules.inventory, facts.manifest.max_stock)
    wanted = {"price": price_json(sale), "stock": stock_json(pieces.pieces)}
    outdated = [one for one in _OFFER if facts.confirmed[one] != wanted[one] or one in facts.refused]
    return _asks(facts, outdated)


def _asks(facts: Facts, contexts: Sequence[str]) -> tuple[Ask, ...]:
    """Others are asked as this was: of what VTEX has announced each is looked at again."""
    return follow(facts.store, facts.sku, contexts, heard=facts.row.heard)


def _hold_back(
    facts: Facts,
    mapping: MappedCategory,
    problems: tuple[Problem, ...],
    defaults: tuple[Problem, ...],
    *,
    withdraw_stock: bool,
) -> Ending:
    """Nothing is sent: everything that must be corrected, in one record. What is listed keeps its last registration.

    A listed SKU that VTEX does not offer any more gets its zero from the stock context.
    """
    told = (*problems, *defaults)
    code = messages.worst(problem.code for problem in problems) or "E1"
    published = facts.listed is not None and facts.listed.state is BindingState.PUBLISHED
    then = _asks(facts, ("stock",)) if withdraw_stock else _outdated(facts)
    # What was begun is not gone on with. Price and stock, asked to begin anew, may ask back: so it is forgotten, too.
    loose = facts.half_told or (facts.manifest.replaces and facts.row.intent is not None)
    doubts: Mapping[str, JsonTree] = {"catalog": None, **UNKNOWN_OFFER} if loose else {}
    if not published:  # price and stock of what is not on show would only ask the catalogue back
        then = ()
    elif facts.adopted is not None or loose:  # nobody has followed its price and stock meanwhile
        then = _asks(facts, _OFFER)
    story: tuple[Story, ...] = (_story(facts, code, told),)
    outcome: Parked | Refused
    if mapping.remote is None:
        outcome = Parked(f"mapping:{mapping.category}", mapping.version, then)
        if facts.row.status == "parked" and facts.row.urgency >= Urgency.SWEEP and not facts.row.heard:
            story = ()  # our own calendar found what was told already
    else:
        outcome = Refused(problems, _gate_hash(told), then, next_look(facts.rules, facts.row))
        if facts.row.input_hash == outcome.input_hash:
            story = ()
    definite = facts.looked and facts.row.intent is not None and not facts.in_doubt
    return Ending(
        "catalog", facts.sku, outcome, code, told, doubts, definite=definite, binding=facts.adopted, stories=story
    )


def _agree(facts: Facts, listing: Listing, mapping: MappedCategory, defaults: tuple[Problem, ...]) -> Ending | Step:
    """Register, update or activate – or nothing, when the marketplace shows it already or has refused just this."""
    row, listed, manifest = facts.row, facts.listed, facts.manifest
    sale = price_of(facts.offered, facts.rules.pricing)
    pieces = quantity_of(facts.offered, facts.rules.inventory, manifest.max_stock)
    wanted = {"listing": listing_json(listing), "state": BindingState.PUBLISHED.value}
    if facts.binding is not None and row.intent is None and wanted == row.confirmed and _published(facts):
        # Who announced a change is told that there was none to send (UPD-02); our own sweeps would only fill the log.
        outdated = _outdated(facts)
        told = (_story(facts, "N0", ()),) if row.heard and row.looks == 0 and not outdated else ()
        return Ending("catalog", facts.sku, Done(outdated, next_look(facts.rules, row)), stories=told)
    record = Record(facts.sku, _action(facts), facts.reference, listed.remote_id if listed else None, listing)
    shows: dict[str, JsonTree] = {"catalog": wanted}
    if manifest.replaces:
        record = replace(record, price=sale, stock=pieces.pieces)
        shows |= {"price": price_json(sale), "stock": stock_json(pieces.pieces)}
    elif facts.half_told:
        shows |= UNKNOWN_OFFER
    outdated = _outdated(facts)
    # Whoever waits for the publication is asked again; where the snapshot is in doubt, somebody may be waiting too.
    doubtful = (manifest.replaces and row.confirmed is None) or facts.half_told
    appears = facts.binding is None or facts.moved or record.action is Action.ACTIVATE or doubtful
    then: tuple[Ask, ...] = _asks(facts, facts.following) if appears else ()
    if not appears:
        # A whole replacement says both; it is not their answer, though.
        then = _asks(facts, facts.refused) if manifest.replaces else outdated
    if record.action is Action.ACTIVATE and not manifest.replaces:
        # Only whole replacements carry the registration along; else it is updated by the next attempt, when it moved.
        known = (row.confirmed or {}).get("listing")
        if known != wanted["listing"]:
            then = (*then, *_asks(facts, ("catalog",)))
        record = replace(record, listing=None)
        shows = {"catalog": {**wanted, "listing": known}, **UNKNOWN_OFFER}
    send = _send(facts, record, shows, BindingState.PUBLISHED, (*defaults, *_warnings(manifest, pieces)))
    # A no to the registration is none to price and stock, which may have been announced with it and nowhere else.
    otherwise = _asks(facts, _OFFER) if facts.half_told else outdated
    send = replace(
        send,
        then=then,
        otherwise=otherwise if _published(facts) else (),
        before={**send.before, **UNKNOWN_OFFER} if facts.half_told else send.before,
        look_again=next_look(facts.rules, row, changed=True),
        refused_hash=_input_hash(record, mapping),
        half_told=facts.half_told,
    )
    if _read_back(facts, record):
        shown = facts.shown
        remote, link = (shown.remote_id, shown.link) if shown else ("", "")
        return taken(replace(send, then=_asks(facts, facts.following)), Written(remote, link))[0]
    if refused_before(row, send.refused_hash):
        refused = Refused((), send.refused_hash, send.otherwise, next_look(facts.rules, row))
        return Ending("catalog", facts.sku, refused, "E3", binding=facts.adopted)
    return send


def _published(facts: Facts) -> bool:
    return facts.listed is not None and facts.listed.state is BindingState.PUBLISHED


def _warnings(manifest: Manifest, pieces: Quantity) -> tuple[Problem, ...]:
    return pieces.warnings if manifest.replaces else ()


def _action(facts: Facts) -> Action:
    listed = facts.listed
    if listed is None:
        return Action.REGISTER
    # What was blocked without an answer may be shown as it was before: only an answer to an activation is sure.
    unanswered = facts.begun is Action.DEACTIVATE or bool((facts.row.intent or {}).get("half_told"))
    blocked = listed.state is BindingState.DEACTIVATED or unanswered
    return Action.ACTIVATE if blocked and Action.ACTIVATE in facts.manifest.actions else Action.UPDATE


def _read_back(facts: Facts, record: Record) -> bool:
    """Does the marketplace show exactly what would be sent, so that only the pair is missing?"""
    shown = facts.shown
    if facts.binding is not None or shown is None or not shown.active or record.listing is None:
        return False
    if facts.manifest.replaces and (shown.price, shown.stock) != (record.price, record.stock):
        return False
    if shown.listing is not None:
        return shown.listing == record.listing
    begun = ((facts.row.intent or {}).get("record") or {}).get("listing")
    return bool(begun == listing_json(record.listing))


# ---------------------------------------------------------------- words and hashes


def _send(
    facts: Facts,
    record: Record,
    shows: dict[str, JsonTree],
    state: BindingState,
    notes: tuple[Problem, ...],
) -> Send:
    begun = (facts.row.intent or {}).get("record") or {}
    if facts.row.reference and {**begun, "reference": record.reference} == record_json(record):
        record = replace(record, reference=facts.row.reference)  # the same write once more, so that it can be told
    creates = record.action is Action.REGISTER
    story = _story(facts, "S1", notes)
    return Send(
        key=facts.sku,
        contexts=("catalog",),
        reference=record.reference,
        record=record,
        kind="offer" if facts.manifest.replaces else "listing",
        story=replace(
            story,
            operation="Offer creation" if creates else OPERATIONS["catalog"],
            problems=(),
            translated=record_json(record),
        ),
        confirms=shows,
        before={} if facts.row.confirmed is None else {"catalog": facts.row.confirmed},
        binding_state=state,
        product=facts.product.product if facts.product else (facts.listed.product if facts.listed else ""),
        notes=notes,
        tried=facts.row.attempts,
    )


def _unseen(facts: Facts) -> Ending:
    left = facts.manifest.visibility_delay - (facts.row.intent_age or 0.0)
    return Ending("catalog", facts.sku, Unknown(f"what was begun may still become visible for {left:.0f} s"))


def _story(facts: Facts, code: str, problems: tuple[Problem, ...]) -> Story:
    product, listed = facts.product, facts.listed
    known = (facts.row.confirmed or {}).get("listing") or {}
    source: dict[str, JsonTree] = {"product": None, "simulation": simulated_json(facts.offered)}
    if product is not None:
        shortened = replace(product, description=product.description[:SHOWN_DESCRIPTION])
        source["product"] = asdict(shortened)
    params = {
        "key": facts.sku,
        "sku": facts.sku,
        "name": product.name if product else str(known.get("title", "")),
        "marketplace": facts.manifest.title,
        "channel": str(facts.channel),
        "category": (product.category_path or product.category_name or product.category) if product else "",
        "mapping": _mapping_link(facts.rules),
        "errors": sentences(problems),
        "remote": listed.remote_id if listed else "",
        "link": listed.link if listed else "",
    }
    story = Story(OPERATIONS["catalog"], TO_MARKETPLACE, code, problems, source=source, params=params)
    used = defaults_story(story, problems)
    return replace(story, params={**params, **used[0].params}) if used else story


def _mapping_link(rules: Rules) -> str:
    return rules.mapping_link or "hub mappings import"


def _gate_hash(problems: Sequence[Problem]) -> str:
    return digest([problem.as_json() for problem in problems])


def _input_hash(record: Record, mapping: MappedCategory) -> str:
    return digest({"record": {**record_json(record), "reference": ""}, "mapping": mapping.version})
