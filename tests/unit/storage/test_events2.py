from __future__ import annotations

import contextlib
import random
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from lvmigrate.errors import CommandFailed
from lvmigrate.replication import ConnectionState, DiskState, ReplicationState, Role
from storage import events2
from storage.drbd import DrbdStorage
from storage.events2 import Action, BadLine, Event, Kind
from storage.watch import ReplicationWatch
from storage.world import Gap, World
from tests.unit.storage.mutate import mutated

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts"
FILES = sorted(p.relative_to(TRANSCRIPTS).with_suffix("").as_posix() for p in TRANSCRIPTS.glob("*/*.txt"))


@pytest.mark.parametrize("name", FILES)
def test_every_recorded_line_is_understood(name: str, lines: Callable[[str], list[str]]) -> None:
    events = [events2.parse(line) for line in lines(name)]
    assert bool(events) is (".show" not in name and "/show" not in name)
    # What a field cannot hold is kept all the same.
    known = {"received", "sent", "pending", "unacked", "read", "written", "upper-pending", "lower-pending", "blocked"}
    known |= {"al-writes", "bm-writes", "al-suspended", "write-ordering", "force-io-failures", "promotion_score"}
    known |= {"backing_dev", "ap-in-flight", "rs-in-flight", "local", "peer", "dbdt1"}
    assert {key for event in events for key in event.others} <= known


def test_a_line_of_each_kind() -> None:
    assert events2.parse(
        "2026-11-22T22:29:39.738350+00:00 exists device name:r0 volume:0 minor:7 disk:UpToDate quorum:yes size:65496"
    ) == Event(
        action=Action.EXISTS,
        kind=Kind.DEVICE,
        time=datetime(2026, 11, 22, 22, 29, 39, 738350, tzinfo=UTC),
        name="r0",
        volume=0,
        minor=7,
        disk=DiskState.UP_TO_DATE,
        quorum=True,
        size_kib=65496,
    )
    peer = events2.parse(
        "change peer-device name:r0 peer-node-id:1 conn-name:node2 volume:0 replication:SyncSource"
        " peer-disk:Inconsistent done:76.67 out-of-sync:7168 eta:nan resync-suspended:no"
    )
    assert (peer.replication, peer.peer_disk) == (ReplicationState.SYNC_SOURCE, DiskState.INCONSISTENT)
    assert (peer.done_percent, peer.out_of_sync_kib, peer.eta_s) == (76.67, 7168, None)
    link = events2.parse(
        "change connection name:r0 peer-node-id:0 conn-name:peer connection:NetworkFailure role:Unknown"
    )
    assert (link.connection, link.role) == (ConnectionState.NETWORK_FAILURE, Role.UNKNOWN)
    helper = events2.parse("response helper name:r0 peer-node-id:0 volume:0 minor:0 helper:split-brain status:-1")
    assert (helper.kind, helper.helper, helper.status) == (Kind.HELPER, "split-brain", -1)
    assert events2.parse("rename resource name:r0 new_name:r9").new_name == "r9"
    assert events2.parse("exists -").kind is Kind.END


def test_colour_is_removed() -> None:
    event = events2.parse("\x1b[1mexists\x1b[0m resource name:\x1b[32mr0\x1b[0m role:\x1b[1;32mPrimary\x1b[0m")
    assert (event.name, event.role) == ("r0", Role.PRIMARY)


@pytest.mark.parametrize(
    ("line", "number"), [("- skipped 4", 4), ("2026-11-23T09:24:56.884624+00:00 - skipped -2", -2)]
)
def test_events_that_were_skipped(line: str, number: int) -> None:
    event = events2.parse(line)
    assert (event.action, event.kind, event.name, event.skipped) == (Action.NONE, Kind.SKIPPED, "", number)


