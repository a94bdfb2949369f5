"""Every connection to PostgreSQL is opened here, with the same settings; migrations run once, in order, unchanged.

    HubError
    ├── StorageAway      PostgreSQL cannot answer now (away, restarting, overloaded, too slow): the same may work later
    └── StorageRefused   PostgreSQL refuses the statement or a value in it: repeating the same cannot work

`translated` is the one door through which errors of psycopg become these two. Neither shows a value of a row.
"""

from __future__ import annotations

import hashlib
import random
import re
import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import psycopg
import psycopg_pool
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hub.errors import BadInput, HubError, Problem

OLDEST_POSTGRES: Final = 14
MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
CONNECT_SECONDS: Final = 5
STATEMENT_SECONDS: Final = 30.0
IDLE_IN_TRANSACTION_SECONDS: Final = 60.0
TRUSTED_SECONDS: Final = 1.0  # a connection idle for longer is tried before it is lent
MIGRATION_TURN_SECONDS: Final = 60.0  # how long a second migration waits for the first
MIGRATION_LOCK_SECONDS: Final = 10.0  # a migration gives up rather than queue up everybody behind it

_COLLISIONS: Final = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
_CHECK_VIOLATED: Final = "23514"
SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MIGRATION_NAME: Final = re.compile(r"\d{4}_[a-z0-9_]+\.sql")

# Row-independent states of the server; in all of them the same statement may work a moment later:
# connection exceptions, transaction rollbacks, insufficient resources, operator intervention (shutdown,
# statement_timeout), system errors, lock_timeout, read-only after a failover, idle-in-transaction time-out.
_PASSING: Final = ("08", "40", "53", "57", "58", "55P03", "25006", "25P03")

Answer = TypeVar("Answer")


class StorageAway(HubError):  # noqa: N818 – named by what happens next, see hub.errors
    """PostgreSQL cannot answer now. `sqlstate` is its code when it gave one."""

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        self.sqlstate = sqlstate
        super().__init__(message)


class StorageRefused(HubError):  # noqa: N818 – see StorageAway
    """PostgreSQL refuses the statement or a value in it (constraint, type, NUL character). `sqlstate` as above."""

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        self.sqlstate = sqlstate
        super().__init__(message)


TREES = r"string_to_array(%s, e'\x1e', '')::jsonb[]"
"""In SQL, what `trees` joined."""


