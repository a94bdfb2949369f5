"""The installation's settings: `queues.yaml` and the environment, read once, checked whole, frozen.

Whoever makes mistakes sees all of them at once, each with file, line, field, value and fix, before a process starts.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar, get_args
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hub.db import SCHEMA_NAME
from hub.errors import BadInput, Problem
from hub.model import JsonTree
from hub.outcome import Plan
from hub.parsing import Location, dotted, parsed, suggestion

Layout = Literal["per_store", "pooled"]
PoolName = Literal["orders", "offers", "catalog", "control"]
POOLS: Final[tuple[PoolName, ...]] = get_args(PoolName)
QUEUES_FILE: Final = Path(__file__).resolve().parent.parent / "queues.yaml"
SPOOL_BYTES: Final = 256 * 1024 * 1024
LEAST_ATTEMPTS: Final = 10  # vtex.md 17: attempts ≥ 10

_LARGEST_FILE: Final = 1_048_576
_PREFIX: Final = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_REDIS_SCHEMES: Final = ("redis", "rediss")
_BROKER_SCHEMES: Final = ("redis", "rediss", "amqp", "amqps")
_DATABASE_SCHEMES: Final = ("postgresql", "postgres")

Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Delays = Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=100)]


_Part = TypeVar("_Part")


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PoolSettings(_Block):
    """`threads` of one process, of which `reserved` serve first wake-ups only; `shards` processes share the stores."""

    threads: Annotated[int, Field(ge=1, le=256)]
    reserved: Annotated[int, Field(ge=0)]
    shards: Annotated[int, Field(ge=1, le=1024)] = 1

    @field_validator("reserved")
    @classmethod
    def _leaves_some(cls, reserved: int, info: ValidationInfo) -> int:
        threads = info.data.get("threads")
        if threads is not None and reserved >= threads:
            raise ValueError(f"write less than `threads` ({threads}), or nobody serves the busy stores")
        return reserved


class CircuitSettings(_Block):
    """A peer is left alone after `failures` of distinct keys, for `open_seconds` doubling to `longest_seconds`."""

    failures: Annotated[int, Field(ge=1, le=1000)] = 5
    open_seconds: Seconds = 30.0
    longest_seconds: Seconds = 600.0
    probes: Annotated[int, Field(ge=1, le=100)] = 1

    @field_validator("longest_seconds")
    @classmethod
    def _not_shorter(cls, longest: float, info: ValidationInfo) -> float:
        shortest = info.data.get("open_seconds")
        if shortest is not None and longest < shortest:
            raise ValueError(f"write at least `open_seconds` ({shortest:g})")
        return longest


class PeerSettings(_Block):
    """Budget (`rate` calls a second, `burst` at once, per account) and time-outs of calls to one side.

    A peer that asks for a pause gets it, for `obeyed_seconds` at most.
    """

    rate: Annotated[float, Field(gt=0, le=100_000)]
    burst: Annotated[int, Field(ge=1, le=100_000)]
    connect_seconds: Seconds = 3.0
    total_seconds: Seconds = 15.0
    obeyed_seconds: Annotated[float, Field(ge=1, le=900)] = 900.0

    @field_validator("total_seconds")
    @classmethod
    def _not_shorter(cls, total: float, info: ValidationInfo) -> float:
        connect = info.data.get("connect_seconds")
        if connect is not None and total < connect:
            raise ValueError(f"write at least `connect_seconds` ({connect:g})")
        return total


class SweepSettings(_Block):
    """Rounds of the sweep and how long a silent worker keeps its keys; see queues.yaml for each."""

    every_seconds: Seconds = 1.0
    lease_seconds: Seconds = 20.0
    heartbeat_seconds: Seconds = 4.0
    batch: Annotated[int, Field(ge=1, le=100_000)] = 5000
    gate_try_seconds: Seconds = 900.0
    spread_seconds: Seconds = 10.0
    reconcile_hours: Annotated[float, Field(ge=0.0005, le=8760)] = 24.0

    @field_validator("heartbeat_seconds")
    @classmethod
    def _often_enough(cls, heartbeat: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease_seconds")
        if lease is not None and heartbeat * 3 > lease:
            raise ValueError(f"write at most a third of `lease_seconds` ({lease:g}), so that one may be lost")
        return heartbeat


class RetentionSettings(_Block):
    """Days that things are kept, and days that partitions are made ahead."""

    notices_days: Annotated[int, Field(ge=1, le=3650)] = 7
    interactions_days: Annotated[int, Field(ge=1, le=3650)] = 10
    ahead_days: Annotated[int, Field(ge=1, le=30)] = 3


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """How one context's work is done: by which pool, how patiently, how many keys at once.

    `first_claim` keys for a store at rest, `more_claim` for each continuation; at most `cap` wake-ups of one store,
    waiting and running; `deadline` in seconds for one claim.
    """

    pool: PoolName
    plan: Plan
    first_claim: int = 8
    more_claim: int = 50
    cap: int = 8
    deadline: float = 120.0


class _Pools(_Block):
    orders: PoolSettings
    offers: PoolSettings
    catalog: PoolSettings
    control: PoolSettings


class _Context(_Block):
    pool: PoolName
    plan: str
    first_claim: Annotated[int, Field(ge=1, le=1000)] = 8
    more_claim: Annotated[int, Field(ge=1, le=1000)] = 50
    cap: Annotated[int, Field(ge=1, le=256)] = 8
    deadline: Annotated[float, Field(ge=1, le=3600)] = 120.0


class _Contexts(_Block):
    catalog: _Context
    price: _Context
    stock: _Context
    order: _Context
    fulfilment: _Context
    load: _Context
    lot: _Context
    reconcile: _Context = _Context(pool="catalog", plan="", first_claim=1, more_claim=1, cap=1)  # plan: that of load


class _Plan(_Block):
    delays: Annotated[tuple[Seconds, ...], Field(min_length=LEAST_ATTEMPTS, max_length=100)]
    slow: Delays = (3600.0, 21600.0, 86400.0)
    unknown: Delays = (5.0, 15.0, 60.0, 300.0, 900.0)
    jitter: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    recheck: Seconds = 86400.0

    @field_validator("delays", "slow", "unknown")
    @classmethod
    def _growing(cls, delays: tuple[float, ...]) -> tuple[float, ...]:
        for before, after in itertools.pairwise(delays):
            if after < before:
                raise ValueError(f"{after:g} comes after {before:g}; no wait may be shorter than the one before it")
        return delays

    def plan(self) -> Plan:
        return Plan(self.delays, self.slow, self.unknown, self.jitter, self.recheck)


class _File(_Block):
    layout: Layout = "per_store"
    pools: _Pools
    contexts: _Contexts
    plans: dict[str, _Plan]
    circuit: CircuitSettings = CircuitSettings()
    vtex: PeerSettings = PeerSettings(rate=100.0, burst=200)
    marketplace: PeerSettings = PeerSettings(rate=20.0, burst=40)
    sweep: SweepSettings = SweepSettings()
    retention: RetentionSettings = RetentionSettings()


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that one installation chose. URLs may hold passwords and are left out of its `repr`.

    `public_url` is where VTEX and marketplaces reach the intake, `api_url` where they reach `hub api`; both without a
    slash at the end. Every Redis key begins with `prefix`; every table is in `schema`. `spool` is where the intakes of
    this machine keep what PostgreSQL cannot take, each at most `spool_bytes`.
    """

    layout: Layout
    contexts: Mapping[str, ContextSettings]
    pools: Mapping[str, PoolSettings]
    plans: Mapping[str, Plan]
    circuit: CircuitSettings
    vtex: PeerSettings
    marketplace: PeerSettings
    sweep: SweepSettings
    retention: RetentionSettings
    redis_url: str = field(repr=False)
    database_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    prefix: str = "hub"
    schema: str = "hub"
    public_url: str = "http://127.0.0.1:8080"
    api_url: str = "http://127.0.0.1:8081"
    spool: Path = Path(".hub/spool")
    spool_bytes: int = SPOOL_BYTES

    @staticmethod
    def load(path: Path | str | None = None, env: Mapping[str, str] = os.environ) -> Settings:
        """Read `path` (else the file `HUB_QUEUES` names, else the checkout's queues.yaml) and the environment.

        `HUB_PLAN` names a plan of the file that replaces every context's own. `BadInput` with every problem of both.
        """
        chosen = Path(path or env.get("HUB_QUEUES") or QUEUES_FILE)
        problems: list[Problem] = []
        surroundings = _Surroundings(env, problems)
        urls = {
            "redis_url": surroundings.url("REDIS_URL", _REDIS_SCHEMES, "redis://127.0.0.1:6379/0"),
            "database_url": surroundings.url(
                "DATABASE_URL", _DATABASE_SCHEMES, "postgresql://user:password@127.0.0.1:5432/hub"
            ),
            "broker_url": surroundings.url(
                "HUB_BROKER_URL",
                _BROKER_SCHEMES,
                "amqp://user:password@127.0.0.1:5672//, or leave it out to use REDIS_URL",
                default=env.get("REDIS_URL", ""),
            ),
            "public_url": surroundings.web("HUB_PUBLIC_URL", "http://127.0.0.1:8080"),
            "api_url": surroundings.web("HUB_API_URL", "http://127.0.0.1:8081"),
        }
        names = {
            "prefix": surroundings.name("HUB_PREFIX", _PREFIX, "lower-case letters, digits, - and _, at most 31"),
            "schema": surroundings.name("HUB_SCHEMA", SCHEMA_NAME, "lower-case letters, digits and _, at most 63"),
        }
        spool = Path(env.get("HUB_SPOOL") or Path(env.get("HUB_DIRECTORY") or ".hub", "spool")).absolute()
        spool_bytes = surroundings.number("HUB_SPOOL_BYTES", SPOOL_BYTES, least=1_048_576, most=1_099_511_627_776)
        file: _File | None = None
        try:
            file = _read(chosen)
        except BadInput as fault:
            problems.extend(fault.problems)
        everywhere = env.get("HUB_PLAN", "")
        if file and everywhere and everywhere not in file.plans:
            fix = f"is no plan of {chosen.name}; {suggestion(everywhere, file.plans)}"
            problems.append(Problem("input", field="HUB_PLAN", value=everywhere[:80], fix=fix))
        if problems or file is None:
            raise BadInput(problems)
        plans = {name: block.plan() for name, block in file.plans.items()}
        return Settings(
            layout=file.layout,
            contexts={
                name: ContextSettings(
                    pool=block.pool,
                    plan=plans[everywhere or block.plan or file.contexts.load.plan],
                    first_claim=block.first_claim,
                    more_claim=block.more_claim,
                    cap=block.cap,
                    deadline=block.deadline,
                )
                for name, block in _named(file.contexts, _Context)
            },
            pools=dict(_named(file.pools, PoolSettings)),
            plans=plans,
            circuit=file.circuit,
            vtex=file.vtex,
            marketplace=file.marketplace,
            sweep=file.sweep,
            retention=file.retention,
            spool=spool,
            spool_bytes=spool_bytes,
            **urls,
            **names,
        )


