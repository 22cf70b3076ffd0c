"""pydantic model -> structural OpenAPI schema of a CustomResourceDefinition.

Refuses what a structural schema cannot say instead of guessing: unions, floats, exclusive bounds.
Source of the rules: Kubernetes documentation, "Specifying a structural schema".
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

KEPT = frozenset(
    {
        "type", "description", "format", "enum", "default", "pattern", "minLength", "maxLength",
        "minimum", "maximum", "minItems", "maxItems", "maxProperties", "required",
    }
)  # fmt: skip
DROPPED = frozenset({"title", "additionalProperties", "properties", "items", "$ref", "allOf"})


class NotStructuralError(ValueError):
    """A model uses something that a structural schema cannot express."""


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of a model, with descriptions, bounds and CEL rules.

    Raises:
        NotStructuralError: The model has a union, a float, an undescribed or unbounded field.
    """
    document = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(document, document.get("$defs", {}), model.__name__)


def _convert(node: dict[str, Any], defs: dict[str, Any], path: str) -> dict[str, Any]:
    node = _inlined(node, defs, path)
    if node.get("x-kubernetes-int-or-string"):
        return {k: v for k, v in node.items() if (k, v) != ("default", None) and k != "title"}
    _refuse(node, path)
    out = {k: v for k, v in node.items() if k in KEPT or k.startswith("x-kubernetes-")}
    if out.get("default", ...) is None:
        del out["default"]
    elif isinstance(out.get("default"), dict):
        # The defaults of the fields inside fill it; said once, they cannot disagree.
        out["default"] = {}
    if "description" in out:
        out["description"] = " ".join(str(out["description"]).split())
    if node.get("type") == "object":
        _convert_object(node, out, defs, path)
    if node.get("type") == "array":
        if "maxItems" not in node or "x-kubernetes-list-type" not in node:
            raise NotStructuralError(f"{path}: a list needs maxItems and x-kubernetes-list-type")
        out["items"] = _without_defaults(_convert(node["items"], defs, f"{path}[]"))
    return out


def _without_defaults(node: Any) -> Any:
    """Drop defaults inside list items: once filled in, Git tools show them as drift."""
    if isinstance(node, dict):
        return {k: _without_defaults(v) for k, v in node.items() if k != "default"}
    return node


def _convert_object(
    node: dict[str, Any], out: dict[str, Any], defs: dict[str, Any], path: str
) -> None:
    if "properties" in node:
        out["properties"] = {
            name: _property(child, defs, f"{path}.{name}")
            for name, child in node["properties"].items()
        }
    elif out.get("x-kubernetes-preserve-unknown-fields"):
        return
    elif isinstance(node.get("additionalProperties"), dict):
        if "maxProperties" not in out:
            raise NotStructuralError(f"{path}: a map needs maxProperties")
        out["additionalProperties"] = _convert(node["additionalProperties"], defs, f"{path}{{}}")
    else:
        raise NotStructuralError(f"{path}: an object needs properties")


def _property(child: dict[str, Any], defs: dict[str, Any], path: str) -> dict[str, Any]:
    converted = _convert(child, defs, path)
    if not converted.get("description", "").strip().endswith("."):
        raise NotStructuralError(f"{path}: a field needs a description that ends with a full stop")
    return converted


def _inlined(node: dict[str, Any], defs: dict[str, Any], path: str) -> dict[str, Any]:
    """Resolve `$ref` and `X | None`; what stands beside a reference wins over it."""
    if node.get("x-kubernetes-int-or-string"):
        return node
    if "anyOf" in node:
        options = [o for o in node["anyOf"] if o.get("type") != "null"]
        if len(options) != 1:
            raise NotStructuralError(f"{path}: unions cannot be expressed")
        beside = {k: v for k, v in node.items() if k != "anyOf"}
        return _inlined({**options[0], **beside}, defs, path)
    if "$ref" in node:
        target = defs[node["$ref"].removeprefix("#/$defs/")]
        beside = {k: v for k, v in node.items() if k != "$ref"}
        return _inlined({**target, **beside}, defs, path)
    return node


def _refuse(node: dict[str, Any], path: str) -> None:
    if "type" not in node:
        raise NotStructuralError(f"{path}: has no type")
    if node["type"] == "number":
        raise NotStructuralError(f"{path}: floats are not allowed; use a decimal string")
    if node["type"] == "string" and not {"maxLength", "enum"} & node.keys():
        raise NotStructuralError(f"{path}: a string needs maxLength")
    unknown = {
        k for k in node if k not in KEPT | DROPPED and not k.startswith(("x-kubernetes-", "$defs"))
    }
    if unknown:
        raise NotStructuralError(f"{path}: {', '.join(sorted(unknown))} cannot be expressed")
