"""Invoices for spreadsheets and cost tools: lines as CSV, and the columns of FOCUS. Pure."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from botplane.billing.documents import METERS
from botplane.billing.invoices import amount_text
from botplane.billing.money import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from botplane.billing.invoices import Invoice, Line

LINE_COLUMNS = (
    "invoice", "tenant", "period", "key", "kind", "meter", "start", "end", "quantity", "exact",
    "amount", "discount", "net", "currency",
)  # fmt: skip
FOCUS_COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency",
    "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass",
    "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "EffectiveCost", "InvoiceId",
    "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName",
    "PublisherName", "ServiceCategory", "ServiceName", "SkuId", "SkuPriceId",
)  # fmt: skip
"""Those columns of FOCUS 1.2 that a bill of ours has something to say in."""

PROVIDER = "botplane"
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_TITLES = {
    "subscription": "Subscription",
    "commitment": "Minimum commitment",
    "commission": "Commission on trades",
    "one_off": "One-off charge",
}


def lines_csv(invoice: Invoice) -> str:
    """Return one row per line; the rest of the invoice is in its JSON."""
    return _table(LINE_COLUMNS, (_line_row(invoice, line) for line in invoice.lines))


def focus_csv(invoice: Invoice) -> str:
    """Return the invoice in the columns of FOCUS; BilledCost sums to what is due.

    A discount is the difference of ListCost and BilledCost; taxes, credits and balances of other
    periods have rows of their own.
    """
    rows = [*_charges(invoice), *_taxes(invoice), *_credits(invoice), *_balances(invoice)]
    return _table(FOCUS_COLUMNS, rows)


def _table(columns: Iterable[str], rows: Iterable[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _safe(name, value) for name, value in row.items()})
    return text.getvalue()


def _safe(name: str, value: str) -> str:
    """Keep spreadsheets from reading a name as a formula; numbers stay numbers."""
    is_text = name in {"BillingAccountName", "ChargeDescription", "tenant", "key"}
    return f"'{value}" if is_text and value.startswith(_FORMULA_STARTS) else value


def _line_row(invoice: Invoice, line: Line) -> dict[str, str]:
    currency = invoice.billed.currency
    return {
        "invoice": invoice.number or "",
        "tenant": invoice.billed.tenant,
        "period": invoice.billed.period,
        "key": line.key,
        "kind": line.kind,
        "meter": line.meter or "",
        "start": _utc(line.starts_at),
        "end": _utc(line.ends_at),
        "quantity": plain(line.quantity),
        "exact": plain(line.exact),
        "amount": amount_text(line.amount_minor, currency),
        "discount": amount_text(line.discount_minor, currency),
        "net": amount_text(line.net_minor, currency),
        "currency": currency,
    }


def _row(invoice: Invoice, category: str, description: str, minor: int) -> dict[str, str]:
    billed = invoice.billed
    cost = amount_text(minor, billed.currency)
    return {
        "BilledCost": cost,
        "BillingAccountId": str(billed.tenant_id),
        "BillingAccountName": billed.organization or billed.tenant,
        "BillingCurrency": billed.currency,
        "BillingPeriodEnd": _utc(billed.ends_at),
        "BillingPeriodStart": _utc(billed.starts_at),
        "ChargeCategory": category,
        "ChargeDescription": description,
        "ChargeFrequency": "Recurring",
        "ChargePeriodEnd": _utc(billed.ends_at),
        "ChargePeriodStart": _utc(billed.starts_at),
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceId": invoice.number or "",
        "InvoiceIssuerName": PROVIDER,
        "ListCost": cost,
        "ProviderName": PROVIDER,
        "PublisherName": PROVIDER,
        "ServiceCategory": "Other",
        "ServiceName": "Trading bots",
    }


def _charges(invoice: Invoice) -> Iterator[dict[str, str]]:
    for line in invoice.lines:
        meter = METERS.get(line.meter or "")
        title = _TITLES.get(line.charge_kind, "") if meter is None else meter.title
        is_usage = line.charge_kind in {"usage", "commission"}
        unit = "trade" if meter is None else meter.exact or meter.unit or meter.per
        quantity = plain(line.quantity)
        more: dict[str, Any] = {"PricingQuantity": quantity, "PricingUnit": "unit"}
        if is_usage:
            more = {
                "ChargeFrequency": "Usage-Based",
                "ConsumedQuantity": quantity,
                "ConsumedUnit": unit,
                "PricingQuantity": quantity,
                "PricingUnit": unit,
            }
        if line.kind == "one_off":
            title = line.detail["description"]
            more |= {"ChargeFrequency": "One-Time"}
        sku = line.meter or line.charge_kind
        plan = [str(line.detail[name]) for name in ("plan", "version") if name in line.detail]
        is_correction = line.kind == "correction"
        yield {
            **_row(invoice, "Usage" if is_usage else "Purchase", title, line.net_minor),
            **more,
            "ChargeClass": "Correction" if is_correction else "",
            "ChargePeriodStart": _utc(line.starts_at),
            "ChargePeriodEnd": _utc(line.ends_at),
            "ListCost": amount_text(line.amount_minor, invoice.billed.currency),
            "SkuId": sku,
            "SkuPriceId": "/".join([*plan, sku]),
        }


def _taxes(invoice: Invoice) -> Iterator[dict[str, str]]:
    for tax in invoice.taxes:
        reason = f" ({tax.reason})" if tax.reason else ""
        text = f"{tax.name} {plain(tax.rate * 100)} %{reason}"
        yield _row(invoice, "Tax", text, tax.amount_minor)


def _credits(invoice: Invoice) -> Iterator[dict[str, str]]:
    for use in invoice.credits:
        yield _row(invoice, "Credit", f"Credit {use.credit_id}", -use.amount_minor)


def _balances(invoice: Invoice) -> Iterator[dict[str, str]]:
    if invoice.carried_minor:
        yield _row(invoice, "Adjustment", "Balance of other periods", invoice.carried_minor)


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
