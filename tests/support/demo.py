"""`make demo`: from an empty machine to an invoice, one line per step.

The simulated nodes let the bots have run since the first of last month: a mutating admission
policy, in place while the bots' first pods are made, tells them since when.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from tests.support.controlplane import cluster, postgres, watchdog
from tests.support.controlplane.__main__ import FAILURES, database
from tests.support.controlplane.paths import state_folder
from tests.support.controlplane.waiting import NotInTimeError, until
from tests.support.installation import ROOT, CommandFailedError, Installation

EXAMPLES = ROOT / "manifests" / "examples"
TENANT = "acme"
NAMESPACE = f"tenant-{TENANT}"
POLICY = "demo-running-since"


def main() -> int:
    """Run the demo, or end it with `down`; return the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["up", "down"], default="up")
    state = state_folder()
    try:
        if parser.parse_args().command == "down":
            return _down(state)
        return _up(state)
    except (*FAILURES, CommandFailedError, NotInTimeError) as error:
        print(f"error: {error}\nlogs: {state}/logs", file=sys.stderr)
        return 1


def _up(state: Path) -> int:
    started = time.monotonic()
    state.mkdir(parents=True, exist_ok=True)
    with _step("a real Kubernetes control plane, simulated nodes"):
        found = cluster.start(state, _detail, [ROOT / "crds"])
    with _step("a real PostgreSQL"):
        server = postgres.start(state)
        url = database(server)
    with _step("definitions, roles, schema"):
        installed = Installation.into(found, url)
    with _step("operator and metering"):
        installed.start("operator")
        installed.start("metering")
        until(lambda: _holds_lease(installed), what="the operator leads")
    since = _first_of_last_month(datetime.now(UTC))
    with _step("two plans and a tenant"):
        installed.apply(*_objects("10-plans.yaml"), *_tenant(since))
        installed.kubectl("wait", "--for=condition=Ready", f"tenant/{TENANT}", "--timeout=120s")
    with _step(f"two bots, running since {since:%Y-%m-%d}"):
        _apply_bots(installed, since, simulated=found.kind == "embedded")
    with _step("usage of both months is metered"):
        _wait_for_usage(installed, since)
    _show(installed, since)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Everything is left running.\n{NEXT}")
    return 0


NEXT = f"""
Look further:
  eval "$(make -s env)"                  # kubectl, helm and botplane talk to it
  kubectl describe bot arb-1 -n {NAMESPACE}
  kubectl scale bot arb-1 -n {NAMESPACE} --replicas 3
  kubectl explain tenant.spec.billing
  botplane invoice {TENANT} -o json
Stop it: make down"""


def _down(state: Path) -> int:
    started = time.monotonic()
    cluster.stop(state)
    watchdog.end_all(state)
    print(f"down after {time.monotonic() - started:.1f} s")
    return 0


def _holds_lease(installed: Installation) -> bool:
    leases = installed.get("leases", "-n", "botplane-system")
    holders = [item["spec"].get("holderIdentity") for item in leases["items"]]
    return "first" in holders


def _first_of_last_month(now: datetime) -> datetime:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first - timedelta(days=1)).replace(day=1)


def _objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8")))


def _tenant(since: datetime) -> list[dict[str, Any]]:
    """Return the example's tenant as one who moved in: its past is billed too."""
    (tenant,) = _objects("20-tenant.yaml")
    tenant["spec"]["billing"]["subscriptionStartTime"] = f"{since:%Y-%m-%dT%H:%M:%SZ}"
    return [tenant]


def _apply_bots(installed: Installation, since: datetime, *, simulated: bool) -> None:
    bots = _objects("30-bots.yaml")
    new = not installed.get("bots", "-n", NAMESPACE)["items"]
    if simulated and new:
        installed.apply(*_running_since(since))
        until(lambda: _policy_is_in_force(installed), what="the policy is in force")
    installed.apply(*bots)
    if simulated:
        wait = ("wait", "--for=condition=Ready", "bots", "--all", "-n", NAMESPACE)
        installed.kubectl(*wait, "--timeout=60s")
    if simulated and new:
        kinds = "mutatingadmissionpolicybinding,mutatingadmissionpolicy"
        installed.kubectl("delete", kinds, POLICY)


def _running_since(since: datetime) -> list[dict[str, Any]]:
    """Return a policy that tells simulated nodes since when a new bot pod has been running."""
    annotations = f'{{"kwok.botplane.io/started-at": "{since:%Y-%m-%dT%H:%M:%SZ}"}}'
    expression = f"Object{{metadata: Object.metadata{{annotations: {annotations}}}}}"
    version = "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    space = {"matchLabels": {"botplane.io/tenant": TENANT}}
    policy = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "matchConstraints": {"namespaceSelector": space, "resourceRules": [rule]},
            "reinvocationPolicy": "Never",
            "failurePolicy": "Fail",
            "mutations": [
                {
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {"expression": expression},
                }
            ],
        },
    }
    binding = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": POLICY},
        "spec": {"policyName": POLICY},
    }
    return [policy, binding]


def _policy_is_in_force(installed: Installation) -> bool:
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "c", "image": "none", "securityContext": restricted}]},
    }
    create = ("create", "--dry-run=server", "-o", "json", "-f", "-")
    made = json.loads(installed.kubectl(*create, text=json.dumps(pod)))
    return "kwok.botplane.io/started-at" in made["metadata"].get("annotations", {})


def _wait_for_usage(installed: Installation, since: datetime) -> None:
    pods = installed.get("pods", "-n", NAMESPACE)["items"]
    wanted = sum(1 for pod in pods if pod["status"]["phase"] == "Running")

    def metered() -> bool:
        usage = installed.botplane("usage", TENANT, "-o", "json")
        running: list[int] = [bot["running"] for bot in json.loads(usage)]
        return sum(running) >= wanted

    def complete() -> bool:
        invoice = installed.botplane("invoice", TENANT, "--period", f"{since:%Y-%m}", "-o", "json")
        return bool(json.loads(invoice)["status"] != "draft")

    def shown() -> bool:
        tenant = installed.get("tenant", TENANT)
        bots = installed.get("bots", "-n", NAMESPACE)["items"]
        return all("usage" in item["status"] for item in [tenant, *bots])

    until(metered, what="all running bots are metered")
    until(complete, within=90, what="last month's invoice is issued", every=0.5)
    until(shown, what="usage is shown in the status", every=0.5)


def _show(installed: Installation, since: datetime) -> None:
    month = f"{since:%Y-%m}"
    for words in (
        ("kubectl", "get", "tenants"),
        ("kubectl", "get", "bots", "-A"),
        ("botplane", "usage", TENANT, "--period", month),
        ("botplane", "usage", TENANT),
        ("botplane", "invoice", TENANT, "--period", month),
        ("botplane", "invoice", TENANT),
    ):
        program, *arguments = words
        run = installed.kubectl if program == "kubectl" else installed.botplane
        print(f"\n$ {' '.join(words)}\n{run(*arguments).rstrip()}")


def _detail(line: str) -> None:
    print(f"    {line}", flush=True)


@contextmanager
def _step(what: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"... {what}", flush=True)
    yield
    print(f" ok {what} ({time.monotonic() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
