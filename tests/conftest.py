"""Fixtures that every test may ask for."""

from hypothesis import HealthCheck, settings

from tests.support.fixtures import botplane, control_plane, database, postgres, session_state

__all__ = ["botplane", "control_plane", "database", "postgres", "session_state"]

# A test promises no time, and a busy machine breaks none.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
