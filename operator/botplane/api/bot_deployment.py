"""BotDeployment: one trading bot, in its tenant's namespace."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from botplane.api.conditions import Condition
from botplane.api.types import (
    APIModel,
    DNSName,
    LocalReference,
    Quantity,
    Timestamp,
    cel,
    list_map,
)

PortName = Annotated[
    str, Field(pattern=r"^[a-z]([-a-z0-9]{0,13}[a-z0-9])?$", min_length=1, max_length=15)
]
HTTPPath = Annotated[str, Field(pattern=r"^/[A-Za-z0-9/_.~-]*$", min_length=1, max_length=200)]


class Exposure(StrEnum):
    """Who reaches a port."""

    CLUSTER = "Cluster"
    PUBLIC = "Public"


class OnSuspend(StrEnum):
    """What a bot does with its orders and positions before it stops."""

    CANCEL_ORDERS = "CancelOrders"
    CLOSE_POSITIONS = "ClosePositions"
    LEAVE_OPEN = "LeaveOpen"


class ResourceAmounts(APIModel):
    """CPU and memory of one replica."""

    cpu: Quantity | None = None
    """Cores, such as `500m` or `2`."""
    memory: Quantity | None = None
    """Bytes, such as `1Gi`."""


class Resources(APIModel):
    """Requests and limits of one replica."""

    requests: ResourceAmounts = ResourceAmounts()
    """Reserved for each replica. Default: the plan's `bot.defaultCPU` and `bot.defaultMemory`."""
    limits: ResourceAmounts = ResourceAmounts()
    """Upper bound of each replica. Default: twice the requests, within the plan."""


class Storage(APIModel):
    """A volume of the bot, mounted at /data."""

    size: Quantity
    """Size in bytes, such as `10Gi`."""
    storage_class_name: DNSName | None = None
    """StorageClass, one of the plan's. Default: the plan's first."""


class Autoscaling(APIModel):
    """Scaling by load. At least one target must be given."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Fewest replicas. Default 1."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most replicas, within the plan."""
    target_cpu_percent: Annotated[
        Annotated[int, Field(ge=1, le=100)] | None, Field(alias="targetCPUPercent")
    ] = None
    """CPU use, in percent of the request, that scaling aims at."""
    target_memory_percent: Annotated[int, Field(ge=1, le=100)] | None = None
    """Memory use, in percent of the request, that scaling aims at."""


class Port(APIModel):
    """A port that the bot listens on."""

    name: PortName
    """Name of the port, unique in the bot."""
    container_port: Annotated[int, Field(ge=1024, le=65535)]
    """Number of the port; bots run without root, so 1024 or higher."""
    exposure: Exposure = Exposure.CLUSTER
    """Cluster: reached inside the namespace. Public: by a generated host. Default Cluster."""


class HealthCheck(APIModel):
    """HTTP check that restarts a bot which stops answering."""

    path: HTTPPath = "/healthz"
    """Path that answers 2xx while the bot is well. Default `/healthz`."""
    port: PortName
    """Name of the port."""
    period_seconds: Annotated[int, Field(ge=1, le=300)] = 10
    """Seconds between checks. Default 10."""
    failure_threshold: Annotated[int, Field(ge=1, le=30)] = 3
    """Failed checks in a row after which the bot is restarted. Default 3."""


class BotMetrics(APIModel):
    """Where the bot serves Prometheus metrics."""

    port: PortName
    """Name of the port."""
    path: HTTPPath = "/metrics"
    """Path of the metrics. Default `/metrics`."""


class Backup(APIModel):
    """Backup of the volume by schedule."""

    schedule: Annotated[
        str, Field(pattern=r"^[-0-9*/,]+( [-0-9*/,A-Za-z]+){4}$", min_length=9, max_length=60)
    ]
    """Cron expression of five fields, UTC, such as `0 3 * * *`."""
    retention: Annotated[int, Field(ge=1, le=365)] = 14
    """How many backups are kept. Default 14."""


