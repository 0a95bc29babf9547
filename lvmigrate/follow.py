"""Following a copy of memory to its end: progress, reasons to stop, and the fast switch's watch over the source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Final

from lvmigrate.chronicle import Chronicle
from lvmigrate.disks import Disks
from lvmigrate.errors import Code, MoveAborted, MoveFailed
from lvmigrate.lease import Lease
from lvmigrate.outcome import NOTHING_LEFT
from lvmigrate.plan import Options
from lvmigrate.protocols import CopyEnd, MemoryCopy
from lvmigrate.steering import POST_COPY, Steering
from lvmigrate.tasklet import Context

#: How long the call may take to end after it was told to: a cut link ends it after libvirt's keepalive (default 30 s).
ABORT_S: Final = 120.0
#: How long a stream of events that ended may take to come back before the copy is given up.
_UNWATCHED_S: Final = 15.0


def aborted() -> MoveAborted:
    """The error of a move that was asked to stop."""
    return MoveAborted("Aborted as asked.", hint=NOTHING_LEFT)


@dataclass(slots=True, kw_only=True)
class Following:
    """What one copy is followed with."""

    context: Context
    options: Options
    chronicle: Chronicle
    disks: Disks
    lease: Lease
    steering: Steering
    #: Called at each look, such as to end an older copy; it may take its time.
    at_each_look: Callable[[], None] = lambda: None
    #: When all nodes were last seen to be watched.
    _watched_at: float = field(init=False)
    _held_on: bool = False

    def __post_init__(self) -> None:
        self._watched_at = self.context.clock.now()

    def to_its_end(self, copy: MemoryCopy) -> tuple[MoveFailed | None, CopyEnd | None]:
        """Wait for the call to end; why it was told to give up, if it was, and how it ended, if it did.

        A post-copy is never told to give up, whatever happens.
        """
        deadline = self.context.clock.now() + self.options.copy_timeout_s
        reason: MoveFailed | None = None
        while (end := copy.wait(self.options.poll_s, cancel=self._cancel(reason))) is None:
            told = reason is not None
            if reason is None and not self.chronicle.happened(POST_COPY):
                # Before libvirt is asked for anything, which may take its time.
                reason = self._reason_to_stop(deadline)
                if reason is not None:
                    deadline = self._stop(copy, reason)
            progress = copy.progress()
            self.chronicle.tell(memory=progress)
            self.lease.tell()
            if self.chronicle.happened(POST_COPY):
                self._hold_on(deadline)
                continue
            self.at_each_look()
            if reason is None:
                reason = self.steering.steer(copy, progress)
                if reason is not None:
                    deadline = self._stop(copy, reason)
            elif told:
                if self.context.clock.now() > deadline:
                    return reason, None
                copy.abort()  # asked again each time: the first may have come before libvirt had a job
        return reason, end

    def _stop(self, copy: MemoryCopy, reason: MoveFailed) -> float:
        """Tell libvirt to abort the copy; until when it may take to end."""
        copy.abort()
        self.chronicle.note(f"stopping the copy: {reason}")
        return self.context.clock.now() + ABORT_S

    def _cancel(self, reason: MoveFailed | None) -> Event | None:
        """What ends a wait at once: being asked to stop, as long as that can be obeyed and was not yet."""
        return None if reason is not None or self.chronicle.happened(POST_COPY) else self.context.cancel

    def _hold_on(self, deadline: float) -> None:
        """Say, once, what would have ended the copy if it were not a post-copy."""
        if not self._held_on and (reason := self._reason_to_stop(deadline)) is not None:
            self._held_on = True
            self.chronicle.note(f"a post-copy cannot be stopped: {reason}")

    def _reason_to_stop(self, deadline: float) -> MoveFailed | None:
        if self.context.cancel.is_set():
            return aborted()
        if breaks := self.disks.watch.breaks():
            return MoveFailed(
                f"Replication broke during the copy ({breaks[0]}).",
                code=Code.REPLICATION_BROKE,
                hint="Mend the DRBD connection, then try again.",
                detail="; ".join(breaks),
            )
        if unwatched := self._unwatched():
            return MoveFailed(
                f"Replication could not be watched during the copy ({unwatched}).",
                code=Code.REPLICATION_BROKE,
                hint="Mend the way to that node, then try again.",
                detail="; ".join(self.disks.watch.gaps()),
            )
        if lapsed := self.lease.lapsed():
            return MoveFailed(
                f"The move's token could not be kept alive ({lapsed}).",
                code=Code.TOKEN_LOST,
                hint="Mend the way to that node, then try again.",
            )
        if self.context.clock.now() > deadline:
            return MoveFailed(
                f"The copy of memory was not done after {self.options.copy_timeout_s:g} s.",
                code=Code.COPY_TIMEOUT,
                hint="The guest dirties memory faster than it is sent: raise --downtime-limit or --bandwidth,"
                " or give it longer with --copy-timeout.",
            )
        return None

    def _unwatched(self) -> str | None:
        """Why a gap of the watch has lasted too long, ``None`` while none has."""
        if all(resource is not None for resource, _ in self.disks.ends()):
            self._watched_at = self.context.clock.now()
            return None
        for_s = self.context.clock.now() - self._watched_at
        gaps = self.disks.watch.gaps()
        return f"not for {for_s:.0f} s: {(gaps or ('unknown',))[-1]}" if for_s > _UNWATCHED_S else None
