"""A post-copy whose link broke: connect its two ends again, or hold both as they are.

Half of the guest's memory is at the target, where it ran last, and half at the source: neither end may be ended,
resumed or aborted.  QEMU's own stream goes on by itself if the link comes back before TCP gives it up, so it is waited
for; once QEMU says that it is broken, libvirt is asked to connect the ends again, again and again, less and less often.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Final

import structlog

from lvmigrate.by_hand import migrating
from lvmigrate.chronicle import Chronicle
from lvmigrate.clock import Clock
from lvmigrate.domain import Domain
from lvmigrate.errors import LvmigrateError, OutcomeUnknown
from lvmigrate.node import Node
from lvmigrate.plan import Options
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd, Hypervisor
from lvmigrate.settle import Settlement

_log = structlog.get_logger()

_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 30.0
#: libvirt's word for an end whose QEMU has given its stream up.
BROKEN: Final = "post-copy failed"


@dataclass(slots=True, kw_only=True)
class Recovery:
    """Of one guest's post-copy, whose call has ended without success."""

    hypervisor: Hypervisor
    settlement: Settlement
    domain: Domain
    target: Node
    options: Options
    chronicle: Chronicle
    clock: Clock
    #: What each try to connect the ends again came to.
    tries: list[str] = field(default_factory=list)
    #: The fewest bytes that were left, and until when there must be fewer.
    _least: int | None = None
    _deadline: float = 0.0

    def mend(self) -> CopyEnd:
        """Come back when the source has no job of it any more, with how it ended: the guest is where both nodes say.

        Raises `OutcomeUnknown` when no memory has arrived for ``options.recovery_timeout_s``; nothing was undone.
        """
        self.chronicle.note("the post-copy broke: waiting for its stream, then connecting its ends again")
        job = self.hypervisor.adopt(self.domain.node, self.domain.uuid)
        self._deadline = self.clock.now() + self.options.recovery_timeout_s
        wait_s = _FIRST_WAIT_S
        while self.clock.now() < self._deadline:
            if (end := job.wait(wait_s)) is not None:
                self.chronicle.note("the post-copy has ended")
                return end
            self._look(job.progress())
            if self._broken_at_target():
                self._connect_again()
            wait_s = min(_LONGEST_WAIT_S, wait_s * 2)
        name, source, target = self.domain.name, self.domain.node, self.target.name
        again = shlex.join(migrating(self.domain, self.options, self.target, resume=True))
        raise OutcomeUnknown(
            f"The post-copy of {name} broke, and for {self.options.recovery_timeout_s:g} s nothing more has arrived;"
            " both ends are held as they are.",
            known=[*self.settlement.words(), *self.tries[-3:]],
            hint=f"End neither: {name} is whole only with both. Mend the link between {source} and {target}, then on"
            f" {source}: `{again}`; then `lvmigrate cleanup {name}`. If one end is gone for good, so is what the guest"
            " had in memory: end the other and start it anew on the node whose disk is the newer.",
        )

    def _broken_at_target(self) -> bool:
        """Whether the target's QEMU has given the stream up. No answer is none."""
        try:
            there = self.hypervisor.domain(self.target.name, self.domain.uuid)
        except LvmigrateError as error:
            _log.info("post_copy_target_silent", node=self.target.name, error=str(error))
            return False
        return there is not None and BROKEN in there.reason

    def _connect_again(self) -> None:
        """Try it once: until that has ended, or no memory has arrived for too long."""
        end = None
        try:
            copy = self.hypervisor.resume_post_copy(self.domain, self.target.name, self.options)
            while (end := copy.wait(self.options.poll_s)) is None and self.clock.now() < self._deadline:
                self._look(copy.progress())
        except LvmigrateError as error:
            self._note(" ".join(filter(None, (str(error), error.detail, error.hint))))
        else:
            if end is None:
                self._note("libvirt has neither connected them nor given it up")
            else:
                self._note("the ends were connected again" if end.ok else f"libvirt: {end.detail}")

    def _look(self, progress: MemoryProgress | None) -> None:
        """Tell of it. As long as memory arrives, the rest of it is given its time anew."""
        self.chronicle.tell(memory=progress)
        if progress is None:
            return
        if self._least is not None and progress.remaining < self._least:
            self._deadline = self.clock.now() + self.options.recovery_timeout_s
        self._least = progress.remaining if self._least is None else min(self._least, progress.remaining)

    def _note(self, what: str) -> None:
        tried = f"connecting the ends again: {what}"
        if tried not in self.tries[-1:]:
            self.tries.append(tried)
        self.chronicle.note(tried)
        _log.warning("post_copy_reconnect", outcome=what)
