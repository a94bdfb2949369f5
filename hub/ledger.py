"""Enqueue, claim, settle, expire: the laws of design 2, as SQL. Nobody else moves a row of `states`.

- A demand is never lost: `asked` counts demands, `answered` follows, and every row with asked > answered is pending,
  held, scheduled or behind a named gate (law 6).
- One lease per (store, lane, key), by a unique key of the database (law 2). Settling needs the lease.
- The time is PostgreSQL's; callers send durations in seconds (law 8).
- Rows are locked in the order (store, context, key) everywhere; what would have to wait for a row is skipped.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.conservation import Interval, conserved
from hub.db import TREES, StorageAway, StorageRefused, retrying, translated, trees
from hub.errors import Problem
from hub.limits import RANKS
from hub.model import Ask, Claim, LotOutcome, Row, Urgency, Written, known_fields
from hub.outcome import (
    Done,
    Ending,
    Locked,
    NextRow,
    Outcome,
    Parked,
    Postponed,
    Refused,
    Released,
    Waiting,
)
from hub.remembering import bind, remember, tell

log = logging.getLogger("hub.ledger")

COMMAND_SLOT = 0
"""The counter slot of people's commands; slots are summed up, so they may share one."""

DEAD_PAUSE = 600.0
"""Seconds: a dead key gets one try in this time at most, however often it is asked for (law 1)."""

CREDENTIAL_RETRY = 900.0
"""Seconds after which a credential gate lets one key try, unless the ledger is told another time (`gate_try`)."""

RELEASED_AT_ONCE = 1_000
"""Rows that one statement releases: more would hold their locks for long."""

Pair = tuple[int, str]
"""(store id, context)."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One body that came in, as it is kept. `id` and `at` are made at the door: storing it again finds it stored.

    `at`: when it came, microseconds since 1970 by PostgreSQL's clock as far as the door knows it; `None`: now.
    """

    id: uuid.UUID
    store: int | None
    kind: str  # notification | event | result
    fate: str  # accepted | ignored | quarantined
    body: str
    key: str | None = None
    at: int | None = None


@dataclass(slots=True)
class Tally:
    """What became of the bodies of one store and source: received = quarantined + ignored + accepted."""

    received: int = 0
    quarantined: int = 0
    ignored: int = 0
    accepted: int = 0


# One statement, one round trip, one commit for everything that waits in an intake's tick.
#
# `fresh`: the row had no demand that a running claim or an awaited ticket does not cover already. What a row becomes:
#   at rest, parked, second look due  -> pending now
#   held, waiting for a ticket        -> stays; the new demand is answered after the current one
#   backing off (delayed, unknown)    -> stays: requests are counted and never shorten the delay
#   dead                              -> due once, ten minutes after its last try at the earliest
_INSERT_NOTICES = """
  insert into notices (id, store, kind, fate, key, body, received_at)
  select id, store, kind, fate, key, body, coalesce(to_timestamp(at / 1e6), now())
  from unnest(%s::uuid[], %s::int[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int8[])
    as n(id, store, kind, fate, key, body, at)"""

NOTICES_AND_ENQUEUE = f"""
with said as ({_INSERT_NOTICES}
), wanted as materialized (
  select * from unnest(%s::int[], %s::text[], %s::text[], %s::text[], %s::int2[], %s::bool[])
    as w(store, context, key, source, urgency, heard)
), put as (
  insert into states as s (store, context, key, work, asked, asked_by, urgency, heard, pending_since)
  select store, context, key, 'p', 1, pg_current_xact_id(), urgency, heard, now() from wanted
  on conflict (store, context, key) do update set
    asked = s.asked + (s.asked = coalesce(s.claimed, s.answered))::int,
    asked_by = case when s.asked = coalesce(s.claimed, s.answered) then pg_current_xact_id() else s.asked_by end,
    heard = s.heard or excluded.heard,
    urgency = case when s.asked > s.answered then least(s.urgency, excluded.urgency) else excluded.urgency end,
    looks = case when s.status = 'unknown' then s.looks when excluded.heard then 0 else s.looks end,
    work = case when s.work = 'i' or (s.work = 's' and s.status in ('done', 'parked')) then 'p' else s.work end,
    pending_since = case when s.work in ('i', 's') and s.asked = coalesce(s.claimed, s.answered)
                              and s.status <> 'waiting' then now() else coalesce(s.pending_since, now()) end,
    dirty_since = case when s.claimed is not null and s.asked = s.claimed then now() else s.dirty_since end,
    due_at = case when s.work = 's' and s.status in ('done', 'parked') then null
                  when s.work = 's' and s.status = 'dead'
                    then least(s.due_at, greatest(now(), s.answered_at + make_interval(secs => 600)))
                  else s.due_at end
  where s.asked = coalesce(s.claimed, s.answered)
     or (s.work = 's' and s.status = 'done')
     or (s.asked > s.answered and excluded.urgency < s.urgency)
     or (excluded.heard and not s.heard)
  returning s.store, s.context, s.key, s.work, s.asked_by = pg_current_xact_id() as fresh
), fresh as (
  select p.store, p.context, w.source, count(*) as n
  from put p join wanted w using (store, context, key) where p.fresh group by 1, 2, 3
), tally as (
  insert into counters as c (store, context, source, slot, received, quarantined, ignored, accepted,
                             requested, enqueued, coalesced)
  select t.store, t.context, t.source, %s, t.received, t.quarantined, t.ignored, t.accepted,
         t.requested, coalesce(f.n, 0), t.requested - coalesce(f.n, 0)
  from unnest(%s::int[], %s::text[], %s::text[], %s::int8[], %s::int8[], %s::int8[], %s::int8[], %s::int8[])
    as t(store, context, source, received, quarantined, ignored, accepted, requested)
  left join fresh f using (store, context, source)
  order by 1, 2, 3
  on conflict (store, context, source, slot) do update set
    received = c.received + excluded.received, quarantined = c.quarantined + excluded.quarantined,
    ignored = c.ignored + excluded.ignored, accepted = c.accepted + excluded.accepted,
    requested = c.requested + excluded.requested, enqueued = c.enqueued + excluded.enqueued,
    coalesced = c.coalesced + excluded.coalesced
)
select distinct store, context from put where work = 'p'
"""

