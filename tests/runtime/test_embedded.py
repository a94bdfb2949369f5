"""The embedded servers: real, private, and back with everything after a crash."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from hub.runtime.embedded import Postgres, ServerUnavailable, Valkey, scratch
from tests.runtime.waiting import runs, until


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch("hub-embedded-") as made:
        yield made


def arguments_of(pid: int) -> str:
    return subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True
    ).stdout


def password_in(url: str) -> str:
    return url.partition("@")[0].rpartition(":")[2]


def test_a_scratch_whose_owner_was_killed_is_removed_by_the_next_one_and_no_other() -> None:
    prefix = f"hub-left-{os.getpid()}-"
    killed = (
        "import os, sys; from hub.runtime.embedded import scratch\n"
        "with scratch(sys.argv[1]) as made: print(made, flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", killed, prefix], capture_output=True, text=True, check=False).stdout
    left = Path(said.strip())
    unknown = left.with_name(f"{prefix}unknown")
    unknown.mkdir()
    assert left.is_dir()
    with scratch(prefix) as first, scratch(prefix) as second:
        assert not left.exists()
        assert first.is_dir()
        assert second.is_dir()
    assert unknown.is_dir()
    unknown.rmdir()


def test_postgres_sorts_and_folds_utf8_alike_on_every_machine(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute(
            "SELECT upper('ação'), current_setting('server_encoding'), datlocprovider, datlocale,"
            " current_setting('TimeZone') FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert row == ("AÇÃO", "UTF8", "b", "C.UTF-8", "UTC")


def test_neither_server_answers_without_the_password(postgres: Postgres, valkey: Valkey) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.url.replace(password_in(postgres.url), "wrong"))
    with redis.Redis(port=valkey.port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_no_password_shows_in_process_arguments(postgres: Postgres, valkey: Valkey) -> None:
    for server in (postgres, valkey):
        assert server.pid
        assert password_in(server.url) not in arguments_of(server.pid)


def test_only_the_owner_can_read_the_passwords(server_directory: Path, postgres: Postgres, valkey: Valkey) -> None:
    secrets = [password_in(server.url).encode() for server in (postgres, valkey)]
    holding = {
        path.relative_to(server_directory).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for server in ("postgres", "valkey")
        for path in (server_directory / server).glob("*")
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets)
    }
    assert holding == dict.fromkeys(("postgres/password", "valkey/password", "valkey/valkey.conf"), 0o600)


def test_the_servers_never_run_as_root(postgres: Postgres, valkey: Valkey) -> None:
    for server in (postgres, valkey):
        shown = subprocess.run(["ps", "-o", "uid=", "-p", str(server.pid)], capture_output=True, text=True, check=True)
        assert int(shown.stdout) != 0


def test_the_servers_listen_on_the_loopback_address_only(postgres: Postgres, valkey: Valkey) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; only asks which of our addresses leads outside
            outside = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no address but the loopback one")
    for server in (postgres, valkey):
        with pytest.raises(OSError), socket.create_connection((outside, server.port), timeout=1):
            pass


def test_postgres_comes_back_on_the_same_port_with_all_rows_after_a_crash(directory: Path) -> None:
    with Postgres(directory / "pg") as server:
        before, crashed = server.url, server.pid
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (x int)")
            connection.execute("INSERT INTO kept VALUES (1)")
            server.kill()
        server.start()
        assert server.url == before
        assert server.pid != crashed
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT x FROM kept").fetchall() == [(1,)]


def test_valkey_comes_back_on_the_same_port_with_what_it_wrote_down_after_a_crash(directory: Path) -> None:
    with Valkey(directory / "vk") as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "1")
        client.execute_command("WAITAOF", 1, 0, 5000)
        before = server.url
        server.kill()
        server.start()
        assert server.url == before
        assert client.get("kept") == b"1"


def test_a_stopped_server_keeps_its_address_for_the_next_run(directory: Path) -> None:
    with Valkey(directory / "vk") as server:
        before = server.url
    with Valkey(directory / "vk") as server:
        assert server.url == before


def test_somebody_else_finds_the_running_server_by_its_directory(directory: Path) -> None:
    with Valkey(directory / "vk") as vk, Postgres(directory / "pg", durable=False) as pg:
        assert Valkey(directory / "vk").running_url == vk.url
        assert Postgres(directory / "pg").running_url == pg.url
    assert Valkey(directory / "vk").running_url is None
    assert Postgres(directory / "pg").running_url is None


def test_two_runs_on_one_directory_are_refused_in_one_sentence(directory: Path) -> None:
    with Valkey(directory / "vk") as first:
        with pytest.raises(ServerUnavailable, match=f"pid {os.getpid()}.*already runs valkey"):
            Valkey(directory / "vk", patience=0.1).start()
        assert first.pid


def test_a_taken_port_is_named(directory: Path) -> None:
    with Valkey(directory / "one") as first, pytest.raises(ServerUnavailable, match=f"port {first.port} .* is taken"):
        Valkey(directory / "two", port=first.port, patience=0.2).start()


def test_a_stale_pid_file_of_a_living_stranger_does_not_prevent_a_start(directory: Path) -> None:
    server = Postgres(directory / "pg", durable=False)
    with server:
        kept = (directory / "pg" / "data" / "postmaster.pid").read_text()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        lines = [str(stranger.pid), *kept.splitlines()[1:]]
        (directory / "pg" / "data" / "postmaster.pid").write_text("\n".join(lines) + "\n")
        with server:
            assert server.pid not in {None, stranger.pid}
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


ORPHANING = """
import sys, time
from pathlib import Path
from hub.runtime.embedded import Postgres, Valkey
servers = [Postgres(Path(sys.argv[1]) / "pg", durable=False), Valkey(Path(sys.argv[1]) / "vk")]
print(*(server.start().pid for server in servers), flush=True)
time.sleep(600)
"""


def test_a_killed_parent_leaves_no_server_behind_and_the_next_run_starts_at_once(directory: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHANING, str(directory)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with Postgres(directory / "pg", durable=False) as pg, Valkey(directory / "vk") as vk:
        assert pg.pid not in pids
        assert vk.pid not in pids
        until(lambda: not any(runs(pid) for pid in pids), what="the end of the first servers")


def test_a_server_left_running_by_a_killed_run_is_stopped_first(directory: Path) -> None:
    first = Valkey(directory / "vk")
    asked = first.process()
    orphan = subprocess.Popen(asked.argv, user=asked.user, group=asked.group, stdout=subprocess.DEVNULL)
    until(lambda: first.running_url, what="the orphan's answer")
    first.release()
    try:
        with Valkey(directory / "vk") as second:
            assert orphan.wait(60) == 0
            assert second.pid
    finally:
        orphan.kill()
        orphan.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers as another user")
def test_root_in_a_closed_home_starts_the_servers_without_opening_it(tmp_path: Path) -> None:
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    server = Valkey(closed / "vk")
    try:
        with server, redis.Redis.from_url(server.url) as client:
            assert client.ping()
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    finally:
        shutil.rmtree((closed / "vk" / "elsewhere").read_text())


def test_files_of_another_postgres_version_are_refused_with_what_to_do(directory: Path) -> None:
    server = Postgres(directory / "pg", durable=False)
    with server:
        pass
    (directory / "pg" / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ServerUnavailable, match=r"belong to PostgreSQL 12 .* DATABASE_URL"):
        server.start()


def test_errors_in_the_log_quote_no_rows_and_no_statements(server_directory: Path, empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE people (email text UNIQUE)")
        connection.execute("INSERT INTO people VALUES ('ana@example.com')")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO people VALUES ('ana@example.com')")
    log = (server_directory / "postgres" / "server.log").read_text()
    assert "people_email_key" in log
    assert "ana@example.com" not in log
