"""Whether a guest may be started from a copy of its disk that is not UpToDate, if what it lacks is given up. Pure.

DRBD tells two kinds apart.  An Outdated or Consistent copy is whole: the disk as it was at one moment, as after a power
cut.  An Inconsistent one was being brought up to date: it has blocks of two moments, a disk that never existed, which
no check of a file system makes one again.  ``drbdsetup primary --force`` takes both; drbdsetup-9.0(8) says of it that
it may lead to split-brain, and of an Inconsistent one that nothing but checks of one's own tells whether it can be
used at all.  So the first kind is taken where the operator asks for it, and the second never.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lvmigrate.errors import Code, Finding
from lvmigrate.replication import OLD, DiskState, Lineage, Resource


def usable(resource: Resource, *, old: bool) -> bool:
    """Whether every copy here is UpToDate, or, where ``old`` ones are taken, at least whole."""
    taken = {DiskState.UP_TO_DATE, *(OLD if old else ())}
    return all(volume.disk in taken for volume in resource.volumes)


def is_old(resource: Resource) -> bool:
    """Whether a copy here is whole, and not UpToDate: only force makes it Primary."""
    return any(volume.disk in OLD for volume in resource.volumes)


def objections(resource: Resource, away: str, *, accepted: bool) -> Iterator[Finding]:
    """Why the guest cannot be started from the copies on this node; ``away`` has the others.

    ``accepted``: the operator gives up what an old copy lacks.
    """
    if resource.connections and resource.towards(away) is None:
        yield Finding(
            code=Code.REPLICA_DIFFERS,
            sentence=f"{resource.name} on {resource.node} is a copy of"
            f" {' and '.join(connection.name for connection in resource.connections)}'s, not of {away}'s.",
            hint="Name the node that has the copy: --to.",
        )
    for volume in resource.volumes:
        what = f"{resource.name}/{volume.number} on {resource.node}"
        if volume.disk in OLD and not accepted:
            yield Finding(
                code=Code.NOT_UPTODATE,
                sentence=f"{what} is {volume.disk.value}: it lacks what was written since it lost {away}.",
                hint=f"Bring {away} back. To give up for good what is only there, and start from the old data:"
                f" --ignore-consistency --to {resource.node} (--dry-run says since when).",
            )
        elif volume.disk is not DiskState.UP_TO_DATE and volume.disk not in OLD:
            yield Finding(
                code=Code.NOT_UPTODATE,
                sentence=f"{what} is {volume.disk.value}: there is no whole copy of the disk on {resource.node}.",
                hint=f"Bring {away} back, and have the copy completed. No option starts a guest from it: what was being"
                " resynchronised has blocks of two moments. A backup is the better disk.",
            )


def warning(instance: str, resource: Resource, away: str, lineages: Mapping[str, Lineage]) -> Finding:
    """What is given up, and since when, as DRBD tells it; and what is to be done before ``away`` comes back."""
    here = resource.node
    old = [volume for volume in resource.volumes if volume.disk in OLD]
    which = " and ".join(f"{resource.name}/{volume.number} is {volume.disk.value}" for volume in old)
    return Finding(
        code=Code.COPY_OLD,
        sentence=f"{instance} is started from old data, by force: {which} on {here}. Everything written since"
        f" {_moment((resource,), away, lineages)} is given up.",
        hint=f"{away} has the newer data, and a person's choice is needed when it is back. Before it is switched on:"
        f" keep it from starting {instance} (`rm /etc/libvirt/qemu/autostart/{instance}.xml` from its rescue shell)."
        f" Then `lvmigrate cleanup {instance}` says how the copy there is given up and resynchronised.",
    )


def cut_off(instance: str, resources: Sequence[Resource], away: str, lineages: Mapping[str, Lineage]) -> Finding:
    """What copies that count as UpToDate may lack: after a cut they stay so, however long ``away`` writes alone."""
    return Finding(
        code=Code.COPY_CUT_OFF,
        sentence=f"{instance} is started from what had reached {resources[0].node}: nothing written since"
        f" {_moment(resources, away, lineages)} is in it.",
        hint=f"If {away} lived on after that moment, bring it back before anything is started: only its copy has what"
        f" {instance} wrote then.",
    )


def _moment(resources: Sequence[Resource], away: str, lineages: Mapping[str, Lineage]) -> str:
    """The first of the moments when these lost ``away``."""
    here = resources[0].node
    keys = [f"{resource.name}/{volume.number}" for resource in resources for volume in resource.volumes]
    told = [lineages[key].lost_at for key in keys if key in lineages]
    lost_at = min((at for at in told if at is not None), default=None)
    if lost_at is None:
        return f"{here} lost {away}, nobody knows when (the kernel's log of this boot does not tell),"
    return f"{lost_at.isoformat()}, when {here} lost {away} (by the kernel's log there),"
