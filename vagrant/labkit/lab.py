"""The two nodes, by plain ssh."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

NODES: Final = ("node1", "node2")
HERE: Final = Path(__file__).resolve().parent.parent


class LabError(Exception):
    """A command on a node failed that must not fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The lab of this checkout, which is up. The process must be one of ``vagrant/lab exec``."""

    state: Path
    #: The address at which the nodes reach the controller.
    address: str
    #: A folder for the sockets of shared ssh connections.
    sockets: Path

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self]:
        """Find out where everything is; the connections end with the context."""
        text = subprocess.run([HERE / "lab", "env"], check=True, capture_output=True, text=True).stdout
        env = dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines() if "=" in line)
        known = {key: shlex.split(value)[0] for key, value in env.items() if value}
        with tempfile.TemporaryDirectory(prefix="labkit-") as sockets:
            lab = cls(state=Path(known["LAB_STATE"]), address=known["LAB_CONTROLLER_ADDRESS"], sockets=Path(sockets))
            try:
                yield lab
            finally:
                for node in NODES:
                    lab.forget(node)

    @property
    def config(self) -> Path:
        """The configuration file for lvmigrate."""
        return self.state / "cluster.toml"

    def ssh(self, node: str, script: str) -> list[str]:
        """The command line that runs ``script`` on ``node``."""
        options = ["ControlMaster=auto", f"ControlPath={self.sockets}/%n", "ControlPersist=120", "BatchMode=yes"]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", str(self.state / "ssh_config"), *words, node, "--", script]

    def run(self, node: str, script: str, *, check: bool = True, timeout_s: float = 120) -> str:
        """Run ``script`` on ``node`` and return what it printed. Raises `LabError` when it fails, if ``check``."""
        return self.read(node, script, check=check, timeout_s=timeout_s).decode(errors="replace")

    def read(self, node: str, script: str, *, check: bool = True, timeout_s: float = 120) -> bytes:
        """As `run`, for what is no text."""
        done = subprocess.run(
            self.ssh(node, script), capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
        )
        if check and done.returncode:
            words = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
            raise LabError(f"{node}: {script}: exit {done.returncode}: {words}")
        return done.stdout

    def both(self, script: str, *, check: bool = True) -> dict[str, str]:
        """Run ``script`` on both nodes side by side; what each printed."""
        with ThreadPoolExecutor(len(NODES)) as pool:
            futures = {node: pool.submit(self.run, node, script, check=check) for node in NODES}
            return {node: future.result() for node, future in futures.items()}

    def cut_power(self, node: str) -> None:
        """Switch ``node`` off, as a power cut would; it must be on."""
        self.forget(node)
        subprocess.run([HERE / "lab", "cut-power", node], check=True, capture_output=True, timeout=60)

    def switch_on(self, node: str, *, timeout_s: float = 180) -> None:
        """Switch ``node`` on, unless it is, and wait until its libvirt answers and DRBD is up. Raises `LabError`."""
        self.forget(node)
        done = subprocess.run([HERE / "lab", "start", node], check=False, capture_output=True, text=True, timeout=60)
        if done.returncode and "already" not in done.stderr:
            raise LabError(f"{node} cannot be switched on: {done.stderr}")
        deadline = time.monotonic() + timeout_s
        look = "systemctl is-active --quiet lab-drbd.service && virsh -q version >/dev/null && echo up"
        while True:
            try:
                if self.run(node, look, check=False, timeout_s=40).strip() == "up":
                    return
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() > deadline:
                raise LabError(f"{node} was switched on, and does not answer")
            self.forget(node)
            time.sleep(1)

    def forget(self, node: str) -> None:
        """End the shared ssh connection to ``node``: one to a node that has died is waited for in vain."""
        command = [*self.ssh(node, "true")[:-3], "-O", "exit", node]
        subprocess.run(command, capture_output=True, check=False, timeout=60)

    def drbd_version(self) -> str:
        """The version of the DRBD module on the nodes."""
        return self.run(NODES[0], "cat /sys/module/drbd/version").strip()


def other(node: str) -> str:
    """The node that ``node`` is not."""
    return NODES[1 - NODES.index(node)]
