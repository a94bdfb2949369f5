"""The registry: which stores there are, how each is set, and its secrets, which PostgreSQL keeps only encrypted.

Every change is one transaction with its audit entry, and moves `Registry.version`: running processes compare it and
read the registry again. Secrets have a version of their own, so that newer ones open the gates that older ones shut.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from psycopg.types.json import Jsonb
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hub import db
from hub.errors import BadInput, Problem, Side
from hub.parsing import Location, Naming, Unshown, dotted, parsed, problems_of, suggestion
from hub.ports import Limit, Webhook
from hub.private_file import create_private, read_private
from hub.rules import InventoryRules, ListingRules, PricingRules, Rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection
    from psycopg_pool import ConnectionPool

Status = Literal["active", "paused", "removed"]
SecretSide = Literal["vtex", "marketplace", "hub"]

_SLUG: Final = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")
_ACCOUNT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_AFFILIATE: Final = re.compile(r"[B-DF-HJ-NP-TV-Z]{3}")
_LARGEST_CHANNEL: Final = 2**31 - 1
_TOKEN_BYTES: Final = 24  # 192 bits: the URL is the only secret of a notification (vtex.md 4.1)

_Answer = TypeVar("_Answer")


# ---------------------------------------------------------------- settings of one store


def _url(text: str) -> str:
    fix = "write an http(s) URL with a host, without user, password and query"
    try:
        parts = urlsplit(text)
        host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port is not None else ''}"
    except ValueError:  # a port that is no number may be a password
        raise Unshown(fix) from None
    if text and (parts.scheme not in {"http", "https"} or not host or "@" in text or parts.query):
        before, at, _ = text.rpartition("@")
        plain = host and not (at and set(before.partition("//")[2]) & set("/?#"))  # else the host is part of a password
        raise Unshown(fix, f"{parts.scheme}://{host}/…" if plain and parts.scheme else "")
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class StoreSettings(BaseModel):
    """What a store chose. Everything has a default: `{}` is a working store on VTEX's own hosts.

    `vtex_url`: where the account answers; `{account}` is filled in. `marketplace_url`, `hub_url`: empty for the
    marketplace's own and the installation's. `defaults`: values of listing fields that the product lacks (their use is
    logged as A3). `look_again`: seconds until a value announced or seen as changed is read again (vtex.md
    7.6).
    `order_policy`: whether a simulation that disagrees with an order stops it (`strict`) or is written down only.
    `order_waits`: seconds until an order that VTEX does not take is tried again; the last repeats.
    `simulation`: which of VTEX's two paths is asked (vtex.md 6.1). `result_timer_seconds`: how long the result of an
    order integration is awaited before the order is looked up. `vtex_limit`, `marketplace_limit`: calls per second of
    the account, instead of the installation's or the marketplace's. `mapping_link`: where the seller maps categories.
    `mapper_url`: a page of the seller's that is asked for categories the table lacks (`hub.mapper`); `{account}` is
    filled in.
    `webhook`: how the marketplace's events are signed, from its manifest; without it the store takes no events.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    vtex_url: Url = "https://{account}.vtexcommercestable.com.br"
    marketplace_url: Url = ""
    hub_url: Url = ""
    pricing: PricingRules = PricingRules()
    inventory: InventoryRules = InventoryRules()
    defaults: Mapping[str, str] = Field(default_factory=dict)
    look_again: Annotated[tuple[Seconds, ...], Field(max_length=10)] = (60.0, 300.0)
    mapping_link: Url = ""
    mapper_url: Url = ""
    poll_orders_seconds: Seconds = 60.0
    order_policy: Literal["strict", "advisory"] = "strict"
    order_waits: Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=20)] = (60.0, 120.0, 240.0, 480.0, 600.0)
    simulation: Literal["fulfillment", "checkout"] = "fulfillment"
    result_timer_seconds: Seconds = 600.0
    vtex_limit: Limit | None = None
    marketplace_limit: Limit | None = None
    webhook: Webhook | None = None

    @property
    def rules(self) -> Rules:
        """What decides what is sent, as the contexts take it."""
        return Rules(
            pricing=self.pricing,
            inventory=self.inventory,
            listing=ListingRules(defaults=dict(self.defaults)),
            look_again=self.look_again,
            mapping_link=self.mapping_link,
            order_policy=self.order_policy,
            order_waits=self.order_waits,
            result_timer=self.result_timer_seconds,
            poll_orders=self.poll_orders_seconds,
        )


