"""Whether a bot may run, and with what: size, image, replicas. Pure decisions, as chains."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from botplane.api import backup as backups
from botplane.api.bot_deployment import BotDeploymentSpec
from botplane.api.conditions import Finding
from botplane.api.plan import ImageDigests, PlanSpec
from botplane.api.types import Quantity
from botplane.bots.exposure import exposure_finding
from botplane.kube.drift import canonical

MAX_CONFIG_BYTES = 64 * 1024
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What the bot's tenant may have, as far as one bot is concerned."""

    plan_name: str
    plan: PlanSpec
    max_bots: int
    max_replicas: int
    image_registries: tuple[str, ...]
    bot_repository: str
    """The operator's own image repository: always allowed."""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Requests and limits of one replica."""

    cpu: Quantity
    memory: Quantity
    cpu_limit: Quantity
    memory_limit: Quantity


@dataclass(frozen=True, kw_only=True)
class Share:
    """What an older bot of the same tenant has claimed: its requests at full scale."""

    name: str
    cpu: Decimal
    memory: Decimal
    storage: Decimal


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the checks look at."""

    spec: BotDeploymentSpec
    rights: Rights
    older: Sequence[Share]
    """Bots of the tenant that were declared before this one."""
    public_domain: str
    """Domain of public ports; empty: none can be public."""


Check = Callable[[Facts], Finding | None]


def image_of(spec: BotDeploymentSpec, repository: str) -> str:
    """Return the image that a bot runs."""
    return spec.image or f"{repository}:{spec.version}"


def sizing(spec: BotDeploymentSpec, plan: PlanSpec) -> Sizing:
    """Return requests and limits: as declared, else the plan's default and twice the request."""
    requests, limits = spec.resources.requests, spec.resources.limits
    cpu = requests.cpu or plan.bot.usual_cpu.at_most(limits.cpu)
    memory = requests.memory or plan.bot.usual_memory.at_most(limits.memory)
    return Sizing(
        cpu=cpu,
        memory=memory,
        cpu_limit=limits.cpu or Quantity(cpu.times(2)).at_most(plan.bot.max_cpu),
        memory_limit=limits.memory or Quantity(memory.times(2)).at_most(plan.bot.max_memory),
    )


def most_replicas(spec: BotDeploymentSpec) -> int:
    """Return how many replicas the bot may come to have."""
    if spec.autoscaling is not None:
        return spec.autoscaling.max_replicas
    return 1 if spec.replicas is None else spec.replicas


def share(name: str, spec: BotDeploymentSpec, plan: PlanSpec) -> Share:
    """Return what a bot claims of the tenant's quota at full scale, while its backup is made."""
    size, replicas = sizing(spec, plan), most_replicas(spec)
    jobs = 0 if spec.backup is None else 1
    return Share(
        name=name,
        cpu=size.cpu.value * replicas + backups.CPU.value * jobs,
        memory=size.memory.value * replicas + backups.MEMORY.value * jobs,
        storage=_stored(spec),
    )


def _stored(spec: BotDeploymentSpec) -> Decimal:
    """Return the size of the bot's volume and of its backups."""
    if spec.storage is None:
        return Decimal(0)
    return spec.storage.size.value * (1 if spec.backup is None else 1 + backups.SIZE_FACTOR)


def findings(facts: Facts) -> list[Finding]:
    """Return everything that keeps the bot from running, in the order of the chain."""
    return [finding for check in MAY_RUN if (finding := check(facts)) is not None]


def image_is_allowed(facts: Facts) -> Finding | None:
    """The image comes from a registry of the plan or is the operator's own bot image."""
    image = facts.spec.image
    if image is None:
        return None
    allowed = (*facts.rights.image_registries, facts.rights.bot_repository)
    # No part of a name begins with a dot: `allowed/../other` is no image of `allowed`.
    if "/." not in image and any(
        _repository(image) == a or image.startswith(f"{a}/") for a in allowed
    ):
        return None
    return Finding(
        "ImageNotAllowed",
        f"Image {image} is not from an allowed registry ({', '.join(allowed)}); push it there or "
        "ask for the registry in the plan",
    )


def image_is_fixed(facts: Facts) -> Finding | None:
    """The image is named by its digest where the plan demands it: a tag may be moved."""
    image = image_of(facts.spec, facts.rights.bot_repository)
    if facts.rights.plan.image_digests is ImageDigests.OPTIONAL or _DIGEST.search(image):
        return None
    return Finding(
        "ImageNotAllowed",
        f"Image {image} has no digest and plan {facts.rights.plan_name} runs images by digest "
        f"only; set spec.image to {_repository(image)}@sha256:...",
    )


def configuration_is_small(facts: Facts) -> Finding | None:
    """The configuration fits into a ConfigMap beside everything else."""
    size = len(canonical(facts.spec.runtime_config))
    if size <= MAX_CONFIG_BYTES:
        return None
    return Finding(
        "ConfigurationTooLarge",
        f"spec.runtimeConfig has {size} bytes and {MAX_CONFIG_BYTES} are allowed; put large data "
        "on the bot's volume",
    )


