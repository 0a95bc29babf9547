"""The steps of a live migration, in the order that keeps the promise.

The guest arrives *paused*: it is resumed on the target only after the source's copy was seen gone and replication was
seen whole, because a reply of libvirt's that is lost at the end would otherwise make two running copies, and a DRBD
link that was lost in mid-copy a stale disk.

Long, because each step stands beside its undo and beside the next, in the order in which they run.
"""

from __future__ import annotations

import enum
import shlex
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

import structlog

from lvmigrate import checks, outcome
from lvmigrate.arrival import Arrival
from lvmigrate.balloon import Balloon
from lvmigrate.by_hand import undefining
from lvmigrate.chronicle import Chronicle
from lvmigrate.decision import Sight
from lvmigrate.defect import defect
from lvmigrate.definitions import Definitions
from lvmigrate.disks import Disks
from lvmigrate.domain import DomainState
from lvmigrate.dual_primary import DualPrimary
from lvmigrate.errors import (
    Code,
    GuestLost,
    LvmigrateError,
    MoveFailed,
    OutcomeUnknown,
    Refused,
    TokenLost,
)
from lvmigrate.follow import ABORT_S, Following, aborted
from lvmigrate.journal import NO_RECORD, Record
from lvmigrate.lease import Lease, holder
from lvmigrate.plan import Options, Plan, ResourcePlan, Switch
from lvmigrate.protocols import MemoryCopy
from lvmigrate.recovery import Recovery
from lvmigrate.report import Report
from lvmigrate.resync import STALL_HINTS
from lvmigrate.rollback import Leftover, Rollback, Undo
from lvmigrate.settle import Settlement
from lvmigrate.steering import POST_COPY, Steering
from lvmigrate.tasklet import Context, Step
from lvmigrate.together import outcomes_of, together
from lvmigrate.token import Guarded, Token

_log = structlog.get_logger()

