"""Where the control plane keeps things: built programs in a cache, one run in a state folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent


def cache_folder() -> Path:
    """Return the folder that outlives checkouts and runs."""
    if chosen := os.environ.get("BOTPLANE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "botplane"


def state_folder() -> Path:
    """Return the folder of this checkout's own control plane."""
    if chosen := os.environ.get("BOTPLANE_STATE"):
        return Path(chosen).expanduser().resolve()
    digest = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:12]
    return cache_folder() / "run" / digest
