"""Values as JSON: the same names as in Python, times in seconds, sizes as the field's name says."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from lvmigrate.errors import LeftBehind, LvmigrateError, OutcomeUnknown, Refused


def jsonable(value: object) -> Any:  # noqa: ANN401 -- JSON is what it is
    """Dataclasses as objects, enums as their values, errors as `error_object`; the rest as JSON has it."""
    if isinstance(value, LvmigrateError):
        return error_object(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [jsonable(item) for item in value]
    return value


def error_object(error: LvmigrateError) -> dict[str, Any]:
    """An error with its code, sentence, hint and whatever facts its kind has."""
    known: dict[str, Any] = {
        "code": error.code.value,
        "sentence": error.sentence,
        "hint": error.hint,
        "detail": error.detail,
        "exit_code": int(error.exit_code),
    }
    match error:
        case Refused():
            known["instance"] = error.instance
            known["findings"] = jsonable(error.findings)
        case LeftBehind():
            known["leftovers"] = list(error.leftovers)
        case OutcomeUnknown():
            known["known"] = list(error.known)
    return known
