"""How much waits in the cell, for whoever watches it: numbers by context, without a store's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import translated


@dataclass(frozen=True, slots=True)
class Gauge:
    """One context: keys pending, seconds since the oldest of them was asked for, keys dead."""

    context: str
    pending: int
    oldest_seconds: float
    dead: int


@dataclass(frozen=True, slots=True)
class Shut:
    """How many gates of a context (`*`: all of a store) are shut for one cause."""

    context: str
    cause: str
    gates: int


def gauges(pool: ConnectionPool[Connection[tuple[Any, ...]]]) -> tuple[list[Gauge], list[Shut]]:
    """What waits, by context, and what is shut. Reads partial indexes only. `StorageAway`."""
    with translated(), pool.connection() as db:
        waiting = db.execute(
            """
            select coalesce(p.context, d.context), coalesce(p.n, 0), coalesce(p.oldest, 0)::float8, coalesce(d.n, 0)
            from (select context, count(*) as n, extract(epoch from now() - min(pending_since)) as oldest
                  from states where work = 'p' group by context) p
            full join (select context, count(*) as n from states where status = 'dead' group by context) d
              on d.context = p.context
            order by 1
            """
        ).fetchall()
        shut = db.execute(
            "select context, cause, count(*) from gates where reopens_at is null or reopens_at > now()"
            " group by context, cause order by context, cause"
        ).fetchall()
    return [Gauge(*row) for row in waiting], [Shut(*row) for row in shut]
