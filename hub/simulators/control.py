"""Steers the simulated VTEX from tests, the demo and benchmarks: one typed method per control route.

Every call has time-outs; a refusal raises `ControlRefusedError` with every problem that the simulator named.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import requests

TIMEOUT = (3.0, 60.0)  # connect, read


class ControlRefusedError(RuntimeError):
    """The simulator would not do it; the message names field, value and fix of each problem."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What VTEX sells of one SKU now; money in cents. `sellable`: active, in the channel, with price and stock."""

    sku: str
    product_id: int
    active: bool
    product_active: bool
    in_channel: bool
    sellable: bool
    price: int | None
    list_price: int | None
    stock: int
    name: str
    category: int
    description: str
    ean: str | None
    brand: str
    images: tuple[str, ...]
    unit_multiplier: float = 1.0


@dataclass(frozen=True, slots=True)
class SeenOrder:
    """One order in VTEX. `attempts`: creations asked for; `accepted`: answered SOI003; `creations`: must be 1."""

    marketplace_order_id: str
    order_id: str
    affiliate: str
    status: str | None
    attempts: int
    accepted: int
    creations: int
    approvals: int
    value: int | None
    items: tuple[tuple[str, int, int], ...]  # SKU, quantity, price in cents
    results: tuple[tuple[str, int | None], ...]  # code, how the connector answered (0: not, None: lost on purpose)
    cancel_reason: str | None


