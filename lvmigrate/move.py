"""The steps of a live migration, in the order that keeps the promise.

The guest arrives *paused*: it is resumed on the target only after the source's copy was seen gone and replication was
seen whole, because a reply of libvirt's that is lost at the end would otherwise make two running copies, and a DRBD
link that was lost in mid-copy a stale disk.
"""

from __future__ import annotations

import enum
import os
import socket
import uuid
from contextlib import ExitStack
from functools import partial
from typing import Final

import structlog

from lvmigrate import checks, outcome
from lvmigrate.chronicle import Chronicle
from lvmigrate.decision import Sight
from lvmigrate.disks import Disks
from lvmigrate.dual_primary import DualPrimary
from lvmigrate.errors import (
    Code,
    Finding,
    GuestLost,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    OutcomeUnknown,
    Refused,
)
from lvmigrate.lease import Lease
from lvmigrate.plan import Options, Plan
from lvmigrate.protocols import CopyEnd, MemoryCopy, Watch
from lvmigrate.token import Token
from lvmigrate.report import Report
from lvmigrate.rollback import Rollback, Undo
from lvmigrate.settle import Settlement
from lvmigrate.tasklet import Context, Step
from lvmigrate.together import outcomes_of, together

_log = structlog.get_logger()

#: How long the call may take to end after it was told to: a cut link ends it after libvirt's keepalive (default 30 s).
_ABORT_S: Final = 120.0
#: A guest was seen to die on the target 60 ms after a successful move: look again after this long.
_STILL_S: Final = 0.3
_RESUME_TRIES: Final = 5


#: How long a stream of events that ended may take to come back before the copy is given up.
_UNWATCHED_S: Final = 15.0
#: How long what must be so by now may take to be seen.
_SEEN_S: Final = 30.0


class _Phase(enum.Enum):
    """Where the guest is known to be."""

    AT_SOURCE = enum.auto()
    #: The copy was started: only both nodes' word tells.
    BETWEEN = enum.auto()
    #: Past the point of no return.
    MOVED = enum.auto()


