"""NEW: a SKU that the marketplace does not show yet – the whole gate, one registration, every problem at once."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from hub.simulators.marketplace_control import ShownSku
from tests.cell import CATEGORIES, PROFILES, WITHOUT_LOOKS, Cell, Shop, until

EVERY_PROFILE = pytest.mark.parametrize("marketplace", PROFILES)
WITHOUT_LOTS = pytest.mark.parametrize("marketplace", [name for name in PROFILES if name != "sandbox-lot"])
"""Where lots would only take longer: what is told does not depend on how a record travels."""

COLOUR_DEMANDED = "MC-220"


def codes(shop: Shop, key: str, *operations: str) -> list[str]:
    """What was told about a key, oldest first; of some operations if named."""
    return [told["code"] for told in shop.told(key) if not operations or told["operation"] in operations]


def registration(shop: Shop, sku: str) -> list[str]:
    """What was told about a SKU's registration, oldest first."""
    return codes(shop, sku, "Offer creation", "Catalog change")


def once(shown: ShownSku | None) -> bool:
    """The marketplace has made it exactly once."""
    return shown is not None and shown.creates == 1 and len(shown.ids) == 1


@EVERY_PROFILE
@pytest.mark.scenario("NEW-01")
def test_an_unknown_sku_passes_the_gate_is_registered_and_told_with_its_code_and_link(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet(answered=True)
    shown = shop.shown(sku)
    assert once(shown)
    assert shop.vtex_calls("sku"), "the catalogue was not read"
    assert shop.vtex_calls("simulation"), "nothing was simulated"
    binding = shop.binding(sku)
    assert binding == {"remote_id": shown.ids[0], "state": "published", "link": shown.link}
    (told,) = [one for one in shop.told(sku, "S1") if one["operation"] == "Offer creation"]
    assert (told["status"], told["direction"]) == ("success", "VTEX to Marketplace")
    assert told["params"]["sku"] == sku
    assert told["params"]["name"] in shown.title
    assert (told["params"]["remote"], told["params"]["link"]) == (shown.ids[0], shown.link)


@EVERY_PROFILE
@pytest.mark.scenario("NEW-02")
def test_a_listing_that_only_the_marketplace_knows_is_adopted_and_updated(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet(answered=True)
    before = shop.shown(sku)
    for table in ("bindings where sku", "answers where key", "states where key"):
        cell.do(f"delete from {table} = %s and store = %s", sku, shop.store.id)
    shop.change(sku, name="Panela que mudou", notify=False)
    shop.modified(sku, sku=True)
    shop.shows(sku, title=shop.truth(sku).name)
    shop.quiet(answered=True)
    assert shop.binding(sku)["remote_id"] == before.ids[0]
    assert once(shop.shown(sku)), "the marketplace has it twice"
    if marketplace == "sandbox-sync":  # the others put: there a second registration is an update
        assert len([call for call in shop.calls() if call.operation == "listing_create"]) == 1


@pytest.mark.scenario("NEW-03")
@EVERY_PROFILE
def test_an_unmapped_category_parks_the_sku_and_says_where_to_map_it(cell: Cell, marketplace: str):
    mapper = "https://loja.myvtex.com/admin/mkp-category-mapper/7"
    shop = cell.shop(marketplace, mapped=False, settings={"mapping_link": mapper})
    (sku,) = shop.grow(1)
    shop.modified(sku, sku=True)
    row = shop.status("catalog", sku, "parked")
    assert row["parked_on"] == "mapping:1"
    (told,) = shop.told(sku, "E4")
    assert told["status"] == "error"
    assert "Casa" in told["params"]["category"]
    assert told["params"]["sku"] == sku
    assert told["params"]["name"] == shop.truth(sku).name
    assert told["params"]["mapping"] == mapper
    # No timer retries: nothing comes before the daily check, here the minute of the plan `test`.
    assert cell.one(
        "select due_at > answered_at + interval '50 s' as rests from states where store = %s and context = 'catalog'",
        shop.store.id,
    ) == {"rests": True}
    assert shop.writes() == []


@EVERY_PROFILE
@pytest.mark.scenario("NEW-05")
def test_all_that_is_wrong_is_told_in_one_record_and_nothing_is_sent(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    shop.map_category("1", COLOUR_DEMANDED)
    (sku,) = shop.grow(1)
    shop.change(sku, notify=False, name="Jogo de cama " * 8, ean="7890000000001", specifications={})
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "refused")
    (told,) = shop.told(sku)
    assert told["code"] == "E1"
    assert {problem["field"] for problem in told["problems"]} == {"title", "EAN", "color"}
    assert all(problem["code"] == "E1" and problem["fix"] for problem in told["problems"])
    assert all(word in told["params"]["errors"] for word in ("title", "EAN", "color"))
    assert shop.writes() == []
    assert shop.shown(sku) is None


@EVERY_PROFILE
@pytest.mark.scenario("NEW-06")
def test_a_default_fills_an_empty_field_and_is_told_before_the_success(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings={"defaults": {"attributes.material": "algodão"}})
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet(answered=True)
    assert shop.shown(sku).attributes == {"material": "algodão"}
    assert [code for code in registration(shop, sku) if code != "P0"] == ["A3", "S1"]
    (told,) = shop.told(sku, "A3")
    assert (told["status"], [(one["field"], one["value"]) for one in told["problems"]]) == (
        "warning",
        [("attributes.material", "algodão")],
    )
    assert "attributes.material = algodão" in told["params"]["defaults"]


@EVERY_PROFILE
@pytest.mark.scenario("NEW-07")
def test_a_sku_that_the_simulation_leaves_out_is_not_sent(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    cell.vtex.catalog_habits(shop.account, missing_price="absent")
    (sku,) = shop.grow(1)
    shop.change(sku, notify=False, without_price=True)
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "refused")
    (told,) = shop.told(sku)
    assert (told["code"], told["status"]) == ("A1", "warning")
    assert told["source"]["simulation"] is None
    assert shop.writes() == []
    assert shop.shown(sku) is None


@WITHOUT_LOTS
@pytest.mark.scenario("NEW-08")
def test_a_sku_without_a_price_is_not_sent(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    shop.change(sku, notify=False, without_price=True)
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "refused")
    (told,) = shop.told(sku)
    assert (told["code"], told["status"]) == ("A1", "warning")
    assert told["source"]["simulation"]["price"] is None
    assert shop.writes() == []
    shop.change(sku, notify=False, price=4990)
    shop.published(sku)


@EVERY_PROFILE
@pytest.mark.scenario("NEW-09")
def test_a_refusal_is_told_whole_and_the_same_is_not_sent_again_until_something_changes(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings=WITHOUT_LOOKS)
    (sku,) = shop.grow(1)
    complaints = [
        {"field": "title", "code": "forbidden_word", "message": "contains a forbidden word"},
        {"field": "brand", "code": "unknown_brand", "message": "is not known"},
    ]
    cell.marketplace.break_sku(shop.slug, sku, 400, complaints)
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "refused")
    (told,) = shop.told(sku, "E3")
    assert told["status"] == "error"
    assert {problem["field"] for problem in told["problems"]} == {"title", "brand"}
    assert all(word in told["params"]["errors"] for word in ("forbidden word", "is not known"))
    shop.quiet()
    heard = shop.last_call()
    shop.modified(sku, sku=True)
    shop.quiet()
    assert shop.writes(after=heard) == [], "the same was sent again"
    assert shop.status("catalog", sku, "refused")["due_at"] is None
    assert len(shop.told(sku, "E3")) == 1
    cell.marketplace.heal_sku(shop.slug, sku)
    shop.change(sku, notify=False, name="Panela de barro")
    shop.published(sku)


@EVERY_PROFILE
@pytest.mark.scenario("NEW-10")
def test_three_failures_and_a_success_make_one_product(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    if marketplace == "sandbox-lot":
        cell.marketplace.fault("status", operation="feed_submit", account=shop.slug, status=500, count=3)
    else:
        cell.marketplace.break_sku(shop.slug, sku, 500, count=3)
    shop.published(sku, seconds=40)
    shop.quiet(answered=True)
    told = [code for code in registration(shop, sku) if code != "P0"]
    if marketplace == "sandbox-lot":  # its lot is what failed
        (lot,) = cell.all("select id::text as key from lots where store = %s and kind = 'listing'", shop.store.id)
        told = codes(shop, lot["key"]) + told
    assert told == ["E2", "E2", "E2", "S1"]
    assert once(shop.shown(sku))


@EVERY_PROFILE
@pytest.mark.scenario("NEW-11")
def test_a_dead_letter_is_still_tried_slowly_and_succeeds_when_the_marketplace_returns(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    cell.marketplace.outage(shop.slug, "503", 300)
    shop.modified(sku, sku=True)
    if marketplace == "sandbox-lot":
        until(lambda: _lots(cell, shop), why="no lot was made")
    context, key = ("lot", _lots(cell, shop)[0]) if marketplace == "sandbox-lot" else ("catalog", sku)
    row = shop.status(context, key, "dead", seconds=60)
    assert row["attempts"] > 10
    assert codes(shop, key).count("E2") > 10
    assert codes(shop, key)[-1] == "D0"
    until(lambda: cell.dead_letters(shop.slug, context) == [key], why="the dead-letter queue does not show it")
    assert row["work"] == "s", "nobody would try it again"

    cell.marketplace.outage(shop.slug, "off")
    # The hour until the slow try has passed.
    cell.do("update states set due_at = now() where store = %s and context = %s", shop.store.id, context)
    shop.shows(sku, seconds=60)
    assert once(shop.shown(sku))
    until(lambda: cell.dead_letters(shop.slug, context) == [], why="the dead-letter queue still shows it")


def _lots(cell: Cell, shop: Shop) -> list[str]:
    return [row["key"] for row in cell.all("select id::text as key from lots where store = %s", shop.store.id)]


@pytest.mark.scenario("NEW-12", "NEW-13")
def test_an_answer_that_comes_later_is_pending_until_it_is_asked_for(cell: Cell):
    shop = cell.shop("sandbox-lot", dials={"feed_delay": 60})
    good, bad = shop.grow(2)
    cell.marketplace.break_sku(shop.slug, bad, 422, [{"field": "ean", "code": "taken", "message": "is taken"}])
    for sku in (good, bad):
        shop.modified(sku, sku=True)
    for sku in (good, bad):
        shop.status("catalog", sku, "waiting")
        until(lambda sku=sku: registration(shop, sku) == ["P0"], why="nothing says that it is pending")
        assert shop.told(sku, "P0")[0]["status"] == "pending"
    # Nobody tells: the hub asks by itself, as often as it takes.
    asked = until(lambda: [call for call in shop.calls() if call.operation == "feed_read"], why="nobody asks")
    until(lambda: len([call for call in shop.calls() if call.operation == "feed_read"]) > len(asked))
    assert shop.shown(good) is None

    cell.marketplace.turn(shop.slug, feed_delay=0)
    cell.marketplace.advance(60)  # far below the replay window of signed events
    shop.shows(good, state="active")
    shop.quiet(answered=True)
    shop.status("catalog", bad, "refused")
    assert registration(shop, good) == ["P0", "S1"]
    assert registration(shop, bad) == ["P0", "E3"]
    assert [problem["field"] for problem in shop.told(bad, "E3")[0]["problems"]] == ["ean"]


@WITHOUT_LOTS
@pytest.mark.scenario("NEW-14")
def test_variations_of_one_product_are_one_group(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    shop.map_category("1", COLOUR_DEMANDED)
    skus = shop.grow(3, skus_per_product=3, first_id=3 * 500 + 1)
    (alone,) = shop.grow(1)
    for sku, colour in zip(skus, ("Azul", "Preto", "Verde"), strict=True):
        shop.change(sku, notify=False, specifications={"Cor": [colour]})
    shop.published(*skus, alone)
    shown = [shop.shown(sku) for sku in skus]
    assert len({one.group for one in shown}) == 1
    assert shown[0].group
    assert shop.shown(alone).group != shown[0].group
    assert [one.attributes["color"] for one in shown] == ["Azul", "Preto", "Verde"]


@pytest.mark.scenario("NEW-04")
def test_a_mapper_that_is_down_makes_the_sku_wait_and_its_word_is_asked_for_once(cell: Cell):
    shop = cell.shop(mapped=False, settings={"mapper_url": f"{cell.vtex.base_url}/{{account}}/_v/category-mapping"})
    cell.vtex.put_mapper(shop.account, {"1": CATEGORIES[0]})
    cell.vtex.fault("status", operation="mapper", account=shop.account, status=503, count=2)
    skus = shop.grow(2)
    shop.modified(skus[0], sku=True)
    shop.shows(skus[0])
    shop.quiet()
    assert codes(shop, skus[0])[:3] == ["E5", "E5", "S1"]
    asked = cell.vtex.calls("mapper", shop.account)
    shop.published(skus[1])
    assert cell.vtex.calls("mapper", shop.account) == asked, "what the mapper said is kept in the table"


@EVERY_PROFILE
@pytest.mark.scenario("NEW-16")
def test_two_workers_and_many_notifications_register_a_sku_once(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    skus = shop.grow(12)
    # Slow creations: whoever takes the same SKU meanwhile would make it a second time.
    cell.marketplace.fault("latency", account=shop.slug, seconds=0.3, for_seconds=5)
    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(lambda sku: shop.modified(sku, sku=True, price=True, stock=True), skus * 4))
    for sku in skus:
        shop.shows(sku, seconds=40)
    shop.quiet(answered=True)
    assert all(once(shown) for shown in shop.all_shown().values())
    assert len(shop.all_shown()) == len(skus)
    created = [call for call in shop.calls() if call.operation == "listing_create"]
    if marketplace == "sandbox-sync":
        assert sorted(json.loads(call.body)["sku"] for call in created) == sorted(skus)
    workers = cell.all("select 1 from workers where until > now() and name not like 'sweep%%'")
    assert len(workers) >= 2
