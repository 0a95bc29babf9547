"""One KVM host: its power, its libvirt daemon, and the files and guards that a move leaves there."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

from lvmigrate.simulator.guests import Copy, Definition, Guest
from lvmigrate.token import GuardSeen, Held, Token


class Phase(enum.Enum):
    """How far a migration is."""

    BEGIN = "begin"
    PREPARE = "prepare"
    TRANSFER = "transfer"
    #: The source's CPUs stand, and the last pages are sent.
    SUSPENDED = "suspended"
    #: The target's daemon has the guest; the source's does not know it yet.
    FINISHED = "finished"
    ENDED = "ended"


class Job(Protocol):
    """A migration, as far as its hosts know of it. What befalls them, it is told."""

    guest: Guest
    source: str
    target: str
    phase: Phase

    def abort(self) -> bool:
        """``virDomainAbortJob``; whether libvirt accepts it."""

    def path_changed(self) -> None:
        """The way between the two daemons went or came back, or the target's node did."""

    def source_daemon_killed(self) -> None:
        """The source's daemon was killed."""

    def source_daemon_back(self) -> None:
        """It was started again."""

    def target_daemon_killed(self) -> None:
        """The target's daemon was killed."""

    def source_node_died(self) -> None:
        """The source lost its power."""

    def resumed(self) -> None:
        """Somebody has let the source's copy run, which stood."""

    def copy_ended(self, node: str) -> None:
        """A QEMU of it died, or was ended."""


class Guardian(Protocol):
    """A guard, as far as its host knows of it."""

    instance: str
    alive: bool
    says: str
    #: By resource: the generation of the data when it was armed.
    generations: dict[str, str]

    def end(self) -> None:
        """Do nothing more."""

    def seen(self) -> GuardSeen:
        """As a command finds it."""


@dataclass(slots=True, kw_only=True)
class TokenFile:
    """A token as a file of the node's: whose it is, and until when by the node's own clock."""

    token: Token
    deadline_s: float


@dataclass(slots=True, kw_only=True)
class Host:
    """What is on one node. A reboot forgets all but the definitions."""

    name: str
    powered: bool = True
    #: When it booted last: its own clock begins there.
    booted_at_s: float = 0.0
    #: Whether libvirtd answers.
    daemon: bool = True
    free_memory_kib: int = 1 << 22
    definitions: dict[str, Definition] = field(default_factory=dict)
    copies: dict[str, Copy] = field(default_factory=dict)
    #: The migration jobs that this node's daemon sends, by the guest's UUID.
    jobs: dict[str, Job] = field(default_factory=dict)
    tokens: dict[str, TokenFile] = field(default_factory=dict)
    guards: dict[str, Guardian] = field(default_factory=dict)

    @property
    def answers_libvirt(self) -> bool:
        """Whether its libvirt answers."""
        return self.powered and self.daemon

    def uptime(self, now: float) -> float:
        """Its own clock."""
        return now - self.booted_at_s

    def held(self, uuid: str, now: float) -> Held | None:
        """The token of this guest here, run out or not."""
        file = self.tokens.get(uuid)
        if file is None:
            return None
        token = file.token
        return Held(
            node=self.name,
            uuid=uuid,
            instance=token.instance,
            id=token.id,
            holder=token.holder,
            left_s=file.deadline_s - self.uptime(now),
            errand=token.errand,
        )
