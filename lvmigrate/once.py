"""What a node says of itself, asked once for many checks: for a plan alone, after which every move looks anew."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar, cast

from lvmigrate.domain import Domain
from lvmigrate.premises import Premises, Wanted
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.tasklet import Context

T = TypeVar("T")

#: The looks that are about a node and no guest of it.
HYPERVISOR: Final = frozenset({"domains", "host"})
STORAGE: Final = frozenset({"traces", "available_kib", "guard_trouble", "keepalive_s", "certificates"})


def once(context: Context) -> Context:
    """The same context, which asks each node at most once for what holds for all of its guests.

    A node that gives no answer is asked again by whoever asks later.
    """
    return dataclasses.replace(
        context,
        hypervisor=cast("Hypervisor", _Guests(context.hypervisor, HYPERVISOR)),
        storage=cast("Storage", _Places(context.storage, STORAGE)),
    )


class _Once:
    """An adapter that remembers some of its answers."""

    def __init__(self, adapter: Any, looks: frozenset[str]) -> None:  # noqa: ANN401 -- either of the two
        self._adapter = adapter
        self._looks = looks
        #: By what was asked, of which node: the answer, or the question that is under way.
        self._answers: dict[tuple[str, ...], Future[Any]] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the adapter has
        method = getattr(self._adapter, name)
        if name not in self._looks:
            return method
        return lambda node: self._asked((name, node), partial(method, node))

    def _asked(self, key: tuple[str, ...], ask: Callable[[], T]) -> T:
        """The answer; whoever asks the same meanwhile waits for it, and hears the same error if there is none."""
        with self._lock:
            first = key not in self._answers
            answer = self._answers.setdefault(key, Future())
        if first:
            try:
                answer.set_result(ask())
            except BaseException as error:  # noqa: BLE001 -- raised below, in each thread that waits for it
                with self._lock:
                    del self._answers[key]
                answer.set_exception(error)
        found: T = answer.result()
        return found


class _Places(_Once):
    """A storage that knocks at each peer's doors once: what a guest has of its own on a node is looked at for each."""

    def premises(self, node: str, wanted: Wanted) -> Premises:
        """What is on ``node``, and whether it reaches the peer: as it was when that was asked first."""
        own: Premises = self._adapter.premises(node, dataclasses.replace(wanted, knock=False))
        if not wanted.knock:
            return own
        knock = Wanted(instance=wanted.instance, peer=wanted.peer, knock=True, autostart=False)
        way = self._asked(("knock", node, wanted.peer), lambda: self._adapter.premises(node, knock))
        return dataclasses.replace(
            own, peer=way.peer, peer_words=way.peer_words, memory=way.memory, memory_words=way.memory_words
        )


class _Guests(_Once):
    """A hypervisor that asks for one guest only where its node's list has it."""

    def __init__(self, adapter: Hypervisor, looks: frozenset[str]) -> None:
        super().__init__(adapter, looks)
        self._names: dict[str, frozenset[str]] = {}

    def domain(self, node: str, name: str) -> Domain | None:
        """The guest as ``node`` knows it now; ``None``: it did not know it when it was asked for all."""
        if node not in self._names:
            self._names[node] = frozenset(word for domain in self.domains(node) for word in (domain.uuid, domain.name))
        if name not in self._names[node]:
            return None
        found: Domain | None = self._adapter.domain(node, name)
        return found
