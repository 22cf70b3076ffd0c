"""The list of reasons is closed: what the code says is in it, and nothing else is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from botplane.api.reasons import REASONS

ROOT = Path(__file__).parents[3] / "operator" / "botplane"
ROOMS = ("tenants", "bots", "kube", "store", "api", "runtime")
FILES = (
    *("billing/reconcile.py", "billing/pricebook.py", "billing/money.py", "billing/store.py"),
    "usage/status.py",
    "postgres.py",
)
MAKERS = {"Finding", "Rejected", "Retryable", "holds", "fails", "waits", "summarize", "Suspension"}
ELSEWHERE = {
    # Answers of commands, never of a condition.
    "MigrationChanged", "SchemaTooNew", "PeriodNotFound", "NumberInvalid",
}  # fmt: skip
BY_DATA = {"NamespaceCreated", "QuotaApplied", "Isolated", "AccessGranted", "AccountOpen"} | {
    "User", "Admin", "SpendLimit", "PaymentOverdue", "InternalError", "KindNotServed",
    "UsageLimit", "UsageLimitReached", "SpendLimitReached", "LimitNear", "NotMetered",
    "OverIncluded", "WithinLimits", "InvoiceUncollectible", "PaymentConfirmationNeeded",
    "PaymentDeclined", "PaymentDue", "PaymentMethodNeeded", "Running", "TenantSuspended",
}  # fmt: skip
"""Reasons that stand in a table of the code and not in a call."""


def test_every_reason_of_the_code_is_explained() -> None:
    assert set(said()) - ELSEWHERE - TYPES - set(REASONS) == set()


def test_every_explained_reason_is_one_of_the_code() -> None:
    assert set(REASONS) - set(said()) - BY_DATA == set()


TYPES = {
    "Ready", "Stalled", "Reconciling", "WorkloadAvailable", "BillingReady", "PricesPublished",
    "BackupScheduled", "NamespaceReady", "IsolationReady", "AccessReady", "NetworkIsolation",
}  # fmt: skip
"""Types of conditions, which stand beside reasons in the same calls."""


def said() -> Iterator[str]:
    """Yield every CamelCase text in a call that makes a finding, an error or a verdict."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    for path in [*files, *(ROOT / name for name in FILES)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) in MAKERS:
                yield from _words(node)


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _words(call: ast.Call) -> Iterator[str]:
    for argument in call.args:
        value = getattr(argument, "value", None)
        if isinstance(value, str) and value.isalpha() and value[0].isupper() and len(value) > 3:
            yield value
