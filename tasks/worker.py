"""A worker process: takes a wake-up, claims and attempts, wakes again when there is more.

A wake-up is a turn: one claim, and while its store and context has full claims and they are quick, further ones for
`TURN` at most. Then it is everybody else's turn. First wake-ups claim once: their threads are reserved for who is new.

Everything that must survive is in PostgreSQL; a worker may be killed at any moment and loses nothing but time.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning
from celery.worker import WorkController
from celery.worker.consumer import Consumer

from hub.contexts import CONTEXTS, Context
from hub.crew import Crew
from hub.db import StorageAway, StorageRefused, open_pool
from hub.errors import BadInput
from hub.ledger import Ledger
from hub.links import Links
from hub.reconcile import Reconciler, Report
from hub.settings import Settings
from hub.stores import SecretBox
from hub.unforeseen import AGAIN_SECONDS, Unforeseen
from tasks.app import ATTEMPT, Lane, make_app, outlive_broker, queue, queues_of
from tasks.replay import register as register_replay
from tasks.wake import BESIDE, PAST, Waker

log = logging.getLogger("hub.worker")

CALLS_AT_ONCE = 43
"""Outgoing calls of both lanes of a worker at the same time; each lane has its part, as of the threads."""


EVENTS_EVERY = 0.2
"""Seconds for which events of tasks may wait for others."""

TURN = 0.05
"""Seconds after which a wake-up of a busy store and context claims no more. A claim that calls anybody takes as long;
several that do not share what a message costs."""

LONGEST_ALARM = 5.0
"""Seconds: who is to be left alone for less is woken by the process that found out; else the sweep comes too late."""


NICE = 5
"""How much a worker yields the CPU to whoever somebody waits for: an intake, the databases, a console."""

unforeseen = Unforeseen(log)


class KeysDied(Exception):  # noqa: N818 – shown in Flower: says what happened
    """The task's result when a key of the claim used up its plan."""


FORESEEN = (KeysDied, StorageAway)
"""How a wake-up may fail without a traceback in the log; of an outage one line tells."""


