"""`POST /v1/events` on a real server process and a real Postgres."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from botplane.web.bounded import MOST_CONNECTIONS
from tests.events.server import BATCH, SINGLE, Web, a_key, an_event, events, web_process
from tests.faults.pgproxy import PostgresProxy
from tests.support.controlplane.postgres import Postgres

CHUNK = b" " * (1 << 16)


@pytest.fixture(scope="module")
def database_url(postgres: Postgres, template: str) -> Iterator[str]:
    """A database that the tests of this module share; each has tenants of its own."""
    name = f"test_{uuid4().hex[:12]}"
    yield postgres.create_database(name, template=template)
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def web(database_url: str) -> Iterator[Web]:
    with web_process(database_url) as process:
        yield process


@pytest.fixture
def shared(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def stored(conn: psycopg.Connection[Any], tenant_id: Any) -> tuple[int, Decimal]:
    """Return number and sum of a tenant's events; keys and hourly sums must say the same."""
    row = conn.execute(
        """
        SELECT count(*), COALESCE(sum(quantity), 0),
            (SELECT count(*) FROM usage_event_key k WHERE k.tenant_id = %(id)s),
            (SELECT COALESCE(sum(events), 0) FROM usage_hourly h WHERE h.tenant_id = %(id)s),
            (SELECT COALESCE(sum(quantity), 0) FROM usage_hourly h WHERE h.tenant_id = %(id)s)
        FROM usage_event e WHERE e.tenant_id = %(id)s
        """,
        {"id": tenant_id},
    ).fetchone()
    assert row is not None
    assert (row[0], row[0], row[1]) == (row[2], row[3], row[4])
    return row[0], row[1]


def test_batch_gets_a_verdict_for_each_event(web: Web, shared: psycopg.Connection[Any]) -> None:
    tenant_id, bot_id = uuid4(), uuid4()
    key = a_key(shared, tenant_id, bot_id)
    web.post(key, [an_event(1, time="2026-01-01T00:00:00Z")])
    first = an_event(1)
    web.post(key, first, SINGLE)

    status, answer = web.post(
        key, [an_event(2), first, first | {"data": {"value": "9"}}, an_event(3, type="gold"), 7]
    )

    assert status == 200
    assert answer == {
        "accepted": 1,
        "duplicate": 1,
        "conflict": 1,
        "rejected": 2,
        "results": [
            {"id": "e-2", "status": "accepted"},
            {"id": "e-1", "status": "duplicate"},
            {"id": "e-1", "status": "conflict"},
            {
                "id": "e-3",
                "status": "rejected",
                "code": "MeterUnknown",
                "message": "`type` is one of ai_units, bandwidth_gb, premium_features, rpc_calls,"
                " storage_gb_hours, trades.",
            },
            {
                "id": None,
                "status": "rejected",
                "code": "NotAnObject",
                "message": "An event is a JSON object.",
            },
        ],
    }
    assert stored(shared, tenant_id) == (2, Decimal(3))
    bots = shared.execute(
        "SELECT DISTINCT bot_id FROM usage_event WHERE tenant_id = %s", [tenant_id]
    ).fetchall()
    assert bots == [(bot_id,)]


def test_event_older_than_keys_are_kept_is_told_so(
    web: Web, shared: psycopg.Connection[Any]
) -> None:
    tenant_id = uuid4()
    key = a_key(shared, tenant_id)
    shared.execute(
        "INSERT INTO pruned_usage VALUES ('usage_event_key', '2100-01-01')"
        " ON CONFLICT (relation) DO UPDATE SET until = excluded.until"
    )

    _, answer = web.post(key, [an_event(1)])

    shared.execute("DELETE FROM pruned_usage WHERE relation = 'usage_event_key'")
    [result] = answer["results"]
    assert (result["status"], result["code"]) == ("rejected", "TooOld")
    assert result["message"] == "`time` is more than 45 days ago."
    assert stored(shared, tenant_id) == (0, Decimal(0))


