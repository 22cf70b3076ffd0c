from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from botplane.store.migrate import migrate
from tests.faults.metering_world import World
from tests.faults.proxied import ProxiedOperator
from tests.faults.rehearsal import Reference
from tests.support.controlplane.cluster import Cluster
from tests.support.installation import Installation


@pytest.fixture(scope="package")
def proxied(
    botplane: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxiedOperator]:
    """The operator behind a proxy, for the tests of this folder."""
    if botplane.cluster.audit_log is None:
        pytest.skip("the audit log of this cluster is not ours to read")
    operator = ProxiedOperator(botplane, tmp_path_factory.mktemp("proxy"))
    yield operator
    operator.close()


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, Reference]:
    """What scenarios come to, once they were played; shared by the files of a session."""
    return {}


@pytest.fixture
def world(control_plane: Cluster) -> Iterator[World]:
    """A world for metering, alone in the cluster."""
    world = World(control_plane)
    yield world
    world.close()


@pytest.fixture
def usage(database: str) -> str:
    """The URL of an empty database with our schema."""
    migrate(database)
    return database


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the metering processes of a test write."""
    return tmp_path / "metering.log"
