"""Nothing is lost between what came in and what was answered: both sides of every conservation law (law 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection


@dataclass(frozen=True, slots=True)
class Interval:
    """The two sides of one conservation law."""

    name: str
    left: int
    right: int

    @property
    def holds(self) -> bool:
        """Both sides are equal."""
        return self.left == self.right


def conserved(db: Connection[Any], *, recount: bool) -> list[Interval]:
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
        Interval("received = quarantined + ignored + accepted", int(row[0]), int(row[1])),
        Interval("requested = coalesced + enqueued", int(row[2]), int(row[3])),
        Interval("sources out of balance", int(row[6]), 0),
    ]
    if recount:
        counted = db.execute(
            """
            select coalesce(sum(asked - answered), 0),
                   count(*) filter (where asked > answered and work = 'i'),
                   count(*) filter (where work = 'h' and not exists (
                     select from leases l join claims c on c.id = l.claim
                     where l.claim = s.claim and l.store = s.store and l.key = s.key)),
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
            Interval("enqueued - finished = asked - answered", int(row[4]) - int(row[5]), int(counted[0])),
            Interval("unanswered rows at rest", int(counted[1]), 0),
            Interval("held rows without a lease", int(counted[2]), 0),
            Interval("scheduled rows without a time", int(counted[3]), 0),
            Interval("pending rows that nobody asked for", int(counted[4]), 0),
            Interval("leases without a claim", int(leases[0]), 0),
        ]
    return laws
