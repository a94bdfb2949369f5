"""What the catalogue context decides, branch by branch (vtex.md 7.1, 7.3–7.5)."""

from dataclasses import replace

import pytest

from hub.contexts.step import Send, listing_json, send_from_json, settled
from hub.errors import NotFound, Problem, Refusal, Unavailable
from hub.model import Action, BindingState, LotOutcome, Urgency, Written
from hub.outcome import Done, Parked, Refused, Unknown, Waiting
from hub.ports import Lots
from hub.rules import ListingRules, Rules
from hub.rules.validation import Demands
from tests.fakes import CHANNEL, a_product, a_published_world, a_world

ASKED_BEFORE = {(context, "13"): ("s", "parked") for context in ("price", "stock")}
KINDS = [{}, {"create": "create"}, {"offer": "combined"}, {"offer": "combined", "replaces": True}]


def only(things):
    (thing,) = things
    return thing


@pytest.mark.parametrize("manifest", KINDS)
def test_a_new_sku_is_registered_with_its_pair_and_asks_for_price_and_stock(manifest):
    world = a_world(**manifest)
    world.states.rows |= ASKED_BEFORE
    ending = only(world.attempt(world.row("catalog")))
    assert only(world.marketplace.written).action is Action.REGISTER
    assert ending.code == "S1"
    assert ending.binding.remote_id == "MK-13"
    assert ending.binding.state is BindingState.PUBLISHED
    assert ending.definite
    asked = {(ask.context, ask.key, ask.source, ask.urgency) for ask in ending.outcome.then}
    assert asked == {(context, "13", "follow", Urgency.FOLLOW) for context in ("price", "stock")}
    story = only(ending.stories)
    assert (story.operation, story.direction, story.code) == ("Offer creation", "VTEX to Marketplace", "S1")
    for name, value in {"sku": "13", "name": "Mug 13", "remote": "MK-13"}.items():
        assert story.params[name] == value
    assert story.params["link"].endswith("MK-13")


def test_the_gate_simulates_one_unit_without_a_postal_code():
    world = a_world()
    world.attempt(world.row("catalog"))
    assert world.vtex.calls == ["product 13", "simulate 13x1 None"]


def test_a_whole_replacement_registers_with_price_and_stock():
    world = a_world(offer="combined", replaces=True)
    world.attempt(world.row("catalog"))
    record = only(world.marketplace.written)
    assert (record.price.sale, record.price.list, record.stock) == (9990, 12990, 37)
    assert world.states.known["stock", "13"] == {"quantity": 37}


@pytest.mark.parametrize("asked", [{}, {("stock", "13"): ("s", "parked")}])
def test_a_whole_replacement_asks_again_only_for_what_somebody_asked_for_before(asked):
    world = a_world(offer="combined", replaces=True)
    world.states.rows |= asked
    ending = only(world.attempt(world.row("catalog")))
    assert [ask.context for ask in ending.outcome.then] == [context for context, _ in asked]


def test_a_whole_replacement_that_goes_in_a_lot_asks_for_price_and_stock_whatever_was_asked_before():
    """Its lane is free until the lot is answered: who asks meanwhile parks, and has to be told of the publication."""
    world = a_world(offer="combined", replaces=True, lots=Lots(100, 10_000, 5.0, 1.0, 60.0))
    send = only(world.decide(world.row("catalog")))
    assert [ask.context for ask in send.then] == ["price", "stock"]


def test_a_listing_that_exists_already_is_adopted_and_updated():
    world = a_published_world(create="create")
    del world.states.bindings["13"]
    world.states.known.clear()
    world.vtex.products["13"] = a_product(description="A better mug")
    ending = only(world.attempt(world.row("catalog")))
    assert only(world.marketplace.written).action is Action.UPDATE
    assert ending.binding.remote_id == "MK-13"
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock"}


def test_a_listing_that_shows_the_same_already_is_adopted_without_a_write():
    world = a_published_world(create="create")
    del world.states.bindings["13"]
    world.states.known.clear()
    ending = only(world.attempt(world.row("catalog")))
    assert world.marketplace.written == []
    assert (ending.code, ending.binding.remote_id) == ("S1", "MK-13")


