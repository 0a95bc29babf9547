"""The storage adapter on two real nodes, DRBD 8.4 or 9: no guest, only the resources web1 and db1."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lvmigrate.clock import Clock
from lvmigrate.disks import Disks
from lvmigrate.dual_primary import DualPrimary
from lvmigrate.errors import Code, CommandFailed, DeviceHeld, NodeUnreachable, TokenLost
from lvmigrate.lease import Lease
from lvmigrate.lineage import parted
from lvmigrate.node import Node
from lvmigrate.plan import ResourcePlan
from lvmigrate.progress import Stall, SyncProgress
from lvmigrate.protocols import Watch
from lvmigrate.replication import ConnectionOptions, ConnectionState, DiskState, Place, Role, Unbroken
from lvmigrate.resync import stall_of
from lvmigrate.token import Errand, Token
from storage import DrbdStorage
from storage.remote import Remote
from storage.shell import Shell

pytestmark = pytest.mark.long

BOTH = ("node1", "node2")
PORT = {"web1": 7788, "db1": 7789}
PEER = {"node1": "node2", "node2": "node1"}
Hand = Callable[[str, str], str]


def open_storage(nodes: dict[str, Node], config: Path) -> DrbdStorage:
    return DrbdStorage(nodes, ssh_config=config)


@pytest.fixture(scope="module")
def nodes(cluster_file: Path) -> dict[str, Node]:
    listed = tomllib.loads(cluster_file.read_text())["nodes"]
    return {
        name: Node(
            name=name,
            ssh=table["ssh"],
            libvirt_uri=table["libvirt_uri"],
            peer_uri=table["peer_uri"],
            migration_address=table["migration_address"],
        )
        for name, table in listed.items()
    }


@pytest.fixture(scope="module")
def ssh_config(cluster_file: Path) -> Path:
    return Path(tomllib.loads(cluster_file.read_text())["ssh"]["config"])


@pytest.fixture(scope="module")
def storage(nodes: dict[str, Node], ssh_config: Path) -> Iterator[DrbdStorage]:
    made = open_storage(nodes, ssh_config)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hand(nodes: dict[str, Node], ssh_config: Path) -> Iterator[Hand]:
    """Do something on a node as an operator would, over a connection of its own."""
    shell = Shell(ssh_config=ssh_config, connect_timeout_s=20)
    remote = Remote(nodes, shell, command_timeout_s=60, root="")

    def do(node: str, command: str) -> str:
        answer = remote.run(node, "by hand", "eval", command)
        assert answer.status == 0, f"{command}: {answer}"
        return answer.out

    yield do
    remote.close()


@pytest.fixture
def token() -> Token:
    return Token(
        uuid=str(uuid.uuid4()),
        instance="web1",
        id=uuid.uuid4().hex,
        holder="the lab's test",
        lease_s=120,
        errand=Errand(source="node1", target="node2", ran=True, autostart=False, target_had_definition=False),
    )


def holder(storage: DrbdStorage, node: str, token: Token) -> str | None:
    """Who holds the token of this guest, if anybody does."""
    held = storage.traces(node).token(token.uuid)
    return None if held is None else held.holder


@pytest.fixture
def held(storage: DrbdStorage, token: Token) -> Iterator[Token]:
    """The token, taken on both nodes."""
    for node in BOTH:
        assert storage.take_token(node, token) is None
    yield token
    for node in BOTH:
        storage.drop_token(node, token)
        assert holder(storage, node, token) is None


@pytest.fixture(autouse=True)
def at_rest(storage: DrbdStorage, hand: Hand) -> Iterator[None]:
    """Both resources are Secondary on both nodes, in step, with two primaries off, before and after each test."""
    for node in BOTH:
        assert set(storage.observe(node)) == set(PORT)
        assert storage.two_primaries(node) == frozenset()
        for resource in storage.observe(node).values():
            assert resource.role is Role.SECONDARY, f"{resource.name} is in use on {node}: stop its guest first"
    yield
    for node in BOTH:
        for name in PORT:
            hand(node, f"drbdadm secondary {name}")
    try:
        for name in PORT:
            assert eventually(partial(in_step, storage, name), 30)
            for node in BOTH:
                found = storage.options(node, name, PEER[node])
                assert (found.allow_two_primaries, found.protocol or "C") == (False, "C")
                assert storage.openers(node, [name]) == ()
    finally:
        # What one test leaves open is no fault of the next one.
        for node in BOTH:
            hand(node, "drbdadm adjust all")


def in_step(storage: DrbdStorage, name: str) -> bool:
    return all(storage.observe(n, [name])[name].in_step_with(PEER[n]) for n in BOTH)


def seen_as(watch: Watch, node: str, name: str, role: Role) -> bool:
    resource = watch.resource(node, name)
    return resource is not None and resource.role is role


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.2)
    return False


def followers(hand: Hand, node: str) -> set[int]:
    """The processes on ``node`` that follow events."""
    return set(map(int, hand(node, "pgrep -f '^(/usr/sbin/)?drbdsetup(-84)? events2 --stat' || true").split()))


@contextlib.contextmanager
def cut(hand: Hand, name: str) -> Iterator[None]:
    """Drop what DRBD sends for ``name`` between the nodes."""
    rules = [f"{way} -p tcp --{end} {PORT[name]} -j DROP" for way in ("INPUT", "OUTPUT") for end in ("sport", "dport")]
    try:
        hand("node1", " && ".join(f"iptables -I {rule}" for rule in rules))
        yield
    finally:
        hand("node1", "; ".join(f"iptables -D {rule}" for rule in rules) + "; true")


# ---- looking


def test_observe(storage: DrbdStorage) -> None:
    for node in BOTH:
        seen = storage.observe(node, ["web1", "db1", "nosuch"])
        assert set(seen) == {"web1", "db1"}
        assert [(v.number, v.minor) for v in seen["web1"].volumes] == [(0, 0)]
        assert [(v.number, v.minor) for v in seen["db1"].volumes] == [(0, 10), (1, 11)]
        for resource in seen.values():
            assert resource.in_step_with(PEER[node]), list(resource.doubts(PEER[node]))
            assert all(v.size_kib for v in resource.volumes)


def test_locate(storage: DrbdStorage, hand: Hand) -> None:
    names = ["/dev/drbd0", "/dev/drbd10", "/dev/drbd/by-res/web1/0", "/dev/drbd/by-res/db1/1"]
    by_disk = hand("node1", "find /dev/drbd/by-disk -type l").split()
    hand("node1", "ln -sfn /dev/drbd/by-res/db1/0 '/tmp/a link'")
    try:
        found = storage.locate("node1", [*names, *by_disk, "/tmp/a link", "/dev/vda", "/dev/null", "/nowhere", "/tmp"])
    finally:
        hand("node1", "rm '/tmp/a link'")
    assert [found[n] for n in names] == [
        Place(resource="web1", volume=0),
        Place(resource="db1", volume=0),
        Place(resource="web1", volume=0),
        Place(resource="db1", volume=1),
    ]
    assert found["/tmp/a link"] == Place(resource="db1", volume=0)
    assert by_disk
    assert set(found) == {*names, *by_disk, "/tmp/a link"}


def test_a_node_that_is_not_there(nodes: dict[str, Node], ssh_config: Path) -> None:
    lost = replace(nodes["node1"], name="node9", ssh="root@node9.invalid")
    storage = DrbdStorage({"node9": lost}, ssh_config=ssh_config, connect_timeout_s=3)
    begin = time.monotonic()
    with pytest.raises(NodeUnreachable) as caught:
        storage.observe("node9", ["web1"])
    assert caught.value.node == "node9"
    with pytest.raises(NodeUnreachable), storage.watch(["node9"], ["web1"]):
        pass
    assert time.monotonic() - begin < 20
    storage.close()


# ---- watching


def test_the_watch_sees_what_others_do(storage: DrbdStorage, hand: Hand) -> None:
    said: list[str] = []
    with storage.watch(BOTH, ["web1"], on_change=said.append) as watch:
        assert watch.breaks() == ()
        for command, role in (("primary", Role.PRIMARY), ("secondary", Role.SECONDARY)):
            hand("node1", f"drbdadm {command} web1")

            def seen_at_both_ends(role: Role = role) -> bool:
                one, two = (watch.resource(n, "web1") for n in BOTH)
                return one is not None and two is not None and one.role is role is two.connections[0].peer_role

            assert watch.wait(seen_at_both_ends, 2)
        assert watch.breaks() == ()
        assert watch.dual_primary_s() == 0
    assert said == ["web1 on node1 is Primary (was Secondary)", "web1 on node1 is Secondary (was Primary)"]


def test_the_watch_follows_two_resources(storage: DrbdStorage, hand: Hand) -> None:
    with storage.watch(BOTH, ["web1", "db1"]) as watch:
        hand("node2", "drbdadm primary db1")
        assert watch.wait(lambda: (r := watch.resource("node2", "db1")) is not None and r.role is Role.PRIMARY, 2)
        assert (web := watch.resource("node2", "web1")) is not None
        assert web.role is Role.SECONDARY
        assert watch.breaks() == ()


def test_the_watch_is_not_disturbed_by_other_resources(storage: DrbdStorage, hand: Hand) -> None:
    with storage.watch(BOTH, ["web1"]) as watch:
        for name in ("web1", "db1", "web1"):
            for command, role in (("primary", Role.PRIMARY), ("secondary", Role.SECONDARY)):
                hand("node1", f"drbdadm {command} {name}")
                if name == "web1":
                    assert watch.wait(partial(seen_as, watch, "node1", "web1", role), 5)
        assert watch.breaks() == ()


def test_a_cut_is_a_break_and_two_primaries_stay_during_it(storage: DrbdStorage, hand: Hand, held: Token) -> None:
    before = {n: storage.options(n, "web1", PEER[n]) for n in BOTH}
    for node in BOTH:
        storage.allow_two_primaries(node, "web1", PEER[node], held)
    with storage.watch(BOTH, ["web1"]) as watch:
        with cut(hand, "web1"):
            assert watch.wait(
                lambda: any("not connected" in words or "no connection" in words for words in watch.breaks()), 30
            )
            with pytest.raises(CommandFailed) as caught:
                storage.restore_options("node1", "web1", "node2", before["node1"], held)
            assert caught.value.code is Code.NOT_CONNECTED

        def whole() -> bool:
            return all((r := watch.resource(n, "web1")) is not None and r.in_step_with(PEER[n]) for n in BOTH)

        assert watch.wait(whole, 60)
        watch.forgive()
        assert watch.breaks() == ()
    for node in BOTH:
        storage.restore_options(node, "web1", PEER[node], before[node], held)
        assert storage.options(node, "web1", PEER[node]) == before[node]


def test_nothing_is_left_on_the_nodes(storage: DrbdStorage, hand: Hand) -> None:
    before = {node: followers(hand, node) for node in BOTH}
    for _ in range(3):
        with storage.watch(BOTH, ["web1"]):
            assert all(len(followers(hand, node) - before[node]) == 1 for node in BOTH)
    assert {node: followers(hand, node) for node in BOTH} == before


def children(command: str) -> list[int]:
    """Our own living children whose command line has ``command``."""
    ours = (word for task in Path("/proc/self/task").iterdir() for word in said(task / "children").split())
    return [int(word) for word in ours if command in said(Path(f"/proc/{word}/cmdline"))]


def said(file: Path) -> str:
    """What a file of /proc says, with spaces for zeros; nothing if its process is gone by now."""
    try:
        return file.read_text(errors="replace").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_killed_ssh_client_is_a_gap_and_leaves_nothing_there(storage: DrbdStorage, hand: Hand) -> None:
    before = followers(hand, "node1")
    with storage.watch(["node1"], ["web1"]) as watch:
        (first,) = followers(hand, "node1") - before
        (client,) = children("\nfollow\n")
        os.kill(client, signal.SIGKILL)
        assert watch.wait(lambda: any("node1 is not watched" in words for words in watch.gaps()), 5)
        assert eventually(lambda: first not in followers(hand, "node1"), 5)
        assert watch.wait(lambda: watch.resource("node1", "web1") is not None, 10)
        watch.forgive()
        assert watch.breaks() == ()
    assert followers(hand, "node1") == before


def test_a_killed_shared_connection_is_opened_again(nodes: dict[str, Node], ssh_config: Path, hand: Hand) -> None:
    before = followers(hand, "node1")
    storage = open_storage(nodes, ssh_config)
    with storage.watch(["node1"], ["web1"]) as watch:
        (socket,) = storage._remote._shell._sockets.iterdir()
        masters = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and f"{socket} [mux]" in said(entry / "cmdline")
        ]
        assert len(masters) == 1
        os.kill(masters[0], signal.SIGKILL)
        assert watch.wait(lambda: bool(watch.gaps()), 10)
        assert storage.observe("node1", ["web1"])
        assert watch.wait(lambda: watch.resource("node1", "web1") is not None, 10)
    storage.close()
    assert not socket.parent.exists()
    assert eventually(lambda: followers(hand, "node1") == before, 5)


def test_closing_ends_the_shared_connections(nodes: dict[str, Node], ssh_config: Path) -> None:
    storage = open_storage(nodes, ssh_config)
    for node in BOTH:
        storage.observe(node, ["web1"])
    sockets = list(storage._remote._shell._sockets.iterdir())
    assert len(sockets) == 2
    storage.close()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            assert not any(str(socket) in said(entry / "cmdline") for socket in sockets)
    assert not sockets[0].parent.exists()


# ---- options


@pytest.mark.parametrize("name", ["web1", "db1"])
def test_two_primaries_there_and_back(storage: DrbdStorage, hand: Hand, held: Token, name: str) -> None:
    before = {n: storage.options(n, name, PEER[n]) for n in BOTH}
    for node in BOTH:
        storage.allow_two_primaries(node, name, PEER[node], held)
    for node in BOTH:
        found = storage.options(node, name, PEER[node])
        assert (found.allow_two_primaries, found.protocol or "C") == (True, "C")
        assert storage.two_primaries(node) == {name}
        storage.promote(node, name, held)
    assert all(storage.observe(n, [name])[name].role is Role.PRIMARY for n in BOTH)
    with pytest.raises(CommandFailed) as caught:
        storage.restore_options("node1", name, "node2", before["node1"], held)
    assert caught.value.code is Code.STORAGE_FAILED
    assert "(164)" in caught.value.detail
    assert "Secondary first" in caught.value.hint
    storage.demote("node1", name, held)
    for node in BOTH:
        storage.restore_options(node, name, PEER[node], before[node], held)
        assert storage.options(node, name, PEER[node]) == before[node]
    with pytest.raises(CommandFailed) as caught:
        storage.promote("node1", name, held)
    assert "(-1)" in caught.value.detail
    storage.demote("node2", name, held)


def test_another_protocol_is_put_back(storage: DrbdStorage, hand: Hand, held: Token) -> None:
    for node in BOTH:
        hand(node, "drbdadm net-options --protocol=A web1")
    try:
        before = {n: storage.options(n, "web1", PEER[n]) for n in BOTH}
        assert {o.protocol for o in before.values()} == {"A"}
        for node in BOTH:
            storage.allow_two_primaries(node, "web1", PEER[node], held)
        assert all((storage.options(n, "web1", PEER[n]).protocol or "C") == "C" for n in BOTH)
        for node in BOTH:
            storage.restore_options(node, "web1", PEER[node], before[node], held)
        assert {n: storage.options(n, "web1", PEER[n]) for n in BOTH} == before
    finally:
        for node in BOTH:
            hand(node, "drbdadm net-options --protocol=C web1")


def test_two_primaries_that_are_configured_for_good_are_told_apart(storage: DrbdStorage, hand: Hand) -> None:
    for node in BOTH:
        hand(node, "drbdadm net-options --allow-two-primaries=yes web1")
    try:
        for node in BOTH:
            seen = storage.surroundings(node, ["web1", "db1"])
            assert seen.two_primaries_for_good == frozenset()
            assert seen.version[:2] in {"8.", "9."}
            assert seen.other_hands == ()
            hand(
                node, "sed -i.kept 's/protocol C;/protocol C; allow-two-primaries yes;/' /etc/drbd.d/global_common.conf"
            )
        for node in BOTH:
            assert storage.surroundings(node, ["web1", "db1"]).two_primaries_for_good == {"web1"}
    finally:
        for node in BOTH:
            hand(
                node,
                "cd /etc/drbd.d && [ ! -e global_common.conf.kept ] || mv global_common.conf.kept global_common.conf",
            )
            hand(node, "drbdadm net-options --allow-two-primaries=no web1")


@contextlib.contextmanager
def following(storage: DrbdStorage, name: str) -> Iterator[Disks]:
    with storage.watch(BOTH, [name]) as watch:
        yield Disks(storage=storage, watch=watch, names=(name,), nodes=("node1", "node2"))


def dual(disks: Disks, storage: DrbdStorage, token: Token) -> DualPrimary:
    name = disks.names[0]
    before = (storage.options("node1", name, "node2"), storage.options("node2", name, "node1"))
    lease = Lease(storage, BOTH, token, clock=Clock())
    # Promoted by a command with 9, too: nothing opens the device here.
    plan = ResourcePlan(name=name, volumes=(), options=before, reads_first=True)
    return DualPrimary(storage=storage, watch=disks.watch, lease=lease, plan=plan, source="node1", target="node2")


@pytest.mark.parametrize("name", ["web1", "db1"])
@pytest.mark.parametrize("moment", ["allowed", "promoted", "demoted"])
def test_an_adjust_in_mid_move_is_survived(
    storage: DrbdStorage, hand: Hand, held: Token, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    said: list[str] = []

    def adjusted() -> None:
        if moment not in said:
            said.append(moment)
            # With two Primaries it fails, and leaves the option on.
            hand("node1", f"drbdadm adjust {name} || true")

    def promote(node: str, resource: str, token: Token, *, beside: str | None = None) -> None:
        if moment == "allowed":
            adjusted()
        DrbdStorage.promote(storage, node, resource, token, beside=beside)

    def demote(node: str, resource: str, token: Token) -> None:
        DrbdStorage.demote(storage, node, resource, token)
        if moment == "demoted":
            adjusted()

    hand("node1", f"drbdadm primary {name}")
    monkeypatch.setattr(storage, "promote", promote)
    monkeypatch.setattr(storage, "demote", demote)
    with following(storage, name) as disks:
        both = dual(disks, storage, held)
        both.open()
        if moment == "promoted":
            adjusted()
        assert all(seen_as(disks.watch, node, name, Role.PRIMARY) for node in BOTH)
        both.close("node1")
        assert disks.watch.wait(lambda: disks.in_step() and disks.single_primary("node2"), 10)
        assert disks.watch.breaks() == ()
    assert said == [moment]
    assert storage.two_primaries("node1") == frozenset() == storage.two_primaries("node2")


# ---- what goes wrong with the copies


def written(hand: Hand, node: str, megabytes: int, *, seek: int = 0) -> None:
    """Write to web1, without changing what is there but for its first sector of each megabyte read and put back."""
    command = "dd if=/dev/drbd0 of=/run/web1.part bs=1M skip={0} count={1} status=none && dd if=/run/web1.part"
    hand(
        node,
        f"{command.format(seek, megabytes)} of=/dev/drbd0 bs=1M seek={seek} oflag=direct conv=notrunc status=none;"
        " sync; rm -f /run/web1.part",
    )


def resynchronised_at(hand: Hand, node: str, name: str, rate: str) -> None:
    """These are options of a peer's device with 9, which keeps to no fixed rate, and of a disk with 8.4."""
    nine = f"--c-plan-ahead=20 --c-max-rate={rate} --c-min-rate={rate} --resync-rate={rate} {name}"
    eight = f"--c-plan-ahead=0 --resync-rate={rate} {name}"
    hand(node, f"drbdadm peer-device-options {nine} 2>/dev/null || drbdadm disk-options {eight}")


