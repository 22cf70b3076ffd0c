"""Real pods as a test looks at them: started, spoken to, and listened to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.support.controlplane import binaries, processes
from tests.support.controlplane.node import namespaces
from tests.support.controlplane.node.images import Image
from tests.support.controlplane.node.lifecycle import import_image
from tests.support.controlplane.node.tunnel import tunnel
from tests.support.installation import CommandFailedError
from tests.support.world import World, a_bot, bot_key

BOT = binaries.Module(
    name="test-bot", programs={"bot": "."}, expected_seconds=10, code=Path(__file__).parent / "bot"
)
# What `spec.version` 1.0.0 and 1.0.1 of a bot become.
IMAGES = tuple(f"docker.io/sniperforge/bot:{version}" for version in ("1.0.0", "1.0.1"))
SMALL = {
    "requests": {"cpu": "20m", "memory": "32Mi"},
    "limits": {"cpu": "500m", "memory": "64Mi"},
}
OPEN = "open"
"""A connection was made; anything else (a timeout, a refusal by a policy) means that it was not."""


def import_bot(state: Path) -> None:
    """Build the test bot and give its image to the node."""
    program = binaries.build([BOT])["bot"]
    for name in IMAGES:
        files = {"/bot": program, "/usr/local/bin/on-stop": program}
        import_image(state, Image(name=name, files=files, entrypoint=["/bot"]))


def a_real_bot(tenant: str, name: str = "bot", **spec: Any) -> dict[str, Any]:
    """Return a BotDeployment of the test bot: small, probed, and quick to stop."""
    plain = {
        "resources": SMALL,
        "ports": [{"name": "http", "containerPort": 8080}],
        "healthCheck": {"port": "http", "periodSeconds": 1, "failureThreshold": 2},
        "shutdown": {"gracePeriodSeconds": 10},
    }
    return a_bot(tenant, name, **(plain | spec))


class Containers:
    """The pods of a real node."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = world.installed.cluster.state

    def bot(self, tenant: str, name: str = "bot", **spec: Any) -> dict[str, Any]:
        """Create a bot and return its pod once it is Ready."""
        self.world.create(a_real_bot(tenant, name, **spec))
        self.world.wait_for(bot_key(tenant, name), "Ready", "True")
        return self.pod(tenant, name)

    def pod(self, tenant: str, name: str = "bot") -> dict[str, Any]:
        """Return the bot's pod that runs."""
        (found,) = [pod for pod in self.pods(tenant, name) if is_live(pod)]
        return found

    def pods(self, tenant: str, name: str = "bot") -> list[dict[str, Any]]:
        """Return all pods of a bot, finished ones too."""
        found = self.world.list("Pod", f"tenant-{tenant}")
        return [p for p in found if p["metadata"]["labels"]["botplane.io/bot"] == name]

    def free_pod(
        self, namespace: str, name: str, listen: str = "", labels: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Start a pod of the same image outside of any tenant, and return it once it is Ready."""
        probe = {"tcpSocket": {"port": int((listen or ":8080").rpartition(":")[2])}}
        container = {
            "name": "bot",
            "image": IMAGES[0],
            "env": [{"name": "LISTEN", "value": listen}],
            "readinessProbe": probe | {"periodSeconds": 1},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app": name, **(labels or {})},
            },
            "spec": {
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                    # Not a privilege where the port counts from 0 for all.
                    "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
                },
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
            },
        }
        self.world.create(body)
        wait = ("wait", "--for=condition=Ready", f"pod/{name}", "-n", namespace, "--timeout=30s")
        self.world.installed.kubectl(*wait)
        found = self.world.read("Pod", namespace, name)
        assert found is not None
        return found

    def namespace(self, name: str) -> str:
        """Create a namespace that nothing is closed in."""
        self.world.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        )
        account = ("ServiceAccount", name, "default")
        self.world.eventually(lambda: self.world.read(*account), "its account exists")
        return name

    def exec(self, pod: dict[str, Any], *command: str) -> str:
        """Run the bot's program in a running pod and return what it prints."""
        meta = pod["metadata"]
        where = (meta["name"], "-n", meta["namespace"], "-c", "bot")
        return self.world.installed.kubectl("exec", *where, "--", "/bot", *command)

    def ask(self, pod: dict[str, Any], path: str) -> None:
        """Ask the bot for something that may be its end before it answers."""
        try:
            self.exec(pod, "ask", path)
        except CommandFailedError as error:
            if "EOF" not in str(error) and "exit code" not in str(error):
                raise

    def connect(self, pod: dict[str, Any], *addresses: str) -> dict[str, str]:
        """Return for each address what becomes of a connection from inside a pod."""
        return dict(_words(line) for line in self.exec(pod, "connect", *addresses).splitlines())

    def connect_from_node(self, *addresses: str) -> dict[str, str]:
        """Return the same for the node itself, which no policy holds."""
        program = str(binaries.build([BOT])["bot"])
        told = namespaces.run(self.state, program, "connect", *addresses)
        return dict(_words(line) for line in told.splitlines())

    def forbidden(self, pod: dict[str, Any]) -> dict[str, str]:
        """Return what the kernel answers to what a bot must not do."""
        answers: dict[str, str] = json.loads(self.exec(pod, "forbidden"))
        return answers

    def listen(self, name: str, address: str, port: int, to: int = 9) -> str:
        """Open a port of the node that leads to one of the host, and return its address."""
        inside = namespaces.first_process(self.state)
        if not processes.is_running(self.state, f"tunnel-{name}"):
            side = (os.getpid(), ("127.0.0.1", to))
            program = tunnel(f"tunnel-{name}", listen=(inside, (address, port)), to=side)
            processes.start(program, self.state)
        target = f"{address}:{port}"
        is_open = lambda: self.connect_from_node(target)[target] == OPEN  # noqa: E731
        self.world.eventually(is_open, f"{target} is open")
        return target

    def give_address(self, address: str) -> None:
        """Give the node another address."""
        namespaces.run(self.state, "ip", "address", "replace", f"{address}/32", "dev", "node0")


def is_live(pod: dict[str, Any]) -> bool:
    """Tell whether a pod runs and is not being deleted."""
    running = pod["status"].get("phase") == "Running"
    return running and "deletionTimestamp" not in pod["metadata"]


def status_of(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the status of the bot's container."""
    found: list[dict[str, Any]] = pod["status"].get("containerStatuses") or [{}]
    return found[0]


def address_of(pod: dict[str, Any], port: int = 8080) -> str:
    """Return where a pod listens."""
    return f"{pod['status']['podIP']}:{port}"


def _words(line: str) -> tuple[str, str]:
    address, _, result = line.partition(" ")
    return address, result
