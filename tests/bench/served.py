"""A service whose nodes are a pair's: ``python -m tests.bench.served CONFIGURATION DESCRIPTION``."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx2 as httpx

from hv import LibvirtHypervisor
from lvmigrate import config
from lvmigrate.cluster import Cluster
from lvmigrate.service import events, server
from lvmigrate.service.client import Way
from lvmigrate.service.remote import RemoteCluster
from lvmigrate.sqlite_journal import SqliteJournal
from storage import SharedStorage
from tests.pair.cluster import DISKS, Description, PairShell
from tests.pair.host import wait_until

_READY_S: Final = 60.0
_KEPT_EVENTS: Final = 500


def cluster(path: str | None, description: Description) -> Cluster:
    """A cluster as its configuration has it, whose nodes are that pair's."""
    read = config.load(path)
    assert read.journal is not None
    configuration = dataclasses.replace(read, nodes=description.nodes)
    hypervisor = LibvirtHypervisor(
        description.nodes,
        connect_timeout_s=configuration.limits.connect_s,
        call_timeout_s=description.call_timeout_s,
    )
    storage = SharedStorage(description.nodes, [DISKS], shell=PairShell(description.inside))
    return Cluster(configuration, hypervisor, storage, SqliteJournal(read.journal))


def configure(description: Description, folder: Path, *, at_once: int) -> tuple[str, str]:
    """Write a configuration and the description into ``folder``; their paths."""
    folder.mkdir(exist_ok=True)
    nodes = "\n".join(f"[nodes.{name}]" for name in description.nodes)
    written = folder / "cluster.toml", folder / "pair.json"
    written[0].write_text(
        f"""{nodes}
[limits]
lease_s = {description.lease_s}
[journal]
path = "{folder / "journal.sqlite"}"
[service]
socket = "{folder / "api.sock"}"
at_once = {at_once}
per_node = {at_once}
requests_per_minute = 100000
stop = "abort"
"""
    )
    written[1].write_text(description.written())
    return str(written[0]), str(written[1])


def main() -> int:
    """Serve until a signal; the `lvmigrate.errors.ExitCode`."""
    path, description = sys.argv[1:]
    # What is kept for followers who were away is full soon, not after an hour: what grows then is a leak.
    defaults = events.Hub.__init__.__kwdefaults__
    assert defaults is not None
    defaults["kept"] = _KEPT_EVENTS
    described = Description.read(Path(description).read_text())
    return server.serve(path, open_cluster=partial(cluster, description=described))


class Served:
    """The process, from outside."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.socket = folder / "api.sock"
        self.process = process
        self.log = folder / "service.log"

    def remote(self) -> RemoteCluster:
        """What asks it, as `lvmigrate --server` does."""
        return RemoteCluster(Way(f"unix:{self.socket}"))

    def ready(self) -> bool:
        """Whether it answers."""
        assert self.process.poll() is None, self.log.read_text()
        if not self.socket.exists():
            return False
        try:
            with Way(f"unix:{self.socket}").client() as http:
                return http.get("/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0, self.log.read_text()


@contextmanager
def served(description: Description, folder: Path, *, at_once: int) -> Iterator[Served]:
    """With a service, whose files are in ``folder``; what is under way when it is to stop is aborted."""
    words = [sys.executable, "-m", "tests.bench.served", *configure(description, folder, at_once=at_once)]
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    made = Served(folder, process)
    try:
        wait_until(made.ready, made.log.read_text, _READY_S)
        yield made
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
