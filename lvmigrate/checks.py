"""Every reason not to start a move, from what was observed. Pure: no I/O; each check is one function with its codes.

A finding of a check in `REFUSALS` keeps the move from starting; one of a check in `WARNINGS` is said and left at that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

from lvmigrate import capabilities, certificates, environment, fitness, whereabouts
from lvmigrate.domain import Domain, DomainDisk, DomainState, Host, JobKind
from lvmigrate.environment import for_good
from lvmigrate.errors import Code, Finding
from lvmigrate.lineage import parting
from lvmigrate.own_names import on_each, own_name
from lvmigrate.plan import Switch
from lvmigrate.replication import SENDING, DoubtKind, Place, Role
from lvmigrate.survey import Survey
from lvmigrate.token import Errand, Held


def _state(survey: Survey) -> Iterator[Finding]:
    domain = survey.domain
    if domain.state not in (DomainState.RUNNING, DomainState.PAUSED):
        yield Finding(
            code=Code.INSTANCE_STATE,
            sentence=f"{domain.name} is {domain.state.value} on {domain.node}.",
            hint="Wait until it runs, or wake it with `virsh dompmwakeup`.",
        )
    bad = ("i/o error", "migration", "post-copy failed", "crashed")
    if domain.state is DomainState.PAUSED and domain.reason in bad:
        yield Finding(
            code=Code.INSTANCE_STATE,
            sentence=f"{domain.name} stands still on {domain.node} ({domain.reason}).",
            hint="See what stopped it (`virsh domstate --reason`, the node's log) before moving it.",
        )


def _job(survey: Survey) -> Iterator[Finding]:
    for domain in (survey.domain, survey.target.domain):
        if domain is not None and domain.job is not JobKind.NONE:
            yield whereabouts.busy(domain)


def _unfinished(survey: Survey) -> Iterator[Finding]:
    """The guest waits where a move has brought it that was not finished: it is to run before anything is mended."""
    primaries = [r.name for r in survey.target.resources.values() if r.role is Role.PRIMARY]
    if survey.domain.state is DomainState.PAUSED and primaries:
        name, node = survey.domain.name, survey.domain.node
        yield Finding(
            code=Code.INSTANCE_STATE,
            sentence=f"{name} waits paused on {node} while {survey.target.node} is Primary too,"
            " as after a move that was not finished.",
            hint=f"`lvmigrate cleanup {name}` finishes that move.",
        )


def _taken_on_target(survey: Survey) -> Iterator[Finding]:
    there = survey.target.domain
    if there is not None and there.name != survey.domain.name:
        yield Finding(
            code=Code.INSTANCE_ON_TARGET,
            sentence=f"{survey.target.node} has a guest {there.name} with the UUID of {survey.domain.name}.",
            hint="Undefine or rename that one, if it is a copy: libvirt refuses two guests of one UUID.",
        )
    for other in survey.target.others:
        if other.name == survey.domain.name:
            yield Finding(
                code=Code.INSTANCE_ON_TARGET,
                sentence=f"{survey.target.node} has another guest called {other.name} (UUID {other.uuid}).",
                hint="Rename or undefine that one: libvirt refuses two guests of one name.",
            )


def taken(held: Held) -> Finding:
    """What a token says that is somebody else's when ours was to be left: its holder lives, or has left a move."""
    if held.alive:
        return Finding(
            code=Code.LOCKED,
            sentence=f"{held.instance} is being worked on already: {held.node} holds the token of {held.holder}.",
            hint="Wait for that move; the token of one that died runs out by itself."
            if not math.isinf(held.left_s)
            else f"That token never runs out: its deadline cannot be read. When nobody works on it any more:"
            f" `rm /run/lvmigrate/{held.uuid}.token` on {held.node}, then `lvmigrate cleanup {held.instance}`.",
        )
    return Finding(
        code=Code.LEFT_BEHIND,
        sentence=f"Another move of {held.instance} began since it was looked at, and was not finished ({held.node} has"
        f" the token of {held.holder}).",
        hint=f"`lvmigrate cleanup {held.instance}` finishes or undoes that move.",
    )


def _locked(survey: Survey) -> Iterator[Finding]:
    for side in (survey.source, survey.target):
        held = side.traces.token(survey.domain.uuid)
        if held is not None and held.alive:
            yield taken(held)


