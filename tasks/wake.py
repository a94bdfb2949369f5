"""Wake-ups: enough of them that nobody waits, so few that nobody starves; losing or doubling one costs nothing.

A token counts a wake-up from the moment it is published until its attempt has ended, so that one store and context
never has more than its cap waiting and running together (design 3). Tokens live in Redis; without Redis nothing is
woken and the sweep makes up for it later.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, get_args

import redis
from amqp.exceptions import AMQPError, PreconditionFailed
from celery import Celery
from kombu import Producer
from kombu.exceptions import KombuError

from hub.settings import Settings
from tasks.app import ATTEMPT, Lane, dead_queue, is_redis, own_queues, queue, queue_for

log = logging.getLogger("hub.wake")

WAITING_TOKEN_MS = 20_000
"""A token that no worker has picked up lapses after this when no message waits: it is lost, and another may be sent.

What waits in a broker of another kind cannot be seen from here: there a wake-up that waits longer is doubled.
"""

LONGEST_WAIT_MS = 120_000
"""A waiting token lapses after this in any case, however long the queue is that its message may wait in."""

CROWD = 1000
"""Waiting messages from which on the sweep wakes nobody twice: that a pair still waits there needs no other reason.

Else each of 10,000 pairs got one more every second, up to its cap, and workers were busy finding nothing to claim.
Below it a pair is woken again at once, for its wake-up may be lost; above it when its token lapses.
"""

KEPT_MESSAGES = 20_000
"""Ready-made messages that a process keeps, one for each store and context that it woke."""

PAST, BESIDE = "l", "m"
"""What the tokens of live wake-ups of a busy pair begin with: sent past the others, or beside them. No other token does
(they are hexadecimal)."""

LIVE = {1: PAST, 3: BESIDE}
"""How a live wake-up of a busy pair goes, as the scripts answer, and how its token begins."""

MARK = "@TOKEN@"
"""Stands for the token in a ready-made message."""

RUNNING_TOKEN_MS = 15_000
"""A running attempt's token lapses after this unless its process renews it."""

MIRROR_MS = 10_000
"""How long a sweep that fills a dead-letter queue keeps others from it, should it end in between."""

BACKLOG_SECONDS = 3.0
"""How long a pair whose last claim was full of live work counts as one with a backlog."""

# Tokens: '<id>' waits, 'r<id>' runs; that of a live wake-up of a busy pair begins with 'l' or 'm'. One at a time, 'l',
# goes past the others, to the reserved threads and whatever the cap says; more of them, 'm', go to the other threads
# while there is room below the cap and nothing waits there. Should one have to wait all the same, the mark 'beside' has
# whichever attempt ends next send one past the others.
#
# KEYS: 1 tokens (sorted set, token -> expiry in ms), 2 mark of a refused wake-up ('live' when it was one) or 'beside',
#       3 brake, 4 mark of a live backlog,
#       5 and 6 the lists of the broker in which first and further wake-ups wait (there when it is the same Redis),
#       7 tokens that were there when the brake was taken off.
# ARGV: 1 life of a token in ms, 2 cap, 3 how many are wanted, 4 prefix of the new tokens, 5 longest life.
# Answer: how many were granted, how many there were before, 1 when it goes past the others, 3 when it goes beside them.
_GRANT = """
local live_as = {[1] = 'l', [3] = 'm'}
local function grant(wanted, live, crowd)
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  local late = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
  if #late > 0 then
    local waits = redis.call('LLEN', KEYS[5]) + redis.call('LLEN', KEYS[6]) > 0
    local longest = now + ARGV[1] - ARGV[5]
    for _, token in ipairs(late) do
      if not waits or string.sub(token, 1, 1) == 'r' or tonumber(redis.call('ZSCORE', KEYS[1], token)) < longest then
        redis.call('ZREM', KEYS[1], token)
      end
    end
  end
  local busy = redis.call('ZCARD', KEYS[1])
  if crowd and busy >= tonumber(wanted) and redis.call('LLEN', KEYS[5]) + redis.call('LLEN', KEYS[6]) >= crowd then
    local waiting = 0
    for _, token in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
      if string.sub(token, 1, 1) ~= 'r' then waiting = waiting + 1 end
    end
    if waiting >= tonumber(wanted) then return {0, busy, 0} end
  end
  if live and busy > 0 and redis.call('EXISTS', KEYS[4]) == 0 then
    local way = 1
    for _, token in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
      if string.sub(token, 1, 1) == 'l' or string.sub(token, 1, 2) == 'rl' then
        way = 3
        break
      end
    end
    if way == 3 then
      if busy >= tonumber(ARGV[2]) or redis.call('LLEN', KEYS[6]) > 0 then
        redis.call('SET', KEYS[2], 'live', 'PX', 60000)
        return {0, busy, 0}
      end
      redis.call('SET', KEYS[2], 'beside', 'PX', 60000, 'NX')
    end
    redis.call('ZADD', KEYS[1], now + ARGV[1], live_as[way] .. ARGV[4] .. '1')
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return {1, busy, way}
  end
  local n = math.min(tonumber(wanted), tonumber(ARGV[2]) - busy)
  if n <= 0 then
    redis.call('SET', KEYS[2], '1', 'PX', 60000, 'NX')
    return {0, busy, 0}
  end
  for i = 1, n do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[4] .. i) end
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  return {n, busy, 0}
end
local function send(answer, first, more, further)
  if not more or more == '' then return answer end
  for i = 1, answer[1] do
    local past = answer[3] == 1
    local token = (live_as[answer[3]] or '') .. ARGV[4] .. i
    if not past and (further or answer[2] > 0 or i > 1) then
      redis.call('LPUSH', KEYS[6], (string.gsub(more, '@TOKEN@', token)))
    else
      redis.call('LPUSH', KEYS[5], (string.gsub(first, '@TOKEN@', token)))
    end
  end
  return answer
end
"""

