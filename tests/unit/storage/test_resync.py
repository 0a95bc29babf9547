"""How a resynchronisation gets on, by the recorded lines of real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lvmigrate.progress import Stall, SyncProgress
from lvmigrate.replication import ConnectionState, DiskState, ReplicationState, Resource
from lvmigrate.resync import STALL_HINTS, SyncMeter, stall_of
from storage import events2
from storage.world import World

Lines = Callable[[str], list[str]]


def ends(worlds: dict[str, World], name: str) -> list[tuple[Resource | None, str]]:
    return [(worlds[node].resource(name), peer) for node, peer in (("node1", "node2"), ("node2", "node1"))]


def followed(lines: Lines, scenario: str, name: str) -> list[tuple[list[tuple[Resource | None, str]], SyncProgress]]:
    """Both nodes' lines in the order of their clocks; a look after each, at its time."""
    worlds = {node: World(node) for node in ("node1", "node2")}
    events = [(events2.parse(line), node) for node in worlds for line in lines(f"{scenario}.{node}")]
    begin = min(event.time for event, _ in events if event.time)
    meter, seen = SyncMeter(), []
    for event, node in sorted(events, key=lambda pair: (pair[0].time is None, pair[0].time or begin)):
        worlds[node].apply(event)
        if all(world.complete for world in worlds.values()) and event.time:
            now = ends(worlds, name)
            seen.append((now, meter.look(now, (), (event.time - begin).total_seconds())))
    return seen


def test_a_slow_resynchronisation_is_told_by_both_ends(lines: Lines) -> None:
    syncing = [
        progress
        for _, progress in followed(lines, "drbd93/slow-resync", "r0")
        if any("SyncSource" in dict(v.states).values() for v in progress.volumes)
    ]
    assert len(syncing) > 3
    (volume,) = syncing[-1].volumes
    assert (volume.resource, volume.volume) == ("r0", 0)
    assert set(dict(volume.states)) == {"node1", "node2"}
    assert volume.percent is not None
    rated = [progress for progress in syncing if progress.rate_kib_s]
    assert rated
    for progress in rated:
        assert progress.rate_kib_s is not None
        assert progress.eta_s is not None
        assert progress.eta_s * progress.rate_kib_s == pytest.approx(progress.out_of_sync_kib)
    # It was throttled to some MiB a second.
    assert 500 < (rated[-1].rate_kib_s or 0) < 20_000
    assert all(progress.stall is None for progress in syncing)


def test_two_volumes_side_by_side(lines: Lines) -> None:
    seen = followed(lines, "drbd93/mv.resync", "r1")
    most = max((progress for _, progress in seen), key=lambda p: (len(p.volumes), p.out_of_sync_kib))
    assert [volume.volume for volume in most.volumes] == [0, 1]
    assert most.out_of_sync_kib == sum(volume.out_of_sync_kib or 0 for volume in most.volumes)
    last = seen[-1][1]
    assert (last.out_of_sync_kib, last.volumes, last.percent) == (0, (), 100.0)


@pytest.mark.parametrize("version", ["drbd84", "drbd93"])
def test_one_that_was_paused(lines: Lines, version: str) -> None:
    reasons = [
        stall_of(now)
        for now, progress in followed(lines, f"{version}/invalidate", "r0")
        if any(set(dict(v.states).values()) & {"PausedSyncS", "PausedSyncT"} for v in progress.volumes)
    ]
    assert reasons
    assert set(reasons) == {Stall.PAUSED}


@pytest.mark.parametrize("version", ["drbd84", "drbd93"])
def test_a_cut_in_the_middle(lines: Lines, version: str) -> None:
    reasons = {stall_of(now) for now, progress in followed(lines, f"{version}/net-cut", "r0") if progress.volumes}
    assert Stall.NOT_CONNECTED in reasons


@pytest.mark.parametrize("version", ["drbd84", "drbd93"])
def test_a_disk_that_is_detached(lines: Lines, version: str) -> None:
    reasons = {stall_of(now) for now, _ in followed(lines, f"{version}/detach-attach", "r0")}
    assert Stall.NO_DISK in reasons


def standing(lines: Lines) -> list[tuple[Resource | None, str]]:
    """Both ends in the middle of a resynchronisation of 9."""
    for now, progress in followed(lines, "drbd93/slow-resync", "r0"):
        if progress.volumes and all(
            r is not None and r.connections[0].state is ConnectionState.CONNECTED for r, _ in now
        ):
            return now
    raise AssertionError


