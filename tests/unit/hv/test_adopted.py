"""A job that somebody else started: its end, with a node that answers late, wrongly or never."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import libvirt
import pytest

from hv import adopted, job
from hv.adopted import AdoptedCopy
from hv.job import Job
from hv.observed import job_of
from lvmigrate.domain import Domain, DomainState, JobKind
from lvmigrate.errors import CommandFailed, LvmigrateError, NodeUnreachable
from lvmigrate.protocols import CopyEnd

TOTAL = 1 << 20


def domain(state: DomainState, kind: JobKind, reason: str = "migration") -> Domain:
    return Domain(
        node="node1",
        name="web1",
        uuid="u",
        state=state,
        reason=reason,
        job=kind,
        persistent=True,
        autostart=False,
        virt_type="kvm",
        memory_kib=1,
        vcpus=1,
        disks=(),
    )


MOVING = domain(DomainState.RUNNING, JobKind.OUTGOING)
LAST_PHASE = domain(DomainState.PAUSED, JobKind.OUTGOING)
LEAVING = domain(DomainState.IN_SHUTDOWN, JobKind.NONE)
GONE = domain(DomainState.OFF, JobKind.NONE)
SILENT = NodeUnreachable("node1", "nothing was heard", hint="")


class World:
    """What the node says, and the events it sends; ``hang`` makes every answer wait."""

    def __init__(self) -> None:
        self.says: Domain | Exception | None = MOVING
        self.looked = 0
        self.aborts = 0
        self.hang = threading.Event()
        self.hang.set()  # set: answers come
        self.wakes: list[Callable[[], None]] = []
        self.statistics: dict[str, Any] = {"memory_total": TOTAL, "memory_remaining": TOTAL // 2}
        self.job = Job("node1", lambda: nullcontext(cast("libvirt.virDomain", self)))
        self.copy = AdoptedCopy("node1", self.job, look=self.look, listening=self.listening)

    def jobStats(self) -> dict[str, Any]:  # noqa: N802 -- libvirt's name
        return self.statistics

    def abortJob(self) -> None:  # noqa: N802 -- libvirt's name
        self.abort()

    def look(self) -> Domain | None:
        self.looked += 1
        self.hang.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def abort(self) -> None:
        self.aborts += 1
        raise SILENT

    @contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        self.wakes.append(wake)
        try:
            yield
        finally:
            self.wakes.remove(wake)

    def event(self) -> None:
        for wake in tuple(self.wakes):
            wake()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopted, "_LOOK_S", 0.02)
    monkeypatch.setattr(job, "_PATIENCE_S", 0.05)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.hang.set()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def waiting(world: World) -> tuple[threading.Thread, list[CopyEnd | None]]:
    ends: list[CopyEnd | None] = []
    thread = threading.Thread(target=lambda: ends.append(world.copy.wait(60)))
    thread.start()
    eventually(lambda: bool(world.wakes))
    return thread, ends


@pytest.mark.parametrize("during", [MOVING, LAST_PHASE, SILENT])
@pytest.mark.parametrize(
    ("says", "end"),
    [
        (GONE, CopyEnd(ok=True)),
        (None, CopyEnd(ok=True)),
        (
            domain(DomainState.RUNNING, JobKind.NONE, "booted"),
            CopyEnd(ok=False, detail="the guest is running (booted) there"),
        ),
        (
            domain(DomainState.PAUSED, JobKind.NONE),
            CopyEnd(ok=False, detail="the guest is paused (migration) there"),
        ),
    ],
)
def test_the_end_is_the_nodes_own_answer(
    world: World, during: Domain | LvmigrateError, says: Domain | None, end: CopyEnd
) -> None:
    world.says = during
    while world.looked < 2:
        assert world.copy.wait(0.1) is None
    world.says = says
    assert world.copy.wait(30) == end
    world.says = MOVING
    assert world.copy.wait(0) == end  # an end is an end


def test_a_refusal_is_no_end(world: World) -> None:
    world.says = CommandFailed("node1", "Looking", status=1, hint="")
    assert world.copy.wait(0.1) is None


def test_an_event_is_looked_at_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopted, "_LOOK_S", 1000)
    thread, ends = waiting(world)
    eventually(lambda: world.looked == 1)
    world.says = GONE
    world.event()
    thread.join(30)
    assert ends == [CopyEnd(ok=True)]
    assert not world.wakes


def test_an_event_during_a_look_is_not_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopted, "_LOOK_S", 1000)
    world.hang.clear()
    thread, ends = waiting(world)
    eventually(lambda: world.looked == 1)
    world.event()
    world.says = MOVING
    world.hang.set()
    eventually(lambda: world.looked == 2)
    world.says = GONE
    world.event()
    thread.join(30)
    assert ends == [CopyEnd(ok=True)]


def test_a_wait_that_is_woken_ends_and_so_does_one_that_is_woken_before_it_begins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopted, "_LOOK_S", 60)
    begin = time.monotonic()
    threading.Timer(0.05, world.copy.wake).start()
    assert world.copy.wait(60) is None
    world.copy.wake()
    assert world.copy.wait(60) is None
    assert time.monotonic() - begin < 50
    world.says = GONE
    assert world.copy.wait(60) == CopyEnd(ok=True)


def test_a_node_that_hangs_is_asked_once_and_the_wait_ends_in_time(world: World) -> None:
    world.hang.clear()
    for _ in range(5):
        assert world.copy.wait(0.02) is None
    assert world.looked == 1
    world.says = GONE
    world.hang.set()
    assert world.copy.wait(30) == CopyEnd(ok=True)


def test_the_last_moment_of_a_success_is_no_end_yet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.says = LEAVING
    assert world.copy.wait(0.1) is None
    world.says = GONE
    assert world.copy.wait(30) == CopyEnd(ok=True)


def test_a_guest_that_stays_in_shutdown_is_not_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopted, "_LEAVING_S", 0.1)
    world.says = LEAVING
    end = world.copy.wait(30)
    assert end is not None
    assert not end.ok
    assert "in shutdown" in end.detail


def test_progress_and_abort(world: World) -> None:
    progress = world.copy.progress()
    assert progress is not None
    assert progress.percent == 50
    world.copy.abort()
    world.copy.abort()
    assert world.aborts == 2
    world.says = GONE
    world.copy.wait(30)
    world.statistics = {"memory_total": TOTAL, "memory_remaining": 0}
    assert world.copy.progress() == progress  # the last there was


class Statistics:
    """A domain of libvirt's, as far as its job goes."""

    def __init__(self, statistics: dict[str, Any] | libvirt.libvirtError) -> None:
        self.statistics = statistics

    def isActive(self) -> bool:  # noqa: N802 -- libvirt's name
        return True

    def jobStats(self) -> dict[str, Any]:  # noqa: N802 -- libvirt's name
        if isinstance(self.statistics, libvirt.libvirtError):
            raise self.statistics
        return self.statistics


