"""Who reaches a bot: hosts, Ingress, NetworkPolicy, scraping. Pure builders of template values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from botplane.api.bot_deployment import BotDeploymentSpec, Exposure, Port
from botplane.api.conditions import Finding


@dataclass(frozen=True, kw_only=True)
class Facilities:
    """What this installation offers to bots beside running them."""

    public_domain: str
    """Domain below which public ports get a host; empty: no port can be public."""
    ingress_class: str
    ingress_namespace: str
    """Namespace of the ingress controller: the only one that reaches public ports."""
    monitoring_namespace: str
    """Namespace of Prometheus: the only one that reaches metrics ports."""
    backup_image: str
    """Image with sh, tar and coreutils for backup jobs."""
    pod_monitors: bool
    """Whether the cluster serves PodMonitor."""


def host_of(port: Port, bot: str, tenant: str, domain: str) -> str:
    """Return the host of a public port: port, bot and tenant in front of the domain.

    Dots separate them, which no name contains, so that two bots never share a host.
    """
    return f"{port.name}.{bot}.{tenant}.{domain}"


def public_ports(spec: BotDeploymentSpec) -> list[Port]:
    """Return the ports that the world shall reach."""
    return [port for port in spec.ports if port.exposure is Exposure.PUBLIC]


def exposure_finding(spec: BotDeploymentSpec, domain: str) -> Finding | None:
    """Return what to tell when a public port cannot have a host."""
    ports = public_ports(spec)
    if not ports or domain:
        return None
    return Finding(
        "NoPublicDomain",
        f'Port "{ports[0].name}" is Public and this installation has no public domain; set '
        "exposure to Cluster or ask the platform team for one",
    )


def endpoints(spec: BotDeploymentSpec, bot: str, tenant: str, domain: str) -> list[dict[str, str]]:
    """Return where each port is reached, as the status shows it."""
    shown = []
    for port in spec.ports:
        if port.exposure is Exposure.CLUSTER:
            url = f"http://{bot}.tenant-{tenant}.svc:{port.container_port}"
        elif domain:
            url = f"https://{host_of(port, bot, tenant, domain)}/"
        else:
            continue
        shown.append({"name": port.name, "url": url})
    return shown


def ingress_values(
    spec: BotDeploymentSpec, bot: str, tenant: str, facilities: Facilities
) -> dict[str, Any]:
    """Return what the Ingress template needs beside names and labels."""
    hosts = {p.name: host_of(p, bot, tenant, facilities.public_domain) for p in public_ports(spec)}

    def rule(port: str, host: str) -> dict[str, Any]:
        backend = {"service": {"name": bot, "port": {"name": port}}}
        return {
            "host": host,
            "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
        }

    return {
        "ingress_class": facilities.ingress_class,
        "tls": [{"hosts": sorted(hosts.values())}],
        "rules": [rule(port, host) for port, host in hosts.items()],
    }


def ingress_rules(spec: BotDeploymentSpec, facilities: Facilities) -> list[dict[str, Any]]:
    """Return the traffic that may come in: from the namespace, the world, and Prometheus."""
    rules = []
    inside = [port for port in spec.ports if port.exposure is Exposure.CLUSTER]
    if inside:
        rules.append(_rule({"podSelector": {}}, inside))
    if public_ports(spec):
        rules.append(_rule(_namespace(facilities.ingress_namespace), public_ports(spec)))
    if spec.metrics is not None:
        scraped = [port for port in spec.ports if port.name == spec.metrics.port]
        rules.append(_rule(_namespace(facilities.monitoring_namespace), scraped))
    return rules


def _rule(peer: dict[str, Any], ports: list[Port]) -> dict[str, Any]:
    return {
        "from": [peer],
        "ports": [{"protocol": "TCP", "port": port.container_port} for port in ports],
    }


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
