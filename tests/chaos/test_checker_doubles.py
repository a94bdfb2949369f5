"""The checker works: in a real small run each law broken on purpose makes it cry, and the same run without does not.

Every story is told twice, with the product's part and with its double.
"""

import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import psycopg
import pytest
import requests

from chaos.checker import Violation, before_healing, violations
from chaos.evidence import Post
from chaos.witness import Witness
from hub import mappings
from hub.ledger import Ledger
from hub.mappings import CategoryMapping
from tasks.spool import found_in
from tests.cell import CATEGORIES, ROOT, Cell, Shop, requests_counted, until
from tests.chaos.doubles import (
    Dies,
    DropsReleases,
    ForgetsAsked,
    Killed,
    NeverSweeps,
    SettlesLate,
    Stalls,
    WritesBlind,
)
from tests.chaos.mill import Mill, answered, mill, served, sweeping

Kinds = tuple[type, ...]


def cries(shop: Shop, *posts: Post) -> list[Violation]:
    """What the checker says of this store; queues have no workers here."""
    witness = Witness(shop.cell.settings, shop.cell.vtex, shop.cell.marketplace)
    return violations(witness.evidence(slugs=[shop.slug], queues=False, posts={shop.slug: posts}))


def laws(found: list[Violation]) -> set[str]:
    return {one.law for one in found}


def published(worker: Mill, **settings: object) -> tuple[Shop, str]:
    """A store with one SKU that the marketplace shows: price 99.90, stock 37."""
    shop = worker.cell.shop(settings={"look_again": [60.0], **settings})
    (sku,) = shop.grow(1, notify=True)
    answered(worker.cell, shop, 1)
    worker.quiet(shop)
    shown = shop.shown(sku)
    assert shown is not None
    assert (shown.state, shown.price_cents, shown.stock) == ("active", 9990, 37)
    return shop, sku


def killed_at_work(worker: Mill, shop: Shop) -> None:
    """The mill attempts what is pending and is killed before it settles."""
    with pytest.raises(Killed):
        worker.turn(shop)


def gone_for_long(worker: Mill) -> None:
    """So long have we heard nothing of it that its leases have ended."""
    worker.heart.stop()
    Ledger.leave(worker.ledger)


def freed(cell: Cell, shop: Shop) -> None:
    """Wait until nobody holds anything of this store."""
    held = "select 1 from states where store = %s and work = 'h'"
    until(lambda: not cell.all(held, shop.store.id), seconds=60, why="the leases do not end")


# ---------------------------------------------------------------- the stories


def a_change_during_the_hold(cell: Cell, kinds: Kinds) -> list[Violation]:
    with mill(cell, Stalls, *kinds) as worker:
        shop, sku = published(worker)
        ledger = worker.ledger
        assert isinstance(ledger, Stalls)
        ledger.stop()
        shop.change(sku, stock=5)
        answered(cell, shop, 2)
        busy = threading.Thread(target=worker.turn, args=(shop,))
        busy.start()
        try:
            assert ledger.reached.wait(60)
            served(cell, shop, 5)
            shop.change(sku, stock=9)
            answered(cell, shop, 3)
        finally:
            ledger.go_on.set()
            busy.join()
        worker.quiet(shop)
        return cries(shop)


def a_worker_that_was_stopped(cell: Cell, kinds: Kinds) -> list[Violation]:
    with mill(cell) as successor, mill(cell, Stalls, *kinds) as stopped:
        shop, sku = published(successor)
        ledger = stopped.ledger
        assert isinstance(ledger, Stalls)
        ledger.stop()
        shop.change(sku, stock=5)
        answered(cell, shop, 2)
        busy = threading.Thread(target=stopped.turn, args=(shop,))
        busy.start()
        try:
            assert ledger.reached.wait(60)
            gone_for_long(stopped)
            freed(cell, shop)
            shop.change(sku, stock=9)
            answered(cell, shop, 3)
            successor.quiet(shop)
            shop.shows(sku, stock=9)
        finally:
            ledger.go_on.set()
            busy.join()
        shop.change(sku, stock=5)
        answered(cell, shop, 4)
        successor.quiet(shop)
        return cries(shop)


def a_worker_killed_after_its_write(cell: Cell, kinds: Kinds) -> list[Violation]:
    with mill(cell) as successor, mill(cell, Dies, *kinds) as doomed:
        shop, sku = published(successor)
        shop.change(sku, stock=5)
        answered(cell, shop, 2)
        killed_at_work(doomed, shop)
        shop.shows(sku, stock=5)
        gone_for_long(doomed)
        freed(cell, shop)
        shop.change(sku, stock=37)
        answered(cell, shop, 3)
        successor.quiet(shop)
        return cries(shop)


