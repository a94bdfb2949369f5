"""VTEX's side: what one store's VTEX account says, as nouns, and the few things the hub asks it to do.

An answer is read by pure functions that look only at the fields they need, in any casing, and let the others be. A
field of the wrong kind makes the answer unreadable (`Unavailable` with the field's name), never a wrong price or stock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote, urlsplit

from hub.errors import (
    AuthLost,
    BadInput,
    HubError,
    NotFound,
    Problem,
    Refusal,
    Throttled,
    Unavailable,
    UnknownOutcome,
)
from hub.integration import integration_answer, keepable, without_personal_data
from hub.model import IntegrationAnswer, JsonTree, Product, SimulatedItem, Simulation, Specification, VtexOrder
from hub.ports import CartItem, Limit
from hub.transport import Answer, Peer

GET_ORDER: Final = Limit(rate=5000 / 60, burst=80)
"""What Get order may be asked, per account: the lower of two published figures (vtex.md 2.4, 21.46).

The other API groups share the account's budget, which is far below the catalog's 15,000 a minute per endpoint."""

THROTTLED_CODES: Final = frozenset({"ORD021.3", "CHK00310", "CHK00311"})
"""Business codes that mean 429 (vtex.md 2.4)."""

SERVED_PATHS: Final = ("", "/api/notification", "/catalog/notification")
"""Behind its URL of a store the hub takes notifications at each of these (vtex.md 4.1)."""

_THROTTLED_WAIT: Final = 60.0  # about one minute without any call (vtex.md 2.4)
_LONG_SECONDS: Final = 30.0  # order placing, carts of several items (vtex.md 2.5)
_LONGEST_FIX: Final = 300
_LONGEST_ANSWER: Final = 2000
_MOST_ERRORS: Final = 50
_LARGEST: Final = 2**53 - 1  # the largest whole number that survives every JSON reader
_SAMPLE: Final = 10  # SKUs of the channel that the check reads
_SIMULATED_SAMPLE: Final = 3

_CATALOG_RESOURCES: Final = "SKUs; Product form / View product; Brands; Category; Groups (Catalog)"
_SIMULATION_RESOURCES: Final = "Place orders (OMS), or set simulation = checkout, whose path needs no permission"
_OMS_RESOURCES: Final = "Place orders, View order, Order details (OMS)"
_AFFILIATE_RESOURCES: Final = "Save Order Configuration or Save OrderForm Configuration (Checkout)"
_RESOURCES: Final = {
    "catalog": _CATALOG_RESOURCES,
    "simulation": _SIMULATION_RESOURCES,
    "orders": _OMS_RESOURCES,
    "oms": _OMS_RESOURCES,
    "affiliates": _AFFILIATE_RESOURCES,
}

_T = TypeVar("_T")


# ---------------------------------------------------------------- reading JSON

_MISSING: Final = object()
_KINDS: Final[Mapping[type, str]] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _unreadable(what: str, at: str, wanted: str, found: object) -> Unavailable:
    kind = "missing" if found is _MISSING else _KINDS.get(type(found), "something else")
    message = f"unreadable answer of VTEX ({what}): field {at or '(root)'!r} is {kind}, expected {wanted}"
    return Unavailable(message, side="vtex")


@dataclass(frozen=True, slots=True)
class _Fields:
    """One JSON object of an answer; a field is found in its documented casing, else in any other.

    Every reader raises `Unavailable` that names the field when its value is of another kind; the value itself is not
    repeated.
    """

    tree: Mapping[str, JsonTree]
    what: str
    at: str = ""

    @staticmethod
    def of(tree: JsonTree, what: str, at: str = "") -> _Fields:
        if not isinstance(tree, dict):
            raise _unreadable(what, at, "an object", tree)
        return _Fields(tree, what, at)

    def raw(self, name: str) -> JsonTree:
        if name in self.tree:
            return self.tree[name]
        lower = name.lower()
        return next((value for key, value in self.tree.items() if key.lower() == lower), _MISSING)

    def place(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def wrong(self, name: str, wanted: str) -> Unavailable:
        return _unreadable(self.what, self.place(name), wanted, self.raw(name))

    def text(self, name: str, default: str = "") -> str:
        found = self.raw(name)
        if found is _MISSING or found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            raise self.wrong(name, "a text")
        return _plain_text(found)

    def flag(self, name: str) -> bool:
        found = self.raw(name)
        if isinstance(found, str) and found.lower() in ("true", "false"):
            return found.lower() == "true"
        if not isinstance(found, bool):
            raise self.wrong(name, "true or false")
        return found

    def optional_flag(self, name: str) -> bool:
        return False if self.raw(name) in (_MISSING, None) else self.flag(name)

    def whole(self, name: str) -> int | None:
        found = self.raw(name)
        if found is _MISSING or found is None:
            return None
        number = _whole(found)
        if number is None:
            raise self.wrong(name, "a whole number")
        return number

    def decimal(self, name: str, default: str = "") -> str:
        found = self.raw(name)
        if found is _MISSING or found is None or found == "":
            return default
        text = _decimal_text(found)
        if text is None:
            raise self.wrong(name, "a number")
        return text

    def entries(self, name: str, *, required: bool = False) -> list[JsonTree]:
        found = self.raw(name)
        if found is None or (found is _MISSING and not required):
            return []
        if not isinstance(found, list):
            raise self.wrong(name, "a list")
        return found

    def nested(self, name: str) -> _Fields:
        found = self.raw(name)
        if found is _MISSING or found is None:
            return _Fields({}, self.what, self.place(name))
        return _Fields.of(found, self.what, self.place(name))

    def each(self, name: str) -> Iterator[_Fields]:
        for number, entry in enumerate(self.entries(name)):
            yield _Fields.of(entry, self.what, self.place(f"{name}.{number}"))


def _plain_text(found: str | float) -> str:
    return keepable(found) if isinstance(found, str) else str(found)


def _whole(found: JsonTree) -> int | None:
    if isinstance(found, bool):
        return None
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, str) and re.fullmatch(r"-?[0-9]{1,16}", found):
        found = int(found)
    return found if isinstance(found, int) and abs(found) <= _LARGEST else None


def _decimal_text(found: JsonTree) -> str | None:
    if isinstance(found, bool) or not isinstance(found, int | float | str) or len(f"{found!r:.40}") >= 40:
        return None
    try:
        number = Decimal(str(found))
    except InvalidOperation:
        return None
    if not number.is_finite() or (number and not -9 <= number.adjusted() <= 12):
        return None
    return f"{number.normalize():f}"


# ---------------------------------------------------------------- what the answers say


def parse_product(tree: JsonTree, sku: str) -> Product:
    """SKU and context (vtex.md 5.1) of the SKU that was asked for; `category` is the last of its path (MAP-09).

    Whether it is active and where it is sold must be there: taking it off sale for a gap in an answer would be wrong.
    """
    found = _Fields.of(tree, "SKU")
    if (given := found.text("Id", sku)) != sku:
        raise Unavailable(
            f"unreadable answer of VTEX (SKU): field 'Id' is {given[:20]!r}, asked was {sku!r}", side="vtex"
        )
    path = [part for part in found.text("ProductCategoryIds").split("/") if part.strip()]
    names = found.nested("ProductCategories")
    path_names = [names.text(one) or one for one in path]
    product_name, sku_name = found.text("ProductName"), found.text("SkuName")
    other_ids, size = found.nested("AlternateIds"), found.nested("Dimension")
    return Product(
        sku=sku,
        product=found.text("ProductId"),
        name=found.text("NameComplete") or f"{product_name} {sku_name}".strip(),
        product_name=product_name,
        description=found.text("ProductDescription"),
        active=found.flag("IsActive"),
        product_active=found.flag("IsProductActive"),
        channels=tuple(_channels(found)),
        category=path[-1] if path else "",
        category_name=path_names[-1] if path_names else "",
        category_path=" > ".join(path_names),
        brand=found.text("BrandName"),
        ean=other_ids.text("Ean").strip(),
        ref_id=other_ids.text("RefId"),
        images=_images(found),
        specifications=_specifications(found),
        weight=size.decimal("weight"),
        height=size.decimal("height"),
        width=size.decimal("width"),
        length=size.decimal("length"),
        unit_multiplier=found.decimal("UnitMultiplier", "1"),
        is_kit=found.optional_flag("IsKit"),
    )


def _channels(found: _Fields) -> Iterator[int]:
    for entry in found.entries("SalesChannels", required=True):
        channel = _whole(entry)
        if channel is None:
            raise _unreadable(found.what, found.place("SalesChannels"), "a list of whole numbers", entry)
        yield channel


def _images(found: _Fields) -> tuple[str, ...]:
    urls = [url for image in found.each("Images") if (url := image.text("ImageUrl").strip())]
    main = found.text("ImageUrl").strip()
    return tuple(dict.fromkeys(urls or ([main] if main else [])))


def _specifications(found: _Fields) -> tuple[Specification, ...]:
    """Those of the SKU, then those of the product; where both name the same, the SKU's counts."""
    by_name: dict[str, Specification] = {}
    for owner in ("SkuSpecifications", "ProductSpecifications"):
        for one in found.each(owner):
            name = one.text("FieldName").strip()
            values = tuple(_plain_text(value) for value in one.entries("FieldValues") if _is_text(value, one))
            if name and values:
                by_name.setdefault(name, Specification(name, values))
    return tuple(by_name.values())


