"""A test that names an acceptance scenario has driven the real thing, or it fails.

`@pytest.mark.scenario("NOT-05")` says which scenarios a test proves. While such a test runs, an intake or a simulator
must have received a request – unless the mark says `rule=True`, because a pure function is the whole point. Who
received what is asked from the fixtures: any fixture whose type has `requests_seen() -> int` counts; nothing is
patched.

`--scenarios` runs no test and prints which scenarios have one, per group, and which required ones do not.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator

import pytest

from tests.scenarios.required import PRIORITY, REQUIRED, SCENARIOS

_REPORT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scenarios", action="store_true", help="print which acceptance scenarios have a test, and run nothing"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wrong = [problem for item in items for problem in _problems(item)]
    if wrong:
        raise pytest.UsageError(*wrong)
    if config.option.scenarios:
        config.stash[_REPORT] = list(_report(items))
        items.clear()


def _problems(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("scenario"):
        if not mark.args:
            yield f'{item.nodeid}: the mark scenario names no scenario; write scenario("NOT-05")'
        if set(mark.kwargs) - {"rule"}:
            yield f"{item.nodeid}: the mark scenario has {sorted(mark.kwargs)}; it takes ids and rule=True"
        for scenario in mark.args:
            if scenario not in PRIORITY:
                yield f"{item.nodeid}: there is no scenario {scenario!r}; see tests/scenarios/required.py for the ids"


def _drives(item: pytest.Item) -> bool:
    """Whether some mark of the test claims a scenario of the running system."""
    return any(not mark.kwargs.get("rule", False) for mark in item.iter_markers("scenario"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    if not _drives(item):
        return (yield)
    named = ", ".join(scenario for mark in item.iter_markers("scenario") for scenario in mark.args)
    counters = [
        value
        for value in getattr(item, "funcargs", {}).values()
        if callable(getattr(type(value), "requests_seen", None))
    ]
    before = [counter.requests_seen() for counter in counters]
    result = yield
    if [counter.requests_seen() for counter in counters] == before:
        why = "none received a request" if counters else "no fixture of the test counts requests"
        pytest.fail(
            f"The test claims {named}, but neither an intake nor a simulator was asked anything ({why}). Drive the "
            "real thing, or mark it rule=True if a pure function is the whole point.",
            pytrace=False,
        )
    return result


# ---------------------------------------------------------------- which scenarios have a test


def _report(items: list[pytest.Item]) -> Iterator[str]:
    driven: defaultdict[str, int] = defaultdict(int)
    ruled: defaultdict[str, int] = defaultdict(int)
    for item in items:
        for mark in item.iter_markers("scenario"):
            for scenario in mark.args:
                (ruled if mark.kwargs.get("rule", False) else driven)[scenario] += 1
    for group in SCENARIOS:
        every = sorted(scenario for scenario in PRIORITY if scenario.startswith(group))
        have = [scenario for scenario in every if scenario in driven or scenario in ruled]
        must = [scenario for scenario in every if scenario in REQUIRED]
        shown = " ".join(scenario[-2:] + ("" if scenario in driven else "*") for scenario in have)
        required = f"{sum(scenario in have for scenario in must)}/{len(must)} required" if must else "none required"
        yield f"{group}  {len(have):>2} of {len(every):>2}, {required:<15}  {shown}".rstrip()
    missing = sorted(REQUIRED - driven.keys() - ruled.keys())
    only_ruled = sorted((REQUIRED & ruled.keys()) - driven.keys())
    yield ""
    yield f"* by a pure rule only; of these required: {' '.join(only_ruled) or 'none'}"
    yield f"required without a test: {' '.join(missing) or 'none'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(_REPORT, None) is None:
        return
    terminalreporter.section("acceptance scenarios with a test")
    for line in config.stash[_REPORT]:
        terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Having run nothing is what was asked."""
    if session.config.option.scenarios and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
