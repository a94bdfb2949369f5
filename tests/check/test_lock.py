"""requirements.lock is what everybody installs: it names no index, and all that pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


def plain(name: str) -> str:
    """Return the normalized name of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", name)
    assert found, f"{name!r} does not begin with a name"
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def asked_for() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
        project["build-system"]["requires"],
    ]
    return {plain(requirement) for group in groups for requirement in group}


def locked() -> dict[str, str]:
    """Return the text of each locked package by its name."""
    blocks = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)
    return {plain(block): block for block in blocks if block and not block.startswith("#")}


def test_the_lock_names_no_index_and_no_file() -> None:
    assert "://" not in LOCK
    assert "file:" not in LOCK
    assert "index-url" not in LOCK


def test_every_dependency_is_locked() -> None:
    assert asked_for() - locked().keys() == set()


def test_every_locked_package_has_one_version_and_hashes() -> None:
    loose = [name for name, block in locked().items() if "==" not in block or "--hash=sha256:" not in block]
    assert loose == []


def test_the_tool_of_the_set_up_is_pinned_by_hash_too() -> None:
    uv = (ROOT / "deploy" / "uv.txt").read_text()
    assert uv.startswith("uv==")
    assert "--hash=sha256:" in uv
    assert "://" not in uv
