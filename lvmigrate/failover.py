"""`FailoverInstance`: a guest is shut down where it is and started from its disks on another node.

Also from a node that does not answer, but only if it is off by its fence command's word or the operator's, and nothing
of it answers (`lvmigrate.fencing`).  At no moment two nodes are Primary: DRBD itself keeps a second copy from starting,
unless its configuration allows two primaries for good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, Self

import structlog

from lvmigrate import acts, checks, comparison, hooks, kept, whereabouts
from lvmigrate.beside import missing
from lvmigrate.domain import Domain, DomainState
from lvmigrate.errors import Code, Finding, NodeUnreachable, Refused, UsageError
from lvmigrate.handover import STEPS, Handover
from lvmigrate.journal import Opening, Record, keep
from lvmigrate.jsonable import jsonable
from lvmigrate.lease import holder
from lvmigrate.node import unknown
from lvmigrate.occasion import Occasion, Operation, sizes
from lvmigrate.plan import Mode, Options, Plan, ResourcePlan
from lvmigrate.replication import ConnectionOptions
from lvmigrate.report import Report
from lvmigrate.survey import Sightings, Survey, find, survey
from lvmigrate.survivor import Found, Survivor
from lvmigrate.takeover import Takeover
from lvmigrate.target import chosen, policy
from lvmigrate.tasklet import Context, described
from lvmigrate.token import Errand


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverOptions:
    """What the caller may choose. Times in seconds."""

    #: How long the guest may take to shut down.
    shutdown_timeout_s: float = 120.0
    #: Whether it is switched off, as by a power cut, when it did not shut down in time.
    hard: bool = False
    #: How long to wait until the disks are in step, before the guest is shut down.
    sync_timeout_s: float = 3600.0
    #: The operator's word that this node, which does not answer, is off.
    is_off: str | None = None
    #: Leave its definition, without autostart, on the node that it leaves, if that one answers.
    keep_definition: bool = False
    #: Afterwards have DRBD compare both copies of its disks, if both nodes answer, and wait for what that comes to.
    verify_disks: bool = False
    #: Start it on a node whose policy does not take it.
    ignore_ipolicy: bool = False
    #: The program that chooses the target where none is named, and both nodes answer.
    iallocator: str | None = None
    #: From a node that is off: start from a copy that is old, and give up what it lacks.  Needs the target's name.
    ignore_consistency: bool = False
    #: From a node that is off, where the target has no definition: ``kept``, or the name of a file with one.
    definition: str | None = None

    @classmethod
    def of(cls, options: Options) -> Self:
        """What a move's options say of a failover."""
        return cls(
            shutdown_timeout_s=options.shutdown_timeout_s,
            sync_timeout_s=options.sync_timeout_s,
            keep_definition=options.keep_definition,
            verify_disks=options.verify_disks,
            ignore_ipolicy=options.ignore_ipolicy,
            iallocator=options.iallocator,
        )


#: What is only against memory on its way: none is sent, the guest starts anew.
_ON_ITS_WAY: Final = frozenset(
    {Code.PEER_UNREACHABLE, Code.PORTS_UNREACHABLE, Code.PORTS_TAKEN, Code.VERSION_OLDER, Code.DISK_CACHED}
)

#: What is against the copies of the disks.
_OF_COPIES: Final = frozenset({Code.NOT_UPTODATE, Code.NOT_CONNECTED, Code.SPLIT_BRAIN, Code.NO_QUORUM})


