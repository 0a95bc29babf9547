"""Time, as something that can be handed in: the deadlines of a move are tested without waiting for them."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import structlog

_log = structlog.get_logger()


@contextmanager
def _every(seconds: float, call: Callable[[], None], name: str) -> Iterator[None]:
    end = threading.Event()

    def run() -> None:
        while not end.wait(seconds):
            try:
                call()
            except Exception as error:  # noqa: BLE001 -- one call that failed must not be the last
                _log.error("call_failed", name=name, error=repr(error), exc_info=error)

    # Context variables (the log's bound values) do not follow into threads by themselves.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _now() -> float:
    """Seconds since this machine started, suspended or not: the nodes' leases go on meanwhile (proc(5), uptime)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Seconds that only go forward, and ways to let them pass."""

    now: Callable[[], float] = _now
    sleep: Callable[[float], None] = time.sleep
    #: ``every(seconds, call, name)``: while in the context, ``call`` is called that often, beside everything else,
    #: whatever one of the calls raises.
    every: Callable[[float, Callable[[], None], str], AbstractContextManager[None]] = _every
