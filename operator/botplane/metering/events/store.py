"""Usage events in Postgres: each counts once, and what is acknowledged is on disk."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg.rows import dict_row

from botplane.errors import Rejected
from botplane.metering.events.policy import (
    TRADES,
    CorrectionTerms,
    Trade,
    UsageEvent,
    Verdict,
    read_correction,
    trade_of,
)
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import Connection

SQL: Final = load_queries(__package__)
COLUMNS: Final = (
    *("int4", "uuid", "text", "text", "text", "uuid"),
    *("timestamptz", "numeric", "text", "bytea"),
)
"""Types of the columns of `fill_stage`, as binary COPY needs them."""

OPERATOR: Final = "operator"
"""Who makes and ends the keys of bots, in the audit chains of their tenants."""
KEYS_AT_ONCE: Final = 500
"""In one transaction, which locks the audit chain of each of their tenants."""

Key = tuple[int, str, str]
"""Tenant, source and id of an event; a UUID as its number, which is hashed without Python."""
Staged = tuple[int, "Batch", UsageEvent, bytes]
RecordTrades = Callable[["Connection[Any]", Sequence[Trade]], object]
"""Writes new trades within the transaction of their events."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Events of one key."""

    tenant_id: UUID
    bot_id: UUID | None
    events: Sequence[UsageEvent]


@dataclass(frozen=True, kw_only=True)
class IngestKey:
    """A key as it is stored: the bearer `key_id.secret` proves it.

    Attributes:
        key_id: Public part, such as the uid of the bot.
        tenant_id: Whose usage it reports or reads.
        bot_id: The bot that holds it; None: it is the tenant's own.
        secret_hash: SHA-256 of the secret.
        scopes: `usage:write`, `usage:read`, `rpc:call`.
    """

    key_id: str
    tenant_id: UUID
    bot_id: UUID | None
    secret_hash: bytes
    scopes: tuple[str, ...] = ("usage:write",)


def secret_hash(secret: str) -> bytes:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def register_keys(
    conn: Connection[Any], keys: Sequence[IngestKey], now: datetime, actor: str = OPERATOR
) -> None:
    """Let keys be used from now on; a known key that says the same is not written again.

    Raises:
        Retryable: Postgres is away; the next call goes on.
    """
    ordered = sorted(keys, key=lambda key: (key.tenant_id, key.key_id))
    for start in range(0, len(ordered), KEYS_AT_ONCE):
        rows = [
            vars(key) | {"scopes": list(key.scopes), "now": now, "actor": actor}
            for key in ordered[start : start + KEYS_AT_ONCE]
        ]
        with translated_errors(), conn.transaction(), conn.cursor() as cursor:
            cursor.executemany(SQL["register_key"], rows)


def revoke_keys(
    conn: Connection[Any],
    keys: Sequence[tuple[UUID, str]],
    now: datetime,
    actor: str = OPERATOR,
) -> int:
    """Let keys (tenant, key id) never be used again; return how many were valid until now.

    Raises:
        Retryable: Postgres is away; the next call goes on.
    """
    ordered, revoked = sorted(keys), 0
    for start in range(0, len(ordered), KEYS_AT_ONCE):
        some = ordered[start : start + KEYS_AT_ONCE]
        names = {"tenants": [t for t, _ in some], "keys": [k for _, k in some]}
        with translated_errors(), conn.transaction():
            given = {**names, "now": now, "actor": actor}
            revoked += conn.execute(SQL["revoke_keys"], given).rowcount
    return revoked


def create_tenant_key(
    conn: Connection[Any], tenant: str, scopes: tuple[str, ...], actor: str, now: datetime
) -> str:
    """Return a new bearer of an open tenant, `key_id.secret`; only its hash is stored.

    Raises:
        Rejected: There is no open tenant of this name.
        Retryable: Postgres is away.
    """
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    key = IngestKey(
        key_id=key_id,
        tenant_id=_open_tenant(conn, tenant),
        bot_id=None,
        secret_hash=secret_hash(secret),
        scopes=scopes,
    )
    register_keys(conn, [key], now, actor)
    return f"{key_id}.{secret}"


