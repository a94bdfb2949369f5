"""`hub up`: the whole hub on one machine, found by a second terminal, ended by Ctrl-C."""

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

from hub.runtime.guardian import alive
from hub.runtime.place import Place
from tests.cell import until
from tests.cli.conftest import keyboard


def descendants(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children}.union(*(descendants(int(child)) for child in children))


def test_the_hub_comes_up_is_found_by_a_second_terminal_and_ends_cleanly(server_directory: Path) -> None:
    place = Place(server_directory / "up", {})
    words = ["up", "--directory", str(place.directory), "--port", "0", "--api-port", "0", "--no-flower"]
    bare = {"PATH": os.environ["PATH"]}
    log = server_directory / "up.log"
    with log.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "hub.cli", *words], env=bare, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        until(lambda: place.running() or running.poll() is not None, seconds=180, why="it does not come up")
        assert running.poll() is None, log.read_text()
        assert stat.S_IMODE(place.key.stat().st_mode) == 0o600
        second = keyboard({"HUB_DIRECTORY": str(place.directory), "REDIS_URL": "", "DATABASE_URL": ""})

        def amiss() -> dict[str, str]:
            told = second("doctor", "--json", code=None).json
            return {look["what"]: look["verdict"] for look in told["checks"] if look["verdict"] != "ok"}

        until(lambda: amiss() == {"stores": "warning"}, seconds=60, why="the doctor does not find it well")
        second("db", "check")
        assert second("store", "list", "--json").json == {"schema_version": 1, "stores": []}
        assert "runs on" in second("up", "--directory", str(place.directory), code=5).talk

        started = descendants(running.pid)
        assert len(started) >= 7  # two servers, intake, api, two lanes, sweep
        passwords = re.findall(r"://\w*:([^@]+)@", str(dict(place.running().env)))  # type: ignore[union-attr]  # it runs
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in started]
        assert passwords
        assert not [line for line in lines for password in passwords if password in line]
        assert not [password for password in passwords if password in log.read_text()]
    finally:
        running.send_signal(signal.SIGINT)
        code = running.wait(60)
    assert code == 0, log.read_text()
    assert place.running() is None
    assert not [pid for pid in started if alive(pid)]


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = keyboard({"HUB_DIRECTORY": str(tmp_path)})("up", "--port", port, code=2)
    assert said.lines == [
        f"--port is '127.0.0.1:{port}': cannot be used (Address already in use); give another, or 0 for a free one"
    ]
    assert not (tmp_path / "running.json").exists()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = keyboard({})("up", "--directory", str(tmp_path / "file" / "hub"), code=2)
    assert said.lines[0].startswith("--directory is ")
