"""The tools of harm do what they say, and only that."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import chaos
from chaos.proxy import HOST, Door
from hub.runtime.embedded import free_ports

Talk = Callable[[Door], Awaitable[None]]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()
    writer.close()


def through(talk: Talk) -> None:
    """Run `talk` with a door before a server that echoes."""

    async def run() -> None:
        behind, port = free_ports(2)
        server = await asyncio.start_server(_echo, HOST, behind)
        door = Door("echo", port, [behind])
        await door.open()
        async with server, asyncio.timeout(10):
            await talk(door)
            await door.turn("refuse")
            while door.ends:
                await asyncio.sleep(0.01)

    asyncio.run(run())


async def said(door: Door, word: bytes, *, within: float = 5.0) -> bytes:
    """What comes back through a new connection."""
    reader, writer = await asyncio.open_connection(HOST, door.port)
    writer.write(word)
    try:
        return await asyncio.wait_for(reader.read(100), within)
    finally:
        await left(writer)


async def left(writer: asyncio.StreamWriter) -> None:
    """Close, and let nothing linger."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def test_an_open_door_passes_bytes_both_ways() -> None:
    async def talk(door: Door) -> None:
        assert await said(door, b"hello") == b"hello"

    through(talk)


def test_a_door_that_refuses_ends_its_connections_and_takes_none_until_it_passes_again() -> None:
    async def talk(door: Door) -> None:
        reader, writer = await asyncio.open_connection(HOST, door.port)
        writer.write(b"first")
        assert await reader.read(100) == b"first"
        await door.turn("refuse")
        try:
            assert await reader.read(100) == b""
        except ConnectionResetError:
            pass
        await left(writer)
        try:
            await asyncio.open_connection(HOST, door.port)
        except ConnectionRefusedError:
            pass
        else:
            raise AssertionError("somebody listens")
        await door.turn("pass")
        assert await said(door, b"again") == b"again"

    through(talk)


def test_a_silent_door_moves_nothing_and_loses_nothing() -> None:
    async def talk(door: Door) -> None:
        reader, writer = await asyncio.open_connection(HOST, door.port)
        writer.write(b"first")
        assert await reader.read(100) == b"first"
        await door.turn("silence")
        writer.write(b"second")
        answer = asyncio.ensure_future(reader.read(100))
        fresh = asyncio.ensure_future(said(door, b"third"))
        done, _ = await asyncio.wait([answer, fresh], timeout=0.3)
        assert not done
        await door.turn("pass")
        assert await answer == b"second"
        assert await fresh == b"third"
        await left(writer)

    through(talk)


def test_the_clock_of_one_process_can_be_wrong_while_the_others_are_right() -> None:
    asked = (
        "import time, datetime; from datetime import datetime as d, UTC;"
        "right = time.clock_gettime(time.CLOCK_REALTIME);"
        "print(round(time.time() - right), round(d.now(UTC).timestamp() - right),"
        " isinstance(d(2020, 1, 1), d), isinstance(d.now(), datetime.date), type(time.monotonic()).__name__)"
    )
    clock = str(Path(chaos.__file__).parent / "clock")
    env = {**os.environ, "PYTHONPATH": clock, "CHAOS_CLOCK_AHEAD": "-300"}
    wrong = subprocess.run([sys.executable, "-c", asked], env=env, capture_output=True, text=True, check=True)
    right = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert wrong.stdout.split() == ["-300", "-300", "True", "True", "float"]
    assert right.stdout.split() == ["0", "0", "True", "True", "float"]
