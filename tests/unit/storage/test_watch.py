"""The watch over real child processes that replay what real nodes said."""

from __future__ import annotations

import os
import queue
import random
import select
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from lvmigrate.errors import CommandFailed, LvmigrateError, NodeUnreachable
from lvmigrate.node import Node
from lvmigrate.replication import Role
from storage import shell as shell_module
from storage import watch
from storage.feed import LIMIT, Change, Snapshot
from storage.shell import Answer, Shell, Stream
from storage.watch import ReplicationWatch
from tests.unit.storage.mutate import mutated

END = "exists -"


class Replay:
    """Streams made of files: ``say`` appends lines to one node's stream, ``cut`` ends it."""

    def __init__(self, shell: Shell, directory: Path) -> None:
        self._shell = shell
        self._directory = directory
        for node in ("node1", "node2"):
            self.begin(node, [])

    def begin(self, node: str, lines: Iterable[str]) -> None:
        # A new file: the stream that follows the old one goes on with that.
        new = self._directory / "new"
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self._directory / node)

    def say(self, node: str, *lines: str) -> None:
        with (self._directory / node).open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def cut(self, node: str) -> None:
        # Without its number nobody takes the one that dies for the one that follows.
        number = self._directory / f"{node}.pid"
        dying = int(number.read_text())
        number.unlink()
        os.kill(dying, signal.SIGKILL)

    def follow(self, node: str) -> Stream:
        file = shlex.quote(str(self._directory / node))
        return self._shell.stream(self._node(node), f"echo $$ >{file}.pid; exec tail -s 0.02 -n +1 -f {file}")

    def why(self, node: str, answer: Answer) -> LvmigrateError:
        return CommandFailed(node, "Following events", status=answer.status, hint="none")

    def watch(
        self,
        nodes: tuple[str, ...] = ("node1", "node2"),
        names: tuple[str, ...] = ("r0",),
        on_change: Callable[[str], None] | None = None,
        within_s: float = 10,
    ) -> ReplicationWatch:
        return ReplicationWatch(
            called={node: {name: name for name in names} for node in nodes},
            follow=self.follow,
            why=self.why,
            on_change=on_change,
            answer_within_s=within_s,
        )

    def _node(self, name: str) -> Node:
        return Node(name=name, ssh=None, libvirt_uri="", peer_uri="", migration_address="")


@pytest.fixture
def replay(shell: Shell, tmp_path: Path) -> Replay:
    return Replay(shell, tmp_path)


def state(
    role: str = "Secondary", peer: str = "Secondary", name: str = "r0", replication: str = "Established"
) -> list[str]:
    volume = f"name:{name} peer-node-id:0 conn-name:peer volume:0"
    return [
        f"exists resource name:{name} role:{role} suspended:no",
        f"exists connection name:{name} peer-node-id:0 conn-name:peer connection:Connected role:{peer} congested:no",
        f"exists device name:{name} volume:0 minor:0 disk:UpToDate",
        f"exists peer-device {volume} replication:{replication} peer-disk:UpToDate",
    ]


def test_a_recorded_dual_primary_is_seen_whole(replay: Replay, lines: Callable[[str], list[str]]) -> None:
    said: list[str] = []
    recorded = {node: lines(f"drbd84/dual-primary.{node}") for node in ("node1", "node2")}
    dumps = {node: next(i for i, line in enumerate(of) if line.endswith(END)) + 1 for node, of in recorded.items()}
    for node, of in recorded.items():
        replay.begin(node, of[: dumps[node]])
    with replay.watch(on_change=said.append) as seen:
        for node, of in recorded.items():
            replay.say(node, *of[dumps[node] :])
        assert seen.wait(lambda: sum("is Primary" in words for words in said) == 3, 5)
        assert seen.breaks() == ()
        assert 0 < seen.dual_primary_s() < 5
    assert "r0 on node1 is Primary (was Secondary)" in said


