"""The whole hub for a benchmark: every process apart, the simulators too, and what each of them costs.

`running` gives a `tests.cell.Cell`; only its simulators are processes of their own, so that what stands for VTEX and
the marketplace shares no interpreter with whoever measures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.fernet import Fernet

from hub.db import migrate
from hub.runtime.embedded import Postgres, Valkey, scratch
from hub.settings import Settings
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import MarketplaceControl
from hub.stores import SecretBox
from tests.cell import ROOT, Cell, free_port, until

TICKS = os.sysconf("SC_CLK_TCK")
UNLIMITED = 100_000.0
"""Calls a second: a budget that nothing here can use up."""


@contextmanager
def _simulator(module: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", f"hub.simulators.{module}", "--port", "0", "--seed", "7"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = child.stdout.readline() if child.stdout else ""
        yield child, line.rpartition(" at ")[2].strip()
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@dataclass
class Whole(Cell):
    """A cell that can tell the CPU seconds of each of its processes."""

    others: Mapping[str, int] = field(default_factory=dict)

    def cpu(self) -> dict[str, float]:
        """CPU seconds by process so far; PostgreSQL with all its children."""
        pids = dict(self.others) | {name: child.pid for name, child in self.processes.items()}
        return {name: sum(_ticks(one) for one in _family(pid)) for name, pid in pids.items()}


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by process between two readings."""
    return {name: round(after[name] - before.get(name, 0.0), 2) for name in after}


def _ticks(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])) / TICKS


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def shipped_queues(path: Path, **changes: Mapping[str, Any]) -> Path:
    """The shipped queues.yaml, only VTEX's budget out of the way (and what `changes` names)."""
    tree = yaml.safe_load((ROOT / "queues.yaml").read_text(encoding="utf-8"))
    tree["vtex"] |= {"rate": UNLIMITED, "burst": 100_000}
    for name, change in changes.items():
        tree[name] |= change
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@contextmanager
def running(*, workers: bool = True, **changes: Mapping[str, Any]) -> Iterator[Whole]:
    """Servers, simulators, intake, sweep, and with `workers` both workers: everything a process of its own."""
    with ExitStack() as stack:
        files = stack.enter_context(scratch("hub-bench-"))
        valkey = stack.enter_context(Valkey(files / "valkey"))
        postgres = stack.enter_context(Postgres(files / "postgres"))
        migrate(postgres.url)
        vtex, vtex_url = stack.enter_context(_simulator("vtex"))
        market, market_url = stack.enter_context(_simulator("marketplace"))
        env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", str(files)),
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": valkey.url,
            "DATABASE_URL": postgres.url,
            "HUB_KEY": Fernet.generate_key().decode(),
            "HUB_PREFIX": "bench",
            "HUB_QUEUES": str(shipped_queues(files / "queues.yaml", **changes)),
        }
        env["HUB_PUBLIC_URL"] = f"http://127.0.0.1:{free_port()}"
        env["HUB_API_URL"] = f"http://127.0.0.1:{free_port()}"  # where nobody listens
        whole = Whole(
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
            whole.start_intake()
            whole.start("sweep", "sweep")
            if workers:
                start_workers(whole)
            yield whole
        finally:
            for name in list(whole.processes):
                whole.stop(name)
            whole.pool.close()


def start_workers(whole: Whole) -> None:
    """Both workers, ready."""
    whole.start_worker("worker first", "first")
    whole.start_worker("worker more", "more")
    until(
        lambda: whole.all("select 1 from workers where until > now() and name not like 'sweep%%' having count(*) > 1"),
        seconds=60,
        why="no workers",
    )


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
