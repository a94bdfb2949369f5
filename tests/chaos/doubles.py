"""Parts of the hub with one law broken on purpose, by public methods alone; the checker must notice each.

`Dies` and `Stalls` break nothing: they are what befalls a process (kill -9 and SIGSTOP just before it settles).
"""
# ruff: noqa: ARG002 – a double that forgets what it is told does not use it

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hub.ledger import Ledger, Pair, Settled
from hub.model import Ask, Claim
from hub.outcome import Ending, NextRow

OFFER = ("price", "stock")


class Killed(BaseException):
    """The process ended here, without a word."""


class Dies(Ledger):
    """What befalls a process: it is killed before it settles an offer, and nobody gives its leases back."""

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        if claim.context in OFFER:
            raise Killed
        return super().settle(claim, settled)  # the first poll of a new store may come before

    def leave(self) -> None:
        """A killed process says nothing."""


class Stalls(Ledger):
    """What befalls a process: it is stopped before it settles an offer, and goes on much later as if nothing were.

    From `stop` on; until then it works like any other.
    """

    reached: threading.Event
    go_on: threading.Event

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def stop(self) -> None:
        """From now on: nothing is settled before `go_on`."""
        self.reached.clear()
        self.go_on.clear()

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        if claim.context in OFFER:
            self.reached.set()
            self.go_on.wait(240)
        return super().settle(claim, settled)

    def beat(self, seconds: float) -> bool:
        return True

    def leave(self) -> None:
        """It is not leaving."""


class ForgetsAsked(Ledger):
    """Law 1 and 3: what was asked during a hold is answered with the rest, unread."""

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        with self.pool.connection() as db:
            db.execute("update states set asked = claimed where claim = %s and asked > claimed", (claim.id,))
        return super().settle(claim, settled)


class SettlesLate(Ledger):
    """Law 2: who lost the lease writes down all the same how it ended."""

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        done = super().settle(claim, settled)
        if not done.fenced:
            return done
        self.join("late", 600.0)  # or the sweep may take from it, in between, what it is about to claim
        self.enqueue([Ask(claim.store, context, key, "late") for context, key in done.fenced])
        contexts = {context for context, _ in done.fenced}
        taken = self.claim(
            claim.store, claim.context, lane=claim.lane, siblings=[*contexts - {claim.context}], limit=50, seconds=30
        )
        assert taken is not None
        return super().settle(replace(taken, begun=claim.begun), settled)


class WritesBlind(Ledger):
    """Law 5: the write begins, and nothing says so."""

    def intend(self, claim: Claim, intents: Sequence[tuple[str, str, str, Any]]) -> frozenset[str]:
        return frozenset(intent[1] for intent in intents)


class NeverSweeps(Ledger):
    """Law 4: what a killed worker held is held for ever, and what is due is never taken up."""

    def expire(self, limit: int = 200) -> int:
        return 0

    def ripen(self, limit: int = 5000) -> frozenset[Pair]:
        return frozenset()


class DropsReleases(Ledger):
    """Law 6: what is parked stays parked, though what it waited for has happened."""

    def release(self, store: int, *parked_on: str, source: str = "release") -> frozenset[Pair]:
        return frozenset()


class AnswersFirst:
    """Law 7: an ASGI callable before the real one that says 200 at once, and has the body stored afterwards."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._later: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._real(scope, receive, send)
            return
        message = await receive()
        while message.get("more_body"):
            more = await receive()
            message = {**more, "body": message["body"] + more["body"]}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})
        task = asyncio.create_task(self._real(scope, _once(message), _nowhere))
        self._later.add(task)
        task.add_done_callback(self._later.discard)


def _once(message: Any) -> Any:
    async def receive() -> Any:
        return message

    return receive


async def _nowhere(_: Any) -> None:
    pass
