"""VTEX category → marketplace category, as a table that people exchange as CSV.

Saving a mapping releases exactly what was parked on its category, and has everything looked at again that is listed
under a category whose target changed; nothing else is touched.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import retrying, translated
from hub.errors import BadInput, Problem
from hub.ledger import COMMAND_SLOT, Ledger, Pair
from hub.model import LARGEST_ID, Ask, Urgency, vtex_id
from hub.parsing import suggestion

COLUMNS: Final = ("category", "remote", "name")
LARGEST: Final = 16 * 1_048_576
MOST_ROWS: Final = 200_000
LONGEST: Final = {"category": 100, "remote": 200, "name": 500}
BATCH: Final = 5_000
LOCKS: Final = 500  # categories released at once: PostgreSQL has room for a few thousand locks

Pool = ConnectionPool[Connection[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class CategoryMapping:
    """One VTEX category and the marketplace category it is listed under; `name` is for people."""

    category: str
    remote: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """One row of the table, with how many SKUs wait for the category. `remote` is empty while it is not mapped."""

    category: str
    remote: str
    name: str
    waiting: int
    changed_at: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """What saving does, or would do: rows, and SKUs looked at again because of it.

    `released` were parked on one of the categories; `listed` are listed under a target that changes; `refused` were
    refused before and are looked at again because some target changes (the same is not sent twice). Those that are
    being listed in the very moment are looked at again as well, and not counted.
    """

    new: int
    changed: int
    unchanged: int
    released: int
    listed: int
    refused: int


def read(raw: bytes, remotes: Mapping[str, str] | None = None) -> list[CategoryMapping]:
    """The rows of a CSV file with the columns category, remote and name (which may be missing).

    UTF-8, separated by comma or semicolon. `remotes` are the marketplace's categories, id → name: where given, others
    are refused. `BadInput` with every problem, each with its row as a spreadsheet counts it.
    """
    if len(raw) > LARGEST:
        raise BadInput([Problem("input", "file", f"{len(raw)} bytes", f"split it: at most {LARGEST} bytes at once")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw[: fault.start].count(b"\n") + 1
        raise BadInput([Problem("input", f"row {line}", "", "is no UTF-8 text; save the file as CSV UTF-8")]) from None
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 0  # of the last row that could be read
    problems: list[Problem] = []
    try:
        names = [name.strip().lower() for name in next(lines, [])]
        number = 1
        problems += _header_problems(names)
        if problems:
            raise BadInput(problems)
        rows: list[CategoryMapping] = []
        first: dict[str, tuple[int, str]] = {}
        for number, cells in enumerate(lines, start=2):
            if not any(cell.strip() for cell in cells):
                continue
            if len(rows) >= MOST_ROWS:
                problems.append(Problem("input", f"row {number}", "", f"split the file: at most {MOST_ROWS} rows"))
                break
            fields = {name: cell.strip() for name, cell in zip(names, cells, strict=False)}
            row = CategoryMapping(fields.get("category", ""), fields.get("remote", ""), fields.get("name", ""))
            problems += _row_problems(number, len(cells) - len(names), row, first, remotes)
            rows.append(row)
    except csv.Error as fault:
        raise BadInput([*problems, Problem("input", f"row {number + 1}", "", _unreadable(str(fault)))]) from None
    if not rows and not problems:
        problems.append(Problem("input", "file", "", "holds no row below its header"))
    if problems:
        raise BadInput(problems)
    named = remotes or {}
    unique = {row.category: row for row in rows}
    return [CategoryMapping(row.category, row.remote, row.name or named.get(row.remote, "")) for row in unique.values()]


def _unreadable(said: str) -> str:
    """What to do about an error of `csv`."""
    if "unexpected end of data" in said:
        return "begins a text with a quote that is never closed; close it"
    if "field larger" in said:
        return f"holds a text of more than {csv.field_size_limit()} characters; look for a quote that is never closed"
    if "expected after" in said:
        return "has something behind the quote that closes a text; write a quote within a text twice"
    return f"is not readable: {said}"


def _header_problems(names: Sequence[str]) -> Iterator[Problem]:
    for name in COLUMNS[:2]:
        if name not in names:
            yield Problem(
                "input", "row 1", ",".join(names)[:80], f"the column {name} is missing; write category,remote,name"
            )
    for name in dict.fromkeys(names):
        if name not in COLUMNS:
            yield Problem("input", "row 1", name[:80], f"is no column; {suggestion(name, COLUMNS)}")
        elif names.count(name) > 1:
            yield Problem("input", "row 1", name, "is there twice; keep one")


def _row_problems(
    number: int, extra: int, row: CategoryMapping, first: dict[str, tuple[int, str]], remotes: Mapping[str, str] | None
) -> Iterator[Problem]:
    place = f"row {number}"
    if extra > 0:
        yield Problem("input", place, "", f"has {extra} cells too many; put a text with commas in quotes")
    for field, value in (("category", row.category), ("remote", row.remote), ("name", row.name)):
        if not value and field != "name":
            yield Problem("input", f"{place}, {field}", "", "is empty; fill it, or leave the row out")
        if len(value) > LONGEST[field]:
            fix = f"shorten it to {LONGEST[field]} characters"
            yield Problem("input", f"{place}, {field}", f"{value[:40]}…", fix)
        if "\x00" in value:
            yield Problem("input", f"{place}, {field}", "", "holds a NUL character; remove it")
    if row.category and vtex_id(row.category) != row.category:
        fix = f"write the number of the VTEX category: 1 to {LARGEST_ID}, without zeros in front"
        yield Problem("input", f"{place}, category", row.category[:80], fix)
    if row.category:
        before = first.setdefault(row.category, (number, row.remote))
        if before[0] != number and before[1] != row.remote:
            fix = f"row {before[0]} maps it to {before[1]!r}; keep one of them"
            yield Problem("input", f"{place}, category", row.category[:80], fix)
    if remotes is not None and row.remote and row.remote not in remotes:
        yield Problem("input", f"{place}, remote", row.remote[:80], f"is no category there; {_nearest(row, remotes)}")


def _nearest(row: CategoryMapping, remotes: Mapping[str, str]) -> str:
    for identity, name in remotes.items():
        if row.remote.casefold() == name.casefold():
            return f"write its id {identity!r} instead of its name"
    by_name = {name: identity for identity, name in remotes.items()}
    close = suggestion(row.name, by_name) if row.name and len(remotes) <= 20_000 else ""
    if close.startswith("did you mean"):
        chosen = close.removeprefix("did you mean '").removesuffix("'?")
        return f"did you mean {by_name.get(chosen, '')!r} ({chosen})?"
    return suggestion(row.remote, remotes) if len(remotes) <= 20_000 else "see the marketplace's list"


def write(rows: Sequence[Kept]) -> str:
    """CSV that `read` understands; `waiting` is left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((row.category, row.remote, row.name) for row in rows)
    return out.getvalue()


