from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lvmigrate.replication import ConnectionState, DiskState, ReplicationState, Resource, Role
from storage import events2
from storage.events2 import BadLine
from storage.world import Gap, World

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts"
# Those with several dumps in one file are several streams.
FILES = sorted(
    p.relative_to(TRANSCRIPTS).with_suffix("").as_posix() for p in TRANSCRIPTS.glob("*/*.txt") if "show" not in p.name
)


def build(lines: Iterable[str]) -> World:
    world = World("here")
    for line in lines:
        world.apply(events2.parse(line))
    return world


def resource(world: World, name: str) -> Resource:
    found = world.resource(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_transcript_adds_up(name: str, lines: Callable[[str], list[str]]) -> None:
    world = build(lines(name))
    assert world.complete
    for made in world.resources().values():
        assert made.role is not Role.UNKNOWN
        assert all(volume.minor >= 0 for volume in made.volumes)


@pytest.mark.parametrize("version", ["drbd84", "drbd93"])
def test_dual_primary(version: str, lines: Callable[[str], list[str]]) -> None:
    world, both = World("here"), 0
    for line in lines(f"{version}/dual-primary.node1"):
        world.apply(events2.parse(line))
        if world.complete:
            made = resource(world, "r0")
            assert made.in_step_with("node2")
            both += made.role is Role.PRIMARY and made.connections[0].peer_role is Role.PRIMARY
    assert both > 0
    assert resource(world, "r0").connections[0].peer_role is Role.SECONDARY


def test_84_forgets_a_connection_that_was_cut_off_and_9_keeps_it(lines: Callable[[str], list[str]]) -> None:
    recorded = lines("drbd84/disconnect-connect.node1")
    cut = next(i for i, line in enumerate(recorded) if "destroy connection" in line)
    assert resource(build(recorded[: cut + 1]), "r0").connections == ()
    assert resource(build(recorded), "r0").in_step_with("node2")

    recorded = lines("drbd93/disconnect-connect.node1")
    cut = next(i for i, line in enumerate(recorded) if "connection:StandAlone" in line)
    link = resource(build(recorded[: cut + 1]), "r0").connections[0]
    assert (link.name, link.state) == ("node2", ConnectionState.STANDALONE)
    assert link.volumes[0].replication is ReplicationState.OFF
    assert resource(build(recorded), "r0").in_step_with("node2")


@pytest.mark.parametrize("version", ["drbd84", "drbd93"])
def test_a_cut_is_seen_and_its_end(version: str, lines: Callable[[str], list[str]]) -> None:
    world, doubts = World("here"), []
    for line in lines(f"{version}/net-cut.node1"):
        world.apply(events2.parse(line))
        if world.complete:
            doubts.append(tuple(map(str, resource(world, "r0").doubts("node2"))))
    assert doubts[0] == ()
    assert doubts[-1] == ()
    assert any("Connecting" in words for seen in doubts for words in seen)
    assert any("SyncSource" in words for seen in doubts for words in seen)


def test_split_brain(lines: Callable[[str], list[str]]) -> None:
    # 8.4 drops the connection, 9 leaves it StandAlone.
    recorded = lines("drbd84/split-brain.node1")
    cut = next(i for i, line in enumerate(recorded) if "destroy connection" in line)
    made = resource(build(recorded[: cut + 1]), "r0")
    assert (made.role, made.connections) == (Role.PRIMARY, ())
    recorded = lines("drbd93/netcut-dual-both-write.node1")
    cut = next(i for i, line in enumerate(recorded) if "connection:StandAlone" in line)
    made = resource(build(recorded[: cut + 1]), "r1")
    assert (made.role, made.connections[0].state) == (Role.PRIMARY, ConnectionState.STANDALONE)


def test_two_volumes_and_their_resync(lines: Callable[[str], list[str]]) -> None:
    made = resource(build(lines("drbd93/mv.events2-now-stat-ts")), "r1")
    assert [(v.number, v.minor, v.disk, v.quorum) for v in made.volumes] == [
        (0, 10, DiskState.UP_TO_DATE, True),
        (1, 11, DiskState.UP_TO_DATE, True),
    ]
    assert made.in_step_with("node2")
    world, done = World("here"), set()
    for line in lines("drbd93/mv.resync.node1"):
        world.apply(events2.parse(line))
        if world.complete:
            done |= {(v.number, v.done_percent) for c in resource(world, "r1").connections for v in c.volumes}
    assert {number for number, percent in done if percent} == {0, 1}
    # Once in step, the last percentage is a memory.
    assert {v.done_percent for v in resource(world, "r1").connections[0].volumes} == {None}


def test_three_nodes(lines: Callable[[str], list[str]]) -> None:
    made = resource(build(lines("drbd93/3node-dual.node1")[:10]), "r1")
    assert {c.name for c in made.connections} == {"node2", "node3"}
    assert made.in_step_with("node2")
    assert made.in_step_with("node3")
    assert made.towards("node4") is None


def test_down_and_up_again(lines: Callable[[str], list[str]]) -> None:
    recorded = lines("drbd93/down-up.node2")
    gone = next(i for i, line in enumerate(recorded) if "destroy resource" in line)
    assert build(recorded[: gone + 1]).resource("r0") is None


def test_a_renamed_resource_keeps_its_state(lines: Callable[[str], list[str]]) -> None:
    recorded = lines("drbd93/events2-now-stat-ts-initial")
    world = build([*recorded, "rename resource name:r0 new_name:r9"])
    assert world.resource("r0") is None
    assert len(resource(world, "r9").volumes) == 1


def test_an_unknown_resource_is_a_complete_world_without_it(lines: Callable[[str], list[str]]) -> None:
    world = build(lines("drbd84/events2-now-nosuch"))
    assert world.complete
    assert not world.resources()


@pytest.mark.parametrize(
    "line",
    [
        "change resource name:r0 role:Primary",
        "exists device name:r0 volume:0 minor:0",
        "change connection name:r0 peer-node-id:0 connection:Connected",
    ],
)
def test_a_change_of_what_was_never_announced_is_a_gap(line: str) -> None:
    with pytest.raises(Gap):
        World("here").apply(events2.parse(line))


@pytest.mark.parametrize("kind", ["device", "connection", "peer-device"])
def test_a_change_of_a_part_that_was_never_announced_is_a_gap(kind: str) -> None:
    world = build(["exists resource name:r0 role:Primary suspended:no"])
    with pytest.raises(Gap):
        world.apply(events2.parse(f"change {kind} name:r0 peer-node-id:0 volume:0"))


def test_events_that_were_skipped_are_a_gap() -> None:
    with pytest.raises(Gap, match="skipped 4"):
        build(["exists resource name:r0 role:Primary suspended:no", "exists -", "- skipped 4"])


def test_lines_lost_or_in_disorder_never_crash(lines: Callable[[str], list[str]]) -> None:
    draw = random.Random(9)
    for name in FILES:
        recorded = lines(name)
        for _ in range(3):
            shuffled = [line for line in recorded if draw.random() < 0.9]
            draw.shuffle(shuffled)
            world = World("here")
            for line in shuffled:
                try:
                    world.apply(events2.parse(line))
                except (Gap, BadLine):
                    continue
            for made in world.resources().values():
                list(made.doubts("node2"))
