"""Starting things: the whole hub on one machine, or one of its processes where there are many."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hub.cli import desk
from hub.cli.talk import DryRun, Json, refuse, say, tell

if TYPE_CHECKING:
    from hub.runtime.embedded import Postgres, Valkey
    from hub.runtime.place import Place
    from hub.runtime.supervisor import Process
    from hub.settings import Settings
    from hub.stores import SecretBox

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")]

db_app = typer.Typer(help="The hub's tables in PostgreSQL.", no_args_is_help=True)
key_app = typer.Typer(help="The key that opens the stores' credentials.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Make these commands known."""
    processes = "Processes"
    app.command(rich_help_panel=processes)(demo)
    app.command(rich_help_panel=processes)(up)
    app.command(rich_help_panel=processes)(intake)
    app.command(rich_help_panel=processes)(worker)
    app.command(rich_help_panel=processes)(sweep)
    app.command(rich_help_panel=processes)(api)
    app.command(rich_help_panel=processes)(flower)
    app.command(rich_help_panel=processes)(simulate)
    app.add_typer(db_app, name="db", rich_help_panel="Installation")
    app.add_typer(key_app, name="key", rich_help_panel="Installation")


# ---------------------------------------------------------------- everything on one machine


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the story; exit 0 only if its end is right.")] = False,
    directory: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where it keeps its files. Default: .hub")
    ] = None,
) -> None:
    """Watch the hub work: three stores, simulated VTEX and marketplaces, a story in the terminal."""
    from hub.demo import run

    if directory:
        desk.directory.set(directory)
    raise typer.Exit(run(once=once, directory=desk.directory.get()))


def up(
    directory: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where it keeps its files. Default: .hub")
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the intake; 0 takes a free one.")] = 8080,
    api_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the logs endpoint; 0 takes a free one.")] = 8081,
    flower_port: Annotated[int, typer.Option(min=0, max=65535, help="Of Flower; 0 takes a free one.")] = 5555,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Pairs of worker processes, about one per core.")] = 1,
    with_flower: Annotated[bool, typer.Option("--flower/--no-flower", help="Start Flower too.")] = True,
) -> None:
    """Run the hub on this machine until Ctrl-C, with servers of its own unless REDIS_URL and DATABASE_URL are set."""
    import asyncio

    if directory:
        desk.directory.set(directory)
    place = desk.place()
    if (running := place.running()) is not None:
        from hub.errors import Conflict

        raise Conflict(f"`hub {running.what}` (pid {running.pid}) runs on {place.directory} already: stop it first")
    try:
        place.make()
    except OSError as fault:
        refuse("--directory", str(place.directory), f"cannot be made ({fault.strerror}); choose another")
    ports = {
        "intake": _free_port(host, port, "--port"),
        "api": _free_port(host, api_port, "--api-port"),
        "flower": _free_port("127.0.0.1", flower_port, "--flower-port") if with_flower else 0,
    }
    env = {name: value for name, value in os.environ.items() if value}
    env["HUB_DIRECTORY"] = str(place.directory)
    if not ("HUB_KEY" in env or "HUB_KEY_FILE" in env):
        from hub.stores import SecretBox

        if not place.key.exists():
            say(SecretBox.create_file(place.key))
        env["HUB_KEY_FILE"] = str(place.key)
    seen = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 – compared, not bound
    env.setdefault("HUB_PUBLIC_URL", f"http://{seen}:{ports['intake']}")
    env.setdefault("HUB_API_URL", f"http://{seen}:{ports['api']}")
    raise typer.Exit(asyncio.run(_up(place, env, host, ports, workers)))


