"""queues.yaml and the environment: what is read, and how mistakes are told."""

import dataclasses
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.errors import BadInput
from hub.settings import POOLS, QUEUES_FILE, Settings

ENV = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgresql://hub@127.0.0.1:1/hub"}

Written = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(text: str) -> Path:
        path = tmp_path / "queues.yaml"
        path.write_text(text)
        return path

    return write


def told(path: Path | None, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(BadInput) as refused:
        Settings.load(path, ENV if env is None else env)
    return [problem.sentence() for problem in refused.value.problems]


def replaced(*changes: tuple[str, str]) -> str:
    text = QUEUES_FILE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def line_of(text: str, start: str, after: str = "") -> int:
    begin = text.index(after)
    return text.count("\n", 0, text.index(start, begin)) + 1


def test_the_file_as_it_comes_declares_every_context_and_pool() -> None:
    loaded = Settings.load(env=ENV)
    assert set(loaded.contexts) == {"catalog", "price", "stock", "order", "fulfilment", "load", "lot", "reconcile"}
    assert tuple(loaded.pools) == POOLS
    assert loaded.layout == "per_store"
    assert loaded.broker_url == ENV["REDIS_URL"]
    assert (loaded.prefix, loaded.schema) == ("hub", "hub")
    assert loaded.contexts["price"].plan is loaded.plans["brisk"]


def test_every_line_of_the_file_is_commented() -> None:
    bare = [line for line in QUEUES_FILE.read_text().splitlines() if line.strip() and "# " not in line]
    assert bare == []


def test_every_plan_makes_at_least_ten_growing_attempts() -> None:
    for plan in Settings.load(env=ENV).plans.values():
        assert len(plan.delays) >= 10
        assert all(before <= after for before, after in pairwise(plan.delays))


def test_the_patient_plan_doubles_from_thirty_seconds_up_to_an_hour() -> None:
    plan = Settings.load(env=ENV).plans["patient"]
    assert plan.delays == tuple(min(30.0 * 2**turn, 3600.0) for turn in range(10))
    assert plan.slow == (3600.0, 21600.0, 86400.0)


def test_a_cap_leaves_room_in_every_pool() -> None:
    loaded = Settings.load(env=ENV)
    for context in loaded.contexts.values():
        assert context.cap <= loaded.pools[context.pool].threads * 3 / 4


def test_one_plan_can_replace_all_for_a_demonstration() -> None:
    loaded = Settings.load(env={**ENV, "HUB_PLAN": "demo"})
    assert {context.plan for context in loaded.contexts.values()} == {loaded.plans["demo"]}
    assert told(None, {**ENV, "HUB_PLAN": "dem"}) == [
        "HUB_PLAN is 'dem': is no plan of queues.yaml; did you mean 'demo'?"
    ]


def test_all_mistakes_of_file_and_environment_are_told_at_once_with_line_and_fix(written: Written) -> None:
    text = replaced(
        ("layout: per_store", "layout: perstore"),
        ("threads: 8 ", "thread: 8 "),
        ("reserved: 4 ", "reserved: 40 "),
        ("plan: brisk", "plan: briks"),
        ("failures: 5", "failures: many"),
        ("heartbeat_seconds: 4 ", "heartbeat_seconds: 9 "),
        ("[30, 60,", "[300, 60,"),
    )
    problems = told(written(text), {"DATABASE_URL": "mysql://user:very-secret@host", "HUB_PREFIX": "No Spaces"})
    assert problems == [
        "REDIS_URL: is not set; set it, for example redis://127.0.0.1:6379/0",
        "DATABASE_URL: must begin with postgresql:// or postgres://: postgresql://user:password@127.0.0.1:5432/hub",
        "HUB_PREFIX is 'No Spaces': use lower-case letters, digits, - and _, at most 31, beginning with a letter",
        "queues.yaml:5: layout is 'perstore': write 'per_store' or 'pooled'",
        "queues.yaml:8: pools.orders.threads: is missing; add it",
        "queues.yaml:9: pools.orders.thread is '8': unknown key; did you mean 'threads'?",
        "queues.yaml:14: pools.offers.reserved is '40': "
        "write less than `threads` (16), or nobody serves the busy stores",
        f"queues.yaml:{line_of(text, 'plan: briks')}: contexts.price.plan is 'briks': "
        "is no plan of this file; did you mean 'brisk'?",
        f"queues.yaml:{line_of(text, 'delays: [300')}: plans.patient.delays: "
        "60 comes after 300; no wait may be shorter than the one before it",
        f"queues.yaml:{line_of(text, 'failures: many')}: circuit.failures is 'many': write a valid integer",
        f"queues.yaml:{line_of(text, 'heartbeat_seconds')}: sweep.heartbeat_seconds is '9': "
        "write at most a third of `lease_seconds` (20), so that one may be lost",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  price:  ", "  prices: ", "contexts.prices: unknown key; did you mean 'price'?"),
        ("pool: offers ", "pool: offer ", "contexts.price.pool is 'offer': write 'orders', 'offers', 'catalog' or"),
        ("cap: 6 ", "cap: 9 ", "contexts.order.cap is '9': write at most the threads of its pool (8)"),
        ("deadline: 120.0", "deadline: 10", "contexts.catalog.deadline is '10': write at least the longest call (15)"),
        ("more_claim: 50", "more_claim: 0", "contexts.catalog.more_claim is '0': write a number greater than or equal"),
        ("rate: 100 ", "rate: .nan ", "vtex.rate is 'nan': write a finite number"),
        ("rate: 100 ", "rate: yes ", "vtex.rate is 'True': write a valid number"),
        ("jitter: 0.2 ", "jitter: 1.5 ", "plans.patient.jitter is '1.5': write a number less than or equal to 0.9"),
        ("slow: [3600, ", "slow: [a, ", "plans.patient.slow.0 is 'a': write a valid number"),
        ("longest_seconds: 600", "longest_seconds: 6", "circuit.longest_seconds is '6': write at least `open_seconds`"),
        ("total_seconds: 15", "total_seconds: 1", "vtex.total_seconds is '1': write at least `connect_seconds` (3)"),
        ("circuit:  ", "sweep:  ", "sweep: is already in line"),
    ],
)
def test_each_wrong_value_is_told_by_its_place(written: Written, old: str, new: str, expected: str) -> None:
    text = replaced((old, new))
    problems = told(written(text))
    assert any(expected in problem for problem in problems), problems
    assert all(re.match(r"queues\.yaml:\d+: ", problem) for problem in problems)


