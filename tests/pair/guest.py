"""The pair's guests: the test guest of vagrant/guest on a block device that both hosts share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.pair.host import PATIENCE_S, Host
from vagrant.guest import records
from vagrant.guest.records import Heard, Listener, Verdict

_XML = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{elf}</kernel>
    <cmdline>name={name} mib={load.mib} rate={load.rate} record_ms={load.record_ms}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source dev='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='udp'><source mode='connect' host='{address}' service='{port}'/></serial>
  </devices>
</domain>
"""
DISK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much the guest does."""

    #: MiB of memory that it dirties, and pages of it per second.
    mib: int = 1
    rate: int = 200
    record_ms: int = 20


#: A little.
CALM = Load(mib=1, rate=200)
#: With `SLOW_MIB_S`, a copy that does not end until it is given more (`Pair.hurry`).
BUSY = Load(mib=8, rate=2000)
#: MiB/s.
SLOW_MIB_S = 4


class Disk:
    """A raw file as a block device that both hosts have.

    Not the file itself: libvirt refuses a live migration of a local file as unsafe, whatever its cache mode.  A loop
    device is a block device as DRBD's are, opened by QEMU with O_DIRECT (cache=none), and as both hosts are on one
    kernel it is coherent between them.  ``--direct-io``: what was acknowledged is in the file.  It is detached as soon
    as nobody has it open any more, so that even a killed test leaves none.

    Each host has a device node of its own for it, under the same path.  QEMU locks what it opens; a lock belongs to
    the node's inode, and with one inode for both hosts it would keep the second copy of a guest from running, which
    nothing does between two real hosts.
    """

    def __init__(self, file: Path, hosts: Iterable[Host]) -> None:
        """Make it from an empty file; the device lives as long as somebody has it open, as this object has."""
        self.path = f"/run/disks/{file.stem}"
        self.file = file
        file.write_bytes(bytes(DISK_BYTES))
        done = subprocess.run(
            ["losetup", "--find", "--show", "--direct-io=on", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"no loop device for the guest's disk: {done.stderr}"
        device = done.stdout.strip()
        try:
            self._open = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)  # in truth when the last one closes it
        try:
            minor = os.minor(os.fstat(self._open).st_rdev)
            for host in hosts:
                host.run(f"mkdir -p /run/disks && mknod {self.path} b 7 {minor}")
        except BaseException:
            self.close()
            raise

    def read(self) -> bytes:
        """What is on it."""
        return self.file.read_bytes()

    def close(self) -> None:
        """Let the device go."""
        os.close(self._open)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest, and the proof of what happened to it."""

    name: str
    uuid: str
    disk: Disk
    ear: Listener
    xml: str

    def runs(self) -> Heard:
        """Wait until it is heard again, and give what was heard."""
        mark = self.ear.mark()
        return self.ear.wait_for(lambda heard: heard.at > mark, time.monotonic() + PATIENCE_S)

    def memory_verified(self, patience_s: float = PATIENCE_S) -> Heard:
        """Wait until every page of its memory was verified since now, or a bad one was found."""
        return self.ear.wait_for(records.verified_since(self.runs()), time.monotonic() + patience_s)

    def verdict(self) -> Verdict:
        """What its records say; it may run meanwhile."""
        heard = self.ear.last
        assert heard is not None, f"{self.name} was never heard"
        return records.check([self.disk.read()], name=self.name, run=heard.run, at_least=heard.n, running=True)

    def faults(self) -> tuple[str, ...]:
        """Everything that its records and its serial port say against it."""
        heard = [f"record {line.n} was announced twice: two copies have run" for line in self.ear.twice[:3]]
        said = [f"the guest said: {line.text}" for line in self.ear.said if line.text.startswith("E")]
        return (*heard, *said, *self.verdict().faults)

    def close(self) -> None:
        """Let its ear and its disk go; it must have ended."""
        self.ear.close()
        self.disk.close()


def make(name: str, ear: Listener, folder: Path, load: Load, hosts: Iterable[Host], memory_mib: int) -> Guest:
    """A guest that can run on these hosts, and that none knows yet. Takes the ear over."""
    with contextlib.ExitStack() as undo:
        undo.callback(ear.close)
        disk = Disk(folder / f"{name}.raw", hosts)
        identity = str(uuid.uuid4())
        xml = _XML.format(
            name=name,
            uuid=identity,
            elf=folder / "guest.elf",
            load=load,
            memory_mib=memory_mib,
            disk=disk.path,
            address=ear.address,
            port=ear.port,
        )
        ear.__enter__()
        undo.pop_all()
        return Guest(name=name, uuid=identity, disk=disk, ear=ear, xml=xml)


def build(folder: Path) -> None:
    """Build the guest's program into ``folder``."""
    subprocess.run(["make", "-s", "-C", str(Path(records.__file__).parent), f"OUT={folder}"], check=True)
