"""`hub store`: which stores there are, how each is set, and its secrets, which are never shown and never arguments."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hub.cli import desk
from hub.cli.talk import (
    PROBLEMS,
    DryRun,
    Group,
    Json,
    Reason,
    StoreName,
    Yes,
    agreed,
    refuse,
    say,
    secret,
    tell,
    tell_table,
    wants_json,
    who,
)
from hub.errors import BadInput, Problem, Side

if TYPE_CHECKING:
    from hub.checks import Found
    from hub.cli.desk import Desk
    from hub.stores import Store

store_app = typer.Typer(cls=Group, help="Stores: one VTEX account on one marketplace each.", no_args_is_help=True)

SIDES: tuple[Side, ...] = ("vtex", "marketplace")
VTEX_FIELDS = ("app_key", "app_token")
SETTINGS_SHAPE = '{"vtex_url": "https://…", …}'
LARGEST_FILE = 1_048_576

SettingsFile = Annotated[
    Path | None, typer.Option("--settings", metavar="FILE", help="The store's settings as JSON; - for standard input.")
]
CredentialsFile = Annotated[
    str,
    typer.Option(
        "--credentials",
        metavar="FILE",
        help='JSON {"vtex": {"app_key": …, "app_token": …}, "marketplace": {…}}; - for standard input. Default: ask.',
    ),
]


def register(app: typer.Typer) -> None:
    """Make these commands known."""
    app.add_typer(store_app, name="store", rich_help_panel="Stores and catalogue")


@store_app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="STORE", help="Its name in the hub, such as acme-mkt.")],
    account: Annotated[str, typer.Option(help="VTEX account.")],
    affiliate: Annotated[str, typer.Option(help="The affiliate's three consonants.")],
    sales_channel: Annotated[int, typer.Option(help="Number of the trade policy.")],
    marketplace: Annotated[str, typer.Option(help="Which marketplace; see: hub store marketplaces.")],
    settings: SettingsFile = None,
    vtex_url: Annotated[str, typer.Option(help="Where VTEX answers, when not at its own host.")] = "",
    marketplace_url: Annotated[str, typer.Option(help="Where the marketplace answers.")] = "",
    credentials: CredentialsFile = "",
    force: Annotated[bool, typer.Option("--force", help="Register even though the check finds problems.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Ask both sides whether all is right.")] = True,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Register a store: checks it, keeps its secrets encrypted, prints the URL to enter in the VTEX affiliate."""
    from hub.marketplaces import adapters
    from hub.stores import parse_settings

    chosen = _settings_given(settings, vtex_url=vtex_url, marketplace_url=marketplace_url)
    known = adapters()
    with desk.opened() as at:
        try:
            draft = _draft(at, name, account, affiliate, sales_channel, marketplace, chosen)
        except BadInput as wrong:
            fields = known[marketplace].manifest.secret_fields if marketplace in known else ()
            raise BadInput([*wrong.problems, *_wrong_secrets(credentials, fields)]) from None
        manifest = known[marketplace].manifest
        if manifest.webhook is not None and "webhook" not in chosen:
            webhook = manifest.webhook
            chosen["webhook"] = {
                "scheme": webhook.scheme,
                "header": webhook.header,
                "replay_window": webhook.replay_window,
                "pointer": list(webhook.pointer),
                "prefix": webhook.prefix,
            }
        parse_settings(chosen)
        secrets = _secrets_given(credentials, manifest.secret_fields)
        found = [one for one in (_rehearsed(at, draft, secrets) if check else []) if not _later(one)]
        stops = [one for one in found if not one.warning]
        if stops and not force:
            _tell_found(name, found)
            say(f"{name} was not registered: correct what is above, or use --force")
            raise typer.Exit(PROBLEMS)
        if dry_run:
            _tell_found(name, found)
            say(f"{name} would be registered; nothing was changed")
            return
        store, token = at.registry.add(
            slug=name,
            account=account,
            affiliate=affiliate,
            sales_channel=sales_channel,
            marketplace=marketplace,
            who=who(),
            settings=chosen,
            credentials=secrets,
            marketplaces=known,
        )
        url = f"{(store.settings.hub_url or at.settings.public_url).rstrip('/')}/{token}"
        if wants_json():
            tell({"store": _row(store), "url": url, "problems": [_problem(one) for one in found]})
            return
        for one in found:
            say(_sentence(one))
        say(f"{name} is registered. Enter this URL as search endpoint of affiliate {store.affiliate} in the VTEX Admin")
        say(f"(Marketplace > Affiliates), trade policy {store.sales_channel}; it is a secret:")
        tell({}, url)
        say(f"Then: hub store check {name} · hub mappings import {name} FILE · hub load {name}")


