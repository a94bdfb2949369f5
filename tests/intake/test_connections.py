"""One connection may neither stop the others nor deceive: pipelines, trailers, upgrades, half-closed connections."""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from hub.errors import BadInput
from tasks.bounded_http import Bounds
from tasks.shared_port import HEADER, joined, listening, mark
from tests.cell import held_place
from tests.intake.conftest import UNHURRIED, Running, serving, until

BOUNDS = Bounds(head_bytes=4_096, body_bytes=10_000, bodies=8, bodies_of_one=2, waiting=4, answer_seconds=1.5)
BODY = b'{"IdSku":1}'


@pytest.fixture(scope="module")
def intake(module_database: str) -> Iterator[Running]:
    with serving(module_database, bounds=BOUNDS, patience=UNHURRIED) as running:
        yield running


@pytest.fixture(scope="module")
def token(intake: Running) -> str:
    return intake.add_store()


def port_of(intake: Running) -> int:
    return int(intake.url.rsplit(":", 1)[1])


def connect(intake: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(intake)), timeout=15)


def request(token: str, *, body: bytes = BODY, more: str = "") -> bytes:
    return f"POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def statuses(received: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def read_to_the_end(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return received


def read(connection: socket.socket, answers: int) -> list[int]:
    received = b""
    while len(statuses(received)) < answers and (piece := connection.recv(65_536)):
        received += piece
    return statuses(received)


def test_those_who_ask_much_and_never_read_are_cut_off_while_others_are_served(intake: Running, token: str) -> None:
    asked = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    with ExitStack() as held:
        for _ in range(10):
            connection = held.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(("127.0.0.1", int(intake.url.rsplit(":", 1)[1])))
            connection.setblocking(False)
            connection.send(asked)
        began = time.monotonic()
        assert intake.post(token, {"IdSku": 1}).status == 200
        assert time.monotonic() - began < 5, "what waits on a connection is not parsed before there is room for it"
        until(lambda: intake.refused("unread") == 10)


def test_whoever_reads_gets_all_of_a_long_pipeline_in_order(intake: Running, token: str) -> None:
    known, unknown = request(token), request("nobody", body=b"x" * 3_000)
    with connect(intake) as connection:
        connection.sendall((known + unknown) * 50 + b"".join([known, request("nobody")] * 10))
        assert read(connection, 120) == [200, 404] * 60
        connection.sendall(known)  # and the connection goes on
        assert read(connection, 1) == [200]


def test_the_metrics_are_not_made_anew_for_everybody_who_asks(module_database: str) -> None:
    pair = request("nobody") + b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"  # what the page shows has changed each time
    with serving(module_database, bounds=BOUNDS, patience=UNHURRIED) as intake, connect(intake) as connection:
        began = time.monotonic()
        sender = threading.Thread(
            target=connection.sendall, args=(pair * 1_000 + request("nobody", more="Connection: close\r\n"),)
        )
        sender.start()
        received = read_to_the_end(connection)
        sender.join()
    shown = re.findall(rb'hub_intake_refused_total{reason="unknown_token"} (\S+)', received)
    assert len(shown) == 1_000
    assert len(set(shown)) <= 200 * (int(time.monotonic() - began) + 2)


@pytest.mark.parametrize(
    "endless",
    [b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 1_500, b"2\r\n{}\r\n0\r\nx: " + b"a" * 9_000, b"2;" + b"a" * 9_000],
    ids=["trailers", "one trailer", "extension of a chunk"],
)
def test_what_surrounds_a_chunked_body_is_bounded(intake: Running, token: str, endless: bytes) -> None:
    head = f"POST /{token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    before = intake.refused("head_too_large")
    with connect(intake) as connection:
        connection.sendall(head + endless)
        received = read_to_the_end(connection)
    assert statuses(received) == [431]
    assert b"at most 4096 bytes of trailers" in received
    until(lambda: intake.refused("head_too_large") == before + 1)


