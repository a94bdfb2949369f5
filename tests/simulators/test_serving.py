"""A simulator that is a process of its own does not stand still because of what it remembers."""

import subprocess
import sys
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[2]


def test_a_simulator_never_stops_to_look_through_all_that_it_keeps() -> None:
    """50,000 calls in its journal made that 0.2 s long: what came meanwhile was noted as if it came at once."""
    command = [sys.executable, "-m", "tests.simulators.keeping"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            url = child.stdout.readline().partition("ready at ")[2].strip()
            with requests.Session() as session:
                session.trust_env = False
                told = [session.get(url, timeout=60).json() for _ in range(25)]
        finally:
            child.terminate()
    assert told[-1]["kept"] == 500_000
    assert told[-1]["looked_through"] == told[0]["looked_through"]
