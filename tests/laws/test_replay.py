"""Replay: planned, paced, resumable, one at a time; what a newer success has overtaken is left alone."""

from __future__ import annotations

import pytest

from hub.errors import Conflict
from hub.outcome import Done, Failed
from tasks.replay import Letters, cancel, discard, forecast, letters, start, work_off
from tests.laws.cell import STORE, Cell


def die(cell: Cell, *keys: str, context: str = "price") -> None:
    """Let these keys fail until their plan is used up."""
    cell.ask(*keys, context=context)
    for _ in range(len(cell.plan.delays) + 1):
        cell.settle(cell.claim(context), Failed("no answer"))
        cell.pass_time(max(cell.plan.delays))
        cell.ledger.ripen()
    assert {row[0] for row in cell.sql("select status from states where key = any(%s)", list(keys))} == {"dead"}


def run_of(cell: Cell) -> tuple[str, dict[str, int]]:
    state, cursor = cell.sql("select state, cursor from runs order by id desc limit 1")[0]
    return state, {"sent": cursor.get("sent", 0), "skipped": cursor.get("skipped", 0)}


def begin(cell: Cell, wanted: Letters | None = None, *, rate: float = 1000.0) -> int:
    return start(cell.pool, wanted or Letters(), rate=rate, who="maria", why="the marketplace is back")


def work(cell: Cell) -> str:
    return work_off(cell.pool, cell.ledger, None, {STORE: "acme"})


def test_the_forecast_counts_and_samples_and_touches_nothing(cell: Cell) -> None:
    die(cell, "1", "2", "3")
    die(cell, "1", context="catalog")
    before = cell.everything()
    seen = forecast(cell.pool, Letters(), rate=2.0)
    assert (seen.matched, seen.by_context, seen.seconds) == (4, {"price": 3, "catalog": 1}, 2.0)
    assert seen.sample[0].why == "no answer"
    assert cell.everything() == before


def test_letters_are_paged_in_key_order_and_filtered(cell: Cell) -> None:
    die(cell, "1", "2", "3")
    die(cell, "9", context="catalog")
    first = letters(cell.pool, Letters(), limit=2)
    assert [letter.key for letter in first] == ["9", "1"]
    after = (first[-1].store, first[-1].context, first[-1].key)
    assert [letter.key for letter in letters(cell.pool, Letters(), after=after)] == ["2", "3"]
    assert [letter.key for letter in letters(cell.pool, Letters(context="price", key="3"))] == ["3"]
    assert letters(cell.pool, Letters(store=99)) == []
    assert letters(cell.pool, Letters(since="2999-01-01T00:00:00Z")) == []
    assert len(letters(cell.pool, Letters(until="2999-01-01T00:00:00Z"))) == 4


def test_a_replayed_key_is_read_at_once_with_a_fresh_plan(cell: Cell) -> None:
    die(cell, "1", "2")
    begin(cell, Letters(key="1"))
    assert "1 sent" in work(cell)
    claim = cell.claim()
    assert set(claim.items) == {"1"}
    assert claim.items["1"]["price"].attempts == 0
    cell.settle(claim, Failed("still away"))
    assert cell.row("1")["status"] == "delayed", "a replayed key has its whole plan again"
    assert cell.row("2")["status"] == "dead"
    cell.assert_conserved()


def test_pressing_twice_is_refused(cell: Cell) -> None:
    die(cell, "1")
    begin(cell)
    with pytest.raises(Conflict, match="running already"):
        begin(cell)
    assert cell.sql("select count(*) from runs where kind = 'replay'") == [(1,)]


def test_what_a_newer_success_has_overtaken_is_skipped(cell: Cell) -> None:
    die(cell, "1", "2")
    begin(cell)
    cell.pass_time(10_000.0)
    cell.ledger.ripen()
    claim = cell.claim(limit=1)
    cell.settle(claim, Done())
    work(cell)
    assert run_of(cell) == ("done", {"sent": 1, "skipped": 1})
    assert cell.row(next(iter(claim.items)))["status"] == "done"
    cell.assert_conserved()


def test_the_pace_is_kept_and_a_killed_worker_loses_nothing(cell: Cell) -> None:
    keys = [f"{n:02}" for n in range(10)]
    die(cell, *keys)
    begin(cell, rate=2.0)
    for _ in range(3):
        work(cell)
    assert run_of(cell) == ("running", {"sent": 2, "skipped": 0}), "one rate, however many push"
    cell.pass_time(2.0)
    work(cell)
    assert run_of(cell)[1]["sent"] == 6
    cell.pass_time(60.0)
    work(cell)
    assert run_of(cell) == ("done", {"sent": 10, "skipped": 0})
    assert work(cell) == "no replay is running"
    assert {row[0] for row in cell.sql("select asked - answered from states")} == {1}
    cell.assert_conserved()


def test_a_cancelled_replay_stops_where_it_is_and_another_may_start(cell: Cell) -> None:
    die(cell, "1", "2", "3")
    begin(cell, rate=1.0)
    work(cell)
    assert cancel(cell.pool, "maria")
    assert not cancel(cell.pool, "maria")
    cell.pass_time(60.0)
    assert work(cell) == "no replay is running"
    assert len(letters(cell.pool, Letters())) == 2
    begin(cell)
    work(cell)
    assert run_of(cell)[0] == "done"


def test_a_dead_key_under_its_slow_try_is_replayed_after_it(cell: Cell) -> None:
    die(cell, "1")
    cell.pass_time(10_000.0)
    cell.ledger.ripen()
    trying = cell.claim()
    begin(cell)
    work(cell)
    assert cell.try_claim() is None, "one lease"
    cell.settle(trying, Done())
    cell.settle(cell.claim(), Done())
    assert cell.row("1")["status"] == "done"
    cell.assert_conserved()


def test_discarded_letters_rest_until_the_next_notification(cell: Cell) -> None:
    die(cell, "1", "2")
    assert discard(cell.pool, Letters(key="1"), who="maria", why="sold elsewhere") == 1
    assert [letter.key for letter in letters(cell.pool, Letters())] == ["2"]
    cell.pass_time(100_000.0)
    cell.ledger.ripen()
    assert set(cell.claim().items) == {"2"}
    cell.ask("1")
    assert cell.claim().items["1"]["price"].attempts == 0
    cell.assert_conserved()


def test_every_replay_and_discard_is_in_the_audit(cell: Cell) -> None:
    die(cell, "1")
    begin(cell)
    discard(cell.pool, Letters(), who="joão", why="test")
    assert cell.sql("select who, action from audit order by id") == [
        ("maria", "replay"),
        ("joão", "discard dead letters"),
    ]
