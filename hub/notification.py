"""What VTEX said changed: every documented body becomes the same frozen noun, or one error that names all its problems.

Pure. A notification is only a hint: `asks` says which contexts look at the SKU again, and they read VTEX themselves.
pydantic's core reads the fields, without a model around it: 2 µs less each; the same checks by hand took longer still.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from pydantic_core import SchemaValidator, ValidationError, from_json
from pydantic_core.core_schema import bool_schema, int_schema, str_schema, typed_dict_field, typed_dict_schema

from hub.errors import BadInput, Problem
from hub.model import LARGEST_ID, Urgency

MOST_IN_ONE_BODY: Final = 1_000
_MOST_PROBLEMS: Final = 20


class Notification(NamedTuple):
    """One SKU of which VTEX says that something changed (vtex.md 4.2); a tuple, made in half the time.

    `is_active` is `None` when the body does not say. `raw` is the notification as it came (of an array: its element,
    as JSON again), to be kept.
    """

    sku_id: str
    account: str
    affiliate: str
    is_active: bool | None = None
    stock_modified: bool = False
    price_modified: bool = False
    sku_modified: bool = False
    removed: bool = False
    raw: str = ""


def parse(body: bytes, *, account: str, affiliate: str) -> tuple[Notification, ...]:
    """Read one notification or an array of them (NOT-27).

    `account` and `affiliate` are those of the URL token's owner and stand in where the body names none. `BadInput`
    carries every problem of the body (at most 20), each with its field, what was found and what to send.
    """
    text, tree = read_json(body)
    if _may_repeat(body, tree):
        tree = _told_once(text, tree)
    if isinstance(tree, dict):
        problems: list[Problem] = []
        one = _read(tree, text, "", account=account, affiliate=affiliate, problems=problems)
        if one is None or problems:
            raise BadInput(problems)
        return (one,)
    if not isinstance(tree, list) or not tree:
        fix = "send one JSON object per SKU, or an array of such objects that is not empty"
        raise BadInput([_problem("body", tree, fix)])
    if len(tree) > MOST_IN_ONE_BODY:
        fix = f"send at most {MOST_IN_ONE_BODY} notifications in one body"
        raise BadInput([_problem("body", f"{len(tree)} notifications", fix)])
    return _read_array(tree, account, affiliate)


def asks(notification: Notification) -> tuple[tuple[str, int], ...]:
    """Which contexts look at the SKU again, and how urgently: the written table of vtex.md 4.4.

    Whether the SKU is published (rows 5 and 6) is not known here: price and stock park on the publication themselves
    and ask catalog.
    """
    if notification.removed or notification.is_active is False:
        return (("catalog", Urgency.REMOVE),)
    if notification.sku_modified:
        return (("catalog", Urgency.NOTIFIED),)
    if notification.price_modified and notification.stock_modified:
        return (("price", Urgency.NOTIFIED), ("stock", Urgency.NOTIFIED))
    if notification.price_modified:
        return (("price", Urgency.NOTIFIED),)
    if notification.stock_modified:
        return (("stock", Urgency.NOTIFIED),)
    return (("catalog", Urgency.CHECK),)


def announces_change(notification: Notification) -> bool:
    """Whether VTEX announced a change, so that reading an unchanged value deserves a second look (7.6)."""
    return (
        notification.removed
        or notification.is_active is False
        or notification.sku_modified
        or notification.price_modified
        or notification.stock_modified
    )


def read_json(body: bytes) -> tuple[str, Any]:
    """A body as text and as JSON tree; `BadInput` when it is not JSON in UTF-8.

    The text that comes back holds no raw control character inside and no lone surrogate: PostgreSQL takes it as it is.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        tree = from_json(body, allow_inf_nan=False)
        return body.decode(), tree
    except ValueError as fault:
        fix = f"send valid JSON in UTF-8 ({fault})"
    raise BadInput([_problem("body", body[:100].decode("utf-8", "replace") or "empty", fix)]) from None


def plain_account(name: str) -> str:
    """The VTEX account in `store`, `Store`, `store.myvtex` or a full host name (NOT-07)."""
    return name.strip().partition(".")[0].lower()


