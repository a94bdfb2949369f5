"""What is counted for whoever looks: few rows at once, many once a minute; counters of processes that have gone."""

from __future__ import annotations

from pathlib import Path

from hub import reports
from hub.conservation import fold
from hub.db import MIGRATIONS, migrate, open_pool
from hub.model import Ask
from hub.outcome import Done, Failed
from hub.reports import FEW
from tasks.sweep import keep_partitions
from tests.laws.books import STORE, Books


def registered(books: Books) -> None:
    """The store has a name."""
    books.sql(
        "insert into stores (id, slug, account, affiliate, sales_channel, marketplace, token_digest)"
        " overriding system value values (%s, 'acme', 'acme', 'MKP', 1, 'sandbox', 'x')",
        STORE,
    )


def lying(books: Books, status: str, count: int, *, first: int = 0) -> None:
    """So many rows in a status that somebody must do something about."""
    books.sql(
        "insert into states (store, context, key, work, asked, answered, status)"
        " select %s, 'price', 'k' || n, 'i', 1, 1, %s from generate_series(%s::int, %s::int) n",
        STORE,
        status,
        first,
        first + count - 1,
    )


def test_a_small_backlog_is_counted_for_whoever_looks(books: Books) -> None:
    registered(books)
    lying(books, "refused", 3)
    assert not reports.count_backlogs(books.pool)
    (row,) = reports.backlog(books.pool)
    assert (row.store, row.context, row.refused, row.counted) == ("acme", "price", 3, None)


def test_a_large_backlog_is_told_as_the_sweep_counted_it_with_its_age(books: Books) -> None:
    registered(books)
    lying(books, "refused", FEW + 10)
    assert reports.backlog(books.pool)[0].counted is None  # no sweep has counted yet: slow, and right
    assert reports.count_backlogs(books.pool)
    lying(books, "parked", 7, first=FEW + 10)
    (row,) = reports.backlog(books.pool, store=STORE)
    assert (row.refused, row.parked) == (FEW + 10, 0)
    assert row.counted is not None and row.counted >= 0  # noqa: PT018 – narrows the type


def test_what_may_start_is_counted_live_beside_a_count_of_the_sweep(books: Books) -> None:
    registered(books)
    lying(books, "refused", FEW + 10)
    assert reports.count_backlogs(books.pool)
    books.ask("new", "newer")
    (row,) = reports.backlog(books.pool)
    assert (row.pending, row.refused) == (2, FEW + 10)


def test_of_two_sweeps_one_counts(books: Books) -> None:
    lying(books, "refused", FEW + 10)
    assert reports.count_backlogs(books.pool)
    assert not reports.count_backlogs(books.pool)


def test_a_count_that_is_too_old_is_not_told(books: Books) -> None:
    registered(books)
    lying(books, "refused", FEW + 10)
    assert reports.count_backlogs(books.pool)
    lying(books, "parked", 7, first=FEW + 10)
    books.sql("update backlogs set counted_at = now() - interval '1 hour'")
    assert [(row.parked, row.counted) for row in reports.backlog(books.pool)] == [(7, None)]


def test_folded_counters_say_what_they_said_and_go_on_counting(books: Books) -> None:
    for slot in range(5):
        one = books.another()
        one.slot = 100 + slot
        one.enqueue([Ask(STORE, "price", f"a{slot}", "vtex", 1)])
    books.settle(books.claim(), Done())
    before = books.ledger.check()
    rows = books.sql("select count(*) from counters")[0][0]
    assert fold(books.pool, share=1) == 1
    assert books.sql("select count(*) from counters where slot <> 0") == [(0,)]
    assert books.sql("select count(*) from counters")[0][0] < rows
    assert books.ledger.check() == before
    books.ask("more")
    books.settle(books.claim(), Failed("away"))
    assert all(law.holds for law in books.ledger.check())
    assert not fold(books.pool, share=100)


