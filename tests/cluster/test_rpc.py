"""A bot calls RPC with the key that it was issued, and its plan stops it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.events.gateway import Gateway, gateway_process
from tests.support.rpc_vendor import RPCVendor, rpc_vendor
from tests.support.world import World, a_bot, a_name, a_plan, condition, tenant_key

CALLS = {"meter": "rpc_calls", "model": "PerUnit", "included": "20", "tiers": [{}]}


@pytest.fixture
def vendor() -> Iterator[RPCVendor]:
    with rpc_vendor() as made:
        yield made


@pytest.fixture
def gateway(world: World, vendor: RPCVendor, tmp_path: Path) -> Iterator[Gateway]:
    with gateway_process(world.installed.database_url, vendor.url, tmp_path) as running:
        yield running


def test_a_bot_calls_rpc_until_all_that_its_plan_includes_is_used(
    world: World, gateway: Gateway, vendor: RPCVendor
) -> None:
    strict, soft = a_name("strict"), a_name("soft")
    world.create(a_plan(strict, prices=[CALLS | {"onExceed": "Block"}]))
    world.create(a_plan(soft, prices=[CALLS]))
    tenant, other = world.tenant(planRef={"name": strict}), world.tenant(planRef={"name": soft})
    key, free = _key(world, gateway, tenant), _key(world, gateway, other)
    for _ in range(19):
        assert [gateway.call(key).status, gateway.call(free).status] == [200, 200]

    world.eventually(lambda: gateway.call(key).status == 402, "calls are refused")

    body = world.wait_for(tenant_key(tenant), "WithinLimits", "UsageLimitReached")
    refused, dials = gateway.call(key), len(vendor.dials)
    assert refused.body["error"]["message"] == condition(body, "WithinLimits")[2]
    assert "RPC is refused" in refused.body["error"]["message"]
    assert gateway.call(free).status == 200
    assert len(vendor.dials) == dials + 1

    world.patch(*tenant_key(tenant), {"spec": {"planRef": {"name": soft}}})
    world.eventually(lambda: gateway.call(key).status == 200, "there is room")


def test_the_key_of_a_deleted_bot_opens_nothing_for_a_bot_of_the_same_name(
    world: World, gateway: Gateway
) -> None:
    tenant = world.tenant()
    old = _key(world, gateway, tenant)
    world.delete("BotDeployment", f"tenant-{tenant}", "bot")
    world.eventually(
        lambda: world.read("Secret", f"tenant-{tenant}", "bot") is None, "the Secret is gone"
    )

    assert _key(world, gateway, tenant) != old


def _key(world: World, gateway: Gateway, tenant: str) -> str:
    """Return the key of a new bot, when calls with it are answered."""
    world.create(a_bot(tenant))
    key = world.issued_key(tenant, "gateway-key")
    world.eventually(lambda: gateway.call(key).status == 200, "the key is known")
    return key