class Heart:
    """Beats for the process: while it does, its leases hold. Thread-safe."""

    def __init__(self, ledger: Ledger, name: str, *, lease: float, every: float) -> None:
        self._ledger = ledger
        self._name = name
        self._lease = lease
        self._every = every
        self._until = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heart", daemon=True)
        self.on_beat: list[Callable[[], None]] = []

    def start(self) -> None:
        """Register the process and beat until `stop`; waits for PostgreSQL."""
        while not self._stop.is_set():
            before = time.monotonic()
            try:
                self._ledger.join(self._name, self._lease)
            except StorageAway as away:
                log.warning("waiting for PostgreSQL: %s", away)
                self._stop.wait(1.0)
                continue
            self._until = before + self._lease
            break
        self._thread.start()

    def stop(self) -> None:
        """Leave: what is still held is free at once."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._until = 0.0  # before the leases are free: what still runs must begin no write
        try:
            self._ledger.leave()
        except StorageAway:
            log.warning("PostgreSQL is away; leases of this process end by themselves")

    def remaining(self) -> float:
        """Seconds for which every lease of this process is sure to hold."""
        return self._until - time.monotonic()

    def _beat_on(self) -> None:
        while not self._stop.wait(self._every):
            before = time.monotonic()
            try:
                if not self._ledger.beat(self._lease):
                    # Given up meanwhile (stopped for too long): the leases are somebody else's, start anew.
                    self._ledger.join(self._name, self._lease)
                self._until = before + self._lease
            except (StorageAway, StorageRefused) as fault:
                log.warning("no heartbeat: %s", fault)
            except Exception as error:  # noqa: BLE001 – this thread must live, or the process never works again
                unforeseen.tell("no heartbeat", error)
            for follow in self.on_beat:
                try:
                    follow()
                except Exception as error:  # noqa: BLE001 – as above
                    unforeseen.tell("what follows a heartbeat", error)


class Attempts:
    """What the task `hub.attempt` does, without Celery."""

    def __init__(
        self,
        links: Links,
        reconciler: Reconciler,
        waker: Waker,
        known: Mapping[str, Context] = CONTEXTS,
        *,
        turn: float = TURN,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._links = links
        self._known = known
        self._reconciler = reconciler
        self._waker = waker
        self._turn = turn
        self._monotonic = monotonic
        self._running: dict[str, tuple[str, str, str]] = {}
        self._alarms = Alarms()
        self._warned: dict[str, float] = {}

    def run(self, slug: str, context: str, token: str, *, first: bool) -> str:
        """One turn for a wake-up; the sentence is what Flower shows. Raises `KeysDied` when a key died.

        `first`: of a pair at rest, so a small claim and not what a load asked for; so is what a live one makes.
        The wake-up's own token counts it at first; those of long attempts are renewed at every heartbeat.
        """
        first = first or token.startswith((PAST, BESIDE))
        ends = self._monotonic() + self._turn
        self._running[token] = (slug, context, token)
        words: Counter[str] = Counter()
        report: Report | None = None
        try:
            while report is None or (not first and _goes_on(report) and self._monotonic() < ends):
                report = None  # should this one fail, nothing follows from the one before
                try:
                    link = self._links.get(slug)
                except BadInput as wrong:  # such as a marketplace that only a newer version knows: it is not lost
                    self._warn(slug, wrong)
                    return f"{slug}.{context}: {wrong}; its keys stay as they are"
                if link is None:
                    return f"{slug}.{context}: the store is not registered (any more)"
                if context not in self._known:
                    return f"{slug}.{context}: this version has no such context; its keys stay as they are"
                report = self._reconciler.attempt(link, context, first=first)
                words += report.words
        except StorageAway as away:
            log.warning("%s.%s: a wake-up ends early: %s", slug, context, away)
            raise
        finally:
            self._running.pop(token, None)  # a message that was delivered twice has one token
            self._follow_up(slug, context, token, report)
        turn = replace(report, words=words)
        if turn.died:
            raise KeysDied(turn.sentence())
        return turn.sentence()

    def hold(self) -> None:
        """Renew the tokens of what is running; called at every heartbeat."""
        self._waker.hold(list(self._running.values()))

    def _warn(self, slug: str, wrong: BadInput) -> None:
        """A store that this process cannot serve at all: whoever reads its log must see that, once in a while."""
        now = self._monotonic()
        if now >= self._warned.get(slug, now):
            self._warned[slug] = now + AGAIN_SECONDS
            log.warning("store %s cannot be served by this process: %s", slug, wrong)

    def _follow_up(self, slug: str, context: str, token: str, report: Report | None) -> None:
        if report is None:
            # Nothing is known of the pair, so nobody is woken but who was wanted and refused meanwhile.
            self._waker.end((slug, context), token, wanted=0, refused=1)
            return
        names = self._links.names() if report.wake else {}
        pairs = {(names[store], other) for store, other in report.wake if store in names}
        here = (slug, context)
        # A full claim says that there is more than one thread can do: let the crowd grow up to the cap.
        more = 2 if report.full else 1
        again = here in pairs and not report.brake
        pairs.discard(here)
        self._waker.end(
            here,
            token,
            wanted=more if again else 0,
            refused=more,
            brake=report.brake,
            soft=report.soft,
            backlog=report.backlog,
            others=pairs,
        )
        if report.brake and report.brake <= LONGEST_ALARM:
            # Two, where there was no room: one takes it, and the other one finds out when there is more.
            wanted = 2 if report.soft else 1
            self._alarms.ring(report.brake, partial(self._waker.wake, [here], wanted=wanted, further=True))


def _goes_on(report: Report) -> bool:
    """The claim was full, all its keys came to an end, and nobody else has to be woken for what it did."""
    just_more = {context for _, context in report.wake} == {report.context}
    return just_more and report.full and not report.brake and not report.words["given back"]


class CalmEvents(bootsteps.StartStopStep):
    """Events of tasks go out together, some times a second: Celery's own way publishes at every turn of its loop."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Consumer) -> None:
        """Flush in the consumer's own loop, and when many are waiting."""
        dispatcher: Any = getattr(consumer, "event_dispatcher", None)
        if dispatcher is not None and consumer.timer is not None:
            dispatcher.on_send_buffered = None
            consumer.timer.call_repeatedly(EVENTS_EVERY, dispatcher.flush)


