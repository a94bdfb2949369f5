"""ORD: each order of the marketplace stands in VTEX once, whatever calls, results and time-outs do; nobody is named.

Judged by both simulators: what the marketplace sold is compared with what VTEX created. ORD-29 to ORD-36 (deliveries
by the marketplace, pickup points, taxes, labels, company buyers, payment data) have no test: the hub sets such orders
aside, or leaves these fields out.
"""

import base64
import itertools
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import requests

from hub import messages
from hub.resending import resend
from hub.simulators.control import SeenOrder
from hub.simulators.marketplace_control import Basket, Told
from tests.cell import PROFILES, Cell, Shop, until

EVERY_PROFILE = pytest.mark.parametrize("marketplace", PROFILES)
EVENTS_OR_POLLS = pytest.mark.parametrize("marketplace", ["sandbox-sync", "sandbox-lot"])
QUICK: dict[str, Any] = {"order_waits": [0.3], "result_timer_seconds": 1.0}
PATIENT: dict[str, Any] = {"order_waits": [0.3], "result_timer_seconds": 60.0}
"""So patient with results that only a result can be why something happened."""

SECONDS = 60.0
RESULT = "order-integration/notification/processing-result"
BUYER = {
    "first_name": "Zuleica",
    "last_name": "Quintanilha",
    "email": "zuleica.quintanilha@example.net",
    "document": "39053344705",
    "phone": "+5511987654321",
}
ADDRESS = {"street": "Ladeira da Misericordia", "receiver": "Zuleica Quintanilha"}
PERSONAL = (*BUYER.values(), ADDRESS["street"])


# ---------------------------------------------------------------- the cast


def a_shop(cell: Cell, marketplace: str = "sandbox-sync", *, skus: int = 1, **options: Any) -> tuple[Shop, list[str]]:
    """A store with SKUs in VTEX. Where the marketplace sends no events its orders are polled."""
    settings = {**QUICK, **options.pop("settings", {})}
    polls = options.pop("polls", marketplace == "sandbox-lot")
    shop = cell.shop(marketplace, settings=settings, polls=polls, **options)
    return shop, shop.grow(skus)


def place(shop: Shop, *skus: str, price: int = 9990, **options: Any) -> str:
    """A buyer orders two of each SKU; the order's id."""
    options = {"shipping_cents": 1950, **options}
    basket = [Basket(sku, 2, price) for sku in skus]
    return shop.cell.marketplace.place_order(shop.slug, basket, **options).id


def says(shop: Shop, order: str | None, code: str, **fields: Any) -> requests.Response:
    """POST a result as VTEX would; `token`, `account` and `an` forge it."""
    token, an = fields.pop("token", shop.token), fields.pop("an", shop.account)
    flow = "ApproveOrder" if code in {"SOI002", "EOI008", "EOI009"} else "PlaceOrder"
    body = {
        "accountName": fields.pop("account", shop.account),
        "success": code.startswith("SOI"),
        "flow": flow,
        "operationId": "0e4b6e5c-2c5e-4f5b-9c0e-000000000001",
        "marketplaceOrderId": order,
        "code": code,
        "message": None,
        "errors": None,
        "fields": {"mainOrderId": f"MKP-{order}"} if code.startswith("SOI") else None,
        **fields,
    }
    return requests.post(f"{shop.cell.intake_url}/{token}/{RESULT}?an={an}", json=body, timeout=10)


def hears(shop: Shop, order: str | None, code: str, **fields: Any) -> None:
    """A result that the hub has taken; it says 503 while it cannot store it, and nothing while it is away."""

    def taken() -> bool:
        try:
            return says(shop, order, code, **fields).status_code == 200
        except requests.ConnectionError:
            return False

    until(taken, seconds=SECONDS, why=f"the result {code} of {order} is not taken")


def an_error(description: str) -> dict[str, str]:
    """One of VTEX's reasons."""
    return {"source": "Order Integration", "code": "FMT001", "description": description}


# ---------------------------------------------------------------- what became of it


def record(shop: Shop, order: str) -> dict[str, Any] | None:
    return shop.cell.one(
        "select state, vtex_order_id, approved, problems, body from orders where store = %s and order_id = %s",
        shop.store.id,
        order,
    )


def state(shop: Shop, order: str) -> str | None:
    found = record(shop, order)
    return str(found["state"]) if found else None


def reaches(shop: Shop, order: str, wanted: str) -> None:
    until(
        lambda: state(shop, order) == wanted,
        seconds=SECONDS,
        why=lambda: f"{order} is not {wanted} but {state(shop, order)}: {shop.row('order', order)}",
    )


def codes(shop: Shop, order: str) -> list[str]:
    return [told["code"] for told in shop.told(order)]


def tells(shop: Shop, order: str, *wanted: str) -> None:
    until(
        lambda: set(wanted) <= set(codes(shop, order)),
        seconds=SECONDS,
        why=lambda: f"told of {order}: {codes(shop, order)}",
    )


def words(told: dict[str, Any]) -> str:
    return messages.text(told["code"], "en", told["params"])


