"""RabbitMQ instead of Redis as the broker: the same hub, the same promises (design 3)."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from chaos.rabbit import RabbitMQ, installed
from hub.runtime.embedded import Postgres, Valkey
from tasks.app import dead_queue, make_app
from tasks.broker import LastingConsumer
from tests.cell import ROOT, Cell, running_cell, until
from tests.conftest import copied
from tests.runtime.waiting import runs

pytestmark = pytest.mark.skipif(not installed(), reason="RabbitMQ is not installed: apt-get install rabbitmq-server")


@pytest.fixture(scope="module")
def rabbit(server_directory: Path) -> Iterator[RabbitMQ]:
    with RabbitMQ(server_directory / "rabbit") as server:
        yield server


@pytest.fixture(scope="module")
def rabbit_cell(
    rabbit: RabbitMQ,
    valkey: Valkey,
    postgres: Postgres,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cell]:
    copies = copied(postgres, migrated_template)
    directory = tmp_path_factory.mktemp("rabbit-cell")
    with running_cell(valkey, postgres, next(copies), directory, broker_url=rabbit.url) as running:
        yield running


def test_a_store_added_at_run_time_is_served_through_rabbitmq(rabbit_cell: Cell, rabbit: RabbitMQ) -> None:
    shop = rabbit_cell.shop("sandbox-replace")
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.change(sku, stock=5)
    shop.shows(sku, stock=5)
    until(lambda: rabbit.queues().get(f"{shop.slug}.stock", (0, 0))[1] > 0, why="nobody consumes the new store's queue")
    shop.quiet()


def test_a_rabbitmq_that_was_killed_is_found_again_and_nothing_is_lost(rabbit_cell: Cell, rabbit: RabbitMQ) -> None:
    shop = rabbit_cell.shop("sandbox-replace")
    skus = shop.grow(3)
    shop.published(*skus)
    rabbit.kill()
    for number, sku in enumerate(skus):
        shop.change(sku, stock=number + 1)
    assert all(child.poll() is None for child in rabbit_cell.processes.values()), "nobody dies of a broker's death"
    rabbit.start()
    for number, sku in enumerate(skus):
        shop.shows(sku, stock=number + 1, seconds=60)
    assert all(child.poll() is None for child in rabbit_cell.processes.values())
    shop.quiet()
    assert all(law.holds for law in rabbit_cell.ledger.check())


def test_workers_that_were_at_work_when_rabbitmq_was_killed_take_wake_ups_again(
    rabbit_cell: Cell, rabbit: RabbitMQ
) -> None:
    shops = [rabbit_cell.shop("sandbox-replace") for _ in range(6)]
    skus = {shop.slug: shop.grow(4) for shop in shops}
    for shop in shops:
        shop.published(*skus[shop.slug])
        rabbit_cell.marketplace.fault("latency", account=shop.slug, seconds=1.0, for_seconds=8.0)
        for sku in skus[shop.slug]:
            shop.change(sku, price=500)
    until(lambda: rabbit_cell.all("select 1 from states where work = 'h'"), why="no worker is at work")
    rabbit.kill()
    for shop in shops:
        for number, sku in enumerate(skus[shop.slug]):
            shop.change(sku, stock=number + 1)
    rabbit.start()
    for shop in shops:
        for number, sku in enumerate(skus[shop.slug]):
            shop.shows(sku, stock=number + 1, price_cents=500, seconds=60)
        shop.quiet()


def test_every_worker_consumes_again_soon_after_a_long_absence_of_rabbitmq(rabbit_cell: Cell, rabbit: RabbitMQ) -> None:
    shop = rabbit_cell.shop("sandbox-replace")
    until(lambda: rabbit.queues().get(f"{shop.slug}.stock", (0, 0))[1] > 0, why="nobody consumes the new store's queue")
    before = {name: consumers for name, (_, consumers) in rabbit.queues().items() if consumers}

    def lost() -> dict[str, int]:
        """How often each worker has said that its broker is away; other tests take it away too."""
        return {name: rabbit_cell.log(name).count("waiting for the broker") for name in ("first", "more")}

    said = lost()
    rabbit.kill()
    until(lambda: all(count > said[name] for name, count in lost().items()), seconds=60, why="nobody noticed")
    rabbit.start()

    def served() -> bool:
        now = rabbit.queues()
        return all(now.get(name, (0, 0))[1] >= consumers for name, consumers in before.items())

    until(served, why="not everybody came back")


def test_a_worker_that_was_killed_leaves_nothing_behind_on_rabbitmq(rabbit_cell: Cell, rabbit: RabbitMQ) -> None:
    shop = rabbit_cell.shop("sandbox-replace")
    skus = shop.grow(5)
    shop.published(*skus)
    shop.quiet()
    rabbit_cell.marketplace.fault("latency", account=shop.slug, seconds=1.0, for_seconds=3.0)
    for sku in skus:
        shop.change(sku, price=500)
    held = "select 1 from states where store = %s and work = 'h'"
    until(lambda: rabbit_cell.all(held, shop.store.id), why="no worker is at work")
    for name, lane in (("first", "first"), ("more", "more")):
        rabbit_cell.stop(name, signal.SIGKILL)
        rabbit_cell.start_worker(name, lane)
    for sku in skus:
        shop.shows(sku, price_cents=500, seconds=60)
    shop.quiet()
    assert not rabbit_cell.all(held, shop.store.id)

    def left() -> dict[str, tuple[int, int]]:
        """Queues of this store with messages that nobody has taken, or that nobody serves."""
        return {
            name: (messages, consumers)
            for name, (messages, consumers) in rabbit.queues().items()
            if name.startswith(f"{shop.slug}.") and (messages or not consumers)
        }

    until(lambda: not left(), why="messages are left on RabbitMQ, or a queue is without a worker")


def test_dead_keys_are_mirrored_in_rabbitmq(rabbit_cell: Cell, rabbit: RabbitMQ) -> None:
    shop = rabbit_cell.shop("sandbox-replace")
    rabbit_cell.vtex.fault("status", "sku", account=shop.account, status=500)
    (sku,) = shop.grow(1)
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "dead")
    until(lambda: rabbit.queues().get(dead_queue(shop.slug, "catalog"), (0, 0))[0] == 1, why="no dead letter")


def test_the_queues_of_a_removed_store_leave_rabbitmq_with_it(rabbit_cell: Cell, rabbit: RabbitMQ) -> None:
    shop, other = rabbit_cell.shop("sandbox-replace"), rabbit_cell.shop("sandbox-replace")
    rabbit_cell.vtex.fault("status", "sku", account=shop.account, status=500)
    (sku,) = shop.grow(1)
    shop.modified(sku, sku=True)
    until(lambda: rabbit.queues().get(dead_queue(shop.slug, "catalog"), (0, 0))[0] == 1, why="no dead letter")
    rabbit_cell.registry.remove(shop.slug, "tests", "it sells no more")
    until(
        lambda: not any(name.startswith(f"{shop.slug}.") for name in rabbit.queues()),
        seconds=75,
        why="queues of a store that nobody has any more",
    )
    assert f"{other.slug}.stock" in rabbit.queues(), "another store's stay"
    log = rabbit_cell.log("sweep")
    assert "removed: " not in log, log


def test_a_worker_waits_for_no_confirmation_of_its_events(rabbit_cell: Cell) -> None:
    app = make_app(rabbit_cell.settings)
    with app.connection_for_write() as wakes:
        assert wakes.transport_options["confirm_publish"], "a wake-up that is lost waits for the sweep"
    consumer = SimpleNamespace(app=app, ensure_connected=lambda conn: conn.ensure_connection())
    with LastingConsumer.connection_for_write(consumer) as events:
        assert events.default_channel.connection.confirm_publish is False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
def test_a_rabbitmq_does_not_outlive_a_killed_parent(server_directory: Path) -> None:
    home = server_directory / "orphan"
    program = f"""
from pathlib import Path
from chaos.rabbit import RabbitMQ

RabbitMQ(Path({str(home)!r})).start()
print("up", flush=True)
input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        ours = _processes_of(home)
        assert {"beam.smp", "epmd"} <= set(ours.values())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    try:
        until(
            lambda: not any(runs(pid) for pid in ours), seconds=60, why="the node outlived the process that started it"
        )
    finally:
        for pid in filter(runs, ours):
            os.kill(pid, signal.SIGKILL)


def _processes_of(home: Path) -> dict[int, str]:
    """Every process whose environment names the broker's directory: its number and what it is called."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(home).encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found
