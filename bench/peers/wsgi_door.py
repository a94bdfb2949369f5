"""The leaner choice: a bare WSGI callable under gunicorn's threads that hands the SKU to a Celery task.

`gunicorn -k gthread --threads 16 wsgi_door:application`. REDIS_URL is the broker, TOKENS the known tokens.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from celery import Celery

celery = Celery("door", broker=os.environ["REDIS_URL"])
celery.conf.update(task_ignore_result=True, task_default_queue="peer")
tokens = {token: number for number, token in enumerate(os.environ["TOKENS"].split())}


@celery.task
def stock(store: int, sku: str) -> None:
    """What a worker would do."""


def application(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
    """Publish one message and answer."""
    store = tokens.get(environ["PATH_INFO"][1:])
    if store is None:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    try:
        notification = json.loads(environ["wsgi.input"].read())
        sku = str(int(notification["IdSku"]))
    except (ValueError, KeyError, TypeError):
        start_response("400 Bad Request", [("Content-Length", "0")])
        return []
    if notification.get("StockModified"):
        stock.delay(store, sku)
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
    return [b"{}"]