def trees(documents: Iterable[str | None]) -> str:
    """JSON documents as one parameter for `TREES`; `None` is null, and one null alone is an array of no elements.

    An array parameter would have every quote of every document escaped one by one: 40 times the CPU. The separator
    cannot stand in what `json.dumps` wrote.
    """
    return "\x1e".join(document or "" for document in documents)


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of psycopg and its pool into `StorageAway` or `StorageRefused`."""
    try:
        yield
    except psycopg.Error as fault:
        # `from None`: the original text quotes values of rows, and a chained traceback would print it.
        raise _translation(fault) from None


def retrying(attempt: Callable[[], Answer], *, times: int = 3) -> Answer:
    """Call `attempt`, and again up to `times` when PostgreSQL made it yield to another transaction.

    Only deadlocks, serialization failures and rows whose partition was made while they were on their way are repeated:
    in all of them everything was rolled back. `attempt` must be the whole transaction. The last error comes out as it
    is.
    """
    for turn in range(times):
        try:
            return attempt()
        except (psycopg.Error, StorageAway) as fault:
            overtaken = _overtaken(fault) if isinstance(fault, psycopg.Error) else fault.sqlstate == _CHECK_VIOLATED
            if fault.sqlstate not in _COLLISIONS and not overtaken:
                raise
        time.sleep(random.uniform(0.002, 0.02) * (turn + 1))  # noqa: S311 – spreads contenders, hides nothing
    return attempt()


def conninfo(
    database_url: str,
    schema: str,
    *,
    name: str,
    statement_seconds: float = STATEMENT_SECONDS,
    seqscan: bool = True,
) -> str:
    """The connection string with the hub's session settings; good for sync and async connections alike.

    search_path is `schema`, the time zone is UTC, `name` is what `pg_stat_activity` shows. `seqscan=False` keeps the
    planner on the indexes of tables whose statistics lag behind (workers: a just filled `states` looks empty), and on
    joins that take rows in the order of their keys.
    `BadInput` when `database_url` cannot be read; its text is never repeated, it may hold a password.
    """
    asked = _asked(database_url)
    session = {
        "search_path": f'"{_checked_schema(schema)}"',
        "timezone": "UTC",
        "jit": "off",  # short statements; a large backlog only looks expensive
        "statement_timeout": f"{round(statement_seconds * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{round(IDLE_IN_TRANSACTION_SECONDS * 1000)}ms",
        "hub.claims": "rows",  # told from older versions by a trigger: migrations/0004
    }
    if not seqscan:
        session |= dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_memoize"), "off")
        session |= {"plan_cache_mode": "force_generic_plan"}  # a claim is planned for longer than it runs
    options = " ".join(f"-c {key}={value}" for key, value in session.items())
    patience = {"connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30, "tcp_user_timeout": 30_000}
    return make_conninfo(
        database_url,
        **{key: value for key, value in patience.items() if key not in asked},
        application_name=f"hub {name}"[:63],
        options=f"{asked['options']} {options}" if asked.get("options") else options,
    )


def servers(database_url: str) -> str:
    """Whom libpq asks for this connection string, as host:port; several with commas. Nothing else of it is told."""
    asked = _usual() | _asked(database_url)
    hosts = (asked.get("host") or asked.get("hostaddr") or "the local socket").split(",")
    ports = (asked.get("port") or "5432").split(",")
    return ", ".join(f"{host}:{ports[min(place, len(ports) - 1)]}" for place, host in enumerate(hosts))


def identity(database_url: str, schema: str) -> str:
    """A digest, equal for one server, database and schema, whoever logs in and how. It shows nothing of them."""
    asked = _usual() | _asked(database_url)
    parts = (asked.get("service"), servers(database_url), asked.get("dbname") or asked.get("user"), schema)
    return hashlib.sha256("\0".join(part or "" for part in parts).encode()).hexdigest()[:32]


def _asked(database_url: str) -> dict[str, str]:
    try:
        return {key: str(value) for key, value in conninfo_to_dict(database_url).items() if value}
    except psycopg.Error:
        fix = "write it as postgresql://user:password@host:port/database"
        raise BadInput([Problem("input", field="DATABASE_URL", fix=fix)]) from None


def _usual() -> dict[str, str]:
    return {option.keyword.decode(): (option.val or b"").decode() for option in psycopg.pq.Conninfo.get_defaults()}


class _Lent(psycopg.Connection):
    """A connection that knows since when it is idle."""

    idle_since = 0.0


def _check(connection: psycopg.Connection) -> None:
    """Raise when the server is gone; a trip only where that is not known already.

    A server that stops closes its connections: the socket then has something to read, which an idle one never has.
    One that vanished without a word is found after a second of idleness at the latest.
    """
    known = isinstance(connection, _Lent) and time.monotonic() - connection.idle_since < TRUSTED_SECONDS
    if known:
        socket = select.poll()
        socket.register(connection.fileno(), select.POLLIN)
        known = not socket.poll(0)
    if not known:
        psycopg_pool.ConnectionPool.check_connection(connection)


class _Pool(psycopg_pool.ConnectionPool[psycopg.Connection]):
    """A pool whose connections know since when they are idle; its `reset` would send each through another thread."""

    def putconn(self, conn: psycopg.Connection) -> None:
        """The pool has it back."""
        if isinstance(conn, _Lent):
            conn.idle_since = time.monotonic()
        super().putconn(conn)


def open_pool(
    database_url: str,
    schema: str,
    *,
    name: str,
    min_size: int = 1,
    max_size: int = 8,
    seqscan: bool = True,
    timeout: float = 5.0,
) -> psycopg_pool.ConnectionPool[psycopg.Connection]:
    """A pool of autocommit connections; close it when done.

    Does not wait for PostgreSQL: while it is away each `pool.connection()` raises `PoolTimeout` after `timeout`
    seconds (`StorageAway` inside `translated`), and the pool finds it again by itself. A connection that may be broken
    is tried before it is lent, so that a restart of PostgreSQL costs no caller an error.
    """
    pool = _Pool(
        conninfo(database_url, schema, name=name, seqscan=seqscan),
        connection_class=_Lent,
        kwargs={"autocommit": True, "prepare_threshold": 5 if seqscan else 1},
        min_size=min_size,
        max_size=max_size,
        timeout=timeout,
        max_lifetime=3600.0,
        check=_check,
        name=name,
        open=False,
    )
    pool.open(wait=False)
    return pool


def column(values: Iterable[str | float | bool | None]) -> str:
    """The values as the literal of an array, for a parameter that its statement casts (`%s::text[]`).

    psycopg's own dumper of lists takes a microsecond or more for each element.
    """
    return f"{{{','.join(map(_literal, values))}}}"


def _literal(element: str | float | bool | None) -> str:
    if isinstance(element, str):
        return '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "NULL" if element is None else str(element)


def migrate(database_url: str, schema: str = "hub", *, folder: Path = MIGRATIONS) -> list[str]:
    """Bring `schema` (created when missing) up to date; the answer names the migrations that ran now.

    Files `NNNN_name.sql` of `folder` run once each, in order, each in one transaction, under an advisory lock: of two
    processes that start together the second waits and finds nothing to do. `BadInput` when PostgreSQL is too old, a
    file that already ran was changed or is missing, or numbers repeat. `StorageAway`, `StorageRefused`.
    """
    files = _migration_files(folder)
    where = conninfo(database_url, schema, name="migrate", statement_seconds=0)
    with translated(), psycopg.connect(where, autocommit=True) as connection:
        _refuse_old_server(connection)
        _set(connection, "lock_timeout", f"{round(MIGRATION_TURN_SECONDS)}s")
        connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", [f"hub migrate {schema}"])
        _set(connection, "lock_timeout", f"{round(MIGRATION_LOCK_SECONDS)}s")
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
        connection.execute(
            "create table if not exists migrations ("
            "name text primary key, sha256 text not null, ran_at timestamptz not null default now())"
        )
        ran: dict[str, str] = dict(connection.execute("select name, sha256 from migrations").fetchall())
        _refuse_changed(ran, files)
        fresh = [name for name in files if name not in ran]
        for name in fresh:
            with connection.transaction():
                connection.execute(files[name])
                connection.execute(
                    "insert into migrations (name, sha256) values (%s, %s)", [name, _fingerprint(files[name])]
                )
        return fresh


def migrations(database_url: str, schema: str = "hub", *, folder: Path = MIGRATIONS) -> list[tuple[str, str | None]]:
    """Every migration in order, with the time it ran (ISO, UTC) or `None`; changes nothing.

    `BadInput` and `StorageAway` as `migrate`.
    """
    files = _migration_files(folder)
    where = conninfo(database_url, schema, name="migrations")
    with translated(), psycopg.connect(where, autocommit=True) as connection:
        _refuse_old_server(connection)
        known = connection.execute("select to_regclass('migrations') is not null").fetchone()
        if known is None or not known[0]:
            return [(name, None) for name in files]
        found = connection.execute(
            """select name, sha256, to_char(ran_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') from migrations"""
        ).fetchall()
        _refuse_changed({name: digest for name, digest, _ in found}, files)
        times = {name: str(ran) for name, _, ran in found}
        return [(name, times.get(name)) for name in files]


