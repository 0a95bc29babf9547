"""Work in a thread of its own, for whoever may stop waiting for it: what hangs there is left to end by itself."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

T = TypeVar("T")


def aside(work: Callable[[], T], name: str) -> queue.SimpleQueue[Callable[[], T]]:
    """Begin ``work``; once it has ended, a call is in the queue that gives its result, or raises what it raised."""
    ended: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits, if it still does
            ended.put(partial(_raise, error))
        else:
            ended.put(lambda: result)

    # Context variables (the log's bound values) do not follow into threads by themselves.
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()
    return ended


def _raise(error: BaseException) -> NoReturn:
    raise error
