"""The oldest tenants have their room; a young one that does not fit is told."""

from __future__ import annotations

from decimal import Decimal

from botplane.tenants.capacity import Amount, Claim, beyond, capacity_of, committed

TEN = Amount(Decimal(10), Decimal(100))


def claim(created: str, cpu: int, memory: int = 1) -> Claim:
    return Claim(created, created, Amount(Decimal(cpu), Decimal(memory)), "professional")


def test_everybody_fits() -> None:
    assert beyond([claim("1", 4), claim("2", 6)], TEN) == frozenset()


def test_the_youngest_does_not_fit() -> None:
    assert beyond([claim("3", 3), claim("1", 4), claim("2", 4)], TEN) == {"3"}


def test_a_small_young_one_fits_beside_a_large_one_that_does_not() -> None:
    assert beyond([claim("1", 8), claim("2", 5), claim("3", 2)], TEN) == {"2"}


def test_memory_counts_as_well() -> None:
    assert beyond([claim("1", 1, 60), claim("2", 1, 60)], TEN) == {"2"}


def test_nodes_that_take_no_pods_give_nothing() -> None:
    give = {"status": {"allocatable": {"cpu": "3500m", "memory": "8Gi"}}}

    assert capacity_of([give, {**give, "spec": {"unschedulable": True}}]) == Amount(
        Decimal("3.5"), Decimal(8 * 2**30)
    )


def test_the_sum_of_all_promises() -> None:
    assert committed([claim("1", 4, 10), claim("2", 40, 20)]) == Amount(Decimal(44), Decimal(30))
