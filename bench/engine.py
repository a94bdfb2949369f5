"""The engine alone: claims and settles of attempts that end at once, beside no-op tasks of what people would use.

Ours are two real worker processes of the pool `offers` (one for first, one for further wake-ups, 16 threads together),
real Valkey and real durable PostgreSQL, Celery events on, ten stores. Every side drains a backlog that was there before
it began to count. `BENCH_SCALE=0.1` takes a tenth of the keys, `BENCH_ROUNDS=1` one round.

One key at a time: each claim, attempt and settle is of one key. A wake-up is a turn of 50 ms (`tasks.worker.TURN`), in
which a thread claims on while claims are full; what the same costs with one claim per wake-up stands beside.

What the peers do not do: none of them keeps a key from being worked on twice at a time, coalesces, counts, or survives
the loss of its broker's memory; Procrastinate alone is as durable as we are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis
import yaml
from cryptography.fernet import Fernet

from bench import peers
from bench.measure import ROUNDS, Line, Spread, alternating, cpu_seconds
from hub.db import migrate, open_pool
from hub.ledger import Ledger
from hub.model import Ask
from hub.runtime.embedded import Postgres, Valkey, scratch
from hub.settings import Settings
from hub.stores import Registry, SecretBox
from tasks.app import make_app
from tasks.wake import Waker
from tasks.worker import TURN
from tests.knobs import Knobs

ROOT = Path(__file__).resolve().parent.parent
knobs = Knobs(os.environ)
SCALE = knobs.number("BENCH_SCALE", 1.0, least=0.001, most=1_000)
ONLY = knobs.text("BENCH_ONLY").split()
TURNS = knobs.whole("BENCH_ROUNDS", ROUNDS, most=1_000)
knobs.settle()
STORES = 10
ONE, SHORT = "one key at a time", "one key per wake-up"
OURS = {
    "claims of 50": (50, 50_000, TURN),
    "claims of 10": (10, 20_000, TURN),
    ONE: (1, 4_000, TURN),
    SHORT: (1, 2_000, 0.0),
}
"""Name → keys a claim takes, keys in the backlog, seconds of a wake-up's turn."""
CELERY, DRAMATIQ, PROCRASTINATE = 6_000, 50_000, 3_000
TAIL = 0.02
"""The last part of a backlog is not timed: some threads are out of work then, on every side."""


