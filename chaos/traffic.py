"""The load: stores with their catalogues, changes that VTEX announces, orders on the marketplaces; all from the seed.

The promise: about `Sizes.notifications` notifications are asked for, no faster than the machine takes them. Prices and
stocks of a SKU only grow (but for a stock of nothing now and then), so that the order of two values tells which is
newer.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from chaos.plan import WARM_UP_SECONDS
from chaos.world import PROFILES, RunFailed, Shop, World, close_desk, marketplace_secrets, until
from hub import loads, mappings
from hub.marketplaces import adapter
from hub.simulators.marketplace_control import Basket, ControlRefused

CATEGORIES = (1, 2, 3, 4, 5)
MAPPED = {"1": "MC-130", "2": "MC-210", "3": "MC-130"}
"""What is mapped from the start; the others wait for somebody who maps them."""
LEAVES = ("MC-130", "MC-210")
"""Marketplace categories that demand no attribute."""
ORDERED_SHARE = 0.2
"""SKUs that are never out of stock, inactive or removed, so that buyers can have them."""
MOST_WAITING = 400
"""Notifications under way beyond which the load holds its breath."""
MOST_PENDING = 4_000
"""Keys pending in the hub beyond which it does too."""
CHANNELS = (1, 2)
VARIANTS = ("real", "guide", "broadcaster")
"""The forms that say what changed; the others leave it out, and nobody could know that there was anything to read."""


@dataclass(slots=True)
class _Item:
    """One SKU of an account as the driver last changed it."""

    id: int
    price: int
    stock: int
    ordered: bool
    turns: int = 0
    active: bool = True


def account_of(number: int) -> str:
    """The VTEX account of a store: every fifth store shares the one before it."""
    return f"acc{number - 1 if number % 5 == 4 else number}"


def register(world: World) -> None:
    """Make accounts, SKUs, sellers and stores, as an operator would."""
    vtex, marketplace = world.vtex(), world.marketplace()
    desk = world.desk("chaos register")
    sizes = world.sizes
    each = max(1, sizes.skus // sizes.stores)
    try:
        for number in range(sizes.stores):
            account, affiliate = account_of(number), "MKP" if account_of(number) == f"acc{number}" else "SND"
            key, token = f"vtexappkey-{account}-CHAOSX", f"first-token-of-{account}"
            if affiliate == "MKP":
                vtex.open_account(
                    account, key, token,
                    channels=[{"id": channel} for channel in CHANNELS],
                    categories=[{"id": one, "name": f"Categoria {one}"} for one in CATEGORIES],
                )  # fmt: skip
                vtex.grow(
                    account, each, first_id=1, category_ids=list(CATEGORIES), channels=[1], price=[1000, 1000],
                    stock=[10, 10],
                )  # fmt: skip
                variant = VARIANTS[number % len(VARIANTS)]
                vtex.notifier_habits(account, jitter=0.05, variant=variant, casing="random", sku_as="random")
            name, profile = PROFILES[number % len(PROFILES)]
            slug = f"shop{number}-{profile}"
            seller = marketplace.open_account(
                slug, profile, feed_min_interval=0, visibility_delay=0.3, feed_delay=0.2, slow_apply=0.0,
            )  # fmt: skip
            webhook = adapter(name).manifest.webhook
            secret = f"hook-of-{slug}" if webhook is not None and webhook.scheme != "none" else None
            store, url_token = desk.registry.add(
                slug=slug, account=account, affiliate=affiliate, sales_channel=1, marketplace=name, who="chaos",
                settings={
                    "vtex_url": f"{vtex.base_url}/{{account}}",
                    "marketplace_url": seller.url,
                    "poll_orders_seconds": 2.0,
                    "look_again": [2.0, 8.0],
                    "order_waits": [2.0, 4.0, 8.0],
                    "order_policy": "advisory",
                    "result_timer_seconds": 4.0,
                    "marketplace_limit": {"rate": 500.0, "burst": 500},
                    **({"webhook": asdict(webhook)} if webhook is not None else {}),
                },
                credentials={
                    "vtex": {"app_key": key, "app_token": token},
                    "marketplace": marketplace_secrets(seller, secret),
                },
            )  # fmt: skip
            base = f"{world.settings.public_url}/{url_token}"
            vtex.put_affiliate(account, affiliate, sales_channel=1, endpoint=base)
            if webhook is not None:
                marketplace.turn(slug, webhook_url=f"{base}/events", webhook_secret=secret)
            mapped = [mappings.CategoryMapping(category, remote, "") for category, remote in MAPPED.items()]
            mappings.save(desk.pool, store.id, mapped, who="chaos")
            world.shops.append(Shop(number, store, account, affiliate, seller, key, token, secret))
    finally:
        close_desk(desk)
        vtex.close()
        marketplace.close()


def load(world: World, *, seconds: float) -> float:
    """`hub load` for every store, as at a store's beginning; the seconds until all are done."""
    desk = world.desk("chaos load")
    try:
        runs = [loads.start(desk.pool, shop.store.id, who="chaos") for shop in world.shops]
        return until(
            lambda: all(loads.progress(desk.pool, run).state != "running" for run in runs),
            seconds=seconds, why=f"the initial loads are not done after {seconds:.0f} s", every=0.5,
        )  # fmt: skip
    finally:
        close_desk(desk)


