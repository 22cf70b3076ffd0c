"""What a probe of the network found: `isolation-check` records it, the operator reads it. Pure."""

from __future__ import annotations

from typing import Final

RECORD: Final = "network-isolation"
"""ConfigMap in the operator's namespace that holds the outcome of the last probe."""

POLICIES: Final = "networkPolicies"
"""Key of the outcome: `Enforced` or `Ignored`."""

PROBED_TIME: Final = "probedTime"
"""Key of when it was found, RFC 3339: for people."""

COMMAND: Final = "`botplane isolation-check --probe-image <image> --record`"
"""What a person runs for a new outcome."""

ENFORCED: Final = "Enforced"
IGNORED: Final = "Ignored"
