"""Connections to Postgres: autocommit, UTC, the role of the process, checked before use."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, LiteralString, TypeVar

import structlog
from psycopg import Connection
from psycopg_pool import ConnectionPool

from botplane.store.errors import translated_errors

if TYPE_CHECKING:
    from uuid import UUID

log = structlog.get_logger()
T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5
RECONNECT_SECONDS = 2
STATEMENT_TIMEOUT_SECONDS = 300
PAUSE_SECONDS = 10
"""So long may an operator say nothing within a transaction: shorter than a Lease takes to expire,
so that one which is paused there holds no lock any more when the next one leads."""
_OPTIONS = f"-c timezone=UTC -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s -c lock_timeout=30s"
_KEYWORDS: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "application_name": "botplane",
    "options": _OPTIONS,
}
_BECOME: LiteralString = """
SELECT set_config('role', r.rolname, false) FROM pg_roles r
WHERE r.rolname = %(role)s AND pg_has_role(r.rolname, 'MEMBER')
"""
# Not among the options of a connection, which a pooler may drop in silence.
_BE_FENCED: LiteralString = """
SELECT set_config('botplane.epoch', %(epoch)s, false),
    set_config('idle_in_transaction_session_timeout', %(pause)s, false)
"""


class Role(StrEnum):
    """What a process may read and write; migrations 009 and 037 say what."""

    OPERATOR = "botplane_operator"
    METERING = "botplane_metering"
    BILLING = "botplane_billing"
    WEB = "botplane_web"
    GATEWAY = "botplane_gateway"


class Database:
    """Calls of Postgres in threads, each on a connection of a pool."""

    def __init__(self, database_url: str, role: Role, *, max_size: int = 4) -> None:
        self._pool = open_pool(database_url, role, max_size=max_size)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a store function says; blocks.

        Raises:
            Retryable: Postgres is away.
        """
        with translated_errors(), self._pool.connection() as conn:
            return function(conn, *arguments)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close(timeout=1)


def open_pool(
    database_url: str, role: Role, *, max_size: int = 4, epoch: UUID | None = None
) -> ConnectionPool[Connection[tuple[Any, ...]]]:
    """Return a pool that is ready at once and fills in the background.

    Store functions run their own transactions, so its connections are in autocommit mode.

    Args:
        database_url: Address as libpq reads it.
        role: Whose rights the connections have.
        max_size: Most connections of this process.
        epoch: Said on each connection of an operator: migration 014 refuses what it writes
            unless it leads.
    """

    def configure(conn: Connection[tuple[Any, ...]]) -> None:
        become(conn, role)
        if epoch is not None:
            conn.execute(_BE_FENCED, {"epoch": str(epoch), "pause": f"{PAUSE_SECONDS}s"})

    return ConnectionPool(
        database_url,
        min_size=1,
        max_size=max_size,
        open=True,
        timeout=CONNECT_TIMEOUT_SECONDS,
        # The pool's own attempts grow rarer, and as long as one is due, who asks waits for it.
        reconnect_timeout=RECONNECT_SECONDS,
        check=ConnectionPool.check_connection,
        configure=configure,
        name="botplane",
        kwargs=_KEYWORDS,
    )


def connect(database_url: str) -> Connection[tuple[Any, ...]]:
    """Return one connection like those of the pool, for a command that asks once.

    It has the rights of the user in the address: a person's, not those of a process.
    """
    return Connection.connect(database_url, **_KEYWORDS)


def become(conn: Connection[Any], role: Role) -> None:
    """Give up all rights but those of a process.

    Where an administrator has not created the roles yet, the user keeps its own rights: forced
    row-level security and triggers hold for it too.
    """
    if conn.execute(_BECOME, {"role": role}).fetchone() is None:
        log.warning("The database role is missing: botplane migrate says what to do", role=role)
