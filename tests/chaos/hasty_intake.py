"""`python -m tests.chaos.hasty_intake PORT`: the product's intake with `AnswersFirst` before it."""

import os
import sys

from hub.settings import Settings
from hub.stores import SecretBox
from tasks.app import make_app
from tasks.intake import opened
from tasks.shared_port import listening
from tasks.wake import Waker
from tests.chaos.doubles import AnswersFirst


def main(port: int) -> None:
    settings = Settings.load(env=os.environ)
    waker = Waker(settings, make_app(settings))
    with opened(settings.database_url, settings.schema, SecretBox.from_env(os.environ), waker.wake) as server:
        server.config.app = AnswersFirst(server.config.app)
        server.run(sockets=[listening("127.0.0.1", port)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
