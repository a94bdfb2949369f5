"""Whatever strangers write: a short piece of it in every run, hours of it with `make fuzz MINUTES=60`."""

import os
from collections.abc import Mapping

from tests.knobs import Knobs

MOST_EXAMPLES = 1_000_000


def examples(env: Mapping[str, str]) -> tuple[Knobs, int]:
    """Cases of each kind; the long run asks for more at a time."""
    knobs = Knobs({"HUB_FUZZ_EXAMPLES": env.get("HUB_FUZZ_EXAMPLES", "")})
    return knobs, knobs.whole("HUB_FUZZ_EXAMPLES", 30, most=MOST_EXAMPLES)


KNOBS, EXAMPLES = examples(os.environ)
"""A number that is none is refused when pytest starts (`tests/conftest.py`), and by `python -m tests.fuzz`."""
