"""Secrets and people leave no trace in errors, log lines and what is told of calls."""

import logging
import traceback

import pytest

from hub.errors import HubError
from hub.redaction import Redactor
from hub.transport import Call

from .conftest import Opened
from .peer import Peer, answer, cut

APP_TOKEN = "SYNTHETIC+app/token="
URL_TOKEN = "q8Zk3vLr0TnYw5XbP2mJd7HsC4aGfE6u"


@pytest.mark.parametrize(
    "text",
    [
        "https://peer.example/a/b?apiKey=S3CRET-1&b=2",
        "GET /api/x?token=S3CRET-1",
        "https://user:S3CRET-1@peer.example/",
        '{"accessToken": "S3CRET-1", "a": 1}',
        '{"password":"S3CRET-1 with \\" quote"}',
        "X-VTEX-API-AppToken: S3CRET-1",
        "{'authorization': 'S3CRET-1'}",
        "Authorization: Bearer S3CRET-1",
        "api_key=S3CRET-1&x=1",
        "VtexIdclientAutCookie=S3CRET-1; other",
        "mail to S3CRET-1@example.org",
        "https://hub.example/n/S3CRET-1xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/end",
        "eyJS3CRET-1aaaaaaaa.bbbb.cccc",
        "known S3CRET-1 value",
        "known S3CRET-1" + "x" * 5000,
    ],
)
def test_what_looks_secret_is_redacted(text: str) -> None:
    redacted = Redactor(["known S3CRET-1"]).text(text)
    assert "S3CRET" not in redacted
    assert "***" in redacted


@pytest.mark.parametrize(
    "text",
    ["SKU 81234 has no price", "order 1234567890-01", '{"message": "Token of course"}', "GET /api/oms/pvt/orders/1"],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redactor(["abc"]).text(text) == text


def test_no_error_log_line_or_told_call_holds_a_secret(
    opened: Opened, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    out = opened()
    vtex = out.transport.peer(
        "acme-mkt",
        "vtex",
        peer.url,
        account="vtex:acme",
        headers={"X-VTEX-API-AppToken": APP_TOKEN, "Authorization": "Bearer of-the-bearer"},
        secrets=["cookie-of-old"],
    )
    leaky = f"bad token {APP_TOKEN} of-the-bearer cookie-of-old for ana@example.org".encode()
    said: list[str] = []
    for behaviour in (answer(500, leaky), answer(405, leaky), answer(401, leaky), answer(429, leaky), cut):
        peer.behaviour = behaviour
        try:
            vtex.request(
                "GET",
                f"/hook/{URL_TOKEN}/{APP_TOKEN.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
                operation="x",
                group=f"g{len(said)}",
                params={"apiKey": "in-the-query"},
                headers={"X-Once": "once-only-secret"},
            )
        except HubError as error:
            said += ["".join(traceback.format_exception(error)), repr(error), repr(vars(error))]
    peer.behaviour = answer(400, leaky)
    found = vtex.request("GET", "/x", operation="x", group="last", params={"apiKey": "in-the-query"})
    assert APP_TOKEN in found.text
    said += [found.excerpt(), repr(out.calls), caplog.text]
    assert len(out.calls) == 6
    assert isinstance(out.calls[0], Call)
    for secret in (
        APP_TOKEN,
        "of-the-bearer",
        "cookie-of-old",
        "in-the-query",
        URL_TOKEN,
        "ana@",
        "app%2Ftoken",
        "once-only",
    ):
        assert all(secret not in text for text in said), secret


def test_what_is_told_of_a_call_is_enough_for_metrics(opened: Opened, peer: Peer) -> None:
    out = opened()
    vtex = out.transport.peer("acme-mkt", "vtex", peer.url, account="vtex:acme")
    vtex.request("GET", "/sku/1", operation="sku", group="catalog")
    peer.behaviour = answer(503, b"down")
    with pytest.raises(HubError):
        vtex.request("GET", "/sku/2", operation="sku", group="catalog")
    good, bad = out.calls
    assert (good.store, good.side, good.group, good.operation, good.method, good.path) == (
        "acme-mkt", "vtex", "catalog", "sku", "GET", "/sku/1",
    )  # fmt: skip
    assert (good.status, good.error, good.size) == (200, None, 2)
    assert 0 < good.seconds < 1
    assert (bad.status, bad.error) == (503, "Unavailable")
