"""A marketplace order in VTEX's terms: the body of New Order Integration (vtex.md 9.3), and all that speaks against it.

Pure. Problems name fields and SKUs, never what stands in a buyer's or an address's field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hub.errors import Problem
from hub.model import Address, Buyer, JsonTree, MarketplaceOrder, Product, SimulatedItem, Simulation

DELIVERY: Final = "delivery"
LOCK_TTL: Final = "5d"
"""How long VTEX reserves the stock of an order that is not paid yet (9.3)."""

SHIPPING_ESTIMATE: Final = "7bd"
"""What the body says where the marketplace promises no date: VTEX demands the key and counts by its own SLA."""

_COUNTRY: Final = re.compile(r"[A-Z]{3}")
_ADDRESS_KINDS: Final = frozenset({"residential", "commercial"})
_ADDRESS_OPTIONS: Final = ("city", "state", "street", "number", "neighborhood", "complement")


@dataclass(frozen=True, slots=True)
class Cart:
    """What VTEX says of an order's SKUs (9.2): one simulation with its address, and each SKU (`None`: unknown).

    A SKU that could not be read is left out of `products`; the simulation, which offers nothing inactive, decides then.
    `refused`: VTEX would not simulate it at all, for these reasons.
    """

    simulation: Simulation
    products: Mapping[str, Product | None]
    refused: tuple[Problem, ...] = ()


def pieces_of(order: MarketplaceOrder) -> Mapping[str, int]:
    """The lines of the one simulation that an order needs: each SKU once, with all of its pieces (ORD-04)."""
    pieces: Counter[str] = Counter()
    for item in order.items:
        pieces[item.sku] += item.quantity
    return pieces


def total_of(order: MarketplaceOrder) -> int:
    """What the parts of an order add up to, in cents: items, shipping, interest (9.3, ORD-40)."""
    return sum(item.price * item.quantity + item.shipping for item in order.items) + order.interest


def total_problems(order: MarketplaceOrder) -> tuple[Problem, ...]:
    """Does the total differ from its parts (ORD-40)? Code O.I."""
    parts = total_of(order)
    if parts == order.total:
        return ()
    fix = f"items, shipping and interest make {parts} cents: correct the order on the marketplace, or its adapter"
    return (Problem("O.I", "total", str(order.total), fix),)


def order_problems(order: MarketplaceOrder) -> tuple[Problem, ...]:
    """Everything that VTEX would refuse in an order (9.3), all at once, as O.I. The total is judged apart."""
    return tuple(_order_problems(order))


def _order_problems(order: MarketplaceOrder) -> Iterator[Problem]:
    yield from _item_problems(order)
    if order.delivery != DELIVERY:
        fix = "only delivery to an address is supported: enter the order in VTEX by hand"
        yield _problem("delivery", order.delivery, fix)
    absent = "is missing: complete it on the marketplace"
    for name, text in (
        ("buyer e-mail", order.buyer.email),
        ("buyer first name", order.buyer.first_name),
        ("postal code", order.address.postal_code),
        ("country", order.address.country),
    ):
        if not text.strip():
            yield _problem(name, "", absent)
    if not _receiver(order.address, order.buyer):
        yield _problem("receiver", "", absent)
    if order.address.country.strip() and not _COUNTRY.fullmatch(order.address.country):
        yield _problem("country", order.address.country[:40], "give its three letters of ISO 3166: BRA")


def _item_problems(order: MarketplaceOrder) -> Iterator[Problem]:
    if not order.items:
        yield _problem("items", "", "the marketplace lists none")
    amounts = [("total", order.total), ("interest", order.interest)]
    for item in order.items:
        if not item.sku.strip():
            yield _problem("items.id", "", "pair the marketplace's item with a SKU of VTEX, then resend the order")
        if item.quantity <= 0:
            yield _problem(f"quantity of SKU {item.sku}", str(item.quantity), "must be 1 or more")
        amounts += [(f"price of SKU {item.sku}", item.price), (f"shipping of SKU {item.sku}", item.shipping)]
    for name, cents in amounts:
        if cents < 0:
            yield _problem(name, str(cents), "must not be negative")


def findings(order: MarketplaceOrder, cart: Cart, channel: int) -> tuple[Problem, ...]:
    """Why VTEX would not deliver this order now (9.2, ORD-05, ORD-06): every SKU, every reason, as O.D and O.F."""
    lines = pieces_of(order).items()
    return (*cart.refused, *(problem for sku, pieces in lines for problem in _finding(sku, pieces, cart, channel)))


def _finding(sku: str, pieces: int, cart: Cart, channel: int) -> Iterator[Problem]:
    if sku in cart.products and cart.products[sku] is None:
        yield Problem("O.D", "SKU", sku, "VTEX does not know it: pair the listing with a SKU of VTEX")
        return
    product = cart.products.get(sku)
    if product is not None and not (product.active and product.product_active):
        fix = "is not active: check the flag 'activate SKU', its product, an uploaded image, a carrier and a price"
        yield Problem("O.F", "SKU", sku, fix)
    if product is not None and channel not in product.channels:
        yield Problem("O.D", "SKU", sku, f"is not in trade policy {channel}: add its product to it in VTEX")
    if cart.refused:
        return
    offered = cart.simulation.items.get(sku)
    if offered is None:
        fix = f"is not offered to that address: check stock, a carrier and a price in trade policy {channel}"
        yield Problem("O.D", "SKU", sku, fix)
        return
    if not offered.slas:
        yield Problem("O.D", "SKU", sku, "no carrier brings it to that address: check docks and carriers in VTEX")
    if offered.stock is not None and offered.stock < pieces:
        yield Problem("O.D", "SKU", sku, f"VTEX has {offered.stock} of the {pieces} ordered: refill the stock")


def short_of(problems: tuple[Problem, ...]) -> tuple[str, ...]:
    """The SKUs that VTEX does not deliver now: their stock has to be shown anew, zero where it is gone (ORD-05)."""
    return tuple(dict.fromkeys(one.value for one in problems if one.code in {"O.D", "O.F"} and one.field == "SKU"))


def order_body(
    order: MarketplaceOrder, offered: Mapping[str, SimulatedItem], *, name: str = "", endpoint: str = ""
) -> dict[str, JsonTree]:
    """The body of New Order Integration, kind 5: delivered by the seller, to one address (9.3, ORD-07, ORD-37).

    `offered` is what the simulation said; where it has one SLA for a SKU that one is chosen, else VTEX chooses
    (ORD-28). `name` and `endpoint` of the connector are left out when empty: VTEX's door adds its own.
    """
    body: dict[str, JsonTree] = {
        "marketplaceOrderId": order.order_id,
        "marketplaceOrderStatus": "approved" if order.status == "paid" else "new",
        "marketplacePaymentValue": order.total,
        "marketplaceInterestValue": order.interest,
        "allowFranchises": False,
        "items": [{"id": item.sku, "price": item.price, "quantity": item.quantity} for item in order.items],
        "clientProfileData": _client(order.buyer),
        "shippingData": {
            "logisticsInfo": [
                {
                    "price": item.shipping,
                    "selectedDeliveryChannel": DELIVERY,
                    "selectedSla": _only_sla(offered.get(item.sku)),
                    "lockTTL": LOCK_TTL,
                    "shippingEstimate": SHIPPING_ESTIMATE,
                    "deliveryIds": [],
                }
                for item in order.items
            ],
            "selectedAddresses": [_address(order.address, order.buyer)],
            "isFob": False,
            "isMarketplaceFulfillment": False,
        },
        "invoiceData": {"userPaymentInfo": {"paymentMethods": list(order.payment_methods)}},
    }
    if endpoint:
        body |= {"connectorName": name, "connectorEndpoint": endpoint}
    return body


def shown_order(order: MarketplaceOrder) -> JsonTree:
    """An order as a log record may show it: ids, quantities and money, nothing of a person."""
    return {
        "order": order.order_id,
        "status": order.status,
        "items": [
            {"sku": item.sku, "quantity": item.quantity, "price": item.price, "shipping": item.shipping}
            for item in order.items
        ],
        "interest": order.interest,
        "total": order.total,
    }


def shown_body(body: Mapping[str, JsonTree]) -> JsonTree:
    """A body as a log record may show it."""
    kept = ("marketplaceOrderId", "marketplaceOrderStatus", "marketplacePaymentValue", "marketplaceInterestValue")
    shipping = body["shippingData"]
    return {
        **{key: body[key] for key in (*kept, "items")},
        "shippingData": {key: shipping[key] for key in ("logisticsInfo", "isFob", "isMarketplaceFulfillment")},
    }


def _problem(field: str, value: str, fix: str) -> Problem:
    return Problem("O.I", field, value, fix)


def _only_sla(offered: SimulatedItem | None) -> str:
    return offered.slas[0] if offered is not None and len(offered.slas) == 1 else ""


def _receiver(address: Address, buyer: Buyer) -> str:
    return address.receiver.strip() or f"{buyer.first_name} {buyer.last_name}".strip()


def _client(buyer: Buyer) -> dict[str, JsonTree]:
    """A person: the five corporate fields are there and null (2.6, ORD-35)."""
    return {
        "email": buyer.email,
        "firstName": buyer.first_name,
        "lastName": buyer.last_name,
        "phone": buyer.phone,
        "document": buyer.document,
        "corporateDocument": None,
        "corporatePhone": None,
        "corporateName": None,
        "tradeName": None,
        "stateInscription": None,
    }


def _address(address: Address, buyer: Buyer) -> dict[str, JsonTree]:
    """The one address; keys that VTEX does not demand are left out where they have no value (2.6)."""
    found: dict[str, JsonTree] = {
        "addressType": address.kind if address.kind in _ADDRESS_KINDS else "residential",
        "addressId": address.address_id or "1",
        "receiverName": _receiver(address, buyer),
        "postalCode": address.postal_code,
        "country": address.country,
    }
    return found | {name: value for name in _ADDRESS_OPTIONS if (value := str(getattr(address, name)))}
