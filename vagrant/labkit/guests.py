"""The lab's guests: `web1` on a resource with one volume, `db1` on one with two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vagrant.labkit.lab import NODES, Lab

_XML: Final = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <title>the lab's {name}</title>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/usr/local/lib/lvmigrate-lab/guest.elf</kernel>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disks}
    <controller type='usb' model='none'/>
    <memballoon model='{balloon}'/>
    <serial type='udp'>
      <source mode='connect' host='{address}' service='{port}'/>
    </serial>
  </devices>
</domain>
"""
_DISK: Final = """<disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source dev='{path}'/>
      <target dev='vd{letter}' bus='virtio'/>
    </disk>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest that proves what happened to it (vagrant/guest)."""

    name: str
    uuid: str
    #: Its disks, as paths on the nodes.
    disks: tuple[str, ...]
    #: The backing device of each disk on a node, where DRBD keeps the data from the first sector on.
    backing: tuple[str, ...]
    resource: str | None
    #: Where the controller hears its serial port.
    port: int
    memory_mib: int = 24
    #: MiB of memory that it dirties, and pages per second.
    dirty_mib: int = 1
    rate: int = 200
    record_ms: int = 50
    #: Whether it gives memory back when it is asked.
    balloon: bool = False

    def xml(self, address: str) -> str:
        """The definition, with its serial port sent to ``address``."""
        disks = "\n    ".join(
            _DISK.format(path=path, letter="abcdefgh"[number]) for number, path in enumerate(self.disks)
        )
        cmdline = f"name={self.name} mib={self.dirty_mib} rate={self.rate} record_ms={self.record_ms}"
        return _XML.format(
            name=self.name,
            uuid=self.uuid,
            memory_mib=self.memory_mib,
            cmdline=cmdline,
            balloon="virtio" if self.balloon else "none",
            disks=disks,
            address=address,
            port=self.port,
        )


WEB1: Final = Guest(
    name="web1",
    uuid="8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0001",
    disks=("/dev/drbd/by-res/web1/0",),
    backing=("/dev/disk/by-id/virtio-drbd-part1",),
    resource="web1",
    port=5501,
)
DB1: Final = Guest(
    name="db1",
    uuid="8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0002",
    disks=("/dev/drbd10", "/dev/drbd/by-res/db1/1"),
    backing=("/dev/disk/by-id/virtio-drbd-part2", "/dev/disk/by-id/virtio-drbd-part3"),
    resource="db1",
    port=5502,
)
#: A guest whose disk nothing replicates.
LOCAL1: Final = Guest(
    name="local1",
    uuid="8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0003",
    disks=("/dev/disk/by-id/virtio-drbd-part4",),
    backing=("/dev/disk/by-id/virtio-drbd-part4",),
    resource=None,
    port=5503,
)


def define(lab: Lab, guest: Guest, node: str) -> None:
    """Define ``guest`` on ``node``."""
    file = f"/run/{guest.name}.xml"
    lab.run(node, f"cat >{file} <<'END'\n{guest.xml(lab.address)}END\nvirsh -q define {file}")


def start(lab: Lab, guest: Guest, node: str) -> None:
    """Start ``guest``, which is defined, on ``node``."""
    if guest.resource and lab.drbd_version().startswith("8."):
        lab.run(node, f"drbdadm primary {guest.resource}")  # DRBD 9 promotes when QEMU opens the device
    lab.run(node, f"virsh -q start {guest.name}")


def remove(lab: Lab, guest: Guest) -> None:
    """No trace of ``guest`` on any node, its resource Secondary on both, with its configured options."""
    lab.both(
        f"virsh -q 'destroy {guest.name}; undefine --nvram {guest.name}'; rm -f /run/lvmigrate/{guest.uuid}.*;"
        + (f"drbdsetup wait-connect-resource --wfc-timeout=20 {guest.resource};" if guest.resource else ""),
        check=False,
    )
    if guest.resource:
        lab.both(f"for i in $(seq 50); do drbdadm secondary {guest.resource} && exit; sleep 0.2; done; exit 1")
        lab.both(f"drbdadm adjust {guest.resource}")


def where(lab: Lab, guest: Guest) -> dict[str, str]:
    """What virsh says of the guest on each node, ``""`` where it is not known."""
    words = lab.both(f"virsh -q domstate {guest.name} 2>/dev/null", check=False)
    return {node: text.strip() for node, text in words.items()}


def make(lab: Lab, guest: Guest, node: str = NODES[0]) -> None:
    """``guest`` runs on ``node``, newly defined and newly started."""
    remove(lab, guest)
    define(lab, guest, node)
    start(lab, guest, node)
