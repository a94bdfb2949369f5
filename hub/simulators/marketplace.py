"""The sandbox marketplace: a real HTTP server with three profiles, for many seller accounts at once, in memory.

The promise: it behaves as the marketplaces do – strict validation with every problem at once, creations that are not
idempotent, lots answered later, whole offers that reset what is not sent, limits, expiring tokens, webhooks that are
lost, doubled and late – and afterwards tells by its control routes exactly what became of each SKU and order.

    python -m hub.simulators.marketplace --port 8092 --seed 1        prints its ready URL

Wire, below `/{profile}/{account}`; `Authorization: Bearer <token>`; every 4xx/5xx of the marketplace itself is
`{"error": code, "message": text, "problems": [{field, code, message, value}]}`:

    profile       method and path                     operation            answers
    ------------  ----------------------------------  -------------------  -------------------------------------------
    all           GET  /account                       account_read         profile, currency, money form, ceilings
    all           GET  /categories, /categories/{id}  categories_read      tree with attributes; leaf; version
    sync          POST /listings                      listing_create       201 {id, sku, link, …}; TWICE MAKES TWO
    sync          PUT  /listings/{id or sku}          listing_put          200, or 201 when a SKU is new; given fields
    sync          PUT  /listings/{id or sku}/price    price_put            body {price, list_price?}
    sync          PUT  /listings/{id or sku}/stock    stock_put            body {stock}
    sync          POST /listings/{…}/deactivate       listing_deactivate   200, also when it is already
    sync          POST /listings/{…}/activate         listing_activate     200
    sync          POST /oauth/token                   token_refresh        form grant_type=refresh_token,
                                                                           refresh_token, client_id, client_secret
    sync, lot     GET  /listings/{id or sku}          listing_read         404 while the visibility delay lasts
    sync, lot     GET  /listings?seller_sku=|cursor=  listing_find         {"listings": […], "next_cursor"}
    lot           POST /feeds?kind=&reference=        feed_submit          202 {id, …}; body: one JSON object per line;
                                                                           409 {"id"} for a known reference
    lot           GET  /feeds/{id}                    feed_read            queued, running, done, fatal; counts
    lot           GET  /feeds/{id}/result             feed_result          JSON lines {line, sku, status, id, problems}
    lot           GET  /feeds?reference=|kind=        feed_find            {"feeds": […]}
    full-replace  PUT  /offers/{sku}                  offer_put            201, 200, or 202 {ticket} while it waits
    full-replace  DELETE /offers/{sku}                offer_delete         200; 404 when absent
    full-replace  GET  /offers/{sku}                  offer_read           as listing_read
    full-replace  GET  /offers?seller_sku=|cursor=    offer_find           {"listings": […], "next_cursor"}
    all           GET  /orders?updated_since=&cursor= orders_find          {"orders": [{id, status, updated_at}],
                                                                           "next_cursor", "more"}
    all           GET  /orders/{id}                   order_read           the order; buyer and address null until paid
    all           POST /orders/{id}/acknowledge       order_acknowledge    body {"vtex_order_id"}; 409 when another

What a profile lacks (deleting in sync, blocking in lot and full-replace) is answered 405 `unsupported`.
A listing is {sku, title, description, category, ean, brand, images: [url], attributes: {name: text}, group, price,
list_price, stock}; unknown fields are refused. Feed records of kind `listing` carry all but the last three, with
`"operation": "update"|"delete"`; those of kind `offer` any of the last three. Record status: accepted, rejected
(correct it), error (try again). Full-replace sets to empty or zero whatever is not sent. Money: sync decimal text
"99.90", lot {"amount": "99.90", "currency": "BRL"}, full-replace whole cents 9990. Times are ISO 8601 in UTC.

Webhook (sync, full-replace): POST {"id", "topic": "orders", "resource": {"id": order id}, "account", "sent",
"attempts"} – a pointer, never the truth. In sync with a webhook secret: `X-Signature: t=<unix>,v1=<hex>`, HMAC-SHA256
over `<t>.<body>`; while a secret is rotated a second `v1`. Any 2xx within 2 s is taken as received.

Control, below `/_control` (the hub never calls it; `marketplace_control.MarketplaceControl` is the client):

    POST/GET /accounts · GET/PATCH/DELETE /accounts/{a} · POST /accounts/{a}/credentials {"action"} · POST
    /accounts/{a}/outage {"mode", "seconds"} · GET /accounts/{a}/shown · GET/PATCH /accounts/{a}/shown/{sku} · GET
    /accounts/{a}/history, /accounts/{a}/lies · POST /accounts/{a}/sku-faults · POST /accounts/{a}/acceptance · POST/GET
    /accounts/{a}/orders · POST /accounts/{a}/orders/{id}/status · POST /accounts/{a}/events · GET
    /accounts/{a}/deliveries · POST /clock {"advance"} · POST /reset · and /faults, /limits, /journal, /calls as in
    `hub.simulators.faults`.
"""

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import operator
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from urllib.parse import parse_qs

import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hub.simulators.faults import (
    Call,
    Door,
    Faults,
    HangResponse,
    Journal,
    Limits,
    control_routes,
    problems_of,
    rate_headers,
    throttled,
)
from hub.simulators.marketplace_world import (
    CATEGORIES,
    VALUE_FIELDS,
    Account,
    Attribute,
    Category,
    Change,
    Delivery,
    Dials,
    Event,
    Feed,
    Listing,
    Order,
    OrderLine,
    Outage,
    Problem,
    Profile,
    Refusal,
    SkuFault,
    SkuRecord,
    State,
    World,
    synthetic_address,
    synthetic_buyer,
)
from hub.simulators.serving import in_thread, run

PAGE = 100  # listings and orders per page at most
SCHEMA_VERSION = 1
Handler = Callable[[Call, Account], Response]


# --- writing ----------------------------------------------------------------------------------------------------


