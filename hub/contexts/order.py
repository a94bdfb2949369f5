"""Each order of the marketplace stands in VTEX once – or somebody is told what keeps it out (vtex.md 9).

Key: the marketplace's order id; `@poll` asks the marketplace which orders are new or changed. Nothing is created
without an intent, and whatever was sent before is looked up in VTEX before it is sent again: a duplicate that slips
through all the same is refused there (EOI007). Results are read as facts, not as events: neither their order nor their
number matters (ORD-10). Stories, problems and intents hold nothing of a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal

from hub import messages
from hub.contexts.step import Item, Step, follow, fresh_reference, sentences
from hub.errors import AuthLost, NotFound, Problem, Refusal
from hub.model import (
    Ask,
    IntegrationAnswer,
    JsonTree,
    MarketplaceOrder,
    Product,
    Row,
    Simulation,
    Story,
    Urgency,
    VtexOrder,
    digest,
    known_fields,
)
from hub.outcome import Done, Ending, Outcome, Postponed, Refused
from hub.ports import CartItem, Link, OrderRecord
from hub.rules import Rules
from hub.rules.ordering import (
    Cart,
    findings,
    order_body,
    order_problems,
    pieces_of,
    short_of,
    shown_body,
    shown_order,
    total_problems,
)
from hub.rules.results import BY_ITSELF, REACTIONS, STATUS, UNAPPROVED, Verdict, meaning, verdict

ORDER: Final = "order"
POLL_KEY: Final = "@poll"
CURSOR: Final = "orders"
CREATION, APPROVAL = "Order creation", "Order status update"
TO_VTEX: Final = "Marketplace to VTEX"

UNSEEN_LOOK: Final = 60.0
"""Seconds until an order that the marketplace does not show is looked for again; doubled each time."""

UNPAID_LOOK: Final = 3600.0
"""Seconds until an unpaid order is read again, should nobody tell us of its payment."""

DECISION_LOOK: Final = 600.0
"""Seconds until we look whether the seller has authorised an order (ORD-23)."""

UNKNOWN_LOOKS: Final = 3
"""Looks at an order that the marketplace does not show; it may be told of before it can be read."""

POLL_PAGES: Final = 10
"""Pages of changed orders that one attempt reads; more of them follow at once."""

MORE_AT_ONCE: Final = 1.0

IN_VTEX: Final = frozenset({"integrated", "waiting_authorization", "approved", "cancelled"})
AWAITED: Final = frozenset({"sending", "enqueued"})

# ---------------------------------------------------------------- what is known


@dataclass(frozen=True, slots=True)
class Memo:
    """What earlier attempts leave for later ones, settled together with their stories.

    `told` is what was last said, so that it is not said twice; `said` are the codes of an order that is in VTEX, each
    of which is told once. `code` and `tries` count refusals of one kind in a row; `waiting` tells that the pause after
    a refused approval is over.
    """

    told: str = ""
    said: tuple[str, ...] = ()
    code: str = ""
    tries: int = 0
    waiting: bool = False

    @staticmethod
    def of(row: Row) -> Memo:
        """What is kept with the row: an open intent carries it, because it hides what is confirmed."""
        tree = (row.intent or {}).get("memo") if row.intent is not None else row.confirmed
        return Memo(**{**known_fields(Memo, tree), "said": tuple(tree["said"])}) if tree else Memo()

    def again(self, code: str) -> Memo:
        """Refused once more, or for another reason than before."""
        return replace(self, code=code, tries=self.tries + 1 if code == self.code else 1)

    def wait(self, waits: Sequence[float]) -> float:
        """Seconds until the next try: longer with each refusal of the same kind."""
        return waits[min(self.tries, len(waits)) - 1]


@dataclass(frozen=True, slots=True)
class Polled:
    """Ids of changed orders; the cursor before and after; whether there are more."""

    order_ids: tuple[str, ...]
    start: str | None
    cursor: str | None
    more: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `decide` needs to know of one order. `None` where nothing was found or nothing was asked.

    `order` is what the marketplace says now, `record` what the hub keeps: its order is the one VTEX was told last.
    `missing`: the marketplace does not show it. `looked` tells that VTEX was asked, `found` what it answered.
    """

    store: int
    account: str
    affiliate: str
    channel: int
    title: str
    rules: Rules
    row: Row
    reference: str
    record: OrderRecord | None = field(default=None, repr=False)
    results: tuple[IntegrationAnswer, ...] = ()
    order: MarketplaceOrder | None = field(default=None, repr=False)
    missing: bool = False
    looked: bool = False
    found: VtexOrder | None = None
    cart: Cart | None = None
    polled: Polled | None = None

    @property
    def key(self) -> str:
        """The marketplace's order id."""
        return self.row.key

    @property
    def memo(self) -> Memo:
        """What earlier attempts left."""
        return Memo.of(self.row)

    @property
    def verdict(self) -> Verdict:
        """What VTEX's results say."""
        return verdict(self.results, self.record.sent_age if self.record else None)

    @property
    def state(self) -> str:
        """Where the order stands by the hub's record."""
        return self.record.state if self.record else "seen"

    @property
    def sent(self) -> bool:
        """Was a creation ever begun?"""
        return self.row.intent is not None or (self.record is not None and self.record.sent_age is not None)

    @property
    def left(self) -> float:
        """Seconds for which a result may still be awaited."""
        age = self.record.sent_age if self.record else None
        return 0.0 if age is None else self.rules.result_timer - age

    @property
    def newest(self) -> MarketplaceOrder | None:
        """The order as it was last read from the marketplace."""
        return self.order or (self.record.order if self.record else None)

    @property
    def cancelled(self) -> bool:
        """Has the marketplace cancelled it, as far as was asked?"""
        return self.newest is not None and self.newest.status == "cancelled"

    @property
    def paid(self) -> bool:
        """Has it been paid, as far as was asked?"""
        return self.newest is not None and self.newest.status == "paid"

    @property
    def told_paid(self) -> bool:
        """Does VTEX know of the payment?"""
        return self.record is None or self.record.order is None or self.record.order.status == "paid"

    @property
    def vtex_id(self) -> str:
        """The order's id in VTEX: the affiliate goes before the marketplace's (9.3)."""
        return f"{self.affiliate}-{self.key}"

    @property
    def standing(self) -> str | None:
        """Where the order stands in VTEX by record, results and look-up together; `None`: not in VTEX."""
        known = self.record.state if self.record and self.record.state in IN_VTEX else None
        seen = (STATUS.get(self.found.status) or known or "integrated") if self.found else None
        said = self.verdict
        for end in ("cancelled", "approved"):
            if end in (known, seen, said.state):
                return end
        if seen is None and said.authorize:
            return "waiting_authorization"
        return seen or known or said.state

    @property
    def input_hash(self) -> str:
        """Of all that decides whether VTEX takes it; what was refused is not sent again while this is the same."""
        order = replace(self.newest, updated_at=None) if self.newest else None
        return digest([asdict(order) if order else None, self.rules.order_policy])


