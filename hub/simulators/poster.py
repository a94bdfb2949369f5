"""Posts from a simulator to the hub: many at once over kept connections, each sent once, never again.

The promise: `post` returns the status that came back, or 0 when none came within the time-out.
"""

import asyncio
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

IDLE_SECONDS = 2.0  # older kept connections are dropped: the peer may be about to close them


class _Connection(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[int] | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.open = True
        self.keep = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without being a subclass

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        self.keep = self.parser.should_keep_alive()
        self.parser = httptools.HttpResponseParser(self)
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 – asyncio's signature
        self.open = False
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(0)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    async def ask(self, request: bytes) -> int:
        if self.transport is None or not self.open:
            return 0
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


@dataclass(slots=True)
class Poster:
    """A small HTTP client for JSON posts, at most `connections` at once.

    Args:
        connections: requests in flight at most; the others wait their turn.
        timeout: seconds for one post, connecting included.
    """

    connections: int = 32
    timeout: float = 10.0
    _turns: asyncio.Semaphore = field(init=False)
    _idle: dict[tuple[str, int, bool], list[_Connection]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._turns = asyncio.Semaphore(self.connections)

    async def post(self, url: str, body: bytes) -> int:
        """Post JSON once. Returns the status; 0: refused, cut, timed out, or no usable URL."""
        parts = urlsplit(url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return 0
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return 0
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"User-Agent: vtex-simulator\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        peer = (parts.hostname, port, parts.scheme == "https")
        connection: _Connection | None = None
        async with self._turns:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self.timeout):
                    connection = self._kept(peer) or await self._connected(peer)
                    status = await connection.ask(head.encode() + body)
                    if status and connection.keep:
                        connection.idle_since = time.monotonic()
                        self._idle.setdefault(peer, []).append(connection)
                    else:
                        connection.close()
                    return status
        if connection is not None:
            connection.close()
        return 0

    def close(self) -> None:
        """Close the kept connections."""
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()

    def _kept(self, peer: tuple[str, int, bool]) -> _Connection | None:
        kept = self._idle.get(peer, [])
        while kept:
            connection = kept.pop()
            if connection.open and time.monotonic() - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connected(self, peer: tuple[str, int, bool]) -> _Connection:
        host, port, tls = peer
        context = ssl.create_default_context() if tls else None
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port, ssl=context)
        return connection
