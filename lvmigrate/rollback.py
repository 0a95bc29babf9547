"""Undoing what a move has done so far: in one place, newest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from lvmigrate.defect import defect
from lvmigrate.errors import LvmigrateError

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """How one act is undone. Idempotent, and right also when the act never happened."""

    #: What stays if it fails, in words: ``two primaries are allowed on web1``.
    leftover: str
    #: The command to look with, or to do it by hand.
    hint: str
    act: Callable[[], None]
    #: Not done when an earlier undo failed: it would take away what may still mend that.
    only_if_clean: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An undo that failed."""

    undo: Undo
    error: LvmigrateError


class Rollback:
    """A stack of undos. Each is registered *before* the act it undoes."""

    def __init__(self) -> None:
        self._undos: list[Undo] = []

    def __bool__(self) -> bool:
        """Whether there is anything to undo."""
        return bool(self._undos)

    def register(self, undo: Undo) -> None:
        """Have ``undo`` done, before all that are registered already, if the move fails."""
        self._undos.append(undo)

    def run(self) -> tuple[Leftover, ...]:
        """Do every undo, newest first; one that fails is noted and never keeps the others from being done."""
        leftovers: list[Leftover] = []
        while self._undos:
            undo = self._undos.pop()
            if undo.only_if_clean and leftovers:
                _log.info("undo_left_out", leftover=undo.leftover)
                continue
            try:
                undo.act()
            except Exception as caught:  # noqa: BLE001 -- a defect in one must not keep the others from being done
                error = defect(caught)
                _log.error("undo_failed", leftover=undo.leftover, error=str(error), detail=error.detail)
                leftovers.append(Leftover(undo=undo, error=error))
            else:
                _log.debug("undone", leftover=undo.leftover)
        return tuple(leftovers)