def revoke_tenant_key(
    conn: Connection[Any], tenant: str, key_id: str, actor: str, now: datetime
) -> None:
    """Let a key of an open tenant never be used again.

    Raises:
        Rejected: There is no such tenant, or it has no such key.
        Retryable: Postgres is away.
    """
    tenant_id = _open_tenant(conn, tenant)
    if not revoke_keys(conn, [(tenant_id, key_id)], now, actor):
        raise Rejected("KeyNotFound", f"Tenant {tenant} has no valid key {key_id}.")


def _open_tenant(conn: Connection[Any], tenant: str) -> UUID:
    with translated_errors(), conn.transaction():
        row = conn.execute(SQL["open_tenant"], {"tenant": tenant}).fetchone()
    if row is None:
        raise Rejected("TenantNotFound", f"There is no open tenant {tenant}.")
    return UUID(str(row[0]))


def keys_of_bots(conn: Connection[Any]) -> list[IngestKey]:
    """Return the valid keys of bots.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(SQL["keys_of_bots"]).fetchall()
    return [IngestKey(**row | {"scopes": tuple(row["scopes"])}) for row in rows]


def find_key(conn: Connection[Any], key_id: str, secret: str) -> IngestKey | None:
    """Return the valid key that a bearer proves, or None.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        rows = conn.execute(SQL["valid_keys"], {"key_id": key_id}).fetchall()
    given = secret_hash(secret)
    for tenant_id, bot_id, stored, scopes in rows:
        if hmac.compare_digest(stored, given):
            return IngestKey(
                key_id=key_id,
                tenant_id=tenant_id,
                bot_id=bot_id,
                secret_hash=stored,
                scopes=tuple(scopes),
            )
    return None


