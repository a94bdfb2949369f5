"""Secrets leave no trace: header values, query strings, tokens in addresses, known values, and people's addresses."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

REDACTED = "***"
_SHORTEST = 4
"""A known secret of fewer characters would blank ordinary text."""

_WORDS = r"authorization|[\w-]*(?:token|appkey|app_key|api[_-]?key|cookie|secret|password|signature)[\w-]*"
# a query string, in an address or alone after a path
_QUERY = (re.compile(r"(?P<kept>(?:https?://|/)[^\s?#'\"<>]*)\?[^\s'\"<>)]*"), rf"\g<kept>?{REDACTED}")
_NAMED = (
    # user:password@ in an address
    (re.compile(r"(?P<kept>(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*+://)[^\s/@'\"]+@"), rf"\g<kept>{REDACTED}@"),
    # "name": "value", name: value, name=value; up to the end of the value
    (
        re.compile(
            rf"(?P<kept>(?<![\w-])[\"']?(?:{_WORDS})[\"']?\s*[:=]\s*)"
            r"(?:\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|(?:(?:bearer|basic)\s+)?[^\s,;&\"'}<]+)",
            re.IGNORECASE,
        ),
        rf"\g<kept>{REDACTED}",
    ),
    (re.compile(r"\b(?:bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), REDACTED),
    # JSON web tokens
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), REDACTED),
)
# the random part of an intake address
_PATH = (re.compile(r"(?<=/)(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{32,}(?=[/\s'\"]|$)"), REDACTED)
_PEOPLE = (
    (re.compile(r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]++@[\w-]+(?:\.[\w-]+)+"), REDACTED),
    (re.compile(r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b"), REDACTED),
)
_PATTERNS = (_QUERY, *_NAMED, _PATH, *_PEOPLE)


def without_secrets(text: str, *, paths: bool = True) -> str:
    """`text` without named secrets, e-mail addresses and CPF numbers, for what a seller reads: other queries stay.

    `paths`: long random parts of addresses go too. Nothing is cut; the caller bounds what it writes.
    """
    for pattern, instead in (*_NAMED, _PATH, *_PEOPLE) if paths else (*_NAMED, *_PEOPLE):
        text = pattern.sub(instead, text)
    return text


class Redactor:
    """Redacts text. Knows patterns and the secret values it was told; thread-safe.

    Longer texts than `bound` characters are cut first, so that no text costs more than that.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._known: frozenset[str] = frozenset()
        self._known_pattern: re.Pattern[str] | None = None
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """These values are secret from now on, also as they stand in an address."""
        with self._lock:
            known = self._known.union(secret for secret in secrets if len(secret) >= _SHORTEST)
            if known == self._known:
                return
            self._known = known
            longest_first = sorted(known, key=len, reverse=True)
            self._known_pattern = re.compile("|".join(re.escape(secret) for secret in longest_first))

    def text(self, text: str, bound: int = 2000) -> str:
        """`text` without secrets, at most about `bound` characters."""
        if self._known_pattern is not None:  # before cutting: half a secret is not found any more
            text = self._known_pattern.sub(REDACTED, text[: bound + 4096])
        cut = len(text) > bound
        text = text[:bound]
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text + "…" if cut else text

    def path(self, path: str) -> str:
        """A path for logs: no query string, no secret."""
        bare = path.partition("?")[0]
        return self.text(bare, 300)