# For notices of which an earlier statement, maybe one that still runs, may have stored some: waits for its verdict and
# answers the ids that are stored only now. What those ask for goes in the same transaction, without its notices.
NOTICES_ONCE = f"{_INSERT_NOTICES}\n  on conflict do nothing returning id"


def enqueue_parameters(
    notices: Sequence[Notice],
    asks: Sequence[Ask],
    slot: int,
    tallies: Mapping[tuple[int, str], Tally] | None = None,
) -> tuple[Any, ...]:
    """Parameters of `NOTICES_AND_ENQUEUE`: one row per key, in key order. `slot` is this process's counter slot.

    `tallies` maps (store id, source) to what became of the bodies. The statement returns the pairs to wake.
    """
    merged: dict[tuple[int, str, str], Ask] = {}
    requested: Counter[tuple[int, str, str]] = Counter()
    for ask in asks:
        requested[ask.store, ask.context, ask.source] += ask.count
        place = (ask.store, ask.context, ask.key)
        known = merged.get(place)
        if known is None:
            merged[place] = ask
        elif ask.urgency < known.urgency or (ask.heard and not known.heard):
            merged[place] = Ask(
                ask.store,
                ask.context,
                ask.key,
                known.source,
                min(ask.urgency, known.urgency),
                ask.heard or known.heard,
            )
    wanted = [merged[place] for place in sorted(merged)]
    counted = [(store, context, source, 0, 0, 0, 0, n) for (store, context, source), n in requested.items()]
    for (store, source), tally in (tallies or {}).items():
        counted.append(
            (store, "-", source, tally.received, tally.quarantined, tally.ignored, tally.accepted, 0),
        )
    return (
        *notice_parameters(notices),
        [ask.store for ask in wanted],
        [ask.context for ask in wanted],
        [ask.key for ask in wanted],
        [ask.source for ask in wanted],
        [ask.urgency for ask in wanted],
        [ask.heard for ask in wanted],
        slot,
        *([row[column] for row in counted] for column in range(8)),
    )


def notice_parameters(notices: Sequence[Notice]) -> tuple[Any, ...]:
    """Parameters of `NOTICES_ONCE`, and the first ones of `NOTICES_AND_ENQUEUE`."""
    return (
        [notice.id for notice in notices],
        [notice.store for notice in notices],
        [notice.kind for notice in notices],
        [notice.fate for notice in notices],
        [notice.key for notice in notices],
        [notice.body for notice in notices],
        [notice.at for notice in notices],
    )


