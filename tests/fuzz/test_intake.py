"""Whatever strangers send to the intake: an answer that says so, never a 500, and the others are served meanwhile."""

from __future__ import annotations

import json
import logging
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.bounded_http import Bounds
from tests.fuzz import EXAMPLES
from tests.fuzz.test_answers import trees
from tests.intake.conftest import UNHURRIED, Running, serving, until

quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EXPECTED = {200, 400, 401, 404, 405, 408, 411, 413, 417, 431, 501, 503}
WORDS = st.sampled_from(
    [
        *("IdSku", "idSku", "IDSKU", "An", "IdAffiliate", "DateModified", "IsActive", "StockModified", "PriceModified"),
        *("HasStockKeepingUnitModified", "HasStockKeepingUnitRemovedFromAffiliate", "ProductId", "resource", "id"),
        *("marketplaceOrderId", "accountName", "success", "errors", "notifications", "order_id", "topic"),
    ]
)
PATHS = st.sampled_from(
    ["", "/api/notification", "/catalog/notification", "/order-integration/notification/processing-result", "/events"]
)


class Complaints(logging.Handler):
    """What was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.seen.append(record.getMessage())


@pytest.fixture(scope="module")
def open_door(module_database: str) -> Iterator[tuple[Running, str, Complaints]]:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    bounds = Bounds(head_bytes=8_192, body_bytes=20_000, arrival_seconds=1.0, bodies=64)
    with serving(module_database, bounds=bounds, patience=UNHURRIED) as intake:
        yield intake, intake.add_store(), complaints
    logging.getLogger().removeHandler(complaints)


def said_to(intake: Running, raw: bytes, *, half_close: bool = True) -> bytes:
    """What the intake says to these bytes until it hangs up or 3 seconds are over."""
    port = int(intake.url.rsplit(":", 1)[1])
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        try:
            connection.sendall(raw)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65_536):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
    return received


def statuses(received: bytes) -> list[int]:
    return [
        int(line[9:12]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ") and line[9:12].isdigit()
    ]


def still_well(open_door: tuple[Running, str, Complaints], number: str = "1") -> None:
    intake, token, complaints = open_door
    assert intake.post(token, {"IdSku": number, "StockModified": True}).status == 200
    assert not complaints.seen


@quick
@given(PATHS, trees(WORDS), st.sampled_from([None, "utf-8", "utf-16", "latin-1", "utf-8-sig"]))
def test_any_json_is_stored_or_refused(
    open_door: tuple[Running, str, Complaints], path: str, tree: Any, encoding: str | None
) -> None:
    intake, token, complaints = open_door
    text = json.dumps(tree, ensure_ascii=encoding is None)
    answer = intake.post(token + path, raw=text.encode(encoding or "ascii", "replace"))
    assert answer.status in EXPECTED
    assert not complaints.seen


@quick
@given(PATHS, st.binary(max_size=300), st.dictionaries(st.sampled_from(["Expect", "Content-Type", "X-A"]), WORDS))
def test_any_bytes_as_a_body_are_stored_or_refused(
    open_door: tuple[Running, str, Complaints], path: str, body: bytes, headers: dict[str, str]
) -> None:
    intake, token, complaints = open_door
    assert intake.post(token + path, raw=body, headers=headers).status in EXPECTED
    assert not complaints.seen


ODD = st.sampled_from(
    [
        *(b"POST ", b"GET ", b"/", b"/%00", b"/..", b"/\xff", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/9.9", b"\r\n", b"\n"),
        *(b"\r", b"\r\n\r\n", b"Host: x\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"\0"),
        *(b"Content-Length: 99999999999999999999999\r\n", b"Content-Length : 3\r\n", b"Content-Length: 3\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: x\r\n"),
        *(b" folded\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff1\r\n", b"-1\r\n", b"{}", b"Upgrade: h2c\r\n"),
        *(b"Connection: Upgrade, HTTP2-Settings\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Expect: 100-continue\r\n"),
        *(
            b"CONNECT a:1 HTTP/1.1\r\n",
            b"OPTIONS * HTTP/1.1\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"X: " + b"a" * 9_000,
        ),
    ]
)


@quick
@given(st.lists(ODD | st.binary(max_size=20), max_size=12), st.booleans())
def test_any_bytes_on_a_connection_do_no_harm(
    open_door: tuple[Running, str, Complaints], pieces: list[bytes], with_token: bool
) -> None:
    intake, token, complaints = open_door
    start = f"POST /{token} HTTP/1.1\r\nHost: x\r\n".encode() if with_token else b""
    assert set(statuses(said_to(intake, start + b"".join(pieces)))) <= EXPECTED
    assert not complaints.seen


SMUGGLED = b"POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 2\r\nContent-Length: 70\r\n",
        b"Content-Length: 70\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 70\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n",
        b"Transfer-Encoding : chunked\r\nContent-Length: 2\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: 2, 70\r\n",
        b"Content-Length: 0x2\r\n",
        b"Content-Length: 2\r\n Content-Length: 70\r\n",
    ],
)
def test_two_lengths_of_one_body_are_refused_and_nothing_behind_them_is_read(
    open_door: tuple[Running, str, Complaints], headers: bytes
) -> None:
    intake, token, _ = open_door
    head = f"POST /{token} HTTP/1.1\r\nHost: x\r\n".encode() + headers + b"\r\n"
    found = statuses(said_to(intake, head + b"0\r\n\r\n" + SMUGGLED))
    assert found[:1] == [400]
    assert len(found) == 1
    still_well(open_door)


def test_pipelined_garbage_is_never_answered_in_place_of_a_request_before_it(
    open_door: tuple[Running, str, Complaints],
) -> None:
    intake, token, _ = open_door
    good = f'POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{{"IdSku":"1"}}'.encode()
    garbage = b"\x00\x01garbage\r\n\r\n"
    for before in range(4):
        found = statuses(said_to(intake, good * before + garbage + good))
        answered = [[200] * count for count in range(1, before + 1)]
        assert found in [[200] * before + [400], *([[], *answered] if before else [])]
    still_well(open_door)


def test_a_sender_that_resets_its_connection_fills_no_log(
    open_door: tuple[Running, str, Complaints], caplog: pytest.LogCaptureFixture
) -> None:
    intake, token, _ = open_door
    port = int(intake.url.rsplit(":", 1)[1])
    good = f'POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{{"IdSku":"1"}}'.encode()
    with caplog.at_level(logging.INFO):
        for _ in range(30):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close is a reset
            connection.sendall(good * 20)
            connection.close()
        assert statuses(said_to(intake, good)) == [200]  # it came behind them, and so was taken after them
        still_well(open_door)
    # uvicorn.access has no handler but for the one that pytest gives it.
    assert [record.getMessage() for record in caplog.records if record.name != "uvicorn.access"] == []


def times(intake: Running, token: str, count: int = 40) -> float:
    """Median seconds of an answer."""
    found = []
    for number in range(count):
        began = time.perf_counter()
        assert intake.post(token, {"IdSku": str(number + 1), "StockModified": True}).status == 200
        found.append(time.perf_counter() - began)
    return statistics.median(found)


HOLDER = """
import resource, socket, sys
port, count, sent = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for _ in range(count):
    held.append(socket.create_connection(("127.0.0.1", port), timeout=10))
    held[-1].sendall(sent)
