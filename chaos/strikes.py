"""Does the harm of a plan, each strike at its time, and makes everything whole again afterwards.

The promise: what a strike began it ends itself, or `heal` does; each return of a dependency is timed until work flows
again (`Strikes._time_recovery` says what that means).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from chaos import plan as plans
from chaos.evidence import Recovery
from chaos.plan import Fault, Strike
from chaos.proxy import Mode
from chaos.traffic import CATEGORIES, LEAVES
from chaos.world import RunFailed, Shop, World, close_desk, marketplace_secrets, patiently
from hub import mappings
from hub.simulators.control import ControlRefusedError
from hub.simulators.marketplace_control import ControlRefused

LONGEST_RECOVERY = 90.0
"""Seconds after which nobody looks any more whether a dependency's return was noticed."""
SIGNALS = {Fault.KILL: signal.SIGKILL, Fault.TERM: signal.SIGTERM}
DOORS: dict[Fault, tuple[Mode, str]] = {
    Fault.VALKEY_REFUSES: ("refuse", "valkey"),
    Fault.VALKEY_SILENT: ("silence", "valkey"),
    Fault.POSTGRES_REFUSES: ("refuse", "postgres"),
    Fault.POSTGRES_SILENT: ("silence", "postgres"),
    Fault.RABBIT_REFUSES: ("refuse", "rabbit"),
    Fault.RABBIT_SILENT: ("silence", "rabbit"),
}
WHOLE_NEWS: dict[str, Any] = {
    "loss_share": 0.0,
    "duplicate_share": 0.0,
    "shuffled": False,
    "delay": 0.0,
    "jitter": 0.05,
}
WHOLE_ORDERS: dict[str, Any] = {
    "duplicates": 0, "inverted": False, "silent": False, "result_loss": 0.0, "result_jitter": 0.0,
}  # fmt: skip
WHOLE_EVENTS: dict[str, Any] = {
    "webhook_loss": 0.0,
    "webhook_double": 0.0,
    "webhook_delay": 0.0,
    "webhook_disorder": 0.0,
}
NEWS: dict[Fault, dict[str, Any]] = {
    Fault.NEWS_LOST: {"loss_share": 0.5},
    Fault.NEWS_DOUBLED: {"duplicate_share": 0.8},
    Fault.NEWS_SHUFFLED: {"shuffled": True, "jitter": 2.0},
    Fault.NEWS_LATE: {"delay": 4.0, "jitter": 4.0},
}
RESULTS: dict[Fault, dict[str, Any]] = {
    Fault.RESULTS_DOUBLED: {"duplicates": 2, "result_jitter": 1.0},
    Fault.RESULTS_INVERTED: {"inverted": True},
    Fault.RESULTS_MISSING: {"result_loss": 0.7},
}


