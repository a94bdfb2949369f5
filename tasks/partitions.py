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


def _make(db: Connection[Any], table: str, offset: int, now: datetime | None) -> None:
    row = db.execute(
        """
        select to_char(day, 'YYYYMMDD'), day, day + interval '1 day', n
        from (select coalesce(%s::timestamptz, now()) as n) t,
             lateral (select date_trunc('day', n, 'UTC') + make_interval(days => %s) as day) d
        """,
        (now, offset),
    ).fetchone()
    assert row is not None  # noqa: S101 – a constant select returns a row
    name, first, after, moment = f"{table}_{row[0]}", row[1], row[2], row[3]
    attached = db.execute(
        "select exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = %s::regclass and c.relname = %s)",
        (table, name),
    ).fetchone()
    if attached and attached[0]:
        return
    names = {
        "table": sql.Identifier(table),
        "day": sql.Identifier(name),
        "default": sql.Identifier(f"{table}_default"),
        "clock": sql.Identifier(CLOCKS[table]),
        "after": sql.Literal(after),
    }
    begin = db.execute(
        sql.SQL(
            """
            select case when newest is null then %s else greatest(
              date_bin('15 minutes', newest, %s) + interval '15 minutes',
              case when %s >= %s then date_bin('15 minutes', %s + make_interval(mins => %s), %s)
                   + interval '15 minutes' end) end
            from (select max({clock}) as newest from {default} where {clock} >= %s and {clock} < {after}) x
            """
        ).format(**names),
        (first, first, moment, first, moment, MARGIN_MINUTES, first, first),
    ).fetchone()
    start = begin[0] if begin else first
    if start >= after:
        log.info("%s: the default partition keeps this day whole; %s is not made", table, name)
        return
    if start > first:
        log.warning("%s: rows of that day are in the default partition already; %s begins at %s", table, name, start)
    names["start"] = sql.Literal(start)
    # Left behind by a process that ended in between; nobody has written to it.
    db.execute(sql.SQL("drop table if exists {day}").format(**names))
    db.execute(sql.SQL("create table {day} (like {table} including defaults including constraints)").format(**names))

    attach = sql.SQL("alter table {table} attach partition {day} for values from ({start}) to ({after})").format(
        **names
    )
    for seconds in LOOKS_THROUGH:
        try:
            _briefly(db, lambda: db.execute(attach), seconds=seconds)
        except errors.CheckViolation:
            log.info("%s: rows came for %s meanwhile; the next turn makes it", table, name)
        except errors.QueryCanceled:
            log.warning("%s: the default partition could not be looked through within %s s", table, seconds)
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
