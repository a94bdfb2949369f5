"""The spool of law 7: what PostgreSQL cannot take now is on the disk before it is answered 200, and stored once."""

import itertools
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from hub import db
from hub.conservation import conserved
from hub.ledger import Notice
from hub.model import Ask
from hub.runtime.embedded import Postgres
from hub.stores import Registry, SecretBox
from tasks.spool import Record, Segments, SpoolFull, decoded, encoded, found_in
from tests.cell import ROOT, held_place
from tests.intake.conftest import UNHURRIED, Intakes, Running, serving, until
from tests.intake.test_storage import Cable, cable, keys, locked, stock
from tests.timing import quickest

__all__ = ["cable"]

PLENTY = 1 << 30


def conservation(intake: Running) -> list[str]:
    """The laws that do not hold."""
    with psycopg.connect(intake.database, options="-c search_path=hub") as connection:
        return [law.name for law in conserved(connection, recount=True) if not law.holds]


def asked(intake: Running) -> dict[str, int]:
    return dict(intake.rows("select key, asked::int from states"))


def requested(intake: Running) -> tuple[int, ...]:
    """requested, enqueued, coalesced."""
    return intake.rows(
        "select coalesce(sum(requested), 0)::int, coalesce(sum(enqueued), 0)::int, coalesce(sum(coalesced), 0)::int"
        " from counters"
    )[0]


