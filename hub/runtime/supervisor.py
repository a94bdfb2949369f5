"""All processes of one machine start together, are kept alive, and end together, in an order that loses no work.

    async with Supervisor([postgres.process(), valkey.process()]) as supervisor:
        await supervisor.wait_ready()
        supervisor.add(Process("worker", [...], stop_stage=Stage.WORKERS))
        await supervisor.until_stopped()

- Ctrl-C, SIGTERM or SIGHUP interrupts the body of the `async with`; then the processes stop stage by stage, lowest
  first, and the `async with` ends quietly (`interrupted` is True). A second signal kills all of them at once.
- A process that ends by itself is started again with growing delays. One that is needed and cannot be kept alive stops
  everything: the body is interrupted and the `async with` raises `ProcessDied` with one sentence.
- SIGKILL of the supervisor leaves nothing behind (`hub/runtime/guardian.py`). That is tied to the thread that started
  the processes, so run the supervisor by `asyncio.run` in the main thread.
- Every process has a session of its own: the terminal's Ctrl-C reaches the supervisor only.
- Secrets go to a process through its environment, never through its arguments, which every user of the machine can see.
"""

import asyncio
import contextlib
import enum
import inspect
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TextIO
from urllib.parse import urlsplit

from hub.errors import HubError
from hub.runtime.guardian import Guardian, dies_with_parent

Echo = Callable[[str, str], None]
"""Receives a process's name and one line it wrote."""

Ready = str | Callable[[int], bool | Awaitable[bool]]
"""An http:// URL that answers 200, or a callable that is given the process id."""


class Stage(enum.IntEnum):
    """Who stops before whom: what lets work in, what does it, what it talks to, what keeps it."""

    DOORS = 10
    WORKERS = 20
    PEERS = 30
    POSTGRES = 40
    VALKEY = 50


