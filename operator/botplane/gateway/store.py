"""What the gateway reads of Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from botplane.gateway.policy import Caller
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from psycopg import Connection

SQL: Final = load_queries(__package__)


def callers(conn: Connection[Any]) -> dict[bytes, Caller]:
    """Return the bots whose keys are valid, by SHA-256 of the key.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        rows = conn.execute(SQL["callers"]).fetchall()
    return {bytes(mark): Caller(tenant_id=t, bot_id=b) for mark, t, b in rows}