# KEYS and ARGV as above, and ARGV: 6 '1' for live work; 7 and 8 the messages of both lanes, where they go out from here
# (the place of the token is marked), 9 '1' when all are further ones, 10 how many waiting messages are a crowd, or 0.
_TAKE = f"""
{_GRANT}
local brake = redis.call('GET', KEYS[3])
if brake and not (ARGV[6] == '1' and brake == 'soft') then return {{0, 0, 0}} end
local crowd = tonumber(ARGV[10] or 0)
return send(grant(ARGV[3], ARGV[6] == '1', crowd > 0 and crowd), ARGV[7], ARGV[8], ARGV[9] == '1')
"""

# The end of an attempt and what follows it, in one step: nobody can be refused between the two.
# KEYS and ARGV as above, and ARGV: 6 token that ends, 7 how many are wanted if a wake-up was refused meanwhile,
# 8 brake in ms or 0, 9 'soft' or '1': what kind of brake, 10 how long there is a live backlog, in ms, or 0,
# 11 the message of further wake-ups, as above.
# A wake-up that was out when the brake was taken off sets none: what it found out may be older (until its first
# heartbeat nobody can tell whether it waits or runs). One follows at once, and that one knows better.
# Answer as above; the third number is 2 when a live wake-up was refused meanwhile, or waits beside the others, so that
# one has to follow.
_END = f"""
{_GRANT}
redis.call('ZREM', KEYS[1], ARGV[6], 'r' .. ARGV[6])
local mark = redis.call('GET', KEYS[2])
if mark then redis.call('DEL', KEYS[2]) end
local wanted = ARGV[3]
local freed = redis.call('SREM', KEYS[7], ARGV[6]) == 1
if ARGV[8] ~= '0' and freed then
  if wanted == '0' then wanted = '1' end
elseif ARGV[8] ~= '0' then
  redis.call('SET', KEYS[3], ARGV[9], 'PX', ARGV[8])
end
if ARGV[10] ~= '0' then redis.call('SET', KEYS[4], '1', 'PX', ARGV[10]) end
if mark == 'beside' then mark = redis.call('LLEN', KEYS[6]) > 0 and 'live' end
if wanted == '0' and mark and mark ~= 'live' then wanted = ARGV[7] end
local answer = {{0, 0, 0}}
if wanted ~= '0' and redis.call('EXISTS', KEYS[3]) == 0 then answer = send(grant(wanted, false), '', ARGV[11], true) end
if mark == 'live' then answer[3] = 2 end
return answer
"""

# KEYS: 1 tokens. ARGV: 1 life in ms, 2 token. What has ended meanwhile stays away. Answer: 1 when it is held.
_HOLD = """
local t = redis.call('TIME')
if redis.call('ZREM', KEYS[1], ARGV[2], 'r' .. ARGV[2]) == 0 then return 0 end
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[1], 'r' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], 600000)
return 1
"""


# KEYS: 1 tokens, 2 brake, 3 tokens that are there now. ARGV: 1 how long they are remembered in ms.
_RELEASE = """
redis.call('DEL', KEYS[2])
for _, token in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('SADD', KEYS[3], (string.gsub(token, '^r', '')))
end
redis.call('PEXPIRE', KEYS[3], ARGV[1])
return 0
"""


