"""Work that asks nodes: how much of it is under way at once, of whom, and for how long it is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from lvmigrate.errors import Code
from lvmigrate.service.access import Subject
from lvmigrate.service.problem import NotDone
from lvmigrate.service.settings import Role

T = TypeVar("T")

#: At once of all who only look, and as much again of all others; and of these of one subject.
_AT_ONCE: Final = 8
_SHARE: Final = 4
#: How long one waits for its turn, and for its answer from when it came, in seconds: less than a client of ours waits.
_TURN_S: Final = 30.0
_ANSWER_S: Final = 170.0


class Slow:
    """Threads for such work. Whoever only looks holds up none who may do more, and nobody all others of their kind."""

    def __init__(self, *, turn_s: float = _TURN_S, answer_s: float = _ANSWER_S) -> None:
        self._turn_s = turn_s
        self._answer_s = answer_s
        self._of_role: dict[bool, asyncio.Semaphore] = {}
        self._of_subject: dict[str, asyncio.Semaphore] = {}
        self._threads: anyio.CapacityLimiter | None = None

    async def run(self, subject: Subject, act: Callable[[], T]) -> T:
        """What ``act`` returns, in a thread, or raises.

        Raises `NotDone` (`Code.SERVICE_BUSY`) when it did not come to its turn in time, or has not ended in time: then
        it goes on, and counts, until it does.
        """
        began = time.monotonic()
        share = self._of_subject.setdefault(subject.name, asyncio.Semaphore(_SHARE))
        of_role = self._of_role.setdefault(subject.role is Role.LOOK, asyncio.Semaphore(_AT_ONCE))
        try:
            async with asyncio.timeout(self._turn_s):
                await share.acquire()
                try:
                    await of_role.acquire()
                except BaseException:
                    share.release()
                    raise
        except TimeoutError:
            raise _busy(f"It did not come to its turn within {self._turn_s:g} s: others ask the nodes.") from None
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(2 * _AT_ONCE)
        work = asyncio.ensure_future(anyio.to_thread.run_sync(act, limiter=self._threads))

        def over(work: asyncio.Future[T]) -> None:
            of_role.release()
            share.release()
            if not work.cancelled():
                work.exception()  # whoever waited may have gone: it is nobody's

        work.add_done_callback(over)
        ended, _ = await asyncio.wait({work}, timeout=self._answer_s - (time.monotonic() - began))
        if not ended:
            raise _busy(f"It has not ended within {self._answer_s:g} s, and is not waited for any longer.")
        return work.result()


def _busy(sentence: str) -> NotDone:
    return NotDone(
        sentence,
        hint="Ask again later, for less at once; `lvmigrate doctor` tells which node is silent.",
        code=Code.SERVICE_BUSY,
    )
