"""Flower for the hub: queues, workers and tasks, seen only by who knows the password, and only seen.

One door stands before every page and every file of Flower, today's and tomorrow's: Flower itself leaves some open.
Nothing in its pages is a secret or about a person: a wake-up carries a store and a context, its result is a sentence.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import os
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.routing import Router
from tornado.web import Application, RequestHandler

from hub.errors import BadInput, Problem
from hub.private_file import create_private, read_private
from hub.runtime.place import Place
from hub.settings import Settings
from tasks.app import make_app

PASSWORD: Final = "HUB_FLOWER_PASSWORD"  # noqa: S105 – the name of a variable
PASSWORD_FILE: Final = "flower-password"  # noqa: S105 – the name of a file
SHORTEST_PASSWORD: Final = 8

_COLUMNS: Final = "name,state,args,result,exception,received,runtime,worker,uuid"
_MOST_TASKS: Final = 20_000  # kept in memory, about 2 KiB each
_MOST_WORKERS: Final = 500
_OFFLINE_SECONDS: Final = 600
_INSPECT_MILLISECONDS: Final = 2_000.0
_LARGEST_BODY, _LARGEST_HEAD = 256 * 1024, 32 * 1024
_ARRIVAL_SECONDS, _IDLE_SECONDS = 10.0, 60.0
_FIGURES: Final = frozenset({"/metrics", "/healthcheck"})

log = logging.getLogger("hub.flower")


def password(file: Path | None = None, *, env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Flower's password, and where it is from, in words for its user.

    HUB_FLOWER_PASSWORD wins; else it is read from `file` (0600; default: `flower-password` in the hub's directory),
    which is written once when it is not there. `BadInput` when it is too short, has characters that Flower cannot
    compare, or others may read the file.
    """
    given = env.get(PASSWORD, "")
    if given:
        return _usable(given, PASSWORD), f"the password is that of {PASSWORD}"
    if file is None:
        place = Place(env=env)
        place.make()
        file = place.directory / PASSWORD_FILE
    if not file.exists():
        try:
            create_private(file, "password file", f"{secrets.token_urlsafe(18)}\n".encode())
        except BadInput:
            if not file.exists():  # else somebody wrote it just now: theirs counts
                raise
    return _usable(read_private(file, "password file").strip(), str(file)), f"the password is in {file}"


def _usable(found: str, field: str) -> str:
    if len(found) >= SHORTEST_PASSWORD and found.isascii() and found.isprintable():
        return found
    fix = f"write a password of at least {SHORTEST_PASSWORD} ASCII characters, or leave it out and one is made"
    raise BadInput([Problem("input", field=field, fix=fix)])


def run(
    settings: Settings,
    port: int = 5555,
    *,
    address: str = "127.0.0.1",
    user: str = "hub",
    password_file: Path | None = None,
    writable: bool = False,
    metrics: bool = False,
    env: Mapping[str, str] = os.environ,
) -> int:
    """Serve Flower until SIGTERM or SIGINT; returns the exit code. Port 0 takes a free one.

    `writable` lets whoever knows the password revoke tasks and shut workers down. `metrics` opens `/metrics` and
    `/healthcheck` to everybody, for a Prometheus; else they need the password as well. The password travels as HTTP
    sends it: put TLS before any `address` but this machine's own. `BadInput` when something of this is wrong.
    """
    if not user or ":" in user or not (user.isascii() and user.isprintable()):
        fix = "write a name of ASCII characters without a colon"
        raise BadInput([Problem("input", field="user", value=user[:40], fix=fix)])
    secret, where = password(password_file, env=env)
    try:
        sockets = bind_sockets(port, address=address)
    except OSError as fault:
        fix = f"cannot be used ({fault.strerror}); choose another address or port"
        raise BadInput([Problem("input", field="address", value=f"{address}:{port}", fix=fix)]) from None
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)  # its lines hold what people search for
    asyncio.run(_serve(settings, sockets, f"{user}:{secret}", where, writable=writable, metrics=metrics))
    return 0


async def _serve(
    settings: Settings, sockets: list[Any], credentials: str, where: str, *, writable: bool, metrics: bool
) -> None:
    flower = _flower(settings, credentials, writable=writable)
    server = HTTPServer(
        _Door(flower, credentials, open_to_all=_FIGURES if metrics else frozenset()),
        max_body_size=_LARGEST_BODY,
        max_header_size=_LARGEST_HEAD,
        body_timeout=_ARRIVAL_SECONDS,
        idle_connection_timeout=_IDLE_SECONDS,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    # What Flower.start() does, but in a loop that is ours to end.
    flower.events.start()
    flower.started = True
    flower.update_workers()
    server.add_sockets(sockets)
    host, port = sockets[0].getsockname()[:2]
    log.info("Flower listens on http://%s:%s, user %s; %s", host, port, credentials.partition(":")[0], where)
    await stopping.wait()
    server.stop()
    flower.events.stop()
    flower.executor.shutdown(wait=False, cancel_futures=True)


def _flower(settings: Settings, credentials: str, *, writable: bool) -> Any:
    """Flower on our Celery application, configured here only: neither FLOWER_* variables nor a file are read."""
    from flower.app import Flower  # type: ignore[import-untyped]  # has no types
    from flower.options import options  # type: ignore[import-untyped]  # has no types
    from flower.urls import settings as application  # type: ignore[import-untyped]  # has no types

    for name, value in {
        "basic_auth": [credentials],  # again, for Flower's check of the origin of requests that change something
        "read_only": not writable,
        "purge_offline_workers": _OFFLINE_SECONDS,
        "max_tasks": _MOST_TASKS,
        "max_workers": _MOST_WORKERS,
        "inspect_timeout": _INSPECT_MILLISECONDS,
        "natural_time": True,
        "tasks_columns": _COLUMNS,
        "persistent": False,
        "debug": False,
    }.items():
        setattr(options, name, value)
    return Flower(capp=make_app(settings), options=options, **application)


class _Refusal(RequestHandler):
    """Says that a password is needed, and nothing else."""

    def prepare(self) -> None:
        """Answer, whatever the method."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="hub", charset="UTF-8"')
        self.finish("A user and a password are needed.\n")


class _Door(Router):
    """Lets a request through to Flower when it carries the credentials, or when its path is open to all."""

    def __init__(self, flower: Any, credentials: str, *, open_to_all: frozenset[str]) -> None:
        self._flower = flower
        self._credentials = credentials.encode()
        self._open = open_to_all
        self._refusing = Application([(r".*", _Refusal)])

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:
        """Flower, or the refusal."""
        is_open = request.path in self._open and request.method == "GET"
        known = is_open or self._is_known(request.headers.get("Authorization", ""))
        found: HTTPMessageDelegate | None = (self._flower if known else self._refusing).find_handler(request, **kwargs)
        return found

    def _is_known(self, header: str) -> bool:
        scheme, _, encoded = header.partition(" ")
        try:
            said = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(said, self._credentials)
