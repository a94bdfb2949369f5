"""Daily partitions, made before their day and dropped after their time, beside full traffic and several sweeps.

A day's partition begins at its midnight (UTC). Where the default partition holds rows of that day already, because
nobody made it in time, those stay there and the partition takes what comes after them: from the next quarter of an hour
on. What the default one holds goes by its age, a batch at a time. Nothing is moved, so nobody waits for it.

Whatever needs a lock that writers would wait for asks for it a fifth of a second at most and tries again: an intake
answers within half a second or spools, whatever happens here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import Connection, errors, sql
from psycopg_pool import ConnectionPool

from hub.db import translated

log = logging.getLogger("hub.partitions")

CLOCKS: Final = {"notices": "received_at", "interactions": "at"}
"""Partitioned table → the column by which it is."""

LOCK_MILLISECONDS: Final = 200
LOOKS_THROUGH: Final = (0.4, 4.0, 25.0)
"""Seconds that attaching may take, one try after the other. It looks through the default partition, which is empty
unless the sweep was away for days; intakes that wait for it meanwhile spool."""

TRIES: Final = 25
BATCH: Final = 5_000
BATCHES: Final = 20
"""Rows of the default partition that go at once, and how many times in one turn."""

MARGIN_MINUTES: Final = 5
"""A partition that begins within its day begins at least so much later than now: it is attached by then."""


def keep_partitions(
    pool: ConnectionPool[Connection[tuple[Any, ...]]],
    table: str,
    *,
    keep: int,
    ahead: int,
    now: datetime | None = None,
) -> None:
    """Partitions of `table` from today to `ahead` days ahead; what is older than `keep` days is dropped.

    `now` is PostgreSQL's time unless it is given. `StorageAway` when a lock could not be had: the next turn goes on.
    """
    with translated(), pool.connection() as db:
        turn = db.execute("select pg_try_advisory_lock(hashtextextended('hub partitions', 3))").fetchone()
        if not turn or not turn[0]:
            return  # another sweep is at it
        try:
            for offset in range(ahead, -1, -1):  # those that nobody needs yet come first: they are made in no time
                _make(db, table, offset, now)
            _drop_old(db, table, keep, now)
        finally:
            db.execute("select pg_advisory_unlock(hashtextextended('hub partitions', 3))")


@dataclass(frozen=True, slots=True)
class _Day:
    """One day of a table: its partition's name, its two midnights (UTC), and the moment it is looked at."""

    table: str
    name: str
    first: datetime
    after: datetime
    now: datetime

    def composed(self, query: str, **more: sql.Composable) -> sql.Composed:
        """The statement with the names of this day put in."""
        return sql.SQL(query).format(
            table=sql.Identifier(self.table),
            day=sql.Identifier(self.name),
            default=sql.Identifier(f"{self.table}_default"),
            clock=sql.Identifier(CLOCKS[self.table]),
            **more,
        )


def _make(db: Connection[Any], table: str, offset: int, now: datetime | None) -> None:
    day = _day(db, table, offset, now)
    if _attached(db, day):
        return
    begin = _begin(db, day)
    if begin >= day.after:
        log.info("%s: the default partition keeps this day whole; %s is not made", table, day.name)
        return
    if begin > day.first:
        log.warning(
            "%s: rows of that day are in the default partition already; %s begins at %s", table, day.name, begin
        )
    # Left behind by a process that ended in between; nobody has written to it.
    db.execute(day.composed("drop table if exists {day}"))
    db.execute(day.composed("create table {day} (like {table} including defaults including constraints)"))
    _attach(db, day, begin)


def _day(db: Connection[Any], table: str, offset: int, now: datetime | None) -> _Day:
    """The day that begins so many midnights from now."""
    row = db.execute(
        """
        select to_char(day, 'YYYYMMDD'), day, day + interval '1 day', n
        from (select coalesce(%s::timestamptz, now()) as n) t,
             lateral (select date_trunc('day', n, 'UTC') + make_interval(days => %s) as day) d
        """,
        (now, offset),
    ).fetchone()
    assert row is not None  # noqa: S101 – a constant select returns a row
    return _Day(table, f"{table}_{row[0]}", row[1], row[2], row[3])


