"""What the contract suite needs of a marketplace under test: its server, an account on it, and ways to provoke it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from hub.marketplaces import Account, Adapter, Credentials, Renewer, adapter
from hub.model import Listing, Product, Specification
from hub.ports import Marketplace
from hub.simulators.marketplace import served
from hub.simulators.marketplace_control import Basket, MarketplaceControl
from hub.simulators.marketplace_world import World
from hub.simulators.serving import in_thread
from hub.transport import Transport
from tests.contract.outlet import OUTLET, OutletWorld, outlet_app

numbers = itertools.count(1)


@dataclass(frozen=True)
class Held:
    version: int
    values: Mapping[str, str]


@dataclass
class Vault:
    """Where the credentials of one store are kept, with the lock that the real registry has in PostgreSQL."""

    held: Credentials
    lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self, stale: int, renewer: Renewer) -> Credentials:
        with self.lock:
            if self.held.version <= stale:
                self.held = Held(self.held.version + 1, dict(renewer(self.held.values)))
            return self.held


@dataclass(frozen=True)
class Line:
    """A line of an order, cents; `discount` and `shipping` for the whole line."""

    sku: str
    quantity: int
    price: int


class Rig(Protocol):
    adapter: Adapter
    control: MarketplaceControl
    # operations by what the suite calls them, as the server's journal and faults name them
    operations: Mapping[str, str]
    product: Product  # one that the marketplace takes
    category: str
    url: str

    def connect(self) -> Marketplace:
        """As one more worker with its own memory of the credentials."""

    def listings(self, sku: str) -> int:
        """How many listings the marketplace really has for a SKU."""

    def hard_to_please(self) -> Listing:
        """A registration that the marketplace (not our gate) refuses for at least two reasons."""

    def lose_access(self) -> None:
        """No credential works any more."""

    def place(self, lines: Sequence[Line], shipping: int) -> tuple[str, int]:
        """A paid order: its id and total."""


PRODUCT = Product(
    sku="1001",
    product="77",
    name="Camiseta azul M",
    product_name="Camiseta",
    description="Algodão",
    active=True,
    product_active=True,
    channels=(1,),
    category="10",
    category_name="Camisetas",
    category_path="Moda > Camisetas",
    brand="Exemplo",
    ean="7891000315507",
    ref_id="REF-1",
    images=("https://images.example/1.jpg",),
    specifications=(Specification("Cor", ("azul",)), Specification("TAMANHO", ("M",))),
)


@dataclass
class SandboxRig:
    adapter: Adapter
    control: MarketplaceControl
    transport: Transport
    profile: str
    dials: Mapping[str, Any]
    product: Product = PRODUCT
    category: str = "MC-110"

    def __post_init__(self) -> None:
        self.name = f"{self.profile}-{next(numbers)}"
        self.seller = self.control.open_account(self.name, self.profile, **self.dials)
        self.url = self.seller.url
        self.vault = Vault(
            Held(
                1,
                {
                    "token": self.seller.token,
                    "refresh_token": self.seller.refresh_token if self.profile == "sync" else "",
                    "client_id": self.seller.client_id,
                    "client_secret": self.seller.client_secret,
                },
            )
        )
        offers = self.profile == "full-replace"
        lots = self.profile == "lot"
        self.operations = {
            "register": "offer_put" if offers else "feed_submit" if lots else "listing_create",
            "show": "offer_find" if offers else "listing_find",
            "order": "order_read",
        }

    def connect(self) -> Marketplace:
        peer = self.transport.peer(
            self.name, "marketplace", self.seller.url, account=f"sandbox:{self.name}", secrets=[self.seller.token]
        )
        return self.adapter.connect(
            Account(
                store=self.name,
                base_url=self.seller.url,
                credentials=self.vault.held,
                peer=peer,
                renew=self.vault.renew,
            )
        )

    def listings(self, sku: str) -> int:
        return len(self.control.sku(self.name, sku).ids)

    def hard_to_please(self) -> Listing:
        return Listing("x" * 61, "", "MC-110", "Exemplo", "123", (), {})

    def lose_access(self) -> None:
        self.control.revoke(self.name)

    def place(self, lines: Sequence[Line], shipping: int) -> tuple[str, int]:
        baskets = [Basket(line.sku, line.quantity, line.price) for line in lines]
        placed = self.control.place_order(self.name, baskets, shipping_cents=shipping)
        return placed.id, placed.total_cents


@dataclass
class OutletRig:
    control: MarketplaceControl
    transport: Transport
    world: OutletWorld
    url: str
    adapter: Adapter = OUTLET
    product: Product = PRODUCT
    category: str = "A1"

    def __post_init__(self) -> None:
        self.name = f"outlet-{next(numbers)}"
        self.key = self.world.key = f"outlet-key-{next(numbers):04d}"
        self.operations = {"register": "article", "show": "look", "order": "order"}
        self.world.articles.clear()
        self.world.orders.clear()

    def connect(self) -> Marketplace:
        peer = self.transport.peer(self.name, "marketplace", self.url, account=self.name, secrets=[self.key])
        held = Held(1, {"key": self.key})
        return self.adapter.connect(
            Account(store=self.name, base_url=self.url, credentials=held, peer=peer, renew=Vault(held).renew)
        )

    def listings(self, sku: str) -> int:
        return int(sku in self.world.articles)

    def hard_to_please(self) -> Listing:
        return Listing("x" * 41, "", "A1", "Exemplo", "", ())

    def lose_access(self) -> None:
        self.world.key = "another"

    def place(self, lines: Sequence[Line], shipping: int) -> tuple[str, int]:
        total = sum(line.price * line.quantity for line in lines) + shipping
        order = {"id": f"O-{next(numbers)}", "state": "payed", "sum": total}
        order["lines"] = [
            {"code": line.sku, "pieces": line.quantity, "price": line.price, "freight": 0 if at else shipping}
            for at, line in enumerate(lines)
        ]
        self.world.orders.append(order)
        return str(order["id"]), total


Opening = Callable[..., Rig]


@dataclass
class Openings(Mapping[str, Opening]):
    """Name → opens a fresh account on that marketplace."""

    by_name: Mapping[str, Opening]
    controls: Sequence[MarketplaceControl]

    def __getitem__(self, name: str) -> Opening:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def requests_seen(self) -> int:
        """How many requests all servers received."""
        return sum(control.requests_seen() for control in self.controls)


RIGS = ("sandbox-sync", "sandbox-lot", "sandbox-replace", "outlet")


@contextmanager
def rigs(transport: Transport) -> Iterator[Mapping[str, Opening]]:
    """Servers for every marketplace; name → opens a fresh account on it, with dials where it has some."""
    world = OutletWorld()
    with (
        served(World(seed=7)) as sandbox_url,
        in_thread(outlet_app(world)) as outlet_url,
        MarketplaceControl(sandbox_url) as sandbox,
        MarketplaceControl(outlet_url) as outlet,
    ):

        def open_sandbox(name: str, profile: str) -> Opening:
            def opened(**dials: Any) -> Rig:
                sandbox.clear_faults()
                return SandboxRig(adapter(name), sandbox, transport, profile, {"minimum_price": 0, **dials})

            return opened

        def open_outlet(**_: Any) -> Rig:
            outlet.clear_faults()
            return OutletRig(outlet, transport, world, outlet_url)

        by_name = {
            "sandbox-sync": open_sandbox("sandbox-sync", "sync"),
            "sandbox-lot": open_sandbox("sandbox-lot", "lot"),
            "sandbox-replace": open_sandbox("sandbox-replace", "full-replace"),
            "outlet": open_outlet,
        }
        yield Openings(by_name, [sandbox, outlet])
