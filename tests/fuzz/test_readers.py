"""Files that people write may hold anything: they are read, or refused in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub import mappings
from hub.errors import BadInput
from hub.settings import QUEUES_FILE, Settings
from hub.stores import parse_settings
from tests.fuzz import EXAMPLES
from tests.fuzz.test_answers import places, spoilt

quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
QUEUES = yaml.safe_load(QUEUES_FILE.read_text(encoding="utf-8"))
ENV = {
    "DATABASE_URL": "postgresql://hub@localhost/hub",
    "REDIS_URL": "redis://localhost/0",
    "HUB_KEY": Fernet.generate_key().decode(),
}

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(
        ["", "\0", "1e999", "*", "a: b", "- x", "0x1F", "1_000", "yes", "~", 10**400, [[]], {"a": {}}, {1: 2}]
    ),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)
lines = st.lists(
    st.sampled_from(
        [
            *("pools:", "  offers:", "    threads: 9", "a: &a [*a]", "<<: *b", "- - -", "? x", "!!python/name:os.x"),
            *("!!binary x", "? [a]: b", "2024-13-45", "%YAML 9", "---", "...", "\t", "x: |", "'", '"', "{", "\u2028"),
        ]
    )
    | st.text(max_size=12),
    max_size=8,
)


def refused_in_sentences(refusal: BadInput) -> None:
    """Each problem names a place and a way out, and is short enough to be read."""
    assert refusal.problems
    for problem in refusal.problems:
        assert problem.field
        assert problem.fix
        assert len(problem.sentence()) < 2_000
        problem.sentence().encode("utf-8")


@quick
@given(st.data())
def test_queues_yaml_with_anything_at_any_place_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    tree: Any = QUEUES
    for _ in range(data.draw(st.integers(1, 3))):
        tree = spoilt(tree, data.draw(st.sampled_from(list(places(tree)))), data.draw(values))
    path = tmp_path / "queues.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="replace")
    try:
        loaded = Settings.load(path, env=ENV)
    except BadInput as refusal:
        refused_in_sentences(refusal)
    else:  # what is read can be worked with
        assert {context.pool for context in loaded.contexts.values()} <= loaded.pools.keys()
        assert all(context.first_claim > 0 < context.more_claim for context in loaded.contexts.values())


@quick
@given(st.binary(max_size=80) | lines.map(lambda found: "\n".join(found).encode("utf-8", "surrogatepass")))
def test_any_text_as_queues_yaml_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "queues.yaml"
    path.write_bytes(raw)
    with pytest.raises(BadInput) as refusal:
        Settings.load(path, env=ENV)
    refused_in_sentences(refusal.value)


def cells() -> st.SearchStrategy[str]:
    odd = st.sampled_from(
        ["", '"', '""', "\0", "10", "010", "MC-1", "=1+1", "\r", "a,b", ";", "\u2028", "\ufeff", "x" * 999]
    )
    return odd | st.text(max_size=6)


tables = st.lists(st.lists(cells(), max_size=5), max_size=6).map(lambda rows: "\n".join(map(",".join, rows)))


@quick
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda head, body: f"{head}\n{body}".encode("utf-8", "surrogatepass"),
        st.sampled_from(
            [
                "category,remote,name",
                "category;remote",
                "\ufeffCategory,REMOTE",
                "remote,category",
                "category,category,remote",
            ]
        ),
        tables,
    ),
    st.sampled_from([None, {"MC-1": "Mugs"}, {}]),
)
def test_any_csv_of_mappings_is_read_or_refused(raw: bytes, remotes: dict[str, str] | None) -> None:
    try:
        for row in mappings.read(raw, remotes):
            "".join((row.category, row.remote, row.name)).encode("utf-8")
            assert "\0" not in row.category + row.remote + row.name
    except BadInput as refusal:
        refused_in_sentences(refusal)


def settings_names() -> Iterator[str]:
    from hub.stores import StoreSettings

    yield from StoreSettings.model_fields


@quick
@given(st.dictionaries(st.sampled_from(sorted(settings_names())) | st.text(max_size=5), values, max_size=4))
def test_any_settings_of_a_store_are_taken_or_refused(tree: dict[str, Any]) -> None:
    try:
        parse_settings(tree)
    except BadInput as refusal:
        refused_in_sentences(refusal)
