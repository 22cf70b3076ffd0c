"""Usage whose time is over goes into files before Postgres forgets it."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.rows import dict_row

from botplane.errors import Rejected, Retryable
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from psycopg import Connection

SQL = load_queries(__package__)


class Archived(NamedTuple):
    """One month of one table, in a file."""

    file: str
    rows: int
    sha256: str


def archive_usage(
    conn: Connection[Any], directory: Path, actor: str, now: datetime
) -> Iterator[Archived]:
    """Write each month that Postgres may forget into a file; it forgets only what is written.

    A file is CSV with a header, packed by gzip; beside it is its SHA-256, as `sha256sum --check`
    reads it. It is on disk before Postgres knows of it. Files that Postgres knows of are not
    written again, unless rows have come since.

    Args:
        conn: Connection without an open transaction.
        directory: Where to; it exists.
        actor: Who asks, for the audit log.
        now: What is over is over then.

    Raises:
        Rejected: The directory cannot be written to.
        Retryable: Postgres is away, or somebody else does the same.
    """
    with translated_errors(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        conn.execute(SQL["ensure_periods"], {"now": now})
        months = cursor.execute(SQL["months"], {"now": now, "part": None}).fetchall()
    for month in months:
        with translated_errors(), conn.transaction():
            conn.execute(SQL["one_moment"])
            conn.execute(SQL["hold"])
            if conn.execute(SQL["alone"]).fetchone() != (True,):
                raise Retryable("ArchiveBusy", "Another archive is being written.")
            if conn.execute(SQL["months"], month | {"now": now}).fetchone() is None:
                continue  # another archive has written it, and it may have gone since
            conn.execute(SQL["in_utc"])
            name = f"{month['part']}.csv.gz"
            try:
                digest = _write(conn, directory / name, month)
            except OSError as error:
                text = f"{directory / name} cannot be written: {error.strerror}."
                raise Rejected("ArchiveNotWritten", text) from None
            row = month | {"sha256": digest, "actor": actor, "now": now}
            rows = _note(conn, row)
        yield Archived(name, rows, digest)


def _write(conn: Connection[Any], path: Path, month: dict[str, Any]) -> str:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        # Neither the name of a file nor its time is in it: equal rows make an equal file.
        with (
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
            conn.cursor().copy(SQL[month["relation"]], month) as rows,
        ):
            for data in rows:
                packed.write(data)
        _to_disk(file)
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with path.with_name(f"{path.name}.sha256").open("w", encoding="utf-8") as beside:
        beside.write(f"{digest}  {path.name}\n")
        _to_disk(beside)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _note(conn: Connection[Any], row: dict[str, Any]) -> int:
    noted = conn.execute(SQL["note"], row).fetchone()
    rows = int(noted[0]) if noted else 0
    conn.execute(SQL["audit"], row | {"rows": rows})
    return rows
