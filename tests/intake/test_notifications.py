"""What VTEX posts, over HTTP, down to the rows in PostgreSQL."""

import itertools
import json

import pytest

from hub.model import Urgency
from tests.intake.conftest import Running, until

TEN_FIELDS = {
    "idSKU": "15",
    "productId": 7,
    "an": "acme",
    "idAffiliate": "MKT",
    "DateModified": "2026-03-02T17:11:39.2550122Z",
    "isActive": True,
    "StockModified": True,
    "PriceModified": False,
    "HasStockKeepingUnitModified": False,
    "HasStockKeepingUnitRemovedFromAffiliate": False,
}
STOCK_15 = [("stock", "15", Urgency.NOTIFIED, True)]


@pytest.mark.scenario("NOT-01")
def test_a_documented_body_is_stored_asked_for_counted_and_woken(intake: Running) -> None:
    token = intake.add_store()
    answer = intake.post(f"{token}/api/notification/", TEN_FIELDS)
    assert (answer.status, answer.body) == (200, None)
    assert intake.states() == STOCK_15
    assert intake.notices() == [("notification", "accepted", None, json.dumps(TEN_FIELDS))]
    assert intake.counters() == (1, 0, 0, 1)
    until(lambda: intake.woken == [("acme-mkt", "stock")])


@pytest.mark.scenario("NOT-02")
def test_every_form_of_the_url_does_the_same(intake: Running) -> None:
    token = intake.add_store()
    forms = [
        path + slash + query
        for path, slash, query in itertools.product(
            ("", "/api/notification", "/catalog/notification"), ("", "/"), ("", "?x=1&y=/events")
        )
    ]
    for number, form in enumerate(forms, start=1):
        assert intake.post(token + form, TEN_FIELDS | {"idSKU": number}).status == 200, form
    assert {key for _, key, _, _ in intake.states()} == {str(n) for n in range(1, len(forms) + 1)}


@pytest.mark.scenario("NOT-03", "NOT-04", "NOT-06", "NOT-08")
def test_the_other_known_bodies_are_accepted_and_kept_raw(intake: Running) -> None:
    token = intake.add_store()
    bodies = [
        b'{"IdSku":"1","An":"acme","IdAffiliate":"MKT","DateModified":"2018-08-20T15:11:28.1978783Z","IsActive":true,'
        b'"StockModified":false,"PriceModified":false,"HasStockKeepingUnitModified":true,'
        b'"HasStockKeepingUnitRemovedFromAffiliate":false}',
        b'{"IdSku":"2","An":"acme","IdAffiliate":"MKT","StockModified":false,"PriceModified":true}',
        b'{"HasStockKeepingUnitModified":true,"IdSku":"3"}',
        b'{"IdSku":"4","StockModified":true,"Version":"2","SellerChain":["a", {"b": "\\u0000 \\u001e"}]}',
    ]
    for body in bodies:
        assert intake.post(token, raw=body).status == 200
    assert [(context, key) for context, key, _, _ in intake.states()] == [
        ("catalog", "1"),
        ("catalog", "3"),
        ("price", "2"),
        ("stock", "4"),
    ]
    assert sorted(body for *_, body in intake.notices()) == sorted(body.decode() for body in bodies)


@pytest.mark.scenario("NOT-05", "NOT-07")
def test_casing_types_and_hosts_of_the_account_do_not_matter(intake: Running) -> None:
    token = intake.add_store()
    body = {"IDSKU": 15, "AN": "Acme.myvtex", "iDaFFILIATE": "mkt", "ACTIVE": "True", "stockmodified": "true"}
    assert intake.post(token, body).status == 200
    assert intake.post(token, body | {"AN": "acme.vtexcommercestable.com.br", "IDSKU": " 15 "}).status == 200
    assert intake.states() == STOCK_15
    assert intake.counters() == (2, 0, 0, 2)


@pytest.mark.scenario("NOT-09")
@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "body"),
        (b"hello", "body"),
        (b"\xff\xfe{}", "body"),
        (b'{"IdSku":"15","x":"\x00"}', "body"),
        (b"[]", "body"),
        (b"7", "body"),
        (b"[" * 100_000, "body"),
        (b'{"An":"acme","StockModified":true}', "idSKU"),
        (b'{"IdSku":99999999999999999999999,"StockModified":true}', "IdSku"),
        (b'{"IdSku":"15\\u0000","StockModified":true}', "IdSku"),
        (b'{"IdSku":true}', "IdSku"),
    ],
)
def test_an_unreadable_body_is_refused_with_its_reason_and_queues_nothing(
    intake: Running, raw: bytes, field: str
) -> None:
    token = intake.add_store()
    answer = intake.post(token, raw=raw)
    assert answer.status == 400
    assert [problem["field"] for problem in answer.body["problems"]] == [field]
    assert all(len(problem["value"]) <= 90 and problem["fix"] for problem in answer.body["problems"])
    assert intake.refused("unreadable") == 1
    assert intake.states() == []
    assert intake.notices() == []


def test_all_problems_of_a_body_are_told_at_once(intake: Running) -> None:
    token = intake.add_store()
    answer = intake.post(token, {"IdSku": "x", "StockModified": "maybe", "isActive": 7, "An": 5})
    assert answer.status == 400
    assert {problem["field"] for problem in answer.body["problems"]} == {"IdSku", "StockModified", "isActive", "An"}