def test_an_unchanged_listing_costs_no_call_and_says_nothing():
    world = a_published_world()
    ending = only(world.attempt(world.row("catalog")))
    assert ending.outcome == Done()
    assert ending.stories == ()
    assert world.marketplace.written == []


@pytest.mark.parametrize("manifest", KINDS)
def test_a_notification_that_only_the_catalogue_hears_reaches_price_and_stock_where_they_differ(manifest):
    world = a_published_world(**manifest)
    heard = world.row("catalog", heard=True)
    assert only(world.attempt(heard)).outcome.then == ()
    world.vtex.offers["13"] = replace(world.vtex.offers["13"], stock=5)
    ending = only(world.attempt(heard))
    assert [ask.context for ask in ending.outcome.then] == ["stock"]
    assert ending.stories == (), "it says that there was nothing to send"
    assert only(world.attempt(world.row("catalog"))).outcome == Done(), "our own sweeps ask price and stock themselves"


@pytest.mark.parametrize("changed", [False, True])
def test_what_the_catalogue_alone_heard_of_a_listing_is_looked_at_again(changed):
    world = a_published_world()
    world.rules = Rules(look_again=(60.0, 300.0))
    if changed:
        world.vtex.products["13"] = a_product(description="A better mug")
    first = only(world.attempt(world.row("catalog", heard=True)))
    assert first.outcome.look_again == 60.0
    later = only(world.attempt(world.row("catalog", heard=True, looks=1)))
    assert (later.outcome.look_again, later.stories) == (300.0, ()), "that there was nothing to send is told once"
    assert only(world.attempt(world.row("catalog", heard=True, looks=2))).outcome == Done()


@pytest.mark.parametrize("manifest", KINDS)
def test_a_price_that_was_refused_while_there_was_none_is_asked_though_it_is_the_one_that_is_shown(manifest):
    world = a_published_world(**manifest)
    world.states.rows["price", "13"] = ("i", "refused")
    ending = only(world.attempt(world.row("catalog", heard=True)))
    assert [(ask.context, ask.heard) for ask in ending.outcome.then] == [("price", True)]
    assert ending.stories == ()


@pytest.mark.parametrize("manifest", KINDS)
def test_a_price_that_was_refused_is_asked_beside_a_changed_registration_too(manifest):
    world = a_published_world(**manifest)
    world.states.rows["price", "13"] = ("i", "refused")
    world.vtex.products["13"] = a_product(description="A better mug")
    ending = only(world.attempt(world.row("catalog", heard=True)))
    assert (ending.code, [ask.context for ask in ending.outcome.then]) == ("S1", ["price"])


NOT_NOW = {
    "not offered": lambda vtex: vtex.offers.clear(),
    "lacks its name": lambda vtex: vtex.products.update({"13": a_product(name="")}),
    "inactive": lambda vtex: vtex.products.update({"13": a_product(active=False)}),
    "unknown": lambda vtex: vtex.products.clear(),
}


@pytest.mark.parametrize("why", NOT_NOW)
@pytest.mark.parametrize("published", [True, False])
def test_what_vtex_announced_and_cannot_be_sold_is_looked_at_again(why, published):
    world = a_published_world() if published else a_world()
    world.rules = Rules(look_again=(60.0, 300.0))
    NOT_NOW[why](world.vtex)
    ending = only(world.attempt(world.row("catalog", heard=True)))
    assert ending.outcome.look_again == 60.0
    assert {record.action for record in world.marketplace.written} <= {Action.DEACTIVATE}


@pytest.mark.parametrize("why", NOT_NOW)
def test_what_nobody_announced_and_was_never_listed_is_not_looked_at_again(why):
    world = a_world()
    NOT_NOW[why](world.vtex)
    assert only(world.attempt(world.row("catalog"))).outcome.look_again is None
    assert world.marketplace.written == []


def test_price_and_stock_of_what_vtex_announced_are_asked_as_announced():
    for heard in (True, False):
        world = a_world()
        then = only(world.attempt(world.row("catalog", heard=heard))).outcome.then
        assert [(ask.context, ask.heard) for ask in then] == [("price", heard), ("stock", heard)]


