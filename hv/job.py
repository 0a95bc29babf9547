"""A migration job as seen from outside: its statistics and its abort, neither of which may keep anybody waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from hv.border import border
from hv.statistics import progress_of
from lvmigrate.errors import LvmigrateError
from lvmigrate.progress import MemoryProgress

_log = structlog.get_logger()

#: How long statistics and an abort may keep the caller waiting: a QEMU that does not answer its monitor keeps libvirt.
_PATIENCE_S: Final = 2.0


class Job:
    """One job. ``ask`` gives its statistics, ``abort`` cancels it; both may hang, and may raise what libvirt raises."""

    def __init__(self, node: str, *, ask: Callable[[], Mapping[str, Any]], abort: Callable[[], Any]) -> None:
        self._node = node
        self._ask_libvirt = ask
        self._abort_libvirt = abort
        self._newest: MemoryProgress | None = None
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
        """Ask libvirt to cancel the job."""
        self._aborting = _once(self._aborting, self._abort, f"abort-{self._node}")

    def completed(self, statistics: Mapping[str, Any]) -> None:
        """Take the final statistics, which libvirt sends as an event when the job has completed."""
        self._final = True
        self._take(statistics)

    def _ask(self) -> None:
        try:
            with border(self._node, "Reading the job's statistics"):
                statistics = self._ask_libvirt()
        except LvmigrateError as error:
            # "Gone" or "ask again": neither says how the copy ended, so neither is said to have.
            _log.debug("job_statistics_unavailable", node=self._node, error=error.detail or error.sentence)
        else:
            if not self._final:  # an answer that was late must not hide the last word
                self._take(statistics)

    def _abort(self) -> None:
        try:
            with border(self._node, "Aborting the job"):
                self._abort_libvirt()
        except LvmigrateError as error:
            # No job any more, or no answer: what became of the copy is seen by looking at both nodes.
            _log.debug("abort_refused", node=self._node, error=error.detail or error.sentence)

    def _take(self, statistics: Mapping[str, Any]) -> None:
        newest = progress_of(statistics, before=self._newest)
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