_DECIDING: Final = ("vtex_url", "marketplace_url", "simulation", "pricing", "inventory", "defaults", "mapper_url")
"""Settings with which other values are read, worked out or shown for a SKU that did not change."""


@dataclass(frozen=True, slots=True)
class Store:
    """One VTEX account selling on one marketplace through one affiliate.

    `faults`: what is wrong with the settings that are stored, such as those of a version with wider bounds. Its parts
    that hold one are as if never set, so nobody may work by them: the store waits until it is configured.
    """

    id: int
    slug: str
    account: str
    affiliate: str
    sales_channel: int
    marketplace: str
    status: Status
    settings: StoreSettings
    faults: tuple[Problem, ...] = ()

    @property
    def vtex_url(self) -> str:
        """Base URL of the account, without a slash at its end."""
        return self.settings.vtex_url.replace("{account}", self.account)

    def decides_as(self, settings: StoreSettings) -> bool:
        """Whether the store sends the same as it would with these settings, and to the same place."""
        return not self.faults and all(getattr(self.settings, one) == getattr(settings, one) for one in _DECIDING)


@dataclass(frozen=True, slots=True)
class Door:
    """What the intake must know to let something in by a URL token.

    `secrets` are those that sign the marketplace's events, two while one rotates: `webhook_secret` and
    `webhook_previous_secret` of the marketplace's credentials.
    """

    store: int
    slug: str
    account: str
    affiliate: str
    status: Status
    webhook: Webhook | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


# ---------------------------------------------------------------- secrets


@dataclass(frozen=True, slots=True)
class Credentials:
    """Secrets of one side of a store; version 0 and no values when none were ever saved."""

    version: int
    values: Mapping[str, str] = field(repr=False)


class SecretBox:
    """Encrypts what must not lie readable in PostgreSQL (Fernet: AES-128-CBC with HMAC-SHA256).

    The first key seals; every key opens, so that keys can be changed: put the new one in front. `path` is the file
    that the keys were read from, if they were: a box that opens nothing names it.
    """

    def __init__(self, keys: Sequence[str | bytes], *, path: str = "") -> None:
        self._path = path
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError:  # also for no key at all; the text of a key is never repeated
            raise BadInput([_key_problem(_NO_KEY)]) from None

    def seal(self, plain: bytes) -> bytes:
        """Encrypt with the first key."""
        return self._fernet.encrypt(plain)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt with whichever key fits; `BadInput` when none does."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            fix = (
                "none of the keys opens what is stored; use the key of the other processes, or add the one it was "
                "sealed with behind the present one; then start again"
            )
            field = "HUB_KEY_FILE" if self._path else "HUB_KEY"
            raise BadInput([Problem("input", field=field, value=self._path, fix=fix)]) from None

    @staticmethod
    def from_env(env: Mapping[str, str] = os.environ) -> SecretBox:
        """The box with the keys of `HUB_KEY`, or of the file `HUB_KEY_FILE` names (mode 0600). Never makes a key."""
        text, path = env.get("HUB_KEY", ""), env.get("HUB_KEY_FILE", "")
        if text and path:
            raise BadInput([_key_problem("and HUB_KEY_FILE are both set; keep one")])
        if not text and not path:
            raise BadInput([_key_problem("is not set")])
        keys = re.split(r"[,\s]+", (text or read_private(Path(path), "HUB_KEY_FILE")).strip())
        try:
            return SecretBox(keys, path=path)
        except BadInput:
            if text:
                raise
            fix = f"{_NO_KEY}; name the right file, or another that is not there yet and run: hub key create"
            raise BadInput([Problem("input", field="HUB_KEY_FILE", value=path, fix=fix)]) from None

    @staticmethod
    def create_file(path: Path | str) -> str:
        """Write a new key to `path` (0600, must not exist); the answer tells the user what it is and what to do."""
        create_private(Path(path), "HUB_KEY_FILE", Fernet.generate_key() + b"\n")
        return (
            f"Made the key {path} (only you can read it). It opens the stores' credentials: keep a copy, apart from "
            "the database's backups; without it every credential must be entered again."
        )


