"""A rehearsal: both simulators, an account with SKUs on one side, a seller on the other, and what to type to join them.

Whoever follows what `lines` says has registered a store, mapped its category and loaded it, as with real peers.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

from hub.simulators import marketplace, vtex
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import MarketplaceControl
from hub.simulators.serving import in_thread

if TYPE_CHECKING:
    from hub.simulators.marketplace_control import SellerAccount

SKUS: Final = 20
ACCOUNT, AFFILIATE, STORE = "example", "XMP", "my-store"
APP_KEY, APP_TOKEN = "vtexappkey-example-ABCDEF", "token-of-example"
REMOTE: Final = "MC-130"


def opened(vtex_url: str, marketplace_url: str) -> SellerAccount:
    """Open the example's account (20 SKUs in one category) and seller on simulators that run there."""
    shop = VtexControl(vtex_url)
    shop.open_account(
        ACCOUNT,
        APP_KEY,
        APP_TOKEN,
        categories=[{"id": 1, "name": "Casa"}],
        affiliates=[{"id": AFFILIATE, "sales_channel": 1}],
    )
    shop.grow(ACCOUNT, SKUS, first_id=1, category_ids=[1], channels=[1], stock=[5, 60])
    shop.close()
    market = MarketplaceControl(marketplace_url)
    seller = market.open_account(STORE, "sync")
    market.close()
    return seller


def lines(vtex_url: str, seller: SellerAccount) -> list[str]:
    """What to type, in order; each line that is no comment can be pasted into a shell."""
    affiliate = f'{{"id": "{AFFILIATE}", "sales_channel": 1, "search_uri_endpoint": "\'"$HUB_URL"\'"}}'
    return [
        f"# a VTEX account with {SKUS} SKUs and a seller of a marketplace; in the directory where `hub up` runs:",
        f"hub store add {STORE} --account {ACCOUNT} --affiliate {AFFILIATE} --sales-channel 1 "
        f"--marketplace sandbox-sync --vtex-url '{vtex_url}/{{account}}' --marketplace-url {seller.url}",
        "# it asks for these secrets (leave the others empty):",
        f"#   VTEX app_key       {APP_KEY}",
        f"#   VTEX app_token     {APP_TOKEN}",
        f"#   marketplace token  {seller.token}",
        "# the URL it prints belongs into the affiliate, here in the simulated VTEX:",
        "HUB_URL=…",
        f"curl -sS -X PUT {vtex_url}/_control/accounts/{ACCOUNT}/affiliates -d '{affiliate}'",
        f"printf 'category,remote,name\\n1,{REMOTE},Casa\\n' > categories.csv",
        f"hub mappings import {STORE} categories.csv",
        f"hub load {STORE}",
        f"hub sku explain {STORE} 1",
        "# a change, of which the simulated VTEX notifies the hub:",
        f"curl -sS -X PATCH {vtex_url}/_control/accounts/{ACCOUNT}/skus -d "
        '\'{"changes": [{"id": 1, "price": 4990}], "notify": true}\'',
    ]


def run(port: int = 0) -> int:
    """Serve VTEX at `port` and the marketplace at the next one (0: free ones) until interrupted; returns 0.

    Raises:
        OSError: a port is taken.
    """
    with (
        in_thread(vtex.app(vtex.World(1)), port) as vtex_url,
        in_thread(marketplace.app(), port + 1 if port else 0) as marketplace_url,
    ):
        sys.stdout.write("\n".join(lines(vtex_url, opened(vtex_url, marketplace_url))) + "\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0
