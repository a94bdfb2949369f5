"""What an operator asks of the hub's own memory: pure reads, through indexes, a page at a time.

Ages and times to wait are seconds of PostgreSQL's clock; points in time are ISO texts, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import translated
from hub.errors import Problem
from hub.model import JsonTree

Pool = ConnectionPool[Connection[tuple[Any, ...]]]


# ---------------------------------------------------------------- queues


FEW = 2_000
"""Scheduled, failing or dead rows that are counted for whoever looks; beyond, the sweep's last count is told."""

COUNT_SECONDS = 60.0
"""How often the sweep counts what is more than that."""

_OLDEST_COUNT = 600.0  # seconds; no sweep has counted for so long: better slow than wrong


@dataclass(frozen=True, slots=True)
class Backlog:
    """What lies at one store and context.

    `pending` may start now, `held` is under way, `late` is scheduled and its time has come, `later` is scheduled for
    later (of it, `waiting` for an answer of the marketplace). `oldest`: age of the oldest pending demand. `counted`:
    age of the figures from `later` on; `None` when they were counted just now, as `pending` to `late` always are.
    """

    store: str
    context: str
    pending: int
    oldest: float | None
    held: int
    late: int
    later: int
    waiting: int
    parked: int
    refused: int
    failing: int
    dead: int
    counted: float | None = None


_MANY = """
select (select count(*) from (select from states where work = 's' limit %(few)s) s)
     + (select count(*) from (select from states where status in ('refused', 'parked', 'delayed', 'unknown')
                              limit %(few)s) f)
     + (select count(*) from (select from states where status = 'dead' limit %(few)s) d) >= %(few)s
"""

_COUNTED = """
select store, context, sum(later)::int8 as later, sum(waiting)::int8 as waiting, sum(parked)::int8 as parked,
       sum(refused)::int8 as refused, sum(failing)::int8 as failing, sum(dead)::int8 as dead
from (
  select store, context, count(*) filter (where due_at > now()) as later,
         count(*) filter (where status = 'waiting') as waiting, 0 as parked, 0 as refused, 0 as failing, 0 as dead
  from states where work = 's' group by 1, 2
  union all
  select store, context, 0, 0, count(*) filter (where status = 'parked'), count(*) filter (where status = 'refused'),
         count(*) filter (where status in ('delayed', 'unknown')), 0
  from states where status in ('refused', 'parked', 'delayed', 'unknown') group by 1, 2
  union all
  select store, context, 0, 0, 0, 0, 0, count(*) from states where status = 'dead' group by 1, 2
) lying group by 1, 2
"""

_KEPT = "select store, context, later, waiting, parked, refused, failing, dead from backlogs"

# Each part has one row at most for a store and context: the largest is the sum, and cheaper.
_BACKLOG = """
with found as (
  select store, context, count(*) as pending, extract(epoch from now() - min(pending_since))::float8 as oldest,
         0 as held, 0 as late, 0 as later, 0 as waiting, 0 as parked, 0 as refused, 0 as failing, 0 as dead
  from states where work = 'p' group by 1, 2
  union all
  select c.store, h.context, 0, null, count(*), 0, 0, 0, 0, 0, 0, 0
  from claims c, unnest(c.contexts) h(context) group by 1, 2
  union all
  select c.store, c.context, 0, null, count(*), 0, 0, 0, 0, 0, 0, 0
  from claims c join leases l on l.claim = c.id where c.contexts is null group by 1, 2
  union all
  select store, context, 0, null, 0, count(*), 0, 0, 0, 0, 0, 0
  from states where work = 's' and due_at <= now() group by 1, 2
  union all
  select store, context, 0, null, 0, 0, later, waiting, parked, refused, failing, dead from ({lying}) lying
)
select t.slug, f.context, max(pending), max(oldest), max(held), max(late), max(later), max(waiting), max(parked),
       max(refused), max(failing), max(dead), %(counted)s::float8
from found f join stores t on t.id = f.store
where t.status <> 'removed' and (%(store)s::int is null or f.store = %(store)s)
group by 1, 2 order by 1, 2
"""


def backlog(pool: Pool, *, store: int | None = None) -> list[Backlog]:
    """Everything that is not at rest and well, by store and context; removed stores are left out.

    Reads little however many rows there are: what the sweep has counted is not counted again (`FEW`).
    """
    with translated(), pool.connection() as db:
        counted = _last_count(db) if _many(db) else None
        statement = _BACKLOG.format(lying=_COUNTED if counted is None else _KEPT)
        rows = db.execute(statement.encode(), {"store": store, "counted": counted}).fetchall()
    return [Backlog(*row) for row in rows]


