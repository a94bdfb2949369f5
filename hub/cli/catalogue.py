"""`hub sku` and `hub mappings`: why a SKU shows as it does, and under which category."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hub.cli import desk
from hub.cli.talk import (
    MISSING,
    PROBLEMS,
    DryRun,
    Group,
    Json,
    Reason,
    StoreName,
    Yes,
    age,
    agreed,
    refuse,
    say,
    tell,
    tell_table,
    who,
)
from hub.errors import BadInput, Problem
from hub.model import LARGEST_ID, vtex_id

if TYPE_CHECKING:
    from hub.explain import Explanation
    from hub.reports import KeyState

sku_app = typer.Typer(cls=Group, help="One SKU: why it shows as it does, and sending it again.", no_args_is_help=True)
mappings_app = typer.Typer(cls=Group, help="Which marketplace category a VTEX category is.", no_args_is_help=True)

Sku = Annotated[str, typer.Argument(metavar="SKU", help="VTEX SKU id.")]


def register(app: typer.Typer) -> None:
    """Make these commands known."""
    app.add_typer(sku_app, name="sku", rich_help_panel="Stores and catalogue")
    app.add_typer(mappings_app, name="mappings", rich_help_panel="Stores and catalogue")


# ---------------------------------------------------------------- one SKU


@sku_app.command("explain")
def explain(
    store: StoreName,
    sku: Sku,
    language: Annotated[str, typer.Option(help="Of the messages: en, pt or es.")] = "en",
    as_json: Json = False,
) -> None:
    """Ask both sides now: each check with fact, age and verdict; then who must act. Exit 1 when one fails."""
    from hub.explain import explain as explained
    from hub.ledger import Ledger
    from hub.messages import LANGUAGES

    if language not in LANGUAGES:
        refuse("--language", language, f"use one of {', '.join(LANGUAGES)}")
    (sku,) = sku_ids([sku])
    with desk.opened() as at:
        found = at.store(store)
        told = explained(
            at.link(store),
            at.pool,
            sku,
            status=found.status,
            gates=[gate for gate in Ledger(at.pool).gates() if gate.store == found.id],
            circuits=at.links.transport.circuits.status(store),
            language=language,
        )
    if not told.known:
        tell(asdict(told))
        say(f"neither VTEX nor the hub knows SKU {sku}")
        raise typer.Exit(MISSING)
    tell(asdict(told), "\n".join(_explained(told)))
    if not told.well:
        raise typer.Exit(PROBLEMS)


_SIGNS = {"pass": "✓", "warn": "!", "fail": "✗", "unknown": "?"}
_ACTORS = {"vtex": "VTEX"}
_WORK = {"i": "at rest", "p": "pending", "h": "under way", "s": "scheduled"}


def _explained(told: Explanation) -> Iterator[str]:
    acting = (
        "" if told.actor == "nobody" or told.well else f" – {_ACTORS.get(told.actor, f'the {told.actor}')} must act"
    )
    yield f"{told.headline}{acting}  {told.link}".rstrip()
    yield ""
    yield "   check                     fact"
    for check in told.checks:
        read = "" if check.age is None else " (read now)" if check.age == 0 else f" ({age(check.age)} ago)"
        yield f"{_SIGNS[check.verdict]} {check.number:>2} {check.name:<24} {check.fact}{read}"
    yield ""
    yield "what                VTEX now             by the rules         confirmed            shown now"
    for value in told.values:
        since = f" ({age(value.confirmed_age)})" if value.confirmed_age is not None else ""
        sign = {True: "✓", False: "✗ differs", None: ""}[value.agrees]
        cells = (value.name, value.vtex, value.wanted, value.confirmed + since, value.shown)
        yield " ".join(f"{_short(cell):<20}" for cell in cells).rstrip() + f"  {sign}"
    yield ""
    for row in told.rows:
        yield row_sentence(row)
    if not told.rows:
        yield "the hub was never asked for it"
    yield f"next      {told.next_step}"
    for one in told.advice:
        yield ""
        yield f"{one.code:<4} {one.actor:<12} {one.message}"
        yield f"     {'':<12} → {one.do}"


def row_sentence(row: KeyState) -> str:
    """What the hub keeps of a key in one context."""
    parts = [f"{row.context:<9} {row.status}, {_WORK.get(row.work, row.work)}"]
    if row.code:
        parts.append(f"code {row.code}")
    if row.attempts:
        parts.append(f"{row.attempts} failed attempts")
    if row.demands and row.pending is not None:
        parts.append(f"asked {age(row.pending)} ago")
    if row.due is not None:
        parts.append(f"due in {age(row.due)}" if row.due > 0 else "due now")
    if row.answered is not None:
        parts.append(f"last answer {age(row.answered)} ago")
    if row.parked_on:
        parts.append(f"waits for {row.parked_on}")
    if row.begun is not None:
        parts.append(f"a write began {age(row.begun)} ago and is in doubt")
    return ", ".join(parts) + (f": {row.why}" if row.why else "")


def _short(text: str) -> str:
    return text if len(text) <= 20 else text[:19] + "…"


@sku_app.command()
def resend(
    store: StoreName,
    sku: Annotated[list[str], typer.Argument(metavar="SKU...", help="VTEX SKU ids.")],
    context: Annotated[list[str] | None, typer.Option(help="catalog, price or stock; may be repeated.")] = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Send SKUs again, even what seems unchanged, was refused or is dead."""
    from hub.resending import CONTEXTS
    from hub.resending import resend as send

    for name in context or ():
        if name not in CONTEXTS:
            refuse("--context", name, f"use one of {', '.join(CONTEXTS)}")
    sku = sku_ids(sku)
    contexts = tuple(context or CONTEXTS)
    with desk.opened() as at:
        found = at.store(store)
        if not dry_run:
            send(at.pool, found.id, sku, who=who(), why=reason, contexts=contexts)
            at.wake(store, *contexts)
    many = f"{len(sku)} SKU{'s' * (len(sku) > 1)}"
    said = f"{many} {'would be' if dry_run else 'will be'} sent again ({', '.join(contexts)})"
    tell({"store": store, "skus": sku, "contexts": contexts, "changed": not dry_run}, said)


