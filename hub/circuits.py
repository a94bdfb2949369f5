"""A peer that is down is left alone by all processes, asked again by exactly one call, and nobody else suffers.

One circuit per (store, side, group). pybreaker decides what each end of a call means; its storage here lives in Redis
with exact times, is told of an end in one atomic step, and pybreaker's lock is never held during a call.

- `failures` failures in a row of distinct (operation, key) open it: one bad SKU opens nothing. So do alternating
  failures: two fifths of the calls of a minute, and twice as many distinct ones.
- A call that ran into its deadline makes the circuit *suspect* for a moment: those that are just as old are about to
  tell whether the peer hangs, and until then no call starts that would only join them. A success or a refusal ends
  that at once, in whichever process knows that somebody waits: a peer that answers others loses next to nothing, one
  with a single call under way up to a second. It is no opening: nothing is told, counted or shut.
- Refusals (4xx) neither count nor reset; a probe that is refused gives way to the next one.
- Open for `open_seconds`, doubling with every probe that fails up to `longest_seconds`; then one probe for all.
- While Redis is away each process has circuits of its own (without the rule for alternating failures).
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

import pybreaker

from hub.errors import Side, Unavailable
from hub.limits import Board, Script

log = logging.getLogger(__name__)

WINDOW = 60.0
"""Seconds in which alternating failures are counted."""
REMEMBERED = 600.0
"""Seconds after which failures that nothing followed are forgotten."""
LOOK_AGAIN = 1.0
"""Seconds that those wait at most who find another call's probe under way."""

SUSPICION = 1.0
"""Seconds for which a circuit is suspect at most: calls that were sent together end together."""
SUSPICION_PART = 0.1
"""The part of a call's deadline for which the circuit is suspect: where deadlines are short, so are answers."""

State = Literal["open", "half-open"]


class Patience(Protocol):
    """When a circuit opens and for how long; `hub.settings.CircuitSettings` is one."""

    @property
    def failures(self) -> int:
        """Distinct failures in a row that open it."""

    @property
    def open_seconds(self) -> float:
        """How long it stays open the first time."""

    @property
    def longest_seconds(self) -> float:
        """How long it stays open at most."""

    @property
    def probes(self) -> int:
        """Good probes, one after the other, that close it."""


@dataclass(frozen=True, slots=True)
class StandardPatience:
    """The defaults of `queues.yaml`."""

    failures: int = 5
    open_seconds: float = 30.0
    longest_seconds: float = 600.0
    probes: int = 1


class Name(NamedTuple):
    """Which circuit."""

    store: str
    side: Side
    group: str


@dataclass(frozen=True, slots=True)
class Circuit:
    """A circuit that is not closed. `reopens_in`: seconds until it may be tried, 0 when it may be now."""

    store: str
    side: Side
    group: str
    state: State | Literal["closed"]
    since: datetime | None
    reopens_in: float
    why: str


class Verdict(NamedTuple):
    """May this call start? `word` as in admit.lua: 1 go, 2 circuit open, 3 held, 4 limit, 5 suspect. `wait` in s."""

    word: int
    wait: float
    failures: int = 0
    probe: bool = False


@dataclass(slots=True)
class _Alone:
    """A circuit of this process only; seconds of its own clock."""

    state: State | None = None
    until: float = 0.0
    since: datetime | None = None
    opened: int = 0
    why: str = ""
    failed: set[str] = field(default_factory=set)
    failed_at: float = 0.0
    probe: str = ""
    probe_until: float = 0.0
    good: int = 0
    good_by: str = ""
    suspect: float = 0.0


