"""RES: whatever fails, dies or is refused – nothing is lost, nothing happens twice, nobody waits for a neighbour."""

import itertools
import json
import signal
from datetime import datetime
from typing import Any

import pytest

from hub.ledger import Ledger
from hub.model import Row
from hub.outcome import Failed, settle
from hub.runtime.embedded import Valkey
from hub.settings import Settings
from tasks import replay
from tests.cell import PROFILES, ROOT, WITHOUT_LOOKS, Cell, Shop, until
from tests.timing import in_time, undisturbed

EVERY_PROFILE = pytest.mark.parametrize("marketplace", PROFILES)
REGISTERS = {"sandbox-sync": "listing_create", "sandbox-lot": "feed_submit", "sandbox-replace": "offer_put"}
WORKERS = {"first": "first", "more": "more"}


def published(shop: Shop, count: int = 1) -> list[str]:
    skus = shop.grow(count)
    shop.published(*skus)
    shop.quiet(answered=True)
    return skus


def lines(shop: Shop, kind: str, *, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
    """The records of a kind in every lot that was submitted, with the number of its call."""
    calls = [call for call in shop.calls(operation="feed_submit", after=after) if f"kind={kind}" in call.query]
    return [(call.number, json.loads(line)) for call in calls for line in call.body.splitlines() if line.strip()]


def letters(shop: Shop) -> list[replay.DeadLetter]:
    return replay.letters(shop.cell.pool, replay.Letters(store=shop.store.id))


def holds(ledger: Ledger) -> bool:
    """Every law of conservation of the ledger holds (law 6)."""
    return all(law.holds for law in ledger.check())


# ---------------------------------------------------------------- nobody waits for a neighbour


@pytest.mark.scenario("RES-01")
def test_a_small_store_does_not_wait_for_a_large_one(cell: Cell):
    """The twin of 100,000 and 10: 300 and 10, the large one's marketplace being slow as well."""
    large, small = cell.shop(), cell.shop()
    cell.marketplace.fault("latency", account=large.slug, seconds=0.4)
    many, few = large.grow(300), small.grow(10)
    cell.vtex.notify(large.account, [int(sku) for sku in many], sku=True)
    until(lambda: len(large.all_shown()) > 5, why="the large store has not begun")
    cell.vtex.notify(small.account, [int(sku) for sku in few], sku=True)
    for sku in few:
        small.shows(sku, seconds=60)
    open_ones = cell.one("select count(*) as n from states where store = %s and asked > answered", large.store.id)
    assert open_ones["n"] > 50, "the large store was nearly done: the test says nothing"


@EVERY_PROFILE
@pytest.mark.scenario("RES-02")
def test_price_and_stock_flow_while_the_catalogue_queue_is_blocked(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings=WITHOUT_LOOKS)
    (sku,) = published(shop)
    cell.ledger.shut(shop.store.id, "catalog", "operator", cause="operator", who="test", why="blocked", seconds=None)
    shop.change(sku, name="Outro nome")
    until(lambda: shop.row("catalog", sku)["work"] == "p", why="the catalogue has nothing to do")
    shop.change(sku, price=8800, list_price=8800)
    shop.change(sku, stock=5)
    shop.shows(sku, price_cents=8800, stock=5)
    assert shop.row("catalog", sku)["work"] == "p", "the block did not hold"
    assert "Outro nome" not in shop.shown(sku).title
    cell.ledger.open(shop.store.id, "catalog", "operator")
    shop.shows(sku, title=shop.truth(sku).name)


# ---------------------------------------------------------------- contingency and dead letters


@pytest.mark.scenario("RES-03")
def test_a_transient_failure_is_tried_ten_times_more_with_growing_waits(patient_cell: Cell):
    shop = patient_cell.shop()
    (sku,) = published(shop)
    plan = patient_cell.settings.contexts["stock"].plan
    assert len(plan.delays) >= 10
    patient_cell.marketplace.break_sku(shop.slug, sku, status=503, count=len(plan.delays))
    before = shop.last_call()
    shop.change(sku, stock=21)
    shop.shows(sku, stock=21, seconds=60)
    calls = shop.calls(operation="stock_put", after=before)
    assert [call.status for call in calls] == [503] * len(plan.delays) + [200]
    waits = [
        (datetime.fromisoformat(later.at) - datetime.fromisoformat(call.at)).total_seconds()
        for call, later in itertools.pairwise(calls)
    ]
    assert all(wait >= delay * (1 - plan.jitter) for wait, delay in zip(waits, plan.delays, strict=True)), waits
    assert sum(plan.delays[:5]) < sum(plan.delays[5:])
    shop.status("stock", sku, "done")
    assert [told["code"] for told in shop.told(sku, "E2")] == ["E2"] * len(plan.delays)
    assert letters(shop) == []


@pytest.mark.scenario("RES-03", rule=True)
def test_every_plan_of_the_product_waits_ever_longer_with_jitter_ten_times_at_least():
    env = {"REDIS_URL": "redis://x", "DATABASE_URL": "postgresql://x", "HUB_QUEUES": str(ROOT / "queues.yaml")}
    for name, context in Settings.load(env=env).contexts.items():
        plan, row, waits = context.plan, Row(name, "1", 1), []
        for spent in range(len(plan.delays)):
            tries = [settle(Row(name, "1", 1, attempts=spent), Failed("away"), plan, chance) for chance in (0.0, 0.999)]
            assert {one.status for one in tries} == {"delayed"}
            assert tries[0].wait < tries[1].wait, "no jitter"
            waits.append(plan.delays[spent])
            row = Row(name, "1", 1, attempts=spent + 1)
        assert len(waits) >= 10, name
        assert waits == sorted(waits)
        assert waits[-1] >= 100 * waits[0], name
        assert settle(row, Failed("away"), plan, 0.5).status == "dead"


@pytest.mark.scenario("RES-04", rule=True)
def test_the_dead_are_tried_slowly_for_ever():
    env = {"REDIS_URL": "redis://x", "DATABASE_URL": "postgresql://x", "HUB_QUEUES": str(ROOT / "queues.yaml")}
    for name, context in Settings.load(env=env).contexts.items():
        plan = context.plan
        first = len(plan.delays)
        waits = []
        for spent in (first, first + 1, first + 2, first + 3, 30_000):
            row = settle(Row(name, "1", 1, status="dead", attempts=spent), Failed("away"), plan, 0.5)
            assert (row.status, row.work) == ("dead", "s")
            waits.append(row.wait)
        assert waits == [3600, 21600, 86400, 86400, 86400]


@EVERY_PROFILE
@pytest.mark.scenario("RES-04", "RES-06")
def test_a_dead_letter_is_kept_once_seen_tried_slowly_and_replayed_with_todays_value(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings=WITHOUT_LOOKS)
    sku, healthy = published(shop, 2)
    fault = cell.vtex.fault("status", "simulation", account=shop.account, status=500)
    shop.change(sku, stock=21)
    row = shop.status("stock", sku, "dead")
    assert row["attempts"] > 10
    assert row["due_at"] is not None
    # Slowly retried: its time comes (here by hand), it fails, and waits again.
    cell.do("update states set due_at = now() where store = %s and key = %s and context = 'stock'", shop.store.id, sku)
    again = until(
        lambda: (now := shop.row("stock", sku)) and now["attempts"] > row["attempts"] and now, why="it is not retried"
    )
    assert (again["status"], again["work"]) == ("dead", "s")
    # The same once more, three times: still one letter, in the ledger and in the dead-letter queue.
    for stock in (22, 23, 24):
        shop.change(sku, stock=stock)
    assert [(letter.context, letter.key) for letter in letters(shop)] == [("stock", sku)]
    until(lambda: cell.dead_letters(shop.slug, "stock") == [sku], why="the dead-letter queue does not show it")
    cell.vtex.wait_until_idle()
    shop.quiet()  # nobody is about to read 24
    cell.vtex.clear_faults(fault)
    shop.change(sku, stock=25, notify=False)
    replay.start(cell.pool, replay.Letters(store=shop.store.id), rate=100, who="test", why="the peer is back")
    shop.shows(sku, stock=25)
    assert not {21, 22, 23, 24} & set(cell.marketplace.sku(shop.slug, sku).values("stock"))
    shop.status("stock", sku, "done")
    assert letters(shop) == []
    until(lambda: cell.dead_letters(shop.slug, "stock") == [], why="the letter stays in the queue")
    assert shop.shown(healthy).stock == 37


@EVERY_PROFILE
@pytest.mark.scenario("RES-05", "RES-13")
def test_what_is_refused_is_neither_retried_nor_dead_and_not_sent_again_unchanged(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, settings=WITHOUT_LOOKS)
    sku, new = published(shop)[0], shop.grow(1)[0]
    problems = [{"field": "stock", "code": "not_today", "message": "we do not want it", "value": 21}]
    cell.marketplace.break_sku(shop.slug, sku, status=422, problems=problems)
    cell.marketplace.break_sku(shop.slug, new, status=422, problems=problems)
    shop.change(sku, stock=21)
    shop.modified(new, sku=True)
    for context, key in (("stock", sku), ("catalog", new)):
        row = shop.status(context, key, "refused")
        assert (row["code"], row["attempts"], row["due_at"], row["work"]) == ("E3", 0, None, "i")
        assert "we do not want it" in json.dumps(row["problems"])
    for _ in range(4):
        shop.modified(sku, stock=True)
        shop.modified(new, sku=True, stock=True, price=True)
        for context, key in (("stock", sku), ("catalog", new)):
            shop.status(context, key, "refused")
    assert [shop.row("stock", sku)["status"], shop.row("catalog", new)["status"]] == ["refused", "refused"]
    assert cell.marketplace.sku(shop.slug, sku).refused == 1, "the same was sent again"
    assert cell.marketplace.sku(shop.slug, new).refused == 1, "the same was sent again"
    assert letters(shop) == []
    # Something changes: it is sent.
    cell.marketplace.heal_sku(shop.slug, sku)
    shop.change(sku, stock=22)
    shop.shows(sku, stock=22)


# ---------------------------------------------------------------- crashes


def kill_workers(cell: Cell) -> None:
    for name in WORKERS:
        cell.stop(name, signal.SIGKILL)


def start_workers(cell: Cell) -> None:
    for name, lane in WORKERS.items():
        cell.start_worker(name, lane)


@pytest.mark.scenario("RES-07")
def test_a_worker_killed_between_the_call_and_its_answer_makes_nothing_twice(patient_cell: Cell):
    cell = patient_cell
    shops = {marketplace: patient_cell.shop(marketplace) for marketplace in PROFILES}
    skus = {marketplace: shop.grow(1)[0] for marketplace, shop in shops.items()}
    for marketplace, shop in shops.items():
        operation = REGISTERS[marketplace]
        cell.marketplace.fault("hang_after", operation=operation, account=shop.slug, count=1, seconds=60)
        shop.modified(skus[marketplace], sku=True)
    for marketplace, shop in shops.items():
        done = "feeds" if marketplace == "sandbox-lot" else "creates"
        until(lambda: cell.marketplace.counters(shop.slug).get(done), why="nothing was written")  # noqa: B023 – at once
        assert not shop.binding(skus[marketplace]), "the answer has come already"
    try:
        kill_workers(cell)
    finally:
        start_workers(cell)
    for marketplace, shop in shops.items():
        shop.shows(skus[marketplace], seconds=60)
        shop.quiet(answered=True)
        shown = shop.shown(skus[marketplace])
        assert (shown.creates, len(shown.ids)) == (1, 1), "it was made twice"
        assert shop.binding(skus[marketplace])["remote_id"] == shown.ids[0]
    lot = shops["sandbox-lot"]
    assert len({call.query for call in lot.calls(operation="feed_submit") if "kind=listing" in call.query}) == 1
    assert holds(cell.ledger)


@pytest.mark.scenario("RES-14")
def test_a_broker_that_dies_and_forgets_everything_loses_nothing(patient_cell: Cell, own_valkey: Valkey):
    cell, shop = patient_cell, patient_cell.shop()
    skus = published(shop, 20)
    cell.marketplace.fault("latency", account=shop.slug, seconds=0.3, count=20)
    for sku in skus[:10]:
        shop.change(sku, stock=21)
    own_valkey.kill()
    try:
        for sku in skus[10:]:
            shop.change(sku, stock=22)  # the intake goes on
    finally:
        own_valkey.start()
    for number, sku in enumerate(skus):
        shop.shows(sku, stock=21 if number < 10 else 22, seconds=60)
    shop.quiet(answered=True)
    assert holds(cell.ledger)
    # And everything works as before.
    shop.change(skus[0], stock=23)
    shop.shows(skus[0], stock=23, seconds=60)


# ---------------------------------------------------------------- lots


@pytest.mark.scenario("RES-08")
def test_updates_wait_for_the_result_of_the_lot_that_registers_their_skus(cell: Cell):
    shop = cell.shop("sandbox-lot", dials={"feed_delay": 12.0})
    skus = shop.grow(100)
    cell.vtex.notify(shop.account, [int(sku) for sku in skus], sku=True)
    recorded = until(
        lambda: cell.all(
            "select l.id, l.state, l.ticket, l.records from lots l where l.store = %s and l.kind = 'listing'"
            " and l.ticket is not null",
            shop.store.id,
        ),
        why="no lot was recorded",
    )
    kept = cell.all("select distinct key from lot_records where lot = %s", recorded[0]["id"])
    assert len(kept) == recorded[0]["records"]
    for sku in skus[:10]:
        shop.change(sku, price=8800, list_price=8800, stock=21)
    for sku in skus[:10]:
        shop.status("price", sku, "parked")
        shop.status("stock", sku, "parked")
    assert lines(shop, "offer") == [], "an update overtook the registration"
    cell.marketplace.turn(shop.slug, feed_delay=0)  # of those that come
    for number, sku in enumerate(skus):
        shop.shows(sku, **({"price_cents": 8800, "stock": 21} if number < 10 else {}), seconds=60)
    lots = cell.all("select records from lots where store = %s and kind = 'listing'", shop.store.id)
    assert sum(lot["records"] for lot in lots) == 100
    assert len(lots) <= 4, "the lots are not full"
    assert {cell.marketplace.sku(shop.slug, sku).creates for sku in skus} == {1}
    first = min(call.number for call in shop.calls(operation="feed_result") if call.status == 200)
    assert all(number > first for number, _ in lines(shop, "offer"))
    early = cell.all(
        """
        select o.key from lot_records o join lots ol on ol.id = o.lot and ol.kind = 'offer'
        join lot_records r on r.key = o.key join lots rl on rl.id = r.lot and rl.kind = 'listing'
        where ol.store = %s and rl.store = ol.store and ol.submitted_at < rl.settled_at
        """,
        shop.store.id,
    )
    assert early == [], "an offer left before its registration was answered"


@pytest.mark.scenario("RES-08")
def test_a_lot_that_the_marketplace_took_and_does_not_know_is_sent_again(cell: Cell):
    shop = cell.shop("sandbox-lot")
    (sku,) = published(shop)
    before = shop.last_call()
    cell.marketplace.fault("lie", operation="feed_submit", account=shop.slug, count=1)
    shop.change(sku, price=8800, list_price=8800)
    shop.shows(sku, seconds=60, price_cents=8800)
    shop.quiet(answered=True)
    submitted = shop.calls(operation="feed_submit", after=before)
    assert [call.status for call in submitted] == [202, 202], "nothing was sent again"
    states = cell.all("select state from lots where store = %s", shop.store.id)
    assert {lot["state"] for lot in states} == {"settled"}


@pytest.mark.scenario("RES-08")
def test_a_listing_that_was_answered_as_made_and_never_was_is_made_again(cell: Cell):
    shop = cell.shop("sandbox-sync")
    cell.marketplace.fault("lie", operation="listing_create", account=shop.slug, count=1)
    (sku,) = shop.grow(1)
    shop.published(sku, seconds=60)
    shop.quiet(answered=True)
    assert len(shop.calls(operation="listing_create")) == 2, "the lie was not told"
    assert shop.shown(sku).creates == 1


@pytest.mark.scenario("RES-09")
def test_a_lot_that_is_partly_refused_is_told_item_by_item(cell: Cell):
    shop = cell.shop("sandbox-lot", dials={"feed_delay": 10.0})
    *good, bad, broken = skus = shop.grow(6)
    problems = [{"field": "ean", "code": "taken", "message": "belongs to somebody else"}]
    cell.marketplace.break_sku(shop.slug, bad, status=422, problems=problems)
    cell.marketplace.break_sku(shop.slug, broken, status=500, count=1)
    for sku in skus:
        shop.modified(sku, sku=True)
    for sku in skus:
        shop.status("catalog", sku, "waiting")
        shop.change(sku, price=8800, list_price=8800)
    cell.marketplace.turn(shop.slug, feed_delay=0)  # of those that come
    for sku in (*good, broken):
        shop.shows(sku, price_cents=8800, stock=37, seconds=60)
    row = shop.status("catalog", bad, "refused")
    assert "belongs to somebody else" in json.dumps(row["problems"])
    for sku in good:
        assert [told["code"] for told in shop.told(sku) if told["operation"] == "Offer creation"] == ["P0", "S1"]
    assert [told["code"] for told in shop.told(bad) if told["operation"] == "Offer creation"] == ["P0", "E3"]
    assert shop.status("price", bad, "parked")["parked_on"] == f"publication:{bad}"
    assert bad not in {record["sku"] for _, record in lines(shop, "offer")}
    assert shop.shown(bad) is None or shop.shown(bad).state == "absent"


# ---------------------------------------------------------------- credentials and limits


@pytest.mark.scenario("RES-10")
def test_an_expired_token_is_renewed_once_for_everybody(cell: Cell):
    shop = cell.shop(dials={"oauth": True})
    skus = published(shop, 20)
    before = shop.last_call()
    cell.marketplace.expire_tokens(shop.slug)
    for sku in skus:
        shop.change(sku, stock=21)
    for sku in skus:
        shop.shows(sku, stock=21)
    renewals = shop.calls(operation="token_refresh", after=before)
    assert [call.status for call in renewals] == [200]
    assert cell.all("select 1 from gates where store = %s", shop.store.id) == []


@EVERY_PROFILE
@pytest.mark.scenario("RES-11")
def test_without_credentials_the_error_is_told_and_the_messages_wait(cell: Cell, marketplace: str):
    shop = cell.shop(marketplace, dials={"oauth": marketplace == "sandbox-sync"})
    skus = published(shop, 3)
    cell.marketplace.revoke(shop.slug)
    for sku in skus:
        shop.change(sku, stock=21)
    gate = until(
        lambda: cell.one("select side, cause, why from gates where store = %s", shop.store.id), why="no gate was shut"
    )
    assert (gate["side"], gate["cause"]) == ("marketplace", "credentials")
    told = until(
        lambda: cell.all("select code, status from interactions where store = %s and code = 'C0'", shop.store.id),
        why="the error is not logged",
    )
    assert {one["status"] for one in told} == {"error"}
    for sku in skus:
        shop.modified(sku, stock=True)
    context = "lot" if marketplace == "sandbox-lot" else "stock"
    waiting = "select work::text, attempts, status from states where store = %s and context = %s and asked > answered"
    count = 1 if context == "lot" else 3
    rows = until(
        lambda: len(rows := cell.all(waiting, shop.store.id, context)) == count and rows, why="a message was not kept"
    )
    assert {row["attempts"] for row in rows} == {0}
    assert letters(shop) == []
    seller = cell.marketplace.consent(shop.slug)
    values = {"token": seller.token, "refresh_token": seller.refresh_token}
    values |= {"client_id": seller.client_id, "client_secret": seller.client_secret}
    kept = {name: value for name, value in values.items() if value}
    cell.registry.save_credentials(shop.store.id, "marketplace", kept, who="test")
    for sku in skus:
        shop.shows(sku, stock=21, seconds=60)


@pytest.mark.scenario("RES-15")
@undisturbed(tries=3)
def test_the_marketplaces_limit_holds_over_all_workers(cell: Cell):
    rate, burst = 15, 5
    shop = cell.shop(settings={"marketplace_limit": {"rate": rate, "burst": burst}})
    skus = shop.grow(25)
    cell.vtex.notify(shop.account, [int(sku) for sku in skus], sku=True)
    for sku in skus:
        shop.shows(sku, seconds=60)
    times = sorted(datetime.fromisoformat(call.at).timestamp() - call.seconds for call in shop.calls())
    assert len(times) >= 75
    most = max(sum(1 for other in times if at <= other < at + 1.0) for at in times)
    assert times[-1] - times[0] >= (len(times) - burst) / rate * 0.7, "much faster than allowed"
    in_time(most <= rate + burst + 3, f"{most} calls in one second")  # 3: the calls' way is not equally long
    in_time(times[-1] - times[0] >= (len(times) - burst) / rate * 0.9, "faster than allowed")


# ---------------------------------------------------------------- the states table


@pytest.mark.scenario("RES-12")
def test_the_states_table_says_what_became_of_every_key_when_and_what_comes_next(cell: Cell):
    shop = cell.shop(settings=WITHOUT_LOOKS)
    done, refused, dead, unmapped = published(shop, 3) + shop.grow(1, category_ids=[2])
    started = cell.one("select now() as at")["at"]
    cell.marketplace.break_sku(
        shop.slug, refused, status=422, problems=[{"field": "stock", "code": "no", "message": "not wanted"}]
    )
    cell.marketplace.break_sku(shop.slug, dead, status=503)
    for sku in (done, refused, dead):
        shop.change(sku, stock=21)
    shop.modified(unmapped, sku=True)
    wanted = {
        ("stock", done): ("done", "S1"),
        ("stock", refused): ("refused", "E3"),
        ("stock", dead): ("dead", "E2"),
        ("catalog", unmapped): ("parked", "E4"),
    }
    for (context, sku), (status, code) in wanted.items():
        row = shop.status(context, sku, status)
        assert row["code"] == code
        assert row["answered_at"] >= started, "the date of the attempt is not kept"
    assert shop.row("stock", done)["confirmed"] == {"quantity": 21}
    assert "not wanted" in json.dumps(shop.row("stock", refused)["problems"])
    row = shop.row("stock", dead)
    assert "503" in row["why"]
    assert row["attempts"] > 10
    assert row["due_at"] > row["answered_at"], "the next attempt is not kept"
    parked = shop.row("catalog", unmapped)
    assert parked["parked_on"] == "mapping:2"
    assert parked["due_at"] > parked["answered_at"]
    assert shop.row("stock", refused)["due_at"] is None
