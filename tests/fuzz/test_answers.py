"""A peer may answer any bytes, status, header or JSON: its caller gets an answer or an error of the hub, in time."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.circuits import StandardPatience
from hub.errors import HubError
from hub.marketplaces import Account, adapter
from hub.model import Action, Price, Record
from hub.ports import CartItem
from hub.transport import Calling, Transport, calling
from hub.vtex import VtexStore
from tests.contract.rigs import Held, Vault
from tests.fuzz import EXAMPLES
from tests.transport.peer import Peer, answer
from tests.vtex.test_parsing import PRODUCT
from tests.vtex.test_parsing import answer as simulation

TOTAL = 1.0

quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_numbers = itertools.count(1)


class Way:
    """One transport and one peer, and doors to it that nobody has used: neither held back nor given up."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.transport = Transport(None, "fuzz", StandardPatience())

    def door(self, side: Any = "vtex", *, total: float = TOTAL) -> Any:
        number = next(_numbers)
        return self.transport.peer(
            f"s{number}", side, self.peer.url, account=f"{side}:{number}", total=total, connect=total
        )

    def vtex(self) -> VtexStore:
        return VtexStore(
            peer=self.door(), account="acme", affiliate="MKT", sales_channel=1, hub_url="https://hub.example/n/t"
        )

    def marketplace(self, name: str) -> Any:
        vault = Vault(Held(1, {"token": "synthetic", "refresh_token": "r", "client_id": "c", "client_secret": "s"}))
        return adapter(name).connect(
            Account(
                store="s",
                base_url=self.peer.url,
                credentials=vault.held,
                peer=self.door("marketplace"),
                renew=vault.renew,
            )
        )


def opened() -> Iterator[Way]:
    with Peer() as peer:
        made = Way(peer)
        yield made
        made.transport.close()


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    yield from opened()


@pytest.fixture
def own_way() -> Iterator[Way]:
    """One of the test alone: no connection is left of another one, which its peer is just about to close."""
    yield from opened()


def outcome(call: Callable[[], Any]) -> Any:
    """What the call gives, or one of the hub's errors: anything else is let through and fails the test."""
    token = calling.set(Calling("s", "stock", key="1"))
    began = time.monotonic()
    try:
        return call()
    except HubError as error:
        return error
    finally:
        calling.reset(token)
        assert time.monotonic() - began < 6 * TOTAL, "the call outlasted its deadline"


header_names = st.sampled_from(
    [
        *("Content-Type", "Content-Length", "Transfer-Encoding", "Content-Encoding", "Connection", "Location"),
        *("Retry-After", "Date", "Ratelimit-Remaining", "Ratelimit-Reset", "X-RateLimit-Remaining"),
        *("X-RateLimit-Reset", "Set-Cookie", "X-A"),
    ]
)
header_values = st.one_of(
    st.sampled_from(
        [
            *("0", "-1", "1", "99999999999999999999", "1e400", "nan", "chunked", "gzip", "deflate", "br", "zstd"),
            *("gzip, gzip", "identity", "close", "application/json", "text/html; charset=undefined"),
            *("text/plain; charset=idna", "text/plain; charset=unicode_escape", "a; charset=punycode"),
            *("text/plain; charset=utf-16", "text/plain; charset=hex", "http://[", "//", "http://[::1", "/x\\y", "?"),
            *("Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 99999 00:00:00 GMT", "Mon, 30 Feb 2026 25:61:61 -9999"),
        ]
    ),
    st.text(max_size=40),
)
statuses = st.one_of(
    st.sampled_from([200, 201, 204, 206, 301, 302, 304, 308, 400, 401, 403, 404, 408, 409, 412, 422, 429, 500, 503]),
    st.integers(0, 999),
)

