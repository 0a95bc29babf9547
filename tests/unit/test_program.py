"""Programs of the operator's: real ones, that hang, shout and leave children behind."""

from __future__ import annotations

import errno
import gc
import os
import selectors
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import program
from lvmigrate.program import Ended, NotStarted

LONG_S = 120.0
ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "WORD": "x y"}


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run(path: Path, *, within_s: float = LONG_S, most: int = 1000, cancel: threading.Event | None = None) -> Ended:
    return program.run([str(path)], env=ENV, within_s=within_s, most_bytes=most, cancel=cancel)


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_for(seen: Path) -> str:
    deadline = time.monotonic() + LONG_S
    while not (seen.exists() and seen.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return seen.read_text()


def test_what_it_says_and_where_it_runs(tmp_path: Path) -> None:
    ended = run(script(tmp_path / "p", 'pwd; echo "$WORD" >&2; read line; echo "$? $HOME"; exit 3'))
    assert (ended.status, ended.output, ended.errors) == (3, "/\n1 \n", "x y\n")
    assert (ended.ok, ended.cut_off, ended.overdue, ended.how) == (False, False, False, "ended with 3")


def test_one_that_cannot_be_listened_to_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the files are all taken, right after it was started."""

    def none_left(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    begin = time.monotonic()
    with pytest.raises(NotStarted, match="cannot be listened to: Too many open files") as caught:
        run(script(tmp_path / "p", "exec sleep 30"), within_s=1.0)
    assert time.monotonic() - begin < 20
    assert "open files" in caught.value.hint


@pytest.mark.parametrize("trap", ["trap '' TERM", "true"], ids=["deaf", "hears"])
def test_one_that_hangs_is_ended_with_its_children(tmp_path: Path, trap: str) -> None:
    pids = tmp_path / "pids"
    hangs = script(tmp_path / "p", f"{trap}\nsleep 1000 &\necho $$ $! >{pids}\necho begun\nsleep 1000\nsleep 1000")
    ended = run(hangs, within_s=1.0)
    assert (ended.overdue, ended.ok, ended.how, ended.output) == (True, False, "did not end in time", "begun\n")
    deadline = time.monotonic() + LONG_S
    while not all(gone(int(pid)) for pid in wait_for(pids).split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("asked", [False, True], ids=["overdue", "stopped"])
def test_one_that_was_ended_has_not_done_its_work_whatever_it_says(tmp_path: Path, *, asked: bool) -> None:
    cancel = threading.Event()
    if asked:
        cancel.set()
    begun = tmp_path / "begun"
    polite = script(tmp_path / "p", f"trap 'echo bye; exit 0' TERM\necho x >{begun}\nwhile :; do sleep 0.1; done")

    def ask() -> None:
        wait_for(begun)
        if asked:
            cancel.set()

    asks = threading.Thread(target=ask)
    asks.start()
    ended = run(polite, within_s=LONG_S if asked else 3.0, cancel=cancel)
    asks.join()
    assert (ended.stopped, ended.overdue, ended.ok) == (asked, not asked, False)
    # It was asked to end, and heard until it did.
    assert (ended.status, ended.output) == (0, "bye\n")


def test_who_asks_to_stop_as_the_time_is_up_is_told_that_it_was_stopped(tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    ended = run(script(tmp_path / "p", "sleep 1000"), within_s=0.0, cancel=cancel)
    assert (ended.stopped, ended.overdue, ended.how) == (True, False, "was stopped, as asked")


def test_a_child_that_goes_on_shouting_is_not_listened_to(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    ended = run(script(tmp_path / "p", f"yes &\necho $! >{pid}"))
    os.kill(int(pid.read_text()), 9)
    assert (ended.ok, ended.cut_off or len(ended.output) <= 1000) == (True, True)


def test_no_more_of_it_is_read_than_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast somebody fills the pipe that it has left."""

    def full(listening: Any, stream: int) -> bool:
        listening._said[stream] += b"y"
        return True

    monkeypatch.setattr(program._Listening, "_read", full)
    ended = run(script(tmp_path / "p", "exit 0"))
    assert (ended.status, ended.output[:1000]) == (0, "y" * 1000)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Noted(selectors.DefaultSelector):
    looks = closed = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        Noted.looks += 1
        return super().select(timeout)

    def close(self) -> None:
        Noted.closed += 1
        super().close()


def test_one_that_says_nothing_more_takes_no_time_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Noted, "looks", 0)
    monkeypatch.setattr(Noted, "closed", 0)
    monkeypatch.setattr(selectors, "DefaultSelector", Noted)
    gc.collect()
    before = open_files()
    assert run(script(tmp_path / "p", "exec >&- 2>&-\nsleep 1")).ok
    assert Noted.looks < 100
    assert (Noted.closed, open_files()) == (1, before)


def test_a_child_that_outlives_it_is_not_waited_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    ended = run(script(tmp_path / "p", f"sleep 1000 &\necho $! >{pid}\necho done"))
    child = int(pid.read_text())
    try:
        assert (ended.ok, ended.output) == (True, "done\n")
        assert not gone(child)
    finally:
        os.kill(child, 9)


def test_too_much_is_read_and_thrown_away(tmp_path: Path) -> None:
    ended = run(script(tmp_path / "p", "head -c 50000000 /dev/zero | tr '\\0' a; echo end >&2"))
    assert (ended.ok, ended.output, ended.errors, ended.cut_off) == (True, "a" * 1000, "end\n", True)


def test_what_is_no_text_is_shown_as_such(tmp_path: Path) -> None:
    assert run(script(tmp_path / "p", "printf 'a\\377b'")).output == "a\\xffb"


def test_it_is_stopped_when_asked(tmp_path: Path) -> None:
    cancel, begun = threading.Event(), tmp_path / "begun"
    hangs = script(tmp_path / "p", f"echo x >{begun}; sleep 1000")

    def ask() -> None:
        wait_for(begun)
        cancel.set()

    asks = threading.Thread(target=ask)
    asks.start()
    ended = run(hangs, cancel=cancel)
    asks.join()
    assert (ended.stopped, ended.overdue, ended.ok, ended.how) == (True, False, False, "was stopped, as asked")


def test_a_signal(tmp_path: Path) -> None:
    assert run(script(tmp_path / "p", "kill -9 $$")).how == "was ended by signal 9"


@pytest.mark.parametrize("text", [None, "#!/no/such/interpreter\n", "\x00\x01"])
def test_what_cannot_be_started(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "p"
    if text is not None:
        path.write_text(text)
        path.chmod(0o755)
    with pytest.raises(NotStarted, match=r"p cannot be started: (No such file or directory|Exec format error)\."):
        run(path)


def test_a_name_that_is_none() -> None:
    with pytest.raises(NotStarted, match=r"cannot be started: embedded null byte\."):
        program.run(["/a\x00b"], env=ENV, within_s=1, most_bytes=1)
