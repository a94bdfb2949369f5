"""What every marketplace's adapter promises to the core, over real HTTP through the real way out."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hub.errors import AuthLost, BadInput, Conflict, NotFound, Refusal, Throttled, Unavailable, UnknownOutcome
from hub.events import doubt, read_event
from hub.marketplaces import Adapter, adapter, adapters, register
from hub.model import Action, LotOutcome, Price, Record, Written
from hub.ports import Marketplace
from hub.rules import ListingRules
from hub.simulators.serving import in_thread
from tests.contract.outlet import OUTLET
from tests.contract.rigs import RIGS, Line, Opening, Rig

references = (f"ref-{number}" for number in itertools.count(1))


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    ends = time.monotonic() + seconds
    while (value := found()) is None:
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.01)
    return value


def put_lot(marketplace: Marketplace, *records: Record) -> Mapping[int, LotOutcome]:
    kind = "offer" if records[0].action is Action.OFFER else "listing"
    ticket = marketplace.submit_lot(kind, next(references), [marketplace.encode(record) for record in records])
    return dict(until(lambda: marketplace.lot_result(ticket)).by_line)


def put(marketplace: Marketplace, record: Record) -> Written:
    """One record, by the way that the marketplace has for it."""
    if not marketplace.manifest.lots:
        return marketplace.write(record)
    outcome = put_lot(marketplace, record)[0]
    if outcome.written is None:
        raise Refusal(outcome.problems)
    return outcome.written


def registration(rig: Rig, marketplace: Marketplace, **changes: Any) -> Record:
    listing = marketplace.render(rig.product, rig.category, ListingRules()).listing
    assert listing is not None
    whole = {"price": Price(9990, 12990), "stock": 7} if marketplace.manifest.replaces else {}
    return replace(Record(rig.product.sku, Action.REGISTER, next(references), None, listing), **{**whole, **changes})


def offer(rig: Rig, marketplace: Marketplace, written: Written, price: Price, stock: int) -> None:
    """Price and stock, in one record or one each, as the manifest says."""
    record = replace(registration(rig, marketplace), action=Action.OFFER, remote_id=written.remote_id)
    if not marketplace.manifest.replaces:
        record = replace(record, listing=None)
    if marketplace.manifest.offer == "separate":
        put(marketplace, replace(record, price=price, stock=None))
        put(marketplace, replace(record, price=None, stock=stock))
    else:
        put(marketplace, replace(record, price=price, stock=stock))


# --- what there is ------------------------------------------------------------------------------------------------


def test_every_marketplace_found_is_in_front_of_this_suite() -> None:
    assert set(adapters()) == set(RIGS), "add a rig to tests/contract/rigs.py for a new marketplace"


@pytest.mark.parametrize("name", RIGS)
def test_a_manifest_names_itself_and_contradicts_itself_nowhere(name: str) -> None:
    manifest = adapter(name).manifest
    assert manifest.name == name
    assert {Action.REGISTER, Action.UPDATE, Action.OFFER} <= manifest.actions
    assert manifest.actions & {Action.DEACTIVATE, Action.DELETE}, "there is no way to take an article off sale"
    assert manifest.polls_orders, "an event that was lost would never be missed"
    assert not (manifest.replaces and manifest.offer == "separate")


def test_an_unknown_marketplace_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"did you mean 'sandbox-sync'\?.*known: outlet, sandbox-lot, sandbox-replace"):
        adapter("sandbox-snyc")


def test_a_name_belongs_to_one_marketplace() -> None:
    register("outlet", OUTLET)
    with pytest.raises(Conflict, match="sandbox-lot"):
        register("sandbox-lot", Adapter(OUTLET.manifest, OUTLET.connect))


# --- records ------------------------------------------------------------------------------------------------------


def test_what_was_sent_is_shown(rig: Rig, marketplace: Marketplace) -> None:
    record = registration(rig, marketplace)
    assert marketplace.show(record.sku, None) is None
    written = put(marketplace, record)
    offer(rig, marketplace, written, Price(9990, 12990), 7)
    shown = marketplace.show(record.sku, written.remote_id)
    assert shown is not None
    assert (shown.remote_id, shown.link) == (written.remote_id, written.link)
    assert (shown.active, shown.price, shown.stock) == (True, Price(9990, 12990), 7)
    assert shown.listing == record.listing


@pytest.mark.parametrize("name", [name for name in RIGS if adapter(name).manifest.walks])
def test_a_walk_shows_every_listing_once_and_as_a_look_at_one_does(openings: Mapping[str, Opening], name: str) -> None:
    rig = openings[name]()
    marketplace = rig.connect()
    skus = [str(90_000 + number) for number in range(103)]  # more than a page
    records = [replace(registration(rig, marketplace), sku=sku) for sku in skus]
    if marketplace.manifest.lots:
        put_lot(marketplace, *records)
    else:
        for record in records:
            put(marketplace, record)
    page = marketplace.listings(None)
    walked = list(page.shown)
    while page.cursor is not None:
        page = marketplace.listings(page.cursor)
        walked += page.shown
    assert sorted(shown.sku for shown in walked) == skus
    assert {one.sku: one for one in walked}["90007"] == marketplace.show("90007", None)
    assert len(walked) > len(marketplace.listings(None).shown)


def test_a_repeated_record_changes_nothing(rig: Rig, marketplace: Marketplace) -> None:
    record = registration(rig, marketplace)
    written = put(marketplace, record)
    again = Action.UPDATE if marketplace.manifest.create == "create" else Action.REGISTER
    assert put(marketplace, replace(record, action=again, remote_id=written.remote_id)).remote_id == written.remote_id
    for _ in range(2):
        offer(rig, marketplace, written, Price(500, 500), 3)
    shown = marketplace.show(record.sku, written.remote_id)
    assert shown is not None
    assert (shown.price, shown.stock, shown.listing) == (Price(500, 500), 3, record.listing)
    assert rig.listings(record.sku) == 1


@pytest.mark.scenario("NEW-05", rule=True)
def test_rendering_tells_every_problem_at_once_and_makes_no_call(rig: Rig, marketplace: Marketplace) -> None:
    hopeless = replace(rig.product, name="x" * 100, ean="7891000315500", images=(), specifications=())
    before = len(rig.control.journal())
    rendered = marketplace.render(hopeless, rig.category, ListingRules())
    assert rendered.listing is None
    assert {"title", "EAN", "images"} <= {problem.field for problem in rendered.problems}
    assert all(problem.fix for problem in rendered.problems)
    assert len(rig.control.journal()) == before


@pytest.mark.scenario("NEW-09")
def test_a_refusal_carries_every_problem(rig: Rig, marketplace: Marketplace) -> None:
    with pytest.raises(Refusal) as refused:
        put(marketplace, registration(rig, marketplace, listing=rig.hard_to_please()))
    assert len(refused.value.problems) >= 2
    assert all(problem.code == "E3" and problem.field and problem.fix for problem in refused.value.problems)
    assert rig.listings(rig.product.sku) == 0


def test_what_the_manifest_has_works_and_what_it_lacks_is_refused_without_a_call(
    rig: Rig, marketplace: Marketplace
) -> None:
    written = put(marketplace, registration(rig, marketplace))
    record = replace(registration(rig, marketplace), remote_id=written.remote_id, listing=None)
    for action in (Action.DEACTIVATE, Action.ACTIVATE, Action.DELETE):
        if action in marketplace.manifest.actions:
            put(marketplace, replace(record, action=action))
            shown = marketplace.show(record.sku, written.remote_id)
            assert (shown is not None and shown.active) == (action is Action.ACTIVATE)
        else:
            before = len(rig.control.journal(limit=50_000))
            with pytest.raises(Refusal, match="can"):
                put(marketplace, replace(record, action=action))
            assert len(rig.control.journal(limit=50_000)) == before


@pytest.mark.parametrize("name", RIGS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sale=st.integers(1, 10**9), over=st.integers(0, 10**6))
def test_money_comes_back_to_the_cent(name: str, openings: Mapping[str, Opening], sale: int, over: int) -> None:
    rig = openings[name]()
    marketplace = rig.connect()
    written = put(marketplace, registration(rig, marketplace))
    offer(rig, marketplace, written, Price(sale, sale + over), 1)
    shown = marketplace.show(rig.product.sku, written.remote_id)
    assert shown is not None
    assert shown.price == Price(sale, sale + over)


# --- when the peer misbehaves -------------------------------------------------------------------------------------


def test_a_lost_answer_is_known_to_be_lost_and_the_truth_can_be_read(rig: Rig, marketplace: Marketplace) -> None:
    record = registration(rig, marketplace)
    rig.control.fault("cut", operation=rig.operations["register"], count=1)
    with pytest.raises(Unavailable) as lost:
        put(marketplace, record)
    repeats_harm = marketplace.manifest.create == "create" or marketplace.manifest.lots is not None
    assert isinstance(lost.value, UnknownOutcome) == repeats_harm
    shown = until(lambda: marketplace.show(record.sku, None), marketplace.manifest.visibility_delay + 60)
    assert shown.listing == record.listing
    assert rig.listings(record.sku) == 1


def test_a_listing_that_is_not_visible_yet_is_found_after_the_declared_delay(openings: Mapping[str, Opening]) -> None:
    rig = openings["sandbox-sync"](visibility_delay=0.8)
    marketplace = rig.connect()
    written = put(marketplace, registration(rig, marketplace))
    assert marketplace.show(rig.product.sku, None) is None
    rig.control.advance(marketplace.manifest.visibility_delay)
    shown = marketplace.show(rig.product.sku, None)
    assert shown is not None
    assert shown.remote_id == written.remote_id


def test_a_throttle_is_honoured_by_not_calling(rig: Rig, marketplace: Marketplace) -> None:
    rig.control.fault("throttle", operation=rig.operations["show"], count=1, retry_after=30)
    with pytest.raises(Throttled) as throttled:
        marketplace.show("1", None)
    assert 29 <= throttled.value.wait <= 31
    before = len(rig.control.journal(limit=50_000))
    with pytest.raises(Throttled):
        marketplace.show("1", None)
    assert len(rig.control.journal(limit=50_000)) == before


def test_an_answer_that_cannot_be_read_is_no_answer(rig: Rig, marketplace: Marketplace) -> None:
    written = put(marketplace, registration(rig, marketplace))
    assert written
    rig.control.fault("cut", operation=rig.operations["show"], count=1)
    with pytest.raises(Unavailable):
        marketplace.show(rig.product.sku, None)
    assert marketplace.show(rig.product.sku, None) is not None


def test_lost_credentials_are_told_with_their_version(rig: Rig, marketplace: Marketplace) -> None:
    assert marketplace.check() == ()
    rig.lose_access()
    with pytest.raises(AuthLost) as lost:
        marketplace.show("1", None)
    assert (lost.value.side, lost.value.scope, lost.value.version) == ("marketplace", "store", 1)
    problems = marketplace.check()
    assert len(problems) == 1
    assert problems[0].fix


# --- orders -------------------------------------------------------------------------------------------------------


def test_new_orders_are_found_once_and_their_sums_are_exact(rig: Rig, marketplace: Marketplace) -> None:
    put(marketplace, registration(rig, marketplace))
    first = marketplace.changed_orders(None)
    assert first.order_ids == ()
    placed = [rig.place([Line(rig.product.sku, 3, 3333)], 1001), rig.place([Line(rig.product.sku, 1, 10)], 0)]
    page = marketplace.changed_orders(first.cursor)
    assert set(page.order_ids) == {order_id for order_id, _ in placed}
    assert marketplace.changed_orders(page.cursor).order_ids == ()
    for order_id, total in placed:
        order = marketplace.order(order_id)
        sums = sum(item.price * item.quantity + item.shipping for item in order.items)
        assert (order.status, order.total, sums + order.interest) == ("paid", total, total)
        assert order.buyer.email
        assert order.address.postal_code
    with pytest.raises(NotFound):
        marketplace.order("no-such-order")


def test_categories_that_take_listings_have_names(rig: Rig, marketplace: Marketplace) -> None:
    categories = marketplace.categories()
    assert rig.category in categories
    assert all(categories.values())


# --- lots ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[name for name in RIGS if adapters()[name].manifest.lots])
def lot_rig(request: pytest.FixtureRequest, openings: Mapping[str, Opening]) -> Rig:
    return openings[request.param]()


@pytest.mark.scenario("RES-09")
def test_a_lot_is_answered_record_by_record(lot_rig: Rig) -> None:
    marketplace = lot_rig.connect()
    good = registration(lot_rig, marketplace)
    bad = replace(good, sku="bad", listing=lot_rig.hard_to_please())
    faulty = replace(good, sku="faulty")
    lot_rig.control.break_sku(lot_rig.name, "faulty", 503)  # type: ignore[attr-defined]  # a sandbox rig
    outcomes = put_lot(marketplace, good, bad, faulty)
    assert [outcomes[line].taken for line in range(3)] == [True, False, False]
    assert [outcomes[line].retry for line in range(3)] == [False, False, True]
    assert outcomes[0].written is not None
    assert outcomes[0].written.remote_id
    assert len(outcomes[1].problems) >= 2


def test_a_lot_whose_submit_answer_was_lost_is_found_and_not_made_twice(lot_rig: Rig) -> None:
    marketplace = lot_rig.connect()
    record = registration(lot_rig, marketplace)
    reference, lines = next(references), [marketplace.encode(record)]
    assert marketplace.find_lot(reference) is None
    lot_rig.control.fault("cut", operation="feed_submit", count=1)
    with pytest.raises(UnknownOutcome):
        marketplace.submit_lot("listing", reference, lines)
    ticket = marketplace.find_lot(reference)
    assert ticket is not None
    assert marketplace.submit_lot("listing", reference, lines) == ticket
    assert until(lambda: marketplace.lot_result(ticket)).by_line[0].taken


def test_a_lot_is_awaited_and_one_that_failed_whole_may_be_sent_again(openings: Mapping[str, Opening]) -> None:
    rig = openings["sandbox-lot"](feed_delay=60, fatal_feeds=1)
    marketplace = rig.connect()
    ticket = marketplace.submit_lot("listing", next(references), [marketplace.encode(registration(rig, marketplace))])
    assert marketplace.lot_result(ticket) is None
    rig.control.advance(61)
    result = marketplace.lot_result(ticket)
    assert result is not None
    assert (result.by_line, result.retry) == ({}, True)
    assert result.fatal


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.scenario("RES-10")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_burst_renews_an_expired_token_once(openings: Mapping[str, Opening], workers: int) -> None:
    rig: Any = openings["sandbox-sync"](oauth=True)
    connected = [rig.connect() for _ in range(workers)]
    rig.control.expire_tokens(rig.name)
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(connected[turn % workers].show, "1", None) for turn in range(8)]
        assert [answer.result() for answer in answers] == [None] * 8
    assert rig.control.counters(rig.name).get("refreshes") == 1
    assert rig.control.counters(rig.name).get("refused_refreshes", 0) == 0
    assert rig.vault.held.version == 2


def test_a_create_that_met_an_expired_token_is_made_once(openings: Mapping[str, Opening]) -> None:
    rig: Any = openings["sandbox-sync"](oauth=True)
    marketplace = rig.connect()
    rig.control.expire_tokens(rig.name)
    put(marketplace, registration(rig, marketplace))
    assert rig.listings(rig.product.sku) == 1


def test_a_renewal_that_fails_for_the_moment_is_no_lost_consent(openings: Mapping[str, Opening]) -> None:
    rig: Any = openings["sandbox-sync"](oauth=True)
    marketplace = rig.connect()
    rig.control.expire_tokens(rig.name)
    rig.control.fault("status", operation="token_refresh", count=1, status=503)
    with pytest.raises(Unavailable) as away:
        marketplace.show("1", None)
    assert not isinstance(away.value, UnknownOutcome)
    assert marketplace.show("1", None) is None


def test_renewed_credentials_reach_no_error_and_no_log(
    openings: Mapping[str, Opening], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    rig: Any = openings["sandbox-sync"](oauth=True)
    marketplace = rig.connect()
    rig.control.expire_tokens(rig.name)
    marketplace.show("1", None)
    rig.control.revoke(rig.name)
    with pytest.raises(AuthLost) as lost:
        marketplace.show("1", None)
    for secret in (*rig.vault.held.values.values(), rig.seller.token, rig.seller.refresh_token):
        assert secret not in f"{lost.value!r} {lost.value.__cause__!r} {lost.value.__context__!r} {caplog.text}"


@contextmanager
def ear(heard: list[tuple[str | None, bytes]]) -> Iterator[str]:
    """Listens to a marketplace's events: signature and body of each."""

    async def hear(request: Request) -> Response:
        heard.append((request.headers.get("x-signature"), await request.body()))
        return Response()

    with in_thread(Starlette(routes=[Route("/", hear, methods=["POST"])])) as address:
        yield f"{address}/"


# --- events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RIGS if name.startswith("sandbox") and name != "sandbox-lot"])
def test_a_doubled_event_points_at_the_same_order(openings: Mapping[str, Opening], name: str) -> None:
    heard: list[tuple[str | None, bytes]] = []
    with ear(heard) as address:
        rig: Any = openings[name](webhook_url=address, webhook_secret="synthetic-secret", webhook_double=1.0)
        order_id, _ = rig.place([Line(rig.product.sku, 1, 1000)], 0)
        until(lambda: True if len(heard) == 2 else None)
    webhook = rig.adapter.manifest.webhook
    assert [read_event(webhook, body).order_id for _, body in heard] == [order_id] * 2
    assert {doubt(webhook, signed, body, ["synthetic-secret"], time.time()) for signed, body in heard} == {None}
    if webhook.scheme != "none":
        assert doubt(webhook, heard[0][0], heard[0][1] + b" ", ["synthetic-secret"], time.time()) == "wrong signature"
