"""The client of bots: what `record` took arrives once, whatever dies on the way."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from botplane.client import (
    BATCH_BYTES,
    FILE_BYTES,
    ClientOptions,
    ClosedTrade,
    Spool,
    SpoolError,
    UsageClient,
)
from tests.events.server import Web, a_key, web_process

FAST = ClientOptions(linger_seconds=0.02, longest_backoff_seconds=0.1)
AWAY = "http://127.0.0.1:9"
BOT = """
import sys
from pathlib import Path
from botplane.client import ClientOptions, UsageClient
url, key, spool, first = sys.argv[1:]
client = UsageClient(url, key, Path(spool), ClientOptions(linger_seconds=0.01))
for number in range(int(first), int(first) + 100_000):
    client.record("ai_units", number, event_id=f"e-{number}")
    print(number, flush=True)
"""


@pytest.fixture
def web(migrated: str) -> Iterator[Web]:
    with web_process(migrated) as process:
        yield process


def url_of(web: Web) -> str:
    return f"http://127.0.0.1:{web.port}"


def counted(conn: psycopg.Connection[Any], tenant_id: Any) -> tuple[int, Decimal]:
    row = conn.execute(
        "SELECT count(*), COALESCE(sum(quantity), 0) FROM usage_event WHERE tenant_id = %s",
        [tenant_id],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def rejected(folder: Path) -> list[str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line)["why"] for line in lines]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def stand_in(answers: list[bytes]) -> Iterator[str]:
    """Give the address of a server that gives these answers; an address is a redirection."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = answers.pop(0)
            if body.startswith(b"http"):
                self.send_response(302)
                self.send_header("Location", body.decode())
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_events_arrive_and_leave_the_disk(
    web: Web, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tenant_id = uuid4()
    client = UsageClient(url_of(web), a_key(conn, tenant_id), tmp_path, FAST)
    for number in range(1200):
        client.record("ai_units", Decimal(number), {"model": "größe\n" if number == 7 else "s"})
    trade = ClosedTrade(
        trade_id="t-1",
        pnl=Decimal("-2.50"),
        volume=Decimal(100),
        currency="USD",
        closed_at=datetime.now(UTC),
    )
    client.trade(trade)
    client.trade(trade)
    client.trade(replace(trade, pnl=Decimal("2.50")))

    assert client.close(30)

    assert counted(conn, tenant_id)[0] == 1200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "rejected.jsonl"]
    # A line break is no dim; and a trade has one result.
    assert rejected(tmp_path) == ["DimsInvalid", "conflict"]


