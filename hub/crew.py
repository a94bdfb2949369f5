"""The threads of one process that make outgoing calls: shared out in turns, and no owner gets more than its share.

Who has much to do therefore keeps nobody waiting, and a peer that answers nothing holds a part of the threads at most:
the calls under way when it stopped answering are all that ever reach it before its circuit opens.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

TURN = 0.02
"""Seconds after which a helper asks whose turn it is; work that ends at once is not handed about one by one."""


@dataclass(slots=True, eq=False)
class _Batch:
    """What one caller wants done, and who helps it."""

    what: Callable[[Any], Any]
    todo: deque[tuple[int, Any]]
    answers: list[Any]
    helpers: int = 0
    fault: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def work(self, seconds: float = float("inf")) -> None:
        """Do what is left, for so long."""
        ends = time.monotonic() + seconds
        while True:
            try:
                place, thing = self.todo.popleft()
            except IndexError:
                return
            try:
                self.answers[place] = self.what(thing)
            except BaseException as fault:  # noqa: BLE001 – raised where it is waited for
                self.fault = self.fault or fault
            if time.monotonic() >= ends:
                return


@dataclass(slots=True, eq=False)
class _Line:
    """One kind of work of one owner: the batches that could do with a helper, each as often as it asked."""

    owner: Hashable
    most: int
    waiting: deque[_Batch] = field(default_factory=deque)
    listed: bool = False


class Crew:
    """`threads` for calls. Lines take turns; together the lines of one owner get a share of the threads at most."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lines: dict[Hashable, _Line] = {}
        self._running: Counter[Hashable] = Counter()
        self._turns: deque[_Line] = deque()  # lines with work that may start, each once
        self._changed = threading.Condition()
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._help, name=f"call-{number}", daemon=True).start()

    def each(
        self,
        owner: Hashable,
        what: Callable[[Any], Any],
        things: Sequence[Any],
        *,
        line: Hashable = "",
        share: float = 0.5,
    ) -> list[Any]:
        """Do it for each, together: in this thread and those of the crew; the answers in order.

        The first error is raised when all have ended. The owner has `share` of the crew at the same time at most; its
        lines have their turns like anybody's.
        """
        batch = _Batch(what, deque(enumerate(things)), [None] * len(things))
        if len(things) > 1:
            with self._changed:
                if self._closed:
                    raise RuntimeError("the crew is closed")
                place = (owner, line)
                self._lines.setdefault(place, _Line(owner, max(1, round(share * self._threads))))
                self._ask(self._lines[place], batch)
        batch.work()
        with self._changed:
            waiting = batch.helpers > 0
        if waiting:
            batch.done.wait()
        if batch.fault is not None:
            raise batch.fault
        return batch.answers

    def close(self) -> None:
        """Help nobody any more; whoever called goes on alone."""
        with self._changed:
            self._closed = True
            self._turns.clear()
            self._changed.notify_all()

    def _ask(self, line: _Line, batch: _Batch) -> None:
        """One more helper for this batch, while it has anything left to do."""
        if len(batch.todo) > line.waiting.count(batch):
            line.waiting.append(batch)
            self._list(line)

    def _list(self, line: _Line) -> None:
        """Give the line its turn, when it has work and its owner has threads left."""
        while line.waiting and not line.waiting[0].todo:
            line.waiting.popleft()
        if line.waiting and not line.listed and self._running[line.owner] < line.most:
            line.listed = True
            self._turns.append(line)
            self._changed.notify()

    def _help(self) -> None:
        while (taken := self._take()) is not None:
            line, batch = taken
            batch.work(TURN)
            with self._changed:
                self._ask(line, batch)
                batch.helpers -= 1
                if not batch.helpers:
                    batch.done.set()
                self._leave(line)

    def _take(self) -> tuple[_Line, _Batch] | None:
        with self._changed:
            while not self._closed:
                if not self._turns:
                    self._changed.wait()
                    continue
                line = self._turns.popleft()
                line.listed = False
                while line.waiting and not line.waiting[0].todo:
                    line.waiting.popleft()
                if not line.waiting or self._running[line.owner] >= line.most:
                    self._forget(line)
                    continue
                batch = line.waiting.popleft()
                batch.helpers += 1
                batch.done.clear()
                self._running[line.owner] += 1
                self._ask(line, batch)  # each calls the next two, so that all are there at once where work waits
                self._ask(line, batch)
                self._list(line)
                return line, batch
            return None

    def _leave(self, line: _Line) -> None:
        """A helper of this owner is free: whichever of its lines has work gets a turn."""
        self._running[line.owner] -= 1
        for other in [one for one in self._lines.values() if one.owner == line.owner]:
            self._list(other)
            self._forget(other)
        if not self._running[line.owner]:
            del self._running[line.owner]

    def _forget(self, line: _Line) -> None:
        if not line.waiting and not line.listed and not self._running[line.owner]:
            for place in [place for place, one in self._lines.items() if one is line]:
                del self._lines[place]
