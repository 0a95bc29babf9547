"""``storage`` keeps the contract of `lvmigrate.protocols.Storage` on nodes with real DRBD, as the simulator does."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lvmigrate.node import Node
from storage import DrbdStorage
from tests.contract.storage import StorageContract, ours, token
from vagrant.labkit.lab import NODES, Lab

__all__ = ["ours", "token"]


class Real:
    name = "web1"
    path = "/dev/drbd0"

    def __init__(self, lab: Lab, storage: DrbdStorage) -> None:
        self.storage = storage
        self._lab = lab

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    @contextmanager
    def held(self, node: str, *, write: bool) -> Iterator[None]:
        mode = "<>" if write else "<"
        pid = self._lab.run(node, f"(exec 3{mode}{self.path}; exec sleep 600) >/dev/null 2>&1 </dev/null & echo $!")
        try:
            self._lab.run(node, f"until [ -e /proc/{pid.strip()}/fd/3 ]; do sleep 0.05; done")
            yield
        finally:
            self._lab.run(node, f"kill {pid.strip()}; while kill -0 {pid.strip()} 2>/dev/null; do sleep 0.05; done")

    @contextmanager
    def old(self, node: str) -> Iterator[None]:
        self._lab.run(node, f"drbdadm disconnect {self.name}")
        try:
            # Not by drbdadm: for 9 that of drbd-utils 9.22 says the resource's name, and drbdsetup wants the minor.
            self._lab.run(node, f"drbdsetup outdate {self.path.removeprefix('/dev/drbd')}")
            yield
        finally:
            connected = f"drbdsetup events2 --now {self.name} | grep -q 'connection:Connected'"
            self._lab.run(node, f"drbdadm secondary {self.name}; {connected} || drbdadm connect {self.name}")
            in_step = f"drbdsetup events2 --now {self.name} | grep -q 'replication:Established.*peer-disk:UpToDate'"
            self._lab.both(f"n=0; until {in_step}; do n=$((n + 1)); [ $n -lt 300 ] || exit 1; sleep 0.2; done")

    @contextmanager
    def for_good(self) -> Iterator[None]:
        file = "/etc/drbd.d/global_common.conf"
        # The options before the file: in between they differ, as after a change by hand.
        self._allow("yes")
        try:
            self._lab.both(f"sed -i.kept 's/protocol C;/protocol C; allow-two-primaries yes;/' {file}")
            yield
        finally:
            self._lab.both(f"[ ! -e {file}.kept ] || mv {file}.kept {file}")
            self._allow("no")

    def _allow(self, two_primaries: str) -> None:
        for node in NODES:  # one after the other: each change is told to the other end
            self._lab.run(node, f"drbdadm net-options --allow-two-primaries={two_primaries} {self.name}")


@pytest.fixture(scope="module")
def storage(cluster_file: Path) -> Iterator[DrbdStorage]:
    listed = tomllib.loads(cluster_file.read_text())
    keys = ("ssh", "libvirt_uri", "peer_uri", "migration_address")
    nodes = {n: Node(name=n, **{key: table[key] for key in keys}) for n, table in listed["nodes"].items()}
    made = DrbdStorage(nodes, ssh_config=Path(listed["ssh"]["config"]))
    yield made
    made.close()


class TestStorage(StorageContract):
    @pytest.fixture
    def stage(self, lab: Lab, storage: DrbdStorage) -> Iterator[Real]:
        look = "drbdsetup events2 --now | grep -o 'resource name:.* role:Primary'; drbdsetup show | grep two-primaries"
        at_rest = dict.fromkeys(NODES, "")
        assert lab.both(f"{look}; true") == at_rest
        yield Real(lab, storage)
        lab.both(f"drbdadm secondary {Real.name}; drbdadm adjust {Real.name}")
        assert lab.both(f"{look}; true") == at_rest
