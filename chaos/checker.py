"""Judges a run: for every promise one small pure function that reads the evidence and names what breaks it.

The promise: `violations` returns nothing if and only if everything it can see keeps every law – and it sees peers'
journals, the senders' books and PostgreSQL, never what the hub says of itself. Definitions are exact; where a peer lied
or was stale, the law is about what it *served*, because nobody can know better.

    law            broken when
    -------------  -------------------------------------------------------------------------------------------------
    shown          the marketplace shows something else than what VTEX would sell now by the store's rules
    overtaken      a value read from VTEX earlier was written after one that was read later
    read-after     VTEX was not read after it announced a change of what the marketplace shows
    conservation   a request answered 200 is not kept, or the books of what was asked and answered differ
    rest           something is pending, held, parked, refused, dead or gated without a cause
    orders         an order is not in VTEX exactly once, or was created again without a look
    listings       a listing was created twice, or created again without a look
    machinery      a queue that nobody serves, a process that is down or was restarted by hand, a spool with bodies
    recovery       a dependency was back and the hub was not at work again within 30 s
    evidence       a journal was too short: the run cannot be judged
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from chaos import rule
from chaos.evidence import Evidence, Listed, ListingCall, OrderCall, Post, Row, Served, Sold, Store, Wrote

RECOVERY_SECONDS = 30.0
"""How long after a dependency's return the hub may need."""

PATIENCE = 5.0
"""Seconds that a row may be pending and a claim may run when the run is looked at: polls and second looks go on."""

EVERYTHING = ("price", "stock", "state", "title")
LIES_ABOUT: Mapping[str, tuple[str, ...]] = {
    "price_put": ("price",),
    "stock_put": ("stock",),
    "listing_deactivate": ("state",),
    "listing_activate": ("state",),
    "listing_put": ("title",),
}
"""Operation → what it writes; what is not named writes everything."""

NOBODYS = frozenset({"hand", "sale", "acceptance"})
"""What changes a shown value without any write of the seller's."""

DEFINITE_NO = frozenset({"EOI001", "EOI002", "EOI003", "EOI004", "EOI005"})
"""Results that say for sure that no order was created (vtex.md 9.4)."""

LOOKED = frozenset({200, 404})
"""Answers to a read that tell whether something is there."""

PAID = frozenset({"paid", "shipped", "delivered"})


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise, with enough to find it. `store` and `key` are empty where the law is about the whole."""

    law: str
    store: str
    key: str
    sentence: str

    def __str__(self) -> str:
        where = " ".join(part for part in (self.store, self.key) if part)
        return f"{self.law}{': ' if where else ''}{where}: {self.sentence}"


def violations(evidence: Evidence) -> list[Violation]:
    """Everything that breaks a law, store by store; empty when nothing does."""
    found = [one for store in evidence.stores for law in STORE_LAWS for one in law(evidence, store)]
    found += [one for law in LAWS for one in law(evidence)]
    return found


def before_healing(evidence: Evidence) -> list[Violation]:
    """What may not be there even before a healing sweep has looked at every SKU once more.

    Only what the peers themselves took away may be wrong then: a notification that VTEX lost or that was not answered
    200, after which one of the SKU's contexts was not asked; a read that was stale, and was the last one; a write that
    the marketplace answered as done, did not do, and that nothing followed. What such a SKU shows may be wrong, and its
    rows may rest on what VTEX said before: refused, or parked until its publication. The hub may still be recovering,
    so that what is pending may be as old as a recovery takes.
    """
    young = replace(evidence, ended=evidence.ended - RECOVERY_SECONDS + PATIENCE)
    stores = {store.slug: store for store in evidence.stores}
    sharing = Counter(store.account for store in evidence.stores)
    return [
        one
        for one in violations(young)
        if not (one.store and _peers_doing(stores[one.store], one, shared=sharing[stores[one.store].account] > 1))
    ]


OFFERED = ("catalog", "price", "stock")


def _peers_doing(store: Store, one: Violation, *, shared: bool) -> bool:
    if one.law == "shown":
        return _taken_away(store, one.key, shared=shared)
    context, _, sku = one.key.partition(" ")
    if one.law != "rest" or context not in OFFERED:
        return False
    (row,) = (row for row in store.rows if (row.context, row.key) == (context, sku))
    return row.work in ("i", "s") and row.status in ("refused", "parked") and _taken_away(store, sku, shared=shared)


LONGEST_ATTEMPT = 30.0
"""Seconds that may lie between a read and the answer, or the lot, that came of it."""
READS = {"catalog": "sku", "price": "simulation", "stock": "simulation"}


def _answered_by(row: Row) -> float:
    """Until when VTEX was read for this row's last answer.

    A record that was taken (S1) was read before its lot was opened, or at the latest in the moment before it joined.
    """
    return (row.gathered_at if row.code == "S1" else None) or row.answered_at or 0.0


def _read_for(row: Row, reads: Sequence[Served]) -> Served | None:
    """The read of VTEX that this row's last answer came of."""
    ended = _answered_by(row)
    before = [one for one in reads if one.operation == READS[row.context] and 0 <= ended - one.at <= LONGEST_ATTEMPT]
    return max(before, key=lambda one: one.at, default=None)


