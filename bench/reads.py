"""Reads beside a full cell: 10,000,000 states and as many interactions, each question asked with ever new parameters.

The product's own functions are measured, not copies of their SQL. Warm: everything asked before; cold: a server just
started, its files dropped from the system's cache. `BENCH_STATES` (10000000) is the number of states, and about that of
interactions; `BENCH_EXPLAIN=1` prints the plan of every statement asked.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
from cryptography.fernet import Fernet
from psycopg import sql

from bench.measure import Line, Spread, percentile
from hub import reports
from hub.conservation import Balance
from hub.db import conninfo, migrate, open_pool
from hub.explain import Pool, explain
from hub.interactions import Question, read_day
from hub.ledger import Ledger
from hub.messages import Status
from hub.ports import Link, Marketplace
from hub.rules import Rules
from hub.runtime.embedded import Postgres, scratch
from hub.states import StoreStates
from hub.stores import SecretBox
from tasks.replay import Letters, letters
from tests.fakes import CHANNEL, FakeMarketplace, FakeVtex, a_product, an_offer
from tests.knobs import Knobs

knobs = Knobs(os.environ)
STATES = knobs.whole("BENCH_STATES", 10_000_000, least=1_000)
EXPLAIN = knobs.on("BENCH_EXPLAIN")
knobs.settle()
SCHEMA = "hub"
DAYS = 10
BURST_SHARE = 0.4
"""Part of all interactions that fell on one day: the loads of a few big stores."""
ASKED = 400
ROUNDS = 5
COLD = 40
BAR_MS = 20.0

CONTEXTS = ("catalog", "price", "stock")

# What a SKU's context ends in, in thousandths: (status, work, code, thousandths). The rest is done and at rest.
MIX = (
    ("refused", "i", "A1", 12),
    ("parked", "s", "E5", 10),
    ("delayed", "s", "E2", 5),
    ("waiting", "s", "P0", 3),
    ("done", "s", "S1", 5),
    ("dead", "s", "D0", 3),
    ("unknown", "s", "E2", 1),
    ("done", "p", "S1", 2),
)


@dataclass(frozen=True)
class Shape:
    """How the rows lie: SKUs of each store, by store id."""

    skus: tuple[int, ...]
    interactions: int

    @staticmethod
    def of(rows: int) -> Shape:
        """A few stores with a tenth of everything, many with little: weights fall like 1 ÷ rank."""
        skus = max(30, rows // len(CONTEXTS))
        stores = max(10, min(500, skus // 100))
        weights = [1 / (rank + 3) for rank in range(stores)]
        whole = sum(weights)
        return Shape(tuple(max(3, int(skus * weight / whole)) for weight in weights), rows)

    @property
    def states(self) -> int:
        """Rows of the states table."""
        return sum(self.skus) * len(CONTEXTS)


def lines() -> list[Line]:
    """Build the cell, ask, and judge: p95 of each question, warm; cold stands beside."""
    shape = Shape.of(STATES)
    with scratch("hub-bench-") as files:
        server = Postgres(files / "postgres", durable=False)  # nothing is written while it is measured
        with server:
            began = time.monotonic()
            migrate(server.url)
            _fill(server.url, shape)
            size = _size(server.url)
            print(
                f"{shape.states:,} states and {shape.interactions:,} interactions of {len(shape.skus)} stores built in"
                f" {time.monotonic() - began:.0f} s, {size}",
                flush=True,
            )
        cold = _cold(server, shape)
        with server, _asking(server.url, shape) as asking:
            if EXPLAIN:
                _explain(server.url, asking)
            found = [_line(asking, name, cold[name], size) for name in asking.questions]
            return [*found, _recounted(asking)]


# ---------------------------------------------------------------- asking


@dataclass
class Asking:
    """The questions, each a call with parameters of its own choice."""

    pool: Pool
    ledger: Ledger
    shape: Shape
    chance: random.Random

    def __post_init__(self) -> None:
        """Know where the pages are."""
        self.pages = self._deep_pages()
        self.vtex = FakeVtex()
        self.marketplace = cast(Marketplace, FakeMarketplace())  # its listings are its books; nobody asks for pages
        self.box = SecretBox.from_env({"HUB_KEY": Fernet.generate_key().decode()})

    @property
    def questions(self) -> dict[str, Callable[[], object]]:
        """By name."""
        return {
            "one SKU's story": self.story,
            "failures of a day, first page": lambda: self.failures({"error"}),
            "everything that failed, first page": lambda: self.failures({"error", "warning"}),
            "failures of a day, deep page": self.deep_failures,
            "all of a SKU in a day's log": self.day_of_sku,
            "dead letters, a page": self.dead,
            "hub queues": lambda: reports.backlog(self.pool),
            "hub queues of a store": lambda: reports.backlog(self.pool, store=self.store()),
            "ledger check from counters": lambda: self.ledger.check(recount=False),
        }

    def store(self) -> int:
        """A store, chosen by its size: who has more is asked about more."""
        return self.chance.choices(range(1, len(self.shape.skus) + 1), self.shape.skus)[0]

    def sku(self, store: int) -> str:
        """One of its SKUs."""
        return str(self.chance.randint(1, self.shape.skus[store - 1]))

    def story(self) -> None:
        """What `hub sku explain` and the console read; both peers answer at once."""
        store = self.store()
        sku = self.sku(store)
        self.vtex.products = {sku: a_product(sku, category=str(self.chance.randint(1, 50)))}
        self.vtex.offers = {sku: an_offer(sku)}
        states = StoreStates(self.pool, store, self.box)
        link = Link(store, f"store-{store}", "acme", "FKM", CHANNEL, Rules(), self.vtex, self.marketplace, states)
        explained = explain(link, self.pool, sku, gates=[g for g in self.ledger.gates() if g.store == store])
        if len(explained.rows) != len(CONTEXTS):
            raise AssertionError(f"store {store} has no rows of SKU {sku}")
        reports.story(self.pool, store, sku)

    def failures(self, statuses: set[Status]) -> None:
        """The newest failures of a store on the day of the loads."""
        read_day(self.pool, self.store(), Question(_burst_day(), statuses=frozenset(statuses)))

    def deep_failures(self) -> None:
        """A page from the middle of all failures of that day."""
        store, after = self.chance.choice(self.pages)
        read_day(self.pool, store, Question(_burst_day(), statuses=frozenset({"error"}), after=after))

    def day_of_sku(self) -> None:
        """One SKU in the log of the day."""
        store = self.store()
        read_day(self.pool, store, Question(_burst_day(), sku=self.sku(store)))

    def dead(self) -> None:
        """A page of dead letters from somewhere in the middle."""
        store = self.store()
        letters(self.pool, Letters(store=store), after=(store, "price", self.sku(store)))

    def _deep_pages(self) -> list[tuple[int, Any]]:
        found = []
        for store in range(1, min(20, len(self.shape.skus)) + 1):
            question = Question(_burst_day(), statuses=frozenset({"error"}))
            page = read_day(self.pool, store, question)
            for _ in range(40):
                if page.following is None:
                    break
                found.append((store, page.following))
                page = read_day(
                    self.pool,
                    store,
                    Question(_burst_day(), statuses=frozenset({"error"}), size=1000, after=page.following),
                )
        return found or [(1, None)]


@contextmanager
def _asking(url: str, shape: Shape) -> Iterator[Asking]:
    pool = open_pool(url, SCHEMA, name="bench")
    try:
        pool.wait(30)
        reports.count_backlogs(pool)  # as the sweep does once a minute
        yield Asking(pool, Ledger(pool), shape, random.Random(11))
    finally:
        pool.close()


def _ms(question: Callable[[], object]) -> float:
    began = time.perf_counter()
    question()
    return 1000 * (time.perf_counter() - began)


def _cold(server: Postgres, shape: Shape) -> dict[str, list[float]]:
    """Each question on a server just started whose files nobody has read."""
    seen: dict[str, list[float]] = {}
    with server, _asking(server.url, shape) as asking:
        names = list(asking.questions)
    for name in names:
        _forget(server.home)
        with server, open_pool(server.url, SCHEMA, name="bench") as pool:
            pool.wait(30)
            asking.pool, asking.ledger = pool, Ledger(pool)
            seen[name] = [_ms(asking.questions[name]) for _ in range(COLD)]
    return seen


def _forget(directory: Path) -> None:
    """Drop the server's files from the system's cache."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _line(asking: Asking, name: str, cold: list[float], size: str) -> Line:
    question = asking.questions[name]
    for _ in range(ASKED // 4):
        question()
    rounds = [[_ms(question) for _ in range(ASKED // ROUNDS)] for _ in range(ROUNDS)]
    all_of_them = [took for taken in rounds for took in taken]
    found = Spread(tuple(percentile(taken, 0.95) for taken in rounds))
    return Line(
        f"reads: {name}",
        "ms p95",
        found,
        f"p95 ≤ {BAR_MS:g} ms",
        percentile(all_of_them, 0.95) <= BAR_MS,
        lower=True,
        beside={
            "p50": percentile(all_of_them, 0.5),
            "p99": percentile(all_of_them, 0.99),
            "cold p50": percentile(cold, 0.5),
            "cold p95": percentile(cold, 0.95),
            "cold first": cold[0],
            "rows": f"{asking.shape.states:,} + {asking.shape.interactions:,}, {size}",
        },
    )


def _recounted(asking: Asking) -> Line:
    laws: list[Balance] = []

    def count() -> None:
        laws[:] = asking.ledger.check(recount=True)

    took = [_ms(count) / 1000 for _ in range(3)]
    broken = [f"{law.name}: {law.left} against {law.right}" for law in laws if not law.holds]
    return Line(
        "reads: full recount",
        "s",
        Spread(tuple(took)),
        "agrees with the counters",
        not broken,
        lower=True,
        beside={"broken": "; ".join(broken) or "none"},
    )


def _explain(url: str, asking: Asking) -> None:
    """The plan of each statement, by the server itself: nothing is copied from the product."""
    plans: list[str] = []

    def noticed(said: psycopg.errors.Diagnostic) -> None:
        plans.append(said.message_primary or "")

    def configured(db: psycopg.Connection[Any]) -> None:
        db.execute("load 'auto_explain'")
        for name, value in {
            "auto_explain.log_min_duration": "0",
            "auto_explain.log_analyze": "on",
            "auto_explain.log_buffers": "on",
            "auto_explain.log_level": "notice",
            "client_min_messages": "notice",
        }.items():
            db.execute("select set_config(%s, %s, false)", (name, value))
        db.add_notice_handler(noticed)

    logging.getLogger("psycopg").setLevel(logging.ERROR)
    with psycopg.connect(conninfo(url, SCHEMA, name="bench"), autocommit=True) as db:
        configured(db)
        kept = asking.pool, asking.ledger
        asking.pool = _OnePool(db)  # type: ignore[assignment]  # lends the one connection that explains
        asking.ledger = Ledger(asking.pool)
        for name, question in asking.questions.items():
            question()
            plans.clear()
            question()
            print(f"\n### {name}\n")
            for plan in plans:
                print(re.sub(r"^Query Text:", "--", plan), end="\n\n")
        asking.pool, asking.ledger = kept


class _OnePool:
    """Lends one connection to whoever asks."""

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._db = db

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """The one."""
        yield self._db


# ---------------------------------------------------------------- building


def _burst_day() -> date:
    return datetime.now(UTC).date() - timedelta(days=1)


def _fill(url: str, shape: Shape) -> None:
    """Rows as the hub leaves them, without their indexes; these are built afterwards, as the schema says them."""
    with psycopg.connect(conninfo(url, SCHEMA, name="bench", statement_seconds=0), autocommit=True) as db:
        db.execute("set work_mem = '256MB'")
        db.execute("set maintenance_work_mem = '1GB'")
        db.execute("set max_parallel_maintenance_workers = 2")
        today = datetime.now(UTC).date()
        for back in range(DAYS):
            day = today - timedelta(days=back)
            db.execute(
                sql.SQL("create table {} partition of interactions for values from ({}) to ({})").format(
                    sql.Identifier(f"interactions_{day:%Y%m%d}"),
                    sql.Literal(day.isoformat()),
                    sql.Literal((day + timedelta(days=1)).isoformat()),
                )
            )
        again = _without_indexes(db, ("states", "answers", "interactions", "bindings"))
        _stores(db, shape)
        _states(db)
        _interactions(db, shape)
        for statement in again:
            db.execute(statement)
        db.execute("vacuum (analyze)")


def _without_indexes(db: psycopg.Connection[Any], tables: Sequence[str]) -> list[sql.SQL]:
    """Drop every index of these tables; the statements that make them again, word for word those of the schema."""
    again: list[sql.SQL] = []
    for table in tables:
        constraints = db.execute(
            "select conname, pg_get_constraintdef(oid) from pg_constraint where conrelid = %s::regclass"
            " and contype in ('p', 'u')",
            (table,),
        ).fetchall()
        indexes = db.execute(
            """
            select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) from pg_index i
            where i.indrelid = %s::regclass
              and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
            """,
            (table,),
        ).fetchall()
        for name, definition in constraints:
            db.execute(sql.SQL("alter table {} drop constraint {}").format(sql.Identifier(table), sql.Identifier(name)))
            again.append(sql.SQL(f"alter table {table} add constraint {name} {definition}"))
        for name, definition in indexes:
            db.execute(sql.SQL(f"drop index {name}"))
            again.append(sql.SQL(definition.replace(" ON ONLY ", " ON ")))  # as of a table with partitions
    return again


def _stores(db: psycopg.Connection[Any], shape: Shape) -> None:
    numbers = list(range(1, len(shape.skus) + 1))
    db.execute(
        """
        insert into stores (slug, account, affiliate, sales_channel, marketplace, token_digest)
        select 'store-' || n, 'acme' || n, 'MKP', 1, 'sandbox', sha256(n::text::bytea) from unnest(%s::int[]) n
        order by n
        """,
        (numbers,),
    )
    db.execute("create table bench_sizes (store int primary key, skus int not null)")
    db.execute("insert into bench_sizes select * from unnest(%s::int[], %s::int[])", (numbers, list(shape.skus)))
    db.execute(
        "insert into mappings (store, category, remote, version)"
        " select store, c::text, 'MC-' || c, 1 from bench_sizes, generate_series(1, 50) c"
    )


def _states(db: psycopg.Connection[Any]) -> None:
    edges = list(itertools.accumulate(thousandths for *_, thousandths in MIX))
    db.execute(
        """
        create table bench_mix as
        select t as roll, m.* from generate_series(0, 999) t left join lateral (
          select * from unnest(%s::int[], %s::text[], %s::"char"[], %s::text[]) as m(edge, status, work, code)
          where m.edge > t order by m.edge limit 1) m on true
        """,
        (edges, *([row[column] for row in MIX] for column in range(3))),
    )
    db.execute(
        """
        insert into states (store, context, key, work, asked, answered, claimed, attempts, status, code, pending_since,
                            due_at, answered_at)
        select z.store, c.context, z.k::text, coalesce(m.work, 'i'), 3 + coalesce(m.work = 'p', false)::int, 3,
               case when m.status = 'waiting' then 3 end, case when m.status in ('delayed', 'dead') then 4 else 0 end,
               coalesce(m.status, 'done'), coalesce(m.code, 'S1'),
               case when m.work = 'p' then now() - make_interval(secs => random() * 600) end,
               case when m.work = 's' then now() + make_interval(secs => 3600 + random() * 86400) end,
               now() - make_interval(secs => random() * 864000)
        from (select store, generate_series(1, skus) as k from bench_sizes) z,
             unnest(%s::text[]) c(context),
             lateral (select floor(random() * 1000)::int + 0 * z.k as roll) r
        join bench_mix m using (roll)
        """,
        (list(CONTEXTS),),
    )
    db.execute(
        """
        insert into answers (store, context, key, problems, why, ticket, parked_on, confirmed, confirmed_at)
        select store, context, key,
               case when status = 'refused'
                 then '[{"code": "A1", "field": "ean", "value": "", "fix": "write the EAN"}]'::jsonb else '[]' end,
               case when status in ('delayed', 'dead') then 'did not answer in time' end,
               case when status = 'waiting' then 'feed-' || key end,
               case when status = 'parked' then 'mapping:' || (length(key) * 7) end,
               case context
                 when 'price' then jsonb_build_object('sale', 9990, 'list', 12990)
                 when 'stock' then jsonb_build_object('quantity', 37)
                 else jsonb_build_object('listing', jsonb_build_object('title', 'Mug ' || key, 'description', 'A mug',
                      'category', 'MC-1', 'brand', 'Acme', 'ean', '7891000100103', 'group', '100',
                      'images', array['https://images.example/1.jpg'], 'attributes', '{}'::jsonb)) end,
               answered_at
        from states
        """
    )
    db.execute(
        "insert into bindings (store, sku, product, remote_id, link, state)"
        " select store, k::text, (k / 3)::text, 'MK-' || k, 'https://market.example/MK-' || k, 'published'"
        " from (select store, generate_series(1, skus) as k from bench_sizes) z"
    )
    # Two intakes, six workers and two sweeps have counted: each in its own slot.
    db.execute(
        """
        insert into counters (store, context, source, slot, requested, enqueued, finished)
        select s.store, s.context, 'notification', w.slot, n, n, 0
        from (select store, context, sum(asked)::int8 as asked from states group by 1, 2) s,
             lateral (values (1, s.asked / 2), (2, s.asked - s.asked / 2)) w(slot, n)
        union all
        select s.store, s.context, 'settle', w.slot, 0, 0,
               case w.slot when 3 then s.answered - 5 * (s.answered / 6) else s.answered / 6 end
        from (select store, context, sum(answered)::int8 as answered from states group by 1, 2) s,
             generate_series(3, 8) w(slot)
        union all
        select s.store, c.context, 'recheck', w.slot, 0, 0, 0 from bench_sizes s, unnest(%s::text[]) c(context),
               generate_series(9, 10) w(slot)
        """,
        (list(CONTEXTS),),
    )
    db.execute(
        """
        insert into counters (store, context, source, slot, received, accepted)
        select store, '-', 'notification', slot, skus, skus from bench_sizes, generate_series(1, 2) slot
        """
    )


def _interactions(db: psycopg.Connection[Any], shape: Shape) -> None:
    """In order of time, as they come. The burst is of the first stores; elsewhere every store has its part."""
    burst = int(shape.interactions * BURST_SHARE)
    per_day = (shape.interactions - burst) // DAYS
    today = datetime.now(UTC).date()
    for back in reversed(range(DAYS)):
        begin = datetime.combine(today - timedelta(days=back), datetime.min.time(), UTC)
        seconds = 86_400 if back else max(60.0, (datetime.now(UTC) - begin).total_seconds())
        _day(db, begin, seconds, per_day, shape)
        if back == 1:
            _day(db, begin, 86_400, burst, Shape(shape.skus[:10], burst))


def _day(db: psycopg.Connection[Any], begin: datetime, seconds: float, count: int, shape: Shape) -> None:
    # A table of 10,000 places, filled with stores by their size: one draw gives a store with its weight.
    whole = sum(shape.skus)
    places = [store for store, skus in enumerate(shape.skus, 1) for _ in range(max(1, round(10_000 * skus / whole)))]
    db.execute(
        """
        insert into interactions (at, store, context, key, operation, direction, code, status, source, translated,
                                  destination, problems, params)
        select %(begin)s + make_interval(secs => %(seconds)s::float8 * d.n / %(count)s), d.store, d.context,
               (1 + floor(random() * z.skus))::int::text, 'Price update', 'VTEX to marketplace',
               case when d.roll < 4 then 'A1' when d.roll < 5 then 'P0' else 'S1' end,
               case when d.roll < 4 then 'error' when d.roll < 5 then 'pending' else 'success' end,
               jsonb_build_object('sku', d.n, 'price', 9990, 'listPrice', 12990, 'availability', 'available',
                                  'sellingPrice', 9990, 'quantity', 1, 'seller', '1', 'measurementUnit', 'un'),
               jsonb_build_object('price', 9990, 'list_price', 12990, 'stock', 37),
               jsonb_build_object('id', 'MK-' || d.n, 'accepted', true),
               case when d.roll < 4
                 then '[{"code": "A1", "field": "ean", "value": "", "fix": "write the EAN"}]'::jsonb else '[]' end,
               jsonb_build_object('sku', d.n::text)
        from (select n, (%(places)s::int[])[1 + floor(random() * %(width)s)::int] as store,
                     (%(contexts)s::text[])[1 + n %% 3] as context, floor(random() * 100)::int as roll
              from generate_series(1, %(count)s) n offset 0) d
        join bench_sizes z using (store)
        """,
        {
            "begin": begin,
            "seconds": seconds,
            "count": count,
            "places": places,
            "width": len(places),
            "contexts": list(CONTEXTS),
        },
    )


def _size(url: str) -> str:
    with psycopg.connect(conninfo(url, SCHEMA, name="bench")) as db:
        row = db.execute("select pg_size_pretty(pg_database_size(current_database()))").fetchone()
    return str(row[0]) if row else "?"
