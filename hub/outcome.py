"""The closed list of words an attempt may end in, and the one place that acts on them.

`settle` is pure: row and outcome in, next row out. It sends durations, not times, because the clock of record is
PostgreSQL's (design 2, law 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hub.errors import Problem, Side
from hub.model import Ask, Binding, JsonTree, Row, Story


@dataclass(frozen=True, slots=True)
class Done:
    """The marketplace agrees with VTEX. `look_again` (seconds): read once more, the source may be stale (7.6)."""

    then: tuple[Ask, ...] = ()
    look_again: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The marketplace answers later. `ticket` finds the answer, `wait` (seconds) is when we ask if nobody told us.

    `again`: what is awaited was made before the claim, so that what the claim is for has yet to be read.
    """

    ticket: str
    wait: float
    again: bool = False


@dataclass(frozen=True, slots=True)
class Parked:
    """Nothing can be done until what is named in `on` changes; `version` is the one that was read.

    `on` is `mapping:<category>`, `publication:<sku>` or `approval:<key>`.
    """

    on: str
    version: int = 0
    then: tuple[Ask, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A business no. The same `input_hash` is not sent again (RES-13). `look_again` as for `Done`."""

    problems: tuple[Problem, ...]
    input_hash: str | None = None
    then: tuple[Ask, ...] = ()
    look_again: float | None = None


@dataclass(frozen=True, slots=True)
class Postponed:
    """`NotNow` as an ending: a key's own wait (`scope` key) or the whole store's, for which a gate holds the time.

    `then` is what others have to do meanwhile (an order waits for stock that VTEX does not have: show the zero).
    """

    wait: float
    scope: Literal["key", "store"] = "key"
    why: str = ""
    then: tuple[Ask, ...] = ()


@dataclass(frozen=True, slots=True)
class Locked:
    """`AuthLost` as an ending: the row stays pending behind the gate of `side`."""

    side: Side
    version: int
    scope: Literal["store", "context"] = "store"
    why: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """`Unavailable` as an ending, or anything unexpected: spends an attempt. `why` is for people, redacted."""

    why: str
    code: str = "E2"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A write whose answer is lost; its intent stays and is read back before any second create."""

    why: str


@dataclass(frozen=True, slots=True)
class Released:
    """Given back untouched (lease too short, worker stopping): pending again, nothing spent, nothing learnt."""


Outcome = Done | Waiting | Parked | Refused | Postponed | Locked | Failed | Unknown | Released


@dataclass(frozen=True, slots=True)
class Ending:
    """One key's outcome with what was learnt on the way; `settle` and the ledger write it down together.

    `code` is the catalogue code of the ending (`None`: nothing was said), `problems` what somebody must correct.
    `confirmed` maps contexts to what the marketplace is now known to show. `listing` is the id of the listing that
    shows it: should the SKU have another by now, or none, nothing is known of it. `definite`: the marketplace answered
    a write or a read-back in this attempt, so an open intent is settled. `partly`: of a write in several calls the
    marketplace took some before the outcome came, so its intent stays whatever the outcome is. A `binding` in state
    `deleted` drops the pair and every snapshot of the SKU.
    """

    context: str
    key: str
    outcome: Outcome
    code: str | None = None
    problems: tuple[Problem, ...] = ()
    confirmed: Mapping[str, JsonTree] = field(default_factory=dict)
    listing: str | None = None
    definite: bool = False
    partly: bool = False
    binding: Binding | None = None
    stories: tuple[Story, ...] = ()


def half_taken(ending: Ending) -> Ending:
    """The ending of a write of which the marketplace took some calls, but maybe not all (law 5).

    Nothing is confirmed and the intent stays, unless it was taken whole; that others are unknown is still written down.
    """
    if isinstance(ending.outcome, Done):
        return ending
    unknown = {
        context: value for context, value in ending.confirmed.items() if value is None and context != ending.context
    }
    return replace(ending, confirmed=unknown, definite=False, partly=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How patient the hub is with a peer that does not answer. All in seconds.

    `delays` has one entry per attempt that may follow a failure; when they are used up the key is dead and `slow`
    takes over, its last entry for ever. `unknown` paces the read-backs of writes whose answer was lost; after any other
    ending it begins anew.
    """

    delays: tuple[float, ...]
    slow: tuple[float, ...] = (3600.0, 21600.0, 86400.0)
    unknown: tuple[float, ...] = (5.0, 15.0, 60.0, 300.0, 900.0)
    jitter: float = 0.2
    recheck: float = 86400.0


@dataclass(frozen=True, slots=True)
class NextRow:
    """What a row becomes. `work`: `i` at rest, `p` pending, `s` due in `wait` seconds.

    `final` answers the demand it was claimed for. `keeps_claim`: requests that came meanwhile stay apart from the
    answer that is still awaited. `again`: a demand of our own is added (second look, or what was not read yet).
    """

    status: str
    work: Literal["i", "p", "s"]
    attempts: int
    wait: float | None = None
    final: bool = True
    keeps_claim: bool = False
    again: bool = False
    looks: int = 0


def delay(delays: Sequence[float], turn: int, jitter: float, chance: float) -> float:
    """The `turn`-th delay (from 0; the last repeats), spread by ±`jitter`; `chance` is in [0, 1)."""
    base = delays[min(turn, len(delays) - 1)]
    return base * (1.0 + jitter * (2.0 * chance - 1.0))


def settle(row: Row, outcome: Outcome, plan: Plan, chance: float) -> NextRow:
    """Decide what `row` becomes after `outcome` (design 4). `chance` in [0, 1) feeds the jitter.

    The row's own requests that came during the hold are none of this function's business: the ledger sees them in
    `asked` and makes the row pending again after a final ending.
    """
    spent = row.attempts
    # Back from the dead: beyond its plan an attempt would count as one whose process died.
    left = min(spent, len(plan.delays)) if row.status == "dead" else spent
    if row.status == "waiting" and isinstance(outcome, Postponed | Locked | Released | Failed):
        return _still_waiting(outcome, spent, plan, chance)
    match outcome:
        case Done(look_again=wait) | Refused(look_again=wait):
            status, attempts = ("done", 0) if isinstance(outcome, Done) else ("refused", left)
            if wait is None:
                return NextRow(status, "i", attempts)
            looks = min(row.looked + 1, 99)
            return NextRow(status, "s", attempts, wait=max(0.0, wait), again=True, looks=looks)
        case Waiting(wait=wait, again=again):
            wait = max(0.0, wait)
            again = again and row.status != "waiting"  # asked for when it began to wait
            return NextRow("waiting", "s", left, wait, final=False, keeps_claim=True, again=again, looks=row.looked)
        case Parked():
            return NextRow("parked", "s", left, wait=plan.recheck)
        case Postponed(scope="key", wait=wait):
            return NextRow("delayed", "s", left, wait=max(0.0, wait), final=False, looks=row.looked)
        case Postponed() | Released():
            return NextRow(row.status, "p", spent, final=False, looks=row.looks)
        case Locked():
            return NextRow("delayed", "p", left, final=False, looks=row.looked)
        case Unknown():
            turn = row.looks if row.status == "unknown" else 0
            wait = delay(plan.unknown, turn, plan.jitter, chance)
            return NextRow("unknown", "s", left, wait, final=False, looks=min(turn + 1, 99))
        case Failed() if row.status == "dead" or spent >= len(plan.delays):
            beyond = max(0, spent - len(plan.delays))
            return NextRow("dead", "s", spent + 1, wait=delay(plan.slow, beyond, plan.jitter, chance))
        case Failed():
            return NextRow(
                "delayed",
                "s",
                spent + 1,
                wait=delay(plan.delays, spent, plan.jitter, chance),
                final=False,
                looks=row.looked,
            )


def _still_waiting(outcome: Outcome, spent: int, plan: Plan, chance: float) -> NextRow:
    """The answer could not be fetched: the ticket stays good, and what was asked meanwhile stays apart from it."""
    match outcome:
        case Failed() if spent >= len(plan.delays):
            return NextRow("dead", "s", spent + 1, wait=delay(plan.slow, 0, plan.jitter, chance))
        case Failed():
            wait = delay(plan.delays, spent, plan.jitter, chance)
            return NextRow("waiting", "s", spent + 1, wait=wait, final=False, keeps_claim=True)
        case Postponed(scope="key", wait=wait):
            return NextRow("waiting", "s", spent, wait=max(0.0, wait), final=False, keeps_claim=True)
        case _:
            return NextRow("waiting", "p", spent, final=False, keeps_claim=True)
