"""The story of the demo, act by act, with what was seen at each: nothing in it is told that was not measured."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hub import loads, mappings, messages
from hub.checks import check
from hub.db import open_pool, translated
from hub.demo.verdict import Verdict, judge, offer_differs
from hub.errors import Problem
from hub.links import Links
from hub.marketplaces import adapter
from hub.settings import Settings
from hub.simulators.control import VtexControl
from hub.simulators.marketplace_control import Basket, MarketplaceControl
from hub.stores import SecretBox, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

STORES = (
    ("acme-sync", "acme", "SYN", "sandbox-sync", "sync"),
    ("acme-lot", "acme", "LTS", "sandbox-lot", "lot"),
    ("zeta-replace", "zeta", "RPL", "sandbox-replace", "full-replace"),
)
SKUS = 100
UNMAPPED = range(61, 101)
REFUSED = "100"  # of acme
POISON = "7"  # of zeta
SOLD = "MC-130"
APPROVED = frozenset({"window-to-cancel", "ready-for-handling", "handling", "invoiced"})
"""VTEX's statuses of an order that is paid and on its way (vtex.md 11.1)."""


class WrongEndError(RuntimeError):
    """The story did not go as it should; the text says where."""


@dataclass
class Stage:
    """Everything the story needs: the terminal, the hub's settings, both simulators."""

    console: Console
    settings: Settings
    env: dict[str, str]
    vtex_url: str
    marketplace_url: str
    stores: dict[str, Store] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vtex = VtexControl(self.vtex_url)
        self.marketplace = MarketplaceControl(self.marketplace_url)
        self.pool = open_pool(self.settings.database_url, self.settings.schema, name="demo", max_size=4)
        self.links = Links(self.settings, self.pool, SecretBox.from_env(self.env))

    def close(self) -> None:
        """Close what the story opened."""
        self.vtex.close()
        self.marketplace.close()
        self.links.close()
        self.pool.close()

    def say(self, text: str) -> None:
        """One line of the story."""
        self.console.print(text, highlight=False)

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the hub's own books, for the live figures."""
        with translated(), self.pool.connection() as db:
            return db.execute(query, values).fetchall()

    def until(self, what: Callable[[], bool], seconds: float, why: str) -> float:
        """Wait for it; seconds it took. `WrongEndError` when it does not come."""
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > seconds:
                raise WrongEndError(why)
            time.sleep(0.05)
        return time.monotonic() - began

    def hub(self, *command: str, quiet: bool = False) -> str:
        """Run the command line as an operator would; its output is part of the story."""
        typed = f"hub {shlex.join(command)}"
        self.say(f"[dim]$ {escape(typed)}[/dim]")
        env = {**self.env, "NO_COLOR": "1", "COLUMNS": "110"}
        done = subprocess.run(
            [sys.executable, "-m", "hub.cli", *command],
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if not quiet:
            for line in (done.stdout + done.stderr).strip().splitlines():
                self.console.print(f"  {line}", highlight=False, markup=False)
        if done.returncode not in (0, 1):
            raise WrongEndError(f"`{typed}` ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    # -- what the simulators say

    def differing(self, slug: str, skus: Iterable[str] | None = None) -> list[str]:
        """SKUs of a store that the marketplace does not show as VTEX sells them."""
        account = self.stores[slug].account
        truths, shown = self.vtex.truth(account, 1), self.marketplace.shown(slug)
        chosen = truths if skus is None else {sku: truths[sku] for sku in skus}
        return [sku for sku, truth in chosen.items() if offer_differs(truth, shown.get(sku))]

    def agreed(self, slug: str, skus: Iterable[str]) -> Callable[[], bool]:
        """Does the marketplace show these SKUs as VTEX sells them?"""
        chosen = tuple(skus)
        return lambda: not self.differing(slug, chosen)


def tell(stage: Stage, began: float) -> int:
    """Every act, then the table; the exit code."""
    try:
        for number, (title, act) in enumerate(ACTS, 1):
            started = time.monotonic()
            stage.console.rule(f"{number}. {title}", align="left")
            act(stage)
            stage.say(f"[dim]({time.monotonic() - started:.1f} s)[/dim]")
    except WrongEndError as wrong:
        stage.reasons.append(str(wrong))
    code = _end(stage)
    stage.say(f"Told in {time.monotonic() - began:.1f} s.")
    stage.close()
    return code


# ---------------------------------------------------------------- the acts


def _register(stage: Stage) -> None:
    for account in ("acme", "zeta"):
        stage.vtex.open_account(
            account,
            f"vtexappkey-{account}-DEMOXX",
            f"token-of-{account}",
            categories=[{"id": 1, "name": "Casa"}, {"id": 2, "name": "Jardim"}],
        )
        stage.vtex.grow(account, UNMAPPED.start - 1, first_id=1, category_ids=[1], channels=[1], stock=[5, 60])
        category = 2 if account == "zeta" else 1
        stage.vtex.grow(account, len(UNMAPPED), first_id=61, category_ids=[category], channels=[1], stock=[5, 60])
        stage.vtex.notifier_habits(account, duplicate_share=0.2, jitter=0.05, shuffled=True)
    stage.vtex.change("acme", int(REFUSED), notify=False, name="Luminária " + "comprida " * 12, ean="123", images=[])
    stage.commands += ["hub doctor", "hub queues", "hub store list"]
    for slug, account, affiliate, marketplace, profile in STORES:
        seller = stage.marketplace.open_account(slug, profile, feed_min_interval=0)
        webhook = adapter(marketplace).manifest.webhook
        secret = f"hook-of-{slug}" if webhook is not None and webhook.scheme != "none" else None
        credentials = {"token": seller.token, **({"webhook_secret": secret} if secret else {})}
        store, token = stage.links.registry.add(
            slug=slug,
            account=account,
            affiliate=affiliate,
            sales_channel=1,
            marketplace=marketplace,
            who="demo",
            settings={
                "vtex_url": f"{stage.vtex_url}/{{account}}",
                "marketplace_url": seller.url,
                "poll_orders_seconds": 2.0,
                "look_again": [2.0, 5.0],
                "result_timer_seconds": 4.0,
                "marketplace_limit": {"rate": 200.0, "burst": 100},
                **({"webhook": asdict(webhook)} if webhook is not None else {}),
            },
            credentials={
                "vtex": {"app_key": f"vtexappkey-{account}-DEMOXX", "app_token": f"token-of-{account}"},
                "marketplace": credentials,
            },
        )
        stage.stores[slug] = store
        base = f"{stage.settings.public_url}/{token}"
        stage.vtex.put_affiliate(account, affiliate, sales_channel=1, endpoint=base)
        if webhook is not None:
            stage.marketplace.turn(slug, webhook_url=f"{base}/events", webhook_secret=secret)
        stage.links.refresh()
        found = check(stage.links.build(store))
        errors = [one.problem.sentence() for one in found if one.problem.code != "setup-warning"]
        if errors:
            raise WrongEndError(f"{slug} cannot be registered: {'; '.join(errors)}")
        warned = f", {len(found)} warnings" if found else ""
        stage.say(f"[green]✓[/green] {slug}: VTEX account {account}, affiliate {affiliate}, {marketplace}{warned}")
        mappings.save(stage.pool, store.id, [mappings.CategoryMapping("1", SOLD, "Casa")], who="demo")


def _map(stage: Stage, slug: str, mapping: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".csv", delete=False) as file:
        file.write("category,remote,name\n")
        file.writelines(f"{category},{remote},\n" for category, remote in mapping.items())
    try:
        stage.hub("mappings", "import", slug, file.name, "--yes")
    finally:
        Path(file.name).unlink()


def _load(stage: Stage) -> None:
    runs = {slug: loads.start(stage.pool, store.id, who="demo") for slug, store in stage.stores.items()}
    with _bars(stage.console) as bars:
        tasks = {slug: bars.add_task(slug, total=SKUS) for slug in runs}
        began = time.monotonic()
        while True:
            states = {slug: loads.progress(stage.pool, run) for slug, run in runs.items()}
            for slug, load in states.items():
                bars.update(tasks[slug], completed=load.total - load.pending if load.listed else 0)
            if all(load.state != "running" for load in states.values()):
                break
            if time.monotonic() - began > 40:
                raise WrongEndError("the loads do not come to their end")
            time.sleep(0.1)
        took = time.monotonic() - began
    for slug, load in states.items():
        stage.say(
            f"{slug}: {load.total} SKUs – {load.sent} sent, {load.rejected} refused,"
            f" {load.awaiting_mapping} wait for a category mapping, {load.contingency} in contingency"
        )
    stage.say(f"{SKUS * len(runs)} SKUs in {took:.1f} s ({SKUS * len(runs) / took:.0f} a second).")
    stage.commands.append("hub load list")


def _refusal(stage: Stage) -> None:
    store = stage.stores["acme-sync"]
    rows = stage.ask(
        "select a.problems from answers a where a.store = %s and a.context = 'catalog' and a.key = %s",
        store.id, REFUSED,
    )  # fmt: skip
    problems = [Problem.from_json(tree) for tree in (rows[0][0] if rows else ())]
    if len(problems) < 3:
        raise WrongEndError(f"SKU {REFUSED} should be refused with every problem at once, seen: {problems}")
    stage.say(f"SKU {REFUSED} of acme is refused once, with everything that is wrong with it:")
    for problem in problems:
        stage.say(f"  {problem.code} {problem.sentence()}")
    entry = messages.entry("E1")
    stage.say(f"Who must act: the {entry.actor}. The seller corrects it in VTEX, which announces the change:")
    stage.vtex.change(
        "acme",
        int(REFUSED),
        name="Luminária de mesa",
        ean="7891234567895",
        images=["https://acme.example/luminaria.jpg"],
    )
    for slug in ("acme-sync", "acme-lot"):
        took = stage.until(stage.agreed(slug, [REFUSED]), 20, f"{slug} does not show the corrected SKU {REFUSED}")
        stage.say(f"  {slug} shows it {took:.2f} s later")
    stage.commands.append(f"hub sku explain acme-sync {REFUSED}")


def _mapping(stage: Stage) -> None:
    parked = stage.ask(
        "select count(*) from states where store = %s and context = 'catalog' and status = 'parked'",
        stage.stores["zeta-replace"].id,
    )[0][0]
    if parked != len(UNMAPPED):
        raise WrongEndError(f"{len(UNMAPPED)} SKUs should wait for a category, {parked} do")
    stage.say(f"{parked} SKUs of zeta-replace wait for category 2 (Jardim). The seller maps it:")
    _map(stage, "zeta-replace", {"2": "MC-210"})
    skus = [str(sku) for sku in UNMAPPED]
    took = stage.until(stage.agreed("zeta-replace", skus), 20, "the released SKUs are not shown")
    stage.say(f"All {parked} are on the marketplace {took:.2f} s later.")


def _burst(stage: Stage) -> None:
    before = _heard(stage)
    calls = sum(_writes(stage, slug) for slug in stage.stores)
    began = time.monotonic()
    sent = 0
    for turn in range(3):
        changes = [{"id": sku, "price": 5000 + 10 * sku + turn, "stock": 3 + sku % 40 + turn} for sku in range(1, 51)]
        sent += sum(stage.vtex.change_many(account, changes) for account in ("acme", "zeta"))
    skus = [str(sku) for sku in range(1, 51)]
    for slug in stage.stores:
        stage.until(stage.agreed(slug, skus), 30, f"{slug} does not show the burst's last values")
    took = time.monotonic() - began
    after = _heard(stage)
    written = sum(_writes(stage, slug) for slug in stage.stores) - calls
    stage.say(
        f"50 SKUs of both accounts changed price and stock three times: {after - before} notifications came in"
        f" (VTEX doubles some), {written} writes went out; every marketplace agrees after {took:.2f} s."
    )


def _heard(stage: Stage) -> int:
    return int(stage.ask("select coalesce(sum(received), 0) from counters where context = '-'")[0][0])


def _writes(stage: Stage, slug: str) -> int:
    return sum(
        count for name, count in stage.marketplace.counters(slug).items() if name.endswith("_writes") or name == "feeds"
    )


def _leave(stage: Stage) -> None:
    stage.vtex.change("acme", 11, active=False)
    stage.vtex.change("zeta", 12, channels=[])
    for slug, sku, what in (
        ("acme-sync", "11", "deactivated"), ("acme-lot", "11", "deactivated"), ("zeta-replace", "12", "removed"),
    ):  # fmt: skip
        took = stage.until(stage.agreed(slug, [sku]), 20, f"{slug} still sells SKU {sku}")
        shown = stage.marketplace.shown(slug).get(sku)
        state = "absent" if shown is None else shown.state
        stage.say(f"SKU {sku} was {what} in VTEX: {state} on {slug} {took:.2f} s later")


def _outage(stage: Stage) -> None:
    """Ten seconds without one marketplace; at the same time a SKU of another store is poison."""
    stage.marketplace.break_sku("zeta-replace", POISON)
    stage.vtex.change("zeta", int(POISON), price=4242, stock=9)
    alone = [_visible(stage, "acme-lot", "zeta-replace", turn) for turn in range(4)]
    stage.marketplace.outage("acme-sync", "503", 10)
    ends = time.monotonic() + 10
    stage.vtex.change_many("acme", [{"id": sku, "stock": 70 + sku % 20} for sku in range(20, 60)])
    beside: list[float] = []
    seen: set[str] = set()
    store = "acme-sync"
    while time.monotonic() < ends:
        beside.append(_visible(stage, "acme-lot", "zeta-replace", 10 + len(beside)))
        for circuit in stage.links.transport.circuits.status(store):
            if circuit.state == "open" and circuit.group not in seen:
                seen.add(circuit.group)
                stage.say(f"circuit of {store} open: {circuit.why}; reopens in {circuit.reopens_in:.1f} s")
    if not seen:
        raise WrongEndError("the circuit of acme-sync did not open during the outage")
    skus = [str(sku) for sku in range(20, 60)]
    took = stage.until(stage.agreed(store, skus), 20, "acme-sync does not catch up after the outage")
    tries = stage.marketplace.journal(account=store, status=503, limit=1000)
    stage.say(
        f"During ten seconds of outage {len(tries)} calls reached it; {took:.1f} s after its end acme-sync agrees"
        f" with VTEX again."
    )
    stage.say(
        f"Meanwhile zeta-replace showed changes after {statistics.median(beside):.2f} s"
        f" (before the outage {statistics.median(alone):.2f} s)."
    )


def _visible(stage: Stage, _other: str, slug: str, turn: int) -> float:
    """Seconds from one change of stock in VTEX until the marketplace shows it."""
    stage.vtex.change("zeta", 3, stock=100 + turn)
    return stage.until(stage.agreed(slug, ["3"]), 10, f"{slug} stands still")


def _poison(stage: Stage) -> None:
    store = stage.stores["zeta-replace"]

    def dead() -> bool:
        return bool(stage.ask("select 1 from states where store = %s and status = 'dead'", store.id))

    stage.until(dead, 40, f"SKU {POISON} of zeta-replace does not die")
    stage.say(f"SKU {POISON} of zeta-replace broke the marketplace at every try of the plan `demo` and is dead:")
    stage.hub("dead-letters", "list")
    stage.marketplace.heal_sku("zeta-replace", POISON)
    stage.say("The marketplace mends it; the operator replays:")
    stage.hub("dead-letters", "replay", "--store", "zeta-replace", "--reason", "marketplace fixed", "--yes")
    took = stage.until(stage.agreed("zeta-replace", [POISON]), 20, "the replayed SKU is not shown")
    stage.say(f"Shown as VTEX sells it {took:.2f} s later.")
    stage.commands.append("hub dead-letters list")


def _orders(stage: Stage) -> None:
    stage.vtex.fault("hang_after", "create_order", count=1, seconds=8.0)
    placed = []
    for number in range(20):
        slug = STORES[number % 3][0]
        shown = stage.marketplace.shown(slug)
        skus = [sku for sku in ("13", "14", "15", "16") if shown[sku].state == "active"]
        basket = [Basket(skus[number % len(skus)], 1 + number % 2)]
        placed.append((slug, stage.marketplace.place_order(slug, basket, shipping_cents=990).id))

    def integrated() -> bool:
        seen = {account: stage.vtex.orders(account) for account in ("acme", "zeta")}
        return all(
            (found := seen[stage.stores[slug].account].get(order)) is not None and found.status in APPROVED
            for slug, order in placed
        )

    began = time.monotonic()
    stage.until(integrated, 40, "not every order is approved in VTEX")
    stage.until(
        lambda: not stage.ask("select 1 from orders where state not in ('approved', 'integrated')"), 20,
        "the hub does not know every order as approved",
    )  # fmt: skip
    attempts = sum(order.attempts for account in ("acme", "zeta") for order in stage.vtex.orders(account).values())
    stage.say(
        f"20 paid orders on three marketplaces, all approved in VTEX after {time.monotonic() - began:.1f} s."
        f" One creation timed out after VTEX had taken it; it was looked up, not made again ({attempts} creations"
        f" asked for)."
    )
    stage.commands.append("hub orders list acme-sync")


ACTS: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("Three stores are registered and checked", _register),
    ("The initial load", _load),
    ("One SKU is refused", _refusal),
    ("Forty SKUs wait for a category", _mapping),
    ("A burst of price and stock notifications", _burst),
    ("A deactivation and a removal", _leave),
    ("A marketplace is away for ten seconds", _outage),
    ("A poison SKU dies and is replayed", _poison),
    ("Twenty orders come back to VTEX", _orders),
)


# ---------------------------------------------------------------- the end


def _end(stage: Stage) -> int:
    stage.console.rule("The end, as the simulators see it", align="left")
    verdicts: list[Verdict] = []
    table = Table("store", "notifications", "quarantined / ignored", "requests = coalesced + attempts", "offers equal",
                  "orders equal", "dead")  # fmt: skip
    if stage.reasons == []:
        settle = time.monotonic() + 15
        while time.monotonic() < settle:
            busy = stage.ask("select count(*) from states where work in ('p', 'h')")[0][0]
            if not busy and not any(stage.differing(slug) for slug in stage.stores):
                break
            time.sleep(0.2)
    for slug, store in stage.stores.items():
        verdict = judge(stage.vtex, stage.marketplace, slug, store.account)
        verdicts.append(verdict)
        row = stage.ask(
            "select coalesce(sum(received), 0), coalesce(sum(quarantined), 0), coalesce(sum(ignored), 0),"
            " coalesce(sum(requested), 0), coalesce(sum(coalesced), 0), coalesce(sum(enqueued), 0)"
            " from counters where store = %s", store.id,
        )[0]  # fmt: skip
        dead = stage.ask("select count(*) from states where store = %s and status = 'dead'", store.id)[0][0]
        table.add_row(
            slug, str(row[0]), f"{row[1]} / {row[2]}", f"{row[3]} = {row[4]} + {row[5]}",
            f"{'yes' if not verdict.offers_wrong else 'NO'} ({verdict.skus})",
            f"{'yes' if not verdict.orders_wrong else 'NO'} ({verdict.orders})", str(dead),
        )  # fmt: skip
        stage.reasons += [f"{slug}: {wrong}" for wrong in (*verdict.offers_wrong, *verdict.orders_wrong)][:5]
        if dead:
            stage.reasons.append(f"{slug}: {dead} dead letters are left")
    stage.console.print(table)
    for reason in stage.reasons:
        stage.say(f"[red]✗ {reason}[/red]")
    if not stage.reasons:
        stage.say(
            "[green]✓ Every marketplace shows what VTEX sells; every order is in VTEX once; nothing is lost.[/green]"
        )
    return 1 if stage.reasons else 0


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal and "CI" in os.environ) as bars:
        yield bars
