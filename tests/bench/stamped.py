"""A service in a simulated world that notes when it published what: ``python -m tests.bench.stamped CONFIG DOOR NAME``.

As tests/service/process.py, but for the notes, and that the world is not asked so often: libvirt and DRBD tell by
themselves, and have no part in the service's own work.  When it has ended, they are in ``stamps.json`` beside its
configuration: when each event was published, by its number and by CLOCK_MONOTONIC, before anything was done for it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, cast

from lvmigrate.service import server
from lvmigrate.service.events import Hub
from tests.service import far
from tests.service.process import cluster

#: Between two questions of each copy, watch and listener, in seconds.
_LOOK_S: Final = 0.2

_stamps: dict[int, float] = {}
_own = threading.local()


class StampedHub(Hub):
    """The log of events, and when each came."""

    def publish(self, job: str, kind: str, value: object, *, last: bool = False) -> None:
        _own.at = time.monotonic()
        super().publish(job, kind, value, last=last)
        del _own.at

    def _frame(self, number: int, kind: str, data: bytes) -> bytes:
        at = getattr(_own, "at", None)
        if at is not None:  # else it tells how something stands
            _stamps[number] = at
        return super()._frame(number, kind, data)


def main() -> int:
    """Serve until a signal; the `lvmigrate.errors.ExitCode`."""
    configuration, path, controller = sys.argv[1:]
    far._LOOK_S = _LOOK_S  # type: ignore[misc]
    cast("Any", server).Hub = StampedHub
    code = server.serve(configuration, open_cluster=lambda of: cluster(of, far.Door(path, controller)))
    Path(configuration).with_name("stamps.json").write_text(json.dumps(_stamps))
    return code


if __name__ == "__main__":
    sys.exit(main())
