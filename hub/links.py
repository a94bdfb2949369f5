"""From a store's registration to its doors: VTEX, marketplace and states, ready to be used by contexts.

Links are built once and again whenever the registry moved (settings, credentials, status); everything outgoing of one
process goes through the one `Transport` that is made here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub import db
from hub.circuits import Circuit
from hub.errors import BadInput, HubError
from hub.limits import Room
from hub.mapper import CategoryMapper
from hub.marketplaces import Account, Renewer, adapter
from hub.ports import Link
from hub.settings import Settings
from hub.states import StoreStates
from hub.stores import Credentials, Registry, SecretBox, Store
from hub.transport import Call, Transport
from hub.unforeseen import Unforeseen
from hub.vtex import VtexStore

log = logging.getLogger("hub.links")

REFRESH_SECONDS = 0.5
"""How often a process looks whether the registry moved."""

TRUST_SECONDS = 60.0
"""The registry is read again after this even when it seems not to have moved: a crash may have hidden a change."""


@dataclass(slots=True)
class Links:
    """Every store's link, for one process. Thread-safe.

    `closed` is told the slug of a store one of whose circuits closed in this process.
    """

    settings: Settings
    pool: ConnectionPool[Connection[tuple[Any, ...]]]
    box: SecretBox
    slot: int = 0
    observer: Callable[[Call], None] | None = None
    closed: Callable[[str], None] | None = None
    transport: Transport = field(init=False)
    registry: Registry = field(init=False)
    _stores: dict[str, Store] = field(init=False, default_factory=dict)
    _names: dict[int, str] = field(init=False, default_factory=dict)
    _marks: dict[int, str] = field(init=False, default_factory=dict)
    _links: dict[str, Link] = field(init=False, default_factory=dict)
    _budgets: dict[str, str] = field(init=False, default_factory=dict)
    _version: int = field(init=False, default=-1)
    _trusted: float = field(init=False, default=0.0)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _stop: threading.Event = field(init=False, default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.transport = Transport(
            self.settings.redis_url,
            self.settings.prefix,
            self.settings.circuit,
            observer=self.observer,
            on_circuit=self._circuit_changed,
        )
        self.registry = Registry(self.pool, self.box)

    def get(self, slug: str) -> Link | None:
        """A store's link; `None` when no such store is registered. States of a link are for one attempt."""
        with self._lock:
            store, link, version = self._stores.get(slug), self._links.get(slug), self._version
        if store is None:
            return None
        if link is None:
            link = self.build(store)
            with self._lock:
                if self._version == version:
                    self._links[slug] = link
        states = StoreStates(self.pool, store.id, self.box, self.slot)
        return replace(link, states=states)

    def names(self) -> Mapping[int, str]:
        """Store id → slug of every registered store; another object whenever the registry moved."""
        return self._names

    def stores(self) -> list[Store]:
        """Every registered store as last read."""
        with self._lock:
            return list(self._stores.values())

    def refresh(self) -> bool:
        """Look at the registry when it moved; only stores that were changed are read, and linked anew."""
        version = self.registry.version()
        if version == self._version and time.monotonic() < self._trusted:
            return False
        self._trusted = time.monotonic() + TRUST_SECONDS
        marks = self.registry.marks()
        moved = {store for store, mark in marks.items() if self._marks.get(store) != mark}
        read = {store.slug: store for store in (self.registry.some(moved) if moved else ())}
        with self._lock:
            same = {slug for slug, store in self._stores.items() if store.id in marks and store.id not in moved}
            self._stores = {slug: store for slug, store in self._stores.items() if slug in same} | read
            self._links = {slug: link for slug, link in self._links.items() if slug in same}
            names = {store.id: slug for slug, store in self._stores.items()}
            if names != self._names:
                self._names = names
            self._marks, self._version = marks, version
        return True

    def watch(self) -> None:
        """Read the registry now and follow it in the background until `close`."""
        self.refresh()
        threading.Thread(target=self._follow, name="registry", daemon=True).start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()

    def build(self, store: Store) -> Link:
        """The link of a store as registered now. `BadInput` when its marketplace does not exist, or by its `faults`."""
        if store.faults:
            raise BadInput(store.faults)
        chosen = adapter(store.marketplace)
        secrets = self.registry.secrets(store.id)
        vtex, token = secrets["vtex"], secrets["hub"].values.get("token", "")
        hub_url = f"{(store.settings.hub_url or self.settings.public_url).rstrip('/')}/{token}"
        limit = store.settings.vtex_limit
        states = StoreStates(self.pool, store.id, self.box, self.slot)
        return Link(
            store=store.id,
            slug=store.slug,
            account=store.account,
            affiliate=store.affiliate,
            sales_channel=store.sales_channel,
            rules=replace(store.settings.rules, connector_endpoint=hub_url),
            vtex=VtexStore(
                peer=self.transport.peer(
                    store.slug,
                    "vtex",
                    store.vtex_url,
                    account=f"vtex:{store.account}",
                    rate=limit.rate if limit else self.settings.vtex.rate,
                    burst=limit.burst if limit else self.settings.vtex.burst,
                    obeyed=self.settings.vtex.obeyed_seconds,
                    headers={
                        "X-VTEX-API-AppKey": vtex.values.get("app_key", ""),
                        "X-VTEX-API-AppToken": vtex.values.get("app_token", ""),
                    },
                    secrets=[*vtex.values.values(), token],
                    connect=self.settings.vtex.connect_seconds,
                    total=self.settings.vtex.total_seconds,
                ),
                account=store.account,
                affiliate=store.affiliate,
                sales_channel=store.sales_channel,
                hub_url=hub_url,
                simulation=store.settings.simulation,
                connector_name=store.settings.rules.connector_name,
                auth_version=vtex.version,
            ),
            marketplace=chosen.connect(self._account(store, secrets["marketplace"])),
            states=states,
            mapper=self._mapper(store, vtex),
        )

    def shut_for(self, slug: str) -> float | None:
        """Seconds until the store's circuits may be tried; 0 when one key may try; `None` while all are closed."""
        return self.transport.circuits.shut_for(slug)

    def keep_room(self, slug: str, context: str, want: int) -> Room:
        """Reserve up to `want` calls of the store's marketplace budget for a claim that is about to start.

        At the rank of the context, even if it turns out that a load asked for its keys (hub.limits, order of service).
        """
        budget = self._budgets.get(slug)
        return self.transport.limits.room(budget, want, context, store=slug) if budget else Room(want, 0.0)

    def give_back(self, slug: str, room: Room) -> None:
        """What a claim has not used of its room."""
        budget = self._budgets.get(slug)
        if budget and room.ticket:
            self.transport.limits.release(budget, room.ticket)

    def _mapper(self, store: Store, vtex: Credentials) -> CategoryMapper | None:
        """The seller's category mapper, where there is one; it wants `appkey` and `apptoken` (vtex.md 3.4)."""
        if not store.settings.mapper_url:
            return None
        peer = self.transport.peer(
            store.slug,
            "vtex",
            store.settings.mapper_url.replace("{account}", store.account),
            account=f"mapper:{store.account}",
            rate=self.settings.vtex.rate,
            burst=self.settings.vtex.burst,
            headers={"appkey": vtex.values.get("app_key", ""), "apptoken": vtex.values.get("app_token", "")},
            secrets=list(vtex.values.values()),
            connect=self.settings.vtex.connect_seconds,
            total=self.settings.vtex.total_seconds,
        )
        return CategoryMapper(peer, auth_version=vtex.version)

    def _account(self, store: Store, credentials: Credentials) -> Account:
        chosen = adapter(store.marketplace)
        limit = store.settings.marketplace_limit or chosen.manifest.limit
        # Stores of one seller's account share its budget (design 5); `account` is how the seller calls it.
        budget = f"{store.marketplace}:{credentials.values.get('account', store.slug)}"
        self._budgets[store.slug] = budget
        return Account(
            store=store.slug,
            base_url=store.settings.marketplace_url,
            credentials=credentials,
            peer=self.transport.peer(
                store.slug,
                "marketplace",
                store.settings.marketplace_url,
                account=budget,
                rate=limit.rate if limit else self.settings.marketplace.rate,
                burst=limit.burst if limit else self.settings.marketplace.burst,
                obeyed=self.settings.marketplace.obeyed_seconds,
                secrets=list(credentials.values.values()),
                connect=self.settings.marketplace.connect_seconds,
                total=self.settings.marketplace.total_seconds,
            ),
            renew=lambda stale, renewer: self._renew(store, stale, renewer),
        )

    def _renew(self, store: Store, stale: int, renewer: Renewer) -> Credentials:
        """Trade credentials once for all workers (RES-10): a session lock, because no transaction spans a call."""
        with db.translated(), self.pool.connection() as connection:
            lock = f"renew {self.settings.schema} {store.id}"
            connection.execute("select pg_advisory_lock(hashtextextended(%s, 2))", (lock,))
            try:
                current = self.registry.credentials(store.id, "marketplace")
                if current.version > stale:
                    return current
                self.registry.save_credentials(
                    store.id, "marketplace", renewer(current.values), who="hub: token renewed"
                )
                return self.registry.credentials(store.id, "marketplace")
            finally:
                connection.execute("select pg_advisory_unlock(hashtextextended(%s, 2))", (lock,))

    def _circuit_changed(self, circuit: Circuit) -> None:
        log.info("circuit %s %s %s: %s %s", circuit.store, circuit.side, circuit.group, circuit.state, circuit.why)
        if circuit.state == "closed" and self.closed is not None:
            self.closed(circuit.store)

    def _follow(self) -> None:
        unforeseen = Unforeseen(log)
        while not self._stop.wait(REFRESH_SECONDS):
            try:
                self.refresh()
            except BadInput as wrong:
                log.error("the registry cannot be used: %s", wrong)  # noqa: TRY400 – a setting, not a defect
            except HubError as away:
                log.warning("the registry could not be read: %s", away)
            except Exception as error:  # noqa: BLE001 – this thread must live, or no store is ever added or changed
                unforeseen.tell("the registry could not be read", error)
