"""The real processes of a run, kept alive by the hub's own supervisor: nobody restarts anything by hand.

Valkey and PostgreSQL stand behind doors that can be cut (`chaos.proxy`), and so do the two intakes, taken in turn by
whoever calls. The driver itself speaks to PostgreSQL and the simulators directly, so that what it sees is not bent by
what it does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import requests
import yaml
from cryptography.fernet import Fernet

from chaos import proxy
from chaos.plan import Plan, Sizes, process_names, worker_names
from chaos.rabbit import RabbitMQ
from hub.db import migrate, open_pool, translated
from hub.errors import HubError
from hub.links import Links
from hub.runtime.embedded import Postgres, Valkey, free_ports
from hub.runtime.supervisor import Process, Stage, Supervisor
from hub.settings import QUEUES_FILE, Settings
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import MarketplaceControl, SellerAccount
from hub.stores import SecretBox, Store

PROFILES = (("sandbox-sync", "sync"), ("sandbox-lot", "lot"), ("sandbox-replace", "full-replace"))
LEASE_SECONDS = 6.0
QUICK = {
    "circuit": {"open_seconds": 2, "longest_seconds": 8},
    "sweep": {
        "every_seconds": 0.5, "lease_seconds": LEASE_SECONDS, "heartbeat_seconds": 2, "spread_seconds": 2,
        "gate_try_seconds": 10,
    },
    "vtex": {"rate": 1000, "burst": 1000, "total_seconds": 5, "connect_seconds": 2, "obeyed_seconds": 15},
    "marketplace": {"rate": 500, "burst": 500, "total_seconds": 5, "connect_seconds": 2, "obeyed_seconds": 15},
}  # fmt: skip
"""What a run changes in queues.yaml: the same rules, shorter waits."""
PLAN = {
    "delays": [1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 8, 8],
    "slow": [10],
    "unknown": [1, 2, 4, 8],
    "jitter": 0.2,
    "recheck": 45,
}
ROOT = Path(__file__).resolve().parent.parent


class RunFailed(HubError):  # noqa: N818 – named by what happens next, see hub.errors
    """The run cannot go on for a reason that is none of the hub's laws; the text says which."""


@dataclass(slots=True)
class Shop:
    """One store as the driver knows it. `app_token`: what VTEX lets in now."""

    number: int
    store: Store
    account: str
    affiliate: str
    seller: SellerAccount
    app_key: str
    app_token: str
    webhook_secret: str | None

    @property
    def slug(self) -> str:
        """Its name in the hub, which is its account's name at the marketplace too."""
        return self.store.slug


