"""Steers the sandbox marketplace and reads what it shows, by routes that the hub does not use.

The promise: what these calls return is what the marketplace really holds, so that the demo and the tests can judge the
hub without asking the hub. Money in integer cents. Every call has a time-out; a refusal becomes `ControlRefused`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import requests

TIMEOUT = (2.0, 10.0)  # seconds to connect, and between two pieces of the answer


class ControlRefused(Exception):  # noqa: N818 – it is the simulator's answer
    """The simulator refused a control call; the text says why."""


@dataclass(frozen=True, slots=True)
class SellerAccount:
    """A seller account with what its seller needs to call. `url` is the base of its calls."""

    name: str
    profile: str
    url: str
    token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    client_id: str
    client_secret: str = field(repr=False)
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ShownValue:
    """One value that became visible. `asked` is when the write came in (ISO 8601), `number` orders all changes."""

    number: int
    at: str
    asked: str
    listing: str
    field: str
    value: object
    by: str


@dataclass(frozen=True, slots=True)
class ShownSku:
    """What the marketplace holds of one SKU. `ids` has two entries when it was created twice."""

    sku: str
    state: Literal["active", "inactive", "pending", "rejected", "absent"]
    ids: tuple[str, ...]
    link: str
    creates: int
    deletes: int
    refused: int
    writes: Mapping[str, int]
    title: str = ""
    category: str = ""
    ean: str = ""
    brand: str = ""
    images: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    price_cents: int | None = None
    list_price_cents: int | None = None
    stock: int | None = None
    history: tuple[ShownValue, ...] = ()

    def values(self, name: str) -> tuple[object, ...]:
        """Every value that a field has shown, oldest first."""
        return tuple(change.value for change in self.history if change.field == name)


@dataclass(frozen=True, slots=True)
class Basket:
    """One line to order. `price_cents` per unit; the price shown when empty."""

    sku: str
    quantity: int = 1
    price_cents: int | None = None
    discount_cents: int = 0


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """An order of the marketplace, with what the seller did about it."""

    id: str
    status: str
    skus: tuple[str, ...]
    total_cents: int
    shipping_cents: int
    interest_cents: int
    vtex_order_id: str | None
    acknowledge_calls: int
    reads: int


@dataclass(frozen=True, slots=True)
class Heard:
    """One request that the marketplace received; `status` 0 means that it gave no answer."""

    number: int
    at: str
    method: str
    path: str
    query: str
    operation: str
    account: str
    status: int
    seconds: float
    body: str
    fault: str


@dataclass(frozen=True, slots=True)
class Told:
    """One webhook delivery: waiting, delivered, failed or lost."""

    event: str
    order: str
    attempts: int
    status: int | None
    seconds: float
    outcome: str
    planned: str = ""


class MarketplaceControl:
    """The client of the control routes. Not shared between threads.

    Args:
        base_url: where the simulator answers, such as `http://127.0.0.1:8092`.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False

    def close(self) -> None:
        """Give the connection back."""
        self._session.close()

    def __enter__(self) -> "MarketplaceControl":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, path: str, body: object = None, query: Mapping[str, Any] | None = None) -> Any:
        """One call; JSON or None.

        Raises:
            ControlRefused: the simulator did not answer, or said no.
        """
        url = f"{self.base_url}/_control{path}"
        try:
            answer = self._session.request(method, url, json=body, params=query, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise ControlRefused(f"{method} {path}: no answer from the simulator ({type(error).__name__})") from error
        if not answer.ok:
            raise ControlRefused(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    # --- accounts -----------------------------------------------------------------------------------------------

    def _seller(self, tree: Mapping[str, Any]) -> SellerAccount:
        return SellerAccount(
            name=tree["name"],
            profile=tree["profile"],
            url=f"{self.base_url}/{tree['profile']}/{tree['name']}",
            token=tree["token"],
            refresh_token=tree["refresh_token"],
            client_id=tree["client_id"],
            client_secret=tree["client_secret"],
            counters=tree["counters"],
        )

    def open_account(self, name: str, profile: str, *, token: str | None = None, **dials: object) -> SellerAccount:
        """Open a seller account of a profile (sync, lot, full-replace); dials as in `marketplace_world.Dials`."""
        body = {"name": name, "profile": profile, "token": token, "dials": dials}
        return self._seller(self._call("POST", "/accounts", body))

    def account(self, name: str) -> SellerAccount:
        """An account with its present credentials and counters."""
        return self._seller(self._call("GET", f"/accounts/{name}"))

    def close_account(self, name: str) -> None:
        """Forget an account and everything in it."""
        self._call("DELETE", f"/accounts/{name}")

    def shelve(self, name: str, first: int, count: int, **values: object) -> dict[str, str]:
        """Open listings for SKUs `first` to `first + count - 1` without any seller's call; SKU → id of its listing."""
        found: dict[str, str] = self._call(
            "POST", f"/accounts/{name}/shelf", {"first": first, "count": count, **values}
        )
        return found

    def turn(self, name: str, **dials: object) -> None:
        """Turn some dials of an account."""
        self._call("PATCH", f"/accounts/{name}", dials)

    def expire_tokens(self, name: str) -> None:
        """Access tokens end now; the refresh token still works."""
        self._call("POST", f"/accounts/{name}/credentials", {"action": "expire"})

    def revoke(self, name: str) -> None:
        """No credential of the account works any more."""
        self._call("POST", f"/accounts/{name}/credentials", {"action": "revoke"})

    def consent(self, name: str, token: str | None = None) -> SellerAccount:
        """New credentials for the account."""
        return self._seller(self._call("POST", f"/accounts/{name}/credentials", {"action": "consent", "token": token}))

    # --- misbehaviour -------------------------------------------------------------------------------------------

    def outage(self, name: str, mode: Literal["503", "refuse", "hang", "off"] = "503", seconds: float = 10) -> None:
        """Let the account's marketplace be away, or back with `off`."""
        self._call("POST", f"/accounts/{name}/outage", {"mode": mode, "seconds": seconds})

    def fault(self, kind: str, **rule: object) -> int:
        """Put a rule of `hub.simulators.faults.Fault` in force; returns its id."""
        return int(self._call("POST", "/faults", {"kind": kind, **rule})["ids"][0])

    def clear_faults(self) -> None:
        """Take every rule out of force."""
        self._call("DELETE", "/faults")

    def break_sku(
        self,
        name: str,
        sku: str,
        status: int = 500,
        problems: Sequence[Mapping[str, object]] = (),
        count: int | None = None,
    ) -> None:
        """Let writes about one SKU fail: from 500 on as a breakdown, below as a refusal with these problems."""
        body = {"sku": sku, "status": status, "problems": list(problems), "count": count}
        self._call("POST", f"/accounts/{name}/sku-faults", body)

    def heal_sku(self, name: str, sku: str) -> None:
        """Let writes about one SKU work again."""
        self._call("POST", f"/accounts/{name}/sku-faults", {"sku": sku, "status": 0})

    def drift(self, name: str, sku: str, **changes: int | str) -> None:
        """Change by hand what a SKU shows: `stock`, `price` (cents), `title`."""
        self._call("PATCH", f"/accounts/{name}/shown/{sku}", changes)

    def accept(self, name: str, sku: str, problems: Sequence[Mapping[str, object]] = ()) -> None:
        """Decide about a pending offer; rejected when there are problems."""
        self._call("POST", f"/accounts/{name}/acceptance", {"sku": sku, "problems": list(problems)})

    # --- what is shown ------------------------------------------------------------------------------------------

    def shown(self, name: str) -> dict[str, ShownSku]:
        """Every SKU that the account ever heard of, without history."""
        return {tree["sku"]: _shown(tree) for tree in self._call("GET", f"/accounts/{name}/shown")}

    def sku(self, name: str, sku: str) -> ShownSku:
        """One SKU with its history; absent when never heard of."""
        return _shown(self._call("GET", f"/accounts/{name}/shown/{sku}"))

    def history(self, name: str) -> list[tuple[str, ShownValue]]:
        """Every value that became visible, with its SKU, in that order."""
        rows = self._call("GET", f"/accounts/{name}/history")
        return [(row.pop("sku"), ShownValue(**row)) for row in rows]

    def lies(self, name: str) -> list[tuple[str, str, str]]:
        """Every write that was answered as done and was not: when it came in (ISO 8601), operation, SKU."""
        return [(one["at"], one["operation"], one["sku"]) for one in self._call("GET", f"/accounts/{name}/lies")]

    def counters(self, name: str) -> Mapping[str, int]:
        """What the account counted: creates, content_writes, price_writes, stock_writes, refused, feeds, …"""
        return self.account(name).counters

    # --- orders -------------------------------------------------------------------------------------------------

    def place_order(
        self,
        name: str,
        items: Sequence[Basket],
        *,
        status: Literal["pending", "paid"] = "paid",
        shipping_cents: int = 0,
        interest_cents: int = 0,
        discount_cents: int = 0,
        total_cents: int | None = None,
        order_id: str | None = None,
        sla: str = "Normal",
        buyer: Mapping[str, str] | None = None,
        address: Mapping[str, str] | None = None,
        copies: int | None = None,
        delay: float | None = None,
    ) -> PlacedOrder:
        """A buyer places a basket; `copies` webhooks (0: lost) are sent after `delay` seconds, else as dialled.

        `total_cents` makes the marketplace say another total than the parts make.
        """
        body = {
            "items": [
                {"sku": one.sku, "quantity": one.quantity, "price": one.price_cents, "discount": one.discount_cents}
                for one in items
            ],
            "status": status,
            "shipping": shipping_cents,
            "interest": interest_cents,
            "discount": discount_cents,
            "total": total_cents,
            "id": order_id,
            "sla": sla,
            "buyer": dict(buyer or {}),
            "address": dict(address or {}),
            "copies": copies,
            "delay": delay,
        }
        return _placed(self._call("POST", f"/accounts/{name}/orders", body))

    def orders(self, name: str) -> dict[str, PlacedOrder]:
        """Every order of the account by id."""
        return {tree["id"]: _placed(tree) for tree in self._call("GET", f"/accounts/{name}/orders")}

    def move_order(
        self, name: str, order_id: str, status: str, *, copies: int | None = None, delay: float | None = None
    ) -> PlacedOrder:
        """The order becomes pending, paid, cancelled, shipped or delivered on the marketplace's side."""
        body = {"status": status, "copies": copies, "delay": delay}
        return _placed(self._call("POST", f"/accounts/{name}/orders/{order_id}/status", body))

    def send_event(
        self,
        name: str,
        order_id: str,
        *,
        topic: str = "orders",
        copies: int = 1,
        delay: float = 0,
        signature: Literal["good", "bad", "old", "none"] = "good",
    ) -> None:
        """Send a pointer now, true or forged; `old` is signed an hour ago."""
        body = {"order": order_id, "topic": topic, "copies": copies, "delay": delay, "signature": signature}
        self._call("POST", f"/accounts/{name}/events", body)

    def deliveries(self, name: str) -> list[Told]:
        """What became of the account's webhooks."""
        return [
            Told(t["event"], t["order"], t["attempts"], t["status"], t["seconds"], t["outcome"], t["planned"])
            for t in self._call("GET", f"/accounts/{name}/deliveries")
        ]

    # --- the whole marketplace ----------------------------------------------------------------------------------

    def journal(self, **conditions: str | int) -> list[Heard]:
        """The requests received: operation, account, method, status, path_contains, body_contains, after, limit."""
        return [
            Heard(**{name: tree[name] for name in Heard.__slots__})
            for tree in self._call("GET", "/journal", query=conditions)
        ]

    def requests_seen(self) -> int:
        """How many requests came in since the marketplace began or forgot."""
        return sum(int(tree["count"]) for tree in self._call("GET", "/calls"))

    def calls(self, operation: str, account: str) -> int:
        """How many requests of an operation came in for an account."""
        return sum(
            int(tree["count"])
            for tree in self._call("GET", "/calls")
            if (tree["operation"], tree["account"]) == (operation, account)
        )

    def limit(self, operation: str, calls: int | None, window: float = 60.0) -> None:
        """Allow so many calls of an operation per window and account; None lifts it."""
        self._call("POST", "/limits", {"name": operation, "calls": calls, "window": window})

    def advance(self, seconds: float) -> None:
        """Let time pass for the marketplace at once."""
        self._call("POST", "/clock", {"advance": seconds})

    def reset(self) -> None:
        """Forget accounts, faults, journal and time travelled."""
        self._call("POST", "/reset")


def _shown(tree: Mapping[str, Any]) -> ShownSku:
    return ShownSku(
        sku=tree["sku"],
        state=tree["state"],
        ids=tuple(tree["ids"]),
        link=tree["link"],
        creates=tree["creates"],
        deletes=tree["deletes"],
        refused=tree["refused"],
        writes=tree["writes"],
        title=tree.get("title", ""),
        category=tree.get("category", ""),
        ean=tree.get("ean", ""),
        brand=tree.get("brand", ""),
        images=tuple(tree.get("images", ())),
        attributes=tree.get("attributes", {}),
        group=tree.get("group", ""),
        price_cents=tree.get("price_cents"),
        list_price_cents=tree.get("list_price_cents"),
        stock=tree.get("stock"),
        history=tuple(ShownValue(**change) for change in tree.get("history", ())),
    )


def _placed(tree: Mapping[str, Any]) -> PlacedOrder:
    return PlacedOrder(
        id=tree["id"],
        status=tree["status"],
        skus=tuple(item["sku"] for item in tree["items"]),
        total_cents=tree["total_cents"],
        shipping_cents=tree["shipping_cents"],
        interest_cents=tree["interest_cents"],
        vtex_order_id=tree["vtex_order_id"],
        acknowledge_calls=tree["acknowledge_calls"],
        reads=tree["reads"],
    )
