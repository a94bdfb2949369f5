"""A plan is drawn whole from its seed, harms everybody, and lets each dependency come back before the next goes."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from chaos import plan as plans
from chaos.plan import Fault, Sizes, plan, process_names

LEASE = 6.0
sizes = st.builds(
    Sizes,
    notifications=st.integers(0, 30_000),
    skus=st.integers(1, 5_000),
    stores=st.integers(1, 20),
    kills=st.integers(0, 60),
    workers=st.integers(1, 4),
    seconds=st.floats(30, 900),
    rabbit=st.booleans(),
)


@given(st.integers(0, 2**31), sizes)
def test_the_same_seed_gives_the_same_plan(seed: int, chosen: Sizes) -> None:
    assert plan(seed, chosen, lease=LEASE) == plan(seed, chosen, lease=LEASE)


@given(st.integers(0, 2**31), sizes)
def test_a_plan_kills_as_often_as_it_should_and_at_least_that(seed: int, chosen: Sizes) -> None:
    assert plan(seed, chosen, lease=LEASE).kills >= chosen.kills


@given(st.integers(0, 2**31), sizes)
def test_strikes_come_in_order_within_the_window_and_hit_what_exists(seed: int, chosen: Sizes) -> None:
    drawn = plan(seed, chosen, lease=LEASE)
    moments = [strike.at for strike in drawn.strikes]
    assert moments == sorted(moments)
    for strike in drawn.strikes:
        assert 0 <= strike.at <= chosen.window
        if strike.fault in plans.PROCESSES:
            assert strike.target in process_names(chosen)
        elif strike.fault in plans.DEPENDENCIES:
            assert strike.target == ""
        else:
            side, _, store = strike.target.rpartition(":")
            assert side in ("", "vtex", "marketplace")
            assert int(store) < chosen.stores
        if strike.fault is Fault.PAUSE:
            assert strike.seconds > LEASE


@given(st.integers(0, 2**31), sizes)
def test_no_dependency_goes_while_another_is_away(seed: int, chosen: Sizes) -> None:
    outages = [strike for strike in plan(seed, chosen, lease=LEASE).strikes if strike.fault in plans.DEPENDENCIES]
    assert all(following.at > one.ends for one, following in itertools.pairwise(outages))
    assert {one.seconds for one in outages if one.fault in plans.CUTS} <= {plans.UNREACHABLE_SECONDS}


@given(st.integers(0, 2**31), st.booleans())
def test_a_plan_of_full_size_has_every_fault_with_time_between_outages(seed: int, rabbit: bool) -> None:
    drawn = plan(seed, Sizes(rabbit=rabbit), lease=LEASE)
    absent = set() if rabbit else set(plans.RABBIT)
    assert {strike.fault for strike in drawn.strikes} == set(Fault) - absent
    outages = [strike for strike in drawn.strikes if strike.fault in plans.DEPENDENCIES]
    for one, following in itertools.pairwise(outages):
        assert following.at - one.ends >= plans.SETTLE_SECONDS
    struck = {strike.target for strike in drawn.strikes if strike.fault in plans.PROCESSES}
    assert struck == set(process_names(Sizes()))
