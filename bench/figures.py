"""The figures of one machine, on servers of its own: `.venv/bin/python -m bench.figures`.

Notifications that one intake process takes (64 connections, distinct SKUs, durable PostgreSQL), an
initial load and stock changes through the whole hub to the sandbox, memory of each process.
"""

import time
from pathlib import Path

from bench.driver import closed_loop, notifications
from hub import loads
from hub.db import migrate
from hub.runtime.embedded import Postgres, Valkey, scratch
from tests.cell import Cell, running_cell, until

SKUS = 2_000


def resident(cell: Cell) -> dict[str, int]:
    """Resident memory of each process, in MB."""
    found = {}
    for name, child in cell.processes.items():
        lines = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii").splitlines()
        found[name] = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))
    return found


def path(cell: Cell) -> None:
    """An initial load and as many changes, from VTEX to the marketplace."""
    shop = cell.shop("sandbox-replace", settings={"marketplace_limit": {"rate": 5000.0, "burst": 5000}})
    skus = shop.grow(SKUS)
    began = time.monotonic()
    run = loads.start(cell.pool, shop.store.id, who="bench")
    until(lambda: loads.progress(cell.pool, run).state != "running", seconds=600)
    shop.quiet(seconds=300)
    print(f"load: {SKUS / (time.monotonic() - began):.0f} SKUs/s")
    began = time.monotonic()
    cell.vtex.change_many(shop.account, [{"id": int(sku), "stock": 50} for sku in skus])
    until(lambda: all(shown.stock == 50 for shown in shop.all_shown().values()), seconds=600)
    print(f"stock changes, announced to visible: {SKUS / (time.monotonic() - began):.0f}/s")


def door(cell: Cell) -> None:
    """What one intake takes, with nobody working beside it."""
    shop = cell.shop("sandbox-replace")
    for name in ("first", "more", "sweep"):
        cell.stop(name)
    port = int(cell.intake_url.rpartition(":")[2])
    for _ in range(3):
        bodies = notifications(shop.account, shop.affiliate)
        seen = closed_loop("127.0.0.1", port, f"/{shop.token}", bodies, connections=64, seconds=5)
        print(f"intake: {seen.rate:.0f}/s, p50 {seen.p50:.1f} ms, p99 {seen.p99:.1f} ms, answers {seen.statuses}")
    print("conservation:", all(law.holds for law in cell.ledger.check()))


if __name__ == "__main__":
    with scratch("hub-bench-") as files, Valkey(files / "valkey") as valkey, Postgres(files / "postgres") as postgres:
        migrate(postgres.url)
        logs = files / "logs"
        logs.mkdir()
        with running_cell(valkey, postgres, postgres.url, logs) as cell:
            path(cell)
            print("memory in MB:", resident(cell))
            door(cell)