@store_app.command("list")
def listed(as_json: Json = False) -> None:
    """Every registered store."""
    with desk.opened() as at:
        rows = [_row(store) for store in at.registry.all()]
    columns = ["store", "account", "affiliate", "sales_channel", "marketplace", "status"]
    tell_table("stores", columns, rows, empty="no store is registered yet; see: hub store add --help")


@store_app.command()
def show(store: StoreName, as_json: Json = False) -> None:
    """One store: what it chose, its URL (a secret), what shuts it."""
    from hub.ledger import Ledger

    with desk.opened() as at:
        found = at.store(store)
        gates = [gate for gate in Ledger(at.pool).gates() if gate.store == found.id]
        names = {side: sorted(at.registry.credentials(found.id, side).values) for side in SIDES}
        url = f"{(found.settings.hub_url or at.settings.public_url).rstrip('/')}/{at.registry.token(found.id)}"
    settings = json.loads(found.settings.model_dump_json())
    shut = [{"context": gate.context, "side": gate.side, "cause": gate.cause, "why": gate.why} for gate in gates]
    document = {"store": {**_row(found), "settings": settings, "credentials": names, "url": url, "gates": shut}}
    lines = [f"{key:<14}{value}" for key, value in _row(found).items()]
    lines += [f"{'url':<14}{url}"]
    lines += [f"{'credentials':<14}{side}: {', '.join(fields) or 'none'}" for side, fields in names.items()]
    lines += [f"{'shut':<14}{gate['context']} by {gate['side']}: {gate['why'] or gate['cause']}" for gate in shut]
    lines += ["settings", json.dumps(settings, indent=2, ensure_ascii=False)]
    tell(document, "\n".join(lines))
    for fault in found.faults:
        say(fault.sentence())
    if found.faults:
        say(f"{store} waits, and shows defaults in place of these: hub store configure {store} FILE")


