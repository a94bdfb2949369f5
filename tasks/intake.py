"""The door for notifications, results and events: answers after it is stored, then wakes; nothing is looked up here.

    POST /{token}   /{token}/api/notification   /{token}/catalog/notification       what VTEX says changed (vtex.md 4)
    POST /{token}/order-integration/notification/processing-result                  VTEX's results (9.4)
    POST /{token}/events                                                            the marketplace's events
    GET  /livez  /readyz  /metrics                                                  for whoever runs it

Works on without Redis. While PostgreSQL is away or slow, a spool on this machine's disk keeps what comes; 503 only when
that cannot either – and while it is not known yet whose token it is: an intake that starts while PostgreSQL is away
knows no store, and cannot tell a notification from noise. A thin ASGI callable, because a web framework costs
three times the work itself here. Tokens and bodies never reach a log.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import os
import random
import resource
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import prometheus_client
import uvicorn

from hub import db, events, notification
from hub.errors import BadInput, HubError, Problem
from hub.ledger import Notice, Pair
from hub.model import Ask, Urgency
from hub.settings import SPOOL_BYTES, Settings
from hub.stores import Door, Registry, SecretBox
from hub.unforeseen import Unforeseen
from tasks.bounded_http import Bounds, bounded
from tasks.group_commit import PATIENCE_SECONDS, SOURCES, GroupCommit, Verdict
from tasks.shared_port import BACKLOG, HEADER, joined, mark
from tasks.spool import Spool

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_REGISTRY_SECONDS: Final = 1.0
_REREAD_SECONDS: Final = 30.0  # whatever the version says
_WAKE_SECONDS: Final = 0.005
_FULL_SECONDS: Final = 0.025  # before a pair is asked about again that has as many wake-ups as it may have
_FRESH_SECONDS: Final = 5.0  # an answer of PostgreSQL that old still counts as "reachable"
_DRAINED_BYTES: Final = 4 * 1024 * 1024  # of a body that is too large, so that its sender can read the answer
_SLOTS: Final = 64
_RENDERINGS: Final = 200  # of the metrics in a second; who asks more often gets the last one
_QUERY_FIELDS: Final = 20

log = logging.getLogger("hub.intake")


# ---------------------------------------------------------------- what is counted


class Figures:
    """What `/metrics` shows. No store appears in it: it may be read by whoever watches the machine."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.received = prometheus_client.Counter(
            "hub_intake_received", "Notices stored, by kind", ["kind"], registry=self.registry
        )
        self.fates = {
            fate: prometheus_client.Counter(
                f"hub_intake_{fate}", f"Notices stored as {fate}, by kind", ["kind"], registry=self.registry
            )
            for fate in ("accepted", "ignored", "quarantined")
        }
        self.refused = prometheus_client.Counter(
            "hub_intake_refused", "Requests refused, by reason", ["reason"], registry=self.registry
        )
        self.group = prometheus_client.Histogram(
            "hub_intake_group_notices",
            "Notices stored by one commit",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.commit_seconds = prometheus_client.Histogram(
            "hub_intake_commit_seconds",
            "Time of one commit",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2),
            registry=self.registry,
        )
        self.wakes = prometheus_client.Counter(
            "hub_intake_wakes", "Stores and contexts that were to be woken", registry=self.registry
        )
        self.pushed = prometheus_client.Counter(
            "hub_intake_wakes_pushed", "Wake-ups that were published", registry=self.registry
        )

    def watch_spool(self, spool: Spool) -> None:
        """Show how much waits in the spool, and since when."""
        for name, what, read in (
            ("lines", "Requests that wait in the spool", lambda: spool.lines),
            ("bytes", "Size of the spool on this machine's disk, of this process", lambda: spool.size),
            ("age_seconds", "Age of the oldest part of the spool", lambda: spool.seconds),
            ("kept", "Requests that the spool has kept since the start", lambda: spool.kept),
            ("unreadable", "Lines of the spool that could not be read and were set aside", lambda: spool.odd_lines),
        ):
            gauge = prometheus_client.Gauge(f"hub_intake_spool_{name}", what, registry=self.registry)
            gauge.set_function(read)

    def committed(self, fates: Counter[tuple[int | None, str, str]], seconds: float) -> None:
        """A group was stored."""
        self.group.observe(fates.total())
        self.commit_seconds.observe(seconds)
        sums: Counter[tuple[str, str]] = Counter()
        for (_, kind, fate), count in fates.items():
            sums[kind, fate] += count
        for (kind, fate), count in sums.items():
            self.received.labels(kind).inc(count)
            self.fates[fate].labels(kind).inc(count)

    def refuse(self, reason: str) -> None:
        """A request was refused."""
        self.refused.labels(reason).inc()


