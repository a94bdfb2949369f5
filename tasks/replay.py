"""Put the dead back to work: planned first, paced, resumable, never twice at once; replay reads today's truth.

A replay is a row of `runs` with its keys in `run_keys`. The Celery management task `hub.replay` works off one paced
batch and goes away; the sweep sends the next one. So one rate holds for all workers, a killed worker loses nothing,
and starting a second replay beside a running one is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from celery import Celery
from psycopg import Connection, errors, sql
from psycopg_pool import ConnectionPool

from hub.db import retrying, translated
from hub.errors import Conflict
from hub.ledger import GivenUp, Ledger, Pair, lay_to_rest, revive
from hub.model import Ask, Urgency
from hub.settings import Settings
from tasks.app import REPLAY
from tasks.wake import Waker

Pool = ConnectionPool[Connection[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Letters:
    """Which dead letters are meant. `since` and `until` are ISO times (UTC) of death; empty fields mean all."""

    store: int | None = None
    context: str | None = None
    code: str | None = None
    key: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter: a row whose plan is used up. `since` is ISO, UTC."""

    store: int
    context: str
    key: str
    code: str
    why: str
    attempts: int
    since: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a replay would do: how many letters, by context and code, some of them, and how long at the rate.

    If they were given up, `anew` would start anew, being asked for or due since their last try, and `trying` would stay
    as they are, being tried right now.
    """

    matched: int
    anew: int
    trying: int
    by_context: dict[str, int]
    by_code: dict[str, int]
    sample: tuple[DeadLetter, ...]
    seconds: float


def letters(
    pool: Pool, wanted: Letters, *, limit: int = 100, after: tuple[int, str, str] | None = None
) -> list[DeadLetter]:
    """Dead letters in key order, `limit` at a time, from behind `after` (store, context, key)."""
    where, values = _where(wanted)
    if after is not None:
        where = sql.SQL("{} and (s.store, s.context, s.key) > (%s, %s, %s)").format(where)
        values = (*values, *after)
    query = sql.SQL(
        """
        select s.store, s.context, s.key, coalesce(s.code, ''), coalesce(a.why, ''), s.attempts,
               to_char(s.answered_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        from states s left join answers a using (store, context, key)
        where s.status = 'dead' and {} order by s.store, s.context, s.key limit %s
        """
    ).format(where)
    with translated(), pool.connection() as db:
        return [DeadLetter(*row) for row in db.execute(query, (*values, limit)).fetchall()]


def forecast(pool: Pool, wanted: Letters, *, rate: float) -> Forecast:
    """Count and sample what a replay at `rate` keys per second would take."""
    where, values = _where(wanted)
    query = sql.SQL(
        "select s.context, coalesce(s.code, ''), count(*),"
        " count(*) filter (where s.asked > s.answered and s.work <> 'h'), count(*) filter (where s.work = 'h')"
        " from states s where s.status = 'dead' and {} group by 1, 2"
    ).format(where)
    with translated(), pool.connection() as db:
        counts = db.execute(query, values).fetchall()
    by_context: dict[str, int] = {}
    by_code: dict[str, int] = {}
    for context, code, count, *_ in counts:
        by_context[context] = by_context.get(context, 0) + int(count)
        by_code[code] = by_code.get(code, 0) + int(count)
    matched, anew, trying = (sum(row[column] for row in counts) for column in (2, 3, 4))
    return Forecast(matched, anew, trying, by_context, by_code, tuple(letters(pool, wanted, limit=5)), matched / rate)


def start(pool: Pool, wanted: Letters, *, rate: float, who: str, why: str) -> int:
    """Write the replay down; the sweep sets it to work. `Conflict` while another one runs."""
    where, values = _where(wanted)
    try:
        with pool.connection() as db, db.transaction():
            row = db.execute(
                "insert into runs (kind, who, why, filter, cursor) values ('replay', %s, %s, %s, %s) returning id",
                (who, why, json.dumps(asdict(wanted)), json.dumps({"rate": rate})),
            ).fetchone()
            assert row is not None  # noqa: S101 – INSERT … RETURNING always returns
            run = int(row[0])
            db.execute(
                sql.SQL(
                    """
                    insert into run_keys (run, store, context, key)
                    select %s, s.store, s.context, s.key from states s where s.status = 'dead' and {}
                    """
                ).format(where),
                (run, *values),
            )
            db.execute(
                "insert into audit (who, action, detail) values (%s, 'replay', %s)",
                (who, json.dumps({"run": run, "why": why, "filter": asdict(wanted)})),
            )
    except errors.UniqueViolation:
        raise Conflict(
            "a replay is running already: wait for it, or cancel it with `hub dead-letters cancel`"
        ) from None
    except errors.Error:
        with translated():
            raise
    return run


def cancel(pool: Pool, who: str) -> bool:
    """Stop the running replay where it is; `False` when none runs."""
    with translated(), pool.connection() as db:
        return (
            db.execute(
                "update runs set state = 'cancelled', finished_at = now(), totals = totals || %s"
                " where kind = 'replay' and state = 'running'",
                (json.dumps({"cancelled_by": who}),),
            ).rowcount
            > 0
        )


def discard(pool: Pool, wanted: Letters, *, who: str, why: str) -> GivenUp:
    """Give letters up: they rest until the next notification; those that had it since their last try start anew."""
    where, values = _where(wanted)
    query = sql.SQL("select s.store, s.context, s.key from states s where s.status = 'dead' and {}").format(where)

    def once() -> GivenUp:
        with pool.connection() as db, db.transaction():
            gone = lay_to_rest(db, db.execute(query, values).fetchall())
            detail = {"why": why, "filter": asdict(wanted), "count": gone.resting + gone.anew, "anew": gone.anew}
            db.execute(
                "insert into audit (who, action, detail) values (%s, 'discard dead letters', %s)",
                (who, json.dumps(detail)),
            )
        return gone

    with translated():
        return retrying(once)


def work_off(pool: Pool, ledger: Ledger, waker: Waker | None, names: Mapping[int, str]) -> str:
    """One paced batch of the running replay; the answer is what Flower shows.

    Keys that came back to life meanwhile are skipped: a newer success has overtaken them.
    """

    def once() -> tuple[frozenset[Pair], str]:
        with pool.connection() as db, db.transaction():
            return _batch(db, ledger)

    with translated():
        revived, said = retrying(once)
    if waker is not None:
        waker.wake({(names[store], context) for store, context in revived if store in names})
    return said


def _batch(db: Connection[Any], ledger: Ledger) -> tuple[frozenset[Pair], str]:
    """Whom to wake, and what was done, in the caller's transaction."""
    row = db.execute(
        """
        select id, (cursor ->> 'rate')::float8, coalesce((cursor ->> 'sent')::int, 0),
               coalesce((cursor ->> 'skipped')::int, 0), extract(epoch from now() - started_at)::float8
        from runs where kind = 'replay' and state = 'running' for update skip locked
        """
    ).fetchone()
    if row is None:
        return frozenset(), "no replay is running"
    run, rate, sent, skipped, age = int(row[0]), float(row[1]), int(row[2]), int(row[3]), float(row[4])
    due = max(0, int(rate * (age + 1.0)) - sent - skipped)
    picked = db.execute(
        """
        select k.store, k.context, k.key, s.status = 'dead' from run_keys k
        left join states s using (store, context, key)
        where k.run = %s and k.asked = 0 order by k.store, k.context, k.key limit %s for update of k skip locked
        """,
        (run, min(due, 1000)),
    ).fetchall()
    alive = [place for place in picked if not place[3]]
    dead = [place for place in picked if place[3]]
    asks = [Ask(place[0], place[1], place[2], "replay", Urgency.FOLLOW) for place in dead]
    revived = revive(db, asks, ledger.slot)
    db.execute(
        """
        update run_keys k set asked = case when d.dead then 1 else -1 end
        from unnest(%s::int[], %s::text[], %s::text[], %s::bool[]) as d(store, context, key, dead)
        where k.run = %s and k.store = d.store and k.context = d.context and k.key = d.key
        """,
        (*([place[column] for place in picked] for column in range(4)), run),
    )
    left = db.execute("select exists (select from run_keys where run = %s and asked = 0)", (run,)).fetchone()
    over = left is not None and not left[0]
    db.execute(
        """
        update runs set cursor = cursor || %s, state = case when %s then 'done' else state end,
          finished_at = case when %s then now() end where id = %s
        """,
        (json.dumps({"sent": sent + len(dead), "skipped": skipped + len(alive)}), over, over, run),
    )
    return revived, f"replay {run}: {sent + len(dead)} sent, {skipped + len(alive)} overtaken{', done' if over else ''}"


def nudge(settings: Settings, pool: Pool, waker: Waker) -> None:
    """Called by the sweep: while a replay runs, send the management task."""
    with translated(), pool.connection() as db:
        running = db.execute("select exists (select from runs where kind = 'replay' and state = 'running')").fetchone()
    if running and running[0]:
        waker.send(REPLAY, f"control.{int(time.time()) % settings.pools['control'].shards}")


def register(app: Celery, pool: Pool, ledger: Ledger, waker: Waker, names: Callable[[], Mapping[int, str]]) -> None:
    """Make the management task known to a worker. `names()` gives store id → slug."""

    @app.task(name=REPLAY, ignore_result=True)
    def replay(*_more: Any, **_newer: Any) -> str:  # as later versions may send
        return work_off(pool, ledger, waker, names())


def _where(wanted: Letters) -> tuple[sql.Composable, tuple[Any, ...]]:
    parts: list[sql.Composable] = []
    values: list[Any] = []
    for column, value in (
        ("store", wanted.store),
        ("context", wanted.context),
        ("code", wanted.code),
        ("key", wanted.key),
    ):
        if value is not None:
            parts.append(sql.SQL("s.{} = %s").format(sql.Identifier(column)))
            values.append(value)
    if wanted.since is not None:
        parts.append(sql.SQL("s.answered_at >= %s::timestamptz"))
        values.append(wanted.since)
    if wanted.until is not None:
        parts.append(sql.SQL("s.answered_at < %s::timestamptz"))
        values.append(wanted.until)
    return (sql.SQL(" and ").join(parts) if parts else sql.SQL("true")), tuple(values)
