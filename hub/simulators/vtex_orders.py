"""Order Integration and the orders behind it, as VTEX answers them (vtex.md 9, 11.4, 13.1).

The promise: a body that VTEX would refuse is refused with the field's name; a good one is enqueued (SOI003), created
once, and reported by the asynchronous results – late, doubled, inverted or never, as the account's habits say.
"""

import asyncio
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from hub.simulators.poster import Poster
from hub.simulators.vtex_catalog import Catalog, Sku, full_name

RESULT_PATH = "/order-integration/notification/processing-result"
APPROVABLE = "waiting-ffmt-authorization"
SELLER_DECIDES = ("ready-for-handling", "handling")  # a cancellation has to be confirmed here (vtex.md 13.1)

MESSAGES = {
    "SOI001": "Order successfully integrated",
    "SOI002": "Order successfully approved",
    "SOI003": "Order successfully enqueued",
    "EOI000": "Unknown error",
    "EOI001": "Unmapped error",
    "EOI002": "No available SLA or items for this order",
    "EOI003": "Order total differs from the seller's and no divergence rule is configured",
    "EOI004": "Invalid cart",
    "EOI005": "Validation error",
    "EOI006": "Unexpected error",
    "EOI007": "Order already exists",
    "EOI008": "Order cannot be approved because it is not integrated yet",
    "EOI009": "Order is not in a status that can be approved",
    "EOI010": "Timeout",
    "EOI011": "Order integrated with divergence, waiting for the seller's authorization",
}


def _no_query(url: str) -> str:
    if "?" in url or not url.startswith(("http://", "https://")):
        raise ValueError("must be an http(s) URL without query string")
    return url


Endpoint = Annotated[str, AfterValidator(_no_query)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, alias_generator=to_camel)


class Item(_Body):
    """One line; `price` is the unit price after discounts, in cents."""

    id: str = Field(min_length=1)
    price: int = Field(ge=0)
    quantity: int = Field(gt=0)


class Client(_Body):
    """The buyer; the corporate fields have to be there, null for a person."""

    email: str = Field(min_length=1)
    first_name: str
    last_name: str
    phone: str
    document: str
    corporate_document: str | None
    corporate_phone: str | None
    corporate_name: str | None
    trade_name: str | None
    state_inscription: str | None


class DeliveryId(_Body):
    """Where the stock is."""

    warehouse_id: str


class Logistics(_Body):
    """Delivery of the item at the same place in `items`."""

    price: int = Field(ge=0)
    selected_delivery_channel: Literal["delivery", "pickup-in-point"]
    selected_sla: str
    lock_ttl: str = Field(alias="lockTTL", pattern=r"^\d+(d|bd)$")
    shipping_estimate: str = Field(pattern=r"^\d+(d|bd|h|m)$")
    delivery_ids: list[DeliveryId]


class Coordinates(_Body):
    """Where the pickup point is."""

    latitude: float
    longitude: float


class Address(_Body):
    """The delivery address, or the pickup point's."""

    address_type: Literal["residential", "commercial", "pickup"]
    address_id: str
    receiver_name: str = Field(min_length=1)
    postal_code: str = Field(min_length=1)
    country: str = Field(pattern="^[A-Z]{3}$")
    city: str = ""
    state: str = ""
    street: str = ""
    number: str = ""
    neighborhood: str = ""
    complement: str = ""
    geo_coordinates: Coordinates | None = None


class TrackingHint(_Body):
    """Label data of the marketplace."""

    tracking_id: str
    courier_name: str
    tracking_url: str = ""
    tracking_label: str = ""


class Shipping(_Body):
    """Delivery of the whole order."""

    logistics_info: list[Logistics] = Field(min_length=1)
    selected_addresses: list[Address] = Field(min_length=1, max_length=1)
    is_fob: bool
    is_marketplace_fulfillment: bool
    tracking_hints: list[TrackingHint] = []


class UserPayment(_Body):
    """How the shopper paid."""

    payment_methods: list[str]


class Invoice(_Body):
    """Payment data for the invoice."""

    user_payment_info: UserPayment


class CustomApp(_Body):
    """Fields for an app of the store."""

    id: str
    major: int
    fields: dict[str, str]


class Custom(_Body):
    """Fields for apps of the store."""

    custom_apps: list[CustomApp]


