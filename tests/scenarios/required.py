"""The acceptance scenarios by group and priority, and which of them must have a test by now.

M must, S should, C could; numbers and ranges of numbers of a group.
"""

from collections.abc import Iterator, Mapping

SCENARIOS: Mapping[str, Mapping[str, str]] = {
    "ACC": {"M": "01-04 06 10-12", "S": "05 07-09 13-15"},
    "SET": {"M": "01-03 07 09-10 14", "S": "04-06 08 11-12 15", "C": "13"},
    "NOT": {"M": "01-05 09-19 22-23 25", "S": "06-08 20-21 24 26", "C": "27"},
    "LOD": {"M": "01-07 09-10 12", "S": "08 11 13"},
    "NEW": {"M": "01-12 16", "S": "13-15"},
    "UPD": {"M": "01-14", "S": "15-18"},
    "PRC": {"M": "01-03 05-06 11-12 14", "S": "04 07-10 13"},
    "STK": {"M": "01-04 08-13", "S": "05-07 14-16"},
    "MAP": {"M": "01-05 07 09", "S": "06 08 10-13"},
    "ORD": {"M": "01-21 23 37-40 42", "S": "22 24-31 33-36 41", "C": "32"},
    "OLD": {"C": "01-06"},
    "STA": {"M": "01-11", "S": "12-16", "C": "17"},
    "INV": {"M": "01-05 07-08 10-11 14", "S": "06 09 12-13 15-16"},
    "CAN": {"M": "01-18", "S": "19", "C": "20"},
    "RET": {"S": "01-04"},
    "CHG": {"S": "01-03 05", "C": "04"},
    "LOG": {"M": "01-09", "S": "10-12", "C": "13-14"},
    "RES": {"M": "01-09 11-14", "S": "10 15"},
    "PRV": {"M": "01-02 04 06", "S": "03 05"},
    "OPS": {"M": "01-03 08", "S": "04-07"},
}

WHOLE_BUT: Mapping[str, str] = {
    "ACC": "",
    "NOT": "12 25",
    "LOD": "10 12",
    "NEW": "",
    "UPD": "",
    "PRC": "",
    "STK": "09-10",
    "RES": "",
}
"""Groups whose M scenarios are all required, but for these numbers."""

ALSO: Mapping[str, str] = {"ORD": "01 03-04 07-12 21"}


def _ids(group: str, numbers: str) -> Iterator[str]:
    for part in numbers.split():
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{group}-{number:02}"


PRIORITY: Mapping[str, str] = {
    scenario: priority
    for group, by_priority in SCENARIOS.items()
    for priority, numbers in by_priority.items()
    for scenario in _ids(group, numbers)
}
"""Every scenario with its priority."""

REQUIRED: frozenset[str] = frozenset(
    {
        scenario
        for group, excepted in WHOLE_BUT.items()
        for scenario in set(_ids(group, SCENARIOS[group]["M"])) - set(_ids(group, excepted))
    }
    | {scenario for group, numbers in ALSO.items() for scenario in _ids(group, numbers)}
)
"""The scenarios without whose test the suite is incomplete."""
