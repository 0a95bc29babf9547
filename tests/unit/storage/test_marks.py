"""What is not of a disk: libvirt's keepalive, and shared storage."""

from __future__ import annotations

import math
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmigrate.errors import Code, CommandFailed, NodeUnreachable, UsageError
from lvmigrate.node import Node
from lvmigrate.protocols import Storage
from lvmigrate.replication import ConnectionOptions, Reach
from lvmigrate.token import Errand, Guarded, Token
from storage import DrbdStorage, SharedStorage
from storage.shell import Shell

TOKEN = Token(
    uuid="0b6f0c3e-0000-4000-8000-000000000002",
    instance="web1",
    id="ours",
    holder="a test",
    lease_s=60,
    errand=Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False),
)
OPTIONS = ConnectionOptions(allow_two_primaries=False, protocol=None, auto_promote=False)


@pytest.fixture
def nodes(node: Node) -> dict[str, Node]:
    return {"node1": node, "node2": replace(node, name="node2")}


@pytest.fixture
def shared(nodes: dict[str, Node], tmp_path: Path) -> Iterator[SharedStorage]:
    made = SharedStorage(nodes, [f"{tmp_path}/srv/"], root=str(tmp_path))
    yield made
    made.close()


def contract(storage: SharedStorage) -> Storage:
    """It fulfils the core's Protocol: this is checked by mypy."""
    return storage


# ---- keepalive


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 25),
        ("", 25),
        ("#keepalive_interval = 1\n#keepalive_count = 1\n", 25),
        ("keepalive_interval = 2\nkeepalive_count = 3 # few\n", 6),
        ("  keepalive_count=10\n", 50),
        ("keepalive_interval = 7\n", 35),
        ("keepalive_interval = -1\n", math.inf),
        ("keepalive_interval = 0\n", math.inf),
        ("keepalive_interval = 5\nkeepalive_count = 0\n", 0),
        ("admin_keepalive_interval = 1\nkeepalive_interval_x = 1\n", 25),
    ],
)
def test_the_keepalive_of_libvirt(storage: DrbdStorage, tmp_path: Path, text: str | None, seconds: float) -> None:
    if text is not None:
        (tmp_path / "etc/libvirt").mkdir(parents=True)
        (tmp_path / "etc/libvirt/qemu.conf").write_text(text)
    assert storage.keepalive_s("node1") == seconds


def test_a_keepalive_that_is_no_number(storage: DrbdStorage, tmp_path: Path) -> None:
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "etc/libvirt/qemu.conf").write_text('keepalive_interval = "five"\n')
    with pytest.raises(CommandFailed, match="keepalive_interval"):
        storage.keepalive_s("node1")


# ---- shared storage


def test_what_lies_below_its_directories_is_shared(shared: SharedStorage, tmp_path: Path) -> None:
    (tmp_path / "srv/sub").mkdir(parents=True)
    (tmp_path / "srv2").mkdir()
    for name in ("srv/a", "srv/sub/b", "srv2/c", "d"):
        (tmp_path / name).write_text("")
    (tmp_path / "srv/out").symlink_to(tmp_path / "d")
    (tmp_path / "in").symlink_to(tmp_path / "srv/a")
    paths = [
        f"{tmp_path}/{name}"
        for name in ("srv/a", "srv/sub/b", "srv2/c", "d", "srv/out", "in", "srv/none", "srv", "srv/../d")
    ]
    found = shared.shared("node1", paths)
    assert set(found) == {paths[0], paths[1], paths[5]}
    inode = (tmp_path / "srv/sub/b").stat().st_ino
    assert found[paths[1]] == Reach(what=f"sub/b in a declared directory (inode {inode})")
    assert found[paths[5]] == found[paths[0]]
    assert shared.shared("node1", []) == {}


def mounted(root: Path, kind: str, source: str, base: str = "/") -> None:
    """Where the files of this test lie, as the node's kernel would say it."""
    point = subprocess.run(["stat", "-c", "%m", root], capture_output=True, text=True, check=True).stdout.strip()
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(
        f"35 1 0:49 / {point} rw - tmpfs none rw\n36 35 0:50 {base} {point} rw,x shared:1 - {kind} {source} rw\n"
    )


