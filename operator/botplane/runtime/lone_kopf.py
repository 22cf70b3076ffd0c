"""kopf without the client libraries that it would load.

kopf imports `kubernetes` and `pykube` where they are installed, only to know their classes: 11 MB
and 0.4 s of every start. Both are in our image, for metering and for scripts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Make libraries look as if they were not installed, unless somebody has loaded them."""
    absent = [name for name in names if name not in sys.modules]
    # None is how the import system marks a module that shall not be found.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with _hidden("kubernetes", "pykube"):
    import kopf

__all__ = ["kopf"]
