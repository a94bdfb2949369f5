"""`make fuzz`, or `python -m tests.fuzz [SEED]`: the fuzzing tests again and again, each piece with another seed.

As long as MINUTES says (60), and one piece at least. Ends at the first piece that fails and says how to have it again.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hub.errors import BadInput
from tests.fuzz import MOST_EXAMPLES
from tests.knobs import Knobs, tell

MINUTES = 60.0
INTERRUPTED = 2
"""The exit code of pytest."""
EXAMPLES = 50
"""Cases of each kind in a piece: about a minute's."""
PIECE = (sys.executable, "-m", "pytest", "-q", "-x", "tests/fuzz")


@dataclass(frozen=True)
class Asked:
    """How long, from which seed on (none: ever new ones), how many cases of each kind in a piece."""

    minutes: float
    seed: int | None
    examples: int


def asked(arguments: Sequence[str], env: Mapping[str, str]) -> Asked:
    """Read SEED from the arguments and the rest from the environment. `BadInput` with every problem."""
    names = ("MINUTES", "HUB_FUZZ_EXAMPLES")
    knobs = Knobs(
        {name: env.get(name, "") for name in names} | {"SEED": " ".join(arguments)},
        written={"SEED": "the seed in ARGS"},
    )
    minutes = knobs.number("MINUTES", MINUTES, least=0.01, most=100_000)
    seed = knobs.whole("SEED", 0, least=0, most=2**31 - 1) if knobs.text("SEED") else None
    examples = knobs.whole("HUB_FUZZ_EXAMPLES", EXAMPLES, most=MOST_EXAMPLES)
    knobs.settle()
    return Asked(minutes, seed, examples)


def main(arguments: Sequence[str], piece: Sequence[str] = PIECE) -> int:
    """The exit code: that of the piece that failed, 2 for wrong arguments, 130 after Ctrl-C, else 0."""
    try:
        chosen = asked(arguments, os.environ)
    except BadInput as wrong:
        return tell(wrong.problems)
    ends = time.monotonic() + chosen.minutes * 60
    pieces = 0
    while True:
        seed = random.SystemRandom().randrange(2**31) if chosen.seed is None else chosen.seed + pieces
        sys.stderr.write(f"piece {pieces + 1}: seed {seed}\n")
        env = {**os.environ, "HUB_FUZZ_EXAMPLES": str(chosen.examples)}
        seconds = None if pieces == 0 else max(1.0, ends - time.monotonic())
        code, cut = _ended([*piece, f"--hypothesis-seed={seed}"], env, seconds)
        pieces += 1
        again = f"again: make fuzz MINUTES=1 ARGS={seed} HUB_FUZZ_EXAMPLES={chosen.examples}\n"
        if code and not (cut and code == INTERRUPTED):
            sys.stderr.write(again)
            return code
        if cut:
            sys.stderr.write(f"{cut}: that piece was not run to its end; {again}")
            return 128 + signal.SIGINT if cut == "interrupted" else 0
        if time.monotonic() >= ends:
            return 0


def _ended(argv: Sequence[str], env: Mapping[str, str], seconds: float | None) -> tuple[int, str]:
    """The exit code, and what made us end it early: time, Ctrl-C (which it does not hear by itself), or nothing."""
    piece: subprocess.Popen[bytes] | None = None
    cut = ""

    def interrupt(*_: object) -> None:
        nonlocal cut
        cut = "interrupted"
        if piece is not None:
            piece.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)  # an exception might come between starting it and waiting for it
    try:
        with subprocess.Popen(argv, env=env, start_new_session=True) as piece:
            if cut:
                piece.send_signal(signal.SIGINT)
            try:
                return piece.wait(seconds), cut
            except subprocess.TimeoutExpired:
                cut = "the time is over"
                piece.send_signal(signal.SIGINT)
                return piece.wait(), cut
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
