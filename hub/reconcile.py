"""One attempt: claim, read, decide, commit the intent, write, settle – the same way for every context.

Whatever happens to a key ends in one word of `hub.outcome`; no retry logic lives anywhere else. Nothing is written
after the lease could have run out, and nothing is written whose intent is not committed (design 2, laws 2 and 5).
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hub.contexts import ABOUT_SKUS, CONTEXTS, Context
from hub.contexts.step import OPERATIONS as CATALOG_OPERATIONS
from hub.contexts.step import TO_MARKETPLACE, Item, Send, Step, awaited
from hub.crew import Crew
from hub.db import StorageAway
from hub.errors import AuthLost, HubError, LeaseLost, MapperAway, NotNow, Problem, Refusal, Unavailable, UnknownOutcome
from hub.ledger import Ledger, Pair
from hub.limits import Room
from hub.model import Claim, Row, Story, Urgency
from hub.outcome import (
    Ending,
    Failed,
    Locked,
    NextRow,
    Outcome,
    Postponed,
    Refused,
    Released,
    Unknown,
    Waiting,
    half_taken,
    settle,
)
from hub.ports import Link
from hub.settings import ContextSettings
from hub.states import LotEntry, StoreStates
from hub.transport import Calling, Deeds, calling

log = logging.getLogger("hub.reconcile")

OPERATIONS = {
    **CATALOG_OPERATIONS,
    "order": "Order creation",
    "fulfilment": "Order status update",
    "load": "Catalog change",
    "lot": "Catalog change",
    "reconcile": "Catalog change",
}
"""Context → operation, in the words of vtex.md 15.2."""

DIRECTIONS = dict.fromkeys(OPERATIONS, TO_MARKETPLACE) | {"order": "Marketplace to VTEX"}

LOT_PATIENCE = 600.0
"""Seconds after which a row asks what became of its lot, should nobody have told it."""

LEAST_LEASE = 1.0
"""Seconds of lease below which a key is given back instead of being looked at."""

CRASHES = 3
"""Attempts beyond the plan that can only come from processes that died with the key: it is set aside then."""


SHARES = {"read": 3 / 4, "write": 1 / 3}
"""Part of the crew's threads that one store may have at the same time, besides those of its attempts. A marketplace
that answers nothing gets no more calls before its circuit opens, as the first that runs into its deadline keeps others
from starting: eleven and the cap of a context from a process of further wake-ups, by default, with the one probe of the
first minute 20. First wake-ups of the same store may add a few."""


class Heart(Protocol):
    """The process's own sign of life: leases hold as long as it beats."""

    def remaining(self) -> float:
        """Seconds for which every lease of this process is sure to hold."""


