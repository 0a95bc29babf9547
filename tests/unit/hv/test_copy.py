"""A copy under way: its statistics, its abort and its end, with a libvirt that answers late, wrongly or never."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import libvirt
import pytest
from structlog.testing import capture_logs

from hv import copy as copy_module
from hv import job
from hv.copy import LibvirtCopy, nothing
from hv.downtime import limited
from hv.job import Lent
from hv.ports import Ports
from lvmigrate.errors import Code
from lvmigrate.protocols import CopyEnd
from tests.unit.fakes import node_of

TOTAL = 1 << 20


class Domain:
    """What the copy asks of libvirt's domain; ``hang`` makes every answer wait."""

    def __init__(self) -> None:
        self.hang = threading.Event()
        self.hang.set()  # set: answers come
        self.asked = 0
        self.aborts = 0
        self.statistics: dict[str, Any] | None = {"memory_total": TOTAL, "memory_remaining": TOTAL // 2}

    def jobStats(self) -> dict[str, Any]:  # noqa: N802 -- libvirt's name
        self.asked += 1
        self.hang.wait()
        if self.statistics is None:
            raise libvirt.libvirtError("gone")
        return self.statistics

    def abortJob(self) -> None:  # noqa: N802 -- libvirt's name
        self.aborts += 1
        self.hang.wait()
        raise libvirt.libvirtError("no job is active")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_PATIENCE_S", 0.05)


@pytest.fixture
def domain() -> Iterator[Domain]:
    domain = Domain()
    yield domain
    domain.hang.set()


def lent(domain: Any) -> Lent:
    return lambda: nullcontext(domain)


def eventually(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_progress_and_end(domain: Domain) -> None:
    finish = threading.Event()
    under_way = LibvirtCopy("node1", lent(domain), lambda _: finish.wait())
    eventually(lambda: under_way.progress() is not None)
    progress = under_way.progress()
    assert progress is not None
    assert progress.percent == 50
    assert under_way.wait(0.01) is None
    finish.set()
    assert under_way.wait(30) == CopyEnd(ok=True)
    assert under_way.progress() == progress  # the last there was


def test_a_copy_that_was_not_begun_says_why_by_its_code(domain: Domain) -> None:
    def fail(_domain: Any) -> None:
        with Ports().taken(full):
            raise AssertionError("no port is left")

    full = dataclasses.replace(node_of("node2"), migration_ports=(2, 1))  # none at all
    end = LibvirtCopy("node1", lent(domain), fail).wait(30)
    assert end is not None
    assert (end.ok, end.code) == (False, Code.PORTS_TAKEN)
    assert "widen its migration_ports" in end.hint


def test_a_daemon_that_fell_silent_is_told_by_its_code(domain: Domain) -> None:
    def fail(_domain: Any) -> None:
        error = libvirt.libvirtError("internal error: client socket is closed")
        error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, "", 2, "", "", "", -1, -1)
        raise error

    end = LibvirtCopy("node1", lent(domain), fail).wait(30)
    assert end is not None
    assert (end.ok, end.code) == (False, Code.NODE_UNREACHABLE)
    assert "client socket is closed" in end.detail
    assert "both nodes" in end.hint


def test_a_call_that_fails_says_libvirts_words(domain: Domain) -> None:
    def fail(_domain: Any) -> None:
        raise libvirt.libvirtError("operation aborted")

    end = LibvirtCopy("node1", lent(domain), fail).wait(30)
    assert end is not None
    assert not end.ok
    assert "operation aborted" in end.detail


def test_a_call_that_fails_in_any_other_way_is_heard_of_too(domain: Domain) -> None:
    end = LibvirtCopy("node1", lent(domain), lambda _: 1 // 0).wait(30)
    assert end is not None
    assert "ZeroDivisionError" in end.detail


def test_statistics_that_cannot_be_had_keep_the_last_ones(domain: Domain) -> None:
    under_way = LibvirtCopy("node1", lent(domain), lambda _: threading.Event().wait())
    eventually(lambda: under_way.progress() is not None)
    before = under_way.progress()
    domain.statistics = None
    assert under_way.progress() == before


def test_final_statistics_are_taken_from_the_event(domain: Domain) -> None:
    under_way = LibvirtCopy("node1", lent(domain), lambda _: threading.Event().wait())
    under_way.completed({"memory_total": TOTAL, "memory_remaining": 0, "memory_processed": TOTAL * 3})
    progress = under_way.progress()
    assert progress is not None
    assert (progress.processed, progress.percent) == (TOTAL * 3, 99)


def test_a_libvirt_that_hangs_is_asked_once(domain: Domain) -> None:
    under_way = LibvirtCopy("node1", lent(domain), lambda _: threading.Event().wait())
    domain.hang.clear()
    for _ in range(5):
        assert under_way.progress() is None
        under_way.abort()
    assert (domain.asked, domain.aborts) == (1, 1)
    domain.hang.set()
    eventually(lambda: under_way.progress() is not None)
    under_way.abort()
    eventually(lambda: domain.aborts == 2)


def test_a_wait_that_is_woken_ends_and_so_does_one_that_is_woken_before_it_begins(domain: Domain) -> None:
    finish = threading.Event()
    under_way = LibvirtCopy("node1", lent(domain), lambda _: finish.wait())
    begin = time.monotonic()
    threading.Timer(0.05, under_way.wake).start()
    assert under_way.wait(60) is None
    under_way.wake()
    assert under_way.wait(60) is None
    assert time.monotonic() - begin < 50  # neither was waited for to its end
    finish.set()
    assert under_way.wait(30) == CopyEnd(ok=True)


def test_what_was_stopped_before_it_began_never_begins(domain: Domain) -> None:
    """A QEMU that hangs while the copy is prepared may answer long after everybody has gone."""
    prepared, begun = threading.Event(), threading.Event()
    undone = threading.Event()

    def prepare(_: Domain) -> Callable[[], None]:
        prepared.wait()
        return undone.set

    under_way = LibvirtCopy("node1", lent(domain), lambda _: begun.set(), prepare=prepare)
    under_way.abort()
    prepared.set()
    assert under_way.wait(30) == CopyEnd(ok=False, detail="stopped before it began")
    assert not begun.is_set()
    assert undone.is_set()


def test_when_the_call_was_made_and_had_returned_is_logged(domain: Domain) -> None:
    """And not when what comes before it began: the benchmarks leave the call out of what they measure."""
    order: list[str] = []

    def prepare(_: Domain) -> Callable[[], None]:
        order.append(str(len(logs)))
        return nothing

    with capture_logs() as logs:
        copy = LibvirtCopy(
            "node1",
            lent(domain),
            lambda _: order.append("call"),
            prepare=prepare,
        )
        eventually(lambda: copy.wait(0.1) is not None)
    assert order == ["0", "call"]
    assert [line["event"] for line in logs] == ["copy_call_began", "copy_call_ended"]


def test_what_was_prepared_is_undone_after_a_copy_that_failed_and_no_other(domain: Domain) -> None:
    for fails in (True, False):
        undone: list[int] = []

        def call(_: Domain, *, fails: bool = fails) -> None:
            if fails:
                raise libvirt.libvirtError("operation aborted")

        def prepare(_: Domain, undone: list[int] = undone) -> Callable[[], None]:
            return lambda: undone.append(1)

        end = LibvirtCopy("node1", lent(domain), call, prepare=prepare).wait(30)
        assert end is not None
        assert (end.ok, undone) == ((False, [1]) if fails else (True, []))


def test_an_end_does_not_wait_for_what_cannot_be_undone(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "_UNDO_S", 0.05)
    hung = threading.Event()

    def refused() -> None:
        raise libvirt.libvirtError("domain is not running")

    for undo in (hung.wait, refused):

        def fail(_: Domain) -> None:
            raise libvirt.libvirtError("operation aborted")

        end = LibvirtCopy("node1", lent(domain), fail, prepare=lambda _, undo=undo: undo).wait(30)  # type: ignore[misc]
        assert end is not None
        assert "operation aborted" in end.detail
    hung.set()


class Limited:
    """A guest's downtime limit; ``told``: whether libvirt says what it is."""

    def __init__(self, *, told: bool) -> None:
        self.told = told
        self.limit = 777
        self.set: list[int] = []

    def migrateGetMaxDowntime(self) -> int:  # noqa: N802 -- libvirt's name
        if not self.told:
            error = libvirt.libvirtError("this function is not supported by the connection driver")
            error.err = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_FROM_QEMU, "", 2, "", "", "", -1, -1)
            raise error
        return self.limit

    def migrateSetMaxDowntime(self, milliseconds: int) -> None:  # noqa: N802 -- libvirt's name
        self.set.append(milliseconds)
        self.limit = milliseconds


@pytest.mark.parametrize(
    ("told", "limit_ms", "calls"), [(True, 300, [300, 777]), (True, 777, [777]), (False, 300, [300])]
)
def test_a_downtime_limit_is_put_back(*, told: bool, limit_ms: int, calls: list[int]) -> None:
    domain = Limited(told=told)
    put_back = limited(domain, limit_ms)
    assert domain.limit == limit_ms
    put_back()
    assert domain.set == calls