Course = Literal["foreign", "in VTEX", "dropped", "refused", "awaited", "at rest", "create"]


def course(facts: Facts) -> Course:
    """What has to become of the order, as far as the facts tell."""
    if facts.found is not None and facts.found.marketplace_order_id not in ("", facts.key):
        return "foreign"
    if facts.standing is not None:
        return "in VTEX"
    awaited = facts.state in AWAITED
    refused = awaited and facts.verdict.refusal is not None
    if facts.cancelled:
        return "awaited" if awaited and not refused and facts.left > 0 else "dropped"
    if refused:
        return "refused"
    if facts.state == "enqueued" and facts.left > 0:
        return "awaited"
    rests = facts.state == "failed" and facts.row.status == "refused" and facts.row.input_hash == facts.input_hash
    return "at rest" if rests else "create"


# ---------------------------------------------------------------- read


def read(link: Link, item: Item) -> Facts:
    """Ask for as much as the next decision needs: the marketplace for the order, VTEX for it and for its SKUs."""
    row = item.rows[ORDER]
    facts = Facts(
        link.store,
        link.account,
        link.affiliate,
        link.sales_channel,
        link.marketplace.manifest.title,
        link.rules,
        row,
        fresh_reference(),
    )
    if item.key == POLL_KEY:
        return replace(facts, polled=_poll(link, row))
    # Results before the record: the other way round a result to the last sending could look older than it.
    results = tuple(link.states.results(item.key))
    facts = replace(facts, results=results, record=link.states.order(item.key))
    if _asks_marketplace(facts):
        facts = _fetch(link, facts)
    if _asks_vtex(facts):
        facts = replace(facts, looked=True, found=_look_up(link, facts))
    if facts.order is not None and course(facts) == "create" and not _hindrances(facts, facts.order):
        facts = replace(facts, cart=_cart(link, facts.order))
    return facts