# ---------------------------------------------------------------- the environment


class _Surroundings:
    """Environment variables, checked one by one; an empty one counts as not set. Values of URLs are never repeated."""

    def __init__(self, env: Mapping[str, str], problems: list[Problem]) -> None:
        self._env = env
        self._problems = problems

    def url(self, name: str, schemes: tuple[str, ...], example: str, *, default: str = "") -> str:
        text = self._env.get(name, "").strip()
        if not text and (default or name == "HUB_BROKER_URL"):
            return default  # a wrong or missing REDIS_URL is told once, under its own name
        if not text:
            self._refuse(name, "", f"is not set; set it, for example {example}")
        elif not text.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            self._refuse(name, "", f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}: {example}")
        elif not _has_port(text):
            self._refuse(name, "", f"write the port as a number from 1 to 65535, as in {example}")
        elif text.startswith("redis") and (fix := _no_redis(text)):
            self._refuse(name, "", f"{fix}, as in redis://127.0.0.1:6379/0")
        return text

    def web(self, name: str, default: str) -> str:
        text = self._env.get(name, "").strip().rstrip("/") or default
        if not _is_web(text):
            self._refuse(name, "", f"write an http(s) URL with a host, without user and query, such as {default}")
        return text

    def name(self, name: str, pattern: re.Pattern[str], allowed: str) -> str:
        text = self._env.get(name, "").strip() or "hub"
        if not pattern.fullmatch(text):
            self._refuse(name, text[:80], f"use {allowed}, beginning with a letter")
        return text

    def number(self, name: str, default: int, *, least: int, most: int) -> int:
        text = self._env.get(name, "").strip()
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
        if text and (number is None or not least <= number <= most):
            self._refuse(name, text[:80], f"write a whole number from {least} to {most}")
        return default if number is None else number

    def _refuse(self, name: str, value: str, fix: str) -> None:
        self._problems.append(Problem("input", field=name, value=value, fix=fix))


