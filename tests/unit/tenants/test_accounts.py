"""What billing is told of a tenant."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from botplane.tenants.reconcile import account_of
from tests.support.declared import TENANT_UID, a_tenant

META = {"name": "acme", "uid": TENANT_UID, "creationTimestamp": "2026-10-05T09:00:00Z"}


@pytest.mark.parametrize(
    ("billing", "start"),
    [
        ({}, datetime(2026, 10, 5, 9, tzinfo=UTC)),
        ({"subscriptionStartTime": "2026-09-01T00:00:00Z"}, datetime(2026, 9, 1, tzinfo=UTC)),
        ({"subscriptionStartTime": "2026-09-01t00:00:00z"}, datetime(2026, 9, 1, tzinfo=UTC)),
        (
            {"subscriptionStartTime": "2026-09-01T02:00:00.5+02:00"},
            datetime(2026, 9, 1, 0, 0, 0, 500_000, tzinfo=UTC),
        ),
    ],
    ids=["creation", "declared", "small letters", "offset"],
)
def test_the_subscription_starts_as_declared_or_with_the_tenant(
    billing: dict[str, Any], start: datetime
) -> None:
    account = account_of({"metadata": META}, a_tenant(billing=billing))

    assert account.subscription_start == start


def test_the_account_is_the_tenants() -> None:
    spec = a_tenant(billing={"timeZone": "Europe/Madrid", "anchorDay": 15, "spendLimit": "500.00"})

    account = account_of({"metadata": META}, spec)

    assert str(account.tenant_id) == TENANT_UID
    assert (account.namespace, account.plan) == ("tenant-acme", "professional")
    assert (account.time_zone, account.anchor_day) == ("Europe/Madrid", 15)
    assert account.spend_limit == Decimal("500.00")