class FailoverInstance:
    """Fail one guest over. ``target``: a node's name, or ``None`` for the best one that has its disks.

    From a node that does not answer, ``None`` is the only other one that may take guests.  ``notes`` and ``because``
    are the caller's words for the plan: its warnings, and why this target.
    """

    def __init__(
        self,
        context: Context,
        instance: str,
        *,
        target: str | None = None,
        options: FailoverOptions | None = None,
        notes: tuple[Finding, ...] = (),
        because: str = "",
    ) -> None:
        self._context = context
        self._instance = instance
        self._target = target
        self._options = options or FailoverOptions()
        self._notes = notes
        self._because = because
        self._plan: Plan | None = None
        #: What a survivor says, where the source does not answer.
        self._survivor: Found | None = None
        #: By device path, in MiB.
        self._sizes: Mapping[str, int] = {}

    def check_prereq(self) -> Plan:
        """Observe what answers; change nothing. Raises `Refused` with every reason not to start.

        Raises `UsageError` where a copy is to be taken for good and nobody has said on which node.
        """
        if self._options.ignore_consistency and self._target is None:
            raise UsageError(
                "--ignore-consistency gives data up, and nobody has said which copy is taken instead.",
                hint="Name the node whose copy is to be the guest's from now on: --to NODE.",
            )
        nodes = tuple(self._context.nodes)
        if self._target is not None and self._target not in nodes:
            raise Refused(self._instance, [unknown(self._target, nodes)])
        sightings = find(self._context.hypervisor, nodes, self._instance)
        plan, findings = (
            self._from_the_dead(sightings)
            if sightings.silent and not sightings.active
            else self._from_the_living(sightings)
        )
        occasion = self._occasion(plan)
        findings = (*findings, *hooks.objections(self._context, occasion))
        if (trouble := self._context.journal.trouble()) is not None:
            findings = (*findings, trouble)
        if findings:
            raise Refused(self._instance, findings)
        warnings = (*self._notes, *plan.warnings, *hooks.notes(self._context, occasion))
        self._plan = replace(plan, warnings=warnings, target_because=plan.target_because or self._because)
        return self._plan

    def exec(self) -> Report:
        """Do what `check_prereq` planned.

        Guaranteed after a report: one running copy, on the target, from disks that had everything (of a dead node: all
        that had reached the survivor); Primary there alone; no token; the definition there only, or a tombstone in it
        that names the dead node.  Raises `MoveFailed` or `MoveAborted` (the guest runs at the source again, or nothing
        was started), `LeftBehind`, `GuestLost` or `OutcomeUnknown` (nothing undone), and `Refused` before anything.
        """
        if self._plan is None:
            raise UsageError("exec() was called before check_prereq().", hint="Call check_prereq() first.")
        plan, options, survivor, occasion = self._plan, self._options, self._survivor, self._occasion(self._plan)

        def act(record: Record) -> Report:
            context = acts.recorded(self._context, record)
            with ExitStack() as stack:
                if survivor is not None:
                    return Takeover(
                        context, plan, stack, typed=options.is_off, definition=survivor.definition, record=record
                    ).run()
                return Handover(
                    context,
                    plan,
                    stack,
                    shutdown_timeout_s=options.shutdown_timeout_s,
                    hard=options.hard,
                    sync_timeout_s=options.sync_timeout_s,
                    record=record,
                ).run()

        def hooked(record: Record) -> Report:
            since = self._context.clock.now()
            report = hooks.around(self._context, record, occasion, lambda: act(record))
            kept.keep(self._context, plan.target, plan.domain.uuid, plan.instance)
            if options.verify_disks:
                report = comparison.compared(self._context, plan, report, record, since=since)
            return replace(report, target_because=plan.target_because)

        opening = Opening(
            tasklet="failover",
            instance=plan.instance,
            uuid=plan.domain.uuid,
            source=plan.source,
            target=plan.target,
            holder=holder(),
            plan={**jsonable(plan), "options": jsonable(options)},
        )
        with structlog.contextvars.bound_contextvars(instance=plan.instance):
            return keep(self._context.journal, opening, hooked, now=self._context.clock.now)

    # ---- both nodes answer

    def _from_the_living(self, sightings: Sightings) -> tuple[Plan, tuple[Finding, ...]]:
        # As of a migration: one that is out of use by the operator's word, and silent, keeps nobody from moving.
        in_use = {
            node: word
            for node, word in sightings.by_node.items()
            if not isinstance(word, NodeUnreachable) or self._context.nodes[node].offline is None
        }
        sightings = replace(sightings, by_node=in_use)
        if findings := (*whereabouts.where(sightings), *whereabouts.waits_alone(sightings)):
            raise Refused(self._instance, findings)
        domain = sightings.active[0]
        choice = chosen(self._context, domain, self._target, self._options)
        target = self._context.nodes[choice.node]
        # No guard: nothing is opened that one would have to close.
        seen = survey(self._context.hypervisor, self._context.storage, domain, target, Options(guard=False))
        bounds = policy(seen, target, ignored=self._options.ignore_ipolicy)
        self._sizes = sizes(seen.source.places, seen.source.resources)
        plan = _planned(seen, keep_definition=self._options.keep_definition)
        plan = replace(plan, target_because=choice.why)
        against = tuple(finding for finding in checks.refusals(seen) if finding.code not in _ON_ITS_WAY)
        findings = (*against, *_stays_behind(seen), *self._of_the_living(domain))
        if self._options.verify_disks:
            plan, findings = comparison.planned(plan), (*findings, *comparison.objections(seen))
        if self._options.ignore_consistency and any(finding.code in _OF_COPIES for finding in against):
            findings = (*findings, _newer(domain))
        if self._options.ignore_ipolicy:
            return replace(plan, warnings=(*plan.warnings, *bounds)), findings
        return plan, (*findings, *bounds)

    def _of_the_living(self, domain: Domain) -> tuple[Finding, ...]:
        findings = []
        if self._options.is_off is not None:
            findings.append(
                Finding(
                    code=Code.NODE_ALIVE,
                    sentence=f"{self._options.is_off} was said to be off, but {domain.name} runs on {domain.node},"
                    " which answers.",
                    hint="Leave --is-off out.",
                )
            )
        if self._options.definition is not None:
            findings.append(
                Finding(
                    code=Code.OPTIONS_CONFLICT,
                    sentence=f"{domain.node} answers, and has the definition of {domain.name}: none is needed.",
                    hint="Leave --definition out.",
                )
            )
        if not domain.persistent:
            findings.append(
                Finding(
                    code=Code.DEFINITION_MISSING,
                    sentence=f"{domain.name} is transient: once it is off, nothing says how to start it.",
                    hint=f"`virsh dumpxml {domain.name}` on {domain.node}, and `virsh define` that there.",
                )
            )
        if domain.state is not DomainState.RUNNING:
            findings.append(
                Finding(
                    code=Code.INSTANCE_STATE,
                    sentence=f"{domain.name} is {domain.state.value} on {domain.node}: it cannot shut down.",
                    hint=f"`virsh resume {domain.name}` there, or move it as it is: `lvmigrate migrate`.",
                )
            )
        return tuple(findings)

    # ---- the source does not answer

    def _from_the_dead(self, sightings: Sightings) -> tuple[Plan, tuple[Finding, ...]]:
        self._survivor = Survivor(
            context=self._context,
            instance=self._instance,
            target=self._target,
            is_off=self._options.is_off,
            ignore_consistency=self._options.ignore_consistency,
            definition=self._options.definition,
        ).found(sightings)
        self._sizes = self._survivor.sizes_mib
        plan, findings = self._survivor.plan, self._survivor.findings
        return plan, (*findings, comparison.beside_a_dead_node(plan)) if self._options.verify_disks else findings

    # ---- both

    def _occasion(self, plan: Plan) -> Occasion:
        return Occasion(
            operation=Operation.FAILOVER,
            instance=plan.instance,
            uuid=plan.domain.uuid,
            domain=plan.domain,
            source=plan.source,
            target=plan.target,
            sizes_mib=self._sizes,
            ignore_consistency=self._options.ignore_consistency,
            shutdown_timeout_s=self._options.shutdown_timeout_s,
        )

    def _refused(self, code: Code, sentence: str, hint: str) -> Refused:
        return Refused(self._instance, [Finding(code=code, sentence=sentence, hint=hint)])


