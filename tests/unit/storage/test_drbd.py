"""The adapter against a drbdsetup that answers as real ones did and notes what it was told."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lvmigrate.errors import Code, CommandFailed, DeviceHeld, TokenLost, UsageError
from lvmigrate.protocols import Storage, Watch
from lvmigrate.replication import ConnectionOptions, Lineage, OtherHand, Role, Surroundings, VerifyEnd
from lvmigrate.token import Errand, Token
from storage.drbd import DrbdStorage
from storage.watch import ReplicationWatch
from tests.unit.storage.conftest import TRANSCRIPTS

TOKEN = Token(
    uuid="0b6f0c3e-0000-4000-8000-000000000001",
    instance="db1",
    id="ours",
    holder="a test",
    lease_s=60,
    errand=Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False),
)
THEIRS = replace(TOKEN, id="theirs", holder="another")
Make = Callable[[str], Any]


def contract(storage: DrbdStorage, watch: ReplicationWatch) -> tuple[Storage, Watch]:
    """The adapter fulfils the core's Protocols: this is checked by mypy."""
    return storage, watch


def test_observe_tells_what_was_asked_for(fake: Make, storage: DrbdStorage) -> None:
    fake("drbd93")
    seen = storage.observe("node1", ["r1", "nosuch"])
    assert list(seen) == ["r1"]
    assert [v.minor for v in seen["r1"].volumes] == [10, 11]
    assert seen["r1"].in_step_with("node2")


