"""What price and stock decide, apart and together (vtex.md 6, 7.6, 7.7)."""

from dataclasses import replace

import pytest

from hub.contexts.step import MOST_LOOKS, Send
from hub.errors import NotFound, Problem, Refusal, Unavailable
from hub.model import Action, BindingState, LotOutcome, Price, Written
from hub.outcome import Done, Parked, Refused, Waiting
from hub.rules import InventoryRules, PricingRules, Rules
from tests.fakes import FakeVtex, a_product, a_published_world, a_world, an_offer

COMBINED = {"offer": "combined"}
REPLACING = {"offer": "combined", "replaces": True}
KINDS = [{}, COMBINED, REPLACING]


def only(things):
    (thing,) = things
    return thing


def by_context(endings):
    assert len({ending.context for ending in endings}) == len(endings)
    return {ending.context: ending for ending in endings}


@pytest.mark.parametrize("manifest", KINDS)
def test_a_changed_price_and_stock_reach_the_marketplace(manifest):
    world = a_published_world(**manifest)
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    endings = by_context(world.attempt(world.row("price"), world.row("stock")))
    shown = world.marketplace.listings["13"]
    assert (shown.price, shown.stock) == (Price(8990, 12990), 5)
    assert {ending.code for ending in endings.values()} == {"S1"}
    assert all(ending.definite for ending in endings.values())
    assert endings["price"].stories[0].operation == "Price update"
    assert endings["stock"].stories[0].operation == "Inventory update"
    assert world.states.known["price", "13"] == {"sale": 8990, "list": 12990}
    assert world.states.known["stock", "13"] == {"quantity": 5}


def test_both_need_one_simulation_of_one_unit_without_a_postal_code():
    world = a_published_world()
    world.attempt(world.row("price"), world.row("stock"))
    assert world.vtex.calls == ["simulate 13x1 None"]


def test_separate_marketplaces_get_one_record_each_and_others_one_for_both():
    for manifest, expected in (({}, 2), (COMBINED, 1), (REPLACING, 1)):
        world = a_published_world(**manifest)
        world.vtex.offers["13"] = an_offer(price=8990, stock=5)
        world.attempt(world.row("price"), world.row("stock"))
        assert len(world.marketplace.written) == expected
        assert all(record.action is Action.OFFER for record in world.marketplace.written)
        assert all(
            (record.listing is not None) == bool(manifest.get("replaces")) for record in world.marketplace.written
        )


@pytest.mark.parametrize("manifest", KINDS)
def test_unchanged_values_are_not_sent_and_say_nothing(manifest):
    world = a_published_world(**manifest)
    endings = world.attempt(world.row("price"), world.row("stock"))
    assert world.marketplace.written == []
    assert [ending.outcome for ending in endings] == [Done(), Done()]
    assert [ending.stories for ending in endings] == [(), ()]


@pytest.mark.parametrize("context", ["price", "stock"])
def test_an_announced_change_that_does_not_show_is_looked_at_again_until_the_looks_are_used_up(context):
    world = a_published_world()
    world.rules = Rules(look_again=(60.0, 300.0))
    looks = [
        only(world.attempt(world.row(context, heard=heard, looks=turn))).outcome.look_again
        for heard, turn in ((False, 0), (True, 0), (True, 1), (True, 2))
    ]
    assert looks == [None, 60.0, 300.0, None]


def test_the_second_look_sends_what_the_first_did_not_see():
    world = a_published_world()
    assert only(world.attempt(world.row("stock", heard=True))).outcome.look_again == 60.0
    world.vtex.offers["13"] = an_offer(stock=3)
    ending = only(world.attempt(world.row("stock", heard=True, looks=1)))
    assert ending.outcome == Done(look_again=60.0), "of two changes a stale answer shows the first"
    assert world.marketplace.listings["13"].stock == 3


