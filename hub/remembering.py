"""What an ending leaves behind beside its row: what is known, which listing is whose, what there is to tell.

`answers`, `bindings` and `interactions` are written in the transaction that settles the rows, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from psycopg import Connection

from hub import messages
from hub.db import TREES, trees
from hub.model import BindingState, Claim, Row
from hub.outcome import (
    Done,
    Ending,
    Failed,
    Locked,
    NextRow,
    Outcome,
    Parked,
    Postponed,
    Refused,
    Released,
    Unknown,
    Waiting,
)
from hub.privacy import masked


def remember(db: Connection[Any], claim: Claim, ours: Sequence[tuple[Ending, NextRow]], *, began: str) -> None:
    """Keep in `answers` what the endings taught, and wipe what they make untrue; an unchanged row is not touched.

    `began`: when the claim was taken, as PostgreSQL writes it. What has been doubted since stays so (`Ledger.doubt`).
    """
    words: list[tuple[Any, ...]] = []
    known: dict[tuple[str, str], tuple[str | None, str | None]] = {}  # value, listing
    undone: set[tuple[str, str]] = set()
    for ending, row in ours:
        before = claim.items[ending.key].get(ending.context) or Row(ending.context, ending.key, 0)
        outcome, place = ending.outcome, (ending.context, ending.key)
        if before.resolved is not None and (before.intent or {}).get("doubted"):
            ending = replace(ending, confirmed={}, definite=False)  # the lot was answered before something came late
        for context, value in ending.confirmed.items():
            known[context, ending.key] = json.dumps(value), ending.listing
        # An intent that was open before this attempt stays in doubt until the marketplace answers for good; one of
        # this attempt also does when its answer may have been lost, is still to come, or was good for a part of it.
        if before.intent is not None:
            if ending.definite:
                known.setdefault(place, (None, None))
        elif place in claim.begun and not (ending.partly or _unanswered(ending)):
            undone.add(place)
        if _says_nothing(ending, before):
            continue
        words.append(
            (
                *place,
                json.dumps([problem.as_json() for problem in ending.problems]),
                outcome.why if isinstance(outcome, (Failed, Unknown, Postponed, Locked)) else None,
                _ticket(outcome, before, row),
                outcome.on if isinstance(outcome, Parked) else None,
                _refused_hash(outcome, before),
            )
        )
    if words:
        words.sort(key=lambda row: row[:2])
        db.execute(
            f"""
            insert into answers as a (store, context, key, problems, why, ticket, parked_on, input_hash)
            select %s, * from unnest(%s::text[], %s::text[], {TREES}, %s::text[], %s::text[], %s::text[],
                                     %s::text[])
            on conflict (store, context, key) do update set
              problems = excluded.problems, why = excluded.why, ticket = excluded.ticket,
              parked_on = excluded.parked_on, input_hash = excluded.input_hash
            """,
            (
                claim.store,
                [row[0] for row in words],
                [row[1] for row in words],
                trees(row[2] for row in words),
                *([row[column] for row in words] for column in range(3, 7)),
            ),
        )
    gone = sorted(undone - known.keys())
    if gone:
        db.execute(
            """
            update answers a set intent = null, reference = null, intent_at = null
            from unnest(%s::text[], %s::text[]) as u(context, key)
            where a.store = %s and a.context = u.context and a.key = u.key
              and (a.doubted_at > %s::timestamptz) is not true
            """,
            ([place[0] for place in gone], [place[1] for place in gone], claim.store, began),
        )
    if known:
        values = sorted(known.items())
        db.execute(
            f"""
            insert into answers as a (store, context, key, confirmed, confirmed_at)
            select %s, v.context, v.key, case when v.listing is null or exists (
                select from bindings b where b.store = %s and b.sku = v.key and b.remote_id = v.listing
              ) then v.value end, now()
            from unnest(%s::text[], %s::text[], {TREES}, %s::text[]) as v(context, key, value, listing)
            on conflict (store, context, key) do update set confirmed = excluded.confirmed, confirmed_at = now(),
              intent = null, reference = null, intent_at = null
            where (a.doubted_at > %s::timestamptz) is not true
            """,
            (
                claim.store,
                claim.store,
                [place[0] for place, _ in values],
                [place[1] for place, _ in values],
                trees(value for _, (value, _) in values),
                [listing for _, (_, listing) in values],
                began,
            ),
        )


def _unanswered(ending: Ending) -> bool:
    """Whether the write of this attempt was done is not known, or not yet."""
    return not ending.definite and isinstance(ending.outcome, (Failed, Unknown, Waiting))


def _says_nothing(ending: Ending, before: Row) -> bool:
    """There is nothing to write down about the row, or what is written there still holds."""
    match ending.outcome:
        case Done():
            return not (before.marked or ending.problems)
        case Refused(input_hash=same):
            return same is not None and same == before.input_hash and not ending.problems  # not sent again (RES-13)
        case Released() | Postponed(scope="store"):
            return True
        case _:
            return False


def _refused_hash(outcome: Outcome, before: Row) -> str | None:
    """The input that is not sent again; an attempt that said nothing about it leaves it as it was."""
    if isinstance(outcome, Refused):
        return outcome.input_hash
    return before.input_hash if isinstance(outcome, (Failed, Unknown, Postponed, Locked)) else None


def _ticket(outcome: Outcome, before: Row, row: NextRow) -> str | None:
    """The receipt to keep: a new one, or the old one while its answer could not be fetched."""
    if isinstance(outcome, Waiting):
        return outcome.ticket
    return before.ticket if row.status == "waiting" else None


def bind(db: Connection[Any], claim: Claim, ours: Sequence[tuple[Ending, NextRow]], *, began: str) -> None:
    """Keep the pairs VTEX SKU ↔ listing; a deleted listing takes its snapshots with it (7.5).

    Not what was doubted since the claim `began`: the listing may be back.
    """
    for ending, _ in ours:
        binding = ending.binding
        if binding is None:
            continue
        if binding.state is BindingState.DELETED:
            db.execute("delete from bindings where store = %s and sku = %s", (claim.store, binding.sku))
            db.execute(
                """
                update answers set confirmed = null, intent = null, reference = null, intent_at = null
                where store = %s and key = %s and context in ('catalog', 'price', 'stock')
                  and (doubted_at > %s::timestamptz) is not true
                """,
                (claim.store, binding.sku, began),
            )
            continue
        db.execute(
            """
            insert into bindings (store, sku, product, remote_id, link, state) values (%s, %s, %s, %s, %s, %s)
            on conflict (store, sku) do update set product = excluded.product, remote_id = excluded.remote_id,
              link = excluded.link, state = excluded.state, changed_at = now()
            """,
            (claim.store, binding.sku, binding.product, binding.remote_id, binding.link, binding.state.value),
        )


def tell(db: Connection[Any], claim: Claim, ours: Sequence[tuple[Ending, NextRow]]) -> None:
    """One row of `interactions` per story, masked (LOG-09); the log status follows from the code (vtex.md 15).

    The stories of one attempt are a microsecond apart, so that they are read in the order in which they were told.
    """
    rows = [
        (
            ending.context,
            ending.key,
            story.operation,
            story.direction,
            story.code,
            messages.entry(story.code).status,
            row.attempts,
        )
        for ending, row in ours
        for story in ending.stories
    ]
    contents = [
        (
            *(
                None if tree is None else json.dumps(masked(tree))
                for tree in (story.source, story.translated, story.destination)
            ),
            json.dumps(masked([problem.as_json() for problem in story.problems])),
            json.dumps(masked(story.params)),
        )
        for ending, _ in ours
        for story in ending.stories
    ]
    if rows:
        db.execute(
            f"""
            insert into interactions (store, context, key, operation, direction, code, status, attempt, source,
                                      translated, destination, problems, params, at)
            select %s, s.context, s.key, s.operation, s.direction, s.code, s.status, s.attempt, s.source,
                   s.translated, s.destination, s.problems, s.params, now() + s.place * interval '1 microsecond'
            from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[],
                        {", ".join([TREES] * 5)}) with ordinality
              as s(context, key, operation, direction, code, status, attempt, source, translated, destination,
                   problems, params, place)
            """,
            (
                claim.store,
                *([row[column] for row in rows] for column in range(7)),
                *(trees(content[column] for content in contents) for column in range(5)),
            ),
        )
