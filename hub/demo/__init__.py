"""The hub's main job on one machine, told in the terminal: real processes, real servers, simulated peers.

`run` starts everything, lets `hub.demo.story` happen and judges its end with `hub.demo.verdict`, which reads the
simulators by routes that the hub does not use.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import redis
import yaml
from cryptography.fernet import Fernet
from psycopg import sql
from rich.console import Console

from hub.db import migrate
from hub.demo.story import Stage as Scene
from hub.demo.story import tell
from hub.errors import BadInput
from hub.runtime.embedded import Postgres, Valkey, free_ports, scratch
from hub.runtime.place import Place, Running
from hub.runtime.supervisor import Process, ProcessDied, Stage, Supervisor
from hub.settings import QUEUES_FILE, Settings

KEPT = (
    "REDIS_URL", "DATABASE_URL", "HUB_BROKER_URL", "HUB_KEY_FILE", "HUB_PREFIX", "HUB_SCHEMA", "HUB_QUEUES", "HUB_PLAN",
    "HUB_PUBLIC_URL", "HUB_API_URL",
)  # fmt: skip

HURRIED = {
    "circuit": {"open_seconds": 2, "longest_seconds": 4},
    "sweep": {"every_seconds": 0.5, "spread_seconds": 1},
    "vtex": {"rate": 500, "burst": 500, "total_seconds": 4},
    "marketplace": {"rate": 200, "burst": 200, "total_seconds": 4},
}
"""What the demo changes in queues.yaml, so that an outage of ten seconds fits into a minute."""


def run(*, once: bool = False, directory: str | None = None) -> int:
    """Tell the story; with `once` end after it. The answer is the exit code: 0 only if the end state is right."""
    console = Console() if sys.stdout.isatty() else Console(width=120, soft_wrap=True)
    place = Place(directory)
    if (running := place.running()) is not None:
        console.print(f"`hub {running.what}` (pid {running.pid}) runs on {place.directory} already: stop it first")
        return 5
    try:
        return asyncio.run(_play(console, place, once=once))
    except KeyboardInterrupt:
        return 130
    except ProcessDied as died:
        console.print(f"[red]{died}[/red]")
        return 1
    except BadInput as wrong:
        for problem in wrong.problems:
            console.print(f"[red]{problem.sentence()}[/red]")
        return 2


async def _play(console: Console, place: Place, *, once: bool) -> int:
    began = time.monotonic()
    place.make()
    names = ("vtex", "marketplace", "intake", "api", "flower")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    key_file = place.directory / "demo.key"
    key_file.touch(mode=0o600, exist_ok=True)
    key_file.write_text(Fernet.generate_key().decode())
    name = f"demo_{secrets.token_hex(3)}"
    env = {key: value for key, value in os.environ.items() if value and key != "HUB_KEY"}
    env |= {
        "HUB_KEY_FILE": str(key_file),
        "HUB_PREFIX": name,
        "HUB_SCHEMA": name,
        "HUB_PLAN": "demo",
        "HUB_QUEUES": str(_hurried(place.directory / "demo-queues.yaml")),
        "HUB_PUBLIC_URL": f"http://127.0.0.1:{ports['intake']}",
        "HUB_API_URL": f"http://127.0.0.1:{ports['api']}",
        "HUB_FLOWER_PASSWORD": secrets.token_urlsafe(9),
    }
    with scratch("hub-demo-") as files:
        servers: list[Valkey | Postgres] = []
        if "REDIS_URL" not in env:
            servers.append(Valkey(files / "valkey"))
        if "DATABASE_URL" not in env:
            servers.append(Postgres(files / "postgres"))
        first = [server.process() for server in servers]
        for server in servers:
            env["REDIS_URL" if isinstance(server, Valkey) else "DATABASE_URL"] = server.url
        settings = Settings.load(env=env)
        supervisor = Supervisor(first, logs=place.logs)
        code = 1
        try:
            async with supervisor:
                await supervisor.wait_ready()
                await asyncio.to_thread(migrate, settings.database_url, settings.schema)
                supervisor.add(*_processes(env, ports))
                console.print(
                    "Starting: " + ", ".join(server.name for server in servers) + ", simulators, intake, workers, …"
                )
                await supervisor.wait_ready()
                addresses = {
                    "intake": settings.public_url,
                    "logs endpoint": settings.api_url,
                    "flower": f"http://127.0.0.1:{ports['flower']}",
                    "simulated VTEX": f"http://127.0.0.1:{ports['vtex']}",
                    "simulated marketplaces": f"http://127.0.0.1:{ports['marketplace']}",
                }
                place.announce(Running("demo", os.getpid(), {key: env[key] for key in KEPT if key in env}, addresses))
                console.print(f"Everything runs after {time.monotonic() - began:.1f} s.\n")
                scene = Scene(console, settings, env, addresses["simulated VTEX"], addresses["simulated marketplaces"])
                code = await asyncio.to_thread(tell, scene, began)
                if not once:
                    _farewell(console, place, env, addresses, scene)
                    await supervisor.until_stopped()
        finally:
            place.withdraw()
            if not servers or len(servers) < 2:
                await asyncio.to_thread(_tidy, settings, own_redis=not any(isinstance(s, Valkey) for s in servers))
    return code


def _processes(env: dict[str, str], ports: dict[str, int]) -> list[Process]:
    def python(name: str, *argv: str, stage: Stage, ready: str | None = None) -> Process:
        return Process(
            name=name, argv=[sys.executable, "-m", *argv], env=env, ready=ready, stop_stage=stage, stop_within=10
        )

    def at(name: str, path: str) -> str:
        return f"http://127.0.0.1:{ports[name]}{path}"

    def simulator(name: str) -> Process:
        return python(
            name, f"hub.simulators.{name}", "--port", str(ports[name]), "--seed", "1",
            stage=Stage.PEERS, ready=at(name, "/_control/journal?limit=1"),
        )  # fmt: skip

    def door(name: str, path: str) -> Process:
        return python(
            name, "hub.cli", name, "--port", str(ports[name]), stage=Stage.DOORS, ready=at(name, path) if path else None
        )

    return [
        simulator("vtex"),
        simulator("marketplace"),
        door("intake", "/readyz"),
        python("first", "hub.cli", "worker", "--pool", "all", "--lane", "first", stage=Stage.WORKERS),
        python("more", "hub.cli", "worker", "--pool", "all", "--lane", "more", stage=Stage.WORKERS),
        python("sweep", "hub.cli", "sweep", stage=Stage.WORKERS),
        door("api", "/livez"),
        door("flower", ""),
    ]


def _farewell(console: Console, place: Place, env: dict[str, str], addresses: dict[str, str], scene: Scene) -> None:
    console.print("\nEverything stays up until Ctrl-C. Look around:")
    for name, address in addresses.items():
        extra = f" (user hub, password {env['HUB_FLOWER_PASSWORD']})" if name == "flower" else ""
        console.print(f"  {name}: {address}{extra}")
    console.print("In a second terminal, in this directory:")
    where = "" if place.directory == Path(".hub").absolute() else f"HUB_DIRECTORY={place.directory} "
    for command in scene.commands:
        console.print(f"  {where}.venv/bin/{command}")


def _hurried(path: Path) -> Path:
    """queues.yaml with the demo's short waits."""
    tree: dict[str, Any] = yaml.safe_load(Path(QUEUES_FILE).read_text(encoding="utf-8"))
    for block, values in HURRIED.items():
        tree[block] |= values
    path.write_text(
        "# Made by `hub demo` from queues.yaml, with shorter waits; queues.yaml explains every line.\n"
        + yaml.safe_dump(tree, sort_keys=False),
        encoding="utf-8",
    )
    return path


def _tidy(settings: Settings, *, own_redis: bool) -> None:
    """Take away what the demo made in the user's own servers: its schema, its keys, nothing else."""
    with suppress(psycopg.Error), psycopg.connect(settings.database_url, autocommit=True, connect_timeout=5) as db:
        db.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(settings.schema)))
    if own_redis:
        with suppress(redis.RedisError), redis.Redis.from_url(settings.redis_url, socket_timeout=5) as server:
            for found in server.scan_iter(match=f"{settings.prefix}:*", count=1000):
                server.delete(found)