@pytest.mark.parametrize(
    ("kind", "title"), [("nfs4", "NFS"), ("nfs", "NFS"), ("ceph", "CephFS"), ("fuse.glusterfs", "GlusterFS")]
)
def test_a_file_on_a_network_file_system_is_what_its_server_calls_it(
    shared: SharedStorage, tmp_path: Path, kind: str, title: str
) -> None:
    file = tmp_path / "web 1.img"
    file.write_text("")
    mounted(tmp_path, kind, "filer:/export")
    (reach,) = shared.shared("node1", [str(file)]).values()
    assert reach.what.startswith(f"{title} filer:/export /")
    assert reach.what.endswith(f"web 1.img (inode {file.stat().st_ino})")
    # Another server, another part of it, another file of that name: not the same thing.
    mounted(tmp_path, kind, "other:/export")
    assert shared.shared("node1", [str(file)])[str(file)] != reach
    mounted(tmp_path, kind, "filer:/export", base="/sub")
    assert shared.shared("node1", [str(file)])[str(file)] != reach
    mounted(tmp_path, kind, "filer:/export")
    assert shared.shared("node1", [str(file)])[str(file)] == reach
    file.rename(tmp_path / "old")
    file.write_text("")
    assert shared.shared("node1", [str(file)])[str(file)] != reach
    # What is local to a node is the same nowhere.
    mounted(tmp_path, "ext4", "/dev/vda1")
    assert shared.shared("node1", [str(file)]) == {}


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """A block device that the kernel of this machine need not have: 240 is for local use."""
    path = tmp_path / "disk"
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(240, 7))
    return path


def device(root: Path, name: str, facts: dict[str, str], *, part: int | None = None) -> None:
    """Put into the node's /sys what a device says."""
    home = root / "sys/devices" / name
    for fact, text in facts.items():
        (home / fact).parent.mkdir(parents=True, exist_ok=True)
        (home / fact).write_text(f"{text}\n")
    end = home
    if part is not None:
        end = home / f"{name}p{part}"
        end.mkdir()
        (end / "partition").write_text(f"{part}\n")
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block/240:7").symlink_to(end)


@pytest.mark.parametrize(
    ("name", "facts", "what"),
    [
        ("sdc", {"device/wwid": "naa.600140512345"}, "SCSI naa.600140512345"),
        ("sdc", {"device/wwid": "eui.0025388b71b5e3a1", "size": "2048"}, "SCSI eui.0025388b71b5e3a1"),
        ("nvme1n1", {"wwid": "uuid.52c5e1f0"}, "NVMe uuid.52c5e1f0"),
        ("dm-3", {"dm/uuid": "mpath-3600140512345"}, "multipath mpath-3600140512345"),
        ("nbd2", {"backend": "filer:web1"}, "NBD filer:web1"),
    ],
)
@pytest.mark.parametrize("part", [None, 2])
def test_a_device_that_says_what_it_is(  # noqa: PLR0917 -- a table
    shared: SharedStorage, tmp_path: Path, block: Path, name: str, facts: dict[str, str], what: str, part: int | None
) -> None:
    device(tmp_path, name, facts, part=part)
    suffix = "" if part is None else f" partition {part}"
    suffix += " (2048 sectors)" if part is None and "size" in facts else ""
    assert shared.shared("node1", [str(block)]) == {str(block): Reach(what=what + suffix)}


@pytest.mark.parametrize("options", ["", "rw,exclusive"])
def test_a_ceph_image(shared: SharedStorage, tmp_path: Path, block: Path, options: str) -> None:
    device(tmp_path, "rbd0", {"size": "1"})
    bus = tmp_path / "sys/bus/rbd/devices/0"
    bus.mkdir(parents=True)
    facts = {"cluster_fsid": "f5d1", "pool": "vms", "pool_ns": "", "name": "web1", "current_snap": "-"}
    for fact, text in {**facts, "config_info": f"10.0.0.1:6789 name=admin,key=client.admin,{options} vms web1"}.items():
        (bus / fact).write_text(f"{text}\n")
    (reach,) = shared.shared("node1", [str(block)]).values()
    assert reach.what == "Ceph RBD f5d1 vms//web1@- (1 sectors)"
    assert bool(reach.exclusive) is bool(options)


