"""Checks that nobody has to wait for: they only look, so that what still looks may be left to end by itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from lvmigrate.aside import aside
from lvmigrate.errors import MoveAborted
from lvmigrate.together import in_turn

T = TypeVar("T")

#: How often it is looked whether somebody wants to stop.
_LOOK_S: Final = 0.05


def unless_stopped(check: Callable[[], T], cancel: threading.Event) -> T:
    """What ``check`` finds or raises; `MoveAborted` as soon as ``cancel`` is set, also right after its end.

    ``check`` must change nothing: it may still be at work then, as long as its own deadlines let it.
    """
    if in_turn.get():
        found = check()
        _go_on(cancel)
        return found
    ended = aside(check, "checks")
    while True:
        _go_on(cancel)
        try:
            outcome = ended.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
        _go_on(cancel)
        return outcome()


def _go_on(cancel: threading.Event) -> None:
    if cancel.is_set():
        raise MoveAborted("Aborted as asked, before anything began.", hint="Nothing is left to do.")