class Move:
    """One move under way. A step is a method; what one step learns for the next is an attribute.

    ``stack`` ends what the move has running (its event stream, its lease) when it is left.
    """

    def __init__(self, context: Context, plan: Plan, options: Options, stack: ExitStack) -> None:
        self.context = context
        self.plan = plan
        self.options = options
        self.stack = stack
        self.nodes = (plan.source, plan.target)
        self.chronicle = Chronicle(plan, clock=context.clock, on_progress=context.on_progress)
        self.rollback = Rollback()
        self.settlement = Settlement(
            hypervisor=context.hypervisor, domain=plan.domain, target=plan.target, clock=context.clock
        )
        self.token = Token(
            uuid=plan.domain.uuid,
            instance=plan.instance,
            id=uuid.uuid4().hex,
            holder=f"{os.environ.get('USER', 'root')}@{socket.gethostname()} pid {os.getpid()}",
            lease_s=context.lease_s,
        )
        self.phase = _Phase.AT_SOURCE
        self.lease: Lease | None = None
        self.watch: Watch
        self.disks: Disks
        self.copy: MemoryCopy | None = None
        #: What kept the move from being finished, past the point of no return.
        self.troubles: list[LvmigrateError] = []
        #: When both nodes were last seen to be watched.
        self.watched_at = context.clock.now()

    def run(self) -> Report:
        """Do every step; what `MigrateInstance.exec` guarantees and raises."""
        try:
            for step in STEPS:
                with self.chronicle.step(step.name, step.sentence):
                    step.act(self)
        except Exception as caught:  # a defect must not leave the disks dual-primary either
            error = caught if isinstance(caught, LvmigrateError) else outcome.defect(caught)
            self.chronicle.note(str(error))
            raise self._failed(error) from caught
        return self._report()

    def _failed(self, error: LvmigrateError) -> LvmigrateError:
        """Undo what may be undone where the guest is now, and say what the whole amounts to."""
        if isinstance(error, OutcomeUnknown):
            return self._with_open_state(error)
        if isinstance(error, GuestLost):
            doubts = self.disks.doubts_now()
            return outcome.lost(error, self.rollback.run(), doubts, self.plan.source)
        if self.phase is _Phase.MOVED:
            sights = self.settlement.look_until_known()
            if sights == (Sight.RUNS, Sight.RUNS):
                return self._with_open_state(self.settlement.twice())
            return outcome.unfinished(self.plan, self.troubles or [error], sights)
        if self.phase is _Phase.BETWEEN and not self._stayed():
            return self._with_open_state(
                OutcomeUnknown(
                    f"{self.plan.instance} may have arrived on {self.plan.target} when the move failed"
                    f" ({error.sentence.rstrip('.')}); nothing was undone.",
                    known=self._seen(),
                    hint=f"`virsh domstate --reason {self.plan.instance}` on both nodes; resume a copy that waits only"
                    " when the other node has none.",
                    detail=error.detail,
                )
            )
        leftovers = self.rollback.run()
        return outcome.failed(self.plan, error, leftovers, self.settlement.look_until_known())

    def _with_open_state(self, error: OutcomeUnknown) -> OutcomeUnknown:
        """The same error, with what is left open beside the guest itself."""
        opened = "two primaries allowed" if self.chronicle.happened("two primaries allowed") else None
        if opened is None or self.chronicle.happened("two primaries forbidden"):
            return error
        known = [*error.known, *self.disks.roles(), f"{opened} on {', '.join(self.disks.names)}"]
        return OutcomeUnknown(error.sentence, known=known, hint=error.hint, detail=error.detail)

    def _seen(self) -> list[str]:
        """Both nodes' word about the guest, for people."""
        return [f"{node}: {sight.value}" for node, sight in zip(self.nodes, self.settlement.look(), strict=True)]

    def _stayed(self) -> bool:
        """End the copy, whatever went wrong; whether the guest is then proved to be at the source, and only there."""
        try:
            deadline = self.context.clock.now() + _ABORT_S
            while self.copy is not None and self.copy.wait(self.options.poll_s) is None:
                self.copy.abort()
                if self.context.clock.now() > deadline:
                    return False
            return not self.settlement.settle(end_jobs=True)
        except Exception:  # noqa: BLE001 -- no proof, whatever the reason
            _log.exception("stay_not_proved")
            return False

    # The steps, in order.

    def lock(self) -> None:
        """Take the token on both nodes, in sorted order, so that two controllers cannot hold one each."""
        storage, since = self.context.storage, self.context.clock.now()
        for node in sorted(self.nodes):
            self.rollback.register(
                Undo(
                    leftover=f"the token of this move on {node}",
                    hint="The token runs out by itself.",
                    act=partial(self._drop_token, node),
                )
            )
            holder = storage.take_token(node, self.token)
            if holder is not None:
                finding = Finding(
                    code=Code.LOCKED,
                    sentence=checks.locked(self.plan.instance, node, holder),
                    hint=checks.LOCKED_HINT,
                )
                raise Refused(self.plan.instance, [finding])
        self.lease = Lease(storage, self.nodes, self.token, since=since, clock=self.context.clock)
        self.stack.callback(self.lease.end)

    def sync(self) -> None:
        """Wait until the disks are in step, still single-primary; then replication must stay whole to the end."""
        self.stack.enter_context(self.context.hypervisor.on_change(self.plan.domain.uuid, self._event))
        names = [resource.name for resource in self.plan.resources]
        self.watch = self.stack.enter_context(
            self.context.storage.watch(self.nodes, names, on_change=self.chronicle.note)
        )
        self.disks = Disks(storage=self.context.storage, watch=self.watch, plan=self.plan)
        deadline = self.context.clock.now() + self.options.sync_timeout_s
        while not self.watch.wait(self.disks.in_step, 1.0, cancel=self.context.cancel):
            self._stop_if_asked()
            waiting = self.disks.progress_now()
            self.chronicle.tell(sync=waiting)
            if self.context.clock.now() > deadline:
                raise MoveFailed(
                    f"The disks of {self.plan.instance} were not in step after {self.options.sync_timeout_s:g} s"
                    f" ({'; '.join(waiting.waiting_for)}).",
                    code=Code.SYNC_TIMEOUT,
                    hint="See why the resynchronisation is slow, or give it longer with --sync-timeout.",
                )
        self._check_again()
        self.watch.forgive()
        self.watched_at = self.context.clock.now()

    def open(self) -> None:
        """Allow two primaries on the guest's connections and promote the target; the undo of each comes first."""
        self._stop_if_asked()
        for dual in self._dual_primaries():
            self.rollback.register(
                Undo(
                    leftover=f"two primaries allowed for {dual.plan.name}, or {self.plan.target} Primary",
                    hint=f"With the guest seen at {self.plan.source} only: `drbdadm secondary {dual.plan.name}` on"
                    f" {self.plan.target}, then `drbdadm net-options --allow-two-primaries=no {dual.plan.name}`.",
                    act=partial(dual.close, self.plan.target),
                )
            )
        self.chronicle.mark("two primaries allowed")
        together([dual.open for dual in self._dual_primaries()])

    def memory(self) -> None:
        """Copy the memory; give up when asked, or when replication, the token or the time is up.

        Guaranteed afterwards: both nodes said that the guest is on the target only.
        """
        if self.plan.domain.persistent and not self.plan.target_had_definition:
            self.rollback.register(
                Undo(
                    leftover=f"a definition of {self.plan.instance} on {self.plan.target}",
                    hint=f"Once it runs at {self.plan.source}: `virsh undefine {self.plan.instance}` there.",
                    act=partial(self.context.hypervisor.undefine, self.plan.target, self.plan.domain.uuid),
                )
            )
        self._stop_if_asked()
        self.phase = _Phase.BETWEEN
        self.copy = self.context.hypervisor.copy_memory(self.plan.domain, self.plan.target, self.options)
        reason, end = self._follow(self.copy)
        if end is None:
            raise OutcomeUnknown(
                f"libvirt does not end the copy of {self.plan.instance}'s memory; nothing was undone.",
                known=self._seen(),
                hint=f"See on {self.plan.source} whether libvirtd and the guest's QEMU still live (`virsh domjobinfo"
                f" {self.plan.instance}`); `virsh domjobabort {self.plan.instance}` ends the job.",
                detail="" if reason is None else str(reason),
            )
        self.chronicle.mark("source stopped")  # if no event told of it earlier
        if self.settlement.settle(end_jobs=not end.ok):
            if reason is not None:
                self.chronicle.note(f"too late to stop, the guest has arrived: {reason}")
            return
        self.phase = _Phase.AT_SOURCE
        if reason is not None:
            raise reason
        raise MoveFailed(
            f"libvirt did not move {self.plan.instance}.",
            code=Code.COPY_FAILED,
            hint=f"libvirt says: {end.detail or 'nothing'}",
            detail=end.detail,
        )

    def switch(self) -> None:
        """Resume the guest on the target: its source is gone, and both kernels must say now that all is in step."""
        name, expected = self.plan.instance, Sight.RUNS if self.settlement.ran_before else Sight.WAITS
        doubts = self.disks.doubts_now()
        if doubts:
            raise OutcomeUnknown(
                f"{name} has arrived on {self.plan.target}, but replication was not seen whole,"
                f" so {self.plan.source} may have the newer disk.",
                known=[*doubts, *self._seen()],
                hint="Nothing was undone. When both nodes say Connected and UpToDate, `virsh resume"
                f" {name}` on {self.plan.target}; otherwise mend the link first (`drbdsetup status` on both).",
            )
        if self.settlement.ran_before:
            self._resume()
        self.chronicle.mark("target runs")
        self.context.clock.sleep(_STILL_S)
        self._alone_on_target(expected)
        _log.info("point_of_no_return", target=self.plan.target)
        self.phase = _Phase.MOVED
        self.rollback.forget()

    def close(self) -> None:
        """Demote the source, and forbid two primaries once it is seen Secondary."""
        domain = self.plan.domain
        if domain.persistent and domain.autostart:
            try:  # from here on a reboot of the source must not start what runs elsewhere, whatever else fails
                self.context.hypervisor.set_autostart(self.plan.source, domain.uuid, on=False)
            except LvmigrateError as error:
                self.troubles.append(error)
        outcomes = outcomes_of([partial(dual.close, self.plan.source) for dual in self._dual_primaries()])
        self.troubles += [error for error in outcomes if isinstance(error, LvmigrateError)]
        if self.troubles:
            raise self.troubles[0]
        self.chronicle.mark("two primaries forbidden")

    def verify(self) -> None:
        """Look at everything once more; only now forget the source's definition; autostart last."""
        hypervisor, domain = self.context.hypervisor, self.plan.domain
        if not self.watch.wait(lambda: self.disks.in_step() and self.disks.single_primary(self.plan.target), _SEEN_S):
            doubts = "; ".join([*self.disks.doubts(), *self.disks.roles()])
            raise MoveFailed(
                f"The disks are not in step and Primary on {self.plan.target} alone ({doubts}).",
                code=Code.LEFT_BEHIND,
                hint="Look with `drbdsetup status` on both nodes.",
            )
        arrived = hypervisor.domain(self.plan.target, domain.uuid)
        if arrived is None or arrived.persistent != domain.persistent:
            raise MoveFailed(
                f"{domain.name} is not defined on {self.plan.target} as it was on {self.plan.source}.",
                code=Code.LEFT_BEHIND,
                hint=f"`virsh dumpxml {domain.name}` there; the definition on {self.plan.source} was kept.",
            )
        self._alone_on_target(Sight.RUNS if self.settlement.ran_before else Sight.WAITS)
        if domain.persistent:
            hypervisor.undefine(self.plan.source, domain.uuid)
            hypervisor.set_autostart(self.plan.target, domain.uuid, on=domain.autostart)
        together([partial(self._drop_token, node) for node in self.nodes])

    # What the steps are made of.

    def _alone_on_target(self, expected: Sight) -> None:
        """Both nodes say that the guest is on the target as ``expected`` and gone at the source; raises otherwise."""
        name, (source, target) = self.plan.instance, self.settlement.look_until_known()
        if (source, target) == (Sight.GONE, expected):
            return
        if (source, target) == (Sight.RUNS, Sight.RUNS):
            raise self.settlement.twice()
        if (source, target) == (Sight.GONE, Sight.GONE):
            raise GuestLost(
                f"{name} arrived on {self.plan.target} and died there.",
                hint=f"See /var/log/libvirt/qemu/{name}.log on {self.plan.target}.",
            )
        raise OutcomeUnknown(
            f"{name} arrived on {self.plan.target}, but it is not proved that it {expected.value} there alone.",
            known=[f"{self.plan.source}: {source.value}", f"{self.plan.target}: {target.value}"],
            hint=f"`virsh domstate --reason {name}` on both nodes. Nothing was undone.",
        )

    def _follow(self, copy: MemoryCopy) -> tuple[MoveFailed | None, CopyEnd | None]:
        """Wait for the call to end; why it was told to give up, if it was, and how it ended, if it did."""
        deadline = self.context.clock.now() + self.options.copy_timeout_s
        reason: MoveFailed | None = None
        while (end := copy.wait(self.options.poll_s)) is None:
            self.chronicle.tell(memory=copy.progress())
            if reason is None:
                reason = self._reason_to_stop(deadline)
                if reason is None:
                    continue
                self.chronicle.note(f"stopping the copy: {reason}")
                deadline = self.context.clock.now() + _ABORT_S
            elif self.context.clock.now() > deadline:
                return reason, None
            copy.abort()  # asked again each time: the first may have come before libvirt had a job
        if reason is None and self.context.cancel.is_set():
            reason = _aborted()  # what asked us to stop may have ended the call as well
        return reason, end

    def _reason_to_stop(self, deadline: float) -> MoveFailed | None:
        if self.context.cancel.is_set():
            return _aborted()
        if breaks := self.watch.breaks():
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
                detail="; ".join(self.watch.gaps()),
            )
        if self.lease is not None and (lapsed := self.lease.lapsed()):
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
            self.watched_at = self.context.clock.now()
            return None
        for_s = self.context.clock.now() - self.watched_at
        return f"not for {for_s:.0f} s: {(self.watch.gaps() or ('unknown',))[-1]}" if for_s > _UNWATCHED_S else None

    def _resume(self) -> None:
        """Never leave the guest paused: try again while the target's word is that it waits."""
        for attempt in range(1, _RESUME_TRIES + 1):
            try:
                self.context.hypervisor.resume(self.plan.target, self.plan.domain.uuid)
            except LvmigrateError as error:
                _log.warning("resume_failed", attempt=attempt, error=str(error), detail=error.detail)
                if attempt == _RESUME_TRIES:
                    raise OutcomeUnknown(
                        f"{self.plan.instance} has arrived on {self.plan.target}, but could not be resumed there.",
                        known=[str(error), error.detail],
                        hint=f"`virsh resume {self.plan.instance}` on {self.plan.target}; the source has no copy.",
                    ) from error
                self.context.clock.sleep(1.0)
            else:
                return

    def _check_again(self) -> None:
        """Under the token: what another controller may have changed since the checks."""
        now = self.context.hypervisor.domain(self.plan.source, self.plan.domain.uuid)
        target = self.context.hypervisor.domain(self.plan.target, self.plan.domain.uuid)
        moved = now is None or now.state is not self.plan.domain.state or (target is not None and target.state.active)
        if moved or not self.disks.single_primary(self.plan.source):
            raise MoveFailed(
                f"{self.plan.instance} or its disks changed between the checks and the move.",
                code=Code.INSTANCE_STATE,
                hint="Look with `lvmigrate status`, then try again.",
            )

    def _drop_token(self, node: str) -> None:
        if self.lease is not None:
            self.lease.end()
        self.context.storage.drop_token(node, self.token)

    def _stop_if_asked(self) -> None:
        if self.context.cancel.is_set():
            raise _aborted()

    def _dual_primaries(self) -> list[DualPrimary]:
        return [
            DualPrimary(
                storage=self.context.storage,
                watch=self.watch,
                token=self.token,
                plan=resource,
                source=self.plan.source,
                target=self.plan.target,
                clock=self.context.clock,
            )
            for resource in self.plan.resources
        ]

    def _event(self, node: str, event: str) -> None:
        """A life-cycle event of the guest; called from libvirt's event thread."""
        self.chronicle.note(f"{self.plan.instance} on {node}: {event}")
        if node == self.plan.source and event.startswith(("suspended", "stopped")):
            self.chronicle.mark("source stopped")
        if node == self.plan.target and event.startswith("resumed"):
            self.chronicle.mark("target runs")

    def _report(self) -> Report:
        memory = None if self.copy is None else self.copy.progress()
        return Report(
            instance=self.plan.instance,
            uuid=self.plan.domain.uuid,
            source=self.plan.source,
            target=self.plan.target,
            mode=self.plan.mode.value,
            seconds=self.chronicle.elapsed_s,
            downtime_s=self.chronicle.between("source stopped", "target runs") if self.settlement.ran_before else 0.0,
            dual_primary_s=self.watch.dual_primary_s(),
            two_primaries_allowed_s=self.chronicle.between("two primaries allowed", "two primaries forbidden"),
            memory_bytes=0 if memory is None else memory.processed,
            iterations=0 if memory is None else memory.iteration,
            running=self.settlement.ran_before,
            steps=self.chronicle.steps,
            timeline=self.chronicle.moments,
            warnings=self.plan.warnings,
        )


def _aborted() -> MoveAborted:
    return MoveAborted("Aborted as asked.", hint=outcome.NOTHING_LEFT)


#: The plan, the display, the report and the documentation read this list.
STEPS: Final[tuple[Step[Move], ...]] = (
    Step(name="lock", sentence="take the guest's token on both nodes", act=Move.lock),
    Step(name="sync", sentence="wait until the disks are in step, single-primary", act=Move.sync),
    Step(name="open", sentence="allow two primaries and promote the target", act=Move.open),
    Step(name="memory", sentence="copy the guest's memory; it arrives paused", act=Move.memory),
    Step(name="switch", sentence="prove the source gone and replication whole, resume on the target", act=Move.switch),
    Step(name="close", sentence="demote the source and forbid two primaries", act=Move.close),
    Step(name="verify", sentence="look at everything again, then forget the source's definition", act=Move.verify),
)
