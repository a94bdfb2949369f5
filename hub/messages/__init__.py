"""What the hub says to people: a closed catalogue of codes with texts in three languages, kept as data.

The texts are in `catalogue.yaml`, whose head explains every field. A placeholder without a value shows as `?`: a log
line is never lost because something was unknown.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import yaml

from hub.errors import BadInput, Problem

Status = Literal["success", "error", "warning", "pending"]
Language = Literal["en", "pt", "es"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_SEVERITY: Mapping[Status, int] = {"success": 0, "pending": 1, "warning": 2, "error": 3}


@dataclass(frozen=True, slots=True)
class Entry:
    """One code: its log class and status, who has to act, what ends it, and its texts by language."""

    code: str
    family: Literal["catalog", "order", "common"]
    http_class: int
    status: Status
    actor: Literal["seller", "operator", "vtex", "marketplace", "nobody"]
    closes_on: str
    messages: Mapping[str, str]
    advice: Mapping[str, str]

    @property
    def placeholders(self) -> frozenset[str]:
        """The names of everything that its texts show."""
        texts = (*self.messages.values(), *self.advice.values())
        return frozenset(name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name)


@cache
def catalogue() -> Mapping[str, Entry]:
    """Every code."""
    tree = yaml.safe_load(files(__package__).joinpath("catalogue.yaml").read_text(encoding="utf-8"))
    return {
        code: Entry(
            code=code,
            family=fields["family"],
            http_class=fields["class"],
            status=fields["status"],
            actor=fields["actor"],
            closes_on=fields["closes_on"],
            messages=fields["message"],
            advice=fields["do"],
        )
        for code, fields in tree.items()
    }


def entry(code: str) -> Entry:
    """One code. `BadInput` when the catalogue has none such."""
    found = catalogue().get(code)
    if found is None:
        raise BadInput([Problem("E1", "code", code, f"use one of {', '.join(catalogue())}")])
    return found


def message(code: str, language: Language, params: Mapping[str, str]) -> str:
    """What happened."""
    return _filled(entry(code).messages[language], params)


def what_to_do(code: str, language: Language, params: Mapping[str, str]) -> str:
    """What whoever has to act should do."""
    return _filled(entry(code).advice[language], params)


def text(code: str, language: Language, params: Mapping[str, str]) -> str:
    """What happened and what to do, as the logs endpoint shows it (`BusinessMessage`, vtex.md 15.2)."""
    return f"{message(code, language, params)} {what_to_do(code, language, params)}"


def worst(codes: Iterable[str]) -> str | None:
    """The code that decides the status of a record that carries several (7.1); the first of the equally bad.

    Codes that are not the catalogue's (a peer's own) do not count; `None` when there is no other.
    """
    known = catalogue()
    ours = [code for code in codes if code in known]
    return max(ours, key=lambda code: _SEVERITY[known[code].status], default=None)


class _Known(dict[str, str]):
    def __missing__(self, _key: str) -> str:
        return "?"


def _filled(template: str, params: Mapping[str, str]) -> str:
    return template.format_map(_Known({name: value or "?" for name, value in params.items()}))
