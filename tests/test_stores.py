"""The registry of stores and its secrets, on a real PostgreSQL."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from hub import db
from hub.errors import BadInput
from hub.links import Links
from hub.ports import Limit
from hub.rules import InventoryRules, PricingRules
from hub.settings import Settings
from hub.stores import Registry, SecretBox, Store, StoreSettings, parse_settings, token_digest

KEY = Fernet.generate_key().decode()
SECRETS = {"key": "vtexappkey-acme", "token": "very-secret"}


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool[psycopg.Connection]]:
    with closing(db.open_pool(database, "hub", name="test")) as opened:
        yield opened


@pytest.fixture
def registry(pool: ConnectionPool[psycopg.Connection]) -> Registry:
    return Registry(pool, SecretBox([KEY]))


def added(registry: Registry, slug: str = "acme-mkt", **changes: Any) -> tuple[Store, str]:
    wanted = {"account": "acme", "affiliate": "MKT", "sales_channel": 2, "marketplace": "sandbox-sync", "who": "ana"}
    return registry.add(slug=slug, **(wanted | changes))


def told(refused: pytest.ExceptionInfo[BadInput]) -> list[str]:
    return [problem.sentence() for problem in refused.value.problems]


def rows(pool: ConnectionPool[psycopg.Connection], query: str) -> list[tuple[Any, ...]]:
    with pool.connection() as connection:
        return connection.execute(query.encode()).fetchall()


# ---------------------------------------------------------------- stores


def test_a_store_is_found_by_name_and_by_its_token(registry: Registry) -> None:
    store, token = added(registry)
    assert registry.get("acme-mkt") == store
    assert registry.all() == [store]
    assert registry.find_by_token_digest(token_digest(token)) == store
    assert registry.find_by_token_digest(token_digest("guess")) is None
    assert {digest: door.store for digest, door in registry.doors().items()} == {token_digest(token): store.id}
    assert registry.token(store.id) == token
    assert len(token) >= 32
    assert store.vtex_url == "https://acme.vtexcommercestable.com.br"


def test_account_and_affiliate_are_taken_as_people_write_them(registry: Registry) -> None:
    store, _ = added(registry, account=" Acme.myvtex.com", affiliate="mkt")
    assert (store.account, store.affiliate) == ("acme", "MKT")


def test_everything_wrong_with_a_new_store_is_told_at_once(registry: Registry) -> None:
    with pytest.raises(BadInput) as refused:
        added(
            registry,
            "Acme Mkt",
            account="",
            affiliate="ABC",
            sales_channel=0,
            marketplace="sandbox-sinc",
            marketplaces=["sandbox-sync", "sandbox-lot"],
            settings={"pricin": {}, "pricing": {"markpu": 1}, "vtex_url": "vtex", "order_policy": "lax"},
        )
    problems = told(refused)
    assert [problem.partition(" is ")[0].partition(":")[0] for problem in problems] == [
        "slug",
        "account",
        "affiliate",
        "sales_channel",
        "marketplace",
        "settings.vtex_url",
        "settings.pricing.markpu",
        "settings.order_policy",
        "settings.pricin",
    ]
    assert "did you mean 'sandbox-sync'?" in problems[4]
    assert "did you mean 'markup'?" in problems[6]
    assert "did you mean 'pricing'?" in problems[8]
    assert registry.all() == []


def test_names_and_affiliates_belong_to_one_store(registry: Registry) -> None:
    added(registry)
    with pytest.raises(BadInput, match="slug is 'acme-mkt': exists already; choose another"):
        added(registry, affiliate="NTH")
    with pytest.raises(BadInput, match="affiliate is 'MKT': already belongs to store acme-mkt of account acme"):
        added(registry, "acme-two")
    added(registry, "other-mkt", account="other")


def test_of_people_who_add_the_same_store_together_one_succeeds(registry: Registry) -> None:
    outcomes: list[str] = []

    def add() -> None:
        try:
            added(registry)
            outcomes.append("added")
        except BadInput as refused:
            outcomes.append(refused.problems[0].fix)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["added", *["exists already; choose another"] * 3]


def test_an_unknown_name_is_answered_with_the_likely_one(registry: Registry) -> None:
    with pytest.raises(BadInput, match="store is 'acme': is no store; there is none yet"):
        registry.get("acme")
    added(registry)
    with pytest.raises(BadInput, match="store is 'acme-mtk': is no store; did you mean 'acme-mkt'"):
        registry.get("acme-mtk")


def test_every_change_moves_the_version(registry: Registry) -> None:
    seen = [registry.version()]
    store, _ = added(registry)
    for change in (
        lambda: None,
        lambda: registry.configure("acme-mkt", {"poll_orders_seconds": 5}, who="ana"),
        lambda: registry.pause("acme-mkt", "ana", "holiday"),
        lambda: registry.resume("acme-mkt", "ana"),
        lambda: registry.rotate_token("acme-mkt", "ana"),
        lambda: registry.save_credentials(store.id, "vtex", SECRETS),
        lambda: registry.remove("acme-mkt", "ana", "closed"),
    ):
        change()
        seen.append(registry.version())
    assert seen == sorted(set(seen))


def test_looking_changes_no_version(registry: Registry) -> None:
    added(registry)
    before = registry.version()
    registry.get("acme-mkt")
    registry.all()
    assert registry.version() == before


def test_a_paused_store_has_a_gate_that_names_who_and_why(
    registry: Registry, pool: ConnectionPool[psycopg.Connection]
) -> None:
    store, _ = added(registry)
    gates = "select store, context, side, cause, who, why from gates"
    assert registry.pause("acme-mkt", "ana", "stock-taking").status == "paused"
    assert rows(pool, gates) == [(store.id, "*", "operator", "operator", "ana", "stock-taking")]
    registry.pause("acme-mkt", "bob", "longer")
    assert rows(pool, gates) == [(store.id, "*", "operator", "operator", "bob", "longer")]
    assert registry.resume("acme-mkt", "bob").status == "active"
    assert rows(pool, gates) == []


def test_a_removed_store_is_gone_with_its_secrets_and_its_url_but_its_gate_stays_shut(
    registry: Registry, pool: ConnectionPool[psycopg.Connection]
) -> None:
    store, token = added(registry, credentials={"vtex": SECRETS})
    assert registry.remove("acme-mkt", "ana", "closed").status == "removed"
    assert registry.all() == []
    assert registry.find_by_token_digest(token_digest(token)) is None
    assert registry.token(store.id) == ""
    assert registry.credentials(store.id, "vtex").version == 0
    assert rows(pool, "select why from gates") == [("removed: closed",)]
    with pytest.raises(BadInput, match="was removed"):
        registry.get("acme-mkt")
    with pytest.raises(BadInput, match="was removed, and names are not given out again"):
        added(registry)
    added(registry, "acme-new")  # its affiliate is free again


def test_a_rotated_token_replaces_the_old_one(registry: Registry) -> None:
    store, old = added(registry)
    new = registry.rotate_token("acme-mkt", "ana", "leaked")
    assert registry.find_by_token_digest(token_digest(old)) is None
    assert registry.find_by_token_digest(token_digest(new)) == store
    assert registry.token(store.id) == new


def test_what_people_did_is_in_the_audit_without_secrets(
    registry: Registry, pool: ConnectionPool[psycopg.Connection]
) -> None:
    store, token = added(registry, credentials={"vtex": SECRETS}, why="first store")
    registry.save_credentials(store.id, "marketplace", {"token": "very-secret-too"}, who="bob")
    new = registry.rotate_token("acme-mkt", "ana", "leaked")
    registry.pause("acme-mkt", "ana", "holiday")
    audit = rows(pool, "select who, action, detail from audit order by id")
    assert [(who, action) for who, action, _ in audit] == [
        ("ana", "store add"),
        ("bob", "credentials save"),
        ("ana", "store rotate-token"),
        ("ana", "store pause"),
    ]
    assert audit[1][2] == {"side": "marketplace", "version": 1, "names": ["token"]}
    text = json.dumps([detail for _, _, detail in audit])
    assert not any(secret in text for secret in (token, new, "very-secret", "vtexappkey"))


# ---------------------------------------------------------------- settings


def test_settings_come_back_as_they_were_given(registry: Registry) -> None:
    given = {
        "vtex_url": "http://127.0.0.1:7001/",
        "marketplace_url": "http://127.0.0.1:7002",
        "pricing": {"markup": "20", "commission": 15, "rounding": ".90", "minimum": 1000},
        "inventory": {"safety": 2, "percentage": "50.5"},
        "defaults": {"brand": "Acme", "attributes.color": "Preto"},
        "look_again": [0.5, 1],
        "vtex_limit": {"rate": 5},
        "order_policy": "advisory",
    }
    added(registry, settings=given)
    store = registry.get("acme-mkt")
    assert store.vtex_url == "http://127.0.0.1:7001"
    assert store.settings.pricing == PricingRules(
        markup=Decimal(20), commission=Decimal(15), rounding=".90", minimum=1000
    )
    assert store.settings.inventory == InventoryRules(safety=2, percentage=Decimal("50.5"))
    assert store.settings.vtex_limit == Limit(rate=5.0, burst=1)
    rules = store.settings.rules
    assert rules.listing.defaults == {"brand": "Acme", "attributes.color": "Preto"}
    assert rules.look_again == (0.5, 1.0)
    assert (rules.pricing, rules.inventory) == (store.settings.pricing, store.settings.inventory)
    assert registry.configure("acme-mkt", {}, who="ana").settings == StoreSettings()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"pricing": {"markup": -1}}, "settings.pricing.markup is '-1': write a percentage from 0 to 1000"),
        ({"pricing": {"markup": "1e999"}}, "settings.pricing.markup is '1e999': write a percentage from 0 to 1000"),
        ({"pricing": {"markup": 10**30}}, f"settings.pricing.markup is '{10**30}': write a percentage from 0 to"),
        ({"pricing": {"markup": "0." + "1" * 25}}, "write at most 24 decimal places"),
        ({"pricing": {"commission": 1e20}}, "settings.pricing.commission is '1e+20': write a percentage from 0 to"),
        (
            {"pricing": {"commission": 100, "commission_method": "gross_up"}},
            "settings.pricing.commission_method is 'gross_up': needs a `commission` of at most 99",
        ),
        ({"pricing": {"conversion": 0}}, "pricing.conversion is '0': write a factor from 0.000001 to 1000000"),
        ({"pricing": {"conversion": "1e-999"}}, "pricing.conversion is '1e-999': write a factor from 0.000001 to"),
        ({"pricing": {"conversion": "1e999"}}, "pricing.conversion is '1e999': write a factor from 0.000001 to"),
        ({"pricing": {"minimum": -1}}, "pricing.minimum is '-1': write cents from 0 to 1000000000000"),
        ({"pricing": {"maximum": 10**20 - 1}}, "write cents from 0 to 1000000000000"),
        ({"pricing": {"minimum": 2, "maximum": 1}}, "pricing.maximum is '1': write at least `minimum` (2)"),
        ({"pricing": {"minimum": 1.5}}, "settings.pricing.minimum is '1.5'"),
        (
            {"pricing": {"rounding": ".95"}},
            "settings.pricing.rounding is '.95': write 'none', 'nearest', '.90' or '.99'",
        ),
        ({"inventory": {"percentage": 101}}, "inventory.percentage is '101': write a percentage from 0 to 100"),
        ({"inventory": {"safety": -1}}, "inventory.safety is '-1': write pieces from 0 to 2147483647"),
        ({"inventory": {"cap": 10**20}}, "write pieces from 0 to 2147483647"),
        ({"order_waits": []}, "settings.order_waits is '[]': write at least 1 item, not 0"),
        ({"look_again": [1.0] * 11}, "settings.look_again: write at most 10 items, not 11"),
        ({"look_again": [0]}, "settings.look_again.0 is '0': write a number greater than 0"),
        ({"vtex_limit": {"rate": 0}}, "vtex_limit.rate is '0': write calls per second from 0.000001 to 100000"),
        ({"vtex_limit": {"rate": 1, "burst": 0}}, "vtex_limit.burst is '0': write calls from 1 to 100000"),
        ({"vtex_limit": {"rates": 1}}, "settings.vtex_limit.rates is '1': unknown key; did you mean 'rate'?"),
        ({"hub_url": "https://user:pw@host"}, "write an http(s) URL with a host, without user, password and query"),
        ({"defaults": {"brand": 1}}, "settings.defaults.brand is '1': write a valid string"),
        ({"simulation": "fulfilment"}, "settings.simulation is 'fulfilment': write 'fulfillment' or 'checkout'"),
    ],
)
def test_each_implausible_setting_is_told(tree: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_settings(tree)
    assert any(expected in problem for problem in told(refused)), told(refused)


def test_no_implausible_setting_hides_another() -> None:
    with pytest.raises(BadInput) as refused:
        parse_settings(
            {
                "pricing": {"markup": "1e999", "commission": -1, "conversion": "x", "minimum": 9, "maximum": 8},
                "inventory": {"percentage": -1, "cap": -1},
                "order_policy": "lax",
                "marketplace_limit": {"rate": -1, "burst": 0},
            }
        )
    assert [problem.field for problem in refused.value.problems] == [
        "settings.pricing.markup",
        "settings.pricing.commission",
        "settings.pricing.conversion",
        "settings.pricing.maximum",
        "settings.inventory.percentage",
        "settings.inventory.cap",
        "settings.order_policy",
        "settings.marketplace_limit.rate",
        "settings.marketplace_limit.burst",
    ]


@pytest.mark.parametrize(
    "tree",
    [
        {"pricing": {"markup": 1000, "commission": 1000, "conversion": 1e6, "minimum": 10**12, "maximum": 10**12}},
        {"pricing": {"commission": 99, "commission_method": "gross_up", "conversion": 1.2345678901234567e-06}},
        {"pricing": {"markup": 100 / 3, "conversion": 1 / 7000, "maximum": None}},
        {"inventory": {"percentage": 0, "safety": 2**31 - 1, "cap": 2**31 - 1, "minimum": 2**31 - 1}},
        {"vtex_limit": {"rate": 1e-6, "burst": 100_000}, "marketplace_limit": {"rate": 100_000}},
    ],
)
def test_what_stands_on_a_bound_or_was_written_by_a_program_is_taken(tree: dict[str, Any]) -> None:
    chosen = json.loads(parse_settings(tree).model_dump_json(exclude_defaults=True))
    assert parse_settings(chosen) == parse_settings(tree)


@pytest.mark.parametrize("depth", [250, 100_000])
def test_settings_nested_too_deeply_are_refused(depth: int) -> None:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    with pytest.raises(BadInput) as refused:
        parse_settings({"look_again": deep})
    (problem,) = refused.value.problems
    assert (problem.field, problem.fix) == ("settings", "is nested too deeply")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:p4ssw0rd@x:8080/?q=topsecret", "http://x:8080/…"),
        ("https://x/topsecret?q=topsecret", "https://x/…"),
        ("http://u:p4ssw0rd", ""),
        ("http://p4ssw0rd/topsecret@x", ""),
        ("u:p4ssw0rd@x/?q=topsecret", ""),
        ("http://[p4ssw0rd", ""),
    ],
)
def test_a_refused_url_is_told_without_what_may_be_secret_in_it(url: str, shown: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_settings({"marketplace_url": url})
    (problem,) = refused.value.problems
    assert problem.value == shown
    assert not any(secret in problem.sentence() for secret in ("p4ssw0rd", "topsecret"))


def made_wild(pool: ConnectionPool[psycopg.Connection], slug: str) -> None:
    """What a version with wider bounds has kept of a store."""
    with pool.connection() as connection:
        connection.execute(
            "update stores set settings = %s where slug = %s",
            [Jsonb({"pricing": {"markup": "1e999"}, "poll_orders_seconds": 5.0, "of_tomorrow": 1}), slug],
        )


def test_a_store_kept_with_wilder_settings_says_so_and_can_be_set_right(
    registry: Registry, pool: ConnectionPool[psycopg.Connection]
) -> None:
    _, token = added(registry)
    good, _ = added(registry, "other-mkt", account="other")
    made_wild(pool, "acme-mkt")
    wild, same = registry.all()
    assert [fault.sentence() for fault in wild.faults] == [
        "acme-mkt settings.pricing.markup is '1e999': write a percentage from 0 to 1000"
    ]
    assert (wild.settings.pricing, wild.settings.poll_orders_seconds) == (PricingRules(), 5.0)
    assert same == good
    assert registry.find_by_token_digest(token_digest(token)) == registry.get("acme-mkt") == wild
    assert token_digest(token) in registry.doors()
    registry.pause("acme-mkt", "ana", "its prices")
    assert registry.configure("acme-mkt", {"pricing": {"markup": 20}}, who="ana").faults == ()


def test_nobody_works_by_wilder_settings_and_no_other_store_is_kept_from_working(
    registry: Registry, pool: ConnectionPool[psycopg.Connection], database: str, redis_url: tuple[str, str]
) -> None:
    there = {"marketplace_url": "http://127.0.0.1:1"}
    added(registry)
    added(registry, "other-mkt", account="other", settings=there)
    made_wild(pool, "acme-mkt")
    env = {"DATABASE_URL": database, "REDIS_URL": redis_url[0], "HUB_PREFIX": redis_url[1]}
    links = Links(Settings.load(env=env), pool, SecretBox([KEY]))
    links.refresh()
    assert links.get("other-mkt") is not None
    with pytest.raises(BadInput, match="markup is '1e999': write a percentage"):
        links.get("acme-mkt")
    registry.configure("acme-mkt", there, who="ana")
    links.refresh()
    assert links.get("acme-mkt") is not None


# ---------------------------------------------------------------- secrets


def test_credentials_are_sealed_in_the_database_and_newer_ones_replace_older(
    registry: Registry, pool: ConnectionPool[psycopg.Connection]
) -> None:
    store, _ = added(registry, credentials={"vtex": SECRETS})
    first = registry.credentials(store.id, "vtex")
    assert (first.version, dict(first.values)) == (1, SECRETS)
    assert registry.save_credentials(store.id, "vtex", {"token": "newer"}) == 2
    newest = registry.credentials(store.id, "vtex")
    assert (newest.version, dict(newest.values)) == (2, {"token": "newer"})
    assert "newer" not in repr(newest)
    kept = rows(pool, "select version, secret from credentials where side = 'vtex'")
    assert [version for version, _ in kept] == [2]
    assert b"newer" not in bytes(kept[0][1])


def test_newer_credentials_open_the_gate_that_older_ones_shut_and_no_other(
    registry: Registry, pool: ConnectionPool[psycopg.Connection]
) -> None:
    store, _ = added(registry, credentials={"vtex": SECRETS, "marketplace": SECRETS})
    registry.pause("acme-mkt", "ana", "holiday")
    with pool.connection() as connection:
        connection.execute(
            "insert into gates (store, context, side, cause, who, why, version) values "
            "(%(s)s, '*', 'vtex', 'credentials', 'hub', '401', 1), (%(s)s, 'price', 'vtex', 'quota', 'hub', '429', 0), "
            "(%(s)s, '*', 'marketplace', 'credentials', 'hub', '401', 1), "
            "(%(s)s, 'order', 'vtex', 'credentials', 'hub', '403', 2)",
            {"s": store.id},
        )
    registry.save_credentials(store.id, "vtex", {"token": "newer"})
    assert rows(pool, "select context, side from gates order by 1, 2") == [
        ("*", "marketplace"),
        ("*", "operator"),
        ("order", "vtex"),  # shut by the same version that was saved
        ("price", "vtex"),
    ]


def test_processes_that_save_credentials_together_get_versions_of_their_own(registry: Registry) -> None:
    store, _ = added(registry)
    versions: list[int] = []
    threads = [
        threading.Thread(target=lambda: versions.append(registry.save_credentials(store.id, "vtex", SECRETS)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(versions) == [1, 2, 3, 4]


def test_the_first_key_seals_and_every_key_opens() -> None:
    older, newer = KEY, Fernet.generate_key().decode()
    sealed = SecretBox([older]).seal(b"secret")
    both = SecretBox([newer, older])
    assert both.open(sealed) == b"secret"
    assert SecretBox([newer]).open(both.seal(b"secret")) == b"secret"
    with pytest.raises(BadInput, match="none of the keys opens what is stored"):
        SecretBox([newer]).open(sealed)


@pytest.mark.parametrize("separator", [",", "\n", ", ", "\r\n"])
def test_keys_come_from_the_environment(separator: str) -> None:
    keys = separator.join([Fernet.generate_key().decode(), KEY])
    assert SecretBox.from_env({"HUB_KEY": keys}).open(SecretBox([KEY]).seal(b"x")) == b"x"


def test_a_key_file_is_made_only_when_asked_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "hub.key"
    with pytest.raises(BadInput, match="cannot be read"):
        SecretBox.from_env({"HUB_KEY_FILE": str(path)})
    assert not path.exists()
    notice = SecretBox.create_file(path)
    assert str(path) in notice
    assert "keep a copy" in notice
    assert path.read_text().strip() not in notice
    assert path.stat().st_mode & 0o777 == 0o600
    assert (
        SecretBox.from_env({"HUB_KEY_FILE": str(path)}).open(SecretBox([path.read_text().strip()]).seal(b"x")) == b"x"
    )
    with pytest.raises(BadInput, match="exists already and is never replaced"):
        SecretBox.create_file(path)
    with pytest.raises(BadInput, match="cannot be written"):
        SecretBox.create_file(tmp_path / "none" / "hub.key")


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.key"
    SecretBox.create_file(path)
    path.chmod(0o640)
    with pytest.raises(BadInput, match=f"others may read it; run: chmod 600 {path}"):
        SecretBox.from_env({"HUB_KEY_FILE": str(path)})


def test_a_file_that_holds_no_key_is_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "hub.key"
    path.touch(mode=0o600)
    path.write_text("very-secret")
    with pytest.raises(BadInput) as refused:
        SecretBox.from_env({"HUB_KEY_FILE": str(path)})
    assert told(refused)[0].startswith(f"HUB_KEY_FILE is '{path}': is no Fernet key")
    assert "very-secret" not in str(refused.value)


def test_who_has_no_key_is_told_how_to_make_one() -> None:
    with pytest.raises(BadInput, match="hub key create"):
        SecretBox.from_env({})


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "HUB_KEY: is not set; set HUB_KEY_FILE"),
        ({"HUB_KEY": KEY, "HUB_KEY_FILE": "/x"}, "HUB_KEY: and HUB_KEY_FILE are both set; keep one"),
        ({"HUB_KEY": "very-secret"}, "HUB_KEY: is no Fernet key"),
        ({"HUB_KEY": f"{KEY},very-secret"}, "HUB_KEY: is no Fernet key"),
        ({"HUB_KEY_FILE": "/"}, "HUB_KEY_FILE is '/': "),
    ],
)
def test_a_wrong_key_is_told_without_repeating_it(env: dict[str, str], expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        SecretBox.from_env(env)
    assert told(refused)[0].startswith(expected)
    assert "very-secret" not in str(refused.value)
    assert KEY not in str(refused.value)