def _guard(survey: Survey) -> Iterator[Finding]:
    name = survey.domain.name
    for side in (survey.source, survey.target):
        if side.traces.guard(survey.domain.uuid) is not None:
            yield Finding(
                code=Code.LEFT_BEHIND,
                sentence=f"The guard of an earlier move of {name} is still at work on {side.node}.",
                hint=f"`lvmigrate cleanup {name}` finishes or undoes that move.",
            )
        left = side.traces.token(survey.domain.uuid)
        if left is not None and not left.alive and left.errand is not None and _unsettled(survey, left.errand):
            yield Finding(
                code=Code.LEFT_BEHIND,
                sentence=f"An earlier move of {name} was not finished ({side.node} has the token of {left.holder}).",
                hint=f"`lvmigrate cleanup {name}` finishes or undoes that move.",
            )
        if side.guard_trouble and survey.options.guard and side.resources:
            yield Finding(
                code=Code.GUARD_UNAVAILABLE,
                sentence=f"No guard can be armed on {side.node}: {side.guard_trouble}.",
                hint="Without one, a controller that dies in mid-move leaves two primaries allowed until somebody runs"
                " `lvmigrate cleanup`. Accept that with --no-guard, or run systemd there.",
            )


def _unsettled(survey: Survey, errand: Errand) -> bool:
    """Whether definitions and autostart are still as that move has left them."""
    here = survey.domain.node
    if here not in (errand.source, errand.target):
        return False
    changed = errand.autostart is not None and survey.domain.autostart is not errand.autostart
    brought = survey.target.node == errand.target and survey.target.domain is not None
    return here == errand.target or changed or (brought and not errand.target_had_definition)


#: A fast switch needs this long to end the source's copy before the source's libvirt lets it run again.
KEEPALIVE_S: Final = 20.0


def _fast(survey: Survey) -> Iterator[Finding]:
    seconds = survey.source.keepalive_s
    post_copy = survey.options.may_post_copy_of(survey.domain)
    if (post_copy or survey.options.switch is Switch.FAST) and seconds < KEEPALIVE_S:
        what = "post-copy, whose target starts the guest by itself," if post_copy else "the fast switch"
        yield Finding(
            code=Code.KEEPALIVE_SHORT,
            sentence=f"libvirt on {survey.source.node} gives up a silent peer after {seconds:g} s; {what}"
            f" needs {KEEPALIVE_S:g} s.",
            hint="Use the strict switch and no post-copy, or raise keepalive_interval and keepalive_count in its"
            " qemu.conf.",
        )


def _options(survey: Survey) -> Iterator[Finding]:
    yield from capabilities.conflicts(survey.options)
    yield from capabilities.out_of_bounds(survey.options)
    for side in (survey.source, survey.target):
        yield from capabilities.unsupported(survey.options, side.host)


def _tls(survey: Survey) -> Iterator[Finding]:
    if survey.source.certificates is not None and survey.target.certificates is not None:
        yield from certificates.findings(survey.source.certificates, survey.target.certificates, survey.called)


def replicated_disks(domain: Domain) -> tuple[DomainDisk, ...]:
    """The disks that must be replicated for the guest to run elsewhere, with what they are read through.

    All but removable media.
    """
    return tuple(disk for disk in domain.layers if disk.device in ("disk", "lun"))


def _disks(survey: Survey) -> Iterator[Finding]:
    disks = replicated_disks(survey.domain)
    if not disks:
        yield Finding(
            code=Code.NO_DISKS,
            sentence=f"{survey.domain.name} has no disk.",
            hint="lvmigrate moves guests whose disks DRBD replicates; `virsh migrate` moves this one.",
        )
    for disk in disks:
        place = survey.source.places.get(disk.source or "")
        reach = survey.source.shared.get(disk.source or "")
        if place is None and (reach is not None or disk.network):
            if reach is not None:
                yield from environment.reach(survey, disk, reach)
            continue
        if place is None:
            yield Finding(
                code=Code.DISK_NOT_REPLICATED,
                sentence=f"Disk {disk.target} of {survey.domain.name} is not replicated by DRBD, nor on storage that"
                f" several nodes reach ({disk.source or disk.kind}).",
                hint="Put it on a DRBD resource or on shared storage that both nodes have, or detach it"
                " (`virsh detach-disk`). A disk's base is not needed any more after `virsh blockpull`.",
            )
            continue
        there = survey.target.places.get(disk.source or "")
        if there is None:
            yield Finding(
                code=Code.REPLICA_MISSING,
                sentence=f"{survey.target.node} has no {disk.source} ({place.resource}/{place.volume}).",
                hint=f"Configure and bring up {place.resource} on {survey.target.node}, or choose another target. Where"
                " it is up under another minor or name, the guest needs a path that leads to it on both nodes.",
            )
        elif there != place:
            yield elsewhere(disk.source or "", (survey.source.node, place), (survey.target.node, there))


