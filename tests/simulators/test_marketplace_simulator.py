"""The sandbox marketplace over real HTTP: what it promises its sellers, and what it tells about them afterwards."""

import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from hub.simulators.marketplace import served
from hub.simulators.marketplace_control import Basket, ControlRefused, MarketplaceControl, SellerAccount
from hub.simulators.marketplace_world import World, is_ean13, synthetic_buyer

SHIRT = {
    "title": "Camiseta azul",
    "description": "Algodão",
    "category": "MC-110",
    "ean": "7891000315507",
    "brand": "Exemplo",
    "images": ["https://images.example/1.jpg"],
    "attributes": {"color": "azul", "size": "M"},
}
PROFILES = ("sync", "lot", "full-replace")


class Seller:
    """Calls as a seller's software does."""

    def __init__(self, account: SellerAccount) -> None:
        self.account = account
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {account.token}"

    def call(
        self, method: str, path: str, body: object = None, timeout: float = 5, **query: object
    ) -> requests.Response:
        return self.session.request(method, self.account.url + path, json=body, params=query, timeout=timeout)

    def feed(self, kind: str, reference: str, *records: object) -> requests.Response:
        lines = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in records)
        return self.session.post(
            self.account.url + "/feeds", data=lines, params={"kind": kind, "reference": reference}, timeout=5
        )

    def result(self, feed: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.call("GET", f"/feeds/{feed}/result").text.splitlines()]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not become true in time"
        time.sleep(0.01)


