"""Dead letters, gates, orders and the ledger on an installation without processes."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg_pool import ConnectionPool

from hub import db
from hub.ledger import Ledger
from hub.stores import Registry, SecretBox, Store
from tasks.replay import work_off
from tests.cli.conftest import Hub, keyboard


@pytest.fixture
def pool(env: dict[str, str]) -> Iterator[ConnectionPool[psycopg.Connection[Any]]]:
    with closing(db.open_pool(env["DATABASE_URL"], "hub", name="test")) as opened:
        yield opened


@pytest.fixture
def store(pool: ConnectionPool[psycopg.Connection[Any]], env: dict[str, str]) -> Store:
    registry = Registry(pool, SecretBox([env["HUB_KEY"]]))
    found, _ = registry.add(
        slug="acme-mkt", account="acme", affiliate="MKT", sales_channel=1, marketplace="sandbox-sync", who="test"
    )
    return found


@pytest.fixture
def dead(pool: ConnectionPool[psycopg.Connection[Any]], store: Store) -> None:
    """Two dead prices and one dead stock, an hour old."""
    with pool.connection() as connection:
        for context, key, code in (("price", "1", "E2"), ("price", "2", "E3"), ("stock", "1", "E2")):
            connection.execute(
                "insert into states (store, context, key, work, asked, answered, attempts, status, code, due_at,"
                " answered_at) values (%s, %s, %s, 's', 1, 1, 11, 'dead', %s, now() + interval '1 hour',"
                " now() - interval '1 hour')",
                (store.id, context, key, code),
            )
            connection.execute(
                "insert into answers (store, context, key, why) values (%s, %s, %s, 'no answer within 15 s')",
                (store.id, context, key),
            )


def keys(said: Any) -> list[str]:
    return [f"{row['context']} {row['key']}" for row in said.json["dead_letters"]]


@pytest.mark.usefixtures("dead")
def test_dead_letters_are_listed_by_every_filter_and_page_by_page(hub: Hub) -> None:
    assert keys(hub("dead-letters", "list", "--json")) == ["price 1", "price 2", "stock 1"]
    assert keys(hub("dead-letters", "list", "--code", "E2", "--json")) == ["price 1", "stock 1"]
    assert keys(hub("dead-letters", "list", "--store", "acme-mkt", "--context", "stock", "--json")) == ["stock 1"]
    assert keys(hub("dead-letters", "list", "--key", "2", "--json")) == ["price 2"]
    assert keys(hub("dead-letters", "list", "--since", "30m", "--json")) == []
    assert len(keys(hub("dead-letters", "list", "--since", "2h", "--until", "30m", "--json"))) == 3
    page = hub("dead-letters", "list", "--limit", "2", "--json")
    assert "--after acme-mkt/price/2" in page.talk
    assert keys(hub("dead-letters", "list", "--after", "acme-mkt/price/2", "--json")) == ["stock 1"]
    text = hub("dead-letters", "list").out
    assert "no answer within 15 s" in text
    assert text.splitlines()[0].startswith("store\tcontext\tkey")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["list", "--since", "soon"], 2, "--since is 'soon': write an age such as 24h"),
        (["list", "--code", "E22"], 2, "--code is 'E22': is no code; did you mean 'E2'?"),
        (["list", "--context", "prise"], 2, "--context is 'prise': is no context; did you mean 'price'?"),
        (["list", "--store", "acme-mtk"], 3, "store is 'acme-mtk': is no store; did you mean 'acme-mkt'?"),
        (["list", "--after", "nobody/price/1"], 2, "--after is 'nobody/price/1': write STORE/CONTEXT/KEY"),
        (["replay", "--yes"], 2, "--reason: is missing; say why, for the audit"),
        (["discard", "--yes"], 2, "--reason: is missing; say why, for the audit"),
        (["replay", "--reason", "x", "--max", "2", "--yes"], 2, "--max is '2': 3 match; narrow the filter"),
        (["replay", "--reason", "x"], 2, "--yes: is needed where nobody can be asked"),
        (["replay", "--reason", "x", "--yes", "--key", "77"], 3, "nothing that is dead matches"),
        (["cancel"], 3, "no replay is running"),
        (["watch"], 3, "nothing was replayed yet"),
    ],
)
@pytest.mark.usefixtures("dead")
def test_what_cannot_be_done_is_told_in_one_sentence_and_changes_nothing(
    hub: Hub, words: list[str], code: int, sentence: str
) -> None:
    said = hub("dead-letters", *words, code=code)
    assert said.lines[-1].startswith(sentence)
    assert said.out == ""
    assert len(keys(hub("dead-letters", "list", "--json"))) == 3


@pytest.mark.usefixtures("dead")
def test_a_replay_is_foreseen_started_once_followed_and_ends_in_numbers(
    hub: Hub, pool: ConnectionPool[psycopg.Connection[Any]], store: Store
) -> None:
    plan = hub("dead-letters", "plan", "--rate", "2", "--json").json
    assert (plan["matched"], plan["by_context"], plan["seconds"]) == (3, {"price": 2, "stock": 1}, 1.5)
    assert hub("dead-letters", "replay", "--dry-run", "--json").json["matched"] == 3
    began = hub("dead-letters", "replay", "--reason", "it is back", "--yes", "--no-follow", "--rate", "100", "--json")
    assert (began.json["state"], began.json["pending"]) == ("running", 3)
    again = hub("dead-letters", "replay", "--reason", "twice", "--yes", "--no-follow", code=5)
    assert "running already" in again.talk

    work_off(pool, Ledger(pool), None, {store.id: store.slug})
    with pool.connection() as connection:  # two of them become well, one dies again
        connection.execute("update states set work = 'i', status = 'done', answered = asked where code = 'E2'")
        connection.execute("update states set work = 's', status = 'dead', answered = asked where code = 'E3'")
    ended = hub("dead-letters", "watch", "--json", code=1).json
    assert (ended["replayed"], ended["ok"], ended["failed"], ended["pending"]) == (3, 2, 1, 0)
    with pool.connection() as connection:
        (why,) = connection.execute("select why from runs where kind = 'replay'").fetchall()
    assert why == ("it is back",)


@pytest.mark.usefixtures("dead")
def test_a_replay_can_be_cancelled_and_letters_can_be_given_up(
    hub: Hub, pool: ConnectionPool[psycopg.Connection[Any]]
) -> None:
    hub("dead-letters", "replay", "--reason", "x", "--yes", "--no-follow", "--rate", "0.01")
    assert hub("dead-letters", "cancel", "--dry-run", "--json").json["cancelled"] is False
    hub("dead-letters", "cancel")
    assert hub("dead-letters", "discard", "--code", "E3", "--dry-run", "--json").json["matched"] == 1
    assert hub("dead-letters", "discard", "--code", "E3", "--reason", "sold out", "--yes", "--json").json == {
        "schema_version": 1,
        "matched": 1,
        "discarded": 1,
        "anew": 0,
        "trying": 0,
    }
    assert keys(hub("dead-letters", "list", "--json")) == ["price 1", "stock 1"]
    with pool.connection() as connection:
        connection.execute("update states set asked = asked + 1, work = 's' where context = 'price' and key = '1'")
        connection.execute("update states set work = 'h' where context = 'stock' and key = '1'")
    said = hub("dead-letters", "discard", "--reason", "healed", "--yes").out
    assert said.strip() == (
        "discarded 1; of them asked for or due since the last try, and starting anew: 1;"
        " being tried right now, and left alone: 1"
    )


@pytest.mark.usefixtures("dead")
def test_queues_count_what_is_dead_and_what_waits(
    hub: Hub, pool: ConnectionPool[psycopg.Connection[Any]], store: Store
) -> None:
    with pool.connection() as connection:
        connection.execute(
            "insert into states (store, context, key, work, asked, pending_since) values"
            " (%s, 'price', '9', 'p', 1, now() - interval '90 seconds')",
            (store.id,),
        )
    rows = {row["context"]: row for row in hub("queues", "--json").json["queues"]}
    assert (rows["price"]["dead"], rows["price"]["pending"], rows["stock"]["dead"]) == (2, 1, 1)
    assert rows["price"]["oldest"] >= 90
    assert re.search(r"\t1m[3-5]\ds\t", hub("queues").out), "a minute and a half, and what the test itself took"


def test_the_ledger_check_finds_a_law_that_does_not_hold(
    hub: Hub, pool: ConnectionPool[psycopg.Connection[Any]], store: Store
) -> None:
    assert all(law["holds"] for law in hub("ledger", "check", "--recount", "--json").json["laws"])
    with pool.connection() as connection:
        connection.execute("insert into states (store, context, key, asked) values (%s, 'price', '1', 1)", (store.id,))
    broken = [law for law in hub("ledger", "check", "--recount", "--json", code=1).json["laws"] if not law["holds"]]
    assert broken


def test_orders_are_shown_without_anything_personal(
    hub: Hub, pool: ConnectionPool[psycopg.Connection[Any]], store: Store, env: dict[str, str]
) -> None:
    problem = [{"code": "O.N", "field": "item 1", "value": "77", "fix": "map the SKU", "params": {}}]
    sealed = SecretBox([env["HUB_KEY"]]).seal(b'{"buyer": "Maria da Silva"}')
    with pool.connection() as connection:
        for number, state in (("MK-1", "approved"), ("MK-2", "failed")):
            connection.execute(
                "insert into orders (store, order_id, state, vtex_order_id, total, problems, body)"
                " values (%s, %s, %s, %s, 12345, %s, %s)",
                (store.id, number, state, f"MKT-{number}", json.dumps(problem if state == "failed" else []), sealed),
            )
    rows = hub("orders", "list", "acme-mkt", "--json").json["orders"]
    assert [(row["order"], row["state"], row["total"]) for row in rows] == [
        ("MK-1", "approved", 12345),
        ("MK-2", "failed", 12345),
    ]
    assert "total (cents)" in hub("orders", "list", "acme-mkt").out.splitlines()[0].split("\t")
    assert len(hub("orders", "list", "acme-mkt", "--state", "failed", "--json").json["orders"]) == 1
    shown = hub("orders", "show", "acme-mkt", "MKT-MK-2")
    assert "map the SKU" in shown.out
    assert "Maria" not in shown.out + shown.talk
    hub("orders", "show", "acme-mkt", "MK-9", code=3)
    assert "did you mean 'failed'" in hub("orders", "list", "acme-mkt", "--state", "faild", code=2).talk


def test_a_gate_needs_a_reason_and_a_context_that_exists(hub: Hub, store: Store) -> None:
    assert "--reason" in hub("gates", "shut", "acme-mkt", "--context", "price", code=2).talk
    wrong = hub("gates", "shut", "acme-mkt", "--context", "prices", "--reason", "x", code=2)
    assert "did you mean 'price'" in wrong.talk
    assert "hub store pause" in hub("gates", "shut", "acme-mkt", "--context", "*", "--reason", "x", code=2).talk
    hub("gates", "shut", "acme-mkt", "--context", "price", "--reason", "x", "--minutes", "5")
    (gate,) = hub("gates", "list", "--json").json["gates"]
    assert 290 < gate["reopens_in"] <= 300


def test_a_token_is_rotated_only_when_somebody_agrees(hub: Hub, store: Store) -> None:
    before = hub("store", "show", "acme-mkt", "--json").json["store"]["url"]
    hub("store", "rotate-token", "acme-mkt", code=2)
    assert hub("store", "show", "acme-mkt", "--json").json["store"]["url"] == before
    after = hub("store", "rotate-token", "acme-mkt", "--yes", "--json").json["url"]
    assert after != before
    assert hub("store", "show", "acme-mkt", "--json").json["store"]["url"] == after
    assert [row["store"] for row in hub("store", "list", "--json").json["stores"]] == ["acme-mkt"]


def test_settings_of_a_store_are_replaced_as_a_whole_and_shown_first(hub: Hub, store: Store) -> None:
    wanted = json.dumps({"pricing": {"markup": "10"}, "look_again": [5]})
    foreseen = hub("store", "configure", "acme-mkt", "-", "--dry-run", stdin=wanted)
    assert "look_again: [60.0, 300.0] → [5.0]" in foreseen.out
    assert hub("store", "show", "acme-mkt", "--json").json["store"]["settings"]["pricing"]["markup"] == "0"
    assert hub("store", "configure", "acme-mkt", "-", "--json", stdin=wanted).json["changed"] is True
    assert hub("store", "show", "acme-mkt", "--json").json["store"]["settings"]["pricing"]["markup"] == "10"
    assert hub("store", "configure", "acme-mkt", "-", stdin=wanted).out == "acme-mkt: nothing differs\n"
    wrong = hub("store", "configure", "acme-mkt", "-", stdin='{"markup": 1, "order_policy": "lax"}', code=2)
    assert len(wrong.lines) == 2


def test_a_wrong_key_is_to_be_replaced_before_anything_is_entered_under_it(
    hub: Hub, store: Store, env: dict[str, str]
) -> None:
    secrets = json.dumps({"vtex": {"app_key": "k", "app_token": "t"}, "marketplace": {"token": "x"}})
    hub("store", "credentials", store.slug, "--no-check", stdin=secrets)
    other = keyboard({**env, "HUB_KEY": Fernet.generate_key().decode()})

    def look() -> dict[str, str]:
        told = other("doctor", "--no-stores", "--json", code=1).json
        return next(look for look in told["checks"] if look["what"] == f"store {store.slug}")

    advice = look()["do"]
    assert advice.startswith("give the right key; only if it is lost: ")
    # The key is lost: what is advised then works.
    assert advice.endswith("hub store rotate-token acme-mkt, then hub store credentials acme-mkt")
    other("store", "rotate-token", store.slug, "--yes")
    other("store", "credentials", store.slug, "--no-check", stdin=secrets)
    assert "none of the keys opens" not in look()["found"]
