"""`python -m tests.runtime.asked COMMAND…`: the command `hub` in a process that can be asked what its collector spares.

For whatever comes on its input: so many objects were set apart from collections, so many are looked through.
"""

import gc
import os
import threading

from hub.cli import main


def answer() -> None:
    while os.read(0, 100):
        os.write(1, f"{gc.get_freeze_count()} {len(gc.get_objects())}\n".encode())


if __name__ == "__main__":
    threading.Thread(target=answer, daemon=True).start()
    main()
