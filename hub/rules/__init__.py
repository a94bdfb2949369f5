"""The store's own choices, as frozen values, and the pure functions that apply them.

`pricing` turns what VTEX sells for into what the marketplace shows, `inventory` does the same for quantities,
`validation` is the gate of vtex.md 7.1: every check that needs no call. Nothing here knows a clock, a store or a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class PricingRules:
    """How a VTEX price becomes the marketplace's (vtex.md 6.4, 7.7).

    Applied in this order: base (`promotions`, `unit`) → `markup` and `commission` → `conversion` → `rounding` →
    `minimum` and `maximum`. Percentages are 0…; money is integer cents; `conversion` is the price of one unit of the
    channel's currency in the marketplace's.

    `commission_method`: `add` is the plain addition of percentages (15 % + 20 % on 100.00 ⇒ 135.00); `gross_up`
    divides, so that what is left after the commission is the marked-up price.
    `rounding`: `none` keeps cents, `nearest` whole units, `.90` and `.99` amounts that end so; `direction` says where
    to look for the rounded amount.
    `promotions` off shows the list price as the sale price. `unit` says what a price is for when VTEX sells by
    measure (`unitMultiplier` other than 1): one `unit` of measure, or the whole `item`.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    markup: Decimal = Decimal(0)
    commission: Decimal = Decimal(0)
    commission_method: Literal["add", "gross_up"] = "add"
    conversion: Decimal = Decimal(1)
    rounding: Literal["none", "nearest", ".90", ".99"] = "none"
    direction: Literal["nearest", "up", "down"] = "nearest"
    minimum: int | None = None
    maximum: int | None = None
    promotions: bool = True
    unit: Literal["item", "unit"] = "unit"


@dataclass(frozen=True, slots=True)
class InventoryRules:
    """How a VTEX balance becomes the marketplace's quantity (vtex.md 7.6).

    Applied in this order: `percentage` of the balance, rounded down → minus `safety` → not above `cap` (nor above what
    the marketplace can hold) → zero, with a warning, when at or below `minimum`.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    percentage: Decimal = Decimal(100)
    safety: int = 0
    cap: int | None = None
    minimum: int = 0


@dataclass(frozen=True, slots=True)
class ListingRules:
    """The store's choices for registrations: defaults by listing field (`brand`, `attributes.color`, …)."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    defaults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything a store chose that decides what is sent.

    `look_again`: seconds until the second, third … look at a value that was announced as changed, or found to differ
    from what was shown, whatever the first one showed (7.6). `mapping_link` is where the seller maps categories (E4);
    empty: the message names the command instead. `order_policy`: an order that VTEX would not deliver now waits
    (`strict`) or is sent all the same (`advisory`, 9.2).
    `order_waits`: seconds until an order that VTEX does not take is tried again; the last repeats.
    `result_timer`: seconds after which an order without a result is looked up (9.4). `poll_orders`: seconds between two
    polls of the marketplace's orders (9.1). `connector_name` and `connector_endpoint` (URL without query, holding the
    store's token) are what VTEX calls back; empty endpoint: VTEX's door has them.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    pricing: PricingRules = field(default_factory=PricingRules)
    inventory: InventoryRules = field(default_factory=InventoryRules)
    listing: ListingRules = field(default_factory=ListingRules)
    look_again: tuple[float, ...] = (60.0, 300.0)
    mapping_link: str = ""
    order_policy: Literal["strict", "advisory"] = "strict"
    order_waits: tuple[float, ...] = (60.0, 120.0, 240.0, 480.0, 600.0)
    result_timer: float = 600.0
    poll_orders: float = 60.0
    connector_name: str = "vtex-marketplace-hub"
    connector_endpoint: str = field(default="", repr=False)