def sku_ids(given: Sequence[str]) -> list[str]:
    """These SKU ids as VTEX writes them. `BadInput` with every one that can be none, by the intake's rule."""
    ids = [(text, vtex_id(text)) for text in given]
    fix = f"write a VTEX SKU id: a whole number from 1 to {LARGEST_ID}"
    wrong = [Problem("input", field="SKU", value=text[:80] or "empty", fix=fix) for text, one in ids if one is None]
    if wrong:
        raise BadInput(wrong)
    return list(dict.fromkeys(one for _, one in ids if one is not None))


# ---------------------------------------------------------------- mappings


@mappings_app.command("import")
def import_(
    store: StoreName,
    file: Annotated[str, typer.Argument(metavar="FILE", help="CSV with category,remote,name; - for standard input.")],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Refuse categories that the marketplace does not have.")
    ] = True,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Save mappings; what waits for one of these categories is released. Rows that are not in the file stay."""
    from hub import mappings

    raw = _read(file)
    with desk.opened() as at:
        found = at.store(store)
        remotes = at.link(store).marketplace.categories() if check else None
        rows = mappings.read(raw, remotes)
        change = mappings.plan(at.pool, found.id, rows)
        plan = (
            f"{len(rows)} rows: {change.new} new, {change.changed} with another target, {change.unchanged} unchanged; "
            f"{change.released} SKUs wait for them, {change.listed + change.refused} more are looked at again"
        )
        if dry_run:
            tell({"store": store, "saved": False, **asdict(change)}, f"{plan}; nothing was changed")
            return
        if change.changed:
            agreed(plan, yes=yes or not change.listed)
        change, _ = mappings.save(at.pool, found.id, rows, who=who(), why=reason)
        at.wake(store, "catalog")
    text = (
        f"saved {len(rows)} rows ({change.new} new, {change.changed} changed); released {change.released} SKUs that "
        f"waited, {change.listed + change.refused} more are looked at again"
    )
    tell({"store": store, "saved": True, **asdict(change)}, text)


@mappings_app.command("export")
def export(
    store: StoreName,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Default: standard output.")] = "-",
    missing: Annotated[bool, typer.Option("--missing", help="Only categories that SKUs wait for.")] = False,
    as_json: Json = False,
) -> None:
    """Write the table as CSV, to be changed and imported again."""
    from hub import mappings

    with desk.opened() as at:
        rows = mappings.kept(at.pool, at.store(store).id, missing=missing)
    chosen = [row for row in rows if missing or row.remote]
    text = mappings.write(chosen)
    if file == "-":
        tell({"store": store, "mappings": [_kept(row) for row in chosen]}, text.rstrip("\n"))
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as fault:
        refuse("FILE", file, f"cannot be written ({fault.strerror})")
    tell({"store": store, "file": file, "rows": len(chosen)}, f"{file}: {len(chosen)} rows")


@mappings_app.command("list")
def listed(
    store: StoreName,
    missing: Annotated[bool, typer.Option("--missing", help="Only categories that SKUs wait for.")] = False,
    as_json: Json = False,
) -> None:
    """The table, and how many SKUs wait for a category that is not in it."""
    from hub import mappings

    with desk.opened() as at:
        rows = [_kept(row) for row in mappings.kept(at.pool, at.store(store).id, missing=missing)]
    tell_table("mappings", ["category", "remote", "name", "waiting", "changed_at"], rows, empty="no mapping yet")


def _kept(row: Any) -> dict[str, Any]:
    return asdict(row)


def _read(file: str) -> bytes:
    from hub.mappings import LARGEST

    try:
        if file == "-":
            return sys.stdin.buffer.read(LARGEST + 1)
        with Path(file).open("rb") as opened:
            return opened.read(LARGEST + 1)
    except OSError as fault:
        refuse("FILE", file, f"cannot be read ({fault.strerror})")
