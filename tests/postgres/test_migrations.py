"""Migrations: applied once, by one process at a time, and never edited."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from botplane.errors import Rejected, Retryable
from botplane.store.migrate import Migration, migrate, migrations
from tests.support.billing import whole_content

FOLDER = Path(__file__).parents[2] / "operator/botplane/store/migrations"
FILES = sorted(path.name for path in FOLDER.glob("*.sql"))


def test_files_are_numbered_each_once() -> None:
    numbers = [int(name[:3]) for name in FILES]

    assert numbers == sorted(set(numbers))
    assert [migration.name for migration in migrations()] == FILES


def test_second_migration_applies_nothing(database: str) -> None:
    assert migrate(database) == FILES
    with psycopg.connect(database, autocommit=True) as conn:
        before = whole_content(conn)

        assert migrate(database) == []

        assert whole_content(conn) == before


def test_two_migrations_at_once_apply_each_file_once(database: str) -> None:
    start = threading.Barrier(3)
    applied: list[str] = []

    def work() -> None:
        start.wait()
        applied.extend(migrate(database))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert applied == FILES


def test_changed_file_is_refused_with_what_to_do(database: str) -> None:
    files = migrations()
    migrate(database, files)
    edited = [replace(files[0], statements=files[0].statements + "\n"), *files[1:]]

    with pytest.raises(Rejected) as refused:
        migrate(database, edited)

    assert refused.value.reason == "MigrationChanged"
    assert "new migration" in refused.value.message


def test_database_of_a_newer_version_is_left_alone(database: str) -> None:
    migrate(database)

    with pytest.raises(Rejected) as refused:
        migrate(database, migrations()[:-1])

    assert refused.value.reason == "SchemaTooNew"


def test_failed_file_leaves_nothing_behind_and_keeps_the_files_before_it(database: str) -> None:
    good = Migration(version=1, name="001_good.sql", statements="CREATE TABLE a ()")
    bad = Migration(version=2, name="002_bad.sql", statements="CREATE TABLE b (); SELECT 1/0")

    with pytest.raises(errors.DivisionByZero):
        migrate(database, [good, bad])

    with psycopg.connect(database) as conn:
        assert conn.execute("SELECT to_regclass('a'), to_regclass('b')").fetchone() == ("a", None)
    fixed = replace(bad, statements="CREATE TABLE b ()")
    assert migrate(database, [good, fixed]) == ["002_bad.sql"]


def test_table_in_use_makes_the_migration_retryable(database: str) -> None:
    first = Migration(version=1, name="001_a.sql", statements="CREATE TABLE a ()")
    second = Migration(version=2, name="002_b.sql", statements="ALTER TABLE a ADD b integer")
    migrate(database, [first])

    with psycopg.connect(database) as reader:
        reader.execute("SELECT FROM a")
        with pytest.raises(Retryable):
            migrate(database, [first, second])

    assert migrate(database, [first, second]) == ["002_b.sql"]


def test_rows_that_came_before_their_partition_move_into_it(database: str) -> None:
    migrate(database)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO usage_hourly SELECT gen_random_uuid(), 'rpc_calls', hour,"
            " gen_random_uuid(), '{}', 1, 1"
            " FROM generate_series('2001-01-31 22:00Z'::timestamptz, '2001-02-01 01:00Z',"
            " interval '1 hour') AS hour"
        )

        made = conn.execute("SELECT ensure_partitions('2001-01-15', '2001-02-02')").fetchone()

        assert made == (4,)
        counts = conn.execute(
            "SELECT (SELECT count(*) FROM usage_hourly_200101),"
            " (SELECT count(*) FROM usage_hourly_200102),"
            " (SELECT count(*) FROM usage_hourly_default)"
        ).fetchone()
        assert counts == (2, 2, 0)
        again = conn.execute("SELECT ensure_partitions('2001-01-15', '2001-02-02')").fetchone()
        assert again == (0,)
