"""Stand-ins for the three doors, kept in memory: a VTEX that sells what it is given, a marketplace that shows what it
was sent, and states that remember what a context left behind. They check no protocol; the simulators do that."""

# ruff: noqa: ARG002 – the signatures are the doors'; a stand-in needs only part of what it is given
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hub.contexts import CONTEXTS
from hub.contexts.step import Item, Step
from hub.errors import HubError, NotFound, Problem, Refusal
from hub.model import (
    Action,
    Binding,
    BindingState,
    IntegrationAnswer,
    Listing,
    LotResult,
    MarketplaceOrder,
    OrderPage,
    Product,
    Record,
    Row,
    Shown,
    SimulatedItem,
    Simulation,
    VtexOrder,
    Written,
)
from hub.outcome import Ending
from hub.ports import (
    CartItem,
    Link,
    LotView,
    Manifest,
    MappedCategory,
    OrderRecord,
    Rendered,
    RunRecord,
)
from hub.rules import ListingRules, Rules
from hub.rules.validation import Demands, listing_problems, with_default

CHANNEL = 2
STORE = 7

ALL_ACTIONS = frozenset(Action)


def a_product(sku: str = "13", **changes: Any) -> Product:
    """An active SKU of the store's channel."""
    return replace(
        Product(
            sku=sku,
            product="100",
            name=f"Mug {sku}",
            product_name="Mug",
            description="A mug",
            active=True,
            product_active=True,
            channels=(CHANNEL,),
            category="10",
            category_name="Mugs",
            category_path="Kitchen > Mugs",
            brand="Acme",
            ean="7891000100103",
            ref_id=f"REF-{sku}",
            images=("https://images.example/1.jpg",),
        ),
        **changes,
    )


def an_offer(sku: str = "13", **changes: Any) -> SimulatedItem:
    """A SKU that VTEX would sell: 99.90 instead of 129.90, 37 pieces."""
    return replace(
        SimulatedItem(
            sku=sku,
            price=9990,
            list_price=12990,
            selling_price=None,
            definition_price=None,
            stock=37,
            quantity=1,
        ),
        **changes,
    )


def a_manifest(**changes: Any) -> Manifest:
    """A marketplace that can do everything, one record at a time."""
    return replace(Manifest(name="fake", title="Fake Market", actions=ALL_ACTIONS), **changes)


@dataclass
class FakeVtex:
    """What VTEX has in its catalogue, and what it would sell."""

    products: dict[str, Product] = field(default_factory=dict)
    offers: dict[str, SimulatedItem] = field(default_factory=dict)
    pages: Sequence[Sequence[str]] = ()
    ignores_paging: bool = False
    calls: list[str] = field(default_factory=list)

    def product(self, sku: str) -> Product:
        self.calls.append(f"product {sku}")
        if sku not in self.products:
            raise NotFound(f"SKU {sku}")
        return self.products[sku]

    def simulate(
        self, items: Sequence[CartItem], *, postal_code: str | None = None, country: str | None = None
    ) -> Simulation:
        self.calls.append("simulate " + ",".join(f"{item.sku}x{item.quantity}" for item in items) + f" {postal_code}")
        return Simulation({item.sku: self.offers[item.sku] for item in items if item.sku in self.offers})

    def sku_page(self, page: int, size: int) -> Sequence[str]:
        self.calls.append(f"page {page}")
        if self.ignores_paging:
            return [sku for skus in self.pages for sku in skus]
        return self.pages[page - 1] if page <= len(self.pages) else ()

    def create_order(self, body: Mapping[str, Any]) -> IntegrationAnswer:
        raise NotImplementedError("no test of contexts without orders asks for it")

    def approve_order(self, marketplace_order_id: str) -> IntegrationAnswer:
        raise NotImplementedError("no test of contexts without orders asks for it")

    def order(self, vtex_order_id: str) -> VtexOrder:
        raise NotFound(vtex_order_id)

    def check(self) -> Sequence[Problem]:
        return ()


