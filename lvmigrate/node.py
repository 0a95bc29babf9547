"""A KVM host, as the configuration names it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lvmigrate.errors import Code, Finding
from lvmigrate.ipolicy import NO_POLICY, InstancePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One host and the three ways to it: commands, libvirt, and the guest's memory.

    ``name`` is also the name that DRBD 9 gives the connection to this host (its ``uname -n``).
    """

    name: str
    #: Where ssh goes (``root@node1``), or ``None`` to run commands on this very machine.
    ssh: str | None
    #: How the controller reaches this host's libvirt.
    libvirt_uri: str
    #: How the other hosts' libvirt daemons reach this one (peer-to-peer migration).
    peer_uri: str
    #: The address that guests' memory is sent to.
    migration_address: str
    #: Commands become root's by ``sudo -n``: whoever runs them, or ssh's user, is not root.
    sudo: bool = False
    #: What switches it off, for `sh -c` on the controller, where the configuration names it: 0 says that it is off.
    fence_command: str | None = None
    #: The address on which this host's QEMU waits for memory; ``None``: libvirt's default, all of them.
    listen_address: str | None = None
    #: The first and last port for that; ``None``: as libvirt's qemu.conf there says (by default 49152 to 49215).  No
    #: memory is sent to the last of several: see `spare_port`.
    migration_ports: tuple[int, int] | None = None
    #: What the network carries to it, in MiB/s; ``None``: as earlier moves have shown.
    link_mib_s: int | None = None
    #: The name in this host's certificate, where it is not ``migration_address``.
    tls_name: str | None = None
    #: Nothing is moved here, and why; ``None``: guests may come.
    drained: str | None = None
    #: It is out of use, and not asked whether it has a guest that runs elsewhere; ``None``: it is in use.
    offline: str | None = None
    #: For programs that choose a target, and for policies.
    group: str = "default"
    #: What it takes.
    policy: InstancePolicy = NO_POLICY

    @property
    def closed(self) -> str | None:
        """Why no guest may come, as a clause."""
        if self.offline is not None:
            return f"is offline ({self.offline})"
        return None if self.drained is None else f"is drained ({self.drained})"

    @property
    def spare_port(self) -> int | None:
        """The port of ``migration_ports`` that is knocked at to see whether this host is reached.

        Nothing is to wait for memory there: it would take whoever knocks for the guest that it waits for.
        """
        if self.migration_ports is None or self.migration_ports[0] == self.migration_ports[1]:
            return None
        return self.migration_ports[1]

    @property
    def certified_name(self) -> str:
        """What its certificate must name for memory to be sent to it encrypted."""
        return self.tls_name or self.migration_address


def unknown(name: str, known: Collection[str]) -> Finding:
    """What is said of a node that is asked for and is none of those that the configuration names."""
    return Finding(
        code=Code.NODE_UNKNOWN,
        sentence=f"The configuration names no node {name}.",
        hint=f"It names {', '.join(known)}.",
    )