def _asks_marketplace(facts: Facts) -> bool:
    """Not where a result alone says how it goes on: some marketplaces allow few reads of orders."""
    record = facts.record
    if record is None or record.order is None:
        return True
    if record.state == "cancelled":
        return False
    said = facts.verdict.state
    if said == "approved" and record.state != "approved":
        return False
    return not (said == "integrated" and record.state not in IN_VTEX and record.order.status == "paid")


def _asks_vtex(facts: Facts) -> bool:
    """Nothing is sent that was not looked up; and VTEX is asked where an answer does not say where an order stands."""
    if facts.missing or facts.state in ("approved", "cancelled"):
        return False
    if not facts.sent:
        # Never sent as far as this database knows; but it may have been restored from before the order (law 5).
        order = facts.newest
        return order is not None and (
            course(facts) == "dropped" or (course(facts) == "create" and not _hindrances(facts, order))
        )
    said = facts.verdict
    if said.state == "approved":
        return False
    if facts.state in IN_VTEX or said.state is not None:
        overdue = facts.state == "integrated" and facts.told_paid and facts.left <= 0
        return said.authorize or said.denial is not None or facts.state == "waiting_authorization" or overdue
    if said.authorize or facts.row.intent is not None or facts.state != "enqueued":
        return said.refusal is None or facts.state not in AWAITED or REACTIONS[meaning(said.refusal)].look
    if said.refusal is not None:
        return facts.cancelled or REACTIONS[meaning(said.refusal)].look
    return facts.left <= 0


def _fetch(link: Link, facts: Facts) -> Facts:
    """The order as the marketplace has it now; a new one is kept at once, so that it is visible whatever follows."""
    try:
        order = link.marketplace.order(facts.key)
    except NotFound:
        if facts.record is None or facts.record.order is None:
            return replace(facts, missing=True)
        return replace(facts, order=facts.record.order)
    if facts.record is None:
        record = OrderRecord(facts.key, "seen", order)
        link.states.save_order(record)
        return replace(facts, order=order, record=record)
    return replace(facts, order=order)


def _look_up(link: Link, facts: Facts) -> VtexOrder | None:
    try:
        return link.vtex.order(facts.vtex_id)
    except NotFound:
        return None


def _cart(link: Link, order: MarketplaceOrder) -> Cart:
    """One simulation with all items and the address; each SKU for its activity and its channels (9.2)."""
    products = _products(link, order)
    lines = [CartItem(sku, pieces) for sku, pieces in pieces_of(order).items()]
    try:
        simulation = link.vtex.simulate(lines, postal_code=order.address.postal_code, country=order.address.country)
    except Refusal as refusal:
        problems = tuple(Problem("O.D", "simulation", problem.value, problem.fix) for problem in refusal.problems)
        refused = problems or (Problem("O.D", "simulation", str(refusal.status), "VTEX does not simulate the order"),)
        return Cart(Simulation({}), products, refused)
    return Cart(simulation, products)


def _products(link: Link, order: MarketplaceOrder) -> Mapping[str, Product | None]:
    """Each SKU; none at all for a role without catalog reads: orders go on, judged by the simulation alone (ACC-03)."""
    try:
        return {sku: _product(link, sku) for sku in pieces_of(order)}
    except AuthLost as lost:
        if lost.scope == "store":
            raise
        return {}


