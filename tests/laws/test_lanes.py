"""Lanes that contexts share, claims that cross, versions that know leases only: law 2 by keys of the database."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from hub.db import conninfo
from hub.ledger import NOTICES_AND_ENQUEUE, enqueue_parameters
from hub.model import Ask
from hub.outcome import Done
from tests.cell import until
from tests.laws.books import STORE, Books


def while_open(
    books: Books, url: str, first: str, values: tuple[Any, ...], then: Callable[[], Any], *, waits: bool
) -> Any:
    """What `then` answers when a transaction that has said `first` is open as it begins, and commits a little later."""
    answers: list[Any] = []
    with psycopg.connect(conninfo(url, "hub", name="slow")) as slow:
        slow.execute(first, values)
        thread = threading.Thread(target=lambda: answers.append(then()))
        thread.start()
        if waits:
            _until_somebody_waits(books)
        else:
            thread.join(60)
        slow.commit()
    thread.join(60)
    assert answers, "it is waiting still, or it raised"
    return answers[0]


def _until_somebody_waits(books: Books) -> None:
    waiters = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    until(lambda: books.sql(waiters), why="nobody waits")


def test_a_settle_that_waits_for_an_intake_sees_what_it_asked(books: Books, database: str) -> None:
    books.ask("7", "8")
    claim = books.claim()
    asks = enqueue_parameters((), [Ask(STORE, "price", "7", "vtex")], 3)
    settled = while_open(books, database, NOTICES_AND_ENQUEUE, asks, lambda: books.settle(claim, Done()), waits=True)
    assert not settled.fenced
    assert settled.wake == {(STORE, "price")}
    assert (books.row("7")["work"], books.row("8")["work"]) == ("p", "i")
    books.assert_conserved()


def test_an_expiry_that_waits_for_an_intake_frees_every_key(books: Books, database: str) -> None:
    books.ask("7", "8")
    books.claim(seconds=10.0)
    books.pass_time(100.0)
    asks = enqueue_parameters((), [Ask(STORE, "price", "7", "vtex")], 3)
    freed = while_open(books, database, NOTICES_AND_ENQUEUE, asks, books.ledger.expire, waits=True)
    assert freed == 2
    books.assert_conserved()


def test_a_settle_that_asks_for_missing_rows_meets_an_intake_that_makes_them_without_a_deadlock(
    books: Books, database: str
) -> None:
    """The settle used to lock what exists (stock) and to make what is missing (price) afterwards, against the order."""
    books.ask("7", context="catalog")
    books.ask("7", context="stock")
    claim = books.claim("catalog")
    make = (
        "insert into states (store, context, key, work, asked, pending_since) values (%s, 'price', '7', 'p', 1, now())"
    )
    follow = Done((Ask(STORE, "price", "7", "catalog"), Ask(STORE, "stock", "7", "catalog")))
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    before = books.sql(deadlocks)
    answers: list[Any] = []
    with psycopg.connect(conninfo(database, "hub", name="intake")) as intake:
        intake.execute(make, (STORE,))
        settling = threading.Thread(target=lambda: answers.append(books.settle(claim, follow)))
        settling.start()
        _until_somebody_waits(books)
        intake.execute("set local lock_timeout = '5s'")
        intake.execute("select from states where context = 'stock' and key = '7' for update")  # the next in its order
        intake.commit()
    settling.join(60)
    assert answers
    assert not answers[0].fenced
    assert books.sql(deadlocks) == before


def test_a_key_whose_sibling_is_just_being_taken_is_left_to_the_other(books: Books, database: str) -> None:
    books.ask("7", "8", context="price")
    books.ask("7", context="stock")
    lock = "select from states where context = 'stock' and key = %s for update"
    claim = while_open(books, database, lock, ("7",), lambda: books.try_claim("price"), waits=False)
    assert set(claim.items) == {"8"}


def test_the_database_itself_refuses_two_holders_of_a_lane(books: Books) -> None:
    books.ask("7", context="price")
    books.claim("price")
    books.ask("7", context="stock")
    assert books.try_claim("stock") is None
    with pytest.raises(psycopg.errors.UniqueViolation):
        books.sql("update states set work = 'h', lane = 'offer' where context = 'stock'")


OLD_CLAIM = (
    "insert into leases (store, lane, key, claim) values (%s, 'offer', '7', 99) on conflict do nothing returning key"
)


def test_an_older_version_leases_no_key_that_a_newer_one_holds(books: Books) -> None:
    books.ask("7", context="price")
    claim = books.claim("price")
    assert books.sql(OLD_CLAIM, STORE) == []
    books.settle(claim, Done())
    assert books.sql(OLD_CLAIM, STORE) == [("7",)]


def test_a_newer_version_takes_no_key_that_an_older_one_leases(books: Books) -> None:
    books.sql(OLD_CLAIM, STORE)
    books.ask("7", "8", context="price")
    assert set(books.claim("price").items) == {"8"}


def test_an_older_sweep_that_ends_a_newer_claim_frees_its_keys(books: Books, database: str) -> None:
    books.ask("7", "8")
    claim = books.claim()
    plain = conninfo(database, "hub", name="older").replace("-c hub.claims=rows", "")
    with psycopg.connect(plain, autocommit=True) as older:
        older.execute("delete from claims where id = %s", (claim.id,))
    assert (books.row("7")["work"], books.row("7")["attempts"]) == ("p", 1)
    assert books.settle(claim, Done()).fenced
    books.assert_conserved()


def test_a_newer_sweep_ends_the_claim_of_an_older_version(books: Books) -> None:
    books.ask("7")
    books.sql(
        "insert into claims (id, worker, store, context, until) overriding system value"
        " values (99, 1, %s, 'price', now() - interval '1 s')",
        STORE,
    )
    books.sql(OLD_CLAIM, STORE)
    books.sql("update states set work = 'h', claim = 99, claimed = asked where key = '7'")
    assert books.ledger.expire() == 1
    assert books.row("7")["work"] == "p"
    assert books.sql("select count(*) from leases") == [(0,)]


def test_an_intent_is_refused_when_the_claim_is_gone_and_committed_while_it_is_there(books: Books) -> None:
    books.ask("7")
    claim = books.claim(seconds=10.0)
    intents = [("price", "7", str(uuid.uuid4()), {"price": 1})]
    assert books.ledger.intend(claim, intents) == {"7"}
    books.pass_time(100.0)
    books.ledger.expire()
    assert books.ledger.intend(claim, intents) == frozenset()
