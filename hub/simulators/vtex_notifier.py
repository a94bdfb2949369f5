"""VTEX's affiliate notifications (vtex.md 4), in every form a store really receives them.

The promise: each is sent at most once and never again, whatever the answer; what was sent, lost on purpose,
doubled and answered is counted. Loss, doubles, delay and shuffling come from a seed.
"""

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from hub.simulators.poster import Poster
from hub.simulators.vtex_catalog import Affiliate

VARIANTS = ("guide", "real", "legacy", "broadcaster", "minimal")
CASINGS = ("as_is", "lower", "camel", "pascal")
PATHS = ("", "/", "/api/notification", "/api/notification/", "/catalog/notification")
LOG_SIZE = 20_000


@dataclass(slots=True)
class NotifierHabits:
    """How an account notifies; `random` draws one per notification. Shares between 0 and 1, times in seconds."""

    variant: str = "real"  # one of VARIANTS, or random
    casing: str = "as_is"  # one of CASINGS, or random
    sku_as: str = "string"  # string, int, or random
    booleans: str = "bool"  # bool, or string
    path: str = "/api/notification/"  # one of PATHS, or random
    account_as: str = "name"  # name, or host: `{account}.myvtex`
    duplicate_share: float = 0.0
    loss_share: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    shuffled: bool = False  # a burst leaves in random order


@dataclass(frozen=True, slots=True)
class Change:
    """What changed about one SKU."""

    sku_id: int
    product_id: int
    active: bool = True
    stock: bool = False
    price: bool = False
    sku: bool = False
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """One notification that left at `began`, or was lost on purpose (status -1). Status 0: no answer."""

    at: str
    began: str
    affiliate: str
    sku_id: int
    variant: str
    status: int
    flags: tuple[str, ...] = ()
    """What it said has changed: sku, price, stock, removed, inactive; as far as the variant says so."""


@dataclass(slots=True)
class Notifier:
    """Sends the notifications of one account.

    Args:
        account: VTEX account name.
        poster: sends; bounds how many are in flight.
        chance: source of every drawn choice.
    """

    account: str
    poster: Poster
    chance: random.Random
    habits: NotifierHabits = field(default_factory=NotifierHabits)
    counts: Counter[str] = field(default_factory=Counter)
    sent: deque[Sent] = field(default_factory=lambda: deque(maxlen=LOG_SIZE))
    _waiting: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def in_flight(self) -> int:
        """Notifications that have not been answered yet."""
        return len(self._waiting)

    def announce(self, affiliates: Sequence[Affiliate], changes: Sequence[Change]) -> int:
        """Notify every affiliate that has an endpoint about every change. Returns how many will be posted."""
        pairs = [(one, change) for change in changes for one in affiliates if one.search_uri_endpoint]
        if self.habits.shuffled:
            self.chance.shuffle(pairs)
        leaving = 0
        for affiliate, change in pairs:
            if self.chance.random() < self.habits.loss_share:
                self.counts["lost"] += 1
                self._note(affiliate, change, "", -1, _now())
                continue
            copies = 1 + (self.chance.random() < self.habits.duplicate_share)
            self.counts["doubled"] += copies - 1
            leaving += copies
            for _ in range(copies):
                task = asyncio.get_running_loop().create_task(self._send(affiliate, change))
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)
        return leaving

    def body(self, affiliate: str, change: Change) -> tuple[str, dict[str, object]]:
        """One notification body and the name of its variant."""
        habits = self.habits
        variant = self.chance.choice(VARIANTS) if habits.variant == "random" else habits.variant
        as_int = habits.sku_as == "int" or (habits.sku_as == "random" and self.chance.random() < 0.5)
        sku: object = change.sku_id if as_int else str(change.sku_id)
        account = f"{self.account}.myvtex" if habits.account_as == "host" else self.account
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + f"{self.chance.randrange(10)}Z"  # 7 digits
        flags: dict[str, object] = {
            "StockModified": change.stock,
            "PriceModified": change.price,
            "HasStockKeepingUnitModified": change.sku,
            "HasStockKeepingUnitRemovedFromAffiliate": change.removed,
        }
        if variant == "minimal":
            found: dict[str, object] = {"HasStockKeepingUnitModified": change.sku, "IdSku": sku}
        elif variant == "legacy":
            found = {"IdSku": sku, "An": account, "IdAffiliate": affiliate, **dict(list(flags.items())[:2])}
        elif variant == "guide":
            found = {
                "idSKU": sku,
                "productId": change.product_id,
                "an": account,
                "idAffiliate": affiliate,
                "DateModified": now,
                "isActive": change.active,
                **flags,
            }
        else:
            found = {
                "IdSku": sku,
                "An": account,
                "IdAffiliate": affiliate,
                "DateModified": now,
                "IsActive": change.active,
                **flags,
            }
            if variant == "broadcaster":
                found |= {"ProductId": str(change.product_id), "Version": "1.x.x"}
        if habits.booleans == "string":
            found = {key: str(value).lower() if isinstance(value, bool) else value for key, value in found.items()}
        casing = self.chance.choice(CASINGS) if habits.casing == "random" else habits.casing
        return variant, {_cased(key, casing): value for key, value in found.items()}

    def summary(self) -> dict[str, object]:
        """Counts, by name and by answer."""
        return {"in_flight": self.in_flight, "counts": dict(sorted(self.counts.items()))}

    def log(self, limit: int = 1000) -> list[dict[str, object]]:
        """The newest notifications, oldest first."""
        return [asdict(one) for one in list(self.sent)[-limit:]]

    async def _send(self, affiliate: Affiliate, change: Change) -> None:
        habits = self.habits
        if habits.delay or habits.jitter:
            await asyncio.sleep(habits.delay + self.chance.random() * habits.jitter)
        variant, body = self.body(affiliate.id, change)
        url = notification_url(affiliate.search_uri_endpoint or "", self._path())
        self.counts["sent"] += 1
        began = _now()
        status = await self.poster.post(url, json.dumps(body).encode())
        self.counts[f"status_{status}" if status else "no_answer"] += 1
        self._note(affiliate, change, variant, status, began)

    def _path(self) -> str:
        return self.chance.choice(PATHS) if self.habits.path == "random" else self.habits.path

    def _note(self, affiliate: Affiliate, change: Change, variant: str, status: int, began: str) -> None:
        self.sent.append(Sent(_now(), began, affiliate.id, change.sku_id, variant, status, _said(change, variant)))


def _said(change: Change, variant: str) -> tuple[str, ...]:
    flags = [name for name in ("sku", "price", "stock", "removed") if getattr(change, name)]
    if not change.active:
        flags.append("inactive")
    seen = {"minimal": ("sku",), "legacy": ("stock", "price")}.get(variant)
    return tuple(flag for flag in flags if seen is None or flag in seen)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def notification_url(endpoint: str, path: str) -> str:
    """The endpoint with one of the documented paths; its own query string stays last."""
    address, mark, query = endpoint.partition("?")
    return address.rstrip("/") + path + mark + query


def _cased(key: str, casing: str) -> str:
    if casing == "lower":
        return key.lower()
    if casing == "camel":
        return key[0].lower() + key[1:]
    if casing == "pascal":
        return key[0].upper() + key[1:]
    return key
