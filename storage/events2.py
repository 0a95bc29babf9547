"""One line of ``drbdsetup events2 [--statistics] [--timestamps]`` as a value, for DRBD 9 and 8.4.

The form is that of drbdsetup(8): ``[TIME] ACTION OBJECT KEY:VALUE...``, and ``[TIME] exists -`` after the first dump.
A ``change`` line carries only what changed.  ``[TIME] - skipped NUMBER`` is how drbdsetup before drbd-utils 9.28, and
that for DRBD 8.4, says that the kernel's messages are not in sequence.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from lvmigrate.replication import ConnectionState, DiskState, ReplicationState, Role

#: The longest line that is looked at, in characters; real ones have about 350.
MAX_LINE: Final = 65_536


class BadLine(ValueError):
    """A line that cannot be understood. The stream it came from is not harmed; what the line said is lost."""


class Action(enum.Enum):
    """What happened to the object."""

    EXISTS = "exists"
    CREATE = "create"
    CHANGE = "change"
    RENAME = "rename"
    DESTROY = "destroy"
    CALL = "call"
    RESPONSE = "response"
    #: None: the line is about the lines themselves.
    NONE = "-"


class Kind(enum.Enum):
    """What kind of object the line is about."""

    RESOURCE = "resource"
    CONNECTION = "connection"
    DEVICE = "device"
    PEER_DEVICE = "peer-device"
    PATH = "path"
    HELPER = "helper"
    #: Nothing: ``exists -`` ends the first dump.
    END = "-"
    #: Nothing: events are missing here, or came in another order.
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line. ``None`` where the line does not say: a ``change`` names only what changed."""

    action: Action
    kind: Kind
    #: By the node's clock.
    time: datetime | None = None
    #: The resource's name; empty for what is about no resource.
    name: str = ""
    new_name: str | None = None
    peer_node_id: int | None = None
    conn_name: str | None = None
    volume: int | None = None
    minor: int | None = None
    #: Of the resource, or of the peer in a line about a connection.
    role: Role | None = None
    suspended: str | None = None
    may_promote: bool | None = None
    connection: ConnectionState | None = None
    congested: bool | None = None
    disk: DiskState | None = None
    peer_disk: DiskState | None = None
    replication: ReplicationState | None = None
    quorum: bool | None = None
    client: bool | None = None
    peer_client: bool | None = None
    resync_suspended: str | None = None
    established: bool | None = None
    size_kib: int | None = None
    out_of_sync_kib: int | None = None
    done_percent: float | None = None
    #: Seconds until a resynchronisation ends; the module's first guess is ``nan``, which is no answer.
    eta_s: float | None = None
    helper: str | None = None
    #: How the helper ended, in a ``response``.
    status: int | None = None
    #: How many events are missing; negative when an older one comes now.
    skipped: int | None = None
    #: Every key that is not named above, as it was written.
    others: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def only_counts(self) -> bool:
        """Whether no state changed: it tells how much was sent, is out of sync, or is done."""
        return (
            self.action is Action.CHANGE
            and self.kind is Kind.PEER_DEVICE
            and self.replication is None
            and self.peer_disk is None
            and self.resync_suspended is None
        )


def _yes(text: str) -> bool:
    if text not in {"yes", "no"}:
        raise ValueError(f"neither yes nor no: {text[:40]!r}")
    return text == "yes"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"no number: {text[:40]!r}")
    # Beyond 64 bits nothing of the kernel's is counted, and int() of very long texts is slow.
    return int(text[:20])


def _signed(text: str) -> int:
    return -_count(text[1:]) if text.startswith("-") else _count(text)


def _real(text: str) -> float | None:
    number = float(text[:40])
    return number if math.isfinite(number) else None


def _word(text: str) -> str:
    return text


