from __future__ import annotations

import dataclasses
import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvmigrate.errors import CommandFailed, NodeUnreachable
from lvmigrate.node import Node
from storage.shell import Shell

FAR = Node(name="far", ssh="root@far", libvirt_uri="", peer_uri="", migration_address="")


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def read_when_there(path: Path, within_s: float = 5.0) -> str:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return text
        time.sleep(0.02)
    raise AssertionError(path)


# ---- over an ssh that plays a part


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Shell, Node, Path]]:
    """An ``ssh`` that notes its words and runs its last one here, or fails as the file ``refuse`` says."""
    program = tmp_path / "ssh"
    program.write_text(
        f"""#!/bin/sh
[ ! -e {tmp_path}/refuse ] || {{ cat {tmp_path}/refuse >&2; exit 255; }}
for word in "$@"; do printf '%s\\n' "$word"; done >>{tmp_path}/words
for word in "$@"; do case $word in ControlPath=*) touch "${{word#*=}}" ;; exit) exit 0 ;; esac; done
eval "$word"
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    shell = Shell(ssh_config=tmp_path / "config", connect_timeout_s=3)
    yield shell, FAR, tmp_path
    shell.close()


def test_ssh_gets_the_script_as_one_word_for_sh(far: tuple[Shell, Node, Path]) -> None:
    shell, node, directory = far
    with shell.stream(node, "echo 'a  b'\nexit 7") as stream:
        assert list(stream) == ["a  b"]
        assert stream.end().status == 7
    words = (directory / "words").read_text()
    assert f"-F\n{directory}/config\n" in words
    for option in ("BatchMode=yes", "ControlMaster=auto", "ConnectTimeout=3", "ServerAliveInterval=", "--\nroot@far\n"):
        assert option in words
    (socket,) = {line.partition("=")[2] for line in words.splitlines() if line.startswith("ControlPath=")}
    assert len(socket) < 60
    assert stat.S_IMODE(Path(socket).parent.stat().st_mode) == 0o700
    shell.close()
    shell.close()
    assert not Path(socket).parent.exists()
    assert "-O\nexit\n" in (directory / "words").read_text()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("root@far: Permission denied (publickey).", "authorized_keys"),
        ("ssh: connect to host far port 22: Connection refused", "sshd"),
        ("ssh: connect to host far port 22: Connection timed out", "is up"),
        ("ssh: Could not resolve hostname far: Name or service not known", "configuration"),
        ("Host key verification failed.", "known_hosts"),
        ("", "ssh root@far true"),
    ],
)
def test_what_ssh_says_becomes_a_sentence_and_a_hint(far: tuple[Shell, Node, Path], words: str, hint: str) -> None:
    shell, node, directory = far
    (directory / "refuse").write_text(f"noise\n{words}\n" if words else "")
    with pytest.raises(NodeUnreachable) as caught:
        shell.connect(node, 5)
    assert words.rstrip(".") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hint in caught.value.hint


def test_a_user_who_is_not_root_becomes_root_by_sudo(far: tuple[Shell, Node, Path]) -> None:
    shell, node, tmp_path = far
    sudo = tmp_path / "sudo"
    sudo.write_text(f'#!/bin/sh\nprintf \'%s\\n\' "$@" >>{tmp_path}/sudone\nshift 2\nexec "$@"\n')
    sudo.chmod(0o755)
    node = dataclasses.replace(node, ssh="lvmigrate@far", sudo=True)
    with shell.stream(node, "echo 'it''s here'") as stream:
        assert list(stream) == ["its here"]
    assert (tmp_path / "sudone").read_text().splitlines() == [
        *("-n", "--", "sh", "-c", "true"),
        *("-n", "--", "sh", "-c", "echo 'it''s here'"),
    ]
    here = dataclasses.replace(node, ssh=None)
    assert shell.command(here, "true") == ["sudo", "-n", "--", "/bin/sh", "-c", "true"]


def test_a_sudo_that_refuses_is_told_at_once(far: tuple[Shell, Node, Path]) -> None:
    shell, node, tmp_path = far
    (tmp_path / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    (tmp_path / "sudo").chmod(0o755)
    with pytest.raises(NodeUnreachable, match="sudo: a password is required") as caught:
        shell.connect(dataclasses.replace(node, sudo=True), 5)
    assert "rights.md" in caught.value.hint


@pytest.fixture
def greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Shell]:
    """A shell whose ``ssh`` is the script that is given; it closes nothing, as no connection is ever shared."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(script: str) -> Shell:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ssh").chmod(0o755)
        return Shell(ssh_config=None, connect_timeout_s=0.1)

    return make


def test_a_greeting_that_is_late_is_ended_with_its_whole_group(
    greeting: Callable[[str], Shell], tmp_path: Path
) -> None:
    shell = greeting(f"trap '' TERM; sleep 60 & echo $! >{tmp_path}/pid; wait; sleep 60")
    begin = time.monotonic()
    with pytest.raises(NodeUnreachable, match="whether it acted is not known") as caught:
        shell.connect(FAR, 0.5)
    assert time.monotonic() - begin < 5
    assert caught.value.node == "far"
    assert gone(int((tmp_path / "pid").read_text()))
    shell.close()


def test_the_shared_connection_that_keeps_the_pipe_open_does_not_hang_the_caller(
    greeting: Callable[[str], Shell], tmp_path: Path
) -> None:
    """As the process behind ControlPersist does, which goes on when ssh has ended."""
    shell = greeting(f"setsid sleep 30 & echo $! >{tmp_path}/pid")
    begin = time.monotonic()
    shell.connect(FAR, 20)
    assert time.monotonic() - begin < 8
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    shell.close()


