"""The journal's file: killed writers, several writers, full and read-only disks, garbage. Mounts small disks: root."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import acts, sqlite_journal
from lvmigrate.errors import Code, CommandFailed, LvmigrateError, MoveFailed, Refused, UsageError
from lvmigrate.journal import NO_JOURNAL, NO_RECORD, OK, JournalUnusable, Kind, Opening, Record, keep
from lvmigrate.migrate import MigrateInstance
from lvmigrate.protocols import CopyEnd
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.token import Token
from tests.unit.fakes import UUID, World, refusing

ROOT = Path(__file__).resolve().parents[2]
OPENING = Opening(
    tasklet="migrate", instance="web1", uuid=UUID, source="node1", target="node2", holder="a test", plan={"a": [1]}
)


@pytest.fixture
def journal(tmp_path: Path) -> SqliteJournal:
    return SqliteJournal(tmp_path / "new" / "journal.sqlite")


def begin(journal: SqliteJournal) -> Record:
    return journal.begin(OPENING, now=time.monotonic)


def test_what_is_written_is_read(journal: SqliteJournal) -> None:
    assert journal.history() == ()
    record = begin(journal)
    record.add(Kind.STEP, "lock", {"sentence": "s"}, wait=True)
    record.add(Kind.MARK, "source stopped")
    assert (journal.history()[0].outcome, journal.history()[0].seconds) == (None, None)
    record.end("ABORTED", "Aborted as asked.", {"code": "ABORTED"})
    story = journal.story(record.id)
    assert [(row.kind, row.name, row.data) for row in story.rows] == [
        (Kind.STEP, "lock", {"sentence": "s"}),
        (Kind.MARK, "source stopped", {}),
    ]
    assert 0 <= story.rows[0].at_s <= story.rows[1].at_s
    assert (story.plan, story.result) == ({"a": [1]}, {"code": "ABORTED"})
    assert (story.entry.outcome, story.entry.sentence) == ("ABORTED", "Aborted as asked.")
    assert story.entry.seconds is not None
    record.add(Kind.MARK, "too late")
    record.end(OK, "", {})
    assert journal.story("last") == story


def test_the_last_errand_of_an_empty_journal(journal: SqliteJournal) -> None:
    with pytest.raises(UsageError) as caught:
        journal.story("last")
    assert (caught.value.code, caught.value.sentence) == (Code.ERRAND_UNKNOWN, "The journal has no errand yet.")


def test_errands_are_found_by_guest_and_by_the_beginning_of_their_id(journal: SqliteJournal) -> None:
    ids = [begin(journal).id for _ in range(3)]
    assert {entry.id for entry in journal.history()} == set(ids)
    assert len(journal.history(instance="web1", most=2)) == 2
    assert len(journal.history(instance=UUID)) == 3
    assert journal.history(instance="web2") == ()
    assert journal.story(ids[1]).entry.id == ids[1]
    assert journal.story("last").entry.id == journal.history()[0].id
    for wanted in ("2", "nothing", "%"):
        with pytest.raises(UsageError) as caught:
            journal.story(wanted)
        assert caught.value.code is Code.ERRAND_UNKNOWN
        assert ("more than one" in str(caught.value)) is (wanted == "2")


def test_only_so_many_are_kept(journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmigrate.sqlite_journal._KEPT", 3)
    for _ in range(6):
        record = begin(journal)
        record.add(Kind.MARK, "m")
        record.end(OK, "", {})
    assert len(journal.history()) == 3
    with closing(sqlite3.connect(journal._path)) as file:
        assert file.execute("SELECT count(*) FROM row").fetchone() == (3,)


# ---- killed, and several at once

WRITER = """
import sys, time
from pathlib import Path
from lvmigrate.journal import Kind, Opening
from lvmigrate.sqlite_journal import SqliteJournal
names = dict.fromkeys(("tasklet", "instance", "uuid", "source", "target", "holder"), "x")
OPENING = Opening(**names, plan={})
for _ in range(int(sys.argv[2])):
    record = SqliteJournal(Path(sys.argv[1])).begin(OPENING, now=time.monotonic)
    print("began", record.id, flush=True)
    for number in range(int(sys.argv[3])):
        record.add(Kind.ACT, str(number), {"words": "x" * (number % 700)}, wait=True)
        print(record.id, number, flush=True)
    record.end("OK", "", {})
    print("ended", record.id, flush=True)
