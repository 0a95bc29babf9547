"""A job under way: what steers it, and what is newest of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from lvmigrate.service.job import Job


@dataclass(slots=True, kw_only=True, eq=False)
class Under:
    """A job under way, or about to be."""

    job: Job
    cancel: threading.Event = field(default_factory=threading.Event)
    abort: threading.Event = field(default_factory=threading.Event)
    post_copy: threading.Event = field(default_factory=threading.Event)
    #: The nodes that it has a place on.
    nodes: frozenset[str] = frozenset()
    #: One that an earlier service has left, and of whose nodes one gives no answer: it can last as long as that node is
    #: off, and must not keep the others' guests from being moved, or brought up elsewhere, meanwhile.
    idle: bool = False
    #: Its newest plan and progress, for those who begin to follow.
    plan: object = None
    progress: object = None
    #: A stop of the service has asked it to end; it goes on with the next one.
    handed_over: bool = False
    thread: threading.Thread | None = None