@dataclass(slots=True)
class World:
    """Everything that runs. Made by `start`; `stop` is the supervisor's.

    `broker`: the URL of a broker of the user's own, which nothing harms; `rabbit`: one of ours, started already.
    """

    directory: Path
    plan: Plan
    supervisor: Supervisor
    broker: str = ""
    rabbit: RabbitMQ | None = None
    env: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    shops: list[Shop] = field(default_factory=list)
    forget: bool = False
    _loop: asyncio.AbstractEventLoop | None = None
    _direct: Settings | None = None

    # -- start

    async def start(self) -> None:
        """Start everything and wait until it is ready."""
        self._loop = asyncio.get_running_loop()
        valkey, postgres = Valkey(self.directory / "valkey"), Postgres(self.directory / "postgres")
        servers = [self._kept(valkey), self._kept(postgres)]
        self.supervisor.add(*servers)
        await self.supervisor.wait_ready()
        await asyncio.to_thread(migrate, postgres.url, "hub")
        names = (
            "vtex", "marketplace", "intake-1", "intake-2", "api", "control", "door-valkey", "door-postgres",
            "door-rabbit", "door-intake",
        )  # fmt: skip
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.env = self._environment(valkey.url, postgres.url)
        direct = {**self.env, "REDIS_URL": valkey.url, "DATABASE_URL": postgres.url}
        if self.rabbit is not None:
            direct["HUB_BROKER_URL"] = self.rabbit.url
        self._direct = Settings.load(env=direct)
        self.supervisor.add(*self._peers(valkey.port, postgres.port))
        await self.supervisor.wait_ready()
        self.supervisor.add(*self._hub())
        await self.supervisor.wait_ready()

    def _kept(self, server: Valkey | Postgres) -> Process:
        """A server that is started again however often it is killed; Valkey without its data when that was asked."""
        process = server.process()
        before = process.prepare

        def prepare() -> None:
            if before is not None:
                before()
            if self.forget and isinstance(server, Valkey):
                self.forget = False
                for left in (server.home / "data").iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

        return replace(process, prepare=prepare, tries=_FOR_EVER)

    def _environment(self, valkey_url: str, postgres_url: str) -> dict[str, str]:
        queues = self.directory / "queues.yaml"
        tree: dict[str, Any] = yaml.safe_load(Path(QUEUES_FILE).read_text(encoding="utf-8"))
        for block, values in QUICK.items():
            tree[block] |= values
        tree["plans"]["chaos"] = PLAN
        queues.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        key = self.directory / "hub.key"
        key.touch(mode=0o600)
        key.write_text(Fernet.generate_key().decode())
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
        url = _through(self.rabbit.url, self.ports["door-rabbit"]) if self.rabbit is not None else self.broker
        broker = {"HUB_BROKER_URL": url} if url else {}
        return kept | broker | {
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": _through(valkey_url, self.ports["door-valkey"]),
            "DATABASE_URL": _through(postgres_url, self.ports["door-postgres"]),
            "HUB_KEY_FILE": str(key),
            "HUB_PREFIX": "chaos",
            "HUB_PLAN": "chaos",
            "HUB_QUEUES": str(queues),
            "HUB_DIRECTORY": str(self.directory / "place"),
            "HUB_PUBLIC_URL": f"http://127.0.0.1:{self.ports['door-intake']}",
            "HUB_API_URL": f"http://127.0.0.1:{self.ports['api']}",
        }  # fmt: skip

    def _peers(self, valkey_port: int, postgres_port: int) -> list[Process]:
        ports = self.ports

        def simulator(name: str) -> Process:
            return Process(
                name=name,
                argv=[
                    sys.executable, "-m", f"hub.simulators.{name}", "--port", str(ports[name]),
                    "--seed", str(self.plan.seed),
                ],
                env=self.env,
                cwd=ROOT,
                ready=f"http://127.0.0.1:{ports[name]}/_control/journal?limit=1",
                stop_stage=Stage.PEERS,
                restart=False,
            )  # fmt: skip

        doors = {
            "valkey": (ports["door-valkey"], str(valkey_port)),
            "postgres": (ports["door-postgres"], str(postgres_port)),
            "intake": (ports["door-intake"], f"{ports['intake-1']},{ports['intake-2']}"),
        }
        if self.rabbit is not None:
            doors["rabbit"] = (ports["door-rabbit"], str(self.rabbit.port))
        argv = [sys.executable, "-m", "chaos.proxy", "--control", str(ports["control"])]
        for name, (port, targets) in doors.items():
            argv += ["--door", f"{name}={port}:{targets}"]
        return [
            simulator("vtex"),
            simulator("marketplace"),
            Process(
                name="proxy", argv=argv, env=self.env, cwd=ROOT, ready=lambda _: _listens(ports["control"]),
                stop_stage=Stage.PEERS, restart=False,
            ),
        ]  # fmt: skip

    def _hub(self) -> list[Process]:
        skew = dict(self.plan.skew)

        def ours(name: str, *argv: str, stage: Stage, ready: str | None = None) -> Process:
            env = dict(self.env)
            if name in skew:
                env |= {"PYTHONPATH": str(ROOT / "chaos" / "clock"), "CHAOS_CLOCK_AHEAD": str(skew[name])}
            if name.startswith("intake"):
                env["HUB_DIRECTORY"] = str(self.directory / name)
            return Process(
                name=name, argv=[sys.executable, "-m", "hub.cli", *argv], env=env, cwd=ROOT, ready=ready,
                stop_stage=stage, stop_within=15.0, tries=_FOR_EVER, clean_env=True,
            )  # fmt: skip

        def door(name: str, command: str, path: str) -> Process:
            port = str(self.ports[name])
            ready = f"http://127.0.0.1:{port}{path}"
            return ours(name, command, "--port", port, stage=Stage.DOORS, ready=ready)

        return [
            door("intake-1", "intake", "/readyz"),
            door("intake-2", "intake", "/readyz"),
            door("api", "api", "/livez"),
            *(
                ours(name, "worker", "--pool", "all", "--lane", name.partition("-")[0], stage=Stage.WORKERS)
                for name in worker_names(self.plan.sizes)
            ),
            ours("sweep-1", "sweep", stage=Stage.WORKERS),
            ours("sweep-2", "sweep", stage=Stage.WORKERS),
        ]

    # -- the driver's own doors, which nothing cuts

    @property
    def settings(self) -> Settings:
        """The hub's settings with the servers' own addresses."""
        if self._direct is None:
            raise RunFailed("the world was not started")
        return self._direct

    @property
    def sizes(self) -> Sizes:
        """How much of everything."""
        return self.plan.sizes

    def desk(self, name: str) -> Links:
        """The hub's registry and doors on a small pool of the driver's own; close it with `close_desk`."""
        pool = open_pool(self.settings.database_url, self.settings.schema, name=name, max_size=3)
        return Links(self.settings, pool, SecretBox.from_env(self.env))

    def vtex(self) -> VtexControl:
        """A new client of the simulated VTEX's control routes."""
        return VtexControl(f"http://127.0.0.1:{self.ports['vtex']}")

    def marketplace(self) -> MarketplaceControl:
        """A new client of the simulated marketplaces' control routes."""
        return MarketplaceControl(f"http://127.0.0.1:{self.ports['marketplace']}")

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the hub's books; waits up to two minutes for a PostgreSQL that is away."""
        ends = time.monotonic() + 120
        while True:
            try:
                with psycopg.connect(
                    self.settings.database_url, autocommit=True, connect_timeout=5, options="-c search_path=hub"
                ) as db:
                    return db.execute(query.encode(), values).fetchall()
            except psycopg.OperationalError as away:
                if time.monotonic() > ends:
                    raise RunFailed(f"PostgreSQL does not come back: {type(away).__name__}") from None
                time.sleep(0.1)

    # -- harm, by the id of exactly our children

    def send(self, name: str, sent: signal.Signals) -> bool:
        """Send a signal to a process that the supervisor started; False while it is not running."""
        pid = self.supervisor.pid(name)
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.killpg(pid, sent)
            return True
        return False

    def pid(self, name: str) -> int | None:
        """The process's id now."""
        return self.supervisor.pid(name)

    def cut(self, mode: proxy.Mode, door: str) -> None:
        """Turn a door."""
        proxy.order(self.ports["control"], mode, door)

    def starts(self) -> dict[str, int]:
        """Process → how often the supervisor started it."""
        others = ("valkey", "postgres", "vtex", "marketplace", "proxy", "api")
        return {name: self.supervisor.starts(name) for name in (*others, *process_names(self.sizes))}

    def spooled(self) -> int:
        """Bytes that an intake has put aside on its own disk and not brought to PostgreSQL yet."""
        found = (path for name in ("intake-1", "intake-2") for path in (self.directory / name).rglob("*"))
        return sum(path.stat().st_size for path in found if path.is_file() and "spool" in path.as_posix())

    def ready(self, name: str) -> bool:
        """Does this process run and answer?"""
        return self.supervisor.is_ready(name)

    def any_intake_ready(self) -> bool:
        """Would one of the intakes take a notification now?"""
        return any(_ok(f"http://127.0.0.1:{self.ports[name]}/readyz") for name in ("intake-1", "intake-2"))


def close_desk(links: Links) -> None:
    """Close what `World.desk` opened."""
    links.close()
    links.pool.close()


def until(what: Callable[[], object], *, seconds: float, why: str, every: float = 0.2) -> float:
    """Wait for it; the seconds that took. `RunFailed` with `why` when it does not come."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            raise RunFailed(why)
        time.sleep(every)
    return time.monotonic() - began


def patiently(what: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Do it, again while PostgreSQL is away: what an operator would do."""
    ends = time.monotonic() + seconds
    while True:
        try:
            with translated():
                what()
        except HubError as error:
            if time.monotonic() > ends:
                raise RunFailed(f"an operator's command does not succeed: {error}") from None
            time.sleep(0.5)
        else:
            return


def _through(url: str, port: int) -> str:
    """The same URL, through a door."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{place}:{port}"))


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _ok(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code == 200
    except requests.RequestException:
        return False


def marketplace_secrets(seller: SellerAccount, webhook_secret: str | None) -> dict[str, str]:
    """A store's credentials for its marketplace, as the hub is told them."""
    return {"token": seller.token, **({"webhook_secret": webhook_secret} if webhook_secret else {})}


_FOR_EVER = 1_000_000
