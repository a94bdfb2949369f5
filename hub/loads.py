"""Initial loads, as people start, follow and cancel them; `hub.contexts.load` does the work (vtex.md 7.2).

A load is a row of `runs`. It is never in a process: whoever follows it may go away, and it continues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection, errors
from psycopg_pool import ConnectionPool

from hub.db import StorageRefused, translated
from hub.errors import BadInput, Conflict, Problem
from hub.ledger import NOTICES_AND_ENQUEUE, enqueue_parameters
from hub.model import Ask, Urgency

Pool = ConnectionPool[Connection[tuple[object, ...]]]

LARGEST_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Load:
    """One load and what became of its SKUs so far (LOD-13). Times are ISO, UTC.

    `total` counts what was listed until now; it is final when `listed` is true. `contingency`: the marketplace or VTEX
    did not answer, tried again by itself; `dead` is the part of it whose plan is used up.
    """

    run: int
    store: str
    state: str
    listed: bool
    page: int
    total: int
    sent: int
    pending: int
    rejected: int
    awaiting_mapping: int
    contingency: int
    dead: int
    who: str
    started_at: str
    finished_at: str | None
    seconds: float

    @property
    def outcomes(self) -> int:
        """SKUs that have an outcome."""
        return self.total - self.pending


def start(
    pool: Pool, store: int, *, who: str, why: str = "", skus: Sequence[str] = (), page_size: int = LARGEST_PAGE
) -> int:
    """Begin a load of the store's sales channel, or of `skus` only; the answer is its number.

    `Conflict` while another load of this store runs. Workers have to be woken for (store, load).
    """
    if not 1 <= page_size <= LARGEST_PAGE:
        raise BadInput([Problem("input", "page_size", str(page_size), f"write 1 to {LARGEST_PAGE}")])
    chosen: dict[str, object] = {"page_size": page_size, **({"skus": list(dict.fromkeys(skus))} if skus else {})}
    try:
        with translated(), pool.connection() as db, db.transaction():
            row = db.execute(
                "insert into runs (store, kind, who, why, filter, cursor) values (%s, 'load', %s, %s, %s, %s)"
                " returning id",
                (store, who, why, json.dumps(chosen), json.dumps({"page": 1, "seen": "", "listed": False})),
            ).fetchone()
            assert row is not None  # noqa: S101 – INSERT … RETURNING always returns
            run = int(str(row[0]))
            first_page = [Ask(store, "load", f"{run}:1", "operator", Urgency.LOAD)]
            db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), first_page, 0))
            detail = {"run": run, "why": why, "skus": len(skus)}
            db.execute(
                "insert into audit (who, action, store, detail) values (%s, 'load', %s, %s)",
                (who, store, json.dumps(detail)),
            )
    except StorageRefused as refused:
        if refused.sqlstate != errors.UniqueViolation.sqlstate:
            raise
        raise Conflict("a load of this store is running already: hub load watch, or hub load cancel") from None
    return run


def cancel(pool: Pool, store: int, *, who: str) -> int | None:
    """End the running load: no further SKU is asked for, those asked for are finished. Its number, or `None`."""
    with translated(), pool.connection() as db, db.transaction():
        row = db.execute(
            "update runs set state = 'cancelled', finished_at = now(), totals = totals || %s"
            " where store = %s and kind = 'load' and state = 'running' returning id",
            (json.dumps({"cancelled_by": who}), store),
        ).fetchone()
        if row is None:
            return None
        db.execute(
            "insert into audit (who, action, store, detail) values (%s, 'load cancel', %s, %s)",
            (who, store, json.dumps({"run": row[0]})),
        )
    return int(str(row[0]))


def progress(pool: Pool, run: int) -> Load:
    """How far a load has come, of one moment. `BadInput` when there is no such load."""
    found = _loads(pool, "r.id = %s", (run,))
    if not found:
        raise BadInput([Problem("input", "load", str(run), "there is no such load; see: hub load list")])
    return found[0]


def latest(pool: Pool, store: int) -> Load | None:
    """The running load of a store, else its last one."""
    with translated(), pool.connection() as db:
        row = db.execute(
            "select id from runs where store = %s and kind = 'load' order by (state = 'running') desc, id desc limit 1",
            (store,),
        ).fetchone()
    return progress(pool, int(str(row[0]))) if row else None


def listed(pool: Pool, *, store: int | None = None, limit: int = 20) -> list[Load]:
    """The last loads, newest first."""
    newest = "select id from runs where kind = 'load' and (%s::int is null or store = %s) order by id desc limit %s"
    return _loads(pool, f"r.id in ({newest})", (store, store, limit))


_COUNTS = """
select r.id, t.slug, r.state, coalesce((r.cursor ->> 'listed')::bool, false), coalesce((r.cursor ->> 'page')::int, 1),
       n.total, n.sent, n.pending, n.rejected, n.parked, n.late, n.dead, r.who,
       to_char(r.started_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), to_char(r.finished_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
       extract(epoch from coalesce(r.finished_at, now()) - r.started_at)::float8
from runs r join stores t on t.id = r.store, lateral (
  select count(*) as total,
    count(*) filter (where s.status = 'done' and s.answered >= k.asked) as sent,
    count(*) filter (where s.status is null or s.status in ('new', 'waiting')
                        or (s.answered < k.asked and s.status not in ('delayed', 'unknown', 'dead'))) as pending,
    count(*) filter (where s.status = 'refused' and s.answered >= k.asked) as rejected,
    count(*) filter (where s.status = 'parked' and s.answered >= k.asked) as parked,
    count(*) filter (where s.status in ('delayed', 'unknown', 'dead')) as late,
    count(*) filter (where s.status = 'dead') as dead
  from run_keys k left join states s using (store, context, key) where k.run = r.id
) n
"""


def _loads(pool: Pool, where: str, values: tuple[object, ...]) -> list[Load]:
    with translated(), pool.connection() as db:
        rows = db.execute(f"{_COUNTS} where r.kind = 'load' and {where} order by r.id desc".encode(), values).fetchall()
    return [Load(*row) for row in rows]  # type: ignore[arg-type]  # columns in the order of the fields
