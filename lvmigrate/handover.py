"""The steps of a failover between two nodes that answer: shut down here, demote, promote, start there."""

from __future__ import annotations

import shlex
import uuid
from contextlib import ExitStack
from functools import partial
from typing import Final

from lvmigrate import checks, outcome
from lvmigrate.by_hand import undefining
from lvmigrate.chronicle import Chronicle
from lvmigrate.decision import Sight
from lvmigrate.defect import defect
from lvmigrate.definitions import Definitions, disks_to_come
from lvmigrate.disks import Disks
from lvmigrate.dual_primary import DualPrimary
from lvmigrate.errors import (
    Code,
    CommandFailed,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    NodeUnreachable,
    OutcomeUnknown,
    Refused,
    TokenLost,
)
from lvmigrate.follow import aborted
from lvmigrate.journal import NO_RECORD, Record
from lvmigrate.lease import Lease, holder
from lvmigrate.plan import Plan
from lvmigrate.report import Report
from lvmigrate.rollback import Rollback, Undo
from lvmigrate.settle import Settlement
from lvmigrate.tasklet import Context, Step
from lvmigrate.together import together
from lvmigrate.token import Token
from lvmigrate.upstart import Upstart

#: How long what must be so by now may take to be seen.
_SEEN_S: Final = 30.0
_ASK_S: Final = 0.5


