"""Reconciliations, as people and the calendar start and follow them; `hub.contexts.reconcile` does the work.

A reconciliation is a row of `runs`, of which a store has one at a time. It is never in a process: the sweep sees that
each one under way is asked for, and it goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, errors
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from hub.beliefs import CONTEXTS, ENDED_ORDERS
from hub.db import StorageRefused, translated
from hub.errors import BadInput, Conflict, Problem
from hub.parsing import suggestion

Pool = ConnectionPool[Connection[tuple[Any, ...]]]

CALENDAR = "hub: calendar"
"""Who starts those that are due."""

RULES = "hub: rules changed"
"""Who starts those of stores whose rules were changed."""

FOLLOWED_SECONDS = 2.0
"""Rules that were changed so long ago are known to every worker: each reads the registry twice a second."""

STARTED_AT_ONCE = 20
"""Stores that one look at the calendar starts."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One reconciliation and what it met so far. Times are ISO, UTC; `pending`: keys of the store still to be read.

    `counts` by name: listings, differing (a snapshot was not true), rebound (a listing without a pair), corrected
    pairs, absent (a pair without a listing), foreign (left alone), without listing, orders, asked.
    """

    run: int
    store: str
    state: str
    phase: str
    counts: Mapping[str, int]
    pending: int
    who: str
    started_at: str
    finished_at: str | None
    seconds: float


def checked(contexts: Collection[str]) -> list[str]:
    """The contexts to compare, all of them when none is named. `BadInput` for others."""
    wrong = [
        Problem("input", "context", name[:40], f"cannot be compared; {suggestion(name, CONTEXTS)}")
        for name in contexts
        if name not in CONTEXTS
    ]
    if wrong:
        raise BadInput(wrong)
    return [name for name in CONTEXTS if not contexts or name in contexts]


def start(pool: Pool, store: int, *, who: str, why: str = "", contexts: Collection[str] = ()) -> int:
    """Begin to compare a store; the answer is the run's number. `Conflict` while it is being compared already.

    Listings of SKUs that neither the hub nor VTEX knows are taken for ours and withdrawn: a database that was restored
    has forgotten them. Workers need not be woken; the sweep does it.
    """
    chosen = {"contexts": checked(contexts), "adopts": True}
    try:
        with translated(), pool.connection() as db, db.transaction():
            row = db.execute(
                "insert into runs (store, kind, who, why, filter) values (%s, 'reconcile', %s, %s, %s) returning id",
                (store, who, why, json.dumps(chosen)),
            ).fetchone()
            assert row is not None  # noqa: S101 – INSERT … RETURNING always returns
            db.execute(
                "insert into audit (who, action, store, detail) values (%s, 'reconcile', %s, %s)",
                (who, store, json.dumps({"run": row[0], "why": why, "contexts": chosen["contexts"]})),
            )
    except StorageRefused as refused:
        if refused.sqlstate != errors.UniqueViolation.sqlstate:
            raise
        raise Conflict("it is being compared already: hub reconcile list, or hub reconcile cancel") from None
    return int(row[0])


def start_due(pool: Pool, *, hours: float) -> int:
    """Begin those whose time has come: each active store once in `hours`, at a time of its own; returns how many.

    Two sweeps may look at once: a store has one run at a time, and one that began in this period is not due.
    """
    with translated(), pool.connection() as db:
        return db.execute(
            """
            with turn as (
              select s.id, s.created_at, to_timestamp(
                floor((extract(epoch from now()) - o.seconds) / %(period)s) * %(period)s + o.seconds) as began
              from stores s, lateral (
                select (hashtextextended(s.slug, 7) & 1048575) / 1048576.0 * %(period)s::float8 as seconds) o
              where s.status = 'active'
            )
            insert into runs (store, kind, who, filter)
            select t.id, 'reconcile', %(who)s, '{"adopts": false}' from turn t
            where t.created_at < t.began
              and not exists (select from runs r where r.store = t.id and r.kind = 'reconcile'
                                and (r.started_at >= t.began or r.state = 'running'))
            order by t.id limit %(limit)s
            on conflict do nothing
            """,
            {"period": hours * 3600.0, "who": CALENDAR, "limit": STARTED_AT_ONCE},
        ).rowcount


def start_changed(pool: Pool) -> int:
    """Begin those of active stores whose rules changed since they were last compared as a whole; returns how many.

    What is under way meanwhile ends first; it began with the old rules. One that is cancelled is not begun again.
    """
    with translated(), pool.connection() as db:
        return db.execute(
            """
            insert into runs (store, kind, who, filter)
            select s.id, 'reconcile', %(who)s, '{"adopts": false}' from stores s
            where s.status = 'active' and s.rules_changed_at < now() - make_interval(secs => %(followed)s)
              and not exists (
                select from runs r where r.store = s.id and r.kind = 'reconcile'
                  and (r.state = 'running'
                    or r.started_at >= s.rules_changed_at + make_interval(secs => %(followed)s)
                      and coalesce(r.filter -> 'contexts', %(all)s) @> %(all)s))
            order by s.id limit %(limit)s
            on conflict do nothing
            """,
            {"who": RULES, "followed": FOLLOWED_SECONDS, "all": Jsonb(list(CONTEXTS)), "limit": STARTED_AT_ONCE},
        ).rowcount


def unattended(pool: Pool, key: str) -> list[int]:
    """Stores whose reconciliation is under way and whose row (`key`) is at rest: nobody would go on with it."""
    with translated(), pool.connection() as db:
        return [
            int(row[0])
            for row in db.execute(
                """
                select r.store from runs r
                left join states s on s.store = r.store and s.context = 'reconcile' and s.key = %s
                where r.kind = 'reconcile' and r.state = 'running'
                  and (s.work is null or (s.work = 'i' and s.asked = s.answered))
                """,
                (key,),
            ).fetchall()
        ]


def cancel(pool: Pool, store: int, *, who: str) -> int | None:
    """End the store's reconciliation where it is; what was asked for is finished. Its number, or `None`."""
    with translated(), pool.connection() as db, db.transaction():
        row = db.execute(
            "update runs set state = 'cancelled', finished_at = now(), totals = totals || %s"
            " where store = %s and kind = 'reconcile' and state = 'running' returning id",
            (json.dumps({"cancelled_by": who}), store),
        ).fetchone()
        if row is not None:
            db.execute(
                "insert into audit (who, action, store, detail) values (%s, 'reconcile cancel', %s, %s)",
                (who, store, json.dumps({"run": row[0]})),
            )
    return int(row[0]) if row else None