def _taken_away(store: Store, sku: str, *, shared: bool) -> bool:
    """Can the peers alone be why this SKU is shown otherwise?

    `shared`: another store has the same VTEX account, and what was read after this one's last answers was read for it.
    """
    reads = sorted((one for one in store.served if one.sku == sku), key=lambda one: one.at)
    # What was lost may have been about the price alone, and a read for the stock brings no price to the marketplace.
    mine = [row for row in store.rows if row.key == sku and row.context in OFFERED]
    answered = {row.context: _read_for(row, reads) for row in mine if row.answered_at}
    # What VTEX announced after a read was not heard by it, even if the answer that came of the read is later.
    heard = min(
        (read.at if (read := answered[row.context]) else _answered_by(row) for row in mine if row.answered_at),
        default=reads[-1].at if reads else 0.0,
    )
    told = [post for post in store.posts if post.kind == "notification" and post.key == sku]
    unheard = any(post.status != 200 and post.at > heard for post in told)
    last = {one.operation: one for one in reads}
    stale = any(one.stale for one in last.values()) or (
        shared and any(read is not None and read.stale for read in answered.values())
    )
    wrote = {one.field: one.arrived for one in store.wrote if one.sku == sku and one.by not in NOBODYS}
    lied = any(
        lie.sku == sku and any(lie.at > wrote.get(name, 0.0) for name in LIES_ABOUT.get(lie.operation, EVERYTHING))
        for lie in store.lies
    )
    return unheard or stale or lied


# ---------------------------------------------------------------- the marketplace shows what VTEX sells


def shown(_: Evidence, store: Store) -> Iterator[Violation]:
    """For every SKU of the store, by the rules written anew in `chaos.rule`; excused ones are left out."""
    sold = {one.sku: one for one in store.sold}
    listed = {one.sku: one for one in store.listed}
    for sku in sorted(sold.keys() | listed.keys()):
        if _excused(store, "listing", sku):
            continue
        for wrong in _shown(store, sold.get(sku), listed.get(sku)):
            yield Violation("shown", store.slug, sku, wrong)