@contextlib.contextmanager
def slowly(hand: Hand, name: str) -> Iterator[None]:
    """Resynchronise at about a quarter of a MiB a second."""
    try:
        for node in BOTH:
            resynchronised_at(hand, node, name, "250K")
        yield
    finally:
        for node in BOTH:
            hand(node, f"drbdadm adjust {name}")


def test_a_resynchronisation_is_followed_cut_and_paused(storage: DrbdStorage, hand: Hand) -> None:
    hand("node1", "drbdadm primary web1")
    with following(storage, "web1") as disks, slowly(hand, "web1"):
        with cut(hand, "web1"):
            assert disks.watch.wait(lambda: not disks.in_step(), 30)
            written(hand, "node1", 6)

        def sources() -> list[SyncProgress]:
            now = disks.sync(time.monotonic())
            return [now] if any("SyncSource" in dict(v.states).values() for v in now.volumes) else []

        looks: list[SyncProgress] = []
        assert eventually(lambda: bool(sources()), 60)
        begin = time.monotonic()
        while time.monotonic() - begin < 9:
            looks += sources()
            time.sleep(0.5)
        (volume,) = looks[-1].volumes
        assert dict(volume.states) == {"node1": "SyncSource", "node2": "SyncTarget"}
        assert looks[-1].out_of_sync_kib < looks[0].out_of_sync_kib
        assert 100 < (looks[-1].rate_kib_s or 0) < 2000
        assert looks[-1].eta_s
        # Cut in the middle: it is said, and it goes on afterwards.
        with cut(hand, "web1"):
            assert disks.watch.wait(lambda: any("not connected" in w for w in disks.doubts()), 30)
            assert stall_of(disks.ends()) is Stall.NOT_CONNECTED
            assert disks.standing().verdict is Unbroken.NO
        assert eventually(lambda: bool(sources()), 60)
        hand("node2", "drbdadm pause-sync web1")
        try:
            assert disks.watch.wait(lambda: stall_of(disks.ends()) is Stall.PAUSED, 10)
        finally:
            hand("node2", "drbdadm resume-sync web1")
        for node in BOTH:
            resynchronised_at(hand, node, "web1", "100M")
        assert disks.watch.wait(disks.in_step, 60)


