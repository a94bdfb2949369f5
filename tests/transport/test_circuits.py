"""A peer that is down is left alone, asked again by one call, and one bad SKU opens nothing."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from hub.circuits import Circuits, Name, Verdict
from hub.errors import CircuitOpen, MapperAway, NotNow, Throttled, Unavailable
from hub.limits import Budget
from hub.mapper import CategoryMapper
from hub.runtime.embedded import Valkey, scratch
from hub.transport import GO, OPEN, SUSPECT, Calling, Peer, Transport, calling
from tests.timing import in_time, undisturbed

from .conftest import Opened
from .peer import Peer as Server
from .peer import answer, cut, until

NAME = Name("a", "vtex", "g")
OWN = Name("a", "vtex", "default")
"""The circuit of `call`."""


def begin(out: Transport, name: Name = NAME) -> tuple[str, Verdict]:
    call = out.circuits.next_call()
    return call, out.admit(
        name, call, budget=Budget("vtex:acme"), who=Calling(name.store, "stock"), total=5.0, horizon=1.0
    )


def end(out: Transport, begun: tuple[str, Verdict], failed: str = "", name: Name = NAME) -> None:
    assert begun[1].word == GO
    out.circuits.ended(name, *begun, Unavailable("answered 503") if failed else None, failed)


def fail(out: Transport, *what: str) -> None:
    for one in what:
        end(out, begin(out), one)


def overrun(out: Transport, begun: tuple[str, Verdict], what: str, name: Name = NAME, deadline: float = 15.0) -> None:
    assert begun[1].word == GO
    out.circuits.ended(name, *begun, Unavailable("no whole answer within 15 s"), what, overran=deadline)


class Counting:
    """Redis, and how often it was asked."""

    def __init__(self, server: redis.Redis) -> None:
        self.server, self.asked = server, 0

    def script_load(self, text: str) -> object:
        return self.server.script_load(text)

    def execute_command(self, *command: object) -> object:
        self.asked += 1
        return self.server.execute_command(*command)


@pytest.fixture(params=["fakeredis", "valkey", "alone"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[redis.Redis | None]:
    """Redis in both forms, and none at all."""
    if request.param == "alone":
        yield None
        return
    inner = request.getfixturevalue("valkey") if request.param == "valkey" else None
    if inner is None:
        import fakeredis

        client: redis.Redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    else:
        client = redis.Redis.from_url(inner.url)
    yield client
    client.close()


def test_five_distinct_failures_in_a_row_open_the_circuit(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere)
    fail(out.transport, "1", "2", "3", "4")
    assert out.transport.circuits.shut_for("a") is None
    fail(out.transport, "5")
    _, verdict = begin(out.transport)
    assert verdict.word == OPEN
    assert 29 < verdict.wait <= 30
    (circuit,) = out.transport.circuits.status("a")
    assert (circuit.store, circuit.side, circuit.group, circuit.state) == ("a", "vtex", "g", "open")
    assert circuit.why == "answered 503"
    assert circuit.since is not None
    assert 29 < circuit.reopens_in <= 30
    assert [change.state for change in out.changes] == ["open"]
    assert out.transport.circuits.shut_for("a", "vtex", "g") == pytest.approx(circuit.reopens_in, abs=1)
    assert out.transport.circuits.shut_for("a", "marketplace") is None
    assert out.transport.circuits.shut_for("b") is None


def test_a_success_in_between_begins_the_count_anew(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere).transport
    fail(out, "1", "2", "3", "4")
    end(out, begin(out))
    fail(out, "5", "6", "7", "8")
    assert begin(out)[1].word == GO


def test_one_bad_sku_opens_nothing(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere).transport
    fail(out, *["sku 7"] * 50)
    assert begin(out)[1].word == GO


def test_refusals_neither_count_nor_reset(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere).transport
    for one in "1234":
        for _ in range(20):
            call, verdict = begin(out)
            out.circuits.refused(NAME, call, verdict)
        fail(out, one)
    assert begin(out)[1].word == GO
    fail(out, "5")
    assert begin(out)[1].word == OPEN


def test_alternating_failures_open_it_too(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    for number in range(40):
        begun = begin(out)
        if begun[1].word == OPEN:
            break
        end(out, begun, "" if number % 2 else f"sku {number}")
    assert 19 <= number < 25


def test_a_tenth_of_failures_opens_nothing(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    for number in range(300):
        begun = begin(out)
        end(out, begun, "" if number % 10 else f"sku {number}")
    assert begin(out)[1].word == GO


@undisturbed()
def test_one_probe_for_all_and_its_success_closes(opened: Opened, anywhere: redis.Redis | None) -> None:
    prefix = f"same-{time.monotonic_ns()}"  # of this telling: the one before may have left a probe under way
    out = opened(anywhere, prefix=prefix, open_seconds=0.2)
    other = opened(anywhere, prefix=prefix, open_seconds=0.2).transport if anywhere else out.transport
    fail(out.transport, *"12345")
    began = time.monotonic()
    probes: list[tuple[str, Verdict]] = []

    def probed() -> bool:
        begun = begin(out.transport)
        if begun[1].word == GO:
            probes.append(begun)
        return bool(probes)

    until(probed)
    took = time.monotonic() - began
    assert took > 0.15
    in_time(took < 0.4, took)
    assert probes[0][1].probe
    assert begin(other)[1].word == begin(out.transport)[1].word == OPEN
    assert out.transport.circuits.status("a")[0].state == "half-open"
    end(out.transport, probes[0])
    assert begin(other)[1].word == GO
    assert [change.state for change in out.changes] == ["open", "closed"]
    assert out.transport.circuits.status("a") == []


def test_a_probe_that_fails_doubles_the_time_up_to_the_longest(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere, open_seconds=0.05, longest_seconds=0.15)
    fail(out.transport, *"12345")
    for _ in range(3):
        probes: list[tuple[str, Verdict]] = []
        until(lambda probes=probes: (probes.append(begin(out.transport)), probes[-1][1].word == GO)[1])
        end(out.transport, probes[-1], "1")
    assert [round(change.reopens_in, 3) for change in out.changes] == [0.05, 0.1, 0.15, 0.15]


def test_a_refused_probe_gives_way_to_the_next(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere, open_seconds=0.02).transport
    fail(out, *"12345")
    begun: list[tuple[str, Verdict]] = []
    until(lambda: (begun.append(begin(out)), begun[-1][1].word == GO)[1])
    out.circuits.refused(NAME, *begun[-1])
    _, verdict = begin(out)
    assert (verdict.word, verdict.probe) == (GO, True)


def test_as_many_good_probes_as_asked_for_close_it(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere, open_seconds=0.02, probes=3)
    fail(out.transport, *"12345")
    begun: list[tuple[str, Verdict]] = []
    until(lambda: (begun.append(begin(out.transport)), begun[-1][1].word == GO)[1])
    end(out.transport, begun[-1])
    for _ in range(2):
        assert len(out.changes) == 1
        again = begin(out.transport)
        assert again[1].probe
        assert begin(out.transport)[1].word == OPEN
        end(out.transport, again)
    assert [change.state for change in out.changes] == ["open", "closed"]


def test_what_ends_late_changes_nothing(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere, open_seconds=0.02)
    late = [begin(out.transport) for _ in range(8)]
    fail(out.transport, *"12345")
    for number, begun in enumerate(late[:6]):
        end(out.transport, begun, f"late {number}")
    end(out.transport, late[6])
    assert len(out.changes) == 1
    probe: list[tuple[str, Verdict]] = []
    until(lambda: (probe.append(begin(out.transport)), probe[-1][1].word == GO)[1])
    end(out.transport, late[7])
    assert begin(out.transport)[1].word == OPEN, "only the probe decides"
    end(out.transport, probe[-1])
    assert begin(out.transport)[1].word == GO


@undisturbed(AssertionError, pause=0.3)
def test_a_call_that_ran_into_its_deadline_makes_the_circuit_suspect_which_is_no_opening(
    opened: Opened, anywhere: redis.Redis | None
) -> None:
    out = opened(anywhere)
    overrun(out.transport, begin(out.transport), "1")
    _, verdict = begin(out.transport)
    assert (verdict.word, verdict.probe) == (SUSPECT, False)
    assert 0 < verdict.wait <= 1
    assert begin(out.transport, Name("b", "vtex", "g"))[1].word == GO
    assert out.transport.circuits.status("a") == out.changes == []
    assert out.transport.circuits.shut_for("a") is None


def test_no_other_failure_makes_it_suspect(opened: Opened, anywhere: redis.Redis | None) -> None:
    out = opened(anywhere).transport
    fail(out, "1", "2")
    assert begin(out)[1].word == GO


@undisturbed(AssertionError, pause=0.3)
def test_a_success_of_a_call_that_was_under_way_ends_the_suspicion(
    opened: Opened, anywhere: redis.Redis | None
) -> None:
    out = opened(anywhere).transport
    slow, early = begin(out), begin(out)
    overrun(out, slow, "1")
    assert begin(out)[1].word == SUSPECT
    end(out, early)
    fail(out, "2", "3", "4", "5")
    assert begin(out)[1].word == GO, "and the count began anew"


@undisturbed(AssertionError, pause=0.3)
def test_another_answer_ends_it_too_and_leaves_the_failures_counted(
    opened: Opened, anywhere: redis.Redis | None
) -> None:
    out = opened(anywhere).transport
    begun = [begin(out) for _ in range(6)]
    for number in range(4):
        overrun(out, begun[number], str(number))
    out.circuits.refused(NAME, *begun[4])
    assert begin(out)[1].word == SUSPECT, "a call that never started tells nothing"
    out.circuits.refused(NAME, *begun[5], answered=True)
    fail(out, "5")
    assert begin(out)[1].word == OPEN


@undisturbed()
def test_suspicion_passes_after_a_tenth_of_the_deadline_and_a_second_at_most(
    opened: Opened, anywhere: redis.Redis | None
) -> None:
    for deadline, due in ((3.0, 0.3), (30.0, 1.0)):
        out = opened(anywhere).transport
        begun = begin(out)
        began = time.monotonic()
        overrun(out, begun, "1", deadline=deadline)
        told = time.monotonic()
        until(lambda out=out: begin(out)[1].word == GO)
        assert time.monotonic() - began > due - 0.01
        in_time(time.monotonic() - told < due + 0.1)


@undisturbed(AssertionError, pause=0.3)
def test_a_short_deadline_does_not_end_the_suspicion_of_a_longer_one(
    opened: Opened, anywhere: redis.Redis | None
) -> None:
    out = opened(anywhere).transport
    slow, quick = begin(out), begin(out)
    overrun(out, slow, "1", deadline=30.0)
    overrun(out, quick, "2", deadline=1.0)
    assert begin(out)[1].wait > 0.3


def test_five_calls_that_ran_into_their_deadline_open_it_and_what_follows_changes_nothing(
    opened: Opened, anywhere: redis.Redis | None
) -> None:
    out = opened(anywhere, open_seconds=0.05)
    begun = [begin(out.transport) for _ in range(8)]
    for number, one in enumerate(begun[:5]):
        assert out.changes == []
        overrun(out.transport, one, str(number))
    assert [change.state for change in out.changes] == ["open"]
    overrun(out.transport, begun[5], "late")
    probe: list[tuple[str, Verdict]] = []
    until(lambda: (probe.append(begin(out.transport)), probe[-1][1].word == GO)[1])
    overrun(out.transport, probe[-1], "the probe")
    opens = [round(change.reopens_in, 3) for change in out.changes]
    assert opens == [0.05, 0.1], "a probe's deadline is that of any probe that fails"
    until(lambda: (probe.append(begin(out.transport)), probe[-1][1].word == GO)[1])
    end(out.transport, probe[-1])
    assert begin(out.transport)[1].word == GO


@undisturbed(AssertionError, pause=0.3)
def test_whoever_heard_of_a_suspicion_ends_it_by_a_success(opened: Opened, server: redis.Redis) -> None:
    one, two = (opened(server, prefix="same").transport for _ in range(2))
    early, slow = begin(one), begin(two)
    overrun(two, slow, "1")
    assert begin(one)[1].word == SUSPECT
    end(one, early)
    assert begin(one)[1].word == begin(two)[1].word == GO


def test_a_success_that_an_older_worker_tells_ends_it_for_all(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    overrun(out, begin(out), "1")
    server.delete(out.circuits.keys(NAME)[1])  # all that older versions do
    assert begin(out)[1].word == GO


def test_a_success_costs_one_trip_more_only_when_somebody_is_waiting_for_it(
    opened: Opened, server: redis.Redis
) -> None:
    counting = Counting(server)
    out = opened(counting).transport
    for _ in range(3):
        end(out, begin(out))
    assert counting.asked == 3
    early, late, slow = begin(out), begin(out), begin(out)
    overrun(out, slow, "1")
    assert counting.asked == 3 + 3 + 1
    end(out, early)
    assert counting.asked == 3 + 3 + 1 + 1
    end(out, late)
    end(out, begin(out))
    assert counting.asked == 3 + 3 + 1 + 1 + 1


@undisturbed(AssertionError, pause=0.3)
def test_a_call_waits_for_an_answer_to_another_one_and_then_goes(
    opened: Opened, server: redis.Redis, peer: Server
) -> None:
    peer.seen.clear()
    counting = Counting(server)
    out = opened(counting)
    early, slow = begin(out.transport, OWN), begin(out.transport, OWN)
    vtex = out.transport.peer("a", "vtex", peer.url, account="vtex:acme")
    overrun(out.transport, slow, "1", OWN)
    before = counting.asked
    asking = threading.Thread(target=call, args=(vtex, "2"))
    asking.start()
    until(lambda: counting.asked > before)
    end(out.transport, early, name=OWN)
    asking.join(60)
    assert len(peer.seen) == 1
    assert [(told.status, told.error) for told in out.calls] == [(200, None)]
    assert out.calls[0].waited > 0


@undisturbed(AssertionError, pause=0.3)
def test_a_suspicion_that_does_not_end_is_not_now_and_spends_no_attempt(opened: Opened, peer: Server) -> None:
    peer.seen.clear()
    out = opened().transport
    vtex = out.peer("a", "vtex", peer.url, account="vtex:acme")
    slow = [begin(out, OWN) for _ in range(200)]
    came: list[NotNow | None] = []

    def ask() -> None:
        try:
            call(vtex, "2")
        except CircuitOpen as shut:
            came.append(shut)
        else:
            came.append(None)

    overrun(out, slow.pop(), "sku 7", OWN)
    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive():
        overrun(out, slow.pop(), "sku 7", OWN)
        asking.join(0.1)
    assert isinstance(came[0], NotNow), "which never spends an attempt"
    assert 0 < came[0].wait <= 1
    assert peer.seen == []


def test_a_mapper_that_is_asked_by_another_call_just_now_is_not_now_and_one_that_is_left_alone_is_away(
    opened: Opened, peer: Server
) -> None:
    peer.seen.clear()
    name = Name("a", "vtex", "mapper")
    for open_seconds, error in ((0.02, NotNow), (30.0, MapperAway)):
        out = opened(None, open_seconds=open_seconds).transport
        mapper = CategoryMapper(out.peer("a", "vtex", peer.url, account="mapper:acme"))
        for number in range(5):
            end(out, begin(out, name), str(number), name)
        if error is NotNow:
            until(lambda out=out: begin(out, name)[1].word == GO)
        with pytest.raises(error) as raised:
            mapper.remote("9")
        assert type(raised.value) is error
        assert getattr(raised.value, "scope", "key") == "key", "others may know their categories"
    assert peer.seen == []


def test_only_a_call_that_the_peer_kept_waiting_makes_it_suspect(
    opened: Opened, server: redis.Redis, peer: Server
) -> None:
    over = threading.Event()
    for behaviour, suspect in (
        (lambda *_: over.wait(60), True),
        (cut, False),
        (answer(503), False),
        (answer(504), False),
        (answer(200, b"{"), False),
    ):
        out = opened(server).transport
        peer.behaviour = behaviour
        vtex = out.peer("a", "vtex", peer.url, account="vtex:acme", total=0.3 if suspect else 15.0)
        try:
            call(vtex, "1")
        except Unavailable:
            pass
        assert server.hexists(out.circuits.keys(OWN)[0], "suspect") is suspect
    over.set()


def test_other_stores_sides_and_groups_have_their_own(opened: Opened, server: redis.Redis) -> None:
    out = opened(server).transport
    fail(out, *"12345")
    for name in (Name("b", "vtex", "g"), Name("a", "marketplace", "g"), Name("a", "vtex", "other")):
        assert begin(out, name)[1].word == GO


def test_calls_run_at_the_same_time(opened: Opened, server: redis.Redis, peer: Server) -> None:
    """pybreaker alone holds its lock during a call."""
    arrived = threading.Barrier(8)

    def together(connection: object, seen: object) -> None:
        arrived.wait(60)
        answer()(connection, seen)

    peer.behaviour = together
    vtex = opened(server).transport.peer("a", "vtex", peer.url, account="vtex:acme")
    threads = [threading.Thread(target=lambda: vtex.request("GET", "/x", operation="x")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert peer.most_at_once == 8


def call(vtex: Peer, key: str) -> None:
    token = calling.set(Calling("a", "stock", key=key))
    try:
        vtex.request("GET", f"/sku/{key}", operation="sku")
    finally:
        calling.reset(token)


def test_it_works_while_redis_goes_away_and_comes_back(opened: Opened, peer: Server) -> None:
    with scratch("circuits-") as directory, Valkey(directory / "valkey", durable=False) as valkey:
        out = opened(valkey.url, open_seconds=2.0)
        vtex = out.transport.peer("a", "vtex", peer.url, account="vtex:acme")
        call(vtex, "1")
        valkey.kill()
        peer.behaviour = cut
        for key in "12345":
            with pytest.raises(Unavailable):
                call(vtex, key)
        assert len(peer.seen) == 6
        with pytest.raises(CircuitOpen):
            call(vtex, "6")
        assert len(peer.seen) == 6
        assert [circuit.state for circuit in out.transport.circuits.status("a")] == ["open"]
        peer.behaviour = answer()

        def works() -> bool:
            try:
                call(vtex, "7")
            except (CircuitOpen, Throttled):
                return False
            return True

        until(works)
        assert [change.state for change in out.changes] == ["open", "closed"]
        valkey.start()
        until(lambda: works() and not out.transport.board.away)
        peer.behaviour = cut
        for key in "12345":
            with pytest.raises(Unavailable):
                call(vtex, key)
        with pytest.raises(CircuitOpen):
            call(vtex, "6")
        with redis.Redis.from_url(valkey.url) as client:
            assert any(b":circuit:a:vtex:default" in key for key in client.scan_iter())


def test_an_open_circuit_stays_open_when_redis_goes_away(opened: Opened) -> None:
    with scratch("circuits-") as directory, Valkey(directory / "valkey", durable=False) as valkey:
        out = opened(valkey.url).transport
        fail(out, *"12345")
        assert begin(out)[1].word == OPEN
        valkey.kill()
        _, verdict = begin(out)
        assert verdict.word == OPEN
        assert 25 < verdict.wait <= 30


def test_a_listener_that_breaks_breaks_nothing(server: redis.Redis) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("no")

    out = Transport(server, "t", on_circuit=broken, observer=broken)
    fail(out, *"12345")
    assert begin(out)[1].word == OPEN
    out.close()


def test_every_script_lists_the_keys_it_touches() -> None:
    import hub.circuits

    folder = Path(hub.circuits.__file__).parent
    scripts = sorted(folder.glob("*.lua"))
    assert [script.name for script in scripts] == ["admit.lua", "circuit.lua", "hold.lua", "late.lua", "room.lua"]
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        head, _, code = text.partition("\nlocal ")
        for number in range(1, 8):
            assert (f"KEYS[{number}]" in code) <= (f"KEYS[{number}]" in head), (script.name, number)
    assert Circuits  # the scripts belong to it
