"""Nobody calls a peer more often than its account may, whatever the number of stores, processes and machines.

A limit belongs to the account that VTEX or the marketplace's manifest names. It is one bucket in Redis (GCRA, exact
microseconds of Redis' clock), so that everybody sees the same. Nobody books further ahead than `LONGEST_SLEEP`.

**Counted calls** (a burst of 1): the peer counts `rate` calls in any second and takes no more. Beside the bucket Redis
keeps when each call of the last second starts, and the next one starts when fewer than `rate` of them lie within a
second and `MARGIN` before it. That makes the law exact, so calls are paced evenly, but what was missed while somebody
waited – a thread that overslept, a claim that ended – is made up for at once, up to `ARREARS`, instead of being lost.
A call that started later than it was granted says so (`sent_late`), and one that was granted long before looks again
(`still_to_wait`).

**Order of service** (design 5): order, fulfilment, stock, price, catalog, load. The less important a context, the
less far ahead it may book, so that what is more important always finds a place before it. A load – and whatever else a
load asked for – leaves a fifth of the bucket untouched and books nothing ahead, except where a claim of catalog, price
or stock keeps room: that is kept before anybody knows which keys the claim will take, and so at the rank of its
context, and the calls it was kept for use all of it. It is little and brief, and neither what is more important nor a
store that had less than its part sees it.

**Turns**: each store of an account has a clock of its own that every call moves on by its part of the budget. Whoever
is behind it (had less than its part) may book as far ahead as its context allows, past what others keep for claims;
whoever is ahead of it books `NEAR` at most, so that a quiet store finds its place at once, and while others have to
wait gets no more than its equal part. A store that waits for less important work does not count. Nobody waits: whoever
asks gets everything. Refused calls come back one after the other, and those that have waited long may book further.

**Holds**: after a 429, or when rate headers say that nothing is left, no process calls that account and group before
the time that the peer named.

While Redis is away every process goes on alone, with a quarter of each budget, and asks for Redis once a second.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

log = logging.getLogger(__name__)

LONGEST_SLEEP = 1.0
"""Seconds that a call may wait for its token while it holds a thread; more is `Throttled`."""
LONGEST_HOLD = 900.0
"""Seconds; a peer that names a later time is asked again then."""
SPENT = 0.965
"""The part of a peer's rate that we use where it has a burst: calls granted evenly arrive a little unevenly."""
MARGIN = 0.025
"""Seconds by which a counted window is longer for us than for the peer: calls arrive with delays that differ."""
ARREARS = 0.15
"""Seconds' worth of counted calls that are made up for. They come together, and so leave as long a pause a second
later, in which live work waits as well."""
MOST_COUNTED = 1000
"""Calls in a window up to which each is remembered; more are granted evenly, and never made up for."""
LATE = 0.004
"""Seconds after its token that a call may start without saying so; the margin has room for that."""
NEAR = 0.06
"""Seconds that a store which had its part may book ahead (four calls where calls are rarer)."""
ALONE = 0.25
"""The part of a budget that one process uses while Redis is away: others do the same."""
ROOM_AHEAD = 1.5
"""Seconds over which claims may keep room: they read before they write, and meanwhile nobody else would call. Tokens
are still taken one by one as the calls come, in order of service, and the longest wait for one is a second."""
ROOM_LIFE = 5.0
"""Seconds that room kept for a claim stays kept."""
BRIEF = 0.01
"""Seconds: calls that an account makes in so little time need no room kept, and no trip to give it back."""

LONG_AGO = 0.3
"""Seconds after which a granted call looks again whether the window still has room for it: what started late a window
before it is known by then. Others were granted when that was known already."""
QUEUE = 0.25
"""Seconds over which loads that wait for tokens return one after the other instead of all for the next token."""

FEW = 32
"""Calls that may wait for tokens at once: the crew's part of one store, the threads of its claims, and some more."""

RANKS = {"order": 0, "fulfilment": 1, "stock": 2, "lot": 2, "price": 3, "catalog": 4, "load": 5, "reconcile": 5}
"""Order of service; what is not named here comes with catalog."""
LOAD = RANKS["load"]
HORIZONS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.0)
"""How far ahead each rank may book, in seconds."""


def rank_of(context: str, *, for_load: bool = False) -> int:
    """The place of a context in the order of service; `for_load` when a load asked for the work."""
    return LOAD if for_load else RANKS.get(context, RANKS["catalog"])


