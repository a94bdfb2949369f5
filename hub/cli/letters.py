"""`hub dead-letters`: what used up its plan, and back to work with it once the cause is gone."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hub.cli import desk
from hub.cli.talk import (
    MISSING,
    PROBLEMS,
    DryRun,
    Group,
    Json,
    Yes,
    age,
    agreed,
    refuse,
    say,
    tell,
    tell_table,
    who,
)

if TYPE_CHECKING:
    from hub.cli.desk import Desk
    from hub.reports import Replay
    from tasks.replay import Letters

letters_app = typer.Typer(cls=Group, help="Work that used up its attempts.", no_args_is_help=True)

StoreFilter = Annotated[str, typer.Option("--store", help="Only of this store.")]
ContextFilter = Annotated[str, typer.Option("--context", help="Only of this context.")]
CodeFilter = Annotated[str, typer.Option("--code", help="Only with this code, such as E2.")]
SinceFilter = Annotated[str, typer.Option("--since", help="Dead since then: 24h, 30m, 2d, or 2026-11-20T14:05 (UTC).")]
UntilFilter = Annotated[str, typer.Option("--until", help="Dead before then; as --since.")]
KeyFilter = Annotated[str, typer.Option("--key", help="Only this SKU or order.")]
Rate = Annotated[float, typer.Option(min=0.01, max=10_000, help="Keys per second.")]
Why = Annotated[str, typer.Option("--reason", help="Why, for the audit; required.")]
Most = Annotated[int, typer.Option("--max", min=1, help="How many at most; needed above 1,000 together with --yes.")]

UNASKED = 1_000
LOOK_SECONDS = 0.5
_AGE = re.compile(r"(\d{1,6})([smhd])")


def register(app: typer.Typer) -> None:
    """Make these commands known."""
    app.add_typer(letters_app, name="dead-letters", rich_help_panel="Operation")


@letters_app.command("list")
def listed(
    store: StoreFilter = "",
    context: ContextFilter = "",
    code: CodeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    key: KeyFilter = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    after: Annotated[str, typer.Option(help="Go on behind this line: STORE/CONTEXT/KEY.")] = "",
    as_json: Json = False,
) -> None:
    """What is dead, why and since when."""
    from tasks.replay import letters

    with desk.opened() as at:
        wanted = _wanted(at, store, context, code, since, until, key)
        names = at.names()
        found = letters(at.pool, wanted, limit=limit, after=_place(after, names))
    rows = [
        {
            "store": names.get(one.store, str(one.store)),
            "context": one.context,
            "key": one.key,
            "code": one.code,
            "attempts": one.attempts,
            "since": one.since,
            "why": one.why,
        }
        for one in found
    ]
    tell_table(
        "dead_letters", ["store", "context", "key", "code", "attempts", "since", "why"], rows, empty="nothing is dead"
    )
    if len(rows) == limit:
        last = rows[-1]
        say(f"there may be more: --after {last['store']}/{last['context']}/{last['key']}")


@letters_app.command()
def plan(
    store: StoreFilter = "",
    context: ContextFilter = "",
    code: CodeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    key: KeyFilter = "",
    rate: Rate = 5.0,
    as_json: Json = False,
) -> None:
    """Say what a replay would take; change nothing."""
    with desk.opened() as at:
        _told(at, _wanted(at, store, context, code, since, until, key), rate)


@letters_app.command()
def replay(
    reason: Why = "",
    store: StoreFilter = "",
    context: ContextFilter = "",
    code: CodeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    key: KeyFilter = "",
    rate: Rate = 5.0,
    most: Most = UNASKED,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Stay and watch it.")] = True,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put them back to work, at a pace; each reads today's truth. What came alive meanwhile is left alone."""
    from hub import reports
    from tasks.replay import forecast, start

    with desk.opened() as at:
        wanted = _wanted(at, store, context, code, since, until, key)
        if dry_run:
            _told(at, wanted, rate)
            return
        _require_reason(reason)
        foreseen = forecast(at.pool, wanted, rate=rate)
        if not foreseen.matched:
            say("nothing that is dead matches")
            raise typer.Exit(MISSING)
        _require_few(foreseen.matched, most)
        agreed(f"{foreseen.matched} match; at {rate:g} a second about {age(foreseen.seconds)}", yes=yes)
        run = start(at.pool, wanted, rate=rate, who=who(), why=reason)
        say(f"replay {run} has started; it goes on without this terminal: hub dead-letters watch")
        found = _followed(at, run) if follow else reports.replay(at.pool, run)
    _tell_replay(found)


@letters_app.command()
def watch(as_json: Json = False) -> None:
    """Follow the running replay, or see how the last one ended."""
    from hub import reports

    with desk.opened() as at:
        found = reports.replay(at.pool)
        if found is None:
            say("nothing was replayed yet")
            raise typer.Exit(MISSING)
        found = _followed(at, found.run)
    _tell_replay(found)


