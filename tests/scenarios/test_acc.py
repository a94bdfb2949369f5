"""ACC: what the hub does when VTEX refuses, throttles or fails – one store at a time, and without losing a thing."""

from datetime import datetime
from typing import Any

import pytest

from hub.simulators.marketplace_control import Basket
from tests.cell import Cell, Shop, until


def gates(shop: Shop) -> list[dict[str, Any]]:
    """The gates of a store that lost credentials shut."""
    return shop.cell.all(
        "select context, side, cause, why from gates where store = %s and cause = 'credentials'", shop.store.id
    )


def alerts(shop: Shop) -> list[dict[str, Any]]:
    """What was told of lost credentials."""
    return shop.cell.all(
        "select context, status, params from interactions where store = %s and code = 'C0' order by at", shop.store.id
    )


def spent(shop: Shop) -> int:
    """Attempts that the store's rows have used up by now."""
    row = shop.cell.one("select coalesce(sum(attempts), 0)::int as n from states where store = %s", shop.store.id)
    assert row is not None
    return int(row["n"])


def pending(shop: Shop, *skus: str) -> set[str]:
    """Which of these SKUs are still waiting for an answer."""
    rows = shop.cell.all(
        "select key from states where store = %s and key = any(%s) and asked > answered", shop.store.id, list(skus)
    )
    return {row["key"] for row in rows}


def asked_of_vtex(shop: Shop, *operations: str) -> int:
    """How many calls VTEX heard from the store's account."""
    return sum(len(shop.vtex_calls(operation)) for operation in operations or ("sku", "simulation"))


def another_works(cell: Cell) -> None:
    """Another store is served from end to end, which takes the sweep and the workers several rounds."""
    other = cell.shop("sandbox-sync")
    other.published(*other.grow(2))


@pytest.mark.scenario("ACC-01")
def test_every_call_carries_key_token_and_json_headers_to_the_address_of_the_settings(cell: Cell) -> None:
    shop = cell.shop("sandbox-sync", polls=True)
    (sku,) = shop.grow(1)
    shop.published(sku)
    order = cell.marketplace.place_order(shop.slug, [Basket(sku, 1, 9990)])
    until(lambda: order.id in cell.vtex.orders(shop.account), why="the order did not reach VTEX")
    calls = cell.vtex.journal(account=shop.account)
    assert {call["operation"] for call in calls} >= {"sku", "simulation", "create_order"}
    for call in calls:
        headers = {name.lower(): value for name, value in call["headers"].items()}
        assert headers["x-vtex-api-appkey"], call["path"]
        assert headers["x-vtex-api-apptoken"], call["path"]
        assert headers["accept"] == "application/json"
        assert headers["content-type"] == "application/json"
        assert call["path"].startswith(f"/{shop.account}/api/")
        unknown = call["operation"] == "order" and call["status"] == 404  # asked before it is created (law 5)
        assert call["status"] == 200 or unknown, call


@pytest.mark.scenario("ACC-02", "ACC-04")
def test_a_revoked_token_stops_the_store_with_one_alert_until_a_new_pair_is_saved(cell: Cell) -> None:
    shop = cell.shop("sandbox-sync")
    skus = shop.grow(12)
    shop.published(skus[0])
    shop.quiet()
    key, old = f"vtexappkey-{shop.account}-ABCDEF", f"secret-{shop.account}"
    cell.vtex.change_credentials(shop.account, remove={key: old})
    for sku in skus[1:6]:
        shop.modified(sku, sku=True)
    shop.change(skus[0], price=5000, stock=5, notify=False)
    shop.modified(skus[0], price=True, stock=True)
    until(lambda: gates(shop), why="no gate was shut")
    until(lambda: not cell.all("select 1 from claims where store = %s", shop.store.id))
    heard = asked_of_vtex(shop)
    for sku in skus[6:]:
        shop.modified(sku, sku=True)
    another_works(cell)

    assert asked_of_vtex(shop) == heard, "VTEX was asked although it refuses the store"
    assert [(gate["context"], gate["side"]) for gate in gates(shop)] == [("*", "vtex")]
    assert pending(shop, *skus) == set(skus), "a message was not kept"
    assert spent(shop) == 0
    (alert,) = alerts(shop)
    assert alert["status"] == "error"
    assert alert["params"]["peer"] == "VTEX"
    assert old not in str(alert)

    new = f"renewed-{shop.account}"
    cell.vtex.change_credentials(shop.account, add={key: new})
    cell.registry.save_credentials(shop.store.id, "vtex", {"app_key": key, "app_token": new}, who="tests")
    for sku in skus:
        shop.shows(sku)
    assert gates(shop) == []
    assert len(alerts(shop)) == 1


