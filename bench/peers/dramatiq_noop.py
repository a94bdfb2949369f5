"""A Dramatiq actor as its documentation writes one: `python dramatiq_noop.py COUNT` sends that many messages.

The worker: `dramatiq dramatiq_noop -p PROCESSES -t THREADS`. REDIS_URL is the broker.
"""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))


@dramatiq.actor
def noop(store: str, key: str) -> None:
    """Nothing."""


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        noop.send(f"store{number % 10}", str(number))
