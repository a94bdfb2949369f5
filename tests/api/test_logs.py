"""VTEX's logs endpoint over HTTP: its forms, its shape, its filters, its languages (vtex.md 15.2, LOG-02 to 12)."""

import json
import uuid

import psycopg
import pytest
import requests

from hub.errors import Problem
from hub.model import Story
from tests.api.conftest import Endpoint, Shelf, params

KEYS = [
    "id",
    "Operation",
    "Direction",
    "ContentSource",
    "ContentTransalted",
    "ContentTranslated",
    "ContentDestination",
    "BusinessMessage",
    "Status",
]
DAY = "2026-01-31"
TO_MARKETPLACE = "VTEX to Marketplace"


def told_today(shelf: Shelf) -> str:
    with shelf.endpoint.pool.connection() as connection:
        return str(connection.execute("select max(at)::date from interactions").fetchone()[0])


@pytest.fixture
def day(shelf: Shelf) -> Shelf:
    """One record of each status on the 31st, one on each day beside it."""
    shelf.write("2026-01-30T23:59:59.999999Z", key="before")
    shelf.write("2026-01-31T00:00:00Z", key="success", operation="Price update", context="price")
    shelf.write(
        "2026-01-31T08:00:00Z", key="error", code="E3", status="error", operation="Catalog change", context="catalog"
    )
    shelf.write("2026-01-31T09:00:00Z", key="warning", code="A1", status="warning")
    shelf.write("2026-01-31T10:00:00Z", key="pending", code="P0", status="pending")
    shelf.write("2026-01-31T23:59:59.999999Z", key="M-1", context="order", code="O.A", operation="Order creation")
    shelf.write("2026-02-01T00:00:00Z", key="after")
    return shelf


def kept(shelf: Shelf, query: str) -> list[str]:
    """Keys of the records that come back, in their order."""
    with shelf.endpoint.pool.connection() as connection:
        keys = {str(number): key for number, key in connection.execute("select id, key from interactions")}
    return [keys[record["id"]] for record in shelf.messages(query)]


@pytest.mark.scenario("LOG-02", "LOG-04")
def test_the_documented_address_answers_in_the_documented_shape(day: Shelf) -> None:
    answer = day.get("DateAt=2026-01-31&status=all")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    tree = answer.json()
    assert list(tree) == ["Messages", "Paging"]
    assert all(list(record) == KEYS for record in tree["Messages"])
    assert all(isinstance(value, str) for record in tree["Messages"] for value in record.values())
    assert [record["Status"] for record in tree["Messages"]] == ["success", "pending", "warning", "error", "success"]
    assert len({uuid.UUID(record["id"]) for record in tree["Messages"]}) == 5


