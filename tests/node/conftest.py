"""What only real pods can prove. Run it with `make test-node`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.node.containers import Containers, import_bot
from tests.node.diary import Diaries
from tests.node.figures import FIGURES, Figures
from tests.support.controlplane.cluster import Cluster
from tests.support.controlplane.node import parts
from tests.support.installation import Installation
from tests.support.world import World


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "tests/node/" in item.nodeid]
    if here and (reason := _why_not()):
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = Figures()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash[FIGURES].lines():
        terminalreporter.write_line(line)


def _why_not() -> str | None:
    if os.environ.get("CLUSTER") != "node":
        return "needs a real node: make test-node"
    return parts.why_not()


@pytest.fixture(scope="session")
def node(control_plane: Cluster) -> Cluster:
    """The cluster with a real node, which knows the image of the test bot."""
    import_bot(control_plane.state)
    return control_plane


@pytest.fixture(scope="session")
def diaries(node: Cluster) -> Iterator[Diaries]:
    """What the containers write down themselves."""
    kept = Diaries(node.state)
    yield kept
    kept.close()


@pytest.fixture
def world(node: Cluster, botplane: Installation) -> World:
    assert node.kind == "node"
    return World(botplane)


@pytest.fixture
def containers(world: World) -> Containers:
    return Containers(world)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Takes what was measured, for the table at the end."""
    return request.config.stash[FIGURES]
