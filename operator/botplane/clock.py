"""The one clock: everything else takes the time as an argument."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the present moment, aware, UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the clock itself
