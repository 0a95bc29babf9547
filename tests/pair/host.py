"""One host of the pair: a libvirtd of its own in namespaces of its own, on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lvmigrate.node import Node

HERE: Final = Path(__file__).resolve().parent
#: Generous: the machine may be busy.
PATIENCE_S: Final = 60.0
#: Where QEMU's certificates are, below /etc/libvirt.
CERTIFICATES: Final = "certificates"

_LIBVIRTD: Final = """\
host_uuid = "{uuid}"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
#: stdio_handler: there is no virtlogd. user and group: post-copy's userfaultfd is root's. keepalive_*: how long the
#: source's daemon waits for a target's that does not answer; a target's daemon waits for its client as long as by
#: default (libvirtd.conf), five times five seconds.
_QEMU: Final = """\
stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
seccomp_sandbox = 0
migration_address = "{address}"
migration_host = "{address}"
migrate_tls_x509_cert_dir = "/etc/libvirt/{certificates}"
keepalive_interval = {interval}
keepalive_count = {count}
"""


def wait_until(holds: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = PATIENCE_S) -> None:
    """Wait until ``holds()``; AssertionError after the deadline, with ``what`` as it is then."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of a host, by the number that the machine knows it by."""

    pid: int
    command: tuple[str, ...]


class Host:
    """One host. Leaving the ``with`` block ends every process in its namespaces, and no other."""

    def __init__(self, name: str, address: str, folder: Path, *, keepalive: tuple[int, int]) -> None:
        """Begin it; `ready` waits until it is there."""
        self.name = name
        self.address = address
        self.folder = folder
        for part in ("run", "lib", "cache", "log", "etc"):
            (folder / part).mkdir(parents=True)
        number = address.rpartition(".")[2]
        (folder / "etc/libvirtd.conf").write_text(
            _LIBVIRTD.format(uuid=f"7b1c9a40-0000-4000-8000-{int(number):012d}", address=address)
        )
        (folder / "etc/qemu.conf").write_text(
            _QEMU.format(address=address, interval=keepalive[0], count=keepalive[1], certificates=CERTIFICATES)
        )
        (folder / "etc" / CERTIFICATES).mkdir()  # empty, until a test makes some
        # A process group of its own: Ctrl-C in a terminal is the test's to handle.
        self._unshare = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
             str(HERE / "init"), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )  # fmt: skip
        self.pid = 0

    def ready(self) -> None:
        """Wait until its namespaces are as they should be; no daemon runs yet."""
        assert self._unshare.stdout is not None
        said = self._unshare.stdout.readline().strip()
        assert said == "ready", f"host {self.name} could not be made (said {said!r}); are we root, with namespaces?"
        (child,) = _children(self._unshare.pid)
        self.pid = child

    def close(self) -> None:
        """End it with everything that runs in it."""
        assert self._unshare.stdin is not None
        assert self._unshare.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._unshare.stdin.close()
        try:
            self._unshare.wait(10)
        except subprocess.TimeoutExpired:
            self._unshare.kill()  # --kill-child: the first process of the namespaces goes with it
            self._unshare.wait()
        self._unshare.stdout.close()

    @property
    def uri(self) -> str:
        """How to reach its daemon from outside."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"

    @property
    def node(self) -> Node:
        """The host as lvmigrate's configuration names it."""
        return Node(
            name=self.name,
            ssh=None,
            libvirt_uri=self.uri,
            peer_uri=f"qemu+tcp://{self.address}/system",
            migration_address=self.address,
        )

    def inside(self, *command: str) -> list[str]:
        """The command that runs ``command`` in the host's namespaces."""
        return ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--ipc", "--pid", "--", *command]

    def run(self, script: str, *, check: bool = True) -> str:
        """Run a script for sh in the host, and give what it printed."""
        done = subprocess.run(
            self.inside("sh", "-c", script), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{self.name}: {script}: {done.returncode} {done.stderr}"
        return done.stdout

    def virsh(self, *words: str, check: bool = True) -> str:
        """What plain virsh says there."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{self.name}: virsh {words}: {done.stderr}"
        return done.stdout.strip()

    # ---- what runs there ----

    def processes(self) -> tuple[Process, ...]:
        """What the first process has started or inherited: daemons and QEMUs."""
        found = []
        for pid in _children(self.pid):
            with contextlib.suppress(OSError):
                command = tuple(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0"))
                if command != ("",):  # a zombie has none
                    found.append(Process(pid=pid, command=command))
        return tuple(found)

    def daemons(self) -> tuple[int, ...]:
        """The processes of its libvirt daemon: one, or none."""
        return tuple(
            p.pid for p in self.processes() if Path(p.command[0]).name == "libvirtd" and "--listen" in p.command
        )

    def qemus(self, guest: str) -> tuple[int, ...]:
        """The QEMU processes of this guest; one that only probes the emulator is none."""
        return tuple(p.pid for p in self.processes() if any(f"guest={guest}," in word for word in p.command))

    # ---- faults, and their ends ----

    def start_daemon(self) -> None:
        """Start its libvirt daemon; `daemon_ready` waits until it answers."""
        assert not self.daemons(), f"{self.name}: a daemon runs already"
        assert self._unshare.stdin is not None
        self._unshare.stdin.write("daemon\n")
        self._unshare.stdin.flush()

    def daemon_ready(self) -> None:
        """Wait until the daemon answers."""

        def listens() -> bool:
            with socket.socket(socket.AF_UNIX) as connection:
                return connection.connect_ex(f"{self.folder}/run/libvirt-sock") == 0

        wait_until(listens, f"the daemon of {self.name} listens; see {self.folder}/libvirtd.out")
        self.virsh("uri")

    def kill_daemon(self) -> None:
        """End the daemon at once (SIGKILL); the guests go on."""
        (pid,) = self.daemons()
        _kill(pid)

    def restart_daemon(self) -> None:
        """Start the daemon that was killed, and wait until it answers."""
        self.start_daemon()
        self.daemon_ready()

    @contextmanager
    def daemon_mute(self) -> Iterator[None]:
        """In the context, the daemon stands still (SIGSTOP)."""
        (pid,) = self.daemons()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill_qemu(self, guest: str) -> None:
        """End the guest's process at once (SIGKILL)."""
        (pid,) = self.qemus(guest)
        _kill(pid)

    def link(self, *, up: bool) -> None:
        """Cut the link to the other host, or mend it. The guests' serial ports have another one."""
        self.run(f"ip link set eth0 {'up' if up else 'down'}")

    def drop_long_replies(self, *, on: bool) -> None:
        """Lose what the daemon answers the other in packets of 200 bytes and more: keepalive messages still pass."""
        what = "-p tcp --sport 16509 -m length --length 200:65535 -j DROP"
        self.run(f"iptables {'-I' if on else '-D'} OUTPUT {what}")


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    # Until it is reaped: a zombie's other threads may still hold its sockets.
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} has ended")


def _children(pid: int) -> tuple[int, ...]:
    return tuple(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
