"""Resources that their nodes call differently, and minors that differ: moved, failed over, cleaned up, audited."""

from __future__ import annotations

import pytest

from lvmigrate.audit import audit as leftovers
from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import Code, Refused
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.migrate import MigrateInstance
from lvmigrate.replication import Role
from lvmigrate.report import Report
from lvmigrate.scene import observe
from lvmigrate.simulator import DRBD, ControllerKilled, Guest, Happening, Kind, Settings, Version, World, audit

TWO_NAMES = {"node1": "r1", "node2": "r9"}
ONE = "node1:r1=node2:r9"
VARIANTS = [
    Settings(version=Version.V9, auto_promote=True),
    Settings(version=Version.V9, protocol="A"),
    Settings(version=Version.V84),
]
IDS = ["9-auto", "9-A", "8.4"]


def move(world: World, controller: str = "c1") -> Report:
    tasklet = MigrateInstance(world.controller(controller), "web1")
    tasklet.check_prereq()
    return tasklet.exec()


def fail_over(world: World, options: FailoverOptions | None = None) -> Report:
    tasklet = FailoverInstance(world.controller("c1"), "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


def clean_up(world: World, controller: str) -> None:
    tasklet = CleanupInstance(world.controller(controller), "web1")
    tasklet.check_prereq()
    tasklet.exec()


def whole(world: World, guest: Guest, node: str) -> None:
    assert world.running(guest) == [node]
    assert not world.violations
    assert [str(finding) for finding in audit(world)] == []
    assert leftovers(world.controller("auditor")).findings == ()


@pytest.mark.parametrize("volumes", [1, 2])
@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
def test_a_move_there_and_back(settings: Settings, volumes: int) -> None:
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1", called=TWO_NAMES, volumes=volumes, resources=2)
        assert guest.resources[0].name == ONE
        world.timeline.advance(1.0)
        for target in ("node2", "node1"):
            assert move(world).target == target
            whole(world, guest, target)


@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
def test_names_that_two_guests_have_exchanged_are_not_taken_for_each_other(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1", called=TWO_NAMES)
        other = world.add_guest("web2", "node2", called={"node1": "r9", "node2": "r1"})
        world.timeline.advance(1.0)
        move(world)
        whole(world, guest, "node2")
        assert world.running(other) == ["node2"]


@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
def test_minors_that_differ_are_reached_by_the_path_that_the_name_makes(settings: Settings) -> None:
    with World(settings=settings) as world:
        world.add_resource("other", ("node1", "node2"), own_minors=True)
        guest = world.add_guest("web1", "node1", own_minors=True, volumes=2)
        first, second = guest.resources[0].minors.values()
        assert set(first).isdisjoint(second)
        assert [disk.path for disk in guest.disks] == [f"/dev/drbd/by-res/web1/{number}" for number in (0, 1)]
        world.timeline.advance(1.0)
        for target in ("node2", "node1"):
            move(world)
            whole(world, guest, target)
        fail_over(world)
        whole(world, guest, "node2")


def test_a_path_that_leads_to_nothing_or_to_another_disk_at_the_target_is_refused() -> None:
    """The path that a name makes is there only where the resource has that name; a minor may be another's."""
    with World() as world:
        resource = world.add_guest("web1", "node1", called=TWO_NAMES).resources[0]
        (minor,) = resource.minors["node1"]
        resource.minors = {"node1": (minor,), "node2": (50,)}
        with pytest.raises(Refused) as caught:
            move(world)
        assert Code.REPLICA_MISSING in {finding.code for finding in caught.value.findings}
        other = world.add_resource("other", ("node1", "node2"))
        other.minors = {"node1": (99,), "node2": (minor,)}
        with pytest.raises(Refused) as caught:
            move(world)
        (finding,) = (found for found in caught.value.findings if found.code is Code.REPLICA_DIFFERS)
        assert f"/dev/drbd{minor} is {ONE}/0 on node1, but other/0 on node2" in finding.sentence
        assert not world.violations


def test_a_path_that_is_another_guests_disk_on_a_third_node_takes_no_part() -> None:
    with World(("node1", "node2", "node3")) as world:
        guest = world.add_guest("web1", "node1", peer="node3")
        (minor,) = guest.resources[0].minors["node1"]
        other = world.add_resource("other", ("node2", "node3"))
        other.minors = {"node2": (minor,), "node3": (99,)}
        other.promote("node2")
        scene = observe(world.controller("c1"), "web1")
        assert scene.nodes == ("node1", "node3")
        assert set(scene.disks) == {"web1"}


@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
def test_a_failover_there_and_back(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1", called=TWO_NAMES)
        world.timeline.advance(1.0)
        for target in ("node2", "node1"):
            assert fail_over(world).target == target
            whole(world, guest, target)


@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
def test_a_failover_from_a_dead_node_and_its_return(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1", called=TWO_NAMES, defined_on_peer=True)
        world.timeline.advance(1.0)
        world.power_cut("node1")
        world.timeline.advance(60.0)
        fail_over(world, FailoverOptions(is_off="node1"))
        assert world.running(guest) == ["node2"]
        # While nobody has seen the other end, what is there has the name that it has there.
        assert set(world.controller("c5").storage.observe("node2")) == {"r9"}
        world.power_on("node1")
        world.timeline.advance(60.0)
        clean_up(world, "c2")
        whole(world, guest, "node2")


@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
@pytest.mark.parametrize("wait_s", [1.0, 200.0], ids=["before-the-guards", "after-the-guards"])
@pytest.mark.parametrize(
    "killed", ["c1.copy_memory@node1#1", "transfer#1", "suspended#1", "ended#1", "c1.restore_options@node1#1"]
)
def test_another_controller_finishes_or_undoes_what_a_dead_one_left(
    settings: Settings, killed: str, wait_s: float
) -> None:
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1", called=TWO_NAMES)
        world.timeline.advance(1.0)
        world.faults.add(killed, Kind.KILLED_BEFORE if killed.startswith("c1.") else Happening.CONTROLLER_KILLED)
        with pytest.raises(ControllerKilled):
            move(world)
        # Whatever is left on a node has that node's own name in it.
        for node, own in TWO_NAMES.items():
            guards = world.hosts[node].guards.values()
            assert {order.resource for guard in guards for order in guard.seen().guarded} == {own}
        found = leftovers(world.controller("c8"))
        assert found.findings or found.under_way
        world.timeline.advance(wait_s)
        clean_up(world, "c2")
        (node,) = world.running(guest)
        whole(world, guest, node)


def test_an_audit_tells_of_both_ends_as_of_one_resource() -> None:
    with World() as world:
        resource = world.add_resource("free", ("node1", "node2"), called=TWO_NAMES)
        resource.set_options("node1", two_primaries=True, protocol="C")
        for node in resource.nodes:
            resource.promote(node)
        assert [resource.ends[node].role for node in resource.nodes] == [Role.PRIMARY, Role.PRIMARY]
        found = leftovers(world.controller("c1")).findings
        assert f"{ONE} is Primary on node1 and node2." in [finding.sentence for finding in found]
        assert {f"Two primaries are allowed for {ONE} on {node}." for node in resource.nodes} <= {
            finding.sentence for finding in found
        }


def test_two_names_whose_connection_is_forgotten_are_refused_and_cleaned_up_once_it_is_back() -> None:
    """DRBD 8.4 forgets a connection that is given up, and with it what tells a new controller that they are one."""
    with World(settings=Settings(version=Version.V84)) as world:
        guest = world.add_guest("web1", "node1", called=TWO_NAMES)
        world.timeline.advance(1.0)
        world.faults.add("c1.restore_options@node1#1", Kind.KILLED_BEFORE)
        with pytest.raises(ControllerKilled):
            move(world)
        world.cut(DRBD, "node1", "node2")
        world.timeline.advance(10.0)
        guest.resources[0].disconnect("node1")
        with pytest.raises(Refused) as caught:
            clean_up(world, "c2")
        assert Code.REPLICA_DIFFERS in {finding.code for finding in caught.value.findings}
        assert not world.violations
        world.heal()
        guest.resources[0].reconnect("node1")
        world.timeline.advance(60.0)
        clean_up(world, "c3")
        whole(world, guest, "node2")
