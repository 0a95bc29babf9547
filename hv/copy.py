"""One peer-to-peer copy of a guest's memory, under way in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import libvirt
import structlog

from hv.border import words
from hv.statistics import progress_of
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd

_log = structlog.get_logger()

#: How long statistics and an abort may keep the caller waiting: a QEMU that does not answer its monitor keeps libvirt.
_PATIENCE_S: Final = 2.0


class LibvirtCopy:
    """Fulfils `lvmigrate.protocols.MemoryCopy`.

    The call runs in the source's libvirt daemon and outlives this process (facts of peer-to-peer migration): a program
    that dies leaves a job that somebody has to adopt.
    """

    def __init__(
        self,
        node: str,
        domain: libvirt.virDomain,
        call: Callable[[], Any],
        *,
        prepare: Callable[[], Any] = lambda: None,
    ) -> None:
        self._node = node
        self._domain = domain
        self._end: CopyEnd | None = None
        self._ended = threading.Event()
        self._newest: MemoryProgress | None = None
        self._final = False
        self._asking: threading.Thread | None = None
        self._aborting: threading.Thread | None = None
        self._gate = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(prepare, call), name=f"copy-{node}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> CopyEnd | None:
        """How the call ended, or ``None`` if it still runs after ``timeout_s``."""
        self._ended.wait(timeout_s)
        return self._end

    def abort(self) -> None:
        """Ask libvirt to cancel the job, and never start one that has not begun."""
        with self._gate:
            self._stopped = True
        self._aborting = _once(self._aborting, self._abort, f"abort-{self._node}")

    def progress(self) -> MemoryProgress | None:
        """The newest statistics, or the last there were once the copy has ended."""
        if not (self._ended.is_set() or self._final):
            self._asking = _once(self._asking, self._ask, f"statistics-{self._node}")
        return self._newest

    def completed(self, statistics: dict[str, Any]) -> None:
        """Take the final statistics, which libvirt sends as an event when the job has completed."""
        self._final = True
        self._take(statistics)

    def _ask(self) -> None:
        try:
            self._take(self._domain.jobStats())
        except libvirt.libvirtError as error:
            # "Gone" or "ask again": neither says how the copy ended, so neither is said to have.
            _log.debug("job_statistics_unavailable", node=self._node, error=words(error))

    def _abort(self) -> None:
        try:
            self._domain.abortJob()
        except libvirt.libvirtError as error:
            # No job any more, or no answer: what became of the copy is seen by looking at both nodes.
            _log.debug("abort_refused", node=self._node, error=words(error))

    def _take(self, statistics: dict[str, Any]) -> None:
        newest = progress_of(statistics, before=self._newest)
        if newest is not None:
            self._newest = newest

    def _run(self, prepare: Callable[[], Any], call: Callable[[], Any]) -> None:
        try:
            prepare()
            # A QEMU that did not answer for minutes must not begin to move when nobody waits for it any more.
            with self._gate:
                stopped = self._stopped
            if stopped:
                self._end = CopyEnd(ok=False, detail="stopped before it began")
                return
            call()
            self._end = CopyEnd(ok=True)
        except libvirt.libvirtError as error:
            self._end = CopyEnd(ok=False, detail=words(error))
        except Exception as error:  # noqa: BLE001 -- whatever it is, the waiting thread must hear that the call ended
            self._end = CopyEnd(ok=False, detail=f"{type(error).__name__}: {error}")
        finally:
            _log.debug("copy_call_ended", node=self._node, end=self._end)
            self._ended.set()


def _once(before: threading.Thread | None, call: Callable[[], None], name: str) -> threading.Thread:
    """Have ``call`` done in a thread, given a moment; nothing new while the one ``before`` still hangs in libvirt."""
    if before is not None and before.is_alive():
        return before
    thread = threading.Thread(target=call, name=name, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return thread