def test_a_disk_that_is_detached_is_seen_on_both_nodes(storage: DrbdStorage, hand: Hand) -> None:
    hand("node1", "drbdadm primary web1")
    with following(storage, "web1") as disks:
        disks.remember()
        hand("node1", "drbdadm detach web1")
        try:
            assert disks.watch.wait(
                lambda: (
                    (r := disks.watch.resource("node1", "web1")) is not None and r.volumes[0].disk is DiskState.DISKLESS
                ),
                10,
            )
            assert disks.watch.wait(lambda: any("web1/0 on node1 is Diskless" in w for w in disks.doubts()), 10)
            assert stall_of(disks.ends()) is Stall.NO_DISK
            assert disks.standing().verdict is Unbroken.NO
        finally:
            hand("node1", "drbdadm attach web1")
        assert disks.watch.wait(disks.in_step, 60)


def test_the_peers_drbd_is_taken_down(storage: DrbdStorage, hand: Hand) -> None:
    with following(storage, "web1") as disks:
        hand("node2", "drbdadm down web1")
        try:
            assert disks.watch.wait(lambda: disks.watch.resource("node2", "web1") is None, 10)
            assert disks.watch.wait(lambda: not disks.in_step(), 10)
            assert any("node2 has no resource web1" in words for words in disks.watch.breaks())
            assert set(storage.observe("node2")) == {"db1"}
            with pytest.raises(CommandFailed) as caught:
                storage.openers("node2", ["web1"])
            assert "drbdadm up" in caught.value.hint
        finally:
            hand("node2", "drbdadm up web1")
        assert disks.watch.wait(disks.in_step, 60)


