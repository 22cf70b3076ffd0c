"""Values that a structural schema admits, as hypothesis strategies.

Means what the API server means: a `pattern` is RE2, whose classes are ASCII, and holds for strings
only; numeric bounds hold for numbers only; absent fields stay absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

MAX_SAFE_INTEGER = 2**53 - 1
Schema = dict[str, Any]
Text = Callable[[Schema], "st.SearchStrategy[str] | None"]
"""Offers other strings for a schema of type string, or None for those of the pattern."""

# What JSON can carry and the API server stores: no lone surrogates.
ANY_TEXT = st.text(max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


def values(schema: Schema, text: Text = lambda _: None) -> st.SearchStrategy[Any]:
    """Return a strategy for the values that a schema admits, CEL rules aside."""
    if schema.get("x-kubernetes-int-or-string"):
        return _integers(schema) | _strings(schema, text)
    match schema["type"]:
        case "object":
            return _objects(schema, text)
        case "array":
            return _arrays(schema, text)
        case "string":
            return _strings(schema, text)
        case "integer":
            return _integers(schema)
        case "boolean":
            return st.booleans()
        case other:
            raise AssertionError(f"the schema has type {other}")


def _objects(schema: Schema, text: Text) -> st.SearchStrategy[Any]:
    if "properties" in schema:
        needed = set(schema.get("required", ()))
        fields = {name: values(child, text) for name, child in schema["properties"].items()}
        return st.fixed_dictionaries(
            {name: fields[name] for name in needed},
            optional={name: field for name, field in fields.items() if name not in needed},
        )
    if "additionalProperties" in schema:
        keys = st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True)
        inner = values(schema["additionalProperties"], text)
        return st.dictionaries(keys, inner, max_size=min(schema["maxProperties"], 4))
    return st.dictionaries(ANY_TEXT, JSON_VALUES, max_size=4)


def _arrays(schema: Schema, text: Text) -> st.SearchStrategy[Any]:
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys is not None:

        def identity(item: Any) -> Any:
            return tuple(item[key] for key in keys)
    else:

        def identity(item: Any) -> Any:
            return repr(item)

    return st.lists(
        values(schema["items"], text),
        min_size=schema.get("minItems", 0),
        max_size=min(schema["maxItems"], max(3, schema.get("minItems", 0))),
        unique_by=identity,
    )


def _strings(schema: Schema, text: Text) -> st.SearchStrategy[str]:
    offered = text(schema)
    if offered is not None:
        return offered
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    least, most = schema.get("minLength", 0), schema["maxLength"]
    if schema.get("format") == "date-time":
        return st.datetimes().map(lambda at: f"{at.replace(microsecond=0).isoformat()}Z")
    if "pattern" not in schema:
        return st.text(min_size=least, max_size=min(most, 40))
    pattern = re.compile(schema["pattern"].removesuffix("$") + r"\Z", re.ASCII)
    return st.from_regex(pattern).filter(lambda s: least <= len(s) <= most)


def _integers(schema: Schema) -> st.SearchStrategy[int]:
    return st.integers(
        schema.get("minimum", -MAX_SAFE_INTEGER), schema.get("maximum", MAX_SAFE_INTEGER)
    )