def kept(pool: Pool, store: int, *, missing: bool = False) -> list[Kept]:
    """The table of a store with the categories that SKUs wait for; only those not mapped yet with `missing`."""
    with translated(), pool.connection() as db:
        rows = db.execute(
            """
            with parked as (
              select substr(a.parked_on, 9) as category, count(*) as n
              from answers a join states s using (store, context, key)
              where a.store = %(store)s and a.parked_on like 'mapping:%%' and s.status = 'parked' group by 1
            )
            select coalesce(m.category, p.category), coalesce(m.remote, ''), coalesce(m.name, ''), coalesce(p.n, 0),
                   to_char(m.changed_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
            from (select * from mappings where store = %(store)s) m full join parked p on p.category = m.category
            where not %(missing)s or m.category is null order by 1
            """,
            {"store": store, "missing": missing},
        ).fetchall()
    return [Kept(*row) for row in rows]


def plan(pool: Pool, store: int, rows: Sequence[CategoryMapping]) -> Change:
    """What `save` would do; changes nothing."""
    return _difference(pool, store, rows)[0]


def save(
    pool: Pool,
    store: int,
    rows: Sequence[CategoryMapping],
    *,
    who: str,
    why: str = "",
    ledger: Ledger | None = None,
) -> tuple[Change, frozenset[Pair]]:
    """Keep these rows (others stay as they are) and have looked at what they concern; also whom to wake.

    The table is kept first, in one transaction: whoever reads a SKU meanwhile sees it, and whoever is just parking one
    is waited for. `ledger`: this process's own, where it has one.
    """
    change, left = _difference(pool, store, rows)

    def keep() -> None:
        with pool.connection() as db, db.transaction():
            ordered = sorted(rows, key=lambda row: row.category)
            db.execute(
                """
                insert into mappings as m (store, category, remote, name, version)
                select %s, w.category, w.remote, w.name, nextval('mapping_version')
                from unnest(%s::text[], %s::text[], %s::text[]) as w(category, remote, name) order by w.category
                on conflict (store, category) do update set name = excluded.name, remote = excluded.remote,
                  version = case when m.remote = excluded.remote then m.version else excluded.version end,
                  changed_at = case when m.remote = excluded.remote then m.changed_at else now() end
                where (m.remote, m.name) is distinct from (excluded.remote, excluded.name)
                """,
                (
                    store,
                    [row.category for row in ordered],
                    [row.remote for row in ordered],
                    [row.name for row in ordered],
                ),
            )
            detail = {"why": why, "new": change.new, "changed": change.changed}
            db.execute(
                "insert into audit (who, action, store, detail) values (%s, 'mappings import', %s, %s)",
                (who, store, json.dumps(detail)),
            )

    with translated():
        retrying(keep)
    ledger = ledger or Ledger(pool, COMMAND_SLOT)
    # What was parked while the table was being kept is found now, so that nobody waits for a mapping that is there.
    parked = {(context, key) for context, key in _parked(pool, store, [row.category for row in rows])}
    wake: set[Pair] = set()
    for start in range(0, len(rows), LOCKS):
        wake |= ledger.release(store, *(f"mapping:{row.category}" for row in rows[start : start + LOCKS]))
    touched = _concerned(pool, store, left)
    asks = [Ask(store, "catalog", key, "release", Urgency.FOLLOW) for key in touched if ("catalog", key) not in parked]
    for start in range(0, len(asks), BATCH):
        wake |= ledger.enqueue(asks[start : start + BATCH])
    return Change(change.new, change.changed, change.unchanged, len(parked), change.listed, change.refused), frozenset(
        wake
    )