def codes(answer: requests.Response) -> set[tuple[str, str]]:
    return {(problem["field"], problem["code"]) for problem in answer.json()["problems"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(World(seed=7)) as address:
        yield address


@pytest.fixture
def control(url: str) -> Iterator[MarketplaceControl]:
    with MarketplaceControl(url) as control:
        control.reset()
        yield control


@pytest.fixture
def sync(control: MarketplaceControl) -> Seller:
    return Seller(control.open_account("a", "sync"))


@pytest.fixture
def lot(control: MarketplaceControl) -> Seller:
    return Seller(control.open_account("b", "lot"))


@pytest.fixture
def full(control: MarketplaceControl) -> Seller:
    return Seller(control.open_account("c", "full-replace"))


@contextmanager
def hook(*answers: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A seller's webhook that gives these answers in turn, then 200."""
    heard: list[tuple[dict[str, str], bytes]] = []
    left = list(answers)

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((dict(self.headers), body))
            self.send_response(left.pop(0) if left else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ear)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", heard
    finally:
        server.shutdown()
        server.server_close()


# --- sync ---------------------------------------------------------------------------------------------------------


def test_the_same_creation_twice_makes_two_listings(sync: Seller, control: MarketplaceControl) -> None:
    answers = [sync.call("POST", "/listings", {"sku": "1", **SHIRT, "price": "99.90", "stock": 3}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"].startswith("SYN-")
    shown = control.sku("a", "1")
    assert shown.creates == 2
    assert shown.ids == tuple(answer.json()["id"] for answer in answers)
    assert sync.call("PUT", "/listings/1/stock", {"stock": 1}).status_code == 409


def test_putting_on_an_existing_id_twice_leaves_one_listing(sync: Seller, control: MarketplaceControl) -> None:
    identity = sync.call("POST", "/listings", {"sku": "1", **SHIRT}).json()["id"]
    for _ in range(2):
        assert sync.call("PUT", f"/listings/{identity}", {"title": "Camiseta"}).status_code == 200
    assert sync.call("PUT", "/listings/new", SHIRT).status_code == 201
    assert control.sku("a", "1").creates == 1
    assert control.sku("a", "1").title == "Camiseta"
    assert control.sku("a", "new").state == "active"
    control.turn("a", put_creates=False)
    assert sync.call("PUT", "/listings/other", SHIRT).status_code == 404


def test_price_and_stock_have_calls_of_their_own_and_every_value_is_remembered(
    sync: Seller, control: MarketplaceControl
) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT, "price": "99.90", "stock": 3})
    for price in ("89.90", "79.9", "70"):
        assert sync.call("PUT", "/listings/1/price", {"price": price, "list_price": "129.90"}).status_code == 200
    sync.call("PUT", "/listings/1/stock", {"stock": 8})
    shown = control.sku("a", "1")
    assert shown.values("price") == (9990, 8990, 7990, 7000)
    assert shown.values("stock") == (3, 8)
    assert (shown.price_cents, shown.list_price_cents, shown.stock) == (7000, 12990, 8)
    assert shown.writes == {"price": 3, "stock": 1}
    assert [change.number for change in shown.history] == sorted(change.number for change in shown.history)
    assert sync.call("GET", "/listings/1").json()["price"] == "70.00"


def test_every_problem_is_told_at_once(sync: Seller, control: MarketplaceControl) -> None:
    wrong = {
        "title": "x" * 61,
        "ean": "7891000315508",
        "images": [],
        "category": "MC-110",
        "attributes": {"size": "M"},
        "price": "0.50",
        "stock": -1,
        "colour": "red",
    }
    answer = sync.call("POST", "/listings", {"sku": "1", **wrong})
    assert answer.status_code == 400
    assert codes(answer) == {
        ("title", "title_too_long"),
        ("ean", "ean_invalid"),
        ("images", "image_required"),
        ("attributes.color", "attribute_required"),
        ("price", "below_minimum_price"),
        ("stock", "stock_form"),
        ("colour", "unknown_field"),
    }
    assert all({"field", "code", "message", "value"} == set(problem) for problem in answer.json()["problems"])
    assert control.sku("a", "1").state == "absent"
    assert control.sku("a", "1").refused == 1


@pytest.mark.parametrize(
    ("category", "attributes", "problem"),
    [
        ("", {}, ("category", "category_required")),
        ("MC-999", {}, ("category", "category_unknown")),
        ("MC-100", {}, ("category", "category_not_leaf")),
        ("MC-330", {"voltage": "12V"}, ("attributes.voltage", "attribute_value_unknown")),
    ],
)
def test_a_category_must_be_a_known_leaf_and_its_attributes_fit(
    sync: Seller, category: str, attributes: dict[str, str], problem: tuple[str, str]
) -> None:
    answer = sync.call("POST", "/listings", {"sku": "1", **SHIRT, "category": category, "attributes": attributes})
    assert codes(answer) == {problem}


@pytest.mark.parametrize("price", [99.9, 9990, "99,90", "99.999", "-1", "", {"amount": "1", "currency": "BRL"}])
def test_sync_takes_money_only_as_decimal_text(sync: Seller, price: object) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT})
    assert codes(sync.call("PUT", "/listings/1/price", {"price": price})) == {("price", "money_form")}


def test_a_price_below_the_minimum_is_refused_and_not_shown(sync: Seller, control: MarketplaceControl) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT, "price": "99.90"})
    answer = sync.call("PUT", "/listings/1/price", {"price": "0.99"})
    assert (answer.status_code, codes(answer)) == (400, {("price", "below_minimum_price")})
    assert control.sku("a", "1").price_cents == 9990


def test_blocking_and_unblocking_keep_the_listing(sync: Seller, control: MarketplaceControl) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT})
    for word, state in (("deactivate", "inactive"), ("deactivate", "inactive"), ("activate", "active")):
        assert sync.call("POST", f"/listings/1/{word}").json()["status"] == state
        assert control.sku("a", "1").state == state
    assert sync.call("DELETE", "/listings/1").status_code == 405


def test_a_listing_is_found_only_after_the_visibility_delay(sync: Seller, control: MarketplaceControl) -> None:
    control.turn("a", visibility_delay=30)
    identity = sync.call("POST", "/listings", {"sku": "1", **SHIRT}).json()["id"]
    assert sync.call("GET", "/listings/1").status_code == 404
    assert sync.call("GET", "/listings", seller_sku="1").json()["listings"] == []
    control.advance(31)
    assert [one["id"] for one in sync.call("GET", "/listings", seller_sku="1").json()["listings"]] == [identity]


def test_slow_apply_shows_the_old_value_first_and_never_an_older_one_last(
    sync: Seller, control: MarketplaceControl
) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT, "stock": 1})
    control.turn("a", slow_apply=60)
    sync.call("PUT", "/listings/1/stock", {"stock": 2})
    control.turn("a", slow_apply=5)
    sync.call("PUT", "/listings/1/stock", {"stock": 3})
    assert sync.call("GET", "/listings/1").json()["stock"] == 1
    control.advance(61)
    assert sync.call("GET", "/listings/1").json()["stock"] == 3
    assert control.sku("a", "1").values("stock") == (1, 2, 3)


