"""A service on the pair: ``python -m tests.page.process CONFIGURATION``; standard input has the pair's description."""

from __future__ import annotations

import dataclasses
import sys

from lvmigrate import config
from lvmigrate.cluster import Cluster
from lvmigrate.service.server import serve
from lvmigrate.sqlite_journal import SqliteJournal
from storage import SharedStorage
from tests.pair.cluster import DISKS, Description, PairShell

if __name__ == "__main__":
    described = Description.read(sys.stdin.read())

    def cluster(path: str | None) -> Cluster:
        """With the pair's own ways to its nodes."""
        written = config.load(path)
        configuration = dataclasses.replace(written, nodes=described.nodes)
        _, hypervisor = described.cluster()
        storage = SharedStorage(described.nodes, [DISKS], shell=PairShell(described.inside))
        assert written.journal is not None
        return Cluster(configuration, hypervisor, storage, SqliteJournal(written.journal))

    sys.exit(serve(sys.argv[1], open_cluster=cluster))