# ---------------------------------------------------------------- the threads beside the loop


class KnownStores:
    """Who is behind which token, read again whenever the registry moved; the last one known serves while it cannot be.

    `doors` is `None` until the registry was read for the first time.
    """

    def __init__(
        self, version: Callable[[], int], read: Callable[[], Mapping[bytes, Door]], *, every: float = _REGISTRY_SECONDS
    ) -> None:
        self._version = version
        self._read = read
        self._every = every
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="known-stores", daemon=True)
        self._seen: int | None = None
        self._read_at = 0.0
        self._met: dict[str, Door] = {}
        self.doors: Mapping[bytes, Door] | None = None
        self.slugs: Mapping[int, str] = {}

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ending.set()
        self._thread.join(timeout=2)

    def by_token(self, token: str) -> Door | None:
        """Whose token it is.

        Tokens are looked up by their digest, so that the time it takes tells nothing of a token. Those that were right
        once are remembered as they are: knowing how long that takes needs the whole token.
        """
        met = self._met  # taken before `doors`, and replaced after it: no door that is closed comes into the new one
        door = met.get(token)
        if door is None and self.doors:
            door = self.doors.get(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())
            if door is not None:
                met[token] = door
        return door

    def _follow(self) -> None:
        complained = False
        unforeseen = Unforeseen(log)
        while not self._ending.is_set():
            try:
                self._look()
                complained = False
            except HubError as fault:
                if not complained:
                    log.warning("cannot read the registry of stores: %s", fault)
                complained = True
            except Exception as error:  # noqa: BLE001 – this thread must live, or no store is ever added or changed
                unforeseen.tell("reading the registry of stores", error)
            self._ending.wait(self._every)

    def _look(self) -> None:
        version = self._version()
        if version == self._seen and time.monotonic() - self._read_at < _REREAD_SECONDS:
            return
        doors = self._read()
        self.slugs = {door.store: door.slug for door in doors.values()}
        self.doors = doors
        self._met = {}
        self._seen, self._read_at = version, time.monotonic()