def changed(
    now: list[tuple[Resource | None, str]], *, congested: bool = False, **changes: object
) -> list[tuple[Resource | None, str]]:
    made: list[tuple[Resource | None, str]] = []
    for resource, peer in now:
        assert resource is not None
        link = resource.connections[0]
        volumes = tuple(replace(volume, **changes) for volume in link.volumes)  # type: ignore[arg-type]
        made.append((replace(resource, connections=(replace(link, congested=congested, volumes=volumes),)), peer))
    return made


def test_every_reason_and_what_to_do(lines: Lines) -> None:
    now = changed(standing(lines), replication=ReplicationState.SYNC_SOURCE)
    assert stall_of(now) is Stall.UNKNOWN
    assert stall_of(changed(now, congested=True)) is Stall.CONGESTED
    assert stall_of(changed(now, replication=ReplicationState.AHEAD)) is Stall.CONGESTED
    assert stall_of(changed(now, resync_suspended="user,peer")) is Stall.PAUSED
    assert stall_of(changed(now, resync_suspended="user,dependency")) is Stall.OTHER_FIRST
    first, peer = now[0]
    assert first is not None
    diskless = replace(first, volumes=tuple(replace(v, disk=DiskState.DISKLESS) for v in first.volumes))
    assert stall_of([(diskless, peer), now[1]]) is Stall.NO_DISK
    # The other end tells of it too, where one is not heard.
    assert stall_of([(None, peer), changed(now, disk=DiskState.DISKLESS)[1]]) is Stall.NO_DISK
    assert stall_of([(replace(diskless, connections=()), peer), now[1]]) is Stall.NOT_CONNECTED
    assert set(STALL_HINTS) == set(Stall)
    assert all(hint.endswith(".") for hint in STALL_HINTS.values())


def test_it_stands_still_only_while_nothing_gets_less(lines: Lines) -> None:
    now, meter = standing(lines), SyncMeter()

    def look(left: int, at: float) -> SyncProgress:
        return meter.look(changed(now, replication=ReplicationState.SYNC_SOURCE, out_of_sync_kib=left), (), at)

    assert look(40_000, 0).stall is None
    assert look(40_000, 9).stall is None
    stuck = look(40_000, 60)
    assert (stuck.stall, stuck.stalled_s, stuck.rate_kib_s, stuck.eta_s) == (Stall.UNKNOWN, 60, None, None)
    moved = look(39_000, 61)
    assert (moved.stall, moved.stalled_s) == (None, 0)
    # The guest writes: more to do is no progress.
    assert look(50_000, 100).stalled_s == 39
    # The rate is that of the last half minute.
    for second in range(200):
        last = look(50_000 - 100 * second, 110 + second)
    assert last.rate_kib_s == pytest.approx(100)
    assert last.eta_s == pytest.approx((50_000 - 19_900) / 100)


def test_more_to_do_is_a_beginning_and_what_follows_is_progress(lines: Lines) -> None:
    """8.4 is asked: a short cut between two looks shows in nothing but the number."""
    now, meter = standing(lines), SyncMeter()

    def look(left: int, at: float) -> SyncProgress:
        return meter.look(changed(now, replication=ReplicationState.SYNC_SOURCE, out_of_sync_kib=left), (), at)

    assert look(1_000, 0).stall is None
    look(500, 5)
    assert look(400_000, 40).stalled_s == 35  # more is no progress
    assert [look(400_000 - 1_000 * step, 40 + step).stall for step in range(1, 100)] == [None] * 99


@pytest.mark.parametrize("state", [ReplicationState.VERIFY_SOURCE, ReplicationState.VERIFY_TARGET])
def test_an_online_verify_is_no_stall(lines: Lines, state: ReplicationState) -> None:
    """It makes nothing less while it goes on; 9 tells how far it is, 8.4 does not."""
    now, meter = standing(lines), SyncMeter()
    for at in range(0, 1000, 10):
        seen = changed(now, replication=state, out_of_sync_kib=0, done_percent=None)
        assert (meter.look(seen, (), at).stall, bool(meter.look(seen, (), at).volumes)) == (None, True)
    still = changed(now, replication=ReplicationState.SYNC_SOURCE, out_of_sync_kib=9)
    meter.look(still, (), 1000)
    assert meter.look(still, (), 1100).stall is Stall.UNKNOWN
