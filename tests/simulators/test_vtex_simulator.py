"""The simulated VTEX, driven over HTTP: it behaves as vtex.md says, and misbehaves when asked to."""

import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
import requests

from hub.simulators.control import ControlRefusedError
from hub.simulators.serving import in_thread
from hub.simulators.vtex import World, app
from hub.simulators.vtex_catalog import check_digit
from hub.simulators.vtex_notifier import VARIANTS, notification_url
from tests.simulators.conftest import ACCOUNT, AFFILIATE, KEY, TOKEN, Store, until

SKU = "/api/catalog_system/pvt/sku/stockkeepingunitbyid"
IDS = "/api/catalog_system/pvt/sku/stockkeepingunitidsbysaleschannel"


# --- access ----------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_401_and_a_public_path_needs_none(store: Store) -> None:
    wrong = {**store.headers, "X-VTEX-API-AppToken": "wrong"}
    assert store.get(f"{SKU}/1", headers=wrong).status_code == 401
    assert store.get(f"{SKU}/1", headers={}).status_code == 401
    assert store.get("/api/catalog_system/pub/saleschannel/1", headers={}).status_code == 200
    assert store.get("/api/catalog_system/pub/category/tree/3", headers={}).status_code == 200


def test_credentials_of_one_account_do_not_open_another(store: Store) -> None:
    store.control.open_account("other", "vtexappkey-other-XXXXXX", "other-token")
    url = store.control.account_url("other")
    assert requests.get(f"{url}{IDS}?sc=1", headers=store.headers, timeout=5).status_code == 401


def test_a_denied_group_is_403_and_the_others_go_on(store: Store) -> None:
    store.control.deny_groups(ACCOUNT, "catalog")
    assert store.get(f"{SKU}/1").status_code == 403
    assert store.simulate(1)["items"]
    store.control.deny_groups(ACCOUNT)
    assert store.get(f"{SKU}/1").status_code == 200


def test_a_rotated_token_works_beside_the_old_one_until_that_is_removed(store: Store) -> None:
    fresh = {**store.headers, "X-VTEX-API-AppToken": "renewed"}
    store.control.change_credentials(ACCOUNT, add={KEY: "renewed"})
    assert [store.get(f"{SKU}/1", headers=one).status_code for one in (store.headers, fresh)] == [200, 200]
    store.control.change_credentials(ACCOUNT, remove={KEY: TOKEN})
    assert [store.get(f"{SKU}/1", headers=one).status_code for one in (store.headers, fresh)] == [401, 200]


# --- catalog ---------------------------------------------------------------------------------------------------------


def test_a_sku_has_every_field_that_the_hub_reads(store: Store) -> None:
    sku = store.sku(1)
    assert sku["SalesChannels"] == [1]
    assert sku["ProductCategoryIds"] == "/1/10/"
    assert sku["ProductCategories"] == {"1": "Casa", "10": "Cozinha"}
    assert isinstance(sku["BrandId"], str)
    assert sku["IsProductActive"] is True
    assert {"Dimension", "RealDimension", "AlternateIds", "SkuSellers", "Images", "SkuSpecifications"} <= set(sku)
    ean = sku["AlternateIds"]["Ean"]
    assert len(ean) == 13
    assert check_digit(ean[:12]) == ean[12]


def test_unknown_catalog_things_are_404_with_plain_text(store: Store) -> None:
    paths = (f"{SKU}/999", "/api/catalog_system/pvt/products/productget/1", "/api/catalog/pvt/category/77")
    for path in (*paths, "/api/logistics/pvt/inventory/skus/999", "/api/catalog_system/pub/saleschannel/9"):
        answer = store.get(path)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"].startswith("text/plain")
        with pytest.raises(ValueError, match="Expecting value"):
            answer.json()