class Tax(_Body):
    """Tax of one SKU, in cents."""

    sku_id: str
    value: int


class NewOrder(_Body):
    """`POST /api/order-integration/orders` (vtex.md 9.3)."""

    marketplace_order_id: str = Field(min_length=1)
    connector_name: str = Field(min_length=1)
    connector_endpoint: Endpoint
    marketplace_order_status: Literal["new", "approved", "NEW", "APPROVED"]
    marketplace_payment_value: int = Field(ge=0)
    marketplace_interest_value: int = Field(0, ge=0)
    price_divergence_allowance_rate: float = 0.0
    allow_franchises: bool
    pickup_account_name: str = ""
    items: list[Item] = Field(min_length=1)
    client_profile_data: Client
    shipping_data: Shipping
    invoice_data: Invoice
    custom_data: Custom | None = None
    tax_data: list[Tax] = []
    open_text_field: str = ""

    @model_validator(mode="after")
    def _together(self) -> "NewOrder":
        shipping = self.shipping_data
        problems = []
        if len(shipping.logistics_info) != len(self.items):
            problems.append("shippingData.logisticsInfo: must have one entry per item, in the same order")
        for at, entry in enumerate(shipping.logistics_info):
            if shipping.is_fob and shipping.is_marketplace_fulfillment and not entry.delivery_ids:
                problems.append(f"shippingData.logisticsInfo.{at}.deliveryIds: warehouseId is required here")
        if any(entry.selected_delivery_channel == "pickup-in-point" for entry in shipping.logistics_info):
            address = shipping.selected_addresses[0]
            if address.address_type != "pickup":
                problems.append("shippingData.selectedAddresses.0.addressType: must be pickup for pickup-in-point")
            if address.geo_coordinates is None:
                problems.append("shippingData.selectedAddresses.0.geoCoordinates: required for pickup-in-point")
            if shipping.is_fob:
                problems.append("shippingData.isFob: must not be true for pickup-in-point")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def approved(self) -> bool:
        """Whether the order comes in paid."""
        return self.marketplace_order_status.lower() == "approved"


class NewStatus(_Body):
    """`PUT /api/order-integration/orders/status` (vtex.md 9.6)."""

    marketplace_order_id: str = Field(min_length=1)
    marketplace_order_status: Literal["approved", "new"]
    connector_name: str = Field(min_length=1)
    connector_endpoint: Endpoint


@dataclass(slots=True)
class OrderHabits:
    """How an account takes orders; everything good and quick at first. Times in seconds."""

    create_delay: float = 0.02
    result_delay: float = 0.02
    result_jitter: float = 0.0
    duplicates: int = 0  # further copies of each result
    inverted: bool = False  # SOI002 before SOI001
    silent: bool = False  # no result at all
    result_loss: float = 0.0  # share of results that are lost
    validation: str = "sync"  # sync: EOI005 as the answer, 400; async: SOI003, then EOI005 as the result
    check_stock: bool = False  # EOI002 when an item cannot be delivered
    reserve_stock: bool = False  # an order takes its quantities from the stock
    divergence: str = "accept"  # accept; deny: EOI003; manual: EOI011
    approved_status: str = "ready-for-handling"


@dataclass(slots=True)
class Forced:
    """A code that the next orders get, whatever they are."""

    code: str
    order: str | None = None  # marketplace order id; any when empty
    flow: str = "PlaceOrder"
    left: int = 1
    created: bool = False  # create the order although the result says otherwise (EOI006, EOI010)
    sync: bool = False  # as the answer of the call instead of a result
    errors: tuple[tuple[str, str, str], ...] = ()  # source, code, description


