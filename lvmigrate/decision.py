"""What to do with a guest that is, or may be, between two nodes: from what both say now, never from memory or a reply.

The invariants: a copy is let run only when no other copy runs or can come to run by itself; a copy is ended only when
it stands still and another one has at least its memory; a node is made Secondary only when nothing uses its device;
two primaries are forbidden only while Connected, with one Secondary seen.  What cannot keep them is held as it is.

Pure: no I/O, no clock.  Two tables and their order: `GUEST` (source x target) says where the guest is to live and what
leads there; `DISKS` (roles x connection x two-primaries x openers) closes what a move has opened around it.  Whether
one may act at all is the token's matter (`may_act`).  The documentation prints all three (docs/decisions.md).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lvmigrate.domain import Domain, DomainState, JobKind
from lvmigrate.replication import ConnectionState, Resource, Role
from lvmigrate.token import Held


class Sight(enum.Enum):
    """One node's word about its copy of the guest."""

    #: A copy whose CPUs run.
    RUNS = "runs"
    #: A copy that somebody paused, or that arrived paused: its memory is whole.
    WAITS = "waits paused"
    #: A copy that libvirt itself stopped for a migration, and libvirt has no job any more.
    STALLED = "stopped by libvirt for a migration"
    #: A copy that stands for a reason of its own: an I/O error, a crash, a wake-up awaited, a broken post-copy.
    HELD = "stands still for a reason of its own"
    #: libvirt sends it away, and its CPUs run.
    LEAVING = "is sent away"
    #: libvirt sends it away, and its CPUs stand: the last pass, or the hand-over.
    HANDING_OVER = "is handed over"
    #: libvirt receives it.
    ARRIVING = "is received"
    #: One end of a post-copy that goes on: half of the guest's memory is here, half on the other node.
    POST_COPY = "is in post-copy"
    #: One end of a post-copy that broke.
    HALF = "has half of the memory: its post-copy broke"
    #: Another job of libvirt's: a save, a backup.
    BUSY = "has another job"
    #: The node answered: no process of this guest.
    GONE = "gone"
    #: No answer.
    UNKNOWN = "unknown"


