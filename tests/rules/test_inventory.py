"""The marketplace never gets more than VTEX has, nor less than nothing."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.rules import InventoryRules
from hub.rules.inventory import balance, quantity_of
from tests.fakes import an_offer

PIECES = st.integers(0, 2_000_000_000)
RULES = st.builds(
    InventoryRules,
    percentage=st.decimals(0, 100, places=2),
    safety=st.integers(0, 100),
    cap=st.none() | st.integers(0, 10_000),
    minimum=st.integers(0, 50),
)
MOST = 999_999


def pieces(stock, rules, most=MOST):
    return quantity_of(an_offer(stock=stock), rules, most).pieces


@pytest.mark.scenario("STK-07", rule=True)
@pytest.mark.parametrize(("stock", "expected", "warned"), [(20, 5, False), (11, 0, True), (7, 0, True)])
def test_allocation_comes_before_safety_stock_and_the_minimum_warns(stock, expected, warned):
    rules = InventoryRules(percentage=Decimal(50), safety=5, minimum=3)
    quantity = quantity_of(an_offer(stock=stock), rules, MOST)
    assert quantity.pieces == expected
    assert [problem.code for problem in quantity.warnings] == (["Z"] if warned else [])


@pytest.mark.scenario("STK-06", rule=True)
def test_unlimited_stock_is_capped():
    assert pieces(1_000_000_000, InventoryRules(), most=500) == 500
    assert pieces(1_000_000_000, InventoryRules(cap=20), most=500) == 20


@pytest.mark.parametrize(
    "item", [None, an_offer(stock=None), an_offer(stock=0), an_offer(stock=-4), an_offer(stock=9, quantity=0)]
)
def test_what_cannot_be_delivered_counts_as_nothing(item):
    assert balance(item) == 0
    assert quantity_of(item, InventoryRules(), MOST).pieces == 0


def test_nothing_in_stock_is_no_warning_without_a_minimum():
    assert quantity_of(None, InventoryRules(), MOST).warnings == ()


@given(rules=RULES, stock=PIECES, most=st.integers(0, 1_000_000))
def test_a_quantity_is_never_negative_nor_above_what_there_is_and_fits(rules, stock, most):
    shown = pieces(stock, rules, most)
    assert 0 <= shown <= min(stock, most)
    assert rules.cap is None or shown <= rules.cap
    assert shown == 0 or shown > rules.minimum


@given(rules=RULES, one=PIECES, other=PIECES)
def test_more_in_vtex_never_shows_less(rules, one, other):
    low, high = sorted((one, other))
    assert pieces(low, rules) <= pieces(high, rules)


@given(stock=st.integers(0, MOST))
def test_without_rules_the_quantity_is_vtexs(stock):
    assert pieces(stock, InventoryRules()) == stock