def test_clocks_apart(storage: DrbdStorage, hand: Hand, token: Token) -> None:
    """Leases run by each node's uptime and events are taken as they come: what the clock says matters to neither."""
    hand("node1", "date -s '+1 day' >/dev/null")
    try:
        for node in BOTH:
            assert storage.take_token(node, token) is None
        with following(storage, "web1") as disks:
            disks.remember()
            hand("node1", "drbdadm primary web1")
            both = dual(disks, storage, token)
            both.open()
            both.close("node2")
            assert disks.standing().verdict is Unbroken.YES
        found = [storage.traces(node).token(token.uuid) for node in BOTH]
        assert all(one is not None and 60 < one.left_s <= token.lease_s for one in found)
    finally:
        hand("node1", "date -s '-1 day' >/dev/null")
        for node in BOTH:
            storage.drop_token(node, token)


def test_a_split_brain_is_recognised_and_mended_by_a_person_only(storage: DrbdStorage, hand: Hand, held: Token) -> None:
    def parted_now() -> bool:
        resources = [storage.observe(node, ["web1"])["web1"] for node in BOTH]
        links = [r.towards(PEER[r.node]) for r in resources]
        return all(link is None or link.state is ConnectionState.STANDALONE for link in links)

    assert parted(storage, "web1", ("node1", "node2")) is None
    options = storage.options("node1", "web1", "node2")
    with cut(hand, "web1"):
        assert eventually(lambda: not in_step(storage, "web1"), 30)
        for node in BOTH:
            hand(node, "drbdadm primary web1")
            written(hand, node, 1, seek=1 if node == "node2" else 0)
    assert eventually(parted_now, 60)
    apart = parted(storage, "web1", ("node1", "node2"))
    assert apart is not None
    assert apart.volumes == (0,)
    assert not apart.strangers
    assert all(kib and kib >= 4 for kib in apart.changed_kib.values()), apart
    assert apart.since is not None
    finding = apart.finding(keep="node1")
    assert "have both changed since 20" in finding.sentence
    # Connecting again discards nothing: the two refuse each other, and are StandAlone again.
    for node in BOTH:
        storage.reconnect(node, "web1", PEER[node], options, held)
    assert eventually(parted_now, 30)
    assert parted(storage, "web1", ("node1", "node2")) is not None
    # A person chooses, by the hint's two commands.
    hand("node2", "drbdadm secondary web1")
    first, second = re.findall(r"on (node\d) `([^`]*)`", finding.hint)
    for node, command in (first, second):
        hand(node, command)
    assert (first[0], second[0]) == ("node2", "node1")
    assert eventually(partial(in_step, storage, "web1"), 60)
    assert parted(storage, "web1", ("node1", "node2")) is None


