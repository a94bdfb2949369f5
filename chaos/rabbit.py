"""A RabbitMQ of one's own, from the system's package: own ports, own files, own name service, nothing left behind.

There is no wheel of RabbitMQ, so unlike Valkey and PostgreSQL it must be installed (Debian: `rabbitmq-server`). Like
them it does not outlive the process that started it, not even when that one is killed (`hub/runtime/guardian.py`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final, Self

from hub.errors import HubError
from hub.runtime.embedded import free_ports
from hub.runtime.guardian import Guardian

UP_SECONDS: Final = 60.0
DOWN_SECONDS: Final = 20.0

_SERVER: Final = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/sbin/rabbitmq-server", "rabbitmq-server")
_PLACES_OF_CTL: Final = ("/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl")


class NoRabbit(HubError):  # noqa: N818 – named by what happens next, see hub.errors
    """RabbitMQ is not installed, or does not start; the text says which."""


def installed() -> bool:
    """Whether this machine has RabbitMQ."""
    return _found(_SERVER) is not None and shutil.which("epmd") is not None


class RabbitMQ:
    """A broker in `home`, which is made when missing. The context manager starts and stops it.

    `stop` and `kill` keep what is durable; `start` afterwards has the same URL.
    """

    def __init__(self, home: Path) -> None:
        server, epmd = _found(_SERVER), shutil.which("epmd")
        if server is None or epmd is None:
            raise NoRabbit("RabbitMQ is not installed: apt-get install rabbitmq-server")
        self._server, self._epmd = server, epmd
        self._home = home
        self._ports = free_ports(3)
        self._password = secrets.token_hex(16)
        self._names: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None
        self._guardian: Guardian | None = None

    @property
    def url(self) -> str:
        """`amqp://` URL with the password."""
        return f"amqp://hub:{self._password}@127.0.0.1:{self.port}//"

    @property
    def port(self) -> int:
        """Where AMQP is spoken."""
        return self._ports[0]

    @property
    def pid(self) -> int | None:
        """The node's process, while it runs."""
        return self._node.pid if self._node and self._node.poll() is None else None

    def start(self) -> Self:
        """Start it and wait until it speaks AMQP. `NoRabbit` with its last words."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_files()
        env = self._environment()
        self._guardian = self._guardian or Guardian()
        if self._names is None or self._names.poll() is not None:
            # In the foreground: a node that finds none starts a daemon, which nobody would end.
            self._names = self._spawn(
                [self._epmd, "-port", str(self._ports[2]), "-address", "127.0.0.1"], env, "epmd.log"
            )
            self._guardian.watch(self._names.pid, stage=1, stop_signal=signal.SIGTERM)
            _await_port(self._ports[2], 10.0)
        self._node = self._spawn([self._server], env, "server.log")
        # Not asked to end but killed, script and node: nobody will read its files any more.
        self._guardian.watch(self._node.pid, stage=0, stop_signal=signal.SIGKILL)
        deadline = time.monotonic() + UP_SECONDS
        while not self._speaks():
            if self._node.poll() is not None or time.monotonic() > deadline:
                words = self._log("server.log").read_text(errors="replace")[-800:]
                self.stop()
                raise NoRabbit(f"RabbitMQ did not start: {words}")
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """End the node and its name service."""
        for child in (self._node, self._names):
            _end(child, signal.SIGTERM)
            self._forget(child)
        self._node = self._names = None
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None

    def kill(self) -> None:
        """Kill -9 of the node; the name service lives on, as it does on a real machine."""
        _end(self._node, signal.SIGKILL)
        self._forget(self._node)
        self._node = None

    def queues(self) -> dict[str, tuple[int, int]]:
        """Every queue with its messages and its consumers, as the broker itself counts them."""
        answer = subprocess.run(
            [_found(_PLACES_OF_CTL) or "rabbitmqctl", "-q", "list_queues", "name", "messages", "consumers"],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        rows = [line.split("\t") for line in answer.splitlines() if line.count("\t") == 2]
        return {name: (int(messages), int(consumers)) for name, messages, consumers in rows if messages.isdigit()}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---------------------------------------------------------------- inside

    def _write_files(self) -> None:
        self._home.joinpath("rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"default_user = hub\ndefault_pass = {self._password}\n"
            "default_permissions.configure = .*\ndefault_permissions.read = .*\ndefault_permissions.write = .*\n"
            "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
        )
        self._home.joinpath("rabbitmq.conf").chmod(0o600)
        self._home.joinpath("enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        home = str(self._home)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": home,  # the cookie lives here
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"hub{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{home}/mnesia",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_DIST_PORT": str(self._ports[1]),
            "ERL_EPMD_PORT": str(self._ports[2]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none",  # idle schedulers do not spin
        }

    def _spawn(self, argv: list[str], env: dict[str, str], log: str) -> subprocess.Popen[bytes]:
        with self._log(log).open("ab") as out:
            return subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _forget(self, child: subprocess.Popen[bytes] | None) -> None:
        """It has ended; its number may soon be somebody else's."""
        if child is not None and self._guardian is not None:
            self._guardian.forget(child.pid)

    def _log(self, name: str) -> Path:
        return self._home / name

    def _speaks(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(8))
        except OSError:
            return False


def _end(child: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    """Signal a child's whole session (the server is a shell script around the node) and wait for it."""
    if child is None or child.poll() is not None:
        return
    os.killpg(child.pid, number)
    try:
        child.wait(DOWN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _found(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _await_port(port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NoRabbit("epmd did not start")