@letters_app.command()
def discard(
    reason: Why = "",
    store: StoreFilter = "",
    context: ContextFilter = "",
    code: CodeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    key: KeyFilter = "",
    most: Most = UNASKED,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Give them up; the next notification starts each anew. What was asked for or due since then starts anew now."""
    from tasks.replay import discard as give_up
    from tasks.replay import forecast

    with desk.opened() as at:
        wanted = _wanted(at, store, context, code, since, until, key)
        foreseen = forecast(at.pool, wanted, rate=1.0)
        matched = foreseen.matched
        but = f"; asked for or due since their last try, so these start anew: {foreseen.anew}" if foreseen.anew else ""
        if foreseen.trying:
            but += f"; being tried right now, and left alone: {foreseen.trying}"
        if dry_run:
            found = {"matched": matched, "discarded": 0, "anew": foreseen.anew, "trying": foreseen.trying}
            tell(found, f"{matched - foreseen.trying} would be discarded{but}; nothing was changed")
            return
        _require_reason(reason)
        if not matched:
            say("nothing that is dead matches")
            raise typer.Exit(MISSING)
        _require_few(matched, most)
        agreed(f"{matched} match and are not tried again before they are asked for{but}", yes=yes)
        gone = give_up(at.pool, wanted, who=who(), why=reason)
        names = at.names()
        for number in {number for number, _ in gone.wake}:
            at.wake(names[number], *(name for one, name in gone.wake if one == number))
    discarded = gone.resting + gone.anew
    said = [f"discarded {discarded}"]
    if gone.anew:
        said.append(f"of them asked for or due since the last try, and starting anew: {gone.anew}")
    if gone.trying:
        said.append(f"being tried right now, and left alone: {gone.trying}")
    found = {"matched": matched, "discarded": discarded, "anew": gone.anew, "trying": gone.trying}
    tell(found, "; ".join(said))


@letters_app.command()
def cancel(dry_run: DryRun = False, as_json: Json = False) -> None:
    """Stop the running replay where it is."""
    from hub import reports
    from tasks.replay import cancel as stop

    with desk.opened() as at:
        found = reports.replay(at.pool)
        running = found is not None and found.state == "running"
        if running and not dry_run:
            running = stop(at.pool, who())
    if not running:
        say("no replay is running")
        raise typer.Exit(MISSING)
    tell({"cancelled": not dry_run}, "would be cancelled" if dry_run else "cancelled")


# ---------------------------------------------------------------- inside


def _wanted(at: Desk, store: str, context: str, code: str, since: str, until: str, key: str) -> Letters:
    """The filter. `BadInput` for what cannot be one."""
    from hub import messages
    from hub.parsing import suggestion
    from tasks.replay import Letters

    if context and context not in at.settings.contexts:
        refuse("--context", context, f"is no context; {suggestion(context, at.settings.contexts)}")
    if code and code not in messages.catalogue():
        refuse("--code", code, f"is no code; {suggestion(code, messages.catalogue())}")
    return Letters(
        store=at.store(store).id if store else None,
        context=context or None,
        code=code or None,
        key=key or None,
        since=moment("--since", since),
        until=moment("--until", until),
    )


def moment(option: str, text: str) -> str | None:
    """`24h`, or an ISO date or time (UTC when it names no zone), as an ISO time; `None` for nothing."""
    if not text:
        return None
    if found := _AGE.fullmatch(text):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
        return (datetime.now(UTC) - timedelta(**{unit: int(found[1])})).isoformat()
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        refuse(option, text, "write an age such as 24h, 30m, 2d, or a time such as 2026-11-20T14:05")
    return (given if given.tzinfo else given.replace(tzinfo=UTC)).isoformat()


def _place(after: str, names: dict[int, str]) -> tuple[int, str, str] | None:
    if not after:
        return None
    slug, _, rest = after.partition("/")
    context, _, key = rest.partition("/")
    numbers = {name: number for number, name in names.items()}
    if slug not in numbers or not context:
        refuse("--after", after, "write STORE/CONTEXT/KEY of the last line")
    return numbers[slug], context, key


def _require_reason(reason: str) -> None:
    if not reason.strip():
        refuse("--reason", "", "is missing; say why, for the audit")


def _require_few(matched: int, most: int) -> None:
    if matched > most:
        fix = f"{matched} match; narrow the filter, or allow so many: --max {matched}"
        refuse("--max", str(most), fix)


def _told(at: Desk, wanted: Letters, rate: float) -> None:
    from tasks.replay import forecast

    found = forecast(at.pool, wanted, rate=rate)
    by = ", ".join(f"{context} {count}" for context, count in sorted(found.by_context.items()))
    codes = ", ".join(f"{code or 'no code'} {count}" for code, count in sorted(found.by_code.items()))
    document = {
        "matched": found.matched,
        "by_context": found.by_context,
        "by_code": found.by_code,
        "rate": rate,
        "seconds": found.seconds,
        "sample": [{"context": one.context, "key": one.key, "code": one.code} for one in found.sample],
    }
    text = f"{found.matched} match" + (f" ({by}; {codes})" if found.matched else "")
    tell(document, f"{text}; at {rate:g} a second about {age(found.seconds)}; nothing was changed")


def _followed(at: Desk, run: int) -> Replay | None:
    from hub import reports

    shown = -1
    try:
        while True:
            found = reports.replay(at.pool, run)
            if found is None or (found.state != "running" and not found.pending) or found.state == "cancelled":
                return found
            done = 10 * (found.total - found.pending) // max(1, found.total)
            if done > shown:
                shown = done
                say(f"{found.total - found.pending} of {found.total}: {found.ok} ok, {found.failed} failed again")
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        say("the replay goes on; hub dead-letters watch · hub dead-letters cancel")
        raise typer.Exit(130) from None


def _tell_replay(found: Replay | None) -> None:
    if found is None:
        return
    document: dict[str, Any] = {
        "run": found.run,
        "state": found.state,
        "matched": found.total,
        "replayed": found.sent,
        "skipped": found.overtaken,
        "ok": found.ok,
        "refused": found.refused,
        "failed": found.failed,
        "pending": found.pending,
    }
    text = (
        f"replay {found.run} {found.state}: {found.total} matched, {found.sent} replayed, {found.overtaken} overtaken; "
        f"{found.ok} ok, {found.refused} refused or waiting for somebody, {found.failed} failed again, "
        f"{found.pending} pending"
    )
    tell(document, text)
    if found.failed or found.refused:
        raise typer.Exit(PROBLEMS)
