"""What is around a guest's resources: refused, said, or survived."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import pytest

from lvmigrate.audit import audit
from lvmigrate.cleanup import CleanupInstance
from lvmigrate.domain import DomainDisk
from lvmigrate.errors import Code, CommandFailed, MoveFailed, Refused
from lvmigrate.migrate import MigrateInstance
from lvmigrate.replication import (
    Connection,
    ConnectionOptions,
    ConnectionState,
    DiskState,
    OtherHand,
    PeerVolume,
    Place,
    Reach,
    ReplicationState,
    Role,
)
from lvmigrate.report import Report
from tests.unit.fakes import World, guest


def world(**changes: object) -> World:
    return dataclasses.replace(World(), **changes)  # type: ignore[arg-type]


def third(disk: DiskState) -> tuple[Connection, ...]:
    volume = PeerVolume(number=0, replication=ReplicationState.ESTABLISHED, disk=disk)
    link = Connection(
        name="node3",
        peer_node_id=2,
        state=ConnectionState.CONNECTED,
        peer_role=Role.SECONDARY,
        congested=False,
        volumes=(volume,),
    )
    return (link,)


def migrate(made: World) -> Report:
    tasklet = MigrateInstance(made.context(), "web1")
    tasklet.check_prereq()
    return tasklet.exec()


MADE_REFUSAL = CommandFailed(
    "node2", "Promoting r0", status=11, hint="none", code=Code.STORAGE_FAILED, detail="(-1) Multiple primaries"
)
LINSTOR = OtherHand(program="linstor", resource="r0", active=True)
PROMOTER = OtherHand(program="drbd-reactor", resource="r0", active=False)
PACEMAKER = OtherHand(program="pacemaker", resource="r0", active=True)


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (world(sizes={"node1": 100, "node2": 90}), Code.SIZE_DIFFERS),
        (world(versions={"node1": "8.3.16", "node2": "8.4.11"}), Code.DRBD_TOO_OLD),
    ],
)
def test_refused(made: World, code: Code) -> None:
    with pytest.raises(Refused) as caught:
        MigrateInstance(made.context(), "web1").check_prereq()
    assert [finding.code for finding in caught.value.findings] == [code]


@pytest.mark.parametrize(
    ("there", "hint"),
    [
        (Place(resource="r0", volume=1), "Use a path that leads to the same replica on both nodes"),
        (Place(resource="other", volume=0), "call it r0 on node2 too"),
    ],
)
def test_a_device_that_is_another_one_at_the_target_is_refused(
    monkeypatch: pytest.MonkeyPatch, there: Place, hint: str
) -> None:
    context = World().context()
    here = context.storage.locate

    def locate(node: str, paths: Collection[str]) -> Mapping[str, Place]:
        return here(node, paths) if node == "node1" else dict.fromkeys(paths, there)

    monkeypatch.setattr(context.storage, "locate", locate, raising=False)
    with pytest.raises(Refused) as caught:
        MigrateInstance(context, "web1").check_prereq()
    (finding,) = (found for found in caught.value.findings if found.code is Code.REPLICA_DIFFERS)
    assert f"is r0/0 on node1, but {there.resource}/{there.volume} on node2" in finding.sentence
    assert hint in finding.hint


def test_a_base_that_only_one_node_has_is_refused() -> None:
    """An overlay is replicated, and the image that it lies on is a file of each node's own: not the same one."""
    base = DomainDisk(
        target="a base of vda", source="/srv/base.qcow2", kind="file", device="disk", read_only=True, format="qcow2"
    )
    there = guest("node1")
    chained = dataclasses.replace(there, disks=(dataclasses.replace(there.disks[0], behind=(base,)),))
    with pytest.raises(Refused) as caught:
        MigrateInstance(World(domains={"node1": chained}).context(), "web1").check_prereq()
    (finding,) = caught.value.findings
    assert finding.code is Code.DISK_NOT_REPLICATED
    assert "a base of vda of web1" in finding.sentence
    assert "/srv/base.qcow2" in finding.sentence
    assert "virsh blockpull" in finding.hint


@pytest.mark.parametrize(
    ("here", "there", "pair"),
    [
        (("ipv4:10.0.0.1:7788", "ipv4:10.0.0.2:7788"), ("ipv4:10.0.0.2:7788", "ipv4:10.0.0.1:7788"), True),
        (("ipv4:10.0.0.1:7788", "ipv4:10.0.0.3:7788"), ("ipv4:10.0.0.2:7788", "ipv4:10.0.0.4:7788"), False),
        (("ipv4:10.0.0.1:7788", "ipv4:10.0.0.2:7788"), ("ipv4:10.0.0.2:7788", "ipv4:10.0.0.1:7789"), False),
        (("r0", "1"), ("r0", "0"), True),  # 9 says which node it is
        ((), (), True),
    ],
)
def test_with_84_the_copy_is_known_by_its_address(
    monkeypatch: pytest.MonkeyPatch,
    here: tuple[str, ...],
    there: tuple[str, ...],
    pair: bool,  # noqa: FBT001
) -> None:
    """Every connection of 8.4 leads to "peer": another pair's resource of that name looks just like the copy."""
    context = World().context()
    options = context.storage.options

    def called(node: str, name: str, peer: str) -> ConnectionOptions:
        return dataclasses.replace(options(node, name, peer), called=here if node == "node1" else there)

    monkeypatch.setattr(context.storage, "options", called, raising=False)
    if pair:
        assert MigrateInstance(context, "web1").check_prereq().target == "node2"
        return
    with pytest.raises(Refused) as caught:
        MigrateInstance(context, "web1").check_prereq()
    (finding,) = caught.value.findings
    assert finding.code is Code.REPLICA_DIFFERS
    assert all(address in finding.sentence for address in (*here, *there))


