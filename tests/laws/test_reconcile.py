"""A database older than the marketplace: what it believes is compared with what is there, and nothing is made twice."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import requests
from psycopg import sql

from hub import reconciliations
from hub.contexts.order import POLL_KEY
from hub.errors import Conflict
from tests.cell import ROOT, WITHOUT_LOOKS, Cell, Shop, until
from tests.scenarios.test_ord import place, reaches

TABLES = "select relname from pg_class where relnamespace = 'hub'::regnamespace and relkind in ('r', 'p')"


def backed_up(cell: Cell, busy: Shop) -> dict[str, list[str]]:
    """A copy of every table's rows, all of one moment, in a schema of its own; table → columns.

    As by `pg_dump`, which waits for nobody: nothing is copied, and nothing returned, unless `busy` is being polled.
    """
    kept: dict[str, list[str]] = {}
    with cell.pool.connection() as db, db.transaction():
        db.execute("set transaction isolation level repeatable read")
        polled = "select from hub.states where store = %s and context = 'order' and key = %s and work = 'h'"
        if db.execute(polled, (busy.store.id, POLL_KEY)).fetchone() is None:
            return kept
        db.execute("create schema backup")
        for (name,) in db.execute(f"{TABLES} and not relispartition").fetchall():
            table = sql.Identifier(name)
            db.execute(sql.SQL("create table backup.{} as table hub.{}").format(table, table))
            kept[name] = [
                str(row[0])
                for row in db.execute(
                    "select column_name from information_schema.columns where table_schema = 'backup'"
                    " and table_name = %s order by ordinal_position",
                    (name,),
                ).fetchall()
            ]
    return kept


def restored(cell: Cell, kept: dict[str, list[str]]) -> None:
    """The rows of the backup instead of today's, as after `pg_restore` of an old dump."""
    with cell.pool.connection() as db, db.transaction():
        db.execute("set local session_replication_role = replica")  # foreign keys wait for no order of tables
        for name, columns in kept.items():
            if name == "migrations":
                continue
            table, listed = sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, columns))
            db.execute(sql.SQL("delete from hub.{}").format(table))
            db.execute(
                sql.SQL("insert into hub.{} ({}) overriding system value select {} from backup.{}").format(
                    table, listed, listed, table
                )
            )


@contextmanager
def stopped(cell: Cell) -> Iterator[None]:
    """Without a single process of the hub."""
    for name in list(cell.processes):
        cell.stop(name)
    try:
        yield
    finally:
        cell.start_intake()
        cell.start_worker("first", "first")
        cell.start_worker("more", "more")
        cell.start("sweep", "sweep")


def command(cell: Cell, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "hub.cli", *arguments, "--json"],
        env=cell.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    return found


def compared(cell: Cell, *shops: Shop) -> dict[str, dict]:
    """`hub reconcile` on these stores; what it told, by store."""
    which = [argument for shop in shops for argument in ("--store", shop.slug)] or ["--all"]
    rows = command(cell, "reconcile", *which)["reconciliations"]
    assert {row["state"] for row in rows} == {"done"}
    return {row["store"]: row for row in rows}


def settles(shop: Shop) -> None:
    """Wait until no look is to come, and all is older than the visibility delay (one second): so it is at rest."""
    written = "select 1 from answers where store = %s and confirmed_at > now() - interval '1.1 seconds'"
    read = """
        select 1 from states where store = %s and context in ('catalog', 'price', 'stock') and status <> 'parked'
          and (work <> 'i' or answered_at > now() - interval '1.1 seconds')
    """
    until(lambda: not any(shop.cell.all(young, shop.store.id) for young in (written, read)), why="no rest")


def unlisted(shop: Shop, skus: list[str]) -> list[str]:
    """The SKUs of which the hub keeps a pair that the marketplace does not show."""
    pairs = {sku: shop.binding(sku) for sku in skus}
    shown = shop.all_shown()
    return [
        sku for sku, pair in pairs.items() if pair and (sku not in shown or pair["remote_id"] not in shown[sku].ids)
    ]


def agrees(shop: Shop, skus: list[str]) -> list[str]:
    """The SKUs that the marketplace shows otherwise than VTEX would sell them."""
    truths, wrong = shop.cell.vtex.truth(shop.account, 1), []
    shown_all = shop.all_shown()
    for sku in skus:
        truth, shown = truths.get(sku), shown_all.get(sku)
        if truth is not None and truth.sellable:
            right = shown is not None and (shown.state, shown.price_cents, shown.stock) == (
                "active",
                truth.price,
                truth.stock,
            )
        else:
            right = shown is None or shown.state != "active" or shown.stock == 0
        if not right:
            wrong.append(f"{sku}: {truth} is shown as {shown}")
        if shown is not None and len(shown.ids) > 1:
            wrong.append(f"{sku}: listed {len(shown.ids)} times")
    return wrong


PROFILES = ("sandbox-sync", "sandbox-lot", "sandbox-replace")


