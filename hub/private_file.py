"""Files that hold a secret: only their owner may read them, and none is ever replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from hub.errors import BadInput, Problem

_LONGEST: Final = 16_384


def read_private(path: Path, field: str) -> str:
    """What the file says (ASCII, at most 16 KiB). `BadInput`, naming `field`, when others may read it or nobody can."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _wrong(path, field, "is no regular file")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise _wrong(path, field, f"others may read it; run: chmod 600 {path}")
            return file.read(_LONGEST).decode("ascii", errors="replace")
    except OSError as fault:
        raise _wrong(path, field, f"cannot be read ({fault.strerror})") from None


def create_private(path: Path, field: str, content: bytes) -> None:
    """Write a new file (0600). `BadInput`, naming `field`, when it exists already or cannot be written."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise _wrong(path, field, "exists already and is never replaced; use it, or another name") from None
    except OSError as fault:
        raise _wrong(path, field, f"cannot be written ({fault.strerror}); choose another place") from None


def _wrong(path: Path, field: str, fix: str) -> BadInput:
    return BadInput([Problem("input", field=field, value=str(path), fix=fix)])
