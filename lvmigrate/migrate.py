"""`MigrateInstance`: a running guest moves to another node while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

import structlog

from lvmigrate import acts, balloon, checks, comparison, hooks, kept, opening, whereabouts
from lvmigrate.domain import Domain, DomainState
from lvmigrate.errors import Code, Finding, Refused, UsageError
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.foretell import foretell
from lvmigrate.journal import Opening, Record, keep
from lvmigrate.jsonable import jsonable
from lvmigrate.lease import holder
from lvmigrate.move import STEPS, Move
from lvmigrate.node import unknown
from lvmigrate.occasion import Occasion, Operation, sizes
from lvmigrate.plan import Mode, Options, Plan, ResourcePlan
from lvmigrate.report import Report
from lvmigrate.survey import Survey, find, survey
from lvmigrate.target import Choice, chosen, policy
from lvmigrate.tasklet import Context, described
from lvmigrate.token import Errand


class MigrateInstance:
    """Move one running guest. ``target``: a node's name, or ``None`` for the best one that has its disks.

    Where the options allow or ask for it, it is failed over instead, as the plan says then.
    """

    def __init__(
        self, context: Context, instance: str, *, target: str | None = None, options: Options | None = None
    ) -> None:
        self._context = context
        self._instance = instance
        self._target = target
        self._options = options or Options()
        self._plan: Plan | None = None
        self._occasion: Occasion | None = None
        #: What is done in its place, as the plan says.
        self._instead: FailoverInstance | None = None

    def check_prereq(self) -> Plan:
        """Observe both hosts and both disks; change nothing. Raises `Refused` with every reason not to start."""
        nodes = tuple(self._context.nodes)
        if self._target is not None and self._target not in nodes:
            raise Refused(self._instance, [unknown(self._target, nodes)])
        # One that is out of use by the operator's word is not waited for: what runs elsewhere, its disks connected,
        # moves without it.  (A failover from a dead node and a cleanup want every node's word.)
        asked = tuple(name for name, node in self._context.nodes.items() if node.offline is None)
        sightings = find(self._context.hypervisor, asked, self._instance)
        if findings := tuple(whereabouts.where(sightings)):
            raise Refused(self._instance, findings)
        domain = sightings.active[0]
        choice = chosen(self._context, domain, self._target, self._options)
        if self._options.always_failover:
            return self._fail_over(domain, choice, "the configuration says that it always does")
        target = self._context.nodes[choice.node]
        seen = survey(self._context.hypervisor, self._context.storage, domain, target, self._options)
        self._occasion = _occasion(seen)
        bounds = policy(seen, target, ignored=self._options.ignore_ipolicy)
        findings = (
            *checks.refusals(seen),
            *(comparison.objections(seen) if self._options.verify_disks else ()),
            *(() if self._options.ignore_ipolicy else bounds),
            *hooks.objections(self._context, self._occasion),
        )
        if (trouble := self._context.journal.trouble()) is not None:
            findings = (*findings, trouble)
        if findings:
            return self._otherwise(domain, choice, findings)
        also = (*(bounds if self._options.ignore_ipolicy else ()), *hooks.notes(self._context, self._occasion))
        self._plan = replace(_planned(seen, self._options.mode, also=also), target_because=choice.why)
        if self._options.verify_disks:
            self._plan = comparison.planned(self._plan)
        if self._options.forecast_s:
            told = foretell(self._context, self._plan, self._options)
            if isinstance(told, Finding):
                self._plan = replace(self._plan, warnings=(*self._plan.warnings, told))
            else:
                self._plan = replace(self._plan, forecast=told)
        return self._plan

    def paced(self, options: Options) -> None:
        """Move with ``options`` in place of those that were checked: the bandwidths alone may differ."""
        self._options = options

    def exec(self) -> Report:
        """Do what `check_prereq` planned.

        Guaranteed after a report: one running copy, on the target; its disks single-primary there, two primaries
        forbidden on both ends; no token, no definition left at the source.  Raises `MoveFailed` or `MoveAborted`
        (everything undone), `LeftBehind`, `GuestLost` or `OutcomeUnknown` (nothing undone), and `Refused` when the
        journal cannot be written (nothing was begun).
        """
        if self._instead is not None:
            return self._instead.exec()
        if self._plan is None or self._occasion is None:
            raise UsageError("exec() was called before check_prereq().", hint="Call check_prereq() first.")
        plan, options, occasion = self._plan, self._options, self._occasion

        def move(record: Record) -> Report:
            with ExitStack() as stack:
                report = Move(acts.recorded(self._context, record), plan, options, stack, record=record).run()
                return replace(report, target_because=plan.target_because)

        def hooked(record: Record) -> Report:
            since = self._context.clock.now()
            report = hooks.around(self._context, record, occasion, lambda: move(record))
            kept.keep(self._context, plan.target, plan.domain.uuid, plan.instance)
            if options.verify_disks:
                report = comparison.compared(self._context, plan, report, record, since=since)
            return report

        opening = Opening(
            tasklet="migrate",
            instance=plan.instance,
            uuid=plan.domain.uuid,
            source=plan.source,
            target=plan.target,
            holder=holder(),
            plan={**jsonable(plan), "options": jsonable(options)},
        )
        with structlog.contextvars.bound_contextvars(instance=plan.instance):
            return keep(self._context.journal, opening, hooked, now=self._context.clock.now)

    def _otherwise(self, domain: Domain, choice: Choice, findings: tuple[Finding, ...]) -> Plan:
        """A failover where that was allowed, helps, and can be done; else `Refused`, with what is against a move."""
        mistaken = {finding.code for finding in findings} & _MISTAKES
        if not self._options.allow_failover or mistaken:
            raise Refused(self._instance, findings)
        words = "; ".join(f"{finding.code}: {finding.sentence.rstrip('.')}" for finding in findings)
        try:
            return self._fail_over(domain, choice, f"it cannot move while it runs ({words})")
        except Refused as refused:
            also = (finding for finding in refused.findings if finding not in findings)
            raise Refused(self._instance, (*findings, *also)) from refused

    def _fail_over(self, domain: Domain, choice: Choice, why: str) -> Plan:
        note = Finding(
            code=Code.FAILOVER_INSTEAD,
            sentence=f"{domain.name} is shut down and started on {choice.node}: {why}.",
            hint="It is down meanwhile; to be refused instead, leave out --allow-failover, and take allow_failover and"
            f" always_failover out of the configuration ([defaults], [guests.{domain.name}]).",
        )
        tasklet = FailoverInstance(
            self._context,
            domain.uuid,
            target=choice.node,
            options=FailoverOptions.of(self._options),
            notes=(note,),
            because=choice.why,
        )
        plan = tasklet.check_prereq()
        self._instead = tasklet
        return plan


#: What the caller got wrong, or what is against any move: no reason to shut a guest down.
_MISTAKES: Final = frozenset(
    {
        *(Code.OPTIONS_CONFLICT, Code.OPTION_UNSUPPORTED, Code.IPOLICY, Code.HOOK_FAILED, Code.JOURNAL_UNUSABLE),
        *(Code.LOCKED, Code.LEFT_BEHIND, Code.JOB_ACTIVE),
    }
)


def _occasion(seen: Survey) -> Occasion:
    return Occasion(
        operation=Operation.MIGRATE,
        instance=seen.domain.name,
        uuid=seen.domain.uuid,
        domain=seen.domain,
        source=seen.source.node,
        target=seen.target.node,
        sizes_mib=sizes(seen.source.places, seen.source.resources),
        live=seen.options.mode is not Mode.NON_LIVE,
        allow_runtime_changes=seen.options.allow_runtime_changes,
    )


def _planned(seen: Survey, mode: Mode, *, also: tuple[Finding, ...]) -> Plan:
    volumes: dict[str, set[int]] = {}
    fit = balloon.planned(seen)
    for place in seen.source.places.values():
        volumes.setdefault(place.resource, set()).add(place.volume)
    return Plan(
        instance=seen.domain.name,
        domain=seen.domain,
        source=seen.source.node,
        target=seen.target.node,
        target_had_definition=seen.target.domain is not None,
        mode=mode,
        resources=tuple(
            ResourcePlan(
                name=name,
                volumes=tuple(sorted(numbers)),
                options=(seen.source.options[name], seen.target.options[name]),
                minors=(seen.source.minors(name), seen.target.minors(name)),
                reads_first=opening.reads_first(seen),
                modules=(seen.source.surroundings.version, seen.target.surroundings.version),
            )
            for name, numbers in sorted(volumes.items())
        ),
        errand=Errand(
            source=seen.source.node,
            target=seen.target.node,
            ran=seen.domain.state is DomainState.RUNNING,
            autostart=seen.domain.autostart,
            target_had_definition=seen.target.domain is not None,
            memory_kib=0 if fit.shrunk_kib is None else fit.current_kib,
            keep_definition=seen.options.keep_definition,
        ),
        shrunk_kib=fit.shrunk_kib,
        tokens=seen.tokens,
        steps=described(STEPS),
        warnings=(*checks.warnings(seen), *opening.warnings(seen), *also),
    )