def test_the_sku_list_pages_and_ends_with_an_empty_page(store: Store) -> None:
    pages = [store.get(f"{IDS}?sc=1&page={page}&pageSize=5").json() for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [5, 5, 2, 0]
    assert sorted(one for page in pages for one in page) == list(range(1, 13))
    assert store.get(f"{IDS}?sc=2").json() == []


def test_the_sku_list_can_ignore_paging_repeat_its_last_page_and_hold_duplicates(store: Store) -> None:
    store.control.catalog_habits(ACCOUNT, paging="ignored")
    assert len(store.get(f"{IDS}?sc=1&page=3&pageSize=5").json()) == 12
    store.control.catalog_habits(ACCOUNT, paging="repeated")
    assert store.get(f"{IDS}?sc=1&page=9&pageSize=5").json() == [11, 12]
    store.control.catalog_habits(ACCOUNT, paging="honoured", duplicate_ids=1.0)
    assert store.get(f"{IDS}?sc=1&page=1&pageSize=2").json() == [1, 1, 2, 2]


def test_skus_without_any_channel_are_listed_only_when_not_assigned_ones_are_wanted(store: Store) -> None:
    store.control.change(ACCOUNT, 5, channels=[], notify=False)
    assert 5 not in store.get(f"{IDS}?sc=1").json()
    assert 5 in store.get(f"{IDS}?sc=1&onlyAssigned=false").json()


def test_product_category_tree_channels_and_inventory_agree_with_the_sku(store: Store) -> None:
    sku = store.sku(4)
    product = store.get(f"/api/catalog_system/pvt/products/productget/{sku['ProductId']}").json()
    assert (product["CategoryId"], product["DepartmentId"], product["ListStoreId"]) == (10, 1, [1])
    tree = store.get("/api/catalog_system/pub/category/tree/2").json()
    assert [(one["id"], [child["id"] for child in one["children"]]) for one in tree] == [(1, [10])]
    category = store.get("/api/catalog/pvt/category/10?includeTreePath=true").json()
    assert category["TreePathIds"] == [1, 10]
    assert [one["Id"] for one in store.get("/api/catalog_system/pvt/saleschannel/list").json()] == [1, 2]
    balance = store.get("/api/logistics/pvt/inventory/skus/4").json()["balance"]
    assert sum(one["totalQuantity"] for one in balance) == 37


def test_a_change_of_the_product_reaches_every_sku_of_it(store: Store) -> None:
    store.control.change(ACCOUNT, 1, name="Renamed", product_active=False, notify=False)
    assert [store.sku(one)["ProductName"] for one in (1, 2, 3)] == ["Renamed"] * 3
    assert [store.sku(one)["IsProductActive"] for one in (1, 3, 4)] == [False, False, True]


# --- simulation ------------------------------------------------------------------------------------------------------


def test_the_sellers_simulation_shows_price_stock_and_no_slas_without_an_address(store: Store) -> None:
    answer = store.simulate(1)
    (item,), (logistics,) = answer["items"], answer["logisticsInfo"]
    assert (item["id"], item["price"], item["quantity"]) == ("1", 9990, 1)
    assert (logistics["itemIndex"], logistics["stockBalance"], logistics["slas"]) == (0, 37, [])
    assert "sellingPrice" not in item
    assert (answer["postalCode"], answer["country"]) == (None, None)


def test_slas_come_with_an_address(store: Store) -> None:
    answer = store.simulate(1, postalCode="01310-100", country="BRA")
    assert [sla["name"] for sla in answer["logisticsInfo"][0]["slas"]] == ["Normal", "Expressa"]


def test_the_checkout_form_has_selling_price_and_definition_times_the_unit_multiplier(store: Store) -> None:
    store.control.change(ACCOUNT, 1, unit_multiplier=2.5, discount=990, notify=False)
    (item,) = store.simulate(1, checkout=True, quantity=2)["items"]
    assert (item["price"], item["sellingPrice"], item["unitMultiplier"]) == (9000, 22500, 2.5)
    assert item["priceDefinition"]["total"] == 45000
    assert item["priceTags"][0]["value"] == -990


@pytest.mark.parametrize("change", [{"active": False}, {"product_active": False}, {"channels": [2]}])
def test_what_cannot_be_sold_is_missing_from_the_items(store: Store, change: dict[str, object]) -> None:
    store.control.change(ACCOUNT, 2, notify=False, **change)
    answer = store.simulate(4, 2, 999)
    assert [item["id"] for item in answer["items"]] == ["4"]
    assert [one["itemIndex"] for one in answer["logisticsInfo"]] == [0]
    assert len(answer["messages"]) == 2


def test_no_price_is_null_or_absent_and_no_stock_is_zero_or_absent(store: Store) -> None:
    store.control.change_many(ACCOUNT, [{"id": 1, "without_price": True}, {"id": 2, "stock": 0}], notify=False)
    answer = store.simulate(1, 2)
    assert [(item["price"], item["quantity"]) for item in answer["items"]] == [(None, 1), (9990, 0)]
    assert store.simulate(1, checkout=True)["items"][0]["availability"] == "withoutPrice"
    store.control.catalog_habits(ACCOUNT, missing_price="absent", missing_stock="absent")
    assert store.simulate(1, 2)["items"] == []


def test_unlimited_stock_is_a_very_large_balance(store: Store) -> None:
    store.control.change(ACCOUNT, 1, unlimited=True, notify=False)
    assert store.simulate(1)["logisticsInfo"][0]["stockBalance"] == 1_000_000


def test_a_channel_price_applies_to_its_channel_only(store: Store) -> None:
    store.control.change(ACCOUNT, 1, channels=[1, 2], channel_prices={"2": 5000}, notify=False)
    assert store.simulate(1)["items"][0]["price"] == 9990
    assert store.control.truth(ACCOUNT, 2)["1"].price == 5000


def test_stock_is_stale_for_a_while_after_a_change_while_the_price_is_fresh(store: Store) -> None:
    store.control.catalog_habits(ACCOUNT, stale_seconds=3.0)
    store.control.change(ACCOUNT, 1, stock=5, price=100, notify=False)
    first = store.simulate(1)
    assert (first["logisticsInfo"][0]["stockBalance"], first["items"][0]["price"]) == (37, 100)
    until(lambda: store.simulate(1)["logisticsInfo"][0]["stockBalance"] == 5)


def test_a_bad_simulation_names_what_is_wrong(store: Store) -> None:
    path = "/api/fulfillment/pvt/orderForms/simulation"
    assert store.call("POST", f"{path}?sc=1", data="{").json()["error"]["code"] == "ORD001"
    assert store.call("POST", f"{path}?sc=9", json={"items": []}).json()["error"]["code"] == "FMT0036"
    assert store.call("POST", f"{path}?affiliateId=XYZ", json={}).json()["error"]["code"] == "FMT0021"


# --- affiliates ------------------------------------------------------------------------------------------------------


def test_an_affiliate_is_created_by_put_after_a_404_read_listed_and_deleted(store: Store) -> None:
    path = "/api/fulfillment/pvt/affiliates/BBC"
    body = {
        "id": "BBC",
        "name": "Bazaar",
        "followUpEmail": "ops@example.org",
        "salesChannel": "2",
        "searchURIEndpoint": "https://hub.example/n/1",
        "SearchURIEndpointVersion": "1.x.x",
        "SearchURIEndpointAvailableVersions": ["1.x.x"],
    }
    assert store.get(path).status_code == 404
    assert store.call("PUT", path, json=body).status_code == 204
    assert store.get(path).json()["salesChannel"] == "2"
    assert {one["id"] for one in store.get("/api/fulfillment/pvt/affiliates").json()} == {"BBC", AFFILIATE}
    assert store.call("DELETE", path).status_code == 204
    assert store.get(path).status_code == 404


@pytest.mark.parametrize(
    ("affiliate", "changed", "code"),
    [("AMZ", {}, "FMT0031"), ("BBC", {"salesChannel": 2}, "FMT0036"), ("BBC", {"name": ""}, "FMT0032")],
)
def test_a_wrong_affiliate_is_refused(store: Store, affiliate: str, changed: dict[str, object], code: str) -> None:
    body = {"name": "Bazaar", "followUpEmail": "ops@example.org", "salesChannel": "2", **changed}
    answer = store.call("PUT", f"/api/fulfillment/pvt/affiliates/{affiliate}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


# --- orders ----------------------------------------------------------------------------------------------------------


def test_an_approved_order_is_enqueued_then_integrated_then_approved_under_one_operation(store: Store) -> None:
    answer = store.place(store.order_body())
    assert (answer.status_code, answer.json()["code"], answer.json()["operationId"]) == (200, "SOI003", None)
    first, second = store.result(count=2)
    assert [first["code"], second["code"]] == ["SOI001", "SOI002"]
    assert [first["flow"], second["flow"]] == ["PlaceOrder", "ApproveOrder"]
    assert first["operationId"] == second["operationId"]
    assert first["fields"]["mainOrderId"] == "MKT-900100200"
    assert any(
        f"/v/5f2c9a/order-integration/notification/processing-result?an={ACCOUNT}" in p for p, _ in store.heard.posts
    )


def test_a_created_order_can_be_read_with_buyer_items_and_call_back_address(store: Store) -> None:
    store.place(store.order_body())
    store.result(count=2)
    order = store.get("/api/oms/pvt/orders/MKT-900100200").json()
    assert (order["status"], order["value"], order["affiliateId"]) == ("ready-for-handling", 21930, AFFILIATE)
    assert order["clientProfileData"]["firstName"] == "Ana"
    assert order["clientProfileData"]["email"].endswith("@ct.vtex.com.br")
    assert [(one["id"], one["quantity"], one["price"]) for one in order["items"]] == [("1", 2, 9990)]
    assert order["marketplaceServicesEndpoint"].endswith("/v/5f2c9a")
    assert store.get("/api/oms/pvt/orders/MKT-1").status_code == 404


def test_a_new_order_waits_for_its_approval(store: Store) -> None:
    store.place(store.order_body(marketplaceOrderStatus="new"))
    assert [one["code"] for one in store.result()] == ["SOI001"]
    assert store.get("/api/oms/pvt/orders/MKT-900100200").json()["status"] == "waiting-ffmt-authorization"
    assert approve(store).json()["flow"] == "ApproveOrder"
    assert [one["code"] for one in store.result(count=2)][1] == "SOI002"
    assert store.get("/api/oms/pvt/orders/MKT-900100200").json()["status"] == "ready-for-handling"


def test_approving_what_is_not_there_yet_is_eoi008_and_what_is_past_it_eoi009(store: Store) -> None:
    approve(store)
    assert store.result()[-1]["code"] == "EOI008"
    store.place(store.order_body())
    store.result(count=3)
    approve(store)
    assert store.result(count=4)[-1]["code"] == "EOI009"


def test_the_second_identical_order_is_eoi007_and_creates_nothing(store: Store) -> None:
    store.place(store.order_body())
    store.result(count=2)
    assert store.place(store.order_body()).json()["code"] == "SOI003"
    assert store.result(count=3)[-1]["code"] == "EOI007"
    seen = store.control.orders(ACCOUNT)["900100200"]
    assert (seen.attempts, seen.accepted, seen.creations) == (2, 2, 1)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"items": [{"id": "1", "price": "9990", "quantity": 2}]}, "items.0.price"),
        ({"marketplacePaymentValue": 21.5}, "marketplacePaymentValue"),
        ({"connectorEndpoint": "https://hub.example/v?x=1"}, "connectorEndpoint"),
        ({"allowFranchises": None}, "allowFranchises"),
        ({"marketplaceOrderStatus": "paid"}, "marketplaceOrderStatus"),
        ({"items": [{"id": "1", "price": 1, "quantity": 1}] * 2}, "shippingData.logisticsInfo"),
        ({"invoiceData": {}}, "invoiceData.userPaymentInfo"),
    ],
)
def test_a_bad_body_is_eoi005_naming_the_field(store: Store, changed: dict[str, object], named: str) -> None:
    answer = store.place(store.order_body(**changed))
    assert (answer.status_code, answer.json()["code"]) == (400, "EOI005")
    assert any(named in one["description"] for one in answer.json()["errors"])
    assert store.get("/api/oms/pvt/orders/MKT-900100200").status_code == 404


