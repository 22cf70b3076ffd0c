"""Reading quantities and times as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from botplane.metering.evidence import read_pod
from botplane.metering.quantity import quantity
from tests.unit.metering.pods import a_pod, at, running


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("500m", "0.5"),
        ("2", "2"),
        ("0.1", "0.1"),
        (".5Gi", "536870912"),
        ("1Gi", "1073741824"),
        ("1G", "1000000000"),
        ("100u", "0.0001"),
        ("1e3", "1000"),
        ("1E", "1000000000000000000"),
        ("128974848", "128974848"),
    ],
)
def test_quantity(text: str, value: str) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "1GiB", "one", "0x10"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        quantity(text)


def test_size_is_rounded_up_and_fits_its_columns() -> None:
    pod = a_pod(running(0, resources={"requests": {"cpu": "100u", "memory": "9E"}}))

    (container,) = read_pod(pod).containers

    assert container.size.cpu_milli == 1
    assert container.size.mem_bytes == 9 * 10**18


def test_the_wish_to_delete_is_its_timestamp_less_the_grace() -> None:
    pod = read_pod(a_pod(running(0), deleted=100, grace=30))

    assert pod.deletion_at == at(130)
    assert pod.deleted_at == at(100)