def elsewhere(path: str, here: tuple[str, Place], there: tuple[str, Place]) -> Finding:
    """A path that leads to one volume on the one node, and to another one on the other."""
    (node, place), (other, found) = here, there
    return Finding(
        code=Code.REPLICA_DIFFERS,
        sentence=f"{path} is {place.resource}/{place.volume} on {node},"
        f" but {found.resource}/{found.volume} on {other}.",
        hint="Use a path that leads to the same replica on both nodes: the same minor on both, a link of your own, or"
        " /dev/drbd/by-res/RESOURCE/VOLUME."
        if found.resource == place.resource
        else "If both are one replica under two names, connect them: the kernels on both nodes then tell so (or call it"
        f" {place.resource} on {other} too). If not, use a path that leads to one replica on both nodes.",
    )


def _shared(survey: Survey) -> Iterator[Finding]:
    for side in (survey.source, survey.target):
        wanted = {place.resource for place in side.places.values()}
        for other in side.others:
            for disk in other.layers:
                place = side.places_of_others.get(disk.source or "")
                if place is not None and place.resource in wanted:
                    yield Finding(
                        code=Code.RESOURCE_SHARED,
                        sentence=f"{place.resource} is also used by {other.name} on {side.node}.",
                        hint="A role holds for a whole resource: give each guest resources of its own.",
                    )


#: {own}: the resource as the node calls it that has the doubt; {status}, {connect}: a command for both nodes.
_DOUBTS: Final = {
    DoubtKind.SUSPENDED: (
        Code.NOT_UPTODATE,
        "Look with `drbdsetup status {own}`; `drbdadm resume-io {own}` lets it go on.",
    ),
    DoubtKind.NO_QUORUM: (Code.NO_QUORUM, "Bring the missing nodes of {own} back first."),
    DoubtKind.DISK: (Code.NOT_UPTODATE, "{status}; attach or resynchronise that disk."),
    DoubtKind.CONNECTION: (Code.NOT_CONNECTED, "{connect}, and see why it was lost."),
    DoubtKind.REPLICATION: (Code.NOT_UPTODATE, "Wait until it is over: {status}."),
}


def _parted(survey: Survey) -> Iterator[Finding]:
    source, target = survey.source, survey.target
    for name in sorted(source.resources.keys() & target.resources.keys()):
        apart = parting(name, (source.node, source.lineages), (target.node, target.lineages))
        if apart is not None:
            yield apart.finding(keep=source.node)


def _in_step(survey: Survey) -> Iterator[Finding]:
    # A copy that is on its way to the target is waited for, not refused.
    waited_for = {
        (resource.name, volume.number)
        for resource in survey.source.resources.values()
        if (connection := resource.towards(survey.target.node)) is not None
        for volume in connection.volumes
        if volume.replication in SENDING
    }
    said = set()
    for side, peer in ((survey.source, survey.target), (survey.target, survey.source)):
        for name in sorted({place.resource for place in side.places.values()} - side.resources.keys()):
            yield Finding(
                code=Code.REPLICA_MISSING,
                sentence=f"{name} was brought down on {side.node} while it was looked at.",
                hint=f"`drbdadm up {own_name(name, side.node)}` there.",
            )
        for resource in side.resources.values():
            for doubt in resource.doubts(peer.node):
                # Both nodes see most things: one finding is enough.
                key = (doubt.kind, doubt.resource, doubt.volume)
                if key in said or (doubt.resource, doubt.volume) in waited_for:
                    continue
                said.add(key)
                code, hint = _DOUBTS[doubt.kind]
                words = {
                    "own": own_name(doubt.resource, side.node),
                    "status": on_each("drbdsetup status {}", doubt.resource, survey.nodes),
                    "connect": on_each("drbdadm connect {}", doubt.resource, survey.nodes),
                }
                yield Finding(code=code, sentence=f"{doubt}.", hint=hint.format(**words))


