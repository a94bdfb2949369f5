"""The sandbox's mapping: money and sums exact, every problem told, and answers of tomorrow understood.

`tests/recorded/sandbox` has synthetic answers, replayed by a server that knows nothing else.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hub.errors import Refusal, Unavailable, UnknownOutcome
from hub.marketplaces import Account
from hub.marketplaces.sandbox import (
    ADAPTERS,
    DEMANDS,
    LOT,
    REPLACE,
    SYNC,
    Dialect,
    OrderLine,
    OrdersCursor,
    cents,
    ean13,
    order_items,
    rendered,
    spread,
)
from hub.model import Action, Price, Record, Specification
from hub.ports import Marketplace
from hub.rules import ListingRules
from hub.simulators.marketplace_world import CATEGORIES
from hub.simulators.serving import in_thread
from hub.transport import Transport
from tests.contract.rigs import PRODUCT, Held, Line, Opening, Vault

RECORDED = Path(__file__).parent.parent / "recorded" / "sandbox"
NAMES = {"sync": "sandbox-sync", "lot": "sandbox-lot", "full-replace": "sandbox-replace"}


@pytest.fixture(scope="module")
def replayed() -> Iterator[Mapping[str, Marketplace]]:
    """A marketplace of each profile that answers from the recorded files."""
    answers = {
        (one["profile"], one["method"], one["path"]): one
        for one in (json.loads(file.read_text()) for file in sorted(RECORDED.glob("*.json")))
    }

    async def answer(request: Request) -> Response:
        one = answers[request.path_params["profile"], request.method, f"/{request.path_params['rest']}"]
        body = one["body"]
        return Response(body, one["status"]) if isinstance(body, str) else JSONResponse(body, one["status"])

    transport = Transport(None, "recorded")
    routes = [Route("/{profile}/{rest:path}", answer, methods=["GET", "POST", "PUT"])]
    with in_thread(Starlette(routes=routes)) as url:

        def connected(profile: str) -> Marketplace:
            held, base = Held(1, {"token": "synthetic-token"}), f"{url}/{profile}"
            peer = transport.peer(f"store-{profile}", "marketplace", base, account=profile)
            account = Account(store="store", base_url=base, credentials=held, peer=peer, renew=Vault(held).renew)
            return ADAPTERS[NAMES[profile]].connect(account)

        yield {profile: connected(profile) for profile in NAMES}


# --- money --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [SYNC, LOT, REPLACE], ids=lambda dialect: dialect.profile)
@given(amount=st.integers(0, 10**12))
def test_money_survives_its_wire_form(dialect: Dialect, amount: int) -> None:
    tree = json.loads(json.dumps(dialect.write_money(amount, "BRL")))
    assert dialect.read_money(tree, "BRL") == amount


@given(st.decimals(min_value=0, max_value=10**9, places=2))
def test_decimal_text_is_read_exactly(amount: Decimal) -> None:
    assert Decimal(cents(str(amount))) == amount * 100


@pytest.mark.parametrize("wrong", [99.9, 99, "99.905", "NaN", "Infinity", "1e", "", None, True, {"amount": 1}])
def test_what_is_no_exact_money_is_not_read(wrong: object) -> None:
    with pytest.raises(ValueError, match="money"):
        cents(wrong)


def test_money_of_another_currency_is_not_read() -> None:
    with pytest.raises(ValueError, match="BRL"):
        LOT.read_money({"amount": "99.90", "currency": "EUR"}, "BRL")


# --- orders -------------------------------------------------------------------------------------------------------

lines = st.lists(
    st.builds(
        OrderLine,
        st.sampled_from(["1", "2"]),
        st.integers(1, 50),
        st.integers(0, 10**6),
        st.integers(0, 10**4),
        st.integers(0, 10**5),
    ),
    min_size=1,
    max_size=8,
)


@given(lines=lines, share=st.floats(0, 1))
def test_items_and_shipping_add_up_to_what_the_buyer_pays(lines: list[OrderLine], share: float) -> None:
    lines = [replace(line, discount=min(line.discount, line.price * line.quantity)) for line in lines]
    goods = sum(line.price * line.quantity - line.discount for line in lines)
    shipping = sum(line.shipping for line in lines)
    discount = int((goods + shipping) * share)
    items = order_items(lines, discount)
    assert sum(item.price * item.quantity + item.shipping for item in items) == goods + shipping - discount
    assert sum(item.quantity for item in items) == sum(line.quantity for line in lines)
    assert all(item.price >= 0 and item.shipping >= 0 and item.quantity > 0 for item in items)


@given(amount=st.integers(0, 10**6), weights=st.lists(st.integers(0, 10**5), min_size=1, max_size=9))
def test_a_spread_loses_no_cent_and_takes_no_more_than_there_is(amount: int, weights: list[int]) -> None:
    amount = min(amount, sum(weights))
    parts = spread(amount, weights)
    assert sum(parts) == amount
    assert all(0 <= part <= weight for part, weight in zip(parts, weights, strict=True))


@pytest.mark.scenario("ORD-27", rule=True)
def test_an_order_discount_is_spread_by_value() -> None:
    items = order_items([OrderLine("1", 1, 1000), OrderLine("2", 1, 4000)], 1000)
    assert [item.price for item in items] == [800, 3200]


@pytest.mark.scenario("ORD-26", rule=True)
def test_a_discount_that_does_not_divide_splits_the_line() -> None:
    items = order_items([OrderLine("1", 3, 3334, discount=1, shipping=900)])
    assert [(item.quantity, item.price, item.shipping) for item in items] == [(1, 3333, 900), (2, 3334, 0)]


def test_an_order_with_discounts_on_lines_and_whole_is_exact(replayed: Mapping[str, Marketplace]) -> None:
    order = replayed["sync"].order("MKT-1")
    sums = sum(item.price * item.quantity + item.shipping for item in order.items)
    assert sums + order.interest == order.total == 15088
    assert (order.interest, order.status) == (137, "paid")
    assert order.updated_at == datetime(2026, 1, 31, 14, tzinfo=UTC)
    assert (order.buyer.document, order.address.city) == ("00000000191", "São Paulo")


def test_an_order_in_an_unknown_status_and_without_buyer_waits(replayed: Mapping[str, Marketplace]) -> None:
    order = replayed["full-replace"].order("MKT-2")
    assert (order.status, order.total, order.buyer.email) == ("unpaid", 11940, "")


@pytest.mark.parametrize(("profile", "order_id"), [("lot", "MKT-3"), ("sync", "MKT-4")])
def test_an_order_whose_money_is_not_ours_is_not_guessed(
    replayed: Mapping[str, Marketplace], profile: str, order_id: str
) -> None:
    with pytest.raises(Unavailable, match=r"EUR|money"):
        replayed[profile].order(order_id)


# --- polling ------------------------------------------------------------------------------------------------------


def test_polling_overlaps_after_news_and_repeats_nothing_for_ever(openings: Mapping[str, Opening]) -> None:
    rig: Any = openings["sandbox-lot"]()
    marketplace = rig.connect()
    orders = [rig.place([Line("1001", 1, 100)], 0)[0] for _ in range(3)]
    page = marketplace.changed_orders(None)
    assert (set(page.order_ids), page.more) == (set(orders), False)
    rig.control.advance(30)
    rig.control.move_order(rig.name, orders[0], "cancelled")
    page = marketplace.changed_orders(page.cursor)
    assert set(page.order_ids) == set(orders), "within a minute of the newest"
    rig.control.advance(3600)
    rig.control.move_order(rig.name, orders[1], "cancelled")
    page = marketplace.changed_orders(page.cursor)
    assert set(page.order_ids) == set(orders), "from a minute before the newest that was known"
    for _ in range(2):
        page = marketplace.changed_orders(page.cursor)
    for _ in range(3):
        page = marketplace.changed_orders(page.cursor)
        assert page.order_ids == ()
    rig.control.move_order(rig.name, orders[2], "cancelled")
    assert orders[2] in marketplace.changed_orders(page.cursor).order_ids


def test_pages_of_orders_follow_each_other_without_a_gap(openings: Mapping[str, Opening]) -> None:
    rig = openings["sandbox-lot"]()
    marketplace = rig.connect()
    orders = {rig.place([Line("1001", 1, 100)], 0)[0] for _ in range(230)}
    found: set[str] = set()
    page = marketplace.changed_orders(None)
    found |= set(page.order_ids)
    while page.more:
        page = marketplace.changed_orders(page.cursor)
        found |= set(page.order_ids)
    assert found == orders
    orders.add(rig.place([Line("1001", 1, 100)], 0)[0])
    while True:
        page = marketplace.changed_orders(page.cursor)
        found |= set(page.order_ids)
        if not page.more:
            break
    assert found == orders


@pytest.mark.parametrize("text", ["", "x", "[1]", "{}", '{"since":"not a time"}', '{"since":"2026-01-31T10:00:00"}'])
def test_a_cursor_that_cannot_be_read_starts_over(text: str) -> None:
    assert OrdersCursor.of(text).query() == {"limit": "100"}


# --- registrations ------------------------------------------------------------------------------------------------


def test_what_we_know_of_the_categories_is_what_the_marketplace_says() -> None:
    parents = {category.parent for category in CATEGORIES.values()}
    assert {
        category.id: {one.name: (one.required, one.values) for one in category.attributes}
        for category in CATEGORIES.values()
        if category.id not in parents
    } == DEMANDS


@pytest.mark.parametrize("name", ["Cor", "COLOR", "côr", " color ", "Colour"])
def test_a_specification_is_found_by_any_of_its_names(name: str) -> None:
    product = replace(PRODUCT, specifications=(Specification(name, ("azul", "branco")),))
    listing = rendered(product, "MC-310", ListingRules()).listing
    assert listing is not None
    assert listing.attributes == {"color": "azul, branco"}


def test_a_value_of_a_closed_list_is_written_as_the_marketplace_does() -> None:
    product = replace(PRODUCT, specifications=(Specification("Tensão", ("110 v",)),))
    listing = rendered(product, "MC-330", ListingRules()).listing
    assert listing is not None
    assert listing.attributes == {"voltage": "110V"}
    wrong = rendered(replace(product, specifications=(Specification("Tensão", ("12V",)),)), "MC-330", ListingRules())
    assert [(problem.field, problem.value) for problem in wrong.problems] == [("voltage", "12V")]


@pytest.mark.scenario("NEW-06", rule=True)
def test_a_default_fills_a_gap_and_is_told() -> None:
    product = replace(PRODUCT, specifications=(Specification("Cor", ("azul",)),), brand="")
    rules = ListingRules({"attributes.size": "U", "attributes.color": "preto", "brand": "Sem marca"})
    told = rendered(product, "MC-110", rules)
    assert told.listing is not None
    assert told.listing.attributes == {"color": "azul", "size": "U"}
    assert told.defaults_used == {"brand": "Sem marca", "attributes.size": "U"}


def test_everything_missing_is_told_by_name() -> None:
    product = replace(PRODUCT, name="x" * 61, ean="", images=("ftp://x",), specifications=(), brand="")
    problems = rendered(product, "MC-110", ListingRules()).problems
    assert {problem.field for problem in problems} == {"title", "EAN", "image 1", "brand", "color", "size"}


@pytest.mark.parametrize(
    ("given_ean", "wanted"),
    [
        ("7891000315507", "7891000315507"),
        ("036000291452", "0036000291452"),
        ("07891000315507", "7891000315507"),
        ("17891000315504", "17891000315504"),
        ("96385074", "0000096385074"),
        ("not one", "not one"),
    ],
)
def test_an_article_number_is_brought_to_thirteen_digits_where_it_can_be(given_ean: str, wanted: str) -> None:
    assert ean13(given_ean) == wanted


# --- answers ------------------------------------------------------------------------------------------------------


def test_a_listing_in_an_unknown_status_counts_as_not_for_sale(replayed: Mapping[str, Marketplace]) -> None:
    first = replayed["sync"].show("1001", None)
    known = replayed["sync"].show("1001", "SYN-00000002")
    assert first is not None
    assert known is not None
    assert (first.remote_id, first.active, first.price) == ("SYN-00000001", False, Price(9990, 9990))
    assert (known.remote_id, known.active) == ("SYN-00000002", True)


def test_records_of_a_lot_end_as_taken_refused_or_to_be_sent_again(replayed: Mapping[str, Marketplace]) -> None:
    result = replayed["lot"].lot_result("FEED-1")
    assert result is not None
    assert {line: (one.taken, one.retry) for line, one in result.by_line.items()} == {
        0: (True, False),
        1: (False, False),
        2: (False, True),
        3: (False, True),
    }
    problems = result.by_line[1].problems
    assert [problem.field for problem in problems] == ["title", "ean"]
    assert all(problem.code == "E3" and len(problem.value) <= 120 for problem in problems)
    assert result.by_line[3].problems


def test_a_lot_in_a_new_phase_is_not_done_and_one_forgotten_is_sent_again(
    replayed: Mapping[str, Marketplace],
) -> None:
    assert replayed["lot"].lot_result("FEED-2") is None
    forgotten = replayed["lot"].lot_result("FEED-3")
    assert forgotten is not None
    assert (forgotten.by_line, forgotten.retry, len(forgotten.fatal)) == ({}, True, 1)


def test_a_refusal_that_is_not_the_marketplaces_own_still_says_something(
    replayed: Mapping[str, Marketplace],
) -> None:
    record = Record("9", Action.OFFER, "r", "SYN-9", price=Price(100, 100))
    with pytest.raises(Refusal) as refused:
        replayed["sync"].write(record)
    assert [(problem.code, problem.value) for problem in refused.value.problems] == [("E3", "HTTP 400")]


def test_a_price_that_was_taken_but_ignored_is_a_refusal(replayed: Mapping[str, Marketplace]) -> None:
    record = Record("8", Action.OFFER, "r", "SYN-8", price=Price(100, 100))
    with pytest.raises(Refusal, match="automated"):
        replayed["sync"].write(record)


def test_a_creation_answered_in_another_shape_may_have_happened(replayed: Mapping[str, Marketplace]) -> None:
    listing = rendered(PRODUCT, "MC-110", ListingRules()).listing
    with pytest.raises(UnknownOutcome):
        replayed["sync"].write(Record("1001", Action.REGISTER, "r", listing=listing))


def test_a_check_tells_everything_that_is_wrong_with_the_account(replayed: Mapping[str, Marketplace]) -> None:
    problems = replayed["sync"].check()
    assert {(problem.field, problem.value) for problem in problems} == {
        ("account profile", "lot"),
        ("account currency", "EUR"),
        ("category tree", "2"),
    }


def test_a_check_of_an_address_where_nobody_answers_names_it(openings: Mapping[str, Opening]) -> None:
    rig = openings["sandbox-sync"]()
    rig.control.close_account(rig.name)  # type: ignore[attr-defined]  # a sandbox rig
    assert [problem.field for problem in rig.connect().check()] == ["marketplace_url"]
