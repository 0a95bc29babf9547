"""Starting from a copy that is old, because somebody gives up what it lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import pytest

from lvmigrate import cli
from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, ExitCode, Finding, LeftBehind, LvmigrateError, MoveFailed, Refused, UsageError
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.occasion import Phase
from lvmigrate.replication import OLD, DiskState, Lineage, Resource, Role
from lvmigrate.report import Report
from lvmigrate.token import Token
from tests.unit.fakes import NODES, UUID, World, guest, refusing, unreachable
from tests.unit.test_cli import world as world_of_the_command  # noqa: F401 -- the fixture
from tests.unit.test_move import with_renewing

LOST = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
#: Every state in which a copy is neither good nor old.
BROKEN = sorted(set(DiskState) - OLD - {DiskState.UP_TO_DATE}, key=lambda state: state.value)


def dead(disk: DiskState = DiskState.OUTDATED, **given: Any) -> World:
    """node1 is off, and node2's copy is in this state."""
    world = World(connected=False, roles=dict.fromkeys(NODES, Role.SECONDARY), **given)
    world.disks["node2"] = disk
    world.domains = {node: guest(node, state=DomainState.OFF) for node in NODES}
    world.lineages["node2"] = Lineage(current="A", earlier=(), lost_at=LOST)
    for method in ("domain", "domains", "traces"):
        world.faults[method, "node1"] = unreachable("node1")
    return world


def tasklet(world: World, **options: Any) -> FailoverInstance:
    asked: dict[str, Any] = {"is_off": "node1", "ignore_consistency": True} | options
    return FailoverInstance(world.context(), "web1", target="node2", options=FailoverOptions(**asked))


def fail_over(world: World, **options: Any) -> Report:
    made = tasklet(world, **options)
    made.check_prereq()
    return made.exec()


def refusal(world: World, **options: Any) -> Finding:
    with pytest.raises(Refused) as caught:
        tasklet(world, **options).check_prereq()
    (finding,) = caught.value.findings
    assert not {"promote", "promote_by_force", "define", "take_token"} & {name for name, _ in world.calls}
    return finding


@pytest.mark.parametrize("disk", [DiskState.CONSISTENT, DiskState.OUTDATED])
def test_an_old_copy_is_taken_only_if_asked(disk: DiskState) -> None:
    found = refusal(dead(disk), ignore_consistency=False)
    assert (found.code, disk.value in found.sentence) == (Code.NOT_UPTODATE, True)
    assert "--ignore-consistency --to node2" in found.hint
    world = dead(disk)
    report = fail_over(world)
    assert world.running() == ["node2"]
    assert [name for name, node in world.calls if "promote" in name] == ["promote_by_force"]
    (warning,) = report.warnings
    assert warning.code is Code.COPY_OLD
    assert f"r0/0 is {disk.value} on node2" in warning.sentence
    assert "Everything written since 2026-11-20T10:30:00+00:00, when node2 lost node1" in warning.sentence
    assert "lvmigrate cleanup web1" in warning.hint
    assert world.domains["node2"].left_on == "node1"


def test_the_plan_says_it_before_anything_is_done_and_where_nothing_tells_since_when_that_is_said() -> None:
    world = dead()
    world.lineages["node2"] = Lineage(current="A", earlier=())
    (warning,) = tasklet(world).check_prereq().warnings
    assert "nobody knows when" in warning.sentence
    assert ("promote_by_force", "node2") not in world.calls


def test_a_copy_that_counts_as_good_may_be_as_old_and_since_when_is_said() -> None:
    """After a cut it stays UpToDate, however long the other node goes on alone before it dies."""
    world = dead(DiskState.UP_TO_DATE)
    (warning,) = tasklet(world, ignore_consistency=False).check_prereq().warnings
    assert warning.code is Code.COPY_CUT_OFF
    assert "nothing written since 2026-11-20T10:30:00+00:00, when node2 lost node1 (by the" in warning.sentence
    assert "If node1 lived on after that moment, bring it back" in warning.hint


def test_what_nobody_can_tell_keeps_no_guest_from_being_started() -> None:
    world = dead(DiskState.UP_TO_DATE)
    world.faults["lineages", "node2"] = refusing("node2")
    report = fail_over(world)
    assert [warning.code for warning in report.warnings] == [Code.COPY_CUT_OFF]
    assert "nobody knows when" in report.warnings[0].sentence
    assert world.running() == ["node2"]