async def _up(place: Place, env: dict[str, str], host: str, ports: dict[str, int], workers: int) -> int:
    import asyncio

    from hub.runtime.place import Running
    from hub.runtime.supervisor import ProcessDied, Supervisor

    servers = _embedded(place, env)
    prepared = [server.process() for server in servers]
    for server in servers:
        env["REDIS_URL" if server.name == "valkey" else "DATABASE_URL"] = server.url
    settings = _checked(env)
    supervisor = Supervisor(prepared)
    try:
        async with supervisor:
            await supervisor.wait_ready()
            await asyncio.to_thread(_migrated, settings.database_url, settings.schema)
            supervisor.add(*_processes(env, host, ports, workers))
            await supervisor.wait_ready()
            addresses = {"intake": settings.public_url, "logs endpoint": settings.api_url}
            if ports["flower"]:
                addresses["flower"] = f"http://127.0.0.1:{ports['flower']} (its log says where the password is)"
            kept = {name: env[name] for name in _KEPT if name in env}
            place.announce(Running("up", os.getpid(), kept, addresses))
            for name, address in addresses.items():
                supervisor.say(f"{name}: {address}")
            for server in servers:
                if not server.home.is_relative_to(place.directory):
                    supervisor.say(f"{server.name} keeps its files in {server.home}")
            supervisor.say("connect a store: hub store add --help · look around: hub doctor · stop: Ctrl-C")
            await supervisor.until_stopped()
    except ProcessDied as died:
        say(str(died))
        return 1
    finally:
        place.withdraw()
    return 0


_KEPT = (
    "REDIS_URL",
    "DATABASE_URL",
    "HUB_BROKER_URL",
    "HUB_KEY_FILE",
    "HUB_PREFIX",
    "HUB_SCHEMA",
    "HUB_QUEUES",
    "HUB_PLAN",
    "HUB_PUBLIC_URL",
    "HUB_API_URL",
    "HUB_SPOOL",
    "HUB_SPOOL_BYTES",
)
"""What a second terminal is told; a key given as HUB_KEY is written nowhere."""


def _embedded(place: Place, env: dict[str, str]) -> list[Postgres | Valkey]:
    from hub.runtime.embedded import Postgres, Valkey

    servers: list[Postgres | Valkey] = []
    if "REDIS_URL" not in env:
        servers.append(Valkey(place.directory / "valkey"))
    if "DATABASE_URL" not in env:
        servers.append(Postgres(place.directory / "postgres"))
    return servers


def _checked(env: dict[str, str]) -> Settings:
    from hub.settings import Settings
    from hub.stores import SecretBox

    SecretBox.from_env(env)
    return Settings.load(env=env)


def _migrated(database_url: str, schema: str) -> None:
    from hub.db import migrate

    for name in migrate(database_url, schema):
        say(f"migrated: {name}")


def _processes(env: dict[str, str], host: str, ports: dict[str, int], workers: int) -> list[Process]:
    from hub.runtime.supervisor import Process, Stage

    def ours(name: str, *argv: str, stage: Stage, ready: str | None = None, within: float = 30.0) -> Process:
        return Process(
            name=name,
            argv=[sys.executable, "-m", "hub.cli", *argv],
            env=env,
            ready=ready,
            stop_stage=stage,
            stop_within=within,
        )

    seen = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 – compared, not bound
    lanes = [
        ours(f"{lane}{number or ''}", "worker", "--pool", "all", "--lane", lane, stage=Stage.WORKERS)
        for number in range(workers)
        for lane in ("first", "more")
    ]
    chosen = [
        ours(
            "intake",
            *("intake", "--host", host, "--port", str(ports["intake"])),
            stage=Stage.DOORS,
            ready=f"http://{seen}:{ports['intake']}/readyz",
        ),
        ours(
            "api",
            *("api", "--host", host, "--port", str(ports["api"])),
            stage=Stage.DOORS,
            ready=f"http://{seen}:{ports['api']}/livez",
        ),
        *lanes,
        ours("sweep", "sweep", stage=Stage.WORKERS),
    ]
    if ports["flower"]:
        chosen.append(ours("flower", "flower", "--port", str(ports["flower"]), stage=Stage.DOORS))
    return chosen


def _free_port(host: str, port: int, option: str) -> int:
    """`port` when it can be bound, a free one for 0. `BadInput` when it is taken."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as fault:
        refuse(option, f"{host}:{port}", f"cannot be used ({fault.strerror}); give another, or 0 for a free one")


# ---------------------------------------------------------------- one process each


def _surroundings() -> tuple[Settings, SecretBox]:
    from hub.stores import SecretBox

    return desk.settings_here(), SecretBox.from_env(desk.surroundings())


def intake(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
) -> None:
    """Take in what VTEX and marketplaces send. Any number of one database and schema may share a machine's port."""
    from tasks.intake import run

    settings, _ = _surroundings()
    _log()
    run(settings, host, port, env=desk.surroundings())