def _refusal(refusal: Refusal, form: str = "seconds") -> Response:
    body = {
        "error": refusal.code,
        "message": refusal.message,
        "problems": [problem.wire() for problem in refusal.problems],
        **refusal.extra,
    }
    response = JSONResponse(body, refusal.status)
    if refusal.retry_after is not None:
        waiting = throttled(None if form == "none" else refusal.retry_after, form).headers
        response.headers.update({name: text for name, text in waiting.items() if not name.startswith("content-")})
    if refusal.status == 401:
        response.headers["WWW-Authenticate"] = f'Bearer error="{refusal.code}"'
    return response


def _listing(account: Account, listing: Listing, *, stale: bool = False) -> dict[str, object]:
    state, values = listing.before if stale and listing.before else (listing.state, listing.values)
    return {
        "id": listing.id,
        "sku": listing.sku,
        "link": listing.link,
        "status": state.value,
        "title": values.title,
        "description": values.description,
        "category": values.category,
        "ean": values.ean,
        "brand": values.brand,
        "images": list(values.images),
        "attributes": dict(values.attributes),
        "group": values.group,
        "price": account.write_money(values.price),
        "list_price": account.write_money(values.list_price),
        "stock": values.stock,
        "currency": account.dials.currency,
        "updated_at": listing.updated_at.isoformat(),
        "problems": [problem.wire() for problem in listing.problems],
    }


def _feed(account: Account, feed: Feed) -> dict[str, object]:
    status = feed.status(account.world.now())
    rejected = sum(result["status"] != "accepted" for result in feed.results)
    return {
        "id": feed.id,
        "kind": feed.kind,
        "reference": feed.reference,
        "status": status,
        "submitted_at": feed.submitted.isoformat(),
        "finished_at": feed.ends.isoformat() if status in ("done", "fatal") else None,
        "accepted": len(feed.results) - rejected,
        "rejected": rejected,
        "reason": feed.fatal if status == "fatal" else None,
    }


def _order(account: Account, order: Order) -> dict[str, object]:
    money = account.write_money
    told = order.status != "pending" or account.dials.address_at == "always"
    return {
        "id": order.id,
        "status": order.status,
        "created_at": order.created_at.isoformat(),
        "updated_at": order.updated_at.isoformat(),
        "currency": account.dials.currency,
        "items": [
            {
                "line": line.line,
                "sku": line.sku,
                "listing_id": line.listing,
                "title": line.title,
                "quantity": line.quantity,
                "price": money(line.price),
                "discount": money(line.discount),
                "shipping": money(line.shipping),
            }
            for line in order.lines
        ],
        "shipping": money(order.shipping),
        "interest": money(order.interest),
        "discount": money(order.discount),
        "total": money(order.total),
        "sla": order.sla,
        "delivery": "delivery",
        "payments": ["credit_card"],
        "buyer": order.buyer if told else None,
        "address": order.address if told else None,
        "vtex_order_id": order.acknowledgements[-1][0] if order.acknowledgements else None,
    }


def _category(category: Category) -> dict[str, object]:
    children = [_category(child) for child in CATEGORIES.values() if child.parent == category.id]
    return {
        "id": category.id,
        "name": category.name,
        "parent": category.parent,
        "leaf": not children,
        "attributes": [_attribute(attribute) for attribute in category.attributes],
        "children": children,
    }


def _attribute(attribute: Attribute) -> dict[str, object]:
    return {"name": attribute.name, "required": attribute.required, "values": list(attribute.values)}


# --- reading ----------------------------------------------------------------------------------------------------


def _object(call: Call) -> dict[str, object]:
    try:
        body = call.json()
    except ValueError as error:
        raise Refusal(400, "unreadable", "the body is not JSON: send one JSON object") from error
    if not isinstance(body, dict):
        raise Refusal(400, "unreadable", "send one JSON object")
    return body


def _number(query: Mapping[str, str], name: str, otherwise: int) -> int:
    text = query.get(name, "")
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Refusal(
            400, "validation_failed", "1 problem to correct", [Problem(name, "number", "send a number", text)]
        )
    return int(text)


def _page(call: Call) -> int:
    return max(1, min(PAGE, _number(call.query, "limit", PAGE)))


# --- all profiles -----------------------------------------------------------------------------------------------


def account_read(_: Call, account: Account) -> Response:
    """Who am I, and what are the rules of the house."""
    dials = account.dials
    return JSONResponse(
        {
            "account": account.name,
            "profile": account.profile.value,
            "currency": dials.currency,
            "money": account.money_form,
            "title_max": dials.title_max,
            "minimum_price": account.write_money(dials.minimum_price),
            "schema_version": SCHEMA_VERSION,
            "feed_max_records": dials.feed_max_records,
            "feed_max_bytes": dials.feed_max_bytes,
            "feed_min_interval": dials.feed_min_interval,
            "needs_acceptance": dials.needs_acceptance,
        }
    )


def categories_read(call: Call, _: Account) -> Response:
    """The tree, or one category."""
    identity = call.parameters.get("id")
    if identity is None:
        roots = [_category(category) for category in CATEGORIES.values() if category.parent is None]
        return JSONResponse({"version": SCHEMA_VERSION, "categories": roots})
    if identity not in CATEGORIES:
        raise Refusal(404, "category_not_found", f"no category {identity!r}")
    return JSONResponse(_category(CATEGORIES[identity]))


def listing_read(call: Call, account: Account) -> Response:
    """One listing as it shows."""
    return JSONResponse(_listing(account, account.only(call.parameters["ref"], stale=call.stale), stale=call.stale))


def listing_find(call: Call, account: Account) -> Response:
    """Listings of a SKU, or a page of all."""
    sku = call.query.get("seller_sku")
    if sku is not None:
        found = [one for one in account.visible(sku) if one.sku == sku and not (call.stale and one.before is None)]
        return JSONResponse(
            {"listings": [_listing(account, one, stale=call.stale) for one in found], "next_cursor": None}
        )
    start, limit, now = _number(call.query, "cursor", 0), _page(call), account.world.now()
    everything = [listing for listing in account.listings.values() if listing.visible_at <= now]
    page = everything[start : start + limit]
    more = str(start + limit) if start + limit < len(everything) else None
    return JSONResponse({"listings": [_listing(account, one, stale=call.stale) for one in page], "next_cursor": more})


