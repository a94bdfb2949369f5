"""What the sandbox marketplace knows and its rules: accounts, listings, feeds, orders, tokens. No HTTP in here.

The promise: the marketplace shows exactly what was accepted, after the delays it was dialled to, and remembers every
value with its time, every creation and every write, so that a test can prove what a seller's software did to it.
Everything late (feeds, slow apply, acceptance) is worked out from the clock when somebody looks: no timers.
"""

import hashlib
import heapq
import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LIES_KEPT = 100_000  # writes answered as done and not done, remembered per account
HISTORY_KEPT = 2_000  # changes remembered per SKU
DELIVERIES_KEPT = 5_000  # webhook deliveries remembered per account
PREFIXES = {"sync": "SYN", "lot": "LOT", "full-replace": "FUL"}


class Profile(StrEnum):
    """The three kinds of marketplace that the sandbox plays."""

    SYNC = "sync"
    LOT = "lot"
    FULL_REPLACE = "full-replace"


class State(StrEnum):
    """What a buyer sees of a listing. `absent` is said of a SKU without any listing."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    PENDING = "pending"  # waits for the marketplace's acceptance
    REJECTED = "rejected"  # acceptance denied
    ABSENT = "absent"


class Dials(BaseModel):
    """How one account behaves. Times in seconds, money in cents; the defaults are a quick, friendly marketplace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str = Field("BRL", pattern="^[A-Z]{3}$")
    title_max: int = Field(60, ge=1)
    minimum_price: int = Field(100, ge=0, description="cents; a lower price is refused with below_minimum_price")
    visibility_delay: float = Field(0, ge=0, description="a new listing is not found by reads for so long")
    slow_apply: float = Field(0, ge=0, description="an accepted change shows only after so long")
    price_automation: frozenset[str] = Field(
        frozenset(), description="SKUs whose price writes are answered 200 with a warning and ignored"
    )
    put_creates: bool = Field(True, description="sync: PUT on an unknown SKU creates; else 404")
    needs_acceptance: bool = Field(False, description="full-replace: a new offer waits for acceptance")
    acceptance_delay: float | None = Field(None, ge=0, description="accepts by itself after so long; by hand if empty")
    feed_delay: float = Field(0, ge=0, description="lot: half of it queued, half of it running")
    feed_max_records: int = Field(1_000, ge=1)
    feed_max_bytes: int = Field(1_000_000, ge=1)
    feed_min_interval: float = Field(0, ge=0, description="between two feeds of one kind")
    feed_max_open: int | None = Field(None, ge=1, description="unfinished feeds per kind")
    feed_result_retention: float | None = Field(None, gt=0, description="a result is gone so long after done")
    fatal_feeds: int = Field(0, ge=0, description="so many of the next feeds end fatal, nothing applied")
    requests_limit: int | None = Field(None, ge=1, description="calls per window of this account")
    requests_window: float = Field(1.0, gt=0)
    retry_after_form: Literal["seconds", "date", "none"] = "seconds"
    oauth: bool = Field(False, description="tokens expire and are renewed with a rotating single-use refresh token")
    token_life: float = Field(21_600, gt=0)
    address_at: Literal["paid", "always"] = Field("paid", description="when an order tells buyer and address")
    take_stock: bool = Field(False, description="an order lowers the shown stock")
    webhook_url: str | None = Field(None, pattern="^https?://")
    webhook_secret: str | None = Field(None, description="sync: signs with HMAC-SHA256; unsigned if empty")
    webhook_previous_secret: str | None = Field(None, description="rotation: a second v1 made with it")
    webhook_loss: float = Field(0, ge=0, le=1, description="chance that an event is never sent")
    webhook_double: float = Field(0, ge=0, le=1, description="chance that an event is sent twice")
    webhook_delay: float = Field(0, ge=0)
    webhook_disorder: float = Field(0, ge=0, description="each event waits a drawn time up to this")
    webhook_retries: int = Field(3, ge=0)
    webhook_retry_delay: float = Field(0.5, ge=0, description="doubles with each retry")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing the seller must correct."""

    field: str
    code: str
    message: str
    value: object = None

    def wire(self) -> dict[str, object]:
        """As the marketplace writes it."""
        return {"field": self.field, "code": self.code, "message": self.message, "value": self.value}


class Refusal(Exception):  # noqa: N818 – it is an answer of the marketplace, not a failure of this program
    """The marketplace says no: an HTTP status, a code, and every problem at once."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        problems: Sequence[Problem] = (),
        *,
        retry_after: float | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.problems = tuple(problems)
        self.retry_after = retry_after
        self.extra = dict(extra or {})


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a category asks. Any text is allowed when `values` is empty."""

    name: str
    required: bool
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Category:
    """A node of the marketplace's tree; listings go into leaves only."""

    id: str
    name: str
    parent: str | None
    attributes: tuple[Attribute, ...] = ()


_COLOR = Attribute("color", required=True)
_SIZE = Attribute("size", required=True)
_MATERIAL = Attribute("material", required=False)

