"""Orders: what somebody asks of the service, as it comes and as the journal keeps it. And the role that each needs.

An order says what is to be different from the configuration's defaults, and nothing of how it is done.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from lvmigrate.convergence import Policy
from lvmigrate.plan import Compression, Mode, Switch
from lvmigrate.service.settings import Role

#: A guest's name or UUID: as libvirt has them, so that no control character comes into a log.
Guest = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f/]+$(?!\n)")]
NodeName = Annotated[
    str, Meta(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$(?!\n)")
]
#: One of the programs in the directories of Ganeti's: a path would have the service run any file.
_Program = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$(?!\n)")]
Words = Annotated[str, Meta(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]
_Number = Annotated[int, Meta(ge=1, lt=1_000_000_000)]
_Seconds = Annotated[float, Meta(gt=0, lt=1_000_000_000)]
_Nodes = Annotated[list[NodeName], Meta(min_length=1, max_length=1000)]
_Some = Annotated[list[NodeName], Meta(max_length=1000)]

T = TypeVar("T")


class Priority(enum.Enum):
    """Who goes first of those that wait."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"

    @property
    def rank(self) -> int:
        """The smaller goes first."""
        return -list(Priority).index(self)


class _Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A word that is not understood is refused."""


class MoveOptions(_Strict, frozen=True):
    """What is to be different from the guest's own `lvmigrate.Options`, by their names."""

    #: ``failover`` is another order.
    mode: Literal["live", "non-live", "post-copy"] | UnsetType = UNSET
    switch: Switch | UnsetType = UNSET
    guard: bool | UnsetType = UNSET
    bandwidth_mib_s: _Number | UnsetType | None = UNSET
    postcopy_bandwidth_mib_s: _Number | UnsetType | None = UNSET
    downtime_limit_s: _Seconds | UnsetType = UNSET
    #: By its name.
    policy: Words | UnsetType = UNSET
    auto_converge: bool | UnsetType = UNSET
    throttle_initial: _Number | UnsetType | None = UNSET
    throttle_increment: _Number | UnsetType | None = UNSET
    compression: Compression | UnsetType | None = UNSET
    compression_level: Annotated[int, Meta(ge=0, le=20)] | UnsetType | None = UNSET
    connections: _Number | UnsetType | None = UNSET
    tls: bool | UnsetType = UNSET
    sync_timeout_s: _Seconds | UnsetType = UNSET
    sync_stall_s: _Seconds | UnsetType = UNSET
    copy_timeout_s: _Seconds | UnsetType = UNSET
    poll_s: Annotated[float, Meta(ge=0.1, lt=1_000)] | UnsetType = UNSET
    recovery_timeout_s: _Seconds | UnsetType = UNSET
    forecast_s: Annotated[int, Meta(ge=0, le=60)] | UnsetType = UNSET
    ignore_hvversions: bool | UnsetType = UNSET
    allow_failover: bool | UnsetType = UNSET
    always_failover: bool | UnsetType = UNSET
    shutdown_timeout_s: _Seconds | UnsetType = UNSET
    keep_definition: bool | UnsetType = UNSET
    verify_disks: bool | UnsetType = UNSET
    ignore_ipolicy: bool | UnsetType = UNSET
    iallocator: _Program | UnsetType | None = UNSET
    allow_runtime_changes: bool | UnsetType = UNSET
    minimum_memory_mib: _Number | UnsetType | None = UNSET

    def chosen(self, policy: Callable[[str], Policy]) -> dict[str, Any]:
        """By the names of `Options`, with the values that those have."""
        said = _said(self)
        if "mode" in said:
            said["mode"] = Mode(said["mode"])
        if "policy" in said:
            said["policy"] = policy(said["policy"])
        return said

    @property
    def role(self) -> Role:
        """What whoever asks for this must be allowed to do."""
        gives_up = self.guard is False or self.switch is Switch.FAST
        ignores = self.ignore_hvversions is True or self.ignore_ipolicy is True
        return Role.FORCE if gives_up or ignores else Role.MOVE


class FailoverChoices(_Strict, frozen=True):
    """The same of `lvmigrate.failover.FailoverOptions`."""

    shutdown_timeout_s: _Seconds | UnsetType = UNSET
    hard: bool | UnsetType = UNSET
    sync_timeout_s: _Seconds | UnsetType = UNSET
    is_off: NodeName | UnsetType | None = UNSET
    keep_definition: bool | UnsetType = UNSET
    verify_disks: bool | UnsetType = UNSET
    ignore_ipolicy: bool | UnsetType = UNSET
    iallocator: _Program | UnsetType | None = UNSET
    ignore_consistency: bool | UnsetType = UNSET
    #: ``kept``: the one that the service's machine keeps.
    definition: Literal["kept"] | UnsetType | None = UNSET

    def chosen(self) -> dict[str, Any]:
        """By the names of `FailoverOptions`."""
        return _said(self)

    @property
    def role(self) -> Role:
        """As above."""
        words = (self.hard, self.is_off, self.ignore_ipolicy, self.ignore_consistency, self.definition)
        return Role.FORCE if any(word not in (UNSET, None, False) for word in words) else Role.MOVE


