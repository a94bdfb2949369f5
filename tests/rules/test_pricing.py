"""Prices are exact to the cent, keep their order and their bounds, whatever the rules are."""

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hub.model import Price
from hub.parsing import DECIMAL_PLACES
from hub.rules import LARGEST_CENTS, LARGEST_GROSS_UP, LARGEST_PERCENTAGE, PricingRules
from hub.rules.pricing import base_price, decimal_text, price_of, rounded_cents, shown_cents, with_commission
from tests.fakes import an_offer

CENTS = st.integers(1, 100_000_000)
PERCENT = st.decimals(0, 300, places=2)
RULES = st.builds(
    PricingRules,
    markup=PERCENT,
    commission=st.decimals(0, 99, places=2),
    commission_method=st.sampled_from(["add", "gross_up"]),
    conversion=st.decimals("0.01", 100, places=4),
    rounding=st.sampled_from(["none", "nearest", ".90", ".99"]),
    direction=st.sampled_from(["nearest", "up", "down"]),
    minimum=st.none() | st.integers(1, 10_000),
    maximum=st.none() | st.integers(10_000, 100_000_000),
)

LARGEST_OF_VTEX = 2**53 - 1
WILDEST = st.integers(-LARGEST_OF_VTEX, LARGEST_OF_VTEX)


@st.composite
def wild_rules(draw: st.DrawFn) -> PricingRules:
    """Anything that a store may choose, up to its bounds."""
    method = draw(st.sampled_from(["add", "gross_up"]))
    most = LARGEST_GROSS_UP if method == "gross_up" else LARGEST_PERCENTAGE
    places = draw(st.integers(0, DECIMAL_PLACES))
    bound = st.integers(0, LARGEST_CENTS)
    minimum = draw(st.none() | bound)
    return PricingRules(
        markup=draw(st.decimals(0, LARGEST_PERCENTAGE, places=places)),
        commission=draw(st.decimals(0, most, places=places)),
        commission_method=method,
        conversion=draw(st.decimals("0.000001", 1_000_000, places=max(6, places))),
        rounding=draw(st.sampled_from(["none", "nearest", ".90", ".99"])),
        direction=draw(st.sampled_from(["nearest", "up", "down"])),
        minimum=minimum,
        maximum=draw(st.none() | st.integers(minimum or 0, LARGEST_CENTS)),
        promotions=draw(st.booleans()),
        unit=draw(st.sampled_from(["item", "unit"])),
    )


@pytest.mark.scenario("PRC-02", rule=True)
def test_the_sellers_answer_gives_price_and_list_price():
    assert price_of(an_offer(price=8990, list_price=12990), PricingRules()) == Price(8990, 12990)


@pytest.mark.scenario("PRC-03", rule=True)
def test_the_exact_figure_of_checkout_goes_first():
    item = an_offer(price=9990, list_price=12990, selling_price=9980, definition_price=9975)
    assert price_of(item, PricingRules()) == Price(9975, 12990)
    assert price_of(an_offer(selling_price=9980), PricingRules()) == Price(9980, 12990)


@pytest.mark.scenario("PRC-04", rule=True)
@pytest.mark.parametrize(("unit", "sale", "listed"), [("unit", 9999, 12000), ("item", 2_999_700, 3_600_000)])
@pytest.mark.parametrize("answer", ["price", "selling_price", "definition_price"])
def test_a_price_is_for_what_the_store_says_whichever_answer_vtex_gives(unit, sale, listed, answer):
    figures = {"price": 9999} if answer == "price" else {"price": 9999, answer: 2_999_700}
    item = an_offer(list_price=12000, unit_multiplier="300", **figures)
    assert price_of(item, PricingRules(unit=unit)) == Price(sale, listed)


@pytest.mark.scenario("PRC-05", rule=True)
@pytest.mark.parametrize(
    ("cents", "text"), [(9990, "99.90"), (1, "0.01"), (0, "0.00"), (123_456_789_01, "123456789.01")]
)
def test_cents_become_decimal_text_exactly(cents, text):
    assert decimal_text(cents) == text


@given(cents=CENTS)
def test_decimal_text_reads_back_as_the_same_cents(cents):
    assert Decimal(decimal_text(cents)) * 100 == cents


@pytest.mark.parametrize("item", [None, an_offer(price=None), an_offer(price=0)])
def test_no_price_is_no_price(item):
    assert price_of(item, PricingRules(minimum=500)) is None


