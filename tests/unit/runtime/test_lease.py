"""Leadership: one leads, and knows when it does no longer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from botplane.kube.client import KubeClient
from botplane.kube.resources import Ref
from botplane.runtime import lease as leases
from botplane.runtime.lease import Lease
from tests.support.api_server import APIServer, failure

Served = tuple[APIServer, KubeClient]
REF = Ref("Lease", "botplane-system", "botplane-operator")
PLACE = ("leases", "botplane-system", "botplane-operator")
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.15)
    monkeypatch.setattr(leases, "RENEW_DEADLINE_SECONDS", 0.1)
    monkeypatch.setattr(leases, "RETRY_SECONDS", 0.01)


def replica(client: KubeClient, identity: str) -> Lease:
    return Lease(client, REF, identity, lambda: datetime.now(UTC))


@pytest.fixture
def patient(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - comes after it
    """Let no pause of a busy machine pass for a replica that died."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "RENEW_DEADLINE_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
async def test_the_first_leads_and_the_second_waits_until_it_lets_go(served: Served) -> None:
    api, client = served
    first, second = replica(client, "one"), replica(client, "two")
    await first.acquire()

    waiting = asyncio.create_task(second.acquire())
    holding = asyncio.create_task(first.hold())
    await asyncio.wait({waiting}, timeout=1.2)
    assert not waiting.done()
    holding.cancel()
    await first.release()
    await asyncio.wait_for(waiting, 5)

    assert api.objects[PLACE]["spec"]["holderIdentity"] == "two"
    assert api.objects[PLACE]["spec"]["leaseTransitions"] == 2


async def test_the_lease_of_one_that_died_is_taken_over(served: Served) -> None:
    api, client = served
    await replica(client, "dead").acquire()

    await asyncio.wait_for(replica(client, "alive").acquire(), 5)

    assert api.objects[PLACE]["spec"]["holderIdentity"] == "alive"


async def test_only_who_holds_the_lease_can_prove_it(served: Served) -> None:
    api, client = served
    first, second = replica(client, "one"), replica(client, "two")
    assert not await first.is_held()

    await first.acquire()
    assert await first.is_held()

    await second.acquire()
    assert not await first.is_held()
    assert await second.is_held()
    refusal = failure(503, "no")
    api.answer = lambda _method, _address: refusal
    assert not await second.is_held()


async def test_a_lease_that_was_deleted_and_taken_by_another_proves_nothing(served: Served) -> None:
    api, client = served
    first, second = replica(client, "one"), replica(client, "two")
    await first.acquire()
    del api.objects[PLACE]

    await second.acquire()

    assert not await first.is_held()
    assert await second.is_held()


@pytest.mark.usefixtures("patient")
async def test_proofs_and_renewals_at_once_do_not_hinder_each_other(
    served: Served,
) -> None:
    _, client = served
    leader = replica(client, "one")
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())

    assert all(await asyncio.gather(*(leader.is_held() for _ in range(20))))

    assert not holding.done()
    holding.cancel()


async def test_a_leader_that_cannot_renew_says_so(served: Served) -> None:
    api, client = served
    leader = replica(client, "one")
    await leader.acquire()
    refusal = failure(503, "no")
    api.answer = lambda _method, _address: refusal

    await asyncio.wait_for(leader.hold(), 5)


async def test_a_leader_whose_call_hangs_does_not_lead_on_for_as_long_as_it_hangs() -> None:
    async with asyncio.timeout(5):
        hanging = _Hanging()

        await Lease(hanging, REF, "one", lambda: NOON).hold()  # type: ignore[arg-type]


class _Hanging:
    """An API server that takes a request and does not answer."""

    async def get(self, _ref: Ref) -> None:
        await asyncio.Event().wait()
