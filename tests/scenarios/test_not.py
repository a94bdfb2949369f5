"""NOT: whatever VTEX posts, in whatever form, is stored or refused at the door, and moves just what it is about."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import requests

from tests.cell import PROFILES, WITHOUT_LOOKS, Cell, Shop, requests_counted, until
from tests.timing import quickest

CONTEXTS = ("catalog", "price", "stock")


@pytest.fixture(scope="module")
def shop(cell: Cell) -> Shop:
    """A store on the synchronous marketplace; each test has SKUs of its own in it."""
    return cell.shop("sandbox-sync", settings=WITHOUT_LOOKS)


@pytest.fixture(scope="module", params=PROFILES)
def each_shop(cell: Cell, request: pytest.FixtureRequest) -> Shop:
    """A store on each marketplace in turn."""
    return cell.shop(request.param, settings=WITHOUT_LOOKS)


@pytest.fixture(scope="module", params=["sandbox-sync", "sandbox-replace"])
def prompt_shop(cell: Cell, request: pytest.FixtureRequest) -> Shop:
    """A store on each marketplace that answers at once: lots take seconds, and which flag asks whom is the same."""
    return cell.shop(request.param, settings=WITHOUT_LOOKS)


def on_sale(shop: Shop, count: int, **spec: Any) -> list[str]:
    """New SKUs that the marketplace shows, with nothing left to do about them."""
    skus = shop.grow(count, **spec)
    shop.published(*skus)
    shop.quiet()
    return skus


def documented(shop: Shop, sku: str, **flags: Any) -> dict[str, Any]:
    """The documented body with its ten fields."""
    return {
        "idSKU": sku,
        "productId": 7,
        "an": shop.account,
        "idAffiliate": shop.affiliate,
        "DateModified": "2026-03-02T17:11:39.2550122Z",
        "isActive": True,
        "StockModified": False,
        "PriceModified": False,
        "HasStockKeepingUnitModified": False,
        "HasStockKeepingUnitRemovedFromAffiliate": False,
        **flags,
    }


def asked(shop: Shop, sku: str) -> dict[str, int]:
    """How often each context was asked about a SKU."""
    return {context: int((shop.row(context, sku) or {"asked": 0})["asked"]) for context in CONTEXTS}


def grew(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was asked more often, and by how much."""
    return {context: after[context] - before[context] for context in CONTEXTS if after[context] != before[context]}


def grown(shop: Shop, sku: str, before: Mapping[str, int]) -> dict[str, int]:
    """What was asked more often, as soon as anything was: what an intake in a hurry spools is stored a moment later."""
    return dict(until(lambda: grew(before, asked(shop, sku)), why="nothing was asked"))


def counted(shop: Shop) -> dict[str, int]:
    """What became of the notices of a store."""
    row = shop.cell.one(
        "select coalesce(sum(received), 0)::int as received, coalesce(sum(quarantined), 0)::int as quarantined,"
        " coalesce(sum(ignored), 0)::int as ignored, coalesce(sum(accepted), 0)::int as accepted"
        " from counters where store = %s and context = '-' and source = 'vtex'",
        shop.store.id,
    )
    assert row is not None
    return row


def notices(shop: Shop, text: str) -> list[dict[str, Any]]:
    """The stored notices of a store whose raw body holds a text."""
    return shop.cell.all(
        "select kind, fate, body from notices where store = %s and position(%s in body) > 0 order by received_at",
        shop.store.id,
        text,
    )


def pass_by(shop: Shop) -> None:
    """Let a later notification be worked off, so that whatever was queued before it had its turn."""
    on_sale(shop, 1)


# ---------------------------------------------------------------- forms of URL and body


