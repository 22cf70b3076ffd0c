"""`make bench`: each figure beside the floor of the same run. Ratios count, seconds are noisy."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.bench import admission, gateway, ingestion, latency, month, scale
from tests.bench.alone import a_state, measured_alone
from tests.bench.client import open_client
from tests.bench.rows import HEAD, Row
from tests.support.controlplane import cluster, postgres
from tests.support.fixtures import PLANS
from tests.support.installation import ROOT, Installation

TENANTS = int(os.environ.get("BOTPLANE_BENCH_TENANTS", "1000"))
BOTS_EACH = 3


def main() -> int:
    """Run every benchmark and return the exit code: 0 when all bars hold."""
    with a_state() as state:
        rows = _of_kubernetes(state)
    rows += measured_alone(gateway.measure, ingestion.measure, month.measure)
    print(f"\n{HEAD}", *rows, sep="\n")
    return 0 if all(row.holds for row in rows) else 1


def _of_kubernetes(state: Path) -> list[Row]:
    found = cluster.start(state, print, [ROOT / "crds"])
    server = postgres.start(state)
    installed = Installation.into(found, server.ensure_database("botplane"))
    installed.start("operator")
    installed.wait_for_leader()
    installed.apply(*PLANS)
    try:
        return asyncio.run(_measure(installed))
    except TimeoutError:
        print(installed.log("operator")[-3000:], file=sys.stderr)
        raise


async def _measure(installed: Installation) -> list[Row]:
    async with open_client(installed.cluster) as client:
        rows = [
            await latency.tenants(client),
            await latency.bots(client),
            await latency.drift(client),
            await latency.handover(client, installed),
            await asyncio.to_thread(gateway.refusal, installed),
            await admission.admission(client, installed.cluster, 1),
            await admission.admission(client, installed.cluster, 16),
        ]
        return rows + await scale.Scale(installed, client, TENANTS, BOTS_EACH).run()


if __name__ == "__main__":
    sys.exit(main())
