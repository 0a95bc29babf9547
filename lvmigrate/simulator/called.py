"""What one controller calls resources that their nodes call differently, as the adapter for DRBD does it.

A node's own name goes no further than to that node.  That two nodes' resources are one is learnt from the connection
that both kernels tell of: until both have, each has its own name only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lvmigrate.simulator.controller import Controller
from lvmigrate.simulator.drbd import Replicated
from lvmigrate.token import GuardSeen


class Called:
    """One controller's knowledge of names."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._known: set[str] = set()

    def one(self, node: str, resource: Replicated) -> str:
        """The name of what was found on ``node``."""
        if resource.name not in self._known:
            ends = [view for end in resource.nodes if (view := resource.view(end)) is not None and view.connections]
            if len(ends) < len(resource.nodes) or not all(map(self._answers, resource.nodes)):
                return resource.called[node]
            self._known.add(resource.name)
        return resource.name

    def _answers(self, node: str) -> bool:
        return self._controller.reaches(node, libvirt=False)

    def find(self, node: str, name: str) -> Replicated | None:
        """What has that name on ``node``, whether it is the one name or the node's own."""
        resources = self._controller.world.resources
        found = resources.get(name)
        if found is not None and node in found.nodes:
            return found
        return next((resource for resource in resources.values() if resource.called.get(node) == name), None)

    def here(self, node: str) -> list[tuple[str, Replicated]]:
        """All that ``node`` has, with its name."""
        resources = self._controller.world.resources.values()
        return [(self.one(node, resource), resource) for resource in resources if node in resource.nodes]

    def asked(self, node: str, names: Collection[str]) -> list[tuple[str, Replicated]]:
        """Those of ``names`` that ``node`` has, as they were asked for."""
        found = ((name, self.find(node, name)) for name in names)
        return [(name, resource) for name, resource in found if resource is not None]

    def told(self, node: str, guard: GuardSeen) -> GuardSeen:
        """What is on ``node``, which has its own names, with those that the core hears."""
        orders = ((order, self.find(node, order.resource)) for order in guard.guarded)
        named = [replace(order, resource=self.one(node, found)) for order, found in orders if found is not None]
        return replace(guard, guarded=tuple(named))