@dataclass(frozen=True, slots=True)
class Budget:
    """`rate` calls per second with `burst`, shared by everybody who names the same `account`; rate 0: no limit.

    In any second at most `rate` × 0.965 + `burst` calls start: `burst` is what the peer allows beyond its rate after a
    quiet time. One that counts `rate` calls in any second allows nothing beyond: it has a burst of 1, and then never
    more than `rate` calls reach it in any second (a rate below 1: one call in as long as it takes).
    `obeyed`: seconds without calls that the peer's wish can cost at most.
    """

    account: str
    rate: float = 0.0
    burst: int = 1
    obeyed: float = LONGEST_HOLD

    @property
    def interval(self) -> int:
        """Whole microseconds between two calls: Lua's numbers hold a time of today exactly only when it is whole."""
        if self.counted:
            return math.ceil(self.window / self.counted)
        return math.ceil(1e6 / (self.rate * SPENT)) if self.rate > 0 else 0

    @property
    def counted(self) -> int:
        """Calls that may start in any `window`; 0 when the peer has a burst and counts none."""
        return max(1, int(self.rate)) if self.burst <= 1 and 0 < self.rate <= MOST_COUNTED else 0

    @property
    def window(self) -> int:
        """In microseconds: a second and the margin, where the rate is a whole number."""
        return math.ceil(1e6 * (self.counted / self.rate + MARGIN)) if self.counted else 0

    @property
    def depth(self) -> int:
        """The bucket in microseconds."""
        return self.interval * max(1, self.burst)

    @property
    def turn(self) -> int:
        """Length of a turn in microseconds."""
        return max(1_000_000, 4 * self.interval)

    def near(self, rank: int) -> int:
        """How far ahead a store may book that had its part, in microseconds."""
        return int(max(NEAR * 1e6, 4 * self.interval) * HORIZONS[rank])

    @property
    def ahead(self) -> float:
        """Seconds over which claims keep room: where calls are rare, as long as one may wait for its token."""
        return ROOM_AHEAD if self.interval * FEW <= LONGEST_SLEEP * 1e6 else LONGEST_SLEEP

    def spare(self, rank: int) -> int:
        """What a rank must leave in the bucket, in microseconds."""
        return self.depth // 5 if rank >= LOAD else 0


class Room(NamedTuple):
    """Calls a claim may make now. `granted` 0: nothing before `wait` seconds. `ticket` goes into `Calling.ticket`.

    `calm`: Redis said in the same breath that all circuits of the store are closed.
    """

    granted: int
    wait: float
    ticket: str = ""
    calm: bool = False


class Script:
    """A Lua file next to this module, known to Redis by its digest."""

    def __init__(self, name: str) -> None:
        self.text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        self.digest = ""


class Board:
    """What all processes know together: Redis, or nothing while it is away. Never raises an error of Redis.

    One connection per thread (the lock of a shared pool is held during system calls: 32 threads spent 40 % of their
    time waiting for it), time-outs of half a second; while Redis is away one thread asks for it once a second.
    """

    def __init__(self, server: str | redis.Redis | None, *, again_after: float = 1.0) -> None:
        self._server = server
        self._own = threading.local()
        self._clients: weakref.WeakSet[redis.Redis] = weakref.WeakSet()
        self._again_after = again_after
        self._away_until = 0.0
        self._away = False
        self._lock = threading.Lock()

    @property
    def away(self) -> bool:
        """True while every process is on its own."""
        return self._server is None or self._away

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> list[int] | None:
        """What the script answers; `None` while Redis is away."""
        answer: list[int] | None = self._ask(lambda client: _evaluate(client, script, keys, args))
        return answer

    def ask(self, *command: str) -> Any:
        """What one command answers (bytes); `None` while Redis is away."""
        return self._ask(lambda client: client.execute_command(*command))

    def _ask(self, question: Any) -> Any:
        if self._server is None or not self._may_ask():
            return None
        try:
            answer = question(self._client())
        except (RedisError, OSError) as error:
            with self._lock:
                first, self._away = not self._away, True
                self._away_until = time.monotonic() + self._again_after
            if first:
                log.warning("Redis is away (%s): limits and circuits are kept by each process", type(error).__name__)
            return None
        if self._away:
            with self._lock:
                self._away = False
            log.warning("Redis is back: limits and circuits are shared again")
        return answer

    def _client(self) -> Any:  # redis-py leaves its general call untyped
        """This thread's client; making one connects."""
        if not isinstance(self._server, str):
            return self._server
        client = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = _client(self._server)
            with self._lock:
                self._clients.add(client)
        return client

    def _may_ask(self) -> bool:
        if not self._away:
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._away_until:
                return False
            self._away_until = now + self._again_after
            return True

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            client.close()


def _client(url: str) -> redis.Redis:
    # One retry, and none after a time-out: a connection that a restarted Redis has closed is replaced at once.
    retry = Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,))
    return redis.Redis.from_url(
        url,
        socket_timeout=0.5,
        socket_connect_timeout=0.5,
        retry=retry,
        decode_responses=False,
        protocol=2,
        single_connection_client=True,
    )