def _attached(db: Connection[Any], day: _Day) -> bool:
    found = db.execute(
        "select exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = %s::regclass and c.relname = %s)",
        (day.table, day.name),
    ).fetchone()
    return bool(found and found[0])


def _begin(db: Connection[Any], day: _Day) -> datetime:
    """Where the partition begins: at its midnight, or behind the rows of that day that the default one holds."""
    found = db.execute(
        day.composed(
            """
            select case when newest is null then %(first)s else greatest(
              date_bin('15 minutes', newest, %(first)s) + interval '15 minutes',
              case when %(now)s >= %(first)s
                   then date_bin('15 minutes', %(now)s + make_interval(mins => %(margin)s), %(first)s)
                        + interval '15 minutes' end) end
            from (select max({clock}) as newest from {default}
                  where {clock} >= %(first)s and {clock} < %(after)s) x
            """
        ),
        {"first": day.first, "after": day.after, "now": day.now, "margin": MARGIN_MINUTES},
    ).fetchone()
    return found[0] if found else day.first


def _attach(db: Connection[Any], day: _Day, begin: datetime) -> None:
    """Rows come to it from now on. When they came to the default one meanwhile, the next turn tries again."""
    attach = day.composed(
        "alter table {table} attach partition {day} for values from ({begin}) to ({after})",
        begin=sql.Literal(begin),
        after=sql.Literal(day.after),
    )
    for seconds in LOOKS_THROUGH:
        try:
            _briefly(db, lambda: db.execute(attach), seconds=seconds)
        except errors.CheckViolation:
            log.info("%s: rows came for %s meanwhile; the next turn makes it", day.table, day.name)
        except errors.QueryCanceled:
            log.warning("%s: the default partition could not be looked through within %s s", day.table, seconds)
            continue
        return


def _drop_old(db: Connection[Any], table: str, keep: int, now: datetime | None) -> None:
    old = db.execute(
        """
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = %s::regclass and c.relname ~ '_[0-9]{8}$'
          and to_date(right(c.relname, 8), 'YYYYMMDD') < coalesce(%s::timestamptz, now())::date - %s::int
        order by c.relname
        """,
        (table, now, keep),
    ).fetchall()
    for (name,) in old:
        day = sql.Identifier(name)
        # Taken off first: its files are then removed while nobody waits. (Concurrently is not for tables with a
        # default partition.)
        detach = sql.SQL("alter table {} detach partition {}").format(sql.Identifier(table), day)
        _briefly(db, lambda detach=detach: db.execute(detach))  # type: ignore[misc]  # bound now
        db.execute(sql.SQL("drop table if exists {}").format(day))
    left = db.execute(
        """
        select c.relname from pg_class c
        where c.relnamespace = (select relnamespace from pg_class where oid = %s::regclass) and c.relkind = 'r'
          and not c.relispartition and c.relname ~ ('^' || %s || '_[0-9]{8}$')
          and to_date(right(c.relname, 8), 'YYYYMMDD') < coalesce(%s::timestamptz, now())::date - %s::int
        """,
        (table, table, now, keep),
    ).fetchall()
    for (name,) in left:  # taken off by a process that ended before it could drop it
        db.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(name)))
    default, clock = sql.Identifier(f"{table}_default"), sql.Identifier(CLOCKS[table])
    forget = sql.SQL(
        "delete from {default} where ctid = any(array(select ctid from {default}"
        " where {clock} < coalesce(%s::timestamptz, now())::date - %s::int limit %s))"
    ).format(default=default, clock=clock)
    for _ in range(BATCHES):
        if db.execute(forget, (now, keep, BATCH)).rowcount < BATCH:
            break


def _briefly(db: Connection[Any], change: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Change something for which writers have to wait until the lock is had: a fifth of a second, then it tries again.

    `seconds`: how long the change itself may take.
    """
    for turn in range(TRIES):
        try:
            with db.transaction():
                db.execute("select set_config('lock_timeout', %s, true)", (f"{LOCK_MILLISECONDS}ms",))
                db.execute("select set_config('statement_timeout', %s, true)", (f"{round(seconds * 1000)}ms",))
                change()
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if turn + 1 == TRIES:
                raise
            time.sleep(0.05 * (turn + 1))  # writers that queued up behind us go first
        else:
            return
