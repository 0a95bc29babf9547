"""What a guest needs of the node it is to run on, and what a node has of that, both as they were observed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

#: libvirt's own range for migrations, where neither the configuration nor the node's qemu.conf names one.
PORTS = (49152, 49215)
#: Where libvirt keeps the state of an emulated TPM, by the guest's UUID (virtpm storage, libvirt 4.5 and later).
_TPM_STATES = "/var/lib/libvirt/swtpm"
#: The first libvirt that can remove a definition without the state of its TPM (VIR_DOMAIN_UNDEFINE_KEEP_TPM).
KEEPS_TPM = (8, 9, 0)
#: The first libvirt whose daemon on the target dies when it is to connect a broken post-copy again, and the first that
#: does so no more (libvirt's NEWS of 11.4.0; met with 11.3.0: a null pointer in qemuProcessIncomingDefNew).
RESUME_KILLS = ((11, 2, 0), (11, 4, 0))


def dotted(version: tuple[int, int, int]) -> str:
    """A version as people write it."""
    return ".".join(map(str, version))


def tpm_state(uuid: str) -> str:
    """The directory with the state of a guest's emulated TPM."""
    return f"{_TPM_STATES}/{uuid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Memory of a guest's in huge pages of one size, in KiB."""

    #: 0: the node's default size, which libvirt does not tell.
    size_kib: int
    kib: int
    #: The NUMA nodes that it is to lie on; empty: on any.
    nodes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a running guest is made of, beside its disks."""

    emulator: str
    arch: str
    #: As QEMU names it for good: ``pc-i440fx-10.0``.
    machine: str
    virt_type: str
    #: libvirt's ``mode``: custom, host-model, host-passthrough, maximum; empty: it chose one by itself.
    cpu_mode: str = ""
    #: The CPU in libvirt's words, for the target to be compared with; empty: there is nothing to compare.
    cpu: str = ""
    #: Whether libvirt itself insists on it (``check``): where it does not, QEMU leaves out what is not there.
    cpu_checked: bool = True
    #: Names of host interfaces that its own sit on: bridges, and what macvtap uses.
    interfaces: frozenset[str] = frozenset()
    #: Names of libvirt networks.
    networks: frozenset[str] = frozenset()
    #: Devices of the node's that the guest has to itself, in words.
    passthrough: tuple[str, ...] = ()
    mediated: tuple[str, ...] = ()
    #: libvirt's type of the TPM's backend: emulator, passthrough, external; ``None``: it has none.
    tpm: str | None = None
    #: Files that its firmware is started from, and the one that its variables are kept in.
    firmware: frozenset[str] = frozenset()
    nvram: str | None = None
    nvram_template: str | None = None
    #: What of its memory is in huge pages.
    pages: tuple[Pages, ...] = ()
    #: Whether it has a device by which it can give memory back.
    balloon: bool = True
    numa_nodes: frozenset[int] = frozenset()
    #: CPUs of the node that it is bound to.
    cpus: frozenset[int] = frozenset()
    snapshots: int = 0
    checkpoints: int = 0
    #: A saved image of it lies beside the running one.
    saved: bool = False
    #: Disks with a block job, by their names in the guest.
    block_jobs: tuple[str, ...] = ()
    #: What could not be found out, a clause each.
    unknown: tuple[str, ...] = ()

    @property
    def programs(self) -> frozenset[str]:
        """What must be installed on a node beside its emulator."""
        return frozenset({"swtpm"} if self.tpm == "emulator" else ())


class Match(enum.Enum):
    """Whether a node has something, or reaches it."""

    YES = "yes"
    NO = "no"
    #: It could not be told, or was not tried.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one node's libvirt has for such a guest, the words being libvirt's where it says no."""

    node: str
    emulator: Match = Match.YES
    machine: Match = Match.YES
    cpu: Match = Match.YES
    emulator_words: str = ""
    machine_words: str = ""
    cpu_words: str = ""
    #: Those of the networks asked for that are there and active.
    networks: frozenset[str] = frozenset()
    #: By size in KiB, and by NUMA node: KiB that are free in huge pages; of sizes that are not there, nothing.
    free_pages: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    #: Its NUMA nodes and CPUs; empty: it does not tell.
    numa_nodes: frozenset[int] = frozenset()
    cpus: frozenset[int] = frozenset()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to look for on a node, and from it."""

    instance: str
    #: The other node of the move; from the source it is knocked at.
    peer: str
    knock: bool
    #: Whether the node is to start the guest when it boots.
    autostart: bool
    paths: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()
    programs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What was found on a node, and from it."""

    node: str
    #: What of that which was asked for is there.
    paths: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()
    programs: frozenset[str] = frozenset()
    #: The path of a saved image of the guest's name.
    saved: str | None = None
    #: By libvirt's services that are in use: whether they start after DRBD; empty where systemd does not say.
    after_drbd: Mapping[str, bool] = field(default_factory=dict)
    #: The ports for migrations, as the configuration says or else the node's qemu.conf; the one of them that no memory
    #: is sent to; and those that something listens on.
    ports: tuple[int, int] = PORTS
    spare_port: int | None = None
    listening: frozenset[int] = frozenset()
    #: Whether this node's root could connect to the peer's libvirt as libvirtd would, and what was said.
    peer: Match = Match.UNKNOWN
    peer_words: str = ""
    #: Whether anything comes back from the peer's address for memory (a port that is closed answers, too).
    memory: Match = Match.UNKNOWN
    memory_words: str = ""