def test_every_missing_field_is_named_at_once(store: Store) -> None:
    body = store.order_body()
    del body["shippingData"]["isFob"], body["clientProfileData"]["tradeName"], body["items"]
    text = " ".join(one["description"] for one in store.place(body).json()["errors"])
    assert all(name in text for name in ("shippingData.isFob", "clientProfileData.tradeName", "items"))


def test_a_bad_body_can_also_be_refused_later(store: Store) -> None:
    store.control.order_habits(ACCOUNT, validation="async")
    assert store.place(store.order_body(allowFranchises=None)).json()["code"] == "SOI003"
    (result,) = store.result()
    assert result["code"] == "EOI005"
    assert "allowFranchises" in result["errors"][0]["description"]


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
def test_every_eoi_code_can_be_had_on_demand_for_one_order(store: Store, number: int) -> None:
    code = f"EOI{number:03d}"
    store.control.force(ACCOUNT, code, order="bad")
    store.place(store.order_body("good"))
    store.place(store.order_body("bad"))
    assert [one["code"] for one in store.result("bad")] == [code]
    assert [one["code"] for one in store.result("good", count=2)] == ["SOI001", "SOI002"]
    created = store.get("/api/oms/pvt/orders/MKT-bad")
    assert created.status_code == (200 if code == "EOI011" else 404)


