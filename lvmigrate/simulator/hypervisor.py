"""A controller's libvirt: fulfils `lvmigrate.protocols.Hypervisor` over a simulated world.

Long, because every method of the Protocol stands here.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, NoReturn, TypeVar

from lvmigrate.domain import Activity, Domain, DomainState, Host, JobKind
from lvmigrate.errors import Code, CommandFailed
from lvmigrate.plan import Options
from lvmigrate.premises import Needs, Offer
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd, MemoryCopy
from lvmigrate.simulator.calls import Kind
from lvmigrate.simulator.controller import Controller
from lvmigrate.simulator.drbd import KernelRefused
from lvmigrate.simulator.guests import Copy, Guest
from lvmigrate.simulator.host import Phase
from lvmigrate.simulator.migration import Migration

T = TypeVar("T")

#: How long a client waits for a daemon that has gone silent.
_CLIENT_S: Final = 15.0
#: How often a job of somebody else's is looked at.
_LOOK_S: Final = 0.5
#: How long a guest takes to give memory back.
_BALLOON_S: Final = 0.5
#: Nothing out of the ordinary.
_NEEDS: Final = Needs(emulator="/usr/bin/qemu-system-x86_64", arch="x86_64", machine="pc", virt_type="kvm")
_OPERATION_INVALID: Final = 55
_NO_DOMAIN: Final = 42


class SimulatedHypervisor:
    """Guests on nodes."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._world = controller.world

    def domain(self, node: str, name: str) -> Domain | None:
        """The guest as ``node`` knows it now, by name or UUID; ``None``: the node answered and knows none."""

        def look() -> Domain | None:
            guest = self._guest(name)
            return None if guest is None else self._observed(node, guest, job=True)

        return self._call("domain", node, look, acts=False)

    def domains(self, node: str) -> tuple[Domain, ...]:
        """Every guest that ``node`` knows now, running or not; their jobs are not asked for."""

        def look() -> tuple[Domain, ...]:
            found = (self._observed(node, guest, job=False) for guest in self._world.guests.values())
            return tuple(domain for domain in found if domain is not None)

        return self._call("domains", node, look, acts=False)

    def host(self, node: str) -> Host:
        """What the node itself offers now."""

        def look() -> Host:
            free = self._world.hosts[node].free_memory_kib
            version = (11, 3, 0) if self._world.settings.incoming_writes else (9, 0, 0)
            return Host(node=node, free_memory_kib=free, libvirt_version=version, qemu_version=(10, 0, 2))

        return self._call("host", node, look, acts=False)

    def needs(self, node: str, uuid: str) -> Needs:
        """Nothing out of the ordinary."""

        def look() -> Needs:
            self._copy(node, uuid, "Reading what the guest needs")
            return _NEEDS

        return self._call("needs", node, look, acts=False)

    def needs_described(self, text: str) -> Needs:  # noqa: ARG002 -- as the Protocol has it
        """The same. Asks no node."""
        return _NEEDS

    def offer(self, node: str, needs: Needs) -> Offer:  # noqa: ARG002 -- as the Protocol has it
        """All of it, on every node."""
        return self._call("offer", node, lambda: Offer(node=node), acts=False)

    def activity(self, node: str, uuid: str, seconds: int, *, cancel: threading.Event) -> Activity:  # noqa: ARG002 -- as the Protocol has it
        """A guest that does little."""

        def look() -> Activity:
            copy = self._copy(node, uuid, "Measuring what the guest dirties")
            return Activity(resident_bytes=copy.guest.memory_kib * 1024, dirty_rate=1 << 20)

        self._controller.sleep(seconds)
        return self._call("activity", node, look, acts=False)

    def copy_memory(self, domain: Domain, target: str, options: Options) -> MemoryCopy:
        """Start to copy the running guest's memory, peer-to-peer, to ``target``."""

        def start() -> SimulatedCopy:
            node, guest = domain.node, self._world.guests[domain.uuid]
            if guest.uuid not in self._world.hosts[node].copies:
                raise self._no_domain(node, "Starting the copy")
            if self._world.job_of(guest) is not None:
                raise self._refusal(node, "Starting the copy (another job is active)")
            return SimulatedCopy(self._controller, Migration(self._world, guest, node, target, options.switch))

        return self._call("copy_memory", domain.node, start, acts=True)

    def resume_post_copy(self, domain: Domain, target: str, options: Options) -> MemoryCopy:  # noqa: ARG002 -- as the Protocol has it
        """Not simulated: libvirt's refusal of a guest that is in no post-copy."""
        return self._call(
            "resume_post_copy", domain.node, lambda: self._refused(domain.node, "Resuming the post-copy"), acts=True
        )

    def adopt(self, node: str, uuid: str) -> MemoryCopy:
        """Follow the outgoing job that ``node`` has for the guest, whoever started it. Asks nothing yet."""
        return AdoptedCopy(self._controller, node, uuid)

    def abort_job(self, node: str, uuid: str) -> None:
        """Ask ``node`` to cancel whatever migration job it has for the guest."""
        self._call("abort_job", node, lambda: _abort(self._controller, node, uuid), acts=True)

    def resume(self, node: str, uuid: str) -> None:
        """Let the guest's CPUs run."""

        def act() -> None:
            copy = self._copy(node, uuid, "Resuming the guest")
            if not copy.runs and (copy.incoming or uuid in self._world.hosts[node].jobs):
                raise self._refusal(node, "Resuming the guest (cannot acquire state change lock)")
            if copy.reason == "i/o error" and not copy.runs:
                self._world.tell(f"{copy.guest.name} on {node} is resumed after an I/O error")
            self._world.resume(node, uuid)

        self._call("resume", node, act, acts=True)

    def set_memory(self, node: str, uuid: str, kib: int) -> None:
        """Tell the running guest to have so much memory: it obeys a moment later, wherever it runs then."""

        def act() -> None:
            copy = self._copy(node, uuid, "Changing the guest's memory")
            self._world.timeline.after(_BALLOON_S, lambda: self._world.balloon(copy, kib))

        self._call("set_memory", node, act, acts=True)

    def suspend(self, node: str, uuid: str) -> None:
        """Stop the guest's CPUs."""

        def act() -> None:
            self._copy(node, uuid, "Suspending the guest")
            self._world.suspend(node, uuid)

        self._call("suspend", node, act, acts=True)

    def discard(self, node: str, uuid: str) -> None:
        """End a copy that waits *paused* on ``node``. Refuses (`CommandFailed`) unless it is seen paused."""

        def act() -> None:
            copy = self._world.hosts[node].copies.get(uuid)
            if copy is not None and copy.state is not DomainState.PAUSED:
                raise self._refusal(node, "Ending the paused copy of the guest (it is not paused)")
            self._world.discard(node, uuid)

        self._call("discard", node, act, acts=True)

    def undefine(self, node: str, uuid: str) -> None:
        """Remove the guest's definition from ``node``. Refuses (`CommandFailed`) while the guest is active there."""

        def act() -> None:
            if uuid in self._world.hosts[node].copies:
                raise self._refusal(node, "Removing the guest's definition (the guest is active there)")
            self._world.undefine(node, uuid)

        self._call("undefine", node, act, acts=True)

    def start(self, node: str, uuid: str) -> None:
        """Start the guest that is defined on ``node`` from its disks. Nothing if it is active there."""

        def act() -> None:
            if uuid in self._world.hosts[node].copies:
                return
            if uuid not in self._world.hosts[node].definitions:
                raise self._no_domain(node, "Starting the guest")
            try:
                self._world.start(self._world.guests[uuid], node)
            except KernelRefused as refusal:
                raise self._refusal(node, f"Starting the guest ({refusal.words})") from refusal

        self._call("start", node, act, acts=True)

    def shut_down(self, node: str, uuid: str) -> None:
        """Ask the guest to shut down."""

        def act() -> None:
            self._copy(node, uuid, "Shutting the guest down")
            self._world.shut_down(node, uuid)

        self._call("shut_down", node, act, acts=True)

    def power_off(self, node: str, uuid: str) -> None:
        """End the guest's process on ``node`` at once. Nothing if there is none."""
        self._call("power_off", node, lambda: self._world.power_off(node, uuid), acts=True)

    def definition(self, node: str, uuid: str) -> str | None:
        """The guest's definition on ``node``; ``None``: it has none."""

        def look() -> str | None:
            found = self._world.hosts[node].definitions.get(uuid)
            return None if found is None else f"<domain><name>{found.guest.name}</name><uuid>{uuid}</uuid></domain>"

        return self._call("definition", node, look, acts=False)

    def described(self, node: str, text: str) -> Domain:
        """The guest of that name and UUID, which is all that a definition says here. Asks no node."""
        guest = self._world.guests.get(_uuid(text))
        if guest is None:
            raise CommandFailed(
                node, "Reading the guest's definition", status=0, code=Code.DEFINITION_WRONG, hint="Look."
            )
        return self._as_defined(node, guest)

    def define(self, node: str, text: str, *, left_on: str | None = None) -> None:
        """Define the guest on ``node`` as ``text`` says: here it names it, and no more."""
        self._call("define", node, lambda: self._world.define(node, _uuid(text), left_on), acts=True)

    def set_autostart(self, node: str, uuid: str, *, on: bool) -> None:
        """Whether the node starts the guest when it boots."""

        def act() -> None:
            definition = self._world.hosts[node].definitions.get(uuid)
            if definition is None:
                raise self._no_domain(node, "Setting the guest's autostart")
            definition.autostart = on
            self._world.tell(f"autostart of {definition.guest.name} on {node}: {on}, by {self._world.actor}")

        self._call("set_autostart", node, act, acts=True)

    def on_change(self, uuid: str, call: Callable[[str, str], None]) -> AbstractContextManager[None]:
        """While in the context, ``call(node, event)`` for each life-cycle event of this guest."""
        return self._controller.listening(uuid, call)

    def close(self) -> None:
        """Nothing is open."""

    # ---- how

    def _call(self, method: str, node: str, act: Callable[[], T], *, acts: bool) -> T:
        return self._controller.call(method, node, act, acts=acts, libvirt=True, what=method.replace("_", " "))

    def _guest(self, name: str) -> Guest | None:
        return next((g for g in self._world.guests.values() if name in (g.name, g.uuid)), None)

    def _copy(self, node: str, uuid: str, what: str) -> Copy:
        copy = self._world.hosts[node].copies.get(uuid)
        if copy is None:
            raise self._no_domain(node, what)
        return copy

    def _observed(self, node: str, guest: Guest, *, job: bool) -> Domain | None:
        host = self._world.hosts[node]
        copy, definition = host.copies.get(guest.uuid), host.definitions.get(guest.uuid)
        if copy is None and definition is None:
            return None
        kind = JobKind.NONE
        if job and guest.uuid in host.jobs:
            kind = JobKind.OUTGOING
        elif job and copy is not None and copy.incoming:
            kind = JobKind.INCOMING
        return dataclasses.replace(
            self._as_defined(node, guest),
            state=DomainState.OFF if copy is None else copy.state,
            reason=copy.reason if copy is not None else "" if definition is None else definition.off,
            job=kind,
            persistent=definition is not None,
            autostart=definition is not None and definition.autostart,
            current_kib=guest.memory_kib if guest.current_kib is None else guest.current_kib,
            left_on=None if definition is None else definition.left_on,
        )

    def _as_defined(self, node: str, guest: Guest) -> Domain:
        return Domain(
            node=node,
            name=guest.name,
            uuid=guest.uuid,
            state=DomainState.OFF,
            reason="",
            job=JobKind.NONE,
            persistent=True,
            autostart=False,
            virt_type="kvm",
            memory_kib=guest.memory_kib,
            vcpus=1,
            disks=tuple(disk.described for disk in guest.disks),
        )

    def _no_domain(self, node: str, what: str) -> CommandFailed:
        return CommandFailed(
            node, what, status=_NO_DOMAIN, code=Code.HYPERVISOR_FAILED, hint="Look.", detail="Domain not found"
        )

    def _refused(self, node: str, what: str) -> NoReturn:
        raise self._refusal(node, what)

    def _refusal(self, node: str, what: str) -> CommandFailed:
        return CommandFailed(node, what, status=_OPERATION_INVALID, code=Code.HYPERVISOR_FAILED, hint="Look.")


