"""Field types that the five kinds share: bounded, without floats, each with its pattern."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, localcontext
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

QUANTITY_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,6})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_QUANTITY_FACTORS = {
    "": Decimal(1), "m": Decimal("0.001"),
    "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12, "P": Decimal(10) ** 15, "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10, "Mi": Decimal(2) ** 20, "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40, "Pi": Decimal(2) ** 50, "Ei": Decimal(2) ** 60,
}  # fmt: skip
_DIGITS = 60
"""More than any quantity of the pattern has, so that none is rounded."""


class Quantity(str):
    """A Kubernetes quantity as the user wrote it, such as `500m` or `4Gi`; never rewritten.

    Rewriting `0.1` to `100m` would show as drift in Git tools.
    """

    __slots__ = ()

    @property
    def value(self) -> Decimal:
        """The quantity in its base unit: cores or bytes."""
        return _value(str(self))

    @property
    def canonical(self) -> str:
        """The quantity as the API server stores it, so that a manifest compares equal later."""
        return _canonical(self.value, binary=self.endswith("i"))

    def times(self, factor: int) -> str:
        """Return a multiple of the quantity, as the API server stores it."""
        with localcontext(prec=_DIGITS):
            return _canonical(self.value * factor, binary=self.endswith("i"))

    def plus(self, more: Decimal) -> str:
        """Return the quantity and more of its base unit, as the API server stores it."""
        with localcontext(prec=_DIGITS):
            return _canonical(self.value + more, binary=self.endswith("i"))

    def at_most(self, bound: Quantity | None) -> Quantity:
        """Return the quantity, or the bound where that is less."""
        return self if bound is None or self.value <= bound.value else bound

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: type[Any], _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        text = core_schema.str_schema(pattern=QUANTITY_PATTERN, max_length=24)
        return core_schema.chain_schema(
            [
                core_schema.no_info_plain_validator_function(
                    lambda v: str(v) if isinstance(v, int) and not isinstance(v, bool) else v
                ),
                text,
                core_schema.no_info_plain_validator_function(cls),
            ],
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "maxLength": 24,
            # A pattern binds strings only; without bounds the server admits -1, the model does not.
            "minimum": 0,
            "maximum": 10**12 - 1,
            "x-kubernetes-int-or-string": True,
        }


@lru_cache(maxsize=1024)
def _value(text: str) -> Decimal:
    digits = text.rstrip("mkMGTPEKi")
    with localcontext(prec=_DIGITS):
        return Decimal(digits) * _QUANTITY_FACTORS[text[len(digits) :]]


@lru_cache(maxsize=1024)
def _canonical(value: Decimal, *, binary: bool) -> str:
    """Return the shortest whole number with a suffix of the same family; rounds up to 1/1000."""
    if value == 0:
        return "0"
    with localcontext(prec=_DIGITS):
        thousandths = (value * 1000).to_integral_value(ROUND_CEILING)
        if thousandths % 1000:
            return f"{int(thousandths)}m"
        whole = thousandths / 1000
        for suffix, factor in reversed(_QUANTITY_FACTORS.items()):
            if suffix.endswith("i") == binary and suffix != "m" and whole % factor == 0:
                return f"{int(whole / factor)}{suffix}"
    return str(int(whole))


Money = Annotated[
    str, Field(pattern=r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?$", min_length=1, max_length=17)
]
"""An amount in the major unit of its currency, such as `128.40`."""

UnitPrice = Annotated[
    str, Field(pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,18})?$", min_length=1, max_length=28)
]
"""A price per unit with up to 18 decimals; it is never rounded."""

Amount = Annotated[
    str, Field(pattern=r"^(0|[1-9][0-9]{0,17})(\.[0-9]{1,12})?$", min_length=1, max_length=31)
]
"""A non-negative number of units of a meter."""

Fraction = Annotated[
    str, Field(pattern=r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", min_length=1, max_length=8)
]
"""A share between 0 and 1, such as `0.10` for ten percent."""

DNSLabel = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)
]
DNSName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        min_length=1,
        max_length=253,
    ),
]
ImageRegistry = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9._-]+)*$", max_length=200
    ),
]
"""A registry host with an optional path: an image matches when it continues with `/`."""

Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", min_length=3, max_length=3)]
Timestamp = Annotated[str, Field(max_length=35, json_schema_extra={"format": "date-time"})]

SET = {"x-kubernetes-list-type": "set"}
ATOMIC = {"x-kubernetes-list-type": "atomic"}


def list_map(*keys: str) -> dict[str, Any]:
    """Return the schema extension of a list whose items are merged by these keys."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def cel(rule: str, message: str, field_path: str | None = None) -> dict[str, Any]:
    """Return one CEL validation rule; `message` tells what the value must be."""
    entry = {"rule": rule, "message": message}
    if field_path is not None:
        entry["fieldPath"] = field_path
    return entry


def validations(*rules: dict[str, Any]) -> dict[str, Any]:
    """Return the schema extension that carries CEL rules."""
    return {"x-kubernetes-validations": list(rules)}


class APIModel(BaseModel):
    """A part of a custom resource: camelCase on the wire, described by its docstrings.

    Unknown fields are ignored: the API server has pruned or refused them already, and an
    operator one version behind must still read a newer object.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        extra="ignore",
        frozen=True,
    )


class LocalReference(APIModel):
    """A reference to an object by name: cluster-scoped, or in the namespace of the referrer."""

    name: DNSName
    """Name of the object."""
