"""The only way out: every call to VTEX or a marketplace goes through here, or it is not made.

The promise: a call starts only when its circuit, the peer's wishes (429, rate headers) and the account's budget allow
it for all processes together; it ends by its total deadline whatever the peer does; what comes out is an `Answer` or
one of `hub.errors`; and no secret leaves in an error, a log line or a journal entry.

Circuit, hold and token are asked in one trip to Redis (`hub/admit.lua`, 0.1 ms); a good call needs no second one.
"""

from __future__ import annotations

import http.client
import json as jsons
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal, NoReturn
from urllib.parse import quote, urlencode, urljoin, urlsplit

import redis
import urllib3

from hub.circuits import LOOK_AGAIN, Circuit, Circuits, Name, Patience, Verdict
from hub.errors import (
    AuthLost,
    BadInput,
    CircuitOpen,
    HubError,
    LeaseLost,
    Problem,
    Refusal,
    Side,
    Throttled,
    Unavailable,
    UnknownOutcome,
)
from hub.limits import ARREARS, HORIZONS, LONGEST_HOLD, LONGEST_SLEEP, QUEUE, Board, Budget, Limits, Script, rank_of
from hub.model import JsonTree
from hub.redaction import Redactor
from hub.wires import Wires, tls, watch

log = logging.getLogger(__name__)
logging.getLogger("urllib3").setLevel(logging.INFO)  # its debug lines hold whole addresses, query strings included

LARGEST_ANSWER = 8 * 1024 * 1024
"""Bytes of a decoded answer."""
BUSINESS = frozenset({400, 404, 409, 410, 412, 422})
"""Statuses that are answers: the client knows what they mean for the operation."""
STANDARD_HEADERS = {
    "User-Agent": "vtex-marketplace-hub",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Content-Type": "application/json",
}
"""Sent with every call unless the client says otherwise (vtex.md 2.2)."""
GO, OPEN, HELD, LIMIT, SUSPECT = 1, 2, 3, 4, 5
"""The words of `hub/admit.lua`."""
LOOK_OUT = 0.05
"""Seconds after which a call that waits for a suspect peer asks again."""
LEASE_MARGIN = 0.2
"""Seconds between the end of a write and the end of the lease that allows it."""

LEAST_WRITE = 2.0
"""A write that would have less time than this (seconds) is not started at all."""

WITHOUT_TIME = 60.0
"""Seconds to wait after a 429 that names no time (ACC-08); up to a sixth more by chance."""

Write = Literal["read", "idempotent", "create"]
Params = Mapping[str, str | int | Sequence[str]]


def _always() -> float:
    return float("inf")


@dataclass(slots=True)
class Deeds:
    """How many writes of one piece of work a peer has taken (2xx) so far."""

    writes: int = 0


@dataclass(frozen=True, slots=True)
class Calling:
    """On whose behalf this thread calls. Set by the runner in every pool thread.

    `remaining` gives the seconds that the lease still lasts. `key` is what the work is about: it makes failures
    distinct (none: every failure counts). `for_load`: a load asked for it. `ticket`: room kept by `Limits.room`.
    """

    store: str
    context: str
    remaining: Callable[[], float] = _always
    key: str = ""
    for_load: bool = False
    ticket: str = ""
    deeds: Deeds = field(default_factory=Deeds)


