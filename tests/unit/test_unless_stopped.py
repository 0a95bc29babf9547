"""An abort is heard while the checks still look, and while a forecast measures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from hv import LibvirtHypervisor
from lvmigrate import together
from lvmigrate.cluster import Cluster
from lvmigrate.errors import MoveAborted, Refused
from lvmigrate.plan import Options
from lvmigrate.unless_stopped import unless_stopped
from tests.unit.fakes import UUID, World, node_of
from tests.unit.test_cli import InMemory

LONG_S = 120.0


class Hanging:
    """A look that asks to stop, and then goes on for as long as nobody opens the gate."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.gate = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.stop.set()
        self.gate.wait(LONG_S)
        self.ended.set()


@pytest.mark.parametrize(
    "act", [Cluster.migrate, Cluster.failover, Cluster.rehearse], ids=["migrate", "failover", "rehearse"]
)
def test_an_abort_does_not_wait_for_a_node_that_is_slow_to_be_looked_at(act: Callable[..., object]) -> None:
    world, stop = World(), threading.Event()
    world.faults["host", "node2"] = slow = Hanging(stop)
    with pytest.raises(MoveAborted, match="before anything began"):
        act(InMemory(world), "web1", target="node2", cancel=stop)
    assert not slow.ended.is_set()
    assert world.tokens == {}
    slow.gate.set()
    assert slow.ended.wait(LONG_S)


def test_an_abort_does_not_wait_for_a_forecasts_measurement() -> None:
    world, stop = World(), threading.Event()
    world.faults["activity", "node1"] = slow = Hanging(stop)
    with pytest.raises(MoveAborted):
        InMemory(world).migrate("web1", options=Options(forecast_s=60, bandwidth_mib_s=100), cancel=stop)
    assert not slow.ended.is_set()
    slow.gate.set()


def test_a_measurement_ends_when_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    hypervisor = LibvirtHypervisor({"node1": replace(node_of("node1"), libvirt_uri="test:///default")})
    looks: list[str] = []

    def look(*_: object) -> None:
        looks.append("")
        cancel.set()

    monkeypatch.setattr(hypervisor, "_measure", lambda *_: 0)
    monkeypatch.setattr(hypervisor, "_measured", look)
    with pytest.raises(MoveAborted):
        hypervisor.activity("node1", UUID, int(LONG_S), cancel=cancel)
    assert len(looks) == 1
    hypervisor.close()


def test_what_a_check_finds_or_raises_comes_through() -> None:
    cancel = threading.Event()
    assert unless_stopped(lambda: 3, cancel) == 3
    with pytest.raises(ZeroDivisionError):
        unless_stopped(lambda: 1 // 0, cancel)
    with pytest.raises(Refused):
        unless_stopped(lambda: InMemory(World(keepalive_s=1)).check("web1", target="node3"), cancel)


@pytest.mark.parametrize("in_turn", [True, False])
def test_nothing_begins_when_the_wish_came_with_the_end_of_the_check(*, in_turn: bool) -> None:
    cancel = threading.Event()
    before = together.in_turn.set(in_turn)
    try:
        with pytest.raises(MoveAborted):
            unless_stopped(cancel.set, cancel)
    finally:
        together.in_turn.reset(before)
