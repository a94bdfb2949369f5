"""The sweep heals what nobody announced: what is due, expired, forgotten, dead or old.

Everything it does may be done twice or by two sweeps at once; nothing breaks when it pauses, it is only late then.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub import reconciliations, reports
from hub.conservation import fold
from hub.contexts.reconcile import KEY as RECONCILE_KEY
from hub.db import StorageAway, StorageRefused, open_pool, translated
from hub.errors import HubError
from hub.ledger import Ledger
from hub.links import Links
from hub.marketplaces import adapters
from hub.model import Ask, Urgency
from hub.settings import Settings
from hub.stores import SecretBox
from hub.unforeseen import Unforeseen
from tasks.app import make_app
from tasks.partitions import keep_partitions
from tasks.replay import nudge
from tasks.wake import Waker

log = logging.getLogger("hub.sweep")

unforeseen = Unforeseen(log)

LETTERS_MIRRORED = 1000
"""Letters that a dead-letter queue shows, the first ones by key."""
LETTERS_READ = 10_000
"""Letters that one turn reads; where there are more the next one goes on with the next store and context."""
POLL_KEY = "@poll"
REMOVED_SECONDS = 5.0
"""A store that was removed is left alone for so long: its workers leave its queues, and its dead letters go."""
FORGOTTEN_TOGETHER = 50
WOKEN_TOGETHER = 500


# From pair to pair by the index of dead rows, and no further than a turn goes: lateral joins keep the order, and what
# nobody fetches is never looked for.
_LETTERS = f"""
with recursive pairs as (
  (select store, context from states where status = 'dead' and (store, context) > (%(store)s, %(context)s)
   order by store, context limit 1)
  union all
  select n.store, n.context from pairs p cross join lateral (
    select s.store, s.context from states s where s.status = 'dead' and (s.store, s.context) > (p.store, p.context)
    order by s.store, s.context limit 1) n
)
select p.store, p.context, d.key, d.code, d.since from pairs p cross join lateral (
  select s.key, coalesce(s.code, '') as code, to_char(s.answered_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as since
  from states s where s.status = 'dead' and s.store = p.store and s.context = p.context
  order by s.key limit {LETTERS_MIRRORED}) d
limit {LETTERS_READ}
"""
_BEFORE_ALL = (-1, "")


@dataclass(slots=True)
class Sweep:
    """One sweep of one cell."""

    settings: Settings
    pool: ConnectionPool[Connection[tuple[Any, ...]]]
    ledger: Ledger
    links: Links
    waker: Waker
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the process is to end: no further part begins. Each may wait seconds for a database that is away."""
    _next: dict[str, float] = field(default_factory=dict)
    _forgotten: set[str] = field(default_factory=set)
    _mirrored: tuple[int, str] = _BEFORE_ALL

    def once(self) -> None:
        """Everything that is its time now; a part that fails is told and tried again next time."""
        self._do("expire", 0, self.ledger.expire)
        self._do("ripen", 0, lambda: self.ledger.ripen(self.settings.sweep.batch))
        self._do("wake", 0, self.wake)
        self._do("dead", 2, self.mirror_dead)
        self._do("runs", 1, self.finish_loads)
        self._do("replay", 1, lambda: nudge(self.settings, self.pool, self.waker))
        self._do("polls", 5, self.start_polls)
        self._do("reconcile", 2, self.reconcile)
        self._do("backlogs", reports.COUNT_SECONDS, lambda: reports.count_backlogs(self.pool))
        self._do("removed", 2, self.forget_removed)
        self._do("workers", 60, self.forget_workers)
        self._do("counters", 600, lambda: fold(self.pool))
        self._do("partitions", 600, self.partitions)

    def _do(self, name: str, every: float, what: Callable[[], object]) -> None:
        now = time.monotonic()
        if self.stop.is_set() or now < self._next.get(name, 0.0):
            return
        self._next[name] = now + every
        try:
            what()
        except StorageAway as away:
            log.warning("%s: %s", name, away)
        except HubError as error:
            log.error("%s: %s", name, error)  # noqa: TRY400 – the next turn tries again
        except Exception as error:  # noqa: BLE001 – one part's defect must not end what heals all others
            unforeseen.tell(name, error)

    def wake(self) -> int:
        """Wake for whatever is pending and unattended: as many wake-ups as the work deserves, never beyond the cap."""
        names = self.links.names()
        shut = {
            (gate.store, gate.context) for gate in self.ledger.gates() if gate.reopens_in is None or gate.reopens_in > 0
        }
        alike: dict[int, list[tuple[str, str]]] = {}
        for store, context, count in self.ledger.pending():
            if store not in names or context not in self.settings.contexts:
                continue
            if (store, context) in shut or (store, "*") in shut:
                continue
            settings = self.settings.contexts[context]
            wanted = min(settings.cap, max(1, -(-count // settings.more_claim)))
            alike.setdefault(wanted, []).append((names[store], context))
        sent = 0
        for wanted, pairs in alike.items():
            for begin in range(0, len(pairs), WOKEN_TOGETHER):
                sent += self.waker.wake(pairs[begin : begin + WOKEN_TOGETHER], wanted=wanted, again=True)
        return sent

    def mirror_dead(self) -> None:
        """Let each dead-letter queue show its first dead rows (`LETTERS_MIRRORED`); the rows are the truth.

        A turn reads `LETTERS_READ` of them at most and begins where the last one ended.
        """
        after = self._mirrored
        with translated(), self.pool.connection() as db:
            rows = db.execute(_LETTERS, {"store": after[0], "context": after[1]}).fetchall()
        letters: dict[tuple[int, str], list[tuple[str, str, str]]] = {}
        for store, context, key, code, since in rows:
            letters.setdefault((store, context), []).append((key, code, since))
        there_is_more = len(rows) == LETTERS_READ
        if there_is_more:
            del letters[max(letters)]  # perhaps not all of it
        last = max(letters) if there_is_more else None
        names = self.links.names()
        numbers = {slug: store for store, slug in names.items()}
        for slug, context in self.waker.mirrored():
            if slug not in numbers:
                self.waker.mirror_dead(slug, context, [])
            elif after < (numbers[slug], context) and (last is None or (numbers[slug], context) < last):
                letters.setdefault((numbers[slug], context), [])
        for (store, context), some in letters.items():
            if store in names:
                self.waker.mirror_dead(names[store], context, some)
        self._mirrored = last or _BEFORE_ALL

    def forget_removed(self) -> None:
        """Queues that only a removed store had are deleted; its name is not given out again."""
        with translated(), self.pool.connection() as db:
            rows = db.execute(
                "select slug from stores where status = 'removed' and changed_at < now() - make_interval(secs => %s)",
                (REMOVED_SECONDS,),
            ).fetchall()
        left = [slug for (slug,) in rows if slug not in self._forgotten]
        if left:
            self._forgotten |= self.waker.forget(left[:FORGOTTEN_TOGETHER])

    def finish_loads(self) -> None:
        """A load is done when its list is read and every SKU of it has an outcome (LOD-01)."""
        with translated(), self.pool.connection() as db:
            db.execute(
                """
                update runs r set state = 'done', finished_at = now()
                where r.kind = 'load' and r.state = 'running' and (r.cursor ->> 'listed')::bool
                  and not exists (
                    select from run_keys k join states s using (store, context, key)
                    where k.run = r.id and s.answered < k.asked and s.status not in ('delayed', 'unknown'))
                """
            )

    def start_polls(self) -> None:
        """Every store whose marketplace lists orders has its poll; it perpetuates itself once started."""
        known = adapters()  # a newer version may have added stores on marketplaces of its own
        polling = [
            store.id
            for store in self.links.stores()
            if store.marketplace in known and known[store.marketplace].manifest.polls_orders
        ]
        with translated(), self.pool.connection() as db:
            started = {
                int(row[0])
                for row in db.execute(
                    "select store from states where context = 'order' and key = %s and store = any(%s)"
                    " and (work <> 'i' or status in ('refused', 'parked'))",
                    (POLL_KEY, polling),
                ).fetchall()
            }
        self.ledger.enqueue(
            [Ask(store, "order", POLL_KEY, "sweep", Urgency.FOLLOW) for store in polling if store not in started]
        )

    def reconcile(self) -> None:
        """Compare each store with both sides when its time has come or its rules changed, and see that it goes on."""
        reconciliations.start_changed(self.pool)
        reconciliations.start_due(self.pool, hours=self.settings.sweep.reconcile_hours)
        stores = reconciliations.unattended(self.pool, RECONCILE_KEY)
        self.ledger.enqueue([Ask(store, "reconcile", RECONCILE_KEY, "sweep", Urgency.SWEEP) for store in stores])

    def forget_workers(self) -> None:
        """Processes that stopped beating and comparisons that ended long ago leave no row behind."""
        reconciliations.forget(self.pool, days=self.settings.retention.interactions_days)
        with translated(), self.pool.connection() as db:
            db.execute(
                "delete from workers w where until < now() - interval '1 hour'"
                " and not exists (select from claims c where c.worker = w.id)"
            )

    def partitions(self) -> None:
        """Partitions are made ahead and dropped when their time is over; nothing grows without end (design 7)."""
        days = {
            "notices": self.settings.retention.notices_days,
            "interactions": self.settings.retention.interactions_days,
        }
        for table, keep in days.items():
            keep_partitions(self.pool, table, keep=keep, ahead=self.settings.retention.ahead_days)


def run(settings: Settings, box: SecretBox) -> int:
    """Sweep until SIGTERM; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pool = open_pool(settings.database_url, settings.schema, name="sweep", max_size=4, seqscan=False)
    ledger = Ledger(pool)
    app = make_app(settings)
    waker = Waker(settings, app)
    links = Links(settings, pool, box)
    name = f"sweep@{socket.gethostname()}-{os.getpid()}"
    lease = settings.sweep.lease_seconds
    try:
        while not stop.is_set():
            try:
                ledger.join(name, lease)
                links.watch()
                break
            except StorageAway as away:
                log.warning("waiting for PostgreSQL: %s", away)
            except StorageRefused as refused:
                log.error("PostgreSQL does not let this sweep begin: %s", refused)  # noqa: TRY400 – said by PostgreSQL
            stop.wait(1.0)
        links.slot = ledger.slot
        log.info("%s: sweeping every %.1f s", name, settings.sweep.every_seconds)
        sweep = Sweep(settings, pool, ledger, links, waker, stop)
        beats = 0.0
        while not stop.wait(settings.sweep.every_seconds):
            sweep.once()
            if time.monotonic() > beats and not stop.is_set():
                beats = time.monotonic() + settings.sweep.heartbeat_seconds
                try:
                    if not ledger.beat(lease):
                        ledger.join(name, lease)
                except StorageAway as away:
                    log.warning("no heartbeat: %s", away)
                except StorageRefused as refused:
                    # It goes on: what it does may be done without a row of its own, and nobody else would do it.
                    log.error("no heartbeat: %s", refused)  # noqa: TRY400 – said by PostgreSQL
    finally:
        links.close()
        waker.close()
        pool.close()
    return 0
