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


def measured_on_its_own(
    state: Path, *measures: Callable[[postgres.Postgres], list[Row]]
) -> list[Row]:
    """Measure on a server that has nothing else to do, set up as in production."""
    folder = state / "alone"
    folder.mkdir(mode=0o711)
    server = postgres.start(folder, fsync=True)
    try:
        return [row for measure in measures for row in measure(server)]
    finally:
        postgres.stop(folder)


def run_alone(measure: Callable[[postgres.Postgres], list[Row]]) -> int:
    """Measure on a server of our own and return 0 when all bars hold."""
    with tempfile.TemporaryDirectory(prefix="botplane-bench-") as folder:
        state = Path(folder)
        state.chmod(0o711)
        guard = watchdog.watch_over(state)
        try:
            rows = measured_on_its_own(state, measure)
        finally:
            guard.communicate()
    print(HEAD, *rows, sep="\n")
    return 0 if all(row.holds for row in rows) else 1
