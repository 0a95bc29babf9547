"""`Truth`: what is really so, on every node, at this moment of its own time.

Long, because everything that can happen in the world happens here, under one lock and one clock.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from lvmigrate.domain import DomainState
from lvmigrate.node import Node
from lvmigrate.own_names import joined
from lvmigrate.replication import ConnectionOptions, ConnectionState, DiskState, Role
from lvmigrate.simulator.calls import Call, Kind
from lvmigrate.simulator.drbd import Hold, IoFailed, KernelRefused, Replicated, Version
from lvmigrate.simulator.guests import Copy, Definition, Disk, Guest
from lvmigrate.simulator.host import Host, Job, Phase
from lvmigrate.simulator.records import EMPTY, Record, includes
from lvmigrate.simulator.settings import Settings
from lvmigrate.simulator.timeline import Event, Timeline
from lvmigrate.simulator.violations import Breach, Violation

_NAMESPACE: Final = uuid.UUID("8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0009")
_FIRST_MINOR: Final = 7
#: Nobody can see both nodes at one moment: a copy that was there so long ago was there when it was looked at last.
_JUST_NOW_S: Final = 0.5

#: The network between two nodes carries two things that can be cut apart.
DRBD: Final = "drbd"
LIBVIRT: Final = "libvirt"


class Hearer(Protocol):
    """Whoever hears of what happens: a controller."""

    def hear(self, node: str, of: str, event: str) -> None:
        """A life-cycle event of a guest."""

    def see(self, resource: Replicated) -> None:
        """A resource changed."""

    def way_changed(self) -> None:
        """A node went or came back."""

    def way_mended(self) -> None:
        """Every way of its own to a node is mended."""


class Acting:
    """While in the context, ``who`` is the one who acts. (A generator would cost more than what is done in it.)"""

    __slots__ = ("_actors", "_who")

    def __init__(self, actors: list[str], who: str) -> None:
        self._actors = actors
        self._who = who

    def __enter__(self) -> None:
        self._actors.append(self._who)

    def __exit__(self, *_error: object) -> None:
        self._actors.pop()


class Truth:
    """Some hosts, their libvirt and their DRBD, and what happens to them; who acts, and what must not happen."""

    def __init__(self, nodes: Sequence[str] = ("node1", "node2"), settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.timeline = Timeline()
        self.hosts = {name: Host(name=name) for name in nodes}
        self.resources: dict[str, Replicated] = {}
        #: By UUID.
        self.guests: dict[str, Guest] = {}
        #: Whoever hears of events and changes.
        self.hearers: list[Hearer] = []
        self.migrations: list[Job] = []
        #: Every call made, in order.
        self.calls: list[Call] = []
        #: What must not happen, and did.
        self.violations: list[Violation] = []
        #: What happened, in words.
        self.story: list[tuple[float, str]] = []
        #: Counts what changes anything that a guard looks at.
        self.changes = 0
        #: By node: the calls to its libvirt that it has not got to yet.
        self.unanswered: list[tuple[str, Event]] = []
        #: Asked before every call which fault it meets; told of every phase that a migration enters.
        self.before: Callable[[Call], Kind | None] = lambda _call: None
        self.entered: Callable[[Job], None] = lambda _migration: None
        self._actor: list[str] = ["nobody"]
        self._cuts: dict[tuple[str, frozenset[str]], int] = {}
        self._minors = itertools.count(_FIRST_MINOR)
        self._thread = threading.get_ident()

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return self.timeline.now

    # ---- making it

    def add_guest(  # noqa: PLR0913 -- one by one, by name
        self,
        name: str,
        node: str,
        *,
        peer: str | None = None,
        volumes: int = 1,
        resources: int = 1,
        running: bool = True,
        persistent: bool = True,
        autostart: bool = True,
        defined_on_peer: bool = False,
        memory_kib: int = 1 << 20,
        called: Mapping[str, str] | None = None,
        own_minors: bool = False,
        copy_s: float | None = None,
    ) -> Guest:
        """A guest on ``node``, with a resource of its own (or more) replicated to ``peer``, the only other node.

        ``called``: what each node calls that resource, if not as the guest.  ``own_minors``: each node has other
        minors, so the guest has the paths that the name makes.
        """
        other = peer or next(n for n in self.hosts if n != node)
        disks: list[Disk] = []
        for index in range(resources):
            suffix = f"-{index}" if index else ""
            names = {of: called[of] + suffix for of in (node, other)} if called else None
            resource = self.add_resource(name + suffix, (node, other), volumes, called=names, own_minors=own_minors)
            for volume in range(volumes):
                by_name = f"/dev/drbd/by-res/{resource.called[node]}/{volume}"
                path = by_name if own_minors else f"/dev/drbd{resource.minors[node][volume]}"
                target = f"vd{chr(ord('a') + len(disks))}"
                disks.append(Disk(target=target, path=path, resource=resource, volume=volume))
        guest = Guest(
            name=name,
            uuid=str(uuid.uuid5(_NAMESPACE, name)),
            disks=tuple(disks),
            memory_kib=memory_kib,
            copy_s=copy_s,
            home=node,
            ran=running,
            persistent=persistent,
            autostart=autostart and persistent,
            defined_on=frozenset({*([node] if persistent else []), *([other] if defined_on_peer else [])}),
            latest=dict.fromkeys(disks, EMPTY),
        )
        self.guests[guest.uuid] = guest
        for host in guest.defined_on:
            here = guest.autostart and host == node
            self.hosts[host].definitions[guest.uuid] = Definition(guest=guest, autostart=here)
        copy = self._start(guest, node, explicit=not self._promotes)
        if not running:
            copy.state, copy.reason = DomainState.PAUSED, "user"
        return guest

    def add_resource(
        self,
        name: str,
        nodes: tuple[str, str],
        volumes: int = 1,
        *,
        called: Mapping[str, str] | None = None,
        own_minors: bool = False,
    ) -> Replicated:
        """A resource that nobody uses, Secondary on both nodes and in step.

        Where the nodes do not call it the same, it goes by both names, as the adapter for DRBD has it.
        """
        called = called or dict.fromkeys(nodes, name)
        if len(set(called.values())) > 1:
            name = joined((node, called[node]) for node in sorted(nodes))
        first = tuple(next(self._minors) for _ in range(volumes))
        resource = Replicated(
            name=name,
            nodes=nodes,
            called=called,
            minors={
                node: tuple(next(self._minors) for _ in range(volumes)) if own_minors and node != nodes[0] else first
                for node in nodes
            },
            version=self.settings.version,
            auto_promote=self._promotes,
            protocol=self.settings.protocol,
            timeline=self.timeline,
            pace=self.settings.pace,
            linked=lambda: self._carries(DRBD, *nodes) and all(self.hosts[node].powered for node in nodes),
            changed=self._replication_changed,
            parted=self._parted,
        )
        self.resources[name] = resource
        return resource

    def _parted(self, resource: Replicated, words: str) -> None:
        guest = self._guest_of(resource.name)
        if guest is None or guest.old_copy_on is None:  # else somebody has given up one of the two
            self.breach(Breach.SPLIT, resource.name, words, by="drbd")

    @property
    def _promotes(self) -> bool:
        return self.settings.auto_promote and self.settings.version is Version.V9

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes as a configuration names them."""
        return {
            name: Node(
                name=name,
                ssh=f"root@{name}",
                libvirt_uri=f"qemu+ssh://root@{name}/system",
                peer_uri=f"qemu+ssh://root@{name}/system",
                migration_address=name,
            )
            for name in self.hosts
        }

    # ---- what happened

    def tell(self, what: str) -> None:
        """Note what happened, for people. What happens is told, so this counts it, too."""
        self.changes += 1
        self.story.append((self.now, what))

    def acting(self, who: str) -> Acting:
        """Whoever does what happens in this context."""
        return Acting(self._actor, who)

    @property
    def actor(self) -> str:
        """Who acts now."""
        return self._actor[-1]

    def breach(self, breach: Breach, of: str, words: str, *, by: str | None = None) -> None:
        """Note that something happened that must not; the same once only."""
        violation = Violation(breach=breach, at_s=self.now, by=by or self.actor, of=of, words=words)
        known = {(v.breach, v.by, v.of, v.words) for v in self.violations}
        if (violation.breach, violation.by, violation.of, violation.words) not in known:
            self.violations.append(violation)
            self.tell(f"VIOLATION: {violation}")

    def only_here(self) -> None:
        """Raise `RuntimeError` if another thread than the world's own acts: time would not be under control."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a simulated world belongs to one thread: use it as a context (`with World() as world`)")

    def emit(self, node: str, of: str, event: str) -> None:
        """A life-cycle event of libvirt's."""
        self.tell(f"libvirt on {node}: {event}")
        for hearer in self.hearers:
            hearer.hear(node, of, event)

    def phase_entered(self, migration: Job) -> None:
        """A migration entered its next phase."""
        self.tell(f"migration of {migration.guest.name} from {migration.source}: {migration.phase.value}")
        self._all_write_soon()
        self.entered(migration)

    def catch_up(self, node: str) -> None:
        """A libvirt daemon that acts on a later call has acted on the earlier ones: a guest has one job at a time."""
        now, self.unanswered = self.unanswered, []
        for where, event in now:
            if where == node:
                event.happen()
            elif event.due:
                self.unanswered.append((where, event))

    # ---- copies of guests

    def copies(self, guest: Guest) -> list[Copy]:
        """Every process with this guest's memory."""
        return [host.copies[guest.uuid] for host in self.hosts.values() if guest.uuid in host.copies]

    def running(self, guest: Guest) -> list[str]:
        """The nodes where its CPUs run."""
        return [copy.node for copy in self.copies(guest) if copy.runs]

    def open_disks(self, copy: Copy, *, write: bool) -> None:
        """Have the copy's QEMU hold its disks, or hold them for writing now. Raises `KernelRefused`: none is held."""
        for resource, hold in copy.holds:
            if write:
                resource.reopen(copy.node, hold)
        if copy.holds:
            return
        self._look_where_paths_lead(copy)
        for resource in copy.guest.resources:
            who = f"qemu-system-x86 (pid {4000 + len(self.migrations)})"
            hold = Hold(who=who, write=write, guest=copy.guest.name)
            try:
                resource.open(copy.node, hold)
            except KernelRefused:
                self._close_disks(copy)
                raise
            copy.holds.append((resource, hold))

    def _look_where_paths_lead(self, copy: Copy) -> None:
        """Raise `KernelRefused` where there is nothing; note where it is another disk."""
        for disk in copy.guest.disks:
            found = [(r, volume) for r in self.resources.values() if (volume := r.at(copy.node, disk.path)) is not None]
            if not found:
                raise KernelRefused(1, "No such file or directory")
            if found != [(disk.resource, disk.volume)]:
                words = f"{copy.guest.name} on {copy.node}: {disk.path} is {found[0][0].name}/{found[0][1]} there"
                self.breach(Breach.FOREIGN, copy.guest.name, words)

    def _close_disks(self, copy: Copy) -> None:
        for resource, hold in copy.holds:
            resource.close(copy.node, hold)
        copy.holds.clear()

    def _start(self, guest: Guest, node: str, *, explicit: bool) -> Copy:
        """Start it from its disks. Raises `KernelRefused` if they cannot be opened."""
        copy = Copy(guest=guest, node=node, state=DomainState.PAUSED, reason="starting up", memory={})
        if explicit:
            for resource in guest.resources:
                resource.promote(node)
        self.open_disks(copy, write=True)
        self.hosts[node].copies[guest.uuid] = copy
        # By this what the old copy lacks is given up, if that is anything.
        gives_up = guest.old_copy_on == node and not guest.given_up
        guest.given_up |= gives_up
        for disk in guest.disks:
            found = disk.resource.content(node, disk.volume)
            copy.memory[disk] = found if found is not None else EMPTY
            if gives_up:
                guest.latest[disk] = copy.memory[disk]
            elif not includes(copy.memory[disk], guest.latest[disk]):
                self.breach(
                    Breach.STALE, guest.name, f"{guest.name} was started on {node} from a disk that lacks writes"
                )
        self.run(copy, "booted")
        return copy

    def start(self, guest: Guest, node: str) -> None:
        """``virsh start``. Raises `KernelRefused` if DRBD does not let its disks be opened."""
        self._start(guest, node, explicit=False)
        guest.ran = True  # whatever it was before: started from its disks it runs, and is to run wherever it goes

    def run(self, copy: Copy, why: str) -> None:
        """Let its CPUs run."""
        copy.state, copy.reason = DomainState.RUNNING, why
        self.tell(f"{copy.guest.name} runs on {copy.node} ({why}), by {self.actor}")
        others = [node for node in self.running(copy.guest) if node != copy.node]
        if others:
            words = f"{copy.guest.name} runs on {copy.node} and on {', '.join(others)}"
            self.breach(Breach.TWO_RUNNING, copy.guest.name, words)
        for other in self.copies(copy.guest):
            # Of one that is incoming, the memory is yet to come.
            if other is not copy and not other.runs and not other.incoming:
                other.older = True
        for disk in copy.guest.disks:
            self._check_disk(copy, disk)
        self._write_soon(copy)

    def _write_soon(self, copy: Copy) -> None:
        """Have a running guest write often again: something has changed."""
        if copy.next_write is not None:
            copy.next_write.cancel()
        copy.write_s = self.settings.write_s
        copy.next_write = self.timeline.after(copy.write_s, partial(self._write, copy))

    def _all_write_soon(self) -> None:
        for host in self.hosts.values():
            for copy in host.copies.values():
                if copy.runs:
                    self._write_soon(copy)

    def _check_disk(self, copy: Copy, disk: Disk) -> bool:
        """Whether what the copy finds on its disk is what it has written; notes it when not."""
        found = disk.resource.content(copy.node, disk.volume)
        if found is None or found is copy.memory[disk]:
            return True
        words = f"{copy.guest.name} on {copy.node}, {disk.target}"
        breach = Breach.STALE if not includes(found, copy.memory[disk]) else Breach.FOREIGN
        self.breach(breach, copy.guest.name, words)
        copy.memory[disk] = found  # from here on it is noted by what it does next
        return False

    def _write(self, copy: Copy) -> None:
        """A running guest writes to each of its disks, again and again; the longer nothing changes, the more seldom."""
        copy.next_write = None
        if not copy.runs or self.hosts[copy.node].copies.get(copy.guest.uuid) is not copy:
            return
        for disk in copy.guest.disks:
            self._check_disk(copy, disk)
            try:
                record = disk.resource.write(copy.node, disk.volume, f"{copy.guest.name} on {copy.node}")
            except IoFailed:
                copy.state, copy.reason = DomainState.PAUSED, "i/o error"
                self.emit(copy.node, copy.guest.uuid, "suspended i/o error")
                return
            if record is not None:
                self._acknowledge(copy, disk, record)
        if copy.next_write is None:
            copy.write_s = min(2 * copy.write_s, self.settings.seldom_s)
            copy.next_write = self.timeline.after(copy.write_s, partial(self._write, copy))

    def _acknowledge(self, copy: Copy, disk: Disk, record: Record) -> None:
        copy.memory[disk] = record
        latest = copy.guest.latest[disk]
        if record.before is not latest and not includes(record, latest):
            words = f"{copy.guest.name} on {copy.node} goes on without writes that it had been told were done"
            self.breach(Breach.LOST_WRITE, copy.guest.name, words)
        copy.guest.latest[disk] = record

    def end_copy(self, copy: Copy, *, reason: str = "failed", cause: str = "") -> None:
        """The process ends, for libvirt's ``reason``; ``cause`` is the fault or the person who did it, if any."""
        host = self.hosts[copy.node]
        if host.copies.get(copy.guest.uuid) is not copy:
            return
        del host.copies[copy.guest.uuid]
        self._close_disks(copy)
        copy.state = DomainState.OFF
        if (definition := host.definitions.get(copy.guest.uuid)) is not None:
            definition.off = reason
        job = self.job_of(copy.guest)
        handed_over = job is not None and job.phase is Phase.FINISHED and copy.node == job.target
        if cause and not copy.older and (handed_over or not self._others(copy)):
            self._ended(copy.guest, cause)
        if cause:
            copy.guest.lost.append((self.now, copy))
        for migration in self.migrations:
            if migration.guest is copy.guest and migration.phase is not Phase.ENDED:
                migration.copy_ended(copy.node)

    # ---- acts that a law may forbid

    def job_of(self, guest: Guest) -> Job | None:
        """The migration of this guest that a daemon drives now."""
        return next((m for m in self.migrations if m.guest is guest and m.phase is not Phase.ENDED), None)

    def _guest_of(self, resource: str) -> Guest | None:
        return next((g for g in self.guests.values() if any(r.name == resource for r in g.resources)), None)

    def force(self, node: str, resource: str) -> None:
        """Make it Primary by force. Raises `KernelRefused`."""
        guest, replicated = self._guest_of(resource), self.resources[resource]
        if guest is not None and guest.old_copy_on != node:
            self.breach(Breach.LAW, guest.name, f"{node} was promoted by force, and nobody has given up what it lacks")
        if guest is not None and (copies := self.copies(guest)):
            self.breach(Breach.LAW, guest.name, f"{node} was promoted by force beside a copy on {copies[0].node}")
        if DiskState.INCONSISTENT in replicated.ends[node].disks.values():
            self.breach(Breach.LAW, resource, f"an Inconsistent disk was promoted by force on {node}")
        replicated.promote(node, force=True)
        self.tell(f"{resource} is Primary on {node}, by force, by {self.actor}")

    def demote(self, node: str, resource: str) -> None:
        """Make it Secondary. Raises `KernelRefused`."""
        guest = self._guest_of(resource)
        if guest is not None and self.resources[resource].ends[node].role is Role.PRIMARY:
            job = self.job_of(guest)
            # Where its QEMU has died, the target's libvirt knows of no job any more, and nothing can arrive.
            if job is not None and (node == job.source or guest.uuid in self.hosts[node].copies):
                self.breach(Breach.LAW, guest.name, f"{node} was demoted while libvirt had a job of {guest.name}'s")
        self.resources[resource].demote(node)
        self.tell(f"{resource} is Secondary on {node}, by {self.actor}")

    def set_options(self, node: str, resource: str, options: ConnectionOptions) -> None:
        """Restore them. Raises `KernelRefused`."""
        replicated = self.resources[resource]
        guest = self._guest_of(resource)
        off = replicated.ends[node].two_primaries and not options.allow_two_primaries
        if off and guest is not None:
            if replicated.ends[node].state is not ConnectionState.CONNECTED:
                self.breach(Breach.LAW, guest.name, f"two primaries were forbidden on {node} during a cut")
            if self.job_of(guest) is not None:
                self.breach(Breach.LAW, guest.name, f"two primaries were forbidden while {guest.name} was moving")
        replicated.set_options(node, two_primaries=options.allow_two_primaries, protocol=options.protocol or "C")
        self.tell(f"{resource} on {node}: two primaries {options.allow_two_primaries}, by {self.actor}")

    def resume(self, node: str, of: str) -> None:
        """Let a copy that waits run. Nothing if it runs. Raises `KeyError` if there is none."""
        copy = self.hosts[node].copies[of]
        if copy.runs:
            return
        others = [other for other in self.copies(copy.guest) if other is not copy]
        job = self.job_of(copy.guest)
        if others or job is not None:
            where = ", ".join(f"a copy on {other.node} ({other.state.value})" for other in others)
            words = f"{copy.guest.name} was resumed on {node} beside {where or 'a job of libvirt'}"
            self.breach(Breach.LAW, copy.guest.name, words)
        self.run(copy, "unpaused")
        self.emit(node, of, "resumed unpaused")

    def balloon(self, copy: Copy, kib: int) -> None:
        """Give the guest so much memory. Nothing if this copy of it does not run (any more)."""
        if self.hosts[copy.node].copies.get(copy.guest.uuid) is copy and copy.runs:
            copy.guest.current_kib = kib
            self.tell(f"{copy.guest.name} on {copy.node} has {kib} KiB, by its balloon")

    def suspend(self, node: str, of: str) -> None:
        """Stop a copy's CPUs. Nothing if they stand. Raises `KeyError` if there is none."""
        copy = self.hosts[node].copies[of]
        if copy.runs:
            copy.state, copy.reason = DomainState.PAUSED, "user"
            self.tell(f"{copy.guest.name} is paused on {node}, by {self.actor}")
            self.emit(node, of, "suspended paused")

    def _others(self, copy: Copy) -> list[Copy]:
        """The other copies of its guest that are whole, and not older than one that ran."""
        return [c for c in self.copies(copy.guest) if c is not copy and not c.incoming and not c.older]

    def discard(self, node: str, of: str) -> None:
        """End a copy that waits. Nothing if there is none."""
        copy = self.hosts[node].copies.get(of)
        if copy is None:
            return
        just_now = [other for at_s, other in copy.guest.lost if self.now - at_s <= _JUST_NOW_S]
        newest = [
            other
            for other in (*self._others(copy), *just_now)
            if all(includes(other.memory[d], copy.memory.get(d, other.memory[d])) for d in copy.guest.disks)
        ]
        if not copy.incoming and not copy.older and not newest:
            words = f"{copy.guest.name} on {node}: no other copy has its memory"
            self.breach(Breach.LOST_GUEST, copy.guest.name, words)
        elif just_now and not copy.incoming and not self._others(copy):
            self._ended(copy.guest, "the other copy was lost to a fault right before")
        self.tell(f"{copy.guest.name}'s copy on {node} is ended, by {self.actor}")
        self.end_copy(copy, reason="destroyed")
        self.emit(node, of, "stopped destroyed")

    def shut_down(self, node: str, of: str) -> None:
        """The guest is asked to shut down, and does so in its time if it listens and runs."""
        copy = self.hosts[node].copies[of]
        self.tell(f"{copy.guest.name} on {node} is asked to shut down, by {self.actor}")

        def end() -> None:
            if copy.runs:
                self.end_copy(copy, reason="shutdown")
                self.emit(node, of, "stopped shutdown")

        if self.settings.shutdown_s is not None:
            self.timeline.after(self.settings.shutdown_s, end)

    def power_off(self, node: str, of: str) -> None:
        """End a copy, running or not. Nothing if there is none."""
        copy = self.hosts[node].copies.get(of)
        if copy is not None:
            self.tell(f"{copy.guest.name} on {node} is switched off, by {self.actor}")
            self.end_copy(copy, reason="destroyed")
            self.emit(node, of, "stopped destroyed")

    def define(self, node: str, of: str, left_on: str | None) -> None:
        """Define a guest."""
        definition = self.hosts[node].definitions.setdefault(of, Definition(guest=self.guests[of], autostart=False))
        definition.left_on = left_on
        self.tell(f"{definition.guest.name} is defined on {node}, by {self.actor}")

    def undefine(self, node: str, of: str) -> None:
        """Remove the definition. Nothing if there is none."""
        if self.hosts[node].definitions.pop(of, None) is None:
            return
        guest = self.guests[of]
        self.tell(f"{guest.name} is undefined on {node}, by {self.actor}")
        left = [host for host in self.hosts.values() if of in host.definitions]
        if not left:
            self.breach(Breach.LOST_DEFINITION, guest.name, f"{guest.name} is defined nowhere any more")

    # ---- faults and repairs

    def _carries(self, what: str, first: str, second: str) -> bool:
        return not self._cuts.get((what, frozenset({first, second})))

    def carries_libvirt(self, first: str, second: str) -> bool:
        """Whether libvirt's link between the two is whole."""
        return self._carries(LIBVIRT, first, second)

    def cut(self, what: str, first: str, second: str, seconds: float | None = None) -> None:
        """Cut `DRBD`'s or `LIBVIRT`'s link between two nodes; mended after ``seconds``, if given."""
        key = (what, frozenset({first, second}))
        self._cuts[key] = number = self._cuts.get(key, 0) + 1
        self.tell(
            f"the link of {what} between {first} and {second} is cut" + (f" for {seconds:g} s" if seconds else "")
        )
        if number == 1:
            self._link_changed(what)
        if seconds is not None:
            self.timeline.after(seconds, lambda: self.mend(what, first, second))

    def mend(self, what: str, first: str, second: str) -> None:
        """Mend one cut. Nothing if there is none."""
        key = (what, frozenset({first, second}))
        if not self._cuts.get(key):
            return
        self._cuts[key] -= 1
        if not self._cuts[key]:
            self.tell(f"the link of {what} between {first} and {second} is back")
            self._link_changed(what)

    def _link_changed(self, what: str) -> None:
        self._all_write_soon()
        if what == DRBD:
            for resource in self.resources.values():
                resource.link_changed()
        else:
            for migration in self.migrations:
                migration.path_changed()

    def kill_daemon(self, node: str, back_s: float | None = None) -> None:
        """Kill a libvirt daemon; it is started again after ``back_s`` (the settings' if not given)."""
        host = self.hosts[node]
        if not host.answers_libvirt:
            return
        self.tell(f"libvirtd of {node} is killed")
        host.daemon = False
        for migration in list(self.migrations):
            if migration.source == node:
                migration.source_daemon_killed()
            elif migration.target == node:
                migration.target_daemon_killed()
        booted = host.booted_at_s

        def back() -> None:
            if host.powered and host.booted_at_s == booted:
                self.start_daemon(node)

        self.timeline.after(self.settings.daemon_s if back_s is None else back_s, back)

    def start_daemon(self, node: str) -> None:
        """The daemon is back, and finds what runs. Nothing if it answers."""
        host = self.hosts[node]
        if host.daemon or not host.powered:
            return
        self.tell(f"libvirtd of {node} is back")
        host.daemon = True
        for definition in host.definitions.values():
            definition.off = "unknown"
        for copy in list(host.copies.values()):
            if copy.incoming:  # its source's connection has gone with the old daemon
                self.end_copy(copy)
                self.emit(node, copy.guest.uuid, "stopped failed")
        for migration in list(self.migrations):
            if migration.source == node:
                migration.source_daemon_back()

    def kill_qemu(self, node: str, guest: Guest) -> None:
        """Kill the guest's process on a node. Nothing if there is none."""
        copy = self.hosts[node].copies.get(guest.uuid)
        if copy is None:
            return
        self.tell(f"{guest.name}'s QEMU on {node} is killed")
        self.end_copy(copy, reason="crashed", cause=f"its QEMU on {node} was killed")
        self.emit(node, guest.uuid, "stopped crashed")

    def power_cut(self, node: str, back_s: float | None = None) -> None:
        """The node loses its power; it is switched on again after ``back_s``, if given."""
        host = self.hosts[node]
        if not host.powered:
            return
        self.tell(f"{node} loses its power")
        host.powered = False
        self._all_write_soon()
        for guard in host.guards.values():
            guard.end()
        host.tokens, host.guards = {}, {}
        self._copies_lost(host)
        for resource in self.resources.values():
            if node in resource.nodes:
                resource.power_cut(node)
        for migration in list(self.migrations):
            if migration.source == node:
                migration.source_node_died()
            elif migration.target == node:
                migration.path_changed()
        for hearer in self.hearers:
            hearer.way_changed()
        if back_s is not None:
            self.timeline.after(back_s, lambda: self.power_on(node))

    def _copies_lost(self, host: Host) -> None:
        copies, host.copies, host.jobs = list(host.copies.values()), {}, {}
        for copy in copies:
            copy.state, copy.holds = DomainState.OFF, []
            if not copy.incoming and not copy.older and not self._others(copy):
                self._ended(copy.guest, f"{host.name} lost its power")
            copy.guest.lost.append((self.now, copy))

    def _ended(self, guest: Guest, cause: str) -> None:
        guest.ended_by, guest.ended_at_s = cause, self.now

    def power_on(self, node: str) -> None:
        """Switch it on: DRBD and libvirt are there after the boot, and what has autostart is started."""
        host = self.hosts[node]
        if not host.powered:
            self.timeline.after(self.settings.boot_s, lambda: self._booted(host))

    def _booted(self, host: Host) -> None:
        if host.powered:
            return
        self.tell(f"{host.name} has booted")
        host.powered, host.daemon, host.booted_at_s = True, True, self.now
        for definition in host.definitions.values():
            definition.off = "unknown"
        for resource in self.resources.values():
            if host.name in resource.nodes:
                resource.boot(host.name)
        for migration in self.migrations:
            migration.path_changed()
        for hearer in self.hearers:
            hearer.way_changed()
        self.timeline.after(self.settings.autostart_s, lambda: self._autostart(host))

    def _autostart(self, host: Host) -> None:
        if not host.answers_libvirt:
            return
        with self.acting(f"{host.name}'s boot"):
            for definition in list(host.definitions.values()):
                if definition.autostart and definition.guest.uuid not in host.copies:
                    try:
                        self.start(definition.guest, host.name)
                    except KernelRefused as refusal:
                        self.tell(f"{host.name} cannot autostart {definition.guest.name}: {refusal.words}")

    def kill_guard(self, node: str, guest: Guest) -> None:
        """Kill the guest's guard on a node; its files stay. Nothing if there is none."""
        guard = self.hosts[node].guards.get(guest.uuid)
        if guard is not None:
            self.tell(f"the guard on {node} is killed")
            guard.end()

    def heal(self) -> None:
        """Mend every link, switch every node on, start every daemon, and let every controller reach every node."""
        for key in [key for key, number in self._cuts.items() if number]:
            self._cuts[key] = 0
            self.tell(f"the link of {key[0]} between {' and '.join(sorted(key[1]))} is mended")
            self._link_changed(key[0])
        for name, host in self.hosts.items():
            if host.powered:
                self.start_daemon(name)
            else:
                self.power_on(name)
        for resource in self.resources.values():
            for name in resource.nodes:
                if self.hosts[name].powered:
                    resource.bring_up(name)
        for hearer in self.hearers:
            hearer.way_mended()

    def _replication_changed(self, resource: Replicated) -> None:
        self.changes += 1
        self._all_write_soon()
        for hearer in self.hearers:
            hearer.see(resource)
