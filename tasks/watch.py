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
    """Workers that answered, each with its queues, and the queues that somebody should serve and nobody does."""

    workers: dict[str, frozenset[str]] = field(default_factory=dict)
    unserved: frozenset[str] = frozenset()


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
    wanted: set[str] = set()
    for pool, chosen in settings.pools.items():
        shards = frozenset(range(chosen.shards))
        wanted |= queues_of(settings, pool, shards, "first", slugs) | queues_of(settings, pool, shards, "more", slugs)
    return Watched(workers, frozenset(wanted - frozenset().union(*workers.values())))