CATEGORIES: dict[str, Category] = {
    category.id: category
    for category in (
        Category("MC-100", "Fashion", None),
        Category("MC-110", "T-shirts", "MC-100", (_COLOR, _SIZE, _MATERIAL)),
        Category("MC-120", "Shoes", "MC-100", (_COLOR, _SIZE)),
        Category("MC-130", "Accessories", "MC-100", (_MATERIAL,)),
        Category("MC-200", "Home", None),
        Category("MC-210", "Kitchen", "MC-200", (_MATERIAL,)),
        Category("MC-220", "Bedding", "MC-200", (_COLOR, _MATERIAL)),
        Category("MC-300", "Electronics", None),
        Category("MC-310", "Phones", "MC-300", (_COLOR,)),
        Category("MC-320", "Audio", "MC-300"),
        Category(
            "MC-330", "Appliances", "MC-300", (Attribute("voltage", required=True, values=("110V", "220V", "bivolt")),)
        ),
    )
}
_PARENTS = {category.parent for category in CATEGORIES.values()}


@dataclass(frozen=True, slots=True)
class Values:
    """What a listing says. Money in cents, None when never set."""

    title: str = ""
    description: str = ""
    category: str = ""
    ean: str = ""
    brand: str = ""
    images: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    group: str = ""
    price: int | None = None
    list_price: int | None = None
    stock: int = 0


VALUE_FIELDS = frozenset(one.name for one in fields(Values))
CONTENT_FIELDS = VALUE_FIELDS - {"price", "list_price", "stock"}
Changes = dict[str, object]  # field of Values → new value, already checked for its type


@dataclass(slots=True)
class Listing:
    """One listing, and how it was before the last change (for stale reads)."""

    id: str
    sku: str
    link: str
    state: State
    values: Values
    created_at: datetime
    updated_at: datetime
    visible_at: datetime
    applies_at: datetime  # no later change is applied before this
    problems: tuple[Problem, ...] = ()
    before: tuple[State, Values] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One value that became visible. `number` grows over the whole account; `asked` is when the write came in.

    A write of a feed came in with the feed; one that the marketplace was slow to begin came in before it began.
    """

    number: int
    at: datetime
    asked: datetime
    listing: str
    field: str
    value: object
    by: str


@dataclass(slots=True)
class SkuRecord:
    """Everything that ever happened to one of the seller's SKUs."""

    sku: str
    live: list[str] = field(default_factory=list)
    creates: int = 0
    deletes: int = 0
    refused: int = 0
    writes: Counter[str] = field(default_factory=Counter)
    history: deque[Change] = field(default_factory=lambda: deque(maxlen=HISTORY_KEPT))


@dataclass(slots=True)
class SkuFault:
    """Writes about one SKU fail in this way until `left` is used up (None: for ever)."""

    status: int
    problems: tuple[Problem, ...]
    left: int | None


@dataclass(slots=True)
class Feed:
    """One lot of records, worked off at `ends`."""

    id: str
    kind: str
    reference: str
    lines: list[bytes]
    submitted: datetime
    starts: datetime
    ends: datetime
    fatal: str = ""
    results: list[dict[str, object]] = field(default_factory=list)

    def status(self, now: datetime) -> str:
        """Queued, running, done or fatal."""
        if now >= self.ends:
            return "fatal" if self.fatal else "done"
        return "running" if now >= self.starts else "queued"


@dataclass(frozen=True, slots=True)
class OrderLine:
    """One line of a basket. Money in cents per unit; `discount` for the whole line."""

    line: int
    sku: str
    listing: str
    title: str
    quantity: int
    price: int
    discount: int
    shipping: int  # of the whole line


@dataclass(slots=True)
class Order:
    """A basket that a buyer placed. Money in cents."""

    id: str
    status: str
    lines: tuple[OrderLine, ...]
    interest: int
    discount: int
    sla: str
    buyer: dict[str, str]
    address: dict[str, str]
    created_at: datetime
    updated_at: datetime
    number: int  # grows with each update: the cursor
    acknowledgements: list[tuple[str, datetime]] = field(default_factory=list)
    acknowledge_calls: int = 0
    reads: int = 0
    told_total: int | None = None  # a marketplace that adds up wrong

    @property
    def shipping(self) -> int:
        """What the delivery costs, in cents."""
        return sum(line.shipping for line in self.lines)

    @property
    def total(self) -> int:
        """What the buyer pays, in cents."""
        if self.told_total is not None:
            return self.told_total
        lines = sum(line.price * line.quantity - line.discount for line in self.lines)
        return lines + self.shipping + self.interest - self.discount


@dataclass(slots=True)
class Delivery:
    """One attempt-set to tell the webhook about an order."""

    event: str
    topic: str
    order: str
    planned: datetime
    attempts: int = 0
    status: int | None = None  # of the last attempt; 0: nobody answered
    seconds: float = 0.0
    outcome: str = "waiting"  # waiting, delivered, failed, lost


@dataclass(frozen=True, slots=True)
class Event:
    """What the courier is asked to bring. `copies` and `delay` overrule the account's dials."""

    topic: str
    order: str
    copies: int | None = None
    delay: float | None = None
    signature: Literal["good", "bad", "old", "none"] = "good"


@dataclass(frozen=True, slots=True)
class Outage:
    """The account's marketplace is away until `until`."""

    mode: Literal["503", "refuse", "hang"]
    until: datetime


