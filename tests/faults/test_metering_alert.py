"""Usage whose end nobody told calls somebody."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest
import urllib3

from tests.faults.metering_world import World, billed, metering, pass_time, path_of, seconds, sql
from tests.support.alerts import Alerts
from tests.support.controlplane.ports import free_ports
from tests.support.controlplane.waiting import until

ALERT = "BotplaneUsageEstimated"
CLOSED = "SELECT 1 FROM runtime_interval WHERE ended_at IS NOT NULL"
RESYNC_SECONDS = 60


def test_a_run_whose_end_nobody_told_is_bounded_and_fires_the_alert(
    world: World, usage: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant = world.tenant()
    exact, freed = (world.running(world.pod(tenant)) for _ in range(2))
    (port,) = free_ports(1)
    since = time.time()
    with metering(world.cluster, usage, log, port):
        world.delete(exact)
        world.gone(exact)
        until(lambda: sql(usage, CLOSED), what="an end that was told")
        pass_time(2)
        told = _scraped(port)
    world.kube.patch(path_of(freed), {"metadata": {"finalizers": None}})
    world.delete(freed)
    world.gone(freed)
    ended = time.time()
    with metering(world.cluster, usage, log, port):
        until(lambda: len(sql(usage, CLOSED)) > 1, what="an end that nobody told")
        untold = until(lambda: _inexact(_scraped(port)), what="it is counted")

    uid = freed["metadata"]["uid"]
    started = freed["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
    error = ended - datetime.fromisoformat(started).timestamp() - seconds(billed(usage, {uid}))
    alerts = Alerts(tmp_path)
    fired = [alerts.fires(ALERT, scrapes, since) for scrapes in ([told], [told, untold])]
    with capsys.disabled():
        print(f"\nC-7: billed {error:.0f} s less than ran (bar {RESYNC_SECONDS}); alert {fired}")
    assert fired == [False, True]
    assert 0 <= error <= RESYNC_SECONDS


def _inexact(text: str) -> str | None:
    return text if 'quality="bounded"} 1.0' in text else None


def _scraped(port: int) -> str:
    answer = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics", timeout=5)
    return answer.data.decode()