@pytest.mark.parametrize("manifest", [{}, {"offer": "combined", "replaces": True}])
def test_a_new_listing_of_what_vtex_announced_is_looked_at_again(manifest):
    for heard, then in ((True, 60.0), (False, None)):
        world = a_world(**manifest)
        world.rules = Rules(look_again=(60.0, 300.0))
        assert only(world.attempt(world.row("catalog", heard=heard))).outcome.look_again == then


@pytest.mark.parametrize("manifest", KINDS)
def test_what_was_announced_with_a_refused_update_reaches_price_and_stock_all_the_same(manifest):
    world = a_published_world(**manifest)
    world.rules = Rules(look_again=(60.0, 300.0))
    world.vtex.products["13"] = a_product(description="Too good a mug")
    world.vtex.offers["13"] = replace(world.vtex.offers["13"], stock=5)
    world.marketplace.answers = [Refusal([Problem("E3", "description", "Too good a mug", "be modest")])]
    first = only(world.attempt(world.row("catalog", heard=True))).outcome
    assert [ask.context for ask in first.then] == ["stock"]
    again = only(world.attempt(world.row("catalog", heard=True, status="refused", input_hash=first.input_hash))).outcome
    assert [ask.context for ask in again.then] == ["stock"]
    assert again.look_again == 60.0, "that it is still as it was refused may be stale"
    assert len(world.marketplace.written) == 1


def test_a_changed_description_is_sent_as_an_update():
    world = a_published_world()
    world.vtex.products["13"] = a_product(description="A better mug")
    ending = only(world.attempt(world.row("catalog")))
    record = only(world.marketplace.written)
    assert (record.action, record.remote_id, record.listing.description) == (Action.UPDATE, "MK-13", "A better mug")
    assert ending.outcome == Done(look_again=60.0)
    assert ending.stories[0].operation == "Catalog change"


BARRED = {
    "inactive": (a_product(active=False), "A2"),
    "in another channel": (a_product(channels=(9,)), "A1"),
    "of an inactive product": (a_product(product_active=False), "A2"),
    "unknown to VTEX": (None, "A2"),
}


def barred_world(world, why):
    product, code = BARRED[why]
    if product is None:
        del world.vtex.products["13"]
    else:
        world.vtex.products["13"] = product
    return code


@pytest.mark.parametrize("why", BARRED)
def test_a_sku_that_may_not_be_sold_is_only_logged_when_it_was_never_listed(why):
    world = a_world()
    code = barred_world(world, why)
    ending = only(world.attempt(world.row("catalog")))
    assert isinstance(ending.outcome, Refused)
    assert ending.code == code
    assert only(ending.stories).code == code
    assert world.marketplace.written == []
    again = only(world.attempt(world.row("catalog", status="refused", input_hash=ending.outcome.input_hash)))
    assert again.stories == ()
    assert again.problems == ending.problems


@pytest.mark.parametrize("why", [why for why in BARRED if why != "unknown to VTEX"])
@pytest.mark.parametrize("manifest", KINDS)
def test_a_listed_sku_that_may_not_be_sold_is_zeroed_and_blocked(why, manifest):
    world = a_published_world(**manifest)
    code = barred_world(world, why)
    ending = only(world.attempt(world.row("catalog")))
    record = only(world.marketplace.written)
    assert (record.action, record.stock, record.remote_id) == (Action.DEACTIVATE, 0, "MK-13")
    assert ending.code == code
    assert only(ending.stories).code == code
    assert ending.binding.state is BindingState.DEACTIVATED
    # A stock write may be under way in a lane of its own, so the zero is only sure where there is one lane for all.
    assert world.states.known["stock", "13"] == ({"quantity": 0} if manifest.get("replaces") else None)
    world.marketplace.written.clear()
    assert only(world.attempt(world.row("catalog"))).outcome == Done()
    assert world.marketplace.written == []


@pytest.mark.parametrize("manifest", KINDS)
def test_a_listed_sku_that_vtex_does_not_know_any_more_is_blocked_and_its_pair_goes_until_it_comes_back(manifest):
    world = a_published_world(**manifest)
    product = world.vtex.products.pop("13")
    ending = only(world.attempt(world.row("catalog")))
    record = only(world.marketplace.written)
    assert (record.action, record.stock, record.remote_id) == (Action.DEACTIVATE, 0, "MK-13")
    assert (ending.code, ending.binding.state) == ("A2", BindingState.DELETED)
    assert world.states.binding("13") is None
    world.marketplace.written.clear()
    assert isinstance(only(world.attempt(world.row("catalog"))).outcome, Refused)
    assert world.marketplace.written == []
    world.vtex.products["13"] = product
    world.attempt(world.row("catalog"))
    record = only(world.marketplace.written)
    assert (record.action, record.remote_id) == (Action.ACTIVATE, "MK-13"), "a second listing is made"


