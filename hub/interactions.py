"""What happened to one store on one day, newest first, in the words and shape of VTEX's logs endpoint (vtex.md 15.2).

Reads only, and only through an index: whatever is asked for costs one page, and nobody reads another store's records.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub import messages
from hub.db import translated
from hub.errors import Problem
from hub.messages import Language, Status
from hub.model import JsonTree

OPERATIONS: Final = (
    "Catalog change",
    "Offer creation",
    "Price update",
    "Inventory update",
    "Order status update",
    "Invoice sending",
    "Tracking code sending",
    "Order creation",
    "Order cancellation",
    "Mapping",
    "Configuration",
)
"""The words of vtex.md 15.2."""

ORDER_CONTEXTS: Final = ("order", "fulfilment")
"""Contexts whose key is a marketplace order id; in the others it is a SKU id, or a page."""

MOST_SKIPPED: Final = 10_000
"""Records that numbered pages reach; cursors go on from there."""

_CURSOR: Final = re.compile(r"([0-9]{14,17})-([0-9a-f]{32})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two records: the one it follows."""

    at: datetime
    id: uuid.UUID

    def __str__(self) -> str:
        return f"{(self.at - _EPOCH) // timedelta(microseconds=1)}-{self.id.hex}"

    @staticmethod
    def parse(text: str) -> Cursor | None:
        """What `str` wrote; `None` for anything else."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            return None
        return Cursor(_EPOCH + timedelta(microseconds=int(found[1])), uuid.UUID(found[2]))


@dataclass(frozen=True, slots=True)
class Question:
    """Which records are meant: one day (UTC) of a store; empty fields mean all.

    `page` from 1, `size` records each; `after` instead of a page goes on behind a record, at any depth.
    """

    day: date
    statuses: frozenset[Status] = frozenset()
    operation: str | None = None
    context: str | None = None
    sku: str | None = None
    order: str | None = None
    page: int = 1
    size: int = 100
    after: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Interaction:
    """One record. Contents are as they were kept: masked JSON trees or texts."""

    id: uuid.UUID
    at: datetime
    context: str
    key: str
    operation: str
    direction: str
    code: str
    status: Status
    source: JsonTree
    translated: JsonTree
    destination: JsonTree
    problems: tuple[Problem, ...]
    params: Mapping[str, str]

    def message(self, language: Language) -> str:
        """What happened and what to do, with every problem at once (LOG-08)."""
        return business_message(self.code, language, self.params, self.problems)

    def as_vtex(self, language: Language) -> dict[str, str]:
        """The documented record; the misspelt key has its correct twin beside it (LOG-04)."""
        translated_text = _text(self.translated)
        return {
            "id": str(self.id),
            "Operation": self.operation,
            "Direction": self.direction,
            "ContentSource": _text(self.source),
            "ContentTransalted": translated_text,
            "ContentTranslated": translated_text,
            "ContentDestination": _text(self.destination),
            "BusinessMessage": self.message(language),
            "Status": self.status,
        }


@dataclass(frozen=True, slots=True)
class Page:
    """Some records and where they stand. `total` stops counting at `MOST_SKIPPED`: `exact` is false then.

    `following` leads to the records after these; `None` when there are none. `total` is `None` behind a cursor.
    """

    records: tuple[Interaction, ...]
    total: int | None
    exact: bool
    following: Cursor | None


def read_day(pool: ConnectionPool[Connection[tuple[Any, ...]]], store: int, question: Question) -> Page:
    """The records of a store that a question means. `StorageAway` when PostgreSQL cannot answer."""
    begin = datetime.combine(question.day, time(), UTC)
    values: dict[str, Any] = {
        "store": store,
        "begin": begin,
        "end": begin + timedelta(days=1),
        "statuses": sorted(question.statuses),
        "operation": question.operation,
        "context": question.context,
        "key": question.sku or question.order,
        "orders": list(ORDER_CONTEXTS),
        "size": question.size + 1,
        "skip": 0 if question.after else (question.page - 1) * question.size,
        "most": MOST_SKIPPED + 1,
    }
    conditions = ["store = %(store)s", "at >= %(begin)s", "at < %(end)s"]
    if question.statuses:
        conditions.append("status = any(%(statuses)s::text[])")
        if "success" not in question.statuses:
            conditions.append("status <> 'success'")  # said in so many words, or the partial index is not used
    if question.operation:
        conditions.append("operation = %(operation)s")
    if question.context:
        conditions.append("context = %(context)s")
    if question.sku or question.order:
        conditions.append("key = %(key)s")
        conditions.append("context = any(%(orders)s)" if question.order else "context <> all(%(orders)s)")
    where = " and ".join(conditions)
    behind = ""
    if question.after:
        behind = " and at <= %(after)s and (at < %(after)s or id > %(after_id)s)"
        values |= {"after": question.after.at, "after_id": question.after.id}
    with translated(), pool.connection() as db:
        rows = db.execute(
            "select id, at, context, key, operation, direction, code, status, source, translated, destination, "
            f"problems, params from interactions where {where}{behind} order by at desc, id "
            "limit %(size)s offset %(skip)s",
            values,
        ).fetchall()
        counted = None
        if question.after is None:
            counted = db.execute(
                f"select count(*) from (select from interactions where {where} limit %(most)s) as counted", values
            ).fetchone()
    records = tuple(_interaction(row) for row in rows[: question.size])
    total = int(counted[0]) if counted else None
    return Page(
        records,
        None if total is None else min(total, MOST_SKIPPED),
        exact=total is not None and total <= MOST_SKIPPED,
        following=Cursor(records[-1].at, records[-1].id) if len(rows) > question.size else None,
    )


def business_message(code: str, language: Language, params: Mapping[str, str], problems: Sequence[Problem] = ()) -> str:
    """A code's text in a language; then what other codes say, then every problem that none of them names yet."""
    known = messages.catalogue()
    sentences = [sentence for sentence in (problem.sentence() for problem in problems) if sentence]
    filled = {"errors": "; ".join(sentences)}
    for problem in problems:
        filled |= problem.params
    filled |= {name: value for name, value in params.items() if value}
    told = [messages.text(code, language, filled)] if code in known else [code]
    for problem in problems:
        if problem.code in known and problem.code != code:
            said = messages.text(problem.code, language, {**filled, **problem.params})
            told += [said] if said not in told else []
    told += [f"– {one}" for one in dict.fromkeys(sentences) if not any(one in text for text in told)]
    return "\n".join(told)


def _interaction(row: Sequence[Any]) -> Interaction:
    problems = tuple(Problem.from_json(problem) for problem in row[11])
    params = {str(name): str(value) for name, value in row[12].items()}
    values = (*row[:11], problems, params)
    return Interaction(*values)


def _text(tree: JsonTree) -> str:
    """A content as the endpoint shows it: texts as they are, trees as JSON, nothing as an empty text."""
    if tree is None:
        return ""
    return tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