@pytest.mark.parametrize("manifest", KINDS)
@pytest.mark.parametrize(("heard", "looks"), [(False, 0), (True, 0), (False, 2)])
def test_a_change_is_looked_at_again_whoever_found_it(manifest, heard, looks):
    world = a_published_world(**manifest)
    world.rules = Rules(look_again=(60.0, 300.0))
    world.vtex.offers["13"] = an_offer(price=8990, stock=3)
    endings = world.attempt(world.row("price", heard=heard, looks=looks), world.row("stock"))
    assert by_context(endings)["price"].outcome.look_again == 60.0
    world.rules = Rules(look_again=())
    world.vtex.offers["13"] = an_offer(price=7990, stock=3)
    ending = only(world.attempt(world.row("price", heard=heard, looks=looks)))
    assert ending.outcome == Done(), "a store that wants no looks gets none"


def test_no_price_is_looked_at_again_when_vtex_announced_one():
    world = a_published_world()
    world.rules = Rules(look_again=(60.0, 300.0))
    world.vtex.offers["13"] = an_offer(price=None)
    looks = [
        only(world.attempt(world.row("price", heard=heard, looks=turn))).outcome.look_again
        for heard, turn in ((False, 0), (True, 0), (True, 1), (True, 2))
    ]
    assert looks == [None, 60.0, 300.0, None]


@pytest.mark.parametrize("manifest", KINDS)
@pytest.mark.parametrize("offer", [None, an_offer(price=None), an_offer(price=0)])
def test_what_vtex_does_not_offer_gets_stock_zero_and_no_price(manifest, offer):
    world = a_published_world(**manifest)
    world.vtex.offers.clear()
    if offer is not None:
        world.vtex.offers["13"] = offer
    endings = by_context(world.attempt(world.row("price"), world.row("stock")))
    record = only(world.marketplace.written)
    assert record.stock == 0
    assert record.price == (Price(9990, 12990) if manifest.get("replaces") else None)
    assert isinstance(endings["price"].outcome, Refused)
    assert {ending.code for ending in endings.values()} == {"A1"}
    assert [story.code for ending in endings.values() for story in ending.stories] == ["A1"]
    assert world.states.known["price", "13"] == {"sale": 9990, "list": 12990}
    assert world.states.known["stock", "13"] == {"quantity": 0}


def test_a_price_without_an_offer_asks_stock_to_send_the_zero():
    world = a_published_world()
    world.vtex.offers.clear()
    ending = only(world.attempt(world.row("price")))
    assert [ask.context for ask in ending.outcome.then] == ["stock"]
    assert only(ending.stories).code == "A1"
    assert world.marketplace.written == []


@pytest.mark.parametrize("held", [0, None])
def test_no_stock_in_vtex_is_zero_on_the_marketplace(held):
    world = a_published_world()
    world.vtex.offers["13"] = an_offer(stock=held)
    assert only(world.attempt(world.row("stock"))).code == "S1"
    assert only(world.marketplace.written).stock == 0


def test_a_quantity_at_the_minimum_is_zero_with_a_warning():
    world = a_published_world()
    world.rules = Rules(inventory=InventoryRules(minimum=3))
    world.vtex.offers["13"] = an_offer(stock=3)
    ending = only(world.attempt(world.row("stock")))
    assert only(world.marketplace.written).stock == 0
    assert only(ending.stories).code == "Z"
    assert only(ending.stories).params["minimum"] == "3"


def test_rules_are_applied_before_values_are_compared():
    world = a_published_world()
    world.rules = Rules(pricing=PricingRules(minimum=10_000))
    world.attempt(world.row("price"))
    assert only(world.marketplace.written).price == Price(10_000, 12_990)
    world.marketplace.written.clear()
    world.attempt(world.row("price"))
    assert world.marketplace.written == []


IDLE = [None, ("i", "done"), ("i", "refused")]
BUSY = [
    ("i", "parked"),
    ("p", "done"),
    ("h", "new"),
    ("s", "waiting"),
    ("s", "parked"),
    ("s", "delayed"),
    ("s", "unknown"),
]


@pytest.mark.parametrize("catalog", IDLE + BUSY)
def test_an_unpublished_sku_parks_and_asks_the_catalogue_only_when_that_is_idle(catalog):
    world = a_world()
    if catalog is not None:
        world.states.rows["catalog", "13"] = catalog
    endings = world.attempt(world.row("price"), world.row("stock"))
    assert [(ending.outcome.on, ending.stories) for ending in endings] == [("publication:13", ())] * 2
    asked = [ask.context for ending in endings for ask in ending.outcome.then]
    assert asked == (["catalog"] if catalog in IDLE else [])
    assert all(isinstance(ending.outcome, Parked) for ending in endings)
    assert world.vtex.calls == []


