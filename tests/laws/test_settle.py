"""The one place that acts on the words an attempt ends in: every status with every word, and what holds for all."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.errors import Problem
from hub.model import Row
from hub.outcome import (
    Done,
    Ending,
    Failed,
    Locked,
    NextRow,
    Outcome,
    Parked,
    Plan,
    Postponed,
    Refused,
    Released,
    Unknown,
    Waiting,
    delay,
    half_taken,
    settle,
)
from hub.settings import Settings

STATUSES = ("new", "done", "waiting", "parked", "refused", "delayed", "unknown", "dead")
PLAN = Plan(delays=(10.0, 20.0, 40.0), slow=(3600.0, 21600.0), unknown=(5.0, 15.0), jitter=0.2, recheck=86400.0)
MIDDLE = 0.5  # no jitter

WORDS: dict[str, Outcome] = {
    "done": Done(),
    "look again": Done(look_again=60.0),
    "waiting": Waiting("t", 30.0),
    "waiting, read afterwards": Waiting("t", 30.0, again=True),
    "parked": Parked("mapping:9", 3),
    "refused": Refused((Problem("E3"),), "h"),
    "refused, look again": Refused((), "h", look_again=60.0),
    "key's wait": Postponed(7.0),
    "store's wait": Postponed(7.0, "store"),
    "locked": Locked("vtex", 2),
    "failed": Failed("no answer"),
    "unknown": Unknown("answer lost"),
    "released": Released(),
}

# status of the row before (None: any other), word → status, work, wait, attempts (added, None: set to 0), final
TABLE: dict[tuple[str | None, str], tuple[str | None, str, float | None, int | None, bool]] = {
    (None, "done"): ("done", "i", None, None, True),
    (None, "look again"): ("done", "s", 60.0, None, True),
    (None, "waiting"): ("waiting", "s", 30.0, 0, False),
    (None, "waiting, read afterwards"): ("waiting", "s", 30.0, 0, False),
    (None, "parked"): ("parked", "s", 86400.0, 0, True),
    (None, "refused"): ("refused", "i", None, 0, True),
    (None, "refused, look again"): ("refused", "s", 60.0, 0, True),
    (None, "key's wait"): ("delayed", "s", 7.0, 0, False),
    ("waiting", "key's wait"): ("waiting", "s", 7.0, 0, False),
    (None, "store's wait"): (None, "p", None, 0, False),
    (None, "locked"): ("delayed", "p", None, 0, False),
    ("waiting", "locked"): ("waiting", "p", None, 0, False),
    (None, "failed"): ("delayed", "s", 20.0, 1, False),
    ("waiting", "failed"): ("waiting", "s", 20.0, 1, False),
    ("dead", "failed"): ("dead", "s", 3600.0, 1, True),
    (None, "unknown"): ("unknown", "s", 5.0, 0, False),
    (None, "released"): (None, "p", None, 0, False),
}


@pytest.mark.parametrize(("status", "word"), list(product(STATUSES, WORDS)))
def test_each_status_and_word_has_one_next_row(status: str, word: str) -> None:
    row = Row("stock", "7", asked=3, status=status, attempts=1)
    expected, work, wait, added, final = TABLE.get((status, word)) or TABLE[None, word]
    after = settle(row, WORDS[word], PLAN, MIDDLE)
    assert after.status == (expected or status)
    assert after.work == work
    assert after.wait == (None if wait is None else pytest.approx(wait))
    assert after.attempts == (0 if added is None else 1 + added)
    assert after.final is final
    awaits_already = (status, word) == ("waiting", "waiting, read afterwards")
    assert after.again is (
        word in ("look again", "refused, look again", "waiting, read afterwards") and not awaits_already
    )


@pytest.mark.parametrize("word", sorted(WORDS))
def test_only_an_awaited_answer_keeps_the_claim_apart(word: str) -> None:
    for status in STATUSES:
        after = settle(Row("stock", "7", 1, status=status), WORDS[word], PLAN, MIDDLE)
        assert after.keeps_claim is (after.status == "waiting" and not after.final)


def test_the_plan_is_walked_through_then_the_key_is_dead_and_tried_slowly() -> None:
    row, seen = Row("stock", "7", 1), []
    for _ in range(7):
        after = settle(row, Failed("no answer"), PLAN, MIDDLE)
        seen.append((after.status, after.wait))
        row = Row("stock", "7", 1, status=after.status, attempts=after.attempts)
    slow = [("dead", 3600.0), ("dead", 21600.0), ("dead", 21600.0), ("dead", 21600.0)]
    assert seen == [("delayed", 10.0), ("delayed", 20.0), ("delayed", 40.0), *slow]


@pytest.mark.parametrize("name", ["patient", "brisk", "demo", "test"])
def test_a_peer_that_is_away_gets_at_least_ten_attempts_with_growing_waits(name: str) -> None:
    env = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgresql://hub@127.0.0.1:1/hub"}
    plan = Settings.load(env=env).plans[name]
    row, waits = Row("stock", "7", 1), []
    while row.status != "dead":
        after = settle(row, Failed("no answer"), plan, MIDDLE)
        waits.append(after.wait or 0.0)
        row = Row("stock", "7", 1, status=after.status, attempts=after.attempts)
    assert len(waits) > 10
    assert waits == sorted(waits)


def test_a_success_forgets_every_failure() -> None:
    assert settle(Row("stock", "7", 1, status="dead", attempts=40), Done(), PLAN, MIDDLE).attempts == 0


def test_a_dead_key_that_is_answered_is_dead_no_more() -> None:
    for word in ("done", "parked", "refused", "waiting"):
        assert settle(Row("stock", "7", 1, status="dead", attempts=4), WORDS[word], PLAN, MIDDLE).status != "dead"


@pytest.mark.parametrize("word", ["waiting", "parked", "refused", "key's wait", "locked", "unknown"])
def test_the_slow_tries_of_a_dead_key_are_not_held_against_it_once_it_was_answered(word: str) -> None:
    after = settle(Row("stock", "7", 1, status="dead", attempts=40), WORDS[word], PLAN, MIDDLE)
    assert after.attempts == len(PLAN.delays), "more than the plan has are those of processes that died"
    assert settle(Row("stock", "7", 1, status="dead", attempts=40), WORDS["store's wait"], PLAN, MIDDLE).attempts == 40


def test_read_backs_of_a_lost_answer_have_their_own_plan_and_spend_no_attempt() -> None:
    row, waits = Row("order", "M-1", 1, attempts=2), []
    for _ in range(4):
        after = settle(row, Unknown("answer lost"), PLAN, MIDDLE)
        waits.append(after.wait)
        row = Row("order", "M-1", 1, status=after.status, attempts=after.attempts, looks=after.looks)
    assert waits == [5.0, 15.0, 15.0, 15.0]
    assert row.attempts == 2


@pytest.mark.parametrize(
    ("word", "looks"),
    [("look again", 1), ("refused, look again", 1), ("key's wait", 0), ("locked", 0), ("failed", 0)],
)
def test_read_backs_are_not_taken_for_second_looks(word: str, looks: int) -> None:
    row = Row("catalog", "7", 1, status="unknown", looks=4)
    assert settle(row, WORDS[word], PLAN, MIDDLE).looks == looks


def test_of_a_write_that_was_half_taken_only_what_is_unknown_of_others_is_written_down() -> None:
    shows = {"catalog": {"state": "published"}, "price": None, "stock": {"quantity": 3}}
    half = half_taken(Ending("catalog", "7", Refused((), "h"), confirmed=shows, definite=True))
    assert (half.confirmed, half.definite, half.partly) == ({"price": None}, False, True)
    whole = Ending("catalog", "7", Done(), confirmed=shows, definite=True)
    assert half_taken(whole) == whole


def test_read_backs_begin_with_the_first_pause_whatever_was_looked_at_before() -> None:
    after = settle(Row("catalog", "7", 1, status="done", looks=2), Unknown("answer lost"), PLAN, MIDDLE)
    assert (after.wait, after.looks) == (5.0, 1)


chances = st.floats(0.0, 1.0, exclude_max=True)
plans = st.builds(
    Plan,
    delays=st.lists(st.floats(0.01, 1e5), min_size=1, max_size=12).map(lambda d: tuple(sorted(d))),
    slow=st.lists(st.floats(1.0, 1e6), min_size=1, max_size=4).map(tuple),
    unknown=st.lists(st.floats(0.01, 1e5), min_size=1, max_size=4).map(tuple),
    jitter=st.floats(0.0, 0.9),
)
rows = st.builds(
    Row,
    st.just("stock"),
    st.just("7"),
    st.integers(1, 99),
    status=st.sampled_from(STATUSES),
    attempts=st.integers(0, 30),
    looks=st.integers(0, 99),
)
waits = st.floats(-1e3, 1e6)
words = st.one_of(
    st.sampled_from(sorted(WORDS)).map(WORDS.__getitem__),
    st.builds(Waiting, st.just("t"), waits),
    st.builds(Postponed, waits, st.sampled_from(("key", "store"))),
    st.builds(Done, look_again=waits),
    st.builds(Refused, st.just(()), look_again=waits),
)


@given(rows, words, plans, chances)
def test_a_row_waits_exactly_when_it_is_scheduled_and_never_backwards(
    row: Row, word: Outcome, plan: Plan, chance: float
) -> None:
    after = settle(row, word, plan, chance)
    assert (after.wait is not None) == (after.work == "s")
    assert after.wait is None or after.wait >= 0.0


@given(rows, words, plans, chances)
def test_only_a_failure_spends_an_attempt(row: Row, word: Outcome, plan: Plan, chance: float) -> None:
    spent = settle(row, word, plan, chance).attempts
    given_back = isinstance(word, Released) or (isinstance(word, Postponed) and word.scope == "store")
    if isinstance(word, Failed):
        assert spent == row.attempts + 1
    elif isinstance(word, Done):
        assert spent == 0
    elif row.status == "dead" and not given_back:
        assert spent == min(row.attempts, len(plan.delays)), "its slow tries are not held against it"
    else:
        assert spent == row.attempts


@given(rows, plans, chances)
def test_a_key_dies_of_a_used_up_plan_and_of_nothing_else(row: Row, plan: Plan, chance: float) -> None:
    after = settle(row, Failed("no answer"), plan, chance)
    used_up = row.attempts >= len(plan.delays) or row.status == "dead"
    assert (after.status == "dead") is used_up or (row.status == "waiting" and row.attempts < len(plan.delays))
    for word in WORDS.values():
        if not isinstance(word, Failed | Postponed | Released):
            assert settle(row, word, plan, chance).status != "dead"


@given(st.lists(st.floats(0.01, 1e6), min_size=1), st.integers(0, 50), st.floats(0.0, 0.9), chances)
def test_jitter_stays_within_its_share(delays: list[float], turn: int, jitter: float, chance: float) -> None:
    base = delays[min(turn, len(delays) - 1)]
    assert base * (1 - jitter) * 0.999 <= delay(delays, turn, jitter, chance) <= base * (1 + jitter) * 1.001


@given(rows, words, plans, chances)
def test_what_is_not_final_says_so_by_its_status_or_is_given_back(
    row: Row, word: Outcome, plan: Plan, chance: float
) -> None:
    after: NextRow = settle(row, word, plan, chance)
    if not after.final:
        assert after.work != "i", "a demand that nobody answered would rest for ever"