def _product(link: Link, sku: str) -> Product | None:
    try:
        return link.vtex.product(sku)
    except (NotFound, Refusal):  # a SKU id that is none is refused instead
        return None


def _poll(link: Link, row: Row) -> Polled:
    """Which orders changed. The cursor moves one poll later, when everybody it passed has been asked for."""
    start, settled = link.states.cursor(CURSOR), row.confirmed or {}
    if settled and settled["from"] == start:
        start = settled["next"]
        link.states.save_cursor(CURSOR, start or "")
    ids: dict[str, None] = {}
    cursor, more = start, link.marketplace.manifest.polls_orders
    for _ in range(POLL_PAGES):
        if not more:
            break
        page = link.marketplace.changed_orders(cursor)
        ids |= dict.fromkeys(page.order_ids)
        cursor, more = page.cursor, page.more
    return Polled(tuple(ids), start, cursor, more)


# ---------------------------------------------------------------- decide


@dataclass(frozen=True, kw_only=True)
class Keep(Step):
    """Nothing goes out: the order's record is kept, then the rows end."""

    record: OrderRecord = field(repr=False)
    endings: tuple[Ending, ...]


@dataclass(frozen=True, kw_only=True)
class Create(Step):
    """Send the order to VTEX. `problems` are findings that the store's policy lets pass."""

    facts: Facts = field(repr=False)
    record: OrderRecord = field(repr=False)
    body: Mapping[str, JsonTree] = field(repr=False)
    problems: tuple[Problem, ...] = ()
    then: tuple[Ask, ...] = ()

    @property
    def intent(self) -> JsonTree:
        """That this body is about to be sent, by its digest; and the memo, which an open intent would hide."""
        return {"reference": self.reference, "body": digest(self.body), "memo": asdict(self.facts.memo)}


@dataclass(frozen=True, kw_only=True)
class Approve(Step):
    """Tell VTEX that the order is paid; to say it twice does no harm, so it needs no intent."""

    facts: Facts = field(repr=False)
    record: OrderRecord = field(repr=False)
    ending: Ending


def decide(facts: Facts) -> Sequence[Ending | Step]:
    """Send, approve, await, try again or set aside – whatever the order needs next."""
    if facts.polled is not None:
        return (_ask_for(facts, facts.polled),)
    if facts.missing:
        return (_unseen(facts),)
    match course(facts):
        case "foreign":
            return (_foreign(facts),)
        case "in VTEX":
            return (_in_vtex(facts),)
        case "dropped":
            return (_dropped(facts),)
        case "refused" if facts.verdict.refusal is not None:
            return (_refused(facts, facts.verdict.refusal),)
        case "awaited":
            return (_awaited(facts),)
        case "at rest":
            known = facts.record.problems if facts.record else ()
            code = messages.worst(problem.code for problem in known)
            return (Ending(ORDER, facts.key, Refused(known, facts.row.input_hash), code, known),)
        case _:
            return (_create(facts),)


def _ask_for(facts: Facts, polled: Polled) -> Ending:
    then = tuple(Ask(facts.store, ORDER, order_id, "poll", Urgency.NOTIFIED) for order_id in polled.order_ids)
    done = Done(then, MORE_AT_ONCE if polled.more else facts.rules.poll_orders)
    moved = polled.cursor != polled.start
    return Ending(
        ORDER,
        POLL_KEY,
        done,
        confirmed={ORDER: {"from": polled.start, "next": polled.cursor}} if moved else {},
        definite=moved,
    )


def _unseen(facts: Facts) -> Ending:
    """Somebody told of an order that the marketplace does not show: looked at some more times, then forgotten."""
    if facts.row.looked < UNKNOWN_LOOKS:
        return Ending(ORDER, facts.key, Done(look_again=UNSEEN_LOOK * 2**facts.row.looked))
    problem = Problem("O.I", "order", facts.key, f"{facts.title} does not show it: check its id there")
    return _end(facts, "seen", Refused((problem,)), "O.I", (problem,))