# Rows are picked and then updated by their key, never by their place: a row that somebody moved between the snapshot
# and our lock would be leased and not held. The keys go through arrays so that every plan looks them up one by one.
# A gate whose time has come lets one key try.
_CLAIM = """
with shut as (
  select g.context from gates g
  where g.store = %(store)s and (g.reopens_at is null or g.reopens_at > now())
), picked as materialized (
  select s.key from states s
  where s.store = %(store)s and s.context = %(context)s and s.work = 'p'
    and not exists (select from shut where shut.context in (%(context)s, '*'))
    and (select l.claim from leases l where l.store = %(store)s and l.lane = %(lane)s and l.key = s.key) is null
  order by s.urgency, s.pending_since
  limit (select case when exists (select from gates g where g.store = %(store)s and g.context in (%(context)s, '*'))
                  then 1 else %(limit)s end)
  for update of s skip locked
), n as materialized (
  select nextval('claims_id_seq') as id where exists (select from picked)
), leased as (
  insert into leases (store, lane, key, claim)
  select %(store)s, %(lane)s, picked.key, n.id from picked, n order by picked.key
  on conflict do nothing returning key
), c as (
  insert into claims (id, worker, store, context, until) overriding system value
  select n.id, %(worker)s, %(store)s, %(context)s, now() + make_interval(secs => %(seconds)s)
  from n where exists (select from leased) returning id
), mates as materialized (
  select m.context, m.key from unnest(array(select key from leased)) k(key), unnest(%(siblings)s::text[]) n(context),
  lateral (select s.context, s.key from states s
           where s.store = %(store)s and s.context = n.context and s.key = k.key and s.work::text = 'p'
           for update skip locked) m
  where not exists (select from shut where shut.context = n.context)
), taken as (
  update states s set work = 'h', claim = c.id, due_at = null, dirty_since = case when s.status = 'waiting'
           then s.dirty_since end, claimed = case when s.status = 'waiting' then s.claimed else s.asked end
  from c, unnest(array(select %(context)s from leased union all select context from mates),
                 array(select key from leased union all select key from mates)) t(context, key)
  where s.store = %(store)s and s.context = t.context and s.key = t.key
  returning s.claim, s.context, s.key, s.claimed, s.status, s.attempts, s.urgency, s.heard, s.looks,
            coalesce(extract(epoch from now() - s.pending_since), 0)::float8 as waited
)
select t.claim, t.context, t.key, coalesce(t.claimed, 0), t.status, t.attempts, t.urgency, t.heard, t.looks, t.waited,
       a.ticket, a.input_hash, a.reference::text, a.intent,
       extract(epoch from now() - a.intent_at)::float8,
       case when a.intent is null then a.confirmed end,
       a.problems <> '[]'::jsonb or a.why is not null or a.ticket is not null or a.parked_on is not null
         or a.input_hash is not null or a.intent is not null as marked
from taken t left join answers a on a.store = %(store)s and a.context = t.context and a.key = t.key
"""


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle did: keys that were no longer ours, pairs to wake."""

    fenced: tuple[tuple[str, str], ...] = ()
    wake: frozenset[Pair] = frozenset()


@dataclass(frozen=True, slots=True)
class Gate:
    """A shut gate. `context` is `*` for all; `reopens_in` seconds, `None` until somebody opens it."""

    store: int
    context: str
    side: str
    cause: str
    who: str
    why: str
    since: str
    reopens_in: float | None


@dataclass(slots=True)
class Ledger:
    """The ledger of one cell. `slot` is the counter slot of this process (any small number; processes may share).

    `gate_try`: seconds after which a credential gate lets one key try: a role can come back without new credentials.
    """

    pool: ConnectionPool[Connection[tuple[Any, ...]]]
    slot: int = 0
    worker: int = 0
    gate_try: float = CREDENTIAL_RETRY

    # ---------------------------------------------------------------- processes

    def join(self, name: str, seconds: float) -> int:
        """Register this process; it must `beat` within `seconds`, or its leases expire."""
        with translated(), self.pool.connection() as db:
            row = db.execute(
                "insert into workers (name, until) values (%s, now() + make_interval(secs => %s)) returning id",
                (name, seconds),
            ).fetchone()
        assert row is not None  # noqa: S101 – INSERT … RETURNING always returns
        self.worker = int(row[0])
        self.slot = self.worker % 1024
        return self.worker

    def beat(self, seconds: float) -> bool:
        """Prolong this process; `False` when it was given up meanwhile (its leases are gone)."""
        with translated(), self.pool.connection() as db:
            return (
                db.execute(
                    "update workers set until = now() + make_interval(secs => %s) where id = %s and until > now()",
                    (seconds, self.worker),
                ).rowcount
                == 1
            )

    def leave(self) -> None:
        """This process ends: whatever it still holds is free at once."""
        with translated(), self.pool.connection() as db:
            db.execute("update workers set until = now() where id = %s", (self.worker,))

    # ---------------------------------------------------------------- enqueue

    def enqueue(self, asks: Sequence[Ask]) -> frozenset[Pair]:
        """Put demands down; the pairs that have pending work now are returned, to be woken."""
        if not asks:
            return frozenset()

        def once() -> frozenset[Pair]:
            with self.pool.connection() as db:
                return frozenset(db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), asks, self.slot)).fetchall())

        with translated():
            return retrying(once)

    # ---------------------------------------------------------------- claim

    def claim(
        self, store: int, context: str, *, lane: str, siblings: Sequence[str] = (), limit: int, seconds: float
    ) -> Claim | None:
        """Take up to `limit` pending keys for `seconds`, most urgent and oldest first; `None` when there is nothing.

        Pending rows of `siblings` (contexts of the same lane) for the same keys come along: one read serves them all.
        A shut gate of this context gives `None`.
        """
        with translated(), self.pool.connection() as db:
            rows = db.execute(
                _CLAIM,
                {
                    "worker": self.worker,
                    "store": store,
                    "context": context,
                    "lane": lane,
                    "siblings": list(siblings),
                    "limit": limit,
                    "seconds": seconds,
                },
            ).fetchall()
            if not rows:
                return None
            lots = {int(row[10][4:]) for row in rows if row[4] == "waiting" and (row[10] or "").startswith("lot:")}
            outcomes = _lot_outcomes(db, lots, [row[2] for row in rows]) if lots else {}
        items: dict[str, dict[str, Row]] = {}
        for row in rows:
            resolved = outcomes.get((row[10] or "", row[1], row[2]))
            # A record that failed for no fault of its own is no answer: its row fails and is sent again later.
            again = resolved is not None and resolved.retry
            items.setdefault(row[2], {})[row[1]] = Row(
                context=row[1],
                key=row[2],
                asked=row[3],
                status="delayed" if again else row[4],
                attempts=row[5],
                urgency=row[6],
                heard=row[7],
                looks=row[8],
                pending_seconds=row[9],
                ticket=None if again else row[10],
                input_hash=row[11],
                reference=row[12],
                intent=row[13],
                intent_age=row[14],
                confirmed=row[15],
                marked=bool(row[16]),
                resolved=resolved,
            )
        return Claim(int(rows[0][0]), store, context, lane, items)

    def intend(self, claim: Claim, intents: Sequence[tuple[str, str, str, Any]]) -> frozenset[str]:
        """Commit what is about to be written, (context, key, reference, intent) each, before any call (law 5).

        Returns the keys whose lease is still ours; nothing may be written for the others.
        """
        with translated(), self.pool.connection() as db:
            rows = db.execute(
                f"""
                with ours as (select key from leases where claim = %s order by key for share),
                put as (
                  insert into answers as a (store, context, key, reference, intent, intent_at)
                  select %s, i.context, i.key, i.reference, i.intent, now()
                  from unnest(%s::text[], %s::text[], %s::uuid[], {TREES}) as i(context, key, reference, intent)
                  join ours using (key) order by 2, 3
                  on conflict (store, context, key) do update set
                    reference = excluded.reference, intent = excluded.intent, intent_at = now()
                )
                select key from ours
                """,
                (
                    claim.id,
                    claim.store,
                    [intent[0] for intent in intents],
                    [intent[1] for intent in intents],
                    [intent[2] for intent in intents],
                    trees(json.dumps(intent[3]) for intent in intents),
                ),
            ).fetchall()
        ours = frozenset(row[0] for row in rows)
        claim.begun.update((intent[0], intent[1]) for intent in intents if intent[1] in ours)
        return ours

    # ---------------------------------------------------------------- settle

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        """Write down how each claimed row ended, and give the leases back, in one transaction.

        Endings of keys whose lease is gone are dropped whole (`fenced`): somebody else owns them now. Rows of the claim
        that no ending names are given back pending.
        """

        def once() -> Settled:
            with self.pool.connection() as db, db.transaction():
                return self._settle(db, claim, settled)

        with translated():
            return retrying(once)

    def _settle(self, db: Connection[Any], claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        owned = {
            row[0]
            for row in db.execute(
                # The claim first, as expire does: it then leaves us alone, or we find our leases gone.
                """
                with ours as materialized (select id from claims where id = %s for update)
                select key from leases where claim = (select id from ours) order by key for update
                """,
                (claim.id,),
            ).fetchall()
        }
        fenced = tuple((ending.context, ending.key) for ending, _ in settled if ending.key not in owned)
        ours = sorted(
            ((ending, row) for ending, row in settled if ending.key in owned),
            key=lambda pair: (pair[0].context, pair[0].key),
        )
        ours, missed = _overtaken(db, claim, ours)
        named = {(ending.context, ending.key) for ending, _ in ours}
        back = [
            (context, key)
            for key, rows in claim.items.items()
            for context in rows
            if key in owned and (context, key) not in named
        ]
        asks = [*missed, *(ask for ending, _ in ours for ask in _then(ending.outcome))]
        # Rows of other contexts are asked below: lock all that exist first, in the one order everybody follows.
        locks = sorted(
            {(claim.store, *place) for place in (*named, *back)} | {(a.store, a.context, a.key) for a in asks}
        )
        db.execute(
            """
            select 1 from states s join unnest(%s::int[], %s::text[], %s::text[]) as t(store, context, key)
              using (store, context, key) order by s.store, s.context, s.key for update of s
            """,
            ([place[0] for place in locks], [place[1] for place in locks], [place[2] for place in locks]),
        )
        with db.pipeline():
            db.execute(
                _SETTLE,
                (
                    [ending.context for ending, _ in ours],
                    [ending.key for ending, _ in ours],
                    [row.work for _, row in ours],
                    [row.status for _, row in ours],
                    [ending.code for ending, _ in ours],
                    [row.attempts for _, row in ours],
                    [row.looks for _, row in ours],
                    [None if row.wait is None else float(row.wait) for _, row in ours],
                    [row.final for _, row in ours],
                    [row.keeps_claim for _, row in ours],
                    [row.again for _, row in ours],
                    claim.store,
                    claim.id,
                    DEAD_PAUSE,
                    claim.store,
                    claim.store,
                    self.slot,
                ),
            )
            if back:
                db.execute(
                    """
                    update states s set work = 'p', claim = null, claimed = case when s.status = 'waiting'
                      then s.claimed end
                    from unnest(%s::text[], %s::text[]) as b(context, key)
                    where s.store = %s and s.context = b.context and s.key = b.key and s.claim = %s
                    """,
                    ([place[0] for place in back], [place[1] for place in back], claim.store, claim.id),
                )
            remember(db, claim, ours)
            bind(db, claim, ours)
            tell(db, claim, _alarmed(db, claim, ours, self.gate_try))
            asked = db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), asks, self.slot)) if asks else None
            if any(not isinstance(ending.outcome, (Locked, Postponed, Released)) for ending, _ in ours):
                db.execute(
                    """
                    delete from gates where store = %s and context in (%s, '*') and cause in ('credentials', 'quota')
                      and reopens_at <= now()
                    """,
                    (claim.store, claim.context),
                )
            db.execute("delete from leases where claim = %s", (claim.id,))
            db.execute("delete from claims where id = %s", (claim.id,))
            contexts = sorted({context for rows in claim.items.values() for context in rows} | {claim.context})
            more = db.execute(
                """
                select c from unnest(%s::text[]) c
                where exists (select 1 from states where store = %s and context = c and work = 'p')
                """,
                (contexts, claim.store),
            )
            wake = {(claim.store, str(row[0])) for row in more.fetchall()}
            wake |= set(asked.fetchall()) if asked else set()
        return Settled(fenced, frozenset(wake))

    def abandon(self, claim: Claim) -> None:
        """Let a claim that cannot be settled expire now; the sweep frees its keys. Never raises."""
        try:
            with translated(), self.pool.connection() as db:
                db.execute("update claims set until = now() where id = %s", (claim.id,))
        except (StorageAway, StorageRefused):
            log.warning("claim %s is left to its deadline: PostgreSQL is away", claim.id)

    # ---------------------------------------------------------------- what time does

    def ripen(self, limit: int = 5000) -> frozenset[Pair]:
        """Make pending whatever is due: back-offs, tickets, second looks, daily re-checks, the dead's slow tries."""

        def once() -> frozenset[Pair]:
            with self.pool.connection() as db:
                return frozenset(
                    db.execute(
                        """
                        with due as (
                          select store, context, key from states where work = 's' and due_at <= now()
                          order by due_at limit %s
                        ), locked as (
                          select s.store, s.context, s.key, s.asked = s.answered as fresh, s.status
                          from states s join due using (store, context, key) where s.work = 's' and s.due_at <= now()
                          order by s.store, s.context, s.key for update of s skip locked
                        ), moved as (
                          update states s set work = 'p', due_at = null, asked = s.asked + l.fresh::int,
                            urgency = case when l.fresh then %s else s.urgency end,
                            pending_since = coalesce(s.pending_since, now())
                          from locked l where s.store = l.store and s.context = l.context and s.key = l.key
                          returning s.store, s.context, l.fresh
                        ), tally as (
                          insert into counters as c (store, context, source, slot, requested, enqueued)
                          select store, context, 'recheck', %s, count(*), count(*) from moved where fresh
                          group by 1, 2 order by 1, 2
                          on conflict (store, context, source, slot) do update set
                            requested = c.requested + excluded.requested, enqueued = c.enqueued + excluded.enqueued
                        )
                        select distinct store, context from moved
                        """,
                        (limit, int(Urgency.SWEEP), self.slot),
                    ).fetchall()
                )

        with translated():
            return retrying(once)

    def expire(self, limit: int = 200) -> int:
        """Free the keys of claims whose deadline passed or whose process stopped beating; returns how many.

        Each costs its key an attempt: a key that takes its worker with it must not do so for ever. A dead key waits its
        pause out before the next try.
        """

        def once() -> int:
            with self.pool.connection() as db, db.transaction():
                claims = [
                    int(row[0])
                    for row in db.execute(
                        """
                        select c.id from claims c left join workers w on w.id = c.worker
                        where c.until < now() or w.until is null or w.until < now()
                        order by c.id limit %s for update of c skip locked
                        """,
                        (limit,),
                    ).fetchall()
                ]
                if not claims:
                    return 0
                # Leases first, as settle does: both want the same leases and rows at the same time.
                db.execute("select 1 from leases where claim = any(%s) order by claim, key for update", (claims,))
                db.execute(
                    """
                    select 1 from states s join leases l on l.store = s.store and l.key = s.key and s.claim = l.claim
                    where l.claim = any(%s) order by s.store, s.context, s.key for update of s
                    """,
                    (claims,),
                )
                freed = db.execute(
                    """
                    update states s set claim = null, attempts = least(s.attempts + 1, 32000),
                      claimed = case when s.status = 'waiting' then s.claimed end,
                      work = case when s.status = 'dead' then 's' else 'p' end,
                      due_at = case when s.status = 'dead' then now() + make_interval(secs => %s) end
                    from leases l
                    where l.claim = any(%s) and s.store = l.store and s.key = l.key and s.claim = l.claim
                    """,
                    (DEAD_PAUSE, claims),
                ).rowcount
                db.execute("delete from leases where claim = any(%s)", (claims,))
                db.execute("delete from claims where id = any(%s)", (claims,))
                return freed

        with translated():
            return retrying(once)

    def release(self, store: int, *parked_on: str, source: str = "release") -> frozenset[Pair]:
        """Make pending whatever is parked on one of these (mapping saved, SKU published, approval given).

        Call it when the change is committed: rows that are just being parked are waited for, later ones see the change.
        """
        with translated(), self.pool.connection() as db:
            db.execute(
                "select pg_advisory_xact_lock(hashtextextended(n, 2)) from unnest(%s::text[]) n",
                ([_release_lock(store, one) for one in sorted(parked_on)],),
            )
            parked = db.execute(
                """
                select s.context, s.key from answers a join states s using (store, context, key)
                where a.store = %s and a.parked_on = any(%s) and s.status = 'parked'
                """,
                (store, list(parked_on)),
            ).fetchall()
        asks = [Ask(store, row[0], row[1], source, Urgency.FOLLOW) for row in sorted(parked)]
        wake: set[Pair] = set()
        for start in range(0, len(asks), RELEASED_AT_ONCE):
            wake |= self.enqueue(asks[start : start + RELEASED_AT_ONCE])
        return frozenset(wake)

    def hasten(self, store: int, *, spread: float = 10.0) -> int:
        """A circuit closed: what it delayed becomes due, spread over `spread` seconds. Returns how many.

        Contexts come in the order of service (ACC-15), each in its own part of the time: a zero is not behind prices.
        """
        parts = max(RANKS.values()) + 1

        def once() -> int:
            with self.pool.connection() as db:
                return db.execute(
                    """
                    with late as (
                      select store, context, key from states
                      where store = %s and status = 'delayed' and work = 's' and attempts > 0
                        and due_at > now() + make_interval(secs => %s)
                      order by store, context, key for update skip locked
                    )
                    update states s set due_at = now() + make_interval(
                      secs => (coalesce((%s::jsonb ->> l.context)::int, 0) + random()) / %s * %s)
                    from late l where s.store = l.store and s.context = l.context and s.key = l.key
                    """,
                    (store, spread, json.dumps(RANKS), parts, spread),
                ).rowcount

        with translated():
            return retrying(once)

    def pending(self) -> list[tuple[int, str, int]]:
        """Every (store, context) with pending keys and how many, counted up to 1,000; one index probe per pair."""
        with translated(), self.pool.connection() as db:
            return db.execute(
                """
                with recursive pair as (
                  (select store, context from states where work = 'p' order by store, context limit 1)
                  union all
                  select n.store, n.context from pair p, lateral (
                    select s.store, s.context from states s
                    where s.work = 'p' and (s.store, s.context) > (p.store, p.context)
                    order by s.store, s.context limit 1) n
                )
                select p.store, p.context, (select count(*) from (select from states s
                         where s.store = p.store and s.context = p.context and s.work = 'p' limit 1000) x)
                from pair p
                """
            ).fetchall()

    # ---------------------------------------------------------------- gates

    def shut(
        self, store: int, context: str, side: str, *, cause: str, who: str, why: str, seconds: float | None
    ) -> None:
        """Shut a gate, for `seconds` or until somebody opens it."""
        with translated(), self.pool.connection() as db:
            db.execute(
                """
                insert into gates (store, context, side, cause, who, why, reopens_at)
                values (%s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s))
                on conflict (store, context, side) do update set cause = excluded.cause, who = excluded.who,
                  why = excluded.why, reopens_at = excluded.reopens_at
                """,
                (store, context, side, cause, who, why, seconds),
            )

    def open(self, store: int, context: str, side: str) -> bool:
        """Open a gate; `False` when it was not shut."""
        with translated(), self.pool.connection() as db:
            return (
                db.execute(
                    "delete from gates where store = %s and context = %s and side = %s", (store, context, side)
                ).rowcount
                > 0
            )

    def gates(self) -> list[Gate]:
        """Every gate in PostgreSQL; circuits are in `hub.circuits`."""
        with translated(), self.pool.connection() as db:
            rows = db.execute(
                """
                select store, context, side, cause, who, why, to_char(since, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                       extract(epoch from reopens_at - now())::float8
                from gates order by store, context, side
                """
            ).fetchall()
        return [Gate(*row) for row in rows]

    # ---------------------------------------------------------------- conservation

    def check(self, *, recount: bool = True) -> list[Interval]:
        """Both sides of every conservation law (law 6); `recount` also counts the states themselves.

        All counts are of one snapshot, so the check may run beside full traffic.
        """
        with translated(), self.pool.connection() as db, db.transaction():
            return conserved(db, recount=recount)