def test_an_automated_price_is_answered_200_with_a_warning_and_stays(sync: Seller, control: MarketplaceControl) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT, "price": "99.90"})
    control.turn("a", price_automation=["1"])
    answer = sync.call("PUT", "/listings/1/price", {"price": "50.00"})
    assert answer.status_code == 200
    assert [warning["code"] for warning in answer.json()["warnings"]] == ["price_automation"]
    assert control.sku("a", "1").price_cents == 9990


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_wrong_token_is_refused_with_401(control: MarketplaceControl, profile: str) -> None:
    seller = Seller(control.open_account("x", profile))
    assert seller.call("GET", "/account").json()["profile"] == profile
    for header in ("Bearer nonsense", seller.account.token, ""):
        seller.session.headers["Authorization"] = header
        answer = seller.call("GET", "/account")
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")


def test_a_refresh_token_works_once_and_gives_a_new_pair(control: MarketplaceControl) -> None:
    seller = Seller(control.open_account("x", "sync", oauth=True, token_life=60))
    control.advance(61)
    assert seller.call("GET", "/account").json()["error"] == "token_expired"
    form = {
        "grant_type": "refresh_token",
        "refresh_token": seller.account.refresh_token,
        "client_id": seller.account.client_id,
        "client_secret": seller.account.client_secret,
    }
    address = seller.account.url + "/oauth/token"
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: requests.post(address, data=form, timeout=5), range(4)))
    good = [answer.json() for answer in answers if answer.ok]
    assert len(good) == 1
    assert {answer.json()["error"] for answer in answers if not answer.ok} == {"invalid_grant"}
    seller.session.headers["Authorization"] = f"Bearer {good[0]['access_token']}"
    assert seller.call("GET", "/account").status_code == 200
    assert requests.post(address, data=form | {"refresh_token": good[0]["refresh_token"]}, timeout=5).ok
    assert control.counters("x")["refreshes"] == 2


def test_expired_revoked_and_renewed_credentials(control: MarketplaceControl, sync: Seller) -> None:
    control.expire_tokens("a")
    assert sync.call("GET", "/account").json()["error"] == "token_expired"
    control.revoke("a")
    assert sync.call("GET", "/account").json()["error"] == "invalid_token"
    assert Seller(control.consent("a")).call("GET", "/account").status_code == 200


# --- lot ----------------------------------------------------------------------------------------------------------


def test_a_feed_is_queued_runs_and_ends_with_one_result_per_record(lot: Seller, control: MarketplaceControl) -> None:
    control.turn("b", feed_delay=20, visibility_delay=10)
    answer = lot.feed(
        "listing", "r1", {"sku": "1", **SHIRT}, {"sku": "2", **SHIRT, "title": "", "ean": "1"}, "{nonsense"
    )
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    feed = answer.json()["id"]
    assert lot.call("GET", f"/feeds/{feed}/result").status_code == 409
    control.advance(11)
    assert lot.call("GET", f"/feeds/{feed}").json()["status"] == "running"
    assert control.sku("b", "1").state == "absent"
    control.advance(10)
    done = lot.call("GET", f"/feeds/{feed}").json()
    assert (done["status"], done["accepted"], done["rejected"]) == ("done", 1, 2)
    taken, refused, unreadable = lot.result(feed)
    assert (taken["line"], taken["sku"], taken["status"], taken["operation"]) == (1, "1", "accepted", "created")
    assert {problem["code"] for problem in refused["problems"]} == {"title_required", "ean_invalid"}
    assert [problem["code"] for problem in unreadable["problems"]] == ["unreadable"]
    assert control.sku("b", "1").state == "active"
    assert lot.call("GET", "/listings/1").status_code == 404
    control.advance(10)
    assert lot.call("GET", "/listings/1").json()["id"] == taken["id"]


