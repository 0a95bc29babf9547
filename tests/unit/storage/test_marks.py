"""What is not of a disk: libvirt's keepalive, and shared storage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lvmigrate.errors import Code, CommandFailed, NodeUnreachable, UsageError
from lvmigrate.node import Node
from lvmigrate.protocols import Storage
from lvmigrate.replication import ConnectionOptions
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
    assert shared.shared("node1", paths) == {paths[0], paths[1], paths[5]}
    assert shared.shared("node1", []) == frozenset()


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
            return ["env", f"WHERE={node.name}", "sh", "-c", script.replace("root=", f"root={tmp_path}/$WHERE #")]

    storage = SharedStorage(nodes, [], shell=Elsewhere(ssh_config=None, connect_timeout_s=5))
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