def told(intake: Running, name: str) -> float:
    lines = intake.get("metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"hub_intake_spool_{name} "))


def empty(folder: Path) -> bool:
    return found_in(folder)[0] == 0


# ---------------------------------------------------------------- one line

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
notices = st.builds(
    Notice,
    st.uuids().map(lambda made: made.hex),
    st.none() | st.integers(0, 2**31 - 1),
    st.sampled_from(["notification", "event", "result"]),
    st.sampled_from(["accepted", "ignored", "quarantined"]),
    texts,
    st.none() | texts,
    st.none() | st.integers(0, 2**62),
)
asks = st.builds(Ask, st.integers(0, 2**31 - 1), texts, texts, texts, st.integers(0, 9), st.booleans(), st.integers(1))
records = st.builds(Record, st.lists(notices, max_size=3).map(tuple), st.lists(asks, max_size=3).map(tuple))


@given(records)
def test_a_line_says_what_it_was_made_of(record: Record) -> None:
    line = encoded(record.notices, record.asks)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decoded(line[:-1]) == record


@given(records, st.data())
def test_a_line_with_one_wrong_byte_is_not_taken(record: Record, data: st.DataObject) -> None:
    line = bytearray(encoded(record.notices, record.asks)[:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"sum"):
        decoded(bytes(line))


@given(st.binary(max_size=60))
def test_no_line_at_all_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"sum"):
        decoded(line)


# ---------------------------------------------------------------- files


def a_line(number: int, size: int = 0) -> bytes:
    notice = Notice(uuid.UUID(int=number).hex, 1, "notification", "accepted", "x" * size, None, number)
    return encoded([notice], [Ask(1, "stock", str(number), "vtex")])


def numbers(segments: Segments, *, most: int = 1000) -> list[int]:
    """The numbers of all lines, taken out in order."""
    found: list[int] = []
    while (batch := segments.read(most)) is not None:
        found += [int(record.notices[0].id, 16) for record in batch.records]
        segments.forget(batch)
    return found


def abandoned(folder: Path, *lines: bytes) -> Path:
    """A segment that a process left behind."""
    segments = Segments(folder, most_bytes=PLENTY)
    segments.append(lines)
    (path,) = folder.glob("*.spool")
    segments.close()
    return path


def test_lines_come_out_in_order_whatever_the_size_of_segments_and_groups(tmp_path: Path) -> None:
    segments = Segments(tmp_path, most_bytes=PLENTY, segment_bytes=1000)
    for first in range(0, 100, 10):
        assert segments.append([a_line(number) for number in range(first, first + 10)]) == 10
    assert len(list(tmp_path.glob("*.spool"))) > 5
    assert segments.lines == 100
    assert numbers(segments, most=7) == list(range(100))
    assert (segments.lines, segments.size, segments.since) == (0, 0, None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_forgotten_comes_again(tmp_path: Path) -> None:
    segments = Segments(tmp_path, most_bytes=PLENTY)
    segments.append([a_line(1), a_line(2), a_line(3)])
    one = segments.read(2)
    assert one is not None
    assert segments.read(2) == one
    segments.forget(one)
    segments.append([a_line(4)])
    assert numbers(segments) == [3, 4]


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "spool"
    segments = Segments(folder, most_bytes=PLENTY)
    segments.append([a_line(1)])
    (path,) = folder.iterdir()
    assert (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)


def test_what_a_dead_process_left_is_adopted_once_and_what_lives_is_left_alone(tmp_path: Path) -> None:
    abandoned(tmp_path, a_line(1), a_line(2))
    one, other = (Segments(tmp_path, most_bytes=PLENTY) for _ in range(2))
    one.append([a_line(3)])
    assert (one.adopt(), other.adopt()) == (1, 0)
    assert one.lines == 3
    other.append([a_line(4)])
    assert numbers(one) == [1, 2, 3]
    assert numbers(other) == [4]


@pytest.mark.parametrize("cut", range(1, len(a_line(2)) + 1, 7))
def test_a_last_line_cut_short_is_skipped_and_the_others_are_kept(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = abandoned(tmp_path, a_line(1), a_line(2))
    os.truncate(path, path.stat().st_size - cut)
    segments = Segments(tmp_path, most_bytes=PLENTY)
    assert segments.adopt() == 1
    assert numbers(segments) == [1]
    assert list(tmp_path.iterdir()) == []
    assert ("cut short" in caplog.text) == (cut < len(a_line(2)))


@pytest.mark.parametrize("damage", [b"\x00", b"\n", b"\xff"])
def test_a_damaged_line_blocks_nobody_and_its_segment_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    path = abandoned(tmp_path, a_line(1), a_line(2), a_line(3))
    with path.open("r+b") as file:
        file.seek(len(a_line(1)) + 20)
        file.write(damage)
    segments = Segments(tmp_path, most_bytes=PLENTY)
    segments.adopt()
    assert numbers(segments, most=1) == [1, 3]
    assert segments.odd_lines in (1, 2)
    (aside,) = tmp_path.iterdir()
    assert aside.name == path.with_suffix(".aside").name
    assert a_line(3) in aside.read_bytes()
    assert found_in(tmp_path) == (0, 0, 1)


def test_a_line_of_a_newer_version_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import zlib

    text = b'[2,"secret",[]]'
    abandoned(tmp_path, b"%08x %s\n" % (zlib.crc32(text), text), a_line(1))
    segments = Segments(tmp_path, most_bytes=PLENTY)
    segments.adopt()
    assert numbers(segments) == [1]
    assert segments.odd_lines == 1
    assert "another version" in caplog.text
    assert "secret" not in caplog.text


def test_beyond_its_bound_it_keeps_nothing_more(tmp_path: Path) -> None:
    segments = Segments(tmp_path, most_bytes=5 * len(a_line(1)))
    assert segments.append([a_line(number) for number in range(7)]) == 5
    with pytest.raises(SpoolFull):
        segments.append([a_line(8)])
    assert not segments.has_room
    assert numbers(segments) == list(range(5))
    assert segments.append([a_line(9)]) == 1


def test_a_segment_that_somebody_removed_takes_nothing_more(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "spool", most_bytes=PLENTY)
    segments.append([a_line(1)])
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    (tmp_path / "spool").rmdir()
    segments.append([a_line(2)])
    segments.close()
    again = Segments(tmp_path / "spool", most_bytes=PLENTY)
    assert again.adopt() == 1
    assert numbers(again) == [2]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    with pytest.raises(OSError, match="spool"):
        Segments(tmp_path / "spool", most_bytes=PLENTY).append([a_line(1)])


# ---------------------------------------------------------------- PostgreSQL away


@pytest.mark.scenario("NOT-12")
def test_while_postgresql_is_away_everything_is_kept_and_stored_afterwards(
    database: str, cable: Cable, tmp_path: Path
) -> None:
    with serving(cable.url, registry_of=database, spool=tmp_path) as intake:
        token = intake.add_store()
        assert intake.post(token, stock(1)).status == 200
        until(lambda: keys(intake) == {"1"} and empty(tmp_path))
        cable.cut()
        with ThreadPoolExecutor(16) as threads:
            posts = list(
                threads.map(lambda sku: intake.post(token, stock(sku)).status, [*range(2, 152), *range(2, 52)])
            )
        assert set(posts) == {200}
        ready = intake.get("readyz")
        assert ready.status_code == 200
        assert ready.json()["spool"]["lines"] == told(intake, "lines") == 200
        assert told(intake, "bytes") > 200 * 100
        assert told(intake, "age_seconds") > 0
        assert intake.post("nobody", stock(3)).status == 404
        assert intake.post(token, raw=b"{").status == 400
        assert keys(intake) == {"1"}
        cable.mend()
        until(lambda: empty(tmp_path))
        assert intake.counters() == (201, 0, 0, 201)
        assert requested(intake) == (201, 151, 50)
        assert set(asked(intake).values()) == {1}
        assert len(keys(intake)) == 151
        assert len(intake.notices()) == 201
        until(lambda: ("acme-mkt", "stock") in intake.woken)
        assert conservation(intake) == []
        assert intake.post(token, stock(500)).status == 200
        until(lambda: told(intake, "lines") == 0)


@pytest.mark.scenario("NOT-12")
def test_while_postgresql_refuses_what_was_spooled_stays_where_it_is(
    database: str, cable: Cable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(cable.url, registry_of=database, spool=tmp_path) as intake,
        psycopg.connect(database, autocommit=True) as operator,
    ):
        token = intake.add_store()
        assert intake.post(token, stock(1)).status == 200
        cable.cut()
        assert [intake.post(token, stock(sku)).status for sku in range(2, 12)] == [200] * 10
        kept = {path.name: path.stat().st_size for path in tmp_path.glob("*.spool")}
        operator.execute("alter table hub.counters rename to counters_of_another_version")
        cable.mend()
        until(lambda: "PostgreSQL refused" in caplog.text)
        assert {path.name: path.stat().st_size for path in tmp_path.glob("*.spool")} == kept
        operator.execute("alter table hub.counters_of_another_version rename to counters")
        until(lambda: empty(tmp_path))
        assert keys(intake) == {str(sku) for sku in range(1, 12)}
        assert conservation(intake) == []


@pytest.mark.scenario("NOT-12")
def test_a_postgresql_that_is_stopped_and_started_loses_and_doubles_nothing(
    server_directory: Path, tmp_path: Path
) -> None:
    with Postgres(server_directory / "own-postgres") as own:
        db.migrate(own.url)
        with serving(own.url, spool=tmp_path) as intake:
            token = intake.add_store()
            ending = threading.Event()
            answers: list[int] = []

            def keep_posting(first: int) -> None:
                session = requests.Session()
                sku = first
                while not ending.is_set():
                    sku += 8
                    answer = session.post(f"{intake.url}/{token}", json=stock(sku), timeout=15)
                    answers.append(answer.status_code)

            posters = [threading.Thread(target=keep_posting, args=(number,)) for number in range(1, 9)]
            for poster in posters:
                poster.start()
            for end in (own.kill, own.stop):
                count = len(answers)
                until(lambda count=count: len(answers) > count + 300)  # type: ignore[misc]  # a default binds it
                end()
                until(lambda: told(intake, "lines") > 100)
                own.start()
                until(lambda: empty(tmp_path), seconds=60)
            ending.set()
            for poster in posters:
                poster.join()
            assert set(answers) == {200}
            until(lambda: empty(tmp_path))
            assert intake.counters()[0] == len(answers) == len(intake.notices())
            assert len(keys(intake)) == len(answers)
            assert set(asked(intake).values()) == {1}
            assert conservation(intake) == []


def test_a_commit_slower_than_half_a_second_is_kept_and_counts_once(database: str, tmp_path: Path) -> None:
    with serving(database, spool=tmp_path) as intake:
        token = intake.add_store()
        posted: list[str] = []

        def answered() -> float:
            posted.append(str(len(posted) + 1))
            began = time.monotonic()
            assert intake.post(token, stock(posted[-1])).status == 200
            return time.monotonic() - began

        with locked(database, "states"):
            quickest(answered, above=0.4, below=1.5)
        count = len(posted)
        until(lambda: keys(intake) == set(posted))
        until(lambda: empty(tmp_path))
        assert asked(intake) == dict.fromkeys(posted, 1)
        assert requested(intake) == (count, count, 0)
        assert intake.counters() == (count, 0, 0, count)


def test_a_backend_that_stands_still_delays_nobody_and_what_it_had_is_stored_once(
    database: str, tmp_path: Path
) -> None:
    with serving(database, spool=tmp_path) as intake:
        token = intake.add_store()
        assert intake.post(token, stock(1)).status == 200
        ((backend,),) = intake.rows(
            "select pid from pg_stat_activity where application_name = 'hub intake' and datname = current_database()"
        )
        os.kill(backend, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(8) as threads:
                assert set(threads.map(lambda sku: intake.post(token, stock(sku)).status, range(2, 42))) == {200}
            until(lambda: intake.post(token, stock(42)).status == 200)
        finally:
            os.kill(backend, signal.SIGCONT)
        until(lambda: keys(intake) == {str(sku) for sku in range(1, 43)}, seconds=60)
        until(lambda: empty(tmp_path))
        received = intake.counters()[0]
        assert received == requested(intake)[0] == len(intake.notices()) == 42
        assert set(asked(intake).values()) == {1}
        assert conservation(intake) == []


class Muted(Cable):
    """A cable whose far end can be kept from being heard: what is said to it arrives, what it answers does not."""

    silent = False

    def _relay(self, source: Any, sink: Any) -> None:  # type: ignore[override]  # this one looks at itself
        near = sink.getsockname()[1] == self._listener.getsockname()[1]
        try:
            while piece := source.recv(65_536):
                if near and self.silent:
                    continue
                sink.sendall(piece)
        except OSError:
            pass
        for end in (source, sink):
            end.close()


@pytest.mark.parametrize("kept", [True, False], ids=["with a spool", "without a spool"])
def test_a_connection_that_breaks_between_commit_and_answer_stores_once(
    database: str, tmp_path: Path, kept: bool
) -> None:
    relay = Muted(database)
    where: dict[str, Any] = {"spool": tmp_path} if kept else {"patience": UNHURRIED}
    with serving(relay.url, registry_of=database, **where) as intake:
        token = intake.add_store()
        assert intake.post(token, stock(1)).status == 200
        until(lambda: keys(intake) == {"1"} and empty(tmp_path))
        with ThreadPoolExecutor(4) as threads:
            relay.silent = True
            posts = [threads.submit(intake.post, token, stock(sku)) for sku in (1, 2, 3)]
            until(lambda: len(intake.notices()) > 1)
            relay.cut()
            relay.silent = False
            relay.mend()
            assert {post.result().status for post in posts} == {200}
        until(lambda: empty(tmp_path))
        assert keys(intake) == {"1", "2", "3"}
        assert len(intake.notices()) == intake.counters()[0] == requested(intake)[0] == 4
        assert conservation(intake) == []
    relay.close()


def test_a_full_spool_is_a_503_and_room_is_made_by_draining(database: str, cable: Cable, tmp_path: Path) -> None:
    with serving(cable.url, registry_of=database, spool=tmp_path, spool_bytes=2_000) as intake:
        token = intake.add_store()
        cable.cut()
        statuses = [intake.post(token, stock(sku)).status for sku in range(1, 21)]
        count = statuses.count(200)
        assert 1 < count < 15
        assert statuses == [200] * count + [503] * (20 - count)
        assert found_in(tmp_path)[1] <= 2_000
        assert intake.get("readyz").status_code == 503
        cable.mend()
        until(lambda: keys(intake) == {str(sku) for sku in range(1, count + 1)})
        until(lambda: intake.get("readyz").status_code == 200)
        cable.cut()
        until(lambda: intake.post(token, stock(1)).status == 200)
        cable.mend()


def test_a_poisonous_line_fails_alone(database: str, cable: Cable, tmp_path: Path) -> None:
    with serving(cable.url, registry_of=database, spool=tmp_path) as intake:
        token = intake.add_store()
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("alter table hub.notices add check (fate = 'quarantined' or body not like '%poison%')")
        cable.cut()
        for sku in range(1, 21):
            body = stock(sku) | ({"x": "poison"} if sku in (4, 17) else {})
            assert intake.post(token, body).status == 200
        cable.mend()
        until(lambda: empty(tmp_path))
        assert keys(intake) == {str(sku) for sku in range(1, 21)} - {"4", "17"}
        assert intake.counters() == (20, 2, 0, 18)
        assert conservation(intake) == []


def test_draining_leaves_room_for_those_who_wait(database: str, cable: Cable, tmp_path: Path) -> None:
    with serving(cable.url, registry_of=database, spool=tmp_path) as intake:
        token = intake.add_store()
        cable.cut()
        body = [stock(sku) for sku in range(1, 201)]
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(lambda _: intake.post(token, body).status, range(60))) == {200}
        cable.mend()
        until(lambda: told(intake, "lines") < 60)
        posted = itertools.count(1000)

        def ten() -> float:
            began = time.monotonic()
            assert [intake.post(token, stock(next(posted))).status for _ in range(10)] == [200] * 10
            return time.monotonic() - began

        quickest(ten, below=5)
        until(lambda: empty(tmp_path), seconds=60)
        assert intake.counters()[0] == len(intake.notices()) == 60 * 200 + next(posted) - 1000


def test_two_intakes_with_one_folder_store_each_line_once(database: str, cable: Cable, tmp_path: Path) -> None:
    with (
        serving(cable.url, registry_of=database, spool=tmp_path) as one,
        serving(cable.url, registry_of=database, spool=tmp_path) as other,
    ):
        token = one.add_store()
        until(lambda: other.get(token).status_code == 405)
        cable.cut()
        for sku in range(1, 41):
            assert (one if sku % 2 else other).post(token, stock(sku)).status == 200
        assert len(list(tmp_path.glob("*.spool"))) == 2
        cable.mend()
        until(lambda: empty(tmp_path))
        assert one.counters() == (40, 0, 0, 40)
        assert len(keys(one)) == 40


def test_files_without_a_whole_line_go_away(database: str, tmp_path: Path) -> None:
    (tmp_path / "0000000000001-1-aaaaaaaa.spool").touch()
    (tmp_path / "0000000000002-1-bbbbbbbb.spool").write_bytes(a_line(1)[:-9])
    with serving(database, spool=tmp_path):
        until(lambda: empty(tmp_path))
        assert found_in(tmp_path) == (0, 0, 0), "nothing is set aside either: there is nothing in it"


def test_stopping_leaves_the_spool_to_the_next_start(database: str, cable: Cable, tmp_path: Path) -> None:
    with serving(cable.url, registry_of=database, spool=tmp_path) as intake:
        token = intake.add_store()
        cable.cut()
        for sku in range(1, 11):
            assert intake.post(token, stock(sku)).status == 200
    assert not empty(tmp_path)
    cable.mend()
    with serving(cable.url, registry_of=database, spool=tmp_path) as again:
        until(lambda: empty(tmp_path))
        assert len(keys(again)) == 10
        assert again.counters() == (10, 0, 0, 10)


def test_when_a_notice_came_is_told_by_the_clock_of_postgresql(database: str, cable: Cable, tmp_path: Path) -> None:
    with serving(cable.url, registry_of=database, spool=tmp_path) as intake:
        token = intake.add_store()
        ((before,),) = intake.rows("select clock_timestamp()")
        assert intake.post(token, stock(1)).status == 200
        cable.cut()
        assert intake.post(token, stock(2)).status == 200
        ((between,),) = intake.rows("select clock_timestamp()")
        cable.mend()
        until(lambda: empty(tmp_path))
        early = [row[0] for row in intake.rows("select received_at from notices order by 1")]
        assert len(early) == 2
        assert all(abs((before - at).total_seconds()) < 60 for at in early)
        assert (early[1] - between).total_seconds() < 1


# ---------------------------------------------------------------- the process itself


class Child:
    """An intake as a process of its own, which can be killed."""

    def __init__(self, database: str, folder: Path, key: str) -> None:
        self._place = held_place()
        self.port = self._place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = {
            "PATH": os.environ.get("PATH", ""),
            "DATABASE_URL": database,
            "REDIS_URL": "redis://127.0.0.1:1/0",  # nobody listens: wake-ups wait, nothing else
            "HUB_KEY": key,
            "HUB_SPOOL": str(folder),
        }
        self.start()

    def start(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "hub.cli", "intake", "--port", str(self.port)],
            env=self._env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        self.kill()
        self._place.close()

    def knows(self, token: str) -> bool:
        assert self.popen.poll() is None, "the intake ended by itself"
        try:
            return requests.get(f"{self.url}/{token}", timeout=5).status_code == 405
        except requests.RequestException:
            return False

    def post(self, token: str, body: Any) -> int:
        """The status; 0 when there was no answer."""
        try:
            return requests.post(f"{self.url}/{token}", json=body, timeout=30).status_code
        except requests.RequestException:
            return 0


@contextmanager
def child(database: str, registry_of: str, folder: Path) -> Iterator[tuple[Child, Running, str]]:
    """A process, a way to ask about its tables, a store's token."""
    key = Fernet.generate_key()
    with db.open_pool(registry_of, "hub", name="test", max_size=2) as pool:
        registry = Registry(pool, SecretBox([key]))
        _, token = registry.add(
            slug="acme-mkt", account="acme", affiliate="MKT", sales_channel=1, marketplace="sandbox-sync", who="test"
        )
        process = Child(database, folder, key.decode())
        try:
            until(lambda: process.knows(token), seconds=60)
            yield process, Running(process.url, registry_of, registry, []), token
        finally:
            process.close()


def posted_until_killed(process: Child, token: str, skus: range, *, killed_at: int) -> set[int]:
    """The SKUs answered 200 by a process that is killed, with others under way, once it has answered so many."""
    answered: set[int] = set()
    turn = threading.Lock()

    def one(sku: int) -> None:
        if process.popen.poll() is not None or process.post(token, stock(sku)) != 200:
            return
        with turn:
            answered.add(sku)
            if len(answered) == killed_at:
                process.kill()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, skus))
    return answered


@pytest.mark.scenario("NOT-12")
def test_an_intake_killed_while_it_spools_and_while_it_drains_loses_and_doubles_nothing(
    database: str, cable: Cable, tmp_path: Path, intakes: Intakes
) -> None:
    with child(cable.url, database, tmp_path) as (process, tables, token):
        answered: set[int] = set()
        for turn in range(3):
            until(lambda: process.knows(token), seconds=60)
            cable.cut()
            first = turn * 10_000
            answered |= posted_until_killed(
                process, token, range(first + 1, first + 5_000), killed_at=(1, 20, 60)[turn]
            )
            cable.mend()
            process.start()
            if turn % 2:  # killed again, somewhere in its drain
                until(lambda: keys(tables), seconds=60)
                process.kill()
                process.start()
        until(lambda: process.knows(token), seconds=60)
        until(lambda: empty(tmp_path), seconds=60)
        assert len(answered) >= 1 + 20 + 60
        assert {str(sku) for sku in answered} <= keys(tables)
        assert set(asked(tables).values()) == {1}
        bodies = tables.rows("select count(*)::int, count(distinct body)::int from notices")
        assert bodies == [(len(keys(tables)), len(keys(tables)))]
        assert tables.counters()[0] == requested(tables)[0] == len(keys(tables))
        assert conservation(tables) == []
        intakes.ended += len(answered)


def test_postgresql_is_told_that_a_killed_process_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as postgresql:
        relay = Cable(f"postgresql://hub:none@127.0.0.1:{postgresql.getsockname()[1]}/hub")
        near = socket.create_connection(("127.0.0.1", int(relay.url.rsplit(":", 1)[1].split("/")[0])))
        far, _ = postgresql.accept()
        with far:
            far.settimeout(15)
            near.sendall(b"begin; lock table states")
            assert far.recv(100)
            near.close()
            assert far.recv(100) == b"", "or its transaction and locks would outlive it"
        relay.close()


def test_a_living_intake_takes_over_what_a_killed_one_left(database: str, cable: Cable, tmp_path: Path) -> None:
    with child(cable.url, database, tmp_path) as (process, tables, token):
        cable.cut()
        assert process.post(token, stock(7)) == 200
        process.kill()
        assert not empty(tmp_path)
        with serving(database, spool=tmp_path):
            until(lambda: empty(tmp_path), seconds=60)
        assert keys(tables) == {"7"}


def test_a_disk_that_refuses_is_a_503_and_what_it_took_before_is_kept(
    database: str, cable: Cable, tmp_path: Path
) -> None:
    with child(cable.url, database, tmp_path) as (process, tables, token):
        cable.cut()
        assert process.post(token, stock(1)) == 200
        size = found_in(tmp_path)[1]
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (size + 10, -1))
        large = stock(2) | {"x": "y" * (2 * size)}
        assert process.post(token, large) == 503
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (-1, -1))
        assert process.post(token, stock(3)) == 200
        cable.mend()
        until(lambda: empty(tmp_path), seconds=60)
        assert keys(tables) == {"1", "3"}
        assert [json.loads(body)["IdSku"] for _, _, _, body in tables.notices()] == [1, 3]
