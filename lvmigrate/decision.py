"""What to do when the call that copied memory has ended: decided from what both nodes say now, never from its reply.

The invariant: the guest's copy on the source is resumed only when no copy on the target runs or can come to run, and a
copy on the target is resumed only when the source's is gone.  A row that cannot keep it holds everything as it is.

Pure: no I/O, no clock.  `decide` is a lookup in `TABLE`, which the documentation prints.
"""

from __future__ import annotations

import enum
from typing import Final

from lvmigrate.domain import Domain, DomainState, JobKind


class Sight(enum.Enum):
    """One node's word about the guest."""

    #: A copy whose CPUs run.
    RUNS = "runs"
    #: A copy whose CPUs stand.
    WAITS = "waits paused"
    #: The node answered: no process of this guest.
    GONE = "gone"
    #: libvirt still has a migration job, in or out.
    BUSY = "job active"
    #: No answer, or an answer that is none of the above.
    UNKNOWN = "unknown"


class Action(enum.Enum):
    """What follows. The value is the sentence for people."""

    ASK_AGAIN = "ask both nodes again until the deadline, then hold"
    SWITCH = "the guest has arrived: resume it on the target if replication is whole"
    STAYED = "nothing arrived: the guest goes on at the source; undo the rest"
    DISCARD = "end the copy that waits on the target, which never ran; the guest goes on at the source; undo the rest"
    DISCARD_AND_RESUME = "end the copy that waits on the target, which never ran; resume the source; undo the rest"
    RESUME_SOURCE = "nothing arrived: resume the source; undo the rest"
    ARRIVED = "the guest already runs on the target, and only there"
    LOST = "the guest runs nowhere: close what was opened, and say so"
    TWICE = "two running copies: suspend both, which can be undone; a person must decide"
    HOLD = "proof cannot be had: undo nothing, force nothing; a person must decide"


_S = Sight

#: (source, target) -> action. A pair that is not listed is HOLD.
TABLE: Final[dict[tuple[Sight, Sight], Action]] = {
    (_S.GONE, _S.WAITS): Action.SWITCH,
    (_S.GONE, _S.RUNS): Action.ARRIVED,
    (_S.GONE, _S.GONE): Action.LOST,
    (_S.RUNS, _S.GONE): Action.STAYED,
    (_S.RUNS, _S.WAITS): Action.DISCARD,
    (_S.RUNS, _S.RUNS): Action.TWICE,
    (_S.WAITS, _S.GONE): Action.RESUME_SOURCE,
    # libvirt's source daemon resumes or ends its copy by itself a keepalive later: only past the deadline is it ours.
    (_S.WAITS, _S.WAITS): Action.DISCARD_AND_RESUME,
    # The target's copy must not be ended (it runs), nor the source's resumed: hold.
    (_S.WAITS, _S.RUNS): Action.HOLD,
}

#: Pairs that time may change by itself: asked again until the deadline before they are acted upon.
PASSING: Final[frozenset[tuple[Sight, Sight]]] = frozenset(
    {(_S.WAITS, _S.WAITS), (_S.WAITS, _S.RUNS), (_S.RUNS, _S.WAITS)}
)


def sight_of(domain: Domain | None) -> Sight:
    """What an observation amounts to; ``None``: the node answered and knows no such guest."""
    if domain is None:
        return Sight.GONE
    if domain.job in (JobKind.OUTGOING, JobKind.INCOMING):
        return Sight.BUSY
    match domain.state:
        case DomainState.OFF:
            return Sight.GONE
        case DomainState.RUNNING:
            return Sight.RUNS
        case DomainState.PAUSED:
            return Sight.WAITS
        case _:
            return Sight.UNKNOWN


def decide(source: Sight, target: Sight, *, ran_before: bool, last_chance: bool) -> Action:
    """The action for what both nodes say.

    ``ran_before``: the guest's CPUs ran when the move began (a guest that was paused stays paused).
    ``last_chance``: the deadline has passed, so nothing will change by itself any more.
    """
    pair = (source, target)
    if Sight.BUSY in pair or Sight.UNKNOWN in pair:
        return Action.HOLD if last_chance else Action.ASK_AGAIN
    if pair in PASSING and not last_chance:
        return Action.ASK_AGAIN
    if source is Sight.WAITS and target is not Sight.RUNS and not ran_before:
        # Its CPUs stood from the start: a source that waits is a source that is whole.
        pair = (Sight.RUNS, target)
    return TABLE.get(pair, Action.HOLD)
