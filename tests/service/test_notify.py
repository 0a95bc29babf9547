"""What a service manager hears: over a real socket, from the class alone and from the whole process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lvmigrate.service.messages import JobList
from lvmigrate.service.notify import Notify
from lvmigrate.service.orders import Migrate
from tests.service.support import House, house, wait_for


class Manager:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.told = address
        self.way = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.way.bind("\0" + address[1:] if address.startswith("@") else address)
        self.way.settimeout(20)

    def hears(self) -> list[str]:
        """The lines of one message."""
        return self.way.recv(65536).decode().split("\n")

    def hears_at_last(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """The first message that is wanted."""
        while not wanted(lines := self.hears()):
            pass
        return lines

    def silent(self) -> bool:
        self.way.settimeout(0.3)
        try:
            self.way.recv(65536)
        except TimeoutError:
            return True
        finally:
            self.way.settimeout(20)
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@lvmigrate-test-{os.getpid()}")
    with made.way:
        yield made


def test_what_is_told(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.told, "HOME": "/"}
    notify = Notify(environment)
    assert environment == {"HOME": "/"}, "a child would speak for the service"
    notify.ready("Serving")
    assert manager.hears() == ["READY=1", "STATUS=Serving"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.reloading()
    reloading, at = manager.hears()
    assert reloading == "RELOADING=1"
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.says("one\ntwo")
    assert manager.hears() == ["STATUS=one two"], "a line of its own would be another message"
    notify.says("one\ntwo")
    assert manager.silent()
    notify.stopping(600)
    assert manager.hears() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=630000000"]


@pytest.mark.parametrize("told", ["", "/nowhere/notify", "@nobody-listens", "vsock:2:1234", "relative"])
def test_nobody_is_there(told: str) -> None:
    notify = Notify({"NOTIFY_SOCKET": told} if told else {})
    notify.ready("Serving")
    notify.reloading()
    notify.stopping(1)


def test_a_manager_that_does_not_read_stops_nobody(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.way:
        notify = Notify({"NOTIFY_SOCKET": manager.told})
        begin = time.monotonic()
        for number in range(2000):
            notify.says(str(number))
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [("300000", "", 0.3), ("300000", "own", 0.3), ("300000", "1", 0), ("", "", 0), ("soon", "", 0)],
)
def test_the_watchdog_is_meant_for_this_process(usec: str, pid: str, expected: float) -> None:
    words = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": str(os.getpid()) if pid == "own" else pid}
    environment = {key: value for key, value in words.items() if value}
    assert Notify(environment).watchdog_s == expected
    assert environment == {}


def fed(manager: Manager, seconds: float) -> int:
    """How often the watchdog is fed within that time."""
    end = time.monotonic() + seconds
    count = 0
    while (left := end - time.monotonic()) > 0:
        manager.way.settimeout(left)
        try:
            count += manager.hears() == ["WATCHDOG=1"]
        except TimeoutError:
            break
    manager.way.settimeout(20)
    return count


@pytest.mark.parametrize("hangs", ["the loop", "the jobs"])
def test_what_hangs_feeds_nothing(tmp_path: Path, hangs: str) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notify = Notify({"NOTIFY_SOCKET": manager.told, "WATCHDOG_USEC": "300000"})
    hang, go_on = threading.Event(), threading.Event()

    def status() -> str:
        if hang.is_set() and hangs == "the jobs":
            go_on.wait(20)
        return "Serving"

    async def run() -> None:
        living = asyncio.ensure_future(notify.live(status))
        await asyncio.sleep(1)
        hang.set()
        if hangs == "the loop":
            go_on.wait(20)
        else:
            await asyncio.to_thread(go_on.wait, 20)
        await asyncio.sleep(1)
        living.cancel()

    with manager.way:
        loop = threading.Thread(target=asyncio.run, args=(run(),))
        loop.start()
        assert fed(manager, 0.9) > 4
        assert hang.wait(5)
        fed(manager, 0.2)  # what was on its way
        assert fed(manager, 1) == 0
        go_on.set()
        assert fed(manager, 0.9) > 4
        loop.join()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[tuple[House, Manager]]:
    manager = Manager(str(tmp_path / "notify"))
    with manager.way, house(tmp_path, 'stop = "wait"\nstop_deadline_s = 20') as made:
        made.guest("web1")
        made.start({"NOTIFY_SOCKET": manager.told, "WATCHDOG_USEC": "600000"})
        yield made, manager


def test_a_journal_that_is_locked_at_the_start_is_waited_for(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.way, house(tmp_path) as made:
        made.module = "tests.service.impatient"
        guest = made.guest("web1", copy_s=1.0)
        made.start()
        with made.client() as client:
            client.order("moves", Migrate(instance="web1"))
            wait_for(made.copies_begun)
        made.kill()
        with closing(sqlite3.connect(made.journal, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            starting = threading.Thread(target=made.start, args=({"NOTIFY_SOCKET": manager.told},))
            starting.start()
            for _ in range(3):  # it goes on trying, and is given time for it
                status, extended = manager.hears()
                assert status.startswith("STATUS=Waiting for the journal: ")
                assert "locked" in status
                assert extended == "EXTEND_TIMEOUT_USEC=90000000"
            assert made.process is not None
            made.process.send_signal(signal.SIGHUP)  # nobody is there to hear it yet, and it must not end the service
            assert "Waiting" in manager.hears()[0]
            other.execute("ROLLBACK")
        starting.join()
        manager.hears_at_last(lambda lines: "READY=1" in lines)
        wait_for(lambda: "access_read_again" in made.log.read_text())
        with made.client() as client:
            (job,) = wait_for(lambda: [job for job in client.get("/v1/moves", JobList).jobs if job.over])
        assert (job.outcome, job.interruptions) == ("OK", 1)
        assert made.running(guest) == ["node2"]
        made.at_rest()


def test_a_stop_is_heard_while_the_journal_is_waited_for(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.way, house(tmp_path) as made:
        made.module = "tests.service.impatient"
        made.start()
        assert made.stop() == 0
        with closing(sqlite3.connect(made.journal, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            words = [sys.executable, "-m", made.module, str(made.configuration), str(made.stage.path), "c999"]
            with subprocess.Popen(words, env={**os.environ, "NOTIFY_SOCKET": manager.told}) as service:
                manager.hears_at_last(lambda lines: "Waiting" in lines[0])
                service.terminate()
                assert service.wait(30) == -signal.SIGTERM
        assert not made.socket.exists()


def test_a_service_from_its_start_to_its_end(here: tuple[House, Manager]) -> None:
    made, manager = here
    assert manager.hears_at_last(lambda lines: "READY=1" in lines) == ["READY=1", "STATUS=Serving: nothing to do"]
    assert fed(manager, 2) > 5
    assert made.process is not None
    made.process.send_signal(signal.SIGHUP)
    assert "RELOADING=1" in manager.hears_at_last(lambda lines: "RELOADING=1" in lines)[0]
    manager.hears_at_last(lambda lines: "READY=1" in lines)
    made.process.send_signal(signal.SIGTERM)
    end = manager.hears_at_last(lambda lines: "STOPPING=1" in lines)
    assert end == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=50000000"]
    assert made.process.wait(20) == 0