def test_nine_attempts_are_too_few(written: Written) -> None:
    problems = told(written(replaced(("[30, 60, 120, 240, ", "[60, 120, 240, "))))
    assert "plans.patient.delays" in problems[0]
    assert problems[0].endswith("write at least 10 items, not 9")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "queues.yaml:1: write `pools:`, `contexts:` and `plans:` as in the original"),
        ("- a", "queues.yaml:1: write `pools:`, `contexts:` and `plans:` as in the original"),
        ("pools:\n  orders: [1", "queues.yaml:2: is not readable: expected ',' or ']', but got '<stream end>'"),
        ("a: &x {}\nb: *x", "queues.yaml:2: b: repeats line 1 by reference; write it out"),
        ("a: &x\n  - *x", "queues.yaml:1: a.0: repeats line 1 by reference; write it out"),
        ("a: 1\n2024-01-01: 2", "queues.yaml:2: 2024-01-01: the key is no text; put it in quotes"),
        ("a: 1\n? [a, b]\n: 2", "queues.yaml:2: ?: the key is a list or a block; write a word as key"),
        ("a:\n  ? {b: c}\n  : 2", "queues.yaml:2: a.?: the key is a list or a block; write a word as key"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "queues.yaml:1: is not readable: could not determine a constructor",
        ),
        ("a: 2024-13-45", "queues.yaml:1: is not readable"),
        ("[" * 5000, "queues.yaml:1: is not readable"),
    ],
)
def test_what_is_no_settings_file_is_told_with_its_line(written: Written, text: str, expected: str) -> None:
    assert told(written(text))[0].startswith(expected)


