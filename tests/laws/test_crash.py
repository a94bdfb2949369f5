"""PostgreSQL dies with the end of its log unwritten: claims and settles that did not wait for the disk are forgotten.

The server is durable and dies with all of its processes at once, while its log is known to be behind.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hub.contexts import CONTEXTS
from hub.contexts.step import Item, Step
from hub.crew import Crew
from hub.db import migrate
from hub.ledger import Ledger
from hub.outcome import Done, Ending
from hub.ports import Link
from hub.reconcile import Reconciler
from hub.runtime.embedded import Postgres, alive
from hub.settings import ContextSettings
from hub.transport import calling
from tests.fakes import a_world
from tests.laws.books import PATIENT, STORE, Books, Calm

REFERENCE = "11111111-1111-4111-8111-111111111111"


class Machine:
    """A durable server that may lose its power."""

    def __init__(self, files: Path) -> None:
        self.server = Postgres(files).start()
        migrate(self.server.url)
        with psycopg.connect(self.server.url, autocommit=True) as db:
            db.execute("alter system set wal_writer_delay = '10s'")  # nothing but a commit that waits writes the log
            db.execute("select pg_reload_conf()")
        self.books = Books(self.server.url)
        self.numbers = itertools.count()

    def position(self) -> tuple[int, int]:
        """Up to where the log is on the disk, and up to where it goes."""
        found = self.books.sql("select pg_current_wal_flush_lsn() - '0/0', pg_current_wal_insert_lsn() - '0/0'")
        return int(found[0][0]), int(found[0][1])

    def lose_power(self) -> None:
        """Every process of the server dies at once; then it comes back with what was on the disk."""
        first = self.server.pid
        assert first is not None
        others = [int(pid) for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split()]
        for pid in (first, *others):
            os.kill(pid, signal.SIGKILL)
        self.server.kill()
        deadline = time.monotonic() + 60
        while any(alive(pid) for pid in others):
            assert time.monotonic() < deadline, "a process of the server does not die"
            time.sleep(0.01)
        self.server.start()
        while True:
            try:
                self.books.sql("select 1")
            except psycopg.Error:
                assert time.monotonic() < deadline + 60, "the server does not come back"
                time.sleep(0.05)
            else:
                return

    def unwritten(self, move: Callable[[str], Any]) -> tuple[str, Any]:
        """Do it with one key after the other until the log ends behind what was done; the key and the answer."""
        for _ in range(200):
            key = str(next(self.numbers))
            self.books.ask(key, context="load")
            before = self.position()[1]
            answer = move(key)
            if self.position()[0] <= before:
                return key, answer
        pytest.fail("every claim was on the disk at once")

    def forgotten(self, move: Callable[[str], Any]) -> tuple[str, Any]:
        """As `unwritten`, and then the power is lost. Where the server wrote its log meanwhile, with the next key."""
        for _ in range(5):
            key, answer = self.unwritten(move)
            self.lose_power()
            if self.books.row(key, "load")["work"] == "p":
                return key, answer
        pytest.fail("every claim was on the disk before the power was lost")

    def close(self) -> None:
        self.books.close()
        self.server.stop()


@pytest.fixture
def machine(server_directory: Path) -> Iterator[Machine]:
    made = Machine(server_directory / f"machine-{time.monotonic_ns()}")
    yield made
    made.close()


def test_a_claim_that_a_crash_forgets_ends_before_it_writes_anything(machine: Machine) -> None:
    books = machine.books
    key, forgotten = machine.forgotten(lambda _: books.claim("load", limit=1))
    assert list(forgotten.items) == [key]
    second = books.claim("load", limit=1)
    assert list(second.items) == [key]
    assert not books.ledger.holds(forgotten)
    assert not books.ledger.intend(forgotten, [("load", key, REFERENCE, {"page": 1})])
    assert books.settle(forgotten, Done()).fenced == (("load", key),)
    assert books.ledger.holds(second)
    books.settle(second, Done())
    books.assert_conserved()


@pytest.mark.parametrize("by", ["holds", "intend"])
def test_a_claim_that_may_write_survives_every_crash(machine: Machine, by: str) -> None:
    books = machine.books
    key, claim = machine.unwritten(lambda _: books.claim("load", limit=1))
    if by == "holds":
        assert books.ledger.holds(claim)
    else:
        assert books.ledger.intend(claim, [("load", key, REFERENCE, {"page": 1})])
    machine.lose_power()
    assert books.try_claim("load", limit=1) is None
    assert books.row(key, "load")["work"] == "h"
    assert books.ledger.holds(claim)


def test_a_settle_that_a_crash_forgets_costs_one_more_attempt(machine: Machine) -> None:
    books = machine.books

    for number in range(200):
        key = str(number)
        books.ask(key, context="load")
        claim = books.claim("load", limit=1, seconds=100)
        assert books.ledger.holds(claim)
        before = machine.position()[1]
        books.settle(claim, Done())
        assert books.row(key, "load")["status"] == "done"
        if machine.position()[0] <= before:
            machine.lose_power()
            if books.row(key, "load")["work"] == "h":  # the server did not write its log meanwhile
                break
    else:
        pytest.fail("every settle was on the disk at once")
    assert books.try_claim("load", limit=1) is None
    books.pass_time(101)
    assert books.ledger.expire() == 1
    again = books.claim("load", limit=1)
    assert list(again.items) == [key]
    books.settle(again, Done())
    assert (books.row(key, "load")["status"], books.row(key, "load")["attempts"]) == ("done", 0)
    books.assert_conserved()


def test_of_two_that_read_the_same_key_around_a_crash_only_the_one_with_the_newer_value_writes(
    machine: Machine,
) -> None:
    books, truth = machine.books, [1]
    written: list[tuple[str, int]] = []
    crashed: list[str] = []

    def read(link: Link, item: Item) -> tuple[Item, int]:
        seen = truth[0]
        if not crashed and machine.position()[0] <= at[0]:
            machine.lose_power()
            if books.row(item.key, "load")["work"] != "p":
                return item, seen  # the server wrote its log meanwhile: nothing was forgotten
            crashed.append(item.key)
            truth[0] += 1
            other = threading.Thread(target=attempt)  # a second worker finds the key pending and does all of it
            other.start()
            other.join()
        return item, seen

    def decide(facts: tuple[Item, int]) -> Sequence[Step]:
        item, seen = facts
        return [Put(item.key, seen)]

    def write(link: Link, step: Step) -> Sequence[Ending]:
        assert isinstance(step, Put)
        written.append((step.key, step.value))
        return [Ending("load", step.key, Done())]

    class Put(Step):
        """A write without a reference of its own."""

        value: int

        def __init__(self, key: str, value: int) -> None:
            super().__init__(key=key, contexts=("load",))
            object.__setattr__(self, "value", value)

    settings = {"load": ContextSettings("catalog", PATIENT, first_claim=1, more_claim=1)}
    known = {"load": replace(CONTEXTS["load"], read=read, decide=decide, write=write)}
    link = replace(a_world().link, store=STORE)
    crew = Crew(1)

    def attempt() -> None:
        ledger = Ledger(books.pool)
        ledger.join("worker", 1_000_000)
        Reconciler(ledger, settings, crew, Calm(), Calm(), known=known).attempt(link, "load", first=True)

    at = [0]
    ledger_only = Ledger(books.pool)
    ledger_only.join("first", 1_000_000)
    first = Reconciler(ledger_only, settings, crew, Calm(), Calm(), known=known)
    for number in range(200):
        books.ask(str(number), context="load")
        at[0] = machine.position()[1]
        first.attempt(link, "load", first=True)
        if crashed:
            break
    crew.close()
    assert crashed, "every claim was on the disk at once"
    assert [value for key, value in written if key == crashed[0]] == [2]
    assert books.row(crashed[0], "load")["work"] == "i"
    books.assert_conserved()


def test_a_process_that_was_given_up_and_joined_anew_begins_no_write_of_what_it_held_before(machine: Machine) -> None:
    books = machine.books
    ledger = Ledger(books.pool)
    ledger.join("worker", 1_000_000)
    left: list[float] = []

    def read(link: Link, item: Item) -> Item:
        left.append(calling.get().remaining())
        ledger.join("worker", 1_000_000)  # as the heart does when its beat finds the process given up
        left.append(calling.get().remaining())
        return item

    known = {"load": replace(CONTEXTS["load"], read=read, decide=lambda item: [Ending("load", item.key, Done())])}
    settings = {"load": ContextSettings("catalog", PATIENT, first_claim=1, more_claim=1)}
    crew = Crew(1)
    books.ask("1", context="load")
    link = replace(a_world().link, store=STORE)
    Reconciler(ledger, settings, crew, Calm(), Calm(), known=known).attempt(link, "load", first=True)
    crew.close()
    assert left[0] > 0
    assert left[1] == 0.0
