"""The Celery application, and the one function that knows which queue carries what.

The broker only wakes workers up: a message says that a store has work in a context, and nothing else (design 2).
"""

from __future__ import annotations

import hashlib
from typing import Literal

from celery import Celery
from kombu import Exchange, Queue

from hub.settings import Settings

ATTEMPT = "hub.attempt"
REPLAY = "hub.replay"

GIVES_UP = {"max_retries": 0, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
"""Publishing tries once: the default waits six seconds for a broker that is away, and the sweep wakes later anyway."""

POOLED_FROM = 500
"""Stores in one shard from which the layout `pooled` is the better one; `hub doctor` advises by it.

`bench stores`: with 150 stores a key costs a worker no more in queues of their own (1.07 ms), and idling costs 0.7 % of
a core; with 1,000 it costs 45 % more than in pooled ones (2.12 and 1.48 ms; 55 % with one key a store), does 70 % of
the keys a second, and idles at 1.8 % (0.5 %). 500 lies between them, with about a quarter more, and below the 2 %.
"""

SILENT_SECONDS = 5
"""RabbitMQ's answer is awaited so long, then the connection counts as lost."""

Lane = Literal["first", "more"]
"""`first`: wake-ups of a store and context at rest, for which threads are reserved; `more`: every further one. Where
queues are pooled, whoever serves further ones serves the first too."""


def make_app(settings: Settings) -> Celery:
    """A Celery application for these settings. Nothing is connected yet."""
    app = Celery("hub", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=3,
        broker_transport_options=_transport_options(settings),
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,  # early ones would hide wake-ups inside a worker
        worker_prefetch_multiplier=1,
        task_create_missing_queues=True,
        task_default_queue="control.0",
        task_default_exchange="",
        task_default_routing_key="control.0",
        worker_send_task_events=True,
        task_send_sent_event=False,
        task_track_started=True,
        event_queue_ttl=5.0,
        event_queue_expires=60.0,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Celery would restore it from the threads that work, on RabbitMQ by the connection that its main thread reads
        # just then: one takes the other's answer away, and the worker serves nobody any more.
        worker_enable_prefetch_count_reduction=False,
        enable_utc=True,
        timezone="UTC",
    )
    return app


def is_redis(settings: Settings) -> bool:
    """Whether Redis is the broker: a queue is a list there, and an empty one does not exist."""
    return settings.broker_url.startswith(("redis://", "rediss://"))


def outlive_broker(app: Celery, settings: Settings) -> None:
    """Make a worker's connection one that survives a broker that goes away (`tasks.broker`)."""
    app.conf.worker_consumer = "tasks.broker:LastingConsumer"
    if is_redis(settings):
        app.conf.broker_transport = "tasks.broker:Transport"


def _transport_options(settings: Settings) -> dict[str, object]:
    if not is_redis(settings):
        # Without these whoever declares a queue waits three minutes for a node that took the connection while it was
        # still starting and never answers.
        return {"confirm_publish": True, "read_timeout": SILENT_SECONDS, "write_timeout": SILENT_SECONDS, **GIVES_UP}
    return {
        "global_keyprefix": f"{settings.prefix}:",
        "priority_steps": [0],  # else every queue is polled four times
        "queue_order_strategy": "round_robin",  # `priority` starves
        "visibility_timeout": 3600,
        "socket_connect_timeout": 3,
        "health_check_interval": 30,
        **GIVES_UP,
    }


def queue(name: str) -> Queue:
    """A queue by name, on the default exchange: a named exchange that lost its bindings drops messages silently."""
    return Queue(name, Exchange(""), routing_key=name)


def shard_of(slug: str, shards: int) -> int:
    """The shard a store lives in: a stable hash, equal in every process and version."""
    return int.from_bytes(hashlib.sha256(slug.encode()).digest()[:4], "big") % shards


def queue_for(settings: Settings, slug: str, context: str, lane: Lane = "first") -> str:
    """The queue that carries the wake-ups of a store and context; nothing else in the code knows the layout."""
    pool = settings.contexts[context].pool
    shard = shard_of(slug, settings.pools[pool].shards)
    if lane == "more" and settings.pools[pool].reserved:  # nothing reserved: all wake-ups are alike
        return f"{pool}.{shard}.more"
    if settings.layout == "pooled":
        return f"{pool}.{shard}"
    return f"{slug}.{context}"


def dead_queue(slug: str, context: str) -> str:
    """The dead-letter queue of a store and context: a mirror of the dead rows, consumed by nobody."""
    return f"{slug}.{context}.dead"


def own_queues(settings: Settings, slug: str) -> list[str]:
    """Every queue that is one store's alone, in whichever layout; nobody else's ever has such a name."""
    return [name for context in settings.contexts for name in (f"{slug}.{context}", dead_queue(slug, context))]


def queues_of(settings: Settings, pool: str, shards: frozenset[int], lane: Lane, slugs: list[str]) -> set[str]:
    """Every queue that a worker of this pool, these shards and this lane serves, given the registered stores."""
    if pool == "control":
        return {f"control.{shard}" for shard in shards} if lane == "first" else set()
    first = {f"{pool}.{shard}" for shard in shards} if settings.layout == "pooled" else set()
    if lane == "more":
        if not settings.pools[pool].reserved:
            return set()
        return {f"{pool}.{shard}.more" for shard in shards} | first
    if settings.layout == "pooled":
        return first
    count = settings.pools[pool].shards
    contexts = [name for name, context in settings.contexts.items() if context.pool == pool]
    return {f"{slug}.{context}" for slug in slugs if shard_of(slug, count) in shards for context in contexts}