def _difference(pool: Pool, store: int, rows: Sequence[CategoryMapping]) -> tuple[Change, list[str]]:
    """Counts, and the targets that some category would have no longer."""
    with translated(), pool.connection() as db:
        found = db.execute("select category, remote, name from mappings where store = %s", (store,)).fetchall()
        before = {category: (remote, name) for category, remote, name in found}
        new = [row for row in rows if row.category not in before]
        moved = [row for row in rows if row.category in before and before[row.category][0] != row.remote]
        left = sorted({before[row.category][0] for row in moved})
        listed = _keys(
            db,
            """
            select a.key from answers a join bindings b on b.store = a.store and b.sku = a.key
            where a.store = %s and a.context = 'catalog' and a.confirmed -> 'listing' ->> 'category' = any(%s)
            """,
            (store, left),
        )
        refused = _keys(
            db,
            "select key from states where store = %s and context = 'catalog' and status = 'refused' and %s::bool",
            (store, bool(moved)),
        )
    parked = _parked(pool, store, [row.category for row in rows])
    same = len(rows) - len(new) - len(moved)
    return Change(len(new), len(moved), same, len(parked), len(listed), len(set(refused) - set(listed))), left


def _concerned(pool: Pool, store: int, left: Sequence[str]) -> list[str]:
    """SKUs that are listed under a target which was left, or refused, or about to be written.

    Asked when the table is kept: whoever reads the table now reads the new one. Who has read the old one holds his row,
    or has begun to write what he made of it, or is done and it is listed: one look at the tables finds him.
    """

    def once() -> list[str]:
        with pool.connection() as db:
            return _keys(
                db,
                """
                select key from states
                where store = %s and context = 'catalog' and (claim is not null or status = 'refused')
                union
                select key from answers where store = %s and context = 'catalog'
                  and (intent -> 'record' -> 'listing' ->> 'category' = any(%s)
                       or confirmed -> 'listing' ->> 'category' = any(%s))
                order by 1
                """,
                (store, store, list(left), list(left)),
            )

    with translated():
        return retrying(once) if left else []


def _keys(db: Connection[tuple[Any, ...]], query: str, values: tuple[Any, ...]) -> list[str]:
    return [str(row[0]) for row in db.execute(query.encode(), values).fetchall()]


def _parked(pool: Pool, store: int, categories: Sequence[str]) -> list[tuple[str, str]]:
    with translated(), pool.connection() as db:
        return [
            (str(context), str(key))
            for context, key in (
                db.execute(
                    """
                    select s.context, s.key from answers a join states s using (store, context, key)
                    where a.store = %s and a.parked_on = any(%s) and s.status = 'parked'
                    """,
                    (store, [f"mapping:{category}" for category in categories]),
                ).fetchall()
            )
        ]
