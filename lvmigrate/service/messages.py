"""What comes and what is answered beside orders, jobs and the core's own values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final

from msgspec import Meta, Struct

from lvmigrate.by_hand import ByHand
from lvmigrate.cleanup import CleanupPlan
from lvmigrate.convergence import Policy
from lvmigrate.drain_report import Moved, Stayed
from lvmigrate.journal import Entry
from lvmigrate.node_states import NodeState
from lvmigrate.node_states import State as Door
from lvmigrate.node_states import Wish as DrainWish
from lvmigrate.plan import Plan
from lvmigrate.progress import StepProgress
from lvmigrate.service.job import Asked, Job, State
from lvmigrate.service.orders import Guest, Words
from lvmigrate.service.settings import Role
from lvmigrate.status import NodeStatus
from lvmigrate.traffic import Departure, Limits, Schedule

#: The header of an order's answer that says from which event on to follow its job.
EVENT_ID: Final = "Lvmigrate-Event-ID"

_Most = Annotated[int, Meta(ge=1, le=1000)]


class Whoami(Struct, frozen=True, kw_only=True):
    """Who asks, as the service knows them."""

    subject: str
    role: Role
    #: By a token that the browser keeps, until it is told to sign out.
    signed_in: bool


class NodeView(Struct, frozen=True, kw_only=True):
    """A node, and who may come."""

    node: str
    #: Why no guest may; ``null``: guests may.
    closed: str | None
    by_command: NodeState | None


class Nodes(Struct, frozen=True, kw_only=True):
    """All of them."""

    nodes: list[NodeView]


class Status(Struct, frozen=True, kw_only=True):
    """What every node says of its guests."""

    nodes: tuple[NodeStatus, ...]


class Defaults(Struct, frozen=True, kw_only=True):
    """What can be chosen by its name, and what holds for a drain where nothing is chosen."""

    policies: dict[str, Policy]
    drain: Limits


class Errands(Struct, frozen=True, kw_only=True):
    """Some of the journal's errands."""

    errands: tuple[Entry, ...]


class JobList(Struct, frozen=True, kw_only=True):
    """Some jobs, newest first."""

    jobs: list[Job]


class Trail(Struct, frozen=True, kw_only=True):
    """Who asked for what, newest first."""

    asked: list[Asked]


class Forgotten(Struct, frozen=True, kw_only=True):
    """How many errands the journal has forgotten."""

    forgotten: int


class Said(Struct, frozen=True, kw_only=True):
    """How the service is."""

    status: str


class Nothing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No words."""


class OfGuest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which guest."""

    instance: Guest | None = None


class OfHistory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which errands."""

    instance: Guest | None = None
    most: _Most = 50


class OfJobs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which jobs."""

    state: State | None = None
    #: The guest or the nodes as they were named, or the guest's UUID.
    about: Words | None = None
    #: Only those that have left something for a person to look at: not provable, left behind, lost, a defect.
    left_open: bool = False
    most: _Most = 100


class OfTrail(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many lines."""

    most: _Most = 100


class SetNode(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may come to a node from now on."""

    state: Door
    reason: Words = ""


class WishDrain(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the drain of a node that is under way on the service's machine is to do."""

    wish: DrainWish


class Prune(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the journal is to forget."""

    days: Annotated[float, Meta(gt=0, lt=1_000_000)]


# ---- events: each says of which job it is


class Planned(Struct, frozen=True, kw_only=True):
    """Its checks have passed."""

    job: str
    plan: Checked


class GetsOn(Struct, frozen=True, kw_only=True):
    """A step gets on."""

    job: str
    progress: StepProgress


class Begun(Struct, frozen=True, kw_only=True):
    """A drain has begun to move a guest."""

    job: str
    begun: Departure


class Arrived(Struct, frozen=True, kw_only=True):
    """One of its guests has arrived."""

    job: str
    moved: Moved


class Stay(Struct, frozen=True, kw_only=True):
    """Why, and whether it is tried again."""

    stayed: Stayed
    again: bool


class Stays(Struct, frozen=True, kw_only=True):
    """One of its guests stays where it is."""

    job: str
    stays: Stay


class Says(Struct, frozen=True, kw_only=True):
    """What a drain says to people."""

    job: str
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What an order would do; one of the three is there."""

    plan: Plan | None = None
    #: The plan as the commands that a person would type.
    by_hand: tuple[ByHand, ...] = ()
    cleanup: CleanupPlan | None = None
    schedule: Schedule | None = None


#: The kinds of events, and what each tells.
EVENTS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "job": Job,
        "plan": Planned,
        "progress": GetsOn,
        "begun": Begun,
        "moved": Arrived,
        "stays": Stays,
        "says": Says,
    }
)
