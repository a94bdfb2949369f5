"""Enqueue, claim, settle, expire: the laws of design 2, as SQL. Nobody else moves a row of `states`.

- A demand is never lost: `asked` counts demands, `answered` follows, and every row with asked > answered is pending,
  held, scheduled or behind a named gate (law 6).
- One lease per (store, lane, key), by a unique key of the database (law 2): a claim's row stands for the leases of its
  keys, `states.lane` keeps contexts of one lane apart. Settling needs the lease.
- The time is PostgreSQL's; callers send durations in seconds (law 8).
- Claims, and settles that leave nothing but the row, do not wait for the disk: a crash of PostgreSQL may forget the
  last moments of them, never one that something kept was built on, because what it forgets is the end of one log.
  A forgotten settle leaves the key claimed: the claim expires and the key is attempted again. A forgotten claim leaves
  it pending while its owner still reads, so a second worker may read too. Only one of them writes: every write waits
  for `intend`, `holds` or the joining of a lot, which find the claim in the database and put it on the disk before
  they answer. Whose claim is forgotten is refused there, and its settle is dropped; who was answered holds the key
  through any crash. So an older value never overwrites a newer one (tests/laws/test_crash.py).
- One case is beyond any database: a process that is stopped between its last look at the lease and the first byte. Its
  settle is refused as well, and `doubt` has what it wrote looked at again (tests/laws/test_late_writes.py).
- Rows are locked in the order (store, context, key) everywhere; what would have to wait for a row is skipped.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from psycopg import Connection
from psycopg.errors import UniqueViolation
from psycopg_pool import ConnectionPool

from hub.conservation import Balance, conserved
from hub.db import TREES, StorageAway, StorageRefused, column, retrying, translated, trees
from hub.errors import Problem
from hub.limits import RANKS
from hub.model import Ask, Claim, JsonTree, LotOutcome, Row, Urgency, Written, known_fields
from hub.outcome import (
    Done,
    Ending,
    Locked,
    NextRow,
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


class Notice(NamedTuple):
    """One body that came in, as it is kept. `id` and `at` are made at the door: storing it again finds it stored.

    A tuple, because an intake makes tens of thousands a second. `id`: a UUID in 32 hexadecimal digits. `at`: when it
    came, microseconds since 1970 by PostgreSQL's clock as far as the door knows it; `None`: now.
    """

    id: str
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
#   at rest, parked, second look due  -> pending now; a look that comes too early counts as the first one
#   held, waiting for a ticket        -> stays; the new demand is answered after the current one
#   backing off (delayed, unknown)    -> stays: requests are counted and never shorten the delay
#   dead                              -> due once, ten minutes after its last try at the earliest
# What is announced is looked at anew, whatever the row is doing; read-backs of a lost answer go on as they were.
#
# `other`: whoever asks for keys of one (store, context) is mostly one source; only what others asked for is looked up.
# `offset 0`: once for each row, not once for each column that needs it. psycopg reads a text of more than 4,096
# characters anew each time, which is why no comment stands inside and no space twice.
_INSERT_NOTICES = """
  insert into notices (id, store, kind, fate, key, body, received_at)
  select id, store, kind, fate, key, body, coalesce(to_timestamp(at / 1e6), now())
  from unnest(%s::uuid[], %s::int[], %s::text[], %s::text[], %s::text[], string_to_array(%s, e'\\x1e'), %s::int8[])
    as n(id, store, kind, fate, key, body, at)"""

NOTICES_AND_ENQUEUE = " ".join(
    f"""
