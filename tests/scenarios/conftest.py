"""What the scenarios share beside the cell."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.runtime.embedded import Postgres, Valkey
from tests.cell import Cell, running_cell
from tests.conftest import copied


@pytest.fixture(scope="session")
def own_valkey(server_directory: Path) -> Iterator[Valkey]:
    """The Valkey of the patient cell alone: a test may kill it, and starts it again."""
    with Valkey(server_directory / "own-valkey", durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def patient_cell(
    own_valkey: Valkey, postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    """A second hub, where a failing key lives for about ten seconds. Tests that kill its processes start them again."""
    copies = copied(postgres, migrated_template)
    directory = tmp_path_factory.mktemp("patient")
    with running_cell(own_valkey, postgres, next(copies), directory, plan="demo") as running:
        yield running
