"""Services as processes of their own, and what a test wants of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx2 as httpx

from lvmigrate.cluster import Cluster
from lvmigrate.service.client import Client, Way
from lvmigrate.service.remote import RemoteCluster
from lvmigrate.simulator import Guest, audit
from tests.service.far import CONTROLLERS, Door
from tests.service.process import cluster
from tests.service.stage import Stage

#: Short, so that a test need not wait long for what a service that was killed has left.
LEASE_S: Final = 2.0
#: A real service starts within a second; this machine is shared.
_LONG_S: Final = 60.0


class House:
    """A world, a directory, and the services that come and go in it."""

    #: What is started.
    module = "tests.service.process"

    def __init__(self, directory: Path, stage: Stage, service: str = "") -> None:
        self.directory = directory
        self.stage = stage
        self.socket = directory / "api.sock"
        self.configuration = directory / "cluster.toml"
        self.journal = directory / "journal.sqlite"
        self._write(service)
        self.process: subprocess.Popen[bytes] | None = None
        self.controller = ""
        self.log = directory / "service.log"

    def _write(self, service: str) -> None:
        nodes = "\n".join(f'[nodes.{name}]\nssh = "root@{name}"' for name in self.stage.world.hosts)
        self.configuration.write_text(
            f"""{nodes}
[limits]
lease_s = {LEASE_S}
[defaults]
poll_s = 0.1
[journal]
path = "{self.journal}"
[service]
socket = "{self.socket}"
{service}
""",
            encoding="utf-8",
        )

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"

    def start(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start a service, and wait until it is ready."""
        self.controller = f"c{next(CONTROLLERS)}"
        words = [str(self.configuration), str(self.stage.path), self.controller]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *words],
                stderr=log,
                stdout=log,
                env={**os.environ, **environment},
            )
        with Way(self.url).client() as http:
            wait_for(lambda: self._ready(http), self._said)

    def _ready(self, http: httpx.Client) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._said()
        with closing(socket.socket(socket.AF_UNIX)) as probe:  # httpx leaves one open that was refused
            if probe.connect_ex(str(self.socket)) != 0:
                return False
        try:
            return http.get("/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.stage.kill(self.controller)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop, and wait for its end; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(_LONG_S)
        finally:
            self.stage.kill(self.controller)

    def guest(self, name: str, node: str = "node1", **more: Any) -> Guest:
        return self.stage.do(lambda: self.stage.world.add_guest(name, node, **more))

    def running(self, guest: Guest) -> list[str]:
        return self.stage.do(lambda: self.stage.world.running(guest))

    def client(self) -> Client:
        return Client(Way(self.url))

    def remote(self) -> RemoteCluster:
        return RemoteCluster(Way(self.url))

    def local(self) -> Cluster:
        """The same nodes, asked by a command of this very machine."""
        return cluster(str(self.configuration), Door(str(self.stage.path), f"c{next(CONTROLLERS)}"))

    def copies_begun(self) -> int:
        """How often libvirt was asked to move a guest."""
        return self.stage.do(lambda: len(self.stage.world.migrations))

    def at_rest(self) -> None:
        """Nothing is wrong, and nothing ever was."""
        wait_for(
            lambda: not self.stage.do(lambda: audit(self.stage.world)),
            lambda: str(self.stage.do(lambda: audit(self.stage.world))),
        )
        assert self.stage.do(lambda: list(self.stage.world.violations)) == []


@contextmanager
def house(directory: Path, service: str = "", **world: Any) -> Iterator[House]:
    """With a world; whatever service is left at the end is killed."""
    with Stage(directory / "door", **world) as stage:
        made = House(directory, stage, service)
        try:
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.process.kill()
                made.process.wait()


def wait_for(holds: Callable[[], Any], why: Callable[[], str] = lambda: "", seconds: float = _LONG_S) -> Any:
    """Until it holds; what it gave."""
    until = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < until, why()
        time.sleep(0.05)
    return value


def user() -> str:
    return f"user:{os.environ.get('USER', 'root')}"
