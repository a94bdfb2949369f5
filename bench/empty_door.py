"""The limit of the intake: its server with its settings and its bounds, answering every request an empty 200.

`python -m bench.empty_door PORT`
"""

from __future__ import annotations

import sys

import uvicorn

from tasks.bounded_http import Bounds, bounded
from tasks.intake import Receive, Scope, Send
from tasks.shared_port import listening

_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
_BODY = {"type": "http.response.body", "body": b""}


async def empty(scope: Scope, _: Receive, send: Send) -> None:
    """Nothing is read, nothing is done."""
    if scope["type"] == "http":
        await send(_START)
        await send(_BODY)


def main(port: int) -> None:
    """Serve until SIGTERM, set up as `tasks.intake.opened` does."""
    config = uvicorn.Config(
        empty,
        http=bounded(Bounds(), lambda _: None),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        backlog=2_048,
    )
    uvicorn.Server(config).run(sockets=[listening("127.0.0.1", port)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
