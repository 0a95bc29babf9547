"""What one call on a node starts there: a count of programs, each of which costs a busy node milliseconds.

The programs are real ones, or those that play a part in test_guard_script; each notes its name first.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lvmigrate.replication import ConnectionOptions
from lvmigrate.token import Guarded
from storage.drbd import DrbdStorage
from tests.unit.storage.test_guard_script import TOKEN, Host, eventually

__all__ = ["host"]

#: Everything that node.sh and guard.sh may start, but for cat, which the programs that play a part use themselves.
_PROGRAMS = (
    *("drbdsetup", "drbdadm", "systemctl", "systemd-run", "virsh", "timeout", "flock", "mv", "rm", "mkdir", "sleep"),
    *("find", "stat", "readlink", "sed", "grep", "tr", "head", "tail", "journalctl", "dmesg", "openssl"),
)
#: What one of these starts is its own.
_NOTING = """#!/bin/sh
[ -n "${{WITHIN-}}" ] || echo {name} >>{root}/started
WITHIN=1 exec {real} "$@"
"""
_OFF = ConnectionOptions(allow_two_primaries=False, protocol=None, auto_promote=False)


@pytest.fixture
def host(fake: Callable[[str], Host]) -> Host:
    made = Host(fake("drbd93"), "r1")
    for name in _PROGRAMS:
        real = made.root / "bin" / name
        real = real.rename(made.root / f"real-{name}") if real.exists() else Path(shutil.which(name) or "/bin/false")
        made.program(f"bin/{name}", _NOTING.format(name=name, root=made.root, real=real))
    made.tokens.mkdir(parents=True)
    return made


Started = Callable[[Callable[[], object]], list[str]]


@pytest.fixture
def started(host: Host, storage: DrbdStorage) -> Started:
    """What a call starts on the nodes, sorted; a call before it has loaded the shells that it runs in."""
    for node in ("node1", "node2"):
        storage.traces(node)

    def names(call: Callable[[], object]) -> list[str]:
        host.put("started", "")
        call()
        return sorted((host.root / "started").read_text().split())

    return names


def test_opening_and_closing(host: Host, storage: DrbdStorage, started: Started) -> None:
    guarded = [Guarded(resource="r1", peer="node2", options=_OFF)]
    assert started(lambda: storage.options("node1", "r1", "node2")) == ["drbdsetup"]
    assert started(lambda: storage.take_token("node1", TOKEN)) == ["flock", "mv"]
    # What the guard itself does is not counted, and how long it is waited for is not known.
    arming = [
        name for name in started(lambda: storage.arm_guard("node1", TOKEN, guarded, resume=True)) if name != "sleep"
    ]
    assert arming == [*["drbdsetup"] * 3, "flock", "mv", "systemd-run"]  # a look, two generations
    allowing = started(lambda: storage.allow_two_primaries("node1", "r1", "node2", TOKEN))
    assert allowing == [*["drbdsetup"] * 3, "flock"]  # the last one shows what is set then
    host.opened()
    assert started(lambda: storage.promote("node1", "r1", TOKEN)) == ["drbdsetup", "drbdsetup", "flock"]
    demoting = started(lambda: storage.demote("node1", "r1", TOKEN))
    assert demoting == ["drbdsetup", "drbdsetup", "find", "flock", "timeout"]  # which starts find, and that stat
    restoring = started(lambda: storage.restore_options("node1", "r1", "node2", _OFF, TOKEN))
    assert restoring == [*["drbdsetup"] * 4, "flock"]
    assert started(lambda: storage.disarm_guard("node1", TOKEN)) == ["flock", "rm"]
    assert started(lambda: storage.drop_token("node1", TOKEN)) == ["flock", "rm"]
    assert eventually(lambda: host.left == [])


def test_looking(storage: DrbdStorage, started: Started) -> None:
    assert started(lambda: storage.traces("node1")) == []
    assert (
        started(lambda: storage.locate("node1", ["/dev/null", "/nowhere"])) == ["drbdsetup"] * 3
    )  # one of them on node2
    assert started(lambda: storage.observe("node1", ["r1"])) == ["drbdsetup"]
    assert started(lambda: storage.two_primaries("node1")) == ["drbdsetup"]
    assert started(lambda: storage.openers("node1", ["r1"])) == ["drbdsetup", "find", "timeout"]
    assert started(lambda: storage.generations("node1", ["r1"])) == ["drbdsetup"] * 3
    assert started(lambda: storage.keepalive_s("node1")) == []
