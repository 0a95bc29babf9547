"""Opening and closing the dual-primary of one resource: what must be seen before it counts, and what is tried again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from lvmigrate.dual_primary import DualPrimary
from lvmigrate.errors import CommandFailed, DeviceHeld, MoveFailed
from lvmigrate.lease import Lease
from lvmigrate.plan import ResourcePlan
from lvmigrate.replication import ConnectionOptions, ReplicationState, Resource, Role
from lvmigrate.token import Token
from tests.unit.fakes import NODES, UUID, FakeStorage, FakeWatch, World, guest, refusing

TOKEN = Token(uuid=UUID, instance="web1", id="ours", holder="we", lease_s=30, errand=None)
BEFORE = ConnectionOptions(allow_two_primaries=False, protocol="A", auto_promote=False)
#: Nothing here is tried that often: what is, does not end.
ENDLESS = 1000


@dataclasses.dataclass
class Unlinked(FakeStorage):
    """A kernel that knows no connection to the peer."""

    def seen(self, node: str) -> Resource:
        return dataclasses.replace(super().seen(node), connections=())


def dual(
    world: World, *, auto_promote: bool = False, kind: Callable[[World], FakeStorage] = FakeStorage
) -> DualPrimary:
    storage = kind(world)
    lease = Lease(storage, NODES, TOKEN, clock=world.context().clock)
    for node in NODES:
        lease.take(node)
    options = dataclasses.replace(BEFORE, auto_promote=auto_promote)
    return DualPrimary(
        storage=storage,
        watch=FakeWatch(world, storage),
        lease=lease,
        plan=ResourcePlan(name="r0", volumes=(), options=(options, options)),
        source="node1",
        target="node2",
        clock=world.context().clock,
    )


def opened() -> World:
    """A guest that has arrived on node2."""
    roles = dict.fromkeys(NODES, Role.PRIMARY)
    return World(domains={"node2": guest("node2")}, roles=roles, two_primaries=True, protocol="C")


def test_it_is_opened_and_closed() -> None:
    world = World(protocol="A")
    one = dual(world)
    one.open()
    assert (world.two_primaries, world.protocol, world.roles["node2"]) == (True, "C", Role.PRIMARY)
    one.close("node2")
    assert (world.two_primaries, world.protocol, world.roles["node2"]) == (False, "A", Role.SECONDARY)


def test_where_opening_the_device_promotes_nobody_is_promoted_nor_waited_for() -> None:
    world = World()
    dual(world, auto_promote=True).open()
    assert world.roles["node2"] is Role.SECONDARY
    assert world.two_primaries


@pytest.mark.parametrize(
    "trouble",
    [
        lambda world: setattr(world, "unwatched", True),
        lambda world: setattr(world, "replication", ReplicationState.SYNC_SOURCE),
        lambda world: world.late_faults.update(
            {("promote", "node2"): lambda: world.roles.update(node2=Role.SECONDARY)}
        ),
    ],
    ids=["not watched", "not in step", "not Primary"],
)
def test_it_is_open_only_when_that_is_seen(trouble: Callable[[World], None]) -> None:
    world = World()
    trouble(world)
    with pytest.raises(MoveFailed, match="was not seen dual-primary and in step"):
        dual(world).open()


def test_two_primaries_that_other_hands_forbid_again_are_allowed_again_but_not_for_ever() -> None:
    for times, reached in ((2, True), (ENDLESS, False)):
        world = World()

        def set_back(world: World = world, times: int = times) -> None:
            if world.calls.count(("allow_two_primaries", "node2")) <= times:
                world.two_primaries = False

        world.late_faults["allow_two_primaries", "node2"] = set_back
        world.faults["options", "node1"] = set_back
        one = dual(world)
        if reached:
            one.open()
        else:
            with pytest.raises(CommandFailed, match="Allowing two primaries"):
                one.open()
            assert world.calls.count(("allow_two_primaries", "node2")) == 3
        assert world.two_primaries is reached


def test_what_the_kernel_refuses_for_another_reason_is_not_tried_again() -> None:
    world = World()
    world.faults["promote", "node2"] = refusing("node2")
    with pytest.raises(CommandFailed):
        dual(world).open()
    assert world.calls.count(("promote", "node2")) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        lambda world: setattr(world, "unwatched", True),
        lambda world: setattr(world, "connected", False),
        lambda world: world.late_faults.update({("demote", "node1"): lambda: world.roles.update(node1=Role.PRIMARY)}),
    ],
    ids=["not watched", "not connected", "still Primary"],
)
def test_two_primaries_are_forbidden_only_where_the_loser_is_seen_secondary(trouble: Callable[[World], None]) -> None:
    world = opened()
    trouble(world)
    with pytest.raises(CommandFailed, match="Seeing r0 Secondary"):
        dual(world).close("node1")
    assert "restore_options" not in {method for method, _ in world.calls}


def test_without_a_connection_nothing_is_seen() -> None:
    world = opened()
    with pytest.raises(CommandFailed, match="Seeing r0 Secondary"):
        dual(world, kind=Unlinked).close("node1")
    assert world.two_primaries


def test_what_is_allowed_after_it_was_forbidden_is_said() -> None:
    world = opened()
    world.late_faults["restore_options", "node2"] = lambda: setattr(world, "two_primaries", True)
    with pytest.raises(CommandFailed, match="Forbidding two primaries"):
        dual(world).close("node1")


def test_what_is_secondary_is_not_demoted_again() -> None:
    """A reader there would have it refused, and harms nothing."""
    world = opened()
    world.roles["node1"] = Role.SECONDARY
    world.faults["demote", "node1"] = refusing("node1")
    dual(world).close("node1")
    assert not world.two_primaries


def held_for(world: World, seconds: float) -> None:
    begin = world.time

    def held() -> None:
        assert world.calls.count(("demote", "node1")) < ENDLESS
        if world.time < begin + seconds:
            raise DeviceHeld("node1", "Demoting r0", status=11, hint="none")

    world.faults["demote", "node1"] = held


def test_a_device_that_is_held_is_waited_for_but_not_for_ever() -> None:
    world = opened()
    held_for(world, 20.0)
    dual(world).close("node1")
    assert not world.two_primaries
    world = opened()
    held_for(world, float("inf"))
    with pytest.raises(DeviceHeld):
        dual(world).close("node1")
    assert world.two_primaries
