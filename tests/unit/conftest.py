"""Fixtures of unit tests: nothing here leaves the process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from botplane.kube.client import KubeClient
from tests.support.api_server import APIServer, serving


@pytest.fixture
async def served() -> AsyncIterator[tuple[APIServer, KubeClient]]:
    """An empty API server and a client of it."""
    async with serving() as pair:
        yield pair
