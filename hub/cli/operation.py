"""`hub queues`, `hub gates`, `hub ledger`, `hub orders`: what waits, why, and whether everything is accounted for."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    age,
    refuse,
    say,
    tell,
    tell_table,
    wants_json,
    who,
)

if TYPE_CHECKING:
    from hub.cli.desk import Desk
    from hub.stores import Store

gates_app = typer.Typer(cls=Group, help="What keeps stores and contexts from working.", no_args_is_help=True)
ledger_app = typer.Typer(cls=Group, help="Whether every demand is accounted for.", no_args_is_help=True)
orders_app = typer.Typer(cls=Group, help="Orders, without anything personal.", no_args_is_help=True)

StoreFilter = Annotated[str, typer.Option("--store", help="Only this store.")]


def register(app: typer.Typer) -> None:
    """Make these commands known."""
    app.command(rich_help_panel="Operation")(queues)
    app.add_typer(gates_app, name="gates", rich_help_panel="Operation")
    app.add_typer(ledger_app, name="ledger", rich_help_panel="Operation")
    app.add_typer(orders_app, name="orders", rich_help_panel="Stores and catalogue")


# ---------------------------------------------------------------- queues


def queues(store: StoreFilter = "", as_json: Json = False) -> None:
    """What waits in each store and context, since when, and what holds it up."""
    from hub import reports

    with desk.opened() as at:
        chosen = at.store(store).id if store else None
        found = reports.backlog(at.pool, store=chosen)
        shut = _shut(at, [at.store(store)] if store else at.registry.all())
    rows = []
    for one in found:
        row = asdict(one)
        row["shut"] = "; ".join(
            gate["cause"] for gate in shut if gate["store"] == one.store and gate["context"] in {"*", one.context}
        )
        if not wants_json():
            row["oldest"] = age(one.oldest)
        rows.append(row)
    columns = ["store", "context", "pending", "oldest", "held", "late", "later", "waiting", "parked", "refused"]
    tell_table("queues", [*columns, "failing", "dead", "shut"], rows, empty="nothing waits")
    if found and (counted := found[0].counted) is not None and not wants_json():
        say(f"much lies here: later, waiting, parked, refused, failing and dead were counted {age(counted)} ago")


# ---------------------------------------------------------------- gates


@gates_app.command("list")
def gates_list(store: StoreFilter = "", as_json: Json = False) -> None:
    """Every shut gate and every circuit that is not closed."""
    with desk.opened() as at:
        rows = _shut(at, [at.store(store)] if store else at.registry.all())
    columns = ["store", "context", "side", "cause", "who", "why", "since", "reopens_in"]
    if not wants_json():
        rows = [{**row, "reopens_in": age(row["reopens_in"])} for row in rows]
    tell_table("gates", columns, rows, empty="every gate is open, every circuit closed")


@gates_app.command("open")
def gates_open(
    store: StoreName,
    context: Annotated[str, typer.Option(help="Which; * for the whole store.")] = "*",
    side: Annotated[str, typer.Option(help="operator, vtex or marketplace.")] = "operator",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Open a gate that somebody or lost credentials shut."""
    from hub.ledger import Ledger

    with desk.opened() as at:
        found = at.store(store)
        _require_gate(at, context, side)
        _require_running(found, context, side)
        ledger = Ledger(at.pool)
        there = any((gate.store, gate.context, gate.side) == (found.id, context, side) for gate in ledger.gates())
        if there and not dry_run:
            ledger.open(found.id, context, side)
            _audit(at, found.id, "gate open", {"context": context, "side": side, "why": reason})
            at.wake(store, *([] if context == "*" else [context]))
    if not there:
        say(f"{store}: no gate {context} of side {side} is shut; see: hub gates list")
        raise typer.Exit(MISSING)
    tell(
        {"store": store, "context": context, "side": side, "changed": not dry_run},
        f"{store}: {context} {'would be open' if dry_run else 'is open'}",
    )


