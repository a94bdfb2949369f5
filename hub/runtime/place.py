"""The directory in which one machine's hub keeps what is its own, and by which a second terminal finds it.

key            the key of the stores' credentials (0600), made once
running.json   where the hub that runs here can be reached (0600: it holds passwords); gone when it ended
postgres/ valkey/   files of the embedded servers
spool/         what the intakes here keep while PostgreSQL is away (0700), unless HUB_SPOOL names another folder
logs/          what the processes wrote
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from hub.runtime.guardian import alive

DIRECTORY: Final = ".hub"
SERVERS: Final = ("REDIS_URL", "DATABASE_URL")


@dataclass(frozen=True, slots=True)
class Running:
    """A hub that runs on this directory: `what` is `up` or `demo`, `env` what its processes were given."""

    what: str
    pid: int
    env: Mapping[str, str] = field(repr=False)
    addresses: Mapping[str, str] = field(default_factory=dict)


class Place:
    """One such directory; it need not exist yet."""

    def __init__(self, directory: Path | str | None = None, env: Mapping[str, str] = os.environ) -> None:
        """`directory`, else what HUB_DIRECTORY names, else `.hub` where we are."""
        self.directory = Path(directory or env.get("HUB_DIRECTORY") or DIRECTORY).absolute()
        self.key = self.directory / "key"
        self.logs = self.directory / "logs"
        self._note = self.directory / "running.json"

    def make(self) -> None:
        """Make the directory; it may be passed through (the servers' user has to), not listed."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)

    def announce(self, running: Running) -> None:
        """Let other terminals find what runs here now."""
        self.make()
        descriptor, half = tempfile.mkstemp(dir=self.directory)  # 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(running), file)
        Path(half).replace(self._note)

    def withdraw(self) -> None:
        """It does not run any more. What somebody else announced meanwhile stays."""
        running = self.running()
        if running is None or running.pid == os.getpid():
            with contextlib.suppress(OSError):
                self._note.unlink()

    def running(self) -> Running | None:
        """What runs on this directory; `None` when nothing does."""
        try:
            tree = json.loads(self._note.read_text(encoding="utf-8"))
            found = Running(str(tree["what"]), int(tree["pid"]), dict(tree["env"]), dict(tree["addresses"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if alive(found.pid) else None

    def surroundings(self, env: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment a command works in: the user's own wins; what it lacks comes from the hub that runs here.

        Servers come from one place only: with one of `SERVERS` set, neither is taken from the running hub.
        """
        known = {name: value for name, value in env.items() if value}
        running = self.running()
        if running is not None and not any(name in known for name in SERVERS):
            known = {**running.env, **known}
        if "HUB_KEY" in known and "HUB_KEY_FILE" in known:
            known.pop("HUB_KEY" if "HUB_KEY" not in env else "HUB_KEY_FILE")
        if not ("HUB_KEY" in known or "HUB_KEY_FILE" in known) and self.key.exists():
            known["HUB_KEY_FILE"] = str(self.key)
        return known