# JSON as any author might write it: numbers without end, texts that PostgreSQL or UTF-8 refuse, doubled and odd keys.
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        ["1e999", "-1e999", "10000000000000000000000000000", "-0", "1E-400", "99999999999999999999.99", "0.005"]
    ).map(json.loads),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(
        ["", "\0", "\ud800", "2026-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "NaN", "1e5", "-1", "x" * 99]
    ),
)


def trees(words: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Trees in which the words stand as keys."""
    keys = st.one_of(words, st.text(max_size=5))
    return st.recursive(
        atoms, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=8), max_leaves=25
    )


VTEX_WORDS = st.sampled_from(
    [
        *("Id", "ProductId", "IsActive", "NameComplete", "ProductName", "SalesChannels", "ProductCategories"),
        *("ProductCategoryIds", "Images", "ImageUrl", "AlternateIds", "Ean", "RefId", "SkuSpecifications", "Dimension"),
        *("ProductSpecifications", "FieldName", "FieldValues", "IsProductActive", "BrandName", "CategoriesFullPath"),
        *("items", "id", "requestIndex", "price", "listPrice", "sellingPrice", "quantity", "availability"),
        *("logisticsInfo", "itemIndex", "stockBalance", "slas", "messages", "code", "text", "status", "value"),
        *("priceDefinition", "calculatedSellingPrice", "total", "orderId", "marketplaceOrderId", "error", "message"),
        *("fields", "orderStatus", "packageAttachment", "packages", "paymentData", "seller", "unitMultiplier"),
    ]
)
MARKET_WORDS = st.sampled_from(
    [
        *("id", "seller_code", "sku", "title", "state", "price", "list_price", "stock", "link", "errors", "code"),
        *("field", "message", "value", "feed", "feeds", "ticket", "reference", "lines", "line", "status", "records"),
        *("orders", "order_id", "next", "cursor", "updated_at", "items", "quantity", "discount", "total", "customer"),
        *("address", "shipping", "paid", "currency", "categories", "children", "name", "leaf", "token"),
        *("refresh_token", "expires_in", "listings", "items", "amount", "problems", "attributes"),
    ]
)


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a tree."""
    yield above
    for name, inner in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(inner, (*above, name))


def spoilt(tree: Any, way: tuple[Any, ...], found: Any) -> Any:
    """The tree with another value at one place."""
    if not way:
        return found
    copy = tree.copy()
    copy[way[0]] = spoilt(tree[way[0]], way[1:], found)
    return copy


@st.composite
def nearly(draw: st.DrawFn, good: list[Any]) -> Any:
    """A right answer in which up to three values are anything."""
    tree = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(1, 3))):
        tree = spoilt(tree, draw(st.sampled_from(list(places(tree)))), draw(atoms | trees(st.text(max_size=3))))
    return tree


VTEX_GOOD: list[Any] = [
    PRODUCT,
    simulation({"id": "13", "requestIndex": 0, "price": 9990, "listPrice": 12990, "availability": "available"}),
    {"orderId": "MKT-1", "marketplaceOrderId": "1", "status": "handling", "value": 9990},
    {"id": "MKT", "name": "Market", "salesChannelId": 1, "searchURIEndpoint": "https://hub.example", "isActive": True},
    {"Id": 1, "Name": "Main", "IsActive": True, "CountryCode": "BRA", "CurrencyCode": "BRL", "TimeZone": "x"},
    {
        **{"accountName": "acme", "success": True, "flow": "PlaceOrder", "operationId": "o-1", "code": "SOI003"},
        **{"marketplaceOrderId": "1", "message": "taken", "fields": {"mainOrderId": "MKT-1"}},
        "errors": [{"source": "1", "code": "FMT007", "description": "no such SKU"}],
    },
    [13, 14, 15],
]
RECORDED: dict[str, Any] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")).get("body") or {}
    for file in sorted((Path(__file__).resolve().parent.parent / "recorded" / "sandbox").glob("*.json"))
}
RESULTS: list[Any] = [json.loads(line) for line in RECORDED["lot_result"].splitlines()]
AMOUNT = {"amount": "99.90", "currency": "BRL"}
MARKET_GOOD: list[Any] = [
    *RECORDED.values(),
    *RECORDED["listing_unknown_status"]["listings"],
    {
        **RECORDED["order_discounts"],
        **dict.fromkeys(("shipping", "discount", "interest")),
        **{"items": [{"sku": "1001", "quantity": 3, "price": AMOUNT}], "total": AMOUNT},
    },
    {"categories": [{"id": "MC-1", "name": "Home", "children": [{"id": "MC-11", "name": "Mugs"}]}]},
    {"feeds": [{"id": "FEED-1", "status": "done", "reference": "r"}]},
    {"orders": [{"id": "1", "updated_at": "2026-01-31T10:00:00Z"}], "next_cursor": None, "more": False},
]


