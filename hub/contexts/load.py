"""Every SKU of the channel is looked at once, page by page, and a load that was cut goes on where it was (vtex.md 7.2).

A key is `<run>:<page>`. The cursor is moved in the same transaction that asks for the page's SKUs, so a page that is
read twice asks nobody twice (LOD-07). The whole list is never held anywhere: the next page waits until most of what was
asked for has an outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hub.contexts.step import Item, Step
from hub.errors import BadInput, Problem
from hub.model import Ask, Urgency, digest
from hub.outcome import Done, Ending, Postponed
from hub.ports import Link, RunRecord

BACKLOG = 1000
"""SKUs of a load without an outcome, above which no further page is read."""

PAUSE = 2.0
"""Seconds until a load that waits for its backlog looks again."""

MAX_PAGES = 100_000
"""A list that has not ended by then never will."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One page: `run` is `None` when there is no such load, `skus` is what VTEX listed (`None`: not read)."""

    store: int
    key: str
    page: int
    run: RunRecord | None
    backlog: int = 0
    skus: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TakePage(Step):
    """Ask `catalog` for the SKUs of one page; `run` is the load as it stands afterwards."""

    run: RunRecord
    skus: tuple[str, ...]
    last: bool
    then: tuple[Ask, ...] = ()


def parse(key: str) -> tuple[int, int]:
    """(run, page) of a key `<run>:<page>`; `BadInput` for anything else."""
    run, _, page = key.partition(":")
    if not (run.isascii() and run.isdigit() and page.isascii() and page.isdigit()):
        raise BadInput([Problem("E1", "load", key, "give <run>:<page>, both whole numbers")])
    return int(run), int(page)


def read(link: Link, item: Item) -> Facts:
    """Read the page in VTEX, when it is this load's turn; a load of chosen SKUs needs no list."""
    number, page = parse(item.key)
    run = link.states.run(number)
    facts = Facts(link.store, item.key, page, run)
    if run is None or run.state != "running" or run.page != page:
        return facts
    facts = replace(facts, backlog=link.states.load_backlog(number))
    if facts.backlog > BACKLOG:
        return facts
    if run.only:
        start = (page - 1) * run.page_size
        return replace(facts, skus=run.only[start : start + run.page_size])
    return replace(facts, skus=tuple(link.vtex.sku_page(page, run.page_size)))


def decide(facts: Facts) -> Sequence[Ending | Step]:
    """Ask for the page's SKUs and go on with the next – or end: nothing listed, a repeat, or all of it at once."""
    run = facts.run
    if run is None or run.state != "running":
        return (Ending("load", facts.key, Done()),)
    if run.page > facts.page:  # the page was taken, but its ending was lost: see that the load goes on
        return (Ending("load", facts.key, Done((_next(facts, run.page),))),)
    if facts.skus is None:
        if run.page < facts.page:
            return (Ending("load", facts.key, Done()),)
        return (Ending("load", facts.key, Postponed(PAUSE, "key", f"{facts.backlog} SKUs have no outcome yet")),)
    skus = tuple(dict.fromkeys(facts.skus))
    seen = digest(sorted(skus))
    repeats = bool(skus) and seen == run.seen_digest
    everything = len(facts.skus) > run.page_size  # VTEX ignored the paging: this is the complete list (LOD-02)
    last = not skus or repeats or everything or facts.page >= MAX_PAGES
    moved = replace(run, page=facts.page + 1, seen_digest=seen)
    then = () if last else (_next(facts, facts.page + 1),)
    return (TakePage(key=facts.key, contexts=("load",), run=moved, skus=() if repeats else skus, last=last, then=then),)


def write(link: Link, step: Step) -> Sequence[Ending]:
    """Ask for the SKUs and move the cursor, in one transaction."""
    if not isinstance(step, TakePage):
        raise TypeError(f"a load asks for pages, not for {type(step).__name__}")
    link.states.load_page(step.run, step.skus, last=step.last)
    return (Ending("load", step.key, Done(step.then)),)


def _next(facts: Facts, page: int) -> Ask:
    run = facts.run.run if facts.run else 0
    return Ask(facts.store, "load", f"{run}:{page}", "load", Urgency.LOAD)
