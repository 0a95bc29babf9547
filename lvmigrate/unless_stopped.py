"""Checks that nobody has to wait for: they only look, so that what still looks may be left to end by itself."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn, TypeVar

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
    ended: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run() -> None:
        try:
            result = check()
        except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits, if it still does
            ended.put(partial(_raise, error))
        else:
            ended.put(lambda: result)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="checks", daemon=True).start()
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


def _raise(error: BaseException) -> NoReturn:
    raise error