@dataclass(frozen=True, slots=True)
class _End:
    """An attempt that has ended, as `_END` takes it."""

    pair: tuple[str, str]
    token: str
    wanted: int
    refused: int
    brake: float | None
    soft: bool
    backlog: bool

    def arguments(self) -> tuple[str | int, ...]:
        """ARGV from the sixth on."""
        brake = max(1, int(self.brake * 1000)) if self.brake else 0
        backlog = int(BACKLOG_SECONDS * 1000) if self.backlog else 0
        return self.token, self.refused, brake, "soft" if self.soft else "1", backlog


class Waker:
    """Publishes wake-ups for one process. Thread-safe; never raises because Redis or the broker is away."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self._settings = settings
        self._app = app
        self._redis: redis.Redis = redis.Redis.from_url(
            settings.redis_url, socket_timeout=1.0, socket_connect_timeout=1.0
        )
        self._take = self._redis.register_script(_TAKE)
        self._end = self._redis.register_script(_END)
        self._hold = self._redis.register_script(_HOLD)
        self._release = self._redis.register_script(_RELEASE)
        # Where the broker is the same Redis, the script that grants a wake-up sends it too.
        self._lists = settings.broker_url == settings.redis_url
        self._lock = Lock()
        self._complained = 0.0
        self._messages: dict[tuple[str, str], tuple[str, dict[str, Any], dict[str, Any]]] = {}
        self._drafted: dict[tuple[str, str], tuple[str, str]] = {}
        self.pushed = 0

    def wake(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        wanted: int = 1,
        further: bool = False,
        live: bool = False,
        again: bool = False,
    ) -> int:
        """Wake (slug, context) pairs, up to `wanted` messages each and never beyond the cap; returns how many went out.

        `further`: the pair is at work already, so its wake-ups go to the threads that are not reserved. `live`:
        somebody said that something changed; unless the pair has a backlog of such work, one wake-up goes to the
        reserved threads even while a load or a sweep keeps the pair busy, and more go beside them up to the cap: what
        changes while an attempt waits for its peers needs one of its own, or it waits as well. `again`: the pair may
        have been woken before. Where a crowd of wake-ups waits (`CROWD`) its own is taken to be among them.
        """
        chosen = self._known(pairs)
        crowd = CROWD if again else 0
        return self._guarded(lambda: self._wake(chosen, wanted, further, live, crowd=crowd)) if chosen else 0

    def end(
        self,
        ended: tuple[str, str],
        token: str,
        *,
        wanted: int,
        refused: int,
        brake: float | None = None,
        soft: bool = False,
        backlog: bool = False,
        others: Iterable[tuple[str, str]] = (),
    ) -> int:
        """The attempt of `ended` has ended: give its token back and wake whoever has work now, in one trip.

        `wanted` further wake-ups for the pair itself, `refused` where none is wanted but one was refused meanwhile.
        `brake`: seconds for which nobody is woken for it, `soft`: but for live work. `backlog`: its claim was full of
        live work, so for a while what comes new waits its turn with the rest. Returns how many went out.
        Of a context that only a newer version knows the token goes and nothing follows: its own workers do the rest.
        """
        chosen = self._known(others)
        if not self._known([ended]):
            return self._guarded(
                lambda: self._forget(ended, token) + (self._wake(chosen, 1, False, False) if chosen else 0)
            )
        end = _End(ended, token, wanted, refused, brake, soft, backlog)
        return self._guarded(lambda: self._wake(chosen, 1, False, False, end))

    def _known(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """A newer version may have asked for a context that this one does not know; its own workers are woken by it."""
        return [pair for pair in pairs if pair[1] in self._settings.contexts]

    def _guarded(self, publish: Callable[[], int]) -> int:
        try:
            sent = publish()
        except (redis.RedisError, KombuError, AMQPError, OSError) as fault:
            self._complain(fault)
            return 0
        self.pushed += sent
        return sent

    def _wake(
        self,
        pairs: Sequence[tuple[str, str]],
        wanted: int,
        further: bool,
        live: bool,
        ended: _End | None = None,
        *,
        crowd: int = 0,
    ) -> int:
        chosen = [*([ended.pair] if ended else ()), *pairs]
        stems = [uuid.uuid4().hex for _ in chosen]
        drafts = [self._drafts(slug, context) if self._lists else ("", "") for slug, context in chosen]
        answers: list[Any] = []
        with self._redis.pipeline(transaction=False) as pipe:
            # A pipeline asks first which scripts Redis knows: a trip of its own, which one script alone does without.
            client = pipe if len(chosen) > 1 else self._redis
            for number, (slug, context) in enumerate(chosen):
                keys, cap = self._keys(slug, context), self._settings.contexts[context].cap
                grant: list[str | int] = [WAITING_TOKEN_MS, cap, wanted, stems[number], LONGEST_WAIT_MS]
                if ended and number == 0:
                    grant[2] = ended.wanted
                    answer = self._end(keys=keys, args=[*grant, *ended.arguments(), drafts[number][1]], client=client)
                else:
                    flags = ["1" if live else "0", *drafts[number], "1" if further else "0", crowd]
                    answer = self._take(keys=keys, args=[*grant, *flags], client=client)
                answers.append(answer)
            if client is pipe:
                answers = pipe.execute()
        due: list[tuple[str, str, str, Lane]] = []
        for place, ((slug, context), stem, (granted, busy, way)) in enumerate(zip(chosen, stems, answers, strict=True)):
            goes_on = further or bool(ended and place == 0)
            for number in range(1, granted + 1):
                lane: Lane = "more" if LIVE.get(way) != PAST and (goes_on or busy or number > 1) else "first"
                due.append((slug, context, f"{LIVE.get(way, '')}{stem}{number}", lane))
        if due and not self._lists:
            self._publish_all(due)
        sent = len(due)
        if ended and answers[0][2] == 2:
            sent += self._wake([ended.pair], 1, False, True)
        return sent

    def _forget(self, pair: tuple[str, str], token: str) -> int:
        """Take the token out of the count; the mark of a refused wake-up stays for whoever can follow it."""
        self._redis.zrem(self._marks(*pair)[0], token, f"r{token}")
        return 0

    def _publish_all(self, due: Sequence[tuple[str, str, str, Lane]]) -> None:
        """Every wake-up, by slug, context, token and lane. A token without a message would keep others from waking."""
        left = list(reversed(due))
        try:
            with self._app.producer_pool.acquire(block=True, timeout=2) as producer:
                while left:
                    self._publish(producer, *left[-1])
                    left.pop()
        except BaseException:
            with suppress(redis.RedisError, OSError), self._redis.pipeline(transaction=False) as pipe:
                for slug, context, token, _ in left:
                    pipe.zrem(self._keys(slug, context)[0], token)
                pipe.execute()
            raise

    def _drafts(self, slug: str, context: str) -> tuple[str, str]:
        """First and further wake-ups of a pair as kombu puts them into Redis, with a mark where the token goes.

        Sent by the script that grants them they cost no trip and no work of kombu's.
        """
        found = self._drafted.get((slug, context))
        if found is None:
            if len(self._drafted) >= KEPT_MESSAGES:
                self._drafted.clear()
            with self._app.producer_pool.acquire(block=True, timeout=2) as producer:
                drafted = [self._draft(producer, slug, context, lane) for lane in get_args(Lane)]
            found = self._drafted[slug, context] = (drafted[0], drafted[1])
        return found

    def _draft(self, producer: Producer, slug: str, context: str, lane: Lane) -> str:
        body, headers, properties = self._message(slug, context)
        written: list[str] = []

        class Desk:
            """Takes what kombu would send."""

            @staticmethod
            def add(_command: str, _key: str, text: str) -> None:
                written.append(text)

        channel: Any = producer.channel
        message = channel.prepare_message(
            body,
            priority=0,
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers | {"id": MARK, "root_id": MARK},
            properties=properties | {"correlation_id": MARK, "delivery_mode": 2},
        )
        channel.basic_publish(
            message, exchange="", routing_key=queue_for(self._settings, slug, context, lane), _publish_batch=Desk
        )
        made = json.loads(written[0])
        made["properties"]["delivery_tag"] = MARK  # each message has its own
        return json.dumps(made)

    def _message(self, slug: str, context: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Body, headers and properties of a pair's wake-up, without what differs between two."""
        message = self._app.amqp.as_task_v2(
            MARK, ATTEMPT, args=(slug, context), kwargs={}, argsrepr=f"({slug!r}, {context!r})", ignore_result=True
        )
        return json.dumps(message.body), dict(message.headers), dict(message.properties)

    def _publish(self, producer: Producer, slug: str, context: str, token: str, lane: Lane) -> None:
        """One wake-up, by a broker of another kind. What is the same in all of a pair's messages is made once."""
        made = self._messages.get((slug, context))
        if made is None:
            if len(self._messages) >= KEPT_MESSAGES:
                self._messages.clear()
            made = self._messages[slug, context] = self._message(slug, context)
        body, headers, properties = made
        producer.publish(
            body,
            exchange="",
            routing_key=queue_for(self._settings, slug, context, lane),
            headers=headers | {"id": token, "root_id": token},
            content_type="application/json",
            content_encoding="utf-8",
            retry=False,
            # A broker that cannot be looked into forgets a wake-up when its token lapses; they would pile up there.
            expiration=None if self._lists else WAITING_TOKEN_MS / 1000,
            **(properties | {"correlation_id": token}),
        )

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
                    self._hold(keys=self._marks(slug, context)[:1], args=[RUNNING_TOKEN_MS, token], client=pipe)
                pipe.execute()
        except (redis.RedisError, OSError) as fault:
            self._complain(fault)

    def release(self, slug: str, context: str) -> None:
        """Take the brake off; wake-ups that run or wait now do not put it on again."""
        tokens, _, brake, *_, freed = self._keys(slug, context)
        try:
            longest = LONGEST_WAIT_MS + int(self._settings.contexts[context].deadline * 1000)
            self._release(keys=[tokens, brake, freed], args=[longest])
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
        stamp, shown = self._shown(slug, context), f"{self._settings.prefix}:dead"
        turn = f"{stamp}:turn"
        digest = hashlib.sha256(repr(list(letters)).encode()).hexdigest() if letters else ""
        try:
            known = self._redis.get(stamp)
            if known is not None and known in (digest, digest.encode()):
                return
            if not self._redis.set(turn, "1", nx=True, px=MIRROR_MS):
                return  # another sweep is at it; two would show each letter twice
            self._show(slug, context, letters)
            self._redis.set(stamp, digest)
            if not letters:
                self._redis.srem(shown, f"{slug}.{context}")
            self._redis.delete(turn)
        except (redis.RedisError, KombuError, AMQPError, OSError) as fault:
            self._complain(fault)

    def _show(self, slug: str, context: str, letters: Sequence[tuple[str, str, str]]) -> None:
        """Put these letters into the dead-letter queue instead of what is there.

        The queue has no stamp meanwhile: where a turn ends in between, the next one takes nothing for known.
        """
        name = dead_queue(slug, context)
        self._redis.delete(self._shown(slug, context))
        self._redis.sadd(f"{self._settings.prefix}:dead", f"{slug}.{context}")
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

    def forget(self, slugs: Iterable[str]) -> set[str]:
        """Delete the queues of stores that were removed, with what is left in them; the slugs that have none any more.

        RabbitMQ keeps a queue for ever. One that a worker still consumes stays: it is for another time.
        """
        gone: set[str] = set()
        try:
            with self._app.connection_for_write() as connection:
                for slug in slugs:
                    channel: Any
                    with suppress(PreconditionFailed), connection.channel() as channel:
                        for name in own_queues(self._settings, slug):
                            if is_redis(self._settings):
                                channel.queue_purge(name)
                            else:
                                channel.queue_delete(name, if_unused=True)
                        contexts = list(self._settings.contexts)
                        self._redis.delete(*(self._shown(slug, context) for context in contexts))
                        self._redis.srem(f"{self._settings.prefix}:dead", *(f"{slug}.{one}" for one in contexts))
                        gone.add(slug)
        except (redis.RedisError, KombuError, AMQPError, OSError) as fault:
            self._complain(fault)
        return gone

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._app.close()

    def _shown(self, slug: str, context: str) -> str:
        """The key of what a dead-letter queue shows."""
        return f"{self._settings.prefix}:dead:{slug}.{context}"

    def _marks(self, slug: str, context: str) -> list[str]:
        """The keys of tokens, mark, brake and backlog, also of a context that only a newer version knows."""
        stem = self._stem(slug, context)
        return [f"{stem}:tokens", f"{stem}:mark", f"{stem}:brake", f"{stem}:backlog"]

    def _stem(self, slug: str, context: str) -> str:
        return f"{self._settings.prefix}:wake:{{{slug}.{context}}}"

    def _keys(self, slug: str, context: str) -> list[str]:
        first, more = (queue_for(self._settings, slug, context, lane) for lane in get_args(Lane))
        freed = f"{self._stem(slug, context)}:freed"
        return [*self._marks(slug, context), *(f"{self._settings.prefix}:{name}" for name in (first, more)), freed]

    def _complain(self, fault: Exception) -> None:
        """Say that nobody can be woken, once in ten seconds at most."""
        with self._lock:
            if time.monotonic() - self._complained < 10.0:
                return
            self._complained = time.monotonic()
        log.warning("cannot wake workers (%s); the sweep will", type(fault).__name__)
