"""STK: the marketplace never offers what VTEX cannot deliver, and follows it as soon as VTEX says so – or a look later.

Not here: STK-09 and STK-10 (sweeps that compare without a notification), STK-15 (scheduled mode): the hub has none yet.
STK-16 is with the orders. STK-04 and STK-05 are rules of reading an answer that the simulated VTEX does not give:
tests/vtex/test_parsing.py.
"""

import json
from typing import Any

import pytest

from hub.marketplaces import adapter
from tests.cell import PROFILES, Cell, Shop, until

EVERY_PROFILE = pytest.mark.parametrize("marketplace", PROFILES)


def published(shop: Shop, count: int = 1, **spec: Any) -> list[str]:
    skus = shop.grow(count, **spec)
    shop.published(*skus)
    shop.quiet()
    return skus


def stocks(shop: Shop, sku: str) -> list[object]:
    """Every quantity that the marketplace has shown of a SKU, oldest first."""
    return list(shop.cell.marketplace.sku(shop.slug, sku).values("stock"))


def stock_log(shop: Shop, sku: str) -> list[str]:
    return [told["code"] for told in shop.told(sku) if told["operation"] == "Inventory update"]


@EVERY_PROFILE
@pytest.mark.scenario("STK-01", "STK-07")
def test_a_changed_stock_is_sent_after_the_stores_rules(cell: Cell, marketplace: str):
    """20 · 50 % = 10 − 5 = 5; 11 · 50 % = 5 − 5; 7 · 50 % = 3 − 5; 37 · 50 % = 18 − 5."""
    shop = cell.shop(marketplace, settings={"inventory": {"percentage": 50, "safety": 5, "minimum": 3}})
    changes = ((20, 5), (11, 0), (7, 0), (37, 13))
    skus = dict(zip(shop.grow(len(changes), stock=[100, 100]), changes, strict=True))
    for sku in skus:
        shop.modified(sku, sku=True)
    for sku in skus:
        shop.shows(sku, state="active", stock=45)
    for sku, (balance, _) in skus.items():
        shop.change(sku, stock=balance)
    for sku, (_, shown) in skus.items():
        shop.shows(sku, stock=shown)
    for sku, (balance, shown) in skus.items():
        shop.status("stock", sku, "done")
        assert stock_log(shop, sku)[-1] == ("Z" if shown == 0 else "S1"), (balance, stock_log(shop, sku))
    (warned,) = [sku for sku, (balance, _) in skus.items() if balance == 11]
    assert shop.told(warned, "Z")[-1]["status"] == "warning"


