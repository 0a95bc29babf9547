"""What one look at a guest and its nodes amounts to: who is which end, and what was left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from lvmigrate.decision import Closing, Disk, Link
from lvmigrate.domain import Domain, DomainState
from lvmigrate.errors import Code, CommandFailed, Refused, UsageError
from lvmigrate.replication import ConnectionOptions, Place, Role
from lvmigrate.scene import Corner, Scene, observe
from lvmigrate.token import Errand, Guarded, Token, Traces
from tests.unit.fakes import NODES, PATH, UUID, FakeStorage, World, guest, unreachable

OFF, PAUSED, RUNNING = DomainState.OFF, DomainState.PAUSED, DomainState.RUNNING
#: The guest's node is Primary and has it open; the other one is Secondary.
USED = Disk(
    home_primary=True, away_primary=False, home_held=True, away_held=False, link=Link.WHOLE, two_primaries=False
)


def errand(**changes: Any) -> Errand:
    values: dict[str, Any] = {
        "source": "node1", "target": "node2", "ran": True, "autostart": False, "target_had_definition": False,
    }  # fmt: skip
    return Errand(**values | changes)


def scene(*domains: Domain, of: Errand | None = None, disks: Mapping[str, Disk] | None = None) -> Scene:
    corners = {
        node: Corner(
            node=node,
            traces=Traces(node=node, tokens=(), guards=()),
            places={},
            resources={},
            two_primaries=frozenset(),
        )
        for node in NODES
    }
    return Scene(
        name="web1",
        uuid=UUID,
        source="node1",
        target="node2",
        errand=of,
        domains={domain.node: domain for domain in domains},
        corners=corners,
        disks=disks or {},
        options={},
    )


def token(of: Errand | None = None, **changes: Any) -> Token:
    values: dict[str, Any] = {"uuid": UUID, "instance": "web1", "id": "a", "holder": "somebody", "lease_s": 30.0}
    return Token(errand=of, **values | changes)


# What a move itself has noted.


@pytest.mark.parametrize(
    ("of", "noted"), [(None, False), (errand(), False), (errand(handed_over=True), True)], ids=["none", "no", "yes"]
)
def test_only_the_errand_says_that_the_copy_was_handed_over(of: Errand | None, *, noted: bool) -> None:
    assert scene(guest("node1"), of=of).handed_over is noted


@pytest.mark.parametrize(
    ("of", "domains", "shut_down"),
    [
        (errand(failover=True), (guest("node1", state=OFF),), True),
        (None, (guest("node1", state=OFF),), False),
        (errand(), (guest("node1", state=OFF),), False),
        (errand(failover=True), (guest("node1"),), False),
        (errand(failover=True), (guest("node1", state=OFF), guest("node2")), False),
        (errand(failover=True), (guest("node2", state=OFF),), False),
    ],
    ids=["yes", "no token", "a live move", "it runs", "it runs there", "its definition is gone"],
)
def test_what_a_failover_has_shut_down(of: Errand | None, domains: tuple[Domain, ...], *, shut_down: bool) -> None:
    assert scene(*domains, of=of).shut_down_for_a_failover is shut_down


# Tombstones.


@pytest.mark.parametrize(
    ("domains", "back"),
    [
        ((guest("node1", state=OFF), guest("node2", left_on="node1")), ("node1", "node2")),
        ((guest("node1", state=OFF), guest("node2")), None),
        ((guest("node2", left_on="node1"),), None),
        ((guest("node1", state=OFF), guest("node2", left_on="node2")), None),
        ((guest("node1", state=OFF), guest("node2", state=OFF, left_on="node1")), None),
    ],
    ids=["back", "no tombstone", "not back yet", "its own", "off everywhere"],
)
def test_who_came_back(domains: tuple[Domain, ...], back: tuple[str, str] | None) -> None:
    assert scene(*domains).came_back == back


def test_a_tombstone_of_the_node_that_the_guest_is_on_is_taken_off() -> None:
    seen = scene(guest("node1"), guest("node2", state=OFF, left_on="node1"))
    assert seen.buried("node1") == ("node2",)
    assert seen.stray_definitions() == ["take the tombstone of node1 off the definition on node2"]


def test_a_guest_that_is_nowhere_is_not_buried_by_definitions_without_a_tombstone() -> None:
    seen = scene(guest("node1", state=OFF), guest("node2", state=OFF))
    assert (seen.home, seen.buried(seen.home), seen.stray_definitions()) == (None, (), [])


# Definitions.


@pytest.mark.parametrize(
    ("of", "domains", "strays"),
    [
        (None, (guest("node1", state=OFF), guest("node2")), []),
        (errand(), (guest("node1", state=OFF), guest("node2")), ["forget the definition on node1"]),
        (errand(), (guest("node2"),), []),
        (
            errand(keep_definition=True),
            (guest("node1", state=OFF), guest("node2")),
            ["keep node1 from starting it when it boots"],
        ),
        (errand(keep_definition=True), (guest("node1", state=OFF, autostart=False), guest("node2")), []),
        (errand(), (guest("node1"), guest("node2", state=OFF)), ["forget the definition on node2"]),
        (errand(), (guest("node1", persistent=False), guest("node2", state=OFF)), ["forget the definition on node2"]),
        (errand(target_had_definition=True), (guest("node1"), guest("node2", state=OFF)), []),
        (errand(), (guest("node1"),), []),
        (errand(), (guest("node1", state=OFF), guest("node2", state=OFF)), ["forget the definition on node2"]),
        (errand(), (guest("node2", state=OFF),), []),
    ],
)
def test_which_definitions_are_too_many(of: Errand | None, domains: tuple[Domain, ...], strays: list[str]) -> None:
    assert scene(*domains, of=of).stray_definitions() == strays


# Disks.


def test_disks_are_judged_from_where_the_guest_is_to_live() -> None:
    at_source = scene(guest("node1"), of=errand(), disks={"r0": USED}).closings()
    at_target = scene(guest("node2"), of=errand(), disks={"r0": USED}).closings()
    assert at_source["r0"].closing is Closing.CLOSED
    assert at_target["r0"].closing is Closing.HOLD
    assert at_target["r0"].when == "away is Primary and something has the device open there"


def test_disks_are_not_judged_while_nobody_knows_where_the_guest_is_to_live() -> None:
    assert scene(guest("node1"), guest("node2"), of=errand(), disks={"r0": USED}).closings() == {}


# What the operator is told in the end.


@pytest.mark.parametrize(
    ("state", "ran", "words"),
    [(RUNNING, None, ""), (PAUSED, None, "nothing says"), (PAUSED, True, "it ran when"), (PAUSED, False, "")],
)
def test_a_guest_that_waits_is_told_of_unless_it_was_paused_before(
    state: DomainState, words: str, *, ran: bool | None
) -> None:
    told = scene(guest("node1", state=state, reason="user")).warnings(ran=ran)
    assert [words in finding.sentence for finding in told] == [True] * bool(words)
    assert all("virsh resume web1" in finding.hint for finding in told)


# Looking.


def refused(world: World) -> Refused:
    with pytest.raises(Refused) as caught:
        observe(world.context(), "web1")
    return caught.value


def test_a_quiet_guest() -> None:
    seen = observe(World().context(), "web1")
    assert (seen.name, seen.uuid, seen.nodes, seen.errand) == ("web1", UUID, NODES, None)
    assert seen.disks["r0"].two_primaries is False
    assert (seen.token_nodes, seen.guarded_nodes) == ((), ())


@pytest.mark.parametrize("methods", [["domain"], ["traces"], ["domain", "traces"]])
def test_a_node_that_does_not_answer_is_told_of_once(methods: list[str]) -> None:
    world = World()
    world.faults = {(method, "node2"): unreachable("node2") for method in methods}
    assert [finding.code for finding in refused(world).findings] == [Code.NODE_UNREACHABLE]


def test_of_a_node_without_libvirt_and_without_a_shell_both_are_told() -> None:
    world = World()

    def broken() -> None:
        raise CommandFailed("node2", "Reading what is left", status=1, hint="none", code=Code.STORAGE_FAILED)

    world.faults = {("domain", "node2"): unreachable("node2"), ("traces", "node2"): broken}
    assert {finding.code for finding in refused(world).findings} == {Code.NODE_UNREACHABLE, Code.STORAGE_FAILED}


def test_two_guests_of_one_name_are_not_one() -> None:
    world = World(domains={"node1": guest("node1"), "node2": guest("node2", uuid="another", state=OFF)})
    with pytest.raises(UsageError):
        observe(world.context(), "web1")


def test_one_node_has_no_other_end() -> None:
    context = World().context()
    alone = dataclasses.replace(context, nodes={"node1": context.nodes["node1"]})
    with pytest.raises(Refused) as caught:
        observe(alone, "web1")
    assert caught.value.code is Code.TARGET_AMBIGUOUS


@pytest.mark.parametrize(("elsewhere", "same"), [({}, True), ({PATH: Place(resource="r0", volume=1)}, False)])
def test_a_path_that_leads_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, Place], *, same: bool
) -> None:
    places = {"node1": {PATH: Place(resource="r0", volume=0)}, "node2": elsewhere}
    monkeypatch.setattr(FakeStorage, "locate", lambda _self, node, _paths: places[node])
    if same:
        assert set(observe(World().context(), "web1").corners["node1"].places) == {PATH}
    else:
        assert [finding.code for finding in refused(World()).findings] == [Code.REPLICA_DIFFERS]


@pytest.mark.parametrize(("for_good", "left"), [(False, True), (True, False)])
def test_two_primaries_that_are_configured_are_none_of_a_move(*, for_good: bool, left: bool) -> None:
    seen = observe(World(two_primaries=True, for_good=for_good).context(), "web1")
    assert seen.disks["r0"].two_primaries is left


# By its token and guard alone.


def nowhere(**changes: Any) -> World:
    world = World(roles=dict.fromkeys(NODES, Role.SECONDARY), **changes)
    world.domains.clear()
    return world


def test_a_guest_that_no_libvirt_knows_is_known_by_its_token() -> None:
    world = nowhere(tokens={"node2": token(errand())})
    seen = observe(world.context(), "web1")
    assert (seen.uuid, seen.name, seen.errand) == (UUID, "web1", errand())
    assert seen.token_nodes == ("node2",)


def test_a_token_of_another_guest_makes_none_known() -> None:
    world = nowhere(tokens={"node2": token(errand(), instance="db1")})
    assert refused(world).code is Code.INSTANCE_UNKNOWN


def test_an_errand_to_a_node_that_is_not_configured_counts_for_nothing() -> None:
    seen = observe(World(tokens={"node1": token(errand(target="node9"))}).context(), "web1")
    assert (seen.errand, seen.nodes) == (None, NODES)


def test_source_and_target_are_as_the_token_says() -> None:
    world = World(tokens={"node1": token(errand(source="node2", target="node1"))})
    assert observe(world.context(), "web1").nodes == ("node2", "node1")


@pytest.mark.parametrize("mark", ["token", "guard"])
def test_without_an_errand_the_node_with_a_mark_is_the_likelier_source(mark: str) -> None:
    marked = {"token": partial(nowhere, tokens={"node2": token()}), "guard": partial(nowhere, guards={"node2": ()})}
    assert observe(marked[mark]().context(), "web1").nodes == ("node2", "node1")


def test_what_a_guard_was_told_is_restored_and_only_for_its_resource() -> None:
    ours, theirs = (ConnectionOptions(allow_two_primaries=False, protocol=protocol) for protocol in "AB")
    orders = (
        Guarded(resource="another", peer="node2", options=theirs),
        Guarded(resource="r0", peer="node2", options=ours),
    )
    seen = observe(World(guards={"node1": orders}, protocol="C").context(), "web1")
    assert seen.options["r0"] == (ours, ours)