def forget(pool: Pool, *, days: int) -> int:
    """Drop old runs that nobody asked for but for each store's last one: nothing grows without end."""
    with translated(), pool.connection() as db:
        return db.execute(
            """
            delete from runs r where r.kind = 'reconcile' and r.who = any(%s) and r.state <> 'running'
              and r.finished_at < now() - make_interval(days => %s)
              and exists (select from runs n where n.store = r.store and n.kind = 'reconcile'
                            and n.started_at > r.started_at)
            """,
            ([CALENDAR, RULES], days),
        ).rowcount


def expected(pool: Pool, store: int) -> tuple[int, int]:
    """How many pairs and how many open orders a reconciliation of this store would compare at least."""
    with translated(), pool.connection() as db:
        row = db.execute(
            "select (select count(*) from bindings where store = %(store)s),"
            " (select count(*) from orders where store = %(store)s and state <> all(%(ended)s))",
            {"store": store, "ended": list(ENDED_ORDERS)},
        ).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def listed(
    pool: Pool, *, runs: Collection[int] | None = None, store: int | None = None, limit: int = 20
) -> list[Comparison]:
    """These runs, or the last ones (of a store), newest first."""
    with translated(), pool.connection() as db:
        rows = db.execute(
            """
            select r.id, t.slug, r.state, coalesce(r.cursor ->> 'phase', 'lots'), r.totals,
                   (select count(*) from (select from states s where s.store = r.store and s.work in ('p', 'h')
                      and s.context = any(%(contexts)s) limit 5000) x),
                   r.who, to_char(r.started_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                   to_char(r.finished_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                   extract(epoch from coalesce(r.finished_at, now()) - r.started_at)::float8
            from runs r join stores t on t.id = r.store
            where r.kind = 'reconcile' and (%(runs)s::bigint[] is null or r.id = any(%(runs)s))
              and (%(store)s::int is null or r.store = %(store)s)
            order by r.id desc limit %(limit)s
            """,
            {
                "contexts": list(CONTEXTS),
                "runs": None if runs is None else list(runs),
                "store": store,
                "limit": limit if runs is None else len(runs),
            },
        ).fetchall()
    return [
        Comparison(
            run,
            slug,
            state,
            phase,
            {name: count for name, count in totals.items() if isinstance(count, int)},
            pending,
            by,
            started,
            finished,
            seconds,
        )
        for run, slug, state, phase, totals, pending, by, started, finished, seconds in rows
    ]
