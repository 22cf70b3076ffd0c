"""Fixtures that every test may ask for."""

from tests.support.fixtures import botplane, control_plane, database, postgres, session_state

__all__ = ["botplane", "control_plane", "database", "postgres", "session_state"]
