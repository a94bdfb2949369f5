"""A real intake on a free port, in front of a real PostgreSQL; what it wakes is written down instead of published."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from cryptography.fernet import Fernet

from hub import db
from hub.settings import SPOOL_BYTES
from hub.stores import Registry, SecretBox
from tasks.bounded_http import Bounds
from tasks.group_commit import PATIENCE_SECONDS
from tasks.intake import opened
from tasks.shared_port import listening
from tests.cell import requests_counted

PATIENCE = 60.0
UNHURRIED = 10.0
"""Seconds an intake may wait for PostgreSQL in tests that are not about how long it does."""


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Poll until the condition gives something true, and give it back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"did not happen within {seconds} s: {condition}")


@dataclass
class Answer:
    status: int
    body: Any
    headers: Any


@dataclass
class Running:
    """An intake that serves, and what a test asks about it."""

    url: str
    database: str = field(repr=False)
    registry: Registry
    woken: list[tuple[str, str]]
    session: requests.Session = field(default_factory=requests.Session)

    def post(self, path: str, body: Any = None, *, raw: bytes | None = None, **options: Any) -> Answer:
        content = raw if raw is not None else json.dumps(body).encode()
        answer = self.session.post(f"{self.url}/{path}", data=content, timeout=15, **options)
        return Answer(answer.status_code, answer.json() if answer.content else None, answer.headers)

    def get(self, path: str) -> requests.Response:
        return self.session.get(f"{self.url}/{path}", timeout=15)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database, autocommit=True, options="-c search_path=hub") as connection:
            return connection.execute(query, parameters).fetchall()

    def states(self) -> list[tuple[str, str, int, bool]]:
        return self.rows("select context, key, urgency, heard from states order by 1, 2")

    def notices(self) -> list[tuple[str, str, str | None, str]]:
        return self.rows("select kind, fate, key, body from notices order by received_at, id")

    def counters(self, source: str = "vtex") -> tuple[int, int, int, int]:
        """received, quarantined, ignored, accepted."""
        return self.rows(
            "select coalesce(sum(received), 0)::int, coalesce(sum(quarantined), 0)::int, "
            "coalesce(sum(ignored), 0)::int, coalesce(sum(accepted), 0)::int "
            "from counters where context = '-' and source = %s",
            source,
        )[0]

    def refused(self, reason: str) -> float:
        line = f'hub_intake_refused_total{{reason="{reason}"}} '
        found = [row for row in self.get("metrics").text.splitlines() if row.startswith(line)]
        return float(found[0].split()[-1]) if found else 0.0

    def add_store(self, slug: str = "acme-mkt", account: str = "acme", affiliate: str = "MKT", **options: Any) -> str:
        """Register a store; the answer is its token, which the intake knows by now."""
        _, token = self.registry.add(
            slug=slug,
            account=account,
            affiliate=affiliate,
            sales_channel=1,
            marketplace="sandbox-sync",
            who="test",
            **options,
        )
        until(lambda: self.get(token).status_code == 405)
        return token


@dataclass
class Intakes:
    """The intakes of the test process that a test may ask, and what those that ended had received."""

    running: list[Running] = field(default_factory=list)
    ended: int = 0

    def requests_seen(self) -> int:
        return self.ended + sum(requests_counted(running.url) for running in self.running)


_intakes = Intakes()


@pytest.fixture(autouse=True)
def intakes() -> Intakes:
    """Counts for the mark `scenario`, in tests too that serve an intake by themselves."""
    return _intakes


@contextmanager
def serving(
    database: str,
    *,
    wake: Callable[[Iterable[tuple[str, str]]], int] | None = None,
    bounds: Bounds | None = None,
    wait: bool = True,
    registry_of: str | None = None,
    spool: Path | None = None,
    spool_bytes: int = SPOOL_BYTES,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[Running]:
    """An intake in a thread. `registry_of`: where the test writes stores, when the intake is given another URL.

    `patience`: `UNHURRIED` where a pause of the machine shall not look like a PostgreSQL that is away.
    """
    woken: list[tuple[str, str]] = []

    def note(pairs: Iterable[tuple[str, str]]) -> int:
        before = len(woken)
        woken.extend(pairs)
        return len(woken) - before

    box = SecretBox([Fernet.generate_key()])
    pool = db.open_pool(registry_of or database, "hub", name="test", max_size=2)
    bound = listening("127.0.0.1", 0)
    kept = {"spool": spool, "spool_bytes": spool_bytes, "patience": patience}
    with opened(database, "hub", box, wake or note, bounds=bounds, slot=1, registry_seconds=0.02, **kept) as server:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        running = Running(
            f"http://127.0.0.1:{bound.getsockname()[1]}", registry_of or database, Registry(pool, box), woken
        )
        _intakes.running.append(running)
        try:
            if wait:
                until(lambda: running.get("readyz").status_code == 200)
            yield running
        finally:
            running.session.close()
            _intakes.running.remove(running)
            _intakes.ended += requests_counted(running.url)
            server.should_exit = True
            thread.join(timeout=15)
            pool.close()
    assert not thread.is_alive()


@pytest.fixture
def intake(database: str) -> Iterator[Running]:
    """A ready intake without stores."""
    with serving(database, patience=UNHURRIED) as running:
        yield running