def _is_text(value: JsonTree, owner: _Fields) -> bool:
    if isinstance(value, dict | list | bool):
        raise _unreadable(owner.what, owner.place("FieldValues"), "a list of texts", value)
    return value is not None and value != ""


def parse_sku_ids(tree: JsonTree) -> tuple[str, ...]:
    """One page of SKU ids, each once, in the order of the answer (vtex.md 5)."""
    if not isinstance(tree, list):
        raise _unreadable("SKU list", "", "a list", tree)
    ids: dict[str, None] = {}
    for number, entry in enumerate(tree):
        found = _whole(entry)
        if found is None:
            raise _unreadable("SKU list", str(number), "a whole number", entry)
        ids[str(found)] = None
    return tuple(ids)


def parse_simulation(tree: JsonTree) -> Simulation:
    """What VTEX would sell (vtex.md 6.3), the seller's and Checkout's form alike.

    Items are matched by id. A SKU that comes in several lines has the sum of their quantities and the first line's
    figures.
    """
    found = _Fields.of(tree, "simulation")
    logistics: dict[int, _Fields] = {}
    for number, entry in enumerate(found.each("logisticsInfo")):
        index = entry.whole("itemIndex")
        logistics.setdefault(number if index is None else index, entry)
    items: dict[str, SimulatedItem] = {}
    for number, line in enumerate(found.each("items")):
        item = _simulated(line, logistics.get(number, _Fields({}, found.what)))
        first = items.get(item.sku)
        items[item.sku] = replace(first, quantity=first.quantity + item.quantity) if first else item
    return Simulation(items, tuple(_messages(found)))


