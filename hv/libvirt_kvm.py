"""`LibvirtHypervisor`: the hypervisor adapter. Fulfils `lvmigrate.protocols.Hypervisor`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import libvirt
import structlog

from hv import xml
from hv.adopted import AdoptedCopy
from hv.bounded import bounded
from hv.connections import Connections
from hv.copy import LibvirtCopy
from hv.job import Job
from lvmigrate.domain import Domain, DomainDisk, DomainState, Host, JobKind
from lvmigrate.errors import Code, CommandFailed
from lvmigrate.node import Node
from lvmigrate.plan import Options, Switch

_log = structlog.get_logger()

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_STATES: Final = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.IN_SHUTDOWN,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.SUSPENDED,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.OFF,
}

#: virDomain*Reason of libvirt 11.3, in the order of their numbers, for the states whose reason tells a migration
#: something.  As measured: a copy that comes in is "starting up", then paused for "migration" until the end, and one
#: that arrived with VIR_MIGRATE_PAUSED is then paused by "user", as after a suspend.  A source in the last phase is
#: paused for "migration", with its job; without a job, its daemon was restarted in that phase and will do nothing more.
#: A source that its daemon resumed after a failed move: running, "migration canceled"; that it tried to and could
#: not: paused, "api error".
_REASONS: Final[Mapping[int, tuple[str, ...]]] = {
    libvirt.VIR_DOMAIN_RUNNING: (
        "unknown",
        "booted",
        "migrated",
        "restored",
        "from snapshot",
        "unpaused",
        "migration canceled",
        "save canceled",
        "woken up",
        "crashed",
        "post-copy",
        "post-copy failed",
    ),
    libvirt.VIR_DOMAIN_PAUSED: (
        "unknown",
        "user",
        "migration",
        "save",
        "dump",
        "i/o error",
        "watchdog",
        "from snapshot",
        "shutting down",
        "snapshot",
        "crashed",
        "starting up",
        "post-copy",
        "post-copy failed",
        "api error",
    ),
    libvirt.VIR_DOMAIN_SHUTOFF: (
        "unknown",
        "shutdown",
        "destroyed",
        "crashed",
        "migrated",
        "saved",
        "failed",
        "from snapshot",
        "daemon",
    ),
}

_JOB_KINDS: Final = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: JobKind.INCOMING,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: JobKind.OUTGOING,
}


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

    @bounded("Looking for the guest")
    def domain(self, node: str, name: str) -> Domain | None:
        """The guest as ``node`` knows it now, by name or UUID; ``None``: the node answered and knows none.

        Of a copy that is coming in, libvirt does not tell the ``virt_type``, and of its disks the names and paths only.
        """
        try:
            domain = self._lookup(node, name)
            # The job first: one that ends in between is then seen as still there, or its outcome in the state.
            return self._observed(node, domain, _job(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    @bounded("Listing the guests")
    def domains(self, node: str) -> tuple[Domain, ...]:
        """Every guest that ``node`` knows now, running or not. One that ends meanwhile is left out.

        A job is told of those that are paused only.
        """
        found = []
        for domain in self._connections.to(node).listAllDomains():
            try:
                # Only one that is paused can be coming in, and has no XML then.
                paused = domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
                found.append(self._observed(node, domain, _job(domain) if paused else JobKind.NONE))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
        return tuple(found)

    @bounded("Asking for the node's memory and versions")
    def host(self, node: str) -> Host:
        """What the node itself offers now."""
        connection = self._connections.to(node)
        memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        return Host(
            node=node,
            free_memory_kib=sum(int(memory.get(key, 0)) for key in ("free", "buffers", "cached")),
            libvirt_version=_version(connection.getLibVersion()),
            qemu_version=_version(connection.getVersion()),
        )

    def copy_memory(self, domain: Domain, target: str, options: Options) -> LibvirtCopy:
        """Start to copy the running guest's memory, peer-to-peer, to ``target``.

        It arrives paused, unless ``options.switch`` is `Switch.FAST`: then the target's libvirt starts it, and when
        libvirt's last reply is lost the source's daemon resumes its own copy: the caller must end that one before.

        VIR_MIGRATE_UNDEFINE_SOURCE is never passed: libvirt returning OK is no proof, so the source's definition goes
        only when the move has been verified.  VIR_MIGRATE_NON_SHARED_* is never passed: the disks are replicated.
        """
        peer = self._nodes[target]
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
        if options.switch is not Switch.FAST:
            flags |= libvirt.VIR_MIGRATE_PAUSED
        if domain.persistent:
            flags |= libvirt.VIR_MIGRATE_PERSIST_DEST
        parameters: dict[str, Any] = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{_host(peer.migration_address)}"}
        if options.bandwidth_mib_s is not None:
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = options.bandwidth_mib_s
        handle = self._handle(domain.node, domain.uuid)
        log = _log.bind(node=domain.node, target=target, uuid=domain.uuid)

        def prepare() -> None:
            handle.migrateSetMaxDowntime(max(1, round(options.downtime_limit_s * 1000)))

        def call() -> None:
            log.debug("migrate_to_uri3", uri=peer.peer_uri, parameters=parameters, flags=flags)
            with self._connections.listening(lambda *_: None, completed):
                handle.migrateToURI3(peer.peer_uri, parameters, flags)

        def completed(node: str, uuid: str, statistics: dict[str, Any]) -> None:
            if (node, uuid) == (domain.node, domain.uuid):
                copy.completed(statistics)

        copy = LibvirtCopy(domain.node, handle, call, prepare=prepare)
        return copy

    def adopt(self, node: str, uuid: str) -> AdoptedCopy:
        """Follow the outgoing job that ``node`` has for the guest, whoever started it. Asks nothing yet.

        See `AdoptedCopy`: the node is asked every half second while somebody waits, and at once after an event.
        """
        job = Job(
            node,
            # Looked up anew each time: the connection may have broken, and the daemon have been restarted.
            ask=lambda: dict(self._handle(node, uuid).jobStats()),
            abort=lambda: self._handle(node, uuid).abortJob(),
        )

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
        try:
            domain = self._lookup(node, uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            raise
        state = domain.state()[0]
        if state == libvirt.VIR_DOMAIN_SHUTOFF:
            return
        if state != libvirt.VIR_DOMAIN_PAUSED:
            raise _refusal(node, "Ending the paused copy of the guest (it is not paused)")
        domain.destroy()

    @bounded("Removing the guest's definition")
    def undefine(self, node: str, uuid: str) -> None:
        """Remove the guest's definition from ``node`` and keep its NVRAM and TPM state. Nothing if there is none."""
        try:
            domain = self._lookup(node, uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            raise
        if domain.isActive():
            raise _refusal(node, "Removing the guest's definition (the guest is active there)")
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)

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
        try:
            domain = self._lookup(node, uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            raise
        if domain.isActive():
            domain.destroy()

    @bounded("Reading the guest's definition")
    def definition(self, node: str, uuid: str) -> str | None:
        """The guest's definition on ``node`` in libvirt's words, secrets included; ``None``: it has none."""
        try:
            domain = self._lookup(node, uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        if not domain.isPersistent():
            return None
        return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))

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

    @bounded("Looking for the guest")
    def _handle(self, node: str, uuid: str) -> libvirt.virDomain:
        return self._lookup(node, uuid)

    def _lookup(self, node: str, name: str) -> libvirt.virDomain:
        connection = self._connections.to(node)
        if _UUID.fullmatch(name):
            return connection.lookupByUUIDString(name)
        return connection.lookupByName(name)

    def _observed(self, node: str, domain: libvirt.virDomain, job: JobKind) -> Domain:
        persistent = bool(domain.isPersistent())
        virt_type, vcpus, disks, left_on = _incoming(domain) if job is JobKind.INCOMING else _described(domain)
        state, reason = domain.state()
        return Domain(
            node=node,
            name=domain.name(),
            uuid=domain.UUIDString(),
            state=_STATES.get(state, DomainState.OFF if not domain.isActive() else DomainState.IN_SHUTDOWN),
            reason=_reason(state, reason),
            job=job,
            persistent=persistent,
            autostart=persistent and bool(domain.autostart()),
            virt_type=virt_type,
            memory_kib=domain.maxMemory(),
            vcpus=vcpus,
            disks=disks,
            left_on=left_on,
        )