@EVERY_PROFILE
@pytest.mark.scenario("STK-02", "STK-03")
def test_what_vtex_cannot_deliver_is_shown_as_zero(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    zero, absent = published(shop, 2)
    shop.change(zero, stock=0)
    shop.shows(zero, stock=0)
    shop.status("stock", zero, "done")
    cell.vtex.catalog_habits(shop.account, missing_stock="absent")  # from now on it is left out of the answer's items
    shop.change(absent, stock=0)
    shop.shows(absent, stock=0)
    shop.status("stock", absent, "done")
    assert stock_log(shop, zero)[-1] == "S1"
    assert stock_log(shop, absent)[-1] == "A1"
    told = shop.told(absent, "A1")[-1]
    assert (told["status"], told["params"]["sku"]) == ("warning", absent)
    shop.change(absent, stock=4)
    shop.shows(absent, stock=4)


@pytest.mark.parametrize("cap", [None, 500])
@pytest.mark.scenario("STK-06")
def test_endless_stock_is_shown_as_what_marketplace_and_store_allow(cell: Cell, cap: int | None):
    shop = cell.shop(settings={"inventory": {"cap": cap}})
    (sku,) = shop.grow(1)
    shop.change(sku, notify=False, unlimited=True)
    shop.modified(sku, sku=True)
    most = adapter("sandbox-sync").manifest.max_stock
    assert shop.truth(sku).stock > most
    shop.shows(sku, stock=cap or most)


@pytest.mark.parametrize("marketplace", ["sandbox-sync", "sandbox-replace"])
@pytest.mark.scenario("STK-08")
def test_a_stale_answer_is_looked_at_again_later(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings={"look_again": [6.0, 12.0]})
    (sku,) = published(shop)
    cell.vtex.catalog_habits(shop.account, stale_seconds=5.0)
    before, asked = shop.last_call(), len(shop.vtex_calls("simulation"))
    shop.change(sku, stock=12)
    until(lambda: len(shop.vtex_calls("simulation")) > asked, why="VTEX was not asked at all")
    shop.status("stock", sku, "done")
    assert shop.shown(sku).stock == 37, "the first answer was not the old one"
    assert shop.writes(after=before) == [], "the old value was sent again"
    row = shop.row("stock", sku)
    assert row["work"] == "s"
    assert row["due_at"] is not None, "no second look is due"
    shop.shows(sku, stock=12)
    assert stocks(shop, sku)[-2:] == [37, 12]


@pytest.mark.parametrize("marketplace", ["sandbox-sync", "sandbox-replace"])
@pytest.mark.scenario("STK-08")
def test_a_stale_answer_that_shows_the_first_of_two_changes_is_looked_at_again(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings={"look_again": [6.0, 12.0]})
    (sku,) = published(shop)
    cell.vtex.catalog_habits(shop.account, stale_seconds=5.0)
    shop.change(sku, stock=13, notify=False)
    shop.change(sku, stock=12)
    shop.shows(sku, stock=13)
    row = until(lambda: (row := shop.row("stock", sku)) and row["work"] == "s" and row, why="it does not come to rest")
    assert (row["status"], row["due_at"] is not None) == ("done", True), "no second look is due"
    shop.shows(sku, stock=12)
    assert stocks(shop, sku)[-2:] == [13, 12]


@EVERY_PROFILE
@pytest.mark.scenario("STK-11")
def test_a_failing_simulation_is_retried_and_the_value_is_todays(patient_cell: Cell, marketplace: str):
    shop = patient_cell.shop(marketplace)
    (sku,) = published(shop)
    fault = patient_cell.vtex.fault("status", "simulation", account=shop.account, status=500)
    asked = len(shop.vtex_calls("simulation"))
    shop.change(sku, stock=21)
    until(lambda: len(shop.vtex_calls("simulation")) >= asked + 2, why="it is not retried")
    row = until(lambda: (row := shop.row("stock", sku)) and row["attempts"] > 0 and row, why="no attempt is counted")
    assert row["status"] == "delayed"
    shop.change(sku, stock=22, notify=False)
    patient_cell.vtex.clear_faults(fault)
    shop.shows(sku, stock=22)
    assert 21 not in stocks(shop, sku)
    assert "E2" in stock_log(shop, sku)
    assert shop.status("stock", sku, "done")["attempts"] == 0


@EVERY_PROFILE
@pytest.mark.scenario("STK-12")
def test_a_message_that_is_retried_sends_what_is_true_now(patient_cell: Cell, marketplace: str):
    shop = patient_cell.shop(marketplace)
    sku, other = published(shop, 2)
    patient_cell.marketplace.break_sku(shop.slug, sku, status=503)
    shop.change(sku, stock=21)
    until(lambda: (row := shop.row("stock", sku)) and row["attempts"] > 0, why="the send did not fail")
    shop.change(sku, stock=22)
    shop.change(other, stock=23)
    shop.shows(other, stock=23)
    patient_cell.marketplace.heal_sku(shop.slug, sku)
    shop.shows(sku, stock=22)
    shop.quiet()
    assert 21 not in stocks(shop, sku), "an old value was shown"
    assert stocks(shop, sku)[-1] == 22


@pytest.mark.scenario("STK-13")
def test_a_stock_waits_for_the_lot_that_registers_its_sku(cell: Cell):
    shop = cell.shop("sandbox-lot", dials={"feed_delay": 8.0})
    (sku,) = shop.grow(1)
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "waiting")
    shop.change(sku, stock=21)
    assert shop.status("stock", sku, "parked")["parked_on"] == f"publication:{sku}"
    assert not [call for call in shop.calls(operation="feed_submit") if "kind=offer" in call.query]
    cell.marketplace.turn(shop.slug, feed_delay=0)  # of those that come
    shop.shows(sku, stock=21)
    result = min(call.number for call in shop.calls(operation="feed_result") if call.status == 200)
    offers = [call for call in shop.calls(operation="feed_submit") if "kind=offer" in call.query]
    assert offers
    assert all(call.number > result for call in offers), "a stock left before the product was confirmed"
    assert all(json.loads(line)["stock"] == 21 for call in offers for line in call.body.splitlines())


@pytest.mark.scenario("STK-14")
def test_what_sold_out_while_the_marketplace_was_away_is_among_the_first_sends(patient_cell: Cell):
    shop = patient_cell.shop(settings={"look_again": []})
    skus = published(shop, 100)
    sold_out = skus[-1]
    patient_cell.marketplace.outage(shop.slug, "503", seconds=60)
    for sku in skus[:-1]:
        shop.change(sku, price=8800, list_price=8800)
    until(
        lambda: patient_cell.all(
            "select 1 from states where store = %s and context = 'price' and attempts > 0 having count(*) >= 5",
            shop.store.id,
        ),
        why="the marketplace was not tried",
    )
    shop.change(sold_out, stock=0)
    until(lambda: (row := shop.row("stock", sold_out)) and row["asked"] > row["answered"], why="nobody was told")
    before = shop.last_call()
    patient_cell.marketplace.outage(shop.slug, "off")
    shop.shows(sold_out, stock=0)
    for sku in skus:
        shop.shows(sku, price_cents=9990 if sku == sold_out else 8800, seconds=60)
    taken = [call for call in shop.writes(after=before) if call.status == 200]
    zero = next(place for place, call in enumerate(taken) if call.operation == "stock_put")
    assert zero < len(taken) / 2, f"the zero came as number {zero + 1} of {len(taken)}"
