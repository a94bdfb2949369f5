"""A supervisor in a process of its own, for tests that send it signals: python -m tests.runtime.supervised STORY DIR"""

import asyncio
import dataclasses
import sys
from pathlib import Path

from hub.runtime.embedded import Postgres, Valkey
from hub.runtime.supervisor import Process, ProcessDied, Stage, Supervisor

WORKER = """
import os, pathlib, signal, subprocess, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf])
print("grandchild", child.pid, flush=True)
print("working", flush=True)
while not asked:
    time.sleep(0.01)
there = pathlib.Path(sys.argv[1], "postgres/data/postmaster.pid").exists()
pathlib.Path(sys.argv[1], "database-at-end").write_text(str(there))
print("finished what it was doing", flush=True)
"""

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ignoring", flush=True)
time.sleep(600)
"""


def python(name: str, program: str, *arguments: str, **rest: object) -> Process:
    return Process(name=name, argv=[sys.executable, "-c", program, *arguments], **rest)  # type: ignore[arg-type]  # the tests' shorthand


async def whole(directory: Path) -> None:
    """Servers and a worker, as in real life."""
    servers = [kind(directory / kind.name, durable=False).process() for kind in (Postgres, Valkey)]
    servers = [dataclasses.replace(server, tries=2) for server in servers]
    async with Supervisor(servers) as supervisor:
        await supervisor.wait_ready()
        supervisor.add(python("worker", WORKER, str(directory), stop_stage=Stage.WORKERS))
        await supervisor.wait_ready()
        for name in ("postgres", "valkey", "worker"):
            supervisor.say(f"{name} has pid {supervisor.pid(name)}")
        await supervisor.until_stopped()


async def stubborn(directory: Path) -> None:
    """One process that does not end when asked."""
    async with Supervisor([python("stubborn", STUBBORN, stop_within=60)]) as supervisor:
        await supervisor.until_stopped()


def main() -> None:
    story = {"whole": whole, "stubborn": stubborn}[sys.argv[1]]
    try:
        asyncio.run(story(Path(sys.argv[2])))
    except ProcessDied as death:
        sys.exit(f"hub: {death}")


if __name__ == "__main__":
    main()