def test_a_deactivated_listing_keeps_its_zero():
    world = a_published_world()
    world.vtex.products["13"] = a_product(active=False)
    world.attempt(world.row("catalog"))
    world.marketplace.written.clear()
    endings = world.attempt(world.row("price"), world.row("stock"))
    assert world.states.bindings["13"].state is BindingState.DEACTIVATED
    assert world.marketplace.written == []
    assert all(isinstance(ending.outcome, Done) for ending in endings)
    assert world.marketplace.listings["13"].stock == 0


@pytest.mark.parametrize("manifest", KINDS)
def test_a_write_in_doubt_is_sent_again_even_when_vtex_went_back(manifest):
    world = a_published_world(**manifest)
    send = only(
        decided for decided in world.decide(world.row("stock", confirmed={"quantity": 1})) if isinstance(decided, Send)
    )
    row = world.row("stock", status="unknown", intent=send.as_json(), reference=send.reference)
    assert row.confirmed == {"quantity": 37}
    only(world.attempt(row))
    assert only(world.marketplace.written).stock == 37


def in_doubt(world, **offer):
    """The price's row after a record of both was taken and its answer lost; VTEX says what it says now."""
    world.vtex.offers["13"] = an_offer(**offer)
    send = only(step for step in world.decide(world.row("price")) if isinstance(step, Send))
    world.marketplace.write(send.record)
    world.marketplace.written.clear()
    return world.row("price", status="unknown", intent=send.as_json(), reference=send.reference, confirmed=None)


def test_a_record_of_both_that_is_in_doubt_puts_the_other_in_doubt_too():
    world = a_published_world(**COMBINED)
    world.states.known["stock", "13"] = {"quantity": 0}
    price = in_doubt(world, price=7000, stock=3)
    del world.vtex.offers["13"]
    world.attempt(price, world.row("stock"))
    assert world.marketplace.listings["13"].stock == 0, "the snapshot said so before, the marketplace did not"


@pytest.mark.parametrize("together", [False, True])
def test_a_price_that_is_gone_leaves_nothing_known_of_a_record_in_doubt(together):
    world = a_published_world(**COMBINED)
    price = in_doubt(world, price=7000, stock=3)
    del world.vtex.offers["13"]
    decided = world.decide(price, world.row("stock")) if together else world.decide(price)
    ended = only(one for one in decided if not isinstance(one, Send))
    assert ended.confirmed == ({"price": None} if together else {"price": None, "stock": None})
    assert [ask.context for ask in ended.outcome.then] == ([] if together else ["stock"])


def test_after_a_no_to_a_record_in_doubt_nothing_is_known_of_either():
    world = a_published_world(**COMBINED)
    price = in_doubt(world, price=7000, stock=99)
    world.vtex.offers["13"] = an_offer(price=1)
    world.marketplace.answers = [Refusal([Problem("E3", "price", "1", "too low")])]
    world.attempt(price, world.row("stock"))
    assert world.marketplace.listings["13"].stock == 99
    assert (world.states.known["price", "13"], world.states.known["stock", "13"]) == (None, None)


def test_a_record_that_was_half_refused_is_not_sent_again_because_the_other_is_claimed_too():
    world = a_published_world(**COMBINED)
    world.vtex.offers["13"] = an_offer(price=7000)
    send = only(step for step in world.decide(world.row("price")) if isinstance(step, Send))
    row = world.row("price", status="refused", input_hash=send.refused_hash, intent=send.as_json(), confirmed=None)
    assert not any(isinstance(one, Send) for one in world.decide(row, world.row("stock")))


def test_one_record_that_puts_both_on_sale_again_asks_a_catalogue_that_held_back():
    world = a_published_world(**COMBINED)
    world.states.known["stock", "13"] = {"quantity": 0}
    world.states.rows["catalog", "13"] = ("i", "refused")
    world.vtex.offers["13"] = an_offer(price=7000)
    assert "catalog" in {ask.context for ask in only(world.attempt(world.row("price"))).outcome.then}


