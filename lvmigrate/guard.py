"""What a dead-man's guard does on its node, decided from what it sees there. Pure: no I/O, no clock.

The guard itself is a shell script (storage/guard.sh), because nothing is installed on a node; its decision is this one,
and a test compares the two for every combination.  The simulator and the documentation use this one.

The invariant: a guard acts on its own node only; never while the token lives; never while libvirt has a job or an
incoming copy of the guest or gives no answer; it takes a device from nobody; and it lets a guest run only on proof,
through DRBD, that the other node's copy is gone, that it ended by being handed over, and that this node's disk has
everything.  The word for the second is two primaries: where a guest waits they are forbidden by the other node's guard
alone, and by that one only if its own copy was handed over.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Copy(enum.Enum):
    """The node's own copy of the guest, as its own libvirt tells."""

    #: No process, and libvirt does not know the guest, or says that it was handed over.
    LEFT = "left"
    #: No process, for another reason: it may have run on after a hand-over that failed.
    NONE = "none"
    #: Its CPUs stand, and libvirt has no job: it arrived and waits.
    WAITS = "waits"
    #: It runs, or stands for a reason of its own.
    LIVES = "lives"
    #: libvirt has a job, in or out.
    BUSY = "busy"
    #: libvirt gave no answer.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One guarded resource as this node's kernel describes it."""

    primary: bool
    #: Something has a device of it open here, in any mode.
    held: bool
    connected: bool
    peer_secondary: bool
    #: Every volume Established, and UpToDate at both ends; I/O is not suspended.
    in_step: bool
    #: The generation of the data is the one that was there when the guard was armed.
    unbroken: bool
    #: The connection's options are not what is to be restored.
    changed: bool


class Act(enum.Enum):
    """What it does next. The value is the sentence for people."""

    SLEEP = "the token lives: do nothing"
    WAIT = "not yet: look again"
    DEMOTE = "nothing uses the device: make this node Secondary"
    RESTORE = "connected and one end is Secondary: restore the connection's options"
    RESUME = "the peer handed over and is Secondary, and this disk has everything: let the guest that waits run"
    DISARM = "nothing is left to do: remove the guard; the token that ran out stays as the record"


def decide(copy: Copy, links: Sequence[Link], *, alive: bool, resume: bool) -> tuple[Act, int | None]:
    """The next act, and which link it is about (``None``: the whole guest).

    ``alive``: the token lives.  ``resume``: it was ordered to let a guest run that arrived here and waits.
    """
    if alive:
        return Act.SLEEP, None
    if copy in (Copy.BUSY, Copy.UNKNOWN):
        return Act.WAIT, None
    for number, link in enumerate(links):
        if link.primary and not link.held and copy in (Copy.LEFT, Copy.NONE):
            return Act.DEMOTE, number
    waits = copy is Copy.WAITS and resume
    for number, link in enumerate(links):
        one_secondary = link.peer_secondary or (copy is Copy.LEFT and not link.primary)
        if link.changed and link.connected and one_secondary and not waits:
            return Act.RESTORE, number
    if waits and all(
        link.primary and link.connected and link.peer_secondary and link.in_step and link.unbroken and not link.changed
        for link in links
    ):
        return Act.RESUME, None
    idle = all(not link.changed and (link.held or not link.primary) for link in links)
    return (Act.DISARM if idle and not waits else Act.WAIT), None
