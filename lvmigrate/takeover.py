"""The steps of a failover from a node that does not answer: see that it is off, leave a tombstone, promote, start.

Nothing of the dead node is asked for anything but a sign of life.
"""

from __future__ import annotations

import shlex
import uuid
from contextlib import ExitStack
from functools import partial
from typing import Final

from lvmigrate import checks, fencing, stale
from lvmigrate.by_hand import undefining
from lvmigrate.chronicle import Chronicle
from lvmigrate.decision import Sight
from lvmigrate.defect import defect
from lvmigrate.errors import (
    Code,
    CommandFailed,
    LeftBehind,
    LvmigrateError,
    MoveFailed,
    NodeUnreachable,
    OutcomeUnknown,
    Refused,
    TokenLost,
)
from lvmigrate.follow import aborted
from lvmigrate.journal import NO_RECORD, Record
from lvmigrate.lease import Lease, holder
from lvmigrate.own_names import own_name
from lvmigrate.plan import Plan
from lvmigrate.replication import Role
from lvmigrate.report import Report
from lvmigrate.rollback import Rollback, Undo
from lvmigrate.tasklet import Context, Step
from lvmigrate.token import Token
from lvmigrate.upstart import Upstart

#: How long the last sign of life is waited out once the node is said to be off: DRBD notices after its ping timeout.
_DIES_S: Final = 60.0
_ASK_S: Final = 1.0


