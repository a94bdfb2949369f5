"""The registration check of vtex.md 3.3: everything that keeps a store from working, all at once, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hub.errors import AuthLost, BadInput, HubError, Problem
from hub.ports import Link

WARNING = "setup-warning"
"""Code of what deserves a look and stops nothing."""

OPENED_LATER = frozenset({"affiliate", "affiliate.searchURIEndpoint"})
"""What can only be put right once the store has its URL: these do not keep it from being registered."""


@dataclass(frozen=True, slots=True)
class Found:
    """One problem and the side it is on."""

    side: str
    problem: Problem

    @property
    def warning(self) -> bool:
        """It stops nothing."""
        return self.problem.code == WARNING


def check(link: Link, *, show_url: bool = False) -> list[Found]:
    """Ask both sides; never raises because one of them does not answer.

    The store's URL, which is a secret, stands in a fix only with `show_url`; else the command that prints it.
    """
    problems = _asked(link.vtex.check, f"VTEX account {link.account}")
    found = [Found("vtex", one if show_url else _discreet(one, link)) for one in problems]
    found += [Found("marketplace", one) for one in _asked(link.marketplace.check, link.marketplace.manifest.title)]
    return found


def _discreet(problem: Problem, link: Link) -> Problem:
    url = link.rules.connector_endpoint
    if not url or url not in problem.fix:
        return problem
    host, _, token = url.rpartition("/")
    return replace(problem, fix=problem.fix.replace(url, f"{host}/{token[:3]}… (hub store show {link.slug} prints it)"))


def _asked(ask: Callable[[], Sequence[Problem]], peer: str) -> Sequence[Problem]:
    try:
        return ask()
    except AuthLost:
        return (Problem("setup", f"{peer}: credentials", "", "are refused; enter them again"),)
    except BadInput as wrong:
        return wrong.problems
    except HubError as fault:
        return (Problem("setup", peer, "", f"could not be checked, try again: {fault}"),)