def in_vtex(shop: Shop, order: str) -> SeenOrder | None:
    return shop.cell.vtex.orders(shop.account).get(order)


def rests(shop: Shop) -> None:
    """Nothing is under way any more, on either side."""
    shop.quiet(seconds=SECONDS)
    shop.cell.vtex.wait_until_idle()
    shop.quiet(seconds=SECONDS)


def agree(shop: Shop, *orders: str) -> None:
    """VTEX created exactly these orders of the marketplace, each once, and each for what the buyer paid."""
    rests(shop)
    sold, taken = shop.cell.marketplace.orders(shop.slug), shop.cell.vtex.orders(shop.account)
    assert {order for order, seen in taken.items() if seen.creations} == set(orders)
    for order in orders:
        seen = taken[order]
        assert (seen.creations, seen.order_id, seen.value) == (1, f"MKP-{order}", sold[order].total_cents)
        assert tuple(dict.fromkeys(sku for sku, _, _ in seen.items)) == sold[order].skus


def sent(shop: Shop, operation: str) -> list[Any]:
    """The bodies that VTEX was sent, oldest first."""
    return [json.loads(call["body"]) for call in shop.vtex_calls(operation)]


def delivered(shop: Shop, order: str) -> list[Told]:
    """What became of the events about an order, once each has come to its end; none where there are no events."""

    def told() -> list[Told]:
        return [one for one in shop.cell.marketplace.deliveries(shop.slug) if one.order == order]

    until(
        lambda: all(one.outcome != "waiting" for one in told()),
        seconds=SECONDS,
        why=f"events about {order} are still under way",
    )
    return told()


def leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{at}.{key}" if at else key)
    elif isinstance(tree, list) and tree:
        for value in tree:
            yield from leaves(value, at)
    else:
        yield at, tree


# ---------------------------------------------------------------- the way in, and the body


@EVERY_PROFILE
@pytest.mark.scenario("ORD-01", "ORD-04", "ORD-07", "ORD-09", "ORD-25", "ORD-37", "STK-16")
def test_a_paid_order_is_validated_as_a_whole_created_once_and_approved(cell: Cell, marketplace: str):
    shop, skus = a_shop(cell, marketplace, skus=2)
    order = place(shop, *skus, interest_cents=301)
    reaches(shop, order, "approved")
    agree(shop, order)
    if marketplace != "sandbox-lot":
        assert [event.status for event in delivered(shop, order)] == [200]

    (simulation,) = [one for one in sent(shop, "simulation") if one["postalCode"]]
    assert [(item["id"], item["quantity"]) for item in simulation["items"]] == [(sku, 2) for sku in skus]
    address = sent(shop, "create_order")[0]["shippingData"]["selectedAddresses"]
    assert [(one["postalCode"], one["country"]) for one in address] == [(simulation["postalCode"], "BRA")]
    assert {call["path"].rpartition("/")[2] for call in shop.vtex_calls("sku")} >= set(skus)

    (call,) = shop.vtex_calls("create_order")
    body = json.loads(call["body"])
    assert "affiliateId=MKP" in call["query"]
    assert (body["marketplaceOrderId"], body["marketplaceOrderStatus"]) == (order, "approved")
    assert (body["marketplacePaymentValue"], body["marketplaceInterestValue"]) == (4 * 9990 + 1950 + 301, 301)
    assert body["items"] == [{"id": sku, "price": 9990, "quantity": 2} for sku in skus]
    shipping = [entry["price"] for entry in body["shippingData"]["logisticsInfo"]]
    assert (len(shipping), sum(shipping)) == (len(skus), 1950)
    assert body["connectorEndpoint"] == shop.intake_url
    assert {place for place, value in leaves(body) if value is None} == {
        f"clientProfileData.{name}"
        for name in ("corporateDocument", "corporatePhone", "corporateName", "tradeName", "stateInscription")
    }

    assert all(shop.row("stock", sku) for sku in skus)  # VTEX has fewer of them now
    tells(shop, order, "O.R", "O.A", "O.S")
    assert sorted(codes(shop, order)) == ["O.A", "O.R", "O.S"]
    (integrated,) = shop.told(order, "O.A")
    assert f"/admin/orders/MKP-{order}" in words(integrated)
    assert order in words(integrated)
    found = record(shop, order)
    assert found is not None
    assert (found["vtex_order_id"], found["approved"]) == (f"MKP-{order}", True)


@pytest.mark.scenario("ORD-01")
def test_an_order_without_buyer_waits_visibly_for_its_payment(cell: Cell):
    shop, (sku,) = a_shop(cell, "sandbox-replace")
    order = place(shop, sku, status="pending")
    reaches(shop, order, "seen")
    shop.quiet(seconds=SECONDS)
    assert not shop.vtex_calls("create_order")
    cell.marketplace.move_order(shop.slug, order, "paid")
    reaches(shop, order, "approved")
    agree(shop, order)
    assert sent(shop, "create_order")[0]["marketplaceOrderStatus"] == "approved"


