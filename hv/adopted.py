"""A copy of a guest's memory that somebody else started, such as a controller that died: its job is followed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import structlog

from hv.job import Job
from lvmigrate.defect import defect
from lvmigrate.domain import Domain, DomainState, JobKind
from lvmigrate.errors import LvmigrateError, NodeUnreachable
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd

_log = structlog.get_logger()

#: How often the node is asked, in seconds: libvirt sends no event when a job of somebody else's fails.
_LOOK_S: Final = 0.5
#: How often a wait looks whether it is to end.
_CANCEL_S: Final = 0.05
#: How often while the guest's process is ending.
_LOOK_SOON_S: Final = 0.05
#: How long a guest that has no job may be seen in shutdown before that is called an end: the last moment of a copy
#: that succeeded looks like that, and a guest that shuts down without ending its process does too.
_LEAVING_S: Final = 2.0


class AdoptedCopy:
    """Fulfils `lvmigrate.protocols.MemoryCopy` for a job that ``node`` has already.

    The node is asked only while somebody waits: every half second, and at once after an event of the guest.  No answer
    is no end.
    """

    def __init__(
        self,
        node: str,
        job: Job,
        *,
        look: Callable[[], Domain | None],
        listening: Callable[[Callable[[], None]], AbstractContextManager[None]],
    ) -> None:
        self._node = node
        self._job = job
        self._look = look
        self._listening = listening
        self._end: CopyEnd | None = None
        self._wake = threading.Event()
        #: Whoever waits is to look at something else.
        self._woken = threading.Event()
        self._answers: queue.SimpleQueue[Domain | LvmigrateError | None] = queue.SimpleQueue()
        self._asking = False
        self._leaving_since: float | None = None
        self._one_waits = threading.Lock()

    def progress(self) -> MemoryProgress | None:
        """The newest statistics, or the last there were once the job has ended."""
        return self._job.newest if self._end is not None else self._job.progress()

    def abort(self) -> None:
        """Ask the node to cancel the job."""
        self._job.abort()

    def limit_downtime(self, seconds: float) -> None:
        """Let the guest stand still for so long at the end of the copy that is under way."""
        self._job.limit_downtime(seconds)

    def start_post_copy(self) -> None:
        """Let the guest go on at the target now."""
        self._job.start_post_copy()

    def wake(self) -> None:
        """End a wait that is under way, or the next one."""
        self._woken.set()
        self._wake.set()

    def wait(self, timeout_s: float, *, cancel: threading.Event | None = None) -> CopyEnd | None:
        """How the job ended; ``None``: it runs, or nothing is known, after ``timeout_s``, on ``cancel``, or woken.

        Guaranteed with an end: the node answered that it has no outgoing job of the guest.
        """
        deadline = time.monotonic() + timeout_s
        with self._one_waits, self._listening(self._wake.set):
            while self._end is None:
                self._wake.clear()  # before the look: what happens during it is looked at again
                self._end = self._ended(deadline)
                until = min(deadline, time.monotonic() + (_LOOK_S if self._leaving_since is None else _LOOK_SOON_S))
                while self._end is None and not self._called() and (left := until - time.monotonic()) > 0:
                    if cancel is not None and cancel.is_set():
                        return None
                    self._wake.wait(left if cancel is None else min(left, _CANCEL_S))
                if time.monotonic() >= deadline or self._woken.is_set():
                    break
            self._woken.clear()
        return self._end

    def _called(self) -> bool:
        return self._wake.is_set() or self._woken.is_set()

    def _ended(self, deadline: float) -> CopyEnd | None:
        """Look once. ``None``: the job goes on, or nothing is known."""
        try:
            domain = self._looked(deadline)
        except LvmigrateError as error:
            _log.debug("adopted_job_unseen", node=self._node, error=error.detail or error.sentence)
            return None
        if domain is not None and domain.job is JobKind.OUTGOING:
            self._leaving_since = None
            return None
        if domain is not None and domain.state is DomainState.IN_SHUTDOWN:
            now = time.monotonic()
            if self._leaving_since is None:
                self._leaving_since = now
            if now - self._leaving_since < _LEAVING_S:
                return None
        gone = domain is None or domain.state is DomainState.OFF
        detail = "" if domain is None or gone else f"the guest is {domain.state.value} ({domain.reason}) there"
        _log.debug("adopted_job_ended", node=self._node, gone=gone, detail=detail)
        return CopyEnd(ok=gone, detail=detail)

    def _looked(self, deadline: float) -> Domain | None:
        """What the node says, or an error at ``deadline``; a look that hangs is waited for again, never repeated."""
        if not self._asking:
            thread = threading.Thread(target=self._ask, name=f"adopted-{self._node}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                hint = "Look at this machine's limits on processes and memory."
                raise NodeUnreachable(self._node, f"nobody could be sent to ask: {error}", hint=hint) from error
            self._asking = True
        try:
            answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise NodeUnreachable(self._node, "no answer yet", hint="Wait.") from None
        self._asking = False
        if isinstance(answer, LvmigrateError):
            raise answer
        return answer

    def _ask(self) -> None:
        try:
            self._answers.put(self._look())
        except Exception as error:  # noqa: BLE001 -- without an answer it would never be asked again
            self._answers.put(defect(error))
