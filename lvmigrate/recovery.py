"""A post-copy whose link broke: connect its two ends again, or hold both as they are.

Half of the guest's memory is at the target, where it ran last, and half at the source: neither end may be ended,
resumed or aborted.  QEMU's own stream goes on by itself if the link comes back before TCP gives it up, so it is waited
for; once QEMU says that it is broken, libvirt is asked to connect the ends again, again and again, less and less often.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import structlog

from lvmigrate.chronicle import Chronicle
from lvmigrate.clock import Clock
from lvmigrate.domain import Domain
from lvmigrate.errors import LvmigrateError, OutcomeUnknown
from lvmigrate.plan import Options
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
    target: str
    options: Options
    chronicle: Chronicle
    clock: Clock
    #: What each try to connect the ends again came to.
    tries: list[str] = field(default_factory=list)

    def mend(self) -> CopyEnd:
        """Come back when the source has no job of it any more, with how it ended: the guest is where both nodes say.

        Raises `OutcomeUnknown` when that did not happen in time; nothing was undone.
        """
        self.chronicle.note("the post-copy broke: waiting for its stream, then connecting its ends again")
        job = self.hypervisor.adopt(self.domain.node, self.domain.uuid)
        deadline = self.clock.now() + self.options.recovery_timeout_s
        wait_s = _FIRST_WAIT_S
        while self.clock.now() < deadline:
            if (end := job.wait(wait_s)) is not None:
                self.chronicle.note("the post-copy has ended")
                return end
            self.chronicle.tell(memory=job.progress())
            if self._broken_at_target():
                self._connect_again()
            wait_s = min(_LONGEST_WAIT_S, wait_s * 2)
        name, source = self.domain.name, self.domain.node
        raise OutcomeUnknown(
            f"The post-copy of {name} broke and could not be mended within {self.options.recovery_timeout_s:g} s;"
            " both ends are held as they are.",
            known=[*self.settlement.words(), *self.tries[-3:]],
            hint=f"End neither: {name} is whole only with both. Mend the link between {source} and {self.target}, then"
            f" on {source}: `virsh migrate --live --p2p --postcopy --postcopy-resume {name} URI` with {self.target}'s"
            f" libvirt URI; then `lvmigrate cleanup {name}`. If one end is gone for good, so is what the guest had in"
            " memory: end the other and start it anew on the node whose disk is the newer.",
        )

    def _broken_at_target(self) -> bool:
        """Whether the target's QEMU has given the stream up. No answer is none."""
        try:
            there = self.hypervisor.domain(self.target, self.domain.uuid)
        except LvmigrateError as error:
            _log.info("post_copy_target_silent", node=self.target, error=str(error))
            return False
        return there is not None and BROKEN in there.reason

    def _connect_again(self) -> None:
        try:
            copy = self.hypervisor.resume_post_copy(self.domain, self.target, self.options)
            while (end := copy.wait(self.options.poll_s)) is None:
                self.chronicle.tell(memory=copy.progress())
        except LvmigrateError as error:
            self._note(str(error))
        else:
            self._note("the ends were connected again" if end.ok else f"libvirt: {end.detail}")

    def _note(self, what: str) -> None:
        self.tries.append(f"connecting the ends again: {what}")
        self.chronicle.note(self.tries[-1])
        _log.warning("post_copy_reconnect", outcome=what)
