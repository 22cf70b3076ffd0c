"""What counts as drift, and what others may do to our objects."""

from __future__ import annotations

from typing import Any

import pytest

from botplane.kube.drift import covers, digest, form, holds, sealed

WRITER = {"manager": "kubectl-edit", "time": "2026-10-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("observed", "desired", "expected"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": "x"}, {"a": {"b": 1}}, False),
        ({}, {"podSelector": {}}, True),
        ({}, {"ports": []}, True),
        ({"a": None}, {"a": {}}, True),
        ({"cpu": "500m"}, {"cpu": "0.5"}, False),
        ({"replicas": 0}, {"replicas": 0}, True),
        ({"replicas": False}, {"replicas": None}, False),
    ],
    ids=[
        "the server's default beside ours",
        "another value",
        "a field removed",
        "a default deep inside",
        "an object became text",
        "an empty object is not stored",
        "an empty list is not stored",
        "null for an empty object",
        "quantities are compared as text",
        "zero is a value",
        "nothing is not false",
    ],
)
def test_fields(observed: Any, desired: Any, *, expected: bool) -> None:
    assert covers(observed, desired) is expected


A, B = {"name": "a", "value": "1"}, {"name": "b", "value": "2"}


@pytest.mark.parametrize(
    ("observed", "desired", "expected"),
    [
        ([B, A], [A, B], True),
        ([A | {"protocol": "TCP"}], [A], True),
        ([A, B], [A], True),
        ([A], [A, B], False),
        ([{"name": "a", "value": "9"}], [A], False),
        (["x", "y"], ["x", "y"], True),
        (["y", "x"], ["x", "y"], False),
        (["x", "y"], ["x"], False),
        (["x"], [], False),
        ([{"port": 53, "protocol": "UDP"}], [{"port": 53}], True),
        ({"a": 1}, [A], False),
        (None, [A], False),
    ],
    ids=[
        "named items in another order",
        "a default in a named item",
        "somebody's own named item beside ours",
        "a named item is gone",
        "a named item has changed",
        "the same texts",
        "texts in another order",
        "one text more",
        "ours is empty",
        "a default in an item without a name",
        "an object in place of the list",
        "no list at all",
    ],
)
def test_lists(observed: Any, desired: Any, *, expected: bool) -> None:
    assert covers({"list": observed}, {"list": desired}) is expected


def config(**metadata: Any) -> dict[str, Any]:
    meta = {"name": "arb-1", "namespace": "tenant-acme", "labels": {"botplane.io/bot": "arb-1"}}
    return {"kind": "ConfigMap", "metadata": meta | metadata, "data": {"config.json": "{}"}}


def stored(manifest: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """Return the manifest as it comes back from the server."""
    system = {"uid": "u-1", "resourceVersion": "7", "creationTimestamp": "2026-10-01T12:00:00Z"}
    return {**manifest, "metadata": {**manifest["metadata"], **system, **metadata}, "status": {}}


def test_what_was_applied_holds() -> None:
    desired = sealed(config())

    assert holds(form(stored(desired)), desired)


def test_an_older_form_does_not_hold_even_if_every_field_of_the_new_one_is_in_it() -> None:
    before = config() | {"immutable": False}

    assert not holds(form(stored(sealed(before))), sealed(config()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"annotations": {"deployment.kubernetes.io/revision": "3"}}, True),
        ({"managedFields": [WRITER]}, True),
        ({"resourceVersion": "9", "generation": 4}, True),
        ({"labels": {"botplane.io/bot": "grid-1"}}, False),
        ({"labels": {}}, False),
        ({"labels": {"botplane.io/bot": "arb-1", "team": "x"}}, True),
    ],
    ids=[
        "another controller's annotation",
        "another writer of a ConfigMap",
        "a new version",
        "our label changed",
        "our label removed",
        "somebody's own label",
    ],
)
def test_metadata(change: dict[str, Any], *, expected: bool) -> None:
    desired = sealed(config())
    kept = {"annotations": desired["metadata"]["annotations"] | change.get("annotations", {})}

    assert holds(form(stored(desired, **(change | kept))), desired) is expected


def test_annotations_of_others_do_not_even_change_the_form() -> None:
    quiet = stored(sealed(config()))
    noisy = stored(sealed(config()))
    noisy["metadata"]["annotations"] = quiet["metadata"]["annotations"] | {"example.com/seen": "1"}

    assert digest(form(noisy)) == digest(form(quiet))


def test_the_content_of_a_secret_is_never_looked_at_and_other_writers_are() -> None:
    secret = config() | {"kind": "Secret", "data": {"gateway-key": "Q0FOQVJZ"}}
    ours = {"manager": "botplane", "time": "2026-10-01T12:00:00Z"}
    desired = sealed(secret)
    observed = form(stored(desired, managedFields=[ours]))
    edited = form(stored(desired, managedFields=[ours, WRITER]))

    assert "Q0FOQVJZ" not in str(observed)
    assert holds(observed, desired)
    assert not holds(edited, desired)


def test_every_new_edit_of_a_secret_is_another_form() -> None:
    secret = config() | {"kind": "Secret"}
    later = WRITER | {"time": "2026-10-01T12:00:01Z"}

    first = form(stored(secret, managedFields=[WRITER]))
    second = form(stored(secret, managedFields=[later]))

    assert digest(first) != digest(second)


def test_sealing_leaves_the_manifest_alone_and_depends_on_nothing_but_it() -> None:
    manifest = config(annotations={"botplane.io/config-hash": "abc"})

    first, second = sealed(manifest), sealed(config(annotations={"botplane.io/config-hash": "abc"}))

    assert manifest["metadata"]["annotations"] == {"botplane.io/config-hash": "abc"}
    assert first == second
    assert set(first["metadata"]["annotations"]) == {
        "botplane.io/config-hash",
        "botplane.io/applied-hash",
    }
