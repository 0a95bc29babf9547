"""A service in a simulated world: ``python -m tests.service.process CONFIGURATION DOOR CONTROLLER``."""

from __future__ import annotations

import sys
from typing import Any, cast

from lvmigrate import config
from lvmigrate.cluster import Cluster
from lvmigrate.errors import LvmigrateError
from lvmigrate.journal import NO_JOURNAL
from lvmigrate.service.server import serve
from lvmigrate.sqlite_journal import SqliteJournal
from tests.service.far import Door, FarHypervisor, FarStorage


def cluster(path: str | None, door: Door) -> Cluster:
    """A cluster as its configuration has it, whose nodes are in that world."""
    configuration = config.load(path)
    journal = NO_JOURNAL if configuration.journal is None else SqliteJournal(configuration.journal)
    hypervisor, storage = cast("Any", FarHypervisor(door)), cast("Any", FarStorage(door))
    return Cluster(configuration, hypervisor, storage, journal)


def main() -> int:
    """Serve until a signal; the `lvmigrate.errors.ExitCode`."""
    configuration, path, controller = sys.argv[1:]
    try:
        return serve(configuration, open_cluster=lambda of: cluster(of, Door(path, controller)))
    except LvmigrateError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
