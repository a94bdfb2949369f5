"""Everything the project needs, in `.venv` of this checkout: python3 deploy/set_up.py

Needs Python 3.11 or later and a package index; no root, no Docker, no system package. Installs exactly what
`requirements.lock` names, checked by hash, with uv when it is on PATH, else with a uv of its own, else with pip; each
honours its own settings for the index. Once done, a stamp makes later runs immediate. Two runs at once are safe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OLDEST = (3, 11)
NEWER = ("python3.14", "python3.13", "python3.12", "python3.11")
WHEELS_ONLY = ["--only-binary", ":all:"]


class CannotSetUp(Exception):  # noqa: N818 – its text is all the user sees
    """What prevents the set-up, and what to do about it."""


def fingerprint(root: Path) -> str:
    """Return what the installed environment depends on, as one hash."""
    digest = hashlib.sha256(str(root).encode())  # a moved checkout has broken paths in .venv/bin
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    return digest.hexdigest()


def is_done(root: Path) -> bool:
    """Whether `.venv` holds what the files of the checkout ask for."""
    try:
        stamped = (root / ".venv" / "set-up").read_text()
    except OSError:
        return False
    return stamped == fingerprint(root) and (root / ".venv" / "bin" / "python").exists()


def stamp(root: Path) -> None:
    """Remember that the set-up is complete."""
    half = root / ".venv" / "set-up.new"
    half.write_text(fingerprint(root))
    half.replace(root / ".venv" / "set-up")


def set_up(root: Path) -> None:
    """Make or renew `.venv`. Raises CannotSetUp with one sentence."""
    if is_done(root):
        return
    with one_at_a_time(root):
        if is_done(root):  # the other run did it
            return
        began = time.monotonic()
        (root / ".venv" / "set-up").unlink(missing_ok=True)
        uv = shutil.which("uv")
        make_environment(root, uv)
        python = root / ".venv" / "bin" / "python"
        how = install(root, python, uv)
        stamp(root)
        say(f"done in {time.monotonic() - began:.1f} s (with {how})")


def make_environment(root: Path, uv: str | None) -> None:
    """Create `.venv` unless there is one that works."""
    place = root / ".venv"
    python = place / "bin" / "python"
    check = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    if python.exists() and attempt([str(python), "-c", check]) is None:
        return
    if place.exists():
        shutil.rmtree(place)
    say(f"creating .venv with Python {sys.version.split()[0]}")
    if uv and attempt([uv, "venv", "--quiet", "--python", sys.executable, str(place)]) is None:
        return
    make_with_venv(place)


def make_with_venv(place: Path) -> None:
    """Create an environment that has pip, by the standard library."""
    try:
        import ensurepip  # noqa: F401 – Debian and Ubuntu leave it out of their python3
        import venv  # noqa: F401 – the same
    except ImportError:
        raise CannotSetUp(
            "this Python cannot create virtual environments (module ensurepip is missing): install "
            f"it (Debian, Ubuntu: apt-get install python3.{sys.version_info[1]}-venv) or put uv on PATH, then run this "
            "again"
        ) from None
    failed = attempt([sys.executable, "-m", "venv", "--clear", str(place)])
    if failed is not None:
        raise CannotSetUp(f"could not create {place}: {failed}")


def install(root: Path, python: Path, uv: str | None) -> str:
    """Install the locked packages, then the project itself; return the tool's name."""
    locked = [*WHEELS_ONLY, "--require-hashes", "-r", str(root / "requirements.lock")]
    itself = ["--no-deps", "--no-build-isolation", "-e", str(root)]
    say("installing the packages of requirements.lock")
    problems = []
    if uv:
        failed = with_uv(uv, python, locked, itself)
        if failed is None:
            return "uv"
        problems.append(f"uv: {failed}")
    if attempt([str(python), "-m", "pip", "--version"]) is not None:
        make_with_venv(root / ".venv")
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    own_uv = python.with_name("uv")
    if not uv:
        failed = attempt([*pip, *WHEELS_ONLY, "--require-hashes", "-r", str(HERE / "uv.txt")])
        if failed is None:
            failed = with_uv(str(own_uv), python, locked, itself)
            if failed is None:
                return "uv, installed by pip"
        problems.append(f"uv installed by pip: {failed}")
    say(f"{problems[-1]}; trying pip, which takes longer")
    for arguments in (locked, itself):
        failed = attempt([*pip, *arguments])
        if failed is not None:
            raise CannotSetUp("\n  ".join(["the packages could not be installed:", *problems, f"pip: {failed}"]))
    return "pip"


def with_uv(uv: str, python: Path, *installs: list[str]) -> str | None:
    """Run `uv pip install` for each; return what failed."""
    for arguments in installs:
        failed = attempt([uv, "pip", "install", "--quiet", "--python", str(python), *arguments])
        if failed is not None:
            return failed
    return None


def attempt(argv: list[str]) -> str | None:
    """Run a command; return None when it succeeded, else its last words."""
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    # uv's own list of certificates knows no company's; the system's list is what pip and browsers trust there.
    environment = {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
    environment.update((name, value) for name, value in os.environ.items() if name not in ours)
    try:
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return " / ".join(words[-4:]) or f"exit code {done.returncode}"


class one_at_a_time:  # noqa: N801 – reads as a statement
    """Hold the checkout's set-up lock; the system drops it when this process ends, however it ends."""

    def __init__(self, root: Path) -> None:
        (root / ".hub").mkdir(exist_ok=True)
        self._path = root / ".hub" / "set-up.lock"

    def __enter__(self) -> None:
        try:
            import fcntl
        except ImportError:
            raise CannotSetUp("this system is not supported: use Linux, macOS or WSL") from None
        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running; waiting for it")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def say(line: str) -> None:
    print(f"set-up: {line}", flush=True)


def main() -> int:
    if sys.version_info < OLDEST:
        newer = next(filter(None, map(shutil.which, NEWER)), None)
        if newer is None:
            found = ".".join(map(str, sys.version_info[:2]))
            print(f"set-up: Python 3.11 or later is needed, this is {found}: install a newer one", file=sys.stderr)
            return 1
        os.execv(newer, [newer, *sys.argv])  # noqa: S606 – the same script by a newer Python
    try:
        set_up(ROOT)
    except CannotSetUp as problem:
        print(f"set-up: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