def _evaluate(client: Any, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
    if script.digest:
        try:
            return client.execute_command("EVALSHA", script.digest, len(keys), *keys, *args)
        except NoScriptError:
            pass  # restarted meanwhile: the text goes along once
    script.digest = str(client.script_load(script.text))
    return client.execute_command("EVAL", script.text, len(keys), *keys, *args)


class Limits:
    """Budgets and holds. The token itself is taken together with the circuit's word, in `hub/admit.lua`."""

    def __init__(self, board: Board, prefix: str) -> None:
        self._board = board
        self._prefix = prefix
        self._room = Script("room.lua")
        self._hold = Script("hold.lua")
        self._late = Script("late.lua")
        self._budgets: dict[str, Budget] = {}
        self._numbers = itertools.count(1)
        self._process = uuid.uuid4().hex[:8]
        self._lock = threading.Lock()
        self._alone_tat: dict[str, float] = {}
        self._alone_holds: dict[tuple[str, str], float] = {}

    def register(self, budget: Budget) -> None:
        """Say what an account may spend; the last word counts."""
        self._budgets[budget.account] = budget

    def key(self, kind: str, account: str) -> str:
        """The Redis key of an account's `limit`, `waiting`, `parts`, `kept` or `sent`."""
        return f"{self._prefix}:{kind}:{account}"

    def hold_key(self, account: str, group: str) -> str:
        """The Redis key of a hold."""
        return f"{self._prefix}:hold:{account}:{group}"

    def room(
        self, account: str, want: int, context: str, *, store: str = "", group: str = "default", for_load: bool = False
    ) -> Room:
        """Keep room for up to `want` calls of a claim that is about to start; an unknown account has no limit.

        What is kept is kept for five seconds or until `release`. Each call still takes its own token, those with the
        ticket first. While Redis is away nothing can be kept and only what a process may do alone is granted.
        """
        budget = self._budgets.get(account)
        if want < 1 or budget is None:
            return Room(want, 0.0)
        rank = rank_of(context, for_load=for_load)
        ticket = f"{self._process}{next(self._numbers)}@{store}"
        answer = self._board.run(
            self._room,
            (
                self.hold_key(account, group), self.key("limit", account), self.key("kept", account),
                self.key("parts", account), f"{self._prefix}:circuits:{store}",
            ),
            (
                budget.interval, budget.depth, int(budget.ahead * 1e6), rank, budget.spare(rank),
                want, ticket, int(ROOM_LIFE * 1e6), store,
                int(BRIEF * 1e6),
            ),
        )  # fmt: skip
        if answer is not None:
            return Room(answer[0], answer[1] / 1e6, ticket if answer[3] else "", calm=not answer[2])
        held = self.alone_hold(account, group)
        if held > 0:
            return Room(0, held)
        with self._lock:
            ahead, interval, depth = self._alone(budget, rank)
        over = ahead + interval - depth - HORIZONS[rank]
        if interval <= 0 or over <= 0:
            return Room(min(want, 1 + int(-over / interval)) if interval > 0 else want, 0.0)
        return Room(0, over)

    def release(self, account: str, ticket: str) -> None:
        """Give back what a claim has not used of its room."""
        if ticket:
            self._board.ask("HDEL", self.key("kept", account), ticket)

    def sent_late(self, budget: Budget, call: str, seconds: float) -> None:
        """A call started so many seconds after its token; less than `LATE` is not worth the trip."""
        if budget.counted and seconds > LATE:
            self._moved(budget, call, math.ceil(seconds * 1e6))

    def still_to_wait(self, budget: Budget, call: str, waited: float) -> float:
        """Seconds that a call has to wait beyond its token, because others started late since it was granted."""
        return self._moved(budget, call, 0) / 1e6 if budget.counted and waited > LONG_AGO else 0.0

    def _moved(self, budget: Budget, call: str, by: int) -> int:
        where = (self.key("sent", budget.account),)
        answer = self._board.run(self._late, where, (call, by, budget.counted, budget.window))
        return answer[0] if answer else 0

    def hold(self, account: str, group: str, seconds: float) -> None:
        """No call of this account and group by any process for so many seconds, at most `LONGEST_HOLD`."""
        seconds = min(seconds, LONGEST_HOLD)
        if seconds <= 0:
            return
        with self._lock:
            till = time.monotonic() + seconds
            self._alone_holds = {at: ends for at, ends in self._alone_holds.items() if ends > till - seconds}
            self._alone_holds[account, group] = max(till, self._alone_holds.get((account, group), 0.0))
        self._board.run(self._hold, (self.hold_key(account, group),), (int(seconds * 1e6),))

    # – alone, while Redis is away; seconds of this process' clock

    def alone_hold(self, account: str, group: str) -> float:
        """Seconds that a hold this process has heard of still lasts."""
        return max(0.0, self._alone_holds.get((account, group), 0.0) - time.monotonic())

    def alone_take(self, budget: Budget, rank: int) -> tuple[bool, float]:
        """(granted, wait in seconds): a token of what this process may spend alone."""
        with self._lock:
            ahead, interval, depth = self._alone(budget, rank)
            wait = ahead + interval - depth
            if wait > HORIZONS[rank]:
                return False, wait
            now = time.monotonic()
            self._alone_tat[budget.account] = max(self._alone_tat.get(budget.account, 0.0), now) + interval
            return True, max(0.0, wait)

    def _alone(self, budget: Budget, rank: int) -> tuple[float, float, float]:
        """(how full the bucket is, interval, depth) in seconds; the last fifth counts as full for a load."""
        interval = budget.interval / ALONE / 1e6
        depth = interval * max(1, int(budget.burst * ALONE))
        spare = depth / 5 if rank >= LOAD else 0.0
        now = time.monotonic()
        return max(self._alone_tat.get(budget.account, 0.0), now - spare) - now + spare, interval, depth
