"""The simulated VTEX answers in the shape of VTEX's own OpenAPI documents."""

from typing import Any

import pytest

from tests.openapi import needs_openapi, schema_for
from tests.simulators.conftest import ACCOUNT, AFFILIATE, Store
from tests.simulators.test_vtex_simulator import approve

pytestmark = needs_openapi

CATALOG = "vtex/catalog.cut.json"
ORDERS = "vtex/external-marketplace-orders.json"
READS = [
    (CATALOG, "/api/catalog_system/pvt/sku/stockkeepingunitidsbysaleschannel", "?sc=1&page=1&pageSize=5", {}),
    (CATALOG, "/api/catalog_system/pvt/sku/stockkeepingunitbyid/{skuId}", "", {"skuId": 1}),
    (CATALOG, "/api/catalog_system/pvt/products/productget/{productId}", "", {"productId": 100000}),
    (CATALOG, "/api/catalog_system/pub/category/tree/{categoryLevels}", "", {"categoryLevels": 3}),
    (CATALOG, "/api/catalog/pvt/category/{categoryId}", "", {"categoryId": 10}),
    (CATALOG, "/api/catalog/pvt/category/{categoryId}", "?includeTreePath=true", {"categoryId": 10}),
    (CATALOG, "/api/catalog_system/pvt/saleschannel/list", "", {}),
    (CATALOG, "/api/catalog_system/pub/saleschannel/{salesChannelId}", "", {"salesChannelId": 2}),
    ("vtex/logistics.cut.json", "/api/logistics/pvt/inventory/skus/{skuId}", "", {"skuId": 1}),
]


@pytest.mark.parametrize(("file", "path", "query", "names"), READS)
def test_catalog_reads_fit_their_schema(
    store: Store, file: str, path: str, query: str, names: dict[str, object]
) -> None:
    answer = store.get(path.format(**names) + query)
    assert answer.status_code == 200
    schema_for(file, path, "get", 200).check(answer.json())


def test_affiliates_fit_their_schema_both_ways(store: Store) -> None:
    listed = store.get("/api/fulfillment/pvt/affiliates").json()
    schema_for("vtex/affiliates.cut.json", "/fulfillment/pvt/affiliates", "get", 200).check(listed)
    one = "/fulfillment/pvt/affiliates/{affiliateId}"
    found = store.get(f"/api/fulfillment/pvt/affiliates/{AFFILIATE}").json()
    assert found["id"] == listed[0]["id"] == AFFILIATE
    schema_for("vtex/affiliates.cut.json", one, "get", 200).check(found)
    schema_for("vtex/affiliates.cut.json", one, "put", "request").check({**listed[0], "searchURIEndpoint": None})


ADDRESSES: list[dict[str, Any]] = [{}, {"postalCode": "01310-100", "country": "BRA"}]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("file", ["vtex/checkout-simulation.cut.json", ORDERS])
def test_the_checkout_simulation_fits_both_documents(store: Store, file: str, address: dict[str, Any]) -> None:
    changes = [
        {"id": 1, "discount": 10, "unit_multiplier": 2.5},
        {"id": 2, "without_price": True},
        {"id": 3, "stock": 0},
    ]
    store.control.change_many(ACCOUNT, changes, notify=False)
    answer = store.simulate(1, 2, 3, 999, checkout=True, **address)
    schema_for(file, "/api/checkout/pub/orderForms/simulation", "post", 200).check(answer)


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_sellers_simulation_fits_its_mirror_image(store: Store, address: dict[str, Any]) -> None:
    answer = store.simulate(1, 2, 999, **address)
    file = "vtex/external-seller-fulfillment.json"
    schema_for(file, "/pvt/orderForms/simulation", "post", 200).check(answer)


def test_the_orders_of_these_tests_and_their_answers_fit_the_order_integration(store: Store) -> None:
    path = "/api/order-integration/orders"
    schema_for(ORDERS, path, "post", "request").check(store.order_body())
    taken = store.place(store.order_body()).json()
    refused = store.place(store.order_body(allowFranchises=None)).json()
    assert (taken["success"], refused["success"]) == (True, False)
    schema_for(ORDERS, path, "post", 200).check(taken)
    schema_for(ORDERS, path, "post", "default").check(refused)
    for result in store.result(count=2):
        schema_for(ORDERS, path, "post", "default").check(result)
    schema_for(ORDERS, f"{path}/status", "put", 200).check(approve(store).json())


def test_get_order_fits_its_schema(store: Store) -> None:
    store.place(store.order_body())
    store.result(count=2)
    answer = store.get("/api/oms/pvt/orders/MKT-900100200").json()
    assert answer["orderId"] == "MKT-900100200"
    schema_for("vtex/orders.cut.json", "/api/oms/pvt/orders/{orderId}", "get", 200).check(answer)


def test_a_broken_answer_would_be_noticed(store: Store) -> None:
    path = "/api/catalog_system/pvt/sku/stockkeepingunitbyid/{skuId}"
    sku = store.sku(1)
    problems = schema_for(CATALOG, path, "get", 200).problems({**sku, "BrandId": 7, "Images": None})
    assert {one.partition(":")[0] for one in problems} == {"BrandId", "Images"}


@pytest.mark.parametrize("file", ["vtex/checkout-simulation.cut.json", ORDERS])
def test_the_documented_simulation_request_fits_both_documents(file: str) -> None:
    body: dict[str, Any] = {
        "items": [{"id": "13", "quantity": 1, "seller": "1"}],
        "marketingData": None,
        "postalCode": None,
        "country": None,
        "selectedSla": None,
        "clientProfileData": None,
        "geoCoordinates": [],
        "isCheckedIn": False,
        "storeId": None,
    }
    checked = schema_for(file, "/api/checkout/pub/orderForms/simulation", "post", "request")
    checked.check(body)
    assert checked.problems({**body, "items": "13"})


def test_the_documented_approval_request_fits_its_document() -> None:
    body = {
        "marketplaceOrderId": "1",
        "marketplaceOrderStatus": "approved",
        "connectorName": "hub-example",
        "connectorEndpoint": "https://hub.example/v/1",
    }
    checked = schema_for(ORDERS, "/api/order-integration/orders/status", "put", "request")
    checked.check(body)
    assert checked.problems({**body, "connectorEndpoint": None})
