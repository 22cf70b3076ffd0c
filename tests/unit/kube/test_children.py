"""What is known of children, against a world that tells its news late, twice and in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from botplane.kube.drift import sealed
from botplane.kube.observe import Children, Key, owner_of
from botplane.kube.resources import Ref, ref_of

Manifest = dict[str, Any]
ARB, GRID = Key("BotDeployment", "tenant-acme", "arb-1"), Key("BotDeployment", "tenant-acme", "g-1")
ACME = Key("Tenant", "", "acme")


def config(owner: str = "arb-1", value: str = "a", **metadata: Any) -> Manifest:
    meta = {
        "name": "arb-1",
        "namespace": "tenant-acme",
        "labels": {"botplane.io/tenant": "acme", "botplane.io/bot": owner},
        "ownerReferences": [{"kind": "BotDeployment", "name": owner, "controller": True}],
    }
    return {"kind": "ConfigMap", "metadata": meta | metadata, "data": {"value": value}}


def seen(manifest: Manifest, version: int, uid: str = "u-1", **metadata: Any) -> Manifest:
    system = {"uid": uid, "resourceVersion": str(version)}
    return {**manifest, "metadata": {**manifest["metadata"], **system, **metadata}}


def test_the_echo_of_our_own_write_asks_for_nothing() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)

    assert children.observe(seen(desired, 7)) == []
    assert children.is_settled(desired)


def test_old_news_is_dropped() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)

    assert children.observe(seen(config(value="older"), 6)) == []
    assert children.is_settled(desired)


def test_the_late_answer_to_our_write_does_not_hide_what_happened_since() -> None:
    children, desired = Children(), sealed(config())
    edited = seen(sealed(config()) | {"data": {"value": "edited"}}, 8)
    children.observe(edited)

    children.settle(seen(desired, 7), desired)

    assert not children.is_settled(desired)


def test_the_late_answer_to_our_write_does_not_bring_back_what_was_deleted_since() -> None:
    children, desired = Children(), sealed(config())
    children.observe(seen(desired, 7))
    children.deleted(seen(desired, 8))

    children.settle(seen(desired, 7), desired)

    assert not children.is_settled(desired)


def test_a_list_that_was_on_its_way_does_not_bring_back_what_was_deleted_since() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)
    before = children.versions("ConfigMap")
    children.deleted(seen(desired, 8))

    assert children.difference([seen(desired, 7)], before) == []
    assert not children.is_settled(desired)


def test_what_had_only_left_the_selector_of_a_watch_comes_back() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)
    # So a watch tells that a label was taken off; the next pass puts it on again.
    children.deleted(seen(desired, 8))

    children.settle(seen(desired, 9), desired)

    assert children.is_settled(desired)


def test_an_edit_is_told_to_the_owner_and_is_not_settled() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)

    assert children.observe(seen(desired | {"data": {"value": "edited"}}, 8)) == [ARB]
    assert not children.is_settled(desired)


def test_an_edit_that_was_taken_back_is_settled_without_a_write() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)
    children.observe(seen(desired | {"data": {"value": "edited"}}, 8))

    assert children.observe(seen(desired, 9)) == [ARB]
    assert children.is_settled(desired)


def test_after_a_restart_what_is_as_applied_is_settled() -> None:
    children, desired = Children(), sealed(config())

    assert children.observe(seen(desired, 7)) == [ARB]
    assert children.is_settled(desired)
    assert not children.is_settled(sealed(config(value="b")))


def test_the_deletion_of_an_older_object_of_that_name_does_not_matter() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 9, uid="u-2"), desired)

    assert children.forget(ref_of(desired), "u-1") is None
    assert children.is_settled(desired)


def test_what_is_being_deleted_is_not_settled() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)

    assert children.observe(seen(desired, 8, deletionTimestamp="2026-10-01T12:00:00Z")) == [ARB]
    assert not children.is_settled(desired)


def test_a_list_finds_what_the_watch_lost() -> None:
    children, desired = Children(), sealed(config())
    other = sealed(config("g-1", name="g-1"))
    children.settle(seen(desired, 7), desired)

    assert difference(children, [seen(other, 8, uid="u-2")]) == [GRID, ARB]
    assert children.get(ref_of(desired)) is None
    assert difference(children, [seen(other, 8, uid="u-2")]) == []


def test_the_list_of_one_namespace_says_nothing_of_another() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)

    assert difference(children, [], "tenant-zeta") == []
    assert difference(children, [], "tenant-acme") == [ARB]


def test_what_was_written_while_a_list_was_under_way_is_not_taken_for_gone() -> None:
    children, desired = Children(), sealed(config())
    before = children.versions("ConfigMap")

    children.settle(seen(desired, 7), desired)

    assert children.difference([], before) == []
    assert children.is_settled(desired)


def difference(
    children: Children, listed: list[Manifest], namespace: str | None = None
) -> list[Key]:
    """Compare with a list during which nothing has happened."""
    return children.difference(listed, children.versions("ConfigMap", namespace))


def test_a_child_that_changed_hands_is_told_to_both() -> None:
    # The new owner deletes it as a leftover, and the old one must make it again.
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)

    assert set(children.observe(seen(config("g-1"), 8))) == {ARB, GRID}
    assert children.owned_by(ARB) == frozenset()


def test_a_child_that_lost_all_marks_is_told_to_its_owner() -> None:
    children, desired = Children(), sealed(config())
    children.settle(seen(desired, 7), desired)

    assert children.observe(seen(config(labels={}, ownerReferences=[]), 8)) == [ARB]
    assert not children.is_settled(desired)


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "tenant", "owner"),
    [
        ("ConfigMap", "tenant-acme", "x", "acme", ACME),
        ("Namespace", "", "tenant-acme", "acme", ACME),
        ("ConfigMap", "tenant-acme", "x", None, None),
        ("ConfigMap", "tenant-zeta", "x", "acme", None),
        ("Namespace", "", "kube-public", "acme", None),
    ],
    ids=["in its place", "namespace", "no label", "forged from outside", "forged namespace"],
)
def test_a_label_tells_the_tenant_only_in_the_tenants_own_place(
    kind: str, namespace: str, name: str, tenant: str | None, owner: Key | None
) -> None:
    meta = {"namespace": namespace} if namespace else {}
    labels = {"labels": {"botplane.io/tenant": tenant}} if tenant else {}

    assert owner_of({"kind": kind, "metadata": {"name": name, **labels, **meta}}) == owner


def test_a_reference_tells_the_bot() -> None:
    assert owner_of(config()) == ARB
    assert owner_of(config(ownerReferences=[{"kind": "Deployment", "name": "d"}])) == ACME


class News(RuleBasedStateMachine):
    """One ConfigMap changes in the world; its news come late, again or never; we write to it."""

    def __init__(self) -> None:
        super().__init__()
        self.children = Children()
        self.desired = sealed(config())
        self.ref = ref_of(self.desired)
        self.version = 10
        self.history: list[Manifest] = []
        self.world: Manifest | None = None
        self.told = 0
        """Version of the newest news that has arrived."""
        self.asked = False
        """A pass was asked for since the last one."""

    @initialize()
    def create(self) -> None:
        self._becomes(self.desired, uid="u-1")

    def _becomes(self, body: Manifest, uid: str) -> Manifest:
        self.version += 1
        self.world = seen(body, self.version, uid)
        self.history.append(self.world)
        return self.world

    @rule(value=st.sampled_from(["a", "b", "c"]))
    @precondition(lambda self: self.world is not None)
    def somebody_edits(self, value: str) -> None:
        assert self.world is not None
        edited = {**self.desired, "data": {"value": value}}
        self._becomes(edited, self.world["metadata"]["uid"])

    @rule()
    @precondition(lambda self: self.world is not None)
    def somebody_deletes_and_makes_it_again(self) -> None:
        self._becomes(self.desired, uid=f"u-{self.version}")

    @rule(data=st.data())
    @precondition(lambda self: self.history)
    def any_news_arrives(self, data: Any) -> None:
        news = data.draw(st.sampled_from(self.history))
        owners = self.children.observe(news)
        assert set(owners) <= {ARB}
        self.asked |= bool(owners)
        self.told = max(self.told, int(news["metadata"]["resourceVersion"]))

    @rule()
    def a_pass_writes_if_it_must(self) -> None:
        self.asked = False
        if not self.children.is_settled(self.desired):
            uid = self.world["metadata"]["uid"] if self.world else f"u-{self.version}"
            self.children.settle(self._becomes(self.desired, uid), self.desired)
            self.told = self.version

    @rule()
    def a_full_list_arrives(self) -> None:
        listed = [self.world] if self.world is not None else []
        self.asked |= bool(difference(self.children, listed))
        self.told = self.version

    @invariant()
    def the_newest_news_counts(self) -> None:
        child = self.children.get(self.ref)
        assert (child.version if child else 0) <= self.version
        newest = next((b for b in self.history if self.told == _version(b)), None)
        if newest is not None and child is not None:
            assert child.uid == newest["metadata"]["uid"]

    @invariant()
    def what_differs_is_never_taken_for_settled_and_a_pass_is_asked_for(self) -> None:
        newest = next((b for b in self.history if self.told == _version(b)), None)
        if newest is not None and newest["data"] != self.desired["data"]:
            assert not self.children.is_settled(self.desired)
            assert self.asked


def _version(body: Manifest) -> int:
    return int(body["metadata"]["resourceVersion"])


TestNews = News.TestCase
TestNews.settings = settings(max_examples=60, stateful_step_count=20)


def test_the_index_by_owner_follows() -> None:
    children = Children()
    children.observe(seen(config(), 1))
    children.observe(seen(config("g-1"), 2))

    assert children.owned_by(GRID) == {Ref("ConfigMap", "tenant-acme", "arb-1")}
    children.forget(Ref("ConfigMap", "tenant-acme", "arb-1"))
    assert children.owned_by(GRID) == frozenset()
    assert children.refs("ConfigMap") == []


@pytest.mark.parametrize(
    ("used", "computed"),
    [({}, False), ({"pods": "0"}, False), ({"pods": "0", "requests.cpu": "0"}, True)],
    ids=["nothing", "a part", "all"],
)
def test_a_quota_is_computed_once_all_that_it_limits_is_counted(
    used: dict[str, str], *, computed: bool
) -> None:
    children = Children()
    meta = {"name": "plan", "namespace": "tenant-acme"}
    spec = {"hard": {"pods": "4", "requests.cpu": "2"}}

    quota = {"kind": "ResourceQuota", "metadata": meta, "spec": spec, "status": {"used": used}}
    children.observe(seen(quota, 1))

    child = children.get(Ref("ResourceQuota", "tenant-acme", "plan"))
    assert child is not None
    assert child.status == {"computed": computed}
