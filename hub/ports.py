"""The doors: what a context may ask of the outside. Nothing behind a door leaks through it.

Every operation may raise the errors of `hub.errors`: `Refusal`, `NotFound`, `Unavailable`, `UnknownOutcome` (writes
only), `Throttled`, `CircuitOpen`, `AuthLost`, `LeaseLost`. Nothing else comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from hub.errors import Problem
from hub.model import (
    Action,
    Ask,
    Binding,
    IntegrationAnswer,
    JsonTree,
    Listing,
    ListingPage,
    LotResult,
    MarketplaceOrder,
    OrderPage,
    Product,
    Record,
    Shown,
    Simulation,
    VtexOrder,
    Written,
)
from hub.parsing import within
from hub.rules import ListingRules, Rules


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget of calls: `rate` per second with `burst`, shared by everybody who has the same `account`."""

    rate: Annotated[float, within("0.000001", "100000", "calls per second")]
    burst: Annotated[int, within("1", "100000", "calls")] = 1


@dataclass(frozen=True, slots=True)
class Webhook:
    """How a marketplace tells us of events, as data, so that the intake needs no adapter.

    `scheme`: `none` (unsigned: the URL token is the only secret; the body is a hint anyway) or
    `hmac_timestamp_body` (header `t=<unix seconds>,v1=<hex of HMAC-SHA256 over "t.body">`, several `v1` allowed while
    a secret rotates; at most `replay_window` seconds old). `pointer` is the path of keys to the order id in the body;
    where a text stands there that begins with `prefix`, as `/orders/`, the id is what follows, percent-decoded, and an
    event without it is not about an order.
    """

    scheme: Literal["none", "hmac_timestamp_body"] = "none"
    header: str = "X-Signature"
    replay_window: float = 300.0
    pointer: tuple[str, ...] = ("resource", "id")
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Lots:
    """A marketplace that takes records in lots and answers later (00-judgement.md 2).

    Closed by count, bytes (of the encoded lot) or age (seconds since its first record); `min_interval` seconds lie
    between two submits of one kind; results are polled every `poll` seconds.
    """

    max_records: int
    max_bytes: int
    max_age: float
    min_interval: float
    poll: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a marketplace can do; what it lacks is absent. The core never asks which marketplace it is."""

    name: str
    title: str
    actions: frozenset[Action]
    offer: Literal["separate", "combined"] = "separate"  # price and stock in one record or one each
    replaces: bool = False  # every write replaces the whole offer: records are always complete, one lane for all
    create: Literal["upsert", "create"] = "upsert"  # `create`: a repeat makes a second listing; find before, read back
    lots: Lots | None = None  # records go in lots
    webhook: Webhook | None = None
    polls_orders: bool = False
    walks: bool = False  # lists the seller's listings page by page; without it each is asked for by its SKU
    # What `show` and `listings` tell of a listing: there `None` means that it has none. `listing` only where it is
    # shown as it was sent.
    shows: frozenset[Literal["listing", "price", "stock"]] = frozenset({"listing", "price", "stock"})
    visibility_delay: float = 0.0  # seconds until a write can be read back: absence counts only after it
    max_stock: int = 999_999
    limit: Limit | None = None  # default budget of a seller's account
    verification: Literal["spec-verified", "sample-verified", "notes-only"] = "notes-only"
    secret_fields: tuple[str, ...] = ("token",)  # what `hub store add` asks for, kept encrypted


@dataclass(frozen=True, slots=True)
class Rendered:
    """A product in the marketplace's terms: every problem at once, and the defaults that were used (A3)."""

    listing: Listing | None
    problems: tuple[Problem, ...] = ()
    defaults_used: Mapping[str, str] = field(default_factory=dict)


class Marketplace(Protocol):
    """One store's account on one marketplace."""

    @property
    def manifest(self) -> Manifest:
        """What it can do."""

    def render(self, product: Product, category: str, rules: ListingRules) -> Rendered:
        """Translate a product into the marketplace's terms; `category` is the marketplace's. Pure."""

    def write(self, record: Record) -> Written:
        """Send one record and wait for its answer. `Refusal` carries every problem."""

    def show(self, sku: str, remote_id: str | None) -> Shown | None:
        """What it shows of our SKU now, found by our seller code; `None` when it has none (read-back)."""

    def listings(self, cursor: str | None) -> ListingPage:
        """A page of everything that it shows of this seller, begun with `None`; only where the manifest `walks`."""

    def encode(self, record: Record) -> bytes:
        """One record as it stands in a lot (one line, without its end). Pure."""

    def submit_lot(self, kind: str, reference: str, lines: Sequence[bytes]) -> str:
        """Send a lot; the answer is its ticket. A reference already taken gives the existing ticket."""

    def lot_result(self, ticket: str) -> LotResult | None:
        """What became of a lot; `None` while it is not done."""

    def find_lot(self, reference: str) -> str | None:
        """The ticket of a lot whose submit answer was lost."""

    def changed_orders(self, cursor: str | None) -> OrderPage:
        """Ids of orders new or changed since the cursor, with overlap."""

    def order(self, order_id: str) -> MarketplaceOrder:
        """One order, normalised."""

    def categories(self) -> Mapping[str, str]:
        """Id → full name of every category that can hold listings."""

    def check(self) -> Sequence[Problem]:
        """Cheap probe of credentials and settings; every problem found."""


