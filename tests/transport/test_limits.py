"""Budgets are kept by everybody together, in order of service and in turns; holds are obeyed by everybody."""

import itertools
import socket
import time

import pytest
import redis

from hub.circuits import Name
from hub.errors import Throttled
from hub.limits import SPENT, Budget
from hub.runtime.embedded import Valkey
from hub.transport import GO, HELD, LIMIT, Calling, Transport, calling
from tests.timing import quickest, undisturbed

from .conftest import Opened
from .peer import Peer, answer, until

NOW = 1_700_000_000.0
"""Of tests that bring their own clock: seconds, any time will do."""


def ask(
    out: Transport,
    budget: Budget,
    context: str = "stock",
    store: str = "a",
    *,
    ticket: str = "",
    for_load: bool = False,
    group: str = "g",
    horizon: float = 0.0,
    at: float = 0.0,
) -> tuple[int, float]:
    """(word, wait) of one call; `horizon` 0: nobody books ahead; `at`: seconds of the test's own clock."""
    who = Calling(store, context, for_load=for_load, ticket=ticket)
    name = Name(store, "marketplace", group)
    verdict = out.admit(
        name, out.circuits.next_call(), budget=budget, who=who, total=1.0, horizon=horizon, at=int(at * 1e6)
    )
    return verdict.word, verdict.wait


def granted(out: Transport, budget: Budget, context: str, most: int = 100, **given: object) -> int:
    """How many calls may start now."""
    count = 0
    while count < most and ask(out, budget, context, **given)[0] == GO:
        count += 1
    return count


def test_two_processes_share_one_bucket_and_the_next_token_comes_after_one_interval(
    opened: Opened, server: redis.Redis
) -> None:
    budget = Budget("m:acme", rate=5.0, burst=4)
    one = opened(server, prefix="same").transport
    two = opened(server, prefix="same").transport
    assert granted(one, budget, "stock", 3, at=NOW) == 3
    assert granted(two, budget, "stock", at=NOW) == 1
    word, wait = ask(one, budget, at=NOW)
    assert word == LIMIT
    assert wait == pytest.approx(1 / 5 / SPENT, abs=2e-6)
    assert granted(opened(server, prefix="other").transport, budget, "stock", at=NOW) == 4