@dataclass
class Bench:
    """The servers of one run, and what each side spent beside its time."""

    files: Path
    valkey: Valkey
    postgres: Postgres
    spent: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.broker: Any = redis.Redis.from_url(self.valkey.url)
        self.env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", str(self.files)),
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.postgres.url,
            "HUB_KEY": Fernet.generate_key().decode(),
        }
        migrate(self.postgres.url)
        settings = Settings.load(ROOT / "queues.yaml", env=self.env)
        self.pool = open_pool(settings.database_url, settings.schema, name="bench", max_size=4)
        self.ledger = Ledger(self.pool, slot=1000)
        registry = Registry(self.pool, SecretBox.from_env(self.env))
        self.stores = {
            registry.add(
                slug=f"store{number}-mkt",
                account=f"account{number}",
                affiliate="MKP",
                sales_channel=1,
                marketplace="sandbox-sync",
                who="bench",
                settings={
                    "vtex_url": "http://127.0.0.1:9/{account}",
                    "marketplace_url": "http://127.0.0.1:9",
                    "marketplace_limit": {"rate": 100_000.0, "burst": 100_000},
                },
                credentials={"vtex": {"app_key": "k", "app_token": "t"}, "marketplace": {"token": "t"}},
            )[0].id: f"store{number}-mkt"
            for number in range(STORES)
        }

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of one statement."""
        with self.pool.connection() as db:
            cursor = db.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    # ---------------------------------------------------------------- processes

    @contextmanager
    def started(self, commands: Mapping[str, Sequence[str]], env: Mapping[str, str], cwd: Path) -> Iterator[list[int]]:
        """These processes, their output in files; SIGTERM at the end."""
        children = []
        try:
            for name, command in commands.items():
                with (self.files / f"{name}.log").open("ab") as log:
                    child = subprocess.Popen(
                        command, env=env, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                    )
                    children.append(child)
            yield [child.pid for child in children]
        finally:
            for child in children:
                child.send_signal(signal.SIGTERM)
            for child in children:
                try:
                    child.wait(10)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def timed(self, name: str, count: int, left: Callable[[], int], pids: Sequence[int], *, seconds: float) -> float:
        """Tasks a second from the first that is done until the tail; CPU and WAL per task go to `spent`."""
        deadline = time.monotonic() + seconds
        while (first := left()) >= count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name}: nothing happens; see the logs in {self.files}")
            time.sleep(0.01)
        began, before = time.monotonic(), self._meters(pids)
        while (last := left()) > count * TAIL:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name}: {last} of {count} are left; see the logs in {self.files}")
            time.sleep(0.02)
        took, after = time.monotonic() - began, self._meters(pids)
        while left() > 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name}: {left()} of {count} are left; see the logs in {self.files}")
            time.sleep(0.02)
        kept = self.spent.setdefault(name, {})
        for meter, value in after.items():
            kept.setdefault(meter, []).append((value - before[meter]) / (first - last))
        return (first - last) / took

    def _meters(self, pids: Sequence[int]) -> dict[str, float]:
        return {
            "worker": 1e6 * cpu_seconds(*pids),
            "PostgreSQL": 1e6 * cpu_seconds(self.postgres.pid or 0),
            "Valkey": 1e6 * cpu_seconds(self.valkey.pid or 0),
            "WAL": float(self.sql("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0]),
        }

    def beside(self, name: str, *, wal: bool = True) -> dict[str, float]:
        """CPU in microseconds and WAL in bytes per task, medians."""
        kept = {meter: Spread(tuple(values)).median for meter, values in self.spent[name].items()}
        units = {"worker": "µs", "PostgreSQL": "µs", "Valkey": "µs", "WAL": "B"}
        return {
            f"{meter} {units[meter]}": value for meter, value in kept.items() if wal or meter in ("worker", "Valkey")
        }

    # ---------------------------------------------------------------- ours

    def ours(self, name: str) -> float:
        """One round of the hub's workers with claims of this size; keys a second."""
        claim, full, turn = OURS[name]
        count = max(500, int(full * SCALE)) // STORES * STORES
        tree = yaml.safe_load((ROOT / "queues.yaml").read_text(encoding="utf-8"))
        tree["contexts"]["stock"] |= {"first_claim": claim, "more_claim": claim}
        queues = self.files / f"queues-{claim}.yaml"
        queues.write_text(yaml.safe_dump(tree), encoding="utf-8")
        env = self.env | {"HUB_QUEUES": str(queues), "HUB_PREFIX": f"bench{claim}-{time.monotonic_ns()}"}
        env["BENCH_TURN"] = str(turn)
        settings = Settings.load(env=env)
        self.sql("truncate states, answers, counters")
        for store in self.stores:
            asks = [Ask(store, "stock", str(10_000_000 + key), "bench") for key in range(count // STORES)]
            for first in range(0, len(asks), 1000):
                self.ledger.enqueue(asks[first : first + 1000])
        self.sql("analyze states")
        self.sql("checkpoint")
        app = make_app(settings)
        waker = Waker(settings, app)
        commands = {lane: [sys.executable, "-m", "bench.idle_worker", lane] for lane in ("first", "more")}
        woken = 0.0

        def left() -> int:
            nonlocal woken
            if time.monotonic() > woken + 1.0:  # as the sweep does
                woken = time.monotonic()
                waker.wake([(slug, "stock") for slug in self.stores.values()])
            return count - int(self.sql("select coalesce(sum(finished), 0) from counters")[0][0])

        try:
            with self.started(commands, env, ROOT) as pids:
                up = "select count(*) from workers where until > now() and name like 'offers%%'"
                deadline = time.monotonic() + 60
                while int(self.sql(up)[0][0]) < len(commands):
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"the workers do not start; see the logs in {self.files}")
                    time.sleep(0.05)
                time.sleep(1.5)  # they have registered; now their consumers start
                rate = self.timed(name, count, left, pids, seconds=180)
            self._verify(count)
            return rate
        finally:
            waker.close()

    def _verify(self, count: int) -> None:
        """Every key is done and the books balance: a fast engine that loses something is no engine."""
        done = self.sql("select count(*) from states where status = 'done' and work = 'i' and asked = answered")
        broken = [law for law in self.ledger.check() if not law.holds]
        if int(done[0][0]) != count or broken:
            raise RuntimeError(f"{done[0][0]} of {count} keys are done; {broken}")

    # ---------------------------------------------------------------- peers

    def celery(self, pool: str, concurrency: int, *, events: bool) -> float:
        """One round of a Celery worker; tasks a second."""
        name = f"Celery {pool}{'' if events else ', no events'}"
        count = max(300, int(CELERY * SCALE))
        self.broker.flushdb()
        bin_, here = peers.python().parent, peers.HERE
        subprocess.run([bin_ / "python", here / "celery_noop.py", str(count)], env=self.env, cwd=here, check=True)
        command = [str(bin_ / "celery"), "-A", "celery_noop", "worker", "-P", pool, "-c", str(concurrency)]
        command += ["-l", "ERROR", "--without-gossip", "--without-mingle", *(["-E"] if events else [])]

        def left() -> int:
            waiting, begun = self.broker.llen("celery"), self.broker.hlen("unacked")
            return int(waiting) + int(begun)

        with self.started({"celery": command}, self.env, here) as pids:
            return self.timed(name, count, left, pids, seconds=180)

    def dramatiq(self, processes: int, threads: int) -> float:
        """One round of Dramatiq's workers; messages a second."""
        count = max(1000, int(DRAMATIQ * SCALE))
        self.broker.flushdb()
        bin_, here = peers.python().parent, peers.HERE
        subprocess.run([bin_ / "python", here / "dramatiq_noop.py", str(count)], env=self.env, cwd=here, check=True)
        command = [str(bin_ / "dramatiq"), "dramatiq_noop", "-p", str(processes), "-t", str(threads)]
        with self.started({"dramatiq": command}, self.env, here) as pids:
            return self.timed(
                f"Dramatiq {processes}x{threads}",
                count,
                lambda: int(self.broker.hlen("dramatiq:default.msgs")),
                pids,
                seconds=180,
            )

    def procrastinate(self) -> float:
        """One round of a Procrastinate worker; jobs a second."""
        count = max(200, int(PROCRASTINATE * SCALE))
        bin_, here = peers.python().parent, peers.HERE
        with psycopg.connect(self.postgres.url, autocommit=True) as db:
            if db.execute("select to_regclass('procrastinate_jobs')").fetchone() == (None,):
                self._procrastinate("schema")
            db.execute("truncate procrastinate_jobs cascade")
            self._procrastinate(str(count))
            command = [str(bin_ / "procrastinate"), "--app=procrastinate_noop.app", "worker", "--concurrency=16"]
            env = self.env | {"PYTHONPATH": str(here)}  # its command does not look where it is started
            with self.started({"procrastinate": [*command, "--no-listen-notify"]}, env, here) as pids:

                def left() -> int:
                    row = db.execute("select count(*) from procrastinate_jobs").fetchone()
                    return int(row[0]) if row else 0

                return self.timed("Procrastinate", count, left, pids, seconds=180)

    def _procrastinate(self, what: str) -> None:
        command = [str(peers.python()), str(peers.HERE / "procrastinate_noop.py"), what]
        subprocess.run(command, env=self.env, cwd=peers.HERE, check=True)


def _best(seen: Mapping[str, Spread], *names: str) -> tuple[str, Spread]:
    found = [(name, seen[name]) for name in names if name in seen]
    return max(found, key=lambda side: side[1].median)


def lines() -> list[Line]:
    """Keys a second with claims of 50 and of 10 and with one key at a time."""
    with scratch("hub-bench-") as files, Valkey(files / "valkey") as valkey, Postgres(files / "postgres") as postgres:
        bench = Bench(files, valkey, postgres)
        sides: dict[str, Callable[[], float]] = {name: lambda name=name: bench.ours(name) for name in OURS}  # type: ignore[misc]
        sides |= {
            "Celery threads": lambda: bench.celery("threads", 16, events=True),
            "Celery prefork": lambda: bench.celery("prefork", 2, events=True),
            "Celery threads, no events": lambda: bench.celery("threads", 16, events=False),
            "Dramatiq 1x16": lambda: bench.dramatiq(1, 16),
            "Dramatiq 2x8": lambda: bench.dramatiq(2, 8),
            "Procrastinate": bench.procrastinate,
        }
        if ONLY:
            sides = {name: side for name, side in sides.items() if any(part in name for part in ONLY)}
        try:
            seen = alternating(sides, rounds=TURNS)
        finally:
            bench.pool.close()
    if ONLY:
        return [
            Line(name, "keys/s", spread, "–", passed=True, beside=bench.beside(name)) for name, spread in seen.items()
        ]
    return _judged(bench, seen)


def _judged(bench: Bench, seen: Mapping[str, Spread]) -> list[Line]:
    celery_name, celery = _best(seen, "Celery threads", "Celery prefork")
    dramatiq_name, dramatiq = _best(seen, "Dramatiq 1x16", "Dramatiq 2x8")
    other = "Celery prefork" if celery_name == "Celery threads" else "Celery threads"

    def against(name: str, peer_name: str, peer: Spread, times: float) -> Line:
        ours = seen[name]
        beside: dict[str, float | str] = {**bench.beside(name)}
        if peer is celery:
            beside |= {
                f"{other} /s": seen[other].median,
                "Celery threads without events /s": seen["Celery threads, no events"].median,
            }
        beside |= {f"peer's {meter}": value for meter, value in bench.beside(peer_name, wal=False).items()}
        must = f"≥ {times:g} × {peer_name.split(maxsplit=1)[0]}"
        return Line(
            f"engine, {name}", "keys/s", ours, must, ours.median >= times * peer.median, peer, peer_name, beside=beside
        )

    def per_core(name: str) -> Spread:
        return Spread(tuple(1e6 / value for value in bench.spent[name]["worker"]))

    short = {f"{SHORT}: /s": seen[SHORT].median, f"{SHORT}: worker µs": bench.beside(SHORT)["worker µs"]}
    ours_core, celery_core = per_core(ONE), per_core(celery_name)
    return [
        against("claims of 50", celery_name, celery, 8),
        against("claims of 50", dramatiq_name, dramatiq, 2),
        against("claims of 10", celery_name, celery, 3),
        Line(
            f"engine, {ONE}, per core",
            "keys/CPU s",
            ours_core,
            "≥ 0.6 × Celery",
            ours_core.median >= 0.6 * celery_core.median,
            celery_core,
            celery_name,
            beside={**bench.beside(ONE), **short},
        ),
        against(ONE, "Procrastinate", seen["Procrastinate"], 1),
    ]
