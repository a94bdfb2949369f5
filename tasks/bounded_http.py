"""HTTP for strangers: whoever sends endless headers, sends for too long or never reads is told so and cut off.

uvicorn bounds neither the size of a request's head and trailers, nor the time a request may take to arrive, nor how
many requests wait on one connection, nor how long an answer waits to be read; this protocol does. An `Upgrade` is
ignored, as RFC 9110 7.8 allows: httptools would take the body of such a request for the next request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httptools
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

Refused = Callable[[str], None]
"""Told why a request was refused, in the words of the metrics."""

_LOOK_SECONDS: Final = 0.5
_PIECE: Final = 2_048  # bytes that are parsed before it is looked how much waits by now
_FRAMING: Final = 16  # bytes that a chunk may need around it
_TOLD_SECONDS: Final = 60.0  # between two lines of the log about refused requests
_HOST: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*[ \t]*")  # RFC 9110 7.2: host and port; none is one too

log = logging.getLogger("hub.http")


def _worth_telling(record: logging.LogRecord) -> bool:
    # Said of a sender that resets its connection while it is answered; strangers must not fill the log with it.
    return "without completing response" not in record.msg


logging.getLogger("uvicorn.error").addFilter(_worth_telling)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What strangers may take.

    Of one request: bytes of its head, of its trailers and chunk extensions, of its body, and seconds until all of it is
    here. Of one connection: requests that wait before no more is read, and seconds for which an answer may wait to be
    read. Of all: bodies that arrive at a time, and how many of these for one store.
    """

    head_bytes: int = 32 * 1024
    body_bytes: int = 256 * 1024
    arrival_seconds: float = 10.0
    bodies: int = 512
    bodies_of_one: int = 128
    waiting: int = 16
    answer_seconds: float = 10.0


def bounded(bounds: Bounds, refused: Refused) -> type[asyncio.Protocol]:
    """A protocol class for `uvicorn.Config(http=...)` that keeps `bounds`."""
    told = _Told()

    def count(why: str) -> None:
        refused(why)
        told.add(why)

    class Bounded(_BoundedProtocol):
        _bounds = bounds
        _refused = staticmethod(count)

    return Bounded


class _Told:
    """One line of the log a minute at most, however many requests are refused."""

    def __init__(self) -> None:
        self._since: Counter[str] = Counter()
        self._next = 0.0

    def add(self, why: str) -> None:
        self._since[why] += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TOLD_SECONDS
            sums = ", ".join(f"{count} {reason}" for reason, count in sorted(self._since.items()))
            log.warning("HTTP requests refused: %s", sums)
            self._since.clear()