class Brakes(Protocol):
    """What may forbid a store's work for a while: its circuits and its budgets."""

    def shut_for(self, slug: str) -> float | None:
        """Seconds until the store may be tried; 0 when one key may try; `None` while everything is closed."""

    def keep_room(self, slug: str, context: str, want: int) -> Room:
        """Reserve calls of the store's budget before a claim starts."""

    def give_back(self, slug: str, room: Room) -> None:
        """What a claim has not used of its room."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one claim: how many rows ended in which word, who has to be woken, how long to leave it alone.

    `full`: there is more than one claim takes. `backlog`: it was full of live work. `soft`: only less important work
    has to be left alone.
    """

    slug: str
    context: str
    words: Counter[str]
    wake: frozenset[Pair] = frozenset()
    full: bool = False
    brake: float | None = None
    soft: bool = False
    backlog: bool = False

    @property
    def died(self) -> int:
        """Keys whose plan is used up."""
        return self.words.get("dead", 0)

    def sentence(self) -> str:
        """One line for the task's result: `acme-mkt.stock: 47 done, 2 refused`."""
        said = ", ".join(f"{count} {word}" for word, count in sorted(self.words.items())) or "nothing to do"
        return f"{self.slug}.{self.context}: {said}"


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Runs attempts for one process. `calls` makes its outgoing calls, readings and writes of each store in turns."""

    ledger: Ledger
    contexts: dict[str, ContextSettings]
    calls: Crew
    heart: Heart
    brakes: Brakes
    monotonic: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    known: Mapping[str, Context] = field(default_factory=lambda: CONTEXTS)
    """The kinds of work there are; a measurement of the engine alone brings its own."""

    def attempt(self, link: Link, name: str, *, first: bool) -> Report:
        """Take up to a claim's worth of keys and bring each to its end. `first`: a small claim, others are waiting."""
        settings, context = self.contexts[name], self.known[name]
        limit = settings.first_claim if first else settings.more_claim
        room = self.brakes.keep_room(link.slug, name, limit)
        try:
            if not room.calm and settings.pool != "orders":
                # An order needs more than the side that is shut; its own calls tell.
                shut = self.brakes.shut_for(link.slug)
                if shut:
                    return Report(link.slug, name, Counter(), brake=shut)
                if shut is not None:
                    limit = 1
            if room.granted < 1:
                return Report(link.slug, name, Counter(), brake=room.wait, soft=True)
            return self._claimed(link, context, settings, min(limit, room.granted), room.ticket, first=first)
        finally:
            self.brakes.give_back(link.slug, room)

    def _claimed(
        self, link: Link, context: Context, settings: ContextSettings, limit: int, ticket: str, *, first: bool
    ) -> Report:
        name = context.name
        started, worker = self.monotonic(), self.ledger.worker
        claim = self.ledger.claim(
            link.store,
            name,
            lane=context.lane(link.marketplace.manifest),
            siblings=context.siblings,
            limit=limit,
            seconds=settings.deadline,
            which="live" if first else "bulk",
        )
        if claim is None:
            return Report(link.slug, name, Counter())
        ends = started + settings.deadline

        def remaining() -> float:
            left = min(ends - self.monotonic(), self.heart.remaining())
            # A process that was given up joins anew, under another number; what it held before is not its own any more.
            return left if self.ledger.worker == worker else 0.0

        attempt = _Attempt(self, link, claim, context, ticket, remaining)
        try:
            endings = attempt.run()
            rows = [self._with_death(ending, self._next(claim, ending)) for ending in endings]
            settled = self.ledger.settle(claim, rows)
            doubted = self.ledger.doubt(claim, attempt.late) if settled.fenced else frozenset()
        except Exception:
            self.ledger.abandon(claim)  # its keys are free at once, instead of when the claim's deadline passes
            raise
        words = Counter(row.status if row.work != "p" else "given back" for _, row in rows)
        return Report(
            slug=link.slug,
            context=name,
            words=words,
            wake=settled.wake | doubted | attempt.touched(),
            full=len(claim) >= limit,
            brake=max((_store_wait(ending.outcome) for ending in endings), default=0.0) or None,
            soft=all(_is_bulk(claim, ending.key) for ending in endings if _store_wait(ending.outcome)),
            backlog=len(claim) >= limit > 1 and not any(_is_bulk(claim, key) for key in claim.items),
        )

    @staticmethod
    def _with_death(ending: Ending, row: NextRow) -> tuple[Ending, NextRow]:
        """A key that dies says so in the logs, once, beside what killed it."""
        if row.status != "dead" or not isinstance(ending.outcome, Failed):
            return ending, row
        params = {"key": ending.key, "attempts": str(row.attempts), "reason": ending.outcome.why}
        story = Story(OPERATIONS[ending.context], DIRECTIONS[ending.context], "D0", ending.problems, params=params)
        return replace(ending, stories=(*ending.stories, story)), row

    def _next(self, claim: Claim, ending: Ending) -> NextRow:
        row = claim.items[ending.key].get(ending.context) or Row(ending.context, ending.key, 0)
        return settle(row, ending.outcome, self.contexts[ending.context].plan, self.chance())


def _store_wait(outcome: Outcome) -> float:
    return outcome.wait if isinstance(outcome, Postponed) and outcome.scope == "store" else 0.0


def _is_bulk(claim: Claim, key: str) -> bool:
    """Nobody waits for this key but a load."""
    rows = claim.items.get(key, {})
    return bool(rows) and all(row.urgency >= Urgency.LOAD for row in rows.values())


