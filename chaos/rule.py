"""What a store should show for what VTEX sells, worked out anew from vtex.md 6.4, 6.5, 7.5–7.7 and 18.

The promise: nothing here comes from the hub. Exact fractions all the way, one rounding where the rules name one; where
the hub's own rules differ from this page by a cent, one of the two is wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from chaos.evidence import Served, Sold, Store


@dataclass(frozen=True, slots=True)
class Offer:
    """Price and stock to show. No price (vtex.md 6.4: null or 0): `price` and `list_price` are `None`, stock is 0."""

    price: int | None
    list_price: int | None
    stock: int


def offer(store: Store, price: int | None, list_price: int | None, stock: int | None, multiplier: str) -> Offer:
    """The store's rules applied to what a simulation says of one SKU, in cents and pieces."""
    shown = shown_price(store.pricing, price, list_price, multiplier)
    if shown is None:
        return Offer(None, None, 0)
    return Offer(*shown, shown_stock(store.inventory, stock, store.most_stock))


def wanted(store: Store, sold: Sold) -> Offer:
    """What should be shown of what VTEX sells in the end."""
    return offer(store, sold.price, sold.list_price, sold.stock, sold.unit_multiplier)


def told(store: Store, served: Served) -> Offer:
    """What should be shown of what a simulation told."""
    if not served.for_sale:
        return Offer(None, None, 0)
    return offer(store, served.price, served.list_price, served.stock, served.unit_multiplier)


def shown_price(rules: Any, price: int | None, list_price: int | None, multiplier: str) -> tuple[int, int] | None:
    """Sale and list price; `None` when VTEX asks nothing. The seller's answer prices one unit of measure (6.3).

    Base → markup and commission → conversion → rounding → minimum and maximum (7.7); list is never below sale (6.4).
    """
    asked, struck = Fraction(price or 0), Fraction(list_price or 0)
    if rules.get("unit") == "item":
        asked, struck = asked * Fraction(multiplier), struck * Fraction(multiplier)
    asked, struck = Fraction(_nearest(asked)), Fraction(_nearest(max(asked, struck)))
    if asked <= 0:
        return None
    sale = _dressed(rules, struck if rules.get("promotions") is False else asked)
    crossed = _dressed(rules, struck)
    if rules.get("minimum") is not None:
        sale = max(sale, int(rules["minimum"]))
    if rules.get("maximum") is not None:
        sale = min(sale, int(rules["maximum"]))
    return sale, max(sale, crossed)


def _dressed(rules: Any, cents: Fraction) -> int:
    markup, commission = _number(rules, "markup", 0), _number(rules, "commission", 0)
    if rules.get("commission_method") == "gross_up":
        cents = cents * (100 + markup) / (100 - commission)
    else:  # percentages add up: 15 % and 20 % on 100.00 make 135.00 (18)
        cents = cents * (100 + markup + commission) / 100
    cents *= _number(rules, "conversion", 1)
    ending = {"nearest": 0, ".90": 90, ".99": 99}.get(rules.get("rounding", "none"))
    if ending is None:
        return max(1, _nearest(cents))
    wholes = (cents - ending) / 100
    direction = rules.get("direction", "nearest")
    whole = math.ceil(wholes) if direction == "up" else math.floor(wholes) if direction == "down" else _nearest(wholes)
    return max(whole, 0 if ending else 1) * 100 + ending


def shown_stock(rules: Any, stock: int | None, most: int) -> int:
    """Percentage, rounded down → minus safety → capped → 0 when at or below the minimum (7.6)."""
    left = math.floor(max(0, stock or 0) * _number(rules, "percentage", 100) / 100) - int(rules.get("safety") or 0)
    cap = rules.get("cap")
    left = max(0, min(left, most if cap is None else min(int(cap), most)))
    least = int(rules.get("minimum") or 0)
    return 0 if least and left <= least else left


def _number(rules: Any, name: str, otherwise: int) -> Fraction:
    value = rules.get(name)
    return Fraction(otherwise) if value is None else Fraction(str(value))


def _nearest(amount: Fraction) -> int:
    """Halves go up, also below zero's neighbours."""
    return math.floor(amount + Fraction(1, 2))