"""


def aged(journal: SqliteJournal, days: float, *, ended: bool = True) -> str:
    """An errand that began so long ago."""
    record = begin(journal)
    record.add(Kind.MARK, "source stopped", wait=True)
    if ended:
        record.end(OK, "", {})
    with closing(sqlite3.connect(journal._path)) as file, file:
        file.execute("UPDATE errand SET began = began - ? WHERE id = ?", (days * 86_400, record.id))
    return record.id


def rows(journal: SqliteJournal) -> set[str]:
    with closing(sqlite3.connect(journal._path)) as file:
        return {errand for (errand,) in file.execute("SELECT DISTINCT errand FROM row")}


def test_old_errands_are_forgotten_when_that_is_asked_for(journal: SqliteJournal) -> None:
    assert journal.prune(1) == 0
    gone = [aged(journal, 8), aged(journal, 400, ended=False)]
    kept = [aged(journal, 6), aged(journal, 8, ended=False)]  # the second may still be under way
    assert journal.prune(7) == len(gone)
    assert {entry.id for entry in journal.history()} == rows(journal) == set(kept)
    assert journal.prune(7) == 0


def test_a_writer_goes_on_while_the_old_ones_are_forgotten(journal: SqliteJournal) -> None:
    record = begin(journal)
    aged(journal, 8)
    assert journal.prune(7) == 1
    record.add(Kind.MARK, "target runs", wait=True)
    record.end(OK, "", {})
    assert [row.name for row in journal.story(record.id).rows] == ["target runs"]


def test_old_errands_are_forgotten_by_themselves_as_the_configuration_says(journal: SqliteJournal) -> None:
    old = aged(journal, 8)
    begin(journal).end(OK, "", {})
    assert old in rows(journal)
    begin(SqliteJournal(journal._path, keep_days=7)).end(OK, "", {})
    assert old not in rows(journal)
    assert len(journal.history()) == 2


def writer(journal: SqliteJournal, errands: int, rows: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(journal._path), str(errands), str(rows)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_writer_killed_at_any_moment_leaves_every_row_it_had_waited_for(journal: SqliteJournal) -> None:
    chance = random.Random(6)
    cut_off = 0
    for _ in range(8):
        with writer(journal, 1000, 40) as process:
            assert process.stdout is not None
            said = [process.stdout.readline().split() for _ in range(chance.randrange(1, 120))]
            time.sleep(chance.random() / 100)
            process.kill()
            rest = process.stdout.read()
            said += [line.split() for line in rest[: rest.rfind("\n") + 1].splitlines()]  # the last may be half
        assert process.returncode == -signal.SIGKILL
        known = {entry.id: entry for entry in journal.history(most=10_000)}
        for words in said:
            if words[0] == "began":
                assert words[1] in known
            elif words[0] == "ended":
                assert known[words[1]].outcome == OK
        last = next(words for words in reversed(said) if len(words) == 2)
        errand = last[1] if last[0] in ("began", "ended") else last[0]
        story = journal.story(errand)
        numbers = [int(row.name) for row in story.rows]
        waited_for = [int(words[1]) for words in said if words[0] == errand]
        assert numbers == list(range(len(numbers)))
        assert set(waited_for) <= set(numbers)
        cut_off += story.entry.outcome is None
        with closing(sqlite3.connect(journal._path)) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert cut_off
    assert journal.trouble() is None
    begin(journal).end(OK, "", {})


def test_two_writers_at_once(journal: SqliteJournal) -> None:
    processes = [writer(journal, 3, 100) for _ in range(2)]
    for process in processes:
        with process:
            assert process.communicate()
        assert process.returncode == 0
    entries = journal.history()
    assert [entry.outcome for entry in entries] == [OK] * 6
    for entry in entries:
        assert [row.name for row in journal.story(entry.id).rows] == [str(number) for number in range(100)]


def test_a_row_is_not_waited_for_while_another_process_holds_the_file(journal: SqliteJournal) -> None:
    record = begin(journal)
    with closing(sqlite3.connect(journal._path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(50):  # it would never come back from the first if it waited for the other
            record.add(Kind.ACT, str(number), wait=True)
        other.execute("ROLLBACK")
    record.end(OK, "", {})
    assert [row.name for row in journal.story(record.id).rows] == [str(number) for number in range(50)]


# ---- disks


@contextmanager
def small_disk(at: Path, mib: int) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 65536)


def refused(journal: SqliteJournal, why: str) -> None:
    """No errand begins, and a move is refused with nothing changed."""
    finding = journal.trouble()
    assert finding is not None
    assert why in finding.sentence
    assert finding.hint
    with pytest.raises(JournalUnusable) as caught:
        begin(journal)
    assert why in str(caught.value)
    world = World()
    move = MigrateInstance(world.context(journal=journal), "web1")
    with pytest.raises(Refused) as refusal:
        move.check_prereq()
    assert [f.code for f in refusal.value.findings] == [Code.JOURNAL_UNUSABLE]
    assert world.tokens == {}


def test_a_full_disk_refuses(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32) as disk:
        journal = SqliteJournal(disk / "journal.sqlite")
        begin(journal).end(OK, "", {})
        fill(disk)
        refused(journal, "has 0 MiB left")
        assert [entry.outcome for entry in journal.history()] == [OK]
        (disk / "filler").unlink()
        assert journal.trouble() is None


def test_a_disk_that_only_says_it_is_full_when_written_to_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a quota."""
    monkeypatch.setattr("lvmigrate.sqlite_journal._ROOM", 0)
    with small_disk(tmp_path / "disk", 4) as disk:
        journal = SqliteJournal(disk / "journal.sqlite")
        assert journal.trouble() is None
        fill(disk)
        with pytest.raises(JournalUnusable) as caught:
            begin(journal)
        assert "Make room" in caught.value.hint


