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
from dataclasses import dataclass, field
from pathlib import Path

from chaos.plan import RECOVERY_SECONDS, Plan, Sizes, plan
from chaos.strikes import Strikes
from chaos.traffic import Traffic, load, register
from chaos.world import LEASE_SECONDS, RunFailed, World, close_desk, until
from hub.demo.verdict import offer_differs
from hub.resending import resend
from hub.runtime.embedded import scratch
from hub.runtime.supervisor import ProcessDied, Supervisor
from hub.simulators.control import VtexControl

QUIET_SECONDS = 240.0
"""How long the hub may take to come to rest after everything is healed."""
LOAD_SECONDS = 300.0
BUSY = "work in ('p', 'h') or status in ('waiting', 'unknown', 'delayed', 'dead')"


@dataclass(slots=True)
class Outcome:
    """What a run found. `failed`: why it could not be judged."""

    seed: int
    violations: list[str] = field(default_factory=list)
    failed: str = ""

    @property
    def right(self) -> bool:
        """Everything that was promised held."""
        return not self.violations and not self.failed


def run(seed: int, sizes: Sizes, *, broker: str = "", keep: Path | None = None) -> Outcome:
    """Run one seed and print what happened. `keep`: where evidence and logs go; logs are thrown away without it."""
    drawn = plan(seed, sizes, lease=LEASE_SECONDS)
    with scratch("hub-chaos-") as directory:
        logs = (keep / f"seed-{seed}") if keep is not None else directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        try:
            return asyncio.run(_Run(drawn, directory, logs, broker).tell())
        except (RunFailed, ProcessDied) as error:
            _say(f"seed {seed}: FAILED, the run could not be judged: {error}")
            return Outcome(seed, failed=str(error))


class _Run:
    def __init__(self, drawn: Plan, directory: Path, logs: Path, broker: str) -> None:
        self.plan = drawn
        self.logs = logs
        self.supervisor = Supervisor(logs=logs)
        self.world = World(directory, drawn, self.supervisor, broker)
        self.began = time.monotonic()

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
            await strikes.recovered()
            return await asyncio.to_thread(self._judge, strikes, traffic)
        raise RunFailed("interrupted")

    def _judge(self, strikes: Strikes, traffic: Traffic) -> Outcome:
        outcome = Outcome(self.plan.seed)
        try:
            self._quiet("after the faults")
            self._tell_differing("before the healing sweep")
            self._heal_sweep()
            self._quiet("after the healing sweep")
        except RunFailed as restless:
            outcome.violations.append(str(restless))
        outcome.violations += self._differing()
        for recovery in strikes.recoveries:
            if recovery.seconds is None or recovery.seconds > RECOVERY_SECONDS:
                outcome.violations.append(f"recovery: {recovery.what}: {recovery.seconds} s")
        self._report(outcome, strikes, traffic)
        return outcome

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
            f" where ({BUSY}) and key <> '@poll' order by 1, 2, 3 limit 200"
        )
        names = {shop.store.id: shop.slug for shop in self.world.shops}
        return [
            f"{names.get(store, store)}.{context} {key}: {work} {status} {attempts} {code}"
            for store, context, key, work, status, attempts, code in rows
        ]

    def _heal_sweep(self) -> None:
        desk = self.world.desk("chaos healing")
        vtex, marketplace = self.world.vtex(), self.world.marketplace()
        try:
            for shop in self.world.shops:
                skus = set(vtex.truth(shop.account, 1)) | set(marketplace.shown(shop.slug))
                resend(desk.pool, shop.store.id, sorted(skus), who="chaos", why="the faults are over")
        finally:
            close_desk(desk)
            vtex.close()
            marketplace.close()

    def _differing(self) -> list[str]:
        vtex, marketplace = self.world.vtex(), self.world.marketplace()
        found = []
        for shop in self.world.shops:
            truths, shown = vtex.truth(shop.account, 1), marketplace.shown(shop.slug)
            mapped = {
                str(row[0]) for row in self.world.ask("select category from mappings where store = %s", shop.store.id)
            }
            for sku, truth in truths.items():
                if str(truth.category) not in mapped and sku not in shown:
                    continue
                wrong = offer_differs(truth, shown.get(sku))
                if wrong is not None:
                    found.append(f"{shop.slug}: {wrong}")
            seen = vtex.orders(shop.account)
            for order in marketplace.orders(shop.slug).values():
                created = seen.get(order.id)
                if created is None or created.creations != 1:
                    found.append(f"{shop.slug}: order {order.id}: {created.creations if created else 'not'} in VTEX")
        return found

    def _tell_differing(self, when: str) -> None:
        wrong = self._differing()
        self._note(f"{len(wrong)} differences {when}: {wrong[:5]}")

    def _report(self, outcome: Outcome, strikes: Strikes, traffic: Traffic) -> None:
        _say(f"seed {self.plan.seed}: {time.monotonic() - self.began:.0f} s, load {traffic.seconds:.0f} s")
        for kind, count in sorted(self.plan.by_kind.items()):
            _say(f"  {count:4}  {kind}")
        for missed in strikes.missed:
            _say(f"  not done: {missed}")
        starts = ", ".join(f"{name} {count}" for name, count in self.world.starts().items())
        _say(f"  starts: {starts}")
        for recovery in strikes.recoveries:
            _say(f"  recovery {'never' if recovery.seconds is None else f'{recovery.seconds:.1f} s'}: {recovery.what}")
        for violation in outcome.violations:
            _say(f"  VIOLATION {violation}")
        _say(f"seed {self.plan.seed}: {len(outcome.violations)} violations")

    def _note(self, what: str) -> None:
        _say(f"[{time.monotonic() - self.began:6.1f} s] {what}")


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
