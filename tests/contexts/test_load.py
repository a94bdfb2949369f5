"""A load asks for every SKU of the channel once, however VTEX pages, and goes on where it was cut."""

import pytest

from hub.errors import BadInput
from hub.model import Urgency
from hub.outcome import Done, Postponed
from hub.ports import RunRecord
from tests.fakes import World


def loading(*pages, page_size=3, **run):
    world = World()
    world.vtex.pages = pages
    world.states.runs[1] = RunRecord(run=1, state="running", page=1, page_size=page_size, **run)
    return world


def run_to_its_end(world):
    """Every ending, page after page."""
    endings, key = [], "1:1"
    while key:
        (ending,) = world.attempt(world.row("load", key))
        endings.append(ending)
        (key,) = [ask.key for ask in ending.outcome.then] or [None]
        assert len(endings) < 20
    return endings


def test_every_page_is_read_and_every_sku_is_asked_for_once():
    world = loading(["1", "2", "3"], ["4", "5", "6"], ["7"])
    endings = run_to_its_end(world)
    assert world.states.loaded == ["1", "2", "3", "4", "5", "6", "7"]
    assert world.states.runs[1].state == "done"
    asks = [ask for ending in endings for ask in ending.outcome.then]
    assert {(ask.context, ask.source, ask.urgency) for ask in asks} == {("load", "load", Urgency.LOAD)}


def test_a_list_that_ignores_paging_is_taken_whole():
    world = loading(["1", "2"], ["3", "4"])
    world.vtex.ignores_paging = True
    run_to_its_end(world)
    assert world.states.loaded == ["1", "2", "3", "4"]
    assert world.vtex.calls == ["page 1"]


def test_a_short_list_that_ignores_paging_ends_at_its_repeat():
    world = loading(["1", "2"], page_size=1000)
    world.vtex.ignores_paging = True
    world.attempt(world.row("load", "1:1"))
    (repeat,) = world.decide(world.row("load", "1:2"))
    assert (repeat.skus, repeat.last, repeat.then) == ((), True, ())
    world.attempt(world.row("load", "1:2"))
    assert world.states.loaded == ["1", "2"]
    assert world.states.runs[1].state == "done"


def test_doubled_ids_are_asked_for_once():
    world = loading(["1", "1", "2"], ["2", "3"])
    run_to_its_end(world)
    assert world.states.loaded == ["1", "2", "3"]


def test_a_backlog_holds_the_next_page_back():
    world = loading(["1", "2", "3"])
    world.states.backlog = 1001
    (ending,) = world.attempt(world.row("load", "1:1"))
    assert isinstance(ending.outcome, Postponed)
    assert ending.outcome.scope == "key"
    assert world.vtex.calls == []


def test_a_page_whose_ending_was_lost_is_not_read_again_and_the_load_goes_on():
    world = loading(["1", "2", "3"], ["4"])
    world.attempt(world.row("load", "1:1"))
    world.vtex.calls.clear()
    (ending,) = world.attempt(world.row("load", "1:1"))
    assert [ask.key for ask in ending.outcome.then] == ["1:2"]
    assert world.vtex.calls == []


@pytest.mark.parametrize("state", ["done", "cancelled", "failed"])
def test_a_load_that_has_ended_reads_nothing(state):
    world = loading(["1"])
    world.states.runs[1] = RunRecord(run=1, state=state, page=1, page_size=3)
    (ending,) = world.attempt(world.row("load", "1:1"))
    assert ending.outcome == Done()
    assert world.vtex.calls == []


def test_a_load_of_chosen_skus_asks_only_for_them():
    world = loading(["1", "2", "3"], page_size=2, only=("2", "9", "7"))
    run_to_its_end(world)
    assert world.states.loaded == ["2", "9", "7"]
    assert world.vtex.calls == []


@pytest.mark.parametrize("key", ["", "1", "1:", ":2", "a:1", "1:-1", "1:٣"])
def test_a_key_that_is_no_page_is_told(key):
    world = loading(["1"])
    with pytest.raises(BadInput, match="<run>:<page>"):
        world.attempt(world.row("load", key))