def test_tenant_and_bot_come_from_the_key_alone(web: Web, shared: psycopg.Connection[Any]) -> None:
    mine, other = uuid4(), uuid4()
    key = a_key(shared, mine)
    a_key(shared, other)
    claims = {"subject": str(other), "tenantid": str(other), "tenant_id": str(other)}

    web.post(key, [an_event(1, **claims, data={"value": "1", "tenant_id": str(other)})])

    assert stored(shared, mine)[0] == 1
    assert stored(shared, other)[0] == 0


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, 401),
        ("", 401),
        ("Basic abc", 401),
        ("Bearer", 401),
        ("Bearer nothing", 401),
        ("Bearer {id}.wrong", 401),
        ("Bearer {id}.", 401),
        ("Bearer .secret", 401),
        ("Bearer {id}.secret.more", 401),
        ("Bearer ' OR true --.secret", 401),
        ("Bearer " + "x" * 5000, 401),
        ("Bearer {id}.secret", 403),
    ],
)
def test_nothing_is_taken_without_a_key_that_may_write(
    web: Web, shared: psycopg.Connection[Any], authorization: str | None, expected: int
) -> None:
    tenant_id = uuid4()
    reader = a_key(shared, tenant_id, scopes=("usage:read",)).removesuffix(".secret")
    headers = {"content_type": BATCH}
    if authorization is not None:
        headers["authorization"] = authorization.replace("{id}", reader)

    status, answer, _ = web.ask("POST", "/v1/events", json.dumps([an_event()]), **headers)

    assert status == expected
    assert answer["reason"] in {"Unauthenticated", "Forbidden"}
    assert stored(shared, tenant_id)[0] == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[NaN]", 400),
        (b'[{"id": Infinity}]', 400),
        (b"[" * 500_000, 400),
        (b'{"a":' * 100_000, 400),
        (b'["\xff\xfe"]', 400),
        (b'["\\udfff"]', 400),
        (b"[" + b"1," * 1000 + b"1]", 400),
        (b"{}", 400),
        (b'[{"id": ' + b"9" * 1_000_000 + b"}]", 400),
        (b'[{"id": 1e999999}]', 200),
        (b" " * ((1 << 20) + 1), 413),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else str(value),
)
def test_hostile_body_is_refused_and_the_process_lives(
    web: Web, shared: psycopg.Connection[Any], body: bytes, status: int
) -> None:
    key = a_key(shared)

    answered, answer = web.post(key, body)

    assert answered == status, answer
    assert answer.get("accepted", 0) == 0
    assert web.ask("GET", "/livez")[0] == 200


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_other_content_types_are_refused(
    web: Web, shared: psycopg.Connection[Any], content_type: str
) -> None:
    assert web.post(a_key(shared), [an_event()], content_type)[0] == 415


