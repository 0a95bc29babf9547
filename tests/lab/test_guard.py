"""The dead-man's guard on two real nodes: systemd, libvirt, DRBD and guests are real, and nobody else helps."""

from __future__ import annotations

import contextlib
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lvmigrate.errors import Code, CommandFailed, TokenLost
from lvmigrate.node import Node
from lvmigrate.replication import Role
from lvmigrate.token import Errand, Guarded, Token
from storage import DrbdStorage
from tests.lab.support import Running
from vagrant.labkit.guests import DB1, WEB1, Guest, where
from vagrant.labkit.lab import NODES, Lab, other

pytestmark = pytest.mark.long

SOURCE, TARGET = NODES
PORT = {"web1": 7788, "db1": 7789}


@pytest.fixture(scope="module")
def storage(cluster_file: Path) -> Iterator[DrbdStorage]:
    listed = tomllib.loads(cluster_file.read_text())
    nodes = {
        name: Node(
            name=name,
            ssh=table["ssh"],
            libvirt_uri=table["libvirt_uri"],
            peer_uri=table["peer_uri"],
            migration_address=table["migration_address"],
        )
        for name, table in listed["nodes"].items()
    }
    made = DrbdStorage(nodes, ssh_config=Path(listed["ssh"]["config"]))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def as_found(lab: Lab) -> Iterator[None]:
    """Before and after each test: no resource is Primary or allows two, no guard, no token, no rule of a firewall."""
    look = (
        "drbdsetup events2 --now | grep -o 'resource name:.* role:Primary'; drbdsetup show | grep two-primaries;"
        " ls /run/lvmigrate 2>/dev/null; systemctl list-units --plain --no-legend --all 'lvmigrate-*';"
        " iptables -S | grep 'tcp.*DROP'; true"
    )
    assert lab.both(look) == dict.fromkeys(NODES, "")
    yield
    lab.both(
        "systemctl start libvirtd; systemctl stop 'lvmigrate-guard-*'; rm -rf /run/lvmigrate;"
        " iptables -S | grep 'tcp.*DROP' | sed 's/^-A/-D/' | while read -r rule; do iptables $rule; done; true"
    )
    for resource in PORT:
        lab.both(f"drbdadm connect {resource}", check=False)  # where they stood alone
        lab.both(
            f"drbdsetup wait-connect-resource --wfc-timeout=30 {resource};"
            f" for i in $(seq 50); do drbdadm secondary {resource} && break; sleep 0.2; done; drbdadm adjust {resource}"
        )


def eventually(holds: Callable[[], bool], within_s: float = 90) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.5)
    return False


@contextlib.contextmanager
def cut(lab: Lab, resource: str) -> Iterator[None]:
    """Drop what DRBD sends for ``resource`` between the nodes, until both have seen it."""
    rules = [
        f"{way} -p tcp --{end} {PORT[resource]} -j DROP" for way in ("INPUT", "OUTPUT") for end in ("sport", "dport")
    ]
    try:
        lab.run(SOURCE, " && ".join(f"iptables -I {rule}" for rule in rules))
        assert eventually(lambda: not any(connected(lab, node, resource) for node in NODES))
        yield
    finally:
        lab.run(SOURCE, "; ".join(f"iptables -D {rule}" for rule in rules))


def connected(lab: Lab, node: str, resource: str) -> bool:
    return "connection:Connected" in lab.run(node, f"drbdsetup events2 --now {resource}")