@gates_app.command("shut")
def gates_shut(
    store: StoreName,
    context: Annotated[str, typer.Option(help="Which, such as price.")],
    reason: Reason = "",
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, max=525_600, help="Opens by itself then.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Keep one context of a store from working; what comes in is kept. The whole store: hub store pause."""
    from hub.ledger import Ledger

    if context == "*":
        refuse("--context", context, f"shuts the whole store; use: hub store pause {store}")
    if not reason.strip():
        refuse("--reason", "", "is missing; say why, for whoever finds it shut")
    with desk.opened() as at:
        found = at.store(store)
        _require_gate(at, context, "operator")
        if not dry_run:
            seconds = minutes * 60 if minutes else None
            Ledger(at.pool).shut(
                found.id, context, "operator", cause="operator", who=who(), why=reason, seconds=seconds
            )
            _audit(at, found.id, "gate shut", {"context": context, "why": reason, "minutes": minutes})
    tell(
        {"store": store, "context": context, "changed": not dry_run},
        f"{store}: {context} {'would be shut' if dry_run else 'is shut'}",
    )


def _require_gate(at: Desk, context: str, side: str) -> None:
    from hub.parsing import suggestion

    if context != "*" and context not in at.settings.contexts:
        refuse("--context", context, f"is no context; {suggestion(context, at.settings.contexts)}")
    if side not in {"operator", "vtex", "marketplace"}:
        refuse("--side", side, "use operator, vtex or marketplace")


def _require_running(store: Store, context: str, side: str) -> None:
    if store.status != "active" and (context, side) == ("*", "operator"):
        refuse("store", store.slug, f"is {store.status}; use: hub store resume {store.slug}")


def _shut(at: Desk, stores: list[Store]) -> list[dict[str, Any]]:
    """Gates and circuits of these stores, in one shape."""
    from hub.ledger import Ledger

    names = {store.id: store.slug for store in stores}
    rows: list[dict[str, Any]] = [
        {
            "store": names[gate.store],
            "context": gate.context,
            "side": gate.side,
            "cause": gate.cause,
            "who": gate.who,
            "why": gate.why,
            "since": gate.since,
            "reopens_in": gate.reopens_in,
        }
        for gate in Ledger(at.pool).gates()
        if gate.store in names
    ]
    for store in stores:
        rows += [
            {
                "store": store.slug,
                "context": "*",
                "side": circuit.side,
                "cause": f"circuit {circuit.state} ({circuit.group})",
                "who": "hub",
                "why": circuit.why,
                "since": circuit.since.strftime("%Y-%m-%dT%H:%M:%SZ") if circuit.since else None,
                "reopens_in": circuit.reopens_in,
            }
            for circuit in at.links.transport.circuits.status(store.slug)
        ]
    return rows


def _audit(at: Desk, store: int, action: str, detail: dict[str, Any]) -> None:
    from hub.db import translated

    with translated(), at.pool.connection() as db:
        db.execute(
            "insert into audit (who, action, store, detail) values (%s, %s, %s, %s)",
            (who(), action, store, json.dumps(detail)),
        )


# ---------------------------------------------------------------- ledger


@ledger_app.command("check")
def ledger_check(
    recount: Annotated[bool, typer.Option("--recount", help="Count the rows too; reads the whole table.")] = False,
    as_json: Json = False,
) -> None:
    """Compare both sides of every conservation law. Exit 1 when one does not hold."""
    from hub.ledger import Ledger

    with desk.opened() as at:
        laws = Ledger(at.pool).check(recount=recount)
    rows = [{"law": law.name, "left": law.left, "right": law.right, "holds": law.holds} for law in laws]
    tell_table("laws", ["law", "left", "right", "holds"], rows)
    if not all(law.holds for law in laws):
        raise typer.Exit(PROBLEMS)


# ---------------------------------------------------------------- orders


@orders_app.command("list")
def orders_list(
    store: StoreName,
    state: Annotated[str, typer.Option(help="Only in this state.")] = "",
    after: Annotated[str, typer.Option(help="Go on behind this order.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    as_json: Json = False,
) -> None:
    """Orders of a store by their marketplace id."""
    from hub import reports
    from hub.parsing import suggestion
    from hub.states import ORDER_STATES

    if state and state not in ORDER_STATES:
        refuse("--state", state, f"is no state; {suggestion(state, ORDER_STATES)}")
    with desk.opened() as at:
        found = reports.orders(at.pool, at.store(store).id, state=state or None, after=after, limit=limit)
    rows = [_order(one) for one in found]
    if not wants_json():
        rows = [{**row, "total (cents)": row["total"]} for row in rows]
    columns = ["order", "state", "vtex_order", "approved", "total (cents)", "seen_at", "changed_at"]
    tell_table("orders", columns, rows, empty="no order")
    if len(rows) == limit:
        say(f"there may be more: --after {rows[-1]['order']}")


@orders_app.command("show")
def orders_show(
    store: StoreName,
    order: Annotated[str, typer.Argument(metavar="ORDER", help="The marketplace's id, or VTEX's.")],
    as_json: Json = False,
) -> None:
    """One order: where it stands, what happened, who must act."""
    from hub import messages, reports

    with desk.opened() as at:
        number = at.store(store).id
        found = reports.order(at.pool, number, order)
        if found is None:
            say(f"{store} has no order {order}; see: hub orders list {store}")
            raise typer.Exit(MISSING)
        rows = reports.key_states(at.pool, number, found.order, ("order", "fulfilment"))
        told = reports.story(at.pool, number, found.order)
    happened = [
        {
            "at": one.at,
            "operation": one.operation,
            "code": one.code,
            "status": one.status,
            "message": messages.text(one.code, "en", one.params) if one.code in messages.catalogue() else "",
        }
        for one in told
    ]
    state = [
        {"context": row.context, "status": row.status, "code": row.code, "attempts": row.attempts, "due": row.due}
        for row in rows
    ]
    lines = [f"{key:<12}{value}" for key, value in _order(found).items() if value not in (None, "")]
    lines += [f"{row.context:<12}{row.status}{f', due in {age(row.due)}' if row.due else ''}" for row in rows]
    lines += [f"{one['at']}  {one['code']:<5} {one['message'] or one['operation']}" for one in happened]
    tell({"order": _order(found), "states": state, "story": happened}, "\n".join(lines))


def _order(one: Any) -> dict[str, Any]:
    row = asdict(one)
    row["problems"] = "; ".join(problem.sentence() for problem in one.problems)
    return row
