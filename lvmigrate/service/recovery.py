"""`Recovery`: jobs that a service was amid when it died, led to their end by observation, and never repeated."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Final, Protocol

from lvmigrate.cluster import Cluster
from lvmigrate.errors import Code, LvmigrateError, MoveAborted, MoveFailed
from lvmigrate.report import CleanupReport
from lvmigrate.service.job import Wish
from lvmigrate.service.ledger import Ledger
from lvmigrate.service.under import Under

#: What a cleanup is tried again for: it passes, or somebody mends it. Seconds between two tries, and at most.
_PASSING: Final = frozenset(
    {Code.LOCKED, Code.NODE_UNREACHABLE, Code.HYPERVISOR_BUSY, Code.AUTH_FAILED, Code.JOURNAL_UNUSABLE}
)
#: Of these, those of which nothing can be told before a node answers.
_SILENT: Final = frozenset({Code.NODE_UNREACHABLE, Code.AUTH_FAILED})
_AGAIN_S: Final = 5.0
_AGAIN_MOST_S: Final = 60.0


class Finish(Protocol):
    """What ends a job."""

    def __call__(self, under: Under, *, result: object = None, error: LvmigrateError | None = None) -> None:
        """With its result, or an error, or both."""


class Recovery:
    """See above. ``change`` is notified when the service is to stop, or something is wished of a job."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: Ledger,
        change: threading.Condition,
        *,
        stopping: Callable[[], bool],
        says: Callable[[Under, str], None],
        finish: Finish,
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._change = change
        self._stopping = stopping
        self._says = says
        self._finish = finish

    def move(self, under: Under) -> None:
        """A move was begun: observe where the guest is, lead it to an end there, and tell. It is never repeated."""
        report = self._cleaned(under, under.job.uuid)
        if report is None:
            return
        job = under.job
        if job.what != "rehearse" and report.node is not None and report.node == job.target:
            self._finish(under, result=report)
            return
        where = "is off" if report.node is None else f"is on {report.node}"
        error: LvmigrateError
        if job.wish is Wish.ABORT:
            error = MoveAborted(f"Aborted as asked; {report.instance} {where}.", hint="Nothing is left to do.")
        else:
            error = MoveFailed(
                f"The service ended while this was under way; it was cleaned up: {report.instance} {where}.",
                hint="Ask for it again, if it is still wanted.",
                code=Code.INTERRUPTED,
            )
        self._finish(under, result=report, error=error)

    def many(self, under: Under) -> None:
        """A drain that was asked to stop: what it had under way is led to its end, and nothing more begins."""
        for uuid in self._ledger.touched(under.job.id):
            if self._cleaned(under, uuid) is None:
                return
        error = MoveAborted(
            "It was asked to stop, and the service ended meanwhile; what was under way was cleaned up.",
            hint="`lvmigrate status` tells where every guest is; order it again, and it goes on where it stands.",
        )
        self._finish(under, error=error)

    def _cleaned(self, under: Under, guest: str) -> CleanupReport | None:
        """A cleanup that is tried until it can be told what is so.

        ``None``: the job has ended with an error, or is left to the next service.
        """
        for again_s in itertools.chain(
            itertools.takewhile(lambda s: s < _AGAIN_MOST_S, (_AGAIN_S * 2**n for n in itertools.count())),
            itertools.repeat(_AGAIN_MOST_S),
        ):
            if self._stopping():
                break
            under.cancel.clear()
            aborts = under.abort.is_set()  # after that: who asks now is heard by the one or the other
            try:
                return self._cluster.cleanup(
                    guest, abort=aborts, cancel=under.cancel, on_plan=lambda _plan: self._idles(under, idle=False)
                )
            except MoveAborted:
                if aborts and not self._stopping():  # asked for in the middle: once more, with all that this means
                    continue
            except LvmigrateError as error:
                if error.code not in _PASSING:
                    self._finish(under, error=error)
                    return None
                self._idles(under, idle=error.code in _SILENT)
                self._says(under, error.sentence)
            with self._change:
                self._change.wait_for(lambda: self._stopping() or under.cancel.is_set(), again_s)
        return None

    def _idles(self, under: Under, *, idle: bool) -> None:
        """Whether it keeps a place, which others may be waiting for."""
        with self._change:
            under.idle = idle
            self._change.notify_all()
