"""What VTEX's answers about an order mean: results as facts, codes as reactions, statuses as states (vtex.md 9.4, 10.5,
11.1).

Pure. Neither the order nor the number of results matters, because they come late, doubled and inverted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hub.model import IntegrationAnswer

FEW: Final = 5
"""Tries after which an order that VTEX refuses without a reason is set aside (EOI000, EOI001: ORD-24)."""

STATUS: Final[Mapping[str, str]] = {
    "waiting-for-manual-authorization": "waiting_authorization",
    "waiting-for-authorization": "waiting_authorization",
    "waiting-for-order-authorization": "waiting_authorization",
    "waiting-ffmt-authorization": "integrated",
    **dict.fromkeys(
        ("window-to-cancel", "authorize-fulfillment", "ready-for-handling", "start-handling", "handling", "invoice",
         "invoiced", "waiting-seller-handling", "invoice-after-cancellation-deny", "cancellation-requested"),
        "approved",
    ),
    "canceled": "cancelled",
}  # fmt: skip
"""Status in VTEX → state in the hub (vtex.md 11.1). What is not here, null included, leaves the state as it is."""

UNAPPROVED: Final = "waiting-ffmt-authorization"

_INNER: Final[Mapping[str, str]] = {
    **dict.fromkeys(("FMT003", "FMT004", "FMT005", "FMT010"), "EOI002"),
    **dict.fromkeys(("ORD013", "ORD023", "ORD027", "ORD028", "ORD050"), "EOI002"),
    **dict.fromkeys(("FMT006", "FMT007"), "EOI003"),
    **dict.fromkeys(("FMT0026", "FMT0038", "FMT0039", "FMT0040", "FMT0041", "FMT0042", "FMT0043"), "EOI004"),
    **dict.fromkeys(("FMT0021", "FMT0036"), "EOI004"),
    **dict.fromkeys(("FMT001", "FMT015", "FMT017"), "EOI005"),
    **dict.fromkeys(("FMT002", "FMT0056", "ORD021.3", "CHK00310", "CHK00311"), "EOI006"),
    "FMT009": "EOI007",
}
"""Inner code of an unmapped refusal (EOI001) → the code that means the same (vtex.md 10.5)."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """What a refusal leads to: `log` is our code, `advice` who has to do what, `tries` after how many it is set aside.

    `look`: it proves nothing, so VTEX is asked for the order first.
    """

    log: str
    advice: str
    tries: int | None = None
    look: bool = False


BY_ITSELF: Final = "the hub tries again by itself"
_SUPPORT: Final = "VTEX gives no reason: contact its support with the operation id"
REACTIONS: Final[Mapping[str, Reaction]] = {
    "EOI007": Reaction("O.N", f"VTEX says that it exists but does not show it: {BY_ITSELF}", look=True),
    "EOI005": Reaction("O.I", "complete the order on the marketplace, or correct the store's settings", tries=0),
    "EOI004": Reaction("O.N", "the seller corrects SKU, minimum value or quantity in VTEX, then resends it", tries=0),
    "EOI002": Reaction("O.D", f"the seller checks stock, trade policy and carriers in VTEX: {BY_ITSELF}"),
    "EOI003": Reaction("O.J", f"the seller makes a divergence rule for the price in VTEX: {BY_ITSELF}"),
    "EOI001": Reaction("O.N", _SUPPORT, tries=FEW, look=True),
    "EOI000": Reaction("O.N", _SUPPORT, tries=FEW, look=True),
    "EOI010": Reaction("V0", f"VTEX ran out of time: {BY_ITSELF}", look=True),
    "EOI006": Reaction("V0", f"VTEX failed by itself: {BY_ITSELF}", look=True),
}
"""What follows when VTEX does not take an order (vtex.md 9.4). Of several refusals the first in this table counts."""

_PRECEDENCE: Final = {code: place for place, code in enumerate(REACTIONS)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What VTEX's results say together. `state`: it is in VTEX, as far as this. `authorize`: the seller must decide.

    `refusal` (of the creation) and `denial` (of the approval) are answers to what was sent last, never to what was sent
    before.
    """

    state: Literal["integrated", "approved"] | None = None
    authorize: bool = False
    refusal: IntegrationAnswer | None = None
    denial: IntegrationAnswer | None = None
    vtex_order: str | None = None
    operation: str | None = None


def verdict(results: Sequence[IntegrationAnswer], sent: float | None) -> Verdict:
    """Judge the results of an order, whatever their order and number (ORD-10).

    `sent`: seconds since something was sent last. Results of an order never sent count for nothing (ORD-38).
    """
    if sent is None:
        return Verdict()
    good = [one for one in results if one.code in {"SOI001", "SOI002"}]
    before = {(one.operation_id, one.code) for one in results if one.operation_id and (one.age or 0.0) > sent}
    news = [
        one
        for one in results
        if (one.age or 0.0) <= sent and (one.operation_id, one.code) not in before and one.code.startswith("EOI")
    ]
    approving = [one for one in news if one.flow == "ApproveOrder" or one.code in {"EOI008", "EOI009"}]
    placing = [one for one in news if one not in approving and one.code != "EOI011"]
    state: Literal["integrated", "approved"] | None = None
    if good:
        state = "approved" if any(one.code == "SOI002" for one in good) else "integrated"
    return Verdict(
        state=state,
        authorize=any(one.code == "EOI011" for one in news),
        refusal=min(placing, key=_weight, default=None),
        denial=min(approving, key=_weight, default=None),
        vtex_order=min((one.main_order_id for one in good if one.main_order_id), default=None),
        operation=min((one.operation_id for one in good or news if one.operation_id), default=None),
    )


def meaning(answer: IntegrationAnswer) -> str:
    """The code that a refusal is treated as: an unmapped one by its inner codes (10.5), an unknown one as unmapped."""
    if answer.code in REACTIONS and answer.code != "EOI001":
        return answer.code
    found = {_INNER.get(inner, "EOI006" if inner.startswith("ORD015") else "EOI001") for inner in answer.inner_codes}
    return min(found, key=lambda code: _PRECEDENCE[code], default="EOI001")


def _weight(answer: IntegrationAnswer) -> tuple[int, str, str]:
    return (_PRECEDENCE[meaning(answer)], answer.operation_id, answer.code)