@pytest.mark.parametrize(("version", "name"), [("drbd84", "r0"), ("drbd93", "r0")])
def test_a_recorded_cut_is_a_break(replay: Replay, lines: Callable[[str], list[str]], version: str, name: str) -> None:
    said: list[str] = []
    for node in ("node1", "node2"):
        recorded = lines(f"{version}/net-cut.{node}")
        end = next(i for i, line in enumerate(recorded) if line.endswith(END)) + 1
        replay.begin(node, recorded[:end])
    with replay.watch(names=(name,), on_change=said.append) as seen:
        assert seen.breaks() == ()
        for node in ("node1", "node2"):
            recorded = lines(f"{version}/net-cut.{node}")
            end = next(i for i, line in enumerate(recorded) if line.endswith(END)) + 1
            replay.say(node, *recorded[end:])

        def healed() -> bool:
            found = [seen.resource(n, name) for n in ("node1", "node2")]
            return all(f"{name}/0 on {n} is Established to" in " ".join(said) for n in ("node1", "node2")) and all(
                r is not None and r.in_step_with("node2" if r.node == "node1" else "node1") for r in found
            )

        assert seen.wait(healed, 5)
        words = seen.breaks()
        assert "not connected" in words[0]
        assert any("SyncSource" in w for w in words)
        assert any("SyncTarget" in w for w in words)
        seen.forgive()
        assert seen.breaks() == ()
    assert any("(was Connected)" in sentence for sentence in said)


def test_not_in_step_at_the_beginning_is_a_break_and_is_not_forgiven_while_it_lasts(replay: Replay) -> None:
    replay.begin("node1", [*state(replication="SyncSource"), END])
    replay.begin("node2", [*state(), END])
    with replay.watch() as seen:
        assert len(seen.breaks()) == 1
        seen.forgive()
        assert ["SyncSource" in words for words in seen.breaks()] == [True]
        replay.say("node1", "change peer-device name:r0 peer-node-id:0 volume:0 replication:Established")
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.in_step_with("node2"), 5)
        seen.forgive()
        assert seen.breaks() == ()


def test_a_resource_that_a_node_does_not_have_is_a_break(replay: Replay) -> None:
    replay.begin("node1", [*state(), END])
    replay.begin("node2", [END])
    with replay.watch() as seen:
        assert seen.resource("node2", "r0") is None
        assert ["node2 has no resource r0" in words for words in seen.breaks()] == [True]


def test_a_stream_that_ends_is_a_gap_and_started_again(replay: Replay) -> None:
    said: list[str] = []
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch(on_change=said.append) as seen:
        replay.begin("node1", [*state(role="Primary"), END])
        replay.cut("node1")
        assert seen.wait(lambda: seen.resource("node1", "r0") is None, 5)
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.PRIMARY, 5)
        (words,) = seen.gaps()
        assert "node1 is not watched: Following events failed on node1" in words
        assert any("node1 is not watched" in sentence for sentence in said)
        assert seen.breaks() == ()
        seen.forgive()
        assert seen.gaps() == ()


def test_lines_that_do_not_fit_make_the_world_anew(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen:
        replay.say("node1", "change device name:r0 volume:7 disk:UpToDate")
        assert seen.wait(lambda: bool(seen.gaps()), 5)
        assert "was not announced" in seen.gaps()[0]
        # The file still ends with the line that does not fit, so it comes again until the file is another one.
        replay.begin("node1", [*state(role="Primary"), END])
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.PRIMARY, 8)


def test_a_line_that_is_not_understood_makes_the_world_anew(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen:
        replay.say("node1", "change resource name:other role:Tertiary", "\x00garbage\xff")
        assert seen.wait(lambda: bool(seen.gaps()), 5)
        assert ["garbage" in words for words in seen.gaps()] == [True]
        assert seen.breaks() == ()
        replay.begin("node1", [*state(role="Primary"), END])
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.PRIMARY, 8)


def test_events_that_were_skipped_make_the_world_anew(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen:
        replay.say("node1", "2026-11-23T09:24:56.884624+00:00 - skipped 4")
        assert seen.wait(lambda: bool(seen.gaps()), 5)
        assert "node1 is not watched: its events are not in sequence" in seen.gaps()[0]
        replay.begin("node1", [*state(role="Primary"), END])
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.PRIMARY, 8)


