"""Four real processes, and what of their calls reaches the peer."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.timing import Lateness, in_time, undisturbed, were_late

from .peer import Peer, answer

PROCESSES = 4
_crowds = itertools.count(1)


class Callers:
    """Four processes that wait for the word; how late their threads ran counts as this one's lateness does."""

    def __init__(self, closing: ExitStack, redis_url: tuple[str, str], peer: Peer, **told: Any) -> None:
        url, prefix = redis_url
        prefix = f"{prefix}-{next(_crowds)}"  # nothing is left of those before
        self.processes = []
        for number in range(PROCESSES):
            process = closing.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.transport.caller"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            closing.callback(process.kill)
            self.processes.append(process)
            mine = {"redis": url, "prefix": prefix, "url": peer.url, "name": str(number), **told}
            self._say(process, json.dumps(mine))
        for process in self.processes:
            assert self._hear(process) == "ready"

    def run(self) -> Counter[str]:
        for process in self.processes:
            self._say(process, "go")
        came: Counter[str] = Counter()
        for process in self.processes:
            told = json.loads(self._hear(process))
            came.update(told["came"])
            were_late(told["late"])
        return came

    @staticmethod
    def _say(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    @staticmethod
    def _hear(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def most_in_a_second(times: list[float]) -> int:
    """The most of them in any second."""
    times = sorted(times)
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


@undisturbed()
def test_four_processes_never_exceed_the_limit_in_any_second_and_use_it(
    closing: ExitStack, redis_url: tuple[str, str], peer: Peer
) -> None:
    peer.seen.clear()
    with Lateness() as control:
        came = Callers(closing, redis_url, peer, rate=20, burst=1, seconds=4.0).run()
    assert came["done"] == len(peer.seen)
    most = most_in_a_second(peer.times)
    # Who is late on its way, here or there, meets those who are not.
    assert most <= 20 + 20 * control.worst + 1
    in_time(most <= 20, f"{most} calls in a second")
    in_time(len(peer.seen) >= 4 * 20 * 0.95 * 0.85, f"{len(peer.seen)} calls in all")


@undisturbed()
def test_one_probe_for_four_processes_at_exact_times(
    closing: ExitStack, redis_url: tuple[str, str], peer: Peer
) -> None:
    peer.seen.clear()
    healthy_after = 3  # probes
    failing = answer(503, b"down")
    probes: list[tuple[float, float]] = []
    failures: list[float] = []

    def behave(connection: Any, seen: Any) -> None:
        if len(probes) >= healthy_after:
            answer()(connection, seen)
        elif not failures or seen.at - failures[-1] < 0.6:  # before it opened, or in flight while it did
            failures.append(seen.at)
            failing(connection, seen)
        else:
            time.sleep(0.2)  # everybody else would come now
            failing(connection, seen)
            probes.append((seen.at, time.monotonic()))

    peer.behaviour = behave
    patience = {"open_seconds": 0.8, "longest_seconds": 1.6}
    came = Callers(closing, redis_url, peer, patience=patience, seconds=8.0).run()
    times = sorted(peer.times)
    asked = [at for at, _ in probes]
    assert len(failures) <= 5 + PROCESSES * 3 - 1, "five open it; the others were under way"
    assert len(probes) == healthy_after, "one at a time"
    begun = [max(failures), *(end for _, end in probes)]
    in_time(times[-1] > begun[-1], "nobody tried it again before the end")
    closing_probe = next(at for at in times if at > begun[-1])
    assert [at for at in times if begun[0] < at < closing_probe] == asked, "nobody called while it was open"
    opened = [sorted(failures)[4], *begun[1:]]  # by the fifth at the earliest; what was under way may be seen later
    for at, earliest, latest, due in zip([*asked, closing_probe], opened, begun, [0.8, 1.6, 1.6, 1.6], strict=True):
        assert at - earliest >= due - 0.05
        in_time(at - latest < due + 0.25, f"{at - latest} s instead of {due} s")
    in_time(came["done"] > 100, "it closed for everybody")
    in_time(came["CircuitOpen"] > 100)


@undisturbed()
def test_a_peer_that_begins_to_hang_gets_nothing_beyond_what_was_under_way(
    closing: ExitStack, redis_url: tuple[str, str], peer: Peer
) -> None:
    peer.seen.clear()
    hung: list[str] = []
    threads, over = 5, threading.Event()
    closing.callback(over.set)

    def behave(connection: Any, seen: Any) -> None:
        over.wait(0.05)  # as long as it thinks
        if len(peer.seen) > 200:
            hung.append(seen.path)
            over.wait(60)
        else:
            answer()(connection, seen)

    peer.behaviour = behave
    came = Callers(closing, redis_url, peer, threads=threads, total=4.0, seconds=6.0).run()
    over.set()
    in_time(came["CircuitOpen"] > 100, "it did not open")
    in_time(len(hung) == came["Unavailable"])
    in_time(len(hung) <= PROCESSES * threads, f"{len(hung)} calls hung")


@undisturbed()
def test_after_a_429_no_process_calls_before_the_time(
    closing: ExitStack, redis_url: tuple[str, str], peer: Peer
) -> None:
    peer.seen.clear()
    throttled: list[float] = []

    def behave(connection: Any, seen: Any) -> None:
        if len(peer.seen) > 20 and (not throttled or seen.at - throttled[0] < 1.0):
            throttled.append(seen.at)
            answer(429, b"slow down", Retry_After="2")(connection, seen)
        else:
            answer()(connection, seen)

    peer.behaviour = behave
    came = Callers(closing, redis_url, peer, seconds=4.0).run()
    assert 1 <= len(throttled) <= PROCESSES * 3, "only what was under way"
    after = [at for at in peer.times if at > throttled[-1]]
    in_time(bool(after), "nobody called again before the end")
    assert min(after) - throttled[-1] >= 1.95
    in_time(min(after) - throttled[-1] < 2.3)
    in_time(came["Throttled"] > 100)
    in_time(came["done"] > 30)


@undisturbed()
def test_alternating_failures_seen_by_four_processes_open_it_for_all(
    closing: ExitStack, redis_url: tuple[str, str], peer: Peer
) -> None:
    peer.seen.clear()
    good, failing = answer(), answer(503, b"down")

    def behave(connection: Any, seen: Any) -> None:
        (good if len(peer.seen) % 2 else failing)(connection, seen)

    peer.behaviour = behave
    # One thread each: hardly ever do five distinct keys fail in a row, but half of all calls do.
    patience = {"open_seconds": 30.0, "longest_seconds": 30.0, "failures": 15}
    came = Callers(closing, redis_url, peer, patience=patience, threads=1, seconds=3.0).run()
    in_time(came["CircuitOpen"] > 100, "it did not open")
    assert came["Unavailable"] >= 30, "twice as many distinct failures as in a row"
    assert len(peer.seen) <= 2 * (30 + PROCESSES) + PROCESSES, "nobody called once it was open"
    assert came["done"] >= came["Unavailable"] * 2 // 3
