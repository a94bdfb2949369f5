"""The sandbox marketplace in its three profiles: pure mapping functions between its wire and our nouns, then one class.

The promise: what the marketplace is asked and what it says is translated whole and exactly – money to the cent without
a float, every problem of a refusal, every line of an order – and values or fields it invents later break nothing. Its
wire stands in `hub.simulators.marketplace`; this file was written from there (spec-verified).

    sandbox-sync     one SKU a call, price and stock apart, creations repeat (find before), tokens that are renewed
    sandbox-lot      records in lots that are answered later, orders only polled
    sandbox-replace  whole offers: what is not sent is emptied
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar
from urllib.parse import quote, urlencode

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator
from stdnum import ean

from hub.errors import AuthLost, NotFound, Problem, Refusal, Unavailable, UnknownOutcome
from hub.integration import keepable
from hub.marketplaces import Account, Adapter
from hub.model import (
    Action,
    Address,
    Buyer,
    JsonTree,
    Listing,
    ListingPage,
    LotOutcome,
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
from hub.ports import Limit, Lots, Manifest, Marketplace, Rendered, Webhook
from hub.rules import ListingRules
from hub.rules.pricing import decimal_text
from hub.rules.validation import Demands, listing_problems, valid_ean, with_default

if TYPE_CHECKING:
    from hub.transport import Answer, Peer, Write

SCHEMA_VERSION: Final = 1
"""Version of the category tree that `DEMANDS` was copied from; `check` tells when the marketplace has another."""

OVERLAP: Final = timedelta(seconds=60)
"""How far a poll of orders goes back behind the newest one seen."""

_EXCERPT: Final = 500
_SHOWN_VALUE: Final = 120
_PAGE: Final = 100
_NOBODY: Final = Buyer("", "", "", "", "")
_NOWHERE: Final = Address("", "", "")
_FREE_TEXT: Final[tuple[str, ...]] = ()
_CORRECT_IT: Final = "correct it, or ask the marketplace"

DEMANDS: Final[Mapping[str, Mapping[str, tuple[bool, tuple[str, ...]]]]] = {
    "MC-110": {"color": (True, _FREE_TEXT), "size": (True, _FREE_TEXT), "material": (False, _FREE_TEXT)},
    "MC-120": {"color": (True, _FREE_TEXT), "size": (True, _FREE_TEXT)},
    "MC-130": {"material": (False, _FREE_TEXT)},
    "MC-210": {"material": (False, _FREE_TEXT)},
    "MC-220": {"color": (True, _FREE_TEXT), "material": (False, _FREE_TEXT)},
    "MC-310": {"color": (True, _FREE_TEXT)},
    "MC-320": {},
    "MC-330": {"voltage": (True, ("110V", "220V", "bivolt"))},
}
"""Leaf category → attribute → (required, allowed values). A category that is not here is judged by the marketplace."""

_SPECIFICATIONS: Final[Mapping[str, str]] = {
    "color": "color", "colour": "color", "cor": "color",
    "size": "size", "tamanho": "size", "talla": "size", "talle": "size", "tamano": "size",
    "material": "material", "materia prima": "material", "composicao": "material", "composicion": "material",
    "voltage": "voltage", "voltagem": "voltage", "voltaje": "voltage", "tensao": "voltage", "tension": "voltage",
}  # fmt: skip
"""What sellers call a specification in VTEX (folded: no case, no accents) → attribute of the marketplace."""


# --- money --------------------------------------------------------------------------------------------------------


def cents(text: JsonTree) -> int:
    """Cents of a decimal text such as `99.90`. `ValueError` for anything else; a number of JSON is not exact."""
    if not isinstance(text, str):
        raise ValueError("money is not a decimal text")  # noqa: TRY004 – for the caller it is a wrong value
    try:
        amount = Decimal(text).scaleb(2)
    except InvalidOperation:
        raise ValueError("money is not a decimal text") from None
    if not amount.is_finite() or amount != amount.to_integral_value():
        raise ValueError("money has parts of a cent")
    return int(amount)


def write_text(amount: int, currency: str) -> JsonTree:  # noqa: ARG001 – a codec; this one does not tell the currency
    """9990 ⇒ `"99.90"`."""
    return decimal_text(amount)


def read_text(tree: JsonTree, currency: str) -> int:  # noqa: ARG001 – a codec
    """`"99.90"` ⇒ 9990."""
    return cents(tree)


def write_amount(amount: int, currency: str) -> JsonTree:
    """9990 ⇒ `{"amount": "99.90", "currency": "BRL"}`."""
    return {"amount": decimal_text(amount), "currency": currency}


def read_amount(tree: JsonTree, currency: str) -> int:
    """`{"amount": "99.90", "currency": "BRL"}` ⇒ 9990. `ValueError` for another currency."""
    if not isinstance(tree, dict) or tree.get("currency") != currency:
        raise ValueError(f"money is not an amount in {currency}")
    return cents(tree.get("amount"))


def write_cents(amount: int, currency: str) -> JsonTree:  # noqa: ARG001 – a codec
    """9990 ⇒ `9990`."""
    return amount


def read_cents(tree: JsonTree, currency: str) -> int:  # noqa: ARG001 – a codec
    """`9990` ⇒ 9990."""
    if not isinstance(tree, int) or isinstance(tree, bool):
        raise ValueError("money is not whole cents")  # noqa: TRY004 – for the caller it is a wrong value
    return tree


# --- profiles -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dialect:
    """One profile of the marketplace: what it can do, where its listings stand, how it writes money."""

    profile: str
    manifest: Manifest
    home: Literal["/listings", "/offers"]
    write_money: Callable[[int, str], JsonTree]
    read_money: Callable[[JsonTree, str], int]


_LIMIT: Final = Limit(rate=50.0, burst=50)

SYNC: Final = Dialect(
    "sync",
    Manifest(
        name="sandbox-sync",
        title="Sandbox (one SKU a call)",
        actions=frozenset({Action.REGISTER, Action.UPDATE, Action.OFFER, Action.DEACTIVATE, Action.ACTIVATE}),
        offer="separate",
        create="create",
        webhook=Webhook(scheme="hmac_timestamp_body"),
        polls_orders=True,
        walks=True,
        visibility_delay=1.0,
        limit=_LIMIT,
        verification="spec-verified",
        secret_fields=("token", "refresh_token", "client_id", "client_secret", "webhook_secret"),
    ),
    "/listings",
    write_text,
    read_text,
)
LOT: Final = Dialect(
    "lot",
    Manifest(
        name="sandbox-lot",
        title="Sandbox (lots)",
        actions=frozenset({Action.REGISTER, Action.UPDATE, Action.OFFER, Action.DELETE}),
        offer="combined",
        create="upsert",
        lots=Lots(max_records=1_000, max_bytes=1_000_000, max_age=0.5, min_interval=0.3, poll=0.3),
        polls_orders=True,
        walks=True,
        visibility_delay=1.0,
        limit=_LIMIT,
        verification="spec-verified",
    ),
    "/listings",
    write_amount,
    read_amount,
)
REPLACE: Final = Dialect(
    "full-replace",
    Manifest(
        name="sandbox-replace",
        title="Sandbox (whole offers)",
        actions=frozenset({Action.REGISTER, Action.UPDATE, Action.OFFER, Action.DELETE}),
        offer="combined",
        replaces=True,
        create="upsert",
        webhook=Webhook(scheme="none"),
        polls_orders=True,
        walks=True,
        visibility_delay=1.0,
        limit=_LIMIT,
        verification="spec-verified",
    ),
    "/offers",
    write_cents,
    read_cents,
)


# --- what it says -------------------------------------------------------------------------------------------------


class _Told(BaseModel):
    """Only the fields used are named; new ones are no error, and enumerations are texts.

    Characters that PostgreSQL cannot keep are left out: an order with one in its address must come in all the same.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    @field_validator("*", mode="before")
    @classmethod
    def _keepable(cls, said: Any) -> Any:
        if isinstance(said, str):
            return keepable(said)
        if isinstance(said, list):
            return [keepable(one) if isinstance(one, str) else one for one in said]
        if isinstance(said, dict):
            return {keepable(name): keepable(one) if isinstance(one, str) else one for name, one in said.items()}
        return said


