"""The store's own choices, as frozen values, and the pure functions that apply them.

`pricing` turns what VTEX sells for into what the marketplace shows, `inventory` does the same for quantities,
`validation` is the gate of vtex.md 7.1: every check that needs no call. Nothing here knows a clock, a store or a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, ValidationInfo

from hub.parsing import within

LARGEST_CENTS: Final = 1_000_000_000_000
"""Ten thousand million units: more than a thing costs in any currency."""

LARGEST_PERCENTAGE: Final = 1000
"""Of a markup or commission: eleven times the price. More is a slip, such as cents where per cent was meant."""

LARGEST_GROSS_UP: Final = 99
"""Of a commission that is grossed up: a hundred times the price; at 100 there is no price that leaves anything."""

LARGEST_PIECES: Final = 2_147_483_647
"""No store has more of one SKU, and no marketplace counts further."""

# Together: the largest price that VTEX's door lets in (2**53 - 1) has 25 digits after the largest of all these. Decimal
# computes with 28, and refuses to round what has more to whole cents.
Percentage = Annotated[Decimal, within("0", str(LARGEST_PERCENTAGE), "a percentage")]
Share = Annotated[Decimal, within("0", "100", "a percentage")]
Factor = Annotated[Decimal, within("0.000001", "1000000", "a factor")]
"""Of a currency: the dearest there is costs less than a million of the cheapest."""

Cents = Annotated[int, within("0", str(LARGEST_CENTS), "cents")]
Pieces = Annotated[int, within("0", str(LARGEST_PIECES), "pieces")]


def _leaves_something(method: str, told: ValidationInfo) -> str:
    commission = told.data.get("commission")
    if method == "gross_up" and commission is not None and commission > LARGEST_GROSS_UP:
        raise ValueError(f"needs a `commission` of at most {LARGEST_GROSS_UP}")
    return method


def _not_below_minimum(maximum: int, told: ValidationInfo) -> int:
    minimum = told.data.get("minimum")
    if minimum is not None and maximum < minimum:
        raise ValueError(f"write at least `minimum` ({minimum})")
    return maximum


@dataclass(frozen=True, slots=True)
class PricingRules:
    """How a VTEX price becomes the marketplace's (vtex.md 6.4, 7.7).

    Applied in this order: base (`promotions`, `unit`) → `markup` and `commission` → `conversion` → `rounding` →
    `minimum` and `maximum`. Money is integer cents; `conversion` is the price of one unit of the channel's currency in
    the marketplace's.

    `commission_method`: `add` is the plain addition of percentages (15 % + 20 % on 100.00 ⇒ 135.00); `gross_up`
    divides, so that what is left after the commission is the marked-up price.
    `rounding`: `none` keeps cents, `nearest` whole units, `.90` and `.99` amounts that end so; `direction` says where
    to look for the rounded amount.
    `promotions` off shows the list price as the sale price. `unit` says what a price is for when VTEX sells by
    measure (`unitMultiplier` other than 1): one `unit` of measure, or the whole `item`.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    markup: Percentage = Decimal(0)
    commission: Percentage = Decimal(0)
    commission_method: Annotated[Literal["add", "gross_up"], AfterValidator(_leaves_something)] = "add"
    conversion: Factor = Decimal(1)
    rounding: Literal["none", "nearest", ".90", ".99"] = "none"
    direction: Literal["nearest", "up", "down"] = "nearest"
    minimum: Cents | None = None
    maximum: Annotated[Cents, AfterValidator(_not_below_minimum)] | None = None
    promotions: bool = True
    unit: Literal["item", "unit"] = "unit"


@dataclass(frozen=True, slots=True)
class InventoryRules:
    """How a VTEX balance becomes the marketplace's quantity (vtex.md 7.6).

    Applied in this order: `percentage` of the balance, rounded down → minus `safety` → not above `cap` (nor above what
    the marketplace can hold) → zero, with a warning, when at or below `minimum`.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    percentage: Share = Decimal(100)
    safety: Pieces = 0
    cap: Pieces | None = None
    minimum: Pieces = 0


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
