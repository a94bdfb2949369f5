"""Every check tells everything it finds, in the seller's words."""

from dataclasses import replace
from itertools import product as combinations

import pytest

from hub.model import Listing
from hub.rules import ListingRules, PricingRules
from hub.rules.validation import (
    Demands,
    availability,
    defaults_problems,
    listing_problems,
    standing,
    valid_ean,
    with_default,
)
from tests.fakes import CHANNEL, a_product, an_offer

LISTING = Listing("Mug", "A mug", "MC", "Acme", "7891000100103", ("https://images.example/1.jpg",))


@pytest.mark.parametrize(("active", "product_active", "assigned"), [*combinations([True, False], repeat=3)])
def test_a_sku_may_be_sold_only_when_all_of_it_is_active_in_the_channel(active, product_active, assigned):
    product = a_product(active=active, product_active=product_active, channels=(1, CHANNEL) if assigned else (1,))
    expected = ["A2"] * (not active) + ["A2"] * (not product_active) + ["A1"] * (not assigned)
    assert [problem.code for problem in standing(product, "13", CHANNEL)] == expected


def test_a_sku_that_vtex_does_not_know_counts_as_inactive():
    assert [problem.code for problem in standing(None, "13", CHANNEL)] == ["A2"]


def test_what_is_absent_or_has_no_price_is_not_available():
    rules = PricingRules()
    assert availability(an_offer(), "13", CHANNEL, rules) == ()
    for item in (None, an_offer(price=None), an_offer(price=0)):
        assert [problem.code for problem in availability(item, "13", CHANNEL, rules)] == ["A1"]


def test_all_broken_demands_are_told_at_once():
    demands = Demands(title_max=2, description_max=3, images_min=2, ean=True, brand=True, attributes=("color", "size"))
    listing = replace(LISTING, ean="", brand="", attributes={"size": "M"})
    fields = [problem.field for problem in listing_problems(listing, demands)]
    assert fields == ["title", "description", "images", "EAN", "brand", "color"]
    assert listing_problems(LISTING, Demands(title_max=3, images_max=1, ean=True, brand=True)) == ()


def test_long_values_are_shown_shortened_and_the_fix_says_by_how_much():
    (problem,) = listing_problems(replace(LISTING, title="x" * 500), Demands(title_max=200))
    assert len(problem.value) < 130
    assert problem.fix == "shorten it from 500 to at most 200 characters"


@pytest.mark.parametrize(
    ("digits", "valid"),
    [
        ("7891000100103", True),
        ("7891000100104", False),
        ("96385074", True),
        ("012345678905", True),
        ("", False),
        ("x", False),
    ],
)
def test_an_ean_needs_its_check_digit(digits, valid):
    assert valid_ean(digits) is valid


def test_a_default_is_used_only_for_what_is_empty_and_is_told():
    rules, used = ListingRules({"brand": "No name"}), {}
    assert with_default("brand", "Acme", rules, used) == "Acme"
    assert with_default("size", "", rules, used) == ""
    assert used == {}
    assert with_default("brand", " ", rules, used) == "No name"
    assert [(problem.code, problem.field, problem.value) for problem in defaults_problems(used)] == [
        ("A3", "brand", "No name")
    ]