@EVERY_PROFILE
@pytest.mark.scenario("ORD-02", "ORD-03")
def test_lost_doubled_and_polled_notifications_make_one_order_each(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace, polls=True)
    orders = [place(shop, sku, copies=copies) for copies in (0, 1, 3)]
    for order in orders:
        reaches(shop, order, "approved")
        cell.marketplace.send_event(shop.slug, order, copies=2)
    agree(shop, *orders)
    assert len(shop.vtex_calls("create_order")) == len(orders)


# ---------------------------------------------------------------- validation


@pytest.mark.scenario("ORD-05")
@pytest.mark.parametrize("marketplace", ["sandbox-lot", "sandbox-replace"])
def test_an_item_that_vtex_does_not_offer_holds_the_order_and_zeroes_its_stock(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace)
    shop.published(sku, seconds=SECONDS)
    shop.change(sku, notify=False, stock=0)
    order = place(shop, sku)
    reaches(shop, order, "retry")
    shop.shows(sku, seconds=SECONDS, stock=0)
    tells(shop, order, "O.D")
    assert sku in words(shop.told(order, "O.D")[0])
    assert in_vtex(shop, order) is None
    shop.change(sku, notify=False, stock=5)
    reaches(shop, order, "approved")
    agree(shop, order)


@pytest.mark.scenario("ORD-06")
def test_everything_that_speaks_against_an_order_is_told_at_once(cell: Cell):
    shop, (idle, short) = a_shop(cell, skus=2)
    cell.vtex.catalog_habits(shop.account, missing_stock="zero")
    shop.change(idle, notify=False, active=False)
    shop.change(short, notify=False, stock=0)
    order = place(shop, idle, short)
    until(lambda: shop.told(order), seconds=SECONDS, why=lambda: f"nothing was told: {shop.row('order', order)}")
    told = shop.told(order)[0]
    assert {(problem["code"], problem["value"]) for problem in told["problems"]} >= {("O.F", idle), ("O.D", short)}
    assert any("carrier" in problem["fix"] for problem in told["problems"] if problem["value"] == short)
    assert in_vtex(shop, order) is None


@pytest.mark.scenario("ORD-40")
@pytest.mark.parametrize("policy", ["strict", "advisory"])
def test_a_total_that_its_parts_do_not_make_is_told_and_held_where_the_store_says_so(cell: Cell, policy: str):
    shop, (sku,) = a_shop(cell, settings={"order_policy": policy})
    order = place(shop, sku, total_cents=12345)
    if policy == "strict":
        reaches(shop, order, "failed")
        tells(shop, order, "O.I")
        assert "12345" in words(shop.told(order, "O.I")[0])
        agree(shop)
    else:
        reaches(shop, order, "approved")
        tells(shop, order, "O.H", "O.A")
        assert "12345" in words(shop.told(order, "O.H")[0])
        agree(shop, order)


# ---------------------------------------------------------------- results: late, doubled, inverted, missing


@pytest.mark.scenario("ORD-08", "ORD-09")
def test_enqueued_is_pending_and_only_results_make_it_more(cell: Cell):
    shop, (sku,) = a_shop(cell, settings=PATIENT)
    cell.vtex.order_habits(shop.account, silent=True)
    order = place(shop, sku)
    reaches(shop, order, "enqueued")
    shop.quiet(seconds=SECONDS)
    assert [(told["code"], told["status"]) for told in shop.told(order)] == [("O.R", "pending")]
    hears(shop, order, "SOI001")
    reaches(shop, order, "integrated")
    found = record(shop, order)
    assert found is not None
    assert (found["vtex_order_id"], found["approved"]) == (f"MKP-{order}", False)
    hears(shop, order, "SOI002")
    reaches(shop, order, "approved")
    shop.quiet(seconds=SECONDS)
    assert [(told["code"], told["status"]) for told in shop.told(order)] == [
        ("O.R", "pending"),
        ("O.A", "success"),
        ("O.S", "success"),
    ]
    agree(shop, order)


@pytest.mark.scenario("ORD-10")
def test_results_in_any_order_and_number_end_the_same(cell: Cell):
    shop, (sku,) = a_shop(cell, settings=PATIENT)
    cell.vtex.order_habits(shop.account, silent=True)
    sequences = [
        ("SOI001", "SOI002"),
        ("SOI002", "SOI001"),
        ("SOI002",),
        ("SOI002", "SOI002", "SOI001", "SOI001"),
        ("SOI001", "SOI001", "SOI002", "SOI001"),
    ]
    orders = {place(shop, sku): sequence for sequence in sequences}
    for order in orders:
        reaches(shop, order, "enqueued")
    for result in itertools.zip_longest(*[[(order, code) for code in codes] for order, codes in orders.items()]):
        for order, code in filter(None, result):
            hears(shop, order, code)
    for order in orders:
        reaches(shop, order, "approved")
    agree(shop, *orders)
    for order in orders:
        found = record(shop, order)
        assert found is not None
        assert (found["state"], found["vtex_order_id"], found["approved"]) == ("approved", f"MKP-{order}", True)
        assert sorted(codes(shop, order)) == ["O.A", "O.R", "O.S"]
    assert len(shop.vtex_calls("create_order")) == len(orders)