def _shown(store: Store, sold: Sold | None, listed: Listed | None) -> Iterator[str]:
    state = listed.state if listed else "absent"
    if sold is None or not sold.active or not sold.in_channel:
        gone = "unknown" if sold is None else "outside the channel" if sold.active else "inactive"
        allowed = ("inactive", "absent") if store.profile == "sync" else ("absent",)
        if state not in allowed:
            yield f"it is {gone} in VTEX, and the marketplace shows it as {state}, not {' or '.join(allowed)}"
        return
    want = rule.wanted(store, sold)
    if listed is None or state != "active":
        if listable(store, sold) and want.stock > 0:
            yield f"VTEX sells it ({_offer(want)}), and the marketplace shows it as {state}"
        return
    if listed.stock != want.stock:
        yield f"stock {listed.stock} is shown instead of {want.stock} (VTEX has {sold.stock})"
    if want.price is not None:
        if listed.price != want.price:
            yield f"price {listed.price} is shown instead of {want.price} (VTEX asks {sold.price})"
        struck = want.price if listed.list_price is None else listed.list_price
        if struck != want.list_price:
            yield f"list price {listed.list_price} is shown instead of {want.list_price}"
    if listable(store, sold) and want.price is not None:
        if listed.title != sold.title:
            yield f"title {listed.title!r} is shown instead of {sold.title!r}"
        if listed.category != store.mappings[sold.category]:
            yield f"category {listed.category} is shown instead of {store.mappings[sold.category]}"


def listable(store: Store, sold: Sold) -> bool:
    """May it be registered at all: mapped, with an EAN, an image and a title (gate 6 and 7 of vtex.md 7.1)."""
    return sold.category in store.mappings and bool(sold.ean) and sold.images > 0 and bool(sold.title.strip())


def _offer(offer: rule.Offer) -> str:
    return f"price {offer.price}, stock {offer.stock}"


# ---------------------------------------------------------------- no older value over a newer one


def overtaken(_: Evidence, store: Store) -> Iterator[Violation]:
    """Writes of a value come from reads of it, in the order of these reads.

    For each SKU and field (price, list price, stock, state): the reads that VTEX served, in their order, each with the
    value that the store's rules make of it; the writes, in the order in which they arrived at the marketplace. There
    must be reads r1 ≤ r2 ≤ … with the value of each write, each served before its write arrived. The earliest possible
    read is taken for each write; if none is left, the write's value was read before a value that was written before it
    (or was never read at all). A write that changes nothing needs no read. What is written while the listing is blocked
    is seen by nobody, and is judged by what is shown in the end. Without a price the marketplace's own is kept.
    """
    reads: dict[str, list[Served]] = defaultdict(list)
    for served in sorted(store.served, key=lambda one: one.at):
        reads[served.sku].append(served)
    writes: dict[tuple[str, str], list[Wrote]] = defaultdict(list)
    for wrote in _in_sight(store.wrote):
        if wrote.field in _SAYS:
            writes[wrote.sku, wrote.field].append(wrote)
    for (sku, name), sequence in sorted(writes.items()):
        says = _SAYS[name]
        known = [(one.at, values) for one in reads[sku] if (values := says(store, one)) is not None]
        for wrong in _out_of_order(known, sequence, name):
            yield Violation("overtaken", store.slug, sku, wrong)


_Values = frozenset[object]
_ANYTHING: _Values = frozenset({...})


def _price(store: Store, served: Served) -> _Values | None:
    if served.operation != "simulation":
        return None
    price = rule.told(store, served).price
    return _ANYTHING if price is None else frozenset({price})


def _list_price(store: Store, served: Served) -> _Values | None:
    if served.operation != "simulation":
        return None
    offer = rule.told(store, served)
    if offer.price is None:
        return _ANYTHING
    return frozenset({offer.list_price} | ({None} if offer.list_price == offer.price else set()))


def _stock(store: Store, served: Served) -> _Values | None:
    if served.operation == "sku":
        return None if served.for_sale else frozenset({0})
    return frozenset({rule.told(store, served).stock})


def _state(_: Store, served: Served) -> _Values | None:
    if served.operation != "sku":
        return None
    return frozenset({"active", "pending"} if served.for_sale else {"inactive", "absent"})


_SAYS: Mapping[str, Callable[[Store, Served], _Values | None]] = {
    "price": _price,
    "list_price": _list_price,
    "stock": _stock,
    "state": _state,
}


def _in_sight(wrote: Iterable[Wrote]) -> Iterator[Wrote]:
    """Without what was written to a blocked listing."""
    blocked: set[str] = set()
    for one in sorted(wrote, key=lambda one: one.number):
        if one.field == "state":
            (blocked.discard if one.value in ("active", "pending") else blocked.add)(one.listing)
            yield one
        elif one.listing not in blocked or one.by in NOBODYS:
            yield one


