"""The billing run: every ended period whose usage is complete gets its one invoice."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from botplane.billing import store
from botplane.billing.adjustments.store import expire_credits
from botplane.billing.settlement import ChargeLimits

if TYPE_CHECKING:
    from psycopg import Connection

    from botplane.billing.invoices import Invoice

BATCH_SIZE = 5000
"""Tenants per transaction: a crash loses at most this many, and the next run bills them.

Many, because the month's usage is read once per batch.
"""

UNLIMITED: Mapping[str, ChargeLimits] = MappingProxyType({})
_BEGINNING = (datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What one run did.

    Attributes:
        billed: Periods that were closed, each with its invoice.
        waiting: Ended periods whose usage is not complete yet.
        complete_until: Before this moment all usage is known; None: metering never reported.
        parked: Periods that could not be billed, with the reason.
    """

    billed: int
    waiting: int
    complete_until: datetime | None
    parked: tuple[store.Parked, ...]


def billing_run(
    conn: Connection[Any], now: datetime, charge_limits: Mapping[str, ChargeLimits] = UNLIMITED
) -> RunReport:
    """Bill everything that is due; running it again, or twice at once, changes nothing.

    Args:
        conn: Connection without an open transaction.
        now: When invoices are issued.
        charge_limits: What can be collected, by currency; what cannot is carried over.

    Raises:
        Retryable: Postgres is away; what was committed stays, the next run does the rest.
    """
    store.prepare(conn, now)
    issue = store.Issue(now=now, charge_limits=charge_limits)
    complete = store.complete_until(conn)
    billed, parked, after = 0, list[store.Parked](), _BEGINNING
    while complete is not None:
        batch = store.Batch(complete_until=min(complete, now), after=after, limit=BATCH_SIZE)
        with _uncollected():
            due, failed = store.bill_batch(conn, batch, issue)
        if not due:
            break
        billed += len(due) - len(failed)
        parked += failed
        after = (due[-1].ends_at, due[-1].tenant_id)
    expire_credits(conn, now)
    return RunReport(
        billed=billed,
        waiting=store.waiting_periods(conn, complete, now),
        complete_until=complete,
        parked=tuple(parked),
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no cycles: a batch makes a million values and none, and looking costs a fifth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def invoice(
    conn: Connection[Any],
    tenant_name: str,
    period: str | None,
    now: datetime,
    charge_limits: Mapping[str, ChargeLimits] = UNLIMITED,
) -> Invoice:
    """Return the invoice of a tenant's period: issue it when it is due, else return a draft.

    Args:
        conn: Connection without an open transaction.
        tenant_name: Name of the Tenant.
        period: Such as `2026-10`; None for the one that runs now.
        now: The moment that decides whether the period has ended.
        charge_limits: What can be collected, by currency; what cannot is carried over.

    Raises:
        Rejected: There is no such tenant or period.
        Retryable: Postgres is away.
    """
    billed = store.find_period(conn, tenant_name, period, now)
    stored = store.stored_invoice(conn, billed)
    if stored is not None:
        return stored
    if billed.ends_at > now:
        reason = f"The period runs until {billed.ends_at:%Y-%m-%d %H:%M} UTC."
        return store.draft_invoice(conn, billed, now, reason)
    complete = store.complete_until(conn)
    if complete is None or complete < billed.ends_at:
        known = (
            "Metering has not reported yet"
            if complete is None
            else (f"Usage is complete until {complete.astimezone(UTC):%Y-%m-%d %H:%M} UTC only")
        )
        reason = f"{known}; the period ended at {billed.ends_at:%Y-%m-%d %H:%M} UTC."
        return store.draft_invoice(conn, billed, billed.ends_at, reason)
    store.bill_period(conn, billed, store.Issue(now=now, charge_limits=charge_limits))
    issued = store.stored_invoice(conn, billed)
    return issued or store.draft_invoice(
        conn, billed, billed.ends_at, "Nothing was subscribed in this period."
    )