@pytest.mark.scenario("ACC-03", "ACC-04")
def test_a_role_without_catalogue_reads_stops_the_catalogue_alone_and_says_what_it_lacks(cell: Cell) -> None:
    shop = cell.shop("sandbox-sync", polls=True)
    listed, new, other = shop.grow(3)
    shop.published(listed)
    shop.quiet()
    cell.vtex.deny_groups(shop.account, "catalog")
    shop.modified(new, sku=True)
    shop.modified(other, sku=True)
    until(lambda: gates(shop), why="no gate was shut")
    shop.change(listed, price=4000, stock=4, notify=False)
    shop.modified(listed, price=True, stock=True)
    shop.shows(listed, price_cents=4000, stock=4)
    order = cell.marketplace.place_order(shop.slug, [Basket(listed, 1, 4000)])
    until(lambda: order.id in cell.vtex.orders(shop.account), why="the order did not reach VTEX")

    assert [(gate["context"], gate["side"]) for gate in gates(shop)] == [("catalog", "vtex")]
    assert pending(shop, new, other) == {new, other}
    assert spent(shop) == 0
    (alert,) = alerts(shop)
    assert alert["context"] == "catalog"
    assert "Product form / View product" in alert["params"]["reason"], "the missing resource is not named"

    cell.vtex.deny_groups(shop.account)
    renewed = {"app_key": f"vtexappkey-{shop.account}-ABCDEF", "app_token": f"secret-{shop.account}"}
    cell.registry.save_credentials(shop.store.id, "vtex", renewed, who="tests")
    shop.shows(new)
    shop.shows(other)
    assert gates(shop) == []


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("seconds", marks=pytest.mark.scenario("ACC-06")),
        pytest.param("date", marks=pytest.mark.scenario("ACC-07")),
    ],
)
def test_after_a_429_the_group_is_left_alone_for_the_time_named_and_nothing_is_lost(cell: Cell, form: str) -> None:
    shop = cell.shop("sandbox-sync")
    skus = shop.grow(6)
    cell.vtex.fault(
        "throttle", "sku", account=shop.account, retry_after=2, retry_after_form=form, rate_headers="none", count=1
    )
    shop.modified(skus[0], sku=True)
    until(lambda: [call for call in shop.vtex_calls("sku") if call["status"] == 429], why="VTEX did not throttle")
    held = "select 1 from claims where store = %s"
    until(lambda: not cell.all(held, shop.store.id), why="who was throttled does not end")
    for sku in skus[1:]:
        shop.modified(sku, sku=True)
    for sku in skus:
        shop.shows(sku)
    calls = sorted(shop.vtex_calls("sku"), key=lambda call: call["number"])
    throttled = next(number for number, call in enumerate(calls) if call["status"] == 429)
    assert [call["status"] for call in calls].count(429) == 1
    moments = [datetime.fromisoformat(call["at"]) for call in calls]
    pause = (moments[throttled + 1] - moments[throttled]).total_seconds()
    assert pause >= (1.9 if form == "seconds" else 0.9), "called before the time that VTEX named"  # a date has seconds
    assert spent(shop) == 0
    assert not shop.told(skus[0], "E2"), "a throttle is no failure"


@pytest.mark.scenario("ACC-10", "ACC-11")
def test_a_failing_group_is_left_alone_without_spending_attempts_and_other_stores_go_on(cell: Cell) -> None:
    shop, other = cell.shop("sandbox-sync"), cell.shop("sandbox-sync")
    first, later = shop.grow(5), shop.grow(10)
    away = cell.vtex.fault("status", "sku", account=shop.account, status=503)
    for sku in first:
        shop.modified(sku, sku=True)

    def failures() -> int:
        return sum(call["status"] == 503 for call in shop.vtex_calls("sku"))

    until(lambda: failures() >= 5, why="VTEX was not asked for five SKUs")
    for sku in later:
        shop.modified(sku, sku=True)
    other.published(*other.grow(3))
    until(lambda: failures() >= 6, why="no probe was sent")
    before = failures()
    cell.vtex.clear_faults(away)
    for sku in (*first, *later):
        shop.shows(sku)

    # fifteen keys under a plan that retries within 0.1 s: without a circuit there would be more than a hundred calls
    assert before <= 15
    told = [str(one["params"]["reason"]) for sku in (*first, *later) for one in shop.told(sku, "E2")]
    assert sum("answered 503" in reason for reason in told) == failures(), "attempts and calls that failed differ"
    assert not [reason for reason in told if "circuit" in reason], "an attempt was spent without a call"
    assert not [sku for sku in (*first, *later) if shop.told(sku, "D0")]
    assert spent(shop) == 0
    assert not [call for call in other.vtex_calls("sku") if call["status"] != 200]


@pytest.mark.scenario("ACC-12", "ACC-13")
@pytest.mark.parametrize("body", ["Bad request: the SKU is broken", "<html><body><h1>Broken SKU</h1></body></html>"])
def test_refusals_are_business_errors_of_their_skus_and_leave_the_circuit_closed(cell: Cell, body: str) -> None:
    shop = cell.shop("sandbox-sync")
    broken, good = shop.grow(12), shop.grow(1)
    bad = cell.vtex.fault("status", "sku", account=shop.account, status=400, body=body)
    for sku in broken:
        shop.modified(sku, sku=True)
    for sku in broken:
        row = shop.status("catalog", sku, "refused")
        assert row["attempts"] == 0
        assert "roken" in str(row["problems"]), "what VTEX said is not told"
        assert [one["code"] for one in shop.told(sku)] == ["E3"]
    assert len(shop.vtex_calls("sku")) == len(broken), "a refusal was retried"
    cell.vtex.clear_faults(bad)
    shop.published(*good)
    shop.published(*broken)
