"""A closed-loop HTTP driver on raw sockets: so light that the server under test is what is measured."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """What one run saw. Latencies in milliseconds."""

    answered: int
    seconds: float
    p50: float
    p99: float
    statuses: dict[int, int]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


async def _connection(  # noqa: PLR0917 – one caller, below
    host: str,
    port: int,
    path: str,
    body: Callable[[], bytes],
    until: float,
    seen: list[float],
    statuses: dict[int, int],
) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    while time.perf_counter() < until:
        sent = body()
        began = time.perf_counter()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        writer.write(head.encode() + sent)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if length:
            await reader.readexactly(length)
        seen.append(time.perf_counter() - began)
        status = int(answer[9:12])
        statuses[status] = statuses.get(status, 0) + 1
    writer.close()


def closed_loop(host: str, port: int, path: str, body: Callable[[], bytes], *, connections: int, seconds: float) -> Run:
    """Post from so many keep-alive connections, each waiting for its answer, for so long."""

    async def run() -> Run:
        seen: list[float] = []
        statuses: dict[int, int] = {}
        began = time.perf_counter()
        until = began + seconds
        await asyncio.gather(*(_connection(host, port, path, body, until, seen, statuses) for _ in range(connections)))
        took = time.perf_counter() - began
        ordered = sorted(seen)
        return Run(
            len(seen),
            took,
            1000 * ordered[len(ordered) // 2],
            1000 * ordered[int(len(ordered) * 0.99)],
            statuses,
        )

    try:
        import uvloop

        return uvloop.run(run())
    except ImportError:
        return asyncio.run(run())
