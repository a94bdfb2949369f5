"""PRC: the price that the marketplace shows is the price that VTEX sells for now, by the store's rules, to the cent.

PRC-09 (a sweep when a promotion ends) and PRC-10 (the guard against a fall) have no test: the hub does neither.
"""

import json
from typing import Any

import pytest

from hub import messages
from tests.cell import PROFILES, WITHOUT_LOOKS, Cell, Shop, until

EVERY_PROFILE = pytest.mark.parametrize("marketplace", PROFILES)
PRICE_CODES = {"S1", "A1", "A2", "E1", "E2", "E3"}


def bodies(shop: Shop, *, after: int = 0) -> list[dict[str, Any]]:
    """Every record with a price or a stock that the marketplace was sent, whatever way it came."""
    found: list[dict[str, Any]] = []
    for call in shop.writes(after=after):
        if call.operation == "feed_submit":
            found += [json.loads(line) for line in call.body.splitlines() if line.strip()]
        elif call.body:
            found.append(json.loads(call.body))
    return [body for body in found if {"price", "list_price", "stock"} & body.keys()]


def wire(marketplace: str, text: str) -> object:
    """An amount of money as this marketplace writes it."""
    return {
        "sandbox-sync": text,
        "sandbox-lot": {"amount": text, "currency": "BRL"},
        "sandbox-replace": int(text.replace(".", "")),
    }[marketplace]


def one_published(cell: Cell, marketplace: str, **options: Any) -> tuple[Shop, str]:
    shop = cell.shop(marketplace, **options)
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet()
    return shop, sku


@EVERY_PROFILE
@pytest.mark.scenario("PRC-01", "PRC-02")
def test_a_changed_price_is_simulated_with_one_unit_and_sent_in_the_marketplaces_format(cell: Cell, marketplace: str):
    shop, sku = one_published(cell, marketplace)
    simulations, before = len(shop.vtex_calls("simulation")), shop.last_call()
    shop.change(sku, price=12345, list_price=15000)
    shown = shop.shows(sku, price_cents=12345)
    assert shown.list_price_cents == 15000
    asked = shop.vtex_calls("simulation")[simulations:]
    assert asked
    for call in asked:
        assert call["path"].endswith("/api/fulfillment/pvt/orderForms/simulation"), "not the seller's side"
        simulated = json.loads(call["body"])
        assert [(one["id"], one["quantity"], str(one["seller"])) for one in simulated["items"]] == [(sku, 1, "1")]
        assert not simulated.get("postalCode")
    sent = [body for body in bodies(shop, after=before) if "price" in body]
    assert [(body["price"], body["list_price"]) for body in sent] == [
        (wire(marketplace, "123.45"), wire(marketplace, "150.00"))
    ]
    shop.quiet()
    assert "S1" in [told["code"] for told in shop.told(sku) if told["operation"] == "Price update"]


@pytest.mark.parametrize(("unit", "shown"), [("unit", 9999), ("item", 2_999_700)])
@pytest.mark.scenario("PRC-03", "PRC-04")
def test_checkouts_calculated_price_is_for_the_unit_that_the_store_chose(cell: Cell, unit: str, shown: int):
    shop = cell.shop(settings={"simulation": "checkout", "pricing": {"unit": unit}})
    (sku,) = shop.grow(1, price=[9999, 9999])
    shop.change(sku, notify=False, unit_multiplier=300, list_price=9999)
    shop.modified(sku, sku=True)
    shop.shows(sku, price_cents=shown)
    shop.quiet()
    assert all("/api/checkout/pub/" in call["path"] for call in shop.vtex_calls("simulation"))
    (told,) = [one for one in shop.told(sku, "S1") if one["operation"] == "Price update"]
    simulated = told["source"]["simulation"]
    assert (simulated["definition_price"], simulated["price"]) == (2_999_700, 9999), "not what Checkout answers"
    assert shop.row("price", sku)["confirmed"] == {"sale": shown, "list": shown}
    assert set(cell.marketplace.sku(shop.slug, sku).values("price")) == {shown}, "another price was shown for a while"


