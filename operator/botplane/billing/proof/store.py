"""Proofs over what Postgres holds: the audit chain, the books, and every invoice rebuilt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from botplane.billing import store as invoices
from botplane.billing.invoices import (
    BilledPeriod,
    Invoice,
    Line,
    content_hash,
    finalize,
    ledger_entries,
)
from botplane.billing.money import round_to_minor
from botplane.billing.payments.policy import AttemptStatus
from botplane.billing.rows import SUMS, read_inputs, read_invoice
from botplane.billing.settlement import settle
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from psycopg import Connection

    from botplane.billing.payments.policy import Processor, RefundResult, Result

SQL = load_queries(__package__)

CHECKS = {
    "rollup = events": "rollup_is_events",
    "intervals = pods": "intervals_are_pods",
    "invoices = usage": "invoices_are_usage",
    "invoices = ledger": "invoices_are_ledger",
    "ledger = payments": "ledger_is_payments",
    "ledger = refunds": "ledger_is_refunds",
    "credit notes = ledger": "notes_are_ledger",
    "receivable = unpaid": "receivable_is_unpaid",
    "customer credit = grants": "credit_is_granted",
    "ledger sums to zero": "ledger_balances",
    "late usage is corrected": "late_is_taken",
    "trades have rates": "trades_have_rates",
    "marks = trades": "marks_are_trades",
}
"""What must hold, and the statement that finds where it does not."""

REBUILT = "invoices = their inputs"
BOOKED = "invoices = ledger"
COLLECTED = "payments = processor"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place where two records of the same thing disagree; amounts in minor units."""

    check: str
    tenant: str
    subject: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last entry of an audit chain: kept elsewhere, it proves that nothing was rewritten."""

    chain: str
    seq: int
    hash: str


def reconcile(conn: Connection[Any], since: datetime, now: datetime) -> list[Difference]:
    """Return every difference in the books: none is the proof.

    Args:
        conn: Connection without an open transaction.
        since: Events and invoices before are not compared; the ledger always is, as a whole.
        now: The present.
    """
    found = []
    with translated_errors(), conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for check, name in CHECKS.items():
            with conn.cursor(row_factory=dict_row) as cursor:
                rows = cursor.execute(SQL[name], {"since": since, "now": now}).fetchall()
            found += [Difference(check=check, **row) for row in rows]
        found += _rebuilt(conn, since)
    return found


def _rebuilt(conn: Connection[Any], since: datetime) -> list[Difference]:
    """Settle every invoice anew from its lines and inputs; compare all that is stored of it."""
    differences = []
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(SQL["issued"], {"since": since}).fetchall()
        for row in rows:
            stored = _stored(row, invoices.stored_parts(cursor, row))
            booked = conn.execute(SQL["booked"], row).fetchall()
            differences += [
                Difference(
                    check=check,
                    tenant=str(row["tenant_id"]),
                    subject=f"invoice {row['number']}{part}",
                    expected=str(expected),
                    found=str(found),
                )
                for check, part, expected, found in _compared(row, stored, booked)
            ]
    return differences


def _compared(
    row: Mapping[str, Any], stored: Invoice, booked: Sequence[tuple[str, str, int]]
) -> Iterator[tuple[str, str, object, object]]:
    """Yield (check, part, expected, found) where an invoice is not what its inputs make of it."""
    sealed = row["content_hash"].hex()
    try:
        rebuilt = _rebuild(row, stored)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        yield REBUILT, "", "inputs that can be settled", repr(error)
        return
    if (rehashed := content_hash(rebuilt).hex()) != sealed:
        yield REBUILT, "", rehashed, sealed
        return
    if (shown := content_hash(stored).hex()) != sealed:
        yield REBUILT, " as it is shown", sealed, shown
    for name in SUMS:
        if row[name] != (is_due := getattr(rebuilt, name)):
            yield REBUILT, f" {name}", is_due, row[name]
    entries = {(kind, account): minor for kind, account, minor in booked}
    due = {
        (kind, account): minor
        for kind, amounts in ledger_entries(rebuilt).items()
        for account, minor in amounts.items()
    }
    for kind, account in sorted(entries.keys() | due.keys()):
        expected, found = (of.get((kind, account), 0) for of in (due, entries))
        if expected != found:
            yield BOOKED, f" {kind} {account}", expected, found


def _stored(row: dict[str, Any], parts: Mapping[str, list[dict[str, Any]]]) -> Invoice:
    names = {name: row[name] for name in BilledPeriod.__dataclass_fields__ if name in row}
    return read_invoice(invoices.in_utc(BilledPeriod(**names, organization="")), row, parts)


def _rebuild(row: Mapping[str, Any], stored: Invoice) -> Invoice:
    charges = [_charged(line, stored.billed.currency) for line in stored.lines]
    settled = settle(stored.billed, charges, read_inputs(row["snapshot"]["inputs"]))
    if stored.number is None or stored.issued_at is None:
        return stored
    return finalize(stored.billed, settled, stored.number, stored.issued_at)


def _charged(line: Line, currency: str) -> Line:
    """Return a line without its discount, rounded anew; a correction is between two that were."""
    charge = replace(line, discount_minor=0)
    if line.kind == "correction":
        return charge
    return replace(charge, amount_minor=round_to_minor(line.exact, currency, line.rounding))


def compare_processor(
    conn: Connection[Any], processor: Processor, since: datetime
) -> list[Difference]:
    """Return the invoices for which the processor collected or paid back more or less than we know.

    Raises:
        Unanswered: The processor did not answer.
    """
    given = {"processor": processor.name, "since": since}
    with translated_errors(), conn.transaction():
        rows = conn.execute(SQL["paid_by_processor"], given).fetchall()
        refunded = conn.execute(SQL["refunded_by_processor"], given).fetchall()
    differences = []
    for tenant_id, invoice_id, number, recorded in rows:
        paid = _successes(processor.lookup(invoice_id))
        if paid != recorded:
            differences.append(_collected(tenant_id, number, f"{paid} payments", recorded))
    for tenant_id, number, payment_ref, recorded in refunded:
        back = _successes(processor.refunds(payment_ref))
        if back != recorded:
            differences.append(_collected(tenant_id, number, f"{back} refunds", recorded))
    return differences


def _successes(results: Sequence[Result] | Sequence[RefundResult]) -> int:
    return sum(result.status is AttemptStatus.SUCCEEDED for result in results)


def _collected(tenant_id: UUID, number: str, expected: str, recorded: int) -> Difference:
    return Difference(
        check=COLLECTED,
        tenant=str(tenant_id),
        subject=f"invoice {number}",
        expected=expected,
        found=f"{recorded} recorded",
    )


def verify_audit(conn: Connection[Any], known: list[Head]) -> list[Difference]:
    """Return every entry of the audit chains that is missing, moved or changed.

    Args:
        conn: Connection without an open transaction.
        known: Heads that were written down before; each must still be there.
    """
    with translated_errors(), conn.transaction():
        broken = conn.execute(SQL["broken_entries"]).fetchall()
        differences = [_entry(chain, seq, "intact", "changed") for chain, seq in broken]
        for head in known:
            row = conn.execute(SQL["entry_hash"], vars(head)).fetchone()
            found = "no entry" if row is None else str(row[0])
            if found != head.hash:
                differences.append(_entry(head.chain, head.seq, head.hash, found))
    return differences


def _entry(chain: str, seq: int, expected: str, found: str) -> Difference:
    return Difference(
        check="audit chain", tenant=chain, subject=f"entry {seq}", expected=expected, found=found
    )


def audit_heads(conn: Connection[Any]) -> list[Head]:
    """Return the last entry of every audit chain."""
    with translated_errors(), conn.transaction(), conn.cursor() as cursor:
        rows = cursor.execute(SQL["heads"]).fetchall()
    return [Head(chain=chain, seq=seq, hash=digest) for chain, seq, digest in rows]
