"""What a benchmark measures, said so that nobody can read it better than it is.

Ours, the peer and the limit run in alternating rounds of one run, so that a noisy machine hits all of them; every
figure is a minimum, a median and a maximum, and what must hold is judged on the ratio of the medians.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROUNDS = 5

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return _short(self.values[0])
        return f"{_short(self.median)} ({_short(min(self.values))}–{_short(max(self.values))})"


def alternating(sides: Mapping[str, Callable[[], float]], *, rounds: int = ROUNDS) -> dict[str, Spread]:
    """Run every side once per round, in turn, the order reversed in every other round."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides) if turn % 2 == 0 else list(reversed(list(sides)))
        for name in names:
            seen[name].append(sides[name]())
    return {name: Spread(tuple(values)) for name, values in seen.items()}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    `must` says in words what has to hold and `passed` whether it did. `lower` is true when less is better (times); both
    ratios are ours ÷ other all the same. `beside` holds further figures of the same run, by name.
    """

    bench: str
    unit: str
    ours: Spread
    must: str
    passed: bool
    peer: Spread | None = None
    peer_name: str = ""
    limit: Spread | None = None
    limit_name: str = ""
    lower: bool = False
    beside: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def ratio_peer(self) -> float | None:
        """Ours ÷ the peer, by medians."""
        return self.ours.median / self.peer.median if self.peer and self.peer.median else None

    @property
    def ratio_limit(self) -> float | None:
        """Ours ÷ the limit, by medians."""
        return self.ours.median / self.limit.median if self.limit and self.limit.median else None

    def as_json(self) -> str:
        """One line for machines."""
        return json.dumps(
            {
                "bench": self.bench,
                "ours": _rounded(self.ours.median),
                "unit": self.unit,
                "peer": _rounded(self.peer.median) if self.peer else None,
                "limit": _rounded(self.limit.median) if self.limit else None,
                "ratio_peer": _rounded(self.ratio_peer),
                "ratio_limit": _rounded(self.ratio_limit),
                "pass": self.passed,
                "must": self.must,
                "rounds": len(self.ours.values),
                "beside": dict(self.beside),
            }
        )

    def as_row(self) -> str:
        """One row of a Markdown table, under `HEAD`."""
        cells = [
            self.bench,
            f"{self.ours} {self.unit}",
            f"{self.peer} {self.peer_name}".strip() if self.peer else "–",
            f"{self.limit} {self.limit_name}".strip() if self.limit else "–",
            _short(self.ratio_peer) if self.ratio_peer is not None else "–",
            _short(self.ratio_limit) if self.ratio_limit is not None else "–",
            self.must,
            "yes" if self.passed else "**no**",
            "; ".join(f"{name} {_short(value)}" for name, value in self.beside.items()) or "–",
        ]
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| bench | ours | peer | limit | ÷ peer | ÷ limit | must | held | beside |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def cpu_seconds(*roots: int) -> float:
    """Seconds of CPU that these processes and all their children have used so far."""
    children: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            fields = (place / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(place.name))
        spent[int(place.name)] = sum(map(int, fields[11:15])) / _TICKS
    total, todo = 0.0, list(roots)
    while todo:
        pid = todo.pop()
        total += spent.get(pid, 0.0)
        todo += children.get(pid, [])
    return total


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of them lie; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def most_in_a_second(moments: Sequence[float]) -> int:
    """The most of these moments (seconds, in order) within any second, wherever it begins."""
    most = oldest = 0
    for newest, at in enumerate(moments):
        while moments[oldest] <= at - 1.0:
            oldest += 1
        most = max(most, newest - oldest + 1)
    return most


def say(text: str) -> None:
    """How far a long benchmark is, beside its table."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