class DrainLimits(_Strict, frozen=True):
    """The same of a drain's `lvmigrate.traffic.Limits`."""

    at_once: _Number | UnsetType = UNSET
    per_source: _Number | UnsetType = UNSET
    per_target: _Number | UnsetType = UNSET
    per_link: _Number | UnsetType = UNSET
    budget_mib_s: _Number | UnsetType | None = UNSET

    def chosen(self) -> dict[str, Any]:
        """By their names."""
        return _said(self)


class _Order(_Strict, frozen=True, kw_only=True, tag_field="what"):
    """What all orders have."""

    priority: Priority = Priority.NORMAL


class Migrate(_Order, frozen=True, kw_only=True, tag="migrate"):
    """Move a running guest."""

    instance: Guest
    target: NodeName | None = None
    options: MoveOptions = MoveOptions()


class Rehearse(_Order, frozen=True, kw_only=True, tag="rehearse"):
    """Go through a move up to the first bytes of memory, and back."""

    instance: Guest
    target: NodeName | None = None
    options: MoveOptions = MoveOptions()


class Failover(_Order, frozen=True, kw_only=True, tag="failover"):
    """Shut a guest down and start it on another node, or start it when its node is off."""

    instance: Guest
    target: NodeName | None = None
    options: FailoverChoices = FailoverChoices()
    #: A definition for a guest whose node is dead, in libvirt's words; never shown again.
    definition_text: Annotated[str, Meta(min_length=1, max_length=200_000)] | None = None


class Cleanup(_Order, frozen=True, kw_only=True, tag="cleanup"):
    """Finish or undo what a move of a guest has left."""

    instance: Guest
    #: End a copy under way instead of finishing it.
    abort: bool = False


class Drain(_Order, frozen=True, kw_only=True, tag="drain"):
    """Move every guest away from some nodes."""

    nodes: _Nodes
    #: Only to these; empty: to any.
    to: _Some = []
    reason: Words = ""
    limits: DrainLimits = DrainLimits()
    options: MoveOptions = MoveOptions()


class Return(_Order, frozen=True, kw_only=True, tag="return"):
    """Open a node again, and move back what a drain has sent away."""

    node: NodeName
    #: Every guest that has its disks there, wherever it was before.
    every: bool = False
    limits: DrainLimits = DrainLimits()
    options: MoveOptions = MoveOptions()


MoveOrder = Migrate | Rehearse | Failover
DrainOrder = Drain | Return
Order = Migrate | Rehearse | Failover | Cleanup | Drain | Return

#: What the words of orders are, by collection of the API.
WHAT: Final[Mapping[str, tuple[str, ...]]] = {
    "moves": ("migrate", "rehearse", "failover"),
    "drains": ("drain", "return"),
    "cleanups": ("cleanup",),
}


def role_of(order: Order) -> Role:
    """What whoever gives this order must be allowed to do."""
    match order:
        case Cleanup():
            return Role.MOVE
        case Failover(definition_text=str()):
            return Role.FORCE
        case _:
            return order.options.role


def about(order: Order) -> str:
    """The guest's name as it was given, or the nodes'."""
    match order:
        case Drain():
            return ", ".join(order.nodes)
        case Return():
            return order.node
        case _:
            return order.instance


def read(text: bytes, kind: Any) -> Any:  # noqa: ANN401 -- what the type says
    """What has come, of the type ``kind``. Raises `msgspec.MsgspecError`.

    Where one order alone may come it is read among all of them: by itself msgspec would not ask it which one it is, as
    the description does.
    """
    if kind not in get_args(Order):
        return msgspec.json.decode(text, type=kind)
    order = msgspec.json.decode(text, type=Order)
    return order if type(order) is kind else msgspec.json.decode(text, type=kind)  # which says what it is not


def difference(before: object, wanted: object, kind: type[T]) -> T:
    """What of ``wanted`` differs from ``before`` (`Options` and so on), as the words of an order.

    Raises `msgspec.ValidationError` when it is nothing that can be ordered.
    """
    said: dict[str, Any] = {}
    for name in kind.__struct_fields__:  # type: ignore[attr-defined] # a Struct has them
        value = getattr(wanted, name)
        if value != getattr(before, name):
            said[name] = word(value)
    return msgspec.convert(said, kind)


def word(value: object) -> object:
    """What an order says for a value of the core's."""
    if isinstance(value, Policy):
        return value.name
    return value.value if isinstance(value, enum.Enum) else value


def _said(words: Struct) -> dict[str, Any]:
    named = {name: getattr(words, name) for name in words.__struct_fields__}
    return {name: value for name, value in named.items() if value is not UNSET}
