"""`Manner`: how many guests are to be moved, where to, with whose knowledge, and by whose leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lvmigrate.domain import Domain
from lvmigrate.drain_report import Moved, Nobody, Onlooker
from lvmigrate.node import Node
from lvmigrate.node_states import Wish
from lvmigrate.plan import Options
from lvmigrate.traffic import Departure, Limits

#: Before those that failed are tried once more, in seconds: time for a daemon, a link or a lock.
AGAIN_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How many guests are to be moved."""

    limits: Limits = field(default_factory=Limits)
    #: What holds for a guest.
    options: Callable[[Domain], Options] = lambda _domain: Options()
    #: By the names of `Options`: what is chosen over what the configuration says of each guest; `lvmigrate.cluster`
    #: makes ``options`` of it.  ``None``: ``options`` holds as it is.
    chosen: Mapping[str, Any] | None = None
    #: The nodes that they may go to; empty: any.
    to: frozenset[str] = frozenset()
    forecast_s: int = 0
    #: The nodes, with what commands have made of them meanwhile; asked again and again.  ``None``: as they were.
    nodes: Callable[[], Mapping[str, Node]] | None = None
    #: What is wished meanwhile; asked again and again.
    wish: Callable[[], Wish] = lambda: Wish.GO_ON
    #: Told of each guest before it sets out, and of each that has arrived.
    leaving: Callable[[Departure], None] = lambda _departure: None
    arrived: Callable[[Moved], None] = lambda _moved: None
    onlooker: Onlooker = field(default_factory=Nobody)
    again_s: float = AGAIN_S
