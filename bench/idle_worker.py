"""A worker process of the hub whose attempts end at once: what the engine costs when the work costs nothing.

`python -m bench.idle_worker first|more`, with the environment of `hub worker`.
"""

from __future__ import annotations

import os
import sys

from hub.contexts import CONTEXTS
from hub.contexts.step import Item
from hub.outcome import Done, Ending
from hub.ports import Link
from hub.settings import Settings
from hub.stores import SecretBox
from tasks.app import Lane
from tasks.worker import TURN, run
from tests.knobs import Knobs


def read(_link: Link, item: Item) -> Item:
    """Nothing is asked of anybody."""
    return item


def decide(item: Item) -> list[Ending]:
    """Every row is done."""
    return [Ending(name, item.key, Done()) for name in item.rows]


def main(lane: Lane) -> int:
    """The pool `offers`, with stock's lane and sibling as they are and nothing between claim and settle."""
    from dataclasses import replace

    idle = {name: replace(CONTEXTS[name], read=read, decide=decide) for name in ("price", "stock")}
    settings = Settings.load(env=os.environ)
    box = SecretBox.from_env(os.environ)
    knobs = Knobs(os.environ)
    turn = knobs.number("BENCH_TURN", TURN, most=60.0)
    knobs.settle()
    return run(settings, box, pools=["offers"], shards=frozenset({0}), lane=lane, known=idle, turn=turn)


if __name__ == "__main__":
    sys.exit(main("first" if sys.argv[1] == "first" else "more"))
