"""What the witness says of consumers comes from the broker itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from kombu import Connection, Consumer, Queue

from chaos.rabbit import RabbitMQ, installed
from chaos.witness import Witness, expected_queues
from hub.runtime.embedded import scratch
from hub.settings import Settings
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import MarketplaceControl


def witness(**env: str) -> Witness:
    settings = Settings.load(env={"DATABASE_URL": "postgresql://127.0.0.1:1/none", **env})
    return Witness(settings, VtexControl("http://127.0.0.1:1"), MarketplaceControl("http://127.0.0.1:1"))


@contextmanager
def asking(url: str, *names: str) -> Iterator[None]:
    """A consumer as kombu makes them: it asks for all its queues, a second at a time."""
    ending = threading.Event()

    def ask() -> None:
        with redis.Redis.from_url(url) as client:
            while not ending.is_set():
                client.brpop(list(names), timeout=1)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def test_each_store_and_context_has_its_queue_and_each_pool_its_further_ones() -> None:
    names = expected_queues(witness(REDIS_URL="redis://127.0.0.1:1").settings, ["acme"])
    assert {"acme.stock", "acme.order", "offers.0.more", "control.0"} <= set(names)
    assert "control.0.more" not in names


def test_valkey_hears_which_queues_are_asked_for(redis_url: tuple[str, str]) -> None:
    url, prefix = redis_url
    with redis.Redis.from_url(url) as client:
        client.lpush(f"{prefix}:acme.price", "left over")
    with asking(url, f"{prefix}:acme.stock", f"{prefix}:control.0"), asking(url, f"{prefix}:acme.stock"):
        found = {one.name: one for one in witness(REDIS_URL=url, HUB_PREFIX=prefix).queues(["acme"])}
    assert found["acme.stock"].consumers == 2
    assert found["control.0"].consumers == 1
    assert (found["acme.price"].consumers, found["acme.price"].waiting) == (0, 1)


@pytest.mark.skipif(not installed(), reason="RabbitMQ is not installed on this machine")
def test_rabbitmq_is_asked_for_the_consumers_of_its_queues() -> None:
    with scratch("hub-witness-") as directory, RabbitMQ(directory / "rabbit") as rabbit:
        asked = witness(REDIS_URL="redis://127.0.0.1:1", HUB_BROKER_URL=rabbit.url)
        with Connection(rabbit.url) as connection:
            served, left = Queue("acme.stock"), Queue("acme.price")
            left(connection.default_channel).declare()
            connection.Producer().publish({"left": "over"}, routing_key="acme.price")
            with Consumer(connection, [served], callbacks=[]):
                found = {one.name: one for one in asked.queues(["acme"])}
    assert found["acme.stock"].consumers == 1
    assert found["acme.order"].consumers == 0
    assert (found["acme.price"].consumers, found["acme.price"].waiting) == (0, 1)
