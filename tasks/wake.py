"""Wake-ups: enough of them that nobody waits, so few that nobody starves; losing or doubling one costs nothing.

A token counts a wake-up from the moment it is published until its attempt has ended, so that one store and context
never has more than its cap waiting and running together (design 3). Tokens live in Redis; without Redis nothing is
woken and the sweep makes up for it later.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import redis
from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import KombuError

from hub.settings import Settings
from tasks.app import ATTEMPT, Lane, dead_queue, queue, queue_for

log = logging.getLogger("hub.wake")

WAITING_TOKEN_MS = 20_000
"""A token that no worker has picked up lapses after this: its message may be lost, and the sweep may send another."""

RUNNING_TOKEN_MS = 15_000
"""A running attempt's token lapses after this unless its process renews it."""

MIRROR_MS = 10_000
"""How long a sweep that fills a dead-letter queue keeps others from it, should it end in between."""

# KEYS: 1 tokens (sorted set, token -> expiry in ms), 2 mark of a refused wake-up, 3 brake.
# ARGV: 1 life of a token in ms, 2 cap, 3 how many are wanted, 4 prefix of the new tokens.
# Answer: how many were granted, how many there were before.
_TAKE = """
if redis.call('EXISTS', KEYS[3]) == 1 then return {0, 0} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local busy = redis.call('ZCARD', KEYS[1])
local n = math.min(tonumber(ARGV[3]), tonumber(ARGV[2]) - busy)
if n <= 0 then
  redis.call('SET', KEYS[2], '1', 'PX', 60000)
  return {0, busy}
end
for i = 1, n do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[4] .. i) end
redis.call('PEXPIRE', KEYS[1], 600000)
return {n, busy}
"""

# KEYS as above. ARGV: 1 token. Answer: 1 when a wake-up was refused meanwhile, so that one has to follow.
_GIVE = """
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('DEL', KEYS[2])
"""

# KEYS: 1 tokens. ARGV: 1 life in ms, 2 token.
_HOLD = """
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], 600000)
return 1
"""