def _create(facts: Facts) -> Ending | Step:
    order = facts.newest
    if order is None:
        raise ValueError(f"order {facts.key} is to be created, but was not read")
    hindrances = _hindrances(facts, order)
    if hindrances and order.status == "unpaid":
        # Many marketplaces tell who bought, and where it goes, only with the payment.
        return _keep(facts, "seen", Done(look_again=UNPAID_LOOK), None, ())
    if hindrances:
        return _keep(facts, "failed", Refused(hindrances, facts.input_hash), "O.I", hindrances)
    if facts.cart is None:
        raise ValueError(f"order {facts.key} is to be created, but its SKUs were not read")
    found = findings(order, facts.cart, facts.channel)
    then = tuple(ask for sku in short_of(found) for ask in follow(facts.store, sku, ("stock",), Urgency.REMOVE))
    if found and facts.rules.order_policy == "strict":
        memo = facts.memo.again("findings")
        code = messages.worst(problem.code for problem in found) or "O.D"
        outcome = Postponed(memo.wait(facts.rules.order_waits), why=sentences(found), then=then)
        return _keep(facts, "retry", outcome, code, found, memo=memo)
    name, endpoint = facts.rules.connector_name, facts.rules.connector_endpoint
    body = order_body(order, facts.cart.simulation.items, name=name, endpoint=endpoint)
    record = replace(_record(facts, "sending"), order=order, reference=facts.reference, sent_age=0.0, problems=())
    return Create(
        key=facts.key,
        contexts=(ORDER,),
        reference=facts.reference,
        facts=facts,
        record=record,
        body=body,
        problems=(*total_problems(order), *found),
        then=then,
    )


def _hindrances(facts: Facts, order: MarketplaceOrder) -> tuple[Problem, ...]:
    """Why it cannot be sent at all; a total that its parts do not make holds it back where the policy says so."""
    strict = facts.rules.order_policy == "strict"
    return (*order_problems(order), *(total_problems(order) if strict else ()))


def _in_vtex(facts: Facts) -> Ending | Step:
    """It stands in VTEX: tell so once, refresh its stock, and see that a payment gets there (ORD-13 to ORD-15)."""
    state, said, memo = facts.standing or "integrated", facts.verdict, facts.memo
    record = replace(
        _record(facts, state),
        vtex_order_id=said.vtex_order or (facts.found.order_id if facts.found else None) or _known_id(facts),
        operation_id=said.operation or (facts.record.operation_id if facts.record else None),
        approved=state == "approved",
    )
    problems, codes = _milestones(facts, state, record.vtex_order_id or facts.vtex_id)
    fresh = tuple(code for code in codes if code not in memo.said)
    then = _stock(facts) if "O.A" in fresh else ()
    memo = replace(memo, said=(*memo.said, *fresh))
    stories = tuple(_story(facts, code, problems, record, APPROVAL if code == "O.S" else CREATION) for code in fresh)
    record = replace(record, problems=problems)
    if state == "integrated" and said.denial is not None and not memo.waiting:
        return _denied(facts, said.denial, record, memo, stories=stories, then=then)
    approves = (
        state == "integrated"
        and facts.paid
        and (not facts.told_paid or memo.waiting or (facts.left <= 0 and _unapproved(facts)))
    )
    if approves:
        memo = replace(memo, waiting=False)
        done = Done(then, facts.rules.result_timer)
    else:
        memo = replace(memo, code="", tries=0, waiting=False)
        done = Done(then, _next_look(facts, state))
    ending = _end(facts, state, done, codes[-1], problems, memo=memo, stories=stories)
    if approves:
        return Approve(key=facts.key, contexts=(ORDER,), facts=facts, record=record, ending=ending)
    if record == facts.record:
        return ending
    return Keep(key=facts.key, contexts=(ORDER,), record=record, endings=(ending,))


def _known_id(facts: Facts) -> str:
    return (facts.record.vtex_order_id if facts.record else None) or facts.vtex_id


