"""Waiting for what must become true, with a deadline instead of a fixed sleep."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path


def until(truth: Callable[[], object], *, within: float = 60.0, what: str = "it") -> None:
    """Return as soon as `truth()` is true; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not truth():
        assert time.monotonic() < deadline, f"{what} did not become true within {within:g} s"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return True
