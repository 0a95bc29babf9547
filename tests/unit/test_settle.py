"""Where a guest is that may be between two nodes: what is asked for again, what is looked at twice, and how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lvmigrate.arrival import Arrival
from lvmigrate.decision import Sight
from lvmigrate.disks import Disks
from lvmigrate.domain import DomainState, JobKind
from lvmigrate.errors import GuestLost, LeftBehind, OutcomeUnknown, TokenLost
from lvmigrate.settle import Settlement
from tests.unit.fakes import NODES, UUID, FakeHypervisor, FakeStorage, FakeWatch, World, guest, refusing, unreachable

S = Sight
#: As the fakes have a domain that is seen so.
SEEN: dict[Sight, dict[str, Any]] = {
    S.GONE: {"state": DomainState.OFF},
    S.RUNS: {"state": DomainState.RUNNING},
    S.WAITS: {"state": DomainState.PAUSED, "reason": "user"},
    S.STALLED: {"state": DomainState.PAUSED, "reason": "migration"},
    S.LEAVING: {"state": DomainState.RUNNING, "job": JobKind.OUTGOING},
    S.HANDING_OVER: {"state": DomainState.PAUSED, "reason": "migration", "job": JobKind.OUTGOING},
    S.ARRIVING: {"state": DomainState.PAUSED, "reason": "migration", "job": JobKind.INCOMING},
    S.BUSY: {"job": JobKind.OTHER},
    S.POST_COPY: {"state": DomainState.PAUSED, "reason": "post-copy", "job": JobKind.OUTGOING},
}
#: Nothing here takes that many looks: what does, does not end.
ENDLESS = 1000


def two(source: Sight, target: Sight) -> World:
    domains = {node: guest(node, **SEEN[sight]) for node, sight in zip(NODES, (source, target), strict=True)}
    return World(domains=domains)


def put(world: World, node: str, sight: Sight) -> None:
    usual: dict[str, Any] = {"state": DomainState.RUNNING, "reason": "", "job": JobKind.NONE}
    world.set(node, **usual | SEEN[sight])


def settlement(world: World, *, confirm: Callable[[], None] = lambda: None, ran: bool | None = True) -> Settlement:
    return Settlement(
        hypervisor=FakeHypervisor(world),
        instance="web1",
        uuid=UUID,
        source="node1",
        target="node2",
        ran=ran,
        confirm=confirm,
        clock=world.context().clock,
    )


def at_each_look(world: World, happens: Callable[[int], None]) -> None:
    """Called with the number of looks that came before it, before the source is asked."""

    def look() -> None:
        number = world.calls.count(("domain", "node1")) - 1
        assert number < ENDLESS
        happens(number)

    world.faults["domain", "node1"] = look


def at(world: World, seconds: float, happens: Callable[[], None]) -> None:
    """So many seconds from now; noticed at the next look."""
    begin = world.time
    done: list[bool] = []

    def look(_number: int) -> None:
        if world.time >= begin + seconds and not done:
            done.append(True)
            happens()

    at_each_look(world, look)


def never() -> None:
    raise AssertionError("there is no job to follow")


@pytest.mark.parametrize(
    "passing", [S.BUSY, S.LEAVING, S.HANDING_OVER, S.ARRIVING, S.POST_COPY], ids=lambda sight: str(sight.value)
)
def test_what_passes_is_asked_for_again(passing: Sight) -> None:
    world = two(passing, S.GONE)
    at(world, 5.0, lambda: put(world, "node1", S.RUNS))
    assert settlement(world).look_until_known() == (S.RUNS, S.GONE)


def test_a_lost_answer_is_asked_for_again() -> None:
    world = two(S.RUNS, S.GONE)
    at_each_look(world, lambda number: unreachable("node1")() if number < 3 else None)
    assert settlement(world).look_until_known() == (S.RUNS, S.GONE)


def test_an_answer_that_never_comes_is_not_waited_for_for_ever() -> None:
    world = two(S.RUNS, S.GONE)
    at_each_look(world, lambda _number: unreachable("node1")())
    assert settlement(world).look_until_known() == (S.UNKNOWN, S.GONE)


def test_a_guest_that_is_nowhere_at_one_look_is_not_lost() -> None:
    world = two(S.GONE, S.GONE)
    at_each_look(world, lambda number: put(world, "node2", S.RUNS) if number else None)
    assert settlement(world).settle(never)


def test_a_guest_that_is_nowhere_is_lost() -> None:
    with pytest.raises(GuestLost):
        settlement(two(S.GONE, S.GONE)).settle(never)


def test_two_copies_that_run_at_one_look_are_not_suspended() -> None:
    """libvirt's words about the two nodes are not of one moment."""
    world = two(S.RUNS, S.RUNS)
    at_each_look(world, lambda number: put(world, "node1", S.GONE) if number else None)
    assert settlement(world).settle(never)
    assert "suspend" not in {method for method, _ in world.calls}


