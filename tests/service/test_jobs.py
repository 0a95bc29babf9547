"""The queue: who goes first, who has to wait, what is written down. And orders, which say what the options say."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from lvmigrate.convergence import NAMED
from lvmigrate.errors import Code, UsageError
from lvmigrate.failover import FailoverOptions
from lvmigrate.journal import JournalUnusable
from lvmigrate.plan import Compression, Mode, Options, Switch
from lvmigrate.service import orders
from lvmigrate.service.client import Client
from lvmigrate.service.events import Hub
from lvmigrate.service.job import Asked, Job, State, Wish
from lvmigrate.service.jobs import Jobs
from lvmigrate.service.ledger import _TRAIL, JournalOccupied, Ledger
from lvmigrate.service.messages import JobList
from lvmigrate.service.metrics import Metrics
from lvmigrate.service.orders import Cleanup, DrainLimits, Failover, FailoverChoices, Migrate, MoveOptions, Priority
from lvmigrate.service.problem import NotDone
from lvmigrate.service.settings import Role, Settings, Stop
from lvmigrate.traffic import Limits
from tests.service.conftest import Bench
from tests.service.support import House, house, wait_for
from tests.unit.fakes import UUID

#: The words of a line of the trail.
_WORDS = ("subject", "role", "via", "method", "path", "code", "job")

# ---- orders


@pytest.mark.parametrize(
    ("words", "options"), [(MoveOptions, Options), (FailoverChoices, FailoverOptions), (DrainLimits, Limits)]
)
def test_an_order_can_say_whatever_the_core_understands(words: Any, options: Any) -> None:
    assert set(words.__struct_fields__) == {field.name for field in dataclasses.fields(options)}


OPTIONS = st.builds(
    Options,
    mode=st.sampled_from([mode for mode in Mode if mode is not Mode.FAILOVER]),
    switch=st.sampled_from(Switch),
    guard=st.booleans(),
    bandwidth_mib_s=st.none() | st.integers(1, 10**6),
    downtime_limit_s=st.floats(0.001, 1000),
    policy=st.sampled_from(sorted(NAMED.values(), key=lambda policy: policy.name)),
    compression=st.none() | st.sampled_from(Compression),
    tls=st.booleans(),
    forecast_s=st.integers(0, 60),
    iallocator=st.none() | st.just("hail"),
    minimum_memory_mib=st.none() | st.integers(1, 10**6),
)


@given(before=OPTIONS, wanted=OPTIONS)
def test_what_is_asked_for_at_a_distance_is_what_is_done(before: Options, wanted: Options) -> None:
    said = orders.difference(before, wanted, MoveOptions)
    there = msgspec.json.decode(msgspec.json.encode(Migrate(instance="web1", options=said)), type=orders.Order)
    assert isinstance(there, Migrate)
    assert dataclasses.replace(before, **there.options.chosen(lambda name: NAMED[name])) == wanted


def test_only_what_differs_is_asked_for() -> None:
    assert orders.difference(Options(), Options(), MoveOptions) == MoveOptions()
    assert msgspec.json.encode(Migrate(instance="web1")) == b'{"what":"migrate","instance":"web1"}'


# ---- the queue


@pytest.fixture
def here(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path, "at_once = 3\nper_node = 2", nodes=("node1", "node2", "node3")) as made:
        yield made


def running(client: Client) -> list[Job]:
    return [job for job in client.get("/v1/moves", JobList).jobs if job.state is State.RUNNING]


def test_no_node_has_more_to_do_than_it_may_and_the_first_of_its_priority_goes_first(here: House) -> None:
    # web* are between node1 and node2; far1 is between node2 and node3.
    # The first two take so long that the others are all there before one of them may begin.
    for number in range(4):
        here.guest(f"web{number}", "node1", peer="node2", copy_s=4.0 if number < 2 else 0.5)
    here.guest("far1", "node3", peer="node1", copy_s=0.5)
    here.start()
    most = 0
    with here.client() as client:
        ids = [
            client.order("moves", Migrate(instance=name, priority=priority))[0].id
            for name, priority in (
                ("web0", Priority.NORMAL),
                ("web1", Priority.NORMAL),
                ("web2", Priority.LOW),
                ("web3", Priority.HIGH),
                ("far1", Priority.NORMAL),
            )
        ]
        waited: set[str] = set()

        def over() -> bool:
            nonlocal most
            jobs = client.get("/v1/moves", JobList).jobs
            waited.update(job.waits_for for job in jobs if job.waits_for)
            copies = here.stage.do(  # all at one moment, which a list of jobs is not
                lambda: [
                    {job.source, job.target} for host in here.stage.world.hosts.values() for job in host.jobs.values()
                ]
            )
            most = max(most, len(copies))
            assert all(sum(node in nodes for nodes in copies) <= 2 for node in ("node1", "node2", "node3"))
            return all(job.over for job in jobs)

        wait_for(over)
        jobs = {job.id: job for job in client.get("/v1/moves", JobList).jobs}
        assert [jobs[id_].outcome for id_ in ids] == ["OK"] * 5
        assert most == 2
        assert any("a place on node1" in words for words in waited)
        begun = {jobs[id_].about: jobs[id_].begun or 0.0 for id_ in ids}
        assert begun["web3"] < begun["web2"]
    here.at_rest()


def test_a_guest_has_one_job_at_a_time_and_what_mends_does_not_wait_for_others(here: House) -> None:
    for name in ("web1", "web2", "web3", "web4"):
        here.guest(name, "node1", peer="node2", copy_s=1.2)
    here.start()
    with here.client() as client:
        first, _ = client.order("moves", Migrate(instance="web1"))
        wait_for(here.copies_begun)
        same, _ = client.order("cleanups", Cleanup(instance="web1"))
        for name in ("web2", "web3"):
            client.order("moves", Migrate(instance=name))
        mends, _ = client.order("cleanups", Cleanup(instance="web4"))
        wait_for(lambda: client.get(f"/v1/cleanups/{mends.id}", Job).over)
        assert not client.get(f"/v1/moves/{first.id}", Job).over
        assert client.get(f"/v1/cleanups/{same.id}", Job).state is State.QUEUED
        wait_for(lambda: client.get(f"/v1/cleanups/{same.id}", Job).over)
        assert client.get(f"/v1/moves/{first.id}", Job).outcome == "OK"
        assert client.get(f"/v1/cleanups/{same.id}", Job).outcome == "OK"
        wait_for(lambda: all(job.over for job in client.get("/v1/moves", JobList).jobs))
    here.at_rest()


# ---- what is written down


def job(id_: str = "j1", **more: Any) -> Job:
    known: dict[str, Any] = {
        "what": "migrate",
        "about": "web1",
        "order": {"what": "migrate", "instance": "web1"},
        "subject": "x",
        "priority": Priority.NORMAL,
        "state": State.QUEUED,
        "asked": time.time(),
    }
    return Job(id=id_, **(known | more))


def test_the_ledger_shares_the_journals_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.sqlite"
    ledger = Ledger(path)
    assert ledger.add(job(), key="k", fingerprint="f") is None
    before = ledger.add(job("j2"), key="k", fingerprint="f")
    assert before is not None
    assert before.id == "j1"
    with pytest.raises(UsageError):
        ledger.add(job("j3"), key="k", fingerprint="another")
    ledger.set("j1", state=State.ENDED, outcome="OK", exit_code=0, result={"a": 1})
    ledger.close()
    again = Ledger(path)
    found = again.one("j1")
    assert found is not None
    assert (found.state, found.result, found.over) == (State.ENDED, {"a": 1}, True)
    assert again.unfinished() == []
    assert path.stat().st_mode & 0o777 == 0o640
    again.close()


def keep(monkeypatch: pytest.MonkeyPatch, **lines: int) -> None:
    kinds = {name: (which, lines.get(name, kept)) for name, (which, kept) in _TRAIL.items()}
    monkeypatch.setattr("lvmigrate.service.ledger._TRAIL", kinds)


def test_old_jobs_are_forgotten_and_unfinished_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmigrate.service.ledger._KEPT_JOBS", 5)
    keep(monkeypatch, ordered=7)
    ledger = Ledger(tmp_path / "j.sqlite")
    ledger.add(job("first"), key=None, fingerprint="")
    for number in range(30):
        ledger.add(job(f"j{number}"), key=None, fingerprint="")
        ledger.set(f"j{number}", state=State.ENDED)
        ledger.asked(
            Asked(
                number=0,
                at=0.0,
                status=200,
                **dict.fromkeys(_WORDS, ""),
            )
        )
    kept = [each.id for each in ledger.some()]
    assert "first" in kept
    assert len(kept) <= 7
    assert [line.number for line in ledger.trail(100)] == list(range(30, 23, -1))
    ledger.close()


def test_who_is_refused_pushes_nobody_elses_order_out_of_the_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, ordered=3, not_done=4)
    ledger = Ledger(tmp_path / "j.sqlite")
    words = dict.fromkeys(_WORDS, "")
    for status in (202, *(401, 403, 404, 400) * 5, 202, 500, 200, 200):
        ledger.asked(Asked(number=0, at=0.0, status=status, **words))
    assert [line.status for line in ledger.trail(100)] == [200, 200, 500, 202, 400, 404, 403]
    ledger.close()


def test_who_only_signs_in_pushes_nobodys_order_out_of_the_trail(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, ordered=5, signed=3)
    bench.client(Role.MOVE).post("/v1/moves", json={"what": "migrate", "instance": "web1"})
    look = bench.client(Role.LOOK)
    for _ in range(9):
        assert look.post("/v1/session").status_code == 200
        assert look.delete("/v1/session").status_code == 200
    assert [line.path for line in bench.ledger.trail(100)] == ["/v1/session"] * 3 + ["/v1/moves"]


def test_what_has_a_line_before_it_is_done_pushes_nothing_out_unless_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, ordered=3, not_done=2)
    ledger = Ledger(tmp_path / "j.sqlite")
    words = dict.fromkeys(_WORDS, "")
    for status in (202, 202, 202, 400, 409, 404, 202, 0):
        number = ledger.asked(Asked(number=0, at=0.0, status=0, **words))
        if status:
            ledger.answered(number, status=status, code="", job="")
    # The newest is one whose answer never came to be known.
    assert [line.status for line in ledger.trail(100)] == [0, 202, 404, 409, 202, 202]
    ledger.close()


def test_a_trail_of_an_older_service_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "j.sqlite")
    ledger.asked(Asked(number=0, at=0.0, status=200, **dict.fromkeys(_WORDS, "")))
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "j.sqlite")) as file:
        file.execute("CREATE INDEX asked_done ON asked (number) WHERE status < 400")
        file.commit()
    again = Ledger(tmp_path / "j.sqlite")
    assert len(again.trail(9)) == 1
    again.close()
    with closing(sqlite3.connect(tmp_path / "j.sqlite")) as file:
        found = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE name LIKE 'asked_%'")}
    assert found == {"asked_ordered", "asked_signed", "asked_not_done"}


def test_a_ledger_of_another_version_is_not_touched(tmp_path: Path) -> None:
    Ledger(tmp_path / "j.sqlite").close()
    with closing(sqlite3.connect(tmp_path / "j.sqlite")) as file:
        file.execute("UPDATE service SET version = 9")
        file.commit()
    with pytest.raises(JournalUnusable, match="another lvmigrate"):
        Ledger(tmp_path / "j.sqlite")
    (tmp_path / "garbage").write_bytes(b"nothing of ours" * 100)
    with pytest.raises(JournalUnusable):
        Ledger(tmp_path / "garbage")


# ---- when something is missing for a moment


def test_what_cannot_be_written_at_the_start_keeps_nobody_from_being_looked_after(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lvmigrate.service.jobs._LEDGER_AGAIN_S", 0.01)
    bench.jobs.stop(Stop.HAND_OVER, 0.0)
    for name, target in (("begun", "node2"), ("planless", "")):
        known = job(name, state=State.RUNNING, about=name)
        bench.ledger.add(known, key=None, fingerprint="")
        bench.ledger.set(name, state=State.RUNNING, uuid=UUID, source="node1", target=target)
    jobs = Jobs(bench.cluster, bench.ledger, bench.hub, Metrics(), Settings(), tmp_path / "service")
    with monkeypatch.context() as disk:
        disk.setattr(bench.ledger, "set", full)
        jobs.start()
        wait_for(lambda: jobs.one("begun").over)
        assert jobs.one("begun").unwritten
        assert jobs.one("planless").interruptions == 1
    wait_for(lambda: not bench.ledger.unfinished())
    found = bench.ledger.one("begun")
    assert found is not None
    assert (found.over, found.interruptions) == (True, 1)
    jobs.stop(Stop.ABORT, 10.0)


def test_what_passes_is_told_from_what_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmigrate.service.ledger._BUSY_S", 0.05)
    path = tmp_path / "j.sqlite"
    Ledger(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalOccupied, match="locked"):
            Ledger(path)
        other.execute("ROLLBACK")
    ledger = Ledger(path)
    (pages,) = ledger._file.execute("PRAGMA page_count").fetchone()
    ledger._file.execute(f"PRAGMA max_page_count = {pages}")  # SQLite says so of a disk, too
    with pytest.raises(JournalOccupied, match="full"):
        ledger.add(job(about="x" * 10_000), key=None, fingerprint="")
    ledger.close()
    (tmp_path / "directory").mkdir()
    with pytest.raises(JournalUnusable) as lasting:
        Ledger(tmp_path / "directory")
    assert not isinstance(lasting.value, JournalOccupied)


def test_a_moment_without_threads_does_not_end_the_queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmigrate.service.jobs._BEGIN_AGAIN_S", 0.01)
    refused: list[str] = []
    start = threading.Thread.start

    def refuse_twice(thread: threading.Thread) -> None:
        if thread.name.startswith("job-") and len(refused) < 2:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_twice)
    job, _ = bench.jobs.add(Migrate(instance="web1"), subject="x", key=None, fingerprint="")
    wait_for(lambda: bench.jobs.one(job.id).over, lambda: str(refused))
    assert len(refused) == 2
    assert bench.world.running() == ["node2"]


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[tuple[Jobs, Ledger]]:
    """A queue for one, in which nothing begins."""
    ledger = Ledger(tmp_path / "journal.sqlite")
    yield Jobs(cast("Any", None), ledger, Hub(), Metrics(), Settings(queue=1), tmp_path / "service"), ledger
    ledger.close()


@pytest.mark.parametrize("code", [Code.QUEUE_FULL, Code.STOPPING])
def test_who_repeats_an_order_is_told_of_it_though_nothing_more_is_taken(idle: tuple[Jobs, Ledger], code: Code) -> None:
    jobs, ledger = idle
    said: dict[str, Any] = {"subject": "x", "key": "k", "fingerprint": "f"}
    first, new = jobs.add(Migrate(instance="web1"), **said)
    assert new
    if code is Code.STOPPING:
        jobs.stop(Stop.HAND_OVER, 0.0)
    assert jobs.add(Migrate(instance="web1"), **said) == (first, False)
    with pytest.raises(NotDone) as told:
        jobs.add(Migrate(instance="web1"), subject="x", key="another", fingerprint="f")
    assert told.value.code is code
    with pytest.raises(UsageError) as reused:
        jobs.add(Migrate(instance="web2"), subject="x", key="k", fingerprint="another")
    assert reused.value.code is Code.KEY_REUSED
    assert [each.id for each in ledger.unfinished()] == [first.id]


def full(*_words: object, **_changes: object) -> None:
    raise JournalUnusable("The jobs cannot be written: database or disk is full.", hint="")


def held(bench: Bench, client: TestClient) -> tuple[str, threading.Event]:
    """A move that waits before its copy begins: its address, and what lets it go on."""
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go.wait(60)

    bench.world.faults["copy_memory", "node1"] = hold
    path = f"/v1/moves/{client.post('/v1/moves', json={'what': 'migrate', 'instance': 'web1'}).json()['id']}"
    assert begun.wait(60)
    return path, go


def test_a_full_disk_does_not_keep_a_move_from_being_aborted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmigrate.service.jobs._LEDGER_AGAIN_S", 0.01)
    client = bench.client(Role.MOVE)
    path, go = held(bench, client)
    with monkeypatch.context() as disk:
        disk.setattr(bench.ledger, "set", full)
        answer = client.post(f"{path}/abort")
        assert (answer.status_code, answer.json()["wish"], answer.json()["unwritten"]) == (202, "abort", True)
        go.set()
        wait_for(lambda: client.get(path).json()["state"] == "ended")
        assert client.get(path).json()["outcome"] == "ABORTED"
        assert bench.world.running() == ["node1"]
        assert [each.state for each in bench.ledger.unfinished()] == [State.RUNNING]
    # With room again it is written, without being asked: the next service does not take it up.
    wait_for(lambda: not bench.ledger.unfinished())
    wait_for(lambda: not client.get(path).json()["unwritten"])
    assert client.get(path).json()["wish"] == "abort"


def test_what_could_not_be_written_is_written_at_the_latest_when_it_stops(
    idle: tuple[Jobs, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, ledger = idle
    waits, _ = jobs.add(Migrate(instance="web1"), subject="x", key=None, fingerprint="f")
    with monkeypatch.context() as disk:
        disk.setattr(ledger, "set", full)
        ended = jobs.wish(waits, Wish.ABORT)
        assert (ended.over, ended.outcome, ended.unwritten) == (True, "ABORTED", True)
        assert jobs.one(waits.id).over
        jobs.stop(Stop.HAND_OVER, 0.0)
        assert [each.id for each in ledger.unfinished()] == [waits.id]
    jobs.stop(Stop.HAND_OVER, 0.0)
    found = ledger.one(waits.id)
    assert found is not None
    assert (found.over, found.outcome, found.wish) == (True, "ABORTED", Wish.ABORT)


@pytest.fixture
def locked(
    open_bench: Callable[[Settings], Bench], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Bench, sqlite3.Connection]]:
    """A service whose journal somebody else can hold: in a transaction."""
    monkeypatch.setattr("lvmigrate.service.ledger._BUSY_S", 0.05)
    monkeypatch.setattr("lvmigrate.service.ledger._TRIAL_S", 0.0)
    bench = open_bench(settings)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other:
        yield bench, other


def test_what_cannot_be_in_the_trail_is_not_done(locked: tuple[Bench, sqlite3.Connection]) -> None:
    bench, other = locked
    client = bench.client(Role.FORCE)
    asked = [
        ("PUT", "/v1/nodes/node2/state", {"state": "drained"}),
        ("POST", "/v1/moves", {"what": "migrate", "instance": "web1"}),
        ("POST", "/v1/history/prune", {"days": 9}),
    ]
    other.execute("BEGIN IMMEDIATE")
    for method, path, body in asked:
        answer = client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "JOURNAL_UNUSABLE")
        assert answer.headers["retry-after"]
    other.execute("ROLLBACK")
    assert bench.cluster.node_states() == {}
    assert (bench.ledger.some(), bench.ledger.trail(9)) == ([], [])
    assert client.request(*asked[0][:2], json=asked[0][2]).status_code == 200
    (line,) = bench.ledger.trail(9)
    assert (line.subject, line.method, line.status) == ("token:with-force", "PUT", 200)


def test_the_line_is_there_while_it_is_being_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def prune(_days: float) -> int:
        seen.extend((line.path, line.status) for line in bench.ledger.trail(9))
        raise UsageError("Not that.", hint="Look.")

    monkeypatch.setattr(bench.cluster, "prune", prune)
    bench.client(Role.FORCE).post("/v1/history/prune", json={"days": 9})
    assert seen == [("/v1/history/prune", 0)]
    assert [(line.status, line.code) for line in bench.ledger.trail(9)] == [(400, "USAGE")]


def test_an_abort_waits_for_no_trail(locked: tuple[Bench, sqlite3.Connection]) -> None:
    bench, other = locked
    client = bench.client(Role.MOVE)
    path, go = held(bench, client)
    other.execute("BEGIN IMMEDIATE")
    assert client.post(f"{path}/abort").status_code == 202
    other.execute("ROLLBACK")
    go.set()
    wait_for(lambda: client.get(path).json()["state"] == "ended")
    assert client.get(path).json()["outcome"] == "ABORTED"
    assert {line.path for line in bench.ledger.trail(9)} == {"/v1/moves"}, "the log alone has it"


def test_it_is_not_ready_while_no_order_could_be_taken(locked: tuple[Bench, sqlite3.Connection]) -> None:
    bench, other = locked
    client = bench.client(Role.LOOK)
    assert client.get("/ready").status_code == 200
    other.execute("BEGIN IMMEDIATE")
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "JOURNAL_UNUSABLE")
    assert client.get("/health").status_code == 200
    other.execute("ROLLBACK")
    assert client.get("/ready").status_code == 200
    bench.ledger._file.execute("PRAGMA query_only = ON")  # as a file system that has become read-only
    assert client.get("/ready").status_code == 503
    bench.ledger._file.execute("PRAGMA query_only = OFF")


# ---- what came with an order


def test_a_definition_does_not_stay_when_its_order_was_not_taken(
    idle: tuple[Jobs, Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, ledger = idle
    order = Failover(instance="web1", definition_text="<graphics passwd='secret'/>")
    with monkeypatch.context() as disk:
        disk.setattr(ledger, "add", full)
        with pytest.raises(JournalUnusable):
            jobs.add(order, subject="x", key="k", fingerprint="f")
    jobs.add(Migrate(instance="web1"), subject="x", key="k", fingerprint="f")
    for key in ("k", "another"):
        with pytest.raises((UsageError, NotDone)):
            jobs.add(order, subject="x", key=key, fingerprint="of another")
    assert list((tmp_path / "service").iterdir()) == []


def test_a_definition_that_nobody_needs_is_forgotten_at_the_start(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "journal.sqlite")
    said: list[Any] = [cast("Any", None), ledger, Hub(), Metrics(), Settings(), tmp_path / "service"]
    order = Failover(instance="web1", definition_text="<graphics passwd='secret'/>")
    waits, _ = Jobs(*said).add(order, subject="x", key=None, fingerprint="f")
    stray = tmp_path / "service" / "definition-20260101-000000-aaaaaaaa.xml"
    stray.write_text("of an order that a kill came upon before it was taken")
    again = Jobs(*said)
    again.stop(Stop.HAND_OVER, 0.0)  # what waits is not begun
    again.start()
    assert [path.name for path in (tmp_path / "service").iterdir()] == [f"definition-{waits.id}.xml"]
    ledger.close()


def test_a_definition_that_cannot_be_kept_is_told(idle: tuple[Jobs, Ledger], tmp_path: Path) -> None:
    jobs, ledger = idle
    (tmp_path / "service").write_text("in the way")
    with pytest.raises(JournalUnusable, match="definition"):
        jobs.add(Failover(instance="web1", definition_text="<x/>"), subject="x", key=None, fingerprint="f")
    assert ledger.unfinished() == []
