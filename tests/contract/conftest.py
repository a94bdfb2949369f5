"""Every marketplace that is found, and the one of the tests, in front of the same suite."""

from collections.abc import Iterator, Mapping

import pytest

from hub.marketplaces import register
from hub.ports import Marketplace
from hub.transport import Transport
from tests.contract.outlet import OUTLET
from tests.contract.rigs import RIGS, Opening, Rig, rigs

register("outlet", OUTLET)


@pytest.fixture(scope="session")
def openings() -> Iterator[Mapping[str, Opening]]:
    with rigs(Transport(None, "contract")) as opened:
        yield opened


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, openings: Mapping[str, Opening]) -> Rig:
    return openings[request.param]()


@pytest.fixture
def marketplace(rig: Rig) -> Marketplace:
    return rig.connect()