def test_a_connection_that_was_cut_off_by_hand_is_mended(storage: DrbdStorage, hand: Hand, held: Token) -> None:
    options = storage.options("node1", "web1", "node2")
    hand("node1", "drbdadm primary web1")
    hand("node2", "drbdadm disconnect web1")
    written(hand, "node1", 1)
    assert parted(storage, "web1", ("node1", "node2")) is None
    for node in BOTH:
        storage.reconnect(node, "web1", PEER[node], options, held)
    assert eventually(partial(in_step, storage, "web1"), 60)
    assert storage.options("node1", "web1", "node2") == options


# ---- roles and tokens


@pytest.mark.parametrize("name", ["web1", "db1"])
def test_promote_and_demote(storage: DrbdStorage, held: Token, name: str) -> None:
    for _ in range(2):
        storage.promote("node1", name, held)
        assert storage.observe("node1", [name])[name].role is Role.PRIMARY
    for _ in range(2):
        storage.demote("node1", name, held)
        assert storage.observe("node1", [name])[name].role is Role.SECONDARY


def test_a_token_that_was_taken_over_acts_no_more(storage: DrbdStorage, token: Token) -> None:
    short = replace(token, lease_s=1.0)
    other = replace(token, id="other", holder="another test")
    assert storage.take_token("node1", short) is None
    there = storage.take_token("node1", other)
    assert there is not None
    assert (there.id, there.holder, there.errand) == (token.id, "the lab's test", token.errand)
    time.sleep(1.5)
    assert storage.take_token("node1", other) is None
    options = ConnectionOptions(allow_two_primaries=True, protocol="C", auto_promote=False)
    acts: tuple[Callable[[], object], ...] = (
        partial(storage.renew_token, "node1", short),
        partial(storage.promote, "node1", "web1", short),
        partial(storage.demote, "node1", "web1", short),
        partial(storage.allow_two_primaries, "node1", "web1", "node2", short),
        partial(storage.restore_options, "node1", "web1", "node2", options, short),
    )
    for act in acts:
        with pytest.raises(TokenLost):
            act()
    storage.drop_token("node1", short)
    assert holder(storage, "node1", token) == "another test"
    storage.drop_token("node1", other)
    assert holder(storage, "node1", token) is None