def test_offers_need_their_listing_and_may_carry_price_or_stock_alone(lot: Seller, control: MarketplaceControl) -> None:
    lot.feed("listing", "r1", {"sku": "1", **SHIRT})
    money = {"amount": "99.90", "currency": "BRL"}
    foreign = {"amount": "99.90", "currency": "USD"}
    feed = lot.feed(
        "offer",
        "r2",
        {"sku": "1", "price": money},
        {"sku": "1", "stock": 4},
        {"sku": "2", "stock": 4},
        {"sku": "1", "price": foreign},
        {"sku": "1"},
    ).json()["id"]
    results = lot.result(feed)
    assert [result["status"] for result in results] == ["accepted", "accepted", "rejected", "rejected", "rejected"]
    assert [result["problems"][0]["code"] for result in results[2:]] == [
        "listing_not_found",
        "money_form",
        "nothing_to_do",
    ]
    assert (control.sku("b", "1").price_cents, control.sku("b", "1").stock) == (9990, 4)
    assert lot.call("GET", "/listings/1").json()["price"] == money


def test_a_feed_whose_answer_was_lost_is_found_by_its_reference_and_not_taken_twice(
    lot: Seller, control: MarketplaceControl
) -> None:
    control.fault("hang_after", operation="feed_submit", count=1, seconds=20)
    with pytest.raises(requests.Timeout):
        lot.session.post(
            lot.account.url + "/feeds",
            data=json.dumps({"sku": "1", **SHIRT}),
            params={"kind": "listing", "reference": "r1"},
            timeout=0.3,
        )
    [found] = lot.call("GET", "/feeds", reference="r1").json()["feeds"]
    again = lot.feed("listing", "r1", {"sku": "1", **SHIRT})
    assert (again.status_code, again.json()["id"]) == (409, found["id"])
    assert control.sku("b", "1").creates == 1
    assert lot.call("GET", "/feeds", reference="unknown").json()["feeds"] == []


def test_feeds_have_ceilings_of_count_bytes_pace_and_open_ones(lot: Seller, control: MarketplaceControl) -> None:
    control.turn("b", feed_max_records=2, feed_max_bytes=400)
    small = {"sku": "1", "stock": 1}
    assert lot.feed("offer", "r1", small, small, small).json()["error"] == "too_many_records"
    assert lot.feed("offer", "r1", {**small, "description": "x" * 400}).json()["error"] == "too_many_bytes"
    control.turn("b", feed_min_interval=60)
    assert lot.feed("offer", "r2", small).status_code == 202
    early = lot.feed("offer", "r3", small)
    assert (early.status_code, early.json()["error"]) == (429, "too_soon")
    assert 55 <= int(early.headers["Retry-After"]) <= 60
    assert lot.feed("listing", "r4", small).status_code == 202
    control.turn("b", feed_min_interval=0, feed_max_open=1, feed_delay=30)
    assert lot.feed("offer", "r5", small).status_code == 202
    assert lot.feed("offer", "r6", small).json()["error"] == "too_many_open_feeds"
    problems = codes(lot.feed("offers", ""))
    assert problems == {
        ("kind", "kind_unknown"),
        ("reference", "reference_required"),
        ("body", "records_required"),
    }


def test_lot_deletes_but_does_not_block(lot: Seller, control: MarketplaceControl) -> None:
    lot.feed("listing", "r1", {"sku": "1", **SHIRT})
    assert lot.call("POST", "/listings/1/deactivate").json()["error"] == "unsupported"
    feed = lot.feed("listing", "r2", {"sku": "1", "operation": "delete"}, {"sku": "1", "operation": "block"}).json()
    gone, unknown = lot.result(feed["id"])
    assert (gone["operation"], unknown["problems"][0]["code"]) == ("deleted", "unsupported")
    assert control.sku("b", "1").state == "absent"
    assert control.sku("b", "1").deletes == 1
    lot.feed("listing", "r3", {"sku": "1", **SHIRT})
    assert control.sku("b", "1").creates == 2
    assert len(control.sku("b", "1").ids) == 1


def test_a_fatal_feed_applies_nothing(lot: Seller, control: MarketplaceControl) -> None:
    control.turn("b", fatal_feeds=1)
    feed = lot.feed("listing", "r1", {"sku": "1", **SHIRT}).json()["id"]
    assert lot.call("GET", f"/feeds/{feed}").json()["status"] == "fatal"
    assert control.sku("b", "1").state == "absent"
    assert lot.feed("listing", "r2", {"sku": "1", **SHIRT}).json()["status"] == "done"