class Move:
    """What a move leaves on both nodes before a controller dies: tokens, guards, an open resource."""

    def __init__(self, storage: DrbdStorage, lab: Lab, guest: Guest) -> None:
        self.storage = storage
        self.lab = lab
        self.resource = str(guest.resource)
        self.token = Token(
            uuid=guest.uuid,
            instance=guest.name,
            id=uuid.uuid4().hex,
            holder="the lab's test",
            lease_s=120,
            errand=Errand(source=SOURCE, target=TARGET, ran=True, autostart=False, target_had_definition=False),
            guarded=True,
        )
        self.options = {node: storage.options(node, self.resource, other(node)) for node in NODES}

    def begin(self, *, promote: bool = True, resume: bool = True) -> None:
        for node in NODES:
            assert self.storage.take_token(node, self.token) is None
            link = Guarded(resource=self.resource, peer=other(node), options=self.options[node])
            self.storage.arm_guard(node, self.token, [link], resume=resume and node == TARGET)
        for node in NODES:
            self.storage.allow_two_primaries(node, self.resource, other(node), self.token)
        if promote:
            self.storage.promote(TARGET, self.resource, self.token)

    def abandon(self, *nodes: str) -> None:
        """The controller is gone, and the lease ran out."""
        for node in nodes or NODES:
            self.storage.renew_token(node, replace(self.token, lease_s=0.5, guarded=False))

    def role(self, node: str) -> Role:
        return self.storage.observe(node, [self.resource])[self.resource].role

    def says(self, node: str) -> str:
        guard = self.storage.traces(node).guard(self.token.uuid)
        return "" if guard is None else guard.says

    def over(self, *nodes: str) -> bool:
        """Whether nothing is left on these nodes but the record of a token that ran out."""
        found = [self.storage.traces(node) for node in nodes or NODES]
        return not any(traces.guards or any(token.alive for token in traces.tokens) for traces in found)

    def closed(self) -> bool:
        """Whether the options are what they were."""
        return all(self.storage.options(n, self.resource, other(n)) == self.options[n] for n in NODES)

    def pid(self, node: str) -> int:
        unit = f"lvmigrate-guard-{self.token.uuid}"
        return int(self.lab.run(node, f"systemctl show --property=MainPID --value {unit}"))

    def nothing_left(self) -> None:
        assert eventually(self.over), [self.says(node) for node in NODES]
        assert self.closed()
        for node in NODES:
            self.storage.drop_token(node, replace(self.token, id=f"over-{self.token.id}"))
            self.storage.drop_token(node, self.token)
        left = "ls -A /run/lvmigrate; systemctl list-units --plain --no-legend --all 'lvmigrate-*'"
        assert eventually(lambda: self.lab.both(left) == dict.fromkeys(NODES, ""))


@pytest.fixture(params=[WEB1, DB1], ids=lambda guest: guest.name)
def move(request: pytest.FixtureRequest, storage: DrbdStorage, lab: Lab) -> Move:
    return Move(storage, lab, request.param)


@pytest.fixture
def web(storage: DrbdStorage, lab: Lab) -> Move:
    return Move(storage, lab, WEB1)


def test_it_sleeps_while_renewed_and_closes_when_the_lease_runs_out(move: Move, storage: DrbdStorage) -> None:
    short = replace(move.token, lease_s=6)
    move.begin()
    began = time.monotonic()
    while time.monotonic() - began < 2 * short.lease_s:
        for node in NODES:
            storage.renew_token(node, short)
            assert move.says(node) == ""
    assert move.role(TARGET) is Role.PRIMARY
    assert storage.two_primaries(SOURCE) == storage.two_primaries(TARGET) == {move.resource}
    assert eventually(lambda: move.role(TARGET) is Role.SECONDARY)
    move.nothing_left()
    with pytest.raises(TokenLost):
        storage.renew_token(TARGET, short)


def test_another_protocol_is_restored_exactly(web: Move, lab: Lab, storage: DrbdStorage) -> None:
    lab.both("drbdadm net-options --protocol=A web1")
    web.options = {node: storage.options(node, "web1", other(node)) for node in NODES}
    assert {options.protocol for options in web.options.values()} == {"A"}
    web.begin()
    assert all((storage.options(n, "web1", other(n)).protocol or "C") == "C" for n in NODES)
    web.abandon()
    web.nothing_left()