class Action(enum.Enum):
    """What follows for the guest. The value is the sentence for people."""

    ASK_AGAIN = "ask both nodes again; what does not change until the deadline is held"
    FOLLOW = "libvirt's job goes on: keep the token and the guards alive, watch it to its end, then look again"
    SWITCH = "it has arrived: connect what DRBD has parted, and let it run on the target if replication is whole"
    STAYED = "nothing arrived: it stays at the source as it is; close what was opened"
    DISCARD_TARGET = "end the target's copy, which never ran; it stays at the source; close what was opened"
    DISCARD_AND_RESUME = "end the target's copy, which never ran; let the source's run again; close what was opened"
    RESUME_SOURCE = "nothing arrived: let the source's copy run again; close what was opened"
    DISCARD_SOURCE = "it runs on the target: end the source's copy, which stands still and is the older one"
    ARRIVED = "it is on the target, and only there"
    NOWHERE = "it runs nowhere: close what was opened, and say so"
    SUSPEND_BOTH = "two running copies: suspend both, which can be undone; then a person must decide"
    HOLD = "undo nothing, force nothing; a person must decide"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What follows from what was seen, and the reason."""

    action: Action
    why: str


_S = Sight
_A = Action
#: A copy with its own process whose CPUs do not run and that no job will change.
_STANDING: Final = frozenset({_S.WAITS, _S.STALLED})
#: What time may change by itself.
_PASSING: Final = frozenset({_S.LEAVING, _S.HANDING_OVER, _S.ARRIVING, _S.POST_COPY, _S.HALF, _S.BUSY, _S.UNKNOWN})

#: (source, target) -> what follows. A pair that is not listed is HOLD.
GUEST: Final[dict[tuple[Sight, Sight], Ruling]] = {
    pair: Ruling(action=action, why=why)
    for pair, action, why in (
        ((_S.RUNS, _S.GONE), _A.STAYED, "one running copy, at the source"),
        ((_S.HELD, _S.GONE), _A.STAYED, "one copy, at the source; why it stands is no matter of the move's"),
        ((_S.WAITS, _S.GONE), _A.STAYED, "one copy, at the source, which somebody paused"),
        (
            (_S.STALLED, _S.GONE),
            _A.RESUME_SOURCE,
            "one copy, which libvirt stopped for a hand-over that did not happen",
        ),
        ((_S.RUNS, _S.WAITS), _A.DISCARD_TARGET, "the source took over again: the target's copy is the older one"),
        ((_S.RUNS, _S.STALLED), _A.DISCARD_TARGET, "the source took over again: the target's copy is the older one"),
        ((_S.WAITS, _S.WAITS), _A.HOLD, "both were paused by somebody: each may have run, and have the newer memory"),
        ((_S.WAITS, _S.STALLED), _A.DISCARD_AND_RESUME, "both stand; the source's copy is surely whole"),
        ((_S.STALLED, _S.WAITS), _A.DISCARD_AND_RESUME, "both stand; the source's copy is surely whole"),
        ((_S.STALLED, _S.STALLED), _A.DISCARD_AND_RESUME, "both stand; the source's copy is surely whole"),
        ((_S.WAITS, _S.RUNS), _A.DISCARD_SOURCE, "the target's copy went on: the source's is the older one"),
        ((_S.STALLED, _S.RUNS), _A.DISCARD_SOURCE, "the target's copy went on: the source's is the older one"),
        ((_S.HANDING_OVER, _S.RUNS), _A.DISCARD_SOURCE, "the target runs, and the source's libvirt would run it again"),
        ((_S.GONE, _S.WAITS), _A.SWITCH, "one copy, on the target, whole and waiting"),
        ((_S.GONE, _S.RUNS), _A.ARRIVED, "one running copy, on the target"),
        ((_S.GONE, _S.GONE), _A.NOWHERE, "both nodes answered, and neither has a process of it"),
        ((_S.RUNS, _S.RUNS), _A.SUSPEND_BOTH, "two running copies"),
        *(
            ((leaving, there), _A.FOLLOW, "peer-to-peer jobs outlive the client that asked for them")
            for leaving in (_S.LEAVING, _S.HANDING_OVER)
            for there in (_S.GONE, _S.ARRIVING, _S.WAITS, _S.STALLED)
        ),
        (
            (_S.POST_COPY, _S.POST_COPY),
            _A.FOLLOW,
            "a post-copy goes on: only both nodes together have the guest's memory",
        ),
        ((_S.LEAVING, _S.RUNS), _A.SUSPEND_BOTH, "two running copies, one of which is being sent away"),
    )
}


#: When a reply is lost, libvirt lets the source's copy run again; if that one ends later, the one that waits is older
#: than the disk.
NOT_HANDED_OVER: Final = (
    "nothing says that the source's copy was handed over before it ended: it may have run on, and be the newer one"
)


def handed_over(domain: Domain | None) -> bool | None:
    """Whether the copy of the source ended because it was handed over, by its libvirt's word; ``None``: no word."""
    return None if domain is None or domain.state is not DomainState.OFF else domain.reason == "migrated"


def decide(
    source: Sight, target: Sight, *, ran: bool | None, last_chance: bool, handed_over: bool | None = None
) -> Ruling:
    """What follows from both nodes' word about the guest.

    ``ran``: whether its CPUs ran when the move began (one that was paused stays paused); ``None``: nobody knows, so it
    is not known either which node was the source.  ``last_chance``: the deadline has passed; nothing will change by
    itself any more.  ``handed_over``: whether the source's copy, gone now, ended because it was handed over; ``None``:
    nobody says (a transient guest leaves no word).
    """
    pair = (source, target)
    ruling = GUEST.get(pair)
    if ruling is None:
        return _unlisted(pair, last_chance=last_chance)
    if ruling.action is _A.SWITCH and ran is not False and handed_over is False:
        return Ruling(action=_A.HOLD, why=NOT_HANDED_OVER)
    if ruling.action is _A.DISCARD_AND_RESUME and not last_chance:
        return Ruling(action=_A.ASK_AGAIN, why="libvirt may still end one of the two by itself")
    if ruling.action is _A.DISCARD_AND_RESUME and ran is None:
        return Ruling(action=_A.HOLD, why="both copies stand, and nobody knows which node was the source")
    return _of_a_paused_guest(pair, ruling) if ran is False else ruling