def unsupported(call: Call, account: Account) -> Response:
    """What this profile cannot do."""
    raise Refusal(405, "unsupported", f"{account.profile.value} does not offer {call.request.method} here")


def orders_find(call: Call, account: Account) -> Response:
    """Pointers to orders in the order of their last update; the cursor goes on from the last one seen."""
    text, since = call.query.get("updated_since", ""), None
    if text:
        try:
            since = datetime.fromisoformat(text.replace(" ", "+"))
        except ValueError:
            since = None
        if since is None or since.tzinfo is None:
            problem = Problem(
                "updated_since", "time", "send ISO 8601 with an offset, such as 2026-01-31T10:00:00Z", text
            )
            raise Refusal(400, "validation_failed", "1 problem to correct", [problem])
    after, limit = _number(call.query, "cursor", 0), _page(call)
    found = account.updated_orders(since, after, limit + 1)
    page = found[:limit]
    return JSONResponse(
        {
            "orders": [
                {"id": order.id, "status": order.status, "updated_at": order.updated_at.isoformat()} for order in page
            ],
            "next_cursor": str(page[-1].number if page else after),
            "more": len(found) > limit,
        }
    )


def order_read(call: Call, account: Account) -> Response:
    """One order."""
    order = account.order(call.parameters["id"])
    order.reads += 1
    return JSONResponse(_order(account, order))


def order_acknowledge(call: Call, account: Account) -> Response:
    """The seller tells the VTEX order id."""
    order = account.order(call.parameters["id"])
    identity = _object(call).get("vtex_order_id")
    if not isinstance(identity, str) or not identity:
        problem = Problem("vtex_order_id", "required", "send a text", identity)
        raise Refusal(400, "validation_failed", "1 problem to correct", [problem])
    account.acknowledge(order, identity, pretend=call.lying)
    return JSONResponse({"id": order.id, "vtex_order_id": identity})


# --- sync -------------------------------------------------------------------------------------------------------


def listing_create(call: Call, account: Account) -> Response:
    """Open a listing. Not idempotent: the same body again opens another."""
    body = _object(call)
    sku = body.pop("sku", None)
    if not isinstance(sku, str) or not sku:
        problem = Problem("sku", "sku_required", "send your SKU as text", sku)
        raise Refusal(400, "validation_failed", "1 problem to correct", [problem])
    return _created(call, account, sku, body)


def _created(call: Call, account: Account, sku: str, body: Mapping[str, object]) -> Response:
    account.refuse_if_faulty(sku)
    changes, problems = account.check(body)
    if problems:
        raise account.refused(sku, problems)
    listing = account.create(sku, changes, call.operation, pretend=call.lying)
    status = 202 if listing.state is State.PENDING else 201
    ticket = {"ticket": listing.id} if status == 202 else {}
    return JSONResponse(_listing(account, listing) | ticket, status)


def listing_put(call: Call, account: Account) -> Response:
    """Change the fields given of a listing; a SKU without one gets one."""
    reference = call.parameters["ref"]
    body = _object(call)
    if not account.find(reference):
        if not account.dials.put_creates or reference.startswith("SYN-"):
            raise Refusal(404, "listing_not_found", f"no listing {reference!r}")
        if body.pop("sku", reference) != reference:
            problem = Problem("sku", "sku_differs", "the SKU of the path and of the body differ", reference)
            raise Refusal(400, "validation_failed", "1 problem to correct", [problem])
        return _created(call, account, reference, body)
    listing = account.only(reference, hidden=True)
    account.refuse_if_faulty(listing.sku)
    if body.pop("sku", listing.sku) != listing.sku:
        raise account.refused(
            listing.sku, [Problem("sku", "sku_fixed", "the SKU of a listing never changes", reference)]
        )
    return _changed(call, account, listing, body)


def price_put(call: Call, account: Account) -> Response:
    """Set price and list price; a list price not sent stays."""
    return _part_put(call, account, ("price", "list_price"), "price")


def stock_put(call: Call, account: Account) -> Response:
    """Set the stock."""
    return _part_put(call, account, ("stock",), "stock")


def _part_put(call: Call, account: Account, allowed: tuple[str, ...], needed: str) -> Response:
    listing = account.only(call.parameters["ref"], hidden=True)
    account.refuse_if_faulty(listing.sku)
    body = _object(call)
    if needed not in body:
        raise account.refused(listing.sku, [Problem(needed, f"{needed}_required", f"send {needed}", None)])
    return _changed(call, account, listing, body, allowed)


def _changed(
    call: Call, account: Account, listing: Listing, body: Mapping[str, object], allowed: tuple[str, ...] | None = None
) -> Response:
    changes, problems = account.check(body, listing.values, allowed or VALUE_FIELDS, only_sent=allowed is not None)
    if problems:
        raise account.refused(listing.sku, problems)
    warnings = []
    if listing.sku in account.dials.price_automation and {"price", "list_price"} & changes.keys():
        changes = {name: value for name, value in changes.items() if name not in ("price", "list_price")}
        warnings = [Problem("price", "price_automation", "the price is automated and was not changed").wire()]
    if changes:
        account.change(listing, changes, call.operation, pretend=call.lying)
    return JSONResponse(_listing(account, listing) | {"warnings": warnings})


def listing_deactivate(call: Call, account: Account) -> Response:
    """Block a listing."""
    return _state(call, account, State.INACTIVE)


def listing_activate(call: Call, account: Account) -> Response:
    """Unblock a listing."""
    return _state(call, account, State.ACTIVE)


def _state(call: Call, account: Account, state: State) -> Response:
    listing = account.only(call.parameters["ref"], hidden=True)
    account.refuse_if_faulty(listing.sku)
    account.set_state(listing, state, call.operation, pretend=call.lying)
    return JSONResponse(_listing(account, listing) | {"status": state.value})


