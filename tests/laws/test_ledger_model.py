"""The ledger against a plain model of the laws (design 2), on a real PostgreSQL: whatever order things happen in."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hub.errors import Problem
from hub.ledger import CREDENTIAL_RETRY, DEAD_PAUSE, Claim, Ledger
from hub.model import Ask, Urgency
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
)
from tests.laws.books import LANES, PATIENT, STORE, Books, books_at

KEYS = ("7", "A-b")
SLACK = 30.0
"""Seconds that the test itself may take; every time in it is a multiple of 50."""

outcomes = st.one_of(
    st.just(Done()),
    st.just(Done(look_again=100.0)),
    st.sampled_from(sorted(LANES)).map(lambda context: Done((Ask(STORE, context, "", "follow", 2),))),
    st.builds(Waiting, st.just("ticket"), st.just(150.0), st.booleans()),
    st.sampled_from((Parked("publication:7"), Parked("mapping:9"))),
    st.sampled_from((Refused((Problem("E3", "name", "x", "y"),), "hash-1"), Refused((), "hash-1"))),
    st.just(Refused((), "hash-1", look_again=100.0)),
    st.sampled_from((Postponed(100.0), Postponed(100.0, "store"))),
    st.sampled_from((Locked("vtex", 1), Locked("marketplace", 1, "context"))),
    st.just(Failed("no answer")),
    st.just(Failed("no answer")),
    st.just(Unknown("answer lost")),
    st.just(Released()),
)


Request = tuple[str, str, str, int, bool, int]
requests: st.SearchStrategy[Request] = st.tuples(
    st.sampled_from(sorted(LANES)),
    st.sampled_from(KEYS),
    st.sampled_from(("vtex", "load", "operator")),
    st.sampled_from((0, 1, 8)),
    st.booleans(),
    st.integers(1, 3),
)


@dataclass
class Known:
    """What the model says of one row; times are seconds of the model's own clock."""

    work: str = "p"
    asked: int = 1
    answered: int = 0
    claimed: int | None = None
    status: str = "new"
    attempts: int = 0
    urgency: int = 1
    heard: bool = False
    looks: int = 0
    since: float | None = None
    dirty: float | None = None
    due: float | None = None
    ended: float | None = None
    tried: bool = False
    confirmed: Any = None
    doubted: bool = False
    refused: str | None = None

    @property
    def covered(self) -> int:
        return self.answered if self.claimed is None else self.claimed


@dataclass
class Taken:
    """A claim the model knows: whose it is, until when, and which rows were in doubt when it was taken."""

    claim: Claim
    ledger: Ledger
    until: float
    doubted: frozenset[tuple[str, str]]
    alive: bool = True
    begun: set[tuple[str, str]] = field(default_factory=set)


_LEASES = """
select lane, key, claim from states where lane is not null
union all select context, key, claim from states where work = 'h' and context = 'catalog'
"""
"""Who holds what: the lane's own column where contexts share it, else the row itself."""