@pytest.mark.parametrize("heard", [False, True])
def test_what_is_announced_of_an_unlisted_sku_is_newer_than_what_a_coming_look_may_read(heard):
    world = a_world()
    world.states.rows["catalog", "13"] = ("s", "refused")
    asks = only(world.attempt(world.row("price", heard=heard))).outcome.then
    assert [(ask.context, ask.heard) for ask in asks] == ([("catalog", True)] if heard else [])


def test_the_old_price_that_is_back_asks_a_catalogue_that_held_back():
    world = a_published_world()
    world.states.rows["catalog", "13"] = ("i", "refused")
    ending = only(world.attempt(world.row("price", status="refused", input_hash="no price")))
    assert world.marketplace.written == []
    assert "catalog" in {ask.context for ask in ending.outcome.then}


def test_a_refused_price_tells_why_and_is_not_sent_again_until_it_changes():
    world = a_published_world()
    world.vtex.offers["13"] = an_offer(price=100)
    world.marketplace.answers = [Refusal([Problem("E3", "price", "1.00", "below the minimum of 5.00")])]
    ending = only(world.attempt(world.row("price")))
    assert ending.code == "E3"
    assert ending.confirmed == {"price": {"sale": 9990, "list": 12990}}
    row = world.row("price", status="refused", input_hash=ending.outcome.input_hash)
    assert only(world.attempt(row)).stories == ()
    assert len(world.marketplace.written) == 1
    world.vtex.offers["13"] = an_offer(price=600)
    assert only(world.attempt(row)).code == "S1"


def test_what_was_refused_for_a_listing_that_is_gone_is_sent_to_the_one_made_since():
    world = a_published_world(**COMBINED)
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    world.marketplace.answers = [Refusal([Problem("E3", "listing", "MK-13", "there is none")])]
    refused = only(world.attempt(world.row("stock"))).outcome
    world.marketplace.listings["MK-14"] = world.marketplace.listings.pop("13")
    world.states.bindings["13"] = replace(world.states.bindings["13"], remote_id="MK-14")
    row = world.row("stock", status="refused", input_hash=refused.input_hash)
    world.attempt(row)
    assert [record.remote_id for record in world.marketplace.written] == ["MK-13", "MK-14"]


def test_what_was_refused_and_is_announced_again_is_read_again_though_not_sent():
    world = a_published_world()
    world.rules = Rules(look_again=(60.0, 300.0))
    world.vtex.offers["13"] = an_offer(stock=3)
    world.marketplace.answers = [Refusal([Problem("E3", "stock", "3", "at least 5")])]
    refused = only(world.attempt(world.row("stock", heard=True))).outcome
    assert refused.look_again == 60.0, "what was refused may have been a stale answer"
    row = world.row("stock", status="refused", heard=True, input_hash=refused.input_hash)
    assert only(world.attempt(row)).outcome.look_again == 60.0, "what VTEX announced does not show: it may be stale"
    assert len(world.marketplace.written) == 1


def test_a_vtex_that_answers_now_this_now_that_is_not_followed_for_ever():
    world = a_published_world()
    world.vtex.offers["13"] = an_offer(stock=3)
    assert only(world.attempt(world.row("stock", heard=True, looks=MOST_LOOKS))).outcome == Done()


def test_what_is_written_for_the_first_time_and_was_not_announced_is_not_looked_at_again():
    world = a_published_world()
    world.states.known.clear()
    assert {ending.outcome.look_again for ending in world.attempt(world.row("price"), world.row("stock"))} == {None}


@pytest.mark.parametrize("manifest", KINDS)
@pytest.mark.parametrize(("read", "moved"), [("price", "stock"), ("stock", "price")])
def test_who_reads_one_of_both_and_sees_that_the_other_moved_has_it_sent(manifest, read, moved):
    for heard in (True, False):
        world = a_published_world(**manifest)
        world.vtex.offers["13"] = an_offer(price=8990) if moved == "price" else an_offer(stock=5)
        ending = only(world.attempt(world.row(read, heard=heard)))
        assert world.marketplace.written == []
        assert [(ask.context, ask.key, ask.heard) for ask in ending.outcome.then] == [(moved, "13", heard)]
        world.attempt(world.row(moved))
        assert only(world.attempt(world.row(read))).outcome == Done()


