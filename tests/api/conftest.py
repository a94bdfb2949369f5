"""A real logs endpoint on a free port, in front of a real PostgreSQL; records are written by the real ledger."""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
from cryptography.fernet import Fernet

from hub import db
from hub.ledger import Ledger
from hub.model import Ask, Story
from hub.outcome import Done, Ending, Plan, settle
from hub.stores import Registry, SecretBox, Store
from tasks.api import opened
from tasks.shared_port import listening

_numbers = itertools.count(1)
CONTEXTS = ("catalog", "price", "stock", "order", "fulfilment", "load", "lot")
TODAY = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class Shelf:
    """One store, and what a test writes about it."""

    endpoint: "Endpoint"
    store: Store
    token: str

    def requests_seen(self) -> int:
        """Requests that the endpoint answered."""
        return self.endpoint.requests_seen()

    def get(self, query: str = "", *, path: str | None = None, **options: Any) -> requests.Response:
        place = path if path is not None else f"/{self.token}/{self.store.account}/logs/"
        return self.endpoint.get(f"{place}?{query}" if query else place, **options)

    def messages(self, query: str = "", **options: Any) -> list[dict[str, str]]:
        answer = self.get(query, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()["Messages"]

    def tell(self, *stories: Story, context: str = "catalog", key: str = "1000", problems: Sequence[Any] = ()) -> None:
        """Have the ledger write stories, as an attempt does."""
        ledger = self.endpoint.ledger
        ledger.enqueue([Ask(self.store.id, context, key, "vtex")])
        claim = ledger.claim(self.store.id, context, lane=context, limit=5, seconds=60)
        assert claim is not None
        row = claim.items[key][context]
        ending = Ending(context, key, Done(), stories[0].code, tuple(problems), stories=stories)
        ledger.settle(claim, [(ending, settle(row, ending.outcome, Plan(delays=(1.0,) * 10, slow=(60.0,)), 0.5))])

    def write(self, at: str, **columns: Any) -> None:
        """Put a record down as it would be kept."""
        row = {
            "at": at,
            "store": self.store.id,
            "context": "stock",
            "key": "1000",
            "operation": "Inventory update",
            "direction": "VTEX to Marketplace",
            "code": "S1",
            "status": "success",
            **columns,
        }
        names = ", ".join(row)
        with self.endpoint.pool.connection() as connection:
            marks = ", ".join(["%s"] * len(row))
            connection.execute(f"insert into interactions ({names}) values ({marks})", list(row.values()))


@dataclass
class Endpoint:
    """The served endpoint."""

    url: str
    pool: Any
    registry: Registry
    ledger: Ledger
    session: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(f"{self.url}{path}", timeout=15, **options)

    def requests_seen(self) -> int:
        """Answers that the endpoint counted."""
        page = self.get("/metrics").text.splitlines()
        return sum(int(float(line.split()[-1])) for line in page if line.startswith("hub_api_answers_total{"))

    def shelf(self, account: str | None = None, affiliate: str = "MKT") -> Shelf:
        """A new store, of an account of its own unless one is named."""
        number = next(_numbers)
        store, token = self.registry.add(
            slug=f"acme{number}-mkt",
            account=account or f"acme{number}",
            affiliate=affiliate,
            sales_channel=1,
            marketplace="sandbox-sync",
            who="test",
        )
        return Shelf(self, store, token)


@pytest.fixture(scope="module")
def endpoint(module_database: str) -> Iterator[Endpoint]:
    """An endpoint for a module's tests, whose stores never share anything; for it, today is the 31st of January."""
    box = SecretBox([Fernet.generate_key()])
    pool = db.open_pool(module_database, "hub", name="test", max_size=2)
    ledger = Ledger(pool)
    ledger.join("test", 60.0)
    bound = listening("127.0.0.1", 0)
    with opened(module_database, "hub", box, contexts=CONTEXTS, clock=lambda: TODAY) as server:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        found = Endpoint(f"http://127.0.0.1:{bound.getsockname()[1]}", pool, Registry(pool, box), ledger)
        try:
            deadline = time.monotonic() + 60
            while found.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
            yield found
        finally:
            found.session.close()
            server.should_exit = True
            thread.join(timeout=15)
            pool.close()
    assert not thread.is_alive()


@pytest.fixture
def shelf(endpoint: Endpoint) -> Shelf:
    """A store of this test alone."""
    return endpoint.shelf()


def params(**values: str) -> Mapping[str, str]:
    """Parameters of a catalogue text."""
    return {
        "sku": "1000",
        "name": "Chair",
        "marketplace": "Sandbox",
        "remote": "R1",
        "link": "https://m.example/R1",
        **values,
    }