@dataclass(frozen=True, slots=True)
class CartItem:
    """One line of a simulation."""

    sku: str
    quantity: int = 1


class Vtex(Protocol):
    """One store's VTEX account, in its sales channel and affiliate."""

    def product(self, sku: str) -> Product:
        """SKU and context (5.1). `NotFound` when VTEX does not know it."""

    def simulate(
        self, items: Sequence[CartItem], *, postal_code: str | None = None, country: str | None = None
    ) -> Simulation:
        """What VTEX would sell now (6): without an address for price and stock, with one for orders."""

    def sku_page(self, page: int, size: int) -> Sequence[str]:
        """One page (from 1) of the SKU ids of the sales channel; may be larger than asked where paging is ignored."""

    def create_order(self, body: Mapping[str, Any]) -> IntegrationAnswer:
        """New Order Integration (9.3). `UnknownOutcome` when the answer was lost."""

    def approve_order(self, marketplace_order_id: str) -> IntegrationAnswer:
        """Approve a paid order (9.6)."""

    def order(self, vtex_order_id: str) -> VtexOrder:
        """Get order (11.4). `NotFound` when VTEX has none."""

    def check(self) -> Sequence[Problem]:
        """Every registration check of 3.3 that concerns VTEX; all problems at once."""


@dataclass(frozen=True, slots=True)
class MappedCategory:
    """The mapping of a VTEX category: `remote` is `None` while unmapped; `version` is that of the store's table."""

    category: str
    remote: str | None
    version: int


class Mapper(Protocol):
    """The seller's own category mapping, asked when the table lacks a category (vtex.md 8.2)."""

    def remote(self, category: str) -> str | None:
        """The marketplace category, `None` while unmapped. Without an answer `MapperAway`, or `NotNow`."""


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """What the hub knows of one marketplace order. Personal data is only in `order`, which is kept encrypted."""

    order_id: str
    state: str
    order: MarketplaceOrder | None = None
    vtex_order_id: str | None = None
    operation_id: str | None = None
    reference: str | None = None
    sent_age: float | None = None  # seconds since creation or approval was sent last
    approved: bool = False
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A load: which page comes next, how it is filtered, whether it may go on."""

    run: int
    state: str
    page: int
    page_size: int
    only: tuple[str, ...] = ()  # filter: SKU ids, empty for all
    seen_digest: str = ""  # of the previous page: a repeat ends the list (LOD-02)


@dataclass(frozen=True, slots=True)
class LotView:
    """One lot. Ages are seconds: since its first record, and since the last submit of this store and kind.

    `full`: it takes no more records. `state`: building, submitting (our reference is committed), submitted (their
    ticket is), settled.
    """

    lot: int
    kind: str
    state: str
    reference: str
    ticket: str | None
    records: int
    full: bool
    age: float
    since_submit: float | None


Phase = Literal["lots", "listings", "missing", "absent", "catalogue", "orders"]
"""What a reconciliation does, in this order; see `hub.contexts.reconcile`."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A reconciliation under way: where it stands, and what it was told to do.

    `at` is where the phase goes on, `step` counts the pages taken, `age` the seconds since it began. `contexts`: what
    is asked for. `adopts`: listings of SKUs that neither the hub nor VTEX knows are ours, too.
    """

    run: int
    step: int
    phase: Phase
    at: str
    age: float
    contexts: frozenset[str]
    adopts: bool


@dataclass(frozen=True, slots=True)
class Belief:
    """What the database believes of one SKU. `known`: the catalogue was asked for it at some time.

    `firm` maps contexts to what the marketplace should show: snapshots without a doubt that are older than the look at
    the marketplace, so that a difference means something.
    """

    binding: Binding | None
    firm: Mapping[str, JsonTree]
    known: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """What one page of a reconciliation changes; taken in one transaction, once.

    `doubts` are (context, SKU, believed value) that turned out untrue. `pairs` are stored as the marketplace shows
    them; `seen` have a listing, `absent` were not found for the first time, `gone` for the second. `at` and `phase` are
    where it goes on, `phase` `None` at its end. `counts` are added to the totals that people see.
    """

    run: Reconciliation
    since: str
    delay: float
    phase: Phase | None
    at: str
    asks: tuple[Ask, ...] = ()
    doubts: tuple[tuple[str, str, JsonTree], ...] = ()
    pairs: tuple[Binding, ...] = ()
    seen: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Beliefs(Protocol):
    """What one store's database takes for true of the marketplace, to be compared with what is shown."""

    def running(self) -> Reconciliation | None:
        """The store's reconciliation under way."""

    def clock(self) -> str:
        """PostgreSQL's time now (ISO, UTC): what is confirmed later than a look was taken is not judged by it."""

    def backlog(self) -> int:
        """Keys of this store that are pending, counted up to a few thousand."""

    def lots_pause(self, run: int, delay: float) -> float:
        """Seconds until the lots that were open when the run began are answered and visible (0: they are)."""

    def of(self, skus: Sequence[str], since: str, delay: float) -> Mapping[str, Belief]:
        """What is believed of these SKUs; snapshots younger than `since` less `delay` seconds are not firm."""

    def unseen(self, run: int, after: str, limit: int) -> Sequence[Binding]:
        """Pairs that this run has not seen yet, by SKU, behind `after`."""

    def absent(self, after: str, limit: int) -> Sequence[tuple[Binding, float]]:
        """Pairs that were not found at the marketplace, with the seconds since then, by SKU, behind `after`."""

    def unbound(self, skus: Sequence[str]) -> Sequence[str]:
        """Those of these SKUs that have no pair."""

    def open_orders(self, after: str, limit: int) -> Sequence[str]:
        """Orders that have not come to their end, by id, behind `after`."""

    def take(self, taken: Taken) -> None:
        """Carry a page out, unless it was taken before."""


