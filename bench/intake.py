"""The intake beside what people would write, and beside its own server answering an empty 200.

64 keep-alive connections, ten stores, ever new SKUs. The server under test has a core of its own where there are two;
PostgreSQL, Valkey and the driver share the others. After each round of ours every id answered 200 is looked for in
PostgreSQL: it must be there exactly once. In the open loop nothing is pinned and real worker processes drain what
comes, with attempts that end at once.

What the peers do not do: FastAPI and gunicorn with `delay()` keep nothing that was received but a message in the
broker's memory (on its disk within a second), publish one message per notification however often a SKU comes, and
count nothing.

BENCH_SECONDS of one round (5), BENCH_ROUNDS (5), BENCH_OPEN_SECONDS (60), BENCH_OPEN_RATE (2000); BENCH_DRAIN=0 leaves
the workers out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis
import requests
from cryptography.fernet import Fernet

from bench import peers, posting
from bench.measure import ROUNDS, Line, Spread, alternating, cpu_seconds, percentile
from hub.db import migrate, open_pool
from hub.runtime.embedded import Postgres, Valkey, free_ports, scratch
from hub.stores import Registry, SecretBox
from tests.cell import until
from tests.knobs import Knobs

ROOT = Path(__file__).resolve().parent.parent
knobs = Knobs(os.environ)
SECONDS = knobs.number("BENCH_SECONDS", 5.0, least=0.1, most=3_600)
TURNS = knobs.whole("BENCH_ROUNDS", ROUNDS, most=1_000)
OPEN_SECONDS = knobs.number("BENCH_OPEN_SECONDS", 60.0, least=1.0, most=86_400)
OPEN_RATE = knobs.number("BENCH_OPEN_RATE", 2_000.0, least=1.0, most=100_000)
DRAIN = knobs.on("BENCH_DRAIN", default=True)
knobs.settle()
CONNECTIONS = 64
STORES = 10


@dataclass
class Side:
    """One server under test, and what its rounds spent."""

    name: str
    command: Sequence[str]
    cwd: Path = ROOT
    spent: dict[str, list[float]] = field(default_factory=dict)

    def note(self, **values: float) -> None:
        """Keep these figures of a round."""
        for name, value in values.items():
            self.spent.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The middle one of all rounds."""
        return Spread(tuple(self.spent[name])).median