@dataclass(slots=True)
class Order:
    """One marketplace order: how often it was asked for, and what became of it. `status` None: not created."""

    affiliate: str
    marketplace_order_id: str
    attempts: int = 0
    accepted: int = 0
    creations: int = 0
    approvals: int = 0
    status: str | None = None
    body: NewOrder | None = None
    endpoint: str = ""
    created: datetime | None = None
    changed: datetime | None = None
    authorized: datetime | None = None
    cancel_reason: str | None = None
    sequence: int = 0
    packages: list[dict[str, object]] = field(default_factory=list)
    results: list[dict[str, object]] = field(default_factory=list)
    cancel_requests: list[dict[str, object]] = field(default_factory=list)

    @property
    def vtex_id(self) -> str:
        """The order id inside VTEX."""
        return f"{self.affiliate}-{self.marketplace_order_id}"

    def summary(self) -> dict[str, object]:
        """For comparison at the end of a run."""
        return {
            "marketplace_order_id": self.marketplace_order_id,
            "order_id": self.vtex_id,
            "affiliate": self.affiliate,
            "status": self.status,
            "attempts": self.attempts,
            "accepted": self.accepted,
            "creations": self.creations,
            "approvals": self.approvals,
            "value": self.body.marketplace_payment_value if self.body else None,
            "items": [[item.id, item.quantity, item.price] for item in self.body.items] if self.body else [],
            "results": self.results,
            "cancel_reason": self.cancel_reason,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON of a call."""

    status: int
    content: dict[str, object]


Spawn = Callable[[Coroutine[object, object, None]], None]
StockTaken = Callable[[list[int]], None]


@dataclass(slots=True)
class OrderDesk:
    """Takes, creates and reports the orders of one account.

    `spawn` runs background work; `stock_taken` is told which SKUs lost stock to an order.
    """

    catalog: Catalog
    poster: Poster
    chance: random.Random
    spawn: Spawn
    stock_taken: StockTaken
    habits: OrderHabits = field(default_factory=OrderHabits)
    forced: list[Forced] = field(default_factory=list)
    orders: dict[tuple[str, str], Order] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # codes answered at once

    def place(self, affiliate: str, body: bytes, *, lying: bool = False) -> Answer:
        """Take `POST /api/order-integration/orders`. With `lying` it answers SOI003 and forgets the order."""
        if affiliate not in self.catalog.affiliates:
            self.refused["EOI001"] += 1
            errors = (("Fulfillment", "FMT0021", f"affiliateId: {affiliate!r} is not an affiliate of this account"),)
            return Answer(400, self._said("EOI001", "PlaceOrder", None, errors=errors))
        try:
            wanted = NewOrder.model_validate_json(body)
        except ValidationError as error:
            return self._invalid(body, error, "PlaceOrder", affiliate)
        order = self._order(affiliate, wanted.marketplace_order_id)
        order.attempts += 1
        forced = self._take_forced("PlaceOrder", wanted.marketplace_order_id)
        if forced is not None and forced.sync:
            self.refused[forced.code] += 1
            said = self._said(forced.code, "PlaceOrder", wanted.marketplace_order_id, errors=forced.errors)
            return Answer(500 if forced.code in ("EOI000", "EOI006", "EOI010") else 400, said)
        order.accepted += 1
        if not lying:
            self.spawn(self._create(order, wanted, forced))
        return Answer(200, self._said("SOI003", "PlaceOrder", None, operation=None))

    def approve(self, body: bytes, affiliate: str | None, *, lying: bool = False) -> Answer:
        """Take `PUT /api/order-integration/orders/status`."""
        try:
            wanted = NewStatus.model_validate_json(body)
        except ValidationError as error:
            return self._invalid(body, error, "ApproveOrder", affiliate or "")
        order = self._by_marketplace_id(wanted.marketplace_order_id, affiliate)
        if order is not None:
            order.approvals += 1
        forced = self._take_forced("ApproveOrder", wanted.marketplace_order_id)
        if forced is not None and forced.sync:
            self.refused[forced.code] += 1
            return Answer(
                400, self._said(forced.code, "ApproveOrder", wanted.marketplace_order_id, errors=forced.errors)
            )
        if not lying:
            self.spawn(self._approve(order, wanted, forced))
        return Answer(200, self._said("SOI003", "ApproveOrder", wanted.marketplace_order_id, operation=None))

    def find(self, vtex_id: str) -> Order | None:
        """The created order of this VTEX id, or None."""
        affiliate, _, marketplace_id = vtex_id.partition("-")
        order = self.orders.get((affiliate, marketplace_id))
        return order if order is not None and order.status is not None else None

    def cancel(self, order: Order, reason: str, *, by_user: bool, lying: bool = False) -> Answer:
        """`POST /api/oms/pvt/orders/{id}/cancel` (vtex.md 13.1); the connector is asked before VTEX finishes."""
        receipt = str(uuid.UUID(int=self.chance.getrandbits(128)))
        said: dict[str, object] = {"date": _text(datetime.now(UTC)), "orderId": order.vtex_id, "receipt": receipt}
        if order.status == "canceled":
            return Answer(409, {"error": {"code": "OMS003", "message": "Order already canceled", "exception": None}})
        if order.status == "invoiced" or order.packages:
            message = "Order cannot be canceled: it is invoiced"
            return Answer(400, {"error": {"code": "OMS009", "message": message, "exception": None}})
        if lying:
            return Answer(200, said)
        order.cancel_requests.append({"reason": reason, "requestedByUser": by_user})
        if order.status in SELLER_DECIDES:
            self.move(order, "cancellation-requested")
            return Answer(200, said)
        self.spawn(self._finish_cancel(order, reason, by_user=by_user))
        return Answer(200, said)

    def move(self, order: Order, status: str) -> None:
        """Set an order's status."""
        order.status = status
        order.changed = datetime.now(UTC)

    async def call_back(self, order: Order, path: str, body: object) -> int:
        """Post a call-back (invoice, tracking, cancel) below the order's endpoint; its status, 0 without answer."""
        url = f"{order.endpoint.rstrip('/')}/{path.lstrip('/')}"
        return await self.poster.post(url, json.dumps(body, ensure_ascii=False).encode() if body is not None else b"")

    async def _finish_cancel(self, order: Order, reason: str, *, by_user: bool) -> None:
        body = {"marketplaceOrderId": order.marketplace_order_id, "reason": reason, "requestedByUser": by_user}
        if await self.call_back(order, f"pvt/orders/{order.vtex_id}/cancel", body) == 200:
            order.cancel_reason = reason
            self.move(order, "canceled")

    async def _create(self, order: Order, wanted: NewOrder, forced: Forced | None) -> None:
        await asyncio.sleep(self.habits.create_delay)
        operation = self._guid()
        code, errors = self._verdict(order, wanted) if forced is None else (forced.code, forced.errors)
        creates = code in ("SOI001", "EOI011") or (forced is not None and forced.created)
        if creates and order.status is None:
            self._commit(order, wanted, "waiting-for-manual-authorization" if code == "EOI011" else APPROVABLE)
        said = [self._result(code, "PlaceOrder", order, operation, errors)]
        if code == "SOI001" and wanted.approved:
            self._authorize(order)
            said.append(self._result("SOI002", "ApproveOrder", order, operation))
        await self._report(order, wanted.connector_endpoint, said)

    async def _approve(self, order: Order | None, wanted: NewStatus, forced: Forced | None) -> None:
        await asyncio.sleep(self.habits.create_delay)
        ghost = Order(affiliate="", marketplace_order_id=wanted.marketplace_order_id)
        code = "SOI002"
        if forced is not None:
            code = forced.code
        elif order is None or order.status is None:
            code = "EOI008"
        elif order.status == "waiting-for-manual-authorization":
            code = "EOI011"
        elif order.status != APPROVABLE:
            code = "EOI009"
        if code == "SOI002" and order is not None:
            self._authorize(order)
        errors = forced.errors if forced else ()
        said = self._result(code, "ApproveOrder", order or ghost, self._guid(), errors)
        await self._report(order or ghost, wanted.connector_endpoint, [said])

    async def _report(self, order: Order, endpoint: str, said: list[dict[str, object]]) -> None:
        habits = self.habits
        if habits.silent:
            return
        url = f"{endpoint.rstrip('/')}{RESULT_PATH}?an={self.catalog.account}"
        for result in reversed(said) if habits.inverted else said:
            for _ in range(1 + habits.duplicates):
                await asyncio.sleep(habits.result_delay + self.chance.random() * habits.result_jitter)
                note: dict[str, object] = {"code": result["code"], "flow": result["flow"], "status": None}
                order.results.append(note)
                if self.chance.random() >= habits.result_loss:
                    note["status"] = await self.poster.post(url, json.dumps(result, ensure_ascii=False).encode())

    def _verdict(self, order: Order, wanted: NewOrder) -> tuple[str, tuple[tuple[str, str, str], ...]]:
        if order.status is not None:
            return "EOI007", (("Fulfillment", "FMT009", f"Order {order.vtex_id} already exists"),)
        channel = int(self.catalog.affiliates[order.affiliate].sales_channel)
        known = [(item, self.catalog.skus.get(int(item.id)) if item.id.isdecimal() else None) for item in wanted.items]
        unknown = tuple(("Checkout", "ORD002", f"SKU {item.id} not found") for item, sku in known if sku is None)
        if unknown:
            return "EOI004", unknown
        minimum = self.catalog.affiliates[order.affiliate].minimum_value_accumulated
        if minimum is not None and sum(item.price * item.quantity for item in wanted.items) < minimum:
            return "EOI004", (("Checkout", "ORD007", f"Order value is below the minimum of {minimum}"),)
        pairs = [(item, sku) for item, sku in known if sku is not None]
        if self.habits.check_stock:
            short = tuple(
                ("Fulfillment", "FMT005", f"SKU {item.id} unavailable")
                for item, sku in pairs
                if not sku.selling or channel not in sku.channels or sku.offer.balance < item.quantity
            )
            if short:
                return "EOI002", short
        if self.habits.divergence != "accept" and self._diverges(wanted, pairs, channel):
            inner = ("Fulfillment", "FMT007", "Order total differs from the seller's total")
            return ("EOI003" if self.habits.divergence == "deny" else "EOI011"), (inner,)
        return "SOI001", ()

    def _diverges(self, wanted: NewOrder, pairs: list[tuple[Item, Sku]], channel: int) -> bool:
        asked = sum(item.price * item.quantity for item, _ in pairs)
        own = sum((sku.offer.selling(channel) or 0) * item.quantity for item, sku in pairs)
        return abs(asked - own) * 100 > own * wanted.price_divergence_allowance_rate

    def _commit(self, order: Order, wanted: NewOrder, status: str) -> None:
        order.creations += 1
        order.body, order.endpoint = wanted, wanted.connector_endpoint
        order.created = datetime.now(UTC)
        order.sequence = 500_000 + len(self.orders)
        self.move(order, status)
        if self.habits.reserve_stock:
            taken = []
            for item in wanted.items:
                sku = (
                    self.catalog.skus[int(item.id)]
                    if item.id.isdecimal() and int(item.id) in self.catalog.skus
                    else None
                )
                if sku is not None and not sku.offer.unlimited:
                    sku.before = sku.offer
                    sku.offer = replace(sku.offer, stock=max(0, sku.offer.stock - item.quantity))
                    taken.append(sku.id)
            self.stock_taken(taken)

    def _authorize(self, order: Order) -> None:
        order.authorized = datetime.now(UTC)
        self.move(order, self.habits.approved_status)

    def _order(self, affiliate: str, marketplace_order_id: str) -> Order:
        key = (affiliate, marketplace_order_id)
        return self.orders.setdefault(key, Order(affiliate=affiliate, marketplace_order_id=marketplace_order_id))

    def _by_marketplace_id(self, marketplace_order_id: str, affiliate: str | None) -> Order | None:
        if affiliate:
            return self.orders.get((affiliate, marketplace_order_id))
        return next((one for one in self.orders.values() if one.marketplace_order_id == marketplace_order_id), None)

    def _take_forced(self, flow: str, marketplace_order_id: str) -> Forced | None:
        for forced in self.forced:
            if forced.flow == flow and forced.order in (None, marketplace_order_id):
                forced.left -= 1
                if forced.left <= 0:
                    self.forced.remove(forced)
                return forced
        return None

    def _invalid(self, body: bytes, error: ValidationError, flow: str, affiliate: str) -> Answer:
        marketplace_order_id, endpoint = _ids_of(body)
        errors = tuple(("Order Integration", "FMT001", text) for text in named_problems(error))
        self.refused["EOI005"] += 1
        if self.habits.validation == "async" and marketplace_order_id and endpoint:
            order = self._order(affiliate, marketplace_order_id)
            order.attempts += 1
            order.accepted += 1
            result = self._result("EOI005", flow, order, self._guid(), errors)
            self.spawn(self._report(order, endpoint, [result]))
            return Answer(200, self._said("SOI003", flow, None, operation=None))
        return Answer(400, self._said("EOI005", flow, marketplace_order_id, errors=errors))

    def _result(
        self, code: str, flow: str, order: Order, operation: str, errors: tuple[tuple[str, str, str], ...] = ()
    ) -> dict[str, object]:
        said = self._said(code, flow, order.marketplace_order_id, operation=operation, errors=errors)
        if order.status is not None:
            said["fields"] = {"mainOrderId": order.vtex_id}
        return said

    def _said(
        self,
        code: str,
        flow: str,
        marketplace_order_id: str | None,
        *,
        operation: str | None = None,
        errors: tuple[tuple[str, str, str], ...] = (),
    ) -> dict[str, object]:
        return {
            "accountName": self.catalog.account,
            "success": code.startswith("SOI"),
            "flow": flow,
            "operationId": operation,
            "marketplaceOrderId": marketplace_order_id,
            "code": code,
            "message": MESSAGES.get(code, "Unmapped error"),
            "errors": [{"source": source, "code": inner, "description": text} for source, inner, text in errors]
            or None,
            "fields": None,
        }

    def _guid(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128)))


