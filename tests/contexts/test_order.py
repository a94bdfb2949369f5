"""Each order stands in VTEX once, whatever answers, results and time-outs come, and what keeps it out is told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import messages
from hub.contexts import CONTEXTS, order
from hub.contexts.step import Item, Step
from hub.errors import NotFound, Problem, Refusal, UnknownOutcome
from hub.model import (
    Address,
    Buyer,
    IntegrationAnswer,
    MarketplaceOrder,
    OrderItem,
    OrderPage,
    Row,
    Urgency,
    VtexOrder,
)
from hub.outcome import Done, Ending, Postponed, Refused
from hub.ports import OrderRecord
from hub.rules import Rules
from tests.fakes import FakeMarketplace, FakeVtex, MemoryStates, World, a_manifest, a_product, an_offer

KEY = "900100200"
VTEX_ID = f"FKM-{KEY}"
TIMER = 600.0
PERSONAL = ("Quixote", "dulcinea@example.org", "11999990000", "00000000191", "Rua Imaginada", "01310-100")


def an_order(status="paid", **changes: Any) -> MarketplaceOrder:
    return replace(
        MarketplaceOrder(
            order_id=KEY,
            status=status,
            items=(OrderItem("13", 2, 9990, 1950), OrderItem("14", 1, 5000, 0)),
            total=26930,
            interest=0,
            buyer=Buyer("dulcinea@example.org", "Dulcinea", "Quixote", "11999990000", "00000000191"),
            address=Address("Dulcinea Quixote", "01310-100", "BRA", street="Rua Imaginada"),
            payment_methods=("creditCardPaymentGroup",),
        ),
        **changes,
    )


def a_result(code: str, flow="PlaceOrder", operation="op-1", **changes: Any) -> IntegrationAnswer:
    """A result as it comes to a clock that `at` sets; age 0 is now."""
    main = VTEX_ID if code.startswith("SOI") and code != "SOI003" else None
    known = IntegrationAnswer(code.startswith("SOI"), flow, code, operation, KEY, main_order_id=main, age=0.0)
    return replace(known, **changes)


INTEGRATED = a_result("SOI001")
APPROVED = a_result("SOI002", "ApproveOrder")
ENQUEUED = a_result("SOI003", operation="", age=None)


@dataclass
class OrderVtex(FakeVtex):
    """Answers creations and approvals with what it is given, else SOI003; has the orders it is given."""

    orders: dict[str, VtexOrder] = field(default_factory=dict)
    answers: list[Any] = field(default_factory=list)
    bodies: list[Mapping[str, Any]] = field(default_factory=list)
    approvals: list[str] = field(default_factory=list)
    refuses: Refusal | None = None

    def simulate(self, items, *, postal_code=None, country=None):
        if self.refuses is not None:
            raise self.refuses
        return super().simulate(items, postal_code=postal_code, country=country)

    def create_order(self, body):
        self.calls.append("create")
        self.bodies.append(body)
        return self._answer()

    def approve_order(self, marketplace_order_id):
        self.calls.append("approve")
        self.approvals.append(marketplace_order_id)
        return self._answer()

    def order(self, vtex_order_id):
        self.calls.append("look up")
        if vtex_order_id not in self.orders:
            raise NotFound(vtex_order_id)
        return self.orders[vtex_order_id]

    def _answer(self):
        answer = self.answers.pop(0) if self.answers else ENQUEUED
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class OrderMarketplace(FakeMarketplace):
    """Has orders, and pages of changed ones."""

    orders: dict[str, MarketplaceOrder] = field(default_factory=dict)
    pages: dict[str | None, OrderPage] = field(default_factory=dict)
    reads: int = 0

    def order(self, order_id):
        self.reads += 1
        if order_id not in self.orders:
            raise NotFound(order_id)
        return self.orders[order_id]

    def changed_orders(self, cursor):
        return self.pages.get(cursor, OrderPage((), cursor or ""))


@dataclass
class OrderStates(MemoryStates):
    """Keeps orders as PostgreSQL does: `None` changes nothing, and time passes."""

    now: float = 0.0
    sent_at: dict[str, float] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)

    def order(self, order_id):
        record = self.orders.get(order_id)
        sent = self.sent_at.get(order_id)
        return record and replace(record, sent_age=None if sent is None else self.now - sent)

    def save_order(self, record):
        if record.sent_age is not None:
            self.sent_at[record.order_id] = self.now - record.sent_age
        known = self.orders.get(record.order_id)
        kept = {name: getattr(known, name) for name in ("order", "vtex_order_id", "operation_id") if known}
        kept = {name: value for name, value in kept.items() if getattr(record, name) is None}
        self.orders[record.order_id] = replace(record, **kept)
        self.saved.append(record.state)

    def results(self, order_id):
        return [replace(one, age=self.now - (one.age or 0.0)) for one in self.posted.get(order_id, [])]


class Shop(World):
    """One store with an order on the marketplace, and the engine's part: intents, statuses and time."""

    def __init__(self, status="paid", **rules: Any) -> None:
        super().__init__(OrderVtex(), OrderMarketplace(), OrderStates(), Rules(**rules))
        for sku in ("13", "14"):
            self.vtex.products[sku] = a_product(sku)
            self.vtex.offers[sku] = an_offer(sku, slas=("Normal",))
        self.marketplace.manifest = a_manifest(polls_orders=True)
        self.marketplace.orders[KEY] = an_order(status)
        self.intent: Any = None
        self.status, self.hash, self.looks = "new", None, 0
        self.ended: list[Ending] = []

    def turn(self, **changes: Any) -> Ending:
        """One attempt at the order; an error of a door leaves the intent open, as the engine does."""
        confirmed = None if self.intent is not None else self.states.known.get(("order", KEY))
        row = Row("order", KEY, 1, status=self.status, intent=self.intent, confirmed=confirmed, looks=self.looks)
        row = replace(row, input_hash=self.hash, **changes)
        endings: list[Ending] = []
        for decided in self.decide(row):
            if isinstance(decided, Step):
                if decided.reference is not None:
                    self.intent = json.loads(json.dumps(decided.intent))
                endings += CONTEXTS["order"].write(self.link, decided)
            else:
                endings.append(decided)
        (ending,) = endings
        return self.settle(ending)

    def settle(self, ending: Ending) -> Ending:
        self.remember(ending)
        if ending.definite or ending.confirmed:
            self.intent = None
        outcome = ending.outcome
        self.status = {Done: "done", Refused: "refused", Postponed: "delayed"}[type(outcome)]
        self.hash = outcome.input_hash if isinstance(outcome, Refused) else None
        self.looks += isinstance(outcome, Done) and outcome.look_again is not None
        self.ended.append(ending)
        return ending

    def hear(self, *results: IntegrationAnswer) -> None:
        """VTEX posts results now."""
        self.states.posted.setdefault(KEY, []).extend(replace(one, age=self.states.now) for one in results)

    def later(self, seconds: float) -> None:
        self.states.now += seconds

    def created_in_vtex(self, status="waiting-ffmt-authorization", **changes: Any) -> None:
        self.vtex.orders[VTEX_ID] = replace(VtexOrder(VTEX_ID, KEY, status, 26930), **changes)

    @property
    def record(self) -> OrderRecord:
        return self.states.orders[KEY]

    @property
    def state(self) -> str:
        return self.record.state

    @property
    def codes(self) -> list[str]:
        """Every code that was told so far."""
        return [story.code for ending in self.ended for story in ending.stories]