#: How long what must be so by now may take to be seen.
_SEEN_S: Final = 30.0
#: A token that was acknowledged so long ago, in seconds, is renewed before two primaries are allowed; and right before
#: the copy one that was acknowledged so much longer ago. The guards take half a second to acknowledge.
_FRESH_S: Final = 2.0
_OPENING_S: Final = 2.0


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

    def __init__(
        self, context: Context, plan: Plan, options: Options, stack: ExitStack, *, record: Record = NO_RECORD
    ) -> None:
        self.context = context
        self.record = record
        self.plan = plan
        self.options = options
        self.stack = stack
        self.nodes = (plan.source, plan.target)
        self.chronicle = Chronicle(plan, clock=context.clock, on_progress=context.on_progress, record=record)
        self.rollback = Rollback()
        self.lease = Lease(
            context.storage,
            self.nodes,
            Token(
                uuid=plan.domain.uuid,
                instance=plan.instance,
                id=uuid.uuid4().hex,
                holder=holder(),
                lease_s=context.lease_s,
                errand=plan.errand,
            ),
            clock=context.clock,
        )
        self.settlement = Settlement(
            hypervisor=context.hypervisor,
            instance=plan.instance,
            uuid=plan.domain.uuid,
            source=plan.source,
            target=plan.target,
            ran=plan.domain.state is DomainState.RUNNING,
            confirm=self.lease.confirm,
            clock=context.clock,
        )
        self.definitions = Definitions(
            hypervisor=context.hypervisor,
            uuid=plan.domain.uuid,
            source=plan.source,
            target=plan.target,
            keep=plan.errand.keep_definition,
        )
        self.balloon = Balloon(
            hypervisor=context.hypervisor,
            storage=context.storage,
            instance=plan.instance,
            uuid=plan.domain.uuid,
            before_kib=plan.errand.memory_kib,
            clock=context.clock,
        )
        self.phase = _Phase.AT_SOURCE
        self.disks: Disks
        #: Whether ``disks`` are there: the events begin before them.
        self.watched = False
        self.copy: MemoryCopy | None = None
        #: libvirt was told not to start the guest at the source; its calls carry no token.
        self.autostart_off = False
        self.steering: Steering
        #: What kept the move from being finished, past the point of no return.
        self.troubles: list[LvmigrateError] = []

    def run(self) -> Report:
        """Do every step; what `MigrateInstance.exec` guarantees and raises."""
        try:
            for step in STEPS:
                with self.chronicle.step(step.name, step.sentence):
                    step.act(self)
        except Exception as caught:  # a defect must not leave the disks dual-primary either
            error = defect(caught)
            self.chronicle.note(str(error))
            raise self._failed(error) from caught
        return self._report()

    def _failed(self, error: LvmigrateError) -> LvmigrateError:
        """Undo what may be undone where the guest is now, and say what the whole amounts to."""
        try:
            return self._judged(error)
        except TokenLost as lost:
            # Somebody else acts on the guest now, or has: whatever we did would be done against them.
            return outcome.taken_over(lost, self.plan) if self.autostart_off else lost

    def _judged(self, error: LvmigrateError) -> LvmigrateError:
        if isinstance(error, TokenLost):
            raise error
        if isinstance(error, OutcomeUnknown):
            return self._with_open_state(error)
        if isinstance(error, GuestLost):
            return self._lost(error)
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
                    known=self.settlement.words(),
                    hint=f"`lvmigrate cleanup {self.plan.instance}` finishes or undoes the move by what both nodes say;"
                    " resume a copy by hand only when the other node has none.",
                    detail=error.detail,
                )
            )
        leftovers, sights = self._undo(), self.settlement.look_until_known()
        return outcome.failed(self.plan, error, leftovers, sights, self.settlement.how_to_start())

    def _lost(self, error: GuestLost) -> GuestLost:
        """Undo everything, unless that is too late, or the target's disk may have writes that the source's lacks."""
        doubts = self.disks.doubts_now()
        by_itself = self.options.switch is Switch.FAST or self.chronicle.happened(POST_COPY)
        ran_there = self.chronicle.happened("target runs") or (by_itself and self.settlement.handed_over)
        if self.phase is _Phase.MOVED or (doubts and ran_there):
            return outcome.lost_there(error, doubts, self.plan)
        return outcome.lost(error, self._undo(), doubts, self.plan)

    def _undo(self) -> tuple[Leftover, ...]:
        """Undo everything, under a new id: a command of ours that is late must not act after its undo.

        Raises `TokenLost`, and undoes nothing: libvirt's calls carry no token.
        """
        if self.rollback:
            self.lease.fence(uuid.uuid4().hex)
        return self.rollback.run()

    def _with_open_state(self, error: OutcomeUnknown) -> OutcomeUnknown:
        """The same error, with what is left open beside the guest itself; what is known stays in the token."""
        if self.settlement.handed_over:
            outcomes_of([self.lease.renew])
        opened = "two primaries allowed" if self.chronicle.happened("two primaries allowed") else None
        if opened is None or self.chronicle.happened("two primaries forbidden"):
            return error
        known = [*error.known, *self.disks.roles(), f"{opened} on {', '.join(self.disks.names)}"]
        return OutcomeUnknown(error.sentence, known=known, hint=error.hint, detail=error.detail)

    def _stayed(self) -> bool:
        """End the copy, whatever went wrong; whether the guest is then proved to be at the source, and only there."""
        try:
            deadline = self.context.clock.now() + ABORT_S
            while self.copy is not None and self.copy.wait(self.options.poll_s) is None:
                self.copy.abort()
                if self.context.clock.now() > deadline:
                    return False
            return not self.settlement.settle(self._abort_job)
        except TokenLost:
            raise
        except Exception:  # noqa: BLE001 -- no proof, whatever the reason
            _log.exception("stay_not_proved")
            return False

    # The steps, in order.

    def lock(self) -> None:
        """Take the token on both nodes, in sorted order, so that two controllers cannot hold one each."""
        self.rollback.register(
            Undo(
                leftover="the token of this move",
                hint="The token runs out by itself.",
                act=self._drop_tokens,
                # It is the record of the move: what could not be undone, a cleanup finds there.
                only_if_clean=True,
            )
        )
        for node in sorted(self.nodes):
            held = self.lease.take(node, known=self.plan.tokens.get(node, ""))
            if held is not None:
                raise Refused(self.plan.instance, [checks.taken(held)])
        self.lease.keep()
        self.stack.callback(self.lease.end)

    def sync(self) -> None:
        """Wait until the disks are in step, still single-primary; then replication must stay whole to the end."""
        self.stack.enter_context(self.context.hypervisor.on_change(self.plan.domain.uuid, self._event))
        names = tuple(resource.name for resource in self.plan.resources)
        watch = self.stack.enter_context(self.context.storage.watch(self.nodes, names, on_change=self._changed))
        self.disks = Disks(storage=self.context.storage, watch=watch, names=names, nodes=self.nodes)
        self.chronicle.replication(resource for resource, _ in self.disks.ends())
        self.watched = True
        deadline = self.context.clock.now() + self.options.sync_timeout_s
        while not self.disks.watch.wait(self.disks.in_step, 1.0, cancel=self.context.cancel):
            self._stop_if_asked()
            waiting = self.disks.sync(self.context.clock.now())
            self.chronicle.tell(sync=waiting)
            if waiting.stall is not None and waiting.stalled_s >= self.options.sync_stall_s:
                raise MoveFailed(
                    f"The disks of {self.plan.instance} have not come nearer to being in step for"
                    f" {waiting.stalled_s:.0f} s: {waiting.stall.value}.",
                    code=Code.SYNC_STALLED,
                    hint=STALL_HINTS[waiting.stall],
                    detail="; ".join(waiting.waiting_for),
                )
            if self.context.clock.now() > deadline:
                raise MoveFailed(
                    f"The disks of {self.plan.instance} were not in step after {self.options.sync_timeout_s:g} s"
                    f" ({'; '.join(waiting.waiting_for)}).",
                    code=Code.SYNC_TIMEOUT,
                    hint="See why the resynchronisation is slow, or give it longer with --sync-timeout.",
                )
        self._check_again()
        self._shrink()
        self.disks.remember(self.context.clock.now())

    def guard(self) -> None:
        """Arm a guard on both nodes, which closes what is about to be opened if nobody else does any more.

        A guard holds its node's shutdown back, too; where there is none, that is done from here.
        """
        if not (self.options.guard and self.plan.resources):
            held = [self.context.storage.inhibit(node, self.lease.token) for node in self.nodes]
            together([partial(self.stack.enter_context, each) for each in held])
            return
        self._stop_if_asked()
        for node in self.nodes:
            self.rollback.register(
                Undo(
                    leftover=f"the guard on {node}",
                    hint="It ends by itself when nothing is left to do.",
                    act=partial(self._disarm, node),
                    only_if_clean=True,
                )
            )
        together([partial(self._arm, node, peer) for node, peer in self._directions()])
        self.lease.guarded()

    def open(self) -> None:
        """Allow two primaries on the guest's connections and promote the target; the undo of each comes first."""
        self._stop_if_asked()
        if not self.plan.resources:
            return
        for resource in self.plan.resources:
            self.rollback.register(
                Undo(
                    leftover=f"two primaries allowed for {resource.name}, or {self.plan.target} Primary",
                    hint=f"`lvmigrate cleanup {self.plan.instance}` closes it.",
                    act=partial(self._dual_primary(resource).close, self.plan.target),
                )
            )
        self.chronicle.mark("two primaries allowed")
        # Beside the opening, so that no dual-primary waits for the guards.
        renew: Callable[[], None] = partial(self.lease.renew, unless_within_s=_FRESH_S)
        together([*(self._dual_primary(resource).open for resource in self.plan.resources), renew])

    def memory(self) -> None:
        """Copy the memory; give up when asked, or when replication, the token or the time is up.

        Guaranteed afterwards: both nodes said that the guest is on the target only.
        """
        if self.plan.domain.persistent and not self.plan.target_had_definition:
            self.rollback.register(
                Undo(
                    leftover=f"a definition of {self.plan.instance} on {self.plan.target}",
                    hint=f"Once it runs at {self.plan.source}: `{shlex.join(undefining(self.plan.domain))}` there.",
                    act=partial(self.context.hypervisor.undefine, self.plan.target, self.plan.domain.uuid),
                )
            )
        self._stop_if_asked()
        if self.plan.domain.persistent and self.plan.domain.autostart:
            # From here on a reboot of the source must not start, from its disk, what may run elsewhere.
            set_autostart = partial(self.context.hypervisor.set_autostart, self.plan.source, self.plan.domain.uuid)
            self.rollback.register(
                Undo(
                    leftover=f"autostart of {self.plan.instance} is off on {self.plan.source}",
                    hint=f"`virsh autostart {self.plan.instance}` on {self.plan.source}.",
                    act=partial(set_autostart, on=True),
                )
            )
            self.autostart_off = True
            set_autostart(on=False)
        # Only a lease with its time ahead outlives the worst that can come: a controller that dies now.
        self.lease.renew(unless_within_s=_FRESH_S + _OPENING_S)
        self.phase = _Phase.BETWEEN
        self.chronicle.mark("copy began")
        self.copy = self.context.hypervisor.copy_memory(self.plan.domain, self.plan.target, self.options)
        self._look_at_once()  # at what broke when there was no copy yet
        reason, end = self._following().to_its_end(self.copy)
        if self.chronicle.happened(POST_COPY) and end is not None and not end.ok:
            mended = self._recovery().mend()
            # One that libvirt was asked to begin, and that failed before, leaves the guest at the source.
            end = mended if mended.ok else end
        if end is None:
            raise OutcomeUnknown(
                f"libvirt does not end the copy of {self.plan.instance}'s memory; nothing was undone.",
                known=self.settlement.words(),
                hint=f"See on {self.plan.source} whether libvirtd and the guest's QEMU still live (`virsh domjobinfo"
                f" {self.plan.instance}`); `lvmigrate cleanup --abort {self.plan.instance}` ends the job.",
                detail="" if reason is None else str(reason),
            )
        self.chronicle.mark("source stopped")  # if no event told of it earlier
        if end.ok:
            self._handed_over()
        arrived = self.settlement.settle(self._wait_for_job if end.ok else self._abort_job)
        if reason is None and self.context.cancel.is_set() and not self.chronicle.happened(POST_COPY):
            # What asked us to stop may have ended the call as well, and sooner: Ctrl-C ends libvirt's ssh too.
            reason = aborted()
        if arrived:
            if reason is not None:
                self.chronicle.note(f"too late to stop, the guest has arrived: {reason}")
            return
        self.phase = _Phase.AT_SOURCE
        if reason is not None:
            raise reason
        raise MoveFailed(
            f"libvirt did not move {self.plan.instance}.",
            code=end.code,
            hint=" ".join(filter(None, [end.hint, f"libvirt says: {end.detail or 'nothing'}"])),
            detail=end.detail,
        )

    def switch(self) -> None:
        """Let the guest run on the target: its source is gone, and both kernels must say now that all is in step."""
        self._arrival().let_run()
        self.chronicle.mark("target runs")
        if self.plan.resources:
            self.chronicle.note(str(self.disks.standing()))

    def close(self) -> None:
        """See the guest on the target alone; demote the source, and forbid two primaries once it is seen Secondary.

        Beside each other: the source's copy was proved gone before the guest was let run, and whatever has a device
        open there keeps it from being demoted.
        """
        duals = [self._dual_primary(resource) for resource in self.plan.resources]
        calls: list[Callable[[], None]] = [
            self._arrival().alone,
            *(partial(dual.close, self.plan.source) for dual in duals),
        ]
        alone, *closed = outcomes_of(calls)
        self.troubles += [error for error in closed if isinstance(error, LvmigrateError)]
        if duals and not self.troubles:
            self.chronicle.mark("two primaries forbidden")
        if isinstance(alone, LvmigrateError):
            raise alone
        _log.info("point_of_no_return", target=self.plan.target)
        self.phase = _Phase.MOVED
        if self.troubles:
            raise self.troubles[0]

    def verify(self) -> None:
        """Look at everything once more; only now forget the source's definition; autostart, guards and tokens last."""
        if not self.disks.watch.wait(
            lambda: self.disks.in_step() and self.disks.single_primary(self.plan.target), _SEEN_S
        ):
            doubts = "; ".join([*self.disks.doubts(), *self.disks.roles()])
            raise MoveFailed(
                f"The disks are not in step and Primary on {self.plan.target} alone ({doubts}).",
                code=Code.LEFT_BEHIND,
                hint="Look with `drbdsetup status` on both nodes.",
            )
        self._arrival().seen_alone()
        if self.plan.domain.persistent:
            self.lease.confirm()
            self.definitions.moved(autostart=self.plan.domain.autostart)
        self._memory_back()
        together([partial(self._disarm, node) for node in self.nodes])
        self._drop_tokens()

    # What the steps are made of.

    def _shrink(self) -> None:
        """Let the guest give back what the target has no room for; nothing is open yet while that takes its time."""
        if self.plan.shrunk_kib is None:
            return
        self.rollback.register(
            Undo(
                leftover=f"{self.plan.instance} has less memory on {self.plan.source} than before",
                hint=f"`virsh setmem {self.plan.instance} {self.plan.errand.memory_kib} --live` there.",
                act=partial(self.balloon.back, self.plan.source),
            )
        )
        self.balloon.shrink(self.plan.source, self.plan.shrunk_kib, self.context.cancel)
        self.chronicle.note(f"{self.plan.instance} has {self.plan.shrunk_kib // 1024} MiB of memory now")

    def _memory_back(self) -> None:
        """As far as the target has room; the guest is there and runs, whatever becomes of this."""
        if self.plan.shrunk_kib is not None:
            try:
                self.balloon.back(self.plan.target)
            except LvmigrateError as error:
                self.chronicle.note(f"{self.plan.instance} was not given its memory back: {error}")

    def _following(self) -> Following:
        may_post_copy = self.options.may_post_copy_of(self.plan.domain)
        by_itself = may_post_copy or self.options.switch is Switch.FAST
        self.steering = Steering(
            context=self.context,
            options=self.options,
            chronicle=self.chronicle,
            disks=self.disks,
            lease=self.lease,
            may_post_copy=may_post_copy,
        )
        return Following(
            context=self.context,
            options=self.options,
            chronicle=self.chronicle,
            disks=self.disks,
            lease=self.lease,
            steering=self.steering,
            at_each_look=self.settlement.end_the_older if by_itself else lambda: None,
        )

    def _recovery(self) -> Recovery:
        return Recovery(
            hypervisor=self.context.hypervisor,
            settlement=self.settlement,
            domain=self.plan.domain,
            target=self.context.nodes[self.plan.target],
            options=self.options,
            chronicle=self.chronicle,
            clock=self.context.clock,
        )

    def _arrival(self) -> Arrival:
        return Arrival(settlement=self.settlement, disks=self.disks, clock=self.context.clock)

    def _abort_job(self) -> None:
        self.lease.confirm()  # the job may be somebody else's by now
        try:
            self.context.hypervisor.abort_job(self.plan.source, self.plan.domain.uuid)
        except LvmigrateError as error:
            _log.warning("abort_unanswered", node=self.plan.source, error=str(error))

    def _wait_for_job(self) -> None:
        """The call said that all is well: libvirt's job is about to end by itself."""

    def _check_again(self) -> None:
        """Under the token: what another controller may have changed since the checks."""
        look = self.context.hypervisor.domain
        now, target = together([partial(look, node, self.plan.domain.uuid) for node in self.nodes])
        moved = now is None or now.state is not self.plan.domain.state or (target is not None and target.state.active)
        # A disk that was attached since then was looked at by nobody: its path may lead to another one on the target.
        others = now is not None and checks.replicated_disks(now) != checks.replicated_disks(self.plan.domain)
        if moved or others or not self.disks.single_primary(self.plan.source):
            raise MoveFailed(
                f"{self.plan.instance} or its disks changed between the checks and the move.",
                code=Code.INSTANCE_STATE,
                hint="Look with `lvmigrate status`, then try again.",
            )

    def _arm(self, node: str, peer: str) -> None:
        end = self.nodes.index(node)
        self.context.storage.arm_guard(
            node,
            self.lease.token,
            [Guarded(resource=r.name, peer=peer, options=r.options[end]) for r in self.plan.resources],
            # The other guard's word is that it forbids two primaries: where they stay allowed for good, it has none.
            resume=node == self.plan.target
            and not any(option.allow_two_primaries for r in self.plan.resources for option in r.options),
        )

    def _disarm(self, node: str) -> None:
        self.lease.unguarded()
        self.context.storage.disarm_guard(node, self.lease.token)

    def _drop_tokens(self) -> None:
        self.lease.end()
        self.lease.drop()

    def _stop_if_asked(self) -> None:
        if self.context.cancel.is_set():
            raise aborted()

    def _directions(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return self.nodes, (self.plan.target, self.plan.source)

    def _dual_primary(self, resource: ResourcePlan) -> DualPrimary:
        return DualPrimary(
            storage=self.context.storage,
            watch=self.disks.watch,
            lease=self.lease,
            plan=resource,
            source=self.plan.source,
            target=self.plan.target,
            clock=self.context.clock,
        )

    def _changed(self, sentence: str) -> None:
        """A change that the kernels told of; called from the watch's own threads."""
        self._look_at_once()
        self.chronicle.note(sentence, said_by="drbd")
        if self.watched:
            self.chronicle.replication(resource for resource, _ in self.disks.ends())

    def _look_at_once(self) -> None:
        """Have a copy under way looked at now if replication broke: each moment more is one of two Primaries."""
        if self.copy is not None and self.watched and self.disks.watch.breaks():
            self.copy.wake()

    def _handed_over(self) -> None:
        """The source's copy ended because the target took over: whatever comes, the target's is not the older one."""
        self.settlement.handed_over = True
        self.lease.learn(handed_over=True)

    def _event(self, node: str, event: str) -> None:
        """A life-cycle event of the guest; called from libvirt's event thread."""
        self.chronicle.note(f"{self.plan.instance} on {node}: {event}", said_by="libvirt")
        # Not where somebody has paused it, or an error of its disk has: it may run again before it goes.
        if node == self.plan.source and event.startswith(("suspended migrated", "suspended post-copy", "stopped")):
            self.chronicle.mark("source stopped")
        if node == self.plan.source and event == "stopped migrated":
            self._handed_over()
        if node == self.plan.target and event.startswith("resumed"):
            self.chronicle.mark("target runs")
        if node == self.plan.source and event == "suspended post-copy":
            self.chronicle.mark(POST_COPY)  # whoever began it
        if node == self.plan.source and event in ("suspended paused", "resumed unpaused"):
            # An operator did that during the copy: it is to arrive as they want it.
            self.settlement.ran = event.startswith("resumed")
            self.lease.learn(ran=self.settlement.ran)

    def _report(self) -> Report:
        memory = None if self.copy is None else self.copy.progress()
        return Report(
            instance=self.plan.instance,
            uuid=self.plan.domain.uuid,
            errand=self.record.id,
            source=self.plan.source,
            target=self.plan.target,
            mode=self.plan.mode.value,
            seconds=self.chronicle.elapsed_s,
            downtime_s=self.chronicle.between("source stopped", "target runs") if self.settlement.ran else 0.0,
            dual_primary_s=self.disks.watch.dual_primary_s(),
            two_primaries_allowed_s=self.chronicle.between("two primaries allowed", "two primaries forbidden"),
            memory_bytes=0 if memory is None else memory.processed,
            iterations=0 if memory is None else memory.iteration,
            copy_s=self.chronicle.between("copy began", "target runs"),
            peak_rate=0 if self.options.bandwidth_mib_s else self.steering.peak_rate,
            forecast=self.plan.forecast,
            throttle_percent=self.steering.most_throttle_percent,
            post_copy=self.chronicle.happened(POST_COPY),
            policy=self.options.rules.name,
            fired=tuple(self.steering.fired),
            running=self.settlement.ran is not False,
            steps=self.chronicle.steps,
            timeline=self.chronicle.moments,
            warnings=self.plan.warnings,
        )


#: The plan, the display, the report and the documentation read this list.
STEPS: Final[tuple[Step[Move], ...]] = (
    Step(name="lock", sentence="take the guest's token on both nodes", act=Move.lock),
    Step(name="sync", sentence="wait until the disks are in step, single-primary", act=Move.sync),
    Step(name="guard", sentence="arm a guard on both nodes that closes what a dead controller leaves", act=Move.guard),
    Step(name="open", sentence="allow two primaries and promote the target", act=Move.open),
    Step(name="memory", sentence="copy the guest's memory; it arrives paused (strict switch)", act=Move.memory),
    Step(name="switch", sentence="prove the source gone and replication whole, resume on the target", act=Move.switch),
    Step(name="close", sentence="demote the source and forbid two primaries", act=Move.close),
    Step(name="verify", sentence="look at everything again, then forget the source's definition", act=Move.verify),
)
