"""What strangers may send: bounded heads, bodies, time and concurrency, each with an answer that says so."""

import json
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tasks.bounded_http import Bounds
from tests.intake.conftest import UNHURRIED, Running, serving, until
from tests.timing import quickest

BOUNDS = Bounds(head_bytes=4_096, body_bytes=10_000, arrival_seconds=60.0, bodies=2)
HURRIED = replace(BOUNDS, arrival_seconds=1.0)


@pytest.fixture(scope="module")
def bounded(module_database: str) -> Iterator[tuple[Running, str]]:
    with serving(module_database, bounds=BOUNDS, patience=UNHURRIED) as intake:
        yield intake, intake.add_store()


@pytest.fixture(scope="module")
def hurried(module_database: str) -> Iterator[tuple[Running, str]]:
    """One for which a request has to arrive within a second."""
    with serving(module_database, bounds=HURRIED, patience=UNHURRIED) as intake:
        yield intake, intake.add_store("hurried-mkt", "hurried")


def connect(intake: Running) -> socket.socket:
    port = int(intake.url.rsplit(":", 1)[1])
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def full(intake: Running, token: str, begun: bytes, *earlier: socket.socket) -> list[socket.socket]:
    """As many senders that have `begun` a body as there is room for, some of them `earlier`: no third has any.

    Who comes while a whole request has the place is refused as well, and begins again.
    """
    senders = [*earlier]

    def no_room_is_left() -> bool:
        for refused in select.select(senders, (), (), 0)[0]:
            senders.remove(refused)
            refused.close()
        while len(senders) < BOUNDS.bodies:
            senders.append(connect(intake))
            senders[-1].sendall(begun)
        return bool(intake.post(token, {"IdSku": 1}).status == 503)

    until(no_room_is_left)
    return senders


def answer_of(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and body of what comes until the peer closes."""
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_body_that_is_too_large_is_a_413_and_the_connection_goes_on(bounded: tuple[Running, str]) -> None:
    intake, token = bounded
    answer = intake.post(token, {"IdSku": 1, "x": "y" * 200_000})
    assert answer.status == 413
    assert "10000 bytes" in answer.body["error"]
    assert intake.post(token, {"IdSku": 1, "x": "y" * 9_000}).status == 200
    chunked = intake.session.post(f"{intake.url}/{token}", data=(b"x" * 1_000 for _ in range(20)), timeout=10)
    assert chunked.status_code == 413


@pytest.mark.parametrize("announced", [10_001, 10**12])
def test_a_body_announced_too_large_is_refused_before_it_comes(bounded: tuple[Running, str], announced: int) -> None:
    intake, token = bounded
    head = f"POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n"
    with connect(intake) as connection:  # nothing follows the head
        connection.sendall(f"{head}\r\n".encode())
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")
    with connect(intake) as connection:  # no "100 Continue" comes first, and the connection ends
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        status, said = answer_of(connection)
    assert status == 413
    assert f"{announced} bytes" in str(said["error"])
    assert intake.post(token, {"IdSku": 1}).status == 200


def test_a_head_that_is_too_large_is_a_431(bounded: tuple[Running, str]) -> None:
    intake, token = bounded
    answer = intake.session.post(f"{intake.url}/{token}", data=b"{}", headers={"X-Long": "y" * 8_000}, timeout=10)
    assert answer.status_code == 431
    with connect(intake) as connection:  # one that never ends
        connection.sendall(b"POST / HTTP/1.1\r\nX-Long: " + b"y" * 5_000)
        status, _ = answer_of(connection)
        assert status == 431
    assert intake.refused("head_too_large") == 2


@pytest.mark.parametrize(
    "sent", [b"", b"POST", b"POST /x HTTP/1.1\r\nHost: x\r\n", b"{token}Content-Length: 50\r\n\r\n{", b"\r\n"]
)
def test_a_request_that_does_not_arrive_in_time_is_a_408(hurried: tuple[Running, str], sent: bytes) -> None:
    intake, token = hurried

    def cut_off() -> float:
        began = time.monotonic()
        with connect(intake) as connection:
            connection.sendall(sent.replace(b"{token}", b"POST /%b HTTP/1.1\r\nHost: x\r\n" % token.encode()))
            status, body = answer_of(connection)
        assert (status, "1 seconds" in str(body["error"])) == (408, True)
        return time.monotonic() - began

    quickest(cut_off, above=0.9, below=5)


def test_too_many_bodies_at_once_are_a_503_and_the_others_are_served(bounded: tuple[Running, str]) -> None:
    intake, token = bounded
    head = f"POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n".encode()

    with connect(intake) as first:
        first.sendall(head)
        assert intake.post(token, {"IdSku": 1}).status == 200, "there is room for two"
        one, other = full(intake, token, head, first)
        assert intake.post(token, {"IdSku": 1}).status == 503, "and for as long as both bodies are under way"
        one.sendall(b'{"IdSku":1}')
        assert b" 200 " in one.recv(1_000)
        until(lambda: intake.post(token, {"IdSku": 1}).status == 200)
        other.sendall(b'{"IdSku":1}')
        assert b" 200 " in other.recv(1_000)
    for sender in (one, other):
        sender.close()


def test_a_sender_that_hangs_up_leaves_nothing_behind(bounded: tuple[Running, str]) -> None:
    intake, token = bounded
    begun = f"POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{{".encode()
    for _ in range(3):
        held = full(intake, token, begun)
        for sender in held:
            sender.close()
        until(lambda: intake.post(token, {"IdSku": 1}).status == 200)


def test_what_is_not_http_is_refused(bounded: tuple[Running, str]) -> None:
    intake, _ = bounded
    with connect(intake) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS")
        assert b" 400 " in connection.recv(1_000)


def test_pipelined_requests_are_answered_in_order(bounded: tuple[Running, str]) -> None:
    intake, token = bounded
    good = f'POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{{"IdSku":1}}'.encode()
    unknown = b"POST /nobody HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with connect(intake) as connection:
        connection.sendall(good + unknown + good)
        received = b""
        while received.count(b"HTTP/1.1") < 3:
            received += connection.recv(65_536)
    assert [int(part[1:4]) for part in received.split(b"HTTP/1.1")[1:]] == [200, 404, 200]


def test_the_pages_for_operators_name_no_store_and_no_token(bounded: tuple[Running, str]) -> None:
    intake, token = bounded
    intake.post(token, {"IdSku": 1})
    page = intake.get("metrics").text
    assert "hub_intake_accepted_total" in page
    assert token not in page
    assert "acme" not in page
    assert intake.get("livez").text == "alive\n"