def _unapproved(facts: Facts) -> bool:
    return facts.found is not None and facts.found.status == UNAPPROVED


def _next_look(facts: Facts, state: str) -> float | None:
    if state in ("approved", "cancelled") or (state == "integrated" and facts.cancelled):
        return None
    if state == "waiting_authorization":
        return DECISION_LOOK
    if facts.paid:
        return facts.left if facts.left > 0 else facts.rules.result_timer
    return UNPAID_LOOK


def _milestones(facts: Facts, state: str, vtex_order: str) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """The codes that an order in this state has earned, and what somebody has to do about it."""
    if state == "cancelled":
        if facts.cancelled:
            return (), ("O.G",)
        fix = f"is cancelled in VTEX but not on {facts.title}: cancel it there too"
        return (Problem("O.G", "VTEX order", vtex_order, fix),), ("O.G",)
    problems: tuple[Problem, ...] = ()
    codes: tuple[str, ...] = ("O.A",)
    if state == "waiting_authorization":
        problems, codes = (Problem("O.T", "VTEX order", vtex_order, "authorise or deny it in VTEX"),), (*codes, "O.T")
    if state == "approved":
        codes = (*codes, "O.S")
    if facts.cancelled:
        fix = f"was cancelled on {facts.title}: cancel it in VTEX, unless it has been shipped"
        problems, codes = (*problems, Problem("O.CX", "VTEX order", vtex_order, fix)), (*codes, "O.CX")
    return problems, codes


def _denied(
    facts: Facts,
    answer: IntegrationAnswer,
    record: OrderRecord,
    memo: Memo,
    *,
    stories: tuple[Story, ...],
    then: tuple[Ask, ...],
) -> Step:
    """The approval was not taken: the payment is kept and told again after a pause (EOI008, EOI009, EOI011)."""
    memo = replace(memo.again(f"approval {answer.code}"), waiting=True)
    advice = f"VTEX did not take the approval ({answer.message or answer.code}): {BY_ITSELF}"
    problems = _said_by(answer, "O.N", advice)
    ending = _end(
        facts,
        "integrated",
        Postponed(memo.wait(facts.rules.order_waits), why=answer.code, then=then),
        "O.N",
        problems,
        memo=memo,
    )
    ending = replace(ending, stories=(*stories, *ending.stories))
    return Keep(key=facts.key, contexts=(ORDER,), record=replace(record, problems=problems), endings=(ending,))


def _dropped(facts: Facts) -> Step:
    """Cancelled on the marketplace and not in VTEX: nothing is created (CAN-07, CAN-09, ORD-16)."""
    refusal = facts.verdict.refusal
    out_of_stock = facts.memo.code == "EOI002" or (refusal is not None and meaning(refusal) == "EOI002")
    code = "O.Q" if out_of_stock and facts.sent else "O.X"
    if facts.state == "cancelled_before_integration":
        return _keep(facts, facts.state, Done(), code, (), memo=facts.memo, silent=True)
    return _keep(facts, "cancelled_before_integration", Done(), code, ())


def _awaited(facts: Facts) -> Ending:
    """VTEX has it and says nothing yet. A cancellation waits until it is known what there is to cancel (CAN-08)."""
    code = "O.M" if facts.cancelled else "O.R"
    return _end(facts, "enqueued", Done(look_again=max(facts.left, MORE_AT_ONCE)), code, ())


def _refused(facts: Facts, answer: IntegrationAnswer) -> Step:
    """VTEX did not take it: again after a growing pause, or set aside until somebody corrects it (vtex.md 9.4)."""
    code = meaning(answer)
    reaction, memo = REACTIONS[code], facts.memo.again(code)
    problems = _said_by(answer, reaction.log, reaction.advice)
    if reaction.tries is not None and memo.tries > reaction.tries:
        return _keep(facts, "failed", Refused(problems, facts.input_hash), reaction.log, problems, memo=memo, by=answer)
    then = _stock(facts, Urgency.REMOVE) if code == "EOI002" else ()
    outcome = Postponed(memo.wait(facts.rules.order_waits), why=f"VTEX answered {answer.code}", then=then)
    return _keep(facts, "retry", outcome, reaction.log, problems, memo=memo, by=answer)