def named_problems(error: ValidationError) -> list[str]:
    """Every problem of a body as `field: what is wrong`, with VTEX's field names."""
    found: list[str] = []
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"])
        text = one["msg"].removeprefix("Value error, ")
        found += [f"{place}: {text}"] if place else text.split("; ")
    return found


def _ids_of(body: bytes) -> tuple[str | None, str | None]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None, None
    if not isinstance(parsed, dict):
        return None, None
    order, endpoint = parsed.get("marketplaceOrderId"), parsed.get("connectorEndpoint")
    return (order if isinstance(order, str) else None), (endpoint if isinstance(endpoint, str) else None)


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def order_json(catalog: Catalog, order: Order) -> dict[str, object]:
    """`GET /api/oms/pvt/orders/{orderId}` (vtex.md 11.4). Raises ValueError for an order that was not created."""
    body = order.body
    if body is None or order.created is None or order.changed is None or order.status is None:
        raise ValueError(f"order {order.marketplace_order_id} was not created")
    channel = catalog.affiliates[order.affiliate].sales_channel if order.affiliate in catalog.affiliates else "1"
    items_total = sum(item.price * item.quantity for item in body.items)
    shipping_total = sum(entry.price for entry in body.shipping_data.logistics_info)
    tax_total = sum(tax.value for tax in body.tax_data)
    client, address = body.client_profile_data, _address(body.shipping_data.selected_addresses[0])
    return {
        "orderId": order.vtex_id,
        "sequence": str(order.sequence),
        "marketplaceOrderId": order.marketplace_order_id,
        "marketplaceServicesEndpoint": order.endpoint,
        "sellerOrderId": order.vtex_id,
        "origin": "Fulfillment",
        "affiliateId": order.affiliate,
        "salesChannel": channel,
        "merchantName": None,
        "status": order.status,
        "workflowIsInError": False,
        "statusDescription": order.status.replace("-", " ").capitalize(),
        "value": body.marketplace_payment_value,
        "creationDate": _text(order.created),
        "lastChange": _text(order.changed),
        "orderGroup": f"v{order.sequence}",
        "followUpEmail": "synthetic@ct.vtex.com.br",
        "lastMessage": None,
        "hostname": catalog.account,
        "isCompleted": True,
        "roundingError": 0,
        "orderFormId": f"{order.sequence:032x}",
        "allowCancellation": order.status not in ("invoiced", "canceled"),
        "allowEdition": False,
        "isCheckedIn": False,
        "authorizedDate": _text(order.authorized) if order.authorized else None,
        "invoicedDate": _text(order.changed) if order.status == "invoiced" else None,
        "cancelReason": order.cancel_reason,
        "cancellationData": {
            "RequestedByUser": True,
            "Reason": order.cancel_reason,
            "CancellationDate": _text(order.changed),
        }
        if order.status == "canceled"
        else None,
        "cancellationRequests": order.cancel_requests,
        "totals": [
            {"id": "Items", "name": "Total dos Itens", "value": items_total},
            {"id": "Discounts", "name": "Total dos Descontos", "value": 0},
            {"id": "Shipping", "name": "Custo Total do Frete", "value": shipping_total},
            {"id": "Tax", "name": "Custo Total da Taxa", "value": tax_total},
        ],
        "items": [_order_item(catalog, item, at, order) for at, item in enumerate(body.items)],
        "clientProfileData": {
            "id": "clientProfileData",
            "email": f"{order.sequence:x}@ct.vtex.com.br",
            "firstName": client.first_name,
            "lastName": client.last_name,
            "documentType": "cnpj" if client.corporate_document else "cpf",
            "document": client.document,
            "phone": client.phone,
            "corporateName": client.corporate_name,
            "tradeName": client.trade_name,
            "corporateDocument": client.corporate_document,
            "stateInscription": client.state_inscription,
            "corporatePhone": client.corporate_phone,
            "isCorporate": bool(client.corporate_document),
            "userProfileId": f"{order.sequence:032x}",
        },
        "shippingData": {
            "id": "shippingData",
            "address": address,
            "logisticsInfo": [
                {
                    "itemIndex": at,
                    "selectedSla": entry.selected_sla or ("vtex:fob_1111" if body.shipping_data.is_fob else "Normal"),
                    "lockTTL": entry.lock_ttl,
                    "price": entry.price,
                    "listPrice": entry.price,
                    "sellingPrice": entry.price,
                    "deliveryWindow": None,
                    "deliveryCompany": "Transportadora",
                    "shippingEstimate": "0bd" if body.shipping_data.is_fob else entry.shipping_estimate,
                    "slas": [],
                    "shipsTo": ["BRA"],
                    "deliveryIds": [],
                    "selectedDeliveryChannel": entry.selected_delivery_channel,
                    "addressId": address["addressId"],
                    "pickupPointId": address["addressId"] if address["addressType"] == "pickup" else None,
                }
                for at, entry in enumerate(body.shipping_data.logistics_info)
            ],
            "trackingHints": [hint.model_dump(by_alias=True) for hint in body.shipping_data.tracking_hints] or None,
            "selectedAddresses": [address],
        },
        "packageAttachment": {"packages": order.packages},
        "changesAttachment": None,
        "customData": body.custom_data.model_dump(by_alias=True) if body.custom_data else None,
        "openTextField": {"value": body.open_text_field} if body.open_text_field else None,
        "marketplace": {"baseURL": order.endpoint, "isCertified": None, "name": body.connector_name},
        "invoiceData": {
            "address": None,
            "userPaymentInfo": {"paymentMethods": body.invoice_data.user_payment_info.payment_methods},
        },
        "sellers": [{"id": "1", "name": catalog.account, "logo": None, "fulfillmentEndpoint": ""}],
        "marketplaceItems": [],
    }


