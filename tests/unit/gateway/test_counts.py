"""Calls that wait for Postgres: none is lost, none leaves twice under two names."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from botplane.gateway.counts import Counts
from botplane.gateway.policy import Caller

END = datetime(2026, 11, 30, 18, 30, tzinfo=UTC)
"""Of November in India; no period ends within a minute."""
BOTS = [Caller(tenant_id=uuid4(), bot_id=uuid4()) for _ in range(3)]


class Writing(RuleBasedStateMachine):
    """Calls, and writes of them that fail, succeed, or succeed without anybody hearing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts(source="gateway/1")
        self.made = Counter[tuple[UUID | None, bool]]()
        self.stored: dict[tuple[UUID, str], tuple[UUID | None, datetime, int]] = {}

    @rule(bot=st.sampled_from(BOTS), seconds=st.integers(0, 200))
    def call(self, bot: Caller, seconds: int) -> None:
        at = END + timedelta(seconds=seconds - 100)
        self.counts.add(bot, at)
        self.made[bot.bot_id, at < END] += 1

    @rule()
    def a_write_fails(self) -> None:
        self.counts.take()

    @rule()
    def a_write_is_confirmed(self) -> None:
        self.an_answer_is_lost()
        self.counts.confirm()

    @rule()
    def an_answer_is_lost(self) -> None:
        for batch in self.counts.take():
            for event in batch.events:
                said = (batch.bot_id, event.occurred_at, int(event.quantity))
                assert self.stored.setdefault((batch.tenant_id, event.event_id), said) == said

    def teardown(self) -> None:
        """Each call is there once, on its side of the end of the month."""
        while self.counts.waiting:
            self.a_write_is_confirmed()
        told = Counter[tuple[UUID | None, bool]]()
        for bot_id, at, calls in self.stored.values():
            told[bot_id, at < END] += calls
        assert told == self.made


TestWriting = Writing.TestCase