def _uuid(definition: str) -> str:
    return definition.partition("<uuid>")[2].partition("</uuid>")[0]


def _abort(controller: Controller, node: str, uuid: str) -> None:
    job = controller.world.hosts[node].jobs.get(uuid)
    if job is not None:
        accepted = job.abort()
        controller.world.tell(f"abort of the job on {node}: {'accepted' if accepted else 'refused'}")


class SimulatedCopy:
    """A copy of memory that this controller has started: the call lasts as long as the job, or its own connection."""

    def __init__(self, controller: Controller, job: Migration) -> None:
        self._controller = controller
        self._world = controller.world
        self._job = job
        self._end: CopyEnd | None = None
        self._silent_since: float | None = None
        self._woken = False

    def progress(self) -> MemoryProgress | None:
        """The newest statistics; none before the transfer."""
        self._controller.arrive("progress", self._job.source, acts=False)
        if self._job.phase in (Phase.BEGIN, Phase.PREPARE):
            return None
        total, remaining = self._job.total, self._job.remaining
        return MemoryProgress(
            elapsed_s=self._world.now - self._job.begun_at,
            total=total,
            remaining=remaining,
            processed=total - remaining,
            rate=1 << 29,
            dirty_rate=1 << 20,
            iteration=1,
            expected_downtime_s=0.1,
            percent=min(99.0, 100.0 * (total - remaining) / total) if total else 0.0,
        )

    def abort(self) -> None:
        """Ask the source to give up; an answer that is lost is nobody's concern."""
        fault = self._controller.arrive("abort", self._job.source, acts=True)
        if fault is Kind.LATE:
            self._world.timeline.after(30.0, lambda: _abort(self._controller, self._job.source, self._job.guest.uuid))
        elif fault not in (Kind.REFUSED_BEFORE, Kind.LOST_BEFORE, Kind.HANGS_BEFORE) and self._controller.reaches(
            self._job.source, libvirt=True
        ):
            _abort(self._controller, self._job.source, self._job.guest.uuid)
        if fault is Kind.KILLED_AFTER:
            self._controller.kill()
        if fault is Kind.STOPPED_AFTER:
            self._controller.stop()
        self._controller.wake()

    def limit_downtime(self, seconds: float) -> None:
        """A copy here always comes to its end."""

    def start_post_copy(self) -> None:
        """Not simulated: libvirt's refusal of a copy that was not begun such that it can become one."""
        raise CommandFailed(
            self._job.source,
            "Switching to post-copy",
            status=_OPERATION_INVALID,
            code=Code.HYPERVISOR_FAILED,
            hint="Wait for the copy's end.",
        )

    def wake(self) -> None:
        """End a wait that is under way, or the next one."""
        self._woken = True

    def wait(self, timeout_s: float, *, cancel: threading.Event | None = None) -> CopyEnd | None:  # noqa: ARG002 -- time stands still here while anybody could set it
        """How the call ended, or ``None`` if it still runs after ``timeout_s``, or was woken."""
        deadline = self._controller.now() + timeout_s
        if self._controller.arrive("wait", self._job.source, acts=False) is Kind.BROKEN:
            self._end = self._end or CopyEnd(ok=False, detail="Cannot recv data: Connection reset by peer")
        while True:
            self._controller.wake()
            self._end = self._end or self._ended()
            if self._end is not None or self._world.now >= deadline or self._woken:
                self._woken = False
                return self._end
            self._world.timeline.step(deadline)

    def _ended(self) -> CopyEnd | None:
        if self._controller.cut_from[self._job.source] or not self._world.hosts[self._job.source].powered:
            if self._silent_since is None:
                self._silent_since = self._world.now
            silent = self._world.now - self._silent_since >= _CLIENT_S
            return CopyEnd(ok=False, detail="internal error: client socket is closed") if silent else None
        self._silent_since = None
        return self._job.end