def token_refresh(call: Call, account: Account) -> Response:
    """Trade the single-use refresh token for a new pair."""
    form = {name: values[0] for name, values in parse_qs(call.body.decode(errors="replace")).items()}
    if form.get("grant_type") != "refresh_token":
        raise Refusal(400, "unsupported_grant_type", "send grant_type=refresh_token")
    account.refresh(form.get("refresh_token", ""), form.get("client_id", ""), form.get("client_secret", ""))
    return JSONResponse(
        {
            "access_token": account.token,
            "token_type": "Bearer",
            "expires_in": int(account.dials.token_life),
            "refresh_token": account.refresh_token,
        }
    )


# --- lot --------------------------------------------------------------------------------------------------------


def feed_submit(call: Call, account: Account) -> Response:
    """Take a lot in; its outcome is asked for later."""
    feed = account.submit(call.query.get("kind", ""), call.query.get("reference", ""), call.body, pretend=call.lying)
    return JSONResponse(_feed(account, feed), 202)


def _feed_of(call: Call, account: Account) -> Feed:
    identity = call.parameters["id"]
    if identity not in account.feeds:
        raise Refusal(404, "feed_not_found", f"no feed {identity!r}")
    return account.feeds[identity]


def feed_read(call: Call, account: Account) -> Response:
    """How far a feed is."""
    return JSONResponse(_feed(account, _feed_of(call, account)))


def feed_result(call: Call, account: Account) -> Response:
    """What became of each record."""
    feed, now = _feed_of(call, account), account.world.now()
    status, kept = feed.status(now), account.dials.feed_result_retention
    if status != "done":
        raise Refusal(409, "no_result", f"the feed is {status}")
    if kept is not None and now > feed.ends + timedelta(seconds=kept):
        raise Refusal(410, "result_expired", f"results are kept {kept:g} s")
    return Response("".join(f"{json.dumps(result)}\n" for result in feed.results), media_type="application/x-ndjson")


def feed_find(call: Call, account: Account) -> Response:
    """Feeds by reference or kind, newest first."""
    reference, kind = call.query.get("reference"), call.query.get("kind")
    if reference is not None:
        known = account.references.get(reference)
        found = [account.feeds[known]] if known else []
    else:
        found = [feed for feed in reversed(account.feeds.values()) if kind is None or feed.kind == kind]
    return JSONResponse({"feeds": [_feed(account, feed) for feed in found[: _page(call)]]})


# --- full-replace -----------------------------------------------------------------------------------------------


def offer_put(call: Call, account: Account) -> Response:
    """Replace the whole offer: whatever is not sent becomes empty or zero."""
    sku = call.parameters["ref"]
    body = _object(call)
    if body.pop("sku", sku) != sku:
        problem = Problem("sku", "sku_differs", "the SKU of the path and of the body differ", sku)
        raise Refusal(400, "validation_failed", "1 problem to correct", [problem])
    found = account.find(sku)
    if not found:
        if "price" not in body:
            body["price"] = None
        return _created(call, account, sku, body)
    account.refuse_if_faulty(sku)
    listing = found[0]
    changes, problems = account.check(body, only_sent=True)
    if problems:
        raise account.refused(sku, problems)
    account.change(listing, account.emptied() | changes, call.operation, pretend=call.lying)
    waits = {"ticket": listing.id} if listing.state is State.PENDING else {}
    return JSONResponse(_listing(account, listing) | waits, 202 if waits else 200)


def offer_delete(call: Call, account: Account) -> Response:
    """Take an offer away."""
    listing = account.only(call.parameters["ref"], hidden=True)
    account.refuse_if_faulty(listing.sku)
    account.delete(listing, call.operation, pretend=call.lying)
    return JSONResponse({"id": listing.id, "sku": listing.sku, "status": State.ABSENT.value})


# --- routes of the sellers --------------------------------------------------------------------------------------

SYNC, LOT, FULL = "sync", "lot", "full-replace"

ROUTES: tuple[tuple[tuple[str, ...], str, str, str, str, Handler], ...] = (
    ((SYNC, LOT, FULL), "GET", "/account", "account_read", "access", account_read),
    ((SYNC, LOT, FULL), "GET", "/categories", "categories_read", "schema", categories_read),
    ((SYNC, LOT, FULL), "GET", "/categories/{id}", "categories_read", "schema", categories_read),
    ((SYNC, LOT, FULL), "GET", "/orders", "orders_find", "orders", orders_find),
    ((SYNC, LOT, FULL), "GET", "/orders/{id}", "order_read", "orders", order_read),
    ((SYNC, LOT, FULL), "POST", "/orders/{id}/acknowledge", "order_acknowledge", "orders", order_acknowledge),
    ((SYNC,), "POST", "/oauth/token", "token_refresh", "access", token_refresh),
    ((SYNC,), "POST", "/listings", "listing_create", "catalog", listing_create),
    ((SYNC,), "PUT", "/listings/{ref}", "listing_put", "catalog", listing_put),
    ((SYNC,), "PUT", "/listings/{ref}/price", "price_put", "offers", price_put),
    ((SYNC,), "PUT", "/listings/{ref}/stock", "stock_put", "offers", stock_put),
    ((SYNC,), "POST", "/listings/{ref}/deactivate", "listing_deactivate", "catalog", listing_deactivate),
    ((SYNC,), "POST", "/listings/{ref}/activate", "listing_activate", "catalog", listing_activate),
    ((SYNC,), "DELETE", "/listings/{ref}", "listing_delete", "catalog", unsupported),
    ((SYNC, LOT), "GET", "/listings", "listing_find", "catalog", listing_find),
    ((SYNC, LOT), "GET", "/listings/{ref}", "listing_read", "catalog", listing_read),
    ((LOT,), "POST", "/listings/{ref}/deactivate", "listing_deactivate", "catalog", unsupported),
    ((LOT,), "POST", "/listings/{ref}/activate", "listing_activate", "catalog", unsupported),
    ((LOT,), "POST", "/feeds", "feed_submit", "feeds", feed_submit),
    ((LOT,), "GET", "/feeds", "feed_find", "feeds", feed_find),
    ((LOT,), "GET", "/feeds/{id}", "feed_read", "feeds", feed_read),
    ((LOT,), "GET", "/feeds/{id}/result", "feed_result", "feeds", feed_result),
    ((FULL,), "PUT", "/offers/{ref}", "offer_put", "offers", offer_put),
    ((FULL,), "DELETE", "/offers/{ref}", "offer_delete", "catalog", offer_delete),
    ((FULL,), "GET", "/offers", "offer_find", "catalog", listing_find),
    ((FULL,), "GET", "/offers/{ref}", "offer_read", "catalog", listing_read),
    ((FULL,), "POST", "/offers/{ref}/deactivate", "listing_deactivate", "catalog", unsupported),
    ((FULL,), "POST", "/offers/{ref}/activate", "listing_activate", "catalog", unsupported),
)


