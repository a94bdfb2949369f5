"""What a seller's developer writes first: a thread pool, a `requests.Session` per thread, the calls in their order.

For each SKU exactly the calls of the hub's initial load into a marketplace of whole offers, with the same bodies: SKU,
simulation, offer. No queue, no state, no retry, no limit, no circuit, no log; whoever kills it begins anew, and what
changed meanwhile is not seen.

    python -m bench.peers.script '{"vtex": …, "marketplace": …, "threads": 32, …}'      prints one JSON object
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

HELD = threading.local()
TIMEOUT = (3, 15)


def session() -> requests.Session:
    """This thread's own."""
    if not hasattr(HELD, "session"):
        HELD.session = requests.Session()
    return HELD.session


def main(given: dict[str, Any]) -> dict[str, Any]:
    """Load everything; seconds, CPU seconds and how many SKUs."""
    vtex_headers = {"X-VTEX-API-AppKey": given["key"], "X-VTEX-API-AppToken": given["token"]}
    seller_headers = {"Authorization": f"Bearer {given['seller_token']}"}
    catalog = f"{given['vtex']}/api/catalog_system/pvt/sku"

    def offered(sku: str) -> dict[str, Any]:
        answer = session().post(
            f"{given['vtex']}/api/fulfillment/pvt/orderForms/simulation",
            params={"sc": "1", "affiliateId": given["affiliate"]},
            json={
                "items": [{"id": sku, "quantity": 1, "seller": "1"}],
                "marketingData": None,
                "postalCode": None,
                "country": None,
                "selectedSla": None,
                "clientProfileData": None,
                "geoCoordinates": [],
                "isCheckedIn": False,
                "storeId": None,
            },
            headers=vtex_headers,
            timeout=TIMEOUT,
        )
        answer.raise_for_status()
        tree = answer.json()
        return {**tree["items"][0], "stock": tree["logisticsInfo"][0]["stockBalance"]}

    def load(sku: str) -> None:
        answer = session().get(
            f"{catalog}/stockkeepingunitbyid/{sku}", params={"sc": "1"}, headers=vtex_headers, timeout=TIMEOUT
        )
        answer.raise_for_status()
        product = answer.json()
        offer = offered(sku)
        body = {
            "title": product["NameComplete"],
            "description": product["ProductDescription"],
            "category": given["category"],
            "ean": product["AlternateIds"]["Ean"],
            "brand": product["BrandName"],
            "images": [image["ImageUrl"] for image in product["Images"]],
            "attributes": {},
            "group": str(product["ProductId"]),
            "price": offer["price"],
            "list_price": offer["listPrice"] if offer["listPrice"] > offer["price"] else None,
            "stock": offer["stock"],
        }
        put = session().put(f"{given['marketplace']}/offers/{sku}", json=body, headers=seller_headers, timeout=TIMEOUT)
        put.raise_for_status()

    began = time.monotonic()
    skus: list[str] = []
    for page in range(1, 10_000):
        answer = session().get(
            f"{catalog}/stockkeepingunitidsbysaleschannel",
            params={"sc": "1", "page": str(page), "pageSize": "1000"},
            headers=vtex_headers,
            timeout=TIMEOUT,
        )
        answer.raise_for_status()
        skus += [str(sku) for sku in answer.json()]
        if len(skus) < 1000 * page:
            break
    with ThreadPoolExecutor(given["threads"]) as pool:
        for done in [pool.submit(load, sku) for sku in skus]:
            done.result()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "skus": len(skus)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