def test_a_copy_that_is_being_handed_over_gets_its_time() -> None:
    """As long as a hand-over takes that goes well, the target may run already."""
    for act in (lambda settling: settling.settle(never), Settlement.end_the_older):
        world = two(S.HANDING_OVER, S.RUNS)
        at(world, 0.9, lambda world=world: put(world, "node1", S.GONE))  # type: ignore[misc]
        act(settlement(world))
        assert ("discard", "node1") not in world.calls


def test_an_older_copy_that_stays_is_ended() -> None:
    for act in (lambda settling: settling.settle(never), Settlement.end_the_older):
        world = two(S.HANDING_OVER, S.RUNS)
        act(settlement(world))
        assert world.domains["node1"].state is DomainState.OFF
        assert world.running() == ["node2"]


@pytest.mark.parametrize("pair", [(S.RUNS, S.WAITS), (S.STALLED, S.GONE), (S.GONE, S.RUNS), (S.HANDING_OVER, S.GONE)])
def test_where_no_older_copy_is_none_is_ended(pair: tuple[Sight, Sight]) -> None:
    world = two(*pair)
    settlement(world).end_the_older()
    assert {method for method, _ in world.calls} == {"domain"}


def test_the_last_copy_is_not_ended_because_there_was_another_before() -> None:
    """To confirm the token may take long, and the source's copy may die meanwhile."""
    world = two(S.RUNS, S.WAITS)
    settling = settlement(world, confirm=lambda: put(world, "node1", S.GONE))
    with pytest.raises(OutcomeUnknown):
        settling.settle(never)
    assert ("discard", "node2") not in world.calls


def lost() -> None:
    raise TokenLost("Somebody else took it over.", hint="none")


@pytest.mark.parametrize("pair", [(S.RUNS, S.WAITS), (S.STALLED, S.RUNS), (S.STALLED, S.GONE)])
def test_whoever_lost_the_token_ends_no_copy_and_lets_none_run(pair: tuple[Sight, Sight]) -> None:
    world = two(*pair)
    with pytest.raises(TokenLost):
        settlement(world, confirm=lost).settle(never)
    assert {method for method, _ in world.calls} == {"domain"}


def fails_for(world: World, method: str, node: str, seconds: float) -> None:
    begin = world.time

    def fault() -> None:
        assert world.calls.count((method, node)) < ENDLESS
        if world.time < begin + seconds:
            refusing(node)()

    world.faults[method, node] = fault


def test_a_copy_that_libvirt_does_not_end_at_once_is_ended() -> None:
    world = two(S.RUNS, S.WAITS)
    fails_for(world, "discard", "node2", 10.0)
    assert not settlement(world).settle(never)
    assert world.domains["node2"].state is DomainState.OFF


def test_a_copy_that_libvirt_never_ends_is_not_ended_for_ever() -> None:
    world = two(S.RUNS, S.WAITS)
    fails_for(world, "discard", "node2", float("inf"))
    with pytest.raises(OutcomeUnknown, match="does not do what it is asked"):
        settlement(world).settle(never)
    assert world.calls.count(("discard", "node2")) < 20


def test_a_copy_that_libvirt_does_not_let_run_at_once_runs() -> None:
    world = two(S.STALLED, S.GONE)
    fails_for(world, "resume", "node1", 3.0)
    assert not settlement(world).settle(never)
    assert world.running() == ["node1"]


def test_a_copy_that_libvirt_never_lets_run_is_said_to_wait() -> None:
    world = two(S.STALLED, S.GONE)
    fails_for(world, "resume", "node1", float("inf"))
    with pytest.raises(LeftBehind) as caught:
        settlement(world).settle(never)
    assert "waits paused on node1" in str(caught.value.leftovers)


