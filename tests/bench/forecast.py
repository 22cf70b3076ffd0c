"""How good forecasts are, beside the run-rate, for a fleet whose month is known.

`python -m tests.bench.forecast [tenants] [seed ...]` prints the table. Charges are without the fee,
which is known and would flatter.
"""

from __future__ import annotations

import sys

from botplane.usage.forecast.policy import MARKS
from tests.support.fleet import KINDS, Outcome, a_fleet, accuracy, outcomes

TENANTS, SEEDS = 200, (1, 2, 3)
COLUMNS = "{:<12} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8}"


def main(arguments: list[str]) -> int:
    """Print a row for each kind of tenant and mark; return 1 when a bar is missed."""
    tenants = int(arguments[0]) if arguments else TENANTS
    seeds = [int(seed) for seed in arguments[1:]] or SEEDS
    members = [member for seed in seeds for member in a_fleet(seed, tenants)]
    found = {mark: list(outcomes(members, mark)) for mark in MARKS}
    print(COLUMNS.format("tenants", "elapsed", "count", "WAPE", "run-rate", "bias", "covered"))
    for kind in ("all", *KINDS):
        for mark in MARKS:
            print(_row(kind, mark, [o for o in found[mark] if kind in ("all", o.kind)]))
    middle = [accuracy([o for o in found[50] if o.kind == kind]) for kind in KINDS]
    is_worse = any(kind.wape > kind.run_rate_wape for kind in middle)
    return 1 if is_worse or accuracy(found[50]).wape > 0.10 else 0


def _row(kind: str, mark: int, found: list[Outcome]) -> str:
    a = accuracy(found)
    rates = (a.wape, a.run_rate_wape, a.bias, a.coverage)
    return COLUMNS.format(kind, f"{mark} %", a.count, *(f"{rate:.2%}" for rate in rates))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