def test_who_writes_one_of_both_apart_has_the_other_sent_too():
    world = a_published_world()
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    (ending,) = world.attempt(world.row("price"))
    assert [(ask.context, ask.key) for ask in ending.outcome.then] == [("stock", "13")]


@pytest.mark.parametrize("status", [("p", "done"), ("h", "done"), ("s", "done"), ("s", "delayed"), ("s", "waiting")])
def test_the_other_is_not_asked_while_it_is_about_to_be_read_anyway(status):
    """Were it asked though it has a look coming, a VTEX that flaps would have both read without pause."""
    world = a_published_world()
    world.states.rows["stock", "13"] = status
    world.vtex.offers["13"] = an_offer(stock=5)
    assert only(world.attempt(world.row("price"))).outcome == Done()


def test_no_price_any_more_has_the_stock_sent_once():
    world = a_published_world()
    world.vtex.offers["13"] = an_offer(price=None)
    (ending,) = world.attempt(world.row("price"))
    assert [(ask.context, ask.key) for ask in ending.outcome.then] == [("stock", "13")]


def test_a_combined_record_carries_the_other_value_too_and_confirms_both():
    world = a_published_world(**COMBINED)
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    world.attempt(world.row("stock"))
    record = only(world.marketplace.written)
    assert (record.price, record.stock) == (Price(8990, 12990), 5)
    world.marketplace.written.clear()
    assert only(world.attempt(world.row("price"))).outcome == Done()
    assert world.marketplace.written == []


def test_an_unchanged_row_beside_a_changed_one_is_done_without_a_story():
    world = a_published_world(**COMBINED)
    world.vtex.offers["13"] = an_offer(stock=5)
    endings = by_context(world.attempt(world.row("price"), world.row("stock")))
    assert endings["price"].stories == ()
    assert [story.operation for story in endings["stock"].stories] == ["Inventory update"]


def test_a_whole_replacement_repeats_the_listed_registration_even_if_vtex_has_another_by_now():
    world = a_published_world(**REPLACING)
    world.vtex.products["13"] = a_product(description="not listed yet")
    world.vtex.offers["13"] = an_offer(stock=5)
    world.attempt(world.row("stock"))
    assert only(world.marketplace.written).listing.description == "A mug"


def test_a_whole_replacement_whose_registration_is_in_doubt_renders_it_anew():
    world = a_published_world(**REPLACING)
    world.states.known["catalog", "13"] = None
    world.vtex.offers["13"] = an_offer(stock=5)
    world.attempt(world.row("stock"))
    assert only(world.marketplace.written).listing.title == "Mug 13"


def test_a_whole_replacement_does_not_bring_back_what_may_just_have_been_deleted():
    world = a_published_world(**REPLACING)
    world.states.known["catalog", "13"] = None
    world.vtex.products["13"] = a_product(active=False)
    world.vtex.offers.clear()
    ending = only(world.attempt(world.row("stock")))
    assert world.marketplace.written == []
    assert ending.outcome.on == "publication:13"


def test_a_listing_that_the_marketplace_neither_takes_nor_shows_any_more_is_made_again():
    world = a_published_world(create="create")
    world.vtex.offers["13"] = an_offer(stock=5)
    world.marketplace.answers = [NotFound("listing MK-13")] * 3
    with pytest.raises(Unavailable):
        world.attempt(world.row("stock", attempts=2))
    with pytest.raises(Unavailable):
        world.attempt(world.row("stock", attempts=3))  # it shows it: it will take it again
    world.marketplace.listings.clear()
    ending = only(world.attempt(world.row("stock", attempts=4)))
    assert ending.binding.state is BindingState.DELETED
    assert [ask.context for ask in ending.outcome.then] == ["catalog"]
    world.states.known.clear()
    world.attempt(world.row("catalog"))
    assert world.marketplace.written[-1].action is Action.REGISTER


def test_a_whole_replacement_that_cannot_be_registered_anew_repeats_what_the_marketplace_shows():
    world = a_published_world(**REPLACING)
    world.states.known["catalog", "13"] = None
    world.states.mappings.clear()
    world.vtex.offers["13"] = an_offer(stock=5)
    shown = world.marketplace.listings["13"].listing
    world.attempt(world.row("stock"))
    record = only(world.marketplace.written)
    assert (record.listing, record.stock) == (shown, 5)


