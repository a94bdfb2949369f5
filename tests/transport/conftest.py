"""Redis in two forms – simulated and real – and ways out that use it."""

import itertools
import os
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
    """A client of Redis: fakeredis, and a real Valkey."""
    if request.param == "fakeredis":
        client: redis.Redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    else:
        client = redis.Redis.from_url(request.getfixturevalue("valkey").url)
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
    """Make a transport: `opened(server, failures=…, …)`; `None` as server: alone.

    Each has a prefix of its own, unless `prefix` makes several of one test share theirs.
    """
    test = f"way-out-{os.getpid()}-{next(_numbers)}"
    with ExitStack() as closing:

        def make(server: Any = None, **patience: Any) -> Out:
            calls: list[Call] = []
            changes: list[Circuit] = []
            prefix = f"{test}-{patience.pop('prefix', next(_numbers))}"
            transport = Transport(
                server, prefix, StandardPatience(**patience), observer=calls.append, on_circuit=changes.append
            )
            closing.callback(transport.close)
            return Out(transport, calls, changes)

        yield make