def an_enqueued_shop(status="paid", **rules: Any) -> Shop:
    shop = Shop(status, **rules)
    shop.turn()
    shop.later(1)
    shop.vtex.calls.clear()
    return shop


def asked(ending: Ending) -> list[tuple[str, str]]:
    return [(ask.context, ask.key) for ask in ending.outcome.then]


# ---------------------------------------------------------------- seen and created


def test_a_paid_order_is_validated_once_and_enqueued():
    shop = Shop()
    ending = shop.turn()
    assert shop.vtex.calls == ["look up", "product 13", "product 14", "simulate 13x2,14x1 01310-100", "create"]
    assert (shop.state, ending.outcome, ending.code) == ("enqueued", Done(look_again=TIMER), "O.R")
    assert shop.vtex.bodies[0]["marketplaceOrderStatus"] == "approved"
    assert shop.states.saved == ["seen", "sending", "enqueued"]
    assert messages.entry("O.R").status == "pending"


def test_the_order_is_marked_as_being_sent_before_the_call():
    shop = Shop()
    shop.vtex.answers = [UnknownOutcome("cut", side="vtex")]
    with pytest.raises(UnknownOutcome):
        shop.turn()
    assert shop.state == "sending"
    assert shop.intent["reference"] == shop.record.reference


def test_neither_intents_nor_endings_nor_errors_hold_personal_data():
    shop = Shop()
    (step,) = shop.decide(Row("order", KEY, 1))
    kept = json.dumps(step.intent) + repr(step)
    shop.vtex.answers = [a_result("EOI005", problems=(Problem("FMT001", "Checkout", "", "state is missing"),))]
    for _ in range(2):
        shop.turn()
    shop.marketplace.orders[KEY] = an_order(total=1)
    shop.turn()
    kept += json.dumps([asdict(replace(ending, outcome=Done())) for ending in shop.ended], default=str)
    kept += repr([ending.outcome for ending in shop.ended]) + repr(shop.record.problems)
    assert [text for text in PERSONAL if text in kept] == []