def _stays_behind(seen: Survey) -> Iterator[Finding]:
    name, target = seen.domain.name, seen.target.node
    for lacked in missing(seen.domain.uuid, seen.needs, seen.there.paths):
        yield Finding(
            code=lacked.code,
            sentence=f"{name} has {lacked.what} in {lacked.path} on {seen.source.node}, and {target} has none: it would"
            " start with new ones.",
            hint="Move it while it runs (`lvmigrate migrate`): then they go with it. Or shut it down, copy that to"
            f" the same path on {target}, with its owner and rights, and define and start it there by hand.",
        )


def _newer(domain: Domain) -> Finding:
    """Why no data are given up, whatever was asked for: they can be had."""
    return Finding(
        code=Code.NODE_ALIVE,
        sentence=f"{domain.node} answers and has the newer data of {domain.name}: none are given up while they can be"
        " had.",
        hint=f"Mend the connection, and wait until the disks are in step. If {domain.node} is lost, switch it off:"
        f" then `--is-off {domain.node}` and --ignore-consistency.",
    )


def _planned(seen: Survey, *, keep_definition: bool) -> Plan:
    volumes: dict[str, set[int]] = {}
    for place in seen.source.places.values():
        volumes.setdefault(place.resource, set()).add(place.volume)
    had = seen.target.domain is not None
    return Plan(
        instance=seen.domain.name,
        domain=seen.domain,
        source=seen.source.node,
        target=seen.target.node,
        target_had_definition=had,
        mode=Mode.FAILOVER,
        resources=tuple(
            ResourcePlan(
                name=name,
                volumes=tuple(sorted(numbers)),
                options=(
                    seen.source.options.get(name, ConnectionOptions(allow_two_primaries=False, protocol=None)),
                    seen.target.options.get(name, ConnectionOptions(allow_two_primaries=False, protocol=None)),
                ),
                minors=(seen.source.minors(name), seen.target.minors(name)),
                modules=(seen.source.surroundings.version, seen.target.surroundings.version),
            )
            for name, numbers in sorted(volumes.items())
        ),
        errand=Errand(
            source=seen.source.node,
            target=seen.target.node,
            ran=True,
            autostart=seen.domain.autostart,
            target_had_definition=had,
            failover=True,
            keep_definition=keep_definition,
        ),
        tokens=seen.tokens,
        steps=described(STEPS),
        warnings=checks.warnings(seen),
    )