class States(Protocol):
    """What is known: reads for rules, and the few facts a context may leave behind outside of `settle`."""

    def binding(self, sku: str) -> Binding | None:
        """The listing of a SKU, `None` while it has none."""

    def mapped(self, category: str) -> MappedCategory:
        """The marketplace category for a VTEX category."""

    def keep_mapping(self, category: str, remote: str) -> MappedCategory:
        """Keep what the seller's mapper said of a category that the table lacks."""

    def row_status(self, context: str, key: str) -> tuple[str, str] | None:
        """(`work`, `status`) of another row of this store, `None` when there is none."""

    def confirmed(self, context: str, key: str) -> Any:
        """What the marketplace is known to show for (context, key)."""

    def order(self, order_id: str) -> OrderRecord | None:
        """The hub's record of a marketplace order."""

    def save_order(self, record: OrderRecord) -> None:
        """Insert or update the record of an order; it never leaves VTEX again (ORD-10).

        `None` leaves a known value as it is. `sent_age` of 0 marks creation or approval as sent now.
        """

    def results(self, order_id: str) -> Sequence[IntegrationAnswer]:
        """Every integration result that VTEX has posted for an order, oldest first."""

    def cursor(self, name: str) -> str | None:
        """A stored cursor of this store (order polling)."""

    def save_cursor(self, name: str, value: str) -> None:
        """Move a cursor."""

    def run(self, run: int) -> RunRecord | None:
        """A load."""

    def load_page(self, run: RunRecord, skus: Sequence[str], *, last: bool) -> None:
        """In one transaction: ask `catalog` for each SKU at load urgency, count them to the run, move its cursor."""

    def load_backlog(self, run: int) -> int:
        """How many SKUs of the run have no outcome yet."""

    @property
    def beliefs(self) -> Beliefs:
        """What is taken for true of the marketplace, for the reconciliation."""

    def lot(self, lot: int) -> LotView | None:
        """One lot."""

    def lot_lines(self, lot: int) -> Sequence[bytes]:
        """The encoded records of a lot, in order. The lot takes no more records from now on (state submitting)."""

    def lot_submitted(self, lot: int, ticket: str) -> None:
        """The marketplace took the lot."""

    def lot_settled(self, lot: int, result: LotResult) -> None:
        """Keep what became of each record, and make the rows that waited for it pending."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a context gets of one store: who it is, what it chose, and its three doors.

    `store` is the number used in every table, `slug` its name for people.
    """

    store: int
    slug: str
    account: str
    affiliate: str
    sales_channel: int
    rules: Rules
    vtex: Vtex
    marketplace: Marketplace
    states: States
    mapper: Mapper | None = None