@pytest.mark.scenario("ORD-11")
def test_an_order_whose_results_never_come_is_found_by_its_id(cell: Cell):
    shop, (sku,) = a_shop(cell)
    cell.vtex.order_habits(shop.account, silent=True)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    tells(shop, order, "O.A", "O.S")
    assert [call["path"] for call in shop.vtex_calls("order")] != []
    assert all(call["path"].endswith(f"/MKP-{order}") for call in shop.vtex_calls("order"))
    assert len(shop.vtex_calls("create_order")) == 1
    agree(shop, order)


@pytest.mark.scenario("ORD-12")
def test_an_order_that_vtex_forgot_is_sent_again(cell: Cell):
    shop, (sku,) = a_shop(cell)
    cell.vtex.fault("lie", "create_order", account=shop.account, count=1)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    assert len(shop.vtex_calls("create_order")) == 2
    agree(shop, order)


@pytest.mark.scenario("ORD-12", "ORD-21")
def test_an_order_sent_again_while_vtex_still_creates_it_is_created_once(cell: Cell):
    shop, (sku,) = a_shop(cell)
    cell.vtex.order_habits(shop.account, create_delay=6.0)  # longer than the hub awaits a result
    order = place(shop, sku)
    until(lambda: len(shop.vtex_calls("create_order")) > 1, seconds=SECONDS, why="it was not sent again")
    reaches(shop, order, "approved")
    agree(shop, order)
    until(
        lambda: "EOI007" in [code for code, _ in (in_vtex(shop, order) or SeenOrder).results],
        seconds=SECONDS,
        why="VTEX did not say that it exists",
    )
    assert state(shop, order) == "approved"
    assert codes(shop, order).count("O.A") == 1


@pytest.mark.scenario("ORD-21")
def test_a_refusal_because_it_exists_is_success_once_looked_up(cell: Cell):
    shop, (sku,) = a_shop(cell, settings=PATIENT)
    cell.vtex.force(shop.account, "EOI007", created=True)
    order = place(shop, sku)
    until(
        lambda: state(shop, order) in ("integrated", "approved"), seconds=SECONDS, why=lambda: f"{codes(shop, order)}"
    )
    tells(shop, order, "O.A")
    assert [call["path"].rpartition("/")[2] for call in shop.vtex_calls("order")][:1] == [f"MKP-{order}"]
    assert len(shop.vtex_calls("create_order")) == 1
    agree(shop, order)


@pytest.mark.scenario("ORD-12", "ORD-20")
@pytest.mark.parametrize("fault", ["hang_after", "cut", "status"])
def test_a_lost_answer_to_the_creation_makes_no_second_order(cell: Cell, fault: str):
    shop, (sku,) = a_shop(cell)
    cell.vtex.order_habits(shop.account, create_delay=0.0)
    cell.vtex.fault(fault, "create_order", account=shop.account, count=2, seconds=0.5, status=502)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    agree(shop, order)
    asked = [call["operation"] for call in cell.vtex.journal(account=shop.account)]
    asked = [operation for operation in asked if operation in ("create_order", "order")]
    assert ("create_order", "create_order") not in itertools.pairwise(asked)  # looked up before it is sent again
    if fault == "hang_after":
        assert asked.count("create_order") == 1
    assert codes(shop, order).count("O.A") == 1


@EVENTS_OR_POLLS
@pytest.mark.scenario("ORD-10", "ORD-12", "ORD-21")
def test_a_storm_of_orders_ends_with_each_of_them_once(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace)
    cell.vtex.order_habits(
        shop.account, duplicates=1, inverted=True, result_loss=0.3, create_delay=0.2, result_jitter=0.3
    )
    rules = [
        cell.vtex.fault(kind, "create_order", account=shop.account, probability=0.2, seconds=0.3, status=500)
        for kind in ("cut", "hang_after", "status", "lie")
    ]
    for code, created in (("EOI006", True), ("EOI010", False), ("EOI002", False)):
        cell.vtex.force(shop.account, code, created=created, count=2)
    orders = [place(shop, sku, interest_cents=number) for number in range(6)]
    for order in orders:
        until(lambda order=order: in_vtex(shop, order), seconds=SECONDS, why=f"{order} was never sent")
    for rule in rules:
        cell.vtex.clear_faults(rule)
    for order in orders:
        reaches(shop, order, "approved")
    agree(shop, *orders)
    assert all(codes(shop, order).count("O.A") == 1 for order in orders)


# ---------------------------------------------------------------- payment