with said as ({_INSERT_NOTICES}
), wanted as materialized (
  select * from unnest(%s::int[], %s::text[], %s::text[], %s::int2[], %s::bool[])
    as w(store, context, key, urgency, heard)
), put as (
  insert into states as s (store, context, key, work, asked, asked_by, urgency, heard, pending_since)
  select store, context, key, 'p', 1, pg_current_xact_id(), urgency, heard, now() from wanted
  on conflict (store, context, key) do update set
    asked = s.asked + (s.asked = coalesce(s.claimed, s.answered))::int,
    asked_by = case when s.asked = coalesce(s.claimed, s.answered) then pg_current_xact_id() else s.asked_by end,
    heard = s.heard or excluded.heard,
    urgency = case when s.asked > s.answered then least(s.urgency, excluded.urgency) else excluded.urgency end,
    looks = case when s.status = 'unknown' then s.looks when excluded.heard then 0
                 when s.work = 's' and s.status in ('done', 'refused') then least(s.looks, 1) else s.looks end,
    work = case when s.work = 'i' or (s.work = 's' and s.status in ('done', 'refused', 'parked')) then 'p'
                else s.work end,
    pending_since = case when s.work in ('i', 's') and s.asked = coalesce(s.claimed, s.answered)
                              and s.status <> 'waiting' then now() else coalesce(s.pending_since, now()) end,
    dirty_since = case when s.claimed is not null and s.asked = s.claimed then now() else s.dirty_since end,
    due_at = case when s.work = 's' and s.status in ('done', 'refused', 'parked') then null
                  when s.work = 's' and s.status = 'dead'
                    then least(s.due_at, greatest(now(), s.answered_at + make_interval(secs => 600)))
                  else s.due_at end
  where s.asked = coalesce(s.claimed, s.answered)
     or (s.work = 's' and s.status in ('done', 'refused'))
     or (s.asked > s.answered and excluded.urgency < s.urgency)
     or (excluded.heard and (not s.heard or (s.looks > 0 and s.status <> 'unknown')))
  returning s.store, s.context, s.key, s.work, s.asked_by = pg_current_xact_id() as fresh
), fresh as materialized (
  select store, context, count(*) as n from put where fresh group by 1, 2
), other as materialized (
  select o.store, o.context, o.source, count(*) as n
  from unnest(%s::int[], %s::text[], %s::text[], %s::text[]) as o(store, context, key, source)
  join put p using (store, context, key) where p.fresh group by 1, 2, 3
), tally as (
  insert into counters as c (store, context, source, slot, received, quarantined, ignored, accepted,
                             requested, enqueued, coalesced)
  select t.store, t.context, t.source, %s, t.received, t.quarantined, t.ignored, t.accepted,
         t.requested, f.n, t.requested - f.n
  from unnest(%s::int[], %s::text[], %s::text[], %s::int8[], %s::int8[], %s::int8[], %s::int8[], %s::int8[], %s::bool[])
    as t(store, context, source, received, quarantined, ignored, accepted, requested, main),
  lateral (select case when t.requested = 0 then 0
             when t.main
             then coalesce((select n from fresh where store = t.store and context = t.context), 0)
                  - coalesce((select sum(n) from other where store = t.store and context = t.context), 0)
             else coalesce((select n from other where store = t.store and context = t.context and source = t.source), 0)
           end::int8 as n offset 0) f
  order by 1, 2, 3
  on conflict (store, context, source, slot) do update set
    received = c.received + excluded.received, quarantined = c.quarantined + excluded.quarantined,
    ignored = c.ignored + excluded.ignored, accepted = c.accepted + excluded.accepted,
    requested = c.requested + excluded.requested, enqueued = c.enqueued + excluded.enqueued,
    coalesced = c.coalesced + excluded.coalesced
)
select distinct store, context from put where work = 'p'
""".split()
)

# What a late write did to a listing is not known, whatever else is begun (`doubted`: but for the answer of a lot).
_LATE = """'{"half_told": true, "doubted": true}'::jsonb"""

BEGUN_INTENT = (
    """case when a.doubted_at > {began} then excluded.intent || '{{"half_told": true}}' else excluded.intent end"""
)
"""In SQL: the intent that an attempt commits, whose claim `began` before the row `a` of `answers` was doubted."""

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
    main: dict[Pair, str] = {}
    other = [ask for ask in wanted if main.setdefault((ask.store, ask.context), ask.source) != ask.source]
    counted = [
        (store, context, source, 0, 0, 0, 0, n, main.get((store, context)) == source)
        for (store, context, source), n in requested.items()
    ]
    for (store, source), tally in (tallies or {}).items():
        counted.append(
            (store, "-", source, tally.received, tally.quarantined, tally.ignored, tally.accepted, 0, True),
        )
    return (
        *notice_parameters(notices),
        _numbers([ask.store for ask in wanted]),
        _plain([ask.context for ask in wanted]),
        _texts([ask.key for ask in wanted]),
        _numbers([ask.urgency for ask in wanted]),
        _numbers([ask.heard for ask in wanted]),
        _numbers([ask.store for ask in other]),
        _plain([ask.context for ask in other]),
        _texts([ask.key for ask in other]),
        _texts([ask.source for ask in other]),
        slot,
        *(_texts([str(row[column]) for row in counted]) for column in range(9)),
    )


def notice_parameters(notices: Sequence[Notice]) -> tuple[Any, ...]:
    """Parameters of `NOTICES_ONCE`, and the first ones of `NOTICES_AND_ENQUEUE`."""
    ids, stores, kinds, fates, bodies, keys, times = zip(*notices, strict=True) if notices else [()] * 7
    joined = "\x1e".join(bodies)
    if joined.count("\x1e") >= max(1, len(notices)):
        raise StorageRefused("a body holds a raw record separator, which no JSON does")
    return (
        _plain(ids),
        _numbers(stores),
        _plain(kinds),
        _plain(fates),
        _texts(keys),
        joined,
        _numbers(times),
    )


# Lists go as texts that the statement casts: psycopg's own dumper looks for the type of each element and escapes with a
# regular expression, 30 µs for one body.


def _plain(words: Sequence[str]) -> str:
    """An array's literal of what needs no quotes: words of our own."""
    return f"{{{','.join(words)}}}"