def test_stream_of_a_gibibyte_is_cut_off_early(web: Web, shared: psycopg.Connection[Any]) -> None:
    assert web.process is not None
    before = _resident(web.process.pid)
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=30)
    connection.putrequest("POST", "/v1/events")
    connection.putheader("Authorization", f"Bearer {a_key(shared)}")
    connection.putheader("Content-Type", BATCH)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    sent = 0
    try:
        while sent < 1 << 30:
            connection.send(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
            sent += len(CHUNK)
    except OSError:
        pass
    connection.close()

    assert sent < 64 << 20
    assert _resident(web.process.pid) - before < 32 << 20
    assert web.ask("GET", "/livez")[0] == 200


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        (b"GET /livez HTTP/1.1\r\n", b"x: y\r\n"),
        (b"GET /livez HTTP/1.1\r\nx: ", b"y"),
        (b"GET /", b"x"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x"),
    ],
    ids=["headers", "header", "target", "trailers", "extension"],
)
def test_head_without_end_is_cut_off_early(web: Web, head: bytes, endless: bytes) -> None:
    assert web.process is not None
    before, sent = _resident(web.process.pid), 0
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as client:
        client.sendall(head)
        try:
            while sent < 64 << 20:
                client.sendall(endless * ((1 << 16) // len(endless)))
                sent += 1 << 16
        except OSError:
            pass

    assert sent < 32 << 20
    assert _resident(web.process.pid) - before < 32 << 20
    assert web.ask("GET", "/livez")[0] == 200


def test_connections_that_ask_nothing_keep_nobody_out(web: Web) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS + 10):
            silent = socket.create_connection(("127.0.0.1", web.port), timeout=30)
            stack.enter_context(silent).sendall(b"GET /livez HT")

        assert web.ask("GET", "/livez")[0] == 200


def test_bodies_that_one_tenant_announces_leave_room_for_others(
    web: Web, shared: psycopg.Connection[Any]
) -> None:
    key = a_key(shared)
    head = (
        f"POST /v1/events HTTP/1.1\r\nauthorization: Bearer {key}\r\n"
        f"content-type: {BATCH}\r\ncontent-length: {1 << 20}\r\nexpect: 100-continue\r\n\r\n"
    )
    with ExitStack() as stack:
        answers = []
        for _ in range(70):
            slow = socket.create_connection(("127.0.0.1", web.port), timeout=30)
            stack.enter_context(slow).sendall(head.encode())
            answers.append(slow.recv(64).split(b" ")[1])

        assert Counter(answers) == {b"100": 32, b"429": 38}
        assert web.post(a_key(shared), [an_event()])[0] == 200


def test_unknown_routes_and_methods_are_told(web: Web) -> None:
    assert web.ask("GET", "/v1/nothing")[0] == 404
    assert web.ask("GET", "/v1/usage/")[0] == 404
    status, said, headers = web.ask("GET", "/v1/events")
    assert (status, headers["allow"]) == (405, "POST")
    assert said["message"] == "/v1/events takes POST, not GET."
    status, text, _ = web.ask("GET", "/metrics")
    assert status == 200
    assert 'botplane_usage_events_total{outcome="accepted"}' in text


def test_process_killed_in_the_middle_loses_and_doubles_nothing(
    shared: psycopg.Connection[Any], database_url: str
) -> None:
    tenant_id = uuid4()
    key, random_ = a_key(shared, tenant_id), random.Random(7)
    everything = events(range(3000))
    batches = [everything[start : start + 100] for start in range(0, 3000, 100)]
    told = Counter[str]()
    acknowledged: set[str] = set()
    with web_process(database_url) as web:
        for round_ in range(4):
            victim = web.process
            assert victim is not None
            timer = threading.Timer(random_.uniform(0.0, 0.3), victim.kill)
            timer.start()
            for batch in batches if round_ % 2 else batches[::-1]:
                try:
                    status, answer = web.post(key, batch)
                except (OSError, http.client.HTTPException):
                    break
                assert status == 200
                told.update(result["status"] for result in answer["results"])
                acknowledged.update(result["id"] for result in answer["results"])
            timer.cancel()
            victim.kill()
            victim.wait()
            kept = shared.execute(
                "SELECT event_id FROM usage_event WHERE tenant_id = %s", [tenant_id]
            ).fetchall()
            assert acknowledged <= {event_id for (event_id,) in kept}
            web.start()
        for batch in batches:
            assert web.post(key, batch)[0] == 200

    assert told["conflict"] == 0
    assert stored(shared, tenant_id) == (3000, Decimal(sum(range(3000))))


def test_answer_lost_between_commit_and_its_report_is_503_and_safe_to_repeat(
    shared: psycopg.Connection[Any], database_url: str
) -> None:
    tenant_id = uuid4()
    key = a_key(shared, tenant_id)
    proxy = PostgresProxy(database_url, of=b"COPY staged_event")
    with web_process(proxy.url) as web:
        for start in range(0, 1000, 100):
            batch = events(range(start, start + 100))
            assert web.post(key, events([start]))[0] == 200
            proxy.cut_commits = 1
            assert web.post(key, batch)[0] == 503
            status, answer = web.post(key, batch)
            while status == 503:  # another connection of the pool was cut as well
                status, answer = web.post(key, batch)
            assert status == 200
            assert {result["status"] for result in answer["results"]} <= {
                "accepted",
                "duplicate",
                "conflict",
            }
    proxy.close()

    assert proxy.cuts >= 10
    assert stored(shared, tenant_id) == (1000, Decimal(sum(range(1000))))


def test_two_processes_at_once_count_each_event_once(
    web: Web, shared: psycopg.Connection[Any], database_url: str
) -> None:
    tenant_id = uuid4()
    key, told = a_key(shared, tenant_id), Counter[str]()
    everything = events(range(2000))
    with web_process(database_url) as second:

        def send(process: Web, seed: int) -> None:
            random_ = random.Random(seed)
            order = random_.sample(everything, len(everything))
            for start in range(0, 2000, 200):
                status, answer = process.post(key, order[start : start + 200])
                assert status == 200
                told.update(result["status"] for result in answer["results"])

        senders = [
            threading.Thread(target=send, args=[process, seed])
            for seed, process in enumerate((web, second, web, second))
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert second.end() == 0

    assert told == {"accepted": 2000, "duplicate": 6000}
    assert stored(shared, tenant_id) == (2000, Decimal(sum(range(2000))))


def test_requests_in_flight_are_answered_before_the_process_ends(
    shared: psycopg.Connection[Any], database_url: str
) -> None:
    tenant_id = uuid4()
    key, answers = a_key(shared, tenant_id), list[int]()
    with web_process(database_url) as web:

        def send(number: int) -> None:
            try:
                answers.append(web.post(key, events(range(number * 500, number * 500 + 500)))[0])
            except OSError:
                answers.append(0)

        senders = [threading.Thread(target=send, args=[number]) for number in range(8)]
        for sender in senders:
            sender.start()
        assert web.end(signal.SIGTERM) == 0
        for sender in senders:
            sender.join()

    assert stored(shared, tenant_id)[0] == 500 * answers.count(200)


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")
