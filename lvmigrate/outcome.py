"""What a move that did not succeed amounts to, after everything that could be undone was undone."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from lvmigrate.errors import Code, LeftBehind, LvmigrateError, MoveFailed, Refused
from lvmigrate.plan import Plan
from lvmigrate.rollback import Leftover

_log = structlog.get_logger()


def failed(plan: Plan, error: LvmigrateError, leftovers: Sequence[Leftover]) -> LvmigrateError:
    """The error to raise for ``error`` when the rollback left ``leftovers`` (usually none)."""
    if leftovers or isinstance(error, LeftBehind):
        return LeftBehind(
            f"The move failed ({error.sentence.rstrip('.')}) and could not be undone completely;"
            f" {plan.instance} is at {plan.source}.",
            leftovers=[
                *(error.leftovers if isinstance(error, LeftBehind) else ()),
                *(f"{leftover.undo.leftover}: {leftover.error}" for leftover in leftovers),
            ],
            hint=" ".join(dict.fromkeys([error.hint, *(leftover.undo.hint for leftover in leftovers)])),
            detail=error.detail,
        )
    if isinstance(error, MoveFailed | Refused):
        return error
    return MoveFailed(
        f"{error.sentence.rstrip('.')}; {plan.instance} goes on at {plan.source}.",
        code=error.code,
        hint=error.hint,
        detail=error.detail,
    )


def unfinished(plan: Plan, error: LvmigrateError) -> LeftBehind:
    """The error to raise for ``error`` past the point of no return."""
    return LeftBehind(
        f"{plan.instance} runs on {plan.target}, but the move could not be finished.",
        leftovers=[str(error)],
        hint=error.hint,
        detail=error.detail,
    )


def defect(error: Exception) -> LvmigrateError:
    """What is not one of ours is a defect of ours."""
    _log.exception("defect", error=repr(error))
    return LvmigrateError(
        f"lvmigrate has a defect: {type(error).__name__}: {error}.",
        hint="Please report it with the output of the same command under --log-level debug.",
        code=Code.INTERNAL,
    )
