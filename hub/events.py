"""What marketplaces and VTEX call back with: whether an event is genuine, and which order it is about.

Pure; the clock is an argument. A body is a pointer, never the truth: whoever is asked reads the order itself, so a
doubled, late or replayed event does no harm.
"""

from __future__ import annotations

import hashlib
import hmac
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from hub.errors import BadInput, Problem
from hub.notification import plain_account, read_json, shortened
from hub.ports import Webhook

LONGEST_ORDER_ID: Final = 128
_MOST_SIGNATURES: Final = 10
_LONGEST_SIGNATURE_HEADER: Final = 2_048

Doubt = Literal["unsigned", "unreadable signature", "outside the replay window", "wrong signature", "no secret"]
"""Why an event is not believed."""


@dataclass(frozen=True, slots=True)
class Event:
    """A call-back: `order_id` is the marketplace's, `None` when it is not about an order; `raw` as it came."""

    order_id: str | None
    raw: str
    account: str | None = None


def doubt(webhook: Webhook, signature: str | None, body: bytes, secrets: Sequence[str], now: float) -> Doubt | None:
    """Why an event is not to be believed; `None` when it is.

    `signature` is the value of `webhook.header`, `body` the bytes as received, `secrets` every one valid now (two while
    one rotates), `now` Unix seconds. Comparison takes the same time wherever the difference is.
    """
    if webhook.scheme == "none":
        return None
    if not secrets:
        return "no secret"
    if signature is None:
        return "unsigned"
    moment, given = _signatures(signature)
    if moment is None or not given:
        return "unreadable signature"
    signed = f"{moment}.".encode() + body
    wanted = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    matches = [hmac.compare_digest(one, other) for one in given for other in wanted]
    if not any(matches):
        return "wrong signature"
    if abs(now - moment) > webhook.replay_window:
        return "outside the replay window"
    return None


def read_event(webhook: Webhook, body: bytes) -> Event:
    """Find the order that a marketplace's event points at. `BadInput` when unreadable or its id cannot be one."""
    text, tree = read_json(body)
    if not isinstance(tree, dict):
        raise BadInput([_problem("body", tree, "send the event as one JSON object")])
    found: Any = tree
    for key in webhook.pointer:
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        return Event(None, text)
    if webhook.prefix:
        if not (isinstance(found, str) and found.startswith(webhook.prefix)):
            return Event(None, text)
        found = urllib.parse.unquote(found.removeprefix(webhook.prefix))
    return Event(_order_id(".".join(webhook.pointer), found), text)


def read_result(body: bytes, *, account: str) -> Event:
    """The order that VTEX's processing result is about (vtex.md 9.4). `BadInput` as for `read_event`.

    Most fields are nullable: without `accountName` the token's owner `account` stands in; without
    `marketplaceOrderId` nobody can tell whose result it is and `order_id` is `None`.
    """
    text, tree = read_json(body)
    if not isinstance(tree, dict):
        raise BadInput([_problem("body", tree, "send the processing result as one JSON object")])
    fields = _folded(tree)
    named = fields.get("accountname")
    problems = []
    if named is not None and not isinstance(named, str):
        problems.append(_problem("accountName", named, "send the VTEX account name as text"))
    found = fields.get("marketplaceorderid")
    order_id = None
    if found is not None and found != "":
        try:
            order_id = _order_id("marketplaceOrderId", found)
        except BadInput as refused:
            problems.extend(refused.problems)
    if problems:
        raise BadInput(problems)
    return Event(order_id, text, plain_account(named or account))


def _signatures(header: str) -> tuple[int | None, list[str]]:
    moment: int | None = None
    given: list[str] = []
    for name, value in _pairs(header[:_LONGEST_SIGNATURE_HEADER]):
        if name == "t" and value.isascii() and value.isdigit() and len(value) <= 12:
            moment = int(value)
        elif name == "v1" and value.isascii() and len(given) < _MOST_SIGNATURES:
            given.append(value.lower())
    return moment, given


def _pairs(header: str) -> Iterator[tuple[str, str]]:
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        yield name.strip().lower(), value.strip()


def _folded(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): value for key, value in tree.items()}


def _order_id(field: str, found: object) -> str:
    """An id as key of a row: a text or whole number, printable, of bounded length."""
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found) if abs(found) < 10**LONGEST_ORDER_ID else ""
    if isinstance(found, str):
        order_id = found.strip()
        if order_id and len(order_id) <= LONGEST_ORDER_ID and order_id.isprintable():
            return order_id
    fix = f"send the order id as printable text of at most {LONGEST_ORDER_ID} characters"
    raise BadInput([_problem(field, found, fix)])


def _problem(field: str, found: object, fix: str) -> Problem:
    return Problem("input", field=field, value=shortened(found), fix=fix)
