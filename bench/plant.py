"""A whole hub as an installation runs it, and simulators in processes of their own, for benchmarks that need both.

Stores are stocked by SQL (bindings, listings) instead of by a load, and pending work is put down by the ledger's own
enqueue. Every time comes from the simulators' books: when VTEX changed, when the marketplace showed it.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
import yaml
from cryptography.fernet import Fernet

from bench.measure import cpu_seconds, percentile
from hub.db import migrate, open_pool
from hub.ledger import Ledger
from hub.model import Ask, Urgency
from hub.runtime.embedded import Postgres, Valkey, scratch
from hub.settings import Settings
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import MarketplaceControl
from hub.stores import Registry, SecretBox, Store

ROOT = Path(__file__).resolve().parent.parent
MARKETPLACE = "sandbox-sync"
NO_LIMIT = {"rate": 5000.0, "burst": 5000}


def wait_for(what: Any, *, seconds: float, why: str) -> Any:
    """What `what` answers, once that is truthy; `TimeoutError` with `why` after `seconds`."""
    ends = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        if time.monotonic() > ends:
            raise TimeoutError(f"{why}; last seen: {answer!r}")
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Seller:
    """One store with what it has on both sides; its SKUs are `first` to `first + skus - 1`."""

    store: Store
    url_token: str
    account: str
    first: int
    skus: int

    @property
    def slug(self) -> str:
        """The store's name, which is also its account at the marketplace."""
        return self.store.slug


@dataclass(slots=True)
class Changes:
    """Changes made one after the other, each of another value, so that each can be found on the marketplace."""

    seller: Seller
    field: str
    made: list[tuple[int, int, datetime]] = field(default_factory=list)


