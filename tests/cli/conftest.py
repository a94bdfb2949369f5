"""The command line against real servers; each test is somebody at a keyboard without a terminal."""

import json
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from typer.testing import CliRunner

from hub.cli import app
from tests.cell import Cell, quick_queues


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    talk: str

    @property
    def json(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert document["schema_version"] == 1
        return dict(document)

    @property
    def lines(self) -> list[str]:
        return self.talk.splitlines()


Hub = Callable[..., Said]


def keyboard(env: dict[str, str]) -> Hub:
    """Runs commands in this environment."""
    runner = CliRunner()

    def run(*words: str, stdin: str = "", code: int | None = 0) -> Said:
        # Each in a context of its own, as a process has: what one chose (--json) is not chosen for the next.
        ended = copy_context().run(runner.invoke, app, list(words), input=stdin, env=env)
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        said = Said(ended.exit_code, ended.stdout, ended.stderr)
        assert code is None or said.code == code, f"exit {said.code}\n{said.out}\n{said.talk}"
        return said

    return run


@pytest.fixture
def env(database: str, redis_url: tuple[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of an installation with nothing in it."""
    url, prefix = redis_url
    return {
        "DATABASE_URL": database,
        "REDIS_URL": url,
        "HUB_PREFIX": prefix,
        "HUB_KEY": Fernet.generate_key().decode(),
        "HUB_DIRECTORY": str(tmp_path / "hub"),
        "HUB_QUEUES": str(quick_queues(tmp_path / "queues.yaml")),
    }


@pytest.fixture
def hub(env: dict[str, str]) -> Hub:
    """Commands on an installation of this test's own, without processes."""
    return keyboard(env)


@pytest.fixture
def live(cell: Cell, tmp_path: Path) -> Hub:
    """Commands on the running cell."""
    return keyboard({**cell.env, "HUB_DIRECTORY": str(tmp_path / "hub")})