def test_the_less_important_may_book_less_far_ahead(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    words = {}
    for context in ("order", "fulfilment", "stock", "price", "catalog", "load"):
        budget = Budget(f"m:{context}", rate=1 / 0.76 / SPENT, burst=1)
        assert ask(out, budget, context, at=NOW)[0] == GO
        words[context] = ask(out, budget, context, horizon=1.0, at=NOW)[0]
    assert words == {
        "order": GO, "fulfilment": GO, "stock": GO, "price": LIMIT, "catalog": LIMIT, "load": LIMIT,
    }  # fmt: skip


def test_a_load_and_what_it_asks_for_leave_the_last_fifth(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=0.1, burst=10)
    assert granted(out, budget, "load", 5) == 5
    assert granted(out, budget, "catalog", for_load=True) == 3
    assert granted(out, budget, "catalog") == 2


def test_a_load_alone_is_never_locked_out_even_of_the_smallest_bucket(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=50.0, burst=1)
    count = 0

    def another() -> bool:
        nonlocal count
        count += ask(out, budget, "load")[0] == GO
        return count == 5

    began = time.monotonic()
    until(another)
    assert time.monotonic() - began >= 4 * 0.02


def test_an_order_is_served_while_a_load_waits(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=20.0, burst=5)
    assert granted(out, budget, "load", at=NOW) == 4
    for _ in range(3):
        assert ask(out, budget, "load", horizon=1.0, at=NOW)[0] == LIMIT
    word, wait = ask(out, budget, "order", horizon=1.0, at=NOW)
    assert (word, wait) == (GO, 0.0)


def test_a_wait_up_to_a_second_is_slept_a_longer_one_is_throttled(opened: Opened, peer: Peer) -> None:
    out = opened().transport
    accounts = itertools.count(1)

    def slept() -> float:
        account = f"soon{next(accounts)}"
        soon = out.peer("a", "marketplace", peer.url, account=account, rate=6.0, burst=4)  # alone: a quarter
        began = time.monotonic()
        soon.request("GET", "/x", operation="x")
        token = calling.set(Calling("a", "order"))
        try:
            soon.request("GET", "/x", operation="x")
        finally:
            calling.reset(token)
        return time.monotonic() - began

    quickest(slept, above=0.6, below=1.5)
    late = out.peer("a", "marketplace", peer.url, account="late", rate=0.1, burst=1)
    late.request("GET", "/x", operation="x")
    count = len(peer.seen)

    def throttled() -> float:
        began = time.monotonic()
        with pytest.raises(Throttled) as caught:
            late.request("GET", "/x", operation="x")
        assert 1 < caught.value.wait < 60
        return time.monotonic() - began

    quickest(throttled, below=0.2)
    assert len(peer.seen) == count


def test_stores_that_share_a_budget_take_turns(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("vtex:acme", rate=12.0, burst=8)
    assert granted(out, budget, "stock", store="busy", at=NOW) == 8
    served = {"busy": 0, "quiet": 0}
    now = NOW
    while sum(served.values()) < 36:
        for _ in range(9):  # the busy one asks nine times as often
            now += 0.003
            served["busy"] += ask(out, budget, "stock", "busy", at=now)[0] == GO
        served["quiet"] += ask(out, budget, "stock", "quiet", at=now)[0] == GO
    assert (now - NOW) * 12 * SPENT * 0.7 < 36, "what nobody else wants is not wasted"
    assert served["quiet"] > 0.6 * served["busy"], served


@undisturbed(AssertionError)
def test_a_quiet_store_finds_its_place_before_one_that_books_all_it_can(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=50.0, burst=1)
    out.limits.register(budget)
    now = time.time()
    busy = granted(out, budget, "stock", store="busy", horizon=1.0, at=now)
    assert out.limits.room("m:acme", 50, "stock", store="busy").granted > 10
    assert 2 < busy < 8, "its part, and a little ahead"
    assert ask(out, budget, "stock", "busy", horizon=1.0, at=now)[0] == LIMIT
    room = out.limits.room("m:acme", 5, "stock", store="quiet")
    assert room.granted == 5, "past what others keep"
    word, wait = ask(out, budget, "stock", "quiet", ticket=room.ticket, horizon=1.0)
    assert word == GO
    assert wait < 0.15


def test_whoever_has_waited_long_may_book_further_than_who_just_came(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=20.0, burst=1)
    granted(out, budget, "stock", horizon=1.0, at=NOW)
    assert ask(out, budget, "stock", horizon=1.0, at=NOW)[0] == LIMIT
    assert ask(out, budget, "stock", horizon=0.6, at=NOW)[0] == GO


def test_a_store_that_waits_for_less_important_work_takes_no_turn(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("vtex:acme", rate=100.0, burst=60)
    assert granted(out, budget, "order", store="selling", at=NOW) == 60
    served = 0
    now = NOW
    while served < 100:
        now += 0.002
        ask(out, budget, "load", "loading", at=now)
        served += ask(out, budget, "order", "selling", at=now)[0] == GO
    assert served > (now - NOW) * 100 * SPENT * 0.8


def test_room_kept_for_a_claim_is_there_when_its_calls_come(opened: Opened, server: redis.Redis) -> None:
    out = opened(server, prefix="same").transport
    other = opened(server, prefix="same").transport
    budget = Budget("m:acme", rate=0.1, burst=10)
    out.limits.register(budget)
    room = out.limits.room("m:acme", 6, "stock")
    assert (room.granted, room.wait) == (6, 0.0)
    assert granted(other, budget, "price") == 4, "others leave room"
    assert granted(out, budget, "stock", ticket=room.ticket) == 6
    assert out.limits.room("m:acme", 6, "stock").granted == 0
    assert out.limits.room("m:acme", 6, "stock").wait > 1
    assert out.limits.room("nobody", 6, "stock").granted == 6


def test_room_is_kept_for_what_a_claim_reads_meanwhile_and_never_for_one_call_of_many(
    opened: Opened, server: redis.Redis
) -> None:
    """Without a burst there is a token at a time; a claim for each would cost more than it does."""
    out = opened(server).transport
    budget = Budget("m:acme", rate=50.0, burst=1)
    out.limits.register(budget)
    granted = [out.limits.room("m:acme", 50, "load").granted for _ in range(3)]
    assert granted[0] == 50
    assert 50 < sum(granted) <= (1.5 + budget.interval / 1e6) * 50, "more than can start before the next claim ends"
    full = out.limits.room("m:acme", 50, "load")
    assert (full.granted, full.ticket) == (0, "")
    assert full.wait > 0.1, "as long as several calls take"


def test_room_given_back_is_free_again_and_more_important_work_does_not_wait_for_it(
    opened: Opened, server: redis.Redis
) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=0.1, burst=10)
    out.limits.register(budget)
    assert out.limits.room("m:acme", 50, "load").granted == 8
    room = out.limits.room("m:acme", 50, "price")
    assert room.granted == 10, "a load's room does not stand in the way of price"
    assert out.limits.room("m:acme", 1, "price").granted == 0
    out.limits.release("m:acme", room.ticket)
    assert out.limits.room("m:acme", 3, "order").granted == 3


def test_room_is_kept_at_the_rank_of_the_context_and_used_up_even_for_keys_that_a_load_asked_for(
    opened: Opened, server: redis.Redis
) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=0.1, burst=10)
    out.limits.register(budget)
    room = out.limits.room("m:acme", 10, "catalog", store="a")
    assert room.granted == 10
    assert ask(out, budget, "load")[0] == LIMIT, "what is less important leaves room for it"
    words = [ask(out, budget, "catalog", ticket=room.ticket, for_load=True)[0] for _ in range(10)]
    assert words == [GO] * 10
    without = Budget("m:other", rate=0.1, burst=10)
    words = [ask(out, without, "catalog", for_load=True)[0] for _ in range(10)]
    assert words == [GO] * 8 + [LIMIT] * 2


def test_a_hold_stops_that_account_and_group_for_everybody_and_ends_exactly(
    opened: Opened, server: redis.Redis
) -> None:
    one = opened(server, prefix="same").transport
    two = opened(server, prefix="same").transport
    budget = Budget("vtex:acme")
    one.limits.hold("vtex:acme", "g", 30)
    one.limits.hold("vtex:acme", "g", 0.1)
    word, wait = ask(two, budget)
    assert word == HELD
    assert 20 < wait <= 30
    assert two.limits.room("vtex:acme", 5, "stock", group="g").granted == 5, "no budget was named: no limit to keep"
    assert ask(two, budget, group="other")[0] == GO
    assert ask(two, Budget("vtex:other"))[0] == GO

    def held_for() -> float:
        began = time.monotonic()
        one.limits.hold("vtex:soon", "g", 0.5)
        until(lambda: ask(two, Budget("vtex:soon"))[0] == GO)
        return time.monotonic() - began

    quickest(held_for, above=0.5, below=0.6)


def test_an_absurd_hold_is_bounded(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    out.limits.hold("vtex:acme", "g", 1e9)
    word, wait = ask(out, Budget("vtex:acme"))
    assert word == HELD
    assert 899 < wait <= 900


def test_nothing_is_kept_in_redis_for_longer_than_it_matters(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    budget = Budget("m:acme", rate=1.0, burst=1)
    out.limits.register(budget)
    out.limits.room("m:acme", 1, "order")
    granted(out, budget, "order", horizon=1.0)
    granted(out, budget, "stock", store="b")
    out.limits.hold("m:acme", "g", 3)
    keys = list(server.scan_iter(match=out.limits.key("*", "*m:acme*").replace(":*:", ":*")))
    assert len(keys) >= 5
    assert all(0 < server.pttl(key) < 20_000 for key in keys), {key: server.pttl(key) for key in keys}


def test_without_redis_a_process_goes_on_with_a_quarter_and_comes_back_by_itself(
    opened: Opened, valkey: Valkey, peer: Peer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = f"redis://127.0.0.1:{free.getsockname()[1]}/0"
    out = opened(nowhere).transport
    budget = Budget("m:acme", rate=0.1, burst=40)

    def asking() -> float:
        """Redis is asked once a second, not by every call."""
        alone, began = opened(nowhere).transport, time.monotonic()
        assert granted(alone, budget, "order") == 10
        return time.monotonic() - began

    quickest(asking, below=1)
    assert granted(out, budget, "order") == 10
    assert granted(out, budget, "load") == 0
    assert out.board.away
    assert out.limits.room("m:acme", 3, "order").granted == 3, "an account that nobody registered has no limit"
    out.limits.register(budget)
    assert out.limits.room("m:acme", 3, "order").granted == 0
    out.limits.hold("m:acme", "g", 0.3)
    assert ask(out, Budget("m:acme"))[0] == HELD
    vtex = out.peer("a", "vtex", peer.url, account="vtex:acme")
    assert vtex.request("GET", "/x", operation="x").ok
    peer.behaviour = answer(429, b"", Retry_After="5")
    for _ in range(2):
        with pytest.raises(Throttled):
            vtex.request("GET", "/x", operation="x")
    assert len(peer.seen) == 2
