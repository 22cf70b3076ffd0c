import pytest

from tests.support.installation import Installation
from tests.support.world import World


@pytest.fixture
def world(botplane: Installation) -> World:
    return World(botplane)