@pytest.mark.parametrize("slash", ["/", ""])
def test_every_form_of_the_address_gives_the_same_records(day: Shelf, slash: str) -> None:
    bearer = {"Authorization": f"Bearer {day.token}"}
    account = day.store.account
    answers = [
        day.get(f"DateAt={DAY}", path=f"/{day.token}/{account}/logs{slash}"),
        day.get(f"DateAt={DAY}", path=f"/{day.token}/{account.upper()}.vtexcommercestable.com.br/logs{slash}"),
        day.get(f"DateAt={DAY}", path=f"/{day.token}/logs{slash}"),
        day.get(f"DateAt={DAY}", path=f"/{account}/logs{slash}", headers=bearer),
        day.get(f"DateAt={DAY}", path=f"/logs{slash}", headers=bearer),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert len(answers[0].json()["Messages"]) == 5


@pytest.mark.parametrize("name", ["DateAt", "dateAt", "date", "DATEAT", "Date"])
def test_the_day_is_one_day_of_utc_whatever_its_parameter_is_called(day: Shelf, name: str) -> None:
    assert kept(day, f"{name}=2026-01-31") == ["M-1", "pending", "warning", "error", "success"]
    assert kept(day, f"{name}=2026-02-01") == ["after"]


def test_without_a_day_it_is_today(day: Shelf) -> None:
    assert kept(day, "") == kept(day, f"DateAt={DAY}") != []


@pytest.mark.scenario("LOG-03")
@pytest.mark.parametrize(
    ("status", "keys"),
    [
        ("all", ["M-1", "pending", "warning", "error", "success"]),
        ("", ["M-1", "pending", "warning", "error", "success"]),
        ("sucess,error", ["M-1", "error", "success"]),
        ("success,error", ["M-1", "error", "success"]),
        ("SUCESS", ["M-1", "success"]),
        ("error", ["error"]),
        ("alert", ["warning"]),
        ("Warning", ["warning"]),
        ("pending,Alert", ["pending", "warning"]),
        ("error, all", ["M-1", "pending", "warning", "error", "success"]),
        ("error&status=pending", ["pending", "error"]),
    ],
)
def test_statuses_are_understood_in_every_spelling(day: Shelf, status: str, keys: list[str]) -> None:
    assert kept(day, f"DateAt={DAY}&status={status}") == keys


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("operation=price update", ["success"]),
        ("operation=Order creation", ["M-1"]),
        ("context=stock", ["pending", "warning"]),
        ("sku=error", ["error"]),
        ("order=M-1", ["M-1"]),
        ("sku=M-1", []),
        ("order=error", []),
        ("an=acme&_=17123", ["M-1", "pending", "warning", "error", "success"]),
    ],
)
def test_records_are_found_by_operation_context_sku_and_order(day: Shelf, query: str, keys: list[str]) -> None:
    assert kept(day, f"DateAt={DAY}&{query}") == keys


@pytest.mark.scenario("LOG-05")
def test_anothers_token_opens_nothing(endpoint: Endpoint, shelf: Shelf) -> None:
    other = endpoint.shelf()
    shelf.write("2026-01-31T00:00:00Z")
    for path in (f"/{other.token}/{shelf.store.account}/logs/", f"/{shelf.store.account}/logs/"):
        answer = shelf.get(path=path, headers={"Authorization": f"Bearer {other.token}"})
        assert answer.status_code == 403
        assert answer.json()["problems"][0]["field"] == "account"
    assert other.messages() == []
    assert len(shelf.messages()) == 1


def test_two_stores_of_one_account_see_their_own_records_only(endpoint: Endpoint, shelf: Shelf) -> None:
    twin = endpoint.shelf(shelf.store.account, "XYZ")
    shelf.write("2026-01-31T00:00:00Z", key="mine")
    twin.write("2026-01-31T00:00:00Z", key="theirs")
    assert kept(shelf, "") == ["mine"]
    assert kept(twin, "") == ["theirs"]


@pytest.mark.scenario("LOG-05")
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/nobody/acme/logs/", {}, 404),
        ("/nobody/logs/", {}, 404),
        ("/acme/logs/", {}, 404),
        ("/logs/", {}, 401),
        ("/logs/", {"Authorization": "Bearer nobody"}, 401),
        ("/acme/logs/", {"Authorization": "Bearer nobody"}, 401),
        ("/logs/", {"Authorization": "Basic bm9ib2R5Og=="}, 401),
        ("/%00/logs/", {}, 404),
        ("/elsewhere", {}, 404),
        ("/a/b/c/logs/", {}, 404),
    ],
)
def test_without_a_stores_token_there_is_nothing(shelf: Shelf, path: str, headers: dict[str, str], status: int) -> None:
    shelf.write("2026-01-31T00:00:00Z")
    answer = shelf.get(path=path, headers=headers)
    assert answer.status_code == status
    assert answer.json()["problems"][0]["fix"]
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert "nobody" not in answer.text


def test_an_old_token_and_a_removed_store_open_nothing(shelf: Shelf) -> None:
    fresh = shelf.endpoint.registry.rotate_token(shelf.store.slug, who="test")
    assert shelf.get().status_code == 404
    assert shelf.get(path=f"/{fresh}/logs/").status_code == 200
    shelf.endpoint.registry.remove(shelf.store.slug, "test", "moved")
    assert shelf.get(path=f"/{fresh}/logs/").status_code == 404


