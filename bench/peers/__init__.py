"""What people would use instead of the hub's engine, each in the idiom of its own documentation.

They live in an environment of their own, `bench/peers/.venv`, made from `requirements.lock` beside this file when a
benchmark first asks for it: nothing of theirs gets into the hub's environment.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"


def python() -> Path:
    """The interpreter of the peers' environment, made or renewed when needed. Raises CalledProcessError."""
    place = HERE / ".venv"
    stamp = place / "locked"
    wanted = hashlib.sha256(LOCK.read_bytes() + str(place).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--only-binary", ":all:", "--require-hashes", "-r", str(LOCK)], check=True)
        stamp.write_text(wanted, encoding="ascii")
    return place / "bin" / "python"
