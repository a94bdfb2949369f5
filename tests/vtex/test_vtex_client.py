"""The client of VTEX against the simulated VTEX, over real HTTP through the real transport."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from hub.errors import AuthLost, BadInput, NotFound, Refusal, Throttled, Unavailable, UnknownOutcome
from hub.model import IntegrationAnswer, VtexOrder
from hub.ports import CartItem, Vtex
from hub.simulators.control import VtexControl
from hub.vtex import VtexStore

from .conftest import ACCOUNT, AFFILIATE, HUB_URL, TOKEN
from .order_bodies import order_body

Connect = Callable[..., VtexStore]


def found_within(seconds: float, ask: Callable[[], VtexOrder]) -> VtexOrder:
    """Ask until VTEX knows the order."""
    ends = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except NotFound:
            assert time.monotonic() < ends, "VTEX does not know the order in time"
            time.sleep(0.01)


# ---------------------------------------------------------------- reads


def test_it_is_the_door_that_contexts_are_given(store: VtexStore) -> None:
    door: Vtex = store
    assert door.product("1").sku == "1"


def test_a_product_is_what_vtex_shows_in_the_channel(store: VtexStore, control: VtexControl) -> None:
    truth, found = control.truth(ACCOUNT, 1)["3"], store.product("3")
    assert (found.sku, found.name, found.description) == ("3", truth.name, truth.description)
    assert (found.category, found.category_path, found.brand) == ("10", "Casa > Cozinha", truth.brand)
    assert (found.ean, found.images, found.channels) == (truth.ean, truth.images, (1,))
    assert {one.name for one in found.specifications} == {"Cor", "Tamanho", "Fabricante"}
    assert found.active
    assert found.product_active
    assert float(found.weight) > 0
    assert control.journal(operation="sku")[-1]["status"] == 200


def test_an_unknown_sku_is_not_found(store: VtexStore) -> None:
    with pytest.raises(NotFound, match="SKU 999"):
        store.product("999")


def test_a_sku_id_cannot_change_the_question(store: VtexStore, control: VtexControl) -> None:
    with pytest.raises(NotFound):
        store.product("3?sc=2")
    asked = control.journal(operation="sku")[-1]
    assert (asked["query"], asked["path"].rpartition("/")[2]) == ("sc=1", "3%3Fsc=2")


@pytest.mark.parametrize("simulation", ["fulfillment", "checkout"])
def test_a_simulation_gives_price_and_stock_on_both_paths(connected: Connect, simulation: str) -> None:
    item = connected(simulation=simulation).simulate([CartItem("3")]).items["3"]
    assert (item.definition_price or item.price, item.stock, item.quantity, item.slas) == (9990, 37, 1, ())


def test_a_simulation_without_address_sends_every_key(store: VtexStore, control: VtexControl) -> None:
    store.simulate([CartItem("3")])
    sent = control.journal(operation="simulation")[-1]
    body = sent["body"] if isinstance(sent["body"], dict) else json.loads(sent["body"])
    assert body == {
        "items": [{"id": "3", "quantity": 1, "seller": "1"}],
        "marketingData": None,
        "postalCode": None,
        "country": None,
        "selectedSla": None,
        "clientProfileData": None,
        "geoCoordinates": [],
        "isCheckedIn": False,
        "storeId": None,
    }


def test_an_order_check_gets_freight_options_with_prices(store: VtexStore) -> None:
    found = store.simulate([CartItem("3", 2), CartItem("4", 50)], postal_code="01310-100", country="BRA")
    assert found.items["3"].sla_prices == {"Normal": 1500, "Expressa": 2900}
    assert (found.items["4"].quantity, found.items["4"].stock) == (37, 37)
    assert any("itemQuantityNotAvailable" in message for message in found.messages)


def test_half_an_address_is_refused_before_any_call(store: VtexStore, control: VtexControl) -> None:
    with pytest.raises(BadInput, match="country"):
        store.simulate([CartItem("3")], postal_code="01310-100")
    assert control.calls("simulation") == 0


def test_what_vtex_does_not_sell_is_absent(store: VtexStore, control: VtexControl) -> None:
    control.change(ACCOUNT, 3, active=False, notify=False)
    assert store.simulate([CartItem("3")]).items == {}


def test_pages_of_the_channel_end_with_an_empty_one(store: VtexStore) -> None:
    assert [len(store.sku_page(page, 5)) for page in (1, 2, 3, 4)] == [5, 5, 2, 0]


def test_a_page_may_be_the_whole_list_and_holds_each_id_once(store: VtexStore, control: VtexControl) -> None:
    control.catalog_habits(ACCOUNT, paging="ignored", duplicate_ids=1.0)
    assert store.sku_page(1, 5) == tuple(str(number) for number in range(1, 13))


# ---------------------------------------------------------------- orders


def test_an_order_is_enqueued_created_and_read_back(store: VtexStore, control: VtexControl) -> None:
    answer = store.create_order(order_body())
    assert (answer.success, answer.code, answer.flow) == (True, "SOI003", "PlaceOrder")
    found = found_within(60, lambda: store.order(f"{AFFILIATE}-900100200"))
    assert (found.marketplace_order_id, found.value) == ("900100200", 21930)
    assert control.orders(ACCOUNT)["900100200"].creations == 1


def test_name_and_endpoint_of_the_connector_are_added_unless_given(store: VtexStore, control: VtexControl) -> None:
    store.create_order(order_body("1"))
    store.create_order(order_body("2", connectorEndpoint="https://other.example/x"))
    sent = [str(call["body"]) for call in control.journal(operation="create_order")]
    assert [HUB_URL in body for body in sent] == [True, False]


def test_an_approval_is_answered_like_a_creation(store: VtexStore) -> None:
    store.create_order(order_body(marketplaceOrderStatus="new"))
    found_within(60, lambda: store.order(f"{AFFILIATE}-900100200"))
    answer = store.approve_order("900100200")
    assert (answer.success, answer.code, answer.flow) == (True, "SOI003", "ApproveOrder")


def test_a_refused_body_is_an_answer_that_names_the_field(store: VtexStore) -> None:
    answer = store.create_order(order_body(items=[]))
    assert isinstance(answer, IntegrationAnswer)
    assert (answer.success, answer.code) == (False, "EOI005")
    assert "items" in answer.problems[0].fix


def test_a_creation_whose_answer_is_cut_has_an_unknown_outcome(store: VtexStore, control: VtexControl) -> None:
    control.fault("cut", "create_order", count=1)
    with pytest.raises(UnknownOutcome):
        store.create_order(order_body())
    assert found_within(60, lambda: store.order(f"{AFFILIATE}-900100200")).value == 21930


def test_an_approval_whose_answer_is_cut_is_only_unavailable(store: VtexStore, control: VtexControl) -> None:
    control.fault("cut", "order_status", count=1)
    with pytest.raises(Unavailable) as caught:
        store.approve_order("1")
    assert not isinstance(caught.value, UnknownOutcome)


def test_an_unknown_order_is_not_found(store: VtexStore) -> None:
    with pytest.raises(NotFound, match="order MKT-1"):
        store.order("MKT-1")


# ---------------------------------------------------------------- errors


def test_a_refusal_carries_vtexs_code_and_words(connected: Connect) -> None:
    with pytest.raises(Refusal) as caught:
        connected(affiliate="XYZ").simulate([CartItem("3")])
    assert [(one.code, one.fix) for one in caught.value.problems] == [("FMT0021", "Affiliate not found")]
    assert caught.value.status == 400


def test_wrong_credentials_and_a_missing_role_are_told_apart(connected: Connect, control: VtexControl) -> None:
    with pytest.raises(AuthLost) as caught:
        connected(token="wrong", auth_version=3).product("3")
    assert (caught.value.scope, caught.value.version, caught.value.side) == ("store", 3, "vtex")
    control.deny_groups(ACCOUNT, "catalog")
    with pytest.raises(AuthLost) as caught:
        connected().product("3")
    assert caught.value.scope == "context"
    assert TOKEN not in str(caught.value)


def test_a_business_code_that_means_429_is_a_throttle_and_holds_the_group(
    store: VtexStore, control: VtexControl
) -> None:
    body = json.dumps({"error": {"code": "CHK00310", "message": "Too many requests", "exception": None}})
    control.fault("status", "simulation", status=400, body=body, count=1)
    with pytest.raises(Throttled) as caught:
        store.simulate([CartItem("3")])
    assert caught.value.wait == 60
    with pytest.raises(Throttled):
        store.simulate([CartItem("3")])
    assert control.calls("simulation") == 1
    assert store.product("3").sku == "3"


# ---------------------------------------------------------------- registration


def told(store: VtexStore) -> dict[str, Any]:
    """Problems of a check by field."""
    return {problem.field: problem for problem in store.check()}


@pytest.mark.scenario("SET-01")
def test_a_store_that_is_set_up_right_has_no_problem(store: VtexStore) -> None:
    assert store.check() == []


@pytest.mark.scenario("SET-02")
@pytest.mark.scenario("SET-06", "SET-07")
def test_everything_wrong_is_told_at_once(connected: Connect, control: VtexControl) -> None:
    control.deny_groups(ACCOUNT, "orders")
    control.put_affiliate(ACCOUNT, AFFILIATE, sales_channel=1, endpoint="https://erp.example/s3cret-path")
    found = told(connected(sales_channel=2))
    assert set(found) == {
        "affiliate.salesChannel",
        "affiliate.searchURIEndpoint",
        "sales_channel",
        "permission: OMS",
    }
    assert "Order details (OMS)" in found["permission: OMS"].fix
    assert HUB_URL in found["affiliate.searchURIEndpoint"].fix
    assert found["affiliate.searchURIEndpoint"].value == "https://erp.example/…"
    assert "inactive" in found["sales_channel"].fix


@pytest.mark.parametrize(
    ("group", "field", "resource"),
    [
        ("catalog", "permission: catalog", "Product form / View product"),
        ("simulation", "permission: simulation", "Place orders"),
        ("orders", "permission: OMS", "View order"),
        ("affiliates", "permission: affiliates", "Save Order Configuration"),
    ],
)
def test_each_missing_permission_is_named_with_its_resource(
    store: VtexStore, control: VtexControl, group: str, field: str, resource: str
) -> None:
    control.deny_groups(ACCOUNT, group)
    found = told(store)
    assert list(found) == [field]
    assert found[field].code == "setup"
    assert resource in found[field].fix


def test_wrong_credentials_are_one_problem(connected: Connect) -> None:
    assert list(told(connected(token="wrong"))) == ["app_key, app_token"]


def test_an_unknown_account_is_one_problem(connected: Connect) -> None:
    assert list(told(connected(account="nobody"))) == ["account"]


def test_a_vtex_that_does_not_answer_is_one_problem(connected: Connect) -> None:
    found = connected(url="http://127.0.0.1:9").check()
    assert [(one.code, one.field) for one in found] == [("setup", "catalog")]
    assert "could not be checked" in found[0].fix


def test_a_missing_affiliate_says_how_to_create_it(connected: Connect) -> None:
    found = told(connected(affiliate="XYZ"))
    assert list(found) == ["affiliate"]
    assert "trade policy 1" in found["affiliate"].fix
    assert HUB_URL in found["affiliate"].fix


@pytest.mark.scenario("SET-07")
def test_an_unknown_sales_channel_is_refused(connected: Connect) -> None:
    found = [(one.code, one.field) for one in connected(sales_channel=9).check()]
    assert ("setup", "sales_channel") in found


def test_an_empty_channel_and_nothing_to_sell_are_warnings(store: VtexStore, control: VtexControl) -> None:
    for sku in range(1, 13):
        control.change(ACCOUNT, sku, stock=0, notify=False)
    assert [(one.code, one.field) for one in store.check()] == [("setup-warning", "simulation")]
    for sku in range(1, 13):
        control.drop(ACCOUNT, sku, notify=False)
    assert [(one.code, one.field) for one in store.check()] == [("setup-warning", "sales_channel")]


@pytest.mark.scenario("SET-06")
def test_a_minimum_value_is_warned_about(connected: Connect, control: VtexControl) -> None:
    low = {"id": "LWV", "sales_channel": 1, "search_uri_endpoint": HUB_URL, "minimum_value_accumulated": 5000}
    control.open_account("other", "vtexappkey-other-ABCDEF", TOKEN, affiliates=[low])
    control.grow("other", 1)
    found = connected(account="other", key="vtexappkey-other-ABCDEF", affiliate="LWV").check()
    assert [(one.code, one.field, one.value) for one in found] == [
        ("setup-warning", "affiliate.minimumValueAccumulated", "5000")
    ]


@pytest.mark.parametrize(
    "end", ["", "/", "/api/notification", "/catalog/notification/", "?sc=1", "/api/notification/?x"]
)
def test_every_address_that_the_hub_serves_is_right(store: VtexStore, control: VtexControl, end: str) -> None:
    control.put_affiliate(ACCOUNT, AFFILIATE, sales_channel=1, endpoint=HUB_URL + end)
    assert store.check() == []


@pytest.mark.parametrize("endpoint", [None, "not a url", "http://[", "https://hub.example/n/0ther", HUB_URL + "/x"])
def test_every_other_address_is_wrong(store: VtexStore, control: VtexControl, endpoint: str | None) -> None:
    control.put_affiliate(ACCOUNT, AFFILIATE, sales_channel=1, endpoint=endpoint)
    found = told(store)
    assert list(found) == ["affiliate.searchURIEndpoint"]
    assert "0ther" not in found["affiliate.searchURIEndpoint"].value