class Wakes:
    """Wakes at once, then at most every 5 ms, in a thread of its own: Redis away or slow delays no answer."""

    def __init__(self, wake: Callable[[Iterable[tuple[str, str]]], int], figures: Figures) -> None:
        self._wake = wake
        self._figures = figures
        self._pairs: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="wakes", daemon=True)

    def start(self) -> None:
        """Begin to wake."""
        self._thread.start()

    def stop(self) -> None:
        """Wake what is left, then end."""
        self._ending.set()
        self._some.set()
        self._thread.join(timeout=3)

    def add(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Have these (slug, context) pairs woken; costs the caller nothing but a set's update."""
        with self._lock:
            known = len(self._pairs)
            self._pairs.update(pairs)
            news = len(self._pairs) > known
        if news:  # for what waits already the thread comes by itself: it would take the interpreter from the loop
            self._some.set()

    def _follow(self) -> None:
        full: dict[tuple[str, str], float] = {}  # until when it is not asked about; what came meanwhile is woken then
        due: float | None = None  # when the first of those that wait for it is asked about again
        while True:
            self._some.wait(None if due is None else max(0.0, due - time.monotonic()))
            self._some.clear()
            now = time.monotonic()
            with self._lock:
                held = set() if self._ending.is_set() else {one for one in self._pairs if full.get(one, 0.0) > now}
                pairs, self._pairs = self._pairs - held, held
                due = min((full[one] for one in held), default=None)
            if pairs and not self._woken(pairs):
                full.update(dict.fromkeys(pairs, now + _FULL_SECONDS))
            if self._ending.wait(_WAKE_SECONDS) and not self._pairs:
                return

    def _woken(self, pairs: Iterable[tuple[str, str]]) -> int:
        """How many wake-ups went out; none: every pair has as many as it may have, or nobody can be woken."""
        asked = sorted(pairs)
        self._figures.wakes.inc(len(asked))
        try:
            sent = self._wake(asked)
        except Exception:  # whatever it is, this thread must live; the sweep wakes for what it missed
            log.exception("waking failed")
            return 0
        self._figures.pushed.inc(sent)
        return sent


# ---------------------------------------------------------------- requests


class _Refused(Exception):  # noqa: N818 – an answer on its way out
    """The request gets this answer."""

    def __init__(self, status: int, reason: str, problems: Sequence[Problem], *, close: bool = False) -> None:
        self.status = status
        self.reason = reason
        self.problems = problems
        self.close = close
        super().__init__(reason)


class _Gone(Exception):  # noqa: N818 – nobody to answer
    """The sender hung up."""


class _Kept(NamedTuple):
    """What one request wants to have stored."""

    notices: Sequence[Notice]
    asks: Sequence[Ask]


_VTEX: Final = SOURCES["notification"]

_Reader = Callable[[Door, bytes, Scope, int], _Kept]
"""The last one is when the request came, as `Notice.at` has it."""

# Without a body: head and body leave in a system call and a packet each, and that is a seventh of what a request costs.
_START_OK: Final = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
_BODY_OK: Final = {"type": "http.response.body", "body": b""}
_HOW: Final = "POST to /{token}, /{token}/api/notification, /{token}/catalog/notification, /{token}/events or " + (
    "/{token}/order-integration/notification/processing-result"
)


class Intake:
    """The ASGI callable. Starts and stops what it leans on with the server's life."""

    def __init__(
        self,
        *,
        stores: KnownStores,
        commit: GroupCommit,
        wakes: Wakes,
        figures: Figures,
        bounds: Bounds,
        spool: Spool | None = None,
        serves: str = "",
    ) -> None:
        self._serves = [(HEADER.encode(), serves.encode())]
        self._stores = stores
        self._commit = commit
        self._spool = spool
        self._wakes = wakes
        self._figures = figures
        self._bounds = bounds
        self._bodies = 0
        self._bodies_of: dict[int, int] = {}
        self._page = b""  # of metrics
        self._page_second = 0
        self._page_renderings = 0
        self._pages: Mapping[str, Callable[[], tuple[int, bytes, bytes]]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's own start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        page = self._pages.get(scope["path"])
        if page is not None and scope["method"] in {"GET", "HEAD"}:
            await _answer(send, *page(), self._serves)
            return
        try:
            door, reader = self._entrance(scope)
            kept = reader(door, await self._body(receive, scope, door.store), scope, self._commit.now())
            verdict = await self._commit.store(kept.notices, kept.asks)
            if verdict is not Verdict.STORED:
                raise _unstored(verdict)
        except _Refused as refused:
            self._figures.refuse(refused.reason)
            await _refuse(send, refused)
        except BadInput as wrong:
            self._figures.refuse("unreadable")
            await _refuse(send, _Refused(400, "unreadable", wrong.problems))
        except _Gone:
            self._figures.refuse("hung_up")
        else:
            try:
                await send(_START_OK)
                await send(_BODY_OK)
            except RuntimeError:  # as in `_say`, a coroutine less
                log.debug("the sender hung up before its answer")

    def _entrance(self, scope: Scope) -> tuple[Door, _Reader]:
        token, _, rest = scope["path"].lstrip("/").partition("/")
        if self._stores.doors is None:
            fix = "send it again in a moment; the stores are not known yet"
            raise _Refused(503, "registry_unknown", [Problem("input", fix=fix)])
        door = self._stores.by_token(token)
        if door is None:
            fix = "use the URL that the hub shows for the store; this token belongs to none"
            raise _Refused(404, "unknown_token", [Problem("input", field="token", value=token[:4], fix=fix)])
        reader = _ROUTES.get(rest.strip("/"))
        if reader is None:
            raise _Refused(404, "unknown_path", [Problem("input", field="path", value=rest[:60], fix=_HOW)])
        if scope["method"] != "POST":
            raise _Refused(405, "method", [Problem("input", field="method", value=scope["method"], fix=_HOW)])
        return door, reader

    async def _body(self, receive: Receive, scope: Scope, store: int) -> bytes:
        if (announced := _number(scope, b"content-length")) > self._bounds.body_bytes:
            # Answered before it is read. What comes nevertheless is thrown away within the time that a request has;
            # who waits for a 100 and may now send nothing would leave the end of this request open.
            raise self._too_large(f"{announced} bytes", close=_header(scope, "expect") is not None)
        of_store = self._bodies_of.get(store, 0)
        if self._bodies >= self._bounds.bodies or of_store >= self._bounds.bodies_of_one:
            fix = "send it again in a moment; too many bodies arrive at once"
            raise _Refused(503, "busy", [Problem("input", fix=fix)], close=True)
        self._bodies += 1
        self._bodies_of[store] = of_store + 1
        try:
            pieces: list[bytes] = []
            size = 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                piece: bytes = message["body"]
                size += len(piece)
                last = not message["more_body"]
                if size <= self._bounds.body_bytes:
                    if last and not pieces:
                        return piece
                    pieces.append(piece)
                else:
                    pieces.clear()
                if size > self._bounds.body_bytes and (last or size > _DRAINED_BYTES):
                    found = f"{size} bytes" if last else f"more than {_DRAINED_BYTES} bytes"
                    raise self._too_large(found, close=not last)
                if last:
                    return b"".join(pieces)
        finally:
            self._bodies -= 1
            if self._bodies_of[store] > 1:
                self._bodies_of[store] -= 1
            else:
                del self._bodies_of[store]

    def _too_large(self, found: str, *, close: bool) -> _Refused:
        fix = f"send at most {self._bounds.body_bytes} bytes in one body"
        return _Refused(413, "too_large", [Problem("input", field="body", value=found, fix=fix)], close=close)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._wakes.start()
                self._stores.start()
                if self._spool is not None:
                    await self._spool.open()
                self._commit.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._commit.stop()
                await asyncio.to_thread(self._stores.stop)
                await asyncio.to_thread(self._wakes.stop)
                await send({"type": "lifespan.shutdown.complete"})
                return

    # ------------------------------------------------------------ pages

    def _livez(self) -> tuple[int, bytes, bytes]:
        return 200, b"text/plain; charset=utf-8", b"alive\n"

    def _readyz(self) -> tuple[int, bytes, bytes]:
        obstacles = []
        if self._stores.doors is None:
            obstacles.append("the registry of stores was never read")
        answered = self._commit.answered_at
        spooling = self._spool is not None and self._spool.works
        if spooling:
            pass  # whatever PostgreSQL does, what comes is kept
        elif self._commit.away is not None:
            obstacles.append("PostgreSQL cannot be used")  # its own words name hosts; they are in the log
        elif answered is None or asyncio.get_running_loop().time() - answered > _FRESH_SECONDS:
            obstacles.append("PostgreSQL has not answered lately")
        told: dict[str, object] = {"ready": not obstacles, "obstacles": obstacles}
        if self._spool is not None:
            told["spool"] = {"works": spooling, "lines": self._spool.lines, "bytes": self._spool.size}
        body = json.dumps(told).encode()
        return (503 if obstacles else 200), b"application/json", body

    def _metrics(self) -> tuple[int, bytes, bytes]:
        second = int(time.monotonic())
        if second != self._page_second:
            self._page_second, self._page_renderings = second, 0
        self._page_renderings += 1
        if self._page_renderings <= _RENDERINGS:  # it takes as long as several notifications
            self._page = prometheus_client.generate_latest(self._figures.registry)
        return 200, prometheus_client.CONTENT_TYPE_LATEST.encode(), self._page


# ---------------------------------------------------------------- what the routes make of a body


def _notification(door: Door, body: bytes, _: Scope, at: int) -> _Kept:
    """vtex.md 4.4: which contexts look again. Another store's body is kept out of them (NOT-11)."""
    notices: list[Notice] = []
    asks: list[Ask] = []
    for said in notification.parse(body, account=door.account, affiliate=door.affiliate):
        fate = _fate(door, foreign=said.account != door.account or said.affiliate != door.affiliate)
        notices.append(Notice(_notice_id(), door.store, "notification", fate, said.raw, at=at))
        if fate == "accepted":
            heard = notification.announces_change(said)
            for context, urgency in notification.asks(said):
                asks.append(Ask(door.store, context, said.sku_id, _VTEX, urgency, heard))
    return _Kept(notices, asks)


def _event(door: Door, body: bytes, scope: Scope, at: int) -> _Kept:
    """A marketplace says that an order is new or changed."""
    if door.webhook is None:
        fix = "this store's marketplace sends no events; its orders are polled"
        raise _Refused(404, "unknown_path", [Problem("input", field="path", value="events", fix=fix)])
    if door.status != "removed":
        reason = events.doubt(door.webhook, _header(scope, door.webhook.header), body, door.secrets, time.time())
        if reason is not None:
            fix = f"sign the event with the store's webhook secret: {reason}"
            raise _Refused(401, "signature", [Problem("input", field=door.webhook.header, fix=fix)])
    said = events.read_event(door.webhook, body)
    fate = _fate(door, foreign=False) if said.order_id is not None else "ignored"
    return _about_order(door, "event", fate, said, at)


def _result(door: Door, body: bytes, scope: Scope, at: int) -> _Kept:
    """VTEX says what became of an order it was given; the context order decides what that means."""
    said = events.read_result(body, account=door.account)
    query = scope["query_string"].decode("ascii", "replace")
    try:
        named = urllib.parse.parse_qs(query, max_num_fields=_QUERY_FIELDS).get("an", [])
    except ValueError:
        found = f"{query.count('&') + 1} fields"
        fix = f"send at most {_QUERY_FIELDS} fields"
        raise BadInput([Problem("input", field="query", value=found, fix=fix)]) from None
    accounts = {said.account, *(notification.plain_account(name) for name in named)}
    # Without an order id nobody can tell whose result it is; the order's own timer finds out.
    fate = _fate(door, foreign=accounts != {door.account} or said.order_id is None)
    return _about_order(door, "result", fate, said, at)


def _about_order(door: Door, kind: str, fate: str, said: events.Event, at: int) -> _Kept:
    notice = Notice(_notice_id(), door.store, kind, fate, said.raw, said.order_id, at)
    if fate != "accepted" or said.order_id is None:
        return _Kept((notice,), ())
    return _Kept((notice,), (Ask(door.store, "order", said.order_id, SOURCES[kind], Urgency.NOTIFIED, heard=True),))


def _fate(door: Door, *, foreign: bool) -> str:
    if foreign:
        return "quarantined"
    return "ignored" if door.status == "removed" else "accepted"


_ROUTES: Final[Mapping[str, _Reader]] = {
    "": _notification,
    "api/notification": _notification,
    "catalog/notification": _notification,
    "events": _event,
    "order-integration/notification/processing-result": _result,
}


def _header(scope: Scope, name: str) -> str | None:
    wanted = name.lower().encode()
    found = [value for key, value in scope["headers"] if key == wanted]
    return b",".join(found).decode("latin-1") if found else None


def _number(scope: Scope, name: bytes) -> int:
    """A header that is a whole number, which the parser has made sure of; 0 without it."""
    for key, value in scope["headers"]:
        if key == name:
            return int(value)
    return 0


def _notice_id() -> str:
    """UUIDs of version 7: they grow with time, so that their index stays small where it is written; 74 random bits."""
    bits = time.time_ns() // 1_000_000 << 80 | random.getrandbits(80)
    return f"{bits & _ID_MASK | _ID_MARKS:032x}"


_ID_MASK: Final = ~(0xF << 76) & ~(0x3 << 62)
_ID_MARKS: Final = 7 << 76 | 2 << 62


def _unstored(verdict: Verdict) -> _Refused:
    if verdict is Verdict.REFUSED:
        fix = "send plain text and numbers; something in it cannot be stored and was set aside"
        return _Refused(400, "unstorable", [Problem("input", field="body", fix=fix)])
    return _Refused(503, "storage", [Problem("input", fix="send it again in a moment; it could not be stored")])


async def _refuse(send: Send, refused: _Refused) -> None:
    told = [{"field": one.field, "value": one.value, "fix": one.fix} for one in refused.problems]
    body = json.dumps({"error": "; ".join(one.sentence() for one in refused.problems), "problems": told}).encode()
    extra = [(b"connection", b"close")] if refused.close else []
    if refused.status == 405:
        extra.append((b"allow", b"POST"))
    if refused.status == 503:
        extra.append((b"retry-after", b"1"))
    await _answer(send, refused.status, b"application/json", body, extra)


async def _answer(send: Send, status: int, kind: bytes, body: bytes, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *extra]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    await _say(send, start, {"type": "http.response.body", "body": body})


async def _say(send: Send, start: MutableMapping[str, Any], body: MutableMapping[str, Any]) -> None:
    try:
        await send(start)
        await send(body)
    except RuntimeError:  # uvloop's word for a connection that was reset a moment ago: nobody is left to answer
        log.debug("the sender hung up before its answer")


# ---------------------------------------------------------------- the process


@contextmanager
def opened(
    database_url: str,
    schema: str,
    box: SecretBox,
    wake: Callable[[Iterable[tuple[str, str]]], int],
    *,
    bounds: Bounds | None = None,
    slot: int | None = None,
    registry_seconds: float = _REGISTRY_SECONDS,
    spool: Path | None = None,
    spool_bytes: int = SPOOL_BYTES,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[uvicorn.Server]:
    """A server that needs only a socket: `server.run(sockets=[listening(host, port)])`.

    Neither PostgreSQL nor Redis need to be there; it answers 503 until PostgreSQL was there once, and from then on only
    when neither PostgreSQL nor the folder `spool` (with `None`: PostgreSQL) can keep what comes. `wake` publishes
    wake-ups for (slug, context) pairs and is called in a thread of its own. `slot` is this process's row of the
    counters; `registry_seconds` is how long a change of the stores may go unnoticed, `patience` how many a request
    waits for PostgreSQL.
    """
    bounds = bounds or Bounds()
    figures = Figures()
    with closing(db.open_pool(database_url, schema, name="intake registry", max_size=1)) as pool:
        registry = Registry(pool, box)
        stores = KnownStores(registry.version, registry.doors, every=registry_seconds)
        wakes = Wakes(wake, figures)

        def wake_pairs(pairs: Iterable[Pair]) -> None:
            # What the spool kept may be of a store that is not known yet: the sweep wakes for it.
            slugs = stores.slugs
            wakes.add((slugs[store], context) for store, context in pairs if store in slugs)

        kept = Spool(spool, most_bytes=spool_bytes) if spool is not None else None
        if kept is not None:
            figures.watch_spool(kept)
        commit = GroupCommit(
            database_url,
            schema,
            slot=os.getpid() % _SLOTS if slot is None else slot,
            on_wake=wake_pairs,
            on_commit=figures.committed,
            spool=kept,
            patience=patience,
        )
        intake = Intake(
            stores=stores,
            commit=commit,
            wakes=wakes,
            figures=figures,
            bounds=bounds,
            spool=kept,
            serves=mark("intake", database_url, schema),
        )
        yield uvicorn.Server(
            uvicorn.Config(
                intake,
                http=bounded(bounds, figures.refuse),
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                proxy_headers=False,  # nobody here asks who the sender is
                access_log=False,  # its lines would hold the tokens
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=5,
                backlog=BACKLOG,
            )
        )


def run(settings: Settings, host: str = "127.0.0.1", port: int = 8080, *, env: Mapping[str, str] = os.environ) -> None:
    """Serve until interrupted. `BadInput` when the address is another's or the key of the credentials is missing."""
    from tasks.app import make_app
    from tasks.wake import Waker

    box = SecretBox.from_env(env)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one descriptor per connection; the usual 1,024 are few
    waker = Waker(settings, make_app(settings))
    bound = joined(host, port, mark("intake", settings.database_url, settings.schema))
    with opened(
        settings.database_url,
        settings.schema,
        box,
        partial(waker.wake, live=True),
        spool=settings.spool,
        spool_bytes=settings.spool_bytes,
    ) as server:
        log.info("intake listens on %s:%s", *bound.getsockname()[:2])
        # What starting made stays: to look through it again and again would stop every answer meanwhile.
        gc.collect()
        gc.freeze()
        with suppress(KeyboardInterrupt):  # uvicorn has ended in order and repeats the signal
            server.run(sockets=[bound])
    waker.close()
