"""`World`: a truth with controllers in it, which run tasklets, and with faults put where they are to strike."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from lvmigrate import together
from lvmigrate.simulator.controller import Controller
from lvmigrate.simulator.faults import Faults
from lvmigrate.simulator.hypervisor import SimulatedHypervisor
from lvmigrate.simulator.settings import Settings
from lvmigrate.simulator.storage import SimulatedStorage
from lvmigrate.simulator.truth import Truth
from lvmigrate.tasklet import Context


class World(Truth):
    """Some hosts, their libvirt and their DRBD, in memory, with time under control.

    Single-threaded and deterministic: time passes only when a controller sleeps, waits or makes a call, and what falls
    due meanwhile then happens, in order.  Inside the context `lvmigrate.together.in_turn` is set, so that a tasklet
    makes its calls one after the other::

        with World() as world:
            world.add_guest("web1", "node1")
            tasklet = MigrateInstance(world.controller("c1"), "web1")
            tasklet.check_prereq()
            report = tasklet.exec()
            assert not world.violations and not audit(world)
    """

    def __init__(self, nodes: Sequence[str] = ("node1", "node2"), settings: Settings | None = None) -> None:
        super().__init__(nodes, settings)
        #: By name.
        self.controllers: dict[str, Controller] = {}
        self.faults = Faults(self, self.controllers)
        self.before = self.faults.before
        self.entered = self.faults.phase
        self._in_turn: contextvars.Token[bool] | None = None

    def __enter__(self) -> Self:
        self._in_turn = together.in_turn.set(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._in_turn is not None:
            together.in_turn.reset(self._in_turn)

    def controller(self, name: str, **changes: Any) -> Context:  # noqa: ANN401 -- whatever a Context takes
        """What a tasklet needs, as the controller of this name has it: its adapters and its clock."""
        controller = self.controllers.get(name)
        if controller is None:
            controller = self.controllers[name] = Controller(self, name)
            self.hearers.append(controller)
        values: dict[str, Any] = {
            "nodes": self.nodes,
            "hypervisor": SimulatedHypervisor(controller),
            "storage": SimulatedStorage(controller),
            "cancel": controller.cancel,
            "clock": controller.clock,
        }
        return Context(**values | changes)
