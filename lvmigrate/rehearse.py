"""`RehearseInstance`: everything of a move up to the first bytes of memory, and back; the guest stays where it is.

It is the move itself (`lvmigrate.move`), asked to stop as soon as libvirt tells that memory is arriving: by then ports,
TLS, CPU, machine, devices and disks have been put to the test on the target, by the QEMU that was started there.  It
goes back by the same rollback as any move that is aborted.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

import structlog

from lvmigrate import acts, convergence
from lvmigrate.errors import Code, Finding, LeftBehind, MoveAborted, MoveFailed, UsageError
from lvmigrate.journal import Opening, Record, keep
from lvmigrate.jsonable import jsonable
from lvmigrate.lease import holder
from lvmigrate.migrate import MigrateInstance
from lvmigrate.move import STEPS, Move
from lvmigrate.plan import Mode, Options, Plan, Switch
from lvmigrate.progress import StepProgress
from lvmigrate.report import Moment, StepRecord
from lvmigrate.tasklet import Context, described

#: The step in which it turns back.
_LAST: Final = "memory"
#: So slow, and with so little standstill allowed, that the copy of a guest in use does not end before it is stopped.
_BANDWIDTH_MIB_S: Final = 1
_DOWNTIME_S: Final = 0.001
#: How often the copy is looked at, in seconds.
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A rehearsal that succeeded: the guest is where it was, and everything is closed. Times in seconds."""

    instance: str
    uuid: str
    #: Under which the journal tells more of it; empty: there is none.
    errand: str
    source: str
    target: str
    seconds: float
    dual_primary_s: float
    #: Bytes of memory that had been sent when it was stopped.
    memory_bytes: int
    #: What was put to the test, in clauses.
    proven: tuple[str, ...]
    #: What no rehearsal can tell.
    unproven: tuple[str, ...]
    steps: tuple[StepRecord, ...]
    timeline: tuple[Moment, ...]
    warnings: tuple[Finding, ...]


class RehearseInstance:
    """Rehearse the move of one running guest. The context's ``cancel`` is set by the rehearsal itself, too."""

    def __init__(
        self, context: Context, instance: str, *, target: str | None = None, options: Options | None = None
    ) -> None:
        self._context = context
        self._options = rehearsed(options or Options())
        self._checks = MigrateInstance(context, instance, target=target, options=self._options)
        self._plan: Plan | None = None
        #: Memory has arrived, and so many bytes of it.
        self._arrived = 0

    def check_prereq(self) -> Plan:
        """The checks of the move; change nothing. Raises `Refused` with every reason not to start."""
        plan = self._checks.check_prereq()
        names = [step.name for step in STEPS]
        self._plan = replace(
            plan,
            steps=described(STEPS[: names.index(_LAST) + 1]),
            # If we die in the middle, a cleanup is to turn back as well.
            errand=replace(plan.errand, rehearsal=True),
        )
        return self._plan

    def exec(self) -> Rehearsal:
        """Do it. No hook is run.

        Guaranteed after a rehearsal: the guest runs (or waits, as before) at the source and nowhere else, its disks
        single-primary there, with the options that they had; no token, no guard, no definition left at the target.
        Raises what `MigrateInstance.exec` raises; `LeftBehind` also when the guest has arrived before it could be
        stopped, which only one with hardly any memory in use does: it is on the target then, and nothing else is left.
        """
        if self._plan is None:
            raise UsageError("exec() was called before check_prereq().", hint="Call check_prereq() first.")
        plan = self._plan
        opening = Opening(
            tasklet="rehearse",
            instance=plan.instance,
            uuid=plan.domain.uuid,
            source=plan.source,
            target=plan.target,
            holder=holder(),
            plan={**jsonable(plan), "options": jsonable(self._options)},
        )
        with structlog.contextvars.bound_contextvars(instance=plan.instance):
            now = self._context.clock.now
            return keep(self._context.journal, opening, lambda record: self._there_and_back(plan, record), now=now)

    def _there_and_back(self, plan: Plan, record: Record) -> Rehearsal:
        context = acts.recorded(replace(self._context, on_progress=self._heard), record)
        with ExitStack() as stack:
            move = Move(context, plan, self._options, stack, record=record)
            try:
                move.run()
            except MoveAborted:
                if not self._arrived:  # somebody else has asked
                    raise
                if breaks := move.disks.watch.breaks():  # being stopped hides what else had happened by then
                    raise MoveFailed(
                        f"Replication did not stay whole during the rehearsal ({'; '.join(breaks)}); everything was"
                        f" put back, {plan.instance} is on {plan.source}.",
                        code=Code.REPLICATION_BROKE,
                        hint="Mend the DRBD connection, then try again.",
                    ) from None
                return self._told(move, plan, record)
        raise LeftBehind(
            f"{plan.instance} arrived on {plan.target} before the rehearsal could stop it, and runs there; the move was"
            " finished.",
            leftovers=[f"{plan.instance} is on {plan.target}, not on {plan.source}"],
            hint="It has hardly any memory in use."
            f" `lvmigrate migrate {plan.instance} --to {plan.source}` brings it back.",
        )

    def _heard(self, progress: StepProgress) -> None:
        """Pass it on; and when memory arrives, that was all that was to be seen."""
        if progress.step == _LAST and progress.memory is not None and progress.memory.processed > 0:
            self._arrived = max(self._arrived, progress.memory.processed)
            self._context.cancel.set()
        self._context.on_progress(progress)

    def _told(self, move: Move, plan: Plan, record: Record) -> Rehearsal:
        peer = self._context.nodes[plan.target]
        names = ", ".join(resource.name for resource in plan.resources)
        guarded = self._options.guard and plan.resources
        opened = f"two primaries were allowed for {names}, {plan.target} opened it, and all is as it was"
        proven = (
            "the token was taken on both nodes, and is gone",
            *(("a guard was armed on both nodes, and is gone",) if guarded else ()),
            *((opened,) if names else ()),
            f"libvirt on {plan.source} reached that on {plan.target} ({peer.peer_uri})",
            f"QEMU on {plan.target} started with the guest's machine, CPU, devices and disks",
            f"memory arrived at {peer.migration_address}" + (", encrypted" if self._options.tls else ""),
            f"{plan.instance} stayed on {plan.source}",
        )
        return Rehearsal(
            instance=plan.instance,
            uuid=plan.domain.uuid,
            errand=record.id,
            source=plan.source,
            target=plan.target,
            seconds=move.chronicle.elapsed_s,
            dual_primary_s=move.disks.watch.dual_primary_s(),
            memory_bytes=self._arrived,
            proven=proven,
            unproven=("whether the copy comes to its end (`lvmigrate check --forecast`)", "the switch itself"),
            steps=move.chronicle.steps,
            timeline=move.chronicle.moments,
            warnings=plan.warnings,
        )


def rehearsed(options: Options) -> Options:
    """The options of a move, for its rehearsal: what could end it at the target, or the guest's run, is left out."""
    return replace(
        options,
        # Strict and pre-copy, in any case: it can be aborted, and would arrive paused.
        mode=Mode.LIVE,
        switch=Switch.STRICT,
        policy=convergence.PATIENT,
        auto_converge=False,
        throttle_initial=None,
        throttle_increment=None,
        postcopy_bandwidth_mib_s=None,
        bandwidth_mib_s=_BANDWIDTH_MIB_S,
        downtime_limit_s=_DOWNTIME_S,
        poll_s=_POLL_S,
        forecast_s=0,
        # A guest is never shut down for a rehearsal.
        allow_failover=False,
        always_failover=False,
    )