@dataclass
class Bench:
    """The servers of one run."""

    files: Path
    valkey: Valkey
    postgres: Postgres
    next_sku: int = posting.FIRST
    cores: tuple[set[int], set[int]] | None = None

    def __post_init__(self) -> None:
        self.broker: Any = redis.Redis.from_url(self.valkey.url)
        key = Fernet.generate_key()
        box = SecretBox([key])
        migrate(self.postgres.url)
        with open_pool(self.postgres.url, "hub", name="bench", max_size=1) as pool:
            registry = Registry(pool, box)
            self.tokens = [
                registry.add(
                    slug=f"store{number}-mkt",
                    account="acme",
                    affiliate=f"M{'BCDFGHJKLM'[number]}P",
                    sales_channel=1,
                    marketplace="sandbox-sync",
                    who="bench",
                    settings={"vtex_url": "http://127.0.0.1:9/{account}", "marketplace_url": "http://127.0.0.1:9"},
                    credentials={"vtex": {"app_key": "k", "app_token": "t"}, "marketplace": {"token": "t"}},
                )[1]
                for number in range(STORES)
            ]
        self.env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", str(self.files)),
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.postgres.url,
            "HUB_KEY": key.decode(),
            "HUB_SPOOL": str(self.files / "spool"),
            "TOKENS": " ".join(self.tokens),
        }

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of one statement, on a connection of its own."""
        with psycopg.connect(self.postgres.url, autocommit=True, options="-c search_path=hub") as connection:
            return connection.execute(query, values).fetchall()

    def request(self) -> Callable[[], bytes]:
        """Requests that no affiliate is named in: the token says whose they are."""
        return posting.requests([f"/{token}" for token in self.tokens], "acme", "", self.next_sku)

    @contextmanager
    def serving(self, side: Side, port: int, *, pinned: bool) -> Iterator[int]:
        """The server, ready, on a core of its own if there are two; its pid."""
        with (self.files / "door.log").open("ab") as log:
            child = subprocess.Popen(
                [part.format(port=port) for part in side.command],
                env=self.env,
                cwd=side.cwd,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # as `hub up` starts it: Linux shares its cores out by session
            )
        try:
            if self.cores is not None:
                os.sched_setaffinity(child.pid, self.cores[0] if pinned else self.cores[0] | self.cores[1])
            until(lambda: _takes(port, self.request()), seconds=30, why=f"{side.name} does not serve")
            self.next_sku += 1
            yield child.pid
        finally:
            child.terminate()
            child.wait(20)

    # ---------------------------------------------------------------- rounds

    def closed(self, side: Side, *, ours: bool) -> float:
        """One round; answers a second."""
        (port,) = free_ports(1)
        with self.serving(side, port, pinned=True) as pid:
            posting.closed_loop(port, self._from_here(), connections=CONNECTIONS, seconds=min(0.5, SECONDS))
            first = self.next_sku
            server, store, wal = cpu_seconds(pid), cpu_seconds(self.postgres.pid or 0), self._wal()
            seen = posting.closed_loop(port, self._from_here(), connections=CONNECTIONS, seconds=SECONDS)
            count = len(seen.latencies)
            side.note(
                server_us=1e6 * (cpu_seconds(pid) - server) / count,
                postgres_us=1e6 * (cpu_seconds(self.postgres.pid or 0) - store) / count,
                wal_bytes=(self._wal() - wal) / count,
                p50_ms=percentile(seen.latencies, 0.5),
                p99_ms=percentile(seen.latencies, 0.99),
            )
            self._drained()
        self._all_answered(side, seen)
        if ours:
            self._all_stored(first, count)
        self.broker.delete("peer")
        return seen.rate

    def opened(self, side: Side, *, ours: bool) -> float:
        """One run at a fixed rate; its p99 in milliseconds."""
        # The rounds before left more than workers can do beside it: this one begins with nothing waiting.
        with psycopg.connect(self.postgres.url, autocommit=True, options="-c search_path=hub") as connection:
            connection.execute("truncate states, answers, claims, notices, counters")
        (port,) = free_ports(1)
        with ExitStack() as stack:
            pid = stack.enter_context(self.serving(side, port, pinned=False))
            if ours and DRAIN:
                stack.enter_context(self._workers())
            warm = min(3.0, OPEN_SECONDS)
            posting.open_loop(port, self._from_here(), connections=CONNECTIONS, rate=OPEN_RATE, seconds=warm)
            first = self.next_sku
            server, store, wal = cpu_seconds(pid), cpu_seconds(self.postgres.pid or 0), self._wal()
            seen = posting.open_loop(
                port, self._from_here(), connections=CONNECTIONS, rate=OPEN_RATE, seconds=OPEN_SECONDS
            )
            count = len(seen.latencies)
            side.note(
                open_server_us=1e6 * (cpu_seconds(pid) - server) / count,
                open_postgres_us=1e6 * (cpu_seconds(self.postgres.pid or 0) - store) / count,
                open_wal_bytes=(self._wal() - wal) / count,
                open_p50_ms=percentile(seen.latencies, 0.5),
                open_rate=seen.rate,
                driver_late_ms=seen.late,
            )
            self._drained()
            if ours and DRAIN:
                side.note(left=float(self.sql("select count(*) from states where asked > answered")[0][0]))
        self._all_answered(side, seen)
        if ours:
            self._all_stored(first, count)
        return percentile(seen.latencies, 0.99)

    @contextmanager
    def _workers(self) -> Iterator[None]:
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.idle_worker", lane],
                env=self.env,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            for lane in ("first", "more")
        ]
        try:
            for child in children:
                if self.cores is not None:
                    os.sched_setaffinity(child.pid, self.cores[0] | self.cores[1])
            until(
                lambda: self.sql("select count(*) from workers where until > now()")[0][0] >= len(children),
                seconds=60,
                why="no workers",
            )
            yield
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(30)

    # ---------------------------------------------------------------- counting

    def _from_here(self) -> Callable[[], bytes]:
        made = self.request()

        def one() -> bytes:
            self.next_sku += 1
            return made()

        return one

    def _wal(self) -> int:
        return int(self.sql("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0])

    def _drained(self) -> None:
        """What the spool took on a machine too busy for a commit in half a second is in PostgreSQL too."""
        until(lambda: not list((self.files / "spool").glob("*.spool")), seconds=60, why="the spool is not drained")

    @staticmethod
    def _all_answered(side: Side, seen: posting.Posted) -> None:
        if set(seen.statuses) != {200}:
            raise AssertionError(f"{side.name} answered {dict(seen.statuses)}")

    def _all_stored(self, first: int, count: int) -> None:
        """Every SKU from `first` on is in PostgreSQL, once as a state and once as a notice."""
        last = first + count - 1
        ((states, least, most),) = self.sql(
            "select count(*), min(key), max(key) from states where context = 'stock' and key between %s and %s",
            str(first),
            str(last),
        )
        if (states, int(least), int(most)) != (count, first, last):
            raise AssertionError(f"{count} answered 200, {states} states from {least} to {most}")
        ((notices,),) = self.sql(
            "select count(distinct body::json ->> 'IdSku') from notices where body::json ->> 'IdSku' between %s and %s",
            str(first),
            str(last),
        )
        if notices != count:
            raise AssertionError(f"{count} answered 200, {notices} notices")


def _takes(port: int, request: Callable[[], bytes]) -> bool:
    head, _, body = request().partition(b"\r\n\r\n")
    try:
        answer = requests.post(
            f"http://127.0.0.1:{port}{head.split()[1].decode()}",
            data=body,
            headers={"content-type": "application/json"},
            timeout=5,
        )
    except requests.RequestException:
        return False
    return answer.status_code == 200


def _sides() -> Mapping[str, Side]:
    python = str(peers.python())
    return {
        "ours": Side("ours", [sys.executable, "-m", "hub.cli", "intake", "--port", "{port}"]),
        "limit": Side("limit", [sys.executable, "-m", "bench.empty_door", "{port}"]),
        "fastapi": Side(
            "FastAPI + delay()",
            [python, "-m", "uvicorn", "fastapi_door:app", "--port", "{port}", "--no-access-log"],
            peers.HERE,
        ),
        "gunicorn": Side(
            "gunicorn gthread + delay()",
            [
                *(python, "-m", "gunicorn", "-k", "gthread", "--threads", "16", "-b", "127.0.0.1:{port}"),
                *("--keep-alive", "30", "--log-level", "warning", "wsgi_door:application"),
            ],
            peers.HERE,
        ),
    }


@contextmanager
def _cores() -> Iterator[tuple[set[int], set[int]] | None]:
    """One core for the server under test, the others for everybody else; `None` where there is one only."""
    every = os.sched_getaffinity(0)
    if len(every) < 2:
        yield None
        return
    first = min(every)
    os.sched_setaffinity(0, every - {first})
    try:
        yield {first}, every - {first}
    finally:
        os.sched_setaffinity(0, every)


def lines() -> list[Line]:
    """Both lines of the intake."""
    with (
        scratch("hub-bench-") as files,
        _cores() as cores,
        Valkey(files / "valkey") as valkey,
        Postgres(files / "postgres") as postgres,
    ):
        bench = Bench(files, valkey, postgres, cores=cores)
        sides = _sides()
        closed = alternating(
            {
                name: (lambda name=name, side=side: bench.closed(side, ours=name == "ours"))  # type: ignore[misc]
                for name, side in sides.items()
            },
            rounds=TURNS,
        )
        ours, limit = sides["ours"], sides["limit"]
        better = max(("fastapi", "gunicorn"), key=lambda name: closed[name].median)
        line = Line(
            "intake",
            "req/s",
            closed["ours"],
            "≥ 15 × the better peer, ≥ 0.45 of the limit",
            closed["ours"].median >= 15 * closed[better].median
            and closed["ours"].median >= 0.45 * closed["limit"].median,
            peer=closed[better],
            peer_name=sides[better].name,
            limit=closed["limit"],
            limit_name="empty 200",
            beside={
                **{f"{side.name} server µs": side.median("server_us") for side in sides.values()},
                **{name: ours.median(name) for name in ("p50_ms", "p99_ms", "postgres_us", "wal_bytes")},
                **{sides[name].name: closed[name].median for name in ("fastapi", "gunicorn")},
                "ratio to the limit by server CPU": limit.median("server_us") / ours.median("server_us"),
            },
        )
        if not OPEN_SECONDS:
            return [line]
        if cores is not None:
            _unpin(postgres.pid or 0, valkey.pid or 0, cores=cores[0] | cores[1])
        opened = alternating(
            {
                "ours": lambda: bench.opened(ours, ours=True),
                "limit": lambda: bench.opened(limit, ours=False),
            },
            rounds=1,
        )
        names = ("open_p50_ms", "open_rate", "open_server_us", "open_postgres_us", "open_wal_bytes", "driver_late_ms")
        drained = {"left undone at the end": ours.median("left")} if DRAIN else {}
        return [
            line,
            Line(
                f"intake, {OPEN_RATE:g}/s for {OPEN_SECONDS:g} s{', workers draining' if DRAIN else ''}",
                "ms p99",
                opened["ours"],
                "≤ 15 ms",
                opened["ours"].median <= 15,
                limit=opened["limit"],
                limit_name="empty 200",
                lower=True,
                beside={**{name: ours.median(name) for name in names}, **drained},
            ),
        ]


def _unpin(*roots: int, cores: set[int]) -> None:
    """Servers that were started on fewer cores, with all their children."""
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            parent = int((place / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
            if int(place.name) in roots or parent in roots:
                for thread in (place / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores)
        except (OSError, ValueError):
            continue


if __name__ == "__main__":
    began = time.monotonic()
    for line in lines():
        print(line.as_json())
    print(f"{time.monotonic() - began:.0f} s")
