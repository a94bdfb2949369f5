"""Why a SKU shows as it does: the gate of vtex.md 7.1, run live, each check with its fact, the fact's age, its verdict.

Both sides are asked now; nothing is written anywhere. What the hub would do next is decided by the context's own
`decide`, so that an explanation cannot differ from what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from psycopg import Connection
from psycopg_pool import ConnectionPool

from hub import messages, reports
from hub.circuits import Circuit
from hub.contexts import catalog
from hub.contexts.step import Send, Step, fresh_reference, price_from_json, sentences
from hub.errors import AuthLost, CircuitOpen, HubError, NotFound, Problem, Side, Throttled
from hub.ledger import Gate
from hub.messages import Language
from hub.model import Binding, BindingState, Price, Product, Row, Shown, SimulatedItem
from hub.outcome import Done, Ending, Parked, Refused
from hub.ports import CartItem, Link, Manifest, MappedCategory, Rendered
from hub.reports import KeyState
from hub.rules.inventory import quantity_of
from hub.rules.pricing import decimal_text, price_of
from hub.rules.validation import availability, defaults_problems, standing

Verdict = Literal["pass", "warn", "fail", "unknown"]
CONTEXTS = ("catalog", "price", "stock")

_T = TypeVar("_T")
Pool = ConnectionPool[Connection[tuple[object, ...]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the gate. `age` of the fact in seconds: 0 when it was read just now, `None` when it has none."""

    number: int
    name: str
    verdict: Verdict
    fact: str
    age: float | None = 0.0
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Compared:
    """One value as VTEX sells it now, as the store's rules make it, as the hub last confirmed it, as it is shown.

    `context` is the one that keeps it.
    """

    context: str
    name: str
    vtex: str
    wanted: str
    confirmed: str
    confirmed_age: float | None
    shown: str
    agrees: bool | None


