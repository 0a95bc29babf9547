"""Many guests that are to leave: which of the nodes with their disks each of them goes to. Pure.

Those that can go to the fewest nodes come first, so that they are not left over, and of equals the largest.  What is
promised to a guest on a node is nobody else's from then on: nodes are never overfilled, in whatever order they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lvmigrate.errors import Code, Finding

_KIB: Final = 1 << 10
#: What is free on two nodes counts as equal where it differs by less than this share of the more (as in `target`).
_EQUAL: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A node, as far as others' guests are concerned."""

    node: str
    free_kib: int
    #: What the network carries to it; ``None``: not known.
    link_mib_s: int | None = None
    #: Whether DRBD brings a copy up to date over that link now.
    resyncs: bool = False
    #: Of the guests that run there, and of the node; 0: not known.
    vcpus: int = 0
    cpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traveller:
    """A guest that is to leave."""

    uuid: str
    name: str
    source: str
    #: What it takes on any node, and what is sent of it; the same where only one is known.
    memory_kib: int
    resident_kib: int
    #: The nodes that can take it, and those that are taken only where no other can (a copy that is not in step).
    peers: tuple[str, ...]
    last_resort: tuple[str, ...] = ()
    vcpus: int = 0
    #: Bytes that it dirties per second; 0: not measured.
    dirty_rate: int = 0
    downtime_limit_s: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A guest with its node. ``promised``: its memory there is set aside; else it waits until others have left."""

    traveller: Traveller
    target: str
    promised: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A guest that cannot go, and why."""

    uuid: str
    name: str
    source: str
    finding: Finding


def assign(rooms: Iterable[Room], travellers: Iterable[Traveller]) -> tuple[list[Ticket], list[Stay]]:
    """A node for every guest that can go to one; the others, with the reason.

    The best of the nodes: that with the most memory free by then; where that is about the same, the one whose CPUs are
    the least in use.  A guest that would be left over has another one moved on to a second node of its own.
    """
    return _Assignment(rooms).run(travellers)


class _Assignment:
    """Memory being promised."""

    def __init__(self, rooms: Iterable[Room]) -> None:
        self._rooms = {room.node: room for room in rooms}
        self._free = {node: room.free_kib for node, room in self._rooms.items()}
        self._vcpus = {node: room.vcpus for node, room in self._rooms.items()}
        self._at: dict[str, list[Traveller]] = {node: [] for node in self._rooms}
        #: What leaves each node by and by, once it is sure that it does.
        self._leaving = dict.fromkeys(self._rooms, 0)

    def run(self, travellers: Iterable[Traveller]) -> tuple[list[Ticket], list[Stay]]:
        late: list[Traveller] = []
        for guest in sorted(travellers, key=_hardest_first):
            target = self._best(guest) or self._displaced(guest)
            if target is None:
                late.append(guest)
            else:
                self._promise(guest, target)
        tickets = [Ticket(traveller=guest, target=node) for node, guests in self._at.items() for guest in guests]
        for ticket in tickets:
            self._leaving[ticket.traveller.source] = (
                self._leaving.get(ticket.traveller.source, 0) + ticket.traveller.memory_kib
            )
        while True:  # where guests leave that these can take the place of; who finds one leaves another
            found = [after for guest in late if (after := self._after(guest)) is not None]
            tickets += found
            gone = {after.traveller.uuid for after in found}
            late = [guest for guest in late if guest.uuid not in gone]
            if not found:
                return tickets, [short(guest, self._free) for guest in late]

    def _after(self, guest: Traveller) -> Ticket | None:
        """A node that has room for it once others have left."""
        for peer in _peers(guest):
            if self._free.get(peer, -1) + self._leaving.get(peer, 0) >= guest.memory_kib:
                at_once = self._free[peer] >= guest.memory_kib
                self._free[peer] -= guest.memory_kib
                self._leaving[guest.source] = self._leaving.get(guest.source, 0) + guest.memory_kib
                return Ticket(traveller=guest, target=peer, promised=at_once)
        return None

    def _best(self, guest: Traveller, *, but: str = "") -> str | None:
        for peers in (guest.peers, guest.last_resort):
            fit = [p for p in peers if p != but and self._free.get(p, -1) >= guest.memory_kib]
            if len(fit) == 1:
                return fit[0]
            if fit:
                most = max(self._free[peer] for peer in fit)
                roomy = [peer for peer in fit if self._free[peer] >= most * (1 - _EQUAL)]
                return min(roomy, key=lambda p: (self._vcpus[p] / (self._rooms[p].cpus or 1), -self._free[p], p))
        return None

    def _displaced(self, guest: Traveller) -> str | None:
        """A node of the guest's from which one other guest can go on to another node of its own."""
        for node in _peers(guest):
            lacks = guest.memory_kib - self._free.get(node, 0)
            for other in self._at.get(node, ()):
                if other.memory_kib >= lacks and (elsewhere := self._best(other, but=node)) is not None:
                    self._at[node].remove(other)
                    self._free[node] += other.memory_kib
                    self._vcpus[node] -= other.vcpus
                    self._promise(other, elsewhere)
                    return node
        return None

    def _promise(self, guest: Traveller, node: str) -> None:
        self._free[node] -= guest.memory_kib
        self._vcpus[node] += guest.vcpus
        self._at[node].append(guest)


def _peers(guest: Traveller) -> tuple[str, ...]:
    return (*guest.peers, *guest.last_resort)


def _hardest_first(guest: Traveller) -> tuple[int, int, str]:
    return (len(guest.peers) + len(guest.last_resort), -guest.memory_kib, guest.name)


def short(guest: Traveller, free_kib: Mapping[str, int]) -> Stay:
    """It fits nowhere."""
    frees = ", ".join(f"{peer} {max(0, free_kib.get(peer, 0)) // _KIB}" for peer in _peers(guest))
    return Stay(
        uuid=guest.uuid,
        name=guest.name,
        source=guest.source,
        finding=Finding(
            code=Code.MEMORY_SHORT,
            sentence=f"{guest.name} has {guest.memory_kib // _KIB} MiB of memory, and no node with its disks has so"
            f" much left (MiB: {frees}).",
            hint="Make room there, or let it give memory back: `lvmigrate migrate --allow-runtime-changes`.",
        ),
    )
