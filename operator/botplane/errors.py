"""The two families of expected errors, and the end of a process; anything else is a bug."""

from __future__ import annotations


class Rejected(Exception):  # noqa: N818 - a verdict on the input, not a failure of ours
    """The user must act: retrying does not help until something changes.

    Attributes:
        reason: CamelCase word for machines, from the table in `docs/reference/reasons.md`.
        message: What is wrong, the value seen, and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Retryable(Exception):  # noqa: N818 - a verdict on the moment
    """Something outside is not ready: the same call may succeed later.

    Attributes:
        reason: CamelCase word for machines.
        message: What was tried and what answered.
        after_seconds: Least time to wait before the next try; None leaves it to the backoff.
    """

    def __init__(self, reason: str, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.after_seconds = after_seconds


class Fenced(Exception):  # noqa: N818 - a verdict on this process
    """Another operator leads: nothing was written, and this process must end."""