def _roles(survey: Survey) -> Iterator[Finding]:
    for resource in survey.source.resources.values():
        if resource.role is not Role.PRIMARY:
            yield Finding(
                code=Code.SOURCE_NOT_PRIMARY,
                sentence=f"{resource.name} is {resource.role.value} on {survey.source.node}, where the guest runs.",
                hint=f"Look with {on_each('drbdsetup status {}', resource.name, survey.nodes)}.",
            )
    for resource in survey.target.resources.values():
        if resource.role is Role.PRIMARY:
            yield Finding(
                code=Code.DUAL_PRIMARY,
                sentence=f"{resource.name} is Primary on {survey.target.node}, where the guest does not run.",
                hint=f"`lvmigrate cleanup {survey.domain.name}` makes it Secondary if nothing uses it there.",
            )


def _two_primaries(survey: Survey) -> Iterator[Finding]:
    for name in sorted(survey.source.options.keys() | survey.target.options.keys()):
        on = [
            side.node
            for side in (survey.source, survey.target)
            if name in side.options and side.options[name].allow_two_primaries
        ]
        if on and not for_good(survey, name):
            yield Finding(
                code=Code.TWO_PRIMARIES_ON,
                sentence=f"allow-two-primaries is on already for {name} (on {' and '.join(on)}).",
                hint=f"An earlier move left it: `lvmigrate cleanup {survey.domain.name}`.",
            )


def _openers(survey: Survey) -> Iterator[Finding]:
    # At the source the guest's own process holds them; what else does would keep the source Primary after the switch.
    # Where no process is known to be a guest's, none is known not to be.
    here = survey.source.openers
    known = any(opener.guest for opener in here)
    foreign = [opener for opener in here if not opener.process or (known and not opener.guest)]
    for node, openers in ((survey.source.node, foreign), (survey.target.node, survey.target.openers)):
        for opener in openers:
            yield Finding(
                code=Code.DEVICE_HELD,
                sentence=f"{opener.resource}/{opener.volume} is open on {node}: {opener.what}.",
                hint="End what uses it there first.",
            )


def _tcg(survey: Survey) -> Iterator[Finding]:
    if survey.domain.virt_type == "qemu":
        for side in (survey.source, survey.target):
            yield from loses_memory(survey.domain.name, side.host)


def loses_memory(instance: str, host: Host) -> Iterator[Finding]:
    """A QEMU that loses memory of a guest without KVM when it migrates."""
    if (0, 0, 0) < host.qemu_version < (9, 0, 0):
        yield Finding(
            code=Code.QEMU_TCG_LOSES_MEMORY,
            sentence=f"{instance} runs without KVM, and QEMU {'.'.join(map(str, host.qemu_version))} on {host.node}"
            " is known to lose guest memory then.",
            hint="Use QEMU 9 or later for guests without KVM.",
        )


Check = Callable[[Survey], Iterator[Finding]]

REFUSALS: Final[tuple[Check, ...]] = (
    _unfinished,
    _state,
    _job,
    _taken_on_target,
    _locked,
    _guard,
    _fast,
    _options,
    _tls,
    _disks,
    _shared,
    _parted,
    environment.paired,
    _in_step,
    environment.sizes,
    environment.versions,
    _roles,
    _two_primaries,
    _openers,
    *fitness.REFUSALS,
)

WARNINGS: Final[tuple[Check, ...]] = (_tcg, *environment.WARNINGS, *fitness.WARNINGS)


def refusals(survey: Survey) -> tuple[Finding, ...]:
    """Every reason not to start."""
    return tuple(finding for check in REFUSALS for finding in check(survey))


def warnings(survey: Survey) -> tuple[Finding, ...]:
    """What the operator should know and need not stop for."""
    return tuple(finding for check in WARNINGS for finding in check(survey))