def test_a_missing_ssh_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    shell = Shell(ssh_config=None, connect_timeout_s=1)
    with pytest.raises(CommandFailed) as caught:
        shell.connect(FAR, 1)
    assert "ssh" in caught.value.hint
    shell.close()


# ---- streams


def test_lines_arrive_at_once_and_in_order(shell: Shell, node: Node) -> None:
    with shell.stream(node, "echo one; sleep 0.2; printf 'two\\nthr'; sleep 0.2; printf 'ee\\nlast'; exit 3") as stream:
        assert list(stream) == ["one", "two", "three", "last"]
        assert stream.end().status == 3


def test_a_stream_that_fails_tells_why(shell: Shell, node: Node) -> None:
    with shell.stream(node, "echo no events >&2; exit 20") as stream:
        assert list(stream) == []
        answer = stream.end()
    assert (answer.status, answer.err) == (20, "no events\n")


def test_a_stream_that_a_signal_ended(shell: Shell, node: Node) -> None:
    with shell.stream(node, "kill -SEGV $$") as stream:
        assert list(stream) == []
        assert stream.end().status == 128 + signal.SIGSEGV


def test_output_is_no_terminal_and_the_child_has_a_session_of_its_own(shell: Shell, node: Node) -> None:
    script = "[ ! -t 0 ] && [ ! -t 1 ] && [ ! -t 2 ] && cut -d' ' -f6 /proc/$$/stat"
    with shell.stream(node, script) as stream:
        (session,) = list(stream)
    assert int(session) != os.getsid(0)


def test_garbage_and_endless_lines_are_bounded(shell: Shell, node: Node) -> None:
    with shell.stream(node, r"printf 'a\377b\n'; head -c 1000000 /dev/zero; echo; echo end") as stream:
        seen = list(stream)
    assert seen[0] == "a\N{REPLACEMENT CHARACTER}b"
    # Of the endless one its beginning: what follows would look like lines of their own.
    assert [line.strip("\0") for line in seen[1:]] == ["", "end"]
    assert 65_536 <= len(seen[1]) <= 3 * 65_536


def test_an_endless_line_that_is_the_last(shell: Shell, node: Node) -> None:
    with shell.stream(node, "head -c 1000000 /dev/zero") as stream:
        assert [line.strip("\0") for line in stream] == [""]


def test_leaving_ends_a_polite_child_by_end_of_file(shell: Shell, node: Node, tmp_path: Path) -> None:
    begin = time.monotonic()
    with shell.stream(node, f"echo ready; cat; echo politely >{tmp_path}/end") as stream:
        assert next(iter(stream)) == "ready"
    assert time.monotonic() - begin < 0.9
    assert (tmp_path / "end").read_text() == "politely\n"


def test_leaving_ends_a_stubborn_child_and_its_own(shell: Shell, node: Node, tmp_path: Path) -> None:
    script = f"trap '' TERM HUP; (trap '' TERM; sleep 60) & echo $! $$ >{tmp_path}/pids; echo ready; sleep 60; sleep 60"
    begin = time.monotonic()
    with shell.stream(node, script) as stream:
        assert next(iter(stream)) == "ready"
    assert time.monotonic() - begin < 6
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_the_error_of_the_caller_is_the_one_that_is_seen(shell: Shell, node: Node, tmp_path: Path) -> None:
    def fail() -> None:
        with shell.stream(node, f"echo $$ >{tmp_path}/pid; echo ready; cat") as stream:
            for _ in stream:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert gone(int((tmp_path / "pid").read_text()))


def test_stop_from_another_thread(shell: Shell, node: Node) -> None:
    with shell.stream(node, "while :; do echo x; sleep 0.01; done") as stream:
        threading.Timer(0.3, stream.stop).start()
        assert len(list(stream)) > 3
    stream.stop()


def test_a_slow_reader_does_not_fill_the_memory(shell: Shell, node: Node, tmp_path: Path) -> None:
    script = f"i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo $i; echo $i >{tmp_path}/at; done"
    with shell.stream(node, script) as stream:
        next(iter(stream))
        deadline, before, now = time.monotonic() + 30, "", "1"
        while before != now and time.monotonic() < deadline:
            time.sleep(0.5)
            before, now = now, (tmp_path / "at").read_text()
        # It waits for us, with as much said as a pipe holds.
        assert before == now != "100000\n"


def test_no_descriptor_and_no_thread_is_left(shell: Shell, node: Node) -> None:
    def once() -> None:
        with shell.stream(node, "echo x; cat") as stream:
            next(iter(stream))

    once()
    descriptors, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(5):
        once()
    time.sleep(0.2)
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    assert threading.active_count() <= threads


def test_a_closed_shell_runs_nothing_far(far: tuple[Shell, Node, Path]) -> None:
    shell, node, _ = far
    shell.close()
    with pytest.raises(RuntimeError):
        shell.connect(node, 5)


# ---- when this very machine has nothing left


@pytest.mark.parametrize("left", [0, 1, 2])
def test_without_a_file_left_the_error_is_ours_and_no_pipe_stays(
    shell: Shell, node: Node, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    made: list[int] = []
    pipe = os.pipe

    def refuse() -> tuple[int, int]:
        if len(made) == 2 * left:
            raise OSError(errno.EMFILE, "Too many open files")
        made.extend(pipe())
        return made[-2], made[-1]

    monkeypatch.setattr(os, "pipe", refuse)
    with pytest.raises(CommandFailed) as told, shell.stream(node, "cat"):
        pass
    assert (told.value.status, told.value.node) == (126, "node1")
    assert "Too many open files" in told.value.detail
    for end in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)


def test_without_a_thread_to_be_had_the_error_is_ours(
    shell: Shell, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("storage.shell._start", refuse)
    with pytest.raises(CommandFailed), shell.stream(node, "cat"):
        pass