@dataclass
class FakeMarketplace:
    """Shows what it was sent, by seller code. `answers` are raised instead of the next writes, oldest first."""

    manifest: Manifest = field(default_factory=a_manifest)
    demands: Demands = field(default_factory=Demands)
    listings: dict[str, Shown] = field(default_factory=dict)
    written: list[Record] = field(default_factory=list)
    answers: list[HubError] = field(default_factory=list)
    shows: int = 0

    def render(self, product: Product, category: str, rules: ListingRules) -> Rendered:
        used: dict[str, str] = {}
        listing = Listing(
            title=product.name,
            description=product.description,
            category=category,
            brand=with_default("brand", product.brand, rules, used),
            ean=product.ean,
            images=product.images,
            group=product.product,
        )
        problems = listing_problems(listing, self.demands)
        return Rendered(None if problems else listing, problems, used)

    def write(self, record: Record) -> Written:
        self.written.append(record)
        if self.answers:
            raise self.answers.pop(0)
        before = self.listings.get(record.sku)
        if record.action is Action.REGISTER and before is not None and self.manifest.create == "create":
            raise Refusal([Problem("E3", "seller code", record.sku, "is listed already")])
        if record.action is Action.DELETE:
            self.listings.pop(record.sku, None)
            return Written(record.remote_id or "")
        shown = before or Shown(record.sku, f"MK-{record.sku}", True, f"https://market.example/MK-{record.sku}")
        self.listings[record.sku] = replace(
            shown,
            active=record.action is not Action.DEACTIVATE and (shown.active or record.action is Action.ACTIVATE),
            listing=record.listing or shown.listing,
            price=record.price or shown.price,
            stock=shown.stock if record.stock is None else record.stock,
        )
        return Written(shown.remote_id, shown.link, "taken")

    def show(self, sku: str, remote_id: str | None) -> Shown | None:
        self.shows += 1
        return self.listings.get(sku)

    def encode(self, record: Record) -> bytes:
        return repr(record).encode()

    def submit_lot(self, kind: str, reference: str, lines: Sequence[bytes]) -> str:
        return reference

    def lot_result(self, ticket: str) -> LotResult | None:
        return None

    def find_lot(self, reference: str) -> str | None:
        return None

    def changed_orders(self, cursor: str | None) -> OrderPage:
        return OrderPage((), cursor or "")

    def order(self, order_id: str) -> MarketplaceOrder:
        raise NotFound(order_id)

    def categories(self) -> Mapping[str, str]:
        return {"MC-10": "Mugs"}

    def check(self) -> Sequence[Problem]:
        return ()


@dataclass
class MemoryStates:
    """What is known, in dictionaries."""

    bindings: dict[str, Binding] = field(default_factory=dict)
    mappings: dict[str, str] = field(default_factory=dict)
    mapping_version: int = 1
    rows: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    known: dict[tuple[str, str], Any] = field(default_factory=dict)
    orders: dict[str, OrderRecord] = field(default_factory=dict)
    posted: dict[str, list[IntegrationAnswer]] = field(default_factory=dict)
    cursors: dict[str, str] = field(default_factory=dict)
    runs: dict[int, RunRecord] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    backlog: int = 0

    def binding(self, sku: str) -> Binding | None:
        return self.bindings.get(sku)

    def mapped(self, category: str) -> MappedCategory:
        return MappedCategory(category, self.mappings.get(category), self.mapping_version)

    def keep_mapping(self, category: str, remote: str) -> MappedCategory:
        self.mappings[category] = remote
        self.mapping_version += 1
        return self.mapped(category)

    def row_status(self, context: str, key: str) -> tuple[str, str] | None:
        return self.rows.get((context, key))

    def confirmed(self, context: str, key: str) -> Any:
        return self.known.get((context, key))

    def order(self, order_id: str) -> OrderRecord | None:
        return self.orders.get(order_id)

    def save_order(self, record: OrderRecord) -> None:
        self.orders[record.order_id] = record

    def results(self, order_id: str) -> Sequence[IntegrationAnswer]:
        return self.posted.get(order_id, [])

    def cursor(self, name: str) -> str | None:
        return self.cursors.get(name)

    def save_cursor(self, name: str, value: str) -> None:
        self.cursors[name] = value

    def run(self, run: int) -> RunRecord | None:
        return self.runs.get(run)

    def load_page(self, run: RunRecord, skus: Sequence[str], *, last: bool) -> None:
        self.runs[run.run] = replace(run, state="done" if last else run.state)
        self.loaded += [sku for sku in skus if sku not in self.loaded]

    def load_backlog(self, run: int) -> int:
        return self.backlog

    def lot(self, lot: int) -> LotView | None:
        return None

    def lot_lines(self, lot: int) -> Sequence[bytes]:
        return ()

    def lot_submitted(self, lot: int, ticket: str) -> None:
        raise NotImplementedError("lots are tested with the real states")

    def lot_settled(self, lot: int, result: LotResult) -> None:
        raise NotImplementedError("lots are tested with the real states")


