from collections.abc import Iterator

import pytest

from tests.laws.cell import Cell, cell_at


@pytest.fixture
def cell(database: str) -> Iterator[Cell]:
    """A ledger on a database of its own."""
    with cell_at(database) as opened:
        yield opened