def _numbers(values: Iterable[int | bool | None]) -> str:
    """An array's literal of numbers or flags."""
    return f"{{{','.join(['NULL' if value is None else f'{value:d}' for value in values])}}}"


def _texts(values: Sequence[str | None]) -> str:
    """An array's literal of any texts."""
    if None not in values and "" not in values and (whole := "".join(values)).isdigit() and whole.isascii():  # type: ignore[arg-type]  # no None in it
        return f"{{{','.join(values)}}}"  # type: ignore[arg-type]  # as above
    return f"{{{','.join(map(_quoted, values))}}}"


def _quoted(text: str | None) -> str:
    return "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# Rows are picked, locked and then updated by their key, never by their place: a row that somebody moved between the
# snapshot and our lock would be locked and not held. The keys go through arrays so that every plan looks them up one by
# one. A gate whose time has come lets one key try.
_PICKED = """
with shut as (
  select g.context from gates g
  where g.store = %(store)s and (g.reopens_at is null or g.reopens_at > now())
), picked as materialized (
  select s.key from states s
  where s.store = %(store)s and s.context = %(context)s and s.work = 'p'
    and not exists (select from shut where shut.context in (%(context)s, '*'))
    and (%(which)s <> 'live' or s.urgency < %(load)s or not exists (
      select from states o
      where o.store = %(store)s and o.context = %(context)s and o.work = 'p' and o.urgency < %(load)s))
    and (%(which)s <> 'bulk' or s.urgency > %(notified)s or s.pending_since < now() - interval '1 second'
      or not exists (
      select from states o
      where o.store = %(store)s and o.context = %(context)s and o.work = 'p' and o.urgency > %(notified)s))
    {free}
  order by s.urgency, s.pending_since
  limit (select case when exists (select from gates g where g.store = %(store)s and g.context in (%(context)s, '*'))
                  then 1 else %(limit)s end)
  for update of s skip locked
)"""

# The row of the claim is what holds its keys: it can be locked, and it is gone when they are.
# A claim does not wait for the disk (see the module's promise). Its number is drawn by lot, for a sequence could forget
# it as well and give it away twice.
_TAKEN = """, taken as (
  update states s set work = 'h', claim = %(id)s, lane = t.lane, due_at = null,
           dirty_since = case when s.status = 'waiting' then s.dirty_since end,
           claimed = case when s.status = 'waiting' then s.claimed else s.asked end
  from chosen c, unnest(c.contexts, c.keys, c.lanes) t(context, key, lane)
  where s.store = %(store)s and s.context = t.context and s.key = t.key
  returning s.claim, s.context, s.key, s.claimed, s.status, s.attempts, s.urgency, s.heard, s.looks,
            coalesce(extract(epoch from now() - s.pending_since), 0)::float8 as waited, s.answered
), c as (
  insert into claims (id, worker, store, context, until, contexts, keys) overriding system value
  select claim, %(worker)s, %(store)s, %(context)s, now() + make_interval(secs => %(seconds)s),
         array_agg(context), array_agg(key)
  from taken group by claim
)
select t.claim, t.context, t.key, coalesce(t.claimed, 0), t.status, t.attempts, t.urgency, t.heard, t.looks, t.waited,
       a.ticket, a.input_hash, a.reference::text, a.intent,
       extract(epoch from now() - a.intent_at)::float8,
       case when a.intent is null then a.confirmed end,
       a.problems <> '[]'::jsonb or a.why is not null or a.ticket is not null or a.parked_on is not null
         or a.input_hash is not null or a.intent is not null as marked,
       coalesce(t.claimed, 0) - t.answered
from (select exists (select from picked) as any, set_config('synchronous_commit', 'off', true) as soon) p
left join taken t on p.any
left join lateral (
  select * from answers x where x.store = %(store)s and x.context = t.context and x.key = t.key limit 1) a on true
where p.any and p.soon = 'off'
"""

