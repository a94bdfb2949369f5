"""The judge: a clean run passes, and each thing that may not happen is called by its right name."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos import rule
from chaos.checker import READS, RECOVERY_SECONDS, before_healing, violations
from chaos.evidence import (
    Binding,
    Counter,
    CreatedOrder,
    Evidence,
    Excuse,
    Gate,
    Lease,
    Lie,
    Listed,
    ListingCall,
    Lot,
    Notice,
    OrderCall,
    PlacedOrder,
    Post,
    Process,
    Queue,
    Recovery,
    Row,
    Served,
    Sold,
    Store,
    Wrote,
)
from hub.model import Price, SimulatedItem
from hub.rules import InventoryRules, PricingRules
from hub.rules.inventory import quantity_of
from hub.rules.pricing import price_of
from hub.stores import StoreSettings

RULES = {"pricing": {"markup": "10"}, "inventory": {"safety": 2}}


def wrote(number: int, at: float, name: str, value: object, sku: str = "1", *, by: str = "put") -> Wrote:
    return Wrote(number, at, at, sku, f"SYN-{sku}", name, value, by)


def offered(at: float, price: int | None = 1000, stock: int = 7, sku: str = "1", *, there: bool = True) -> Served:
    return Served(at, "simulation", sku, there, price, price, stock)


SELLING = Sold("1", active=True, in_channel=True, price=1000, list_price=1000, stock=7, title="Cadeira", category="10",
               ean="7890000000017", images=1)  # fmt: skip
UNMAPPED = replace(SELLING, sku="2", category="20")
GONE = replace(SELLING, sku="3", active=False)
ROWS = (
    Row("catalog", "1", "i", "done", 2, 2),
    Row("price", "1", "s", "done", 3, 3, due_at=190.0),
    Row("stock", "1", "i", "done", 3, 3),
    Row("catalog", "2", "s", "parked", 1, 1, due_at=86_400.0, parked_on="mapping:20"),
    Row("price", "2", "s", "parked", 1, 1, due_at=86_400.0, parked_on="publication:2"),
    Row("catalog", "3", "i", "done", 2, 2),
    Row("order", "O-1", "i", "done", 2, 2),
    Row("order", "@poll", "p", "done", 5, 4, pending_since=99.5),
)
CLEAN_STORE = Store(
    "acme", 1, "acme", "MKP", 1, "sync", **RULES,
    mappings={"10": "MC-130"},
    sold=(SELLING, UNMAPPED, GONE),
    served=(
        Served(1.0, "sku", "1", for_sale=True), offered(1.5, 900), offered(6.0, 900), offered(11.0), offered(20.0),
        Served(2.0, "sku", "2", for_sale=True),
        Served(3.0, "sku", "3", for_sale=True), offered(3.5, sku="3"), Served(30.0, "sku", "3", for_sale=False),
    ),
    listed=(
        Listed("1", "active", ("SYN-1",), 1, 0, 1100, None, 5, "Cadeira", "MC-130"),
        Listed("3", "inactive", ("SYN-3",), 1, 0, 1100, None, 0, "Cadeira", "MC-130"),
    ),
    wrote=(
        wrote(1, 1.2, "state", "active"), wrote(2, 2.0, "price", 990), wrote(3, 2.1, "stock", 5),
        wrote(4, 3.2, "state", "active", "3"), wrote(5, 3.8, "price", 1100, "3"), wrote(6, 3.9, "stock", 5, "3"),
        wrote(7, 12.0, "price", 1100), wrote(8, 12.1, "stock", 5),
        wrote(9, 31.0, "stock", 0, "3"), wrote(10, 31.1, "state", "inactive", "3"),
    ),
    listing_calls=(
        ListingCall(1.1, "listing_find", "1", 200), ListingCall(1.2, "listing_create", "1", 201),
        ListingCall(3.1, "listing_find", "3", 200), ListingCall(3.2, "listing_create", "3", 0),
        ListingCall(3.3, "listing_find", "3", 200),
    ),
    order_calls=(
        OrderCall(40.0, "create", "O-1", 0), OrderCall(41.0, "read", "O-1", 404), OrderCall(42.0, "create", "O-1", 200),
    ),
    placed=(PlacedOrder("O-1", "paid", None), PlacedOrder("O-2", "cancelled", None)),
    created=(CreatedOrder("O-1", "MKP-O-1", "ready-for-handling", 1, 1, (("SOI001", 200), ("SOI002", 0))),),
    posts=(
        Post(0.5, "notification", "1", 200, "driver", flags=("sku",)),
        Post(0.6, "notification", "2", 200, "vtex"), Post(0.7, "notification", "3", 200, "vtex"),
        Post(5.0, "notification", "1", 0, "vtex"), Post(5.5, "notification", "1", 503, "vtex"),
        Post(7.0, "notification", "1", -1, "vtex"),
        Post(10.0, "notification", "1", 200, "driver", flags=("price", "stock")),
        Post(29.0, "notification", "3", 200, "vtex"),
        Post(39.0, "event", "O-1", 200, "marketplace", attempts=3),
        Post(0.0, "result", "O-1", 200, "vtex"), Post(0.0, "result", "O-1", 0, "vtex"),
    ),
    notices=(
        Notice("notification", "accepted", "1", 3), Notice("notification", "accepted", "2", 1),
        Notice("notification", "accepted", "3", 2), Notice("event", "accepted", "O-1", 2),
        Notice("result", "accepted", "O-1", 1),
    ),
    counters=(
        Counter("-", "vtex", received=6, accepted=6), Counter("-", "marketplace", received=2, accepted=2),
        Counter("-", "result", received=1, accepted=1),
        Counter("catalog", "vtex", requested=6, coalesced=1, enqueued=5), Counter("catalog", "settle", finished=5),
        Counter("price", "vtex", requested=4, enqueued=4), Counter("price", "settle", finished=4),
        Counter("stock", "vtex", requested=4, coalesced=1, enqueued=3), Counter("stock", "settle", finished=3),
        Counter("order", "marketplace", requested=2, coalesced=1, enqueued=1),
        Counter("order", "result", requested=1, enqueued=1),
        Counter("order", "poll", requested=5, enqueued=5), Counter("order", "settle", finished=6),
    ),
    rows=ROWS,
    bindings=(Binding("1", "SYN-1", "published"), Binding("3", "SYN-3", "deactivated")),
    leases=(Lease("order", "@poll", 17, 99.0),),
)  # fmt: skip
CLEAN = Evidence(
    seed=7,
    began=0.0,
    ended=100.0,
    stores=(CLEAN_STORE,),
    queues=(Queue("acme.stock", 0, 1),),
    processes=(Process("worker-1", 4, alive=True, restarted_by=("supervisor", "supervisor", "driver")),),
    recoveries=(Recovery("PostgreSQL", 50.0, 4.2),),
)


def told(evidence: Evidence) -> set[str]:
    return {one.law for one in violations(evidence)}


NOT_SOLD = Served(26.0, "sku", "1", for_sale=False)


def with_store(**changes: object) -> Evidence:
    return replace(CLEAN, stores=(replace(CLEAN_STORE, **changes),))


def with_row(context: str, key: str, **changes: object) -> Evidence:
    rows = tuple(replace(row, **changes) if (row.context, row.key) == (context, key) else row for row in ROWS)
    return with_store(rows=rows)


def with_listed(**changes: object) -> Evidence:
    first, *others = CLEAN_STORE.listed
    return with_store(listed=(replace(first, **changes), *others))


def with_post(post: Post) -> Evidence:
    return with_store(posts=(*CLEAN_STORE.posts, post))


def with_writes(*more: Wrote, served: tuple[Served, ...] = ()) -> Evidence:
    return with_store(wrote=(*CLEAN_STORE.wrote, *more), served=(*CLEAN_STORE.served, *served))


def test_a_clean_run_passes() -> None:
    assert violations(CLEAN) == []


def test_evidence_survives_being_kept() -> None:
    assert Evidence.from_json(CLEAN.to_json()) == CLEAN


BROKEN: dict[str, tuple[str, Evidence]] = {
    # shown
    "another price": ("shown", with_listed(price=990)),
    "a struck price that VTEX has not": ("shown", with_listed(list_price=1500)),
    "another stock": ("shown", with_listed(stock=7)),
    "another title": ("shown", with_listed(title="Mesa")),
    "another category": ("shown", with_listed(category="MC-210")),
    "blocked, though VTEX sells it": ("shown", with_listed(state="inactive")),
    "not listed, though VTEX sells it": ("shown", with_store(listed=CLEAN_STORE.listed[1:])),
    "listed, though VTEX does not sell it": ("shown", with_store(sold=(UNMAPPED, GONE))),
    "listed, though it is inactive": (
        "shown",
        with_store(listed=(CLEAN_STORE.listed[0], replace(CLEAN_STORE.listed[1], state="active"))),
    ),
    "blocked where it should be deleted": ("shown", with_store(profile="lot")),
    # overtaken
    "an older price over a newer one": ("overtaken", with_writes(wrote(20, 13.0, "price", 990))),
    "an older stock over a newer one": (
        "overtaken",
        with_writes(wrote(20, 51.0, "stock", 7), wrote(21, 52.0, "stock", 5), served=(offered(50.0, stock=9),)),
    ),
    "a price before VTEX said it": (
        "overtaken",
        with_writes(wrote(20, 44.0, "price", 2200), served=(offered(45.0, price=2000),)),
    ),
    "a price that VTEX never said": ("overtaken", with_writes(wrote(20, 44.0, "price", 1234))),
    "a listing that came back by an old read": (
        "overtaken",
        with_writes(wrote(20, 40.0, "state", "active", "3")),
    ),
    # read-after
    "a change that nobody read": ("read-after", with_post(Post(25.0, "notification", "1", 200, "driver"))),
    "a price change answered by the registration alone": (
        "read-after",
        with_store(
            posts=(*CLEAN_STORE.posts, Post(25.0, "notification", "1", 200, "driver", flags=("price",))),
            served=(*CLEAN_STORE.served, Served(26.0, "sku", "1", for_sale=True)),
        ),
    ),
    "a price change of what is sold again, answered by a registration that was not sold": (
        "read-after",
        with_store(
            posts=(*CLEAN_STORE.posts, Post(25.0, "notification", "1", 200, "driver", flags=("price",))),
            served=(*CLEAN_STORE.served, NOT_SOLD, Served(27.0, "sku", "1", for_sale=True)),
        ),
    ),
    # conservation
    "answered 200 and not kept": ("conservation", with_store(notices=CLEAN_STORE.notices[1:])),
    "kept twice": (
        "conservation",
        with_store(notices=(Notice("notification", "accepted", "1", 5), *CLEAN_STORE.notices[1:])),
    ),
    "kept and not counted": (
        "conservation",
        with_store(counters=(Counter("-", "vtex", received=5, accepted=5), *CLEAN_STORE.counters[1:])),
    ),
    "received is more than its parts": (
        "conservation",
        with_store(counters=(Counter("-", "vtex", received=7, accepted=6), *CLEAN_STORE.counters[1:])),
    ),
    "requested is more than its parts": (
        "conservation",
        with_store(counters=(*CLEAN_STORE.counters, Counter("load", "load", requested=1))),
    ),
    "a demand that was forgotten": (
        "conservation",
        with_store(counters=(*CLEAN_STORE.counters, Counter("stock", "follow", requested=1, enqueued=1))),
    ),
    "a demand answered twice": ("conservation", with_row("stock", "1", answered=4)),
    "accepted and never taken up": (
        "conservation",
        with_store(rows=tuple(row for row in ROWS if row.key != "2")),
    ),
    # rest
    "pending": ("rest", with_row("stock", "1", work="p", pending_since=80.0)),
    "held": ("rest", with_row("stock", "1", work="h", pending_since=80.0)),
    "asked and at rest": ("rest", with_row("stock", "1", asked=4)),
    "due and not taken up": ("rest", with_row("price", "1", due_at=60.0)),
    "backing off": ("rest", with_row("stock", "1", work="s", status="delayed", attempts=3, due_at=300.0)),
    "unknown": ("rest", with_row("order", "O-1", work="s", status="unknown", due_at=300.0)),
    "dead": ("rest", with_row("stock", "1", work="s", status="dead", due_at=3000.0)),
    "refused, though VTEX sells it": ("rest", with_row("stock", "1", status="refused", code="E3")),
    "a refused order": ("rest", with_row("order", "O-1", status="refused", code="C")),
    "parked on a mapping that is there": ("rest", with_row("catalog", "1", status="parked", parked_on="mapping:10")),
    "parked on a publication that was": (
        "rest",
        with_row("price", "1", status="parked", parked_on="publication:1"),
    ),
    "done and in doubt": ("rest", with_row("stock", "1", in_doubt=True)),
    "a lease of a claim that is gone": ("rest", with_store(leases=(Lease("offer", "1", 9, None),))),
    "a lease that is old": ("rest", with_store(leases=(Lease("offer", "1", 9, 60.0),))),
    "a gate": ("rest", with_store(gates=(Gate("*", "vtex", "credentials"),))),
    "a lot that nobody settled": ("rest", with_store(lots=(Lot(3, "offer", "submitted", 12),))),
    # orders
    "an order that is not in VTEX": ("orders", with_store(created=())),
    "an order that is there twice": ("orders", with_store(created=(replace(CLEAN_STORE.created[0], creations=2),))),
    "an order of nobody": (
        "orders",
        with_store(created=(*CLEAN_STORE.created, CreatedOrder("O-9", "MKP-O-9", "handling", 1, 1))),
    ),
    "the marketplace was told another id": ("orders", with_store(placed=(PlacedOrder("O-1", "paid", "MKP-O-7"),))),
    "created again without a look": (
        "orders",
        with_store(order_calls=(CLEAN_STORE.order_calls[0], CLEAN_STORE.order_calls[2])),
    ),
    "created again after a look that told nothing": (
        "orders",
        with_store(
            order_calls=(
                CLEAN_STORE.order_calls[0],
                replace(CLEAN_STORE.order_calls[1], status=503),
                CLEAN_STORE.order_calls[2],
            )
        ),
    ),
    # listings
    "listed twice": ("listings", with_listed(ids=("SYN-1", "SYN-9"))),
    "created twice": ("listings", with_listed(creates=2)),
    "two SKUs of one listing": (
        "listings",
        with_store(bindings=(*CLEAN_STORE.bindings, Binding("2", "SYN-1", "published"))),
    ),
    "a listing created again without a look": (
        "listings",
        with_store(
            listing_calls=(*CLEAN_STORE.listing_calls[:4], ListingCall(3.3, "listing_create", "3", 201)),
        ),
    ),
    # the machinery
    "a queue that nobody serves": ("machinery", replace(CLEAN, queues=(Queue("acme.price", 3, 0),))),
    "a process that was restarted by hand": (
        "machinery",
        replace(CLEAN, processes=(Process("sweep-1", 2, alive=True, restarted_by=("hand",)),)),
    ),
    "a process that is down": ("machinery", replace(CLEAN, processes=(Process("sweep-1", 2, alive=False),))),
    "a body in the spool": ("machinery", replace(CLEAN, spooled=1)),
    "a slow recovery": (
        "recovery",
        replace(CLEAN, recoveries=(Recovery("Valkey", 50.0, RECOVERY_SECONDS + 0.1),)),
    ),
    "no recovery": ("recovery", replace(CLEAN, recoveries=(Recovery("Valkey", 50.0, None),))),
    "a journal that was too short": ("evidence", replace(CLEAN, forgotten=("acme: sku",))),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_may_not_happen_is_called_by_its_name(name: str) -> None:
    law, evidence = BROKEN[name]
    assert told(evidence) & {law} == {law}, violations(evidence)
    assert told(evidence) <= {law, "shown", "rest", "conservation"}, violations(evidence)


HARMLESS: dict[str, Evidence] = {
    "a second look was due a moment ago": with_row("price", "1", due_at=97.0),
    "a value is written again": with_writes(wrote(20, 44.0, "price", 1100)),
    "a value comes back when VTEX's does": with_writes(
        wrote(20, 51.0, "price", 990),
        wrote(21, 53.0, "price", 1100),
        served=(offered(50.0, price=900), offered(52.0)),
    ),
    "VTEX served a stale value, and it was believed": with_writes(
        wrote(20, 51.0, "price", 990),
        wrote(21, 61.0, "price", 1100),
        served=(offered(50.0, price=900), offered(60.0)),
    ),
    "two writes of one read arrive in any order": with_writes(
        wrote(20, 51.2, "stock", 8),
        wrote(21, 51.1, "price", 2200),
        wrote(22, 53.0, "stock", 5),
        wrote(23, 53.0, "price", 1100),
        served=(offered(50.0, price=2000, stock=10), offered(52.0)),
    ),
    "what a blocked listing is told is seen by nobody": with_writes(wrote(20, 32.0, "stock", 5, "3")),
    "a hand changed what is shown, and it was put right": with_writes(
        wrote(20, 51.0, "stock", 99, by="hand"), wrote(21, 53.0, "stock", 5)
    ),
    "without a price, what is shown is kept": with_writes(
        wrote(20, 51.0, "price", 990),
        wrote(21, 51.0, "stock", 0),
        wrote(22, 53.0, "price", 1100),
        wrote(23, 53.0, "stock", 5),
        served=(offered(50.0, price=None), offered(52.0)),
    ),
    "an order was surely refused and created again": with_store(
        order_calls=(OrderCall(40.0, "create", "O-1", 429), OrderCall(42.0, "create", "O-1", 200))
    ),
    "a recovery at the last moment": replace(CLEAN, recoveries=(Recovery("Valkey", 50.0, RECOVERY_SECONDS),)),
    "a gate that the driver left shut": with_store(
        gates=(Gate("*", "vtex", "credentials"),), excuses=(Excuse("gate", "*", "credentials were taken away"),)
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_not_called_a_violation(name: str) -> None:
    assert violations(HARMLESS[name]) == []


@given(
    values=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    picks=st.lists(st.integers(0, 11), min_size=1, max_size=12),
)
def test_writes_in_the_order_of_their_reads_are_never_called_overtaken(values: list[int], picks: list[int]) -> None:
    reads = [offered(1000.0 + at, price=value * 1000) for at, value in enumerate(values)]
    chosen = sorted(pick % len(values) for pick in picks)
    writes = [
        wrote(100 + at, 1000.5 + max(pick, at * 0.01), "price", values[pick] * 1100) for at, pick in enumerate(chosen)
    ]
    assert "overtaken" not in told(with_writes(*writes, served=tuple(reads)))


@given(values=st.lists(st.integers(2, 100), min_size=2, max_size=8, unique=True), data=st.data())
def test_a_write_of_an_older_read_is_always_called_overtaken(values: list[int], data: st.DataObject) -> None:
    """All values differ, so that which read a write comes from cannot be mistaken."""
    reads = [offered(1000.0 + at, price=value * 1000) for at, value in enumerate(values)]
    later = data.draw(st.integers(1, len(values) - 1))
    older = data.draw(st.integers(0, later - 1))
    writes = (
        wrote(100, 2000.0, "price", values[later] * 1100),
        wrote(101, 2001.0, "price", values[older] * 1100),
    )
    assert "overtaken" in told(with_writes(*writes, served=tuple(reads)))


pricing = st.builds(
    dict,
    markup=st.decimals(0, 300, places=2).map(str),
    commission=st.decimals(0, 99, places=2).map(str),
    commission_method=st.sampled_from(["add", "gross_up"]),
    conversion=st.decimals("0.01", 500, places=4).map(str),
    rounding=st.sampled_from(["none", "nearest", ".90", ".99"]),
    direction=st.sampled_from(["nearest", "up", "down"]),
    minimum=st.none() | st.integers(0, 5000),
    maximum=st.none() | st.integers(5000, 500_000),
    promotions=st.booleans(),
)


@given(rules=pricing, price=st.none() | st.integers(0, 1_000_000), struck=st.none() | st.integers(0, 2_000_000))
def test_the_rule_written_anew_agrees_with_the_hubs_to_the_cent(
    rules: dict[str, object], price: int | None, struck: int | None
) -> None:
    hubs: PricingRules = StoreSettings.model_validate({"pricing": rules}, strict=False).pricing
    item = SimulatedItem("1", price, struck, None, None, 5, 1)
    found = price_of(item, hubs)
    assert rule.shown_price(rules, price, struck, "1") == (None if found is None else _pair(found))


def _pair(price: Price) -> tuple[int, int]:
    return price.sale, price.list


@given(
    rules=st.builds(
        dict,
        percentage=st.decimals(0, 100, places=2).map(str),
        safety=st.integers(0, 50),
        cap=st.none() | st.integers(0, 1000),
        minimum=st.integers(0, 20),
    ),
    stock=st.integers(0, 1_000_000),
)
def test_the_stock_rule_written_anew_agrees_with_the_hubs(rules: dict[str, object], stock: int) -> None:
    hubs: InventoryRules = StoreSettings.model_validate({"inventory": rules}, strict=False).inventory
    item = SimulatedItem("1", 100, 100, None, None, stock, 1)
    assert rule.shown_stock(rules, stock, 999_999) == quantity_of(item, hubs, 999_999).pieces


STALE = replace(offered(60.0, price=900), stale=True)
WRONG = with_listed(price=990)


def with_rows_of_one(post: Post, answered: dict[str, float], *served: Served, **changes: object) -> Evidence:
    (store,) = with_post(post).stores
    rows = [replace(r, answered_at=answered[r.context], **changes) if r.key == "1" else r for r in store.rows]
    return with_store(posts=store.posts, rows=tuple(rows), served=(*CLEAN_STORE.served, *served))


TAKEN_AWAY: dict[str, Evidence] = {
    "VTEX lost the notification": with_post(Post(70.0, "notification", "1", -1, "vtex")),
    "nobody answered the notification": with_post(Post(70.0, "notification", "1", 0, "vtex")),
    "what was lost was about another context than what was asked afterwards": with_rows_of_one(
        Post(70.0, "notification", "1", -1, "vtex"), {"catalog": 80.0, "price": 60.0, "stock": 80.0}
    ),
    "it was lost while what was read before it was on its way": with_rows_of_one(
        Post(70.0, "notification", "1", -1, "vtex"),
        {"catalog": 80.0, "price": 80.0, "stock": 71.0},
        offered(69.0),
    ),
    "it was lost while what was read before it was in a lot": with_rows_of_one(
        Post(70.0, "notification", "1", -1, "vtex"),
        {"catalog": 80.0, "price": 80.0, "stock": 99.0},
        offered(50.0),
        offered(80.0),
        code="S1",
        gathered_at=51.0,
    ),
    "the last read was stale": with_store(served=(*CLEAN_STORE.served, STALE)),
    "the marketplace lied about the price": with_store(lies=(Lie(70.0, "price_put", "1"),)),
    "the marketplace lied about a feed": with_store(lies=(Lie(70.0, "feed_submit", "1"),)),
}


def shown_wrong(evidence: Evidence) -> Evidence:
    (store,) = evidence.stores
    return replace(evidence, stores=(replace(store, listed=WRONG.stores[0].listed),))


@pytest.mark.parametrize("name", TAKEN_AWAY)
def test_what_the_peers_took_away_may_be_wrong_before_the_healing_sweep_only(name: str) -> None:
    evidence = shown_wrong(TAKEN_AWAY[name])
    assert before_healing(evidence) == []
    assert told(evidence) == {"shown"}


NOT_TAKEN_AWAY: dict[str, Evidence] = {
    "nothing was taken away": CLEAN,
    "it was lost, and the SKU was read afterwards": with_post(Post(15.0, "notification", "1", -1, "vtex")),
    "it was lost, and every context was asked afterwards": with_rows_of_one(
        Post(70.0, "notification", "1", -1, "vtex"), {"catalog": 80.0, "price": 81.0, "stock": 80.0}
    ),
    "it was lost, and read afterwards for a lot": with_rows_of_one(
        Post(70.0, "notification", "1", -1, "vtex"),
        {"catalog": 80.0, "price": 80.0, "stock": 99.0},
        offered(75.0),
        code="S1",
        gathered_at=76.0,
    ),
    "it was another SKU's": with_post(Post(70.0, "notification", "2", -1, "vtex")),
    "a read was stale, and not the last": with_store(served=(*CLEAN_STORE.served, STALE, offered(61.0))),
    "the marketplace lied about the stock": with_store(lies=(Lie(11.9, "stock_put", "1"),)),
    "the marketplace lied, and a true write followed": with_store(lies=(Lie(11.9, "price_put", "1"),)),
}


@pytest.mark.parametrize("name", NOT_TAKEN_AWAY)
def test_what_the_hub_itself_lost_is_called_so_before_the_healing_sweep(name: str) -> None:
    assert {one.law for one in before_healing(shown_wrong(NOT_TAKEN_AWAY[name]))} == {"shown"}


def beside_another_store(account: str) -> Evidence:
    """The last read for this store was stale; the later one was for another store, if that has the same account."""
    (mine,) = with_rows_of_one(Post(9.0, "notification", "1", 200, "vtex"), dict.fromkeys(READS, 60.5)).stores
    mine = replace(mine, served=(*CLEAN_STORE.served, STALE, offered(75.0)), listed=WRONG.stores[0].listed)
    other = replace(CLEAN_STORE, slug="other", account=account, number=2)
    return replace(CLEAN, stores=(mine, other))


def test_what_another_store_of_the_account_read_later_was_not_read_for_this_one() -> None:
    def said(evidence: Evidence) -> set[tuple[str | None, str]]:
        return {(one.store, one.law) for one in before_healing(evidence) if one.law == "shown"}

    assert said(beside_another_store("acme")) == set()
    assert said(beside_another_store("another")) == {("acme", "shown")}


STILL_BOUGHT: dict[str, Row] = {
    "refused": Row("catalog", "1", "i", "refused", 2, 2, answered_at=80.0),
    "parked": Row("price", "1", "s", "parked", 3, 3, due_at=190.0, parked_on="publication:1", answered_at=80.0),
}


@pytest.mark.parametrize("name", STILL_BOUGHT)
def test_rows_may_rest_on_what_was_true_before_a_notification_was_lost(name: str) -> None:
    row = STILL_BOUGHT[name]
    rows = tuple(row if (one.context, one.key) == (row.context, row.key) else one for one in ROWS)
    assert {one.law for one in before_healing(with_store(rows=rows))} == {"rest"}
    lost = with_store(rows=rows, posts=(*CLEAN_STORE.posts, Post(90.0, "notification", "1", -1, "vtex")))
    assert before_healing(lost) == []
    assert told(lost) == {"rest"}


def test_what_was_withdrawn_only_in_word_is_not_read_for_a_price_and_may_be_in_doubt() -> None:
    rows = tuple(replace(row, in_doubt=True) if (row.context, row.key) == ("price", "1") else row for row in ROWS)
    withdrawn = with_store(
        sold=(replace(SELLING, active=False), UNMAPPED, GONE),
        served=(*CLEAN_STORE.served, NOT_SOLD),
        posts=(*CLEAN_STORE.posts, Post(25.0, "notification", "1", 200, "vtex", flags=("price", "inactive"))),
        notices=(*CLEAN_STORE.notices[1:], Notice("notification", "accepted", "1", 4)),
        lies=(Lie(26.5, "listing_deactivate", "1"),),
        rows=rows,
    )
    left = [one for one in before_healing(withdrawn) if one.law != "conservation"]
    assert left == []
    assert told(withdrawn) >= {"shown"}


def test_what_is_still_recovering_may_be_pending_before_the_healing_sweep() -> None:
    assert before_healing(with_row("stock", "1", work="p", pending_since=80.0)) == []
    assert before_healing(with_row("stock", "1", work="p", pending_since=60.0)) != []