def _of_a_paused_guest(pair: tuple[Sight, Sight], ruling: Ruling) -> Ruling:
    """The same for a guest that stood before the move began: it is to stand after it, and neither copy ever ran."""
    if ruling.action is _A.DISCARD_AND_RESUME or pair == (_S.WAITS, _S.WAITS):
        return Ruling(action=_A.DISCARD_TARGET, why="both stand as the guest did before; the source's is whole")
    if ruling.action is _A.RESUME_SOURCE:
        return Ruling(action=_A.STAYED, why="one copy, at the source, which stood before the move as well")
    return ruling


def _unlisted(pair: tuple[Sight, Sight], *, last_chance: bool) -> Ruling:
    if not last_chance and _PASSING & set(pair):
        return Ruling(action=_A.ASK_AGAIN, why="time may change this by itself")
    if _S.UNKNOWN in pair:
        return Ruling(action=_A.HOLD, why="no answer is no proof: the guest may run on the node that is silent")
    if _S.HALF in pair or _S.POST_COPY in pair:
        return Ruling(
            action=_A.HOLD,
            why="a post-copy broke: the guest is whole only with both ends, and what ran last is the target's",
        )
    if _S.HELD in pair:
        return Ruling(action=_A.HOLD, why="a copy stands still for a reason that no rule may judge")
    if _PASSING & set(pair):
        return Ruling(action=_A.HOLD, why="libvirt has a job that does not end")
    return Ruling(action=_A.HOLD, why="libvirt's words about the two copies do not fit together")


#: libvirt's reasons with which a copy stands for a migration's sake: being received, being handed over, or its daemon
#: was restarted in the last phase, or could not let it run again after a move that failed (measured: libvirt 11.3).
_STOPPED_BY_LIBVIRT: Final = frozenset({"migration", "starting up", "api error"})


def sight_of(domain: Domain | None) -> Sight:  # noqa: PLR0911 -- one line for each
    """What an observation amounts to; ``None``: the node answered and knows no such guest."""
    if domain is None or domain.state is DomainState.OFF:
        return Sight.GONE
    paused = domain.state is DomainState.PAUSED
    if domain.state not in (DomainState.RUNNING, DomainState.PAUSED):
        return Sight.HELD
    if domain.reason == "post-copy failed":
        return Sight.HALF
    if domain.reason == "post-copy":
        return Sight.HALF if domain.job is JobKind.NONE else Sight.POST_COPY
    match domain.job:
        case JobKind.INCOMING:
            return Sight.ARRIVING
        case JobKind.OUTGOING:
            return Sight.HANDING_OVER if paused else Sight.LEAVING
        case JobKind.OTHER:
            return Sight.BUSY
    if not paused:
        return Sight.RUNS
    # A copy that arrived paused waits for "user", as one that an operator has suspended.
    if domain.reason == "user":
        return Sight.WAITS
    return Sight.STALLED if domain.reason in _STOPPED_BY_LIBVIRT else Sight.HELD


class Link(enum.Enum):
    """The connection of one resource between the two nodes, by both kernels' word."""

    #: Connected; every volume Established, and UpToDate at both ends.
    WHOLE = "in step"
    #: Connected, but a volume is not (yet) in step.
    BEHIND = "connected, not in step"
    #: Not connected; DRBD tries.
    CUT = "not connected"
    #: Not connected, and DRBD does not try any more.
    PARTED = "StandAlone"
    #: A node gave no answer.
    UNKNOWN = "unknown"


