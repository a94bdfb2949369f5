"""The directory by which a second terminal finds the hub that runs on this machine."""

import os
import stat
from pathlib import Path

from hub.runtime.place import Place, Running


def test_a_second_terminal_finds_what_runs_and_the_users_own_servers_win(tmp_path: Path) -> None:
    place = Place(tmp_path / "hub", {})
    assert place.running() is None
    assert place.surroundings({"HOME": "/root"}) == {"HOME": "/root"}
    given = {"REDIS_URL": "redis://a", "DATABASE_URL": "postgresql://a", "HUB_SCHEMA": "mine"}
    place.announce(Running("up", os.getpid(), given, {"intake": "http://x"}))
    assert stat.S_IMODE((tmp_path / "hub" / "running.json").stat().st_mode) == 0o600
    found = Place(None, {"HUB_DIRECTORY": str(tmp_path / "hub")})
    assert found.surroundings({}) == given
    assert found.surroundings({"HUB_SCHEMA": "yours"})["HUB_SCHEMA"] == "yours"
    assert found.surroundings({"DATABASE_URL": "postgresql://b"}) == {"DATABASE_URL": "postgresql://b"}
    place.withdraw()
    assert found.running() is None
    assert found.surroundings({}) == {}


def test_what_a_dead_hub_left_behind_is_not_believed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    place.announce(Running("up", child, {"REDIS_URL": "redis://gone"}, {}))
    assert place.running() is None
    (tmp_path / "running.json").write_text('{"what": 1')
    assert place.running() is None


def test_the_key_made_here_is_used_unless_another_is_given(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.key.write_text("k")
    assert place.surroundings({})["HUB_KEY_FILE"] == str(place.key)
    assert "HUB_KEY_FILE" not in place.surroundings({"HUB_KEY": "x"})
    place.announce(Running("up", os.getpid(), {"HUB_KEY_FILE": "/elsewhere"}, {}))
    assert place.surroundings({})["HUB_KEY_FILE"] == "/elsewhere"
    assert "HUB_KEY_FILE" not in place.surroundings({"HUB_KEY": "x"})


def test_nobody_withdraws_what_another_process_announced(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.announce(Running("demo", os.getppid(), {}, {}))
    place.withdraw()
    assert place.running() is not None
