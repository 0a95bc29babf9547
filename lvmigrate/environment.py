"""The checks of what is around a guest's resources: sizes, versions, protocols, third copies, other programs. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from lvmigrate.domain import DomainDisk
from lvmigrate.errors import Code, Finding
from lvmigrate.own_names import own_name
from lvmigrate.replication import DiskState, Reach, Surroundings
from lvmigrate.survey import Survey


def reach(survey: Survey, disk: DomainDisk, here: Reach) -> Iterator[Finding]:
    """A disk on shared storage: both nodes must see the same thing, and both be able to open it."""
    name, source, target = survey.domain.name, survey.source.node, survey.target.node
    there = survey.target.shared.get(disk.source or "")
    if there is None:
        yield Finding(
            code=Code.REPLICA_MISSING,
            sentence=f"Disk {disk.target} of {name} is {here.what} on {source}; {target} does not reach it"
            f" ({disk.source}).",
            hint=f"Mount, map or log in to it on {target} under the same path, or choose another target.",
        )
    elif there.what != here.what:
        yield Finding(
            code=Code.SHARED_DIFFERS,
            sentence=f"{disk.source} is {here.what} on {source}, but {there.what} on {target}.",
            hint=f"Let the path lead to the same thing on {target}, by the same name of the server.",
        )
    for node, seen in ((source, here), (target, there)):
        if seen is not None and seen.exclusive:
            yield Finding(
                code=Code.SHARED_EXCLUSIVE,
                sentence=f"{disk.source} cannot be open on two nodes, as a live migration needs: on {node}"
                f" {seen.exclusive}.",
                hint=f"Open it for sharing on {node} first; QEMU itself lets one copy of the guest write at a time.",
            )


#: The first DRBD whose options can be changed while connected (protocol 100).
_OLDEST: Final = (8, 4)


def paired(survey: Survey) -> Iterator[Finding]:
    """8.4 does not say which node its peer is: each end's address has to be the other's peer."""
    source, target = survey.source, survey.target
    for name in sorted(source.options.keys() & target.options.keys()):
        ends = source.options[name].called, target.options[name].called
        by_address = all(len(end) == 2 and ":" in end[0] for end in ends)  # noqa: PLR2004
        if by_address and ends[0] != ends[1][::-1]:
            yield Finding(
                code=Code.REPLICA_DIFFERS,
                sentence=f"{name} on {target.node} is no copy of {name} on {source.node}: one is connected from"
                f" {' to '.join(ends[0])}, the other from {' to '.join(ends[1])}.",
                hint="Name the node that has the copy: --to.",
            )


def for_good(survey: Survey, name: str) -> bool:
    """Whether a node's configuration allows two primaries: the option is shared by both ends of a connection."""
    return any(name in side.surroundings.two_primaries_for_good for side in (survey.source, survey.target))


def sizes(survey: Survey) -> Iterator[Finding]:
    """A volume that is larger at one end."""
    for name, here in survey.source.resources.items():
        there = survey.target.resources.get(name)
        others = {volume.number: volume.size_kib for volume in there.volumes} if there is not None else {}
        for volume in here.volumes:
            other = others.get(volume.number)
            if volume.size_kib and other and volume.size_kib != other:
                yield Finding(
                    code=Code.SIZE_DIFFERS,
                    sentence=f"{name}/{volume.number} has {volume.size_kib} KiB on {survey.source.node}, but"
                    f" {other} KiB on {survey.target.node}.",
                    hint=f"`drbdadm resize {own_name(name, here.node)}` on {here.node}, once both backing devices are"
                    " large enough.",
                )


def versions(survey: Survey) -> Iterator[Finding]:
    """A module that cannot do what a move needs."""
    for side in (survey.source, survey.target):
        yield from too_old(side.node, side.surroundings.version)


def too_old(node: str, text: str) -> Iterator[Finding]:
    """The same for the module of one node, by what it says of its version."""
    version = _version(text)
    if version is not None and version < _OLDEST:
        yield Finding(
            code=Code.DRBD_TOO_OLD,
            sentence=f"{node} runs DRBD {text}, which cannot change a connection in use.",
            hint="Run DRBD 8.4 or 9 there.",
        )