def test_without_deactivation_the_listing_is_deleted_and_pair_and_snapshot_go_after_the_answer():
    world = a_published_world(actions=frozenset(Action) - {Action.DEACTIVATE})
    barred_world(world, "inactive")
    send = only(world.decide(world.row("catalog")))
    assert isinstance(send, Send)
    assert world.states.bindings["13"].state is BindingState.PUBLISHED
    world.attempt(world.row("catalog"))
    assert only(world.marketplace.written).action is Action.DELETE
    assert world.states.bindings == {}
    assert world.states.known == {}


def test_a_listing_that_is_gone_already_counts_as_removed():
    world = a_published_world()
    barred_world(world, "inactive")
    world.marketplace.answers = [NotFound("MK-13")]
    world.attempt(world.row("catalog"))
    assert world.states.bindings == {}


def test_a_deactivated_sku_that_is_active_again_is_activated_and_price_and_stock_are_sent_again():
    world = a_published_world()
    barred_world(world, "inactive")
    world.attempt(world.row("catalog"))
    world.vtex.products["13"] = a_product()
    world.marketplace.written.clear()
    ending = only(world.attempt(world.row("catalog")))
    assert only(world.marketplace.written).action is Action.ACTIVATE
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock"}
    world.marketplace.written.clear()
    world.attempt(world.row("price"), world.row("stock"))
    assert {(record.price is None, record.stock) for record in world.marketplace.written} == {(False, None), (True, 37)}


def test_a_registration_that_changed_while_deactivated_follows_the_activation():
    world = a_published_world()
    barred_world(world, "inactive")
    world.attempt(world.row("catalog"))
    world.vtex.products["13"] = a_product(description="A better mug")
    ending = only(world.attempt(world.row("catalog")))
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock", "catalog"}
    world.attempt(world.row("catalog"))
    assert world.marketplace.written[-1].action is Action.UPDATE
    assert world.marketplace.listings["13"].listing.description == "A better mug"


@pytest.mark.scenario("NEW-05", rule=True)
def test_every_broken_rule_is_told_at_once_and_nothing_is_sent():
    world = a_world()
    world.marketplace.demands = Demands(title_max=10, ean=True, attributes=("color",))
    world.vtex.products["13"] = a_product(name="A mug that is far too long", ean="123")
    ending = only(world.attempt(world.row("catalog")))
    assert ending.code == "E1"
    assert [problem.field for problem in ending.problems] == ["title", "EAN", "color"]
    assert world.marketplace.written == []
    for word in ("title", "EAN", "color"):
        assert word in only(ending.stories).params["errors"]


def test_an_unmapped_category_parks_with_every_other_problem():
    world = a_world(mapped=False, offered=False)
    world.states.mapping_version = 41
    world.marketplace.demands = Demands(images_min=2)
    ending = only(world.attempt(world.row("catalog")))
    assert ending.outcome == Parked("mapping:10", 41)
    assert ending.code == "E4"
    assert [problem.code for problem in ending.problems] == ["E4", "E1", "A1"]
    params = only(ending.stories).params
    assert (params["sku"], params["name"], params["category"]) == ("13", "Mug 13", "Kitchen > Mugs")
    assert params["mapping"]


@pytest.mark.parametrize("offer", [None, {"price": None}, {"price": 0}])
def test_a_sku_without_an_offer_is_not_registered(offer):
    world = a_world(offered=offer is not None)
    if offer is not None:
        world.vtex.offers["13"] = replace(world.vtex.offers["13"], **offer)
    ending = only(world.attempt(world.row("catalog")))
    assert ending.code == "A1"
    assert isinstance(ending.outcome, Refused)
    assert ending.outcome.then == ()
    assert world.marketplace.written == []


