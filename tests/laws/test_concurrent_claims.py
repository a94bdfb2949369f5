"""Many connections at the same keys at once: nothing is held twice, nothing is lost, nobody sees a deadlock."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable

from hub.ledger import Claim, Ledger
from hub.model import Ask
from hub.outcome import Done, Ending, Failed, Outcome, Plan, Postponed, Released, Unknown, Waiting, settle
from tests.laws.books import LANES, STORE, Books, books_at

QUICK = Plan(delays=(0.0,) * 20, slow=(0.0,), unknown=(0.0,), jitter=0.0)
SECONDS = 4.0
Player = Callable[[random.Random], None]


class Crowd:
    """Threads that play the processes of a cell, and what they saw."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], int] = {}
        self.lock = threading.Lock()
        self.wrong: list[str] = []
        self.did: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self, *players: Player, enough: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Let them play for so long, and on until it is `enough`."""

        def play(number: int, player: Player) -> None:
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
        least, most = time.monotonic() + seconds, time.monotonic() + 60
        while time.monotonic() < least or (not enough() and time.monotonic() < most):
            if self.over.wait(0.05):
                break
        self.over.set()
        for thread in threads:
            thread.join(60)
        assert self.wrong == []
        assert enough(), self.did

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


def taken(books: Books, ledger: Ledger, chance: random.Random, seconds: float) -> Claim | None:
    context = chance.choice(sorted(LANES))
    return books.try_claim(context, limit=chance.randint(1, 9), seconds=seconds, by=ledger)


def begun(ledger: Ledger, claim: Claim, chance: random.Random) -> None:
    """The work between claim and settle: intents of some, as an attempt would commit them."""
    ledger.intend(
        claim,
        [
            (context, key, str(uuid.uuid4()), {"to": key})
            for key, rows in claim.items.items()
            for context in rows
            if chance.random() < 0.5
        ],
    )


def settled(ledger: Ledger, claim: Claim, chance: random.Random) -> int:
    rows = [row for item in claim.items.values() for row in item.values()]
    chance.shuffle(rows)
    endings = [Ending(row.context, row.key, words(chance, row.key)) for row in rows]
    back = ledger.settle(
        claim,
        [(e, settle(claim.items[e.key][e.context], e.outcome, QUICK, 0.5)) for e in endings],
    )
    return len(back.fenced)


def drain(books: Books) -> None:
    """Work everything off, quietly; what is due is made due first."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        books.ledger.expire()
        books.sql("update states set due_at = now() where work = 's' and asked > answered")
        books.ledger.ripen()
        claims = [claim for context in LANES if (claim := books.try_claim(context)) is not None]
        for claim in claims:
            books.settle(claim, Done())
        if not claims and books.sql("select count(*) from states where asked > answered") == [(0,)]:
            return
    raise AssertionError(books.sql("select * from states where asked > answered limit 5"))


def intake(books: Books, crowd: Crowd) -> Player:
    def ask(chance: random.Random) -> None:
        asks = [
            Ask(STORE, chance.choice(sorted(LANES)), str(chance.randrange(40)), "vtex", chance.choice((0, 1, 8)))
            for _ in range(chance.randint(1, 30))
        ]
        books.ledger.enqueue(asks)
        crowd.did["asked"] += len(asks)

    return ask


def sweep(books: Books) -> Player:
    def once(_: random.Random) -> None:
        books.ledger.ripen()
        books.ledger.expire()
        books.ledger.hasten(STORE, spread=0.0)
        books.ledger.release(STORE, "publication:1")
        books.ledger.pending()

    return once


def auditor(books: Books) -> Player:
    def audit(_: random.Random) -> None:
        books.assert_conserved()

    return audit


def assert_nothing_is_left(books: Books) -> None:
    drain(books)
    books.assert_conserved()
    assert books.sql("select count(*) from states where asked <> answered or work not in ('i', 's')") == [(0,)]
    assert books.sql("select count(*) from states where lane is not null or claim is not null") == [(0,)]
    assert books.sql("select count(*) from claims") == [(0,)]


def test_a_crowd_at_the_same_keys_holds_none_twice_and_loses_none(database: str) -> None:
    with books_at(database, QUICK) as books:
        crowd = Crowd()

        def worker(ledger: Ledger) -> Player:
            def attempt(chance: random.Random) -> None:
                claim = taken(books, ledger, chance, seconds=60.0)
                if claim is not None:
                    crowd.hold(claim)
                    begun(ledger, claim, chance)
                    crowd.let_go(claim)
                    crowd.did["fenced"] += settled(ledger, claim, chance)

            return attempt

        workers = [worker(books.another()) for _ in range(4)]
        players = [intake(books, crowd), intake(books, crowd), *workers, sweep(books), auditor(books)]
        crowd.run(*players, enough=lambda: crowd.did["claims"] > 20)
        assert crowd.did["fenced"] == 0, "nobody's lease ended, and yet a settle came too late"
        assert_nothing_is_left(books)


def test_leases_that_end_at_any_moment_lose_and_double_nothing(database: str) -> None:
    with books_at(database, QUICK) as books:
        crowd = Crowd()

        def worker(ledger: Ledger) -> Player:
            def attempt(chance: random.Random) -> None:
                claim = taken(books, ledger, chance, seconds=chance.choice((0.0, 0.005, 60.0)))
                if claim is None:
                    return
                crowd.did["claims"] += 1
                begun(ledger, claim, chance)
                if chance.random() < 0.8:
                    crowd.did["fenced"] += settled(ledger, claim, chance)
                else:
                    crowd.did["forgotten"] += 1
                    ledger.leave()
                    ledger.join("after the crash", 1000.0)

            return attempt

        workers = [worker(books.another()) for _ in range(4)]
        players = [intake(books, crowd), *workers, sweep(books), sweep(books), auditor(books)]
        crowd.run(*players, enough=lambda: crowd.did["fenced"] > 0 and crowd.did["forgotten"] > 0)
        books.pass_time(100.0)
        assert_nothing_is_left(books)