def test_an_item_that_vtex_does_not_offer_holds_the_order_and_shows_its_zero():
    shop = Shop()
    del shop.vtex.offers["14"]
    ending = shop.turn()
    assert (shop.state, ending.code, ending.outcome.wait) == ("retry", "O.D", 60)
    assert [problem.value for problem in shop.record.problems] == ["14"]
    assert asked(ending) == [("stock", "14")]
    assert ending.outcome.then[0].urgency == Urgency.REMOVE
    assert shop.vtex.bodies == []


def test_all_findings_are_one_story():
    shop = Shop()
    shop.vtex.products["13"] = a_product("13", active=False)
    shop.vtex.offers["14"] = an_offer("14", slas=())
    ending = shop.turn()
    (story,) = ending.stories
    assert [(problem.code, problem.value) for problem in story.problems] == [("O.F", "13"), ("O.D", "14")]


def test_the_waits_of_a_held_order_grow_and_the_same_findings_are_told_once():
    shop = Shop()
    shop.vtex.offers.clear()
    waits = [shop.turn().outcome.wait for _ in range(6)]
    assert waits == [60, 120, 240, 480, 600, 600]
    assert shop.codes == ["O.D"]


def test_a_held_order_is_sent_when_everything_is_there_again():
    shop = Shop()
    offer = shop.vtex.offers.pop("14")
    shop.turn()
    shop.vtex.offers["14"] = offer
    shop.turn()
    assert shop.state == "enqueued"
    assert shop.record.problems == ()


def test_the_advisory_policy_sends_it_anyway_and_says_so():
    shop = Shop(order_policy="advisory")
    del shop.vtex.offers["14"]
    ending = shop.turn()
    assert (shop.state, shop.codes) == ("enqueued", ["O.H", "O.R"])
    assert asked(ending) == [("stock", "14")]


def test_an_order_that_vtex_does_not_simulate_is_held_with_its_reason():
    shop = Shop()
    shop.vtex.refuses = Refusal([Problem("CHK003", "VTEX", "CHK003", "no such country")])
    ending = shop.turn()
    assert (shop.state, ending.problems[0].fix) == ("retry", "no such country")


@pytest.mark.scenario("ORD-40", rule=True)
def test_a_total_that_its_parts_do_not_make_is_held_or_sent_by_policy():
    strict, advisory = Shop(), Shop(order_policy="advisory")
    for shop in (strict, advisory):
        shop.marketplace.orders[KEY] = an_order(total=30000)
        shop.turn()
    assert (strict.state, strict.codes, strict.vtex.bodies) == ("failed", ["O.I"], [])
    assert (advisory.state, advisory.codes) == ("enqueued", ["O.H", "O.R"])