def test_the_result_of_a_feed_is_kept_only_so_long(lot: Seller, control: MarketplaceControl) -> None:
    control.turn("b", feed_result_retention=60)
    feed = lot.feed("listing", "r1", {"sku": "1", **SHIRT}).json()["id"]
    assert lot.call("GET", f"/feeds/{feed}/result").status_code == 200
    control.advance(61)
    assert lot.call("GET", f"/feeds/{feed}/result").status_code == 410


# --- full-replace -------------------------------------------------------------------------------------------------


def test_what_is_not_sent_is_reset(full: Seller, control: MarketplaceControl) -> None:
    whole = {**SHIRT, "price": 9990, "list_price": 12990, "stock": 5}
    created = full.call("PUT", "/offers/1", whole)
    assert (created.status_code, created.json()["price"]) == (201, 9990)
    assert full.call("PUT", "/offers/1", {**SHIRT, "price": 8990}).status_code == 200
    shown = control.sku("c", "1")
    assert (shown.price_cents, shown.list_price_cents, shown.stock) == (8990, None, 0)
    full.call("PUT", "/offers/1", {"stock": 7})
    shown = control.sku("c", "1")
    assert (shown.title, shown.images, shown.attributes, shown.price_cents, shown.stock) == ("", (), {}, 0, 7)
    assert (shown.creates, shown.writes["content"]) == (1, 2)


def test_a_first_offer_must_be_whole_and_what_is_sent_must_be_right(full: Seller) -> None:
    assert codes(full.call("PUT", "/offers/1", {"stock": 1})) == {
        ("title", "title_required"),
        ("ean", "ean_invalid"),
        ("images", "image_required"),
        ("category", "category_required"),
        ("price", "price_required"),
    }
    full.call("PUT", "/offers/1", {**SHIRT, "price": 9990})
    assert codes(full.call("PUT", "/offers/1", {**SHIRT, "price": "99.90"})) == {("price", "money_form")}
    assert codes(full.call("PUT", "/offers/1", {**SHIRT, "price": 99})) == {("price", "below_minimum_price")}


def test_full_replace_deletes_but_does_not_block(full: Seller, control: MarketplaceControl) -> None:
    full.call("PUT", "/offers/1", {**SHIRT, "price": 9990})
    assert full.call("POST", "/offers/1/deactivate").status_code == 405
    assert full.call("DELETE", "/offers/1").json()["status"] == "absent"
    assert full.call("DELETE", "/offers/1").status_code == 404
    assert control.sku("c", "1").state == "absent"


def test_an_offer_may_wait_for_acceptance(full: Seller, control: MarketplaceControl) -> None:
    control.turn("c", needs_acceptance=True)
    answer = full.call("PUT", "/offers/1", {**SHIRT, "price": 9990})
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.json()["ticket"]
    control.accept("c", "1", [{"field": "images", "code": "image_refused", "message": "white background"}])
    rejected = full.call("GET", "/offers/1").json()
    assert (rejected["status"], rejected["problems"][0]["code"]) == ("rejected", "image_refused")
    control.accept("c", "1")
    assert full.call("GET", "/offers/1").json()["status"] == "active"
    control.turn("c", acceptance_delay=30)
    full.call("PUT", "/offers/2", {**SHIRT, "price": 9990})
    assert control.sku("c", "2").state == "pending"
    control.advance(31)
    assert control.sku("c", "2").state == "active"


# --- limits, faults, outages --------------------------------------------------------------------------------------


def test_an_account_over_its_limit_gets_429_in_both_header_families_and_both_forms(
    sync: Seller, control: MarketplaceControl
) -> None:
    control.turn("a", requests_limit=2, requests_window=30)
    first = sync.call("GET", "/account")
    assert first.headers["RateLimit-Remaining"] == first.headers["X-RateLimit-Remaining"] == "1"
    sync.call("GET", "/account")
    refused = sync.call("GET", "/account")
    assert refused.status_code == 429
    assert 25 <= int(refused.headers["Retry-After"]) <= 30
    control.turn("a", retry_after_form="date")
    assert parsedate_to_datetime(sync.call("GET", "/account").headers["Retry-After"]).tzinfo is not None
    control.turn("a", retry_after_form="none")
    assert "Retry-After" not in sync.call("GET", "/account").headers
    other = Seller(control.open_account("z", "sync"))
    assert other.call("GET", "/account").status_code == 200
    control.advance(30)
    assert sync.call("GET", "/account").status_code == 200