class _Complaint(_Told):
    field: str = ""
    code: str = ""
    message: str = ""
    value: Any = None


class _Listed(_Told):
    id: str
    sku: str
    link: str = ""
    status: str = ""
    title: str = ""
    description: str = ""
    category: str = ""
    ean: str = ""
    brand: str = ""
    images: tuple[str, ...] = ()
    attributes: dict[str, str] = Field(default_factory=dict)
    group: str = ""
    price: Any = None
    list_price: Any = None
    stock: int | None = None
    warnings: tuple[_Complaint, ...] = ()


class _Found(_Told):
    listings: tuple[_Listed, ...] = ()
    next_cursor: str | None = None


class _Feed(_Told):
    id: str = Field(min_length=1)
    status: str = ""
    reason: str | None = None


class _Feeds(_Told):
    feeds: tuple[_Feed, ...] = ()


class _FeedLine(_Told):
    line: int = Field(ge=1)
    status: str
    id: str = ""
    link: str = ""
    problems: tuple[_Complaint, ...] = ()


class _Pointer(_Told):
    id: str
    updated_at: AwareDatetime


class _Pointers(_Told):
    orders: tuple[_Pointer, ...] = ()
    next_cursor: str | None = None
    more: bool = False


class _Line(_Told):
    sku: str
    quantity: int = Field(ge=1)
    price: Any
    discount: Any = None
    shipping: Any = None


class _Person(_Told):
    email: str = ""
    first_name: str = ""
    last_name: str = ""
    phone: str = ""
    document: str = ""


class _Place(_Told):
    receiver: str = ""
    postal_code: str = ""
    country: str = ""
    city: str = ""
    state: str = ""
    street: str = ""
    number: str = ""
    neighborhood: str = ""
    complement: str = ""


