"""A peer that counts calls: no window ever has more than its rate, and close to all of it is used.

Simulated time on a real Valkey: the time of every question is given along with it, so what is seen here does not depend
on the machine. Several processes share a budget; their threads oversleep, their processes stand still, and what was
sent is on its way for a while.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import redis

from hub.circuits import Name
from hub.limits import ARREARS, LATE, LONGEST_SLEEP, MARGIN, Budget
from hub.runtime.embedded import Valkey
from hub.transport import GO, Calling, Transport

from .conftest import Opened

BEGIN = 1_700_000_000_000_000
"""Microseconds: any time will do."""
JITTER = MARGIN - LATE
"""How much longer than others a call may be on its way to the peer."""


@pytest.fixture
def real(valkey: Valkey) -> Iterator[redis.Redis]:
    client: redis.Redis = redis.Redis.from_url(valkey.url)
    yield client
    client.close()


@dataclass
class World:
    """Callers on several processes, their budget, and a clock that is moved on from one event to the next."""

    processes: list[Transport]
    budget: Budget
    chance: random.Random
    overslept: Callable[[], float] = lambda: 0.0
    stalls: list[list[tuple[float, float]]] = field(default_factory=list)
    """Of each process: from when to when it stands still, in seconds."""
    now: int = BEGIN
    sent: list[float] = field(default_factory=list)
    """When calls were sent, in seconds from the beginning."""
    waits: dict[str, list[float]] = field(default_factory=dict)
    """Of each context: seconds from the first question to the token."""
    _due: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def after(self, seconds: float, what: Callable[[], None], process: int = 0) -> None:
        """Do it then, or as soon as the process stands still no more."""
        at = self.now + round(seconds * 1e6)
        for begin, end in self.stalls[process] if self.stalls else ():
            if begin <= (at - BEGIN) / 1e6 < end:
                at = BEGIN + round(end * 1e6)
        heapq.heappush(self._due, (at, next(self._numbers), what))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        while self._due and self._due[0][0] < BEGIN + seconds * 1e6:
            self.now, _, what = heapq.heappop(self._due)
            what()

    def caller(
        self, context: str, store: str = "a", process: int = 0, *, latency: float = 0.05, pause: float = 0.0
    ) -> None:
        """A thread that calls without end: waits for its token as `Peer` does, calls, and does something else."""
        out, who, name = self.processes[process], Calling(store, context), Name(store, "marketplace", "g")
        waited, call = 0.0, ""

        def begin() -> None:
            nonlocal waited, call
            waited, call = 0.0, out.circuits.next_call()
            ask()

        def ask() -> None:
            nonlocal waited
            verdict = out.admit(
                name, call, budget=self.budget, who=who, total=1.0, horizon=LONGEST_SLEEP - waited, at=self.now
            )
            due = self.now + verdict.wait * 1e6
            if verdict.word == GO:
                self.waits.setdefault(context, []).append(waited + verdict.wait)
                self.after(verdict.wait + self.overslept(), lambda: look(due, verdict.wait), process)
            elif waited + verdict.wait > LONGEST_SLEEP:
                self.after(verdict.wait, begin, process)
            else:
                waited += max(verdict.wait, 0.001)
                self.after(max(verdict.wait, 0.001) + self.overslept(), ask, process)

        def look(due: float, waited: float) -> None:
            more = out.limits.still_to_wait(self.budget, call, waited)
            if more > 0:
                self.after(more + self.overslept(), lambda: send(due + more * 1e6), process)
            else:
                send(due)

        def send(due: float) -> None:
            self.sent.append((self.now - BEGIN) / 1e6)
            by = (self.now - due) / 1e6
            self.after(latency, lambda: answered(by), process)

        def answered(by: float) -> None:
            out.limits.sent_late(self.budget, call, by)
            self.after(self.chance.random() * 2 * pause, begin, process)

        self.after(self.chance.random() * max(pause, latency), begin, process)

    def arrivals(self) -> list[float]:
        """When the calls reached the peer."""
        return sorted(at + self.chance.random() * JITTER for at in self.sent)


def most(arrivals: list[float], window: float) -> int:
    """The most arrivals in any window of that length, wherever it begins."""
    found, oldest = 0, 0
    for newest, at in enumerate(arrivals):
        while arrivals[oldest] <= at - window:
            oldest += 1
        found = max(found, newest - oldest + 1)
    return found


def made(opened: Opened, real: redis.Redis, rate: float, seed: int, processes: int = 3) -> World:
    together = [opened(real, prefix="same").transport for _ in range(processes)]
    return World(together, Budget("m:acme", rate=rate, burst=1), random.Random(seed))


@pytest.mark.parametrize(("rate", "calls"), [(50.0, 50), (12.5, 12), (3.0, 3), (0.5, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_no_window_has_more_calls_than_the_peer_counts_whatever_is_late(
    opened: Opened, real: redis.Redis, rate: float, calls: int, seed: int
) -> None:
    world = made(opened, real, rate, seed)
    chance, lasts = world.chance, min(250 / rate, 120.0)
    world.overslept = lambda: chance.random() * (0.3 if chance.random() < 0.1 else LATE)
    for _ in world.processes:
        begins = [chance.random() * lasts for _ in range(round(lasts / 3))]
        world.stalls.append([(begin, begin + chance.random() * 0.4) for begin in begins])
    for process, (context, store) in enumerate(
        itertools.product(("order", "stock", "price", "catalog", "load", "load"), ("a", "b"))
    ):
        pause = chance.choice((0.0, 0.0, 0.3, 2.0))
        world.caller(context, store, process % 3, latency=chance.choice((0.02, 0.05, 0.2)), pause=pause)
    world.run(lasts)
    assert len(world.sent) > 0.7 * rate * lasts, "they would have had enough to do"
    assert most(world.arrivals(), calls / rate) <= calls


@pytest.mark.parametrize("context", ["stock", "load"])
def test_who_has_enough_to_do_uses_nearly_all_of_it_although_threads_oversleep(
    opened: Opened, real: redis.Redis, context: str
) -> None:
    world = made(opened, real, 50.0, 7, processes=1)
    world.overslept = lambda: world.chance.random() * 0.015
    for _ in range(12):
        world.caller(context, latency=0.1)
    world.run(20)
    assert len(world.sent) >= 0.95 * 50 * 20
    assert most(world.arrivals(), 1.0) <= 50


def test_what_a_pause_has_missed_is_made_up_for(opened: Opened, real: redis.Redis) -> None:
    """A tenth of the time nobody can call, and less than a fiftieth is lost."""
    world = made(opened, real, 50.0, 3, processes=1)
    world.stalls = [[(at, at + 0.1) for at in (number + world.chance.random() * 0.9 for number in range(20))]]
    for _ in range(16):
        world.caller("stock", latency=0.05)
    world.run(20)
    assert len(world.sent) >= 0.955 * 50 * 20
    assert most(world.arrivals(), 1.0) <= 50


def test_a_quiet_time_is_no_arrears_so_calls_begin_one_by_one(opened: Opened, real: redis.Redis) -> None:
    world = made(opened, real, 50.0, 1, processes=1)
    world.now = BEGIN + 60_000_000
    for _ in range(10):
        world.caller("order", latency=0.001)
    world.run(60.1)
    assert most(world.arrivals(), 0.001) <= 2
    assert len(world.sent) <= 6


def test_an_order_waits_for_no_load_and_a_store_with_little_to_do_for_no_busy_one(
    opened: Opened, real: redis.Redis
) -> None:
    world = made(opened, real, 50.0, 5, processes=2)
    for number in range(10):
        world.caller("load", "loading", number % 2, latency=0.05)
        world.caller("stock", "busy", number % 2, latency=0.1)
    world.caller("order", "quiet", pause=0.5)
    world.caller("price", "other", pause=0.5)
    world.run(20)
    longest = {context: max(waits) for context, waits in world.waits.items()}
    assert longest["order"] < ARREARS + 0.1, longest
    assert longest["price"] < ARREARS + 0.2, longest
    assert len(world.waits["stock"]) > 2 * len(world.waits["load"]), "loads come last"
    assert len(world.sent) >= 0.95 * 50 * 20
