"""What stands in a tenant's namespace and opens it."""

from __future__ import annotations

from typing import Any

from botplane.isolation.objects import foreign_policies


def listed(*names: str, **foreign: dict[str, str]) -> dict[str, Any]:
    ours = {name: {"app.kubernetes.io/managed-by": "botplane"} for name in names}
    meta = [{"name": name, "labels": labels} for name, labels in (ours | foreign).items()]
    return {"items": [{"metadata": m} for m in meta]}


def test_a_network_policy_that_is_not_ours_is_named() -> None:
    assert foreign_policies(listed("default-deny", "arb-1")) == ""

    told = foreign_policies(listed("default-deny", open={}, b={"botplane.io/tenant": "acme"}))

    assert told.endswith(": b, open")
