"""What the PostgreSQL server of the tests promises."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.controlplane.postgres import Postgres


def test_each_test_has_an_empty_database_of_its_own(database: str) -> None:
    with psycopg.connect(database) as connection:
        tables = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()

    assert tables == (0,)


def test_a_database_can_be_a_copy_of_a_prepared_one(postgres: Postgres) -> None:
    def prepare(url: str) -> None:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE prepared AS SELECT 7 AS answer")

    postgres.ensure_database("template_for_copies", prepare)
    url = postgres.create_database("copied", template="template_for_copies")

    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM prepared").fetchone() == (7,)
    postgres.drop_database("copied")


def test_what_was_committed_survives_a_killed_server(postgres: Postgres, database: str) -> None:
    if postgres.state is None:
        pytest.skip("the server is not ours to kill")
    connection = psycopg.connect(database)
    connection.execute("CREATE TABLE kept AS SELECT 7 AS answer")
    connection.commit()
    connection.execute("INSERT INTO kept VALUES (8)")

    postgres.kill9()
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    postgres.restart()

    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchall() == [(7,)]
