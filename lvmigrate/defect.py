"""What goes wrong and is no error of ours: a defect, which must not end what has to be done after it."""

from __future__ import annotations

import structlog

from lvmigrate.errors import Code, LvmigrateError

_log = structlog.get_logger()


def defect(error: Exception) -> LvmigrateError:
    """``error`` as one of ours; its traceback is in the log."""
    if isinstance(error, LvmigrateError):
        return error
    _log.error("defect", error=repr(error), exc_info=error)
    return LvmigrateError(
        f"lvmigrate has a defect: {type(error).__name__}: {error}.",
        hint="Please report it with the output of the same command under --log-level debug.",
        code=Code.INTERNAL,
    )
