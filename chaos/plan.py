"""Which faults a run suffers: drawn whole from its seed before anything starts.

The promise: the same seed and sizes give the same plan; every fault that is named here is in a plan of full size; at
least `Sizes.kills` of its strikes are kills; a dependency comes back before the next one goes, so that its recovery is
its own.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

UNREACHABLE_SECONDS = 20.0
"""How long a dependency stays unreachable."""
SETTLE_SECONDS = 12.0
"""How long a dependency that came back stays at least. The driver lets the next one go only when the hub is at work
again or is not looked at any longer (`Strikes.carry_out`)."""
WARM_UP_SECONDS = 2.0
RETRY_AFTERS = ("-5", "999999999999", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "1e3")
"""Absurd values of `Retry-After`: negative, huge, garbage, a date long past, a number in the wrong form."""


class Fault(StrEnum):
    """What goes wrong. `KINDS` says to whom."""

    # one of our processes
    KILL = "kill -9"
    PAUSE = "stopped for longer than a lease"
    TERM = "SIGTERM"
    # what our processes need
    VALKEY_KILL = "kill -9 of Valkey, back with its data"
    VALKEY_KILL_EMPTY = "kill -9 of Valkey, back without its data"
    POSTGRES_KILL = "kill -9 of PostgreSQL"
    VALKEY_REFUSES = "Valkey refuses connections"
    VALKEY_SILENT = "Valkey is silent"
    POSTGRES_REFUSES = "PostgreSQL refuses connections"
    POSTGRES_SILENT = "PostgreSQL is silent"
    RABBIT_KILL = "kill -9 of RabbitMQ"
    RABBIT_REFUSES = "RabbitMQ refuses connections"
    RABBIT_SILENT = "RabbitMQ is silent"
    # the peers' answers
    ERROR = "answers 500"
    THROTTLE = "answers 429 with seconds"
    THROTTLE_DATE = "answers 429 with a date"
    THROTTLE_ABSURD = "answers 429 with nonsense"
    HANG_AFTER = "does it and does not answer"
    LIE = "answers 200 and does nothing"
    STALE = "reads as before the last change"
    CUT = "cuts the answer in mid-body"
    DRIP = "drips the answer for a minute"
    # what is announced
    NEWS_LOST = "notifications are lost"
    NEWS_DOUBLED = "notifications are doubled"
    NEWS_SHUFFLED = "notifications come in another order"
    NEWS_LATE = "notifications come late"
    EVENTS_BENT = "the marketplace's events are lost, doubled and late"
    # orders
    ORDER_TIMEOUT = "an order is created without an answer"
    RESULTS_DOUBLED = "results of orders come twice"
    RESULTS_INVERTED = "results of orders come in the wrong order"
    RESULTS_MISSING = "results of orders are missing"
    # people at work
    MAPPING = "a category mapping is saved"
    VTEX_CREDENTIALS = "VTEX credentials are rotated"
    MARKETPLACE_CREDENTIALS = "marketplace credentials are rotated"


PROCESSES = (Fault.KILL, Fault.PAUSE, Fault.TERM)
SERVER_KILLS = (Fault.VALKEY_KILL, Fault.VALKEY_KILL_EMPTY, Fault.POSTGRES_KILL, Fault.RABBIT_KILL)
CUTS = (
    Fault.VALKEY_REFUSES, Fault.VALKEY_SILENT, Fault.POSTGRES_REFUSES, Fault.POSTGRES_SILENT, Fault.RABBIT_REFUSES,
    Fault.RABBIT_SILENT,
)  # fmt: skip
DEPENDENCIES = (*SERVER_KILLS, *CUTS)
RABBIT = (Fault.RABBIT_KILL, Fault.RABBIT_REFUSES, Fault.RABBIT_SILENT)
"""Only where RabbitMQ is the broker."""
KILLS = (Fault.KILL, *SERVER_KILLS)
ANSWERS = (
    Fault.ERROR, Fault.THROTTLE, Fault.THROTTLE_DATE, Fault.THROTTLE_ABSURD, Fault.HANG_AFTER, Fault.LIE, Fault.STALE,
    Fault.CUT, Fault.DRIP,
)  # fmt: skip
NEWS = (Fault.NEWS_LOST, Fault.NEWS_DOUBLED, Fault.NEWS_SHUFFLED, Fault.NEWS_LATE, Fault.EVENTS_BENT)
ORDERS = (Fault.ORDER_TIMEOUT, Fault.RESULTS_DOUBLED, Fault.RESULTS_INVERTED, Fault.RESULTS_MISSING)
PEOPLE = (Fault.MAPPING, Fault.VTEX_CREDENTIALS, Fault.MARKETPLACE_CREDENTIALS)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. `seconds` is how long load and faults last at least; 0 derives it from the rest.

    `skus` is the total over all stores. `workers` is how many processes serve each pool and lane;
    `rabbit`: RabbitMQ is the broker.
    """

    notifications: int = 20_000
    skus: int = 2_000
    stores: int = 10
    kills: int = 30
    workers: int = 2
    seconds: float = 0.0
    rabbit: bool = False

    @property
    def window(self) -> float:
        """Seconds over which faults are spread: room for every outage and its recovery when the run is large."""
        return self.seconds or max(40.0, self.notifications / 100, self.kills * 6.0) + (100.0 if self.rabbit else 0.0)


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: `at` seconds after the load began, of `target`, for `seconds`. `option` refines it.

    `target` names a process, a side (`vtex`, `marketplace`) with a store's number as in `vtex:3`, or a store's number
    alone; of a dependency it is empty.
    """

    at: float
    fault: Fault
    target: str = ""
    seconds: float = 0.0
    option: str = ""

    @property
    def ends(self) -> float:
        """When it is over, in the same seconds as `at`."""
        return self.at + self.seconds

    def sentence(self) -> str:
        """One line of the printed plan."""
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        option = f" ({self.option})" if self.option else ""
        return f"{self.at:7.1f} s  {self.target or 'all'}: {self.fault.value}{option}{lasting}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run suffers, in order of time. `skew`: process → seconds that its wall clock is ahead."""

    seed: int
    sizes: Sizes
    strikes: tuple[Strike, ...]
    skew: tuple[tuple[str, float], ...]

    @property
    def kills(self) -> int:
        """How many strikes are kill -9."""
        return sum(strike.fault in KILLS for strike in self.strikes)

    @property
    def by_kind(self) -> dict[str, int]:
        """Fault → how often."""
        return dict(Counter(strike.fault.value for strike in self.strikes))