class ProcessDied(HubError):  # noqa: N818 – named by what happens next, see hub.errors
    """A needed process could not be kept alive; the message is one sentence for the terminal."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process to keep alive. Times are seconds.

    `env` is added to the supervisor's own environment, or is all of it with `clean_env`. `ready` None means: ready when
    started. `prepare` runs (in a thread) before every start and may raise; `release` runs once, after the last end.
    A process that ends before it was ever ready is not started again: what is wrong then is wrong for good. Later ends
    are followed by a new start, up to `tries` times in a row (an end after 30 good seconds begins a new row).
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    clean_env: bool = False
    ready: Ready | None = None
    ready_within: float = 30.0
    stop_stage: int = Stage.DOORS
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within: float = 10.0
    restart: bool = True
    tries: int = 6
    needed: bool = True
    cwd: Path | None = None
    user: int | None = None
    group: int | None = None
    prepare: Callable[[], None] | None = None
    release: Callable[[], None] | None = None


def spawn(process: Process, output: int) -> subprocess.Popen[bytes]:
    """Start the process in its own session, its output to the file descriptor, bound to the life of this thread.

    On Linux the kernel kills it when this thread ends; a server (stage POSTGRES or later) gets its stop signal instead,
    so that it can close its files.
    """
    keeps_files = process.stop_stage >= Stage.POSTGRES
    return subprocess.Popen(
        list(process.argv),
        env=dict(process.env) if process.clean_env else {**os.environ, "PYTHONUNBUFFERED": "1", **process.env},
        cwd=process.cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=dies_with_parent(process.stop_signal if keeps_files else signal.SIGKILL),  # noqa: PLW1509 – calls prctl only, looked up before the fork
        user=process.user,
        group=process.group,
        extra_groups=None if process.user is None else [],
    )


class Supervisor:
    """Keeps processes alive from `async with` until its end. See the module's text for the promises.

    `echo` receives each line; without it lines go to the terminal, or, with `logs`, only to `<logs>/<name>.log` (two
    files of 10 MB at most per process).
    """

    def __init__(
        self, processes: Sequence[Process] = (), *, echo: Echo | None = None, logs: Path | None = None
    ) -> None:
        self._first = list(processes)
        self._logs = logs
        self._echo: Echo = echo if echo is not None else _to_nowhere if logs else terminal_echo()
        self._runs: dict[str, _Run] = {}
        self._hurry = asyncio.Event()
        self._reason: str | None = None
        self._body: asyncio.Task[object] | None = None
        self._cancelled_body = False
        self._closing = False
        self.interrupted = False
        """Whether a signal asked everything to stop."""

    async def __aenter__(self) -> Self:
        self._body = asyncio.current_task()
        self._guardian = Guardian()
        loop = asyncio.get_running_loop()
        for asked in _STOP_SIGNALS:
            loop.add_signal_handler(asked, self._on_signal, asked)
        if self._logs:
            self._logs.mkdir(parents=True, exist_ok=True)
        self.add(*self._first)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._closing = True
        ours = kind is asyncio.CancelledError and self._cancelled_body
        if self._cancelled_body and self._body is not None:
            self._body.uncancel()
        try:
            await self._stop_all()
        finally:
            loop = asyncio.get_running_loop()
            for asked in _STOP_SIGNALS:
                loop.remove_signal_handler(asked)
            self._guardian.close()
        if self._reason and (error is None or ours):
            raise ProcessDied(self._reason) from None
        return ours

    def add(self, *processes: Process) -> None:
        """Start these as well; does not wait. Raises ValueError for a name that is already taken."""
        for process in processes:
            if process.name in self._runs:
                raise ValueError(f"a process named {process.name!r} is already supervised")
            run = _Run(process, self._echo, self._logs)
            self._runs[process.name] = run
            run.task = asyncio.create_task(self._keep(run), name=f"keep {process.name}")

    async def wait_ready(self, *names: str) -> None:
        """Wait until these (default: all) processes are ready; one that is not needed and gave up is not waited for."""
        for run in [self._runs[name] for name in names or self._runs]:
            await run.until_ready()

    async def until_stopped(self) -> None:
        """Wait until a signal comes or a needed process dies; both interrupt this call."""
        await asyncio.Event().wait()

    def pid(self, name: str) -> int | None:
        """The process id; None while the process is not running."""
        popen = self._runs[name].popen
        return popen.pid if popen is not None and popen.returncode is None else None

    def starts(self, name: str) -> int:
        """How often the process has been started."""
        return self._runs[name].starts

    def is_ready(self, name: str) -> bool:
        """Whether the process runs and answered its readiness question."""
        return self._runs[name].ready.is_set()

    def kill(self, name: str, sent: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process and its children, to see what happens; nothing if it is not running."""
        if pid := self.pid(name):
            self._runs[name].ready.clear()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, sent)

    async def stop(self, name: str) -> None:
        """Stop one process for good, in its own gentle way, and forget its name."""
        run = self._runs[name]
        await self._stop(run)
        del self._runs[name]

    def say(self, line: str) -> None:
        """Write a line of the supervisor's own."""
        self._echo("hub", line)

    # – keeping one process alive

    async def _keep(self, run: "_Run") -> None:
        process, failures = run.process, 0
        while True:
            try:
                lasted, ending = await self._live(run)
            except Exception as error:  # noqa: BLE001 – whatever prevents a start ends in one sentence, below
                self._give_up(run, f"{process.name} could not be started: {error}")
                return
            if run.stopping:
                return
            failures = 1 if lasted > _STEADY_AFTER else failures + 1
            if not process.restart or not run.was_ready or failures > process.tries:
                when = "" if run.was_ready else " before it was ready"
                again = f", the {failures}. time in a row" if failures > process.tries else ""
                self._give_up(run, f"{process.name} {ending}{when}{again}{run.last_words()}")
                return
            delay = min(_FIRST_DELAY * 2 ** (failures - 1), _LONGEST_DELAY)
            self.say(f"{process.name} {ending}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)

    async def _live(self, run: "_Run") -> tuple[float, str]:
        """Run the process once; return how long it lasted and how it ended."""
        process = run.process
        if process.prepare:
            await asyncio.to_thread(process.prepare)
        reader, writer = os.pipe()
        try:
            run.popen = popen = spawn(process, writer)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._guardian.watch(popen.pid, stage=process.stop_stage, stop_signal=process.stop_signal)
        run.starts += 1
        began = time.monotonic()
        exited = asyncio.create_task(_exit_of(popen))
        pump = asyncio.create_task(run.pump(reader))
        try:
            too_late = await self._await_ready(run, exited)
            await asyncio.wait([exited])
            code = exited.result()
        finally:
            run.ready.clear()
            if popen.returncode is None:
                _kill_group(popen.pid)
                await asyncio.wait([exited])
            self._guardian.forget(popen.pid)
            _kill_group(popen.pid)  # its children do not outlive it
            await asyncio.wait([pump], timeout=_LAST_LINES_WITHIN)
            pump.cancel()
        ending = f"was not ready within {process.ready_within:g} s" if too_late else _ending(code)
        return time.monotonic() - began, ending

    async def _await_ready(self, run: "_Run", exited: "asyncio.Task[int]") -> bool:
        """Wait until the process is ready or ended; kill it and return True when it takes too long."""
        process, popen = run.process, run.popen
        deadline = time.monotonic() + process.ready_within
        while popen is not None and not exited.done():
            if process.ready is None or await _answers(process.ready, popen.pid):
                if popen.returncode is None:
                    run.was_ready = True
                    run.ready.set()
                return False
            if time.monotonic() > deadline:
                _kill_group(popen.pid)
                return True
            await asyncio.wait([exited], timeout=_ASK_EVERY)
        return False

    def _give_up(self, run: "_Run", sentence: str) -> None:
        if not run.process.needed:
            self.say(f"{sentence}; going on without it")
            return
        self.say(sentence)
        if self._reason is None and not self._closing:
            self._reason = sentence
            self._interrupt_body()

    # – ending

    def _on_signal(self, asked: signal.Signals) -> None:
        if self._closing or self.interrupted:
            if not self._hurry.is_set():
                self.say("killing everything at once")
            self._hurry.set()
            return
        self.interrupted = True
        self.say(f"{asked.name}: stopping (once more kills everything at once)")
        self._interrupt_body()

    def _interrupt_body(self) -> None:
        if self._body is not None and not self._closing and not self._cancelled_body:
            self._cancelled_body = True
            self._body.cancel()

    async def _stop_all(self) -> None:
        for _, stage in itertools.groupby(
            sorted(self._runs.values(), key=lambda run: run.process.stop_stage), key=lambda run: run.process.stop_stage
        ):
            await asyncio.gather(*(self._stop(run) for run in stage))
        for run in self._runs.values():
            run.close()

    async def _stop(self, run: "_Run") -> None:
        run.stopping = True
        popen, process = run.popen, run.process
        if popen is not None and popen.returncode is None and run.task is not None and not run.task.done():
            with contextlib.suppress(ProcessLookupError):
                popen.send_signal(process.stop_signal)
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait([run.task, hurry], timeout=process.stop_within, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not run.task.done():
                if not self._hurry.is_set():
                    self.say(f"{process.name} did not stop within {process.stop_within:g} s; killing it")
                _kill_group(popen.pid)
                await asyncio.wait([run.task], timeout=process.stop_within)
        if run.task is not None:
            run.task.cancel()  # it may be waiting for its next start
            await asyncio.wait([run.task])
        if process.release:
            process.release()
        run.close()


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ASK_EVERY = 0.05
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 15.0
_STEADY_AFTER = 30.0
_LAST_LINES_WITHIN = 0.5
_LONGEST_LINE = 8 * 1024
_LARGEST_LOG = 10 * 1024 * 1024


class _Run:
    """What the supervisor knows about one process."""

    def __init__(self, process: Process, echo: Echo, logs: Path | None) -> None:
        self.process = process
        self.popen: subprocess.Popen[bytes] | None = None
        self.task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        self.was_ready = False
        self.stopping = False
        self.starts = 0
        self._echo = echo
        self._log = _Log(logs / f"{process.name}.log") if logs else None
        self._last: deque[str] = deque(maxlen=20)

    async def until_ready(self) -> None:
        if self.task is None:
            return
        ready = asyncio.create_task(self.ready.wait())
        try:
            await asyncio.wait([ready, self.task], return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() and self.process.needed:
                await ready  # it died for good: the supervisor is about to interrupt us
        finally:
            ready.cancel()

    def last_words(self) -> str:
        where = f" (more in {self._log.path})" if self._log else ""
        spoken = next((line.strip() for line in reversed(self._last) if line.strip()), "")
        return f"; its last line was: {spoken}{where}" if spoken else where

    async def pump(self, reader: int) -> None:
        """Pass on what the process writes, line by line, until it closes its output."""
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream),
            open(reader, "rb", buffering=0),  # noqa: SIM115 – an open descriptor, closed with the transport
        )
        try:
            rest = b""
            while chunk := await stream.read(64 * 1024):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines, rest = [*lines, rest], b""
                self._pass_on(lines)
            if rest:
                self._pass_on([rest])
        finally:
            transport.close()

    def _pass_on(self, lines: Sequence[bytes]) -> None:
        for raw in lines:
            line = raw[:_LONGEST_LINE].decode(errors="replace").rstrip("\r")
            self._last.append(line)
            if self._log:
                self._log.write(line)
            self._echo(self.process.name, line)

    def close(self) -> None:
        if self._log:
            self._log.close()


class _Log:
    """A file of lines, only for its owner to read; when it is full it becomes `<name>.1` and a new one begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def write(self, line: str) -> None:
        if self._file is None:
            self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab", buffering=0)
        self._file.write(line.encode() + b"\n")
        if self._file.tell() > _LARGEST_LOG:
            self.close()
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def terminal_echo(stream: TextIO | None = None) -> Echo:
    """Return an echo that writes `name | line`, the name coloured on a terminal unless NO_COLOR is set."""
    out = stream or sys.stdout
    colourful = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    colours = itertools.cycle((36, 33, 35, 32, 34, 31))
    known: dict[str, str] = {}
    gone = False

    def echo(name: str, line: str) -> None:
        nonlocal gone
        if gone:
            return
        if name not in known:
            known[name] = f"\x1b[{next(colours)}m{name:<10} |\x1b[0m" if colourful else f"{name:<10} |"
        try:
            out.write(f"{known[name]} {line}\n")
            out.flush()
        except (OSError, ValueError):  # the terminal was closed: nobody reads, the processes must still stop in order
            gone = True

    return echo


def _to_nowhere(name: str, line: str) -> None:  # noqa: ARG001 – the lines are in the log files
    return


async def _exit_of(popen: subprocess.Popen[bytes]) -> int:
    """Wait for the process without a thread where the system allows it."""
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(popen.pid)
        except OSError:  # an old kernel, or a sandbox that forbids it
            pass
        else:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            return popen.wait()
    while popen.poll() is None:
        await asyncio.sleep(0.02)
    return popen.returncode


async def _answers(ready: Ready, pid: int) -> bool:
    if isinstance(ready, str):
        return await _answers_200(ready)
    answer = ready(pid)
    return await answer if inspect.isawaitable(answer) else answer


async def _answers_200(url: str) -> bool:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    writer = None
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            status = await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return False
    finally:
        if writer is not None:
            writer.close()
    return status.split()[1:2] == [b"200"]


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them ended already
        os.killpg(leader, signal.SIGKILL)
