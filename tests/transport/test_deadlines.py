"""No call outlasts its total deadline; what was lost is told apart from what may be done."""

import datetime as dt
import gzip
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hub import transport as way
from hub.errors import AuthLost, BadInput, LeaseLost, Refusal, Throttled, Unavailable, UnknownOutcome
from hub.transport import Calling, calling
from tests.timing import quickest

from .conftest import Opened
from .peer import Behaviour, Peer, answer, cut, drip

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n"


def to(opened: Opened, url: str, **given: object) -> way.Peer:
    return opened().transport.peer("acme-mkt", "vtex", url, account="vtex:acme", **given)


def took(call: Callable[[], object], error: type[BaseException]) -> float:
    began = time.monotonic()
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return time.monotonic() - began


@pytest.mark.parametrize(
    "behaviour",
    [
        drip(HEAD + b"x" * 200),
        drip(HEAD + b"x" * 200, at_once=len(HEAD)),
        drip(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50, at_once=50),
        lambda *_: time.sleep(3),
    ],
    ids=["drips everything", "drips the body", "drips a header", "drips chunks", "says nothing"],
)
def test_a_peer_that_drips_holds_a_thread_no_longer_than_the_total_deadline(
    opened: Opened, peer: Peer, behaviour: Behaviour
) -> None:
    peer.behaviour = behaviour
    vtex = to(opened, peer.url)
    quickest(
        lambda: took(lambda: vtex.request("GET", "/sku", operation="sku", total=0.4), Unavailable),
        above=0.35,
        below=0.9,
    )


def test_a_call_without_a_time_of_its_own_gets_that_of_its_peer(opened: Opened, peer: Peer) -> None:
    peer.behaviour = lambda *_: time.sleep(3)
    vtex = to(opened, peer.url, total=0.4)
    quickest(lambda: took(lambda: vtex.request("GET", "/sku", operation="sku"), Unavailable), above=0.35, below=0.9)


def test_a_peer_that_does_not_read_holds_a_thread_no_longer_than_the_total_deadline(opened: Opened) -> None:
    with Peer(reading=False) as deaf:
        vtex = to(opened, deaf.url)
        body = b"x" * 30_000_000
        quickest(
            lambda: took(lambda: vtex.request("POST", "/lot", operation="lot", data=body, total=0.4), Unavailable),
            above=0.35,
            below=1.2,
        )


def test_a_peer_that_never_answers_the_tls_handshake_is_given_up_and_nothing_was_sent(opened: Opened) -> None:
    with Peer(reading=False) as deaf:
        vtex = to(opened, deaf.url.replace("http:", "https:"), verify=False, connect=0.3)
        create = {"operation": "create", "json": {}, "write": "create"}
        quickest(lambda: took(lambda: vtex.request("POST", "/o", **create), Unavailable), above=0.25, below=0.8)


def _certificate(directory: Path) -> tuple[ssl.SSLContext, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / "peer.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    trusted = directory / "trusted.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return context, str(trusted)


def test_deadlines_and_certificates_hold_over_tls_too(opened: Opened, tmp_path: Path) -> None:
    context, trusted = _certificate(tmp_path)
    with Peer(tls=context) as peer:
        vtex = to(opened, peer.url, verify=trusted)
        assert vtex.request("GET", "/sku", operation="sku").json() == {}
        assert vtex.request("GET", "/sku", operation="sku").json() == {}
        assert {seen.by for seen in peer.seen} == {1}, "the connection is kept"
        peer.behaviour = drip(HEAD + b"x" * 200, at_once=len(HEAD))
        quickest(lambda: took(lambda: vtex.request("GET", "/sku", operation="sku", total=0.4), Unavailable), below=0.9)
        count = len(peer.seen)
        with pytest.raises(Unavailable, match="TLS failed"):
            to(opened, peer.url).request("GET", "/sku", operation="sku")
        assert len(peer.seen) == count


def test_a_create_is_unknown_only_when_its_request_may_have_arrived(opened: Opened, peer: Peer) -> None:
    vtex = to(opened, peer.url)

    def create() -> object:
        return vtex.request("POST", "/orders", operation="create_order", json={}, write="create", total=0.3)

    peer.behaviour = cut
    took(create, UnknownOutcome)
    peer.behaviour = lambda *_: time.sleep(1)
    took(create, UnknownOutcome)
    peer.behaviour = answer(200, b"<html>done?</html>")
    with pytest.raises(UnknownOutcome):
        vtex.request("POST", "/orders", operation="create_order", json={}, write="create").json()
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    vtex = to(opened, url)
    took(create, Unavailable)


@pytest.mark.parametrize(
    ("status", "error"), [(502, UnknownOutcome), (504, UnknownOutcome), (500, Unavailable), (503, Unavailable)]
)
def test_after_a_create_a_gateway_that_gave_up_leaves_the_outcome_unknown(
    opened: Opened, peer: Peer, status: int, error: type[Exception]
) -> None:
    vtex = to(opened, peer.url)
    peer.behaviour = answer(status, b"<html>down</html>")
    took(lambda: vtex.request("POST", "/orders", operation="create_order", json={}, write="create"), error)
    took(lambda: vtex.request("PUT", "/offers", operation="offer", json={}, write="idempotent"), Unavailable)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 400, 404, 409, 410, 412, 422])
