"""What is known of custom resources, whatever the order of the news."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.kube.observe import Key
from botplane.runtime.objects import Objects

ACME = Key("Tenant", "", "acme")


def tenant(version: int, uid: str = "u-1", **more: Any) -> dict[str, Any]:
    meta = {"name": "acme", "uid": uid, "resourceVersion": str(version), "generation": 1}
    spec = {"planRef": {"name": "professional"}}
    return {"kind": "Tenant", "metadata": meta, "spec": spec, "status": {}} | more


def meta(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    return body | {"metadata": body["metadata"] | more}


def ready(status: str) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": status}]}


def test_our_own_status_write_asks_for_no_pass() -> None:
    objects = Objects()
    assert objects.observe(tenant(1)) == ACME

    objects.wrote(tenant(2, status=ready("True")))

    assert objects.observe(tenant(2, status=ready("True"))) is None
    assert objects.get(ACME) == tenant(2, status=ready("True"))


def test_our_own_status_asks_for_none_though_the_watch_tells_it_before_the_answer() -> None:
    objects = Objects()
    objects.observe(tenant(1))
    objects.want(ACME, ready("True"))

    assert objects.observe(tenant(2, status=ready("True"))) is None


def test_a_status_that_another_has_written_asks_for_a_pass() -> None:
    objects = Objects()
    objects.observe(tenant(1))
    objects.want(ACME, ready("True"))
    objects.wrote(tenant(2, status=ready("True")))

    # Such as the last write of a leader that was late.
    assert objects.observe(tenant(3, status=ready("False"))) == ACME


def test_our_status_of_what_was_taken_back_meanwhile_is_looked_at_again() -> None:
    objects, suspended = Objects(), {"annotations": {"botplane.io/suspend": "audit"}}
    objects.observe(meta(tenant(1, status=ready("True")), **suspended))
    objects.want(ACME, ready("False"))
    objects.wrote(tenant(3, status=ready("False")))

    # The pass for this change finds its status right: it does not know of our last write yet.
    assert objects.observe(tenant(2, status=ready("True"))) == ACME
    objects.want(ACME, ready("True"))
    assert objects.observe(tenant(3, status=ready("False"))) == ACME


def test_a_change_of_spec_finalizers_or_deletion_asks_for_a_pass() -> None:
    objects = Objects()
    objects.observe(tenant(1))

    assert objects.observe(tenant(2, spec={"suspend": True})) == ACME
    assert objects.observe(meta(tenant(3, spec={"suspend": True}), finalizers=["f"])) == ACME
    going = meta(tenant(4, spec={"suspend": True}), finalizers=["f"], deletionTimestamp="t")
    assert objects.observe(going) == ACME


@pytest.mark.parametrize(
    "changed",
    [
        meta(tenant(2, spec={"suspend": True}), finalizers=["f"]),
        meta(tenant(2), finalizers=["f"], deletionTimestamp="t"),
        tenant(2),
        meta(tenant(2, uid="u-2"), finalizers=["f"]),
    ],
    ids=["spec", "deletion", "finalizers", "successor"],
)
def test_a_change_that_the_answer_to_our_own_write_tells_first_still_asks_for_a_pass(
    changed: dict[str, Any],
) -> None:
    objects = Objects()
    objects.observe(meta(tenant(1), finalizers=["f"]))

    objects.wrote(meta(changed, resourceVersion="3") | {"status": ready("True")})

    assert objects.observe(changed) == ACME


def test_our_own_finalizer_asks_for_none_and_one_that_another_puts_beside_it_does() -> None:
    objects = Objects()
    objects.observe(tenant(1))
    objects.wrote(meta(tenant(2), finalizers=["f"]), "f")

    assert objects.observe(meta(tenant(2), finalizers=["f"])) is None
    objects.wrote(meta(tenant(4), finalizers=["f", "theirs"]))
    assert objects.observe(meta(tenant(3), finalizers=["f", "theirs"])) == ACME


def test_a_label_or_the_managed_fields_ask_for_none() -> None:
    objects = Objects()
    objects.observe(tenant(1))

    assert objects.observe(meta(tenant(2), labels={"team": "x"}, managedFields=[{}])) is None


def test_the_same_news_twice_and_old_news_are_dropped() -> None:
    objects = Objects()
    objects.observe(tenant(5, spec={"suspend": True}))

    assert objects.observe(tenant(5, spec={"suspend": True})) is None
    assert objects.observe(tenant(4)) is None
    assert objects.get(ACME) == tenant(5, spec={"suspend": True})


def test_the_successor_of_that_name_asks_for_a_pass_though_it_says_the_same() -> None:
    objects = Objects()
    objects.observe(tenant(5))

    assert objects.observe(tenant(9, uid="u-2")) == ACME
    assert objects.uid(ACME) == "u-2"


@given(st.permutations([tenant(v, uid=f"u-{v // 3}", spec={"v": v}) for v in range(1, 8)]))
def test_the_newest_is_known_in_the_end_in_whatever_order_it_came(news: list[Any]) -> None:
    objects = Objects()

    for body in news:
        objects.observe(body)

    assert objects.get(ACME) == tenant(7, uid="u-2", spec={"v": 7})


def test_the_end_of_a_predecessor_does_not_matter() -> None:
    objects = Objects()
    objects.observe(tenant(9, uid="u-2"))

    assert objects.forget(ACME, "u-1") is None
    assert objects.forget(ACME, "u-2") == ACME
    assert objects.forget(ACME, "u-2") is None


def test_a_list_finds_what_the_watch_lost() -> None:
    objects = Objects()
    objects.observe(tenant(1))
    zeta = meta(tenant(2), name="zeta")

    assert difference(objects, "Tenant", [zeta]) == [Key("Tenant", "", "zeta"), ACME]
    assert difference(objects, "Tenant", [zeta]) == []
    assert objects.keys("Tenant") == [Key("Tenant", "", "zeta")]


def test_a_list_of_one_kind_says_nothing_of_another() -> None:
    objects = Objects()
    objects.observe(tenant(1))

    assert difference(objects, "Plan", []) == []
    assert objects.get(ACME) is not None


def test_what_came_while_a_list_was_under_way_is_not_taken_for_gone() -> None:
    objects = Objects()
    objects.observe(tenant(1))
    before = objects.versions("Tenant")
    zeta = meta(tenant(3), name="zeta")

    objects.observe(zeta)
    objects.observe(tenant(2))

    # The list is older than both: it has neither the new one nor the one that was made again.
    assert objects.difference([], before) == []
    assert objects.get(ACME) is not None
    assert objects.get(Key("Tenant", "", "zeta")) is not None


def test_a_list_that_was_on_its_way_does_not_bring_back_what_is_gone() -> None:
    objects = Objects()
    objects.observe(tenant(1))
    before = objects.versions("Tenant")

    objects.deleted(tenant(2))

    assert objects.difference([tenant(1)], before) == []
    assert objects.get(ACME) is None
    assert objects.observe(tenant(3, uid="u-2")) == ACME


def difference(objects: Objects, kind: str, listed: list[dict[str, Any]]) -> list[Key]:
    """Compare with a list during which nothing has happened."""
    return objects.difference(listed, objects.versions(kind))


def test_readiness_is_counted() -> None:
    objects = Objects()
    objects.observe(tenant(1))
    objects.observe(meta(tenant(2, status=ready("True")), name="zeta"))
    objects.observe(meta(tenant(3, status=ready("False")), name="beta"))

    assert dict(objects.counts("Tenant")) == {"Unknown": 1, "True": 1, "False": 1}


def test_news_are_what_no_pass_has_looked_at_yet() -> None:
    objects = Objects()

    objects.observe(tenant(1))
    assert objects.news("Tenant") == [ACME]

    objects.observe(tenant(2, status=ready("True") | {"observedGeneration": 1}))
    assert objects.news("Tenant") == []

    changed = tenant(3, status=ready("True") | {"observedGeneration": 1})
    objects.observe(meta(changed, generation=2))
    assert objects.news("Tenant") == [ACME]
