"""One statement and one commit for everything that waits: nothing is reported stored before PostgreSQL has it (law 7).

One connection, one group in flight. A group that commits slower than its patience, or cannot commit because PostgreSQL
is away, is reported so at once and never held; the connection comes back by itself. What PostgreSQL refuses for a value
in it is found by halving the group and set aside alone, escaped, as quarantined: it never takes its neighbours along.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from psycopg import AsyncConnection

from hub.db import ListsAsLiterals, StorageAway, StorageRefused, conninfo, translated
from hub.errors import HubError
from hub.ledger import NOTICES_AND_ENQUEUE, Notice, Pair, Tally, enqueue_parameters
from hub.model import Ask

SOURCES: Final = {"notification": "vtex", "event": "marketplace", "result": "result"}
"""Who says so, by kind of notice: the source of its counters and of its demands."""

_LARGEST_GROUP: Final = 512
_FEW: Final = 32
_GATHER_SECONDS: Final = 0.002
_LOOK_SECONDS: Final = 0.05  # how often the waiting are looked through for those whose patience ended
_IDLE_SECONDS: Final = 1.0  # without work for so long, the connection is tried: a dead one costs nobody a request
_CONNECT_SECONDS: Final = 5.0
_STATEMENT_SECONDS: Final = 2.0  # PostgreSQL's own limit …
_HUNG_SECONDS: Final = 3.0  # … and ours, for a server that does not even say so
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # between attempts to connect

log = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """What became of what somebody wanted to have stored."""

    STORED = "stored"
    REFUSED = "refused"  # PostgreSQL refuses a value in it; kept, escaped, as quarantined where possible
    AWAY = "away"  # not stored, or nobody knows in time


@dataclass(slots=True, eq=False)
class _Waiting:
    """What one request wants to have stored, since when (loop time), and where its answer goes."""

    notices: Sequence[Notice]
    asks: Sequence[Ask]
    since: float
    verdict: asyncio.Future[Verdict]

    def answer(self, verdict: Verdict) -> None:
        if not self.verdict.done():
            self.verdict.set_result(verdict)


class _ConnectionLost(Exception):  # noqa: N818 – a turn of the loop, not an error anybody sees
    """The connection is of no more use."""


class GroupCommit:
    """Stores notices and demands together with those of everybody who waits in the same moment.

    `on_wake` gets the (store, context) pairs to wake after each commit, in the event loop: it must not block.
    `on_commit` gets the number of notices by (store, kind, fate), and the seconds the commit took. `patience` in
    seconds; `most_waiting` bounds what waits, beyond it the verdict is `AWAY` at once.
    """

    def __init__(
        self,
        database_url: str,
        schema: str,
        *,
        slot: int,
        on_wake: Callable[[Iterable[Pair]], None],
        on_commit: Callable[[Counter[tuple[int | None, str, str]], float], None],
        patience: float = 0.5,
        most_waiting: int = 8_192,
    ) -> None:
        self._where = conninfo(database_url, schema, name="intake", statement_seconds=_STATEMENT_SECONDS, seqscan=False)
        self._slot = slot
        self._on_wake = on_wake
        self._on_commit = on_commit
        self._patience = patience
        self._most_waiting = most_waiting
        self._waiting: deque[_Waiting] = deque()
        self._in_flight: Sequence[_Waiting] = ()
        self._arrival: asyncio.Future[None] | None = None
        self._enough: asyncio.Future[None] | None = None
        self._last_was_full = False
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.away: str | None = None
        """Why PostgreSQL cannot be used; `None` while it can, as far as is known."""
        self.answered_at: float | None = None
        """Loop time of PostgreSQL's last answer."""

    def start(self) -> None:
        """Begin to connect and to commit; call inside the event loop."""
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Commit what waits, then end. What cannot be stored any more is reported as not stored."""
        self._stopping = True
        _set(self._arrival)
        _set(self._enough)
        await asyncio.wait(self._tasks[:1], timeout=_HUNG_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._give_up(self._waiting)
        self._waiting.clear()

    async def store(self, notices: Sequence[Notice], asks: Sequence[Ask]) -> Verdict:
        """Store both in the next commit; the answer comes after it, or when the patience ends."""
        if self.away is not None or self._stopping or len(self._waiting) >= self._most_waiting:
            return Verdict.AWAY
        loop = asyncio.get_running_loop()
        entry = _Waiting(notices, asks, loop.time(), loop.create_future())
        self._waiting.append(entry)
        if self._arrival is not None:
            _set(self._arrival)
        if self._enough is not None and len(self._waiting) >= _FEW:
            _set(self._enough)
        return await entry.verdict

    # ------------------------------------------------------------ inside

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                with translated():
                    async with asyncio.timeout(_CONNECT_SECONDS):
                        connection = await AsyncConnection.connect(self._where, autocommit=True)
                connection.adapters.register_dumper(list, ListsAsLiterals)
            except (StorageAway, StorageRefused, TimeoutError) as fault:
                self._went_away(str(fault) or "PostgreSQL did not answer in time")
                await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
                continue
            try:
                failures = 0
                await self._commit_groups(connection)
            except _ConnectionLost:
                await asyncio.sleep(_PAUSES[0])
            finally:
                with contextlib.suppress(HubError), translated():
                    await connection.close()

    async def _commit_groups(self, connection: AsyncConnection) -> None:
        await self._say_hello(connection)
        while self._waiting or not self._stopping:
            if not await self._gathered():
                await self._say_hello(connection)
                continue
            group = self._taken()
            self._in_flight = group
            try:
                await self._commit(connection, group)
            except BaseException:
                # Whoever still has patience goes first on the next connection.
                self._waiting.extendleft(entry for entry in reversed(group) if not entry.verdict.done())
                raise
            finally:
                self._in_flight = ()

    async def _gathered(self) -> bool:
        """Wait for somebody to come, and a moment more while only few wait. False: nobody came."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self._arrival = loop.create_future()
            timer = loop.call_later(_IDLE_SECONDS, _set, self._arrival)
            await self._arrival
            timer.cancel()
            self._arrival = None
        if self._waiting and len(self._waiting) < _FEW and not self._last_was_full and not self._stopping:
            self._enough = loop.create_future()
            timer = loop.call_later(_GATHER_SECONDS, _set, self._enough)
            await self._enough
            timer.cancel()
            self._enough = None
        return bool(self._waiting)

    def _taken(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        room = _LARGEST_GROUP
        while self._waiting and (room >= len(self._waiting[0].notices) or not group):
            entry = self._waiting.popleft()
            room -= len(entry.notices)
            group.append(entry)
        self._last_was_full = bool(self._waiting)
        return group

    async def _commit(self, connection: AsyncConnection, group: Sequence[_Waiting]) -> None:
        notices = [notice for entry in group for notice in entry.notices]
        asks = [ask for entry in group for ask in entry.asks]
        try:
            await self._write(connection, notices, asks)
        except StorageRefused as fault:
            if not _is_about_a_value(fault):
                log.error("cannot store: %s", fault)  # noqa: TRY400 – our own sentence; a traceback adds nothing
                self._give_up(group)
            elif len(group) > 1:
                half = len(group) // 2
                await self._commit(connection, group[:half])
                await self._commit(connection, group[half:])
            else:
                await self._set_aside(connection, group[0])
            return
        for entry in group:
            entry.answer(Verdict.STORED)

    async def _set_aside(self, connection: AsyncConnection, entry: _Waiting) -> None:
        """Keep what PostgreSQL refused where it harms nobody: escaped, without a key, asking for nothing."""
        escaped = [
            replace(notice, fate="quarantined", key=None, body=json.dumps(notice.body)) for notice in entry.notices
        ]
        try:
            await self._write(connection, escaped, ())
        except StorageRefused as fault:
            log.warning("a notice that cannot be stored could not be quarantined either: %s", fault)
        entry.answer(Verdict.REFUSED)

    async def _write(self, connection: AsyncConnection, notices: Sequence[Notice], asks: Sequence[Ask]) -> None:
        loop = asyncio.get_running_loop()
        fates = Counter((notice.store, notice.kind, notice.fate) for notice in notices)
        parameters = enqueue_parameters(notices, asks, self._slot, _tallies(fates))
        begun = loop.time()
        try:
            with translated():
                async with asyncio.timeout(_HUNG_SECONDS):
                    cursor = await connection.execute(NOTICES_AND_ENQUEUE, parameters, prepare=True)
                    pairs = await cursor.fetchall()
        except UnicodeEncodeError:  # a lone surrogate: psycopg cannot even send it
            raise StorageRefused("a text is no Unicode", sqlstate="22021") from None
        except StorageAway as fault:
            if connection.closed or fault.sqlstate is None:
                raise _ConnectionLost from None
            log.warning("cannot store now: %s", fault)
            await asyncio.sleep(_LOOK_SECONDS)
            raise _ConnectionLost from None
        except TimeoutError:
            self._went_away("PostgreSQL does not answer")
            raise _ConnectionLost from None
        self.answered_at = loop.time()
        self._on_commit(fates, self.answered_at - begun)
        if pairs:
            self._on_wake(pairs)

    async def _say_hello(self, connection: AsyncConnection) -> None:
        try:
            with translated():
                async with asyncio.timeout(_HUNG_SECONDS):
                    await connection.execute("select 1")
        except (StorageAway, StorageRefused, TimeoutError) as fault:
            self._went_away(str(fault) or "PostgreSQL does not answer")
            raise _ConnectionLost from None
        if self.away is not None:
            log.info("PostgreSQL is back")
        self.away = None
        self.answered_at = asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        """Tell those who waited too long that it is not stored, whatever the commit is doing."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            latest = loop.time() - self._patience
            self._give_up(entry for entry in self._in_flight if entry.since < latest)
            while self._waiting and self._waiting[0].since < latest:
                self._waiting.popleft().answer(Verdict.AWAY)

    def _went_away(self, why: str) -> None:
        if self.away is None:
            log.warning("cannot store: %s", why)
        self.away = why
        self._give_up(self._waiting)
        self._waiting.clear()

    @staticmethod
    def _give_up(entries: Iterable[_Waiting]) -> None:
        for entry in entries:
            entry.answer(Verdict.AWAY)


def _tallies(fates: Counter[tuple[int | None, str, str]]) -> dict[tuple[int, str], Tally]:
    tallies: dict[tuple[int, str], Tally] = {}
    for (store, kind, fate), count in fates.items():
        if store is None:
            continue
        tally = tallies.setdefault((store, SOURCES[kind]), Tally())
        tally.received += count
        match fate:
            case "accepted":
                tally.accepted += count
            case "ignored":
                tally.ignored += count
            case _:
                tally.quarantined += count
    return tallies


def _is_about_a_value(fault: StorageRefused) -> bool:
    """Data exception, integrity constraint or a value too large: classes 22, 23, 54; or psycopg cannot send it."""
    return fault.sqlstate is None or fault.sqlstate[:2] in {"22", "23", "54"}


def _set(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
