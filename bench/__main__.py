"""`make bench`: ours, what people would use instead, and the limit, in one run. ARGS="intake engine" runs these only.

A benchmark is a module of `bench/` that is named in `BENCHES` and has `lines()`. Tables go to the terminal as they are
ready, one JSON object per line at the end. The exit code is 0 when everything ran, whether or not it was fast enough.
"""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
import traceback

from bench.measure import HEAD, Line

BENCHES = {
    "intake": "notifications taken by one intake process",
    "engine": "claims and settles, attempts that end at once",
    "load": "initial load of 5,000 SKUs, with and without a budget",
    "latency": "change in VTEX → visible on the marketplace",
    "coalescing": "100,000 notifications over 5,000 SKUs before the workers start",
    "fairness": "a quiet store beside busy, limited, hanging ones",
    "stores": "10 to 10,000 stores; 500 more at run time",
    "growth": "1,000,000 notifications over 20,000 SKUs",
    "reads": "reads at 10,000,000 states and interactions",
}


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"commit {_said(['git', 'rev-parse', '--short', 'HEAD']) or 'unknown'}"
    )


def main(names: list[str]) -> int:
    """Run these benchmarks, or all of them; 2 for a name that there is not, 1 when one did not run to the end."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        known = "\n".join(f"  {name:<11} {what}" for name, what in BENCHES.items())
        print(f"no such benchmark: {', '.join(unknown)}\n{known}", file=sys.stderr)
        return 2
    print(_machine())
    seen: list[Line] = []
    broken = []
    for name in names or list(BENCHES):
        print(f"\n## {name}: {BENCHES[name]}\n", flush=True)
        try:
            found: list[Line] = importlib.import_module(f"bench.{name}").lines()
        except Exception:  # noqa: BLE001 – one bench that breaks must not hide the others
            traceback.print_exc()
            broken.append(name)
            continue
        seen += found
        print("\n".join([HEAD, *(line.as_row() for line in found)]), flush=True)
    print()
    for line in seen:
        print(line.as_json())
    if broken:
        print(f"did not run to the end: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
