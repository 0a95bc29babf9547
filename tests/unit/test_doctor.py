"""What is complained of on a node, each thing by itself, and of nothing where all is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lvmigrate import cli, cluster
from lvmigrate.audit import Seen
from lvmigrate.doctor import PROGRAMS, Diagnosis, Examined, Severity, complaints_of, diagnose
from lvmigrate.domain import DomainDisk, DomainState, Host
from lvmigrate.errors import Code, CommandFailed, ExitCode
from lvmigrate.premises import Match
from lvmigrate.replication import OtherHand, Resource, Role, Surroundings
from lvmigrate.token import Errand, Token, Traces
from lvmigrate.vitals import Vitals
from tests.unit.fakes import NODES, PATH, PREMISES, UUID, VITALS, World, guest, node_of, unreachable
from tests.unit.test_cli import InMemory

DANGER, ADVICE = Severity.DANGER, Severity.ADVICE


def well() -> World:
    """A guest at rest on node1, and nothing to mend."""
    return World(openers={"node1": 1, "node2": 0})


def found(world: World) -> list[tuple[Severity, Code]]:
    return [(complaint.severity, complaint.finding.code) for complaint in diagnose(world.context()).complaints]


def vital(node: str, **changes: Any) -> Callable[[World], None]:
    return lambda world: world.vitals.update({node: replace(VITALS[node], **changes)})


def premise(node: str, **changes: Any) -> Callable[[World], None]:
    return lambda world: world.premises.update({node: replace(PREMISES[node], **changes)})


def host(node: str, **changes: Any) -> Callable[[World], None]:
    usual = Host(node=node, free_memory_kib=1 << 20, libvirt_version=(11, 3, 0), qemu_version=(10, 0, 0))
    return lambda world: world.hosts.update({node: replace(usual, **changes)})


def refused(_world: World) -> None:
    raise CommandFailed("node2", "Examining the node", status=127, hint="none")


def cached(world: World) -> None:
    disk = DomainDisk(target="vda", source=PATH, kind="block", device="disk", read_only=False, cache="writeback")
    world.set("node1", disks=(disk,))


HAND = OtherHand(program="pacemaker", resource="r0", active=True)
DEAD = Token(
    uuid=UUID,
    instance="web1",
    id="x",
    holder="they",
    lease_s=30,
    errand=Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False),
)


def test_nothing_is_to_be_mended_where_all_is_well() -> None:
    world = well()
    assert diagnose(world.context()) == Diagnosis(
        complaints=(), under_way=(), nodes=NODES, silent=(), exit_code=ExitCode.OK
    )
    # And nothing was changed: no call but looks.
    looks = {"domain", "domains", "host", "locate", "observe", "two_primaries", "traces", "surroundings", "openers"}
    assert {method for method, _ in world.calls} == looks | {"premises", "vitals", "keepalive_s", "guard_trouble"}
    assert world.calls.count(("vitals", "node1")) == 1


@pytest.mark.parametrize(
    ("wrong", "complaint", "words"),
    [
        (lambda w: setattr(w, "keepalive_s", 19.9), (ADVICE, Code.KEEPALIVE_SHORT), "after 19.9 s"),
        (vital("node1", after_drbd={"libvirtd.service": False}), (DANGER, Code.AUTOSTART_ORDER), "web1"),
        (vital("node1", after_drbd={}), (ADVICE, Code.NOT_CHECKED), "waits for DRBD"),
        (lambda w: w.openers.update(node1=0), (DANGER, Code.PRIMARY_UNUSED), "r0 is Primary on node1"),
        (cached, (DANGER, Code.DISK_CACHED), "cache='writeback'"),
        (
            premise("node1", peer=Match.NO, peer_words="error: Host key verification failed."),
            (DANGER, Code.HOST_KEY_UNKNOWN),
            "libvirt on node1 cannot connect to node2's",
        ),
        (
            premise("node2", peer=Match.NO, peer_words="root@node1: Permission denied (publickey)."),
            (DANGER, Code.AUTH_FAILED),
            "libvirt on node2 cannot connect to node1's",
        ),
        (premise("node1", peer=Match.NO, peer_words="no route"), (DANGER, Code.PEER_UNREACHABLE), "no route"),
        (premise("node1", memory=Match.NO, memory_words="no answer"), (DANGER, Code.PORTS_UNREACHABLE), "no answer"),
        (vital("node2", clock_s=-3.0), (ADVICE, Code.CLOCKS_APART), "node2 is 3 s behind that of node1"),
        (vital("node2", clock_s=7.0), (ADVICE, Code.CLOCKS_APART), "node2 is 7 s ahead of that of node1"),
        (vital("node2", module="9.2.1"), (ADVICE, Code.DRBD_DIFFERS), "9.3.3 on node1, 9.2.1 on node2"),
        (
            lambda w: (vital("node1", utils="9.22.0")(w), vital("node2", utils="9.29.0")(w)),
            (ADVICE, Code.DRBD_DIFFERS),
            "drbd-utils: 9.29.0 on node2, 9.22.0 on node1",
        ),
        (host("node2", qemu_version=(9, 2, 0)), (ADVICE, Code.VERSION_OLDER), "QEMU: 9.2.0 on node2, 10.0.0 on node1"),
        (host("node2", libvirt_version=(9, 0, 0)), (ADVICE, Code.VERSION_OLDER), "libvirt: 9.0.0 on node2"),
        (lambda w: setattr(w, "two_primaries", True), (DANGER, Code.TWO_PRIMARIES_ON), "r0"),
        (
            lambda w: w.__dict__.update(two_primaries=True, for_good=True),
            (ADVICE, Code.TWO_PRIMARIES_FOR_GOOD),
            "node1 and node2",
        ),
        (lambda w: setattr(w, "hands", (HAND,)), (ADVICE, Code.OTHER_HANDS), "Pacemaker"),
        (vital("node2", max_sessions=9), (ADVICE, Code.SESSIONS_FEW), "9 sessions"),
        (vital("node2", lacking=frozenset({"flock"})), (DANGER, Code.PROGRAM_MISSING), "node2 has no flock"),
        (vital("node2", lacking=frozenset({"openssl"})), (ADVICE, Code.PROGRAM_MISSING), "no openssl"),
        (vital("node2", lacking=frozenset({"drbdadm"})), (DANGER, Code.PROGRAM_MISSING), "no drbdadm"),
        (lambda w: setattr(w, "guard_trouble", "no systemd"), (DANGER, Code.GUARD_UNAVAILABLE), "no systemd"),
        (lambda w: w.faults.update({("vitals", "node2"): lambda: refused(w)}), (DANGER, Code.COMMAND_FAILED), "node2"),
    ],
)
def test_what_is_wrong_is_said_once_for_each_node(
    wrong: Callable[[World], Any], complaint: tuple[Severity, Code], words: str
) -> None:
    world = well()
    wrong(world)
    told = diagnose(world.context())
    assert {(one.severity, one.finding.code) for one in told.complaints} == {complaint}
    sentences = [one.finding.sentence for one in told.complaints]
    assert any(words in sentence for sentence in sentences)
    assert len(set(sentences)) == len(sentences)
    assert all(one.finding.hint for one in told.complaints)
    if complaint[0] is ADVICE:
        assert told.exit_code is ExitCode.OK
    else:
        left = {Code.PRIMARY_UNUSED, Code.TWO_PRIMARIES_ON}
        assert told.exit_code is (ExitCode.LEFT_BEHIND if complaint[1] in left else ExitCode.REFUSED)


def test_a_module_too_old_is_a_danger() -> None:
    world = well()
    for node in NODES:
        vital(node, module="8.3.16")(world)
    assert found(world) == [(DANGER, Code.DRBD_TOO_OLD)] * 2


def test_clocks_are_not_said_to_be_apart_by_less_than_the_look_can_tell() -> None:
    world = well()
    vital("node2", clock_s=5.0, clock_error_s=3.0)(world)
    assert found(world) == []
    vital("node2", clock_s=5.2, clock_error_s=3.0)(world)
    assert found(world) == [(ADVICE, Code.CLOCKS_APART)]


def test_a_guest_without_kvm_on_an_old_qemu() -> None:
    world = World(openers={"node1": 1, "node2": 0}, domains={"node1": guest("node1", virt_type="qemu")})
    for node in NODES:
        host(node, qemu_version=(7, 2, 0))(world)
    assert found(world) == [(DANGER, Code.QEMU_TCG_LOSES_MEMORY)]
    world.set("node1", virt_type="kvm")
    assert found(world) == []


def test_a_node_without_drbd_needs_no_tools_for_it_and_no_order_at_boot() -> None:
    exam = Examined(
        node="node1",
        host=Host(node="node1", free_memory_kib=1, libvirt_version=(11, 3, 0), qemu_version=(10, 0, 0)),
        vitals=Vitals(node="node1", clock_s=0, clock_error_s=0, lacking=frozenset({"drbdadm", "drbdsetup"})),
        keepalive_s=30,
        guard_trouble="no systemd",
        surroundings=Surroundings(),
        towards={},
    )
    bare = Seen(
        node="node1",
        domains=(guest("node1"),),
        traces=Traces(node="node1", tokens=(), guards=()),
        resources={},
        two_primaries=frozenset(),
        for_good=frozenset(),
        held=frozenset(),
        used={UUID: frozenset()},
    )
    assert list(complaints_of({}, [bare], [exam])) == []
    one = Resource(node="node1", name="r0", role=Role.SECONDARY, suspended="no", volumes=(), connections=())
    codes = [c.finding.code for c in complaints_of({}, [replace(bare, resources={"r0": one})], [exam])]
    assert codes == [Code.PROGRAM_MISSING, Code.PROGRAM_MISSING, Code.GUARD_UNAVAILABLE]


def test_a_guest_that_does_not_start_at_boot_needs_no_order() -> None:
    world = well()
    world.set("node1", autostart=False)
    vital("node1", after_drbd={"libvirtd.service": False})(world)
    assert found(world) == []


def test_a_silent_node_is_part_of_the_answer_and_said_once() -> None:
    world = well()
    for method in ("domains", "vitals", "host", "premises", "observe"):
        world.faults[method, "node2"] = unreachable("node2")
    told = diagnose(world.context())
    assert [(one.severity, one.finding.code) for one in told.complaints] == [(DANGER, Code.NODE_UNREACHABLE)]
    assert (told.nodes, told.silent, told.exit_code) == (("node1",), ("node2",), ExitCode.UNREACHABLE)
    # It is not knocked at either.
    assert ("premises", "node1") not in world.calls


def test_one_that_is_out_of_use_may_be_silent() -> None:
    world = well()
    world.faults["domains", "node2"] = unreachable("node2")
    nodes = {"node1": node_of("node1"), "node2": replace(node_of("node2"), offline="in repair")}
    told = diagnose(replace(world.context(), nodes=nodes))
    assert [(one.severity, one.finding.code) for one in told.complaints] == [(ADVICE, Code.NODE_UNREACHABLE)]
    assert (told.silent, told.exit_code) == (("node2",), ExitCode.OK)
    # One that is silent against the operator's word is told all the same.
    world.faults["domains", "node1"] = unreachable("node1")
    assert diagnose(replace(world.context(), nodes=nodes)).exit_code is ExitCode.UNREACHABLE


def test_what_a_dead_command_has_left_and_what_a_living_one_has_open() -> None:
    world = well()
    world.tokens, world.left_s = {"node1": DEAD}, -10.0
    told = diagnose(world.context())
    assert [one.finding.code for one in told.complaints] == [Code.LEFT_BEHIND]
    assert told.exit_code is ExitCode.LEFT_BEHIND
    world.left_s, world.two_primaries = 10.0, True
    told = diagnose(world.context())
    assert told.complaints == ()
    assert [held.holder for held in told.under_way] == ["they"]


def test_a_tombstone() -> None:
    world = well()
    world.domains["node2"] = guest("node2", state=DomainState.OFF, autostart=False)
    world.set("node1", left_on="node2")
    assert found(world) == [(DANGER, Code.LEFT_BEHIND)]


def test_dangers_come_first() -> None:
    world = well()
    vital("node1", lacking=frozenset({"bash", "virsh"}))(world)
    assert [severity for severity, _ in found(world)] == [DANGER, ADVICE]
    assert set(PROGRAMS) >= {"find", "flock", "systemd-run"}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = well()
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: InMemory(world))
    return world


def test_the_command(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == ExitCode.OK
    assert capsys.readouterr().out == "nothing is to be mended on node1, node2\n"
    vital("node2", lacking=frozenset({"virsh"}))(world)
    assert cli.main(["doctor"]) == ExitCode.REFUSED
    out = capsys.readouterr().out
    assert "  danger PROGRAM_MISSING: node2 has no virsh.\n      next: Install libvirt-clients there.\n" in out
    assert cli.main(["doctor", "--json"]) == ExitCode.REFUSED
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["complaints"][0]["severity"]) == (3, "danger")
    assert told["complaints"][0]["finding"]["code"] == "PROGRAM_MISSING"
