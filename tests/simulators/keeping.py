"""A served application that keeps what each call brings, as a simulator keeps its books; told of by `test_serving`."""

import gc
import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hub.simulators.serving import run

KEPT_EACH = 20_000
kept: list[list[object]] = []


async def keep(_: Request) -> JSONResponse:
    """Keep more; how often everything that is kept was looked through so far, and how much that is."""
    kept.extend([object()] for _ in range(KEPT_EACH))
    return JSONResponse({"looked_through": gc.get_stats()[2]["collections"], "kept": len(kept)})


if __name__ == "__main__":
    sys.exit(run(Starlette(routes=[Route("/", keep)]), "keeping", "127.0.0.1", 0))
