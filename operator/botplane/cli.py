"""The command `botplane`: the processes, and what people ask of Postgres."""

from __future__ import annotations

import asyncio
import getpass
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from botplane.clock import utc_now
from botplane.errors import Rejected, Retryable
from botplane.settings import Settings

if TYPE_CHECKING:
    from psycopg import Connection

    from botplane.billing.adjustments.store import Order
    from botplane.billing.payments.policy import Processor
    from botplane.billing.proof.store import Difference
    from botplane.billing.settlement import ChargeLimits

T = TypeVar("T")
WATCH_SECONDS = 2.0
CLEAR_SCREEN = "\x1b[2J\x1b[H"

# Every command imports what it needs itself: the operator must not load the metering client,
# and `botplane invoice` must not load kopf.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
billing = typer.Typer(no_args_is_help=True, help="Billing periods and invoices.")
app.add_typer(billing, name="billing")
coupon = typer.Typer(no_args_is_help=True, help="Discounts of a tenant.")
app.add_typer(coupon, name="coupon")
credit = typer.Typer(no_args_is_help=True, help="Money that a tenant has in advance.")
app.add_typer(credit, name="credit")
payment = typer.Typer(no_args_is_help=True, help="How and whether invoices are paid.")
app.add_typer(payment, name="payment")
audit = typer.Typer(no_args_is_help=True, help="The chains of who changed what.")
app.add_typer(audit, name="audit")

TenantName = Annotated[str, typer.Argument(help="Name of the Tenant.")]
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
def migrate() -> None:
    """Bring the database schema up to date."""
    from botplane.store.migrate import migrate as apply

    with _told():
        applied = apply(Settings().database_url)
    typer.echo("\n".join(applied) or "The schema is up to date.")


@app.command()
def invoice(
    tenant: TenantName, period: Period = None, output: InvoiceOutputOption = InvoiceOutput.TABLE
) -> None:
    """Show the invoice of a period; issue it when the period has ended and usage is complete."""
    from botplane.billing import documents, exports, pdf, run

    _, limits = _collection()
    issued = _ask(lambda conn, now: run.invoice(conn, tenant, period, now, limits))
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
    """Show what each bot used, to the second."""
    from botplane.usage import documents, store

    while watch:
        stand, now = _ask(lambda conn, now: (store.standing_of(conn, tenant, now), now))
        typer.echo(CLEAR_SCREEN if sys.stdout.isatty() else "", nl=False)
        typer.echo(documents.render_standing(stand, now))
        time.sleep(WATCH_SECONDS)
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
    """Issue every invoice that is due and collect what is owed. Repeating it changes nothing."""
    from botplane.billing import run
    from botplane.billing.payments.run import collect

    processor, limits = _collection()
    report = _ask(lambda conn, now: run.billing_run(conn, now, limits))
    typer.echo(f"{report.billed} periods billed, {report.waiting} wait for complete usage")
    paid = _ask(lambda conn, now: collect(conn, processor, now))
    typer.echo(
        f"{paid.charged} invoices charged, {paid.unanswered} unanswered, {paid.given_up} given up"
    )
    for parked in report.parked:
        typer.echo(f"parked: {parked}", err=True)
    if report.parked:
        raise typer.Exit(1)


@coupon.command("grant")
def coupon_grant(  # noqa: PLR0913 - one parameter per option
    tenant: TenantName,
    code: Annotated[str, typer.Argument(help="Unique for the tenant; shown on the invoice.")],
    *,
    percent: Annotated[str | None, typer.Option(help="Such as 20 or 12.5.")] = None,
    amount: Annotated[str | None, typer.Option(help="Such as 15.00, in its currency.")] = None,
    target: Annotated[
        str,
        typer.Option("--on", help="invoice, subscription, usage, usage/<meter> or commission."),
    ] = "invoice",
    uses: Annotated[int, typer.Option(help="Invoices that it lowers; 0 is every one.")] = 1,
    until: Annotated[datetime | None, typer.Option(help="First moment without it, UTC.")] = None,
) -> None:
    """Lower coming invoices of a tenant by a percentage or an amount."""
    from botplane.billing.adjustments import store

    terms = store.CouponTerms(
        code=code,
        percent=percent,
        amount=amount,
        target=target,
        uses=uses or None,
        ends_at=_in_utc(until),
    )
    _ask(lambda conn, now: store.grant_coupon(conn, _order(tenant, now), terms))


@coupon.command("end")
def coupon_end(
    tenant: TenantName, code: Annotated[str, typer.Argument(help="Code of the coupon.")]
) -> None:
    """Let a coupon end now; periods that have begun still count it."""
    from botplane.billing.adjustments import store

    _ask(lambda conn, now: store.end_coupon(conn, _order(tenant, now), code))


@credit.command("grant")
def credit_grant(
    tenant: TenantName,
    credit_id: Annotated[str, typer.Argument(help="Unique for the tenant, such as a reference.")],
    amount: Annotated[str, typer.Argument(help="Such as 50.00, in the tenant's currency.")],
    *,
    purchased: Annotated[bool, typer.Option(help="The tenant has paid for it.")] = False,
    expires: Annotated[
        datetime | None, typer.Option(help="It pays for periods that end until then, UTC.")
    ] = None,
) -> None:
    """Give a tenant money that coming invoices use up."""
    from botplane.billing.adjustments import store

    terms = store.CreditTerms(
        credit_id=credit_id,
        amount=amount,
        kind="purchased" if purchased else "promotional",
        expires_at=_in_utc(expires),
    )
    _ask(lambda conn, now: store.grant_credit(conn, _order(tenant, now), terms))


