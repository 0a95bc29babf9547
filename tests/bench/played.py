"""Two nodes' kernels, played by one process, which notes when it told of something and when the next command came.

It stands behind the seam at which a `storage.shell.Shell` starts a command for a node: what it is asked are the calls
of node.sh, what it prints are lines of events2 as DRBD 9.3.3 prints them (tests/transcripts/drbd93).  It answers at
once, and forks nothing: what is measured with it is the controller.

``python -m tests.bench.played SOCKET RESOURCES VOLUMES SEED``; when its standard input ends, it prints its notes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import re
import selectors
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lvmigrate.node import Node
from storage.shell import Shell

NODES: Final = ("node1", "node2")
#: How many lines of progress a resynchronisation sends, and how often.
_LINES: Final = (10, 40)
_LINE_S: Final = 0.005
#: From the answer to a promotion or a demotion until the kernels tell of it; from there, when the copy begins, to a
#: cut, and from that until the connection is back.
_SOON_S: Final = (0.01, 0.03)
_CUT_S: Final = (0.05, 0.6)
_BACK_S: Final = 0.05
_STAMP: Final = "2026-11-22T22:14:11.738350+00:00 "


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """The kernels told of something (by the monotonic clock), and the next command came.

    ``None``: a call of libvirt's is what answers.
    """

    what: str
    told: float
    came: float | None


@dataclass(slots=True)
class _Lent:
    """A pipe of the controller's to a node."""

    node: str
    function: str
    #: How much of the text of node.sh is still to come.
    skip: int
    out: int
    way: socket.socket
    read: bytes = b""


