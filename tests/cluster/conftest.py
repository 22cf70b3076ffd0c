import pytest

from tests.support.installation import Installation
from tests.support.world import World


@pytest.fixture
def world(botplane: Installation) -> World:
    return World(botplane)


@pytest.fixture(scope="module")
def world_of_module(botplane: Installation) -> World:
    return World(botplane)
