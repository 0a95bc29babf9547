"""The steps of a live migration, in the order that keeps the promise.

The guest arrives *paused*: it is resumed on the target only after the source's copy was seen gone and replication was
seen whole, because a reply of libvirt's that is lost at the end would otherwise make two running copies, and a DRBD
link that was lost in mid-copy a stale disk.
"""

from __future__ import annotations

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
from lvmigrate.progress import SyncProgress
from lvmigrate.protocols import CopyEnd, MemoryCopy, Watch
from lvmigrate.replication import ReplicationState, Resource, Role, Token
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


class Move:
    """One move under way. A step is a method; what one step learns for the next is an attribute.

    ``stack`` ends what the move has running (its event stream, its lease) when it is left.
    """

    def __init__(self, context: Context, plan: Plan, options: Options, stack: ExitStack) -> None:
        self.context = context
        self.plan = plan
        self.options = options
        self.stack = stack
        self.names = tuple(resource.name for resource in plan.resources)
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
        self.moved = False
        self.lease: Lease
        self.watch: Watch
        self.copy: MemoryCopy

    def run(self) -> Report:
        """Do every step; what `MigrateInstance.exec` guarantees and raises."""
        try:
            for step in STEPS:
                with self.chronicle.step(step.name, step.sentence):
                    step.act(self)
        except (OutcomeUnknown, GuestLost) as unproved:
            self.chronicle.note(str(unproved))
            raise
        except Exception as caught:  # a defect must not leave the disks dual-primary either
            error = caught if isinstance(caught, LvmigrateError) else outcome.defect(caught)
            self.chronicle.note(str(error))
            if self.moved:
                raise outcome.unfinished(self.plan, error) from caught
            leftovers = self.rollback.run()
            raise outcome.failed(self.plan, error, leftovers, self.settlement.look()[0]) from caught
        return self._report()

    # The steps, in order.

    def lock(self) -> None:
        """Take the token on both nodes, in sorted order, so that two controllers cannot hold one each."""
        storage = self.context.storage
        for node in sorted(self.nodes):
            self.rollback.register(
                Undo(
                    leftover=f"the token of this move on {node}",
                    hint="It runs out by itself within half a minute.",
                    act=partial(storage.drop_token, node, self.token),
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
        self.lease = Lease(storage, self.nodes, self.token, clock=self.context.clock)
        self.stack.callback(self.lease.end)

    def sync(self) -> None:
        """Wait until the disks are in step, still single-primary; then replication must stay whole to the end."""
        self.stack.enter_context(self.context.hypervisor.on_change(self.plan.domain.uuid, self._event))
        self.watch = self.stack.enter_context(
            self.context.storage.watch(self.nodes, self.names, on_change=self.chronicle.note)
        )
        deadline = self.context.clock.now() + self.options.sync_timeout_s
        while not self.watch.wait(self._in_step, 1.0, cancel=self.context.cancel):
            self._stop_if_asked()
            waiting = self._waiting_for()
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
        self.copy = self.context.hypervisor.copy_memory(self.plan.domain, self.plan.target, self.options)
        reason, end = self._follow()
        self.chronicle.mark("source stopped")  # if no event told of it earlier
        if self.settlement.settle():
            if reason is not None:
                self.chronicle.note(f"too late to stop, the guest has arrived: {reason}")
            return
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
        name = self.plan.instance
        doubts = self._doubts_now()
        if doubts:
            raise OutcomeUnknown(
                f"{name} has arrived on {self.plan.target} and waits paused: replication was not seen whole,"
                f" so {self.plan.source} may have the newer disk.",
                known=doubts,
                hint="Nothing was undone. When both nodes say Connected and UpToDate, `virsh resume"
                f" {name}` on {self.plan.target}; otherwise mend the link first (`drbdsetup status` on both).",
            )
        if self.settlement.ran_before:
            self._resume()
        self.chronicle.mark("target runs")
        self.context.clock.sleep(_STILL_S)
        source, target = self.settlement.look()
        expected = Sight.RUNS if self.settlement.ran_before else Sight.WAITS
        if target is Sight.GONE and source is Sight.GONE:
            raise GuestLost(
                f"{name} arrived on {self.plan.target} and died there.",
                hint=f"See /var/log/libvirt/qemu/{name}.log there; its disks are whole on both nodes:"
                f" `virsh start {name}` on one of them.",
            )
        if (source, target) != (Sight.GONE, expected):
            raise OutcomeUnknown(
                f"{name} arrived on {self.plan.target}, but it is not proved that it {expected.value} there alone.",
                known=[f"{self.plan.source}: {source.value}", f"{self.plan.target}: {target.value}"],
                hint=f"`virsh domstate --reason {name}` on both nodes. Nothing was undone.",
            )
        _log.info("point_of_no_return", target=self.plan.target)
        self.moved = True
        self.rollback.forget()

    def close(self) -> None:
        """Demote the source, and forbid two primaries once it is seen Secondary."""
        together([partial(dual.close, self.plan.source) for dual in self._dual_primaries()])
        self.chronicle.mark("two primaries forbidden")

    def verify(self) -> None:
        """Look at everything once more; only now forget the source's definition; autostart last."""
        hypervisor, domain = self.context.hypervisor, self.plan.domain
        arrived = hypervisor.domain(self.plan.target, domain.uuid)
        if arrived is None or arrived.persistent != domain.persistent:
            raise MoveFailed(
                f"{domain.name} is not defined on {self.plan.target} as it was on {self.plan.source}.",
                code=Code.LEFT_BEHIND,
                hint=f"`virsh dumpxml {domain.name}` there; the definition on {self.plan.source} was kept.",
            )
        if domain.persistent:
            hypervisor.undefine(self.plan.source, domain.uuid)
            hypervisor.set_autostart(self.plan.target, domain.uuid, on=domain.autostart)
        for name in self.names:
            here = self.watch.resource(self.plan.source, name)
            if here is None or here.role is not Role.SECONDARY or not here.in_step_with(self.plan.target):
                doubts = ["not seen Secondary"] if here is None else [str(d) for d in here.doubts(self.plan.target)]
                raise MoveFailed(
                    f"{name} is not in step after the move: {'; '.join(doubts)}.",
                    code=Code.LEFT_BEHIND,
                    hint=f"Look with `drbdsetup status {name}` on both nodes.",
                )
        self.lease.end()
        together([partial(self.context.storage.drop_token, node, self.token) for node in self.nodes])

    # What the steps are made of.

    def _follow(self) -> tuple[MoveFailed | None, CopyEnd]:
        """Wait for the call to end; why it was told to give up, if it was, and how it ended."""
        deadline = self.context.clock.now() + self.options.copy_timeout_s
        reason: MoveFailed | None = None
        while (end := self.copy.wait(self.options.poll_s)) is None:
            self.chronicle.tell(memory=self.copy.progress())
            if reason is None:
                reason = self._reason_to_stop(deadline)
                if reason is None:
                    continue
                self.chronicle.note(f"stopping the copy: {reason}")
                deadline = self.context.clock.now() + _ABORT_S
            elif self.context.clock.now() > deadline:
                return reason, CopyEnd(ok=False, detail="the call did not end")
            try:
                self.copy.abort()  # asked again each time: the first may have come before libvirt had a job
            except LvmigrateError as error:
                _log.warning("abort_unanswered", error=str(error))
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

    def _doubts_now(self) -> list[str]:
        """Every doubt about replication since step `sync`, by the events, and now, by both kernels' own word."""
        doubts = list(self.watch.breaks())
        calls = [partial(self.context.storage.observe, node, self.names) for node in self.nodes]
        for node, peer, seen in zip(self.nodes, reversed(self.nodes), outcomes_of(calls), strict=True):
            if isinstance(seen, LvmigrateError):
                doubts.append(str(seen))
                continue
            doubts += [f"{node} has no {name}" for name in self.names if name not in seen]
            doubts += [str(doubt) for resource in seen.values() for doubt in resource.doubts(peer)]
        return doubts

    def _ends(self) -> list[tuple[Resource | None, str]]:
        """Each resource at each end, with the node at the other end."""
        directions = ((self.plan.source, self.plan.target), (self.plan.target, self.plan.source))
        return [(self.watch.resource(node, name), peer) for name in self.names for node, peer in directions]

    def _in_step(self) -> bool:
        return all(resource is not None and resource.in_step_with(peer) for resource, peer in self._ends())

    def _waiting_for(self) -> SyncProgress:
        """What the disks still lack. DRBD 8.4 sends no progress of a resynchronisation, so the kernel is asked."""
        seen = self.context.storage.observe(self.plan.source, self.names)
        volumes = [
            volume
            for resource in seen.values()
            if (connection := resource.towards(self.plan.target)) is not None
            for volume in connection.volumes
            if volume.replication is not ReplicationState.ESTABLISHED
        ]
        sizes = sum(v.size_kib or 0 for resource in seen.values() for v in resource.volumes)
        left = sum(volume.out_of_sync_kib or 0 for volume in volumes)
        return SyncProgress(
            out_of_sync_kib=left,
            percent=100.0 * (1 - min(left, sizes) / sizes) if sizes else None,
            waiting_for=tuple(str(d) for r, peer in self._ends() if r is not None for d in r.doubts(peer)),
        )

    def _check_again(self) -> None:
        """Under the token: what another controller may have changed since the checks."""
        now = self.context.hypervisor.domain(self.plan.source, self.plan.domain.uuid)
        target = self.context.hypervisor.domain(self.plan.target, self.plan.domain.uuid)
        roles = [(resource, resource.role) for resource, _ in self._ends() if resource is not None]
        moved = now is None or now.state is not self.plan.domain.state or (target is not None and target.state.active)
        if moved or any((role is Role.PRIMARY) is not (resource.node == self.plan.source) for resource, role in roles):
            raise MoveFailed(
                f"{self.plan.instance} or its disks changed between the checks and the move.",
                code=Code.INSTANCE_STATE,
                hint="Look with `lvmigrate status`, then try again.",
            )

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
        memory = self.copy.progress()
        return Report(
            instance=self.plan.instance,
            uuid=self.plan.domain.uuid,
            source=self.plan.source,
            target=self.plan.target,
            mode=self.plan.mode.value,
            seconds=self.chronicle.elapsed_s,
            downtime_s=self.chronicle.between("source stopped", "target runs"),
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
    return MoveAborted("Aborted as asked.", hint="Nothing is left to do.")


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