def _version(text: str) -> tuple[int, int] | None:
    numbers = re.match(r"(\d+)(?:\.(\d+))?", text)
    return None if numbers is None else (int(numbers[1]), int(numbers[2] or _OLDEST[1]))


def _other_version(survey: Survey) -> Iterator[Finding]:
    found = [(side.node, side.surroundings.version) for side in (survey.source, survey.target)]
    majors = {version[0] for _, text in found if (version := _version(text)) is not None}
    if len(majors) > 1:
        yield Finding(
            code=Code.DRBD_DIFFERS,
            sentence=f"{' and '.join(f'{node} runs DRBD {text}' for node, text in found)}.",
            hint="They replicate by the older one's rules; bring both to one version when you can.",
        )


def _lasting(survey: Survey) -> Iterator[Finding]:
    for name in sorted(survey.source.resources):
        if for_good(survey, name):
            yield Finding(
                code=Code.TWO_PRIMARIES_FOR_GOOD,
                sentence=f"The configuration allows two primaries for {name} at any time; that is left as it is.",
                hint=f"Nothing keeps both nodes from writing to {name} then: take allow-two-primaries out of the"
                " configuration, and `drbdadm adjust` on both nodes.",
            )


def _protocol(survey: Survey) -> Iterator[Finding]:
    for name, options in sorted(survey.source.options.items()):
        if (options.protocol or "C") != "C":
            yield Finding(
                code=Code.PROTOCOL_NOT_C,
                sentence=f"{name} replicates by protocol {options.protocol}, and two primaries need C: it is C during"
                f" the move and {options.protocol} again after it.",
                hint="Expect the guest's writes to take a little longer meanwhile.",
            )


def _third(survey: Survey) -> Iterator[Finding]:
    for name, resource in sorted(survey.source.resources.items()):
        here = survey.source.node
        own, peer = own_name(name, here), resource.towards(survey.target.node)
        for connection in resource.connections:
            if connection is not peer and any(v.disk is not DiskState.DISKLESS for v in connection.volumes):
                yield Finding(
                    code=Code.THIRD_REPLICA,
                    sentence=f"{name} has a copy on {connection.name} too; DRBD is not reliable with two primaries and"
                    " a third copy.",
                    hint=f"To be safe, `drbdadm disconnect {own}:{connection.name}` on {here} for the"
                    " time of the move.",
                )


#: Program -> what people call it, and what to do about it.
_HANDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "linstor": (
            "LINSTOR",
            "Change nothing of it there meanwhile: its `drbdadm adjust` forbids two primaries, which ends the move.",
        ),
        "drbd-reactor": (
            "drbd-reactor's promoter",
            "Take the resource out of the promoter (`drbd-reactorctl disable`): it promotes wherever it can.",
        ),
        "pacemaker": (
            "Pacemaker",
            "Set its resource unmanaged for the time of the move, or move the guest through Pacemaker.",
        ),
    }
)


def _other_hands(survey: Survey) -> Iterator[Finding]:
    yield from hands((side.node, side.surroundings) for side in (survey.source, survey.target))


def hands(sides: Iterable[tuple[str, Surroundings]]) -> Iterator[Finding]:
    """Programs that act on resources of these nodes too."""
    found: dict[tuple[str, str], list[str]] = {}
    for node, surroundings in sides:
        for hand in surroundings.other_hands:
            where = node if hand.active else f"{node} (where it does not run)"
            found.setdefault((hand.program, hand.resource), []).append(where)
    for (program, name), nodes in found.items():
        title, hint = _HANDS.get(program, (program, "See that it leaves the resource alone during the move."))
        yield Finding(
            code=Code.OTHER_HANDS,
            sentence=f"{title} has {name} in its configuration too, on {' and '.join(nodes)}.",
            hint=hint,
        )


WARNINGS: Final[tuple[Callable[[Survey], Iterator[Finding]], ...]] = (
    _lasting,
    _protocol,
    _third,
    _other_version,
    _other_hands,
)
