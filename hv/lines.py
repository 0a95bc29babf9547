"""The lines to one node: more than one where its daemon would hear no more on the first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from hv.line import Line
from lvmigrate.errors import NodeUnreachable
from lvmigrate.node import Node

#: How many calls one connection carries at once.  A daemon reads no more of a connection that has as many calls without
#: an answer as ``max_client_requests`` says (libvirtd.conf: 5), keepalive messages neither, and closes it half a minute
#: later; and a copy of memory is one call from its beginning to its end, as is one to a QEMU that does not answer.
AT_ONCE: Final = 4
#: How long a call waits for another's end before one more connection is opened for it, in seconds: most are short.
_SOON_S: Final = 0.2
#: How many connections to one node there are at the most.
_MOST: Final = 16


class Lines:
    """One node's connections, each opened when it is needed and kept. Safe to use from several threads."""

    def __init__(self, node: Node, *, timeout_s: float, first: Line, another: Callable[[], Line]) -> None:
        """``first``: the one that is always there; ``another``: makes one more; ``timeout_s``: how long to wait."""
        self._node = node
        self._timeout_s = timeout_s
        self._another = another
        self._calls = {first: 0}
        self._changed = threading.Condition()

    @contextmanager
    def taken(self) -> Iterator[Line]:
        """In the context: a line of which one call is the caller's. Raises `NodeUnreachable` when none comes free."""
        line = self._take()
        try:
            yield line
        finally:
            with self._changed:
                self._calls[line] -= 1
                self._changed.notify()

    def close(self) -> tuple[threading.Thread, ...]:
        """Let all connections go; the threads that do it."""
        with self._changed:
            return tuple(thread for line in self._calls if (thread := line.close()) is not None)

    def _take(self) -> Line:
        began = time.monotonic()
        with self._changed:
            while True:
                free = next((line for line, calls in self._calls.items() if calls < AT_ONCE), None)
                waited = time.monotonic() - began
                # To a node that cannot be reached no second try helps.
                more = len(self._calls) < _MOST and all(line.lives for line in self._calls)
                if free is None and more and waited >= _SOON_S:
                    free = self._another()
                    self._calls[free] = 0
                if free is not None:
                    self._calls[free] += 1
                    return free
                if waited >= self._timeout_s:
                    raise NodeUnreachable(
                        self._node.name,
                        f"{sum(self._calls.values())} calls to its libvirt have had no answer yet",
                        hint=f"See on {self._node.name} whether libvirtd and the guests' QEMUs still live "
                        "(`virsh list`, `virsh domjobinfo`).",
                    )
                self._changed.wait(min(_SOON_S, self._timeout_s - waited))
