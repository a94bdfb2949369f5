"""The sweep's own tables: partitions are made ahead, and rows that came too early keep none from being swept."""

import psycopg
import pytest

from hub.db import open_pool
from tasks.sweep import keep_partitions


@pytest.fixture
def pool(database: str):
    with open_pool(database, "hub", name="test") as opened:
        yield opened


def test_a_day_whose_rows_came_before_its_partition_stays_in_the_default_one(pool):
    with pool.connection() as db:
        db.execute(
            "insert into notices (id, received_at, kind, fate, body)"
            " values (gen_random_uuid(), current_date + interval '30 hours', 'event', 'accepted', '{}')"
        )
    keep_partitions(pool, "notices", keep=7, ahead=2)
    with pool.connection() as db:
        made = db.execute("select count(*) from pg_inherits where inhparent = 'notices'::regclass").fetchone()
        kept = db.execute("select count(*) from only notices_default").fetchone()
    assert (made, kept) == ((3,), (1,))  # the default one, today, and the day after tomorrow


def test_partitions_whose_time_is_over_go(pool):
    with pool.connection() as db:
        db.execute(
            "create table notices_20200101 partition of notices for values from ('2020-01-01') to ('2020-01-02')"
        )
    keep_partitions(pool, "notices", keep=7, ahead=0)
    with pytest.raises(psycopg.errors.UndefinedTable), pool.connection() as db:
        db.execute("select 1 from notices_20200101")
