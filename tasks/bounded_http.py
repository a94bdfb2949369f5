"""HTTP for strangers: whoever sends endless headers, or sends for too long, is told so and cut off.

uvicorn bounds neither the size of a request's head nor the time a request may take to arrive; this protocol does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

Refused = Callable[[str], None]
"""Told why a request was refused, in the words of the metrics."""

_LOOK_SECONDS: Final = 0.5


def _worth_telling(record: logging.LogRecord) -> bool:
    # Said of a sender that resets its connection while it is answered; strangers must not fill the log with it.
    return "without completing response" not in record.msg


logging.getLogger("uvicorn.error").addFilter(_worth_telling)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may take: bytes of its head and body, seconds until all of it is here, bodies at a time."""

    head_bytes: int = 32 * 1024
    body_bytes: int = 256 * 1024
    arrival_seconds: float = 10.0
    bodies: int = 512


def bounded(bounds: Bounds, refused: Refused) -> type[asyncio.Protocol]:
    """A protocol class for `uvicorn.Config(http=...)` that keeps `bounds`."""

    class Bounded(_BoundedProtocol):
        _bounds = bounds
        _refused = staticmethod(refused)

    return Bounded


class _BoundedProtocol(HttpToolsProtocol):
    _bounds: Bounds
    _refused: Refused

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._begun: float | None = None  # when the first byte of the request that is arriving came
        self._in_head = True
        self._head_bytes = 0
        self._piece = 0
        self._cut = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._begun = self.loop.time()  # a connection that never sends counts as a request that does not arrive
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._cut:
            return
        if self._begun is None:
            self._begun = self.loop.time()
        self._piece = len(data)
        super().data_received(data)
        if self._in_head and not self._cut and self._begun is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self._bounds.head_bytes:
                self._cut_off(431, "head_too_large", "head", f"send at most {self._bounds.head_bytes} bytes of headers")

    def send_400_response(self, msg: str) -> None:
        if self._cut:  # what follows a refused head is not read at all
            return
        self._refused("no_http")
        cycle = self.cycle
        unanswered = cycle is not None and not cycle.response_complete
        if self.pipeline or (unanswered and (self._in_head or cycle.response_started)):
            self._hang_up()  # a 400 now would be read as the answer to a request before this one
        else:
            super().send_400_response(msg)

    def on_headers_complete(self) -> None:
        if self._cut:
            return
        # A piece may hold much else: only when all that came is too much, the head is measured.
        if (
            self._head_bytes + self._piece > self._bounds.head_bytes
            and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            > self._bounds.head_bytes
        ):
            self._cut_off(431, "head_too_large", "head", f"send at most {self._bounds.head_bytes} bytes of headers")
            return
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._cut:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._begun = None
        self._in_head = True
        self._head_bytes = 0
        if not self._cut:
            super().on_message_complete()

    def _look(self) -> None:
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)
        if self._begun is None or self._cut or self.loop.time() - self._begun < self._bounds.arrival_seconds:
            return
        self._cut_off(408, "slow", "request", f"send the whole request within {self._bounds.arrival_seconds:g} seconds")

    def _cut_off(self, status: int, why: str, field: str, fix: str) -> None:
        self._cut = True
        # While a head arrives, `cycle` is still that of the request before it.
        before = self.cycle is None or self.cycle.response_complete
        if before if self._in_head else not self.cycle.response_started:
            self._refused(why)
            body = json.dumps({"error": f"{field}: {fix}"}).encode()
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: application/json\r\nconnection: close\r\ncontent-length: "
                + str(len(body)).encode()
                + b"\r\n\r\n"
                + body
            )
        self._hang_up()

    def _hang_up(self) -> None:
        self._cut = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever reads the body learns that there is nobody to answer
            self.cycle.message_event.set()
        self.transport.close()
