"""Redis in two forms – simulated and real – and ways out that use it."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest
import redis

from hub.circuits import Circuit, StandardPatience
from hub.transport import Call, Transport

from .peer import Peer

_numbers = itertools.count(1)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as serving:
        yield serving


@pytest.fixture(params=["fakeredis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client of an empty Redis: fakeredis, and a real Valkey."""
    if request.param == "fakeredis":
        client: redis.Redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    else:
        client = redis.Redis.from_url(request.getfixturevalue("valkey").url)
        client.flushall()
    yield client
    client.close()


@dataclass
class Out:
    """A transport that remembers what it told."""

    transport: Transport
    calls: list[Call] = field(default_factory=list)
    changes: list[Circuit] = field(default_factory=list)


Opened = Callable[..., Out]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Make a transport: `opened(server, failures=…, …)`; `None` as server: alone."""
    with ExitStack() as closing:

        def make(server: Any = None, **patience: Any) -> Out:
            calls: list[Call] = []
            changes: list[Circuit] = []
            prefix = patience.pop("prefix", f"t{next(_numbers)}")
            transport = Transport(
                server, prefix, StandardPatience(**patience), observer=calls.append, on_circuit=changes.append
            )
            closing.callback(transport.close)
            return Out(transport, calls, changes)

        yield make
