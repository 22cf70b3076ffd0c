"""The models read everything that the API server admits, and the examples as they stand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from botplane.api.bot_deployment import BotDeploymentSpec, BotDeploymentStatus
from botplane.api.plan import PlanSpec, PlanStatus
from botplane.api.tenant import TenantSpec, TenantStatus
from tests.support.declared import a_tenant, examples, schema_of
from tests.support.schema_values import values

MODELS: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    "botdeployments": (BotDeploymentSpec, BotDeploymentStatus),
    "plans": (PlanSpec, PlanStatus),
    "tenants": (TenantSpec, TenantStatus),
}
VALUES = {
    (plural, part): values(schema_of(plural)["properties"][part])
    for plural in MODELS
    for part in ("spec", "status")
}
KINDS = {"BotDeployment": BotDeploymentSpec, "Plan": PlanSpec, "Tenant": TenantSpec}


@pytest.mark.parametrize("plural", MODELS)
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_value_that_the_schema_admits_is_refused_by_the_model(plural: str, data: Any) -> None:
    # A refusal here would be an internal error in every pass of that object.
    spec, status = MODELS[plural]

    spec.model_validate(data.draw(VALUES[plural, "spec"]))
    status.model_validate(data.draw(VALUES[plural, "status"]))


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        pytest.param(KINDS[kind], body["spec"], id=f"{kind} {body['metadata']['name']}")
        for kind in KINDS
        for body in examples(kind)
    ],
)
def test_an_example_means_what_it_says(model: type[BaseModel], spec: dict[str, Any]) -> None:
    read = model.model_validate(spec).model_dump(by_alias=True, exclude_unset=True)

    assert read == spec


@pytest.mark.parametrize("space", ["\u00a0", "\u2028", "\u3000"])
def test_a_space_that_the_server_takes_for_a_letter_does_not_stop_the_operator(space: str) -> None:
    member = {"kind": "User", "name": f"ana{space}maria", "role": "Viewer"}

    spec = a_tenant(members=[member], adminEmail=f"ana{space}maria@acme.example")

    assert spec.members[0].name == f"ana{space}maria"


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_an_example_of_each_kind(kind: str) -> None:
    assert examples(kind)
