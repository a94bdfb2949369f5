"""Nothing is lost between what came in and what was answered: both sides of every conservation law (law 6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import retrying, translated

LARGEST_SHARE = 100
"""Rows of counters that a store may have before they are summed up."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Both sides of one conservation law."""

    name: str
    left: int
    right: int

    @property
    def holds(self) -> bool:
        """Both sides are equal."""
        return self.left == self.right


def conserved(db: Connection[Any], *, recount: bool) -> list[Balance]:
    """Both sides of every law, in the transaction just begun on `db`; `recount` also counts the states themselves."""
    db.execute("set transaction isolation level repeatable read, read only")
    row = db.execute(
        """
        select coalesce(sum(received), 0), coalesce(sum(quarantined + ignored + accepted), 0),
               coalesce(sum(requested), 0), coalesce(sum(coalesced + enqueued), 0),
               coalesce(sum(enqueued), 0), coalesce(sum(finished), 0),
               count(*) filter (where requested <> coalesced + enqueued
                                   or received <> quarantined + ignored + accepted)
        from counters
        """
    ).fetchone()
    assert row is not None  # noqa: S101 – an aggregate always returns a row
    laws = [
        Balance("received = quarantined + ignored + accepted", int(row[0]), int(row[1])),
        Balance("requested = coalesced + enqueued", int(row[2]), int(row[3])),
        Balance("sources out of balance", int(row[6]), 0),
    ]
    if recount:
        counted = db.execute(
            """
            select coalesce(sum(asked - answered), 0),
                   count(*) filter (where asked > answered and work = 'i'),
                   count(*) filter (where work = 'h' and not exists (
                     select from claims c where c.id = s.claim and c.store = s.store)
                     or work <> 'h' and (claim is not null or lane is not null)),
                   count(*) filter (where work = 's' and due_at is null),
                   count(*) filter (where asked = answered and work in ('p', 'h'))
            from states s
            """
        ).fetchone()
        leases = db.execute(
            """
            select count(*) from leases l where not exists (select from claims c where c.id = l.claim)
            """
        ).fetchone()
        assert counted is not None and leases is not None  # noqa: S101, PT018 – aggregates
        laws += [
            Balance("enqueued - finished = asked - answered", int(row[4]) - int(row[5]), int(counted[0])),
            Balance("unanswered rows at rest", int(counted[1]), 0),
            Balance("held rows without a lease", int(counted[2]), 0),
            Balance("scheduled rows without a time", int(counted[3]), 0),
            Balance("pending rows that nobody asked for", int(counted[4]), 0),
            Balance("leases without a claim", int(leases[0]), 0),
        ]
    return laws


_FOLD = """
with gone as (
  delete from counters c using (
    select store, context, source, slot from counters where store = %(store)s and slot <> 0
    order by context, source, slot for update skip locked
  ) s where c.store = s.store and c.context = s.context and c.source = s.source and c.slot = s.slot
  returning c.*
)
insert into counters as c (store, context, source, slot, received, quarantined, ignored, accepted, requested, coalesced,
                           enqueued, finished)
select store, context, source, 0, sum(received), sum(quarantined), sum(ignored), sum(accepted), sum(requested),
       sum(coalesced), sum(enqueued), sum(finished)
from gone group by 1, 2, 3 order by 1, 2, 3
on conflict (store, context, source, slot) do update set
  received = c.received + excluded.received, quarantined = c.quarantined + excluded.quarantined,
  ignored = c.ignored + excluded.ignored, accepted = c.accepted + excluded.accepted,
  requested = c.requested + excluded.requested, coalesced = c.coalesced + excluded.coalesced,
  enqueued = c.enqueued + excluded.enqueued, finished = c.finished + excluded.finished
"""


def fold(pool: ConnectionPool[Connection[Any]], *, share: int = LARGEST_SHARE) -> int:
    """Sum up the counters of stores that have more than `share` rows: each process that ever ran left its slot there.

    Sums stay what they are, so it may run beside everything; rows that somebody is writing now are left for next time.
    Returns how many stores were folded.
    """

    with translated():
        with pool.connection() as db:
            full = db.execute(
                "select store from counters group by store having count(*) > %s order by store", (share,)
            ).fetchall()
        for (store,) in full:
            retrying(partial(_fold, pool, int(store)))
    return len(full)


def _fold(pool: ConnectionPool[Connection[Any]], store: int) -> None:
    with pool.connection() as db:
        db.execute(_FOLD, {"store": store})
