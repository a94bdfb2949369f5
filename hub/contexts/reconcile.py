"""What the database believes is compared with what both sides show; whatever differs is in doubt and read anew.

For a database restored from a backup, for lost notifications, and for answers that lied. A store has one reconciliation
at a time, a row of `runs`; its key in `states` is always the same, and each attempt takes one page:

    lots       those that were open when it began are answered first: their answers become beliefs
    listings   what the marketplace shows, page by page; untrue snapshots are forgotten, unknown listings get a pair
    missing    pairs that no page showed are asked for one by one (all of them where a marketplace cannot be walked)
    absent     those not found are asked for once more, after the visibility delay; then their pair goes
    catalogue  SKUs of VTEX's list that have no pair
    orders     those that have not come to their end

Nothing is written here. Every SKU and order met is asked for at low urgency, and the contexts read VTEX's truth, send
what differs from what is known, and say nothing where nothing does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hub.contexts.step import Item, Step, listing_json, price_json, stock_json
from hub.errors import Unavailable
from hub.model import Action, Ask, Binding, BindingState, JsonTree, Shown, Urgency, digest, vtex_id
from hub.outcome import Done, Ending, Postponed
from hub.ports import Belief, Link, Manifest, Phase, Reconciliation, Taken

NAME: Final = "reconcile"
KEY: Final = "@reconcile"
"""The only key of this context: a store is compared once at a time."""

OFFERED: Final = ("catalog", "price", "stock")
BACKLOG: Final = 1000
"""Pending keys of the store above which no further page is read."""

PAUSE: Final = 2.0
"""Seconds until a reconciliation that waits for its backlog looks again."""

LOTS_PATIENCE: Final = 900.0
"""Seconds after which open lots are not waited for any more; their rows are not judged while they wait."""

ABSENCE: Final = 3.0
"""Least seconds between the two looks that prove an absence."""

ONE_BY_ONE: Final = 20
"""Listings that one attempt asks for by their SKU."""

PHASES: Final[tuple[Phase, ...]] = ("lots", "listings", "missing", "absent", "catalogue", "orders")
SKU_PAGE: Final = 500
ORDER_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Facts:
    """One page. `run` is `None` when none is under way; `wait` (seconds): it is not its turn yet.

    `shown` maps SKUs to the listings found, `beliefs` to what is believed of them; `absent` were asked for and not
    found. `ids` are SKUs or orders to be asked for. `at` is where the phase goes on, `None` when it is over.
    """

    store: int
    manifest: Manifest
    run: Reconciliation | None
    wait: float = 0.0
    since: str = ""
    shown: tuple[Shown, ...] = ()
    beliefs: Mapping[str, Belief] | None = None
    absent: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    at: str | None = None

    @property
    def delay(self) -> float:
        """Seconds within which a difference proves nothing."""
        return self.manifest.visibility_delay


@dataclass(frozen=True, kw_only=True)
class TakePage(Step):
    """Carry a page out."""

    taken: Taken
    then: tuple[Ask, ...]


# ---------------------------------------------------------------- read


def read(link: Link, item: Item) -> Facts:  # noqa: ARG001 – there is one key; where it stands is in the run
    """The next page of whatever phase the reconciliation is in."""
    beliefs = link.states.beliefs
    facts = Facts(link.store, link.marketplace.manifest, beliefs.running())
    run = facts.run
    if run is None:
        return facts
    if beliefs.backlog() > BACKLOG:
        return replace(facts, wait=PAUSE)
    facts = replace(facts, since=beliefs.clock())
    match run.phase:
        case "lots":
            pause = beliefs.lots_pause(run.run, facts.delay) if facts.manifest.lots else 0.0
            return replace(facts, wait=pause if run.age < LOTS_PATIENCE else 0.0)
        case "listings":
            return _walked(link, facts, run)
        case "missing":
            return _asked_for(link, facts, beliefs.unseen(run.run, run.at, ONE_BY_ONE))
        case "absent":
            absent = beliefs.absent(run.at, ONE_BY_ONE)
            left = max((max(facts.delay, ABSENCE) - age for _, age in absent), default=0.0)
            if left > 0:
                return replace(facts, wait=left)
            return _asked_for(link, facts, [binding for binding, _ in absent])
        case "catalogue":
            return _listed_by_vtex(link, facts, run)
        case "orders":
            ids = tuple(beliefs.open_orders(run.at, ORDER_PAGE))
            return replace(facts, ids=ids, at=ids[-1] if len(ids) == ORDER_PAGE else None)


def _walked(link: Link, facts: Facts, run: Reconciliation) -> Facts:
    if not facts.manifest.walks:
        return facts
    page = link.marketplace.listings(run.at or None)
    return _compared(link, replace(facts, shown=page.shown, at=page.cursor))


def _asked_for(link: Link, facts: Facts, bindings: Sequence[Binding]) -> Facts:
    found: list[tuple[str, Shown | None]] = []
    failed: Unavailable | None = None
    for binding in bindings:
        try:
            found.append((binding.sku, link.marketplace.show(binding.sku, binding.remote_id)))
        except Unavailable as fault:  # one listing that cannot be read must not keep the others from being compared
            failed = fault
    if failed is not None and not found:
        raise failed
    return _compared(
        link,
        replace(
            facts,
            shown=tuple(shown for _, shown in found if shown is not None),
            absent=tuple(sku for sku, shown in found if shown is None),
            at=bindings[-1].sku if len(bindings) == ONE_BY_ONE else None,
        ),
    )


def _compared(link: Link, facts: Facts) -> Facts:
    """What is believed of the listings; of several for one SKU the marketplace names the one that counts."""
    ours = {shown.sku: shown for shown in reversed(facts.shown) if vtex_id(shown.sku) == shown.sku}
    beliefs = link.states.beliefs.of(tuple(ours), facts.since, facts.delay)
    for sku, shown in list(ours.items()):
        binding = beliefs[sku].binding
        if binding is not None and binding.remote_id != shown.remote_id:
            chosen = link.marketplace.show(sku, binding.remote_id)
            ours[sku] = chosen if chosen is not None else shown
    strangers = tuple(shown for shown in facts.shown if shown.sku not in ours)
    return replace(facts, shown=(*ours.values(), *strangers), beliefs=beliefs)


def _listed_by_vtex(link: Link, facts: Facts, run: Reconciliation) -> Facts:
    """A page of VTEX's list; `at` holds the number of the page and the digest of the one before (LOD-02)."""
    number, _, before = (run.at or "1:").partition(":")
    skus = tuple(dict.fromkeys(link.vtex.sku_page(int(number), SKU_PAGE)))
    seen = digest(sorted(skus))
    if not skus or seen == before:
        return facts
    last = len(skus) > SKU_PAGE  # VTEX ignored the paging: this is the complete list
    ids = tuple(link.states.beliefs.unbound(skus))
    return replace(facts, ids=ids, at=None if last else f"{int(number) + 1}:{seen}")