def test_a_whole_replacement_without_any_registration_waits_for_the_publication():
    world = a_published_world(**REPLACING)
    world.states.known["catalog", "13"] = None
    world.states.mappings.clear()
    world.marketplace.listings.clear()
    ending = only(world.attempt(world.row("stock")))
    assert ending.outcome.on == "publication:13"
    assert [ask.context for ask in ending.outcome.then] == ["catalog"]


def test_a_whole_replacement_of_an_absent_sku_keeps_the_price_that_the_marketplace_shows():
    world = a_published_world(**REPLACING)
    world.vtex.offers.clear()
    world.states.known["price", "13"] = None
    world.attempt(world.row("stock"))
    assert only(world.marketplace.written).price == Price(9990, 12990)


@pytest.mark.parametrize("good", [True, False])
def test_a_lot_record_of_both_ends_both_rows_without_asking_anybody(good):
    world = a_published_world(**COMBINED)
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    send = only(world.decide(world.row("price"), world.row("stock")))
    world.vtex.calls.clear()
    resolved = LotOutcome(good, Written("MK-13"), () if good else (Problem("E3", "price", "", "no"),), send.as_json())
    waiting = {"status": "waiting", "ticket": "lot:1", "intent": send.as_json(), "resolved": resolved}
    endings = by_context(world.attempt(*(world.row(name, **waiting) for name in ("price", "stock"))))
    assert world.vtex.calls == []
    assert {ending.code for ending in endings.values()} == {"S1" if good else "E3"}
    assert world.states.known["price", "13"]["sale"] == (8990 if good else 9990)
    assert world.states.known["stock", "13"]["quantity"] == (5 if good else 37)


def answered(world, context, **offer):
    """A row whose record of both was taken in a lot of its own."""
    world.vtex.offers["13"] = an_offer(**offer)
    send = only(world.decide(world.row(context, confirmed=None)))
    resolved = LotOutcome(True, Written("MK-13"), (), send.as_json())
    return world.row(context, status="waiting", ticket="lot:1", intent=send.as_json(), resolved=resolved)


def test_of_two_records_under_way_the_first_answer_says_nothing_of_the_other_and_the_last_has_both_sent_anew():
    world = a_published_world(**COMBINED)
    price = answered(world, "price", price=8990)
    stock = answered(world, "stock", stock=5)
    world.states.rows["stock", "13"] = ("s", "waiting")
    first = only(world.attempt(price))
    assert first.confirmed == {"price": {"sale": 8990, "list": 12990}, "stock": None}
    assert first.outcome.then == ()
    world.states.rows["price", "13"] = ("s", "done")
    last = only(world.attempt(replace(stock, intent=None)))  # as the first answer leaves it
    assert last.confirmed == {"price": None, "stock": None}
    assert {ask.context for ask in last.outcome.then} == {"price", "stock"}


def test_two_records_answered_at_once_are_sent_anew_as_one():
    world = a_published_world(**COMBINED)
    rows = answered(world, "price", price=8990), answered(world, "stock", stock=5)
    endings = world.attempt(*rows)
    assert {value for ending in endings for value in ending.confirmed.values()} == {None}
    assert {ask.context for ending in endings for ask in ending.outcome.then} == {"price", "stock"}
    world.attempt(world.row("price"), world.row("stock"))
    assert len(world.marketplace.written) == 1


def test_beside_a_row_that_waits_for_its_lot_the_other_one_is_looked_at():
    world = a_published_world()
    world.vtex.offers["13"] = an_offer(stock=5)
    endings = by_context(world.attempt(world.row("price", status="waiting", ticket="lot:1"), world.row("stock")))
    assert isinstance(endings["price"].outcome, Waiting)
    assert endings["stock"].code == "S1"
    assert only(world.marketplace.written).price is None


def test_unlimited_stock_is_capped_to_what_the_marketplace_can_hold():
    world = a_published_world(max_stock=999)
    world.vtex.offers["13"] = an_offer(stock=1_000_000_000)
    world.attempt(world.row("stock"))
    assert only(world.marketplace.written).stock == 999


