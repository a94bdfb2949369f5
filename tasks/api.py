"""What others read of a store: VTEX's logs endpoint (vtex.md 15.2), under the store's token and nobody else's.

    GET /{token}/{account}/logs/   /{token}/logs/                        the token of the store's URLs in the path
    GET /{account}/logs/   /logs/    with `Authorization: Bearer {token}`
    GET /livez  /readyz  /metrics                                        for whoever runs it

Reads only. Tokens reach no log; contents were masked when they were written (hub.privacy).
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from typing import Any, Final, cast

import prometheus_client
import uvicorn
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg import Connection
from psycopg_pool import ConnectionPool
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub import db
from hub.db import StorageAway
from hub.errors import BadInput, Problem
from hub.gauges import Gauge, Shut, gauges
from hub.interactions import MOST_SKIPPED, OPERATIONS, Cursor, Page, Question, read_day
from hub.messages import LANGUAGES, Language, Status
from hub.notification import plain_account
from hub.parsing import shortened, suggestion
from hub.settings import Settings
from hub.stores import Registry, SecretBox, Store, token_digest
from tasks.bounded_http import Bounds, bounded
from tasks.shared_port import HEADER, joined, mark

Pool = ConnectionPool[Connection[tuple[Any, ...]]]

LARGEST_PAGE: Final = 1_000
USUAL_PAGE: Final = 100

_STATUSES: Final[Mapping[str, Status]] = {
    "success": "success",
    "sucess": "success",  # as VTEX's own example spells it
    "error": "error",
    "warning": "warning",
    "alert": "warning",
    "pending": "pending",
}
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_LONGEST_KEY: Final = 200
_OLDEST_DAY, _LATEST_DAY = date(2000, 1, 1), date(2999, 12, 31)
_DATE_NAMES: Final = ("dateat", "date")
_KNOWN: Final = (
    *(*_DATE_NAMES, "status", "operation", "context", "sku", "order"),
    *("page", "size", "after", "language"),
)
_GAUGE_SECONDS: Final = 5.0
_PAGES: Final = ("/livez", "/readyz", "/metrics")
_HOW: Final = (
    "GET /{token}/{account}/logs/ or /{token}/logs/, or /{account}/logs/ or /logs/ with Authorization: Bearer {token}"
)

log = logging.getLogger("hub.api")


# ---------------------------------------------------------------- what is asked for


def read_question(
    given: Iterable[tuple[str, str]], *, today: date, contexts: Collection[str], accept_language: str = ""
) -> tuple[Question, Language]:
    """What a query string asks for, and in which language (LOG-02, 03, 12). `BadInput` with every problem.

    Names count in any casing, empty values not at all. Names that nobody knows are let pass, for readers add their own;
    those that look like one of ours are told.
    """
    asked = _Asked(given)
    question = Question(
        day=asked.day(today),
        statuses=asked.statuses(),
        operation=asked.one_of("operation", OPERATIONS),
        context=asked.one_of("context", contexts),
        sku=asked.key("sku"),
        order=asked.key("order"),
        page=asked.number("page", 1),
        size=asked.number("size", USUAL_PAGE, LARGEST_PAGE),
        after=asked.cursor(),
    )
    if question.sku and question.order:
        asked.blame("order", question.order, "give sku or order, not both")
    if question.after and "page" in asked.values:
        asked.blame("page", str(question.page), "give page or after, not both")
    if (question.page - 1) * question.size >= MOST_SKIPPED:
        fix = f"numbered pages reach {MOST_SKIPPED} records; go on with after=, from Paging.Next of the page before"
        asked.blame("page", str(question.page), fix)
    language = asked.language()
    if asked.problems:
        raise BadInput(asked.problems)
    return question, language or spoken(accept_language)


def spoken(accept_language: str) -> Language:
    """The best language of an Accept-Language header; English when it names none of ours."""
    best: tuple[float, Language] = (0.0, "en")
    for part in accept_language.split(",")[:20]:
        name, _, weight = part.partition(";")
        found = _language(name)
        quality = re.fullmatch(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", weight) if weight.strip() else None
        worth = float(quality[1]) if quality else (0.0 if weight.strip() else 1.0)
        if found and worth > best[0]:
            best = worth, found
    return best[1]


def _language(name: str) -> Language | None:
    plain = re.split("[-_]", name.strip().lower(), maxsplit=1)[0]
    return cast(Language, plain) if plain in LANGUAGES else None


class _Asked:
    """The parameters of one request, read one by one; what is wrong with them gathers in `problems`."""

    def __init__(self, given: Iterable[tuple[str, str]]) -> None:
        self.problems: list[Problem] = []
        self.values: dict[str, str] = {}
        for written, value in given:
            name, value = written.lower(), value.strip()
            name = "date" if name in _DATE_NAMES else name
            if name not in _KNOWN:
                self._unknown(written)
            elif value and name == "status" and name in self.values:
                self.values[name] += f",{value}"
            elif value and self.values.setdefault(name, value) != value:
                self.blame(written, value, f"is given twice; the other one is {shortened(self.values[name])!r}")

    def blame(self, field: str, value: str, fix: str) -> None:
        """Note a problem."""
        self.problems.append(Problem("input", field=field[:40], value=shortened(value), fix=fix))

    def day(self, today: date) -> date:
        text = self.values.get("date")
        if text is None:
            return today
        try:
            found = date.fromisoformat(text) if _DAY.fullmatch(text) else None
        except ValueError:  # the 31st of June
            found = None
        if found is None or not _OLDEST_DAY <= found <= _LATEST_DAY:
            self.blame("DateAt", text, "write a day as yyyy-mm-dd (UTC)")
            return today
        return found

    def statuses(self) -> frozenset[Status]:
        words = [word.strip().lower() for word in self.values.get("status", "").split(",")]
        for word in dict.fromkeys(words):
            if word and word != "all" and word not in _STATUSES:
                self.blame("status", word, "write all, or some of success, error, warning, pending between commas")
        if "all" in words:
            return frozenset()
        return frozenset(_STATUSES[word] for word in words if word in _STATUSES)

    def one_of(self, name: str, words: Collection[str]) -> str | None:
        text = self.values.get(name)
        if text is None:
            return None
        found = {word.lower(): word for word in words}.get(text.lower())
        if found is None:
            self.blame(name, text, suggestion(text, words))
        return found

    def key(self, name: str) -> str | None:
        text = self.values.get(name)
        if text is not None and (len(text) > _LONGEST_KEY or not text.isprintable()):
            self.blame(name, text, f"write an id of at most {_LONGEST_KEY} printable characters")
            return None
        return text

    def number(self, name: str, usual: int, most: int | None = None) -> int:
        text = self.values.get(name)
        if text is None:
            return usual
        if not _NUMBER.fullmatch(text) or int(text) < 1 or (most and int(text) > most):
            self.blame(name, text, f"write a number from 1 to {most}" if most else "write a number from 1")
            return usual
        return int(text)

    def cursor(self) -> Cursor | None:
        text = self.values.get("after")
        found = Cursor.parse(text) if text else None
        if text and found is None:
            self.blame("after", text, "give what Paging.Next says, or leave it out")
        return found

    def language(self) -> Language | None:
        text = self.values.get("language")
        found = _language(text) if text else None
        if text and found is None:
            self.blame("language", text, f"write one of {', '.join(LANGUAGES)}")
        return found

    def _unknown(self, name: str) -> None:
        close = difflib.get_close_matches(name.lower(), _KNOWN, n=1, cutoff=0.7)
        if close:
            self.blame(name, "", f"is no parameter; did you mean {close[0]!r}?")


# ---------------------------------------------------------------- the endpoint


class Logs:
    """The routes of the logs endpoint. `clock` says which day it is where no day is given."""

    def __init__(
        self, pool: Pool, registry: Registry, *, contexts: Collection[str], clock: Callable[[], datetime]
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._contexts = contexts
        self._clock = clock

    def routes(self) -> list[Route]:
        """All forms, with and without the last slash."""
        paths = ("/{token}/{account}/logs", "/{place}/logs", "/logs")
        return [Route(path + slash, self.answer) for path in paths for slash in ("/", "")]

    def answer(self, request: Request) -> Response:
        """One page of one store's day."""
        store = self._store(request)
        question, language = read_question(
            request.query_params.multi_items(),
            today=self._clock().astimezone(UTC).date(),
            contexts=self._contexts,
            accept_language=request.headers.get("accept-language", ""),
        )
        page = read_day(self._pool, store.id, question)
        records = [record.as_vtex(language) for record in page.records]
        return JSONResponse(
            {"Messages": records, "Paging": _paging(question, page)},
            headers={
                "cache-control": "no-store",
                "content-language": language,
                "vary": "authorization, accept-language",
            },
        )

    def _store(self, request: Request) -> Store:
        """Whose token it is; it opens its own store's account only (LOG-05)."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        bearer = bearer.strip() if scheme.lower() == "bearer" else ""
        token, account = request.path_params.get("token"), request.path_params.get("account")
        place = request.path_params.get("place")
        if place is not None:
            token, account = (None, place) if bearer else (place, None)
        # Found by its digest in an index: how long that takes tells nothing of the token.
        store = self._registry.find_by_token_digest(token_digest(token or bearer))
        if store is None and token:
            raise _refused(404, "token", "use the URL that the hub shows for the store; this one belongs to none")
        if store is None:
            raise _refused(401, "Authorization", "send Authorization: Bearer and the token of the store's URLs")
        if account is not None and plain_account(account) != store.account:
            raise _refused(403, "account", "use the account of the store that the token belongs to", account)
        return store


def _paging(question: Question, page: Page) -> dict[str, Any]:
    return {
        "Page": None if question.after else question.page,
        "Size": question.size,
        "Total": page.total,
        "TotalIsExact": page.exact,
        "Next": str(page.following) if page.following else None,
    }


# ---------------------------------------------------------------- whoever runs it


class Watch:
    """Pages about the process and the cell; no store appears in them."""

    def __init__(self, pool: Pool, answered: Counter[int], refused: Counter[str], *, serves: str) -> None:
        self._serves = {HEADER: serves}
        self._pool = pool
        self._answered = answered
        self._refused = refused
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._last: tuple[list[Gauge], list[Shut]] = ([], [])

    def routes(self) -> list[Route]:
        """One for each of `_PAGES`."""
        pages = (self._livez, self._readyz, self._metrics)
        return [Route(path, page) for path, page in zip(_PAGES, pages, strict=True)]

    def _livez(self, _: Request) -> Response:
        return PlainTextResponse("alive\n", headers=self._serves)

    def _readyz(self, _: Request) -> Response:
        try:
            with db.translated(), self._pool.connection(timeout=2.0) as connection:
                connection.execute("select 1 from registry_version")
        except StorageAway:
            return JSONResponse({"ready": False, "obstacles": ["PostgreSQL cannot be used"]}, 503)
        return JSONResponse({"ready": True, "obstacles": []})

    def _metrics(self, _: Request) -> Response:
        with self._lock:  # however many ask, PostgreSQL is asked once in a while
            if self._read_at is None or time.monotonic() - self._read_at > _GAUGE_SECONDS:
                self._last = gauges(self._pool)
                self._read_at = time.monotonic()
            found = self._last
        registry = prometheus_client.CollectorRegistry()
        registry.register(_Figures(*found, self._answered, self._refused))
        page = prometheus_client.generate_latest(registry)
        return Response(page, media_type=prometheus_client.CONTENT_TYPE_LATEST)


class _Counted:
    """Counts the answers by status; pages for whoever runs it do not count."""

    def __init__(self, app: ASGIApp, answered: Counter[int]) -> None:
        self._app = app
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] not in _PAGES:
                self._answered[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counting)


class _Figures(Collector):
    def __init__(
        self, waiting: Sequence[Gauge], shut: Sequence[Shut], answered: Mapping[int, int], refused: Mapping[str, int]
    ) -> None:
        self._waiting = waiting
        self._shut = shut
        self._answered = answered
        self._refused = refused

    def collect(self) -> Iterator[Metric]:
        pending = GaugeMetricFamily("hub_pending_keys", "Keys that wait to be looked at", labels=["context"])
        oldest = GaugeMetricFamily("hub_oldest_pending_seconds", "Age of the oldest pending key", labels=["context"])
        dead = GaugeMetricFamily("hub_dead_keys", "Keys whose plan is used up", labels=["context"])
        for gauge in self._waiting:
            pending.add_metric([gauge.context], gauge.pending)
            oldest.add_metric([gauge.context], gauge.oldest_seconds)
            dead.add_metric([gauge.context], gauge.dead)
        gates = GaugeMetricFamily("hub_shut_gates", "Gates that are shut", labels=["context", "cause"])
        for shut in self._shut:
            gates.add_metric([shut.context, shut.cause], shut.gates)
        answered = CounterMetricFamily("hub_api_answers", "Answers of the logs endpoint", labels=["status"])
        for status, count in sorted(self._answered.items()):
            answered.add_metric([str(status)], count)
        refused = CounterMetricFamily("hub_api_refused", "Requests that are no proper HTTP", labels=["reason"])
        for reason, count in sorted(self._refused.items()):
            refused.add_metric([reason], count)
        yield from (pending, oldest, dead, gates, answered, refused)


# ---------------------------------------------------------------- answers that are none


class _Refused(Exception):  # noqa: N818 – an answer on its way out
    """The request gets this answer."""

    def __init__(self, status: int, problem: Problem) -> None:
        self.status = status
        self.problem = problem
        super().__init__(problem.sentence())


def _refused(status: int, field: str, fix: str, value: str = "") -> _Refused:
    return _Refused(status, Problem("input", field=field, value=shortened(value), fix=fix))


def _told(status: int, problems: Sequence[Problem], headers: Mapping[str, str] | None = None) -> Response:
    body = {
        "error": "; ".join(one.sentence() for one in problems),
        "problems": [{"field": one.field, "value": one.value, "fix": one.fix} for one in problems],
    }
    return JSONResponse(body, status, headers=headers)


def _tell_refused(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, _Refused)  # noqa: S101 – registered for it
    return _told(refused.status, [refused.problem], {"www-authenticate": "Bearer"} if refused.status == 401 else None)


def _tell_bad_input(_: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, BadInput)  # noqa: S101 – registered for it
    return _told(400, wrong.problems)


def _tell_away(_: Request, away: Exception) -> Response:
    log.warning("cannot answer: %s", away)
    fix = "ask again in a moment; what is kept cannot be read now"
    return _told(503, [Problem("input", fix=fix)], {"retry-after": "5"})


def _tell_fault(_: Request, __: Exception) -> Response:
    fix = "ask whoever runs the hub to look into its log; the fault is the hub's own"  # uvicorn logs it
    return _told(500, [Problem("input", fix=fix)])


def _tell_http(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)  # noqa: S101 – registered for it
    return _told(fault.status_code, [Problem("input", field="request", fix=_HOW)], fault.headers)


# ---------------------------------------------------------------- the process


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def opened(
    database_url: str,
    schema: str,
    box: SecretBox,
    *,
    contexts: Collection[str],
    clock: Callable[[], datetime] = _now,
) -> Iterator[uvicorn.Server]:
    """A server that needs only a socket: `server.run(sockets=[listening(host, port)])`.

    PostgreSQL need not be there; it answers 503 until it is.
    """
    with closing(db.open_pool(database_url, schema, name="api", max_size=8, seqscan=False, timeout=2.0)) as pool:
        answered: Counter[int] = Counter()
        refused: Counter[str] = Counter()

        def refuse(reason: str) -> None:
            refused[reason] += 1

        logs = Logs(pool, Registry(pool, box), contexts=contexts, clock=clock)
        watch = Watch(pool, answered, refused, serves=mark("api", database_url, schema))
        app = Starlette(
            routes=[*watch.routes(), *logs.routes()],
            exception_handlers={
                _Refused: _tell_refused,
                BadInput: _tell_bad_input,
                StorageAway: _tell_away,
                HTTPException: _tell_http,
                Exception: _tell_fault,
            },
        )
        app.router.redirect_slashes = False
        app.add_middleware(_Counted, answered=answered)
        yield uvicorn.Server(
            uvicorn.Config(
                app,
                http=bounded(Bounds(), refuse),
                loop="uvloop",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # its lines would hold the tokens
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=5,
            )
        )


def run(
    settings: Settings,
    box: SecretBox | None = None,
    host: str = "127.0.0.1",
    port: int = 8081,
    *,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Serve until interrupted. `BadInput` when the address is another's or the key of the credentials is missing."""
    box = box or SecretBox.from_env(env)
    bound = joined(host, port, mark("api", settings.database_url, settings.schema))
    with opened(settings.database_url, settings.schema, box, contexts=tuple(settings.contexts)) as server:
        log.info("logs endpoint listens on %s:%s", *bound.getsockname()[:2])
        server.run(sockets=[bound])
