"""Several calls side by side: what two nodes, or several disks, can do at once."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lvmigrate.errors import LvmigrateError

T = TypeVar("T")

#: One call after the other, in their order and in the caller's thread: for a world in which time is under control.
in_turn: contextvars.ContextVar[bool] = contextvars.ContextVar("in_turn", default=False)


def together(calls: Sequence[Callable[[], T]]) -> tuple[T, ...]:
    """Run all calls at once, each in a thread; the results in the order of the calls.

    Guaranteed afterwards: every call has ended.  If any failed, the first failure in the order of the calls is raised.
    """
    outcomes = outcomes_of(calls)
    for outcome in outcomes:
        if isinstance(outcome, LvmigrateError):
            raise outcome
    return tuple(outcome for outcome in outcomes if not isinstance(outcome, LvmigrateError))


def outcomes_of(calls: Sequence[Callable[[], T]]) -> tuple[T | LvmigrateError, ...]:
    """As `together`, but a call that fails gives its error in place of its result."""
    if not calls:
        return ()

    def guarded(call: Callable[[], T]) -> T | LvmigrateError:
        try:
            return call()
        except LvmigrateError as error:
            return error

    if in_turn.get():
        return tuple(guarded(call) for call in calls)
    with ThreadPoolExecutor(max_workers=len(calls), thread_name_prefix="together") as pool:
        # Context variables (the log's bound values) do not follow into threads by themselves.
        futures = [pool.submit(contextvars.copy_context().run, guarded, call) for call in calls]
        return tuple(future.result() for future in futures)
