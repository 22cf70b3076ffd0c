"""A network that does not enforce policies is found out."""

from __future__ import annotations

from botplane.clock import utc_now
from botplane.isolation.attacks import Verdict
from botplane.isolation.calls import open_api
from botplane.isolation.network import probe_network, record
from botplane.isolation.probe import scene_of
from tests.node.figures import Figures
from tests.node.python_image import import_python
from tests.support.world import World, tenant_key


def test_iso_076_a_network_that_enforces_no_policies_is_found_out(
    world: World, figures: Figures
) -> None:
    cluster = world.installed.cluster
    tenant = world.tenant()
    image = import_python(cluster.state)
    api = open_api(str(cluster.kubeconfigs["admin"]))
    scene = scene_of(api, tenant)

    enforced = probe_network(api, scene, image)
    told = tenant_key(tenant)
    # Policies exist as before, and nobody makes rules of them for new pods.
    cluster.kill9("kube-router")
    try:
        ignored = probe_network(api, scene, image)
        assert record(api, "botplane-system", ignored, utc_now())
        world.wait_for(told, "NetworkIsolation", "ProbeFailed")
    finally:
        cluster.restart("kube-router")
    # As in a strict cluster, where no tenant is set up before this is proven.
    again = probe_network(api, None, image)
    command = ("isolation-check", "--tenant", tenant, "--probe-image", image, "--record")
    table = world.installed.botplane(*command).splitlines()
    assert [row.split()[2] for row in table if row.startswith("ISO-076")] == ["refused"]
    world.wait_for(told, "NetworkIsolation", "PoliciesEnforced")

    verdicts = [outcome.verdict for outcome in (enforced, ignored, again)]
    figures.add("network probe: with policies, without, with", ", ".join(verdicts))
    assert verdicts == [Verdict.REFUSED, Verdict.BREACH, Verdict.REFUSED]
    assert "no policy is enforced" in ignored.details[0]
    assert world.list("Pod", f"tenant-{tenant}") == []

    def is_tidy() -> bool:
        names = [n["metadata"]["name"] for n in world.installed.get("namespaces")["items"]]
        return not any(name.startswith("isolation-check") for name in names)

    world.eventually(is_tidy, "nothing is left behind")