class Laws(RuleBasedStateMachine):
    url: ClassVar[str]
    books: ClassVar[Books]

    @initialize()
    def nothing_is_known(self) -> None:
        self.books.sql("truncate states, answers, claims, leases, gates, counters, interactions, workers")
        self.clock = 0.0
        self.rows: dict[tuple[str, str], Known] = {}
        self.taken: list[Taken] = []
        self.unsettled: list[Taken] = []
        self.gates: dict[tuple[str, str], float] = {}
        self.ledgers = [self.books.another(), self.books.another()]
        self.values = 0

    # ------------------------------------------------------------ what may happen

    @precondition(lambda self: sum(row.work == "p" for row in self.rows.values()) < 3)
    @rule(asks=st.lists(requests, min_size=1, max_size=4))
    def enqueue(self, asks: list[Request]) -> None:
        self.enqueued(asks)

    def enqueued(self, asks: list[Request]) -> None:
        waiting = {(STORE, context) for (context, _), row in self.rows.items() if row.work == "p"}
        woken = self.ledgers[0].enqueue(
            [Ask(STORE, context, key, source, urgency, heard, n) for context, key, source, urgency, heard, n in asks]
        )
        merged: dict[tuple[str, str], tuple[int, bool]] = {}
        for context, key, _, urgency, heard, _ in asks:
            known = merged.get((context, key), (urgency, heard))
            merged[context, key] = (min(known[0], urgency), known[1] or heard)
        for place, (urgency, heard) in merged.items():
            self.asked(place, urgency, heard)
        assert woken <= {(STORE, context) for context, _ in merged}
        pending = {(STORE, context) for (context, _), row in self.rows.items() if row.work == "p"} - waiting
        assert pending <= woken, "a new demand wakes nobody"

    def asked(self, place: tuple[str, str], urgency: int, heard: bool) -> None:
        """One demand, however many requests it stands for."""
        row = self.rows.get(place)
        if row is None:
            self.rows[place] = Known(urgency=urgency, heard=heard, since=self.clock)
            return
        fresh = row.asked == row.covered
        waits = row.asked > row.answered
        resting = row.work == "i" or (row.work == "s" and row.status in ("done", "refused", "parked"))
        touched = (
            fresh
            or (row.work == "s" and row.status in ("done", "refused"))
            or (waits and urgency < row.urgency)
            or (heard and (not row.heard or (row.looks > 0 and row.status != "unknown")))
        )
        row.urgency = min(row.urgency, urgency) if waits else urgency
        if touched and heard and row.status != "unknown":
            row.looks = 0
        elif row.work == "s" and row.status in ("done", "refused"):
            row.looks = min(row.looks, 1)
        row.heard = row.heard or heard
        if fresh and row.claimed is not None:
            row.dirty = self.clock
        if row.since is None:
            row.since = self.clock
        if fresh:
            row.asked += 1
        if resting:
            row.work, row.due = "p", None
        elif row.status == "dead" and row.work == "s" and fresh:
            assert row.due is not None
            assert row.ended is not None
            row.due = min(row.due, max(self.clock, row.ended + DEAD_PAUSE))

    @precondition(lambda self: self.some("p"))
    @rule(
        context=st.sampled_from(sorted(LANES)),
        limit=st.integers(1, 4),
        seconds=st.sampled_from((150.0, 1000.0)),
        who=st.integers(0, 1),
    )
    def claim(self, context: str, limit: int, seconds: float, who: int) -> None:
        self.claimed(context, limit, seconds, who)

    def claimed(self, context: str, limit: int, seconds: float, who: int) -> Taken | None:
        lane, siblings = LANES[context]
        leased = self.leases()
        free = [
            (place, row)
            for place, row in self.rows.items()
            if place[0] == context and row.work == "p" and (lane, place[1]) not in leased
        ]
        if self.shut(context) or self.shut("*"):
            free = []
        if any(gate[0] in (context, "*") for gate in self.gates):
            limit = 1
        claim = self.books.try_claim(context, limit=limit, seconds=seconds, by=self.ledgers[who])
        assert (claim is None) == (not free), "a claim takes what is pending and free, and nothing else"
        if claim is None:
            return None
        assert len(claim) == min(limit, len(free))
        urgencies = sorted(row.urgency for _, row in free)
        assert sorted(rows[context].urgency for rows in claim.items.values()) == urgencies[: len(claim)], (
            "the urgent first"
        )
        expected = {(context, key) for key in claim.items}
        for sibling in siblings:
            if not self.shut(sibling):
                expected |= {
                    (sibling, key)
                    for key in claim.items
                    if (sibling, key) in self.rows and self.rows[sibling, key].work == "p"
                }
        assert {(c, key) for key, rows in claim.items.items() for c in rows} == expected, "siblings come along"
        for c, key in expected:
            row, got = self.rows[c, key], claim.items[key][c]
            assert row.work == "p"
            assert (lane, key) not in leased
            if row.status == "dead" and row.tried:
                assert self.clock >= (row.ended or 0.0) + DEAD_PAUSE, "a dead key was tried too soon"
            row.work = "h"
            if row.status != "waiting":
                row.claimed, row.dirty = row.asked, None
            assert got.confirmed == (None if row.doubted else row.confirmed), "what is in doubt is hidden"
            assert (got.intent is not None) == row.doubted
            assert (got.status, got.attempts, got.asked) == (row.status, row.attempts, row.claimed)
            assert got.input_hash == row.refused
        doubted = frozenset(place for place in expected if self.rows[place].doubted)
        taken = Taken(claim, self.ledgers[who], self.clock + seconds, doubted)
        self.taken.append(taken)
        self.unsettled.append(taken)
        return taken

    @precondition(lambda self: self.unsettled)
    @rule(which=st.integers(0, 5))
    def intend(self, which: int) -> None:
        self.begin(self.unsettled[which % len(self.unsettled)])

    def begin(self, taken: Taken) -> None:
        places = [(context, key) for key, rows in taken.claim.items.items() for context in rows]
        ours = taken.ledger.intend(taken.claim, [(*place, str(uuid.uuid4()), {"to": place[0]}) for place in places])
        assert ours == (frozenset(taken.claim.items) if taken.alive else frozenset()), (
            "only the holder may begin a write"
        )
        if taken.alive:
            for place in places:
                self.rows[place].doubted = True
                taken.begun.add(place)

    @precondition(lambda self: self.some("p"))
    @rule(word=outcomes, writes=st.booleans(), learns=st.booleans(), meanwhile=st.lists(requests, max_size=2))
    def attempt(self, word: Outcome, writes: bool, learns: bool, meanwhile: list[Request]) -> None:
        self.attempted(word, writes, learns, meanwhile)

    def attempted(self, word: Outcome, writes: bool, learns: bool, meanwhile: list[Request]) -> None:
        """The usual way: claim, begin a write, settle; somebody asks in between."""
        context = next(place[0] for place, row in sorted(self.rows.items()) if row.work == "p")
        taken = self.claimed(context, 4, 1000.0, 0)
        if taken is None:
            return
        if writes:
            self.begin(taken)
        if meanwhile:
            self.enqueued(meanwhile)
        self.settled(taken, [word] * 6, learns, 0)

    @precondition(lambda self: self.some("p") or self.some("s"))
    @rule(
        words=st.lists(st.one_of(st.just(Failed("no answer")), outcomes), min_size=2, max_size=5), writes=st.booleans()
    )
    def a_time_of_troubles(self, words: list[Outcome], writes: bool) -> None:
        """Attempt after attempt, each as soon as it may be."""
        for word in words:
            if not self.some("p"):
                self.until_the_next_is_due()
            if self.some("p"):
                self.attempted(word, writes, learns=False, meanwhile=[])

    @precondition(lambda self: self.unsettled)
    @rule(
        which=st.integers(0, 5),
        words=st.lists(outcomes, min_size=6, max_size=6),
        learns=st.booleans(),
        unnamed=st.integers(0, 1),
    )
    def settle(self, which: int, words: list[Outcome], learns: bool, unnamed: int) -> None:
        self.settled(self.unsettled[which % len(self.unsettled)], words, learns, unnamed)

    def settled(self, taken: Taken, words: list[Outcome], learns: bool, unnamed: int) -> None:
        self.unsettled.remove(taken)
        places = sorted((context, key) for key, rows in taken.claim.items.items() for context in rows)
        endings = [
            self.ending(taken, place, word, learns) for place, word in list(zip(places, words, strict=False))[unnamed:]
        ]
        before = self.books.everything() if not taken.alive else None
        settled = Books.end(_as(self.books, taken.ledger), taken.claim, endings)
        if before is not None:
            assert len(settled.fenced) == len(endings), "whoever lost the lease is told"
            assert self.books.everything() == before, "a fenced settle changes nothing at all"
            return
        assert not settled.fenced
        self.taken.remove(taken)
        named = {(ending.context, ending.key) for ending in endings}
        for place in places:
            if place not in named:
                self.given_back(self.rows[place])
        for ending in endings:
            self.ended(taken, ending)
        for ending in endings:
            claimed = [row.urgency for row in taken.claim.items[ending.key].values()]
            least = Urgency.LOAD if claimed and min(claimed) >= Urgency.LOAD else 0  # a load's work stays a load's
            for ask in ending.outcome.then if isinstance(ending.outcome, Done) else ():
                self.asked((ask.context, ask.key), max(ask.urgency, least), ask.heard)
        self.gated(taken.claim.context, [ending.outcome for ending in endings])
        contexts = {context for context, _ in places}
        left = {(STORE, context) for (context, _), row in self.rows.items() if row.work == "p" and context in contexts}
        assert left <= settled.wake, "work is left and nobody would come"

    def ending(self, taken: Taken, place: tuple[str, str], word: Outcome, learns: bool) -> Ending:
        """This word for this row, with what an adapter would have learnt on the way."""
        if isinstance(word, Done) and word.then:
            word = Done((Ask(STORE, word.then[0].context, place[1], "follow", 2),))
        if isinstance(word, Refused) and taken.claim.items[place[1]][place[0]].input_hash is None:
            word = Refused((Problem("E3"),), "hash-1")
        self.values += 1
        confirmed = {place[0]: {"value": self.values}} if isinstance(word, Done) and learns else {}
        definite = bool(confirmed) or (isinstance(word, Refused) and bool(word.problems))
        return Ending(*place, word, confirmed=confirmed, definite=definite)

    def gated(self, context: str, words: list[Outcome]) -> None:
        for word in words:
            if isinstance(word, Locked):
                self.gates["*" if word.scope == "store" else context, word.side] = self.clock + CREDENTIAL_RETRY
        if any(not isinstance(word, Locked | Postponed | Released) for word in words):
            for gate, reopens in list(self.gates.items()):
                if gate[0] in (context, "*") and reopens <= self.clock:
                    del self.gates[gate]

    def given_back(self, row: Known) -> None:
        row.work = "p"
        if row.status != "waiting":
            row.claimed = None

    def ended(self, taken: Taken, ending: Ending) -> None:  # noqa: PLR0912 – one branch for each word of design 4
        place = (ending.context, ending.key)
        row, word = self.rows[place], ending.outcome
        self.learnt(row, place, taken, ending)
        dirty = row.claimed is not None and row.asked > row.claimed
        known = taken.claim.items[ending.key][ending.context]
        row.looks, readbacks = (0, known.looks) if known.status == "unknown" else (known.looks, 0)
        row.ended = self.clock
        row.tried = not isinstance(word, Released) and not (isinstance(word, Postponed) and word.scope == "store")
        waited = row.status == "waiting"
        awaited = waited and isinstance(word, Postponed | Locked | Released | Failed)
        dying = isinstance(word, Failed) and (
            row.attempts >= len(PATIENT.delays) or (row.status == "dead" and not waited)
        )
        final = isinstance(word, Done | Parked | Refused) or dying
        wait: float | None = None
        if row.status == "dead" and row.tried and not isinstance(word, Failed):
            row.attempts = min(row.attempts, len(PATIENT.delays))
        match word:
            case Done(look_again=again):
                row.status, row.attempts, wait = "done", 0, again
                row.looks = 0 if again is None else row.looks + 1
            case Waiting(wait=wait, again=reread):
                row.status = "waiting"
                row.asked += reread and not waited and not dirty
            case Parked():
                row.status, wait, row.looks = "parked", PATIENT.recheck, 0
            case Refused(look_again=again):
                row.status, wait = "refused", again
                row.looks = 0 if again is None else row.looks + 1
            case Postponed(scope="key", wait=wait):
                row.status = "waiting" if awaited else "delayed"
            case Locked():
                row.status = "waiting" if awaited else "delayed"
            case Failed() if dying:
                beyond = 0 if awaited else max(0, row.attempts - len(PATIENT.delays))
                wait, row.looks = PATIENT.slow[min(beyond, 1)], 0
                row.status, row.attempts = "dead", row.attempts + 1
            case Failed():
                wait = PATIENT.delays[row.attempts]
                row.status, row.attempts = "waiting" if awaited else "delayed", row.attempts + 1
            case Unknown():
                wait = PATIENT.unknown[min(readbacks, 1)]
                row.status, row.looks = "unknown", readbacks + 1
            case _:  # given back untouched
                row.looks = known.looks
        if awaited and not final:
            row.looks = 0
        keeps = isinstance(word, Waiting) or (awaited and not final)
        row.work, row.due = ("p" if isinstance(word, Locked | Released | Postponed) else "i"), None
        if wait is not None and not (isinstance(word, Postponed) and word.scope == "store"):
            row.work, row.due = "s", self.clock + wait
        if final:
            assert row.claimed is not None
            row.answered = row.claimed
            looks_again = isinstance(word, Done | Refused) and word.look_again is not None
            row.heard = looks_again or (row.heard and dirty)
            row.since = (self.clock if row.dirty is None else row.dirty) if dirty else None
            if dirty:
                row.work, row.due = "p", None
                if row.status == "dead":
                    assert wait is not None
                    row.work, row.due = "s", self.clock + min(wait, DEAD_PAUSE)
            elif looks_again:
                row.asked += 1
        if dirty and not keeps and row.status != "unknown":
            row.looks = 0
        if not keeps:
            row.claimed, row.dirty = None, None

    def learnt(self, row: Known, place: tuple[str, str], taken: Taken, ending: Ending) -> None:
        word = ending.outcome
        if place[0] in ending.confirmed:
            row.confirmed, row.doubted = ending.confirmed[place[0]], False
        elif ending.definite:
            if place in taken.doubted:
                row.confirmed = None
            row.doubted = False
        elif place in taken.begun and place not in taken.doubted and not isinstance(word, Failed | Unknown | Waiting):
            row.doubted = False
        if isinstance(word, Refused):
            row.refused = word.input_hash
        elif isinstance(word, Done | Parked | Waiting):
            row.refused = None

    @rule(seconds=st.sampled_from((50.0, 100.0, 600.0, 4000.0)))
    def time_passes(self, seconds: float) -> None:
        self.time_passed(seconds)

    def time_passed(self, seconds: float) -> None:
        self.books.pass_time(seconds)
        self.clock += seconds

    @precondition(lambda self: self.some("s"))
    @rule()
    def the_next_is_due(self) -> None:
        self.until_the_next_is_due()

    def until_the_next_is_due(self) -> None:
        waits = [row.due - self.clock for row in self.rows.values() if row.due is not None and row.due > self.clock]
        if waits:
            self.time_passed(50.0 * math.ceil(min(waits) / 50.0))
        self.ripened()

    @precondition(lambda self: self.some("s"))
    @rule()
    def what_is_due_ripens(self) -> None:
        self.ripened()

    def ripened(self) -> None:
        self.ledgers[1].ripen()
        for row in self.rows.values():
            if row.work == "s" and row.due is not None and row.due <= self.clock:
                if row.asked == row.answered:
                    row.asked += 1
                    row.urgency = 6
                row.work, row.due = "p", None
                row.since = self.clock if row.since is None else row.since

    @precondition(lambda self: self.taken)
    @rule()
    def leases_expire(self) -> None:
        self.lost([taken for taken in self.taken if taken.until <= self.clock])

    @precondition(lambda self: self.taken)
    @rule(who=st.integers(0, 1))
    def a_worker_dies(self, who: int) -> None:
        gone = self.ledgers[who]
        gone.leave()
        self.ledgers[who] = self.books.another()
        self.lost([taken for taken in self.taken if taken.ledger is gone or taken.until <= self.clock])

    def lost(self, gone: list[Taken]) -> None:
        places = [(context, key) for taken in gone for key, rows in taken.claim.items.items() for context in rows]
        assert self.ledgers[1].expire() == len(places)
        for place in places:
            row = self.rows[place]
            row.attempts += 1
            self.given_back(row)
            if row.status == "dead":
                row.work, row.due = "s", self.clock + DEAD_PAUSE
                row.ended = row.ended if row.ended is not None else self.clock
                row.tried = False
        for taken in gone:
            taken.alive = False
            self.taken.remove(taken)

    @precondition(lambda self: any(not taken.alive for taken in self.unsettled))
    @rule(word=outcomes)
    def somebody_settles_too_late(self, word: Outcome) -> None:
        late = next(taken for taken in self.unsettled if not taken.alive)
        self.settled(late, [word] * 6, learns=True, unnamed=0)

    @precondition(lambda self: any(row.status == "parked" for row in self.rows.values()))
    @rule(on=st.sampled_from(("publication:7", "mapping:9")))
    def what_it_was_parked_on_changes(self, on: str) -> None:
        parked = self.books.sql(
            "select context, key from answers join states using (store, context, key)"
            " where parked_on = %s and status = 'parked'",
            on,
        )
        self.ledgers[0].release(STORE, on)
        for context, key in parked:
            assert self.rows[context, key].status == "parked"
            self.asked((context, key), 2, heard=False)

    @precondition(lambda self: any(row.status == "delayed" for row in self.rows.values()))
    @rule()
    def a_circuit_closes(self) -> None:
        late = [
            place
            for place, row in self.rows.items()
            if row.work == "s" and row.status == "delayed" and row.attempts and (row.due or 0.0) > self.clock + 40.0
        ]
        assert self.ledgers[0].hasten(STORE, spread=40.0) == len(late)
        for context, key in late:
            assert 0.0 - SLACK <= self.books.row(key, context)["due"] <= 40.0
            self.books.sql(
                "update states set due_at = now() + interval '40 s' where context = %s and key = %s", context, key
            )
            self.rows[context, key].due = self.clock + 40.0

    @precondition(lambda self: self.gates)
    @rule()
    def operators_open_every_gate(self) -> None:
        for gate in self.ledgers[0].gates():
            assert self.ledgers[0].open(gate.store, gate.context, gate.side)
        self.gates.clear()

    # ------------------------------------------------------------ what must always hold

    def some(self, work: str) -> bool:
        return any(row.work == work for row in self.rows.values())

    def shut(self, context: str) -> bool:
        return any(gate[0] == context and reopens > self.clock for gate, reopens in self.gates.items())

    def leases(self) -> dict[tuple[str, str], int]:
        return {(taken.claim.lane, key): taken.claim.id for taken in self.taken for key in taken.claim.items}

    @invariant()
    def the_rows_are_what_the_model_says(self) -> None:
        found = self.books.sql(
            """
            select context, key, work::text, asked, answered, claimed, status, attempts, urgency, heard, looks,
                   extract(epoch from now() - pending_since)::float8, extract(epoch from due_at - now())::float8
            from states order by 1, 2
            """
        )
        assert [tuple(row[:2]) for row in found] == sorted(self.rows)
        for context, key, *seen in found:
            row = self.rows[context, key]
            said = [
                row.work,
                row.asked,
                row.answered,
                row.claimed,
                row.status,
                row.attempts,
                row.urgency,
                row.heard,
                row.looks,
            ]
            assert seen[:9] == said, f"{context} {key}: {seen[:9]}, not {said}"
            assert (seen[9] is None) == (row.since is None), f"{context} {key}: pending since"
            if row.since is not None:
                assert abs(seen[9] - (self.clock - row.since)) < SLACK, f"{context} {key}: pending since when"
            assert (seen[10] is None) == (row.due is None), f"{context} {key}: due"
            if row.due is not None:
                assert abs(seen[10] - (row.due - self.clock)) < SLACK, f"{context} {key}: due when"

    @invariant()
    def one_lease_per_lane_and_key(self) -> None:
        found = {(lane, key): claim for lane, key, claim in self.books.sql(_LEASES)}
        assert found == self.leases()
        held = {(row[0], row[1]) for row in self.books.sql("select context, key from states where work = 'h'")}
        assert held == {place for place, row in self.rows.items() if row.work == "h"}

    @invariant()
    def whatever_is_in_doubt_is_hidden(self) -> None:
        doubted = {
            (row[0], row[1]) for row in self.books.sql("select context, key from answers where intent is not null")
        }
        assert doubted == {place for place, row in self.rows.items() if row.doubted}

    @invariant()
    def both_sides_of_the_ledger_agree(self) -> None:
        self.books.assert_conserved()


def _as(books: Books, ledger: Ledger) -> Books:
    """The same books, kept by another process."""
    other = object.__new__(Books)
    other.pool, other.plan, other.ledger = books.pool, books.plan, ledger
    return other


@pytest.fixture(scope="module")
def machine(module_database: str) -> Iterator[type[Laws]]:
    with books_at(module_database) as books:
        Laws.books = books
        yield Laws


def test_whatever_happens_in_whatever_order_the_laws_hold(machine: type[Laws]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