@dataclass(slots=True)
class _Kernels:
    """Both nodes, as they answer."""

    resources: tuple[str, ...]
    volumes: int
    chance: random.Random
    #: Whether the connection is cut during the next copy.
    cut: bool = False
    primary: dict[str, set[str]] = field(default_factory=dict)
    allowed: bool = False
    in_step: bool = False
    #: Whether the connection is up.
    connected: bool = True
    streams: dict[str, _Lent] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    #: What was told and is to be answered by a command.
    awaited: tuple[str, float] | None = None
    #: How many commands came.
    asked: int = 0
    timers: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    # ---- what they are asked

    def answer(self, node: str, words: list[str]) -> str:
        """What a call of node.sh prints. All succeed."""
        self.asked += 1
        if words[0] in ("with_token", "locked"):
            words = words[3:] if words[0] == "with_token" else words[2:]
        match words[0]:
            case "dump_all":
                return "".join(f"{line}\n" for line in self.dump(node))
            case "show":
                return self.shown(node, words[1])
            case "generations":
                return "".join(f"{name} {n} 1A2B3C4D5E6F7081\n" for name in words[1:] for n in range(self.volumes))
            case "set_options":
                self.allowed = words[4] == "yes"
                return self.shown(node, words[1])
            case "promote" | "demote":
                self._later(self.chance.uniform(*_SOON_S), lambda: self._role(words[0], node, words[1]))
        return ""

    def dump(self, node: str) -> list[str]:
        """Every ``exists`` line."""
        peer, lines = _peer(node), []
        for name in self.resources:
            ends = f"name:{name} peer-node-id:{_id(peer)} conn-name:{peer}"
            lines += [
                f"exists resource name:{name} role:{self._role_of(node, name)} suspended:no may_promote:no",
                f"exists connection {ends} connection:Connected role:{self._role_of(peer, name)} congested:no",
            ]
            for n in range(self.volumes):
                disks = ("UpToDate", "Inconsistent") if not self.in_step else ("UpToDate", "UpToDate")
                here, there = disks if node == NODES[0] else reversed(disks)
                state = "Established" if self.in_step else ("SyncSource" if node == NODES[0] else "SyncTarget")
                minor = self._minor(name, n)
                peers = f"replication:{state} peer-disk:{there} peer-client:no resync-suspended:no"
                lines += [
                    f"exists device name:{name} volume:{n} minor:{minor} disk:{here} client:no quorum:yes size:65496",
                    f"exists peer-device {ends} volume:{n} {peers} received:0 sent:0 out-of-sync:0 pending:0 unacked:0",
                ]
        return lines

    def shown(self, node: str, name: str) -> str:
        """As drbdsetup show."""
        peer = _peer(node)
        allow = "allow-two-primaries yes;" if self.allowed else ""
        volumes = "".join(
            f'volume {n} {{ device minor {self._minor(name, n)}; disk "/dev/vdb{n}"; meta-disk internal; }}\n'
            for n in range(self.volumes)
        )
        port = 7788 + self.resources.index(name)
        return (
            f'resource "{name}" {{\noptions {{ auto-promote no; }}\n_this_host {{ node-id {_id(node)};\n{volumes}}}\n'
            f"connection {{ _peer_node_id {_id(peer)};\npath {{ _this_host ipv4 10.77.0.{_id(node) + 1}:{port};"
            f" _remote_host ipv4 10.77.0.{_id(peer) + 1}:{port}; }}\n"
            f'net {{ {allow} _name "{peer}"; }}\n}}\n}}\n'
        )

    # ---- what they tell

    def follow(self, lent: _Lent) -> None:
        """A stream of events begins; with the second one a resynchronisation goes on."""
        if len(self.streams) == len(NODES):  # those of an earlier move
            self.streams.clear()
        if not self.streams:
            self.primary = {name: {NODES[0]} for name in self.resources}
            self.allowed = self.in_step = False
            self.connected = True
        self.streams[lent.node] = lent
        self._tell(lent.node, [*self.dump(lent.node), "exists -"])
        if len(self.streams) == len(NODES):
            self._later(_LINE_S, lambda: self._progress(self.chance.randint(*_LINES)))

    def command_came(self, now: float) -> None:
        """Note it, if one is awaited."""
        if self.awaited is not None:
            what, told = self.awaited
            self.awaited = None
            self.notes.append(Note(what=what, told=told, came=now))

    def _progress(self, left: int) -> None:
        for node in NODES:
            # Nine of ten lines during a resynchronisation are these.
            name, n = self.chance.choice(self.resources), self.chance.randrange(self.volumes)
            self._tell(node, [f"{_change(node, name, n)} done:{99 - left}.00 sent:{left} out-of-sync:{left} eta:4"])
        if left:
            self._later(_LINE_S, lambda: self._progress(left - 1))
            return
        self.in_step = True
        news = {
            node: [
                line
                for name in self.resources
                for n in range(self.volumes)
                for line in (
                    *([f"change device name:{name} volume:{n} disk:UpToDate"] if node == NODES[1] else []),
                    f"{_change(node, name, n)} replication:Established peer-disk:UpToDate out-of-sync:0",
                )
            ]
            for node in NODES
        }
        self._happens("in step", news)

    def _role(self, act: str, node: str, name: str) -> None:
        peer, role = _peer(node), {"promote": "Primary", "demote": "Secondary"}[act]
        (self.primary[name].add if act == "promote" else self.primary[name].discard)(node)
        news = {
            node: [f"change resource name:{name} role:{role} may_promote:no"],
            peer: [f"{_link(peer, name)} role:{role}"],
        }
        # With several resources, the last of them is waited for.
        done = self.connected and all((node in self.primary[each]) is (act == "promote") for each in self.resources)
        self._happens(role if done else "", news, by_libvirt=role == "Primary")
        if done and role == "Primary" and self.cut:
            self._later(self.chance.uniform(*_CUT_S), self._cut)

    def _cut(self) -> None:
        name = self.resources[0]
        self.connected = False
        self._happens(
            "cut",
            {
                node: [
                    f"{_link(node, name)} connection:NetworkFailure role:Unknown",
                    *(
                        f"{_change(node, name, n)} replication:Off peer-disk:DUnknown peer-client:no"
                        for n in range(self.volumes)
                    ),
                ]
                for node in NODES
            },
            first=True,
            by_libvirt=True,
        )
        self._later(_BACK_S, self._back)

    def _back(self) -> None:
        name = self.resources[0]
        self.connected = True
        for node in NODES:
            lines = [
                f"{_link(node, name)} connection:Connected role:{self._role_of(_peer(node), name)}",
                *(
                    f"{_change(node, name, n)} replication:Established peer-disk:UpToDate peer-client:no"
                    for n in range(self.volumes)
                ),
            ]
            self._tell(node, lines)

    def _happens(
        self, what: str, news: Mapping[str, list[str]], *, first: bool = False, by_libvirt: bool = False
    ) -> None:
        """Both kernels tell. It counts from the last line that is needed; ``first``: one node's word is enough.

        ``by_libvirt``: what answers is a call of libvirt's, which does not come here.
        """
        nodes = list(news)
        told = 0.0
        for node in nodes:
            if not first or node == nodes[0]:
                told = time.monotonic()
            self._tell(node, news[node])
        if by_libvirt and what:
            self.notes.append(Note(what=what, told=told, came=None))
        elif what:
            self.awaited = (what, told)

    def _tell(self, node: str, lines: list[str]) -> None:
        data = "".join(f"{_STAMP}{line}\n" for line in lines).encode()
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self.streams[node].out, data) :]

    # ---- how

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (time.monotonic() + seconds, next(self._numbers), act))

    def _role_of(self, node: str, name: str) -> str:
        return "Primary" if node in self.primary.get(name, {NODES[0]}) else "Secondary"

    def _minor(self, name: str, number: int) -> int:
        return self.resources.index(name) * self.volumes + number