def raw_answer(status: int, headers: list[tuple[str, str]], body: bytes, *, first: bytes | None = None) -> bytes:
    """An answer as it goes over the wire, right or wrong."""
    line = first if first is not None else f"HTTP/1.1 {status} Said".encode()
    told = b"".join(
        f"{name}: {value}".replace("\r", "").replace("\n", "").encode("utf-8", "replace") + b"\r\n"
        for name, value in headers
    )
    return line + b"\r\n" + told + b"\r\n" + body


def ending(raw: bytes) -> Any:
    """Says this, then hangs up."""

    def behave(connection: Any, _: Any) -> None:
        connection.sendall(raw)
        connection.close()

    return behave


raw_answers = st.builds(
    raw_answer,
    statuses,
    st.lists(st.tuples(header_names, header_values), max_size=5),
    st.binary(max_size=200) | st.sampled_from([b"[" * 50_000, b"1" * 6_000, b"{}", b'{"a":1e999}', b"\xff\xfe{}"]),
    first=st.none() | st.binary(max_size=30) | st.sampled_from([b"HTTP/1.1", b"HTTP/1.1 abc", b"HTTP/9.9 200 x", b""]),
)


@quick
@given(raw_answers, st.sampled_from(["read", "create"]))
def test_any_bytes_are_an_answer_or_an_error_of_the_hub(way: Way, raw: bytes, write: Any) -> None:
    way.peer.behaviour = ending(raw)

    def call() -> None:
        got = way.door().request("GET", "/x", operation="x", write=write)
        got.text.encode("utf-8")  # or nothing could keep it
        got.excerpt()
        got.tree()
        got.json()

    outcome(call)


def keepable(found: Any) -> None:
    """Nothing that PostgreSQL or UTF-8 refuses has come inside."""
    if isinstance(found, str):
        found.encode("utf-8")
        assert "\0" not in found
    elif isinstance(found, dict):
        for pair in found.items():
            keepable(list(pair))
    elif isinstance(found, list | tuple | set | frozenset):
        for one in found:
            keepable(one)
    elif is_dataclass(found) and not isinstance(found, type):
        for one in fields(found):
            keepable(getattr(found, one.name))


VTEX_READS: dict[str, Callable[[VtexStore], Any]] = {
    "product": lambda store: store.product("13"),
    "simulate": lambda store: store.simulate([CartItem("13"), CartItem("14")]),
    "sku page": lambda store: store.sku_page(1, 100),
    "order": lambda store: store.order("MKT-1"),
    "create order": lambda store: store.create_order({"marketplaceOrderId": "1"}),
    "approve order": lambda store: store.approve_order("1"),
    "check": lambda store: store.check(),
    "affiliate": lambda store: store.affiliate_found(),
    "channel": lambda store: store.channel_found(),
}


@pytest.mark.parametrize("read", VTEX_READS)
@quick
@given(st.sampled_from([200, 200, 200, 400, 404, 409, 422]), trees(VTEX_WORDS) | nearly(VTEX_GOOD))
def test_any_json_of_vtex_is_read_or_refused(way: Way, read: str, status: int, tree: Any) -> None:
    way.peer.behaviour = answer(status, json.dumps(tree).encode(), Content_Type="application/json")
    found = outcome(lambda: VTEX_READS[read](way.vtex()))
    if not isinstance(found, HubError):
        keepable(found)


