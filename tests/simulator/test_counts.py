"""How often a straight errand asks each node: a count, which holds on a busy machine as on a quiet one.

Each call of a storage is one call on a node (tests/unit/storage/test_programs.py).
"""

from __future__ import annotations

from collections import Counter

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.migrate import MigrateInstance
from lvmigrate.simulator import World
from lvmigrate.simulator.calls import Call
from lvmigrate.simulator.storage import SimulatedStorage


@pytest.fixture
def world() -> World:
    return World()


def of_storage(calls: list[Call], node: str) -> Counter[str]:
    """The calls of the storage's methods on ``node``; renewals come by the clock and are left out."""
    methods = [call.place.method for call in calls if call.place.node == node and not call.background]
    return Counter(method for method in methods if method != "domain" and hasattr(SimulatedStorage, method))


def test_a_cleanup_that_finds_nothing_asks_each_node_once_for_each_thing(world: World) -> None:
    with world:
        world.add_guest("web1", "node1")
        tasklet = CleanupInstance(world.controller("c1"), "web1")
        assert not tasklet.check_prereq().acts
        tasklet.exec()
    for node in world.nodes:
        looks = ("traces", "locate", "observe", "two_primaries", "openers", "options")
        assert of_storage(world.calls, node) == dict.fromkeys(looks, 1)


def test_a_straight_move_asks_each_node_so_often(world: World) -> None:
    with world:
        world.add_guest("web1", "node1")
        tasklet = MigrateInstance(world.controller("c1"), "web1")
        tasklet.check_prereq()
        planned = len(world.calls)
        tasklet.exec()
    both = Counter(
        [
            *("take_token", "watch", "observe", "generations", "arm_guard", "allow_two_primaries"),
            *("restore_options", "disarm_guard", "drop_token"),
            # Before the guest is let run, and before its definition is forgotten at the source.
            *("renew_token", "renew_token"),
        ]
    )
    assert of_storage(world.calls[planned:], "node1") == both + Counter(demote=1)
    assert of_storage(world.calls[planned:], "node2") == both + Counter(promote=1)