def _foreign(facts: Facts) -> Step:
    """VTEX has another order under the id that ours would get."""
    fix = "belongs to another order of VTEX: give the store an affiliate of its own"
    problem = Problem("O.N", "VTEX order", facts.vtex_id, fix)
    return _keep(facts, "failed", Refused((problem,), facts.input_hash), "O.N", (problem,))


def _said_by(answer: IntegrationAnswer, log: str, advice: str) -> tuple[Problem, ...]:
    """VTEX's own reasons, then who has to do what."""
    told = [
        Problem(log, f"{one.field} {one.code}".strip(), "", one.fix or answer.message or answer.code)
        for one in answer.problems
    ]
    name = f"operation {answer.operation_id}" if answer.operation_id else "VTEX"
    return (*told, Problem(log, name, answer.code, advice))


def _stock(facts: Facts, urgency: int = Urgency.FOLLOW) -> tuple[Ask, ...]:
    """Every SKU of the order is to be shown with the stock that is left (STK-16)."""
    skus = pieces_of(facts.newest) if facts.newest else ()
    return tuple(ask for sku in skus for ask in follow(facts.store, sku, ("stock",), urgency))


# ---------------------------------------------------------------- write


def write(link: Link, step: Step) -> Sequence[Ending]:
    """Send or approve, and keep what is known. Raises what the door raises, but for a refusal, which is an answer."""
    match step:
        case Keep():
            link.states.save_order(replace(step.record, sent_age=None))
            return step.endings
        case Create():
            return _send(link, step)
        case Approve():
            return _approve(link, step)
    raise TypeError(f"order takes no {type(step).__name__}")


def _send(link: Link, step: Create) -> Sequence[Ending]:
    link.states.save_order(step.record)
    try:
        answer = link.vtex.create_order(step.body)
    except (Refusal, NotFound) as no:
        answer = _as_answer(no, "PlaceOrder", step.key)
    # Without the intent: its memo is the row's from here on.
    row = replace(step.facts.row, intent=None, confirmed=asdict(step.facts.memo), status="new")
    facts = replace(step.facts, record=step.record, row=row, looked=False, found=None)
    if answer.code != "SOI003":
        known = answer.code in REACTIONS or answer.code in {"SOI001", "SOI002", "EOI011"}
        answer = replace(answer, flow="PlaceOrder", code=answer.code if known else "EOI001", age=None)
        return _judged(link, replace(facts, results=(*facts.results, answer)))
    record = replace(step.record, state="enqueued", operation_id=answer.operation_id or None, sent_age=None)
    link.states.save_order(record)
    story = _story(facts, "O.R", (), record)
    translated, destination = shown_body(step.body), _shown_answer(answer)
    stories = [replace(story, translated=translated, destination=destination)]
    if step.problems:
        taken = ", ".join(f"{one.field} = {one.value}" for one in step.problems)
        passed = _story(facts, "O.H", step.problems, record)
        stories.insert(0, replace(passed, params={**passed.params, "defaults": taken}))
    done = Done(step.then, facts.rules.result_timer)
    return (_end(facts, "enqueued", done, "O.R", (), stories=tuple(stories)),)


def _approve(link: Link, step: Approve) -> Sequence[Ending]:
    # The time first, so that every answer is younger; the payment only once VTEX has taken it.
    link.states.save_order(replace(step.record, sent_age=0.0))
    try:
        answer = link.vtex.approve_order(step.key)
    except (Refusal, NotFound) as no:
        answer = _as_answer(no, "ApproveOrder", step.key)
    if answer.code == "SOI003":
        paid = replace(step.record, order=step.facts.newest, sent_age=None)
        link.states.save_order(paid)
        return (step.ending,)
    known = answer.code.startswith("EOI") or answer.code in {"SOI001", "SOI002"}
    answer = replace(answer, flow="ApproveOrder", code=answer.code if known else "EOI001", age=None)
    row = replace(step.facts.row, intent=None, confirmed=asdict(replace(step.facts.memo, waiting=False)))
    record = replace(step.record, sent_age=0.0)
    facts = replace(step.facts, record=record, row=row, results=(*step.facts.results, answer), looked=False, found=None)
    return _judged(link, facts)


