"""What to say when somebody asks for what billing does not know. Pure."""

from __future__ import annotations

from botplane.errors import Rejected


def no_such_tenant(name: str) -> Rejected:
    """Return the error for a tenant that billing never heard of."""
    return Rejected("TenantNotFound", f"No tenant {name} was ever registered for billing.")


def no_such_invoice(number: str) -> Rejected:
    """Return the error for a number that no invoice has."""
    return Rejected("InvoiceNotFound", f"No invoice {number} was issued.")
