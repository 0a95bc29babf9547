"""What a failover from a node that does not answer would do, by the word of the node that is to take the guest.

Only the survivor is asked for anything but a sign of life; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lvmigrate import checks, fencing, kept, stale
from lvmigrate.beside import Beside, beside, missing
from lvmigrate.domain import Domain
from lvmigrate.errors import Code, CommandFailed, Finding, LvmigrateError, NodeUnreachable, Refused
from lvmigrate.occasion import sizes
from lvmigrate.plan import Mode, Plan, ResourcePlan
from lvmigrate.premises import Needs, Wanted
from lvmigrate.replication import ConnectionOptions, Lineage, Place, Resource
from lvmigrate.survey import Sightings, one_guest
from lvmigrate.takeover import STEPS
from lvmigrate.tasklet import Context, described
from lvmigrate.token import Errand

#: What comes of it.
_WITHOUT: Final = {
    Code.TPM: "What was sealed with the old one (BitLocker, LUKS) asks for its recovery key.",
    Code.NVRAM: "Boot entries and keys that were enrolled are gone: it boots what its firmware finds by itself.",
}
_NOT_SET: Final = ConnectionOptions(allow_two_primaries=False, protocol=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What follows from what the survivor says."""

    plan: Plan
    #: Every reason not to start.
    findings: tuple[Finding, ...]
    #: The definition to give it there; ``None``: its own. Not in the plan, which is written down: it may hold secrets.
    definition: str | None
    #: By device path, in MiB.
    sizes_mib: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """The failover of ``instance`` from a silent node, as the operator asked for it."""

    context: Context
    instance: str
    #: A node's name; ``None``: the only one that may take guests.
    target: str | None
    #: The node that the operator says is off.
    is_off: str | None
    ignore_consistency: bool
    #: `kept.KEPT`, or a file's name; ``None``: the survivor's own.
    definition: str | None

    def found(self, sightings: Sightings) -> Found:
        """What would be done. Raises `Refused` where that much cannot be told, or `UsageError` of which guest."""
        one_guest(self.instance, sightings.domains)
        silent = [error.node for error in sightings.silent]
        answering = tuple(node for node in self.context.nodes if node not in silent)
        if not answering:
            raise self._refused(
                Code.NODE_UNREACHABLE,
                f"No node answers ({', '.join(silent)}): {self.instance} may run on any of them.",
                "See that this machine reaches them: `lvmigrate status` says what each way to them has said.",
            )
        target = self._choose(answering)
        if len(silent) > 1:
            # It may run on any of them, and only one can be said to be off.
            raise self._refused(
                Code.NODE_UNREACHABLE,
                f"{' and '.join(silent)} do not answer: {self.instance} may run on any of them.",
                "Bring all but one of them back, or take those that are gone out of the configuration.",
            )
        dead = silent[0]
        own = next((seen for seen in sightings.domains if seen.node == target), None)
        try:
            if self.definition is not None:
                return self._defined(self.definition, own, target, dead)
            if own is None:
                raise self._undefined(target, dead)
            text = self.context.hypervisor.definition(target, own.uuid)
            if text is None:
                raise self._undefined(target, dead)
            needs = self.context.hypervisor.needs_described(text)
            return self._surveyed(own, needs, dead, definition=None, warnings=())
        except (CommandFailed, NodeUnreachable) as error:
            raise self._refused(error.code, error.sentence, error.hint) from error

    # ---- the definition

    def _undefined(self, target: str, dead: str) -> Refused:
        copy = kept.last(self.context, self.instance)
        hint = f"`virsh define` it on {target} from a copy, without starting it; or name the copy: --definition FILE."
        if copy is not None:
            hint = (
                f"--definition kept: as it was after its last move ({copy}, on this machine); what was changed in it"
                " since is lost. Or --definition FILE."
            )
        return self._refused(
            Code.DEFINITION_MISSING,
            f"{target} has no definition of {self.instance}, and {dead} does not answer.",
            hint,
        )

    def _defined(self, word: str, own: Domain | None, target: str, dead: str) -> Found:
        """With a definition that was kept, or named. What describes another guest is refused."""
        if own is not None:
            raise self._refused(
                Code.OPTIONS_CONFLICT,
                f"{target} has a definition of {self.instance} of its own.",
                "Leave --definition out; or undefine that one first, if it is the wrong one.",
            )
        copy = kept.asked_for(self.context, self.instance, word)
        domain = self.context.hypervisor.described(target, copy.text)
        if self.instance not in (domain.name, domain.uuid) or (word == kept.KEPT and copy.path.stem != domain.uuid):
            raise self._refused(
                Code.DEFINITION_WRONG,
                f"{copy.path} defines {domain.name} ({domain.uuid}), not {self.instance}.",
                "Name another file.",
            )
        warning = Finding(
            code=Code.DEFINITION_KEPT,
            sentence=f"{domain.name} is defined on {target} from {copy}: what was changed in it since is lost.",
            hint=f"`virsh dumpxml {domain.name}` on {target} shows it. {target} does not start it at boot until"
            f" `lvmigrate cleanup {domain.name}` has seen {dead} again, or `virsh autostart` says so.",
        )
        needs = self.context.hypervisor.needs_described(copy.text)
        return self._surveyed(domain, needs, dead, definition=copy.text, warnings=(warning,))

    # ---- the disks, and what is beside them

    def _surveyed(
        self, domain: Domain, needs: Needs, dead: str, *, definition: str | None, warnings: tuple[Finding, ...]
    ) -> Found:
        hypervisor, storage, target = self.context.hypervisor, self.context.storage, domain.node
        others = [other for other in hypervisor.domains(target) if other.uuid != domain.uuid]
        mine = {disk.source for disk in checks.replicated_disks(domain) if disk.source}
        theirs = {disk.source for other in others for disk in other.layers if disk.source}
        everything = storage.locate(target, mine | theirs)
        ours = {path: everything[path] for path in mine & everything.keys()}
        resources = storage.observe(target, sorted({place.resource for place in ours.values()}))
        places = {path: place for path, place in ours.items() if place.resource in resources}
        names = tuple(sorted(resources))
        signs = fencing.look(hypervisor, storage, dead, target, names)
        findings = [*fencing.objections(signs, has_command=dead in self.context.fences, typed=self.is_off)]
        findings += _unusable(domain, places, others, everything)
        for resource in resources.values():
            findings += stale.objections(resource, dead, accepted=self.ignore_consistency)
        held = storage.traces(target).token(domain.uuid)
        if held is not None and held.alive:
            findings.append(checks.taken(held))
        try:
            lineages = storage.lineages(target, dead, names)
        except LvmigrateError:
            lineages = {}  # it only tells when the copies lost the node: nothing to lose the guest for
        plan = Plan(
            instance=domain.name,
            domain=domain,
            source=dead,
            target=target,
            target_had_definition=definition is None,
            mode=Mode.FAILOVER,
            resources=tuple(self._planned(dead, resources[name], places) for name in names),
            errand=Errand(
                source=dead,
                target=target,
                ran=True,
                autostart=None,
                target_had_definition=definition is None,
                failover=True,
            ),
            steps=described(STEPS),
            warnings=(
                *_old(domain, resources.values(), dead, lineages),
                *_starts_without(domain, self._lacked(domain, needs, dead), dead),
                *warnings,
            ),
        )
        return Found(plan=plan, findings=tuple(findings), definition=definition, sizes_mib=sizes(places, resources))

    def _lacked(self, domain: Domain, needs: Needs, dead: str) -> tuple[Beside, ...]:
        """What the guest has beside its disks and the survivor has not, which is asked only where there is such."""
        paths = frozenset(one.path for one in beside(domain.uuid, needs))
        if not paths:
            return ()
        wanted = Wanted(instance=domain.name, peer=dead, knock=False, autostart=False, paths=paths)
        return tuple(missing(domain.uuid, needs, self.context.storage.premises(domain.node, wanted).paths))

    def _planned(self, dead: str, resource: Resource, places: Mapping[str, Place]) -> ResourcePlan:
        options = _NOT_SET
        if resource.towards(dead) is not None:
            try:
                options = self.context.storage.options(resource.node, resource.name, dead)
            except CommandFailed as error:
                # DRBD 8.4 has no options of a connection that is StandAlone: then there are none to restore.
                if error.code is not Code.NOT_CONNECTED:
                    raise
        return ResourcePlan(
            name=resource.name,
            volumes=tuple(sorted(place.volume for place in places.values() if place.resource == resource.name)),
            options=(options, options),
            forced=stale.is_old(resource),  # where nobody has asked for it, `stale.objections` refuses
        )

    # ---- where to

    def _choose(self, answering: tuple[str, ...]) -> str:
        """The survivor. Policies are not asked: what has lost its node is to run again."""
        open_ = [node for node in answering if self.context.nodes[node].closed is None]
        if self.target is not None and self.target in answering:
            closed = self.context.nodes[self.target].closed
            if closed is None:
                return self.target
            raise self._refused(
                Code.NODE_DRAINED,
                f"{self.target} {closed}.",
                f"Choose another target, or change [nodes.{self.target}].",
            )
        if self.target is not None:
            raise self._refused(
                Code.NODE_UNREACHABLE,
                f"{self.target} does not answer.",
                f"Choose another target: {', '.join(open_) or 'there is none'}.",
            )
        if len(open_) != 1:
            raise self._refused(
                Code.TARGET_AMBIGUOUS,
                f"{self.instance} could go to {', '.join(open_) or 'no other node'}.",
                "Name the target with --to.",
            )
        return open_[0]

    def _refused(self, code: Code, sentence: str, hint: str) -> Refused:
        return Refused(self.instance, [Finding(code=code, sentence=sentence, hint=hint)])


