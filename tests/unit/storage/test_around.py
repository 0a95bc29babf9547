"""What is looked for on a node before a move: node.sh for real on this machine, and what its words mean."""

from __future__ import annotations

import os
import socket
import time
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


def knocked(tmp_path: Path, server: socket.socket, ports: tuple[int, int] | None) -> tuple[Match, bool]:
    """Whether something came back, and whether that was from ``server``."""
    found = storage(tmp_path, replace(HERE, migration_ports=ports)).premises("node1", WANTED)
    server.settimeout(0)
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return found.memory, False
    return found.memory, True


def test_of_the_ports_of_the_configuration_the_spare_one_is_knocked_at_and_no_other(tmp_path: Path) -> None:
    """On any other a guest may be waited for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert knocked(tmp_path, server, (port, port)) == (Match.UNKNOWN, False)
        assert knocked(tmp_path, server, (port - 1, port)) == (Match.YES, True)
        assert knocked(tmp_path, server, (port, port + 1)) == (Match.YES, False)
    told = around.premises(replace(HERE, migration_ports=(8080, 8081)), "ports 50000 - 50009\nlistening 1F90")
    assert (told.ports, told.spare_port, told.listening) == ((8080, 8081), 8081, frozenset({8080}))


def test_where_the_configuration_names_no_ports_the_last_one_of_the_peers_own_is_knocked_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "etc/libvirt").mkdir(parents=True)
        conf = tmp_path / "etc/libvirt/qemu.conf"
        conf.write_text(f"migration_port_min = {port - 9}\nmigration_port_max = {port}\n")
        assert knocked(tmp_path, server, None) == (Match.YES, True)
        conf.write_text(f"#migration_port_max = {port}\n")
        assert knocked(tmp_path, server, None) == (Match.YES, False)


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
    found = around.premises(HERE, said)
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
    found = around.premises(HERE, text)
    assert found.after_drbd == {"libvirtd.service": True, "virtqemud.service": False}
    unused = text.replace("=enabled", "=disabled").replace("=active", "=inactive")
    assert around.premises(HERE, unused).after_drbd == {}


def program(folder: Path, name: str, says: str) -> None:
    made = folder / name
    made.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
    made.chmod(0o755)


def test_what_a_node_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sys/module/drbd").mkdir(parents=True)
    (tmp_path / "sys/module/drbd/version").write_text("9.3.3\n")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    program(tmp_path / "bin", "drbdadm", "DRBDADM_BUILDTAG=x\nDRBDADM_API_VERSION=2\nDRBDADM_VERSION=9.22.0")
    program(tmp_path / "bin", "sshd", "port 22\nmaxauthtries 6\nmaxsessions 4")
    program(tmp_path / "bin", "systemctl", "Id=libvirtd.service\nAfter=a.service\nActiveState=active\nUnitFileState=x")
    found = storage(tmp_path, HERE).vitals("node1", ["sh", "no-such-program", "stat"])
    assert (found.module, found.utils, found.max_sessions) == ("9.3.3", "9.22.0", 4)
    assert found.lacking == {"no-such-program"}
    assert found.after_drbd == {"libvirtd.service": False}
    # This machine's own clock, and no further off than it says (which is not long).
    assert abs(found.clock_s - (time.time() - time.monotonic())) <= found.clock_error_s + 0.02
    assert found.clock_error_s < 5


def test_a_node_that_has_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("drbdadm", "sshd", "systemctl"):
        program(tmp_path / "bin", name, "it does not work")
    found = storage(tmp_path, HERE).vitals("node1", [])
    assert (found.module, found.utils, found.max_sessions) == ("", "", None)
    assert (found.lacking, found.after_drbd) == (frozenset(), {})


def test_a_slow_node_says_its_time_last() -> None:
    """It worked for 8 of the 9 s: only the remaining one is the answer's way."""
    found = around.vitals("node1", "took 800\nat 5000.5", begun=100.0, ended=109.0)
    assert (found.clock_s, found.clock_error_s) == (5000.5 - 108.5, 0.5)
    quick = around.vitals("node1", "took 120\nat 5000.5", begun=100.0, ended=101.0)
    assert quick.clock_error_s == 0


def test_evidence_is_what_the_node_has_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "var/log/libvirt/qemu").mkdir(parents=True)
    (tmp_path / "var/log/libvirt/qemu/a guest.log").write_text("1\n= libvirtd\n 2\n")
    (tmp_path / "sys/module/drbd").mkdir(parents=True)
    (tmp_path / "sys/module/drbd/version").write_text("9.3.3\n")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("drbdsetup", "journalctl"):
        made = tmp_path / "bin" / name
        made.write_text(f'#!/bin/sh\necho "{name} $*"\n')
        made.chmod(0o755)
    found = storage(tmp_path, HERE).evidence("node1", "a guest")
    # A line of a log that looks like the head of a section is none.
    assert found["qemu"] == "1\n= libvirtd\n 2\n"
    assert found["drbd-show"] == "drbdsetup show\n"
    assert found["drbd-status"].startswith("drbdsetup status --verbose")
    assert found["libvirtd"].startswith("journalctl -q -n 300")
    assert set(found) == {
        *("drbd-show", "drbd-status", "drbd-events", "qemu", "libvirtd-log", "libvirtd", "kernel", "guards"),
    }
    elsewhere = storage(tmp_path, HERE).evidence("node1", "../libvirt/qemu/a guest")
    assert "qemu" not in elsewhere