def test_a_lie_answers_201_and_makes_nothing(sync: Seller, control: MarketplaceControl) -> None:
    control.fault("lie", operation="listing_create", account="a", count=1)
    answer = sync.call("POST", "/listings", {"sku": "1", **SHIRT})
    assert answer.status_code == 201
    assert sync.call("GET", f"/listings/{answer.json()['id']}").status_code == 404
    assert control.sku("a", "1").creates == 0


def test_a_stale_read_shows_the_value_before_the_last_change(sync: Seller, control: MarketplaceControl) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT, "stock": 1})
    control.fault("stale", operation="listing_read")
    assert sync.call("GET", "/listings/1").status_code == 404
    sync.call("PUT", "/listings/1/stock", {"stock": 2})
    assert sync.call("GET", "/listings/1").json()["stock"] == 1
    control.clear_faults()
    assert sync.call("GET", "/listings/1").json()["stock"] == 2


def test_a_creation_whose_answer_is_lost_has_happened_and_one_that_failed_before_has_not(
    sync: Seller, control: MarketplaceControl
) -> None:
    control.fault("hang_before", operation="listing_create", count=1, seconds=20)
    control.fault("cut", operation="listing_create", count=1)
    with pytest.raises(requests.Timeout):
        sync.call("POST", "/listings", {"sku": "1", **SHIRT}, timeout=0.3)
    assert control.sku("a", "1").creates == 0
    with pytest.raises(requests.RequestException):
        sync.call("POST", "/listings", {"sku": "1", **SHIRT})
    assert control.sku("a", "1").creates == 1


@pytest.mark.parametrize("mode", ["503", "refuse", "hang"])
def test_an_outage_hits_one_account_and_ends(sync: Seller, control: MarketplaceControl, mode: str) -> None:
    neighbour = Seller(control.open_account("z", "sync"))
    control.outage("a", mode, seconds=30)
    if mode == "503":
        assert sync.call("GET", "/account").status_code == 503
    else:
        with pytest.raises(requests.Timeout if mode == "hang" else requests.ConnectionError):
            sync.call("GET", "/account", timeout=0.3)
    assert neighbour.call("GET", "/account").status_code == 200
    control.advance(30)
    assert sync.call("GET", "/account").status_code == 200
    control.outage("a", "503", seconds=600)
    control.outage("a", "off")
    assert sync.call("GET", "/account").status_code == 200


def test_one_broken_sku_fails_alone_until_it_is_healed(
    sync: Seller, lot: Seller, full: Seller, control: MarketplaceControl
) -> None:
    for name in "abc":
        control.break_sku(name, "bad")
    assert sync.call("POST", "/listings", {"sku": "bad", **SHIRT}).status_code == 500
    assert sync.call("POST", "/listings", {"sku": "good", **SHIRT}).status_code == 201
    assert full.call("PUT", "/offers/bad", {**SHIRT, "price": 9990}).status_code == 500
    feed = lot.feed("listing", "r1", {"sku": "bad", **SHIRT}, {"sku": "good", **SHIRT}).json()["id"]
    assert [result["status"] for result in lot.result(feed)] == ["error", "accepted"]
    control.heal_sku("a", "bad")
    assert sync.call("POST", "/listings", {"sku": "bad", **SHIRT}).status_code == 201
    problem = {"field": "brand", "code": "brand_protected", "message": "ask the brand"}
    control.break_sku("a", "bad", 422, [problem], count=1)
    assert codes(sync.call("PUT", "/listings/bad/stock", {"stock": 1})) == {("brand", "brand_protected")}
    assert sync.call("PUT", "/listings/bad/stock", {"stock": 1}).status_code == 200


