"""Everything about one tenant: handed out as an archive, and what is personal erased."""

from __future__ import annotations

import hashlib
import json
import zipfile
from typing import IO, TYPE_CHECKING, Any

from psycopg import sql

from botplane.billing import store as invoices
from botplane.billing.adjustments.store import Order, granting, record
from botplane.billing.documents import render_json
from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from uuid import UUID

    from psycopg import Connection

SQL = load_queries(__package__)
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in an archive: equal content makes an equal archive."""


def export_tenant(conn: Connection[Any], tenant: str, target: IO[bytes], now: datetime) -> None:
    """Write a zip of every row of a tenant (one JSON a line, a file per table) as of one moment.

    `manifest.json` has the rows and the SHA-256 of each file; invoices are there as documents too.

    Raises:
        Rejected: There is no such tenant.
    """
    order = Order(tenant=tenant, actor="", now=now)
    with translated_errors(), conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        with granting(conn, order, "The export") as (tenant_id, _):
            manifest: dict[str, dict[str, Any]] = {}
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, lines in _files(conn, tenant_id):
                    manifest[name] = _write(archive, name, lines)
                for name, text in _documents(conn, tenant, tenant_id, now):
                    manifest[name] = _write(archive, name, iter([text]))
                _write(archive, "manifest.json", iter([json.dumps(manifest, indent=2)]))


def _files(conn: Connection[Any], tenant_id: UUID) -> Iterator[tuple[str, Iterator[str]]]:
    tables = conn.execute(SQL["tenant_tables"]).fetchall()
    for (table,) in tables:
        query = sql.SQL(
            "SELECT to_jsonb(t)::text FROM {} t WHERE t.tenant_id = %(tenant_id)s ORDER BY 1"
        ).format(sql.Identifier(table))
        yield f"{table}.ndjson", _rows(conn, query, tenant_id)
    yield "audit_log.ndjson", _rows(conn, sql.SQL(SQL["audit"]), tenant_id)


def _rows(conn: Connection[Any], query: sql.SQL | sql.Composed, tenant_id: UUID) -> Iterator[str]:
    with conn.cursor(name="export") as cursor:
        cursor.execute(query, {"tenant_id": tenant_id})
        for (row,) in cursor:
            yield row


def _documents(
    conn: Connection[Any], tenant: str, tenant_id: UUID, now: datetime
) -> Iterator[tuple[str, str]]:
    rows = conn.execute(SQL["invoices"], {"tenant_id": tenant_id}).fetchall()
    for number, period in rows:
        stored = invoices.stored_invoice(conn, invoices.find_period(conn, tenant, period, now))
        if stored is not None:
            yield f"invoices/{number}.json", render_json(stored)


def _write(archive: zipfile.ZipFile, name: str, lines: Iterator[str]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w") as file:
        for line in lines:
            data = line.encode() + b"\n"
            digest.update(data)
            file.write(data)
            count += 1
    return {"rows": count, "sha256": digest.hexdigest()}


def erase_tenant(conn: Connection[Any], order: Order) -> bool:
    """Erase the personal data of a closed tenant; return False when it was erased before.

    Issued invoices stay as they are, with the name that they were issued to: the law wants them
    kept. The payment processor has to be asked to delete its customer.

    Raises:
        Rejected: There is no such tenant, or it is open or not yet billed to its end.
    """
    with granting(conn, order, "The erasure") as (tenant_id, _):
        row = {"tenant_id": tenant_id}
        conn.execute(SQL["ensure_periods"], {"now": order.now})
        state = conn.execute(SQL["state"], row).fetchone()
        if state is None or not state[0] or state[1]:
            raise Rejected(
                "TenantNotFinished",
                f"Tenant {order.tenant} must be deleted and billed to its end before its data "
                f"are erased.",
            )
        erased = conn.execute(SQL["erase_profile"], row).rowcount
        erased += conn.execute(SQL["erase_payment"], row).rowcount
        if erased:
            record(conn, order, tenant_id, ("tenant.erase", "personal data", {}))
        return bool(erased)