_SETTLE = """
with n as (
  select * from unnest(%s::text[], %s::text[], %s::"char"[], %s::text[], %s::text[], %s::int2[], %s::int2[],
                       %s::float8[], %s::bool[], %s::bool[], %s::bool[])
    as n(context, key, work, status, code, attempts, looks, wait, final, keeps, again)
), b as materialized (
  select s.context, s.key, s.answered, s.claimed, s.asked > s.claimed as dirty
  from states s join n using (context, key) where s.store = %s and s.claim = %s
), moved as (
  update states s set
    work = case when n.final and b.dirty and n.status <> 'dead' then 'p' when n.final and b.dirty then 's'
                else n.work end,
    due_at = case when n.final and b.dirty and n.status <> 'dead' then null
                  when n.final and b.dirty then now() + make_interval(secs => least(n.wait, %s))
                  when n.work = 's' then now() + make_interval(secs => n.wait) end,
    answered = case when n.final then s.claimed else s.answered end,
    asked = s.asked + (n.again and not b.dirty)::int,
    claimed = case when n.keeps then s.claimed end,
    claim = null, status = n.status, code = n.code, attempts = n.attempts,
    looks = case when b.dirty and not n.keeps and n.status <> 'unknown' then 0 else n.looks end,
    heard = s.heard and (b.dirty or not n.final or n.again),
    pending_since = case when not n.final then s.pending_since when b.dirty then coalesce(s.dirty_since, now()) end,
    dirty_since = case when n.keeps then s.dirty_since end,
    answered_at = now()
  from n join b using (context, key)
  where s.store = %s and s.context = n.context and s.key = n.key
  returning s.context, case when n.final then b.claimed - b.answered else 0 end as finished,
            (n.again and not b.dirty)::int as again
)
insert into counters as c (store, context, source, slot, finished, requested, enqueued)
select %s, context, 'settle', %s, sum(finished), sum(again), sum(again) from moved
group by context having sum(finished) > 0 or sum(again) > 0 order by context
on conflict (store, context, source, slot) do update set finished = c.finished + excluded.finished,
  requested = c.requested + excluded.requested, enqueued = c.enqueued + excluded.enqueued
"""