def _judged(link: Link, facts: Facts) -> Sequence[Ending]:
    """An immediate answer is judged like a result that has come already."""
    if _asks_vtex(facts):
        facts = replace(facts, looked=True, found=_look_up(link, facts))
    endings: list[Ending] = []
    for decision in decide(facts):
        endings += write(link, decision) if isinstance(decision, Step) else [decision]
    return endings


def _as_answer(no: Refusal | NotFound, flow: str, key: str) -> IntegrationAnswer:
    """A refusal in no documented form, as one that somebody has to look at."""
    problems = no.problems if isinstance(no, Refusal) else ()
    code = "EOI004" if flow == "PlaceOrder" else "EOI001"
    return IntegrationAnswer(
        False, flow, code, "", key, message=str(no)[:300], problems=tuple(replace(one, code="") for one in problems)
    )


# ---------------------------------------------------------------- words


def _record(facts: Facts, state: str) -> OrderRecord:
    """The record in a new state: before VTEX has it with the order as it is now, afterwards as VTEX was told."""
    known = facts.record or OrderRecord(facts.key, state)
    order = known.order if state in IN_VTEX and known.order is not None else facts.newest
    return replace(known, state=state, order=order)


def _keep(
    facts: Facts,
    state: str,
    outcome: Outcome,
    code: str | None,
    problems: tuple[Problem, ...],
    *,
    memo: Memo | None = None,
    by: IntegrationAnswer | None = None,
    silent: bool = False,
) -> Step:
    record = replace(_record(facts, state), problems=problems)
    ending = _end(facts, state, outcome, code, problems, memo=memo, by=by, stories=() if silent else None)
    return Keep(key=facts.key, contexts=(ORDER,), record=record, endings=(ending,))


def _end(
    facts: Facts,
    state: str,
    outcome: Outcome,
    code: str | None,
    problems: tuple[Problem, ...],
    *,
    memo: Memo | None = None,
    by: IntegrationAnswer | None = None,
    stories: tuple[Story, ...] | None = None,
) -> Ending:
    """The row's ending; unless `stories` are given, it is told when it says something new."""
    memo = facts.memo if memo is None else memo
    told = digest([state, code, [problem.as_json() for problem in problems]])
    if stories is None:
        story = _story(facts, code, problems, facts.record) if code and told != facts.memo.told else None
        stories = (replace(story, destination=_shown_answer(by) if by else None),) if story else ()
    return Ending(
        ORDER,
        facts.key,
        outcome,
        code,
        problems,
        confirmed={ORDER: asdict(replace(memo, told=told))},
        definite=True,
        stories=stories,
    )


def _story(
    facts: Facts,
    code: str,
    problems: tuple[Problem, ...],
    record: OrderRecord | None,
    operation: str = CREATION,
) -> Story:
    vtex_order = (record.vtex_order_id if record else None) or facts.vtex_id
    order = facts.newest
    skus = short_of(problems) or tuple(pieces_of(order) if order else ())
    reasons = sentences(problems)
    return Story(
        operation,
        TO_VTEX,
        code,
        problems,
        source=shown_order(order) if order else None,
        params={
            "order": facts.key,
            "key": facts.key,
            "marketplace": facts.title,
            "account": facts.account,
            "vtex_order": vtex_order,
            "link": f"https://{facts.account}.myvtex.com/admin/orders/{vtex_order}",
            "sku": ", ".join(skus),
            "errors": reasons,
            "reason": reasons,
        },
    )


def _shown_answer(answer: IntegrationAnswer) -> JsonTree:
    """VTEX's answer as a log record may show it."""
    return {
        "code": answer.code,
        "flow": answer.flow,
        "operation": answer.operation_id,
        "message": answer.message,
        "errors": list(answer.inner_codes),
    }
