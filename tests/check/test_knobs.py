"""What somebody sets for a long run is refused whole, in sentences, before anything starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHES
from chaos.__main__ import KNOBS as CHAOS_KNOBS
from chaos.__main__ import asked as chaos_asked
from chaos.plan import Sizes
from hub.errors import BadInput
from tests.fuzz.__main__ import asked as fuzz_asked
from tests.knobs import Knobs

ROOT = Path(__file__).parents[2]


def refused(given: dict[str, str], *arguments: str) -> list[str]:
    """The fields that chaos complains about."""
    with pytest.raises(BadInput) as refusal:
        chaos_asked(arguments, given)
    for problem in refusal.value.problems:
        assert problem.fix
        assert "\n" not in problem.sentence()
    return [problem.field for problem in refusal.value.problems]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("SEED", value) for value in ("abc", "-1", "1 2", "1e3", "٣", "1_000", "9" * 30)),
        *(("SEEDS", value) for value in ("abc", "0", "-1")),
        *(("NOTIFICATIONS", value) for value in ("-1", "0", "x")),
        *(("SKUS", value) for value in ("1e3", "0", "9")),
        *((field, "0") for field in ("STORES", "WORKERS")),
        *(("SECONDS_OF_FAULTS", value) for value in ("x", "nan", "inf", "-1", "2")),
        *(("BROKER", value) for value in ("foo", "http://somewhere")),
        ("KILLS", "5000"),
        ("KEEP", __file__),
        ("KEEP", f"{__file__}/below"),
    ],
)
def test_chaos_names_the_one_field_that_is_wrong(field: str, value: str) -> None:
    assert refused({field: value}) == [field]


def test_chaos_names_what_does_not_go_together() -> None:
    assert refused({"SEED": "1", "SEEDS": "2"}) == ["SEEDS"]
    assert refused({"NOTIFICATIONS": "600", "KILLS": "100"}) == ["KILLS"]
    assert refused({"STORES": "20", "SKUS": "10"}) == ["SKUS"]


def test_chaos_names_everything_at_once_and_arguments_as_they_were_written() -> None:
    given = {"SEEDS": "0", "SKUS": "x", "WORKERS": "0", "BROKER": "foo"}
    assert set(refused(given, "--skus", "y")) == {"SEEDS", "--skus", "WORKERS", "BROKER"}


def test_the_password_of_a_broker_is_not_repeated() -> None:
    with pytest.raises(BadInput) as refusal:
        chaos_asked((), {"BROKER": "amq://hub:opensesame@127.0.0.1//"})
    assert "opensesame" not in str(refusal.value)


def test_chaos_takes_what_is_right_and_arguments_before_the_environment() -> None:
    given = {"SEED": "7", "NOTIFICATIONS": "1000", "SKUS": "100", "STORES": "4", "KILLS": "5", "WORKERS": "", "X": "y"}
    chosen = chaos_asked(["--stores", "3", "--broker", "amqp"], given)
    assert (chosen.seed, chosen.broker) == (7, "")
    assert chosen.sizes == Sizes(1000, 100, 3, 5, 2, 0.0, rabbit=True)
    assert chaos_asked((), {}).sizes == Sizes()
    assert chaos_asked((), {"BROKER": "amqp://hub@127.0.0.1//"}).broker == "amqp://hub@127.0.0.1//"


@pytest.mark.parametrize("minutes", ["x", "0", "-1", "nan", "inf", "1e3"])
def test_fuzz_refuses_minutes_and_seeds_that_are_none(minutes: str) -> None:
    with pytest.raises(BadInput) as refusal:
        fuzz_asked(["abc"], {"MINUTES": minutes})
    assert [problem.field for problem in refusal.value.problems] == ["MINUTES", "the seed in ARGS"]


def test_fuzz_takes_parts_of_minutes_and_the_seed_of_a_piece() -> None:
    chosen = fuzz_asked(["7"], {"MINUTES": "0.5"})
    assert (chosen.minutes, chosen.seed) == (0.5, 7)
    assert fuzz_asked([], {}).seed is None


@pytest.mark.parametrize("command", [["pytest", "tests/fuzz"], ["pytest", "-n", "2", "tests/check"], ["tests.fuzz"]])
def test_a_number_of_examples_that_is_none_is_told_in_one_line(command: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "HUB_FUZZ_EXAMPLES": "abc"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode in {2, 4}
    told = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    assert "HUB_FUZZ_EXAMPLES" in told[0]
    assert "'abc'" in told[0]
    assert "write a whole number from 1 to 1000000" in told[0]
    assert told[1:] in ([], ["nothing was started"])


PATIENT = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("begun", flush=True)
for times in range(int(sys.argv[1])):
    if signal.sigtimedwait([signal.SIGINT], 60) is None:
        sys.exit(9)
    print("heard", times, flush=True)
sys.exit(2)
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_fuzz_ends_in_order_when_it_is_interrupted_and_says_how_to_go_on(presses: int) -> None:
    piece = [sys.executable, "-c", PATIENT, str(presses)]
    script = f"import sys; from tests.fuzz.__main__ import main; sys.exit(main(['7'], {piece!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as fuzz:
        assert fuzz.stdout is not None
        assert fuzz.stdout.readline() == "begun\n"
        for times in range(presses):
            fuzz.send_signal(signal.SIGINT)
            assert fuzz.stdout.readline() == f"heard {times}\n"
        _, said = fuzz.communicate(timeout=60)
    assert fuzz.returncode == 130
    assert said.splitlines() == [
        "piece 1: seed 7",
        "interrupted: that piece was not run to its end; again: make fuzz MINUTES=1 ARGS=7 HUB_FUZZ_EXAMPLES=50",
    ]


def test_knobs_read_lists_and_switches() -> None:
    knobs = Knobs({"ROWS": "b a", "STORES": "10 100", "SMALL": "1", "DRAIN": "0", "EMPTY": " "})
    assert knobs.words("ROWS", ("a", "b", "c")) == ["b", "a"]
    assert knobs.words("EMPTY", ("a", "b")) == ["a", "b"]
    assert knobs.numbers("STORES", (1,), most=1000) == [10, 100]
    assert knobs.on("SMALL")
    assert not knobs.on("DRAIN", default=True)
    assert knobs.on("EMPTY", default=True)
    knobs.settle()


def bench(*names: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *names],
        env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_every_bench_tells_its_wrong_knobs_before_any_begins() -> None:
    wrong = {
        "BENCH_SKUS": "abc",
        "BENCH_ROWS": "nothing",
        "BENCH_SCALE": "nan",
        "BENCH_DRAIN": "yes",
        "BENCH_STORES": "1 x",
        "BENCH_STATES": "-1",
        "HUB_BENCH_ROWS": "5",
    }
    ended = bench(**wrong)
    assert (ended.returncode, ended.stdout) == (2, "")
    said = ended.stderr.splitlines()
    assert all(any(line.startswith(f"{name} ") or line.startswith(f"{name}:") for line in said) for name in wrong)
    assert "Traceback" not in ended.stderr


def test_a_knob_that_no_chosen_bench_reads_is_told_and_not_passed_over() -> None:
    ended = bench("coalescing", BENCH_SCALE="0.1", BENCH_SKU="10", BENCH_SKUS="10")
    assert (ended.returncode, ended.stdout) == (2, "")
    said = ended.stderr.splitlines()
    assert [line.split(" ")[0] for line in said[:2]] == ["BENCH_SCALE", "BENCH_SKU"]
    assert all("is not read by coalescing: write one of" in line and "BENCH_SKUS" in line for line in said[:2])
    assert said[2:] == ["nothing was started"]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What make would run, without running it; variables of a make around this test are not its own."""
    env = {
        name: text
        for name, text in os.environ.items()
        if name not in {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL"}
    }
    return subprocess.run(
        ["make", "--dry-run", *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("goal", "given", "known"),
    [("chaos", "NOTIFICATION", "NOTIFICATIONS"), ("bench", "SCALE", "BENCH_…"), ("fuzz", "MINUTE", "MINUTES")],
)
def test_a_variable_of_make_that_is_misspelt_is_told_with_the_known_ones(goal: str, given: str, known: str) -> None:
    ended = make(goal, f"{given}=100", "ARGS=x")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert f" {given}: not read by {goal}; write one of " in line
    assert known in line.replace(",", " ").split()


def test_make_takes_every_variable_that_is_read() -> None:
    for goal, names in (
        ("chaos", [*CHAOS_KNOBS, "ARGS"]),
        ("bench", ["BENCH_SCALE", "ARGS"]),
        ("fuzz", ["MINUTES", "HUB_FUZZ_EXAMPLES", "ARGS"]),
        ("test", ["WORKERS", "ARGS", "ANYTHING"]),
    ):
        ended = make(goal, *(f"{name}=1" for name in names))
        assert (ended.returncode, ended.stderr) == (0, ""), goal


def test_the_list_of_benches_is_there_for_whoever_asks() -> None:
    ended = bench("--help")
    assert ended.returncode == 0
    assert all(name in ended.stdout for name in BENCHES)
