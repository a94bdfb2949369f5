"""The nouns of the hub, frozen: what crosses a module border is one of these.

Money is integer cents of the sales channel's currency, time is aware and UTC, ids are strings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from hub.errors import Problem

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

JsonTree = Any
"""A JSON document as `json.loads` gives it; only doors look inside."""


def known_fields(noun: type[DataclassInstance], tree: JsonTree) -> dict[str, JsonTree]:
    """Those of a stored tree's fields that this version's `noun` has; a newer version may have written more."""
    names = {one.name for one in fields(noun)}
    return {name: value for name, value in tree.items() if name in names}


LARGEST_ID: Final = 2_147_483_647
"""VTEX counts SKUs and categories in 32 bits."""


def vtex_id(text: str) -> str | None:
    """The id of a SKU or category as VTEX writes it; `None` when it is no whole number from 1 to `LARGEST_ID`."""
    plain = text.strip().lstrip("0")
    is_number = plain.isascii() and plain.isdigit() and len(plain) <= len(str(LARGEST_ID))
    return plain if is_number and int(plain) <= LARGEST_ID else None


class Urgency:
    """Order of service inside one store and context; the smaller goes first."""

    REMOVE = 0  # deactivations, removals: an oversell is waiting to happen
    NOTIFIED = 1  # somebody said it changed
    FOLLOW = 2  # what an answer made necessary (catalog done ⇒ price, stock)
    CHECK = 5  # notifications without a flag: cheap check
    SWEEP = 6  # our own calendar
    LOAD = 8  # initial load


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: somebody says that `key` of `context` should be looked at.

    `source` is who said so, in one word (vtex, poll, load, operator …); demands are counted by it (law 6).
    `heard` is true when VTEX announced a change, or seems to have made one, so that what is read deserves a second
    look (7.6).
    `count` is how many identical requests it stands for.
    """

    store: int
    context: str
    key: str
    source: str
    urgency: int = Urgency.NOTIFIED
    heard: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One claimed row of `states` with what is remembered beside it (`answers`), as of the claim.

    `asked` is the value the claim will answer. `status` is that of the last ending (`new` before the first).
    `intent`, `intent_age` (seconds since it was committed), `reference`: the write that was begun and not confirmed.
    `confirmed`: what the marketplace is known to show for this context. `resolved`: outcome of the lot record that
    this row waited for, when there is one. `marked`: `answers` holds problems, a ticket or a doubt that a clean ending
    has to wipe. `demands`: how many requests a final ending answers. `looks`: second looks so far, or the read-backs of
    a write whose outcome is unknown.
    """

    context: str
    key: str
    asked: int
    status: str = "new"
    attempts: int = 0
    urgency: int = Urgency.NOTIFIED
    heard: bool = False
    looks: int = 0
    ticket: str | None = None
    input_hash: str | None = None
    reference: str | None = None
    intent: JsonTree = None
    intent_age: float | None = None
    confirmed: JsonTree = None
    pending_seconds: float = 0.0
    marked: bool = False
    resolved: LotOutcome | None = None
    demands: int = 0

    @property
    def looked(self) -> int:
        """How often VTEX was looked at again; read-backs count for nothing."""
        return 0 if self.status == "unknown" else self.looks


@dataclass(frozen=True, slots=True)
class Claim:
    """The keys one attempt has taken: rows by key and context, all under leases of one lane.

    `begun` gathers the (context, key) whose intent this attempt has committed, each with reference and intent.
    """

    id: int
    store: int
    context: str
    lane: str
    items: Mapping[str, Mapping[str, Row]]
    begun: dict[tuple[str, str], tuple[str, JsonTree]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)


class BindingState(StrEnum):
    """Where a listing stands on the marketplace, as far as the hub knows."""

    PUBLISHED = "published"
    DEACTIVATED = "deactivated"
    DELETED = "deleted"  # a change that removes the row of `bindings`


@dataclass(frozen=True, slots=True)
class Binding:
    """VTEX SKU ↔ marketplace listing (8.1). `remote_id` is the marketplace's id, `link` shows the listing."""

    sku: str
    remote_id: str
    state: BindingState
    link: str = ""
    product: str = ""


