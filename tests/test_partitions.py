"""Partitions are made ahead and dropped, whatever the default one holds, whoever writes, with one sweep or several."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub.db import StorageAway, open_pool, retrying
from tasks.partitions import CLOCKS, keep_partitions
from tests.cell import until

MIDNIGHT = datetime(2031, 3, 10, tzinfo=UTC)
Pool = ConnectionPool[Connection[tuple[Any, ...]]]


@pytest.fixture
def pool(database: str) -> Iterator[Pool]:
    with open_pool(database, "hub", name="test", max_size=8) as opened:
        yield opened


def came(pool: Pool, *times: datetime) -> None:
    with pool.connection() as db:
        for at in times:
            db.execute(
                "insert into notices (id, received_at, kind, fate, body)"
                " values (gen_random_uuid(), %s, 'event', 'accepted', '{}')",
                (at,),
            )


def where(pool: Pool, at: datetime) -> str:
    """The partition that holds what came at this time."""
    with pool.connection() as db:
        row = db.execute("select tableoid::regclass::text from notices where received_at = %s", (at,)).fetchone()
    assert row is not None
    return str(row[0])


def made(pool: Pool) -> dict[str, str]:
    """Every partition of notices with its bounds."""
    with pool.connection() as db:
        rows = db.execute(
            "select c.relname, pg_get_expr(c.relpartbound, c.oid) from pg_inherits i"
            " join pg_class c on c.oid = i.inhrelid where i.inhparent = 'notices'::regclass order by 1"
        ).fetchall()
    return {str(name): str(bounds) for name, bounds in rows}


def test_both_tables_have_theirs_and_what_comes_now_is_in_todays(pool: Pool) -> None:
    for table in CLOCKS:
        keep_partitions(pool, table, keep=7, ahead=3)
    with pool.connection() as db:
        db.execute(
            "insert into interactions (store, context, key, operation, direction, code, status)"
            " values (1, 'stock', '1', 'x', 'y', 'S1', 'success')"
        )
        today = db.execute("select tableoid::regclass::text from interactions").fetchone()
        expected = db.execute("select to_char(at, '\"interactions_\"YYYYMMDD') from interactions").fetchone()
        count = db.execute("select count(*) from pg_inherits where inhparent = 'interactions'::regclass").fetchone()
    assert today == expected
    assert count == (5,)


def test_what_comes_around_midnight_is_in_the_partition_of_its_day(pool: Pool) -> None:
    keep_partitions(pool, "notices", keep=7, ahead=1, now=MIDNIGHT - timedelta(hours=3))
    last, first = MIDNIGHT - timedelta(microseconds=1), MIDNIGHT
    came(pool, last, first)
    assert (where(pool, last), where(pool, first)) == ("notices_20310309", "notices_20310310")
    keep_partitions(pool, "notices", keep=7, ahead=1, now=MIDNIGHT)
    assert set(made(pool)) == {"notices_default", *(f"notices_203103{day:02}" for day in (9, 10, 11))}


def test_a_day_that_nobody_prepared_is_kept_by_the_default_one_and_its_rest_by_a_partition(pool: Pool) -> None:
    noon = MIDNIGHT + timedelta(hours=12, minutes=7)
    days = [noon - timedelta(days=back) for back in (9, 2, 1, 0)]
    came(pool, *days)
    keep_partitions(pool, "notices", keep=7, ahead=2, now=noon)
    found = made(pool)
    assert set(found) == {"notices_default", "notices_20310310", "notices_20310311", "notices_20310312"}
    assert "('2031-03-10 12:15:00+00') TO ('2031-03-11 00:00:00+00')" in found["notices_20310310"]
    assert "('2031-03-11 00:00:00+00')" in found["notices_20310311"]
    came(pool, noon + timedelta(minutes=3), noon + timedelta(minutes=8))
    assert where(pool, noon + timedelta(minutes=3)) == "notices_default"
    assert where(pool, noon + timedelta(minutes=8)) == "notices_20310310"
    with pool.connection() as db:
        kept = db.execute("select received_at from only notices_default order by 1").fetchall()
    assert [row[0] for row in kept] == [*days[1:], noon + timedelta(minutes=3)]  # the oldest is over its time
    keep_partitions(pool, "notices", keep=7, ahead=2, now=noon + timedelta(days=20))
    with pool.connection() as db:
        assert db.execute("select count(*) from only notices_default").fetchone() == (0,)
    assert "notices_20310310" not in made(pool)


def test_rows_of_a_day_to_come_keep_only_their_part_of_it(pool: Pool) -> None:
    came(pool, MIDNIGHT + timedelta(hours=30))
    keep_partitions(pool, "notices", keep=7, ahead=2, now=MIDNIGHT)
    assert "('2031-03-11 06:15:00+00') TO ('2031-03-12 00:00:00+00')" in made(pool)["notices_20310311"]


def test_a_day_whose_last_minutes_are_taken_is_not_made(pool: Pool) -> None:
    came(pool, MIDNIGHT + timedelta(hours=23, minutes=50))
    keep_partitions(pool, "notices", keep=7, ahead=1, now=MIDNIGHT)
    assert set(made(pool)) == {"notices_default", "notices_20310311"}


def test_what_a_killed_sweep_left_half_made_is_made_whole_and_half_dropped_is_dropped(pool: Pool) -> None:
    with pool.connection() as db:
        db.execute("create table notices_20310310 (like notices)")
        db.execute("create table notices_20200101 (like notices)")
    keep_partitions(pool, "notices", keep=7, ahead=0, now=MIDNIGHT)
    assert "notices_20310310" in made(pool)
    came(pool, MIDNIGHT)
    assert where(pool, MIDNIGHT) == "notices_20310310"
    with pytest.raises(psycopg.errors.UndefinedTable), pool.connection() as db:
        db.execute("select 1 from notices_20200101")


def test_whoever_reads_an_old_day_delays_its_end_and_nobody_who_writes(pool: Pool) -> None:
    keep_partitions(pool, "notices", keep=7, ahead=0, now=MIDNIGHT - timedelta(days=30))
    came(pool, MIDNIGHT - timedelta(days=30))
    written = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            came(pool, MIDNIGHT + timedelta(seconds=written))
            written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pool.connection() as reader, reader.transaction():
            reader.execute("select count(*) from notices_20310208").fetchone()
            before = written
            with pytest.raises(StorageAway):
                keep_partitions(pool, "notices", keep=7, ahead=0, now=MIDNIGHT)
            assert written > before + 10, "the writer waited for as long as the sweep did"
        keep_partitions(pool, "notices", keep=7, ahead=0, now=MIDNIGHT)
    finally:
        stop.set()
        writer.join()
    assert "notices_20310208" not in made(pool)


def test_days_go_by_beside_full_traffic_and_two_sweeps_and_no_row_is_lost(pool: Pool) -> None:
    clock = [MIDNIGHT]
    written: list[datetime] = []
    faults: list[BaseException] = []
    stop = threading.Event()
    lock = threading.Lock()

    def write(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            at = clock[0] + timedelta(hours=turn % 24, microseconds=number * 1_000_000 + turn)
            try:
                retrying(lambda at=at: came(pool, at))
            except BaseException as fault:  # noqa: BLE001 – every kind counts
                faults.append(fault)
                return
            with lock:
                written.append(at)

    def sweep() -> None:
        while not stop.is_set():
            try:
                keep_partitions(pool, "notices", keep=400, ahead=2, now=clock[0])
            except StorageAway:
                pass  # a lock that could not be had: the next turn
            except BaseException as fault:  # noqa: BLE001 – every kind counts
                faults.append(fault)
                return

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    threads += [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for day in range(1, 12):
            enough = len(written) + 60
            until(lambda enough=enough: len(written) > enough or faults)
            clock[0] = MIDNIGHT + timedelta(days=day)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    with pool.connection() as db:
        assert db.execute("select count(*) from notices").fetchone() == (len(written),)
    keep_partitions(pool, "notices", keep=400, ahead=2, now=clock[0])
    assert {"notices_20310322", "notices_20310323"} <= set(made(pool))
