"""A process that serves does not look through what its start has made again and again: that stops every thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.cell import ROOT, quick_queues
from tests.runtime.waiting import until


@pytest.mark.parametrize("command", ["intake --port 0", "worker --pool all --lane first"])
def test_what_the_start_has_made_is_not_collected_again(
    redis_url: tuple[str, str], database: str, tmp_path: Path, command: str
) -> None:
    env = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(tmp_path),
        "REDIS_URL": redis_url[0],
        "DATABASE_URL": database,
        "HUB_KEY": Fernet.generate_key().decode(),
        "HUB_PREFIX": redis_url[1],
        "HUB_QUEUES": str(quick_queues(tmp_path / "queues.yaml")),
        "HUB_SPOOL": str(tmp_path / "spool"),
    }
    said = tmp_path / "said"
    with (
        said.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.asked", *command.split()],
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
        ) as running,
    ):
        assert running.stdin is not None
        assert running.stdout is not None

        def spared() -> bool:
            print(file=running.stdin)
            answer = running.stdout.readline().split()
            assert answer, f"it has ended: {said.read_text()}"
            return int(answer[0]) > 4 * int(answer[1])

        try:
            until(spared, what="a start that sets apart what it made")
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
