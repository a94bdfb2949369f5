"""Lots: closed by count and bytes, answered once for all, and no row waits for an answer that has come already."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from cryptography.fernet import Fernet

from hub.errors import Problem
from hub.ledger import Claim
from hub.model import LotOutcome, LotResult, Written
from hub.outcome import Done, Failed, Refused, Waiting
from hub.ports import Lots
from hub.states import LotEntry, StoreStates
from hub.stores import SecretBox
from tests.laws.books import STORE, Books

SMALL = Lots(max_records=3, max_bytes=1000, max_age=60.0, min_interval=0.0, poll=10.0)


@pytest.fixture
def states(books: Books) -> StoreStates:
    return StoreStates(books.pool, STORE, SecretBox([Fernet.generate_key().decode()]))


def entries(*keys: str, size: int = 10, contexts: tuple[str, ...] = ("price",)) -> list[LotEntry]:
    return [LotEntry(contexts, key, {"reference": str(uuid.uuid4()), "to": key}, b"x" * size) for key in keys]


def joined(books: Books, states: StoreStates, *keys: str, lots: Lots = SMALL) -> tuple[Claim, dict[str, int]]:
    """Ask for these keys, claim them and put them into lots, without settling."""
    books.ask(*keys)
    claim = books.claim(limit=len(keys))
    joined = states.join_lot(claim, "offer", entries(*sorted(claim.items)), lots)
    return claim, {key: lot for key, lot in joined.items() if lot is not None}


def waiting(books: Books, claim: Claim, lots: dict[str, int]) -> None:
    books.settle(claim, lambda row: Waiting(f"lot:{lots[row.key]}", 600.0))


def sizes(books: Books) -> list[tuple[Any, ...]]:
    return books.sql("select records, bytes, closed_at is not null from lots order by id")


def answer(count: int, outcome: LotOutcome) -> LotResult:
    return LotResult(dict.fromkeys(range(count), outcome))


TAKEN = LotOutcome(taken=True, written=Written("r-1"))
NOT_ITS_FAULT = LotOutcome(taken=False, problems=(Problem("E2", fix="later"),), retry=True)
REFUSED = LotOutcome(taken=False, problems=(Problem("E3", "price", "-1", "above 0"),))


def test_a_lot_is_closed_by_count_and_the_next_record_opens_another(books: Books, states: StoreStates) -> None:
    _, lots = joined(books, states, "1", "2", "3", "4", "5")
    assert [row[0] for row in sizes(books)] == [3, 2]
    assert [row[2] for row in sizes(books)] == [True, False]
    assert len(set(lots.values())) == 2


def test_a_lot_is_closed_by_bytes_and_told_at_once(books: Books, states: StoreStates) -> None:
    claim, _ = joined(books, states, "1")
    lot_of = {row[0]: row for row in books.sql("select key, work::text from states where context = 'lot'")}
    first = next(iter(lot_of))
    lot_claim = books.claim("lot")
    books.settle(lot_claim, Done(look_again=60.0))
    books.ask("2")
    other = books.claim()
    states.join_lot(other, "offer", entries("2", size=995), SMALL)
    assert sizes(books)[0][2] is True
    assert books.row(first, "lot")["work"] == "p", "the closed lot waits for its age although it is full"
    books.settle(claim, Done())


def test_a_record_larger_than_a_lot_goes_alone(books: Books, states: StoreStates) -> None:
    books.ask("1", "2")
    claim = books.claim()
    lots = states.join_lot(claim, "offer", entries("1", "2", size=2000), SMALL)
    assert len(set(lots.values())) == 2


def test_every_open_lot_has_somebody_who_will_look_at_it(books: Books, states: StoreStates) -> None:
    joined(books, states, *map(str, range(8)))
    lots = {str(row[0]) for row in books.sql("select id from lots")}
    assert lots == {row[0] for row in books.sql("select key from states where context = 'lot' and work = 'p'")}
    assert (STORE, "lot") in states.touched


def test_a_record_does_not_leave_before_an_earlier_one_of_its_key(books: Books, states: StoreStates) -> None:
    first, lots = joined(books, states, "1")
    waiting(books, first, lots)
    books.settle(books.claim("lot"), Done())
    states.lot_lines(lots["1"])  # begun to be submitted; nobody knows whether it arrived
    books.ask("1", context="stock")
    books.ask("2")
    for context, key, lot in (("stock", "1", None), ("price", "2", lots["1"] + 1)):
        claim = books.claim(context)
        assert states.join_lot(claim, "offer", entries(key, contexts=(context,)), SMALL) == {key: lot}
        books.settle(claim, Done())
    states.lot_submitted(lots["1"], "ticket")
    books.ask("1", context="stock")
    again = states.join_lot(books.claim("stock"), "offer", entries("1", contexts=("stock",)), SMALL)
    assert again == {"1": lots["1"] + 1}


def test_a_key_whose_lease_is_gone_joins_nothing(books: Books, states: StoreStates) -> None:
    books.ask("1")
    claim = books.claim(seconds=10.0)
    books.pass_time(20.0)
    books.ledger.expire()
    assert states.join_lot(claim, "offer", entries("1"), SMALL) == {}
    assert books.sql("select 1 from lot_records") == []


def test_a_row_in_a_lot_is_in_doubt_until_the_answer(books: Books, states: StoreStates) -> None:
    books.ask("1")
    books.settle(books.claim(), Done(), confirmed={"price": {"price": 10}})
    claim, lots = joined(books, states, "1")
    waiting(books, claim, lots)
    assert states.confirmed("price", "1") is None
    states.lot_settled(lots["1"], answer(1, NOT_ITS_FAULT))
    again = books.claim()
    row = again.items["1"]["price"]
    assert row.resolved is not None
    assert row.resolved.retry
    books.settle(again, Failed("the lot failed"))
    books.pass_time(100.0)
    books.ledger.ripen()
    row = books.claim().items["1"]["price"]
    assert (row.confirmed, row.intent["to"]) == (None, "1"), "the value that went back would look confirmed"


@pytest.mark.parametrize("result", [TAKEN, REFUSED, NOT_ITS_FAULT])
def test_the_answer_makes_every_waiting_row_pending_with_its_outcome(
    books: Books, states: StoreStates, result: LotOutcome
) -> None:
    claim, lots = joined(books, states, "1", "2")
    waiting(books, claim, lots)
    assert books.try_claim() is None
    states.lot_settled(lots["1"], answer(2, result))
    assert (STORE, "price") in states.touched
    resolved = books.claim()
    for key in ("1", "2"):
        row = resolved.items[key]["price"]
        assert row.resolved is not None
        assert (row.resolved.taken, row.resolved.retry) == (result.taken, result.retry)
        assert row.resolved.problems == result.problems
        assert row.resolved.record["to"] == key
        assert row.status == ("delayed" if result.retry else "waiting")


def test_a_record_that_the_report_does_not_name_is_sent_again(books: Books, states: StoreStates) -> None:
    claim, lots = joined(books, states, "1", "2")
    waiting(books, claim, lots)
    states.lot_settled(lots["1"], LotResult({0: TAKEN}))
    rows = books.claim().items
    outcomes = {key: row["price"].resolved for key, row in rows.items()}
    assert outcomes["1"] is not None
    assert outcomes["1"].taken
    assert outcomes["2"] is not None
    assert outcomes["2"].retry


def test_settling_a_lot_twice_changes_nothing(books: Books, states: StoreStates) -> None:
    claim, lots = joined(books, states, "1")
    waiting(books, claim, lots)
    states.lot_settled(lots["1"], answer(1, TAKEN))
    states.lot_settled(lots["1"], answer(1, REFUSED))
    row = books.claim().items["1"]["price"]
    assert row.resolved is not None
    assert row.resolved.taken


def test_a_lot_answered_before_its_rows_wait_is_not_missed(books: Books, states: StoreStates) -> None:
    claim, lots = joined(books, states, "1")
    states.lot_settled(lots["1"], answer(1, TAKEN))
    waiting(books, claim, lots)
    row = books.claim().items["1"]["price"]
    assert row.resolved is not None, "the row would wait ten minutes for an answer that is there"


@pytest.mark.parametrize("asked_meanwhile", [False, True])
@pytest.mark.parametrize("answered_already", [False, True])
def test_what_was_not_read_before_it_waits_is_one_demand_more(
    books: Books, states: StoreStates, *, answered_already: bool, asked_meanwhile: bool
) -> None:
    claim, lots = joined(books, states, "1")
    if answered_already:
        states.lot_settled(lots["1"], answer(1, TAKEN))
    if asked_meanwhile:
        books.ask("1")
    books.settle(claim, Waiting(f"lot:{lots['1']}", 600.0, again=True))
    books.assert_conserved()
    if not answered_already:
        states.lot_settled(lots["1"], answer(1, TAKEN))
    books.settle(books.claim(), Done())
    assert books.claim().items["1"]["price"].resolved is None, "it is not read after the answer"
    books.assert_conserved()


def test_what_is_asked_while_waiting_is_read_after_the_answer(books: Books, states: StoreStates) -> None:
    claim, lots = joined(books, states, "1")
    waiting(books, claim, lots)
    books.ask("1")
    books.ask("1")
    assert books.row("1")["work"] == "s", "a request must not cut the wait short"
    states.lot_settled(lots["1"], answer(1, REFUSED))
    resolved = books.claim()
    assert resolved.items["1"]["price"].resolved is not None
    books.settle(resolved, Refused((Problem("E3"),), "h"), definite=True)
    further = books.claim()
    assert further.items["1"]["price"].resolved is None
    books.settle(further, Done())
    assert books.try_claim() is None, "two requests while waiting are one further attempt"
    books.assert_conserved()


def test_lines_are_taken_in_order_and_the_lot_takes_no_more(books: Books, states: StoreStates) -> None:
    _, lots = joined(books, states, "1", "2")
    lot = lots["1"]
    assert len(states.lot_lines(lot)) == 2
    view = states.lot(lot)
    assert view is not None
    assert (view.state, view.full) == ("submitting", True)
    _, later = joined(books, states, "3")
    assert later["3"] != lot
    states.lot_submitted(lot, "their-ticket")
    view = states.lot(lot)
    assert view is not None
    assert (view.state, view.ticket) == ("submitted", "their-ticket")


def test_many_threads_join_without_losing_or_doubling_a_record(books: Books, states: StoreStates) -> None:
    keys = [f"{n:03}" for n in range(90)]
    books.ask(*keys)
    claims = [books.claim(limit=15) for _ in range(6)]
    wrong: list[BaseException] = []

    def join(claim: Claim) -> None:
        try:
            lots: dict[str, int] = {}
            some: Sequence[LotEntry] = entries(*sorted(claim.items))
            for start in range(0, len(some), 4):
                got = states.join_lot(claim, "offer", some[start : start + 4], SMALL)
                lots |= {key: lot for key, lot in got.items() if lot is not None}
            waiting(books, claim, lots)
        except BaseException as error:  # noqa: BLE001 – shown by the test, a thread would hide it
            wrong.append(error)

    threads = [threading.Thread(target=join, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [row[0] for row in books.sql("select key from lot_records order by key")] == keys
    assert books.sql("select lot from lot_records group by lot having count(*) <> max(line) + 1") == []
    assert all(row[0] <= 3 for row in sizes(books))
    assert books.sql(
        "select count(*) from lots l where records <> (select count(*) from lot_records r where r.lot = l.id)"
    ) == [(0,)]
    books.assert_conserved()
