"""The rehearsal that `hub simulate` prints can be followed word by word."""

import json
import shlex

from hub.simulators import example, marketplace, vtex
from hub.simulators.control import VtexControl
from hub.simulators.serving import in_thread
from tests.cli.conftest import Hub


def test_the_line_that_is_printed_registers_the_example_store(hub: Hub) -> None:
    with in_thread(vtex.app(vtex.World(1))) as vtex_url, in_thread(marketplace.app()) as marketplace_url:
        seller = example.opened(vtex_url, marketplace_url)
        printed = example.lines(vtex_url, seller)
        (line,) = [one for one in printed if one.startswith("hub store add ")]
        secrets = {one.split()[-2]: one.split()[-1] for one in printed if one.startswith("#   ")}
        assert secrets["token"] == seller.token
        entered = {
            "vtex": {"app_key": secrets["app_key"], "app_token": secrets["app_token"]},
            "marketplace": {"token": secrets["token"]},
        }
        url = hub(*shlex.split(line)[1:], stdin=json.dumps(entered)).out.strip()
        assert "affiliate" in hub("store", "check", example.STORE, code=1).out
        shop = VtexControl(vtex_url)
        shop.put_affiliate(example.ACCOUNT, example.AFFILIATE, sales_channel=1, endpoint=url)
        shop.close()
        hub("store", "check", example.STORE)
        (written,) = [shlex.split(one)[1] for one in printed if one.startswith("printf ")]
        mapped = hub("mappings", "import", example.STORE, "-", "--yes", stdin=written.replace("\\n", "\n"), code=None)
        assert mapped.code == 0, mapped.talk


def test_the_example_keeps_to_this_machine_and_says_so(hub: Hub) -> None:
    assert "--host is '0.0.0.0': the example listens" in hub("simulate", "--host", "0.0.0.0", code=2).talk
