"""The simulator keeps the contracts of both Protocols, as the real adapters do (tests/pair, tests/lab)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from lvmigrate.plan import Options, Switch
from lvmigrate.simulator import LIBVIRT, Settings, Version, World
from lvmigrate.simulator.drbd import Hold
from lvmigrate.simulator.host import Job, Phase
from tests.contract import hypervisor, storage
from tests.contract.storage import ours, token

__all__ = ["ours", "token"]

SETTINGS = {
    "9": Settings(version=Version.V9),
    "9-auto": Settings(version=Version.V9, auto_promote=True),
    "8.4": Settings(version=Version.V84),
}
#: What each node calls one resource.
TWO_NAMES = {"node1": "db1", "node2": "db9"}


class Simulated:
    def __init__(self, world: World) -> None:
        self.world = world
        self.context = world.controller("c1")

    def now(self) -> float:
        return self.context.clock.now()

    def sleep(self, seconds: float) -> None:
        self.context.clock.sleep(seconds)


class Guests(Simulated):
    strict = Options()
    fast = Options(switch=Switch.FAST)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.guest = world.add_guest("web1", "node1")
        for resource in self.guest.resources:  # as `DualPrimary.open` does it
            resource.set_options("node1", two_primaries=True, protocol="C")
            resource.promote("node2")
        self.hv = self.context.hypervisor
        self.uuid = self.guest.uuid

    def hurry(self) -> None:
        """Its copies end by themselves."""

    def lose_the_last_reply(self) -> None:
        def cut(job: Job) -> None:
            if job.phase is Phase.FINISHED:
                self.world.cut(LIBVIRT, "node1", "node2")

        self.world.faults.watchers.append(cut)

    def kill_qemu(self, node: str) -> None:
        self.world.kill_qemu(node, self.guest)


class TestHypervisor(hypervisor.HypervisorContract):
    @pytest.fixture(params=SETTINGS)
    def stage(self, request: pytest.FixtureRequest) -> Iterator[Guests]:
        with World(settings=SETTINGS[request.param]) as world:
            yield Guests(world)


class Disks(Simulated):
    def __init__(self, world: World, called: Mapping[str, str] | None) -> None:
        super().__init__(world)
        self.resource = world.add_resource("db1", ("node1", "node2"), called=called)
        self.name = self.resource.name
        self.path = f"/dev/drbd{self.resource.minors['node1'][0]}"
        self.storage = self.context.storage

    @contextmanager
    def held(self, node: str, *, write: bool) -> Iterator[None]:
        hold = Hold(who="sleep (pid 4711)", write=write)
        self.resource.open(node, hold)
        yield
        self.resource.close(node, hold)

    @contextmanager
    def old(self, node: str) -> Iterator[None]:
        self.resource.outdate(node)
        yield
        self.resource.reconnect(node)
        self.world.timeline.advance(30.0)

    @contextmanager
    def for_good(self) -> Iterator[None]:
        self._configure(two_primaries=True)
        yield
        self._configure(two_primaries=False)

    def _configure(self, *, two_primaries: bool) -> None:
        self.resource.for_good = two_primaries
        for node in self.resource.nodes:
            self.resource.set_options(node, two_primaries=two_primaries, protocol="C")


class TestStorage(storage.StorageContract):
    @pytest.fixture(
        params=[("9", None), ("8.4", None), ("9", TWO_NAMES), ("8.4", TWO_NAMES)],
        ids=["9", "8.4", "9-named", "8.4-named"],
    )
    def stage(self, request: pytest.FixtureRequest) -> Iterator[Disks]:
        version, called = request.param
        with World(settings=SETTINGS[version]) as world:
            yield Disks(world, called)
