"""A guest as one node's libvirt sees it at one moment."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DomainState(enum.Enum):
    """What libvirt says of a domain (virDomainState), folded to what a migration must tell apart."""

    #: Its CPUs run (or are idle or blocked, which libvirt counts as running).
    RUNNING = "running"
    #: A process holds its memory; its CPUs stand still.
    PAUSED = "paused"
    #: Guest-suspended to RAM: only a wake-up moves it on.
    SUSPENDED = "pmsuspended"
    #: Shutting down by itself.
    IN_SHUTDOWN = "in shutdown"
    #: Defined, and no process.
    OFF = "shut off"

    @property
    def active(self) -> bool:
        """Whether a process with this guest's memory exists."""
        return self is not DomainState.OFF


class JobKind(enum.Enum):
    """Which migration job libvirt has for a domain."""

    NONE = "none"
    OUTGOING = "outgoing"
    INCOMING = "incoming"
    #: A save, a dump, a backup, a snapshot: anything else that excludes a migration.
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDisk:
    """One ``<disk>`` of the domain's XML."""

    #: The name in the guest, such as ``vda``.
    target: str
    #: The path of the block device or file; ``None`` for an empty drive or a network disk.
    source: str | None
    #: libvirt's ``type`` attribute: block, file, network, ...
    kind: str
    #: libvirt's ``device`` attribute: disk, cdrom, floppy, lun.
    device: str
    read_only: bool
    #: Whether QEMU itself reaches it over the network (Ceph RBD, iSCSI, NBD), from wherever it runs.
    network: bool = False
    #: libvirt's ``cache`` attribute; empty: as QEMU does by default, which caches; ``None``: not told.
    cache: str | None = None
    #: libvirt's driver ``type``: raw, qcow2, ...; empty: not told.
    format: str = ""
    #: Without its medium the guest goes on (libvirt's ``startupPolicy``).
    optional: bool = False
    #: What else it is read through: the images behind it (libvirt's ``backingStore``), and a file with its data alone.
    behind: tuple[DomainDisk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One ``<interface>`` of the domain's XML."""

    mac: str
    #: libvirt's ``type`` attribute: bridge, network, direct, ...
    kind: str
    #: The bridge, the network or the device that it is connected to; empty: none of them.
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """An observation, never kept up to date."""

    node: str
    name: str
    uuid: str
    state: DomainState
    #: libvirt's reason for the state, in words (``migration``, ``user``, ...).
    reason: str
    job: JobKind
    persistent: bool
    autostart: bool
    #: ``kvm``, or ``qemu`` where the CPU is emulated.
    virt_type: str
    #: What it may use at most, in KiB.
    memory_kib: int
    vcpus: int
    disks: tuple[DomainDisk, ...]
    nics: tuple[Nic, ...] = ()
    #: What it has now, in KiB: less, where its balloon is inflated; ``None``: not told.
    current_kib: int | None = None
    #: The tombstone: the node that the guest was on when it was started here without that node's word.
    left_on: str | None = None
    #: It has an emulated TPM, whose state goes with its definition where libvirt is not told to keep it.
    loses_tpm: bool = False

    @property
    def layers(self) -> tuple[DomainDisk, ...]:
        """Its disks, each followed by what it is read through.

        Of a guest that is off libvirt tells no more of a chain than its definition does, which mostly is nothing.
        """
        return tuple(layer for disk in self.disks for layer in (disk, *disk.behind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a running guest does to its memory."""

    #: Bytes of it that exist on the node, and would be sent.
    resident_bytes: int
    #: Bytes that it dirties per second, each page counted once.
    dirty_rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What one node's libvirt says of the node itself."""

    node: str
    #: In KiB, what the kernel could give to a new guest (buffers and caches counted as free).
    free_memory_kib: int
    #: (major, minor, release)
    libvirt_version: tuple[int, int, int]
    #: The emulator's version as libvirt reports it, (0, 0, 0) when it does not.
    qemu_version: tuple[int, int, int]
    #: All of its memory, in KiB, and its CPUs; 0 where libvirt does not say.
    memory_kib: int = 0
    cpus: int = 0