@contextlib.contextmanager
def holding(lab: Lab, node: str, device: str) -> Iterator[None]:
    """Somebody has ``device`` open there."""
    pid = lab.run(node, f"(exec 3<>{device}; exec sleep 600) >/dev/null 2>&1 </dev/null & echo $!").strip()
    try:
        assert eventually(lambda: "sleep" in lab.run(node, f"readlink /proc/{pid}/exe"))
        yield
    finally:
        lab.run(node, f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.05; done")


def test_a_held_device_is_not_taken_from_its_holder(web: Move, lab: Lab, storage: DrbdStorage) -> None:
    web.begin()
    storage.promote(SOURCE, "web1", web.token)
    with holding(lab, SOURCE, "/dev/drbd0"):
        with holding(lab, TARGET, "/dev/drbd0"):
            web.abandon()
            assert eventually(lambda: all("in use here" in web.says(node) for node in NODES))
            time.sleep(5)
            assert {web.role(node) for node in NODES} == {Role.PRIMARY}
            assert storage.two_primaries(SOURCE) == {"web1"}
        assert eventually(lambda: web.role(TARGET) is Role.SECONDARY)
        web.nothing_left()
        # The other one is in use, and the only Primary: that is as it should be.
        assert web.role(SOURCE) is Role.PRIMARY


def test_options_stay_during_a_cut(web: Move, lab: Lab, storage: DrbdStorage) -> None:
    web.begin()
    with cut(lab, "web1"):
        web.abandon()
        assert eventually(lambda: all("not connected" in web.says(node) for node in NODES))
        assert web.role(TARGET) is Role.SECONDARY
        time.sleep(5)
        assert not web.closed()
        assert not web.over(SOURCE)
        assert not web.over(TARGET)
    web.nothing_left()
    assert eventually(lambda: storage.observe(SOURCE)["web1"].in_step_with(TARGET))


@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_a_guard_that_is_killed_comes_back(web: Move, lab: Lab, storage: DrbdStorage, number: str) -> None:
    web.begin()
    first = web.pid(TARGET)
    lab.run(TARGET, f"kill -{number} {first}")
    assert eventually(lambda: web.pid(TARGET) not in {0, first})
    storage.renew_token(TARGET, web.token)
    lab.run(TARGET, f"kill -{number} {web.pid(TARGET)}")
    web.abandon()
    assert eventually(lambda: web.role(TARGET) is Role.SECONDARY)
    web.nothing_left()


def test_a_stopped_service_is_seen_and_armed_again(web: Move, lab: Lab, storage: DrbdStorage) -> None:
    web.begin()
    lab.run(TARGET, f"systemctl stop lvmigrate-guard-{web.token.uuid}")
    (guard,) = storage.traces(TARGET).guards
    assert not guard.alive
    with pytest.raises(CommandFailed) as caught:
        storage.renew_token(TARGET, web.token)
    assert caught.value.code is Code.GUARD_LOST
    storage.arm_guard(TARGET, web.token, guard.guarded, resume=True)
    storage.renew_token(TARGET, web.token)
    assert storage.traces(TARGET).guards[0].alive
    for node in NODES:
        storage.disarm_guard(node, web.token)
        storage.drop_token(node, web.token)
    # What is disarmed does nothing more.
    assert web.over()
    assert web.role(TARGET) is Role.PRIMARY
    assert not web.closed()


def test_without_libvirt_it_waits(web: Move, lab: Lab) -> None:
    web.begin()
    lab.run(TARGET, "systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd; true")
    try:
        web.abandon()
        assert eventually(lambda: "no clear answer" in web.says(TARGET)), web.says(TARGET)
        time.sleep(5)
        assert "no clear answer" in web.says(TARGET)
        assert web.role(TARGET) is Role.PRIMARY
    finally:
        lab.run(TARGET, "systemctl start libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd; true")
    web.nothing_left()
    assert web.role(TARGET) is Role.SECONDARY


# ---- with a guest


def migrate(lab: Lab, guest: Guest, *options: str) -> None:
    """As a move does it, but with nobody to see to its end."""
    uri = tomllib.loads(lab.config.read_text())["nodes"][TARGET]["peer_uri"]
    words = " ".join(("--live --p2p --suspend --persistent --unsafe", *options))
    lab.run(SOURCE, f"virsh -q migrate {words} {guest.name} '{uri}'", timeout_s=200)


@pytest.mark.parametrize("guest", [WEB1, DB1], ids=lambda guest: guest.name)
def test_a_guest_that_waits_is_resumed_once_the_source_was_demoted(
    running: Callable[[Guest], Running], storage: DrbdStorage, lab: Lab, guest: Guest
) -> None:
    it = running(guest)
    move = Move(storage, lab, guest)
    move.begin()
    migrate(lab, guest)
    assert where(lab, guest) == {SOURCE: "shut off", TARGET: "paused"}
    reason = lab.run(TARGET, f"virsh -q domstate --reason {guest.name}").strip()
    assert reason in {"paused (user)", "paused (migration)"}
    # The target's alone: its peer is Primary as yet, or, with 9, was made Secondary when its QEMU ended.
    move.abandon(TARGET)
    not_yet = f"{SOURCE} is not Secondary", f"{SOURCE} has not forbidden two primaries"
    assert eventually(lambda: any(words in move.says(TARGET) for words in not_yet)), move.says(TARGET)
    assert where(lab, guest)[TARGET] == "paused"
    move.abandon(SOURCE)
    assert eventually(lambda: where(lab, guest)[TARGET] == "running"), [move.says(node) for node in NODES]
    move.nothing_left()
    assert (move.role(SOURCE), move.role(TARGET)) == (Role.SECONDARY, Role.PRIMARY)
    lab.run(SOURCE, f"virsh -q undefine {guest.name}")
    it.whole_on(TARGET)


def test_a_copy_under_way_is_left_alone(running: Callable[[Guest], Running], storage: DrbdStorage, lab: Lab) -> None:
    # Dirties more than the one MiB a second that may be sent: the copy cannot end by itself.
    slow = replace(WEB1, dirty_mib=4, rate=400)
    it = running(slow)
    move = Move(storage, lab, slow)
    move.begin()
    uri = tomllib.loads(lab.config.read_text())["nodes"][TARGET]["peer_uri"]
    lab.run(
        SOURCE,
        f"virsh -q migrate --live --p2p --suspend --persistent --unsafe --bandwidth 1 {slow.name} '{uri}'"
        " >/run/w.log 2>&1 </dev/null &",
    )
    try:
        assert eventually(lambda: where(lab, slow)[TARGET] == "paused")
        move.abandon()
        assert eventually(lambda: all("job of the guest" in move.says(node) for node in NODES))
        time.sleep(5)
        assert where(lab, slow) == {SOURCE: "running", TARGET: "paused"}
        assert move.role(TARGET) is Role.PRIMARY
    finally:
        lab.run(SOURCE, f"virsh -q domjobabort {slow.name}")
    # Aborted, the guest goes on at the source, and what was opened is closed.
    move.nothing_left()
    assert (move.role(SOURCE), move.role(TARGET)) == (Role.PRIMARY, Role.SECONDARY)
    it.whole_on(SOURCE)


def test_a_guest_whose_disk_fell_behind_is_not_resumed(
    running: Callable[[Guest], Running], storage: DrbdStorage, lab: Lab
) -> None:
    running(WEB1)
    move = Move(storage, lab, WEB1)
    move.begin()
    with cut(lab, "web1"):
        # The source writes on alone, so its data begin a new generation; the target is Primary of the old one.
        time.sleep(2)
        migrate(lab, WEB1)
        assert where(lab, WEB1)[TARGET] == "paused"
        move.abandon()
        assert eventually(lambda: move.role(SOURCE) is Role.SECONDARY), move.says(SOURCE)
        assert eventually(lambda: "not connected" in move.says(TARGET)), move.says(TARGET)
    try:
        for _ in range(2):
            # DRBD refuses to bring a Primary up to date, and they stand alone; asked again, they do again.
            time.sleep(10)
            assert where(lab, WEB1)[TARGET] == "paused"
            assert move.role(TARGET) is Role.PRIMARY
            assert "web1 is not in step" in move.says(TARGET), move.says(TARGET)
            lab.both("drbdadm connect web1", check=False)
    finally:
        lab.run(TARGET, f"virsh -q destroy {WEB1.name}")
        lab.run(TARGET, "drbdadm disconnect web1; drbdadm secondary web1; drbdadm connect --discard-my-data web1")
        lab.run(SOURCE, "drbdadm connect web1", check=False)
    assert eventually(lambda: storage.observe(SOURCE)["web1"].in_step_with(TARGET))
    move.nothing_left()