def test_nothing_can_be_written(shelf: Shelf) -> None:
    answer = requests.post(f"{shelf.endpoint.url}/{shelf.token}/logs/", json={}, timeout=10)
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]


def test_every_bad_parameter_is_told_at_once(shelf: Shelf) -> None:
    answer = shelf.get(
        "DateAt=2026-02-30&status=sucess,eror&operation=Price&context=prices&page=0&size=1001&language=fr"
        "&sku=1&order=2&statu=all"
    )
    assert answer.status_code == 400
    problems = {problem["field"]: problem for problem in answer.json()["problems"]}
    assert {"DateAt", "status", "operation", "context", "page", "size", "language", "order", "statu"} == set(problems)
    assert problems["DateAt"] == {"field": "DateAt", "value": "2026-02-30", "fix": "write a day as yyyy-mm-dd (UTC)"}
    assert problems["status"]["value"] == "eror"
    assert "Price update" in problems["operation"]["fix"]
    assert "price" in problems["context"]["fix"]
    assert "1000" in problems["size"]["fix"]
    assert "en, pt, es" in problems["language"]["fix"]


def test_pages_and_cursors_give_every_record_once(shelf: Shelf) -> None:
    for number in range(25):
        shelf.write(f"2026-01-31T0{number // 10}:00:00Z", key=str(number))  # many at the same instant
    everything = [record["id"] for record in shelf.messages("size=1000")]
    assert len(set(everything)) == 25
    first = shelf.get("size=10").json()
    assert first["Paging"] == {
        "Page": 1,
        "Size": 10,
        "Total": 25,
        "TotalIsExact": True,
        "Next": first["Paging"]["Next"],
    }
    by_number = [record["id"] for page in (1, 2, 3, 4) for record in shelf.messages(f"size=10&page={page}")]
    assert by_number == everything
    by_cursor, following = [], ""
    while following is not None:
        tree = shelf.get(f"size=10&after={following}").json()
        by_cursor += [record["id"] for record in tree["Messages"]]
        following = tree["Paging"]["Next"]
    assert by_cursor == everything


def test_a_record_that_comes_between_two_pages_doubles_none(shelf: Shelf) -> None:
    for number in range(4):
        shelf.write(f"2026-01-31T0{number}:00:00Z", key=str(number))
    first = shelf.get("size=2").json()
    shelf.write("2026-01-31T09:00:00Z", key="new")
    second = shelf.get(f"size=2&after={first['Paging']['Next']}").json()
    ids = [record["id"] for record in first["Messages"] + second["Messages"]]
    assert len(set(ids)) == 4


def test_a_hundred_records_are_a_page_when_no_size_is_given(shelf: Shelf) -> None:
    with shelf.endpoint.pool.connection() as connection:
        connection.execute(
            "insert into interactions (at, store, context, key, operation, direction, code, status) "
            "select %s::timestamptz + make_interval(secs => n), %s, 'stock', n::text, 'Inventory update', 'x', 'S1',"
            " 'success' from generate_series(1, 10500) n",
            [f"{DAY}T00:00:00Z", shelf.store.id],
        )
    tree = shelf.get().json()
    assert len(tree["Messages"]) == 100
    assert (tree["Paging"]["Total"], tree["Paging"]["TotalIsExact"]) == (10_000, False)
    assert len(shelf.messages("page=100")) == 100
    assert shelf.get("page=101").status_code == 400
    assert "Paging.Next" in shelf.get("page=101").text


@pytest.mark.scenario("LOG-08")
def test_one_record_lists_every_problem(shelf: Shelf) -> None:
    problems = (
        Problem("E1", "EAN", "123", "write 8, 12, 13 or 14 digits"),
        Problem("E1", "images", "", "add at least one image"),
        Problem("E4", "category", "12", "map it", params={"category": "Chairs", "mapping": "hub mappings import"}),
    )
    shelf.tell(Story("Catalog change", TO_MARKETPLACE, "E4", problems, params=params()), problems=problems)
    (record,) = shelf.messages(f"date={told_today(shelf)}&sku=1000")
    assert record["Status"] == "error"
    for part in ("EAN", "123", "8, 12, 13 or 14 digits", "images", "add at least one image", "Chairs"):
        assert part in record["BusinessMessage"]