@dataclass(slots=True)
class Traffic:
    """The load of one run, on two threads from `start` to `stop`."""

    world: World
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failure: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        for what in (self._announce, self._sell):
            thread = threading.Thread(target=self._guarded, args=(what,), name=what.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def running(self) -> bool:
        """Are there notifications left to be asked for?"""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self, seconds: float = 30.0) -> None:
        """End early, or see that it has ended. Raises `RunFailed` when the load itself went wrong."""
        self._stop.set()
        for thread in self._threads:
            thread.join(seconds)
        if self.failure:
            raise RunFailed(f"the load ended early: {self.failure}")

    def _guarded(self, what: Any) -> None:
        try:
            what()
        except Exception as error:  # noqa: BLE001 – told by `stop`; a thread has no other ear
            self.failure = f"{type(error).__name__}: {error}"
            self._stop.set()

    # -- VTEX's side

    def _announce(self) -> None:
        """Change SKUs of every account in turn until so many notifications were asked for."""
        world, sizes = self.world, self.world.sizes
        chance = random.Random(f"{world.plan.seed} changes")
        vtex = world.vtex()
        accounts = {shop.account: 0 for shop in world.shops}
        for shop in world.shops:
            accounts[shop.account] += 1
        each = max(1, sizes.skus // sizes.stores)
        ordered = max(1, int(each * ORDERED_SHARE))
        items = {
            account: [_Item(number, 1000, 10, number <= ordered) for number in range(1, each + 1)]
            for account in accounts
        }
        names = list(accounts)
        began = time.monotonic()
        told = 0
        while told < sizes.notifications and not self._stop.is_set():
            self.seconds = time.monotonic() - began
            due = sizes.notifications * self.seconds / (sizes.window - WARM_UP_SECONDS)
            if told > due:
                self._stop.wait(0.05)
                continue
            if int(self.seconds * 2) != int((self.seconds - 0.1) * 2) and self._breathless(vtex, names):
                self.counts["pauses"] += 1
                self._stop.wait(0.5)
                continue
            account = chance.choice(names)
            chosen = chance.sample(items[account], min(len(items[account]), chance.randrange(1, 9)))
            changes = [self._change(chance, item) for item in chosen]
            vtex.change_many(account, changes, notify=True)
            told += len(changes) * accounts[account]
            self.counts["changes"] += len(changes)
            self.counts["notifications"] = told
        self.seconds = time.monotonic() - began
        vtex.close()

    def _breathless(self, vtex: Any, accounts: list[str]) -> bool:
        waiting = sum(int(vtex.notifications(account, 1)["in_flight"]) for account in accounts)
        if waiting > MOST_WAITING:
            return True
        return int(self.world.ask("select count(*) from states where work = 'p'")[0][0]) > MOST_PENDING

    def _change(self, chance: random.Random, item: _Item) -> dict[str, Any]:
        """One thing, sometimes two, that a seller changes about a SKU."""
        item.turns += 1
        drawn = chance.random()
        change: dict[str, Any] = {"id": item.id}
        if drawn < 0.40 or 0.75 <= drawn < 0.85:
            item.price += chance.randrange(1, 30)
            change["price"] = item.price
        if 0.35 <= drawn < 0.78:
            item.stock += chance.randrange(1, 4)
            change["stock"] = 0 if not item.ordered and chance.random() < 0.1 else item.stock
        if 0.85 <= drawn < 0.90 and not item.ordered:
            item.active = not item.active
            change["active"] = item.active
        elif 0.90 <= drawn < 0.93 and not item.ordered:
            change["category"] = chance.choice(CATEGORIES)
        elif 0.93 <= drawn < 0.95 and not item.ordered:
            change["channels"] = chance.choice(([1], [2], [1, 2]))
        elif drawn >= 0.85:
            change["name"] = f"Produto {item.id} edição {item.turns}"
        return change

    # -- the marketplaces' side

    def _sell(self) -> None:
        """Buyers order, pay, and sometimes change their minds."""
        world, sizes = self.world, self.world.sizes
        chance = random.Random(f"{world.plan.seed} orders")
        marketplace = world.marketplace()
        wanted = max(4, sizes.notifications // 100)
        each = max(1, sizes.skus // sizes.stores)
        ordered = max(1, int(each * ORDERED_SHARE))
        later: list[tuple[float, str, str, str]] = []
        began = time.monotonic()
        placed = 0
        while (placed < wanted or later) and not self._stop.wait(0.1):
            now = time.monotonic() - began
            for entry in [one for one in later if one[0] <= now]:
                later.remove(entry)
                _, slug, order_id, status = entry
                try:
                    marketplace.move_order(slug, order_id, status)
                    self.counts[f"orders {status}"] += 1
                except ControlRefused:
                    self.counts["moves refused"] += 1
            if placed >= wanted or placed > wanted * now / sizes.window:
                continue
            shop = chance.choice(world.shops)
            shelf = sorted(
                sku
                for sku, shown in marketplace.shown(shop.slug).items()
                if int(sku) <= ordered and shown.state == "active" and shown.price_cents and (shown.stock or 0) > 2
            )
            if not shelf:  # nothing is sold there now; when all is over and nothing came back, the end tells why
                placed += now > 2 * sizes.window
                self._stop.wait(0.5)
                continue
            skus = chance.sample(shelf, min(len(shelf), chance.randrange(1, 3)))
            pending = chance.random() < 0.4
            try:
                order = marketplace.place_order(
                    shop.slug,
                    [Basket(sku, chance.randrange(1, 3)) for sku in skus],
                    status="pending" if pending else "paid",
                    shipping_cents=chance.randrange(0, 2000),
                )
            except ControlRefused:
                self.counts["orders refused"] += 1
                placed += 1
                continue
            placed += 1
            self.counts["orders"] += 1
            if chance.random() < 0.1:
                later.append((now + chance.uniform(9, 20), shop.slug, order.id, "cancelled"))
            if pending:
                later.append((now + chance.uniform(1, 8), shop.slug, order.id, "paid"))
        marketplace.close()