def worker(
    pool: Annotated[
        list[str] | None, typer.Option(help="orders, offers, catalog, control or all; may be repeated. Default: all.")
    ] = None,
    shard: Annotated[str, typer.Option(metavar="N/OF", help="Its share of the stores, such as 1/4.")] = "",
    lane: Annotated[
        str, typer.Option(help="first: wake-ups of stores at rest; more: further ones; both: a process each.")
    ] = "both",
) -> None:
    """Do the work that is pending."""
    import asyncio

    from hub.settings import POOLS

    wanted = list(dict.fromkeys(pool or ["all"]))
    for name in wanted:
        if name not in {*POOLS, "all"}:
            from hub.parsing import suggestion

            refuse("--pool", name, f"is no pool; {suggestion(name, [*POOLS, 'all'])}")
    if lane not in {"first", "more", "both"}:
        refuse("--lane", lane, "use first, more or both")
    chosen = list(POOLS) if "all" in wanted else wanted
    settings, box = _surroundings()
    shards = _shards(settings, chosen, shard)
    if lane == "both":
        argv = [argument for name in chosen for argument in ("--pool", name)]
        raise typer.Exit(asyncio.run(_both_lanes([*argv, *(["--shard", shard] if shard else [])])))
    from tasks.worker import run

    raise typer.Exit(run(settings, box, pools=chosen, shards=shards, lane="first" if lane == "first" else "more"))