@pytest.mark.parametrize("disk", BROKEN)
def test_what_is_not_whole_is_never_taken(disk: DiskState) -> None:
    for asked in (True, False):
        found = refusal(dead(disk), ignore_consistency=asked)
        assert (found.code, disk.value in found.sentence) == (Code.NOT_UPTODATE, True)
        assert "No option starts a guest from it" in found.hint


def test_what_is_anothers_copy_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    world = dead(DiskState.UP_TO_DATE)
    context = world.context()
    observe = context.storage.observe

    def elsewhere(node: str, names: Collection[str] | None = None) -> dict[str, Resource]:
        return {
            name: dataclasses.replace(
                seen, connections=tuple(dataclasses.replace(link, name="node3") for link in seen.connections)
            )
            for name, seen in observe(node, names).items()
        }

    monkeypatch.setattr(context.storage, "observe", elsewhere, raising=False)
    with pytest.raises(Refused) as caught:
        FailoverInstance(context, "web1", target="node2", options=FailoverOptions(is_off="node1")).check_prereq()
    (finding,) = caught.value.findings
    assert finding.code is Code.REPLICA_DIFFERS
    assert "r0 on node2 is a copy of node3's, not of node1's" in finding.sentence


def test_the_dead_node_is_no_target() -> None:
    with pytest.raises(Refused) as caught:
        FailoverInstance(
            dead(DiskState.UP_TO_DATE).context(), "web1", target="node1", options=FailoverOptions(is_off="node1")
        ).check_prereq()
    (finding,) = caught.value.findings
    assert (finding.code, "node1 does not answer" in finding.sentence) == (Code.NODE_UNREACHABLE, True)


def test_what_the_survivor_refuses_to_say_is_no_answer() -> None:
    world = dead(DiskState.UP_TO_DATE)
    world.faults["options", "node2"] = refusing("node2")
    assert "node2" in refusal(world, ignore_consistency=False).sentence


def test_a_resource_that_goes_down_while_it_is_looked_at_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    context = dead(DiskState.UP_TO_DATE).context()
    monkeypatch.setattr(context.storage, "observe", lambda *_: {}, raising=False)
    with pytest.raises(Refused) as caught:
        FailoverInstance(context, "web1", target="node2", options=FailoverOptions(is_off="node1")).check_prereq()
    assert Code.DISK_NOT_REPLICATED in {finding.code for finding in caught.value.findings}


def test_another_guests_local_disk_is_nobodys_concern() -> None:
    world = dead(DiskState.UP_TO_DATE)
    local = dataclasses.replace(guest("node2").disks[0], source="/srv/other.qcow2", kind="file")
    other = "8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0011"
    world.shared_with = guest("node2", name="db1", uuid=other, state=DomainState.OFF, disks=(local,))
    assert fail_over(world).target == "node2"


def test_nobody_is_asked_to_give_up_what_is_there() -> None:
    world = dead(DiskState.UP_TO_DATE)
    report = fail_over(world)
    assert [warning.code for warning in report.warnings] == [Code.COPY_CUT_OFF]
    assert [name for name, _ in world.calls if "promote" in name] == ["promote"]


def test_the_node_has_to_be_named() -> None:
    with pytest.raises(UsageError) as caught:
        FailoverInstance(
            dead().context(), "web1", options=FailoverOptions(is_off="node1", ignore_consistency=True)
        ).check_prereq()
    assert "--to NODE" in caught.value.hint


def test_it_is_no_word_for_a_fence() -> None:
    assert refusal(dead(), is_off=None).code is Code.NOT_FENCED
    world = dead()
    del world.faults["traces", "node1"]  # its ssh answers
    assert refusal(world).code is Code.NODE_ALIVE


def test_while_the_source_answers_nothing_is_given_up() -> None:
    """Its data are the newer ones, and can be had."""
    options = FailoverOptions(ignore_consistency=True)
    world = World(connected=False)
    with pytest.raises(Refused) as caught:
        FailoverInstance(world.context(), "web1", target="node2", options=options).check_prereq()
    found = {finding.code: finding for finding in caught.value.findings}
    assert set(found) == {Code.NOT_CONNECTED, Code.NODE_ALIVE}
    assert "--is-off node1" in found[Code.NODE_ALIVE].hint
    # Where the disks are in step, there is nothing to give up, and nothing is said.
    made = FailoverInstance(World().context(), "web1", target="node2", options=options)
    assert made.check_prereq().warnings == ()


