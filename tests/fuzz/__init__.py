"""Whatever strangers write: a short piece of it in every run, hours of it with `make fuzz MINUTES=60`."""

import os

EXAMPLES = int(os.environ.get("HUB_FUZZ_EXAMPLES", "30"))
"""Cases of each kind; the long run asks for more at a time."""
