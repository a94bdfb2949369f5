"""A wrong wall clock for one process: with this folder on PYTHONPATH every Python starts CHAOS_CLOCK_AHEAD seconds off.

The monotonic clock and PostgreSQL's stay right, as on a machine whose time was never set.
"""

import datetime
import os
import time
from datetime import datetime as right

AHEAD = float(os.environ.get("CHAOS_CLOCK_AHEAD", "0"))
_time, _time_ns = time.time, time.time_ns


class _Kind(type):
    """A datetime made in C is still an instance."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, right)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, right)


class _Ahead(right, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> right:  # type: ignore[override]  # plain ones in and out
        return right.now(tz) + datetime.timedelta(seconds=AHEAD)

    @classmethod
    def utcnow(cls) -> right:  # type: ignore[override]  # as above
        return right.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=AHEAD)

    @classmethod
    def today(cls) -> right:  # type: ignore[override]  # as above
        return cls.now()


if AHEAD:
    time.time = lambda: _time() + AHEAD
    time.time_ns = lambda: _time_ns() + int(AHEAD * 1e9)
    _Ahead.__name__ = _Ahead.__qualname__ = "datetime"
    _Ahead.__module__ = "datetime"
    datetime.datetime = _Ahead  # type: ignore[misc]  # that is what this file is for
