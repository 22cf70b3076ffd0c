"""What was answered and is not in Postgres yet. Pure.

Calls are counted by bot and minute and leave as usage events, one each; a group that was not
confirmed leaves again as it is, under the same ids, so that each call counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

from botplane.gateway.policy import Caller
from botplane.metering.events.policy import UsageEvent
from botplane.metering.events.store import Batch

METER: Final = "rpc_calls"


@dataclass(kw_only=True, slots=True)
class _Count:
    first_at: datetime
    calls: int = 0


@dataclass(kw_only=True)
class Counts:
    """The calls that one process has answered.

    Attributes:
        source: Source of its usage events; no other process may ever have the same.
    """

    source: str
    _pending: dict[tuple[Caller, datetime], _Count] = field(default_factory=dict)
    _leaving: list[Batch] = field(default_factory=list)
    _groups: int = 0

    def add(self, caller: Caller, at: datetime) -> None:
        """Count a call, taken at a moment in UTC."""
        minute = at.replace(second=0, microsecond=0)
        count = self._pending.setdefault((caller, minute), _Count(first_at=at))
        count.calls += 1

    @property
    def waiting(self) -> int:
        """Calls that Postgres has not confirmed."""
        leaving = sum(int(e.quantity) for batch in self._leaving for e in batch.events)
        return leaving + sum(count.calls for count in self._pending.values())

    def take(self) -> Sequence[Batch]:
        """Return the group to write next, the same one until it is confirmed."""
        if not self._leaving and self._pending:
            self._groups += 1
            self._leaving = [
                Batch(tenant_id=caller.tenant_id, bot_id=caller.bot_id, events=[self._event(n, c)])
                for n, ((caller, _), c) in enumerate(self._pending.items())
            ]
            self._pending = {}
        return self._leaving

    def confirm(self) -> None:
        """Forget the group that was taken: it is on disk."""
        self._leaving = []

    def _event(self, number: int, count: _Count) -> UsageEvent:
        return UsageEvent(
            source=self.source,
            event_id=f"{self._groups}-{number}",
            meter=METER,
            occurred_at=count.first_at,
            quantity=Decimal(count.calls),
            dims="{}",
        )
