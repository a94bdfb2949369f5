"""Nothing outlives the process that started it, not even when that one is killed with SIGKILL.

Two means, because neither is enough alone:

- `dies_with_parent`: on Linux the kernel signals a child when its parent ends. At once, but only the child itself,
  and only on Linux.
- `Guardian`: a small process of its own session that holds the reading end of a pipe. When the pipe closes, it ends
  whatever it was told to watch, stage by stage, and then their whole process groups. Everywhere, grandchildren too.

This file also is the guardian's program (started by path, so it must import nothing but the standard library).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PATIENCE = 8.0
"""The longest, in seconds, that a guardian waits for one stage before it kills it."""


def dies_with_parent(sent: signal.Signals) -> Callable[[], None] | None:
    """Return what a child runs before exec so that it gets signal `sent` when its parent ends; None outside Linux.

    Linux ties this to the *thread* that forks: start processes from the main thread, or from one that lives as long
    as they should. A program that changes its user after exec loses it; `subprocess` changes it before, which is fine.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, int(sent))
        if os.getppid() != parent:  # the parent ended before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange


class Guardian:
    """Ends the watched process groups once this process is gone, however it went."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C, or a kill of our group, must not reach it
        )

    @property
    def pid(self) -> int:
        """The guardian's process id."""
        return self._program.pid

    def watch(self, pid: int, *, stage: int, stop_signal: signal.Signals) -> None:
        """From now on end the process (the leader of its own group) too; lower stages are ended first."""
        self._tell(f"+ {pid} {stage} {int(stop_signal)}\n")

    def forget(self, pid: int) -> None:
        """The process has ended; its id may soon belong to somebody else."""
        self._tell(f"- {pid}\n")

    def close(self) -> None:
        """Let the guardian go; whatever is still watched ends now."""
        if self._program.stdin is not None:
            self._program.stdin.close()
        self._program.wait()

    def _tell(self, line: str) -> None:
        # A guardian that somebody killed guards nothing any more; the work itself goes on, and Linux has the kernel.
        with contextlib.suppress(BrokenPipeError):
            if self._program.stdin is not None:
                self._program.stdin.write(line.encode())


class _Watched(NamedTuple):
    pid: int
    stage: int
    stop_signal: int


def _listen(lines: Iterable[str]) -> list[_Watched]:
    watched: dict[int, _Watched] = {}
    for line in lines:
        match line.split():
            case ["+", pid, stage, stop_signal]:
                watched[int(pid)] = _Watched(int(pid), int(stage), int(stop_signal))
            case ["-", pid]:
                watched.pop(int(pid), None)
    return list(watched.values())


def alive(pid: int) -> bool:
    """Whether the process exists and is more than a zombie, which whoever should reap it may never do."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123 – pathlib would double the guardian's start
            return stat.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return True


def _end(watched: list[_Watched]) -> None:
    for stage in sorted({one.stage for one in watched}):
        members = [one for one in watched if one.stage == stage]
        for one in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, one.stop_signal)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and any(alive(one.pid) for one in members):
            time.sleep(0.02)
        for one in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(one.pid, signal.SIGKILL)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    _end(_listen(sys.stdin))