def _set(connection: psycopg.Connection, name: str, value: str) -> None:
    connection.execute("select set_config(%s, %s, false)", [name, value])


def _checked_schema(schema: str) -> str:
    if SCHEMA_NAME.fullmatch(schema):
        return schema
    fix = "use lower-case letters, digits and underscores, at most 63, not beginning with a digit"
    raise BadInput([Problem("input", field="HUB_SCHEMA", value=schema[:80], fix=fix)])


def _migration_files(folder: Path) -> dict[str, bytes]:
    names = sorted(path.name for path in folder.glob("*.sql"))
    problems = [
        Problem("input", field="migration", value=name, fix="name it NNNN_what_it_does.sql")
        for name in names
        if not _MIGRATION_NAME.fullmatch(name)
    ]
    numbers = [name[:4] for name in names]
    problems += [
        Problem("input", field="migration", value=name, fix=f"number {name[:4]} is taken twice; renumber one")
        for name in names
        if numbers.count(name[:4]) > 1
    ]
    if not names:
        problems.append(Problem("input", field="migrations", fix="the folder holds no migration; reinstall the hub"))
    if problems:
        raise BadInput(problems)
    return {name: (folder / name).read_bytes() for name in names}


def _fingerprint(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _refuse_old_server(connection: psycopg.Connection) -> None:
    major = connection.info.server_version // 10_000
    if major < OLDEST_POSTGRES:
        fix = f"use PostgreSQL {OLDEST_POSTGRES} or newer"
        raise BadInput([Problem("input", field="PostgreSQL version", value=str(major), fix=fix)])


def _refuse_changed(ran: dict[str, str], files: dict[str, bytes]) -> None:
    problems = []
    for name, fingerprint in sorted(ran.items()):
        if name not in files:
            fix = "this database was migrated by a newer hub; run that version"
            problems.append(Problem("input", field="migration", value=name, fix=fix))
        elif _fingerprint(files[name]) != fingerprint:
            fix = "the file was changed after it ran; restore it and put the change into a new migration"
            problems.append(Problem("input", field="migration", value=name, fix=fix))
    if problems:
        raise BadInput(problems)


def _overtaken(fault: psycopg.Error) -> bool:
    """A row was on its way to the default partition when its own one was attached; the next try finds that.

    Bounds of partitions have no name, unlike every check that we made.
    """
    return fault.sqlstate == _CHECK_VIOLATED and not fault.diag.constraint_name


def _translation(fault: psycopg.Error) -> StorageAway | StorageRefused:
    kind, state = type(fault).__name__, fault.sqlstate
    if isinstance(fault, psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed | psycopg_pool.TooManyRequests):
        return StorageAway(f"PostgreSQL gave no connection in time ({kind})")
    if state is None and isinstance(fault, psycopg.OperationalError | psycopg.InterfaceError):
        # Said by libpq, not by a statement: host and port, never a value.
        said = (str(fault).strip().splitlines() or [""])[0][:200]
        return StorageAway(f"PostgreSQL cannot be reached ({kind}): {said}")
    where = ", ".join(
        f"{label} {name}"
        for label, name in (
            ("table", fault.diag.table_name),
            ("column", fault.diag.column_name),
            ("constraint", fault.diag.constraint_name),
        )
        if name
    )
    text = f"{kind}, {state or 'client side'}" + (f", {where}" if where else "")
    if state is not None and (state.startswith(_PASSING) or _overtaken(fault)):
        return StorageAway(f"PostgreSQL cannot do it now ({text})", sqlstate=state)
    return StorageRefused(f"PostgreSQL refused ({text})", sqlstate=state)