class World:
    """The marketplace with all its accounts.

    Args:
        seed: fixes ids, tokens, buyers and drawn chances.
        clock: aware UTC; `advance` moves time forward on top of it.
    """

    def __init__(self, seed: int = 0, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.seed = seed
        self._clock = clock
        self._ahead = timedelta()
        self.random = random.Random(seed)  # noqa: S311 – repeatable chance is the point, nothing is kept secret by it
        self.accounts: dict[str, Account] = {}
        self.on_event: Callable[[Account, Event], None] = lambda _account, _event: None
        self._numbers = itertools.count(1)

    def now(self) -> datetime:
        """The marketplace's time, aware UTC."""
        return self._clock() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        self._ahead += timedelta(seconds=seconds)

    def number(self) -> int:
        """The next number, unique in this world."""
        return next(self._numbers)

    def secret(self, purpose: str) -> str:
        """A token that only looks random: the same in every run with the same seed."""
        return hashlib.sha256(f"{self.seed}:{purpose}:{self.number()}".encode()).hexdigest()[:40]

    def open_account(self, name: str, profile: Profile, dials: Dials, token: str | None = None) -> "Account":
        """Open a seller account; its name is unique over all profiles.

        Raises:
            Refusal: 409 when the name is taken.
        """
        if name in self.accounts:
            raise Refusal(409, "account_exists", f"account {name!r} exists: choose another name or delete it first")
        self.accounts[name] = Account(self, name, profile, dials, token)
        return self.accounts[name]

    def account(self, name: str, profile: str | None = None) -> "Account":
        """The account, settled to now.

        Raises:
            Refusal: 404 when there is none (of this profile).
        """
        account = self.accounts.get(name)
        if account is None or (profile is not None and account.profile.value != profile):
            raise Refusal(
                404, "unknown_account", f"no account {name!r}" + (f" of profile {profile!r}" if profile else "")
            )
        account.settle()
        return account

    def clear(self) -> None:
        """Forget every account and the time travelled."""
        self.accounts.clear()
        self._ahead = timedelta()


class Account:
    """One seller on one marketplace."""

    def __init__(self, world: World, name: str, profile: Profile, dials: Dials, token: str | None) -> None:
        self.world = world
        self.name = name
        self.profile = profile
        self.dials = dials
        self.skus: dict[str, SkuRecord] = {}
        self.listings: dict[str, Listing] = {}
        self.feeds: dict[str, Feed] = {}
        self.references: dict[str, str] = {}
        self.orders: dict[str, Order] = {}
        self.counters: Counter[str] = Counter()
        self.deliveries: deque[Delivery] = deque(maxlen=DELIVERIES_KEPT)
        self.sku_faults: dict[str, SkuFault] = {}
        self.outage: Outage | None = None
        self.arrived: datetime | None = None  # of the request that is being answered just now
        self.lies: deque[tuple[datetime, str, str]] = deque(maxlen=LIES_KEPT)  # when, operation, SKU
        self.client_id = f"client-{name}"
        self.client_secret = world.secret("client")
        self.token = token or world.secret("access")
        self.refresh_token = world.secret("refresh")
        self.tokens: dict[str, datetime | None] = {self.token: self._token_end()}
        self._effects: list[tuple[datetime, int, Callable[[datetime], None]]] = []
        self._changes = itertools.count(1)
        self._updates = itertools.count(1)
        self._window: tuple[datetime, int] | None = None
        self._submitted: dict[str, datetime] = {}

    # --- time -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything happen that is due by now."""
        now = self.world.now()
        while self._effects and self._effects[0][0] <= now:
            due, _, effect = heapq.heappop(self._effects)
            effect(due)

    def _asked(self) -> datetime:
        """When the write that is being done came in."""
        return self.arrived or self.world.now()

    def _at(self, due: datetime, effect: Callable[[datetime], None]) -> None:
        if due <= self.world.now():
            effect(due)
        else:
            heapq.heappush(self._effects, (due, self.world.number(), effect))

    # --- who may call -----------------------------------------------------------------------------------------

    def _token_end(self) -> datetime | None:
        return self.world.now() + timedelta(seconds=self.dials.token_life) if self.dials.oauth else None

    def authorize(self, token: str) -> None:
        """Let the bearer of a living token pass.

        Raises:
            Refusal: 401, `invalid_token` or `token_expired`.
        """
        if token not in self.tokens:
            self.counters["unauthorized"] += 1
            raise Refusal(401, "invalid_token", "unknown or revoked access token")
        ends = self.tokens[token]
        if ends is not None and ends <= self.world.now():
            self.counters["unauthorized"] += 1
            raise Refusal(401, "token_expired", "the access token has expired: refresh it")

    def refresh(self, refresh_token: str, client_id: str, client_secret: str) -> None:
        """Trade the refresh token for a new pair; the old one never works again.

        Raises:
            Refusal: 400, `invalid_client` or `invalid_grant`.
        """
        if (client_id, client_secret) != (self.client_id, self.client_secret):
            self.counters["refused_refreshes"] += 1
            raise Refusal(400, "invalid_client", "client_id or client_secret is wrong")
        if not self.refresh_token or refresh_token != self.refresh_token:
            self.counters["refused_refreshes"] += 1
            raise Refusal(400, "invalid_grant", "the refresh token was used already or revoked")
        self.counters["refreshes"] += 1
        self.refresh_token = self.world.secret("refresh")
        self.token = self.world.secret("access")
        self.tokens[self.token] = self._token_end()

    def expire_tokens(self) -> None:
        """Every access token ends now; the refresh token still works."""
        self.tokens = dict.fromkeys(self.tokens, self.world.now())

    def revoke(self) -> None:
        """Neither token works any more: the seller must consent again."""
        self.tokens.clear()
        self.refresh_token = ""

    def consent(self, token: str | None = None) -> None:
        """The seller gives new credentials; older access tokens are void."""
        self.token = token or self.world.secret("access")
        self.refresh_token = self.world.secret("refresh")
        self.tokens = {self.token: self._token_end()}

    def spend_call(self) -> tuple[bool, int, int, float] | None:
        """Count one call: allowed, limit, remaining, seconds to the reset; None when calls are not limited."""
        limit = self.dials.requests_limit
        if limit is None:
            return None
        now = self.world.now()
        start, used = self._window or (now, 0)
        if (now - start).total_seconds() >= self.dials.requests_window:
            start, used = now, 0
        allowed = used < limit
        self._window = (start, used + allowed)
        if not allowed:
            self.counters["throttled"] += 1
        return allowed, limit, max(0, limit - used - 1), self.dials.requests_window - (now - start).total_seconds()

    # --- reading a seller's body ------------------------------------------------------------------------------

    def read_changes(self, body: Mapping[str, object], allowed: Iterable[str]) -> tuple[Changes, list[Problem]]:
        """Turn a body into typed changes, and name everything that has the wrong form."""
        changes: Changes = {}
        problems: list[Problem] = []
        permitted = frozenset(allowed)
        for name, value in body.items():
            if name not in permitted:
                expected = ", ".join(sorted(permitted))
                problems.append(Problem(name, "unknown_field", f"unknown field; send only {expected}", value))
                continue
            read = self._read_value(name, value)
            if isinstance(read, Problem):
                problems.append(read)
            else:
                changes[name] = read
        return changes, problems

    def _read_value(self, name: str, value: object) -> object:
        """The value in its type, or the problem with it."""
        match name, value:
            case "list_price", None:
                return None
            case "price", None:
                return Problem(name, "price_required", f"send a price: {self.money_form}")
            case (("price" | "list_price"), _):
                cents = self.read_money(value)
                return (
                    Problem(name, "money_form", f"write money as {self.money_form}", value) if cents is None else cents
                )
            case "stock", bool():
                pass
            case "stock", int(amount) if amount >= 0:
                return amount
            case "images", list(images) if all(isinstance(image, str) for image in images):
                return tuple(images)
            case "attributes", dict(given) if all(isinstance(text, str) for text in given.values()):
                return tuple(sorted(given.items()))
            case (("title" | "description" | "category" | "ean" | "brand" | "group"), str(text)):
                return text
        wanted = {
            "stock": "a whole number of 0 or more",
            "images": "a list of addresses",
            "attributes": "an object of texts",
        }
        return Problem(name, f"{name}_form", f"send {wanted.get(name, 'a text')}", value)

    @property
    def money_form(self) -> str:
        """How this profile writes 99.90, for messages and `GET /account`."""
        if self.profile is Profile.FULL_REPLACE:
            return "whole cents such as 9990"
        if self.profile is Profile.LOT:
            return f'an amount such as {{"amount": "99.90", "currency": "{self.dials.currency}"}}'
        return 'a decimal text such as "99.90"'

    def read_money(self, value: object) -> int | None:
        """Cents of an amount in this profile's form; None when it is in another form or below zero."""
        if self.profile is Profile.FULL_REPLACE:
            return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
        if self.profile is Profile.LOT:
            if not isinstance(value, dict) or value.get("currency") != self.dials.currency or len(value) != 2:
                return None
            value = value.get("amount")
        return _cents(value) if isinstance(value, str) else None

    def write_money(self, cents: int | None) -> object:
        """An amount in this profile's form."""
        if cents is None or self.profile is Profile.FULL_REPLACE:
            return cents
        text = f"{Decimal(cents).scaleb(-2):.2f}"
        return {"amount": text, "currency": self.dials.currency} if self.profile is Profile.LOT else text

    def rules(self, values: Values, sent: frozenset[str] | None = None) -> list[Problem]:
        """Every rule that the values break. With `sent`, only rules about the fields sent are looked at."""
        problems: list[Problem] = []
        looked_at = VALUE_FIELDS if sent is None else sent

        def wrong(name: str, code: str, message: str, value: object) -> None:
            problems.append(Problem(name, code, message, value))

        if "title" in looked_at:
            if not values.title.strip():
                wrong("title", "title_required", "send a title", values.title)
            elif len(values.title) > self.dials.title_max:
                wrong("title", "title_too_long", f"shorten it to {self.dials.title_max} characters", values.title)
        if "ean" in looked_at and not is_ean13(values.ean):
            wrong("ean", "ean_invalid", "send a valid EAN-13 with its check digit", values.ean)
        if "images" in looked_at:
            if not values.images:
                wrong("images", "image_required", "send at least one image", [])
            for at, image in enumerate(values.images):
                if not image.startswith(("http://", "https://")):
                    wrong(f"images[{at}]", "image_invalid", "send an http or https address", image)
        if "category" in looked_at:
            problems += _category_problems(values)
        if "price" in looked_at and values.price is not None and values.price < self.dials.minimum_price:
            least = self.write_money(self.dials.minimum_price)
            wrong("price", "below_minimum_price", f"the minimum price is {least}", self.write_money(values.price))
        if (
            {"price", "list_price"} & looked_at
            and values.price is not None
            and values.list_price is not None
            and values.list_price < values.price
        ):
            wrong(
                "list_price",
                "list_price_below_price",
                "send a list price of at least the price, or null",
                self.write_money(values.list_price),
            )
        return problems

    def check(
        self,
        body: Mapping[str, object],
        base: Values | None = None,
        allowed: Iterable[str] = VALUE_FIELDS,
        *,
        only_sent: bool = False,
    ) -> tuple[Changes, list[Problem]]:
        """The changes that a body asks for, and every problem with them.

        Args:
            base: what the listing says already; nothing for a new one.
            only_sent: look only at rules about fields of the body.
        """
        changes, problems = self.read_changes(body, allowed)
        merged = replace(base or Values(), **changes)  # type: ignore[arg-type] # read_changes has checked each type
        return changes, problems + _beyond(problems, self.rules(merged, frozenset(changes) if only_sent else None))

    def emptied(self) -> Changes:
        """What full-replace sets where nothing is sent: empty texts, no list price, price and stock zero."""
        empty = Values(price=0)
        return {name: getattr(empty, name) for name in VALUE_FIELDS}

    # --- listings ---------------------------------------------------------------------------------------------

    def record(self, sku: str) -> SkuRecord:
        """The memory of one SKU, opened when first heard of."""
        record = self.skus.get(sku)
        if record is None:
            record = self.skus[sku] = SkuRecord(sku)
        return record

    def find(self, reference: str) -> list[Listing]:
        """Live listings by marketplace id or SKU, visible or not, oldest first."""
        if reference in self.listings:
            return [self.listings[reference]]
        record = self.skus.get(reference)
        return [self.listings[one] for one in record.live] if record else []

    def visible(self, reference: str) -> list[Listing]:
        """As `find`, without what the visibility delay still hides."""
        now = self.world.now()
        return [listing for listing in self.find(reference) if listing.visible_at <= now]

    def only(self, reference: str, *, stale: bool = False, hidden: bool = False) -> Listing:
        """The one listing meant.

        Raises:
            Refusal: 404 when there is none, 409 when a SKU has several.
        """
        found = self.find(reference) if hidden else self.visible(reference)
        if stale:
            found = [listing for listing in found if listing.before is not None]
        if not found:
            raise Refusal(404, "listing_not_found", f"no listing {reference!r}")
        if len(found) > 1:
            raise Refusal(
                409, "ambiguous_sku", f"SKU {reference!r} has several listings: use an id",
                extra={"ids": [listing.id for listing in found]},
            )  # fmt: skip
        return found[0]

    def refuse_if_faulty(self, sku: str) -> None:
        """Let a SKU fault bite.

        Raises:
            Refusal: as the fault says.
        """
        fault = self.sku_faults.get(sku)
        if fault is None:
            return
        if fault.left is not None:
            fault.left -= 1
            if fault.left <= 0:
                del self.sku_faults[sku]
        self.counters["sku_faults"] += 1
        if fault.status >= 500:
            raise Refusal(fault.status, "internal_error", "something went wrong on our side", fault.problems)
        raise self.refused(sku, fault.problems, fault.status)

    def refused(self, sku: str, problems: Sequence[Problem], status: int = 400) -> Refusal:
        """The refusal of a write about a SKU, counted."""
        self.counters["refused"] += 1
        self.record(sku).refused += 1
        return Refusal(status, "validation_failed", f"{len(problems)} problem(s) to correct", problems)

    def create(
        self, sku: str, changes: Changes, by: str, *, at: datetime | None = None, pretend: bool = False
    ) -> Listing:
        """Open a new listing, whether or not the SKU has one already."""
        asked = self._asked()
        at = at or self.world.now()
        number = self.world.number()
        identity = f"{PREFIXES[self.profile]}-{number:08d}"
        waits = self.profile is Profile.FULL_REPLACE and self.dials.needs_acceptance
        listing = Listing(
            id=identity,
            sku=sku,
            link=f"https://sandbox.example/{self.profile.value}/p/{identity}",
            state=State.PENDING if waits else State.ACTIVE,
            values=Values(),
            created_at=at,
            updated_at=at,
            visible_at=at + timedelta(seconds=self.dials.visibility_delay),
            applies_at=at,
        )
        if pretend:
            self._lie(by, sku)
            return listing
        record = self.record(sku)
        record.creates += 1
        record.live.append(identity)
        self.counters["creates"] += 1
        self.listings[identity] = listing
        self._apply(listing, changes, by, asked, at)
        listing.before = None
        self._note(listing, "state", listing.state.value, by, at=at, asked=asked)
        if waits and self.dials.acceptance_delay is not None:
            self._at(at + timedelta(seconds=self.dials.acceptance_delay), lambda due: self._accept(listing, due))
        return listing

    def change(
        self, listing: Listing, changes: Changes, by: str, *, at: datetime | None = None, pretend: bool = False
    ) -> None:
        """Write values into a listing; they show after the account's slow apply."""
        if pretend:
            self._lie(by, listing.sku)
            return
        asked = self._asked()
        names = frozenset(changes)
        record = self.record(listing.sku)
        for kind, members in (("content", CONTENT_FIELDS), ("price", {"price", "list_price"}), ("stock", {"stock"})):
            if names & members:
                record.writes[kind] += 1
                self.counters[f"{kind}_writes"] += 1
        self._later(listing, at or self.world.now(), lambda due: self._apply(listing, changes, by, asked, due))

    def set_state(self, listing: Listing, state: State, by: str, *, pretend: bool = False) -> None:
        """Block or unblock a listing.

        Raises:
            Refusal: 409 while it waits for acceptance.
        """
        if listing.state in (State.PENDING, State.REJECTED):
            raise Refusal(409, "not_accepted", "the listing is not accepted")
        if pretend:
            self._lie(by, listing.sku)
            return
        asked = self._asked()
        record = self.record(listing.sku)
        record.writes["state"] += 1
        self.counters["deactivations" if state is State.INACTIVE else "activations"] += 1

        def apply(due: datetime) -> None:
            listing.before = (listing.state, listing.values)
            listing.state = state
            listing.updated_at = due
            self._note(listing, "state", state.value, by, at=due, asked=asked)

        self._later(listing, self.world.now(), apply)

    def delete(self, listing: Listing, by: str, *, at: datetime | None = None, pretend: bool = False) -> None:
        """Take a listing away for good."""
        if pretend:
            self._lie(by, listing.sku)
            return
        asked = self._asked()
        record = self.record(listing.sku)
        record.deletes += 1
        self.counters["deletes"] += 1

        def apply(due: datetime) -> None:
            if self.listings.pop(listing.id, None) is not None:
                record.live.remove(listing.id)
                self._note(listing, "state", State.ABSENT.value, by, at=due, asked=asked)

        self._later(listing, at or self.world.now(), apply)

    def _lie(self, operation: str, sku: str) -> None:
        self.lies.append((self._asked(), operation, sku))

    def drift(self, listing: Listing, changes: Changes) -> None:
        """Change what is shown behind the seller's back; counts as nobody's write."""
        now = self.world.now()
        self._apply(listing, changes, "hand", now, now)

    def decide(self, sku: str, problems: Sequence[Problem]) -> None:
        """Accept (no problems) or reject every pending listing of the SKU."""
        for listing in self.find(sku):
            if problems:
                listing.problems = tuple(problems)
                self._become(listing, State.REJECTED, self.world.now())
            else:
                self._accept(listing, self.world.now())

    def _accept(self, listing: Listing, due: datetime) -> None:
        if listing.state in (State.PENDING, State.REJECTED):
            listing.problems = ()
            self._become(listing, State.ACTIVE, due)

    def _become(self, listing: Listing, state: State, due: datetime) -> None:
        listing.state = state
        listing.updated_at = due
        self._note(listing, "state", state.value, "acceptance", at=due, asked=due)

    def _later(self, listing: Listing, asked: datetime, apply: Callable[[datetime], None]) -> None:
        # a change never overtakes an earlier one of the same listing, even when the dial was turned in between
        due = max(asked + timedelta(seconds=self.dials.slow_apply), listing.applies_at)
        listing.applies_at = due
        self._at(due, apply)

    def _apply(self, listing: Listing, changes: Changes, by: str, asked: datetime, due: datetime) -> None:
        old = listing.values
        listing.before = (listing.state, old)
        listing.values = replace(old, **changes)  # type: ignore[arg-type] # read_changes has checked each type
        listing.updated_at = due
        for name, value in changes.items():
            if name not in CONTENT_FIELDS or value != getattr(old, name):
                self._note(listing, name, value, by, at=due, asked=asked)

    def _note(self, listing: Listing, name: str, value: object, by: str, *, at: datetime, asked: datetime) -> None:
        change = Change(next(self._changes), at, asked, listing.id, name, value, by)
        self.record(listing.sku).history.append(change)

    # --- feeds ------------------------------------------------------------------------------------------------

    def submit(self, kind: str, reference: str, body: bytes, *, pretend: bool = False) -> Feed:
        """Take a feed in.

        Raises:
            Refusal: 400 (kind, reference, empty), 409 duplicate reference, 413 too large, 429 too soon or too many
                open.
        """
        now, dials = self.world.now(), self.dials
        lines = [line for line in body.split(b"\n") if line.strip()]
        self._refuse_feed(kind, reference, lines, len(body))
        open_ones = self._open_feeds(kind)
        # feeds of one kind are worked off in the order they came
        ends = max([now + timedelta(seconds=dials.feed_delay), *(feed.ends for feed in open_ones)])
        starts = now + timedelta(seconds=dials.feed_delay / 2)
        feed = Feed(f"FEED-{self.world.number():08d}", kind, reference, lines, self._asked(), starts, ends)
        if pretend:
            for line in lines:
                self._lie("feed_submit", _sku_of(line))
            return feed
        if dials.fatal_feeds:
            feed.fatal = "the feed could not be read"
            self.dials = dials.model_copy(update={"fatal_feeds": dials.fatal_feeds - 1})
        self._submitted[kind] = now
        self.feeds[feed.id] = feed
        self.references[reference] = feed.id
        self.counters["feeds"] += 1
        self.counters["feed_records"] += len(lines)
        if not feed.fatal:
            self._at(ends, lambda due: self._work_off(feed, due))
        return feed

    def _open_feeds(self, kind: str) -> list[Feed]:
        now = self.world.now()
        return [feed for feed in self.feeds.values() if feed.kind == kind and feed.ends > now]

    def _refuse_feed(self, kind: str, reference: str, lines: list[bytes], size: int) -> None:
        now, dials = self.world.now(), self.dials
        problems: list[Problem] = []
        if kind not in ("listing", "offer"):
            problems.append(Problem("kind", "kind_unknown", "send listing or offer", kind))
        if not reference or len(reference) > 100:
            problems.append(
                Problem("reference", "reference_required", "send 1 to 100 characters of your own", reference)
            )
        if not lines:
            problems.append(Problem("body", "records_required", "send at least one line of JSON", None))
        if problems:
            raise Refusal(400, "validation_failed", f"{len(problems)} problem(s) to correct", problems)
        if reference in self.references:
            raise Refusal(
                409, "duplicate_reference", "this reference was submitted before",
                extra={"id": self.references[reference]},
            )  # fmt: skip
        if len(lines) > dials.feed_max_records:
            raise Refusal(413, "too_many_records", f"{len(lines)} records: send at most {dials.feed_max_records}")
        if size > dials.feed_max_bytes:
            raise Refusal(413, "too_many_bytes", f"{size} bytes: send at most {dials.feed_max_bytes}")
        open_ones = self._open_feeds(kind)
        if dials.feed_max_open is not None and len(open_ones) >= dials.feed_max_open:
            wait = (min(feed.ends for feed in open_ones) - now).total_seconds()
            raise Refusal(429, "too_many_open_feeds", f"{len(open_ones)} feeds are open", retry_after=wait)
        if dials.feed_min_interval and kind in self._submitted:
            wait = dials.feed_min_interval - (now - self._submitted[kind]).total_seconds()
            if wait > 0:
                raise Refusal(429, "too_soon", f"one {kind} feed per {dials.feed_min_interval:g} s", retry_after=wait)

    def _work_off(self, feed: Feed, due: datetime) -> None:
        before, self.arrived = self.arrived, feed.submitted
        try:
            self._work_off_lines(feed, due)
        finally:
            self.arrived = before

    def _work_off_lines(self, feed: Feed, due: datetime) -> None:
        for number, line in enumerate(feed.lines, 1):
            result: dict[str, object] = {"line": number, "sku": None, "status": "accepted", "problems": []}
            try:
                body = json.loads(line)
                if not isinstance(body, dict) or not isinstance(body.get("sku"), str) or not body["sku"]:
                    raise Refusal(400, "", "", [Problem("sku", "sku_required", "send an object with a text sku", None)])
                result["sku"] = body["sku"]
                result |= self._work_off_record(feed, body, due)
            except ValueError:
                problem = Problem("", "unreadable", "send one JSON object per line", None)
                result |= {"status": "rejected", "problems": [problem.wire()]}
            except Refusal as refusal:
                problems = refusal.problems or (Problem("sku", refusal.code, refusal.message, result["sku"]),)
                status = "error" if refusal.status >= 500 else "rejected"
                result |= {"status": status, "problems": [problem.wire() for problem in problems]}
            feed.results.append(result)
        feed.lines = []

    def _work_off_record(self, feed: Feed, body: Mapping[str, object], due: datetime) -> dict[str, object]:
        sku, operation = str(body["sku"]), body.get("operation", "update")
        self.refuse_if_faulty(sku)
        found = self.find(sku)
        allowed = CONTENT_FIELDS if feed.kind == "listing" else {"price", "list_price", "stock"}
        if operation == "delete" and feed.kind == "listing":
            if not found:
                raise self.refused(sku, [Problem("sku", "listing_not_found", "there is no such listing", sku)])
            self.delete(found[0], f"feed {feed.id}", at=due)
            return {"id": found[0].id, "operation": "deleted"}
        if operation != "update":
            known = "update or delete" if feed.kind == "listing" else "update"
            raise self.refused(sku, [Problem("operation", "unsupported", f"send {known}", operation)])
        rest = {name: value for name, value in body.items() if name not in ("sku", "operation")}
        changes, problems = self.check(
            rest, found[0].values if found else None, allowed, only_sent=feed.kind == "offer"
        )
        if feed.kind == "offer":
            if not found:
                problems.append(Problem("sku", "listing_not_found", "send the listing first", sku))
            if not rest:
                problems.append(Problem("", "nothing_to_do", "send price, list_price or stock", None))
        if problems:
            raise self.refused(sku, problems)
        if found:
            listing = found[0]
            self.change(listing, changes, f"feed {feed.id}", at=due)
            done = "updated"
        else:
            listing = self.create(sku, changes, f"feed {feed.id}", at=due)
            done = "created"
        return {"id": listing.id, "link": listing.link, "operation": done}

    # --- orders -----------------------------------------------------------------------------------------------

    def place(self, order: Order, *, copies: int | None = None, delay: float | None = None) -> Order:
        """Put an order into the account and tell its webhook.

        Raises:
            Refusal: 409 when the id is taken.
        """
        if order.id in self.orders:
            raise Refusal(409, "order_exists", f"order {order.id!r} exists")
        self.orders[order.id] = order
        self.counters["orders"] += 1
        if self.dials.take_stock:
            for line in order.lines:
                for listing in self.find(line.sku)[:1]:
                    self._sell(listing, line.quantity)
        self.touch(order, copies=copies, delay=delay)
        return order

    def _sell(self, listing: Listing, quantity: int) -> None:
        now = self.world.now()
        self._apply(listing, {"stock": max(0, listing.values.stock - quantity)}, "sale", now, now)

    def touch(
        self, order: Order, status: str | None = None, *, copies: int | None = None, delay: float | None = None
    ) -> None:
        """Note a change of an order, and tell the webhook."""
        if status is not None:
            order.status = status
        order.updated_at = self.world.now()
        order.number = next(self._updates)
        self.world.on_event(self, Event("orders", order.id, copies, delay))

    def updated_orders(self, since: datetime | None, after: int, limit: int) -> list[Order]:
        """Orders in the order of their last update."""
        fitting = (
            order
            for order in self.orders.values()
            if order.number > after and (since is None or order.updated_at >= since)
        )
        return heapq.nsmallest(limit, fitting, key=lambda order: order.number)

    def order(self, identity: str) -> Order:
        """One order.

        Raises:
            Refusal: 404 when there is none.
        """
        if identity not in self.orders:
            raise Refusal(404, "order_not_found", f"no order {identity!r}")
        return self.orders[identity]

    def acknowledge(self, order: Order, vtex_order_id: str, *, pretend: bool = False) -> None:
        """Remember the VTEX order id; the same again is fine.

        Raises:
            Refusal: 409 when another id was given before.
        """
        order.acknowledge_calls += 1
        if pretend:
            return
        if order.acknowledgements and order.acknowledgements[-1][0] != vtex_order_id:
            known = order.acknowledgements[-1][0]
            raise Refusal(409, "acknowledged_otherwise", f"acknowledged before as {known!r}")
        if not order.acknowledgements:
            order.acknowledgements.append((vtex_order_id, self.world.now()))
            self.counters["acknowledgements"] += 1


def _sku_of(line: bytes) -> str:
    """The SKU that one record of a feed names; empty when it names none."""
    try:
        body = json.loads(line)
    except ValueError:
        return ""
    return str(body.get("sku", "")) if isinstance(body, dict) else ""


def is_ean13(text: str) -> bool:
    """Thirteen digits with the right check digit."""
    if len(text) != 13 or not text.isascii() or not text.isdigit():
        return False
    digits = [int(digit) for digit in text]
    return (sum(digits[0::2]) + 3 * sum(digits[1::2])) % 10 == 0


def synthetic_buyer(number: int) -> dict[str, str]:
    """A buyer who does not exist, with a document whose check digits are right."""
    return {
        "first_name": "Comprador",
        "last_name": f"Exemplo {number}",
        "document_type": "cpf",
        "document": _cpf(number),
        "email": f"comprador{number}@example.com",
        "phone": f"+55119{number % 100_000_000:08d}",
    }


def synthetic_address(number: int) -> dict[str, str]:
    """An address that nobody lives at."""
    return {
        "receiver": f"Comprador Exemplo {number}",
        "street": "Rua do Exemplo",
        "number": str(number % 1000 + 1),
        "complement": "",
        "neighborhood": "Centro",
        "city": "São Paulo",
        "state": "SP",
        "postal_code": f"01310{number % 1000:03d}",
        "country": "BRA",
    }


def _cpf(number: int) -> str:
    digits = [int(digit) for digit in f"{number % 1_000_000_000:09d}"]
    for _ in range(2):
        weight = len(digits) + 1
        rest = sum(digit * (weight - at) for at, digit in enumerate(digits)) % 11
        digits.append(0 if rest < 2 else 11 - rest)
    return "".join(map(str, digits))


def _cents(text: str) -> int | None:
    whole, point, part = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 12) or (
        point and not (part.isascii() and part.isdigit() and len(part) <= 2)
    ):
        return None
    return int(whole) * 100 + int(part.ljust(2, "0") if part else 0)


def _category_problems(values: Values) -> list[Problem]:
    if not values.category:
        return [Problem("category", "category_required", "send a category of GET /categories", "")]
    category = CATEGORIES.get(values.category)
    if category is None:
        return [Problem("category", "category_unknown", "send a category of GET /categories", values.category)]
    if category.id in _PARENTS:
        return [Problem("category", "category_not_leaf", "send a category without children", values.category)]
    given = dict(values.attributes)
    problems = []
    for attribute in category.attributes:
        value = given.get(attribute.name, "")
        where = f"attributes.{attribute.name}"
        if not value.strip():
            if attribute.required:
                problems.append(
                    Problem(where, "attribute_required", f"{category.name} needs {attribute.name}", value or None)
                )
        elif attribute.values and value not in attribute.values:
            choices = ", ".join(attribute.values)
            problems.append(Problem(where, "attribute_value_unknown", f"send one of {choices}", value))
    return problems


def _beyond(known: Sequence[Problem], more: Iterable[Problem]) -> list[Problem]:
    """The further problems about fields that are not complained about yet."""
    named = {problem.field for problem in known}
    return [problem for problem in more if problem.field not in named]
