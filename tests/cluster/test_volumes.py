"""A bot's volumes are on the bill, and go only once they are."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from botplane.api import labels as lb
from tests.support.installation import CommandFailedError
from tests.support.world import World

STORED = {"size": "1Gi"}
WITHOUT = json.dumps({"metadata": {"finalizers": None}})


def test_a_volume_is_shown_in_gb_hours_and_ends_with_its_bot(world: World) -> None:
    tenant = world.tenant()
    bot = world.bot(tenant, storage=STORED, backup={"schedule": "0 3 * * *", "retention": 3})
    bot_id = bot["metadata"]["uid"]

    def shown() -> Decimal:
        (row,) = json.loads(world.installed.botplane("usage", tenant, "-o", "json"))
        return Decimal(row["storageGBHours"])

    world.eventually(lambda: shown() > 0, "GB-hours are shown")
    assert len(_intervals(world, "bot_id", bot_id)) == 2
    world.delete("BotDeployment", f"tenant-{tenant}", "bot")

    claims = ("PersistentVolumeClaim", f"tenant-{tenant}")
    world.eventually(lambda: not world.list(*claims), "the claims are gone")
    assert _intervals(world, "bot_id", bot_id) == ["exact", "exact"]


def test_a_tenant_closes_after_its_volumes_are_settled(world: World) -> None:
    name = world.tenant(deletion={"protection": "Disabled", "retentionDays": 0})
    tenant = world.read("Tenant", "", name)
    assert tenant is not None
    world.bot(name, storage=STORED)

    world.delete("Tenant", "", name)

    space = ("Namespace", "", f"tenant-{name}")
    world.eventually(lambda: world.read(*space) is None, "the namespace is gone")
    assert _intervals(world, "tenant_id", tenant["metadata"]["uid"]) == ["exact"]
    with psycopg.connect(world.installed.database_url) as connection:
        late = connection.execute(
            "SELECT FROM runtime_interval i JOIN tenant t USING (tenant_id)"
            " WHERE t.name = %s AND i.storage_bytes > 0 AND i.ended_at > t.closed_at",
            [name],
        ).fetchall()
    assert late == []


def test_nobody_but_metering_lets_a_claim_go(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, storage=STORED)
    patch = ("patch", "pvc", "bot", "-n", f"tenant-{tenant}", "-p", WITHOUT, "--dry-run=server")
    accounts = "--as=system:serviceaccount:"

    with pytest.raises(CommandFailedError, match="removed by metering"):
        world.installed.kubectl(*patch, f"{accounts}kube-system:generic-garbage-collector")
    world.installed.kubectl(*patch, f"{accounts}botplane-system:botplane-metering")


def test_a_claim_that_lost_its_finalizer_by_hand_has_it_again(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, storage=STORED)
    claim = ("PersistentVolumeClaim", f"tenant-{tenant}", "bot")

    world.patch(*claim, {"metadata": {"finalizers": None}})

    def is_metered() -> dict[str, Any] | None:
        found: Any = world.read(*claim)
        return found if lb.METERING_FINALIZER in found["metadata"]["finalizers"] else None

    world.eventually(is_metered, "the finalizer is back")


def _intervals(world: World, whose: str, uid: str) -> list[str | None]:
    """Return how well the end of each stretch of a volume is known."""
    with psycopg.connect(world.installed.database_url) as connection:
        rows = connection.execute(
            f"SELECT close_quality FROM runtime_interval WHERE storage_bytes > 0 AND {whose} = %s",
            [uid],
        ).fetchall()
    return [quality for (quality,) in rows]