def _out_of_order(known: Sequence[tuple[float, _Values]], writes: Sequence[Wrote], name: str) -> Iterator[str]:
    at, standing = 0, object()
    for write in sorted(writes, key=lambda one: (one.arrived, one.number)):
        if write.by in NOBODYS or write.value == standing:
            standing = write.value
            continue
        standing = write.value
        found = _earliest(known, at, write)
        if found is not None:
            at = found
            continue
        before = _earliest(known, 0, write)
        value = f"{name} {write.value} ({write.by}, change {write.number})"
        if before is None:
            yield f"{value} was written, and VTEX had not said so to anybody before it arrived"
        else:
            late = known[at][0] - known[before][0]
            yield f"{value} overwrote one that was read {late:.3f} s later"


def _earliest(known: Sequence[tuple[float, _Values]], start: int, write: Wrote) -> int | None:
    for place in range(start, len(known)):
        served, values = known[place]
        if served > write.arrived:
            return None
        if write.value in values or values is _ANYTHING:
            return place
    return None


# ---------------------------------------------------------------- a change that is announced is read afterwards


def read_after(_: Evidence, store: Store) -> Iterator[Violation]:
    """Of what the marketplace shows, VTEX was read after the last notification of it was sent.

    A notification of price or stock asks for a simulation, one of the SKU for its registration; without known flags any
    read will do. What is not shown (blocked, parked on a mapping) has nothing to be agreed with; and where the last
    registration that was read says that VTEX does not sell it, there is no price or stock to be read.
    """
    active = {one.sku for one in store.listed if one.state == "active"}
    active -= {row.key for row in store.rows if row.status in ("dead", "refused")}
    last: dict[tuple[str, str], float] = defaultdict(float)
    for served in store.served:
        for operation in (served.operation, "any"):
            last[served.sku, operation] = max(last[served.sku, operation], served.at)
    for served in store.served:
        if served.operation == "sku" and not served.for_sale and served.at == last[served.sku, "sku"]:
            last[served.sku, "simulation"] = max(last[served.sku, "simulation"], served.at)
    announced: dict[tuple[str, str], float] = defaultdict(float)
    for post in store.posts:
        if post.kind == "notification" and post.status == 200 and post.key in active:
            for operation in _asks(post):
                announced[post.key, operation] = max(announced[post.key, operation], post.at)
    for (sku, operation), when in sorted(announced.items()):
        if not _excused(store, "listing", sku) and last[sku, operation] < when:
            kind = "" if operation == "any" else f"its {operation} "
            late = f"{when - last[sku, operation]:.1f} s earlier" if last[sku, operation] else "never"
            yield Violation("read-after", store.slug, sku, f"{kind}was read last {late} than its last notification")


def _asks(post: Post) -> set[str]:
    asked = {"simulation"} if {"price", "stock"} & set(post.flags) else set()
    if {"sku", "removed"} & set(post.flags):
        asked.add("sku")
    return asked or {"any"}


# ---------------------------------------------------------------- conservation

SOURCES = {"notification": "vtex", "event": "marketplace", "result": "result"}
CONTEXTS = {"notification": ("catalog", "price", "stock"), "event": ("order",), "result": ("order",)}


def conservation(_: Evidence, store: Store) -> Iterator[Violation]:
    """The sender's book, what PostgreSQL keeps, the counters and the states tell the same numbers."""
    yield from _kept(store)
    yield from _counted(store)
    yield from _balanced(store)
    yield from _taken_up(store)


