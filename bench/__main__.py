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
from collections.abc import Mapping, Sequence
from types import ModuleType

from bench.measure import HEAD, Line
from hub.errors import BadInput, Problem
from tests.knobs import WRONG_USE, tell

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
MORE = "BENCH_… in the environment makes runs shorter; the docstring of bench/NAME.py and bench/README.md say how."


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"commit {_said(['git', 'rev-parse', '--short', 'HEAD']) or 'unknown'}"
    )


def loaded(names: Sequence[str], env: Mapping[str, str]) -> tuple[dict[str, ModuleType], list[Problem]]:
    """These benches, ready to run, and every knob that is wrong: a bench reads its own as it loads."""
    gone = [name for name in sorted(env) if name.startswith("HUB_BENCH_")]
    problems = [
        Problem("input", field=name, fix="is not read; all knobs begin with BENCH_, see --help") for name in gone
    ]
    modules = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(f"bench.{name}")
        except BadInput as wrong:
            problems += wrong.problems
    if not problems:  # or a bench that did not load would seem to read nothing
        read = sorted({name for module in modules.values() for name in module.knobs.read})
        fix = f"is not read by {', '.join(modules)}: write one of {', '.join(read)}, or leave it out"
        unread = [name for name in sorted(env) if name.startswith("BENCH_") and name not in read]
        problems = [Problem("input", field=name, value=env[name][:60], fix=fix) for name in unread]
    return modules, problems


def main(names: list[str]) -> int:
    """Run these benchmarks, or all of them; 2 for a name that there is not, 1 when one did not run to the end."""
    known = "\n".join(f"  {name:<11} {what}" for name, what in BENCHES.items())
    if {"--help", "-h"} & set(names):
        print(f'make bench, or make bench ARGS="intake engine" for these only:\n{known}\n{MORE}')
        return 0
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}\n{known}", file=sys.stderr)
        return WRONG_USE
    modules, problems = loaded(names or list(BENCHES), os.environ)
    if problems:
        return tell(problems)
    print(_machine())
    seen: list[Line] = []
    broken = []
    for name, module in modules.items():
        print(f"\n## {name}: {BENCHES[name]}\n", flush=True)
        try:
            found: list[Line] = module.lines()
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
