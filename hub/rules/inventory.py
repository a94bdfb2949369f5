"""From what VTEX can deliver to what the marketplace may sell (vtex.md 6.3, 6.5, 7.6): never more, never negative."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from hub.errors import Problem
from hub.model import SimulatedItem
from hub.rules import InventoryRules


@dataclass(frozen=True, slots=True)
class Quantity:
    """How many to show, and the warning that goes with it when the rules made it zero (Z)."""

    pieces: int
    warnings: tuple[Problem, ...] = ()


def balance(item: SimulatedItem | None) -> int:
    """How many VTEX can deliver: zero when the SKU is absent, nothing was granted, or VTEX told no figure (6.5)."""
    if item is None or item.quantity <= 0 or item.stock is None:
        return 0
    return max(0, item.stock)


def quantity_of(item: SimulatedItem | None, rules: InventoryRules, max_stock: int) -> Quantity:
    """Apply the store's rules to what was simulated; `max_stock` is what the marketplace can hold (STK-06)."""
    held = balance(item)
    allotted = int((Decimal(held) * rules.percentage / Decimal(100)).quantize(Decimal(1), rounding=ROUND_FLOOR))
    cap = max_stock if rules.cap is None else min(rules.cap, max_stock)
    left = min(max(0, allotted - rules.safety), max(0, cap))
    if rules.minimum > 0 and left <= rules.minimum:
        told = {"balance": str(held), "left": str(left), "minimum": str(rules.minimum)}
        fix = f"raise the stock in VTEX or lower the store's minimum of {rules.minimum}; until then 0 is shown"
        return Quantity(0, (Problem("Z", "stock", str(held), fix, told),))
    return Quantity(left)