@pytest.mark.parametrize(
    ("made", "code", "words"),
    [
        (world(protocol="A"), Code.PROTOCOL_NOT_C, "protocol A"),
        (world(third=third(DiskState.UP_TO_DATE)), Code.THIRD_REPLICA, "a copy on node3 too"),
        (world(versions={"node1": "8.4.11", "node2": "9.2.1"}), Code.DRBD_DIFFERS, "node1 runs DRBD 8.4.11"),
        (world(hands=(LINSTOR,)), Code.OTHER_HANDS, "LINSTOR has r0 in its configuration too, on node1 and node2."),
        (world(hands=(PROMOTER,)), Code.OTHER_HANDS, "on node1 (where it does not run) and node2"),
        (world(hands=(PACEMAKER,)), Code.OTHER_HANDS, "Pacemaker"),
        (world(two_primaries=True, for_good=True), Code.TWO_PRIMARIES_FOR_GOOD, "left as it is"),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else "",
)
def test_said_and_no_reason_to_stop(made: World, code: Code, words: str) -> None:
    (warning,) = MigrateInstance(made.context(), "web1").check_prereq().warnings
    assert warning.code is code
    assert words in warning.sentence
    assert warning.hint


def test_a_third_node_without_a_copy_is_none() -> None:
    made = world(third=third(DiskState.DISKLESS))
    assert MigrateInstance(made.context(), "web1").check_prereq().warnings == ()


IMAGE = Reach(what="NFS filer:/vms web1.img (inode 7)")


def test_a_guest_on_shared_storage_moves_with_nothing_to_open() -> None:
    made = world(replicated=False, reached={"node1": IMAGE, "node2": IMAGE})
    assert migrate(made).target == "node2"
    assert not {"allow_two_primaries", "promote", "demote", "arm_guard"} & {name for name, _ in made.calls}


@pytest.mark.parametrize(
    ("there", "code"),
    [
        ({}, Code.REPLICA_MISSING),
        ({"node2": Reach(what="NFS filer:/old web1.img (inode 7)")}, Code.SHARED_DIFFERS),
        (
            {"node2": dataclasses.replace(IMAGE, exclusive="it is mapped with the option exclusive")},
            Code.SHARED_EXCLUSIVE,
        ),
    ],
)
def test_shared_storage_that_is_not_the_same_or_not_for_two(there: dict[str, Reach], code: Code) -> None:
    made = world(replicated=False, reached={"node1": IMAGE, **there})
    with pytest.raises(Refused) as caught:
        MigrateInstance(made.context(), "web1").check_prereq()
    assert [finding.code for finding in caught.value.findings] == [code]


def test_a_disk_that_qemu_reaches_over_the_network_needs_nothing_of_the_nodes() -> None:
    made = World()
    (disk, *_) = made.domains["node1"].disks
    remote = dataclasses.replace(disk, source=None, kind="network", network=True)
    made.domains["node1"] = dataclasses.replace(made.domains["node1"], disks=(remote,))
    MigrateInstance(made.context(), "web1").check_prereq()
    made.domains["node1"] = dataclasses.replace(
        made.domains["node1"], disks=(dataclasses.replace(remote, network=False),)
    )
    with pytest.raises(Refused) as caught:
        MigrateInstance(made.context(), "web1").check_prereq()
    assert caught.value.code is Code.DISK_NOT_REPLICATED


def test_two_primaries_that_are_configured_are_left() -> None:
    made = world(two_primaries=True, for_good=True)
    report = migrate(made)
    assert [warning.code for warning in report.warnings] == [Code.TWO_PRIMARIES_FOR_GOOD]
    assert made.two_primaries
    assert made.roles == {"node1": Role.SECONDARY, "node2": Role.PRIMARY}
    assert made.running() == ["node2"]


def test_the_audit_notes_them_and_a_cleanup_leaves_them() -> None:
    made = world(two_primaries=True, for_good=True, openers={"node1": 1, "node2": 0})
    found = audit(made.context())
    assert found.findings == ()
    assert [(note.code, "node1 and node2" in note.sentence) for note in found.notes] == [
        (Code.TWO_PRIMARIES_FOR_GOOD, True)
    ]
    cleanup = CleanupInstance(made.context(), "web1")
    assert not cleanup.check_prereq().acts
    assert made.two_primaries
    made.for_good = False
    found = audit(made.context())
    assert {finding.code for finding in found.findings} == {Code.TWO_PRIMARIES_ON}
    assert found.notes == ()


def test_what_other_hands_forbid_before_the_promotion_is_allowed_again() -> None:
    made = World()
    adjusted: list[str] = []

    def adjust() -> None:
        if len(adjusted) < 2:
            adjusted.append("drbdadm adjust")
            made.two_primaries = False
            raise MADE_REFUSAL

    made.faults["promote", "node2"] = adjust
    report = migrate(made)
    assert (report.target, len(adjusted)) == ("node2", 2)
    assert list(made.violations()) == []


def test_what_other_hands_forbid_again_and_again_is_undone() -> None:
    made = World()

    def adjust() -> None:
        made.two_primaries = False
        raise MADE_REFUSAL

    made.faults["promote", "node2"] = adjust
    with pytest.raises(MoveFailed) as caught:
        migrate(made)
    assert caught.value.hint
    assert [name for name, _ in made.calls].count("promote") == 3
    assert made.running() == ["node1"]
    assert list(made.violations()) == []


def test_a_promotion_that_is_refused_for_another_reason_is_not_tried_again() -> None:
    made = World()

    def refuse() -> None:
        raise MADE_REFUSAL

    made.faults["promote", "node2"] = refuse
    with pytest.raises(MoveFailed):
        migrate(made)
    assert [name for name, _ in made.calls].count("promote") == 1
