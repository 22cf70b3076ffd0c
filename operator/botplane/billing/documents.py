"""Invoices for people (text of fixed width) and for programs (JSON)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from botplane.billing.invoices import amount_text, document
from botplane.billing.money import decimal, minor_units, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

    from botplane.billing.invoices import Invoice, Line

WIDTH = 100


class MeterText(NamedTuple):
    """How people read a meter."""

    title: str
    unit: str
    """Written behind quantities; empty where the title says it."""
    per: str
    """Written behind unit prices."""
    size: int = 1
    """How much of the meter is one `unit`."""
    exact: str = ""
    """Unit of the meter itself, where it is not `unit`."""


METERS = {
    "bot_seconds": MeterText("Bot runtime", "h", "h", 3600, "s"),
    "cpu_core_seconds": MeterText("CPU requested", "core-h", "core-h", 3600, "core-s"),
    "memory_gib_seconds": MeterText("Memory requested", "GiB-h", "GiB-h", 3600, "GiB-s"),
    "rpc_calls": MeterText("RPC calls", "", "call"),
    "storage_gb_hours": MeterText("Storage", "GB-h", "GB-h"),
    "bandwidth_gb": MeterText("Bandwidth", "GB", "GB"),
    "ai_units": MeterText("AI processing units", "", "unit"),
    "premium_features": MeterText("Premium features", "", "use"),
}


def render_json(invoice: Invoice) -> str:
    """Return the document with its status and hash: keys sorted, every decimal a string.

    The hash is the SHA-256 of the same JSON without `contentHash`, `status` and `draftReason`,
    written without spaces, in UTF-8: `jq -cjS`.
    """
    digest = invoice.content_hash
    return json.dumps(
        document(invoice)
        | {
            "status": invoice.status.value,
            "draftReason": invoice.draft_reason,
            "contentHash": None if digest is None else f"sha256:{digest.hex()}",
        },
        sort_keys=True,
        indent=2,
    )


def render_table(invoice: Invoice) -> str:
    """Return the invoice as text of fixed width, quantities for people with the exact ones."""
    billed = invoice.billed
    title = invoice.number or "without number"
    rows = [
        f"INVOICE {title}".ljust(WIDTH - 14) + invoice.status.value.upper().rjust(14),
        "",
        *_pairs(
            ("Tenant", f"{billed.tenant} ({billed.tenant_id})"),
            ("Organization", billed.organization),
            ("Period", f"{billed.period} ({billed.time_zone})"),
            ("", f"{_minute(billed.starts_at)} to {_minute(billed.ends_at)} UTC"),
            ("Issued", "" if invoice.issued_at is None else _minute(invoice.issued_at) + " UTC"),
            ("Replaces", billed.replaces or ""),
            ("Provisional", invoice.draft_reason or ""),
        ),
        "",
        _columns("Description", "Quantity", "Unit price", f"Amount {billed.currency}"),
        "-" * WIDTH,
    ]
    for line in invoice.lines:
        rows += _line_rows(line, invoice)
    rows += ["-" * WIDTH, *_sums(invoice)]
    if invoice.content_hash is not None:
        rows += ["", f"Content hash sha256:{invoice.content_hash.hex()}"]
    return "\n".join(row.rstrip() for row in rows) + "\n"


def _sums(invoice: Invoice) -> list[str]:
    """Write what leads from the lines to the amount due; steps that change nothing are left out."""
    percents = {
        discount.code: "" if discount.percent is None else f" ({plain(discount.percent)} %)"
        for discount in invoice.discounts
    }
    steps = [
        (f"Coupon {d.code}{percents[d.code]} on {d.target}", -d.amount_minor)
        for d in invoice.discounts
    ]
    for tax in invoice.taxes:
        rate = f"{plain(tax.rate * 100)} %"
        reason = "" if tax.reason is None else f" ({tax.reason})"
        base = _grouped(amount_text(tax.base_minor, invoice.billed.currency))
        steps.append((f"{tax.name} {rate} of {base}{reason}", tax.amount_minor))
    if steps:
        steps = [("Subtotal", invoice.subtotal_minor), *steps, ("Total", invoice.total_minor)]
    steps += [(f"Credit {use.credit_id}", -use.amount_minor) for use in invoice.credits]
    balances = (
        ("Carried over from earlier invoices", invoice.carried_in_minor),
        ("Too little to collect: carried over", -invoice.carried_out_minor),
        ("Owed to you: kept as credit", invoice.refunded_minor),
    )
    steps += [(text, minor) for text, minor in balances if minor]
    steps.append(("Total due", invoice.due_minor))
    currency = invoice.billed.currency
    return [f"{text:<82}{_grouped(amount_text(minor, currency)):>18}" for text, minor in steps]


def _pairs(*pairs: tuple[str, str]) -> list[str]:
    return [f"{name:<14}{value}" for name, value in pairs if value]


def _columns(description: str, quantity: str, unit_price: str, amount: str) -> str:
    return f"{description:<34}{quantity:>20}  {unit_price:>30}{amount:>14}"


def _line_rows(line: Line, invoice: Invoice) -> list[str]:
    currency = invoice.billed.currency
    amount = _grouped(amount_text(line.amount_minor, currency))
    match line.kind:
        case "subscription":
            fee = _grouped(amount_text(line.detail["feeMinor"], currency))
            whole = line.detail["seconds"] == line.detail["periodSeconds"]
            share = "1" if whole else f"{_share(line.detail):.6f}"
            rows = [_columns(f"Plan {line.detail['plan']}", share, fee, amount)]
            seconds = f"{_grouped(line.detail['seconds'])} s"
            of = f"{_grouped(line.detail['periodSeconds'])} s of the period"
            return rows if whole else [*rows, *_notes(line, invoice, f"{seconds} of {of}")]
        case "commitment":
            least = _grouped(line.detail["minimum"])
            return [_columns(f"Minimum commitment, usage up to {least}", "", "", amount)]
        case "commission":
            return _commission_rows(line, invoice, amount)
        case "one_off":
            return [_columns("One-off charge", "", "", amount), f"  {line.detail['description']}"]
        case "correction":
            return _correction_rows(line, invoice, amount)
        case _:
            return _usage_rows(line, invoice, amount)


def _usage_rows(line: Line, invoice: Invoice, amount: str) -> list[str]:
    meter = METERS[line.meter or ""]
    tiers = line.detail["tiers"]
    prices = [_tier_price(meter, line, invoice, tier) for tier in tiers]
    exact = [f"{_grouped(plain(line.quantity))} {meter.exact}"] if meter.exact else []
    included = decimal(line.detail["included"])
    if included:
        exact.append(f"{_quantity(meter, included)} included")
    if "usedBefore" in line.detail:
        exact.append(f"{_quantity(meter, decimal(line.detail['usedBefore']))} used before")
    price = prices[0] if len(tiers) == 1 else ""
    rows = [_columns(meter.title, _quantity(meter, line.quantity), price, amount)]
    rows += _notes(line, invoice, ", ".join(exact))
    if len(tiers) > 1:
        for tier, price in zip(tiers, prices, strict=True):
            rows.append(_columns("", _quantity(meter, decimal(tier["quantity"])), price, ""))
    return rows


def _commission_rows(line: Line, invoice: Invoice, amount: str) -> list[str]:
    detail, currency = line.detail, invoice.billed.currency
    netted = "net" in detail
    trades = f"{plain(line.quantity)} {'traded' if netted else 'won'}"
    rows = [_columns("Commission on trades", trades, f"{_percent(detail['rate'])} %", amount)]
    notes = []
    if netted:
        notes.append(f"wins less losses {_rounded(detail['net'], currency)}")
    if "mark" in detail:
        before, now = (_rounded(detail[name], currency) for name in ("markBefore", "cumulative"))
        notes.append(f"in all {now}, highest before {before}")
    notes.append(f"profit {_rounded(detail['profit'], currency)}")
    if decimal(detail["discount"]):
        notes.append(f"volume discount {_percent(detail['discount'])} %")
    for name, cap in (("trade", "capPerTradeMinor"), ("period", "capPerPeriodMinor")):
        if detail[cap] is not None:
            notes.append(f"at most {_grouped(amount_text(detail[cap], currency))} a {name}")
    if "earnedBefore" in detail:
        notes.append(f"of which {_rounded(detail['earnedBefore'], currency)} before")
    return rows + _notes(line, invoice, ", ".join(notes))


def _correction_rows(line: Line, invoice: Invoice, amount: str) -> list[str]:
    detail, currency = line.detail, invoice.billed.currency
    title = METERS[line.meter].title.lower() if line.meter else line.charge_kind
    rows = [_columns(f"Correction of {title}", "", "", amount)]
    was, now = (_grouped(amount_text(detail[name], currency)) for name in ("wasMinor", "nowMinor"))
    return [*rows, *_notes(line, invoice, f"{detail['number']}: {was} is now {now}")]


def _rounded(amount: str, currency: str) -> str:
    return _grouped(plain(round(decimal(amount), minor_units(currency))))


def _percent(share: str) -> str:
    return plain(decimal(share) * 100)


def _notes(line: Line, invoice: Invoice, exact: str) -> list[str]:
    billed = invoice.billed
    notes = [exact] if exact else []
    if (line.starts_at, line.ends_at) != (billed.starts_at, billed.ends_at):
        notes.append(f"{_second(line.starts_at)} to {_second(line.ends_at)} UTC")
    return [f"  {note}" for note in notes]


def _tier_price(meter: MeterText, line: Line, invoice: Invoice, tier: dict[str, Any]) -> str:
    """Write a tier's price per unit for people, and its flat fee."""
    unit_size = decimal(line.detail["unitSize"])
    per = meter.per if unit_size == meter.size else f"{_in_units(meter, unit_size)} {meter.per}"
    parts = [f"{_grouped(tier['unitPrice'])} / {per}"] if decimal(tier["unitPrice"]) else []
    if tier["flatFeeMinor"]:
        parts.append(f"{amount_text(tier['flatFeeMinor'], invoice.billed.currency)} flat")
    return " + ".join(parts)


def _quantity(meter: MeterText, quantity: Decimal) -> str:
    return f"{_in_units(meter, quantity)} {meter.unit}".rstrip()


def _in_units(meter: MeterText, quantity: Decimal) -> str:
    """Write a quantity in units for people, with at most six decimals."""
    return _grouped(plain(quantity if meter.size == 1 else round(quantity / meter.size, 6)))


def _share(detail: Mapping[str, str]) -> Decimal:
    return decimal(detail["seconds"]) / decimal(detail["periodSeconds"])


def _grouped(number: str) -> str:
    whole, point, fraction = number.lstrip("-").partition(".")
    sign = "-" if number.startswith("-") else ""
    return f"{sign}{int(whole):,}{point}{fraction}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
