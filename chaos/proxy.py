"""TCP doors that can be cut: what stands behind one becomes unreachable without being touched.

    python -m chaos.proxy --control 7000 --door valkey=7001:7101 --door intake=7002:7102,7103

A door passes bytes on. `refuse` closes its listener and every connection; `silence` keeps everything open and moves
nothing, as a network that swallows packets; `pass` makes it whole again. New connections take a door's targets in
turn; a target that is away costs the connection, nothing is tried again. Commands come as lines `<mode> <door>` on the
control port, each answered `ok`.
"""

import argparse
import asyncio
import itertools
import socket
from typing import Literal, cast

import uvloop

Mode = Literal["pass", "refuse", "silence"]
MODES: tuple[Mode, ...] = ("pass", "refuse", "silence")
HOST = "127.0.0.1"


class _End(asyncio.Protocol):
    """One end of a connection through a door; `other` is the far side once there is one."""

    def __init__(self, door: "Door", other: "_End | None" = None) -> None:
        self.door = door
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.held = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without being a subclass
        self.door.ends.add(self)
        if self.other is None:
            self.door.begin(self)
            return
        if self.other.transport is None or self.other.transport.is_closing():
            self.abort()
            return
        self.other.other = self
        if self.other.held:
            self.transport.write(bytes(self.other.held))
            self.other.held.clear()
        if self.door.mode == "silence":
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self.held += data

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None and self.door.mode != "silence":
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 – asyncio's signature
        self.door.ends.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Door:
    """One door: where it listens, what is behind it, and its mode."""

    def __init__(self, name: str, port: int, targets: list[int]) -> None:
        self.name = name
        self.port = port
        self.mode: Mode = "pass"
        self.ends: set[_End] = set()
        self._waiting: list[_End] = []
        self._targets = itertools.cycle(targets)
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _End(self), HOST, self.port, backlog=512)

    async def turn(self, mode: Mode) -> None:
        """Change the mode, of the connections there are too."""
        self.mode = mode
        if mode == "refuse":
            if self._server is not None:
                self._server.close()
                self._server = None
            for end in list(self.ends):
                end.abort()
            self._waiting.clear()
            return
        for end in list(self.ends):
            if end.transport is not None and not end.transport.is_closing():
                if mode == "silence":
                    end.transport.pause_reading()
                else:
                    end.transport.resume_reading()
        await self.open()
        if mode == "pass":
            waiting, self._waiting = self._waiting, []
            for end in waiting:
                self.begin(end)

    def begin(self, near: _End) -> None:
        """Somebody came: connect to a target, later when the door is silent."""
        if self.mode == "silence":
            if near.transport is not None:
                near.transport.pause_reading()
            self._waiting.append(near)
            return
        task = asyncio.get_running_loop().create_task(self._connect(near))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, near: _End) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _End(self, near), HOST, next(self._targets))
        except OSError:
            near.abort()


async def serve(control: int, doors: list[Door]) -> None:
    """Open the doors and obey until cancelled."""
    named = {door.name: door for door in doors}
    for door in doors:
        await door.open()

    async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            mode, _, name = line.decode().strip().partition(" ")
            if mode in MODES and name in named:
                await named[name].turn(mode)
                writer.write(b"ok\n")
            else:
                writer.write(b"unknown\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(obey, HOST, control)
    async with server:
        await server.serve_forever()


def order(control: int, mode: Mode, door: str) -> None:
    """Tell the proxy at this control port to change a door. Raises OSError when it does not obey within 5 s."""
    with socket.create_connection((HOST, control), timeout=5) as connection:
        connection.sendall(f"{mode} {door}\n".encode())
        if connection.recv(100) != b"ok\n":
            raise OSError(f"the proxy does not know door {door!r} or mode {mode!r}")


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(prog="python -m chaos.proxy", description="TCP doors that can be cut")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--door", action="append", required=True, metavar="NAME=PORT:TARGET[,TARGET]")
    given = parser.parse_args()
    doors = []
    for text in given.door:
        name, _, rest = str(text).partition("=")
        port, _, targets = rest.partition(":")
        doors.append(Door(name, int(port), [int(one) for one in targets.split(",")]))
    uvloop.run(serve(given.control, doors))


if __name__ == "__main__":
    main()