def test_a_forced_code_can_be_the_answer_itself_with_inner_errors(store: Store) -> None:
    errors = [{"source": "Fulfillment", "code": "FMT009", "description": "exists"}]
    store.control.force(ACCOUNT, "EOI007", sync=True, errors=errors)
    answer = store.place(store.order_body())
    assert (answer.status_code, answer.json()["code"], answer.json()["errors"]) == (400, "EOI007", errors)
    assert store.place(store.order_body()).json()["code"] == "SOI003"


def test_an_inner_time_out_may_have_created_the_order(store: Store) -> None:
    store.control.force(ACCOUNT, "EOI010", created=True)
    store.place(store.order_body())
    assert store.result()[0]["code"] == "EOI010"
    assert store.get("/api/oms/pvt/orders/MKT-900100200").status_code == 200


def test_unknown_skus_too_little_stock_and_divergence_are_told_apart(store: Store) -> None:
    store.control.order_habits(ACCOUNT, check_stock=True, divergence="deny")
    store.place(store.order_body("a", items=[{"id": "999", "price": 1, "quantity": 1}]))
    store.place(store.order_body("b", items=[{"id": "1", "price": 9990, "quantity": 38}]))
    store.place(store.order_body("c", items=[{"id": "1", "price": 9000, "quantity": 1}]))
    store.place(
        store.order_body("d", items=[{"id": "1", "price": 9000, "quantity": 1}], priceDivergenceAllowanceRate=10)
    )
    assert [store.result(one)[0]["code"] for one in "abcd"] == ["EOI004", "EOI002", "EOI003", "SOI001"]


