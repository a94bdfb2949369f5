"""Wake-ups: bounded by what waits and what runs, never lost for good, and never a reason to fail."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import fakeredis
import pytest
import redis

from hub.reconcile import Report
from hub.settings import Layout, Settings
from tasks.app import dead_queue, make_app, queue_for
from tasks.wake import _END, _HOLD, _RELEASE, _TAKE, BESIDE, CROWD, PAST, Waker
from tasks.worker import Attempts

PAIR = ("acme", "stock")


def settings_for(url: str, prefix: str = "hub") -> Settings:
    env = {"REDIS_URL": url, "DATABASE_URL": "postgresql://hub@127.0.0.1:1/hub", "HUB_PREFIX": prefix}
    return Settings.load(env=env)


class Broker:
    """What a test sees of the broker, and what a worker would do with it."""

    def __init__(self, url: str, prefix: str) -> None:
        self.settings = settings_for(url, prefix)
        self.waker = Waker(self.settings, make_app(self.settings))
        self.redis: Any = redis.Redis.from_url(url)
        self.prefix = prefix
        self.cap = self.settings.contexts["stock"].cap

    def waiting(self, lane: str = "first") -> int:
        name = queue_for(self.settings, *PAIR, lane)  # type: ignore[arg-type]
        return int(self.redis.llen(f"{self.prefix}:{name}"))

    def picked_up(self, lane: str) -> int:
        """Workers have threads for what waits; how much it was."""
        name, waiting = queue_for(self.settings, *PAIR, lane), self.waiting(lane)  # type: ignore[arg-type]
        self.redis.delete(f"{self.prefix}:{name}")
        return waiting

    def tokens(self) -> list[str]:
        found = self.redis.keys(f"{self.prefix}:wake:*tokens")
        return [token.decode() for key in found for token in self.redis.zrange(key, 0, -1)]

    def end(self, token: str, *, backlog: bool = False) -> int:
        """An attempt ends without a wish of its own; how many wake-ups follow."""
        return self.waker.end(PAIR, token, wanted=0, refused=1, backlog=backlog)

    def brake(self, seconds: float, *, soft: bool = False) -> None:
        """An attempt ends by finding out that the pair has to be left alone."""
        self.waker.end(PAIR, "", wanted=0, refused=0, brake=seconds, soft=soft)

    def now(self) -> int:
        """Redis' clock in milliseconds."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def lapse(self, at: int = 1) -> None:
        """Let every token have lapsed then (ms): long ago when left out."""
        for key in self.redis.keys(f"{self.prefix}:wake:*tokens"):
            for token in self.redis.zrange(key, 0, -1):
                self.redis.zadd(key, {token: at})


@pytest.fixture
def broker(redis_url: tuple[str, str]) -> Iterator[Broker]:
    opened = Broker(*redis_url)
    yield opened
    opened.waker.close()
    opened.redis.close()


def test_a_pair_at_rest_is_woken_on_its_own_queue_and_a_busy_one_on_the_other(broker: Broker) -> None:
    assert broker.waker.wake([PAIR]) == 1
    assert (broker.waiting("first"), broker.waiting("more")) == (1, 0)
    assert broker.waker.wake([PAIR]) == 1
    assert (broker.waiting("first"), broker.waiting("more")) == (1, 1)


def test_a_continuation_goes_to_the_unreserved_threads_even_when_nothing_else_runs(broker: Broker) -> None:
    broker.waker.wake([PAIR], further=True)
    assert (broker.waiting("first"), broker.waiting("more")) == (0, 1)


def test_a_pair_is_not_woken_again_for_what_already_waits_in_a_crowd(broker: Broker) -> None:
    assert broker.waker.wake([PAIR], again=True) == 1
    assert broker.waker.wake([PAIR], again=True) == 1, "the first may be lost, and where few wait it costs little"
    others = [(f"store-{number}", PAIR[1]) for number in range(CROWD)]
    settings = replace(broker.settings, layout="pooled")
    pooled = Waker(settings, make_app(settings))
    try:
        assert pooled.wake([PAIR], again=True) == 1
        assert pooled.wake(others, again=True) == CROWD, "nobody is at rest and left out"
        assert pooled.wake([*others, PAIR], again=True) == 0
        assert pooled.wake([PAIR], wanted=broker.cap, again=True) == broker.cap - 3, "so much work deserves more"
        assert pooled.wake(others[:1]) == 1, "somebody asked for something new"
        broker.redis.delete(*(f"{broker.prefix}:{queue_for(settings, *PAIR, lane)}" for lane in ("first", "more")))
        assert pooled.wake(others[:1], again=True) == 1, "the crowd is gone"
    finally:
        pooled.close()


