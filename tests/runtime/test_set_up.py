"""The set-up does its work once, and again only when what it installed from has changed."""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "set_up.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path, script: ModuleType) -> Path:
    """A checkout whose set-up has been done."""
    (tmp_path / "requirements.lock").write_text("one==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    script.stamp(tmp_path)
    return tmp_path


def test_a_finished_set_up_is_not_repeated(script: ModuleType, checkout: Path) -> None:
    assert script.is_done(checkout)


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_changed_file_asks_for_a_new_set_up(script: ModuleType, checkout: Path, name: str) -> None:
    (checkout / name).write_text("changed\n")
    assert not script.is_done(checkout)


def test_a_moved_checkout_asks_for_a_new_set_up(script: ModuleType, checkout: Path) -> None:
    moved = checkout.with_name("moved")
    shutil.move(checkout, moved)
    assert not script.is_done(moved)


def test_a_vanished_interpreter_asks_for_a_new_set_up(script: ModuleType, checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    assert not script.is_done(checkout)


def test_a_checkout_never_set_up_asks_for_it(script: ModuleType, checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    assert not script.is_done(checkout)


def test_a_later_run_says_nothing_and_takes_a_moment(checkout: Path) -> None:
    (checkout / "deploy").mkdir()
    copy = shutil.copy(SCRIPT, checkout / "deploy")
    began = time.monotonic()
    done = subprocess.run([sys.executable, copy], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert time.monotonic() - began < 2  # about 0.1 s; a set-up that installs anything takes longer


def test_a_failing_command_is_told_by_its_last_words(script: ModuleType) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no index reachable')"]
    assert script.attempt(failing) == "no index reachable"
    assert script.attempt([sys.executable, "-c", ""]) is None
    assert "No such file" in script.attempt(["/nonexistent/uv"])
