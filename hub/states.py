"""What is known of one store: reads for rules, and the facts that live outside of the ledger's rows.

Implements `hub.ports.States` on PostgreSQL. Pairs that got pending work on the way gather in `touched`, for whoever
wakes workers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.beliefs import StoreBeliefs
from hub.db import TREES, translated, trees
from hub.errors import Problem
from hub.integration import integration_answer
from hub.ledger import BEGUN_INTENT, NOTICES_AND_ENQUEUE, Pair, enqueue_parameters, ticket_answered
from hub.model import (
    Address,
    Ask,
    Binding,
    BindingState,
    Buyer,
    Claim,
    IntegrationAnswer,
    LotOutcome,
    LotResult,
    MarketplaceOrder,
    OrderItem,
    Urgency,
    known_fields,
)
from hub.ports import Lots, LotView, MappedCategory, OrderRecord, RunRecord
from hub.stores import SecretBox

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDER_STATES = (
    "seen",
    "validating",
    "retry",
    "sending",
    "enqueued",
    "integrated",
    "waiting_authorization",
    "approved",
    "cancelled",
    "failed",
    "cancelled_before_integration",
)
"""The states of an order in the hub, in the order in which they may follow (vtex.md 9.1). Before `integrated` any may
follow any: a refused order is tried again, and what was given up may turn out to stand in VTEX. The last two are ends
outside of VTEX."""

_RANK = {"integrated": 1, "waiting_authorization": 1, "approved": 2, "cancelled": 2}


@dataclass(frozen=True, slots=True)
class LotEntry:
    """One record that joins a lot: the rows it answers, the step it came from, its encoded line."""

    contexts: tuple[str, ...]
    key: str
    step: Any  # a JSON tree: hub.contexts.step.Send.as_json()
    line: bytes


_ABOUT_SKUS = ("catalog", "price", "stock")
_BINDINGS = "select sku, remote_id, state, link, product from bindings"


def _binding(row: Sequence[Any]) -> Binding:
    return Binding(row[0], row[1], BindingState(row[2]), row[3], row[4])


@dataclass(slots=True)
class StoreStates:
    """`hub.ports.States` of one store, for one attempt. `slot` is the process's counter slot.

    What `prepare` has read for the claimed SKUs is answered from memory: under their leases nobody else changes it, and
    what may still move (a mapping, a registration) asks again by itself when it does.
    """

    pool: ConnectionPool[Connection[tuple[Any, ...]]]
    store: int
    box: SecretBox
    slot: int = 0
    touched: set[Pair] = field(default_factory=set)
    _prepared: frozenset[str] = frozenset()
    _unread: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _bindings: dict[str, Binding] = field(default_factory=dict)
    _statuses: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    _confirmed: dict[tuple[str, str], Any] = field(default_factory=dict)
    _mapped: dict[str, MappedCategory] = field(default_factory=dict)

    @contextmanager
    def _db(self) -> Iterator[Connection[tuple[Any, ...]]]:
        with translated(), self.pool.connection() as db:
            yield db

    # ---------------------------------------------------------------- listings

    def prepare(self, skus: Sequence[str]) -> None:
        """What an attempt will ask of these SKUs (pairs, rows, what is confirmed) comes in one trip."""
        with self._lock:
            self._prepared, self._unread = frozenset(skus), True

    def _has(self, sku: str) -> bool:
        """The SKU's facts are in memory; the first who asks for one of them reads those of all."""
        if sku not in self._prepared:
            return False
        if self._unread:
            with self._lock:
                if self._unread:
                    self._read_prepared()
                    self._unread = False
        return True

    def _read_prepared(self) -> None:
        chosen = list(self._prepared)
        with self._db() as db, db.pipeline():
            bindings = db.execute(f"{_BINDINGS} where store = %s and sku = any(%s)", (self.store, chosen))
            rows = db.execute(
                "select context, key, work, status from states where store = %s and context = any(%s)"
                " and key = any(%s)",
                (self.store, list(_ABOUT_SKUS), chosen),
            )
            confirmed = db.execute(
                "select context, key, confirmed from answers where store = %s and key = any(%s)"
                " and context in ('catalog', 'price', 'stock') and intent is null and confirmed is not null",
                (self.store, chosen),
            )
            self._bindings = {row[0]: _binding(row) for row in bindings.fetchall()}
            self._statuses = {(row[0], row[1]): (row[2], row[3]) for row in rows.fetchall()}
            self._confirmed = {(row[0], row[1]): row[2] for row in confirmed.fetchall()}

    def binding(self, sku: str) -> Binding | None:
        """The listing of a SKU, `None` while it has none."""
        if self._has(sku):
            return self._bindings.get(sku)
        with self._db() as db:
            row = db.execute(f"{_BINDINGS} where store = %s and sku = %s", (self.store, sku)).fetchone()
        return _binding(row) if row else None

    def mapped(self, category: str) -> MappedCategory:
        """The marketplace category for a VTEX category; an unmapped one has version 0."""
        if category in self._mapped:
            return self._mapped[category]
        with self._db() as db:
            row = db.execute(
                "select remote, version from mappings where store = %s and category = %s", (self.store, category)
            ).fetchone()
        found = MappedCategory(category, row[0] if row else None, int(row[1]) if row else 0)
        return self._mapped.setdefault(category, found)

    def keep_mapping(self, category: str, remote: str) -> MappedCategory:
        """Keep what the seller's mapper said of a category that the table lacks; a row that came meanwhile wins."""
        with self._db() as db:
            db.execute(
                """
                insert into mappings (store, category, remote, version) values (%s, %s, %s, nextval('mapping_version'))
                on conflict (store, category) do nothing
                """,
                (self.store, category, remote),
            )
        self._mapped.pop(category, None)
        return self.mapped(category)

    def row_status(self, context: str, key: str) -> tuple[str, str] | None:
        """(`work`, `status`) of another row of this store, `None` when there is none."""
        if context in _ABOUT_SKUS and self._has(key):
            return self._statuses.get((context, key))
        with self._db() as db:
            row = db.execute(
                "select work, status from states where store = %s and context = %s and key = %s",
                (self.store, context, key),
            ).fetchone()
        return (str(row[0]), str(row[1])) if row else None

    def confirmed(self, context: str, key: str) -> Any:
        """What the marketplace is known to show; `None` while a write is in doubt."""
        if self._has(key):
            return self._confirmed.get((context, key))
        with self._db() as db:
            row = db.execute(
                "select confirmed from answers where store = %s and context = %s and key = %s and intent is null",
                (self.store, context, key),
            ).fetchone()
        return row[0] if row else None

    # ---------------------------------------------------------------- orders

    def order(self, order_id: str) -> OrderRecord | None:
        """The hub's record of a marketplace order."""
        with self._db() as db:
            row = db.execute(
                """
                select state, body, vtex_order_id, operation_id, reference::text,
                       extract(epoch from now() - sent_at)::float8, approved, problems
                from orders where store = %s and order_id = %s
                """,
                (self.store, order_id),
            ).fetchone()
        if row is None:
            return None
        return OrderRecord(
            order_id=order_id,
            state=row[0],
            order=_order_from_json(json.loads(self.box.open(bytes(row[1])))) if row[1] else None,
            vtex_order_id=row[2],
            operation_id=row[3],
            reference=row[4],
            sent_age=row[5],
            approved=row[6],
            problems=tuple(Problem.from_json(problem) for problem in row[7]),
        )

    def save_order(self, record: OrderRecord) -> None:
        """Insert or update the record of an order; what stands in VTEX never leaves it again (ORD-10).

        `None` leaves a known value as it is. The order itself holds personal data and is encrypted. `sent_age` of 0
        marks creation or approval as sent now.
        """
        body = self.box.seal(json.dumps(asdict(record.order), default=str).encode()) if record.order else None
        rank = _RANK.get(record.state, 0)
        with self._db() as db:
            db.execute(
                """
                insert into orders as o (store, order_id, state, body, vtex_order_id, operation_id, reference, sent_at,
                                         first_sent_at, approved, problems, total)
                values (%(store)s, %(id)s, %(state)s, %(body)s, %(vtex)s, %(operation)s, %(reference)s,
                        now() - make_interval(secs => %(sent)s), now() - make_interval(secs => %(sent)s),
                        %(approved)s, %(problems)s, %(total)s)
                on conflict (store, order_id) do update set
                  state = case when %(rank)s >= coalesce((%(ranks)s::jsonb ->> o.state)::int, 0)
                            then excluded.state else o.state end,
                  body = coalesce(excluded.body, o.body),
                  vtex_order_id = coalesce(excluded.vtex_order_id, o.vtex_order_id),
                  operation_id = coalesce(excluded.operation_id, o.operation_id),
                  reference = coalesce(excluded.reference, o.reference),
                  sent_at = coalesce(excluded.sent_at, o.sent_at),
                  first_sent_at = coalesce(o.first_sent_at, excluded.first_sent_at),
                  approved = o.approved or excluded.approved, problems = excluded.problems,
                  total = coalesce(excluded.total, o.total), changed_at = now()
                """,
                {
                    "store": self.store,
                    "id": record.order_id,
                    "state": record.state,
                    "body": body,
                    "vtex": record.vtex_order_id,
                    "operation": record.operation_id,
                    "reference": record.reference,
                    "sent": record.sent_age,
                    "approved": record.approved,
                    "problems": json.dumps([problem.as_json() for problem in record.problems]),
                    "total": record.order.total if record.order else None,
                    "rank": rank,
                    "ranks": json.dumps(_RANK),
                },
            )

    def results(self, order_id: str) -> Sequence[IntegrationAnswer]:
        """The integration results that VTEX has posted for an order, oldest first: the last 200 (vtex.md 9.4).

        What was posted before the order was first sent answers nothing and is left out (ORD-38).
        """
        with self._db() as db:
            rows = db.execute(
                """
                select body, extract(epoch from now() - received_at)::float8 from (
                  select n.body, n.received_at from notices n join orders o on o.store = n.store and o.order_id = n.key
                  where n.store = %s and n.kind = 'result' and n.key = %s and n.fate = 'accepted'
                    and n.received_at >= o.first_sent_at
                  order by n.received_at desc limit 200) newest
                order by received_at
                """,
                (self.store, order_id),
            ).fetchall()
        return [replace(integration_answer(json.loads(row[0])), age=row[1]) for row in rows]

    # ---------------------------------------------------------------- cursors and loads

    def cursor(self, name: str) -> str | None:
        """A stored cursor of this store."""
        with self._db() as db:
            row = db.execute("select value from cursors where store = %s and name = %s", (self.store, name)).fetchone()
        return str(row[0]) if row else None

    def save_cursor(self, name: str, value: str) -> None:
        """Move a cursor."""
        with self._db() as db:
            db.execute(
                """
                insert into cursors (store, name, value) values (%s, %s, %s)
                on conflict (store, name) do update set value = excluded.value, changed_at = now()
                """,
                (self.store, name, value),
            )

    def run(self, run: int) -> RunRecord | None:
        """A load."""
        with self._db() as db:
            row = db.execute(
                "select id, state, filter, cursor from runs where id = %s and store = %s and kind = 'load'",
                (run, self.store),
            ).fetchone()
        if row is None:
            return None
        chosen, cursor = row[2], row[3]
        return RunRecord(
            run=int(row[0]),
            state=row[1],
            page=int(cursor.get("page", 1)),
            page_size=int(chosen.get("page_size", 1000)),
            only=tuple(chosen.get("skus", ())),
            seen_digest=str(cursor.get("seen", "")),
        )

    def load_page(self, run: RunRecord, skus: Sequence[str], *, last: bool) -> None:
        """In one transaction: ask `catalog` for each SKU at load urgency, count them to the run, move its cursor.

        `run.page` and `run.seen_digest` are the new cursor. SKUs that the run has already are not asked again.
        """
        with self._db() as db, db.transaction():
            fresh = [
                row[0]
                for row in db.execute(
                    """
                    insert into run_keys (run, context, key, store)
                    select %s, 'catalog', k, %s from unnest(%s::text[]) k order by k
                    on conflict do nothing returning key
                    """,
                    (run.run, self.store, list(dict.fromkeys(skus))),
                ).fetchall()
            ]
            asks = [Ask(self.store, "catalog", sku, "load", Urgency.LOAD) for sku in fresh]
            if asks:
                self.touched |= set(db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), asks, self.slot)).fetchall())
                db.execute(
                    """
                    update run_keys r set asked = s.asked from states s
                    where r.run = %s and r.key = any(%s) and s.store = r.store and s.context = r.context
                      and s.key = r.key
                    """,
                    (run.run, fresh),
                )
            db.execute(
                "update runs set cursor = jsonb_build_object('page', %s::int, 'seen', %s::text, 'listed', %s::bool)"
                " where id = %s",
                (run.page, run.seen_digest, last, run.run),
            )

    def load_backlog(self, run: int) -> int:
        """How many SKUs of the run have no outcome yet."""
        with self._db() as db:
            row = db.execute(
                """
                select count(*) from run_keys r join states s using (store, context, key)
                where r.run = %s and s.answered < r.asked and s.work in ('p', 'h')
                """,
                (run,),
            ).fetchone()
        return int(row[0]) if row else 0

    @property
    def beliefs(self) -> StoreBeliefs:
        """What is taken for true of the marketplace."""
        return StoreBeliefs(self.pool, self.store, self.slot, self.touched)

    # ---------------------------------------------------------------- lots

    def join_lot(self, claim: Claim, kind: str, entries: Sequence[LotEntry], lots: Lots) -> Mapping[str, int | None]:
        """Add records to the building lot of this kind, opening and closing lots as they fill; key → lot.

        Being in a lot is the intent (law 5): it is committed here, under the claim's lease, for every row that a record
        answers. Keys whose lease is gone are left out of the answer. `None`: an earlier record of the key is in another
        lot that has not left, or nobody knows whether it has; that lot may arrive last, and its value is the older one.
        """
        joined: dict[str, int | None] = {}
        asks: dict[int, Ask] = {}
        intents: dict[tuple[str, str], Any] = {}
        with self._db() as db, db.transaction():
            held = db.execute("select started_at::text from claims where id = %s for share", (claim.id,)).fetchone()
            ours = set(claim.items) if held else set()
            db.execute("select pg_advisory_xact_lock(hashtextextended(%s, 1))", (f"lot {self.store} {kind}",))
            lot = self._building(db, kind)  # locked: it cannot leave before the look at those that do
            leaving = self._leaving(db, kind, sorted(ours))
            for entry in entries:
                if entry.key not in ours:
                    continue
                if lot and lot[1] and (lot[1] >= lots.max_records or lot[2] + len(entry.line) > lots.max_bytes):
                    self._close(db, lot)
                    asks[lot[0]] = self._lot_ask(lot[0])
                    lot = None
                if entry.key in leaving and not (lot and lot[0] == leaving[entry.key]):
                    joined[entry.key] = None
                    continue
                lot = lot or self._opened(db, kind)
                db.execute(
                    """
                    insert into lot_records (lot, line, context, key, covers, record, body)
                    values (%s, %s, %s, %s, %s, %s, %s)
                    """,
                    (
                        lot[0],
                        lot[1],
                        entry.contexts[0],
                        entry.key,
                        list(entry.contexts),
                        json.dumps(entry.step),
                        entry.line,
                    ),
                )
                lot = (lot[0], lot[1] + 1, lot[2] + len(entry.line) + 1)
                joined[entry.key] = lot[0]
                asks[lot[0]] = self._lot_ask(lot[0])
                intents |= {(context, entry.key): entry.step for context in entry.contexts}
            if lot is not None:
                if lot[1] >= lots.max_records:
                    self._close(db, lot)
                else:
                    db.execute("update lots set records = %s, bytes = %s where id = %s", (lot[1], lot[2], lot[0]))
            if intents and held:
                self._intend(db, sorted(intents.items(), key=lambda intent: intent[0]), began=held[0])
            if asks:
                self.touched |= set(
                    db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), list(asks.values()), self.slot)).fetchall()
                )
        return joined

    def _leaving(self, db: Connection[Any], kind: str, keys: Sequence[str]) -> dict[str, int]:
        """Key → the last lot of this kind with a record of it, of those that are not known to have been taken."""
        rows = db.execute(
            """
            select r.key, max(r.lot) from lots l join lot_records r on r.lot = l.id and r.key = any(%s)
            where l.store = %s and l.kind = %s and l.state in ('building', 'submitting') group by r.key
            """,
            (list(keys), self.store, kind),
        ).fetchall()
        return {str(key): int(lot) for key, lot in rows}

    def lots_under_way(self, keys: Sequence[str]) -> Mapping[tuple[str, str], int]:
        """(context, key) → the lot that has a record of it and no answer yet."""
        with self._db() as db:
            rows = db.execute(
                """
                select c.context, r.key, max(r.lot) from lots l
                join lot_records r on r.lot = l.id and r.key = any(%s), unnest(r.covers) c(context)
                where l.store = %s and l.state <> 'settled' group by 1, 2
                """,
                (list(keys), self.store),
            ).fetchall()
        return {(str(context), str(key)): int(lot) for context, key, lot in rows}

    def _lot_ask(self, lot: int) -> Ask:
        return Ask(self.store, "lot", str(lot), "lot", Urgency.FOLLOW)

    def _intend(self, db: Connection[Any], intents: Sequence[tuple[tuple[str, str], Any]], *, began: str) -> None:
        db.execute(
            f"""
            insert into answers as a (store, context, key, reference, intent, intent_at)
            select %s, i.context, i.key, (i.intent ->> 'reference')::uuid, i.intent, now()
            from unnest(%s::text[], %s::text[], {TREES}) as i(context, key, intent)
            on conflict (store, context, key) do update set
              reference = excluded.reference, intent_at = now(),
              intent = {BEGUN_INTENT.format(began="%s::timestamptz")}
            """,
            (
                self.store,
                [place[0] for place, _ in intents],
                [place[1] for place, _ in intents],
                trees(json.dumps(step) for _, step in intents),
                began,
            ),
        )

    def _building(self, db: Connection[Any], kind: str) -> tuple[int, int, int] | None:
        return db.execute(
            "select id, records, bytes from lots where store = %s and kind = %s and state = 'building'"
            " and closed_at is null for update",
            (self.store, kind),
        ).fetchone()

    def _opened(self, db: Connection[Any], kind: str) -> tuple[int, int, int]:
        row = db.execute(
            "insert into lots (store, kind, reference) values (%s, %s, gen_random_uuid()) returning id, records, bytes",
            (self.store, kind),
        ).fetchone()
        assert row is not None  # noqa: S101 – INSERT … RETURNING always returns
        return int(row[0]), int(row[1]), int(row[2])

    @staticmethod
    def _close(db: Connection[Any], lot: tuple[int, int, int]) -> None:
        db.execute(
            "update lots set records = %s, bytes = %s, closed_at = now() where id = %s", (lot[1], lot[2], lot[0])
        )

    def lot(self, lot: int) -> LotView | None:
        """One lot."""
        with self._db() as db:
            row = db.execute(
                """
                select l.kind, l.state, l.reference::text, l.ticket, l.records, l.closed_at is not null,
                       extract(epoch from now() - l.opened_at)::float8,
                       (select extract(epoch from now() - max(o.submitted_at))::float8 from lots o
                         where o.store = l.store and o.kind = l.kind)
                from lots l where l.id = %s and l.store = %s
                """,
                (lot, self.store),
            ).fetchone()
        return LotView(lot, *row) if row else None

    def lot_lines(self, lot: int) -> Sequence[bytes]:
        """The encoded records of a lot, in order. The lot takes no more records from now on (state submitting)."""
        with self._db() as db:
            db.execute(
                """
                update lots set state = 'submitting', closed_at = coalesce(closed_at, now())
                where id = %s and state = 'building'
                """,
                (lot,),
            )
            return [
                bytes(row[0])
                for row in db.execute("select body from lot_records where lot = %s order by line", (lot,)).fetchall()
            ]

    def lot_submitted(self, lot: int, ticket: str) -> None:
        """The marketplace took the lot."""
        with self._db() as db:
            db.execute(
                """
                update lots set state = 'submitted', ticket = %s, submitted_at = coalesce(submitted_at, now())
                where id = %s and state in ('building', 'submitting')
                """,
                (ticket, lot),
            )

    def lot_settled(self, lot: int, result: LotResult) -> None:
        """Keep what became of each record, and make the rows that waited for it pending.

        A record that may be sent again stays in doubt; its visibility delay counts from now.
        """
        with self._db() as db, db.transaction():
            # First of all: whoever settles a row into waiting for this lot looks at it under the same lock.
            db.execute("update lots set state = 'settled', settled_at = now() where id = %s", (lot,))
            lines = db.execute("select line from lot_records where lot = %s order by line", (lot,)).fetchall()
            unanswered = LotOutcome(
                taken=False,
                problems=result.fatal or (Problem("E3", fix="the marketplace's report does not name this record"),),
                retry=result.retry or not result.fatal,
            )
            outcomes = [result.by_line.get(int(row[0]), unanswered) for row in lines]
            db.execute(
                """
                update lot_records r set outcome = o.outcome from unnest(%s::int[], %s::jsonb[]) as o(line, outcome)
                where r.lot = %s and r.line = o.line and r.outcome is null
                """,
                ([row[0] for row in lines], [json.dumps(_outcome_json(outcome)) for outcome in outcomes], lot),
            )
            moved = ticket_answered(db, self.store, f"lot:{lot}")
            if any(outcome.retry for outcome in outcomes):
                db.execute(
                    """
                    update answers a set intent_at = now() from lot_records r
                    where r.lot = %s and (r.outcome ->> 'retry')::bool and a.store = %s and a.context = any(r.covers)
                      and a.key = r.key and a.intent is not null
                    """,
                    (lot, self.store),
                )
        self.touched |= moved


def _outcome_json(outcome: LotOutcome) -> dict[str, Any]:
    return {
        "taken": outcome.taken,
        "written": asdict(outcome.written) if outcome.written else None,
        "problems": [problem.as_json() for problem in outcome.problems],
        "retry": outcome.retry,
        "missing": outcome.missing,
    }


def _order_from_json(tree: Mapping[str, Any]) -> MarketplaceOrder:
    updated = tree.get("updated_at")
    return MarketplaceOrder(
        **{
            **known_fields(MarketplaceOrder, tree),
            "items": tuple(OrderItem(**known_fields(OrderItem, item)) for item in tree["items"]),
            "buyer": Buyer(**known_fields(Buyer, tree["buyer"])),
            "address": Address(**known_fields(Address, tree["address"])),
            "updated_at": datetime.fromisoformat(updated) if updated else None,
            "payment_methods": tuple(tree.get("payment_methods", ())),
        }
    )