@dataclass
class World:
    """One store with its three doors, and the part of the engine that remembers what endings taught."""

    vtex: FakeVtex = field(default_factory=FakeVtex)
    marketplace: FakeMarketplace = field(default_factory=FakeMarketplace)
    states: MemoryStates = field(default_factory=MemoryStates)
    rules: Rules = field(default_factory=Rules)

    @property
    def link(self) -> Link:
        return Link(STORE, "acme-fake", "acme", "FKM", CHANNEL, self.rules, self.vtex, self.marketplace, self.states)

    def row(self, context: str, sku: str = "13", **changes: Any) -> Row:
        """A claimed row with what is confirmed."""
        return replace(Row(context, sku, asked=1, confirmed=self.states.known.get((context, sku))), **changes)

    def decide(self, *rows: Row, context: str | None = None) -> Sequence[Ending | Step]:
        """Read and decide."""
        work = CONTEXTS[context or rows[0].context]
        return work.decide(work.read(self.link, Item(rows[0].key, {row.context: row for row in rows})))

    def attempt(self, *rows: Row) -> list[Ending]:
        """Read, decide, write and remember."""
        work = CONTEXTS[rows[0].context]
        endings: list[Ending] = []
        for decided in self.decide(*rows):
            endings += work.write(self.link, decided) if isinstance(decided, Step) else [decided]
        for ending in endings:
            self.remember(ending)
        return endings

    def remember(self, ending: Ending) -> None:
        """What the ledger keeps of an ending."""
        for context, value in ending.confirmed.items():
            self.states.known[context, ending.key] = value
        if ending.binding is None:
            return
        if ending.binding.state is BindingState.DELETED:
            self.states.bindings.pop(ending.key, None)
            for context in ("catalog", "price", "stock"):
                self.states.known.pop((context, ending.key), None)
        else:
            self.states.bindings[ending.key] = ending.binding


def a_world(*, offered: bool = True, mapped: bool = True, **manifest: Any) -> World:
    """A store with SKU 13 in VTEX, its category mapped, and nothing on the marketplace yet."""
    world = World()
    world.vtex.products["13"] = a_product()
    if offered:
        world.vtex.offers["13"] = an_offer()
    if mapped:
        world.states.mappings["10"] = "MC-10"
    world.marketplace.manifest = a_manifest(**manifest)
    return world


def a_published_world(**manifest: Any) -> World:
    """The same after SKU 13 was registered, with its price and stock on the marketplace."""
    world = a_world(**manifest)
    world.attempt(world.row("catalog"))
    world.attempt(world.row("price"), world.row("stock"))
    world.marketplace.written.clear()
    world.vtex.calls.clear()
    return world
