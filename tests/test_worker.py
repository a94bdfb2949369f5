"""The worker process: what it answers to a wake-up it cannot follow, and what it never prints."""

import logging
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
from celery import Celery
from cryptography.fernet import Fernet

from hub.db import StorageAway
from hub.reconcile import Report
from hub.stores import SecretBox
from tasks.worker import FORESEEN, Attempts, KeysDied


class Nobody:
    """Links, reconciler and waker of a worker that knows one store."""

    def get(self, slug):
        return object() if slug == "acme-mkt" else None

    def names(self):
        return {1: "acme-mkt"}

    def attempt(self, _link, context, *, first):
        return Report("acme-mkt", context, Counter(done=int(first)))

    def hold(self, running):
        self.running = list(running)

    def end(self, ended, token, **how):
        self.ended = (ended, token, how)


@pytest.mark.parametrize(
    ("slug", "context", "sentence"),
    [
        ("acme-mkt", "stock", "acme-mkt.stock: 1 done"),
        ("acme-mkt", "telepathy", "acme-mkt.telepathy: this version has no such context; its keys stay as they are"),
        ("gone-mkt", "stock", "gone-mkt.stock: the store is not registered (any more)"),
    ],
)
def test_every_wake_up_is_answered_with_a_sentence(slug, context, sentence):
    nobody = Nobody()
    assert Attempts(nobody, nobody, nobody).run(slug, context, "token", first=True) == sentence


def test_an_attempt_that_raised_lets_who_was_refused_meanwhile_follow():
    class Broken(Nobody):
        def attempt(self, _link, _context, *, first):
            raise RuntimeError(first)

    broken = Broken()
    with pytest.raises(RuntimeError):
        Attempts(broken, broken, broken).run("acme-mkt", "stock", "token", first=True)
    assert broken.ended == (("acme-mkt", "stock"), "token", {"wanted": 0, "refused": 1})


def test_an_absence_of_postgresql_is_told_in_one_line_and_the_wake_up_fails_as_ever(caplog):
    class Away(Nobody):
        def attempt(self, _link, _context, *, first):
            raise StorageAway(f"PostgreSQL cannot be reached, first={first}")

    away = Away()
    attempts = Attempts(away, away, away)
    app = Celery("away", set_as_current=False)

    @app.task(throws=FORESEEN)
    def attempt():
        return attempts.run("acme-mkt", "stock", "token", first=True)

    with caplog.at_level(logging.WARNING):
        ended = attempt.apply()
    assert ended.state == "FAILURE"
    assert away.ended == (("acme-mkt", "stock"), "token", {"wanted": 0, "refused": 1})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert "PostgreSQL cannot be reached" in record.getMessage()


def test_a_store_whose_secrets_the_key_does_not_open_is_told_in_the_log_once_a_minute_with_the_way_out(
    caplog, tmp_path
):
    path = tmp_path / "other.key"
    SecretBox.create_file(path)
    sealed = SecretBox([Fernet.generate_key()]).seal(b"{}")

    class Locked(Nobody):
        now = 100.0
        box = SecretBox.from_env({"HUB_KEY_FILE": str(path)})

        def get(self, _slug):
            return self.box.open(sealed)

    locked = Locked()
    attempts = Attempts(locked, locked, locked, monotonic=lambda: locked.now)

    def told(*slugs):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for slug in slugs:
                attempts.run(slug, "stock", "token", first=True)
        return [record.getMessage() for record in caplog.records]

    first, second = told("acme-mkt", "acme-mkt", "other-mkt", "acme-mkt")
    assert first.startswith(f"store acme-mkt cannot be served by this process: HUB_KEY_FILE is '{path}': ")
    assert "use the key of the other processes" in first
    assert second.startswith("store other-mkt ")
    assert path.read_text().strip() not in first
    locked.now += 59.0
    assert told("acme-mkt") == []
    locked.now += 2.0
    assert told("acme-mkt") == [first]


def test_a_wake_up_that_is_delivered_twice_at_once_follows_up_twice():
    class Twice(Nobody):
        ends = 0

        def attempt(self, link, context, *, first):
            if first:
                attempts.run("acme-mkt", context, "token", first=False)  # while the other one still runs
            return super().attempt(link, context, first=first)

        def end(self, ended, token, **how):
            super().end(ended, token, **how)
            self.ends += 1

    twice = Twice()
    attempts = Attempts(twice, twice, twice)
    assert attempts.run("acme-mkt", "stock", "token", first=True) == "acme-mkt.stock: 1 done"
    assert twice.ends == 2


class Busy(Nobody):
    """A store whose every claim is full and takes a while; its clock."""

    def __init__(self, *, takes=0.015, words=("done",), **report):
        self.now, self.claims, self.takes, self.words = 100.0, [], takes, words
        self.report = {"full": True, "wake": frozenset({(1, "stock")}), **report}

    def attempt(self, _link, context, *, first):
        self.now += self.takes
        self.claims.append("first" if first else "further")
        return Report("acme-mkt", context, Counter(self.words), **self.report)

    def run(self, *, first=False):
        attempts = Attempts(self, self, self, turn=0.05, monotonic=lambda: self.now)
        return attempts.run("acme-mkt", "stock", "token", first=first)


def test_a_further_wake_up_claims_on_while_claims_are_full_and_quick_until_its_turn_is_over():
    busy = Busy()
    assert busy.run() == "acme-mkt.stock: 4 done"
    assert busy.ended == (
        ("acme-mkt", "stock"),
        "token",
        {"wanted": 2, "refused": 2, "brake": None, "soft": False, "backlog": False, "others": set()},
    )


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(Busy(takes=0.05), id="the claim took as long as a turn"),
        pytest.param(Busy(full=False), id="nothing more than one claim takes"),
        pytest.param(Busy(wake=frozenset()), id="nothing left"),
        pytest.param(Busy(wake=frozenset({(1, "stock"), (1, "price")})), id="somebody else waits for what it did"),
        pytest.param(Busy(wake=frozenset({(1, "price")})), id="only somebody else waits"),
        pytest.param(Busy(brake=60.0), id="a limit or a circuit says stop"),
        pytest.param(Busy(words=["given back"]), id="the key came to no end"),
    ],
)
def test_a_wake_up_claims_once_when(busy):
    busy.run()
    assert busy.claims == ["further"]


def test_a_first_wake_up_claims_once_because_its_thread_is_reserved_for_who_is_new():
    busy = Busy()
    busy.run(first=True)
    assert busy.claims == ["first"]


def test_a_turn_in_which_a_key_died_fails_with_all_it_did():
    with pytest.raises(KeysDied, match=r"acme-mkt\.stock: 4 dead, 4 done"):
        Busy(words=["done", "dead"]).run()


def test_a_worker_prints_no_banner_no_warning_and_no_variables_of_its_threads():
    program = """
        import os, signal
        from celery import Celery
        from tasks.worker import DiscreetWorker

        app = Celery("hub", broker="memory://", set_as_current=False)
        app.conf.update(worker_hijack_root_logger=False, worker_redirect_stdouts=False)

        def work():
            token = "open-sesame"
            worker = DiscreetWorker(app=app, pool_cls="threads", concurrency=1)
            worker.blueprint.start = lambda parent: parent.on_start()
            worker.start()
            os.kill(os.getpid(), signal.SIGUSR1)
            print("worked on with a", type(token).__name__)

        work()
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout + told.stderr == "worked on with a str\n"