calling: ContextVar[Calling] = ContextVar("calling")


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it may be told: for metrics and the journal. Redacted.

    `seconds` is from start to end of the call, `waited` is the sleep for a token before it. `status` is `None` when
    there was no answer or the call was not made; `error` is then the class in `hub.errors`.
    """

    store: str
    side: Side
    group: str
    operation: str
    method: str
    path: str
    status: int | None
    seconds: float
    waited: float
    size: int
    error: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """2xx, or a business answer (400, 404, 409, 410, 412, 422).

    `text` is as the peer wrote it; what is kept or shown is `excerpt`, which is redacted.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    seconds: float
    _unreadable: Callable[[], NoReturn] = field(repr=False, compare=False)
    _redactor: Redactor = field(repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """2xx."""
        return 200 <= self.status < 300

    def json(self) -> JsonTree:
        """The body as JSON. Raises `Unavailable` (after a create: `UnknownOutcome`) when it is none.

        For an answer that is not `ok` the body may be anything (ACC-13): use `tree` there.
        """
        tree = self.tree()
        if tree is None and self.text.strip() != "null":
            self._unreadable()
        return tree

    def tree(self) -> JsonTree | None:
        """The body as JSON, `None` when it is none."""
        try:
            return jsons.loads(self.text, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return None

    def excerpt(self, bound: int = 2000) -> str:
        """The body for people and journals: redacted, shortened."""
        return self._redactor.text(self.text, bound)


class Transport:
    """The way out of one process: its Redis, limits, circuits, connections. Thread-safe.

    Args:
        server: URL or client of Redis; None: this process is alone.
        prefix: every key begins with it.
        patience: when circuits open; `hub.settings.CircuitSettings` fits.
        observer: told of every call; its errors are logged, not raised.
        on_circuit: told after a circuit opened or closed, in the process that did it.
    """

    def __init__(
        self,
        server: str | redis.Redis | None,
        prefix: str = "hub",
        patience: Patience | None = None,
        *,
        observer: Callable[[Call], None] | None = None,
        on_circuit: Callable[[Circuit], None] | None = None,
    ) -> None:
        self.board = Board(server)
        self.limits = Limits(self.board, prefix)
        self.circuits = Circuits(self.board, prefix, patience, on_change=on_circuit)
        self.observer = observer
        self.wires = Wires()
        self._admit = Script("admit.lua")
        self._tls: dict[bool | str, ssl.SSLContext] = {}
        self._lock = threading.Lock()

    def peer(
        self,
        store: str,
        side: Side,
        base_url: str,
        *,
        account: str,
        rate: float = 0.0,
        burst: int = 1,
        obeyed: float = LONGEST_HOLD,
        headers: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        verify: bool | str = True,
        connect: float = 5.0,
        total: float = 15.0,
    ) -> Peer:
        """One store's way to one peer.

        `account` names the budget: whoever names the same shares it, so it must be unique over all peers
        (`vtex:acme`). `obeyed`: how many seconds a `Retry-After` is obeyed at most. `headers` go with every call;
        their values and `secrets` are redacted everywhere. `connect` is the time in seconds for name, connection and
        TLS together, `total` that for a whole call which names no time of its own. `BadInput` names what cannot be
        used.
        """
        return Peer(
            self,
            store=store,
            side=side,
            base_url=base_url,
            budget=Budget(account, rate, burst, obeyed),
            headers=headers or {},
            secrets=secrets,
            verify=verify,
            connect=connect,
            total=total,
        )

    def trusted(self, verify: bool | str) -> ssl.SSLContext:
        """The TLS settings for `verify`; read once."""
        with self._lock:
            if verify not in self._tls:
                self._tls[verify] = tls(verify)
            return self._tls[verify]

    def admit(
        self, name: Name, call: str, *, budget: Budget, who: Calling, total: float, horizon: float, at: int = 0
    ) -> Verdict:
        """May this call start? Circuit, hold and token, for all processes in one step.

        `at`: the time in microseconds, where it is not Redis' own.
        """
        rank = rank_of(who.context, for_load=who.for_load)
        account, limits = budget.account, self.limits
        circuit, failed, _ = self.circuits.keys(name)
        answer = self.board.run(
            self._admit,
            (
                circuit, failed, limits.hold_key(account, name.group), limits.key("limit", account),
                limits.key("waiting", account), limits.key("parts", account), limits.key("kept", account),
                limits.key("sent", account),
            ),
            (
                call, int((total + LOOK_AGAIN) * 1e6), budget.interval, budget.depth,
                int(min(HORIZONS[rank], horizon) * 1e6), rank, budget.spare(rank), name.store, who.ticket, budget.turn,
                budget.near(rank), int((LONGEST_SLEEP - horizon) * 1e6), budget.counted, budget.window,
                int(ARREARS * 1e6), int(QUEUE * 1e6), at,
            ),
        )  # fmt: skip
        if answer is None:
            return self._alone(name, budget, rank, call, total)
        verdict = Verdict(answer[0], answer[1] / 1e6, answer[2], answer[3] == 1)
        if verdict.word == OPEN and not verdict.probe:
            self.circuits.seen_open(name, verdict.wait)
        elif verdict.word == SUSPECT:
            self.circuits.seen_suspect(name)
        elif verdict.word == GO and not verdict.probe:
            self.circuits.seen_closed(name)
        return verdict

    def _alone(self, name: Name, budget: Budget, rank: int, call: str, total: float) -> Verdict:
        verdict = self.circuits.alone_admit(name, call, total)
        if verdict.word != GO:
            return verdict
        held = self.limits.alone_hold(budget.account, name.group)
        granted, wait = (False, held) if held else self.limits.alone_take(budget, rank)
        if granted:
            return verdict._replace(wait=wait)
        self.circuits.refused(name, call, verdict)
        return Verdict(HELD if held else LIMIT, wait)

    def tell(self, call: Call) -> None:
        """Let the observer know."""
        if self.observer is None:
            return
        try:
            self.observer(call)
        except Exception:  # whoever counts must not break what is counted
            log.exception("the observer of calls failed")

    def close(self) -> None:
        """Give Redis' connections back; those to peers end with their threads."""
        self.board.close()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What goes over the wire."""

    method: str
    target: str
    body: bytes | None
    headers: Mapping[str, str]
    total: float


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What came over the wire, or why nothing did. `overran`: seconds of the deadline that ended it, else 0."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    lost: str = ""
    sent: bool = True
    overran: float = 0.0


class Peer:
    """One store's way to one peer; made by `Transport.peer`. Thread-safe."""

    def __init__(
        self,
        transport: Transport,
        *,
        store: str,
        side: Side,
        base_url: str,
        budget: Budget,
        headers: Mapping[str, str],
        secrets: Sequence[str],
        verify: bool | str,
        connect: float,
        total: float,
    ) -> None:
        address = urlsplit(base_url)
        problems = _unsendable(headers)
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.username:
            fix = "give http(s)://host[:port][/path] and nothing else"
            problems.append(Problem("", f"{side} address", address.hostname or "", fix))
        if problems:
            raise BadInput(problems)
        self.store = store
        self.side: Side = side
        self.budget = budget
        self._transport = transport
        self._root = address.path.rstrip("/")
        self._host = f"{address.scheme}://{address.netloc}"
        self._context = transport.trusted(verify) if address.scheme == "https" else None
        self._connect = connect
        self._total = total
        self._headers = {**STANDARD_HEADERS, **headers}
        values = [value for key, value in headers.items() if key.title() not in STANDARD_HEADERS]
        hidden = [*secrets, *values, *(word for value in values for word in value.split())]  # "Bearer …"
        self._redactor = Redactor([*hidden, *(quote(secret, safe="") for secret in hidden)])
        transport.limits.register(budget)

    def request(
        self,
        method: str,
        path: str,
        *,
        operation: str,
        group: str = "default",
        params: Params | None = None,
        json: JsonTree = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        total: float | None = None,
        write: Write = "read",
        auth_version: int = 0,
    ) -> Answer:
        """Make one call; foreign input in `path` must be quoted already.

        Args:
            operation: what is asked, for journal and metrics.
            group: calls that share circuit and holds (VTEX: an API group).
            json: body; `data` is the alternative, with its own Content-Type.
            total: seconds for everything, from the first byte of the connection to the last of the answer; the
                peer's own when left out.
            write: a write starts only when the lease outlasts it; a `create` whose answer is lost is `UnknownOutcome`.
            auth_version: of the credentials in use, for `AuthLost`.

        Raises:
            AuthLost: 401 (scope store), 403 (scope context).
            Throttled: 429, or more than a second to wait for a token or a hold.
            CircuitOpen: the peer is left alone, or has been suspect for a second.
            Unavailable: 5xx, 408, no answer in time, cut, too large, redirected elsewhere.
            UnknownOutcome: the same for a create that may have been done; not for 500 and 503, which are answers.
            Refusal: another 4xx: the call itself is wrong.
            LeaseLost: the lease does not outlast the write.
        """
        who = calling.get(None) or Calling(self.store, "control")
        total = self._total if total is None else total
        name = Name(self.store, self.side, group)
        told = _Telling(self, name, operation, method, path)
        problems = _unsendable(headers or {})
        if problems:
            raise BadInput(problems)
        body, extra = _encoded(json, data)
        target = self._root + path
        if params:
            target += f"?{urlencode(params, doseq=True)}"
        asked = _Asked(method, target, body, {**self._headers, **extra, **(headers or {})}, total)
        circuits = self._transport.circuits
        call = circuits.next_call()
        try:
            _within_lease(write, who, total, operation)
            verdict = self._admitted(name, call, who, total, told)
        except HubError as error:
            told.ended(error)
            raise
        failure: Unavailable | None = None
        good = False
        ending: HubError | None = None
        try:
            began = time.monotonic()  # before the lease is asked: whatever stops us from here on is taken off the call
            ends = replace(asked, total=_within_lease(write, who, total, operation))
            answer = self._understood(self._exchange(ends, began), told, group, write, auth_version)
            good = answer.ok
            who.deeds.writes += good and write != "read"
        except Unavailable as lost:
            failure = ending = lost
            raise
        except HubError as other:
            ending = other
            raise
        finally:
            if failure is not None or good:
                circuits.ended(name, call, verdict, failure, f"{operation} {who.key or call}", overran=told.overran)
            else:
                circuits.refused(name, call, verdict, answered=told.status is not None)
            if watch.sent and watch.sent_at > told.due:
                self._transport.limits.sent_late(self.budget, call, watch.sent_at - told.due)
            told.ended(ending)
        return answer

    def hold(self, group: str, seconds: float) -> None:
        """The peer said in its own words that it wants no call (VTEX: ORD021.3, CHK00310): obeyed by all processes."""
        self._transport.limits.hold(self.budget.account, group, seconds)

    def redact(self, text: str) -> str:
        """`text` as it may be kept and shown."""
        return self._redactor.text(text)

    def _admitted(self, name: Name, call: str, who: Calling, total: float, told: _Telling) -> Verdict:
        """Wait for the token, at most a second; more, or a hold, is `Throttled`.

        While the circuit is suspect as well, in this thread: an answer to another call ends that within milliseconds,
        and to give the key back would brake its whole store for longer.
        """
        while True:
            asked = time.monotonic()
            verdict = self._transport.admit(
                name, call, budget=self.budget, who=who, total=total, horizon=LONGEST_SLEEP - told.waited
            )
            if verdict.word == OPEN:
                wait = min(verdict.wait, LOOK_AGAIN) if verdict.probe else verdict.wait
                raise CircuitOpen(f"{told.what}: the circuit is open", side=self.side, wait=wait)
            if verdict.word == SUSPECT:
                pause = min(verdict.wait, LOOK_OUT)
                if told.waited + pause > LONGEST_SLEEP:
                    raise CircuitOpen(f"{told.what}: the peer seems to hang", side=self.side, wait=verdict.wait)
                time.sleep(pause)
                told.waited += pause
                continue
            going = verdict.word == GO
            if not going and told.waited + verdict.wait > LONGEST_SLEEP:
                why = "the peer wants no call yet" if verdict.word == HELD else "the budget is used up"
                raise Throttled(f"{told.what}: {why}", side=self.side, wait=verdict.wait)
            pause = verdict.wait if going else max(verdict.wait, 0.001)
            if pause > 0:
                time.sleep(pause)
                told.waited += pause
            if going:
                more = self._transport.limits.still_to_wait(self.budget, call, pause)
                if more > 0:
                    time.sleep(more)
                    told.waited += more
                told.starts(asked + verdict.wait + more)
                return verdict

    def _exchange(self, asked: _Asked, began: float) -> _Exchange:
        """One request and its answer within the total time; a 308 to the same host is followed once."""
        watch.begin(began + asked.total, self._connect)
        exchange = self._over_the_wire(asked)
        if exchange.status != 308:
            return exchange
        before = self._host + asked.target
        try:
            after = urljoin(before, exchange.headers.get("Location", ""))
            address = urlsplit(after)
        except ValueError:
            return _Exchange(lost="redirected to what is no address", sent=False)
        if f"{address.scheme}://{address.netloc}" != self._host or after == before:
            return _Exchange(lost="redirected to another host", sent=False)
        if not address.path:  # a host's front page answers 200 to whatever it is sent
            return _Exchange(lost="redirected to no path", sent=False)
        return self._over_the_wire(replace(asked, target=after[len(self._host) :]))

    def _over_the_wire(self, asked: _Asked) -> _Exchange:
        pool = self._transport.wires.of(self._host, self._context)
        lost, late = "", False
        try:
            response = pool.urlopen(
                asked.method,
                asked.target,
                body=asked.body,
                headers=asked.headers,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
            content = None
            try:
                content = _bounded(response)
            finally:
                if content is None:
                    response.close()  # what is left of it must not be taken for the next answer
                response.release_conn()
            if content is not None:
                return _Exchange(response.status, response.headers, content)
            lost = f"the answer is larger than {LARGEST_ANSWER} bytes"
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            lost, late = _why(error, asked.total)
        # Raised by our caller, outside of the handler: the foreign error holds the whole address.
        return _Exchange(lost=lost, sent=watch.sent, overran=asked.total if late else 0.0)

    def _understood(self, exchange: _Exchange, told: _Telling, group: str, write: Write, auth_version: int) -> Answer:
        """The answer by its status, or the error by what happens next."""
        status, headers = exchange.status, exchange.headers
        may_be_done = write == "create" and exchange.sent
        if status is None:
            told.overran = exchange.overran
            raise self._no_answer(f"{told.what}: {exchange.lost}", may_be_done)
        told.status, told.size = status, len(exchange.body)
        text = _decoded(headers, exchange.body)
        now = datetime.now(UTC)
        wait = min(_asked_to_wait(status, headers, now), self.budget.obeyed)
        if wait > 0:
            self._transport.limits.hold(self.budget.account, group, wait)
        if 200 <= status < 300 or status in BUSINESS:
            seconds = time.monotonic() - told.began

            def refuse() -> NoReturn:
                unreadable = f"{told.what}: answered {status} with something that is not JSON"
                raise self._no_answer(unreadable, may_be_done and status < 300, status, self._redactor.text(text))

            return Answer(status, headers, text, seconds, refuse, self._redactor)
        what = f"{told.what}: answered {status}"
        if status == 429:
            raise Throttled(what, side=self.side, wait=wait)
        if status in (401, 403):
            scope: Literal["store", "context"] = "store" if status == 401 else "context"
            raise AuthLost(f"{what} ({group})", side=self.side, version=auth_version, scope=scope)
        excerpt = self._redactor.text(text)
        if 400 <= status < 500 and status != 408:
            fix = "the peer takes no such call: report it to the hub's developers with this operation's name"
            raise Refusal([Problem("E3", told.operation, str(status), fix)], status=status, answer=excerpt)
        raise self._no_answer(what, may_be_done and status not in (500, 503), status, excerpt)

    def _no_answer(self, what: str, may_be_done: bool, status: int | None = None, answer: str = "") -> Unavailable:
        kind = UnknownOutcome if may_be_done else Unavailable
        return kind(what, side=self.side, status=status, answer=answer)


class _Telling:
    """What will be told of a call. Its path is redacted when it is told: most calls are not."""

    def __init__(self, peer: Peer, name: Name, operation: str, method: str, path: str) -> None:
        self._peer, self._name, self._method, self._given = peer, name, method, path
        self.operation = operation
        self.waited = 0.0
        self.began = self.due = time.monotonic()
        self.status: int | None = None
        self.size = 0
        self.overran = 0.0

    @property
    def path(self) -> str:
        """Without query and secrets."""
        return self._peer._redactor.path(self._given)  # noqa: SLF001 – the peer's own other half

    @property
    def what(self) -> str:
        """Begins the call's errors."""
        return f"{self.operation} ({self._method} {self.path})"

    def starts(self, due: float) -> None:
        """The token is there; the call was granted for `due`."""
        self.began, self.due = time.monotonic(), due

    def ended(self, error: HubError | None) -> None:
        """Tell the observer."""
        transport = self._peer._transport  # noqa: SLF001 – the peer's own other half
        if transport.observer is None:
            return
        transport.tell(
            Call(
                *self._name,
                operation=self.operation,
                method=self._method,
                path=self.path,
                status=self.status,
                seconds=time.monotonic() - self.began,
                waited=self.waited,
                size=self.size,
                error=type(error).__name__ if error else None,
                text=str(error) if error else "",
            )
        )


def _within_lease(write: Write, who: Calling, total: float, operation: str) -> float:
    """The deadline of a call, in seconds: that of a write ends before the lease does (design 2, law 2)."""
    if write == "read":
        return total
    lasts = who.remaining() - LEASE_MARGIN
    if lasts < min(total, LEAST_WRITE):
        raise LeaseLost(f"{operation}: the lease does not outlast a write of {min(total, LEAST_WRITE):g} s")
    return min(total, lasts)


def _encoded(json: JsonTree, data: bytes | None) -> tuple[bytes | None, dict[str, str]]:
    if json is None:
        return data, {}
    text = jsons.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode(), {"Content-Type": "application/json"}


def _unsendable(headers: Mapping[str, str]) -> list[Problem]:
    return [
        Problem("", f"header {key}", "", "remove line breaks, control and non-ASCII characters from the value")
        for key, value in headers.items()
        if not (value.isascii() and value.isprintable() and value == value.strip())
    ]


def _bounded(response: urllib3.BaseHTTPResponse) -> bytes | None:
    """The decoded body, `None` when it is larger than we take."""
    parts, size = [], 0
    for part in response.stream(65536, decode_content=True):
        size += len(part)
        if size > LARGEST_ANSWER:
            return None
        parts.append(part)
    return b"".join(parts)


def _decoded(headers: Mapping[str, str], body: bytes) -> str:
    found = re.search(r"charset=[\"']?([\w.:-]+)", headers.get("Content-Type", ""))
    name = found[1] if found else "utf-8"
    try:
        return body.decode("utf-8" if _PYTHONS_OWN.fullmatch(name) else name, errors="replace")
    except (LookupError, ValueError):  # no charset of anybody's
        return body.decode("utf-8", errors="replace")


# Codecs that are no charsets: they raise whatever they are told, or warn about what they read.
_PYTHONS_OWN: Final = re.compile(r"(raw.)?unicode.escape|undefined|idna|punycode", re.IGNORECASE)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _why(error: Exception, total: float) -> tuple[str, bool]:
    """Why there is no answer, without anything of the foreign text: it holds addresses; was it for lack of time?"""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        inner = next((part for part in cause.args if isinstance(part, BaseException)), None)
        cause = inner or getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
        cause = cause if isinstance(cause, BaseException) else None
    names = {type(link).__name__ for link in chain}
    if names & {"ConnectTimeout", "ConnectTimeoutError"}:
        return "no connection in time", True
    if any(isinstance(link, TimeoutError) for link in chain) or names & {"ReadTimeout", "ReadTimeoutError"}:
        return f"no whole answer within {total:g} s", True
    if "NameResolutionError" in names:
        return "the host's name is not known", False
    if any(isinstance(link, ssl.SSLError) for link in chain):
        return "TLS failed: certificate or protocol", False
    if any(isinstance(link, ConnectionRefusedError) for link in chain):
        return "connection refused", False
    if names & {"DecodeError", "ContentDecodingError", "InvalidChunkLength", "BadStatusLine", "HTTPException"}:
        return "the answer is unreadable", False
    return f"the connection was cut ({type(error).__name__})", False


# – what the peer wishes


def _asked_to_wait(status: int, headers: Mapping[str, str], now: datetime) -> float:
    """Seconds without calls that an answer asks for, 0 when it does not (vtex.md 2.4, ACC-06 to ACC-09)."""
    named = [
        wait
        for wait in (
            retry_after(headers, now) if status in (429, 503) else None,
            rate_reset(headers, now),
        )
        if wait is not None
    ]
    if named:
        return min(max(named), LONGEST_HOLD)
    if status == 429:
        return WITHOUT_TIME * (1 + random.random() / 6)  # noqa: S311 – spreads calls, keeps no secret
    return 0.0


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """`Retry-After` in seconds: between 1 s and 15 min, `None` when absent or unreadable.

    A date is compared with the answer's own `Date`, where there is one: clocks differ.
    """
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    if re.fullmatch(r"\d{1,12}(\.\d*)?", text):
        seconds = float(text)
    else:
        moment = _moment(text)
        if moment is None:
            return None
        seconds = (moment - (_moment(headers.get("Date", "")) or now)).total_seconds()
    return min(max(seconds, 1.0), LONGEST_HOLD)


def rate_reset(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds until the budget is new, when the peer says that nothing remains; at most 15 min, else `None`.

    Both families: `Ratelimit-*` (seconds) and `X-RateLimit-*` (seconds, or a moment as Unix seconds or milliseconds).
    """
    waits = []
    for family in ("Ratelimit", "X-RateLimit"):
        remaining = _number(headers.get(f"{family}-Remaining"))
        reset = _number(headers.get(f"{family}-Reset"))
        if remaining is None or reset is None or remaining > 0:
            continue
        if reset > 1e12:
            reset /= 1000
        if reset > 1e9:
            reset -= now.timestamp()
        waits.append(min(max(reset, 0.0), LONGEST_HOLD))
    return max(waits, default=None)


def _number(text: str | None) -> float | None:
    found = re.match(r"\s*(-?\d{1,15}(?:\.\d{1,6})?)", text or "")
    return float(found[1]) if found else None


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
