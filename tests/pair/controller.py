"""A controller that moves a guest and is killed: ``python -m tests.pair.controller DESCRIPTION GUEST MOMENT SWITCH``.

``MOMENT`` is the name of a step of a move (killed as it begins), or ``copying`` (once the copy is under way), or
``handing over`` (once the source's CPUs were stopped for the last pass).  It kills itself with SIGKILL, at once.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

from lvmigrate.move import STEPS
from lvmigrate.plan import Options, Switch
from lvmigrate.progress import StepProgress
from tests.pair.cluster import Description
from tests.pair.guest import SLOW_MIB_S

COPYING: Final = "copying"
HANDING_OVER: Final = "handing over"
MOMENTS: Final = (*(step.name for step in STEPS), COPYING, HANDING_OVER)


def main() -> None:
    """See above."""
    description, uuid, moment, switch = sys.argv[1:]
    assert moment in MOMENTS, moment
    cluster, hypervisor = Description.read(description).cluster()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_progress(progress: StepProgress) -> None:
        if progress.step == moment or (moment == COPYING and progress.memory is not None):
            die()
        if progress.memory is not None:
            print("under way", flush=True)

    def on_event(node: str, event: str) -> None:
        if moment == HANDING_OVER and (node, event) == ("node1", "suspended migrated"):
            die()

    with hypervisor.on_change(uuid, on_event):
        cluster.migrate(
            uuid,
            target="node2",
            options=Options(bandwidth_mib_s=SLOW_MIB_S, switch=Switch(switch), poll_s=0.1),
            on_progress=on_progress,
        )
    sys.exit(f"it was to be killed at: {moment}")


if __name__ == "__main__":
    main()