class AdoptedCopy:
    """A job that somebody else has started: the node is asked for it again and again."""

    def __init__(self, controller: Controller, node: str, uuid: str) -> None:
        self._controller = controller
        self._world = controller.world
        self._node = node
        self._uuid = uuid
        self._end: CopyEnd | None = None
        self._woken = False

    def progress(self) -> MemoryProgress | None:
        """Nothing is known of it here."""
        return None

    def abort(self) -> None:
        """Ask the node to give up."""
        fault = self._controller.arrive("adopted.abort", self._node, acts=True)
        refused = fault in (Kind.REFUSED_BEFORE, Kind.LOST_BEFORE, Kind.HANGS_BEFORE)
        if not refused and self._controller.reaches(self._node, libvirt=True):
            _abort(self._controller, self._node, self._uuid)
        if fault is Kind.KILLED_AFTER:
            self._controller.kill()
        self._controller.wake()

    def limit_downtime(self, seconds: float) -> None:
        """A copy here always comes to its end."""

    def start_post_copy(self) -> None:
        """Not simulated: libvirt's refusal."""
        raise CommandFailed(
            self._node,
            "Switching to post-copy",
            status=_OPERATION_INVALID,
            code=Code.HYPERVISOR_FAILED,
            hint="Wait for the copy's end.",
        )

    def wake(self) -> None:
        """End a wait that is under way, or the next one."""
        self._woken = True

    def wait(self, timeout_s: float, *, cancel: threading.Event | None = None) -> CopyEnd | None:  # noqa: ARG002 -- as above
        """How the job ended; ``None``: it runs, or the node gave no answer, after ``timeout_s``, or when woken."""
        deadline = self._controller.now() + timeout_s
        self._controller.arrive("adopted.wait", self._node, acts=False)
        while self._end is None:
            self._controller.wake()
            host = self._world.hosts[self._node]
            if self._controller.reaches(self._node, libvirt=True) and self._uuid not in host.jobs:
                copy = host.copies.get(self._uuid)
                detail = "" if copy is None else f"the guest is {copy.state.value} ({copy.reason}) there"
                self._end = CopyEnd(ok=copy is None, detail=detail)
            elif self._world.now >= deadline or self._woken:
                break
            else:
                self._controller.sleep(min(_LOOK_S, deadline - self._world.now))
        self._woken = False
        return self._end
