"""One KVM host: its power, its libvirt daemon, and the files and guards that a move leaves there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lvmigrate.simulator.guests import Copy, Definition
from lvmigrate.token import Held, Token

if TYPE_CHECKING:
    from lvmigrate.simulator.guard import Guard
    from lvmigrate.simulator.migration import Migration


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
    jobs: dict[str, Migration] = field(default_factory=dict)
    tokens: dict[str, TokenFile] = field(default_factory=dict)
    guards: dict[str, Guard] = field(default_factory=dict)

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