def count_backlogs(pool: Pool) -> bool:
    """Count for `backlog`, when much lies there and nobody has counted lately; says whether it did. For the sweep."""
    with translated(), pool.connection() as db, db.transaction():
        alone = db.execute("select pg_try_advisory_xact_lock(hashtextextended('hub backlogs', 4))").fetchone()
        if not (alone and alone[0] and _many(db)):
            return False
        age = _last_count(db)
        if age is not None and age < COUNT_SECONDS / 2:
            return False
        db.execute("delete from backlogs")
        db.execute(
            f"insert into backlogs (store, context, later, waiting, parked, refused, failing, dead) {_COUNTED}".encode()
        )
        return True


def _many(db: Connection[tuple[Any, ...]]) -> bool:
    row = db.execute(_MANY, {"few": FEW}).fetchone()
    return bool(row and row[0])


def _last_count(db: Connection[tuple[Any, ...]]) -> float | None:
    """Age of the last count that may still be told."""
    row = db.execute("select extract(epoch from now() - max(counted_at))::float8 from backlogs").fetchone()
    return float(row[0]) if row and row[0] is not None and row[0] <= _OLDEST_COUNT else None


def _parsed(row: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    """The row with its column of problems read."""
    return (*row[:place], tuple(Problem.from_json(one) for one in row[place]), *row[place + 1 :])


# ---------------------------------------------------------------- one key


@dataclass(frozen=True, slots=True)
class KeyState:
    """One row of `states` with what is remembered beside it. Ages in seconds, `None` where there is nothing.

    `due`: seconds until it is looked at again by itself. `begun`: age of a write whose outcome is not known yet.
    """

    context: str
    work: str
    status: str
    code: str | None
    attempts: int
    demands: int
    pending: float | None
    due: float | None
    answered: float | None
    problems: tuple[Problem, ...]
    why: str | None
    parked_on: str | None
    ticket: str | None
    begun: float | None
    confirmed: JsonTree
    confirmed_age: float | None


def key_states(pool: Pool, store: int, key: str, contexts: Sequence[str]) -> list[KeyState]:
    """The rows of one key in these contexts."""
    with translated(), pool.connection() as db:
        rows = db.execute(
            """
            select s.context, s.work::text, s.status, s.code, s.attempts, s.asked - s.answered,
                   extract(epoch from now() - s.pending_since)::float8, extract(epoch from s.due_at - now())::float8,
                   extract(epoch from now() - s.answered_at)::float8, coalesce(a.problems, '[]'), a.why, a.parked_on,
                   a.ticket, case when a.intent is not null then extract(epoch from now() - a.intent_at)::float8 end,
                   a.confirmed, extract(epoch from now() - a.confirmed_at)::float8
            from states s left join answers a using (store, context, key)
            where s.store = %s and s.key = %s and s.context = any(%s)
            order by array_position(%s, s.context)
            """,
            (store, key, list(contexts), list(contexts)),
        ).fetchall()
    return [KeyState(*_parsed(row, 9)) for row in rows]


@dataclass(frozen=True, slots=True)
class Told:
    """One entry of the log: what was said of a key."""

    at: str
    context: str
    operation: str
    code: str
    status: str
    attempt: int
    problems: tuple[Problem, ...]
    params: dict[str, str]


def story(pool: Pool, store: int, key: str, *, limit: int = 20) -> list[Told]:
    """What happened to a key, newest first."""
    with translated(), pool.connection() as db:
        rows = db.execute(
            """
            select to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), context, operation, code, status, attempt, problems,
                   params
            from interactions where store = %s and key = %s order by at desc limit %s
            """,
            (store, key, limit),
        ).fetchall()
    return [Told(*_parsed(row, 6)) for row in rows]


def facts_of_listing(pool: Pool, store: int, sku: str) -> tuple[float | None, float | None]:
    """Ages of a SKU's pair: since it was first listed, and since its state changed; `None` without one."""
    with translated(), pool.connection() as db:
        row = db.execute(
            "select extract(epoch from now() - bound_at)::float8, extract(epoch from now() - changed_at)::float8"
            " from bindings where store = %s and sku = %s",
            (store, sku),
        ).fetchone()
    return (row[0], row[1]) if row else (None, None)


def mapping_age(pool: Pool, store: int, category: str) -> float | None:
    """Age of a category's mapping."""
    with translated(), pool.connection() as db:
        row = db.execute(
            "select extract(epoch from now() - changed_at)::float8 from mappings where store = %s and category = %s",
            (store, category),
        ).fetchone()
    return float(row[0]) if row else None


# ---------------------------------------------------------------- orders


@dataclass(frozen=True, slots=True)
class OrderLine:
    """One order without anything personal. `total` in cents."""

    store: str
    order: str
    state: str
    vtex_order: str | None
    total: int | None
    approved: bool
    problems: tuple[Problem, ...]
    seen_at: str
    changed_at: str


_ORDERS = """
select t.slug, o.order_id, o.state, o.vtex_order_id, o.total, o.approved, o.problems,
       to_char(o.seen_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), to_char(o.changed_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
from orders o join stores t on t.id = o.store
"""
_BEHIND = "o.order_id > %(after)s order by o.order_id limit %(limit)s"
_ORDERS_OF_STORE = f"{_ORDERS} where o.store = %(store)s and {_BEHIND}"
_ORDERS_OF_STATE = f"{_ORDERS} where o.store = %(store)s and o.state = %(state)s and {_BEHIND}"


def orders(pool: Pool, store: int, *, state: str | None = None, after: str = "", limit: int = 100) -> list[OrderLine]:
    """Orders of a store by order id, `limit` at a time, from behind `after`."""
    chosen = _ORDERS_OF_STATE if state is not None else _ORDERS_OF_STORE
    with translated(), pool.connection() as db:
        rows = db.execute(chosen, {"store": store, "after": after, "state": state, "limit": limit}).fetchall()
    return [_order(row) for row in rows]


def order(pool: Pool, store: int, order_id: str) -> OrderLine | None:
    """One order, by the marketplace's id or by VTEX's."""
    with translated(), pool.connection() as db:
        row = db.execute(
            _ORDERS + "where o.store = %(store)s and o.order_id = %(id)s", {"store": store, "id": order_id}
        ).fetchone()
        row = (
            row
            or db.execute(
                _ORDERS + "where o.store = %(store)s and o.vtex_order_id = %(id)s limit 1",
                {"store": store, "id": order_id},
            ).fetchone()
        )
    return _order(row) if row else None


def _order(row: tuple[Any, ...]) -> OrderLine:
    return OrderLine(*_parsed(row, 6))


# ---------------------------------------------------------------- replays


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay of dead letters and what became of them. `overtaken`: alive again before their turn, left alone."""

    run: int
    state: str
    total: int
    sent: int
    overtaken: int
    ok: int
    refused: int
    failed: int
    pending: int


def replay(pool: Pool, run: int | None = None) -> Replay | None:
    """A replay, the latest one when none is named; `None` when there is none."""
    with translated(), pool.connection() as db:
        row = db.execute(
            """
            select r.id, r.state, count(k.key),
                   count(*) filter (where k.asked > 0),
                   count(*) filter (where k.asked < 0),
                   count(*) filter (where k.asked > 0 and s.work not in ('p', 'h')
                                      and s.status in ('done', 'waiting', 'new')),
                   count(*) filter (where k.asked > 0 and s.work not in ('p', 'h')
                                      and s.status in ('refused', 'parked')),
                   count(*) filter (where k.asked > 0 and s.work not in ('p', 'h')
                                      and s.status in ('delayed', 'unknown', 'dead')),
                   count(*) filter (where k.asked = 0 or (k.asked > 0 and s.work in ('p', 'h')))
            from runs r left join run_keys k on k.run = r.id
            left join states s on s.store = k.store and s.context = k.context and s.key = k.key
            where r.id = coalesce(%s, (select max(id) from runs where kind = 'replay')) and r.kind = 'replay'
            group by r.id, r.state
            """,
            (run,),
        ).fetchone()
    return Replay(*row) if row else None


# ---------------------------------------------------------------- the hub itself


@dataclass(frozen=True, slots=True)
class Alive:
    """A process that beats. `name` is what it does and where; `left` in seconds until it counts as gone."""

    name: str
    since: str
    left: float


def processes(pool: Pool) -> list[Alive]:
    """Workers and sweeps that are alive now."""
    with translated(), pool.connection() as db:
        return [
            Alive(*row)
            for row in db.execute(
                """
                select name, to_char(started_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                       extract(epoch from until - now())::float8
                from workers where until > now() order by name
                """
            ).fetchall()
        ]
