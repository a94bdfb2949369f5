"""The laws of the ledger one by one, each as the shortest story that could break it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from hub import ledger, mappings
from hub.errors import Problem
from hub.ledger import NOTICES_AND_ENQUEUE, Notice, Tally, enqueue_parameters
from hub.model import Ask, Binding, BindingState, Row, Story
from hub.outcome import (
    Done,
    Ending,
    Failed,
    Locked,
    Outcome,
    Parked,
    Postponed,
    Refused,
    Released,
    Unknown,
    Waiting,
    settle,
)
from tests.laws.books import PATIENT, STORE, Books

REFERENCE = "00000000-0000-4000-8000-000000000001"

KEPT_BY_PSYCOPG = 4096
"""Characters; a longer text is read anew each time."""


# ---------------------------------------------------------------- law 1: coalescing and patience


@pytest.mark.parametrize("requests", [1, 2, 50])
def test_any_number_of_requests_during_a_hold_is_one_further_attempt(books: Books, requests: int) -> None:
    books.ask("7")
    held = books.claim()
    for _ in range(requests):
        books.ask("7")
    assert books.try_claim() is None
    books.settle(held, Done())
    books.settle(books.claim(), Done())
    assert books.try_claim() is None
    books.assert_conserved()


def test_requests_that_stand_for_many_are_counted_and_coalesced(books: Books) -> None:
    books.ledger.enqueue([Ask(STORE, "price", "7", "vtex", count=4), Ask(STORE, "price", "7", "load", count=2)])
    found = books.sql("select source, requested, enqueued, coalesced from counters order by 1")
    assert found == [("load", 2, 0, 2), ("vtex", 4, 1, 3)]


@pytest.mark.parametrize("word", [Failed("no answer"), Unknown("lost"), Postponed(100.0)])
def test_requests_never_shorten_a_back_off(books: Books, word: Outcome) -> None:
    books.ask("7")
    books.settle(books.claim(), word)
    due = books.row("7")["due"]
    books.ask("7", urgency=0, heard=True)
    books.ledger.ripen()
    assert books.try_claim() is None
    assert books.row("7")["due"] == pytest.approx(due, abs=5.0)
    books.pass_time(101.0)
    books.ledger.ripen()
    assert books.claim()


def test_a_dead_key_gets_one_try_in_ten_minutes_however_often_it_is_asked_for(books: Books) -> None:
    books.ask("7")
    for _ in range(3):
        books.settle(books.claim(), Failed("no answer"))
        books.pass_time(300.0)
        books.ledger.ripen()
    books.ask("7")
    assert books.row("7")["due"] == pytest.approx(300.0, abs=5.0)
    books.pass_time(310.0)
    books.ledger.ripen()
    held = books.claim()
    books.ask("7")
    books.settle(held, Failed("no answer"))
    assert books.row("7")["due"] == pytest.approx(600.0, abs=5.0)


def test_a_dead_key_whose_worker_died_waits_its_pause_out(books: Books) -> None:
    books.ask("7")
    for _ in range(3):
        books.settle(books.claim(), Failed("no answer"))
        books.pass_time(10_000.0)
        books.ledger.ripen()
    mortal = books.another()
    books.claim(by=mortal)
    mortal.leave()
    assert books.ledger.expire() == 1
    assert books.try_claim() is None
    assert books.row("7")["due"] == pytest.approx(600.0, abs=5.0)
    books.assert_conserved()


@pytest.mark.parametrize("between", [Failed("no answer"), Postponed(1.0, "store"), Released(), Locked("vtex", 1)])
def test_what_was_refused_is_remembered_when_an_attempt_says_nothing_about_it(books: Books, between: Outcome) -> None:
    books.ask("7")
    books.settle(books.claim(), Refused((Problem("E3", "name"),), "hash"), problems=(Problem("E3", "name"),))
    books.ask("7")
    books.settle(books.claim(), between)
    books.sql("delete from gates")
    books.pass_time(200.0)
    books.ledger.ripen()
    assert books.claim().items["7"]["price"].input_hash == "hash", "the same input would be sent again"


def test_pending_since_is_that_of_the_oldest_request(books: Books) -> None:
    books.ask("7")
    books.pass_time(500.0)
    books.ask("7", urgency=0)
    assert books.row("7")["waited"] == pytest.approx(500.0, abs=5.0)
    assert books.claim().items["7"]["price"].pending_seconds == pytest.approx(500.0, abs=5.0)


def test_the_urgent_and_then_the_oldest_go_first(books: Books) -> None:
    books.ask("load", urgency=8)
    books.ask("old")
    books.pass_time(10.0)
    books.ask("new")
    books.ask("remove", urgency=0)
    assert [next(iter(books.claim(limit=1).items)) for _ in range(4)] == ["remove", "old", "new", "load"]


@pytest.mark.parametrize("word", [Done(look_again=60.0), Refused((), "h", look_again=60.0)])
def test_a_sooner_request_makes_a_second_look_now(books: Books, word: Outcome) -> None:
    books.ask("7")
    books.settle(books.claim(), word)
    assert books.try_claim() is None
    books.ask("7")
    books.settle(books.claim(), Done())
    assert books.try_claim() is None
    books.assert_conserved()


def test_what_is_announced_while_a_second_look_backs_off_is_looked_at_anew(books: Books) -> None:
    books.ask("7")
    books.settle(books.claim(), Done(look_again=60.0))
    books.pass_time(61.0)
    books.ledger.ripen()
    books.settle(books.claim(), Failed("no answer"))
    assert (books.row("7")["heard"], books.row("7")["looks"]) == (True, 1)
    books.ask("7", heard=True)
    assert (books.row("7")["work"], books.row("7")["looks"]) == ("s", 0)
    books.assert_conserved()


# ---------------------------------------------------------------- law 2: one lease


def test_price_and_stock_of_a_key_are_never_held_by_two(books: Books) -> None:
    books.ask("7", context="price")
    held = books.claim("price")
    books.ask("7", context="stock")
    assert books.try_claim("stock") is None
    books.settle(held, Done())
    assert set(books.claim("stock").items["7"]) == {"stock"}


def test_a_claim_takes_the_pending_sibling_along(books: Books) -> None:
    books.ask("7", context="price")
    books.ask("7", "8", context="stock")
    assert set(books.claim("price").items["7"]) == {"price", "stock"}
    assert set(books.claim("stock").items) == {"8"}


def test_a_sibling_that_backs_off_stays_where_it_is(books: Books) -> None:
    books.ask("7", context="stock")
    books.settle(books.claim("stock"), Failed("no answer"))
    books.ask("7", context="price")
    assert set(books.claim("price").items["7"]) == {"price"}


def lost(books: Books) -> Any:
    """A claim whose lease was given up while its process slept."""
    claim = books.claim(seconds=10.0)
    books.pass_time(20.0)
    assert books.ledger.expire() == 1
    return claim


def everything_learnt(row: Row) -> Ending:
    return Ending(
        row.context,
        row.key,
        Done((Ask(STORE, "stock", "99", "follow"),)),
        confirmed={"price": {"price": 1}},
        definite=True,
        binding=Binding("7", "r-1", BindingState.PUBLISHED),
        stories=(Story("Price update", "VTEX to Marketplace", "S1"),),
    )


@pytest.mark.parametrize("taken_over", [False, True])
def test_whoever_lost_the_lease_settles_nothing_at_all(books: Books, taken_over: bool) -> None:
    books.ask("7")
    claim = lost(books)
    if taken_over:
        assert books.claim()
    before = books.everything()
    settled = books.end(claim, [everything_learnt(claim.items["7"]["price"])])
    assert settled.fenced == (("price", "7"),)
    assert books.everything() == before


def test_whoever_lost_the_lease_begins_no_write(books: Books) -> None:
    books.ask("7")
    claim = lost(books)
    assert books.ledger.intend(claim, [("price", "7", REFERENCE, {"price": 1})]) == frozenset()
    assert books.answer("7")["intent"] is None


def test_rows_that_no_ending_names_are_given_back(books: Books) -> None:
    books.ask("7", "8")
    books.end(books.claim(), [])
    assert set(books.claim().items) == {"7", "8"}
    books.assert_conserved()


def test_a_process_that_stops_beating_loses_its_keys_and_knows_it(books: Books) -> None:
    mortal = books.another(seconds=0.0)
    books.ask("7")
    books.claim(by=mortal)
    assert not mortal.beat(10.0)
    assert books.ledger.expire() == 1
    assert books.claim().items["7"]["price"].attempts == 1


# ---------------------------------------------------------------- law 3: a change at any moment is read afterwards


@pytest.mark.parametrize(
    "word",
    [
        Done(),
        Done(look_again=60.0),
        Refused((Problem("E3"),), "h"),
        Refused((), "h", look_again=60.0),
        Parked("publication:7"),
        Waiting("t", 60.0),
    ],
)
def test_a_change_during_the_attempt_is_read_after_it(books: Books, word: Outcome) -> None:
    books.ask("7")
    held = books.claim()
    books.ask("7", heard=True)
    books.settle(held, word)
    if isinstance(word, Waiting):
        books.pass_time(61.0)
        books.ledger.ripen()
        books.settle(books.claim(), Done())
    row = books.claim().items["7"]["price"]
    assert row.heard
    books.assert_conserved()


def test_a_mapping_saved_while_a_row_parks_on_it_is_not_missed(books: Books) -> None:
    books.ask("7", context="catalog")
    held = books.claim("catalog")
    books.sql("insert into mappings (store, category, remote, version) values (1, '9', 'r', 5)")
    books.ledger.release(STORE, "mapping:9")
    settled = books.settle(held, Parked("mapping:9", 0))
    assert (STORE, "catalog") in settled.wake
    books.settle(books.claim("catalog"), Parked("mapping:9", 5))
    assert books.try_claim("catalog") is None
    books.assert_conserved()


def test_a_mapping_that_changes_while_a_listing_is_made_by_the_old_one_has_it_made_anew(books: Books) -> None:
    """Whether the attempt has only read, waits for the answer of its lot, or is done: it is looked at once more."""
    rows = [mappings.CategoryMapping("9", "old", "")]
    mappings.save(books.pool, STORE, rows, who="tests", ledger=books.ledger)
    books.ask("reads", "waits", "listed", "elsewhere", context="catalog")
    held = books.claim("catalog")
    listing = {"record": {"listing": {"category": "old"}}}
    books.sql(
        "insert into answers (store, context, key, intent) values (%s, 'catalog', 'waits', %s)",
        STORE,
        Jsonb(listing),
    )
    books.sql(
        "insert into answers (store, context, key, confirmed)"
        " values (%s, 'catalog', 'listed', %s), (%s, 'catalog', 'elsewhere', %s)",
        STORE,
        Jsonb({"listing": {"category": "old"}}),
        STORE,
        Jsonb({"listing": {"category": "other"}}),
    )
    others = [key for key in held.items if key != "reads"]
    books.sql("update states set claim = null, work = 'i', answered = asked where key = any(%s)", others)
    mappings.save(books.pool, STORE, [mappings.CategoryMapping("9", "new", "")], who="tests", ledger=books.ledger)
    asked = books.sql("select key from states where asked > coalesce(claimed, answered) order by 1")
    assert [key for (key,) in asked] == ["listed", "reads", "waits"]
    mappings.save(books.pool, STORE, [mappings.CategoryMapping("9", "new", "")], who="tests", ledger=books.ledger)
    assert books.row("reads", "catalog")["asked"] == 2, "nothing has changed the second time"


def test_what_is_parked_is_released_by_its_own_cause_only(books: Books) -> None:
    books.ask("7", "8")
    books.settle(books.claim(), lambda row: Parked(f"publication:{row.key}"))
    assert books.ledger.release(STORE, "publication:8") == {(STORE, "price")}
    assert set(books.claim().items) == {"8"}


def test_what_is_parked_is_looked_at_once_a_day(books: Books) -> None:
    books.ask("7")
    books.settle(books.claim(), Parked("publication:7"))
    books.pass_time(PATIENT.recheck + 1)
    assert books.ledger.ripen() == {(STORE, "price")}
    assert books.claim().items["7"]["price"].urgency == 6
    books.assert_conserved()


# ---------------------------------------------------------------- law 5: intent before write


def confirmed_of(books: Books) -> Any:
    books.sql("update states set work = 'p', asked = asked + 1, due_at = null where work in ('i', 's')")
    row = books.claim().items["7"]["price"]
    return row.confirmed, row.intent is not None


@pytest.mark.parametrize("word", [Failed("cut off"), Unknown("lost"), Waiting("t", 10.0)])
def test_a_write_that_may_have_happened_leaves_what_is_shown_in_doubt(books: Books, word: Outcome) -> None:
    books.ask("7")
    books.settle(books.claim(), Done(), confirmed={"price": {"price": 1}})
    books.ask("7")
    held = books.claim()
    books.ledger.intend(held, [("price", "7", REFERENCE, {"price": 2})])
    books.settle(held, word)
    assert confirmed_of(books) == (None, True)


@pytest.mark.parametrize("word", [Postponed(1.0), Postponed(1.0, "store"), Released(), Locked("vtex", 1)])
def test_a_write_that_surely_did_not_happen_leaves_what_is_shown_as_it_was(books: Books, word: Outcome) -> None:
    books.ask("7")
    books.settle(books.claim(), Done(), confirmed={"price": {"price": 1}})
    books.ask("7")
    held = books.claim()
    books.ledger.intend(held, [("price", "7", REFERENCE, {"price": 2})])
    books.settle(held, word)
    books.sql("delete from gates")
    assert confirmed_of(books) == ({"price": 1}, False)


def test_a_doubt_outlives_attempts_that_do_not_resolve_it(books: Books) -> None:
    books.ask("7")
    held = books.claim()
    books.ledger.intend(held, [("price", "7", REFERENCE, {"price": 2})])
    books.ledger.leave()
    books.ledger.expire()
    books.ledger.join("next", 1000.0)
    for word in (Released(), Postponed(0.0, "store"), Failed("no answer")):
        claim = books.claim()
        row = claim.items["7"]["price"]
        assert (row.intent, row.reference) == ({"price": 2}, REFERENCE)
        books.settle(claim, word)
    books.pass_time(500.0)
    books.ledger.ripen()
    books.settle(books.claim(), Done(), confirmed={"price": {"price": 2}}, definite=True)
    assert confirmed_of(books) == ({"price": 2}, False)


@pytest.mark.parametrize("now", ["the same", "another", "none"])
def test_what_was_written_to_a_listing_is_known_as_long_as_the_sku_has_that_listing(books: Books, now: str) -> None:
    """The answer of a price may come after those of a removal and of a new registration: nobody has priced that one."""
    pair = Binding("7", "r-1", BindingState.PUBLISHED)
    books.ask("7")
    books.settle(books.claim(), Done(), binding=pair, confirmed={"price": {"price": 0}})
    books.ask("7")
    claim = books.claim()
    books.ask("7", context="catalog")
    if now != "the same":
        books.settle(books.claim("catalog"), Done(), binding=replace(pair, state=BindingState.DELETED))
    if now == "another":
        books.ask("7", context="catalog")
        books.settle(books.claim("catalog"), Done(), binding=replace(pair, remote_id="r-2"))
    books.settle(claim, Done(), confirmed={"price": {"price": 1}}, listing="r-1", definite=True)
    assert confirmed_of(books) == ({"price": 1} if now == "the same" else None, False)


def test_a_deleted_listing_takes_what_was_confirmed_with_it(books: Books) -> None:
    books.ask("7")
    shown = Binding("7", "r-1", BindingState.PUBLISHED)
    books.settle(books.claim(), Done(), confirmed={"price": {"price": 1}}, binding=shown)
    books.ask("7", context="catalog")
    books.settle(books.claim("catalog"), Done(), binding=Binding("7", "r-1", BindingState.DELETED))
    assert books.sql("select 1 from bindings") == []
    assert confirmed_of(books) == (None, False)


# ---------------------------------------------------------------- law 6: conservation, gates


def test_notices_are_stored_once_and_counted_by_their_fate(books: Books) -> None:
    notice = Notice(uuid.uuid4().hex, STORE, "notification", "accepted", '{"x": "\\u0000"}')
    tallies = {(STORE, "vtex"): Tally(received=3, quarantined=1, ignored=1, accepted=1)}
    asks = [Ask(STORE, "price", "7", "vtex")]
    with books.pool.connection() as db:
        woken = db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters([notice], asks, 0, tallies)).fetchall()
    assert woken == [(STORE, "price")]
    assert books.sql("select count(*) from notices") == [(1,)]
    books.assert_conserved()


def test_a_counter_that_lies_is_found(books: Books) -> None:
    books.ask("7")
    books.sql("update counters set enqueued = enqueued + 1")
    assert [law.name for law in books.ledger.check(recount=False) if not law.holds] == [
        "requested = coalesced + enqueued",
        "sources out of balance",
    ]


@pytest.mark.parametrize(
    "harm",
    [
        "update states set work = 'i'",
        "update states set work = 'h'",
        "update states set work = 's'",
        "update states set answered = asked",
        "insert into leases values (1, 'offer', '7', 99)",
    ],
)
def test_a_row_that_fell_out_of_the_laws_is_found(books: Books, harm: str) -> None:
    books.ask("7")
    books.assert_conserved()
    books.sql(harm)
    assert [law for law in books.ledger.check() if not law.holds]


def test_a_shut_gate_takes_nothing_and_burns_nothing(books: Books) -> None:
    books.ask("7")
    books.ledger.shut(STORE, "*", "operator", cause="operator", who="maria", why="stocktaking", seconds=None)
    books.pass_time(100_000.0)
    assert books.try_claim() is None
    assert books.row("7")["attempts"] == 0
    assert books.ledger.open(STORE, "*", "operator")
    assert books.claim()


def test_a_gate_whose_time_has_come_lets_one_key_try(books: Books) -> None:
    books.ask("7", "8", "9")
    books.ledger.shut(STORE, "price", "marketplace", cause="credentials", who="hub", why="401", seconds=900.0)
    assert books.try_claim() is None
    books.pass_time(901.0)
    trying = books.claim()
    assert len(trying) == 1
    books.settle(trying, Done())
    assert books.ledger.gates() == []
    assert len(books.claim()) == 2


def test_a_sibling_behind_its_own_gate_does_not_come_along(books: Books) -> None:
    books.ask("7", context="price")
    books.ask("7", context="stock")
    books.ledger.shut(STORE, "stock", "operator", cause="operator", who="maria", why="stocktaking", seconds=None)
    assert set(books.claim("price").items["7"]) == {"price"}


@pytest.mark.parametrize("scope", ["store", "context"])
def test_lost_credentials_shut_their_gate_and_newer_ones_do_not(books: Books, scope: Any) -> None:
    books.ask("7", "8")
    books.ask("8", context="catalog")
    books.settle(books.claim(limit=1), Locked("marketplace", 1, scope))
    assert books.try_claim("price") is None
    assert (books.try_claim("catalog") is None) is (scope == "store")
    books.sql("delete from gates")
    books.sql(
        "insert into stores (slug, account, affiliate, sales_channel, marketplace, token_digest)"
        " values ('a', 'a', 'AAA', 1, 'sandbox', 'x')"
    )
    books.sql("insert into credentials (store, side, version, secret) values (1, 'marketplace', 2, 'x')")
    books.settle(books.claim(limit=1), Locked("marketplace", 1, scope))
    assert books.ledger.gates() == [], "the refused credentials are old ones"


def test_every_pair_with_pending_keys_is_seen_once(books: Books) -> None:
    books.ask("1", "2", context="price")
    books.ask("1", context="stock")
    books.ledger.enqueue([Ask(store, "catalog", "1", "vtex") for store in (2, 3, 70)])
    assert sorted(books.ledger.pending()) == [
        (1, "price", 2),
        (1, "stock", 1),
        (2, "catalog", 1),
        (3, "catalog", 1),
        (70, "catalog", 1),
    ]


def test_a_settle_takes_whole_seconds_beside_fractions(books: Books) -> None:
    books.ask("7", "8")
    claim = books.claim()
    waits = {"7": Postponed(5), "8": Postponed(0.5)}
    rows = [
        (Ending("price", key, word), settle(Row("price", key, 1), word, PATIENT, 0.5)) for key, word in waits.items()
    ]
    books.ledger.settle(claim, rows)
    assert books.row("7")["due"] == pytest.approx(5.0, abs=2.0)


def test_psycopg_keeps_what_it_has_read_of_every_statement_that_is_used_all_the_time() -> None:
    texts = {name: text for name, text in vars(ledger).items() if isinstance(text, str) and name.strip("_").isupper()}
    assert {"NOTICES_AND_ENQUEUE", "_CLAIM_ALONE", "_CLAIM_SHARED", "_SETTLE"} <= texts.keys()
    assert {name: len(text) for name, text in texts.items() if len(text) > KEPT_BY_PSYCOPG} == {}
