"""A migrated database of the test's own, as the Postgres tests have it."""

from tests.postgres.conftest import conn, migrated, template

__all__ = ["conn", "migrated", "template"]
