"""The commands on a running hub: what people do from the first minute on."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.cell import ROOT, WITHOUT_LOOKS, Cell, Shop, until
from tests.cli.conftest import Hub


def registration(cell: Cell, name: str, **changes: str) -> tuple[list[str], str]:
    """Words and standard input of a `hub store add` that is right."""
    account = "".join(letter for letter in name.lower() if letter.isalnum())
    key, token = f"vtexappkey-{account}-ABCDEF", f"secret-{account}"
    cell.vtex.open_account(account, key, token, categories=[{"id": 1, "name": "Casa"}])
    cell.vtex.grow(account, 2, first_id=100, category_ids=[1], price=[9990, 9990], stock=[5, 5], channels=[1])
    seller = cell.marketplace.open_account(name.lower(), "sync")
    words = {
        "--account": account,
        "--affiliate": "MKP",
        "--sales-channel": "1",
        "--marketplace": "sandbox-sync",
        "--vtex-url": f"{cell.vtex.base_url}/{{account}}",
        "--marketplace-url": seller.url,
        **changes,
    }
    secrets = {
        "vtex": {"app_key": key, "app_token": token},
        "marketplace": {
            "token": seller.token,
            "refresh_token": seller.refresh_token,
            "client_id": seller.client_id,
            "client_secret": seller.client_secret,
        },
    }
    return ["store", "add", name, *(word for pair in words.items() for word in pair)], json.dumps(secrets)


@pytest.mark.scenario("SET-01", "LOD-09", "LOD-13")
def test_from_registration_to_a_whole_load(cell: Cell, live: Hub) -> None:
    words, secrets = registration(cell, "first-steps")
    added = live(*words, stdin=secrets)
    url = added.out.strip()
    assert url.startswith(f"{cell.intake_url}/")
    assert secrets not in added.out + added.talk

    refused = live("load", "first-steps", code=2)
    assert "affiliate" in refused.talk
    assert "search endpoint" in refused.talk
    url = live("store", "show", "first-steps", "--json").json["store"]["url"]
    assert url not in refused.talk
    assert "hub store show first-steps prints it" in refused.talk
    assert url in live("store", "check", "first-steps", code=1).out
    assert url not in live("doctor", code=1).out
    cell.vtex.put_affiliate("firststeps", "MKP", sales_channel=1, endpoint=url)
    live("store", "check", "first-steps")

    ended = live("load", "first-steps", "--json", code=1).json
    assert (ended["total"], ended["awaiting_mapping"], ended["sent"]) == (2, 2, 0)
    assert live("mappings", "export", "first-steps", "--missing").out.split() == ["category,remote,name", "1,,"]
    saved = live("mappings", "import", "first-steps", "-", "--json", stdin="category;remote\n1;MC-130\n").json
    assert saved["released"] == 2
    until(lambda: live("load", "watch", "first-steps", "--json", code=None).json["sent"] == 2)
    assert live("mappings", "list", "first-steps", "--json").json["mappings"][0]["waiting"] == 0


@pytest.mark.scenario("SET-02", "SET-03")
def test_what_is_wrong_with_a_registration_is_told_at_once_and_nothing_is_kept(cell: Cell, live: Hub) -> None:
    words, _ = registration(cell, "all-wrong")
    wrong = json.dumps({"vtex": {"app_key": "x", "app_token": "y"}, "marketplace": {"token": "no"}})
    said = live(*words, stdin=wrong, code=1)
    assert "app_key" in said.out
    assert "marketplace: token" in said.out
    live("store", "show", "all-wrong", code=3)

    words, secrets = registration(cell, "All.wrong2", **{"--affiliate": "AMZ", "--marketplace": "sandbox-sink"})
    said = live(*words, stdin=secrets, code=2)
    assert [line.split(" ")[0] for line in said.lines] == ["slug", "affiliate", "marketplace"]
    assert "did you mean 'sandbox-sync'" in said.talk


def test_a_forced_registration_is_kept_and_says_what_is_wrong(cell: Cell, live: Hub) -> None:
    words, _ = registration(cell, "forced-one")
    wrong = json.dumps({"vtex": {"app_key": "x", "app_token": "y"}, "marketplace": {"token": "no"}})
    assert "app_key" in live(*words, "--force", stdin=wrong).talk
    live("store", "remove", "forced-one", code=2)  # nobody can be asked
    live("store", "remove", "forced-one", "--yes")
    live("store", "show", "forced-one", code=3)


def test_new_credentials_are_tried_before_they_are_kept(cell: Cell, live: Hub) -> None:
    words, secrets = registration(cell, "new-secrets")
    live(*words, stdin=secrets)
    said = live(
        "store", "credentials", "new-secrets", "--side", "vtex", stdin='{"app_key":"a","app_token":"b"}', code=1
    )
    assert "app_key" in said.out
    live("store", "credentials", "new-secrets", "--side", "vtex", stdin=json.dumps(json.loads(secrets)["vtex"]))
    said = live("store", "credentials", "new-secrets", "--side", "vtex", stdin='{"app_key": 3}', code=2)
    assert said.lines == ["credentials.vtex.app_key: write text", "credentials.vtex.app_token: is missing"]


# ---------------------------------------------------------------- explain


def explained(live: Hub, shop: Shop, sku: str, *, code: int) -> dict[str, Any]:
    return live("sku", "explain", shop.slug, sku, "--json", code=code).json


def checks(told: dict[str, Any]) -> dict[int, str]:
    return {check["number"]: check["verdict"] for check in told["checks"]}


def test_a_published_sku_is_explained_with_every_fact_and_its_age(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet()
    told = explained(live, shop, sku, code=0)
    assert told["headline"] == "PUBLISHED"
    assert checks(told) == dict.fromkeys(range(13), "pass")
    assert {value["name"]: value["agrees"] for value in told["values"]} == {
        "price / list price": True,
        "stock": True,
        "title": True,
    }
    ages = {check["number"]: check["age"] for check in told["checks"]}
    assert ages[2] == 0
    assert ages[7] > 0
    assert ages[11] > 0
    assert [advice["code"] for advice in told["advice"]] == ["S1"]
    assert "nothing to send" in told["next_step"]


def test_a_value_that_differs_and_that_nobody_asks_for_is_explained_with_what_to_do(cell: Cell, live: Hub) -> None:
    shop = cell.shop(settings=WITHOUT_LOOKS)
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet()
    shop.change(sku, price=4400, notify=False)
    wanted = f"nobody asks for its price: hub reconcile --store {shop.slug}"
    until(lambda: wanted in live("sku", "explain", shop.slug, sku, code=None).out, why="it is not said")
    live("reconcile", "--store", shop.slug)
    shop.shows(sku, price_cents=4400)
    until(lambda: "nobody asks" not in live("sku", "explain", shop.slug, sku, code=None).out)


def test_rules_that_change_what_is_shown_are_followed_and_the_command_says_so(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    (sku,) = shop.grow(1, price=[5000, 5000])
    shop.published(sku)
    tree = live("store", "show", shop.slug, "--json").json["store"]["settings"]
    tree["pricing"]["markup"] = "10"
    given = json.dumps(tree)
    tried = live("store", "configure", shop.slug, "-", "--dry-run", "--json", stdin=given).json
    assert (tried["changed"], tried["compared"]) == (False, False)
    assert "hub reconcile list" in live("store", "configure", shop.slug, "-", stdin=given).out
    shop.shows(sku, price_cents=5500)


def test_an_unmapped_and_broken_sku_is_explained_with_all_of_it_at_once(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    (sku,) = shop.grow(1, category_ids=[2], images=0)
    shop.modified(sku, sku=True)
    shop.status("catalog", sku, "parked")
    told = explained(live, shop, sku, code=1)
    assert told["headline"] == "NOT PUBLISHED"
    verdicts = checks(told)
    assert (verdicts[6], verdicts[7]) == ("fail", "fail")
    advice = {one["code"]: one for one in told["advice"]}
    assert advice["E4"]["actor"] == "seller"
    assert "E1" in advice
    assert "mapping:2" in told["next_step"]
    text = live("sku", "explain", shop.slug, sku, "--language", "pt", code=1).out
    assert "the seller must act" in text
    assert "Categoria" in text or "categoria" in text


def test_an_inactive_sku_is_explained_although_nothing_was_ever_asked(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    (sku,) = shop.grow(1)
    shop.change(sku, notify=False, active=False)
    told = explained(live, shop, sku, code=1)
    assert checks(told)[3] == "fail"
    assert told["rows"] == []
    assert checks(told)[4] == "pass"
    assert [one["code"] for one in told["advice"]] == ["A2"]  # and no A1: the trade policy is right
    shop_two = cell.shop()
    live("sku", "explain", shop_two.slug, "424242", code=3)


def test_a_side_that_does_not_answer_is_told_as_unknown_not_as_a_fault_of_the_sku(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet()
    cell.registry.save_credentials(shop.store.id, "vtex", {"app_key": "gone", "app_token": "gone"})
    told = explained(live, shop, sku, code=1)
    verdicts = checks(told)
    assert verdicts[0] == "fail"
    assert all(verdicts[number] == "unknown" for number in range(2, 11))
    assert "the operator must act" in live("sku", "explain", shop.slug, sku, code=1).out
    assert verdicts[12] == "pass"
    assert told["advice"][0]["code"] == "C0"
    assert told["advice"][0]["actor"] == "operator"


def test_a_resent_sku_is_written_again_although_nothing_changed(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    (sku,) = shop.grow(1)
    shop.published(sku)
    shop.quiet()
    before = shop.last_call()
    assert live("sku", "resend", shop.slug, sku, "--dry-run", "--json").json["changed"] is False
    assert shop.writes(after=before) == []
    live("sku", "resend", shop.slug, sku, "--context", "price", "--context", "stock", "--reason", "a doubt")
    until(lambda: len(shop.writes(after=before)) == 2, why="price and stock were not sent again")


# ---------------------------------------------------------------- mappings


def test_a_mapping_releases_exactly_what_waited_and_a_moved_one_is_sent_again(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    waiting = shop.grow(3, category_ids=[2])
    (other,) = shop.grow(1)
    shop.published(other)
    for sku in waiting:
        shop.modified(sku, sku=True)
    for sku in waiting:
        shop.status("catalog", sku, "parked")
    shop.quiet()
    plan = live("mappings", "import", shop.slug, "-", "--dry-run", "--json", stdin="category,remote\n2,MC-130\n").json
    assert (plan["new"], plan["released"], plan["saved"]) == (1, 3, False)
    before = shop.last_call()
    saved = live("mappings", "import", shop.slug, "-", "--json", stdin="category,remote\n2,MC-130\n").json
    assert (saved["released"], saved["listed"]) == (3, 0)
    for sku in waiting:
        shop.shows(sku)
    shop.quiet()
    assert not [call for call in shop.writes(after=before) if other in str(call)]

    moved = "category,remote\n1,MC-210\n2,MC-130\n"
    live("mappings", "import", shop.slug, "-", stdin=moved, code=2)  # nobody can be asked
    live("mappings", "import", shop.slug, "-", "--yes", stdin=moved)
    shop.shows(other, category="MC-210")
    assert shop.shown(waiting[0]).category == "MC-130"  # type: ignore[union-attr]  # it is shown, see above


# ---------------------------------------------------------------- operation


def test_gates_pauses_and_queues_are_seen_and_changed(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    (sku,) = shop.grow(1)
    shop.published(sku)
    live("gates", "shut", shop.slug, "--context", "price", "--reason", "a rehearsal")
    shop.change(sku, price=5000)
    until(lambda: queue(live, shop, "price")["pending"] == 1)
    assert queue(live, shop, "price")["shut"] == "operator"
    (gate,) = live("gates", "list", "--store", shop.slug, "--json").json["gates"]
    assert (gate["context"], gate["why"]) == ("price", "a rehearsal")
    live("gates", "open", shop.slug, "--context", "price")
    shop.shows(sku, price_cents=5000)
    live("gates", "open", shop.slug, "--context", "price", code=3)

    live("store", "pause", shop.slug, "--reason", "lunch")
    assert "hub store resume" in live("gates", "open", shop.slug, code=2).talk
    assert "resume" in live("load", shop.slug, code=2).talk
    told = explained(live, shop, sku, code=1)
    assert (told["headline"], told["actor"]) == ("STORE PAUSED; PUBLISHED", "operator")
    assert "hub store resume" in told["next_step"]
    assert live("sku", "explain", shop.slug, sku, code=1).out.startswith("STORE PAUSED; PUBLISHED – the operator must")
    live("store", "resume", shop.slug)
    assert live("gates", "list", "--store", shop.slug, "--json").json["gates"] == []


def queue(live: Hub, shop: Shop, context: str) -> dict[str, Any]:
    rows = live("queues", "--store", shop.slug, "--json").json["queues"]
    return next((row for row in rows if row["context"] == context), {"pending": 0, "shut": ""})


def test_a_second_load_of_a_store_is_a_conflict_and_a_cancelled_one_ends(cell: Cell, live: Hub) -> None:
    shop = cell.shop()
    shop.grow(2)
    live("gates", "shut", shop.slug, "--context", "load", "--reason", "so that it stays")
    first = live("load", shop.slug, "--no-follow", "--json").json
    assert first["state"] == "running"
    assert "running already" in live("load", shop.slug, "--no-follow", code=5).talk
    assert live("load", "cancel", shop.slug, "--json").json == {
        "schema_version": 1,
        "load": first["load"],
        "cancelled": True,
    }
    live("load", "cancel", shop.slug, code=3)
    rows = live("load", "list", "--store", shop.slug, "--json").json["loads"]
    assert [row["state"] for row in rows] == ["cancelled"]


def test_the_doctor_finds_a_running_hub_well_but_for_what_does_not_run(cell: Cell, live: Hub) -> None:
    well = ("settings", "key", "postgresql", "migrations", "redis", "workers", "sweep", "broker", "queues", "intake")

    def found() -> dict[str, Any]:
        return live("doctor", "--no-stores", "--json", code=1).json

    def as_well_as_it_is(told: dict[str, Any]) -> bool:
        return {look["verdict"] for look in told["checks"] if look["what"] in well} == {"ok"}

    # Workers take up the queues of a store that just came, and leave those of one that went, a moment later.
    told = until(lambda: as_well_as_it_is(told := found()) and told, why="it is not found well")
    verdicts = {look["what"]: look["verdict"] for look in told["checks"]}
    assert set(well) <= verdicts.keys()
    assert verdicts["logs endpoint"] == "failed"  # the cell has none
    assert all(look["do"] for look in told["checks"] if look["verdict"] == "failed")


@pytest.mark.parametrize("process", ["intake", "api"])
def test_a_process_of_another_installation_stays_away_from_the_port_of_an_intake(cell: Cell, process: str) -> None:
    port = cell.intake_url.rpartition(":")[2]
    ended = subprocess.run(
        [sys.executable, "-m", "hub.cli", process, "--port", port],
        env={**cell.env, "HUB_SCHEMA": "other", "HUB_PREFIX": "other"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr.splitlines()) == (
        2,
        [
            f"port is '{port}': is served by something else than `hub {process}` of this database and schema; "
            "choose another --port, or end it first"
        ],
    )


def test_a_second_intake_of_the_same_installation_shares_the_port_and_serves_on_alone(cell: Cell) -> None:
    shop = cell.shop()
    cell.start("second intake", "intake", "--port", cell.intake_url.rpartition(":")[2])
    try:
        until(lambda: "intake listens on" in cell.log("second intake"), why="the second intake does not come up")
        cell.stop("intake")
        cell.wait_ready()
        assert shop.modified("1", stock=True).status_code == 200
    finally:
        cell.stop("second intake")
        cell.start_intake()
        cell.wait_ready()