#: What lvmlockd 2.03.16 says (in its test mode, without a lock manager): of three volumes the first is activated for
#: sharing (`lvchange -asy`), the second exclusively (`-aey`), and the third not.
LOCKS = """VG vg_uuid= lock_type=
LS  lvm_global
LK VG un ver 0
LK GL un ver 2

VG vg1 lock_type=dlm iZEU3t-UlMy-iwUZ-mavG-j4js-UzyU-RI4R2g
LS dlm lvm_vg1
LK VG un ver 4
LK LV sh TRWwtw-S9eZ-a5W4-8aRd-BWhl-8CZ2-EZulyX
LK LV ex swp9wl-VMea-Y3gF-V7Q5-uRXL-GC4a-N1KoHN
LK LV un hPSfZs-EIcb-ftVH-LAmf-Y6dB-R0xq-Wm2oKt
"""
VG_UUID = "iZEU3tUlMyiwUZmavGj4jsUzyURI4R2g"


@pytest.mark.parametrize(
    ("own", "reached", "exclusive"),
    [
        ("TRWwtwS9eZa5W48aRdBWhl8CZ2EZulyX", True, False),
        ("swp9wlVMeaY3gFV7Q5uRXLGC4aN1KoHN", True, True),
        ("hPSfZsEIcbftVHLAmfY6dBR0xqWm2oKt", False, False),
        ("0000000000000000000000000000000a", False, False),
        ("TRWwtwS9eZa5W48aRdBWhl8CZ2EZulyX-cow", False, False),
        ("", False, False),
    ],
    ids=["shared", "exclusive", "not active", "of a group of its own", "a part of one", "none"],
)
def test_a_logical_volume_of_a_shared_group(  # noqa: PLR0917 -- a table
    shared: SharedStorage,
    tmp_path: Path,
    block: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    reached: bool,  # noqa: FBT001
    exclusive: bool,  # noqa: FBT001
) -> None:
    device(tmp_path, "dm-3", {"dm/uuid": f"LVM-{VG_UUID}{own}"})
    program = tmp_path / "bin/lvmlockctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n[ $1 = --info ] && cat <<'END'\n{LOCKS}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    found = shared.shared("node1", [str(block)])
    assert bool(found) is reached
    if reached:
        assert found[str(block)].what == f"shared LVM {VG_UUID}{own}"
        assert ("lvchange -asy" in found[str(block)].exclusive) is exclusive


@pytest.mark.parametrize(
    ("kind", "alone"),
    [
        ("Write Exclusive", True),
        ("Exclusive Access", True),
        ("Write Exclusive, registrants only", False),
        ("Exclusive Access, registrants only", False),
        ("Write Exclusive, all registrants", False),
        ("Exclusive Access, all registrants", False),
    ],
)
def test_a_reserved_logical_unit(
    shared: SharedStorage, tmp_path: Path, block: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *, alone: bool
) -> None:
    """By the kernel's block/pr.rst the first two are for their owner, the others for all who have registered."""
    device(tmp_path, "sdc", {"device/wwid": "naa.600140512345"})
    program = tmp_path / "bin/sg_persist"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '  scope: LU_SCOPE,  type: {kind}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (reach,) = shared.shared("node1", [str(block)]).values()
    assert ("persistent reservation" in reach.exclusive) is alone


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("sdc", {"device/wwid": "t10.ATA     QEMU HARDDISK                           QM00003             "}),
        ("sdc", {"device/wwid": "naa.3000000100000001"}),  # assigned by whoever made it up, as tgt does
        ("nvme0n1", {"wwid": "nvme.1b36-64656164-51454d55-00000001"}),
        ("dm-3", {"dm/uuid": "mpath-1IET_00010001"}),
        ("dm-3", {"dm/uuid": "mpath-33000000100000001"}),
        ("sdc", {"size": "1"}),
        ("nbd0", {"size": "1"}),
        ("dm-1", {"dm/uuid": "LVM-abc"}),
        ("vda", {"size": "1"}),
    ],
)
def test_a_device_that_does_not_is_not_shared(
    shared: SharedStorage, tmp_path: Path, block: Path, name: str, facts: dict[str, str]
) -> None:
    device(tmp_path, name, {**facts, "size": "2048"})
    assert shared.shared("node1", [str(block)]) == {}
    # But for the operator's word.
    (tmp_path / "srv").mkdir()
    inside = block.rename(tmp_path / "srv/web1")
    assert shared.shared("node1", [str(inside)]) == {
        str(inside): Reach(what="web1 in a declared directory (2048 sectors)")
    }


