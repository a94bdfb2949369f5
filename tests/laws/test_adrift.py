"""What a process had begun when it died is neither forgotten nor done twice, whatever VTEX says by then."""

from collections.abc import Iterator, Sequence

import pytest

from hub.ledger import Claim, Ledger, Settled
from hub.outcome import Ending, NextRow
from hub.runtime.embedded import Postgres, Valkey
from tests.cell import Cell, running_cell, until
from tests.chaos.doubles import Killed
from tests.chaos.mill import answered, mill
from tests.conftest import copied


class DiesWithListings(Ledger):
    """What befalls a process: it is killed when its listings have joined a lot, before it has settled them."""

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        if claim.context == "catalog":
            raise Killed
        return super().settle(claim, settled)

    def leave(self) -> None:
        """A killed process says nothing."""


@pytest.fixture(scope="module")
def cell(
    valkey: Valkey, postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    """Intake, sweep and simulators; the workers are mills in this process."""
    copies = copied(postgres, migrated_template)
    with running_cell(valkey, postgres, next(copies), tmp_path_factory.mktemp("cell")) as running:
        for worker in ("first", "more"):
            running.stop(worker)
        yield running


def test_a_listing_whose_process_died_after_it_had_joined_a_lot_is_taken_off_again(cell: Cell) -> None:
    shop = cell.shop("sandbox-lot", dials={"visibility_delay": 0.0})
    (sku,) = shop.grow(1, notify=True)
    answered(cell, shop, 1)
    with mill(cell) as successor, mill(cell, DiesWithListings) as doomed:
        with pytest.raises(Killed):
            doomed.work(shop, lambda: False, why="nothing is attempted")
        doomed.heart.stop()
        Ledger.leave(doomed.ledger)
        until(lambda: (shop.row("catalog", sku) or {}).get("work") != "h", seconds=60, why="the lease does not end")
        assert cell.all("select 1 from lots where store = %s and state = 'building'", shop.store.id)
        shop.change(sku, active=False)
        answered(cell, shop, 2)
        successor.quiet(shop)
        until(lambda: (shown := shop.shown(sku)) is None or shown.state != "active", why="it is still sold")
        assert shop.cell.marketplace.sku(shop.slug, sku).creates == 1, "the lot left without it"
