"""ORD: orders on their way into VTEX, through a running hub: once, whatever the calls, results and time-outs do."""

import pytest

from hub.simulators.marketplace_control import Basket
from tests.cell import Cell, Shop, until

QUICK = {"order_waits": [0.3], "result_timer_seconds": 1.0}


def a_shop(cell: Cell, **options) -> tuple[Shop, str]:
    settings = {**QUICK, **options.pop("settings", {})}
    shop = cell.shop("sandbox-sync", settings=settings, **options)
    (sku,) = shop.grow(1)
    shop.published(sku)
    return shop, sku


def place(shop: Shop, sku: str, **options) -> str:
    return shop.cell.marketplace.place_order(shop.slug, [Basket(sku, 2, 9990)], shipping_cents=1950, **options).id


def state(shop: Shop, order: str) -> str | None:
    row = shop.cell.one("select state from orders where store = %s and order_id = %s", shop.store.id, order)
    return str(row["state"]) if row else None


def reaches(shop: Shop, order: str, wanted: str) -> None:
    until(lambda: state(shop, order) == wanted, why=f"{order} is not {wanted}: {shop.row('order', order)}")


def in_vtex(shop: Shop, order: str):
    return shop.cell.vtex.orders(shop.account).get(order)


def codes(shop: Shop, order: str) -> list[str]:
    return [told["code"] for told in shop.told(order)]


@pytest.mark.scenario("ORD-01", "ORD-07", "ORD-08", "ORD-09", "STK-16")
def test_a_paid_order_is_created_once_and_approved(cell: Cell):
    shop, sku = a_shop(cell)
    before = shop.row("stock", sku)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    seen = in_vtex(shop, order)
    assert (seen.creations, seen.attempts, seen.value, seen.items) == (1, 1, 21930, ((sku, 2, 9990),))
    until(lambda: {"O.R", "O.A", "O.S"} == set(codes(shop, order)), why=f"told: {codes(shop, order)}")
    (told,) = shop.told(order, "O.A")
    assert told["params"]["link"].endswith(f"/admin/orders/MKP-{order}")
    until(lambda: shop.row("stock", sku)["asked"] > before["asked"], why="its stock was not refreshed")


@pytest.mark.scenario("ORD-02", "ORD-03")
def test_an_order_whose_notification_is_lost_is_polled_and_created_once(cell: Cell):
    shop, sku = a_shop(cell, polls=True)
    lost, told = place(shop, sku, copies=0), place(shop, sku, copies=2)
    for order in (lost, told):
        reaches(shop, order, "approved")
        assert in_vtex(shop, order).creations == 1


@pytest.mark.scenario("ORD-10")
def test_doubled_and_inverted_results_end_the_same(cell: Cell):
    shop, sku = a_shop(cell)
    cell.vtex.order_habits(shop.account, duplicates=2, inverted=True)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    until(lambda: len(in_vtex(shop, order).results) == 6, why="not every result was posted")
    shop.quiet()
    assert (state(shop, order), codes(shop, order).count("O.A")) == ("approved", 1)


@pytest.mark.scenario("ORD-11")
def test_an_order_without_a_result_is_found_by_its_id(cell: Cell):
    shop, sku = a_shop(cell)
    cell.vtex.order_habits(shop.account, silent=True)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    assert in_vtex(shop, order).attempts == 1


@pytest.mark.scenario("ORD-13", "ORD-14")
def test_an_unpaid_order_is_approved_at_its_payment(cell: Cell):
    shop, sku = a_shop(cell, dials={"address_at": "always"})
    order = place(shop, sku, status="pending")
    reaches(shop, order, "integrated")
    shop.quiet()
    assert in_vtex(shop, order).approvals == 0
    cell.marketplace.move_order(shop.slug, order, "paid")
    reaches(shop, order, "approved")
    assert (in_vtex(shop, order).creations, in_vtex(shop, order).approvals) == (1, 1)


@pytest.mark.scenario("ORD-16")
def test_a_stock_refusal_is_retried_until_vtex_takes_it(cell: Cell):
    shop, sku = a_shop(cell)
    cell.vtex.force(shop.account, "EOI002", count=2)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    assert in_vtex(shop, order).creations == 1
    assert codes(shop, order).count("O.D") == 2