class Circuits:
    """All circuits of this process' peers. `on_change` is called after one opened or closed, by whoever did it."""

    def __init__(
        self,
        board: Board,
        prefix: str,
        patience: Patience | None = None,
        *,
        on_change: Callable[[Circuit], None] | None = None,
    ) -> None:
        self._board = board
        self._prefix = prefix
        self.patience: Patience = patience or StandardPatience()
        self._on_change = on_change
        self._script = Script("circuit.lua")
        self._alone: dict[Name, _Alone] = {}
        self._suspects: set[Name] = set()  # as far as this process knows: only their good calls have to tell
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._process = uuid.uuid4().hex[:8]

    def next_call(self) -> str:
        """An id for a call, unlike any other process' ids."""
        return f"{self._process}{next(self._numbers)}"

    def keys(self, name: Name) -> tuple[str, str, str]:
        """The Redis keys of `circuit`, `failed` and `recent`."""
        key = f"{self._prefix}:circuit:{name.store}:{name.side}:{name.group}"
        return key, f"{key}:failed", f"{key}:recent"

    # – the end of a call

    def ended(
        self, name: Name, call: str, verdict: Verdict, failure: Unavailable | None, what: str, *, overran: float = 0.0
    ) -> None:
        """Tell the circuit how an admitted call ended. `what` (operation and key) makes failures distinct.

        `overran`: seconds of the deadline that it ran into, 0 when it ended otherwise.
        """
        if failure is None and not self._matters(name, verdict):
            return  # nothing to reset: a good call costs no second trip
        doubt = min(SUSPICION, SUSPICION_PART * overran)
        storage = _Storage(self, name, call, verdict, what=what, why=str(failure) if failure else "", doubt=doubt)
        breaker = pybreaker.CircuitBreaker(
            fail_max=self.patience.failures,
            reset_timeout=self.patience.open_seconds,
            success_threshold=self.patience.probes,
            state_storage=storage,
            throw_new_error_on_trip=False,
        )
        try:
            breaker.call(_repeat, failure)
        except Unavailable:
            pass  # the caller has it already
        if storage.opened is not None:
            log.warning("circuit of %s %s %s opens for %.3g s: %s", *name, storage.opened, storage.why)
            self._tell(Circuit(*name, "open", datetime.now(UTC), storage.opened, storage.why))
        elif storage.closed:
            log.warning("circuit of %s %s %s closes", *name)
            self._tell(Circuit(*name, "closed", datetime.now(UTC), 0.0, ""))

    def _matters(self, name: Name, verdict: Verdict) -> bool:
        """Does a success change anything?"""
        return verdict.probe or verdict.failures > 0 or self._board.away or name in self._suspects

    def refused(self, name: Name, call: str, verdict: Verdict, *, answered: bool = False) -> None:
        """The call ended in a way that says nothing about the peer's health, or never started.

        `answered`: at least the peer does not hang.
        """
        if verdict.probe:
            self.verb(name, "release", call)
        elif answered and name in self._suspects:
            self.seen_good(name)
            self.verb(name, "lift", call)

    def seen_suspect(self, name: Name) -> None:
        """Some call ran into its deadline: the next answer that this process gets has to tell that it did."""
        self._suspects.add(name)

    def seen_good(self, name: Name) -> None:
        """What follows tells Redis that the peer answers; should that be too early, the next call hears of it."""
        self._suspects.discard(name)

    def _tell(self, circuit: Circuit) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(circuit)
        except Exception:  # a listener must not turn a call's end into something else
            log.exception("the listener of circuits failed")

    def verb(self, name: Name, verb: str, call: str, *args: str | float) -> int | None:
        """One verb of circuit.lua, or the same for this process alone. Times in seconds, in and out."""
        member = f"{name.side}:{name.group}"
        keys = (*self.keys(name), f"{self._prefix}:circuits:{name.store}")
        answer = self._board.run(self._script, keys, (verb, call, member, *args))
        if answer is not None:
            return answer[0]
        with self._lock:
            return self._alone_verb(self._alone.setdefault(name, _Alone()), verb, call, args)

    # – alone

    def alone_admit(self, name: Name, call: str, total: float) -> Verdict:
        """May this call start, as far as this process knows?"""
        with self._lock:
            circuit = self._alone.get(name)
            if circuit is None:
                return Verdict(1, 0.0)
            now = time.monotonic()
            if circuit.state is None and now < circuit.suspect:
                return Verdict(5, circuit.suspect - now)
            if circuit.state is None:
                return Verdict(1, 0.0, len(circuit.failed))
            till = circuit.until if circuit.state == "open" else circuit.probe_until
            if now < till:
                return Verdict(2, till - now, probe=circuit.state == "half-open")
            circuit.state, circuit.probe, circuit.probe_until = "half-open", call, now + total + LOOK_AGAIN
            return Verdict(1, 0.0, probe=True)

    def seen_open(self, name: Name, wait: float) -> None:
        """Redis said that the circuit is open: remembered in case Redis goes away."""
        with self._lock:
            circuit = self._alone.setdefault(name, _Alone(opened=1, since=datetime.now(UTC)))
            circuit.state, circuit.until = "open", time.monotonic() + wait

    def seen_closed(self, name: Name) -> None:
        """Redis said that calls may start: what this process knew alone is forgotten."""
        if name in self._alone:
            with self._lock:
                self._alone.pop(name, None)

    def _alone_verb(self, circuit: _Alone, verb: str, call: str, args: Sequence[str | float]) -> int:
        now = time.monotonic()
        probing = circuit.state == "half-open" and circuit.probe == call
        match verb:
            case "fail" if circuit.state is None:
                if now - circuit.failed_at > REMEMBERED:
                    circuit.failed.clear()
                circuit.failed_at = now
                circuit.failed.add(str(args[0]))
                if float(args[4]) > 0:
                    circuit.suspect = max(circuit.suspect, now + float(args[4]) / 1e6)
                return len(circuit.failed)
            case "reset" if circuit.state is None:
                circuit.failed.clear()
                circuit.suspect = 0.0
            case "lift":
                circuit.suspect = 0.0
            case "open" if circuit.state is None or probing:
                length = min(float(args[0]) * 2.0 ** min(circuit.opened, 30), float(args[1]))
                circuit.since = circuit.since or datetime.now(UTC)
                circuit.state, circuit.until, circuit.why = "open", now + length / 1e6, str(args[2])
                circuit.opened += 1
                circuit.failed.clear()
                circuit.suspect = 0.0
                circuit.good, circuit.probe, circuit.good_by, circuit.probe_until = 0, "", "", 0.0
                return int(length)
            case "good" if probing:
                circuit.probe, circuit.probe_until, circuit.good_by = "", 0.0, call
                circuit.good += 1
                return circuit.good
            case "close" if circuit.state == "half-open" and circuit.good_by == call and circuit.good >= int(args[0]):
                circuit.state, circuit.opened, circuit.since, circuit.good = None, 0, None, 0
                circuit.failed.clear()
                return 1
            case "release" if probing:
                circuit.probe, circuit.probe_until = "", 0.0
        return 0

    # – for people and gates

    def status(self, store: str) -> list[Circuit]:
        """The store's circuits that are not closed, sorted by side and group."""
        members = self._board.ask("SMEMBERS", f"{self._prefix}:circuits:{store}")
        if members is None:
            return self._alone_status(store)
        found = []
        for member in sorted(member.decode() for member in members):
            side, _, group = member.partition(":")
            circuit = self._read(Name(store, "vtex" if side == "vtex" else "marketplace", group))
            if circuit is not None:
                found.append(circuit)
        return found

    def shut_for(self, store: str, side: Side | None = None, group: str | None = None) -> float | None:
        """Seconds until the last of the store's circuits (of this side, of this group) may be tried; `None`: closed."""
        waits = [
            circuit.reopens_in
            for circuit in self.status(store)
            if side in (None, circuit.side) and group in (None, circuit.group)
        ]
        return max(waits, default=None)

    def _read(self, name: Name) -> Circuit | None:
        fields = self._board.ask("HMGET", self.keys(name)[0], "state", "since", "until", "probe_until", "why")
        clock = self._board.ask("TIME")
        if fields is None or clock is None or fields[0] is None:
            return None
        state, since, until, probe_until, why = ((part or b"").decode() for part in fields)
        now = _microseconds(clock)
        till = float((until if state == "open" else probe_until) or 0)
        return Circuit(
            *name,
            state="open" if state == "open" else "half-open",
            since=datetime.fromtimestamp(float(since) / 1e6, UTC) if since else None,
            reopens_in=max(0.0, (till - now) / 1e6),
            why=why,
        )

    def _alone_status(self, store: str) -> list[Circuit]:
        with self._lock:
            now = time.monotonic()
            return [
                Circuit(
                    *name,
                    state=circuit.state,
                    since=circuit.since,
                    reopens_in=max(0.0, (circuit.until if circuit.state == "open" else circuit.probe_until) - now),
                    why=circuit.why,
                )
                for name, circuit in sorted(self._alone.items())
                if name.store == store and circuit.state is not None
            ]


