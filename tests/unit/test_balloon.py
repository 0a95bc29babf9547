"""A guest that gives memory back to fit on its target, and gets it again."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from lvmigrate.balloon import Balloon, Fit
from lvmigrate.domain import DomainState, Host
from lvmigrate.errors import Code, LeftBehind, MoveAborted, MoveFailed, Refused
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options, Plan
from lvmigrate.premises import Pages
from lvmigrate.protocols import CopyEnd
from lvmigrate.report import Report
from tests.unit.fakes import NEEDS, OFFER, UUID, World, guest, refusing

MIB = 1024
ALLOWED = Options(allow_runtime_changes=True)


def cramped(free_mib: int = 400, **changes: object) -> World:
    """A guest of 512 MiB, and a target with less, beside the 66 MiB for a QEMU."""
    host = Host(
        node="node2", free_memory_kib=(free_mib + 66) * MIB, libvirt_version=(11, 3, 0), qemu_version=(10, 0, 0)
    )
    domain = guest("node1", memory_kib=1024 * MIB, current_kib=512 * MIB)
    return dataclasses.replace(World(hosts={"node2": host}, domains={"node1": domain}), **changes)  # type: ignore[arg-type]


def has_mib(world: World) -> int:
    kib = world.domains[world.where()].current_kib
    assert kib is not None
    return kib // MIB


def planned(world: World, options: Options = ALLOWED) -> Plan:
    return MigrateInstance(world.context(), "web1", options=options).check_prereq()


def move(world: World, cancel: threading.Event | None = None) -> Report:
    tasklet = MigrateInstance(world.context(cancel=cancel or threading.Event()), "web1", options=ALLOWED)
    tasklet.check_prereq()
    return tasklet.exec()


def test_it_shrinks_before_anything_is_opened_and_grows_where_it_arrived() -> None:
    world = cramped()
    report = move(world)
    assert [warning.code for warning in report.warnings] == [Code.MEMORY_SHRINKS]
    assert has_mib(world) == 512
    assert list(world.violations()) == []
    names = [name for name, _ in world.calls if name in ("set_memory", "allow_two_primaries", "copy_memory", "demote")]
    assert names[0] == "set_memory"
    assert names[-1] == "set_memory"
    assert names.index("copy_memory") > 0
    assert [node for name, node in world.calls if name == "set_memory"] == ["node1", "node2"]


def test_it_grows_as_far_as_the_target_has_room() -> None:
    world = cramped()

    def arrive(world: World) -> CopyEnd:
        world.hosts["node2"] = dataclasses.replace(world.hosts["node2"], free_memory_kib=50 * MIB)
        return world.arrive()

    world.ending = arrive
    move(world)
    assert has_mib(world) == 450


def test_it_grows_no_further_than_the_target_s_kernel_has_room() -> None:
    """libvirt counts as free what tmpfs and shared memory hold."""
    world = cramped()

    def arrive(world: World) -> CopyEnd:
        world.available_kib["node2"] = 50 * MIB
        return world.arrive()

    world.ending = arrive
    move(world)
    assert has_mib(world) == 450


def test_nothing_is_done_where_it_fits_or_nobody_allowed_it() -> None:
    for world, options in ((cramped(512), ALLOWED), (cramped(2000), Options())):
        plan = planned(world, options)
        assert (plan.shrunk_kib, plan.errand.memory_kib) == (None, 0)
    with pytest.raises(Refused) as caught:
        planned(cramped(), Options())
    assert "--allow-runtime-changes" in caught.value.hint


def test_what_is_in_huge_pages_is_reserved_as_a_whole_and_gives_nothing_back() -> None:
    world = cramped(
        300,
        needs=dataclasses.replace(NEEDS, pages=(Pages(size_kib=2048, kib=1024 * MIB),)),
        offer=dataclasses.replace(OFFER, free_pages={2048: {0: 1024 * MIB}}),
    )
    assert planned(world).shrunk_kib is None


@pytest.mark.parametrize(
    ("free_kib", "may_shrink", "shrunk_kib"),
    [(100, True, None), (80, True, 80), (50, True, 50), (49, True, None), (80, False, None)],
)
def test_how_small_it_has_to_be(free_kib: int, shrunk_kib: int | None, *, may_shrink: bool) -> None:
    fit = Fit(current_kib=100, free_kib=free_kib, least_kib=50, may_shrink=may_shrink)
    assert fit.shrunk_kib == shrunk_kib


@pytest.mark.parametrize(
    "world",
    [
        cramped(255),  # half of what it has is the least
        cramped(needs=dataclasses.replace(NEEDS, balloon=False)),
        cramped(
            domains={
                "node1": guest(
                    "node1", memory_kib=512 * MIB, current_kib=512 * MIB, state=DomainState.PAUSED, reason="user"
                )
            }
        ),
    ],
    ids=["too little", "no balloon", "paused"],
)
def test_a_guest_that_cannot_shrink_so_far(world: World) -> None:
    with pytest.raises(Refused) as caught:
        planned(world)
    assert caught.value.code is Code.MEMORY_SHORT


def test_the_least_can_be_chosen() -> None:
    assert planned(cramped(100), dataclasses.replace(ALLOWED, minimum_memory_mib=100)).shrunk_kib == 100 * MIB
    with pytest.raises(Refused):
        planned(cramped(), dataclasses.replace(ALLOWED, minimum_memory_mib=401))


def test_a_guest_that_keeps_its_memory_is_not_moved_and_told_to_keep_it() -> None:
    world = cramped(keeps_kib=500 * MIB)
    with pytest.raises(MoveFailed) as caught:
        move(world)
    assert caught.value.code is Code.BALLOON_FAILED
    assert "500 MiB, not 400 MiB" in caught.value.sentence
    assert has_mib(world) == 512
    assert list(world.violations()) == []
    assert ("allow_two_primaries", "node1") not in world.calls


def test_asked_to_stop_while_it_shrinks() -> None:
    cancel = threading.Event()
    world = cramped(keeps_kib=500 * MIB)
    world.late_faults[("set_memory", "node1")] = cancel.set
    with pytest.raises(MoveAborted):
        move(world, cancel)
    assert has_mib(world) == 512
    assert list(world.violations()) == []


def test_a_copy_that_fails_gives_the_memory_back() -> None:
    world = cramped(ending=lambda _world: CopyEnd(ok=False, detail="no"))
    with pytest.raises(MoveFailed):
        move(world)
    assert has_mib(world) == 512
    assert list(world.violations()) == []


def test_memory_that_cannot_be_given_back_is_said_and_the_token_stays_as_the_record() -> None:
    world = cramped(ending=lambda _world: CopyEnd(ok=False, detail="no"))

    def once() -> None:
        if [name for name, _ in world.calls].count("set_memory") > 1:
            refusing("node1")()

    world.faults[("set_memory", "node1")] = once
    with pytest.raises(LeftBehind) as caught:
        move(world)
    assert "less memory" in caught.value.leftovers[0]
    errand = world.tokens["node1"].errand
    assert errand is not None
    assert errand.memory_kib == 512 * MIB


def test_a_target_that_does_not_give_it_back_fails_no_move() -> None:
    world = cramped(faults={("set_memory", "node2"): refusing("node2")})
    report = move(world)
    assert has_mib(world) == 400
    assert any("not given its memory back" in moment.what for moment in report.timeline)
    assert list(world.violations()) == []


@pytest.mark.parametrize("gone", [False, True], ids=["off", "not known"])
def test_a_guest_that_is_not_there_is_given_nothing_back(*, gone: bool) -> None:
    world = cramped()
    world.set("node1", state=DomainState.OFF)
    if gone:
        world.domains.clear()
    context = world.context()
    balloon = Balloon(
        hypervisor=context.hypervisor, storage=context.storage, instance="web1", uuid=UUID, before_kib=512 * MIB
    )
    balloon.back("node1")
    assert not {"set_memory", "host"} & {name for name, _ in world.calls}
