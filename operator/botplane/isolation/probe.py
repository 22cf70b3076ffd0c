"""Runs the list against a cluster: dry runs and access reviews, beside one grant that is undone."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from botplane.api import labels as lb
from botplane.errors import Rejected, Retryable
from botplane.isolation.attacks import (
    FORBIDDEN,
    Actor,
    Attack,
    Call,
    Holds,
    Json,
    MayNot,
    Outcome,
    Refused,
    Scene,
    Step,
    Verdict,
    Works,
    create,
    delete,
)
from botplane.isolation.calls import CONCURRENT_CALLS, Answer, Api, Resource
from botplane.isolation.documents import all_attacks
from botplane.isolation.network import ROW, probe_network

RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"
BOTPLANE: Final = "/apis/botplane.io/v1alpha1"
GRANT_SECONDS: Final = 10.0
NEEDS_BOT: Final = "the tenant has no bot, and a pod needs the account of one"


def check(api: Api, tenant: str | None, probe_image: str | None = None) -> list[Outcome]:
    """Run the list from a tenant's namespace and return what became of each row.

    Args:
        api: The cluster, as somebody who may impersonate and has the verb bypass.
        tenant: Name of the tenant; None takes the first.
        probe_image: An image with `python3`, to try the network with pods of it; None does not.
            While no tenant is set up this row is the only one.

    Raises:
        Rejected: There is no such tenant, or a call that the check needs is refused.
        Retryable: The API server does not answer.
    """
    chosen = tenant or _first_isolated(api)
    if chosen is None and probe_image is not None:
        return [probe_network(api, None, probe_image)]
    scene = scene_of(api, chosen)
    with granted(api, scene) as acting:
        outcomes = run(acting, scene, all_attacks(scene))
    if probe_image is None:
        return outcomes
    probed = probe_network(api, scene, probe_image)
    return [probed if outcome.attack.id == ROW.id else outcome for outcome in outcomes]


def scene_of(api: Api, tenant: str | None) -> Scene:
    """Return what there is around a tenant.

    Raises:
        Rejected: There is no such tenant, or it is not set up.
    """
    items = (api.read(f"{BOTPLANE}/tenants") or {}).get("items", ())
    names = [item["metadata"]["name"] for item in items]
    chosen = tenant or (names[0] if names else "")
    if chosen not in names:
        raise Rejected("TenantNotFound", f"There is no tenant {chosen or 'at all'}")
    namespace = lb.tenant_namespace(chosen)
    parameters = api.read(f"/api/v1/namespaces/{namespace}/configmaps/tenant-policy")
    if parameters is None:
        raise Rejected("TenantNotReady", f"{namespace} has no ConfigMap tenant-policy yet")
    data: dict[str, str] = parameters["data"]
    allowed = [*data.get("botRepository", "").split(","), *data["imageRegistries"].split(",")]
    image = next((i for i in allowed if i), "")
    rivals = [item for item in items if item["metadata"]["name"] != chosen][:1]
    others = [lb.tenant_namespace(item["metadata"]["name"]) for item in rivals]
    bot, pod, service = _workload(api, namespace)
    return Scene(
        tenant=chosen,
        namespace=namespace,
        image=f"{image}:1.0.0" if "/" in image else f"{image}/bot:1.0.0",
        bot=bot,
        pod=pod,
        service=service,
        storage_class=data["storageClasses"].split(",")[0],
        others=(*others, "default", "kube-system", "botplane-system"),
        host_domain=data.get("domain", ""),
        secrets=tuple(
            text
            for item in rivals
            for text in (item["metadata"]["uid"], item["spec"].get("adminEmail", ""))
            if text
        ),
    )


def _first_isolated(api: Api) -> str | None:
    """Return the first tenant that has something to be attacked."""
    items = (api.read(f"{BOTPLANE}/tenants") or {}).get("items", ())
    for item in items:
        conditions = item.get("status", {}).get("conditions", ())
        if any((c["type"], c["status"]) == ("IsolationReady", "True") for c in conditions):
            return str(item["metadata"]["name"])
    return None


def _workload(api: Api, namespace: str) -> tuple[str, str, str]:
    """Return a bot that has an account, one of its pods and its service; empty for nothing."""
    core = f"/api/v1/namespaces/{namespace}"

    def of_bots(plural: str) -> dict[str, str]:
        selector = f"labelSelector={lb.BOT}"
        items = (api.read(f"{core}/{plural}?{selector}") or {}).get("items", ())
        return {i["metadata"]["labels"][lb.BOT]: i["metadata"]["name"] for i in items}

    accounts, pods, services = (of_bots(p) for p in ("serviceaccounts", "pods", "services"))
    best = sorted(accounts, key=lambda bot: (bot not in pods, bot not in services, bot))
    bot = best[0] if best else ""
    return bot, pods.get(bot, ""), services.get(bot, "")


@contextmanager
def granted(api: Api, scene: Scene) -> Iterator[Api]:
    """Make two users that nobody can sign in as: a member, and one who has every right here.

    Their Role and RoleBindings are the only things that are written, and are removed again.
    """
    mark = f"isolation-check-{secrets.token_hex(4)}"
    member, intruder = f"botplane:{mark}:member", f"botplane:{mark}:intruder"
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    roles = scene.path("roles", api=RBAC)
    bindings = scene.path("rolebindings", api=RBAC)
    acting = api.acting({Actor.TENANT: member, Actor.GRANTED: intruder})
    try:
        _write(api, create(Actor.ADMIN, roles, {"metadata": {"name": mark}, "rules": everything}))
        _write(api, create(Actor.ADMIN, bindings, _binding(mark, "Role", mark, intruder)))
        known = _binding(f"{mark}-member", "ClusterRole", "botplane:tenant-operator", member)
        _write(api, create(Actor.ADMIN, bindings, known))
        _await_grants(acting, scene)
        yield acting
    finally:
        for path in (f"{bindings}/{mark}-member", f"{bindings}/{mark}", f"{roles}/{mark}"):
            api.send(delete(Actor.ADMIN, path))


def run(api: Api, scene: Scene, attacks: Sequence[Attack]) -> list[Outcome]:
    """Run attacks and return what became of each."""
    resources = api.resources()
    with ThreadPoolExecutor(CONCURRENT_CALLS) as threads:
        return [_Row(api, scene, resources, threads).judge(attack) for attack in attacks]


class _Row:
    """One attack being run."""

    def __init__(
        self, api: Api, scene: Scene, resources: Sequence[Resource], threads: ThreadPoolExecutor
    ) -> None:
        self._api = api
        self._scene = scene
        self._resources = resources
        self._threads = threads
        self._calls = 0

    def judge(self, attack: Attack) -> Outcome:
        verdict = attack.verdict
        if not attack.steps:
            return Outcome(attack=attack, verdict=verdict or Verdict.SKIPPED)
        if not self._scene.bot and _needs_bot(attack):
            return Outcome(attack=attack, verdict=Verdict.SKIPPED, details=(NEEDS_BOT,))
        details = [wrong for step in attack.steps for wrong in self._step(step)]
        return Outcome(
            attack=attack,
            verdict=Verdict.BREACH if details else verdict or Verdict.REFUSED,
            calls=self._calls,
            details=tuple(details),
        )

    def _step(self, step: Step) -> list[str]:
        match step:
            case Refused():
                return self._each(step.calls, lambda call: self._refused(step, call))
            case Works():
                return self._each([step.call], lambda call: _works(step, self._api.attempt(call)))
            case Holds():
                return self._each([step.call], lambda call: self._holds(step, call))
            case MayNot():
                return self._may_not(step)

    def _each(self, calls: Sequence[Call], judge: Callable[[Call], str]) -> list[str]:
        self._calls += len(calls)
        judged = self._threads.map(judge, calls)
        return [
            f"{call.actor} {call.method} {call.path}: {wrong}"
            for call, wrong in zip(calls, judged, strict=True)
            if wrong
        ]

    def _refused(self, step: Refused, call: Call) -> str:
        answer = self._api.attempt(call)
        told = [text for text in self._scene.secrets if text in answer.message]
        if told:
            return f"the answer tells about another tenant: {answer.message[:200]}"
        right = answer.status in step.statuses and re.search(step.reason, answer.message, re.DOTALL)
        return "" if right else f"answered {answer.status} {answer.message[:300]}"

    def _holds(self, step: Holds, call: Call) -> str:
        answer = self._api.attempt(call)
        if answer.status != HTTPStatus.OK:
            return f"answered {answer.status} {answer.message[:200]}"
        return step.judge(answer.body)

    def _may_not(self, step: MayNot) -> list[str]:
        asked = [
            (verb, resource)
            for resource in self._resources
            if resource.namespaced is bool(step.namespace)
            and (not step.only or resource.name in step.only)
            for verb in resource.verbs
        ]
        self._calls += len(asked)
        answers = self._threads.map(
            lambda pair: self._api.may(Actor.TENANT, pair[0], pair[1], step.namespace), asked
        )
        may = {f"{v} {r.name}" for (v, r), yes in zip(asked, answers, strict=True) if yes}
        wrong = [f"the tenant may {what}" for what in sorted(may - step.allowed)]
        lost = [f"the tenant may not {what}" for what in step.granted if what not in may]
        return [f"in {step.namespace or 'the cluster'}: {text}" for text in (*wrong, *lost)]


def _works(step: Works, answer: Answer) -> str:
    if answer.status in step.statuses:
        return ""
    return f"the positive control fails: {answer.status} {answer.message[:300]}"


def _needs_bot(attack: Attack) -> bool:
    calls = [
        call
        for step in attack.steps
        if isinstance(step, Refused | Works)
        for call in (step.calls if isinstance(step, Refused) else (step.call,))
    ]
    return any("/pods" in call.path or "/token" in call.path for call in calls)


def _binding(name: str, kind: str, role: str, user: str) -> Json:
    group = "rbac.authorization.k8s.io"
    subjects: list[dict[str, Any]] = [{"kind": "User", "name": user, "apiGroup": group}]
    return {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": kind, "name": role},
        "subjects": subjects,
    }


def _write(api: Api, call: Call) -> None:
    answer = api.send(call)
    if answer.status in FORBIDDEN:
        raise Rejected("GrantRefused", f"the check needs a cluster-admin: {answer.message}")
    if answer.status != HTTPStatus.CREATED:
        raise Retryable("GrantFailed", answer.message)


def _await_grants(api: Api, scene: Scene) -> None:
    """Wait until the API server knows of the bindings."""
    pods = Resource(
        name="pods", group="", plural="pods", subresource="", namespaced=True, verbs=("list",)
    )
    until = time.monotonic() + GRANT_SECONDS
    while not all(
        api.may(actor, "list", pods, scene.namespace) for actor in (Actor.TENANT, Actor.GRANTED)
    ):
        if time.monotonic() > until:
            raise Retryable("GrantNotSeen", "the API server does not take note of the new roles")
        time.sleep(0.05)
