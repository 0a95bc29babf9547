"""What a move leaves on its nodes for as long as it lives: the token that excludes others, and the guard's orders.

Both are files of the node's own, under /run: they need nothing installed there, and a reboot forgets them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lvmigrate.replication import ConnectionOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What a move set out to do. It stands in the token, so that whoever finds it can finish or undo the move."""

    source: str
    target: str
    #: Whether the guest's CPUs ran when the move began; one that was paused stays paused.
    ran: bool
    #: Whether the source starts the guest when it boots; the definition that travels does not carry it.  ``None``: the
    #: source could not be asked.
    autostart: bool | None
    #: Whether the target had a definition of the guest before the move.
    target_had_definition: bool
    #: The move has seen that the source's copy ended because it was handed over: the target's is not the older one.
    handed_over: bool = False
    #: It is no live move: the guest is shut down at the source and started on the target.
    failover: bool = False
    #: What the guest had, in KiB, before it was made to give memory back; 0: it was not.
    memory_kib: int = 0
    #: The node that it leaves keeps its definition, without autostart.
    keep_definition: bool = False
    #: It was to turn back once memory arrives: a copy that outlived its command is ended, not watched to its end.
    rehearsal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The right to act on one guest, left as a file on every node concerned.

    It is ours as long as the node's file carries our ``id``; it may be taken over by another command once the node's
    own clock (``/proc/uptime``) has passed the deadline of the last renewal.
    """

    #: The guest's UUID: it names the file, and is safe in one.
    uuid: str
    instance: str
    id: str
    #: For people: who holds it (``root@controller pid 4711``).
    holder: str
    #: Seconds that one renewal lasts.
    lease_s: float
    #: ``None``: a cleanup that found no token does not know.
    errand: Errand | None
    #: A guard was armed on the nodes: a renewal counts only when the guard there has acknowledged it.
    guarded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A token as it was found on a node."""

    node: str
    uuid: str
    instance: str
    id: str
    holder: str
    #: Seconds until it runs out by the node's clock; below 0: it ran out.
    left_s: float
    #: ``None`` when the file does not say it in a way that is understood.
    errand: Errand | None

    @property
    def alive(self) -> bool:
        """Whether nobody else may take it yet."""
        return self.left_s > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """One connection that a guard closes: what it restores there once nothing needs it any more."""

    resource: str
    #: The node at the other end.
    peer: str
    #: What was set before the move.
    options: ConnectionOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSeen:
    """A guard as it was found on a node."""

    node: str
    uuid: str
    instance: str
    #: Whether its service runs; one that does not was killed, or could not be started.
    alive: bool
    guarded: tuple[Guarded, ...]
    #: Whether it may resume a guest that arrived there and waits paused.
    resume: bool
    #: What it said last, such as what it waits for; empty while the token lives.
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Everything of lvmigrate's that is on one node now."""

    node: str
    tokens: tuple[Held, ...]
    guards: tuple[GuardSeen, ...]

    def token(self, uuid: str) -> Held | None:
        """The token of this guest, run out or not."""
        return next((held for held in self.tokens if held.uuid == uuid), None)

    def guard(self, uuid: str) -> GuardSeen | None:
        """The guard of this guest, alive or not."""
        return next((guard for guard in self.guards if guard.uuid == uuid), None)
