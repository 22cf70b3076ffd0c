"""`make bench`: each figure beside the floor of the same run. Ratios count, seconds are noisy."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.bench import latency
from tests.bench.client import open_client
from tests.support.controlplane import cluster, postgres, watchdog
from tests.support.fixtures import PLANS
from tests.support.installation import ROOT, Installation


def main() -> int:
    """Run every benchmark and return the exit code: 0 when all bars hold."""
    with tempfile.TemporaryDirectory(prefix="botplane-bench-") as folder:
        state = Path(folder)
        state.chmod(0o711)
        guard = watchdog.watch_over(state)
        try:
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
        finally:
            guard.communicate()


async def _measure(installed: Installation) -> int:
    async with open_client(installed.cluster) as client:
        rows = [
            await latency.tenants(client),
            await latency.bots(client),
            await latency.drift(client),
        ]
    print(f"\n{'what':<58} {'floor':>10} {'measured':>10} {'ratio':>7} {'bar':>7}")
    for row in rows:
        print(row)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
