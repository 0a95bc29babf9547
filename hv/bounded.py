"""A deadline for every call to libvirt: its own have none while a QEMU does not answer its monitor."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from hv.border import border
from lvmigrate.aside import aside
from lvmigrate.errors import NodeUnreachable


class HasDeadline(Protocol):
    """What has methods that call libvirt."""

    #: In seconds.
    call_timeout_s: float

    def calling(self, node: str) -> AbstractContextManager[None]:
        """What a call to ``node`` is made in."""


S = TypeVar("S", bound=HasDeadline)
P = ParamSpec("P")
R = TypeVar("R")


def bounded(
    what: str,
) -> Callable[[Callable[Concatenate[S, str, P], R]], Callable[Concatenate[S, str, P], R]]:
    """For a method whose first argument is a node and which does ``what`` (a noun phrase) there.

    The method must be idempotent: it is called once more, on a new connection, when the old one broke under it.
    Afterwards it raises only `NodeUnreachable` or `CommandFailed`, the former also when libvirt gave no answer
    within ``call_timeout_s``: then the call may still act, later.
    """

    def decorate(method: Callable[Concatenate[S, str, P], R]) -> Callable[Concatenate[S, str, P], R]:
        @functools.wraps(method)
        def call(self: S, node: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
            def work() -> R:
                with border(node, what), self.calling(node):
                    return method(self, node, *args, **kwargs)

            def work_again() -> R:
                try:
                    return work()
                except NodeUnreachable as error:
                    if error.__cause__ is None:  # no connection within its deadline: once is enough
                        raise
                    # Every method is idempotent, and the connection may just have been lost: Ctrl-C in a terminal, for
                    # one, ends the ssh that libvirt started.
                    return work()

            return within(self.call_timeout_s, work_again, node, what)

        return call

    return decorate


def within(timeout_s: float, work: Callable[[], R], node: str, what: str) -> R:
    """The result of ``work``, or `NodeUnreachable` after ``timeout_s``; the thread that hangs in it ends by itself."""
    ended = aside(work, f"libvirt-{node}")
    try:
        outcome = ended.get(timeout=timeout_s)
    except queue.Empty:
        raise NodeUnreachable(
            node,
            f"{what[0].lower()}{what[1:]} had no answer from libvirt within {timeout_s:g} s",
            hint=f"See on {node} whether libvirtd and the guest's QEMU still live (`virsh list`, `virsh domjobinfo`).",
        ) from None
    return outcome()
