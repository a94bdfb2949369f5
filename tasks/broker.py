"""Redis as a broker that may go away: a worker outlives it and asks again, whatever it was holding.

kombu 5.7 gives the messages it holds back to Redis while it closes a broken connection. That needs the connection which
is gone, ends in an `AttributeError` that Celery takes for unrecoverable, and the worker dies. Our messages only wake
workers up: nothing has to be given back, the sweep wakes for whatever is pending (design 2, law 4).
"""

from __future__ import annotations

from kombu.transport import redis


class Channel(redis.Channel):
    """A channel that gives nothing back when it closes."""

    do_restore = False


class Transport(redis.Transport):
    """kombu's Redis transport with that channel."""

    Channel = Channel