def test_a_listed_sku_without_an_offer_keeps_its_registration_and_stock_is_asked_to_send_zero():
    world = a_published_world()
    world.vtex.offers.clear()
    ending = only(world.attempt(world.row("catalog")))
    assert [ask.context for ask in ending.outcome.then] == ["stock"]
    assert world.marketplace.written == []
    assert world.states.known["catalog", "13"]["state"] == "published"


def test_a_listed_sku_whose_category_lost_its_mapping_keeps_its_registration():
    world = a_published_world()
    world.states.mappings.clear()
    ending = only(world.attempt(world.row("catalog")))
    assert isinstance(ending.outcome, Parked)
    assert world.marketplace.written == []


def test_defaults_are_sent_and_told_before_the_success():
    world = a_world()
    world.rules = Rules(listing=ListingRules({"brand": "No name"}))
    world.vtex.products["13"] = a_product(brand="")
    ending = only(world.attempt(world.row("catalog")))
    assert [story.code for story in ending.stories] == ["A3", "S1"]
    assert ending.stories[0].params["defaults"] == "brand = No name"
    assert ending.code == "S1"
    assert only(world.marketplace.written).listing.brand == "No name"


def test_a_refusal_tells_every_problem_and_the_same_is_not_sent_again():
    world = a_world()
    problems = (Problem("E3", "color", "blue", "not allowed"), Problem("E3", "size", "", "is missing"))
    world.marketplace.answers = [Refusal(problems)]
    ending = only(world.attempt(world.row("catalog")))
    assert (ending.code, ending.problems) == ("E3", problems)
    assert "color" in ending.stories[0].params["errors"]
    assert "size" in ending.stories[0].params["errors"]
    again = only(world.attempt(world.row("catalog", status="refused", input_hash=ending.outcome.input_hash)))
    assert isinstance(again.outcome, Refused)
    assert again.stories == ()
    assert len(world.marketplace.written) == 1


@pytest.mark.parametrize("change", ["product", "mapping"])
def test_after_a_refusal_any_change_of_the_input_is_sent(change):
    world = a_world()
    world.marketplace.answers = [Refusal([Problem("E3", "color", "", "is missing")])]
    refused = only(world.attempt(world.row("catalog"))).outcome.input_hash
    if change == "product":
        world.vtex.products["13"] = a_product(description="Now in blue")
    else:
        world.states.mapping_version += 1
    assert only(world.attempt(world.row("catalog", status="refused", input_hash=refused))).code == "S1"


def test_a_refused_update_leaves_what_the_marketplace_showed():
    world = a_published_world()
    before = world.states.known["catalog", "13"]
    world.vtex.products["13"] = a_product(description="bad words")
    world.marketplace.answers = [Refusal([Problem("E3", "description", "", "bad words")])]
    ending = only(world.attempt(world.row("catalog")))
    assert ending.confirmed == {"catalog": before}


def begun(world, **row):
    """A row whose registration was begun and whose answer is lost."""
    send = only(world.decide(world.row("catalog")))
    return world.row(
        "catalog", status="unknown", reference=send.reference, intent=send.as_json(), confirmed=None, **row
    )


def test_a_registration_whose_answer_was_lost_is_found_and_adopted_without_a_second_create():
    world = a_world(create="create", visibility_delay=30.0)
    row = begun(world, intent_age=1.0)
    world.marketplace.write(only(world.decide(world.row("catalog"))).record)
    world.marketplace.written.clear()
    ending = only(world.attempt(row))
    assert (ending.code, ending.binding.remote_id, ending.definite) == ("S1", "MK-13", True)
    assert world.marketplace.written == []


def test_a_marketplace_that_cannot_show_a_listing_is_believed_to_show_what_was_begun():
    world = a_world(create="create")
    row = begun(world, intent_age=60.0)
    world.marketplace.write(only(world.decide(world.row("catalog"))).record)
    world.marketplace.listings["13"] = replace(world.marketplace.listings["13"], listing=None)
    world.marketplace.written.clear()
    assert only(world.attempt(row)).code == "S1"
    assert world.marketplace.written == []
    world.states.bindings.clear()
    world.vtex.products["13"] = a_product(description="A better mug")
    world.attempt(row)
    assert only(world.marketplace.written).action is Action.UPDATE


