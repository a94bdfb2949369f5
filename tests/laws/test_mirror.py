"""The dead-letter queues show the dead rows, however many there are, and looking costs little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tasks.sweep import _BEFORE_ALL, _LETTERS, LETTERS_MIRRORED, LETTERS_READ, Sweep
from tests.laws.books import Books

Letters = Sequence[tuple[str, str, str]]


class Surroundings:
    """The registry and the queues of a sweep: what each queue shows, and how many letters were handed over."""

    def __init__(self, stores: int) -> None:
        self.slugs = {number: f"s{number}" for number in range(1, stores + 1)}
        self.shown: dict[tuple[str, str], list[str]] = {}
        self.handed = 0

    def names(self) -> dict[int, str]:
        return self.slugs

    def mirrored(self) -> set[tuple[str, str]]:
        return {pair for pair, letters in self.shown.items() if letters}

    def mirror_dead(self, slug: str, context: str, letters: Letters) -> None:
        self.handed += len(letters)
        self.shown[slug, context] = [key for key, _, _ in letters]


def dead(books: Books, *, stores: int, keys: int, context: str = "stock", work: str = "s") -> None:
    books.sql(
        "insert into states (store, context, key, work, status, code, answered_at)"
        " select s, %s, 'k' || lpad(n::text, 6, '0'), %s, 'dead', 'E2', now()"
        " from generate_series(1, %s) s, generate_series(1, %s) n",
        context,
        work,
        stores,
        keys,
    )
    books.sql("analyze states")


def sweeping(books: Books, around: Any) -> Sweep:
    settings: Any = None
    return Sweep(settings, books.pool, books.ledger, around, around)


def test_every_queue_shows_its_first_letters_after_some_turns_and_no_turn_reads_them_all(books: Books) -> None:
    stores, keys = 14, LETTERS_MIRRORED + 500
    dead(books, stores=stores, keys=keys)
    around = Surroundings(stores)
    sweep = sweeping(books, around)
    for _ in range(2):
        before = around.handed
        sweep.mirror_dead()
        assert 0 < around.handed - before <= LETTERS_READ
    wanted = [f"k{number:06}" for number in range(1, LETTERS_MIRRORED + 1)]
    assert around.shown == {(slug, "stock"): wanted for slug in around.slugs.values()}


def test_a_queue_is_emptied_when_its_keys_are_alive_again_wherever_the_turn_is(books: Books) -> None:
    stores = 14
    dead(books, stores=stores, keys=LETTERS_MIRRORED)
    dead(books, stores=stores, keys=3, context="price")
    around = Surroundings(stores)
    sweep = sweeping(books, around)
    for _ in range(2):
        sweep.mirror_dead()
    assert len(around.mirrored()) == 2 * stores
    books.sql("update states set status = 'done' where store in (1, 14) or context = 'price'")
    del around.slugs[2]
    for _ in range(2):
        sweep.mirror_dead()
    alive = {"s1", "s14", "s2"}
    assert around.mirrored() == {(f"s{n}", "stock") for n in range(1, stores + 1)} - {(one, "stock") for one in alive}


def test_a_turn_finds_its_letters_among_100_000_without_looking_at_the_others(books: Books) -> None:
    dead(books, stores=5, keys=20_000)
    dead(books, stores=5, keys=20, context="price")
    with books.pool.connection() as db:
        (plan,) = db.execute(
            f"explain (analyze, buffers, format json) {_LETTERS}",
            dict(zip(("store", "context"), _BEFORE_ALL, strict=True)),
        ).fetchone() or ((),)
    scans = list(_scans(plan[0]["Plan"]))
    assert {scan.get("Index Name") for scan in scans} == {"states_dead"}, "by the index of dead rows alone"
    looked_at = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    assert sum(scan.get(rows, 0) * scan["Actual Loops"] for scan in scans for rows in looked_at) < 6_000


def _scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Relation Name" in node:
        yield node
    for child in node.get("Plans", ()):
        yield from _scans(child)
