"""Every deadline that runs while a link of the lab is cut, and how long the campaign's cuts last by them.

What the product waits for is imported from where it is decided; what the lab's DRBD waits for is read where the nodes
are given it.  The campaign's own configuration sets those that an operator sets, so that none is left that a cut of
some minutes does not reach.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from hv import connections, job, line
from lvmigrate import arrival, cleanup, dual_primary, follow, handover, lease, move, recovery, settle, takeover, upstart
from lvmigrate.config import Limits
from storage import marks, names, shell
from vagrant.labkit.lab import HERE

#: An emulated node needs more than a real one, and a lease that is waited for should be short.
LIMITS: Final = Limits(connect_s=60, command_s=60, lease_s=30)
#: Of a move, by the names of its options.
PATIENCE: Final[Mapping[str, int]] = {
    "sync_timeout_s": 120,
    "sync_stall_s": 60,
    "copy_timeout_s": 120,
    "recovery_timeout_s": 120,
}

_NET: Final = {
    key: int(value)
    for key, value in re.findall(
        r"(ping-int|timeout|connect-int) (\d+);",
        re.findall(r"net \{(.*)\}", (HERE / "provision" / "node").read_text(encoding="utf-8"))[0],
    )
}
#: DRBD's default, in tenths of a second.
_PING_TIMEOUT: Final = 5

#: Seconds after which the lab's DRBD may notice a cut, and those after which it does.
DRBD: Final[Mapping[str, float]] = {
    "an answer to a ping": _PING_TIMEOUT / 10,
    "an acknowledgement": _NET["timeout"] / 10,
    "a ping and its answer": _NET["ping-int"] + _PING_TIMEOUT / 10,
    "the next try to connect": _NET["connect-int"],
}


def _keepalive(interval: int, count: int) -> float:
    """A silent peer is given up after so many seconds."""
    return interval * (count + 1)


#: What everybody else waits for when an answer or a link does not come, in seconds.
DEADLINES: Final[Mapping[str, float]] = {
    "lease": LIMITS.lease_s,
    "lease, less its margin": LIMITS.lease_s * lease._MARGIN,
    "connection": LIMITS.connect_s,
    "command": LIMITS.command_s,
    "call of libvirt": 2 * LIMITS.command_s,  # as `Cluster.open` has it
    "ssh without a sign of life": shell.ALIVE_INTERVAL_S * shell.ALIVE_COUNT,
    "the controller's keepalive": _keepalive(*connections._KEEPALIVE),
    "libvirt's keepalive": _keepalive(*marks._KEEPALIVE.values()),
    "libvirt's opening": line._PATIENCE_S,
    "a change of the job": job._CHANGE_S,
    "a node's names": names.SILENT_S,
    "an abort": follow.ABORT_S,
    "a stream of events": follow._UNWATCHED_S,
    "move": move._SEEN_S,
    "handover": handover._SEEN_S,
    "arrival": arrival._WHOLE_S,
    "confirmation": dual_primary._CONFIRM_S,
    "a device that is held": dual_primary._HELD_S,
    "settlement": settle._SETTLE_S,
    "an answer": settle._ANSWER_S,
    "cleanup": cleanup._WAIT_S,
    "a last sign of life": takeover._DIES_S,
    "a start": upstart._ANSWER_S,
    "the next try of a post-copy": recovery._LONGEST_WAIT_S,
    **PATIENCE,
}

#: Nobody notices it: less than every deadline there is.
BLINK_S: Final = min(DRBD.values()) / 2
#: DRBD notices it, and nothing else does: less than every other deadline.
SHORT_S: Final = 2 * max(DRBD.values())
#: Everybody has noticed it: more than every deadline.
LONG_S: Final = 1.1 * max(*DRBD.values(), *DEADLINES.values())
#: A command stands still for longer than its lease, and the guards have done what they can by then.
STOPPED_S: Final = 1.5 * LIMITS.lease_s
