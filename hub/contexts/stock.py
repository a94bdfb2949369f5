"""The marketplace sells no more than VTEX can deliver, by the store's rules (vtex.md 7.6).

How price and stock are read and written together is in `hub.contexts.offer`; this is what is a stock's own.
"""

from __future__ import annotations

from hub.contexts.step import stock_json
from hub.model import JsonTree, SimulatedItem
from hub.rules import Rules
from hub.rules.inventory import Quantity, quantity_of

NAME = "stock"


def wanted(offered: SimulatedItem | None, rules: Rules, max_stock: int) -> Quantity:
    """How many should be shown: zero for what VTEX does not offer, so that no order comes for it (6.5)."""
    return quantity_of(offered, rules.inventory, max_stock)


def snapshot(quantity: Quantity) -> JsonTree:
    """What is remembered of it."""
    return stock_json(quantity.pieces)


def words(quantity: Quantity) -> str:
    """For log messages."""
    return f"stock {quantity.pieces}"