# ---------------------------------------------------------------- decide


def decide(facts: Facts) -> Sequence[Ending | Step]:
    """Forget what is not true, keep the pairs that are, ask for everything that was met, go on."""
    run = facts.run
    if run is None:
        return (Ending(NAME, KEY, Done()),)
    if facts.wait > 0:
        return (Ending(NAME, KEY, Postponed(facts.wait, why=f"waits in {run.phase}")),)
    phase, at = (run.phase, facts.at) if facts.at is not None else (_behind(run.phase), "")
    taken = _judged(facts, Taken(run, facts.since, facts.delay, phase, at))
    then = (Ask(facts.store, NAME, KEY, NAME, Urgency.LOAD),) if phase else ()
    return (TakePage(key=KEY, contexts=(NAME,), taken=taken, then=then),)


def _behind(phase: Phase) -> Phase | None:
    """The phase that follows; `None` behind the last one."""
    place = PHASES.index(phase) + 1
    return PHASES[place] if place < len(PHASES) else None


def _judged(facts: Facts, taken: Taken) -> Taken:
    """Every listing of the page against what is believed of it."""
    run, counts = taken.run, Counter[str]()
    doubts: list[tuple[str, str, JsonTree]] = []
    pairs: list[Binding] = []
    asked: list[tuple[str, str]] = []
    for shown in facts.shown:
        belief = (facts.beliefs or {}).get(shown.sku)
        if belief is None or (belief.binding is None and not belief.known and not run.adopts):
            counts["foreign"] += 1
            continue
        counts["listings"] += 1
        pair = paired(shown, belief, facts.manifest)
        untrue = differences(shown, belief, facts.manifest, moved=pair is not None)
        if pair is not None:
            pairs.append(pair)
            counts["rebound" if belief.binding is None else "corrected pairs"] += 1
        if untrue:
            counts["differing"] += 1
        doubts += [(context, shown.sku, belief.firm[context]) for context in untrue]
        asked += [(context, shown.sku) for context in (OFFERED if shown.active or pair else ("catalog",))]
    seen = tuple(shown.sku for shown in facts.shown if shown.sku in (facts.beliefs or {}))
    first = facts.absent if run.phase == "missing" else ()
    gone = facts.absent if run.phase == "absent" else ()
    if gone:
        counts["absent"] += len(gone)
    if facts.ids:
        counts["orders" if run.phase == "orders" else "without listing"] += len(facts.ids)
    asked += [("order" if run.phase == "orders" else "catalog", key) for key in (*gone, *facts.ids)]
    asks = tuple(
        Ask(facts.store, context, key, NAME, Urgency.SWEEP) for context, key in asked if context in run.contexts
    )
    return replace(
        taken,
        asks=asks,
        doubts=tuple(doubts),
        pairs=tuple(pairs),
        seen=seen,
        absent=first,
        gone=gone,
        counts=counts + Counter({"asked": len(asks)}),
    )