class DropResponse(HangResponse):
    """Closes the connection without a word, as a server does that is not there."""

    def __init__(self) -> None:
        super().__init__(0.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Drop."""
        # uvicorn offers no way in ASGI to give up a connection: its request cycle, whose method `receive` is, has one
        transport = getattr(getattr(receive, "__self__", None), "transport", None)
        if transport is None:
            await super().__call__(scope, receive, send)
            return
        transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def _behind_the_gate(world: World, profile: str, handler: Handler) -> Callable[[Call], Awaitable[Response]]:
    """Outage, credentials and limits of the account come before the operation."""

    async def answer(call: Call) -> Response:
        form = "seconds"
        headers: dict[str, str] = {}
        try:
            account = world.account(call.account, profile)
            form = account.dials.retry_after_form
            away = _away(account)
            if away is not None:
                return away
            if handler is not token_refresh:
                scheme, _, token = call.request.headers.get("authorization", "").partition(" ")
                account.authorize(token if scheme.lower() == "bearer" else "")
            spent = account.spend_call()
            if spent is not None:
                allowed, limit, remaining, reset = spent
                if not allowed:
                    return throttled(None if form == "none" else reset, form)
                headers = rate_headers(limit, remaining, reset)
            account.arrived = world.now() - timedelta(seconds=call.waited)
            try:
                response = handler(call, account)
            finally:
                account.arrived = None
        except Refusal as refusal:
            response = _refusal(refusal, form)
        response.headers.update(headers)
        return response

    return answer


def _away(account: Account) -> Response | None:
    outage = account.outage
    if outage is None:
        return None
    left = (outage.until - account.world.now()).total_seconds()
    if left <= 0:
        account.outage = None
        return None
    account.counters["outage_calls"] += 1
    if outage.mode == "hang":
        return HangResponse(left)
    if outage.mode == "refuse":
        return DropResponse()
    return Response("Service Unavailable", 503, media_type="text/plain")


def _seller_routes(world: World, door: Door) -> Iterator[Route]:
    for profiles, method, path, operation, group, handler in ROUTES:
        for profile in profiles:
            yield door.route(
                f"/{profile}/{{account}}{path}",
                _behind_the_gate(world, profile, handler),
                methods=[method],
                operation=operation,
                group=group,
            )


# --- webhooks ---------------------------------------------------------------------------------------------------


class Courier:
    """Brings events to the accounts' webhooks, with the loss, doubling, delay and disorder that were dialled."""

    deadline = (1.0, 2.0)  # seconds to connect and to be answered

    def __init__(self, world: World) -> None:
        self.world = world
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="courier")
        self._local = threading.local()
        self._tasks: set[asyncio.Task[None]] = set()
        world.on_event = self.send

    def send(self, account: Account, event: Event) -> None:
        """Plan the deliveries of one event; must be called on the event loop."""
        dials, chance = account.dials, self.world.random
        if dials.webhook_url is None or account.profile is Profile.LOT:
            return
        copies = event.copies
        if copies is None:
            copies = 0 if chance.random() < dials.webhook_loss else 2 if chance.random() < dials.webhook_double else 1
        identity = f"evt-{self.world.number():08d}"
        if copies == 0:
            account.deliveries.append(Delivery(identity, event.topic, event.order, self.world.now(), outcome="lost"))
        for _ in range(copies):
            wait = dials.webhook_delay if event.delay is None else event.delay
            wait += chance.random() * dials.webhook_disorder
            planned = self.world.now() + timedelta(seconds=wait)
            delivery = Delivery(identity, event.topic, event.order, planned)
            account.deliveries.append(delivery)
            task = asyncio.get_running_loop().create_task(self._bring(account, event, delivery, wait))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _bring(self, account: Account, event: Event, delivery: Delivery, wait: float) -> None:
        if wait:
            await asyncio.sleep(wait)
        loop = asyncio.get_running_loop()
        for attempt in range(account.dials.webhook_retries + 1):
            delivery.attempts = attempt + 1
            body = json.dumps(
                {
                    "id": delivery.event,
                    "topic": event.topic,
                    "resource": {"id": event.order},
                    "account": account.name,
                    "sent": self.world.now().isoformat(),
                    "attempts": attempt + 1,
                }
            ).encode()
            headers = {"Content-Type": "application/json"} | self._signature(account, event, body)
            url = account.dials.webhook_url or ""
            started = time.monotonic()
            delivery.status = await loop.run_in_executor(self._threads, self._post, url, body, headers)
            delivery.seconds = round(time.monotonic() - started, 6)
            if 200 <= delivery.status < 300:
                delivery.outcome = "delivered"
                account.counters["webhooks_delivered"] += 1
                return
            if attempt < account.dials.webhook_retries:
                await asyncio.sleep(account.dials.webhook_retry_delay * 2**attempt)
        delivery.outcome = "failed"
        account.counters["webhooks_failed"] += 1

    def _signature(self, account: Account, event: Event, body: bytes) -> dict[str, str]:
        dials = account.dials
        secret = dials.webhook_secret
        if account.profile is not Profile.SYNC or secret is None or event.signature == "none":
            return {}
        moment = self.world.now() - timedelta(hours=1 if event.signature == "old" else 0)
        if event.signature == "bad":
            secret = secret + "?"
        signed = [signature(secret, int(moment.timestamp()), body)]
        if dials.webhook_previous_secret is not None and event.signature != "bad":
            signed.insert(0, signature(dials.webhook_previous_secret, int(moment.timestamp()), body))
        return {"X-Signature": ",".join([f"t={int(moment.timestamp())}", *(f"v1={one}" for one in signed)])}

    def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = False
        try:
            return session.post(url, body, headers=headers, timeout=self.deadline, allow_redirects=False).status_code
        except requests.RequestException:
            return 0

    def stop(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


def signature(secret: str, moment: int, body: bytes) -> str:
    """HMAC-SHA256 over `<moment>.<body>`, in hex; `moment` in Unix seconds."""
    return hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()


# --- control ----------------------------------------------------------------------------------------------------


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AccountBody(_Body):
    """A seller account to open."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    profile: Profile
    token: str | None = Field(None, min_length=8)
    dials: Dials = Dials()


class CredentialsBody(_Body):
    """expire: access tokens end now. revoke: nothing works. consent: a new pair."""

    action: Literal["expire", "revoke", "consent"]
    token: str | None = Field(None, min_length=8)


class OutageBody(_Body):
    """How the account's marketplace is away, and how long; `off` ends it."""

    mode: Literal["503", "refuse", "hang", "off"]
    seconds: float = Field(10, gt=0)


class ShelfBody(_Body):
    """Listings that are there from the beginning: SKUs `first` to `first + count - 1`. Money in cents."""

    first: int = Field(ge=1)
    count: int = Field(ge=1, le=100_000)
    category: str = "MC-130"
    price: int = Field(9990, ge=0)
    stock: int = Field(0, ge=0)


class DriftBody(_Body):
    """What to change behind the seller's back. Money in cents."""

    stock: int | None = Field(None, ge=0)
    price: int | None = Field(None, ge=0)
    title: str | None = None


class ProblemBody(_Body):
    """One problem to answer with."""

    field: str
    code: str
    message: str = ""
    value: object = None

    def problem(self) -> Problem:
        """The noun."""
        return Problem(self.field, self.code, self.message, self.value)


class SkuFaultBody(_Body):
    """Writes about the SKU fail; status 0 heals it."""

    sku: str
    status: int = Field(500, ge=0, le=599)
    problems: list[ProblemBody] = []
    count: int | None = Field(None, ge=1)


class AcceptanceBody(_Body):
    """The marketplace's decision about a pending SKU: rejected when there are problems."""

    sku: str
    problems: list[ProblemBody] = []


class OrderLineBody(_Body):
    """One line of a basket to place; cents per unit, the shown price when empty."""

    sku: str
    quantity: int = Field(1, ge=1)
    price: int | None = Field(None, ge=0)
    discount: int = Field(0, ge=0)


class OrderBody(_Body):
    """A basket to place. Money in cents; `copies` and `delay` overrule the webhook dials."""

    items: list[OrderLineBody] = Field(min_length=1)
    id: str | None = Field(None, pattern=r"^[A-Za-z0-9-]{1,40}$")
    status: Literal["pending", "paid"] = "paid"
    shipping: int = Field(0, ge=0)
    interest: int = Field(0, ge=0)
    discount: int = Field(0, ge=0)
    total: int | None = Field(None, ge=0, description="what the marketplace says, whatever the parts make")
    sla: str = "Normal"
    buyer: dict[str, str] = {}
    address: dict[str, str] = {}
    copies: int | None = Field(None, ge=0, le=20)
    delay: float | None = Field(None, ge=0)


class OrderStatusBody(_Body):
    """What became of the order on the marketplace's side."""

    status: Literal["pending", "paid", "cancelled", "shipped", "delivered"]
    copies: int | None = Field(None, ge=0, le=20)
    delay: float | None = Field(None, ge=0)


class EventBody(_Body):
    """A pointer to send now."""

    order: str
    topic: str = "orders"
    copies: int = Field(1, ge=0, le=1000)
    delay: float = Field(0, ge=0)
    signature: Literal["good", "bad", "old", "none"] = "good"


class ClockBody(_Body):
    """Seconds to let pass at once."""

    advance: float = Field(ge=0)


Wanted = TypeVar("Wanted", bound=_Body)


async def _wanted(request: Request, model: type[Wanted]) -> Wanted:
    return model.model_validate_json(await request.body())


def _shown(account: Account, record: SkuRecord) -> dict[str, object]:
    listings = [account.listings[one] for one in record.live]
    first = listings[0] if listings else None
    row: dict[str, object] = {
        "sku": record.sku,
        "state": (first.state if first else State.ABSENT).value,
        "ids": [listing.id for listing in listings],
        "link": first.link if first else "",
        "creates": record.creates,
        "deletes": record.deletes,
        "refused": record.refused,
        "writes": dict(record.writes),
    }
    if first is not None:
        values = first.values
        row |= {
            "title": values.title,
            "description": values.description,
            "category": values.category,
            "ean": values.ean,
            "brand": values.brand,
            "images": list(values.images),
            "attributes": dict(values.attributes),
            "group": values.group,
            "price_cents": values.price,
            "list_price_cents": values.list_price,
            "stock": values.stock,
            "updated_at": first.updated_at.isoformat(),
        }
    return row


def _change(change: Change) -> dict[str, object]:
    return {
        "number": change.number,
        "at": change.at.isoformat(),
        "asked": change.asked.isoformat(),
        "listing": change.listing,
        "field": change.field,
        "value": change.value,
        "by": change.by,
    }


def _placed(order: Order) -> dict[str, object]:
    return {
        "id": order.id,
        "status": order.status,
        "items": [
            {"sku": line.sku, "quantity": line.quantity, "price_cents": line.price, "discount_cents": line.discount}
            for line in order.lines
        ],
        "shipping_cents": order.shipping,
        "interest_cents": order.interest,
        "discount_cents": order.discount,
        "total_cents": order.total,
        "created_at": order.created_at.isoformat(),
        "updated_at": order.updated_at.isoformat(),
        "vtex_order_id": order.acknowledgements[-1][0] if order.acknowledgements else None,
        "acknowledge_calls": order.acknowledge_calls,
        "reads": order.reads,
    }


def _delivery(delivery: Delivery) -> dict[str, object]:
    return {
        "event": delivery.event,
        "planned": delivery.planned.isoformat(),
        "topic": delivery.topic,
        "order": delivery.order,
        "attempts": delivery.attempts,
        "status": delivery.status,
        "seconds": delivery.seconds,
        "outcome": delivery.outcome,
    }


def _account(account: Account) -> dict[str, object]:
    return {
        "name": account.name,
        "profile": account.profile.value,
        "token": account.token,
        "refresh_token": account.refresh_token,
        "client_id": account.client_id,
        "client_secret": account.client_secret,
        "dials": account.dials.model_dump(mode="json"),
        "counters": dict(account.counters),
    }


class Control:
    """The routes that steer the marketplace and read what it shows; never used by the hub."""

    def __init__(self, world: World, faults: Faults, journal: Journal) -> None:
        self.world = world
        self.faults = faults
        self.journal = journal

    def _of(self, request: Request) -> Account:
        return self.world.account(request.path_params["account"])

    async def open_account(self, request: Request) -> Response:
        """Open a seller account."""
        body = await _wanted(request, AccountBody)
        return JSONResponse(_account(self.world.open_account(body.name, body.profile, body.dials, body.token)), 201)

    async def accounts(self, _: Request) -> Response:
        """All accounts."""
        return JSONResponse([_account(account) for account in self.world.accounts.values()])

    async def account(self, request: Request) -> Response:
        """One account with its credentials, dials and counters."""
        return JSONResponse(_account(self._of(request)))

    async def turn(self, request: Request) -> Response:
        """Turn some dials of an account."""
        account = self._of(request)
        try:
            wanted = json.loads(await request.body())
        except ValueError as error:
            raise Refusal(400, "unreadable", "send one JSON object of dials") from error
        if not isinstance(wanted, dict):
            raise Refusal(400, "unreadable", "send one JSON object of dials")
        account.dials = Dials.model_validate(account.dials.model_dump() | wanted)
        return JSONResponse(_account(account))

    async def close_account(self, request: Request) -> Response:
        """Forget an account."""
        del self.world.accounts[self._of(request).name]
        return Response(status_code=204)

    async def credentials(self, request: Request) -> Response:
        """Expire, revoke or renew."""
        account, body = self._of(request), await _wanted(request, CredentialsBody)
        if body.action == "expire":
            account.expire_tokens()
        elif body.action == "revoke":
            account.revoke()
        else:
            account.consent(body.token)
        return JSONResponse(_account(account))

    async def outage(self, request: Request) -> Response:
        """Begin or end an outage."""
        account, body = self._of(request), await _wanted(request, OutageBody)
        if body.mode == "off":
            account.outage = None
        else:
            account.outage = Outage(body.mode, self.world.now() + timedelta(seconds=body.seconds))
        return Response(status_code=204)

    async def shown(self, request: Request) -> Response:
        """Every SKU ever heard of, as shown now."""
        account = self._of(request)
        return JSONResponse([_shown(account, record) for record in account.skus.values()])

    async def shown_sku(self, request: Request) -> Response:
        """One SKU with the history of its values; absent without history when never heard of."""
        account, sku = self._of(request), request.path_params["sku"]
        record = account.skus.get(sku, SkuRecord(sku))
        return JSONResponse(_shown(account, record) | {"history": [_change(change) for change in record.history]})

    async def history(self, request: Request) -> Response:
        """Every value of every SKU that became visible, in that order."""
        records = self._of(request).skus.values()
        rows = [{"sku": record.sku, **_change(change)} for record in records for change in record.history]
        return JSONResponse(sorted(rows, key=operator.itemgetter("number")))

    async def lies(self, request: Request) -> Response:
        """Every write that was answered as done and was not."""
        told = self._of(request).lies
        return JSONResponse([{"at": at.isoformat(), "operation": what, "sku": sku} for at, what, sku in told])

    async def shelve(self, request: Request) -> Response:
        """Open listings without any seller's call; the id of each SKU's listing."""
        account, body = self._of(request), await _wanted(request, ShelfBody)
        changes = {"category": body.category, "price": body.price, "list_price": body.price}
        ids = {
            str(sku): account.create(str(sku), {"title": f"SKU {sku}", **changes, "stock": body.stock}, "hand").id
            for sku in range(body.first, body.first + body.count)
        }
        return JSONResponse(ids, 201)

    async def drift(self, request: Request) -> Response:
        """Change by hand what a SKU shows."""
        account, body = self._of(request), await _wanted(request, DriftBody)
        listing = account.only(request.path_params["sku"], hidden=True)
        account.drift(listing, body.model_dump(exclude_none=True))
        return JSONResponse(_shown(account, account.record(listing.sku)))

    async def sku_fault(self, request: Request) -> Response:
        """Make writes about one SKU fail, or heal it."""
        account, body = self._of(request), await _wanted(request, SkuFaultBody)
        if body.status < 400:
            account.sku_faults.pop(body.sku, None)
        else:
            problems = tuple(one.problem() for one in body.problems)
            account.sku_faults[body.sku] = SkuFault(body.status, problems, body.count)
        return Response(status_code=204)

    async def acceptance(self, request: Request) -> Response:
        """Accept or reject a pending offer."""
        account, body = self._of(request), await _wanted(request, AcceptanceBody)
        account.decide(body.sku, [one.problem() for one in body.problems])
        return JSONResponse(_shown(account, account.record(body.sku)))

    async def place(self, request: Request) -> Response:
        """A buyer places a basket."""
        account, body = self._of(request), await _wanted(request, OrderBody)
        number, now = self.world.number(), self.world.now()
        lines = []
        for at, item in enumerate(body.items, 1):
            found = account.find(item.sku)
            values = found[0].values if found else None
            price = item.price if item.price is not None else values.price if values else None
            if price is None:
                raise Refusal(400, "price_unknown", f"SKU {item.sku!r} shows no price: give one in items")
            title = values.title if values else item.sku
            identity = found[0].id if found else ""
            shipping = body.shipping // len(body.items) + (at <= body.shipping % len(body.items))
            lines.append(OrderLine(at, item.sku, identity, title, item.quantity, price, item.discount, shipping))
        order = Order(
            id=body.id or f"{account.profile.value[:3].upper()}-{20_000_000 + number}",
            status=body.status,
            lines=tuple(lines),
            interest=body.interest,
            discount=body.discount,
            sla=body.sla,
            buyer=synthetic_buyer(number) | body.buyer,
            address=synthetic_address(number) | body.address,
            created_at=now,
            updated_at=now,
            number=0,
            told_total=body.total,
        )
        return JSONResponse(_placed(account.place(order, copies=body.copies, delay=body.delay)), 201)

    async def orders(self, request: Request) -> Response:
        """Every order, with what the seller did to it."""
        return JSONResponse([_placed(order) for order in self._of(request).orders.values()])

    async def order_status(self, request: Request) -> Response:
        """The order moves on at the marketplace's side."""
        account, body = self._of(request), await _wanted(request, OrderStatusBody)
        order = account.order(request.path_params["id"])
        account.touch(order, body.status, copies=body.copies, delay=body.delay)
        return JSONResponse(_placed(order))

    async def event(self, request: Request) -> Response:
        """Send a pointer, true or forged."""
        account, body = self._of(request), await _wanted(request, EventBody)
        self.world.on_event(account, Event(body.topic, body.order, body.copies, body.delay, body.signature))
        return Response(status_code=202)

    async def deliveries(self, request: Request) -> Response:
        """What became of the webhooks."""
        return JSONResponse([_delivery(delivery) for delivery in self._of(request).deliveries])

    async def clock(self, request: Request) -> Response:
        """Let time pass."""
        self.world.advance((await _wanted(request, ClockBody)).advance)
        return JSONResponse({"now": self.world.now().isoformat()})

    async def reset(self, _: Request) -> Response:
        """Forget accounts, faults, journal and time travelled."""
        self.world.clear()
        self.faults.clear()
        self.journal.clear()
        return Response(status_code=204)

    async def ready(self, _: Request) -> Response:
        """The server is up."""
        return JSONResponse({"marketplace": "sandbox", "accounts": len(self.world.accounts)})

    def routes(self) -> list[Route]:
        """All of the above."""
        of = "/_control/accounts/{account}"
        table: tuple[tuple[str, str, Callable[[Request], Awaitable[Response]]], ...] = (
            ("GET", "/_control/ready", self.ready),
            ("POST", "/_control/accounts", self.open_account),
            ("GET", "/_control/accounts", self.accounts),
            ("GET", of, self.account),
            ("PATCH", of, self.turn),
            ("DELETE", of, self.close_account),
            ("POST", f"{of}/credentials", self.credentials),
            ("POST", f"{of}/outage", self.outage),
            ("GET", f"{of}/shown", self.shown),
            ("GET", f"{of}/shown/{{sku}}", self.shown_sku),
            ("POST", f"{of}/shelf", self.shelve),
            ("PATCH", f"{of}/shown/{{sku}}", self.drift),
            ("GET", f"{of}/history", self.history),
            ("GET", f"{of}/lies", self.lies),
            ("POST", f"{of}/sku-faults", self.sku_fault),
            ("POST", f"{of}/acceptance", self.acceptance),
            ("POST", f"{of}/orders", self.place),
            ("GET", f"{of}/orders", self.orders),
            ("POST", f"{of}/orders/{{id}}/status", self.order_status),
            ("POST", f"{of}/events", self.event),
            ("GET", f"{of}/deliveries", self.deliveries),
            ("POST", "/_control/clock", self.clock),
            ("POST", "/_control/reset", self.reset),
        )
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]


