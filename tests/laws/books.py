"""A ledger on a real database, and the few moves that the tests of the laws repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import open_pool
from hub.ledger import Claim, Ledger, Settled
from hub.limits import Room
from hub.model import Ask, Row, Urgency
from hub.outcome import Ending, NextRow, Outcome, Plan, settle

STORE = 1
LANES = {"price": ("offer", ("stock",)), "stock": ("offer", ("price",)), "catalog": ("catalog", ())}
"""Context → its lane and its siblings, as for a marketplace that takes price and stock apart."""

PATIENT = Plan(delays=(100.0, 200.0), slow=(3600.0, 7200.0), unknown=(100.0, 200.0), jitter=0.0)


class Calm:
    """A process that is alive, and nothing that holds it back."""

    def remaining(self) -> float:
        return 100.0

    def shut_for(self, slug: str) -> float | None:  # noqa: ARG002 – a door's shape
        return None

    def keep_room(self, slug: str, context: str, want: int) -> Room:  # noqa: ARG002 – a door's shape
        return Room(want, 0.0)

    def give_back(self, slug: str, room: Room) -> None:
        """Nothing was kept."""


class Books:
    """One database with one ledger per process that a test plays."""

    def __init__(self, url: str, plan: Plan = PATIENT) -> None:
        self.pool: ConnectionPool[Connection[Any]] = open_pool(url, "hub", name="laws", seqscan=False, max_size=12)
        self.plan = plan
        self.ledger = Ledger(self.pool)
        self.ledger.join("laws", 1_000_000)

    def another(self, seconds: float = 1_000_000) -> Ledger:
        """The ledger of another process of the same cell."""
        ledger = Ledger(self.pool)
        ledger.join("another", seconds)
        return ledger

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Look at the tables, or set a scene that no door of the ledger makes."""
        with self.pool.connection() as db:
            cursor = db.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def ask(
        self, *keys: str, context: str = "price", source: str = "vtex", urgency: int = 1, heard: bool = False
    ) -> None:
        """One request for each key."""
        self.ledger.enqueue([Ask(STORE, context, key, source, urgency, heard) for key in keys])

    def claim(
        self, context: str = "price", *, limit: int = 50, seconds: float = 1000.0, by: Ledger | None = None
    ) -> Claim:
        """A claim that there must be."""
        claim = self.try_claim(context, limit=limit, seconds=seconds, by=by)
        assert claim is not None, f"nothing to claim in {context}"
        return claim

    def try_claim(
        self, context: str = "price", *, limit: int = 50, seconds: float = 1000.0, by: Ledger | None = None
    ) -> Claim | None:
        """What a worker gets for a wake-up of this context."""
        lane, siblings = LANES.get(context, (context, ()))
        return (by or self.ledger).claim(STORE, context, lane=lane, siblings=siblings, limit=limit, seconds=seconds)

    def settle(self, claim: Claim, outcome: Outcome | Callable[[Row], Outcome], **learnt: Any) -> Settled:
        """End every row of a claim in the same word, or in the word chosen for it."""
        return self.end(
            claim,
            [
                Ending(row.context, row.key, outcome(row) if callable(outcome) else outcome, **learnt)
                for rows in claim.items.values()
                for row in rows.values()
            ],
        )

    def end(self, claim: Claim, endings: Sequence[Ending]) -> Settled:
        """Settle these endings by the plan, without jitter."""
        return self.ledger.settle(claim, [(ending, self.next(claim, ending)) for ending in endings])

    def next(self, claim: Claim, ending: Ending) -> NextRow:
        """What the row becomes by the plan."""
        return settle(claim.items[ending.key][ending.context], ending.outcome, self.plan, 0.5)

    def pass_time(self, seconds: float) -> None:
        """Time passes for everything that the ledger has a time for, without anybody sleeping."""
        with self.pool.connection() as db, db.transaction():
            for table, columns in {
                "states": ("pending_since", "dirty_since", "due_at", "answered_at"),
                "claims": ("started_at", "until"),
                "gates": ("since", "reopens_at"),
                "answers": ("intent_at", "confirmed_at"),
                "lots": ("opened_at", "closed_at", "submitted_at"),
                "runs": ("started_at",),
            }.items():
                moved = ", ".join(f"{column} = {column} - make_interval(secs => %(s)s)" for column in columns)
                db.execute(f"update {table} set {moved}", {"s": seconds})  # type: ignore[arg-type]

    def row(self, key: str, context: str = "price") -> Mapping[str, Any]:
        """One row of `states`, with ages and waits in seconds instead of times."""
        names = [
            "work",
            "asked",
            "answered",
            "claimed",
            "status",
            "attempts",
            "urgency",
            "heard",
            "looks",
            "waited",
            "due",
            "quiet",
        ]
        found = self.sql(
            """
            select work::text, asked, answered, claimed, status, attempts, urgency, heard, looks,
                   extract(epoch from now() - pending_since)::float8, extract(epoch from due_at - now())::float8,
                   extract(epoch from now() - answered_at)::float8
            from states where store = %s and context = %s and key = %s
            """,
            STORE,
            context,
            key,
        )
        assert found, f"no row {context} {key}"
        return dict(zip(names, found[0], strict=True))

    def answer(self, key: str, context: str = "price") -> Mapping[str, Any]:
        """What is remembered beside a row."""
        names = ["problems", "why", "ticket", "parked_on", "input_hash", "reference", "intent", "confirmed"]
        found = self.sql(
            "select problems, why, ticket, parked_on, input_hash, reference::text, intent, confirmed from answers"
            " where store = %s and context = %s and key = %s",
            STORE,
            context,
            key,
        )
        return dict(zip(names, found[0] if found else (None,) * len(names), strict=True))

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table that a settle may touch, to see that nothing moved."""
        tables = [
            "states",
            "answers",
            "claims",
            "leases",
            "gates",
            "counters",
            "bindings",
            "interactions",
            "lots",
            "lot_records",
            "notices",
        ]
        return {table: self.sql(f"select t::text from {table} t order by 1") for table in tables}

    def assert_conserved(self) -> None:
        """Law 6: both sides of every conservation law are equal."""
        broken = [law for law in self.ledger.check() if not law.holds]
        assert not broken, broken

    def close(self) -> None:
        self.pool.close()


def books_at(url: str, plan: Plan = PATIENT) -> closing[Books]:
    """Books that are closed at the end of the block."""
    return closing(Books(url, plan))


FOLLOW = Urgency.FOLLOW