class Plant:
    """Servers, simulators and the hub's processes; stores are added with `open`."""

    def __init__(self, valkey: Valkey, postgres: Postgres, files: Path, vtex_url: str, market_url: str) -> None:
        self.files, self.valkey, self.postgres = files, valkey, postgres
        self.vtex, self.marketplace = VtexControl(vtex_url), MarketplaceControl(market_url)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/tmp"),  # noqa: S108 – only passed on
            "REDIS_URL": valkey.url,
            "DATABASE_URL": postgres.url,
            "HUB_KEY": Fernet.generate_key().decode(),
            "HUB_PREFIX": "bench",
            "HUB_PUBLIC_URL": self.url,
            "HUB_API_URL": "http://127.0.0.1:9",
            "HUB_QUEUES": str(files / "queues.yaml"),
        }
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.configure({})
        self.box = SecretBox.from_env(self.env)
        self.pool = open_pool(self.settings.database_url, self.settings.schema, name="bench", max_size=4)
        self.registry = Registry(self.pool, self.box)
        self.ledger = Ledger(self.pool, slot=999)
        self._next_sku = 1
        self._values = itertools.count(1001)

    # -- processes

    def configure(self, changes: Mapping[str, Any]) -> None:
        """The checkout's queues.yaml with `changes` merged in, for the processes started from now on."""
        tree = yaml.safe_load((ROOT / "queues.yaml").read_text(encoding="utf-8"))
        _merge(tree, changes)
        (self.files / "queues.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        self.settings = Settings.load(env=self.env)

    def begin(self, *, lanes: Sequence[str] = ("first", "more"), pools: Sequence[str] = ("all",)) -> None:
        """Start intake, sweep and workers and wait until they are ready."""
        self._start("intake", "intake", "--port", str(self.port))
        self._start("sweep", "sweep")
        chosen = [word for pool in pools for word in ("--pool", pool)]
        for lane in lanes:
            self._start(lane, "worker", *chosen, "--lane", lane)
        wait_for(self._answering, seconds=60, why="the intake is not ready")
        alive = "select count(*) from workers where until > now() and name not like 'sweep%%'"
        wait_for(lambda: self.value(alive) >= len(lanes), seconds=60, why="no workers")

    def end(self) -> None:
        """Stop intake, sweep and workers; nothing of them is left in Redis or the tables of processes."""
        for child in self.children.values():
            child.send_signal(signal.SIGTERM)
        for child in self.children.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.children.clear()
        self.do("update workers set until = now()")
        with self.valkey_client() as client:
            client.flushall()

    def valkey_client(self) -> Any:
        """A client of the broker and the limits."""
        import redis

        return redis.Redis.from_url(self.valkey.url)

    def busy(self, names: Sequence[str]) -> dict[str, float]:
        """CPU seconds of these processes so far."""
        return {name: cpu_seconds(self.children[name].pid) for name in names if name in self.children}

    def _start(self, name: str, *command: str) -> None:
        with (self.files / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", "hub.cli", *command],
                env=self.env,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def _answering(self) -> bool:
        try:
            return requests.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    # -- database

    def do(self, query: str, *values: Any) -> int:
        """One statement; how many rows it touched."""
        with self.pool.connection() as db:
            return db.execute(query, values).rowcount

    def value(self, query: str, *values: Any) -> Any:
        """The first column of the first row."""
        with self.pool.connection() as db:
            row = db.execute(query, values).fetchone()
        return row[0] if row else None

    # -- stores

    def open(
        self,
        slug: str,
        *,
        skus: int,
        shown: bool = True,
        budget_of: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> Seller:
        """A store with `skus` SKUs in VTEX; `shown`: they are listed already, and the hub knows it.

        `budget_of`: name of the seller's account whose budget the marketplace counts it to.
        """
        account, first = slug.replace("-", ""), self._next_sku
        self._next_sku += skus
        self.vtex.open_account(account, "vtexappkey-bench", f"secret-{account}")
        self.vtex.grow(account, skus, first_id=first, channels=[1], price=[9990, 9990], stock=[1, 1])
        seller = self.marketplace.open_account(slug, "sync")
        named = {"account": budget_of} if budget_of else {}
        store, token = self.registry.add(
            slug=slug,
            account=account,
            affiliate="MKP",
            sales_channel=1,
            marketplace=MARKETPLACE,
            who="bench",
            settings={
                "vtex_url": f"{self.vtex.base_url}/{{account}}",
                "marketplace_url": seller.url,
                "hub_url": self.url,
                "poll_orders_seconds": 86_400.0,
                "vtex_limit": NO_LIMIT,
                "marketplace_limit": NO_LIMIT,
                **(settings or {}),
            },
            credentials={
                "vtex": {"app_key": "vtexappkey-bench", "app_token": f"secret-{account}"},
                "marketplace": {"token": seller.token, **named},
            },
        )
        self.vtex.put_affiliate(account, "MKP", sales_channel=1, endpoint=f"{self.url}/{token}")
        self.do(
            "insert into mappings (store, category, remote, version) values (%s, '1', 'MC-130', 1)", store.id
        )  # category 1 of the simulated account
        if shown:
            ids: dict[str, str] = {}
            for begin in range(first, first + skus, 5000):
                ids |= self.marketplace.shelve(slug, begin, min(5000, first + skus - begin))
            self.do(
                "insert into bindings (store, sku, remote_id, state)"
                " select %s, sku, remote, 'published' from unnest(%s::text[], %s::text[]) as b(sku, remote)",
                store.id,
                list(ids),
                list(ids.values()),
            )
        return Seller(store, token, account, first, skus)

    def pend(self, seller: Seller, count: int, context: str = "stock") -> None:
        """`count` pending keys, put down by the ledger's enqueue: those that exist in the simulators come first."""
        keys = [seller.first + number for number in range(min(count, seller.skus))]
        keys += [900_000_000 + number for number in range(count - len(keys))]
        for begin in range(0, count, 2000):
            self.ledger.enqueue(
                [
                    Ask(seller.store.id, context, str(key), "notification", Urgency.NOTIFIED)
                    for key in keys[begin : begin + 2000]
                ]
            )

    def done(self, sellers: Sequence[Seller], contexts: Sequence[str] = ("stock",)) -> int:
        """Keys of these stores that were brought to their end so far, from the ledger's counters."""
        found = self.value(
            "select coalesce(sum(finished), 0) from counters where store = any(%s) and context = any(%s)",
            [seller.store.id for seller in sellers],
            list(contexts),
        )
        return int(found)

    # -- changes in VTEX, seen on the marketplace

    def change_each_second(self, seller: Seller, seconds: float, *, every: float = 1.0, what: str = "stock") -> Changes:
        """Change one SKU each second (in turn, each time to another value) for so long."""
        changes = Changes(seller, what)
        vtex = VtexControl(self.vtex.base_url)  # not shared between threads
        begin = time.monotonic()
        while (turn := len(changes.made)) * every < seconds:
            pause = begin + turn * every - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            sku, value = seller.first + turn % seller.skus, next(self._values)
            changes.made.append((sku, value, vtex.change_at(seller.account, sku, **{what: value})))
        return changes

    def latencies(self, changes: Changes, *, within: float = 30.0) -> list[float]:
        """Seconds from each change in VTEX to its value being shown; infinite for one that never was."""
        shown_as = "price" if changes.field == "price" else "stock"
        ends = time.monotonic() + within
        found: dict[int, float] = {}
        while len(found) < len(changes.made) and time.monotonic() < ends:
            for turn, (sku, value, at) in enumerate(changes.made):
                if turn in found:
                    continue
                history = self.marketplace.sku(changes.seller.slug, str(sku)).history
                for shown in history:
                    if shown.field == shown_as and shown.value == value:
                        found[turn] = (datetime.fromisoformat(shown.at) - at).total_seconds()
                        break
            time.sleep(0.2)
        return [found.get(turn, float("inf")) for turn in range(len(changes.made))]


@dataclass(slots=True)
class Watched:
    """What the workers did meanwhile: keys per second of the busy stores, CPU share of the busiest worker."""

    plant: Plant
    busy: Sequence[Seller]
    names: Sequence[str] = ("first", "more")
    contexts: Sequence[str] = ("stock",)
    rate: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    _began: float = 0.0
    _done: int = 0
    _cpu: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Watched:
        self._done = self.plant.done(self.busy, self.contexts)
        self._cpu = self.plant.busy(self.names)
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self._began
        self.rate = (self.plant.done(self.busy, self.contexts) - self._done) / took
        now = self.plant.busy(self.names)
        self.cpu = {name: (now[name] - before) / took for name, before in self._cpu.items() if name in now}

    @property
    def busiest(self) -> float:
        """CPU of the busiest worker process, 1.0 is one core."""
        return max(self.cpu.values(), default=0.0)


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, in seconds."""
    return percentile(list(values), 0.95)


def together(*tasks: Any) -> list[Any]:
    """Run callables at the same time; their answers in order. The first error is raised."""
    answers: list[Any] = [None] * len(tasks)
    faults: list[BaseException] = []

    def run(place: int, task: Any) -> None:
        try:
            answers[place] = task()
        except BaseException as fault:  # noqa: BLE001 – handed on below
            faults.append(fault)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return answers


@contextmanager
def running_plant(*, latency: float = 0.2) -> Iterator[Plant]:
    """Servers and simulators (each answer `latency` seconds late); the hub's processes are begun by the caller."""
    with ExitStack() as stack:
        files = stack.enter_context(scratch("hub-bench-"))
        valkey = stack.enter_context(Valkey(files / "valkey"))
        postgres = stack.enter_context(Postgres(files / "postgres"))
        migrate(postgres.url)
        vtex = stack.enter_context(_simulator("hub.simulators.vtex", files))
        market = stack.enter_context(_simulator("hub.simulators.marketplace", files))
        plant = Plant(valkey, postgres, files, vtex, market)
        if latency:
            plant.vtex.fault("latency", seconds=latency)
            plant.marketplace.fault("latency", seconds=latency)
        try:
            yield plant
        finally:
            plant.end()
            plant.pool.close()


@contextmanager
def _simulator(module: str, files: Path) -> Iterator[str]:
    with (files / f"{module}.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, "--port", "0"], stdout=subprocess.PIPE, stderr=log, cwd=ROOT
        )
    try:
        assert child.stdout is not None  # noqa: S101 – it was asked for
        line = child.stdout.readline().decode()
        url = line.partition("ready at ")[2].strip()
        if not url:
            raise RuntimeError(f"{module} did not start: {line!r}")
        yield url
    finally:
        child.terminate()
        child.wait(15)


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            _merge(tree.setdefault(name, {}), value)
        else:
            tree[name] = value


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