def test_a_database_restored_from_before_agrees_again_and_nothing_is_doubled(own_cell: Cell) -> None:
    shops = [own_cell.shop(profile, polls=True) for profile in PROFILES]
    old = {shop.slug: shop.grow(6) for shop in shops}
    before = {}
    for shop in shops:
        shop.published(*old[shop.slug])
        before[shop.slug] = place(shop, old[shop.slug][0])
        reaches(shop, before[shop.slug], "approved")
        shop.quiet(answered=True)
    # In the middle of an attempt: the backup holds the claim of a process that will be gone.
    own_cell.marketplace.fault("latency", account=shops[1].slug, seconds=0.5)
    kept = until(lambda: backed_up(own_cell, shops[1]), why="no poll was under way")
    own_cell.marketplace.clear_faults()

    # The world goes on: new listings, prices, stocks, a removal, an order.
    new = {shop.slug: shop.grow(3) for shop in shops}
    after = {}
    for shop in shops:
        _, dearer, sold_out, removed, ordered, _ = old[shop.slug]
        shop.published(*new[shop.slug])
        shop.change(dearer, price=12345)
        shop.change(sold_out, stock=0)
        shop.change(removed, active=False)
        for sku in (dearer, sold_out):
            shop.shows(sku)
        until(lambda shop=shop, removed=removed: not agrees(shop, [removed]), why="the removal was not seen")
        after[shop.slug] = place(shop, ordered)
        reaches(shop, after[shop.slug], "approved")
        shop.quiet(answered=True)

    with stopped(own_cell):
        # What is announced now is lost with the processes that would have heard it.
        for shop in shops:
            shop.change(new[shop.slug][0], notify=False, active=False)
            shop.change(old[shop.slug][5], notify=False, price=777)
        restored(own_cell, kept)
    assert shops[0].binding(new[shops[0].slug][1]) is None
    told = compared(own_cell)
    for shop in shops:
        everything = [*old[shop.slug], *new[shop.slug]]
        until(lambda shop=shop, skus=everything: not agrees(shop, skus), why=str(agrees(shop, everything)), seconds=60)
        assert told[shop.slug]["rebound"] == 3
        earlier, later = before[shop.slug], after[shop.slug]
        reaches(shop, later, "approved")
        seen = {name: (one.attempts, one.creations) for name, one in own_cell.vtex.orders(shop.account).items()}
        assert seen == {earlier: (1, 1), later: (1, 1)}
        until(lambda shop=shop, skus=everything: not unlisted(shop, skus), why="a pair without a listing")
        for sku in everything:
            if shop.truth(sku).sellable:
                assert shop.binding(sku) is not None, "it is sold, and nobody here knows of it"


def test_a_comparison_that_finds_nothing_writes_nothing(cell: Cell) -> None:
    shops = [cell.shop(profile) for profile in PROFILES]
    skus = {shop.slug: shop.grow(3) for shop in shops}
    odd = shops[0].grow(1, category_ids=[2])  # its category is not mapped
    for shop in shops:
        shop.published(*skus[shop.slug])
    shops[0].modified(odd[0], sku=True)
    shops[0].status("catalog", odd[0], "parked")
    for shop in shops:
        shop.quiet(answered=True)
        until(
            lambda shop=shop: (
                not cell.all(
                    "select 1 from states where store = %s and work = 's' and looks > 0 and status = 'done'"
                    " and context in ('catalog', 'price', 'stock')",
                    shop.store.id,
                )
            ),
            why="looks",
        )
    said = cell.all("select count(*) as n from interactions where store = any(%s)", [shop.store.id for shop in shops])
    calls = {shop.slug: shop.last_call() for shop in shops}
    told = compared(cell, *shops)
    for shop in shops:
        assert told[shop.slug]["listings"] == 3
        assert told[shop.slug]["differing"] == told[shop.slug]["rebound"] == told[shop.slug]["absent"] == 0
        shop.quiet(answered=True)
        assert shop.writes(after=calls[shop.slug]) == []
    again = cell.all("select count(*) as n from interactions where store = any(%s)", [shop.store.id for shop in shops])
    assert again == said


def test_an_answer_that_lied_is_found_out(cell: Cell) -> None:
    shop = cell.shop()
    skus = shop.grow(2)
    shop.published(*skus)
    shop.quiet()
    settles(shop)
    cell.marketplace.drift(shop.slug, skus[0], price=100)
    cell.marketplace.drift(shop.slug, skus[1], stock=999)
    told = compared(cell, shop)[shop.slug]
    assert told["differing"] == 2
    for sku in skus:
        shop.shows(sku)


def test_a_listing_that_nobody_here_made_is_left_alone_by_the_calendar(cell: Cell) -> None:
    shop = cell.shop(settings=WITHOUT_LOOKS)
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet()
    cell.do("delete from bindings where store = %s", shop.store.id)
    cell.do("delete from states where store = %s", shop.store.id)
    cell.do("delete from answers where store = %s", shop.store.id)
    cell.vtex.drop(shop.account, int(sku), notify=False)
    cell.do(
        "insert into runs (store, kind, who, filter) values (%s, 'reconcile', 'hub: calendar', '{\"adopts\": false}')",
        shop.store.id,
    )

    def ended() -> bool:
        found = reconciliations.listed(cell.pool, store=shop.store.id)
        return bool(found) and found[0].state == "done"

    until(ended, seconds=60)
    assert reconciliations.listed(cell.pool, store=shop.store.id)[0].counts["foreign"] == 1
    shop.quiet()
    shown = shop.shown(sku)
    assert shown is not None
    assert shown.state == "active"
    # Whoever restored a database says so: then it is ours, and what VTEX does not sell is not sold.
    compared(cell, shop)
    until(lambda: (found := shop.shown(sku)) is None or found.state != "active" or found.stock == 0)


