"""Pages for whoever runs the endpoint: alive, ready, and how much waits, without a store's name."""

import socket
import threading

import pytest
import requests
from cryptography.fernet import Fernet

from hub.model import Ask
from hub.stores import SecretBox
from tasks.api import opened
from tasks.shared_port import listening
from tests.api.conftest import CONTEXTS, Shelf


def test_the_figures_tell_what_waits_by_context_and_no_store(shelf: Shelf) -> None:
    ledger, store = shelf.endpoint.ledger, shelf.store.id
    ledger.enqueue([Ask(store, "stock", str(number), "vtex") for number in range(3)])
    ledger.enqueue([Ask(store, "price", "1", "vtex")])
    ledger.shut(store, "price", "marketplace", cause="quota", who="hub", why="used up", seconds=None)
    with shelf.endpoint.pool.connection() as connection:
        connection.execute("update states set work = 's', due_at = now(), status = 'dead' where context = 'price'")
    page = shelf.endpoint.get("/metrics").text
    assert 'hub_pending_keys{context="stock"} 3.0' in page
    assert 'hub_dead_keys{context="price"} 1.0' in page
    assert 'hub_shut_gates{cause="quota",context="price"} 1.0' in page
    assert 'hub_oldest_pending_seconds{context="stock"} ' in page
    assert "acme" not in page


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"garbage\r\n\r\n", b"400", "no_http"),
        (b"GET /logs HTTP/1.1\r\n\r\n", b"400", "no_host"),
        (b"GET /logs HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400", "many_hosts"),
        (b"GET /logs HTTP/1.1\r\nHost: a b\r\n\r\n", b"400", "bad_host"),
    ],
)
def test_what_is_no_proper_http_is_refused_and_counted(shelf: Shelf, sent: bytes, status: bytes, reason: str) -> None:
    port = int(shelf.endpoint.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(sent)
        assert connection.recv(100).startswith(b"HTTP/1.1 %b " % status)
    assert f'hub_api_refused_total{{reason="{reason}"}} 1.0' in shelf.endpoint.get("/metrics").text


def test_it_lives_without_postgresql_and_says_what_is_missing() -> None:
    box = SecretBox([Fernet.generate_key()])
    bound = listening("127.0.0.1", 0)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    away = "postgresql://nobody@127.0.0.1:1/nothing"
    with opened(away, "hub", box, contexts=CONTEXTS) as server:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            assert requests.get(f"{url}/livez", timeout=10).status_code == 200
            assert requests.get(f"{url}/readyz", timeout=10).status_code == 503
            answer = requests.get(f"{url}/sometoken/logs/", timeout=15)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "127.0.0.1" not in answer.text
        finally:
            server.should_exit = True
            thread.join(timeout=15)
