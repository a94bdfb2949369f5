"""One statement and one commit for everything that waits: nothing is reported stored before it is durable (law 7).

One connection, one group in flight. What PostgreSQL has not committed when the patience ends, or cannot commit because
it is away, goes to the spool and is stored when that is on the disk; without a spool that works it is reported as not
stored. The connection comes back by itself, and then the spool is drained, in order, a group after each group of those
who wait. What PostgreSQL refuses for a value in it is found by halving the group and set aside alone, escaped, as
quarantined: it never takes its neighbours along.

Stored is stored once. A group whose commit may have happened without our knowing – the connection broke, its patience
ended meanwhile – is stored by a slower transaction that looks at the ids of its notices first and waits for whoever is
just inserting them; what was there already asks for nothing and counts for nothing a second time (law 6).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from psycopg import AsyncConnection

from hub.db import StorageAway, StorageRefused, conninfo, translated
from hub.errors import HubError
from hub.ledger import (
    NOTICES_AND_ENQUEUE,
    NOTICES_ONCE,
    Notice,
    Pair,
    Tally,
    enqueue_parameters,
    notice_parameters,
)
from hub.model import Ask
from tasks.spool import Spool, encoded

SOURCES: Final = {"notification": "vtex", "event": "marketplace", "result": "result"}
"""Who says so, by kind of notice: the source of its counters and of its demands."""

PATIENCE_SECONDS: Final = 0.5
"""How long a request waits for PostgreSQL before it is spooled or refused."""

_LARGEST_GROUP: Final = 512
_FEW: Final = 32
_GATHER_SECONDS: Final = 0.002
_QUICK_SECONDS: Final = 0.003  # a commit that takes longer is worth waiting for those who would miss it
_LOOK_SECONDS: Final = 0.05  # how often the waiting are looked through for those whose patience ended
_IDLE_SECONDS: Final = 1.0  # without work for so long, the connection is tried: a dead one costs nobody a request
_CONNECT_SECONDS: Final = 5.0
_STATEMENT_SECONDS: Final = 2.0  # PostgreSQL's own limit …
_HUNG_SECONDS: Final = 3.0  # … and ours, for a server that does not even say so
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # between attempts to connect
_ADOPT_SECONDS: Final = 5.0  # how often the spool of processes that died is looked for
_CLOCK_SECONDS: Final = 10.0  # how old our notion of PostgreSQL's clock may become
_TWICE: Final = "23505"  # unique_violation

log = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """What became of what somebody wanted to have stored."""

    STORED = "stored"  # committed, or durable in the spool
    REFUSED = "refused"  # PostgreSQL refuses a value in it; kept, escaped, as quarantined where possible
    AWAY = "away"  # not stored, or nobody knows in time


@dataclass(slots=True, eq=False)
class _Waiting:
    """What one request wants to have stored, since when (loop time), and where its answer goes."""

    notices: Sequence[Notice]
    asks: Sequence[Ask]
    since: float
    verdict: asyncio.Future[Verdict]
    doubtful: bool = False  # PostgreSQL may have it already
    spooled: bool = False  # the spool has it, or is asked to keep it

    def answer(self, verdict: Verdict) -> None:
        if not self.verdict.done():
            self.verdict.set_result(verdict)

    def kept(self, durable: bool) -> None:
        """The spool has spoken."""
        self.answer(Verdict.STORED if durable else Verdict.AWAY)


class _ConnectionLost(Exception):  # noqa: N818 – a turn of the loop, not an error anybody sees
    """The connection is of no more use."""


class _NotNow(Exception):  # noqa: N818 – as above
    """PostgreSQL cannot say yet whether it has these: somebody who may be storing them has not ended."""


class GroupCommit:
    """Stores notices and demands together with those of everybody who waits in the same moment.

    `on_wake` gets the (store, context) pairs to wake after each commit, in the event loop: it must not block.
    `on_commit` gets the number of notices by (store, kind, fate), and the seconds the commit took. `patience` in
    seconds; `most_waiting` bounds what waits for PostgreSQL, what comes beyond it goes to the spool at once. With
    `spool=None` what would go there is `AWAY`. The spool must be open, and is closed by `stop`.
    """

    def __init__(
        self,
        database_url: str,
        schema: str,
        *,
        slot: int,
        on_wake: Callable[[Iterable[Pair]], None],
        on_commit: Callable[[Counter[tuple[int | None, str, str]], float], None],
        spool: Spool | None = None,
        patience: float = PATIENCE_SECONDS,
        most_waiting: int = 8_192,
    ) -> None:
        self._where = conninfo(database_url, schema, name="intake", statement_seconds=_STATEMENT_SECONDS, seqscan=False)
        self._slot = slot
        self._on_wake = on_wake
        self._on_commit = on_commit
        self._spool = spool
        self._patience = patience
        self._most_waiting = most_waiting
        self._waiting: deque[_Waiting] = deque()
        self._in_flight: Sequence[_Waiting] = ()
        self._sent_at = 0.0
        self._clock = time.time() - time.monotonic()
        self._clock_read = 0.0
        self._drain_after = self._adopt_after = 0.0
        self._drain_pause = _PAUSES[0]
        self._arrival: asyncio.Future[None] | None = None
        self._enough: asyncio.Future[None] | None = None
        self._last = 0  # how many the last group was of, and …
        self._took = 0.0  # … the seconds that its commit took
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # kept: asking for it is a system call in Python 3.11
        self.away: str | None = None
        """Why PostgreSQL cannot be used; `None` while it can, as far as is known."""
        self.answered_at: float | None = None
        """Loop time of PostgreSQL's last answer."""

    def now(self) -> int:
        """Microseconds since 1970 by PostgreSQL's clock, as it was last told us, a few milliseconds ahead at most."""
        return int((self._clock + time.monotonic()) * 1e6)

    def start(self) -> None:
        """Begin to connect and to commit; call inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Commit what waits, then end. What PostgreSQL cannot store any more is left to the spool."""
        self._stopping = True
        _set(self._arrival)
        _set(self._enough)
        await asyncio.wait(self._tasks[:1], timeout=_HUNG_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._give_up(self._waiting)
        self._waiting.clear()
        if self._spool is not None:
            await self._spool.close()

    async def store(self, notices: Sequence[Notice], asks: Sequence[Ask]) -> Verdict:
        """Store both in the next commit; the answer comes after it, or from the spool when the patience ends."""
        loop = self._loop or asyncio.get_running_loop()
        entry = _Waiting(notices, asks, loop.time(), loop.create_future())
        if self.away is not None or self._stopping or len(self._waiting) >= self._most_waiting:
            self._give_up((entry,))
            return await entry.verdict
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
            except Exception as fault:  # noqa: BLE001 – whatever it is, this task must live: nobody else stores anything
                # Type and place only: a message may quote a body.
                where = "".join(traceback.format_tb(fault.__traceback__, limit=-4))
                log.error("unexpected %s while storing\n%s", type(fault).__name__, where)  # noqa: TRY400 – see above
                self._went_away(f"unexpected {type(fault).__name__}")
                await asyncio.sleep(_PAUSES[-1])
            finally:
                with contextlib.suppress(HubError), translated():
                    await connection.close()

    async def _commit_groups(self, connection: AsyncConnection) -> None:
        await self._say_hello(connection)
        loop = asyncio.get_running_loop()
        while self._waiting or not self._stopping:
            if not self._stopping and await self._drained(connection) and not self._waiting:
                continue
            if not await self._gathered() or loop.time() - self._clock_read > _CLOCK_SECONDS:
                await self._say_hello(connection)
                continue
            group = self._taken()
            self._in_flight, self._sent_at = group, loop.time()
            try:
                await self._commit(connection, group, again=group[0].doubtful)
            except _NotNow:
                self._give_up(group)
            except BaseException:
                # Whoever still has patience goes first on the next connection.
                left = [entry for entry in group if not entry.verdict.done() and not entry.spooled]
                for entry in left:
                    entry.doubtful = True
                self._waiting.extendleft(reversed(left))
                raise
            finally:
                self._in_flight = ()

    async def _drained(self, connection: AsyncConnection) -> bool:
        """Store the next group of the spool. False: nothing is there to be stored, or not now."""
        spool, loop = self._spool, asyncio.get_running_loop()
        if spool is None:
            return False
        if loop.time() >= self._adopt_after:
            await spool.adopt()
            self._adopt_after = loop.time() + _ADOPT_SECONDS
        if spool.empty or loop.time() < self._drain_after:
            return False
        batch = await spool.oldest(_LARGEST_GROUP)
        if batch is None:
            self._drain_after = loop.time() + _PAUSES[-1]
            return False
        # They are in the spool, and stay there until all of them are stored.
        group = [
            _Waiting(one.notices, one.asks, loop.time(), loop.create_future(), spooled=True) for one in batch.records
        ]
        try:
            if group:
                await self._commit(connection, group, again=True)
        except _NotNow:
            self._drain_after = loop.time() + self._drain_pause
            self._drain_pause = min(2 * self._drain_pause, _ADOPT_SECONDS)
            return False
        if not all(entry.verdict.done() and entry.verdict.result() is not Verdict.AWAY for entry in group):
            self._drain_after = loop.time() + _PAUSES[-1]
            return False
        self._drain_pause = _PAUSES[0]
        await spool.forget(batch)
        return True

    async def _gathered(self) -> bool:
        """Wait for somebody to come, and a moment more while only few wait. False: nobody came."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self._arrival = loop.create_future()
            timer = loop.call_later(_IDLE_SECONDS, _set, self._arrival)
            await self._arrival
            timer.cancel()
            self._arrival = None
        # Where many come and commits are quick, PostgreSQL would only be idle until those just answered ask again.
        begins = self._took < _QUICK_SECONDS and len(self._waiting) + self._last >= _FEW
        if self._waiting and len(self._waiting) < _FEW and not begins and not self._stopping:
            self._enough = loop.create_future()
            timer = loop.call_later(_GATHER_SECONDS, _set, self._enough)
            await self._enough
            timer.cancel()
            self._enough = None
        return bool(self._waiting)

    def _taken(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        room = _LARGEST_GROUP
        doubtful = self._waiting[0].doubtful
        while (
            self._waiting
            and (room >= len(self._waiting[0].notices) or not group)
            and self._waiting[0].doubtful == doubtful
        ):
            entry = self._waiting.popleft()
            room -= len(entry.notices)
            group.append(entry)
        self._last = len(group)
        return group

    async def _commit(self, connection: AsyncConnection, group: Sequence[_Waiting], *, again: bool) -> None:
        """Store the group, without those that PostgreSQL refuses; `again`: PostgreSQL may have some of it already."""
        try:
            await self._write(connection, group, again=again)
        except StorageRefused as fault:
            if fault.sqlstate == _TWICE and not again:
                await self._commit(connection, group, again=True)
                return
            if not _is_about_a_value(fault):
                log.error("cannot store: %s", fault)  # noqa: TRY400 – our own sentence; a traceback adds nothing
                self._give_up(group)
            elif len(group) > 1:
                half = len(group) // 2
                await self._commit(connection, group[:half], again=again)
                await self._commit(connection, group[half:], again=again)
            else:
                await self._set_aside(connection, group[0])
            return
        for entry in group:
            entry.answer(Verdict.STORED)

    async def _set_aside(self, connection: AsyncConnection, entry: _Waiting) -> None:
        """Keep what PostgreSQL refused where it harms nobody: escaped, without a key, asking for nothing."""
        escaped = [
            notice._replace(fate="quarantined", key=None, body=json.dumps(notice.body)) for notice in entry.notices
        ]
        try:
            await self._write(connection, [replace(entry, notices=escaped, asks=())], again=True)
        except StorageRefused as fault:
            log.warning("a notice that cannot be stored could not be quarantined either: %s", fault)
        entry.answer(Verdict.REFUSED)

    async def _write(self, connection: AsyncConnection, group: Sequence[_Waiting], *, again: bool) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            with translated():
                async with asyncio.timeout(_HUNG_SECONDS):
                    fates, pairs = await (self._stored_once if again else self._stored)(connection, group)
        except UnicodeEncodeError:  # a lone surrogate: psycopg cannot even send it
            raise StorageRefused("a text is no Unicode", sqlstate="22021") from None
        except StorageAway as fault:
            if connection.closed or fault.sqlstate is None:
                raise _ConnectionLost from None
            if again:
                raise _NotNow from None
            log.warning("cannot store now: %s", fault)
            await asyncio.sleep(_LOOK_SECONDS)
            raise _ConnectionLost from None
        except TimeoutError:
            self._went_away("PostgreSQL does not answer")
            raise _ConnectionLost from None
        self.answered_at = loop.time()
        self._took = self.answered_at - begun
        self._on_commit(fates, self._took)
        if pairs:
            self._on_wake(pairs)

    async def _stored(self, connection: AsyncConnection, group: Sequence[_Waiting]) -> _Outcome:
        notices = [notice for entry in group for notice in entry.notices]
        asks = [ask for entry in group for ask in entry.asks]
        fates = _fates(notices)
        parameters = enqueue_parameters(notices, asks, self._slot, _tallies(fates))
        cursor = await connection.execute(NOTICES_AND_ENQUEUE, parameters, prepare=True)
        return fates, await cursor.fetchall()

    async def _stored_once(self, connection: AsyncConnection, group: Sequence[_Waiting]) -> _Outcome:
        """Store what is not there yet. A request's notices are stored together, so its first one speaks for all."""
        async with connection.transaction():
            await connection.execute(_SHORT_LOCKS)
            said = [notice for entry in group for notice in entry.notices]
            cursor = await connection.execute(NOTICES_ONCE, notice_parameters(said))
            fresh = {row[0].hex for row in await cursor.fetchall()}
            notices: list[Notice] = []
            asks: list[Ask] = []
            for entry in group:
                if entry.notices[0].id in fresh:
                    fresh.difference_update(notice.id for notice in entry.notices)
                    notices += entry.notices
                    asks += entry.asks
            fates = _fates(notices)
            if not notices:
                return fates, []
            parameters = enqueue_parameters((), asks, self._slot, _tallies(fates))
            cursor = await connection.execute(NOTICES_AND_ENQUEUE, parameters)
            return fates, await cursor.fetchall()

    async def _say_hello(self, connection: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        asked = time.monotonic()  # from when we ask: we may run ahead of PostgreSQL by a trip, never behind
        try:
            with translated():
                async with asyncio.timeout(_HUNG_SECONDS):
                    cursor = await connection.execute("select extract(epoch from clock_timestamp())::float8")
                    told = await cursor.fetchone()
        except (StorageAway, StorageRefused, TimeoutError) as fault:
            self._went_away(str(fault) or "PostgreSQL does not answer")
            raise _ConnectionLost from None
        if self.away is not None:
            log.info("PostgreSQL is back")
        self.away = None
        if told is not None:
            self._clock = told[0] - asked
        self.answered_at = self._clock_read = loop.time()

    async def _watch(self) -> None:
        """Those who waited too long go to the spool, whatever the commit is doing."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._spool is not None and not self._spool.works and loop.time() - looked > _ADOPT_SECONDS:
                looked = loop.time()
                await self._spool.look()
            latest = loop.time() - self._patience
            self._give_up(entry for entry in self._in_flight if entry.since < latest)
            while self._waiting and self._waiting[0].since < latest:
                self._give_up((self._waiting.popleft(),))
            if self._in_flight and self.away is None and loop.time() - self._sent_at > _HUNG_SECONDS:
                self._went_away("PostgreSQL does not answer")

    def _went_away(self, why: str) -> None:
        if self.away is None:
            log.warning("cannot store: %s", why)
        self.away = why
        self._give_up(self._waiting)
        self._waiting.clear()

    def _give_up(self, entries: Iterable[_Waiting]) -> None:
        """PostgreSQL does not store these now: the spool's turn."""
        for entry in entries:
            if self._spool is None:
                entry.answer(Verdict.AWAY)
            elif not entry.spooled and not entry.verdict.done():
                entry.spooled = True
                self._spool.append(encoded(entry.notices, entry.asks), entry.kept)


_Outcome = tuple[Counter[tuple[int | None, str, str]], list[Pair]]

# Whoever may be storing the same has not ended: a quarter of a second is what those who wait behind can bear.
_SHORT_LOCKS: Final = "set local lock_timeout = '250ms'"


def _fates(notices: Iterable[Notice]) -> Counter[tuple[int | None, str, str]]:
    return Counter((notice.store, notice.kind, notice.fate) for notice in notices)


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
