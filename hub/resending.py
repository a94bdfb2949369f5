"""Looking at SKUs again because a person says so: sent even though nothing seems to have changed.

What the marketplace is known to show is forgotten first, and what it refused may be sent again; a dead key comes back
to life. A write in doubt stays in doubt: it is read back before anything is sent twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import retrying, translated
from hub.ledger import COMMAND_SLOT, Pair, revive
from hub.model import Ask, Urgency

CONTEXTS = ("catalog", "price", "stock")

Pool = ConnectionPool[Connection[tuple[Any, ...]]]


def resend(
    pool: Pool, store: int, skus: Sequence[str], *, who: str, why: str = "", contexts: Sequence[str] = CONTEXTS
) -> frozenset[Pair]:
    """Ask for these SKUs in these contexts, whatever was sent or refused before; the answer is whom to wake."""
    places = sorted({(context, sku) for sku in skus for context in contexts})
    asks = [Ask(store, context, sku, "operator", Urgency.NOTIFIED, heard=True) for context, sku in places]
    columns = ([context for context, _ in places], [sku for _, sku in places])

    def once() -> frozenset[Pair]:
        with pool.connection() as db, db.transaction():
            db.execute(
                """
                select 1 from states s join unnest(%s::text[], %s::text[]) as w(context, key) using (context, key)
                where s.store = %s order by s.store, s.context, s.key for update of s
                """,
                (*columns, store),
            )
            # What is under way settles by what it read; its answer is newer than anything forgotten here.
            db.execute(
                """
                update answers a set input_hash = null,
                  confirmed = case when a.intent is null then null else a.confirmed end
                from unnest(%s::text[], %s::text[]) as w(context, key), states s
                where a.store = %s and a.context = w.context and a.key = w.key
                  and s.store = a.store and s.context = a.context and s.key = a.key and s.work <> 'h'
                """,
                (*columns, store),
            )
            pairs = revive(db, asks, COMMAND_SLOT, statuses=("dead", "delayed"))
            db.execute(
                "insert into audit (who, action, store, detail) values (%s, 'resend', %s, %s)",
                (who, store, json.dumps({"why": why, "skus": list(skus)[:20], "count": len(skus)})),
            )
        return pairs

    with translated():
        return retrying(once)
