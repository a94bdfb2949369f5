"""Processes start together, are kept alive, and end together in an order that loses no work; all of them are real."""

import asyncio
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.runtime.embedded import scratch
from hub.runtime.supervisor import Process, ProcessDied, Stage, Supervisor, terminal_echo
from tests.cell import held_place
from tests.runtime.supervised import python
from tests.runtime.waiting import runs, until

ROOT = Path(__file__).parents[2]
FOREVER = "import time; print('up', flush=True); time.sleep(600)"
SERVING = """
import http.server, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Answer.asked += 1
        self.send_response(200 if Answer.asked > 2 else 503)
        self.end_headers()
    def log_message(self, *a): print("asked", Answer.asked, flush=True)
http.server.HTTPServer.allow_reuse_port = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


class Lines(list[tuple[str, str]]):
    """An echo that remembers."""

    def __call__(self, name: str, line: str) -> None:
        self.append((name, line))

    def of(self, name: str) -> list[str]:
        return [line for who, line in self if who == name]


async def eventually(truth: Callable[[], object], *, within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not truth():
            await asyncio.sleep(0.01)


def test_a_process_is_ready_when_its_address_answers_200_and_not_before(unused_port: int) -> None:
    lines = Lines()

    async def story() -> None:
        url = f"http://127.0.0.1:{unused_port}/readyz"
        async with Supervisor([python("web", SERVING, str(unused_port), ready=url)], echo=lines) as supervisor:
            await supervisor.wait_ready()
            assert supervisor.is_ready("web")
            await eventually(lambda: "asked 3" in lines.of("web"))

    asyncio.run(story())


def test_a_killed_process_is_started_again_with_another_pid() -> None:
    async def story() -> None:
        async with Supervisor([python("worker", FOREVER)], echo=Lines()) as supervisor:
            await supervisor.wait_ready()
            first = supervisor.pid("worker")
            supervisor.kill("worker")
            await supervisor.wait_ready("worker")
            assert supervisor.pid("worker") not in {None, first}
            assert supervisor.starts("worker") == 2

    asyncio.run(story())


def test_delays_before_a_restart_grow() -> None:
    lines = Lines()

    async def story() -> None:
        async with Supervisor([python("flaky", "print('hello')")], echo=lines):
            await eventually(lambda: sum("again" in line for line in lines.of("hub")) >= 3)

    asyncio.run(story())
    delays = [float(found[1]) for line in lines.of("hub") if (found := re.search(r"again in ([\d.]+) s", line))]
    assert delays[:3] == [0.5, 1.0, 2.0]


def test_a_needed_process_that_dies_for_good_stops_the_others_and_is_named_in_one_sentence() -> None:
    pids: list[int | None] = []
    failing = python("intake", "import sys; print('port 80 is taken'); sys.exit(3)", ready="http://127.0.0.1:9/")

    async def story() -> None:
        async with Supervisor([python("worker", FOREVER)], echo=Lines()) as supervisor:
            await supervisor.wait_ready()
            pids.append(supervisor.pid("worker"))
            supervisor.add(failing)
            await supervisor.until_stopped()

    with pytest.raises(ProcessDied) as death:
        asyncio.run(story())
    sentence = "intake ended with exit code 3 before it was ready; its last line was: port 80 is taken"
    assert str(death.value) == sentence
    assert pids[0]
    assert not runs(pids[0])


def test_a_process_that_never_becomes_ready_is_killed_and_named() -> None:
    async def story() -> None:
        slow = python("slow", FOREVER, ready=lambda _: False, ready_within=0.3)
        async with Supervisor([slow], echo=Lines()) as supervisor:
            await supervisor.wait_ready()

    with pytest.raises(ProcessDied, match=r"^slow was not ready within 0.3 s"):
        asyncio.run(story())


def test_a_program_that_is_missing_is_named() -> None:
    async def story() -> None:
        async with Supervisor([Process(name="worker", argv=["/nonexistent/celery"])], echo=Lines()) as supervisor:
            await supervisor.wait_ready()

    with pytest.raises(ProcessDied, match=r"worker could not be started: .*No such file"):
        asyncio.run(story())


def test_a_process_that_is_not_needed_may_die() -> None:
    lines = Lines()

    async def story() -> None:
        optional = python("flower", "raise SystemExit('no module')", needed=False, restart=False)
        async with Supervisor([python("worker", FOREVER), optional], echo=lines) as supervisor:
            await supervisor.wait_ready()
            await eventually(lambda: any("going on without it" in line for line in lines.of("hub")))
            assert supervisor.pid("worker")

    asyncio.run(story())


def test_the_body_s_own_error_is_not_hidden_and_everything_is_stopped() -> None:
    pids: list[int | None] = []

    async def story() -> None:
        async with Supervisor([python("worker", FOREVER)], echo=Lines()) as supervisor:
            await supervisor.wait_ready()
            pids.append(supervisor.pid("worker"))
            raise LookupError("the story went wrong")

    with pytest.raises(LookupError, match="went wrong"):
        asyncio.run(story())
    assert pids[0]
    assert not runs(pids[0])


def test_stages_end_one_after_the_other() -> None:
    ended: list[str] = []
    program = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (time.sleep(0.1), print('bye', flush=True), sys.exit(0)))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )

    def echo(name: str, line: str) -> None:
        if line == "bye":
            ended.append(name)
        if line == "up":
            up.add(name)

    up: set[str] = set()

    async def story() -> None:
        stages = {"servers": Stage.VALKEY, "workers": Stage.WORKERS, "doors": Stage.DOORS}
        processes = [python(name, program, stop_stage=stage) for name, stage in stages.items()]
        async with Supervisor(processes, echo=echo):
            await eventually(lambda: len(up) == 3)

    asyncio.run(story())
    assert ended == ["doors", "workers", "servers"]


def test_secrets_travel_by_environment_only() -> None:
    lines = Lines()
    process = python("worker", "import os; print('got', os.environ['SECRET'])", env={"SECRET": "s3cret"}, restart=False)

    async def story() -> None:
        async with Supervisor([process], echo=lines) as supervisor:
            await supervisor.until_stopped()

    with pytest.raises(ProcessDied):
        asyncio.run(story())
    assert lines.of("worker") == ["got s3cret"]
    assert "s3cret" not in repr(process)


def test_lines_go_to_files_that_stay_bounded_instead_of_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chatty = "print(('x' * 99 + '\\n') * 220_000 + 'the end', flush=True); import time; time.sleep(600)"

    async def story() -> None:
        async with Supervisor([python("worker", chatty)], logs=tmp_path):
            log = tmp_path / "worker.log"
            await eventually(lambda: log.exists() and b"the end" in log.read_bytes()[-100:], within=60)

    asyncio.run(story())
    assert capsys.readouterr().out == ""
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"worker.log", "worker.log.1"}
    assert max(sizes.values()) < 11 * 1024 * 1024


def test_an_endless_line_and_bytes_that_are_no_text_do_not_stop_the_reading() -> None:
    lines = Lines()
    program = (
        "import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\xff\\n' + b'after\\n'); sys.stdout.flush(); input()"
    )

    async def story() -> None:
        async with Supervisor([python("worker", program, restart=False, needed=False)], echo=lines):
            await eventually(lambda: "after" in lines.of("worker"))

    asyncio.run(story())
    assert max(len(line) for line in lines.of("worker")) <= 8 * 1024


def test_the_terminal_shows_names_and_uses_colours_only_when_it_is_one() -> None:
    plain = io.StringIO()
    terminal_echo(plain)("intake", "ready")
    assert plain.getvalue() == "intake     | ready\n"


def test_a_closed_terminal_does_not_stop_the_stopping() -> None:
    gone = io.StringIO()
    echo = terminal_echo(gone)
    gone.close()
    echo("intake", "nobody reads this")  # would raise ValueError, and the supervisor would stop stopping
    assert gone.closed


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch("hub-supervised-") as made:
        yield made


class Running:
    """A supervisor in a process of its own."""

    def __init__(self, story: str, directory: Path) -> None:
        self.output = directory / "output"
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.runtime.supervised", story, str(directory)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def says(self, text: str) -> bool:
        return text in self.output.read_text()

    def pids(self) -> list[int]:
        """Every process below it, grandchildren and the guardian too."""
        shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = dict(tuple(map(int, line.split())) for line in shown.splitlines())
        found = {self.popen.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {self.popen.pid})


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[[str], Running]]:
    started: list[Running] = []

    def start(story: str) -> Running:
        started.append(Running(story, directory))
        return started[-1]

    yield start
    for running in started:
        with contextlib.suppress(ProcessLookupError):
            running.popen.kill()
        running.popen.wait()


def test_ctrl_c_lets_the_worker_finish_before_its_servers_stop(
    directory: Path, start: Callable[[str], Running]
) -> None:
    running = start("whole")
    until(lambda: running.says("worker has pid") and running.says("working"), within=60, what="the start")
    pids = running.pids()
    assert len(pids) >= 5
    running.popen.send_signal(signal.SIGINT)
    assert running.popen.wait(60) == 0
    assert running.says("finished what it was doing")
    assert (directory / "database-at-end").read_text() == "True"
    assert "Traceback" not in running.output.read_text()
    assert [pid for pid in pids if runs(pid)] == []


def test_a_second_ctrl_c_kills_everything_at_once(start: Callable[[str], Running]) -> None:
    running = start("stubborn")
    until(lambda: running.says("ignoring"), within=60, what="the start")
    pids = running.pids()
    running.popen.send_signal(signal.SIGINT)
    until(lambda: running.says("SIGINT: stopping"), what="the first answer")
    began = time.monotonic()
    running.popen.send_signal(signal.SIGINT)
    assert running.popen.wait(60) == 0
    assert time.monotonic() - began < 5
    assert [pid for pid in pids if runs(pid)] == []


def test_kill_9_of_the_supervisor_leaves_no_process_behind(start: Callable[[str], Running]) -> None:
    running = start("whole")
    until(lambda: running.says("worker has pid") and running.says("working"), within=60, what="the start")
    pids = running.pids()
    assert len(pids) >= 5
    running.popen.send_signal(signal.SIGKILL)
    running.popen.wait()
    until(lambda: not any(runs(pid) for pid in pids), within=60, what="the end of every process")


def test_a_database_that_cannot_come_back_ends_the_run_with_one_sentence(
    directory: Path, start: Callable[[str], Running]
) -> None:
    running = start("whole")
    until(lambda: running.says("worker has pid") and running.says("working"), within=60, what="the start")
    pids = running.pids()
    found = re.search(r"postgres has pid (\d+)", running.output.read_text())
    assert found
    (directory / "postgres" / "data" / "PG_VERSION").write_text("12\n")
    os.kill(int(found[1]), signal.SIGKILL)
    assert running.popen.wait(60) == 1
    assert re.search(r"postgres ended with exit code 1, the 3\. time in a row", running.output.read_text())
    assert [pid for pid in pids if runs(pid)] == []


def test_a_killed_database_comes_back_by_itself(start: Callable[[str], Running]) -> None:
    running = start("whole")
    until(lambda: running.says("worker has pid"), within=60, what="the start")
    found = re.search(r"postgres has pid (\d+)", running.output.read_text())
    assert found
    os.kill(int(found[1]), signal.SIGKILL)
    ready = "database system is ready to accept connections"
    until(lambda: running.output.read_text().count(ready) == 2, within=60, what="the second start")
    assert running.popen.poll() is None


@pytest.fixture
def unused_port() -> Iterator[int]:
    """Nobody else is given it until the test has ended."""
    with held_place() as place:
        yield place.getsockname()[1]
