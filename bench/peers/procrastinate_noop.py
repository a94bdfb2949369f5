"""A Procrastinate task as its documentation writes one: `python procrastinate_noop.py COUNT` defers that many jobs.

`python procrastinate_noop.py schema` makes its tables. The worker: `procrastinate --app=procrastinate_noop.app worker
--concurrency N`. DATABASE_URL is its database; finished jobs are deleted, so that its table does not grow.
"""

import os
import sys

import procrastinate

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"]),
    worker_defaults={"delete_jobs": "successful"},
)


@app.task(name="procrastinate_noop.noop")  # fed by `__main__`
async def noop(store: str, key: str) -> None:
    """Nothing."""


def main(what: str) -> None:
    """Make the tables, or defer so many jobs."""
    plain = procrastinate.SyncPsycopgConnector(conninfo=os.environ["DATABASE_URL"])
    with app.replace_connector(plain) as feeding, feeding.open():
        if what == "schema":
            feeding.schema_manager.apply_schema()
            return
        jobs = [{"store": f"store{number % 10}", "key": str(number)} for number in range(int(what))]
        for first in range(0, len(jobs), 1000):
            noop.batch_defer(*jobs[first : first + 1000])


if __name__ == "__main__":
    main(sys.argv[1])
