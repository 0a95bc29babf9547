"""Where a guest's definition belongs after a move, or after one that did not happen."""

from __future__ import annotations

from dataclasses import dataclass

from lvmigrate.domain import Domain
from lvmigrate.errors import Code, MoveFailed
from lvmigrate.protocols import Hypervisor


def disks_to_come(running: Domain, defined: Domain) -> tuple[str, ...]:
    """The paths of disks that a guest has from its next start on, and has not while it runs.

    Nobody has looked where they lead on another node: a disk of the guest's own here may be somebody else's there.
    """
    known = {disk.source for disk in running.layers}
    disks = (disk.source for disk in defined.disks if disk.device in ("disk", "lun"))
    return tuple(source for source in disks if source and source not in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """The definitions of one guest on the two nodes of a move. Every method is idempotent."""

    hypervisor: Hypervisor
    uuid: str
    source: str
    target: str
    #: The node that the guest leaves keeps its definition, for a failover when the other one is dead.
    keep: bool

    def moved(self, *, autostart: bool | None) -> None:
        """The guest is on the target: forget the source's definition, and only then start it there after a reboot.

        ``autostart``: as it was at the source; ``None``: nobody knows, and it stays as it is.  Guaranteed afterwards:
        the target has a definition, the source none, or one without autostart if it is to keep it.  Raises `MoveFailed`
        when the target has none, or the guest has ended there (nothing is forgotten then), or what the adapter raises.
        """
        arrived = self.hypervisor.domain(self.target, self.uuid)
        if arrived is None or not arrived.persistent:
            raise MoveFailed(
                f"The guest is not defined on {self.target} as it was on {self.source}.",
                code=Code.LEFT_BEHIND,
                hint=f"`virsh dumpxml {self.uuid}` on {self.target}; the definition on {self.source} was kept.",
            )
        if not arrived.state.active:
            raise MoveFailed(
                f"The guest ended on {self.target} while its move was being finished; no definition was forgotten.",
                code=Code.LEFT_BEHIND,
                hint=f"`lvmigrate cleanup {self.uuid}` closes what it had open, and says how to start it.",
            )
        if self.keep:
            left = self.hypervisor.domain(self.source, self.uuid)
            if left is not None and left.autostart:
                self.hypervisor.set_autostart(self.source, self.uuid, on=False)
        else:
            self.hypervisor.undefine(self.source, self.uuid)
        if autostart is not None:
            self.hypervisor.set_autostart(self.target, self.uuid, on=autostart)

    def stayed(self, *, autostart: bool | None, target_had_definition: bool) -> None:
        """The guest is at the source: forget the definition that a move has brought to the target.

        Guaranteed afterwards: the source has its definition, with its autostart, and the target only what was there.
        """
        if not target_had_definition:
            self.hypervisor.undefine(self.target, self.uuid)
        here = self.hypervisor.domain(self.source, self.uuid)
        if autostart is not None and here is not None and here.persistent and here.autostart is not autostart:
            self.hypervisor.set_autostart(self.source, self.uuid, on=autostart)
