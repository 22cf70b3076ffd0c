"""Bring the schema up to date: numbered SQL files, forward only, one transaction each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

from botplane.errors import Rejected
from botplane.store.errors import translated_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

LOCK_KEY = 4_829_116_530_217
"""Advisory lock that one migration holds; any constant that nothing else in the database uses."""

_WAIT_FOR_OTHER_MIGRATION = "SET lock_timeout = '120s'"
_WAIT_FOR_TABLE_LOCKS = "SET lock_timeout = '5s'"
_CREATE_RECORD: LiteralString = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version integer PRIMARY KEY,
    name text NOT NULL UNIQUE,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    statements: LiteralString

    @property
    def checksum(self) -> str:
        """SHA-256 of the file: an applied file must never change."""
        return hashlib.sha256(self.statements.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the files that come with this version, in order."""
    files = resources.files("botplane.store").joinpath("migrations").iterdir()
    return [
        Migration(
            version=int(file.name.split("_", 1)[0]),
            name=file.name,
            statements=file.read_text(encoding="utf-8"),
        )
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".sql")
    ]


def migrate(database_url: str, files: Sequence[Migration] | None = None) -> list[str]:
    """Apply what is missing and return the names of the files applied.

    Two at once do no harm: one waits for the other on an advisory lock.

    Raises:
        Rejected: An applied file has changed, or the database is newer than this version.
        Retryable: Postgres is away, or a table stayed locked for five seconds.
    """
    known = migrations() if files is None else list(files)
    with translated_errors(), psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(_WAIT_FOR_OTHER_MIGRATION)
        conn.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        conn.execute(_WAIT_FOR_TABLE_LOCKS)
        conn.execute("SET client_min_messages = warning")
        conn.execute(_CREATE_RECORD)
        missing = _missing(conn, known)
        for migration in missing:
            _apply(conn, migration)
    return [migration.name for migration in missing]


def _missing(conn: Connection[Any], known: list[Migration]) -> list[Migration]:
    applied = {
        version: (name, checksum)
        for version, name, checksum in conn.execute(
            "SELECT version, name, checksum FROM schema_migration"
        )
    }
    for migration in known:
        name, checksum = applied.pop(migration.version, (migration.name, migration.checksum))
        if (name, checksum) != (migration.name, migration.checksum):
            raise Rejected(
                "MigrationChanged",
                f"Migration {name} was applied to this database and has changed since. "
                f"Restore the file and put the change into a new migration.",
            )
    if applied:
        newest = max(applied)
        raise Rejected(
            "SchemaTooNew",
            f"The database has migration {applied[newest][0]}, which this version does not know. "
            f"Run the version of botplane that applied it, or a newer one.",
        )
    done = {row[0] for row in conn.execute("SELECT version FROM schema_migration")}
    return [migration for migration in known if migration.version not in done]


def _apply(conn: Connection[Any], migration: Migration) -> None:
    with conn.transaction():
        conn.execute(migration.statements)
        conn.execute(
            "INSERT INTO schema_migration (version, name, checksum) VALUES (%s, %s, %s)",
            [migration.version, migration.name, migration.checksum],
        )
