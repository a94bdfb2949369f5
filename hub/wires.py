"""No call outlasts its total deadline, whatever the peer does: name, connection, TLS, request, headers and body.

urllib3 limits only the pause between two bytes, so a peer that drips holds a thread for ever. Here every wait on the
socket of a call gets no more than what is left until the call's deadline, which the calling thread has set before. No
watchdog, no second thread: there is nothing that could cut the next call by mistake.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

import certifi
from urllib3 import Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context

HOSTS_PER_THREAD = 64
"""Hosts that a thread keeps a connection to; the one not used for longest goes first."""

LONGEST = 900.0
"""Seconds that no wait on a socket may exceed, whatever its call's deadline."""


class Watch(threading.local):
    """What the running call of this thread may still take. `sent`: a byte of the request has been handed over.

    `sent_at`: when the first one was.
    """

    deadline: float = 0.0
    connect: float = 5.0
    sent: bool = False
    sent_at: float = 0.0

    def begin(self, deadline: float, connect: float) -> None:
        """A call begins and has to be over at `deadline` (`time.monotonic`); `connect` seconds for the connection."""
        self.deadline = deadline
        self.connect = connect
        self.sent = False

    def sends(self) -> None:
        """The request, or more of it, is handed over now; raises TimeoutError when it is too late for that.

        To be called last: to set a socket's time-out lets other threads run, and the process may have been stopped.
        """
        now = time.monotonic()
        if now >= self.deadline:
            raise TimeoutError("total deadline")
        if not self.sent:
            self.sent, self.sent_at = True, now

    def left(self) -> float:
        """Seconds left; raises TimeoutError when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("total deadline")
        return left


watch = Watch()


class _Timed:
    """A socket whose every wait ends with the call's deadline."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(watch.left())  # type: ignore[attr-defined]  # mixed into a socket
        return super().recv_into(*args, **kwargs)  # type: ignore[misc, no-any-return]  # mixed into a socket

    def send(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(watch.left())  # type: ignore[attr-defined]  # mixed into a socket
        watch.sends()
        return super().send(*args, **kwargs)  # type: ignore[misc, no-any-return]  # mixed into a socket

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(watch.left())  # type: ignore[attr-defined]  # mixed into a socket
        watch.sends()
        super().sendall(*args, **kwargs)  # type: ignore[misc]  # mixed into a socket


class _PlainSocket(_Timed, socket.socket):
    pass


class _TlsSocket(_Timed, ssl.SSLSocket):
    pass


def _addresses(host: str, port: int, within: float) -> list[Any]:
    """`getaddrinfo` with a time limit: the system's own may take half a minute."""
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    answer: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error if isinstance(error, OSError) else socket.gaierror(str(error)))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        found = answer.get(timeout=within)
    except queue.Empty:
        raise TimeoutError("name") from None
    if isinstance(found, OSError):
        raise found
    return found


def _connected(connection: HTTPConnection) -> socket.socket:
    """A connection to any address of the host, all tries together within the time for connecting."""
    until = min(time.monotonic() + watch.connect, watch.deadline)
    last: OSError = TimeoutError("connect")
    try:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("connect")
        addresses = _addresses(connection.host, connection.port or 80, left)
        for family, kind, protocol, _, address in addresses:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("connect")
            sock = _PlainSocket(family, kind, protocol)
            try:
                for option in connection.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(left)
                sock.connect(address)
                sock.settimeout(max(until - time.monotonic(), 0.001))  # TLS is part of connecting
            except OSError as error:
                sock.close()
                last = error
            else:
                return sock
        raise last
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, "no connection in time") from error
    except OSError as error:
        raise NewConnectionError(connection, "no connection") from error


class _Plain(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)


class _Tls(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _Tls


def tls(verify: bool | str = True) -> ssl.SSLContext:
    """TLS that checks the peer's certificate against certifi's list, or the file that `verify` names.

    `False` checks nothing: for a peer on this machine.
    """
    context = create_urllib3_context()
    context.sslsocket_class = _TlsSocket
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        context.load_verify_locations(certifi.where() if verify is True else verify)
    return context


class Wires(threading.local):
    """One kept connection per thread and host: no proxy, no password file, no cookies, no retries, no redirects.

    These are urllib3's own pools, one connection each. What `requests` puts around them – cookie jars, hooks, the
    environment, redirects, all switched off here – took more than half of a call's CPU (770 against 300 µs, measured).
    """

    def __init__(self) -> None:
        self._pools: OrderedDict[tuple[str, int], HTTPConnectionPool] = OrderedDict()

    def of(self, host: str, context: ssl.SSLContext | None) -> HTTPConnectionPool:
        """This thread's way to a host (scheme, name and port)."""
        key = host, id(context)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _pool(host, context)
            if len(self._pools) > HOSTS_PER_THREAD:
                self._pools.popitem(last=False)[1].close()
        self._pools.move_to_end(key)
        return pool


def _pool(host: str, context: ssl.SSLContext | None) -> HTTPConnectionPool:
    address = urlsplit(host)
    timeout = Timeout(connect=LONGEST, read=LONGEST)  # the deadline rules; these only have to be there
    name = address.hostname or ""
    if context is None:
        return _PlainPool(name, address.port, timeout=timeout, maxsize=1, retries=False)
    return _TlsPool(name, address.port, timeout=timeout, maxsize=1, retries=False, ssl_context=context)
