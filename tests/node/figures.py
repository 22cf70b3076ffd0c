"""What the tests have measured, as a table for the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


class Figures:
    """Named rows of text, in the order in which they came."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str]] = []

    def add(self, what: str, value: str) -> None:
        """Take a row."""
        self._rows.append((what, value))

    def lines(self) -> Iterator[str]:
        """Yield the table; nothing when nothing was measured."""
        if self._rows:
            yield ""
            yield "measured on the real node"
        width = max((len(what) for what, _ in self._rows), default=0)
        for what, value in self._rows:
            yield f"  {what.ljust(width)}  {value}"


FIGURES = pytest.StashKey[Figures]()
