"""Flower as a real process on a real broker: a password always, read-only, no secret on any page."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from hub.errors import BadInput
from hub.runtime.embedded import Valkey
from hub.settings import Settings
from tasks.app import ATTEMPT, make_app
from tasks.flower import password

ROOT = Path(__file__).resolve().parent.parent
SECRET = "sesame-open:thyself"
FLOWER = "from hub.settings import Settings; from tasks.flower import run; raise SystemExit(run(Settings.load(), 0{}))"
WORKER = """
from hub.settings import Settings
from tasks.app import ATTEMPT, make_app, queue
from tasks.worker import KeysDied

app = make_app(Settings.load())

@app.task(name=ATTEMPT, ignore_result=True, acks_late=True, throws=(KeysDied,))
def attempt(slug, context):
    if context == "stock":
        raise KeysDied("acme-mkt.stock: 47 done, 1 dead: 812")
    return "acme-mkt.price: 47 done, 2 refused"

app.conf.task_queues = [queue("control.0")]
app.Worker(hostname="offers@test", pool_cls="threads", concurrency=1, task_events=True, loglevel="WARNING").start()
"""


def until(what: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except requests.ConnectionError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


@contextmanager
def started(code: str, env: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            env=env,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise


@dataclass
class Flower:
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.auth = ("hub", SECRET)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(f"{self.url}{path}", timeout=20, **options)

    def tasks(self) -> list[dict[str, Any]]:
        columns = {"draw": 1, "start": 0, "length": 50, "order[0][column]": 0, "columns[0][data]": "name"}
        return list(self.get("/tasks/datatable", params=columns).json()["data"])


@contextmanager
def flower(env: dict[str, str], log: Path, options: str = "") -> Iterator[Flower]:
    with started(FLOWER.format(options), env, log) as child:
        found = until(lambda: child.poll() is not None or re.search(r"listens on (http://\S+),", log.read_text()))
        assert not isinstance(found, bool), log.read_text()
        one = Flower(found[1], child, log)
        yield one
        one.session.close()


@pytest.fixture(scope="module")
def env(valkey: Valkey) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "REDIS_URL": valkey.url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",  # Flower needs none
        "HUB_PREFIX": f"flower{os.getpid()}",
        "HUB_FLOWER_PASSWORD": SECRET,
        "FLOWER_UNAUTHENTICATED_API": "true",  # of no avail
        "FLOWER_BASIC_AUTH": "",
    }


@pytest.fixture(scope="module")
def running(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower with a worker that did one attempt and had a key die in another."""
    logs = tmp_path_factory.mktemp("flower")
    settings = Settings.load(env=env)
    with started(WORKER, env, logs / "worker.log"), flower(env, logs / "flower.log") as one:
        until(lambda: one.get("/api/workers?refresh=1").json())
        with make_app(settings) as app:
            for context in ("price", "stock"):
                app.send_task(ATTEMPT, args=("acme-mkt", context), queue="control.0")
        until(lambda: {task["state"] for task in one.tasks()} == {"SUCCESS", "FAILURE"})
        yield one


PAGES = (
    "/",
    "/workers",
    "/tasks",
    "/broker",
    "/worker/offers@test",
    "/api/workers",
    "/api/tasks",
    "/api/queues/length",
)


@pytest.mark.parametrize("path", [*PAGES, "/metrics", "/healthcheck", "/static/css/flower.css", "/logout", "/nowhere"])
@pytest.mark.parametrize("auth", [None, ("hub", "wrong-password"), ("other", SECRET), ("", "")])
def test_without_the_password_there_is_nothing(running: Flower, path: str, auth: tuple[str, str] | None) -> None:
    answer = requests.get(f"{running.url}{path}", auth=auth, timeout=10)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert len(answer.content) < 100


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Bearer abc", "Basic aHVi", "basic " + "A" * 20_000])
def test_a_header_that_cannot_be_read_is_no_password(running: Flower, header: str) -> None:
    assert requests.get(running.url, headers={"Authorization": header}, timeout=10).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/api/worker/shutdown/offers@test",
        "/api/worker/pool/grow/offers@test",
        "/api/worker/queue/cancel-consumer/offers@test",
        f"/api/task/async-apply/{ATTEMPT}",
        f"/api/task/send-task/{ATTEMPT}",
        "/api/task/revoke/0",
    ],
)
def test_with_the_password_nothing_can_be_changed(running: Flower, path: str) -> None:
    body = {"args": ["acme-mkt", "price"]}
    assert running.session.post(f"{running.url}{path}", json=body, timeout=10).status_code == 403
    assert requests.post(f"{running.url}{path}", json=body, timeout=10).status_code == 401


