"""The gate of vtex.md 7.1, as far as it needs no call: every check returns every problem it finds, none stops another.

A problem names the field in the seller's words, the value found and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stdnum import ean
from stdnum.exceptions import ValidationError

from hub.errors import Problem
from hub.model import Listing, Product, SimulatedItem
from hub.rules import ListingRules, PricingRules
from hub.rules.pricing import base_price

SHOWN_VALUE = 120


def standing(product: Product | None, sku: str, channel: int) -> tuple[Problem, ...]:
    """May this SKU be sold here at all (checks 2 to 5)? Empty: yes. A2 for gone or inactive, A1 for another channel."""
    if product is None:
        return (Problem("A2", "SKU", sku, "VTEX does not know it any more: create it again, or leave it unlisted"),)
    return tuple(_standing(product, channel))


def _standing(product: Product, channel: int) -> Iterator[Problem]:
    if not product.active:
        yield Problem(
            "A2", "SKU active", "no", "check the flag 'activate SKU', an uploaded image, a carrier and a price in VTEX"
        )
    if not product.product_active:
        yield Problem("A2", "product active", "no", "activate the product, its brand and its category in VTEX")
    if channel not in product.channels:
        found = ", ".join(str(number) for number in product.channels) or "none"
        yield Problem("A1", "trade policies", found, f"add the product to trade policy {channel} in VTEX")


def availability(item: SimulatedItem | None, sku: str, channel: int, rules: PricingRules) -> tuple[Problem, ...]:
    """Does VTEX sell this SKU now (check 9)? A1 when it is absent from the simulation or has no price."""
    if item is None:
        fix = f"check that the product is in trade policy {channel}, a carrier serves it and the policy has a price"
        return (Problem("A1", "SKU", sku, fix),)
    if base_price(item, rules) is None:
        return (Problem("A1", "price", str(item.price or "none"), f"set a price for trade policy {channel} in VTEX"),)
    return ()


@dataclass(frozen=True, slots=True)
class Demands:
    """What a marketplace asks of every listing, as data; `None` and 0 ask for nothing. Lengths in characters."""

    title_max: int | None = None
    description_max: int | None = None
    images_min: int = 0
    images_max: int | None = None
    ean: bool = False
    brand: bool = False
    attributes: tuple[str, ...] = ()


def listing_problems(listing: Listing, demands: Demands) -> tuple[Problem, ...]:
    """Everything in `listing` that breaks a rule of the marketplace (check 6), as E1, all at once (NEW-05)."""
    return tuple(_listing_problems(listing, demands))


def _listing_problems(listing: Listing, demands: Demands) -> Iterator[Problem]:
    if not listing.title.strip():
        yield Problem("E1", "title", "", "fill the SKU or product name in VTEX")
    yield from _too_long("title", listing.title, demands.title_max)
    yield from _too_long("description", listing.description, demands.description_max)
    count = len(listing.images)
    if count < demands.images_min:
        yield Problem("E1", "images", str(count), f"upload at least {demands.images_min} in VTEX")
    if demands.images_max is not None and count > demands.images_max:
        yield Problem("E1", "images", str(count), f"leave at most {demands.images_max} in VTEX")
    if listing.ean and not valid_ean(listing.ean):
        yield Problem("E1", "EAN", listing.ean[:SHOWN_VALUE], "correct it: 8, 12, 13 or 14 digits with a check digit")
    elif demands.ean and not listing.ean:
        yield Problem("E1", "EAN", "", "fill the EAN of the SKU in VTEX")
    if demands.brand and not listing.brand:
        yield Problem("E1", "brand", "", "choose a brand for the product in VTEX")
    for name in demands.attributes:
        if not listing.attributes.get(name):
            yield Problem("E1", name, "", f"fill the specification {name} in VTEX, or set a default for the store")


def _too_long(field: str, text: str, limit: int | None) -> Iterator[Problem]:
    if limit is not None and len(text) > limit:
        shown = text[:SHOWN_VALUE] + ("…" if len(text) > SHOWN_VALUE else "")
        yield Problem("E1", field, shown, f"shorten it from {len(text)} to at most {limit} characters")


def valid_ean(digits: str) -> bool:
    """Is it an EAN-8, UPC-12, EAN-13 or GTIN-14 with the right check digit?"""
    try:
        ean.validate(digits)
    except ValidationError:
        return False
    return True


def with_default(field: str, value: str, rules: ListingRules, used: dict[str, str]) -> str:
    """`value`, or the store's default for `field` when it is empty; what was taken is written into `used` (A3)."""
    if value.strip() or field not in rules.defaults:
        return value
    used[field] = rules.defaults[field]
    return rules.defaults[field]


def defaults_problems(used: Mapping[str, str]) -> tuple[Problem, ...]:
    """The defaults that were used, as the warning A3 with field and value each (NEW-06)."""
    return tuple(
        Problem("A3", field, value, "fill it in VTEX if the default is not what you want")
        for field, value in sorted(used.items())
    )