def revive(
    db: Connection[Any], asks: Sequence[Ask], slot: int, *, statuses: Sequence[str] = ("dead",)
) -> frozenset[Pair]:
    """Ask, and let those of the rows that back off in one of `statuses` start anew at once, their attempts forgotten.

    Runs in the caller's transaction; the answer is whom to wake.
    """
    ordered = sorted(asks, key=lambda ask: (ask.store, ask.context, ask.key))
    pairs = frozenset(db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), ordered, slot)).fetchall())
    moved = db.execute(
        """
        with late as (
          select s.store, s.context, s.key from states s
          join unnest(%s::int[], %s::text[], %s::text[]) as w(store, context, key) using (store, context, key)
          where s.work = 's' and s.status = any(%s::text[]) order by s.store, s.context, s.key for update of s
        )
        update states s set work = 'p', due_at = null, attempts = 0, status = 'delayed'
        from late l where s.store = l.store and s.context = l.context and s.key = l.key
        returning s.store, s.context
        """,
        (
            [ask.store for ask in ordered],
            [ask.context for ask in ordered],
            [ask.key for ask in ordered],
            list(statuses),
        ),
    ).fetchall()
    return pairs | frozenset(moved)


def lay_to_rest(db: Connection[Any], places: Sequence[tuple[int, str, str]]) -> int:
    """Take dead rows out for good: they come to rest, and the next request starts them anew. How many were dead."""
    return db.execute(
        """
        with dead as (
          select s.store, s.context, s.key from states s
          join unnest(%s::int[], %s::text[], %s::text[]) as w(store, context, key) using (store, context, key)
          where s.status = 'dead' and s.work = 's' and s.asked = s.answered
          order by s.store, s.context, s.key for update of s skip locked
        )
        update states s set status = 'new', work = 'i', attempts = 0, due_at = null, code = null
        from dead d where s.store = d.store and s.context = d.context and s.key = d.key
        """,
        ([place[0] for place in places], [place[1] for place in places], [place[2] for place in places]),
    ).rowcount


