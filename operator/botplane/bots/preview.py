"""What a change of plan would do to the bots of a tenant, before it is made. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from botplane.api.bot_deployment import BotDeploymentSpec
from botplane.api.conditions import Finding
from botplane.bots import policy
from botplane.kube.resources import Manifest


class Effect(NamedTuple):
    """One thing that a bot would break under other rights."""

    bot: str
    finding: Finding


def effects(bots: Iterable[Manifest], rights: policy.Rights, public_domain: str) -> list[Effect]:
    """Return what keeps which bots from running under these rights, the oldest bots first.

    Args:
        bots: BotDeployments of one tenant, as read.
        rights: What the tenant would have.
        public_domain: Domain of public ports of this installation.
    """
    found: list[Effect] = []
    older: list[policy.Share] = []
    for body in sorted(bots, key=_age):
        name, spec = body["metadata"]["name"], BotDeploymentSpec.model_validate(body["spec"])
        facts = policy.Facts(
            spec=spec, rights=rights, older=tuple(older), public_domain=public_domain
        )
        found += [Effect(name, finding) for finding in policy.findings(facts)]
        older.append(policy.share(name, spec, rights.plan))
    return found


def _age(body: Manifest) -> tuple[str, str]:
    return body["metadata"]["creationTimestamp"], body["metadata"]["name"]
