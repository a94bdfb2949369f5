"""`hub doctor`: everything the hub needs, looked at once, each fault with what to do."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hub.cli import desk
from hub.cli.talk import PROBLEMS, Json, tell
from hub.errors import BadInput, HubError

if TYPE_CHECKING:
    from hub.links import Links
    from hub.settings import Settings
    from hub.stores import SecretBox

SKEW_SECONDS = 2.0
"""Clocks further apart than this make ages and signatures wrong."""


@dataclass(frozen=True, slots=True)
class Look:
    """One thing that was looked at. `do` says what to do when it is not well."""

    verdict: Literal["ok", "warning", "failed"]
    what: str
    found: str
    do: str = ""


def register(app: typer.Typer) -> None:
    """Make the command known."""
    app.command(rich_help_panel="Operation")(doctor)


def doctor(
    stores: Annotated[bool, typer.Option("--stores/--no-stores", help="Ask VTEX and the marketplaces too.")] = True,
    as_json: Json = False,
) -> None:
    """Look at everything the hub needs, and say what to do. Exit 1 when something is wrong."""
    looks = list(_looks(stores=stores))
    counts = {word: sum(look.verdict == word for look in looks) for word in ("ok", "warning", "failed")}
    signs = {"ok": "✓", "warning": "!", "failed": "✗"}
    lines: list[str] = []
    for look in looks:
        lines.append(f"{signs[look.verdict]}  {look.what:<22} {look.found}")
        if look.do:
            lines.append(f"{'':<26}→ {look.do}")
    lines.append(", ".join(f"{count} {word}" for word, count in counts.items()))
    tell({"checks": [asdict(look) for look in looks], **counts}, "\n".join(lines))
    if counts["failed"]:
        raise typer.Exit(PROBLEMS)


def _looks(*, stores: bool) -> Iterator[Look]:
    try:
        settings = desk.settings_here()
    except BadInput as wrong:
        for problem in wrong.problems:
            yield Look("failed", "settings", problem.sentence())
        _, key = _key()
        if key.verdict == "failed" and (os.environ.get("HUB_KEY") or os.environ.get("HUB_KEY_FILE")):
            yield key
        return
    contexts = f"{len(settings.contexts)} contexts in {len(settings.pools)} pools, layout {settings.layout}"
    yield Look("ok", "settings", contexts)
    box, key = _key()
    yield key
    database = list(_database(settings))
    yield from database
    yield from _redis(settings)
    yield _spool(settings)
    if any(look.verdict == "failed" for look in database):
        return
    yield from _at_work(settings)
    yield from _doors(settings)
    if box is not None:
        yield from _stores(settings, box, ask=stores)


def _key() -> tuple[SecretBox | None, Look]:
    from hub.stores import SecretBox

    env = desk.surroundings()
    try:
        return SecretBox.from_env(env), Look("ok", "key", "can be used")
    except BadInput as wrong:
        return None, Look("failed", "key", str(wrong), _key_advice(env))


def _key_advice(env: Mapping[str, str]) -> str:
    """What works for this key: one is made only where there is none."""
    named = env.get("HUB_KEY_FILE", "")
    if env.get("HUB_KEY"):
        return "set HUB_KEY to the key of the other processes"
    if not named:
        return "make one: hub key create"
    try:
        found = Path(named).stat()
    except FileNotFoundError:
        return "name the right file, or make this one: hub key create"
    except OSError:
        return "name a file that this user can read"
    if not stat.S_ISREG(found.st_mode) or not os.access(named, os.R_OK):
        return "name a file that this user can read"
    return f"chmod 600 {named}" if stat.S_IMODE(found.st_mode) & 0o077 else "name the file with the right key"


def _database(settings: Settings) -> Iterator[Look]:
    import psycopg

    from hub import db

    try:
        where = db.conninfo(settings.database_url, settings.schema, name="doctor")
        with db.translated(), psycopg.connect(where, autocommit=True) as connection:
            before = time.time()
            row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
            after = time.time()
            version = connection.info.server_version
        yield Look("ok", "postgresql", f"{version // 10_000}.{version % 10_000}, schema {settings.schema}")
        yield _skew("clock of postgresql", float(row[0]) if row else 0.0, before, after)
        states = db.migrations(settings.database_url, settings.schema)
        missing = [name for name, ran in states if ran is None]
        if missing:
            yield Look("failed", "migrations", f"{', '.join(missing)} has not run", "hub db upgrade")
        else:
            yield Look("ok", "migrations", f"at head ({states[-1][0]})")
    except HubError as fault:
        yield Look("failed", "postgresql", str(fault), "check DATABASE_URL and that the server runs")


def _skew(what: str, theirs: float, before: float, after: float) -> Look:
    skew = max(theirs - after, before - theirs, 0.0)
    if skew > SKEW_SECONDS:
        return Look("warning", what, f"{skew:.1f} s away from this machine's", "set both by NTP")
    return Look("ok", what, f"agrees within {max(skew, after - before) * 1000:.0f} ms")


def _redis(settings: Settings) -> Iterator[Look]:
    import redis

    try:
        with closing(
            redis.Redis.from_url(settings.redis_url, socket_timeout=3, socket_connect_timeout=3, decode_responses=True)
        ) as client:
            facts: dict[str, Any] = client.info()
            name = "valkey" if "valkey_version" in facts else "redis"
            yield Look("ok", "redis", f"{name} {facts.get('valkey_version') or facts.get('redis_version')}")
            before = time.time()
            seconds, micros = client.time()
            yield _skew("clock of redis", int(seconds) + int(micros) / 1e6, before, time.time())
            yield _memory(facts)
            kept = facts.get("aof_enabled") == 1 or int(facts.get("rdb_last_save_time", 0)) > 0
            if kept:
                yield Look("ok", "redis persistence", "on")
            else:
                do = "not needed: wake-ups are made again from PostgreSQL; limits and circuits start anew"
                yield Look("warning", "redis persistence", "off", do)
    except (redis.RedisError, OSError, ValueError) as fault:
        do = "check REDIS_URL and that the server runs; meanwhile nobody is woken and limits are each process's own"
        yield Look("failed", "redis", f"cannot be used ({type(fault).__name__})", do)


def _memory(facts: dict[str, Any]) -> Look:
    policy = str(facts.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Look("ok", "redis memory", "maxmemory-policy noeviction")
    do = "set maxmemory-policy noeviction: else wake-ups and limits can be evicted"
    return Look("warning", "redis memory", f"maxmemory-policy {policy}", do)


def _spool(settings: Settings) -> Look:
    from tasks.spool import found_in

    try:
        segments, size, aside = found_in(settings.spool)
    except OSError as fault:
        return Look("warning", "spool", f"{settings.spool}: {fault.strerror}", "let the intake's user write there")
    if segments:
        do = "an intake of this machine stores it as soon as PostgreSQL can; start one if none runs: hub intake"
        return Look("warning", "spool", f"{size} bytes wait in {settings.spool}", do)
    if aside:
        do = "lines in them could not be read, the log of the intake says why; remove what you have looked at"
        return Look("warning", "spool", f"{aside} segments are set aside in {settings.spool}", do)
    return Look("ok", "spool", "empty on this machine")


def _at_work(settings: Settings) -> Iterator[Look]:
    from hub import db, reports
    from tasks.watch import watch

    with closing(db.open_pool(settings.database_url, settings.schema, name="doctor", max_size=2)) as pool:
        try:
            alive = reports.processes(pool)
            with db.translated(), pool.connection() as connection:
                slugs = [
                    str(row[0])
                    for row in connection.execute("select slug from stores where status <> 'removed'").fetchall()
                ]
        except HubError as fault:
            yield Look("failed", "processes", str(fault))
            return
    yield _layout(settings, len(slugs))
    workers = [one.name for one in alive if not one.name.startswith("sweep")]
    yield _there("workers", workers, "start: hub worker")
    yield _there("sweep", [one.name for one in alive if one.name.startswith("sweep")], "start: hub sweep")
    try:
        seen = watch(settings, slugs, expected=len(workers))
    except HubError as fault:
        yield Look("failed", "broker", str(fault), "check HUB_BROKER_URL, else REDIS_URL, and that it runs")
        return
    yield Look("ok", "broker", f"{len(seen.workers)} workers answer")
    for group, shard in seen.empty:
        do = f"start: hub worker --pool {group} --shard {shard}"
        yield Look("failed", f"shard {shard} of {group}", "no worker serves it: its stores stand still", do)
    if seen.unserved:
        some = ", ".join(sorted(seen.unserved)[:5]) + (", …" if len(seen.unserved) > 5 else "")
        do = "start workers for their pools and lanes: hub worker --pool all"
        yield Look("failed", "queues", f"{len(seen.unserved)} are served by nobody: {some}", do)
    else:
        served = len(frozenset().union(*seen.workers.values()))
        yield Look("ok", "queues", f"all {served} are served")


def _layout(settings: Settings, stores: int) -> Look:
    from tasks.app import POOLED_FROM

    shards = min(settings.pools[pool].shards for pool in ("offers", "catalog"))
    found = f"{settings.layout}, {stores} stores in {shards} shard{'s' if shards > 1 else ''}"
    if settings.layout == "per_store" and stores >= POOLED_FROM * shards:
        do = f"write layout: pooled in queues.yaml; from about {POOLED_FROM} stores a shard on it is the faster one"
        return Look("warning", "layout", found, do)
    return Look("ok", "layout", found)


def _there(what: str, names: list[str], do: str) -> Look:
    if not names:
        return Look("failed", what, "none is alive", do)
    return Look("ok", what, f"{len(names)} alive: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}")


def _doors(settings: Settings) -> Iterator[Look]:
    yield _door("intake", f"{settings.public_url}/readyz", "start: hub intake; HUB_PUBLIC_URL must lead to it")
    yield _door("logs endpoint", f"{settings.api_url}/livez", "start: hub api; HUB_API_URL must lead to it")


def _door(what: str, url: str, do: str) -> Look:
    import requests

    try:
        answer = requests.get(url, timeout=3, allow_redirects=False, stream=True)
        answer.close()
    except requests.RequestException as fault:
        return Look("failed", what, f"{url} does not answer ({type(fault).__name__})", do)
    if answer.status_code != 200:
        return Look("failed", what, f"{url} answers {answer.status_code}", do)
    return Look("ok", what, url)


def _stores(settings: Settings, box: SecretBox, *, ask: bool) -> Iterator[Look]:
    from hub import db
    from hub.links import Links

    with closing(db.open_pool(settings.database_url, settings.schema, name="doctor", max_size=2)) as pool:
        links = Links(settings, pool, box)
        try:
            links.refresh()
            stores = links.stores()
        except HubError as fault:
            yield Look("failed", "stores", str(fault))
            return
        if not stores:
            yield Look("warning", "stores", "none is registered", "hub store add --help")
        for store in stores:
            if store.status != "active":
                yield Look("warning", f"store {store.slug}", f"is {store.status}", f"hub store resume {store.slug}")
                continue
            if store.faults:
                wrong = "; ".join(fault.sentence() for fault in store.faults)
                yield Look("failed", f"store {store.slug}", wrong, f"hub store configure {store.slug} FILE")
                continue
            yield from _store(links, store.slug, ask=ask)


def _store(links: Links, slug: str, *, ask: bool) -> Iterator[Look]:
    from hub.checks import check

    what = f"store {slug}"
    try:
        link = links.get(slug)
        found = check(link) if ask and link is not None else []
    except BadInput as wrong:
        anew = f"hub store credentials {slug}"
        if {problem.field for problem in wrong.problems} & {"HUB_KEY", "HUB_KEY_FILE"}:
            # What is entered under a wrong key is sealed with it, and then no single key opens everything.
            anew = f"give the right key; only if it is lost: hub store rotate-token {slug}, then {anew}"
        yield Look("failed", what, str(wrong), anew)
        return
    except HubError as fault:
        yield Look("failed", what, str(fault), f"hub store credentials {slug}")
        return
    for one in found:
        problem = one.problem
        said = f"{problem.field} {problem.value}".strip() or "is not right"
        yield Look("warning" if one.warning else "failed", what, f"{one.side}: {said}", problem.fix)
    if not found:
        yield Look("ok", what, "VTEX and marketplace answer, everything is right" if ask else "its secrets open")
