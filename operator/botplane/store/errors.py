"""The one translation of database errors into the two families of expected errors."""

from __future__ import annotations

from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors
from psycopg_pool import PoolTimeout, TooManyRequests

from botplane.errors import Fenced, Rejected, Retryable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOST_A_RACE = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.UniqueViolation,
    errors.ExclusionViolation,
    errors.QueryCanceled,
)
_UNREACHABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
    TooManyRequests,
)
_OLD_EPOCH = "BP001"
"""What migration 014 says to an operator that leads no longer."""


@contextmanager
def translated_errors(
    constraints: Mapping[str, Rejected] = MappingProxyType({}),
) -> Iterator[None]:
    """Raise what the database refused as `Rejected` or `Retryable`; leave bugs as they are.

    Args:
        constraints: Verdicts on constraints that a user can violate, by constraint name.

    Raises:
        Rejected: A named constraint was violated.
        Retryable: The database is away, or somebody else changed the same rows.
        Fenced: Another operator has taken over.
    """
    try:
        yield
    except (errors.UniqueViolation, errors.ExclusionViolation) as error:
        verdict = constraints.get(error.diag.constraint_name or "")
        if verdict is not None:
            raise verdict from error
        raise Retryable("DatabaseBusy", f"Another writer was faster: {error}") from error
    except _LOST_A_RACE as error:
        raise Retryable("DatabaseBusy", f"Another writer holds the rows: {error}") from error
    except _UNREACHABLE as error:
        raise Retryable("DatabaseUnavailable", f"Postgres did not answer: {error}") from error
    except psycopg.DatabaseError as error:
        if error.sqlstate != _OLD_EPOCH:
            raise
        raise Fenced(f"Nothing was written: {error.diag.message_primary}.") from error
