"""What somebody sets for a long run – a benchmark, chaos, fuzzing – is read whole before anything starts.

Every knob that is wrong is one problem with its name, its value and the way out; all of them are told at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hub.errors import BadInput, Problem

WRONG_USE = 2
"""The exit code for a user's mistake, as of `hub`."""


@dataclass(frozen=True)
class Knobs:
    """Reads knobs from a mapping such as the environment; an empty one counts as not set.

    A knob that is wrong has its default until `settle` raises. `written`: what people call a knob, when not its name.
    """

    given: Mapping[str, str]
    written: Mapping[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    """The knobs that were asked for so far: any other one is misspelt, or of something else."""

    def text(self, name: str) -> str:
        """What was given, without space around it."""
        self.read.add(name)
        return self.given.get(name, "").strip()

    def whole(self, name: str, default: int, *, least: int = 1, most: int = 1_000_000_000) -> int:
        """A whole number."""
        text = self.text(name)
        if not text:
            return default
        if re.fullmatch(r"-?[0-9]{1,18}", text) and least <= int(text) <= most:
            return int(text)
        self.refuse(name, f"write a whole number from {least} to {most}, in digits")
        return default

    def number(self, name: str, default: float, *, least: float = 0.0, most: float = 1_000_000.0) -> float:
        """A number with or without a fraction."""
        text = self.text(name)
        if not text:
            return default
        if re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", text) and least <= float(text) <= most:
            return float(text)
        self.refuse(name, f"write a number from {least:.12g} to {most:.12g}, such as {min(most, max(least, 1.5)):g}")
        return default

    def on(self, name: str, *, default: bool = False) -> bool:
        """A switch."""
        text = self.text(name)
        if text not in {"", "0", "1"}:
            self.refuse(name, "write 1 for yes or 0 for no")
        return text == "1" if text else default

    def words(self, name: str, known: Sequence[str]) -> list[str]:
        """Some of these words, by default all."""
        words = self.text(name).split()
        if not set(words) <= set(known):
            self.refuse(name, f"write one or more of {', '.join(known)}, with spaces between them")
            words = []
        return words or list(known)

    def numbers(self, name: str, default: Sequence[int], *, most: int) -> list[int]:
        """Several whole numbers from 1 on."""
        words = self.text(name).split()
        if all(re.fullmatch(r"[0-9]{1,18}", word) and 1 <= int(word) <= most for word in words):
            return [int(word) for word in words] or list(default)
        self.refuse(name, f"write whole numbers from 1 to {most} with spaces between them")
        return list(default)

    def refuse(self, name: str, fix: str) -> None:
        """Note that this knob is wrong. What may hold a password is not repeated."""
        text = self.text(name)
        shown = "a URL" if "://" in text else text[:60]
        self.problems.append(Problem("input", field=self.written.get(name, name), value=shown, fix=fix))

    def settle(self) -> None:
        """Everything was read. `BadInput` with all problems."""
        if self.problems:
            raise BadInput(self.problems)


def tell(problems: Sequence[Problem]) -> int:
    """One line a problem on standard error; the exit code."""
    for problem in dict.fromkeys(problem.sentence() for problem in problems):
        sys.stderr.write(f"{problem}\n")
    sys.stderr.write("nothing was started\n")
    return WRONG_USE