def shortened(found: object) -> str:
    """What was found, as JSON of at most 60 characters, with � for what cannot be printed: whoever shows it escapes."""
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if text.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in text)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with every key as often as it was written."""


def _may_repeat(body: bytes, tree: Any) -> bool:
    """Whether some key may be there twice, told by counting: half a µs, where reading pair by pair takes 5."""
    if isinstance(tree, dict):
        keys = len(tree)
    else:
        keys = sum(len(one) for one in tree if isinstance(one, dict)) if isinstance(tree, list) else 0
    return body.count(b'":') != keys or b'" ' in body  # with a space before its colon a key is not counted


def _told_once(text: str, tree: Any) -> Any:
    """`tree` where a known field that was written twice reads as it does in two spellings."""
    pairs = json.loads(text, object_pairs_hook=_Pairs)
    if isinstance(pairs, _Pairs):
        return _merged(pairs, tree)
    if isinstance(tree, list):
        return [_merged(one, kept) if isinstance(one, _Pairs) else kept for one, kept in zip(pairs, tree, strict=True)]
    return tree


def _merged(pairs: _Pairs, tree: dict[str, Any]) -> dict[str, Any]:
    if len(pairs) == len(tree):
        return tree
    told: dict[str, Any] = {}
    for key, value in pairs:
        name = _NAMES.get(key.lower())
        if name is not None and value is not None:
            told[key] = value if key not in told else _agreed(name, told[key], value)
    return {**tree, **told}


def _problem(field: str, found: object, fix: str) -> Problem:
    return Problem("input", field=field, value=shortened(found), fix=fix)


def _read_array(tree: list[Any], account: str, affiliate: str) -> tuple[Notification, ...]:
    read: list[Notification] = []
    problems: list[Problem] = []
    for position, element in enumerate(tree):
        where = f"[{position}]."
        if isinstance(element, dict):
            one = _read(element, json.dumps(element), where, account=account, affiliate=affiliate, problems=problems)
            if one is not None:
                read.append(one)
        else:
            problems.append(_problem(where[:-1], element, "send one JSON object per SKU"))
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise BadInput(problems[:_MOST_PROBLEMS])
    return tuple(read)


def _read(
    tree: dict[str, Any], raw: str, where: str, *, account: str, affiliate: str, problems: list[Problem]
) -> Notification | None:
    try:
        body = _BODY.validate_python(_in_our_names(tree))
    except ValidationError as refused:
        problems.extend(_told(error["loc"][0], tree, where) for error in refused.errors(include_url=False))
        return None
    told = body.get
    named = told("account")
    return Notification(
        sku_id=str(body["sku_id"]),
        account=account if named == account else plain_account(named or account),
        affiliate=(told("affiliate") or affiliate).strip().upper(),
        is_active=told("is_active"),
        stock_modified=told("stock_modified", False),
        price_modified=told("price_modified", False),
        sku_modified=told("sku_modified", False),
        removed=told("removed", False),
        raw=raw,
    )


def _told(name: str | int, tree: dict[str, Any], where: str) -> Problem:
    """One refused field, in the sender's own spelling."""
    fix = _FIXES[str(name)]
    given = [key for key, value in tree.items() if value is not None and _NAMES.get(key.lower()) == name]
    if not given:
        return Problem("input", field=f"{where}{_USUAL[str(name)]}", value="nothing", fix=fix)
    found = tree[given[0]] if len(given) == 1 else " and ".join(shortened(tree[key]) for key in given)
    return _problem(where + " and ".join(given), found, fix)


# The body of one notification under our own names; what is not there stays away.
_BODY: Final = SchemaValidator(
    typed_dict_schema(
        {
            "sku_id": typed_dict_field(int_schema(ge=1, le=LARGEST_ID), required=True),
            "account": typed_dict_field(str_schema(), required=False),
            "affiliate": typed_dict_field(str_schema(), required=False),
        }
        | {
            flag: typed_dict_field(bool_schema(), required=False)
            for flag in ("is_active", "stock_modified", "price_modified", "sku_modified", "removed")
        }
    )
)


def _in_our_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Known fields by our names; `null` reads as absent (2.6), unknown fields are left out (NOT-08)."""
    ours: dict[str, Any] = {}
    for key, value in tree.items():
        name = _NAMES.get(key) or _NAMES.get(key.lower())
        if name is None or value is None:
            continue
        ours[name] = value if name not in ours else _agreed(name, ours[name], value)
    if type(ours.get("sku_id")) is bool:
        ours["sku_id"] = None  # pydantic would take `true` for 1
    return ours


def _agreed(name: str, one: object, other: object) -> object:
    """Two spellings of one field that differ: a flag reads as what makes us look at more, anything else is refused."""
    words = {str(one).strip().lower(), str(other).strip().lower()}
    if words == {"true", "false"} and name in _FLAGS:
        return name != "is_active"
    return one if len(words) == 1 else [one, other]


_NUMBER_FIX: Final = f"send the SKU id once, as a whole number from 1 to {LARGEST_ID}"
_FLAG_FIX: Final = "send true or false"
_FLAGS: Final = ("is_active", "stock_modified", "price_modified", "sku_modified", "removed")
_FIXES: Final[dict[str, str]] = {
    "sku_id": _NUMBER_FIX,
    "account": "send the name of one VTEX account as text",
    "affiliate": "send one affiliate id as text",
} | dict.fromkeys(_FLAGS, _FLAG_FIX)
_USUAL: Final = {"sku_id": "idSKU"}  # the only field that must be there

# VTEX's names in lower case; the spellings met most are listed too and spare the lower().
_NAMES: Final[dict[str, str]] = {
    "idsku": "sku_id",
    "an": "account",
    "idaffiliate": "affiliate",
    "isactive": "is_active",
    "active": "is_active",
    "stockmodified": "stock_modified",
    "pricemodified": "price_modified",
    "hasstockkeepingunitmodified": "sku_modified",
    "hasstockkeepingunitremovedfromaffiliate": "removed",
}
_NAMES.update(
    {
        spelling: _NAMES[spelling.lower()]
        for spelling in (
            *("IdSku", "idSKU", "idSku", "IdSKU", "An", "IdAffiliate", "idAffiliate"),
            *("IsActive", "isActive", "StockModified", "PriceModified"),
            *("HasStockKeepingUnitModified", "HasStockKeepingUnitRemovedFromAffiliate"),
        )
    }
)
