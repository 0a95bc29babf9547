"""The OpenAPI description: made of the table of routes, and of the types of what comes and what is answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lvmigrate.drain_report import DrainReport
from lvmigrate.errors import Finding, LvmigrateError
from lvmigrate.rehearse import Rehearsal
from lvmigrate.report import CleanupReport, Report
from lvmigrate.service.access import COOKIE
from lvmigrate.service.messages import EVENTS
from lvmigrate.service.problem import MEDIA_TYPE
from lvmigrate.service.routes import PARAMETERS, Key, Route

_REF: Final = "#/components/schemas/{name}"


class Error(Struct, frozen=True, kw_only=True):
    """An error, with what its kind knows."""

    #: A code of `lvmigrate explain`.
    code: str
    sentence: str
    #: The next thing to do.
    hint: str
    #: Foreign words, when there are any.
    detail: str
    #: What the command would exit with.
    exit_code: int
    #: Of a refusal: of which guest, and every reason.
    instance: str | UnsetType = UNSET
    findings: list[Finding] | UnsetType = UNSET
    #: Of what was left behind.
    leftovers: list[str] | UnsetType = UNSET
    #: Of an outcome that could not be proved.
    known: list[str] | UnsetType = UNSET


class Problem(Struct, frozen=True, kw_only=True):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    #: A code of `lvmigrate explain`.
    code: str
    #: The next thing to do.
    hint: str
    #: What the command would exit with.
    exit_code: int
    error: Error


#: What becomes of jobs.
_RESULTS: Final = (Report, Rehearsal, CleanupReport, DrainReport)


def description(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole of it, version 3.1."""
    kinds: list[Any] = [Problem, Error, Key, *PARAMETERS.values(), *EVENTS.values(), *_RESULTS]
    for route in routes:
        kinds += [kind for kind in (route.body, route.query, route.answer) if not isinstance(kind, str | None)]
    schemas, components = msgspec.json.schema_components(kinds, schema_hook=_hook, ref_template=_REF)
    by_kind = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    for name, those in (("result", _RESULTS), ("error", (Error,))):  # of a job, which has them as they are written
        components["Job"]["properties"][name]["anyOf"] = [*(by_kind[repr(kind)] for kind in those), {"type": "null"}]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_kind, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lvmigrate",
            "version": version("lvmigrate"),
            "description": "Moves running guests between KVM hosts with DRBD disks. docs/service.md tells the rest.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
                "browser": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
        "security": [{"token": []}, {"certificate": []}, {"browser": []}, {}],
    }


def _operation(route: Route, schemas: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    problem = {
        "description": "Not done: the code says why.",
        "content": {MEDIA_TYPE: {"schema": schemas[repr(Problem)]}},
    }
    if route.answer == "text/event-stream":
        # The description has no words for events: each is its kind, and JSON of the schema that is named for that.
        told = {kind: schemas[repr(each)] for kind, each in EVENTS.items()}
        content: dict[str, Any] = {route.answer: {"schema": {"type": "string", "x-events": told}}}
    elif isinstance(route.answer, str):
        content = {route.answer: {"schema": {}}}
    else:
        content = {"application/json": {"schema": schemas[repr(route.answer)]}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": f"Needs the role {route.role.value}{', or more for some orders' if route.keyed else ''}.",
        "parameters": _parameters(route, schemas, components),
        "responses": {
            str(int(route.status)): {"description": HTTPStatus(route.status).phrase, "content": content},
            "default": problem,
        },
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[repr(route.body)]}},
        }
    return operation


def _parameters(route: Route, schemas: Mapping[str, Any], components: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": schemas[repr(PARAMETERS[name])]}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    query = components[schemas[repr(route.query)]["$ref"].rpartition("/")[2]]
    found += [
        {"name": name, "in": "query", "required": False, "schema": _without_null(schema)}
        for name, schema in query["properties"].items()
    ]
    if route.keyed:
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": schemas[repr(Key)]})
    if route.answer == "text/event-stream":
        found.append({"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"}})
    return found


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A word of a query is there or is not; there is no null."""
    kinds = [each for each in schema.get("anyOf", [schema]) if each != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), **({} if "anyOf" not in schema else rest)}


def _hook(kind: type) -> dict[str, Any]:
    if issubclass(kind, LvmigrateError):
        return {"$ref": _REF.format(name=Error.__name__)}
    # What a hook of msgspec raises for a type that it does not know.
    raise NotImplementedError(f"{kind.__name__} is nothing that is sent")