def refusal(code: int, text: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(text)
    error.err = (code, libvirt.VIR_FROM_QEMU, text, 2, None, None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("statistics", "kind"),
    [
        ({"type": 0}, JobKind.NONE),
        ({"type": 2, "operation": 5}, JobKind.OUTGOING),
        # Cancelled or failed, and its last phase is not over: seen for 6 s when the target does not answer.
        ({"type": 5, "operation": 5}, JobKind.OUTGOING),
        ({"type": 4, "operation": 5}, JobKind.OUTGOING),
        ({"type": 1, "operation": 2}, JobKind.OTHER),
        (refusal(84, "migration statistics are available only on the source host"), JobKind.INCOMING),
        (refusal(55, "domain is not running"), JobKind.NONE),
        (refusal(1, "migration was active, but no RAM info was set"), JobKind.OUTGOING),
    ],
)
def test_the_job_that_libvirt_has(statistics: dict[str, Any] | libvirt.libvirtError, kind: JobKind) -> None:
    assert job_of(Statistics(statistics)) is kind


def test_a_look_that_ends_in_a_defect_is_not_the_last(world: World) -> None:
    world.says = OSError(24, "Too many open files")
    assert world.copy.wait(0.1) is None
    world.says = GONE
    assert world.copy.wait(30) == CopyEnd(ok=True)


def test_a_moment_without_threads_is_no_end_and_not_the_last_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert world.copy.wait(0.1) is None
    world.says = GONE
    assert world.copy.wait(30) == CopyEnd(ok=True)
