"""Coupons, credits, one-off charges, corrections, taxes, payments, notes and void invoices."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Annotated

import typer

from botplane.commands.asking import TenantName, ask, collection, in_utc, order

app = typer.Typer()
coupon = typer.Typer(no_args_is_help=True, help="Discounts of a tenant.")
app.add_typer(coupon, name="coupon")
credit = typer.Typer(no_args_is_help=True, help="Money that a tenant has in advance.")
app.add_typer(credit, name="credit")
payment = typer.Typer(no_args_is_help=True, help="How and whether invoices are paid.")
app.add_typer(payment, name="payment")


@coupon.command("grant")
def coupon_grant(  # noqa: PLR0913 - one parameter per option
    tenant: TenantName,
    code: Annotated[str, typer.Argument(help="Unique for the tenant; shown on the invoice.")],
    *,
    percent: Annotated[str | None, typer.Option(help="Such as 20 or 12.5.")] = None,
    amount: Annotated[str | None, typer.Option(help="Such as 15.00, in its currency.")] = None,
    target: Annotated[
        str,
        typer.Option("--on", help="invoice, subscription, usage[/<meter>], commission or one_off."),
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
        ends_at=in_utc(until),
    )
    ask(lambda conn, now: store.grant_coupon(conn, order(tenant, now), terms))


@coupon.command("end")
def coupon_end(
    tenant: TenantName, code: Annotated[str, typer.Argument(help="Code of the coupon.")]
) -> None:
    """Let a coupon end now; periods that have begun still count it."""
    from botplane.billing.adjustments import store

    ask(lambda conn, now: store.end_coupon(conn, order(tenant, now), code))


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
        expires_at=in_utc(expires),
    )
    ask(lambda conn, now: store.grant_credit(conn, order(tenant, now), terms))


@app.command("one-off")
def one_off(
    tenant: TenantName,
    reference: Annotated[str, typer.Argument(help="Your own; the same one is the same charge.")],
    amount: Annotated[str, typer.Argument(help="Without tax, such as 250.00.")],
    description: Annotated[str, typer.Argument(help="Shown on the invoice; 80 letters at most.")],
) -> None:
    """Charge a tenant something beside its plan, once, on its next invoice."""
    from botplane.billing.adjustments import store

    terms = store.OneOffTerms(reference=reference, amount=amount, description=description)
    period = ask(lambda conn, now: store.charge_one_off(conn, order(tenant, now), terms))
    typer.echo(f"Charge {reference} is on the invoice of {period}.")


@app.command("usage-correction")
def usage_correction(  # noqa: PLR0913 - one parameter per option
    tenant: TenantName,
    reference: Annotated[str, typer.Argument(help="Your own; a repeated one is one.")],
    *,
    meter: Annotated[str, typer.Option(help="Such as rpc_calls.")],
    quantity: Annotated[str, typer.Option(help="How much more was used, or less: -1000.")],
    at: Annotated[datetime, typer.Option(help="When it was used, UTC.")],
    reason: Annotated[str, typer.Option(help="For the audit log; 128 letters at most.")],
) -> None:
    """Correct what a tenant used, once; where it is billed, on the next invoice."""
    from botplane.metering.events.policy import CorrectionTerms
    from botplane.metering.events.store import correct_usage

    terms = CorrectionTerms(
        reference=reference,
        meter=meter,
        quantity=quantity,
        at=at.replace(tzinfo=UTC),
        reason=reason,
    )
    actor = getpass.getuser()
    period = ask(lambda conn, now: correct_usage(conn, tenant, terms, actor, now))
    typer.echo(f"Correction {reference} counts in period {period}.")


@app.command("exchange-rate")
def exchange_rate(
    tenant: TenantName,
    currency: Annotated[str, typer.Argument(help="Of the trades, such as EUR.")],
    rate: Annotated[str, typer.Argument(help="One unit of it in the tenant's currency.")],
    *,
    day: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="Day of the trades, UTC: 2026-10-31.")
    ],
    source: Annotated[str, typer.Option(help="Who says so, such as ECB.")],
) -> None:
    """Give trades in another currency the rate without which they earn no commission."""
    from botplane.billing.trades import store

    terms = store.RateTerms(
        currency=currency, rate=rate, source=source, day=day.replace(tzinfo=UTC)
    )
    waited = ask(lambda conn, now: store.set_exchange_rate(conn, order(tenant, now), terms))
    typer.echo(f"{waited} trades that waited for it count now.")


@app.command("tenant-tax")
def tenant_tax(  # noqa: PLR0913 - one parameter per option
    tenant: TenantName,
    name: Annotated[str, typer.Argument(help="Such as VAT.")],
    rate: Annotated[str, typer.Argument(help="Share of the net amount, such as 0.19.")],
    *,
    target: Annotated[
        str,
        typer.Option("--on", help="all, subscription, usage, commitment, commission or one_off."),
    ] = "all",
    reason: Annotated[str | None, typer.Option(help="Why a rate is 0.")] = None,
    since: Annotated[datetime | None, typer.Option(help="UTC. Default: now.")] = None,
) -> None:
    """Set a tax rate of a tenant; that of the last moment of a period counts."""
    from botplane.billing.adjustments import store

    terms = store.TaxTerms(
        name=name, rate=rate, target=target, reason=reason, starts_at=in_utc(since)
    )
    ask(lambda conn, now: store.set_tax(conn, order(tenant, now), terms))


@payment.command("method")
def payment_method(
    tenant: TenantName,
    customer_ref: Annotated[str, typer.Argument(help="Customer at the processor, cus_...")],
    method_ref: Annotated[str, typer.Argument(help="Payment method there, pm_...")],
) -> None:
    """Set how a tenant pays: references of the payment processor, no card data."""
    from botplane.billing.payments import store

    ask(
        lambda conn, now: store.set_payment_method(
            conn, order(tenant, now), customer_ref, method_ref
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
    ask(lambda conn, now: store.record_transfer(conn, invoice_number, reference, actor, now))


@payment.command("notices")
def payment_notices(tenant: TenantName) -> None:
    """Show what a tenant was told of its unpaid invoices, the newest first."""
    from botplane.billing.dunning import policy, store

    notices = ask(lambda conn, _: store.notices_by_name(conn, tenant))
    for notice in notices:
        typer.echo(f"{notice.noticed_at:%Y-%m-%d %H:%M}  {policy.text(notice)}")
    if not notices:
        typer.echo(f"Tenant {tenant} was told nothing of unpaid invoices.")


@payment.command("refund")
def payment_refund(
    invoice_number: Annotated[str, typer.Argument(help="Such as INV-2026-000001.")],
    reference: Annotated[str, typer.Argument(help="Your own; the same one is the same refund.")],
    *,
    reason: Annotated[str, typer.Option(help="Shown on the credit note.")],
    amount: Annotated[
        str | None, typer.Option(help="Tax included, such as 10.00. Default: all that is left.")
    ] = None,
) -> None:
    """Pay back what was paid for an invoice, and issue the credit note.

    What was paid by transfer goes back by transfer: make that yourself, this records it.
    """
    from botplane.billing.payments.policy import AttemptStatus
    from botplane.billing.refunds import run, store

    terms = store.RefundTerms(
        invoice_number=invoice_number, reference=reference, reason=reason, amount=amount
    )
    processor, _ = collection()
    actor = getpass.getuser()
    outcome = ask(lambda conn, now: run.refund(conn, terms, processor, (actor, now)))
    if outcome.status is AttemptStatus.FAILED:
        typer.echo(f"RefundFailed: the processor refused: {outcome.decline_code}", err=True)
        raise typer.Exit(1)
    typer.echo(outcome.note or f"{outcome.status.value}: the next billing run looks again.")


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
    typer.echo(ask(lambda conn, now: store.issue_credit_note(conn, terms, actor, now)))


@app.command("invoice-void")
def invoice_void(
    invoice_number: Annotated[str, typer.Argument(help="Such as INV-2026-000001.")],
    reason: Annotated[str, typer.Option(help="Kept in the audit chain.")],
) -> None:
    """Make an unpaid invoice void; the next billing run issues another one for its period.

    Coupons, credits and balances that it used are there again. The number is not used again. What
    is paid is taken back by a credit note or a refund.
    """
    from botplane.billing.voids import store

    terms = store.VoidTerms(invoice_number=invoice_number, reason=reason)
    actor = getpass.getuser()
    ask(lambda conn, now: store.void_invoice(conn, terms, actor, now))
    typer.echo(f"Invoice {invoice_number} is void.")
