"""A whole hub for tests: real servers, real processes, simulators; stores are cheap and never share anything.

One cell serves a whole test process. Each test makes stores of its own in it, with accounts of their own on both
simulators, so tests neither wait for nor disturb each other.
"""

import base64
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import requests
import yaml
from cryptography.fernet import Fernet

from hub.db import open_pool
from hub.ledger import Ledger
from hub.marketplaces import adapter
from hub.runtime.embedded import Postgres, Valkey
from hub.settings import Settings
from hub.simulators import marketplace as marketplace_simulator
from hub.simulators import vtex as vtex_simulator
from hub.simulators.control import Truth, VtexControl
from hub.simulators.marketplace_control import MarketplaceControl, SellerAccount, ShownSku
from hub.simulators.serving import in_thread
from hub.stores import Registry, SecretBox, Store

ROOT = Path(__file__).resolve().parent.parent
PROFILES = {"sandbox-sync": "sync", "sandbox-lot": "lot", "sandbox-replace": "full-replace"}
CATEGORIES = ("MC-130", "MC-210")
"""Leaves of the sandbox that demand no attribute."""

_numbers = itertools.count(1)


PATIENCE = 60.0
"""Seconds until something that must become true counts as missing. It bounds failures only."""


def until(what: Callable[[], Any], *, seconds: float = PATIENCE, why: str | Callable[[], str] = "") -> Any:
    """What `what` answers, once that is truthy; fails with `why`, as it is then, after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        if time.monotonic() > deadline:
            message = (why() if callable(why) else why) or "it did not happen in time"
            raise AssertionError(f"{message}; last seen: {answer!r}")
        time.sleep(0.02)


@dataclass
class Shop:
    """One store of a test: its registration, its VTEX account and its account at the marketplace."""

    cell: "Cell"
    store: Store
    token: str
    account: str
    seller: SellerAccount
    affiliate: str = "MKP"

    @property
    def slug(self) -> str:
        return self.store.slug

    @property
    def intake_url(self) -> str:
        return f"{self.cell.intake_url}/{self.token}"

    # -- VTEX
    def grow(self, count: int, **spec: Any) -> list[str]:
        """Make SKUs; their ids. Not announced unless `notify=True`."""
        first = int(spec.pop("first_id", next(_numbers) * 1000))
        spec = {"category_ids": [1], "price": [9990, 9990], "stock": [37, 37], **spec}
        self.cell.vtex.grow(self.account, count, first_id=first, channels=[1], **spec)
        return [str(first + number) for number in range(count)]

    def change(self, sku: str, *, notify: Any = True, **fields: Any) -> None:
        self.cell.vtex.change(self.account, int(sku), notify=notify, **fields)

    def notify(self, body: Mapping[str, Any], path: str = "") -> requests.Response:
        """POST a notification as VTEX would."""
        return requests.post(f"{self.intake_url}{path}", json=body, timeout=10)

    def modified(self, key: str, **flags: Any) -> requests.Response:
        """The usual notification with these flags (sku, price, stock, removed, active)."""
        names = {
            "sku": "HasStockKeepingUnitModified",
            "price": "PriceModified",
            "stock": "StockModified",
            "removed": "HasStockKeepingUnitRemovedFromAffiliate",
            "active": "IsActive",
        }
        body: dict[str, Any] = {"IdSku": key, "An": self.account, "IdAffiliate": self.affiliate, "IsActive": True}
        for name in names.values():
            body.setdefault(name, False)
        body.update({names[name]: value for name, value in flags.items()})
        answer = self.notify(body)
        assert answer.status_code == 200, answer.text
        return answer

    def truth(self, sku: str) -> Truth:
        return self.cell.vtex.truth(self.account, 1)[sku]

    def vtex_calls(self, operation: str) -> list[dict[str, Any]]:
        """What VTEX was asked for this account: sku, simulation, sku_ids, …"""
        return self.cell.vtex.journal(account=self.account, operation=operation)

    # -- the marketplace
    def shown(self, sku: str) -> ShownSku | None:
        return self.cell.marketplace.shown(self.slug).get(sku)

    def all_shown(self) -> dict[str, ShownSku]:
        return self.cell.marketplace.shown(self.slug)

    def published(self, *skus: str, seconds: float = PATIENCE) -> None:
        """Announce SKUs and wait until the marketplace shows each with price and stock."""
        for sku in skus:
            self.modified(sku, sku=True)
        for sku in skus:
            self.shows(sku, seconds=seconds)

    def shows(self, sku: str, *, seconds: float = PATIENCE, **values: Any) -> ShownSku:
        """Wait until the marketplace shows the SKU as active, equal to VTEX, or with these values."""

        def agreed() -> ShownSku | None:
            shown = self.shown(sku)
            if shown is None:
                return None
            wanted = values
            if not wanted:
                truth = self.truth(sku)
                stock = truth.stock if truth.sellable else 0
                wanted = {"state": "active", "price_cents": truth.price, "stock": stock}
            return shown if all(getattr(shown, name) == value for name, value in wanted.items()) else None

        return until(agreed, seconds=seconds, why=f"{self.slug} does not show {sku} as wanted ({values})")

    # -- the hub
    def row(self, context: str, key: str) -> dict[str, Any] | None:
        """The row of `states`, with what is remembered beside it."""
        return self.cell.one(
            """
            select s.work::text, s.status, s.code, s.attempts, s.asked, s.answered, s.looks, s.due_at, s.answered_at,
                   a.problems, a.parked_on, a.why, a.ticket, a.confirmed, a.intent
            from states s left join answers a using (store, context, key)
            where s.store = %s and s.context = %s and s.key = %s
            """,
            self.store.id,
            context,
            key,
        )

    def status(self, context: str, key: str, wanted: str, *, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until a row has come to rest (or to wait) in this status; the row."""

        def there() -> dict[str, Any] | None:
            row = self.row(context, key)
            return row if row and row["status"] == wanted and row["work"] not in ("p", "h") else None

        row = until(
            there, seconds=seconds, why=lambda: f"{self.slug}.{context} {key} is not {wanted}: {self.row(context, key)}"
        )
        assert isinstance(row, dict)
        return row

    def quiet(self, *, seconds: float = PATIENCE, answered: bool = False) -> None:
        """Wait until nothing of this store is pending or held; with `answered` nothing waits for its lot either."""
        busy = "(work in ('p', 'h') or status = 'waiting')" if answered else "work in ('p', 'h')"
        until(
            lambda: not self.cell.all(f"select 1 from states where store = %s and {busy} limit 1", self.store.id),
            seconds=seconds,
            why=f"{self.slug} does not come to rest",
        )

    def told(self, key: str, code: str | None = None) -> list[dict[str, Any]]:
        """What was logged about a key, oldest first."""
        rows = self.cell.all(
            "select operation, direction, code, status, problems, source, translated, destination, params"
            " from interactions where store = %s and key = %s order by at, id",
            self.store.id,
            key,
        )
        return [row for row in rows if code is None or row["code"] == code]

    def calls(self, **conditions: Any) -> list[Any]:
        """What the marketplace heard from this store."""
        return self.cell.marketplace.journal(account=self.slug, **conditions)

    def last_call(self) -> int:
        """Number of the last call that the marketplace heard from this store; `calls(after=…)` gives those since."""
        return max((call.number for call in self.calls()), default=0)

    def writes(self, *, after: int = 0) -> list[Any]:
        """The calls of this store that change something at the marketplace."""
        return [call for call in self.calls(after=after) if call.method != "GET"]

    def binding(self, sku: str) -> dict[str, Any] | None:
        """The stored pair of a SKU."""
        return self.cell.one(
            "select remote_id, state, link from bindings where store = %s and sku = %s", self.store.id, sku
        )

    def map_category(self, category: str, remote: str) -> None:
        """A category mapping as `hub mappings import` makes it, without the release."""
        self.cell.do(
            """
            insert into mappings (store, category, remote, version) values (%s, %s, %s, nextval('mapping_version'))
            on conflict (store, category) do update set remote = excluded.remote, version = excluded.version
            """,
            self.store.id,
            category,
            remote,
        )