#: Key in the line -> (field, reader). A reader's ValueError makes the line a bad one.
_KEYS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = MappingProxyType(
    {
        "name": ("name", _word),
        "new_name": ("new_name", _word),
        "peer-node-id": ("peer_node_id", _count),
        "conn-name": ("conn_name", _word),
        "volume": ("volume", _count),
        "minor": ("minor", _count),
        "role": ("role", Role),
        "suspended": ("suspended", _word),
        "may_promote": ("may_promote", _yes),
        "connection": ("connection", ConnectionState),
        "congested": ("congested", _yes),
        "disk": ("disk", DiskState),
        "peer-disk": ("peer_disk", DiskState),
        "replication": ("replication", ReplicationState),
        "quorum": ("quorum", _yes),
        "client": ("client", _yes),
        "peer-client": ("peer_client", _yes),
        "resync-suspended": ("resync_suspended", _word),
        "established": ("established", _yes),
        "size": ("size_kib", _count),
        "out-of-sync": ("out_of_sync_kib", _count),
        "done": ("done_percent", _real),
        "eta": ("eta_s", _real),
        "helper": ("helper", _word),
        "status": ("status", _signed),
    }
)

#: What a line must say to be about an object at all.
_NEEDS: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        Kind.RESOURCE: ("name",),
        Kind.CONNECTION: ("name", "peer_node_id"),
        Kind.DEVICE: ("name", "volume"),
        Kind.PEER_DEVICE: ("name", "peer_node_id", "volume"),
        Kind.PATH: ("name", "peer_node_id"),
        Kind.HELPER: ("name",),
        Kind.END: (),
        Kind.SKIPPED: (),
    }
)

_ACTIONS: Final = {action.value: action for action in Action if action is not Action.NONE}
_KINDS: Final = {kind.value: kind for kind in Kind if kind is not Kind.SKIPPED}

#: The resource that a line names, even one that is not understood.
NAME: Final = re.compile(r"(?:^|\s)name:(\S+)")

# Colour is off in a pipe, unless the node's environment forces it.
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


def parse(line: str) -> Event:
    """Read one line. Raises `BadLine` for what is not one, or for a value that a known key never has."""
    if len(line) > MAX_LINE:
        raise BadLine(f"a line of {len(line)} characters")
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    words = line.split()
    time = _time(words)
    if time is not None:
        del words[0]
    if len(words) < 2:  # noqa: PLR2004 -- an action and an object
        raise BadLine(f"neither action nor object: {line[:200]!r}")
    if words[:2] == [Action.NONE.value, Kind.SKIPPED.value]:
        return _skipped(words[2:], line, time)
    action, kind = _ACTIONS.get(words[0]), _KINDS.get(words[1])
    if action is None or kind is None:
        raise BadLine(f"unknown action or object: {line[:200]!r}")
    facts, others = _facts(words[2:], line)
    for need in _NEEDS[kind]:
        if need not in facts:
            raise BadLine(f"no {need}: {line[:200]!r}")
    return Event(action=action, kind=kind, time=time, others=MappingProxyType(others), **facts)


def _skipped(words: list[str], line: str, time: datetime | None) -> Event:
    try:
        (number,) = map(_signed, words)
    except ValueError as error:
        raise BadLine(f"no number of events: {line[:200]!r}") from error
    return Event(action=Action.NONE, kind=Kind.SKIPPED, time=time, skipped=number)


def _facts(words: list[str], line: str) -> tuple[dict[str, Any], dict[str, str]]:
    facts: dict[str, Any] = {}
    others: dict[str, str] = {}
    for word in words:
        key, colon, value = word.partition(":")
        if not colon:
            raise BadLine(f"no key: {word[:40]!r} in {line[:200]!r}")
        known = _KEYS.get(key)
        if known is None:
            others[key] = value
            continue
        try:
            facts[known[0]] = known[1](value)
        except ValueError as error:
            raise BadLine(f"{key}: {error} in {line[:200]!r}") from error
    return facts, others


def _time(words: list[str]) -> datetime | None:
    if not words or not words[0][:1].isdigit():
        return None
    try:
        return datetime.fromisoformat(words[0])
    except ValueError as error:
        raise BadLine(f"no time: {words[0][:40]!r}") from error