class _Storage(pybreaker.CircuitBreakerStorage):
    """What pybreaker knows of one circuit during the end of one call; every change is one atomic step in Redis."""

    def __init__(
        self, circuits: Circuits, name: Name, call: str, verdict: Verdict, *, what: str, why: str, doubt: float
    ) -> None:
        super().__init__("redis")
        self._circuits, self._of, self._call, self._what = circuits, name, call, what
        self._doubt = doubt
        self._failures, self._good = verdict.failures, 0
        self._probe = verdict.probe
        self._state = pybreaker.STATE_HALF_OPEN if verdict.probe else pybreaker.STATE_CLOSED
        self.why = why
        self.opened: float | None = None
        self.closed = False

    @property
    def state(self) -> str:
        """As it was when the call was admitted, or as this call made it."""
        return str(self._state)

    @state.setter
    def state(self, state: str) -> None:
        patience = self._circuits.patience
        if state == pybreaker.STATE_OPEN:
            length = self._verb("open", patience.open_seconds * 1e6, patience.longest_seconds * 1e6, self.why)
            self.opened = length / 1e6 if length else None
        elif state == pybreaker.STATE_CLOSED:
            self.closed = self._verb("close", patience.probes) == 1
        self._state = state

    def increment_counter(self) -> None:
        """Count a failure, unless the same operation and key failed before."""
        if not self._probe:
            limit = self._circuits.patience.failures
            doubt = int(self._doubt * 1e6)
            self._failures = self._verb("fail", self._what, limit, WINDOW * 1e6, REMEMBERED * 1e6, doubt)
            if doubt and self._failures:
                self._circuits.seen_suspect(self._of)

    def reset_counter(self) -> None:
        """Forget the failures in a row; a circuit that is not closed has none."""
        if not self._probe and self._state == pybreaker.STATE_CLOSED:
            self._circuits.seen_good(self._of)
            self._verb("reset")

    def increment_success_counter(self) -> None:
        """Count a good probe."""
        self._good = self._verb("good")

    def reset_success_counter(self) -> None:
        """Opening and closing do that in the same step."""

    @property
    def counter(self) -> int:
        """Distinct failures in a row."""
        return self._failures

    @property
    def success_counter(self) -> int:
        """Good probes, one after the other."""
        return self._good

    @property
    def opened_at(self) -> datetime | None:
        """Kept by Redis' clock, and asked for in admit.lua only."""
        return None

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        pass

    def _verb(self, verb: str, *args: str | float) -> int:
        return self._circuits.verb(self._of, verb, self._call, *args) or 0


def _repeat(failure: Unavailable | None) -> None:
    if failure is not None:
        raise failure


def _microseconds(clock: Sequence[bytes | int]) -> float:
    return int(clock[0]) * 1e6 + int(clock[1])