def test_counters_that_somebody_is_writing_wait_for_the_next_fold(books: Books) -> None:
    books.ask("a")
    slot = books.ledger.slot
    with books.pool.connection() as db, db.transaction():
        db.execute("select 1 from counters where slot = %s for update", (slot,))
        assert fold(books.pool, share=0) == 1
    assert books.sql("select count(*) from counters where slot = %s", slot) == [(1,)]
    assert fold(books.pool, share=0) == 1
    assert books.sql("select count(*) from counters where slot = %s", slot) == [(0,)]


def test_an_upgraded_cell_counts_the_failures_of_days_to_come_from_the_index_alone(
    books: Books, database: str, tmp_path: Path
) -> None:
    for file in MIGRATIONS.glob("000[1-3]*.sql"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    migrate(database, "older", folder=tmp_path)
    told = "insert into older.interactions (store, context, key, operation, direction, code, status) values"
    books.sql(f"{told} (1, 'price', '1', 'Price update', 'x', 'S1', 'success')")
    migrate(database, "older")
    with open_pool(database, "older", name="older") as pool:
        keep_partitions(pool, "interactions", keep=10, ahead=2)
    covering = "select tablename from pg_indexes where schemaname = 'older' and indexdef like '%INCLUDE (status)%'"
    tables = {row[0] for row in books.sql(covering.replace("%", "%%"))}
    parts = "select inhrelid::regclass::text from pg_inherits where inhparent = 'older.interactions'::regclass"
    days = {row[0].removeprefix("older.") for row in books.sql(parts)} - {"interactions_default"}
    assert len(days) >= 2  # what is left of today, unless it is late, and the days ahead
    assert days <= tables
    assert "interactions_default" not in tables  # holds a row: it is left as it was


def indexes_of_failures(books: Books, schema: str) -> dict[str, int]:
    """Table → how many indexes of what failed it has."""
    rows = books.sql(
        "select tablename, count(*) from pg_indexes where schemaname = %s and tablename like 'interactions%%'"
        " and indexdef like '%%WHERE (status <> %%' group by 1",
        schema,
    )
    return dict(rows)


def test_a_failure_is_entered_into_one_index_of_failures_alone(books: Books) -> None:
    keep_partitions(books.pool, "interactions", keep=10, ahead=2)
    found = indexes_of_failures(books, "hub")
    assert len(found) >= 4
    assert set(found.values()) == {1}


def test_a_partition_that_has_the_older_index_of_failures_only_keeps_it(
    books: Books, database: str, tmp_path: Path
) -> None:
    for file in MIGRATIONS.glob("000[1-4]*.sql"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    migrate(database, "older", folder=tmp_path)
    told = "insert into older.interactions (store, context, key, operation, direction, code, status) values"
    books.sql(f"{told} (1, 'price', '1', 'Price update', 'x', 'E2', 'error')")
    migrate(database, "older")
    assert indexes_of_failures(books, "older")["interactions_default"] == 1


def test_the_orders_of_a_state_are_found_without_passing_the_others(books: Books) -> None:
    registered(books)
    books.sql(
        "insert into orders (store, order_id, state) select %s, 'o' || lpad(n::text, 6, '0'),"
        " case when n %% 5000 = 0 then 'failed' else 'approved' end from generate_series(1, 50000) n",
        STORE,
    )
    books.sql("analyze orders")
    found = [one.order for one in reports.orders(books.pool, STORE, state="failed", limit=4)]
    assert found == ["o005000", "o010000", "o015000", "o020000"]
    more = reports.orders(books.pool, STORE, state="failed", after=found[-1], limit=100)
    assert [one.order for one in more] == [f"o{number:06}" for number in range(25_000, 50_001, 5000)]
    assert len(reports.orders(books.pool, STORE, limit=7)) == 7
    asked = {"store": STORE, "state": "failed", "after": "", "limit": 100}
    with books.pool.connection() as db:
        plan = db.execute(f"explain {reports._ORDERS_OF_STATE}", asked).fetchall()
    assert any("orders_state" in line for (line,) in plan), plan
