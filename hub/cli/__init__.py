"""The command `hub`: one word per thing that people do with it.

Commands are thin: they read what was given, call what does it, and tell the outcome. Whatever is slow to import is
imported by the command that needs it, so that help and mistakes answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hub.cli import catalogue, desk, letters, operation, processes, registry, work
from hub.cli.doctor import register as register_doctor
from hub.cli.talk import Group

app = typer.Typer(
    cls=Group,
    name="hub",
    help="Connects VTEX stores to the marketplaces that VTEX does not host.",
    no_args_is_help=True,
    rich_markup_mode=None,  # help by rich costs a quarter of a second each time
    pretty_exceptions_enable=False,  # their tracebacks would show values of variables
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _everywhere(
    directory: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where `hub up` or `hub demo` of this machine keeps its files. Default: .hub"),
    ] = None,
) -> None:
    desk.directory.set(directory)


processes.register(app)
registry.register(app)
work.register(app)
catalogue.register(app)
letters.register(app)
operation.register(app)
register_doctor(app)


def main() -> None:
    """Entry point of the command `hub`."""
    app()
