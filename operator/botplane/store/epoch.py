"""Which operator may write to Postgres: the last one that took over, by its epoch.

Migration 033 refuses the writes of all others. Epochs have no order of their own, so that nothing
depends on numbers, which a deleted Lease or a restored etcd would set back. Who takes over looks at
the epoch that is there, proves *then* that it holds the Lease, and replaces what it has seen and
nothing else. If another has taken over since the proof, the epoch is no longer the one that was
seen; so a leader that is late never replaces one that came after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from psycopg import Connection

SQL = load_queries(__package__)


def newest_epoch(conn: Connection[Any]) -> UUID | None:
    """Return the epoch of who took over last; None before anybody has.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors():
        row = conn.execute(SQL["newest_epoch"]).fetchone()
    return None if row is None else row[0]


def take_epoch(
    conn: Connection[Any], epoch: UUID, holder: str, *, seen: UUID | None, now: datetime
) -> bool:
    """Replace the epoch that was seen before the proof of leadership; say whether that was done.

    It waits for the writes under way of who led before.

    Raises:
        Retryable: Postgres is away, or those writes take long.
    """
    row = {"epoch": epoch, "holder": holder, "seen": seen, "now": now}
    with translated_errors():
        return conn.execute(SQL["take_epoch"], row).rowcount == 1
