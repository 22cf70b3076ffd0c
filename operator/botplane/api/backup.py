"""What backups take of a tenant's quota beside its bots."""

from __future__ import annotations

from typing import Final

from botplane.api.types import Quantity

SIZE_FACTOR: Final = 2
"""The backup volume is this many times as large as the bot's."""

CPU, MEMORY = Quantity("50m"), Quantity("64Mi")
"""What the job of one bot asks for while it runs."""

CPU_LIMIT, MEMORY_LIMIT = Quantity("500m"), Quantity("256Mi")
"""What it gets at most: packing is short and hungry."""
