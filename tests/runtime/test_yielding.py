"""Workers yield the CPU to whoever somebody waits for, and touch nobody else's."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.worker import NICE

_ASK = """
import os
from pathlib import Path
from tasks.worker import let_others_go_first
group = Path("/proc/self/autogroup")
before = os.nice(0), group.read_text() if group.exists() else ""
let_others_go_first()
print(os.nice(0) - before[0], (group.read_text() if group.exists() else "") != before[1], before[1] != "")
"""


@pytest.mark.parametrize("leads", [False, True])
def test_a_worker_yields_the_cpu_and_leaves_a_session_that_is_not_its_own_alone(leads: bool) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _ASK],
        cwd=Path(__file__).parents[2],
        start_new_session=leads,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.split()
    nice, session_yields, has_groups = told
    assert nice == str(NICE)
    assert session_yields == str(leads and has_groups == "True")
