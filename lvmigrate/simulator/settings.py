"""What a simulated world is like: versions, speeds, deadlines."""

from __future__ import annotations

from dataclasses import dataclass, field

from lvmigrate.simulator.drbd import Pace, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times in seconds."""

    version: Version = Version.V9
    #: Whether opening a device for writing promotes (DRBD 9's default; 8.4 never does).
    auto_promote: bool = False
    #: What the configuration file of every resource says.
    protocol: str = "C"
    #: Whether a QEMU that receives memory opens its disks for writing at once (newer libvirt), or for reading.
    incoming_writes: bool = True
    #: How long a copy of memory takes when nothing disturbs it.
    copy_s: float = 2.0
    #: How often a running guest writes to each of its disks when something has just changed, and when nothing has for
    #: long: what is written between two changes is the same to both of them.
    write_s: float = 0.25
    seldom_s: float = 8.0
    #: Until a libvirt daemon gives up a peer that does not answer (interval x count).
    keepalive_s: float = 30.0
    #: How much later than the source's the target's daemon ends what it was receiving.
    target_cleans_s: float = 5.0
    pace: Pace = field(default_factory=Pace)
    #: What one call of a hypervisor or a storage takes.
    hypervisor_call_s: float = 0.005
    storage_call_s: float = 0.05
    #: When a call is given up that gets no answer: of libvirt, over ssh.
    hypervisor_deadline_s: float = 60.0
    storage_deadline_s: float = 30.0
    #: When connecting to a node that does not answer is given up: libvirt's, ssh's.
    connect_s: float = 15.0
    #: From power-on to DRBD's and libvirt's start.
    boot_s: float = 20.0
    #: How long a guest takes to shut down once it is asked; ``None``: it does not listen.
    shutdown_s: float | None = 2.0
    #: From there to libvirt's start of what has autostart.
    autostart_s: float = 3.0
    #: From a libvirt daemon's death to its return.
    daemon_s: float = 5.0
