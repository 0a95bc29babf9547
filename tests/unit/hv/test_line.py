"""One node's connection: who opens it when many want it, when one hangs, and what is left of one that broke."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import libvirt
import pytest

from hv import connections as connections_module
from hv import line, lines
from hv.connections import Connections
from hv.lines import AT_ONCE
from lvmigrate.errors import NodeUnreachable
from tests.unit.hv.test_values import node

URI = "test:///default"  # libvirt's own driver, in this process


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.01)


class Opener:
    """Stands for ``libvirt.open``: each try waits for its gate, if it has one, and fails as it is told."""

    def __init__(self) -> None:
        self.really = libvirt.open
        self.gates: list[threading.Event] = []
        self.failing = False
        self.tries = 0
        self.made: list[weakref.ref[libvirt.virConnect]] = []
        self.broken: set[int] = set()
        self.deregistered: list[int] = []
        #: What deregistering waits for, as with a daemon that hangs.
        self.hung = threading.Event()
        self.hung.set()

    def __call__(self, uri: str) -> libvirt.virConnect:
        number = self.tries
        self.tries += 1
        if number < len(self.gates):
            self.gates[number].wait()
        if self.failing:
            return self.really("test:///nosuch/file")
        connection = self.really(uri)
        self.made.append(weakref.ref(connection))
        really = weakref.WeakMethod(connection.domainEventDeregisterAny)

        def deregister(callback: int) -> None:
            self.hung.wait()
            self.deregistered.append(callback)
            method = really()
            assert method is not None
            method(callback)
            if number in self.broken:  # what libvirt says after it has taken the callback off
                raise libvirt.libvirtError("client socket is closed")

        connection.setKeepAlive = lambda *_: 0  # which this driver has not
        connection.isAlive = lambda: number not in self.broken
        connection.domainEventDeregisterAny = deregister
        return connection

    def lives(self, number: int) -> bool:
        gc.collect()
        return self.made[number]() is not None


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    made = Opener()
    monkeypatch.setattr(libvirt, "open", made)
    yield made
    for gate in (*made.gates, made.hung):
        gate.set()


def to(connections: Connections, name: str = "node1") -> libvirt.virConnect:
    with connections.calling(name):
        return connections.to(name)


def connected(connections: Connections) -> bool:
    try:
        to(connections)
    except NodeUnreachable:
        return False
    return True


def side_by_side(count: int, work: Callable[[], Any]) -> list[Any]:
    """What each of them returned or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except NodeUnreachable as error:
            found.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_who_wants_a_connection_that_is_being_opened_waits_for_the_same(opener: Opener) -> None:
    opener.gates = [threading.Event()]
    connections = Connections(node("node1", URI), connect_timeout_s=60)
    threading.Timer(0.1, opener.gates[0].set).start()
    found = side_by_side(8, lambda: to(connections))
    assert len(found) == 8
    assert {id(one) for one in found} == {id(to(connections))}
    assert opener.tries == 1
    connections.close()


def test_a_daemon_that_hangs_costs_one_thread_and_nobody_waits_for_anybody_else(opener: Opener) -> None:
    opener.gates = [threading.Event()]
    connections = Connections(node("node1", URI), connect_timeout_s=1.0)
    began = time.monotonic()
    found = side_by_side(4, lambda: to(connections))
    assert time.monotonic() - began < 4  # and not one second after another
    assert [str(error) for error in found] == ["node1 does not answer: no libvirt connection within 1 s."] * 4
    assert under_way() == opener.tries == 1
    # When it answers at last, what it opened is used.
    opener.gates[0].set()
    assert to(connections).isAlive()
    assert opener.tries == 1
    connections.close()


def test_an_opening_that_fails_does_so_for_all_that_wait_and_for_nobody_after(opener: Opener) -> None:
    opener.gates, opener.failing = [threading.Event()], True
    connections = Connections(node("node1", URI), connect_timeout_s=60)
    threading.Timer(0.3, opener.gates[0].set).start()
    found = side_by_side(4, lambda: to(connections))
    assert ["could be opened" in str(error) for error in found] == [True] * 4
    assert opener.tries == 1
    opener.failing = False
    assert to(connections).isAlive()
    connections.close()


class Clock:
    """Stands for ``time`` where it is patched in."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def under_way() -> int:
    return [thread.name for thread in threading.enumerate()].count("libvirt-open-node1")


def test_an_opening_that_never_ends_is_not_waited_for_for_ever(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node lost its power while it was asked: nothing ever tells libvirt so."""
    clock = Clock()
    monkeypatch.setattr(line, "time", clock)
    opener.gates = [threading.Event(), threading.Event()]
    connections = Connections(node("node1", URI), connect_timeout_s=0.05)
    # Each one more is waited for twice as long.
    for passed_s, hung in ((0, 1), (59, 1), (60, 2), (179, 2)):
        clock.now_s = 1000.0 + passed_s
        with pytest.raises(NodeUnreachable):
            to(connections)
        assert under_way() == hung
    wait_until(lambda: opener.tries == 2)
    clock.now_s = 1180.0
    wait_until(lambda: connected(connections))
    assert opener.tries == 3
    # Those that end after all are let go, and the one that is used stays.
    for gate in opener.gates:
        gate.set()
    wait_until(lambda: len(opener.made) == 3 and not (opener.lives(1) or opener.lives(2)))
    assert to(connections) is opener.made[0]()
    connections.close()


