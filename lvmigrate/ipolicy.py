"""What a node or a group of nodes takes: minima and maxima for a guest's memory, CPUs, disks and interfaces. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from lvmigrate.domain import Domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The least and the most that is taken; ``None``: no bound."""

    least: int | None = None
    most: int | None = None

    def holds(self, value: int) -> bool:
        """Whether ``value`` lies within."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def words(self) -> str:
        """For people."""
        if self.least is None:
            return f"at most {self.most}"
        return f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"


ANY: Final = Bounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePolicy:
    """Bounds by what they are for; the names are those of the configuration."""

    #: What the guest may use at most.
    memory_mib: Bounds = ANY
    cpus: Bounds = ANY
    #: How many disks, and how large each of them.
    disks: Bounds = ANY
    disk_mib: Bounds = ANY
    nics: Bounds = ANY

    def over(self, general: InstancePolicy) -> InstancePolicy:
        """These bounds, and ``general``'s where there is none."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(general, **{name: bounds for name, bounds in own.items() if bounds != ANY})

    def objections(self, domain: Domain, sizes_mib: Mapping[str, int]) -> Iterator[str]:
        """A clause for each bound that the guest does not keep. A disk whose size is not known keeps every bound."""
        disks = [disk for disk in domain.disks if disk.device in ("disk", "lun")]
        found = [
            ("MiB of memory", domain.memory_kib // 1024, self.memory_mib),
            ("CPUs", domain.vcpus, self.cpus),
            ("disks", len(disks), self.disks),
            ("interfaces", len(domain.nics), self.nics),
        ]
        found += [
            (f"MiB on {disk.target}", size, self.disk_mib)
            for disk in disks
            if (size := sizes_mib.get(disk.source or "")) is not None
        ]
        for what, value, bounds in found:
            if not bounds.holds(value):
                yield f"{value} {what} ({bounds.words})"


NO_POLICY: Final = InstancePolicy()
