"""The driver does harm in the order that keeps each recovery its own."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, cast

from chaos.plan import Fault, Plan, Sizes, Strike
from chaos.strikes import Strikes
from chaos.world import World

PENDING = ("store", "stock", "1", 7)
RECOVERY = 0.6


@dataclass
class SlowHub:
    """A world in which one key is pending, which is answered only some time after the last return."""

    plan: Plan
    turned: list[tuple[float, str, str]] = field(default_factory=list)

    def cut(self, mode: str, door: str) -> None:
        self.turned.append((time.monotonic(), mode, door))

    def ask(self, query: str, *_: Any) -> list[tuple[Any, ...]]:
        recovered = time.monotonic() - self.turned[-1][0] > RECOVERY
        return [PENDING] if recovered or "answered_at" not in query else []

    def any_intake_ready(self) -> bool:
        return True


def test_a_dependency_stays_until_the_hub_has_recovered_from_the_last_ones_absence() -> None:
    strikes = (Strike(0.0, Fault.VALKEY_REFUSES, seconds=0.1), Strike(0.15, Fault.POSTGRES_SILENT, seconds=0.1))
    hub, told = SlowHub(Plan(1, Sizes(), strikes, ())), list[str]()
    carried = Strikes(cast(World, hub), told.append)
    asyncio.run(carried.carry_out())
    assert [(mode, door) for _, mode, door in hub.turned] == [
        ("refuse", "valkey"), ("pass", "valkey"), ("silence", "postgres"), ("pass", "postgres"),
    ]  # fmt: skip
    assert hub.turned[2][0] - hub.turned[1][0] >= RECOVERY
    assert [one.what for one in carried.recoveries] == [strike.fault.value for strike in strikes]
    assert all(one.seconds is not None and one.seconds >= RECOVERY for one in carried.recoveries)