_NO_KEY: Final = "is no Fernet key (44 characters of URL-safe base64)"


def _key_problem(what: str) -> Problem:
    fix = f"{what}; set HUB_KEY_FILE to a key file (mode 0600), which this makes: hub key create"
    return Problem("input", field="HUB_KEY", fix=fix)


# ---------------------------------------------------------------- the registry

_COLUMNS: Final = "id, slug, account, affiliate, sales_channel, marketplace, status, settings"


class Registry:
    """Stores and their secrets in PostgreSQL.

    Every method may raise `db.StorageAway` and `db.StorageRefused`; those that take a slug raise `BadInput` with a
    suggestion when there is no such store. `who` and `why` go to the audit.
    """

    def __init__(self, pool: ConnectionPool[Connection], box: SecretBox) -> None:
        self._pool = pool
        self._box = box

    def version(self) -> int:
        """Moves with every change; equal numbers mean that nothing changed in between."""
        with db.translated(), self._pool.connection() as connection:
            # last_value alone is 1 both before and after the first nextval
            found = connection.execute("select last_value + is_called::int from registry_version").fetchone()
        return int(found[0]) if found else 0

    def all(self) -> list[Store]:
        """Every store that was not removed, by slug."""
        with db.translated(), self._pool.connection() as connection:
            found = connection.execute(
                f"select {_COLUMNS} from stores where status <> 'removed' order by slug"
            ).fetchall()
        return [_store(row) for row in found]

    def marks(self) -> dict[int, str]:
        """Id of every store that was not removed → a mark that differs whenever it or its secrets were changed."""
        with db.translated(), self._pool.connection() as connection:
            return dict(
                connection.execute(
                    "select s.id, s.xmin::text || coalesce(c.marks, '') from stores s left join"
                    " (select store, string_agg(side || version || ':' || xmin::text, ',' order by side, version)"
                    "  as marks from credentials group by store) c on c.store = s.id where s.status <> 'removed'"
                ).fetchall()
            )

    def some(self, ids: Collection[int]) -> list[Store]:
        """The stores of these ids that were not removed, by slug."""
        with db.translated(), self._pool.connection() as connection:
            found = connection.execute(
                f"select {_COLUMNS} from stores where status <> 'removed' and id = any(%s) order by slug", [list(ids)]
            ).fetchall()
        return [_store(row) for row in found]

    def get(self, slug: str) -> Store:
        """The store of that name."""
        with db.translated(), self._pool.connection() as connection:
            return self._named(connection, slug)

    def find_by_token_digest(self, digest: bytes) -> Store | None:
        """Whose URL token has this SHA-256 (see `token_digest`); `None` when nobody's."""
        with db.translated(), self._pool.connection() as connection:
            row = connection.execute(
                f"select {_COLUMNS} from stores where token_digest = %s and status <> 'removed'", [digest]
            ).fetchone()
        return _store(row) if row else None

    def doors(self) -> dict[bytes, Door]:
        """SHA-256 of every URL token → whose it is; removed stores too, for VTEX goes on notifying (NOT-26)."""
        with db.translated(), self._pool.connection() as connection:
            found = connection.execute(
                "select s.id, s.slug, s.account, s.affiliate, s.status, s.token_digest, s.settings -> 'webhook', "
                "c.secret from stores s left join lateral (select secret from credentials where store = s.id and "
                "side = 'marketplace' and s.settings -> 'webhook' ->> 'scheme' <> 'none' "
                "order by version desc limit 1) c on true"
            ).fetchall()
        return {bytes(row[5]): self._door(row) for row in found}

    def _door(self, row: Sequence[Any]) -> Door:
        store_id, slug, account, affiliate, status, _, webhook, sealed = row
        try:
            values = {} if sealed is None else dict(json.loads(self._box.open(bytes(sealed))))
        except BadInput:  # the wrong key stops this store's signed events (401: no secret), not every notification
            values = {}
        return Door(
            store=store_id,
            slug=slug,
            account=account,
            affiliate=affiliate,
            status=status,
            webhook=stored_settings({"webhook": webhook}, slug=slug)[0].webhook,
            secrets=tuple(values[name] for name in ("webhook_secret", "webhook_previous_secret") if values.get(name)),
        )

    def add(
        self,
        *,
        slug: str,
        account: str,
        affiliate: str,
        sales_channel: int,
        marketplace: str,
        who: str,
        why: str = "",
        settings: Mapping[str, Any] | None = None,
        credentials: Mapping[Side, Mapping[str, str]] | None = None,
        marketplaces: Collection[str] | None = None,
    ) -> tuple[Store, str]:
        """Register a store; the answer has its URL token, which is shown nowhere else but in `token`.

        `account` may be a host name (what follows the first dot is dropped). `marketplaces`: the known names, checked
        when given. `BadInput` with every problem at once.
        """
        account, affiliate = _plain(account), affiliate.strip().upper()
        chosen = _acceptable(
            slug=slug,
            account=account,
            affiliate=affiliate,
            sales_channel=sales_channel,
            marketplace=marketplace,
            settings=settings,
            marketplaces=marketplaces,
        )
        token = secrets.token_urlsafe(_TOKEN_BYTES)

        def insert(connection: Connection) -> Store:
            # Two people adding the same store at once: the second waits here and then sees the first.
            connection.execute("lock table stores in share row exclusive mode")
            self._refuse_taken(connection, slug, account, affiliate)
            row = connection.execute(
                "insert into stores (slug, account, affiliate, sales_channel, marketplace, token_digest, settings) "
                f"values (%s, %s, %s, %s, %s, %s, %s) returning {_COLUMNS}",
                [slug, account, affiliate, sales_channel, marketplace, token_digest(token), _stored(chosen)],
            ).fetchone()
            store = _store(_present(row))
            self._save_secret(connection, store.id, "hub", {"token": token})
            for side, values in (credentials or {}).items():
                self._save_secret(connection, store.id, side, values)
            _audit(connection, who, "store add", store.id, {"slug": slug, "marketplace": marketplace, "why": why})
            return store

        return self._changed(insert), token

    def draft(
        self,
        *,
        slug: str,
        account: str,
        affiliate: str,
        sales_channel: int,
        marketplace: str,
        settings: Mapping[str, Any] | None = None,
        marketplaces: Collection[str] | None = None,
    ) -> Store:
        """The store that `add` would register, with id 0; nothing is kept. `BadInput` as `add`."""
        account, affiliate = _plain(account), affiliate.strip().upper()
        chosen = _acceptable(
            slug=slug,
            account=account,
            affiliate=affiliate,
            sales_channel=sales_channel,
            marketplace=marketplace,
            settings=settings,
            marketplaces=marketplaces,
        )
        with self._transaction() as connection:
            self._refuse_taken(connection, slug, account, affiliate)
        return Store(0, slug, account, affiliate, sales_channel, marketplace, "active", chosen)

    def configure(self, slug: str, settings: Mapping[str, Any], *, who: str, why: str = "") -> Store:
        """Replace a store's settings as a whole. `BadInput` with every problem at once.

        Where they decide otherwise what is sent, the sweep has the store compared with them soon
        (`hub.reconciliations`).
        """
        chosen = parse_settings(settings)

        def update(connection: Connection) -> Store:
            store = self._named(connection, slug, lock=True)
            row = connection.execute(
                # What a newer version of the hub has added stays.
                "update stores set settings = (settings - %s::text[]) || %s, changed_at = now(),"
                " rules_changed_at = case when %s then rules_changed_at else now() end"
                f" where id = %s returning {_COLUMNS}",
                [list(StoreSettings.model_fields), _stored(chosen), store.decides_as(chosen), store.id],
            ).fetchone()
            _audit(connection, who, "store configure", store.id, {"settings": json.loads(_json(chosen)), "why": why})
            return _store(_present(row))

        return self._changed(update)

    def pause(self, slug: str, who: str, why: str) -> Store:
        """Shut the store's gate: notices are kept, nothing is attempted until `resume`."""
        return self._changed(lambda connection: self._set_status(connection, slug, "paused", who, why))

    def resume(self, slug: str, who: str, why: str = "") -> Store:
        """Open the gate that `pause` shut; what waits behind it goes on."""
        return self._changed(lambda connection: self._set_status(connection, slug, "active", who, why))

    def remove(self, slug: str, who: str, why: str) -> Store:
        """Take the store out of service for good: what its URL gets is only counted, its secrets go, its gate is shut.

        What is known of it (states, bindings, interactions, audit) stays. Its name is not given out again.
        """

        def leave(connection: Connection) -> Store:
            store = self._set_status(connection, slug, "removed", who, why)
            connection.execute("delete from credentials where store = %s", [store.id])
            return store

        return self._changed(leave)

    def rotate_token(self, slug: str, who: str, why: str = "") -> str:
        """Give the store a new URL token; the old one stops working at once, so VTEX must be told the new URL."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)

        def replace(connection: Connection) -> str:
            store = self._named(connection, slug, lock=True)
            connection.execute(
                "update stores set token_digest = %s, changed_at = now() where id = %s", [token_digest(token), store.id]
            )
            self._save_secret(connection, store.id, "hub", {"token": token})
            _audit(connection, who, "store rotate-token", store.id, {"why": why})
            return token

        return self._changed(replace)

    def token(self, store_id: int) -> str:
        """The token in the store's URLs; empty when the store was removed."""
        return self.credentials(store_id, "hub").values.get("token", "")

    def credentials(self, store_id: int, side: SecretSide) -> Credentials:
        """The newest secrets of one side."""
        with db.translated(), self._pool.connection() as connection:
            row = connection.execute(
                "select version, secret from credentials where store = %s and side = %s order by version desc limit 1",
                [store_id, side],
            ).fetchone()
        if row is None:
            return Credentials(0, {})
        return Credentials(int(row[0]), dict(json.loads(self._box.open(bytes(row[1])))))

    def secrets(self, store_id: int) -> dict[SecretSide, Credentials]:
        """The newest secrets of all three sides; version 0 and no values where none were ever saved."""
        with db.translated(), self._pool.connection() as connection:
            rows = connection.execute(
                "select side, version, secret from credentials where store = %s order by side, version", [store_id]
            ).fetchall()
        found: dict[SecretSide, Credentials] = {side: Credentials(0, {}) for side in get_args(SecretSide)}
        newest = {row[0]: row for row in rows}
        for side in found:
            if side in newest:
                _, version, sealed = newest[side]
                found[side] = Credentials(int(version), dict(json.loads(self._box.open(bytes(sealed)))))
        return found

    def save_credentials(self, store_id: int, side: Side, values: Mapping[str, str], *, who: str = "hub") -> int:
        """Keep new secrets of one side and forget the older; the answer is their version.

        Opens the gates that older ones shut. The audit gets the names of the values, never the values.
        """

        def save(connection: Connection) -> int:
            connection.execute("select 1 from stores where id = %s for update", [store_id])
            version = self._save_secret(connection, store_id, side, values)
            connection.execute(
                "delete from gates where store = %s and side = %s and cause = 'credentials' and version < %s",
                [store_id, side, version],
            )
            detail = {"side": side, "version": version, "names": sorted(values)}
            _audit(connection, who, "credentials save", store_id, detail)
            return version

        return self._changed(save)

    # ------------------------------------------------------------ inside

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with db.translated(), self._pool.connection() as connection, connection.transaction():
            yield connection

    def _changed(self, change: Callable[[Connection], _Answer]) -> _Answer:
        """Run `change` as one transaction and move the version."""

        def attempt() -> _Answer:
            with self._transaction() as connection:
                answer = change(connection)
                connection.execute("select nextval('registry_version')")
                return answer

        answer = db.retrying(attempt)
        # A sequence moves before its transaction commits: who looked in between has read the old rows under the new
        # number. Moving it again after the commit makes them look again.
        with db.translated(), self._pool.connection() as connection:
            connection.execute("select nextval('registry_version')")
        return answer

    def _named(self, connection: Connection, slug: str, *, lock: bool = False) -> Store:
        row = connection.execute(
            f"select {_COLUMNS} from stores where slug = %s {'for update' if lock else ''}", [slug]
        ).fetchone()
        if row is not None and row[6] != "removed":
            return _store(row)
        known = [name for (name,) in connection.execute("select slug from stores where status <> 'removed'")]
        what = "was removed" if row is not None else "is no store"
        raise BadInput([Problem("input", field="store", value=slug[:80], fix=f"{what}; {suggestion(slug, known)}")])

    def _refuse_taken(self, connection: Connection, slug: str, account: str, affiliate: str) -> None:
        problems = []
        for name, status, same_pair in connection.execute(
            "select slug, status, account = %(account)s and affiliate = %(affiliate)s and status <> 'removed' "
            "from stores where slug = %(slug)s or (account = %(account)s and affiliate = %(affiliate)s)",
            {"slug": slug, "account": account, "affiliate": affiliate},
        ):
            if name == slug:
                fix = "was removed, and names are not given out again" if status == "removed" else "exists already"
                problems.append(Problem("input", field="slug", value=slug, fix=f"{fix}; choose another"))
            elif same_pair:
                fix = f"already belongs to store {name} of account {account}; make another affiliate in VTEX"
                problems.append(Problem("input", field="affiliate", value=affiliate, fix=fix))
        if problems:
            raise BadInput(problems)

    def _set_status(self, connection: Connection, slug: str, status: Status, who: str, why: str) -> Store:
        store = self._named(connection, slug, lock=True)
        row = connection.execute(
            f"update stores set status = %s, changed_at = now() where id = %s returning {_COLUMNS}", [status, store.id]
        ).fetchone()
        if status == "active":
            connection.execute("delete from gates where store = %s and context = '*' and side = 'operator'", [store.id])
        else:
            connection.execute(
                "insert into gates (store, context, side, cause, who, why) "
                "values (%s, '*', 'operator', 'operator', %s, %s) "
                "on conflict (store, context, side) do update set who = excluded.who, why = excluded.why",
                [store.id, who, why if status == "paused" else f"removed: {why}"],
            )
        action = {"active": "store resume", "paused": "store pause", "removed": "store remove"}[status]
        _audit(connection, who, action, store.id, {"why": why})
        return _store(_present(row))

    def _save_secret(self, connection: Connection, store_id: int, side: SecretSide, values: Mapping[str, str]) -> int:
        sealed = self._box.seal(json.dumps(dict(values)).encode())
        row = connection.execute(
            "insert into credentials (store, side, version, secret) "
            "select %(store)s, %(side)s, coalesce(max(version), 0) + 1, %(secret)s "
            "from credentials where store = %(store)s and side = %(side)s returning version",
            {"store": store_id, "side": side, "secret": sealed},
        ).fetchone()
        version = int(_present(row)[0])
        connection.execute(
            "delete from credentials where store = %s and side = %s and version < %s", [store_id, side, version]
        )
        return version


