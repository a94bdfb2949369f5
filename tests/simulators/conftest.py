"""A simulated VTEX with one account, and a hub that only remembers what it is told."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hub.simulators.control import VtexControl
from hub.simulators.serving import in_thread
from hub.simulators.vtex import World, app
from tests.vtex.order_bodies import order_body

ACCOUNT = "acme"
KEY = "vtexappkey-acme-ABCDEF"
TOKEN = "synthetic-token"
AFFILIATE = "MKT"


@dataclass
class Heard:
    """Everything that was posted to the hub."""

    url: str = ""
    posts: list[tuple[str, Any]] = field(default_factory=list)
    status: int = 200
    lock: threading.Lock = field(default_factory=threading.Lock)

    def on(self, part: str) -> list[Any]:
        with self.lock:
            return [body for path, body in self.posts if part in path]


def until(true: Callable[[], object], seconds: float = 60.0) -> Any:
    """Poll until it is true; the value, or a failure at the deadline."""
    ends = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < ends, "not true in time"
        time.sleep(0.005)
    return value


@dataclass
class Store:
    """The account as the hub calls it."""

    url: str
    control: VtexControl
    heard: Heard
    headers: dict[str, str]

    def call(self, method: str, path: str, **given: Any) -> requests.Response:
        given.setdefault("headers", self.headers)
        return requests.request(method, f"{self.url}{path}", timeout=given.pop("timeout", 10), **given)

    def get(self, path: str, **given: Any) -> requests.Response:
        return self.call("GET", path, **given)

    def sku(self, sku: int) -> dict[str, Any]:
        found = self.get(f"/api/catalog_system/pvt/sku/stockkeepingunitbyid/{sku}?sc=1")
        assert found.status_code == 200, found.text
        return dict(found.json())

    def simulate(self, *skus: int, checkout: bool = False, quantity: int = 1, **more: Any) -> dict[str, Any]:
        path = "checkout/pub" if checkout else "fulfillment/pvt"
        body = {
            "items": [{"id": str(sku), "quantity": quantity, "seller": "1"} for sku in skus],
            "postalCode": None,
            "country": None,
            **more,
        }
        found = self.call("POST", f"/api/{path}/orderForms/simulation?sc=1&affiliateId={AFFILIATE}", json=body)
        assert found.status_code == 200, found.text
        return dict(found.json())

    def order_body(self, order: str = "900100200", **changed: Any) -> dict[str, Any]:
        connector = {"connectorName": "hub-example", "connectorEndpoint": f"{self.heard.url}/v/5f2c9a"}
        return order_body(order, **{**connector, **changed})

    def place(self, body: dict[str, Any]) -> requests.Response:
        return self.call("POST", f"/api/order-integration/orders?affiliateId={AFFILIATE}", json=body)

    def results(self, order: str = "900100200") -> list[dict[str, Any]]:
        found = self.heard.on("processing-result")
        return [one for one in found if one["marketplaceOrderId"] == order]

    def result(self, order: str = "900100200", count: int = 1) -> list[dict[str, Any]]:
        return list(until(lambda: len(found := self.results(order)) >= count and found))


@pytest.fixture(scope="session")
def hub_ear() -> Iterator[Heard]:
    heard = Heard()

    async def hear(request: Request) -> Response:
        body = await request.body()
        with heard.lock:
            heard.posts.append((str(request.url), json.loads(body) if body else None))
        await asyncio.sleep(0)
        return JSONResponse({}, heard.status)

    with in_thread(Starlette(routes=[Route("/{rest:path}", hear, methods=["POST"])])) as url:
        heard.url = url
        yield heard


@pytest.fixture(scope="session")
def vtex_url() -> Iterator[str]:
    with in_thread(app(World(seed=7))) as url:
        yield url


@pytest.fixture
def store(vtex_url: str, hub_ear: Heard) -> Iterator[Store]:
    control = VtexControl(vtex_url)
    control.reset(seed=7)
    hub_ear.posts.clear()
    hub_ear.status = 200
    control.open_account(
        ACCOUNT,
        KEY,
        TOKEN,
        channels=[{"id": 1}, {"id": 2, "name": "Other", "currency": "EUR"}],
        categories=[{"id": 1, "name": "Casa"}, {"id": 10, "name": "Cozinha", "parent": 1}],
        affiliates=[{"id": AFFILIATE, "sales_channel": 1, "search_uri_endpoint": f"{hub_ear.url}/n/t0ken?x=1"}],
    )
    control.grow(ACCOUNT, 12, skus_per_product=3, category_ids=[10], price=[9990, 9990], stock=[37, 37])
    headers = {"X-VTEX-API-AppKey": KEY, "X-VTEX-API-AppToken": TOKEN, "Accept": "application/json"}
    yield Store(f"{vtex_url}/{ACCOUNT}", control, hub_ear, headers)
    control.wait_until_idle()
    control.close()
