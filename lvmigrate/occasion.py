"""What a hook is told: the errand and the guest, under Ganeti's names, each with and without ``GANETI_``. Pure."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lvmigrate.domain import Domain, DomainState
from lvmigrate.replication import Place, Resource

#: Nothing of the caller's own environment reaches a hook.
_PATH: Final = "/sbin:/bin:/usr/sbin:/usr/bin"
#: Ganeti's version of this very interface.
_VERSION: Final = "2"


class Phase(enum.Enum):
    """When hooks are run."""

    PRE = "pre"
    POST = "post"


class Operation(enum.Enum):
    """Which hooks are run; the value is Ganeti's name of their directory."""

    MIGRATE = "instance-migrate"
    FAILOVER = "instance-failover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """One errand, as hooks are told of it."""

    operation: Operation
    instance: str
    uuid: str
    #: ``None``: no node knows it any more.
    domain: Domain | None
    source: str
    target: str
    #: By device path, in MiB, as far as it is known.
    sizes_mib: Mapping[str, int] = field(default_factory=dict)
    live: bool = False
    cleanup: bool = False
    allow_runtime_changes: bool = False
    ignore_consistency: bool = False
    shutdown_timeout_s: float = 0.0

    def directory(self, phase: Phase) -> str:
        """The name of the directory of its hooks."""
        return f"{self.operation.value}-{phase.value}.d"

    def environment(self, phase: Phase, *, errand: str = "", now_on: str | None = None) -> dict[str, str]:
        """All variables. ``now_on``: the node that the guest is on by then, for ``POST_...``; the rest is as it was."""
        plain = {
            "HOOKS_VERSION": _VERSION,
            "HOOKS_PHASE": phase.value,
            "HOOKS_PATH": self.operation.value,
            "OP_CODE": f"OP_INSTANCE_{self.operation.name}",
            "OP_TARGET": self.instance,
            "OBJECT_TYPE": "INSTANCE",
            "MASTER": os.uname().nodename,
            "OLD_PRIMARY": self.source,
            "NEW_PRIMARY": self.target,
            "OLD_SECONDARY": self.target,
            "NEW_SECONDARY": self.source,
            "MIGRATE_LIVE": str(self.live),
            "MIGRATE_CLEANUP": str(self.cleanup),
            "ALLOW_RUNTIME_CHANGES": str(self.allow_runtime_changes),
            "IGNORE_CONSISTENCY": str(self.ignore_consistency),
            "SHUTDOWN_TIMEOUT": f"{self.shutdown_timeout_s:g}",
            **dict(self._guest(self.source, self.target)),
        }
        if now_on is not None:
            other = self.target if now_on == self.source else self.source
            plain |= {f"POST_{name}": value for name, value in self._guest(now_on, other)}
        # No value may end the environment's entry, and no guest's name is to be able to.
        clean = {name: value.replace("\0", "") for name, value in plain.items()}
        return {
            "PATH": _PATH,
            "LVMIGRATE_ERRAND": errand,
            **clean,
            **{f"GANETI_{name}": value for name, value in clean.items()},
        }

    def _guest(self, primary: str, secondary: str) -> Iterator[tuple[str, str]]:
        yield "INSTANCE_NAME", self.instance
        yield "INSTANCE_UUID", self.uuid
        yield "INSTANCE_PRIMARY", primary
        yield "INSTANCE_SECONDARIES", secondary
        guest = self.domain
        if guest is None:
            return
        yield "INSTANCE_STATUS", "down" if guest.state is DomainState.OFF else "up"
        for name in ("INSTANCE_MEMORY", "INSTANCE_MINMEM", "INSTANCE_MAXMEM"):
            yield name, str(guest.memory_kib // 1024)
        yield "INSTANCE_VCPUS", str(guest.vcpus)
        yield "INSTANCE_HYPERVISOR", "kvm"
        yield "INSTANCE_OS_TYPE", ""
        yield "INSTANCE_DISK_TEMPLATE", "drbd"
        disks = [disk for disk in guest.disks if disk.device in ("disk", "lun")]
        sizes = [self.sizes_mib.get(disk.source or "") for disk in disks]
        yield "INSTANCE_DISK_COUNT", str(len(disks))
        yield "INSTANCE_DISK_SIZES", ",".join("" if size is None else str(size) for size in sizes)
        for number, (disk, size) in enumerate(zip(disks, sizes, strict=True)):
            yield f"INSTANCE_DISK{number}_NAME", disk.source or ""
            yield f"INSTANCE_DISK{number}_SIZE", "" if size is None else str(size)
            yield f"INSTANCE_DISK{number}_MODE", "ro" if disk.read_only else "rw"
        yield "INSTANCE_NIC_COUNT", str(len(guest.nics))
        for number, nic in enumerate(guest.nics):
            yield f"INSTANCE_NIC{number}_MAC", nic.mac
            yield f"INSTANCE_NIC{number}_IP", ""
            yield f"INSTANCE_NIC{number}_MODE", "bridged" if nic.kind == "bridge" else nic.kind
            yield f"INSTANCE_NIC{number}_LINK", nic.link
            yield f"INSTANCE_NIC{number}_BRIDGE", nic.link if nic.kind == "bridge" else ""


def sizes(places: Mapping[str, Place], resources: Mapping[str, Resource]) -> dict[str, int]:
    """By device path: how large the volume is that it leads to, in MiB, as far as that is known."""
    known = {
        (resource.name, volume.number): volume.size_kib
        for resource in resources.values()
        for volume in resource.volumes
        if volume.size_kib is not None
    }
    return {
        path: size // 1024
        for path, place in places.items()
        if (size := known.get((place.resource, place.volume))) is not None
    }