def test_events_wait_on_disk_while_nobody_answers(
    web: Web, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tenant_id = uuid4()
    key = a_key(conn, tenant_id)
    first = UsageClient(AWAY, key, tmp_path, FAST)
    for number in range(10):
        first.record("ai_units", number)
    assert not first.close(0.2)

    second = UsageClient(url_of(web), key, tmp_path, FAST)

    assert second.close(30)
    assert counted(conn, tenant_id) == (10, Decimal(45))


def test_bot_and_server_killed_again_and_again_lose_and_double_nothing(
    web: Web, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tenant_id, random_ = uuid4(), random.Random(11)
    key, taken, first = a_key(conn, tenant_id), set[int](), 0
    for round_ in range(4):
        command = [sys.executable, "-c", BOT, url_of(web), key, str(tmp_path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bot:
            assert bot.stdout is not None
            for line in bot.stdout:
                taken.add(int(line))
                if len(taken) % 150 == 0 and random_.random() < 0.5:
                    break
                if round_ % 2 and len(taken) % 97 == 0:
                    web.end(signal.SIGKILL)
            bot.kill()
            taken.update(int(line) for line in bot.stdout.read().splitlines() if line)
        if web.process is None:
            web.start()
        first = max(taken) + 2

    assert UsageClient(url_of(web), key, tmp_path, FAST).close(60)
    kept = {
        int(event_id.removeprefix("e-"))
        for (event_id,) in conn.execute(
            "SELECT event_id FROM usage_event WHERE tenant_id = %s", [tenant_id]
        )
    }
    # The process may have been killed between the disk and the report of one event each time.
    assert taken <= kept
    assert len(kept - taken) <= 4
    assert counted(conn, tenant_id) == (len(kept), Decimal(sum(kept)))


def test_wrong_key_keeps_the_events_until_it_is_right(
    web: Web, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tenant_id = uuid4()
    client = UsageClient(url_of(web), "nobody.wrong", tmp_path, FAST)
    client.record("ai_units", 1)
    assert not client.close(0.5)

    assert UsageClient(url_of(web), a_key(conn, tenant_id), tmp_path, FAST).close(10)
    assert counted(conn, tenant_id)[0] == 1


def test_event_that_is_too_old_is_kept_apart_and_blocks_nothing(
    web: Web, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tenant_id, now = uuid4(), datetime.now(UTC)
    moments = iter([now - timedelta(days=46), now])
    options = ClientOptions(linger_seconds=0.02, clock=lambda: next(moments))
    client = UsageClient(url_of(web), a_key(conn, tenant_id), tmp_path, options)
    client.record("ai_units", 1)
    client.record("ai_units", 2)

    assert client.close(10)
    assert counted(conn, tenant_id) == (1, Decimal(2))
    assert rejected(tmp_path) == ["TooOld"]


def test_large_events_are_sent_in_parts(
    web: Web, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tenant_id = uuid4()
    dims = {f"d{number}": "\U0001f600" * 128 for number in range(8)}
    client = UsageClient(AWAY, a_key(conn, tenant_id), tmp_path, FAST)
    for _ in range(200):
        client.record("ai_units", 1, dims)
    client.close(0)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.events")) > 2 * BATCH_BYTES

    client = UsageClient(url_of(web), a_key(conn, tenant_id), tmp_path, FAST)
    assert client.close(30)
    assert counted(conn, tenant_id)[0] == 200


def test_full_spool_refuses_instead_of_dropping(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=100)
    spool.append(b"x" * 60)

    with pytest.raises(SpoolError):
        spool.append(b"y" * 60)

    assert spool.oldest() == (tmp_path / f"{1:016}.events", [b"x" * 60])
    spool.remove(tmp_path / f"{1:016}.events")
    spool.append(b"y" * 60)
    spool.close()


def test_full_disk_refuses_whole_events_and_takes_them_when_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=1000)
    spool.append(b"before")
    with disk_of(10):
        for _ in range(3):
            with pytest.raises(SpoolError):
                spool.append(b"x" * 60)

    spool.append(b"after")

    kept = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.events")))
    assert kept == b"before\nafter\n"
    spool.close()


def test_long_outage_is_sent_in_small_files(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=1 << 30)
    line = b"x" * (FILE_BYTES // 8)
    for _ in range(40):
        spool.append(line)

    sizes = [path.stat().st_size for path in tmp_path.glob("*.events")]
    assert sum(sizes) == 40 * (len(line) + 1)
    assert max(sizes) <= FILE_BYTES + len(line)
    spool.close()


def test_closed_spool_takes_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=1000)
    spool.close()

    with pytest.raises(SpoolError, match="closed"):
        spool.append(b"x")


def test_foreign_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.events").write_text("mine\n")
    spool = Spool(tmp_path, most_bytes=1000)

    assert spool.is_empty()
    spool.close()
    assert (tmp_path / "notes.events").read_text() == "mine\n"


def test_folder_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SpoolError, match="can be written to"):
        Spool(tmp_path / "file" / "spool", most_bytes=1000)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b'{"results": null}',
        b'{"results": {"e": 1}}',
        b'{"results": ["accepted"]}',
        b'{"results": [{}]}',
        b'{"results": [{"status": "queued"}]}',
        b"[" * 100_000,
    ],
    ids=lambda answer: answer[:30].decode(),
)
def test_answer_of_somebody_else_is_no_verdict(answer: bytes, tmp_path: Path) -> None:
    answers = [answer, b'{"results": [{"status": "accepted"}]}']
    with stand_in(answers) as url:
        client = UsageClient(url, "a.b", tmp_path, FAST)
        client.record("ai_units", 1)

        assert client.close(10)
    assert not answers


def test_key_is_sent_to_nobody_whom_an_answer_names(tmp_path: Path) -> None:
    accepted = b'{"results": [{"status": "accepted"}]}'
    theirs = [accepted]
    with stand_in(theirs) as other, stand_in([other.encode(), accepted]) as url:
        client = UsageClient(url, "a.b", tmp_path, FAST)
        client.record("ai_units", 1)

        assert client.close(10)
    assert theirs == [accepted]


def test_refused_events_do_not_hold_up_others_where_they_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "rejected.jsonl").mkdir()
    with stand_in([b'{"results": [{"status": "rejected"}]}']) as url:
        client = UsageClient(url, "a.b", tmp_path, FAST)
        client.record("ai_units", 1)

        assert client.close(10)


def test_file_that_the_disk_has_damaged_does_not_hold_up_others(
    web: Web, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tenant_id = uuid4()
    (tmp_path / f"{1:016}.events").write_bytes(b'{"id":"\xff\xfe"}\n\0\0\0\n')
    client = UsageClient(url_of(web), a_key(conn, tenant_id), tmp_path, FAST)
    client.record("ai_units", 1)

    assert client.close(10)
    assert counted(conn, tenant_id)[0] == 1
    assert rejected(tmp_path) == ["HTTP 400", "HTTP 400"]


@pytest.mark.parametrize(
    "value",
    ["", "abc", "-1", "1e5", Decimal("NaN"), Decimal("Infinity"), 10**18, "0.1234567890123"],
)
def test_value_that_botplane_would_refuse_is_refused_at_once(value: Any, tmp_path: Path) -> None:
    client = UsageClient(AWAY, "a.b", tmp_path, FAST)

    with pytest.raises(ValueError, match="18 digits and 12 decimals"):
        client.record("ai_units", value)

    assert client.close(0)


@pytest.mark.parametrize("value", [0.1, True, None, b"1"])
def test_value_that_is_not_exact_is_refused(value: Any, tmp_path: Path) -> None:
    client = UsageClient(AWAY, "a.b", tmp_path, FAST)
    trade = ClosedTrade(
        trade_id="t-1", pnl=value, volume=Decimal(1), currency="USD", closed_at=datetime.now(UTC)
    )

    with pytest.raises(TypeError):
        client.record("ai_units", value)
    with pytest.raises(TypeError):
        client.trade(trade)

    assert client.close(0)


def test_trade_without_a_zone_is_refused_at_once(tmp_path: Path) -> None:
    client = UsageClient(AWAY, "a.b", tmp_path, FAST)
    trade = ClosedTrade(
        trade_id="t-1",
        pnl=Decimal(1),
        volume=Decimal(1),
        currency="USD",
        closed_at=datetime(2026, 11, 26),  # noqa: DTZ001 - what a bot may do
    )

    with pytest.raises(ValueError, match="zone"):
        client.trade(trade)

    assert client.close(0)


def test_line_that_was_cut_by_a_crash_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / f"{3:016}.events").write_bytes(b"whole\nha")
    spool = Spool(tmp_path, most_bytes=1000)
    spool.append(b"next")

    first = spool.oldest()
    assert first == (tmp_path / f"{3:016}.events", [b"whole"])
    spool.remove(first[0])
    assert spool.oldest() == (tmp_path / f"{4:016}.events", [b"next"])
    spool.close()


def test_folder_belongs_to_one_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=1000)

    with pytest.raises(SpoolError):
        Spool(tmp_path, most_bytes=1000)

    spool.close()
    Spool(tmp_path, most_bytes=1000).close()


def test_client_needs_only_the_standard_library() -> None:
    code = "import sys, botplane.client; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    ours = {name for name in loaded if name.startswith("botplane")}
    assert ours == {"botplane", "botplane.client"}
    assert not {"psycopg", "pydantic", "httpx", "aiohttp"} & set(loaded)