def test_absence_proves_nothing_until_the_visibility_delay_is_over():
    world = a_world(create="create", visibility_delay=30.0)
    row = begun(world, intent_age=29.0)
    assert isinstance(only(world.attempt(row)).outcome, Unknown)
    assert world.marketplace.written == []
    ending = only(world.attempt(replace(row, intent_age=31.0)))
    assert ending.code == "S1"
    assert only(world.marketplace.written).action is Action.REGISTER


def test_the_same_create_is_repeated_under_the_same_reference_and_another_one_under_its_own():
    world = a_world(create="create")
    row = begun(world, intent_age=60.0)
    assert only(world.decide(row)).reference == row.reference
    world.vtex.products["13"] = a_product(description="A better mug")
    assert only(world.decide(row)).reference != row.reference


def test_a_registration_in_doubt_is_read_back_before_a_removed_sku_is_given_up():
    world = a_world(create="create", visibility_delay=30.0)
    row = begun(world, intent_age=1.0)
    barred_world(world, "inactive")
    assert isinstance(only(world.attempt(row)).outcome, Unknown)
    ending = only(world.attempt(replace(row, intent_age=31.0)))
    assert (ending.code, ending.definite) == ("A2", True)


def test_a_deletion_whose_answer_was_lost_is_read_back_before_the_sku_is_updated():
    world = a_published_world(actions=frozenset(Action) - {Action.DEACTIVATE})
    barred_world(world, "inactive")
    row = begun(world, intent_age=60.0)
    world.marketplace.listings.clear()
    world.vtex.products["13"] = a_product()
    ending = only(world.attempt(row))
    assert (world.marketplace.written, ending.definite) == ([], True)
    assert world.states.bindings == {}
    assert [known for (_, sku), known in world.states.known.items() if sku == "13"] == [], "nobody has priced the next"
    assert [ask.context for ask in ending.outcome.then] == ["catalog"]
    world.attempt(world.row("catalog"))
    assert only(world.marketplace.written).action is Action.REGISTER


def test_a_deletion_whose_answer_was_lost_may_still_become_visible():
    world = a_published_world(actions=frozenset(Action) - {Action.DEACTIVATE}, visibility_delay=30.0)
    barred_world(world, "inactive")
    row = begun(world, intent_age=29.0)
    world.marketplace.listings.clear()
    world.vtex.products["13"] = a_product()
    assert isinstance(only(world.attempt(row)).outcome, Unknown)
    assert "13" in world.states.bindings


@pytest.mark.parametrize("holds_back", [False, True])
def test_what_was_blocked_and_unblocked_without_an_answer_has_price_and_stock_sent_again(holds_back):
    """The pair says on sale as before, and yet the blocking has left a zero."""
    world = a_published_world()
    barred_world(world, "inactive")
    row = begun(world, intent_age=60.0)
    world.vtex.products["13"] = a_product()
    world.marketplace.listings["13"] = replace(world.marketplace.listings["13"], stock=0)
    if holds_back:
        world.states.mappings.clear()
    if not holds_back:  # and then the answer to the activation is lost, too
        row = replace(row, intent=only(world.decide(row)).as_json())
    ending = only(world.attempt(row))
    registers = set() if holds_back else {"catalog"}  # an activation carries no registration
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock"} | registers
    assert (world.states.known["price", "13"], world.states.known["stock", "13"]) == (None, None)
    world.attempt(world.row("price"), world.row("stock"))
    assert world.marketplace.listings["13"].stock == 37


def test_what_was_blocked_without_an_answer_is_activated_although_it_is_shown_as_on_sale():
    """Who reads back may be shown the listing as it was before it was blocked."""
    world = a_published_world()
    barred_world(world, "inactive")
    row = begun(world, intent_age=60.0)
    world.vtex.products["13"] = a_product()
    assert world.marketplace.listings["13"].active
    for _ in range(2):  # the second time because the answer to the first activation is lost
        step = only(world.decide(row))
        assert step.record.action is Action.ACTIVATE
        row = replace(row, intent=step.as_json())
    only(world.attempt(row))
    world.attempt(world.row("catalog"))
    assert [record.action for record in world.marketplace.written] == [Action.ACTIVATE, Action.UPDATE]