def _simulated(line: _Fields, logistics: _Fields) -> SimulatedItem:
    sku = line.text("id").strip()
    if not sku:
        raise line.wrong("id", "the id of a SKU")
    slas: dict[str, int | None] = {}
    for sla in logistics.each("slas"):
        slas.setdefault(sla.text("name") or sla.text("id"), sla.whole("price"))
    return SimulatedItem(
        sku=sku,
        price=line.whole("price"),
        list_price=line.whole("listPrice"),
        selling_price=line.whole("sellingPrice"),
        definition_price=line.nested("priceDefinition").whole("calculatedSellingPrice"),
        stock=_stock(line, logistics),
        quantity=line.whole("quantity") or 0,
        unit_multiplier=line.decimal("unitMultiplier", "1"),
        availability=line.text("availability"),
        slas=tuple(slas),
        sla_prices={name: price for name, price in slas.items() if price is not None},
        price_valid_until=line.text("priceValidUntil"),
    )


def _stock(line: _Fields, logistics: _Fields) -> int | None:
    """The balance under any of its names (STK-04), else the largest channel's (STK-05: they overlap), else unknown."""
    for place in (logistics, line):
        for name in ("stockBalance", "logisticsStockBalance"):
            balance = place.whole(name)
            if balance is not None:
                return max(0, balance)
    channels = [channel.whole("stockBalance") for channel in logistics.each("deliveryChannels")]
    known = [balance for balance in channels if balance is not None]
    return max(0, *known) if known else None


