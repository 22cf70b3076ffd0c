"""Invoices for people (text of fixed width) and for programs (JSON)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from botplane.billing.invoices import amount_text, document
from botplane.billing.money import decimal, plain

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from botplane.billing.invoices import Invoice, Line

WIDTH = 92
_METERS = {
    "bot_seconds": ("Bot runtime", "h", 3600),
    "cpu_core_seconds": ("CPU requested", "core-h", 3600),
    "memory_gib_seconds": ("Memory requested", "GiB-h", 3600),
    "rpc_calls": ("RPC calls", "call", 1),
    "storage_gb_hours": ("Storage", "GB-h", 1),
    "bandwidth_gb": ("Bandwidth", "GB", 1),
    "ai_units": ("AI processing", "unit", 1),
    "premium_features": ("Premium features", "use", 1),
}
"""Title, unit for people, and how much of the meter is one of that unit."""

_EXACT_UNITS = {
    "bot_seconds": "s",
    "cpu_core_seconds": "core-s",
    "memory_gib_seconds": "GiB-s",
}


def render_json(invoice: Invoice) -> str:
    """Return the document with its status and hash: keys sorted, every decimal a string.

    The hash is the SHA-256 of the same JSON without `contentHash`, `status` and `draftReason`,
    written without spaces.
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
            ("Provisional", invoice.draft_reason or ""),
        ),
        "",
        _columns("Description", "Quantity", "Unit price", f"Amount {billed.currency}"),
        "-" * WIDTH,
    ]
    for line in invoice.lines:
        rows += _line_rows(line, invoice)
    total = amount_text(invoice.total_minor, billed.currency)
    rows += ["-" * WIDTH, _columns("Total due", "", "", _grouped(total))]
    if invoice.content_hash is not None:
        rows += ["", f"Content hash sha256:{invoice.content_hash.hex()}"]
    return "\n".join(row.rstrip() for row in rows) + "\n"


def _pairs(*pairs: tuple[str, str]) -> list[str]:
    return [f"{name:<14}{value}" for name, value in pairs if value]


def _columns(description: str, quantity: str, unit_price: str, amount: str) -> str:
    return f"{description:<38}{quantity:>20}{unit_price:>20}{amount:>14}"


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
        case _:
            return _usage_rows(line, invoice, amount)


def _usage_rows(line: Line, invoice: Invoice, amount: str) -> list[str]:
    meter = line.meter or ""
    title, unit, size = _METERS[meter]
    quantity = f"{_grouped(_in_units(line.quantity, size))} {unit}"
    tiers = line.detail["tiers"]
    price = _unit_price(line, invoice) if len(tiers) == 1 else ""
    exact = [f"{_grouped(plain(line.quantity))} {_EXACT_UNITS[meter]}"] if size > 1 else []
    included = decimal(line.detail["included"])
    if included:
        exact.append(f"{_grouped(_in_units(included, size))} {unit} included")
    rows = [_columns(title, quantity, price, amount), *_notes(line, invoice, ", ".join(exact))]
    if len(tiers) > 1:
        for tier in tiers:
            part = f"{_grouped(_in_units(decimal(tier['quantity']), size))} {unit}"
            rows.append(_columns("", part, _tier_price(line, invoice, tier), ""))
    return rows


def _notes(line: Line, invoice: Invoice, exact: str) -> list[str]:
    billed = invoice.billed
    notes = [exact] if exact else []
    if (line.starts_at, line.ends_at) != (billed.starts_at, billed.ends_at):
        notes.append(f"{_second(line.starts_at)} to {_second(line.ends_at)} UTC")
    return [f"  {note}" for note in notes]


def _unit_price(line: Line, invoice: Invoice) -> str:
    return _tier_price(line, invoice, line.detail["tiers"][0])


def _tier_price(line: Line, invoice: Invoice, tier: dict[str, Any]) -> str:
    """Write a tier's price per unit for people, and its flat fee."""
    _, unit, size = _METERS[line.meter or ""]
    per = decimal(line.detail["unitSize"])
    flat = amount_text(tier["flatFeeMinor"], invoice.billed.currency)
    price = _grouped(tier["unitPrice"])
    of = unit if per == size else f"{_grouped(_in_units(per, size))} {unit}"
    parts = [f"{price} / {of}"] if decimal(tier["unitPrice"]) else []
    parts += [f"{flat} flat"] if tier["flatFeeMinor"] else []
    return " + ".join(parts)


def _in_units(quantity: Decimal, size: int) -> str:
    """Write a quantity in units for people, with at most six decimals."""
    return plain(round(quantity / size, 6)) if size > 1 else plain(quantity)


def _share(detail: Any) -> Decimal:
    return decimal(detail["seconds"]) / decimal(detail["periodSeconds"])


def _grouped(number: str) -> str:
    whole, point, fraction = number.partition(".")
    return f"{int(whole):,}{point}{fraction}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
