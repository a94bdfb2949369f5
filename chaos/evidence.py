"""Everything that is known after a run, as plain values: what was said, served, written, and what is left.

The promise: whoever holds an `Evidence` can judge the run again, on another machine, years later; nothing in it leads
back to a living process, and `to_json`/`from_json` keep all of it. The checker reads nothing else.

Times are seconds since the epoch, UTC, by the clock of the machine that ran the simulators and the driver. Money is
whole cents. Peers' journals are in the order in which the peer worked, database rows in no order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

JsonTree = Any
"""Settings as the store's row holds them; only the checker's rules look inside."""

Profile = Literal["sync", "lot", "full-replace"]
Kind = Literal["notification", "event", "result"]


# ---------------------------------------------------------------- VTEX's side


@dataclass(frozen=True, slots=True)
class Sold:
    """One SKU as VTEX sells it at the end, through the store's sales channel. `price` is `None` when it has none."""

    sku: str
    active: bool  # SKU and product
    in_channel: bool
    price: int | None
    list_price: int | None
    stock: int
    title: str
    category: str
    ean: str | None
    images: int
    unit_multiplier: str = "1"


@dataclass(frozen=True, slots=True)
class Served:
    """What one read of VTEX told about one SKU, truth or stale, at the moment the answer was made.

    `operation` is `sku` (registration: `for_sale` alone counts) or `simulation` (offer). A simulation in which the SKU
    is missing has `for_sale` false. Cents and pieces are those of the answer. `stale`: it may be of before the last
    change.
    """

    at: float
    operation: Literal["sku", "simulation"]
    sku: str
    for_sale: bool
    price: int | None = None
    list_price: int | None = None
    stock: int | None = None
    unit_multiplier: str = "1"
    stale: bool = False


@dataclass(frozen=True, slots=True)
class OrderCall:
    """One call about an order in VTEX. `status` 0: the caller got no answer, whatever was done."""

    at: float  # when the request came in
    operation: Literal["create", "read", "approve"]
    order_id: str  # the marketplace's
    status: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class CreatedOrder:
    """What became of a marketplace order in VTEX. `creations` must be 1; `results`: code, status of the delivery."""

    order_id: str
    vtex_order_id: str
    status: str | None  # None: never created
    creations: int
    accepted: int  # answered SOI003
    results: tuple[tuple[str, int | None], ...] = ()


# ---------------------------------------------------------------- the marketplace's side


@dataclass(frozen=True, slots=True)
class Listed:
    """One SKU as the marketplace holds it at the end. `ids` has two entries when it was created twice."""

    sku: str
    state: Literal["active", "inactive", "pending", "rejected", "absent"]
    ids: tuple[str, ...]
    creates: int
    deletes: int
    price: int | None = None
    list_price: int | None = None
    stock: int | None = None
    title: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Wrote:
    """One value that the marketplace applied. `arrived`: when the request with it came in; `number` orders all changes.

    `by` is the operation, `feed <id>`, or what no seller does: `hand`, `sale`, `acceptance`.
    """

    number: int
    arrived: float
    applied: float
    sku: str
    listing: str
    field: str  # price, list_price, stock, state, title, …
    value: JsonTree
    by: str


@dataclass(frozen=True, slots=True)
class ListingCall:
    """One call about a SKU's listing. `status` 0: the caller got no answer, whatever was done."""

    at: float  # when the request came in
    operation: Literal["listing_create", "listing_find", "listing_read"]
    sku: str
    status: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Lie:
    """A write about a SKU that the marketplace answered as done and did not do."""

    at: float
    operation: str
    sku: str


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """One order of the marketplace. `vtex_order_id`: what the hub told it."""

    order_id: str
    status: str  # pending, paid, cancelled, shipped, delivered
    vtex_order_id: str | None


# ---------------------------------------------------------------- between them


@dataclass(frozen=True, slots=True)
class Post:
    """Something that was POSTed to the hub, and the answer that came: 0 is none, -1 lost on purpose (never sent).

    `attempts` counts how often the sender tried; `status` is the last answer. `key` is a SKU or a marketplace order.
    """

    at: float  # when the sender began
    kind: Kind
    key: str
    status: int
    by: Literal["driver", "vtex", "marketplace"]
    attempts: int = 1
    flags: tuple[str, ...] = ()  # of a notification: sku, price, stock, removed, inactive