@store_app.command()
def configure(
    store: StoreName,
    settings: Annotated[str, typer.Argument(metavar="FILE", help="All its settings as JSON; - for standard input.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Replace a store's settings; what is not in the file gets its default (see: hub store show)."""
    from hub.stores import parse_settings

    tree = _json_given(settings, "FILE", SETTINGS_SHAPE)
    with desk.opened() as at:
        found = at.store(store)
        kept = found.settings.webhook
        if kept is not None and "webhook" not in tree:
            tree["webhook"] = json.loads(found.settings.model_dump_json(include={"webhook"}))["webhook"]
        chosen = parse_settings(tree)
        before = json.loads(found.settings.model_dump_json())
        after = json.loads(chosen.model_dump_json())
        moved = {name: [before[name], after[name]] for name in after if before[name] != after[name]}
        differs = bool(moved or found.faults)
        compared = differs and not found.decides_as(chosen)
        if differs and not dry_run:
            at.registry.configure(store, tree, who=who(), why=reason)
    lines = [f"{name}: {json.dumps(old)} → {json.dumps(new)}" for name, (old, new) in moved.items()]
    lines.append(f"{store}: {'would be changed' if dry_run else 'changed'}" if differs else f"{store}: nothing differs")
    if compared:
        then = "what is shown would be" if dry_run else "what is shown is"
        lines.append(f"{store}: {then} compared with it and corrected, follow it with: hub reconcile list")
    document = {"store": store, "changed": differs and not dry_run, "compared": compared and not dry_run}
    tell({**document, "settings": after}, "\n".join(lines))


@store_app.command()
def check(store: StoreName, as_json: Json = False) -> None:
    """Ask both sides whether everything is right; all problems at once. Exit 1 when something must be corrected."""
    from hub.checks import check as checked

    with desk.opened() as at:
        found = checked(at.link(store), show_url=True)
    _tell_found(store, found)
    if any(not one.warning for one in found):
        raise typer.Exit(PROBLEMS)
    say(f"{store}: all right" + (", with warnings" if found else ""))


@store_app.command()
def pause(store: StoreName, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Shut a store: what comes in is kept, nothing is done until it is resumed."""
    with desk.opened() as at:
        at.store(store)
        if not dry_run:
            at.registry.pause(store, who(), reason)
    _changed(store, "paused", dry_run=dry_run)


@store_app.command()
def resume(store: StoreName, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Let a paused store go on; what waits is done."""
    with desk.opened() as at:
        at.store(store)
        if not dry_run:
            at.registry.resume(store, who(), reason)
            at.wake(store)
    _changed(store, "active", dry_run=dry_run)


@store_app.command()
def remove(
    store: StoreName,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take a store out of service for good: its secrets go, what is known of it stays, its name is not used again."""
    with desk.opened() as at:
        at.store(store)
        if not dry_run:
            agreed(
                f"{store} leaves for good: its credentials are deleted; its listings stay as they are; its URL goes on "
                "answering 200, so that VTEX does not disable the affiliate's notifications, and what comes is ignored",
                yes=yes,
            )
            at.registry.remove(store, who(), reason)
    _changed(store, "removed", dry_run=dry_run)


@store_app.command("rotate-token")
def rotate_token(
    store: StoreName,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Give a store a new URL; the old one stops working at once."""
    with desk.opened() as at:
        found = at.store(store)
        if dry_run:
            _changed(store, found.status, dry_run=True)
            return
        agreed(f"the URL of {store} stops working at once, until VTEX has the new one", yes=yes)
        token = at.registry.rotate_token(store, who(), reason)
        url = f"{(found.settings.hub_url or at.settings.public_url).rstrip('/')}/{token}"
    say(f"Enter it as search endpoint of affiliate {found.affiliate} in the VTEX Admin; it is a secret:")
    tell({"store": store, "url": url}, url)


@store_app.command()
def credentials(
    store: StoreName,
    side: Annotated[str, typer.Option(help="vtex or marketplace. Default: both.")] = "",
    credentials: CredentialsFile = "",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Try them before they are kept.")] = True,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Enter new credentials of one side or both; opens what the old ones shut."""
    from hub.marketplaces import adapter

    if side not in {"", "vtex", "marketplace"}:
        refuse("--side", side, "use vtex or marketplace, or leave it out for both")
    with desk.opened() as at:
        found = at.store(store)
        fields = adapter(found.marketplace).manifest.secret_fields
        if side:
            chosen = cast("Side", side)
            fresh = {chosen: _one_side(credentials, chosen, VTEX_FIELDS if side == "vtex" else fields)}
        else:
            fresh = _secrets_given(credentials, fields)
        if check:
            both = {one: fresh.get(one) or dict(at.registry.credentials(found.id, one).values) for one in SIDES}
            rehearsed = _rehearsed(at, found, both)
            problems = [one for one in rehearsed if one.side in fresh and not one.warning and not _later(one)]
            if problems:
                _tell_found(store, problems)
                say("nothing was changed")
                raise typer.Exit(PROBLEMS)
        if not dry_run:
            for one, values in fresh.items():
                at.registry.save_credentials(found.id, one, values, who=who())
            at.wake(store)
    said = " and ".join(fresh)
    tell(
        {"store": store, "sides": list(fresh), "changed": not dry_run},
        f"{store}: {said} credentials {'would be ' * dry_run}kept",
    )


@store_app.command()
def marketplaces(as_json: Json = False) -> None:
    """Every marketplace there is an adapter for."""
    from hub.marketplaces import adapters

    rows = [
        {
            "marketplace": name,
            "title": one.manifest.title,
            "actions": " ".join(sorted(action.value for action in one.manifest.actions)),
            "in_lots": one.manifest.lots is not None,
            "replaces": one.manifest.replaces,
            "secrets": " ".join(one.manifest.secret_fields),
            "verified": one.manifest.verification,
        }
        for name, one in sorted(adapters().items())
    ]
    tell_table("marketplaces", list(rows[0]), rows)


# ---------------------------------------------------------------- inside


def _row(store: Store) -> dict[str, Any]:
    return {
        "store": store.slug,
        "account": store.account,
        "affiliate": store.affiliate,
        "sales_channel": store.sales_channel,
        "marketplace": store.marketplace,
        "status": store.status,
    }


def _changed(store: str, status: str, *, dry_run: bool) -> None:
    document = {"store": store, "status": status, "changed": not dry_run}
    tell(document, f"{store}: would be {status}; nothing was changed" if dry_run else f"{store}: {status}")


def _later(found: Found) -> bool:
    from hub.checks import OPENED_LATER

    return found.side == "vtex" and found.problem.field in OPENED_LATER


def _problem(found: Found) -> dict[str, Any]:
    one = found.problem
    return {"side": found.side, "warning": found.warning, "field": one.field, "value": one.value, "fix": one.fix}


def _sentence(found: Found) -> str:
    return f"{'!' if found.warning else '✗'} {found.side}: {found.problem.sentence()}"


def _tell_found(store: str, found: list[Found]) -> None:
    tell({"store": store, "problems": [_problem(one) for one in found]}, "\n".join(map(_sentence, found)) or None)


def _settings_given(path: Path | None, **urls: str) -> dict[str, Any]:
    tree = _json_given(str(path), "--settings", SETTINGS_SHAPE) if path else {}
    return {**tree, **{name: url for name, url in urls.items() if url}}


def _secrets_given(source: str, fields: tuple[str, ...]) -> dict[Side, dict[str, str]]:
    if not source and sys.stdin.isatty():
        say("Credentials (nothing is shown while you type; leave empty what you do not have):")
        return {
            "vtex": {field: secret(f"VTEX {field}") for field in VTEX_FIELDS},
            "marketplace": _filled({field: secret(f"marketplace {field}") for field in fields}),
        }
    tree = _secrets_read(source, f'{{"vtex": {_shape(VTEX_FIELDS)}, "marketplace": {_shape(fields)}}}')
    problems = [
        Problem("input", field=f"credentials.{name}", fix="unknown; write vtex and marketplace")
        for name in tree
        if name not in {"vtex", "marketplace"}
    ]
    sides: dict[Side, dict[str, str]] = {}
    for side, known in (("vtex", VTEX_FIELDS), ("marketplace", fields)):
        values, wrong = _texts(tree.get(side), side, known, required=side == "vtex")
        problems += wrong
        sides[cast("Side", side)] = values
    if problems:
        raise BadInput(problems)
    return sides


def _wrong_secrets(source: str, fields: tuple[str, ...]) -> Sequence[Problem]:
    """What is wrong with a file of credentials; nobody is asked, and standard input is left alone."""
    try:
        if source not in {"", "-"}:
            _secrets_given(source, fields)
    except BadInput as wrong:
        return wrong.problems
    return ()


def _one_side(source: str, side: Side, fields: tuple[str, ...]) -> dict[str, str]:
    if not source and sys.stdin.isatty():
        return _filled({field: secret(f"{side} {field}") for field in fields})
    tree = _secrets_read(source, _shape(fields))
    values, wrong = _texts(tree.get(side, tree), side, fields, required=side == "vtex")
    if wrong:
        raise BadInput(wrong)
    return values


def _texts(tree: object, side: str, known: tuple[str, ...], *, required: bool) -> tuple[dict[str, str], list[Problem]]:
    if not isinstance(tree, dict):
        fix = f'is missing; write {{"{side}": {_shape(known)}}}'
        return {}, [Problem("input", field=f"credentials.{side}", fix=fix)]
    wrong = [
        Problem("input", field=f"credentials.{side}.{name}", fix="write text" if name in tree else "is missing")
        for name in sorted({*tree, *(known if required else ())})
        if not isinstance(tree.get(name), str) or not (tree[name] or not required)
    ]
    return _filled({name: value for name, value in tree.items() if isinstance(value, str)}), wrong


def _filled(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in values.items() if value.strip()}


def _shape(fields: tuple[str, ...]) -> str:
    return json.dumps(dict.fromkeys(fields, "…"), ensure_ascii=False)


def _secrets_read(source: str, shape: str) -> dict[str, Any]:
    """The credentials from the file that was named, or from standard input."""
    return _json_given(source or "-", "--credentials" if source else "credentials on standard input", shape)


def _json_given(source: str, option: str, shape: str) -> dict[str, Any]:
    """A JSON object from a file or standard input. Its text is never repeated: it may hold secrets.

    `shape` is how it looks, for whoever wrote something else.
    """
    shown = "" if source == "-" else source
    try:
        raw = sys.stdin.read(LARGEST_FILE + 1) if source == "-" else _read(Path(source))
    except (OSError, UnicodeDecodeError) as fault:
        refuse(option, shown, f"cannot be read ({getattr(fault, 'strerror', None) or 'no UTF-8 text'})")
    if source == "-" and not raw.strip():
        refuse(option, "", f"nothing came on standard input; write {shape} to it, or name a file")
    if len(raw) > LARGEST_FILE:
        refuse(option, shown, f"is larger than {LARGEST_FILE} characters")
    try:
        tree = json.loads(raw or "null")
    except ValueError as fault:
        line = getattr(fault, "lineno", 1)
        refuse(option, shown, f"is no JSON (line {line}); write {shape}")
    except RecursionError:
        refuse(option, shown, f"is no JSON (nested too deeply); write {shape}")
    if not isinstance(tree, dict):
        refuse(option, shown, f"must be a JSON object; write {shape}")
    return tree


def _read(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(LARGEST_FILE + 1)


def _draft(
    at: Desk,
    name: str,
    account: str,
    affiliate: str,
    sales_channel: int,
    marketplace: str,
    settings: Mapping[str, Any],
) -> Store:
    """The store as it would be registered. `BadInput` with every problem that is known without asking anybody."""
    from hub.marketplaces import adapters

    return at.registry.draft(
        slug=name,
        account=account,
        affiliate=affiliate,
        sales_channel=sales_channel,
        marketplace=marketplace,
        settings=settings,
        marketplaces=adapters(),
    )


def _rehearsed(at: Desk, store: Store, secrets: Mapping[Side, Mapping[str, str]]) -> list[Found]:
    """The registration check with credentials that are not kept yet."""
    from hub.checks import check as checked
    from hub.links import Links
    from hub.stores import Credentials, Registry, SecretSide

    class Unkept(Registry):
        """Answers with what was just entered."""

        def credentials(self, store_id: int, side: SecretSide) -> Credentials:
            return self.secrets(store_id)[side]

        def secrets(self, store_id: int) -> dict[SecretSide, Credentials]:
            kept = super().credentials(store_id, "hub") if store_id else Credentials(0, {"token": "new"})
            nothing: Mapping[str, str] = {}
            return {
                "hub": kept,
                "vtex": Credentials(0, dict(secrets.get("vtex", nothing))),
                "marketplace": Credentials(0, dict(secrets.get("marketplace", nothing))),
            }

    links = Links(at.settings, at.pool, at.box)
    links.registry = Unkept(at.pool, at.box)
    return checked(links.build(store), show_url=True)