def _has_port(url: str) -> bool:
    """Whether each host's port, if it has one, can be one; PostgreSQL takes several hosts in one URL."""
    try:
        # Taken apart by hand: what urllib thinks of several hosts depends on Python's version.
        place = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
        return all(urlsplit(f"//{host}").port != 0 for host in place.split(","))
    except ValueError:  # no number, or half an IPv6 address
        return False


def _no_redis(url: str) -> str:
    """What keeps Celery or redis-py from using such a URL, as what to do about it; nothing when both understand it.

    They disagree on a database in the query, and each takes a path that is no number in its own way.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket or the like in the password
        return "write what is no letter or digit of the password as %XX"
    if not parts.hostname:
        return "name the host"
    path = parts.path.removeprefix("/")
    if path and not (path.isascii() and path.isdigit() and len(path) < 10):
        return "write the database as a number behind the host and one slash"
    if "db" in parse_qs(parts.query, keep_blank_values=True):
        return "write the database behind the host instead of ?db="
    return ""


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.port != 0 and bool(
            parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment or "@" in url)
        )
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


# ---------------------------------------------------------------- the file


def _read(path: Path) -> _File:
    where = _Lines(path)
    tree = where.tree()
    problems = list(where.problems)
    file: _File | None = None
    try:
        file = parsed(_File, tree, naming=where.naming)
    except BadInput as fault:
        problems.extend(fault.problems)
    problems.extend(_cross_problems(tree, where))
    if problems or file is None:
        raise BadInput(sorted(problems, key=where.order))
    return file


def _cross_problems(tree: JsonTree, where: _Lines) -> Iterator[Problem]:
    """What one part of the file says of another; looks at the raw tree, so that one mistake hides no other."""
    plans = _at(tree, "plans")
    known = {str(name) for name in plans} if isinstance(plans, dict) else set()
    contexts = _at(tree, "contexts")
    slowest = max((_number(tree, side, "total_seconds") or 0 for side in ("vtex", "marketplace")), default=0)
    for name in contexts if isinstance(contexts, dict) else ():
        place = ("contexts", str(name))
        written: object = _at(tree, *place, "plan")
        plan = str(written)
        if isinstance(written, str | date) and plan not in known:  # YAML reads 2024-01-01 as a date
            yield where.problem((*place, "plan"), plan, f"is no plan of this file; {suggestion(plan, known)}")
        cap = _number(tree, *place, "cap")
        threads = _number(tree, "pools", str(_at(tree, *place, "pool")), "threads")
        if cap is not None and threads is not None and cap > threads:
            fix = f"write at most the threads of its pool ({threads:g}); half to three quarters leave room for others"
            yield where.problem((*place, "cap"), str(cap), fix)
        deadline = _number(tree, *place, "deadline")
        if deadline is not None and deadline < slowest:
            fix = f"write at least the longest call ({slowest:g}), or no call could ever start"
            yield where.problem((*place, "deadline"), str(deadline), fix)


def _at(tree: JsonTree, *location: str) -> JsonTree:
    for part in location:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _number(tree: JsonTree, *location: str) -> float | None:
    found = _at(tree, *location)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


class _Lines:
    """A YAML file with the line of each of its places."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._lines: dict[Location, int] = {(): 1}
        self.problems: list[Problem] = []
        self._unreadable: list[Problem] = []
        try:
            with path.open("rb") as file:
                raw = file.read(_LARGEST_FILE + 1)
            if len(raw) > _LARGEST_FILE:
                raise BadInput([self._whole(path, f"is larger than {_LARGEST_FILE} bytes")])
            self._text = raw.decode()
        except OSError as fault:
            fix = f"cannot be read ({fault.strerror}); set HUB_QUEUES to the right file"
            raise BadInput([self._whole(path, fix)]) from None
        except UnicodeDecodeError:
            raise BadInput([self._whole(path, "is not UTF-8")]) from None

    def tree(self) -> JsonTree:
        """The document; keys written twice and references are noted in `problems`, bad YAML raises `BadInput`."""
        try:
            loader = yaml.SafeLoader(self._text)
        except yaml.reader.ReaderError as fault:  # its own words name no line
            line = self._text.count("\n", 0, fault.position) + 1
            fix = f"holds a control character (U+{fault.character:04X}); remove it"
            raise BadInput([Problem("input", field=f"{self._name}:{line}", fix=fix)]) from None
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise BadInput([self.problem((), "", "write `pools:`, `contexts:` and `plans:` as in the original")])
            self._walk(node, (), set())
            if self._unreadable:
                raise BadInput([*self.problems, *self._unreadable])
            return loader.construct_document(node)
        except (yaml.YAMLError, ValueError, RecursionError) as fault:  # ValueError: a date such as 2024-13-45
            mark = getattr(fault, "problem_mark", None)
            what = getattr(fault, "problem", None) or "no YAML"
            line = mark.line + 1 if mark else 1
            raise BadInput([Problem("input", field=f"{self._name}:{line}", fix=f"is not readable: {what}")]) from None
        finally:
            loader.dispose()

    def naming(self, location: Location, *, missing: bool) -> str:
        """`queues.yaml:12: pools.offers.threads`; a missing key has the line of the block it belongs in."""
        return f"{self._name}:{self._line(location[:-1] if missing else location)}: {dotted(location)}".removesuffix(
            ": "
        )

    def problem(self, location: Location, value: str, fix: str) -> Problem:
        return Problem("input", field=self.naming(location, missing=False), value=value[:80], fix=fix)

    def order(self, problem: Problem) -> int:
        """Line of a problem made by `problem` or `naming`."""
        return int(problem.field.removeprefix(f"{self._name}:").partition(":")[0])

    def _whole(self, path: Path, fix: str) -> Problem:
        return Problem("input", field="settings file", value=str(path), fix=fix)

    def _line(self, location: Location) -> int:
        while location not in self._lines:
            location = location[:-1]
        return self._lines[location]

    def _walk(self, node: yaml.Node, location: Location, seen: set[int]) -> None:
        if id(node) in seen:
            line = node.start_mark.line + 1
            self._unreadable.append(self.problem(location, "", f"repeats line {line} by reference; write it out"))
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*location, key.value if isinstance(key, yaml.ScalarNode) else "?")
                if key.tag != "tag:yaml.org,2002:str":
                    self._lines[place] = key.start_mark.line + 1
                    fix = (
                        "is no text; put it in quotes"
                        if isinstance(key, yaml.ScalarNode)
                        else "is a list or a block; write a word as key"
                    )
                    self._unreadable.append(self.problem(place, "", f"the key {fix}"))
                    continue
                if place in self._lines:
                    first = self._lines[place]
                    self._lines[place] = key.start_mark.line + 1
                    self.problems.append(self.problem(place, "", f"is already in line {first}; keep one"))
                self._lines[place] = key.start_mark.line + 1
                self._walk(value, place, seen)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._lines[*location, index] = value.start_mark.line + 1
                self._walk(value, (*location, index), seen)


def _named(block: BaseModel, kind: type[_Part]) -> Iterator[tuple[str, _Part]]:
    for name in type(block).model_fields:
        part = getattr(block, name)
        if isinstance(part, kind):
            yield name, part
