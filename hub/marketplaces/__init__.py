"""The marketplaces there are: one file each in this folder, found by being there.

The promise: to add a marketplace is to add its file, which offers `ADAPTERS`: name → `Adapter`. Nothing else in the hub
names a marketplace; what one can do stands in its manifest.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from hub.errors import BadInput, Conflict, Problem
from hub.parsing import shortened, suggestion
from hub.ports import Manifest, Marketplace

if TYPE_CHECKING:
    from hub.transport import Peer


class Credentials(Protocol):
    """Secrets of the marketplace's side of one store; every change of them is a new `version`."""

    @property
    def version(self) -> int:
        """Grows by one with each change; 0 when there are none."""

    @property
    def values(self) -> Mapping[str, str]:
        """By the names of `Manifest.secret_fields`, and whatever else the adapter keeps beside them."""


Renewer = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Trades credentials for new ones at the marketplace: what is stored now in, what to store instead out."""


class Renew(Protocol):
    """Renews a store's credentials once, however many threads and processes ask for it (RES-10)."""

    def __call__(self, stale: int, renewer: Renewer) -> Credentials:
        """The credentials to go on with, after version `stale` was not accepted.

        Under one lock of the store's side: when newer ones than `stale` are stored already, those; otherwise what
        `renewer` gives, committed before it is returned. An error of `renewer` comes out as it is, and changes nothing.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A store's account on one marketplace: everything an adapter needs.

    `peer` calls the marketplace's side of the store: base URL, limit (keyed by the seller's account), circuit and the
    secrets to redact are set in it. `renew` is only called where tokens expire. `currency` is that of the store's
    sales channel (ISO 4217).
    """

    store: str
    base_url: str
    credentials: Credentials = field(repr=False)
    peer: Peer
    renew: Renew
    currency: str = "BRL"


@dataclass(frozen=True, slots=True)
class Adapter:
    """One marketplace: what it can do, and how a store's account on it becomes a `Marketplace`.

    `connect` makes no call. What it returns may be used by many threads at once.
    """

    manifest: Manifest
    connect: Callable[[Account], Marketplace]


_registered: dict[str, Adapter] = {}


def adapters() -> dict[str, Adapter]:
    """Every marketplace by name: those of the files in this folder and those registered."""
    return {**_found(), **_registered}


def adapter(name: str) -> Adapter:
    """The marketplace of that name. `BadInput` names the known ones."""
    known = adapters()
    if name not in known:
        raise BadInput(
            [Problem("input", "marketplace", shortened(name), f"there is no such marketplace; {_hint(name, known)}")]
        )
    return known[name]


def register(name: str, offered: Adapter) -> None:
    """Add a marketplace that has no file here, as tests do. `Conflict` when the name belongs to another one."""
    if adapters().get(name, offered) is not offered:
        raise Conflict(f"marketplace {name!r} exists already: choose another name")
    _registered[name] = offered


def _hint(name: str, known: Mapping[str, Adapter]) -> str:
    """Did you mean, and what there is."""
    hint, everything = suggestion(name, known), f"known: {', '.join(sorted(known))}"
    return hint if hint.startswith("known") else f"{hint} {everything}"


@functools.cache
def _found() -> Mapping[str, Adapter]:
    found: dict[str, Adapter] = {}
    for module in pkgutil.iter_modules(__path__):
        offered: Mapping[str, Adapter] = importlib.import_module(f"{__name__}.{module.name}").ADAPTERS
        for name, one in offered.items():
            if name in found or name != one.manifest.name:
                raise Conflict(f"{module.name}.py offers {name!r}: the name is taken, or not that of its manifest")
            found[name] = one
    return found