def test_after_a_no_to_what_was_blocked_and_unblocked_price_and_stock_are_sent_all_the_same():
    world = a_published_world()
    barred_world(world, "inactive")
    row = begun(world, intent_age=60.0)
    world.vtex.products["13"] = a_product(name="New")
    world.marketplace.listings["13"] = replace(world.marketplace.listings["13"], stock=0)
    world.marketplace.answers = [Refusal([Problem("E3", "name", "New", "too new")])]
    ending = only(world.attempt(row))
    assert isinstance(ending.outcome, Refused)
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock"}
    world.attempt(world.row("price"), world.row("stock"))
    assert world.marketplace.listings["13"].stock == 37


@pytest.mark.parametrize("holds_back", [False, True])
def test_a_listing_that_a_block_without_an_answer_has_hidden_is_activated(holds_back):
    world = a_published_world()
    barred_world(world, "inactive")
    row = begun(world, intent_age=1.0)
    world.marketplace.write(only(world.decide(world.row("catalog"))).record)
    world.vtex.products["13"], mappings = a_product(), dict(world.states.mappings)
    hidden = world.marketplace.listings.pop("13")
    if holds_back:
        world.states.mappings.clear()
        world.attempt(row)
        world.states.mappings |= mappings
        world.marketplace.listings["13"] = hidden
        row = world.row("catalog", status="parked", confirmed=None)
    else:
        row = replace(row, intent_age=100.0)
    world.marketplace.written.clear()
    assert only(world.decide(row)).record.action is Action.ACTIVATE


def test_a_listing_that_is_hidden_may_still_become_visible_before_the_sku_is_held_back():
    world = a_published_world(visibility_delay=30.0)
    barred_world(world, "inactive")
    row = begun(world, intent_age=29.0)
    world.vtex.products["13"] = a_product()
    world.marketplace.listings.pop("13")
    world.states.mappings.clear()
    assert isinstance(only(world.attempt(row)).outcome, Unknown)
    assert world.states.bindings["13"].state is BindingState.PUBLISHED
    ending = only(world.attempt(replace(row, intent_age=31.0)))
    assert (ending.outcome.on, ending.binding.state) == ("mapping:10", BindingState.DEACTIVATED)


def deactivated(**manifest):
    """A SKU that was withdrawn, is sold again, and whose activation was begun: the row, its answer is lost."""
    world = a_published_world(**manifest)
    barred_world(world, "inactive")
    world.attempt(world.row("catalog"))
    world.vtex.products["13"] = a_product()
    world.marketplace.written.clear()
    return world


def test_an_activation_in_doubt_is_read_back_before_the_sku_is_held_back():
    world = deactivated()
    row = begun(world, intent_age=60.0)
    world.marketplace.write(only(world.decide(world.row("catalog"))).record)  # done, and nobody was told
    world.states.mappings.clear()
    ending = only(world.attempt(row))
    assert ending.outcome.on == "mapping:10"
    assert ending.definite
    assert ending.binding.state is BindingState.PUBLISHED
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock"}, "what buyers see has to be right"


def test_an_activation_that_was_not_done_is_known_as_such_before_the_sku_is_held_back():
    world = deactivated(visibility_delay=30.0)
    row = begun(world, intent_age=29.0)
    world.states.mappings.clear()
    assert isinstance(only(world.attempt(row)).outcome, Unknown)
    ending = only(world.attempt(replace(row, intent_age=31.0)))
    assert (ending.outcome.on, ending.definite, ending.binding) == ("mapping:10", True, None)


def test_an_activation_that_was_done_is_not_repeated_and_price_and_stock_are_sent():
    world = deactivated()
    row = begun(world, intent_age=60.0)
    world.marketplace.write(only(world.decide(world.row("catalog"))).record)
    world.marketplace.written.clear()
    ending = only(world.attempt(row))
    assert only(world.marketplace.written).action is Action.UPDATE
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock"}


def test_a_listing_that_cannot_be_seen_for_now_keeps_its_pair():
    world = deactivated()
    row = begun(world, intent_age=60.0)
    world.marketplace.listings.clear()
    world.states.mappings.clear()
    ending = only(world.attempt(row))
    assert (ending.definite, ending.binding) == (False, None)
    assert "13" in world.states.bindings