@app.command("tenant-tax")
def tenant_tax(  # noqa: PLR0913 - one parameter per option
    tenant: TenantName,
    name: Annotated[str, typer.Argument(help="Such as VAT.")],
    rate: Annotated[str, typer.Argument(help="Share of the net amount, such as 0.19.")],
    *,
    target: Annotated[
        str, typer.Option("--on", help="all, subscription, usage, commitment or commission.")
    ] = "all",
    reason: Annotated[str | None, typer.Option(help="Why a rate is 0.")] = None,
    since: Annotated[datetime | None, typer.Option(help="UTC. Default: now.")] = None,
) -> None:
    """Set a tax rate of a tenant; that of the last moment of a period counts."""
    from botplane.billing.adjustments import store

    terms = store.TaxTerms(
        name=name, rate=rate, target=target, reason=reason, starts_at=_in_utc(since)
    )
    _ask(lambda conn, now: store.set_tax(conn, _order(tenant, now), terms))


@payment.command("method")
def payment_method(
    tenant: TenantName,
    customer_ref: Annotated[str, typer.Argument(help="Customer at the processor, cus_...")],
    method_ref: Annotated[str, typer.Argument(help="Payment method there, pm_...")],
) -> None:
    """Set how a tenant pays: references of the payment processor, no card data."""
    from botplane.billing.payments import store

    _ask(
        lambda conn, now: store.set_payment_method(
            conn, _order(tenant, now), customer_ref, method_ref
        )
    )


@payment.command("record")
def payment_record(
    invoice_number: Annotated[str, typer.Argument(help="Such as INV-2026-000001.")],
    reference: Annotated[str, typer.Argument(help="Of the transfer; each counts once.")],
) -> None:
    """Record that what is open on an invoice was paid by transfer."""
    from botplane.billing.payments import store

    actor = getpass.getuser()
    _ask(lambda conn, now: store.record_transfer(conn, invoice_number, reference, actor, now))


@audit.command("heads")
def audit_heads() -> None:
    """Print the last entry of every chain as JSON, to keep where nobody can change it."""
    from botplane.billing.proof import store

    heads = _ask(lambda conn, _: store.audit_heads(conn))
    typer.echo(json.dumps([vars(head) for head in heads], indent=2))


@audit.command("verify")
def audit_verify(
    heads: Annotated[
        Path | None, typer.Option(help="Output of `audit heads` from an earlier day.")
    ] = None,
) -> None:
    """Prove that no entry of the audit chains was changed, removed or put in."""
    from botplane.billing.proof import store

    known = [] if heads is None else [store.Head(**head) for head in json.loads(heads.read_text())]
    _tell_differences(
        _ask(lambda conn, _: store.verify_audit(conn, known)), "The audit chains are intact."
    )


@app.command()
def reconcile(
    days: Annotated[int, typer.Option(help="How far back events and invoices are compared.")] = 70,
) -> None:
    """Prove that events, intervals, invoices, ledger and payments agree."""
    from botplane.billing.payments.policy import Unanswered
    from botplane.billing.proof import store

    processor, _ = _collection()
    back = timedelta(days=days)
    found = _ask(lambda conn, now: store.reconcile(conn, now - back, now))
    if processor is not None:
        try:
            found += _ask(lambda conn, now: store.compare_processor(conn, processor, now - back))
        except Unanswered as error:
            typer.echo(f"{processor.name} was not compared: {error}", err=True)
            raise typer.Exit(1) from None
    _tell_differences(found, "All records agree.")


def _tell_differences(found: Sequence[Difference], none: str) -> None:
    """Write differences one a line, with exit code 1 when there is any."""
    for one in found:
        typer.echo(
            f"{one.check}: {one.tenant}: {one.subject}: {one.expected} expected, {one.found} found"
        )
    if found:
        raise typer.Exit(1)
    typer.echo(none)


@app.command("tenant-export")
def tenant_export(
    tenant: TenantName, file: Annotated[Path, typer.Argument(help="The zip to write.")]
) -> None:
    """Write everything that is stored about a tenant into an archive with checksums."""
    from botplane.billing.records import store

    with file.open("xb") as target:
        _ask(lambda conn, now: store.export_tenant(conn, tenant, target, now))


@app.command("tenant-erase")
def tenant_erase(tenant: TenantName) -> None:
    """Erase the personal data of a deleted tenant; issued invoices stay, as the law wants."""
    from botplane.billing.records import store

    erased = _ask(lambda conn, now: store.erase_tenant(conn, _order(tenant, now)))
    typer.echo("Erased." if erased else "There was nothing left to erase.")


@app.command("credit-note")
def credit_note(
    invoice_number: Annotated[str, typer.Argument(help="Such as INV-2026-000001.")],
    reference: Annotated[str, typer.Argument(help="Your own; the same one is the same note.")],
    amount: Annotated[str, typer.Argument(help="Tax included, such as 10.00.")],
    reason: Annotated[str, typer.Option(help="Shown on the note.")],
) -> None:
    """Take back part of an issued invoice: from what is owed on it, else as a credit."""
    from botplane.billing.adjustments import store

    terms = store.NoteTerms(
        invoice_number=invoice_number, reference=reference, amount=amount, reason=reason
    )
    actor = getpass.getuser()
    typer.echo(_ask(lambda conn, now: store.issue_credit_note(conn, terms, actor, now)))


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


def _collection() -> tuple[Processor | None, Mapping[str, ChargeLimits]]:
    """Return who collects, and what it can collect by currency."""
    from botplane.billing.payments.settings import PaymentSettings, open_processor

    with _told():
        processor = open_processor(PaymentSettings())
    return processor, {} if processor is None else processor.charge_limits


def _order(tenant: str, now: datetime) -> Order:
    """Return who asks: the user of the operating system."""
    from botplane.billing.adjustments.store import Order

    return Order(tenant=tenant, actor=getpass.getuser(), now=now)


def _in_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


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
