"""LOD: a store's whole catalogue goes over once, whatever is cut, away, wrong or announced meanwhile."""

import json
import signal
import subprocess
import sys
from collections import Counter
from urllib.parse import parse_qs

import pytest

from hub import loads
from hub.loads import Load
from tests.cell import PROFILES, ROOT, Cell, Shop, until

EVERY_PROFILE = pytest.mark.parametrize("marketplace", PROFILES)
BOTH_WAYS = pytest.mark.parametrize("marketplace", ["sandbox-sync", "sandbox-replace"])
"""Price and stock apart, and all in one record; lots would only take longer."""


def load(shop: Shop, *, page_size: int = 1000, skus: list[str] | None = None) -> int:
    """Begin a load as `hub load` does; its number."""
    return loads.start(shop.cell.pool, shop.store.id, who="tests", page_size=page_size, skus=skus or ())


def ended(shop: Shop, run: int, *, seconds: float = 60.0) -> Load:
    """Wait until the load is done and everything that it made necessary has come to rest."""
    until(lambda: loads.progress(shop.cell.pool, run).state == "done", seconds=seconds, why="the load does not end")
    shop.quiet(answered=True, seconds=seconds)
    return loads.progress(shop.cell.pool, run)


def hub(cell: Cell, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the command `hub`."""
    command = [sys.executable, "-m", "hub.cli", *words]
    return subprocess.run(command, env=cell.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def pages_read(shop: Shop, page_size: int) -> list[int]:
    """How often each page of this size was asked of VTEX, from the first."""
    asked = Counter(
        int(query["page"][0])
        for query in (parse_qs(call["query"].lower()) for call in shop.vtex_calls("sku_ids"))
        if query["pagesize"] == [str(page_size)]
    )
    return [asked[page] for page in sorted(asked)]


def registered(shop: Shop) -> Counter[str]:
    """How often the log tells that a SKU was registered, by SKU: created, or found to be there already."""
    rows = shop.cell.all(
        "select key from interactions where store = %s and context = 'catalog' and code = 'S1'", shop.store.id
    )
    return Counter(row["key"] for row in rows)


def each_once(shop: Shop, skus: list[str]) -> None:
    """Every SKU is on show as VTEX sells it, and was made once."""
    for sku in skus:
        shop.shows(sku)
    shown = shop.all_shown()
    assert set(shown) == set(skus)
    assert {(one.creates, len(one.ids)) for one in shown.values()} == {(1, 1)}


@EVERY_PROFILE
@pytest.mark.scenario("LOD-01")
def test_a_load_reads_every_page_and_each_sku_gets_one_outcome(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    skus = shop.grow(45)
    told = hub(cell, "load", shop.slug, "--page-size", "20", "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert (answer["total"], answer["sent"], answer["rejected"], answer["pending"]) == (45, 45, 0, 0)
    shop.quiet(answered=True)
    each_once(shop, skus)
    assert registered(shop) == dict.fromkeys(skus, 1)
    assert pages_read(shop, 20) == [1, 1, 1, 1], "three pages and the empty one that ends the list"


@pytest.mark.parametrize("paging", ["ignored", "repeated"])
@pytest.mark.parametrize("page_size", [10, 100])
@pytest.mark.scenario("LOD-02")
def test_a_load_ends_when_vtex_lists_the_same_again_and_again(cell: Cell, paging: str, page_size: int):
    shop = cell.shop("sandbox-replace")
    cell.vtex.catalog_habits(shop.account, paging=paging, duplicate_ids=0.2)
    skus = shop.grow(25)
    load_ = ended(shop, load(shop, page_size=page_size))
    assert (load_.total, load_.sent) == (25, 25)
    each_once(shop, skus)
    assert registered(shop) == dict.fromkeys(skus, 1)
    assert len(shop.vtex_calls("sku_ids")) <= 25 // page_size + 3


@EVERY_PROFILE
@pytest.mark.scenario("LOD-03")
def test_a_valid_sku_is_simulated_sent_and_its_ids_are_stored(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    (sku,) = shop.grow(1)
    ended(shop, load(shop))
    shop.shows(sku)
    shown = shop.shown(sku)
    assert shop.binding(sku) == {"remote_id": shown.ids[0], "state": "published", "link": shown.link}
    (told,) = [one for one in shop.told(sku, "S1") if one["operation"] == "Offer creation"]
    assert told["source"]["simulation"]["price"] == shop.truth(sku).price
    simulations = shop.vtex_calls("simulation")
    for body in (json.loads(call["body"]) for call in simulations):
        assert body["items"] == [{"id": sku, "quantity": 1, "seller": "1"}]
        assert not body.get("postalCode")
    first_write = min(call.at for call in shop.writes())
    assert len([call for call in simulations if call["at"] < first_write]) == 1


@BOTH_WAYS
@pytest.mark.scenario("LOD-04")
def test_one_broken_sku_of_ten_is_told_whole_and_the_other_nine_are_sent(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    skus = shop.grow(10)
    broken = skus[2]
    shop.change(broken, notify=False, name="Toalha " * 20, ean="7890000000001")
    load_ = ended(shop, load(shop))
    assert (load_.total, load_.sent, load_.rejected) == (10, 9, 1)
    each_once(shop, [sku for sku in skus if sku != broken])
    (told,) = shop.told(broken)
    assert told["code"] == "E1"
    assert {problem["field"] for problem in told["problems"]} == {"title", "EAN"}


@BOTH_WAYS
@pytest.mark.scenario("LOD-05")
def test_what_may_not_be_sold_is_not_sent_and_says_why(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    sold, inactive, elsewhere, of_inactive = shop.grow(4)
    shop.change(inactive, notify=False, active=False)
    shop.change(elsewhere, notify=False, channels=[])
    shop.change(of_inactive, notify=False, product_active=False)
    ended(shop, load(shop, skus=[sold, inactive, elsewhere, of_inactive]))
    each_once(shop, [sold])
    for sku, code in ((inactive, "A2"), (elsewhere, "A1"), (of_inactive, "A2")):
        assert [(told["code"], told["status"]) for told in shop.told(sku)] == [(code, "warning")]


@EVERY_PROFILE
@pytest.mark.scenario("LOD-06")
def test_a_load_survives_a_marketplace_that_goes_away_in_its_middle(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings={"marketplace_limit": {"rate": 100.0, "burst": 10}})
    skus = shop.grow(30)
    run = load(shop, page_size=10)
    until(shop.writes, why="the load does not begin")
    cell.marketplace.outage(shop.slug, "503", 300)
    until(
        lambda: cell.all("select 1 from interactions where store = %s and code = 'E2'", shop.store.id),
        why="nobody tells that the marketplace is away",
    )
    away = cell.one("select count(*) as late from states where store = %s and status <> 'done'", shop.store.id)
    assert away is not None
    assert away["late"] > 0
    cell.marketplace.outage(shop.slug, "off")
    for sku in skus:
        shop.shows(sku, seconds=60)
    load_ = ended(shop, run)
    each_once(shop, skus)
    assert (load_.total, load_.sent, load_.contingency) == (30, 30, 0)


@pytest.mark.scenario("LOD-07")
def test_a_load_goes_on_from_its_cursor_after_its_workers_were_killed(own_cell: Cell):
    cell, shop = own_cell, own_cell.shop("sandbox-sync")
    skus = shop.grow(60)
    cell.marketplace.fault("latency", account=shop.slug, seconds=0.4, for_seconds=60)
    run = load(shop, page_size=15)
    until(lambda: len(shop.all_shown()) >= 5, why="the load does not begin")
    for worker in ("first", "more"):
        cell.stop(worker, signal.SIGKILL)
    cut = loads.progress(cell.pool, run)
    assert cut.state == "running"
    assert 0 < len(shop.all_shown()) < len(skus), "this test came too late"
    cell.start_worker("first", "first")
    cell.start_worker("more", "more")
    load_ = ended(shop, run)
    assert (load_.total, load_.sent) == (60, 60)
    each_once(shop, skus)
    assert registered(shop) == dict.fromkeys(skus, 1)
    # The page whose claim died with a worker is read again, those before the cursor are not.
    again = pages_read(shop, 15)
    assert len(again) == 5
    assert set(again[: cut.page - 1]) <= {1}
    assert sum(again) <= 6


@pytest.mark.scenario("LOD-08")
def test_a_notification_about_a_waiting_sku_brings_it_forward_and_it_is_done_once(cell: Cell):
    shop = cell.shop("sandbox-sync", settings={"marketplace_limit": {"rate": 15.0, "burst": 15}})
    skus = shop.grow(30)
    last = skus[-1]
    run = load(shop)
    until(lambda: shop.row("catalog", last), why="the load does not begin")
    shop.modified(last, sku=True)
    until(lambda: shop.shown(last), seconds=60)
    assert len(shop.all_shown()) < len(skus) - 5, "it waited for its turn in the load"
    ended(shop, run)
    each_once(shop, skus)
    told = [one["code"] for one in shop.told(last) if one["operation"] in ("Offer creation", "Catalog change")]
    assert told == ["S1"], "the load came back to it, or the notification did"


@BOTH_WAYS
@pytest.mark.scenario("LOD-08")
def test_what_is_announced_while_a_load_writes_is_read_afterwards(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace)
    skus = shop.grow(12)
    cell.marketplace.fault("latency", account=shop.slug, seconds=0.4, for_seconds=60)
    run = load(shop)
    read: set[str] = set()

    def each_was_changed() -> bool:
        """As soon as VTEX has told the load what a SKU costs, it costs something else."""
        bodies = [json.loads(call["body"]) for call in shop.vtex_calls("simulation")]
        for sku in {body["items"][0]["id"] for body in bodies} - read:
            read.add(sku)
            shop.change(sku, price=5500 + len(read), list_price=5500 + len(read), stock=3)
        return len(read) == len(skus)

    until(each_was_changed, seconds=60, why="the load does not read its SKUs")
    ended(shop, run)
    each_once(shop, skus)
    assert {one.stock for one in shop.all_shown().values()} == {3}


@pytest.mark.scenario("LOD-09")
def test_a_load_of_an_incomplete_store_is_refused_with_all_that_is_missing(cell: Cell):
    shop = cell.shop("sandbox-sync")
    shop.grow(3)
    cell.vtex.put_affiliate(shop.account, shop.affiliate, sales_channel=2, endpoint=None)
    cell.marketplace.revoke(shop.slug)
    told = hub(cell, "load", shop.slug, "--json")
    assert told.returncode == 2
    problems = json.loads(told.stdout)["error"]["problems"]
    assert {problem["field"] for problem in problems} >= {"affiliate.searchURIEndpoint", "token"}
    assert all(problem["fix"] for problem in problems)
    assert f"hub store check {shop.slug}" in told.stderr
    assert loads.latest(cell.pool, shop.store.id) is None
    assert cell.all("select key from states where store = %s and context in ('load', 'catalog')", shop.store.id) == []
    assert shop.all_shown() == {}


@pytest.mark.scenario("LOD-11")
def test_a_load_of_chosen_skus_leaves_the_others_alone(cell: Cell):
    shop = cell.shop("sandbox-replace")
    skus = shop.grow(12)
    chosen = skus[2:9:3]
    told = hub(cell, "load", shop.slug, *(f"--sku={sku}" for sku in chosen), "--page-size", "2", "--no-check", "--json")
    assert told.returncode == 0, told.stderr
    shop.quiet()
    each_once(shop, chosen)
    assert {call["path"].rpartition("/")[2] for call in shop.vtex_calls("sku")} == set(chosen)
    assert shop.vtex_calls("sku_ids") == []


@pytest.mark.scenario("LOD-13")
def test_the_progress_of_a_load_counts_every_kind_of_outcome(cell: Cell):
    shop = cell.shop("sandbox-sync")
    shop.grow(3)
    (refused,) = shop.grow(1)
    (inactive,) = shop.grow(1)
    (unmapped,) = shop.grow(1, category_ids=[2])
    (late,) = shop.grow(1)
    cell.marketplace.break_sku(shop.slug, refused, 400, [{"field": "brand", "code": "no", "message": "is not known"}])
    cell.marketplace.break_sku(shop.slug, late, 500)
    shop.change(inactive, notify=False, active=False)
    run = load(shop)
    ended(shop, run)
    told = hub(cell, "load", "list", "--store", shop.slug, "--json")
    assert told.returncode == 0, told.stderr
    (row,) = json.loads(told.stdout)["loads"]
    counts = {"load": run, "total": 7, "sent": 3, "pending": 0, "rejected": 2, "awaiting_mapping": 1, "contingency": 1}
    assert {name: row[name] for name in counts} == counts
    assert {unmapped, refused, inactive, late}.isdisjoint(
        sku for sku, shown in shop.all_shown().items() if shown.state == "active"
    )