def worker_names(sizes: Sizes) -> list[str]:
    """The worker processes: each serves every pool, in one lane."""
    return [f"{lane}-{number}" for lane in ("first", "more") for number in range(1, sizes.workers + 1)]


def process_names(sizes: Sizes) -> list[str]:
    """Every process of the hub that a strike may hit."""
    return ["intake-1", "intake-2", "sweep-1", "sweep-2", *worker_names(sizes)]


def plan(seed: int, sizes: Sizes, *, lease: float) -> Plan:
    """Draw the plan. `lease`: seconds after which a silent worker has lost its keys; a pause outlasts it."""
    chance = random.Random(seed)
    outages = list(_outages(chance, sizes))
    kills = max(0, sizes.kills - sum(strike.fault in KILLS for strike in outages))
    strikes = [
        *outages,
        *_on_processes(chance, sizes, kills, lease),
        *_on_stores(chance, sizes),
    ]
    ahead = chance.choice((300.0, -300.0))
    skewed = (("intake-2", ahead), (chance.choice(worker_names(sizes)), -ahead), ("sweep-2", ahead))
    return Plan(seed, sizes, tuple(sorted(strikes, key=lambda one: (one.at, one.fault, one.target))), skewed)


def _outages(chance: random.Random, sizes: Sizes) -> Iterator[Strike]:
    """Each dependency away in every way, as many as fit, one after the other with time between."""
    there = [fault for fault in DEPENDENCIES if sizes.rabbit or fault not in RABBIT]
    kinds = chance.sample(there, len(there))
    at = WARM_UP_SECONDS + chance.uniform(1, 3)
    while True:
        for fault in kinds:
            seconds = UNREACHABLE_SECONDS if fault in CUTS else 0.0
            if at + seconds > sizes.window:
                return
            yield Strike(at, fault, seconds=seconds)
            at += seconds + SETTLE_SECONDS + chance.uniform(0, 2)


def _on_processes(chance: random.Random, sizes: Sizes, kills: int, lease: float) -> Iterator[Strike]:
    """So many kills, and half as many pauses and SIGTERMs; everybody in turn, so that nobody is spared."""
    pauses = terms = max(2, kills // 2)
    faults = [Fault.KILL] * kills + [Fault.PAUSE] * pauses + [Fault.TERM] * terms
    names = process_names(sizes)
    turns = {fault: itertools.cycle(chance.sample(names, len(names))) for fault in PROCESSES}
    chance.shuffle(faults)
    for at, fault in zip(_spread(chance, len(faults), sizes.window), faults, strict=True):
        seconds = lease * chance.uniform(1.3, 2.0) if fault is Fault.PAUSE else 0.0
        yield Strike(at, fault, next(turns[fault]), seconds)


def _on_stores(chance: random.Random, sizes: Sizes) -> Iterator[Strike]:
    """Every other fault at least once, and again about twice a minute, each of one store."""
    rounds = max(1, round(sizes.window / 60))
    faults = [*(ANSWERS * 2), *NEWS, *ORDERS, *PEOPLE] * rounds
    chance.shuffle(faults)
    sides = {fault: itertools.cycle(chance.sample(("vtex", "marketplace"), 2)) for fault in ANSWERS}
    for at, fault in zip(_spread(chance, len(faults), sizes.window), faults, strict=True):
        store = chance.randrange(sizes.stores)
        if fault in ANSWERS:
            option = chance.choice(RETRY_AFTERS) if fault is Fault.THROTTLE_ABSURD else ""
            yield Strike(at, fault, f"{next(sides[fault])}:{store}", chance.uniform(3, 8), option)
        elif fault in PEOPLE:
            yield Strike(at, fault, str(store), chance.uniform(0.5, 2))
        else:
            yield Strike(at, fault, str(store), chance.uniform(5, 15))


def _spread(chance: random.Random, count: int, window: float) -> Sequence[float]:
    """`count` moments, one in each equal part of the window."""
    part = (window - WARM_UP_SECONDS) / max(1, count)
    return [WARM_UP_SECONDS + part * (number + chance.random()) for number in range(count)]