@dataclass(frozen=True, slots=True)
class Advice:
    """Who must act, and what to do."""

    code: str
    actor: str
    message: str
    do: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole story of one SKU. `known`: VTEX or the hub has ever heard of it; `actor` must act first, or nobody."""

    sku: str
    store: str
    headline: str
    known: bool
    checks: tuple[Check, ...]
    rows: tuple[KeyState, ...]
    values: tuple[Compared, ...]
    advice: tuple[Advice, ...]
    next_step: str
    link: str = ""
    actor: str = "nobody"

    @property
    def well(self) -> bool:
        """Every check could be made, and none failed."""
        return not any(check.verdict in {"fail", "unknown"} for check in self.checks)


@dataclass(slots=True)
class _Seen:
    """What was read, and what could not be read: side → why."""

    link: Link
    sku: str
    away: dict[Side, HubError] = field(default_factory=dict)
    mapper_away: HubError | None = None
    mapped_live: bool = False
    product: Product | None = None
    binding: Binding | None = None
    mapping: MappedCategory | None = None
    rendered: Rendered | None = None
    offered: SimulatedItem | None = None
    shown: Shown | None = None

    def ask(self, side: Side, call: Callable[[], _T]) -> _T | None:
        try:
            return call()
        except NotFound:
            return None
        except HubError as error:
            self.away.setdefault(side, error)
            return None


def explain(
    link: Link,
    pool: Pool,
    sku: str,
    *,
    status: str = "active",
    gates: Sequence[Gate] = (),
    circuits: Sequence[Circuit] = (),
    language: Language = "en",
) -> Explanation:
    """Read both sides now and explain. Never raises because one of them does not answer.

    `status` is the store's; `gates` and `circuits` are those of the store that are not open or closed.
    """
    seen = _read(link, sku)
    rows = tuple(reports.key_states(pool, link.store, sku, CONTEXTS))
    checks = tuple(_checks(pool, seen, rows, status, gates))
    values = tuple(_values(seen, rows))
    advice = tuple(_advice(seen, checks, rows, gates=gates, circuits=circuits, language=language))
    acting = next((one.actor for one in advice if one.actor != "nobody"), "nobody")
    active = status == "active"
    resumed = f"nothing is sent while the store is {status}" + (
        f"; hub store resume {link.slug} lets it go on" if status == "paused" else ""
    )
    return Explanation(
        sku=sku,
        store=link.slug,
        headline=("" if active else f"STORE {status.upper()}; ") + _headline(seen, checks),
        known=bool(seen.away) or seen.product is not None or seen.binding is not None or bool(rows),
        checks=checks,
        rows=rows,
        values=values,
        advice=advice,
        next_step="; ".join([_next_step(seen, rows), *_left_alone(link, values, rows)]) if active else resumed,
        link=seen.shown.link if seen.shown else seen.binding.link if seen.binding else "",
        actor=acting if active else "operator",
    )


def _read(link: Link, sku: str) -> _Seen:
    seen = _Seen(link, sku, binding=link.states.binding(sku))
    seen.product = seen.ask("vtex", lambda: link.vtex.product(sku))
    if seen.product is not None:
        product = seen.product
        mapping = _mapping(seen, product.category)
        seen.mapping = mapping
        seen.rendered = link.marketplace.render(product, mapping.remote or "", link.rules.listing)
    if "vtex" not in seen.away:
        simulation = seen.ask("vtex", lambda: link.vtex.simulate([CartItem(sku)]))
        seen.offered = simulation.items.get(sku) if simulation else None
    remote = seen.binding.remote_id if seen.binding else None
    seen.shown = seen.ask("marketplace", lambda: link.marketplace.show(sku, remote))
    return seen


def _mapping(seen: _Seen, category: str) -> MappedCategory:
    """The table's word, else that of the seller's mapper, which is not kept here."""
    kept, mapper = seen.link.states.mapped(category), seen.link.mapper
    if kept.remote is not None or mapper is None:
        return kept
    try:
        remote = mapper.remote(category)
    except HubError as error:
        seen.mapper_away = error
        return kept
    seen.mapped_live = remote is not None
    return MappedCategory(category, remote, kept.version)


# ---------------------------------------------------------------- the gate


def _checks(pool: Pool, seen: _Seen, rows: Sequence[KeyState], status: str, gates: Sequence[Gate]) -> Iterator[Check]:
    link, product = seen.link, seen.product
    yield _credentials(seen, gates)
    yield Check(
        _STORE_CHECK,
        "store known and active",
        "pass" if status == "active" else "fail",
        f"{link.slug} is {status}; affiliate {link.affiliate}, trade policy {link.sales_channel}",
        None,
    )
    blind = seen.away.get("vtex")
    if product is None and blind is not None:
        for number, name in _OF_VTEX:
            yield Check(number, name, "unknown", _why(blind))
    else:
        yield from _of_vtex(pool, seen)
    yield _accepted(seen, rows)
    yield _listed(pool, seen)


_STORE_CHECK = 1
_OF_VTEX = (
    (2, "SKU readable in VTEX"),
    (3, "SKU active"),
    (4, "SKU in the trade policy"),
    (5, "product active"),
    (6, "marketplace's rules"),
    (7, "category mapped"),
    (8, "mapper reachable"),
    (9, "price and stock"),
    (10, "transformation"),
)


def _credentials(seen: _Seen, gates: Sequence[Gate]) -> Check:
    name = "credentials accepted"
    lost = {side: error for side, error in seen.away.items() if isinstance(error, AuthLost)}
    shut = [gate for gate in gates if gate.cause == "credentials"]
    if lost or shut:
        said = [f"{side}: {error}" for side, error in lost.items()]
        said += [f"{gate.side} ({gate.context}): {gate.why}" for gate in shut if gate.side not in lost]
        return Check(0, name, "fail" if lost else "warn", "; ".join(said), 0.0 if lost else None)
    if seen.away:
        return Check(0, name, "unknown", "; ".join(f"{side}: {_why(error)}" for side, error in seen.away.items()))
    return Check(0, name, "pass", "VTEX and the marketplace answer")


def _of_vtex(pool: Pool, seen: _Seen) -> Iterator[Check]:
    link, product, sku = seen.link, seen.product, seen.sku
    barred = standing(product, sku, link.sales_channel)
    if product is None:
        yield Check(2, _OF_VTEX[0][1], "fail", "VTEX does not know it", 0.0, barred)
        return
    found = {problem.field: problem for problem in barred}
    yield Check(2, _OF_VTEX[0][1], "pass", f"{product.name}, product {product.product}")
    for number, name, where, fact in (
        (3, "SKU active", "SKU active", "yes" if product.active else "no"),
        (4, "SKU in the trade policy", "trade policies", ", ".join(map(str, product.channels)) or "none"),
        (5, "product active", "product active", "yes" if product.product_active else "no"),
    ):
        problem = found.get(where)
        yield Check(number, name, "fail" if problem else "pass", fact, 0.0, (problem,) if problem else ())
    rendered = seen.rendered
    broken = rendered.problems if rendered else ()
    said = sentences(broken) if broken else f"all of {link.marketplace.manifest.title} kept"
    yield Check(6, "marketplace's rules", "fail" if broken else "pass", said, 0.0, broken)
    yield _mapped(pool, seen, product)
    yield _reachable(seen)
    yield _sold(seen, inactive=any(problem.code == "A2" for problem in barred))
    used = dict(rendered.defaults_used) if rendered else {}
    words = f"defaults used: {', '.join(f'{name}={value}' for name, value in sorted(used.items()))}" if used else ""
    missing = rendered is not None and rendered.listing is None and not broken and seen.mapping is not None
    yield Check(
        10,
        "transformation",
        "fail" if missing and seen.mapping and seen.mapping.remote else "warn" if used else "pass",
        words or ("could not be turned into a listing" if missing else "nothing had to be filled in"),
        0.0,
        defaults_problems(used),
    )


def _reachable(seen: _Seen) -> Check:
    if seen.mapper_away is not None:
        return Check(8, "mapper reachable", "fail", _why(seen.mapper_away))
    if seen.link.mapper is None:
        return Check(8, "mapper reachable", "pass", "none is asked: the table is the hub's own", None)
    return Check(8, "mapper reachable", "pass", "it answers" if seen.mapped_live else "not asked: the table knows")


def _mapped(pool: Pool, seen: _Seen, product: Product) -> Check:
    name = f"{product.category} {product.category_path or product.category_name}".strip()
    mapping = seen.mapping
    if mapping is not None and mapping.remote is not None:
        age = reports.mapping_age(pool, seen.link.store, product.category)
        return Check(7, "category mapped", "pass", f"{name} → {mapping.remote}", 0.0 if seen.mapped_live else age)
    if seen.mapper_away is not None:
        return Check(7, "category mapped", "unknown", f"{name}: the seller's mapper does not answer")
    fix = f"map it: {seen.link.rules.mapping_link or f'hub mappings import {seen.link.slug} FILE'}"
    return Check(7, "category mapped", "fail", f"{name} is not mapped", 0.0, (Problem("E4", "category", name, fix),))


def _sold(seen: _Seen, *, inactive: bool) -> Check:
    link, blind = seen.link, seen.away.get("vtex")
    if blind is not None:
        return Check(9, "price and stock", "unknown", _why(blind))
    absent = availability(seen.offered, seen.sku, link.sales_channel, link.rules.pricing)
    if seen.offered is None and inactive:  # checks 3 and 5 say why: what is missing here is not for the policy to give
        return Check(9, "price and stock", "fail", "VTEX sells nothing that is inactive")
    if absent:
        fact = "not in the simulation's answer" if seen.offered is None else "no price"
        return Check(9, "price and stock", "fail", fact, 0.0, absent)
    price = price_of(seen.offered, link.rules.pricing)
    pieces = quantity_of(seen.offered, link.rules.inventory, link.marketplace.manifest.max_stock)
    fact = f"price {_money(price)}, stock {pieces.pieces}"
    return Check(9, "price and stock", "warn" if pieces.warnings else "pass", fact, 0.0, pieces.warnings)


def _accepted(seen: _Seen, rows: Sequence[KeyState]) -> Check:
    name = "marketplace accepts"
    said = [row for row in rows if row.code in {"E2", "E3", "D0"} or row.status in {"delayed", "unknown", "dead"}]
    if said:
        problems = tuple(problem for row in said for problem in row.problems if problem.code == "E3")
        words = "; ".join(
            f"{row.context}: {row.status} {sentences(row.problems) or row.why or ''}".strip() for row in said
        )
        ages = [row.answered for row in said if row.answered is not None]
        return Check(11, name, "fail", words, min(ages, default=None), problems)
    waiting = [row for row in rows if row.status == "waiting"]
    if waiting:
        return Check(11, name, "warn", "its answer is awaited", waiting[0].answered)
    answered = [row.answered for row in rows if row.status == "done" and row.answered is not None]
    if answered:
        return Check(11, name, "pass", "its last answers were good", min(answered))
    if (error := seen.away.get("marketplace")) is not None:
        return Check(11, name, "unknown", _why(error))
    return Check(11, name, "unknown", "nothing was sent yet", None)


def _listed(pool: Pool, seen: _Seen) -> Check:
    name, binding, shown = "listed, pair stored", seen.binding, seen.shown
    if "marketplace" in seen.away:
        kept = f"pair {seen.sku} = {binding.remote_id}" if binding else "no pair stored"
        return Check(12, name, "unknown", f"{kept}; what is shown cannot be read: {_why(seen.away['marketplace'])}")
    if binding is None:
        if shown is not None:
            return Check(12, name, "warn", f"shown as {shown.remote_id}, but no pair is stored yet")
        return Check(12, name, "fail", "not on the marketplace")
    _, age = reports.facts_of_listing(pool, seen.link.store, seen.sku)
    if shown is None:
        return Check(12, name, "fail", f"pair {binding.remote_id} is stored, but the marketplace does not show it", age)
    active = "for sale" if shown.active else "blocked"
    agree = shown.active == (binding.state is BindingState.PUBLISHED)
    fact = f"{binding.remote_id}, {active}" + ("" if agree else f"; the hub holds it for {binding.state.value}")
    return Check(12, name, "pass" if agree and shown.active else "warn", fact, age)


# ---------------------------------------------------------------- three sides


def _values(seen: _Seen, rows: Sequence[KeyState]) -> Iterator[Compared]:
    link, offered = seen.link, seen.offered
    manifest = link.marketplace.manifest
    kept = {row.context: row for row in rows}
    unread = "?" if "vtex" in seen.away else "-"
    hidden = "?" if "marketplace" in seen.away else "-"
    price = price_of(offered, link.rules.pricing)
    raw = f"{_cents(offered.price)} / {_cents(offered.list_price)}" if offered else unread
    row = kept.get("price")
    shown = seen.shown.price if seen.shown else None
    confirmed = price_from_json(row.confirmed) if row else None
    yield Compared(
        "price",
        "price / list price",
        raw,
        _money(price) if offered else unread,
        _money(confirmed),
        row.confirmed_age if row and confirmed else None,
        _money(shown) if shown else hidden,
        price == shown if price and shown else None,
    )
    stock = kept.get("stock")
    known = (stock.confirmed or {}).get("quantity") if stock and isinstance(stock.confirmed, dict) else None
    pieces = quantity_of(offered, link.rules.inventory, manifest.max_stock).pieces
    on_show = seen.shown.stock if seen.shown else None
    yield Compared(
        "stock",
        "stock",
        str(offered.stock) if offered else unread,
        str(pieces) if "vtex" not in seen.away else unread,
        "-" if known is None else str(known),
        stock.confirmed_age if stock and known is not None else None,
        hidden if on_show is None else str(on_show),
        pieces == on_show if on_show is not None and "vtex" not in seen.away else None,
    )
    listing, registered = kept.get("catalog"), seen.rendered.listing if seen.rendered else None
    title = ((listing.confirmed or {}).get("listing") or {}).get("title") if listing else None
    displayed = seen.shown.listing if seen.shown else None
    yield Compared(
        "catalog",
        "title",
        (seen.product.name if seen.product else unread),
        registered.title if registered else "-",
        str(title or "-"),
        listing.confirmed_age if listing and title else None,
        displayed.title if displayed else hidden,
        displayed.title == registered.title if displayed and registered else None,
    )


def _money(price: Price | None) -> str:
    return f"{decimal_text(price.sale)} / {decimal_text(price.list)}" if price else "-"


def _cents(cents: int | None) -> str:
    return "-" if cents is None else decimal_text(cents)


# ---------------------------------------------------------------- who acts


def _headline(seen: _Seen, checks: Sequence[Check]) -> str:
    if "marketplace" in seen.away:
        stored = seen.binding
        where = "NOT PUBLISHED" if stored is None else stored.state.value.upper()
        return f"{where}, as far as the hub knows: the marketplace cannot be read"
    if seen.shown is None:
        return "NOT PUBLISHED"
    if not seen.shown.active:
        return "DEACTIVATED"
    failing = [check.name for check in checks if check.verdict == "fail" and check.number != _STORE_CHECK]
    return "PUBLISHED" if not failing else f"PUBLISHED, with problems: {', '.join(failing)}"


def _next_step(seen: _Seen, rows: Sequence[KeyState]) -> str:
    """What the catalogue context would do now, in words."""
    if seen.mapper_away is not None:
        return "it is tried again by itself until the seller's mapper answers"
    if seen.away:
        return "nothing can be decided while " + " and ".join(sorted(seen.away)) + " cannot be read"
    link = seen.link
    kept = next((row for row in rows if row.context == "catalog"), None)
    row = Row("catalog", seen.sku, 0, confirmed=kept.confirmed if kept else None)
    if kept is not None and (kept.begun is not None or kept.status in {"waiting", "unknown"}):
        return "what became of the last write is found out first"
    confirmed = next((one.confirmed for one in rows if one.context == "price"), None)
    facts = catalog.Facts(
        link.store,
        link.sales_channel,
        link.marketplace.manifest,
        link.rules,
        row,
        fresh_reference(),
        binding=seen.binding,
        product=seen.product,
        mapping=seen.mapping,
        rendered=seen.rendered,
        offered=seen.offered,
        looked=True,
        shown=seen.shown,
        price=price_from_json(confirmed),
    )
    return "; ".join(_in_words(one, link.marketplace.manifest) for one in catalog.decide(facts))


def _left_alone(link: Link, values: Sequence[Compared], rows: Sequence[KeyState]) -> Iterator[str]:
    """What is not shown as it should be although it was answered, could be seen by now, and nothing is under way."""
    delay = link.marketplace.manifest.visibility_delay
    at_rest = {
        row.context for row in rows if row.work == "i" and row.status == "done" and (row.answered or 0.0) > delay
    }
    for value in values:
        if value.agrees is False and value.context in at_rest - {"catalog"}:
            yield f"nobody asks for its {value.context}: hub reconcile --store {link.slug}"


def _in_words(step: Ending | Step, manifest: Manifest) -> str:
    if isinstance(step, Send):
        return f"{step.record.action.value} would be sent to {manifest.title}"
    if isinstance(step, Ending):
        outcome = step.outcome
        if isinstance(outcome, Done):
            return "nothing to send: the registration agrees"
        if isinstance(outcome, Parked):
            return f"it waits for {outcome.on}; it is sent by itself then"
        if isinstance(outcome, Refused):
            return "nothing is sent until something changes in VTEX"
        return type(outcome).__name__.lower()
    return type(step).__name__


def _advice(
    seen: _Seen,
    checks: Sequence[Check],
    rows: Sequence[KeyState],
    *,
    gates: Sequence[Gate],
    circuits: Sequence[Circuit],
    language: Language,
) -> Iterator[Advice]:
    problems = [problem for check in checks for problem in check.problems]
    told: dict[str, dict[str, str]] = {}
    for code in dict.fromkeys(problem.code for problem in problems):
        told[code] = _params(seen, [problem for problem in problems if problem.code == code])
    for side, error in seen.away.items():
        code = "C0" if isinstance(error, AuthLost) else "E2" if side == "marketplace" else "V0"
        told.setdefault(code, _params(seen, ()) | {"peer": side, "reason": _why(error), "key": seen.sku})
    if seen.mapper_away is not None:
        told.setdefault("E5", _params(seen, ()) | {"reason": _why(seen.mapper_away), "key": seen.sku})
    for gate in gates:
        if gate.cause == "credentials":
            told.setdefault("C0", _params(seen, ()) | {"peer": gate.side, "reason": gate.why, "key": seen.sku})
    for row in rows:
        told |= _of_row(seen, row, told)
    for circuit in circuits:
        code = "E2" if circuit.side == "marketplace" else "V0"
        told.setdefault(code, _params(seen, ()) | {"reason": f"circuit open: {circuit.why}", "key": seen.sku})
    known = [code for code in told if code in messages.catalogue()]
    if not known and seen.binding is not None:
        known, told = ["S1"], {"S1": _params(seen, ())}
    while known:
        code = messages.worst(known) or known[0]
        known.remove(code)
        entry = messages.entry(code)
        params = told[code]
        yield Advice(
            code, entry.actor, messages.message(code, language, params), messages.what_to_do(code, language, params)
        )


def _of_row(seen: _Seen, row: KeyState, told: Mapping[str, object]) -> dict[str, dict[str, str]]:
    params = _params(seen, row.problems) | {"reason": row.why or "", "key": seen.sku, "attempts": str(row.attempts)}
    code = {"dead": "D0", "waiting": "P0", "delayed": row.code or "E2", "unknown": "E2"}.get(row.status)
    return {code: params} if code and code not in told else {}


def _params(seen: _Seen, problems: Sequence[Problem]) -> dict[str, str]:
    product, link = seen.product, seen.link
    category = (product.category_path or product.category_name or product.category) if product else ""
    shown = seen.shown
    params = {
        "sku": seen.sku,
        "name": product.name if product else "",
        "marketplace": link.marketplace.manifest.title,
        "channel": str(link.sales_channel),
        "category": category,
        "mapping": link.rules.mapping_link or f"hub mappings import {link.slug} FILE",
        "errors": sentences(problems),
        "defaults": ", ".join(f"{one.field}={one.value}" for one in problems if one.code == "A3"),
        "remote": seen.binding.remote_id if seen.binding else "",
        "link": shown.link if shown else "",
    }
    for problem in problems:
        params |= problem.params
    return params


def _why(error: HubError) -> str:
    if isinstance(error, CircuitOpen) and error.wait >= 1:
        return f"its circuit is open for another {error.wait:.0f} s"
    if isinstance(error, Throttled):
        return f"its limit is used up for {error.wait:.0f} s"
    return str(error)
