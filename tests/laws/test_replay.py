"""Replay: planned, paced, resumable, one at a time; what a newer success has overtaken is left alone."""

from __future__ import annotations

import pytest

from hub.errors import Conflict
from hub.ledger import GivenUp
from hub.outcome import Done, Failed
from tasks.replay import Letters, cancel, discard, forecast, letters, start, work_off
from tests.laws.books import STORE, Books


def die(books: Books, *keys: str, context: str = "price") -> None:
    """Let these keys fail until their plan is used up."""
    books.ask(*keys, context=context)
    for _ in range(len(books.plan.delays) + 1):
        books.settle(books.claim(context), Failed("no answer"))
        books.pass_time(max(books.plan.delays))
        books.ledger.ripen()
    assert {row[0] for row in books.sql("select status from states where key = any(%s)", list(keys))} == {"dead"}


def run_of(books: Books) -> tuple[str, dict[str, int]]:
    state, cursor = books.sql("select state, cursor from runs order by id desc limit 1")[0]
    return state, {"sent": cursor.get("sent", 0), "skipped": cursor.get("skipped", 0)}


def begin(books: Books, wanted: Letters | None = None, *, rate: float = 1000.0) -> int:
    return start(books.pool, wanted or Letters(), rate=rate, who="maria", why="the marketplace is back")


def work(books: Books) -> str:
    return work_off(books.pool, books.ledger, None, {STORE: "acme"})


def test_the_forecast_counts_and_samples_and_touches_nothing(books: Books) -> None:
    die(books, "1", "2", "3")
    die(books, "1", context="catalog")
    before = books.everything()
    seen = forecast(books.pool, Letters(), rate=2.0)
    assert (seen.matched, seen.by_context, seen.seconds) == (4, {"price": 3, "catalog": 1}, 2.0)
    assert seen.sample[0].why == "no answer"
    assert books.everything() == before


def test_letters_are_paged_in_key_order_and_filtered(books: Books) -> None:
    die(books, "1", "2", "3")
    die(books, "9", context="catalog")
    first = letters(books.pool, Letters(), limit=2)
    assert [letter.key for letter in first] == ["9", "1"]
    after = (first[-1].store, first[-1].context, first[-1].key)
    assert [letter.key for letter in letters(books.pool, Letters(), after=after)] == ["2", "3"]
    assert [letter.key for letter in letters(books.pool, Letters(context="price", key="3"))] == ["3"]
    assert letters(books.pool, Letters(store=99)) == []
    assert letters(books.pool, Letters(since="2999-01-01T00:00:00Z")) == []
    assert len(letters(books.pool, Letters(until="2999-01-01T00:00:00Z"))) == 4


def test_a_replayed_key_is_read_at_once_with_a_fresh_plan(books: Books) -> None:
    die(books, "1", "2")
    begin(books, Letters(key="1"))
    assert "1 sent" in work(books)
    claim = books.claim()
    assert set(claim.items) == {"1"}
    assert claim.items["1"]["price"].attempts == 0
    books.settle(claim, Failed("still away"))
    assert books.row("1")["status"] == "delayed", "a replayed key has its whole plan again"
    assert books.row("2")["status"] == "dead"
    books.assert_conserved()


def test_pressing_twice_is_refused(books: Books) -> None:
    die(books, "1")
    begin(books)
    with pytest.raises(Conflict, match="running already"):
        begin(books)
    assert books.sql("select count(*) from runs where kind = 'replay'") == [(1,)]


def test_what_a_newer_success_has_overtaken_is_skipped(books: Books) -> None:
    die(books, "1", "2")
    begin(books)
    books.pass_time(10_000.0)
    books.ledger.ripen()
    claim = books.claim(limit=1)
    books.settle(claim, Done())
    work(books)
    assert run_of(books) == ("done", {"sent": 1, "skipped": 1})
    assert books.row(next(iter(claim.items)))["status"] == "done"
    books.assert_conserved()


def test_the_pace_is_kept_and_a_killed_worker_loses_nothing(books: Books) -> None:
    keys = [f"{n:02}" for n in range(10)]
    die(books, *keys)
    begin(books, rate=2.0)
    for _ in range(3):
        work(books)
    assert run_of(books) == ("running", {"sent": 2, "skipped": 0}), "one rate, however many push"
    books.pass_time(2.0)
    work(books)
    assert run_of(books)[1]["sent"] == 6
    books.pass_time(60.0)
    work(books)
    assert run_of(books) == ("done", {"sent": 10, "skipped": 0})
    assert work(books) == "no replay is running"
    assert {row[0] for row in books.sql("select asked - answered from states")} == {1}
    books.assert_conserved()


def test_a_cancelled_replay_stops_where_it_is_and_another_may_start(books: Books) -> None:
    die(books, "1", "2", "3")
    begin(books, rate=1.0)
    work(books)
    assert cancel(books.pool, "maria")
    assert not cancel(books.pool, "maria")
    books.pass_time(60.0)
    assert work(books) == "no replay is running"
    assert len(letters(books.pool, Letters())) == 2
    begin(books)
    work(books)
    assert run_of(books)[0] == "done"


def test_a_dead_key_under_its_slow_try_is_replayed_after_it(books: Books) -> None:
    die(books, "1")
    books.pass_time(10_000.0)
    books.ledger.ripen()
    trying = books.claim()
    begin(books)
    work(books)
    assert books.try_claim() is None, "one lease"
    books.settle(trying, Done())
    books.settle(books.claim(), Done())
    assert books.row("1")["status"] == "done"
    books.assert_conserved()


def test_discarded_letters_rest_until_the_next_notification(books: Books) -> None:
    die(books, "1", "2")
    assert discard(books.pool, Letters(key="1"), who="maria", why="sold elsewhere") == GivenUp(1, 0, 0, frozenset())
    assert [letter.key for letter in letters(books.pool, Letters())] == ["2"]
    books.pass_time(100_000.0)
    books.ledger.ripen()
    assert set(books.claim().items) == {"2"}
    books.ask("1")
    assert books.claim().items["1"]["price"].attempts == 0
    books.assert_conserved()


def test_a_discarded_letter_that_was_asked_for_since_starts_anew_at_once(books: Books) -> None:
    die(books, "1", "2")
    books.ask("1")
    assert books.try_claim() is None, "it waits its pause out"
    assert discard(books.pool, Letters(), who="maria", why="healed") == GivenUp(1, 1, 0, frozenset({(STORE, "price")}))
    assert letters(books.pool, Letters()) == []
    claim = books.claim()
    assert {key: rows["price"].attempts for key, rows in claim.items.items()} == {"1": 0}
    books.settle(claim, Done())
    books.assert_conserved()


def test_what_is_being_tried_is_not_discarded_and_what_is_due_for_it_starts_anew(books: Books) -> None:
    die(books, "1", "2")
    books.pass_time(10_000.0)
    books.ledger.ripen()
    trying = books.claim(limit=1)
    assert forecast(books.pool, Letters(), rate=1.0).anew == 1
    assert discard(books.pool, Letters(), who="maria", why="healed")[:3] == (0, 1, 1)
    books.settle(trying, Failed("no answer"))
    assert [letter.key for letter in letters(books.pool, Letters())] == list(trying.items)
    assert books.claim().items.keys() == {"1", "2"} - trying.items.keys()
    books.assert_conserved()


def test_every_replay_and_discard_is_in_the_audit(books: Books) -> None:
    die(books, "1")
    begin(books)
    discard(books.pool, Letters(), who="joão", why="test")
    assert books.sql("select who, action from audit order by id") == [
        ("maria", "replay"),
        ("joão", "discard dead letters"),
    ]
