"""One process of several that call the same peer; told by one line of JSON, begins at the second line, says what came.

Each of its threads calls as fast as it is let, until the time is over. What came is told with how late its threads ran.
"""

import json
import logging
import sys
import threading
import time
from collections import Counter

from hub.circuits import StandardPatience
from hub.errors import HubError, NotNow
from hub.transport import Calling, Transport, calling
from tests.timing import Lateness


def main() -> None:
    logging.disable()
    told = json.loads(sys.stdin.readline())
    transport = Transport(told["redis"], told["prefix"], StandardPatience(**told.get("patience", {})))
    peer = transport.peer(
        "acme-mkt", "marketplace", told["url"], account="m:acme", rate=told.get("rate", 0), burst=told.get("burst", 1)
    )
    transport.board.ask("PING")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    ends = time.monotonic() + told["seconds"]
    came: Counter[str] = Counter()
    lock = threading.Lock()

    def work(thread: int) -> None:
        number = 0
        while time.monotonic() < ends:
            number += 1
            calling.set(Calling("acme-mkt", told.get("context", "stock"), key=f"{told['name']}.{thread}.{number}"))
            word = "done"
            try:
                peer.request("GET", "/x", operation="x", total=told.get("total", 5.0))
            except HubError as error:
                word = type(error).__name__
                if isinstance(error, NotNow):
                    time.sleep(min(error.wait, 0.005))
            with lock:
                came[word] += 1

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(told.get("threads", 3))]
    with Lateness() as control:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.stdout.write(json.dumps({"came": came, "late": control.worst}) + "\n")


if __name__ == "__main__":
    main()
