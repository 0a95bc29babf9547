"""What an operator types for a move by hand: plain drbdsetup and plain virsh, for DRBD 8.4 and 9."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Self

from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import NODES, Lab, other


@dataclass(frozen=True, kw_only=True)
class ByHand:
    """The commands for one guest, as text for a shell of the node that they are named for."""

    guest: Guest
    #: By node: how its drbdsetup names the connection to the other node.
    ends: dict[str, str]
    #: DRBD 8.4.
    old: bool

    @classmethod
    def of(cls, lab: Lab, guest: Guest) -> Self:
        """Look up what the commands need to know."""
        old = lab.drbd_version().startswith("8.")
        return cls(guest=guest, ends={node: _end(lab, guest, node, old=old) for node in NODES}, old=old)

    def two_primaries(self, node: str, allow: str) -> str:
        """Allow them on the connection that ``node`` has, or not: ``yes`` or ``no``."""
        return f"drbdsetup net-options {self.ends[node]} --protocol=C --allow-two-primaries={allow}"

    @property
    def primary(self) -> str:
        """Promote the node."""
        return f"drbdsetup primary {self._name}"

    @property
    def secondary(self) -> str:
        """Demote the node."""
        return f"drbdsetup secondary {self._name}"

    def migrate(self, source: str, *, bandwidth_mib_s: int, timed: bool = False, paused: bool = False) -> str:
        """The copy of the memory, to the node that is not ``source``.

        ``timed``: virsh tells how long its call took; ``paused``: the guest does not run there until it is resumed.
        """
        uri = f"qemu+ssh://root@{other(source)}/system"
        options = f"--live --p2p --persistent --undefinesource --bandwidth {bandwidth_mib_s}"
        suspend = "--suspend " if paused else ""
        return f"virsh -q{' -t' if timed else ''} migrate {options} {suspend}{self.guest.name} {uri}"

    @property
    def _name(self) -> str:
        return "0" if self.old and len(self.guest.disks) == 1 else str(self.guest.resource)


def _end(lab: Lab, guest: Guest, node: str, *, old: bool) -> str:
    if not old:
        return f"{guest.resource} {1 - NODES.index(node)}"
    words = lab.run(
        node, f"drbdsetup show {guest.resource} | sed -n 's/^ *address[[:space:]]*ipv4 \\(.*\\);/\\1/p'"
    ).split()
    remote, local = (f"ipv4:{address}" for address in words)
    return shlex.join([local, remote])