@dataclass(frozen=True, slots=True)
class Specification:
    """One VTEX specification of a SKU or product."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """A SKU as VTEX's catalogue shows it in one sales channel (vtex.md 5.1).

    `channels` are all its sales channels. `weight` is in grams, lengths in centimetres, both as VTEX gives them
    (decimal text). `category` is the last id of `ProductCategoryIds` (MAP-09).
    """

    sku: str
    product: str
    name: str
    product_name: str
    description: str
    active: bool
    product_active: bool
    channels: tuple[int, ...]
    category: str
    category_name: str
    category_path: str
    brand: str
    ean: str
    ref_id: str
    images: tuple[str, ...]
    specifications: tuple[Specification, ...] = ()
    weight: str = ""
    height: str = ""
    width: str = ""
    length: str = ""
    unit_multiplier: str = "1"
    is_kit: bool = False


@dataclass(frozen=True, slots=True)
class SimulatedItem:
    """One item that VTEX would sell now (vtex.md 6.3). Cents; `None` where VTEX gave nothing."""

    sku: str
    price: int | None
    list_price: int | None
    selling_price: int | None
    definition_price: int | None  # priceDefinition.calculatedSellingPrice
    stock: int | None
    quantity: int
    unit_multiplier: str = "1"
    availability: str = ""
    slas: tuple[str, ...] = ()
    sla_prices: Mapping[str, int] = field(default_factory=dict)
    price_valid_until: str = ""


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulation's answer: an asked SKU that is missing from `items` is not sellable now."""

    items: Mapping[str, SimulatedItem]
    messages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Price:
    """Sale and list price, integer cents; list is never below sale."""

    sale: int
    list: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What the marketplace should show of a SKU's registration, in the marketplace's own terms."""

    title: str
    description: str
    category: str
    brand: str
    ean: str
    images: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    group: str = ""  # variations of one product share it


class Action(StrEnum):
    """What one record asks the marketplace to do."""

    REGISTER = "register"
    UPDATE = "update"
    OFFER = "offer"  # price and/or stock
    DEACTIVATE = "deactivate"  # stock zero and block
    ACTIVATE = "activate"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Record:
    """One write to the marketplace about one SKU.

    Only what is not `None` is meant; a marketplace whose manifest says `replaces` always gets all three.
    `reference` is our own id of this write, committed before it starts.
    """

    sku: str
    action: Action
    reference: str
    remote_id: str | None = None
    listing: Listing | None = None
    price: Price | None = None
    stock: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The marketplace took a record: its id of the listing, a link that shows it, what it answered."""

    remote_id: str
    link: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the marketplace shows of one SKU now; `None` where it cannot be read."""

    sku: str
    remote_id: str
    active: bool
    link: str = ""
    price: Price | None = None
    stock: int | None = None
    listing: Listing | None = None


@dataclass(frozen=True, slots=True)
class ListingPage:
    """Some of a seller's listings, and the cursor of the page behind them; `None`: these were the last."""

    shown: tuple[Shown, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class LotOutcome:
    """What became of one record of a lot: taken (with `written`) or refused (with `problems`).

    `retry`: it was not taken for no fault of the record, so that the same record may be sent again. `missing`: refused
    because there is no listing that it could be about.
    """

    taken: bool
    written: Written | None = None
    problems: tuple[Problem, ...] = ()
    record: JsonTree = None  # the record as it was sent: `record_json`
    retry: bool = False
    missing: bool = False


@dataclass(frozen=True, slots=True)
class LotResult:
    """The marketplace's answer to a whole lot. `by_line` is keyed by the record's position in the lot, from 0.

    `fatal`: why the lot as a whole has no outcomes; with `retry` its records may be sent again as they are.
    """

    by_line: Mapping[int, LotOutcome]
    fatal: tuple[Problem, ...] = ()
    retry: bool = False


@dataclass(frozen=True, slots=True)
class OrderItem:
    """One line of a marketplace order. Cents; `price` is per unit after discounts; `shipping` is for the line."""

    sku: str
    quantity: int
    price: int
    shipping: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where an order goes; personal data: never logged, encrypted at rest."""

    receiver: str
    postal_code: str
    country: str
    city: str = ""
    state: str = ""
    street: str = ""
    number: str = ""
    neighborhood: str = ""
    complement: str = ""
    kind: str = "residential"
    address_id: str = "1"


@dataclass(frozen=True, slots=True)
class Buyer:
    """Who ordered; personal data: never logged, encrypted at rest."""

    email: str
    first_name: str
    last_name: str
    phone: str
    document: str


@dataclass(frozen=True, slots=True)
class MarketplaceOrder:
    """An order as the marketplace tells it, normalised. Cents. `status` is `unpaid`, `paid` or `cancelled`."""

    order_id: str
    status: Literal["unpaid", "paid", "cancelled"]
    items: tuple[OrderItem, ...]
    total: int
    interest: int
    buyer: Buyer
    address: Address
    delivery: str = "delivery"
    updated_at: datetime | None = None
    payment_methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OrderPage:
    """Ids of orders that are new or changed since a cursor, and the cursor to go on from."""

    order_ids: tuple[str, ...]
    cursor: str
    more: bool = False


@dataclass(frozen=True, slots=True)
class IntegrationAnswer:
    """VTEX's answer or result for an order integration (vtex.md 9.4).

    `age`: seconds since a result came in; `None` for an immediate answer.
    """

    success: bool
    flow: str
    code: str
    operation_id: str
    marketplace_order_id: str
    message: str = ""
    inner_codes: tuple[str, ...] = ()
    main_order_id: str | None = None
    problems: tuple[Problem, ...] = ()
    age: float | None = None


@dataclass(frozen=True, slots=True)
class VtexOrder:
    """What the hub reads of an order inside VTEX (vtex.md 11.4)."""

    order_id: str
    marketplace_order_id: str
    status: str
    value: int


@dataclass(frozen=True, slots=True)
class Story:
    """What one attempt did, for the logs endpoint (vtex.md 15.2): becomes one row of `interactions`.

    Contents are JSON trees or text, already free of personal data and secrets.
    """

    operation: str
    direction: str
    code: str
    problems: tuple[Problem, ...] = ()
    source: JsonTree = None
    translated: JsonTree = None
    destination: JsonTree = None
    params: Mapping[str, str] = field(default_factory=dict)


def digest(tree: JsonTree) -> str:
    """A stable hash of a JSON tree or of a dataclass of ours; equal input, equal digest."""
    plain = tree if isinstance(tree, (dict, list, tuple, str, int, type(None))) else asdict(tree)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