@pytest.mark.parametrize(
    ("said", "available"),
    [
        ("MemTotal:       24604372 kB\nMemAvailable:   23190880 kB\nShmem: 7 kB\n", 23190880),
        ("MemTotal:       24604372 kB\n", None),
        (None, None),
    ],
)
def test_how_much_memory_there_is(
    shared: SharedStorage, tmp_path: Path, said: str | None, available: int | None
) -> None:
    (tmp_path / "proc").mkdir()
    if said is not None:
        (tmp_path / "proc/meminfo").write_text(said)
    assert shared.available_kib("node1") == available


def test_it_knows_tokens_and_no_resources(shared: SharedStorage) -> None:
    assert shared.take_token("node1", TOKEN) is None
    shared.renew_token("node1", TOKEN)
    assert [held.id for held in shared.traces("node1").tokens] == ["ours"]
    shared.drop_token("node1", TOKEN)
    assert shared.traces("node1").tokens == ()
    assert shared.locate("node1", ["/dev/vda"]) == {}
    assert shared.observe("node1") == {}
    assert shared.two_primaries("node1") == frozenset()
    assert shared.openers("node1", []) == ()
    with shared.watch(["node1", "node2"], []) as watch:
        assert watch.resource("node1", "r1") is None
        assert watch.breaks() == ()
        assert watch.dual_primary_s() == 0


def test_it_refuses_what_needs_a_resource(shared: SharedStorage) -> None:
    for act in (
        lambda: shared.promote("node1", "r1", TOKEN),
        lambda: shared.demote("node1", "r1", TOKEN),
        lambda: shared.options("node1", "r1", "node2"),
        lambda: shared.allow_two_primaries("node1", "r1", "node2", TOKEN),
        lambda: shared.restore_options("node1", "r1", "node2", OPTIONS, TOKEN),
        lambda: shared.openers("node1", ["r1"]),
        lambda: shared.watch(["node1"], ["r1"]),
    ):
        with pytest.raises(CommandFailed, match="failed on node1"):
            act()
    assert "nothing" in (shared.guard_trouble("node1") or "")
    guarded = [Guarded(resource="r1", peer="node2", options=OPTIONS)]
    with pytest.raises(CommandFailed) as caught:
        shared.arm_guard("node1", TOKEN, guarded, resume=False)
    assert caught.value.code is Code.GUARD_UNAVAILABLE
    with pytest.raises(UsageError):
        shared.guard_trouble("node9")


def test_another_way_to_a_node(nodes: dict[str, Node], tmp_path: Path) -> None:
    class Elsewhere(Shell):
        def command(self, node: Node, script: str) -> list[str]:
            (tmp_path / node.name).mkdir(exist_ok=True)
            return ["env", "-C", str(tmp_path / node.name), "sh", "-c", script]

    storage = SharedStorage(nodes, [], shell=Elsewhere(ssh_config=None, connect_timeout_s=5), root=".")
    assert storage.take_token("node2", TOKEN) is None
    assert (tmp_path / "node2/run/lvmigrate" / f"{TOKEN.uuid}.token").exists()
    assert storage.traces("node1").tokens == ()
    storage.close()


def test_a_watch_of_nothing_wants_an_answer(nodes: dict[str, Node]) -> None:
    class Silent(Shell):
        def command(self, node: Node, script: str) -> list[str]:
            return ["sleep", "30"] if node.name == "node2" else super().command(node, script)

    silent = Silent(ssh_config=None, connect_timeout_s=5)
    storage = SharedStorage(nodes, [], shell=silent, command_timeout_s=0.5)
    with pytest.raises(NodeUnreachable), storage.watch(["node1", "node2"], []):
        pass
    storage.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rehearsal": True},
        {"keep_definition": True, "rehearsal": True},
        {"memory_kib": 1024, "failover": True, "keep_definition": True, "handed_over": True},
    ],
)
def test_an_errand_is_read_as_it_was_written(shared: SharedStorage, changes: dict[str, Any]) -> None:
    assert TOKEN.errand is not None
    token = replace(TOKEN, errand=replace(TOKEN.errand, **changes))
    assert shared.take_token("node1", token) is None
    (held,) = shared.traces("node1").tokens
    assert held.errand == token.errand
