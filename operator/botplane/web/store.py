"""What the web process reads of invoices."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from psycopg.rows import dict_row

from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg import Connection

SQL: Final = load_queries(__package__)


def invoices(conn: Connection[Any], tenant_id: UUID) -> list[dict[str, Any]]:
    """Return the issued invoices of a tenant, the newest first; amounts are decimal texts.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(SQL["invoices"], {"tenant_id": tenant_id}).fetchall()
    return [
        {
            "number": row["number"],
            "period": row["period"],
            "status": row["status"],
            "currency": row["currency"],
            "total": f"{row['total']:.{row['minor_units']}f}",
            "due": f"{row['due']:.{row['minor_units']}f}",
            "issuedAt": f"{row['issued_at'].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        for row in rows
    ]