@EVENTS_OR_POLLS
@pytest.mark.scenario("ORD-13", "ORD-14")
def test_an_unpaid_order_is_integrated_and_approved_at_its_payment(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace, dials={"address_at": "always"})
    order = place(shop, sku, status="pending")
    reaches(shop, order, "integrated")
    rests(shop)
    assert sent(shop, "create_order")[0]["marketplaceOrderStatus"] == "new"
    assert not shop.vtex_calls("order_status")
    cell.marketplace.move_order(shop.slug, order, "paid")
    reaches(shop, order, "approved")
    (approval,) = sent(shop, "order_status")
    assert (approval["marketplaceOrderId"], approval["marketplaceOrderStatus"]) == (order, "approved")
    assert set(approval) == {"marketplaceOrderId", "marketplaceOrderStatus", "connectorName", "connectorEndpoint"}
    tells(shop, order, "O.S")
    agree(shop, order)


@pytest.mark.scenario("ORD-15")
def test_a_payment_before_the_integration_is_approved_after_it(cell: Cell):
    shop, (sku,) = a_shop(cell, settings=PATIENT, dials={"address_at": "always"})
    cell.vtex.order_habits(shop.account, silent=True)
    order = place(shop, sku, status="pending")
    reaches(shop, order, "enqueued")
    shop.quiet(seconds=SECONDS)
    reads = cell.marketplace.orders(shop.slug)[order].reads
    cell.marketplace.move_order(shop.slug, order, "paid")
    until(
        lambda: cell.marketplace.orders(shop.slug)[order].reads > reads, seconds=SECONDS, why="the payment was not read"
    )
    shop.quiet(seconds=SECONDS)
    assert not shop.vtex_calls("order_status")
    cell.vtex.order_habits(shop.account, silent=False)
    hears(shop, order, "SOI001")
    reaches(shop, order, "approved")
    assert len(shop.vtex_calls("order_status")) == 1
    agree(shop, order)


@pytest.mark.scenario("ORD-15")
def test_an_approval_that_came_too_early_is_said_again(cell: Cell):
    shop, (sku,) = a_shop(cell, settings=PATIENT, dials={"address_at": "always"})
    cell.vtex.force(shop.account, "EOI008", flow="ApproveOrder", count=2)
    order = place(shop, sku, status="pending")
    reaches(shop, order, "integrated")
    cell.marketplace.move_order(shop.slug, order, "paid")
    reaches(shop, order, "approved")
    assert len(shop.vtex_calls("order_status")) == 3
    agree(shop, order)


@pytest.mark.scenario("ORD-14")
@pytest.mark.parametrize("fault", ["hang_after", "cut"])
def test_a_lost_answer_to_the_approval_and_a_lost_result_end_approved(cell: Cell, fault: str):
    shop, (sku,) = a_shop(cell, dials={"address_at": "always"})
    order = place(shop, sku, status="pending")
    reaches(shop, order, "integrated")
    rests(shop)
    cell.vtex.order_habits(shop.account, silent=True)
    cell.vtex.fault(fault, "order_status", account=shop.account, count=1, seconds=0.5)
    cell.marketplace.move_order(shop.slug, order, "paid")
    reaches(shop, order, "approved")
    agree(shop, order)
    seen = in_vtex(shop, order)
    assert seen.status == "ready-for-handling", "VTEX does not know of it"
    assert [call["fault"] for call in shop.vtex_calls("order_status")][:1] == [fault]


@pytest.mark.scenario("ORD-22", "ORD-41")
@pytest.mark.parametrize(
    ("status", "adopted", "told"), [("handling", "approved", "O.S"), ("canceled", "cancelled", "O.G")]
)
def test_an_order_that_can_no_longer_be_approved_takes_over_its_status(
    cell: Cell, status: str, adopted: str, told: str
):
    shop, (sku,) = a_shop(cell, settings=PATIENT, dials={"address_at": "always"})
    order = place(shop, sku, status="pending")
    reaches(shop, order, "integrated")
    rests(shop)
    cell.vtex.move_order(shop.account, f"MKP-{order}", status=status)
    cell.marketplace.move_order(shop.slug, order, "paid")
    reaches(shop, order, adopted)
    tells(shop, order, told)
    assert [code for code, _ in cell.vtex.orders(shop.account)[order].results][-1] == "EOI009"
    agree(shop, order)
    assert len(shop.vtex_calls("order_status")) == 1


@pytest.mark.scenario("ORD-23")
@pytest.mark.parametrize(
    ("decision", "wanted"),
    [("waiting-ffmt-authorization", "approved"), ("ready-for-handling", "approved"), ("canceled", "cancelled")],
)
def test_a_divergent_order_waits_for_the_seller_and_follows_the_decision(cell: Cell, decision: str, wanted: str):
    shop, (sku,) = a_shop(cell)
    cell.vtex.order_habits(shop.account, divergence="manual")
    order = place(shop, sku, price=9500)
    reaches(shop, order, "waiting_authorization")
    tells(shop, order, "O.T")
    rests(shop)
    assert not shop.vtex_calls("order_status")
    cell.vtex.move_order(shop.account, f"MKP-{order}", status=decision)
    cell.marketplace.send_event(shop.slug, order)
    reaches(shop, order, wanted)
    agree(shop, order)


# ---------------------------------------------------------------- refusals