def test_every_second_write_has_a_reference_of_its_own():
    world = a_published_world()
    row = world.row("stock", confirmed={"quantity": 1})
    first, second = (only(world.decide(row)) for _ in range(2))
    assert first.reference != second.reference
    assert first.record == replace(second.record, reference=first.reference)


# ---------------------------------------------------------------- what the catalogue held back


@pytest.mark.parametrize("manifest", KINDS)
@pytest.mark.parametrize("said", ["refused", "done"])
def test_what_is_on_sale_again_has_the_registration_looked_at_that_was_held_back_meanwhile(manifest, said):
    world = a_published_world(**manifest)
    world.states.rows["catalog", "13"] = ("i", said)
    world.vtex.offers.clear()
    world.attempt(world.row("price"), world.row("stock"))
    assert world.marketplace.listings["13"].stock == 0
    world.vtex.offers["13"] = an_offer(price=8990)
    endings = world.attempt(world.row("price", status="refused", input_hash="absent"), world.row("stock"))
    asked = [ask.context for ending in endings for ask in ending.outcome.then]
    assert ("catalog" in asked) is (said == "refused")
    world.vtex.offers["13"] = an_offer(price=7990, stock=36)
    endings = world.attempt(world.row("price"), world.row("stock"))
    assert [ask for ending in endings for ask in ending.outcome.then] == [], "it was on sale before"


@pytest.mark.parametrize("manifest", KINDS)
@pytest.mark.parametrize("stock", [37, 5])
def test_a_price_that_was_refused_while_there_was_none_is_asked_when_a_stock_is_offered_again(manifest, stock):
    world = a_published_world(**manifest)
    world.states.rows["price", "13"] = ("i", "refused")
    world.vtex.offers["13"] = an_offer(stock=stock)
    ending = only(world.attempt(world.row("stock", heard=True)))
    assert [(ask.context, ask.heard) for ask in ending.outcome.then] == [("price", False)]
    again = only(world.attempt(world.row("price", status="refused", input_hash="absent")))
    assert isinstance(again.outcome, Done)
    assert [ask.context for ask in again.outcome.then] == ["stock"]


@pytest.mark.parametrize("manifest", KINDS)
def test_a_record_that_was_refused_for_its_price_is_not_sent_again_because_the_stock_moved(manifest):
    world = a_published_world(**manifest)
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    world.states.rows["price", "13"] = ("i", "refused")
    world.marketplace.answers = [Refusal([Problem("E3", "price", "89.90", "is too low")])]
    ending = only(world.attempt(world.row("stock", heard=True)))
    asked = [ask.context for ask in ending.outcome.then]
    assert asked == ([] if manifest.get("offer") == "combined" else ["price"]), "one record of both said it already"


def test_a_refused_price_is_not_asked_by_a_stock_that_nobody_announced_or_that_is_not_offered():
    world = a_published_world()
    world.states.rows["price", "13"] = ("i", "refused")
    assert only(world.attempt(world.row("stock"))).outcome.then == ()
    world.vtex.offers.clear()
    assert only(world.attempt(world.row("stock", heard=True))).outcome.then == ()


def test_a_listing_that_the_catalogue_refuses_to_make_anew_does_not_ask_it_back_for_ever():
    world = a_published_world(**REPLACING)
    world.states.known.pop(("catalog", "13"))
    world.marketplace.listings.clear()
    world.vtex.products["13"] = replace(world.vtex.products["13"], name="")
    world.vtex.offers.clear()
    world.states.rows["catalog", "13"] = ("i", "refused")
    ending = only(world.attempt(world.row("stock", heard=True)))
    assert ending.outcome == Parked("publication:13")


# ---------------------------------------------------------------- nobody asks in a circle


