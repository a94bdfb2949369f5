"""What a command works with: the settings of where it runs, PostgreSQL, the registry, the stores' doors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hub.cli.talk import Missing
from hub.errors import BadInput, Problem
from hub.runtime.place import Place

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

    from hub.links import Links
    from hub.ports import Link
    from hub.settings import Settings
    from hub.stores import Registry, SecretBox, Store

directory: ContextVar[str | None] = ContextVar("directory", default=None)
"""The directory given on the command line."""


def place() -> Place:
    """The directory of the hub that is meant."""
    return Place(directory.get())


def surroundings() -> dict[str, str]:
    """The environment with what the hub running here adds."""
    return place().surroundings(os.environ)


def settings_here() -> Settings:
    """The settings as the processes here have them. `BadInput` with every problem."""
    from hub.settings import Settings

    env = surroundings() | {"HUB_DIRECTORY": str(place().directory)}
    try:
        return Settings.load(env=env)
    except BadInput as wrong:
        if env.get("REDIS_URL") or env.get("DATABASE_URL"):
            raise
        where = place().directory
        hint = f"no hub runs on {where}: start `hub up` (or `hub demo`) there, or set REDIS_URL and DATABASE_URL"
        other = [one for one in wrong.problems if one.field not in {"REDIS_URL", "DATABASE_URL"}]
        raise BadInput([Problem("input", fix=hint), *other]) from None


@dataclass
class Desk:
    """PostgreSQL and what is built on it. Made by `opened`."""

    settings: Settings
    pool: ConnectionPool[Connection[tuple[Any, ...]]]
    env: dict[str, str]

    @cached_property
    def box(self) -> SecretBox:
        """The key of the credentials. `BadInput` when there is none."""
        from hub.stores import SecretBox

        return SecretBox.from_env(self.env)

    @cached_property
    def registry(self) -> Registry:
        """The stores."""
        from hub.stores import Registry

        return Registry(self.pool, self.box)

    @cached_property
    def links(self) -> Links:
        """The stores' doors."""
        from hub.links import Links

        links = Links(self.settings, self.pool, self.box)
        links.refresh()
        return links

    def store(self, slug: str) -> Store:
        """A store by name. `Missing` with a suggestion."""
        registry = self.registry  # a key that cannot be used is no store that is missing
        try:
            return registry.get(slug)
        except BadInput as unknown:
            raise Missing(unknown.problems) from None

    def link(self, slug: str) -> Link:
        """A store's doors. `Missing` with a suggestion."""
        store = self.store(slug)
        link = self.links.get(slug)
        return link if link is not None else self.links.build(store)

    def names(self) -> dict[int, str]:
        """Store id → name, removed stores too."""
        from hub.db import translated

        with translated(), self.pool.connection() as db:
            return {int(row[0]): str(row[1]) for row in db.execute("select id, slug from stores").fetchall()}

    def wake(self, slug: str, *contexts: str) -> None:
        """Wake workers at once, for all contexts when none is named; else the sweep does it a second later."""
        from hub.contexts import CONTEXTS
        from tasks.app import make_app
        from tasks.wake import Waker

        waker = Waker(self.settings, make_app(self.settings))
        with closing(waker), suppress(OSError):
            waker.wake([(slug, context) for context in contexts or CONTEXTS])


@contextmanager
def opened() -> Iterator[Desk]:
    """A desk for one command; refuses when PostgreSQL is away or was not migrated."""
    from hub import db

    env = surroundings()
    settings = settings_here()
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # what it meets is told in our own sentence
    with reaching(settings.database_url):
        _require_schema(settings)
        with closing(db.open_pool(settings.database_url, settings.schema, name="cli", max_size=4)) as pool:
            yield Desk(settings, pool, env)


@contextmanager
def reaching(database_url: str) -> Iterator[None]:
    """`StorageAway` of a PostgreSQL that does not answer says which one was asked and what to check."""
    from hub import db

    try:
        yield
    except db.StorageAway as away:
        if away.sqlstate is not None:  # it was reached
            raise
        fix = f"check DATABASE_URL (it names {db.servers(database_url)}) and that the server runs there"
        raise db.StorageAway(f"{away}; {fix}") from None


def _require_schema(settings: Settings) -> None:
    """By a connection of its own: a pool would try for seconds and not say what it met."""
    import psycopg

    from hub import db

    where = db.conninfo(settings.database_url, settings.schema, name="cli")
    with db.translated(), psycopg.connect(where, autocommit=True) as connection:
        row = connection.execute("select to_regclass('states') is not null").fetchone()
    if row is None or not row[0]:
        fix = "has no tables of the hub yet; run: hub db upgrade"
        raise BadInput([Problem("input", field="schema", value=settings.schema, fix=fix)])