@pytest.mark.parametrize(("name", "device"), [("web1", "/dev/drbd0"), ("db1", "/dev/drbd11")])
@pytest.mark.parametrize(("mode", "words"), [("<", "for reading"), ("<>", "for writing")])
def test_a_device_that_is_open_is_not_demoted(  # noqa: PLR0917 -- a table
    storage: DrbdStorage, hand: Hand, held: Token, name: str, device: str, mode: str, words: str
) -> None:
    storage.promote("node1", name, held)
    pid = hand("node1", f"(exec 3{mode}{device}; exec sleep 60) >/dev/null 2>&1 </dev/null & echo $!").strip()
    try:
        assert eventually(lambda: storage.openers("node1", [name]) != (), 5)
        (opener,) = storage.openers("node1", [name])
        assert (opener.resource, opener.volume) == (name, int(device[-1]) if name == "db1" else 0)
        assert opener.what == f"sleep (pid {pid}) {words}"
        with pytest.raises(DeviceHeld) as caught:
            storage.demote("node1", name, held)
        assert f"pid {pid}" in caught.value.hint
        assert storage.observe("node1", [name])[name].role is Role.PRIMARY
    finally:
        hand("node1", f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.05; done")
    storage.demote("node1", name, held)


def test_a_mount_is_an_opener(storage: DrbdStorage, hand: Hand, held: Token) -> None:
    # What is on the volume belongs to others: it is kept and put back.
    storage.promote("node1", "web1", held)
    hand("node1", "dd if=/dev/drbd0 of=/run/web1.kept bs=1M status=none")
    try:
        hand("node1", "mkfs.ext4 -Fq /dev/drbd0 && mkdir -p /run/web1.mnt && mount /dev/drbd0 /run/web1.mnt")
        assert [o.what for o in storage.openers("node1", ["web1"])] == ["mounted on /run/web1.mnt"]
        with pytest.raises(DeviceHeld):
            storage.demote("node1", "web1", held)
    finally:
        hand(
            "node1",
            "umount /run/web1.mnt; rmdir /run/web1.mnt;"
            " dd if=/run/web1.kept of=/dev/drbd0 bs=1M conv=fsync status=none && rm /run/web1.kept",
        )
    storage.demote("node1", "web1", held)


def test_a_fleeting_opener_is_waited_for(storage: DrbdStorage, hand: Hand, held: Token) -> None:
    storage.promote("node1", "web1", held)
    hand("node1", "(exec 3</dev/drbd0; exec sleep 0.7) >/dev/null 2>&1 </dev/null &")
    storage.demote("node1", "web1", held)
    assert storage.observe("node1", ["web1"])["web1"].role is Role.SECONDARY


def test_a_command_takes_a_fraction_of_a_second(
    storage: DrbdStorage, record_property: Callable[[str, object], None]
) -> None:
    taken = []
    for _ in range(10):
        begin = time.monotonic()
        storage.observe("node1", ["web1"])
        taken.append(time.monotonic() - begin)
    record_property("observe_ms_median", round(statistics.median(taken) * 1000, 1))
    assert statistics.median(taken) < 1.0