def test_other_resources_are_none_of_its_business(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), *state(name="other", replication="SyncSource"), END])
    with replay.watch() as seen:
        assert seen.resource("node1", "other") is None
        assert seen.breaks() == ()


def test_dual_primary_is_counted_once_for_two_resources_and_lasts_while_unknown(replay: Replay) -> None:
    both = [*state(role="Primary", name="r0"), *state(role="Primary", name="r1")]
    for node in ("node1", "node2"):
        replay.begin(node, [*both, END])
    with replay.watch(names=("r0", "r1")) as seen:
        begin, counted, after = time.monotonic(), seen.dual_primary_s(), time.monotonic()
        replay.begin("node2", [])
        replay.cut("node2")
        time.sleep(0.5)
        assert seen.resource("node2", "r0") is None
        least = time.monotonic() - after
        assert least <= seen.dual_primary_s() - counted <= time.monotonic() - begin
        replay.say("node1", *(f"change resource name:{name} role:Secondary" for name in ("r0", "r1")))
        assert seen.wait(lambda: (r := seen.resource("node1", "r1")) is not None and r.role is Role.SECONDARY, 5)
        counted = seen.dual_primary_s()
        time.sleep(0.1)
        assert seen.dual_primary_s() == counted


def test_waiting(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen:
        assert seen.wait(lambda: True, 0)
        begin = time.monotonic()
        assert not seen.wait(lambda: False, 0.3)
        assert 0.3 <= time.monotonic() - begin < 1
        cancel = threading.Event()
        threading.Timer(0.2, cancel.set).start()
        assert not seen.wait(lambda: False, 10, cancel=cancel)
        assert time.monotonic() - begin < 2
        asked = 0

        def asks() -> bool:
            nonlocal asked
            asked += 1
            return False

        assert not seen.wait(asks, 0.3)
        assert asked == 1


def test_a_node_that_stays_silent_is_unreachable(replay: Replay) -> None:
    replay.begin("node1", [*state(), END])
    replay.begin("node2", state())
    begin = time.monotonic()
    with pytest.raises(NodeUnreachable) as caught, replay.watch(within_s=2):
        pass
    assert caught.value.node == "node2"
    assert time.monotonic() - begin < 30


def test_a_node_that_fails_at_once_is_an_error_at_once(replay: Replay, tmp_path: Path) -> None:
    replay.begin("node1", [*state(), END])
    (tmp_path / "node2").unlink()
    begin = time.monotonic()
    with pytest.raises(CommandFailed), replay.watch():
        pass
    assert time.monotonic() - begin < 5


def test_a_listener_that_fails_harms_nobody(replay: Replay) -> None:
    def listener(sentence: str) -> None:
        raise RuntimeError(sentence)

    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch(on_change=listener) as seen:
        replay.say("node1", "change resource name:r0 role:Primary")
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.PRIMARY, 5)


def test_the_first_breaks_are_kept(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen:
        for _ in range(watch.MAX_BREAKS + 20):
            replay.say(
                "node1",
                "change resource name:r0 suspended:quorum",
                "change resource name:r0 suspended:no",
            )
        replay.say("node1", "change resource name:r0 role:Primary")
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.PRIMARY, 5)
        assert len(seen.breaks()) == watch.MAX_BREAKS + 1
        assert seen.breaks()[-1] == "and 20 more"


