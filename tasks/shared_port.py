"""A port that several processes of one kind, database and schema share on one machine, and nobody else (SO_REUSEPORT).

The kernel shares a port out among all who listen there, so that one of another installation would get every second
request: a stranger's notification is answered 404 and lost. Whoever joins a port asks first who serves there.
"""

from __future__ import annotations

import http.client
import socket
from contextlib import closing
from typing import Final

from hub import db
from hub.errors import BadInput, Problem

BACKLOG: Final = 2_048
HEADER: Final = "hub-serves"
"""On `/livez`: what `mark` says of who answers."""

_ANSWER_SECONDS: Final = 1.0
_TIMES: Final = 3  # whoever has no time just now is asked


def mark(kind: str, database_url: str, schema: str) -> str:
    """Equal for those who may share a port. Settings alone decide it, so that it is known while PostgreSQL is away."""
    return f"{kind} {db.identity(database_url, schema)}"


def listening(host: str, port: int) -> socket.socket:
    """A socket on a port that others may join; port 0 takes a free one. `BadInput` when it is taken."""
    place = _place(host, port)
    place.listen(BACKLOG)
    return place


def joined(host: str, port: int, mark: str) -> socket.socket:
    """A socket that listens once it is served, so that who connects before is served by the others.

    `BadInput` when the address is taken, or served by others than those of this mark.
    """
    place = _place(host, port)
    address = place.getsockname()[:2]
    if port and (doubt := _doubt(_reached(*address), mark)):
        place.close()
        fix = f"is served by {doubt}; choose another --port, or end it first"
        raise BadInput([Problem("input", field="port", value=str(port), fix=fix)])
    return place


def _place(host: str, port: int) -> socket.socket:
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if place.family == socket.AF_INET6:
            place.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        place.bind((host, port))
    except OSError as fault:
        place.close()
        fix = f"cannot be used ({fault.strerror}); choose another --host or --port"
        raise BadInput([Problem("input", field="address", value=f"{host}:{port}", fix=fix)]) from None
    return place


def _reached(host: str, port: int) -> tuple[str, int]:
    """Where this machine reaches whoever listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104 – compared, not bound


def _doubt(address: tuple[str, int], mark: str) -> str:
    """Who serves there that is not of this mark; empty when nobody does, or one that is."""
    for _ in range(_TIMES):
        try:
            said = _said(address)
        except ConnectionRefusedError:  # bound at most; nobody listens
            return ""
        if said is not None:
            kind, _, _ = mark.partition(" ")
            return "" if said == mark else f"something else than `hub {kind}` of this database and schema"
    return "something that does not answer"


def _said(address: tuple[str, int]) -> str | None:
    """The mark of whoever answers, empty when it has none; `None` when there is no answer or no time for one."""
    with closing(http.client.HTTPConnection(*address, timeout=_ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", "/livez")
            answer = connection.getresponse()
        except ConnectionRefusedError:
            raise
        except OSError:
            return None
        except http.client.HTTPException:  # an answer, but not in HTTP
            return ""
        said = answer.headers.get(HEADER, "")
        return None if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE and not said else said