@pytest.mark.scenario("ORD-16")
@pytest.mark.parametrize("marketplace", ["sandbox-lot", "sandbox-replace"])
def test_a_stock_refusal_refreshes_the_stock_and_ends_with_a_cancellation(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace)
    cell.vtex.force(shop.account, "EOI002", count=1000)
    order = place(shop, sku)
    until(lambda: len(shop.vtex_calls("create_order")) > 1, seconds=SECONDS, why="it was not tried again")
    tells(shop, order, "O.D")
    assert shop.row("stock", sku) is not None
    cell.marketplace.move_order(shop.slug, order, "cancelled")
    reaches(shop, order, "cancelled_before_integration")
    tells(shop, order, "O.Q")
    rests(shop)
    tries = len(shop.vtex_calls("create_order"))
    cell.marketplace.send_event(shop.slug, order)
    delivered(shop, order)
    agree(shop)
    assert len(shop.vtex_calls("create_order")) == tries
    assert shop.row("order", order)["due_at"] is None


@pytest.mark.scenario("ORD-17")
def test_a_divergence_without_rule_is_told_with_the_link_and_passes_once_there_is_a_rule(cell: Cell):
    shop, (sku,) = a_shop(cell)
    cell.vtex.order_habits(shop.account, divergence="deny")
    order = place(shop, sku, price=9500)
    tells(shop, order, "O.J")
    assert f"https://{shop.account}.myvtex.com/admin/order-auth" in words(shop.told(order, "O.J")[0])
    until(lambda: len(shop.vtex_calls("create_order")) > 1, seconds=SECONDS, why="it was not tried again")
    assert in_vtex(shop, order).creations == 0
    cell.vtex.order_habits(shop.account, divergence="accept")
    reaches(shop, order, "approved")
    agree(shop, order)


@pytest.mark.scenario("ORD-18", "ORD-19")
@pytest.mark.parametrize(
    ("code", "sync", "told"), [("EOI004", False, "O.N"), ("EOI005", False, "O.I"), ("EOI005", True, "O.I")]
)
def test_a_refused_order_rests_visibly_until_it_is_sent_again(cell: Cell, code: str, sync: bool, told: str):
    shop, (sku,) = a_shop(cell)
    cell.vtex.force(shop.account, code, errors=[an_error("clientProfileData.phone: the very reason")], sync=sync)
    order = place(shop, sku)
    reaches(shop, order, "failed")
    tells(shop, order, told)
    assert "clientProfileData.phone: the very reason" in words(shop.told(order, told)[0])
    rests(shop)
    row = shop.row("order", order)
    assert (row["status"], row["work"]) == ("refused", "i")
    cell.marketplace.send_event(shop.slug, order)
    delivered(shop, order)
    rests(shop)
    assert len(shop.vtex_calls("create_order")) == 1  # the same is not sent again by itself
    resend(cell.pool, shop.store.id, [order], who="tests", contexts=("order",))
    reaches(shop, order, "approved")
    agree(shop, order)


@pytest.mark.scenario("ORD-19")
def test_an_order_without_what_vtex_demands_is_refused_before_it_is_sent(cell: Cell):
    shop, (sku,) = a_shop(cell)
    order = place(shop, sku, address={"postal_code": "", "country": ""}, buyer={"email": ""})
    reaches(shop, order, "failed")
    tells(shop, order, "O.I")
    (told,) = shop.told(order, "O.I")
    assert {problem["field"] for problem in told["problems"]} == {"postal code", "country", "buyer e-mail"}
    agree(shop)
    assert not shop.vtex_calls("create_order")


@pytest.mark.scenario("ORD-20")
@pytest.mark.parametrize(("code", "created"), [("EOI006", True), ("EOI006", False), ("EOI010", True)])
def test_a_failure_inside_vtex_is_looked_up_before_it_is_sent_again(cell: Cell, code: str, created: bool):
    shop, (sku,) = a_shop(cell)
    cell.vtex.force(shop.account, code, created=created)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    assert len(shop.vtex_calls("create_order")) == (1 if created else 2)
    assert shop.vtex_calls("order")
    agree(shop, order)


@pytest.mark.scenario("ORD-24")
@pytest.mark.parametrize("code", ["EOI000", "EOI001"])
def test_a_refusal_without_a_reason_is_tried_some_times_then_shown_with_its_operation(cell: Cell, code: str):
    shop, (sku,) = a_shop(cell, settings={"order_waits": [0.1]})
    cell.vtex.force(shop.account, code, count=1000)
    order = place(shop, sku)
    reaches(shop, order, "failed")
    rests(shop)
    assert 2 <= len(shop.vtex_calls("create_order")) <= 7
    told = shop.told(order, "O.N")[-1]
    assert "operation " in words(told)
    assert shop.row("order", order)["status"] == "refused"
    agree(shop)


# ---------------------------------------------------------------- cancelled before VTEX has it