def test_nothing_is_left_of_a_connection_that_broke(opener: Opener) -> None:
    connections = Connections(node("node1", URI), connect_timeout_s=60)
    to(connections)
    opener.broken.add(0)
    opener.hung.clear()
    assert to(connections).isAlive()  # which does not wait until the other one is closed
    assert opener.lives(0)
    opener.hung.set()
    wait_until(lambda: not opener.lives(0))
    assert len(opener.deregistered) == 3
    assert opener.lives(1)
    connections.close()
    wait_until(lambda: not opener.lives(1))


def test_one_that_is_in_use_is_not_taken_away_under_its_user(opener: Opener) -> None:
    connections = Connections(node("node1", URI), connect_timeout_s=60)
    used = to(connections)
    connections.close()
    assert used.numOfDomains() == 1
    del used
    wait_until(lambda: not opener.lives(0))


def test_the_end_does_not_wait_for_a_daemon_that_hangs(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "_CLOSED_S", 0.1)
    connections = Connections({**node("node1", URI), **node("node2", URI)}, connect_timeout_s=60)
    for name in ("node1", "node2"):
        to(connections, name)
    opener.hung.clear()
    connections.close()
    assert opener.lives(0)
    assert opener.lives(1)
    opener.hung.set()
    wait_until(lambda: not (opener.lives(0) or opener.lives(1)))


def test_one_that_is_opened_after_the_end_is_let_go(opener: Opener) -> None:
    opener.gates = [threading.Event()]
    connections = Connections(node("node1", URI), connect_timeout_s=0.05)
    with pytest.raises(NodeUnreachable):
        to(connections)
    connections.close()
    opener.gates[0].set()
    wait_until(lambda: len(opener.made) == 1 and not opener.lives(0))


def test_calls_that_have_no_answer_take_no_connection_from_the_next(opener: Opener) -> None:
    """A daemon hears five calls of one connection, and then not even that the connection lives."""
    connections = Connections(node("node1", URI), connect_timeout_s=60)
    with ExitStack() as held:
        used = [held_by(held, connections) for _ in range(2 * AT_ONCE + 1)]
        assert [used.index(one) for one in used] == [0] * AT_ONCE + [AT_ONCE] * AT_ONCE + [2 * AT_ONCE]
        assert opener.tries == 3
    assert to(connections) is used[0]  # the first that is free again, and no more of them are opened
    assert opener.tries == 3
    connections.close()
    del used
    wait_until(lambda: not any(opener.lives(number) for number in range(3)))


def test_short_calls_side_by_side_share_one_connection(opener: Opener) -> None:
    connections = Connections(node("node1", URI), connect_timeout_s=60)
    to(connections)
    found = side_by_side(40, lambda: to(connections))
    assert {id(one) for one in found} == {id(to(connections))}
    assert opener.tries == 1
    connections.close()


def test_events_are_told_once_however_many_connections_there_are(opener: Opener) -> None:
    connections = Connections(node("node1", URI), connect_timeout_s=60)
    heard: list[str] = []
    with ExitStack() as held, connections.listening(lambda _node, _uuid, event: heard.append(event)):
        used = [held_by(held, connections) for _ in range(AT_ONCE + 1)]
        used[-1].lookupByName("test").suspend()
        wait_until(lambda: bool(heard))
        used[-1].lookupByName("test").resume()
        wait_until(lambda: len(heard) > 1)
    assert heard == ["suspended paused", "resumed unpaused"]
    connections.close()


def test_a_node_whose_calls_are_never_answered_gets_no_connections_without_end(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_MOST", 2)
    connections = Connections(node("node1", URI), connect_timeout_s=0.5)
    with ExitStack() as held:
        for _ in range(2 * AT_ONCE):
            held_by(held, connections)
        with pytest.raises(NodeUnreachable, match="8 calls to its libvirt have had no answer yet"):
            to(connections)
        assert opener.tries == 2
    assert to(connections).isAlive()
    connections.close()


def test_a_node_that_cannot_be_reached_is_not_tried_over_a_second_connection(opener: Opener) -> None:
    opener.gates = [threading.Event()]
    connections = Connections(node("node1", URI), connect_timeout_s=1.0)
    found = side_by_side(3 * AT_ONCE, lambda: to(connections))
    assert [type(error) for error in found] == [NodeUnreachable] * 3 * AT_ONCE
    assert under_way() == opener.tries == 1
    connections.close()


def held_by(held: ExitStack, connections: Connections) -> libvirt.virConnect:
    """The connection of a call that goes on until ``held`` ends it, in a thread of its own."""
    made: queue.SimpleQueue[libvirt.virConnect] = queue.SimpleQueue()
    end = threading.Event()

    def call() -> None:
        with connections.calling("node1"):
            made.put(connections.to("node1"))
            end.wait()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    held.callback(thread.join)
    held.callback(end.set)
    return made.get(timeout=60)


def test_the_event_loop_outlives_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepalive lives in it: without it a link that is dead would never be found out."""
    rounds = 0

    def once() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 3:
            raise libvirt.libvirtError("cannot poll on file handles: Too many open files")
        raise SystemExit

    monkeypatch.setattr(line, "_LOOP_PAUSE_S", 0.0)
    with pytest.raises(SystemExit):
        line._run_events(once)
    assert rounds == 3
