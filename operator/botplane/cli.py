"""The command `botplane`: the processes, and what people ask of Postgres."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from botplane.clock import utc_now
from botplane.errors import Rejected, Retryable
from botplane.settings import Settings

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")

# Every command imports what it needs itself: the operator must not load the metering client,
# and `botplane invoice` must not load kopf.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
billing = typer.Typer(no_args_is_help=True, help="Billing periods and invoices.")
app.add_typer(billing, name="billing")

TenantName = Annotated[str, typer.Argument(help="Name of the Tenant.")]
Period = Annotated[
    str | None,
    typer.Option(help="Billing period such as 2026-10. Default: the one that runs now."),
]


class Output(StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="table or json.")]


@app.command()
def operator() -> None:
    """Run the operator: tenants and bots become Kubernetes objects."""
    from botplane.wiring import run_operator

    raise typer.Exit(asyncio.run(run_operator(Settings())))


@app.command()
def metering() -> None:
    """Run metering, the operator's sidecar: pod lifetimes become usage."""
    from botplane.metering.reconcile import run
    from botplane.telemetry.logs import configure

    settings = Settings()
    configure(settings.log_format, settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(settings.database_url, None, settings.metering_health_port, stop)


@app.command()
def web(
    port: Annotated[int, typer.Option(envvar="BOTPLANE_WEB_PORT", help="TCP port.")] = 8090,
) -> None:
    """Serve the HTTP API: usage events in, usage and invoices out."""
    from botplane.telemetry.logs import configure
    from botplane.web.run import run

    settings = Settings()
    configure(settings.log_format, settings.log_level)
    run(settings.database_url, port)


@app.command()
def migrate() -> None:
    """Bring the database schema up to date."""
    from botplane.store.migrate import migrate as apply

    with _told():
        applied = apply(Settings().database_url)
    typer.echo("\n".join(applied) or "The schema is up to date.")


@app.command()
def invoice(tenant: TenantName, period: Period = None, output: OutputOption = Output.TABLE) -> None:
    """Show the invoice of a period; issue it when the period has ended and usage is complete."""
    from botplane.billing import documents, run

    issued = _ask(lambda conn, now: run.invoice(conn, tenant, period, now))
    render = documents.render_json if output is Output.JSON else documents.render_table
    typer.echo(render(issued))


@app.command()
def usage(tenant: TenantName, period: Period = None, output: OutputOption = Output.TABLE) -> None:
    """Show what each bot used, to the second."""
    from botplane.usage import documents, store

    bots = _ask(lambda conn, now: store.usage_by_bot(conn, tenant, period, now))
    render = documents.render_json if output is Output.JSON else documents.render_table
    typer.echo(render(bots))


@app.command("isolation-check")
def isolation_check(
    tenant: Annotated[
        str | None, typer.Option(help="Tenant to attack from. Default: the first.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Attack your own cluster from a tenant's namespace, by dry runs; exit 1 if anything works.

    Needs a cluster-admin. Nothing is changed, but for a Role and two RoleBindings of users that
    nobody can sign in as, in the tenant's namespace, removed again at the end.
    """
    from botplane.isolation import documents, probe
    from botplane.isolation.calls import open_api

    with _told():
        outcomes = probe.check(open_api(), tenant)
    render = documents.render_json if output is Output.JSON else documents.render_table
    typer.echo(render(outcomes))
    if not all(outcome.is_good for outcome in outcomes):
        raise typer.Exit(1)


@billing.command("run")
def billing_run() -> None:
    """Issue every invoice that is due. Running it again changes nothing."""
    from botplane.billing import run

    report = _ask(run.billing_run)
    typer.echo(f"{report.billed} periods billed, {report.waiting} wait for complete usage")
    for parked in report.parked:
        typer.echo(f"parked: {parked}", err=True)
    if report.parked:
        raise typer.Exit(1)


@app.command("plan-preview")
def plan_preview(
    tenant: TenantName, plan: Annotated[str, typer.Argument(help="Name of the Plan.")]
) -> None:
    """Show which bots of a tenant would break another plan, before it is changed."""
    from botplane.preview import preview

    with _told():
        rows = asyncio.run(preview(tenant, plan, Settings()))
    for subject, finding in rows:
        typer.echo(f"{subject:<24} {finding.reason:<24} {finding.message}")
    if not rows:
        typer.echo(f"Tenant {tenant} fits into plan {plan} as it is.")


def _ask(question: Callable[[Connection[Any], Any], T]) -> T:
    """Put a question to Postgres with one connection and the present time."""
    from botplane.store.errors import translated_errors
    from botplane.store.pool import connect

    with _told(), translated_errors(), connect(Settings().database_url) as conn:
        return question(conn, utc_now().replace(microsecond=0))


@contextmanager
def _told() -> Iterator[None]:
    """Turn an expected error into one line and exit code 1."""
    try:
        yield
    except (Rejected, Retryable) as error:
        typer.echo(f"{error.reason}: {error.message}", err=True)
        raise typer.Exit(1) from None