class VtexControl:
    """The control routes of a simulated VTEX at `base_url` (without account)."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False

    def close(self) -> None:
        """Close kept connections."""
        self._session.close()

    def account_url(self, account: str) -> str:
        """What the hub takes for VTEX's base URL of this account."""
        return f"{self.base_url}/{account}"

    def open_account(
        self,
        name: str,
        app_key: str,
        app_token: str,
        *,
        channels: Sequence[Mapping[str, object]] = ({"id": 1},),
        categories: Sequence[Mapping[str, object]] = ({"id": 1, "name": "Geral"},),
        affiliates: Sequence[Mapping[str, object]] = (),
    ) -> None:
        """Create an account, or replace it."""
        self._call(
            "POST",
            "/accounts",
            {
                "name": name,
                "app_key": app_key,
                "app_token": app_token,
                "channels": list(channels),
                "categories": list(categories),
                "affiliates": list(affiliates),
            },
        )

    def put_mapper(self, account: str, mapping: Mapping[str, str]) -> None:
        """Let the store's own app know which marketplace category a category is."""
        self._call("PUT", f"/accounts/{account}/mapper", {"mapping": dict(mapping)})

    def put_affiliate(self, account: str, affiliate: str, *, sales_channel: int, endpoint: str | None) -> None:
        """Add or replace an affiliate; `endpoint` is where notifications go."""
        body = {"id": affiliate, "sales_channel": sales_channel, "search_uri_endpoint": endpoint}
        self._call("PUT", f"/accounts/{account}/affiliates", body)

    def change_credentials(
        self, account: str, *, add: Mapping[str, str] | None = None, remove: Mapping[str, str] | None = None
    ) -> None:
        """Let appKey → appToken pairs in, lock others out."""
        self._call("POST", f"/accounts/{account}/credentials", {"add": dict(add or {}), "remove": dict(remove or {})})

    def deny_groups(self, account: str, *groups: str) -> None:
        """Answer 403 for these groups (catalog, simulation, affiliates, orders, logistics); none named: all again."""
        self._call("PUT", f"/accounts/{account}/groups", {"denied": list(groups)})

    def catalog_habits(self, account: str, **habits: object) -> None:
        """paging, duplicate_ids, stale_seconds, missing_price, missing_stock."""
        self._call("PATCH", f"/accounts/{account}/catalog", habits)

    def notifier_habits(self, account: str, **habits: object) -> None:
        """variant, casing, sku_as, booleans, path, account_as, duplicate_share, loss_share, delay, jitter, shuffled."""
        self._call("PATCH", f"/accounts/{account}/notifier", habits)

    def order_habits(self, account: str, **habits: object) -> None:
        """create_delay, result_delay, duplicates, inverted, silent, validation, check_stock, divergence, …."""
        self._call("PATCH", f"/accounts/{account}/order-habits", habits)

    def grow(self, account: str, count: int, **spec: object) -> int:
        """Create SKUs (first_id, skus_per_product, category_ids, channels, price, stock, shares, images, notify).

        Returns how many notifications left.
        """
        return int(self._call("POST", f"/accounts/{account}/skus", {"count": count, **spec})["notifications"])

    def change(self, account: str, sku: int, *, notify: bool | Literal["burst"] = True, **fields: object) -> int:
        """Change one SKU; `notify` "burst" tells of every SKU of its product. Returns how many notifications left."""
        return self.change_many(account, [{"id": sku, **fields}], notify=notify)

    def change_many(
        self, account: str, changes: Sequence[Mapping[str, object]], *, notify: bool | Literal["burst"] = True
    ) -> int:
        """Change many SKUs in one call; each change has `id` and what changes."""
        body = {"changes": [dict(one) for one in changes], "notify": notify}
        return int(self._call("PATCH", f"/accounts/{account}/skus", body)["notifications"])

    def change_at(self, account: str, sku: int, **fields: object) -> datetime:
        """Change one SKU and tell the affiliates; when it was changed, by the simulator's clock (aware UTC)."""
        body = {"changes": [{"id": sku, **fields}], "notify": True}
        return datetime.fromisoformat(self._call("PATCH", f"/accounts/{account}/skus", body)["at"])

    def drop(self, account: str, sku: int, *, notify: bool = True) -> None:
        """Delete a SKU."""
        self._call("DELETE", f"/accounts/{account}/skus/{sku}?notify={str(notify).lower()}")

    def truth(self, account: str, channel: int) -> dict[str, Truth]:
        """What the account sells now through a channel, by SKU id."""
        found: dict[str, dict[str, Any]] = self._call("GET", f"/accounts/{account}/truth?sc={channel}")
        return {sku: Truth(sku=sku, **{**one, "images": tuple(one["images"])}) for sku, one in found.items()}

    def served(self, account: str) -> list[dict[str, Any]]:
        """What every read of a SKU was told, oldest first (`hub.simulators.vtex.Told`)."""
        found: list[dict[str, Any]] = self._call("GET", f"/accounts/{account}/served")
        return found

    def notify(self, account: str, skus: Sequence[int] | None = None, **flags: bool) -> int:
        """Send notifications without a change (stock, price, sku, removed); all SKUs when none is named."""
        body = {"skus": None if skus is None else list(skus), **flags}
        return int(self._call("POST", f"/accounts/{account}/notify", body)["notifications"])

    def notifications(self, account: str, limit: int = 1000) -> dict[str, Any]:
        """`in_flight`, `counts` (sent, lost, doubled, no_answer, status_200, …) and `log`."""
        found: dict[str, Any] = self._call("GET", f"/accounts/{account}/notifications?limit={limit}")
        return found

    def force(self, account: str, code: str, **rule: object) -> None:
        """Give the next orders a code (order, flow, count, created, sync, errors)."""
        self._call("POST", f"/accounts/{account}/forced", {"code": code, **rule})

    def orders(self, account: str) -> dict[str, SeenOrder]:
        """Every order by marketplace order id."""
        found: dict[str, dict[str, Any]] = self._call("GET", f"/accounts/{account}/orders")
        return {
            key: SeenOrder(
                **{
                    **one,
                    "items": tuple((sku, quantity, price) for sku, quantity, price in one["items"]),
                    "results": tuple((result["code"], result["status"]) for result in one["results"]),
                }
            )
            for key, one in found.items()
        }

    def move_order(
        self,
        account: str,
        order_id: str,
        *,
        status: str | None = None,
        packages: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        """Set an order's status or packages."""
        body = {"status": status, "packages": None if packages is None else [dict(one) for one in packages]}
        self._call("PATCH", f"/accounts/{account}/orders/{order_id}", body)

    def call_back(self, account: str, order_id: str, path: str, body: Mapping[str, object] | None = None) -> int:
        """Post to `path` below the order's connector endpoint; the status that came back, 0 without answer."""
        wanted = {"call_back": path, "body": None if body is None else dict(body)}
        return int(self._call("PATCH", f"/accounts/{account}/orders/{order_id}", wanted)["answered"])

    def fault(self, kind: str, operation: str = "*", **rule: object) -> int:
        """Put a fault in force (see `hub.simulators.faults.Fault`); its id."""
        return int(self._call("POST", "/faults", {"kind": kind, "operation": operation, **rule})["ids"][0])

    def clear_faults(self, rule_id: int | None = None) -> None:
        """Take one fault, or all, out of force."""
        self._call("DELETE", "/faults" if rule_id is None else f"/faults?id={rule_id}")

    def limit(self, name: str, calls: int | None, window: float = 60.0) -> None:
        """Allow so many calls per window and account for an operation or `group:<name>`; None lifts it."""
        self._call("POST", "/limits", {"name": name, "calls": calls, "window": window})

    def journal(self, **conditions: object) -> list[dict[str, Any]]:
        """Requests that came in (operation, account, method, status, path_contains, body_contains, after, limit)."""
        found: list[dict[str, Any]] = self._call("GET", "/journal", parameters=conditions)
        return found

    def clear_journal(self) -> None:
        """Forget the requests and their counts."""
        self._call("DELETE", "/journal")

    def calls(self, operation: str | None = None, account: str | None = None) -> int:
        """How many requests came in, of an operation and account if named."""
        found: list[dict[str, Any]] = self._call("GET", "/calls")
        return sum(
            one["count"] for one in found if operation in (None, one["operation"]) and account in (None, one["account"])
        )

    def requests_seen(self) -> int:
        """How many requests came in since the simulator began or forgot."""
        return self.calls()

    def counters(self) -> dict[str, Any]:
        """Counts by account: SKUs, orders, orders created, refused, notifications."""
        found: dict[str, Any] = self._call("GET", "/counters")
        return found

    def wait_until_idle(self, seconds: float = 30.0) -> None:
        """Wait until no order and no notification is on its way. Raises TimeoutError."""
        ends = time.monotonic() + seconds
        while (busy := int(self._call("GET", "/busy")["busy"])) > 0:
            if time.monotonic() > ends:
                raise TimeoutError(f"the simulated VTEX still has {busy} things under way after {seconds} s")
            time.sleep(0.02)

    def keep(self, name: str = "kept") -> str:
        """Keep the state of every account under a name."""
        return str(self._call("POST", f"/snapshots?name={name}")["name"])

    def go_back(self, name: str = "kept") -> None:
        """Go back to a kept state."""
        self._call("PUT", f"/snapshots/{name}")

    def reset(self, seed: int | None = None) -> None:
        """Forget everything."""
        self._call("POST", "/reset" if seed is None else f"/reset?seed={seed}")

    def _call(self, method: str, path: str, body: object = None, parameters: Mapping[str, object] | None = None) -> Any:
        given = {key: str(value) for key, value in (parameters or {}).items()}
        answer = self._session.request(
            method, f"{self.base_url}/_control{path}", json=body, params=given, timeout=TIMEOUT
        )
        if answer.status_code >= 400:
            raise ControlRefusedError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer.json() if answer.content else {}