def test_an_unpaid_order_without_an_address_waits_for_its_payment():
    shop = Shop()
    shop.marketplace.orders[KEY] = an_order("unpaid", address=Address("", "", ""))
    ending = shop.turn()
    assert (shop.state, ending.outcome, shop.codes) == ("seen", Done(look_again=order.UNPAID_LOOK), [])
    shop.marketplace.orders[KEY] = an_order("paid")
    shop.turn()
    assert shop.state == "enqueued"


def test_an_order_that_the_marketplace_does_not_show_is_looked_at_again_and_then_forgotten():
    shop = Shop()
    shop.marketplace.orders.clear()
    shop.hear(INTEGRATED)
    outcomes = [shop.turn().outcome for _ in range(4)]
    assert [type(outcome) for outcome in outcomes] == [Done, Done, Done, Refused]
    assert shop.states.orders == {}


# ---------------------------------------------------------------- results


def test_results_integrate_and_then_approve():
    shop = an_enqueued_shop()
    shop.hear(INTEGRATED)
    ending = shop.turn()
    assert (shop.state, shop.record.vtex_order_id) == ("integrated", VTEX_ID)
    assert asked(ending) == [("stock", "13"), ("stock", "14")]
    assert ending.stories[0].params["link"].endswith(f"/admin/orders/{VTEX_ID}")
    shop.hear(APPROVED)
    ending = shop.turn()
    assert (shop.state, ending.outcome, shop.record.approved) == ("approved", Done(), True)
    assert shop.codes == ["O.R", "O.A", "O.S"]
    assert shop.marketplace.reads == 1
    assert shop.vtex.calls == []


RESULTS = (
    INTEGRATED,
    APPROVED,
    a_result("EOI007", operation="op-2"),
    a_result("EOI008", "ApproveOrder", operation="op-3"),
    a_result("EOI002", operation="op-4"),
    a_result("EOI010", operation="op-5"),
)


@pytest.mark.scenario("ORD-10", rule=True)
@given(st.data())
def test_any_order_and_number_of_results_ends_the_same(data):
    doubled = data.draw(st.lists(st.sampled_from(RESULTS), max_size=4))
    told = data.draw(st.permutations([*RESULTS, *doubled]))
    shop = an_enqueued_shop()
    shop.created_in_vtex()
    for one in told:
        shop.hear(one)
        if data.draw(st.booleans()):
            shop.turn()
            shop.later(data.draw(st.sampled_from((0.5, 90.0))))
    shop.turn()
    assert (shop.state, shop.record.approved, shop.record.vtex_order_id) == ("approved", True, VTEX_ID)
    assert sorted(set(shop.codes) & {"O.A", "O.S"}) == ["O.A", "O.S"]
    assert shop.codes.count("O.A") == shop.codes.count("O.S") == 1
    assert shop.turn().stories == ()


def test_results_of_an_order_that_was_never_sent_change_nothing():
    shop = Shop()
    shop.vtex.offers.clear()
    shop.hear(INTEGRATED, APPROVED)
    shop.turn()
    assert shop.state == "retry"
    assert shop.vtex.bodies == shop.vtex.approvals == []


def test_without_a_result_the_order_is_looked_up_and_taken_as_integrated():
    shop = an_enqueued_shop()
    shop.later(TIMER)
    shop.created_in_vtex("ready-for-handling")
    shop.turn()
    assert (shop.state, shop.vtex.bodies[1:]) == ("approved", [])
    assert shop.codes == ["O.R", "O.A", "O.S"]


def test_before_the_timer_is_over_nothing_is_looked_up():
    shop = an_enqueued_shop()
    ending = shop.turn()
    assert shop.vtex.calls == []
    assert ending.outcome.look_again == pytest.approx(TIMER - 1)
    assert ending.stories == ()


def test_without_a_result_and_without_an_order_it_is_sent_again_harmlessly():
    shop = an_enqueued_shop()
    shop.later(TIMER)
    shop.turn()
    assert (shop.state, len(shop.vtex.bodies)) == ("enqueued", 2)
    shop.created_in_vtex()
    shop.hear(a_result("EOI007", operation="op-2"))
    shop.turn()
    assert shop.state == "integrated"


# ---------------------------------------------------------------- never twice


