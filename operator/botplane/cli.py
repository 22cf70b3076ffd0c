"""The command `botplane`: the processes, and what people ask of them."""

from __future__ import annotations

import asyncio
import getpass
import signal
import sys
import threading
import time
from enum import StrEnum
from typing import Annotated

import typer

from botplane.clock import utc_now
from botplane.commands import finance, records
from botplane.commands.asking import TenantName, ask, collection, told
from botplane.settings import Settings

WATCH_SECONDS = 2.0
CLEAR_SCREEN = "\x1b[2J\x1b[H"

# Every command imports what it needs itself: the operator must not load the metering client,
# and `botplane invoice` must not load kopf.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
billing = typer.Typer(no_args_is_help=True, help="Billing periods and invoices.")
app.add_typer(billing, name="billing")
app.add_typer(finance.app)
app.add_typer(records.app)
key = typer.Typer(no_args_is_help=True, help="Keys of a tenant for the HTTP API.")
app.add_typer(key, name="key")

Period = Annotated[
    str | None,
    typer.Option(help="Billing period such as 2026-10. Default: the one that runs now."),
]


class Output(StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"


class InvoiceOutput(StrEnum):
    """How an invoice is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    FOCUS = "focus"
    PDF = "pdf"


InvoiceOutputOption = Annotated[
    InvoiceOutput,
    typer.Option("-o", "--output", help="csv: its lines. focus: costs in the columns of FOCUS."),
]
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
def gateway() -> None:
    """Serve RPC to bots: their calls go to a provider, are counted, and end at hard limits."""
    from botplane.gateway.run import run
    from botplane.gateway.settings import GatewaySettings
    from botplane.telemetry.logs import configure

    settings = Settings()
    configure(settings.log_format, settings.log_level)
    with told():
        run(settings.database_url, GatewaySettings())


@app.command()
def migrate() -> None:
    """Bring the database schema up to date."""
    from botplane.store.migrate import migrate as apply

    with told():
        applied = apply(Settings().database_url)
    typer.echo("\n".join(applied) or "The schema is up to date.")


@app.command()
def invoice(
    tenant: TenantName, period: Period = None, output: InvoiceOutputOption = InvoiceOutput.TABLE
) -> None:
    """Show the invoice of a period; issue it when the period has ended and usage is complete."""
    from botplane.billing import documents, exports, pdf, run

    _, limits = collection()
    issued = ask(lambda conn, now: run.invoice(conn, tenant, period, now, limits))
    match output:
        case InvoiceOutput.JSON:
            typer.echo(documents.render_json(issued))
        case InvoiceOutput.CSV:
            typer.echo(exports.lines_csv(issued), nl=False)
        case InvoiceOutput.FOCUS:
            typer.echo(exports.focus_csv(issued), nl=False)
        case InvoiceOutput.PDF:
            title = issued.number or f"{tenant} {issued.billed.period}"
            typer.echo(pdf.render_pdf(documents.render_table(issued), title), nl=False)
        case _:
            typer.echo(documents.render_table(issued))


@app.command()
def usage(
    tenant: TenantName,
    period: Period = None,
    output: OutputOption = Output.TABLE,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show where it stands, live.")] = False,
) -> None:
    """Show what each bot used, the cost so far, and an estimate of the whole period."""
    from botplane.usage import documents, store
    from botplane.usage.forecast.store import forecast_of, outlook

    if watch and (period is not None or output is not Output.TABLE):
        raise typer.BadParameter("--watch shows the period that runs now, as a table only")
    while watch:
        stand, forecast, now = ask(
            lambda conn, now: (
                stand := store.standing_of(conn, tenant, now),
                forecast_of(conn, stand, now),
                now,
            )
        )
        typer.echo(CLEAR_SCREEN if sys.stdout.isatty() else "", nl=False)
        typer.echo(documents.render_standing(stand, forecast, now))
        time.sleep(WATCH_SECONDS)
    bots = ask(lambda conn, now: store.usage_by_bot(conn, tenant, period, now))
    render = documents.render_json if output is Output.JSON else documents.render_table
    typer.echo(render(bots))
    if period is None and output is Output.TABLE:
        seen = ask(lambda conn, now: outlook(conn, tenant, now))
        if seen is not None:
            stand, forecast = seen
            typer.echo(f"\n{documents.render_cost(stand)}")
            if forecast is not None:
                typer.echo(documents.render_forecast(forecast))


@app.command("isolation-check")
def isolation_check(
    tenant: Annotated[
        str | None, typer.Option(help="Tenant to attack from. Default: the first.")
    ] = None,
    probe_image: Annotated[
        str | None,
        typer.Option(help="Image with python3: try with pods of it if policies are enforced."),
    ] = None,
    output: OutputOption = Output.TABLE,
    *,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Tell the operator what the pods found: NetworkIsolation of tenants."
        ),
    ] = False,
) -> None:
    """Attack your own cluster from a tenant's namespace, by dry runs; exit 1 if anything works.

    Needs a cluster-admin. Nothing is changed, but for a Role and two RoleBindings of users that
    nobody can sign in as, in the tenant's namespace, removed again at the end. With --probe-image
    also a pod there, and two in a namespace of their own.
    """
    from botplane.isolation import documents, network, probe
    from botplane.isolation.calls import open_api

    if record and probe_image is None:
        raise typer.BadParameter("--record needs --probe-image: only pods can tell")
    with told():
        api = open_api()
        outcomes = probe.check(api, tenant, probe_image)
        if record:
            probed = next(o for o in outcomes if o.attack.id == network.ROW.id)
            if not network.record(api, Settings().namespace, probed, utc_now()):
                typer.echo("Nothing was recorded: the probe proved nothing", err=True)
    render = documents.render_json if output is Output.JSON else documents.render_table
    typer.echo(render(outcomes))
    if not all(outcome.is_good for outcome in outcomes):
        raise typer.Exit(1)


@billing.command("run")
def billing_run() -> None:
    """Issue every invoice that is due and collect what is owed. Repeating it changes nothing."""
    from botplane.billing import run
    from botplane.billing.payments.run import collect
    from botplane.billing.refunds.run import settle_refunds
    from botplane.billing.trades.store import held_trades
    from botplane.store.pool import Role

    processor, limits = collection()
    report = ask(lambda conn, now: run.billing_run(conn, now, limits), Role.BILLING)
    typer.echo(f"{report.billed} periods billed, {report.waiting} wait for complete usage")
    paid = ask(lambda conn, now: collect(conn, processor, now), Role.BILLING)
    typer.echo(
        f"{paid.charged} invoices charged, {paid.unanswered} unanswered, {paid.given_up} given up"
    )
    waiting = ask(lambda conn, now: settle_refunds(conn, processor, now), Role.BILLING)
    if waiting:
        typer.echo(f"{waiting} refunds wait for their outcome")
    held = ask(lambda conn, _: held_trades(conn), Role.BILLING)
    if held:
        typer.echo(f"{held} trades wait for `botplane exchange-rate`")
    for parked in report.parked:
        typer.echo(f"parked: {parked}", err=True)
    if report.parked:
        raise typer.Exit(1)


@key.command("create")
def key_create(
    tenant: TenantName,
    *,
    write: Annotated[
        bool, typer.Option("--write", help="It may report usage, too. Default: only read.")
    ] = False,
) -> None:
    """Make a key that reads the tenant's usage and invoices; it is shown this once."""
    from botplane.metering.events import store

    scopes = ("usage:read", "usage:write") if write else ("usage:read",)
    actor = getpass.getuser()
    typer.echo(ask(lambda conn, now: store.create_tenant_key(conn, tenant, scopes, actor, now)))


@key.command("revoke")
def key_revoke(
    tenant: TenantName, key_id: Annotated[str, typer.Argument(help="The part before the dot.")]
) -> None:
    """End a key of the tenant or of one of its bots; within ten seconds nothing accepts it."""
    from botplane.metering.events import store

    actor = getpass.getuser()
    ask(lambda conn, now: store.revoke_tenant_key(conn, tenant, key_id, actor, now))
    typer.echo(f"Key {key_id} of tenant {tenant} is revoked.")


@app.command("plan-preview")
def plan_preview(
    tenant: TenantName, plan: Annotated[str, typer.Argument(help="Name of the Plan.")]
) -> None:
    """Show which bots of a tenant would break another plan, before it is changed."""
    from botplane.preview import preview

    with told():
        rows = asyncio.run(preview(tenant, plan, Settings()))
    for subject, finding in rows:
        typer.echo(f"{subject:<24} {finding.reason:<24} {finding.message}")
    if not rows:
        typer.echo(f"Tenant {tenant} fits into plan {plan} as it is.")
