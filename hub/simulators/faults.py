"""Misbehaviour on demand and the memory of every call, shared by the simulators.

The promise: whatever a peer can do wrong – answer an error, throttle, say yes without doing it, do it and say
nothing, break off, drip, be slow, show yesterday's value – can be asked for, per operation and account, by count,
by time or by chance from a seed; and every request that came in can be read back, redacted.
"""

import asyncio
import heapq
import itertools
import json
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

JOURNAL_ENTRIES = 50_000  # of each operation: a flood of reads pushes no write out
BODY_KEPT = 16_384  # bytes of a request body that the journal keeps
SECRET_WORDS = ("authorization", "token", "appkey", "cookie", "secret", "password", "signature")
MOST_BYTES = 64 * 1024 * 1024  # of a request body
REDACTED = "***"


class Kind(StrEnum):
    """What goes wrong. The first five replace the answer, the last four bend it."""

    STATUS = "status"  # answer `status` with `body`, nothing done
    THROTTLE = "throttle"  # answer 429 with Retry-After and rate headers, nothing done
    HANG_BEFORE = "hang_before"  # nothing done, no answer for `seconds`, then 504
    HANG_AFTER = "hang_after"  # done, no answer for `seconds`, then 504
    CUT = "cut"  # done, connection cut in the middle of the answer's body
    DRIP = "drip"  # done, the body comes byte by byte over `seconds`
    LIE = "lie"  # answer success without doing it
    STALE = "stale"  # read as it was before the last change
    LATENCY = "latency"  # do and answer right, `seconds` later; adds to other rules


class Fault(BaseModel):
    """One rule. It bites calls of `operation` (a name, `group:<name>` or `*`) in order of being added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    operation: str = "*"
    account: str | None = Field(None, description="only calls of this account; all when empty")
    count: int | None = Field(None, ge=1, description="bites left; without end when empty")
    skip: int = Field(0, ge=0, description="matching calls that pass unharmed first")
    for_seconds: float | None = Field(None, gt=0, description="life from now on; without end when empty")
    probability: float = Field(1.0, ge=0, le=1, description="chance per matching call, drawn from the seed")
    status: int = Field(503, ge=400, le=599, description="for kind status: 401 and 403 on a group shut it")
    body: str = Field("Service Unavailable", description="for kind status: plain text, or JSON when it parses")
    seconds: float = Field(30.0, ge=0, description="for hang, drip and latency")
    jitter: float = Field(0.0, ge=0, description="for latency: up to so many seconds more, from the seed")
    retry_after: float | None = Field(1.0, ge=0, description="for throttle: seconds; no header when empty")
    retry_after_form: str = Field("seconds", pattern="^(seconds|date)$")
    retry_after_text: str | None = Field(None, max_length=200, description="for throttle: the header as it stands")
    rate_headers: str = Field("both", pattern="^(both|ratelimit|x-ratelimit|none)$")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call will suffer: a wait first, then at most one replacing fault, and what bends the answer."""

    latency: float = 0.0
    fault: Fault | None = None
    lying: bool = False
    stale: bool = False


NOTHING_WRONG = Plan()


@dataclass(slots=True)
class _Rule:
    id: int
    fault: Fault
    left: int | None
    skip: int
    ends: float | None
    bites: int = 0


