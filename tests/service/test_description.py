"""The OpenAPI description, held against what is answered: by Schemathesis, with examples of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from lvmigrate.service.openapi import description
from lvmigrate.service.routes import ROUTES
from lvmigrate.service.settings import Role
from tests.service.conftest import ADDRESS, TOKENS, Bench, From

AUTHORIZED = {"Authorization": f"Bearer {TOKENS[Role.FORCE][0]}"}
ALWAYS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize(
    ("mode", "checks"),
    [(GenerationMode.POSITIVE, ALWAYS), (GenerationMode.NEGATIVE, [*ALWAYS, negative_data_rejection])],
    ids=["as described", "otherwise"],
)
def test_what_is_answered_is_what_is_described(bench: Bench, mode: GenerationMode, checks: list[Any]) -> None:
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", From(bench.app, ADDRESS), headers=AUTHORIZED)
    tried = set()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path.endswith("/events"):  # a stream ends when its job does
            continue
        tried.add((operation.method.upper(), operation.path))
        raw = operation.definition.raw
        if mode is GenerationMode.NEGATIVE and not raw["parameters"] and "requestBody" not in raw:
            continue  # nothing can be said wrongly

        @settings(
            max_examples=6,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            case.call_and_validate(headers=AUTHORIZED, checks=checks)

        run()
    described = {(route.method, route.path) for route in ROUTES if not route.path.endswith("/events")}
    assert tried == described - {("GET", "/v1/openapi.json")}


def test_every_route_is_described() -> None:
    told = description(ROUTES)
    found = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert found == {(route.method, route.path) for route in ROUTES}
    for path, methods in told["paths"].items():
        for operation in methods.values():
            named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))
            assert operation["summary"].endswith(".")
            assert operation["responses"]["default"]["content"].keys() == {"application/problem+json"}
