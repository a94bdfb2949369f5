"""The crew: everybody's calls in turns, nobody with more than its share, whatever happens to them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hub.crew import Crew


@contextmanager
def crew(threads: int) -> Iterator[Crew]:
    opened = Crew(threads)
    try:
        yield opened
    finally:
        opened.close()


def in_background(what) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_answers_come_in_the_order_of_the_questions() -> None:
    with crew(8) as calls:
        assert calls.each("a", lambda n: n * n, range(100)) == [n * n for n in range(100)]
        assert calls.each("a", lambda n: n, []) == []


def test_the_first_error_is_raised_when_all_have_ended_and_the_crew_goes_on() -> None:
    seen = []

    def fragile(number: int) -> int:
        seen.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    with crew(4) as calls:
        with pytest.raises(ValueError, match="three"):
            calls.each("a", fragile, range(10))
        assert sorted(seen) == list(range(10))
        assert calls.each("a", abs, [-1, -2]) == [1, 2]


def test_an_owner_that_gets_no_answers_holds_its_share_and_no_more() -> None:
    answers, reached = threading.Event(), threading.Semaphore(0)
    count = []

    def hanging(number: int) -> int:
        count.append(number)
        reached.release()
        answers.wait(30)
        return number

    with crew(8) as calls:
        stuck = in_background(lambda: calls.each("hung", hanging, range(100)))
        for _ in range(5):
            assert reached.acquire(timeout=10)
        for _ in range(5):
            assert calls.each("well", abs, [-1] * 50) == [1] * 50
        assert len(count) == 5, "its own thread and half of the crew, and not one more while others work"
        answers.set()
        stuck.join(60)
        assert len(count) == 100


def test_work_that_waits_is_done_by_as_many_as_the_share_allows() -> None:
    go = threading.Event()
    lock = threading.Lock()
    most = running = 0

    def note(_: int) -> None:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
            if most == 4:
                go.set()
        assert go.wait(30)
        with lock:
            running -= 1

    with crew(6) as calls:
        calls.each("a", note, range(40), line="one")
    assert most == 4, "its own thread and half of the crew"


def test_the_lines_of_an_owner_and_the_owners_take_turns() -> None:
    """One thread helps: whoever asks gets it by turns, although one of them asked long before."""
    order: list[str] = []
    lock = threading.Lock()
    begun, go = threading.Event(), threading.Event()

    def note(which: str) -> None:
        with lock:
            order.append(threading.current_thread().name.partition("-")[0] + which)
        begun.set()
        assert go.wait(30)
        time.sleep(0.03)  # longer than a helper's turn

    with crew(1) as calls:
        asked = [("much", "x", 30), ("much", "y", 8), ("little", "", 8)]
        threads = []
        for owner, line, count in asked:
            threads.append(
                in_background(
                    lambda owner=owner, line=line, count=count: calls.each(
                        owner, note, [owner + line] * count, line=line, share=1.0
                    )
                )
            )
            assert begun.wait(60)
        ends = time.monotonic() + 60
        while len(order) < 4 and time.monotonic() < ends:
            time.sleep(0.001)
        go.set()
        for thread in threads:
            thread.join(60)
    helped = [which for which in order if which.startswith("call")][1:7]
    assert {"calllittle", "callmuchy", "callmuchx"} <= set(helped), order


def test_after_closing_whoever_called_goes_on_alone() -> None:
    opened = Crew(2)
    opened.close()
    assert opened.each("a", abs, [-1]) == [1]
    with pytest.raises(RuntimeError):
        opened.each("a", abs, [-1, -2])


def test_a_crew_that_closes_in_the_middle_loses_nothing() -> None:
    opened = Crew(2)
    begun = threading.Event()

    def slow(number: int) -> int:
        begun.set()
        if number == 0:
            opened.close()
        return number

    assert opened.each("a", slow, range(50)) == list(range(50))
    assert begun.is_set()
