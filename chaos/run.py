"""One run from its seed to its verdict.

Order of things: the world starts, stores are registered and loaded; load and faults begin together; when both are over
everything is healed; the hub comes to rest; a healing sweep looks at every SKU again, because a notification that VTEX
lost and a write that the marketplace only pretended to do leave no trace at the hub; it comes to rest again; then the
evidence is read and judged.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from chaos.checker import before_healing, violations
from chaos.evidence import Evidence, Process
from chaos.plan import Plan, Sizes, plan
from chaos.rabbit import RabbitMQ
from chaos.strikes import Strikes
from chaos.traffic import Traffic, load, register
from chaos.witness import Witness
from chaos.world import LEASE_SECONDS, RunFailed, World, close_desk, until
from hub import reconciliations
from hub.runtime.embedded import scratch
from hub.runtime.supervisor import ProcessDied, Supervisor
from hub.simulators.control import VtexControl

QUIET_SECONDS = 240.0
"""How long the hub may take to come to rest after everything is healed."""
LOAD_SECONDS = 300.0
COUNTED = ("received", "quarantined", "ignored", "accepted", "requested", "coalesced", "enqueued", "finished")
BUSY = "work in ('p', 'h') or status in ('waiting', 'unknown', 'delayed', 'dead')"


@dataclass(slots=True)
class Outcome:
    """What a run found, faults that could not be done among it. `failed`: why it could not be judged."""

    seed: int
    violations: list[str] = field(default_factory=list)
    failed: str = ""

    @property
    def right(self) -> bool:
        """Everything that was promised held."""
        return not self.violations and not self.failed


def run(seed: int, sizes: Sizes, *, broker: str = "", keep: Path | None = None) -> Outcome:
    """Run one seed and print what happened.

    `broker`: the URL of a broker of one's own; else Valkey, or with `sizes.rabbit` a RabbitMQ started here. `keep`:
    where evidence and logs go; they are thrown away without it. Raises `NoRabbit` where RabbitMQ does not start.
    """
    drawn = plan(seed, sizes, lease=LEASE_SECONDS)
    with scratch("hub-chaos-") as directory:
        logs = (keep / f"seed-{seed}") if keep is not None else directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        try:
            with RabbitMQ(directory / "rabbit") if sizes.rabbit else nullcontext() as rabbit:
                return asyncio.run(_Run(drawn, directory, logs, broker, rabbit).tell())
        except (RunFailed, ProcessDied) as error:
            _say(f"seed {seed}: FAILED, the run could not be judged: {error}")
            return Outcome(seed, failed=str(error))


class _Run:
    def __init__(self, drawn: Plan, directory: Path, logs: Path, broker: str, rabbit: RabbitMQ | None) -> None:
        self.plan = drawn
        self.logs = logs
        self.supervisor = Supervisor(logs=logs)
        self.world = World(directory, drawn, self.supervisor, broker, rabbit)
        self.began = time.monotonic()
        self.started = time.time()

    async def tell(self) -> Outcome:
        sizes = self.plan.sizes
        _say(
            f"seed {self.plan.seed}: {sizes.notifications} notifications, {sizes.skus} SKUs, {sizes.stores} stores,"
            f" {self.plan.kills} kills, {len(self.plan.strikes)} faults over {sizes.window:.0f} s"
        )
        for strike in self.plan.strikes:
            _say(strike.sentence())
        _say(f"wrong clocks: {', '.join(f'{name} {ahead:+.0f} s' for name, ahead in self.plan.skew)}")
        async with self.supervisor:
            await self.world.start()
            self._note("everything runs")
            await asyncio.to_thread(register, self.world)
            took = await asyncio.to_thread(load, self.world, seconds=LOAD_SECONDS)
            self._note(f"loaded in {took:.1f} s")
            traffic, strikes = Traffic(self.world), Strikes(self.world, _say)
            traffic.start()
            await strikes.carry_out()
            self._note("all faults are over")
            await asyncio.to_thread(until, lambda: not traffic.running, seconds=1800, why="the load does not end")
            traffic.stop()
            self._note(f"the load took {traffic.seconds:.1f} s: {dict(traffic.counts)}")
            await asyncio.to_thread(strikes.heal)
            return await asyncio.to_thread(self._judge, strikes, traffic)
        raise RunFailed("interrupted")

    def _judge(self, strikes: Strikes, traffic: Traffic) -> Outcome:
        restless = [f"a fault was not done: {missed}" for missed in strikes.missed]
        notes = {"plan": "\n".join(strike.sentence() for strike in self.plan.strikes)}
        try:
            self._quiet("after the faults")
            early = self._evidence(strikes, notes | {"when": "before the healing sweep"})
            restless += self._early(early)
            self._heal_sweep()
            self._quiet("after the healing sweep")
        except RunFailed as failed:
            restless.append(str(failed))
        evidence = self._evidence(strikes, notes | {"when": "at the end"})
        evidence.keep(self.logs / "evidence.json")
        outcome = Outcome(self.plan.seed, [*restless, *map(str, violations(evidence))])
        self._report(outcome, evidence, strikes, traffic)
        return outcome

    def _evidence(self, strikes: Strikes, notes: dict[str, str]) -> Evidence:
        vtex, marketplace = self.world.vtex(), self.world.marketplace()
        starts = self.world.starts()
        try:
            return Witness(self.world.settings, vtex, marketplace).evidence(
                seed=self.plan.seed,
                began=self.started,
                processes=[
                    Process(name, count, self.world.pid(name) is not None, ("supervisor",) * (count - 1))
                    for name, count in starts.items()
                ],
                recoveries=strikes.recoveries,
                spooled=self.world.spooled(),
                notes=notes,
            )
        finally:
            vtex.close()
            marketplace.close()

    def _early(self, evidence: Evidence) -> list[str]:
        """What is wrong before the healing sweep besides what the peers took away: it would be mended by chance."""
        evidence.keep(self.logs / "evidence-before-healing.json")
        found, left = violations(evidence), before_healing(evidence)
        self._note(
            f"before the healing sweep: {dict(Counter(one.law for one in found))} to mend,"
            f" {len(left)} of which left a trace at the hub"
        )
        return [f"before the healing sweep: {one}" for one in left]

    def _quiet(self, when: str) -> None:
        vtex = self.world.vtex()
        try:
            took = until(
                lambda: not self._busy() and _idle(vtex),
                seconds=QUIET_SECONDS, why="", every=0.5,
            )  # fmt: skip
        except RunFailed:
            raise RunFailed(f"not at rest {QUIET_SECONDS:.0f} s {when}: {self._busy()[:10]}") from None
        finally:
            vtex.close()
        self._note(f"at rest {took:.1f} s {when}")

    def _busy(self) -> list[str]:
        rows = self.world.ask(
            f"select store, context, key, work::text, status, attempts, code from states"
            f" where ({BUSY}) and key not in ('@poll', '@reconcile') order by 1, 2, 3 limit 200"
        )
        names = {shop.store.id: shop.slug for shop in self.world.shops}
        return [
            f"{names.get(store, store)}.{context} {key}: {work} {status} {attempts} {code}"
            for store, context, key, work, status, attempts, code in rows
        ]

    def _heal_sweep(self) -> None:
        """What the calendar does once a day (`sweep.reconcile_hours`), for every store now: `hub reconcile --all`."""
        desk = self.world.desk("chaos healing")
        try:
            runs = [
                reconciliations.start(desk.pool, shop.store.id, who="chaos", why="the faults are over")
                for shop in self.world.shops
            ]
            took = until(
                lambda: all(one.state != "running" for one in reconciliations.listed(desk.pool, runs=runs)),
                seconds=QUIET_SECONDS, why=f"the reconciliations are not done after {QUIET_SECONDS:.0f} s", every=0.5,
            )  # fmt: skip
            totals: Counter[str] = Counter()
            for one in reconciliations.listed(desk.pool, runs=runs):
                totals.update(one.counts)
            self._note(f"reconciled in {took:.1f} s (in production every 24 h): {dict(totals)}")
        finally:
            close_desk(desk)

    def _report(self, outcome: Outcome, evidence: Evidence, strikes: Strikes, traffic: Traffic) -> None:
        _say(f"seed {self.plan.seed}: {time.monotonic() - self.began:.0f} s, load {traffic.seconds:.0f} s")
        for kind, count in sorted(self.plan.by_kind.items()):
            _say(f"  {count:4}  {kind}")
        starts = ", ".join(f"{name} {count}" for name, count in self.world.starts().items())
        _say(f"  starts: {starts}")
        for recovery in strikes.recoveries:
            _say(f"  recovery {'never' if recovery.seconds is None else f'{recovery.seconds:.1f} s'}: {recovery.what}")
        for line in _conserved(evidence):
            _say(f"  {line}")
        for violation in outcome.violations[:200]:
            _say(f"  VIOLATION {violation}")
        _say(f"seed {self.plan.seed}: {len(outcome.violations)} violations")

    def _note(self, what: str) -> None:
        _say(f"[{time.monotonic() - self.began:6.1f} s] {what}")


def _conserved(evidence: Evidence) -> Iterator[str]:
    """Both sides of the books, over all stores."""
    posts = Counter((post.kind, post.status) for store in evidence.stores for post in store.posts)
    notices: Counter[tuple[str, str]] = Counter()
    for store in evidence.stores:
        for notice in store.notices:
            notices[notice.kind, notice.fate] += notice.count
    for kind in ("notification", "event", "result"):
        sent = sum(count for (of, status), count in posts.items() if of == kind and status >= 0)
        said = ", ".join(f"{fate} {notices[kind, fate]}" for fate in ("accepted", "ignored", "quarantined"))
        taken = posts[kind, 200]
        yield f"{kind}s: {sent} sent, {posts[kind, -1]} lost on purpose, {taken} answered 200; kept: {said}"
    counters = [one for store in evidence.stores for one in store.counters]
    counted = {name: sum(int(getattr(one, name)) for one in counters) for name in COUNTED}
    asked = sum(row.asked - row.answered for store in evidence.stores for row in store.rows)
    yield f"{', '.join(f'{name} {count}' for name, count in counted.items())}; asked and not answered {asked}"


def _idle(vtex: VtexControl) -> bool:
    """Is no notification and no order on its way?"""
    try:
        vtex.wait_until_idle(1.0)
    except TimeoutError:
        return False
    return True


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