MARKET_READS: dict[str, Callable[[Any], Any]] = {
    "show": lambda market: market.show("13", "MK-13"),
    "write": lambda market: market.write(Record("13", Action.OFFER, "r", "MK-13", price=Price(1000, 1200))),
    "submit lot": lambda market: market.submit_lot("offer", "r", [b"{}"]),
    "lot result": lambda market: market.lot_result("t"),
    "find lot": lambda market: market.find_lot("r"),
    "orders": lambda market: market.changed_orders(None),
    "order": lambda market: market.order("1"),
    "categories": lambda market: market.categories(),
    "check": lambda market: market.check(),
}
LOT = "sandbox-lot"
OF_EACH = [
    *((LOT, read) for read in MARKET_READS if read != "write"),
    *(("sandbox-sync", read) for read in MARKET_READS if "lot" not in read),
]
"""Of each kind of marketplace what it is asked: one takes lots only, the other none."""


@pytest.mark.parametrize(("name", "read"), OF_EACH)
@quick
@given(st.sampled_from([200, 200, 200, 400, 404, 409, 422]), trees(MARKET_WORDS) | nearly(MARKET_GOOD))
def test_any_json_of_a_marketplace_is_read_or_refused(way: Way, name: str, read: str, status: int, tree: Any) -> None:
    way.peer.behaviour = answer(status, json.dumps(tree).encode(), Content_Type="application/json")
    found = outcome(lambda: MARKET_READS[read](way.marketplace(name)))
    if not isinstance(found, HubError):
        keepable(found)


