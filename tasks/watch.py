"""Who is at work, asked over the broker: which queues every worker serves, and what waits in them."""

from __future__ import annotations

from dataclasses import dataclass, field

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from hub.errors import Unavailable
from hub.settings import Settings
from tasks.app import make_app, queues_of


@dataclass(frozen=True, slots=True)
class Watched:
    """Workers that answered, each with its queues, and the queues that somebody should serve and nobody does.

    `empty` are shards none of whose queues is served, as `hub worker` takes them: pool → `2/4`.
    """

    workers: dict[str, frozenset[str]] = field(default_factory=dict)
    unserved: frozenset[str] = frozenset()
    empty: tuple[tuple[str, str], ...] = ()


def watch(settings: Settings, slugs: list[str], *, expected: int = 0, seconds: float = 5.0) -> Watched:
    """Ask all workers and wait until `expected` have answered, `seconds` at most.

    `Unavailable` when the broker cannot be reached.
    """
    app = make_app(settings)
    try:
        answers = app.control.inspect(timeout=seconds, limit=expected or None).active_queues() or {}
    except (OperationalError, RedisError, OSError) as fault:
        raise Unavailable(f"the broker cannot be reached ({type(fault).__name__})") from None
    finally:
        app.close()
    workers = {name: frozenset(str(queue["name"]) for queue in queues) for name, queues in answers.items()}
    served: frozenset[str] = frozenset().union(*workers.values())
    wanted: set[str] = set()
    empty: list[tuple[str, str]] = []
    for pool, chosen in settings.pools.items():
        for number in range(chosen.shards):
            shard = frozenset({number})
            queues = queues_of(settings, pool, shard, "first", slugs) | queues_of(settings, pool, shard, "more", slugs)
            wanted |= queues
            if not queues & served:
                empty.append((pool, f"{number + 1}/{chosen.shards}"))
    return Watched(workers, frozenset(wanted - served), tuple(empty))
