"""Real servers for the tests: each pytest process (and each xdist worker) has its own, on free ports.

A server on a standard port, REDIS_URL and DATABASE_URL are neither needed nor touched.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings
from psycopg import sql

from hub.errors import BadInput
from hub.runtime.embedded import Postgres, Valkey, scratch
from tests import fuzz
from tests.cell import Cell

pytest_plugins = ["tests.scenario_plugin"]

# How long an example takes says more about the machine than about the hub.
settings.register_profile("hub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hub")

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Refuse a knob that is wrong in one line, before anything is collected or started."""
    try:
        fuzz.KNOBS.settle()
    except BadInput as wrong:
        raise pytest.UsageError(*(problem.sentence() for problem in wrong.problems)) from None


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """Where this process keeps its servers' files; the servers' user can reach it, unlike `tmp_path`."""
    with scratch("hub-tests-") as directory:
        yield directory


@pytest.fixture(scope="session")
def valkey(server_directory: Path) -> Iterator[Valkey]:
    """A running Valkey of this test process; nothing in it survives."""
    with Valkey(server_directory / "valkey", durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(server_directory: Path) -> Iterator[Postgres]:
    """A running PostgreSQL of this test process; fast, not durable."""
    with Postgres(server_directory / "postgres", durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: Postgres) -> str:
    """Name of a database with the hub's schema, from which others are copied in milliseconds."""
    from hub.db import migrate

    name = "migrated_template"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrate(postgres.url_of(name))
    return name


def copied(postgres: Postgres, template: str) -> Iterator[str]:
    """Copy the template, give its URL, drop the copy (and whoever is still connected)."""
    name = sql.Identifier(f"t{next(_numbers)}")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        connection.execute(copy.format(name, sql.Identifier(template)))
    yield postgres.url_of(name.as_string().strip('"'))
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def database(postgres: Postgres, migrated_template: str) -> Iterator[str]:
    """URL of a fresh, migrated database for one test (schema `hub`)."""
    yield from copied(postgres, migrated_template)


@pytest.fixture(scope="module")
def module_database(postgres: Postgres, migrated_template: str) -> Iterator[str]:
    """URL of a fresh, migrated database for all tests of one module."""
    yield from copied(postgres, migrated_template)


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[str]:
    """URL of a fresh database without any schema."""
    yield from copied(postgres, "template0")


@pytest.fixture
def redis_url(valkey: Valkey) -> Iterator[tuple[str, str]]:
    """URL of Valkey, and the prefix that all keys of this test should begin with; they are removed afterwards."""
    prefix = f"t{os.getpid()}-{next(_numbers)}"
    yield valkey.url, prefix
    with redis.Redis.from_url(valkey.url) as client:
        for key in client.scan_iter(match=f"{prefix}*", count=1000):
            client.delete(key)


@pytest.fixture(scope="session")
def cell(
    valkey: Valkey, postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    """The whole hub running: intake, workers, sweep, both simulators. Tests make stores of their own in it."""
    from tests.cell import running_cell

    copies = copied(postgres, migrated_template)
    with running_cell(valkey, postgres, next(copies), tmp_path_factory.mktemp("cell")) as running:
        yield running


@pytest.fixture
def own_cell(valkey: Valkey, postgres: Postgres, migrated_template: str, tmp_path: Path) -> Iterator[Cell]:
    """A whole hub for one test that kills its processes."""
    from tests.cell import running_cell

    copies = copied(postgres, migrated_template)
    with running_cell(valkey, postgres, next(copies), tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def mill_cell(
    valkey: Valkey, postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    """A hub without workers for the tests of one module: mills (tests/chaos/mill.py) do their part."""
    from tests.cell import running_cell

    copies = copied(postgres, migrated_template)
    with running_cell(valkey, postgres, next(copies), tmp_path_factory.mktemp("mill"), workers=False) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_store_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stores of a shared cell are removed after each test: their polls and second looks would slow the others down."""
    shared = {"cell", "patient_cell", "mill_cell"} & set(request.fixturenames)
    cells = [request.getfixturevalue(name) for name in shared]
    counts = [len(one.shops) for one in cells]
    yield
    for one, count in zip(cells, counts, strict=True):
        one.close_shops(count)