def token_digest(token: str) -> bytes:
    """What PostgreSQL keeps to find the store of a URL token: 192 random bits need no salt and no slow hash."""
    return hashlib.sha256(token.encode()).digest()


_UNKNOWN: Final = frozenset({"extra_forbidden", "unexpected_keyword_argument"})


def stored_settings(tree: Mapping[str, Any], *, slug: str) -> tuple[StoreSettings, tuple[Problem, ...]]:
    """Settings as PostgreSQL keeps them, and what is wrong with them; each part that is wrong has its default.

    What a newer version of the hub has added is not looked at.
    """
    known = json.loads(json.dumps(tree))
    try:
        return StoreSettings.model_validate_json(json.dumps(known)), ()
    except ValidationError as objections:
        newer = [one["loc"] for one in objections.errors(include_url=False) if one["type"] in _UNKNOWN]
    for *path, name in newer:
        place = known
        for part in path:
            place = place[part]
        place.pop(name)
    try:
        return StoreSettings.model_validate_json(json.dumps(known)), ()
    except ValidationError as objections:
        wrong = {one["loc"][0] for one in objections.errors(include_url=False)}
        faults = tuple(problems_of(objections, StoreSettings, naming=_naming(slug)))
    return StoreSettings.model_validate_json(json.dumps({k: v for k, v in known.items() if k not in wrong})), faults