@pytest.mark.scenario("NOT-01")
def test_the_documented_body_is_stored_answered_and_reaches_the_marketplace(shop: Shop) -> None:
    (sku,) = on_sale(shop, 1)
    shop.change(sku, stock=12, notify=False)
    before, noted = asked(shop, sku), counted(shop)
    body = documented(shop, sku, StockModified=True)
    answer = shop.notify(body, "/api/notification/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert grown(shop, sku, before) == {"stock": 1}
    (notice,) = notices(shop, f'"{sku}"')[1:]
    assert (notice["kind"], notice["fate"], json.loads(notice["body"])) == ("notification", "accepted", body)
    assert counted(shop)["accepted"] == noted["accepted"] + 1
    shop.shows(sku, stock=12)
    quickest(lambda: shop.notify(body).elapsed / timedelta(seconds=1), below=2)


@pytest.mark.scenario("NOT-02")
def test_every_form_of_the_url_does_the_same(shop: Shop) -> None:
    forms = [
        path + slash + query
        for path, slash, query in itertools.product(
            ("", "/api/notification", "/catalog/notification"), ("", "/"), ("", "?an=x&token=y")
        )
    ]
    skus = on_sale(shop, len(forms))
    for number, (sku, form) in enumerate(zip(skus, forms, strict=True)):
        shop.change(sku, stock=100 + number, notify=False)
        assert shop.notify(documented(shop, sku, StockModified=True), form).status_code == 200, form
    for number, sku in enumerate(skus):
        shop.shows(sku, stock=100 + number)


NEWS = {"name": "Panela nova", "price": 4990, "stock": 11}
"""What changes in VTEX before each body is posted; the body alone decides what is looked at."""

BODIES: Mapping[str, tuple[str, Any]] = {
    "PascalCase without product id, seven fraction digits": (
        "catalog",
        lambda sku, shop: {
            "IdSku": sku,
            "An": shop.account,
            "IdAffiliate": shop.affiliate,
            "DateModified": "2018-08-20T15:11:28.1978783Z",
            "IsActive": True,
            "StockModified": False,
            "PriceModified": False,
            "HasStockKeepingUnitModified": True,
            "HasStockKeepingUnitRemovedFromAffiliate": False,
        },
    ),
    "legacy five fields, price": (
        "price",
        lambda sku, shop: {
            "IdSku": sku,
            "An": shop.account,
            "IdAffiliate": shop.affiliate,
            "StockModified": False,
            "PriceModified": True,
        },
    ),
    "legacy five fields, stock": (
        "stock",
        lambda sku, shop: {
            "IdSku": sku,
            "An": shop.account,
            "IdAffiliate": shop.affiliate,
            "StockModified": True,
            "PriceModified": False,
        },
    ),
    "lower case, int id, booleans as strings": (
        "stock",
        lambda sku, shop: {
            "idsku": int(sku),
            "an": shop.account,
            "idaffiliate": shop.affiliate,
            "active": "true",
            "stockmodified": "true",
            "pricemodified": "False",
        },
    ),
    "upper case, string id, active": (
        "price",
        lambda sku, shop: {
            "IDSKU": f" {sku} ",
            "AN": shop.account.upper(),
            "IDAFFILIATE": shop.affiliate.lower(),
            "ACTIVE": True,
            "PRICEMODIFIED": "TRUE",
        },
    ),
    "minimal": ("catalog", lambda sku, _: {"HasStockKeepingUnitModified": True, "IdSku": sku}),
    "account as host": (
        "price",
        lambda sku, shop: {"IdSku": sku, "An": f"{shop.account.title()}.myvtex", "PriceModified": True},
    ),
    "unknown fields": (
        "stock",
        lambda sku, _: {"IdSku": sku, "StockModified": True, "Version": "2", "SellerChain": ["a", {"b": None}]},
    ),
}


@pytest.mark.scenario("NOT-03", "NOT-04", "NOT-05", "NOT-06", "NOT-07", "NOT-08")
def test_every_known_body_asks_for_what_it_names(shop: Shop) -> None:
    skus = dict(zip(BODIES, on_sale(shop, len(BODIES)), strict=True))
    for name, sku in skus.items():
        context, body = BODIES[name]
        shop.change(sku, **NEWS, notify=False)
        before, posted = asked(shop, sku), body(sku, shop)
        assert shop.notify(posted).status_code == 200, name
        assert grown(shop, sku, before).items() >= {context: 1}.items(), name
        assert json.loads(notices(shop, sku)[-1]["body"]) == posted, name
    for name, sku in skus.items():
        catalog = BODIES[name][0] == "catalog"
        # One simulation shows both, so a price that is read brings the stock that was not announced, and the reverse.
        shows = {"title": shop.truth(sku).name} if catalog else {"price_cents": 4990, "stock": 11}
        shop.shows(sku, **shows)


@pytest.mark.scenario("NOT-02", "NOT-03", "NOT-05", "NOT-06", "NOT-07", "NOT-08")
@pytest.mark.parametrize("variant", ["guide", "broadcaster", "minimal"])
def test_what_vtex_itself_sends_arrives_in_any_casing_type_and_path(cell: Cell, shop: Shop, variant: str) -> None:
    skus = on_sale(shop, 4)
    habits = {"casing": "random", "sku_as": "random", "path": "random", "booleans": "string", "account_as": "host"}
    cell.vtex.notifier_habits(shop.account, variant=variant, **habits)
    for number, sku in enumerate(skus):
        shop.change(sku, name=f"Outro nome {number}")
    for number, sku in enumerate(skus):
        assert f"Outro nome {number}" in shop.shows(sku, title=shop.truth(sku).name).title
    sent = cell.vtex.notifications(shop.account, len(skus))["log"]
    assert {one["variant"] for one in sent} == {variant}


@pytest.mark.scenario("NOT-27")
def test_each_notification_of_an_array_is_one(shop: Shop) -> None:
    one, two = on_sale(shop, 2)
    shop.change(one, stock=5, notify=False)
    shop.change(two, price=5550, notify=False)
    before = counted(shop)
    bodies = [documented(shop, one, StockModified=True), documented(shop, two, PriceModified=True)]
    assert requests.post(shop.intake_url, json=bodies, timeout=10).status_code == 200
    until(lambda: counted(shop)["accepted"] == before["accepted"] + 2, why="they do not count as two")
    shop.shows(one, stock=5)
    shop.shows(two, price_cents=5550)


# ---------------------------------------------------------------- what is refused at the door


@pytest.mark.scenario("NOT-09")
@pytest.mark.parametrize(
    ("raw", "field"),
    [(b"{", "body"), (b"hello", "body"), (b"", "body"), (b'{"An":"acc","StockModified":true}', "idSKU")],
)
def test_an_unreadable_body_is_refused_counted_and_queues_nothing(
    cell: Cell, shop: Shop, raw: bytes, field: str
) -> None:
    before, seen = counted(shop), requests_counted(cell.intake_url)
    answer = requests.post(shop.intake_url, data=raw, timeout=10)
    assert answer.status_code == 400
    (problem,) = answer.json()["problems"]
    assert problem["field"] == field
    assert problem["fix"]
    assert counted(shop) == before
    assert requests_counted(cell.intake_url) > seen
    assert not cell.all("select 1 from states where store = %s and key = ''", shop.store.id)


@pytest.mark.scenario("NOT-10")
def test_an_unknown_token_is_not_found_and_queues_nothing(cell: Cell, shop: Shop) -> None:
    (sku,) = shop.grow(1)
    body = documented(shop, sku, HasStockKeepingUnitModified=True)
    for path in ("nobody", "nobody/api/notification/", shop.token[:-1] + "/catalog/notification"):
        assert requests.post(f"{cell.intake_url}/{path}", json=body, timeout=10).status_code == 404
    assert not cell.all("select 1 from notices where position(%s in body) > 0", f'"{sku}"')
    assert not cell.all("select 1 from states where key = %s", sku)


@pytest.mark.scenario("NOT-11")
def test_the_body_of_another_store_is_answered_quarantined_and_not_worked_on(cell: Cell, shop: Shop) -> None:
    other = cell.shop("sandbox-sync")
    (sku,) = other.grow(1)
    before = counted(shop)
    for wrong in ({"an": other.account}, {"idAffiliate": "XYZ"}):
        body = documented(shop, sku, HasStockKeepingUnitModified=True) | wrong
        assert shop.notify(body, "/api/notification").status_code == 200
    until(lambda: counted(shop)["received"] >= before["received"] + 2, why="they were not stored")
    now = counted(shop)
    assert {name: now[name] - before[name] for name in now} == {
        "received": 2,
        "quarantined": 2,
        "ignored": 0,
        "accepted": 0,
    }
    assert [notice["fate"] for notice in notices(shop, f'"{sku}"')] == ["quarantined", "quarantined"]
    pass_by(shop)
    assert not cell.all("select 1 from states where key = %s", sku)
    assert shop.shown(sku) is None
    assert other.shown(sku) is None


@contextmanager
def unwritable(cell: Cell, table: str) -> Iterator[None]:
    """Nobody can store anything in a table meanwhile."""
    with cell.pool.connection() as db, db.transaction():
        db.execute(f"lock table {table} in access exclusive mode")  # the names are this module's
        yield


@contextmanager
def without_spool(cell: Cell) -> Iterator[None]:
    """The intake can keep nothing on its disk meanwhile."""
    spool = cell.settings.spool
    until(lambda: not list(spool.glob("*.spool")), why="the spool is not drained")
    aside = spool.with_name("spool-elsewhere")
    spool.rename(aside)
    spool.touch()
    try:
        yield
    finally:
        spool.unlink()
        aside.rename(spool)


@pytest.mark.scenario("NOT-13")
def test_what_cannot_be_stored_is_a_503_and_counts_again_when_it_is_repeated(cell: Cell, shop: Shop) -> None:
    (sku,) = on_sale(shop, 1)
    shop.change(sku, stock=9, notify=False)
    body = documented(shop, sku, StockModified=True)
    before = counted(shop)
    with without_spool(cell), unwritable(cell, "notices"):
        answer = shop.notify(body)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
    until(lambda: shop.notify(body).status_code == 200, why="the intake does not come back")
    shop.shows(sku, stock=9)
    # what was answered 503 may have been stored after all: to repeat it does no harm
    assert counted(shop)["accepted"] - before["accepted"] in (1, 2)


# ---------------------------------------------------------------- which flag moves what


@pytest.mark.scenario("NOT-14", "NOT-15")
def test_a_removal_or_deactivation_beside_other_flags_only_takes_the_sku_off_sale(each_shop: Shop) -> None:
    shop = each_shop
    removed, inactive = on_sale(shop, 2)
    shop.change(removed, channels=[], price=1230, stock=99, notify=False)
    shop.change(inactive, active=False, price=1230, stock=99, notify=False)
    flags = {
        removed: {"HasStockKeepingUnitRemovedFromAffiliate": True, "isActive": True},
        inactive: {"isActive": False, "HasStockKeepingUnitModified": True},
    }
    for sku, said in flags.items():
        before = asked(shop, sku)
        assert shop.notify(documented(shop, sku, StockModified=True, PriceModified=True) | said).status_code == 200
        assert grown(shop, sku, before) == {"catalog": 1}
    for sku in flags:
        until(lambda sku=sku: _off_sale(shop, sku), why=f"{shop.slug} still sells {sku}")
    shop.quiet()
    for sku in flags:
        assert _off_sale(shop, sku)
        sent = shop.cell.marketplace.sku(shop.slug, sku)
        assert 1230 not in sent.values("price"), "a price was sent for what is not sold"
        assert 99 not in sent.values("stock")


def _off_sale(shop: Shop, sku: str) -> bool:
    shown = shop.shown(sku)
    return shown is None or shown.state in ("inactive", "absent") or shown.stock == 0


@pytest.mark.scenario("NOT-16")
def test_a_modified_sku_asks_the_catalogue(prompt_shop: Shop) -> None:
    (sku,) = on_sale(prompt_shop, 1)
    prompt_shop.change(sku, name="Frigideira", notify=False)
    before = asked(prompt_shop, sku)
    body = documented(prompt_shop, sku, HasStockKeepingUnitModified=True, StockModified=True)
    assert prompt_shop.notify(body).status_code == 200
    assert grown(prompt_shop, sku, before) == {"catalog": 1}
    prompt_shop.shows(sku, title=prompt_shop.truth(sku).name)


@pytest.mark.parametrize(
    ("flag", "context"),
    [
        pytest.param("PriceModified", "price", marks=pytest.mark.scenario("NOT-17")),
        pytest.param("StockModified", "stock", marks=pytest.mark.scenario("NOT-18")),
    ],
)
def test_one_flag_of_a_published_sku_asks_one_context(prompt_shop: Shop, flag: str, context: str) -> None:
    shop = prompt_shop
    (sku,) = on_sale(shop, 1)
    shop.change(sku, price=7770, stock=3, notify=False)
    before = asked(shop, sku)
    shop.cell.ledger.shut(shop.store.id, context, "operator", cause="operator", who="test", why="wait", seconds=None)
    assert shop.notify(documented(shop, sku, **{flag: True})).status_code == 200
    assert grown(shop, sku, before) == {context: 1}
    shop.cell.ledger.open(shop.store.id, context, "operator")
    # who reads one sees that the other has moved, too
    shop.shows(sku, price_cents=7770, stock=3)


@pytest.mark.scenario("NOT-19")
def test_both_flags_ask_both_contexts_and_one_simulation_can_serve_them(prompt_shop: Shop) -> None:
    shop = prompt_shop
    skus = on_sale(shop, 6)
    for sku in skus:
        shop.change(sku, price=3330, stock=4, notify=False)
    simulated = len(shop.vtex_calls("simulation"))
    for sku in skus:
        before = asked(shop, sku)
        shop.modified(sku, price=True, stock=True)
        assert grown(shop, sku, before) == {"price": 1, "stock": 1}
    for sku in skus:
        shop.shows(sku, price_cents=3330, stock=4)
    shop.quiet()
    assert len(skus) <= len(shop.vtex_calls("simulation")) - simulated < 2 * len(skus)


@pytest.mark.scenario("NOT-20")
@pytest.mark.parametrize("flag", ["price", "stock"])
def test_a_price_or_stock_flag_of_an_unpublished_sku_evaluates_its_registration(prompt_shop: Shop, flag: str) -> None:
    (sku,) = prompt_shop.grow(1)
    prompt_shop.modified(sku, **{flag: True})
    prompt_shop.shows(sku)
    assert until(lambda: prompt_shop.binding(sku), why="the pair is not kept")


@pytest.mark.scenario("NOT-21")
def test_a_notification_without_a_flag_is_a_check_that_sends_nothing(prompt_shop: Shop) -> None:
    shop = prompt_shop
    (sku,) = on_sale(shop, 1)
    before, writes, read = asked(shop, sku), shop.shown(sku), len(shop.vtex_calls("sku"))
    shop.modified(sku)
    assert grown(shop, sku, before) == {"catalog": 1}
    until(lambda: len(shop.vtex_calls("sku")) > read, why="VTEX was not asked")
    shop.quiet()
    shown = shop.shown(sku)
    assert shown is not None
    assert writes is not None
    assert shown.writes == writes.writes


# ---------------------------------------------------------------- many, and out of order


@pytest.mark.scenario("NOT-22")
def test_a_burst_of_the_same_is_one_waiting_demand_and_the_last_value_wins(cell: Cell) -> None:
    shop = cell.shop("sandbox-sync")
    (sku,) = on_sale(shop, 1)
    slow = cell.vtex.fault("latency", "simulation", account=shop.account, seconds=0.5)
    simulated = len(shop.vtex_calls("simulation"))
    body = documented(shop, sku, StockModified=True)

    def post(count: int) -> set[int]:
        with requests.Session() as session:
            return {session.post(shop.intake_url, json=body, timeout=10).status_code for _ in range(count)}

    most_waiting, began = 0, time.monotonic()
    with ThreadPoolExecutor(5) as posters:
        for stock in (40, 30, 20, 10):
            shop.change(sku, stock=stock, notify=False)
            posts = [posters.submit(post, 25) for _ in range(5)]
            row = shop.row("stock", sku)
            assert row is not None
            most_waiting = max(most_waiting, row["asked"] - row["answered"])
            assert {status for posted in posts for status in posted.result()} == {200}
    took = time.monotonic() - began
    shop.shows(sku, stock=10)
    cell.vtex.clear_faults(slow)
    shop.quiet()
    assert most_waiting <= 2  # one that is being looked at, and one for all that came since
    sums = "select sum(requested)::int as requested, sum(enqueued)::int as enqueued, sum(coalesced)::int as coalesced"
    counted = f"{sums} from counters where store = %s and context = 'stock' and source = 'vtex'"
    until(lambda: (cell.one(counted, shop.store.id) or {})["requested"] == 500, why="not all were counted once")
    demands = cell.one(counted, shop.store.id)
    assert demands is not None
    assert demands["requested"] == demands["enqueued"] + demands["coalesced"] == 500
    # each attempt takes half a second, so a burst of n seconds is worth 2n of them and not 500
    most = 2 * took + 10
    assert demands["enqueued"] <= most < 500
    assert len(shop.vtex_calls("simulation")) - simulated <= most + 5
    assert shop.truth(sku).stock == 10


@pytest.mark.scenario("NOT-23")
def test_of_forty_skus_only_the_one_that_differs_is_sent(each_shop: Shop) -> None:
    shop = each_shop
    skus = on_sale(shop, 40, skus_per_product=40)
    before = shop.all_shown()
    shop.change(skus[7], price=6660, notify="burst")
    shop.shows(skus[7], price_cents=6660)
    shop.cell.vtex.wait_until_idle()
    shop.quiet()
    after = shop.all_shown()
    assert [sku for sku in skus if after[sku].writes != before[sku].writes] == [skus[7]]


@pytest.mark.scenario("NOT-24")
def test_an_older_notification_after_a_newer_one_leaves_what_vtex_says_now(shop: Shop) -> None:
    (sku,) = on_sale(shop, 1)
    shop.change(sku, stock=8, notify=False)
    newer = documented(shop, sku, StockModified=True, DateModified="2026-03-02T12:00:00.0000000Z")
    older = documented(shop, sku, StockModified=True, DateModified="2026-03-02T11:00:00.0000000Z")
    assert shop.notify(newer).status_code == 200
    shop.shows(sku, stock=8)
    shop.change(sku, stock=6, notify=False)
    assert shop.notify(older).status_code == 200
    shop.shows(sku, stock=6)
    shop.quiet()
    shop.shows(sku)


@pytest.mark.scenario("NOT-26")
def test_a_removed_store_is_answered_counted_and_left_alone(cell: Cell) -> None:
    shop = cell.shop("sandbox-sync")
    (sku,) = on_sale(shop, 1)
    cell.registry.remove(shop.slug, "tests", "gone")
    numbers = itertools.count(1)

    def ignored() -> bool:
        body = documented(shop, str(next(numbers)), HasStockKeepingUnitModified=True)
        return shop.notify(body).status_code == 200 and counted(shop)["ignored"] > 0

    until(ignored, why="the intake does not see that the store is gone")
    shop.change(sku, stock=1, notify=False)
    before, heard, rows = counted(shop), shop.last_call(), asked(shop, sku)
    assert shop.notify(documented(shop, sku, StockModified=True)).status_code == 200
    until(lambda: counted(shop)["ignored"] == before["ignored"] + 1, why="it was not counted as ignored")
    assert grew(rows, asked(shop, sku)) == {}
    assert shop.last_call() == heard
    shown = shop.shown(sku)
    assert shown is not None
    assert shown.stock == 37