def test_a_listing_that_is_gone_is_made_again_once(cell: Cell) -> None:
    shop = cell.shop("sandbox-replace")
    skus = shop.grow(2)
    shop.published(*skus)
    shop.quiet()
    settles(shop)
    headers = {"Authorization": f"Bearer {shop.seller.token}"}
    assert requests.delete(f"{shop.seller.url}/offers/{skus[0]}", headers=headers, timeout=5).status_code == 200
    told = compared(cell, shop)[shop.slug]
    assert told["absent"] == 1
    shop.shows(skus[0])
    assert not agrees(shop, skus)


def test_each_store_has_its_own_time_of_the_calendar_and_two_looks_start_it_once(cell: Cell) -> None:
    shops = [cell.shop() for _ in range(3)]
    stores = [shop.store.id for shop in shops]
    count = "select count(*) as n from runs where kind = 'reconcile' and store = any(%s)"
    reconciliations.start_due(cell.pool, hours=8760)
    assert cell.one(count, stores) == {"n": 0}  # younger than their period
    cell.do("update stores set created_at = now() - interval '3 days' where id = any(%s)", stores)
    reconciliations.start_due(cell.pool, hours=24)
    reconciliations.start_due(cell.pool, hours=24)
    assert cell.one(count, stores) == {"n": 3}
    until(lambda: not cell.all("select 1 from runs where state = 'running' and store = any(%s)", stores), seconds=60)
    reconciliations.start_due(cell.pool, hours=24)
    assert cell.one(count, stores) == {"n": 3}
    cell.do("update runs set started_at = started_at - interval '1 day' where store = any(%s)", stores)
    reconciliations.start_due(cell.pool, hours=24)
    assert cell.one(count, stores) == {"n": 6}


def test_a_count_beforehand_changes_nothing(cell: Cell) -> None:
    shop = cell.shop()
    shop.published(*shop.grow(2))
    assert command(cell, "reconcile", "--store", shop.slug, "--dry-run")["stores"] == [
        {"store": shop.slug, "listings": 2, "orders": 0}
    ]
    assert reconciliations.listed(cell.pool, store=shop.store.id) == []


# ---------------------------------------------------------------- other rules


def by(who: str, shop: Shop) -> list[str]:
    """The states of this store's comparisons that were begun by `who`."""
    return [run.state for run in reconciliations.listed(shop.cell.pool, store=shop.store.id) if run.who == who]


def with_other(shop: Shop, **fields: object) -> None:
    """Change these settings of the store."""
    tree = json.loads(shop.cell.registry.get(shop.slug).settings.model_dump_json())
    shop.cell.registry.configure(shop.slug, {**tree, **fields}, who="tests")


def test_what_is_shown_follows_a_rule_that_was_changed_although_nothing_changed_in_vtex(cell: Cell) -> None:
    shop = cell.shop(settings=WITHOUT_LOOKS)
    skus = shop.grow(3, price=[5000, 5000], stock=[10, 10])
    shop.published(*skus)
    settles(shop)
    with_other(shop, pricing={"markup": "10"}, inventory={"safety": 2})
    for sku in skus:
        shop.shows(sku, price_cents=5500, stock=8)
    until(lambda: by(reconciliations.RULES, shop) == ["done"], why="it is compared once")


def test_a_rule_changed_while_the_store_is_compared_or_paused_is_followed_afterwards(cell: Cell) -> None:
    shop = cell.shop(settings=WITHOUT_LOOKS)
    (sku,) = shop.grow(1, price=[5000, 5000])
    shop.published(sku)
    settles(shop)
    cell.registry.pause(shop.slug, "tests", "first the rules")
    with_other(shop, pricing={"markup": "20"})
    assert not reconciliations.start_changed(cell.pool), "nothing is sent for a paused store"
    cell.registry.resume(shop.slug, "tests")
    with suppress(Conflict):  # the sweep was first
        reconciliations.start(cell.pool, shop.store.id, who="tests")
    shop.shows(sku, price_cents=6000)
    until(lambda: by(reconciliations.RULES, shop) == ["done"], why="nothing was compared after the one under way")


def test_settings_that_decide_nothing_about_what_is_shown_have_nothing_compared(cell: Cell) -> None:
    shop = cell.shop(settings=WITHOUT_LOOKS)
    with_other(shop, poll_orders_seconds=1800, mapping_link="https://example.test/map")
    other = cell.shop(settings=WITHOUT_LOOKS)
    with_other(other, simulation="checkout")
    until(lambda: by(reconciliations.RULES, other) == ["done"])
    assert by(reconciliations.RULES, shop) == []
