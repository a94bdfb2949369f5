"""What PostgreSQL cannot take now is kept on this machine's disk, and only then answered 200 (law 7, NOT-12).

One line per request, checked by its sum, in segments of a few MB; whoever holds a segment's lock (`flock`) owns it.

- A line counts as kept after `fsync`; one `fsync` serves everybody who waits in the same moment.
- A segment is removed when all of it is in PostgreSQL. A kill at any moment leaves lines that are stored already: to
  store them again changes nothing, because the ids of the notices were made at the door.
- What a process leaves behind is adopted by whichever intake looks next: its locks ended with it. Two intakes with one
  folder never touch each other's segments. The folder must be on a local disk, where such locks hold.
- A last line that was cut short was never answered and is skipped. Any other line that cannot be read is skipped too,
  and its whole segment is kept for people as `<name>.aside`; renamed back to `.spool` it is read again.

Files are 0600 in a folder of 0700: bodies may hold personal data.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from hub.ledger import Notice
from hub.model import Ask

ENDING: Final = ".spool"
ASIDE: Final = ".aside"
_SEGMENT_BYTES: Final = 4 * 1024 * 1024
_PIECE: Final = 512 * 1024
_MOST_WAITING: Final = 8_192

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class SpoolFull(OSError):  # noqa: N818 – named by what happens next; an OSError like a full disk
    """The spool holds as much as it may."""


# ---------------------------------------------------------------- one line


@dataclass(frozen=True, slots=True)
class Record:
    """What one request wanted to have stored."""

    notices: tuple[Notice, ...]
    asks: tuple[Ask, ...]


_Line = tuple[
    Literal[1],  # version: a hub that does not know it sets the segment aside
    list[tuple[uuid.UUID, int | None, int | None, str, str, str | None, str]],
    list[tuple[int, str, str, str, int, bool, int]],
]
_LINE: Final[TypeAdapter[_Line]] = TypeAdapter(_Line)


def encoded(notices: Sequence[Notice], asks: Sequence[Ask]) -> bytes:
    """One line: eight hexadecimal digits of CRC-32, a space, JSON in ASCII, a line feed (which JSON never holds)."""
    tree = [
        1,
        [[one.id, one.at, one.store, one.kind, one.fate, one.key, one.body] for one in notices],
        [[one.store, one.context, one.key, one.source, int(one.urgency), one.heard, one.count] for one in asks],
    ]
    text = json.dumps(tree, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decoded(line: bytes) -> Record:
    """The line without its line feed. `ValueError` for anything that `encoded` did not write."""
    if len(line) < 10 or line[8:9] != b" ":
        raise ValueError("no sum in front")
    text = line[9:]
    if line[:8] != b"%08x" % zlib.crc32(text):
        raise ValueError("its sum differs")
    _, notices, asks = _LINE.validate_python(json.loads(text))
    return Record(
        tuple(
            Notice(key.hex, store, kind, fate, body, about, at) for key, at, store, kind, fate, about, body in notices
        ),
        tuple(Ask(*one) for one in asks),
    )


# ---------------------------------------------------------------- files: used by one thread at a time


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    descriptor: int
    since: float  # seconds since 1970 when it was begun
    size: int = 0  # bytes that hold whole lines, or all of it when somebody else wrote it
    done: int = 0  # bytes that are in PostgreSQL
    lines: int = 0  # not yet in PostgreSQL
    odd: bool = False  # a line of it could not be read


@dataclass(frozen=True, slots=True)
class Batch:
    """Records to store next; `Segments.forget` takes it back when they are stored."""

    records: tuple[Record, ...]
    segment: _Segment
    until: int
    lines: int


class Segments:
    """The files of one process. Every method may raise `OSError`; none may run beside another."""

    def __init__(self, folder: Path, *, most_bytes: int, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self.folder = folder
        self._most_bytes = most_bytes
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._current: _Segment | None = None
        self.odd_lines = 0
        """Lines that could not be read, so far."""

    @property
    def lines(self) -> int:
        """How many wait."""
        return sum(segment.lines for segment in self._segments)

    @property
    def size(self) -> int:
        """Bytes they take on the disk, with what is stored already of their segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def empty(self) -> bool:
        """Whether there is no file; one without a whole line is read too, so that it goes away."""
        return not self._segments

    @property
    def has_room(self) -> bool:
        """Whether the bound is not reached."""
        return self.size < self._most_bytes

    @property
    def since(self) -> float | None:
        """When the oldest segment was begun (seconds since 1970); `None` when nothing waits."""
        return min((segment.since for segment in self._segments if segment.lines), default=None)

    def append(self, lines: Sequence[bytes]) -> int:
        """Keep lines durably; how many had room. `SpoolFull` when not one had, `OSError` when none is kept."""
        room = self._most_bytes - self.size
        count = 0
        while count < len(lines) and room >= len(lines[count]):
            room -= len(lines[count])
            count += 1
        if not count:
            raise SpoolFull(f"the spool holds {self.size} bytes; {self._most_bytes} are allowed")
        segment = self._current
        # A segment that somebody removed would take lines and lose them with this process.
        if segment is None or segment.size >= self._segment_bytes or not os.fstat(segment.descriptor).st_nlink:
            segment = self._current = self._begun()
        text = b"".join(lines[:count])
        try:
            written = 0
            while written < len(text):
                written += os.pwrite(segment.descriptor, text[written:], segment.size + written)
            os.fsync(segment.descriptor)
        except OSError:
            # What a failed fsync left on the disk nobody knows: nothing is ever written behind it.
            self._current = None
            with suppress(OSError):
                os.ftruncate(segment.descriptor, segment.size)
            if not segment.lines:
                self._remove(segment)
            raise
        segment.size += len(text)
        segment.lines += count
        return count

    def read(self, most: int) -> Batch | None:
        """The oldest records, up to `most`; `None` when there are none. What cannot be read is skipped."""
        for segment in list(self._segments):
            if segment.done >= segment.size:
                if segment is not self._current:
                    self._remove(segment)
                continue
            return self._batch(segment, most)
        return None

    def forget(self, batch: Batch) -> None:
        """All of it is in PostgreSQL."""
        segment = batch.segment
        segment.done = batch.until
        segment.lines -= batch.lines
        if segment.done >= segment.size:
            self._remove(segment)

    def adopt(self) -> int:
        """Take over what dead processes left in the folder; how many segments those were."""
        ours = {segment.path for segment in self._segments}
        found = 0
        for path in sorted(self.folder.glob(f"*{ENDING}")):
            if path in ours:
                continue
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            if not _locked(descriptor):
                os.close(descriptor)
                continue
            segment = _Segment(path, descriptor, _begun_at(path), size=os.fstat(descriptor).st_size)
            segment.lines = _line_feeds(descriptor)
            self._segments.append(segment)
            found += 1
        self._segments.sort(key=lambda segment: (segment is self._current, segment.path.name))
        return found

    def close(self) -> None:
        """Leave everything to whoever comes next."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        self._current = None

    def check(self) -> None:
        """Make the folder; `OSError` when nothing could be kept in it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13), str(self.folder))

    def _begun(self) -> _Segment:
        self.check()
        while True:
            now = time.time()
            path = self.folder / f"{round(now * 1000):013d}-{os.getpid()}-{secrets.token_hex(4)}{ENDING}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if _locked(descriptor):
                break
            os.close(descriptor)  # somebody adopted it while it was empty
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # else the name could be lost, and the lines with it
        finally:
            os.close(folder)
        segment = _Segment(path, descriptor, now)
        self._segments.append(segment)
        return segment

    def _batch(self, segment: _Segment, most: int) -> Batch:
        length = _PIECE
        while True:
            piece = os.pread(segment.descriptor, min(length, segment.size - segment.done), segment.done)
            whole = segment.done + len(piece) >= segment.size or not piece
            if whole or b"\n" in piece:
                break
            length *= 2
        records: list[Record] = []
        until = lines = 0
        while len(records) < most and (end := piece.find(b"\n", until)) >= 0:
            try:
                records.append(decoded(piece[until:end]))
            except ValueError as fault:  # never its text: it may hold personal data
                self._odd(segment, segment.done + until, fault)
            lines += 1
            until = end + 1
        if whole and len(records) < most and until < len(piece):
            log.warning("the last line of %s was cut short; nobody was told that it is kept", segment.path.name)
            until = len(piece)
        return Batch(tuple(records), segment, segment.done + until if piece else segment.size, lines)

    def _odd(self, segment: _Segment, place: int, fault: ValueError) -> None:
        why = "it is of another version" if isinstance(fault, ValidationError) else "it is damaged"
        log.error("a line of %s at byte %d cannot be read: %s; it is set aside", segment.path.name, place, why)
        segment.odd = True
        self.odd_lines += 1

    def _remove(self, segment: _Segment) -> None:
        if segment is self._current:
            self._current = None
        with suppress(FileNotFoundError):
            if segment.odd:
                segment.path.replace(segment.path.with_suffix(ASIDE))
            else:
                segment.path.unlink()
        self._segments.remove(segment)
        os.close(segment.descriptor)


