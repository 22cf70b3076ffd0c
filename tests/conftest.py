"""Fixtures that every test may ask for."""

from tests.support.fixtures import control_plane, database, postgres, session_state

__all__ = ["control_plane", "database", "postgres", "session_state"]
