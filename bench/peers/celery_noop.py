"""A Celery application as its documentation writes one: `python celery_noop.py COUNT` publishes that many no-op tasks.

The worker: `celery -A celery_noop worker -P threads|prefork -c N [-E]`. REDIS_URL is the broker.
"""

import os
import sys

from celery import Celery

app = Celery("noop", broker=os.environ["REDIS_URL"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, worker_redirect_stdouts=False)


@app.task
def noop(store: str, key: str) -> None:
    """Nothing."""


if __name__ == "__main__":
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(int(sys.argv[1])):
            noop.apply_async((f"store{number % 10}", str(number)), producer=producer)