@pytest.mark.parametrize("arrived", [True, False])
def test_a_time_out_after_the_commit_never_makes_a_second_order(arrived):
    shop = Shop()
    shop.vtex.answers = [UnknownOutcome("time-out", side="vtex")]
    with pytest.raises(UnknownOutcome):
        shop.turn()
    if arrived:
        shop.created_in_vtex()
    shop.later(5)
    shop.vtex.calls.clear()
    shop.turn()
    assert shop.vtex.calls[0] == "look up"
    assert len(shop.vtex.bodies) == (1 if arrived else 2)
    assert shop.state == ("integrated" if arrived else "enqueued")


def test_a_worker_that_died_after_sending_is_followed_by_a_look_up():
    shop = Shop()
    (step,) = shop.decide(Row("order", KEY, 1))
    shop.states.save_order(step.record)
    shop.intent = step.intent
    shop.created_in_vtex()
    shop.vtex.calls.clear()
    shop.turn()
    assert (shop.vtex.calls, shop.state) == (["look up"], "integrated")


class SeenLater(dict[str, VtexOrder]):
    """Orders that the first look-up misses."""

    missed = False

    def __contains__(self, key: object) -> bool:
        seen, self.missed = self.missed, True
        return seen and super().__contains__(key)


def test_an_order_that_exists_already_is_ours_when_the_look_up_says_so():
    shop = Shop()
    shop.vtex.answers = [a_result("EOI007", age=None)]
    shop.created_in_vtex()
    shop.vtex.orders = SeenLater(shop.vtex.orders)
    shop.turn()
    assert len(shop.vtex.bodies) == 1
    assert (shop.state, shop.record.vtex_order_id, shop.codes) == ("integrated", VTEX_ID, ["O.A"])


def test_an_order_that_this_database_never_saw_is_found_and_not_created():
    shop = Shop()
    shop.created_in_vtex()
    shop.turn()
    assert shop.vtex.bodies == []
    assert (shop.state, shop.record.vtex_order_id, shop.codes) == ("integrated", VTEX_ID, ["O.A"])


def test_an_order_of_somebody_else_under_our_id_is_not_taken_for_ours():
    shop = an_enqueued_shop()
    shop.created_in_vtex(marketplace_order_id="another")
    shop.later(TIMER)
    ending = shop.turn()
    assert (shop.state, ending.code) == ("failed", "O.N")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("code", "inner", "state", "told"),
    [
        ("EOI000", (), "retry", "O.N"),
        ("EOI001", (), "retry", "O.N"),
        ("EOI001", ("FMT005",), "retry", "O.D"),
        ("EOI001", ("FMT015",), "failed", "O.I"),
        ("EOI001", ("ORD015.2",), "retry", "V0"),
        ("EOI002", (), "retry", "O.D"),
        ("EOI003", (), "retry", "O.J"),
        ("EOI004", (), "failed", "O.N"),
        ("EOI005", (), "failed", "O.I"),
        ("EOI006", (), "retry", "V0"),
        ("EOI007", (), "retry", "O.N"),
        ("EOI010", (), "retry", "V0"),
        ("EOI099", (), "retry", "O.N"),
    ],
)
def test_each_refusal_has_its_reaction(code, inner, state, told, at_once):
    no = a_result(code, inner_codes=inner, problems=(Problem("X1", "Checkout", "", "SKU 13: why"),))
    shop = Shop() if at_once else an_enqueued_shop()
    if at_once:
        shop.vtex.answers = [replace(no, age=None)]
    else:
        shop.hear(no)
    ending = shop.turn()
    assert (shop.state, ending.code) == (state, told)
    assert isinstance(ending.outcome, Postponed if state == "retry" else Refused)
    assert "SKU 13: why" in ending.stories[-1].params["errors"]
    assert shop.record.problems == ending.problems


def test_an_undocumented_refusal_sets_the_order_aside_visibly():
    shop = Shop()
    shop.vtex.answers = [Refusal([Problem("vtex", "VTEX", "400", "affiliate has no such thing")])]
    ending = shop.turn()
    assert (shop.state, ending.code) == ("failed", "O.N")
    assert "affiliate has no such thing" in ending.problems[0].fix


