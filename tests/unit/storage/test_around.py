"""What is looked for on a node before a move: node.sh for real on this machine, and what its words mean."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from lvmigrate.node import Node
from lvmigrate.premises import PORTS, Match, Wanted
from storage import around
from storage.drbd import DrbdStorage

HERE = Node(
    name="node1",
    ssh=None,
    libvirt_uri="test:///default",
    peer_uri="test:///default",
    migration_address="127.0.0.1",
)
WANTED = Wanted(instance="web1", peer="node2", knock=True, autostart=False)


def storage(tmp_path: Path, peer: Node) -> DrbdStorage:
    nodes = {"node1": HERE, "node2": replace(peer, name="node2")}
    return DrbdStorage(nodes, root=str(tmp_path))


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv/a b.iso").write_text("")
    (tmp_path / "sys/class/net/br0").mkdir(parents=True)
    (tmp_path / "var/lib/libvirt/qemu/save").mkdir(parents=True)
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "etc/libvirt/qemu.conf").write_text("migration_port_min = 50000\n#migration_port_max = 50009\n")
    wanted = replace(
        WANTED,
        paths=frozenset({"/srv/a b.iso", "/srv/b.iso"}),
        interfaces=frozenset({"br0", "br1"}),
        programs=frozenset({"sh", "no-such-program"}),
    )
    found = storage(tmp_path, HERE).premises("node1", wanted)
    assert found.paths == {"/srv/a b.iso"}
    assert found.interfaces == {"br0"}
    assert found.programs == {"sh"}
    assert found.saved is None
    assert found.ports == (50000, PORTS[1])
    # Nothing listens there: the machine itself says so.
    assert (found.peer, found.memory) == (Match.YES, Match.YES)
    (tmp_path / "var/lib/libvirt/qemu/save/web1.save").write_text("")
    again = storage(tmp_path, HERE).premises("node1", replace(wanted, knock=False))
    assert again.saved == f"{tmp_path}/var/lib/libvirt/qemu/save/web1.save"
    assert (again.peer, again.memory) == (Match.UNKNOWN, Match.UNKNOWN)


def test_a_peer_that_cannot_be_reached(tmp_path: Path) -> None:
    peer = replace(HERE, peer_uri="qemu+unix:///system?socket=/nonexistent", migration_address="no-such-host.invalid")
    found = storage(tmp_path, peer).premises("node1", WANTED)
    assert (found.peer, found.memory) == (Match.NO, Match.NO)
    assert "/nonexistent" in found.peer_words
    assert "no-such-host" in found.memory_words


def test_the_ports_of_the_configuration_are_not_knocked_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        peer = replace(HERE, migration_ports=(port, port))
        found = storage(tmp_path, peer).premises("node1", WANTED)
        assert found.memory is Match.UNKNOWN
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert around.premises("node2", "listening 1F90", (8080, 8081)).listening == {8080}


@pytest.mark.parametrize(
    ("said", "match", "words"),
    [
        ("memory 0", Match.YES, ""),
        ("memory 1 bash: connect: Connection refused bash: line 1: /dev/tcp/a/1: Connection refused", Match.YES, ""),
        ("memory 1 bash: connect: No route to host", Match.NO, "bash: connect: No route to host"),
        ("memory 124", Match.NO, "no answer in time"),
        ("memory 127 timeout: not found", Match.UNKNOWN, "timeout: not found"),
        ("", Match.UNKNOWN, ""),
    ],
)
def test_what_came_back(said: str, match: Match, words: str) -> None:
    found = around.premises("node1", said, None)
    assert (found.memory, found.memory_words) == (match, words)


def test_services_and_what_they_wait_for() -> None:
    text = """\
unit Id=libvirtd.service
unit After=network.target drbd.service system.slice
unit ActiveState=active
unit UnitFileState=disabled
unit
unit Id=virtqemud.service
unit After=network.target
unit ActiveState=inactive
unit UnitFileState=enabled
"""
    found = around.premises("node1", text, None)
    assert found.after_drbd == {"libvirtd.service": True, "virtqemud.service": False}
    unused = text.replace("=enabled", "=disabled").replace("=active", "=inactive")
    assert around.premises("node1", unused, None).after_drbd == {}
