"""What VTEX says of an order integration, as one noun: its immediate answer and its later result have one form.

Pure. Nobody signs a result, so nothing in it may stop its reader: what is not as documented is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from hub.errors import Problem, Unavailable
from hub.model import IntegrationAnswer, JsonTree

_LONGEST_MESSAGE: Final = 500
_LONGEST_DESCRIPTION: Final = 300
_LONGEST_ID: Final = 128
_MOST_ERRORS: Final = 50
_E_MAIL: Final = re.compile(r"[^\s@'\"<>(),;:]+@[^\s@'\"<>(),;:]+")
_LONG_NUMBER: Final = re.compile(r"\+?\d(?:[\s.\-/()]{0,2}\d){8,}")  # documents, telephones
_UNKEEPABLE: Final = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL keeps neither NUL nor half a character


def integration_answer(tree: JsonTree) -> IntegrationAnswer:
    """One answer or result of VTEX's order integration (vtex.md 9.4); most of its fields are nullable.

    Refusals quote what was sent: e-mail addresses and long numbers in their texts are masked. `Unavailable` when
    `tree` is no object.
    """
    if not isinstance(tree, Mapping):
        raise Unavailable("unreadable answer of VTEX (order integration): field '(root)' is no object", side="vtex")
    fields = tree.get("fields")
    main = _text(fields.get("mainOrderId"), _LONGEST_ID) if isinstance(fields, Mapping) else ""
    errors = list(_errors(tree.get("errors")))
    return IntegrationAnswer(
        success=tree.get("success") is True,
        flow=_text(tree.get("flow"), _LONGEST_ID) or "Unknown",
        code=_text(tree.get("code"), _LONGEST_ID),
        operation_id=_text(tree.get("operationId"), _LONGEST_ID),
        marketplace_order_id=_text(tree.get("marketplaceOrderId"), _LONGEST_ID),
        message=without_personal_data(_text(tree.get("message"), _LONGEST_MESSAGE)),
        inner_codes=tuple(_text(error.get("code"), _LONGEST_ID) for error in errors),
        main_order_id=main or None,
        problems=tuple(
            Problem(
                _text(error.get("code"), _LONGEST_ID),
                field=_text(error.get("source"), _LONGEST_ID) or "VTEX",
                fix=without_personal_data(_text(error.get("description"), _LONGEST_DESCRIPTION)),
            )
            for error in errors
        ),
    )


def without_personal_data(text: str) -> str:
    """`text` with e-mail addresses and numbers of nine digits or more (documents, telephones) masked."""
    return _LONG_NUMBER.sub("***", _E_MAIL.sub("***", text))


def keepable(text: str) -> str:
    """`text` without the characters that PostgreSQL cannot keep."""
    return _UNKEEPABLE.sub("", text)


def _errors(found: JsonTree) -> Iterable[Mapping[str, JsonTree]]:
    return [one for one in found[:_MOST_ERRORS] if isinstance(one, Mapping)] if isinstance(found, list) else []


def _text(found: JsonTree, longest: int) -> str:
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return ""
    return keepable(found if isinstance(found, str) else f"{found!r}"[:longest])[:longest]