class Takeover:
    """One failover from a dead node under way."""

    def __init__(
        self,
        context: Context,
        plan: Plan,
        stack: ExitStack,
        *,
        typed: str | None,
        definition: str | None = None,
        record: Record = NO_RECORD,
    ) -> None:
        self.context = context
        self.plan = plan
        self.stack = stack
        #: The node that the operator says is off.
        self.typed = typed
        #: What defines the guest on the survivor, where it has no definition of its own.
        self.definition = definition
        self.record = record
        self.names = tuple(resource.name for resource in plan.resources)
        #: The resources whose copies here are old, as the operator was told, and are taken by force.
        self.forced = frozenset(resource.name for resource in plan.resources if resource.forced)
        self.chronicle = Chronicle(plan, clock=context.clock, on_progress=context.on_progress, record=record)
        self.rollback = Rollback()
        self.lease = Lease(
            context.storage,
            (plan.target,),
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
        self.upstart = Upstart(
            hypervisor=context.hypervisor,
            storage=context.storage,
            instance=plan.instance,
            uuid=plan.domain.uuid,
            node=plan.target,
            promotes={resource.name: resource.options[1].auto_promote for resource in plan.resources},
            forced=self.forced,
            token=lambda: self.lease.token,
            confirm=self.lease.confirm,
            clock=context.clock,
        )
        self.moved = False

    def run(self) -> Report:
        """Do every step; what `FailoverInstance.exec` guarantees and raises."""
        try:
            for step in STEPS:
                with self.chronicle.step(step.name, step.sentence):
                    self._stop_if_asked()
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
            return LeftBehind(
                f"{self.plan.instance} runs on {self.plan.target}, but the failover could not be finished.",
                leftovers=[str(error)],
                hint=error.hint,
                detail=error.detail,
            )
        leftovers = self.rollback.run()
        if leftovers:
            return LeftBehind(
                f"The failover failed ({error.sentence.rstrip('.')}) and could not be undone completely;"
                f" {self.plan.instance} was not started on {self.plan.target}.",
                leftovers=[f"{leftover.undo.leftover}: {leftover.error}" for leftover in leftovers],
                hint=" ".join(dict.fromkeys([error.hint, *(leftover.undo.hint for leftover in leftovers)])),
                detail=error.detail,
            )
        return error

    # The steps, in order.

    def lock(self) -> None:
        """Take the token on the survivor. A move that was under way may still hold one: it runs out."""
        self.rollback.register(
            Undo(
                leftover=f"the token of this failover on {self.plan.target}",
                hint="The token runs out by itself.",
                act=self._drop_token,
                only_if_clean=True,  # it tells a cleanup what is left
            )
        )
        held = self.lease.take(self.plan.target)
        if held is not None:
            raise Refused(self.plan.instance, [checks.taken(held)])
        self.lease.keep()
        self.stack.callback(self.lease.end)
        self.stack.enter_context(self.context.storage.inhibit(self.plan.target, self.lease.token))

    def fence(self) -> None:
        """Have the node switched off, where the configuration says how; else the operator has said that it is off."""
        command = self.context.fences.get(self.plan.source)
        if command is not None:
            command()
            self.chronicle.note(f"the fence command of {self.plan.source} says that it is off")
        else:
            self.chronicle.note(f"the operator says that {self.typed} is off")

    def silence(self) -> None:
        """Wait until nothing of the node answers any more."""
        deadline = self.context.clock.now() + _DIES_S
        while (signs := self._signs()).ways:
            self._stop_if_asked()
            if self.context.clock.now() > deadline:
                raise self._alive(signs)
            self.context.clock.sleep(_ASK_S)

    def mark(self) -> None:
        """Leave a tombstone in the survivor's definition, so that an audit finds what comes back with the dead node.

        Where it has none, it gets the one that was kept.
        """
        hypervisor, target, uuid_ = self.context.hypervisor, self.plan.target, self.plan.domain.uuid
        text = hypervisor.definition(target, uuid_)
        if (text is None) is (self.definition is None):
            has = (
                f"no definition of {self.plan.instance} any more" if text is None else "a definition of its own by now"
            )
            raise MoveFailed(
                f"{target} has {has}.",
                code=Code.DEFINITION_MISSING,
                hint="Look with `lvmigrate status`, then try again.",
            )
        if text is None:
            undo = Undo(
                leftover=f"a definition of {self.plan.instance} on {target}",
                hint=f"`{shlex.join(undefining(self.plan.domain))}` there.",
                act=partial(hypervisor.undefine, target, uuid_),
            )
        else:
            undo = Undo(
                leftover=f"the tombstone of {self.plan.source} on {target}",
                hint="It is only words in the definition.",
                act=partial(hypervisor.define, target, text, left_on=self.plan.domain.left_on),
            )
        self.rollback.register(undo)
        hypervisor.define(target, text or self.definition or "", left_on=self.plan.source)

    def promote(self) -> None:
        """Look once more, and promote the survivor.

        Its disk must be UpToDate by its own word: by force only what was old, and whole, when the operator was told.
        """
        if (signs := self._signs()).ways:
            raise self._alive(signs)
        here = self.context.hypervisor.domain(self.plan.target, self.plan.domain.uuid)
        seen = self.context.storage.observe(self.plan.target, self.names)
        good = all(stale.usable(resource, old=resource.name in self.forced) for resource in seen.values())
        if here is None or here.state.active or set(seen) != set(self.names) or not good:
            raise MoveFailed(
                f"{self.plan.instance} or its disks changed on {self.plan.target} between the checks and the failover.",
                code=Code.INSTANCE_STATE,
                hint="Look with `lvmigrate status`, then try again.",
            )
        for name in self.names:
            if name in self.forced:
                self.rollback.register(
                    Undo(
                        leftover=f"the old copy of {name} on {self.plan.target} counts as UpToDate",
                        hint=f"Nothing was written to it. When {self.plan.source} is back, the two have parted:"
                        f" `lvmigrate cleanup {self.plan.instance}` says how one is given up.",
                        act=partial(self._still_old, name),
                    )
                )
            if seen[name].role is not Role.PRIMARY:
                self.rollback.register(
                    Undo(
                        leftover=f"{self.plan.target} is Primary for {name}",
                        hint=f"`drbdsetup secondary {own_name(name, self.plan.target)}` there, once nothing uses it.",
                        act=partial(self._demote, name),
                    )
                )
        self.lease.renew()
        self.upstart.promote()
        if self.forced:
            self._forced()

    def _forced(self) -> None:
        """Raise unless what was promoted by force is seen Primary, its copies UpToDate."""
        seen = self.context.storage.observe(self.plan.target, self.forced)
        for name in sorted(self.forced):
            resource = seen.get(name)
            if resource is None or resource.role is not Role.PRIMARY or not stale.usable(resource, old=False):
                raise MoveFailed(
                    f"{self.plan.target} was not seen Primary and UpToDate for {name}.",
                    code=Code.STORAGE_FAILED,
                    hint=f"Look with `drbdsetup status {own_name(name, self.plan.target)}` there.",
                )
            self.chronicle.note(f"{name} is Primary on {self.plan.target} by force, and so until it is demoted")

    def _still_old(self, name: str) -> None:
        """Raise unless the copies here are as old as they were: nothing makes them so again."""
        if not stale.is_old(self.context.storage.observe(self.plan.target, (name,))[name]):
            raise CommandFailed(
                self.plan.target,
                f"Having {name} as old as it was",
                status=0,
                code=Code.COPY_OLD,
                hint=f"`drbdadm get-gi {own_name(name, self.plan.target)}` there shows its generations.",
            )

    def start(self) -> None:
        """Start the guest on the survivor. A start that got no answer may come late: nothing is undone then."""
        try:
            self.upstart.start()
        except MoveFailed as error:
            if not isinstance(error.__cause__, NodeUnreachable):
                raise
            name, node = self.plan.instance, self.plan.target
            raise OutcomeUnknown(
                f"{node} did not answer when {name} was to be started; it does not run there, and may yet. Nothing was"
                " undone.",
                known=[f"{name} on {node}: {Sight.GONE.value}", f"{', '.join(self.names)}: Primary on {node}"],
                hint=f"`lvmigrate status {name}` in a minute: if it does not run then, the same failover again.",
                detail=error.detail,
            ) from error
        self.moved = True  # the point of no return: from here on nothing is undone

    def verify(self) -> None:
        """It is Primary there; a reboot of the survivor may start it again if it was so before; the token goes last."""
        seen = self.context.storage.observe(self.plan.target, self.names)
        if any(resource.role is not Role.PRIMARY for resource in seen.values()):
            raise MoveFailed(
                f"{self.plan.target} is not Primary for all disks of {self.plan.instance}.",
                code=Code.LEFT_BEHIND,
                hint="Look with `drbdsetup status` there.",
            )
        self._drop_token()

    # What the steps are made of.

    def _stop_if_asked(self) -> None:
        if self.context.cancel.is_set() and not self.moved:
            raise aborted()

    def _signs(self) -> fencing.Signs:
        return fencing.look(
            self.context.hypervisor, self.context.storage, self.plan.source, self.plan.target, self.names
        )

    def _alive(self, signs: fencing.Signs) -> Refused:
        return Refused(self.plan.instance, [fencing.alive(signs)])

    def _demote(self, name: str) -> None:
        if self.context.storage.observe(self.plan.target, (name,))[name].role is Role.PRIMARY:
            self.context.storage.demote(self.plan.target, name, self.lease.token)

    def _drop_token(self) -> None:
        self.lease.end()
        self.lease.drop()

    def _report(self) -> Report:
        return Report(
            instance=self.plan.instance,
            uuid=self.plan.domain.uuid,
            errand=self.record.id,
            source=self.plan.source,
            target=self.plan.target,
            mode=self.plan.mode.value,
            seconds=self.chronicle.elapsed_s,
            downtime_s=0.0,
            dual_primary_s=0.0,
            two_primaries_allowed_s=0.0,
            memory_bytes=0,
            iterations=0,
            running=True,
            steps=self.chronicle.steps,
            timeline=self.chronicle.moments,
            warnings=self.plan.warnings,
        )


#: The plan, the display, the report and the documentation read this list.
STEPS: Final[tuple[Step[Takeover], ...]] = (
    Step(name="lock", sentence="take the guest's token on the node that answers", act=Takeover.lock),
    Step(name="fence", sentence="have the silent node switched off, or take the operator's word", act=Takeover.fence),
    Step(name="silence", sentence="see that nothing of it answers: libvirt, ssh, DRBD", act=Takeover.silence),
    Step(name="mark", sentence="leave a tombstone that names it", act=Takeover.mark),
    Step(
        name="promote",
        sentence="look once more, then promote; by force only an old copy that --ignore-consistency takes",
        act=Takeover.promote,
    ),
    Step(name="start", sentence="start the guest", act=Takeover.start),
    Step(name="verify", sentence="look at everything again", act=Takeover.verify),
)
