"""After the call that copied memory has ended, whatever it said: find out where the guest is, and act on that alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from lvmigrate.clock import Clock
from lvmigrate.decision import Action, Sight, decide, sight_of
from lvmigrate.domain import Domain, DomainState
from lvmigrate.errors import GuestLost, LeftBehind, LvmigrateError, OutcomeUnknown
from lvmigrate.protocols import Hypervisor
from lvmigrate.together import outcomes_of

_log = structlog.get_logger()

#: libvirt's source daemon resumes its copy by itself a keepalive after the last reply was lost (default: 30 s).
_SETTLE_S: Final = 60.0
_ASK_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """Where one guest is, by the word of both nodes of its move."""

    hypervisor: Hypervisor
    domain: Domain
    target: str
    clock: Clock = field(default_factory=Clock)

    @property
    def ran_before(self) -> bool:
        """Whether the guest's CPUs ran when the move began."""
        return self.domain.state is DomainState.RUNNING

    def look(self) -> tuple[Sight, Sight]:
        """What source and target say now, asked side by side; no answer is `Sight.UNKNOWN`."""
        outcomes = outcomes_of(
            [partial(self.hypervisor.domain, node, self.domain.uuid) for node in (self.domain.node, self.target)]
        )
        source, target = (Sight.UNKNOWN if isinstance(o, LvmigrateError) else sight_of(o) for o in outcomes)
        return source, target

    def settle(self) -> bool:
        """Whether the guest has arrived (true: it waits or runs on the target, only there) or stayed (false).

        Guaranteed after false: the guest is at the source as it was, and no copy of it on the target.  Raises
        `OutcomeUnknown` or `GuestLost`; nothing was undone then, but two running copies have been suspended.
        """
        deadline = self.clock.now() + _SETTLE_S
        while True:
            source, target = self.look()
            action = decide(source, target, ran_before=self.ran_before, last_chance=self.clock.now() > deadline)
            if action is not Action.ASK_AGAIN:
                break
            self.clock.sleep(_ASK_S)
        _log.info("copy_settled", source=source.value, target=target.value, action=action.name)
        match action:
            case Action.SWITCH | Action.ARRIVED:
                return True
            case Action.STAYED:
                return False
            case Action.DISCARD | Action.DISCARD_AND_RESUME | Action.RESUME_SOURCE:
                self._back_to_source(action)
                return False
            case Action.LOST:
                raise GuestLost(
                    f"{self.domain.name} runs neither on {self.domain.node} nor on {self.target}.",
                    hint=f"Its disks are whole: see why its QEMU ended (/var/log/libvirt/qemu/{self.domain.name}.log on"
                    f" {self.target}), then `virsh start {self.domain.name}` on one node only.",
                )
            case _:
                raise self._unknown(action, source, target)

    def _back_to_source(self, action: Action) -> None:
        if action is not Action.RESUME_SOURCE:
            self.hypervisor.discard(self.target, self.domain.uuid)
        source, target = self.look()
        if target is not Sight.GONE:
            raise self._unknown(action, source, target)
        if action is not Action.DISCARD and self.ran_before:
            try:
                self.hypervisor.resume(self.domain.node, self.domain.uuid)
            except LvmigrateError as error:
                raise LeftBehind(
                    f"{self.domain.name} is at {self.domain.node} only, but could not be resumed there",
                    leftovers=[f"{self.domain.name} waits paused on {self.domain.node}: {error}"],
                    hint=f"`virsh resume {self.domain.name}` on {self.domain.node}: no other node has a copy.",
                    detail=error.detail,
                ) from error

    def _unknown(self, action: Action, source: Sight, target: Sight) -> OutcomeUnknown:
        name = self.domain.name
        known = [f"{name} on {self.domain.node}: {source.value}", f"{name} on {self.target}: {target.value}"]
        if action is Action.TWICE:
            outcomes = outcomes_of(
                [partial(self.hypervisor.suspend, node, self.domain.uuid) for node in (self.domain.node, self.target)]
            )
            for node, outcome in zip((self.domain.node, self.target), outcomes, strict=True):
                failed = isinstance(outcome, LvmigrateError)
                known.append(f"suspending it on {node}: {outcome if failed else 'done'}")
            return OutcomeUnknown(
                f"{name} ran on both nodes and was suspended on both.",
                known=known,
                hint="See which disk is the newer (`drbdsetup status --verbose --statistics` on both nodes), end the"
                f" other copy (`virsh destroy {name}`), then `virsh resume {name}`.",
            )
        return OutcomeUnknown(
            f"It could not be proved where {name} is; nothing was undone.",
            known=known,
            hint=f"When both nodes answer: `lvmigrate status {name}`, and `virsh domstate --reason {name}` on each."
            " Resume a copy only when the other node has none.",
        )
