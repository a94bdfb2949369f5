"""What the hub sends to VTEX is valid by VTEX's own documents, and `null` stands only where it may (vtex.md 2.6)."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hub.ports import CartItem
from hub.simulators.control import VtexControl
from hub.vtex import VtexStore, simulation_body
from tests.openapi import needs_openapi, schema_for

from .order_bodies import order_body

ORDERS = "vtex/external-marketplace-orders.json"
EVERY_KEY = {
    *("items", "marketingData", "postalCode", "country", "selectedSla", "clientProfileData"),
    *("geoCoordinates", "isCheckedIn", "storeId"),
}


def leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{at}.{key}" if at else key)
    elif isinstance(tree, list) and tree:
        for value in tree:
            yield from leaves(value, at)
    else:
        yield at, tree


def sent(control: VtexControl, operation: str) -> Any:
    body = control.journal(operation=operation)[-1]["body"]
    return json.loads(body) if isinstance(body, str) else body


@pytest.mark.scenario("ORD-37", rule=True)
@pytest.mark.parametrize("address", [{}, {"postal_code": "01310-100", "country": "BRA"}])
def test_a_simulation_has_every_key_and_no_null_for_booleans_and_numbers(address: dict[str, str]) -> None:
    body = simulation_body([CartItem("13", 2)], **address)
    assert set(body) == EVERY_KEY
    assert body["isCheckedIn"] is False
    assert body["geoCoordinates"] == []
    assert body["items"] == [{"id": "13", "quantity": 2, "seller": "1"}]


@needs_openapi
@pytest.mark.scenario("ORD-37", rule=True)
@pytest.mark.parametrize("file", [ORDERS, "vtex/checkout-simulation.cut.json"])
@pytest.mark.parametrize("address", [{}, {"postal_code": "01310-100", "country": "BRA"}])
def test_a_simulation_is_valid_by_both_documents(file: str, address: dict[str, str]) -> None:
    body = simulation_body([CartItem("13")], **address)
    schema_for(file, "/api/checkout/pub/orderForms/simulation", "post", "request").check(body)


@needs_openapi
@pytest.mark.scenario("ORD-37")
def test_an_order_and_its_approval_are_valid_as_they_go_out(store: VtexStore, control: VtexControl) -> None:
    store.create_order(order_body())
    store.approve_order("900100200")
    created, approved = sent(control, "create_order"), sent(control, "order_status")
    schema_for(ORDERS, "/api/order-integration/orders", "post", "request").check(created)
    schema_for(ORDERS, "/api/order-integration/orders/status", "put", "request").check(approved)
    assert {place for place, value in leaves(created) if value is None} == {
        "clientProfileData.corporateDocument",
        "clientProfileData.corporatePhone",
        "clientProfileData.corporateName",
        "clientProfileData.tradeName",
        "clientProfileData.stateInscription",
    }
    assert all(value is not None for _, value in leaves(approved))
