"""The committed definitions keep the rules of kube-api-linter and of our own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.declared import ROOT, crd

PLURALS = sorted(path.stem for path in (ROOT / "crds").glob("*.yaml"))
FILES = [ROOT / f"crds/{plural}.yaml" for plural in PLURALS]
# Told by its own text, or no more than its neighbours are.
BOOLS_ALLOWED = {"suspend"}


def schema(plural: str) -> dict[str, Any]:
    version = crd(plural)["spec"]["versions"][0]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema below spec and status with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        if (path, name) != ("", "metadata"):
            yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}")


def found(rule: Any) -> list[str]:
    """Return the places of all definitions that break a rule."""
    return [
        f"{plural}{path}"
        for plural in PLURALS
        for path, node in nodes(schema(plural))
        if path not in {"", ".apiVersion", ".kind"} and rule(path, node)
    ]


def test_there_is_a_definition_for_each_kind() -> None:
    assert {"botdeployments", "plans", "tenants"} <= set(PLURALS)


def test_every_property_is_described_by_a_sentence() -> None:
    def undescribed(path: str, node: dict[str, Any]) -> bool:
        text = node.get("description", "")
        return not path.endswith(("[]", "{}")) and not re.search(r"\w.*\.$", text)

    assert found(undescribed) == []


def test_there_are_no_floats_and_no_nulls() -> None:
    assert found(lambda _, n: n.get("type") == "number" or n.get("nullable")) == []


def test_the_only_bool_is_suspend() -> None:
    bools = found(lambda _, n: n.get("type") == "boolean")

    assert {place.rpartition(".")[2] for place in bools} == BOOLS_ALLOWED


def test_every_node_has_a_type() -> None:
    assert found(lambda _, n: not ("type" in n or n.get("x-kubernetes-int-or-string"))) == []


def test_every_string_is_bounded() -> None:
    def unbounded(_: str, node: dict[str, Any]) -> bool:
        text = node.get("type") == "string" or node.get("x-kubernetes-int-or-string")
        return bool(text) and not ({"maxLength", "enum"} & node.keys())

    assert found(unbounded) == []


def test_every_number_that_a_user_writes_is_bounded() -> None:
    def unbounded(path: str, node: dict[str, Any]) -> bool:
        number = node.get("type") == "integer" or node.get("x-kubernetes-int-or-string")
        bounded = {"minimum", "maximum"} <= node.keys()
        return path.startswith(".spec") and bool(number) and not bounded

    assert found(unbounded) == []


def test_every_list_is_bounded_and_says_how_it_merges() -> None:
    def unbounded(_: str, node: dict[str, Any]) -> bool:
        return node.get("type") == "array" and not (
            "maxItems" in node
            and node.get("x-kubernetes-list-type") in {"map", "set", "atomic"}
            and bool(node.get("x-kubernetes-list-map-keys"))
            is (node["x-kubernetes-list-type"] == "map")
        )

    assert found(unbounded) == []


def test_the_keys_of_a_list_are_required() -> None:
    def optional(_: str, node: dict[str, Any]) -> bool:
        keys = set(node.get("x-kubernetes-list-map-keys", ()))
        return not keys <= set(node.get("items", {}).get("required", ()))

    assert found(optional) == []


def test_every_map_is_bounded() -> None:
    def unbounded(_: str, node: dict[str, Any]) -> bool:
        return "additionalProperties" in node and "maxProperties" not in node

    assert found(unbounded) == []


def test_nothing_is_defaulted_inside_list_items_and_nothing_required_is_defaulted() -> None:
    def defaulted(path: str, node: dict[str, Any]) -> bool:
        required = (node["properties"][name] for name in node.get("required", ()))
        return ("[]" in path and "default" in node) or any("default" in n for n in required)

    assert found(defaulted) == []


def test_names_keep_the_conventions() -> None:
    forbidden = re.compile(r"(phase|.*(Timestamp|Duration|Reference|Id))$")

    def odd(path: str, _: dict[str, Any]) -> bool:
        name = path.rpartition(".")[2].rstrip("[]{}")
        return not re.fullmatch(r"[a-z][A-Za-z]*", name) or bool(forbidden.match(name))

    assert found(odd) == []


def test_no_reference_leads_into_another_namespace() -> None:
    def leads_out(path: str, node: dict[str, Any]) -> bool:
        return path.endswith("Ref") and set(node["properties"]) != {"name"}

    assert found(leads_out) == []


@pytest.mark.parametrize("plural", PLURALS)
def test_a_cel_rule_tells_what_must_be(plural: str) -> None:
    messages = [
        rule["message"]
        for _, node in nodes(schema(plural))
        for rule in node.get("x-kubernetes-validations", ())
    ]

    assert all(re.match(r"(`[\w.]+` )?must ", message) for message in messages)


@pytest.mark.parametrize("plural", PLURALS)
def test_status_is_a_subresource_that_starts_as_not_visited(plural: str) -> None:
    version = crd(plural)["spec"]["versions"][0]
    status = schema(plural)["properties"]["status"]

    assert version["subresources"]["status"] == {}
    assert status["default"] == {"observedGeneration": -1}
    assert next(iter(status["properties"])) == "conditions"


@pytest.mark.parametrize("plural", PLURALS)
def test_conditions_are_a_list_map_by_type_with_the_standard_fields(plural: str) -> None:
    conditions = schema(plural)["properties"]["status"]["properties"]["conditions"]

    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert set(conditions["items"]["required"]) == {
        "type", "status", "observedGeneration", "lastTransitionTime", "reason", "message",
    }  # fmt: skip
    assert conditions["items"]["properties"]["status"]["enum"] == ["True", "False", "Unknown"]


@pytest.mark.parametrize("plural", PLURALS)
def test_the_columns_answer_whether_it_is_ready_and_why_not(plural: str) -> None:
    columns = crd(plural)["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [column["name"] for column in columns if not column.get("priority")]

    assert {"Ready", "Status", "Age"} <= set(shown)
    assert [c["name"] for c in columns if c.get("priority")] == ["Message"]


@pytest.mark.parametrize("path", FILES, ids=PLURALS)
def test_the_file_is_small_and_says_what_it_says_in_full(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert len(text) < 150_000
    assert not re.search(r": [&*]id\d", text)
