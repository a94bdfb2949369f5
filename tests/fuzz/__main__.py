"""`python -m tests.fuzz MINUTES [SEED]`: the fuzzing tests again and again, each piece with another seed, printed.

Ends at the first piece that fails, and says how to have that piece again.
"""

import os
import random
import subprocess
import sys
import time


def main(minutes: float, seed: int | None) -> int:
    """The exit code: that of the piece that failed, else 0."""
    ends = time.monotonic() + minutes * 60
    pieces = 0
    while True:
        chosen = random.SystemRandom().randrange(2**31) if seed is None else seed + pieces
        examples = os.environ.get("HUB_FUZZ_EXAMPLES", "400")
        sys.stderr.write(f"piece {pieces + 1}: seed {chosen}\n")
        argv = [sys.executable, "-m", "pytest", "-q", "-x", "tests/fuzz"]
        code = subprocess.run(
            [*argv, f"--hypothesis-seed={chosen}"], env={**os.environ, "HUB_FUZZ_EXAMPLES": examples}, check=False
        ).returncode
        pieces += 1
        if code:
            sys.stderr.write(f"again: make fuzz MINUTES=0 ARGS={chosen}\n")
            return code
        if time.monotonic() >= ends:
            return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
