"""What pydantic objects to becomes problems that people can act on: field, value found, fix; all of them at once."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hub.errors import BadInput, Problem
from hub.model import JsonTree

Location = tuple[int | str, ...]

_LONGEST_VALUE: Final = 80
_KNOWN_SHOWN: Final = 12
_UNKNOWN_KEY: Final = frozenset({"extra_forbidden", "unexpected_keyword_argument"})

_TOO_DEEP: Final = "is nested too deeply"

_Model = TypeVar("_Model", bound=BaseModel)


class Unshown(ValueError):  # noqa: N818 – named by what it does to the value
    """What a validator raises about a value that may hold a secret: a problem shows `shown` instead of it."""

    def __init__(self, message: str, shown: str = "") -> None:
        self.shown = shown
        super().__init__(message)


_Number = TypeVar("_Number", int, float, Decimal)

DECIMAL_PLACES: Final = 24
"""Of a `Decimal` that somebody writes: enough for every digit of a float from 0.000001 on, as programs write JSON."""


def within(least: str, most: str, what: str = "a number") -> AfterValidator:
    """For the annotation of a number: from `least` to `most`, both of them allowed; else a problem that names both."""

    def check(number: _Number) -> _Number:
        kind = type(number)
        if not kind(least) <= number <= kind(most):
            raise ValueError(f"write {what} from {least} to {most}")
        if isinstance(number, Decimal) and -int(number.as_tuple().exponent) > DECIMAL_PLACES:
            raise ValueError(f"write at most {DECIMAL_PLACES} decimal places")
        return number

    return AfterValidator(check)


class Naming(Protocol):
    """How a place in the input is named to its author."""

    def __call__(self, location: Location, *, missing: bool) -> str:
        """`location` as a name; when `missing` is set, its last part is not there and its parent is the place."""


def dotted(location: Location, *, missing: bool = False) -> str:  # noqa: ARG001 – a `Naming`
    """`("pools", "offers", "threads")` → `pools.offers.threads`."""
    return ".".join(str(part) for part in location)


def parsed(model: type[_Model], tree: JsonTree, *, naming: Naming = dotted, secret: bool = False) -> _Model:
    """`tree` as a `model`, by JSON's rules (lists are tuples, texts may be decimals). `BadInput` with every problem.

    `secret`: no value is repeated in a problem.
    """
    try:
        return model.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as objections:
        raise BadInput(problems_of(objections, model, naming=naming, secret=secret)) from None
    except RecursionError:
        raise BadInput([Problem("input", field=naming((), missing=False), fix=_TOO_DEEP)]) from None


def problems_of(
    objections: ValidationError, model: type[BaseModel], *, naming: Naming = dotted, secret: bool = False
) -> list[Problem]:
    """Every objection of pydantic to input for `model`, in the order of the input."""
    return [
        Problem(
            "input",
            field=naming(error["loc"], missing=error["type"] == "missing"),
            value="" if secret or error["type"] == "missing" else _found(error),
            fix=_fix(error, model),
        )
        for error in objections.errors(include_url=False)
    ]


def _found(error: ErrorDetails) -> str:
    cause = error.get("ctx", {}).get("error")
    return cause.shown if isinstance(cause, Unshown) else shortened(error["input"])


def shortened(value: JsonTree) -> str:
    """A found value, short enough for a line."""
    if isinstance(value, Mapping | list | tuple):
        return "" if value else str(value)
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def suggestion(word: str, known: Iterable[str]) -> str:
    """` – did you mean 'x'?`, or the known words, or nothing."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if not words:
        return "there is none yet"
    more = ", …" if len(words) > _KNOWN_SHOWN else ""
    return f"known: {', '.join(words[:_KNOWN_SHOWN])}{more}"


def _fix(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind, message, location, told = error["type"], error["msg"], error["loc"], error.get("ctx", {})
    if kind in _UNKNOWN_KEY:
        return f"unknown key; {suggestion(str(location[-1]), _keys_at(model, location[:-1]))}"
    if kind == "missing":
        return "is missing; add it"
    if kind == "too_short":
        least = told["min_length"]
        return f"write at least {least} item{'s' if least > 1 else ''}, not {told['actual_length']}"
    if kind == "too_long":
        return f"write at most {told['max_length']} items, not {told['actual_length']}"
    if kind == "json_invalid" and "recursion" in message:
        return _TOO_DEEP
    if message.startswith(("Input should be greater", "Input should be less")):
        return message.replace("Input should be", "write a number", 1)
    if message.startswith("Input should be"):
        return message.replace("Input should be", "write", 1)
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    return message


def _keys_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys that may stand at `location` of `kind`, found through its annotations."""
    for part in location:
        fields = _fields(kind)
        kind = fields.get(str(part)) if fields else next(reversed(typing.get_args(_plain(kind))), None)
    return list(_fields(kind))


def _fields(kind: Any) -> dict[str, Any]:
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {}


def _plain(kind: Any) -> Any:
    """Without `None` beside it and without `Annotated` around it."""
    if typing.get_origin(kind) is typing.Annotated:
        return _plain(typing.get_args(kind)[0])
    others = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    if type(None) in typing.get_args(kind) and len(others) == 1:
        return _plain(others[0])
    return kind