WITHOUT_LOOKS: Mapping[str, Any] = {"look_again": []}
"""Settings of a store that reads nothing a second time by itself: for tests that count who was asked, and when."""


@dataclass
class Cell:
    """The running hub."""

    settings: Settings
    env: dict[str, str]
    box: SecretBox
    vtex: VtexControl
    marketplace: MarketplaceControl
    directory: Path
    intake_url: str = ""
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    shops: list[Shop] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = open_pool(self.settings.database_url, self.settings.schema, name="tests", max_size=4)
        self.registry = Registry(self.pool, self.box)
        self.ledger = Ledger(self.pool, slot=999)

    def requests_seen(self) -> int:
        """How many requests intake and simulators received so far."""
        return requests_counted(self.intake_url) + self.vtex.requests_seen() + self.marketplace.requests_seen()

    # -- processes
    def start(self, name: str, *command: str) -> None:
        """Start a process of the hub; one of this name that a failed test left is ended before."""
        if name in self.processes:
            self.stop(name)
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "hub.cli", *command],
                env=self.env,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def stop(self, name: str, number: int = signal.SIGTERM, *, seconds: float = 15.0) -> None:
        child = self.processes.pop(name)
        child.send_signal(number)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def start_intake(self) -> None:
        port = self.intake_url.rpartition(":")[2]
        self.start("intake", "intake", "--port", port)

    def start_worker(self, name: str, lane: str) -> None:
        self.start(name, "worker", "--pool", "all", "--lane", lane)

    def wait_ready(self, *, workers: int = 2) -> None:
        """Wait until the intake answers and so many workers have registered."""
        alive = "select 1 from workers where until > now() and name not like 'sweep%%' having count(*) >= %s"
        until(lambda: _ready(self.intake_url), seconds=180, why="the intake is not ready")
        until(lambda: self.all(alive, workers), seconds=180, why="no workers")

    def stop_all(self, *, seconds: float = 8.0) -> None:
        """Ask every process to end, all at once; kill those that have not after so long."""
        for child in self.processes.values():
            child.send_signal(signal.SIGTERM)
        for child in self.processes.values():
            try:
                child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.processes.clear()

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    # -- database
    def all(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with self.pool.connection() as db:
            cursor = db.execute(query, values)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def one(self, query: str, *values: Any) -> dict[str, Any] | None:
        rows = self.all(query, *values)
        return rows[0] if rows else None

    def do(self, query: str, *values: Any) -> None:
        with self.pool.connection() as db:
            db.execute(query, values)

    # -- queues
    def dead_letters(self, slug: str, context: str) -> list[str]:
        """The keys that the dead-letter queue of a store and context shows, without taking them away."""
        from tasks.app import dead_queue

        with redis.Redis.from_url(self.settings.broker_url) as broker:
            letters = broker.lrange(f"{self.settings.prefix}:{dead_queue(slug, context)}", 0, -1)
        bodies = [base64.b64decode(json.loads(letter)["body"]) for letter in letters]
        return [str(json.loads(body)["key"]) for body in bodies]

    # -- stores
    def shop(
        self,
        marketplace: str = "sandbox-sync",
        *,
        account: str | None = None,
        affiliate: str = "MKP",
        settings: Mapping[str, Any] | None = None,
        dials: Mapping[str, Any] | None = None,
        mapped: bool = True,
        polls: bool = False,
    ) -> Shop:
        """A new store: VTEX account (or an existing one), seller account, registration, mapping of category 1."""
        number = next(_numbers)
        slug = f"s{number}-{PROFILES.get(marketplace, marketplace)}"[:30]
        new_account = account is None
        account = account or f"acc{number}"
        key, token = f"vtexappkey-{account}-ABCDEF", f"secret-{account}"
        if new_account:
            self.vtex.open_account(
                account, key, token, categories=[{"id": 1, "name": "Casa"}, {"id": 2, "name": "Sem mapa"}]
            )
        webhook = _webhook(marketplace)
        signing = {"webhook_secret": f"webhook-{slug}-secret"} if _signed(webhook) else {}
        seller = self.marketplace.open_account(
            slug, PROFILES.get(marketplace, "sync"), **{**signing, **dict(dials or {})}
        )
        store, url_token = self.registry.add(
            slug=slug,
            account=account,
            affiliate=affiliate,
            sales_channel=1,
            marketplace=marketplace,
            who="tests",
            settings={
                "vtex_url": f"{self.vtex.base_url}/{{account}}",
                "marketplace_url": seller.url,
                "hub_url": self.intake_url,
                "look_again": [1.0, 2.0],
                "poll_orders_seconds": 1.0 if polls else 3600.0,
                "result_timer_seconds": 2.0,
                "marketplace_limit": {"rate": 1000.0, "burst": 1000},
                **webhook,
                **dict(settings or {}),
            },
            credentials={"vtex": {"app_key": key, "app_token": token}, "marketplace": _secrets(seller) | signing},
            marketplaces=[marketplace],
        )
        self.vtex.put_affiliate(account, affiliate, sales_channel=1, endpoint=f"{self.intake_url}/{url_token}")
        self.marketplace.turn(slug, webhook_url=f"{self.intake_url}/{url_token}/events")
        shop = Shop(self, store, url_token, account, seller, affiliate)
        if mapped:
            shop.map_category("1", CATEGORIES[0])
        until(lambda: self._serving(slug), why=f"no worker serves {slug}")
        self.shops.append(shop)
        return shop

    def close_shops(self, kept: int = 0) -> None:
        """Remove all stores but the first `kept`: a store nobody looks at any more would go on working."""
        registered = {store.slug for store in self.registry.all()} if len(self.shops) > kept else set()
        while len(self.shops) > kept:
            shop = self.shops.pop()
            if shop.slug in registered:
                self.registry.remove(shop.slug, "tests", "its test has ended")

    def _serving(self, slug: str) -> bool:
        answer = requests.post(
            f"{self.intake_url}/{self.registry.token(self.registry.get(slug).id)}", data=b"{}", timeout=5
        )
        return answer.status_code == 400  # known token, unreadable body


def _secrets(seller: SellerAccount) -> dict[str, str]:
    found = {"token": seller.token, "refresh_token": seller.refresh_token}
    found |= {"client_id": seller.client_id, "client_secret": seller.client_secret}
    return {name: value for name, value in found.items() if value}


def _webhook(marketplace: str) -> dict[str, Any]:
    webhook = adapter(marketplace).manifest.webhook
    if webhook is None:
        return {}
    from dataclasses import asdict

    return {"webhook": asdict(webhook)}


def _signed(settings: Mapping[str, Any]) -> bool:
    return "webhook" in settings and settings["webhook"]["scheme"] != "none"


def quick_queues(path: Path, changed: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """The checkout's queues.yaml with short waits, for tests; `changed` may change more of it."""
    tree = yaml.safe_load((ROOT / "queues.yaml").read_text())
    tree["circuit"] |= {"open_seconds": 1.5, "longest_seconds": 6.0}
    tree["sweep"] |= {"every_seconds": 0.2, "lease_seconds": 3.0, "heartbeat_seconds": 0.5, "spread_seconds": 0.5}
    tree["vtex"] |= {"rate": 2000.0, "burst": 2000}
    tree["marketplace"] |= {"rate": 2000.0, "burst": 2000}
    if changed:
        changed(tree)
    path.write_text(yaml.safe_dump(tree))
    return path


def held_place() -> socket.socket:
    """An address that nobody else is given until it is closed: other tests, and connections going out, take free ports.

    An intake may listen there nevertheless, and again after it was killed.
    """
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    place.bind(("127.0.0.1", 0))
    return place


@contextmanager
def running_cell(
    valkey: Valkey,
    postgres: Postgres,
    database_url: str,
    directory: Path,
    *,
    plan: str = "test",
    broker_url: str | None = None,
    queues: Callable[[dict[str, Any]], None] | None = None,
    workers: bool = True,
) -> Iterator[Cell]:
    """Start everything; stop everything. `plan`: `test` lets a key die within a second, `demo` within ten.

    `broker_url`: a broker other than Valkey. `queues` may change the settings' tree before anything starts.
    `workers`: without them somebody else has to do their part.
    """
    with ExitStack() as stack:
        intake, nobody = (stack.enter_context(closing(held_place())).getsockname()[1] for _ in range(2))
        vtex_url = stack.enter_context(in_thread(vtex_simulator.app(vtex_simulator.World(seed=7))))
        market_url = stack.enter_context(marketplace_simulator.served(marketplace_simulator.World(seed=7)))
        env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/tmp"),  # noqa: S108 – only passed on
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": valkey.url,
            "DATABASE_URL": database_url,
            "HUB_KEY": Fernet.generate_key().decode(),
            "HUB_PREFIX": f"t{os.getpid()}-{next(_numbers)}",
            "HUB_QUEUES": str(quick_queues(directory / "queues.yaml", queues)),
            "HUB_PLAN": plan,
            **({"HUB_BROKER_URL": broker_url} if broker_url else {}),
            "HUB_SPOOL": str(directory / "spool"),
        }
        env["HUB_PUBLIC_URL"] = f"http://127.0.0.1:{intake}"
        env["HUB_API_URL"] = f"http://127.0.0.1:{nobody}"  # where nobody listens
        cell = Cell(
            Settings.load(env=env),
            env,
            SecretBox.from_env(env),
            VtexControl(vtex_url),
            MarketplaceControl(market_url),
            directory,
            intake_url=env["HUB_PUBLIC_URL"],
        )
        try:
            cell.start_intake()
            for lane in ("first", "more") if workers else ():
                cell.start_worker(lane, lane)
            cell.start("sweep", "sweep")
            cell.wait_ready(workers=2 if workers else 0)
            yield cell
        finally:
            cell.stop_all()
            cell.pool.close()


def requests_counted(intake_url: str) -> int:
    """What an intake says that it received or refused; 0 while it is away."""
    try:
        page = requests.get(f"{intake_url}/metrics", timeout=5).text
    except requests.RequestException:
        return 0
    counted = ("hub_intake_received_total", "hub_intake_refused_total")
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(counted)))


def _ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=2).status_code == 200
    except requests.RequestException:
        return False
