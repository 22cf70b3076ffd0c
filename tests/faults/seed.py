"""Run the test that must catch each seeded bug, and print which did: `make test-seeded`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.seeded import BUGS
from tests.support.installation import ROOT

HERE = Path(__file__).parent
CLUSTER, FAULTS = "tests/cluster/test_", "tests/faults/test_"
SEEDS = f"{FAULTS}metering_seeds.py"
CAUGHT_BY = {
    "finalizer-forgotten": f"{CLUSTER}tenants.py::test_a_deleted_tenant_settles_and_goes_with_its_"
    "namespace",
    "finalizer-removed-before-the-namespace": f"{FAULTS}crashes.py",
    "written-once-is-written-for-ever": f"{CLUSTER}drift.py::test_a_deleted_object_is_back"
    "[NetworkPolicy-default-deny]",
    "drift-is-not-seen": f"{CLUSTER}drift.py::test_an_edited_object_is_as_before"
    "[ResourceQuota-plan]",
    "pruning-forgotten": f"{CLUSTER}bots.py::test_an_autoscaler_that_is_no_longer_wanted_goes",
    "deleted-by-name": f"{FAULTS}neighbours.py::test_a_delete_never_meets_another_object",
    "foreign-namespace-taken": f"{CLUSTER}tenants.py::test_a_foreign_namespace_is_not_touched",
    "ready-before-it-is-closed": f"{FAULTS}api_faults.py::test_no_tenant_was_ready_before_it_was_"
    "closed",
    "suspension-forgotten": f"{CLUSTER}tenants.py::test_suspending_a_tenant_stops_its_bots_and_"
    "resuming_starts_them",
    "keys-not-derived": f"{CLUSTER}steady_state.py::test_a_restarted_operator_writes_nothing",
    "retry-after-ignored": f"{FAULTS}api_faults.py::test_retry_after_is_obeyed",
    "watches-give-up": f"{FAULTS}neighbours.py::test_an_outage_of_the_api_server_restarts_nothing",
    "a-bug-ends-the-operator": f"{FAULTS}neighbours.py::test_a_tenant_that_makes_passes_fail_"
    "disturbs_nobody",
    "lost-events-stay-lost": f"{FAULTS}api_faults.py::test_a_watch_that_fails_is_made_good"
    "[side by side]",
    "status-written-each-time": f"{FAULTS}conditions.py::test_a_pass_without_a_transition_keeps_"
    "the_times_of_conditions",
    "lease-not-released": f"{CLUSTER}outages.py::test_the_second_replica_takes_over_before_a_lease_"
    "would_run_out",
    "old-leaders-are-not-fenced": f"{FAULTS}leadership.py::test_a_leader_that_wakes_up_overwrites_"
    "nothing_of_its_successor",
    "released-before-the-commit": f"{FAULTS}metering.py::test_no_pod_goes_while_postgres_is_down",
    "forgotten-before-the-commit": SEEDS,
    "later-ends-replace-earlier-ones": SEEDS,
    "vanished-is-billed-until-now": SEEDS,
    "heartbeat-of-a-dark-node": SEEDS,
    "stale-lists-are-believed": SEEDS,
    "a-lease-nobody-told-of-is-none": SEEDS,
    "a-size-holds-from-the-beginning": SEEDS,
    "a-row-for-each-look": SEEDS,
    "complete-before-it-is-settled": SEEDS,
    "released-without-an-end": SEEDS,
    "standby-not-waited-for": f"{FAULTS}metering_failover.py::test_no_pod_goes_before_a_"
    "synchronous_standby_has_its_usage",
    "all-let-go-at-once": f"{FAULTS}metering_many.py::test_a_burst_of_ends_leaves_no_pod_behind_"
    "and_spares_the_api_server",
    "estimated-in-silence": f"{FAULTS}metering_alert.py",
    "hold-not-heard": f"{CLUSTER}lifecycle.py::test_a_deleted_tenants_namespace_is_kept_and_its_"
    "name_is_not_free",
    "unproven-isolation-is-believed": f"{CLUSTER}network_isolation.py::test_where_isolation_must_"
    "be_proven_only_new_tenants_wait_for_it",
    "hold-comes-too-late": f"{CLUSTER}lifecycle.py::test_a_hold_that_is_set_while_a_tenant_goes_"
    "keeps_its_namespace",
}
LONGEST = 160
ROW = "{:40} {:6} {:>4}  {}"
SETTINGS = {
    "finalizer-removed-before-the-namespace": {"BOTPLANE_SCENARIO": "delete"},
    # Its test takes longer than a sample may.
    "watches-give-up": {"BOTPLANE_FAULTS": "all"},
}
# A package that is the real one, with the bug put in as soon as it is imported.
SHIM = """
import sys
sys.path.insert(0, {here!r})
__path__ = [{real!r}]
import seeded
seeded.apply()
"""


def main(names: list[str]) -> int:
    """Try the named bugs, or all, and print a table; return 1 unless each was caught."""
    tried = names or sorted(BUGS)
    missed = []
    print(ROW.format("bug", "caught", "s", "test"))
    for name in tried:
        began = time.monotonic()
        why = failure(name)
        verdict = "yes" if why else "NO"
        print(ROW.format(name, verdict, f"{time.monotonic() - began:.0f}", CAUGHT_BY[name]))
        print(f"    {why}\n" * bool(why), end="", flush=True)
        missed += [] if why else [name]
    print(f"{len(tried) - len(missed)} of {len(tried)} seeded bugs were caught")
    return 1 if missed else 0


def failure(name: str) -> str:
    """Return how the test that is responsible for a bug fails with it; empty when it passes."""
    with tempfile.TemporaryDirectory(prefix="botplane-seeded-") as folder:
        shim = Path(folder) / "botplane" / "__init__.py"
        shim.parent.mkdir()
        shim.write_text(SHIM.format(here=str(HERE), real=str(ROOT / "operator" / "botplane")))
        settings = {
            "BOTPLANE_SEEDED_BUG": name,
            "BOTPLANE_COMMAND": f"{sys.executable} {HERE / 'seeded.py'}",
            "METERING_CODE": folder,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", CAUGHT_BY[name]]
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=os.environ | settings | SETTINGS.get(name, {}),
            stdout=subprocess.PIPE,
            text=True,
        )
    # 1: tests ran and one failed. Anything else is a broken run and proves nothing.
    _, _, failures = done.stdout.partition("= FAILURES =")
    said = [line for line in failures.splitlines() if line.startswith("E  ")]
    return (said[0][1:].strip()[:LONGEST] or "failed") if done.returncode == 1 and said else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