def test_a_disk_that_fills_up_meanwhile_costs_rows_and_no_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmigrate.sqlite_journal._ROOM", 0)
    with small_disk(tmp_path / "disk", 8) as disk:
        journal = SqliteJournal(disk / "journal.sqlite")
        world = World()
        world.on_look = lambda _left: fill(disk)
        move = MigrateInstance(world.context(journal=journal), "web1")
        move.check_prereq()
        report = move.exec()
        assert (report.target, list(world.violations())) == ("node2", [])
        (disk / "filler").unlink()
        story = journal.story(report.errand)
        steps = [row.name for row in story.rows if row.kind is Kind.STEP]
        assert steps[:5] == ["lock", "sync", "guard", "open", "memory"]


def test_a_read_only_disk_refuses_and_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32) as disk:
        journal = SqliteJournal(disk / "journal.sqlite")
        record = begin(journal)
        record.add(Kind.MARK, "m")
        record.end(OK, "", {})
        with writer(journal, 1, 10**6) as process:  # and one that was killed: its rows are beside the file
            assert process.stdout is not None
            said = [process.stdout.readline().split() for _ in range(20)]
            process.kill()
        for beside in disk.glob("*-shm"):
            beside.unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused(journal, "Read-only file system")
        refused(SqliteJournal(disk / "other.sqlite"), "Read-only file system")
        refused(SqliteJournal(disk / "deep" / "other.sqlite"), "Read-only file system")
        assert [row.name for row in journal.story(record.id).rows] == ["m"]
        rows = [row.name for row in journal.story("last").rows]
        assert rows[:19] == [str(number) for number in range(19)]
        assert journal.story("last").entry.id == said[0][1]


def test_one_errand_more_does_not_take_the_locks_of_another_away(tmp_path: Path) -> None:
    """Whoever closes the file last throws its log away: somebody else must not be told that they are the last."""
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as early:
        early.execute("PRAGMA journal_mode = WAL")
    record = begin(journal)
    record.add(Kind.MARK, "first", wait=True)
    begin(journal).end(OK, "", {})
    log = (tmp_path / "journal.sqlite-wal").stat().st_ino
    code = "import sqlite3, sys; file = sqlite3.connect(sys.argv[1]); file.execute('SELECT * FROM row'); file.close()"
    subprocess.run([sys.executable, "-c", code, tmp_path / "journal.sqlite"], check=True)
    assert (tmp_path / "journal.sqlite-wal").stat().st_ino == log
    record.add(Kind.MARK, "second", wait=True)
    record.end(OK, "", {})
    assert [row.name for row in journal.story(record.id).rows] == ["first", "second"]