def _address(address: Address) -> dict[str, object]:
    where = address.geo_coordinates
    return {
        "addressType": address.address_type,
        "receiverName": address.receiver_name,
        "addressId": address.address_id,
        "versionId": None,
        "entityId": None,
        "postalCode": address.postal_code,
        "city": address.city,
        "state": address.state,
        "country": address.country,
        "street": address.street,
        "number": address.number,
        "neighborhood": address.neighborhood,
        "complement": address.complement,
        "reference": None,
        "geoCoordinates": [where.longitude, where.latitude] if where else [],
    }


def _order_item(catalog: Catalog, item: Item, at: int, order: Order) -> dict[str, object]:
    sku = catalog.skus.get(int(item.id)) if item.id.isdecimal() else None
    return {
        "uniqueId": f"{order.sequence:028x}{at:04x}".upper(),
        "id": item.id,
        "productId": str(sku.product_id) if sku else "",
        "ean": sku.ean if sku else None,
        "quantity": item.quantity,
        "seller": "1",
        "name": full_name(sku) if sku else f"SKU {item.id}",
        "refId": sku.ref_id if sku else "",
        "price": item.price,
        "listPrice": item.price,
        "sellingPrice": item.price,
        "sellerSku": item.id,
        "priceTags": [],
        "measurementUnit": sku.measurement_unit if sku else "un",
        "unitMultiplier": sku.unit_multiplier if sku else 1.0,
        "isGift": False,
        "tax": 0,
        "commission": 0,
        "freightCommission": 0,
        "priceDefinition": {
            "sellingPrices": [{"value": item.price, "quantity": item.quantity}],
            "calculatedSellingPrice": item.price,
            "total": item.price * item.quantity,
        },
        "parentItemIndex": None,
        "parentAssemblyBinding": None,
    }
