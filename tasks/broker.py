"""Redis as a broker that may go away: a worker outlives it and asks again, whatever it was holding.

kombu 5.7 keeps unacknowledged messages in Redis, acknowledges them there, and gives them back while it closes a broken
connection. Both need the connection that is gone: they end in an `AttributeError` that Celery takes for unrecoverable,
and the worker dies. Our messages only wake workers up: what a worker holds may be lost, the sweep wakes for whatever is
pending (design 2, law 4). So acknowledgements stay in the worker's memory, where they still bound what it takes.
"""

from __future__ import annotations

from kombu.transport import redis


class Channel(redis.Channel):
    """A channel that keeps its acknowledgements to itself and gives nothing back when it closes."""

    ack_emulation = False
    do_restore = False


class Transport(redis.Transport):
    """kombu's Redis transport with that channel."""

    Channel = Channel
