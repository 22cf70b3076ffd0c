"""Whether the nodes can hold what plans promise, the oldest tenants first. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from botplane.api.conditions import Finding
from botplane.api.plan import PlanSpec
from botplane.api.types import Quantity
from botplane.kube.resources import Manifest


class Amount(NamedTuple):
    """CPU in cores and memory in bytes."""

    cpu: Decimal
    memory: Decimal

    def plus(self, other: Amount) -> Amount:
        """Return the sum."""
        return Amount(self.cpu + other.cpu, self.memory + other.memory)

    def fits(self, capacity: Amount) -> bool:
        """Return whether both are within the capacity."""
        return self.cpu <= capacity.cpu and self.memory <= capacity.memory


NOTHING = Amount(Decimal(0), Decimal(0))


class Claim(NamedTuple):
    """What one tenant's plan promises."""

    created: str
    uid: str
    amount: Amount
    plan: str


def promised(plan: PlanSpec) -> Amount:
    """Return what a plan promises to each of its tenants."""
    return Amount(plan.quota.cpu.value, plan.quota.memory.value)


def capacity_of(nodes: Iterable[Manifest]) -> Amount:
    """Return what the nodes that take pods have to give."""
    total = NOTHING
    for node in nodes:
        if node.get("spec", {}).get("unschedulable"):
            continue
        give = node.get("status", {}).get("allocatable", {})
        cpu, memory = Quantity(give.get("cpu", "0")), Quantity(give.get("memory", "0"))
        total = total.plus(Amount(cpu.value, memory.value))
    return total


def committed(claims: Iterable[Claim]) -> Amount:
    """Return the sum of all claims."""
    total = NOTHING
    for claim in claims:
        total = total.plus(claim.amount)
    return total


def beyond(claims: Iterable[Claim], capacity: Amount) -> frozenset[str]:
    """Return the uids of the tenants whose claim does not fit beside those of older ones."""
    total, left_out = NOTHING, set[str]()
    for claim in sorted(claims):
        grown = total.plus(claim.amount)
        if grown.fits(capacity):
            total = grown
        else:
            left_out.add(claim.uid)
    return frozenset(left_out)


NOT_COUNTED = Finding(
    "CapacityNotCounted",
    "Waits until it is counted what plans promise and what the nodes can hold, every 10 seconds",
)


def insufficient(plan_name: str) -> Finding:
    """Return what to tell a tenant that the cluster cannot hold beside the older ones."""
    return Finding(
        "InsufficientCapacity",
        f'The nodes cannot hold what plan "{plan_name}" promises beside the older tenants; add '
        "nodes or choose a smaller plan",
    )
