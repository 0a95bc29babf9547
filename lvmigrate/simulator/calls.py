"""Every call that a controller makes of its adapters has a number and a name, so that a fault can be put at one."""

from __future__ import annotations

import enum
import re
from typing import Final, NamedTuple, Self

_PLACE: Final = re.compile(r"(?P<controller>[^.@#]+)\.(?P<method>[^@#]+)@(?P<node>[^.@#]*)#(?P<occurrence>\d+)")


class Place(NamedTuple):
    """One call of one run, named so that it is the same in the next run: the how-manieth of its kind it is.

    >>> Place.parse("c1.promote@node2#1")
    Place(controller='c1', method='promote', node='node2', occurrence=1)
    >>> str(Place("c1", "promote", "node2", 1))
    'c1.promote@node2#1'
    >>> Place.parse("c1.watch.wait@#4").method
    'watch.wait'
    """

    controller: str
    method: str
    #: Empty for what belongs to no node.
    node: str
    #: From 1.
    occurrence: int

    def __str__(self) -> str:
        return f"{self.controller}.{self.method}@{self.node}#{self.occurrence}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place that ``text`` names. Raises `ValueError`."""
        match = _PLACE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} names no call")
        return cls(match["controller"], match["method"], match["node"], int(match["occurrence"]))


class Call(NamedTuple):
    """A call that was made."""

    #: From 1, over all controllers.
    number: int
    place: Place
    at_s: float
    #: Whether it can change anything.
    acts: bool
    #: A renewal made beside the tasklet's own work.
    background: bool


class Kind(enum.Enum):
    """What can happen to one call."""

    REFUSED_BEFORE = "refused, not done"
    REFUSED_AFTER = "done, and refused"
    LOST_BEFORE = "no answer, not done"
    LOST_AFTER = "done, no answer"
    HANGS_BEFORE = "no answer until the deadline, not done"
    HANGS_AFTER = "done, no answer until the deadline"
    LATE = "no answer, done much later"
    KILLED_BEFORE = "the controller is killed before"
    KILLED_AFTER = "done, and the controller is killed"
    STOPPED_BEFORE = "the controller is stopped before, and woken late"
    STOPPED_AFTER = "done; the controller is stopped, and woken late"
    #: Of the call that copies memory alone: it ends for the caller, the job goes on.
    BROKEN = "the caller's connection breaks, the job goes on"


#: What makes a difference at a call that changes nothing.
OF_LOOKS: Final = (
    Kind.REFUSED_BEFORE,
    Kind.LOST_BEFORE,
    Kind.HANGS_BEFORE,
    Kind.KILLED_BEFORE,
    Kind.STOPPED_BEFORE,
    Kind.STOPPED_AFTER,
)
#: What can happen to a call that changes something.
OF_ACTS: Final = (*OF_LOOKS, Kind.REFUSED_AFTER, Kind.LOST_AFTER, Kind.HANGS_AFTER, Kind.LATE, Kind.KILLED_AFTER)
#: What can happen to the start of a copy: if it raises, none was started.
OF_COPIES: Final = (*OF_LOOKS, Kind.KILLED_AFTER)
#: What can happen to the waiting for a copy.
OF_WAITS: Final = (Kind.BROKEN, Kind.KILLED_BEFORE, Kind.STOPPED_BEFORE)