def test_a_stock_refusal_refreshes_the_stock_of_every_sku_and_is_tried_again():
    shop = an_enqueued_shop()
    shop.hear(a_result("EOI002"))
    ending = shop.turn()
    assert asked(ending) == [("stock", "13"), ("stock", "14")]
    shop.later(60)
    shop.turn()
    assert (shop.state, len(shop.vtex.bodies)) == ("enqueued", 2)
    shop.later(1)
    assert isinstance(shop.turn().outcome, Done)
    assert len(shop.vtex.bodies) == 2  # the old refusal does not count for the new sending
    shop.hear(a_result("EOI002"))  # the old result once more
    shop.turn()
    assert shop.state == "enqueued"
    shop.hear(a_result("EOI002", operation="op-2"))
    assert shop.turn().outcome.wait == 120


def test_a_refusal_without_an_operation_id_counts_for_what_was_sent_before_it_only():
    shop = an_enqueued_shop()
    shop.hear(a_result("EOI002", operation=""))
    shop.turn()
    shop.later(60)
    shop.turn()
    shop.later(1)
    shop.turn()
    assert shop.state == "enqueued"
    shop.hear(a_result("EOI002", operation=""))
    shop.turn()
    assert shop.state == "retry"


def test_a_time_out_between_refusals_does_not_make_the_hub_forget_how_often_it_tried():
    shop = Shop()
    shop.vtex.answers = [a_result("EOI002", age=None), UnknownOutcome("cut", side="vtex"), a_result("EOI002", age=None)]
    assert shop.turn().outcome.wait == 60
    shop.later(60)
    with pytest.raises(UnknownOutcome):
        shop.turn()
    shop.later(5)
    assert shop.turn().outcome.wait == 120


def test_an_order_cancelled_after_a_stock_refusal_is_tried_no_more():
    shop = an_enqueued_shop()
    shop.hear(a_result("EOI002"))
    shop.turn()
    shop.marketplace.orders[KEY] = an_order("cancelled")
    ending = shop.turn()
    assert (shop.state, ending.code, ending.outcome) == ("cancelled_before_integration", "O.Q", Done())


def test_refusals_without_a_reason_are_bounded_and_name_the_operation():
    shop = Shop()
    shop.vtex.answers = [a_result("EOI000", operation=f"op-{n}", age=None) for n in range(10)]
    while shop.states.orders.get(KEY) is None or shop.state == "retry":
        ending = shop.turn()
        shop.later(600)
        assert len(shop.vtex.bodies) <= 6
    assert (shop.state, len(shop.vtex.bodies)) == ("failed", 6)
    assert "operation op-5" in [problem.field for problem in ending.problems]


def test_what_was_set_aside_is_sent_again_only_when_it_changed_or_somebody_asks():
    shop = Shop()
    shop.vtex.answers = [a_result("EOI005", age=None), a_result("EOI005", operation="op-2", age=None)]
    shop.turn()
    ending = shop.turn()
    assert (len(shop.vtex.bodies), ending.stories, ending.problems) == (1, (), shop.record.problems)
    shop.marketplace.orders[KEY] = an_order(buyer=replace(an_order().buyer, document="00000000272"))
    shop.turn()
    assert (shop.state, len(shop.vtex.bodies)) == ("failed", 2)
    shop.hash = None  # a person wants it sent again
    shop.turn()
    assert (shop.state, len(shop.vtex.bodies)) == ("enqueued", 3)


# ---------------------------------------------------------------- payment


def test_an_unpaid_order_is_created_as_new_and_approved_at_its_payment():
    shop = an_enqueued_shop("unpaid")
    assert shop.vtex.bodies[0]["marketplaceOrderStatus"] == "new"
    shop.hear(INTEGRATED)
    ending = shop.turn()
    assert (shop.state, ending.outcome.look_again, shop.vtex.approvals) == ("integrated", order.UNPAID_LOOK, [])
    shop.marketplace.orders[KEY] = an_order("paid")
    shop.turn()
    assert shop.vtex.approvals == [KEY]
    shop.later(1)
    shop.turn()
    assert shop.vtex.approvals == [KEY]
    shop.hear(APPROVED)
    shop.turn()
    assert shop.state == "approved"


