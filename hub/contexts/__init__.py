"""The kinds of work the hub does, one file each: read one side, decide, make the other side agree.

`CONTEXTS` is the product in a few lines. A new context is one file here, one line below and its block in `queues.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hub.contexts import catalog, load, lot, offer, order, reconcile
from hub.contexts.step import Item, Step
from hub.outcome import Ending
from hub.ports import Link, Manifest


@dataclass(frozen=True, slots=True)
class Context:
    """One kind of work.

    `siblings`: contexts whose pending row of the same key a claim takes along, because one reading serves both.
    `lane`: the name under which a key is leased; contexts that must not run at the same time share it.
    `read` asks both sides, `decide` is pure, `write` carries one step out; facts stay between `read` and `decide`.
    """

    name: str
    siblings: tuple[str, ...]
    lane: Callable[[Manifest], str]
    read: Callable[[Link, Item], Any]
    decide: Callable[[Any], Sequence[Ending | Step]]
    write: Callable[[Link, Step], Sequence[Ending]]


def _catalog_lane(manifest: Manifest) -> str:
    return "offer" if manifest.replaces else "catalog"


def _offer_lane(_manifest: Manifest) -> str:
    return "offer"


def _order_lane(_manifest: Manifest) -> str:
    return "order"


def _load_lane(_manifest: Manifest) -> str:
    return "load"


def _lot_lane(_manifest: Manifest) -> str:
    return "lot"


def _reconcile_lane(_manifest: Manifest) -> str:
    return "reconcile"


ABOUT_SKUS = frozenset({"catalog", "price", "stock"})
"""Contexts whose keys are SKU ids."""

CONTEXTS: Mapping[str, Context] = {
    context.name: context
    for context in (
        Context("catalog", (), _catalog_lane, catalog.read, catalog.decide, catalog.write),
        Context("price", ("stock",), _offer_lane, offer.read, offer.decide, offer.write),
        Context("stock", ("price",), _offer_lane, offer.read, offer.decide, offer.write),
        Context("order", (), _order_lane, order.read, order.decide, order.write),
        Context("load", (), _load_lane, load.read, load.decide, load.write),
        Context("lot", (), _lot_lane, lot.read, lot.decide, lot.write),
        Context("reconcile", (), _reconcile_lane, reconcile.read, reconcile.decide, reconcile.write),
    )
}