@pytest.mark.parametrize("character", ["\x00", "\x07"])
def test_a_control_character_is_told_with_its_line(written: Written, character: str) -> None:
    assert told(written(f"layout: per_store\nplans: {character}\n")) == [
        f"queues.yaml:2: holds a control character (U+{ord(character):04X}); remove it"
    ]


@pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL", "HUB_BROKER_URL"])
@pytest.mark.parametrize("port", ["notaport", "70000", "0"])
def test_a_port_that_is_none_is_told_without_repeating_the_url(name: str, port: str) -> None:
    scheme = "postgresql" if name == "DATABASE_URL" else "redis"
    (sentence,) = told(None, ENV | {name: f"{scheme}://:p4ssw0rd@127.0.0.1:{port}/0"})
    assert sentence.startswith(f"{name}: write the port as a number from 1 to 65535")
    assert "p4ssw0rd" not in sentence


@pytest.mark.parametrize("name", ["REDIS_URL", "HUB_BROKER_URL"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize(
    ("rest", "fix"),
    [
        (":p4ssw0rd@127.0.0.1:6379/notanumber", "write the database as a number"),
        (":p4ssw0rd@127.0.0.1:6379/-1", "write the database as a number"),
        (":p4ssw0rd@127.0.0.1:6379/0/1", "write the database as a number"),
        (":p4ssw0rd@127.0.0.1:6379/0/", "write the database as a number"),
        (":p4ssw0rd@127.0.0.1/" + "9" * 5000, "write the database as a number"),
        (":p4ssw0rd@127.0.0.1:6379?db=x", "write the database behind the host instead of ?db="),
        (":p4ssw0rd@127.0.0.1:6379/0?db=1", "write the database behind the host instead of ?db="),
        (":p4ssw0rd[@127.0.0.1:6379/0", "write what is no letter or digit of the password as %XX"),
        (":p4ssw0rd@", "name the host"),
        (":p4ssw0rd@:6379/0", "name the host"),
        ("/0", "name the host"),
        ("", "name the host"),
    ],
)
def test_a_redis_that_celery_or_redis_could_not_find_is_told_without_repeating_the_url(
    name: str, scheme: str, rest: str, fix: str
) -> None:
    (sentence,) = told(None, ENV | {name: f"{scheme}://{rest}"})
    assert sentence.startswith(f"{name}: {fix}")
    assert sentence.endswith("as in redis://127.0.0.1:6379/0")
    assert "p4ssw0rd" not in sentence


def test_a_redis_of_a_socket_is_told_which_urls_there_are() -> None:
    (sentence,) = told(None, ENV | {"REDIS_URL": "unix://:p4ssw0rd@/run/redis.sock?db=x"})
    assert sentence == "REDIS_URL: must begin with redis:// or rediss://: redis://127.0.0.1:6379/0"


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://h/", "redis://[::1]:6379/15", "rediss://u:p%2Fw@h:6380/0?ssl_cert_reqs=none"],
)
def test_a_redis_is_taken_as_it_is(url: str) -> None:
    assert Settings.load(env=ENV | {"REDIS_URL": url}).redis_url == url


def test_a_database_of_several_hosts_is_taken_as_it_is() -> None:
    url = "postgresql://hub:p4ssw0rd@one:5432,[::1]:5433,three/hub"
    assert Settings.load(env=ENV | {"DATABASE_URL": url}).database_url == url


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, written: Written) -> None:
    missing = tmp_path / "none.yaml"
    assert told(missing)[0] == (
        f"settings file is '{missing}': cannot be read (No such file or directory); set HUB_QUEUES to the right file"
    )
    path = written("x")
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in told(path)[0]
    path.write_bytes(b"#" * 1_100_000)
    assert "is larger than" in told(path)[0]