def test_thousands_of_lines_at_once(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    count = 10_000
    with replay.watch() as seen:
        replay.say(
            "node1",
            *(
                f"change peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 received:0 sent:{n} out-of-sync:{n}"
                " pending:0 unacked:0"
                for n in range(count)
            ),
        )

        def last() -> bool:
            found = seen.resource("node1", "r0")
            return found is not None and found.connections[0].volumes[0].out_of_sync_kib == count - 1

        assert seen.wait(last, 120)


# ---- subscribers


def sent(item: Change | Snapshot | None) -> int | None:
    """How much is out of sync by a change of r0 on node1."""
    assert isinstance(item, Change)
    assert item.resource is not None
    return item.resource.connections[0].volumes[0].out_of_sync_kib


def out_of_sync(number: int) -> str:
    return f"change peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 out-of-sync:{number}"


def reached(seen: ReplicationWatch, number: int) -> Callable[[], bool]:
    def holds() -> bool:
        found = seen.resource("node1", "r0")
        return found is not None and found.connections[0].volumes[0].out_of_sync_kib == number

    return holds


def test_a_subscriber_gets_a_snapshot_and_every_change_in_order(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen, seen.subscribe() as feed:
        first = feed.next(5)
        assert isinstance(first, Snapshot)
        assert first.missed == 0
        assert set(first.resources) == {("node1", "r0"), ("node2", "r0")}
        replay.say("node1", *map(out_of_sync, range(500)))
        assert [sent(feed.next(5)) for _ in range(500)] == list(range(500))
        assert feed.next(0.05) is None
        replay.say("node1", "change resource name:r0 role:Primary")
        item = feed.next(5)
        assert isinstance(item, Change)
        assert item.sentences == ("r0 on node1 is Primary (was Secondary)",)
    assert feed.next() is None


def test_a_slow_subscriber_gets_a_mark_and_a_fresh_snapshot(replay: Replay) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen, seen.subscribe(limit=10) as slow, seen.subscribe() as quick:
        assert isinstance(slow.next(5), Snapshot)
        assert isinstance(quick.next(5), Snapshot)
        replay.say("node1", *map(out_of_sync, range(300)))
        assert seen.wait(reached(seen, 299), 10)
        assert len(slow._kept) <= 10
        mark = slow.next(5)
        assert isinstance(mark, Snapshot)
        assert mark.missed == 300
        assert mark.resources["node1", "r0"] == seen.resource("node1", "r0")
        # The next ones build on it, and the quick one missed nothing.
        replay.say("node1", out_of_sync(300))
        assert sent(slow.next(5)) == 300
        assert [sent(quick.next(5)) for _ in range(301)] == list(range(301))


def test_a_listener_that_takes_its_time_keeps_no_event_waiting(replay: Replay) -> None:
    go = threading.Event()
    said: list[str] = []

    def listener(sentence: str) -> None:
        go.wait(20)
        said.append(sentence)

    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch(on_change=listener) as seen:
        changes = LIMIT + 200
        replay.say(
            "node1", *(f"change resource name:r0 role:{('Primary', 'Secondary')[n % 2]}" for n in range(changes))
        )
        replay.say("node1", out_of_sync(7))
        assert seen.wait(reached(seen, 7), 10)
        assert said == []
        go.set()
        assert seen.wait(lambda: any("were not told" in words for words in said), 10)
    assert said[0] == "r0 on node1 is Primary (was Secondary)"
    assert len(said) < changes


def test_the_watch_says_since_when_a_node_is_unknown(replay: Replay, tmp_path: Path) -> None:
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen, seen.subscribe() as feed:
        assert seen.unwatched() == ()
        assert isinstance(feed.next(5), Snapshot)
        time.sleep(0.3)
        (tmp_path / "node2").rename(tmp_path / "away")
        replay.cut("node2")
        assert seen.wait(lambda: bool(seen.unwatched()), 5)
        (lost,) = seen.unwatched()
        assert (lost.node, lost.since_s > 0.3) == ("node2", True)
        item = feed.next(5)
        assert isinstance(item, Change)
        assert (item.node, item.resource) == ("node2", None)
        assert "node2 is not watched" in item.sentences[0]
        # It stays since then, however often the stream is started again for nothing.
        time.sleep(0.5)
        assert seen.unwatched()[0].since_s == lost.since_s
        replay.begin("node2", [*state(role="Primary"), END])
        assert seen.wait(lambda: not seen.unwatched(), 10)
        item = feed.next(5)
        assert isinstance(item, Change)
        assert item.resource is not None
        assert item.resource.role is Role.PRIMARY


def test_a_node_that_is_not_watched_is_logged_once_with_the_reason_and_once_when_it_is_again(
    replay: Replay, tmp_path: Path
) -> None:
    def told(logged: list[MutableMapping[str, Any]]) -> list[tuple[str, str]]:
        return [(entry["event"], entry["node"]) for entry in logged if entry["log_level"] != "debug"]

    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with capture_logs() as logged, replay.watch() as seen:
        for times in (1, 2):
            (tmp_path / "node2").rename(tmp_path / "away")
            replay.cut("node2")
            assert seen.wait(lambda: bool(seen.unwatched()), 10)
            # It is tried again, in vain, more than once.
            ended = [entry for entry in logged if entry["event"] == "lost_stream"]
            deadline = time.monotonic() + 30
            while len([entry for entry in logged if entry["event"] == "lost_stream"]) < len(ended) + 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            replay.begin("node2", [*state(), END])
            assert seen.wait(lambda: not seen.unwatched(), 20)
            assert told(logged) == [("node_unwatched", "node2"), ("node_watched_again", "node2")] * times
    lost, again = [entry for entry in logged if entry["event"].startswith("node_")][:2]
    assert lost["reason"] == "Following events failed on node2"
    assert again["away_s"] >= 0


# ---- what is waited for


class Waits:
    """Every wait of the threads between a node's pipe and a subscriber that its time ended, and every sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fired: list[str] = []
        self.sleep = time.sleep
        real_wait, real_poll = threading.Condition.wait, select.poll

        def wait(condition: threading.Condition, timeout: float | None = None) -> bool:
            woken = real_wait(condition, timeout)
            if not woken:
                self._note(f"waited for {timeout} s")
            return woken

        def sleep(seconds: float) -> None:
            self._note(f"slept for {seconds} s")
            self.sleep(seconds)

        def poll() -> Any:
            made = real_poll()

            def ask(timeout: float | None = None) -> list[tuple[int, int]]:
                ready = made.poll(timeout)
                if not ready:
                    self._note(f"polled for {timeout} ms")
                return ready

            return SimpleNamespace(register=made.register, poll=ask)

        monkeypatch.setattr(threading.Condition, "wait", wait)
        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(shell_module, "select", SimpleNamespace(poll=poll, POLLIN=select.POLLIN))

    def _note(self, what: str) -> None:
        thread = threading.current_thread()
        if thread is threading.main_thread() or thread.name.startswith("events2"):
            self.fired.append(f"{thread.name} {what}")


def test_from_the_pipe_to_a_subscriber_nobody_waits_for_a_clock(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change is passed on because it came, and not because somebody looked: no timer ends a wait on its way."""
    monkeypatch.setattr(shell_module, "BEAT_S", 600)  # that the node hears of its reader is on no event's way
    waits = Waits(monkeypatch)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    node = Node(name="node1", ssh=None, libvirt_uri="", peer_uri="", migration_address="")
    seen = ReplicationWatch(
        called={"node1": {"r0": "r0"}},
        follow=lambda _node: shell.stream(node, f"exec cat {shlex.quote(str(pipe))}"),
        why=lambda name, answer: CommandFailed(name, "Following events", status=answer.status, hint="none"),
        on_change=said.put,
        answer_within_s=60,
    )
    # For both ways: whoever comes first need not wait for the other end.
    with os.fdopen(os.open(pipe, os.O_RDWR), "w") as kernel:

        def say(*lines: str) -> None:
            kernel.write("".join(f"{line}\n" for line in lines))
            kernel.flush()

        say(*state(), END)
        with seen, seen.subscribe() as feed:
            assert isinstance(feed.next(60), Snapshot)
            waits.fired.clear()
            for number in range(50):
                say(out_of_sync(number))
                assert sent(feed.next(60)) == number
                role = ("Primary", "Secondary")[number % 2]
                say(f"change resource name:r0 role:{role}")
                item = feed.next(60)
                assert isinstance(item, Change)
                assert f"r0 on node1 is {role}" in item.sentences[0]
                assert f"r0 on node1 is {role}" in said.get(timeout=60)
                if number % 10 == 0:
                    waits.sleep(0.15)  # whoever looks from time to time does so meanwhile
            assert waits.fired == []


# ---- bad input


def test_a_dump_with_a_line_that_is_not_understood_costs_that_resource_only(replay: Replay) -> None:
    strange = [line.replace("disk:UpToDate", "disk:Splendid") for line in state(name="r1")]
    replay.begin("node1", [*state(), *strange, END])
    replay.begin("node2", [*state(), *state(name="r1"), END])
    with replay.watch(names=("r0", "r1")) as seen:
        assert seen.resource("node1", "r0") is not None
        assert seen.resource("node1", "r1") is None
        assert seen.resource("node2", "r1") is not None
        assert any("of r1 is not understood" in words for words in seen.gaps())
        replay.say("node1", "change resource name:r0 role:Primary")
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.PRIMARY, 5)
        # Once it says what is understood, it is known again.
        replay.begin("node1", [*state(), *state(name="r1"), END])
        replay.cut("node1")
        assert seen.wait(lambda: seen.resource("node1", "r1") is not None, 10)


def test_what_is_never_understood_of_one_does_not_keep_another_from_being_watched(
    replay: Replay, tmp_path: Path
) -> None:
    """The dump says the same of r1 again; events of it do not begin it anew each time."""
    strange = [line.replace("disk:UpToDate", "disk:Splendid") for line in state(name="r1")]
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), *state(name="r1"), END])
    with replay.watch(names=("r0", "r1")) as seen:
        with (tmp_path / "node1").open("a") as before:
            replay.begin("node1", [*state(), *strange, END])
            before.write("change device name:r1 volume:0 minor:1 disk:Splendid\n")
        assert seen.wait(lambda: any("of r1 is not understood" in words for words in seen.gaps()), 10)
        gaps, begin = len(seen.gaps()), time.monotonic()
        for number in range(20):
            replay.say("node1", f"change resource name:r1 role:{('Primary', 'Secondary')[number % 2]}")
            replay.say("node1", f"change resource name:r0 role:{('Primary', 'Secondary')[number % 2]}")
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.role is Role.SECONDARY, 5)
        if time.monotonic() - begin < watch.REREAD_S:
            assert len(seen.gaps()) == gaps
        assert seen.resource("node1", "r1") is None