@pytest.mark.scenario("NOT-10")
def test_an_unknown_token_or_path_is_not_found(intake: Running) -> None:
    token = intake.add_store()
    before = intake.refused("unknown_token")
    assert intake.post("nobody", TEN_FIELDS).status == 404
    assert intake.post("nobody/api/notification/", TEN_FIELDS).status == 404
    assert intake.post("", TEN_FIELDS).status == 404
    assert intake.post(f"{token}/elsewhere", TEN_FIELDS).status == 404
    assert intake.get(token).status_code == 405
    assert (intake.states(), intake.notices()) == ([], [])
    assert intake.refused("unknown_token") == before + 3


@pytest.mark.scenario("NOT-11")
def test_the_body_of_another_store_is_kept_apart_and_answered(intake: Running) -> None:
    token = intake.add_store()
    intake.add_store("beta-mkt", "beta", "MKT")
    intake.add_store("acme-two", "acme", "TWX")
    assert intake.post(token, TEN_FIELDS | {"an": "beta"}).status == 200
    assert intake.post(token, TEN_FIELDS | {"idAffiliate": "TWX"}).status == 200
    assert [fate for _, fate, _, _ in intake.notices()] == ["quarantined", "quarantined"]
    assert intake.states() == []
    assert intake.counters() == (2, 2, 0, 0)
    assert intake.woken == []


@pytest.mark.scenario("NOT-14", "NOT-15", "NOT-16", "NOT-17", "NOT-18", "NOT-19", "NOT-21")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"HasStockKeepingUnitRemovedFromAffiliate": True, "StockModified": True, "PriceModified": True},
            [("catalog", "15", Urgency.REMOVE, True)],
        ),
        (
            {"isActive": False, "StockModified": True, "HasStockKeepingUnitModified": True},
            [("catalog", "15", Urgency.REMOVE, True)],
        ),
        (
            {"HasStockKeepingUnitModified": True, "PriceModified": True},
            [("catalog", "15", Urgency.NOTIFIED, True)],
        ),
        ({"PriceModified": True}, [("price", "15", Urgency.NOTIFIED, True)]),
        ({"StockModified": True}, STOCK_15),
        (
            {"StockModified": True, "PriceModified": True},
            [("price", "15", Urgency.NOTIFIED, True), ("stock", "15", Urgency.NOTIFIED, True)],
        ),
        ({}, [("catalog", "15", Urgency.CHECK, False)]),
    ],
)
def test_flags_choose_the_contexts(
    intake: Running, flags: dict[str, bool], expected: list[tuple[str, str, int, bool]]
) -> None:
    token = intake.add_store()
    assert intake.post(token, {"idSKU": 15, "isActive": True} | flags).status == 200
    assert intake.states() == expected
    until(lambda: sorted(intake.woken) == sorted(("acme-mkt", context) for context, *_ in expected))


@pytest.mark.scenario("NOT-22")
def test_identical_notifications_are_one_demand(intake: Running) -> None:
    token = intake.add_store()
    for _ in range(50):
        assert intake.post(token, TEN_FIELDS).status == 200
    assert intake.rows("select asked, answered, work from states") == [(1, 0, "p")]
    requested, enqueued, coalesced = intake.rows(
        "select sum(requested)::int, sum(enqueued)::int, sum(coalesced)::int from counters where context = 'stock'"
    )[0]
    assert (requested, enqueued, coalesced) == (50, 1, 49)
    assert intake.counters() == (50, 0, 0, 50)


@pytest.mark.scenario("NOT-26")
def test_a_removed_store_is_answered_and_only_counted(intake: Running) -> None:
    token = intake.add_store()
    assert intake.post(token, TEN_FIELDS).status == 200
    intake.registry.remove("acme-mkt", "test", "gone")
    number = itertools.count(100)
    until(lambda: intake.post(token, {"idSKU": next(number)}).status == 200 and intake.counters()[2] > 0)
    asked = len(intake.states())
    assert intake.post(token, TEN_FIELDS | {"idSKU": 99}).status == 200
    assert len(intake.states()) == asked
    assert intake.notices()[-1][1] == "ignored"
    received, quarantined, ignored, accepted = intake.counters()
    assert received == quarantined + ignored + accepted


@pytest.mark.scenario("NOT-26")
def test_a_paused_store_keeps_what_comes_for_later(intake: Running) -> None:
    token = intake.add_store()
    intake.registry.pause("acme-mkt", "test", "holiday")
    assert intake.post(token, TEN_FIELDS).status == 200
    assert intake.states() == STOCK_15


@pytest.mark.scenario("NOT-27")
def test_each_notification_of_an_array_counts_as_one(intake: Running) -> None:
    token = intake.add_store()
    body = [{"IdSku": 1, "StockModified": True}, {"IdSku": "2", "PriceModified": True}, {"IdSku": 3, "An": "beta"}]
    assert intake.post(token, body).status == 200
    assert [(context, key) for context, key, _, _ in intake.states()] == [("price", "2"), ("stock", "1")]
    assert intake.counters() == (3, 1, 0, 2)
    bad = intake.post(token, [{"IdSku": 1}, {"IdSku": -1}, 7, {}])
    assert bad.status == 400
    assert [problem["field"] for problem in bad.body["problems"]] == ["[1].IdSku", "[2]", "[3].idSKU"]


def test_a_new_token_works_and_the_old_one_stops_without_a_restart(intake: Running) -> None:
    old = intake.add_store()
    new = intake.registry.rotate_token("acme-mkt", "test")
    until(lambda: intake.post(new, TEN_FIELDS).status == 200)
    assert intake.post(old, TEN_FIELDS).status == 404
