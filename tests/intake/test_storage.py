"""Nothing is answered 200 before it is stored (law 7): PostgreSQL away, slow, or refusing a value; Redis away, slow."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from hub.db import column
from tests.intake.conftest import UNHURRIED, Running, serving, until
from tests.timing import quickest


class Cable:
    """A TCP relay to PostgreSQL that can be cut and mended."""

    def __init__(self, database: str) -> None:
        parts = urlsplit(database)
        self._target = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
        self._ends: list[socket.socket] = []
        self._cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            if self._cut.is_set():  # meanwhile, and these two may not have been seen
                self._end(near, far)
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(one, other), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(65_536):
                sink.sendall(piece)
        except OSError:
            pass
        Cable._end(source, sink)
        source.close()

    @staticmethod
    def _end(*ends: socket.socket) -> None:
        """Both sides are told: closing alone tells nobody while the other thread waits for what comes from there."""
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def cut(self) -> None:
        self._cut.set()
        self._end(*self._ends)

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def cable(database: str) -> Iterator[Cable]:
    relay = Cable(database)
    yield relay
    relay.close()


@contextmanager
def locked(database: str, table: str) -> Iterator[None]:
    """Nobody can write to the table meanwhile."""
    with psycopg.connect(database) as connection:
        connection.execute(f"lock table hub.{table} in access exclusive mode")
        yield


def blocked(intake: Running) -> bool:
    """Somebody waits for a lock in the intake's database."""
    waiting = "select 1 from pg_locks l join pg_database d on d.oid = l.database"
    return bool(intake.rows(f"{waiting} where not l.granted and d.datname = current_database()"))


def stock(sku: object) -> dict[str, object]:
    return {"IdSku": sku, "StockModified": True}


def keys(intake: Running) -> set[str]:
    return {key for _, key, _, _ in intake.states()}


@pytest.mark.scenario("NOT-13")
def test_while_postgresql_is_away_it_says_503_and_it_comes_back_by_itself(database: str, cable: Cable) -> None:
    with serving(cable.url, registry_of=database) as intake:
        token = intake.add_store()
        until(lambda: intake.post(token, stock(1)).status == 200)
        cable.cut()

        def refused() -> float:
            began = time.monotonic()
            answer = intake.post(token, stock(2))
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            return time.monotonic() - began

        quickest(refused, below=2)
        until(lambda: intake.get("readyz").status_code == 503)
        assert intake.get("livez").status_code == 200
        assert intake.post("nobody", stock(3)).status == 404  # the registry it knew still serves
        cable.mend()
        until(lambda: intake.post(token, stock(4)).status == 200)
        until(lambda: intake.get("readyz").status_code == 200)
        assert keys(intake) == {"1", "4"}


def test_a_restart_of_postgresql_between_two_requests_costs_nobody_a_503(database: str, cable: Cable) -> None:
    with serving(cable.url, registry_of=database, patience=UNHURRIED) as intake:
        token = intake.add_store()
        for sku in range(5):
            cable.cut()
            cable.mend()
            assert intake.post(token, stock(sku + 1)).status == 200
        assert keys(intake) == {"1", "2", "3", "4", "5"}


@pytest.mark.scenario("NOT-13")
def test_until_the_registry_was_read_nobody_is_called_unknown(database: str, cable: Cable) -> None:
    cable.cut()
    with serving(cable.url, registry_of=database, wait=False) as intake:
        until(lambda: intake.get("livez").status_code == 200)
        assert intake.post("nobody", stock(1)).status == 503
        assert intake.get("readyz").json()["obstacles"][0] == "the registry of stores was never read"
        cable.mend()
        until(lambda: intake.post("nobody", stock(1)).status == 404, seconds=60)


@pytest.mark.scenario("NOT-13")
def test_a_commit_slower_than_half_a_second_is_a_503(database: str) -> None:
    with serving(database) as intake:
        token = intake.add_store()

        def refused() -> float:
            began = time.monotonic()
            assert intake.post(token, stock(1)).status == 503
            return time.monotonic() - began

        with locked(database, "states"):
            quickest(refused, above=0.4, below=1.5)
        until(lambda: intake.post(token, stock(2)).status == 200)
        assert intake.refused("storage") >= 1


def test_a_poisonous_row_fails_alone(intake: Running) -> None:
    token = intake.add_store()
    no_poison = "alter table hub.notices add check (fate = 'quarantined' or body not like '%poison%')"
    with psycopg.connect(intake.database, autocommit=True) as connection:
        connection.execute(no_poison)

    def post(sku: int) -> int:
        body = stock(sku) | ({"x": "poison \x07"} if sku % 10 == 0 else {})
        return intake.post(token, body).status

    with ThreadPoolExecutor(16) as threads, locked(intake.database, "notices"):
        answers = threads.map(post, range(1, 41))  # they wait for the lock and go in one group
        until(lambda: blocked(intake))
    statuses = list(answers)
    assert {sku for sku, status in enumerate(statuses, start=1) if status == 400} == {10, 20, 30, 40}
    stored = {sku for sku, status in enumerate(statuses, start=1) if status == 200}
    assert stored == set(range(1, 41)) - {10, 20, 30, 40}
    assert keys(intake) == {str(sku) for sku in stored}
    aside = [json.loads(body) for _, fate, _, body in intake.notices() if fate == "quarantined"]
    assert sorted(json.loads(body)["IdSku"] for body in aside) == [10, 20, 30, 40]
    assert intake.counters() == (40, 4, 0, 36)


