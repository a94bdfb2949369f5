"""The marketplace asks what VTEX asks, by the store's rules (vtex.md 7.7).

How price and stock are read and written together is in `hub.contexts.offer`; this is what is a price's own.
"""

from __future__ import annotations

from hub.contexts.step import price_json
from hub.model import JsonTree, Price, SimulatedItem
from hub.rules import Rules
from hub.rules.pricing import decimal_text, price_of

NAME = "price"


def wanted(offered: SimulatedItem | None, rules: Rules) -> Price | None:
    """What should be asked; `None`: VTEX has no price, so none is sent and the stock goes to zero (PRC-06)."""
    return price_of(offered, rules.pricing)


def snapshot(price: Price | None) -> JsonTree:
    """What is remembered of it."""
    return price_json(price)


def words(price: Price) -> str:
    """For log messages."""
    return f"price {decimal_text(price.sale)}, list price {decimal_text(price.list)}"