def test_an_unknown_key_is_kept_and_an_unknown_value_of_a_known_key_is_not() -> None:
    assert events2.parse("change resource name:r0 mood:good a:b:c").others == {"mood": "good", "a": "b:c"}
    with pytest.raises(BadLine, match="role: 'Tertiary'"):
        events2.parse("change resource name:r0 role:Tertiary")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "exists",
        "exists nothing name:r0",
        "exists skipped name:r0",
        "- resource name:r0",
        "- skipped",
        "- skipped many",
        "- skipped 4 5",
        "explode resource name:r0",
        "exists resource role:Primary",
        "exists device name:r0 minor:0",
        "exists device name:r0 volume:minus minor:0",
        "exists device name:r0 volume:٣ minor:0",
        "change peer-device name:r0 volume:0",
        "change resource name:r0 role",
        "2026-99-99T00:00:00+00:00 exists -",
        "exists resource name:r0 may_promote:perhaps",
        "change connection name:r0 peer-node-id:0 connection:Conn",
        "change peer-device name:r0 peer-node-id:0 volume:0 done:much",
        "exists resource name:" + "x" * 100_000,
    ],
)
def test_what_is_no_line_is_a_bad_line(line: str) -> None:
    with pytest.raises(BadLine) as caught:
        events2.parse(line)
    assert len(str(caught.value)) < 500


@given(st.text(max_size=300))
def test_any_text_is_an_event_or_a_bad_line(text: str) -> None:
    with contextlib.suppress(BadLine):
        assert isinstance(events2.parse(text), Event)


def test_a_hundred_thousand_mutated_lines_are_events_or_one_log_line_each(
    lines: Callable[[str], list[str]], storage: DrbdStorage
) -> None:
    """In the order of the lines: of those that are no event, and of events that fit nowhere; of no other."""
    draw = random.Random(84)
    real = [line for name in FILES for line in lines(name)]
    understood = 0
    for _ in range(10):
        dump = [mutated(draw.choice(real), draw).replace("\n", " ") for _ in range(10_000)]
        expected = reasons(dump)
        understood += len(dump) - len(expected)
        tracemalloc.start()
        with capture_logs() as logged, pytest.raises(CommandFailed) as caught:
            storage._kernels._resources("node1", "\n".join(dump) + "\n")
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [(entry["event"], entry["node"], entry["reason"]) for entry in logged] == [
            ("bad_events2_line", "node1", reason) for reason in expected
        ]
        assert all(len(reason) < 500 for reason in expected)
        assert len(caught.value.detail) < 2000
        assert used < 30 << 20
    assert 5_000 < understood < 95_000


def reasons(dump: list[str]) -> list[str]:
    """Of each line that is not understood, in order, why."""
    world, found = World("node1"), []
    for line in dump:
        try:
            world.apply(events2.parse(line))
        except (BadLine, Gap) as error:
            found.append(str(error))
    return found


def test_a_line_ends_where_the_node_ended_it(storage: DrbdStorage) -> None:
    """And not at other characters that end a line elsewhere: one that is damaged stays one."""
    dump = (
        "exists resource name:r0 role:Pri\x0cma\u2028ry\nexists resource name:r1 role:Primary suspended:no\nexists -\n"
    )
    with capture_logs() as logged:
        found = storage._kernels._resources("node1", dump, ["r1"])
    assert [entry["event"] for entry in logged] == ["bad_events2_line"]
    assert set(found) == {"r1"}


def test_what_a_stream_says_is_logged_once_where_it_is_not_understood(lines: Callable[[str], list[str]]) -> None:
    """Whatever becomes of the stream then: a line about others, about one in the dump, or one that begins it anew."""
    draw = random.Random(93)
    real = [line for name in FILES for line in lines(name)]
    called = {"node1": {"r0": "r0", "r1": "r1"}}
    never: Any = None  # nothing is followed
    watch = ReplicationWatch(called=called, follow=never, why=never, on_change=None, answer_within_s=1)
    world, unread = World("node1"), dict[str, float]()
    for number in range(100):
        world.complete = number % 2 == 1
        unread.clear()
        said = [mutated(draw.choice(real), draw).replace("\n", " ") for _ in range(200)]
        expected = []
        for line in said:
            try:
                events2.parse(line)
            except BadLine as error:
                expected.append(str(error))
        with capture_logs() as logged:
            for line in said:
                with contextlib.suppress(Gap):
                    watch._parsed("node1", world, unread, line)
        assert [(entry["event"], entry["reason"]) for entry in logged] == [
            ("bad_events2_line", reason) for reason in expected
        ]