@dataclass(slots=True)
class Strikes:
    """Carries one plan out."""

    world: World
    say: Callable[[str], None]
    recoveries: list[Recovery] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _turns: int = 0

    async def carry_out(self) -> None:
        """Every strike at its time, but no dependency goes before the hub has recovered from the last one's absence.

        Returns when all have ended and every return of a dependency was timed.
        """
        began = time.monotonic()
        for strike in self.world.plan.strikes:
            await asyncio.sleep(max(0.0, began + strike.at - time.monotonic()))
            task = asyncio.create_task(self._strike(strike))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def _strike(self, strike: Strike) -> None:
        try:
            if strike.fault in plans.PROCESSES:
                await self._process(strike)
            elif strike.fault in plans.DEPENDENCIES:
                await self._in_turn(strike)
            else:
                await asyncio.to_thread(self._peer, strike)
        except (RunFailed, ControlRefusedError, ControlRefused, OSError) as error:
            self.missed.append(f"{strike.sentence()}: {type(error).__name__}: {error}")

    # -- processes and servers

    async def _in_turn(self, strike: Strike) -> None:
        """A dependency's absence and the recovery from it, which is nobody else's."""
        planned = time.monotonic()
        async with self._turn:
            if (late := time.monotonic() - planned) > 1.0:
                self.say(f"  {late:.1f} s later than planned: {strike.fault.value}")
            await (self._server(strike) if strike.fault in plans.SERVER_KILLS else self._cut(strike))
            await asyncio.to_thread(self._time_recovery, strike.fault.value)

    async def _process(self, strike: Strike) -> None:
        world = self.world
        if not world.ready(strike.target):  # still on its way back from the last strike: wait for it, spare nobody
            with suppress(TimeoutError):
                async with asyncio.timeout(20):
                    while not world.ready(strike.target) or world.pid(strike.target) is None:
                        await asyncio.sleep(0.1)
        pid = world.pid(strike.target)
        if pid is None:
            raise RunFailed(f"{strike.target} is not running")
        if strike.fault is not Fault.PAUSE:
            world.send(strike.target, SIGNALS[strike.fault])
            return
        world.send(strike.target, signal.SIGSTOP)
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            if world.pid(strike.target) == pid:
                world.send(strike.target, signal.SIGCONT)

    async def _server(self, strike: Strike) -> None:
        world = self.world
        if strike.fault is Fault.RABBIT_KILL:
            await asyncio.to_thread(self._kill_rabbit)
            return
        name = "postgres" if strike.fault is Fault.POSTGRES_KILL else "valkey"
        starts = world.supervisor.starts(name)
        world.forget = strike.fault is Fault.VALKEY_KILL_EMPTY
        world.send(name, signal.SIGKILL)
        async with asyncio.timeout(60):
            while world.supervisor.starts(name) == starts or not world.ready(name):
                await asyncio.sleep(0.05)

    async def _cut(self, strike: Strike) -> None:
        mode, name = DOORS[strike.fault]
        await asyncio.to_thread(self.world.cut, mode, name)
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            await asyncio.to_thread(self.world.cut, "pass", name)

    def _kill_rabbit(self) -> None:
        """The node dies and is started again, as its own machine would."""
        if self.world.rabbit is not None:
            self.world.rabbit.kill()
            self.world.rabbit.start()

    # -- recovery

    def _time_recovery(self, what: str) -> None:
        """Recovered: an intake says that it is ready, a key was answered after the return, and of what was pending when
        the dependency came back at least half has been answered since (or nothing was pending).
        """
        returned, began = time.time(), time.monotonic()
        before = {
            (store, context, key): asked
            for store, context, key, asked in self.world.ask(
                "select store, context, key, asked from states where work in ('p', 'h') and key <> '@poll'"
            )
        }
        seconds: float | None = None
        while time.monotonic() - began < LONGEST_RECOVERY:
            answered = self.world.ask(
                "select store, context, key, answered from states where answered_at > to_timestamp(%s)", returned
            )
            since = {(store, context, key): count for store, context, key, count in answered}
            moved = sum(since.get(place, -1) >= asked for place, asked in before.items())
            if (since or not before) and moved * 2 >= len(before) and self.world.any_intake_ready():
                seconds = time.monotonic() - began
                break
            time.sleep(0.2)
        self.recoveries.append(Recovery(what, returned, seconds))
        took = "never" if seconds is None else f"after {seconds:.1f} s"
        self.say(f"  back: {what}; {len(before)} keys were pending; work flows again {took}")

    # -- peers and people

    def _peer(self, strike: Strike) -> None:
        world = self.world
        if strike.fault in plans.ANSWERS:
            side, _, number = strike.target.partition(":")
            self._bend_answers(strike, side, world.shops[int(number)])
            return
        shop = world.shops[int(strike.target)]
        if strike.fault is Fault.MAPPING:
            self._map(strike, shop)
        elif strike.fault is Fault.VTEX_CREDENTIALS:
            self._rotate_vtex(strike, shop)
        elif strike.fault is Fault.MARKETPLACE_CREDENTIALS:
            self._rotate_marketplace(strike, shop)
        else:
            self._bend_news(strike, shop)

    def _bend_answers(self, strike: Strike, side: str, shop: Shop) -> None:
        rule: dict[str, Any] = {"for_seconds": strike.seconds, "probability": 0.6}
        match strike.fault:
            case Fault.ERROR:
                kind, rule = "status", rule | {"status": 500, "body": "Internal Server Error"}
            case Fault.THROTTLE:
                kind, rule = "throttle", rule | {"retry_after": 2.0}
            case Fault.THROTTLE_DATE:
                kind, rule = "throttle", rule | {"retry_after": 3.0, "retry_after_form": "date"}
            case Fault.THROTTLE_ABSURD:
                kind, rule = "throttle", rule | {"retry_after_text": strike.option, "rate_headers": "none"}
            case Fault.HANG_AFTER:
                kind, rule = "hang_after", rule | {"seconds": 30.0}
            case Fault.LIE:
                kind = "lie"
            case Fault.STALE:
                kind = "stale"
            case Fault.CUT:
                kind = "cut"
            case _:
                kind, rule = "drip", rule | {"seconds": 60.0}
        if side == "vtex":
            vtex = self.world.vtex()
            vtex.fault(kind, account=shop.account, **rule)
            vtex.close()
        else:
            with self.world.marketplace() as marketplace:
                marketplace.fault(kind, account=shop.slug, **rule)
        time.sleep(strike.seconds)

    def _bend_news(self, strike: Strike, shop: Shop) -> None:
        vtex, marketplace = self.world.vtex(), self.world.marketplace()
        if strike.fault is Fault.EVENTS_BENT:
            bent = {"webhook_loss": 0.3, "webhook_double": 0.3, "webhook_delay": 1.0, "webhook_disorder": 4.0}
            marketplace.turn(shop.slug, **bent)
            time.sleep(strike.seconds)
            marketplace.turn(shop.slug, **WHOLE_EVENTS)
        elif strike.fault is Fault.ORDER_TIMEOUT:
            vtex.fault("hang_after", "create_order", account=shop.account, for_seconds=strike.seconds, seconds=30.0)
            time.sleep(strike.seconds)
        elif strike.fault in NEWS:
            vtex.notifier_habits(shop.account, **NEWS[strike.fault])
            time.sleep(strike.seconds)
            vtex.notifier_habits(shop.account, **WHOLE_NEWS)
        else:
            vtex.order_habits(shop.account, **RESULTS[strike.fault])
            time.sleep(strike.seconds)
            vtex.order_habits(shop.account, **WHOLE_ORDERS)
        vtex.close()
        marketplace.close()

    def _map(self, strike: Strike, shop: Shop) -> None:
        """Maps one category, for the first time or to the other leaf."""
        self._turns += 1
        category = CATEGORIES[self._turns % len(CATEGORIES)]
        row = mappings.CategoryMapping(str(category), LEAVES[self._turns % len(LEAVES)], "")
        desk = self.world.desk("chaos mapping")
        try:
            patiently(lambda: mappings.save(desk.pool, shop.store.id, [row], who="chaos", why=strike.fault))
        finally:
            close_desk(desk)

    def _rotate_vtex(self, strike: Strike, shop: Shop) -> None:
        """The old token ends before the hub has the new one: attempts in between lose their credentials."""
        self._turns += 1
        fresh = f"token-{self._turns}-of-{shop.account}"
        mates = [one for one in self.world.shops if one.account == shop.account]
        vtex, desk = self.world.vtex(), self.world.desk("chaos rotation")
        try:
            vtex.change_credentials(shop.account, add={shop.app_key: fresh}, remove={shop.app_key: shop.app_token})
            time.sleep(strike.seconds)
            for mate in mates:
                mate.app_token = fresh
                values = {"app_key": mate.app_key, "app_token": fresh}
                patiently(partial(desk.registry.save_credentials, mate.store.id, "vtex", values, who="chaos"))
        finally:
            vtex.close()
            close_desk(desk)

    def _rotate_marketplace(self, strike: Strike, shop: Shop) -> None:
        """The seller consents anew; the hub is told a little later."""
        desk = self.world.desk("chaos rotation")
        try:
            with self.world.marketplace() as marketplace:
                shop.seller = marketplace.consent(shop.slug)
            time.sleep(strike.seconds)
            values = marketplace_secrets(shop.seller, shop.webhook_secret)
            patiently(partial(desk.registry.save_credentials, shop.store.id, "marketplace", values, who="chaos"))
        finally:
            close_desk(desk)

    # -- the end

    def heal(self) -> None:
        """No fault is in force any more, whatever happened to the strike that should have ended it."""
        world = self.world
        for door in ("valkey", "postgres", "intake", *(("rabbit",) if world.rabbit is not None else ())):
            world.cut("pass", door)
        for name in plans.process_names(world.sizes):
            world.send(name, signal.SIGCONT)
        vtex = world.vtex()
        vtex.clear_faults()
        with world.marketplace() as marketplace:
            marketplace.clear_faults()
            for shop in world.shops:
                marketplace.turn(shop.slug, **WHOLE_EVENTS)
        for account in {shop.account for shop in world.shops}:
            vtex.notifier_habits(account, **WHOLE_NEWS)
            vtex.order_habits(account, **WHOLE_ORDERS)
        vtex.close()
