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
#: How long an answer that does not come is asked for again where a guest would be held without it.
_ANSWER_S: Final = 30.0


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

    def look_until_known(self) -> tuple[Sight, Sight]:
        """As `look`, asked again for a while if a node gives no answer: one lost reply must not hold a guest."""
        deadline = self.clock.now() + _ANSWER_S
        while True:
            sights = self.look()
            if not {Sight.UNKNOWN, Sight.BUSY} & set(sights) or self.clock.now() > deadline:
                return sights
            self.clock.sleep(_ASK_S)

    def settle(self, *, end_jobs: bool) -> bool:
        """Whether the guest has arrived (true: it waits or runs on the target, only there) or stayed (false).

        ``end_jobs``: abort a job that libvirt still has at the source.  The call can end, with our connection, while
        the job goes on in the source's daemon, and then nobody would be there when the guest arrives.

        Guaranteed after false: the guest is at the source as it was, and no copy of it on the target.  Raises
        `OutcomeUnknown` (nothing was undone, but two running copies were suspended) or `GuestLost`.
        """
        deadline = self.clock.now() + _SETTLE_S
        while True:
            source, target = self.look()
            action = decide(source, target, ran_before=self.ran_before, last_chance=self.clock.now() > deadline)
            if action is not Action.ASK_AGAIN:
                break
            if end_jobs and source is Sight.BUSY:
                self._abort_job()
            self.clock.sleep(_ASK_S)
        _log.info("copy_settled", source=source.value, target=target.value, action=action.name)
        match action:
            case Action.SWITCH | Action.ARRIVED:
                return True
            case Action.STAYED:
                return False
            case Action.DISCARD | Action.DISCARD_AND_RESUME | Action.RESUME_SOURCE:
                self._back_to_source(action, (source, target))
                return False
            case Action.LOST:
                raise GuestLost(
                    f"{self.domain.name} runs neither on {self.domain.node} nor on {self.target}.",
                    hint=f"See why it ended (/var/log/libvirt/qemu/{self.domain.name}.log on both nodes), then"
                    f" `virsh start {self.domain.name}` on {self.domain.node}.",
                )
            case Action.TWICE:
                raise self.twice()
            case _:
                raise self._unknown(source, target)

    def twice(self) -> OutcomeUnknown:
        """Suspend both running copies, which can be undone; the error to raise."""
        name, nodes = self.domain.name, (self.domain.node, self.target)
        outcomes = outcomes_of([partial(self.hypervisor.suspend, node, self.domain.uuid) for node in nodes])
        failed = [node for node, outcome in zip(nodes, outcomes, strict=True) if isinstance(outcome, LvmigrateError)]
        return OutcomeUnknown(
            f"{name} runs on {' and '.join(failed)} and could not be suspended there."
            if failed
            else f"{name} ran on both nodes and was suspended on both.",
            known=[
                f"suspending it on {node}: {outcome if isinstance(outcome, LvmigrateError) else 'done'}"
                for node, outcome in zip(nodes, outcomes, strict=True)
            ],
            hint="A person must decide: compare the generations of its disks (`drbdadm get-gi RESOURCE` on both nodes),"
            f" end the copy on the older one (`virsh destroy {name}` there), then `virsh resume {name}` on the other.",
        )

    def _abort_job(self) -> None:
        try:
            self.hypervisor.abort_job(self.domain.node, self.domain.uuid)
        except LvmigrateError as error:
            _log.warning("abort_unanswered", node=self.domain.node, error=str(error))

    def _back_to_source(self, action: Action, seen: tuple[Sight, Sight]) -> None:
        # Two looks that agree: libvirt's words about a state and a job are not of one moment.
        self.clock.sleep(_ASK_S)
        if self.look() != seen:
            raise self._unknown(*self.look())
        if action is not Action.RESUME_SOURCE:
            self.hypervisor.discard(self.target, self.domain.uuid)
        source, target = self.look_until_known()
        if target is not Sight.GONE or source is Sight.GONE:
            raise self._unknown(source, target)
        if source is Sight.WAITS and self.ran_before:
            self._resume_source()

    def _resume_source(self) -> None:
        for last in (False, False, True):
            try:
                self.hypervisor.resume(self.domain.node, self.domain.uuid)
            except LvmigrateError as error:
                if last:
                    raise LeftBehind(
                        f"{self.domain.name} is at {self.domain.node} only, but could not be resumed there",
                        leftovers=[f"{self.domain.name} waits paused on {self.domain.node}: {error}"],
                        hint=f"`virsh resume {self.domain.name}` on {self.domain.node}: no other node has a copy.",
                        detail=error.detail,
                    ) from error
                self.clock.sleep(1.0)
            else:
                return

    def _unknown(self, source: Sight, target: Sight) -> OutcomeUnknown:
        name = self.domain.name
        return OutcomeUnknown(
            f"It could not be proved where {name} is; nothing was undone.",
            known=[f"{name} on {self.domain.node}: {source.value}", f"{name} on {self.target}: {target.value}"],
            hint=f"When both nodes answer: `lvmigrate status {name}`, and `virsh domstate --reason {name}` on each;"
            f" `virsh domjobabort {name}` on {self.domain.node} ends a job that still runs. Resume a copy only when"
            " the other node has none.",
        )
