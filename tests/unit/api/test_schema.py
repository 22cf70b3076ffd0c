"""The converter refuses what a structural schema cannot say."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, create_model

from botplane.api.schema import NotStructuralError, structural_schema
from botplane.api.types import ATOMIC, APIModel, LocalReference, Quantity

LIST: Any = ATOMIC
Bounded = Annotated[str, Field(max_length=10)]


def schema_with(annotation: Any, description: str | None = "A field.") -> dict[str, Any]:
    field = Field(description=description)
    model = create_model("Model", __base__=APIModel, some_field=(annotation, field))
    schema: dict[str, Any] = structural_schema(model)["properties"]["someField"]
    return schema


@pytest.mark.parametrize(
    "annotation",
    [
        int | Bounded,
        float,
        str,
        list[Bounded],
        Annotated[list[Bounded], Field(max_length=3)],
        Annotated[list[Bounded], Field(json_schema_extra=LIST)],
        Annotated[list[str], Field(max_length=3, json_schema_extra=LIST)],
        dict[str, Bounded],
        Annotated[dict[str, str], Field(max_length=3)],
        Annotated[int, Field(gt=0)],
        Annotated[int, Field(multiple_of=2)],
        Annotated[list[float], Field(max_length=3, json_schema_extra=LIST)],
    ],
    ids=[
        "union", "float", "unbounded string", "unbounded list", "list without a type",
        "list without a bound", "unbounded string in a list", "unbounded map",
        "unbounded string in a map", "exclusive bound", "multiple", "float in a list",
    ],
)  # fmt: skip
def test_it_refuses(annotation: Any) -> None:
    with pytest.raises(NotStructuralError):
        schema_with(annotation)


@pytest.mark.parametrize("description", [None, "", "No full stop"])
def test_it_refuses_a_field_that_is_not_described(description: str | None) -> None:
    with pytest.raises(NotStructuralError):
        schema_with(Bounded, description)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Bounded, {"type": "string", "maxLength": 10}),
        (Bounded | None, {"type": "string", "maxLength": 10}),
        (Annotated[int, Field(ge=1, le=9)], {"type": "integer", "minimum": 1, "maximum": 9}),
        (bool, {"type": "boolean"}),
    ],
    ids=["string", "optional string", "integer", "bool"],
)
def test_it_says_what_it_can(annotation: Any, expected: dict[str, Any]) -> None:
    assert schema_with(annotation) == expected | {"description": "A field."}


def test_a_reference_keeps_the_description_of_the_field() -> None:
    schema = schema_with(LocalReference, "The plan.")

    assert schema["description"] == "The plan."
    assert schema["properties"]["name"]["maxLength"] == 253


def test_a_quantity_is_a_bounded_integer_or_string() -> None:
    schema = schema_with(Quantity)

    assert schema["x-kubernetes-int-or-string"] is True
    assert (schema["minimum"], schema["maximum"]) == (0, 999999999999)