def test_a_payment_before_the_integration_is_kept():
    shop = an_enqueued_shop("unpaid")
    shop.marketplace.orders[KEY] = an_order("paid")
    shop.turn()
    assert (shop.state, shop.vtex.approvals) == ("enqueued", [])
    shop.hear(INTEGRATED)
    shop.turn()
    assert shop.vtex.approvals == [KEY]
    assert shop.codes == ["O.R", "O.A"]


@pytest.mark.parametrize("at_once", [True, False])
def test_an_approval_that_comes_too_early_is_told_again_after_a_pause(at_once):
    shop = an_enqueued_shop("unpaid")
    shop.hear(INTEGRATED)
    shop.turn()
    shop.created_in_vtex()
    shop.marketplace.orders[KEY] = an_order("paid")
    no = a_result("EOI008", "ApproveOrder", operation="op-9")
    if at_once:
        shop.vtex.answers = [replace(no, age=None)]
    ending = shop.turn()
    if not at_once:
        shop.later(1)
        shop.hear(no)
        ending = shop.turn()
    assert (shop.state, ending.outcome.wait, shop.vtex.approvals) == ("integrated", 60, [KEY])
    shop.later(60)
    shop.turn()
    assert shop.vtex.approvals == [KEY, KEY]
    shop.hear(APPROVED)
    shop.turn()
    assert shop.state == "approved"


def test_an_approval_refused_for_the_status_adopts_what_vtex_says():
    shop = an_enqueued_shop("unpaid")
    shop.hear(INTEGRATED)
    shop.turn()
    shop.marketplace.orders[KEY] = an_order("paid")
    shop.created_in_vtex("handling")
    shop.vtex.answers = [a_result("EOI009", "ApproveOrder", age=None)]
    shop.turn()
    assert shop.state == "approved"


def test_an_approval_without_a_result_is_looked_up_and_told_again():
    shop = an_enqueued_shop()
    shop.hear(INTEGRATED)
    shop.turn()
    shop.created_in_vtex()
    shop.later(TIMER)
    shop.turn()
    assert shop.vtex.calls == ["look up", "approve"]


@pytest.mark.parametrize(("decision", "state"), [("ready-for-handling", "approved"), ("canceled", "cancelled")])
def test_an_order_waits_for_the_sellers_decision(decision, state):
    shop = an_enqueued_shop()
    shop.created_in_vtex("waiting-for-manual-authorization")
    shop.hear(a_result("EOI011"))
    ending = shop.turn()
    assert (shop.state, ending.outcome.look_again) == ("waiting_authorization", order.DECISION_LOOK)
    assert shop.codes == ["O.R", "O.A", "O.T"]
    shop.turn()
    assert shop.codes == ["O.R", "O.A", "O.T"]
    shop.created_in_vtex(decision)
    ending = shop.turn()
    assert (shop.state, ending.outcome) == (state, Done())


def test_an_authorised_order_that_still_waits_for_payment_is_approved():
    shop = an_enqueued_shop()
    shop.created_in_vtex("waiting-for-manual-authorization")
    shop.hear(a_result("EOI011"))
    shop.turn()
    shop.created_in_vtex("waiting-ffmt-authorization")
    shop.later(TIMER)
    shop.turn()
    assert shop.vtex.approvals == [KEY]


# ---------------------------------------------------------------- cancelled


@pytest.mark.parametrize("seen_before", [True, False])
def test_an_order_cancelled_before_it_was_sent_never_reaches_vtex(seen_before):
    shop = Shop()
    if seen_before:
        shop.vtex.offers.clear()
        shop.turn()
        shop.vtex.calls.clear()
    shop.marketplace.orders[KEY] = an_order("cancelled")
    ending = shop.turn()
    assert (shop.state, ending.code, ending.outcome) == ("cancelled_before_integration", "O.X", Done())
    assert shop.vtex.calls == ["look up"]  # nothing is cancelled that may stand in VTEX all the same
    assert shop.turn().stories == ()