class Shutdown(APIModel):
    """How a bot stops, also on suspend and on rollout."""

    on_suspend: OnSuspend = OnSuspend.CANCEL_ORDERS
    """CancelOrders, ClosePositions or LeaveOpen. Default CancelOrders."""
    grace_period_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Seconds that the bot gets to do it. Default 60."""


class BotDeploymentSpec(APIModel):
    """What the tenant declares about one bot."""

    bot_type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$", min_length=1, max_length=31)]
    """Kind of bot, such as `arbitrage`; the bot reads it from BOTPLANE_BOT_TYPE."""
    version: (
        Annotated[
            str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", min_length=1, max_length=128)
        ]
        | None
    ) = None
    """Version of the operator's bot image. Give this or `image`."""
    image: (
        Annotated[
            str,
            Field(
                pattern=r"^[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$",
                min_length=3,
                max_length=400,
            ),
        ]
        | None
    ) = None
    """Complete image name, best with a digest, from a registry that the plan allows."""
    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How many replicas run. Absent: 1, or what autoscaling decides."""
    runtime_config: Annotated[
        dict[str, Any],
        Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}),
    ] = {}
    """Configuration of the bot, any fields, at most 64 KiB and 16 levels; mounted as
    /config/config.json."""
    api_keys_secret_ref: LocalReference | None = None
    """Secret with exchange keys, mounted read-only at /secrets/api-keys."""
    wallet_keys_secret_ref: LocalReference | None = None
    """Secret with wallet keys, mounted read-only at /secrets/wallet."""
    image_pull_secret_ref: LocalReference | None = None
    """Secret of type kubernetes.io/dockerconfigjson for a registry that asks who pulls. Default
    none."""
    resources: Resources = Resources()
    """CPU and memory of one replica. Default: the plan's."""
    storage: Storage | None = None
    """A volume at /data. Absent: none."""
    autoscaling: Autoscaling | None = None
    """Scaling by load. Absent: `replicas` counts."""
    ports: Annotated[list[Port], Field(max_length=10, json_schema_extra=list_map("name"))] = []
    """Ports that the bot listens on. Default none."""
    health_check: HealthCheck | None = None
    """HTTP check. Absent: none."""
    metrics: BotMetrics | None = None
    """Where the bot serves Prometheus metrics. Absent: nowhere."""
    backup: Backup | None = None
    """Backup of the volume. Absent: none."""
    shutdown: Shutdown = Shutdown()
    """How the bot stops. Default: cancels orders, 60 seconds."""
    suspend: bool = False
    """True stops the bot and keeps its data. Default false."""


class BotUsageStatus(APIModel):
    """Rounded usage of the running billing period, at most once a minute."""

    bot_hours: Annotated[str, Field(max_length=24)]
    """Running time of all replicas, in hours."""
    cost: Annotated[str, Field(max_length=24)]
    """Cost to date of that time, in the tenant's currency."""


class Endpoint(APIModel):
    """Where a port is reached."""

    name: Annotated[str, Field(max_length=15)]
    """Name of the port."""
    url: Annotated[str, Field(max_length=300)]
    """Address of the port."""


class BotDeploymentStatus(APIModel):
    """What botplane observed and did."""

    conditions: Annotated[
        list[Condition], Field(max_length=24, json_schema_extra=list_map("type"))
    ] = []
    """State by aspect; Ready sums up."""
    observed_generation: int = -1
    """Generation of the spec that this status speaks of; -1 before the first visit."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Replicas that exist."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Replicas that are ready."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the pods, for the scale subresource."""
    image: Annotated[str, Field(max_length=529)] | None = None
    """Image that the pods run."""
    endpoints: Annotated[
        list[Endpoint], Field(max_length=10, json_schema_extra=list_map("name"))
    ] = []
    """Where ports are reached."""
    usage: BotUsageStatus | None = None
    """Usage of the running billing period."""
    last_backup_time: Timestamp | None = None
    """When the last backup succeeded."""


BOT_SPEC_RULES = (
    cel(
        "has(self.version) != has(self.image)",
        "must give exactly one of `version` and `image`",
    ),
    cel(
        "!has(self.autoscaling) || has(self.autoscaling.targetCPUPercent)"
        " || has(self.autoscaling.targetMemoryPercent)",
        "must give `targetCPUPercent` or `targetMemoryPercent`",
        ".autoscaling",
    ),
    cel(
        "!has(self.autoscaling) || !has(self.autoscaling.minReplicas)"
        " || self.autoscaling.minReplicas <= self.autoscaling.maxReplicas",
        "must not have `minReplicas` above `maxReplicas`",
        ".autoscaling",
    ),
    cel(
        "!has(self.healthCheck) || (has(self.ports) &&"
        " self.ports.exists(p, p.name == self.healthCheck.port))",
        "must name one of `ports` in `port`",
        ".healthCheck",
    ),
    cel(
        "!has(self.metrics) || (has(self.ports) &&"
        " self.ports.exists(p, p.name == self.metrics.port))",
        "must name one of `ports` in `port`",
        ".metrics",
    ),
    cel("!has(self.backup) || has(self.storage)", "must not be given without `storage`", ".backup"),
    cel(
        "!has(oldSelf.storage) || has(self.storage)",
        "must not be removed: delete the bot to delete its volume",
    ),
    cel(
        "!has(self.storage) || !has(oldSelf.storage) || !has(oldSelf.storage.storageClassName)"
        " || (has(self.storage.storageClassName)"
        " && self.storage.storageClassName == oldSelf.storage.storageClassName)",
        "must not change `storageClassName`: a volume keeps its class",
    ),
)
BOT_NAME_RULES = (
    cel(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')",
        "`metadata.name` must be 1 to 40 lower-case letters, digits or `-`, starting with a letter",
    ),
)
