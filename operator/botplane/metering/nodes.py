"""Until when the node of a pod stands for what the API shows of it.

The API shows a pod as running for minutes after its node has lost power, and again for a moment
after the power is back: a kubelet renews its Lease before it tells what became of its pods.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

from botplane.metering.evidence import Pod

LOOK_SECONDS: Final = 10.0
"""A kubelet renews its Lease as often."""
ANSWERS: Final = 6
"""They reach back further than a kubelet may take to tell."""
TOLD_WITHIN: Final = timedelta(seconds=30)
"""So long after its first renewal a kubelet may take to tell which of its pods still run."""

Renewals = Mapping[str, datetime]


class Nodes:
    """What the Leases of kubelets said lately.

    Args:
        ask: Returns when each node's Lease was last renewed; None when nobody can tell.
        ticks: Seconds of a clock that never steps.
    """

    def __init__(self, ask: Callable[[], Renewals | None], ticks: Callable[[], float]) -> None:
        self._ask = ask
        self._ticks = ticks
        self._asked_at = float("-inf")
        self._answers: deque[tuple[float, Renewals]] = deque(maxlen=ANSWERS)

    def look(self) -> None:
        """Read the Leases, at most every ten seconds; without an answer the last ones stand."""
        now = self._ticks()
        if now - self._asked_at < LOOK_SECONDS:
            return
        self._asked_at = now
        if (answer := self._ask()) is not None:
            self._answers.append((now, answer))

    def alive_until(self, pod: Pod) -> datetime | None:
        """Return when the kubelet of a pod was last heard of; None when there is no Lease.

        Before the first answer nobody has seen the pod run, however it looks.
        """
        if pod.node is None:
            return None
        return self._answers[-1][1].get(pod.node) if self._answers else pod.created_at

    def proves_until(self, pod: Pod, at: datetime) -> datetime | None:
        """Return until when a pod has run that is shown as running at a time; None: until then.

        That is the last renewal since when its kubelet had the time to tell of another end.
        """
        if pod.node is None or (self._answers and pod.node not in self._answers[-1][1]):
            return None
        now = self._ticks()
        for asked_at, answer in reversed(self._answers):
            renewed = answer.get(pod.node)
            if renewed is not None and (
                renewed <= at - TOLD_WITHIN or asked_at <= now - TOLD_WITHIN.total_seconds()
            ):
                return renewed
        return pod.created_at