class Alarms:
    """Does things later, in one thread of its own; they are forgotten when the process ends."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        threading.Thread(target=self._follow, name="alarms", daemon=True).start()

    def ring(self, seconds: float, what: Callable[[], object]) -> None:
        """Do `what` in so many seconds; an error of it is told and forgotten."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), what))
            self._changed.notify()

    def _follow(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                what = heapq.heappop(self._due)[2]
            try:
                what()
            except Exception as error:  # noqa: BLE001 – this thread must live, or nobody is woken in time any more
                unforeseen.tell("an alarm", error)


class StoreQueues(bootsteps.StartStopStep):
    """Makes a running consumer serve the queues of stores that were added, and leave those that were removed."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    wanted: Callable[[], set[str]]

    def start(self, consumer: Consumer) -> None:
        """Look at the registry once a second, in the consumer's own loop."""
        self._served = {name for name in consumer.app.amqp.queues if isinstance(name, str)}
        consumer.timer.call_repeatedly(1.0, self._follow, (consumer,))

    def _follow(self, consumer: Consumer) -> None:
        wanted = type(self).wanted()
        if wanted == self._served:
            return
        for name in wanted - self._served:
            consumer.app.amqp.queues.add(queue(name))
            consumer.add_task_queue(name)
        for name in self._served - wanted:
            consumer.cancel_task_queue(name)
        self._served = set(wanted)


class DiscreetWorker(Worker):
    """Celery's worker without its banner, and without the signal that prints every thread's local variables."""

    def on_before_init(self, quiet: bool = True, **kwargs: Any) -> None:
        """Nothing but our own log; a warning of the superuser is about pickle, which is not accepted here."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)
            super().on_before_init(quiet=quiet, **kwargs)

    def install_platform_tweaks(self, worker: WorkController) -> None:
        """Celery answers SIGUSR1 with the variables of all threads: credentials and personal data among them."""
        super().install_platform_tweaks(worker)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def let_others_go_first() -> None:
    """Where cores are few, what was received is stored before what is stored is worked off.

    Linux weighs sessions against each other before it weighs their processes (autogroup): whoever leads its own, as
    under `hub up`, lowers that too; the session of somebody's terminal is left alone.
    """
    os.nice(NICE)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # no Linux, or one without it
            Path("/proc/self/autogroup").write_text(str(NICE), encoding="ascii")


def run(
    settings: Settings,
    box: SecretBox,
    *,
    pools: Sequence[str],
    shards: frozenset[int],
    lane: Lane,
    known: Mapping[str, Context] = CONTEXTS,
    turn: float = TURN,
) -> int:
    """Serve the first or the further wake-ups of these pools until SIGTERM; returns the exit code.

    `known` are the kinds of work, `turn` how long a wake-up may claim on; a measurement of the engine brings its own.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("celery").setLevel(logging.WARNING)
    name = f"{'+'.join(pools)}-{lane}@{socket.gethostname()}-{os.getpid()}"
    threads = sum(_threads(settings, pool, lane) for pool in pools)
    pool = open_pool(
        settings.database_url, settings.schema, name=f"worker {'+'.join(pools)}", max_size=threads + 8, seqscan=False
    )
    ledger = Ledger(pool, gate_try=settings.sweep.gate_try_seconds)
    app = make_app(settings)
    outlive_broker(app, settings)
    waker = Waker(settings, app)
    calls = Crew(_calls(settings, pools, lane))
    heart = Heart(ledger, name, lease=settings.sweep.lease_seconds, every=settings.sweep.heartbeat_seconds)
    heart.start()
    let_others_go_first()  # the heart, which holds the leases, began before it
    links = Links(settings, pool, box, slot=ledger.slot)
    links.closed = lambda slug: _catch_up(settings, links, ledger, waker, slug)
    links.watch()
    reconciler = Reconciler(ledger, dict(settings.contexts), calls, heart, links, known=known)
    attempts = Attempts(links, reconciler, waker, known, turn=turn)
    heart.on_beat.append(attempts.hold)

    @app.task(name=ATTEMPT, bind=True, ignore_result=True, acks_late=True, throws=FORESEEN)
    def attempt(task: Any, slug: str, context: str, *_more: Any, **_newer: Any) -> str:  # as later versions may send
        came = str((task.request.delivery_info or {}).get("routing_key") or "")
        return attempts.run(slug, context, task.request.id, first=not came.endswith(".more"))

    register_replay(app, pool, ledger, waker, links.names)

    served: tuple[Mapping[int, str], set[str]] = ({}, set())

    def wanted() -> set[str]:
        nonlocal served
        names = links.names()
        if names is not served[0]:
            slugs = sorted(names.values())
            served = names, set().union(*(queues_of(settings, one, shards, lane, slugs) for one in pools))
        return served[1]

    StoreQueues.wanted = staticmethod(wanted)
    app.steps["consumer"].add(StoreQueues)
    app.steps["consumer"].add(CalmEvents)
    app.conf.task_queues = [queue(one) for one in sorted(wanted())] or [queue(f"{pools[0]}.idle")]
    worker = DiscreetWorker(
        app=app,
        hostname=name,
        pool_cls="threads",
        concurrency=threads,
        task_events=True,
        without_mingle=True,
        without_gossip=True,
        loglevel="WARNING",
    )
    gc.collect()
    gc.freeze()  # what starting made stays: to look through it again and again would stop every thread meanwhile
    log.info("%s: %d threads, %d queues", name, threads, len(wanted()))
    try:
        worker.start()
    finally:
        heart.stop()
        links.close()
        calls.close()
        waker.close()
        pool.close()
    return int(worker.exitcode or 0)


def _catch_up(settings: Settings, links: Links, ledger: Ledger, waker: Waker, slug: str) -> None:
    """A circuit closed: what it delayed becomes due soon, nobody is held back, and every context begins at once.

    Else the one whose probe closed it would be through with its backlog before the sweep wakes the others (STK-14).
    """
    numbers = {name: store for store, name in links.names().items()}
    if slug in numbers:
        ledger.hasten(numbers[slug], spread=settings.sweep.spread_seconds)
    for context in CONTEXTS:
        waker.release(slug, context)
    waker.wake([(slug, context) for context in CONTEXTS])


def _calls(settings: Settings, pools: Sequence[str], lane: Lane) -> int:
    """Calls that this lane makes at once: its part of `CALLS_AT_ONCE`."""
    threads = sum(settings.pools[pool].threads for pool in pools)
    first = round(CALLS_AT_ONCE * sum(settings.pools[pool].reserved for pool in pools) / threads)
    if not first:
        return CALLS_AT_ONCE if lane == "first" else 1
    return first if lane == "first" else CALLS_AT_ONCE - first


def _threads(settings: Settings, pool: str, lane: Lane) -> int:
    """A reserved part of a pool's threads serves first wake-ups, the rest the further ones; none reserved: one lot."""
    chosen = settings.pools[pool]
    if not chosen.reserved:
        return chosen.threads if lane == "first" else 1
    return max(1, chosen.reserved if lane == "first" else chosen.threads - chosen.reserved)
