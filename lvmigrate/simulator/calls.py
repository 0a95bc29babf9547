"""Every call that a controller makes of its adapters has a number and a name, so that a fault can be put at one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

_PLACE: Final = re.compile(r"(?P<controller>[^.@#]+)\.(?P<method>[^.@#]+)@(?P<node>[^.@#]*)#(?P<occurrence>\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One call of one run, named so that it is the same in the next run: the how-manieth of its kind it is.

    >>> Place.parse("c1.promote@node2#1")
    Place(controller='c1', method='promote', node='node2', occurrence=1)
    >>> str(Place("c1", "promote", "node2", 1))
    'c1.promote@node2#1'
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that was made."""

    #: From 1, over all controllers.
    number: int
    place: Place
    at_s: float
    #: Whether it can change anything.
    acts: bool
    #: A renewal made beside the tasklet's own work.
    background: bool
