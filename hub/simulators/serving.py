"""Serves a simulator: in the foreground for people, in a thread for tests and the demo. Quiet, on a known port."""

import asyncio
import gc
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

START_SECONDS = 10.0
NEVER = 1_000_000_000
"""Collections of the middle generation after which Python would look through all that a simulator keeps."""


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises OSError when the port is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def url_of(bound: socket.socket) -> str:
    """The base URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://{host}:{port}"


def server_for(app: ASGIApp) -> uvicorn.Server:
    """A uvicorn server without logs: broken-off answers are wanted here, not errors."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="critical",
            access_log=False,
            lifespan="on",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
        )
    )


def run(app: ASGIApp, name: str, host: str, port: int) -> int:
    """Serve until interrupted; print `<name> ready at <url>` once it answers. Returns the exit code.

    For a process of its own: from now on Python's collector leaves what is old alone. A simulator keeps nearly
    everything (journal, listings, their history), and to look through that stopped it for 0.2 s and more: what came
    meanwhile was noted as if it all came at once.
    """
    try:
        bound = listening(host, port)
    except OSError as error:
        sys.stderr.write(f"{name}: port {port} on {host} cannot be used ({error.strerror}); choose another --port\n")
        return 1
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)
    server = server_for(app)

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        sys.stdout.write(f"{name} ready at {url_of(bound)}\n")
        sys.stdout.flush()
        await serving

    try:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(serve())
    except KeyboardInterrupt:
        return 0
    return 0


@contextmanager
def in_thread(app: ASGIApp, port: int = 0, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Serve in a daemon thread of this process and yield the base URL. Raises TimeoutError when it does not start."""
    bound = listening(port=port)
    server = server_for(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    ends = time.monotonic() + START_SECONDS
    while not server.started:
        if time.monotonic() > ends or not thread.is_alive():
            server.should_exit = True
            raise TimeoutError(f"the simulator did not start within {START_SECONDS} s")
        sleep(0.005)
    try:
        yield url_of(bound)
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
        bound.close()