class _Flow(FlowControl):
    """Reads no more of a connection on which enough waits, whoever asks for more."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class _BoundedProtocol(HttpToolsProtocol):
    _bounds: Bounds
    _refused: Refused
    flow: _Flow

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
        self._other_bytes = 0  # what came of this head, or after it, and is no body
        self._cut = False
        self._ended = False  # the sender sends no more, and may wait for answers
        self._held: memoryview | None = None  # what came and waits until there is room for its requests
        self._served: RequestResponseCycle | None = None
        self._host: bytes | None = None  # the last one that was in order
        self._asked: tuple[bytes, bytes] | None = None  # method and version of a request that asks for an upgrade
        self._unread: tuple[float, int] | None = None  # since when nothing of the answers is read, and how much
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._begun = self.loop.time()  # a connection that never sends counts as a request that does not arrive
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._cut = True
        self._drop_waiting()
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._cut:
            return
        self._unset_keepalive_if_required()
        if self._held is None and len(data) <= _PIECE:
            self._feed(data)
            if self.pipeline and len(self.pipeline) >= self._bounds.waiting:
                self._hold(None)
        elif self._held is None:
            self._take(memoryview(data))
        else:  # it was under way when reading was paused
            self._held = memoryview(b"".join((self._held, data)))

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's never keeps the connection
        """Whoever sends no more gets the answers to what came whole before that."""
        if not self._ended:
            self._ended = not self._cut and (self._held is not None or self._owes())
        return self._ended

    def resume_writing(self) -> None:
        self._unread = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._served = self.pipeline[-1][0]
        super().on_response_complete()
        if self.flow.full:
            if not self.pipeline:
                self.loop.call_soon(self._go_on)
        elif self._ended and not self.pipeline and self._served is not None and self._served.response_complete:
            self.transport.close()

    def _take(self, data: memoryview) -> None:
        """Parse piece by piece, as long as there is room for what it holds."""
        for start in range(0, len(data), _PIECE):
            self._feed(data[start : start + _PIECE])
            if self._cut:
                return
            if len(self.pipeline) >= self._bounds.waiting:
                self._hold(data[start + _PIECE :] or None)
                return

    def _hold(self, rest: memoryview | None) -> None:
        self._held = rest
        self.flow.pause_reading()
        self.flow.full = True

    def _go_on(self) -> None:
        if self._cut or self.pipeline:
            return
        self.flow.full = False
        held, self._held = self._held, None
        if held is not None:
            self._take(held)
        if self._cut or self.flow.full:
            return
        if not self._ended:
            self.flow.resume_reading()
        elif not self._owes():
            self.transport.close()

    def _owes(self) -> bool:
        """Is there an answer to give, now that nothing more comes? A request that is not whole gets none."""
        cycle = self.cycle
        if self.pipeline:
            if cycle.more_body:
                self.pipeline.popleft()
            return True  # to the one that is served
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _drop_waiting(self) -> None:
        self.pipeline.clear()
        self._held = None

    # ------------------------------------------------------------ the request that is arriving

    def _feed(self, piece: bytes | memoryview) -> None:
        if self._begun is None:
            self._begun = self.loop.time()
        self._other_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._cut:
                self._feed_without_upgrade(bytes(piece[upgrade.args[0] :]))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            if self._other_bytes > self._bounds.head_bytes and not self._cut:
                where = "headers" if self._in_head else "trailers and chunk extensions"
                self._too_large(where)

    def _feed_without_upgrade(self, rest: bytes) -> None:
        """The same request again, for a parser that does not know of the upgrade that it asks for."""
        if self._asked is None:  # CONNECT: what follows it is no HTTP, and is not read
            self._ended = True
            self.flow.pause_reading()
            self.flow.full = True
            return
        method, version = self._asked
        self._asked = None
        lines = [method + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() != b"upgrade")
            if name != b"upgrade" and (value or name != b"connection"):
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._other_bytes = 0
        self._feed(b"\r\n".join([*lines, b"", b""]))
        if rest and not self._cut:
            self._feed(rest)

    def send_400_response(self, msg: str) -> None:
        if self._cut:  # what follows a refused head is not read at all
            return
        self._refused("no_http")
        cycle = self.cycle
        unanswered = cycle is not None and not cycle.response_complete
        if self.pipeline or (unanswered and (self._in_head or cycle.response_started)):
            self._hang_up()  # a 400 now would be read as the answer to a request before this one
        else:
            self._cut = True
            super().send_400_response(msg)

    def on_headers_complete(self) -> None:
        if self._cut:
            return
        if self._begun is None:  # it came in one piece with the end of the request before it
            self._begun = self.loop.time()
        # A piece may hold much else: only when all that came is too much, the head is measured.
        if (
            self._other_bytes > self._bounds.head_bytes
            and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            > self._bounds.head_bytes
        ):
            self._too_large("headers")
            return
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._asked = self.parser.get_method(), self.parser.get_http_version().encode()
            return
        host = None
        for name, value in self.headers:
            if name == b"host":
                if host is not None:
                    self._cut_off(400, "many_hosts", "Host", "send this header once")
                    return
                host = value
        if (host is None or host != self._host) and not self._names_host(host):
            return
        self._in_head = False
        self._other_bytes = 0
        super().on_headers_complete()
        if not self.pipeline:
            self._served = self.cycle
        self.headers = []  # what comes after the body is not one of the request's headers (RFC 9110 6.5.1)

    def _names_host(self, host: bytes | None) -> bool:
        """RFC 9112 3.2. False: the request was refused."""
        if host is None:
            if self.parser.get_http_version() != "1.1":
                return True
            self._cut_off(400, "no_host", "Host", "send this header, as HTTP/1.1 demands")
            return False
        if not _HOST.fullmatch(host):
            self._cut_off(400, "bad_host", "Host", "send a host's name or address, and its port if need be")
            return False
        self._host = host
        return True

    def on_body(self, body: bytes) -> None:
        if not self._cut:
            other = self._other_bytes - len(body) - _FRAMING
            self._other_bytes = other if other > 0 else 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._asked is not None:
            return
        self._begun = None
        self._in_head = True
        self._other_bytes = 0
        if not self._cut:
            super().on_message_complete()

    # ------------------------------------------------------------ the end of patience

    def _look(self) -> None:
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)
        now = self.loop.time()
        waits = self.transport.get_write_buffer_size()
        if self._unread is None or waits < self._unread[1]:
            self._unread = (now, waits) if waits else None
        elif now - self._unread[0] >= self._bounds.answer_seconds:
            self._refused("unread")
            self._hang_up()
            self.transport.abort()  # closing would wait for the reader
            return
        if self._begun is None or self._cut or now - self._begun < self._bounds.arrival_seconds:
            return
        self._cut_off(408, "slow", "request", f"send the whole request within {self._bounds.arrival_seconds:g} seconds")

    def _too_large(self, what: str) -> None:
        self._cut_off(431, "head_too_large", "head", f"send at most {self._bounds.head_bytes} bytes of {what}")

    def _cut_off(self, status: int, why: str, field: str, fix: str) -> None:
        self._cut = True
        self._refused(why)
        # While a head arrives, `cycle` is still that of the request before it.
        before = self.cycle is None or self.cycle.response_complete
        if not self.pipeline and (before if self._in_head else not self.cycle.response_started):
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
        self._drop_waiting()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever reads the body learns that there is nobody to answer
            self.cycle.message_event.set()
        self.transport.close()
