"""The whole hub under faults, once, from a fixed seed, in about a minute; `make chaos` runs many and larger ones."""

from pathlib import Path

import pytest

from chaos.plan import Sizes
from chaos.run import run

SEED = 11
SIZES = Sizes(notifications=300, skus=40, stores=4, kills=4, workers=1, seconds=32)


@pytest.mark.timeout(600)
def test_a_small_hub_loses_nothing_while_everything_around_it_fails(tmp_path: Path) -> None:
    outcome = run(SEED, SIZES, keep=tmp_path)
    assert not outcome.failed
    assert outcome.violations == []
