"""A fourth marketplace that lives only in the tests: nothing in `hub` knows it, and it passes the same suite.

It is another animal than the sandbox: articles are put by our own code (upsert), price and stock are one "terms"
record in whole cents, everything is answered at once, nothing can be deleted (an article is taken off sale), its orders
have no discounts and are only polled, its key is static and goes in a header of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response

from hub.errors import AuthLost, NotFound, Problem, Refusal
from hub.marketplaces import Account, Adapter
from hub.model import (
    Action,
    Address,
    Buyer,
    Listing,
    LotResult,
    MarketplaceOrder,
    OrderItem,
    OrderPage,
    Price,
    Product,
    Record,
    Shown,
    Written,
)
from hub.ports import Manifest, Rendered
from hub.rules import ListingRules
from hub.rules.validation import Demands, listing_problems
from hub.simulators.faults import Call, Door, Faults, Journal, Limits, control_routes

MANIFEST = Manifest(
    name="outlet",
    title="Outlet",
    actions=frozenset({Action.REGISTER, Action.UPDATE, Action.OFFER, Action.DEACTIVATE, Action.ACTIVATE}),
    offer="combined",
    create="upsert",
    polls_orders=True,
    max_stock=500,
    verification="spec-verified",
    secret_fields=("key",),
)


# --- the server ---------------------------------------------------------------------------------------------------


@dataclass
class OutletWorld:
    """What the outlet holds, open to the tests."""

    key: str = "outlet-key-0001"
    articles: dict[str, dict[str, Any]] = field(default_factory=dict)
    orders: list[dict[str, Any]] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))


def outlet_app(world: OutletWorld) -> Starlette:
    faults, journal, limits = Faults(), Journal(), Limits()

    def deny(request: Any, operation: str, group: str) -> Response | None:
        return None if request.headers.get("x-outlet-key") == world.key else JSONResponse({"why": "key"}, 401)

    door = Door(faults, journal, limits, deny)

    def refused(*wrong: str) -> Response:
        return JSONResponse({"wrong": list(wrong)}, 422)

    async def put_article(call: Call) -> Response:
        code, body = call.parameters["code"], call.json()
        assert isinstance(body, dict)
        wrong = [name for name in ("name", "shelf", "pictures") if not body.get(name)]
        if len(str(body.get("name", ""))) > 40:
            wrong.append("name")
        if wrong:
            return refused(*wrong)
        article = world.articles.setdefault(code, {"number": next(world.numbers), "terms": None, "on_sale": True})
        article |= body
        return JSONResponse({"number": article["number"]})

    async def put_terms(call: Call) -> Response:
        article, body = world.articles.get(call.parameters["code"]), call.json()
        if article is None:
            return JSONResponse({"wrong": ["code"]}, 404)
        assert isinstance(body, dict)
        wrong = [
            name for name, value in body.items() if value is not None and (not isinstance(value, int) or value < 0)
        ]
        if wrong:
            return refused(*wrong)
        article["terms"] = (article["terms"] or {}) | {name: value for name, value in body.items() if value is not None}
        return JSONResponse({"number": article["number"]})

    async def put_sale(call: Call) -> Response:
        article, body = world.articles.get(call.parameters["code"]), call.json()
        if article is None:
            return JSONResponse({"wrong": ["code"]}, 404)
        assert isinstance(body, dict)
        article["on_sale"] = bool(body["on"])
        return JSONResponse({"number": article["number"]})

    async def get_article(call: Call) -> Response:
        article = world.articles.get(call.parameters["code"])
        return JSONResponse({"wrong": ["code"]}, 404) if article is None else JSONResponse(article)

    async def get_orders(call: Call) -> Response:
        first = int(call.query.get("from", "0"))
        return JSONResponse([{"id": order["id"]} for order in world.orders[first:]])

    async def get_order(call: Call) -> Response:
        found = [order for order in world.orders if order["id"] == call.parameters["id"]]
        return JSONResponse(found[0]) if found else JSONResponse({}, 404)

    async def get_shelves(call: Call) -> Response:
        return JSONResponse({"A1": "Shirts", "A2": "Cups"})

    routes: tuple[tuple[str, str, str, Callable[[Call], Any]], ...] = (
        ("PUT", "/articles/{code}", "article", put_article),
        ("PUT", "/articles/{code}/terms", "terms", put_terms),
        ("PUT", "/articles/{code}/sale", "sale", put_sale),
        ("GET", "/articles/{code}", "look", get_article),
        ("GET", "/orders", "orders", get_orders),
        ("GET", "/orders/{id}", "order", get_order),
        ("GET", "/shelves", "shelves", get_shelves),
    )
    return Starlette(
        routes=[
            *(door.route(path, answer, methods=[method], operation=name) for method, path, name, answer in routes),
            *control_routes(faults, journal, limits),
        ]
    )


# --- the adapter --------------------------------------------------------------------------------------------------


class Outlet:
    """One store's account on the outlet."""

    def __init__(self, account: Account) -> None:
        self._account = account

    @property
    def manifest(self) -> Manifest:
        return MANIFEST

    def render(self, product: Product, category: str, rules: ListingRules) -> Rendered:  # noqa: ARG002 – the port's signature
        listing = Listing(product.name, product.description, category, product.brand, product.ean, product.images)
        problems = listing_problems(listing, Demands(title_max=40, images_min=1))
        return Rendered(None if problems else listing, problems)

    def write(self, record: Record) -> Written:
        if record.action not in MANIFEST.actions:
            raise Refusal((Problem("E3", "action", record.action, "the outlet cannot do it"),), status=405)
        if record.action in (Action.DEACTIVATE, Action.ACTIVATE):
            return self._put(record, "/sale", "sale", {"on": record.action is Action.ACTIVATE})
        written = Written("")
        if record.listing is not None:
            listing = record.listing
            body = {"name": listing.title, "shelf": listing.category, "pictures": list(listing.images)}
            body |= {"text": listing.description, "brand": listing.brand, "ean": listing.ean}
            written = self._put(record, "", "article", body)
        if record.price is not None or record.stock is not None:
            price = record.price
            terms = {"price": price and price.sale, "was": price and price.list, "pieces": record.stock}
            written = self._put(record, "/terms", "terms", terms)
        return written

    def _put(self, record: Record, part: str, operation: str, body: Mapping[str, Any]) -> Written:
        path = f"/articles/{quote(record.sku, safe='')}{part}"
        tree = self._call("PUT", path, operation, "idempotent", json=dict(body))
        return Written(str(tree["number"]))

    def show(self, sku: str, remote_id: str | None) -> Shown | None:  # noqa: ARG002 – the port's signature
        try:
            tree = self._call("GET", f"/articles/{quote(sku, safe='')}", "look")
        except NotFound:
            return None
        terms = tree["terms"] or {}
        price = Price(terms["price"], terms["was"]) if "price" in terms else None
        pictures = tuple(tree["pictures"])
        listing = Listing(tree["name"], tree["text"], tree["shelf"], tree["brand"], tree["ean"], pictures)
        return Shown(sku, str(tree["number"]), tree["on_sale"], "", price, terms.get("pieces"), listing)

    def encode(self, *_: object) -> bytes:
        raise _no_lots()

    def submit_lot(self, *_: object) -> str:
        raise _no_lots()

    def lot_result(self, *_: object) -> LotResult | None:
        raise _no_lots()

    def find_lot(self, *_: object) -> str | None:
        raise _no_lots()

    def changed_orders(self, cursor: str | None) -> OrderPage:
        first = int(cursor or 0)
        found = self._call("GET", "/orders", "orders", params={"from": str(first)})
        return OrderPage(tuple(one["id"] for one in found), str(first + len(found)))

    def order(self, order_id: str) -> MarketplaceOrder:
        tree = self._call("GET", f"/orders/{quote(order_id, safe='')}", "order")
        items = tuple(OrderItem(one["code"], one["pieces"], one["price"], one["freight"]) for one in tree["lines"])
        buyer = Buyer("buyer@example.com", "Ana", "Exemplo", "", "")
        return MarketplaceOrder(
            tree["id"],
            "paid" if tree["state"] == "payed" else "unpaid",
            items,
            tree["sum"],
            0,
            buyer,
            Address("Ana Exemplo", "01310000", "BRA"),
            updated_at=datetime(2026, 1, 1, tzinfo=UTC),
        )

    def categories(self) -> Mapping[str, str]:
        return dict(self._call("GET", "/shelves", "shelves"))

    def check(self) -> Sequence[Problem]:
        try:
            self.categories()
        except AuthLost:
            return (Problem("input", "key", "", "the outlet does not know it: give another"),)
        return ()

    def _call(self, method: str, path: str, operation: str, write: Any = "read", **more: Any) -> Any:
        credentials = self._account.credentials
        answer = self._account.peer.request(
            method,
            path,
            operation=operation,
            headers={"X-Outlet-Key": credentials.values["key"]},
            write=write,
            auth_version=credentials.version,
            **more,
        )
        if answer.status == 404:
            raise NotFound(path)
        if not answer.ok:
            names = answer.json()["wrong"]
            raise Refusal(tuple(Problem("E3", name, "", f"correct {name}") for name in names), status=answer.status)
        return answer.json()


def _no_lots() -> Refusal:
    return Refusal((Problem("E3", "lot", "", "the outlet takes no lots"),), status=405)


OUTLET = Adapter(MANIFEST, Outlet)