@dataclass(frozen=True, slots=True)
class Notice:
    """How many notices of one kind, fate and key PostgreSQL keeps."""

    kind: str
    fate: str  # accepted, ignored, quarantined
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Counter:
    """The counters of one context (`-`: notices) and source, summed up over all processes."""

    context: str
    source: str
    received: int = 0
    quarantined: int = 0
    ignored: int = 0
    accepted: int = 0
    requested: int = 0
    coalesced: int = 0
    enqueued: int = 0
    finished: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `states` with what matters of `answers`."""

    context: str
    key: str
    work: str  # i at rest, p pending, h held, s scheduled
    status: str
    asked: int
    answered: int
    attempts: int = 0
    code: str | None = None
    pending_since: float | None = None
    due_at: float | None = None
    answered_at: float | None = None
    gathered_at: float | None = None  # when the lot was opened in which its last record went
    parked_on: str | None = None
    in_doubt: bool = False  # an intent is committed that nobody has settled
    why: str = ""


@dataclass(frozen=True, slots=True)
class Binding:
    """A stored pair."""

    sku: str
    remote_id: str
    state: str


@dataclass(frozen=True, slots=True)
class HubOrder:
    """One row of the hub's own `orders`."""

    order_id: str
    state: str
    vtex_order_id: str | None


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease, and since when its claim runs; `since` is `None` when there is no such claim."""

    lane: str
    key: str
    claim: int
    since: float | None


@dataclass(frozen=True, slots=True)
class Lot:
    """One lot that is not settled."""

    id: int
    kind: str
    state: str
    records: int


@dataclass(frozen=True, slots=True)
class Gate:
    """A shut gate, or a circuit that is not closed (`cause` circuit)."""

    context: str
    side: str
    cause: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Excuse:
    """A cause that the driver put there on purpose and left: `key` may rest unfinished, a gate may be shut.

    `what` is a row's status (parked, refused, dead, …), `gate`, or `listing` (what is shown is not judged). An empty
    `key` stands for every key of the store.
    """

    what: str
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Store:
    """One store with everything that happened to it.

    `pricing` and `inventory` are the settings as registered (`{}`: defaults). `mappings`: VTEX category → the
    marketplace's. `most_stock`: how many pieces the marketplace can hold.
    """

    slug: str
    number: int
    account: str
    affiliate: str
    channel: int
    profile: Profile
    status: str = "active"
    pricing: Mapping[str, JsonTree] = field(default_factory=dict)
    inventory: Mapping[str, JsonTree] = field(default_factory=dict)
    mappings: Mapping[str, str] = field(default_factory=dict)
    most_stock: int = 999_999
    sold: tuple[Sold, ...] = ()
    served: tuple[Served, ...] = ()
    order_calls: tuple[OrderCall, ...] = ()
    created: tuple[CreatedOrder, ...] = ()
    listed: tuple[Listed, ...] = ()
    wrote: tuple[Wrote, ...] = ()
    listing_calls: tuple[ListingCall, ...] = ()
    lies: tuple[Lie, ...] = ()
    placed: tuple[PlacedOrder, ...] = ()
    posts: tuple[Post, ...] = ()
    notices: tuple[Notice, ...] = ()
    counters: tuple[Counter, ...] = ()
    rows: tuple[Row, ...] = ()
    bindings: tuple[Binding, ...] = ()
    orders: tuple[HubOrder, ...] = ()
    lots: tuple[Lot, ...] = ()
    gates: tuple[Gate, ...] = ()
    leases: tuple[Lease, ...] = ()
    excuses: tuple[Excuse, ...] = ()


# ---------------------------------------------------------------- the machinery


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that wake-ups go to, as the broker itself sees it; dead-letter queues are not here."""

    name: str
    waiting: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the hub over the run. `restarted_by`: who brought it back each time; `alive` at the end."""

    name: str
    starts: int
    alive: bool
    restarted_by: tuple[str, ...] = ()  # supervisor, driver (a planned start of what it had stopped), hand


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long after `what` was back the hub was at work again. `seconds` is `None` when it never was."""

    what: str
    returned: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One run, looked at when it was quiet (`ended`). `spooled`: bodies that are still in a spool."""

    seed: int
    began: float
    ended: float
    stores: tuple[Store, ...]
    queues: tuple[Queue, ...] = ()
    processes: tuple[Process, ...] = ()
    recoveries: tuple[Recovery, ...] = ()
    spooled: int = 0
    forgotten: tuple[str, ...] = ()  # journals that were too short: nothing may be concluded from what is missing
    notes: Mapping[str, str] = field(default_factory=dict)  # how it was run, for the reader

    def to_json(self) -> bytes:
        """All of it as JSON."""
        return _ADAPTER.dump_json(self, indent=1)

    @staticmethod
    def from_json(text: bytes | str) -> Evidence:
        """Read back what `to_json` wrote. Raises pydantic's `ValidationError` for anything else."""
        return _ADAPTER.validate_json(text)

    def keep(self, path: Path) -> None:
        """Write it to a file, for a run that has to be looked at again."""
        path.write_bytes(self.to_json())


_ADAPTER: TypeAdapter[Evidence] = TypeAdapter(Evidence)
