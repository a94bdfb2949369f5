"""Connections, migrations and the translation of psycopg's errors, on a real PostgreSQL."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from hub import db
from hub.errors import BadInput
from tests.cell import until


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool[psycopg.Connection]]:
    with closing(db.open_pool(database, "hub", name="test")) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    (made / "0001_first.sql").write_text("create table things (id int primary key, amount int check (amount > 0));")
    (made / "0002_second.sql").write_text("insert into things values (1, 10); -- 100 % of it")
    return made


def test_migrations_run_once_and_in_order(empty_database: str, folder: Path) -> None:
    assert db.migrate(empty_database, "cell", folder=folder) == ["0001_first.sql", "0002_second.sql"]
    assert db.migrate(empty_database, "cell", folder=folder) == []
    (folder / "0003_third.sql").write_text("alter table things add name text")
    assert db.migrate(empty_database, "cell", folder=folder) == ["0003_third.sql"]


def test_the_hubs_own_migrations_make_the_states_table_in_the_schema_that_was_asked_for(empty_database: str) -> None:
    ran = db.migrate(empty_database, "user")  # a reserved word, so quoting shows
    assert ran[0] == "0001_states.sql"
    with psycopg.connect(empty_database) as connection:
        found = connection.execute("select count(*) from pg_tables where schemaname = 'user' and tablename = 'states'")
        assert found.fetchone() == (1,)


def test_a_migration_that_fails_leaves_nothing_behind_and_can_be_repaired(empty_database: str, folder: Path) -> None:
    (folder / "0003_third.sql").write_text("create table half (id int); select 1 / 0;")
    with pytest.raises(db.StorageRefused, match="DivisionByZero"):
        db.migrate(empty_database, folder=folder)
    (folder / "0003_third.sql").write_text("create table half (id int);")
    assert db.migrate(empty_database, folder=folder) == ["0003_third.sql"]


def test_a_migration_that_was_changed_after_it_ran_is_refused_by_name(empty_database: str, folder: Path) -> None:
    db.migrate(empty_database, folder=folder)
    (folder / "0001_first.sql").write_text("create table other ();")
    (folder / "0002_second.sql").unlink()
    with pytest.raises(BadInput) as refused:
        db.migrate(empty_database, folder=folder)
    assert [problem.value for problem in refused.value.problems] == ["0001_first.sql", "0002_second.sql"]


def test_misnamed_and_doubly_numbered_migrations_are_told_together(folder: Path) -> None:
    (folder / "0002_again.sql").touch()
    (folder / "third.sql").touch()
    with pytest.raises(BadInput) as refused:
        db.migrate("postgresql://nobody@127.0.0.1:1/x", folder=folder)
    assert {problem.value for problem in refused.value.problems} == {"0002_again.sql", "0002_second.sql", "third.sql"}


def test_processes_that_start_together_migrate_once(empty_database: str, folder: Path) -> None:
    ran: list[list[str]] = []
    threads = [threading.Thread(target=lambda: ran.append(db.migrate(empty_database, folder=folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ran) == [[], [], [], ["0001_first.sql", "0002_second.sql"]]


def test_connections_of_a_pool_have_the_hubs_session_settings(database: str) -> None:
    with (
        closing(db.open_pool(database, "hub", name="offers 1", seqscan=False)) as pool,
        pool.connection() as connection,
    ):
        shown = {
            name: connection.execute(f"show {name}").fetchone()
            for name in ("timezone", "statement_timeout", "idle_in_transaction_session_timeout", "enable_seqscan")
        }
        assert shown == {
            "timezone": ("UTC",),
            "statement_timeout": ("30s",),
            "idle_in_transaction_session_timeout": ("1min",),
            "enable_seqscan": ("off",),
        }
        assert connection.execute("show application_name").fetchone() == ("hub offers 1",)
        assert connection.execute("select current_schema()").fetchone() == ("hub",)
        assert connection.autocommit


def test_options_of_the_users_own_url_are_kept(database: str) -> None:
    url = f"{database}?options=-c%20work_mem%3D9MB&connect_timeout=2"
    with psycopg.connect(db.conninfo(url, "hub", name="x")) as connection:
        assert connection.execute("show work_mem").fetchone() == ("9MB",)
        assert connection.execute("select current_schema()").fetchone() == ("hub",)


def test_a_pool_survives_that_its_connections_are_cut(pool: ConnectionPool[psycopg.Connection], database: str) -> None:
    with pool.connection() as connection:
        held = connection.info.backend_pid
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [held])
    with db.translated(), pool.connection() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_an_absent_server_is_away_and_its_password_is_not_told() -> None:
    nowhere = db.conninfo("postgresql://hub:very-secret@127.0.0.1:1/hub", "hub", name="x")
    with pytest.raises(db.StorageAway) as away, db.translated():
        psycopg.connect(nowhere)
    assert "127.0.0.1" in str(away.value)
    assert "very-secret" not in str(away.value)


def test_a_pool_without_a_server_is_away_within_its_patience() -> None:
    nowhere = db.open_pool("postgresql://hub@127.0.0.1:1/hub", "hub", name="x", timeout=0.2)
    with closing(nowhere), pytest.raises(db.StorageAway), db.translated(), nowhere.connection():
        pass


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("postgresql://hub:very-secret@db.example:6432/hub", "db.example:6432"),
        ("postgresql://hub:very-secret@a:1,b:2/hub", "a:1, b:2"),
        ("host=a,b port=7 password=very-secret", "a:7, b:7"),
    ],
)
def test_who_is_asked_is_told_by_host_and_port_alone(url: str, asked: str) -> None:
    assert db.servers(url) == asked


def test_one_database_and_schema_have_one_identity_whoever_logs_in() -> None:
    here = db.identity("postgresql://hub:one@db.example:5432/shop", "hub")
    assert db.identity("postgresql://admin:two@db.example/shop?sslmode=require", "hub") == here
    others = [("postgresql://db.example/shop", "other"), ("postgresql://db.example/toys", "hub")]
    others += [("postgresql://db.example:5433/shop", "hub"), ("service=shop", "hub"), ("service=toys", "hub")]
    assert len({here, *(db.identity(*other) for other in others)}) == len(others) + 1
    assert here.isalnum()


def test_an_unreadable_url_is_bad_input_that_repeats_nothing_of_it() -> None:
    with pytest.raises(BadInput) as refused:
        db.conninfo("postgresql://hub:very-secret@host:port:1/x?nonsense", "hub", name="x")
    assert refused.value.problems[0].field == "DATABASE_URL"
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize("schema", ["", "Hub", "1hub", 'hub"; drop schema public', "x" * 64])
def test_a_schema_that_is_no_plain_name_is_refused(schema: str) -> None:
    with pytest.raises(BadInput, match="HUB_SCHEMA"):
        db.conninfo("postgresql://hub@127.0.0.1/hub", schema, name="x")


def test_refusals_name_table_and_constraint_and_never_the_value(pool: ConnectionPool[psycopg.Connection]) -> None:
    insert = "insert into mappings (store, category, remote, version) values (1, %s, 'r', 1)"
    with pool.connection() as connection:
        connection.execute(insert, ["private-value"])
        with pytest.raises(db.StorageRefused) as refused, db.translated():
            connection.execute(insert, ["private-value"])
        assert "mappings_pkey" in str(refused.value)
        assert "private-value" not in str(refused.value)
        assert refused.value.__suppress_context__
        with pytest.raises(db.StorageRefused) as refused, db.translated():
            connection.execute("select %s::int", ["private-value"])
        assert "private-value" not in str(refused.value)
        with pytest.raises(db.StorageRefused), db.translated():
            connection.execute(insert, ["a\x00b"])


def test_a_statement_that_takes_too_long_is_away_not_refused(database: str) -> None:
    impatient = db.conninfo(database, "hub", name="x", statement_seconds=0.05)
    with (
        psycopg.connect(impatient, autocommit=True) as connection,
        pytest.raises(db.StorageAway) as away,
        db.translated(),
    ):
        connection.execute("select pg_sleep(5)")
    assert away.value.sqlstate == "57014"


def test_a_deadlock_is_tried_again_until_both_have_written(pool: ConnectionPool[psycopg.Connection]) -> None:
    with pool.connection() as connection:
        connection.execute("insert into cursors (store, name, value) values (1, 'a', '0'), (1, 'b', '0')")
    both_hold_one = threading.Barrier(2, timeout=20)
    turns: list[str] = []

    def write(first: str, second: str) -> None:
        def attempt() -> None:
            turns.append(first)
            with db.translated(), pool.connection() as connection, connection.transaction():
                move = "update cursors set value = (value::int + 1)::text where name = %s"
                connection.execute(move, [first])
                if len(turns) <= 2:
                    both_hold_one.wait()
                connection.execute(move, [second])

        db.retrying(attempt)

    threads = [threading.Thread(target=write, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with pool.connection() as connection:
        assert connection.execute("select value from cursors").fetchall() == [("2",), ("2",)]
    assert len(turns) == 3


def test_a_row_whose_partition_is_made_while_it_is_on_its_way_is_tried_again(
    pool: ConnectionPool[psycopg.Connection], database: str
) -> None:
    insert = (
        "insert into notices (id, received_at, kind, fate, body)"
        " values (gen_random_uuid(), '2031-03-10 12:00Z', 'event', 'accepted', '{}')"
    )
    told: list[str] = []

    def attempt() -> None:
        try:
            with db.translated(), pool.connection() as connection:
                connection.execute(insert)
        except db.StorageAway as away:
            told.append(str(away.sqlstate))
            raise

    with psycopg.connect(database) as maker, psycopg.connect(database, autocommit=True) as watcher:
        maker.execute("set search_path to hub")
        maker.execute("create table notices_20310310 (like notices including defaults including constraints)")
        maker.execute(
            "alter table notices attach partition notices_20310310 for values from ('2031-03-10Z') to ('2031-03-11Z')"
        )
        writer = threading.Thread(target=lambda: db.retrying(attempt))
        writer.start()
        waits = "select from pg_stat_activity where application_name = 'hub test' and wait_event_type = 'Lock'"
        until(lambda: watcher.execute(waits).fetchone() is not None, why="nobody waits for the default partition")
        maker.commit()
        writer.join(20)
        assert watcher.execute("select tableoid::regclass::text from hub.notices").fetchall() == [("notices_20310310",)]
    assert told == ["23514"]


def test_only_collisions_are_repeated_and_not_for_ever() -> None:
    calls: list[None] = []

    def colliding() -> None:
        calls.append(None)
        raise psycopg.errors.SerializationFailure

    def refused() -> None:
        calls.append(None)
        raise db.StorageRefused("no")

    with pytest.raises(psycopg.errors.SerializationFailure):
        db.retrying(colliding)
    assert len(calls) == 4
    with pytest.raises(db.StorageRefused):
        db.retrying(refused)
    assert len(calls) == 5