def with_nuls(tree: Any) -> Any:
    """Each text with a character in front that PostgreSQL cannot keep."""
    if isinstance(tree, str):
        return f"\0{tree}"
    if isinstance(tree, dict):
        return {name: with_nuls(one) for name, one in tree.items()}
    return [with_nuls(one) for one in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize(("name", "read"), OF_EACH)
def test_what_a_marketplace_says_with_nuls_is_read_as_without_them(own_way: Way, name: str, read: str) -> None:
    for tree in MARKET_GOOD:
        found = []
        for said in (tree, with_nuls(tree)):
            own_way.peer.behaviour = answer(200, json.dumps(said).encode(), Content_Type="application/json")
            found.append(outcome(lambda: MARKET_READS[read](own_way.marketplace(name))))
        keepable([one for one in found if not isinstance(one, HubError)])
        assert type(found[0]) is type(found[1])
        if read not in {"write", "check"}:  # these quote the answer
            assert isinstance(found[0], HubError) or found[0] == found[1]


@pytest.mark.parametrize("status", [200, 409])
def test_a_lot_with_a_ticket_that_cannot_be_kept_has_none(own_way: Way, status: int) -> None:
    own_way.peer.behaviour = answer(status, b'{"id": "\\u0000", "status": "queued"}', Content_Type="application/json")
    assert isinstance(outcome(lambda: own_way.marketplace(LOT).submit_lot("offer", "r", [b"{}"])), HubError)


def of_a_done_lot(lines: bytes) -> Any:
    """The lot is done, and this is its result."""
    done, result = answer(200, b'{"id": "FEED-1", "status": "done"}'), answer(200, lines)
    return lambda connection, asked: (result if asked.path.endswith("/result") else done)(connection, asked)


@quick
@given(st.lists(trees(MARKET_WORDS) | nearly(RESULTS), max_size=5), st.booleans())
def test_any_result_of_a_lot_is_read_or_refused(way: Way, lines: list[Any], plain: bool) -> None:
    text = "\n".join(json.dumps(line, ensure_ascii=plain) for line in lines)
    way.peer.behaviour = of_a_done_lot(text.encode("utf-8", "surrogatepass"))
    found = outcome(lambda: way.marketplace(LOT).lot_result("t"))
    if not isinstance(found, HubError):
        keepable(found)


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029"])
def test_a_mark_that_parts_lines_elsewhere_parts_no_line_of_a_lots_result(own_way: Way, mark: str) -> None:
    lines = [{"line": number, "status": "accepted", "id": f"L{mark}{number}"} for number in (1, 2)]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    own_way.peer.behaviour = of_a_done_lot(text.encode())
    found = outcome(lambda: own_way.marketplace(LOT).lot_result("t"))
    assert {number: one.written.remote_id for number, one in found.by_line.items()} == {0: f"L{mark}1", 1: f"L{mark}2"}


@pytest.mark.parametrize("read", VTEX_READS)
def test_every_read_of_vtex_takes_some_of_the_right_answers(own_way: Way, read: str) -> None:
    """Or the fuzzed ones would be refused whatever they held."""
    taken = []
    for tree in VTEX_GOOD:
        own_way.peer.behaviour = answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        taken.append(outcome(lambda: VTEX_READS[read](own_way.vtex())))
    assert [found for found in taken if not isinstance(found, HubError)], taken


@pytest.mark.parametrize(("name", "read"), OF_EACH)
def test_every_read_of_a_marketplace_takes_some_of_the_right_answers(own_way: Way, name: str, read: str) -> None:
    taken = []
    for tree in MARKET_GOOD:
        own_way.peer.behaviour = answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        taken.append(outcome(lambda: MARKET_READS[read](own_way.marketplace(name))))
    assert [found for found in taken if not isinstance(found, HubError)], taken


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "hex", "unicode_escape", "utf-7", "mbcs"])
def test_a_charset_that_decodes_nothing_is_read_as_utf_8_or_as_it_can_be(way: Way, charset: str) -> None:
    way.peer.behaviour = answer(200, b'{"a": "\xff\\q"}', Content_Type=f"application/json; charset={charset}")
    assert not isinstance(outcome(lambda: way.door().request("GET", "/x", operation="x")), HubError)


@pytest.mark.parametrize("place", ["http://[", "http://[::1", "//[", "http://\x7f["])
def test_a_redirect_to_no_address_is_no_answer(way: Way, place: str) -> None:
    way.peer.behaviour = ending(raw_answer(308, [("Location", place), ("Content-Length", "0")], b""))
    found = outcome(lambda: way.door().request("GET", "/x", operation="x"))
    assert type(found).__name__ == "Unavailable"


@pytest.mark.parametrize("tail", ["", "?x=1", "#f", "?", "?x=/1"])
def test_a_redirect_to_no_path_is_no_answer_and_goes_nowhere(own_way: Way, tail: str) -> None:
    seen = len(own_way.peer.seen)
    head = [("Location", f"{own_way.peer.url}{tail}"), ("Content-Length", "0")]
    own_way.peer.behaviour = lambda connection, asked: (
        ending(raw_answer(308, head, b"")) if asked.path == "/x" else answer(200, b"{}")
    )(connection, asked)
    door = own_way.door(total=60.0)  # whatever keeps this machine from sending in time is no answer to the question
    found = outcome(lambda: door.request("PUT", "/x", operation="x", json={"a": 1}, write="idempotent"))
    assert type(found).__name__ == "Unavailable"
    assert [asked.path for asked in own_way.peer.seen[seen:]] == ["/x"]


def test_a_date_of_no_calendar_asks_for_no_wait(way: Way) -> None:
    told = [("Retry-After", "Mon, 30 Feb 2026 25:61:61 -9999"), ("Content-Length", "2")]
    way.peer.behaviour = ending(raw_answer(503, told, b"{}"))
    assert isinstance(outcome(lambda: way.door().request("GET", "/x", operation="x")), HubError)