def _peer(node: str) -> str:
    return NODES[1 - NODES.index(node)]


def _id(node: str) -> int:
    return NODES.index(node)


def _link(node: str, name: str) -> str:
    peer = _peer(node)
    return f"change connection name:{name} peer-node-id:{_id(peer)} conn-name:{peer}"


def _change(node: str, name: str, number: int) -> str:
    peer = _peer(node)
    return f"change peer-device name:{name} peer-node-id:{_id(peer)} conn-name:{peer} volume:{number}"


def main() -> None:
    """Play until standard input ends."""
    path, resources, volumes, seed = sys.argv[1], *map(int, sys.argv[2:])
    kernels = _Kernels(tuple(f"r{n}" for n in range(resources)), volumes, random.Random(seed))
    with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as selector:
        door.bind(path)
        door.listen(256)
        selector.register(door, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            left = kernels.timers[0][0] - time.monotonic() if kernels.timers else None
            ready = selector.select(None if left is None else max(0.0, left)) if left is None or left > 0 else []
            now = time.monotonic()
            for key, _ in ready:
                if key.fileobj is door:
                    _let_in(door, selector, kernels)
                elif key.fd == 0:
                    words = os.read(0, 4096).decode().split()
                    if not words:
                        return
                    for word in words:
                        _order(kernels, word)
                else:
                    _read(key.data, key.fd, selector, kernels, now)
            while kernels.timers and kernels.timers[0][0] <= time.monotonic():
                heapq.heappop(kernels.timers)[2]()


def _order(kernels: _Kernels, word: str) -> None:
    if word != "notes":
        kernels.cut = word == "cut"
        return
    told = [[note.what, note.told, note.came] for note in kernels.notes]
    print(json.dumps({"notes": told, "asked": kernels.asked}), flush=True)
    kernels.notes, kernels.asked = [], 0


def _let_in(door: socket.socket, selector: selectors.BaseSelector, kernels: _Kernels) -> None:
    way, _ = door.accept()
    said, (given, out), *_ = socket.recv_fds(way, 4096, 2)
    node, function, skip = said.decode().split("\n")
    lent = _Lent(node, function, int(skip), out, way)
    selector.register(given, selectors.EVENT_READ, lent)
    if function == "follow":
        kernels.follow(lent)


def _read(lent: _Lent, fd: int, selector: selectors.BaseSelector, kernels: _Kernels, now: float) -> None:
    chunk = os.read(fd, 1 << 16)
    if not chunk:
        selector.unregister(fd)
        os.close(fd)
        os.close(lent.out)
        lent.way.close()
        return
    skipped = chunk[: lent.skip]
    lent.skip -= len(skipped)
    lent.read += chunk[len(skipped) :]
    while lent.read.count(b"\n") > 1:
        mark, call, lent.read = lent.read.split(b"\n", 2)
        kernels.command_came(now)
        said = kernels.answer(lent.node, shlex.split(call.decode()))
        os.write(lent.out, f"{said}\n{mark.decode()} 0\n\n{mark.decode()}.\n".encode())


# ---- from the controller's side


class PlayedShell(Shell):
    """Starts what lends its pipes to the process that plays the nodes."""

    def __init__(self, path: Path) -> None:
        super().__init__(ssh_config=None, connect_timeout_s=10.0)
        self._path = path

    def command(self, node: Node, script: str) -> list[str]:
        """In place of ``/bin/sh`` on the node."""
        text, function = re.search(r"head -c (\d+)", script), script.rsplit(maxsplit=1)[-1]
        assert text is not None
        here = str(Path(__file__).with_name("lent.py"))
        return [sys.executable, "-I", "-S", here, str(self._path), node.name, function, text[1]]


class Played:
    """The process, from outside."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self._process = process
        self.path = path

    def cut(self, *, on: bool) -> None:
        """Whether the connection is cut during the next copies."""
        self._say("cut" if on else "whole")

    def notes(self) -> tuple[list[Note], int]:
        """What was noted since the last time, and how many commands came."""
        self._say("notes")
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return [Note(what=what, told=at, came=came) for what, at, came in told["notes"]], told["asked"]

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()


@contextmanager
def played(*, resources: int, volumes: int, seed: int) -> Iterator[Played]:
    """With a process that plays both nodes."""
    with tempfile.TemporaryDirectory(prefix="lvm-played-") as directory:
        path = Path(directory) / "door"
        words = [sys.executable, "-m", "tests.bench.played", str(path), str(resources), str(volumes), str(seed)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            try:
                yield Played(process, path)
            finally:
                process.stdin.close()


if __name__ == "__main__":
    main()
