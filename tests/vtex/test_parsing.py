"""What VTEX's answers mean: prices, stock, products, refusals – and that nothing foreign breaks a reader."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hub.errors import HubError, Unavailable
from hub.integration import integration_answer, without_personal_data
from hub.rules import PricingRules
from hub.rules.pricing import price_of
from hub.vtex import (
    parse_affiliate,
    parse_channel,
    parse_order,
    parse_product,
    parse_simulation,
    parse_sku_ids,
    refusal_problems,
)


def answer(line: dict[str, Any], logistics: dict[str, Any] | None = None) -> dict[str, Any]:
    info = {"itemIndex": 0, "quantity": 1, "stockBalance": 37, "slas": [], "deliveryChannels": []}
    return {
        "items": [{"id": "13", "quantity": 1, "price": 9990, "listPrice": 12990, "unitMultiplier": 1, **line}],
        "logisticsInfo": [info if logistics is None else logistics],
        "postalCode": None,
        "country": None,
        "messages": [],
    }


def price(tree: dict[str, Any]) -> Any:
    return price_of(parse_simulation(tree).items.get("13"), PricingRules())


@pytest.mark.scenario("PRC-02", rule=True)
def test_the_sellers_answer_gives_price_and_list_price() -> None:
    found = price(answer({}))
    assert (found.sale, found.list) == (9990, 12990)


@pytest.mark.scenario("PRC-03", rule=True)
def test_checkouts_answer_gives_the_calculated_selling_price() -> None:
    item = {"price": 10000, "sellingPrice": 9991, "priceDefinition": {"calculatedSellingPrice": 9990, "total": 9990}}
    assert price(answer(item)).sale == 9990
    assert price(answer({"sellingPrice": 9991, "priceDefinition": None})).sale == 9991


@pytest.mark.scenario("PRC-06", rule=True)
@pytest.mark.parametrize("nothing", [None, 0])
def test_no_price_and_an_absent_sku_give_no_price(nothing: int | None) -> None:
    assert price(answer({"price": nothing, "listPrice": None})) is None
    assert price({"items": [], "logisticsInfo": [], "messages": []}) is None
    assert price({"items": None, "logisticsInfo": None}) is None


@pytest.mark.scenario("STK-04", rule=True)
@pytest.mark.parametrize("name", ["stockBalance", "StockBalance", "STOCKBALANCE", "logisticsStockBalance"])
@pytest.mark.parametrize("on_item", [True, False])
def test_stock_is_read_under_each_of_its_names(name: str, on_item: bool) -> None:
    tree = answer({name: 5}, {"itemIndex": 0}) if on_item else answer({}, {"itemIndex": 0, name: 5})
    assert parse_simulation(tree).items["13"].stock == 5


@pytest.mark.scenario("STK-05", rule=True)
def test_the_largest_of_several_channels_is_the_stock() -> None:
    channels = [{"id": "delivery", "stockBalance": 7}, {"id": "pickup-in-point", "stockBalance": 12}]
    tree = answer({}, {"itemIndex": 0, "stockBalance": None, "deliveryChannels": channels})
    assert parse_simulation(tree).items["13"].stock == 12
    one = answer({}, {"itemIndex": 0, "deliveryChannels": channels[:1]})
    assert parse_simulation(one).items["13"].stock == 7


def test_the_total_balance_wins_over_the_channels() -> None:
    channels = [{"id": "delivery", "stockBalance": 70}]
    assert parse_simulation(answer({}, {"stockBalance": 3, "deliveryChannels": channels})).items["13"].stock == 3


def test_a_balance_of_zero_is_zero_and_none_is_unknown() -> None:
    assert parse_simulation(answer({}, {"itemIndex": 0, "stockBalance": 0})).items["13"].stock == 0
    assert parse_simulation(answer({}, {"itemIndex": 0, "stockBalance": -2})).items["13"].stock == 0
    assert parse_simulation(answer({}, {"itemIndex": 0})).items["13"].stock is None


def test_items_and_logistics_are_matched_by_id_and_index_not_by_position() -> None:
    tree = {
        "items": [{"id": "2", "price": 20, "quantity": 1}, {"id": 1, "price": 10, "quantity": 1}],
        "logisticsInfo": [{"itemIndex": 1, "stockBalance": 100}, {"itemIndex": 0, "stockBalance": 200}],
    }
    found = parse_simulation(tree).items
    assert (found["1"].price, found["1"].stock, found["2"].price, found["2"].stock) == (10, 100, 20, 200)


def test_a_sku_in_two_lines_has_the_sum_of_their_quantities() -> None:
    tree = {"items": [{"id": "1", "price": 9, "quantity": 2}, {"id": "1", "price": 8, "quantity": 1}]}
    assert (parse_simulation(tree).items["1"].quantity, parse_simulation(tree).items["1"].price) == (3, 9)


def test_freight_options_come_with_their_prices_and_messages_as_text() -> None:
    slas = [{"id": "n", "name": "Normal", "price": 1500}, {"id": "x", "name": None, "price": None}]
    tree = answer({}, {"itemIndex": 0, "stockBalance": 1, "slas": slas})
    tree["messages"] = [{"code": "cannotBeDelivered", "text": "too far", "status": "error"}, {"code": "x"}]
    found = parse_simulation(tree)
    assert found.items["13"].slas == ("Normal", "x")
    assert found.items["13"].sla_prices == {"Normal": 1500}
    assert found.messages == ("cannotBeDelivered: too far", "x")


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        (answer({"price": "much"}), "items.0.price"),
        (answer({"price": 99.5}), "items.0.price"),
        (answer({"price": True}), "items.0.price"),
        (answer({"price": 10**30}), "items.0.price"),
        (answer({"unitMultiplier": "1,5"}), "items.0.unitMultiplier"),
        (answer({"id": None}), "items.0.id"),
        (answer({}, {"stockBalance": []}), "logisticsInfo.0.stockBalance"),
        (answer({}, {"slas": {}}), "logisticsInfo.0.slas"),
        ({"items": {}}, "items"),
        ({"items": ["x"]}, "items.0"),
        ([], "(root)"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_and_its_value_is_not_repeated(tree: Any, field: str) -> None:
    with pytest.raises(Unavailable, match=r"unreadable answer of VTEX \(simulation\): field") as caught:
        parse_simulation(tree)
    assert f"'{field}'" in str(caught.value)
    assert "much" not in str(caught.value)


PRODUCT: dict[str, Any] = {
    "Id": 13,
    "ProductId": 4,
    "NameComplete": "Cadeira Azul",
    "ProductName": "Cadeira",
    "ProductDescription": "<p>x\x00</p>",
    "IsActive": True,
    "IsProductActive": "true",
    "SalesChannels": [1, 2],
    "ProductCategoryIds": "/1/10/",
    "ProductCategories": {"1": "Casa", "10": "Cozinha"},
    "BrandName": "Aurora",
    "AlternateIds": {"Ean": "7890000000017", "RefId": "R13"},
    "Images": [{"ImageUrl": "http://x/1.jpg"}, {"ImageUrl": ""}, {"ImageUrl": "http://x/1.jpg"}],
    "SkuSpecifications": [{"FieldName": "Cor", "FieldValues": ["Azul", None]}],
    "ProductSpecifications": [
        {"FieldName": "Cor", "FieldValues": ["Vermelho"]},
        {"FieldName": "Ano", "FieldValues": [2024]},
        {"FieldName": "Vazio", "FieldValues": None},
    ],
    "Dimension": {"height": 10.50, "length": 20, "width": "15", "weight": 1200.0},
    "UnitMultiplier": 1.0000,
    "IsKit": False,
    "SomethingNew": {"of": ["tomorrow"]},
}


@pytest.mark.scenario("MAP-09", rule=True)
def test_a_product_is_read_with_the_last_category_of_its_path() -> None:
    found = parse_product(PRODUCT, "13")
    assert (found.category, found.category_name, found.category_path) == ("10", "Cozinha", "Casa > Cozinha")
    assert (found.sku, found.product, found.name, found.brand) == ("13", "4", "Cadeira Azul", "Aurora")
    assert (found.active, found.product_active, found.channels) == (True, True, (1, 2))
    assert (found.ean, found.ref_id, found.images) == ("7890000000017", "R13", ("http://x/1.jpg",))
    assert [(one.name, one.values) for one in found.specifications] == [("Cor", ("Azul",)), ("Ano", ("2024",))]
    assert (found.weight, found.height, found.width, found.length) == ("1200", "10.5", "15", "20")
    assert (found.unit_multiplier, found.description) == ("1", "<p>x</p>")


def test_a_product_in_another_casing_is_the_same_product() -> None:
    other = {key[0].lower() + key[1:]: value for key, value in PRODUCT.items()}
    assert parse_product(other, "13") == parse_product(PRODUCT, "13")


@pytest.mark.parametrize("name", ["IsActive", "IsProductActive", "SalesChannels"])
def test_a_gap_where_a_product_is_sold_is_unreadable_not_inactive(name: str) -> None:
    without = {key: value for key, value in PRODUCT.items() if key != name}
    with pytest.raises(Unavailable, match=f"field '{name}' is missing"):
        parse_product(without, "13")


def test_an_answer_about_another_sku_is_unreadable() -> None:
    with pytest.raises(Unavailable, match="asked was '14'"):
        parse_product(PRODUCT, "14")


def test_sku_ids_come_once_each_in_their_order() -> None:
    assert parse_sku_ids([3, 1, 3, "2"]) == ("3", "1", "2")
    with pytest.raises(Unavailable, match="field '1' is a text"):
        parse_sku_ids([1, "x"])


def test_an_order_may_have_no_status() -> None:
    found = parse_order({"orderId": "MKT-1", "marketplaceOrderId": None, "status": None, "value": 21930})
    assert (found.order_id, found.marketplace_order_id, found.status, found.value) == ("MKT-1", "", "", 21930)


@pytest.mark.parametrize(
    ("body", "code", "fix"),
    [
        ('{"error":{"code":"FMT0021","message":"Affiliate not found","exception":null}}', "FMT0021", "Affiliate"),
        ('{"Error":{"Code":7,"Message":"no"}}', "7", "no"),
        ('{"Message":"The request is invalid."}', "vtex", "The request is invalid."),
        ('{"error":"nope"}', "vtex", "nope"),
        ('"only a text"', "vtex", "only a text"),
        ("<html><body>Bad  Request</body></html>", "vtex", "Bad Request"),
        ("", "vtex", "refused with 400"),
        ("{}", "vtex", "refused with 400"),
        ("[]", "vtex", "refused with 400"),
        ('{"errors":[{"code":"A1","description":"one"},{"code":"A2","description":"two"}]}', "A1", "one"),
        ('{"error":{"code":"X","message":"ana@example.org and 000.000.001-91 are wrong"}}', "X", "*** and ***"),
    ],
)
def test_an_error_body_of_any_form_becomes_a_problem(body: str, code: str, fix: str) -> None:
    try:
        tree = json.loads(body)
    except ValueError:
        tree = None
    first = refusal_problems(400, tree, body)[0]
    assert first.code == code
    assert fix in first.fix


def test_personal_data_is_masked_and_order_codes_stay() -> None:
    said = without_personal_data(
        "EOI005: ana.silva@example.org, +55 (11) 99999-0000, 00000000191 at 90 days, SKU 12345"
    )
    assert said == "EOI005: ***, ***, *** at 90 days, SKU 12345"


def test_a_result_of_order_integration_is_read_as_documented() -> None:
    found = integration_answer(
        {
            "accountName": "acme",
            "success": False,
            "flow": "PlaceOrder",
            "operationId": "op",
            "marketplaceOrderId": "1",
            "code": "EOI002",
            "message": "No SLA",
            "errors": [{"source": "Fulfillment", "code": "FMT005", "description": "SKU 13 unavailable"}, "x"],
            "fields": {"mainOrderId": None},
        }
    )
    assert (found.success, found.code, found.flow, found.operation_id) == (False, "EOI002", "PlaceOrder", "op")
    assert (found.inner_codes, found.main_order_id) == (("FMT005",), None)
    assert found.problems[0].fix == "SKU 13 unavailable"


def test_a_result_of_nulls_and_wrong_kinds_is_read_as_far_as_it_goes() -> None:
    odd = {"success": "yes", "code": ["x"], "errors": {"a": 1}, "fields": "x", "message": None, "flow": 3}
    found = integration_answer(odd)
    assert (found.success, found.code, found.flow, found.problems) == (False, "", "3", ())


# ---------------------------------------------------------------- anything at all

NAMES = some.sampled_from(
    (
        *PRODUCT,
        *("items", "logisticsInfo", "id", "price", "stockBalance", "itemIndex", "slas", "name", "messages", "code"),
        *("priceDefinition", "calculatedSellingPrice", "deliveryChannels", "orderId", "value", "status", "message"),
        *("error", "errors", "fields", "mainOrderId", "FieldValues", "ImageUrl", "unitMultiplier", "salesChannel"),
    )
)
SCALARS = (
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats()
    | some.text(max_size=12)
    | some.sampled_from(["1", "1e9999", "\ud800", "nan", "\x00", "9" * 5000])
)
TREES = some.recursive(
    SCALARS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(NAMES, inner, max_size=6),
    max_leaves=25,
)


@given(TREES)
def test_arbitrary_json_is_read_or_unreadable_and_never_breaks_a_reader(tree: Any) -> None:
    for read in (parse_simulation, parse_sku_ids, parse_order, parse_affiliate, parse_channel, integration_answer):
        with suppress(HubError):
            read(tree)
    with suppress(HubError):
        parse_product(tree, "13")
    assert refusal_problems(400, tree, "x")


@given(some.dictionaries(some.sampled_from(list(PRODUCT)), TREES, min_size=1, max_size=4))
def test_a_product_with_some_fields_replaced_by_anything_is_read_or_unreadable(changed: dict[str, Any]) -> None:
    try:
        found = parse_product({**PRODUCT, **changed}, "13")
    except Unavailable:
        return
    assert found.sku == "13"
    assert "\x00" not in found.name + found.description
    found.name.encode()


@given(some.dictionaries(NAMES, TREES, max_size=4), some.dictionaries(NAMES, TREES, max_size=4))
def test_a_simulation_with_anything_in_it_gives_whole_numbers_or_is_unreadable(
    line: dict[str, Any], info: dict[str, Any]
) -> None:
    try:
        items = parse_simulation(answer(line, {"itemIndex": 0, **info})).items
    except Unavailable:
        return
    for item in items.values():
        for figure in (item.price, item.list_price, item.stock):
            assert figure is None or type(figure) is int
        assert price_of(item, PricingRules()) is None or item.price or item.selling_price or item.definition_price
