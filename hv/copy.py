"""One peer-to-peer copy of a guest's memory that we started, under way in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import libvirt
import structlog

from hv.border import meaning, words
from hv.bounded import within
from hv.job import Job, Lent
from lvmigrate.errors import Code, LvmigrateError
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd

_log = structlog.get_logger()

#: How long what was prepared may take to be undone.
_UNDO_S: Final = 2.0
#: How often a wait looks whether it is to end.
_CANCEL_S: Final = 0.05


def nothing() -> None:
    """What there is to be undone where nothing was prepared."""


class _Stopped(Exception):
    """Somebody wanted the copy to end before it began."""


class LibvirtCopy:
    """Fulfils `lvmigrate.protocols.MemoryCopy`.

    The call runs in the source's libvirt daemon and outlives this process (facts of peer-to-peer migration): a program
    that dies leaves a job that somebody has to adopt (`hv.adopted`).
    """

    def __init__(
        self,
        node: str,
        lent: Lent,
        call: Callable[[libvirt.virDomain], Any],
        *,
        prepare: Callable[[libvirt.virDomain], Callable[[], None]] = lambda _: nothing,
    ) -> None:
        """``prepare`` is called before ``call``, and what it returns after one that failed."""
        self._node = node
        self._lent = lent
        self._job = Job(node, lent)
        self._end: CopyEnd | None = None
        self._ended = threading.Event()
        #: The call has ended, a pass over the memory has begun, or somebody wants it to be looked at.
        self._news = threading.Event()
        self._gate = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(prepare, call), name=f"copy-{node}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float, *, cancel: threading.Event | None = None) -> CopyEnd | None:
        """How the call ended; ``None`` after ``timeout_s``, when a pass has begun, when ``cancel`` is set, or woken."""
        deadline = time.monotonic() + timeout_s
        while not self._ended.is_set():
            left = deadline - time.monotonic()
            if left <= 0 or (cancel is not None and cancel.is_set()):
                break
            if self._news.wait(left if cancel is None else min(left, _CANCEL_S)):
                self._news.clear()
                break
        return self._end if self._ended.is_set() else None

    def abort(self) -> None:
        """Ask libvirt to cancel the job, and never start one that has not begun."""
        with self._gate:
            self._stopped = True
        self._job.abort()

    def progress(self) -> MemoryProgress | None:
        """The newest statistics, or the last there were once the copy has ended."""
        return self._job.newest if self._ended.is_set() else self._job.progress()

    def limit_downtime(self, seconds: float) -> None:
        """Let the guest stand still for so long at the end of the copy that is under way."""
        self._job.limit_downtime(seconds)

    def start_post_copy(self) -> None:
        """Let the guest go on at the target now."""
        self._job.start_post_copy()

    def pass_began(self, number: int) -> None:
        """A pass over the memory has begun, by libvirt's event."""
        self._job.pass_began(number)
        self._news.set()

    def wake(self) -> None:
        """End a wait that is under way, or the next one."""
        self._news.set()

    def completed(self, statistics: dict[str, Any]) -> None:
        """Take the final statistics, which libvirt sends as an event when the job has completed."""
        self._job.completed(statistics)

    def _run(
        self, prepare: Callable[[libvirt.virDomain], Callable[[], None]], call: Callable[[libvirt.virDomain], Any]
    ) -> None:
        try:
            with self._lent() as domain, self._put_back(prepare(domain)):
                self._go_on()
                _log.debug("copy_call_began", node=self._node)
                call(domain)
            self._end = CopyEnd(ok=True)
        except _Stopped:
            self._end = CopyEnd(ok=False, detail="stopped before it began")
        except libvirt.libvirtError as error:
            code, hint = meaning(error, self._node)
            if code is Code.HYPERVISOR_FAILED:
                self._end = CopyEnd(ok=False, detail=words(error))
            elif code is Code.NODE_UNREACHABLE:
                # Which of the two nodes fell silent is not told, and both are looked at anyway.
                hint = "See on both nodes whether libvirtd answers (`virsh list`), and the way between them."
                self._end = CopyEnd(ok=False, detail=words(error), code=code, hint=hint)
            else:
                self._end = CopyEnd(ok=False, detail=words(error), code=code, hint=hint)
        except LvmigrateError as error:
            self._end = CopyEnd(ok=False, detail=error.detail or error.sentence, code=error.code, hint=error.hint)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the waiting thread must hear that the call ended
            self._end = CopyEnd(ok=False, detail=f"{type(error).__name__}: {error}")
        finally:
            _log.debug("copy_call_ended", node=self._node, end=self._end)
            self._ended.set()
            self._news.set()

    def _go_on(self) -> None:
        """A QEMU that did not answer for minutes must not begin to move when nobody waits for it any more."""
        with self._gate:
            if self._stopped:
                raise _Stopped

    @contextmanager
    def _put_back(self, undo: Callable[[], None]) -> Iterator[None]:
        """Call it when the copy fails, and wait for it no longer than a healthy QEMU takes."""
        try:
            yield
        except Exception:
            try:
                within(_UNDO_S, undo, self._node, "Setting the downtime limit as it was")
            except (LvmigrateError, libvirt.libvirtError) as error:
                _log.info("downtime_limit_not_put_back", node=self._node, error=str(error))
            raise