print(len(held), flush=True)
sys.stdin.read()
closed = 0
for connection in held:
    connection.setblocking(False)
    try:
        closed += not connection.recv(1)
    except BlockingIOError:
        pass
    except OSError:
        closed += 1
print(closed, flush=True)
"""
"""A process with descriptors of its own: opens connections, says how many, and at the end how many were closed."""


def idle_connections() -> int:
    """10,000 in the long run, or as many as this process may accept; else 1,000."""
    if EXAMPLES < 400:
        return 1_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(10_000, hard - 1_000)


@pytest.mark.parametrize("sent", [b"", b"POST /x HTTP/1.1\r\nHost: x\r\n"], ids=["silent", "half a head"])
def test_others_are_served_beside_thousands_of_connections_that_say_nothing_or_half(
    module_database: str, tmp_path: Path, sent: bytes
) -> None:
    bounds = Bounds(arrival_seconds=120.0)
    with serving(module_database, bounds=bounds, spool=tmp_path) as intake:
        token = intake.add_store(f"idle-{len(sent)}-mkt", f"idle{len(sent)}", "SLN")
        alone = times(intake, token)
        port = intake.url.rsplit(":", 1)[1]
        count = idle_connections()
        command = [sys.executable, "-c", HOLDER, port, str(count), sent.hex()]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert int(holder.stdout.readline()) == count
            beside = times(intake, token)
            holder.stdin.close()
            assert int(holder.stdout.readline()) == 0, "connections were closed before their time"
        assert beside < 20 * alone + 0.1, f"{count} idle connections: {beside / alone:.1f} times slower"


def test_those_who_drip_are_cut_off_while_others_are_served(open_door: tuple[Running, str, Complaints]) -> None:
    intake, token, complaints = open_door
    port = int(intake.url.rsplit(":", 1)[1])
    head = f"POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    before = intake.refused("slow")
    with ExitStack() as held:
        slow = [held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(60)]
        for number, connection in enumerate(slow):
            connection.sendall(head + b"x" if number % 2 else head[:30])
        assert times(intake, token) < 1.0
        until(lambda: intake.refused("slow") >= before + len(slow))
        assert all(statuses(connection.recv(4_096)) == [408] for connection in slow)
    assert not complaints.seen


def test_a_body_without_end_is_cut_off(open_door: tuple[Running, str, Complaints]) -> None:
    intake, token, _ = open_door
    port = int(intake.url.rsplit(":", 1)[1])
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"POST /{token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        try:
            while sent < 50_000_000:
                connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                sent += 65_536
        except ConnectionError:
            pass
    assert sent < 50_000_000
    still_well(open_door)


def test_an_error_tells_the_same_of_every_token_that_opens_nothing(open_door: tuple[Running, str, Complaints]) -> None:
    intake, token, _ = open_door
    other = intake.add_store("other-mkt", "other", "THR")
    flipped = other[:-1] + ("A" if other[-1] != "A" else "B")
    answers = {intake.post(wrong, {"IdSku": 1}).body["error"].replace(wrong[:4], "") for wrong in (flipped, "x" * 43)}
    assert len(answers) == 1
    assert not any("other" in answer or "acme" in answer for answer in answers)
    foreign = intake.post(token, {"IdSku": 1, "An": "other", "IdAffiliate": "THR", "StockModified": True})
    assert (foreign.status, foreign.body) == (200, None)  # as if it were ours; kept out of every queue
