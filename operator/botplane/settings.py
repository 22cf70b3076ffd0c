"""Settings of the processes, from environment variables `BOTPLANE_*` and `DATABASE_URL`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an installation decides. The order is that of the reference page."""

    model_config = SettingsConfigDict(
        env_prefix="BOTPLANE_", use_attribute_docstrings=True, frozen=True
    )

    database_url: Annotated[str, Field(validation_alias="DATABASE_URL")] = ""
    """Address of PostgreSQL as libpq reads it. Needed by every process."""
    namespace: str = "botplane-system"
    """Namespace that the operator runs in; it holds the leader Lease."""
    service_account: str = "botplane-operator"
    """Name of the operator's own ServiceAccount, bound in every tenant namespace."""
    identity: str = socket.gethostname()
    """Name of this replica in the Lease. Default: the host name, which is the pod's."""
    templates_dir: Path = Path("templates/k8s")
    """Folder of the bot templates."""
    bot_repository: str = "sniperforge/bot"
    """Image repository that `spec.version` of a bot is a tag of."""
    gateway_url: str = "http://botplane-gateway.botplane-system.svc:8545"
    """Address of the RPC gateway, as bots reach it."""
    usage_url: str = "http://botplane-web.botplane-system.svc:8090"
    """Address of the web process, as bots reach it to report usage."""
    public_domain: str = ""
    """Domain below which public ports of bots get their hosts. Default: no port can be public."""
    ingress_class: str = "nginx"
    """IngressClass of public ports."""
    ingress_namespace: str = "ingress-nginx"
    """Namespace of the ingress controller, the only one that reaches public ports."""
    monitoring_namespace: str = "monitoring"
    """Namespace of Prometheus, the only one that reaches metrics ports."""
    backup_image: str = "busybox:1.37"
    """Image of backup jobs: sh, tar and coreutils."""
    overcommit: Literal["Warn", "Strict"] = "Warn"
    """What happens when plans promise more than the nodes can give. Warn: a condition and a metric
    tell. Strict: a new tenant waits for room."""
    network_isolation: Literal["Warn", "Strict"] = "Warn"
    """What happens until a probe has shown that the network enforces NetworkPolicies. Warn: a
    condition and a metric tell. Strict: a new tenant waits."""
    purge_seconds: int = 600
    """How often namespaces of deleted tenants are looked at for the end of their retention."""
    master_key: SecretStr = SecretStr("")
    """Secret that all issued keys derive from, 32 characters or more. Needed by the operator."""
    health_port: int = 8080
    """Port of /livez, /readyz and /metrics of the operator."""
    metering_health_port: int = 8081
    """The same of metering, which shares the operator's pod."""
    log_format: Literal["json", "console"] = "json"
    """How log lines are written."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """Least severity of log lines that are written."""
