"""The whole hub under faults, once, from a fixed seed, in about a minute; `make chaos` runs many and larger ones."""

from pathlib import Path

import pytest

from chaos.evidence import Evidence
from chaos.plan import DEPENDENCIES, Sizes, plan
from chaos.run import run
from chaos.world import LEASE_SECONDS

SEED = 11
SIZES = Sizes(notifications=300, skus=40, stores=4, kills=4, workers=1, seconds=32)


@pytest.mark.timeout(600)
def test_a_small_hub_loses_nothing_while_everything_around_it_fails(tmp_path: Path) -> None:
    outcome = run(SEED, SIZES, keep=tmp_path)
    assert not outcome.failed
    assert outcome.violations == []
    # Something was asked, shown and harmed: where nothing happens, no law is broken either.
    seen = Evidence.from_json((tmp_path / f"seed-{SEED}" / "evidence.json").read_bytes())
    taken = [post for store in seen.stores for post in store.posts if (post.kind, post.status) == ("notification", 200)]
    assert len(taken) > SIZES.notifications / 2
    assert sum(len(store.wrote) > 0 for store in seen.stores) == SIZES.stores
    assert sum(process.starts - 1 for process in seen.processes) >= SIZES.kills
    went = [one.fault.value for one in plan(SEED, SIZES, lease=LEASE_SECONDS).strikes if one.fault in DEPENDENCIES]
    assert went
    assert [recovery.what for recovery in seen.recoveries] == went
