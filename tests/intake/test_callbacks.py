"""Marketplace events and VTEX's results: verified, kept, and asked of the context order; no order is looked up."""

import hashlib
import hmac
import json
import time
from typing import Any

from hub.model import Urgency
from tests.intake.conftest import Answer, Running, until

SECRET = "not-so-secret"
SIGNED = {"scheme": "hmac_timestamp_body", "pointer": ["resource"], "prefix": "/orders/"}
UNSIGNED = {"scheme": "none", "pointer": ["resource", "id"]}
RESULT = "order-integration/notification/processing-result"


def signed(body: bytes, *secrets: str, moment: float | None = None) -> dict[str, str]:
    stamp = int(time.time() if moment is None else moment)
    marks = [hmac.new(one.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest() for one in secrets]
    return {"X-Signature": ",".join([f"t={stamp}", *(f"v1={mark}" for mark in marks)])}


def add_signed_store(intake: Running, **secrets: str) -> str:
    return intake.add_store(settings={"webhook": SIGNED}, credentials={"marketplace": secrets})


def order_rows(intake: Running) -> list[tuple[str, str, int, bool]]:
    return [row for row in intake.states() if row[0] == "order"]


def test_a_signed_event_is_kept_under_its_order_and_asked_of_the_context_order(intake: Running) -> None:
    token = add_signed_store(intake, webhook_secret=SECRET)
    body = json.dumps({"topic": "orders", "resource": "/orders/MP%201", "id": "e1"}).encode()
    assert intake.post(f"{token}/events", raw=body, headers=signed(body, SECRET)).status == 200
    assert intake.notices() == [("event", "accepted", "MP 1", body.decode())]
    assert intake.states() == [("order", "MP 1", Urgency.NOTIFIED, True)]
    assert intake.counters("marketplace") == (1, 0, 0, 1)
    until(lambda: intake.woken == [("acme-mkt", "order")])


def test_while_a_secret_rotates_either_signature_will_do(intake: Running) -> None:
    token = add_signed_store(intake, webhook_secret="new", webhook_previous_secret="old")
    body = b'{"resource": "/orders/1"}'
    for secrets in (("new",), ("old",), ("other", "new"), ("old", "other")):
        assert intake.post(f"{token}/events", raw=body, headers=signed(body, *secrets)).status == 200, secrets


def test_a_doubtful_event_is_a_401_counted_and_not_kept(intake: Running) -> None:
    token = add_signed_store(intake, webhook_secret=SECRET)
    body = b'{"resource": "/orders/1"}'
    doubtful: list[dict[str, str]] = [
        {},
        {"X-Signature": "nonsense"},
        {"X-Signature": "t=abc,v1=00"},
        signed(body, "another"),
        signed(body + b" ", SECRET),
        signed(body, SECRET, moment=time.time() - 3_600),
        signed(body, SECRET, moment=time.time() + 3_600),
    ]
    for headers in doubtful:
        answer = intake.post(f"{token}/events", raw=body, headers=headers)
        assert (answer.status, answer.body["problems"][0]["field"]) == (401, "X-Signature")
        assert SECRET not in json.dumps(answer.body)
    assert (intake.notices(), intake.states()) == ([], [])
    assert intake.refused("signature") == len(doubtful)


def test_an_event_about_something_else_is_kept_and_ignored(intake: Running) -> None:
    token = add_signed_store(intake, webhook_secret=SECRET)
    for body in (b'{"resource": "/items/1"}', b'{"topic": "ping"}'):
        assert intake.post(f"{token}/events", raw=body, headers=signed(body, SECRET)).status == 200
    assert [fate for _, fate, _, _ in intake.notices()] == ["ignored", "ignored"]
    assert intake.counters("marketplace") == (2, 0, 2, 0)
    assert intake.states() == []


def test_an_order_id_that_cannot_be_one_is_refused(intake: Running) -> None:
    token = intake.add_store(settings={"webhook": UNSIGNED})
    for found in ("", "x" * 129, "a\u0000b", "a\u001eb", True, [1], {"x": 1}, 1.5):
        answer = intake.post(f"{token}/events", {"resource": {"id": found}})
        assert (answer.status, answer.body["problems"][0]["field"]) == (400, "resource.id"), found
    assert intake.post(f"{token}/events", {"resource": {"id": 77}}).status == 200
    assert order_rows(intake) == [("order", "77", Urgency.NOTIFIED, True)]


def test_a_store_whose_marketplace_sends_no_events_has_no_such_route(intake: Running) -> None:
    token = intake.add_store()
    assert intake.post(f"{token}/events", {"resource": {"id": 1}}).status == 404


def post_result(intake: Running, token: str, query: str = "?an=acme", **fields: Any) -> Answer:
    body = {
        "accountName": "acme",
        "success": True,
        "flow": "PlaceOrder",
        "operationId": "op-1",
        "marketplaceOrderId": "900",
        "code": "SOI001",
        "message": None,
        "errors": [],
        "fields": {"mainOrderId": "MKT-900"},
    }
    return intake.post(f"{token}/{RESULT}{query}", body | fields)


def test_results_are_kept_in_whatever_number_and_order_they_come(intake: Running) -> None:
    token = intake.add_store()
    for code in ("SOI002", "SOI001", "SOI001"):
        assert post_result(intake, token, code=code).status == 200
    kept = intake.rows("select key, body::json ->> 'code' from notices where kind = 'result' order by received_at")
    assert kept == [("900", "SOI002"), ("900", "SOI001"), ("900", "SOI001")]
    assert order_rows(intake) == [("order", "900", Urgency.NOTIFIED, True)]
    assert intake.counters("result") == (3, 0, 0, 3)


def test_a_result_of_another_account_or_of_no_order_is_quarantined(intake: Running) -> None:
    token = intake.add_store()
    assert post_result(intake, token, accountName="beta").status == 200
    assert post_result(intake, token, query="?an=beta").status == 200
    assert post_result(intake, token, marketplaceOrderId=None).status == 200
    assert post_result(intake, token, query="", accountName=None).status == 200
    assert [fate for _, fate, _, _ in intake.notices()] == ["quarantined", "quarantined", "quarantined", "accepted"]
    assert intake.counters("result") == (4, 3, 0, 1)


def test_an_unreadable_result_is_refused_with_all_its_problems(intake: Running) -> None:
    token = intake.add_store()
    answer = post_result(intake, token, accountName=5, marketplaceOrderId={"x": 1})
    assert answer.status == 400
    assert {problem["field"] for problem in answer.body["problems"]} == {"accountName", "marketplaceOrderId"}
    assert intake.post(f"{token}/{RESULT}", raw=b"<xml/>").status == 400


def test_a_result_with_too_many_fields_in_its_query_is_refused(intake: Running) -> None:
    token = intake.add_store()
    answer = post_result(intake, token, query="?an=acme" + "&a=1" * 20)
    assert (answer.status, answer.body["problems"][0]["field"]) == (400, "query")
    assert post_result(intake, token, query="?an=acme" + "&a=1" * 19).status == 200
