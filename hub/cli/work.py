"""Commands about work: loads, reconciliations, and how they go."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hub.cli import desk
from hub.cli.catalogue import sku_ids
from hub.cli.talk import (
    MISSING,
    PROBLEMS,
    DryRun,
    Group,
    Json,
    Reason,
    StoreName,
    refuse,
    say,
    tell,
    tell_table,
    wants_json,
    who,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hub.cli.desk import Desk
    from hub.loads import Load
    from hub.reconciliations import Comparison

RECONCILE_COLUMNS = ("listings", "differing", "rebound", "absent", "foreign", "orders", "asked")

ANSWERS_SECONDS = 30.0
"""How long a reconciliation that has ended is followed until what it asked for is answered; new work never ends."""

LOOK_SECONDS = 0.5
"""How often a followed run is looked at."""


class LoadGroup(Group):
    """`hub load STORE` is `hub load start STORE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `start` before a store's name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["start", *args]
        return super().parse_args(ctx, args)


class ReconcileGroup(Group):
    """`hub reconcile --all` is `hub reconcile start --all`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `start` before its options."""
        if args and args[0] not in self.commands and not {"-h", "--help"} & set(args):
            args = ["start", *args]
        return super().parse_args(ctx, args)


reconcile_app = typer.Typer(
    cls=ReconcileGroup,
    help="Compare what the hub believes with what both sides show: hub reconcile --all, after a restored backup. "
    "What else it takes: hub reconcile start --help",
    no_args_is_help=True,
)

load_app = typer.Typer(
    cls=LoadGroup,
    help="Bring a store's whole catalogue over: hub load STORE. What else it takes: hub load start --help",
    no_args_is_help=True,
)

Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Stay and watch it.")]


def register(app: typer.Typer) -> None:
    """Make these commands known."""
    app.add_typer(load_app, name="load", rich_help_panel="Stores and catalogue")
    app.add_typer(reconcile_app, name="reconcile", rich_help_panel="Operation")


@load_app.command()
def start(
    store: StoreName,
    sku: Annotated[list[str] | None, typer.Option(help="Only this SKU; may be repeated.")] = None,
    page_size: Annotated[int, typer.Option(help="SKUs asked of VTEX at once.")] = 1000,
    follow: Follow = True,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="First ask both sides whether all is right.")
    ] = True,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Start a load and follow it. It goes on by itself when you leave, and from where it was after a stop."""
    from hub import loads

    skus = tuple(sku_ids(sku or ()))
    with desk.opened() as at:
        found = at.store(store)
        if found.status != "active":
            refuse("store", store, f"is {found.status}; a load needs an active one: hub store resume {store}")
        if check:
            _require_complete(at, store)
        if dry_run:
            tell({"store": store, "started": False}, f"{store}: the load may start; nothing was changed")
            return
        run = loads.start(at.pool, found.id, who=who(), why=reason, skus=skus, page_size=page_size)
        at.wake(store, "load")
        say(f"load {run} of {store} has started; it goes on without this terminal: hub load watch {store}")
        _followed(at, run, follow=follow)


@load_app.command()
def watch(store: StoreName, follow: Follow = True, as_json: Json = False) -> None:
    """Follow the running load of a store, or see how its last one ended."""
    from hub import loads

    with desk.opened() as at:
        found = at.store(store)
        last = loads.latest(at.pool, found.id)
        if last is None:
            say(f"{store} has not been loaded yet: hub load {store}")
            raise typer.Exit(MISSING)
        _followed(at, last.run, follow=follow)


@load_app.command("list")
def listed(
    store: Annotated[str, typer.Option(help="Only this store.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """The last loads and what became of their SKUs."""
    from hub import loads

    with desk.opened() as at:
        rows = [_row(one) for one in loads.listed(at.pool, store=at.store(store).id if store else None, limit=limit)]
    if not wants_json():
        rows = [{**row, "registered": row["sent"]} for row in rows]
    counts = ["total", "registered", "pending", "rejected", "awaiting_mapping", "contingency"]
    tell_table("loads", ["load", "store", "state", *counts, "started_at"], rows, empty="no load yet")


@load_app.command()
def cancel(store: StoreName, dry_run: DryRun = False, as_json: Json = False) -> None:
    """End the running load; SKUs that were asked for already are finished."""
    from hub import loads

    with desk.opened() as at:
        found = at.store(store)
        if dry_run:
            last = loads.latest(at.pool, found.id)
            run = last.run if last and last.state == "running" else None
        else:
            run = loads.cancel(at.pool, found.id, who=who())
    if run is None:
        say(f"no load of {store} is running")
        raise typer.Exit(MISSING)
    tell({"load": run, "cancelled": not dry_run}, f"load {run} {'would be' if dry_run else 'is'} cancelled")


def _require_complete(at: Desk, store: str) -> None:
    """LOD-09: refused with everything that is missing."""
    from hub.checks import check
    from hub.errors import BadInput

    missing = [one.problem for one in check(at.link(store)) if not one.warning]
    if missing:
        say(f"{store} cannot be loaded yet; correct this first (hub store check {store}):")
        raise BadInput(missing)


def _row(load: Load) -> dict[str, Any]:
    row = asdict(load)
    return {"load": row.pop("run"), **row}


def _followed(at: Desk, run: int, *, follow: bool) -> None:
    """Show how a load goes until it has ended, then tell its counts. Exit 1 when not every SKU was sent."""
    from hub import loads

    load = loads.progress(at.pool, run)
    if follow and load.state == "running":
        load = _watched(at, load)
    tell(_row(load), _sentence(load))
    if load.state == "running":
        return
    if load.rejected or load.awaiting_mapping or load.contingency:
        raise typer.Exit(PROBLEMS)


def _watched(at: Desk, load: Load) -> Load:
    from hub import loads
    from hub.db import StorageAway

    detached = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: detached.set())
    bar = _Bar()
    try:
        while load.state == "running" and not detached.wait(LOOK_SECONDS):
            try:
                load = loads.progress(at.pool, load.run)
            except StorageAway as away:
                say(f"waiting: {away}")
            bar.show(load)
    finally:
        bar.close()
        signal.signal(signal.SIGINT, before)
    if detached.is_set():
        say(f"the load goes on; hub load watch {load.store} · hub load cancel {load.store}")
        raise typer.Exit(130)
    return load


class _Bar:
    """A progress bar on a terminal; elsewhere one line for each tenth of the way."""

    def __init__(self) -> None:
        self._tenth = -1
        self._progress: Any = None
        self._task: Any = None
        if sys.stderr.isatty() and not wants_json():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task("reading the list", total=None)

    def show(self, load: Load) -> None:
        if self._progress is not None:
            total = load.total if load.listed else None
            words = _short(load) if load.total else "reading the list"
            self._progress.update(self._task, total=total, completed=load.outcomes, description=words)
        elif load.total and load.listed and (tenth := 10 * load.outcomes // load.total) > self._tenth:
            self._tenth = tenth
            say(f"{load.outcomes} of {load.total}: {_short(load)}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _short(load: Load) -> str:
    return (
        f"{load.sent} registered, {load.rejected} rejected, {load.awaiting_mapping} awaiting mapping, "
        f"{load.contingency} in contingency"
    )


def _sentence(load: Load) -> str:
    more = "" if load.listed else " (the list is still being read)"
    follow = "; price and stock of what is registered follow" if load.sent else ""
    return (
        f"load {load.run} of {load.store}: {load.state} after {load.seconds:.1f} s; {load.total} SKUs{more}: "
        f"{_short(load)}, {load.pending} pending{follow}"
    )


# ---------------------------------------------------------------- reconcile


@reconcile_app.command("start")
def reconcile_start(
    store: Annotated[list[str] | None, typer.Option(help="This store; may be repeated.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every active store.")] = False,
    context: Annotated[
        list[str] | None, typer.Option(help="Only catalog, price, stock or order; may be repeated.")
    ] = None,
    follow: Follow = True,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take all that is believed for doubtful: read it back at the marketplace, read VTEX again, correct what differs.

    Needed after a database was restored from a backup. Nothing is created that is there already. It goes on by itself
    when you leave, paced and behind everything that is more urgent.
    """
    from hub import reconciliations
    from hub.errors import Conflict

    if bool(store) == every:
        refuse("--store", ", ".join(store or ()), "name stores, or write --all for every active one")
    contexts = reconciliations.checked(context or ())
    with desk.opened() as at:
        chosen = [at.store(name) for name in dict.fromkeys(store or ())] or [
            one for one in at.registry.all() if one.status == "active"
        ]
        for one in chosen:
            if one.status != "active":
                refuse("--store", one.slug, f"is {one.status}; first: hub store resume {one.slug}")
        if dry_run:
            rows = []
            for one in chosen:
                pairs, orders = reconciliations.expected(at.pool, one.id)
                rows.append({"store": one.slug, "listings": pairs, "orders": orders})
            tell_table("stores", ["store", "listings", "orders"], rows, empty="no active store")
            return
        runs, problems = [], []
        for one in chosen:
            try:
                runs.append(reconciliations.start(at.pool, one.id, who=who(), why=reason, contexts=contexts))
            except Conflict as running:
                problems.append(f"{one.slug}: {running}")
            at.wake(one.slug, "reconcile")
        for problem in problems:
            say(problem)
        if runs:
            say(f"{len(runs)} started; they go on without this terminal: hub reconcile list")
        _reconciled(at, runs, follow=follow)
    if problems:
        raise typer.Exit(PROBLEMS)


@reconcile_app.command("list")
def reconcile_list(
    store: Annotated[str, typer.Option(help="Only this store.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """The last reconciliations, the calendar's too, and what they met."""
    from hub import reconciliations

    with desk.opened() as at:
        found = reconciliations.listed(at.pool, store=at.store(store).id if store else None, limit=limit)
    _tell_comparisons(found)


@reconcile_app.command("cancel")
def reconcile_cancel(store: StoreName, dry_run: DryRun = False, as_json: Json = False) -> None:
    """End a store's reconciliation where it is; what was asked for already is finished."""
    from hub import reconciliations

    with desk.opened() as at:
        number = at.store(store).id
        if dry_run:
            last = reconciliations.listed(at.pool, store=number, limit=1)
            run = last[0].run if last and last[0].state == "running" else None
        else:
            run = reconciliations.cancel(at.pool, number, who=who())
    if run is None:
        say(f"no reconciliation of {store} is running")
        raise typer.Exit(MISSING)
    tell({"run": run, "cancelled": not dry_run}, f"run {run} {'would be' if dry_run else 'is'} cancelled")


def _reconciled(at: Desk, runs: list[int], *, follow: bool) -> None:
    """Stay until all of them have ended and what they asked for is answered, then tell."""
    from hub import reconciliations

    found = reconciliations.listed(at.pool, runs=runs)
    detached = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: detached.set())
    told, patience = 0, ANSWERS_SECONDS
    try:
        while follow and patience > 0 and any(one.state == "running" or one.pending for one in found):
            if detached.wait(LOOK_SECONDS):
                say("it goes on; hub reconcile list · hub reconcile cancel STORE")
                raise typer.Exit(130)
            found = reconciliations.listed(at.pool, runs=runs)
            patience -= LOOK_SECONDS * all(one.state != "running" for one in found)
            ended = sum(one.state != "running" for one in found)
            if ended > told:
                told = ended
                say(f"{ended} of {len(found)} stores compared")
    finally:
        signal.signal(signal.SIGINT, before)
    _tell_comparisons(found)


def _tell_comparisons(found: Sequence[Comparison]) -> None:
    rows = []
    for one in found:
        row = asdict(one)
        counts = row.pop("counts")
        rows.append({**row, **{name: counts.get(name, 0) for name in RECONCILE_COLUMNS}})
    columns = ["run", "store", "state", "phase", *RECONCILE_COLUMNS, "pending", "started_at"]
    tell_table("reconciliations", columns, rows, empty="none yet")
