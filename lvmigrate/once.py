"""What a node says of itself, asked once for many checks: for a plan alone, after which every move looks anew."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, cast

from lvmigrate.domain import Domain
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.tasklet import Context

#: The looks that are about a node and no guest of it.
HYPERVISOR: Final = frozenset({"domains", "host"})
STORAGE: Final = frozenset({"traces", "available_kib", "guard_trouble", "keepalive_s", "certificates"})


def once(context: Context) -> Context:
    """The same context, which asks each node at most once for what holds for all of its guests.

    A node that gives no answer is asked again.  Of side by side checks the first ones may each ask.
    """
    return dataclasses.replace(
        context,
        hypervisor=cast("Hypervisor", _Guests(context.hypervisor, HYPERVISOR)),
        storage=cast("Storage", _Once(context.storage, STORAGE)),
    )


class _Once:
    """An adapter that remembers some of its answers."""

    def __init__(self, adapter: Any, looks: frozenset[str]) -> None:  # noqa: ANN401 -- either of the two
        self._adapter = adapter
        self._looks = looks
        self._answers: dict[tuple[str, str], Any] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the adapter has
        method = getattr(self._adapter, name)
        if name not in self._looks:
            return method

        def look(node: str) -> Any:  # noqa: ANN401 -- as above
            if (name, node) not in self._answers:
                self._answers[name, node] = method(node)
            return self._answers[name, node]

        return look


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
