"""A simulated VTEX account, and the hub's client of it over real HTTP through the real transport."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hub.simulators.control import VtexControl
from hub.simulators.serving import in_thread
from hub.simulators.vtex import World, app
from hub.transport import Transport
from hub.vtex import VtexStore

ACCOUNT = "acme"
KEY = "vtexappkey-acme-ABCDEF"
TOKEN = "synthetic-token"
AFFILIATE = "MKT"
HUB_URL = "https://hub.example/n/t0ken"


@pytest.fixture(scope="session")
def vtex_url() -> Iterator[str]:
    with in_thread(app(World(seed=7))) as url:
        yield url


@pytest.fixture
def control(vtex_url: str) -> Iterator[VtexControl]:
    """The account `acme`: channels 1 and 2, twelve SKUs of 99.90 with 37 pieces in channel 1, one affiliate."""
    control = VtexControl(vtex_url)
    control.reset(seed=7)
    control.open_account(
        ACCOUNT,
        KEY,
        TOKEN,
        channels=[{"id": 1}, {"id": 2, "name": "Other", "active": False}],
        categories=[{"id": 1, "name": "Casa"}, {"id": 10, "name": "Cozinha", "parent": 1}],
        affiliates=[{"id": AFFILIATE, "sales_channel": 1, "search_uri_endpoint": f"{HUB_URL}/api/notification/?x=1"}],
    )
    control.grow(ACCOUNT, 12, category_ids=[10], price=[9990, 9990], stock=[37, 37])
    yield control
    control.close()


@pytest.fixture
def connected(control: VtexControl) -> Iterator[Callable[..., VtexStore]]:
    """Makes the client of a store; what is named differs."""
    transport = Transport(None, "vtex-tests")

    def connect(*, key: str = KEY, token: str = TOKEN, url: str = "", total: float = 0.0, **changed: Any) -> VtexStore:
        peer = transport.peer(
            "acme-mkt",
            "vtex",
            url or control.account_url(changed.get("account", ACCOUNT)),
            account=f"vtex:{ACCOUNT}",
            headers={"X-VTEX-API-AppKey": key, "X-VTEX-API-AppToken": token},
        )
        known: dict[str, Any] = {"account": ACCOUNT, "affiliate": AFFILIATE, "sales_channel": 1, "hub_url": HUB_URL}
        return VtexStore(peer=peer, **{**known, **changed})

    yield connect
    transport.close()


@pytest.fixture
def store(connected: Callable[..., VtexStore]) -> VtexStore:
    return connected()
