"""Connections to Postgres: autocommit, UTC, checked before use."""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_SECONDS = 300
_OPTIONS = f"-c timezone=UTC -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s -c lock_timeout=30s"
_KEYWORDS: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "application_name": "botplane",
    "options": _OPTIONS,
}


def open_pool(
    database_url: str, *, max_size: int = 4
) -> ConnectionPool[Connection[tuple[Any, ...]]]:
    """Return a pool that is ready at once and fills in the background.

    Store functions run their own transactions, so its connections are in autocommit mode.

    Args:
        database_url: Address as libpq reads it.
        max_size: Most connections of this process.
    """
    return ConnectionPool(
        database_url,
        min_size=1,
        max_size=max_size,
        open=True,
        timeout=CONNECT_TIMEOUT_SECONDS,
        check=ConnectionPool.check_connection,
        name="botplane",
        kwargs=_KEYWORDS,
    )


def connect(database_url: str) -> Connection[tuple[Any, ...]]:
    """Return one connection like those of the pool, for a command that asks once."""
    return Connection.connect(database_url, **_KEYWORDS)
