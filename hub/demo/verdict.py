"""Is the end right? Judged from the simulators' own books, key by key, never from what the hub believes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hub.simulators.control import Truth, VtexControl
from hub.simulators.marketplace_control import MarketplaceControl, ShownSku


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with one store, empty when everything agrees. `skus` and `orders`: how many were compared."""

    slug: str
    skus: int
    orders: int
    offers_wrong: tuple[str, ...]
    orders_wrong: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Both sides agree."""
        return not self.offers_wrong and not self.orders_wrong


def offer_differs(truth: Truth, shown: ShownSku | None) -> str | None:
    """Why a SKU is not shown as VTEX sells it; `None` when it is.

    A SKU that VTEX does not sell must not be buyable: absent, inactive, or without stock.
    """
    if not (truth.active and truth.product_active and truth.in_channel):
        if shown is None or shown.state in ("absent", "inactive") or not shown.stock:
            return None
        return f"{truth.sku} is not sold by VTEX but buyable with stock {shown.stock}"
    if shown is None or shown.state != "active":
        return f"{truth.sku} is sold by VTEX but {'absent' if shown is None else shown.state}"
    if len(shown.ids) > 1:
        return f"{truth.sku} was created {len(shown.ids)} times"
    wanted_stock = truth.stock if truth.sellable else 0
    if shown.stock != wanted_stock:
        return f"{truth.sku} shows stock {shown.stock} instead of {wanted_stock}"
    if truth.sellable and shown.price_cents != truth.price:
        return f"{truth.sku} shows price {shown.price_cents} instead of {truth.price} cents"
    if truth.sellable and shown.title != truth.name:
        return f"{truth.sku} shows title {shown.title!r} instead of {truth.name!r}"
    return None


def judge(
    vtex: VtexControl, marketplace: MarketplaceControl, slug: str, account: str, ignored: Iterable[str] = ()
) -> Verdict:
    """Compare one store on both sides. `ignored`: SKUs that the marketplace rightly refuses."""
    truths, shown = vtex.truth(account, 1), marketplace.shown(slug)
    left_out = set(ignored)
    offers = [
        wrong
        for sku, truth in truths.items()
        if sku not in left_out and (wrong := offer_differs(truth, shown.get(sku))) is not None
    ]
    seen, placed = vtex.orders(account), marketplace.orders(slug)
    orders = []
    for order in placed.values():
        found = seen.get(order.id)
        if found is None:
            orders.append(f"{order.id} is not in VTEX")
        elif found.creations != 1:
            orders.append(f"{order.id} was created {found.creations} times in VTEX")
        elif found.value != order.total_cents:
            orders.append(f"{order.id} is {found.value} instead of {order.total_cents} cents in VTEX")
    return Verdict(slug, len(truths), len(placed), tuple(offers), tuple(orders))