def test_a_job_that_was_watched_for_long_leaves_time_for_what_follows_it() -> None:
    """When its last reply is lost, the source's libvirt lets its own copy run again a keepalive later."""
    world = two(S.LEAVING, S.ARRIVING)

    def follow() -> None:
        world.time += 200.0
        put(world, "node1", S.STALLED)
        put(world, "node2", S.WAITS)
        at(world, 30.0, lambda: put(world, "node1", S.RUNS))

    assert not settlement(world).settle(follow)
    assert ("resume", "node1") not in world.calls
    assert world.running() == ["node1"]


def test_a_job_that_does_not_end_is_not_followed_for_ever() -> None:
    world = two(S.LEAVING, S.ARRIVING)
    at_each_look(world, lambda _number: None)
    with pytest.raises(OutcomeUnknown, match="does not end"):
        settlement(world).settle(lambda: None)


def arrival(world: World, *, ran: bool | None = True) -> Arrival:
    storage = FakeStorage(world)
    disks = Disks(storage=storage, watch=FakeWatch(world, storage), names=("r0",), nodes=NODES)
    return Arrival(settlement=settlement(world, ran=ran), disks=disks, clock=world.context().clock)


def test_a_guest_that_arrived_waits_until_its_disks_are_whole() -> None:
    world = two(S.GONE, S.WAITS)
    world.connected = False

    def look() -> None:
        assert world.calls.count(("observe", "node1")) < ENDLESS
        world.connected = world.time >= 1010.0

    world.faults["observe", "node1"] = look
    arrival(world).let_run()
    assert world.running() == ["node2"]


def test_a_guest_that_arrived_does_not_wait_for_ever() -> None:
    world = two(S.GONE, S.WAITS)
    world.connected = False

    def look() -> None:
        assert world.calls.count(("observe", "node1")) < ENDLESS

    world.faults["observe", "node1"] = look
    with pytest.raises(OutcomeUnknown, match="may have the newer disk"):
        arrival(world).let_run()
    assert world.running() == []


def test_a_guest_that_dies_a_moment_after_its_arrival_is_lost() -> None:
    world = two(S.GONE, S.RUNS)
    at(world, 0.2, lambda: put(world, "node2", S.GONE))
    with pytest.raises(GuestLost):
        arrival(world).alone()


def test_a_guest_that_is_seen_standing_is_not_said_to_run() -> None:
    with pytest.raises(OutcomeUnknown, match="not proved"):
        arrival(two(S.GONE, S.WAITS)).alone()
    arrival(two(S.GONE, S.WAITS), ran=False).alone()


def test_a_second_copy_beside_the_arrived_one_is_suspended() -> None:
    world = two(S.RUNS, S.RUNS)
    with pytest.raises(OutcomeUnknown, match="suspended on both"):
        arrival(world).alone()
    assert world.running() == []


@pytest.mark.parametrize(
    ("defined", "words"),
    [
        (("node1", "node2"), "`virsh start web1` on node1."),
        (("node1",), "`virsh start web1` on node1."),
        (("node2",), "`virsh start web1` on node2, which alone has its definition."),
        ((), "neither node has its definition"),
    ],
)
def test_a_guest_that_runs_nowhere_is_to_be_started_where_its_definition_is(
    defined: tuple[str, ...], words: str
) -> None:
    world = two(S.GONE, S.GONE)
    for node in set(NODES) - set(defined):
        del world.domains[node]
    with pytest.raises(GuestLost) as caught:
        settlement(world).settle(lambda: None)
    assert words in caught.value.hint


def test_of_a_node_that_gives_no_answer_it_is_not_said_that_it_has_no_definition() -> None:
    world = two(S.GONE, S.GONE)
    made = settlement(world)
    world.faults["domain", "node1"] = unreachable("node1")
    made.look()
    assert made.how_to_start() == "`virsh start web1` on node1."


def test_a_copy_without_a_definition_is_not_taken_for_one_that_has_it() -> None:
    world = two(S.GONE, S.GONE)
    world.set("node1", persistent=False)
    made = settlement(world)
    made.look()
    assert made.how_to_start() == "`virsh start web1` on node2, which alone has its definition."