class Closing(enum.Enum):
    """What follows for one resource. The value is the sentence for people."""

    CLOSED = "nothing is left to do"
    DEMOTE_AWAY = "make the node Secondary on which the guest does not run"
    DEMOTE_HOME = "make the node Secondary where nothing uses the device any more"
    RECONNECT = "restore the connection's options, and connect again unless both copies have changed"
    FORBID = "restore the connection's options: forbid two primaries"
    WAIT = "wait for the connection, or for the copies to be in step"
    HOLD = "undo nothing, force nothing; a person must decide"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One resource, seen from the node where the guest is to live (home) and from the other one (away)."""

    #: ``None`` wherever it is not known.
    home_primary: bool | None
    away_primary: bool | None
    #: Something has a device of it open there.
    home_held: bool | None
    away_held: bool | None
    link: Link
    two_primaries: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRow:
    """One line of the table: the first whose condition holds counts."""

    when: str
    holds: Callable[[Disk], bool]
    closing: Closing
    why: str


DISKS: Final[tuple[DiskRow, ...]] = (
    DiskRow(
        when="anything is unknown",
        holds=lambda d: (
            None in (d.home_primary, d.away_primary, d.home_held, d.away_held, d.two_primaries)
            or d.link is Link.UNKNOWN
        ),
        closing=Closing.HOLD,
        why="no answer is no proof",
    ),
    DiskRow(
        when="away is Primary and something has the device open there",
        holds=lambda d: bool(d.away_primary and d.away_held),
        closing=Closing.HOLD,
        why="a device is taken from nobody; DRBD 9 would demote under a reader",
    ),
    DiskRow(
        when="away is Primary and nothing uses it",
        holds=lambda d: bool(d.away_primary),
        closing=Closing.DEMOTE_AWAY,
        why="needs no connection: the node gives up what nobody there uses",
    ),
    DiskRow(
        when="home is Primary, and nothing uses it",
        holds=lambda d: bool(d.home_primary and not d.home_held),
        closing=Closing.DEMOTE_HOME,
        why="an explicit Primary would stay after the guest's shutdown",
    ),
    DiskRow(
        when="StandAlone, away is Secondary",
        holds=lambda d: d.link is Link.PARTED,
        closing=Closing.RECONNECT,
        why="only one end is written to; if that does not last, which copy to give up is a person's decision",
    ),
    DiskRow(
        when="two primaries are allowed, not connected",
        holds=lambda d: bool(d.two_primaries) and d.link is Link.CUT,
        closing=Closing.WAIT,
        why="turned off during a cut, DRBD refuses to connect again",
    ),
    DiskRow(
        when="two primaries are allowed, connected, away is Secondary",
        holds=lambda d: bool(d.two_primaries),
        closing=Closing.FORBID,
        why="the dual-primary is over",
    ),
    DiskRow(
        when="not in step",
        holds=lambda d: d.link is not Link.WHOLE,
        closing=Closing.WAIT,
        why="nothing is open any more; the copies find together by themselves",
    ),
    DiskRow(when="otherwise", holds=lambda _d: True, closing=Closing.CLOSED, why="single-primary and in step"),
)


def closing(disk: Disk) -> DiskRow:
    """The row that counts for this resource."""
    return next(row for row in DISKS if row.holds(disk))


def link_of(ends: tuple[Resource | None, Resource | None], nodes: tuple[str, str]) -> Link:
    """What the two kernels' words about a connection amount to: the worse of the two."""
    worst = Link.WHOLE
    for here, peer in zip(ends, reversed(nodes), strict=True):
        if here is None:
            return Link.UNKNOWN
        connection = here.towards(peer)
        if connection is None or connection.state in (ConnectionState.STANDALONE, ConnectionState.DISCONNECTING):
            worst = Link.PARTED
        elif connection.state is not ConnectionState.CONNECTED:
            worst = Link.PARTED if worst is Link.PARTED else Link.CUT
        elif not here.in_step_with(peer) and worst is Link.WHOLE:
            worst = Link.BEHIND
    return worst


def primary(resource: Resource | None) -> bool | None:
    """Whether its node is Primary for it; ``None``: not known."""
    return None if resource is None or resource.role is Role.UNKNOWN else resource.role is Role.PRIMARY


class May(enum.Enum):
    """Whether one may act on a guest. The value is the sentence for people."""

    TAKE = "nobody holds its token, or the lease ran out: take it"
    GO_ON = "the token is ours: go on"
    WAIT = "somebody holds it: wait until the lease runs out; one that is renewed meanwhile is alive, and left alone"


def may_act(held: Held | None, own_id: str | None) -> May:
    """What a token found on a node means to the command whose token has the id ``own_id``."""
    if held is None or not held.alive:
        return May.TAKE
    return May.GO_ON if held.id == own_id else May.WAIT