def a_worker_killed_at_work(cell: Cell, kinds: Kinds) -> list[Violation]:
    cell.stop("sweep")
    try:
        kind = type("Ledger", (*kinds, Ledger), {})
        with sweeping(cell, kind), mill(cell) as successor, mill(cell, Dies) as doomed:
            shop, sku = published(successor)
            shop.change(sku, stock=5)
            answered(cell, shop, 2)
            killed_at_work(doomed, shop)
            gone_for_long(doomed)
            if kinds:
                old = "select 1 from states where store = %s and work = 'h'"
                old += " and pending_since < now() - interval '5.5 seconds'"
                successor.work(shop, lambda: cell.all(old, shop.store.id), why="it is not held")
            else:
                successor.quiet(shop)
            return cries(shop)
    finally:
        cell.start("sweep", "sweep")


def a_mapping_that_comes_later(cell: Cell, kinds: Kinds) -> list[Violation]:
    with mill(cell, *kinds) as worker:
        shop = cell.shop(settings={"look_again": [60.0]})
        (sku,) = shop.grow(1, category_ids=[2], notify=True)
        answered(cell, shop, 1)
        worker.quiet(shop)
        row = shop.row("catalog", sku)
        assert row is not None
        assert row["status"] == "parked"
        assert cries(shop) == []
        rows = [CategoryMapping("2", CATEGORIES[1], "")]
        mappings.save(worker.pool, shop.store.id, rows, who="tests", ledger=worker.ledger)
        worker.quiet(shop)
        return cries(shop)


def an_intake_that_is_killed(cell: Cell, kinds: Kinds) -> list[Violation]:
    """PostgreSQL cannot store just now; a notification comes, is answered somehow, and the intake is killed."""
    with mill(cell) as worker, ExitStack() as stack:
        shop, sku = published(worker)
        port = cell.intake_url.rpartition(":")[2]
        if kinds:
            cell.stop("intake")
            command = [sys.executable, "-m", "tests.chaos.hasty_intake", port]
            hasty = subprocess.Popen(command, env=cell.env | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)
            cell.processes["intake"] = hasty
            until(lambda: requests_counted(cell.intake_url) >= 0 and ready(cell), seconds=60, why="not ready")
        blocker = stack.enter_context(psycopg.connect(cell.settings.database_url))
        blocker.execute(f"lock table {cell.settings.schema}.notices in access exclusive mode")
        at, status = time.time(), 0
        body = {"IdSku": sku, "An": shop.account, "IdAffiliate": shop.affiliate, "StockModified": True}
        with suppress(requests.RequestException):
            status = requests.post(shop.intake_url, json=body, timeout=60).status_code
        cell.stop("intake", signal.SIGKILL)
        blocker.rollback()
        cell.start_intake()
        until(lambda: ready(cell), seconds=60, why="the intake is not back")
        until(lambda: found_in(cell.settings.spool)[0] == 0, why="the spool is not stored")
        worker.quiet(shop)
        return cries(shop, Post(at, "notification", sku, status, "driver", flags=("stock",)))


def ready(cell: Cell) -> bool:
    with suppress(requests.RequestException):
        return requests.get(f"{cell.intake_url}/readyz", timeout=2).status_code == 200
    return False


STORIES = {
    "forgets what was asked during the hold": (a_change_during_the_hold, (ForgetsAsked,), {"read-after", "shown"}),
    "settles after its lease has ended": (a_worker_that_was_stopped, (SettlesLate,), {"shown"}),
    "writes without an intent": (a_worker_killed_after_its_write, (WritesBlind,), {"shown"}),
    "never sweeps": (a_worker_killed_at_work, (NeverSweeps,), {"rest"}),
    "drops a release": (a_mapping_that_comes_later, (DropsReleases,), {"rest", "shown"}),
    "answers 200 before storing": (an_intake_that_is_killed, (object,), {"conservation", "read-after"}),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_broken_law_makes_the_checker_cry(mill_cell: Cell, name: str) -> None:
    story, kinds, broken = STORIES[name]
    assert laws(story(mill_cell, kinds)) >= broken


@pytest.mark.parametrize("name", STORIES)
def test_the_same_story_without_the_double_is_clean(mill_cell: Cell, name: str) -> None:
    story, _, _ = STORIES[name]
    assert story(mill_cell, ()) == []


@pytest.mark.parametrize(
    ("marketplace", "operation"), [("sandbox-sync", "stock_put"), ("sandbox-replace", "offer_put")]
)
def test_a_lie_of_the_marketplace_is_wrong_in_the_end_and_excused_before_the_healing_sweep(
    mill_cell: Cell, marketplace: str, operation: str
) -> None:
    with mill(mill_cell) as worker:
        shop = mill_cell.shop(marketplace, settings={"look_again": [60.0]})
        (sku,) = shop.grow(1, notify=True)
        answered(mill_cell, shop, 1)
        worker.quiet(shop)
        mill_cell.marketplace.fault("lie", operation=operation, account=shop.slug, count=1)
        shop.change(sku, stock=5)
        answered(mill_cell, shop, 2)
        worker.quiet(shop)
        evidence = Witness(mill_cell.settings, mill_cell.vtex, mill_cell.marketplace).evidence(
            slugs=[shop.slug], queues=False
        )
        assert laws(violations(evidence)) == {"shown"}
        assert before_healing(evidence) == []
