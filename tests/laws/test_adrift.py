"""What a process had begun when it died is neither forgotten nor done twice, whatever VTEX says by then."""

from collections.abc import Sequence

import pytest

from hub.ledger import Claim, Ledger, Settled
from hub.outcome import Ending, NextRow
from tests.cell import Cell, until
from tests.chaos.doubles import Killed
from tests.chaos.mill import answered, mill


class DiesWithListings(Ledger):
    """What befalls a process: it is killed when its listings have joined a lot, before it has settled them."""

    def settle(self, claim: Claim, settled: Sequence[tuple[Ending, NextRow]]) -> Settled:
        if claim.context == "catalog":
            raise Killed
        return super().settle(claim, settled)

    def leave(self) -> None:
        """A killed process says nothing."""


@pytest.mark.parametrize("dead", [False, True])
def test_a_listing_whose_process_died_after_it_had_joined_a_lot_is_taken_off_again(
    mill_cell: Cell, *, dead: bool
) -> None:
    shop = mill_cell.shop("sandbox-lot", dials={"visibility_delay": 0.0})
    (sku,) = shop.grow(1, notify=True)
    answered(mill_cell, shop, 1)
    with mill(mill_cell) as successor, mill(mill_cell, DiesWithListings) as doomed:
        with pytest.raises(Killed):
            doomed.work(shop, lambda: False, why="nothing is attempted")
        doomed.heart.stop()
        Ledger.leave(doomed.ledger)
        until(lambda: (shop.row("catalog", sku) or {}).get("work") != "h", seconds=60, why="the lease does not end")
        assert mill_cell.all("select 1 from lots where store = %s and state = 'building'", shop.store.id)
        if dead:  # it was one of its slow tries
            dying = "update states set status = 'dead', attempts = 50 where store = %s and context = 'catalog'"
            mill_cell.do(dying, shop.store.id)
        shop.change(sku, active=False)
        answered(mill_cell, shop, 2)
        successor.quiet(shop)
        until(lambda: (shown := shop.shown(sku)) is None or shown.state != "active", why="it is still sold")
        assert shop.cell.marketplace.sku(shop.slug, sku).creates == 1, "the lot left without it"