def ensure_partitions(conn: Connection[Any], now: datetime) -> int:
    """Make the months that events may fall into ahead of time; return rows that came too early.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        conn.execute(SQL["ensure_partitions"], {"now": now})
        row = conn.execute(SQL["early_rows"]).fetchone()
    return int(row[0]) if row else 0


def prune(conn: Connection[Any], now: datetime) -> dict[str, int]:
    """Drop what has been kept for long enough; return what it was, and how much of it.

    Usage that an invoice may still ask for stays. Running it again, or twice at once, does nothing.

    Raises:
        Retryable: Postgres is away, or somebody uses a month that is to go.
    """
    with translated_errors(), conn.transaction():
        return dict(conn.execute(SQL["prune"], {"now": now}).fetchall())


def ingest(
    conn: Connection[Any],
    batches: Sequence[Batch],
    now: datetime,
    record_trades: RecordTrades | None = None,
) -> list[list[Verdict]]:
    """Store events in one transaction and return the verdict on each, batch by batch.

    When it returns, what was accepted is on disk; what is rejected is older than keys are kept.
    When it raises, nothing may be said of the events; sending them again with the same ids counts
    each of them once.

    Raises:
        Retryable: Postgres is away or did not confirm.
    """
    first: dict[Key, Staged] = {}
    hashes = [[event.body_hash(batch.bot_id) for event in batch.events] for batch in batches]
    for batch, marks in zip(batches, hashes, strict=True):
        for event, mark in zip(batch.events, marks, strict=True):
            key = (batch.tenant_id.int, event.source, event.event_id)
            first.setdefault(key, (len(first), batch, event, mark))
    with translated_errors():
        conn.execute(SQL["make_stage"])
        with conn.transaction():
            fresh, known = _store(conn, list(first.values()), now)
            trades = [
                trade_of(event, batch.tenant_id, batch.bot_id)
                for n, batch, event, _ in first.values()
                if event.meter == TRADES and n in fresh
            ]
            if trades and record_trades is not None:
                record_trades(conn, trades)
    return [
        _verdicts(batch, marks, first, fresh, known)
        for batch, marks in zip(batches, hashes, strict=True)
    ]


def correct_usage(
    conn: Connection[Any], tenant: str, terms: CorrectionTerms, actor: str, now: datetime
) -> str:
    """Correct what a tenant used, once, and return the period that has the usage.

    Where that is billed, the next invoice corrects it, as for any late usage.

    Raises:
        Rejected: There is no such tenant, the terms are not possible, the reference is that of
            another correction, more would be taken away than was used, or no invoice to come can
            have it.
        Retryable: Postgres is away.
    """
    event = read_correction(terms, now)
    with translated_errors(), conn.transaction():
        found = conn.execute(SQL["tenant"], {"tenant": tenant}).fetchone()
        if found is None:
            raise Rejected("TenantNotFound", f"No tenant {tenant} was ever registered for billing.")
        row = {name: getattr(event, name) for name in UsageEvent.__slots__}
        row |= {"tenant_id": found[0], "body_hash": event.body_hash(None)}
        row |= {"actor": actor, "now": now}
        conn.execute(SQL["ensure_periods"], row)
        period = conn.execute(SQL["lock_period"], row).fetchone()
        if period is None:
            moment = f"{terms.at:%Y-%m-%dT%H:%M:%SZ}"
            raise Rejected("NoPeriod", f"Tenant {tenant} has no billing period at {moment}.")
        row |= {"period": period[0]}
        if conn.execute(SQL["claim_correction"], row).rowcount:
            _check_possible(conn, tenant, row)
            conn.execute(SQL["store_correction"], row)
        elif conn.execute(SQL["claimed_hash"], row).fetchone() != (row["body_hash"],):
            text = f"{terms.reference} is another correction of {tenant}."
            raise Rejected("ReferenceUsed", text)
    return str(row["period"])


def _check_possible(conn: Connection[Any], tenant: str, row: dict[str, Any]) -> None:
    if conn.execute(SQL["coming_invoice"], row).fetchone() is None:
        text = f"No invoice of {tenant} to come can correct {row['period']}; issue a credit note."
        raise Rejected("NoPeriod", text)
    found = conn.execute(SQL["used"], row).fetchone()
    used = found[0] if found else Decimal(0)
    if used + row["quantity"] < 0:
        raise Rejected(
            "TermsInvalid",
            f"{used.normalize():f} {row['meter']} were used at the prices of that moment:"
            f" a correction of {row['quantity']:f} takes away more than that.",
        )


def _store(
    conn: Connection[Any], rows: Sequence[Staged], now: datetime
) -> tuple[set[int], dict[int, bytes | None]]:
    """Return the numbers of the rows that are new, and the stored hashes of the others, if any."""
    conn.execute(SQL["commit_durably"])
    with conn.cursor() as cursor, cursor.copy(SQL["fill_stage"]) as copy:
        copy.set_types(COLUMNS)
        for n, batch, event, mark in rows:
            copy.write_row(
                (
                    n,
                    batch.tenant_id,
                    event.source,
                    event.event_id,
                    event.meter,
                    batch.bot_id,
                    event.occurred_at,
                    event.quantity,
                    event.dims,
                    mark,
                )
            )
    fresh = {n for (n,) in conn.execute(SQL["store_staged"], {"now": now})}
    if len(fresh) == len(rows):
        return fresh, {}
    stale = [n for n, *_ in rows if n not in fresh]
    known = conn.execute(SQL["known_hashes"], {"stale": stale}).fetchall()
    return fresh, dict(known)


def _verdicts(
    batch: Batch,
    marks: Sequence[bytes],
    first: dict[Key, Staged],
    fresh: set[int],
    known: dict[int, bytes | None],
) -> list[Verdict]:
    verdicts = []
    for event, mark in zip(batch.events, marks, strict=True):
        n, _, _, stored = first[batch.tenant_id.int, event.source, event.event_id]
        if n in fresh:
            fresh.remove(n)  # what follows of the same key repeats it
            verdicts.append(Verdict.ACCEPTED)
            continue
        before = known.get(n, stored)
        if before is None:
            verdicts.append(Verdict.REJECTED)
        elif before == mark:
            verdicts.append(Verdict.DUPLICATE)
        else:
            verdicts.append(Verdict.CONFLICT)
    return verdicts