def _waiting(row: Row, lot: int | None) -> Row:
    """The row as it would be, had its attempt lived to say that it waits for this lot."""
    return row if lot is None else replace(row, status="waiting", ticket=f"lot:{lot}")


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The middle of one attempt: everything between claim and settle."""

    runner: Reconciler
    link: Link
    claim: Claim
    context: Context
    ticket: str
    remaining: Callable[[], float]
    late: set[tuple[str, str]] = field(default_factory=set)
    """(context, key) of what may have been written after the lease: its call ended then, or has no answer."""

    def run(self) -> list[Ending]:
        """Every claimed row's ending."""
        adrift = self._adrift()
        items = [
            Item(key, {context: _waiting(row, adrift.get((context, key))) for context, row in rows.items()})
            for key, rows in self.claim.items.items()
        ]
        if self.context.name in ABOUT_SKUS and isinstance(self.link.states, StoreStates):
            self.link.states.prepare(list(self.claim.items))
        endings: list[Ending] = []
        steps: list[Step] = []
        for decided in self._each("read", self._look, items):
            for decision in decided:
                if isinstance(decision, Step):
                    steps.append(decision)
                elif (decision.context, decision.key) in adrift and isinstance(decision.outcome, Waiting):
                    endings.append(replace(decision, outcome=replace(decision.outcome, again=True)))
                else:
                    endings.append(decision)
        lots = self.link.marketplace.manifest.lots
        records = [step for step in steps if isinstance(step, Send)] if lots is not None else []
        if records:
            endings += self._join_lots(records)
            steps = [step for step in steps if not isinstance(step, Send)]
        if steps:
            written = self._each("write", self._write, self._intended(steps))
            endings += [ending for some in written for ending in some]
        return endings

    def _adrift(self) -> Mapping[tuple[str, str], int]:
        """Rows whose attempt died between joining a lot and saying that they wait for it: (context, key) → the lot.

        It leaves all the same. So they wait for its answer, whatever would be decided now, and are read after it.
        """
        states = self.link.states
        begun = {
            (context, key)
            for key, rows in self.claim.items.items()
            for context, row in rows.items()
            if row.intent is not None and row.status != "waiting"
        }
        if not begun or self.link.marketplace.manifest.lots is None or not isinstance(states, StoreStates):
            return {}
        lots = states.lots_under_way(sorted({key for _, key in begun}))
        return {place: lot for place, lot in lots.items() if place in begun}

    def touched(self) -> frozenset[Pair]:
        """Pairs that got pending work on the way, to be woken."""
        states = self.link.states
        return frozenset(states.touched) if isinstance(states, StoreStates) else frozenset()

    def _each(self, stage: str, what: Callable[[Any], Any], things: Sequence[Any]) -> list[Any]:
        """Do it for each, together: in this thread, and in as many of the crew's as find something left to do."""
        owner = (self.link.store, stage)
        return self.runner.calls.each(owner, what, things, line=self.context.name, share=SHARES[stage])

    def _look(self, item: Item) -> Sequence[Ending | Step]:
        worn = max(row.attempts for row in item.rows.values())
        alive = len(self.runner.contexts[self.claim.context].plan.delays) + CRASHES
        if worn > alive and all(row.status != "dead" for row in self.claim.items[item.key].values()):
            why = f"the process that worked on it ended {worn - alive} times too often"
            return [Ending(name, item.key, Failed(why), "H0") for name in item.rows]
        failed = [row.resolved for row in item.rows.values() if row.resolved is not None and row.resolved.retry]
        if failed:
            why = "; ".join(problem.sentence() for problem in failed[0].problems) or "the lot failed"
            return [self._ending(name, item.key, Failed(why), ()) for name in item.rows]
        waiting = [self._unanswered(item.key, row) for row in item.rows.values()]
        if all(waiting):
            return [ending for ending in waiting if ending]
        return self._guarded(item.key, tuple(item.rows), lambda: self._decide(item))

    def _unanswered(self, key: str, row: Row) -> Ending | None:
        """A row whose lot is still under way goes on waiting; the lot tells it."""
        if row.status == "waiting" and row.resolved is None and (row.ticket or "").startswith("lot:"):
            return Ending(row.context, key, Waiting(row.ticket or "", LOT_PATIENCE), "P0")
        return None

    def _decide(self, item: Item) -> Sequence[Ending | Step]:
        if self.remaining() < LEAST_LEASE:
            raise LeaseLost(f"the lease of {item.key} ends before it could be looked at")
        facts = self.context.read(self.link, item)
        return self.context.decide(facts)

    def _intended(self, steps: Sequence[Step]) -> list[Step]:
        """Commit the intents; steps whose lease is gone are dropped, somebody else has their keys.

        Steps without an intent need the lease no less, and as durable (`hub.ledger`).
        """
        intents = [
            (context, step.key, step.reference, step.intent)
            for step in steps
            if step.reference is not None
            for context in step.contexts
        ]
        if not intents:
            return list(steps) if self.runner.ledger.holds(self.claim) else []
        ours = self.runner.ledger.intend(self.claim, intents)
        return [step for step in steps if step.key in ours or (ours and step.reference is None)]

    def _write(self, step: Step) -> Sequence[Ending]:
        """Write it. A record may take several calls: a no to the second does not undo the first (law 5)."""
        deeds = Deeds()
        endings = self._guarded(step.key, step.contexts, lambda: self.context.write(self.link, step), deeds)
        if self._may_be_late(endings, deeds):
            self.late.update((context, step.key) for context in step.contexts)
        if not isinstance(step, Send) or deeds.writes == 0:
            return endings
        return [half_taken(one) for one in endings]

    def _may_be_late(self, endings: Sequence[Ending], deeds: Deeds) -> bool:
        """A listing may have been written after the lease. Not an order: VTEX takes its id once, whoever sends it."""
        if self.context.name not in (*ABOUT_SKUS, "lot"):
            return False
        if deeds.writes == 0 and any(isinstance(ending.outcome, Released) for ending in endings):
            return False
        return self.remaining() <= 0 or any(isinstance(ending.outcome, (Failed, Unknown)) for ending in endings)

    def _join_lots(self, records: Sequence[Send]) -> list[Ending]:
        states, lots = self.link.states, self.link.marketplace.manifest.lots
        assert isinstance(states, StoreStates) and lots is not None  # noqa: S101, PT018 – lots need the real store
        endings: list[Ending] = []
        for kind in sorted({send.kind for send in records}):
            sends = [send for send in records if send.kind == kind]
            entries = [
                LotEntry(send.contexts, send.key, send.as_json(), self.link.marketplace.encode(send.record))
                for send in sends
            ]
            joined = states.join_lot(self.claim, kind, entries, lots)
            for send in sends:
                if send.key not in joined:
                    continue
                lot = joined[send.key]
                if lot is not None:
                    endings += awaited(send, f"lot:{lot}", LOT_PATIENCE)
                else:
                    later = Postponed(lots.poll, "key", "an earlier record of it has not left yet")
                    endings += [Ending(context, send.key, later) for context in send.contexts]
        return endings

    def _guarded(
        self,
        key: str,
        contexts: tuple[str, ...],
        what: Callable[[], Sequence[Ending | Step]],
        deeds: Deeds | None = None,
    ) -> Sequence[Any]:
        """Do it with this key's lease in force; an error becomes the ending of each of its rows."""
        who = Calling(self.link.slug, self.claim.context, self.remaining, key, self._for_load(key), self.ticket)
        token = calling.set(replace(who, deeds=deeds or who.deeds))
        try:
            return what()
        except HubError as error:
            outcome, problems = _ending_of(error), error.problems if isinstance(error, Refusal) else ()
        except Exception as error:  # noqa: BLE001 – whatever it is, it must cost this key an attempt and nothing else
            # Type and place only: a message may quote what came from outside.
            where = "".join(traceback.format_tb(error.__traceback__, limit=-4))
            log.error("%s.%s: unexpected %s\n%s", self.link.slug, self.claim.context, type(error).__name__, where)  # noqa: TRY400 – see above
            outcome, problems = Failed(f"unexpected {type(error).__name__}", "H0"), ()
        finally:
            calling.reset(token)
        return [self._ending(context, key, outcome, problems) for context in contexts]

    def _for_load(self, key: str) -> bool:
        """A load asked for it, so it never takes the last fifth of a budget (design 5)."""
        return _is_bulk(self.claim, key)

    def _ending(self, context: str, key: str, outcome: Outcome, problems: tuple[Problem, ...]) -> Ending:
        """A row's ending by an error, with what the logs endpoint tells of it."""
        match outcome:
            case Failed(why=why, code=code):
                said = _code_for(code, self.context.name)
            case Unknown(why=why):
                said = "E2"
            case Locked(why=why):
                said = "C0"  # told once, when the gate shuts
            case Refused():
                said, why = "E3", "; ".join(problem.sentence() for problem in problems)
            case _:
                return Ending(context, key, outcome)
        params = {"key": key, "sku": key, "order": key, "reason": why, "errors": why}
        silent = "VTEX" if isinstance(outcome, Failed) and outcome.code == "V0" else None
        params["marketplace"] = silent or self.link.marketplace.manifest.title
        if isinstance(outcome, Locked):
            params["peer"] = "VTEX" if outcome.side == "vtex" else params["marketplace"]
        story = Story(OPERATIONS[context], DIRECTIONS[context], said, problems, params=params)
        return Ending(context, key, outcome, said, problems, stories=(story,))


def _code_for(code: str, context: str) -> str:
    """The code of a failure in the set that VTEX knows for a context (15.3, 15.4): its catalogue side has no V0."""
    if context in ("order", "fulfilment"):
        return "O.L" if code == "E2" else code
    return "E2" if code == "V0" else code


def _ending_of(error: HubError) -> Outcome:
    """The word an error stands for."""
    match error:
        case UnknownOutcome():
            return Unknown(str(error))
        case MapperAway():
            return Failed(str(error), "E5")
        case Unavailable(side="vtex"):
            return Failed(str(error), "V0")
        case Unavailable():
            return Failed(str(error), "E2")
        case NotNow(wait=wait, scope=scope):
            return Postponed(wait, scope, str(error))
        case AuthLost(side=side, version=version, scope=scope):
            return Locked(side, version, scope, str(error))
        case LeaseLost() | StorageAway():
            return Released()  # our own trouble: it must not cost the key an attempt
        case Refusal(problems=problems):
            return Refused(problems)
        case _:
            return Failed(str(error), "H0")