# --- orders and webhooks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "total"),
    [("sync", "229.80"), ("lot", {"amount": "229.80", "currency": "BRL"}), ("full-replace", 22980)],
)
def test_orders_are_polled_by_time_and_cursor_read_and_acknowledged(
    control: MarketplaceControl, profile: str, total: object
) -> None:
    seller = Seller(control.open_account("x", profile))
    placed = [
        control.place_order(
            "x", [Basket("1", 2, 9990), Basket("2", 1, 1000)], shipping_cents=1501, interest_cents=499, status=status
        )
        for status in ("paid", "pending", "paid")
    ]
    page = seller.call("GET", "/orders", limit=2).json()
    assert [one["id"] for one in page["orders"]] == [placed[0].id, placed[1].id]
    assert page["more"] is True
    page = seller.call("GET", "/orders", limit=2, cursor=page["next_cursor"]).json()
    assert [one["id"] for one in page["orders"]] == [placed[2].id]
    order = seller.call("GET", f"/orders/{placed[0].id}").json()
    assert order["total"] == total
    assert order["buyer"]["email"].endswith("@example.com")
    assert [control_order.shipping_cents for control_order in placed] == [1501] * 3
    assert seller.call("GET", f"/orders/{placed[1].id}").json()["address"] is None
    control.move_order("x", placed[1].id, "paid")
    assert seller.call("GET", f"/orders/{placed[1].id}").json()["address"]["country"] == "BRA"
    after = seller.call("GET", "/orders", cursor=page["next_cursor"]).json()
    assert [one["id"] for one in after["orders"]] == [placed[1].id]
    assert (
        seller.call("GET", "/orders", updated_since=after["orders"][0]["updated_at"]).json()["orders"]
        == after["orders"]
    )
    assert seller.call("GET", "/orders", updated_since="yesterday").status_code == 400
    for _ in range(2):
        assert seller.call("POST", f"/orders/{placed[0].id}/acknowledge", {"vtex_order_id": "MKP-1"}).status_code == 200
    assert seller.call("POST", f"/orders/{placed[0].id}/acknowledge", {"vtex_order_id": "MKP-2"}).status_code == 409
    known = control.orders("x")[placed[0].id]
    assert (known.vtex_order_id, known.acknowledge_calls, known.total_cents) == ("MKP-1", 3, 22980)
    assert control.counters("x")["acknowledgements"] == 1


def test_a_signed_webhook_points_to_the_order_and_its_signature_can_be_checked(control: MarketplaceControl) -> None:
    with hook() as (address, heard):
        control.open_account("x", "sync", webhook_url=address, webhook_secret="s3cret", webhook_previous_secret="older")
        order = control.place_order("x", [Basket("1", 1, 9990)])
        until(lambda: len(heard) == 1)
        headers, body = heard[0]
        assert json.loads(body)["resource"] == {"id": order.id}
        parts = [part.split("=", 1) for part in headers["X-Signature"].split(",")]
        moment = dict(parts)["t"]
        expected = [
            hmac.new(secret, f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
            for secret in (b"older", b"s3cret")
        ]
        assert [value for name, value in parts if name == "v1"] == expected
        control.send_event("x", order.id, signature="bad")
        until(lambda: len(heard) == 2)
        assert expected[1] not in heard[1][0]["X-Signature"]


def test_webhooks_are_lost_doubled_and_repeated_and_lot_has_none(control: MarketplaceControl) -> None:
    with hook(500) as (address, heard):
        control.open_account("x", "full-replace", webhook_url=address, webhook_secret="s", webhook_retry_delay=0.01)
        control.open_account("y", "lot", webhook_url=address)
        control.place_order("y", [Basket("1", 1, 9990)])
        control.place_order("x", [Basket("1", 1, 9990)], copies=0)
        once = control.place_order("x", [Basket("1", 1, 9990)])
        until(lambda: [told.outcome for told in control.deliveries("x")] == ["lost", "delivered"])
        assert control.deliveries("x")[1].attempts == 2
        twice = control.place_order("x", [Basket("1", 1, 9990)], copies=2)
        until(lambda: len(heard) == 4)
        assert [json.loads(body)["resource"]["id"] for _, body in heard] == [once.id] * 2 + [twice.id] * 2
        assert len({json.loads(body)["id"] for _, body in heard[2:]}) == 1
        assert all("X-Signature" not in headers for headers, _ in heard)
        assert control.deliveries("y") == []


def test_events_come_in_disorder_when_dialled(control: MarketplaceControl) -> None:
    with hook() as (address, heard):
        control.open_account("x", "sync", webhook_url=address, webhook_disorder=0.5)
        placed = [control.place_order("x", [Basket("1", 1, 9990)]).id for _ in range(12)]
        until(lambda: len(heard) == 12)
        came = [json.loads(body)["resource"]["id"] for _, body in heard]
        assert sorted(came) == sorted(placed)
        assert came != placed


# --- control ------------------------------------------------------------------------------------------------------


def test_shown_tells_every_sku_and_a_drift_is_nobodys_write(sync: Seller, control: MarketplaceControl) -> None:
    for sku in ("1", "2"):
        sync.call("POST", "/listings", {"sku": sku, **SHIRT, "price": "99.90", "stock": 3})
    control.drift("a", "1", stock=77)
    shown = control.shown("a")
    assert {sku: row.stock for sku, row in shown.items()} == {"1": 77, "2": 3}
    assert shown["1"].writes == {}
    assert control.sku("a", "1").history[-1].by == "hand"
    assert sync.call("GET", "/listings/1").json()["stock"] == 77


def test_the_journal_tells_what_was_asked_without_its_token(sync: Seller, control: MarketplaceControl) -> None:
    sync.call("POST", "/listings", {"sku": "1", **SHIRT})
    [heard] = control.journal(operation="listing_create", account="a")
    assert (heard.method, heard.status) == ("POST", 201)
    assert sync.account.token not in repr(heard)


def test_a_wrong_control_call_is_told_with_field_and_fix(control: MarketplaceControl) -> None:
    with pytest.raises(ControlRefused, match="profile"):
        control.open_account("x", "barter")
    with pytest.raises(ControlRefused, match="slowness"):
        control.open_account("x", "sync", slowness=3)
    control.open_account("x", "sync")
    with pytest.raises(ControlRefused, match="account_exists"):
        control.open_account("x", "lot")
    with pytest.raises(ControlRefused, match="unknown_account"):
        control.account("nobody")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"null"])