@pytest.mark.scenario("ORD-16")
def test_an_order_cancelled_after_a_stock_refusal_leaves_the_retries(cell: Cell):
    shop, sku = a_shop(cell)
    cell.vtex.force(shop.account, "EOI002", count=1000)
    order = place(shop, sku)
    until(lambda: "O.D" in codes(shop, order), why="the refusal was not told")
    cell.marketplace.move_order(shop.slug, order, "cancelled")
    reaches(shop, order, "cancelled_before_integration")
    until(lambda: codes(shop, order)[-1] == "O.Q", why=f"told: {codes(shop, order)}")


@pytest.mark.scenario("ORD-17", "ORD-18", "ORD-19")
@pytest.mark.parametrize(
    ("code", "wanted", "told"), [("EOI003", "retry", "O.J"), ("EOI004", "failed", "O.N"), ("EOI005", "failed", "O.I")]
)
def test_a_refusal_is_visible_with_its_reason(cell: Cell, code: str, wanted: str, told: str):
    shop, sku = a_shop(cell, settings={"order_waits": [60.0]})
    reason = {"source": "Checkout", "code": "ORD002", "description": "the very reason"}
    cell.vtex.force(shop.account, code, errors=[reason])
    order = place(shop, sku)
    reaches(shop, order, wanted)
    until(lambda: shop.told(order, told), why=f"told: {codes(shop, order)}")
    assert "the very reason" in shop.told(order, told)[0]["params"]["errors"]
    shop.quiet()
    assert in_vtex(shop, order).attempts == 1


@pytest.mark.scenario("ORD-20")
@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("code", ["EOI006", "EOI010"])
def test_a_failure_inside_vtex_is_looked_up_before_it_is_sent_again(cell: Cell, code: str, created: bool):
    shop, sku = a_shop(cell)
    cell.vtex.force(shop.account, code, created=created)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    assert (in_vtex(shop, order).creations, in_vtex(shop, order).attempts) == (1, 1 if created else 2)


@pytest.mark.scenario("ORD-12", "ORD-21")
def test_a_cut_answer_after_the_commit_makes_no_second_order(cell: Cell):
    shop, sku = a_shop(cell)
    cell.vtex.fault("cut", "create_order", account=shop.account, count=1)
    order = place(shop, sku)
    reaches(shop, order, "approved")
    assert in_vtex(shop, order).creations == 1


@pytest.mark.scenario("ORD-05")
def test_an_item_that_vtex_does_not_offer_holds_the_order_and_zeroes_its_stock(cell: Cell):
    shop, sku = a_shop(cell)
    shop.change(sku, notify=False, stock=0)
    order = place(shop, sku)
    reaches(shop, order, "retry")
    shop.shows(sku, state="active", stock=0)
    assert in_vtex(shop, order) is None
    shop.change(sku, notify=False, stock=5)
    reaches(shop, order, "approved")


@pytest.mark.scenario("CAN-07")
def test_an_order_cancelled_before_it_was_sent_is_dropped(cell: Cell):
    shop, sku = a_shop(cell)
    shop.change(sku, notify=False, stock=0)
    order = place(shop, sku)
    reaches(shop, order, "retry")
    cell.marketplace.move_order(shop.slug, order, "cancelled")
    reaches(shop, order, "cancelled_before_integration")
    until(lambda: codes(shop, order)[-1] == "O.X", why=f"told: {codes(shop, order)}")
    assert in_vtex(shop, order) is None


@pytest.mark.scenario("ORD-23")
def test_a_divergent_order_waits_for_the_seller(cell: Cell):
    shop, sku = a_shop(cell)
    cell.vtex.force(shop.account, "EOI011")
    order = place(shop, sku)
    reaches(shop, order, "waiting_authorization")
    assert in_vtex(shop, order).status == "waiting-for-manual-authorization"
    cell.vtex.move_order(shop.account, f"MKP-{order}", status="ready-for-handling")
    cell.marketplace.send_event(shop.slug, order)
    reaches(shop, order, "approved")
