"""Several of everything: two sweeps, another version's tables, a machine that has nothing but URLs and a key."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from hub.db import MIGRATIONS, migrate
from hub.ledger import NOTICES_AND_ENQUEUE, enqueue_parameters
from hub.model import Ask
from hub.runtime.embedded import Postgres, Valkey
from tasks.app import make_app, queue_for
from tests.cell import ROOT, Cell, running_cell, until
from tests.conftest import copied
from tests.scenarios.test_ord import place, reaches

FUTURE = """
alter table stores add column mood text not null default 'calm';
alter table states add column weight int not null default 0;
alter table answers add column omens jsonb not null default '{}';
alter table orders add column omens jsonb not null default '{}';
alter table bindings add column omens jsonb not null default '{}';
alter table runs add column omens jsonb not null default '{}';
alter table lots add column omens jsonb not null default '{}';
alter table claims add column omens jsonb not null default '{}';
alter table workers add column omens jsonb not null default '{}';
alter table leases add column omens jsonb not null default '{}';
alter table gates add column omens jsonb not null default '{}';
alter table counters add column foreseen bigint not null default 0;
alter table notices add column omens jsonb;
alter table interactions add column omens jsonb;
create table oracles (id bigint generated always as identity primary key, said text);
"""


@pytest.fixture(scope="module")
def fleet(
    valkey: Valkey, postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    copies = copied(postgres, migrated_template)
    with running_cell(valkey, postgres, next(copies), tmp_path_factory.mktemp("fleet")) as running:
        yield running


def hub(cell: Cell, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hub.cli", *arguments],
        env=cell.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def conserved(cell: Cell) -> bool:
    return all(law.holds for law in cell.ledger.check())


# ---------------------------------------------------------------- two sweeps


def test_two_sweeps_do_nothing_twice(fleet: Cell) -> None:
    fleet.start("sweep 2", "sweep")
    until(lambda: len(fleet.all("select 1 from workers where name like 'sweep%%' and until > now()")) == 2)
    shop = fleet.shop(polls=True)
    skus = shop.grow(12)
    shop.published(*skus)
    for sku in skus[:2]:
        fleet.marketplace.break_sku(shop.slug, sku, 503)
        shop.change(sku, price=555)
    for sku in skus[:2]:
        shop.status("price", sku, "dead", seconds=60)
    dead = sorted(skus[:2])
    until(lambda: sorted(fleet.dead_letters(shop.slug, "price")) == dead, why="the dead are not shown")
    before = time.monotonic()
    until(lambda: time.monotonic() > before + 3 or sorted(fleet.dead_letters(shop.slug, "price")) != dead)
    assert sorted(fleet.dead_letters(shop.slug, "price")) == dead

    # The sweep that showed them goes; whoever is left takes away what is dead no more.
    fleet.stop("sweep")
    for sku in skus[:2]:
        fleet.marketplace.heal_sku(shop.slug, sku)
    hub(fleet, "dead-letters", "discard", "--store", shop.slug, "--reason", "healed", "--yes")
    until(lambda: not fleet.dead_letters(shop.slug, "price"), why="letters of nobody are still shown")
    fleet.start("sweep", "sweep")

    # A load is counted once, an order polled by both is created once.
    order = place(shop, skus[7])
    hub(fleet, "load", shop.slug, "--no-check")
    assert fleet.one("select count(*) as n, count(distinct key) as keys from run_keys") == {"n": 12, "keys": 12}
    reaches(shop, order, "approved")
    assert fleet.vtex.orders(shop.account)[order].creations == 1
    assert fleet.one("select count(*) as n from runs where kind = 'load' and state = 'done'") == {"n": 1}
    shop.quiet()
    until(lambda: conserved(fleet), why=str(fleet.ledger.check()))
    fleet.stop("sweep 2")


def test_two_sweeps_wake_for_a_backlog_without_workers_up_to_the_cap(fleet: Cell) -> None:
    shop = fleet.shop()
    fleet.start("sweep 2", "sweep")
    fleet.stop("first")
    fleet.stop("more")
    try:
        asks = [Ask(shop.store.id, "stock", str(number), "vtex") for number in range(500)]
        with fleet.pool.connection() as db:
            db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), asks, 0))
        cap = fleet.settings.contexts["stock"].cap
        names = {queue_for(fleet.settings, shop.slug, "stock", lane) for lane in ("first", "more")}
        with redis.Redis.from_url(fleet.settings.broker_url) as broker:

            def waiting() -> int:
                messages = [m for name in names for m in broker.lrange(f"{fleet.settings.prefix}:{name}", 0, -1)]
                count = sum(f"('{shop.slug}', 'stock')".encode() in message for message in messages)
                assert count <= cap
                return count

            until(lambda: waiting() > cap // 2, why="nobody wakes for the backlog")
            enough = time.monotonic() + 3  # many turns of both sweeps
            until(lambda: waiting() and time.monotonic() > enough)
    finally:
        fleet.start_worker("first", "first")
        fleet.start_worker("more", "more")
        fleet.stop("sweep 2")
    shop.quiet(seconds=90)


# ---------------------------------------------------------------- another version


def test_processes_work_on_beside_a_newer_version_of_the_hub(fleet: Cell, tmp_path: Path) -> None:
    shop = fleet.shop(polls=True)
    known, fresh = shop.grow(2)
    shop.published(known)
    first = place(shop, known)
    reaches(shop, first, "approved")
    newer = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, newer)
    (newer / "9000_oracles.sql").write_text(FUTURE)
    assert migrate(fleet.settings.database_url, fleet.settings.schema, folder=newer) == ["9000_oracles.sql"]

    # What a newer version writes into trees that this one reads.
    fleet.do(
        'update stores set settings = settings || \'{"mood": {"of": "tomorrow"}}\' || jsonb_build_object(\'pricing\','
        " coalesce(settings -> 'pricing', '{}') || '{\"phase_of_the_moon\": true}') where id = %s",
        shop.store.id,
    )
    stranger = fleet.shop()
    fleet.do("update stores set marketplace = 'agora' where id = %s", stranger.store.id)
    fleet.do("select nextval('registry_version')")
    later = fleet.shop()
    later.modified("1", price=True)
    until(lambda: (later.row("price", "1") or {}).get("work") == "s", seconds=60)  # workers have read the registry
    stranger.modified("1", price=True)
    fleet.do("update answers set confirmed = confirmed || '{\"omen\": 1}' where context = 'order' and key = %s", first)
    fleet.do("update cursors set value = (value::jsonb || '{\"omen\": 1}')::text where store = %s", shop.store.id)
    with fleet.pool.connection() as db:  # a context that this version does not know
        ask = Ask(shop.store.id, "divination", known, "vtex")
        db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), [ask], 0))
    app = make_app(fleet.settings)
    for args, kwargs in (
        ((shop.slug, "divination"), {}),
        ((shop.slug, "stock", "and more"), {"newer": [1, {"deep": None}]}),
    ):
        app.send_task("hub.attempt", args=args, kwargs=kwargs, queue=f"{shop.slug}.stock")
    app.close()

    shop.change(known, price=4321)
    shop.shows(known)
    shop.published(fresh)
    second = place(shop, fresh)
    reaches(shop, second, "approved")
    shop.modified(known, stock=True)
    fleet.do("update states set work = 'p' where context = 'order' and key = %s and work = 'i'", first)
    until(lambda: (fleet.one("select work::text from states where key = %s", first) or {})["work"] not in ("p", "h"))
    assert shop.row("order", first)["status"] == "done"  # type: ignore[index]  # it is there
    row = shop.row("divination", known)
    assert row is not None
    assert (row["work"], row["asked"], row["answered"], row["attempts"]) == ("p", 1, 0, 0)
    # An old process that has to start anew, of an old machine, does so; so does an old command.
    fleet.stop("first")
    fleet.start_worker("first", "first")
    hub(fleet, "store", "list")
    shop.change(known, price=4322)
    shop.shows(known, seconds=60)
    for name in ("first", "more", "sweep", "intake"):
        assert "unexpected" not in fleet.log(name), name
        assert "cannot be used" not in fleet.log(name), name
    # What an old command saves keeps what only the newer version understands.
    fleet.registry.configure(shop.slug, json.loads(fleet.registry.get(shop.slug).settings.model_dump_json()), who="t")
    kept = fleet.one("select settings -> 'mood' ->> 'of' as mood from stores where id = %s", shop.store.id)
    assert kept == {"mood": "tomorrow"}
    waiting = stranger.row("price", "1")
    assert waiting is not None
    assert (waiting["work"], waiting["attempts"]) == ("p", 0)
    fleet.registry.remove(stranger.slug, "t", "the test is over")
    fleet.do("delete from states where context = 'divination'")
    fleet.do("delete from counters where context = 'divination'")


# ---------------------------------------------------------------- a sweep alone


def test_a_sweep_that_is_told_to_end_while_postgresql_is_away_does_not_wait_for_it(
    fleet: Cell, server_directory: Path, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    with Postgres(server_directory / f"away-{time.monotonic_ns()}", durable=False) as server:
        migrate(server.url)
        with said.open("wb") as out:
            sweep = subprocess.Popen(
                [sys.executable, "-m", "hub.cli", "sweep"],
                env={**fleet.env, "DATABASE_URL": server.url, "HUB_PREFIX": f"{fleet.settings.prefix}-alone"},
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            until(lambda: "sweeping every" in said.read_text(), why="the sweep does not begin")
            server.stop()
            until(lambda: "expire: PostgreSQL" in said.read_text(), why="the sweep does not notice")
            sweep.terminate()
            # Every part of a turn would wait five seconds for a connection.
            assert sweep.wait(20) == 0
        finally:
            sweep.kill()
            sweep.wait()


# ---------------------------------------------------------------- another machine


def test_a_machine_with_the_urls_and_the_key_joins_and_works(fleet: Cell, tmp_path: Path) -> None:
    shop = fleet.shop()
    (sku,) = shop.grow(1)
    shop.published(sku)
    home = tmp_path / "home"
    home.mkdir()
    needed = {name: fleet.env[name] for name in ("DATABASE_URL", "REDIS_URL", "HUB_KEY")}
    # The prefix and short waits belong to this test's servers, which others share.
    given = {
        **needed,
        "HUB_BROKER_URL": fleet.settings.broker_url,
        "HUB_PREFIX": fleet.settings.prefix,
        "HUB_PLAN": "test",
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
    }

    def there(*command: str, **env: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "hub.cli", *command],
            env=env,
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )

    port = fleet.intake_url.rpartition(":")[2]
    stopped = list(fleet.processes)
    for name in stopped:
        fleet.stop(name)
    processes = [there("worker", **given), there("sweep", **given), there("intake", "--port", port, **given)]
    try:
        until(lambda: len(fleet.all("select 1 from workers where until > now()")) >= 3, seconds=180)
        until(lambda: fleet_ready(fleet), seconds=60)
        shop.change(sku, price=6543, stock=9)
        shop.shows(sku, seconds=60)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=30)
        fleet.start_intake()
        fleet.start_worker("first", "first")
        fleet.start_worker("more", "more")
        fleet.start("sweep", "sweep")
    for missing in needed:
        with there("worker", "--lane", "first", **{k: v for k, v in given.items() if k != missing}) as refused:
            said = refused.communicate(timeout=30)[1].decode()
        assert refused.returncode not in (0, None)
        assert missing in said
        assert "Traceback" not in said


def fleet_ready(cell: Cell) -> bool:
    import requests

    try:
        return requests.get(f"{cell.intake_url}/readyz", timeout=2).status_code == 200
    except requests.RequestException:
        return False