@pytest.mark.scenario("LOG-09", "PRV-02")
def test_people_and_secrets_are_masked_before_they_are_kept(shelf: Shelf) -> None:
    story = Story(
        "Order creation",
        "Marketplace to VTEX",
        "O.N",
        (Problem("O.N", "buyer.phone", "+5511988887777", "ana@example.com must write 11 digits"),),
        source={"buyer": {"name": "Ana Souza", "email": "ana@example.com", "document": "123.456.789-09"}},
        translated={"clientProfileData": {"firstName": "Ana"}, "authToken": "sesame-sesame", "items": [{"id": "1"}]},
        destination='{"error":"Bearer sesame-sesame refused for 12345678909"}',
        params={"order": "114-3941689-8772232", "errors": "ana@example.com is unknown"},
    )
    shelf.tell(story, context="order", key="114-3941689-8772232")
    (record,) = shelf.messages(f"date={told_today(shelf)}&order=114-3941689-8772232")
    with shelf.endpoint.pool.connection() as connection:
        stored = str(
            connection.execute("select to_json(i) from interactions i where store = %s", [shelf.store.id]).fetchone()[0]
        )
    for text in (json.dumps(record, ensure_ascii=False), stored):
        for particular in ("Ana", "ana@", "8888", "456.789", "12345678909", "sesame"):
            assert particular not in text
    assert "114-3941689-8772232" in record["BusinessMessage"]
    assert json.loads(record["ContentTranslated"])["items"] == [{"id": "1"}]
    assert record["ContentTransalted"] == record["ContentTranslated"]
    assert json.loads(record["ContentDestination"])["error"].startswith("***")


@pytest.mark.scenario("LOG-12")
@pytest.mark.parametrize(
    ("query", "header", "word"),
    [
        ("", None, "is on Sandbox"),
        ("language=en", None, "is on Sandbox"),
        ("language=pt", None, "está no Sandbox"),
        ("language=pt-BR", None, "está no Sandbox"),
        ("language=ES", None, "está en Sandbox"),
        ("", "pt-BR,pt;q=0.9,en;q=0.8", "está no Sandbox"),
        ("", "fr, es;q=0.5, en;q=0.4", "está en Sandbox"),
        ("", "fr", "is on Sandbox"),
        ("", ";;q=x,,*", "is on Sandbox"),
        ("language=es", "pt", "está en Sandbox"),
    ],
)
def test_the_message_is_in_the_readers_language(shelf: Shelf, query: str, header: str | None, word: str) -> None:
    shelf.write("2026-01-31T00:00:00Z", params=psycopg.types.json.Jsonb(dict(params())))
    (record,) = shelf.messages(query, headers={"Accept-Language": header})
    assert word in record["BusinessMessage"]
    assert "https://m.example/R1" in record["BusinessMessage"]


def test_a_code_that_left_the_catalogue_is_shown_as_it_is(shelf: Shelf) -> None:
    shelf.write("2026-01-31T00:00:00Z", code="OLD")
    assert [record["BusinessMessage"] for record in shelf.messages()] == ["OLD"]


def test_errors_are_found_without_reading_the_successes_of_the_day(shelf: Shelf) -> None:
    with shelf.endpoint.pool.connection() as connection, connection.transaction():
        connection.execute("set local enable_seqscan = off")
        connection.execute("set local enable_bitmapscan = off")
        plan = "\n".join(
            row[0]
            for row in connection.execute(
                "explain select id from interactions where store = 1 and at >= '2026-01-31' and at < '2026-02-01' and"
                " status = any('{error}'::text[]) and status <> 'success' order by at desc, id limit 101"
            )
        )
        partial = connection.execute(
            "select indexrelid::regclass::text from pg_index where indpred is not null"
            " and indrelid in (select inhrelid from pg_inherits where inhparent = 'interactions'::regclass)"
        ).fetchall()
    assert any(name in plan for (name,) in partial), plan
