"""The control plane and PostgreSQL of a test session.

Nothing is started until a test asks for it, and nothing survives the session: a watchdog ends
what was started, even if the session is killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support import rights
from tests.support.controlplane import cluster as clusters
from tests.support.controlplane import postgres as servers
from tests.support.controlplane import watchdog
from tests.support.installation import ROOT, Installation
from tests.support.volumes import standard_volumes

ROOMY_BYTES = 8 << 30
PLANS = tuple(yaml.safe_load_all((ROOT / "manifests/examples/10-plans.yaml").read_text()))


@contextmanager
def state_folder() -> Iterator[Path]:
    """Yield a state folder; what was started in it ends with it.

    It lies in memory where there is room: a database for each test is four times faster there.
    """
    memory = Path("/dev/shm")
    is_roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOMY_BYTES
    state = Path(tempfile.mkdtemp(prefix="botplane-test-", dir=memory if is_roomy else None))
    # The database server of root runs as another user, who must get through.
    state.chmod(0o711)
    guard = watchdog.watch_over(state)
    yield state
    guard.communicate()


@pytest.fixture(scope="session")
def session_state() -> Iterator[Path]:
    """A state folder that is ended and removed with the session."""
    with state_folder() as state:
        yield state


@pytest.fixture(scope="session")
def control_plane(session_state: Path) -> Iterator[clusters.Cluster]:
    """A cluster, shared by all tests of the session."""
    found = clusters.start(session_state, definitions=[ROOT / "crds"])
    yield found
    if found.audit_log is not None and (folder := os.environ.get("BOTPLANE_RIGHTS_TO")):
        rights.record(found.audit_log, Path(folder))
    if found.kind in {"embedded", "node"}:
        found.stop()


@pytest.fixture(scope="session")
def postgres(session_state: Path) -> Iterator[servers.Postgres]:
    """A PostgreSQL server, shared by all tests of the session."""
    server = servers.start(session_state)
    yield server
    server.stop()


@pytest.fixture
def database(postgres: servers.Postgres) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def botplane(control_plane: clusters.Cluster, postgres: servers.Postgres) -> Iterator[Installation]:
    """Install botplane and start it: operator and metering, shared by all tests of the session.

    A test makes tenants of its own and leaves the processes running as it found them.
    """
    installed = Installation.into(control_plane, postgres.ensure_database("botplane"))
    installed.start("operator")
    installed.start("metering")
    installed.wait_for_leader()
    installed.apply(*PLANS)
    if control_plane.kind in {"embedded", "node"}:
        installed.apply(*standard_volumes())
    yield installed
    installed.stop("operator", "metering")