def test_many_small_chunks_and_a_few_trailers_are_a_body_like_others(intake: Running, token: str) -> None:
    body = json.dumps({"IdSku": 1, "x": "y" * 3_000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % one for one in body) + b"0\r\nX-Checksum: 1\r\n\r\n"
    with connect(intake) as connection:
        connection.sendall(f"POST /{token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks)
        assert read(connection, 1) == [200]


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "head first"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upgrade_is_ignored_and_the_body_stays_a_body(
    intake: Running, token: str, chunked: bool, apart: bool
) -> None:
    smuggled = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(smuggled)}"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled) if chunked else smuggled
    more = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = f"POST /{token} HTTP/1.1\r\nHost: x\r\n{more}{length}\r\n\r\n".encode()
    with connect(intake) as connection:
        if apart:
            connection.sendall(head + body[:2])
            until(lambda: intake.get("livez").ok)
            connection.sendall(body[2:] + request(token, more=more))
        else:
            connection.sendall(head + body + request(token, more=more))
        assert read(connection, 2) == [400, 200], "the body is no JSON; what follows is the next request"
        connection.sendall(request(token))
        assert read(connection, 1) == [200]


def test_one_store_cannot_take_the_room_of_the_bodies_of_all_others(intake: Running, token: str) -> None:
    other = intake.add_store("other-mkt", "other", "THR")
    with ExitStack() as held:

        def full() -> bool:
            """One more takes room for good, unless it met the one that asks; who asks meets nobody but those."""
            held.enter_context(connect(intake)).sendall(request(token)[:-1])
            return intake.post(token, {"IdSku": 1}).status == 503

        until(full)
        for _ in range(2 * BOUNDS.bodies):  # as many as ever: the store has no more room
            connection = held.enter_context(connect(intake))
            connection.sendall(request(token)[:-1])
            assert read(connection, 1) == [503]
        assert intake.post(other, {"IdSku": 1}).status == 200
        assert intake.post("nobody", {"IdSku": 1}).status == 404
    until(lambda: intake.post(token, {"IdSku": 1}).status == 200)


def test_bad_requests_are_counted_and_hardly_logged(
    module_database: str, intake: Running, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = b"\x00\xff garbage\r\n\r\n"
    with caplog.at_level(logging.INFO), serving(module_database, bounds=BOUNDS, patience=UNHURRIED) as another:
        until(lambda: another.get(token).status_code == 405)  # it knows the store
        upgrade = request(token, more="Connection: upgrade\r\nUpgrade: websocket\r\n")
        for sent, status in ((bad, 400), (bad, 400), (bad, 400), (upgrade, 200)):
            with connect(another) as connection:
                connection.sendall(sent)
                assert read(connection, 1) == [status]
        until(lambda: another.refused("no_http") == 3)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [record for record in warned if record.name == "uvicorn.error"]
    told = [record.getMessage() for record in caplog.records if record.name == "hub.http"]
    assert told == ["HTTP requests refused: 1 no_http"], "the next line has the others, in a minute"


@pytest.mark.parametrize("count", [1, 3, 40])
def test_who_sends_no_more_still_gets_the_answers_to_what_came_whole(intake: Running, token: str, count: int) -> None:
    with connect(intake) as connection:
        connection.sendall(request(token) * count + request(token)[:-3])
        connection.shutdown(socket.SHUT_WR)
        assert statuses(read_to_the_end(connection)) == [200] * count


def test_a_request_without_host_is_refused(intake: Running, token: str) -> None:
    with connect(intake) as connection:
        connection.sendall(f"POST /{token} HTTP/1.1\r\nContent-Length: 11\r\n\r\n".encode() + BODY)
        received = read_to_the_end(connection)
    assert statuses(received) == [400]
    assert b"Host: send this header" in received
    with connect(intake) as connection:  # HTTP/1.0 knows none
        connection.sendall(f"POST /{token} HTTP/1.0\r\nContent-Length: 11\r\n\r\n".encode() + BODY)
        assert statuses(read_to_the_end(connection)) == [200]


@pytest.mark.parametrize(
    ("hosts", "reason"),
    [
        ((b"x", b"y"), "many_hosts"),
        ((b"x", b"x"), "many_hosts"),
        ((b"", b"x"), "many_hosts"),
        ((b"x y",), "bad_host"),
        ((b"x/y",), "bad_host"),
        ((b"user@x",), "bad_host"),
        ((b"\xe4",), "bad_host"),
    ],
)
@pytest.mark.parametrize(
    "way",
    [(b"1.0", b""), (b"1.1", b""), (b"1.1", b"Connection: upgrade\r\nUpgrade: h2c\r\n")],
    ids=["1.0", "1.1", "upgrade"],
)
def test_a_request_whose_host_is_in_doubt_is_refused_and_counted(
    intake: Running, token: str, hosts: tuple[bytes, ...], reason: str, way: tuple[bytes, bytes]
) -> None:
    version, more = way
    before = intake.refused(reason)
    with connect(intake) as connection:
        if version == b"1.1":
            connection.sendall(request(token))  # what was right before tells nothing of the next one
            assert read(connection, 1) == [200]
        head = b"".join(b"Host: %b\r\n" % host for host in hosts)
        start = b"POST /%b HTTP/%b\r\nContent-Length: 11\r\n" % (token.encode(), version)
        connection.sendall(start + more + head + b"\r\n" + BODY + request(token))
        received = read_to_the_end(connection)
    assert statuses(received) == [400], "and what follows is not read"
    assert b'{"error": "Host: send ' in received
    assert intake.refused(reason) == before + 1


@pytest.mark.parametrize(
    "host", [b"", b"x", b"X.example:8080", b"[::1]:80", b"%C3%A4.example", b"x \t"], ids=lambda host: host.decode()
)
def test_hosts_that_are_in_order_are_let_in_one_after_the_other(intake: Running, token: str, host: bytes) -> None:
    named = b"POST /%b HTTP/1.1\r\nHost: %b\r\nContent-Length: 11\r\n\r\n" % (token.encode(), host) + BODY
    with connect(intake) as connection:
        connection.sendall(named + request(token) + named)
        assert read(connection, 3) == [200, 200, 200]


# ---------------------------------------------------------------- a port that several share


def refusal(port: int, ours: str = "intake of this test") -> str:
    with pytest.raises(BadInput) as refused:
        joined("127.0.0.1", port, ours)
    return str(refused.value)


def test_an_intake_joins_the_port_of_another_of_the_same_database_and_schema(intake: Running) -> None:
    ours = mark("intake", intake.database, "hub")
    with joined("127.0.0.1", port_of(intake), ours), connect(intake) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read(connection, 1) == [200], "who joined and does not serve yet is sent nobody"


def test_an_intake_stays_away_from_the_port_of_another_schema_database_or_kind(intake: Running) -> None:
    for others in (
        mark("intake", intake.database, "other"),
        mark("intake", f"{intake.database}2", "hub"),
        mark("api", intake.database, "hub"),
    ):
        said = refusal(port_of(intake), others)
        assert said.startswith(f"port is '{port_of(intake)}': is served by something else than `hub ")
        assert said.endswith("choose another --port, or end it first")


def test_what_an_intake_says_of_itself_shows_neither_server_nor_database(intake: Running) -> None:
    kind, _, digest = intake.get("livez").headers[HEADER].partition(" ")
    assert kind == "intake"
    assert re.fullmatch(r"[0-9a-f]{32}", digest)


@contextmanager
def stranger(answer: bytes, *, answers: int = 1) -> Iterator[int]:
    """A port that somebody else shares with whoever comes; it says the same to so many who ask."""
    with listening("127.0.0.1", 0) as door:

        def serve() -> None:
            for _ in range(answers):
                connection, _ = door.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield door.getsockname()[1]
        thread.join(timeout=15)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0\r\n",
    ],
    ids=["another server", "nothing there", "no HTTP"],
)
def test_an_intake_stays_away_from_the_port_of_a_stranger(answer: bytes) -> None:
    with stranger(answer) as port:
        assert "is served by something else than `hub intake`" in refusal(port)


def test_an_intake_stays_away_from_a_port_where_nobody_answers() -> None:
    with listening("127.0.0.1", 0) as silent:
        assert "is served by something that does not answer" in refusal(silent.getsockname()[1])


def test_who_has_no_time_is_asked_again() -> None:
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with stranger(busy, answers=3) as port:
        assert "is served by something that does not answer" in refusal(port)


def test_a_port_that_is_held_and_not_served_is_free() -> None:
    with closing(held_place()) as place, joined("127.0.0.1", place.getsockname()[1], "intake of this test") as ours:
        assert ours.getsockname() == place.getsockname()


def test_a_port_that_nobody_may_share_is_told_as_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot be used (Address already in use)" in refusal(taken.getsockname()[1])
