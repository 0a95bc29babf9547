"""Hooks: real executables in real directories, around moves in memory."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lvmigrate import cli, config, hooks
from lvmigrate.cleanup import CleanupInstance
from lvmigrate.domain import Nic
from lvmigrate.errors import Code, ExitCode, MoveAborted, Refused
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.migrate import MigrateInstance
from lvmigrate.occasion import Occasion, Operation, Phase
from lvmigrate.plan import Mode, Options
from lvmigrate.report import CleanupReport, Report
from lvmigrate.sqlite_journal import SqliteJournal
from tests.unit.fakes import PATH, UUID, World, guest

LONG_S = 120.0


def hook(directory: Path, part: str, name: str, text: str, *, mode: int = 0o755) -> Path:
    path = directory / f"{part}.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def migrate(world: World, directory: Path, options: Options | None = None, **changes: Any) -> Report:
    tasklet = MigrateInstance(world.context(hooks=directory, **changes), "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


def fail_over(world: World, directory: Path) -> Report:
    options = FailoverOptions(shutdown_timeout_s=90)
    tasklet = FailoverInstance(world.context(hooks=directory), "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


def clean_up(world: World, directory: Path) -> CleanupReport:
    tasklet = CleanupInstance(world.context(hooks=directory), "web1")
    tasklet.check_prereq()
    return tasklet.exec()


def untouched(world: World) -> None:
    """Nothing that changes anything was called."""
    acts = {"take_token", "allow_two_primaries", "promote", "copy_memory", "shut_down", "define", "arm_guard"}
    assert acts & {method for method, _ in world.calls} == set()


def told(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


def test_a_migration_tells_its_hooks_what_the_seed_tells(tmp_path: Path) -> None:
    for phase in ("pre", "post"):
        hook(tmp_path, f"instance-migrate-{phase}", "10-env", f"env >{tmp_path}/{phase}")
    world = World(sizes={"node1": 2048, "node2": 2048})
    world.set("node1", memory_kib=2048, nics=(Nic(mac="52:54:00:00:00:01", kind="bridge", link="br0"),))
    migrate(world, tmp_path)
    before, after = told(tmp_path / "pre"), told(tmp_path / "post")
    expected = {
        "HOOKS_VERSION": "2",
        "HOOKS_PATH": "instance-migrate",
        "OP_CODE": "OP_INSTANCE_MIGRATE",
        "OP_TARGET": "web1",
        "OBJECT_TYPE": "INSTANCE",
        "OLD_PRIMARY": "node1",
        "NEW_PRIMARY": "node2",
        "OLD_SECONDARY": "node2",
        "NEW_SECONDARY": "node1",
        "MIGRATE_LIVE": "True",
        "MIGRATE_CLEANUP": "False",
        "ALLOW_RUNTIME_CHANGES": "False",
        "IGNORE_CONSISTENCY": "False",
        "INSTANCE_NAME": "web1",
        "INSTANCE_PRIMARY": "node1",
        "INSTANCE_SECONDARIES": "node2",
        "INSTANCE_STATUS": "up",
        "INSTANCE_MEMORY": "2",
        "INSTANCE_VCPUS": "1",
        "INSTANCE_DISK_TEMPLATE": "drbd",
        "INSTANCE_DISK_COUNT": "1",
        "INSTANCE_DISK0_NAME": PATH,
        "INSTANCE_DISK0_SIZE": "2",
        "INSTANCE_DISK0_MODE": "rw",
        "INSTANCE_NIC_COUNT": "1",
        "INSTANCE_NIC0_MAC": "52:54:00:00:00:01",
        "INSTANCE_NIC0_MODE": "bridged",
        "INSTANCE_NIC0_LINK": "br0",
    }
    for seen, phase in ((before, "pre"), (after, "post")):
        for name, value in {**expected, "HOOKS_PHASE": phase}.items():
            assert (seen[name], seen[f"GANETI_{name}"]) == (value, value)
        assert seen["PATH"] == "/sbin:/bin:/usr/sbin:/usr/bin"
        assert "HOME" not in seen
    assert "POST_INSTANCE_PRIMARY" not in before
    assert (after["GANETI_POST_INSTANCE_PRIMARY"], after["POST_INSTANCE_SECONDARIES"]) == ("node2", "node1")


def test_a_move_that_is_not_live_says_so(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-pre", "10-env", f"env >{tmp_path}/pre")
    migrate(World(), tmp_path, Options(mode=Mode.NON_LIVE, allow_runtime_changes=True))
    seen = told(tmp_path / "pre")
    assert (seen["GANETI_MIGRATE_LIVE"], seen["ALLOW_RUNTIME_CHANGES"]) == ("False", "True")


def test_a_failover_and_a_cleanup_tell_theirs(tmp_path: Path) -> None:
    hook(tmp_path, "instance-failover-pre", "10-env", f"env >{tmp_path}/failover")
    hook(tmp_path, "instance-failover-post", "10-env", f"env >{tmp_path}/over")
    hook(tmp_path, "instance-migrate-pre", "10-env", f"env >{tmp_path}/cleanup")
    hook(tmp_path, "instance-migrate-post", "10-env", f"env >{tmp_path}/clean")
    world = World()
    fail_over(world, tmp_path)
    seen = told(tmp_path / "failover")
    assert (seen["OP_CODE"], seen["SHUTDOWN_TIMEOUT"], seen["OLD_PRIMARY"]) == ("OP_INSTANCE_FAILOVER", "90", "node1")
    assert told(tmp_path / "over")["POST_INSTANCE_PRIMARY"] == "node2"
    assert not (tmp_path / "cleanup").exists()
    clean_up(world, tmp_path)
    seen = told(tmp_path / "cleanup")
    assert (seen["OP_CODE"], seen["MIGRATE_CLEANUP"]) == ("OP_INSTANCE_MIGRATE", "True")
    assert told(tmp_path / "clean")["GANETI_POST_INSTANCE_PRIMARY"] == "node2"


def test_names_as_run_parts_takes_them_and_their_order(tmp_path: Path) -> None:
    for name in ("20-b", "10-a", "Z_z", "a.sh", "b~", ".c", "d e", "x.dpkg-old"):
        hook(tmp_path, "instance-migrate-pre", name, f'echo "{name}" >>{tmp_path}/order')
    (tmp_path / "instance-migrate-pre.d" / "directory").mkdir()
    assert migrate(World(), tmp_path).warnings == ()
    assert (tmp_path / "order").read_text().split() == ["10-a", "20-b", "Z_z"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("echo not today; exit 3", "ended with 3; it said: not today"), ("kill -9 $$", "was ended by signal 9")],
)
@pytest.mark.parametrize("act", [migrate, fail_over, clean_up])
def test_a_pre_hook_that_fails_refuses_and_nothing_was_begun(tmp_path: Path, act: Any, text: str, words: str) -> None:
    part = "instance-failover-pre" if act is fail_over else "instance-migrate-pre"
    bad = hook(tmp_path, part, "10-bad", text)
    hook(tmp_path, part, "20-later", f"touch {tmp_path}/later")
    hook(tmp_path, part.replace("pre", "post"), "10-after", f"touch {tmp_path}/later")
    world = World()
    with pytest.raises(Refused) as caught:
        act(world, tmp_path)
    (finding,) = caught.value.findings
    assert (finding.code, caught.value.exit_code) == (Code.HOOK_FAILED, ExitCode.REFUSED)
    assert f"The pre hook {bad} {words}" in finding.sentence
    assert not (tmp_path / "later").exists()
    untouched(world)
    assert (world.running(), world.tokens) == (["node1"], {})


def test_a_pre_hook_that_hangs_is_ended_with_its_child(tmp_path: Path) -> None:
    text = f"trap '' TERM\n(trap '' TERM; sleep 1000) &\necho $! >{tmp_path}/child\nsleep 1000\nsleep 1000"
    hook(tmp_path, "instance-migrate-pre", "10-hangs", text)
    world = World()
    with pytest.raises(Refused, match=r"did not end within 0\.5 s"):
        migrate(world, tmp_path, hook_timeout_s=0.5)
    untouched(world)
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    deadline = time.monotonic() + LONG_S
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_post_hook_that_fails_is_a_warning(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-post", "10-bad", "echo no >&2; exit 1")
    hook(tmp_path, "instance-migrate-post", "15-none", "").write_text("#!/no/such/program\n")
    hook(tmp_path, "instance-migrate-post", "20-good", f"touch {tmp_path}/later")
    world = World()
    with capture_logs() as logs:
        report = migrate(world, tmp_path)
    failures = ["10-bad ended with 1; it said: no.", "15-none cannot be started: No such file or directory."]
    assert [found.code for found in report.warnings] == [Code.HOOK_FAILED] * 2
    assert [found.sentence.rpartition("/")[2] for found in report.warnings] == failures
    assert [log["what"].rpartition("/")[2] for log in logs if log["event"] == "post_hook_failed"] == failures
    assert (tmp_path / "later").exists()
    assert list(world.violations()) == []


def test_one_that_cannot_be_started_is_in_the_journal(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-post", "10-none", "").write_text("#!/no/such/program\n")
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    migrate(World(), tmp_path, journal=journal)
    said = [row.name for row in journal.story("last").rows if row.data.get("said_by") == "hooks"]
    assert [name.partition(": ")[0] for name in said] == ["post hook 10-none begins", "post hook 10-none"]
    assert said[1].endswith("10-none cannot be started: No such file or directory.")


def test_one_that_is_not_executable_is_not_run_and_that_is_said(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-pre", "10-plain", f"touch {tmp_path}/ran", mode=0o644)
    (tmp_path / "instance-migrate-pre.d" / "20-dangling").symlink_to("/no/such/file")
    os.mkfifo(tmp_path / "instance-migrate-pre.d" / "30-pipe", mode=0o755)
    plan = MigrateInstance(World().context(hooks=tmp_path), "web1").check_prereq()
    assert [found.code for found in plan.warnings] == [Code.HOOK_SKIPPED] * 3
    assert "10-plain is not executable" in plan.warnings[0].sentence
    migrate(World(), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_check_runs_none(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-pre", "10-a", f"touch {tmp_path}/ran")
    MigrateInstance(World().context(hooks=tmp_path), "web1").check_prereq()
    assert not (tmp_path / "ran").exists()


def test_no_part_is_no_hook(tmp_path: Path) -> None:
    assert migrate(World(), tmp_path).warnings == ()


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("part", ["instance-migrate-pre.d", "instance-migrate-post.d", "."])
def test_a_directory_that_cannot_be_read_refuses(tmp_path: Path, part: str) -> None:
    directory = tmp_path / "hooks"
    (directory / part).mkdir(parents=True, exist_ok=True)
    tmp_path.chmod(0o755)
    directory.chmod(0o755)
    (directory / part).chmod(0o700)
    for outer in tmp_path.parents[:3]:
        outer.chmod(outer.stat().st_mode | 0o005)
    world = World()
    with nobody(), pytest.raises(Refused) as caught:
        MigrateInstance(world.context(hooks=directory), "web1").check_prereq()
    (finding,) = {finding.sentence: finding for finding in caught.value.findings}.values()
    assert finding.code is Code.HOOK_FAILED
    assert "cannot be listed: Permission denied" in finding.sentence
    untouched(world)


@pytest.mark.parametrize("is_file", [True, False])
def test_a_directory_that_is_none_refuses(tmp_path: Path, *, is_file: bool) -> None:
    if is_file:
        (tmp_path / "x").write_text("")
    for tasklet in (MigrateInstance, FailoverInstance):
        with pytest.raises(Refused) as caught:
            tasklet(World().context(hooks=tmp_path / "x"), "web1").check_prereq()
        assert caught.value.code is Code.HOOK_FAILED
    with pytest.raises(Refused, match="cannot be listed"):
        clean_up(World(), tmp_path / "x")


def test_huge_output_that_is_no_text_is_kept_in_part(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-pre", "10-loud", "printf '\\377\\000'; head -c 3000000 /dev/zero | tr '\\0' a")
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    migrate(World(), tmp_path, journal=journal)
    begun, ended = [row for row in journal.story("last").rows if row.data.get("said_by") == "hooks"]
    assert begun.name == "pre hook 10-loud begins"
    assert ended.name.startswith("pre hook 10-loud ended with 0: ... aaa")
    assert ended.data["output"].startswith("\\xff\0aaaa")
    assert (ended.data["cut_off"], len(ended.data["output"]) < 70_000) == (True, True)


def test_what_refused_is_in_the_journal(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-pre", "10-bad", "echo 'the disk'; echo 'is full' >&2; exit 1")
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    with pytest.raises(Refused, match="it said: the disk is full"):
        migrate(World(), tmp_path, journal=journal)
    story = journal.story("last")
    assert story.entry.outcome == "HOOK_FAILED"
    assert [row.data for row in story.rows if "output" in row.data] == [
        {"said_by": "hooks", "output": "the disk\n", "errors": "is full\n", "cut_off": False}
    ]


def test_a_stop_that_is_asked_for_meanwhile(tmp_path: Path) -> None:
    cancel, begun = threading.Event(), tmp_path / "begun"
    hook(tmp_path, "instance-migrate-pre", "10-hangs", f"touch {begun}; sleep 1000")

    def ask() -> None:
        deadline = time.monotonic() + LONG_S
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        cancel.set()

    asks = threading.Thread(target=ask)
    asks.start()
    world = World()
    with pytest.raises(MoveAborted):
        migrate(world, tmp_path, cancel=cancel)
    asks.join()
    untouched(world)


def test_words_of_a_guest_never_reach_a_shell(tmp_path: Path) -> None:
    hook(tmp_path, "instance-migrate-pre", "10-env", f'printf %s "$INSTANCE_NAME" >{tmp_path}/name')
    name = "a; touch b $(c) `d`\n"
    world = World(domains={"node1": guest("node1", name=name)})
    tasklet = MigrateInstance(world.context(hooks=tmp_path), UUID)
    tasklet.check_prereq()
    tasklet.exec()
    assert (tmp_path / "name").read_text() == name


def test_a_guest_that_nobody_knows_any_more() -> None:
    occasion = Occasion(
        operation=Operation.MIGRATE, instance="a\0b", uuid="u", domain=None, source="n1", target="n2", cleanup=True
    )
    seen = occasion.environment(Phase.POST, now_on=None)
    assert (seen["INSTANCE_NAME"], seen["GANETI_INSTANCE_PRIMARY"], "INSTANCE_VCPUS" in seen) == ("ab", "n1", False)


def test_the_configuration_names_them(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('[nodes.a]\n[hooks]\ndirectory = "hooks"\ntimeout_s = 5\n')
    assert (config.load(path).hooks, config.load(path).hook_timeout_s) == (tmp_path / "hooks", 5)
    path.write_text("[nodes.a]\n")
    assert (config.load(path).hooks, config.load(path).hook_timeout_s) == (None, 60)


def test_the_command_tells_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lvmigrate import cluster  # noqa: PLC0415
    from tests.unit.test_cli import InMemory  # noqa: PLC0415

    class Hooked(InMemory):
        def _context(self, *args: Any, **kwargs: Any) -> Any:
            import dataclasses  # noqa: PLC0415

            return dataclasses.replace(super()._context(*args, **kwargs), hooks=tmp_path)

    hook(tmp_path, "instance-migrate-post", "10-bad", "exit 1")
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: Hooked(World()))
    assert cli.main(["migrate", "web1", "--json"]) == ExitCode.OK
    assert [found["code"] for found in json.loads(capsys.readouterr().out)["warnings"]] == ["HOOK_FAILED"]
    hook(tmp_path, "instance-migrate-pre", "10-bad", "exit 1")
    assert cli.main(["migrate", "web1"]) == ExitCode.REFUSED
    assert "HOOK_FAILED: The pre hook" in capsys.readouterr().err


def test_listing_needs_the_directory_itself(tmp_path: Path) -> None:
    with pytest.raises(hooks.Unreadable):
        hooks.listed(tmp_path / "none", "instance-migrate-pre.d")
    assert hooks.listed(tmp_path, "instance-migrate-pre.d") == ()
