"""Many connections at the same keys at once: nothing is held twice, nothing is lost, nobody sees a deadlock."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from hub.ledger import Claim, Ledger
from hub.model import Ask
from hub.outcome import Done, Ending, Failed, Outcome, Plan, Postponed, Released, Unknown, Waiting, settle
from tests.laws.cell import LANES, STORE, Cell, cell_at

QUICK = Plan(delays=(0.0,) * 20, slow=(0.0,), unknown=(0.0,), jitter=0.0)
SECONDS = 4.0


class Crowd:
    """Threads that play the processes of a cell, and what they saw."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], int] = {}
        self.lock = threading.Lock()
        self.wrong: list[str] = []
        self.did: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self, *players: Callable[[random.Random], None], seconds: float = SECONDS) -> None:
        def play(number: int, player: Callable[[random.Random], None]) -> None:
            chance = random.Random(number)
            try:
                while not self.over.is_set():
                    player(chance)
            except BaseException as error:  # noqa: BLE001 – a thread's fault is the test's
                self.wrong.append(f"{type(error).__name__}: {error}")
                self.over.set()

        threads = [threading.Thread(target=play, args=item) for item in enumerate(players)]
        for thread in threads:
            thread.start()
        self.over.wait(seconds)
        self.over.set()
        for thread in threads:
            thread.join(30)
        assert self.wrong == []

    def hold(self, claim: Claim) -> None:
        with self.lock:
            for key in claim.items:
                holder = self.held.get((claim.lane, key))
                if holder is not None:
                    self.wrong.append(f"{claim.lane} {key} is held by {holder} and {claim.id}")
                self.held[claim.lane, key] = claim.id
        self.did["claims"] += 1

    def let_go(self, claim: Claim) -> None:
        with self.lock:
            for key in claim.items:
                if self.held.get((claim.lane, key)) == claim.id:
                    del self.held[claim.lane, key]


def words(chance: random.Random, key: str) -> Outcome:
    return chance.choice(
        [
            Done(),
            Done(),
            Done((Ask(STORE, "stock", key, "follow"), Ask(STORE, "price", key, "follow"))),
            Done((Ask(STORE, "catalog", str(chance.randrange(40)), "follow"),)),
            Done(look_again=0.0),
            Failed("no answer"),
            Unknown("lost"),
            Waiting("t", 0.0),
            Postponed(0.0),
            Released(),
        ]
    )


def taken(cell: Cell, ledger: Ledger, chance: random.Random) -> Claim | None:
    return cell.try_claim(chance.choice(sorted(LANES)), limit=chance.randint(1, 9), seconds=30.0, by=ledger)


def settled(ledger: Ledger, claim: Claim, chance: random.Random) -> int:
    rows = [row for item in claim.items.values() for row in item.values()]
    chance.shuffle(rows)
    endings = [Ending(row.context, row.key, words(chance, row.key)) for row in rows]
    back = ledger.settle(
        claim,
        [(e, settle(claim.items[e.key][e.context], e.outcome, QUICK, 0.5)) for e in endings],
    )
    return len(back.fenced)


def drain(cell: Cell) -> None:
    """Work everything off, quietly; what is due is made due first."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        cell.ledger.expire()
        cell.sql("update states set due_at = now() where work = 's' and asked > answered")
        cell.ledger.ripen()
        claims = [claim for context in LANES if (claim := cell.try_claim(context)) is not None]
        for claim in claims:
            cell.settle(claim, Done())
        if not claims and cell.sql("select count(*) from states where asked > answered") == [(0,)]:
            return
    raise AssertionError(cell.sql("select * from states where asked > answered limit 5"))


def test_a_crowd_at_the_same_keys_holds_none_twice_and_loses_none(database: str) -> None:
    with cell_at(database, QUICK) as cell:
        crowd = Crowd()
        ledgers = [cell.another() for _ in range(4)]

        def intake(chance: random.Random) -> None:
            asks = [
                Ask(STORE, chance.choice(sorted(LANES)), str(chance.randrange(40)), "vtex", chance.choice((0, 1, 8)))
                for _ in range(chance.randint(1, 30))
            ]
            cell.ledger.enqueue(asks)
            crowd.did["asked"] += len(asks)

        def worker(ledger: Ledger) -> Callable[[random.Random], None]:
            def attempt(chance: random.Random) -> None:
                claim = taken(cell, ledger, chance)
                if claim is None:
                    return
                crowd.hold(claim)
                crowd.let_go(claim)  # nobody can have it before the settle below commits
                with crowd.lock:
                    crowd.held |= {(claim.lane, key): claim.id for key in claim.items}
                    for key in claim.items:
                        del crowd.held[claim.lane, key]
                crowd.did["fenced"] += settled(ledger, claim, chance)

            return attempt

        def sweep(_: random.Random) -> None:
            cell.ledger.ripen()
            cell.ledger.expire()
            cell.ledger.hasten(STORE, spread=0.0)
            cell.ledger.pending()

        def auditor(_: random.Random) -> None:
            cell.assert_conserved()
            twice = cell.sql("select lane, key from leases group by 1, 2 having count(*) > 1")
            assert twice == []

        crowd.run(intake, intake, *(worker(ledger) for ledger in ledgers), sweep, auditor)
        assert crowd.did["claims"] > 50
        assert crowd.did["fenced"] == 0, "nobody's lease ended, and yet a settle came too late"
        drain(cell)
        cell.assert_conserved()
        asked, answered = cell.sql("select sum(asked), sum(answered) from states")[0]
        assert asked == answered
        assert cell.sql("select count(*) from leases") == [(0,)]
        assert cell.sql("select count(*) from claims") == [(0,)]