def _locked(descriptor: int) -> bool:
    """Whether the file is ours now, and still has its name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def _begun_at(path: Path) -> float:
    first = path.name.partition("-")[0]
    return int(first) / 1000 if first.isascii() and first.isdigit() else path.stat().st_mtime


def _line_feeds(descriptor: int) -> int:
    found = place = 0
    while piece := os.pread(descriptor, _PIECE, place):
        found += piece.count(b"\n")
        place += len(piece)
    return found


# ---------------------------------------------------------------- the event loop's side


class Spool:
    """The files behind a thread of their own: the event loop never waits for a disk."""

    def __init__(self, folder: Path, *, most_bytes: int, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._files = Segments(folder, most_bytes=most_bytes, segment_bytes=segment_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._waiting: list[tuple[bytes, Callable[[bool], None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        self.works = False
        """Whether the last line that was to be kept is kept; before the first, whether the folder can be used."""
        self.kept = 0
        """Lines kept so far."""

    @property
    def lines(self) -> int:
        """How many lines wait for PostgreSQL."""
        return self._files.lines

    @property
    def size(self) -> int:
        """Bytes they take on the disk."""
        return self._files.size

    @property
    def empty(self) -> bool:
        """Whether nothing is to be read."""
        return self._files.empty

    @property
    def odd_lines(self) -> int:
        """Lines that could not be read, so far."""
        return self._files.odd_lines

    @property
    def seconds(self) -> float:
        """Age of the oldest segment with a waiting line."""
        since = self._files.since
        return max(0.0, time.time() - since) if since is not None else 0.0

    async def open(self) -> None:
        """Look whether the folder can be used, and take over what dead processes left in it."""
        await self.look()
        if self.works:
            await self.adopt()
        else:
            log.warning("no spool: %s cannot be used", self._files.folder)

    async def look(self) -> None:
        """Whether it can be tried (again): the folder is there and the bound is not reached."""
        try:
            await self._do(self._files.check)
            self.works = self._files.has_room
        except OSError:
            self.works = False

    async def adopt(self) -> None:
        """Take over what processes that died since left in the folder."""
        try:
            found = await self._do(self._files.adopt)
        except OSError as fault:
            log.warning("cannot look through %s (%s)", self._files.folder, fault.strerror)
            return
        if found:
            log.info("took over %d segments of the spool, %d lines wait", found, self.lines)

    def append(self, line: bytes, told: Callable[[bool], None]) -> None:
        """Keep a line; `told` hears in the event loop whether it is durable now."""
        if self._closed or len(self._waiting) >= _MOST_WAITING:
            told(False)
            return
        self._waiting.append((line, told))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def oldest(self, most: int) -> Batch | None:
        """What to store next; `None` when nothing waits or it cannot be read now."""
        try:
            return await self._do(self._files.read, most)
        except OSError as fault:
            log.error("cannot read the spool: %s", fault.strerror)  # noqa: TRY400 – a traceback adds nothing
            return None

    async def forget(self, batch: Batch) -> None:
        """It is in PostgreSQL."""
        try:
            await self._do(self._files.forget, batch)
        except OSError as fault:  # then it is stored again, which changes nothing
            log.warning("cannot remove a segment of the spool: %s", fault.strerror)

    async def close(self) -> None:
        """Keep what is to be kept, then leave the files to whoever comes next."""
        self._closed = True
        if self._writing is not None:
            await self._writing
        await self._do(self._files.close)
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            count = 0
            try:
                count = await self._do(self._files.append, [line for line, _ in waiting])
            except OSError as fault:
                if self.works:
                    log.error("the spool cannot keep anything: %s", fault.strerror or fault)  # noqa: TRY400 – as above
            self.works = count == len(waiting)
            self.kept += count
            for position, (_, told) in enumerate(waiting):
                told(position < count)
        self._writing = None

    async def _do(self, what: Callable[..., _Answer], *args: object) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what, *args)


def found_in(folder: Path) -> tuple[int, int, int]:
    """Segments in a folder, their bytes, and segments set aside; of whatever process. `OSError`."""
    sizes = list(_sizes(folder.glob(f"*{ENDING}")))
    return len(sizes), sum(sizes), len(list(folder.glob(f"*{ASIDE}")))


def _sizes(paths: Iterable[Path]) -> Iterable[int]:
    for path in paths:
        with suppress(FileNotFoundError):  # drained a moment ago
            yield path.stat().st_size
