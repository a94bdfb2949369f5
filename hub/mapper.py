"""The seller's own category mapping, asked live: a page of the store's app in VTEX that knows what the table lacks.

For sellers who keep their mapping in an app made with VTEX's template (vtex.md 3.4) instead of `hub mappings`. What it
says is kept in the table, so each category is asked for once. Without an answer the SKU waits and is tried again (E5).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from hub.circuits import LOOK_AGAIN, SUSPICION
from hub.errors import CircuitOpen, MapperAway, NotNow, Unavailable
from hub.transport import Peer

LONGEST = 200  # characters of a marketplace's category id


@dataclass(frozen=True, slots=True)
class CategoryMapper:
    """`hub.ports.Mapper` over HTTP: `GET {mapper_url}/{category}` → 200 `{"remote": "<id>"}`, or 404 when unmapped.

    `peer` sends the store's `appkey` and `apptoken`, as the template app wants them.
    """

    peer: Peer
    auth_version: int = 0

    def remote(self, category: str) -> str | None:
        """The marketplace category for a VTEX category, `None` while the seller has not mapped it.

        Raises:
            MapperAway: it does not answer, or its circuit is open.
            NotNow: for this key; another call is just about to tell whether it answers.
        """
        try:
            answer = self.peer.request(
                "GET",
                f"/{quote(category, safe='')}",
                operation="mapper",
                group="mapper",
                auth_version=self.auth_version,
            )
        except CircuitOpen as shut:
            if shut.wait <= max(LOOK_AGAIN, SUSPICION):
                raise NotNow(str(shut), wait=shut.wait, scope="key") from shut
            raise MapperAway(str(shut)) from shut
        except Unavailable as away:
            raise MapperAway(str(away), status=away.status) from away
        if answer.status == 404:
            return None
        tree = answer.tree()
        remote = tree.get("remote") if isinstance(tree, dict) else None
        if not answer.ok or not isinstance(remote, str) or not 0 < len(remote) <= LONGEST:
            raise MapperAway(
                f"unreadable answer of the category mapper ({answer.status}): field 'remote' must be a text"
            )
        return remote