def _messages(found: _Fields) -> Iterator[str]:
    for message in found.each("messages"):
        code, text = message.text("code"), message.text("text")
        yield (f"{code}: {text}" if code and text else code or text)[:_LONGEST_FIX]


def parse_order(tree: JsonTree) -> VtexOrder:
    """What the hub reads of an order inside VTEX (vtex.md 11.4); a status may be null."""
    found = _Fields.of(tree, "order")
    order_id, value = found.text("orderId"), found.whole("value")
    if not order_id:
        raise found.wrong("orderId", "the id of an order")
    if value is None:
        raise found.wrong("value", "a whole number")
    return VtexOrder(order_id, found.text("marketplaceOrderId"), found.text("status"), value)


@dataclass(frozen=True, slots=True)
class Affiliate:
    """The marketplace as the account knows it (vtex.md 3.2)."""

    sales_channel: str
    endpoint: str
    minimum: int | None


def parse_affiliate(tree: JsonTree) -> Affiliate:
    """One affiliate."""
    found = _Fields.of(tree, "affiliate")
    minimum = found.whole("minimumValueAccumulated")
    return Affiliate(found.text("salesChannel").strip(), found.text("searchURIEndpoint").strip(), minimum)


@dataclass(frozen=True, slots=True)
class Channel:
    """A sales channel of the account."""

    name: str
    active: bool


def parse_channel(tree: JsonTree) -> Channel:
    """One sales channel."""
    found = _Fields.of(tree, "sales channel")
    return Channel(found.text("Name"), found.flag("IsActive"))


def refusal_problems(status: int, tree: JsonTree, text: str = "") -> tuple[Problem, ...]:
    """What an error body says (vtex.md 2.3): JSON of any of VTEX's forms, plain text, or nothing that can be read.

    `tree` is the body as JSON, `None` when it is none. A problem's code is VTEX's, else `vtex`. Texts may quote what
    was sent and are masked.
    """
    if isinstance(tree, list) and tree:
        tree = tree[0]
    if isinstance(tree, dict):
        said = list(_said_in(_Fields(tree, "error")))
        return tuple(_problem(status, code, message) for code, message in said) or (_problem(status, "", ""),)
    plain = tree if isinstance(tree, str) else text if tree is None else ""
    return (_problem(status, "", re.sub(r"<[^>]*>|\s+", " ", plain[:_LONGEST_ANSWER])),)


def _said_in(found: _Fields) -> Iterator[tuple[str, str]]:
    """Code and message of every error in a body."""
    inner, listed = found.raw("error"), found.raw("errors")
    if isinstance(inner, str):
        yield (_code(found.raw("code")), inner)
    else:
        yield from _said(_Fields(inner, "error") if isinstance(inner, dict) else found)
    for one in listed[:_MOST_ERRORS] if isinstance(listed, list) else ():
        if isinstance(one, dict):
            yield from _said(_Fields(one, "error"))


def _said(found: _Fields) -> Iterator[tuple[str, str]]:
    code = _code(found.raw("code"))
    texts = (found.raw(name) for name in ("message", "description"))
    message = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    if code or message:
        yield (code, message)