def reads_until_rest(world, *asks, most=50):
    """Follow what is asked until nothing is, and no look comes; how many attempts that took, `most` at the most."""
    rows = {context: world.row(context, status="done") for context in ("catalog", "price", "stock")}
    works = dict.fromkeys(rows, "i")
    waiting, attempts = list(asks), 0
    while waiting and attempts < most:
        context, heard = waiting.pop(0)
        attempts += 1
        world.states.rows |= {(name, "13"): (works[name], row.status) for name, row in rows.items()}
        row = replace(rows[context], heard=heard, confirmed=world.states.known.get((context, "13")))
        ending = only(world.attempt(row))
        assert isinstance(ending.outcome, Done | Refused), ending.outcome
        status = "done" if isinstance(ending.outcome, Done) else "refused"
        works[context] = "i" if ending.outcome.look_again is None else "s"
        rows[context] = replace(row, status=status, input_hash=getattr(ending.outcome, "input_hash", None))
        waiting += [(ask.context, ask.heard) for ask in ending.outcome.then]
    return attempts


@pytest.mark.parametrize("first", ["price", "stock"])
def test_two_values_that_the_marketplace_refuses_do_not_ask_each_other_for_ever(first):
    world = a_published_world()
    world.rules = Rules(look_again=())
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    world.marketplace.answers = [Refusal([Problem("E3", "listing", "MK-13", "is closed")])] * 2
    assert reads_until_rest(world, (first, True)) <= 4
    assert len(world.marketplace.written) == 2


def test_a_vtex_that_answers_now_this_now_that_is_read_no_faster_than_by_looks():
    class Flapping(FakeVtex):
        def simulate(self, *asked, **where):
            was = self.offers["13"]
            self.offers["13"] = an_offer(price=8990, stock=5) if was.stock == 37 else an_offer()
            return super().simulate(*asked, **where)

    world = a_published_world()
    world.vtex = Flapping(world.vtex.products, world.vtex.offers)
    assert reads_until_rest(world, ("price", True), ("stock", True)) <= 4


@pytest.mark.parametrize("first", ["catalog", "price", "stock"])
def test_a_price_that_is_there_for_the_stock_alone_is_not_asked_for_ever(first):
    class Flapping(FakeVtex):
        def simulate(self, *asked, **where):
            was = self.offers.pop("13", None)
            if was is None:
                self.offers["13"] = an_offer()
            return super().simulate(*asked, **where)

    world = a_published_world()
    world.rules = Rules(look_again=())
    world.vtex = Flapping(world.vtex.products, {})
    world.states.rows["price", "13"] = ("i", "refused")
    assert reads_until_rest(world, ("price", True), (first, True)) <= 8


@pytest.mark.parametrize("manifest", KINDS)
def test_catalogue_price_and_stock_do_not_ask_in_a_circle_while_vtex_sells_it_now_and_then(manifest):
    class Flapping(FakeVtex):
        turn = 0

        def simulate(self, *asked, **where):
            Flapping.turn += 1
            self.offers.clear()
            if Flapping.turn % 4 == 0:
                self.offers["13"] = an_offer()
            return super().simulate(*asked, **where)

    world = a_published_world(**manifest)
    world.rules = Rules(look_again=())
    world.vtex = Flapping(world.vtex.products, world.vtex.offers)
    assert reads_until_rest(world, ("catalog", True), ("price", True), ("stock", True)) <= 15


def test_a_blocked_listing_whose_product_is_broken_asks_nobody_for_ever():
    world = a_published_world()
    world.rules = Rules(look_again=())
    world.states.bindings["13"] = replace(world.states.bindings["13"], state=BindingState.DEACTIVATED)
    world.vtex.products["13"] = replace(world.vtex.products["13"], name="")
    world.vtex.offers["13"] = an_offer(price=8990, stock=5)
    for first in ("catalog", "price"):
        assert reads_until_rest(world, (first, True)) <= 3


def test_what_the_marketplace_took_in_words_and_refused_in_a_warning_is_not_sent_again():
    world = a_published_world()
    world.vtex.offers["13"] = an_offer(price=8990)
    send = only(step for step in world.decide(world.row("price")) if isinstance(step, Send))
    row = world.row("price", status="refused", input_hash=send.refused_hash, intent=send.as_json(), confirmed=None)
    ending = only(world.attempt(row))
    assert isinstance(ending.outcome, Refused)
    assert world.marketplace.written == []
    in_doubt = replace(row, status="delayed")
    assert isinstance(only(world.decide(in_doubt)), Send), "whether the other write was done is not known"
