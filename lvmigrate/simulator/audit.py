"""What must hold when nothing moves: the truth of a world, compared with what it was in the beginning."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from lvmigrate.domain import DomainState
from lvmigrate.replication import ConnectionState, Role
from lvmigrate.simulator.drbd import Replicated, Version
from lvmigrate.simulator.guests import Copy, Guest
from lvmigrate.simulator.records import includes
from lvmigrate.simulator.truth import Truth


class Wrong(enum.Enum):
    """What can be wrong at rest."""

    COPIES = "not exactly one copy"
    STATE = "the copy does not run, or stand, as before"
    ROLES = "not Primary where the guest is, and only there"
    UNUSED = "explicit Primary without an opener"
    TWO_PRIMARIES = "two primaries allowed"
    PROTOCOL = "another protocol than before"
    APART = "not connected, or not in step"
    TOKEN = "a token left"  # noqa: S105 -- words
    GUARD = "a guard left"
    DEFINITION = "defined where it does not belong, or not where it does"
    AUTOSTART = "autostart not as before"
    DATA = "the disk lacks acknowledged writes"
    NODE = "a node is down"
    JOB = "a job of libvirt goes on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. ``str()`` is a clause for people."""

    wrong: Wrong
    words: str

    def __str__(self) -> str:
        return f"{self.wrong.value}: {self.words}"


def audit(world: Truth) -> tuple[Finding, ...]:
    """Everything that is wrong now."""
    return tuple(_findings(world))


def _findings(world: Truth) -> Iterator[Finding]:
    for host in world.hosts.values():
        if not host.answers_libvirt:
            yield Finding(wrong=Wrong.NODE, words=host.name)
        for file in host.tokens.values():
            yield Finding(wrong=Wrong.TOKEN, words=f"of {file.token.instance} on {host.name}")
        for guard in host.guards.values():
            yield Finding(wrong=Wrong.GUARD, words=f"of {guard.instance} on {host.name} ({guard.says})")
        for job in host.jobs.values():
            yield Finding(wrong=Wrong.JOB, words=f"of {job.guest.name} on {host.name}, {job.phase.value}")
    for resource in world.resources.values():
        yield from _resource(resource)
    for guest in world.guests.values():
        yield from _guest(world, guest)


def _resource(resource: Replicated) -> Iterator[Finding]:
    for words in resource.settled():
        yield Finding(wrong=Wrong.APART, words=words)
    for end in resource.ends.values():
        # 8.4 forgets the options of a connection that is StandAlone: the next one has those of the configuration.
        forgotten = resource.version is Version.V84 and end.state is ConnectionState.STANDALONE
        if end.up and end.two_primaries and not forgotten:
            yield Finding(wrong=Wrong.TWO_PRIMARIES, words=f"for {resource.name} on {end.node}")
        if end.up and end.protocol != resource.configured:
            yield Finding(wrong=Wrong.PROTOCOL, words=f"{end.protocol} for {resource.name} on {end.node}")
        if end.role is Role.PRIMARY and end.explicit and not end.holds:
            yield Finding(wrong=Wrong.UNUSED, words=f"{resource.name} on {end.node}")


def _guest(world: Truth, guest: Guest) -> Iterator[Finding]:
    copies = world.copies(guest)
    where = ", ".join(f"{copy.node} ({copy.state.value}, {copy.reason})" for copy in copies) or "no node"
    if len(copies) > 1 or (not copies and not guest.ended_by):
        yield Finding(wrong=Wrong.COPIES, words=f"{guest.name} on {where}")
    for copy in copies:
        yield from _copy(guest, copy)
    home = copies[0].node if len(copies) == 1 else None
    for resource in guest.resources:
        primaries = {end.node for end in resource.ends.values() if end.role is Role.PRIMARY}
        if primaries != ({home} if home else set()) and (home or not guest.ended_by):
            words = f"{resource.name} is Primary on {', '.join(sorted(primaries)) or 'no node'}, the guest on {where}"
            yield Finding(wrong=Wrong.ROLES, words=words)
    if not copies:
        yield from _at_rest(guest)
    yield from _definitions(world, guest, home)


def _copy(guest: Guest, copy: Copy) -> Iterator[Finding]:
    expected = DomainState.RUNNING if guest.ran or copy.reason == "booted" else DomainState.PAUSED
    if copy.state is not expected and not guest.paused_by_operator:
        words = f"{guest.name} on {copy.node} is {copy.state.value} ({copy.reason})"
        yield Finding(wrong=Wrong.STATE, words=words)
    for disk in guest.disks:
        found = disk.resource.content(copy.node, disk.volume)
        if found is None or not includes(found, guest.latest[disk]):
            yield Finding(wrong=Wrong.DATA, words=f"{guest.name}'s {disk.target} on {copy.node}")


def _at_rest(guest: Guest) -> Iterator[Finding]:
    """A guest that was ended by a fault: its data must be whole on some node."""
    for disk in guest.disks:
        if not any(includes(end.heads[disk.volume], guest.latest[disk]) for end in disk.resource.ends.values()):
            yield Finding(wrong=Wrong.DATA, words=f"{guest.name}'s {disk.target} on every node")


def _definitions(world: Truth, guest: Guest, home: str | None) -> Iterator[Finding]:
    there = {name: host.definitions[guest.uuid] for name, host in world.hosts.items() if guest.uuid in host.definitions}
    if home is None:
        if guest.persistent and not there:
            yield Finding(wrong=Wrong.DEFINITION, words=f"{guest.name} is defined nowhere")
        started = [name for name, definition in there.items() if definition.autostart]
        if len(started) > 1:
            yield Finding(wrong=Wrong.AUTOSTART, words=f"{guest.name} on {' and '.join(started)}")
        return
    expected = set(guest.defined_on) if home == guest.home else ({home} if guest.persistent else set())
    if guest.keeps_definition and home != guest.home:
        expected |= guest.defined_on
    if set(there) != expected:
        found = ", ".join(sorted(there)) or "no node"
        words = f"{guest.name} is defined on {found}, belongs on {', '.join(sorted(expected)) or 'no node'}"
        yield Finding(wrong=Wrong.DEFINITION, words=words)
    for name, definition in there.items():
        if definition.left_on == home:
            yield Finding(wrong=Wrong.DEFINITION, words=f"a tombstone on {name} names {home}, where {guest.name} is")
        if definition.autostart is not (guest.autostart and name == home):
            yield Finding(wrong=Wrong.AUTOSTART, words=f"{guest.name} on {name}: {definition.autostart}")
