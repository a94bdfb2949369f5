"""From what VTEX sells for to what the marketplace shows, exact to the cent (vtex.md 6.4, 7.7).

Everything between the two is `Decimal`; the ends are integer cents. No step can make a price negative, a higher base
never gives a lower price, and the list price is never below the sale price.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal

from hub.model import Price, SimulatedItem
from hub.rules import PricingRules

HUNDRED = Decimal(100)


def price_of(item: SimulatedItem | None, rules: PricingRules) -> Price | None:
    """The price to show for what VTEX simulated; `None` when there is none (absent, null or 0: A1, PRC-06)."""
    base = None if item is None else base_price(item, rules)
    if base is None:
        return None
    sale = shown_cents(base.sale, rules, limited=True)
    return Price(sale, max(sale, shown_cents(base.list, rules, limited=False)))


def base_price(item: SimulatedItem, rules: PricingRules) -> Price | None:
    """Sale and list price as VTEX has them (6.4): the exact figure first, then Checkout's, then the seller's.

    `priceDefinition` and `sellingPrice` come multiplied by `unitMultiplier`, `price` and `listPrice` do not. Both are
    brought to what `rules.unit` names, so that no answer gives a price 300 times too high (PRC-04). Without promotions
    the list price is what is asked.
    """
    multiplier = Decimal(item.unit_multiplier or "1")
    if multiplier <= 0:
        multiplier = Decimal(1)
    packs = multiplier if rules.unit == "item" else Decimal(1)
    checkout = item.definition_price or item.selling_price
    asked = Decimal(checkout) / multiplier * packs if checkout else Decimal(item.price or 0) * packs
    listed = Decimal(item.list_price or 0) * packs
    if asked <= 0:
        return None
    if not rules.promotions:
        asked = max(asked, listed)
    return Price(cents_of(asked), cents_of(max(asked, listed)))


def shown_cents(cents: int, rules: PricingRules, *, limited: bool) -> int:
    """Apply markup, commission, conversion, rounding and – when `limited` – minimum and maximum, in this order."""
    amount = with_commission(Decimal(cents), rules) * rules.conversion
    rounded = max(1, rounded_cents(amount, rules)) if amount > 0 else 0
    if not limited:
        return rounded
    if rules.minimum is not None:
        rounded = max(rounded, rules.minimum)
    if rules.maximum is not None:
        rounded = min(rounded, rules.maximum)
    return rounded


def with_commission(amount: Decimal, rules: PricingRules) -> Decimal:
    """Markup and commission on `amount`: by plain addition of percentages, or grossed up (`PricingRules`)."""
    if rules.commission_method == "add":
        return amount * (HUNDRED + rules.markup + rules.commission) / HUNDRED
    return amount * (HUNDRED + rules.markup) / (HUNDRED - rules.commission)


def rounded_cents(amount: Decimal, rules: PricingRules) -> int:
    """`amount` of cents at the next amount the rule allows; halves go up. Never below the smallest allowed amount."""
    if rules.rounding == "none":
        return cents_of(amount)
    ending = {"nearest": Decimal(0), ".90": Decimal(90), ".99": Decimal(99)}[rules.rounding]
    mode = {"nearest": ROUND_HALF_UP, "up": ROUND_CEILING, "down": ROUND_FLOOR}[rules.direction]
    wholes = ((amount - ending) / HUNDRED).quantize(Decimal(1), rounding=mode)
    smallest = Decimal(1) if rules.rounding == "nearest" else Decimal(0)
    return int(max(wholes, smallest) * HUNDRED + ending)


def decimal_text(cents: int, digits: int = 2) -> str:
    """Cents as the decimal text that marketplaces take: 9990 ⇒ `99.90`, without any float between (PRC-05)."""
    return f"{Decimal(cents).scaleb(-digits):.{digits}f}"


def cents_of(amount: Decimal) -> int:
    """A `Decimal` amount of cents as whole cents, halves up."""
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))
