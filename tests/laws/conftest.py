from collections.abc import Iterator

import pytest

from tests.laws.books import Books, books_at


@pytest.fixture
def books(database: str) -> Iterator[Books]:
    """A ledger on a database of its own."""
    with books_at(database) as opened:
        yield opened
