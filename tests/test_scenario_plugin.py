"""The mark `scenario` cannot be claimed by a test that asks nobody."""

import pytest

from tests.scenarios.required import PRIORITY, REQUIRED

pytest_plugins = ["pytester"]

HEAD = """
import pytest

class Peer:
    seen = 0
    def requests_seen(self):
        return self.seen

@pytest.fixture
def peer():
    return Peer()
"""


def outcome(pytester: pytest.Pytester, body: str, *options: str) -> pytest.RunResult:
    pytester.makeini("[pytest]\nmarkers =\n    scenario(*ids, rule=False): ids")
    pytester.makepyfile(HEAD + body)
    return pytester.runpytest_inprocess("-p", "no:valkey", "-p", "tests.scenario_plugin", *options)


def test_a_claim_that_asks_nobody_fails_with_a_sentence(pytester: pytest.Pytester) -> None:
    found = outcome(pytester, '@pytest.mark.scenario("NOT-01", "NOT-02")\ndef test_it(peer): pass')
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*claims NOT-01, NOT-02, but neither an intake nor a simulator was asked*"])


def test_a_claim_without_any_counter_fails(pytester: pytest.Pytester) -> None:
    found = outcome(pytester, '@pytest.mark.scenario("NOT-01")\ndef test_it(): pass')
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*no fixture of the test counts requests*"])


def test_a_claim_during_which_a_peer_was_asked_passes(pytester: pytest.Pytester) -> None:
    found = outcome(pytester, '@pytest.mark.scenario("NOT-01")\ndef test_it(peer): peer.seen += 1')
    found.assert_outcomes(passed=1)


def test_a_rule_need_not_ask_anybody_but_one_claim_beside_it_does(pytester: pytest.Pytester) -> None:
    found = outcome(
        pytester,
        """
@pytest.mark.scenario("NOT-01", rule=True)
def test_rule(peer): pass

@pytest.mark.scenario("NOT-01", rule=True)
@pytest.mark.scenario("NOT-02")
def test_both(peer): pass

def test_neither(peer): pass
""",
    )
    found.assert_outcomes(passed=2, failed=1)


def test_a_failure_of_the_test_itself_is_told_as_it_is(pytester: pytest.Pytester) -> None:
    found = outcome(pytester, '@pytest.mark.scenario("NOT-01")\ndef test_it(peer): assert 1 == 2')
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*assert 1 == 2*"])
    found.stdout.no_fnmatch_line("*was asked anything*")


@pytest.mark.parametrize("mark", ['"NOT-5"', '"NOT-99"', "", '"NOT-01", rules=True'])
def test_an_unknown_scenario_stops_the_run(pytester: pytest.Pytester, mark: str) -> None:
    found = outcome(pytester, f"@pytest.mark.scenario({mark})\ndef test_it(peer): pass")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["*test_it: *scenario*"])


def test_the_report_names_what_has_a_test_and_what_is_missing(pytester: pytest.Pytester) -> None:
    body = """
@pytest.mark.scenario("NOT-01")
def test_it(peer): pass

@pytest.mark.scenario("NOT-06", rule=True)
def test_rule(peer): pass
"""
    found = outcome(pytester, body, "--scenarios", "--collect-only", "-q")
    assert found.ret == pytest.ExitCode.OK
    found.stdout.fnmatch_lines(["NOT   2 of 27, 1/17 required *01 06[*]", "required without a test: *NOT-02*"])


def test_the_table_of_scenarios_is_the_one_that_was_agreed() -> None:
    assert len(PRIORITY) == 300
    assert len(REQUIRED) == 99
    assert {"NOT-12", "NOT-25", "LOD-10", "STK-09", "ORD-02", "ACC-05"}.isdisjoint(REQUIRED)