def bot_is_within_count(facts: Facts) -> Finding | None:
    """The tenant has not more bots than its plan allows; the oldest ones count first."""
    number, limit = len(facts.older) + 1, facts.rights.max_bots
    if number <= limit:
        return None
    return Finding(
        "BotLimitReached",
        f"This is bot {number} and plan {facts.rights.plan_name} allows {limit}; delete a bot or "
        "change the tenant's plan",
    )


def replicas_are_within_plan(facts: Facts) -> Finding | None:
    """Neither spec, scale nor autoscaling goes beyond the plan."""
    wanted, limit = most_replicas(facts.spec), facts.rights.max_replicas
    if wanted <= limit:
        return None
    field = "spec.autoscaling.maxReplicas" if facts.spec.autoscaling else "spec.replicas"
    return Finding(
        "ReplicaLimitReached",
        f"{field} is {wanted} and plan {facts.rights.plan_name} allows {limit}; lower it or change "
        "the tenant's plan",
    )


def requests_are_within_limits(facts: Facts) -> Finding | None:
    """No request is above its limit."""
    size = sizing(facts.spec, facts.rights.plan)
    for what, request, limit in (
        ("cpu", size.cpu, size.cpu_limit),
        ("memory", size.memory, size.memory_limit),
    ):
        if request.value > limit.value:
            return Finding(
                "RequestAboveLimit",
                f"The {what} request {request} is above the limit {limit}; lower "
                f"spec.resources.requests.{what} or raise the limit",
            )
    return None


def replica_is_within_plan(facts: Facts) -> Finding | None:
    """One replica is not larger than the plan allows."""
    size, bot = sizing(facts.spec, facts.rights.plan), facts.rights.plan.bot
    for what, limit, allowed in (
        ("cpu", size.cpu_limit, bot.max_cpu),
        ("memory", size.memory_limit, bot.max_memory),
    ):
        if limit.value > allowed.value:
            return Finding(
                "BotTooLarge",
                f"The {what} limit {limit} is above the {allowed} that plan "
                f"{facts.rights.plan_name} allows for one replica",
            )
    return None


def storage_is_within_plan(facts: Facts) -> Finding | None:
    """The volume has an allowed class and size."""
    storage, plan = facts.spec.storage, facts.rights.plan
    if storage is None:
        return None
    if storage.size.value > plan.bot.max_storage.value:
        return Finding(
            "BotTooLarge",
            f"spec.storage.size {storage.size} is above the {plan.bot.max_storage} that plan "
            f"{facts.rights.plan_name} allows for one bot",
        )
    allowed = plan.storage_classes
    if not allowed or storage.storage_class_name not in (None, *allowed):
        wanted = storage.storage_class_name or "(default)"
        return Finding(
            "StorageClassNotAllowed",
            f"spec.storage.storageClassName {wanted} is not one of plan "
            f"{facts.rights.plan_name}: {', '.join(allowed) or 'none'}",
        )
    return None


def public_port_has_a_domain(facts: Facts) -> Finding | None:
    """A public port gets a host below the installation's domain."""
    return exposure_finding(facts.spec, facts.public_domain)


def tenant_is_within_quota(facts: Facts) -> Finding | None:
    """All bots of the tenant fit into its quota at full scale; the oldest ones count first."""
    quota = facts.rights.plan.quota
    mine = share("", facts.spec, facts.rights.plan)
    for what, wanted, taken, allowed in (
        ("cpu", mine.cpu, sum(s.cpu for s in facts.older), quota.cpu),
        ("memory", mine.memory, sum(s.memory for s in facts.older), quota.memory),
        ("storage", mine.storage, sum(s.storage for s in facts.older), quota.storage),
    ):
        if wanted and taken + wanted > allowed.value:
            free = max(allowed.value - taken, Decimal(0))
            return Finding(
                "QuotaExceeded",
                f"The bot asks for {_shown(what, wanted)} {what} at full scale and "
                f"{_shown(what, free)} of the tenant's {allowed} are free; lower its resources or "
                "replicas, or change the tenant's plan",
            )
    return None


MAY_RUN: tuple[Check, ...] = (
    image_is_allowed,
    image_is_fixed,
    configuration_is_small,
    bot_is_within_count,
    replicas_are_within_plan,
    requests_are_within_limits,
    replica_is_within_plan,
    storage_is_within_plan,
    public_port_has_a_domain,
    tenant_is_within_quota,
)


def _repository(image: str) -> str:
    """Return the image without digest and tag; a colon before a slash belongs to a port."""
    name = image.partition("@")[0]
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"


def _shown(what: str, value: Decimal) -> str:
    if what == "cpu":
        return Quantity(f"{value:.3f}").canonical
    return Quantity(f"{int(value // 2**20)}Mi").canonical