class _Order(_Told):
    id: str
    status: str = ""
    currency: str = ""
    items: tuple[_Line, ...] = Field(min_length=1)
    shipping: Any = None
    interest: Any = None
    discount: Any = None
    total: Any
    delivery: str = "delivery"
    payments: tuple[str, ...] = ()
    updated_at: AwareDatetime | None = None
    buyer: _Person | None = None
    address: _Place | None = None


class _Category(_Told):
    id: str
    name: str = ""
    children: tuple[_Category, ...] = ()


class _Tree(_Told):
    categories: tuple[_Category, ...]


class _House(_Told):
    profile: str = ""
    currency: str = ""
    schema_version: int = SCHEMA_VERSION
    feed_max_records: int | None = None
    feed_max_bytes: int | None = None
    feed_min_interval: float | None = None


class _Tokens(_Told):
    access_token: str = Field(min_length=1)
    refresh_token: str = Field(min_length=1)


# --- what we ask: product to listing, record to body ---------------------------------------------------------------


def folded(text: str) -> str:
    """Lower case, without accents, words parted by one space: `Matéria-Prima` ⇒ `materia prima`."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join(re.findall(r"[a-z0-9]+", "".join(letter for letter in plain if not unicodedata.combining(letter))))


def ean13(digits: str) -> str:
    """The article number in thirteen digits where it has such a form (zeros in front do not count), else as it is."""
    compact = ean.compact(digits)
    if not valid_ean(compact):
        return digits
    return compact.lstrip("0").zfill(13)


def rendered(product: Product, category: str, rules: ListingRules) -> Rendered:
    """A product in the marketplace's terms with every problem at once (NEW-05), and the defaults used (NEW-06)."""
    used: dict[str, str] = {}
    demands = DEMANDS.get(category, {})
    listing = Listing(
        title=with_default("title", product.name or product.product_name, rules, used),
        description=with_default("description", product.description, rules, used),
        category=category,
        brand=with_default("brand", product.brand, rules, used),
        ean=ean13(product.ean.strip()),
        images=tuple(f"https:{image}" if image.startswith("//") else image for image in product.images),
        attributes=_attributes(product, demands, rules, used),
        group=product.product,
    )
    required = tuple(name for name, (needed, _) in demands.items() if needed)
    problems = [
        *listing_problems(listing, Demands(title_max=60, images_min=1, ean=True, brand=True, attributes=required)),
        *_more_problems(listing, demands),
    ]
    return Rendered(None if problems else listing, tuple(problems), used)


def _attributes(
    product: Product, demands: Mapping[str, tuple[bool, tuple[str, ...]]], rules: ListingRules, used: dict[str, str]
) -> dict[str, str]:
    """The attributes that the category knows, from specifications by name; the SKU's first one of a name counts."""
    found: dict[str, str] = {}
    for specification in product.specifications:
        name = _SPECIFICATIONS.get(folded(specification.name))
        value = ", ".join(one.strip() for one in specification.values if one.strip())
        if name and name in demands and value:
            found.setdefault(name, value)
    for name in demands:
        value = with_default(f"attributes.{name}", found.get(name, ""), rules, used)
        if value:
            found[name] = _allowed(value, demands[name][1])
    return found


def _allowed(value: str, choices: Sequence[str]) -> str:
    """`value` in the marketplace's spelling where it differs only in case, accents and spaces."""
    plain = folded(value).replace(" ", "")
    return next((choice for choice in choices if folded(choice).replace(" ", "") == plain), value)


def _more_problems(listing: Listing, demands: Mapping[str, tuple[bool, tuple[str, ...]]]) -> list[Problem]:
    problems = []
    if valid_ean(listing.ean) and len(ean.compact(listing.ean)) != 13:
        problems.append(Problem("E1", "EAN", listing.ean, "give the 13 digits of one piece, not those of a carton"))
    for number, image in enumerate(listing.images, 1):
        if not image.startswith(("http://", "https://")):
            problems.append(Problem("E1", f"image {number}", image[:_SHOWN_VALUE], "give an http or https address"))
    for name, (_, choices) in demands.items():
        value = listing.attributes.get(name, "")
        if value and choices and value not in choices:
            problems.append(Problem("E1", name, value[:_SHOWN_VALUE], f"write one of {', '.join(choices)}"))
    return problems


def content(listing: Listing) -> dict[str, JsonTree]:
    """The part of a body that says what the article is."""
    return {
        "title": listing.title,
        "description": listing.description,
        "category": listing.category,
        "ean": listing.ean,
        "brand": listing.brand,
        "images": list(listing.images),
        "attributes": dict(listing.attributes),
        "group": listing.group,
    }


def price_body(price: Price, dialect: Dialect, currency: str) -> dict[str, JsonTree]:
    """The part of a body that says what it costs. A list price that strikes nothing through is sent as none."""
    crossed = dialect.write_money(price.list, currency) if price.list > price.sale else None
    return {"price": dialect.write_money(price.sale, currency), "list_price": crossed}


