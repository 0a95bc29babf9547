"""`MigrateInstance`: a running guest moves to another node while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import structlog

from lvmigrate import acts, checks, hooks
from lvmigrate.domain import Domain, DomainState
from lvmigrate.errors import Code, Finding, Refused, UsageError
from lvmigrate.foretell import foretell
from lvmigrate.journal import Opening, Record, keep
from lvmigrate.jsonable import jsonable
from lvmigrate.lease import holder
from lvmigrate.move import STEPS, Move
from lvmigrate.occasion import Occasion, Operation, sizes
from lvmigrate.plan import Mode, Options, Plan, ResourcePlan
from lvmigrate.report import Report
from lvmigrate.survey import Survey, find, survey
from lvmigrate.tasklet import Context, described
from lvmigrate.token import Errand


class MigrateInstance:
    """Move one running guest. ``target``: a node's name, or ``None`` for the only other one that can take it."""

    def __init__(
        self, context: Context, instance: str, *, target: str | None = None, options: Options | None = None
    ) -> None:
        self._context = context
        self._instance = instance
        self._target = target
        self._options = options or Options()
        self._plan: Plan | None = None
        self._occasion: Occasion | None = None

    def check_prereq(self) -> Plan:
        """Observe both hosts and both disks; change nothing. Raises `Refused` with every reason not to start."""
        nodes = tuple(self._context.nodes)
        if self._target is not None and self._target not in nodes:
            raise Refused(
                self._instance,
                [
                    Finding(
                        code=Code.NODE_UNKNOWN,
                        sentence=f"The configuration names no node {self._target}.",
                        hint=f"It names {', '.join(nodes)}.",
                    )
                ],
            )
        sightings = find(self._context.hypervisor, nodes, self._instance)
        if findings := tuple(checks.where(sightings)):
            raise Refused(self._instance, findings)
        domain = sightings.active[0]
        target = self._context.nodes[self._choose(domain)]
        seen = survey(self._context.hypervisor, self._context.storage, domain, target, self._options)
        self._occasion = _occasion(seen)
        findings = (*checks.refusals(seen), *hooks.objections(self._context, self._occasion))
        if (trouble := self._context.journal.trouble()) is not None:
            findings = (*findings, trouble)
        if findings:
            raise Refused(self._instance, findings)
        self._plan = _planned(seen, self._options.mode, also=hooks.notes(self._context, self._occasion))
        if self._options.forecast_s:
            told = foretell(self._context, self._plan, self._options)
            if isinstance(told, Finding):
                self._plan = replace(self._plan, warnings=(*self._plan.warnings, told))
            else:
                self._plan = replace(self._plan, forecast=told)
        return self._plan

    def exec(self) -> Report:
        """Do what `check_prereq` planned.

        Guaranteed after a report: one running copy, on the target; its disks single-primary there, two primaries
        forbidden on both ends; no token, no definition left at the source.  Raises `MoveFailed` or `MoveAborted`
        (everything undone), `LeftBehind`, `GuestLost` or `OutcomeUnknown` (nothing undone), and `Refused` when the
        journal cannot be written (nothing was begun).
        """
        if self._plan is None or self._occasion is None:
            raise UsageError("exec() was called before check_prereq().", hint="Call check_prereq() first.")
        plan, options, occasion = self._plan, self._options, self._occasion

        def move(record: Record) -> Report:
            with ExitStack() as stack:
                return Move(acts.recorded(self._context, record), plan, options, stack, record=record).run()

        def hooked(record: Record) -> Report:
            return hooks.around(self._context, record, occasion, lambda: move(record))

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

    def _choose(self, domain: Domain) -> str:
        others = [node for node in self._context.nodes if node != domain.node]
        if self._target == domain.node:
            finding = Finding(
                code=Code.TARGET_IS_SOURCE,
                sentence=f"{domain.name} runs on {domain.node} already.",
                hint=f"Choose another target: {', '.join(others) or 'the configuration names no other node'}.",
            )
            raise Refused(domain.name, [finding])
        if self._target is not None:
            return self._target
        if len(others) != 1:
            finding = Finding(
                code=Code.TARGET_AMBIGUOUS,
                sentence=f"{domain.name} could go to {', '.join(others) or 'no other node'}.",
                hint="Name the target with --to.",
            )
            raise Refused(domain.name, [finding])
        return others[0]


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
    )


def _planned(seen: Survey, mode: Mode, *, also: tuple[Finding, ...]) -> Plan:
    volumes: dict[str, set[int]] = {}
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
            )
            for name, numbers in sorted(volumes.items())
        ),
        errand=Errand(
            source=seen.source.node,
            target=seen.target.node,
            ran=seen.domain.state is DomainState.RUNNING,
            autostart=seen.domain.autostart,
            target_had_definition=seen.target.domain is not None,
        ),
        steps=described(STEPS),
        warnings=(*checks.warnings(seen), *also),
    )