@EVENTS_OR_POLLS
@pytest.mark.scenario("CAN-07")
def test_an_order_cancelled_before_it_was_sent_is_dropped(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace)
    shop.change(sku, notify=False, stock=0)
    order = place(shop, sku)
    reaches(shop, order, "retry")
    cell.marketplace.move_order(shop.slug, order, "cancelled")
    reaches(shop, order, "cancelled_before_integration")
    tells(shop, order, "O.X")
    shop.change(sku, notify=False, stock=5)
    cell.marketplace.send_event(shop.slug, order, copies=2)
    agree(shop)
    assert not shop.vtex_calls("create_order")


@EVENTS_OR_POLLS
@pytest.mark.scenario("CAN-09")
def test_an_order_cancelled_before_it_was_seen_is_recorded_and_never_created(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace)
    cell.marketplace.outage(shop.slug, "503", 60)
    order = place(shop, sku, copies=0)
    cell.marketplace.move_order(shop.slug, order, "cancelled", copies=1)
    cell.marketplace.outage(shop.slug, "off")
    reaches(shop, order, "cancelled_before_integration")
    tells(shop, order, "O.X")
    agree(shop)
    assert not shop.vtex_calls("create_order")


# ---------------------------------------------------------------- forgeries


@pytest.mark.scenario("ORD-38")
def test_results_for_another_account_another_token_or_an_unknown_order_change_nothing(cell: Cell):
    shop, (sku,) = a_shop(cell, settings=PATIENT)
    cell.vtex.order_habits(shop.account, silent=True)
    order = place(shop, sku)
    reaches(shop, order, "enqueued")
    shop.quiet(seconds=SECONDS)
    assert says(shop, order, "SOI002", token="x" * 43).status_code == 404
    hears(shop, order, "SOI002", account="somebody")
    hears(shop, order, "SOI002", an="somebody")
    hears(shop, None, "SOI002")
    hears(shop, "never-heard-of", "SOI002")
    until(lambda: shop.row("order", "never-heard-of"), seconds=SECONDS, why="it was not looked for")
    shop.quiet(seconds=SECONDS)
    assert state(shop, order) == "enqueued"
    assert codes(shop, order) == ["O.R"]
    assert record(shop, "never-heard-of") is None
    kept = shop.cell.all("select fate from notices where store = %s and kind = 'result'", shop.store.id)
    assert sorted(row["fate"] for row in kept) == ["accepted", "quarantined", "quarantined", "quarantined"]
    agree(shop, order)


@pytest.mark.scenario("ORD-38")
def test_a_result_that_came_before_anything_was_sent_is_nobodys(cell: Cell):
    shop, (sku,) = a_shop(cell)
    shop.change(sku, notify=False, stock=0)
    order = place(shop, sku)
    reaches(shop, order, "retry")
    for code in ("SOI001", "SOI002"):
        hears(shop, order, code)
    shop.quiet(seconds=SECONDS)
    assert state(shop, order) == "retry"
    cell.vtex.force(shop.account, "EOI004", count=1000)
    shop.change(sku, notify=False, stock=5)
    reaches(shop, order, "failed")
    assert {"O.A", "O.S"}.isdisjoint(codes(shop, order))
    agree(shop)


@pytest.mark.scenario("ORD-38")
@pytest.mark.parametrize("signature", ["bad", "old", "none"])
def test_a_forged_event_is_refused_and_nothing_is_read(cell: Cell, signature: str):
    shop, (sku,) = a_shop(cell, dials={"webhook_retries": 0})
    until(lambda: shop.row("order", "@poll") and shop.calls(operation="orders_find"), seconds=SECONDS, why="no poll")
    shop.quiet(seconds=SECONDS)
    order = place(shop, sku, copies=0)
    cell.marketplace.send_event(shop.slug, order, signature=signature)
    forged = [one for one in delivered(shop, order) if one.outcome != "lost"]
    assert [one.status for one in forged] == [401]
    shop.quiet(seconds=SECONDS)
    assert shop.row("order", order) is None
    assert cell.marketplace.orders(shop.slug)[order].reads == 0
    cell.marketplace.send_event(shop.slug, order)
    reaches(shop, order, "approved")
    agree(shop, order)


def test_an_unsigned_event_is_a_pointer_and_never_the_truth(cell: Cell):
    shop, (sku,) = a_shop(cell, "sandbox-replace")
    order = place(shop, sku, status="pending")
    reaches(shop, order, "seen")
    for forged in (order, "never-heard-of"):
        body = {"topic": "orders", "resource": {"id": forged}, "status": "paid", "total": 1}
        assert requests.post(f"{shop.intake_url}/events", json=body, timeout=10).status_code == 200
    until(lambda: shop.row("order", "never-heard-of"), seconds=SECONDS, why="it was not looked for")
    shop.quiet(seconds=SECONDS)
    assert state(shop, order) == "seen"
    assert record(shop, "never-heard-of") is None
    agree(shop)


# ---------------------------------------------------------------- processes that die


