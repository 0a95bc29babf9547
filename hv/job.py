"""A migration job as seen from outside: what it says and what it can be told. Neither may keep anybody waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import libvirt
import structlog

from hv.border import border
from hv.bounded import within
from hv.statistics import progress_of
from lvmigrate.errors import LvmigrateError
from lvmigrate.progress import MemoryProgress

_log = structlog.get_logger()

#: How long statistics and an abort may keep the caller waiting: a QEMU that does not answer its monitor keeps libvirt.
_PATIENCE_S: Final = 2.0
#: How long a change of the job may take to be acknowledged.
_CHANGE_S: Final = 10.0


#: The domain as libvirt's own object, for the time in the context.
Lent = Callable[[], AbstractContextManager[libvirt.virDomain]]


class Job:
    """One job of the domain that ``lent()`` lends for a call. That too may hang, and raise what libvirt raises."""

    def __init__(self, node: str, lent: Lent) -> None:
        self._node = node
        self._lent = lent
        self._newest: MemoryProgress | None = None
        self._passes_before: int | None = None
        self._final = False
        self._asking: threading.Thread | None = None
        self._aborting: threading.Thread | None = None

    @property
    def newest(self) -> MemoryProgress | None:
        """What is known, without asking."""
        return self._newest

    def progress(self) -> MemoryProgress | None:
        """The newest statistics, or the last there were; asks no more once the final ones are there."""
        if not self._final:
            self._asking = _once(self._asking, self._ask, f"statistics-{self._node}")
        return self._newest

    def abort(self) -> None:
        """Ask libvirt to cancel the job. Once in post-copy, libvirt refuses."""
        self._aborting = _once(self._aborting, self._abort, f"abort-{self._node}")

    def limit_downtime(self, seconds: float) -> None:
        """Let the guest stand still for so long at the end. Raises `NodeUnreachable` or `CommandFailed`."""
        milliseconds = max(1, round(seconds * 1000))
        self._change("Setting the downtime limit", lambda domain: domain.migrateSetMaxDowntime(milliseconds))

    def start_post_copy(self) -> None:
        """Let the guest go on at the target. Raises `NodeUnreachable` (it may act later) or `CommandFailed`."""
        self._change("Switching to post-copy", lambda domain: domain.migrateStartPostCopy())

    def pass_began(self, number: int) -> None:
        """The pass of this number, by QEMU's counter, has begun: libvirt told so."""
        if self._passes_before is None:
            self._passes_before = number - 1

    def completed(self, statistics: Mapping[str, Any]) -> None:
        """Take the final statistics, which libvirt sends as an event when the job has completed."""
        self._final = True
        self._take(statistics)

    def _ask(self) -> None:
        try:
            with border(self._node, "Reading the job's statistics"), self._lent() as domain:
                statistics = dict(domain.jobStats())
        except LvmigrateError as error:
            # "Gone" or "ask again": neither says how the copy ended, so neither is said to have.
            _log.debug("job_statistics_unavailable", node=self._node, error=error.detail or error.sentence)
        else:
            if not self._final:  # an answer that was late must not hide the last word
                self._take(statistics)

    def _abort(self) -> None:
        try:
            with border(self._node, "Aborting the job"), self._lent() as domain:
                domain.abortJob()
        except LvmigrateError as error:
            # No job any more, or no answer: what became of the copy is seen by looking at both nodes.
            _log.debug("abort_refused", node=self._node, error=error.detail or error.sentence)

    def _change(self, what: str, call: Callable[[libvirt.virDomain], Any]) -> None:
        def bordered() -> None:
            with border(self._node, what), self._lent() as domain:
                call(domain)

        within(_CHANGE_S, bordered, self._node, what)

    def _take(self, statistics: Mapping[str, Any]) -> None:
        newest = progress_of(statistics, before=self._newest, passes_before=self._passes_before or 0)
        if newest is not None:
            self._newest = newest


def _once(before: threading.Thread | None, call: Callable[[], None], name: str) -> threading.Thread:
    """Have ``call`` done in a thread, given a moment; nothing new while the one ``before`` still hangs in libvirt."""
    if before is not None and before.is_alive():
        return before
    thread = threading.Thread(target=call, name=name, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return thread
