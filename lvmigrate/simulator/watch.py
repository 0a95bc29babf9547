"""What a controller hears of the nodes' kernels: events, as long as the ways to the nodes are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event
from typing import Final, Protocol

from lvmigrate.replication import Resource, Role
from lvmigrate.simulator.drbd import Replicated
from lvmigrate.simulator.truth import Truth

#: How long a stream that broke takes to come back once it can.
_AGAIN_S: Final = 1.0


class Watcher(Protocol):
    """Whoever watches: a controller."""

    world: Truth

    def now(self) -> float:
        """Its clock."""

    def wake(self) -> None:
        """Raise if it is dead, sleep if it is stopped."""

    def wait_begins(self) -> None:
        """It begins to wait: a call like others, as far as faults are concerned."""

    def reaches(self, node: str, *, libvirt: bool) -> bool:
        """Whether the node would answer."""


class SimulatedWatch:
    """Fulfils `lvmigrate.protocols.Watch`."""

    def __init__(
        self,
        controller: Watcher,
        nodes: Sequence[str],
        names: Mapping[str, str],
        on_change: Callable[[str], None] | None,
    ) -> None:
        self._controller = controller
        self._world = controller.world
        self._nodes = tuple(nodes)
        #: By the one name of a resource: what it is watched as.
        self._watched = names
        self._names = tuple(names.values())
        self._on_change = on_change
        self._now: dict[tuple[str, str], Resource] = {}
        self._doubts: dict[tuple[str, str], tuple[str, ...]] = {}
        self._open: set[str] = set()
        self._breaks: list[str] = []
        self._gaps: list[str] = []
        self._changes = 0
        self._closed = False
        self._dual_since: float | None = None
        self._dual_s = 0.0
        for node in self._nodes:
            self._connect(node, first=True)

    # ---- what the core asks

    def resource(self, node: str, name: str) -> Resource | None:
        """The newest state; ``None`` when it is not known."""
        return self._now.get((node, name))

    def wait(self, holds: Callable[[], bool], timeout_s: float, *, cancel: Event | None = None) -> bool:
        """Wait until ``holds()``, asked anew after each change; false after ``timeout_s`` or when ``cancel`` is set."""
        deadline = self._controller.now() + timeout_s
        self._controller.wait_begins()
        asked = -1
        while True:
            self._controller.wake()
            if self._changes != asked:
                asked = self._changes
                if holds():
                    return True
            if (cancel is not None and cancel.is_set()) or self._world.now >= deadline:
                return False
            self._world.timeline.step(deadline)

    def breaks(self) -> tuple[str, ...]:
        """Every time since then that a resource was seen not in step. In words, oldest first."""
        return tuple(self._breaks)

    def gaps(self) -> tuple[str, ...]:
        """Every time since then that a node was not watched. In words, oldest first."""
        return tuple(self._gaps)

    def forgive(self) -> None:
        """Forget the breaks and gaps seen so far."""
        self._breaks.clear()
        self._gaps.clear()

    def dual_primary_s(self) -> float:
        """Seconds since the watch began during which two nodes were Primary for the same resource."""
        return self._dual_s + (0.0 if self._dual_since is None else self._world.now - self._dual_since)

    def close(self) -> None:
        """Nobody watches any more."""
        self._closed = True

    # ---- what it is told

    def see(self, resource: Replicated) -> None:
        """A resource changed."""
        name = self._watched.get(resource.name)
        if name is not None:
            for node in self._nodes:
                if node in self._open and node in resource.nodes:
                    self._take(node, name, resource.view_as(node, name), quiet=False)

    def way_changed(self) -> None:
        """A way to a node, or a node, went or came back."""
        for node in self._nodes:
            reached = self._controller.reaches(node, libvirt=False)
            if node in self._open and not reached:
                self._open.discard(node)
                self._gaps.append(f"after {self._world.now:.3f} s: {node} is not watched: its stream of events ended")
                for name in self._names:
                    self._now.pop((node, name), None)
                    self._doubts.pop((node, name), None)
                self._changed([f"{node} is not watched"])
            elif node not in self._open and reached:
                self._world.timeline.after(_AGAIN_S, lambda node=node: self._connect(node))  # type: ignore[misc]

    def _connect(self, node: str, *, first: bool = False) -> None:
        if node in self._open or not self._controller.reaches(node, libvirt=False):
            return
        if self._closed:
            return
        self._open.add(node)
        for one, name in self._watched.items():
            resource = self._world.resources.get(one)
            seen = None if resource is None or node not in resource.nodes else resource.view_as(node, name)
            self._take(node, name, seen, quiet=True)
        if not first:
            self._changed([f"{node} is watched again"])

    def _take(self, node: str, name: str, new: Resource | None, *, quiet: bool) -> None:
        key = (node, name)
        old = self._now.get(key)
        if new is old and new is not None:
            return
        if new is None:
            self._now.pop(key, None)
            doubts: tuple[str, ...] = (f"{node} has no resource {name}",)
        else:
            self._now[key] = new
            doubts = tuple(str(doubt) for peer in self._nodes if peer != node for doubt in new.doubts(peer))
        if doubts and doubts != self._doubts.get(key):
            self._breaks.append(f"after {self._world.now:.3f} s: {'; '.join(doubts)}")
        self._doubts[key] = doubts
        self._changed([] if quiet else list(_changes(old, new)))

    def _changed(self, sentences: Sequence[str]) -> None:
        self._changes += 1
        dual = any(
            sum((seen := self._now.get((node, name))) is not None and seen.role is Role.PRIMARY for node in self._nodes)
            > 1
            for name in self._names
        )
        if dual and self._dual_since is None:
            self._dual_since = self._world.now
        elif not dual and self._dual_since is not None:
            self._dual_s += self._world.now - self._dual_since
            self._dual_since = None
        if self._on_change is not None:
            for sentence in sentences:
                self._on_change(sentence)


def _changes(old: Resource | None, new: Resource | None) -> Iterator[str]:
    """What differs, in sentences."""
    if old is None or new is None:
        if old is not new:
            name = (old or new).name if (old or new) is not None else ""  # type: ignore[union-attr]
            yield f"{name} is {'gone' if new is None else 'there'}"
        return
    if old.role is not new.role:
        yield f"{new.name} on {new.node} is {new.role.value} (was {old.role.value})"
    for before, after in zip(old.connections, new.connections, strict=False):
        if before.state is not after.state:
            yield f"{new.name} on {new.node} is {after.state.value} (was {before.state.value})"
        for one, other in zip(before.volumes, after.volumes, strict=False):
            if one.replication is not other.replication:
                yield f"{new.name}/{other.number} on {new.node} is {other.replication.value}"
    for mine, now in zip(old.volumes, new.volumes, strict=False):
        if mine.disk is not now.disk:
            yield f"{new.name}/{now.number} on {new.node} is {now.disk.value} (was {mine.disk.value})"