def _shards(settings: Settings, pools: Sequence[str], shard: str) -> frozenset[int]:
    if not shard:
        return frozenset(range(max(settings.pools[pool].shards for pool in pools)))
    number, _, count = shard.partition("/")
    if not (number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        refuse("--shard", shard, "write <number>/<of how many>, such as 1/4")
    for pool in pools:
        have = settings.pools[pool].shards
        if int(count) != have:
            fix = f"pools.{pool}.shards of the settings is {have}; write N/{have}, or change it for all processes"
            refuse("--shard", shard, fix)
    if not 1 <= int(number) <= int(count):
        refuse("--shard", shard, f"write a number from 1 to {count}")
    return frozenset({int(number) - 1})


async def _both_lanes(arguments: list[str]) -> int:
    from hub.runtime.supervisor import Process, ProcessDied, Stage, Supervisor

    lanes = [
        Process(
            name=lane,
            argv=[sys.executable, "-m", "hub.cli", "worker", *arguments, "--lane", lane],
            env=desk.surroundings(),
            stop_stage=Stage.WORKERS,
            stop_within=30.0,
        )
        for lane in ("first", "more")
    ]
    try:
        async with Supervisor(lanes) as supervisor:
            await supervisor.until_stopped()
    except ProcessDied as died:
        say(str(died))
        return 1
    return 0


def sweep() -> None:
    """Wake for what is due, expired or forgotten. Two may run; one is enough."""
    from tasks.sweep import run

    settings, box = _surroundings()
    raise typer.Exit(run(settings, box))


def api(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8081,
) -> None:
    """Serve what others read: VTEX's logs endpoint."""
    from tasks.api import run

    settings, box = _surroundings()
    _log()
    run(settings, box, host, port)


def flower(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 5555,
    user: Annotated[str, typer.Option(help="Name to log in with.")] = "hub",
    password_file: Annotated[
        Path | None, typer.Option(help="Default: HUB_FLOWER_PASSWORD, else a file in the hub's directory, made once.")
    ] = None,
    writable: Annotated[bool, typer.Option("--writable", help="Let it revoke tasks and stop workers.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="Show /metrics without the password.")] = False,
) -> None:
    """Watch queues, workers and tasks in Flower, behind a password and read-only."""
    from tasks.flower import run

    settings = desk.settings_here()
    env = {**desk.surroundings(), "HUB_DIRECTORY": str(desk.place().directory)}
    code = run(
        settings,
        port,
        address=host,
        user=user,
        password_file=password_file,
        writable=writable,
        metrics=metrics,
        env=env,
    )
    raise typer.Exit(code)


def _log() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")


def simulate(
    what: Annotated[str, typer.Argument(metavar="[vtex|marketplace]", help="Default: both, with an example.")] = "",
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65534, help="0 takes a free one; with both, VTEX's.")] = 0,
) -> None:
    """Run a simulated VTEX and marketplace, to rehearse without touching real ones, and tell what to type.

    One alone holds no account: it is steered by its control routes, below /_control.
    """
    if what not in {"", "vtex", "marketplace"}:
        refuse("what", what, "simulate vtex or marketplace, or leave it out for both with an example")
    if not what:
        from hub.simulators import example

        if host != "127.0.0.1":
            refuse("--host", host, "the example listens on 127.0.0.1 only; leave it out, or name vtex or marketplace")
        try:
            code = example.run(port)
        except OSError as fault:
            refuse("--port", str(port), f"it or the next one cannot be used ({fault.strerror}); give another, or 0")
        raise typer.Exit(code)
    arguments = ["--host", host, "--port", str(port)]
    if what == "vtex":
        from hub.simulators import vtex

        raise typer.Exit(vtex.main(arguments))
    from hub.simulators import marketplace

    raise typer.Exit(marketplace.main(arguments))


# ---------------------------------------------------------------- tables and key


def _database() -> tuple[str, str]:
    """URL and schema; the rest of the settings may be missing where only a migration runs."""
    env = desk.surroundings()
    url = env.get("DATABASE_URL", "")
    if not url:
        refuse("DATABASE_URL", "", "is not set, and no hub runs here; set it: postgresql://user:password@host:5432/hub")
    return url, env.get("HUB_SCHEMA", "hub")


@db_app.command()
def upgrade(dry_run: DryRun = False, as_json: Json = False) -> None:
    """Bring the tables up to date. Safe to run twice and from two places at once."""
    from hub import db

    url, schema = _database()
    if dry_run:
        with desk.reaching(url):
            fresh = [name for name, ran in db.migrations(url, schema) if ran is None]
        tell({"would_run": fresh}, "\n".join(fresh) or "up to date; nothing would run")
        return
    with desk.reaching(url):
        ran = db.migrate(url, schema)
    tell({"ran": ran}, "\n".join(f"migrated: {name}" for name in ran) or "up to date")


@db_app.command()
def current(as_json: Json = False) -> None:
    """Show which migrations have run."""
    from hub import db
    from hub.cli.talk import tell_table

    url, schema = _database()
    with desk.reaching(url):
        rows = [{"migration": name, "ran_at": ran} for name, ran in db.migrations(url, schema)]
    tell_table("migrations", ["migration", "ran_at"], rows)


@db_app.command()
def check(as_json: Json = False) -> None:
    """Exit 1 when a migration has not run yet; for start-up checks and CI."""
    from hub import db

    url, schema = _database()
    with desk.reaching(url):
        missing = [name for name, ran in db.migrations(url, schema) if ran is None]
    tell({"missing": missing}, "\n".join(f"has not run: {name}" for name in missing) or "up to date")
    if missing:
        say("run: hub db upgrade")
        raise typer.Exit(1)


@key_app.command("create")
def key_create(
    path: Annotated[
        Path | None, typer.Argument(help="Default: what HUB_KEY_FILE names, else key in the hub's directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new key file (mode 0600)."""
    from hub.stores import SecretBox

    place = desk.place()
    named = os.environ.get("HUB_KEY_FILE")
    chosen = path or (Path(named) if named else place.key)
    if path is None and named:
        try:
            chosen.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as fault:
            refuse("HUB_KEY_FILE", named, f"its directory cannot be made ({fault.strerror}); choose another place")
    elif path is None:
        place.make()
    told = SecretBox.create_file(chosen)
    use = "" if str(chosen) == named else f"\nUse it: export HUB_KEY_FILE={chosen.absolute()}"
    tell({"path": str(chosen)}, told + use)
