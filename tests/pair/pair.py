"""The pair: two real libvirt daemons on this machine, each in namespaces of its own, joined by a wire.

::

    with Pair() as pair:
        guest = pair.guest("web1", on=pair.one)
        pair.one.virsh("migrate", "--live", "--p2p", "web1", pair.two.node.peer_uri)

Up in about a third of a second.  Leaving the block ends every process of the pair, and no other; nothing of it stays on
the machine, even when the test is killed: the hosts end with the pipe that the test holds.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.pair import guest as guests
from tests.pair.guest import Guest, Load
from tests.pair.host import PATIENCE_S, Host, wait_until
from tests.pair.network import WITNESS, Network
from vagrant.guest.records import Listener

_NEEDED: Final = (
    "libvirtd", "virsh", "qemu-system-x86_64", "unshare", "nsenter", "losetup", "ip", "iptables", "gcc", "make",
    "openssl",
)  # fmt: skip
#: QEMU before 9 loses guest memory when it migrates a guest without KVM.
_QEMU_NEEDED: Final = 9


def missing() -> tuple[str, ...]:
    """What this machine lacks for a pair, a clause each."""
    found = [] if os.geteuid() == 0 else ["this is not root"]
    found += [f"there is no {name}" for name in _NEEDED if shutil.which(name) is None]
    if shutil.which("qemu-system-x86_64"):
        said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"version (\d+)", said)
        if version is None or int(version[1]) < _QEMU_NEEDED:
            found.append(f"QEMU is older than {_QEMU_NEEDED}, it loses guest memory without KVM")
    if not Path("/dev/loop-control").exists():
        found.append("there are no loop devices (modprobe loop)")
    return tuple(found)


class Pair:
    """Two hosts, `one` and `two`, and the guests made on them."""

    def __init__(self, *, keepalive: tuple[int, int] = (2, 2), cache: Path | None = None) -> None:
        """``keepalive``: the daemons' interval in seconds and count; ``cache``: see `remember`."""
        self._keepalive = keepalive
        self._cache = cache
        self._guests: list[Guest] = []

    def __enter__(self) -> Self:
        lacking = missing()
        assert not lacking, f"the pair cannot be made: {'; '.join(lacking)}. Install it with: vagrant/lab setup"
        with ExitStack() as stack:
            # Short: a socket's path holds 107 bytes.
            self.folder = Path(tempfile.mkdtemp(prefix="lvm-pair-", dir="/tmp"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            (self.folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 node1\n10.77.0.2 node2\n")
            self.one = self._host(stack, "node1", "10.77.0.1")
            self.two = self._host(stack, "node2", "10.77.0.2")
            for host in self.hosts:
                host.ready()
            self.network = Network(self.hosts)
            stack.callback(self.network.close)
            for host in self.hosts:
                host.start_daemon()
            if self._cache is None or not (self._cache / "guest.elf").exists():
                guests.build(self.folder)
            else:
                shutil.copy(self._cache / "guest.elf", self.folder)
            for host in self.hosts:
                host.daemon_ready()
            stack.callback(self._close_guests)
            self._stack = stack.pop_all()
        return self

    def _host(self, stack: ExitStack, name: str, address: str) -> Host:
        host = Host(name, address, self.folder / name, keepalive=self._keepalive)
        stack.callback(host.close)
        if self._cache is not None and (self._cache / "libvirt").exists():
            shutil.copytree(self._cache / "libvirt", host.folder / "cache", dirs_exist_ok=True)
        return host

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def remember(self) -> None:
        """Keep what every pair makes anew (the guest, what libvirt found out about QEMU) for the next one."""
        if self._cache is None or (self._cache / "guest.elf").exists():
            return
        shutil.copytree(self.one.folder / "cache", self._cache / "libvirt")
        shutil.copy(self.folder / "guest.elf", self._cache)

    @property
    def hosts(self) -> tuple[Host, Host]:
        """Both."""
        return self.one, self.two

    def other(self, host: Host) -> Host:
        """The one that ``host`` is not."""
        return self.two if host is self.one else self.one

    def guest(
        self,
        name: str,
        *,
        on: Host,
        load: Load = guests.BUSY,
        memory_mib: int = 32,
        persistent: bool = True,
        change: Callable[[str], str] = lambda xml: xml,
    ) -> Guest:
        """A guest that runs on this host and was heard there; ``change`` makes its XML from the usual one."""
        ear = self.network.inside(lambda: Listener(WITNESS))
        made = guests.make(name, ear, self.folder, load, self.hosts, memory_mib)
        guest = dataclasses.replace(made, xml=change(made.xml))
        self._guests.append(guest)
        file = self.folder / f"{name}.xml"
        file.write_text(guest.xml)
        if persistent:
            on.virsh("define", str(file))
            on.virsh("start", name)
        else:
            on.virsh("create", str(file))
        guest.runs()
        return guest

    def hurry(self, guest: Guest, *, on: Host) -> None:
        """Let the copy of a busy guest's memory from this host come to its end."""
        on.virsh("migrate-setspeed", guest.uuid, "1000")

    # ---- audits ----

    def states(self, guest: Guest) -> dict[str, str]:
        """What plain virsh says of the guest on each host: state and reason; ``-`` where it is not known."""
        return {host.name: host.virsh("domstate", "--reason", guest.uuid, check=False) or "-" for host in self.hosts}

    def running(self, guest: Guest) -> tuple[str, ...]:
        """The hosts on which plain virsh sees the guest's CPUs run."""
        return tuple(name for name, state in self.states(guest).items() if state.startswith("running"))

    def violations(self, guest: Guest, *, on: Host) -> tuple[str, ...]:
        """Whatever is not as it must be when the guest runs on this host and no move is under way."""
        found = []
        states = self.states(guest)
        other = self.other(on)
        if not states[on.name].startswith("running"):
            found.append(f"{on.name} says {states[on.name]}")
        if states[other.name] != "-" and not states[other.name].startswith("shut off"):
            found.append(f"{other.name} says {states[other.name]}")
        for host, copies in ((on, 1), (other, 0)):
            if len(host.qemus(guest.name)) != copies:
                found.append(f"{host.name} has {len(host.qemus(guest.name))} QEMU processes of the guest")
            left = host.run("ls -A /run/lvmigrate 2>/dev/null", check=False).split()
            found += [f"{host.name} has /run/lvmigrate/{name}" for name in left if guest.uuid in name]
        job = on.virsh("domjobinfo", guest.uuid, check=False)
        if "None" not in job:
            found.append(f"{on.name} has a job: {job}")
        return tuple(found)

    def whole(self, guest: Guest, *, on: Host, patience_s: float = PATIENCE_S) -> None:
        """The guest runs once, on this host, with whole memory and records, and nothing else is left of it."""
        guest.memory_verified(patience_s)
        wait_until(lambda: not self.violations(guest, on=on), lambda: "; ".join(self.violations(guest, on=on)))
        faults = guest.faults()
        assert not faults, "; ".join(faults)

    def _close_guests(self) -> None:
        # Before their listeners go: a QEMU whose serial port is refused may hang.
        for host in self.hosts:
            for guest in self._guests:
                if host.qemus(guest.name):
                    host.kill_qemu(guest.name)
        for guest in self._guests:
            guest.close()
