"""What benchmarks print: a figure beside its floor of the same run, and the bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["s", "µs", "MiB", ""]
HEAD = f"{'what':<64} {'floor':>10} {'measured':>10} {'ratio':>7} {'bar':>9}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result.

    Attributes:
        what: What was measured.
        floor: The same, done in the barest way; None where there is no such way.
        measured: In the unit.
        bar: Highest ratio to the floor; without a floor, most units.
        unit: Seconds, microseconds, MiB, or nothing for a count.
    """

    what: str
    floor: float | None
    measured: float
    bar: float
    unit: Unit = "s"

    @property
    def ratio(self) -> float:
        """Measured to floor, or what was measured itself."""
        return self.measured if self.floor is None else self.measured / self.floor

    @property
    def holds(self) -> bool:
        """Whether the bar is kept."""
        return self.ratio <= self.bar

    def __str__(self) -> str:
        floor = "" if self.floor is None else self._shown(self.floor)
        ratio = "" if self.floor is None else f"{self.ratio:.2f} x"
        bar = f"{self.bar:g} {self.unit}".strip() if self.floor is None else f"{self.bar:g} x"
        verdict = "" if self.holds else "  MISSED"
        measured = self._shown(self.measured)
        return f"{self.what:<64} {floor:>10} {measured:>10} {ratio:>7} {bar:>9}{verdict}"

    def _shown(self, value: float) -> str:
        if self.unit == "s":
            return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s"
        return f"{value:.0f} {self.unit}".strip()
