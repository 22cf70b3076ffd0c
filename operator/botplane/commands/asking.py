"""What commands share: a question to Postgres, and errors as one line."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from botplane.clock import utc_now
from botplane.errors import Rejected, Retryable
from botplane.settings import Settings

if TYPE_CHECKING:
    from psycopg import Connection

    from botplane.billing.adjustments.store import Order
    from botplane.billing.payments.policy import Processor
    from botplane.billing.settlement import ChargeLimits
    from botplane.store.pool import Role

T = TypeVar("T")

TenantName = Annotated[str, typer.Argument(help="Name of the Tenant.")]


def collection() -> tuple[Processor | None, Mapping[str, ChargeLimits]]:
    """Return who collects, and what it can collect by currency."""
    from botplane.billing.payments.settings import PaymentSettings, open_processor

    with told():
        processor = open_processor(PaymentSettings())
    return processor, {} if processor is None else processor.charge_limits


def order(tenant: str, now: datetime) -> Order:
    """Return who asks: the user of the operating system."""
    from botplane.billing.adjustments.store import Order

    return Order(tenant=tenant, actor=getpass.getuser(), now=now)


def in_utc(moment: datetime | None) -> datetime | None:
    """Return a moment that was typed without a zone."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def ask(question: Callable[[Connection[Any], Any], T], role: Role | None = None) -> T:
    """Put a question to Postgres with one connection and the present time.

    A person's command has the rights of the person; a job's, those of its role.
    """
    from botplane.store.errors import translated_errors
    from botplane.store.pool import become, connect

    with told(), translated_errors(), connect(Settings().database_url) as conn:
        if role is not None:
            become(conn, role)
        return question(conn, utc_now().replace(microsecond=0))


@contextmanager
def told() -> Iterator[None]:
    """Turn an expected error into one line and exit code 1."""
    try:
        yield
    except (Rejected, Retryable) as error:
        typer.echo(f"{error.reason}: {error.message}", err=True)
        raise typer.Exit(1) from None
