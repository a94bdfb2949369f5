"""UPD: a published SKU follows VTEX: updated, withdrawn, brought back, deleted. What VTEX's catalogue says counts.

How a SKU is withdrawn depends on the marketplace: `sandbox-sync` sets the stock to zero and blocks, the others can only
delete.
"""

import pytest

from tests.cell import PROFILES, WITHOUT_LOOKS, Cell, Shop, until

EVERY_PROFILE = pytest.mark.parametrize("marketplace", PROFILES)
BOTH_WAYS = pytest.mark.parametrize("marketplace", ["sandbox-sync", "sandbox-replace"])
"""One that blocks and one that deletes; lots would only take longer."""

BLOCKING = "sandbox-sync"


def on_show(cell: Cell, marketplace: str) -> tuple[Shop, str]:
    """A store with one SKU that the marketplace shows and nothing left to do, looks included: none comes in between."""
    shop = cell.shop(marketplace, settings=WITHOUT_LOOKS)
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet(answered=True)
    return shop, sku


def registration(shop: Shop, sku: str) -> list[str]:
    """What was told about a SKU's registration, oldest first."""
    wanted = ("Offer creation", "Catalog change")
    return [told["code"] for told in shop.told(sku) if told["operation"] in wanted and told["code"] != "P0"]


def withdrawn(shop: Shop, sku: str) -> None:
    """Wait until nobody can buy the SKU, and check what is remembered of it."""
    if shop.store.marketplace == BLOCKING:
        shop.shows(sku, state="inactive", stock=0)
        shop.quiet()
        assert shop.binding(sku)["state"] == "deactivated", "the pair is needed to activate it again"
    else:
        shop.shows(sku, state="absent")
        until(lambda: shop.binding(sku) is None, why="the pair of a deleted listing is still there")
        shop.quiet()
        assert shop.shown(sku).deletes == 1
        known = shop.cell.all(
            "select context from answers where store = %s and key = %s and confirmed is not null", shop.store.id, sku
        )
        assert known == [], "a snapshot of a deleted listing is still there"