def _kept(store: Store) -> Iterator[Violation]:
    """Answered 200 ⇒ kept once; not answered, or answered 5xx ⇒ kept at most as often as it was sent."""
    sure: Counter[tuple[str, str]] = Counter()
    possible: Counter[tuple[str, str]] = Counter()
    for post in store.posts:
        if post.status == -1:
            continue
        sure[post.kind, post.key] += post.status == 200
        possible[post.kind, post.key] += post.attempts
    kept: Counter[tuple[str, str]] = Counter()
    for notice in store.notices:
        kept[notice.kind, notice.key] += notice.count
    for kind, key in sorted(possible.keys() | kept.keys()):
        held, least, most = kept[kind, key], sure[kind, key], possible[kind, key]
        if held < least:
            yield Violation("conservation", store.slug, key, f"{least} {kind}s were answered 200, {held} are kept")
        elif held > most:
            yield Violation("conservation", store.slug, key, f"{most} {kind}s were sent, {held} are kept")


def _counted(store: Store) -> Iterator[Violation]:
    kept: Counter[tuple[str, str]] = Counter()
    for notice in store.notices:
        kept[notice.kind, notice.fate] += notice.count
    for kind, source in SOURCES.items():
        counters = [one for one in store.counters if one.context == "-" and one.source == source]
        for fate in ("accepted", "ignored", "quarantined"):
            counted = sum(int(getattr(one, fate)) for one in counters)
            if counted != kept[kind, fate]:
                said = f"{counted} {kind}s are counted as {fate}, {kept[kind, fate]} are kept"
                yield Violation("conservation", store.slug, "", said)
        requested = sum(one.requested for one in store.counters if one.source == source)
        if requested < kept[kind, "accepted"]:
            said = f"{kept[kind, 'accepted']} {kind}s were accepted and only {requested} demands made of them"
            yield Violation("conservation", store.slug, "", said)


def _balanced(store: Store) -> Iterator[Violation]:
    for one in store.counters:
        where = f"{one.context} of {one.source}"
        if one.received != one.quarantined + one.ignored + one.accepted:
            yield Violation("conservation", store.slug, where, "received is not quarantined + ignored + accepted")
        if one.requested != one.coalesced + one.enqueued:
            yield Violation("conservation", store.slug, where, "requested is not coalesced + enqueued")
    for context in sorted({one.context for one in store.counters} | {row.context for row in store.rows}):
        if context == "-":
            continue
        mine = [one for one in store.counters if one.context == context]
        left = sum(one.enqueued - one.finished for one in mine)
        right = sum(row.asked - row.answered for row in store.rows if row.context == context)
        if left != right:
            said = f"enqueued - finished is {left}, asked - answered is {right}"
            yield Violation("conservation", store.slug, context, said)


def _taken_up(store: Store) -> Iterator[Violation]:
    """What was accepted has a row that was answered."""
    answered = {(row.context, row.key) for row in store.rows if row.answered > 0}
    for notice in store.notices:
        contexts = CONTEXTS.get(notice.kind, ())
        taken = any((context, notice.key) in answered for context in contexts)
        if notice.fate == "accepted" and not taken and not _excused(store, "listing", notice.key):
            said = f"a {notice.kind} was accepted, and nothing about it was ever answered"
            yield Violation("conservation", store.slug, notice.key, said)


# ---------------------------------------------------------------- nothing rests without a cause


def rest(evidence: Evidence, store: Store) -> Iterator[Violation]:
    """Rows, leases, gates and lots when everything is quiet."""
    causes = _Causes(store)
    for row in store.rows:
        wrong = _unrest(evidence, causes, row)
        if wrong and not _excused(store, row.status, row.key):
            why = f" ({row.why})" if row.why else ""
            yield Violation("rest", store.slug, f"{row.context} {row.key}", wrong + why)
    for lease in store.leases:
        if lease.since is None or evidence.ended - lease.since > PATIENCE:
            whose = "a claim that is gone" if lease.since is None else f"claim {lease.claim}, too long ago"
            yield Violation("rest", store.slug, lease.key, f"a lease of lane {lease.lane} is left by {whose}")
    for gate in store.gates:
        if not _excused(store, "gate", gate.context):
            said = f"the gate to {gate.side} is shut by {gate.cause}: {gate.why}"
            yield Violation("rest", store.slug, gate.context, said)
    for lot in store.lots:
        yield Violation("rest", store.slug, f"lot {lot.id}", f"{lot.records} {lot.kind} records are still {lot.state}")


