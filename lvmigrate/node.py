"""A KVM host, as the configuration names it."""

from __future__ import annotations

from dataclasses import dataclass


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
    #: What switches it off, for `sh -c` on the controller, where the configuration names it: 0 says that it is off.
    fence_command: str | None = None
