"""Redis as a broker that may go away: a worker outlives it and asks again, whatever it was holding.

kombu 5.7 keeps unacknowledged messages in Redis, acknowledges them there, and gives them back while it closes a broken
connection. Both need the connection that is gone: they end in an `AttributeError` that Celery takes for unrecoverable,
and the worker dies. Our messages only wake workers up: what a worker holds may be lost, the sweep wakes for whatever is
pending (design 2, law 4). So acknowledgements stay in the worker's memory, where they still bound what it takes.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):
    """A channel that keeps its acknowledgements to itself and gives nothing back when it closes."""

    ack_emulation = False
    do_restore = False
    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """One client per pool of connections: building one for each message costs more than what it sends."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # the stubs know none of it
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[misc]  # as above
        return self._kept


class Transport(redis.Transport):
    """kombu's Redis transport with that channel."""

    Channel = Channel