def test_a_backlog_of_any_size_is_never_more_than_the_cap(broker: Broker) -> None:
    assert broker.waker.wake([PAIR], wanted=100_000) == broker.cap
    assert broker.waker.wake([PAIR], wanted=100_000) == 0
    assert broker.waiting("first") + broker.waiting("more") == broker.cap


def test_the_cap_counts_what_runs_and_not_only_what_waits(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    broker.redis.delete(f"{broker.prefix}:{queue_for(broker.settings, *PAIR)}")
    broker.redis.delete(f"{broker.prefix}:{queue_for(broker.settings, *PAIR, 'more')}")
    assert broker.waker.wake([PAIR]) == 0, "workers took the messages and are still at it"


def test_threads_that_wake_together_never_pass_the_cap(broker: Broker) -> None:
    threads = [threading.Thread(target=lambda: broker.waker.wake([PAIR], wanted=3)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(broker.tokens()) == broker.cap
    assert broker.waiting("first") + broker.waiting("more") == broker.cap


def test_whoever_ends_after_a_refused_wake_up_sends_one(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    token, waiting = broker.tokens()[0], broker.waiting("more")
    assert broker.waker.wake([PAIR]) == 0
    assert broker.end(token) == 1, "the demand came between the last look and the end"
    assert broker.waiting("more") == waiting + 1
    assert token not in broker.tokens()


def test_an_attempt_that_raised_sends_the_wake_up_that_was_refused_meanwhile(broker: Broker) -> None:
    class Broken:
        """The links and the reconciler of a worker whose attempts end in an error nobody expected."""

        def get(self, _slug: str) -> object:
            return object()

        def attempt(self, *_of: object, **_how: object) -> None:
            broker.waker.wake([PAIR])
            raise RuntimeError

    broken: Any = Broken()
    broker.waker.wake([PAIR], wanted=broker.cap)
    token, waiting = broker.tokens()[0], broker.waiting("more")
    with pytest.raises(RuntimeError):
        Attempts(broken, broken, broker.waker).run(*PAIR, token, first=True)
    assert broker.waiting("more") == waiting + 1, "it must not wait for the sweep"
    assert len(broker.tokens()) == broker.cap


def test_the_end_of_a_newer_versions_context_leaves_the_refused_wake_up_to_its_own_workers(broker: Broker) -> None:
    newer = ("acme", "divination")
    stem = f"{broker.prefix}:wake:{{acme.divination}}"
    broker.redis.zadd(f"{stem}:tokens", {"rtoken": broker.now() + 20_000, "other": broker.now() + 20_000})
    broker.redis.set(f"{stem}:mark", "1", px=60_000)
    assert broker.waker.end(newer, "token", wanted=0, refused=1, others=[PAIR]) == 1, "who is known is woken"
    assert broker.redis.zrange(f"{stem}:tokens", 0, -1) == [b"other"]
    assert broker.redis.get(f"{stem}:mark") == b"1"
    broker.redis.delete(f"{stem}:tokens", f"{stem}:mark")


def test_an_end_without_a_refusal_wakes_nobody(broker: Broker) -> None:
    broker.waker.wake([PAIR])
    assert broker.end(broker.tokens()[0]) == 0
    assert broker.tokens() == []


def test_a_refusal_is_followed_once(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    broker.waker.wake([PAIR])
    first, second, *_ = broker.tokens()
    assert broker.end(first) == 1
    assert broker.end(second) == 0


def test_tokens_of_lost_messages_and_dead_workers_lapse(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    broker.lapse()
    assert broker.waker.wake([PAIR], wanted=broker.cap) == broker.cap


def test_a_running_attempt_keeps_its_token(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    kept = broker.tokens()[0]
    broker.lapse()
    broker.waker.hold([(*PAIR, kept)])
    assert broker.waker.wake([PAIR], wanted=broker.cap) == broker.cap - 1
    assert f"r{kept}" in broker.tokens()


def test_a_message_that_waits_long_keeps_its_token_and_a_dead_worker_does_not(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    broker.waker.hold([(*PAIR, broker.tokens()[0])])
    broker.lapse(broker.now() - 1000)
    assert broker.waker.wake([PAIR], wanted=broker.cap) == 1, "the others are not lost, their queue is long"
    for lane in ("first", "more"):
        broker.redis.delete(f"{broker.prefix}:{queue_for(broker.settings, *PAIR, lane)}")
    broker.lapse(broker.now() - 1000)
    assert broker.waker.wake([PAIR], wanted=broker.cap) == broker.cap, "nothing waits, so they are lost"


def test_a_live_change_passes_a_load_once_and_waits_its_turn_in_a_backlog_of_live_work(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    first = broker.waiting("first")
    assert broker.waker.wake([PAIR], live=True) == 1, "even past the cap"
    assert broker.waiting("first") == first + 1
    assert broker.waker.wake([PAIR], live=True) == 0, "one at a time"
    live = next(token for token in broker.tokens() if token.startswith("l"))
    broker.waker.hold([(*PAIR, live)])
    assert broker.waker.wake([PAIR], live=True) == 0, "also while it runs"
    assert broker.end(live) == 1, "who was refused follows"
    assert broker.waiting("first") == first + 2, "past the others, too"
    broker.end("", backlog=True)
    for token in broker.tokens():
        broker.end(token)
    assert broker.waker.wake([PAIR], live=True) == 1
    assert broker.waker.wake([PAIR], live=True) == 1
    assert broker.waiting("more") == broker.cap, "the second of them, behind what waits there"


def test_what_changes_while_attempts_run_gets_attempts_of_its_own_up_to_the_cap(broker: Broker) -> None:
    more = 0
    for _ in range(broker.cap):
        assert broker.waker.wake([PAIR], live=True) == 1
        more += broker.picked_up("more")
    assert broker.waker.wake([PAIR], live=True) == 0, "the cap bounds them"
    assert broker.waiting("first") == 2, "no more than these of the reserved threads"
    assert more == broker.cap - 2
    beside = next(token for token in broker.tokens() if token.startswith(BESIDE))
    assert broker.end(beside) == 1, "who was refused follows"
    assert len(broker.tokens()) == broker.cap
    for token in broker.tokens():
        broker.picked_up("more")
        assert broker.end(token) == 0, "nobody was refused any more"


def test_a_live_change_beside_others_does_not_wait_for_threads_that_are_busy(broker: Broker) -> None:
    broker.waker.wake([PAIR])
    assert broker.waker.wake([PAIR], live=True) == 1
    assert broker.waker.wake([PAIR], live=True) == 1
    assert (broker.waiting("first"), broker.waiting("more")) == (2, 1)
    assert broker.waker.wake([PAIR], live=True) == 0, "nobody picks up what waits there"
    assert broker.end(next(token for token in broker.tokens() if token.startswith(PAST))) == 1
    assert (broker.waiting("first"), broker.waiting("more")) == (3, 1), "past the others, one at a time"
    assert broker.end(next(token for token in broker.tokens() if token.startswith(PAST))) == 0, "once for each"


def test_a_live_change_that_waits_beside_others_is_fetched_by_the_next_end(broker: Broker) -> None:
    for _ in range(3):
        assert broker.waker.wake([PAIR], live=True) == 1
    assert (broker.waiting("first"), broker.waiting("more")) == (2, 1)
    assert broker.end(next(token for token in broker.tokens() if token.startswith(PAST))) == 1
    assert (broker.waiting("first"), broker.waiting("more")) == (3, 1)
    assert broker.end(next(token for token in broker.tokens() if token.startswith(PAST))) == 0, "once"


def test_a_live_wake_up_makes_a_small_claim_of_live_work_whichever_queue_it_came_by(broker: Broker) -> None:
    class Seen:
        """The links and the reconciler of a worker; notes how its attempts claim."""

        def __init__(self) -> None:
            self.first: list[bool] = []

        def get(self, _slug: str) -> object:
            return object()

        def names(self) -> dict[int, str]:
            return {}

        def attempt(self, _link: object, name: str, *, first: bool) -> Report:
            self.first.append(first)
            return Report(PAIR[0], name, Counter())

    seen: Any = Seen()
    attempts = Attempts(seen, seen, broker.waker)
    broker.waker.wake([PAIR], wanted=2)
    broker.waker.wake([PAIR], live=True)
    for token in sorted(broker.tokens()):
        attempts.run(*PAIR, token, first=False)
    assert seen.first == [False, False, True]


def test_less_important_work_brakes_itself_and_not_what_is_live(broker: Broker) -> None:
    broker.brake(60.0, soft=True)
    assert broker.waker.wake([PAIR]) == 0
    assert broker.waker.wake([PAIR], live=True) == 1
    broker.brake(60.0)
    assert broker.waker.wake([PAIR], live=True) == 0


def test_a_brake_wakes_nobody_until_it_is_taken_off(broker: Broker) -> None:
    broker.brake(60.0)
    assert broker.waker.wake([PAIR]) == 0
    assert broker.waker.wake([("acme", "price")]) == 1, "it holds this pair only"
    broker.waker.release(*PAIR)
    assert broker.waker.wake([PAIR]) == 1


def test_an_attempt_that_began_before_the_brake_was_taken_off_does_not_put_it_on_again(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=2)
    early, late = broker.tokens()
    broker.waker.hold([(*PAIR, early)])  # it runs already
    broker.waker.release(*PAIR)
    (freed,) = broker.redis.keys(f"{broker.prefix}:wake:*freed")
    assert broker.redis.pttl(freed) > 0, "it would grow with every token that is lost"
    assert broker.waker.end(PAIR, early, wanted=0, refused=0, brake=60.0) == 1, "it is tried again at once"
    assert broker.waker.end(PAIR, late, wanted=0, refused=0, brake=60.0, soft=True) == 1
    for token in broker.tokens():
        broker.waker.end(PAIR, token, wanted=0, refused=0, brake=60.0)
    assert broker.waker.wake([PAIR]) == 0, "those that began afterwards know better"


def test_a_brake_lets_go_by_itself(broker: Broker) -> None:
    broker.brake(0.05)
    deadline = time.monotonic() + 60.0
    while not broker.waker.wake([PAIR]):
        assert time.monotonic() < deadline, "the brake is still on"


def test_each_message_carries_store_and_context_and_nothing_else(broker: Broker) -> None:
    broker.waker.wake([PAIR])
    raw = broker.redis.lindex(f"{broker.prefix}:acme.stock", 0)
    import base64
    import json

    message = json.loads(raw)
    assert json.loads(base64.b64decode(message["body"]))[:2] == [["acme", "stock"], {}]
    assert message["headers"]["id"] == broker.tokens()[0], "the task's id is the token"


def test_a_redis_that_forgot_everything_only_forgets_the_count(broker: Broker) -> None:
    broker.waker.wake([PAIR], wanted=broker.cap)
    token = broker.tokens()[0]
    for key in broker.redis.keys(f"{broker.prefix}:*"):
        broker.redis.delete(key)
    assert broker.end(token) == 0
    assert broker.waker.wake([PAIR]) == 1


class CutShort(list[tuple[str, str, str]]):
    """Letters whose connection breaks while they are put into the queue."""

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        letters = super().__iter__()
        self.readings = getattr(self, "readings", 0) + 1
        yield next(letters)
        if self.readings > 1:  # the first one only compares
            raise ConnectionResetError
        yield from letters


@pytest.mark.parametrize("before", [False, True], ids=["new", "emptied before"])
def test_letters_of_a_turn_that_ended_in_between_are_taken_away_when_nobody_is_dead(
    broker: Broker, before: bool
) -> None:
    letters = [("7", "E2", "2026-01-01T00:00:00Z"), ("8", "E2", "2026-01-01T00:00:00Z")]
    shown = f"{broker.prefix}:{dead_queue(*PAIR)}"
    if before:
        broker.waker.mirror_dead(*PAIR, letters)
        broker.waker.mirror_dead(*PAIR, [])
    broker.waker.mirror_dead(*PAIR, CutShort(letters))
    assert broker.redis.llen(shown) == 1
    assert broker.waker.mirrored() == {PAIR}
    broker.redis.delete(f"{broker.prefix}:dead:{'.'.join(PAIR)}:turn")  # it lapses by itself
    broker.waker.mirror_dead(*PAIR, [])
    assert broker.redis.llen(shown) == 0
    assert broker.waker.mirrored() == set()


def test_without_redis_nothing_is_woken_and_nothing_is_raised() -> None:
    settings = settings_for("redis://127.0.0.1:1/0")
    waker = Waker(settings, make_app(settings))
    assert waker.wake([PAIR]) == 0
    assert waker.end(PAIR, "token", wanted=1, refused=1, brake=1.0) == 0
    assert waker.end(("acme", "divination"), "token", wanted=0, refused=1) == 0
    waker.hold([(*PAIR, "token")])
    waker.release(*PAIR)
    waker.mirror_dead(*PAIR, [("7", "E2", "2026-01-01T00:00:00Z")])
    waker.send("hub.replay", "control.0")
    waker.close()


def test_a_broker_that_is_away_raises_nothing_either(redis_url: tuple[str, str]) -> None:
    url, prefix = redis_url
    env = {
        "REDIS_URL": url,
        "HUB_BROKER_URL": "amqp://guest:guest@127.0.0.1:1//",
        "DATABASE_URL": "postgresql://hub@127.0.0.1:1/hub",
        "HUB_PREFIX": prefix,
    }
    settings = Settings.load(env=env)
    waker = Waker(settings, make_app(settings))
    assert waker.wake([PAIR]) == 0
    waker.send("hub.replay", "control.0")
    waker.close()
    with redis.Redis.from_url(url) as client:
        left = [client.zcard(key) for key in client.keys(f"{prefix}:*:tokens")]
    assert not any(left), "a token without a message would keep others from waking"


def test_the_dead_letter_queue_shows_exactly_the_dead_rows(broker: Broker) -> None:
    name = f"{broker.prefix}:{dead_queue(*PAIR)}"
    some = [("7", "E2", "2026-01-01T00:00:00Z"), ("8", "V0", "2026-01-01T00:00:00Z")]
    broker.waker.mirror_dead(*PAIR, some)
    broker.waker.mirror_dead(*PAIR, some)
    assert broker.redis.llen(name) == 2
    broker.waker.mirror_dead(*PAIR, some[:1])
    assert broker.redis.llen(name) == 1
    assert broker.waker.mirrored() == {PAIR}
    broker.waker.mirror_dead(*PAIR, [])
    assert broker.redis.llen(name) == 0
    assert broker.waker.mirrored() == set()


@pytest.mark.parametrize("layout", ["per_store", "pooled"])
def test_what_waits_in_a_removed_stores_own_queues_goes_and_nothing_else(broker: Broker, layout: Layout) -> None:
    settings = replace(broker.settings, layout=layout)
    waker = Waker(settings, make_app(settings))
    neighbour = ("acme-b", "stock")
    waker.wake([PAIR, neighbour], wanted=2)
    waker.mirror_dead(*PAIR, [("7", "E2", "2026-01-01T00:00:00Z")])
    waker.mirror_dead(*neighbour, [("7", "E2", "2026-01-01T00:00:00Z")])
    assert waker.forget(["acme", "never-there"]) == {"acme", "never-there"}
    assert waker.mirrored() == {neighbour}
    waker.close()
    length = {
        name: broker.redis.llen(f"{broker.prefix}:{name}") for name in (dead_queue(*PAIR), dead_queue(*neighbour))
    }
    assert list(length.values()) == [0, 1]
    wakes = {pair: broker.redis.llen(f"{broker.prefix}:{queue_for(settings, *pair)}") for pair in (PAIR, neighbour)}
    if layout == "per_store":
        assert wakes == {PAIR: 0, neighbour: 1}
    else:
        assert all(wakes.values()), "they are all stores' queues"


def test_a_context_of_a_newer_version_is_woken_by_nobody_here(broker: Broker) -> None:
    assert broker.waker.wake([("acme-mkt", "divination"), PAIR]) == 1


KEYS = ["tokens", "mark", "brake", "backlog", "first", "more", "freed"]


@pytest.fixture(params=["valkey", "fakeredis"])
def scripts(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The scripts on a real server and on the stand-in: both must mean the same."""
    if request.param == "fakeredis":
        yield fakeredis.FakeRedis()
        return
    url, prefix = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(url) as client:
        for key in KEYS:
            with suppress(redis.RedisError):
                client.delete(f"{prefix}{key}")
        yield client


def test_taking_holding_and_ending_mean_the_same_everywhere(scripts: Any) -> None:
    keys = [f"t-scripts-{time.monotonic_ns()}-{key}" for key in KEYS]
    take, end, hold, release = (scripts.register_script(text) for text in (_TAKE, _END, _HOLD, _RELEASE))
    assert take(keys=keys, args=[20_000, 3, 2, "a", 600_000, "0"]) == [2, 0, 0]
    assert take(keys=keys, args=[20_000, 3, 2, "b", 600_000, "0"]) == [1, 2, 0]
    assert take(keys=keys, args=[20_000, 3, 2, "c", 600_000, "0"]) == [0, 3, 0]
    assert hold(keys=keys[:1], args=[15_000, "a1"]) == 1
    ends = [20_000, 3, 0, "x", 600_000]
    assert end(keys=keys, args=[*ends, "a1", 1, 0, "1", 0]) == [1, 2, 0], "one was refused meanwhile"
    assert end(keys=keys, args=[*ends, "a2", 1, 0, "1", 0]) == [0, 0, 0]
    assert end(keys=keys, args=[*ends, "x1", 1, 0, "1", 0]) == [0, 0, 0]
    assert take(keys=keys, args=[20_000, 3, 2, "y", 600_000, "0"]) == [2, 1, 0]
    scripts.set(keys[2], "1")
    assert take(keys=keys, args=[20_000, 3, 2, "d", 600_000, "0"]) == [0, 0, 0]
    assert take(keys=keys, args=[20_000, 3, 2, "d", 600_000, "1"]) == [0, 0, 0]
    scripts.set(keys[2], "soft")
    assert take(keys=keys, args=[20_000, 3, 2, "e", 600_000, "0"]) == [0, 0, 0]
    assert take(keys=keys, args=[20_000, 3, 2, "e", 600_000, "1"])[0] == 1
    release(keys=[keys[0], keys[2], keys[6]], args=[600_000])
    end(keys=keys, args=[*ends, "y1", 0, 60_000, "1", 0])
    assert scripts.exists(keys[2]) == 0, "it began before the brake was taken off"
    end(keys=keys, args=[*ends, "y1", 0, 60_000, "1", 0])
    assert scripts.exists(keys[2]) == 1
    scripts.delete(*keys)


def test_a_wake_up_that_the_script_sends_is_the_one_that_kombu_would_send(broker: Broker) -> None:
    assert broker.waker.wake([PAIR], wanted=2) == 2
    first, more = (queue_for(broker.settings, *PAIR, lane) for lane in ("first", "more"))
    sent = {name: json.loads(broker.redis.lpop(f"{broker.prefix}:{name}")) for name in (first, more)}
    assert {one["headers"]["id"] for one in sent.values()} == set(broker.tokens())
    for name, ours in sent.items():
        token = ours["headers"]["id"]
        app = make_app(broker.settings)
        with app.producer_pool.acquire(block=True) as producer:
            broker.waker._publish(producer, *PAIR, token, "first" if name == first else "more")
        app.close()
        kombus = json.loads(broker.redis.lpop(f"{broker.prefix}:{name}"))
        assert ours["properties"].pop("delivery_tag") == token, "unlike any other message's"
        assert kombus["properties"].pop("delivery_tag")
        assert ours == kombus