def parse_settings(tree: Mapping[str, Any]) -> StoreSettings:
    """Settings of a store from JSON; `BadInput` with every problem at once, each naming its field."""
    return parsed(StoreSettings, tree, naming=_naming())


def _naming(slug: str = "") -> Naming:
    def naming(location: Location, *, missing: bool) -> str:  # noqa: ARG001 – a `Naming`
        return f"{slug} settings.{dotted(location)}".strip().rstrip(".")

    return naming


def _plain(account: str) -> str:
    return account.strip().lower().partition(".")[0]


def _acceptable(
    *,
    slug: str,
    account: str,
    affiliate: str,
    sales_channel: int,
    marketplace: str,
    settings: Mapping[str, Any] | None,
    marketplaces: Collection[str] | None,
) -> StoreSettings:
    """The settings of a store that may be registered so. `BadInput` with every problem at once."""
    problems = _name_problems(
        slug=slug,
        account=account,
        affiliate=affiliate,
        sales_channel=sales_channel,
        marketplace=marketplace,
        marketplaces=marketplaces,
    )
    chosen = StoreSettings()
    try:
        chosen = parse_settings(settings or {})
    except BadInput as fault:
        problems += fault.problems
    if problems:
        raise BadInput(problems)
    return chosen


def _name_problems(
    *,
    slug: str,
    account: str,
    affiliate: str,
    sales_channel: int,
    marketplace: str,
    marketplaces: Collection[str] | None,
) -> list[Problem]:
    checks = [
        (
            _SLUG.fullmatch(slug),
            ("slug", slug, "use 2–40 lower-case letters, digits and hyphens, beginning with a letter: acme-mkt"),
        ),
        (_ACCOUNT.fullmatch(account), ("account", account, "write the VTEX account name: acme")),
        (_AFFILIATE.fullmatch(affiliate), ("affiliate", affiliate, "write the affiliate's three consonants: MKT")),
        (
            1 <= sales_channel <= _LARGEST_CHANNEL,
            ("sales_channel", str(sales_channel), "write the number of the trade policy, 1 or more"),
        ),
        (
            marketplaces is None or marketplace in marketplaces,
            ("marketplace", marketplace, f"is not known; {suggestion(marketplace, marketplaces or ())}"),
        ),
    ]
    return [Problem("input", field=name, value=value[:80], fix=fix) for good, (name, value, fix) in checks if not good]


def _json(settings: StoreSettings) -> str:
    return settings.model_dump_json(exclude_defaults=True)


def _stored(settings: StoreSettings) -> Jsonb:
    return Jsonb(json.loads(_json(settings)))


def _store(row: Sequence[Any]) -> Store:
    store_id, slug, account, affiliate, sales_channel, marketplace, status, stored = row
    settings, faults = stored_settings(stored, slug=slug)
    return Store(
        id=store_id,
        slug=slug,
        account=account,
        affiliate=affiliate,
        sales_channel=sales_channel,
        marketplace=marketplace,
        status=status,
        settings=settings,
        faults=faults,
    )


def _present(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    if row is None:  # `returning` of a row that this transaction holds always answers
        raise db.StorageRefused("PostgreSQL did not return the row it was asked to write")
    return row


def _audit(connection: Connection, who: str, action: str, store: int, detail: Mapping[str, Any]) -> None:
    connection.execute(
        "insert into audit (who, action, store, detail) values (%s, %s, %s, %s)",
        [who, action, store, Jsonb({key: value for key, value in detail.items() if value != ""})],
    )