class _Causes:
    """What a row of a store may rest on."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sold = {one.sku: one for one in store.sold}
        self.active = {one.sku for one in store.listed if one.state == "active"}

    def open(self, sku: str) -> bool:
        """It is shown for sale, so that what its price and stock are must be known. A blocked one gets both anew."""
        return sku in self.active and not self.unsellable(sku)

    def unsellable(self, sku: str) -> bool:
        """VTEX does not sell it here now, or it lacks what a registration needs."""
        sold = self.sold.get(sku)
        if sold is None or not sold.active or not sold.in_channel or not listable(self.store, sold):
            return True
        return rule.wanted(self.store, sold).price is None


def _unrest(evidence: Evidence, causes: _Causes, row: Row) -> str:
    """What is wrong with how this row rests; empty when nothing is."""
    if row.work in ("p", "h"):
        waited = evidence.ended - row.pending_since if row.pending_since is not None else None
        if waited is not None and waited <= PATIENCE:
            return ""
        return f"{'pending' if row.work == 'p' else 'held'}{'' if waited is None else f' for {waited:.1f} s'}"
    if row.work == "i" and row.asked > row.answered:
        return f"asked {row.asked}, answered {row.answered}, and at rest"
    if row.work == "s" and row.due_at is not None and evidence.ended - row.due_at > PATIENCE:
        return f"was due {evidence.ended - row.due_at:.1f} s ago and is not taken up"
    match row.status:
        case "delayed" | "unknown" | "waiting" | "dead":
            return f"is {row.status} after {row.attempts} attempts"
        case "parked":
            return _parked(causes, row)
        case "refused" if row.context not in ("catalog", "price", "stock") or not causes.unsellable(row.key):
            return f"is refused ({row.code}) without a cause"
        case "done" if row.in_doubt and (row.context == "catalog" or (row.context in OFFERED and causes.open(row.key))):
            return "is done, and what was begun to be written is still in doubt"
        case _:
            return ""


def _parked(causes: _Causes, row: Row) -> str:
    kind, _, name = (row.parked_on or "").partition(":")
    if kind == "mapping" and name not in causes.store.mappings:
        return ""
    if kind == "publication" and row.key not in causes.active and causes.unsellable(row.key):
        return ""
    return f"is parked on {row.parked_on}, and that has happened"


# ---------------------------------------------------------------- orders


def orders(_: Evidence, store: Store) -> Iterator[Violation]:
    """Every paid order is in VTEX once, under the id that the marketplace was told; none was created again blindly."""
    created = {one.order_id: one for one in store.created}
    for placed in store.placed:
        if _excused(store, "order", placed.order_id):
            continue
        order = created.get(placed.order_id)
        count = order.creations if order else 0
        if count > 1 or (placed.status in PAID and count != 1):
            yield Violation("orders", store.slug, placed.order_id, f"is in VTEX {count} times ({placed.status})")
        elif order and placed.vtex_order_id not in (None, order.vtex_order_id):
            said = f"is {order.vtex_order_id} in VTEX, and the marketplace was told {placed.vtex_order_id}"
            yield Violation("orders", store.slug, placed.order_id, said)
    known = {placed.order_id for placed in store.placed}
    for order_id in sorted(created.keys() - known):
        yield Violation("orders", store.slug, order_id, "is in VTEX, and the marketplace has no such order")
    calls: dict[str, list[OrderCall]] = defaultdict(list)
    for call in sorted(store.order_calls, key=lambda one: one.at):
        calls[call.order_id].append(call)
    for order_id, sequence in sorted(calls.items()):
        sure = bool(DEFINITE_NO & {code for code, _ in created[order_id].results}) if order_id in created else False
        yield from _blind_orders(store, order_id, sequence, sure=sure)


def _blind_orders(store: Store, order_id: str, calls: Sequence[OrderCall], *, sure: bool) -> Iterator[Violation]:
    """A create after a create needs a read of the order between them, unless the first was surely refused.

    Surely refused: 4xx; 500 and 503 (a peer's word that it did nothing); or a result that says so (`sure`).
    """
    before: OrderCall | None = None
    for call in calls:
        if call.operation == "read" and call.status in LOOKED:
            before = None
        elif call.operation == "create":
            if before is not None and not (sure and before.status == 200):
                said = f"was created again {call.at - before.at:.2f} s after a create ({_outcome(before.status)})"
                yield Violation("orders", store.slug, order_id, f"{said} without a read-back")
            before = call if may_be_done(call.status) else None


def may_be_done(status: int) -> bool:
    """Can a call that was answered so (0: not at all) have been done?"""
    return not (400 <= status < 500 and status != 408) and status not in (500, 503)


def _outcome(status: int) -> str:
    return f"answered {status}" if status else "no answer"


# ---------------------------------------------------------------- listings


def listings(_: Evidence, store: Store) -> Iterator[Violation]:
    """One SKU, one listing; where a create makes another one each time, a second needs a look first."""
    for listed in store.listed:
        if len(listed.ids) > 1:
            yield Violation("listings", store.slug, listed.sku, f"is listed {len(listed.ids)} times")
        elif listed.creates > listed.deletes + 1:
            said = f"was created {listed.creates} times and deleted {listed.deletes} times"
            yield Violation("listings", store.slug, listed.sku, said)
    remotes = Counter(binding.remote_id for binding in store.bindings)
    for remote, count in remotes.items():
        if count > 1:
            yield Violation("listings", store.slug, remote, f"{count} SKUs are bound to this listing")
    for sku, calls in sorted(_by_sku(store.listing_calls).items()):
        before: ListingCall | None = None
        for call in calls:
            if call.operation in ("listing_find", "listing_read") and call.status in LOOKED:
                before = None
            elif call.operation == "listing_create":
                if before is not None:
                    said = f"was created again {call.at - before.at:.2f} s after a create ({_outcome(before.status)})"
                    yield Violation("listings", store.slug, sku, f"{said} without a look")
                before = call if may_be_done(call.status) else None


def _by_sku(calls: Iterable[ListingCall]) -> dict[str, list[ListingCall]]:
    found: dict[str, list[ListingCall]] = defaultdict(list)
    for call in sorted(calls, key=lambda one: one.at):
        if call.sku:
            found[call.sku].append(call)
    return found


# ---------------------------------------------------------------- the machinery


def machinery(evidence: Evidence) -> Iterator[Violation]:
    """Queues are served, processes live and came back by themselves, the spool is empty."""
    for queue in evidence.queues:
        if queue.consumers < 1:
            yield Violation("machinery", "", queue.name, f"nobody serves this queue ({queue.waiting} messages wait)")
    for process in evidence.processes:
        if "hand" in process.restarted_by:
            yield Violation("machinery", "", process.name, "was restarted by hand")
        if not process.alive:
            yield Violation("machinery", "", process.name, "is not running any more")
    if evidence.spooled:
        yield Violation("machinery", "", "", f"{evidence.spooled} bodies are still in a spool")


def recovery(evidence: Evidence) -> Iterator[Violation]:
    """Work goes on within 30 s of a dependency's return."""
    for one in evidence.recoveries:
        if one.seconds is None or one.seconds > RECOVERY_SECONDS:
            took = "never went on" if one.seconds is None else f"went on after {one.seconds:.1f} s"
            yield Violation("recovery", "", one.what, f"was back, and work {took}")


def judged(evidence: Evidence) -> Iterator[Violation]:
    """Nothing may be concluded from journals that lost their beginning."""
    for name in evidence.forgotten:
        yield Violation("evidence", "", name, "this journal was too short for the run")


STORE_LAWS: tuple[Callable[[Evidence, Store], Iterator[Violation]], ...] = (
    shown,
    overtaken,
    read_after,
    conservation,
    rest,
    orders,
    listings,
)
LAWS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (machinery, recovery, judged)


def _excused(store: Store, what: str, key: str) -> bool:
    return any(one.what == what and one.key in ("", key) for one in store.excuses)