def test_what_means_something_to_the_client_is_an_answer(opened: Opened, peer: Peer, status: int) -> None:
    peer.behaviour = answer(status, b"" if status == 204 else b"plain <b>text</b>")
    found = to(opened, peer.url).request("GET", "/x", operation="x")
    assert found.status == status
    assert found.ok == (status < 300)
    assert found.tree() is None
    assert found.text == ("" if status == 204 else "plain <b>text</b>")


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AuthLost), (403, AuthLost), (405, Refusal), (413, Refusal), (429, Throttled), (408, Unavailable)]
    + [(status, Unavailable) for status in (301, 302, 500, 502, 503, 504)],
)
def test_every_other_status_is_the_error_that_says_what_happens_next(
    opened: Opened, peer: Peer, status: int, error: type[Exception]
) -> None:
    peer.behaviour = answer(status, b"no", Location="/elsewhere")
    vtex = to(opened, peer.url)
    with pytest.raises(error) as caught:
        vtex.request("GET", "/x", operation="x", auth_version=7)
    if isinstance(caught.value, AuthLost):
        assert (caught.value.version, caught.value.scope) == (7, "store" if status == 401 else "context")
    assert len(peer.seen) == 1


def test_a_308_is_followed_once_and_only_to_the_same_host(opened: Opened, peer: Peer) -> None:
    peer.behaviour = lambda connection, seen: (
        answer(308, b"", Location="/new?b=2") if seen.path.startswith("/old") else answer(200, b"[1]")
    )(connection, seen)
    vtex = to(opened, peer.url, headers={"X-Token": "synthetic"})
    assert vtex.request("POST", "/old", operation="x", params={"a": 1}, json={"k": "v"}, write="idempotent").json() == [
        1
    ]
    assert [(seen.method, seen.path, seen.body) for seen in peer.seen] == [
        ("POST", "/old?a=1", b'{"k":"v"}'),
        ("POST", "/new?b=2", b'{"k":"v"}'),
    ]
    with Peer() as other:
        peer.behaviour = answer(308, b"", Location=other.url)
        with pytest.raises(Unavailable):
            vtex.request("GET", "/old", operation="x")
        assert not other.seen
    peer.behaviour = answer(308, b"", Location="/again")
    with pytest.raises(Unavailable):
        vtex.request("GET", "/old", operation="x")


def test_an_answer_larger_than_the_bound_is_not_taken_even_when_it_is_packed(opened: Opened, peer: Peer) -> None:
    bomb = gzip.compress(b"0" * (way.LARGEST_ANSWER + 1))
    assert len(bomb) < 100_000
    peer.behaviour = answer(200, bomb, Content_Encoding="gzip")
    vtex = to(opened, peer.url)
    with pytest.raises(Unavailable, match="larger than"):
        vtex.request("GET", "/x", operation="x")
    peer.behaviour = answer(200, gzip.compress(b'{"a":"\xc3\xa7"}'), Content_Encoding="gzip")
    assert vtex.request("GET", "/x", operation="x").json() == {"a": "ç"}
    peer.behaviour = answer(200, b"not gzip", Content_Encoding="gzip")
    with pytest.raises(Unavailable):
        vtex.request("GET", "/x", operation="x")