def ticket_answered(db: Connection[Any], store: int, ticket: str) -> frozenset[Pair]:
    """The answer to a ticket is here: the rows that wait for it are pending. Whom to wake."""
    return frozenset(
        db.execute(
            """
            with waiting as (
              select s.store, s.context, s.key from states s join answers a using (store, context, key)
              where a.store = %s and a.ticket = %s and s.status = 'waiting' and s.work = 's'
              order by s.store, s.context, s.key for update of s
            )
            update states s set work = 'p', due_at = null
            from waiting w where s.store = w.store and s.context = w.context and s.key = w.key
            returning s.store, s.context
            """,
            (store, ticket),
        ).fetchall()
    )


def _then(outcome: Outcome) -> tuple[Ask, ...]:
    return outcome.then if isinstance(outcome, (Done, Parked, Postponed, Refused)) else ()


def _overtaken(
    db: Connection[Any], claim: Claim, ours: Sequence[tuple[Ending, NextRow]]
) -> tuple[list[tuple[Ending, NextRow]], list[Ask]]:
    """What a row is about to wait for may have happened since it was read, and would not be told again.

    A lot that was answered meanwhile makes its rows pending at once; a mapping that was saved meanwhile asks for the
    rows that park on it. The locks make whoever tells (`StoreStates.lot_settled`, `release`) come before or after us.
    """
    lots = sorted(
        {int(e.outcome.ticket[4:]) for e, _ in ours if isinstance(e.outcome, Waiting) and _is_lot(e.outcome.ticket)}
    )
    over: set[str] = set()
    if lots:
        rows = db.execute("select id, state from lots where id = any(%s) order by id for share", (lots,)).fetchall()
        over = {f"lot:{row[0]}" for row in rows if row[1] == "settled"}
    moved = [
        (e, replace(row, work="p", wait=None) if isinstance(e.outcome, Waiting) and e.outcome.ticket in over else row)
        for e, row in ours
    ]
    parked = [(e, e.outcome) for e, _ in ours if isinstance(e.outcome, Parked) and e.outcome.on.startswith(_MAPPING)]
    if not parked:
        return moved, []
    names = sorted({outcome.on for _, outcome in parked})
    db.execute(
        "select pg_advisory_xact_lock_shared(hashtextextended(n, 2)) from unnest(%s::text[]) n",
        ([_release_lock(claim.store, name) for name in names],),
    )
    versions = dict(
        db.execute(
            "select category, version from mappings where store = %s and category = any(%s)",
            (claim.store, [name.removeprefix(_MAPPING) for name in names]),
        ).fetchall()
    )
    missed = [
        Ask(claim.store, ending.context, ending.key, "release", Urgency.FOLLOW)
        for ending, outcome in parked
        if versions.get(outcome.on.removeprefix(_MAPPING), 0) != outcome.version
    ]
    return moved, missed


