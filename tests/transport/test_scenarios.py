"""The access scenarios against the simulated VTEX, as far as the way out alone decides them."""

import time
from collections.abc import Iterator

import pytest

from hub.errors import AuthLost, CircuitOpen, HubError, Throttled, Unavailable
from hub.runtime.embedded import Valkey
from hub.simulators.control import VtexControl
from hub.simulators.serving import in_thread
from hub.simulators.vtex import World, app
from hub.transport import Calling, Peer, calling

from .conftest import Opened, Out
from .peer import until

KEY, TOKEN = "vtexappkey-acme-ABCDEF", "synthetic-token"


@pytest.fixture
def server(valkey: Valkey) -> str:
    """A real Redis only: the simulated one is tried elsewhere."""
    return valkey.url


@pytest.fixture
def vtex() -> Iterator[VtexControl]:
    with in_thread(app(World())) as url:
        control = VtexControl(url)
        for account in ("acme", "other"):
            control.open_account(account, KEY, TOKEN)
        yield control
        control.close()


def peer_of(out: Out, vtex: VtexControl, store: str = "acme-mkt", account: str = "acme") -> Peer:
    headers = {"X-VTEX-API-AppKey": KEY, "X-VTEX-API-AppToken": TOKEN}
    return out.transport.peer(store, "vtex", vtex.account_url(account), account=f"vtex:{account}", headers=headers)


def channels(peer: Peer, key: str = "") -> int:
    token = calling.set(Calling(peer.store, "catalog", key=key))
    try:
        return peer.request(
            "GET", "/api/catalog_system/pvt/saleschannel/list", operation="channels", group="catalog", total=3.0
        ).status
    finally:
        calling.reset(token)


def said(peer: Peer, key: str = "") -> str:
    try:
        return str(channels(peer, key))
    except HubError as error:
        return type(error).__name__


@pytest.mark.scenario("ACC-06", "ACC-07")
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_after_a_429_nothing_is_sent_before_the_time_that_vtex_named(
    opened: Opened, server: str, vtex: VtexControl, form: str
) -> None:
    one = peer_of(opened(server, prefix="same"), vtex)
    two = peer_of(opened(server, prefix="same"), vtex)
    vtex.fault("throttle", "channels", retry_after=2, retry_after_form=form, rate_headers="none", count=1)
    began = time.monotonic()
    with pytest.raises(Throttled) as caught:
        channels(one)
    # A date counts from the answer's own `Date`, which on a busy machine is seconds old: later, never sooner.
    assert 2 <= caught.value.wait <= (2 if form == "seconds" else 6)
    before = vtex.calls("channels")
    until(lambda: said(two) == "200")
    assert time.monotonic() - began >= caught.value.wait
    assert vtex.calls("channels") == before + 1


@pytest.mark.scenario("ACC-08")
def test_a_429_without_a_time_waits_about_a_minute(opened: Opened, server: str, vtex: VtexControl) -> None:
    out = opened(server)
    peer = peer_of(out, vtex)
    vtex.fault("throttle", "channels", retry_after=None, rate_headers="none", count=1)
    with pytest.raises(Throttled) as caught:
        channels(peer)
    assert 60 <= caught.value.wait <= 70
    with pytest.raises(Throttled) as still:
        channels(peer)
    assert still.value.wait == pytest.approx(caught.value.wait, abs=5)
    assert vtex.calls("channels") == 1


@pytest.mark.parametrize("wish", ["999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "-5", "soon", "1e3"])
def test_an_absurd_wish_costs_no_more_time_than_was_chosen(
    opened: Opened, server: str, vtex: VtexControl, wish: str
) -> None:
    out = opened(server)
    headers = {"X-VTEX-API-AppKey": KEY, "X-VTEX-API-AppToken": TOKEN}
    url = vtex.account_url("acme")
    peer = out.transport.peer("acme-mkt", "vtex", url, account="vtex:acme", headers=headers, obeyed=1.5)
    vtex.fault("throttle", "channels", retry_after_text=wish, rate_headers="none", count=1)
    with pytest.raises(Throttled) as caught:
        channels(peer)
    assert 1.0 <= caught.value.wait <= 1.5
    until(lambda: said(peer) == "200")


@pytest.mark.scenario("ACC-09")
def test_nothing_remaining_waits_for_the_reset(opened: Opened, server: str, vtex: VtexControl) -> None:
    peer = peer_of(opened(server), vtex)
    vtex.limit("channels", 3, window=3.0)
    assert [said(peer) for _ in range(4)] == ["200", "200", "200", "Throttled"]
    assert vtex.calls("channels") == 3
    until(lambda: said(peer) == "200")
    assert [entry["status"] for entry in vtex.journal(operation="channels")] == [200] * 4


@pytest.mark.scenario("ACC-10", "ACC-11")
def test_five_failures_open_one_stores_circuit_and_a_probe_closes_it(
    opened: Opened, server: str, vtex: VtexControl
) -> None:
    out = opened(server, open_seconds=2.0)
    peer, other = peer_of(out, vtex), peer_of(out, vtex, "other-mkt", "other")
    vtex.fault("status", "channels", account="acme", status=502, body="<html>Bad Gateway</html>", count=5)
    for number in range(5):
        with pytest.raises(Unavailable, match="502") as caught:
            channels(peer, f"sku {number}")
        assert caught.value.answer == "<html>Bad Gateway</html>"
    with pytest.raises(CircuitOpen) as shut:
        channels(peer, "sku 6")
    assert 0 < shut.value.wait <= 2.0
    assert said(other) == "200"
    assert vtex.calls("channels", "acme") == 5
    until(lambda: said(peer) == "200")
    assert [change.state for change in out.changes] == ["open", "closed"]


@pytest.mark.scenario("ACC-12", "ACC-13")
def test_many_refusals_in_plain_text_leave_the_circuit_closed_and_keep_their_body(
    opened: Opened, server: str, vtex: VtexControl
) -> None:
    out = opened(server)
    peer = peer_of(out, vtex)
    vtex.fault("status", "channels", status=400, body="plain text, no JSON", count=30)
    for number in range(30):
        token = calling.set(Calling("acme-mkt", "catalog", key=str(number)))
        found = peer.request("GET", "/api/catalog_system/pvt/saleschannel/list", operation="channels", group="catalog")
        calling.reset(token)
        assert (found.status, found.excerpt(), found.tree()) == (400, "plain text, no JSON", None)
    assert said(peer) == "200"
    assert out.changes == []


def test_lost_credentials_are_told_with_their_version_and_never_open_the_circuit(
    opened: Opened, server: str, vtex: VtexControl
) -> None:
    out = opened(server)
    peer = peer_of(out, vtex)
    vtex.deny_groups("acme", "catalog")
    for _ in range(7):
        with pytest.raises(AuthLost) as caught:
            channels(peer)
        assert caught.value.scope == "context"
    assert out.changes == []
