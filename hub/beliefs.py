"""`hub.ports.Beliefs` on PostgreSQL: what a store's database takes for true, and how a comparison corrects it.

A page is carried out in one transaction and once: it moves the run's step, and whoever comes second finds it moved. A
row that is being worked on is left alone but for one more demand, so that it is read again afterwards; a snapshot is
forgotten only while it still is the one that was compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import retrying, translated
from hub.ledger import NOTICES_AND_ENQUEUE, Pair, enqueue_parameters
from hub.model import Binding, BindingState, JsonTree
from hub.ports import Belief, Reconciliation, Taken

CONTEXTS = ("catalog", "price", "stock", "order")
"""What a reconciliation asks for unless it is told otherwise."""

MOST_PENDING = 5000

ENDED_ORDERS = ("approved", "cancelled", "failed", "cancelled_before_integration")


@dataclass(frozen=True, slots=True)
class StoreBeliefs:
    """The beliefs of one store. `touched` gathers the pairs that got pending work."""

    pool: ConnectionPool[Connection[tuple[Any, ...]]]
    store: int
    slot: int
    touched: set[Pair]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with translated(), self.pool.connection() as db:
            return db.execute(query.encode(), values).fetchall()

    def running(self) -> Reconciliation | None:
        """The store's reconciliation under way."""
        rows = self._rows(
            "select id, cursor, filter, extract(epoch from now() - started_at)::float8 from runs"
            " where store = %s and kind = 'reconcile' and state = 'running'",
            self.store,
        )
        if not rows:
            return None
        run, cursor, chosen, age = rows[0]
        return Reconciliation(
            run=int(run),
            step=int(cursor.get("step", 0)),
            phase=cursor.get("phase", "lots"),
            at=str(cursor.get("at", "")),
            age=float(age),
            contexts=frozenset(chosen.get("contexts") or CONTEXTS),
            adopts=bool(chosen.get("adopts")),
        )

    def clock(self) -> str:
        """PostgreSQL's time now (ISO, UTC)."""
        return str(self._rows("select clock_timestamp()::text")[0][0])

    def backlog(self) -> int:
        """Keys of this store that are pending, counted up to a few thousand."""
        rows = self._rows(
            "select count(*) from (select from states where store = %s and work = 'p'"
            " and context = any(%s) limit %s) x",
            self.store,
            list(CONTEXTS),
            MOST_PENDING,
        )
        return int(rows[0][0])

    def lots_pause(self, run: int, delay: float) -> float:
        """Seconds until the lots that were open when the run began are answered and visible (0: they are)."""
        rows = self._rows(
            """
            select coalesce(bool_or(l.state <> 'settled'), false),
                   coalesce(extract(epoch from now() - max(l.settled_at))::float8, 1e9)
            from lots l join runs r on r.id = %s and l.opened_at <= r.started_at
            where l.store = %s and (l.state <> 'settled' or l.settled_at > now() - make_interval(secs => %s))
            """,
            run,
            self.store,
            delay,
        )
        still_open, age = rows[0]
        return 1.0 if still_open else max(0.0, delay - float(age))

    def of(self, skus: Sequence[str], since: str, delay: float) -> Mapping[str, Belief]:
        """What is believed of these SKUs; snapshots younger than `since` less `delay` seconds are not firm."""
        chosen = list(skus)
        pairs = {
            row[0]: _binding(row)
            for row in self._rows(
                "select sku, remote_id, state, link, product from bindings where store = %s and sku = any(%s)",
                self.store,
                chosen,
            )
        }
        known = {
            row[0]
            for row in self._rows(
                "select key from states where store = %s and context = 'catalog' and key = any(%s)", self.store, chosen
            )
        }
        firm: dict[str, dict[str, JsonTree]] = {}
        for context, sku, value in self._rows(
            """
            select context, key, confirmed from answers
            where store = %s and key = any(%s) and context in ('catalog', 'price', 'stock')
              and intent is null and confirmed is not null
              and confirmed_at < %s::timestamptz - make_interval(secs => %s)
            """,
            self.store,
            chosen,
            since,
            delay,
        ):
            firm.setdefault(sku, {})[context] = value
        return {sku: Belief(pairs.get(sku), firm.get(sku, {}), sku in known) for sku in chosen}

    def unseen(self, run: int, after: str, limit: int) -> Sequence[Binding]:
        """Pairs that this run has not seen yet, by SKU, behind `after`."""
        return [
            _binding(row)
            for row in self._rows(
                "select sku, remote_id, state, link, product from bindings where store = %s and sku > %s"
                " and seen_run is distinct from %s order by sku limit %s",
                self.store,
                after,
                run,
                limit,
            )
        ]

    def absent(self, after: str, limit: int) -> Sequence[tuple[Binding, float]]:
        """Pairs that were not found at the marketplace, with the seconds since then, by SKU, behind `after`."""
        return [
            (_binding(row), float(row[5]))
            for row in self._rows(
                "select sku, remote_id, state, link, product, extract(epoch from now() - absent_since)::float8"
                " from bindings where store = %s and sku > %s and absent_since is not null order by sku limit %s",
                self.store,
                after,
                limit,
            )
        ]

    def unbound(self, skus: Sequence[str]) -> Sequence[str]:
        """Those of these SKUs that have no pair."""
        return [
            row[0]
            for row in self._rows(
                "select k from unnest(%s::text[]) k"
                " where not exists (select from bindings b where b.store = %s and b.sku = k)",
                list(skus),
                self.store,
            )
        ]

    def open_orders(self, after: str, limit: int) -> Sequence[str]:
        """Orders that have not come to their end, by id, behind `after`."""
        return [
            row[0]
            for row in self._rows(
                "select order_id from orders where store = %s and order_id > %s and state <> all(%s)"
                " order by order_id limit %s",
                self.store,
                after,
                list(ENDED_ORDERS),
                limit,
            )
        ]

    def take(self, taken: Taken) -> None:
        """Carry a page out, unless it was taken before."""

        def once() -> set[Pair]:
            with self.pool.connection() as db, db.transaction():
                return self._take(db, taken)

        with translated():
            self.touched.update(retrying(once))

    def _take(self, db: Connection[tuple[Any, ...]], taken: Taken) -> set[Pair]:
        run = taken.run
        found = db.execute(
            "select totals from runs where id = %s and state = 'running'"
            " and coalesce((cursor ->> 'step')::int, 0) = %s for update",
            (run.run, run.step),
        ).fetchone()
        if found is None:
            return set()
        woken: set[Pair] = set()
        if taken.asks:
            woken = set(db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), taken.asks, self.slot)).fetchall())
        self._doubt(db, taken)
        self._bind(db, taken)
        totals = {name: int(found[0].get(name, 0)) + count for name, count in taken.counts.items()}
        cursor = {"step": run.step + 1, "phase": taken.phase or "over", "at": taken.at}
        db.execute(
            """
            update runs set cursor = cursor || %s, totals = totals || %s,
              state = case when %s then 'done' else state end, finished_at = case when %s then now() end
            where id = %s
            """,
            (json.dumps(cursor), json.dumps(totals), taken.phase is None, taken.phase is None, run.run),
        )
        return woken

    def _doubt(self, db: Connection[tuple[Any, ...]], taken: Taken) -> None:
        doubts = sorted(taken.doubts, key=lambda doubt: doubt[:2])
        if doubts:
            db.execute(
                """
                update answers a set confirmed = null, confirmed_at = null
                from unnest(%s::text[], %s::text[], %s::jsonb[]) as d(context, key, value)
                where a.store = %s and a.context = d.context and a.key = d.key and a.intent is null
                  and a.confirmed = d.value
                """,
                (
                    [doubt[0] for doubt in doubts],
                    [doubt[1] for doubt in doubts],
                    [json.dumps(doubt[2]) for doubt in doubts],
                    self.store,
                ),
            )

    def _bind(self, db: Connection[tuple[Any, ...]], taken: Taken) -> None:
        """Pairs as they are shown; where the catalogue is at work on the SKU it knows better."""
        at_rest = """
            not exists (select from states s where s.store = %(store)s and s.context = 'catalog' and s.key = k.sku
              and (s.work = 'h' or s.answered_at >= %(since)s::timestamptz - make_interval(secs => %(delay)s)))
            and not exists (select from answers a where a.store = %(store)s and a.context = 'catalog' and a.key = k.sku
              and a.intent is not null)
        """
        place = {"store": self.store, "since": taken.since, "delay": taken.delay, "run": taken.run.run}
        if taken.pairs:
            pairs = sorted(taken.pairs, key=lambda pair: pair.sku)
            db.execute(
                f"""
                insert into bindings as b (store, sku, product, remote_id, link, state)
                select %(store)s, k.sku, k.product, k.remote, k.link, k.state
                from unnest(%(skus)s::text[], %(products)s::text[], %(remotes)s::text[], %(links)s::text[],
                            %(states)s::text[]) as k(sku, product, remote, link, state)
                where {at_rest} order by k.sku
                on conflict (store, sku) do update set remote_id = excluded.remote_id, link = excluded.link,
                  state = excluded.state, changed_at = now()
                """.encode(),
                {
                    **place,
                    "skus": [pair.sku for pair in pairs],
                    "products": [pair.product for pair in pairs],
                    "remotes": [pair.remote_id for pair in pairs],
                    "links": [pair.link for pair in pairs],
                    "states": [pair.state.value for pair in pairs],
                },
            )
        if taken.seen:
            db.execute(
                "update bindings set seen_run = %(run)s, absent_since = null where store = %(store)s"
                " and sku = any(%(skus)s)",
                {**place, "skus": sorted(taken.seen)},
            )
        if taken.absent:
            db.execute(
                f"""
                update bindings k set absent_since = coalesce(k.absent_since, now())
                where k.store = %(store)s and k.sku = any(%(skus)s) and {at_rest}
                """.encode(),
                {**place, "skus": sorted(taken.absent)},
            )
        if taken.gone:
            dropped = db.execute(
                f"""
                delete from bindings k where k.store = %(store)s and k.sku = any(%(skus)s)
                  and k.absent_since is not null and {at_rest} returning k.sku
                """.encode(),
                {**place, "skus": sorted(taken.gone)},
            ).fetchall()
            db.execute(
                "update answers set confirmed = null, confirmed_at = null where store = %s and key = any(%s)"
                " and context in ('catalog', 'price', 'stock') and intent is null",
                (self.store, sorted(row[0] for row in dropped)),
            )


def _binding(row: Sequence[Any]) -> Binding:
    """From `sku, remote_id, state, link, product`, whatever comes behind them."""
    sku, remote, state, link, product = row[:5]
    return Binding(sku, remote, BindingState(state), link, product)