def body_of(record: Record, dialect: Dialect, currency: str) -> dict[str, JsonTree]:
    """Everything that the record means, in one body."""
    body: dict[str, JsonTree] = {}
    if record.listing is not None:
        body |= content(record.listing)
    if record.price is not None:
        body |= price_body(record.price, dialect, currency)
    if record.stock is not None:
        body["stock"] = record.stock
    return body


def encoded(record: Record, currency: str) -> bytes:
    """One record as a line of a lot. Registrations leave price and stock to the lot of offers, as the wire wants."""
    if record.action is Action.DELETE:
        body: dict[str, JsonTree] = {"sku": record.sku, "operation": "delete"}
    elif record.action is Action.OFFER:
        body = {"sku": record.sku, **body_of(replace(record, listing=None), LOT, currency)}
    else:
        parts = body_of(replace(record, price=None, stock=None), LOT, currency)
        body = {"sku": record.sku, "operation": "update", **parts}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


# --- what we understand: listing, lot, order -----------------------------------------------------------------------


def problems_of(tree: JsonTree, status: int) -> tuple[Problem, ...]:
    """Every problem of a refusal as E3; its text when it names none; a foreign body (ACC-13) by its status."""
    known = tree if isinstance(tree, dict) else {}
    try:
        found = _complaints(tuple(_Complaint.model_validate(one) for one in known.get("problems") or ()))
    except (ValidationError, TypeError):
        found = ()
    code, message = known.get("error"), known.get("message")
    return found or (
        Problem(
            "E3",
            "answer",
            code if isinstance(code, str) else f"HTTP {status}",
            message if isinstance(message, str) and message else "ask the marketplace: it gave no reason",
        ),
    )


def _complaints(found: Sequence[_Complaint]) -> tuple[Problem, ...]:
    return tuple(
        Problem("E3", one.field or one.code, _short(one.value), one.message or one.code or _CORRECT_IT) for one in found
    )


def _short(value: JsonTree) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"


def shown(listed: _Listed, dialect: Dialect, currency: str) -> Shown:
    """A listing as our noun. `ValueError` when its money is not in the profile's form."""
    price = None
    if listed.price is not None:
        sale = dialect.read_money(listed.price, currency)
        crossed = sale if listed.list_price is None else dialect.read_money(listed.list_price, currency)
        price = Price(sale, max(sale, crossed))
    return Shown(
        sku=listed.sku,
        remote_id=listed.id,
        active=listed.status == "active",
        link=listed.link,
        price=price,
        stock=listed.stock,
        listing=Listing(
            title=listed.title,
            description=listed.description,
            category=listed.category,
            brand=listed.brand,
            ean=listed.ean,
            images=listed.images,
            attributes=listed.attributes,
            group=listed.group,
        ),
    )


def lot_outcomes(text: str) -> dict[int, LotOutcome]:
    """The result of a lot, keyed from 0. A record status of another kind than the known ones may be sent again."""
    found: dict[int, LotOutcome] = {}
    for line in text.split("\n"):  # within a text JSON allows what else parts lines: U+0085, U+2028
        if not line.strip():
            continue
        told = _FeedLine.model_validate_json(line)
        if told.status == "accepted":
            outcome = LotOutcome(True, Written(told.id, told.link, told.status))
        else:
            problems = _complaints(told.problems) or (Problem("E3", "record", told.status, _CORRECT_IT),)
            missing = any(one.code == "listing_not_found" for one in told.problems)
            outcome = LotOutcome(False, None, problems, retry=told.status != "rejected", missing=missing)
        found[told.line - 1] = outcome
    return found


