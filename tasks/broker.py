"""A broker that may go away: a worker outlives it, finds it again within seconds, whatever it was holding.

Celery tries again after 2, 4, 6 … 30 seconds and gives up for good after a hundred tries; a broker that was away for
half a minute would be back for as long before its workers notice. Ours knock every two seconds and never give up.

kombu 5.7 keeps unacknowledged messages in Redis, acknowledges them there, and gives them back while it closes a broken
connection. Both need the connection that is gone: they end in an `AttributeError` that Celery takes for unrecoverable,
and the worker dies. Our messages only wake workers up: what a worker holds may be lost, the sweep wakes for whatever is
pending (design 2, law 4). So acknowledgements stay in the worker's memory, where they still bound what it takes.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu import Connection
from kombu.transport import redis

KNOCK_SECONDS: Final = 2
"""Seconds between two tries to reach the broker, at most."""

log = logging.getLogger("hub.broker")


class LastingConsumer(Consumer):
    """Celery's consumer, which looks for its broker as long as it takes; says so once, and once when it is back."""

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Connection:
        """The connection for Celery's events, where nobody waits for RabbitMQ's word that it has one.

        Each attempt tells three events, one after the other for all threads of a worker: with a confirmation for each a
        busy machine does a few attempts a second. An event that is lost is only missing from Flower.
        """
        conn = self.app.connection_for_write(url=url, heartbeat=heartbeat)
        conn.transport_options = {**(conn.transport_options or {}), "confirm_publish": False}
        return self.ensure_connected(conn)

    def ensure_connected(self, conn: Connection) -> Connection:
        """The connection, once the broker takes it; ends only with the worker."""
        tries = 0

        def missed(fault: Exception, _interval: float) -> None:
            nonlocal tries
            if tries == 0:
                log.warning("waiting for the broker (%s)", type(fault).__name__)
            tries += 1

        conn.ensure_connection(
            missed,
            None,  # type: ignore[arg-type]  # the stubs do not know that None means for ever
            interval_start=0,
            interval_step=1,
            interval_max=KNOCK_SECONDS,
            callback=maybe_shutdown,
        )
        if tries:
            log.warning("the broker is back, after %d tries", tries)
        self.first_connection_attempt = False
        return conn


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
