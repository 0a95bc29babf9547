"""`LibvirtHypervisor`: the hypervisor adapter. Fulfils `lvmigrate.protocols.Hypervisor`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import Event
from typing import Any, Final

import libvirt
import structlog

from hv import flags, xml
from hv.adopted import AdoptedCopy
from hv.bounded import bounded
from hv.connections import Connections
from hv.copy import LibvirtCopy, nothing
from hv.downtime import limited
from hv.job import Job
from hv.keeping import keeping
from hv.needs import needs
from hv.observed import job_of, observed, one_of_many
from hv.offer import needed, offered
from hv.ports import Ports
from hv.version import version
from lvmigrate.domain import Activity, Domain, Host
from lvmigrate.errors import Code, CommandFailed, MoveAborted, NodeUnreachable
from lvmigrate.node import Node
from lvmigrate.plan import Options
from lvmigrate.premises import RESUME_KILLS, Needs, Offer, dotted

_log = structlog.get_logger()

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


#: How often it is looked whether a measurement is done, in seconds.
_MEASURED_S: Final = 0.1


class LibvirtHypervisor:
    """Guests on nodes whose libvirt drives QEMU/KVM.

    ``connect_timeout_s``: how long a node may take to let itself be connected to; ``call_timeout_s``: how long libvirt
    may take to answer any other call.
    """

    def __init__(
        self, nodes: Mapping[str, Node], *, connect_timeout_s: float = 15.0, call_timeout_s: float = 60.0
    ) -> None:
        self._nodes = nodes
        self.call_timeout_s = call_timeout_s
        self._connections = Connections(nodes, connect_timeout_s=connect_timeout_s)
        self._ports = Ports()

    @bounded("Looking for the guest")
    def domain(self, node: str, name: str) -> Domain | None:
        """The guest as ``node`` knows it now, by name or UUID; ``None``: the node answered and knows none.

        Of a copy that is coming in, libvirt does not tell the ``virt_type``, and of its disks the names and paths only.
        """
        try:
            domain = self._lookup(node, name)
            # The job first: one that ends in between is then seen as still there, or its outcome in the state.
            return observed(node, domain, job_of(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    @bounded("Listing the guests")
    def domains(self, node: str) -> tuple[Domain, ...]:
        """Every guest that ``node`` knows now, running or not. One that ends meanwhile is left out.

        A job is told of those that are paused only, and of one whose QEMU does not answer as little as of a copy that
        is coming in (`domain`).
        """
        found = []
        for domain in self._connections.to(node).listAllDomains():
            try:
                found.append(one_of_many(node, domain))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
        return tuple(found)

    @bounded("Asking for the node's memory and versions")
    def host(self, node: str) -> Host:
        """What the node itself offers now."""
        connection = self._connections.to(node)
        memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        cpus = connection.getInfo()[2]
        return Host(
            node=node,
            free_memory_kib=sum(int(memory.get(key, 0)) for key in ("free", "buffers", "cached")),
            libvirt_version=version(connection.getLibVersion()),
            qemu_version=version(connection.getVersion()),
            memory_kib=int(memory.get("total", 0)),
            cpus=cpus,
        )

    @bounded("Reading what the guest needs")
    def needs(self, node: str, uuid: str) -> Needs:
        """What the running guest asks of the node that it is to run on."""
        return needed(self._connections.to(node), self._lookup(node, uuid))

    def needs_described(self, text: str) -> Needs:
        """The same of the guest that a definition describes, as far as that tells it. Asks no node."""
        return needs(text)

    @bounded("Asking what the node has for the guest")
    def offer(self, node: str, needs: Needs) -> Offer:
        """What ``node``'s libvirt has of that. Its first answer for an emulator takes as long as that one's start."""
        return offered(node, self._connections.to(node), needs)

    def activity(self, node: str, uuid: str, seconds: int, *, cancel: Event) -> Activity:
        """What the running guest does to its memory, by libvirt's page sampling, which needs no KVM.

        Once ``cancel`` is set, it is waited for no longer; the sampling ends by itself.
        """
        begun = self._measure(node, uuid, seconds)
        deadline = time.monotonic() + seconds + self.call_timeout_s
        while not cancel.wait(_MEASURED_S):
            found = self._measured(node, uuid, begun)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise NodeUnreachable(
                    node, "no dirty rate was measured", hint=f"Look with `virsh domstats --dirtyrate {uuid}` there."
                )
        raise MoveAborted("The measurement was stopped as asked.", hint="Nothing is left to do.")

    @bounded("Measuring what the guest dirties")
    def _measure(self, node: str, uuid: str, seconds: int) -> int:
        """Begin; when the calculation before it had begun."""
        domain = self._lookup(node, uuid)
        before = _dirty_rate(domain).get("dirtyrate.calc_start_time", -1)
        domain.startDirtyRateCalc(seconds)
        return int(before)

    @bounded("Measuring what the guest dirties")
    def _measured(self, node: str, uuid: str, begun: int) -> Activity | None:
        domain = self._lookup(node, uuid)
        found = _dirty_rate(domain)
        measured = found.get("dirtyrate.calc_status") == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED
        if not measured or found.get("dirtyrate.calc_start_time") == begun:
            return None
        most = domain.maxMemory() * 1024
        resident = int(domain.memoryStats().get("rss", domain.maxMemory())) * 1024
        return Activity(
            resident_bytes=min(most, resident), dirty_rate=int(found["dirtyrate.megabytes_per_second"]) << 20
        )

    def copy_memory(self, domain: Domain, target: str, options: Options) -> LibvirtCopy:
        """Start to copy the guest's memory, peer-to-peer, to ``target``; see `hv.flags` for what is never passed.

        It arrives paused, unless ``options.switch`` is `Switch.FAST` or the copy may become a post-copy: then the
        target's libvirt starts it, and when libvirt's last reply is lost the source's daemon resumes its own copy: the
        caller must end that one before.
        """
        limit_ms = max(1, round(options.downtime_limit_s * 1000))
        return self._copy(domain, target, options, flags.flags(domain, options), limit_ms=limit_ms)

    def resume_post_copy(self, domain: Domain, target: str, options: Options) -> LibvirtCopy:
        """Connect the two ends of a post-copy that broke (VIR_MIGRATE_POSTCOPY_RESUME).

        Refused by libvirt while QEMU's own stream still lives, and here where the target's libvirt is one whose daemon
        dies of it (`CommandFailed`).
        """
        self._can_resume(target)
        resuming = libvirt.VIR_MIGRATE_POSTCOPY | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
        return self._copy(domain, target, options, flags.flags(domain, options) | resuming, limit_ms=None)

    @bounded("Asking for libvirt's version")
    def _can_resume(self, node: str) -> None:
        there = version(self._connections.to(node).getLibVersion())
        first, mended = RESUME_KILLS
        if first <= there < mended:
            raise CommandFailed(
                node,
                "Connecting the two ends of the post-copy",
                status=libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
                code=Code.OPTION_UNSUPPORTED,
                detail=f"the daemon of libvirt {dotted(there)} dies of it",
                hint=f"Update libvirt on {node} to {dotted(mended)} or later; guests run on.",
            )

    def _copy(self, domain: Domain, target: str, options: Options, wanted: int, *, limit_ms: int | None) -> LibvirtCopy:
        peer = self._nodes[target]
        log = _log.bind(node=domain.node, target=target, uuid=domain.uuid)

        def prepare(handle: libvirt.virDomain) -> Callable[[], None]:
            return nothing if limit_ms is None else limited(handle, limit_ms)

        def call(handle: libvirt.virDomain) -> None:
            with self._ports.taken(peer) as port, self._connections.listening(lambda *_: None, completed, pass_began):
                parameters = flags.parameters(domain, options, peer, port)
                log.debug("migrate_to_uri3", uri=peer.peer_uri, parameters=parameters, flags=wanted)
                handle.migrateToURI3(peer.peer_uri, parameters, wanted)

        def completed(node: str, uuid: str, statistics: dict[str, Any]) -> None:
            if (node, uuid) == (domain.node, domain.uuid):
                copy.completed(statistics)

        def pass_began(node: str, uuid: str, number: int) -> None:
            if (node, uuid) == (domain.node, domain.uuid):
                copy.pass_began(number)

        copy = LibvirtCopy(domain.node, partial(self._lent, domain.node, domain.uuid), call, prepare=prepare)
        return copy

    def adopt(self, node: str, uuid: str) -> AdoptedCopy:
        """Follow the outgoing job that ``node`` has for the guest, whoever started it. Asks nothing yet.

        See `AdoptedCopy`: the node is asked every half second while somebody waits, and at once after an event.
        """
        job = Job(node, partial(self._lent, node, uuid))

        @contextmanager
        def listening(wake: Callable[[], None]) -> Iterator[None]:
            def event(where: str, of: str, _event: str) -> None:
                if (where, of) == (node, uuid):
                    wake()

            def completed(where: str, of: str, statistics: dict[str, Any]) -> None:
                if (where, of) == (node, uuid):
                    job.completed(statistics)
                    wake()

            with self._connections.listening(event, completed):
                yield

        return AdoptedCopy(node, job, look=lambda: self.domain(node, uuid), listening=listening)

    @bounded("Aborting the guest's migration")
    def abort_job(self, node: str, uuid: str) -> None:
        """Cancel whatever migration job ``node`` has for the guest. Nothing if it has none."""
        try:
            self._lookup(node, uuid).abortJob()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                raise

    @bounded("Resuming the guest")
    def resume(self, node: str, uuid: str) -> None:
        """Let the guest's CPUs run. Nothing if they do."""
        domain = self._lookup(node, uuid)
        if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            domain.resume()

    @bounded("Changing the guest's memory")
    def set_memory(self, node: str, uuid: str, kib: int) -> None:
        """Tell the running guest how much memory it is to have: its balloon's driver does that when it gets to it."""
        self._lookup(node, uuid).setMemoryFlags(kib, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    @bounded("Suspending the guest")
    def suspend(self, node: str, uuid: str) -> None:
        """Stop the guest's CPUs. Nothing if they stand."""
        domain = self._lookup(node, uuid)
        if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
            domain.suspend()

    @bounded("Ending the paused copy of the guest")
    def discard(self, node: str, uuid: str) -> None:
        """End a copy that waits paused on ``node``; raises `CommandFailed` unless it is seen paused right before.

        Also while its outgoing job hangs in the last phase, or its incoming one anywhere: libvirt ends the process
        first and the job with it (measured: 0.2 s).
        """
        domain = self._found(node, uuid)
        if domain is None:
            return
        state = domain.state()[0]
        if state == libvirt.VIR_DOMAIN_SHUTOFF:
            return
        if state != libvirt.VIR_DOMAIN_PAUSED:
            raise _refusal(node, "Ending the paused copy of the guest (it is not paused)")
        domain.destroy()

    @bounded("Removing the guest's definition")
    def undefine(self, node: str, uuid: str) -> None:
        """Remove the guest's definition from ``node`` and keep its NVRAM and TPM state. Nothing if there is none.

        Raises `CommandFailed` (`Code.TPM`) where a libvirt before 8.9 would delete the state of its TPM with it.
        """
        domain = self._found(node, uuid)
        if domain is None:
            return
        if domain.isActive():
            raise _refusal(node, "Removing the guest's definition (the guest is active there)")
        domain.undefineFlags(keeping(node, domain))

    @bounded("Starting the guest")
    def start(self, node: str, uuid: str) -> None:
        """Start the guest that is defined on ``node`` from its disks. Nothing if it is active there."""
        domain = self._lookup(node, uuid)
        if not domain.isActive():
            domain.create()

    @bounded("Asking the guest to shut down")
    def shut_down(self, node: str, uuid: str) -> None:
        """Ask the guest to shut down, by whatever way it listens to (ACPI, or its agent)."""
        self._lookup(node, uuid).shutdown()

    @bounded("Switching the guest off")
    def power_off(self, node: str, uuid: str) -> None:
        """End the guest's process on ``node`` at once. Nothing if there is none."""
        domain = self._found(node, uuid)
        if domain is None:
            return
        if domain.isActive():
            domain.destroy()

    @bounded("Reading the guest's definition")
    def definition(self, node: str, uuid: str) -> str | None:
        """The guest's definition on ``node`` in libvirt's words, secrets included; ``None``: it has none."""
        domain = self._found(node, uuid)
        if domain is None:
            return None
        if not domain.isPersistent():
            return None
        return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))

    def described(self, node: str, text: str) -> Domain:
        """The guest that ``text`` describes, as ``node`` would know it. Asks no node."""
        return xml.described(node, text)

    @bounded("Defining the guest")
    def define(self, node: str, text: str, *, left_on: str | None = None) -> None:
        """Define the guest on ``node`` as ``text`` says, with the tombstone or without one."""
        domain = self._connections.to(node).defineXML(text)
        stone = xml.tombstone(left_on)
        if stone is not None or xml.left_on(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) is not None:
            domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                stone,
                "lvmigrate",
                xml.TOMBSTONE,
                libvirt.VIR_DOMAIN_AFFECT_CONFIG,
            )

    @bounded("Setting the guest's autostart")
    def set_autostart(self, node: str, uuid: str, *, on: bool) -> None:
        """Whether the node starts the guest when it boots."""
        self._lookup(node, uuid).setAutostart(int(on))

    @contextmanager
    def on_change(self, uuid: str, call: Callable[[str, str], None]) -> Iterator[None]:
        """While in the context, ``call(node, event)`` for each life-cycle event of this guest on a connected node."""

        def listener(node: str, of: str, event: str) -> None:
            if of == uuid:
                call(node, event)

        with self._connections.listening(listener):
            yield

    def close(self) -> None:
        """Close every connection. Jobs that run on the nodes go on."""
        self._connections.close()

    def calling(self, node: str) -> AbstractContextManager[None]:
        """What every call to ``node`` is made in (`hv.bounded`)."""
        return self._connections.calling(node)

    @contextmanager
    def _lent(self, node: str, uuid: str) -> Iterator[libvirt.virDomain]:
        """Looked up anew each time: the connection may have broken, and the daemon have been restarted."""
        with self.calling(node):
            yield self._lookup(node, uuid)

    def _found(self, node: str, uuid: str) -> Any:  # noqa: ANN401 -- libvirt has no types
        """The guest as libvirt's own object; ``None``: the node answered and knows none."""
        try:
            return self._lookup(node, uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _lookup(self, node: str, name: str) -> libvirt.virDomain:
        connection = self._connections.to(node)
        if _UUID.fullmatch(name):
            return connection.lookupByUUIDString(name)
        return connection.lookupByName(name)


def _refusal(node: str, what: str) -> CommandFailed:
    return CommandFailed(
        node,
        what,
        status=libvirt.VIR_ERR_OPERATION_INVALID,
        code=Code.HYPERVISOR_FAILED,
        hint="Look at both nodes with `lvmigrate status`; nothing was changed.",
    )


def _dirty_rate(domain: libvirt.virDomain) -> dict[str, Any]:
    found = domain.connect().domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_DIRTYRATE)
    return dict(found[0][1]) if found else {}