@pytest.mark.parametrize("becomes", [DiskState.INCONSISTENT, DiskState.DISKLESS])
def test_a_copy_that_is_not_whole_any_more_is_not_taken(becomes: DiskState) -> None:
    world = dead()
    world.faults["define", "node2"] = lambda: world.disks.update(node2=becomes)
    with pytest.raises(MoveFailed) as caught:
        fail_over(world)
    assert caught.value.code is Code.INSTANCE_STATE
    assert ("promote_by_force", "node2") not in world.calls


def test_a_copy_that_has_become_old_since_the_plan_is_not_taken() -> None:
    """Nobody was told that it is: what was agreed to is what the plan says."""
    world = dead(DiskState.UP_TO_DATE)
    world.faults["define", "node2"] = lambda: world.disks.update(node2=DiskState.OUTDATED)
    with pytest.raises(MoveFailed) as caught:
        fail_over(world)
    assert caught.value.code is Code.INSTANCE_STATE
    assert not {"promote", "promote_by_force"} & {name for name, _ in world.calls}


def test_one_that_was_not_seen_promoted_is_not_started_from() -> None:
    world = dead()
    world.late_faults["promote_by_force", "node2"] = lambda: world.roles.update(node2=Role.SECONDARY)
    with pytest.raises(LeftBehind) as caught:
        fail_over(world)
    assert "was not seen Primary" in str(caught.value)
    assert world.running() == []


def test_after_a_start_that_failed_it_is_said_that_the_copy_counts_as_good_now() -> None:
    world = dead()
    world.faults["start", "node2"] = refusing("node2")
    with pytest.raises(LeftBehind) as caught:
        fail_over(world)
    assert "the old copy of r0 on node2 counts as UpToDate" in str(caught.value.leftovers)
    assert "the two have parted" in caught.value.hint
    assert world.roles["node2"] is Role.SECONDARY
    # The token runs out, and tells a cleanup.
    assert (list(world.tokens), world.domains["node2"].left_on) == (["node2"], None)


def test_where_the_kernel_refuses_everything_is_as_it_was() -> None:
    world = dead()
    world.faults["promote_by_force", "node2"] = refusing("node2")
    with pytest.raises(LvmigrateError) as caught:
        fail_over(world)
    assert not isinstance(caught.value, LeftBehind)
    assert (world.disks["node2"], world.tokens) == (DiskState.OUTDATED, {})


@pytest.mark.parametrize("asked", [True, False])
def test_hooks_are_told(*, asked: bool) -> None:
    made = tasklet(dead(DiskState.UP_TO_DATE), ignore_consistency=asked)
    plan = made.check_prereq()
    told = made._occasion(plan).environment(Phase.PRE)
    assert told["IGNORE_CONSISTENCY"] == told["GANETI_IGNORE_CONSISTENCY"] == str(asked)


