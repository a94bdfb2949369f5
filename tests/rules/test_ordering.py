"""The body of a VTEX order is what its schema demands, to the cent, and says nothing it does not know."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.errors import Problem
from hub.model import Address, Buyer, MarketplaceOrder, OrderItem, Simulation
from hub.rules.ordering import (
    Cart,
    findings,
    order_body,
    order_problems,
    pieces_of,
    short_of,
    shown_body,
    shown_order,
    total_of,
    total_problems,
)
from hub.simulators.vtex_orders import NewOrder
from tests.fakes import CHANNEL, a_product, an_offer
from tests.openapi import needs_openapi, schema_for

ORDER = MarketplaceOrder(
    order_id="900100200",
    status="paid",
    items=(OrderItem("13", 2, 9990, 1950), OrderItem("14", 1, 5000, 0), OrderItem("13", 1, 9991, 0)),
    total=37221,
    interest=300,
    buyer=Buyer("buyer@example.org", "Ana", "Silva", "11999990000", "00000000191"),
    address=Address("Ana Silva", "01310-100", "BRA", city="São Paulo", state="SP", street="Avenida Paulista"),
    payment_methods=("creditCardPaymentGroup",),
)
OFFERS = {"13": an_offer("13", slas=("Normal",)), "14": an_offer("14", slas=("Normal", "Express"))}

orders = st.builds(
    MarketplaceOrder,
    order_id=st.text(min_size=1, max_size=20),
    status=st.sampled_from(("paid", "unpaid")),
    items=st.lists(
        st.builds(
            OrderItem,
            st.from_regex(r"[1-9][0-9]{0,5}", fullmatch=True),
            st.integers(1, 999),
            st.integers(0, 10**9),
            st.integers(0, 10**6),
        ),
        min_size=1,
        max_size=8,
    ).map(tuple),
    total=st.integers(0, 10**12),
    interest=st.integers(0, 10**6),
    buyer=st.builds(Buyer, st.just("a@example.org"), st.just("Ana"), *[st.text(max_size=9)] * 3),
    address=st.builds(Address, *[st.text(max_size=9)] * 1, st.just("01310-100"), st.just("BRA"), *[st.text()] * 2),
    payment_methods=st.lists(st.text(max_size=9), max_size=2).map(tuple),
)


def cart(**changes):
    known = Cart(Simulation(OFFERS), {"13": a_product("13"), "14": a_product("14")})
    return replace(known, **changes)


@pytest.mark.scenario("ORD-07", "ORD-25", "ORD-28", rule=True)
def test_the_body_is_in_cents_with_logistics_beside_each_item_and_one_address():
    body = order_body(ORDER, OFFERS)
    assert [item["id"] for item in body["items"]] == ["13", "14", "13"]
    logistics = body["shippingData"]["logisticsInfo"]
    assert [(entry["price"], entry["selectedSla"]) for entry in logistics] == [(1950, "Normal"), (0, ""), (0, "Normal")]
    assert len(body["shippingData"]["selectedAddresses"]) == 1
    assert (body["marketplacePaymentValue"], body["marketplaceInterestValue"]) == (37221, 300)
    assert body["marketplaceOrderStatus"] == "approved"
    assert total_of(ORDER) == ORDER.total


@pytest.mark.scenario("ORD-13", rule=True)
def test_an_unpaid_order_is_new():
    assert order_body(replace(ORDER, status="unpaid"), OFFERS)["marketplaceOrderStatus"] == "new"


@pytest.mark.scenario("ORD-35", "ORD-37", rule=True)
def test_only_the_five_corporate_fields_are_null_and_what_is_unknown_is_left_out():
    def nulls(tree, at=""):
        if isinstance(tree, dict):
            return [place for key, value in tree.items() for place in nulls(value, f"{at}.{key}")]
        if isinstance(tree, list):
            return [place for value in tree for place in nulls(value, at)]
        return [at] if tree is None else []

    body = order_body(ORDER, {})
    assert [place.rpartition(".")[2] for place in nulls(body)] == [
        "corporateDocument", "corporatePhone", "corporateName", "tradeName", "stateInscription",
    ]  # fmt: skip
    assert "priceDivergenceAllowanceRate" not in body
    assert "number" not in body["shippingData"]["selectedAddresses"][0]
    assert body["shippingData"]["selectedAddresses"][0]["addressId"] == "1"


def test_the_connector_names_itself_or_leaves_that_to_the_door():
    assert "connectorEndpoint" not in order_body(ORDER, OFFERS, name="hub")
    body = order_body(ORDER, OFFERS, name="hub", endpoint="https://hub.example/v/x")
    assert (body["connectorName"], body["connectorEndpoint"]) == ("hub", "https://hub.example/v/x")


@needs_openapi
@pytest.mark.scenario("ORD-37", rule=True)
@given(orders)
def test_every_order_without_problems_is_valid_against_the_schema_of_vtex(order):
    body = order_body(order, OFFERS, name="hub", endpoint="https://hub.example/v/x")
    schema_for("vtex/external-marketplace-orders.json", "/api/order-integration/orders", "post", "request").check(body)
    assert order_problems(order) == ()


@given(orders)
def test_the_strict_reader_of_the_simulator_takes_every_order_without_problems(order):
    body = order_body(order, OFFERS, name="hub", endpoint="https://hub.example/v/x")
    assert NewOrder.model_validate(body).marketplace_payment_value == order.total


@pytest.mark.scenario("ORD-40", rule=True)
@given(orders)
def test_a_total_is_right_exactly_when_its_parts_make_it(order):
    assert total_problems(replace(order, total=total_of(order))) == ()
    (problem,) = total_problems(replace(order, total=total_of(order) + 1))
    assert (problem.code, problem.field) == ("O.I", "total")


def test_everything_that_is_wrong_is_told_at_once_without_a_persons_data():
    wrong = replace(
        ORDER,
        items=(OrderItem("", 0, -1, -2),),
        interest=-1,
        delivery="pickup-in-point",
        buyer=Buyer(" ", "", "", "11999990000", ""),
        address=Address("", "", "Brazil"),
    )
    found = order_problems(wrong)
    assert [problem.field for problem in found] == [
        "items.id", "quantity of SKU ", "interest", "price of SKU ", "shipping of SKU ", "delivery", "buyer e-mail",
        "buyer first name", "postal code", "receiver", "country",
    ]  # fmt: skip
    assert {problem.code for problem in found} == {"O.I"}
    assert "11999990000" not in repr(found)
    assert order_problems(ORDER) == ()


def test_no_items_are_a_problem():
    assert [problem.field for problem in order_problems(replace(ORDER, items=()))] == ["items"]


def test_the_receiver_is_the_buyer_when_nobody_else_is_named():
    order = replace(ORDER, address=replace(ORDER.address, receiver=""))
    assert order_problems(order) == ()
    assert order_body(order, OFFERS)["shippingData"]["selectedAddresses"][0]["receiverName"] == "Ana Silva"


@pytest.mark.scenario("ORD-04", rule=True)
def test_a_sku_in_two_lines_is_simulated_once_with_all_of_its_pieces():
    assert pieces_of(ORDER) == {"13": 3, "14": 1}


@pytest.mark.scenario("ORD-05", "ORD-06", rule=True)
@pytest.mark.parametrize(
    ("seen", "codes"),
    [
        (cart(), []),
        (cart(products={"13": None, "14": a_product("14")}), ["O.D"]),
        (cart(products={"13": a_product("13", active=False), "14": a_product("14")}), ["O.F"]),
        (cart(products={"13": a_product("13", product_active=False), "14": a_product("14")}), ["O.F"]),
        (cart(products={"13": a_product("13", channels=(9,)), "14": a_product("14")}), ["O.D"]),
        (cart(simulation=Simulation({"14": OFFERS["14"]})), ["O.D"]),
        (cart(simulation=Simulation({**OFFERS, "13": an_offer("13")})), ["O.D"]),
        (cart(simulation=Simulation({**OFFERS, "13": an_offer("13", slas=("N",), stock=2)})), ["O.D"]),
        (cart(simulation=Simulation({**OFFERS, "13": an_offer("13", slas=("N",), stock=None)})), []),
        (cart(products={"13": a_product("13", active=False, channels=())}, simulation=Simulation({})),
         ["O.F", "O.D", "O.D", "O.D"]),
    ],
)  # fmt: skip
def test_every_item_must_be_active_in_the_channel_deliverable_and_in_stock(seen, codes):
    found = findings(ORDER, seen, CHANNEL)
    assert [problem.code for problem in found] == codes
    assert "13" in short_of(found) or not codes


def test_skus_that_could_not_be_read_are_judged_by_the_simulation_alone():
    assert findings(ORDER, Cart(Simulation(OFFERS), {}), CHANNEL) == ()
    short = findings(ORDER, Cart(Simulation({"14": OFFERS["14"]}), {}), CHANNEL)
    assert [(problem.code, problem.value) for problem in short] == [("O.D", "13")]


def test_a_refused_simulation_blames_no_sku():
    refused = (Problem("O.D", "simulation", "400", "no such country"),)
    found = findings(ORDER, cart(simulation=Simulation({}), refused=refused), CHANNEL)
    assert found == refused
    assert short_of(found) == ()


@given(orders)
def test_what_a_log_shows_of_an_order_holds_no_person(order):
    marked = replace(
        order,
        buyer=Buyer("secret@example.org", "secret", "secret", "secret", "secret"),
        address=Address(*["secret"] * 11),
        order_id="7",
    )
    assert "secret" not in repr(shown_order(marked)) + repr(shown_body(order_body(marked, OFFERS)))