def test_an_update_in_doubt_is_sent_again():
    world = a_published_world()
    world.vtex.products["13"] = a_product(description="A better mug")
    row = begun(world, intent_age=1.0)
    world.vtex.products["13"] = a_product()
    assert only(world.attempt(row)).code == "S1"
    assert only(world.marketplace.written).listing.description == "A mug"


def test_a_listing_that_cannot_be_found_for_an_update_is_tried_again_and_not_listed_twice():
    world = a_published_world()
    world.vtex.products["13"] = a_product(description="A better mug")
    world.marketplace.answers = [NotFound("MK-13")]
    with pytest.raises(Unavailable):
        world.attempt(world.row("catalog"))
    assert "13" in world.states.bindings


@pytest.mark.parametrize("good", [True, False])
def test_the_answer_of_a_lot_ends_its_row_without_asking_anybody(good):
    world = a_world()
    send = only(world.decide(world.row("catalog")))
    world.vtex.calls.clear()
    problems = () if good else (Problem("E3", "color", "", "is missing"),)
    resolved = LotOutcome(good, Written("MK-99") if good else None, problems, send.as_json())
    ending = only(world.attempt(world.row("catalog", status="waiting", ticket="lot:4", resolved=resolved)))
    assert world.vtex.calls == []
    assert world.marketplace.written == []
    if good:
        assert (ending.code, ending.binding.remote_id) == ("S1", "MK-99")
        assert {ask.context for ask in ending.outcome.then} == {"price", "stock"}
    else:
        assert (ending.code, ending.problems) == ("E3", problems)
        assert ending.outcome.input_hash


def test_a_removal_that_a_lot_refuses_because_there_is_no_such_listing_has_removed_it():
    world = a_published_world(lots=Lots(100, 10_000, 5.0, 1.0, 60.0), actions=frozenset({Action.DELETE}))
    world.vtex.products["13"] = a_product(active=False)
    send = only(world.decide(world.row("catalog")))
    nothing = Problem("E3", "sku", "13", "there is no such listing")
    for missing, left in ((False, True), (True, False)):
        resolved = LotOutcome(taken=False, problems=(nothing,), record=send.as_json(), missing=missing)
        world.attempt(world.row("catalog", status="waiting", ticket="lot:4", resolved=resolved))
        assert ("13" in world.states.bindings) is left


def test_while_its_lot_is_not_answered_nothing_else_is_sent():
    world = a_world(lots=Lots(100, 10_000, 5.0, 1.0, 60.0))
    ending = only(world.attempt(world.row("catalog", status="waiting", ticket="lot:4")))
    assert ending.outcome == Waiting("lot:4", 60.0)
    assert world.vtex.calls == []


def test_a_step_survives_json():
    world = a_world(offer="combined", replaces=True)
    world.rules = Rules(listing=ListingRules({"brand": "No name"}))
    world.vtex.products["13"] = a_product(brand="")
    send = only(world.decide(world.row("catalog", heard=True)))
    assert send_from_json(send.as_json()) == send
    resolved = LotOutcome(True, Written("MK-1"), (), send.as_json())
    assert [story.code for story in only(settled(resolved)).stories] == ["A3", "S1"]


def test_a_whole_replacement_whose_snapshot_was_in_doubt_asks_those_who_may_wait_for_it():
    world = a_published_world(offer="combined", replaces=True)
    world.states.rows |= ASKED_BEFORE
    ending = only(world.attempt(world.row("catalog", confirmed=None)))
    assert {ask.context for ask in ending.outcome.then} == {"price", "stock"}


def test_the_mapping_link_of_the_store_is_what_the_seller_is_shown():
    world = a_world(mapped=False)
    world.rules = Rules(mapping_link="https://acme.myvtex.com/admin/mkp-category-mapper/9")
    assert only(only(world.attempt(world.row("catalog"))).stories).params["mapping"].endswith("/9")


def test_what_is_confirmed_is_the_listing_and_its_state():
    world = a_published_world()
    listing = world.marketplace.listings["13"].listing
    assert world.states.known["catalog", "13"] == {"listing": listing_json(listing), "state": "published"}


def test_the_channel_of_the_store_decides():
    world = a_world()
    world.vtex.products["13"] = a_product(channels=(CHANNEL + 1, CHANNEL))
    assert only(world.attempt(world.row("catalog"))).code == "S1"