def spread(amount: int, weights: Sequence[int]) -> list[int]:
    """`amount` in whole parts proportional to `weights`, exact in sum; what rounding leaves goes to the largest rests.

    No part is larger than its weight while `amount` is at most their sum (ORD-27).
    """
    whole = sum(weights)
    if whole == 0:
        return [amount, *([0] * (len(weights) - 1))] if weights else []
    parts = [amount * weight // whole for weight in weights]
    rests = sorted(range(len(weights)), key=lambda at: (-(amount * weights[at] % whole), at))
    for at in rests[: amount - sum(parts)]:
        parts[at] += 1
    return parts


@dataclass(frozen=True, slots=True)
class OrderLine:
    """A line of an order before its discounts are worked in. Cents; `discount` and `shipping` for the whole line."""

    sku: str
    quantity: int
    price: int
    discount: int = 0
    shipping: int = 0


def order_items(lines: Sequence[OrderLine], discount: int = 0) -> tuple[OrderItem, ...]:
    """Lines with every discount inside the price, exact: items × price + shipping = what lines and `discount` say.

    `discount` (of the whole order) is spread over the lines by their value; what exceeds all of them comes off the
    shipping. A line whose value does not divide by its quantity becomes two items, a cent apart; the first has the
    shipping (ORD-26, ORD-27).
    """
    nets = [max(0, line.price * line.quantity - line.discount) for line in lines]
    own_excess = [max(0, line.discount - line.price * line.quantity) for line in lines]
    off_goods = min(discount, sum(nets))
    nets = [net - part for net, part in zip(nets, spread(off_goods, nets), strict=True)]
    shipping = [line.shipping for line in lines]
    off_shipping = min(discount - off_goods + sum(own_excess), sum(shipping))
    shipping = [cost - part for cost, part in zip(shipping, spread(off_shipping, shipping), strict=True)]
    items: list[OrderItem] = []
    for line, net, cost in zip(lines, nets, shipping, strict=True):
        unit, rest = divmod(net, line.quantity)
        items.append(OrderItem(line.sku, line.quantity - rest, unit, cost))
        if rest:
            items.append(OrderItem(line.sku, rest, unit + 1, 0))
    return tuple(items)


def normalised(told: _Order, dialect: Dialect, currency: str) -> MarketplaceOrder:
    """An order as our noun. `ValueError` when its money is not in the profile's form or in another currency.

    An unknown status counts as unpaid: nothing is sent for it until it is one that we know.
    """
    if told.currency and told.currency != currency:
        raise ValueError(f"the order is in {told.currency}, the store's sales channel in {currency}")

    def money(tree: JsonTree) -> int:
        return 0 if tree is None else dialect.read_money(tree, currency)

    lines = [
        OrderLine(line.sku, line.quantity, money(line.price), money(line.discount), money(line.shipping))
        for line in told.items
    ]
    if money(told.shipping) and not any(line.shipping for line in lines):
        costs = spread(money(told.shipping), [line.price * line.quantity for line in lines])
        lines = [replace(line, shipping=cost) for line, cost in zip(lines, costs, strict=True)]
    status: Literal["unpaid", "paid", "cancelled"] = "unpaid"
    if told.status in ("paid", "shipped", "delivered"):
        status = "paid"
    elif told.status in ("cancelled", "canceled"):
        status = "cancelled"
    return MarketplaceOrder(
        order_id=told.id,
        status=status,
        items=order_items(lines, money(told.discount)),
        total=money(told.total),
        interest=money(told.interest),
        buyer=Buyer(**told.buyer.model_dump()) if told.buyer else _NOBODY,
        address=Address(**told.address.model_dump()) if told.address else _NOWHERE,
        delivery=told.delivery,
        updated_at=told.updated_at.astimezone(UTC) if told.updated_at else None,
        payment_methods=told.payments,
    )


class OrdersCursor(BaseModel):
    """Where polling goes on, as text between two polls.

    `since`: the newest update seen. While pages follow, `page` is the next one of the query that began at `start`, and
    `news` tells that this query brought something newer. `quiet`: the last query brought nothing newer, so that the
    next one needs no overlap. `seen` is the digest of the last answer: the same again has nothing new.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    since: AwareDatetime | None = None
    start: AwareDatetime | None = None
    page: str = ""
    news: bool = False
    quiet: bool = False
    seen: str = ""

    def text(self) -> str:
        """As it is kept."""
        return self.model_dump_json(exclude_defaults=True)

    @staticmethod
    def of(text: str | None) -> OrdersCursor:
        """Read back what `text` wrote; one that cannot be read starts over, which repeats and loses nothing."""
        try:
            return OrdersCursor.model_validate_json(text or "{}")
        except ValidationError:
            return OrdersCursor()

    def query(self) -> dict[str, str]:
        """The parameters of the next call."""
        begin = self.begin
        return {
            "limit": str(_PAGE),
            **({"updated_since": begin.isoformat()} if begin else {}),
            **({"cursor": self.page} if self.page else {}),
        }

    @property
    def begin(self) -> datetime | None:
        """The oldest update that the next call asks for."""
        if self.page:
            return self.start
        return self.since - OVERLAP if self.since and not self.quiet else self.since

    def after(self, told: _Pointers) -> OrderPage:
        """The page that was told, and the cursor behind it."""
        times = [one.updated_at for one in told.orders] + ([self.since] if self.since else [])
        since = max(times).astimezone(UTC) if times else None
        news = self.news or since != self.since
        if told.more and told.next_cursor:
            ids, rest = told.orders, OrdersCursor(since=since, start=self.begin, page=told.next_cursor, news=news)
        else:
            seen = hashlib.sha256(repr([(one.id, one.updated_at) for one in told.orders]).encode()).hexdigest()[:16]
            ids = () if seen == self.seen else told.orders
            rest = OrdersCursor(since=since, quiet=not news, seen=seen)
        return OrderPage(tuple(dict.fromkeys(one.id for one in ids)), rest.text(), bool(rest.page))


def leaves(categories: Sequence[_Category], above: str = "") -> dict[str, str]:
    """Id → full name of every category without children."""
    found: dict[str, str] = {}
    for category in categories:
        name = f"{above} > {category.name}" if above else category.name
        found |= leaves(category.children, name) if category.children else {category.id: name}
    return found


def house_problems(house: _House, dialect: Dialect, currency: str) -> list[Problem]:
    """What the account's own rules say against how we would call it."""
    problems = []
    if house.profile and house.profile != dialect.profile:
        fix = f"it is not an account of {dialect.manifest.name}: correct marketplace or marketplace_url"
        problems.append(Problem("input", "account profile", keepable(house.profile)[:40], fix))
    if house.currency and house.currency != currency:
        fix = f"the store sells in {currency}: choose an account or a sales channel of the same currency"
        problems.append(Problem("input", "account currency", keepable(house.currency)[:40], fix))
    if house.schema_version != SCHEMA_VERSION:
        fix = f"categories changed since version {SCHEMA_VERSION}: update the hub to see problems before sending"
        problems.append(Problem("input", "category tree", str(house.schema_version), fix))
    lots = dialect.manifest.lots
    if lots:
        for name, theirs, ours in (
            ("records per lot", house.feed_max_records, lots.max_records),
            ("bytes per lot", house.feed_max_bytes, lots.max_bytes),
        ):
            if theirs is not None and theirs < ours:
                problems.append(
                    Problem("input", name, str(theirs), f"we would send up to {ours}: ask for a higher one")
                )
    return problems


# --- sending ------------------------------------------------------------------------------------------------------

_Model = TypeVar("_Model", bound=_Told)

_OPERATIONS: Final[Mapping[str, tuple[str, str, str, Write]]] = {
    "account_read": ("GET", "/account", "access", "read"),
    "token_refresh": ("POST", "/oauth/token", "access", "idempotent"),
    "categories_read": ("GET", "/categories", "catalog", "read"),
    "listing_find": ("GET", "/listings", "catalog", "read"),
    "listing_create": ("POST", "/listings", "catalog", "create"),
    "listing_put": ("PUT", "/listings/{}", "catalog", "idempotent"),
    "listing_deactivate": ("POST", "/listings/{}/deactivate", "catalog", "idempotent"),
    "listing_activate": ("POST", "/listings/{}/activate", "catalog", "idempotent"),
    "price_put": ("PUT", "/listings/{}/price", "offers", "idempotent"),
    "stock_put": ("PUT", "/listings/{}/stock", "offers", "idempotent"),
    "offer_find": ("GET", "/offers", "catalog", "read"),
    "offer_put": ("PUT", "/offers/{}", "offers", "idempotent"),
    "offer_delete": ("DELETE", "/offers/{}", "offers", "idempotent"),
    "feed_submit": ("POST", "/feeds", "feeds", "create"),
    "feed_find": ("GET", "/feeds", "feeds", "read"),
    "feed_read": ("GET", "/feeds/{}", "feeds", "read"),
    "feed_result": ("GET", "/feeds/{}/result", "feeds", "read"),
    "orders_find": ("GET", "/orders", "orders", "read"),
    "order_read": ("GET", "/orders/{}", "orders", "read"),
}
"""Operation → method, path, group of calls that share a circuit, what a repeat does. `{}` is an id."""


class Sandbox:
    """One store's account on the sandbox marketplace. Thread-safe."""

    def __init__(self, account: Account, dialect: Dialect) -> None:
        self._dialect = dialect
        self._account = account
        self._peer: Peer = account.peer
        self._credentials = account.credentials
        self._renewing = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        """What it can do."""
        return self._dialect.manifest

    # --- records ------------------------------------------------------------------------------------------------

    def render(self, product: Product, category: str, rules: ListingRules) -> Rendered:
        """A product in the marketplace's terms. Pure."""
        return rendered(product, category, rules)

    def write(self, record: Record) -> Written:
        """Send one record and wait for its answer."""
        self._refuse_absent(record.action)
        if self.manifest.lots:
            raise Refusal((Problem("E3", "record", record.action, "this marketplace takes records in lots only"),))
        if self._dialect is REPLACE:
            return self._write_offer(record)
        return self._write_listing(record)

    def _refuse_absent(self, action: Action) -> None:
        if action not in self.manifest.actions:
            known = ", ".join(sorted(self.manifest.actions))
            raise Refusal((Problem("E3", "action", action, f"{self.manifest.name} can only {known}"),), status=405)

    def _write_offer(self, record: Record) -> Written:
        if record.action is not Action.DELETE:
            return self._written(self._ask("offer_put", record.sku, json=body_of(record, REPLACE, self._currency)))
        answer = self._ask("offer_delete", record.sku)
        if answer.status == 404:  # deleting what is not there leaves what was wanted
            return Written(record.remote_id or "", "", answer.excerpt(_EXCERPT))
        return self._written(answer)

    def _write_listing(self, record: Record) -> Written:
        reference = record.remote_id or record.sku
        match record.action:
            case Action.REGISTER:
                body = {"sku": record.sku, **body_of(record, SYNC, self._currency)}
                return self._written(self._ask("listing_create", json=body), lost=True)
            case Action.UPDATE:
                body = body_of(record, SYNC, self._currency)
                return self._written(self._ask("listing_put", reference, json=body), body)
            case Action.DEACTIVATE:
                # Blocked first: nothing can be bought from this call on, whatever becomes of the next. After a zero
                # that came first, a stock that another lane had read earlier could still arrive, and be on sale.
                written = self._written(self._ask("listing_deactivate", reference))
                self._offered(reference, None, 0)
                return written
            case Action.ACTIVATE:
                written = self._written(self._ask("listing_activate", reference))
                return self._offered(reference, record.price, record.stock) or written
        written_offer = self._offered(reference, record.price, record.stock)
        if written_offer is None:
            raise Refusal((Problem("E3", "record", record.action, "it has neither price nor stock"),))
        return written_offer

    def _offered(self, reference: str, price: Price | None, stock: int | None) -> Written | None:
        """Price and stock, each by its own call; both may be repeated."""
        written: Written | None = None
        if price is not None:
            body = price_body(price, SYNC, self._currency)
            written = self._written(self._ask("price_put", reference, json=body), body)
        if stock is not None:
            body = {"stock": stock}
            written = self._written(self._ask("stock_put", reference, json=body), body)
        return written

    def _written(self, answer: Answer, sent: Mapping[str, JsonTree] | None = None, *, lost: bool = False) -> Written:
        """The answer to a write. A warning about a field that was sent means that it was not taken."""
        listed = self._understood(_Listed, self._ok(answer, "listing"), lost=lost)
        ignored = [one for one in listed.warnings if sent and one.field in sent]
        if ignored:
            raise Refusal(_complaints(ignored), status=answer.status, answer=answer.excerpt(_EXCERPT))
        return Written(listed.id, listed.link, answer.excerpt(_EXCERPT))

    def show(self, sku: str, remote_id: str | None) -> Shown | None:
        """What it shows of our SKU now; of several listings the one we know, else the oldest."""
        answer = self._ask("offer_find" if self._dialect is REPLACE else "listing_find", params={"seller_sku": sku})
        found = self._understood(_Found, self._ok(answer, "listings"))
        ours = [one for one in found.listings if one.sku == sku]
        if not ours:
            return None
        chosen = next((one for one in ours if one.id == remote_id), ours[0])
        return self._sure(lambda: shown(chosen, self._dialect, self._currency), answer)

    def listings(self, cursor: str | None) -> ListingPage:
        """A page of everything that it shows of this seller."""
        operation = "offer_find" if self._dialect is REPLACE else "listing_find"
        answer = self._ask(operation, params={"limit": str(_PAGE), **({"cursor": cursor} if cursor else {})})
        found = self._understood(_Found, self._ok(answer, "listings"))
        listed = self._sure(lambda: tuple(shown(one, self._dialect, self._currency) for one in found.listings), answer)
        return ListingPage(listed, found.next_cursor)

    # --- lots ---------------------------------------------------------------------------------------------------

    def encode(self, record: Record) -> bytes:
        """One record as a line of a lot. Pure."""
        self._refuse_absent(record.action)
        return encoded(record, self._currency)

    def submit_lot(self, kind: str, reference: str, lines: Sequence[bytes]) -> str:
        """Send a lot; the answer is its ticket, also when its reference was taken before."""
        self._refuse_lots()
        answer = self._ask(
            "feed_submit",
            params={"kind": kind, "reference": reference},
            data=b"\n".join(lines) + b"\n",
            form="application/x-ndjson",
        )
        if answer.status == 409:
            known = answer.tree()
            ticket = known.get("id") if isinstance(known, dict) else None
            if isinstance(ticket, str) and keepable(ticket):
                return keepable(ticket)
        return self._understood(_Feed, self._ok(answer, "feed"), lost=True).id

    def lot_result(self, ticket: str) -> LotResult | None:
        """What became of a lot; `None` while it is not done."""
        self._refuse_lots()
        answer = self._ask("feed_read", ticket)
        feed = self._understood(_Feed, self._ok(answer, f"lot {ticket}"))
        if feed.status == "fatal":
            reason = feed.reason or "it gave no reason"
            return LotResult(
                {}, (Problem("E3", "lot", ticket, f"the marketplace took none of it: {reason}"),), retry=True
            )
        if feed.status != "done":
            return None
        answer = self._ask("feed_result", ticket)
        if answer.status == 409:
            return None
        if answer.status == 410:
            return LotResult(
                {}, (Problem("E3", "lot", ticket, "its result is no longer kept: send it again"),), retry=True
            )
        text = self._ok(answer, f"result of lot {ticket}").text
        return self._sure(lambda: LotResult(lot_outcomes(text)), answer)

    def find_lot(self, reference: str) -> str | None:
        """The ticket of a lot whose submit answer was lost."""
        self._refuse_lots()
        answer = self._ask("feed_find", params={"reference": reference})
        feeds = self._understood(_Feeds, self._ok(answer, "lots")).feeds
        return feeds[0].id if feeds else None

    def _refuse_lots(self) -> None:
        if not self.manifest.lots:
            raise Refusal((Problem("E3", "lot", "", f"{self.manifest.name} takes no lots"),), status=405)

    # --- orders -------------------------------------------------------------------------------------------------

    def changed_orders(self, cursor: str | None) -> OrderPage:
        """Ids of orders changed since the cursor and in the minute before it; `None` begins with the first order."""
        place = OrdersCursor.of(cursor)
        answer = self._ask("orders_find", params=place.query())
        return place.after(self._understood(_Pointers, self._ok(answer, "orders")))

    def order(self, order_id: str) -> MarketplaceOrder:
        """One order, normalised."""
        answer = self._ask("order_read", order_id)
        told = self._understood(_Order, self._ok(answer, f"order {order_id}"))
        return self._sure(lambda: normalised(told, self._dialect, self._currency), answer)

    # --- the account --------------------------------------------------------------------------------------------

    def categories(self) -> Mapping[str, str]:
        """Id → full name of every leaf."""
        answer = self._ask("categories_read")
        return leaves(self._understood(_Tree, self._ok(answer, "categories")).categories)

    def check(self) -> Sequence[Problem]:
        """Does the marketplace know us, and is the account as we take it to be?"""
        try:
            answer = self._ask("account_read")
            house = self._understood(_House, self._ok(answer, "account"))
        except AuthLost:
            return (Problem("input", "token", "", f"{self.manifest.title} does not accept it: give a new one"),)
        except NotFound:
            fix = "no such account there: correct marketplace_url"
            return (Problem("input", "marketplace_url", self._account.base_url, fix),)
        except Unavailable as away:
            fix = f"no useful answer ({away}): check the address, then try again"
            return (Problem("input", "marketplace_url", self._account.base_url, fix),)
        return tuple(house_problems(house, self._dialect, self._currency))

    # --- calling ------------------------------------------------------------------------------------------------

    @property
    def _currency(self) -> str:
        return self._account.currency

    def _ask(
        self,
        operation: str,
        reference: str = "",
        *,
        params: Mapping[str, str] | None = None,
        json: JsonTree = None,
        data: bytes | None = None,
        form: str = "",
    ) -> Answer:
        """One call; when our token has expired it is renewed once and the call repeated once (a 401 did nothing)."""
        method, path, group, write = _OPERATIONS[operation]
        path = path.format(quote(reference, safe=""))

        def once() -> Answer:
            used = self._credentials
            headers = {"Authorization": f"Bearer {used.values.get('token', '')}"}
            if form:
                headers["Content-Type"] = form
            return self._peer.request(
                method,
                path,
                operation=operation,
                group=group,
                params=params,
                json=json,
                data=data,
                headers=headers,
                write=write,
                auth_version=used.version,
            )

        try:
            return once()
        except AuthLost as lost:
            refused = operation == "token_refresh" or lost.scope != "store"
            if refused or not self._credentials.values.get("refresh_token"):
                raise
            self._renew(lost.version)
        return once()

    def _renew(self, stale: int) -> None:
        """Newer credentials than `stale`: one thread of this process asks for them, the others wait for it."""
        with self._renewing:
            if self._credentials.version == stale:
                self._credentials = self._account.renew(stale, self._traded)

    def _traded(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """The single-use refresh token for a new pair. `AuthLost` when it is not accepted: the seller must consent."""
        names = ("refresh_token", "client_id", "client_secret")
        form = {"grant_type": "refresh_token"} | {name: values.get(name, "") for name in names}
        version = self._credentials.version
        answer = self._ask("token_refresh", data=urlencode(form).encode(), form="application/x-www-form-urlencoded")
        if not answer.ok:
            why = "the marketplace does not renew the token: the seller must consent again"
            raise AuthLost(why, side="marketplace", version=version)
        tokens = self._understood(_Tokens, answer)
        return {**values, "token": tokens.access_token, "refresh_token": tokens.refresh_token}

    def _ok(self, answer: Answer, what: str) -> Answer:
        """`answer`, unless it says no."""
        if answer.ok:
            return answer
        if answer.status == 404:
            raise NotFound(what, answer=answer.excerpt(_EXCERPT))
        raise Refusal(problems_of(answer.tree(), answer.status), status=answer.status, answer=answer.excerpt(_EXCERPT))

    def _understood(self, model: type[_Model], answer: Answer, *, lost: bool = False) -> _Model:
        """The body as a `model`. An answer in another shape tells nothing: `Unavailable`, after a create unknown."""
        tree = answer.json()
        try:
            return model.model_validate(tree)
        except ValidationError as objections:
            fields = ", ".join(".".join(map(str, one["loc"])) or "body" for one in objections.errors()[:3])
            self._not_understood(fields, answer, lost=lost)

    def _sure(self, read: Callable[[], _Read], answer: Answer) -> _Read:
        try:
            return read()
        except ValueError as wrong:
            self._not_understood("lines" if isinstance(wrong, ValidationError) else str(wrong), answer)

    def _not_understood(self, why: str, answer: Answer, *, lost: bool = False) -> NoReturn:
        kind = UnknownOutcome if lost else Unavailable
        raise kind(f"the answer cannot be understood: {why}", side="marketplace", status=answer.status)


_Read = TypeVar("_Read")


def _connector(dialect: Dialect) -> Callable[[Account], Marketplace]:
    return lambda account: Sandbox(account, dialect)


ADAPTERS: Final[Mapping[str, Adapter]] = {
    dialect.manifest.name: Adapter(dialect.manifest, _connector(dialect)) for dialect in (SYNC, LOT, REPLACE)
}
