"""An error that nobody foresaw, where going on matters more than what it spoils: it is told, and nothing ends of it.

A thread that follows something in the background would otherwise die in silence, and its process live on, blind.
"""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass, field

AGAIN_SECONDS = 60.0
"""The same error of the same doing is told once in so long."""

KEPT = 100
"""Different errors that are remembered as told."""


@dataclass(slots=True)
class Unforeseen:
    """Tells errors to `log` with type and place only: a message may quote what came from outside. Thread-safe."""

    log: logging.Logger
    _told: dict[tuple[str, str], float] = field(default_factory=dict)

    def tell(self, doing: str, error: BaseException) -> None:
        """Say what was being done when it came, unless that was said within the last minute."""
        told, now = (doing, type(error).__name__), time.monotonic()
        if now < self._told.get(told, 0.0):
            return
        if len(self._told) >= KEPT:
            self._told.clear()
        self._told[told] = now + AGAIN_SECONDS
        where = "".join(traceback.format_tb(error.__traceback__, limit=-4))
        self.log.error("%s: unexpected %s\n%s", doing, type(error).__name__, where)
