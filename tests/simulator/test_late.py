"""What is learnt late, and told to the guards and to whoever takes the token next."""

from __future__ import annotations

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import Code
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options
from lvmigrate.replication import Role
from lvmigrate.report import CleanupReport
from lvmigrate.simulator import ControllerKilled, Happening, Settings, Version, World, audit
from lvmigrate.simulator.host import Job, Phase
from lvmigrate.simulator.truth import DRBD

WORLDS = pytest.mark.parametrize(
    ("version", "auto_promote"), [(Version.V9, True), (Version.V9, False), (Version.V84, False)]
)


def at_transfer(world: World, act: object) -> None:
    """Once, when the copy begins."""

    def watch(job: Job) -> None:
        if job.phase is Phase.TRANSFER:
            world.faults.watchers.remove(watch)
            assert callable(act)
            act()

    world.faults.watchers.append(watch)


def killed_in_mid_copy(world: World, after: Happening) -> None:
    """A move whose controller is killed in mid-copy, some seconds after that; then the guards have their time."""
    move = MigrateInstance(world.controller("c1"), "web1")
    move.check_prereq()

    def act() -> None:
        world.timeline.after(2, lambda: world.faults.happen(after))
        world.timeline.after(5, world.controllers["c1"].kill)

    at_transfer(world, act)
    with pytest.raises(ControllerKilled):
        move.exec()
    world.timeline.advance(300)


def cleaned(world: World) -> CleanupReport:
    cleanup = CleanupInstance(world.controller("c2"), "web1")
    cleanup.check_prereq()
    return cleanup.exec()


@WORLDS
def test_a_guest_that_was_let_run_in_mid_copy_is_let_run_by_the_guards(version: Version, *, auto_promote: bool) -> None:
    with World(settings=Settings(version=version, auto_promote=auto_promote, copy_s=20.0)) as world:
        guest = world.add_guest("web1", "node1", running=False)
        killed_in_mid_copy(world, Happening.RESUMED)
        assert world.running(guest) == ["node2"]
        report = cleaned(world)
        assert (report.node, report.running, report.warnings) == ("node2", True, ())
        assert (audit(world), world.violations) == ((), [])


@WORLDS
def test_a_guest_that_was_suspended_in_mid_copy_is_let_run_by_nobody(version: Version, *, auto_promote: bool) -> None:
    with World(settings=Settings(version=version, auto_promote=auto_promote, copy_s=20.0)) as world:
        guest = world.add_guest("web1", "node1")
        killed_in_mid_copy(world, Happening.SUSPENDED)
        report = cleaned(world)
        assert (report.node, report.running) == ("node2", False)
        assert world.running(guest) == []
        assert world.violations == []


@pytest.mark.parametrize("looked_before", [True, False])
def test_a_cleanup_knows_what_the_last_holder_knew(*, looked_before: bool) -> None:
    """The hand-over is noted in the token, and libvirt's own word of it is gone, after a cleanup has looked."""
    with World(settings=Settings(copy_s=20.0)) as world:
        guest = world.add_guest("web1", "node1")
        move = MigrateInstance(world.controller("c1"), "web1")
        move.check_prereq()
        cleanup = CleanupInstance(world.controller("c2"), "web1")

        def held() -> None:
            """The guest waits for its disk, and meanwhile the source's daemon is started anew, and c1 dies."""
            world.cut(DRBD, "node1", "node2", 60)
            world.timeline.after(6, lambda: world.kill_daemon("node1"))
            world.timeline.after(12, world.controllers["c1"].kill)

        def looks() -> None:
            cleanup.check_prereq()

        def act() -> None:
            if looked_before:
                world.timeline.after(5, looks)
            world.timeline.after(18.75, held)

        at_transfer(world, act)
        with pytest.raises(ControllerKilled):
            move.exec()
        for node in ("node1", "node2"):
            world.kill_guard(node, guest)
        if not looked_before:
            cleanup.check_prereq()
        world.timeline.advance(80)
        report = cleanup.exec()
        assert (report.node, report.running) == ("node2", True)
        assert world.violations == []


@pytest.mark.parametrize(("guard", "warned"), [(True, False), (False, True)])
def test_a_move_without_a_guard_says_what_that_means(*, guard: bool, warned: bool) -> None:
    with World() as world:
        world.add_guest("web1", "node1")
        move = MigrateInstance(world.controller("c1"), "web1", options=Options(guard=guard))
        assert (Code.UNGUARDED in {warning.code for warning in move.check_prereq().warnings}) is warned


@pytest.mark.parametrize(("reads_first", "explicit"), [(True, True), (False, False)])
def test_a_target_whose_qemu_reads_first_is_promoted_by_a_command(*, reads_first: bool, explicit: bool) -> None:
    """DRBD 9 lets nobody read on a Secondary beside a Primary, and promotes for a writer only."""
    settings = Settings(version=Version.V9, auto_promote=True, incoming_writes=not reads_first)
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1")
        move = MigrateInstance(world.controller("c1"), "web1")
        plan = move.check_prereq()
        assert [resource.promotes for resource in plan.resources] == [explicit]
        assert (Code.PROMOTED_EXPLICITLY in {warning.code for warning in plan.warnings}) is explicit
        move.exec()
        end = world.resources["web1"].ends["node2"]
        assert (end.role, end.explicit) == (Role.PRIMARY, explicit)
        assert world.running(guest) == ["node2"]
        assert (audit(world), world.violations) == ((), [])
