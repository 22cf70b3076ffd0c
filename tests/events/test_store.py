"""Every event counts once, whatever happens on its way."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from botplane.errors import Retryable
from botplane.metering.events import policy
from botplane.metering.events.policy import Trade, UsageEvent, Verdict
from botplane.metering.events.store import (
    Batch,
    IngestKey,
    ensure_partitions,
    find_key,
    ingest,
    register_keys,
    revoke_keys,
    secret_hash,
)
from tests.support.billing import at, whole_content
from tests.support.cut_connection import CutConnection

NOW = at("2026-11-10T12:00:00Z")
TENANT, BOT = uuid4(), uuid4()


def an_event(number: int = 1, **more: Any) -> UsageEvent:
    event = UsageEvent(
        source="bot",
        event_id=f"e-{number}",
        meter="ai_units",
        occurred_at=NOW - timedelta(minutes=number % 600),
        quantity=Decimal(number),
        dims="{}",
    )
    return replace(event, **more)


def a_batch(events: Sequence[UsageEvent], tenant_id: UUID = TENANT) -> Batch:
    return Batch(tenant_id=tenant_id, bot_id=BOT, events=events)


def stored(conn: psycopg.Connection[Any]) -> tuple[int, Decimal]:
    """Return number and sum of the events, after checking that keys and sums say the same."""
    rows = conn.execute("""
        SELECT (SELECT (count(*), COALESCE(sum(quantity), 0))::text FROM usage_event),
            (SELECT (sum(events), COALESCE(sum(quantity), 0))::text FROM usage_hourly),
            (SELECT count(*) FROM usage_event_key), (SELECT count(*) FROM usage_event),
            (SELECT COALESCE(sum(quantity), 0) FROM usage_event)
    """).fetchone()
    assert rows is not None
    assert rows[0] == rows[1]
    assert rows[2] == rows[3]
    return rows[3], rows[4]


def test_batch_sent_three_times_shuffled_and_once_changed_counts_once(
    conn: psycopg.Connection[Any],
) -> None:
    events = [an_event(n) for n in range(1000)]
    shuffled = random.Random(3).sample(events, 1000)
    changed = [replace(e, quantity=e.quantity + 1) if n == 500 else e for n, e in enumerate(events)]

    verdicts = [
        verdict
        for sent in (events, shuffled, changed)
        for verdict in ingest(conn, [a_batch(sent)], NOW)[0]
    ]

    assert Counter(verdicts) == {"accepted": 1000, "duplicate": 1999, "conflict": 1}
    assert verdicts[2500] is Verdict.CONFLICT
    assert stored(conn) == (1000, Decimal(499_500))


def test_repetition_within_one_batch_is_told_as_well(conn: psycopg.Connection[Any]) -> None:
    event, other = an_event(1), an_event(1, quantity=Decimal(9))

    first = ingest(conn, [a_batch([event, event, other])], NOW)
    second = ingest(conn, [a_batch([other, event, other])], NOW)

    assert first == [["accepted", "duplicate", "conflict"]]
    assert second == [["conflict", "duplicate", "conflict"]]
    assert stored(conn) == (1, Decimal(1))


def test_equal_ids_of_two_tenants_are_two_events(conn: psycopg.Connection[Any]) -> None:
    verdicts = ingest(conn, [a_batch([an_event()]), a_batch([an_event()], uuid4())], NOW)

    assert verdicts == [["accepted"], ["accepted"]]
    assert stored(conn) == (2, Decimal(2))


def test_equal_ids_of_two_bots_of_a_tenant_are_a_conflict(conn: psycopg.Connection[Any]) -> None:
    other = Batch(tenant_id=TENANT, bot_id=uuid4(), events=[an_event()])

    assert ingest(conn, [a_batch([an_event()]), other], NOW) == [["accepted"], ["conflict"]]


def test_sums_are_those_of_the_events_by_bot_meter_dims_and_hour(
    conn: psycopg.Connection[Any],
) -> None:
    random_ = random.Random(5)
    events = [
        an_event(
            n,
            meter=random_.choice(["ai_units", "rpc_calls", "premium_features"]),
            occurred_at=NOW - timedelta(seconds=random_.randrange(86_400 * 45)),
            quantity=Decimal(random_.randrange(10**15)).scaleb(-12),
            dims=random_.choice(["{}", '{"a":"x"}', '{"a":"y"}']),
        )
        for n in range(2000)
    ]
    for start in range(0, 2000, 300):
        batches = [
            Batch(tenant_id=TENANT, bot_id=bot, events=events[start + i : start + 300 : 2])
            for i, bot in enumerate((BOT, None))
        ]
        ingest(conn, batches, NOW)

    differences = conn.execute("""
        (SELECT tenant_id, meter, date_bin('1 hour', occurred_at, '2000-01-01 00:00+00'),
            COALESCE(bot_id, '00000000-0000-0000-0000-000000000000'), dims, sum(quantity), count(*)
         FROM usage_event GROUP BY 1, 2, 3, 4, 5
         EXCEPT SELECT * FROM usage_hourly)
        UNION ALL
        (SELECT * FROM usage_hourly
         EXCEPT SELECT tenant_id, meter, date_bin('1 hour', occurred_at, '2000-01-01 00:00+00'),
            COALESCE(bot_id, '00000000-0000-0000-0000-000000000000'), dims, sum(quantity), count(*)
         FROM usage_event GROUP BY 1, 2, 3, 4, 5)
    """).fetchall()
    assert differences == []
    assert stored(conn)[0] == 2000


@pytest.mark.parametrize("nth_commit", [1, 2])
def test_batch_whose_answer_was_lost_is_sent_again(
    conn: psycopg.Connection[Any], migrated: str, nth_commit: int
) -> None:
    batch = a_batch([an_event(n) for n in range(50)])

    def send(connection: psycopg.Connection[Any]) -> None:
        ingest(connection, [a_batch([an_event(1000)])], NOW)
        ingest(connection, [batch], NOW)

    with (
        CutConnection(migrated, nth_commit) as wire,
        psycopg.connect(wire.url, autocommit=True) as broken,
        pytest.raises(Retryable),
    ):
        send(broken)

    send(conn)

    assert stored(conn) == (51, Decimal(1225 + 1000))
    before = whole_content(conn)
    assert Counter(ingest(conn, [batch], NOW)[0]) == {"duplicate": 50}
    assert whole_content(conn) == before


def test_two_writers_with_the_same_events_count_them_once(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    start = threading.Barrier(4)
    told: list[Verdict] = []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        with psycopg.connect(migrated, autocommit=True) as own:
            start.wait()
            for group in range(10):
                events = [an_event(n) for n in range(group * 100, group * 100 + 200)]
                random_.shuffle(events)
                told.extend(ingest(own, [a_batch(events)], NOW)[0])

    workers = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert len(told) == 8000
    assert Counter(told) == {"accepted": 1100, "duplicate": 6900}
    assert stored(conn) == (1100, Decimal(sum(range(1100))))


def test_process_that_dies_inside_a_batch_leaves_nothing(
    conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole_content(conn)
    trade = a_trade()
    for point in ("fill_stage", "store_staged", "trades"):
        with monkeypatch.context() as patched:

            def die(*_: Any) -> None:
                raise KeyboardInterrupt

            if point != "trades":
                broken = {**store_sql(), point: "SELECT 1 / 0"}
                patched.setattr("botplane.metering.events.store.SQL", broken)
            with pytest.raises((KeyboardInterrupt, psycopg.Error)):
                ingest(conn, [a_batch([trade])], NOW, die)

        assert whole_content(conn) == before

    assert ingest(conn, [a_batch([trade])], NOW) == [["accepted"]]


def store_sql() -> dict[str, Any]:
    from botplane.metering.events import store  # noqa: PLC0415 - what the test breaks

    return dict(store.SQL)


def a_trade() -> UsageEvent:
    dims = '{"currency":"USD","pnl":"12.5","trade_id":"t-1","volume":"100"}'
    return an_event(1, meter=policy.TRADES, dims=dims)


def test_new_trades_are_handed_over_once_and_summed_without_their_dims(
    conn: psycopg.Connection[Any],
) -> None:
    given: list[Trade] = []

    def record(_conn: psycopg.Connection[Any], trades: Sequence[Trade]) -> None:
        given.extend(trades)

    ingest(conn, [a_batch([a_trade(), an_event(2)])], NOW, record)
    ingest(conn, [a_batch([a_trade(), an_event(3)])], NOW, record)

    assert [(t.tenant_id, t.bot_id, t.trade_id, t.pnl) for t in given] == [
        (TENANT, BOT, "t-1", Decimal("12.5"))
    ]
    dims = conn.execute("SELECT dims FROM usage_hourly WHERE meter = 'trades'").fetchall()
    assert dims == [({},)]


def test_partitions_are_made_ahead_and_hold_every_event_that_is_accepted(
    conn: psycopg.Connection[Any],
) -> None:
    late, early = an_event(1, occurred_at=NOW - policy.OLDEST), an_event(2, occurred_at=NOW)
    ingest(conn, [a_batch([late, early])], NOW)

    assert ensure_partitions(conn, NOW) == 0
    assert ensure_partitions(conn, NOW) == 0
    homes = conn.execute("SELECT tableoid::regclass::text FROM usage_event ORDER BY 1").fetchall()
    assert homes == [("usage_event_202609",), ("usage_event_202611",)]
    assert stored(conn)[0] == 2


def test_meters_are_those_of_the_table(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute("SELECT meter FROM meter WHERE source <> 'interval'").fetchall()

    assert {meter for (meter,) in rows} == policy.METERS


def test_key_is_found_by_its_secret_until_it_is_revoked(conn: psycopg.Connection[Any]) -> None:
    key = IngestKey(key_id="bot-1", tenant_id=TENANT, bot_id=BOT, secret_hash=secret_hash("s1"))
    register_keys(conn, [key], NOW)
    before = whole_content(conn)
    register_keys(conn, [key], NOW + timedelta(days=1))

    assert whole_content(conn) == before
    assert find_key(conn, "bot-1", "s1") == key
    assert find_key(conn, "bot-1", "s2") is None
    assert find_key(conn, "bot-2", "s1") is None

    rotated = replace(key, secret_hash=secret_hash("s2"))
    register_keys(conn, [rotated], NOW)
    assert (find_key(conn, "bot-1", "s1"), find_key(conn, "bot-1", "s2")) == (None, rotated)

    revoke_keys(conn, [(TENANT, "bot-1")], NOW)
    assert find_key(conn, "bot-1", "s2") is None


def test_key_id_of_another_tenant_takes_nothing_over(conn: psycopg.Connection[Any]) -> None:
    one, other = (
        IngestKey(key_id="same", tenant_id=uuid4(), bot_id=None, secret_hash=secret_hash(secret))
        for secret in ("one", "other")
    )
    register_keys(conn, [one, other], NOW)
    revoke_keys(conn, [(other.tenant_id, "same")], NOW)

    assert find_key(conn, "same", "one") == one
    assert find_key(conn, "same", "other") is None
