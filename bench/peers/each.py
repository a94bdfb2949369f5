"""One Celery task per notification, as in Celery's own first steps: read the SKU in VTEX, write it to the marketplace.

Two calls per task, the same as the hub's for a change: simulation, offer. No deduplication, no retry, no state; with
`acks_late` off, as Celery comes, a killed worker loses what it holds. Everything it has to know is in `EACH`.

    celery -A bench.peers.each worker -P threads -c 32
"""

from __future__ import annotations

import json
import os
import threading

import requests
from celery import Celery

GIVEN = json.loads(os.environ.get("EACH", "{}"))
HELD = threading.local()
TIMEOUT = (3, 15)

app = Celery("each", broker=GIVEN.get("broker", "redis://127.0.0.1"))
app.conf.task_ignore_result = True


def session() -> requests.Session:
    """This thread's own."""
    if not hasattr(HELD, "session"):
        HELD.session = requests.Session()
    return HELD.session


@app.task
def changed(sku: str) -> None:
    """Make the marketplace show what VTEX sells."""
    answer = session().post(
        f"{GIVEN['vtex']}/api/fulfillment/pvt/orderForms/simulation",
        params={"sc": "1", "affiliateId": GIVEN["affiliate"]},
        json={"items": [{"id": sku, "quantity": 1, "seller": "1"}], "postalCode": None, "country": None},
        headers={"X-VTEX-API-AppKey": GIVEN["key"], "X-VTEX-API-AppToken": GIVEN["token"]},
        timeout=TIMEOUT,
    )
    answer.raise_for_status()
    tree = answer.json()
    put = session().put(
        f"{GIVEN['marketplace']}/offers/{sku}",
        json={
            **GIVEN["listing"],
            "price": tree["items"][0]["price"],
            "list_price": None,
            "stock": tree["logisticsInfo"][0]["stockBalance"],
        },
        headers={"Authorization": f"Bearer {GIVEN['seller_token']}"},
        timeout=TIMEOUT,
    )
    put.raise_for_status()