async def _on_refusal(_: Request, refusal: Exception) -> Response:
    return _refusal(refusal) if isinstance(refusal, Refusal) else Response(status_code=500)


async def _on_invalid(_: Request, error: Exception) -> Response:
    problems = problems_of(error) if isinstance(error, ValidationError) else []
    return JSONResponse({"problems": problems}, 400)


async def _on_http(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "not_found", 405: "unsupported"}.get(status, "error")
    return JSONResponse({"error": code, "message": f"HTTP {status}: no such route", "problems": []}, status)


# --- running ----------------------------------------------------------------------------------------------------


def app(world: World | None = None) -> Starlette:
    """The marketplace as an ASGI application around a world."""
    world = world or World()
    faults, journal = Faults(world.seed), Journal()
    limits = Limits()
    door = Door(faults, journal, limits)
    courier = Courier(world)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        courier.stop()

    return Starlette(
        routes=[
            *_seller_routes(world, door),
            *Control(world, faults, journal).routes(),
            *control_routes(faults, journal, limits),
        ],
        exception_handlers={Refusal: _on_refusal, ValidationError: _on_invalid, HTTPException: _on_http},
        lifespan=lifespan,
    )


@contextlib.contextmanager
def served(world: World | None = None, port: int = 0) -> Iterator[str]:
    """The marketplace on a thread of this process, on a free port unless one is named; yields its URL.

    Raises:
        OSError: the port is taken.
    """
    with in_thread(app(world), port) as url:
        yield url


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop; the first line of output is `marketplace ready at <url>`."""
    parser = argparse.ArgumentParser(prog="python -m hub.simulators.marketplace", description="sandbox marketplace")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    return run(app(World(chosen.seed)), "marketplace", chosen.host, chosen.port)


if __name__ == "__main__":
    raise SystemExit(main())
