"""What a move that did not succeed amounts to, after everything that could be undone was undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from lvmigrate.decision import Sight
from lvmigrate.errors import Code, GuestLost, LeftBehind, LvmigrateError, MoveFailed, Refused
from lvmigrate.plan import Plan
from lvmigrate.rollback import Leftover

_log = structlog.get_logger()

_WHERE: Final = {
    Sight.RUNS: "{0} goes on at {1}",
    Sight.WAITS: "{0} waits paused at {1}",
    Sight.GONE: "{0} does not run on {1} any more",
}


def failed(plan: Plan, error: LvmigrateError, leftovers: Sequence[Leftover], source: Sight) -> LvmigrateError:
    """The error to raise for ``error`` when the rollback left ``leftovers`` and the source's word is ``source``."""
    if isinstance(error, Refused) and not leftovers:
        return error
    what = error.sentence.rstrip(".")
    where = _WHERE.get(source, "{1} did not say how {0} is").format(plan.instance, plan.source)
    if leftovers or isinstance(error, LeftBehind):
        return LeftBehind(
            f"The move failed ({what}) and could not be undone completely; {where}.",
            leftovers=[
                *(error.leftovers if isinstance(error, LeftBehind) else ()),
                *(f"{leftover.undo.leftover}: {leftover.error}" for leftover in leftovers),
            ],
            hint=" ".join(dict.fromkeys([error.hint, *(leftover.undo.hint for leftover in leftovers)])),
            detail=error.detail,
        )
    if source is Sight.GONE:
        return GuestLost(f"{what}; {where}.", hint=f"Its disks are whole: `virsh start {plan.instance}` there.")
    kind = type(error) if isinstance(error, MoveFailed) else MoveFailed
    return kind(f"{what}; {where}.", code=error.code, hint=error.hint, detail=error.detail)


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