def test_an_unreadable_body_is_refused_with_a_reason(sync: Seller, full: Seller, body: bytes) -> None:
    answers = [
        sync.session.post(sync.account.url + "/listings", data=body, timeout=5),
        full.session.put(full.account.url + "/offers/1", data=body, timeout=5),
    ]
    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [(400, "unreadable")] * 2


def test_categories_come_as_a_tree_with_their_attributes(sync: Seller) -> None:
    tree = sync.call("GET", "/categories").json()["categories"]
    fashion = next(category for category in tree if category["id"] == "MC-100")
    assert fashion["leaf"] is False
    shirts = next(category for category in fashion["children"] if category["id"] == "MC-110")
    assert {"name": "color", "required": True, "values": []} in shirts["attributes"]
    assert sync.call("GET", "/categories/MC-110").json() == shirts
    assert sync.call("GET", "/categories/MC-999").status_code == 404


def test_listings_are_paged(sync: Seller) -> None:
    for number in range(5):
        sync.call("POST", "/listings", {"sku": str(number), **SHIRT})
    found, cursor = [], "0"
    while cursor is not None:
        page = sync.call("GET", "/listings", limit=2, cursor=cursor).json()
        found += [listing["sku"] for listing in page["listings"]]
        cursor = page["next_cursor"]
    assert found == ["0", "1", "2", "3", "4"]


def test_synthetic_documents_and_barcodes_have_right_check_digits() -> None:
    assert is_ean13("7891000315507")
    assert not is_ean13("7891000315500")
    assert not is_ean13("٧٨٩١٠٠٠٣١٥٥٠٧")
    assert synthetic_buyer(123456789)["document"] == "12345678909"


def test_the_same_seed_gives_the_same_credentials() -> None:
    def token(seed: int) -> str:
        with served(World(seed)) as address, MarketplaceControl(address) as control:
            return control.open_account("a", "sync").token

    assert token(1) == token(1) != token(2)


def test_the_command_prints_its_address_once_it_answers() -> None:
    command = [sys.executable, "-m", "hub.simulators.marketplace", "--port", "0", "--seed", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:3] == ["marketplace", "ready", "at"]
            assert requests.get(words[3] + "/_control/ready", timeout=5).json() == {
                "marketplace": "sandbox",
                "accounts": 0,
            }
        finally:
            process.terminate()
            process.wait(60)