def test_divergence_can_wait_for_the_seller_and_be_approved_later(store: Store) -> None:
    store.control.order_habits(ACCOUNT, divergence="manual")
    store.place(store.order_body(items=[{"id": "1", "price": 1, "quantity": 1}]))
    assert store.result()[0]["code"] == "EOI011"
    approve(store)
    assert store.result(count=2)[-1]["code"] == "EOI011"
    store.control.move_order(ACCOUNT, "MKT-900100200", status="waiting-ffmt-authorization")
    approve(store)
    assert store.result(count=3)[-1]["code"] == "SOI002"


def test_an_order_below_the_affiliates_minimum_is_eoi004(store: Store) -> None:
    body = {"name": "x", "followUpEmail": "a@example.org", "salesChannel": "1", "minimumValueAccumulated": 50_000}
    store.call("PUT", f"/api/fulfillment/pvt/affiliates/{AFFILIATE}", json=body)
    store.place(store.order_body())
    assert store.result()[0]["code"] == "EOI004"


def test_results_can_be_doubled_and_inverted(store: Store) -> None:
    store.control.order_habits(ACCOUNT, duplicates=1, inverted=True)
    store.place(store.order_body())
    assert [one["code"] for one in store.result(count=4)] == ["SOI002", "SOI002", "SOI001", "SOI001"]


def test_results_can_stay_away_while_the_order_is_created(store: Store) -> None:
    store.control.order_habits(ACCOUNT, silent=True)
    store.place(store.order_body())
    until(lambda: store.get("/api/oms/pvt/orders/MKT-900100200").status_code == 200)
    store.control.wait_until_idle()
    assert store.results() == []


def test_results_come_after_the_configured_delay(store: Store) -> None:
    store.control.order_habits(ACCOUNT, result_delay=0.4)
    placed = time.monotonic()
    store.place(store.order_body(marketplaceOrderStatus="new"))
    store.result()
    assert time.monotonic() - placed > 0.4


def test_an_order_can_take_its_quantity_from_the_stock_and_say_so(store: Store) -> None:
    store.control.order_habits(ACCOUNT, reserve_stock=True)
    store.place(store.order_body())
    store.result(count=2)
    assert store.control.truth(ACCOUNT, 1)["1"].stock == 35
    (note,) = until(lambda: store.heard.on("/n/t0ken"))
    assert (note["IdSku"], note["StockModified"], note["HasStockKeepingUnitModified"]) == ("1", True, False)


def test_an_unknown_affiliate_cannot_place_orders(store: Store) -> None:
    answer = store.call("POST", "/api/order-integration/orders?affiliateId=XYZ", json=store.order_body())
    assert answer.json()["errors"][0]["code"] == "FMT0021"


def test_cancelling_before_handling_asks_the_connector_and_then_cancels(store: Store) -> None:
    store.place(store.order_body(marketplaceOrderStatus="new"))
    store.result()
    path = "/api/oms/pvt/orders/MKT-900100200"
    assert store.call("POST", f"{path}/cancel", json={"reason": "shopper", "requestedByUser": True}).status_code == 200
    until(lambda: store.get(path).json()["status"] == "canceled")
    assert store.heard.on("/v/5f2c9a/pvt/orders/MKT-900100200/cancel")[0]["reason"] == "shopper"
    assert store.call("POST", f"{path}/cancel", json={}).status_code == 409


def test_cancelling_in_handling_needs_a_second_call_and_invoiced_is_400(store: Store) -> None:
    store.place(store.order_body())
    store.result(count=2)
    path = "/api/oms/pvt/orders/MKT-900100200"
    assert store.call("POST", f"{path}/start-handling").status_code == 204
    assert store.call("POST", f"{path}/start-handling").status_code == 409
    store.call("POST", f"{path}/cancel", json={"reason": "x"})
    assert store.get(path).json()["status"] == "cancellation-requested"
    store.call("POST", f"{path}/cancel", json={"reason": "x"})
    until(lambda: store.get(path).json()["status"] == "canceled")
    store.control.move_order(ACCOUNT, "MKT-900100200", status="invoiced")
    assert store.call("POST", f"{path}/cancel", json={"reason": "x"}).status_code == 400


def test_an_invoice_call_back_reaches_the_connector(store: Store) -> None:
    store.place(store.order_body())
    store.result(count=2)
    body = {"type": "Output", "invoiceNumber": "N1", "invoiceValue": 21930}
    assert store.control.call_back(ACCOUNT, "MKT-900100200", "pvt/orders/900100200/invoice", body) == 200
    assert store.heard.on("/v/5f2c9a/pvt/orders/900100200/invoice") == [body]