def test_what_was_not_understood_is_read_again_after_a_while(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "REREAD_S", 0.3)
    strange = [line.replace("disk:UpToDate", "disk:Splendid") for line in state(name="r1")]
    replay.begin("node1", [*state(), *strange, END])
    replay.begin("node2", [*state(), *state(name="r1"), END])
    with replay.watch(names=("r0", "r1")) as seen:
        assert seen.resource("node1", "r1") is None
        time.sleep(0.4)
        with (tmp_path / "node1").open("a") as before:
            replay.begin("node1", [*state(), *state(name="r1"), END])
            before.write("change resource name:r1 role:Primary\n")
        assert seen.wait(lambda: seen.resource("node1", "r1") is not None, 10)


def test_a_stream_of_nothing_but_rubbish_ends_with_the_rubbish(
    replay: Replay, lines: Callable[[str], list[str]]
) -> None:
    draw = random.Random(4)
    real = lines("drbd84/net-cut.node1")
    for node in ("node1", "node2"):
        replay.begin(node, [*state(), END])
    with replay.watch() as seen:
        for _ in range(20):
            rubbish = [mutated(draw.choice(real), draw) for _ in range(100)]
            replay.say("node1", *(line.replace("\n", " ") for line in rubbish))
            replay.say("node1", "x" * 300_000, "\x00\ufffd", "")
        assert seen.wait(lambda: bool(seen.gaps() or seen.breaks()), 10)
        replay.begin("node1", [*state(), END])
        replay.cut("node1")
        assert seen.wait(lambda: (r := seen.resource("node1", "r0")) is not None and r.in_step_with("node2"), 20)
        assert len(seen.gaps()) <= watch.MAX_BREAKS + 1
