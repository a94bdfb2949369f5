"""A peer that does exactly what a test says, byte by byte, and remembers what reached it."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True)
class Seen:
    """One request. `at` is the monotonic clock when its head was complete, `by` the number of its connection."""

    at: float
    by: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[socket.socket, Seen], None]


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> Behaviour:
    """A whole answer at once."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    raw = "\r\n".join([*lines, "", ""]).encode() + body
    return lambda connection, _: connection.sendall(raw)


def drip(raw: bytes, pause: float = 0.05, at_once: int = 0) -> Behaviour:
    """The answer's bytes one by one."""

    def dripping(connection: socket.socket, _: Seen) -> None:
        connection.sendall(raw[:at_once])
        for at in range(at_once, len(raw)):
            time.sleep(pause)
            connection.sendall(raw[at : at + 1])

    return dripping


def cut(connection: socket.socket, _: Seen) -> None:
    """No answer, the connection ends."""
    connection.close()


@dataclass
class Peer:
    """`behaviour` may be replaced at any time. `reading` False: connections are accepted and never read."""

    behaviour: Behaviour = field(default_factory=answer)
    reading: bool = True
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: list[socket.socket] = field(default_factory=list)
    _connections: int = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                connection.close()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def times(self) -> list[float]:
        with self._lock:
            return [seen.at for seen in self.seen]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.append(connection)
                self._connections += 1
                number = self._connections
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.reading:
                threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._open.append(connection)
            pending = b""
            while True:
                while b"\r\n\r\n" not in pending:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    pending += piece
                head, _, pending = pending.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                length = int(headers.get("content-length", "0"))
                while len(pending) < length:
                    pending += connection.recv(65536)
                body, pending = pending[:length], pending[length:]
                method, path, _ = first.split(" ", 2)
                seen = Seen(time.monotonic(), number, method, path, headers, body)
                with self._lock:
                    self.seen.append(seen)
                    self.running += 1
                    self.most_at_once = max(self.most_at_once, self.running)
                try:
                    self.behaviour(connection, seen)
                finally:
                    with self._lock:
                        self.running -= 1
        except (OSError, ValueError):
            return
        finally:
            connection.close()


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll until it is true, or fail at the deadline."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "not true in time"
        time.sleep(0.002)
