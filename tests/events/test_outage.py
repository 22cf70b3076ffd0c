"""Postgres dies under the web process: nothing is accepted that is not there afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from botplane.store.migrate import migrate
from tests.events.server import Web, a_key, events, web_process
from tests.support.controlplane import postgres as servers
from tests.support.controlplane.waiting import until


@pytest.fixture
def mortal(session_state: Path) -> Iterator[servers.Postgres]:
    """A server of the test's own, which it may kill."""
    state = session_state / f"mortal-{uuid4().hex[:8]}"
    state.mkdir(mode=0o711)
    server = servers.start(state)
    if server.state is None:
        pytest.skip("the server of DATABASE_URL is not ours to kill")
    yield server
    server.stop()


def _is_stored(web: Web, key: str, batch: list[dict[str, Any]]) -> bool:
    return web.post(key, batch)[0] == 200


def test_what_was_acknowledged_outlives_a_killed_server(mortal: servers.Postgres) -> None:
    url = mortal.create_database("events")
    migrate(url)
    tenant_id, acknowledged, refused = uuid4(), set[str](), list[int]()
    batches = [events(range(start, start + 50)) for start in range(0, 6000, 50)]
    with psycopg.connect(url, autocommit=True) as conn:
        key = a_key(conn, tenant_id)
    with web_process(url) as web:
        killer = threading.Timer(0.3, mortal.kill9)
        killer.start()
        for batch in batches:
            status, answer = web.post(key, batch)
            if status == 200:
                acknowledged |= {result["id"] for result in answer["results"]}
                continue
            refused.append(status)
            if len(refused) == 5:
                break
        killer.join()
        assert web.ask("GET", "/livez")[0] == 200
        mortal.restart()
        with psycopg.connect(url, autocommit=True) as conn:
            rows = conn.execute("SELECT event_id FROM usage_event").fetchall()
            assert acknowledged <= {event_id for (event_id,) in rows}
            for batch in batches:
                until(partial(_is_stored, web, key, batch), what="Postgres is back")
            count = conn.execute("SELECT count(*), sum(quantity) FROM usage_event").fetchone()

    assert set(refused) == {503}
    assert count == (6000, sum(range(6000)))
