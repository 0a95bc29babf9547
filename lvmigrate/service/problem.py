"""Errors on their way: as ``application/problem+json`` (RFC 9457) with lvmigrate's codes, and back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lvmigrate.errors import (
    Code,
    ConfigurationError,
    ExitCode,
    Finding,
    GuestLost,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    NodeUnreachable,
    OutcomeUnknown,
    Refused,
    UsageError,
)
from lvmigrate.explanation import EXPLANATIONS
from lvmigrate.jsonable import error_object

MEDIA_TYPE: Final = "application/problem+json"

#: The status of HTTP where the code says more than the exit code does.
_BY_CODE: Final[Mapping[Code, int]] = MappingProxyType(
    {
        Code.UNAUTHENTICATED: 401,
        Code.FORBIDDEN: 403,
        Code.ROUTE_UNKNOWN: 404,
        Code.JOB_UNKNOWN: 404,
        Code.ERRAND_UNKNOWN: 404,
        Code.INSTANCE_UNKNOWN: 404,
        Code.NODE_UNKNOWN: 404,
        Code.JOB_ENDED: 409,
        Code.TOO_LARGE: 413,
        Code.KEY_REUSED: 422,
        Code.RATE_LIMITED: 429,
        Code.QUEUE_FULL: 503,
        Code.SERVICE_BUSY: 503,
        Code.STOPPING: 503,
        Code.JOURNAL_UNUSABLE: 503,
    }
)
_BY_EXIT: Final[Mapping[ExitCode, int]] = MappingProxyType(
    {
        ExitCode.USAGE: 400,
        ExitCode.REFUSED: 409,
        ExitCode.ABORTED: 409,
        ExitCode.FAILED: 502,
        ExitCode.UNREACHABLE: 504,
        ExitCode.UNKNOWN: 409,
        ExitCode.LEFT_BEHIND: 409,
        ExitCode.LOST: 409,
    }
)


class NotDone(LvmigrateError):
    """The service did not do what was asked of it, for a reason of its own. Nothing was looked at."""

    exit_code = ExitCode.REFUSED


class Told(LvmigrateError):
    """An error that a service has told, of a kind that has no facts of its own."""

    def __init__(self, sentence: str, *, hint: str, code: Code, detail: str, exit_code: ExitCode) -> None:
        super().__init__(sentence, hint=hint, code=code, detail=detail)
        self.exit_code = exit_code


class ToldUnreachable(NodeUnreachable):
    """The same, of a node that gave the service no answer."""

    def __init__(self, sentence: str, *, hint: str, code: Code, detail: str) -> None:
        LvmigrateError.__init__(self, sentence, hint=hint, code=code, detail=detail)
        self.node = ""


def status_of(error: LvmigrateError) -> int:
    """The status of HTTP that fits."""
    return _BY_CODE.get(error.code) or _BY_EXIT.get(error.exit_code, 500)


def problem(error: LvmigrateError) -> dict[str, Any]:
    """The error as RFC 9457 has it, with all that `error_object` says below ``error``."""
    code = error.code.value
    return {
        "type": f"urn:lvmigrate:{code}",
        "title": EXPLANATIONS[error.code].meaning,
        "status": status_of(error),
        "detail": error.sentence,
        "code": code,
        "hint": error.hint,
        "exit_code": int(error.exit_code),
        "error": error_object(error),
    }


def error_of(told: Mapping[str, Any]) -> LvmigrateError:
    """What `error_object` has made an object of. Raises `KeyError`, `ValueError` or `TypeError` if it is none."""
    sentence, hint, detail = str(told["sentence"]), str(told["hint"]), str(told["detail"])
    code = Code(told["code"])
    exit_code = ExitCode(told["exit_code"])
    if "findings" in told:
        return Refused(
            str(told.get("instance", "")),
            [
                Finding(code=Code(each["code"]), sentence=each["sentence"], hint=each["hint"])
                for each in told["findings"]
            ],
        )
    if "leftovers" in told:
        return LeftBehind(sentence, leftovers=told["leftovers"], hint=hint, detail=detail)
    if "known" in told:
        return OutcomeUnknown(sentence, known=told["known"], hint=hint, detail=detail)
    if exit_code is ExitCode.UNREACHABLE:
        return ToldUnreachable(sentence, hint=hint, code=code, detail=detail)
    for kind in (UsageError, ConfigurationError, MoveFailed, MoveAborted, GuestLost):
        if kind.exit_code is exit_code:
            return kind(sentence, hint=hint, code=code, detail=detail)
    return Told(sentence, hint=hint, code=code, detail=detail, exit_code=exit_code)
