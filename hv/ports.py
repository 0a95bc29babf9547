"""The ports on which targets wait for memory, where the configuration names a range."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lvmigrate.errors import Code, CommandFailed
from lvmigrate.node import Node


class Ports:
    """No two copies of this process to one node have the same port. Safe to use from several threads.

    Another controller's are not known: QEMU then says that the address is in use, and the move fails before anything
    was copied; the next try takes the next port.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[str, set[int]] = {}
        self._last: dict[str, int] = {}

    @contextmanager
    def taken(self, node: Node) -> Iterator[int | None]:
        """A port of ``node``'s range for the time in the context; ``None`` where libvirt chooses.

        Raises `CommandFailed` (`Code.PORTS_TAKEN`) when all are taken: beyond them there may be a firewall.
        """
        port = self._take(node)
        try:
            yield port
        finally:
            if port is not None:
                with self._lock:
                    self._used[node.name].discard(port)

    def _take(self, node: Node) -> int | None:
        if node.migration_ports is None:
            return None
        first, last = node.migration_ports
        size = last - first + (1 if node.spare_port is None else 0)
        with self._lock:
            used = self._used.setdefault(node.name, set())
            begin = self._last.get(node.name, first - 1) + 1 - first
            for number in range(size):
                port = first + (begin + number) % size
                if port not in used:
                    used.add(port)
                    self._last[node.name] = port
                    return port
        raise CommandFailed(
            node.name,
            f"Taking one of the ports {first}-{last} for memory",
            status=0,
            code=Code.PORTS_TAKEN,
            hint=f"Wait for the moves to {node.name} that are under way, or widen its migration_ports.",
        )
