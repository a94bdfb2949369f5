"""Every error of the hub, named by what happens next.

    HubError
    ├── BadInput        a user's or peer's input is wrong: tell everything at once, nothing is retried
    ├── Refusal         the peer understood and says no: the seller must act, no blind retry
    ├── NotFound        the peer does not know the thing asked for
    ├── Unavailable     no answer, or 5xx: spends an attempt, retried by the plan
    │   ├── MapperAway       the seller's category mapper is silent
    │   └── UnknownOutcome   sent, but the answer was lost: read back before any second create
    ├── NotNow          not a failure: no attempt is spent
    │   ├── Throttled   a limit, ours or the peer's
    │   └── CircuitOpen the circuit of this store and peer is open or suspect
    ├── AuthLost        credentials refused: the gate of that side shuts
    ├── LeaseLost       somebody else may hold the key by now: start no write, settle nothing
    └── Conflict        the operation is already running or was done by somebody else

Foreign exceptions are translated at one door each: those of `urllib3` and `pybreaker` in `hub.transport`,
those of `psycopg` in `hub.db`, those of `redis` in `hub.limits`, `hub.circuits` and `tasks.wake`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["vtex", "marketplace"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing somebody must correct.

    `code` is a code of `hub/messages` (S1, A1–A3, E1–E5, …). `field` names what is wrong in the words of whoever must
    act, `value` is what was found (shortened, never a secret or personal data), `fix` says what to do.
    `params` fill the placeholders of the code's message.
    """

    code: str
    field: str = ""
    value: str = ""
    fix: str = ""
    params: dict[str, str] = dataclasses.field(default_factory=dict)

    def sentence(self) -> str:
        """The problem as one line for people."""
        found = f" is {self.value!r}" if self.value else ""
        return f"{self.field}{found}: {self.fix}" if self.field else self.fix

    def as_json(self) -> dict[str, Any]:
        """The shape that is kept in PostgreSQL."""
        return {"code": self.code, "field": self.field, "value": self.value, "fix": self.fix, "params": self.params}

    @staticmethod
    def from_json(tree: dict[str, Any]) -> Problem:
        """Read back what `as_json` wrote."""
        return Problem(
            code=str(tree.get("code", "")),
            field=str(tree.get("field", "")),
            value=str(tree.get("value", "")),
            fix=str(tree.get("fix", "")),
            params={str(k): str(v) for k, v in dict(tree.get("params") or {}).items()},
        )


class HubError(Exception):
    """Root of everything the hub raises on purpose."""


class BadInput(HubError):  # noqa: N818 – named by what happens next, as the whole tree
    """Input that cannot be accepted; carries every problem found, not the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.sentence() for problem in self.problems))


class Refusal(HubError):  # noqa: N818 – see BadInput
    """The peer refused for business reasons (4xx other than 401, 403, 404, 408, 429). `status` is the HTTP status."""

    def __init__(self, problems: Sequence[Problem], *, status: int = 400, answer: str = "") -> None:
        self.problems = tuple(problems)
        self.status = status
        self.answer = answer
        super().__init__("; ".join(problem.sentence() for problem in self.problems) or f"refused with {status}")


class NotFound(HubError):  # noqa: N818 – see BadInput
    """404 from a peer. `answer` is the redacted raw body, shortened."""

    def __init__(self, what: str, *, answer: str = "") -> None:
        self.what = what
        self.answer = answer
        super().__init__(f"not found: {what}")


class Unavailable(HubError):  # noqa: N818 – see BadInput
    """The peer did not answer usefully: 5xx, time-out, cut connection, unreadable answer."""

    def __init__(self, message: str, *, side: Side | None = None, status: int | None = None, answer: str = "") -> None:
        self.side = side
        self.status = status
        self.answer = answer
        super().__init__(message)


class MapperAway(Unavailable):
    """The seller's category mapper did not answer (E5)."""


class UnknownOutcome(Unavailable):
    """A write was sent and its answer is lost: it may or may not have happened."""


class NotNow(HubError):  # noqa: N818 – see BadInput
    """Not a failure. `wait` in seconds; `scope` says whether it concerns this key only or the whole store."""

    def __init__(self, message: str, *, wait: float, scope: Literal["key", "store"] = "store") -> None:
        self.wait = wait
        self.scope = scope
        super().__init__(message)


class Throttled(NotNow):
    """A limit is used up, ours or the peer's (429)."""

    def __init__(self, message: str, *, side: Side, wait: float) -> None:
        self.side = side
        super().__init__(message, wait=wait, scope="store")


class CircuitOpen(NotNow):
    """The circuit of this store and side is open, or suspect, for another `wait` seconds."""

    def __init__(self, message: str, *, side: Side, wait: float) -> None:
        self.side = side
        super().__init__(message, wait=wait, scope="store")


class AuthLost(HubError):  # noqa: N818 – see BadInput
    """401 (`scope` store) or 403 (`scope` context) with credentials of `version`."""

    def __init__(self, message: str, *, side: Side, version: int, scope: Literal["store", "context"] = "store") -> None:
        self.side = side
        self.version = version
        self.scope = scope
        super().__init__(message)


class LeaseLost(HubError):  # noqa: N818 – see BadInput
    """The lease does not outlast what was about to start."""


class Conflict(HubError):  # noqa: N818 – see BadInput
    """Already running, already done, or changed meanwhile."""
