"""A connection to a migrated database of the test's own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from botplane.store.migrate import migrate
from tests.support.controlplane.postgres import Postgres


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> Iterator[str]:
    """The name of a migrated database that others are copied from."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    migrate(postgres.create_database(name))
    yield name
    postgres.drop_database(name)


@pytest.fixture
def migrated(postgres: Postgres, template: str) -> Iterator[str]:
    """The URL of a migrated database without tenants."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield postgres.create_database(name, template=template)
    postgres.drop_database(name)


@pytest.fixture
def conn(migrated: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as the processes have it."""
    with psycopg.connect(migrated, autocommit=True, options="-c timezone=UTC") as connection:
        yield connection