class Faults:
    """The rules in force. `plan` is asked once per call and spends the counts.

    Args:
        seed: makes every drawn chance repeatable for the same order of calls.
        clock: seconds, only differences count.
    """

    def __init__(self, seed: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.random = random.Random(seed)  # noqa: S311 – repeatable chance is the point, nothing is kept secret by it
        self._clock = clock
        self._ids = itertools.count(1)
        self._rules: list[_Rule] = []

    def add(self, fault: Fault) -> int:
        """Put a rule in force and return its id."""
        ends = None if fault.for_seconds is None else self._clock() + fault.for_seconds
        rule = _Rule(next(self._ids), fault, fault.count, fault.skip, ends)
        self._rules.append(rule)
        return rule.id

    def remove(self, rule_id: int) -> bool:
        """Take one rule out of force; False when there is none."""
        before = len(self._rules)
        self._rules = [rule for rule in self._rules if rule.id != rule_id]
        return len(self._rules) < before

    def clear(self) -> None:
        """Take every rule out of force."""
        self._rules = []

    def listed(self) -> list[dict[str, object]]:
        """The rules as JSON, with the bites so far."""
        return [
            {"id": rule.id, "left": rule.left, "bites": rule.bites, **rule.fault.model_dump(mode="json")}
            for rule in self._rules
        ]

    def plan(self, operation: str, group: str = "", account: str = "") -> Plan:
        """Decide what this call suffers; the first replacing rule that matches wins, latencies add up."""
        if not self._rules:
            return NOTHING_WRONG
        now = self._clock()
        latency, fault, lying, stale, spent = 0.0, None, False, False, False
        for rule in self._rules:
            kind = rule.fault.kind
            replacing = kind not in (Kind.LATENCY, Kind.LIE, Kind.STALE)
            if (replacing and fault is not None) or not self._bites(rule, operation, group, account, now):
                spent = spent or rule.left == 0 or (rule.ends is not None and rule.ends <= now)
                continue
            rule.bites += 1
            if rule.left is not None:
                rule.left -= 1
                spent = spent or rule.left == 0
            if kind is Kind.LATENCY:
                latency += rule.fault.seconds + self.random.random() * rule.fault.jitter
            elif kind is Kind.LIE:
                lying = True
            elif kind is Kind.STALE:
                stale = True
            else:
                fault = rule.fault
        if spent:
            self._rules = [r for r in self._rules if r.left != 0 and (r.ends is None or r.ends > now)]
        return Plan(latency, fault, lying, stale)

    def _bites(self, rule: _Rule, operation: str, group: str, account: str, now: float) -> bool:
        fault = rule.fault
        if fault.operation not in ("*", operation, f"group:{group}"):
            return False
        if fault.account is not None and fault.account != account:
            return False
        if rule.left == 0 or (rule.ends is not None and rule.ends <= now):
            return False
        if rule.skip > 0:
            rule.skip -= 1
            return False
        return fault.probability >= 1.0 or self.random.random() < fault.probability


@dataclass(frozen=True, slots=True)
class Entry:
    """One request as it came in and how it was answered. Headers are redacted; `body` is cut at BODY_KEPT bytes."""

    number: int
    at: str
    method: str
    path: str
    query: str
    operation: str
    account: str
    status: int
    seconds: float
    headers: dict[str, str]
    body: str
    fault: str = ""


@dataclass(slots=True)
class Journal:
    """The last `size` requests of each operation, and counts of all of them by account, operation and status."""

    size: int = JOURNAL_ENTRIES
    entries: dict[str, deque[Entry]] = field(init=False, default_factory=dict)
    counts: Counter[tuple[str, str, int]] = field(init=False, default_factory=Counter)
    number: int = field(init=False, default=0)

    def record(
        self,
        *,
        method: str,
        path: str,
        query: str,
        operation: str,
        account: str,
        status: int,
        seconds: float,
        headers: Mapping[str, str],
        body: bytes,
        fault: str = "",
    ) -> None:
        """Keep one request. Status 0 means: no answer was given."""
        self.number += 1
        self.counts[account, operation, status] += 1
        self.entries.setdefault(operation, deque(maxlen=self.size)).append(
            Entry(
                number=self.number,
                at=datetime.now(UTC).isoformat(),
                method=method,
                path=path,
                query=query,
                operation=operation,
                account=account,
                status=status,
                seconds=round(seconds, 6),
                headers=redacted(headers),
                body=body[:BODY_KEPT].decode(errors="replace"),
                fault=fault,
            )
        )

    def find(
        self,
        *,
        operation: str | None = None,
        account: str | None = None,
        method: str | None = None,
        status: int | None = None,
        path_contains: str | None = None,
        body_contains: str | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[Entry]:
        """The newest `limit` entries that fit every given condition, oldest first, numbered above `after`."""
        found: list[Entry] = []
        chosen = [kept for name, kept in self.entries.items() if operation in (None, name)]
        for entry in heapq.merge(*map(reversed, chosen), key=lambda one: -one.number):
            if entry.number <= after or len(found) >= limit:
                break
            if (
                (account is None or entry.account == account)
                and (method is None or entry.method == method)
                and (status is None or entry.status == status)
                and (path_contains is None or path_contains in entry.path)
                and (body_contains is None or body_contains in entry.body)
            ):
                found.append(entry)
        return found[::-1]

    def clear(self) -> None:
        """Forget entries and counts."""
        self.entries.clear()
        self.counts.clear()


def redacted(headers: Mapping[str, str]) -> dict[str, str]:
    """Header values, secret ones replaced."""
    return {
        name: REDACTED if any(word in name.lower() for word in SECRET_WORDS) else value
        for name, value in headers.items()
    }


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a limit says about one call. `reset` in seconds."""

    allowed: bool
    limit: int
    remaining: int
    reset: float


class Limits:
    """So many calls per window for a name (an operation or a group) and account; nothing is limited at first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowed: dict[str, tuple[int, float]] = {}
        self._used: dict[tuple[str, str], tuple[float, int]] = {}

    def set(self, name: str, calls: int | None, window: float = 60.0) -> None:
        """Allow `calls` in each `window` seconds for `name` (`group:<name>` for a group); None lifts the limit."""
        if calls is None:
            self._allowed.pop(name, None)
        else:
            self._allowed[name] = (calls, window)
        self._used = {key: used for key, used in self._used.items() if key[0] != name}

    def clear(self) -> None:
        """Lift every limit."""
        self._allowed.clear()
        self._used.clear()

    def spend(self, operation: str, group: str, account: str) -> Allowance | None:
        """Count one call against the operation's and the group's limit; None when neither is limited."""
        tightest: Allowance | None = None
        if not self._allowed:
            return None
        for name in (operation, f"group:{group}"):
            if name not in self._allowed:
                continue
            calls, window = self._allowed[name]
            now = self._clock()
            start, used = self._used.get((name, account), (now, 0))
            if now - start >= window:
                start, used = now, 0
            allowed = used < calls
            self._used[name, account] = (start, used + allowed)
            allowance = Allowance(allowed, calls, max(0, calls - used - 1), start + window - now)
            if tightest is None or (tightest.allowed and not allowed):
                tightest = allowance
        return tightest


def rate_headers(limit: int, remaining: int, reset: float, family: str = "both") -> dict[str, str]:
    """Both spellings of the rate headers (vtex.md 2.4), or one of them."""
    headers: dict[str, str] = {}
    if family in ("both", "ratelimit"):
        headers |= {
            "Ratelimit-Limit": str(limit),
            "Ratelimit-Remaining": str(remaining),
            "Ratelimit-Reset": f"{reset:.0f}",
        }
    if family in ("both", "x-ratelimit"):
        headers |= {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Reset": f"{reset:.0f}",
        }
    return headers


def throttled(
    retry_after: float | None, form: str = "seconds", family: str = "both", body: str = "Too Many Requests"
) -> Response:
    """A 429 with `Retry-After` in the wanted form and the wanted rate headers. Whole seconds, rounded up."""
    headers = rate_headers(0, 0, retry_after or 0.0, family) if family != "none" else {}
    if retry_after is not None:
        whole = -int(-retry_after // 1)
        date = datetime.now(UTC) + timedelta(seconds=retry_after + 0.999)
        headers["Retry-After"] = format_datetime(date, usegmt=True) if form == "date" else str(whole)
    return Response(body, status_code=429, headers=headers, media_type="text/plain")


async def read_body(request: Request, most: int = MOST_BYTES) -> bytes:
    """The request's body. Raises HTTPException 413 when it is longer than `most` bytes."""
    pieces: list[bytes] = []
    length = 0
    async for piece in request.stream():
        length += len(piece)
        if length > most:
            raise HTTPException(413, f"body: longer than {most} bytes; send less at once")
        pieces.append(piece)
    return b"".join(pieces)


class CutResponse(Response):
    """Sends half of the body under a full Content-Length and breaks off: uvicorn closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 – ASGI's signature
        """Send the half."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body)[: max(1, len(self.body) // 2)]
        await send({"type": "http.response.body", "body": half, "more_body": True})


class DripResponse(Response):
    """Sends the body in small pieces spread over `seconds`."""

    def __init__(self, of: Response, seconds: float) -> None:
        super().__init__(bytes(of.body), of.status_code)
        self.raw_headers = of.raw_headers
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 – ASGI's signature
        """Drip."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = bytes(self.body)
        size = max(1, len(body) // 50)
        pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        for piece in pieces:
            await asyncio.sleep(self.seconds / len(pieces))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class HangResponse(Response):
    """Says nothing until the client gives up or `seconds` are over; then 504."""

    def __init__(self, seconds: float) -> None:
        super().__init__("Gateway Timeout", 504, media_type="text/plain")
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hang."""
        try:
            async with asyncio.timeout(self.seconds):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            await super().__call__(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as an operation sees it: the body is read, and `lying` or `stale` ask it to bend its answer."""

    request: Request
    body: bytes
    operation: str
    account: str
    lying: bool = False  # answer as if done, change nothing
    stale: bool = False  # read as before the last change
    waited: float = 0.0  # seconds since the request came in, when it is answered later

    @property
    def parameters(self) -> Mapping[str, str]:
        """Path parameters as text."""
        return {name: str(value) for name, value in self.request.path_params.items()}

    @property
    def query(self) -> Mapping[str, str]:
        """Query parameters."""
        return self.request.query_params

    def json(self) -> object:
        """The body as JSON; raises ValueError when it is none."""
        return json.loads(self.body)


Answering = Callable[[Call], Awaitable[Response]]
Deny = Callable[[Request, str, str], Response | None]


def allow_everybody(request: Request, operation: str, group: str) -> Response | None:  # noqa: ARG001 – a Deny
    """The check for doors without one."""
    return None


@dataclass(frozen=True, slots=True)
class Door:
    """Wraps operations so that faults, limits, credentials and the journal apply to each of them alike.

    `deny(request, operation, group)` answers in place of the operation when credentials or permissions fail;
    it comes after the faults, as at a gateway in front of the real thing.
    """

    faults: Faults
    journal: Journal
    limits: Limits
    deny: Deny = allow_everybody

    def route(self, path: str, answer: Answering, *, methods: Iterable[str], operation: str, group: str = "") -> Route:
        """A Starlette route for one operation. The account is the path parameter `account`, if there is one."""

        async def endpoint(request: Request) -> Response:
            started = time.monotonic()
            body = await read_body(request)
            account = str(request.path_params.get("account", ""))
            plan = self.faults.plan(operation, group, account)
            call = Call(request, body, operation, account, plan.lying, plan.stale, plan.latency)
            response = await self._answer(call, group, answer, plan)
            fault = plan.fault.kind.value if plan.fault else "lie" if plan.lying else "stale" if plan.stale else ""
            self.journal.record(
                method=request.method,
                path=request.url.path,
                query=request.url.query,
                operation=operation,
                account=account,
                status=0 if isinstance(response, HangResponse | CutResponse) else response.status_code,
                seconds=time.monotonic() - started,
                headers=request.headers,
                body=body,
                fault=fault,
            )
            return response

        return Route(path, endpoint, methods=list(methods), name=operation)

    async def _answer(self, call: Call, group: str, answer: Answering, plan: Plan) -> Response:
        if plan.latency:
            await asyncio.sleep(plan.latency)
        fault = plan.fault
        if fault is not None:
            if fault.kind is Kind.STATUS:
                return _plain_or_json(fault.body, fault.status)
            if fault.kind is Kind.THROTTLE:
                throttle = throttled(fault.retry_after, fault.retry_after_form, fault.rate_headers)
                if fault.retry_after_text is not None:
                    throttle.headers["Retry-After"] = fault.retry_after_text
                return throttle
            if fault.kind is Kind.HANG_BEFORE:
                return HangResponse(fault.seconds)
        allowance = self.limits.spend(call.operation, group, call.account)
        if allowance is not None and not allowance.allowed:
            return throttled(allowance.reset)
        denied = self.deny(call.request, call.operation, group)
        if denied is not None:
            return denied
        response = await answer(call)
        if allowance is not None:
            response.headers.update(rate_headers(allowance.limit, allowance.remaining, allowance.reset))
        if fault is None:
            return response
        if fault.kind is Kind.HANG_AFTER:
            return HangResponse(fault.seconds)
        if fault.kind is Kind.DRIP:
            return DripResponse(response, fault.seconds)
        cut = CutResponse(bytes(response.body), response.status_code)
        cut.raw_headers = response.raw_headers
        return cut


def _plain_or_json(body: str, status: int) -> Response:
    try:
        return JSONResponse(json.loads(body), status)
    except ValueError:
        return Response(body, status, media_type="text/plain")


class LimitBody(BaseModel):
    """One limit, as the control route takes it."""

    model_config = ConfigDict(extra="forbid")
    name: str
    calls: int | None = Field(None, ge=0)
    window: float = Field(60.0, gt=0)


FAULT_BODIES: TypeAdapter[Fault | list[Fault]] = TypeAdapter(Fault | list[Fault])


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """Every problem of a control body: field, value, fix."""
    return [
        {"field": ".".join(map(str, one["loc"])), "value": repr(one.get("input"))[:80], "fix": one["msg"]}
        for one in error.errors()
    ]


def control_routes(faults: Faults, journal: Journal, limits: Limits, prefix: str = "/_control") -> list[Route]:
    """JSON routes that steer faults and limits and read the journal.

    POST {prefix}/faults (one or a list) · GET · DELETE ({prefix}/faults?id=) · POST {prefix}/limits ·
    GET {prefix}/journal?operation=&account=&method=&status=&path_contains=&body_contains=&after=&limit= · DELETE ·
    GET {prefix}/calls (counts).
    """

    async def add(request: Request) -> Response:
        try:
            wanted = FAULT_BODIES.validate_json(await read_body(request))
        except ValidationError as error:
            return JSONResponse({"problems": problems_of(error)}, 400)
        rules = wanted if isinstance(wanted, list) else [wanted]
        return JSONResponse({"ids": [faults.add(rule) for rule in rules]}, 201)

    async def show(_: Request) -> Response:
        return JSONResponse(faults.listed())

    async def remove(request: Request) -> Response:
        if "id" not in request.query_params:
            faults.clear()
            return Response(status_code=204)
        found = request.query_params["id"].isdigit() and faults.remove(int(request.query_params["id"]))
        return Response(status_code=204 if found else 404)

    async def limit(request: Request) -> Response:
        try:
            wanted = LimitBody.model_validate_json(await read_body(request))
        except ValidationError as error:
            return JSONResponse({"problems": problems_of(error)}, 400)
        limits.set(wanted.name, wanted.calls, wanted.window)
        return Response(status_code=204)

    async def entries(request: Request) -> Response:
        query = request.query_params
        numbers = {name: int(query[name]) for name in ("status", "after", "limit") if query.get(name, "").isdigit()}
        found = journal.find(
            operation=query.get("operation"),
            account=query.get("account"),
            method=query.get("method"),
            status=numbers.get("status"),
            path_contains=query.get("path_contains"),
            body_contains=query.get("body_contains"),
            after=numbers.get("after", 0),
            limit=numbers.get("limit", 1000),
        )
        return JSONResponse([asdict(entry) for entry in found])

    async def forget(_: Request) -> Response:
        journal.clear()
        return Response(status_code=204)

    async def calls(_: Request) -> Response:
        return JSONResponse(
            [
                {"account": account, "operation": operation, "status": status, "count": count}
                for (account, operation, status), count in sorted(journal.counts.items())
            ]
        )

    return [
        Route(f"{prefix}/faults", add, methods=["POST"]),
        Route(f"{prefix}/faults", show, methods=["GET"]),
        Route(f"{prefix}/faults", remove, methods=["DELETE"]),
        Route(f"{prefix}/limits", limit, methods=["POST"]),
        Route(f"{prefix}/journal", entries, methods=["GET"]),
        Route(f"{prefix}/journal", forget, methods=["DELETE"]),
        Route(f"{prefix}/calls", calls, methods=["GET"]),
    ]
