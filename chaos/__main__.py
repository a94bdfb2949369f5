"""`python -m chaos`: run seeds, print a report of each, end with 1 when anything was violated."""

import argparse
import logging
import os
import random
import sys
from pathlib import Path

from chaos.plan import Sizes
from chaos.rabbit import installed
from chaos.run import run


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments and the environment (SEED, SEEDS, NOTIFICATIONS, SKUS, STORES, KILLS, …) ask for."""
    env = os.environ
    parser = argparse.ArgumentParser(prog="python -m chaos", description="everything goes wrong, nothing is lost")
    parser.add_argument("--seed", type=int, default=_number(env.get("SEED")), help="this one; else new ones are drawn")
    parser.add_argument("--seeds", type=int, default=_number(env.get("SEEDS")) or 1, help="how many")
    given = Sizes()
    for name in ("notifications", "skus", "stores", "kills", "workers"):
        default = _number(env.get(name.upper()))
        parser.add_argument(f"--{name}", type=int, default=getattr(given, name) if default is None else default)
    parser.add_argument("--seconds", type=float, default=float(env.get("SECONDS_OF_FAULTS") or 0), help="0: derived")
    parser.add_argument("--broker", default=env.get("BROKER", "redis"), help="redis, amqp, or an amqp:// URL")
    parser.add_argument("--keep", type=Path, default=Path(env["KEEP"]) if env.get("KEEP") else None, metavar="DIR")
    chosen = parser.parse_args(arguments)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # that a killed server is away is no news here
    sizes = Sizes(
        chosen.notifications,
        chosen.skus,
        chosen.stores,
        chosen.kills,
        chosen.workers,
        chosen.seconds,
        chosen.broker == "amqp",
    )
    seeds = (
        [chosen.seed] if chosen.seed is not None else random.SystemRandom().sample(range(1, 1_000_000), chosen.seeds)
    )
    broker = "" if chosen.broker in {"redis", "amqp"} else chosen.broker
    if sizes.rabbit and not installed():
        sys.stdout.write("RabbitMQ does not run: it is not installed (apt-get install rabbitmq-server)\n")
        return 1
    outcomes = [run(seed, sizes, broker=broker, keep=chosen.keep) for seed in seeds]
    for outcome in outcomes:
        said = outcome.failed or f"{len(outcome.violations)} violations"
        sys.stdout.write(f"seed {outcome.seed}: {said}\n")
    return 0 if all(outcome.right for outcome in outcomes) else 1


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


if __name__ == "__main__":
    raise SystemExit(main())
