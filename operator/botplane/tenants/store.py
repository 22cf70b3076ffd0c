"""Tenants in Postgres: accounts and the phases of their subscriptions."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from psycopg.errors import InvalidParameterValue
from psycopg.types.json import Jsonb

from botplane.errors import Rejected, Retryable
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    from psycopg import Connection

    from botplane.tenants.accounts import TenantAccount

SQL = load_queries(__package__)


def register_tenant(conn: Connection[Any], account: TenantAccount, now: datetime) -> None:
    """Record a tenant as it should be; change no row when it is so already.

    A changed plan ends the current phase of the subscription now, to the second. Changes of plan
    and limit are in the audit chain of the tenant.

    Raises:
        Rejected: The name or namespace belongs to another open tenant, the tenant is closed, the
            currency is not the plan's, or currency, time zone or anchor day would change.
        Retryable: The plan is not published yet, or Postgres is away.
    """
    advice = "belongs to another tenant that is still open; it is closed once all of it is gone"
    verdicts = {
        "tenant_open_name": Rejected("NameInUse", f"Name {account.name} {advice}"),
        "tenant_open_namespace": Rejected(
            "NamespaceInUse", f"Namespace {account.namespace} {advice}"
        ),
    }
    with translated_errors(verdicts), conn.transaction():
        conn.execute(SQL["lock_account"], {"tenant_id": account.tenant_id})
        _check_plan(conn, account)
        limit = _check_fixed_terms(conn, account)
        row = asdict(account) | {"now": now}
        conn.execute(SQL["upsert_tenant"], row)
        conn.execute(SQL["upsert_profile"], row)
        if limit is not None and limit[0] != account.spend_limit:
            _record(conn, row, ("limit.change", "spend"), (limit[0], account.spend_limit))
        _subscribe(conn, account, now.replace(microsecond=0))


def close_tenant(conn: Connection[Any], tenant_id: UUID, now: datetime) -> None:
    """End the subscription and free the name; what was used until now is still billed.

    Closing twice, or a tenant that was never registered, changes nothing.
    """
    moment = now.replace(microsecond=0)
    row = {"tenant_id": tenant_id, "now": moment, "ends_at": moment}
    with translated_errors(), conn.transaction():
        conn.execute(SQL["lock_account"], row)
        if conn.execute(SQL["close_tenant"], row).rowcount:
            conn.execute(SQL["drop_phase"], row)
            conn.execute(SQL["end_phase"], row)


def open_tenants(conn: Connection[Any]) -> dict[UUID, str]:
    """Return the names of all tenants that are not closed, by the uid of their Tenant."""
    return dict(conn.execute(SQL["open_tenants"]).fetchall())


def _check_plan(conn: Connection[Any], account: TenantAccount) -> None:
    row = conn.execute(SQL["plan_currency"], {"plan": account.plan}).fetchone()
    if row is None:
        raise Retryable("PlanNotPublished", f"Plan {account.plan} has no published prices yet.")
    if row[0] != account.currency:
        raise Rejected(
            "CurrencyMismatch",
            f"Plan {account.plan} is in {row[0]}, the tenant is billed in {account.currency}. "
            f"Choose a plan in {account.currency}.",
        )


def _check_fixed_terms(
    conn: Connection[Any], account: TenantAccount
) -> tuple[Decimal | None] | None:
    """Return the spend limit until now; None for a tenant that is new."""
    row = conn.execute(SQL["fixed_terms"], {"tenant_id": account.tenant_id}).fetchone()
    if row is None:
        try:
            conn.execute(SQL["use_time_zone"], {"time_zone": account.time_zone})
        except InvalidParameterValue:
            text = f"{account.time_zone} is not an IANA time zone."
            raise Rejected("TimeZoneUnknown", text) from None
        return None
    *fixed, limit, closed_at = row
    if closed_at is not None:
        raise Rejected("TenantClosed", f"Tenant {account.name} was closed at {closed_at}.")
    if fixed != [account.currency, account.time_zone, account.anchor_day]:
        raise Rejected(
            "BillingTermsFixed",
            f"Tenant {account.name} is billed in {fixed[0]}, by the calendar of {fixed[1]}, from "
            f"day {fixed[2]} of the month; this cannot change. Restore it, or create a new tenant.",
        )
    return (limit,)


def _subscribe(conn: Connection[Any], account: TenantAccount, now: datetime) -> None:
    row = {"tenant_id": account.tenant_id, "plan": account.plan, "now": now}
    phase = conn.execute(SQL["current_phase"], row).fetchone()
    if phase is None:
        start = account.subscription_start.replace(microsecond=0)
        conn.execute(SQL["open_phase"], row | {"starts_at": start})
        return
    plan, starts_at = phase
    if plan == account.plan:
        return
    _record(conn, row, ("plan.change", account.plan), (plan, account.plan))
    if starts_at >= now:
        conn.execute(SQL["replace_phase"], row)
        return
    conn.execute(SQL["end_phase"], row | {"ends_at": now})
    conn.execute(SQL["open_phase"], row | {"starts_at": now})


def _record(
    conn: Connection[Any],
    row: Mapping[str, Any],
    entry: tuple[str, str],
    change: tuple[object, object],
) -> None:
    """Append (action, object) and what changed to the audit chain, in the same transaction."""
    before, after = (None if value is None else str(value) for value in change)
    action, subject = entry
    said = {"action": action, "object": subject, "payload": Jsonb({"from": before, "to": after})}
    conn.execute(SQL["audit"], {**row, **said})
