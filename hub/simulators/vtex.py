"""A stand-in for VTEX: `python -m hub.simulators.vtex --port 8101 --seed 7`.

The promise (vtex.md 20): a real HTTP server that behaves like VTEX for many accounts at once – catalog, simulation,
affiliates, Order Integration, Get order, affiliate notifications – and misbehaves on demand. An account's base URL is
`http://127.0.0.1:PORT/{account}`, in place of `https://{account}.vtexcommercestable.com.br`.

Everything under `/_control` steers it and tells the truth; the hub never calls that. State lives in memory.
"""

import argparse
import asyncio
import contextlib
import copy
import itertools
import json
import random
import re
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hub.simulators import vtex_catalog as shop
from hub.simulators.faults import Call, Door, Faults, Journal, Limits, control_routes, problems_of, read_body
from hub.simulators.poster import Poster
from hub.simulators.serving import run
from hub.simulators.vtex_notifier import CASINGS, PATHS, VARIANTS, Change, Notifier
from hub.simulators.vtex_orders import Forced, OrderDesk, order_json

AFFILIATE_ID = re.compile(r"^[B-DF-HJ-NP-TV-Z]{3}$")
PAGE_SIZE = 1000
SERVED_KEPT = 500_000  # reads of SKUs remembered per account
PUBLIC = ("checkout_simulation", "category_tree", "channel")
OFFER_FIELDS = frozenset(one.name for one in fields(shop.Offer))
STOCK_FIELDS = frozenset({"stock", "unlimited"})
PRODUCT_FIELDS = frozenset(
    {"name", "description", "product_active", "category_path", "brand_name", "product_specifications"}
)


@dataclass(frozen=True, slots=True)
class Told:
    """What one answer told of one SKU, truth or stale, when it was made. Cents; `for_sale` false: gone or inactive.

    Of a simulation, `for_sale` says that the SKU was among the items. `addressed`: it was asked for an order.
    `stale`: it may be of before the last change.
    """

    at: str
    operation: str
    sku: str
    channel: int
    for_sale: bool
    channels: tuple[int, ...] = ()
    price: int | None = None
    list_price: int | None = None
    stock: int | None = None
    unit_multiplier: str = "1"
    addressed: bool = False
    stale: bool = False


@dataclass(slots=True)
class Account:
    """One VTEX account: who may call it, what it sells, its orders and its notifications."""

    name: str
    credentials: dict[str, set[str]]
    catalog: shop.Catalog
    desk: OrderDesk
    notifier: Notifier
    denied: set[str] = field(default_factory=set)
    served: deque["Told"] = field(default_factory=lambda: deque(maxlen=SERVED_KEPT))


@dataclass(slots=True)
class World:
    """Everything the simulated VTEX knows, and its ways to misbehave."""

    seed: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)
    faults: Faults = field(init=False)
    journal: Journal = field(default_factory=Journal)
    limits: Limits = field(default_factory=Limits)
    poster: Poster = field(default_factory=Poster)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    _names: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

    def __post_init__(self) -> None:
        self.faults = Faults(self.seed)

    def open_account(self, name: str, credentials: Mapping[str, str]) -> Account:
        """Create an account; an existing one is replaced."""
        chance = random.Random(f"{self.seed}:{name}")  # noqa: S311 – repeatable chance is the point
        catalog = shop.Catalog(name, self.seed)
        notifier = Notifier(name, self.poster, chance)
        account = Account(
            name=name,
            credentials={key: {token} for key, token in credentials.items()},
            catalog=catalog,
            desk=OrderDesk(catalog, self.poster, chance, self.spawn, lambda _: None),
            notifier=notifier,
        )
        account.desk.stock_taken = lambda taken: self._stock_taken(account, taken)
        self.accounts[name] = account
        return account

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run work in the background of the serving loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def busy(self) -> int:
        """Orders being created or reported, and notifications on their way."""
        return len(self._tasks) + sum(account.notifier.in_flight for account in self.accounts.values())

    def keep(self, name: str | None = None) -> str:
        """Remember the state of every account under a name."""
        kept = name or f"snapshot-{self._names()}"
        self._snapshots[kept] = {
            one.name: copy.deepcopy(
                (
                    one.credentials,
                    one.denied,
                    _state_of(one.catalog),
                    one.desk.orders,
                    one.desk.habits,
                    one.notifier.habits,
                )
            )
            for one in self.accounts.values()
        }
        return kept

    def go_back(self, name: str) -> None:
        """Put every account back as it was under this name. Raises KeyError when nothing was kept under it."""
        for account_name, kept in self._snapshots[name].items():
            account = self.accounts.get(account_name) or self.open_account(account_name, {})
            credentials, denied, catalog, orders, order_habits, notifier_habits = copy.deepcopy(kept)
            account.credentials, account.denied = credentials, denied
            for field_name, value in catalog.items():
                setattr(account.catalog, field_name, value)
            account.catalog.memberships_changed()
            account.desk.orders, account.desk.habits = orders, order_habits
            account.notifier.habits = notifier_habits
        for gone in set(self.accounts) - set(self._snapshots[name]):
            del self.accounts[gone]

    def forget(self, seed: int | None = None) -> None:
        """Back to nothing, faults, limits and journal included; with `seed` from another seed on."""
        self.seed = self.seed if seed is None else seed
        self.accounts.clear()
        self.faults.clear()
        self.faults.random.seed(self.seed)
        self.limits.clear()
        self.journal.clear()
        self._snapshots.clear()

    def _stock_taken(self, account: Account, taken: list[int]) -> None:
        for sku_id in taken:
            account.catalog.skus[sku_id].offer_changed = time.monotonic()
        skus = [account.catalog.skus[sku_id] for sku_id in taken]
        account.notifier.announce(
            list(account.catalog.affiliates.values()),
            [Change(sku.id, sku.product_id, active=sku.selling, stock=True) for sku in skus],
        )


