"""What the gateway reads of Postgres."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from botplane.errors import Rejected
from botplane.gateway.policy import Caller
from botplane.store.errors import translated_errors
from botplane.store.pool import Role
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

SQL: Final = load_queries(__package__)


@contextmanager
def needed_rights() -> Iterator[None]:
    """Say in a sentence what the database lacks.

    Raises:
        Rejected: It has no schema, or does not let us read.
    """
    try:
        yield
    except (errors.InsufficientPrivilege, errors.UndefinedTable) as error:
        text = (
            f"Postgres refuses the gateway: {error.diag.message_primary}. Run `botplane migrate`"
            f" and give the user of DATABASE_URL the role {Role.GATEWAY}."
        )
        raise Rejected("SettingInvalid", text) from None


def callers(conn: Connection[Any]) -> dict[bytes, Caller]:
    """Return the bots whose keys are valid, by SHA-256 of the key.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        rows = conn.execute(SQL["callers"]).fetchall()
    return {bytes(mark): Caller(tenant_id=t, bot_id=b) for mark, t, b in rows}
