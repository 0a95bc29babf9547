"""What the tasklets have in common: `check_prereq` and `exec`, as in Ganeti, over a plain list of steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lvmigrate.clock import Clock
from lvmigrate.journal import NO_JOURNAL, Journal
from lvmigrate.node import Node
from lvmigrate.plan import Plan
from lvmigrate.progress import StepProgress
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every tasklet needs from its cluster."""

    nodes: Mapping[str, Node]
    hypervisor: Hypervisor
    storage: Storage
    #: Set by whoever wants the tasklet to stop. Obeyed until the point of no return.
    cancel: threading.Event = field(default_factory=threading.Event)
    #: Set by whoever wants the guest to go on at the target before all of its memory is there.
    post_copy: threading.Event = field(default_factory=threading.Event)
    #: Told of each change; called from the tasklet's own thread.
    on_progress: Callable[[StepProgress], None] = lambda _progress: None
    #: Seconds that one renewal of the token lasts.
    lease_s: float = 30.0
    clock: Clock = field(default_factory=Clock)
    journal: Journal = NO_JOURNAL
    #: By node: what switches it off, and raises `lvmigrate.errors.LvmigrateError` unless it said that it is off.
    fences: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    #: The directory of the operator's hooks (`lvmigrate.hooks`), and how long one of them may take, in seconds.
    hooks: Path | None = None
    hook_timeout_s: float = 60.0
    #: Where the last definition of each guest that was moved is kept (`lvmigrate.kept`); ``None``: nowhere.
    definitions: Path | None = None


class Tasklet(Protocol):
    """A piece of work in two parts."""

    def check_prereq(self) -> Plan:
        """Observe everything and change nothing. Raises `lvmigrate.errors.Refused` with all reasons not to start."""

    def exec(self) -> Report:
        """Do it. Needs a `check_prereq` that succeeded."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[T]):
    """A name, a sentence and a function: the command, the report and the documentation read the same list."""

    name: str
    sentence: str
    act: Callable[[T], None]


def described(steps: Sequence[Step[Any]]) -> tuple[tuple[str, str], ...]:
    """The list as (name, sentence) pairs."""
    return tuple((step.name, step.sentence) for step in steps)