def test_a_notice_whose_partition_is_made_while_it_is_on_its_way_is_no_poison(database: str) -> None:
    with (
        serving(database) as intake,
        psycopg.connect(database) as maker,
        psycopg.connect(database, autocommit=True) as watcher,
        ThreadPoolExecutor() as threads,
    ):
        token = intake.add_store()
        maker.execute("set search_path to hub")
        maker.execute("create table notices_now (like notices including defaults including constraints)")
        maker.execute(
            "alter table notices attach partition notices_now for values from ('2000-01-01Z') to ('2100-01-01Z')"
        )
        answer = threads.submit(intake.post, token, stock(1))
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        until(lambda: watcher.execute(waits).fetchone() is not None)
        maker.commit()
        if answer.result().status == 503:  # it took longer than the sender is kept waiting
            until(lambda: intake.post(token, stock(1)).status == 200)
        assert {fate for (fate,) in watcher.execute("select fate from hub.notices").fetchall()} == {"accepted"}
        assert keys(intake) == {"1"}


def test_a_table_that_is_missing_is_a_503_for_all_and_nobody_is_blamed(database: str) -> None:
    with serving(database) as intake:
        token = intake.add_store()
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("alter table hub.notices rename to elsewhere")
            assert intake.post(token, stock(1)).status == 503
            connection.execute("alter table hub.elsewhere rename to notices")
        until(lambda: intake.post(token, stock(2)).status == 200)


def test_what_waits_together_is_stored_by_one_commit(intake: Running) -> None:
    token = intake.add_store()
    with ThreadPoolExecutor(32) as threads, locked(intake.database, "notices"):
        answers = threads.map(lambda sku: intake.post(token, stock(sku)).status, range(1, 201))
        until(lambda: blocked(intake))
    assert set(answers) == {200}
    assert len(keys(intake)) == 200
    page = dict(line.rsplit(" ", 1) for line in intake.get("metrics").text.splitlines() if not line.startswith("#"))
    assert float(page["hub_intake_group_notices_sum"]) == 200
    assert float(page["hub_intake_group_notices_count"]) < 150
    assert intake.counters() == (200, 0, 0, 200)


def test_a_waker_that_hangs_delays_no_answer(database: str) -> None:
    hanging = threading.Event()

    def hang(pairs: Iterable[tuple[str, str]]) -> int:
        list(pairs)
        hanging.wait(60)
        return 0

    with serving(database, wake=hang, patience=UNHURRIED) as intake:
        token = intake.add_store()
        for sku in range(1, 11):
            assert intake.post(token, stock(sku)).status == 200  # or the test's patience ends long before the waker's
        hanging.set()


def test_two_intakes_share_one_store(database: str) -> None:
    with serving(database, patience=UNHURRIED) as one, serving(database, patience=UNHURRIED) as other:
        token = one.add_store()
        until(lambda: other.get(token).status_code == 405)
        with ThreadPoolExecutor(16) as threads:
            posts = [
                threads.submit(intake.post, token, stock(sku % 20 + 1)) for sku in range(200) for intake in (one, other)
            ]
            assert {post.result().status for post in posts} == {200}
        assert len(keys(one)) == 20
        assert one.counters() == (400, 0, 0, 400)


def test_stopping_answers_whoever_was_let_in(database: str) -> None:
    with serving(database, patience=UNHURRIED) as intake:
        token = intake.add_store()
        assert intake.post(token, stock(1)).status == 200
    assert intake.woken == [("acme-mkt", "stock")]


def test_a_waker_that_fails_is_asked_again(database: str) -> None:
    calls: list[tuple[str, str]] = []

    def fail_once(pairs: Iterable[tuple[str, str]]) -> int:
        calls.extend(pairs)
        if len(calls) == 1:
            raise RuntimeError("broken broker client")
        return 1

    with serving(database, wake=fail_once, patience=UNHURRIED) as intake:
        token = intake.add_store()
        assert intake.post(token, stock(1)).status == 200
        until(lambda: len(calls) == 1)
        assert intake.post(token, stock(2)).status == 200
        until(lambda: len(calls) == 2)


def test_lists_reach_postgresql_as_they_are(database: str) -> None:
    odd = ["", " ", "NULL", "null", "a,b", "{x}", '"', "\\", '\\"\\\\', "\n\t\x1e\x7f", "ü€😀", '{"a":"\\u0000"}', None]
    numbers = [1, -2, None, 2**31 - 1]
    with psycopg.connect(database, autocommit=True) as connection:
        query = "select %s::text[], %s::int[], %s::bool[], %s::uuid[], %s::text[]"
        ids = [uuid.uuid4(), None]
        lists = (odd, numbers, [True, False, None], [str(one) if one else None for one in ids], [])
        for _ in range(2):  # with and without a prepared statement
            found = connection.execute(query, [column(one) for one in lists], prepare=True).fetchone()
            assert found == (odd, numbers, [True, False, None], ids, [])
        with pytest.raises(psycopg.DataError):
            connection.execute("select %s::text[]", (column(["a\0b"]),))