def _old(
    domain: Domain, resources: Collection[Resource], dead: str, lineages: Mapping[str, Lineage]
) -> Iterator[Finding]:
    """What the copies lack, each that is old by itself; what counts as UpToDate together."""
    for resource in resources:
        if stale.is_old(resource):
            yield stale.warning(domain.name, resource, dead, lineages)
    others = [resource for resource in resources if not stale.is_old(resource)]
    if others:
        yield stale.cut_off(domain.name, others, dead, lineages)


def _starts_without(domain: Domain, lacked: Iterable[Beside], dead: str) -> Iterator[Finding]:
    """What a guest comes up with new that it had in files on its node: told, since there is no way to have it."""
    for one in lacked:
        yield Finding(
            code=one.code,
            sentence=f"{domain.name} starts with {one.what} new: {domain.node} has none in {one.path}, {dead} may.",
            hint=f"{_WITHOUT[one.code]} If {one.path} can be had from a backup or from the disk of {dead}, copy it to"
            f" {domain.node}, with its owner and rights, before the guest is started.",
        )


def _unusable(
    domain: Domain, places: Mapping[str, Place], others: list[Domain], everything: Mapping[str, Place]
) -> Iterator[Finding]:
    """What is against the guest's disks as they are on the survivor, whatever state their copies are in."""
    for disk in checks.replicated_disks(domain):
        if disk.source not in places:
            yield Finding(
                code=Code.DISK_NOT_REPLICATED,
                sentence=f"Disk {disk.target} of {domain.name} is not replicated by DRBD on {domain.node}"
                f" ({disk.source or disk.kind}).",
                hint="Only what was replicated can be started from elsewhere.",
            )
    mine = {place.resource for place in places.values()}
    for other in others:
        if other.name == domain.name:
            yield Finding(
                code=Code.INSTANCE_ON_TARGET,
                sentence=f"{domain.node} has another guest called {other.name} (UUID {other.uuid}).",
                hint="Rename or undefine that one: libvirt refuses two guests of one name.",
            )
        used = {everything[path].resource for path in {d.source or "" for d in other.layers} & everything.keys()}
        for name in sorted(used & mine):
            yield Finding(
                code=Code.RESOURCE_SHARED,
                sentence=f"{name} is also used by {other.name} on {domain.node}.",
                hint="A role holds for a whole resource: give each guest resources of its own.",
            )