# A context alone in its lane: the row itself is the lease, its primary key the guarantee.
_CLAIM_ALONE = (
    _PICKED.format(free="")
    + """, chosen as (
  select array_agg(%(context)s::text) as contexts, array_agg(key order by key) as keys, array_agg(null::text) as lanes
  from picked having count(*) > 0
)"""
    + _TAKEN
)

# A lane with siblings: one row of a claim's key carries the lane, under a unique key (law 2). Siblings that are pending
# come along; a key whose sibling is locked is left alone, because somebody is just about to take both.
_CLAIM_SHARED = (
    _PICKED.format(
        free="""and (select o.claim from states o
         where o.store = %(store)s and o.lane = %(lane)s and o.key = s.key) is null
    and (select l.claim from leases l  -- of a version that knows no other lanes
         where l.store = %(store)s and l.lane = %(lane)s and l.key = s.key) is null"""
    )
    + """, mates as materialized (
  select n.context, p.key,
         (select true from states m where m.store = %(store)s and m.context = n.context and m.key = p.key
            and m.work::text = 'p' for update skip locked) as ours
  from picked p, unnest(%(siblings)s::text[]) n(context)
  where (select x.work::text from states x
         where x.store = %(store)s and x.context = n.context and x.key = p.key) = 'p'
    and not exists (select from shut where shut.context = n.context)
), chosen as (
  select array_agg(context order by context, key) as contexts, array_agg(key order by context, key) as keys,
         array_agg(lane order by context, key) as lanes
  from (select %(context)s::text as context, key, %(lane)s::text as lane from picked
        union all select context, key, null from mates) both_
  where key <> all (array(select key from mates where ours is null)) having count(*) > 0
)"""
    + _TAKEN
)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle did: keys that were no longer ours, pairs to wake."""

    fenced: tuple[tuple[str, str], ...] = ()
    wake: frozenset[Pair] = frozenset()


class _Put(NamedTuple):
    """Rows have become what follows: the pairs that have pending work now, and when the claim was taken."""

    wake: frozenset[Pair]
    began: str


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
        self,
        store: int,
        context: str,
        *,
        lane: str,
        siblings: Sequence[str] = (),
        limit: int,
        seconds: float,
        which: Literal["all", "live", "bulk"] = "all",
    ) -> Claim | None:
        """Take up to `limit` pending keys for `seconds`, most urgent and oldest first; `None` when there is nothing.

        `lane`: the context's own name when no other context shares it. Pending rows of `siblings` (contexts of the same
        lane) for the same keys come along: one read serves them all. A shut gate of this context gives `None`.
        A `live` claim leaves what a load asked for alone while anything else is pending; a `bulk` claim, for a second,
        what was announced just now: neither has to wait for the other.
        """
        asked = {
            "id": random.getrandbits(62),
            "which": which,
            "load": Urgency.LOAD,
            "notified": Urgency.NOTIFIED,
            "worker": self.worker,
            "store": store,
            "context": context,
            "lane": lane,
            "siblings": column(siblings),
            "limit": limit,
            "seconds": seconds,
        }
        statement = _CLAIM_ALONE if lane == context else _CLAIM_SHARED

        def once() -> list[tuple[Any, ...]]:
            with self.pool.connection() as db:
                return db.execute(statement, asked).fetchall()

        with translated():
            rows = _unless_crossed(once)
            if not rows:
                return None
            lots = {int(row[10][4:]) for row in rows if row[4] == "waiting" and (row[10] or "").startswith("lot:")}
            outcomes = {}
            if lots:
                try:
                    with self.pool.connection() as db:
                        outcomes = _lot_outcomes(db, lots, [row[2] for row in rows])
                except Exception:
                    self.abandon(Claim(int(rows[0][0]), store, context, lane, {}))
                    raise
        items: dict[str, dict[str, Row]] = {}
        for row in rows:
            resolved = outcomes.get((row[10] or "", row[1], row[2])) if outcomes else None
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
                demands=row[17],
            )
        return Claim(int(rows[0][0]), store, context, lane, items)

    def intend(self, claim: Claim, intents: Sequence[tuple[str, str, str, JsonTree]]) -> frozenset[str]:
        """Commit what is about to be written, (context, key, reference, intent) each, before any call (law 5).

        Returns the keys whose lease is still ours; nothing may be written for the others.
        """
        ordered = sorted(intents, key=lambda intent: intent[:2])

        def once() -> bool:
            with self.pool.connection() as db:
                return bool(
                    db.execute(
                        f"""
                        with ours as materialized (select id, started_at from claims where id = %s for share),
                        put as (
                          insert into answers as a (store, context, key, reference, intent, intent_at)
                          select %s, i.context, i.key, i.reference, i.intent, now()
                          from ours, unnest(%s::text[], %s::text[], %s::uuid[], {TREES})
                            as i(context, key, reference, intent)
                          on conflict (store, context, key) do update set
                            reference = excluded.reference, intent_at = now(),
                            intent = {BEGUN_INTENT.format(began="(select started_at from ours)")}
                        )
                        select from ours
                        """,
                        (
                            claim.id,
                            claim.store,
                            column([intent[0] for intent in ordered]),
                            column([intent[1] for intent in ordered]),
                            column([intent[2] for intent in ordered]),
                            trees(json.dumps(intent[3]) for intent in ordered),
                        ),
                    ).fetchall()
                )

        with translated():
            held = retrying(once)
        ours = frozenset(intent[1] for intent in intents if intent[1] in claim.items) if held else frozenset()
        claim.begun.update({intent[:2]: intent[2:] for intent in intents if intent[1] in ours})
        return ours

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is still ours; once this says so, no crash of PostgreSQL makes it anybody else's.

        For what is written without an intent. Locking the row is a change that its commit waits for, and with it for
        everything before.
        """

        def once() -> bool:
            with self.pool.connection() as db:
                return bool(db.execute("select from claims where id = %s for share", (claim.id,)).fetchall())

        with translated():
            return retrying(once)

    # ---------------------------------------------------------------- settle

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        """Write down how each claimed row ended, and give the leases back, in one transaction.

        When the claim is gone its endings are dropped whole (`fenced`): somebody else owns its keys now. Rows of the
        claim that no ending names are given back pending.
        """
        ours = sorted(
            (pair for pair in settled if pair[0].key in claim.items),
            key=lambda pair: (pair[0].context, pair[0].key),
        )
        named = {(ending.context, ending.key) for ending, _ in ours}
        back = [(context, key) for key, rows in claim.items.items() for context in rows if (context, key) not in named]

        def once() -> Settled | None:
            with self.pool.connection() as db:
                if not back and all(_is_plain(claim, ending) for ending, _ in ours):
                    put = self._put(db, claim, ours, plain=True)
                    return Settled(wake=put.wake) if put else None
                with db.pipeline(), db.transaction():
                    return self._settle(db, claim, ours, back)

        with translated():
            done = retrying(once)
        if done is None:
            return Settled(tuple((ending.context, ending.key) for ending, _ in settled))
        fenced = tuple((ending.context, ending.key) for ending, _ in settled if ending.key not in claim.items)
        return Settled(fenced, done.wake)

    def _put(
        self, db: Connection[Any], claim: Claim, ours: Sequence[tuple[Ending, NextRow]], *, plain: bool = False
    ) -> _Put | None:
        """The claim's row goes, its states become what follows, counters and the gates that were tried with them.

        One statement; `None` and nothing done when the claim is gone. `plain` endings leave nothing else behind: should
        a crash of PostgreSQL forget them their keys are looked at once more, so they do not wait for the disk.
        """
        contexts = sorted({context for rows in claim.items.values() for context in rows} | {claim.context})
        row = db.execute(
            _SETTLE,
            {
                "claim": claim.id,
                "plain": plain,
                "store": claim.store,
                "context": claim.context,
                "slot": self.slot,
                "pause": DEAD_PAUSE,
                "held": column(contexts),
                "worked": any(not isinstance(ending.outcome, (Locked, Postponed, Released)) for ending, _ in ours),
                "contexts": column([ending.context for ending, _ in ours]),
                "keys": column([ending.key for ending, _ in ours]),
                "works": column([row.work for _, row in ours]),
                "statuses": column([row.status for _, row in ours]),
                "codes": column([ending.code for ending, _ in ours]),
                "attempts": column([row.attempts for _, row in ours]),
                "looks": column([row.looks for _, row in ours]),
                "waits": column([row.wait for _, row in ours]),
                "finals": column([row.final for _, row in ours]),
                "keeps": column([row.keeps_claim for _, row in ours]),
                "agains": column([row.again for _, row in ours]),
                "demands": column([_demands(claim, ending) for ending, _ in ours]),
            },
        ).fetchone()
        assert row is not None  # noqa: S101 – a select without a table always returns a row
        return _Put(frozenset((claim.store, str(context)) for context in row[1]), str(row[3])) if row[0] else None

    def _settle(
        self,
        db: Connection[Any],
        claim: Claim,
        ours: Sequence[tuple[Ending, NextRow]],
        back: Sequence[tuple[str, str]],
    ) -> Settled | None:
        asks = [ask for ending, _ in ours for ask in _then(claim, ending)]
        if asks or any(isinstance(ending.outcome, (Waiting, Parked)) for ending, _ in ours):
            # The claim first, as expire does: it then leaves us alone, or we find our claim gone.
            if db.execute("select from claims where id = %s for update", (claim.id,)).fetchone() is None:
                return None
            ours, missed = _overtaken(db, claim, ours)
            asks = [*missed, *asks]
        if asks:
            # Rows of other contexts are asked below. Lock them and ours in the one order that everybody follows; rows
            # that are missing are made on the way, for whoever made them later would meet others out of that order.
            places = sorted(
                {(claim.store, ending.context, ending.key) for ending, _ in ours}
                | {(claim.store, *place) for place in back}
                | {(ask.store, ask.context, ask.key) for ask in asks}
            )
            db.execute(
                """
                insert into states as s (store, context, key)
                select * from unnest(%s::int[], %s::text[], %s::text[]) order by 1, 2, 3
                on conflict (store, context, key) do update set key = excluded.key where false
                """,
                tuple(column([place[part] for place in places]) for part in range(3)),
            )
        done = self._put(db, claim, ours)
        if done is None:
            return None
        if back:
            ordered = sorted(back)
            db.execute(
                """
                update states s set work = 'p', claim = null, lane = null,
                  claimed = case when s.status = 'waiting' then s.claimed end
                from unnest(%s::text[], %s::text[]) as b(context, key)
                where s.store = %s and s.context = b.context and s.key = b.key and s.claim = %s
                """,
                (
                    column([place[0] for place in ordered]),
                    column([place[1] for place in ordered]),
                    claim.store,
                    claim.id,
                ),
            )
        remember(db, claim, ours, began=done.began)
        bind(db, claim, ours, began=done.began)
        tell(db, claim, _alarmed(db, claim, ours, self.gate_try))
        asked = db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), asks, self.slot)) if asks else None
        wake = set(done.wake) | {(claim.store, context) for context, _ in back}
        return Settled(wake=frozenset(wake | set(asked.fetchall() if asked else ())))

    def doubt(self, claim: Claim, late: Collection[tuple[str, str]]) -> frozenset[Pair]:
        """What an attempt wrote after its lease may have come last: nobody knows what is shown, and it is asked for.

        No look before a write can keep a process from being stopped between the two, so its successor's word is taken
        back, of these (context, key) as far as the attempt had begun them; of a lot, of all of its records. A record
        that replaces a whole offer may have brought back a listing: the catalogue is doubted with it. Who works on one
        of them now cannot confirm it either (`hub.remembering`). Whom to wake.
        """
        begun = [(*place, *claim.begun[place]) for place in late if place in claim.begun and place[0] != "lot"]
        lots = [int(key) for context, key in late if (context, key) in claim.begun and context == "lot"]
        if not begun and not lots:
            return frozenset()

        def once() -> frozenset[Pair]:
            with self.pool.connection() as db, db.transaction():
                doubted = db.execute(
                    _DOUBT,
                    {
                        "store": claim.store,
                        "contexts": column([context for context, *_ in begun]),
                        "keys": column([key for _, key, *_ in begun]),
                        "references": column([reference for _, _, reference, _ in begun]),
                        "intents": trees(json.dumps(intent) for *_, intent in begun),
                        "lots": lots,
                    },
                ).fetchall()
                asks = [Ask(claim.store, context, key, "recheck", Urgency.FOLLOW) for context, key in doubted]
                return frozenset(db.execute(NOTICES_AND_ENQUEUE, enqueue_parameters((), asks, self.slot)).fetchall())

        with translated():
            return retrying(once)

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
                over = db.execute(
                    """
                    select c.id, c.store, c.contexts, c.keys from claims c left join workers w on w.id = c.worker
                    where c.until < now() or w.until is null or w.until < now()
                    order by c.id limit %s for update of c skip locked
                    """,
                    (limit,),
                ).fetchall()
                if not over:
                    return 0
                claims = [int(row[0]) for row in over]
                held = [
                    (store, context, key, claim)
                    for claim, store, contexts, keys in over
                    for context, key in zip(contexts or (), keys or (), strict=True)
                ]
                if any(row[3] is None for row in over):
                    held += db.execute(  # claims of a version before this one: their keys are in `leases`
                        """
                        select s.store, s.context, s.key, l.claim from leases l
                        join states s on s.store = l.store and s.key = l.key and s.claim = l.claim
                        where l.claim = any(%s)
                        """,
                        (claims,),
                    ).fetchall()
                held.sort()
                freed = db.execute(
                    """
                    update states s set claim = null, lane = null, attempts = least(s.attempts + 1, 32000),
                      claimed = case when s.status = 'waiting' then s.claimed end,
                      work = case when s.status = 'dead' then 's' else 'p' end,
                      due_at = case when s.status = 'dead' then now() + make_interval(secs => %s) end
                    from unnest(%s::int[], %s::text[], %s::text[], %s::int8[]) h(store, context, key, claim)
                    where s.store = h.store and s.context = h.context and s.key = h.key and s.claim = h.claim
                    """,
                    (DEAD_PAUSE, *(column([row[part] for row in held]) for part in range(4))),
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

    def check(self, *, recount: bool = True) -> list[Balance]:
        """Both sides of every conservation law (law 6); `recount` also counts the states themselves.

        All counts are of one snapshot, so the check may run beside full traffic.
        """
        with translated(), self.pool.connection() as db, db.transaction():
            return conserved(db, recount=recount)


# The claim goes first: nobody else ends it then, and without it nothing else happens. A held row is nobody else's to
# end, so what it is claimed for and what it answered stay as they were claimed; only `asked` may have grown.
_SETTLE = """
with mine as materialized (
  delete from claims where id = %(claim)s returning id, started_at
), n as materialized (
  select * from unnest(%(contexts)s::text[], %(keys)s::text[], %(works)s::"char"[], %(statuses)s::text[],
                       %(codes)s::text[], %(attempts)s::int2[], %(looks)s::int2[], %(waits)s::float8[],
                       %(finals)s::bool[], %(keeps)s::bool[], %(agains)s::bool[], %(demands)s::int8[])
    as n(context, key, work, status, code, attempts, looks, wait, final, keeps, again, demands)
), moved as (
  update states s set
    work = case when n.final and s.asked > s.claimed and n.status <> 'dead' then 'p'
                when n.final and s.asked > s.claimed then 's' else n.work end,
    due_at = case when n.final and s.asked > s.claimed and n.status <> 'dead' then null
                  when n.final and s.asked > s.claimed then now() + make_interval(secs => least(n.wait, %(pause)s))
                  when n.work = 's' then now() + make_interval(secs => n.wait) end,
    answered = case when n.final then s.claimed else s.answered end,
    asked = s.asked + (n.again and s.asked = s.claimed)::int,
    claimed = case when n.keeps then s.claimed end,
    claim = null, lane = null, status = n.status, code = n.code, attempts = n.attempts,
    looks = case when s.asked > s.claimed and not n.keeps and n.status <> 'unknown' then 0 else n.looks end,
    heard = (n.final and n.again) or (s.heard and (s.asked > s.claimed or not n.final)),
    pending_since = case when not n.final then s.pending_since
                         when s.asked > s.claimed then coalesce(s.dirty_since, now()) end,
    dirty_since = case when n.keeps then s.dirty_since end,
    answered_at = now()
  from n
  where s.store = %(store)s and s.context = n.context and s.key = n.key and s.claim = (select id from mine)
  returning s.context, s.work, case when n.final then n.demands else 0 end as finished,
            (n.again and case when n.keeps then s.dirty_since is null else s.work = 's' end)::int as again
), tally as (
  insert into counters as c (store, context, source, slot, finished, requested, enqueued)
  select %(store)s, context, 'settle', %(slot)s, sum(finished), sum(again), sum(again) from moved
  group by context having sum(finished) > 0 or sum(again) > 0 order by context
  on conflict (store, context, source, slot) do update set finished = c.finished + excluded.finished,
    requested = c.requested + excluded.requested, enqueued = c.enqueued + excluded.enqueued
), tried as (
  delete from gates where %(worked)s and store = %(store)s and context in (%(context)s, '*')
    and cause in ('credentials', 'quota') and reopens_at <= now() and exists (select from mine)
)
select exists (select from mine), array(
  select context from moved where work = 'p'
  union select c from unnest(%(held)s::text[]) c
  where (select true from states p where p.store = %(store)s and p.context = c and p.work = 'p' limit 1)),
  set_config('synchronous_commit', case when %(plain)s then 'off' else current_setting('synchronous_commit') end, true),
  (select started_at::text from mine)
"""


# An intent that is open stays, with the word that more has happened than it says. A listing that is told as a whole may
# have come back with its price: its catalogue is in doubt although nothing of it was begun.
_DOUBT = f"""
with told as (
  select 1 as rank, * from unnest(%(contexts)s::text[], %(keys)s::text[], %(references)s::uuid[],
                                  {TREES.replace("%s", "%(intents)s")}) as t(context, key, reference, intent)
  union all
  select 1 - r.line, c.context, r.key, (r.record ->> 'reference')::uuid, r.record
  from lot_records r, unnest(r.covers) c(context) where r.lot = any(%(lots)s)
), every as (
  select * from told
  union all
  select 2, 'catalog', key, reference, '{{}}' from told
  where context <> 'catalog' and intent -> 'record' -> 'listing' <> 'null'
), locked as materialized (
  select s.context, s.key, e.reference, e.intent, e.rank from states s
  join every e on e.context = s.context and e.key = s.key
  where s.store = %(store)s order by s.context, s.key for update of s
), put as (
  insert into answers as a (store, context, key, reference, intent, intent_at, doubted_at)
  select distinct on (context, key) %(store)s, context, key, reference, intent || {_LATE}, now(), clock_timestamp()
  from locked order by context, key, rank
  on conflict (store, context, key) do update set confirmed = null, doubted_at = excluded.doubted_at,
    reference = case when a.intent is null then excluded.reference else a.reference end,
    intent = coalesce(a.intent, excluded.intent) || {_LATE}, intent_at = excluded.intent_at
)
select distinct context, key from locked
"""


def _is_plain(claim: Claim, ending: Ending) -> bool:
    """Nothing but the row itself has to be written."""
    if ending.stories or ending.confirmed or ending.binding or _then(claim, ending):
        return False
    if not isinstance(ending.outcome, (Done, Released)):
        return False
    before = claim.items[ending.key].get(ending.context)
    place = (ending.context, ending.key)
    return before is not None and not (before.marked or ending.problems or place in claim.begun)


def _demands(claim: Claim, ending: Ending) -> int:
    row = claim.items[ending.key].get(ending.context)
    return row.demands if row else 0


def _unless_crossed(once: Callable[[], list[tuple[Any, ...]]], *, times: int = 4) -> list[tuple[Any, ...]]:
    """What a claim took; again, after a moment, when another claim of the lane was after the same keys."""
    for turn in range(times):
        try:
            rows = retrying(once)
        except UniqueViolation:  # the unique key of law 2 had the last word: nothing was taken
            rows = [(None,)]
        if not rows or rows[0][0] is not None:
            return rows
        time.sleep(random.uniform(0.001, 0.005) * (turn + 1))  # noqa: S311 – spreads contenders, hides nothing
    return []


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


class GivenUp(NamedTuple):
    """What became of dead rows that were given up.

    `resting`: until they are asked for again. `anew`: they were asked for, or due, since their last try and start anew;
    `wake` are their pairs. `trying`: they are being tried right now and stay as they are.
    """

    resting: int
    anew: int
    trying: int
    wake: frozenset[Pair]


def lay_to_rest(db: Connection[Any], places: Sequence[tuple[int, str, str]]) -> GivenUp:
    """Give dead rows up, in the caller's transaction; nothing that was asked is lost by it."""
    rows = db.execute(
        """
        with dead as (
          select s.store, s.context, s.key, s.work, s.asked > s.answered as anew from states s
          join unnest(%s::int[], %s::text[], %s::text[]) as w(store, context, key) using (store, context, key)
          where s.status = 'dead' order by s.store, s.context, s.key for update of s
        ), moved as (
          update states s set work = case when d.anew then 'p'::"char" else 'i' end, attempts = 0, due_at = null,
            status = 'new', code = null
          from dead d where d.work <> 'h' and s.store = d.store and s.context = d.context and s.key = d.key
        )
        select store, context, count(*) filter (where work <> 'h' and not anew),
               count(*) filter (where work <> 'h' and anew), count(*) filter (where work = 'h')
        from dead group by 1, 2
        """,
        ([place[0] for place in places], [place[1] for place in places], [place[2] for place in places]),
    ).fetchall()
    resting, anew, trying = (sum(row[column] for row in rows) for column in (2, 3, 4))
    return GivenUp(resting, anew, trying, frozenset((row[0], row[1]) for row in rows if row[3]))


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


def _then(claim: Claim, ending: Ending) -> tuple[Ask, ...]:
    """What an answer made necessary; what a load asked for goes on being a load's."""
    outcome = ending.outcome
    then = outcome.then if isinstance(outcome, (Done, Parked, Postponed, Refused)) else ()
    rows = claim.items.get(ending.key, {})
    if then and rows and all(row.urgency >= Urgency.LOAD for row in rows.values()):
        return tuple(replace(ask, urgency=max(ask.urgency, Urgency.LOAD)) for ask in then)
    return then


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
                missing=bool(outcome.get("missing")),
            )
    return found