_MAPPING = "mapping:"


def _release_lock(store: int, parked_on: str) -> str:
    return f"release {store} {parked_on}"


def _is_lot(ticket: str) -> bool:
    return ticket.startswith("lot:")


def _alarmed(
    db: Connection[Any], claim: Claim, ours: Sequence[tuple[Ending, NextRow]], gate_try: float
) -> list[tuple[Ending, NextRow]]:
    """Shut the gates of lost credentials; of the endings that met one, only that which shut it tells of it."""
    return [
        (ending, row)
        if not isinstance(ending.outcome, Locked) or _shut_for_credentials(db, claim, ending.outcome, gate_try)
        else (replace(ending, stories=()), row)
        for ending, row in ours
    ]


def _shut_for_credentials(db: Connection[Any], claim: Claim, locked: Locked, gate_try: float) -> bool:
    """401 shuts the store's side, 403 this context; unless newer credentials have come meanwhile (ACC-02 to 04).

    False when it was shut already, or is not shut.
    """
    shut = db.execute(
        """
        insert into gates (store, context, side, cause, who, why, version, reopens_at)
        select %s, %s, %s, 'credentials', 'hub', %s, %s, now() + make_interval(secs => %s)
        where not exists (select from credentials where store = %s and side = %s and version > %s)
        on conflict (store, context, side) do update set why = excluded.why, version = excluded.version,
          reopens_at = excluded.reopens_at
        returning xmax = 0
        """,
        (
            claim.store,
            "*" if locked.scope == "store" else claim.context,
            locked.side,
            locked.why,
            locked.version,
            gate_try,
            claim.store,
            locked.side,
            locked.version,
        ),
    ).fetchone()
    return bool(shut and shut[0])


def _lot_outcomes(
    db: Connection[Any], lots: Collection[int], keys: Iterable[str]
) -> dict[tuple[str, str, str], LotOutcome]:
    """Outcomes of lot records, by (ticket, context, key)."""
    rows = db.execute(
        """
        select lot, context, key, covers, record, outcome from lot_records
        where lot = any(%s) and key = any(%s) and outcome is not null order by lot, line
        """,
        (list(lots), list(keys)),
    ).fetchall()
    found: dict[tuple[str, str, str], LotOutcome] = {}
    for lot, _, key, covers, record, outcome in rows:
        written = outcome.get("written")
        for context in covers:
            found[(f"lot:{lot}", context, key)] = LotOutcome(
                taken=bool(outcome["taken"]),
                written=Written(**known_fields(Written, written)) if written else None,
                problems=tuple(Problem.from_json(problem) for problem in outcome.get("problems", ())),
                record=record,
                retry=bool(outcome.get("retry")),
            )
    return found
