"""The OpenAPI description, held against what is answered: by Schemathesis, with examples of its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema_rs
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

from lvmigrate.service.messages import EVENTS
from lvmigrate.service.openapi import description
from lvmigrate.service.routes import ROUTES
from lvmigrate.service.settings import Role
from tests.service.conftest import ADDRESS, TOKENS, Bench, From
from tests.service.support import wait_for

ALWAYS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODES = {"as described": (GenerationMode.POSITIVE, ALWAYS), "otherwise": (GenerationMode.NEGATIVE, ALWAYS)}
#: How many requests of each kind are tried at each address: there are as many addresses as routes.
EXAMPLES = {Role.FORCE: 25, Role.MOVE: 6, Role.LOOK: 6}


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("role", EXAMPLES, ids=lambda role: role.value)
def test_what_is_answered_is_what_is_described(bench: Bench, role: Role, how: str) -> None:
    authorized = {"Authorization": f"Bearer {TOKENS[role][0]}"}
    mode, checks = MODES[how]
    if mode is GenerationMode.NEGATIVE and role is Role.FORCE:
        checks = [*checks, negative_data_rejection]
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", From(bench.app, ADDRESS), headers=authorized)
    by_name = {route.name: route for route in ROUTES}
    tried = set()

    def answered(case: Any) -> int:
        status: int = case.call_and_validate(headers=authorized, checks=checks).status_code
        return status

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path.endswith("/events"):  # a stream ends when its job does
            continue
        tried.add((operation.method.upper(), operation.path))
        raw = operation.definition.raw
        if mode is GenerationMode.NEGATIVE and not raw["parameters"] and "requestBody" not in raw:
            continue  # nothing can be said wrongly
        answers: list[int] = []
        _try(operation, mode, EXAMPLES[role], lambda case, told=answers: told.append(answered(case)))  # type: ignore[misc]
        if role < by_name[raw["operationId"]].role:
            # 404 and 405: of an address, or of a method, that has been made into another one.
            assert set(answers) <= {403, 404, 405}
    described = {(route.method, route.path) for route in ROUTES if not route.path.endswith("/events")}
    assert tried == described - {("GET", "/v1/openapi.json")}
    if role is Role.LOOK:
        assert (bench.ledger.some(), bench.cluster.node_states(), bench.world.tokens) == ([], {}, {})
        assert bench.world.running() == ["node1"]


def _try(operation: Any, mode: GenerationMode, examples: int, act: Callable[[Any], None]) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        act(case)

    run()


def test_events_and_what_becomes_of_jobs_are_as_described(bench: Bench) -> None:
    client = bench.client()
    described = client.get("/v1/openapi.json").json()
    kinds = described["paths"]["/v1/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"][
        "x-events"
    ]
    assert kinds.keys() == EVENTS.keys()
    validators = {
        kind: jsonschema_rs.validator_for({**schema, "components": described["components"]})
        for kind, schema in kinds.items()
    }
    for collection, order in (
        ("moves", {"what": "rehearse", "instance": "web1"}),
        ("moves", {"what": "migrate", "instance": "web1", "target": "node2"}),
        ("moves", {"what": "migrate", "instance": "web1", "target": "node2"}),
        ("drains", {"what": "drain", "nodes": ["node2"]}),
        ("drains", {"what": "return", "node": "node2"}),
        ("cleanups", {"what": "cleanup", "instance": "web1"}),
    ):
        job = client.post(f"/v1/{collection}", json=order).json()["id"]
        wait_for(lambda job=job: bench.jobs.one(job).over)  # type: ignore[misc]
    seen: Counter[str] = Counter()
    for event in bench.hub._log:
        lines = dict(line.split(": ", 1) for line in event.frame.decode().strip().splitlines())
        validators[lines["event"]].validate(json.loads(lines["data"]))
        seen[lines["event"]] += 1
    assert seen.keys() >= {"job", "plan", "progress", "begun", "moved"}
    ended = [bench.client().get(f"/v1/{each}").json()["jobs"] for each in ("moves", "drains", "cleanups")]
    assert {job["outcome"] for jobs in ended for job in jobs} >= {"OK", "TARGET_IS_SOURCE"}
    wrong = {**ended[0][0], "error": {"code": "LOCKED"}, "result": {"nothing": 1}}
    assert not validators["job"].is_valid(wrong), "anything would do"


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