def test_the_command_takes_the_word(world_of_the_command: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    made = dead()
    for name in ("connected", "roles", "disks", "domains", "lineages", "faults"):
        setattr(world_of_the_command, name, getattr(made, name))
    words = ["failover", "web1", "--is-off", "node1", "--ignore-consistency"]
    assert cli.main(words) == ExitCode.USAGE
    assert "--to NODE" in capsys.readouterr().err
    assert cli.main([*words, "--to", "node2", "--dry-run"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "COPY_OLD" in said
    assert "r0/0: old on node2, which is promoted by force" in said
    assert world_of_the_command.running() == []
    assert cli.main([*words, "--to", "node2"]) == ExitCode.OK
    assert "2026-11-20T10:30:00" in capsys.readouterr().out
    assert world_of_the_command.running() == ["node2"]


# ---- a failover from a dead node, whatever its disk is


def test_a_guest_that_somebody_works_on_is_refused() -> None:
    world = dead(DiskState.UP_TO_DATE)
    world.tokens["node2"] = Token(uuid=UUID, instance="web1", id="theirs", holder="another", lease_s=30, errand=None)
    with pytest.raises(Refused) as caught:
        tasklet(world).check_prereq()
    assert [(finding.code, "another" in finding.sentence) for finding in caught.value.findings] == [(Code.LOCKED, True)]
    world.left_s = -1.0  # it ran out
    assert tasklet(world).check_prereq().target == "node2"


def test_one_who_was_there_first_keeps_the_guest() -> None:
    """The token was taken between the checks and the failover: nobody is fenced, and nothing is marked."""
    world = dead(DiskState.UP_TO_DATE)
    fenced: list[str] = []
    context = dataclasses.replace(world.context(), fences={"node1": lambda: fenced.append("node1")})
    made = FailoverInstance(context, "web1", target="node2")
    made.check_prereq()
    world.tokens["node2"] = Token(uuid=UUID, instance="web1", id="theirs", holder="another", lease_s=30, errand=None)
    with pytest.raises(Refused) as caught:
        made.exec()
    assert caught.value.code is Code.LOCKED
    assert fenced == []
    assert ("define", "node2") not in world.calls
    assert world.tokens["node2"].id == "theirs"


def test_what_runs_and_is_not_primary_is_said_and_nothing_is_undone() -> None:
    world = dead(DiskState.UP_TO_DATE)
    world.late_faults["start", "node2"] = lambda: world.roles.update(node2=Role.SECONDARY)
    with pytest.raises(LeftBehind) as caught:
        fail_over(world)
    assert str(caught.value) == "web1 runs on node2, but the failover could not be finished."
    assert "not Primary for all disks" in str(caught.value.leftovers)
    assert world.running() == ["node2"]
    assert world.domains["node2"].left_on == "node1"


def test_the_last_sign_of_life_is_waited_out_and_not_longer_than_a_minute() -> None:
    """DRBD notices after its ping timeout that the node is gone that was just switched off."""
    for dies_after_s, code in ((10, None), (1000, Code.NODE_ALIVE)):
        world = dead(DiskState.UP_TO_DATE)
        made = tasklet(world)
        made.check_prereq()
        begin, looks = world.time, world.calls.count(("traces", "node1"))

        def answers(world: World = world, until: float = begin + dies_after_s) -> None:
            assert world.calls.count(("traces", "node1")) < 200, "nothing lets time pass"
            if world.time > until:
                unreachable("node1")()

        world.faults["traces", "node1"] = answers
        if code is None:
            assert made.exec().running
            assert world.calls.count(("traces", "node1")) - looks < 15
        else:
            with pytest.raises(Refused) as caught:
                made.exec()
            assert caught.value.code is code
            assert 60 < world.time - begin < 63
            assert (world.tokens, world.running()) == ({}, [])


def test_a_node_that_answers_again_is_seen_right_before_promoting() -> None:
    world = dead(DiskState.UP_TO_DATE)
    world.late_faults["define", "node2"] = lambda: world.faults.pop(("traces", "node1"), None) and None
    with pytest.raises(Refused) as caught:
        fail_over(world)
    assert caught.value.code is Code.NODE_ALIVE
    assert ("promote", "node2") not in world.calls
    assert (world.tokens, world.domains["node2"].left_on) == ({}, None)


def test_a_definition_that_is_gone_by_then_is_not_defined_anew() -> None:
    world = dead(DiskState.UP_TO_DATE)
    made = tasklet(world)
    made.check_prereq()
    del world.domains["node2"]
    with pytest.raises(MoveFailed) as caught:
        made.exec()
    assert (caught.value.code, "no definition" in str(caught.value)) == (Code.DEFINITION_MISSING, True)
    assert ("define", "node2") not in world.calls


def test_the_token_is_renewed_right_before_promoting() -> None:
    """A fence command may have taken long, and nobody else is to begin in the middle of this."""
    world = dead(DiskState.UP_TO_DATE)
    fail_over(world)
    names = [name for name, node in world.calls if node == "node2"]
    assert "renew_token" in names[names.index("define") : names.index("promote")]


def test_the_token_is_renewed_until_right_before_it_is_removed() -> None:
    world = dead(DiskState.UP_TO_DATE)
    context, renewing = with_renewing(world)
    stories: list[list[str]] = []
    for method in ("start", "drop_token"):
        world.faults[method, "node2"] = lambda: stories.append(list(renewing.story))
    made = FailoverInstance(context, "web1", target="node2", options=FailoverOptions(is_off="node1"))
    made.check_prereq()
    made.exec()
    assert stories == [["began"], ["began", "ended"]]
