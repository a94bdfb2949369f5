"""How the command line answers mistakes: one sentence each, the right exit code, no traceback."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from hub.cli.catalogue import row_sentence
from hub.cli.letters import moment
from hub.cli.talk import Missing, age, exit_code
from hub.db import StorageAway, StorageRefused
from hub.errors import AuthLost, BadInput, CircuitOpen, Conflict, HubError, NotFound, Problem, Unavailable
from hub.reports import KeyState
from tests.cli.conftest import Hub, keyboard


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput([Problem("input", fix="x")]), 2),
        (Missing([Problem("input", fix="x")]), 3),
        (NotFound("x"), 3),
        (AuthLost("x", side="vtex", version=1), 4),
        (Conflict("x"), 5),
        (Unavailable("x"), 6),
        (CircuitOpen("x", side="vtex", wait=1.0), 6),
        (StorageAway("x"), 6),
        (StorageRefused("x"), 1),
        (HubError("x"), 1),
    ],
)
def test_every_kind_of_end_has_its_exit_code(error: HubError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0s"), (75, "1m15s"), (7260, "2h01m"), (100_000, "1d03h"), (-5, "0s")]
)
def test_ages_are_short(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


def row(*, pending: float | None) -> KeyState:
    asked: tuple[str, str, str, None, int, int] = ("price", "s", "failing", None, 2, 1)
    return KeyState(*asked, pending, 60.0, 5.0, (), None, None, None, None, None, None)


def test_a_demand_whose_age_nobody_knows_is_told_without_one() -> None:
    assert "asked 7s ago" in row_sentence(row(pending=7.0))
    assert "asked" not in row_sentence(row(pending=None))


def test_moments_without_a_zone_are_utc() -> None:
    assert moment("--since", "2026-11-20T14:05") == "2026-11-20T14:05:00+00:00"
    assert moment("--since", "2026-11-20T14:05-03:00") == "2026-11-20T14:05:00-03:00"
    assert moment("--since", "") is None
    with pytest.raises(BadInput):
        moment("--since", "yesterday")


def test_a_postgresql_that_is_away_is_one_sentence_and_may_be_tried_again(env: dict[str, str]) -> None:
    gone = keyboard({**env, "DATABASE_URL": "postgresql://hub:secret-word@127.0.0.1:9/hub"})
    said = gone("store", "list", code=6)
    assert said.lines[-1].startswith("PostgreSQL ")
    assert "secret-word" not in said.out + said.talk
    for words in (("store", "list"), ("queues",), ("db", "upgrade"), ("db", "upgrade", "--dry-run"), ("db", "check")):
        (line,) = gone(*words, code=6).lines
        assert line.endswith("check DATABASE_URL (it names 127.0.0.1:9) and that the server runs there")
        assert "secret-word" not in line
    told = gone("queues", "--json", code=6).json["error"]
    assert told["exit_code"] == 6
    assert told["problems"][0]["fix"].startswith("PostgreSQL ")


def test_no_library_warns_beside_the_sentence_about_a_postgresql_that_is_away(env: dict[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "hub.cli", "queues"],
        env={**os.environ, **env, "DATABASE_URL": "postgresql://hub:secret-word@127.0.0.1:9/hub"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (6, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("PostgreSQL cannot be reached")


def test_a_database_without_tables_says_which_command_makes_them(env: dict[str, str], empty_database: str) -> None:
    bare = keyboard({**env, "DATABASE_URL": empty_database})
    assert bare("store", "list", code=2).lines == ["schema is 'hub': has no tables of the hub yet; run: hub db upgrade"]
    assert bare("db", "check", code=1).out.startswith("has not run: 0001_states.sql")
    assert bare("db", "upgrade", "--dry-run", "--json").json["would_run"][0] == "0001_states.sql"
    assert bare("db", "current", "--json").json["migrations"][0]["ran_at"] is None
    assert bare("db", "upgrade", "--json").json["ran"][0] == "0001_states.sql"
    assert bare("db", "upgrade").out == "up to date\n"
    bare("db", "check")
    assert bare("db", "current", "--json").json["migrations"][0]["ran_at"].endswith("Z")


def test_nothing_runs_here_and_nothing_is_set(tmp_path: Path) -> None:
    nowhere = keyboard({"REDIS_URL": "", "DATABASE_URL": "", "HUB_DIRECTORY": str(tmp_path)})
    (line,) = nowhere("store", "list", code=2).lines
    assert "start `hub up`" in line
    assert "DATABASE_URL" in nowhere("db", "upgrade", code=2).talk


def test_a_missing_key_is_told_with_the_command_that_makes_one(env: dict[str, str], tmp_path: Path) -> None:
    keyless = keyboard({**env, "HUB_KEY": "", "HUB_KEY_FILE": ""})
    assert "HUB_KEY" in keyless("store", "list", code=2).talk
    assert "it opens" in keyless("key", "create").out.lower()
    keyless("store", "list")  # found where it was made
    assert "exists already" in keyless("key", "create", code=2).talk


def test_a_key_is_made_where_the_environment_says(env: dict[str, str], tmp_path: Path) -> None:
    wanted = tmp_path / "secrets" / "key"
    named = keyboard({**env, "HUB_KEY": "", "HUB_KEY_FILE": str(wanted)})
    named("key", "create")
    assert wanted.stat().st_mode & 0o777 == 0o600
    assert wanted.parent.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "hub").exists()
    named("store", "list")


@pytest.mark.parametrize("words", ["store show acme-mkt", "sku explain acme-mkt 1", "store list", "intake"])
def test_a_key_that_cannot_be_read_is_wrong_use_and_no_missing_store(env: dict[str, str], words: str) -> None:
    keyless = keyboard({**env, "HUB_KEY": "", "HUB_KEY_FILE": "/nope"})
    (line,) = keyless(*words.split(), code=2).lines
    assert line == "HUB_KEY_FILE is '/nope': cannot be read (No such file or directory)"


def key_look(env: dict[str, str], **changes: str) -> dict[str, str]:
    told = keyboard({**env, "HUB_KEY": "", **changes})("doctor", "--no-stores", "--json", code=1).json
    (look,) = (look for look in told["checks"] if look["what"] == "key")
    return dict(look)


def test_the_doctor_has_a_key_made_only_where_there_is_none(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert key_look(env)["do"] == "make one: hub key create"
    assert key_look(env, HUB_KEY_FILE=str(file))["do"] == "name the right file, or make this one: hub key create"
    file.write_text("no key at all")
    file.chmod(0o640)
    assert key_look(env, HUB_KEY_FILE=str(file))["do"] == f"chmod 600 {file}"
    file.chmod(0o600)
    assert key_look(env, HUB_KEY_FILE=str(file))["do"] == "name the file with the right key"
    for elsewhere in (tmp_path, file / "key"):
        assert key_look(env, HUB_KEY_FILE=str(elsewhere))["do"] == "name a file that this user can read"
    assert key_look(env, HUB_KEY="x")["do"] == "set HUB_KEY to the key of the other processes"


def test_the_doctor_tells_a_wrong_key_beside_wrong_settings(env: dict[str, str]) -> None:
    look = key_look(env, HUB_KEY_FILE="/nope", HUB_PLAN="nonsense")
    assert look["found"] == "HUB_KEY_FILE is '/nope': cannot be read (No such file or directory)"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stroe"], "No such command 'stroe'. Did you mean 'store'?"),
        (["queues", "--jsno"], "No such option: --jsno"),
        (["store", "show"], "Missing argument 'STORE'."),
        (["worker", "--pool", "offer"], "--pool is 'offer': is no pool; did you mean 'offers'?"),
        (["worker", "--lane", "last"], "--lane is 'last': use first, more or both"),
        (["worker", "--shard", "5", "--lane", "first"], "--shard is '5': write <number>/<of how many>, such as 1/4"),
        (["worker", "--shard", "1/4", "--lane", "first"], "--shard is '1/4': pools.orders.shards of the settings is 1"),
        (["intake", "--port", "99999"], "--port is '99999': write a whole number from 0 to 65535"),
        (["up", "--workers", "x"], "--workers is 'x': write a whole number from 1 to 64"),
        (["gates", "shut", "x", "--minutes", "y"], "--minutes is 'y': write a number from 0.01 to 525600"),
        (["store", "add", "x", "--sales-channel", "abc"], "--sales-channel is 'abc': write a whole number"),
        (["simulate", "amazon"], "what is 'amazon': simulate vtex or marketplace"),
        (["sku", "explain", "x", "1", "--language", "fr"], "--language is 'fr': use one of en, pt, es"),
        (["sku", "resend", "x", "1", "--context", "load"], "--context is 'load': use one of catalog, price, stock"),
        (["sku", "explain", "x", "abc"], "SKU is 'abc': write a VTEX SKU id: a whole number from 1 to 2147483647"),
        (["sku", "resend", "x", "1", "0"], "SKU is '0': write a VTEX SKU id"),
        (["sku", "resend", "x", "--", "-5"], "SKU is '-5': write a VTEX SKU id"),
        (["sku", "resend", "x", "2147483648"], "SKU is '2147483648': write a VTEX SKU id"),
        (["load", "start", "x", "--sku", "1", "--sku", "1e5"], "SKU is '1e5': write a VTEX SKU id"),
        (["mappings", "import", "x", "/nowhere.csv"], "FILE is '/nowhere.csv': cannot be read (No such file"),
    ],
)
def test_a_mistake_is_one_clear_sentence(hub: Hub, words: list[str], sentence: str) -> None:
    said = hub(*words, code=2)
    assert sentence in said.talk
    assert "Traceback" not in said.talk
    assert said.out == ""


SHAPE = '{"vtex": {"app_key": "…", "app_token": "…"}, "marketplace": {"token": "…"}}'


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", f"credentials on standard input: nothing came on standard input; write {SHAPE} to it, or name a file"),
        ("{nonsense", f"credentials on standard input: is no JSON (line 1); write {SHAPE}"),
        ("[" * 200_000, f"credentials on standard input: is no JSON (nested too deeply); write {SHAPE}"),
        ("[]", f"credentials on standard input: must be a JSON object; write {SHAPE}"),
        ('{"vtex": {"app_key": "k"}, "amazon": {}}', "credentials.amazon: unknown; write vtex and marketplace"),
    ],
)
def test_credentials_that_cannot_be_read_are_never_repeated(hub: Hub, given: str, sentence: str) -> None:
    words = ["--account", "acme", "--affiliate", "MKT", "--sales-channel", "1", "--marketplace", "sandbox-lot"]
    said = hub("store", "add", "acme-mkt", *words, stdin=given, code=2)
    assert sentence in said.lines
    assert "nonsense" not in said.talk


def test_credentials_that_are_not_there_are_told_beside_all_else_that_is_wrong(hub: Hub) -> None:
    words = ["--account", "acme", "--affiliate", "AEI", "--sales-channel", "0", "--marketplace", "sandbox-lot"]
    said = hub("store", "add", "acme-mkt", *words, "--credentials", "/nope", code=2)
    assert [line.split()[0].rstrip(":") for line in said.lines] == ["affiliate", "sales_channel", "--credentials"]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000])
@pytest.mark.parametrize("option", ["--settings", "--credentials"])
def test_a_file_nested_too_deeply_is_no_json(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.json").write_text(text)
    words = ["--account", "acme", "--affiliate", "MKT", "--sales-channel", "1", "--marketplace", "sandbox-lot"]
    (line,) = hub("store", "add", "acme-mkt", *words, option, "deep.json", code=2).lines
    assert line.startswith(f"{option} is 'deep.json': is no JSON (nested too deeply); write ")


def test_settings_of_a_store_are_checked_as_a_whole(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "store.json"
    file.write_text(json.dumps({"pricing": {"markup": "-1"}, "colour": "red", "order_policy": "lax"}))
    words = ["--account", "acme", "--affiliate", "MKT", "--sales-channel", "1", "--marketplace", "sandbox-lot"]
    said = hub("store", "add", "acme-mkt", *words, "--settings", str(file), code=2)
    assert any("colour" in line and "unknown key" in line for line in said.lines)
    assert any("order_policy" in line for line in said.lines)


@pytest.mark.parametrize("group", ["load", "reconcile"])
def test_help_of_a_group_that_takes_a_store_says_where_its_options_are(hub: Hub, group: str) -> None:
    assert f"hub {group} start --help" in " ".join(hub(group, "--help").out.split())
    assert "--follow" in hub(group, "start", "--help").out


def test_a_store_kept_with_wilder_settings_is_shown_and_configured(hub: Hub, env: dict[str, str]) -> None:
    words = ["--account", "acme", "--affiliate", "MKT", "--sales-channel", "1", "--marketplace", "sandbox-sync"]
    secrets = json.dumps({"vtex": {"app_key": "k", "app_token": "t"}, "marketplace": {"token": "t"}})
    hub("store", "add", "acme-mkt", *words, "--no-check", stdin=secrets)
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("""update hub.stores set settings = '{"pricing": {"conversion": "1e-999"}}'""")
    fault = "acme-mkt settings.pricing.conversion is '1e-999': write a factor from 0.000001 to 1000000"
    assert fault in hub("store", "show", "acme-mkt").lines
    assert hub("store", "check", "acme-mkt", code=2).lines == [fault]
    changed, compared = hub("store", "configure", "acme-mkt", "-", stdin="{}").out.splitlines()
    assert changed == "acme-mkt: changed"
    assert "hub reconcile list" in compared
    assert hub("store", "configure", "acme-mkt", "-", stdin="{}").out == "acme-mkt: nothing differs\n"


# ---------------------------------------------------------------- as a process of its own


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hub.cli", *words],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_answers_at_once_and_imports_nothing_slow() -> None:
    spent = []
    for _ in range(3):
        before = os.times().children_user
        assert "Processes:" in command("--help").stdout
        spent.append(os.times().children_user - before)
    assert min(spent) < 0.45  # processor time; the machine may be busy
    slow = ["psycopg", "pydantic", "celery", "rich", "yaml"]
    probe = f"import hub.cli, sys; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_terminal_gets_a_table_and_is_asked(env: dict[str, str], hub: Hub) -> None:
    """On a real pseudo terminal: the plan, the question, the answer no."""
    words = ["--account", "acme", "--affiliate", "MKT", "--sales-channel", "1", "--marketplace", "sandbox-lot"]
    secrets = {"vtex": {"app_key": "k", "app_token": "t"}, "marketplace": {"token": "x"}}
    hub("store", "add", "acme-mkt", *words, "--no-check", stdin=json.dumps(secrets))
    code, said = on_terminal(env, "store", "remove", "acme-mkt", answer=b"n\n")
    assert code == 2
    assert "leaves for good" in said
    assert "nothing was changed" in said
    code, said = on_terminal({**env, "NO_COLOR": "1"}, "store", "list", answer=b"")
    assert code == 0
    assert "acme-mkt" in said
    assert "\t" not in said
    assert "\x1b[3" not in said


def on_terminal(env: dict[str, str], *words: str, answer: bytes) -> tuple[int, str]:
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover – the child becomes the command
        os.environ.update(env, TERM="xterm")
        os.execv(sys.executable, [sys.executable, "-m", "hub.cli", *words])  # noqa: S606 – our own command
    said, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # the child closed its side
            break
        if not read:
            break
        said += read
        if b"[y/N]" in said and answer:
            os.write(terminal, answer)
            answer = b""
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), said.decode(errors="replace")