def paired(shown: Shown, belief: Belief, manifest: Manifest) -> Binding | None:
    """The pair as it should be stored; `None` when it is."""
    known = belief.binding
    state = BindingState.PUBLISHED
    if not shown.active and (known is None or Action.ACTIVATE in manifest.actions):
        state = BindingState.DEACTIVATED
    elif not shown.active and known is not None:
        state = known.state  # not blocked by us: nothing of ours brings it back
    found = Binding(
        shown.sku, shown.remote_id, state, shown.link or (known.link if known else ""), known.product if known else ""
    )
    same = known is not None and (known.remote_id, known.state) == (found.remote_id, found.state)
    return None if same else found


def differences(shown: Shown, belief: Belief, manifest: Manifest, *, moved: bool) -> tuple[str, ...]:
    """The contexts whose snapshot is not what is shown; all of them when the pair itself is another one."""
    if moved:
        return tuple(belief.firm)
    if not shown.active:
        return ()
    truth: dict[str, JsonTree] = {}
    if "price" in manifest.shows:
        truth["price"] = price_json(shown.price)
    if "stock" in manifest.shows:
        truth["stock"] = stock_json(shown.stock)
    untrue = [context for context, value in truth.items() if context in belief.firm and belief.firm[context] != value]
    registered = (belief.firm.get("catalog") or {}).get("listing")
    if "listing" in manifest.shows and registered is not None and listing_json(shown.listing) != registered:
        untrue.append("catalog")
    return tuple(untrue)


# ---------------------------------------------------------------- write


def write(link: Link, step: Step) -> Sequence[Ending]:
    """Carry the page out, in one transaction."""
    if not isinstance(step, TakePage):
        raise TypeError(f"a reconciliation takes pages, not {type(step).__name__}")
    link.states.beliefs.take(step.taken)
    return (Ending(NAME, KEY, Done(step.then)),)