def cannot_be_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the process has no file left, or the disk fails, for a moment."""
    really, failed = sqlite_journal._opened_for_reading, threading.Event()

    def opened(path: Path) -> sqlite3.Connection:
        if not failed.is_set():
            failed.set()
            raise sqlite3.OperationalError("disk I/O error")
        return really(path)

    monkeypatch.setattr(sqlite_journal, "_opened_for_reading", opened)


def test_reading_a_copy_does_not_take_the_locks_of_this_process_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    record = begin(journal)
    record.add(Kind.MARK, "first", wait=True)
    cannot_be_opened_once(monkeypatch)
    assert [row.name for row in journal.story(record.id).rows] == ["first"]
    log = (tmp_path / "journal.sqlite-wal").stat().st_ino
    code = "import sqlite3, sys; file = sqlite3.connect(sys.argv[1]); file.execute('SELECT * FROM row'); file.close()"
    subprocess.run([sys.executable, "-c", code, tmp_path / "journal.sqlite"], check=True)
    assert (tmp_path / "journal.sqlite-wal").stat().st_ino == log
    record.end(OK, "", {})
    assert journal.story(record.id).entry.outcome == OK


def test_a_copy_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    begin(journal).end(OK, "", {})
    cannot_be_opened_once(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JournalUnusable, match=r"cannot be read: cp cannot be started \(No such file"):
        journal.history()


def test_a_directory_in_place_of_the_file_refuses(tmp_path: Path) -> None:
    refused(SqliteJournal(tmp_path), "directory")


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(50_000))


def _another_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 7")


def _another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize("spoil", [_garbage, _another_version, _another_program])
def test_a_file_that_is_something_else(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "journal.sqlite"
    spoil(path)
    before = path.read_bytes()
    journal = SqliteJournal(path)
    for call in (lambda: begin(journal), journal.history, lambda: journal.story("last")):
        with pytest.raises(JournalUnusable) as caught:
            call()
        assert str(path) in str(caught.value)
        assert "Move it away" in caught.value.hint
    assert path.read_bytes() == before


def test_pages_of_garbage_never_raise_anything_else(journal: SqliteJournal) -> None:
    for _ in range(3):
        record = begin(journal)
        for number in range(200):
            record.add(Kind.MOMENT, f"moment {number}", {"said_by": "x" * 100})
        record.end(OK, "", {})
    whole = journal._path.read_bytes()
    chance = random.Random(2)
    spoilt = 0
    for _ in range(60):
        pages = bytearray(whole)
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(100, len(pages) - 2000)
            pages[at : at + 500] = chance.randbytes(500)
        for beside in ("-wal", "-shm"):
            journal._path.with_name(journal._path.name + beside).unlink(missing_ok=True)
        journal._path.write_bytes(pages)
        for call in (journal.history, lambda: journal.story("last"), lambda: begin(journal).end(OK, "", {})):
            try:
                call()
            except LvmigrateError as error:
                assert error.hint
                spoilt += 1
    assert spoilt


# ---- what is told to it


def test_a_move_tells_of_its_steps_and_of_every_act_before_and_after_it(journal: SqliteJournal) -> None:
    world = World()
    seen: list[str] = []

    def acted() -> None:
        rows = journal.story("last").rows
        seen.append(next(row.name for row in reversed(rows) if row.kind is Kind.ACT))

    for act in ("allow_two_primaries", "promote", "demote", "arm_guard", "resume"):
        for node in world.roles:
            world.faults[act, node] = acted
    move = MigrateInstance(world.context(journal=journal), "web1")
    move.check_prereq()
    report = move.exec()
    # While each was made, its row was in the file.
    assert set(seen) == {"allow_two_primaries", "promote", "demote", "arm_guard", "resume"}
    story = journal.story(report.errand)
    assert (story.entry.outcome, story.entry.source, story.entry.target) == (OK, "node1", "node2")
    assert story.result is not None
    assert story.result["downtime_s"] == report.downtime_s
    assert [row.name for row in story.rows if row.kind is Kind.STEP] == [name for name, _ in move_steps(story.plan)]
    begun = [row.name for row in story.rows if row.kind is Kind.ACT]
    assert sorted(begun) == sorted(row.name for row in story.rows if row.kind is Kind.ACT_END)
    assert {"take_token", "copy_memory", "undefine", "disarm_guard", "drop_token"} <= set(begun)
    marks = {row.name for row in story.rows if row.kind is Kind.MARK}
    assert marks >= {"two primaries allowed", "source stopped", "target runs", "two primaries forbidden"}
    assert {row.data["node"] for row in story.rows if row.kind is Kind.DISK} == {"node1", "node2"}


def move_steps(plan: Any) -> list[tuple[str, str]]:
    return [(name, sentence) for name, sentence in plan["steps"]]


def test_a_failure_is_told_with_its_code(journal: SqliteJournal) -> None:
    world = World(ending=lambda _world: CopyEnd(ok=False, detail="no"))
    move = MigrateInstance(world.context(journal=journal), "web1")
    move.check_prereq()
    with pytest.raises(MoveFailed):
        move.exec()
    story = journal.story("last")
    assert (story.entry.outcome, story.entry.source) == ("COPY_FAILED", "node1")
    assert [row.data["error"] != "" for row in story.rows if row.kind is Kind.STEP_END] == [False] * 4 + [True]
    assert story.result is not None
    assert story.result["hint"]


def test_an_act_that_fails_is_told(journal: SqliteJournal) -> None:
    world = World()
    world.faults["promote", "node2"] = refusing("node2")
    record = begin(journal)
    context = acts.recorded(world.context(), record)
    token = Token(uuid=UUID, instance="web1", id="i", holder="h", lease_s=30.0, errand=None)
    with pytest.raises(CommandFailed):
        context.storage.promote("node2", "r0", token)
    record.end(OK, "", {})
    before, after = journal.story(record.id).rows
    assert (before.kind, before.data) == (Kind.ACT, {"node": "node2", "about": ["r0"]})
    assert (after.kind, after.data["error"]) == (Kind.ACT_END, "What the test asked failed on node2.")


def test_a_definition_is_not_written_down_it_may_hold_a_password(journal: SqliteJournal) -> None:
    record = begin(journal)
    context = acts.recorded(World().context(), record)
    context.hypervisor.define("node2", "<domain><graphics passwd='hunter2'/></domain>", left_on="node1")
    record.end(OK, "", {})
    before, after = journal.story(record.id).rows
    assert before.data == {"node": "node2", "about": [], "left_on": "node1"}
    assert "hunter2" not in str(after.data)


def test_the_acts_are_methods_of_the_seams() -> None:
    from lvmigrate.protocols import Hypervisor, Storage  # noqa: PLC0415

    assert all(hasattr(Hypervisor, name) for name in acts.HYPERVISOR)
    assert all(hasattr(Storage, name) for name in acts.STORAGE)


def test_what_mends_does_not_need_a_journal(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)  # a directory
    assert keep(journal, OPENING, lambda record: record.id, now=time.monotonic, needed=False) == ""
    with pytest.raises(Refused):
        keep(journal, OPENING, lambda record: record.id, now=time.monotonic)


def test_no_journal() -> None:
    assert NO_JOURNAL.trouble() is None
    assert NO_JOURNAL.begin(OPENING, now=time.monotonic) is NO_RECORD
    for call in (NO_JOURNAL.history, lambda: NO_JOURNAL.story("last")):
        with pytest.raises(JournalUnusable):
            call()
    context = World().context()
    assert acts.recorded(context, NO_RECORD) is context


def test_a_defect_is_told_too(journal: SqliteJournal) -> None:
    with pytest.raises(ZeroDivisionError):
        keep(journal, OPENING, lambda _record: 1 / 0, now=time.monotonic)
    assert journal.history()[0].outcome == "INTERNAL"


def test_threads_of_the_record_end(journal: SqliteJournal) -> None:
    before = threading.active_count()
    begin(journal).end(OK, "", {})
    assert threading.active_count() == before
