"""Posting notifications as fast as one core can, closed and open loop: so light that the server is what is measured.

Latencies are milliseconds, in the open loop from the moment a request
was due, whether or not a connection was free to send it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import uvloop

FIRST = 1_000_000_000
"""The first SKU id of a run: all of them have the same number of digits."""


@dataclass(slots=True)
class Posted:
    """What one run saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    late: float = 0.0  # ms, the most that the driver itself was late to send: a busy machine

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


def post(path: str, body: bytes) -> bytes:
    """One whole request."""
    return (
        b"POST %s HTTP/1.1\r\nHost: hub.example\r\nUser-Agent: vtex\r\nAccept: */*\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
    )


def requests(paths: list[str], account: str, affiliate: str, start: int) -> Callable[[], bytes]:
    """Whole requests of one size, one new SKU each from `start` on, the paths in turn."""
    body = json.dumps(
        {
            "IdSku": "0123456789",
            "An": account,
            "IdAffiliate": affiliate,
            "DateModified": "2026-08-20T15:11:28.1978783Z",
            "IsActive": True,
            "StockModified": True,
            "PriceModified": False,
            "HasStockKeepingUnitModified": False,
            "HasStockKeepingUnitRemovedFromAffiliate": False,
        }
    ).encode()
    halves = [post(path, body).split(b"0123456789") for path in paths]
    number = start - 1

    def one() -> bytes:
        nonlocal number
        number += 1
        before, after = halves[number % len(halves)]
        return b"%s%010d%s" % (before, number, after)

    return one


class _Connection(asyncio.Protocol):
    """One request at a time; `answered` hears the status and the moment."""

    def __init__(self, answered: Callable[[_Connection, int], None]) -> None:
        self._answered = answered
        self._pieces = b""
        self.transport: asyncio.WriteTransport
        self.since = 0.0
        self.over = False

    def send(self, request: bytes, since: float) -> None:
        self.since = since
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._pieces:
            data = self._pieces + data
        head = data.find(b"\r\n\r\n")
        if head > 0:
            place = data.find(b"ontent-length: ", 0, head)
            if place < 0:
                place = data.lower().find(b"ontent-length: ", 0, head)
            length = int(data[place + 15 : data.find(b"\r", place)]) if place >= 0 else 0
            if len(data) >= head + 4 + length:
                self._pieces = b""
                self._answered(self, int(data[9:12]))
                return
        self._pieces = data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 – asyncio's signature
        if not self.over:
            self._answered(self, 0)


async def _connected(port: int, count: int, answered: Callable[[_Connection, int], None]) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(count):
        transport, connection = await loop.create_connection(lambda: _Connection(answered), "127.0.0.1", port)
        connection.transport = transport
        made.append(connection)
    return made


def closed_loop(port: int, request: Callable[[], bytes], *, connections: int, seconds: float) -> Posted:
    """So many connections, each posting as soon as it was answered, for so long; every answer is awaited."""

    async def run() -> Posted:
        seen = Posted()
        clock = time.perf_counter
        done = asyncio.get_running_loop().create_future()
        open_ones = connections

        def answered(connection: _Connection, status: int) -> None:
            nonlocal open_ones
            now = clock()
            seen.statuses[status] += 1
            if status:
                seen.latencies.append(1000 * (now - connection.since))
                if now < until:
                    connection.send(request(), now)
                    return
            open_ones -= 1
            if not open_ones and not done.done():
                done.set_result(None)

        everybody = await _connected(port, connections, answered)
        began = clock()
        until = began + seconds
        for connection in everybody:
            connection.send(request(), clock())
        await done
        seen.seconds = clock() - began
        _close(everybody)
        return seen

    return uvloop.run(run())


def open_loop(port: int, request: Callable[[], bytes], *, connections: int, rate: float, seconds: float) -> Posted:
    """`rate` a second, evenly, whatever the server does; what is due while all connections wait is sent late."""

    async def run() -> Posted:
        seen = Posted()
        clock = time.perf_counter
        free: deque[_Connection] = deque()
        waiting: deque[float] = deque()
        done = asyncio.get_running_loop().create_future()
        due = total = int(rate * seconds)

        def answered(connection: _Connection, status: int) -> None:
            nonlocal due
            seen.statuses[status] += 1
            seen.latencies.append(1000 * (clock() - connection.since))
            due -= 1
            if waiting and status:
                connection.send(request(), waiting.popleft())
            else:
                free.append(connection)
            if due <= 0 and not done.done():
                done.set_result(None)

        everybody = await _connected(port, connections, answered)
        free.extend(everybody)
        gc.freeze()  # a pause of the driver's own would count as the server's
        began = clock() + 0.01
        sent = 0
        while sent < total:
            # A look each millisecond: uvloop makes no shorter pauses, and spinning takes a core from whom it measures.
            await asyncio.sleep(0.001)
            now = clock()
            while sent < total and (at := began + sent / rate) <= now:
                seen.late = max(seen.late, 1000 * (now - at))
                sent += 1
                if free:
                    free.popleft().send(request(), at)
                else:
                    waiting.append(at)
        await done
        seen.seconds = clock() - began
        _close(everybody)
        return seen

    return uvloop.run(run())


def _close(connections: list[_Connection]) -> None:
    for connection in connections:
        connection.over = True
        connection.transport.abort()