class Waker:
    """Publishes wake-ups for one process. Thread-safe; never raises because Redis or the broker is away."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self._settings = settings
        self._app = app
        self._redis: redis.Redis = redis.Redis.from_url(
            settings.redis_url, socket_timeout=1.0, socket_connect_timeout=1.0
        )
        self._take = self._redis.register_script(_TAKE)
        self._give = self._redis.register_script(_GIVE)
        self._hold = self._redis.register_script(_HOLD)
        self._lock = Lock()
        self._complained = 0.0
        self.pushed = 0

    def wake(self, pairs: Iterable[tuple[str, str]], *, wanted: int = 1, further: bool = False) -> int:
        """Wake (slug, context) pairs, up to `wanted` messages each and never beyond the cap; returns how many went out.

        `further`: the pair is at work already, so its wake-ups go to the threads that are not reserved.
        """
        # A newer version may have asked for a context that this one does not know; its own workers are woken by it.
        chosen = [pair for pair in pairs if pair[1] in self._settings.contexts]
        if not chosen:
            return 0
        try:
            sent = self._wake(chosen, wanted, further)
        except (redis.RedisError, KombuError, AMQPError, OSError) as fault:
            self._complain(fault)
            return 0
        self.pushed += sent
        return sent

    def _wake(self, pairs: Sequence[tuple[str, str]], wanted: int, further: bool) -> int:
        stems = [uuid.uuid4().hex for _ in pairs]
        with self._redis.pipeline(transaction=False) as pipe:
            for (slug, context), stem in zip(pairs, stems, strict=True):
                self._take(
                    keys=self._keys(slug, context),
                    args=[WAITING_TOKEN_MS, self._settings.contexts[context].cap, wanted, stem],
                    client=pipe,
                )
            answers: list[Any] = pipe.execute()
        sent = 0
        with self._app.producer_pool.acquire(block=True, timeout=2) as producer:
            for (slug, context), stem, (granted, busy) in zip(pairs, stems, answers, strict=True):
                for number in range(1, granted + 1):
                    lane: Lane = "more" if further or busy or number > 1 else "first"
                    message = self._app.amqp.as_task_v2(
                        f"{stem}{number}",
                        ATTEMPT,
                        args=(slug, context),
                        kwargs={},
                        argsrepr=f"({slug!r}, {context!r})",
                        ignore_result=True,
                    )
                    producer.publish(
                        message.body,
                        exchange="",
                        routing_key=queue_for(self._settings, slug, context, lane),
                        headers=message.headers,
                        serializer="json",
                        retry=False,
                        **message.properties,
                    )
                    sent += 1
        return sent

    def send(self, task: str, name: str) -> None:
        """Send a management task without arguments to a queue."""
        try:
            with self._app.producer_pool.acquire(block=True, timeout=2) as producer:
                message = self._app.amqp.as_task_v2(uuid.uuid4().hex, task, args=(), kwargs={}, ignore_result=True)
                producer.publish(
                    message.body,
                    exchange="",
                    routing_key=name,
                    headers=message.headers,
                    serializer="json",
                    retry=False,
                    **message.properties,
                )
        except (redis.RedisError, KombuError, AMQPError, OSError) as fault:
            self._complain(fault)

    def hold(self, running: Iterable[tuple[str, str, str]]) -> None:
        """Renew the tokens of running attempts, (slug, context, token) each."""
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for slug, context, token in running:
                    self._hold(keys=self._keys(slug, context)[:1], args=[RUNNING_TOKEN_MS, token], client=pipe)
                pipe.execute()
        except (redis.RedisError, OSError) as fault:
            self._complain(fault)

    def give(self, slug: str, context: str, token: str) -> bool:
        """The attempt has ended; `True` when a wake-up was refused meanwhile and one has to follow."""
        try:
            return bool(self._give(keys=self._keys(slug, context), args=[token]))
        except (redis.RedisError, OSError) as fault:
            self._complain(fault)
            return False

    def brake(self, slug: str, context: str, seconds: float) -> None:
        """Nobody is woken for this pair for `seconds`: a limit or a circuit says so. The sweep wakes it afterwards."""
        try:
            self._redis.set(self._keys(slug, context)[2], "1", px=max(1, int(seconds * 1000)))
        except (redis.RedisError, OSError) as fault:
            self._complain(fault)

    def release(self, slug: str, context: str) -> None:
        """Take the brake off."""
        try:
            self._redis.delete(self._keys(slug, context)[2])
        except (redis.RedisError, OSError) as fault:
            self._complain(fault)

    def mirrored(self) -> set[tuple[str, str]]:
        """Every (slug, context) whose dead-letter queue shows something, whichever sweep filled it."""
        try:
            members = self._redis.smembers(f"{self._settings.prefix}:dead")
        except (redis.RedisError, OSError) as fault:
            self._complain(fault)
            return set()
        pairs = (str(member, "ascii").rpartition(".") for member in members if isinstance(member, bytes))
        return {(slug, context) for slug, _, context in pairs}

    def mirror_dead(self, slug: str, context: str, letters: Sequence[tuple[str, str, str]]) -> None:
        """Let the dead-letter queue show exactly these (key, code, since) letters; untouched when it does already."""
        stamp, shown = f"{self._settings.prefix}:dead:{slug}.{context}", f"{self._settings.prefix}:dead"
        turn = f"{stamp}:turn"
        digest = hashlib.sha256(repr(list(letters)).encode()).hexdigest() if letters else ""
        try:
            known = self._redis.get(stamp) or b""
            if known in (digest, digest.encode()):
                return
            if not self._redis.set(turn, "1", nx=True, px=MIRROR_MS):
                return  # another sweep is at it; two would show each letter twice
            name = dead_queue(slug, context)
            self._redis.sadd(shown, f"{slug}.{context}")
            with self._app.producer_pool.acquire(block=True, timeout=2) as producer:
                bound = queue(name)(producer.channel)  # type: ignore[arg-type]  # a pooled producer has a channel
                bound.declare()
                bound.purge()
                for key, code, since in letters:
                    producer.publish(
                        {"key": key, "reason": code, "since": since},
                        exchange="",
                        routing_key=name,
                        serializer="json",
                        retry=False,
                    )
            self._redis.set(stamp, digest)
            if not letters:
                self._redis.srem(shown, f"{slug}.{context}")
            self._redis.delete(turn)
        except (redis.RedisError, KombuError, AMQPError, OSError) as fault:
            self._complain(fault)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._app.close()

    def _keys(self, slug: str, context: str) -> list[str]:
        stem = f"{self._settings.prefix}:wake:{{{slug}.{context}}}"
        return [f"{stem}:tokens", f"{stem}:mark", f"{stem}:brake"]

    def _complain(self, fault: Exception) -> None:
        """Say that nobody can be woken, once in ten seconds at most."""
        with self._lock:
            if time.monotonic() - self._complained < 10.0:
                return
            self._complained = time.monotonic()
        log.warning("cannot wake workers (%s); the sweep will", type(fault).__name__)
