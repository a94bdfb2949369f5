"""How the command line speaks: data on standard output, talk on standard error, and one exit code per kind of end.

| code | means |
| --- | --- |
| 0 | done |
| 1 | ran, and found problems or failed items |
| 2 | wrong use or input, or refused (such as no `--yes` without a terminal) |
| 3 | no such thing |
| 4 | credentials or permission |
| 5 | conflict: already there or running |
| 6 | something remote cannot answer now; the same may work later |
| 130 | interrupted; what was begun goes on or can be resumed |

A user's mistake is one sentence per problem, never a traceback.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from hub.errors import AuthLost, BadInput, Conflict, HubError, NotFound, NotNow, Problem, Unavailable

if TYPE_CHECKING:
    from rich.console import Console
SCHEMA_VERSION: Final = 1
OK, PROBLEMS, REFUSED, MISSING, FORBIDDEN, CONFLICT, AWAY = 0, 1, 2, 3, 4, 5, 6

_as_json: ContextVar[bool] = ContextVar("as_json", default=False)


class Missing(BadInput):
    """What the user named does not exist."""


def _remember(wanted: bool) -> bool:
    _as_json.set(wanted)
    return wanted


Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.", callback=_remember)]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit.")]
StoreName = Annotated[str, typer.Argument(metavar="STORE", help="The store's name; see: hub store list.")]


class Group(TyperGroup):
    """A group whose commands end in the exit codes above, whatever they raise on purpose."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; tell what the hub raised in sentences."""
        try:
            return super().invoke(ctx)
        except HubError as error:
            raise typer.Exit(complain(error)) from None
        except typer.BadParameter as wrong:
            number = _no_number(wrong)
            if number is None:
                raise
            raise typer.Exit(complain(number)) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 – as its parent has it
        """List the commands under the headings they were registered with."""
        panels: dict[str, list[tuple[str, str]]] = {}
        room = formatter.width - 6 - max((len(name) for name in self.commands), default=0)
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                heading = panel if isinstance(panel, str) else "Commands"
                panels.setdefault(heading, []).append((name, command.get_short_help_str(room)))
        for heading, rows in panels.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def _no_number(wrong: typer.BadParameter) -> BadInput | None:
    """A number that is none or out of its bounds, with name, value and fix; `None` when something else is wrong."""
    from pydantic import ValidationError

    cause, option = wrong.__cause__, wrong.param
    kind = option.type_descriptor.annotation if option is not None else None
    if not isinstance(cause, ValidationError) or option is None or kind not in {int, float}:
        return None
    what = "a whole number" if kind is int else "a number"
    least, most = getattr(option, "min", None), getattr(option, "max", None)
    if least is not None:
        what += f" from {least} to {most}" if most is not None else f", {least} or more"
    given = str(cause.errors(include_url=False)[0]["input"])[:80]
    return BadInput([Problem("input", field=option.opts[0], value=given, fix=f"write {what}")])


def complain(error: HubError) -> int:
    """Tell an error; the answer is its exit code."""
    code = exit_code(error)
    problems = error.problems if isinstance(error, BadInput) else (Problem("error", fix=str(error)),)
    if _as_json.get():
        told = [{"field": one.field, "value": one.value, "fix": one.fix} for one in problems]
        document = {"schema_version": SCHEMA_VERSION, "error": {"exit_code": code, "problems": told}}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    for problem in problems:
        say(problem.sentence())
    return code


def exit_code(error: HubError) -> int:
    """The exit code of an error of `hub.errors` and `hub.db`."""
    if isinstance(error, Missing | NotFound):
        return MISSING
    if isinstance(error, BadInput):
        return REFUSED
    if isinstance(error, AuthLost):
        return FORBIDDEN
    if isinstance(error, Conflict):
        return CONFLICT
    away = isinstance(error, Unavailable | NotNow) or type(error).__name__ in {"StorageAway", "ServerUnavailable"}
    return AWAY if away else PROBLEMS


def refuse(field: str, value: str, fix: str) -> NoReturn:
    """End with one sentence about what the user gave."""
    raise BadInput([Problem("input", field=field, value=value[:80], fix=fix)])


def say(text: str) -> None:
    """Talk: progress, warnings, what was done. On standard error."""
    typer.echo(text, err=True)


def tell(document: Mapping[str, Any], text: str | None = None) -> None:
    """Data on standard output: the document with `--json`, else `text` (left out: nothing)."""
    if _as_json.get():
        whole = {"schema_version": SCHEMA_VERSION, **document}
        sys.stdout.write(json.dumps(whole, ensure_ascii=False, default=str) + "\n")
    elif text is not None:
        typer.echo(text)


def wants_json() -> bool:
    """Whether the command was called with `--json`."""
    return _as_json.get()


def console(*, error: bool = False) -> Console:
    """A rich console on standard output; plain when NO_COLOR is set or nobody watches."""
    from rich.console import Console

    return Console(stderr=error, soft_wrap=True, highlight=False)


def tell_table(name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, empty: str = "none") -> None:
    """Records as a table for a terminal, as lines with tabs for a pipe, or as `{name: [...]}` with `--json`."""
    if _as_json.get():
        tell({name: list(rows)})
        return
    if not rows:
        say(empty)
        return
    if not sys.stdout.isatty():
        typer.echo("\t".join(columns))
        for row in rows:
            typer.echo("\t".join(_cell(row.get(column)) for column in columns))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    from rich.console import Console

    Console(highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return " ".join(str(value).split())


def agreed(plan: str, *, yes: bool) -> None:
    """Show the plan and ask; without a terminal `--yes` is needed. Returns only when the answer is yes."""
    say(plan)
    if yes:
        return
    if not sys.stdin.isatty():
        refuse("--yes", "", "is needed where nobody can be asked; nothing was changed")
    if not typer.confirm("Go on?", err=True):
        say("nothing was changed")
        raise typer.Exit(REFUSED)


def secret(name: str) -> str:
    """Ask for a secret without showing it. `BadInput` without a terminal."""
    if not sys.stdin.isatty():
        refuse("credentials", "", "give them as JSON on standard input or with --credentials FILE; nobody can be asked")
    return getpass.getpass(f"{name}: ").strip()


def who() -> str:
    """The person at the keyboard, for the audit."""
    try:
        return f"cli: {getpass.getuser()}"
    except (OSError, KeyError):  # a container without an entry for the user
        return f"cli: uid {os.getuid()}"


def age(seconds: float | None) -> str:
    """`75` → `1m15s`; a dash for nothing."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
