"""A job: one order, from the moment at which it was accepted until its outcome is known."""

from __future__ import annotations

import enum
from typing import Any, Final

from msgspec import Struct

from lvmigrate.errors import ExitCode
from lvmigrate.service.orders import Priority

#: What ended so has left something that a person has to look at.
LEFT_OPEN: Final = (ExitCode.UNKNOWN, ExitCode.LEFT_BEHIND, ExitCode.LOST, ExitCode.INTERNAL)


class State(enum.Enum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    #: The service ended while it was under way: the guest is being led to its end by a cleanup, nothing is repeated.
    RECOVERING = "recovering"
    ENDED = "ended"


class Wish(enum.Enum):
    """What somebody wishes of a job that has not ended."""

    NONE = ""
    #: A drain begins nothing more, and lets those arrive that are under way.
    STOP = "stop"
    ABORT = "abort"


class Job(Struct, frozen=True, kw_only=True):
    """What is known of one. Times in seconds since 1970."""

    id: str
    #: The order's word: migrate, drain, ...
    what: str
    #: The guest as it was named, or the nodes.
    about: str
    #: The order as it came; a definition that came with it is left out.
    order: dict[str, Any]
    #: Who asked.
    subject: str
    priority: Priority
    state: State
    wish: Wish = Wish.NONE
    asked: float
    begun: float | None = None
    ended: float | None = None
    #: As its plan says; empty: there is none yet, so nothing was begun.
    uuid: str = ""
    source: str = ""
    target: str = ""
    #: Services that ended before it did.
    interruptions: int = 0
    #: ``OK`` or a code, and what the command would exit with.
    outcome: str | None = None
    exit_code: int | None = None
    #: The report; ``null`` while there is none, and where there is an error.
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    #: Why it waits, while it does.
    waits_for: str = ""
    #: The newest of it could not be written down, and is tried again: a service that starts meanwhile knows what was.
    unwritten: bool = False

    @property
    def over(self) -> bool:
        """Whether its outcome is known."""
        return self.state is State.ENDED


class Asked(Struct, frozen=True, kw_only=True):
    """One line of the trail: who asked for what, and what the answer was."""

    number: int
    #: Seconds since 1970.
    at: float
    subject: str
    role: str
    #: How they came: the unix socket with their process, or TLS with their address.
    via: str
    method: str
    path: str
    #: 0: it was about to be done, and what was answered is not known: the service was killed, or its disk became full.
    status: int
    code: str
    job: str
