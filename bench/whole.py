"""The whole hub for a benchmark: every process apart, the simulators too, and what each of them costs.

`running` gives a `tests.cell.Cell`; only its simulators are processes of their own, so that what stands for VTEX and
the marketplace shares no interpreter with whoever measures. `laid_out` is the same before anything of the hub runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml
from cryptography.fernet import Fernet

from bench.measure import cpu_seconds
from hub import loads
from hub.db import migrate
from hub.rules import Rules
from hub.runtime.embedded import Postgres, Valkey, scratch
from hub.settings import Settings
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import MarketplaceControl
from hub.stores import SecretBox
from tests.cell import ROOT, Cell, Shop, held_place, until

UNLIMITED = 100_000.0
"""Calls a second: a budget that nothing here can use up."""
LOOKS = list(Rules().look_again)
"""Seconds to the second looks as a store has them that says nothing of them; those of `tests.cell` are far shorter."""
WORKERS = {"worker first": "first", "worker more": "more"}
"""Process → lane."""


@dataclass
class Whole(Cell):
    """A cell that can tell the CPU seconds of each of its processes."""

    others: Mapping[str, int] = field(default_factory=dict)

    def cpu(self) -> dict[str, float]:
        """CPU seconds by process so far; PostgreSQL with all its children."""
        pids = dict(self.others) | {name: child.pid for name, child in self.processes.items()}
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    def start_workers(self) -> None:
        """Both workers, ready; the intake is running."""
        for name, lane in WORKERS.items():
            self.start_worker(name, lane)
        self.wait_ready(workers=len(WORKERS))


Kind = TypeVar("Kind", bound=Whole)


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by process between two readings."""
    return {name: round(after[name] - before.get(name, 0.0), 2) for name in after}


def shipped_queues(path: Path, changes: Mapping[str, Any]) -> Path:
    """The shipped queues.yaml, only VTEX's budget out of the way (and what `changes` names, at any depth)."""
    tree = yaml.safe_load((ROOT / "queues.yaml").read_text(encoding="utf-8"))
    tree["vtex"] |= {"rate": UNLIMITED, "burst": 100_000}
    _merge(tree, changes)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            _merge(tree.setdefault(name, {}), value)
        else:
            tree[name] = value


@contextmanager
def laid_out(kind: type[Kind]) -> Iterator[Kind]:
    """Servers, simulators and settings, everything a process of its own; what is started of the hub ends with it."""
    with ExitStack() as stack:
        files = stack.enter_context(scratch("hub-bench-"))
        valkey = stack.enter_context(Valkey(files / "valkey"))
        postgres = stack.enter_context(Postgres(files / "postgres"))
        migrate(postgres.url)
        vtex, vtex_url = stack.enter_context(_simulator("vtex", files))
        market, market_url = stack.enter_context(_simulator("marketplace", files))
        env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", str(files)),
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": valkey.url,
            "DATABASE_URL": postgres.url,
            "HUB_KEY": Fernet.generate_key().decode(),
            "HUB_PREFIX": "bench",
            "HUB_QUEUES": str(shipped_queues(files / "queues.yaml", {})),
            "HUB_SPOOL": str(files / "spool"),
        }
        intake, nobody = (stack.enter_context(closing(held_place())).getsockname()[1] for _ in range(2))
        env["HUB_PUBLIC_URL"] = f"http://127.0.0.1:{intake}"
        env["HUB_API_URL"] = f"http://127.0.0.1:{nobody}"  # where nobody listens
        whole = kind(
            Settings.load(env=env),
            env,
            SecretBox.from_env(env),
            VtexControl(vtex_url),
            MarketplaceControl(market_url),
            files,
            intake_url=env["HUB_PUBLIC_URL"],
            others={
                "VTEX simulator": vtex.pid,
                "marketplace simulator": market.pid,
                "postgres": postgres.pid or 0,
                "valkey": valkey.pid or 0,
            },
        )
        try:
            yield whole
        finally:
            whole.stop_all(seconds=20)
            whole.pool.close()


@contextmanager
def running() -> Iterator[Whole]:
    """All of it: intake, sweep and both workers at work."""
    with laid_out(Whole) as whole:
        whole.start_intake()
        whole.start("sweep", "sweep")
        whole.start_workers()
        yield whole


@contextmanager
def _simulator(name: str, files: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with (files / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", f"hub.simulators.{name}", "--port", "0", "--seed", "7"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
        )
    try:
        line = child.stdout.readline() if child.stdout else ""
        url = line.partition("ready at ")[2].strip()
        if not url:
            raise RuntimeError(f"the simulator of {name} did not start: {line!r}")
        yield child, url
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def assortment(shop: Shop, count: int) -> list[str]:
    """So many SKUs of a new account, from id 1 on; nothing is announced."""
    skus: list[str] = []
    while len(skus) < count:
        skus += shop.grow(min(1000, count - len(skus)), first_id=1 + len(skus))
    return skus


def load_ended(whole: Whole, shop: Shop, run: int) -> None:
    """Wait until a load of a store has ended, and all that it made necessary."""
    until(lambda: loads.progress(whole.pool, run).state != "running", seconds=900, why="the load does not end")
    shop.quiet(seconds=300)


def published(whole: Whole, shop: Shop, count: int) -> list[str]:
    """So many SKUs, which the marketplace shows."""
    skus = assortment(shop, count)
    load_ended(whole, shop, loads.start(whole.pool, shop.store.id, who="bench"))
    return skus


def books(whole: Whole, account: str, seller: str) -> list[dict[str, Any]]:
    """Every call that both simulators took for one store, by their own clocks (one machine): SKU, begin, end.

    Times are seconds since the epoch; `sku` is empty for calls about none.
    """
    found = [
        {"sku": _sku_of(entry["operation"], entry["path"], entry["body"]), **_times(entry)}
        for entry in whole.vtex.journal(account=account, limit=100_000)
    ]
    for call in whole.marketplace.journal(account=seller, limit=100_000):
        entry = {"at": call.at, "seconds": call.seconds, "operation": call.operation, "status": call.status}
        found.append({"sku": _sku_of(call.operation, call.path, call.body, call.query), **_times(entry)})
    return found


def _times(entry: Mapping[str, Any]) -> dict[str, Any]:
    end = datetime.fromisoformat(entry["at"]).timestamp()
    return {
        "operation": entry["operation"],
        "status": entry["status"],
        "begin": end - entry["seconds"],
        "end": end,
        "seconds": entry["seconds"],
    }


def _sku_of(operation: str, path: str, body: str, query: str = "") -> str:
    if operation == "simulation":
        return body.partition('"id":')[2].partition('"')[2].partition('"')[0]
    if operation in ("sku", "offer_put"):
        return path.rpartition("/")[2]
    if operation == "listing_find":
        return query.partition("seller_sku=")[2].partition("&")[0]
    if operation in ("price_put", "stock_put", "listing_put"):
        return path.split("/listings/")[1].partition("/")[0]
    return ""
