"""Shells that stay on a node: what a call gives back, and what becomes of calls whose shell ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvmigrate.errors import NodeUnreachable
from lvmigrate.node import Node
from storage import session
from storage.remote import Remote
from storage.shell import Answer, Shell
from tests.unit.storage.conftest import here
from tests.unit.storage.test_shell import gone

Call = Callable[..., Answer]


@pytest.fixture
def remote() -> Iterator[Remote]:
    made = Remote({"node1": here("node1")}, Shell(ssh_config=None, connect_timeout_s=5), command_timeout_s=10, root="")
    yield made
    made.close()


@pytest.fixture
def call(remote: Remote) -> Call:
    return lambda *words: remote.run("node1", "a test", *words)


@pytest.mark.parametrize("status", [0, 1, 11, 97, 254, 255])
def test_the_exit_code_and_both_outputs(call: Call, status: int) -> None:
    answer = call("eval", f"echo out; echo err >&2; exit {status}")
    assert (answer.status, answer.out, answer.err) == (status, "out\n", "err")


def test_what_has_no_end_of_line_arrives_as_it_is(call: Call) -> None:
    assert call("printf", "%s", "a\n\nb").out == "a\n\nb"
    assert call("true").out == ""


@pytest.mark.parametrize(
    "word", ["a b", "$(touch x)", "`id`", "it's", '"', "a\nb", "'\n'", "\n", "*", "-n", "\\", "ü€", ";reboot", ""]
)
def test_nasty_words_arrive_whole(call: Call, word: str) -> None:
    assert call("printf", "<%s>", word).out == f"<{word}>"


def test_garbage_bytes_and_megabytes(call: Call) -> None:
    answer = call("eval", r"printf '\377\000\200a'; head -c 3000000 /dev/zero | tr '\0' x")
    assert answer.out.startswith("\N{REPLACEMENT CHARACTER}\0\N{REPLACEMENT CHARACTER}a")
    assert answer.out.count("x") == 3_000_000
    assert call("printf", "%s", "y" * 200_000).out == "y" * 200_000


def test_nothing_of_a_call_stays_for_the_next(call: Call) -> None:
    assert call("eval", "left=behind; cd /; set +u; exec 9>/dev/null; exit 3").status == 3
    answer = call("eval", '[ ! -e /proc/self/fd/9 ]; echo "$? $PWD ${left-none}"; echo "$nothing"')
    assert answer.out == f"0 {Path.cwd()} none\n"
    assert "nothing" in answer.err


def test_a_call_does_not_read_the_next_one(call: Call) -> None:
    assert call("cat").out == ""
    assert call("echo", "next").out == "next\n"


def test_calls_one_after_the_other_have_one_shell_and_those_at_once_one_each(call: Call, tmp_path: Path) -> None:
    assert len({call("eval", "echo $$").out for _ in range(3)}) == 1
    seen: list[str] = []

    def serve(number: int) -> None:
        # None ends before all have begun, however long that takes.
        wait = f"touch {tmp_path}/{number}; until [ $(ls {tmp_path} | wc -l) = 8 ]; do sleep 0.05; done"
        seen.append(call("eval", f"echo $$; {wait}").out)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(seen)) == 8


def at_once(call: Call, count: int, *words: str) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, args=words) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_no_more_calls_are_served_at_once_than_sshd_takes(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_PATIENCE_S", 60.0)
    # Each says how many others there are, itself included, while it is there.
    words = f"touch {tmp_path}/in.$$; ls {tmp_path} | grep -c in >>{tmp_path}/most; sleep 0.1; rm {tmp_path}/in.$$"
    for thread in at_once(call, 24, "eval", words):
        thread.join(60)
    seen = [int(line) for line in (tmp_path / "most").read_text().split()]
    assert len(seen) == 24
    assert max(seen) <= 8


def test_those_that_hang_do_not_keep_others_from_being_served(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_PATIENCE_S", 0.05)
    hanging = at_once(call, 8, "eval", f"touch {tmp_path}/$$; until [ -e {tmp_path}/go ]; do sleep 0.05; done")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert call("echo", "served").out == "served\n"
    (tmp_path / "go").touch()
    for thread in hanging:
        thread.join(30)


def test_a_shell_that_ended_meanwhile_is_replaced(call: Call) -> None:
    first = int(call("eval", "echo $$").out)
    os.kill(first, signal.SIGKILL)
    assert gone(first)
    assert int(call("eval", "echo $$").out) != first


def test_a_shell_that_ends_during_a_call_is_no_answer(call: Call) -> None:
    with pytest.raises(NodeUnreachable, match="whether it acted is not known"):
        call("eval", "kill -KILL $$; sleep 1")
    assert call("echo", "again").out == "again\n"


def test_the_deadline_ends_the_call_and_its_shell(tmp_path: Path) -> None:
    short = Remote({"node1": here("node1")}, Shell(ssh_config=None, connect_timeout_s=5), command_timeout_s=1, root="")
    begin = time.monotonic()
    with pytest.raises(NodeUnreachable, match="no end of a test within 1 s"):
        short.run("node1", "a test", "eval", f"echo $$ >{tmp_path}/pid; sleep 60")
    assert time.monotonic() - begin < 10
    assert gone(int((tmp_path / "pid").read_text()))
    assert short.run("node1", "a test", "echo", "again").out == "again\n"
    short.close()


def test_closing_ends_the_shells(remote: Remote, call: Call) -> None:
    serving = int(call("eval", "echo $$").out)
    remote.close()
    assert gone(serving)


def test_a_refused_login_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh greets, and then takes no more sessions."""
    program = tmp_path / "ssh"
    program.write_text(
        """#!/bin/sh
for word in "$@"; do case $word in ControlPath=*) path=${word#*=} ;; exit) exit 0 ;; esac; done
case $word in *true*) touch "$path"; exit 0 ;; esac
echo 'Permission denied (publickey).' >&2
exit 255
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    far = Node(name="far", ssh="root@far", libvirt_uri="", peer_uri="", migration_address="")
    remote = Remote({"far": far}, Shell(ssh_config=None, connect_timeout_s=5), command_timeout_s=10, root="")
    with pytest.raises(NodeUnreachable, match="Permission denied") as caught:
        remote.run("far", "a test", "true")
    assert "authorized_keys" in caught.value.hint
    remote.close()


def test_an_answer_without_an_end_is_given_up(remote: Remote, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.session.MOST", 1 << 20)
    with pytest.raises(NodeUnreachable, match="says more than 1 MiB during a test"):
        call("yes")
    assert call("echo", "again").out == "again\n"