def _code(found: JsonTree) -> str:
    return keepable(str(found))[:40] if isinstance(found, str | int) and not isinstance(found, bool) else ""


def _problem(status: int, code: str, message: str) -> Problem:
    fix = without_personal_data(keepable(message).strip()[:_LONGEST_FIX])
    return Problem(code or "vtex", field="VTEX", value=code or str(status), fix=fix or f"refused with {status}")


# ---------------------------------------------------------------- asking


def simulation_body(
    items: Sequence[CartItem], *, postal_code: str | None = None, country: str | None = None
) -> dict[str, JsonTree]:
    """The request of a simulation with every key (vtex.md 6.2, ORD-37). `BadInput` for half an address."""
    if (postal_code is None) != (country is None):
        fix = "give postal code and country together, or neither"
        raise BadInput([Problem("input", field="postal_code" if postal_code is None else "country", fix=fix)])
    return {
        "items": [{"id": item.sku, "quantity": item.quantity, "seller": "1"} for item in items],
        "marketingData": None,
        "postalCode": postal_code,
        "country": country,
        "selectedSla": None,
        "clientProfileData": None,
        "geoCoordinates": [],
        "isCheckedIn": False,
        "storeId": None,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class VtexStore:
    """`hub.ports.Vtex` of one store: its account, seen through its sales channel and affiliate.

    `hub_url` is the hub's own URL for this store with its token and without a query: notifications, results and
    call-backs come there. `auth_version` is that of the credentials the peer sends. `orders` is the way to Get order
    where it has a budget of its own (`GET_ORDER`); without it `peer` serves that too.
    """

    peer: Peer
    account: str
    affiliate: str
    sales_channel: int
    hub_url: str = field(repr=False)
    simulation: Literal["fulfillment", "checkout"] = "fulfillment"
    connector_name: str = "hub"
    auth_version: int = 0
    orders: Peer | None = None

    def product(self, sku: str) -> Product:
        """SKU and context (vtex.md 5.1). `NotFound` when VTEX does not know it."""
        path = f"/api/catalog_system/pvt/sku/stockkeepingunitbyid/{quote(sku, safe='')}"
        answer = self._get(path, "sku", "catalog", {"sc": str(self.sales_channel)}, what=f"SKU {sku}")
        return parse_product(answer.json(), sku)

    def simulate(
        self, items: Sequence[CartItem], *, postal_code: str | None = None, country: str | None = None
    ) -> Simulation:
        """What VTEX would sell now (vtex.md 6): without an address for price and stock, with one for orders."""
        part = "checkout/pub" if self.simulation == "checkout" else "fulfillment/pvt"
        with _resource_named("simulation"):
            answer = self.peer.request(
                "POST",
                f"/api/{part}/orderForms/simulation",
                operation="simulation",
                group="simulation",
                params={"sc": str(self.sales_channel), "affiliateId": self.affiliate},
                json=simulation_body(items, postal_code=postal_code, country=country),
                total=None if len(items) == 1 else _LONG_SECONDS,
                write="read",
                auth_version=self.auth_version,
            )
        return parse_simulation(_taken(self.peer, "simulation", answer, "simulation").json())

    def sku_page(self, page: int, size: int) -> Sequence[str]:
        """One page (from 1) of the SKU ids of the sales channel; may be larger than asked where paging is ignored."""
        path = "/api/catalog_system/pvt/sku/stockkeepingunitidsbysaleschannel"
        params = {"sc": str(self.sales_channel), "page": str(page), "pageSize": str(size)}
        answer = self._get(path, "sku_ids", "catalog", params, what=f"sales channel {self.sales_channel}")
        return parse_sku_ids(answer.json())

    def create_order(self, body: Mapping[str, Any]) -> IntegrationAnswer:
        """New Order Integration (vtex.md 9.3); connector name and endpoint are added where `body` has none.

        `UnknownOutcome` when the answer was lost or cannot be read. A business no comes as an answer without success;
        `Refusal` when it is not in the documented form.
        """
        with _resource_named("orders"):
            answer = self.peer.request(
                "POST",
                "/api/order-integration/orders",
                operation="create_order",
                group="orders",
                params={"affiliateId": self.affiliate},
                json={"connectorName": self.connector_name, "connectorEndpoint": self.hub_url, **body},
                total=_LONG_SECONDS,
                write="create",
                auth_version=self.auth_version,
            )
        try:
            return _integrated(self.peer, answer)
        except Unavailable as fault:
            raise UnknownOutcome(str(fault), side="vtex", status=answer.status) from fault

    def approve_order(self, marketplace_order_id: str) -> IntegrationAnswer:
        """Approve a paid order (vtex.md 9.6); approving twice does no harm. Answers as `create_order` does."""
        with _resource_named("orders"):
            answer = self.peer.request(
                "PUT",
                "/api/order-integration/orders/status",
                operation="approve_order",
                group="orders",
                json={
                    "marketplaceOrderId": marketplace_order_id,
                    "marketplaceOrderStatus": "approved",
                    "connectorName": self.connector_name,
                    "connectorEndpoint": self.hub_url,
                },
                total=_LONG_SECONDS,
                write="idempotent",
                auth_version=self.auth_version,
            )
        return _integrated(self.peer, answer)

    def order(self, vtex_order_id: str) -> VtexOrder:
        """Get order (vtex.md 11.4). `NotFound` when VTEX has none."""
        path = f"/api/oms/pvt/orders/{quote(vtex_order_id, safe='')}"
        return parse_order(self._get(path, "order", "oms", {}, what=f"order {vtex_order_id}").json())

    def check(self) -> Sequence[Problem]:
        """Every registration check of vtex.md 3.3 that concerns VTEX (SET-01, 02, 05 to 07); all problems at once.

        Code `setup`: the store cannot start. `setup-warning`: it can. The fix for a wrong affiliate holds `hub_url`,
        which contains the store's token: show it to the operator, keep it nowhere.
        """
        return _Check(self).run()

    def affiliate_found(self) -> Affiliate:
        """The affiliate of this store as VTEX has it. `NotFound` when there is none."""
        path = f"/api/fulfillment/pvt/affiliates/{quote(self.affiliate, safe='')}"
        answer = self._get(path, "affiliate", "affiliates", {}, what=f"affiliate {self.affiliate}")
        return parse_affiliate(answer.json())

    def channel_found(self) -> Channel:
        """The sales channel of this store as VTEX has it. `NotFound` when there is none."""
        path = f"/api/catalog_system/pub/saleschannel/{self.sales_channel}"
        answer = self._get(path, "channel", "catalog", {}, what=f"sales channel {self.sales_channel}")
        return parse_channel(answer.json())

    def _get(self, path: str, operation: str, group: str, params: Mapping[str, str], *, what: str) -> Answer:
        peer = (self.orders if group == "oms" else None) or self.peer
        with _resource_named(group):
            answer = peer.request(
                "GET",
                path,
                operation=operation,
                group=group,
                params=dict(params),
                write="read",
                auth_version=self.auth_version,
            )
        return _taken(peer, group, answer, what)


@contextmanager
def _resource_named(group: str) -> Iterator[None]:
    """A 403 says which resource of VTEX's License Manager the role lacks (ACC-03)."""
    try:
        yield
    except AuthLost as lost:
        if lost.scope == "store":
            raise
        why = f"{lost}; the role of the application key lacks: {_RESOURCES[group]}"
        raise AuthLost(why, side=lost.side, version=lost.version, scope=lost.scope) from None


def _taken(peer: Peer, group: str, answer: Answer, what: str) -> Answer:
    """The answer when it is a yes; else the error that its status and body stand for is raised."""
    if not answer.ok:
        raise _refused(peer, group, answer, what)
    return answer


def _refused(peer: Peer, group: str, answer: Answer, what: str) -> NotFound | Refusal:
    """The error for an answer that is a no (vtex.md 2.3). Raises `Throttled` when it is a 429 in VTEX's words."""
    problems = [
        replace(problem, fix=peer.redact(problem.fix))
        for problem in refusal_problems(answer.status, answer.tree(), answer.text)
    ]
    _not_throttled(peer, group, [problem.code for problem in problems])
    if answer.status == 404:
        return NotFound(what, answer=answer.excerpt())
    return Refusal(problems, status=answer.status, answer=answer.excerpt())


def _not_throttled(peer: Peer, group: str, codes: Sequence[str]) -> None:
    found = THROTTLED_CODES.intersection(codes)
    if found:
        peer.hold(group, _THROTTLED_WAIT)
        said = ", ".join(sorted(found))
        raise Throttled(f"VTEX throttles this account ({said})", side="vtex", wait=_THROTTLED_WAIT)


def _integrated(peer: Peer, answer: Answer) -> IntegrationAnswer:
    """The synchronous answer of Order Integration; a refusal in the documented form is an answer too."""
    tree = answer.json() if answer.ok else answer.tree()
    if answer.ok or (isinstance(tree, dict) and str(tree.get("code")).startswith("EOI")):
        said = integration_answer(tree)
        if not said.code:
            raise _unreadable("order integration", "code", "a text", _MISSING)
        if not said.success:
            _not_throttled(peer, "orders", said.inner_codes)
        return said if answer.ok else replace(said, success=False)
    raise _refused(peer, "orders", answer, "order integration")


# ---------------------------------------------------------------- registration


@dataclass(frozen=True, slots=True)
class _Check:
    """The checks of vtex.md 3.3 on one store, and the problems found so far."""

    store: VtexStore
    found: list[Problem] = field(default_factory=list)

    def run(self) -> list[Problem]:
        skus = self._catalog()
        if skus is None:
            return self.found
        affiliate_fits, channel_fits = self._affiliate(), self._channel()
        self._orders()
        self._simulation(skus, conclusive=affiliate_fits and channel_fits)
        return self.found

    def _catalog(self) -> Sequence[str] | None:
        """SKU ids of the channel; `None` when nothing else can be learnt (no account, no credentials, no answer)."""
        store, before = self.store, len(self.found)
        skus = self._asked("catalog", _CATALOG_RESOURCES, lambda: store.sku_page(1, _SAMPLE))
        if isinstance(skus, NotFound | Refusal):
            self._error("account", store.account, f"VTEX does not know it ({skus}); correct the account name")
            return None
        if skus is None:
            return () if self.found[before:] == [_lacks("catalog", _CATALOG_RESOURCES)] else None
        if skus:
            self._asked("catalog", _CATALOG_RESOURCES, lambda: store.product(skus[0]))
        else:
            fix = "no SKU is sold through it; add products to this trade policy in VTEX, then run the load"
            self._warn("sales_channel", str(store.sales_channel), fix)
        return skus

    def _affiliate(self) -> bool:
        store = self.store
        found = self._asked("affiliates", _AFFILIATE_RESOURCES, store.affiliate_found)
        if isinstance(found, NotFound | Refusal):
            fix = (
                f"VTEX has no such affiliate; create it in the VTEX Admin (Marketplace > Affiliates) with trade policy "
                f"{store.sales_channel} and search endpoint {store.hub_url}"
            )
            self._error("affiliate", store.affiliate, fix)
            return False
        if found is None:
            return True
        if found.sales_channel != str(store.sales_channel):
            fix = f"set the trade policy of affiliate {store.affiliate} to {store.sales_channel} in VTEX"
            self._error("affiliate.salesChannel", found.sales_channel, fix)
        if not _served(found.endpoint, store.hub_url):
            fix = f"set the search endpoint of affiliate {store.affiliate} to {store.hub_url} in VTEX"
            self._error("affiliate.searchURIEndpoint", _host_of(found.endpoint), fix)
        if found.minimum:
            fix = "VTEX refuses every order below this many cents (EOI004); clear it unless that is wanted"
            self._warn("affiliate.minimumValueAccumulated", str(found.minimum), fix)
        return True

    def _channel(self) -> bool:
        number = str(self.store.sales_channel)
        found = self._asked("catalog", _CATALOG_RESOURCES, self.store.channel_found)
        if isinstance(found, NotFound | Refusal):
            self._error("sales_channel", number, "VTEX has no such trade policy; correct the number")
            return False
        if found is not None and not found.active:
            fix = f"trade policy {number} ({found.name}) is inactive in VTEX; activate it or choose another"
            self._error("sales_channel", number, fix)
        return True

    def _orders(self) -> None:
        """An order that cannot exist: not knowing it proves the permission. Placing cannot be tried without harm."""
        self._asked("OMS", _OMS_RESOURCES, lambda: self.store.order(f"{self.store.affiliate}-hub-check"))

    def _simulation(self, skus: Sequence[str], *, conclusive: bool) -> None:
        said = ""
        for sku in skus[:_SIMULATED_SAMPLE] or ("1",):
            ask = partial(self.store.simulate, [CartItem(sku)])
            found = self._asked("simulation", _SIMULATION_RESOURCES, ask)
            if found is None:
                return
            if isinstance(found, NotFound | Refusal):
                said = f" (VTEX says: {found})"
                continue
            item = found.items.get(sku)
            if item is not None and (item.price or item.selling_price or item.definition_price) and item.stock:
                return
        if skus and conclusive:
            tried = ", ".join(skus[:_SIMULATED_SAMPLE])
            fix = (
                f"none of these SKUs has price and stock now{said}; check price table, docks and carriers of the policy"
            )
            self._warn("simulation", tried, fix)

    def _asked(self, group: str, resources: str, call: Callable[[], _T]) -> _T | NotFound | Refusal | None:
        """What VTEX says, its no included; `None` when there is no saying, and the problem is written down."""
        try:
            return call()
        except (NotFound, Refusal) as fault:
            return fault
        except AuthLost as fault:
            if fault.scope == "store":
                self._credentials()
            else:
                self._add(_lacks(group, resources))
        except HubError as fault:
            self._error(group, self.store.account, f"could not be checked, try again: {fault}")
        return None

    def _credentials(self) -> None:
        fix = "VTEX refuses them (401); create an application key for the hub in the VTEX Admin and enter it again"
        self._error("app_key, app_token", "", fix)

    def _error(self, name: str, value: str, fix: str) -> None:
        self._add(Problem("setup", field=name, value=value, fix=fix))

    def _warn(self, name: str, value: str, fix: str) -> None:
        self._add(Problem("setup-warning", field=name, value=value, fix=fix))

    def _add(self, problem: Problem) -> None:
        if problem not in self.found:
            self.found.append(problem)


def _lacks(group: str, resources: str) -> Problem:
    fix = f"the role of the hub's application key lacks it (403); give it: {resources}"
    return Problem("setup", field=f"permission: {group}", fix=fix)


def _served(endpoint: str, hub_url: str) -> bool:
    """Does `endpoint` lead to the hub's URL of this store, in any of the forms that the hub serves?"""
    theirs, ours = _target(endpoint), _target(hub_url)
    return theirs is not None and ours is not None and any(theirs == (*ours[:2], ours[2] + p) for p in SERVED_PATHS)


def _target(url: str) -> tuple[str, str, str] | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return (parts.scheme.lower(), parts.netloc.lower(), parts.path.rstrip("/"))


def _host_of(url: str) -> str:
    """A URL as it may be shown: its path may be a secret."""
    target = _target(url)
    if not url:
        return "empty"
    return f"{target[0]}://{target[1].rpartition('@')[2]}/…" if target and target[1] else "no URL"