@pytest.mark.parametrize("body", [b"<html>", b"", b"{", b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_a_success_that_is_not_json_is_unavailable(opened: Opened, peer: Peer, body: bytes) -> None:
    peer.behaviour = answer(200, body)
    found = to(opened, peer.url).request("GET", "/x", operation="x")
    with pytest.raises(Unavailable):
        found.json()


def test_stores_that_share_a_host_share_no_cookie_and_no_thread_shares_a_connection(opened: Opened, peer: Peer) -> None:
    peer.behaviour = answer(200, b"{}", Set_Cookie="session=of-store-a; Path=/")
    out = opened()
    first = out.transport.peer("a", "marketplace", peer.url, account="a")
    second = out.transport.peer("b", "marketplace", peer.url, account="b", headers={"X-Who": "b"})
    first.request("GET", "/x", operation="x")
    second.request("GET", "/x", operation="x")
    thread = threading.Thread(target=lambda: second.request("GET", "/x", operation="x"))
    thread.start()
    thread.join()
    assert [seen.by for seen in peer.seen] == [1, 1, 2]
    assert all("cookie" not in seen.headers for seen in peer.seen)
    assert ["x-who" in seen.headers for seen in peer.seen] == [False, True, True]
    assert peer.seen[0].headers["accept"] == "application/json"


def test_a_write_starts_only_when_the_lease_outlasts_it(opened: Opened, peer: Peer) -> None:
    vtex = to(opened, peer.url)
    token = calling.set(Calling("acme-mkt", "stock", lambda: 1.9))
    try:
        for write in ("idempotent", "create"):
            with pytest.raises(LeaseLost):
                vtex.request("PUT", "/x", operation="x", json={}, write=write, total=10.0)
        assert not peer.seen
        vtex.request("GET", "/x", operation="x", total=10.0)
        vtex.request("PUT", "/x", operation="x", json={}, write="idempotent", total=1.5)
    finally:
        calling.reset(token)
    assert len(peer.seen) == 2


def test_a_write_ends_before_the_lease_that_allows_it(opened: Opened, peer: Peer) -> None:
    peer.behaviour = drip(HEAD + b"x" * 200)
    vtex = to(opened, peer.url)
    token = calling.set(Calling("acme-mkt", "stock", lambda: 2.4))
    try:
        write = {"operation": "x", "json": {}, "write": "idempotent", "total": 10.0}
        quickest(lambda: took(lambda: vtex.request("PUT", "/x", **write), Unavailable), above=1.0, below=2.4)
    finally:
        calling.reset(token)
    assert {seen.method for seen in peer.seen} == {"PUT"}, "it had begun"


def test_a_process_that_is_stopped_between_the_look_at_its_lease_and_the_first_byte_sends_none(
    opened: Opened, peer: Peer
) -> None:
    vtex = to(opened, peer.url)
    ends = time.monotonic() + 1.0
    looks: list[float] = []

    def stopped_after_the_last_look() -> float:
        looks.append(ends - time.monotonic())
        while len(looks) == 2 and time.monotonic() < ends:
            time.sleep(0.01)
        return looks[-1]

    token = calling.set(Calling("acme-mkt", "price", stopped_after_the_last_look))
    try:
        with pytest.raises(Unavailable):
            vtex.request("PUT", "/x", operation="x", json={}, write="idempotent", total=0.1)
    finally:
        calling.reset(token)
    assert looks[1] > 0.5, "at the last look there was time enough"
    assert not peer.seen


@pytest.mark.parametrize("address", ["", "ftp://peer", "peer.example", "https://user:pass@peer", "https://peer?a=1"])
def test_an_address_that_cannot_be_used_is_named_at_once(opened: Opened, address: str) -> None:
    with pytest.raises(BadInput) as caught:
        to(opened, address, headers={"X-Token": "two\nlines-secret"})
    assert [problem.field for problem in caught.value.problems] == ["header X-Token", "vtex address"]
    assert "secret" not in str(caught.value)
    assert "pass" not in str(caught.value)