def approve(store: Store) -> requests.Response:
    body = store.order_body()
    wanted = {key: body[key] for key in ("marketplaceOrderId", "connectorName", "connectorEndpoint")}
    path = "/api/order-integration/orders/status"
    return store.call("PUT", path, json={**wanted, "marketplaceOrderStatus": "approved"})


# --- notifications ---------------------------------------------------------------------------------------------------


def test_a_change_is_told_with_the_flags_that_fit_it(store: Store) -> None:
    store.control.change(ACCOUNT, 1, stock=3)
    store.control.wait_until_idle()
    store.control.change(ACCOUNT, 1, price=100)
    store.control.wait_until_idle()
    store.control.change(ACCOUNT, 1, active=False)
    store.control.wait_until_idle()
    store.control.change(ACCOUNT, 1, channels=[2])
    store.control.wait_until_idle()
    flags = ("StockModified", "PriceModified", "HasStockKeepingUnitModified", "HasStockKeepingUnitRemovedFromAffiliate")
    assert [[one[name] for name in flags] for one in store.heard.on("/n/t0ken")] == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert [one["IsActive"] for one in store.heard.on("/n/t0ken")] == [True, True, False, False]


def test_the_date_has_seven_fraction_digits_and_the_query_of_the_endpoint_stays(store: Store) -> None:
    store.control.change(ACCOUNT, 1, stock=3)
    (note,) = until(lambda: store.heard.on("/n/t0ken/api/notification/?x=1"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z", note["DateModified"])
    assert "ProductId" not in note


def test_a_burst_tells_of_every_sku_of_the_product(store: Store) -> None:
    assert store.control.change(ACCOUNT, 1, stock=3, notify="burst") == 3
    store.control.wait_until_idle()
    assert {one["IdSku"] for one in store.heard.on("/n/t0ken")} == {"1", "2", "3"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_body_variant_can_be_chosen(store: Store, variant: str) -> None:
    store.control.notifier_habits(ACCOUNT, variant=variant, sku_as="int")
    store.control.change(ACCOUNT, 1, stock=3, name="x")
    (note, *_) = until(lambda: store.heard.on("/n/t0ken"))
    keys = {
        "guide": {"idSKU", "productId", "an", "idAffiliate", "DateModified", "isActive"},
        "real": {"IdSku", "An", "IdAffiliate", "DateModified", "IsActive"},
        "legacy": {"IdSku", "An", "IdAffiliate", "StockModified", "PriceModified"},
        "broadcaster": {"IdSku", "ProductId", "Version"},
        "minimal": {"IdSku", "HasStockKeepingUnitModified"},
    }[variant]
    assert keys <= set(note)
    assert len(note) == {"guide": 10, "real": 9, "legacy": 5, "broadcaster": 11, "minimal": 2}[variant]
    assert note.get("IdSku", note.get("idSKU")) == 1


def test_random_variants_casings_paths_and_ids_are_all_drawn(store: Store) -> None:
    store.control.notifier_habits(
        ACCOUNT, variant="random", casing="random", path="random", sku_as="random", booleans="string", account_as="host"
    )
    for _ in range(20):
        store.control.notify(ACCOUNT)
    store.control.wait_until_idle()
    assert len({frozenset(body) for _, body in store.heard.posts}) >= 12
    assert len({path.partition("/n/")[2] for path, _ in store.heard.posts}) >= 4
    ids = [value for _, body in store.heard.posts for key, value in body.items() if key.lower() == "idsku"]
    assert {type(one) for one in ids} == {str, int}
    assert {body["An"] for _, body in store.heard.posts if "An" in body} == {f"{ACCOUNT}.myvtex"}


def test_loss_and_doubles_are_counted_and_nothing_is_sent_again_after_a_refusal(store: Store) -> None:
    store.heard.status = 503
    store.control.notifier_habits(ACCOUNT, loss_share=0.5, duplicate_share=0.5)
    for _ in range(10):
        store.control.notify(ACCOUNT)
    store.control.wait_until_idle()
    counts = store.control.notifications(ACCOUNT)["counts"]
    assert counts["lost"] + counts["sent"] == 120 + counts["doubled"]
    assert counts["status_503"] == counts["sent"] == len(store.heard.on("/n/t0ken"))
    assert min(counts["lost"], counts["doubled"]) > 0


def test_a_shuffled_and_jittered_burst_arrives_out_of_order(store: Store) -> None:
    store.control.notifier_habits(ACCOUNT, shuffled=True, jitter=0.05)
    store.control.notify(ACCOUNT)
    store.control.wait_until_idle()
    order = [int(one["IdSku"]) for one in store.heard.on("/n/t0ken")]
    assert sorted(order) == list(range(1, 13))
    assert order != sorted(order)


def test_a_dead_hub_is_counted_as_no_answer(store: Store) -> None:
    store.control.put_affiliate(ACCOUNT, AFFILIATE, sales_channel=1, endpoint="http://127.0.0.1:9/n")
    store.control.change(ACCOUNT, 1, stock=3)
    store.control.wait_until_idle()
    assert store.control.notifications(ACCOUNT)["counts"] == {"doubled": 0, "no_answer": 1, "sent": 1}


def test_new_skus_are_announced_and_deleted_ones_leave(store: Store) -> None:
    assert store.control.grow(ACCOUNT, 2, first_id=50, category_ids=[1], notify=True) == 2
    store.control.drop(ACCOUNT, 50)
    store.control.wait_until_idle()
    last = store.heard.on("/n/t0ken")[-1]
    assert (last["IdSku"], last["HasStockKeepingUnitRemovedFromAffiliate"]) == ("50", True)
    assert store.get(f"{SKU}/50").status_code == 404


def test_paths_are_put_before_the_query_of_the_endpoint() -> None:
    assert notification_url("https://hub/t/?a=1", "/catalog/notification") == "https://hub/t/catalog/notification?a=1"
    assert notification_url("https://hub/t", "") == "https://hub/t"


# --- faults, limits, journal -----------------------------------------------------------------------------------------


def test_a_status_fault_bites_so_often_and_only_its_operation(store: Store) -> None:
    store.control.fault("status", "sku", status=503, count=2)
    assert [store.get(f"{SKU}/1").status_code for _ in range(3)] == [503, 503, 200]
    store.control.fault("status", "group:catalog", status=403, account="nobody")
    assert store.get(f"{SKU}/1").status_code == 200


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_throttle_tells_when_to_come_back_in_both_header_families(store: Store, form: str) -> None:
    store.control.fault("throttle", "sku", retry_after=12, retry_after_form=form, count=1)
    asked = datetime.now(UTC)
    answer = store.get(f"{SKU}/1")
    assert answer.status_code == 429
    spelt = ("Ratelimit-Remaining", "Ratelimit-Reset", "X-RateLimit-Remaining", "X-RateLimit-Reset")
    assert [answer.headers[name] for name in spelt] == ["0", "12", "0", "12"]
    value = answer.headers["Retry-After"]
    wait = float(value) if form == "seconds" else (parsedate_to_datetime(value) - asked).total_seconds()
    assert 11 <= wait <= 13 + (datetime.now(UTC) - asked).total_seconds()


def test_a_limit_per_minute_answers_429_and_names_what_is_left(store: Store) -> None:
    store.control.limit("group:catalog", 2)
    answers = [store.get(f"{SKU}/1") for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert [one.headers["X-RateLimit-Remaining"] for one in answers] == ["1", "0", "0"]
    assert 0 < int(answers[2].headers["Retry-After"]) <= 60
    assert store.simulate(1)["items"]


def test_hanging_after_the_effect_leaves_the_order_created(store: Store) -> None:
    store.control.fault("hang_after", "create_order", count=1, seconds=30)
    path = f"/api/order-integration/orders?affiliateId={AFFILIATE}"
    with pytest.raises(requests.exceptions.ReadTimeout):
        store.call("POST", path, json=store.order_body(), timeout=1.0)
    assert [one["code"] for one in store.result(count=2)] == ["SOI001", "SOI002"]


def test_hanging_before_the_effect_and_a_lying_answer_create_nothing(store: Store) -> None:
    store.control.fault("hang_before", "create_order", count=1, seconds=30)
    path = f"/api/order-integration/orders?affiliateId={AFFILIATE}"
    with pytest.raises(requests.exceptions.ReadTimeout):
        store.call("POST", path, json=store.order_body(), timeout=1.0)
    store.control.fault("lie", "create_order", count=1)
    assert store.place(store.order_body()).json()["code"] == "SOI003"
    store.control.wait_until_idle()
    assert store.control.orders(ACCOUNT)["900100200"].creations == 0
    assert store.get("/api/oms/pvt/orders/MKT-900100200").status_code == 404


def test_a_hang_ends_with_504_for_the_patient(store: Store) -> None:
    store.control.fault("hang_before", "sku", count=1, seconds=0.1)
    assert store.get(f"{SKU}/1").status_code == 504


def test_a_cut_connection_breaks_in_the_body(store: Store) -> None:
    store.control.fault("cut", "sku", count=1)
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
        store.get(f"{SKU}/1")
    assert store.get(f"{SKU}/1").status_code == 200


def test_a_dripped_body_is_whole_but_slow_and_latency_waits_first(store: Store) -> None:
    whole = store.sku(1)
    store.control.fault("drip", "sku", count=1, seconds=0.3)
    started = time.monotonic()
    assert store.sku(1) == whole
    assert time.monotonic() - started > 0.25
    store.control.fault("latency", "sku", count=1, seconds=0.2)
    started = time.monotonic()
    store.sku(1)
    assert time.monotonic() - started > 0.19


def test_a_stale_read_shows_the_offer_before_the_change(store: Store) -> None:
    store.control.change(ACCOUNT, 1, price=100, notify=False)
    store.control.fault("stale", "simulation", count=1)
    assert [store.simulate(1)["items"][0]["price"] for _ in range(2)] == [9990, 100]


def test_a_fault_by_chance_repeats_for_the_same_seed(store: Store) -> None:
    def drawn() -> list[int]:
        store.control.clear_faults()
        store.control.fault("status", "channel", status=500, probability=0.5)
        return [store.get("/api/catalog_system/pub/saleschannel/1").status_code for _ in range(20)]

    first = drawn()
    store.control.reset(seed=7)
    store.control.open_account(ACCOUNT, KEY, TOKEN)
    second = drawn()
    assert set(first) == {200, 500}
    assert first == second


def test_a_fault_that_makes_no_sense_is_refused_with_field_and_fix(store: Store) -> None:
    with pytest.raises(ControlRefusedError, match="probability"):
        store.control.fault("status", probability=7)
    with pytest.raises(ControlRefusedError, match="kind"):
        store.control.fault("explode")


def test_the_journal_keeps_requests_redacted_and_finds_them(store: Store) -> None:
    store.control.clear_journal()
    store.place(store.order_body())
    store.get(f"{SKU}/1", headers={})
    (placed,) = store.control.journal(operation="create_order")
    assert placed["status"] == 200
    assert '"marketplaceOrderId"' in placed["body"]
    assert TOKEN not in str(placed)
    assert KEY not in str(placed)
    (denied,) = store.control.journal(account=ACCOUNT, status=401)
    assert denied["path"].endswith("/stockkeepingunitbyid/1")
    assert store.control.calls("create_order", ACCOUNT) == 1
    assert store.control.calls(account=ACCOUNT) == 2


# --- control ---------------------------------------------------------------------------------------------------------


def test_the_truth_tells_what_can_be_sold(store: Store) -> None:
    store.control.change(ACCOUNT, 1, price=500, list_price=900, discount=50, stock=4, category=1, notify=False)
    store.control.change(ACCOUNT, 4, stock=0, notify=False)
    truth = store.control.truth(ACCOUNT, 1)
    one = truth["1"]
    assert (one.price, one.list_price, one.stock, one.category, one.sellable) == (450, 900, 4, 1, True)
    assert not truth["4"].sellable
    assert one.name == store.sku(1)["NameComplete"]
    assert {each.in_channel for each in truth.values()} == {True}
    assert {each.in_channel for each in store.control.truth(ACCOUNT, 2).values()} == {False}


def test_a_snapshot_brings_everything_back(store: Store) -> None:
    store.control.keep("before")
    store.control.change(ACCOUNT, 1, price=1, channels=[2], notify=False)
    store.place(store.order_body())
    store.result(count=2)
    store.control.go_back("before")
    assert store.simulate(1)["items"][0]["price"] == 9990
    assert store.control.orders(ACCOUNT) == {}
    with pytest.raises(ControlRefusedError, match="snapshot"):
        store.control.go_back("never")


def test_the_same_seed_gives_the_same_skus(store: Store) -> None:
    first = store.sku(3)
    with in_thread(app(World(seed=7))) as url:
        twin = Store(f"{url}/{ACCOUNT}", type(store.control)(url), store.heard, store.headers)
        twin.control.open_account(
            ACCOUNT,
            KEY,
            TOKEN,
            channels=[{"id": 1}],
            categories=[{"id": 1, "name": "Casa"}, {"id": 10, "name": "Cozinha", "parent": 1}],
        )
        twin.control.grow(ACCOUNT, 5, skus_per_product=3, category_ids=[10], price=[9990, 9990], stock=[37, 37])
        assert twin.sku(3) == first


def test_control_names_what_is_wrong(store: Store) -> None:
    with pytest.raises(ControlRefusedError, match="category_ids"):
        store.control.grow(ACCOUNT, 1, category_ids=[77])
    with pytest.raises(ControlRefusedError, match="colour"):
        store.control.change(ACCOUNT, 1, colour="red")
    with pytest.raises(ControlRefusedError, match="POST /_control/accounts"):
        store.control.orders("nobody")