@pytest.mark.timeout(300)
@pytest.mark.scenario("ORD-42")
def test_orders_outlive_the_processes_that_work_on_them(own_cell: Cell):
    shop, (sku,) = a_shop(own_cell, settings=PATIENT)
    own_cell.vtex.order_habits(shop.account, silent=True)

    def kill(*names: str) -> None:
        for name in names:
            own_cell.stop(name, signal.SIGKILL)

    waiting = place(shop, sku)
    reaches(shop, waiting, "enqueued")  # between SOI003 and the result
    rule = own_cell.vtex.fault("hang_after", "create_order", account=shop.account, seconds=60.0)
    hung = place(shop, sku)  # VTEX has it, but the call that creates it never returns
    until(lambda: (seen := in_vtex(shop, hung)) and seen.creations, seconds=SECONDS, why="it was not sent")
    kill("first", "more")
    own_cell.vtex.clear_faults(rule)
    for code in ("SOI002", "SOI001"):
        hears(shop, waiting, code)
    unseen = place(shop, sku)
    assert delivered(shop, unseen)[-1].status == 200
    kill("intake")  # what it has answered is kept
    own_cell.start_intake()
    own_cell.start_worker("first", "first")
    own_cell.start_worker("more", "more")

    reaches(shop, waiting, "approved")
    reaches(shop, hung, "approved")
    reaches(shop, unseen, "enqueued")
    for code in ("SOI001", "SOI002"):
        hears(shop, unseen, code)
    reaches(shop, unseen, "approved")
    agree(shop, waiting, unseen, hung)
    assert {order: in_vtex(shop, order).attempts for order in (waiting, unseen, hung)} == dict.fromkeys(
        (waiting, unseen, hung), 1
    )


# ---------------------------------------------------------------- nobody is named


def kept_texts(cell: Cell) -> Iterator[tuple[str, str]]:
    """Everything that the hub keeps or says: each row of each table, each key of the broker, each log file."""
    tables = cell.all("select tablename from pg_tables where schemaname = %s order by 1", cell.settings.schema)
    for table in (row["tablename"] for row in tables):
        rows = cell.one(f"select coalesce(string_agg(t::text, E'\\n'), '') as text from \"{table}\" t")
        yield table, rows["text"] if rows else ""
    with redis.Redis.from_url(cell.settings.redis_url) as broker:
        for key in broker.scan_iter(count=1000):
            yield "redis", key.decode(errors="replace")
            match broker.type(key):
                case b"string":
                    values = [broker.get(key)]
                case b"list":
                    values = broker.lrange(key, 0, -1)
                case b"hash":
                    values = [part for pair in broker.hgetall(key).items() for part in pair]
                case b"set":
                    values = list(broker.smembers(key))
                case b"zset":
                    values = [member for member, _ in broker.zscan_iter(key)]
                case _:
                    values = []
            for value in filter(None, values):
                yield f"redis {key.decode(errors='replace')}", opened(value)
    for log in sorted(cell.directory.glob("*.log")):
        yield log.name, log.read_text()


def opened(value: bytes) -> str:
    """A value of the broker; the body of a Celery message is base64."""
    text = value.decode(errors="replace")
    try:
        tree = json.loads(text)
        return text + base64.b64decode(tree["body"]).decode(errors="replace")
    except (ValueError, KeyError, TypeError):
        return text


@EVENTS_OR_POLLS
@pytest.mark.scenario("PRV-02", "LOG-09")
def test_nothing_of_the_buyer_stands_anywhere_but_encrypted_in_the_order(cell: Cell, marketplace: str):
    shop, (sku,) = a_shop(cell, marketplace)
    person = {"buyer": BUYER, "address": ADDRESS}
    fine = place(shop, sku, **person)
    reaches(shop, fine, "approved")
    cell.vtex.force(shop.account, "EOI004", count=1)
    refused = place(shop, sku, **person)
    reaches(shop, refused, "failed")
    quoted = f"email {BUYER['email']} of document {BUYER['document']} (phone {BUYER['phone']}) is not allowed"
    cell.vtex.force(shop.account, "EOI005", errors=[an_error(quoted)], sync=True)
    told = place(shop, sku, **person)
    reaches(shop, told, "failed")
    cell.vtex.fault("hang_after", "create_order", account=shop.account, count=1, seconds=0.5)
    unsure = place(shop, sku, **person)
    reaches(shop, unsure, "approved")
    shop.change(sku, notify=False, stock=0)
    held = place(shop, sku, **person)
    reaches(shop, held, "retry")
    incomplete = place(shop, sku, buyer={**BUYER, "email": ""}, address={**ADDRESS, "country": "Brasil"})
    reaches(shop, incomplete, "failed")
    agree(shop, fine, unsure)
    assert any(BUYER["email"] in call["body"] for call in shop.vtex_calls("create_order"))  # it was there to be found

    kept = [(place, text.lower()) for place, text in kept_texts(cell)]
    assert {"orders", "interactions", "answers"} <= {place for place, text in kept if fine.lower() in text}
    assert not {
        (place, needle)
        for place, text in kept
        for needle in PERSONAL
        if needle.lower() in text or needle.encode().hex() in text
    }
    for order in (fine, refused, told, unsure, held, incomplete):
        found = record(shop, order)
        assert found is not None
        assert found["body"]
        assert not any(needle.encode() in bytes(found["body"]) for needle in PERSONAL)
