"""The tenants that are attacked from, with the operator running and with the operator killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from botplane.isolation import documents, probe
from botplane.isolation.attacks import Outcome
from botplane.isolation.calls import Api, open_api
from tests.support.installation import Installation
from tests.support.world import World, a_bot, a_name, a_tenant, bot_key, tenant_key

MODES = ("operator running", "operator killed")
TABLES = pytest.StashKey[dict[str, str]]()
MEMBER = "ana@attacker.example"
PUBLIC = [{"name": "http", "containerPort": 8080, "exposure": "Public"}]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What was set up while the operator ran."""

    world: World
    api: Api
    attacker: str
    small: str
    """A tenant that may have two bots."""
    suspended: str
    """A tenant that was suspended while its bot ran."""


@pytest.fixture(scope="session")
def stage(botplane: Installation) -> Stage:
    world = World(botplane)
    members = [{"kind": "User", "name": MEMBER, "role": "Operator"}]
    made = Stage(
        world=world,
        api=open_api(str(botplane.cluster.kubeconfigs["admin"])),
        attacker=world.tenant(a_name("attacker"), members=members),
        small=world.tenant(a_name("small"), members=members, overrides={"maxBots": 2}),
        suspended=world.tenant(a_name("suspended"), members=members),
    )
    world.bot(made.attacker, ports=PUBLIC)
    world.bot(made.suspended, replicas=2)
    world.create(a_bot(made.small, "first"))
    world.patch("Tenant", "", made.suspended, {"spec": {"suspend": True}})
    world.wait_for(bot_key(made.suspended), "Suspended", "True")
    namespace = f"tenant-{made.suspended}"
    world.eventually(lambda: not world.list("Pod", namespace), "no pod is left")
    return made


@pytest.fixture(scope="module", params=MODES)
def mode(stage: Stage, request: pytest.FixtureRequest) -> Iterator[str]:
    """With the operator running, and again with the operator killed."""
    name: str = request.param
    installed = stage.world.installed
    if name == "operator running":
        yield name
        return
    installed.kill9("operator")
    yield name
    installed.start("operator")
    # The lease of the killed one runs out first.
    newcomer = a_name()
    stage.world.create(a_tenant(newcomer))
    stage.world.wait_for(tenant_key(newcomer), "Ready", "True")


@pytest.fixture(scope="module")
def outcomes(
    stage: Stage, mode: str, pytestconfig: pytest.Config
) -> dict[tuple[str, str], Outcome]:
    """Run the whole list once for each mode."""
    found = probe.check(stage.api, stage.attacker)
    tables = pytestconfig.stash.setdefault(TABLES, {})
    tables[mode] = documents.render_table(found)
    return {(outcome.attack.id, outcome.attack.title): outcome for outcome in found}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for mode, table in config.stash.get(TABLES, {}).items():
        terminalreporter.section(f"isolation, {mode}")
        terminalreporter.write_line(table)