@pytest.mark.scenario("PRC-07", rule=True)
@pytest.mark.parametrize("listed", [None, 0, 5000])
def test_the_list_price_is_raised_to_the_sale_price(listed):
    assert price_of(an_offer(price=9990, list_price=listed), PricingRules()) == Price(9990, 9990)


def test_commission_and_markup_add_up_plainly_or_are_grossed_up():
    added = PricingRules(markup=Decimal(20), commission=Decimal(15))
    assert shown_cents(10_000, added, limited=True) == 13_500
    grossed = PricingRules(markup=Decimal(20), commission=Decimal(20), commission_method="gross_up")
    assert shown_cents(10_000, grossed, limited=True) == 15_000


@pytest.mark.scenario("PRC-08", rule=True)
@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (10_000, 54_990),  # 100.00 · 1.1 · 5 = 550.00 ⇒ 549.90
        (1_000, 10_000),  # 54.90 is below the minimum
        (50_000, 200_000),  # 2749.90 is above the maximum
    ],
)
def test_the_rules_are_applied_in_their_order(base, expected):
    rules = PricingRules(markup=Decimal(10), conversion=Decimal(5), rounding=".90", minimum=10_000, maximum=200_000)
    assert shown_cents(base, rules, limited=True) == expected


@pytest.mark.parametrize(
    ("rounding", "direction", "cents", "expected"),
    [
        (".90", "nearest", 10_000, 9_990),
        (".90", "nearest", 10_041, 10_090),
        (".90", "nearest", 10_040, 10_090),
        (".90", "up", 9_991, 10_090),
        (".90", "up", 9_990, 9_990),
        (".90", "down", 10_089, 9_990),
        (".90", "down", 10, 90),
        (".99", "nearest", 10_000, 9_999),
        ("nearest", "nearest", 10_050, 10_100),
        ("nearest", "down", 40, 100),
        ("none", "nearest", 12_345, 12_345),
    ],
)
def test_rounding_ends_where_it_says(rounding, direction, cents, expected):
    assert rounded_cents(Decimal(cents), PricingRules(rounding=rounding, direction=direction)) == expected


def test_without_promotions_the_list_price_is_asked():
    assert base_price(an_offer(), PricingRules(promotions=False)) == Price(12990, 12990)


@given(rules=RULES, one=CENTS, other=CENTS)
def test_a_higher_base_never_gives_a_lower_price(rules, one, other):
    low, high = sorted((one, other))
    assert shown_cents(low, rules, limited=True) <= shown_cents(high, rules, limited=True)


@given(rules=RULES, price=CENTS, listed=st.none() | CENTS)
def test_a_price_is_whole_cents_within_its_bounds_and_never_above_the_list_price(rules, price, listed):
    shown = price_of(an_offer(price=price, list_price=listed), rules)
    assert shown is not None
    assert type(shown.sale) is int
    assert 0 < shown.sale <= shown.list
    if rules.minimum is not None:
        assert shown.sale >= rules.minimum
    if rules.maximum is not None:
        assert shown.sale <= rules.maximum


@given(cents=CENTS)
def test_without_rules_the_price_is_vtexs_to_the_cent(cents):
    assert price_of(an_offer(price=cents, list_price=None), PricingRules()) == Price(cents, cents)


@given(amount=CENTS, markup=PERCENT, commission=st.decimals(0, 99, places=2))
def test_what_is_left_after_a_grossed_up_commission_is_the_marked_up_price(amount, markup, commission):
    rules = PricingRules(markup=markup, commission=commission, commission_method="gross_up")
    shown = with_commission(Decimal(amount), rules)
    left = shown * (100 - commission) / 100
    assert abs(left - Decimal(amount) * (100 + markup) / 100) < Decimal("0.000001")


@given(rules=wild_rules(), price=WILDEST, listed=st.none() | WILDEST)
@example(
    rules=PricingRules(
        markup=Decimal(LARGEST_PERCENTAGE),
        commission=Decimal(LARGEST_GROSS_UP),
        commission_method="gross_up",
        conversion=Decimal(1_000_000),
        rounding=".99",
    ),
    price=LARGEST_OF_VTEX,
    listed=LARGEST_OF_VTEX,
)
def test_whatever_a_store_may_choose_is_computed_and_never_negative(rules, price, listed):
    shown = price_of(an_offer(price=price, list_price=listed), rules)
    assert (shown is None) == (price <= 0)
    if shown is not None:
        assert 0 <= shown.sale <= shown.list
    assert min(shown_cents(price, rules, limited=limited) for limited in (True, False)) >= 0