def test_the_environment_chooses_file_names_and_addresses(written: Written) -> None:
    path = written(replaced(("layout: per_store", "layout: pooled")))
    env = {
        **ENV,
        "HUB_QUEUES": str(path),
        "HUB_BROKER_URL": "amqp://guest:guest@127.0.0.1//",
        "HUB_PREFIX": "blue",
        "HUB_SCHEMA": "cell_1",
        "HUB_PUBLIC_URL": "https://hub.example.com/in/",
    }
    loaded = Settings.load(env=env)
    assert loaded.layout == "pooled"
    assert loaded.broker_url == "amqp://guest:guest@127.0.0.1//"
    assert (loaded.prefix, loaded.schema) == ("blue", "cell_1")
    assert loaded.public_url == "https://hub.example.com/in"


@pytest.mark.parametrize(
    "url", ["hub.example.com", "ftp://x", "http://", "http://u:very-secret@x", "http://x:port", "http://x/?a=1"]
)
def test_a_public_url_that_nobody_could_reach_is_refused_without_repeating_it(url: str) -> None:
    problems = told(None, {**ENV, "HUB_PUBLIC_URL": url})
    assert problems[0].startswith("HUB_PUBLIC_URL: write an http(s) URL")
    assert "very-secret" not in problems[0]


def test_passwords_of_urls_are_not_shown_with_the_settings() -> None:
    loaded = Settings.load(env={key: value.replace("127", "u:very-secret@127") for key, value in ENV.items()})
    assert "very-secret" not in repr(loaded)
    assert "very-secret" in loaded.redis_url


def test_settings_cannot_be_changed_afterwards() -> None:
    loaded = Settings.load(env=ENV)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.layout = "pooled"  # type: ignore[misc]  # the point of the test
    with pytest.raises(ValueError, match="frozen"):
        loaded.vtex.rate = 1.0  # type: ignore[misc]  # the point of the test


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


PLACES = [
    "layout",
    "pools",
    "pools.orders",
    "pools.orders.threads",
    "contexts.stock",
    "contexts.stock.plan",
    "contexts.stock.cap",
    "contexts.stock.pool",
    "plans",
    "plans.demo",
    "plans.demo.delays",
    "circuit",
    "vtex.rate",
]


@settings(max_examples=60, deadline=None)
@given(place=st.sampled_from(PLACES), value=json_values)
def test_no_value_anywhere_ends_in_anything_but_bad_input(
    tmp_path_factory: pytest.TempPathFactory, place: str, value: object
) -> None:
    tree = yaml.safe_load(QUEUES_FILE.read_text())
    *above, last = place.split(".")
    block = tree
    for part in above:
        block = block[part]
    block[last] = value
    path = tmp_path_factory.mktemp("any") / "queues.yaml"
    path.write_text(json.dumps(tree))
    try:
        loaded = Settings.load(path, ENV)
    except BadInput:
        return
    assert loaded.contexts["stock"].pool in loaded.pools


def test_the_spool_is_in_the_hubs_directory_unless_another_folder_is_named() -> None:
    assert Settings.load(env=ENV).spool == Path(".hub/spool").absolute()
    assert Settings.load(env=ENV | {"HUB_DIRECTORY": "/srv/hub"}).spool == Path("/srv/hub/spool")
    assert Settings.load(env=ENV | {"HUB_DIRECTORY": "/srv/hub", "HUB_SPOOL": "/var/x"}).spool == Path("/var/x")
    assert Settings.load(env=ENV | {"HUB_SPOOL_BYTES": "2000000"}).spool_bytes == 2_000_000


@pytest.mark.parametrize("number", ["-1", "1.5", "1000", "9" * 30, "many"])
def test_a_size_of_the_spool_that_makes_no_sense_is_refused(number: str) -> None:
    with pytest.raises(BadInput) as refused:
        Settings.load(env=ENV | {"HUB_SPOOL_BYTES": number})
    (problem,) = refused.value.problems
    assert problem.field == "HUB_SPOOL_BYTES"
    assert "from 1048576 to" in problem.fix