@EVERY_PROFILE
@pytest.mark.scenario("UPD-01")
def test_a_changed_description_is_read_with_its_offer_and_sent(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    heard, reads, simulations = shop.last_call(), len(shop.vtex_calls("sku")), len(shop.vtex_calls("simulation"))
    shop.change(sku, notify=False, name="Panela nova", description="Uma panela que dura mais.")
    shop.modified(sku, sku=True)
    shop.shows(sku, title=shop.truth(sku).name)
    shop.quiet(answered=True)
    assert len(shop.vtex_calls("sku")) > reads
    assert len(shop.vtex_calls("simulation")) > simulations
    assert any("Uma panela que dura mais." in call.body for call in shop.writes(after=heard))
    assert registration(shop, sku) == ["S1", "S1"]
    assert shop.told(sku, "S1")[-1]["translated"]["listing"]["description"] == "Uma panela que dura mais."
    shop.shows(sku)


@EVERY_PROFILE
@pytest.mark.scenario("UPD-02")
def test_an_announced_change_that_changes_nothing_reaches_no_marketplace_and_is_told(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    heard = shop.last_call()
    shop.modified(sku, sku=True)
    shop.quiet()
    assert [call.operation for call in shop.calls(after=heard) if "order" not in call.operation] == []
    (told,) = shop.told(sku, "N0")
    assert (told["operation"], told["status"]) == ("Catalog change", "success")


@BOTH_WAYS
@pytest.mark.scenario("UPD-03")
def test_an_update_waits_for_a_catalogue_that_cannot_be_read(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    cell.vtex.fault("status", "sku", account=shop.account, status=500, count=2)
    shop.change(sku, notify=False, name="Panela nova")
    shop.modified(sku, sku=True)
    shop.shows(sku, title=shop.truth(sku).name)
    shop.quiet(answered=True)
    assert registration(shop, sku) == ["S1", "E2", "E2", "S1"]
    assert shop.told(sku, "E2")[0]["params"]["marketplace"] == "VTEX"


@EVERY_PROFILE
@pytest.mark.scenario("UPD-04", "UPD-05")
def test_an_inactive_sku_is_zeroed_and_blocked_or_else_deleted(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    remote, heard = shop.binding(sku)["remote_id"], shop.last_call()
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    withdrawn(shop, sku)
    (told,) = [one for one in shop.told(sku) if one["code"] == "A2"]
    assert (told["status"], told["destination"]["remote_id"]) == ("warning", remote)
    if marketplace == BLOCKING:
        operations = [call.operation for call in shop.writes(after=heard)]
        assert operations.index("listing_deactivate") < operations.index("stock_put"), "an older stock could go on sale"
        assert shop.binding(sku)["remote_id"] == remote


@EVERY_PROFILE
@pytest.mark.scenario("UPD-06")
def test_an_inactive_sku_that_was_never_published_is_only_told(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    shop.quiet()
    until(lambda: shop.told(sku), why="nothing is told")
    assert [told["code"] for told in shop.told(sku)] == ["A2"]
    assert shop.writes() == []
    assert shop.shown(sku) is None


@BOTH_WAYS
@pytest.mark.scenario("UPD-07")
def test_an_active_sku_stays_on_sale_whatever_the_message_says(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    heard = shop.last_call()
    shop.modified(sku, active=False)
    shop.quiet()
    shop.shows(sku)
    assert shop.writes(after=heard) == []
    assert shop.binding(sku)["state"] == "published"


@EVERY_PROFILE
@pytest.mark.scenario("UPD-07")
def test_what_was_changed_while_a_sku_was_inactive_is_shown_though_its_activation_came_first(
    cell: Cell, marketplace: str
):
    shop, sku = on_show(cell, marketplace)
    shop.change(sku, notify=False, price=12_345, stock=8)
    shop.modified(sku, active=False, price=True, stock=True)
    shop.shows(sku, state="active", price_cents=12_345, stock=8)


@EVERY_PROFILE
@pytest.mark.scenario("NOT-16")
def test_a_price_that_is_announced_beside_the_registration_is_shown(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    shop.change(sku, notify=False, price=12_345)
    shop.modified(sku, sku=True, price=True)
    shop.shows(sku, price_cents=12_345)


@EVERY_PROFILE
@pytest.mark.scenario("PRC-06")
@pytest.mark.parametrize("announced", ["sku", "stock"])
def test_a_price_that_was_refused_while_a_sku_was_inactive_is_well_when_it_is_back(
    cell: Cell, marketplace: str, announced: str
):
    shop, sku = on_show(cell, marketplace)
    shop.change(sku, notify=False, active=False)  # its announcement is lost
    shop.modified(sku, price=True)
    shop.shows(sku, stock=0)
    shop.status("price", sku, "refused")
    shop.quiet()
    shop.change(sku, notify=False, active=True)
    shop.modified(sku, **{announced: True})
    shop.shows(sku)
    shop.status("price", sku, "done")


@BOTH_WAYS
@pytest.mark.scenario("UPD-08")
def test_an_inactive_sku_is_withdrawn_whatever_the_message_says(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, sku=True, active=True)
    withdrawn(shop, sku)


@pytest.mark.scenario("UPD-09")
def test_a_blocked_sku_is_activated_and_gets_its_price_and_stock(cell: Cell):
    shop, sku = on_show(cell, BLOCKING)
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    withdrawn(shop, sku)
    heard = shop.last_call()
    shop.change(sku, notify=False, active=True, price=12_345, stock=8)
    shop.modified(sku, sku=True)
    shop.shows(sku, state="active", price_cents=12_345, stock=8)
    shop.quiet()
    operations = [call.operation for call in shop.writes(after=heard)]
    assert operations[0] == "listing_activate"
    assert set(operations[1:]) >= {"price_put", "stock_put"}
    assert "listing_create" not in operations
    assert shop.binding(sku)["state"] == "published"
    assert shop.shown(sku).creates == 1


@pytest.mark.scenario("UPD-09")
@pytest.mark.parametrize("no", [{"kind": "throttle", "retry_after": 3.0}, {"kind": "status", "status": 422}])
def test_a_sku_whose_blocking_was_only_half_answered_is_activated_again(cell: Cell, no: dict[str, object]):
    """Blocked, and then a no to the zero: what the first call of a record has changed is not forgotten."""
    shop, sku = on_show(cell, BLOCKING)
    heard = shop.last_call()
    cell.marketplace.fault(operation="stock_put", account=shop.slug, count=1, **no)
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    until(lambda: shop.calls(operation="stock_put", after=heard), why="the zero was not tried")
    assert shop.shown(sku).state == "inactive"
    shop.change(sku, notify=False, active=True, stock=8)
    shop.modified(sku, sku=True)
    shop.shows(sku, state="active", stock=8)
    shop.quiet()
    assert shop.binding(sku)["state"] == "published"
    assert shop.shown(sku).creates == 1


@BOTH_WAYS
@pytest.mark.scenario("UPD-10")
def test_an_activated_sku_without_a_pair_is_registered(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    shop.quiet()
    assert shop.shown(sku) is None
    shop.change(sku, notify=False, active=True)
    shop.published(sku)
    shop.quiet(answered=True)
    assert shop.binding(sku)["state"] == "published"
    assert shop.shown(sku).creates == 1


@pytest.mark.scenario("UPD-10")
def test_a_deleted_sku_that_is_active_again_is_registered_anew(cell: Cell):
    shop, sku = on_show(cell, "sandbox-replace")
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    withdrawn(shop, sku)
    shop.change(sku, notify=False, active=True)
    shop.published(sku)
    shop.quiet(answered=True)
    assert shop.binding(sku)["state"] == "published"
    assert (shop.shown(sku).creates, len(shop.shown(sku).ids)) == (2, 1)


@BOTH_WAYS
@pytest.mark.scenario("UPD-11")
def test_a_sku_removed_from_the_affiliate_is_withdrawn(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    shop.change(sku, notify=False, channels=[])
    shop.modified(sku, removed=True)
    withdrawn(shop, sku)


@BOTH_WAYS
@pytest.mark.scenario("UPD-12")
def test_a_sku_that_left_the_channel_is_withdrawn_though_nobody_says_removed(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    shop.change(sku, notify=False, channels=[])
    shop.modified(sku, sku=True)
    withdrawn(shop, sku)
    assert [told["status"] for told in shop.told(sku, "A1")] == ["warning"]


@BOTH_WAYS
@pytest.mark.scenario("UPD-13")
def test_a_sku_of_an_inactive_product_is_withdrawn(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    shop.change(sku, notify=False, product_active=False)
    shop.modified(sku, sku=True)
    withdrawn(shop, sku)
    (told,) = shop.told(sku, "A2")
    assert "product active" in told["params"]["errors"]


@pytest.mark.scenario("UPD-14")
def test_until_a_lot_confirms_a_deletion_the_pair_stays_and_news_wait(cell: Cell):
    shop, sku = on_show(cell, "sandbox-lot")
    pair = shop.binding(sku)
    cell.marketplace.turn(shop.slug, feed_delay=60)
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    shop.status("catalog", sku, "waiting")
    until(lambda: any(call.operation == "feed_read" for call in shop.calls(after=shop.last_call() - 1)))
    submitted = [call for call in shop.calls() if call.operation == "feed_submit"]
    shop.change(sku, notify=False, active=True, price=4321)
    shop.modified(sku, sku=True)
    shop.quiet()
    assert shop.binding(sku) == pair
    assert shop.status("catalog", sku, "waiting")["asked"] > shop.row("catalog", sku)["answered"]
    assert [call for call in shop.calls() if call.operation == "feed_submit"] == submitted, "it did not wait"

    cell.marketplace.turn(shop.slug, feed_delay=0)
    cell.marketplace.advance(60)  # far below the replay window of signed events
    shop.shows(sku, state="active", price_cents=4321, stock=37)
    shop.quiet(answered=True)
    shown = shop.shown(sku)
    assert (shown.deletes, shown.creates, len(shown.ids)) == (1, 2, 1)
    assert shop.binding(sku) == {"remote_id": shown.ids[0], "state": "published", "link": shown.link}


@pytest.mark.scenario("UPD-14")
def test_until_a_deletion_is_answered_the_pair_stays_and_news_wait(cell: Cell):
    shop, sku = on_show(cell, "sandbox-replace")
    pair = shop.binding(sku)
    cell.marketplace.fault("latency", account=shop.slug, operation="offer_delete", seconds=2.0)
    shop.change(sku, notify=False, active=False)
    shop.modified(sku, active=False)
    until(lambda: (shop.row("catalog", sku) or {}).get("intent"), why="the deletion has not begun")
    shop.change(sku, notify=False, active=True, price=4321)
    shop.modified(sku, sku=True)
    assert shop.binding(sku) == pair
    assert shop.shown(sku).deletes == 0, "this test came too late"
    shop.shows(sku, state="active", price_cents=4321, stock=37)
    shop.quiet(answered=True)
    shown = shop.shown(sku)
    assert (shown.deletes, shown.creates, len(shown.ids)) == (1, 2, 1)
    assert shop.binding(sku)["remote_id"] == shown.ids[0]


@BOTH_WAYS
@pytest.mark.scenario("UPD-15")
def test_a_sku_that_vtex_does_not_know_any_more_is_withdrawn_and_its_pair_goes(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    cell.vtex.drop(shop.account, int(sku), notify=False)
    shop.modified(sku, sku=True)
    if marketplace == BLOCKING:
        shop.shows(sku, state="inactive", stock=0)
    else:
        shop.shows(sku, state="absent")
    until(lambda: shop.binding(sku) is None, why="the pair of a SKU that is gone is still there")
    shop.quiet()
    assert len(shop.told(sku, "A2")) == 1


@EVERY_PROFILE
@pytest.mark.scenario("UPD-16")
def test_a_category_that_is_unmapped_now_holds_the_registration_but_not_price_and_stock(cell: Cell, marketplace: str):
    shop, sku = on_show(cell, marketplace)
    before = shop.shown(sku)
    shop.change(sku, notify=False, category=2, name="Panela nova")
    shop.modified(sku, sku=True)
    assert shop.status("catalog", sku, "parked")["parked_on"] == "mapping:2"
    (told,) = shop.told(sku, "E4")
    assert "Sem mapa" in told["params"]["category"]
    shop.change(sku, notify=False, price=4321, stock=5)
    shop.modified(sku, price=True, stock=True)
    shop.shows(sku, state="active", price_cents=4321, stock=5)
    shown = shop.shown(sku)
    assert (shown.title, shown.category, shown.images) == (before.title, before.category, before.images)