def test_options_of_9_and_84(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    found = storage.options("node1", "r1", "node2")
    assert found == ConnectionOptions(allow_two_primaries=False, protocol=None, auto_promote=False)
    assert found.verify_alg == "crc32c"
    node.put(
        "show", (node.root / "show").read_text().replace("net {", "net {\n protocol A;").replace("auto-promote", "x")
    )
    assert storage.options("node1", "r1", "node2") == ConnectionOptions(
        allow_two_primaries=False, protocol="A", auto_promote=True
    )
    with pytest.raises(CommandFailed) as caught:
        storage.options("node1", "r1", "node3")
    assert caught.value.code is Code.NOT_CONNECTED


@pytest.mark.parametrize(
    ("version", "name", "ends"),
    [("drbd93", "r1", "r1 1"), ("drbd84", "r0", "ipv4:10.77.0.1:7788 ipv4:10.77.0.2:7788")],
)
def test_two_primaries_are_allowed_and_taken_back(
    fake: Make, storage: DrbdStorage, version: str, name: str, ends: str
) -> None:
    node = fake(version)
    before = (node.root / "show").read_text().replace("net {", "net {\n protocol A;")
    node.put("show", before)
    assert storage.take_token("node1", TOKEN) is None
    options = storage.options("node1", name, "node2")
    storage.allow_two_primaries("node1", name, "node2", TOKEN)
    assert node.told == [f"net-options {ends} --protocol=C --allow-two-primaries=yes"]
    node.put("show", before.replace("protocol A;", "allow-two-primaries yes;"))
    # What is so already is not done again.
    storage.allow_two_primaries("node1", name, "node2", TOKEN)
    assert len(node.told) == 1
    storage.restore_options("node1", name, "node2", options, TOKEN)
    assert node.told[1:] == [f"net-options {ends} --protocol=A --allow-two-primaries=no"]
    node.put("show", before)
    storage.restore_options("node1", name, "node2", options, TOKEN)
    assert len(node.told) == 2


@pytest.mark.parametrize(("version", "name"), [("drbd93", "r1"), ("drbd84", "r0")])
@pytest.mark.parametrize("obeys", [True, False])
def test_what_is_told_of_the_options_was_read_back(
    fake: Make, storage: DrbdStorage, version: str, name: str, *, obeys: bool
) -> None:
    node = fake(version)
    if obeys:
        node.put(
            "react",
            f"""#!/bin/sh
case "$*" in *primaries=yes) sed -i 's/net {{/net {{ \\n allow-two-primaries yes;/' {node.root}/show ;; esac
case "$*" in *primaries=no) sed -i '/allow-two-primaries/d' {node.root}/show ;; esac
""",
        )
        (node.root / "react").chmod(0o755)
    assert storage.take_token("node1", TOKEN) is None
    before = storage.options("node1", name, "node2")
    assert not before.allow_two_primaries
    assert storage.allow_two_primaries("node1", name, "node2", TOKEN).allow_two_primaries is obeys
    assert storage.restore_options("node1", name, "node2", before, TOKEN) == before
    node.status = 10
    with pytest.raises(CommandFailed):
        storage.allow_two_primaries("node1", name, "node2", TOKEN)


@pytest.mark.parametrize(("version", "name"), [("drbd93", "r1"), ("drbd84", "r0")])
def test_two_primaries_are_not_forbidden_during_a_cut(
    fake: Make, storage: DrbdStorage, version: str, name: str
) -> None:
    node = fake(version)
    node.put("show", (node.root / "show").read_text().replace("net {", "net {\n allow-two-primaries yes;"))
    node.put("dump", (node.root / "dump").read_text().replace("connection:Connected", "connection:Connecting"))
    assert storage.take_token("node1", TOKEN) is None
    options = ConnectionOptions(allow_two_primaries=False, protocol=None, auto_promote=False)
    with pytest.raises(CommandFailed) as caught:
        storage.restore_options("node1", name, "node2", options, TOKEN)
    assert caught.value.code is Code.NOT_CONNECTED
    assert node.told == []


def test_a_connection_to_another_peer_is_no_connection_to_this_one(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    node.put("show", (node.root / "show").read_text().replace("net {", "net {\n allow-two-primaries yes;"))
    dump = (node.root / "dump").read_text()
    link = next(line for line in dump.splitlines() if line.startswith("exists connection"))
    other = link.replace("peer-node-id:1", "peer-node-id:2").replace("node2", "node3")
    node.put("dump", dump.replace(link, link.replace(":Connected", ":Connecting") + "\n" + other))
    assert storage.take_token("node1", TOKEN) is None
    options = ConnectionOptions(allow_two_primaries=False, protocol=None, auto_promote=False)
    with pytest.raises(CommandFailed):
        storage.restore_options("node1", "r1", "node2", options, TOKEN)


@pytest.mark.parametrize(
    ("version", "name", "told"), [("drbd93", "r1", ["primary r1"]), ("drbd84", "r0", ["primary 0"])]
)
def test_promote_and_demote(fake: Make, storage: DrbdStorage, version: str, name: str, told: list[str]) -> None:
    node = fake(version)
    assert storage.take_token("node1", TOKEN) is None
    storage.promote("node1", name, TOKEN)
    assert node.told == told
    # Already Secondary: nothing to do.
    storage.demote("node1", name, TOKEN)
    assert node.told == told
    node.put("dump", (node.root / "dump").read_text().replace("role:Secondary", "role:Primary"))
    storage.demote("node1", name, TOKEN)
    assert node.told == [*told, *(word.replace("primary", "secondary") for word in told)]


#: As /proc/net/tcp writes a connection, such as 10.77.0.1:7788 to 10.77.0.2: bytes not acknowledged, retransmissions.
_SOCKET = "   1: {own} {peer} 01 {waits:08X}:00000000 01:00000014 {again:08X}     0        0 4711 2 0 20 4 0 10 -1\n"
_OURS = {"own": "01004D0A:1E6C", "peer": "02004D0A:A1B2"}
_META = {"own": "01004D0A:A1B3", "peer": "02004D0A:1E6C"}


@pytest.mark.parametrize(
    ("sockets", "silent"),
    [
        ([], False),
        ([{**_OURS, "waits": 0, "again": 0}], False),
        # Nothing of it is acknowledged, though nothing was sent again yet: a busy node takes its time.
        ([{**_OURS, "waits": 900, "again": 0}], True),
        ([{**_OURS, "waits": 0, "again": 0}, {**_META, "waits": 72, "again": 1}], True),
        ([{"own": "01004D0A:A1B2", "peer": "02004D0A:1E6C", "waits": 72, "again": 10}], True),
        # Somebody else's.
        ([{**_OURS, "own": "01004D0A:1E6D", "waits": 72, "again": 1}], False),
        ([{**_OURS, "peer": "03004D0A:A1B2", "waits": 72, "again": 1}], False),
    ],
)
def test_nothing_is_promoted_beside_a_silent_peer(
    fake: Make,
    storage: DrbdStorage,
    sockets: list[dict[str, Any]],
    silent: bool,  # noqa: FBT001
) -> None:
    """8.4 would promote alone as soon as it notices, and the copies would have parted."""
    node = fake("drbd84")
    (node.root / "proc/net").mkdir(parents=True)
    node.put("proc/net/tcp", "  sl  local_address rem_address\n" + "".join(_SOCKET.format(**it) for it in sockets))
    assert storage.take_token("node1", TOKEN) is None
    if silent:
        with pytest.raises(CommandFailed) as caught:
            storage.promote("node1", "r0", TOKEN, beside="node2")
        assert (caught.value.code, node.told) == (Code.NOT_CONNECTED, [])
        storage.promote("node1", "r0", TOKEN)  # a failover: the peer need not answer
    else:
        storage.promote("node1", "r0", TOKEN, beside="node2")
    assert node.told == ["primary 0"]


def test_a_busy_link_is_not_a_silent_one(fake: Make, storage: DrbdStorage) -> None:
    """There is always something to be acknowledged; now and then it is less, on each of the two sockets."""
    node = fake("drbd84")
    (node.root / "proc/net").mkdir(parents=True)
    waits = itertools.chain([(300, 72), (900, 72), (800, 72), (900, 80)], itertools.repeat((950, 40)))
    looks = []

    def look() -> None:
        for data, ping in waits:
            looks.append((data, ping))
            sockets = [{**_OURS, "waits": data, "again": 0}, {**_META, "waits": ping, "again": 0}]
            (node.root / "tcp").write_text("".join(_SOCKET.format(**it) for it in sockets))
            (node.root / "tcp").rename(node.root / "proc/net/tcp")
            if ended.wait(0.3):
                return

    assert storage.take_token("node1", TOKEN) is None
    ended = threading.Event()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        storage.promote("node1", "r0", TOKEN, beside="node2")
    finally:
        ended.set()
        thread.join()
    assert node.told == ["primary 0"]
    assert looks[-1] == (950, 40)


@pytest.mark.parametrize(("version", "name"), [("drbd93", "r1"), ("drbd84", "r0")])
def test_nothing_is_promoted_beside_a_peer_that_is_not_connected(
    fake: Make, storage: DrbdStorage, version: str, name: str
) -> None:
    node = fake(version)
    assert storage.take_token("node1", TOKEN) is None
    storage.promote("node1", name, TOKEN, beside="node2")
    (told,) = node.told
    alone(node, "UpToDate", "UpToDate")
    with pytest.raises(CommandFailed) as caught:
        storage.promote("node1", name, TOKEN, beside="node2")
    assert (caught.value.code, node.told) == (Code.NOT_CONNECTED, [told])
    storage.promote("node1", name, TOKEN)
    assert node.told == [told, told]


def test_nothing_is_promoted_beside_a_silent_peer_of_ipv6(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd84")
    node.put("show", re.sub(r"ipv4 10\.77\.0\.(\d)", r"ipv6 [fd00::\1]", (node.root / "show").read_text()))
    (node.root / "proc/net").mkdir(parents=True)
    text = _SOCKET.format(own=f"{'0' * 32}:1E6C", peer=f"{'F' * 32}:A1B2", waits=1, again=1)
    node.put("proc/net/tcp6", text)
    assert storage.take_token("node1", TOKEN) is None
    with pytest.raises(CommandFailed):
        storage.promote("node1", "r0", TOKEN, beside="node2")
    node.put("proc/net/tcp6", text.replace(" 01 00000001:", " 01 00000000:"))
    storage.promote("node1", "r0", TOKEN, beside="node2")
    assert node.told == ["primary 0"]


def alone(node: Any, *disks: str) -> None:
    """Its peer is gone, and its copies are in these states."""
    left = iter(disks)
    dump = (node.root / "dump").read_text().replace("connection:Connected", "connection:Connecting")
    node.put("dump", re.sub(r"(?<= )disk:\w+", lambda _: f"disk:{next(left)}", dump))


@pytest.mark.parametrize(
    ("version", "name", "disks", "told"),
    [
        ("drbd93", "r1", ("Outdated", "UpToDate"), ["primary r1 --force"]),
        ("drbd84", "r0", ("Consistent",), ["primary 0 --force"]),
    ],
)
def test_an_old_copy_is_promoted_by_force(
    fake: Make, storage: DrbdStorage, version: str, name: str, disks: tuple[str, ...], told: list[str]
) -> None:
    node = fake(version)
    alone(node, *disks)
    assert storage.take_token("node1", TOKEN) is None
    storage.promote_by_force("node1", name, TOKEN)
    assert node.told == told


@pytest.mark.parametrize("bad", ["Inconsistent", "Diskless", "Failed", "Attaching", "Negotiating", "DUnknown"])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_whole_is_not_promoted_by_force(fake: Make, storage: DrbdStorage, bad: str, where: int) -> None:
    node = fake("drbd93")
    alone(node, *[bad if volume == where else "Outdated" for volume in range(2)])
    assert storage.take_token("node1", TOKEN) is None
    with pytest.raises(CommandFailed) as caught:
        storage.promote_by_force("node1", "r1", TOKEN)
    assert (caught.value.code, caught.value.detail) == (Code.NOT_UPTODATE, f"a copy is {bad}")
    assert node.told == []


@pytest.mark.parametrize("version", ["drbd93", "drbd84"])
def test_beside_a_peer_nothing_is_promoted_by_force(fake: Make, storage: DrbdStorage, version: str) -> None:
    node = fake(version)
    node.put("dump", re.sub(r"(?<= )disk:\w+", "disk:Outdated", (node.root / "dump").read_text()))
    assert storage.take_token("node1", TOKEN) is None
    with pytest.raises(CommandFailed) as caught:
        storage.promote_by_force("node1", "r1" if version == "drbd93" else "r0", TOKEN)
    assert (caught.value.code, caught.value.detail) == (Code.NOT_UPTODATE, "its connection is Connected")
    assert node.told == []


def test_what_has_no_volume_is_not_promoted_by_force(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    node.put("dump", "exists resource name:r1 role:Secondary suspended:no\nexists -\n")
    assert storage.take_token("node1", TOKEN) is None
    with pytest.raises(CommandFailed) as caught:
        storage.promote_by_force("node1", "r1", TOKEN)
    assert caught.value.detail == "it has no volume"
    assert node.told == []


def test_84_is_told_every_minor(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    node.put("sys/module/drbd/version", "8.4.11\n")
    assert storage.take_token("node1", TOKEN) is None
    storage.promote("node1", "r1", TOKEN)
    assert sorted(node.told) == ["primary 10", "primary 11"]


@pytest.mark.parametrize("action", ["promote", "promote_by_force", "demote", "allow_two_primaries", "restore_options"])
def test_without_the_token_nothing_is_done(fake: Make, storage: DrbdStorage, action: str) -> None:
    node = fake("drbd93")
    assert storage.take_token("node1", THEIRS) is None
    options = ConnectionOptions(allow_two_primaries=True, protocol="C", auto_promote=False)
    acts: dict[str, Callable[[], object]] = {
        "promote": lambda: storage.promote("node1", "r1", TOKEN),
        "promote_by_force": lambda: storage.promote_by_force("node1", "r1", TOKEN),
        "demote": lambda: storage.demote("node1", "r1", TOKEN),
        "allow_two_primaries": lambda: storage.allow_two_primaries("node1", "r1", "node2", TOKEN),
        "restore_options": lambda: storage.restore_options("node1", "r1", "node2", options, TOKEN),
    }
    for _ in range(2):
        with pytest.raises(TokenLost):
            acts[action]()
        storage.drop_token("node1", THEIRS)
    assert node.told == []


@pytest.mark.parametrize(
    ("status", "said", "error", "hint"),
    [
        (11, "r1: State change failed: (-1) Multiple primaries not allowed by config", CommandFailed, "cleanup"),
        (17, "r1: State change failed: (-2) Need access to UpToDate data", CommandFailed, "resynchronisation"),
        (11, "r1: State change failed: (-25) No quorum", CommandFailed, "quorum"),
        (20, "something new", CommandFailed, "kernel log of node1"),
        (127, "sh: 1: drbdsetup: not found", CommandFailed, "drbd-utils"),
    ],
)
def test_what_drbdsetup_says_is_kept_and_explained(
    fake: Make, storage: DrbdStorage, status: int, said: str, error: type[CommandFailed], hint: str
) -> None:
    node = fake("drbd93")
    assert storage.take_token("node1", TOKEN) is None
    node.status = status
    node.put("said", f"{said}\n")
    with pytest.raises(error) as caught:
        storage.promote("node1", "r1", TOKEN)
    assert str(caught.value) == "Promoting r1 failed on node1."
    assert caught.value.detail == said
    assert caught.value.code is Code.STORAGE_FAILED
    assert caught.value.status == status
    assert hint in caught.value.hint


@pytest.mark.parametrize(("version", "name"), [("drbd93", "r1"), ("drbd84", "r0")])
def test_a_device_that_the_kernel_calls_held(fake: Make, storage: DrbdStorage, version: str, name: str) -> None:
    node = fake(version)
    node.put("dump", (node.root / "dump").read_text().replace("role:Secondary", "role:Primary"))
    assert storage.take_token("node1", TOKEN) is None
    node.status = 11
    node.put("said", "r1: State change failed: (-12) Device is held open by someone\ndrbd10 opened by bash (pid 5)\n")
    with pytest.raises(DeviceHeld) as caught:
        storage.demote("node1", name, TOKEN)
    assert "opened by bash (pid 5)" in caught.value.detail
    assert caught.value.code is Code.DEVICE_HELD
    # udev may have had it: it was tried more than once.
    assert len(node.told) > 1


@pytest.mark.parametrize(
    ("version", "name", "volumes"), [("drbd93", "r1", 2), ("drbd84", "r0", 2), ("drbd84", "r0", 1)]
)
def test_where_nobody_can_look_who_has_it_open_nothing_is_demoted(
    fake: Make, storage: DrbdStorage, version: str, name: str, volumes: int
) -> None:
    """But a single volume of 8.4, whose kernel refuses for any opener by itself."""
    node = fake(version)
    dump = (node.root / "dump").read_text().replace("role:Secondary", "role:Primary")
    if version == "drbd84" and volumes == 2:
        dump += "exists device name:r0 volume:1 minor:1 disk:UpToDate\n"
    node.put("dump", dump)
    assert storage.take_token("node1", TOKEN) is None
    node.put("bin/find", "#!/bin/sh\nexit 1\n")
    (node.root / "bin/find").chmod(0o755)
    if volumes == 1:
        storage.demote("node1", name, TOKEN)
    else:
        with pytest.raises(CommandFailed, match=f"Demoting {name} failed"):
            storage.demote("node1", name, TOKEN)
    assert node.told == (["secondary 0"] if volumes == 1 else [])


def test_a_demotion_that_is_refused_for_another_reason_is_not_tried_again(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    node.put("dump", (node.root / "dump").read_text().replace("role:Secondary", "role:Primary"))
    assert storage.take_token("node1", TOKEN) is None
    node.status = 11
    node.put("said", "r1: State change failed: (-10) State change was refused by peer node\n")
    with pytest.raises(CommandFailed, match="Demoting r1 failed"):
        storage.demote("node1", "r1", TOKEN)
    assert node.told == ["secondary r1"]


@pytest.mark.parametrize(
    ("version", "name", "told"),
    [
        ("drbd93", "r1", ["net-options r1 1 --protocol=A --allow-two-primaries=no", "connect r1 1"]),
        ("drbd84", "r0", ["adm connect r0"]),
    ],
)
@pytest.mark.parametrize("state", ["StandAlone", "Connected", "Connecting"])
def test_only_what_is_standalone_is_connected_again_and_with_its_options(
    fake: Make, storage: DrbdStorage, version: str, name: str, told: list[str], state: str
) -> None:
    node = fake(version)
    program = node.root / "bin/drbdadm"
    program.write_text(f'#!/bin/sh\necho "adm $*" >>{node.root}/told\n')
    program.chmod(0o755)
    node.put("dump", (node.root / "dump").read_text().replace("connection:Connected", f"connection:{state}"))
    assert storage.take_token("node1", TOKEN) is None
    options = ConnectionOptions(allow_two_primaries=False, protocol="A", auto_promote=False)
    storage.reconnect("node1", name, "node2", options, TOKEN)
    assert node.told == (told if state == "StandAlone" else [])


@pytest.mark.parametrize(("version", "name"), [("drbd93", "r1"), ("drbd84", "r0")])
def test_whether_a_node_is_primary_is_no_part_of_its_data_s_generation(
    fake: Make, storage: DrbdStorage, version: str, name: str
) -> None:
    node = fake(version)
    for digits in ("01", "23", "45", "67", "89", "AB", "CD", "EF"):
        for last in digits:
            node.put("gi", f"97B6BDDCDC61B91{last}:0000000000000000:0000000000000000:0000000000000000:1:1:1:0:0:0:0\n")
            found = storage.generations("node1", (name,))
            assert set(found.values()) == {f"97B6BDDCDC61B91{digits[0]}"}


#: Of a device made without an initial resynchronisation, before and after QEMU opened it on the target (9.3.3).
FIRST, SECOND, NONE = "C48F90C6029C784C", "210C0FE8CEAB1432", "0000000000000000"


@pytest.mark.parametrize("version", ["drbd93", "drbd84"])
@pytest.mark.parametrize(
    ("uuids", "nine", "eight"),
    [
        ((FIRST, NONE, NONE, NONE), FIRST, FIRST),
        # DRBD 9.3 begins it beside the peer, at the first opening for writing: nothing has parted.
        ((SECOND, NONE, FIRST, NONE), FIRST, SECOND),
        (("210C0FE8CEAB1433", NONE, "C48F90C6029C784D", NONE), FIRST, SECOND),
        # Without the peer: it lacks what was written since.
        ((SECOND, FIRST, NONE, NONE), SECOND, SECOND),
        ((SECOND, FIRST, "1111111111111110", NONE), SECOND, SECOND),
        # Whatever has a third one has met more than that.
        ((SECOND, NONE, FIRST, "1111111111111110"), SECOND, SECOND),
    ],
)
def test_the_second_generation_of_9_that_begins_beside_the_peer_is_no_other(
    fake: Make, storage: DrbdStorage, version: str, uuids: tuple[str, ...], nine: str, eight: str
) -> None:
    fake(version).put("gi", f"{':'.join(uuids)}:1:1:0:0:0:0:0:1:0:0:0:1\n")
    name, generation = ("r1", nine) if version == "drbd93" else ("r0", eight)
    assert set(storage.generations("node1", (name,)).values()) == {generation}


def test_a_resource_that_is_not_there(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    node.put("dump", "exists -\n")
    assert storage.take_token("node1", TOKEN) is None
    for act in (lambda: storage.promote("node1", "r1", TOKEN), lambda: storage.openers("node1", ["r1"])):
        with pytest.raises(CommandFailed) as caught:
            act()
        assert "drbdadm up" in caught.value.hint
    # drbdsetup show prints nothing then, and succeeds or does not.
    node.put("show", "")
    for ask in (
        lambda: storage.options("node1", "r1", "node2"),
        lambda: storage._remote.act("node1", "a test", TOKEN, "set_options", "r1", "1", "C", "yes", "r1", "1"),
    ):
        with pytest.raises(CommandFailed) as caught:
            ask()
        assert "drbdadm up" in caught.value.hint


def test_a_configuration_that_cannot_be_read(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    program = node.root / "bin/drbdsetup"
    program.write_text(
        program.read_text().replace('cat "$here/show"; exit 0', 'echo no >&2; cat "$here/show"; exit 20')
    )
    with pytest.raises(CommandFailed) as caught:
        storage.options("node1", "r1", "node2")
    assert (caught.value.status, caught.value.detail) == (20, "no")


def test_a_node_without_the_module(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    (node.root / "sys/module/drbd/version").unlink()
    with pytest.raises(CommandFailed) as caught:
        storage.observe("node1", ["r1"])
    assert "modprobe" in caught.value.hint
    with pytest.raises(CommandFailed) as caught, storage.watch(["node1"], ["r1"]):
        pass
    assert "modprobe" in caught.value.hint
    # A node without DRBD has no DRBD devices: that is an answer.
    assert storage.locate("node1", ["/dev/null", "/nowhere"]) == {}


def test_no_names_need_no_module(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    (node.root / "sys/module/drbd/version").unlink()
    node.put("dump", "nonsense that nobody reads\n")
    assert storage.observe("node1", []) == {}
    assert storage.observe("node1") == {}
    assert storage.locate("node1", []) == {}
    assert storage.openers("node1", []) == ()
    assert storage.two_primaries("node1") == frozenset()
    with storage.watch(["node1", "node2"], []) as watch:
        assert watch.breaks() == watch.gaps() == ()
        assert watch.wait(lambda: True, 0)
        assert not watch.wait(lambda: False, 0.01)


@pytest.mark.parametrize(("version", "name"), [("drbd93", "r1"), ("drbd84", "r0")])
def test_all_resources_and_where_two_primaries_are_allowed(
    fake: Make, storage: DrbdStorage, version: str, name: str
) -> None:
    node = fake(version)
    assert list(storage.observe("node1")) == [name]
    assert storage.two_primaries("node1") == frozenset()
    node.put("show", (node.root / "show").read_text().replace("net {", "net {\n allow-two-primaries yes;"))
    assert storage.two_primaries("node1") == {name}


def test_devices_that_are_none_of_drbds(fake: Make, storage: DrbdStorage) -> None:
    fake("drbd93")
    assert storage.locate("node1", ["/dev/null", "/nowhere", "/", "a\nb", "-x"]) == {}


@pytest.mark.parametrize("name", ["", "-f", "a b", "a/b", "all\nx", "r0:node2"])
def test_what_is_no_name_reaches_no_tool(fake: Make, storage: DrbdStorage, name: str) -> None:
    node = fake("drbd93")
    with pytest.raises(UsageError):
        storage.promote("node1", name, TOKEN)
    assert node.told == []


def test_an_unknown_node(storage: DrbdStorage) -> None:
    with pytest.raises(UsageError, match="no node node9"):
        storage.observe("node9", ["r1"])


def test_a_watch_tells_what_the_kernels_say(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    node.put("events", "change resource name:r1 role:Primary\n")
    with storage.watch(["node1", "node2"], ["r1"]) as watch:
        assert watch.wait(
            lambda: all(
                (r := watch.resource(n, "r1")) is not None and r.role is Role.PRIMARY for n in ("node1", "node2")
            ),
            5,
        )
        assert watch.dual_primary_s() > 0
        # Both play node1, whose only peer is node2.
        assert all("node2 has no connection to node1" in words for words in watch.breaks())


def test_configurations_are_never_logged(
    fake: Make, storage: DrbdStorage, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    node = fake("drbd93")
    node.put("show", (node.root / "show").read_text().replace("net {", 'net { shared-secret "hush";'))
    with caplog.at_level(logging.DEBUG):
        storage.options("node1", "r1", "node2")
    printed = capsys.readouterr()
    assert "hush" not in printed.out + printed.err + caplog.text
    assert re.search(r"ran_on_node.*node1", printed.out)


# ---- what is around them


def program(node: Any, name: str, text: str) -> None:
    file = node.root / "bin" / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


#: What ``drbdadm --dry-run adjust`` said where two primaries were on, and not in the configuration (recorded).
ADJUST_93 = (
    "drbdsetup net-options r1 1 --set-defaults --_name=node2 --connect-int=2 --timeout=20 --ping-int=2 --protocol=C"
)
ADJUST_84 = (
    "drbdsetup-84 net-options ipv4:10.77.0.11:7788 ipv4:10.77.0.12:7788 --set-defaults --connect-int=2 --timeout=20"
    " --ping-int=2 --protocol=C"
)


@pytest.mark.parametrize(
    ("version", "name", "adjust", "lasting"),
    [
        ("drbd93", "r1", "true", True),
        ("drbd93", "r1", f"echo '{ADJUST_93}'", False),
        ("drbd93", "r1", f"echo '{ADJUST_93} --allow-two-primaries=yes'", True),
        ("drbd93", "r1", "echo 'drbdsetup disk-options 10 --set-defaults'", True),
        ("drbd93", "r1", "echo 'drbdsetup connect r1 1'", False),
        ("drbd93", "r1", "echo 'r1 is not defined in your config' >&2; exit 1", False),
        ("drbd84", "r0", "true", True),
        ("drbd84", "r0", f"echo '{ADJUST_84}'", False),
    ],
)
def test_whether_two_primaries_are_configured_for_good(
    fake: Make, storage: DrbdStorage, version: str, name: str, adjust: str, *, lasting: bool
) -> None:
    node = fake(version)
    program(node, "drbdadm", f'[ "$*" = "--dry-run adjust {name}" ] || exit 3\n{adjust}')
    # What is not allowed now is not asked for.
    assert storage.surroundings("node1", [name]).two_primaries_for_good == frozenset()
    node.put("show", (node.root / "show").read_text().replace("net {", "net {\n allow-two-primaries yes;"))
    seen = storage.surroundings("node1", [name])
    assert seen.two_primaries_for_good == (frozenset({name}) if lasting else frozenset())
    assert seen.version == {"drbd93": "9.3.3", "drbd84": "8.4.11"}[version]
    assert node.told == []


def test_other_hands_are_recognised(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    program(node, "systemctl", 'case "$*" in *linstor-satellite) exit 0 ;; esac; exit 3')
    assert storage.surroundings("node1", ["r1"]).other_hands == ()
    for name, text in {
        "var/lib/linstor.d/r1.res": "resource r1 { }\n",
        "etc/drbd-reactor.d/web.toml": '[[promoter]]\n[promoter.resources.r1]\nstart = ["x.service"]\n',
        "var/lib/pacemaker/cib/cib.xml": '<nvpair id="a" name="drbd_resource" value="r1"/>\n',
    }.items():
        file = node.root / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert storage.surroundings("node1", ["r1"]).other_hands == (
        OtherHand(program="linstor", resource="r1", active=True),
        OtherHand(program="drbd-reactor", resource="r1", active=False),
        OtherHand(program="pacemaker", resource="r1", active=False),
    )
    # A name is no pattern, and r1 is not r10.
    assert storage.surroundings("node1", ["r10", "r."]).other_hands == ()
    # Of drbd-reactor's files one that was disabled has another end, and a line that is a comment says nothing.
    promoter = node.root / "etc/drbd-reactor.d/web.toml"
    promoter.rename(promoter.with_name("web.toml.disabled"))
    (node.root / "var/lib/pacemaker/cib/cib.xml").rename(node.root / "var/lib/pacemaker/cib/cib-7.raw")
    node.put("etc/drbd-reactor.toml", "# [promoter.resources.r1]\n")
    assert {hand.program for hand in storage.surroundings("node1", ["r1"]).other_hands} == {"linstor"}
    node.put("etc/drbd-reactor.toml", '[[promoter]]\n  [promoter.resources."r1"]\n')
    assert {hand.program for hand in storage.surroundings("node1", ["r1"]).other_hands} == {"linstor", "drbd-reactor"}
    assert storage.surroundings("node1", []) == Surroundings()


@pytest.mark.parametrize("tool", ["find", "stat"])
def test_tools_that_find_nothing_do_not_say_that_nobody_has_it_open(
    fake: Make, storage: DrbdStorage, tool: str
) -> None:
    node = fake("drbd93")
    assert storage.openers("node1", ["r1"]) == ()
    program(node, tool, "exit 0")
    with pytest.raises(CommandFailed) as caught:
        storage.openers("node1", ["r1"])
    assert (caught.value.status, caught.value.detail) == (94, "find or stat does not do what GNU's do")


# ---- online verify

VERIFIES = {
    "drbd84": ("r0", 0, "verify 0 --start=0"),
    "drbd93": ("r1", 1, "verify r1 1 1 --start=0"),
}
VERIFY = pytest.mark.parametrize(("version", "name", "volume", "line"), [(v, *words) for v, words in VERIFIES.items()])


@VERIFY
def test_a_verify_begins_at_the_first_block_and_leaves_nothing(
    fake: Make, storage: DrbdStorage, version: str, name: str, volume: int, line: str
) -> None:
    node = fake(version)
    storage.begin_verify("node1", name, volume, "node2", TOKEN.uuid)
    assert node.told == [line]
    assert list(node.tokens.iterdir()) == []
    node.status = 11
    node.put("said", "State change failed: (-14) Need a verify algorithm to start online verify")
    with pytest.raises(CommandFailed) as caught:
        storage.begin_verify("node1", name, volume, "node2", TOKEN.uuid)
    assert (caught.value.status, caught.value.code) == (11, Code.STORAGE_FAILED)
    assert "verify-alg" in caught.value.hint
    assert list(node.tokens.iterdir()) == []


@VERIFY
def test_a_verify_does_not_begin_in_a_move(
    fake: Make, storage: DrbdStorage, version: str, name: str, volume: int, line: str
) -> None:
    node = fake(version)
    assert storage.take_token("node1", TOKEN) is None
    with pytest.raises(CommandFailed) as caught:
        storage.begin_verify("node1", name, volume, "node2", TOKEN.uuid)
    assert caught.value.code is Code.LOCKED
    assert node.told == []
    assert storage.traces("node1").token(TOKEN.uuid) is not None
    storage.drop_token("node1", TOKEN)
    storage.begin_verify("node1", name, volume, "node2", TOKEN.uuid)
    assert node.told == [line]


@VERIFY
@pytest.mark.parametrize(
    "change",
    [
        ("replication:Established", "replication:VerifyS"),
        ("replication:Established", "replication:Off"),
        ("connection:Connected", "connection:Connecting"),
    ],
    ids=str,
)
def test_a_verify_needs_replication(  # noqa: PLR0917 -- pytest's
    fake: Make, storage: DrbdStorage, version: str, name: str, volume: int, line: str, change: tuple[str, str]
) -> None:
    node = fake(version)
    storage.options("node1", name, "node2")
    node.put("dump", (node.root / "dump").read_text().replace(*change))
    with pytest.raises(CommandFailed) as caught:
        storage.begin_verify("node1", name, volume, "node2", TOKEN.uuid)
    assert caught.value.code is Code.NOT_CONNECTED
    assert line not in node.told
    with pytest.raises(CommandFailed):  # there is no such volume
        storage.begin_verify("node1", name, 7, "node2", TOKEN.uuid)
    assert node.told == []


#: As drbd_resync_finished() of both modules writes it; other resources, peers and volumes, and ends of other things.
_RATE = "(total 7 sec; paused 0 sec; 936 K/sec)"
VERIFY_LOG = "".join(
    f"2026-11-24T17:17:{second}.000001+0000 node1 kernel: {said}\n"
    for second, said in enumerate(
        (
            f"drbd r1/0 drbd10 node2: Online verify done {_RATE}",
            f"drbd r1/0 drbd10 node2: Online verify done but 3 4k blocks skipped {_RATE}",
            f"drbd r1/1 drbd11 node3: Online verify done {_RATE}",
            "drbd r1/0 drbd10 node2: Online verify found 4 4k blocks out of sync!",
            f"drbd r1/0 drbd10 node2: Resync done {_RATE}",
            f"drbd r11/0 drbd10 node2: Online verify done {_RATE}",
            f"drbd r0/0 drbd0: Online verify done {_RATE}",
            f"block drbd3: Online verify  done {_RATE}",
        ),
        10,
    )
)


def test_the_end_of_a_verify_is_in_the_kernels_log(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    program(node, "journalctl", f"cat <<'END'\n{VERIFY_LOG}END")
    assert storage.verify_ends("node1", "r1", "node2") == {
        0: VerifyEnd(at="2026-11-24T17:17:11.000001+0000", skipped_kib=12)
    }
    assert storage.verify_ends("node1", "r1", "node3") == {1: VerifyEnd(at="2026-11-24T17:17:12.000001+0000")}
    program(node, "journalctl", "exit 1")
    program(node, "dmesg", "exit 1")
    assert storage.verify_ends("node1", "r1", "node2") == {}


def test_the_end_of_a_verify_in_the_log_of_84(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd84")
    program(node, "journalctl", f"cat <<'END'\n{VERIFY_LOG}END")
    assert storage.verify_ends("node1", "r0", "node2") == {0: VerifyEnd(at="2026-11-24T17:17:16.000001+0000")}
    program(node, "journalctl", f"cat <<'END'\n{VERIFY_LOG.replace('drbd3', 'drbd0')}END")
    assert storage.verify_ends("node1", "r0", "node2") == {0: VerifyEnd(at="2026-11-24T17:17:17.000001+0000")}


# ---- where the data come from

GI = "278088B07E2C80DF:1111111111111111:2222222222222222:0000000000000000:1:1:0:1:0:0:0"
PROC_84 = """version: 8.4.11 (api:1/proto:86-101)
 0: cs:StandAlone ro:Primary/Unknown ds:UpToDate/DUnknown   r-----
    ns:0 nr:0 dw:0 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:256
10: cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate C r-----
    ns:0 nr:0 dw:0 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:7
"""
LOG_84 = """2026-11-24T17:17:10+0000 node1 kernel: drbd r0: conn( Connected -> NetworkFailure )
2026-11-24T17:17:13+0000 node1 kernel: drbd r0: peer( Secondary -> Unknown ) conn( Connected -> Disconnecting )
2026-11-24T17:17:14+0000 node1 kernel: drbd r01: peer( Secondary -> Unknown ) conn( Connected -> NetworkFailure )
2026-11-24T17:17:15+0000 node1 kernel: block drbd0: Split-Brain detected but unresolved, dropping connection!
"""


def test_the_lineage_of_84_that_forgot_its_connection(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd84")
    kept = [line for line in (node.root / "dump").read_text().splitlines() if "peer" not in line]
    node.put("dump", "\n".join(kept) + "\n")
    node.put("gi", GI)
    (node.root / "proc").mkdir()
    node.put("proc/drbd", PROC_84)
    program(node, "journalctl", f"cat <<'END'\n{LOG_84}END")
    assert storage.lineages("node1", "node2", ["r0"]) == {
        "r0/0": Lineage(
            current="278088B07E2C80DE",
            earlier=("1111111111111110", "2222222222222222"),
            changed_kib=256,
            lost_at=datetime(2026, 11, 24, 17, 17, 13, tzinfo=UTC),
        )
    }
    # The state is that of a resynchronisation too; what was cut off before is not lost again.
    later = """2026-11-24T17:18:00+0000 node1 kernel: drbd r0/0 drbd0: conn( Connected -> VerifyS )
2026-11-24T17:19:00+0000 node1 kernel: drbd r0: peer( Secondary -> Unknown ) conn( VerifyS -> NetworkFailure )
2026-11-24T17:20:00+0000 node1 kernel: drbd r0: conn( WFReportParams -> Disconnecting )
"""
    program(node, "journalctl", f"cat <<'END'\n{LOG_84}{later}END")
    (found,) = storage.lineages("node1", "node2", ["r0"]).values()
    assert found.lost_at == datetime(2026, 11, 24, 17, 19, tzinfo=UTC)
    node.put("gi", "no such minor")
    assert storage.lineages("node1", "node2", ["r0"]) == {}
    assert storage.lineages("node1", "node2", []) == {}


def test_the_lineage_of_9_is_asked_of_the_peer_that_is_meant(fake: Make, storage: DrbdStorage) -> None:
    node = fake("drbd93")
    asked = node.root / "asked"
    setup = node.root / "bin" / "drbdsetup"
    setup.write_text(setup.read_text().replace("get-gi*) cat", f'get-gi*) echo "$*" >>{asked}; cat'))
    dump = (node.root / "dump").read_text()
    other = "exists connection name:r1 peer-node-id:2 conn-name:node3 connection:Connected role:Secondary\n"
    node.put("dump", dump.replace("exists -", other + "exists -").replace("out-of-sync:0", "out-of-sync:12"))
    node.put("gi", GI)
    program(node, "journalctl", "exit 1")
    program(node, "dmesg", "exit 1")
    found = storage.lineages("node1", "node2", ["r1"])
    assert {name: (line.changed_kib, line.lost_at) for name, line in found.items()} == {
        "r1/0": (12, None),
        "r1/1": (12, None),
    }
    assert sorted(asked.read_text().splitlines()) == ["get-gi r1 1 0", "get-gi r1 1 1"]
    log = """2026-11-24T10:00:00+0000 node1 kernel: drbd r1 node2: conn( Connected -> NetworkFailure ) peer( Primary -> Unknown )
2026-11-24T12:00:00+0000 node1 kernel: drbd r1 node3: conn( Connected -> TearDown ) peer( Secondary -> Unknown ) [remote]
2026-11-24T12:00:01+0000 node1 kernel: drbd r1 node2: conn( NetworkFailure -> Unconnected ) [disconnected]
"""  # noqa: E501 -- the kernel's lines
    program(node, "journalctl", f"cat <<'END'\n{log}END")
    hours = {
        peer: {line.lost_at.hour for line in storage.lineages("node1", peer, ["r1"]).values() if line.lost_at}
        for peer in ("node2", "node3")
    }
    assert hours == {"node2": {10}, "node3": {12}}
    assert sorted(set(asked.read_text().splitlines()))[2:] == ["get-gi r1 2 0", "get-gi r1 2 1"]


@pytest.mark.parametrize(
    ("version", "until", "lost"),
    [
        ("drbd93", None, {"node2": 78.689849, "node3": 72.597799}),
        ("drbd93", 60, {"node2": 30.977795, "node3": 31.489443}),
        ("drbd84", None, {"node2": 144.802805}),
        # Split-brain: what connected for a moment, and parted again, was lost before.
        ("drbd84", 130, {"node2": 118.736049}),
    ],
)
def test_when_it_was_lost_by_a_recorded_log(
    fake: Make, storage: DrbdStorage, version: str, until: float | None, lost: dict[str, float]
) -> None:
    node, name = fake(version), {"drbd93": "r1", "drbd84": "r0"}[version]
    boot = datetime(2026, 11, 22, tzinfo=UTC)
    said = []
    for line in next((TRANSCRIPTS / version).glob("*kernel.log")).read_text().splitlines():
        seconds, words = line.removeprefix("[").split("] ", 1)
        if until is None or float(seconds) < until:
            when = (boot + timedelta(seconds=float(seconds))).isoformat(timespec="microseconds")
            said.append(f"{when} node1 kernel: {words.replace(' r0', f' {name}')}\n")
    program(node, "journalctl", f"cat <<'END'\n{''.join(said)}END")
    if version == "drbd93":
        third = "exists connection name:r1 peer-node-id:2 conn-name:node3 connection:Connecting role:Unknown\n"
        node.put("dump", (node.root / "dump").read_text().replace("exists -", third + "exists -"))
    node.put("gi", GI)
    for peer, at in lost.items():
        found = {line.lost_at for line in storage.lineages("node1", peer, [name]).values()}
        assert found == {boot + timedelta(seconds=at)}
