"""Whether the network enforces policies at all: real pods that listen and call, then go. The shell.

One listens in the tenant's namespace, behind its policies; one listens and one calls in a namespace
of the check's own, where no policy is. The caller must reach its neighbour and not the tenant's.
The outcome is recorded where the operator reads it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

from botplane.api import labels as lb
from botplane.api import network
from botplane.errors import Rejected, Retryable
from botplane.isolation.attacks import (
    OK,
    Actor,
    Attack,
    Call,
    Json,
    Outcome,
    Scene,
    Verdict,
    create,
    delete,
    patch,
)
from botplane.isolation.calls import Api

ROW: Final = Attack(id="ISO-076", actor="X", title="a network that does not enforce policies")
PORT: Final = 8080
READY_SECONDS: Final = 120.0
LONGEST_SECONDS: Final = 300
"""Pods end after that, even if nobody is left to delete them."""
ENFORCED, OPEN, UNKNOWN = 0, 11, 12
LISTEN: Final = f"""
import socket
server = socket.create_server(("", {PORT}))
while True:
    server.accept()[0].close()
"""
CALL: Final = f"""
import socket, sys, time
def opens(host):
    try:
        socket.create_connection((host, {PORT}), 2).close()
    except OSError:
        return False
    return True
def lasts(host, wanted, seconds=20):
    until = time.monotonic() + seconds
    while opens(host) is wanted:
        if time.monotonic() > until:
            return True
        time.sleep(0.2)
    return False
control, closed = sys.argv[1:]
if lasts(control, False):
    sys.exit({UNKNOWN})
# The rules of a new pod take a moment.
if lasts(closed, True):
    sys.exit({OPEN})
sys.exit({ENFORCED} if opens(control) else {UNKNOWN})
"""

T = TypeVar("T")


def probe_network(api: Api, scene: Scene | None, image: str) -> Outcome:
    """Try to reach a tenant's pod from outside, and return what became of row ISO-076.

    Args:
        api: The cluster, as a cluster-admin.
        scene: The tenant; None where there is none yet: a namespace of the check's own that denies
            all traffic stands in for its.
        image: One with `python3` that the cluster can pull.

    Raises:
        Rejected: A pod is refused.
        Retryable: The API server does not answer, or pods do not start in time.
    """
    mark = f"isolation-check-{secrets.token_hex(4)}"
    with (
        _namespace(api, mark),
        nullcontext(scene.namespace) if scene else _denied(api, f"{mark}-denied") as behind,
        _pod(api, mark, "listener", image, ("python3", "-c", LISTEN)) as control,
        _pod(api, behind, mark, image, ("python3", "-c", LISTEN)) as closed,
    ):
        addresses = [_address(api, path) for path in (control, closed)]
        calling = ("python3", "-c", CALL, *addresses)
        with _pod(api, mark, "caller", image, calling) as caller:
            return judged(_exit_code(api, caller))


def record(api: Api, namespace: str, outcome: Outcome, now: datetime) -> bool:
    """Record what a probe found for the operator; return whether it had found anything.

    Args:
        api: The cluster, as a cluster-admin.
        namespace: That of the operator.
        outcome: What became of row ISO-076. One that was skipped proves nothing: what the probe
            before it found stays.
        now: Time of the probe, UTC.

    Raises:
        Rejected: The record is refused.
        Retryable: The API server does not answer.
    """
    found = {Verdict.REFUSED: network.ENFORCED, Verdict.BREACH: network.IGNORED}
    if outcome.verdict not in found:
        return False
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    content = {
        "metadata": {"name": network.RECORD, "labels": {lb.PART_OF: "botplane"}},
        "data": {
            network.POLICIES: found[outcome.verdict],
            network.PROBED_TIME: f"{now:%Y-%m-%dT%H:%M:%SZ}",
        },
    }
    answer = api.send(create(Actor.ADMIN, path, content))
    if answer.status == HTTPStatus.CONFLICT:
        answer = api.send(patch(Actor.ADMIN, f"{path}/{network.RECORD}", content))
    if answer.status not in OK:
        raise Rejected("RecordRefused", f"{path}: {answer.message}")
    return True


def judged(code: int) -> Outcome:
    """Return what the exit code of the caller says; a network that was not reached says nothing."""
    if code == ENFORCED:
        return Outcome(attack=ROW, verdict=Verdict.REFUSED, calls=1)
    if code == OPEN:
        told = "a pod outside of the tenant reaches one inside: no policy is enforced"
        return Outcome(attack=ROW, verdict=Verdict.BREACH, calls=1, details=(told,))
    told = f"the control failed (exit {code}): a pod does not reach its own neighbour"
    return Outcome(attack=ROW, verdict=Verdict.SKIPPED, calls=1, details=(told,))


@contextmanager
def _namespace(api: Api, name: str) -> Iterator[None]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    path = "/api/v1/namespaces"
    _made(api, create(Actor.ADMIN, path, {"metadata": {"name": name, "labels": labels}}))
    try:
        account = f"{path}/{name}/serviceaccounts/default"
        _await(lambda: api.read(account), "the service account of a new namespace")
        yield
    finally:
        api.send(delete(Actor.ADMIN, f"{path}/{name}"))


@contextmanager
def _denied(api: Api, name: str) -> Iterator[str]:
    """Make a namespace that denies all traffic, as a tenant's does; yield its name."""
    denial = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    path = f"/apis/networking.k8s.io/v1/namespaces/{name}/networkpolicies"
    with _namespace(api, name):
        _made(
            api,
            create(Actor.ADMIN, path, {"metadata": {"name": "default-deny"}, "spec": denial}),
        )
        yield name


@contextmanager
def _pod(
    api: Api, namespace: str, name: str, image: str, command: tuple[str, ...]
) -> Iterator[str]:
    """Start a pod, yield its path, and delete it."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    _made(api, create(Actor.ADMIN, path, _manifest(name, image, command)))
    try:
        yield f"{path}/{name}"
    finally:
        api.send(delete(Actor.ADMIN, f"{path}/{name}?gracePeriodSeconds=0"))


def _manifest(name: str, image: str, command: tuple[str, ...]) -> Json:
    amounts = {"cpu": "100m", "memory": "64Mi"}
    return {
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LONGEST_SECONDS,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "command": list(command),
                    "resources": {"requests": amounts, "limits": amounts},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def _address(api: Api, path: str) -> str:
    """Return the address of a pod that runs."""

    def found() -> str | None:
        status = _status(api, path)
        return status.get("podIP") if status.get("phase") == "Running" else None

    return _await(found, f"{path} runs")


def _exit_code(api: Api, path: str) -> int:
    def found() -> list[int]:
        containers = _status(api, path).get("containerStatuses") or ()
        ends = [c["state"].get("terminated") for c in containers]
        return [end["exitCode"] for end in ends if end]

    return _await(found, f"{path} ends")[0]


def _status(api: Api, path: str) -> dict[str, Any]:
    return dict((api.read(path) or {}).get("status") or {})


def _made(api: Api, call: Call) -> None:
    answer = api.send(call)
    if answer.status != HTTPStatus.CREATED:
        raise Rejected("ProbeRefused", f"{call.method} {call.path}: {answer.message}")


def _await(check: Callable[[], T | None], what: str) -> T:
    until = time.monotonic() + READY_SECONDS
    while not (found := check()):
        if time.monotonic() > until:
            raise Retryable("ProbeNotInTime", f"{what}: not within {READY_SECONDS:.0f} s")
        time.sleep(0.2)
    return found
