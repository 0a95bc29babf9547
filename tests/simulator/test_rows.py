"""A cleanup finds two nodes in a state that a row of the decision table is about; the truth of the world judges it.

One case for each row: what is on the two nodes is put there, and not what the table says of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.decision import GUEST, Sight, sight_of
from lvmigrate.domain import DomainState
from lvmigrate.errors import GuestLost, OutcomeUnknown
from lvmigrate.plan import Switch
from lvmigrate.report import CleanupReport
from lvmigrate.simulator import Guest, Settings, Version, World, Wrong, audit
from lvmigrate.simulator.guests import Copy, Definition
from lvmigrate.simulator.host import Phase, TokenFile
from lvmigrate.simulator.migration import Migration
from lvmigrate.token import Errand, Token

S = Sight
#: libvirt's words for a copy that does not run.
_REASON = {S.WAITS: "user", S.STALLED: "migration", S.HELD: "i/o error"}
#: Both links are cut when the source's job is in this phase, so that it stays there for a while.
_PHASE = {S.LEAVING: Phase.TRANSFER, S.HANDING_OVER: Phase.FINISHED}


@pytest.fixture(params=[Version.V9, Version.V84], ids=lambda version: f"DRBD {version.value}")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(settings=Settings(version=request.param)) as made:
        yield made


def token(guest: Guest, *, ran: bool | None) -> Token:
    errand = Errand(source="node1", target="node2", ran=bool(ran), autostart=True, target_had_definition=False)
    return Token(
        uuid=guest.uuid,
        instance=guest.name,
        id="of one that died",
        holder="root@gone pid 1",
        lease_s=30,
        errand=None if ran is None else errand,
    )


def found(world: World, source: Sight, target: Sight, *, ran: bool | None = True) -> Guest:
    """A guest of which the two nodes say this, opened for a move whose controller is dead and whose token ran out."""
    guest = world.add_guest("web1", "node1")
    guest.ran = ran is not False
    for resource in guest.resources:
        resource.set_options("node1", two_primaries=True, protocol="C")
        resource.promote("node2")
    for host in world.hosts.values():
        host.tokens[guest.uuid] = TokenFile(token=token(guest, ran=ran), deadline_s=-1.0)
    world.timeline.advance(1.0)
    here = world.hosts["node1"].copies[guest.uuid]
    if target is not S.GONE:
        there = Copy(guest=guest, node="node2", state=DomainState.PAUSED, reason="user", memory=dict(here.memory))
        world.open_disks(there, write=True)
        world.hosts["node2"].copies[guest.uuid] = there
        world.hosts["node2"].definitions[guest.uuid] = Definition(guest=guest, autostart=False)
    stand(world, guest, "node1", source)
    stand(world, guest, "node2", target)
    return guest


def stand(world: World, guest: Guest, node: str, sight: Sight) -> None:
    copy = world.hosts[node].copies.get(guest.uuid)
    if copy is None:
        return
    if sight is S.GONE:
        world.end_copy(copy, reason="migrated")
    elif sight is not S.RUNS:
        copy.state, copy.reason = DomainState.PAUSED, _REASON[sight]
    elif not copy.runs:
        world.run(copy, "unpaused")


def seen(world: World, guest: Guest) -> tuple[Sight, Sight]:
    hypervisor = world.controller("looks").hypervisor
    source, target = (sight_of(hypervisor.domain(node, guest.uuid)) for node in world.hosts)
    return source, target


def clean(world: World) -> CleanupReport:
    tasklet = CleanupInstance(world.controller("c2"), "web1")
    tasklet.check_prereq()
    return tasklet.exec()


#: What both nodes say -> where the guest is afterwards, and whether it runs there.
ENDS = {
    (S.RUNS, S.GONE): ("node1", True),
    (S.HELD, S.GONE): ("node1", False),
    (S.WAITS, S.GONE): ("node1", False),
    (S.STALLED, S.GONE): ("node1", True),
    (S.RUNS, S.WAITS): ("node1", True),
    (S.RUNS, S.STALLED): ("node1", True),
    (S.WAITS, S.STALLED): ("node1", False),
    (S.STALLED, S.WAITS): ("node1", True),
    (S.STALLED, S.STALLED): ("node1", True),
    (S.WAITS, S.RUNS): ("node2", True),
    (S.STALLED, S.RUNS): ("node2", True),
    (S.GONE, S.WAITS): ("node2", True),
    (S.GONE, S.RUNS): ("node2", True),
}


@pytest.mark.parametrize(("pair", "end"), ENDS.items(), ids=lambda value: f"{value[0]} x {value[1]}")
def test_one_copy_is_left_where_it_belongs(world: World, pair: tuple[Sight, Sight], end: tuple[str, bool]) -> None:
    guest = found(world, *pair)
    assert seen(world, guest) == pair
    report = clean(world)
    assert (report.node, report.running) == end
    assert world.violations == []
    # One that somebody has paused, or that stands for a reason of its own, stands after it as well.
    assert {finding.wrong for finding in audit(world)} <= (set() if end[1] else {Wrong.STATE})


def test_two_that_wait_are_left_to_a_person(world: World) -> None:
    guest = found(world, S.WAITS, S.WAITS)
    with pytest.raises(OutcomeUnknown):
        clean(world)
    assert len(world.copies(guest)) == 2
    assert world.violations == []


def test_two_that_wait_as_the_guest_did_before_are_no_riddle(world: World) -> None:
    guest = found(world, S.WAITS, S.WAITS, ran=False)
    assert clean(world).node == "node1"
    assert [copy.node for copy in world.copies(guest)] == ["node1"]
    assert world.violations == []
    assert audit(world) == ()


def test_one_that_stood_before_is_not_let_run(world: World) -> None:
    guest = found(world, S.STALLED, S.GONE, ran=False)
    report = clean(world)
    assert (report.node, report.running) == ("node1", False)
    assert world.running(guest) == []


@pytest.mark.parametrize("source", [S.WAITS, S.STALLED])
def test_two_that_stand_and_nobody_knows_why_are_left_to_a_person(world: World, source: Sight) -> None:
    guest = found(world, source, S.STALLED, ran=None)
    with pytest.raises(OutcomeUnknown):
        clean(world)
    assert len(world.copies(guest)) == 2


def test_two_that_run_are_both_suspended(world: World) -> None:
    guest = found(world, S.RUNS, S.RUNS)
    with pytest.raises(OutcomeUnknown, match="suspended on both"):
        clean(world)
    assert world.running(guest) == []
    assert len(world.copies(guest)) == 2


def test_one_that_is_nowhere_is_said_to_be_and_nothing_stays_open(world: World) -> None:
    guest = found(world, S.GONE, S.GONE)
    guest.ended_by = "the test"
    with pytest.raises(GuestLost):
        clean(world)
    assert audit(world) == ()


@pytest.mark.parametrize("pair", [(S.HELD, S.WAITS), (S.HELD, S.RUNS), (S.RUNS, S.HELD), (S.GONE, S.HELD)])
def test_what_stands_for_a_reason_of_its_own_is_not_judged_beside_another(
    world: World, pair: tuple[Sight, Sight]
) -> None:
    guest = found(world, *pair)
    before = [(copy.node, copy.state, copy.reason) for copy in world.copies(guest)]
    with pytest.raises(OutcomeUnknown):
        clean(world)
    assert [(copy.node, copy.state, copy.reason) for copy in world.copies(guest)] == before


@pytest.mark.parametrize("there", [S.GONE, S.ARRIVING, S.WAITS, S.STALLED])
@pytest.mark.parametrize("source", [S.LEAVING, S.HANDING_OVER])
def test_a_job_that_takes_long_is_watched_to_its_end(source: Sight, there: Sight) -> None:
    """Longer than a cleanup would ask again."""
    assert (source, there) in GUEST
    with World(settings=Settings(copy_s=200.0)) as world:
        guest = found(world, S.RUNS, S.GONE)
        if source is S.HANDING_OVER:  # an operator's suspension during the copy
            world.suspend("node1", guest.uuid)
            guest.ran = False
        Migration(world, guest, "node1", "node2", Switch.STRICT)
        world.timeline.advance(1.0)
        arriving = world.hosts["node2"].copies[guest.uuid]
        if there is S.GONE:
            del world.hosts["node2"].copies[guest.uuid]
            world.timeline.after(100.0, lambda: world.hosts["node2"].copies.update({guest.uuid: arriving}))
        elif there is not S.ARRIVING:
            arriving.incoming, arriving.reason = False, _REASON[there]
        assert seen(world, guest) == (source, there)
        report = clean(world)
        assert report.node == "node2"
        assert world.violations == []
