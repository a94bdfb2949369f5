"""`python -m chaos`: run seeds, print a report of each, end with 1 when anything was violated."""

import argparse
import logging
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.plan import Sizes
from chaos.rabbit import installed
from chaos.run import run
from hub.errors import BadInput
from tests.knobs import Knobs, tell

USUAL = Sizes()
KNOBS = {
    "SEED": "this one; else new ones are drawn",
    "SEEDS": "how many (1)",
    "NOTIFICATIONS": f"asked for in all ({USUAL.notifications})",
    "SKUS": f"of all stores together ({USUAL.skus})",
    "STORES": f"on all three profiles ({USUAL.stores})",
    "KILLS": f"kill -9 at least ({USUAL.kills})",
    "WORKERS": f"processes a lane ({USUAL.workers})",
    "SECONDS_OF_FAULTS": "how long faults last; else as long as the sizes need",
    "BROKER": "redis, amqp, or the URL of one of your own (redis)",
    "KEEP": "a directory for evidence and logs",
}
MOST_KILLS = 600
"""An hour: each takes six seconds."""
LEAST_SECONDS = 30
"""Of faults: less has no room for one that comes and goes."""


@dataclass(frozen=True)
class Asked:
    """What somebody wants to be run. `seed` none: `seeds` new ones. `broker`: a URL of their own, or empty."""

    sizes: Sizes
    seed: int | None
    seeds: int
    broker: str
    keep: Path | None


def asked(arguments: Sequence[str], env: Mapping[str, str]) -> Asked:
    """Read the arguments, and what they leave open from the environment. `BadInput` with every problem."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="everything goes wrong, nothing is lost")
    options = {name: "--seconds" if name == "SECONDS_OF_FAULTS" else f"--{name.lower()}" for name in KNOBS}
    for name, what in KNOBS.items():
        parser.add_argument(options[name], dest=name, default="", metavar="…", help=f"{name}: {what}")
    said = {name: text for name, text in vars(parser.parse_args(arguments)).items() if text}
    knobs = Knobs({name: env.get(name, "") for name in KNOBS} | said, written={name: options[name] for name in said})
    seed = knobs.whole("SEED", 0, least=0, most=2**31 - 1) if knobs.text("SEED") else None
    seeds = knobs.whole("SEEDS", 1, most=10_000)
    if seed is not None and knobs.text("SEEDS"):
        knobs.refuse("SEEDS", "leave it out beside SEED, which names the only one; or leave out SEED")
    notifications = knobs.whole("NOTIFICATIONS", USUAL.notifications, least=10, most=10_000_000)
    stores = knobs.whole("STORES", USUAL.stores, most=1_000)
    skus = knobs.whole("SKUS", USUAL.skus, least=stores, most=1_000_000)
    kills = knobs.whole("KILLS", USUAL.kills, least=0, most=MOST_KILLS)
    room = max(USUAL.kills, notifications // 10)
    if kills > room:
        knobs.refuse("KILLS", f"write at most {room}, or more NOTIFICATIONS: ten a kill")
    workers = knobs.whole("WORKERS", USUAL.workers, most=32)
    seconds = knobs.number("SECONDS_OF_FAULTS", 0.0, most=86_400)
    if 0 < seconds < LEAST_SECONDS:
        knobs.refuse("SECONDS_OF_FAULTS", f"write {LEAST_SECONDS} or more, or leave it out")
    broker = knobs.text("BROKER") or "redis"
    if broker not in {"redis", "amqp"} and not broker.startswith(("redis://", "rediss://", "amqp://", "amqps://")):
        knobs.refuse("BROKER", "write redis, amqp (a RabbitMQ started here), or an amqp:// or redis:// URL")
    keep = Path(knobs.text("KEEP")) if knobs.text("KEEP") else None
    if keep is not None and keep.exists() and not keep.is_dir():
        knobs.refuse("KEEP", "is no directory; name one, or one that is to be made")
    if keep is not None and not knobs.problems:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as refused:
            knobs.refuse("KEEP", f"cannot be made ({refused.strerror}): name a directory that you may write in")
    knobs.settle()
    sizes = Sizes(notifications, skus, stores, kills, workers, seconds, broker == "amqp")
    return Asked(sizes, seed, seeds, "" if broker in {"redis", "amqp"} else broker, keep)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments and the environment (`KNOBS`) ask for; 2 when they are wrong."""
    try:
        chosen = asked(arguments, os.environ)
    except BadInput as wrong:
        return tell(wrong.problems)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # that a killed server is away is no news here
    if chosen.sizes.rabbit and not installed():
        sys.stdout.write("RabbitMQ does not run: it is not installed (apt-get install rabbitmq-server)\n")
        return 1
    drawn = random.SystemRandom().sample(range(1, 1_000_000), chosen.seeds)
    seeds = drawn if chosen.seed is None else [chosen.seed]
    outcomes = [run(seed, chosen.sizes, broker=chosen.broker, keep=chosen.keep) for seed in seeds]
    for outcome in outcomes:
        said = outcome.failed or f"{len(outcome.violations)} violations"
        sys.stdout.write(f"seed {outcome.seed}: {said}\n")
    return 0 if all(outcome.right for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
