"""Asks everybody but the hub what happened: both simulators by their control routes, PostgreSQL by its own SQL, the
broker by what it sees of its consumers.

The promise: nothing here goes through the hub's code for reading states, listings or orders, so that a defect there
cannot hide itself. It only reads, and may look at a running hub; whether that is quiet is the driver's business.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import redis
from kombu import Connection
from psycopg import sql
from psycopg.rows import dict_row

from chaos.evidence import (
    Binding,
    Counter,
    CreatedOrder,
    Evidence,
    Excuse,
    Gate,
    HubOrder,
    Lease,
    Lie,
    Listed,
    ListingCall,
    Lot,
    Notice,
    OrderCall,
    PlacedOrder,
    Post,
    Process,
    Queue,
    Recovery,
    Row,
    Served,
    Sold,
    Store,
    Wrote,
)
from hub.settings import Settings
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import MarketplaceControl
from hub.simulators.marketplace_world import DELIVERIES_KEPT, HISTORY_KEPT, LIES_KEPT
from hub.simulators.vtex import SERVED_KEPT

EVERYTHING = 10**9
LISTENING_SECONDS = 3.0
"""How long Valkey is listened to: every consumer asks for its queues at least once a second."""


@dataclass
class Witness:
    """Collects the evidence of one run. Not shared between threads.

    `settings` tell where PostgreSQL and the broker are and how pools are laid out; both controls reach the simulators.
    """

    settings: Settings
    vtex: VtexControl
    marketplace: MarketplaceControl
    forgotten: list[str] = field(default_factory=list)

    def evidence(
        self,
        *,
        seed: int = 0,
        began: float = 0.0,
        posts: Mapping[str, Sequence[Post]] | None = None,
        excuses: Mapping[str, Sequence[Excuse]] | None = None,
        processes: Sequence[Process] = (),
        recoveries: Sequence[Recovery] = (),
        spooled: int = 0,
        notes: Mapping[str, str] | None = None,
        slugs: Sequence[str] | None = None,
        queues: bool = True,
    ) -> Evidence:
        """Everything, for every store that is registered and not removed, or for those named in `slugs`.

        `posts` and `excuses` by slug: what the driver POSTed itself, and what it left broken on purpose. Without
        `queues` the broker is not asked. Raises what psycopg, redis, kombu and the controls raise when somebody is
        away.
        """
        self.forgotten = []
        with psycopg.connect(self.settings.database_url, row_factory=dict_row) as db:
            db.execute("set transaction isolation level repeatable read, read only")
            schema = sql.Identifier(self.settings.schema)
            db.execute(sql.SQL("set local search_path = {}").format(schema))
            ended = _only(db, "select extract(epoch from clock_timestamp())::float8 as now")["now"]
            found = db.execute("select * from stores where status <> 'removed' order by slug").fetchall()
            found = [row for row in found if slugs is None or row["slug"] in slugs]
            ours = {row["id"]: _ours(db, row["id"]) for row in found}
        stores = []
        for row in found:
            store = self._store(row, ours[row["id"]], (posts or {}).get(row["slug"], ()))
            stores.append({**store, "excuses": tuple((excuses or {}).get(row["slug"], ()))})
        return Evidence(
            seed=seed,
            began=began,
            ended=ended,
            stores=tuple(Store(**store) for store in stores),
            queues=self.queues([row["slug"] for row in found]) if queues else (),
            processes=tuple(processes),
            recoveries=tuple(recoveries),
            spooled=spooled,
            forgotten=tuple(self.forgotten),
            notes=dict(notes or {}),
        )

    # ------------------------------------------------------------ one store

    def _store(self, row: Mapping[str, Any], ours: Mapping[str, Any], posts: Sequence[Post]) -> dict[str, Any]:
        settings = row["settings"]
        profile, seller = urlsplit(settings["marketplace_url"]).path.strip("/").split("/")
        listed = self._listed(seller)
        skus = {remote: one.sku for one in listed for remote in one.ids}
        created, results = self._created(row["account"], row["affiliate"])
        return {
            "slug": row["slug"],
            "number": row["id"],
            "account": row["account"],
            "affiliate": row["affiliate"],
            "channel": row["sales_channel"],
            "profile": profile,
            "status": row["status"],
            "pricing": settings.get("pricing") or {},
            "inventory": settings.get("inventory") or {},
            "sold": self._sold(row["account"], row["sales_channel"]),
            "served": self._served(row["account"], row["sales_channel"]),
            "order_calls": self._order_calls(row["account"], row["affiliate"]),
            "created": created,
            "listed": listed,
            "wrote": self._wrote(seller),
            "listing_calls": self._listing_calls(seller, skus) if profile == "sync" else (),
            "lies": self._lies(seller),
            "placed": tuple(
                PlacedOrder(one.id, one.status, one.vtex_order_id) for one in self.marketplace.orders(seller).values()
            ),
            "posts": (
                *posts,
                *self._notifications(row["account"], row["affiliate"]),
                *self._deliveries(seller),
                *results,
            ),
            **ours,
            "gates": (*ours["gates"], *self._circuits(row["slug"])),
        }

    def _sold(self, account: str, channel: int) -> tuple[Sold, ...]:
        return tuple(
            Sold(
                sku=one.sku,
                active=one.active and one.product_active,
                in_channel=one.in_channel,
                price=one.price,
                list_price=one.list_price,
                stock=one.stock,
                title=one.name,
                category=str(one.category),
                ean=one.ean,
                images=len(one.images),
                unit_multiplier=str(one.unit_multiplier),
            )
            for one in self.vtex.truth(account, channel).values()
        )

    def _served(self, account: str, channel: int) -> tuple[Served, ...]:
        told = self.vtex.served(account)
        self._complete(f"{account}: what VTEX served", len(told) < SERVED_KEPT)
        return tuple(
            Served(
                at=_seconds(one["at"]),
                operation=one["operation"],
                sku=one["sku"],
                for_sale=one["for_sale"] and (one["operation"] == "simulation" or channel in one["channels"]),
                price=one["price"],
                list_price=one["list_price"],
                stock=one["stock"],
                unit_multiplier=one["unit_multiplier"],
                stale=one["stale"],
            )
            for one in told
            if not one["addressed"] and one["channel"] in (0, channel)
        )

    def _order_calls(self, account: str, affiliate: str) -> tuple[OrderCall, ...]:
        calls = []
        for operation, name in (("create_order", "create"), ("order", "read"), ("order_status", "approve")):
            least = self.vtex.calls(operation, account)  # counted first: second looks go on
            entries = self.vtex.journal(account=account, operation=operation, limit=EVERYTHING)
            self._complete(f"{account}: {operation}", len(entries) >= least)
            for entry in entries:
                if name == "read":
                    of, _, order_id = entry["path"].rpartition("/")[2].partition("-")
                else:
                    of = parse_qs(entry["query"]).get("affiliateId", [affiliate])[0]
                    order_id = str(_tree(entry["body"]).get("marketplaceOrderId", ""))
                if of == affiliate and order_id:
                    at = _seconds(entry["at"]) - entry["seconds"]
                    calls.append(OrderCall(at, name, order_id, entry["status"], entry["fault"]))  # type: ignore[arg-type] # one of the three names above
        return tuple(sorted(calls, key=lambda call: call.at))

    def _created(self, account: str, affiliate: str) -> tuple[tuple[CreatedOrder, ...], list[Post]]:
        """Orders in VTEX, and the results that VTEX posted about them (when is not remembered: 0)."""
        orders, posts = [], []
        for one in self.vtex.orders(account).values():
            if one.affiliate != affiliate:
                continue
            orders.append(
                CreatedOrder(
                    one.marketplace_order_id, one.order_id, one.status, one.creations, one.accepted, one.results
                )
            )
            for _, status in one.results:
                posts.append(Post(0.0, "result", one.marketplace_order_id, -1 if status is None else status, "vtex"))
        return tuple(orders), posts

    def _notifications(self, account: str, affiliate: str) -> list[Post]:
        book = self.vtex.notifications(account, limit=EVERYTHING)
        counts = book["counts"]
        self._complete(f"{account}: notifications", len(book["log"]) >= counts.get("sent", 0) + counts.get("lost", 0))
        return [
            Post(
                _seconds(one["began"]),
                "notification",
                str(one["sku_id"]),
                one["status"],
                "vtex",
                flags=tuple(one["flags"]),
            )
            for one in book["log"]
            if one["affiliate"] == affiliate
        ]

    # ------------------------------------------------------------ the marketplace

    def _listed(self, seller: str) -> tuple[Listed, ...]:
        return tuple(
            Listed(
                sku=one.sku,
                state=one.state,
                ids=one.ids,
                creates=one.creates,
                deletes=one.deletes,
                price=one.price_cents,
                list_price=one.list_price_cents,
                stock=one.stock,
                title=one.title,
                category=one.category,
            )
            for one in self.marketplace.shown(seller).values()
        )

    def _wrote(self, seller: str) -> tuple[Wrote, ...]:
        found: dict[str, int] = defaultdict(int)
        wrote = []
        for sku, change in self.marketplace.history(seller):
            found[sku] += 1
            if change.field not in ("price", "list_price", "stock", "state"):
                continue
            wrote.append(
                Wrote(
                    number=change.number,
                    arrived=_seconds(change.asked),
                    applied=_seconds(change.at),
                    sku=sku,
                    listing=change.listing,
                    field=change.field,
                    value=change.value,
                    by=change.by,
                )
            )
        for sku, count in found.items():
            self._complete(f"{seller}: history of {sku}", count < HISTORY_KEPT)
        return tuple(wrote)

    def _listing_calls(self, seller: str, skus: Mapping[str, str]) -> tuple[ListingCall, ...]:
        calls = []
        for operation in ("listing_create", "listing_find", "listing_read"):
            least = self.marketplace.calls(operation, seller)
            entries = self.marketplace.journal(account=seller, operation=operation, limit=EVERYTHING)
            self._complete(f"{seller}: {operation}", len(entries) >= least)
            for entry in entries:
                if operation == "listing_create":
                    sku = str(_tree(entry.body).get("sku", ""))
                elif operation == "listing_find":
                    sku = parse_qs(entry.query).get("seller_sku", [""])[0]
                else:
                    named = entry.path.rpartition("/")[2]
                    sku = skus.get(named, named)
                at = _seconds(entry.at) - entry.seconds
                calls.append(ListingCall(at, operation, sku, entry.status, fault=entry.fault))
        return tuple(sorted(calls, key=lambda call: call.at))

    def _lies(self, seller: str) -> tuple[Lie, ...]:
        """Writes that were answered as done and not done; those of a feed one by one."""
        told = self.marketplace.lies(seller)
        self._complete(f"{seller}: lies", len(told) < LIES_KEPT)
        return tuple(Lie(_seconds(at), operation, sku) for at, operation, sku in told)

    def _deliveries(self, seller: str) -> list[Post]:
        told = self.marketplace.deliveries(seller)
        self._complete(f"{seller}: webhooks", len(told) < DELIVERIES_KEPT)
        return [
            Post(
                at=_seconds(one.planned),
                kind="event",
                key=one.order,
                status=-1 if one.outcome == "lost" else one.status or 0,
                by="marketplace",
                attempts=one.attempts,
            )
            for one in told
        ]

    # ------------------------------------------------------------ the broker and Valkey

    def _circuits(self, slug: str) -> list[Gate]:
        """Circuits that let nobody through now; one that may be tried at the next call shuts nothing."""
        gates = []
        with redis.Redis.from_url(self.settings.redis_url) as client:
            clock = client.time()
            now = clock[0] * 1_000_000 + clock[1]
            start = f"{self.settings.prefix}:circuit:{slug}:"
            for key in client.scan_iter(match=f"{start}*", count=1000):
                if client.type(key) != b"hash":
                    continue
                state, until, why = client.hmget(key, "state", "until", "why")
                if state == b"open" and float(until or 0) > now:
                    side, _, group = key.decode().removeprefix(start).partition(":")
                    gates.append(Gate(group, side, "circuit", (why or b"").decode()))
        return gates

    def queues(self, slugs: Iterable[str]) -> tuple[Queue, ...]:
        """Every queue that wake-ups of these stores go to, as the broker sees it."""
        names = expected_queues(self.settings, slugs)
        if self.settings.broker_url.startswith("amqp"):
            return tuple(_declared(self.settings.broker_url, name) for name in names)
        asked = _asked_for(self.settings.broker_url, self.settings.prefix)
        with redis.Redis.from_url(self.settings.broker_url) as client:
            return tuple(
                Queue(name, int(client.llen(f"{self.settings.prefix}:{name}")), len(asked[name])) for name in names
            )

    def _complete(self, what: str, whole: bool) -> None:
        if not whole:
            self.forgotten.append(what)


def expected_queues(settings: Settings, slugs: Iterable[str]) -> list[str]:
    """Where wake-ups go (design 3): first ones to the store's queue or its pool's shard, further ones to `.more`."""
    names: set[str] = set()
    for pool, chosen in settings.pools.items():
        for shard in range(chosen.shards):
            if pool == "control" or settings.layout == "pooled":
                names.add(f"{pool}.{shard}")
            if pool != "control":
                names.add(f"{pool}.{shard}.more")
    if settings.layout == "per_store":
        names |= {f"{slug}.{context}" for slug in slugs for context in settings.contexts}
    return sorted(names)


def _asked_for(url: str, prefix: str) -> dict[str, set[str]]:
    """Queue → the connections that ask for it: Valkey itself keeps no list of consumers, but it hears each of them."""
    heard: dict[str, set[str]] = defaultdict(set)
    ends = time.monotonic() + LISTENING_SECONDS
    with redis.Redis.from_url(url, socket_timeout=LISTENING_SECONDS) as client, client.monitor() as monitor:
        while time.monotonic() < ends:
            try:
                command = monitor.next_command()
            except redis.TimeoutError:  # nobody asked for anything for so long: there is no consumer left
                break
            words = command["command"].split(" ")
            if words[0].upper() == "BRPOP":
                peer = f"{command['client_address']}:{command['client_port']}"
                for word in words[1:-1]:
                    heard[word.removeprefix(f"{prefix}:")].add(peer)
    return heard


def _declared(url: str, name: str) -> Queue:
    """What RabbitMQ says of a queue; one that does not exist has no consumer."""
    with closing(Connection(url, connect_timeout=5)) as connection:
        channel: Any = connection.channel()
        try:
            told = channel.queue_declare(name, passive=True)
        except connection.channel_errors:
            return Queue(name, 0, 0)
        return Queue(name, int(told.message_count), int(told.consumer_count))


# ---------------------------------------------------------------- PostgreSQL


def _ours(db: psycopg.Connection[dict[str, Any]], store: int) -> dict[str, Any]:
    """What the hub's tables hold of one store."""

    def rows(query: str) -> list[dict[str, Any]]:
        return db.execute(query, (store,)).fetchall()

    return {
        "mappings": {row["category"]: row["remote"] for row in rows("select * from mappings where store = %s")},
        "notices": _notices(rows("select kind, fate, key, body from notices where store = %s")),
        "counters": tuple(
            Counter(**row)
            for row in rows(
                """
                select context, source, sum(received)::int8 as received, sum(quarantined)::int8 as quarantined,
                  sum(ignored)::int8 as ignored, sum(accepted)::int8 as accepted, sum(requested)::int8 as requested,
                  sum(coalesced)::int8 as coalesced, sum(enqueued)::int8 as enqueued, sum(finished)::int8 as finished
                from counters where store = %s group by context, source order by context, source
                """
            )
        ),
        "rows": tuple(
            Row(**row)
            for row in rows(
                """
                select s.context, s.key, s.work::text as work, s.status, s.asked, s.answered, s.attempts, s.code,
                  extract(epoch from s.pending_since)::float8 as pending_since,
                  extract(epoch from s.due_at)::float8 as due_at,
                  extract(epoch from s.answered_at)::float8 as answered_at,
                  extract(epoch from g.gathered_at)::float8 as gathered_at,
                  a.parked_on, a.intent is not null as in_doubt, coalesce(a.why, '') as why
                from states s left join answers a using (store, context, key)
                left join (
                  select l.store, c.context, r.key, max(l.opened_at) as gathered_at
                  from lots l join lot_records r on r.lot = l.id, unnest(r.covers) as c(context) group by 1, 2, 3
                ) g using (store, context, key)
                where s.store = %s order by s.context, s.key
                """
            )
        ),
        "bindings": tuple(
            Binding(**row) for row in rows("select sku, remote_id, state from bindings where store = %s")
        ),
        "orders": tuple(
            HubOrder(**row) for row in rows("select order_id, state, vtex_order_id from orders where store = %s")
        ),
        "lots": tuple(
            Lot(**row)
            for row in rows("select id, kind, state, records from lots where store = %s and state <> 'settled'")
        ),
        "gates": tuple(Gate(**row) for row in rows("select context, side, cause, why from gates where store = %s")),
        "leases": tuple(
            Lease(**row)
            for row in rows(
                """
                select l.lane, l.key, l.claim, extract(epoch from c.started_at)::float8 as since
                from (
                  select store, lane, key, claim from leases
                  union all select store, coalesce(lane, context), key, claim from states where claim is not null
                ) l left join claims c on c.id = l.claim where l.store = %s
                """
            )
        ),
    }


def _notices(rows: Iterable[Mapping[str, Any]]) -> tuple[Notice, ...]:
    counted: dict[tuple[str, str, str], int] = defaultdict(int)
    for row in rows:
        counted[row["kind"], row["fate"], row["key"] or _sku_of(row["body"])] += 1
    return tuple(Notice(*place, count) for place, count in sorted(counted.items()))


def _sku_of(body: str) -> str:
    """The SKU that a notification names, in whichever spelling (vtex.md 4.2)."""
    tree = _tree(body)
    return next((str(value) for name, value in tree.items() if name.lower() == "idsku"), "")


def _tree(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _only(db: psycopg.Connection[dict[str, Any]], query: str) -> dict[str, Any]:
    row = db.execute(query).fetchone()
    assert row is not None  # noqa: S101 – a select without a table always has its row
    return row


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