@EVERY_PROFILE
@pytest.mark.scenario("PRC-05", "PRC-07")
def test_cents_arrive_exactly_and_a_list_price_is_never_below_the_sale_price(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    # sale in VTEX, list in VTEX, both as they have to arrive; equal prices strike nothing through: no list price then
    amounts = [
        (9990, 9990, "99.90", None),
        (110, 120, "1.10", "1.20"),
        (1999, 29_035, "19.99", "290.35"),
        (123_456_789, 123_456_790, "1234567.89", "1234567.90"),
        (12_000, 9_000, "120.00", None),
    ]
    skus = shop.grow(len(amounts))
    for sku, (sale, struck, _, _) in zip(skus, amounts, strict=True):
        shop.change(sku, notify=False, price=sale, list_price=struck)
    shop.published(*skus)
    sent = [(body["price"], body["list_price"]) for body in bodies(shop) if body.get("price")]
    for sku, (sale, _, sale_text, list_text) in zip(skus, amounts, strict=True):
        assert shop.shown(sku).price_cents == sale
        assert (wire(marketplace, sale_text), list_text and wire(marketplace, list_text)) in sent
    shop.quiet(answered=True)
    known = "select key, confirmed from answers where store = %s and context = 'price'"
    confirmed = {row["key"]: row["confirmed"] for row in cell.all(known, shop.store.id)}
    assert confirmed == {
        sku: {"sale": sale, "list": max(sale, struck)} for sku, (sale, struck, *_) in zip(skus, amounts, strict=True)
    }


@EVERY_PROFILE
@pytest.mark.scenario("PRC-06")
def test_without_a_price_none_is_sent_and_the_stock_becomes_zero(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    null, zero, absent = skus = shop.grow(3)
    shop.published(*skus)
    shop.quiet()
    before = shop.last_call()
    shop.change(null, without_price=True)
    shop.change(zero, price=0)
    shop.status("price", null, "refused")
    shop.status("price", zero, "refused")
    cell.vtex.catalog_habits(shop.account, missing_price="absent")
    shop.change(absent, without_price=True)
    for sku in skus:
        assert shop.shows(sku, stock=0).price_cents == 9990
        shop.status("price", sku, "refused")
        told = until(lambda sku=sku: shop.told(sku, "A1"), why="nothing was told")  # a lot's answer comes later
        assert {one["status"] for one in told} == {"warning"}
    # Whole offers repeat the price that is shown; the others send none.
    shown = [wire(marketplace, "99.90")] if marketplace == "sandbox-replace" else []
    assert all(body["price"] in shown for body in bodies(shop, after=before) if "price" in body), "a price was sent"
    # It comes back by itself as soon as there is a price again.
    shop.change(null, price=8800, list_price=8800)
    shop.shows(null, price_cents=8800, stock=37)


@pytest.mark.scenario("PRC-08")
def test_rules_apply_as_markup_conversion_rounding_limits(cell: Cell):
    rules = {"markup": 10, "conversion": 2, "rounding": ".90", "minimum": 2000, "maximum": 50000}
    shop = cell.shop(settings={"pricing": rules})
    # 25.00 + 10 % = 27.50; × 2 = 55.00 ⇒ 54.90. Below and above the limits, which win over the rounding.
    skus = dict(zip(shop.grow(3), ((2500, 5490), (500, 2000), (99_900, 50_000)), strict=True))
    for sku, (vtex, _) in skus.items():
        shop.change(sku, notify=False, price=vtex, list_price=vtex)
        shop.modified(sku, sku=True)
    for sku, (_, shown) in skus.items():
        shop.shows(sku, price_cents=shown)


@pytest.mark.scenario("PRC-11")
def test_a_price_waits_for_the_lot_that_registers_its_sku(cell: Cell):
    shop = cell.shop("sandbox-lot", dials={"feed_delay": 8.0})
    (sku,) = shop.grow(1)
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "waiting")
    shop.change(sku, price=7700, list_price=7700)
    shop.status("price", sku, "parked")
    assert shop.row("price", sku)["parked_on"] == f"publication:{sku}"
    assert bodies(shop) == [], "a price left before the product was confirmed"
    cell.marketplace.turn(shop.slug, feed_delay=0)  # of those that come
    shop.shows(sku, price_cents=7700)
    result = min(call.number for call in shop.calls(operation="feed_result") if call.status == 200)
    offers = [call for call in shop.calls(operation="feed_submit") if "kind=offer" in call.query]
    assert len(offers) == 1
    assert offers[0].number > result, "the price left before the product was confirmed"


@EVERY_PROFILE
@pytest.mark.scenario("PRC-12")
def test_a_price_that_the_marketplace_refuses_is_told_with_its_reason_and_sent_once(cell: Cell, marketplace: str):
    shop, sku = one_published(cell, marketplace, dials={"minimum_price": 1000}, settings=WITHOUT_LOOKS)
    before = shop.last_call()
    shop.change(sku, price=500, list_price=500)
    row = shop.status("price", sku, "refused")
    assert (row["code"], row["attempts"], row["due_at"]) == ("E3", 0, None)
    told = [one for one in shop.told(sku, "E3") if one["operation"] == "Price update"]
    assert len(told) == 1
    assert told[0]["status"] == "error"
    assert "10.00" in told[0]["params"]["errors"] or "1000" in told[0]["params"]["errors"]
    assert [body["price"] for body in bodies(shop, after=before)] == [wire(marketplace, "5.00")]
    assert shop.shown(sku).price_cents == 9990
    shop.change(sku, price=1500, list_price=1500)
    shop.shows(sku, price_cents=1500)


@pytest.mark.parametrize("marketplace", ["sandbox-sync", "sandbox-replace"])
@pytest.mark.scenario("PRC-13")
def test_a_price_that_did_not_move_is_not_sent(cell: Cell, marketplace: str):
    shop, sku = one_published(cell, marketplace)
    before, asked = shop.last_call(), len(shop.vtex_calls("simulation"))
    shop.modified(sku, price=True)
    until(lambda: len(shop.vtex_calls("simulation")) > asked, why="VTEX was not asked")
    shop.status("price", sku, "done")
    assert shop.writes(after=before) == []


@EVERY_PROFILE
@pytest.mark.scenario("PRC-14")
def test_the_price_log_has_only_the_codes_of_its_set(cell: Cell, marketplace: str):
    settings = {**WITHOUT_LOOKS, "inventory": {"minimum": 5}}
    shop = cell.shop(marketplace, dials={"minimum_price": 1000}, settings=settings)
    fine, cheap, priceless, gone, low = skus = shop.grow(5)
    shop.published(*skus)
    shop.quiet()
    write = {"sandbox-sync": "price_put", "sandbox-lot": "feed_submit", "sandbox-replace": "offer_put"}[marketplace]
    cell.marketplace.fault("status", operation=write, account=shop.slug, count=2, status=503)
    cell.vtex.fault("status", "simulation", account=shop.account, count=2, status=500)
    shop.change(fine, price=5000)
    shop.change(cheap, price=500, list_price=500)
    shop.change(priceless, without_price=True)
    shop.change(low, price=6100, stock=3)
    shop.change(gone, active=False)
    shop.modified(gone, price=True)
    shop.shows(fine, price_cents=5000)
    shop.shows(low, price_cents=6100, stock=0)
    shop.status("price", cheap, "refused")
    shop.status("price", priceless, "refused")
    shop.quiet()
    told = [one for sku in skus for one in shop.told(sku) if one["operation"] == "Price update"]
    codes = {one["code"] for one in told}
    assert {"S1", "E2", "E3"} <= codes
    # What is on its way in a lot is pending; every code that says how it ended is of the set.
    assert codes - ({"P0"} if marketplace == "sandbox-lot" else set()) <= PRICE_CODES
    assert {one["status"] for one in told if one["code"] == "P0"} <= {"pending"}
    assert all(messages.entry(one["code"]).status == one["status"] for one in told)