def test_an_order_cancelled_while_its_result_is_unknown_waits_until_it_is_known():
    shop = an_enqueued_shop()
    shop.marketplace.orders[KEY] = an_order("cancelled")
    ending = shop.turn()
    assert (shop.state, ending.code) == ("enqueued", "O.M")
    shop.later(TIMER)
    ending = shop.turn()
    assert (shop.state, ending.code, len(shop.vtex.bodies)) == ("cancelled_before_integration", "O.X", 1)


def test_an_order_cancelled_after_it_reached_vtex_is_told_of_once():
    shop = an_enqueued_shop()
    shop.hear(INTEGRATED, APPROVED)
    shop.turn()
    shop.marketplace.orders[KEY] = an_order("cancelled")
    ending = shop.turn()
    assert (shop.state, [story.code for story in ending.stories]) == ("approved", ["O.CX"])
    assert shop.record.problems[0].value == VTEX_ID
    assert shop.turn().stories == ()


def test_an_order_that_vtex_has_cancelled_already_is_told_of():
    shop = an_enqueued_shop()
    shop.created_in_vtex("canceled")
    shop.later(TIMER)
    shop.turn()
    assert (shop.state, shop.codes) == ("cancelled", ["O.R", "O.G"])
    assert shop.record.problems[0].code == "O.G"


def test_a_given_up_order_that_turns_up_in_vtex_after_all_is_integrated_and_told_of():
    shop = an_enqueued_shop()
    shop.marketplace.orders[KEY] = an_order("cancelled")
    shop.later(TIMER)
    shop.turn()
    shop.hear(INTEGRATED)
    shop.turn()
    assert (shop.state, shop.codes[-2:]) == ("integrated", ["O.A", "O.CX"])


# ---------------------------------------------------------------- polling


def poll(world: World) -> Ending:
    (ending,) = world.decide(world.row("order", order.POLL_KEY))
    world.remember(ending)
    return ending


def test_a_poll_asks_for_every_changed_order_once_and_comes_back():
    shop = Shop()
    shop.marketplace.pages = {None: OrderPage(("1", "2"), "a", more=True), "a": OrderPage(("2", "3"), "b")}
    ending = poll(shop)
    assert asked(ending) == [("order", "1"), ("order", "2"), ("order", "3")]
    assert {ask.source for ask in ending.outcome.then} == {"poll"}
    assert ending.outcome.look_again == 60


def test_the_cursor_moves_only_after_everybody_it_passed_was_asked_for():
    shop = Shop()
    shop.marketplace.pages = {None: OrderPage(("1",), "a"), "a": OrderPage(("2",), "b")}
    facts = CONTEXTS["order"].read(shop.link, Item(order.POLL_KEY, {"order": shop.row("order", order.POLL_KEY)}))
    assert facts.polled is not None  # the process dies here
    assert asked(poll(shop)) == [("order", "1")]
    assert shop.states.cursors == {}
    assert asked(poll(shop)) == [("order", "2")]
    assert shop.states.cursors == {"orders": "a"}


def test_a_cursor_that_an_operator_set_back_is_used():
    shop = Shop()
    shop.marketplace.pages = {None: OrderPage(("1",), "a"), "a": OrderPage(("2",), "b"), "0": OrderPage(("0",), "1")}
    poll(shop)
    poll(shop)
    shop.states.cursors["orders"] = "0"
    assert asked(poll(shop)) == [("order", "0")]


def test_many_pages_are_read_in_several_attempts():
    shop = Shop()
    pages: Sequence[str | None] = [None, *map(str, range(30))]
    shop.marketplace.pages = {page: OrderPage((f"o{n}",), str(n), more=n < 25) for n, page in enumerate(pages)}
    endings = [poll(shop) for _ in range(3)]
    assert [ending.outcome.look_again for ending in endings] == [order.MORE_AT_ONCE, order.MORE_AT_ONCE, 60]
    assert [key for ending in endings for _, key in asked(ending)] == [f"o{n}" for n in range(26)]


def test_every_code_that_is_told_has_a_text():
    for code in ("O.A", "O.D", "O.F", "O.G", "O.H", "O.I", "O.J", "O.M", "O.N", "O.Q", "O.R", "O.S", "O.T", "O.X",
                 "O.CX", "V0"):  # fmt: skip
        assert messages.entry(code)