class Handover:
    """One failover under way. Two primaries are never allowed, so that no guard is needed."""

    def __init__(  # noqa: PLR0913 -- by name
        self,
        context: Context,
        plan: Plan,
        stack: ExitStack,
        *,
        shutdown_timeout_s: float,
        hard: bool,
        sync_timeout_s: float,
        record: Record = NO_RECORD,
    ) -> None:
        self.context = context
        self.plan = plan
        self.stack = stack
        self.shutdown_timeout_s = shutdown_timeout_s
        self.hard = hard
        self.sync_timeout_s = sync_timeout_s
        self.record = record
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
            ran=True,
            confirm=self.lease.confirm,
            clock=context.clock,
        )
        self.disks: Disks
        #: Past the point of no return: the guest runs on the target.
        self.moved = False

    def run(self) -> Report:
        """Do every step; what `FailoverInstance.exec` guarantees and raises."""
        try:
            for step in STEPS:
                with self.chronicle.step(step.name, step.sentence):
                    step.act(self)
        except Exception as caught:
            error = defect(caught)
            self.chronicle.note(str(error))
            raise self._failed(error) from caught
        return self._report()

    def _failed(self, error: LvmigrateError) -> LvmigrateError:
        if isinstance(error, TokenLost | OutcomeUnknown):
            return error
        if self.moved:
            return outcome.unfinished(self.plan, [error], self.settlement.look_until_known())
        try:
            self.lease.fence(uuid.uuid4().hex)
        except TokenLost as lost:
            return lost
        leftovers = self.rollback.run()
        sights = self.settlement.look_until_known()
        return outcome.failed(self.plan, error, leftovers, sights, self.settlement.how_to_start())

    # The steps, in order.

    def lock(self) -> None:
        """Take the token on both nodes, in sorted order."""
        self.rollback.register(
            Undo(
                leftover="the token of this failover",
                hint=f"`lvmigrate cleanup {self.plan.instance}` finishes what is left.",
                act=self._drop_token,
                only_if_clean=True,  # it tells a cleanup that the guest is to be started again
            )
        )
        for node in sorted(self.nodes):
            held = self.lease.take(node, known=self.plan.tokens.get(node, ""))
            if held is not None:
                raise Refused(self.plan.instance, [checks.taken(held)])
        self.lease.keep()
        self.stack.callback(self.lease.end)
        for node in self.nodes:
            self.stack.enter_context(self.context.storage.inhibit(node, self.lease.token))

    def sync(self) -> None:
        """Wait until the disks are in step; then the guest must still be as it was."""
        self.stack.enter_context(self.context.hypervisor.on_change(self.plan.domain.uuid, self._event))
        names = tuple(resource.name for resource in self.plan.resources)
        told = partial(self.chronicle.note, said_by="drbd")
        watch = self.stack.enter_context(self.context.storage.watch(self.nodes, names, on_change=told))
        self.disks = Disks(storage=self.context.storage, watch=watch, names=names, nodes=self.nodes)
        deadline = self.context.clock.now() + self.sync_timeout_s
        while not watch.wait(self.disks.in_step, 1.0, cancel=self.context.cancel):
            self._stop_if_asked()
            if self.context.clock.now() > deadline:
                raise MoveFailed(
                    f"The disks of {self.plan.instance} were not in step after {self.sync_timeout_s:g} s"
                    f" ({'; '.join(self.disks.doubts())}).",
                    code=Code.SYNC_TIMEOUT,
                    hint="See why the resynchronisation is slow, or give it longer with --sync-timeout.",
                )
        if self.settlement.look() != (Sight.RUNS, Sight.GONE) or not self.disks.single_primary(self.plan.source):
            raise MoveFailed(
                f"{self.plan.instance} or its disks changed between the checks and the failover.",
                code=Code.INSTANCE_STATE,
                hint="Look with `lvmigrate status`, then try again.",
            )
        self.disks.remember()

    def define(self) -> None:
        """Define the guest on the target while the source can still be asked; no reboot is to start it meanwhile."""
        self._stop_if_asked()
        text = self.context.hypervisor.definition(self.plan.source, self.plan.domain.uuid)
        if text is None:
            raise MoveFailed(
                f"{self.plan.source} has no definition of {self.plan.instance} any more.",
                code=Code.DEFINITION_MISSING,
                hint="Look with `lvmigrate status`.",
            )
        if paths := disks_to_come(self.plan.domain, self.context.hypervisor.described(self.plan.target, text)):
            name, source = self.plan.instance, self.plan.source
            raise MoveFailed(
                f"From its next start on {name} has {', '.join(paths)}, which it has not now: where that leads on"
                f" {self.plan.target} is not known.",
                code=Code.DISK_NOT_REPLICATED,
                hint=f"Have {name} started anew on {source} first, so that its disks can be checked; or take it out of"
                " the definition (`virsh detach-disk --config`).",
            )
        if not self.plan.target_had_definition:
            self.rollback.register(
                Undo(
                    leftover=f"a definition of {self.plan.instance} on {self.plan.target}",
                    hint=f"Once it runs at {self.plan.source}: `{shlex.join(undefining(self.plan.domain))}` there.",
                    act=partial(self.context.hypervisor.undefine, self.plan.target, self.plan.domain.uuid),
                    only_if_clean=True,
                )
            )
        self.context.hypervisor.define(self.plan.target, text)
        if self.plan.domain.autostart:
            set_autostart = partial(self.context.hypervisor.set_autostart, self.plan.source, self.plan.domain.uuid)
            self.rollback.register(
                Undo(
                    leftover=f"autostart of {self.plan.instance} is off on {self.plan.source}",
                    hint=f"`virsh autostart {self.plan.instance}` on {self.plan.source}.",
                    act=partial(set_autostart, on=True),
                )
            )
            set_autostart(on=False)

    def shut_down(self) -> None:
        """Have the guest shut down within its time; switch it off only if that was asked for."""
        self._stop_if_asked()
        self.lease.renew()
        self.rollback.register(
            Undo(
                leftover=f"{self.plan.instance} is off",
                hint=f"`lvmigrate cleanup {self.plan.instance}` starts it again when both nodes answer.",
                act=self._back,
            )
        )
        detail = ""
        try:
            self.context.hypervisor.shut_down(self.plan.source, self.plan.domain.uuid)
        except LvmigrateError as error:
            # An error is no proof that the guest was not asked: if it goes down all the same, it must not stay so.
            detail = str(error)
            self.chronicle.note(detail)
        if not self._is_off(self.shutdown_timeout_s):
            if not self.hard:
                raise MoveFailed(
                    f"{self.plan.instance} did not shut down within {self.shutdown_timeout_s:g} s.",
                    code=Code.SHUTDOWN_TIMEOUT,
                    hint="It may still do so, being asked: look at its console. Give it longer with --shutdown-timeout,"
                    " or have it switched off with --hard.",
                    detail=detail,
                )
            if self.context.cancel.is_set():
                raise MoveAborted(
                    f"Aborted as asked, before {self.plan.instance} was switched off.",
                    hint="It may still shut down, being asked: look at its console.",
                )
            self.lease.confirm()
            self.context.hypervisor.power_off(self.plan.source, self.plan.domain.uuid)
            if not self._is_off(_SEEN_S):
                raise MoveFailed(
                    f"{self.plan.instance} could not be switched off on {self.plan.source}.",
                    code=Code.SHUTDOWN_TIMEOUT,
                    hint=f"Look with `virsh domstate --reason {self.plan.instance}` there.",
                )
        self.chronicle.mark("source stopped")

    def demote(self) -> None:
        """Make the source Secondary; both copies must hold the same data now."""
        together([partial(self._demote, resource.name) for resource in self.plan.resources])
        if doubts := self.disks.doubts_now():
            raise MoveFailed(
                f"The disk on {self.plan.target} may lack what the guest wrote last ({'; '.join(doubts)}).",
                code=Code.REPLICATION_BROKE,
                hint="Mend the DRBD connection, then try again.",
            )

    def start(self) -> None:
        """Promote the target, and start the guest there."""
        if self.context.cancel.is_set():
            raise aborted()
        upstart = self._upstart(self.plan.target)
        for resource in self.plan.resources:
            self.rollback.register(
                Undo(
                    leftover=f"{self.plan.target} is Primary for {resource.name}",
                    hint=f"`lvmigrate cleanup {self.plan.instance}` makes it Secondary.",
                    act=partial(self._dual(resource.name).close, self.plan.target),
                )
            )
        upstart.promote()
        try:
            upstart.start()
        except MoveFailed as error:
            if self._replicated() or not isinstance(error.__cause__, NodeUnreachable):
                raise
            raise self._may_start_yet(error) from error
        self.chronicle.mark("target runs")
        self.moved = True

    def verify(self) -> None:
        """Look at everything once more; only now forget the source's definition; autostart and tokens last."""
        seen = self.disks.watch.wait(
            lambda: self.disks.in_step() and self.disks.single_primary(self.plan.target), _SEEN_S
        )
        if not seen:
            doubts = "; ".join([*self.disks.doubts(), *self.disks.roles()])
            raise MoveFailed(
                f"The disks are not in step and Primary on {self.plan.target} alone ({doubts}).",
                code=Code.LEFT_BEHIND,
                hint="Look with `drbdsetup status` on both nodes.",
            )
        self.lease.confirm()
        Definitions(
            hypervisor=self.context.hypervisor,
            uuid=self.plan.domain.uuid,
            source=self.plan.source,
            target=self.plan.target,
            keep=self.plan.errand.keep_definition,
        ).moved(autostart=self.plan.domain.autostart)
        self._drop_token()

    # What the steps are made of.

    def _is_off(self, within_s: float) -> bool:
        """Whether the guest was seen off at the source in time. No answer is no proof."""
        deadline = self.context.clock.now() + within_s
        while True:
            if self.settlement.look()[0] is Sight.GONE:
                return True
            if self.context.clock.now() > deadline:
                return False
            self.context.clock.sleep(_ASK_S)

    def _demote(self, name: str) -> None:
        self._dual(name).close(self.plan.source)

    def _dual(self, name: str) -> DualPrimary:
        resource = next(resource for resource in self.plan.resources if resource.name == name)
        return DualPrimary(
            storage=self.context.storage,
            watch=self.disks.watch,
            lease=self.lease,
            plan=resource,
            source=self.plan.source,
            target=self.plan.target,
            clock=self.context.clock,
        )

    def _back(self) -> None:
        """Start the guest at the source again, if both nodes say that it is off. One that did not shut down stays."""
        source, target = self.settlement.look_until_known()
        if source not in (Sight.GONE, Sight.UNKNOWN) and target is Sight.GONE:
            return
        if (source, target) != (Sight.GONE, Sight.GONE):
            raise CommandFailed(
                self.plan.target,
                f"Seeing {self.plan.instance} off on both nodes",
                status=0,
                hint=f"`lvmigrate cleanup {self.plan.instance}` when both nodes answer.",
                detail="; ".join(self.settlement.words()),
            )
        upstart = self._upstart(self.plan.source)
        upstart.promote()
        upstart.start()

    def _replicated(self) -> bool:
        """Whether DRBD keeps a second copy from starting: all disks of the guest are on it, for one Primary each."""
        resources = self.plan.resources
        if any(options.allow_two_primaries for resource in resources for options in resource.options):
            return False  # for good, by the configuration: what else allows them is refused
        volumes = sum(len(resource.volumes) for resource in resources)
        return volumes >= len(checks.replicated_disks(self.plan.domain))

    def _may_start_yet(self, error: MoveFailed) -> OutcomeUnknown:
        name, source, target = self.plan.instance, self.plan.source, self.plan.target
        return OutcomeUnknown(
            f"{target} did not answer when {name} was to be started; it does not run there, and may yet. Nothing was"
            " undone: nothing would keep a second copy on the same disks from running.",
            known=[f"{name} on {target}: {Sight.GONE.value}", f"{name} on {source}: {Sight.GONE.value}"],
            hint=f"`lvmigrate status {name}` in a minute: if it does not run then, `lvmigrate cleanup {name}` starts it"
            f" on {source} again.",
            detail=error.detail,
        )

    def _upstart(self, node: str) -> Upstart:
        end = self.nodes.index(node)
        return Upstart(
            hypervisor=self.context.hypervisor,
            storage=self.context.storage,
            instance=self.plan.instance,
            uuid=self.plan.domain.uuid,
            node=node,
            promotes={resource.name: resource.options[end].auto_promote for resource in self.plan.resources},
            token=lambda: self.lease.token,
            confirm=self.lease.confirm,
            clock=self.context.clock,
        )

    def _drop_token(self) -> None:
        self.lease.end()
        self.lease.drop()

    def _stop_if_asked(self) -> None:
        if self.context.cancel.is_set():
            raise aborted()

    def _event(self, node: str, event: str) -> None:
        self.chronicle.note(f"{self.plan.instance} on {node}: {event}", said_by="libvirt")
        if node == self.plan.source and event.startswith("stopped"):
            self.chronicle.mark("source stopped")

    def _report(self) -> Report:
        return Report(
            instance=self.plan.instance,
            uuid=self.plan.domain.uuid,
            errand=self.record.id,
            source=self.plan.source,
            target=self.plan.target,
            mode=self.plan.mode.value,
            seconds=self.chronicle.elapsed_s,
            downtime_s=self.chronicle.between("source stopped", "target runs"),
            dual_primary_s=self.disks.watch.dual_primary_s(),
            two_primaries_allowed_s=0.0,
            memory_bytes=0,
            iterations=0,
            running=True,
            steps=self.chronicle.steps,
            timeline=self.chronicle.moments,
            warnings=self.plan.warnings,
        )


#: The plan, the display, the report and the documentation read this list.
STEPS: Final[tuple[Step[Handover], ...]] = (
    Step(name="lock", sentence="take the guest's token on both nodes", act=Handover.lock),
    Step(name="sync", sentence="wait until the disks are in step, single-primary", act=Handover.sync),
    Step(name="define", sentence="define the guest on the target, autostart off at the source", act=Handover.define),
    Step(name="shutdown", sentence="have the guest shut down at the source", act=Handover.shut_down),
    Step(name="demote", sentence="make the source Secondary; both disks must be the same", act=Handover.demote),
    Step(name="start", sentence="promote the target and start the guest there", act=Handover.start),
    Step(name="verify", sentence="look at everything again, then forget the source's definition", act=Handover.verify),
)