def _described(domain: libvirt.virDomain) -> tuple[str, int, tuple[DomainDisk, ...], str | None]:
    text = domain.XMLDesc()
    return xml.virt_type(text), xml.vcpus(text), xml.disks(text), xml.left_on(text)


def _incoming(domain: libvirt.virDomain) -> tuple[str, int, tuple[DomainDisk, ...], None]:
    """As `_described`, for a copy that comes in: libvirt's XML would be had only after the copy's end, or never (30 s).

    The statistics need no job of libvirt's own; they do not tell the type, nor whether a disk may be written.
    """
    wanted = libvirt.VIR_DOMAIN_STATS_BLOCK | libvirt.VIR_DOMAIN_STATS_VCPU
    found = domain.connect().domainListGetStats([domain], wanted, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
    values = found[0][1] if found else {}
    disks = tuple(
        DomainDisk(
            target=values.get(f"block.{number}.name", ""),
            source=values.get(f"block.{number}.path"),
            kind="",
            device="disk",
            read_only=False,
        )
        for number in range(values.get("block.count", 0))
    )
    return "", values.get("vcpu.maximum", 1), disks, None


def _reason(state: int, reason: int) -> str:
    """The reason in words; numbers that a newer libvirt adds stay numbers."""
    known = _REASONS.get(state, ())
    return known[reason] if reason < len(known) else str(reason)


def _refusal(node: str, what: str) -> CommandFailed:
    return CommandFailed(
        node,
        what,
        status=libvirt.VIR_ERR_OPERATION_INVALID,
        code=Code.HYPERVISOR_FAILED,
        hint="Look at both nodes with `lvmigrate status`; nothing was changed.",
    )


def _host(address: str) -> str:
    """An address for a URI: IPv6 wants brackets."""
    return f"[{address}]" if ":" in address else address


def _job(domain: libvirt.virDomain) -> JobKind:
    if not domain.isActive():
        return JobKind.NONE
    try:
        statistics = domain.jobStats()
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return JobKind.INCOMING  # "migration statistics are available only on the source host"
        if code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT):
            return JobKind.NONE  # it stopped meanwhile, or this driver has no jobs at all
        if code == libvirt.VIR_ERR_INTERNAL_ERROR and "no RAM info" in str(error):
            return JobKind.OUTGOING  # "migration was active, but no RAM info was set"
        raise
    # A job that failed or was cancelled is there, and holds the domain, until its last phase is over: measured up to a
    # keepalive later.
    if statistics.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return JobKind.NONE
    return _JOB_KINDS.get(statistics.get("operation", 0), JobKind.OTHER)


def _version(number: int) -> tuple[int, int, int]:
    return number // 1_000_000, number // 1000 % 1000, number % 1000