def test_the_tasks_tell_what_became_of_each_claim(running: Flower) -> None:
    tasks = {task["state"]: task for task in running.tasks()}
    assert tasks["SUCCESS"]["name"] == tasks["FAILURE"]["name"] == "hub.attempt"
    assert tasks["SUCCESS"]["args"] == "('acme-mkt', 'price')"
    assert tasks["SUCCESS"]["kwargs"] == "{}"
    assert "acme-mkt.price: 47 done, 2 refused" in tasks["SUCCESS"]["result"]
    assert "acme-mkt.stock: 47 done, 1 dead: 812" in tasks["FAILURE"]["exception"]
    page = running.get("/tasks").text
    assert "Result" in page
    assert "Exception" in page
    assert "47 done, 2 refused" in running.get(f"/task/{tasks['SUCCESS']['uuid']}").text


def test_no_page_shows_the_password_of_the_broker_or_of_flower(running: Flower, env: dict[str, str]) -> None:
    broker = urlsplit(env["REDIS_URL"]).password
    assert broker
    assert len(broker) > 8
    for path in (*PAGES, "/api/workers?refresh=1", "/metrics"):
        answer = running.get(path)
        assert answer.status_code == 200, path
        assert broker not in answer.text, path
        assert SECRET not in answer.text, path
    assert "control.0" in running.get("/broker").text
    assert broker not in running.log.read_text()


def test_the_password_is_no_argument_of_any_process(running: Flower) -> None:
    shown = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, check=True).stdout
    assert b"tasks.flower" in shown
    assert SECRET.encode() not in shown
    assert SECRET not in running.log.read_text()
    assert "the password is that of HUB_FLOWER_PASSWORD" in running.log.read_text()


def test_its_figures_are_open_only_when_asked_and_it_may_be_asked_to_write(env: dict[str, str], tmp_path: Path) -> None:
    with flower(env, tmp_path / "log", ", metrics=True, writable=True") as one:
        assert requests.get(f"{one.url}/metrics", timeout=10).status_code == 200
        assert requests.get(f"{one.url}/healthcheck", timeout=10).text == "OK"
        assert requests.get(f"{one.url}/metrics/", timeout=10).status_code == 401
        assert requests.get(f"{one.url}/api/workers", timeout=10).status_code == 401
        body = {"args": ["acme-mkt", "price"], "queue": "elsewhere"}
        sent = f"{one.url}/api/task/send-task/{ATTEMPT}"
        assert one.session.post(sent, data=json.dumps(body), timeout=10).status_code == 200
        foreign = {"Origin": "https://evil.example"}
        assert one.session.post(sent, data=json.dumps(body), headers=foreign, timeout=10).status_code == 403


def test_it_ends_at_once_even_while_the_broker_is_away(env: dict[str, str], tmp_path: Path) -> None:
    with flower({**env, "REDIS_URL": "redis://127.0.0.1:1/0"}, tmp_path / "log") as one:
        assert one.get("/workers").status_code == 200
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(10) == 0


def test_a_password_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made, where = password(env={"HUB_DIRECTORY": str(tmp_path / "hub")})
    file = tmp_path / "hub" / "flower-password"
    assert len(made) >= 20
    assert where == f"the password is in {file}"
    assert file.stat().st_mode & 0o777 == 0o600
    assert password(file, env={}) == (made, where)
    file.chmod(0o644)
    with pytest.raises(BadInput, match=f"chmod 600 {file}"):
        password(file, env={})


def test_a_short_password_and_a_place_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least 8 ASCII characters") as told:
        password(env={"HUB_FLOWER_PASSWORD": "short"})
    assert "'short'" not in str(told.value)
    with pytest.raises(BadInput, match="ASCII"):
        password(env={"HUB_FLOWER_PASSWORD": "öffne-dich"})
    with pytest.raises(BadInput, match="cannot be written"):
        password(tmp_path / "none" / "file", env={})
