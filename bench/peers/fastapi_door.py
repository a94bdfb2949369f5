"""What most people would write: a FastAPI route with a model argument that hands the SKU to a Celery task.

`uvicorn fastapi_door:app`. REDIS_URL is the broker, TOKENS the known tokens.
"""

import os
from datetime import datetime

from celery import Celery
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

celery = Celery("door", broker=os.environ["REDIS_URL"])
celery.conf.update(task_ignore_result=True, task_default_queue="peer")
app = FastAPI()
tokens = {token: number for number, token in enumerate(os.environ["TOKENS"].split())}


class Notification(BaseModel):
    """The documented body."""

    IdSku: str
    An: str
    IdAffiliate: str
    DateModified: datetime
    IsActive: bool
    StockModified: bool
    PriceModified: bool
    HasStockKeepingUnitModified: bool
    HasStockKeepingUnitRemovedFromAffiliate: bool


@celery.task
def stock(store: int, sku: str) -> None:
    """What a worker would do."""


@app.post("/{token}")
def notified(token: str, notification: Notification) -> dict[str, str]:
    """Publish one message and answer."""
    store = tokens.get(token)
    if store is None:
        raise HTTPException(404)
    if notification.StockModified:
        stock.delay(store, notification.IdSku)
    return {}
