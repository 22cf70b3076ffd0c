"""Benchmarks of Postgres alone: a database each, and a server of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from botplane.store.migrate import migrate
from tests.bench.rows import HEAD, Row
from tests.support.controlplane import postgres, watchdog


@contextmanager
def a_database(server: postgres.Postgres) -> Iterator[str]:
    """Return the URL of a migrated database that goes with the block."""
    name = f"bench_{uuid4().hex[:12]}"
    url = server.create_database(name)
    migrate(url)
    yield url
    server.drop_database(name)


@contextmanager
def a_state() -> Iterator[Path]:
    """Return a folder; what was started in it is ended with the block."""
    with tempfile.TemporaryDirectory(prefix="botplane-bench-") as folder:
        state = Path(folder)
        state.chmod(0o711)
        guard = watchdog.watch_over(state)
        try:
            yield state
        finally:
            guard.communicate()


def measured_alone(*measures: Callable[[postgres.Postgres], list[Row]]) -> list[Row]:
    """Measure on a server set up as in production, while nothing else of ours runs."""
    with a_state() as state:
        server = postgres.start(state, fsync=True)
        return [row for measure in measures for row in measure(server)]


def run_alone(measure: Callable[[postgres.Postgres], list[Row]]) -> int:
    """Print what was measured and return 0 when all bars hold."""
    rows = measured_alone(measure)
    print(HEAD, *rows, sep="\n")
    return 0 if all(row.holds for row in rows) else 1
