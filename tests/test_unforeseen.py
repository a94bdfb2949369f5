"""What follows something in the background survives an error that nobody foresaw, and says that it came."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet

from hub.db import open_pool
from hub.links import Links
from hub.settings import Settings
from hub.stores import SecretBox
from hub.unforeseen import Unforeseen
from tasks.intake import KnownStores
from tasks.worker import Alarms, Heart
from tests.cell import ROOT, quick_queues, until


class Shaky:
    """Answers what it is given, one after the other, the last one for ever; an error is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, *_: object) -> Any:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_same_error_is_told_once_with_its_type_and_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    unforeseen = Unforeseen(logging.getLogger("hub.test"))
    for error in (KeyError("a token"), KeyError("another"), ValueError("a third")):
        unforeseen.tell("following", error)
    told = [record.getMessage().strip() for record in caplog.records]
    assert told == ["following: unexpected KeyError", "following: unexpected ValueError"]


def test_an_alarm_that_raises_keeps_no_other_one_from_ringing(caplog: pytest.LogCaptureFixture) -> None:
    alarms, rung = Alarms(), threading.Event()
    alarms.ring(0.0, Shaky(KeyError("pair")))
    alarms.ring(0.01, rung.set)
    assert rung.wait(10), "the thread of the alarms has ended"
    assert "an alarm: unexpected KeyError" in caplog.text


def test_a_heart_goes_on_beating_whatever_is_raised_by_a_beat_or_by_what_follows_it() -> None:
    class Books:
        """A ledger whose first beats fail in ways that it does not translate."""

        join = Shaky(1)
        beat = Shaky(RuntimeError("a pool that is closed"), True)
        leave = Shaky(None)

    books: Any = Books()
    broken, followed = Shaky(KeyError("context")), Shaky(None)
    heart = Heart(books, "w", lease=100.0, every=0.01)
    heart.on_beat += [broken, followed]
    heart.start()
    try:
        until(lambda: books.beat.asked > 3 and followed.asked > 3, why="the heart has stopped")
        assert broken.asked > 3
        assert heart.remaining() > 50
    finally:
        heart.stop()


def test_an_intake_goes_on_reading_the_registry_after_an_error_that_nobody_foresaw() -> None:
    stores = KnownStores(Shaky(RuntimeError("unreadable"), 7), Shaky({}), every=0.01)
    stores.start()
    try:
        until(lambda: stores.doors is not None, why="the registry is not read any more")
    finally:
        stores.stop()


@pytest.fixture
def env(database: str, redis_url: tuple[str, str], tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONUNBUFFERED": "1",
        "REDIS_URL": redis_url[0],
        "HUB_PREFIX": redis_url[1],
        "DATABASE_URL": database,
        "HUB_KEY": Fernet.generate_key().decode(),
        "HUB_QUEUES": str(quick_queues(tmp_path / "queues.yaml")),
        "HUB_PUBLIC_URL": "http://127.0.0.1:1",
    }


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set search_path to hub")
        yield connection


def test_a_process_goes_on_following_the_registry_after_an_error_that_nobody_foresaw(
    env: dict[str, str], db: psycopg.Connection
) -> None:
    settings, box = Settings.load(env=env), SecretBox.from_env(env)
    with open_pool(settings.database_url, settings.schema, name="links") as pool:

        class Pool:
            """The pool, which raises what no door translates for as long as it is `torn`."""

            torn = 0

            def connection(self) -> Any:
                if self.torn:
                    self.torn += 1
                    raise RuntimeError("a thread could not be started")
                return pool.connection()

        shaky: Any = Pool()
        links = Links(settings, shaky, box)
        links.watch()
        try:
            shaky.torn = 1
            until(lambda: shaky.torn > 2, why="it does not look again")
            shaky.torn = 0
            links.registry.add(
                slug="acme-mkt",
                account="acme",
                affiliate="MKP",
                sales_channel=1,
                marketplace="sandbox-sync",
                who="tests",
                settings={"marketplace_url": "http://127.0.0.1:1"},
                credentials={"vtex": {"app_key": "vtexappkey-acme-ABCDEF", "app_token": "secret"}, "marketplace": {}},
                marketplaces=["sandbox-sync"],
            )
            until(lambda: "acme-mkt" in links.names().values(), why="the new store is not seen")
        finally:
            links.close()


def test_a_sweep_goes_on_while_postgresql_refuses_its_heartbeat(
    env: dict[str, str], db: psycopg.Connection, tmp_path: Path
) -> None:
    db.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$"
    )
    db.execute("create trigger refuse_join before insert on workers for each row execute function refuse()")
    log = tmp_path / "sweep.log"
    with log.open("wb") as out:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "hub.cli", "sweep"],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "does not let this sweep begin" in log.read_text(), seconds=75, why="it did not say why it waits")
        db.execute("drop trigger refuse_join on workers")
        until(lambda: db.execute("select from workers").fetchone() is not None, seconds=75, why="it did not begin")
        db.execute("create trigger refuse_beat before update on workers for each row execute function refuse()")
        until(lambda: "no heartbeat: PostgreSQL refused" in log.read_text(), seconds=75, why="it did not say so")
        db.execute("drop trigger refuse_beat on workers")
        begun = db.execute("select now()").fetchone()
        until(
            lambda: (
                db.execute("select from workers where until > %s::timestamptz + interval '3 seconds'", begun).fetchone()
                is not None
            ),
            seconds=75,
            why="it does not beat any more",
        )
        assert sweep.poll() is None, log.read_text()
    finally:
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(60) == 0