def _state_of(catalog: shop.Catalog) -> dict[str, Any]:
    names = ("channels", "categories", "affiliates", "skus", "products", "habits")
    return {name: getattr(catalog, name) for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# What VTEX answers


def error_json(code: str, message: str, status: int) -> Response:
    """The error form of OMS, Checkout and Fulfillment (vtex.md 2.3)."""
    return JSONResponse({"error": {"code": code, "message": message, "exception": None}}, status)


def plain(text: str, status: int) -> Response:
    """The error form of Catalog: plain text."""
    return Response(text, status, media_type="text/plain")


def _json_bytes(body: bytes) -> Response:
    return Response(body, media_type="application/json; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Storefront:
    """VTEX's own operations, each on one account of the world."""

    world: World

    def denied(self, request: Request, operation: str, group: str) -> Response | None:
        """404 unknown account, 401 wrong credentials, 403 a group that the role lacks."""
        account = self.world.accounts.get(str(request.path_params.get("account", "")))
        if account is None:
            return plain("Account not found", 404)
        if operation in PUBLIC:
            return None
        names = ("appkey", "apptoken") if operation == "mapper" else ("X-VTEX-API-AppKey", "X-VTEX-API-AppToken")
        key, token = (request.headers.get(name, "") for name in names)
        as_text = group in ("catalog", "logistics")
        if not token or token not in account.credentials.get(key, ()):
            return plain("Unauthorized", 401) if as_text else error_json("1", "Invalid credentials", 401)
        if group in account.denied:
            return plain("Forbidden", 403) if as_text else error_json("1", "Access denied", 403)
        return None

    def routes(self) -> list[Route]:
        """Every operation under its path."""
        world = self.world
        door = Door(world.faults, world.journal, world.limits, self.denied)
        catalog = "/{account}/api/catalog_system"
        affiliates = "/{account}/api/fulfillment/pvt/affiliates"
        integration = "/{account}/api/order-integration/orders"
        order = "/{account}/api/oms/pvt/orders/{order_id}"
        table: list[tuple[str, str, str, str, Callable[[Call], Awaitable[Response]]]] = [
            ("GET", f"{catalog}/pvt/sku/stockkeepingunitbyid/{{sku_id}}", "sku", "catalog", self.sku),
            (
                "POST",
                "/{account}/api/fulfillment/pvt/orderForms/simulation",
                "simulation",
                "simulation",
                self.simulation,
            ),
            (
                "POST",
                "/{account}/api/checkout/pub/orderForms/simulation",
                "checkout_simulation",
                "simulation",
                self.simulation,
            ),
            ("GET", f"{catalog}/pvt/sku/stockkeepingunitidsbysaleschannel", "sku_ids", "catalog", self.sku_ids),
            ("GET", f"{catalog}/pvt/products/productget/{{product_id}}", "product", "catalog", self.product),
            ("GET", f"{catalog}/pub/category/tree/{{levels}}", "category_tree", "catalog", self.tree),
            ("GET", "/{account}/api/catalog/pvt/category/{category_id}", "category", "catalog", self.category),
            ("GET", "/{account}/_v/category-mapping/{category_id}", "mapper", "mapper", self.mapper),
            ("GET", f"{catalog}/pvt/saleschannel/list", "channels", "catalog", self.channels),
            ("GET", f"{catalog}/pub/saleschannel/{{channel}}", "channel", "catalog", self.channel),
            ("GET", "/{account}/api/logistics/pvt/inventory/skus/{sku_id}", "inventory", "logistics", self.inventory),
            ("GET", affiliates, "affiliates", "affiliates", self.affiliates),
            ("GET", f"{affiliates}/{{affiliate}}", "affiliate", "affiliates", self.affiliate),
            ("PUT", f"{affiliates}/{{affiliate}}", "put_affiliate", "affiliates", self.put_affiliate),
            ("DELETE", f"{affiliates}/{{affiliate}}", "delete_affiliate", "affiliates", self.delete_affiliate),
            ("POST", integration, "create_order", "orders", self.create_order),
            ("PUT", f"{integration}/status", "order_status", "orders", self.order_status),
            ("GET", order, "order", "orders", self.order),
            ("POST", f"{order}/cancel", "cancel_order", "orders", self.cancel_order),
            ("POST", f"{order}/start-handling", "start_handling", "orders", self.start_handling),
        ]
        return [
            door.route(path, answer, methods=[method], operation=operation, group=group)
            for method, path, operation, group, answer in table
        ]

    def _account(self, call: Call) -> Account:
        return self.world.accounts[call.account]

    async def sku_ids(self, call: Call) -> Response:
        """`stockkeepingunitidsbysaleschannel`."""
        channel = call.query.get("sc", "")
        if not channel.isdecimal():
            return plain("The parameter sc is required", 400)
        account = self._account(call)
        only_assigned = call.query.get("onlyAssigned", "true").lower() != "false"
        ids = account.catalog.listed(int(channel), only_assigned=only_assigned)
        page, size = call.query.get("page", ""), call.query.get("pageSize", "")
        if not page.isdecimal() and not size.isdecimal():
            return JSONResponse(ids)
        return JSONResponse(
            shop.page_of(
                ids,
                max(1, int(page or 1)),
                max(1, int(size or PAGE_SIZE)),
                account.catalog.habits,
                account.desk.chance,
            )
        )

    async def sku(self, call: Call) -> Response:
        """`stockkeepingunitbyid`."""
        sku = _sku_of(self._account(call), call.parameters["sku_id"])
        self._account(call).served.append(
            Told(
                at=datetime.now(UTC).isoformat(),
                operation="sku",
                sku=call.parameters["sku_id"],
                channel=int(call.query.get("sc") or 0),
                for_sale=sku is not None and sku.selling,
                channels=() if sku is None else sku.channels,
            )
        )
        if sku is None:
            return plain("SKU not found.", 404)
        return _json_bytes(shop.sku_json(self._account(call).catalog, sku))

    async def product(self, call: Call) -> Response:
        """`productget`; an unknown product is 404."""
        wanted = call.parameters["product_id"]
        if not wanted.isdecimal():
            return plain("The request is invalid.", 400)
        try:
            return JSONResponse(shop.product_json(self._account(call).catalog, int(wanted)))
        except KeyError:
            return plain("Product not found.", 404)

    async def tree(self, call: Call) -> Response:
        """`category/tree/{levels}`."""
        levels = call.parameters["levels"]
        if not levels.isdecimal():
            return plain("The request is invalid.", 400)
        return JSONResponse(shop.tree_json(self._account(call).catalog, int(levels)))

    async def category(self, call: Call) -> Response:
        """`category/{id}`."""
        wanted = call.parameters["category_id"]
        with_path = call.query.get("includeTreePath", "").lower() == "true"
        try:
            return JSONResponse(shop.category_json(self._account(call).catalog, int(wanted), with_path=with_path))
        except (KeyError, ValueError):
            return plain("Category not found.", 404)

    async def mapper(self, call: Call) -> Response:
        """The category mapper of the store's own app: what `hub.mapper` asks."""
        remote = self._account(call).catalog.mapper.get(call.parameters["category_id"])
        return plain("Not mapped.", 404) if remote is None else JSONResponse({"remote": remote})

    async def channels(self, call: Call) -> Response:
        """`saleschannel/list`."""
        known = sorted(self._account(call).catalog.channels.values(), key=lambda one: one.id)
        return JSONResponse([shop.channel_json(one, place) for place, one in enumerate(known, 1)])

    async def channel(self, call: Call) -> Response:
        """`saleschannel/{id}`."""
        wanted = call.parameters["channel"]
        channels = self._account(call).catalog.channels
        if not wanted.isdecimal() or int(wanted) not in channels:
            return plain("Sales channel not found.", 404)
        return JSONResponse(shop.channel_json(channels[int(wanted)], 1))

    async def inventory(self, call: Call) -> Response:
        """Inventory by SKU."""
        sku = _sku_of(self._account(call), call.parameters["sku_id"])
        return plain("SKU not found.", 404) if sku is None else JSONResponse(shop.inventory_json(sku))

    async def simulation(self, call: Call) -> Response:
        """Both simulation paths (vtex.md 6)."""
        account = self._account(call)
        affiliate = account.catalog.affiliates.get(call.query.get("affiliateId", ""))
        if call.query.get("affiliateId") and affiliate is None:
            return error_json("FMT0021", "Affiliate not found", 400)
        channel = call.query.get("sc") or (affiliate.sales_channel if affiliate else "")
        if not channel.isdecimal() or int(channel) not in account.catalog.channels:
            return error_json("FMT0036", "Sales channel not found", 400)
        try:
            cart = _cart(json.loads(call.body))
        except (ValueError, TypeError, KeyError, AttributeError):
            return error_json("ORD001", "Invalid simulation body: items[].id, quantity, seller are required", 400)
        checkout = call.operation == "checkout_simulation"
        answer = shop.simulated(
            account.catalog, cart, int(channel), checkout=checkout, now=time.monotonic(), stale=call.stale
        )
        account.served.extend(_told(answer, cart, int(channel), account.catalog, stale=call.stale))
        return _json_bytes(json.dumps(answer, ensure_ascii=False).encode())

    async def affiliates(self, call: Call) -> Response:
        """List affiliates."""
        return JSONResponse([one.as_json() for one in self._account(call).catalog.affiliates.values()])

    async def affiliate(self, call: Call) -> Response:
        """Read one affiliate."""
        found = self._account(call).catalog.affiliates.get(call.parameters["affiliate"])
        return error_json("FMT0021", "Affiliate not found", 404) if found is None else JSONResponse(found.as_json())

    async def put_affiliate(self, call: Call) -> Response:
        """Create or replace an affiliate; keys in any casing, as VTEX's own template app sends them."""
        account, affiliate = self._account(call), call.parameters["affiliate"]
        try:
            given = {str(key).lower(): value for key, value in dict(json.loads(call.body)).items()}
        except (ValueError, TypeError):
            return error_json("FMT0029", "Invalid body", 400)
        channel = given.get("saleschannel")
        if not AFFILIATE_ID.match(affiliate):
            return error_json("FMT0031", "Affiliate id must be three consonants", 400)
        if not isinstance(channel, str) or not channel.isdecimal() or int(channel) not in account.catalog.channels:
            return error_json("FMT0036", "salesChannel must be the string of an existing sales channel", 400)
        if not given.get("name") or not given.get("followupemail"):
            return error_json("FMT0032", "name and followUpEmail are required", 400)
        if given.get("searchuriendpointversion", "1.x.x") != "1.x.x":
            return error_json("FMT0034", "searchURIEndpointVersion must be 1.x.x", 400)
        if not call.lying:
            account.catalog.affiliates[affiliate] = shop.Affiliate(
                id=affiliate,
                name=str(given["name"]),
                sales_channel=channel,
                follow_up_email=str(given["followupemail"]),
                search_uri_endpoint=given.get("searchuriendpoint"),
                use_seller_payment_method=bool(given.get("usesellerpaymentmethod", False)),
                minimum_value_accumulated=given.get("minimumvalueaccumulated"),
            )
        return Response(status_code=204)

    async def delete_affiliate(self, call: Call) -> Response:
        """Remove an affiliate."""
        affiliates, wanted = self._account(call).catalog.affiliates, call.parameters["affiliate"]
        if wanted not in affiliates:
            return error_json("FMT0021", "Affiliate not found", 404)
        if not call.lying:
            del affiliates[wanted]
        return Response(status_code=204)

    async def create_order(self, call: Call) -> Response:
        """Order Integration: create."""
        answer = self._account(call).desk.place(call.query.get("affiliateId", ""), call.body, lying=call.lying)
        return JSONResponse(answer.content, answer.status)

    async def order_status(self, call: Call) -> Response:
        """Order Integration: approve."""
        answer = self._account(call).desk.approve(call.body, call.query.get("affiliateId"), lying=call.lying)
        return JSONResponse(answer.content, answer.status)

    async def order(self, call: Call) -> Response:
        """Get order."""
        account = self._account(call)
        found = account.desk.find(call.parameters["order_id"])
        if found is None:
            return error_json("OMS007", "Order not found", 404)
        return JSONResponse(order_json(account.catalog, found))

    async def cancel_order(self, call: Call) -> Response:
        """Cancel an order."""
        account = self._account(call)
        found = account.desk.find(call.parameters["order_id"])
        if found is None:
            return error_json("OMS007", "Order not found", 404)
        try:
            given = json.loads(call.body or b"{}")
        except ValueError:
            return error_json("OMS001", "Invalid body", 400)
        asked = given if isinstance(given, dict) else {}
        reason, by_user = str(asked.get("reason") or ""), bool(asked.get("requestedByUser"))
        answer = account.desk.cancel(found, reason, by_user=by_user, lying=call.lying)
        return JSONResponse(answer.content, answer.status)

    async def start_handling(self, call: Call) -> Response:
        """Start handling; 409 when the order is not ready for it."""
        account = self._account(call)
        found = account.desk.find(call.parameters["order_id"])
        if found is None:
            return error_json("OMS007", "Order not found", 404)
        if found.status != "ready-for-handling":
            return error_json("OMS003", "Order is not ready for handling", 409)
        if not call.lying:
            account.desk.move(found, "handling")
        return Response(status_code=204)


def _told(
    answer: Mapping[str, Any], cart: shop.Cart, channel: int, catalog: shop.Catalog, *, stale: bool
) -> list[Told]:
    """What a simulation says of each SKU that was asked for."""
    items = {item["id"]: (place, item) for place, item in enumerate(answer["items"])}
    at, addressed = datetime.now(UTC).isoformat(), cart.has_address
    told = []
    for wanted in cart.items:
        place, item = items.get(wanted.id, (0, None))
        sku = catalog.skus.get(int(wanted.id)) if wanted.id.isdecimal() else None
        old = stale or (sku is not None and time.monotonic() - sku.offer_changed < catalog.habits.stale_seconds)
        if item is None:
            told.append(Told(at, "simulation", wanted.id, channel, for_sale=False, addressed=addressed, stale=old))
            continue
        told.append(
            Told(
                at=at,
                operation="simulation",
                sku=wanted.id,
                channel=channel,
                for_sale=True,
                price=item["price"],
                list_price=item["listPrice"],
                stock=answer["logisticsInfo"][place]["stockBalance"] if item["quantity"] > 0 else 0,
                unit_multiplier=str(item["unitMultiplier"]),
                addressed=addressed,
                stale=old,
            )
        )
    return told


def _sku_of(account: Account, sku_id: str) -> shop.Sku | None:
    return account.catalog.skus.get(int(sku_id)) if sku_id.isdecimal() else None


def _cart(body: dict[str, Any]) -> shop.Cart:
    items = tuple(
        shop.Wanted(str(one["id"]), int(one["quantity"]), str(one.get("seller") or "1")) for one in body["items"]
    )
    if not items or any(item.quantity < 1 for item in items):
        raise ValueError("items")
    coordinates = tuple(float(one) for one in body.get("geoCoordinates") or ())
    return shop.Cart(items, body.get("postalCode"), body.get("country"), coordinates)


# ---------------------------------------------------------------------------------------------------------------------
# What steers it


class _Control(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelBody(_Control):
    """A sales channel."""

    id: int = Field(ge=1)
    name: str = "Marketplace"
    active: bool = True
    currency: str = "BRL"


class MapperBody(_Control):
    """Category → marketplace category."""

    mapping: dict[str, str]


class CategoryBody(_Control):
    """A category; parents come before their children."""

    id: int = Field(ge=1)
    name: str
    parent: int | None = None
    active: bool = True


class AffiliateBody(_Control):
    """An affiliate."""

    id: str = Field(pattern=AFFILIATE_ID.pattern)
    name: str = "Marketplace"
    sales_channel: int = 1
    search_uri_endpoint: str | None = None
    minimum_value_accumulated: int | None = None


class AccountBody(_Control):
    """An account with everything it starts with."""

    name: str = Field(pattern=r"^[a-z][a-z0-9]*$")
    app_key: str = "vtexappkey-demo-ABCDEF"
    app_token: str = Field(min_length=1)
    channels: list[ChannelBody] = [ChannelBody(id=1)]
    categories: list[CategoryBody] = [CategoryBody(id=1, name="Geral")]
    affiliates: list[AffiliateBody] = []


class AssortmentBody(_Control):
    """Many SKUs at once; prices in cents, ranges as [lowest, highest]."""

    count: int = Field(ge=1, le=1_000_000)
    first_id: int = Field(1, ge=1)
    skus_per_product: int = Field(1, ge=1)
    category_ids: list[int] = [1]
    channels: list[int] = [1]
    price: tuple[int, int] = (990, 99_990)
    stock: tuple[int, int] = (1, 100)
    discount_share: float = Field(0.0, ge=0, le=1)
    inactive_share: float = Field(0.0, ge=0, le=1)
    unlimited_share: float = Field(0.0, ge=0, le=1)
    without_ean_share: float = Field(0.0, ge=0, le=1)
    without_stock_share: float = Field(0.0, ge=0, le=1)
    images: int = Field(2, ge=0, le=50)
    notify: bool = False


class SkuChange(_Control):
    """What to change of a SKU; what is left out stays. PRODUCT_FIELDS change every SKU of the product."""

    id: int
    name: str | None = None
    sku_name: str | None = None
    description: str | None = None
    active: bool | None = None
    product_active: bool | None = None
    channels: list[int] | None = None
    category: int | None = None
    price: int | None = Field(None, ge=0)
    without_price: bool = False
    list_price: int | None = Field(None, ge=0)
    discount: int | None = Field(None, ge=0)
    channel_prices: dict[int, int] | None = None
    stock: int | None = Field(None, ge=0)
    unlimited: bool | None = None
    images: list[str] | None = None
    ean: str | None = None
    without_ean: bool = False
    brand_name: str | None = None
    specifications: dict[str, list[str]] | None = None
    product_specifications: dict[str, list[str]] | None = None
    unit_multiplier: float | None = Field(None, gt=0)
    weight: float | None = Field(None, ge=0)


class ChangesBody(_Control):
    """Changes of SKUs, and whether affiliates are told: of each, or of every SKU of the products (burst)."""

    changes: list[SkuChange] = Field(min_length=1)
    notify: bool | Literal["burst"] = True


class NotifyBody(_Control):
    """Notifications without a change, as a reindexing sends them. All SKUs when `skus` is empty."""

    skus: list[int] | None = None
    stock: bool = False
    price: bool = False
    sku: bool = True
    removed: bool = False


class CredentialsBody(_Control):
    """`add` lets a pair in, `remove` locks one out; both together rotate."""

    add: dict[str, str] = {}
    remove: dict[str, str] = {}


class HabitsBody(_Control):
    """How an account behaves; only what is named changes."""

    paging: Literal["honoured", "ignored", "repeated"] | None = None
    duplicate_ids: float | None = Field(None, ge=0, le=1)
    stale_seconds: float | None = Field(None, ge=0)
    missing_price: Literal["null", "absent"] | None = None
    missing_stock: Literal["zero", "absent"] | None = None


class NotifierBody(_Control):
    """How an account notifies; only what is named changes."""

    variant: str | None = Field(None, pattern=f"^({'|'.join((*VARIANTS, 'random'))})$")
    casing: str | None = Field(None, pattern=f"^({'|'.join((*CASINGS, 'random'))})$")
    sku_as: Literal["string", "int", "random"] | None = None
    booleans: Literal["bool", "string"] | None = None
    path: str | None = Field(None, pattern=f"^({'|'.join((*PATHS, 'random'))})$")
    account_as: Literal["name", "host"] | None = None
    duplicate_share: float | None = Field(None, ge=0, le=1)
    loss_share: float | None = Field(None, ge=0, le=1)
    delay: float | None = Field(None, ge=0)
    jitter: float | None = Field(None, ge=0)
    shuffled: bool | None = None


class OrdersBody(_Control):
    """How an account takes orders; only what is named changes."""

    create_delay: float | None = Field(None, ge=0)
    result_delay: float | None = Field(None, ge=0)
    result_jitter: float | None = Field(None, ge=0)
    duplicates: int | None = Field(None, ge=0, le=10)
    inverted: bool | None = None
    silent: bool | None = None
    result_loss: float | None = Field(None, ge=0, le=1)
    validation: Literal["sync", "async"] | None = None
    check_stock: bool | None = None
    reserve_stock: bool | None = None
    divergence: Literal["accept", "deny", "manual"] | None = None
    approved_status: str | None = None


class InnerError(_Control):
    """One inner error of a forced answer."""

    source: Literal["Fulfillment", "Checkout", "Order Integration"] = "Fulfillment"
    code: str
    description: str = ""


class ForcedBody(_Control):
    """A code for the next orders."""

    code: str = Field(pattern=r"^(EOI0\d\d|SOI00[12])$")
    order: str | None = None
    flow: Literal["PlaceOrder", "ApproveOrder"] = "PlaceOrder"
    count: int = Field(1, ge=1)
    created: bool = False
    sync: bool = False
    errors: list[InnerError] = []


class OrderMove(_Control):
    """A new status for an order, packages for it, or a call-back to the connector."""

    status: str | None = None
    packages: list[dict[str, Any]] | None = None
    call_back: str | None = Field(None, description="path below the connector endpoint")
    body: dict[str, Any] | None = None


class GroupsBody(_Control):
    """Permission groups that the account's role lacks."""

    denied: list[Literal["catalog", "simulation", "affiliates", "orders", "logistics"]]


Body = TypeVar("Body", bound=BaseModel)
Control = Callable[[Request], Awaitable[Response]]


def _wrong(field_name: str, value: object, fix: str, status: int = 400) -> Response:
    return JSONResponse({"problems": [{"field": field_name, "value": repr(value)[:80], "fix": fix}]}, status)


class _NoAccountError(LookupError):
    pass


def _guarded(answer: Control) -> Control:
    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except ValidationError as error:
            return JSONResponse({"problems": problems_of(error)}, 400)
        except _NoAccountError as error:
            return _wrong("account", error.args[0], "create it with POST /_control/accounts", 404)

    return guarded


@dataclass(frozen=True, slots=True)
class Steering:
    """The control routes."""

    world: World

    def routes(self) -> list[Route]:
        """Every control route under its path."""
        at = "/_control/accounts/{account}"
        table: list[tuple[str, str, Control]] = [
            ("POST", "/_control/accounts", self.open_account),
            ("PUT", f"{at}/channels", self.channel),
            ("PUT", f"{at}/categories", self.category),
            ("PUT", f"{at}/mapper", self.mapper),
            ("PUT", f"{at}/affiliates", self.affiliate),
            ("POST", f"{at}/credentials", self.credentials),
            ("PUT", f"{at}/groups", self.groups),
            ("PATCH", f"{at}/catalog", self.catalog_habits),
            ("PATCH", f"{at}/notifier", self.notifier_habits),
            ("PATCH", f"{at}/order-habits", self.order_habits),
            ("POST", f"{at}/skus", self.grow),
            ("PATCH", f"{at}/skus", self.change),
            ("DELETE", f"{at}/skus/{{sku_id:int}}", self.drop),
            ("GET", f"{at}/truth", self.truth),
            ("GET", f"{at}/served", self.served),
            ("POST", f"{at}/notify", self.notify),
            ("GET", f"{at}/notifications", self.notifications),
            ("POST", f"{at}/forced", self.force),
            ("GET", f"{at}/orders", self.orders),
            ("PATCH", f"{at}/orders/{{order_id}}", self.move_order),
            ("GET", "/_control/counters", self.counters),
            ("GET", "/_control/busy", self.busy),
            ("POST", "/_control/snapshots", self.keep),
            ("PUT", "/_control/snapshots/{name}", self.go_back),
            ("POST", "/_control/reset", self.reset),
        ]
        return [Route(path, _guarded(answer), methods=[method]) for method, path, answer in table]

    def _account(self, request: Request) -> Account:
        name = str(request.path_params["account"])
        if name not in self.world.accounts:
            raise _NoAccountError(name)
        return self.world.accounts[name]

    async def open_account(self, request: Request) -> Response:
        """Create an account."""
        wanted = await _read(request, AccountBody)
        account = self.world.open_account(wanted.name, {wanted.app_key: wanted.app_token})
        for channel in wanted.channels:
            account.catalog.channels[channel.id] = shop.Channel(**channel.model_dump())
        for category in wanted.categories:
            account.catalog.categories[category.id] = shop.Category(**category.model_dump())
        for affiliate in wanted.affiliates:
            account.catalog.affiliates[affiliate.id] = _affiliate(affiliate)
        return JSONResponse({"account": account.name}, 201)

    async def channel(self, request: Request) -> Response:
        """Add or replace a sales channel."""
        wanted = await _read(request, ChannelBody)
        self._account(request).catalog.channels[wanted.id] = shop.Channel(**wanted.model_dump())
        return Response(status_code=204)

    async def category(self, request: Request) -> Response:
        """Add or replace a category."""
        wanted = await _read(request, CategoryBody)
        catalog = self._account(request).catalog
        if wanted.parent is not None and wanted.parent not in catalog.categories:
            return _wrong("parent", wanted.parent, "create the parent category first")
        catalog.categories[wanted.id] = shop.Category(**wanted.model_dump())
        for sku in catalog.skus.values():
            sku.rendered = None
        return Response(status_code=204)

    async def mapper(self, request: Request) -> Response:
        """What the store's own app says of categories: category → marketplace category."""
        self._account(request).catalog.mapper = (await _read(request, MapperBody)).mapping
        return Response(status_code=204)

    async def affiliate(self, request: Request) -> Response:
        """Add or replace an affiliate."""
        wanted = await _read(request, AffiliateBody)
        self._account(request).catalog.affiliates[wanted.id] = _affiliate(wanted)
        return Response(status_code=204)

    async def credentials(self, request: Request) -> Response:
        """Let credentials in or lock them out."""
        wanted, account = await _read(request, CredentialsBody), self._account(request)
        for key, token in wanted.add.items():
            account.credentials.setdefault(key, set()).add(token)
        for key, token in wanted.remove.items():
            account.credentials.get(key, set()).discard(token)
        return Response(status_code=204)

    async def groups(self, request: Request) -> Response:
        """Take permission groups away; the list replaces the former one."""
        self._account(request).denied = set((await _read(request, GroupsBody)).denied)
        return Response(status_code=204)

    async def catalog_habits(self, request: Request) -> Response:
        """Change how reads behave."""
        wanted = (await _read(request, HabitsBody)).model_dump(exclude_none=True)
        if "duplicate_ids" in wanted:
            wanted["duplicate_share"] = wanted.pop("duplicate_ids")
        account = self._account(request)
        account.catalog.habits = replace(account.catalog.habits, **wanted)
        return Response(status_code=204)

    async def notifier_habits(self, request: Request) -> Response:
        """Change how notifications are sent."""
        wanted, account = await _read(request, NotifierBody), self._account(request)
        account.notifier.habits = replace(account.notifier.habits, **wanted.model_dump(exclude_none=True))
        return JSONResponse(asdict(account.notifier.habits))

    async def order_habits(self, request: Request) -> Response:
        """Change how orders are taken."""
        wanted, account = await _read(request, OrdersBody), self._account(request)
        account.desk.habits = replace(account.desk.habits, **wanted.model_dump(exclude_none=True))
        return JSONResponse(asdict(account.desk.habits))

    async def grow(self, request: Request) -> Response:
        """Create many SKUs."""
        wanted, account = await _read(request, AssortmentBody), self._account(request)
        unknown = [one for one in wanted.category_ids if one not in account.catalog.categories]
        if unknown or not wanted.category_ids:
            return _wrong("category_ids", unknown, "use ids of existing categories")
        given = wanted.model_dump(exclude={"notify", "price", "stock", "category_ids", "channels"})
        spec = shop.Assortment(
            **given,
            price=shop.Range(*sorted(wanted.price)),
            stock=shop.Range(*sorted(wanted.stock)),
            category_ids=tuple(wanted.category_ids),
            channels=tuple(wanted.channels),
        )
        made = shop.grown(account.catalog, spec)
        for sku in made:
            account.catalog.put(sku)
        news = [Change(sku.id, sku.product_id, active=sku.selling, sku=True) for sku in made]
        sent = account.notifier.announce(list(account.catalog.affiliates.values()), news) if wanted.notify else 0
        return JSONResponse({"created": len(made), "notifications": sent}, 201)

    async def change(self, request: Request) -> Response:
        """Change SKUs, and tell the affiliates if asked to."""
        wanted, account = await _read(request, ChangesBody), self._account(request)
        catalog = account.catalog
        unknown = [one.id for one in wanted.changes if one.id not in catalog.skus]
        if unknown:
            return _wrong("changes.id", unknown, "use ids of existing SKUs", 404)
        strange = [one.category for one in wanted.changes if one.category and one.category not in catalog.categories]
        if strange:
            return _wrong("changes.category", strange, "use ids of existing categories")
        now, moment = time.monotonic(), datetime.now(UTC)
        news = [touched for one in wanted.changes for touched in _apply(catalog, one, now)]
        sent = 0
        if wanted.notify:
            for affiliate in list(catalog.affiliates.values()):
                channel = int(affiliate.sales_channel)
                told = [touched.change(channel) for touched in news if channel in touched.seen_in]
                if wanted.notify == "burst":
                    told = _burst(catalog, told)
                sent += account.notifier.announce([affiliate], told)
        return JSONResponse({"changed": len(wanted.changes), "notifications": sent, "at": moment.isoformat()})

    async def drop(self, request: Request) -> Response:
        """Delete a SKU; `?notify=true` tells the affiliates that it left."""
        account, sku_id = self._account(request), int(request.path_params["sku_id"])
        if sku_id not in account.catalog.skus:
            return _wrong("sku_id", sku_id, "use the id of an existing SKU", 404)
        sku = account.catalog.drop(sku_id)
        if request.query_params.get("notify", "true") == "true":
            gone = Change(sku.id, sku.product_id, active=False, sku=True, removed=True)
            account.notifier.announce(list(account.catalog.affiliates.values()), [gone])
        return Response(status_code=204)

    async def truth(self, request: Request) -> Response:
        """What the account sells now through a channel."""
        channel = request.query_params.get("sc", "1")
        if not channel.isdecimal():
            return _wrong("sc", channel, "use the number of a sales channel")
        return JSONResponse(self._account(request).catalog.truth(int(channel)))

    async def served(self, request: Request) -> Response:
        """What every read of a SKU was told, oldest first."""
        return JSONResponse([asdict(one) for one in self._account(request).served])

    async def notify(self, request: Request) -> Response:
        """Send notifications without a change."""
        wanted, account = await _read(request, NotifyBody), self._account(request)
        ids = account.catalog.skus.keys() if wanted.skus is None else wanted.skus
        news = []
        for sku_id in ids:
            sku = account.catalog.skus.get(sku_id)
            product_id, active = (sku.product_id, sku.selling) if sku else (0, False)
            flags = wanted.model_dump(exclude={"skus"})
            news.append(Change(sku_id, product_id, active=active, **flags))
        sent = account.notifier.announce(list(account.catalog.affiliates.values()), news)
        return JSONResponse({"notifications": sent})

    async def notifications(self, request: Request) -> Response:
        """Counts and the newest notifications."""
        notifier, limit = self._account(request).notifier, request.query_params.get("limit", "1000")
        return JSONResponse({**notifier.summary(), "log": notifier.log(int(limit) if limit.isdecimal() else 1000)})

    async def force(self, request: Request) -> Response:
        """Force a code on the next orders."""
        wanted, account = await _read(request, ForcedBody), self._account(request)
        account.desk.forced.append(
            Forced(
                code=wanted.code,
                order=wanted.order,
                flow=wanted.flow,
                left=wanted.count,
                created=wanted.created,
                sync=wanted.sync,
                errors=tuple((one.source, one.code, one.description) for one in wanted.errors),
            )
        )
        return Response(status_code=204)

    async def orders(self, request: Request) -> Response:
        """Every order by its marketplace id: asked, accepted, created, reported."""
        desk = self._account(request).desk
        return JSONResponse({one.marketplace_order_id: one.summary() for one in desk.orders.values()})

    async def move_order(self, request: Request) -> Response:
        """Set an order's status or packages, or make a call-back to the connector."""
        wanted, account = await _read(request, OrderMove), self._account(request)
        order = account.desk.find(str(request.path_params["order_id"]))
        if order is None:
            return _wrong("order_id", request.path_params["order_id"], "use the VTEX id of a created order", 404)
        if wanted.packages is not None:
            order.packages = list(wanted.packages)
        if wanted.status is not None:
            account.desk.move(order, wanted.status)
        answered = None
        if wanted.call_back is not None:
            answered = await account.desk.call_back(order, wanted.call_back, wanted.body)
        return JSONResponse({"status": order.status, "answered": answered})

    async def counters(self, _: Request) -> Response:
        """Counts over everything, by account."""
        return JSONResponse(
            {
                account.name: {
                    "skus": len(account.catalog.skus),
                    "orders": len(account.desk.orders),
                    "orders_created": sum(one.creations for one in account.desk.orders.values()),
                    "orders_refused": dict(account.desk.refused),
                    "notifications": account.notifier.summary(),
                }
                for account in self.world.accounts.values()
            }
        )

    async def busy(self, _: Request) -> Response:
        """How much is still on its way."""
        return JSONResponse({"busy": self.world.busy})

    async def keep(self, request: Request) -> Response:
        """Keep the state under a name."""
        return JSONResponse({"name": self.world.keep(request.query_params.get("name"))}, 201)

    async def go_back(self, request: Request) -> Response:
        """Go back to a kept state."""
        try:
            self.world.go_back(str(request.path_params["name"]))
        except KeyError as error:
            return _wrong("name", error.args[0], "use the name of a kept snapshot", 404)
        return Response(status_code=204)

    async def reset(self, request: Request) -> Response:
        """Forget everything."""
        seed = request.query_params.get("seed", "")
        self.world.forget(int(seed) if seed.isdecimal() else None)
        return Response(status_code=204)


async def _read(request: Request, model: type[Body]) -> Body:
    return model.model_validate_json(await read_body(request))


def _affiliate(wanted: AffiliateBody) -> shop.Affiliate:
    given = wanted.model_dump()
    return shop.Affiliate(**{**given, "sales_channel": str(wanted.sales_channel)})


@dataclass(frozen=True, slots=True)
class _Touched:
    """A SKU after a change, the channels it was or is in, and what changed."""

    sku: shop.Sku
    before: tuple[int, ...]
    stock: bool
    price: bool
    other: bool

    @property
    def seen_in(self) -> frozenset[int]:
        return frozenset(self.before) | frozenset(self.sku.channels)

    def change(self, channel: int) -> Change:
        return Change(
            sku_id=self.sku.id,
            product_id=self.sku.product_id,
            active=self.sku.selling,
            stock=self.stock,
            price=self.price,
            sku=self.other,
            removed=channel in self.before and channel not in self.sku.channels,
        )


def _apply(catalog: shop.Catalog, wanted: SkuChange, now: float) -> list[_Touched]:
    """Change a SKU, and its siblings where the product changed; what was touched, the SKU first."""
    sku = catalog.skus[wanted.id]
    before = sku.channels
    given = wanted.model_dump(exclude_none=True, exclude={"id", "without_price", "without_ean"})
    offered = {name: value for name, value in given.items() if name in OFFER_FIELDS}
    if wanted.without_price:
        offered["price"] = None
    if offered:
        sku.before, sku.offer, sku.offer_changed = sku.offer, replace(sku.offer, **offered), now
    others = {name: _fixed(value) for name, value in given.items() if name not in OFFER_FIELDS}
    if wanted.without_ean:
        others["ean"] = None
    if "category" in others:
        others["category_path"] = catalog.path_of(given["category"])
        del others["category"]
    for name, value in others.items():
        setattr(sku, name, value)
    sku.rendered = None
    touched = [
        _Touched(
            sku=sku,
            before=before,
            stock=not STOCK_FIELDS.isdisjoint(offered),
            price=bool(set(offered) - STOCK_FIELDS),
            other=bool(others),
        )
    ]
    shared = {name: value for name, value in others.items() if name in PRODUCT_FIELDS}
    for sibling in (catalog.skus[sku_id] for sku_id in catalog.siblings(sku.id) if sku_id != sku.id and shared):
        for name, value in shared.items():
            setattr(sibling, name, value)
        sibling.rendered = None
        touched.append(_Touched(sibling, sibling.channels, stock=False, price=False, other=True))
    if "channels" in others:
        catalog.memberships_changed()
    return touched


def _fixed(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        return {key: tuple(inner) if isinstance(inner, list) else inner for key, inner in value.items()}
    return value


def _burst(catalog: shop.Catalog, told: list[Change]) -> list[Change]:
    burst: list[Change] = []
    named = {change.sku_id for change in told}
    for change in told:
        burst.append(change)
        for sibling in catalog.siblings(change.sku_id):
            if sibling not in named:
                named.add(sibling)
                sku = catalog.skus[sibling]
                burst.append(replace(change, sku_id=sibling, active=sku.selling, removed=False))
    return burst


def app(world: World) -> Starlette:
    """The ASGI application for one world."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        world.poster.close()

    steering = [*Steering(world).routes(), *control_routes(world.faults, world.journal, world.limits)]
    return Starlette(routes=[*Storefront(world).routes(), *steering], lifespan=lifespan)


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="hub.simulators.vtex", description="A stand-in for VTEX.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8101, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=0, help="makes data and chance repeatable")
    given = parser.parse_args(arguments)
    return run(app(World(given.seed)), "VTEX simulator", given.host, given.port)


if __name__ == "__main__":
    sys.exit(main())
