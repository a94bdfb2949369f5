"""Measuring promises about time on a machine that may be busy: what is too slow only now and then is the machine's."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import ClassVar, ParamSpec, Self

P = ParamSpec("P")


def quickest(measured: Callable[[], float], *, below: float, above: float = 0.0, tries: int = 5) -> float:
    """The least of several measurements in seconds, as many as it takes to find one below `below`.

    A busy machine makes single ones longer and none shorter. So each must be above `above`, and one below `below`:
    whatever is too slow by itself is so every time.
    """
    found: list[float] = []
    while len(found) < tries and not (found and min(found) < below):
        found.append(measured())
        assert found[-1] > above, f"{found[-1]:.3f} s is too early"
    assert min(found) < below, f"never below {below} s: {found}"
    return min(found)


class Lateness:
    """How much later than they wanted threads of this process got to run, in seconds, at the worst, while it is open.

    The control of a measurement: whatever this machine does to everybody it does to this one too. What other processes
    that took part saw of it is added with `were_late`.
    """

    open: ClassVar[list[Lateness]] = []

    def __init__(self) -> None:
        self.worst = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.open.append(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.open.remove(self)

    def _watch(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            time.sleep(0.001)
            self.worst = max(self.worst, time.monotonic() - began - 0.001)


def were_late(seconds: float) -> None:
    """A process of the story that is told now says how late its threads ran; every open `Lateness` counts it."""
    for control in Lateness.open:
        control.worst = max(control.worst, seconds)


class TooLate(AssertionError):  # noqa: N818 – named for what happened, as in `hub.errors`
    """Something was not in time: by itself, or because the machine did something else."""


def in_time(held: bool, why: object = "") -> None:
    """Assert what a machine that pauses may break; what it may not is asserted as ever."""
    if not held:
        raise TooLate(why)


def undisturbed(
    on: type[AssertionError] = TooLate, *, tries: int = 5, pause: float = 0.01
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A story that is told again when it failed while this machine made threads wait for longer than `pause` seconds.

    Without such a pause, and the last time, it has failed. A story has to begin anew with the same fixtures. `on`: any
    `AssertionError` in a story whose every word takes it that no time passes between its lines.
    """

    def decorate(story: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(story)
        def told(*args: P.args, **kwargs: P.kwargs) -> None:
            for turn in range(tries):
                try:
                    with Lateness() as control:
                        story(*args, **kwargs)
                except on:
                    if turn + 1 == tries or control.worst < pause:
                        raise
                else:
                    return

        return told

    return decorate
