"""node.sh for real on this machine: tokens, end of file, and who has a device open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lvmigrate.errors import Code, CommandFailed, TokenLost, UsageError
from lvmigrate.node import Node
from lvmigrate.replication import Opener
from lvmigrate.token import Errand, Held, Token
from storage import openers as who
from storage import remote
from storage import shell as shells
from storage.drbd import DrbdStorage
from storage.shell import Shell

SCRIPT = Path(remote.__file__).with_name("node.sh").read_text(encoding="utf-8")
UUID = "6a1d2c50-3f6e-4d0b-9d3e-2f0f6c1a7b11"


ERRAND = Errand(source="node1", target="node2", ran=True, autostart=False, target_had_definition=True)


def token(owner: str, lease_s: float = 60.0) -> Token:
    return Token(
        uuid=UUID,
        instance="web\n1",
        id=f"id-{owner}",
        holder=f"{owner} on\nhost pid 1",
        lease_s=lease_s,
        errand=ERRAND,
    )


def holder(storage: DrbdStorage) -> str | None:
    """Who holds a token that lives."""
    held = storage.traces("node1").token(UUID)
    return held.holder if held is not None and held.alive else None


@pytest.mark.parametrize("reader", [["sh"], ["bash", "--posix"]])
def test_any_posix_shell_reads_it(reader: list[str]) -> None:
    done = subprocess.run([*reader, "-n"], input=SCRIPT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---- tokens


def test_a_token_is_taken_once_and_seen(storage: DrbdStorage, tmp_path: Path) -> None:
    assert storage.traces("node1").tokens == ()
    assert storage.take_token("node1", token("a")) is None
    assert storage.take_token("node1", token("a")) is None
    there = storage.take_token("node1", token("b"))
    assert there is not None
    assert there == Held(
        node="node1",
        uuid=UUID,
        instance="web 1",
        id="id-a",
        holder="a on host pid 1",
        left_s=there.left_s,
        errand=ERRAND,
    )
    assert 50 < there.left_s <= 60
    (seen,) = storage.traces("node1").tokens
    assert (seen.id, seen.errand, seen.node, seen.alive) == ("id-a", ERRAND, "node1", True)
    written = (tmp_path / "run/lvmigrate" / f"{UUID}.token").read_text().splitlines()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert [*written[:1], *written[2:]] == ["id-a", "a on host pid 1", "6000", "node1 node2 yes no yes no", "web 1"]
    assert 50 < float(written[1]) - uptime <= 60
    storage.drop_token("node1", token("b"))
    assert holder(storage) == "a on host pid 1"
    storage.drop_token("node1", token("a"))
    storage.drop_token("node1", token("a"))
    assert holder(storage) is None
    assert list((tmp_path / "run/lvmigrate").iterdir()) == []


def test_a_token_that_ran_out_is_taken_over_and_lost(storage: DrbdStorage) -> None:
    assert storage.take_token("node1", token("a", 0.3)) is None
    time.sleep(0.5)
    (seen,) = storage.traces("node1").tokens
    assert not seen.alive
    assert -10 < seen.left_s < 0
    # Nobody took it, so it is still ours.
    storage.renew_token("node1", token("a"))
    assert holder(storage) == "a on host pid 1"
    storage.renew_token("node1", token("a", 0.3))
    time.sleep(0.5)
    assert storage.take_token("node1", token("b")) is None
    with pytest.raises(TokenLost, match="not ours any more") as caught:
        storage.renew_token("node1", token("a"))
    assert "b on host" in caught.value.detail
    storage.drop_token("node1", token("b"))
    with pytest.raises(TokenLost):
        storage.renew_token("node1", token("b"))


def test_of_those_that_ran_out_the_known_one_alone_is_taken(storage: DrbdStorage, tmp_path: Path) -> None:
    assert storage.take_token("node1", token("a", 0.3)) is None
    time.sleep(0.5)
    for unknown in ("id-c", "", "over-id-a"):
        there = storage.take_token("node1", token("b"), known=unknown)
        assert there is not None
        assert (there.id, there.alive) == ("id-a", False)
    assert storage.take_token("node1", token("b", 0.3), known="id-a") is None
    # Its guard has put its own mark on it.
    (file,) = (tmp_path / "run/lvmigrate").glob("*.token")
    file.write_text(f"over-{file.read_text()}")
    time.sleep(0.5)
    there = storage.take_token("node1", token("c"), known="id-a")
    assert there is not None
    assert there.id == "over-id-b"
    assert storage.take_token("node1", token("c"), known="id-b") is None
    assert holder(storage) == "c on host pid 1"


def test_a_living_token_is_replaced_by_whoever_names_it(storage: DrbdStorage) -> None:
    assert storage.take_token("node1", token("a")) is None
    for wrong in ("id-c", "id-", "", None):
        there = storage.take_token("node1", token("b"), replaces=wrong)
        assert there is not None
        assert there.id == "id-a"
    assert storage.take_token("node1", token("b"), replaces="id-a") is None
    with pytest.raises(TokenLost):
        storage.renew_token("node1", token("a"))
    # Of two that saw the same one, the second comes too late.
    late = storage.take_token("node1", token("c"), replaces="id-a")
    assert late is not None
    assert late.id == "id-b"


@pytest.mark.parametrize(
    "errand",
    [
        replace(ERRAND, memory_kib=524288),
        replace(ERRAND, memory_kib=7, failover=True),
        replace(ERRAND, keep_definition=True),
        replace(ERRAND, memory_kib=7, failover=True, keep_definition=True),
        replace(ERRAND, autostart=True),
        replace(ERRAND, autostart=None, failover=True),
    ],
)
def test_a_token_says_what_else_is_to_be_done(storage: DrbdStorage, errand: Errand) -> None:
    assert storage.take_token("node1", replace(token("a"), errand=errand)) is None
    (seen,) = storage.traces("node1").tokens
    assert seen.errand == errand


def test_a_token_of_another_make_is_seen_without_its_errand(storage: DrbdStorage, tmp_path: Path) -> None:
    (tmp_path / "run/lvmigrate").mkdir(parents=True)
    (tmp_path / "run/lvmigrate" / f"{UUID}.token").write_text("id-x\n5.00\nsomebody\n6000\n")
    (seen,) = storage.traces("node1").tokens
    assert (seen.id, seen.holder, seen.errand, seen.instance, seen.alive) == ("id-x", "somebody", None, "", False)


def test_of_many_at_once_one_wins(storage: DrbdStorage) -> None:
    said: list[Held | None] = []
    threads = [
        threading.Thread(target=lambda i=i: said.append(storage.take_token("node1", token(f"t{i}")))) for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(said) == 12
    assert said.count(None) == 1
    assert {held.holder for held in said if held is not None} == {holder(storage)}


def test_taking_and_dropping_at_once_never_gives_it_to_two(storage: DrbdStorage) -> None:
    inside, seen, guard = 0, 0, threading.Lock()

    def contend(owner: str) -> None:
        nonlocal inside, seen
        for _ in range(12):
            if storage.take_token("node1", token(owner)) is None:
                with guard:
                    inside += 1
                    seen = max(seen, inside)
                with guard:
                    inside -= 1
                storage.drop_token("node1", token(owner))

    threads = [threading.Thread(target=contend, args=(f"c{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (inside, seen) == (0, 1)


def test_a_token_that_nobody_can_read_never_runs_out(storage: DrbdStorage, tmp_path: Path) -> None:
    (tmp_path / "run/lvmigrate").mkdir(parents=True)
    (tmp_path / "run/lvmigrate" / f"{UUID}.token").write_text("")
    there = storage.take_token("node1", token("a"))
    assert there is not None
    assert "unknown" in there.holder
    assert there.left_s == float("inf")


def test_a_lock_that_is_held_is_said(tmp_path: Path, storage: DrbdStorage) -> None:
    (tmp_path / "run/lvmigrate").mkdir(parents=True)
    lock = tmp_path / "run/lvmigrate" / f"{UUID}.lock"
    slow = DrbdStorage(storage._remote._nodes, command_timeout_s=6, root=str(tmp_path))
    with subprocess.Popen(["flock", str(lock), "sleep", "30"], start_new_session=True) as holder:
        time.sleep(0.3)
        with pytest.raises(CommandFailed) as caught:
            slow.take_token("node1", token("a"))
        os.killpg(holder.pid, signal.SIGKILL)
    assert caught.value.code is Code.LOCKED
    slow.close()


def test_a_lock_that_has_lost_its_name_is_none(tmp_path: Path, storage: DrbdStorage) -> None:
    """Its last holder has removed it, and somebody else holds the file that has the name now."""
    (tmp_path / "run/lvmigrate").mkdir(parents=True)
    lock = tmp_path / "run/lvmigrate" / f"{UUID}.lock"
    slow = DrbdStorage(storage._remote._nodes, command_timeout_s=6, root=str(tmp_path))
    with ThreadPoolExecutor() as pool, lock.open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        taking = pool.submit(slow.take_token, "node1", token("a"))
        deadline = time.monotonic() + 60
        while not waited_for(lock) and time.monotonic() < deadline:
            time.sleep(0.05)
        lock.unlink()
        with lock.open("a") as second:
            fcntl.flock(second, fcntl.LOCK_EX)
            fcntl.flock(first, fcntl.LOCK_UN)
            with pytest.raises(CommandFailed) as caught:
                taking.result()
    assert caught.value.code is Code.LOCKED
    slow.close()


def waited_for(lock: Path) -> bool:
    """Whether the kernel knows somebody who waits for a lock on that file."""
    inode = f":{lock.stat().st_ino} "
    return any(" -> " in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.parametrize("uuid", ["", "../../etc/passwd", "a b", "-x", "a" * 100])
def test_what_is_no_uuid_names_no_file(storage: DrbdStorage, uuid: str) -> None:
    with pytest.raises(UsageError):
        storage.take_token("node1", replace(token("a"), uuid=uuid))


# ---- whoever a stream is for


def while_heard(command: str, *, quiet_s: float = 30) -> str:
    return f"root=\npatience=1\nquiet_s={quiet_s}\n{SCRIPT}\nwhile_heard {command}\n"


def test_the_child_ends_with_standard_input(shell: Shell, node: Node, tmp_path: Path) -> None:
    child = shlex.quote(f"echo $$ >{tmp_path}/pid; echo ready; exec sleep 60")
    begin = time.monotonic()
    with shell.stream(node, while_heard(f"sh -c {child}")) as stream:
        assert next(iter(stream)) == "ready"
    assert time.monotonic() - begin < 0.9
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_the_stream_ends_with_the_child(shell: Shell, node: Node) -> None:
    with shell.stream(node, while_heard("sh -c 'echo gone; exit 20'")) as stream:
        assert list(stream) == ["gone"]
        assert stream.end().status == 20


def test_a_stream_that_is_read_goes_on(shell: Shell, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "BEAT_S", 0.1)
    child = shlex.quote("echo ready; sleep 4; echo still here")
    with shell.stream(node, while_heard(f"sh -c {child}", quiet_s=2)) as stream:
        assert list(stream) == ["ready", "still here"]


def test_a_stream_that_nobody_is_heard_of_ends(shell: Shell, node: Node, tmp_path: Path) -> None:
    """As on a node behind a link that was cut: no end of file, and nothing that is read."""
    child = shlex.quote(f"echo $$ >{tmp_path}/pid; echo ready; exec sleep 600")
    with shell.stream(node, while_heard(f"sh -c {child}", quiet_s=1)) as stream:
        assert stream.end().status == 128 + signal.SIGTERM
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


# ---- openers


@pytest.fixture
def openers(shell: Shell, node: Node, device: Path, tmp_path: Path) -> Callable[[], tuple[Opener, ...]]:
    """Who has ``device`` open, as if it were volume 3 of res."""
    number = device.stat().st_rdev
    # DRBD's major is written into the script; here it is the loop device's.
    text = SCRIPT.replace('"147:', f'"{os.major(number)}:').replace("block/147:", f"block/{os.major(number)}:")
    script = (
        f"root={tmp_path}\npatience=1\n{text}\nversion=9\ndevices=' 3:{os.minor(number)}'\nwanted=' '\n"
        "want_devices res\nfind_openers\n"
    )

    def look() -> tuple[Opener, ...]:
        with shell.stream(node, script) as stream:
            said = "\n".join(stream)
            answer = stream.end()
        assert (answer.status, answer.err) == (0, "")
        return who.parse(said)

    return look


@contextlib.contextmanager
def holding(device: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    twice = f"open({str(device)!r}, {mode!r}), open({str(device)!r}, {mode!r})"
    script = f"import sys; files = {twice}; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_nobody(openers: Callable[[], tuple[Opener, ...]]) -> None:
    assert openers() == ()


@pytest.mark.parametrize(("mode", "words"), [("rb", "for reading"), ("r+b", "for writing")])
def test_a_process(openers: Callable[[], tuple[Opener, ...]], device: Path, mode: str, words: str) -> None:
    with holding(device, mode) as process:
        (opener,) = openers()
    assert (opener.resource, opener.volume) == ("res", 3)
    assert opener.what.startswith("python")
    assert opener.what.endswith(f"(pid {process.pid}) {words}")
    assert opener.guest == ""
    assert openers() == ()


def test_the_process_of_a_guest(openers: Callable[[], tuple[Opener, ...]], device: Path, tmp_path: Path) -> None:
    """libvirt's daemon writes its process down, under the guest's name."""
    runtime = tmp_path / "run/libvirt/qemu"
    runtime.mkdir(parents=True)
    with holding(device, "r+b") as process:
        (runtime / "other.pid").write_text("1\n")
        (runtime / "web 1.pid").write_text(f"{process.pid}")  # without an end of line, as it does
        (opener,) = openers()
    assert (opener.guest, opener.process) == ("web 1", True)
    assert opener.what.endswith(f"(pid {process.pid}) for writing, of the guest web 1")


GUEST_OPEN = "res 0 qemu-system-x86 (pid 8) for writing, of the guest web1"
OTHER_OPEN = "res 0 blkid (pid 7) for reading"
MOUNT_OPEN = "res 0 mounted on /srv"


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ([[]], []),
        ([[GUEST_OPEN, MOUNT_OPEN]], [GUEST_OPEN, MOUNT_OPEN]),
        ([[GUEST_OPEN, OTHER_OPEN], [GUEST_OPEN]], [GUEST_OPEN]),
        ([[GUEST_OPEN, OTHER_OPEN], [OTHER_OPEN, GUEST_OPEN]], [GUEST_OPEN, OTHER_OPEN]),
        ([[OTHER_OPEN], []], []),
    ],
)
def test_who_is_no_guest_is_looked_for_twice(
    shell: Shell, node: Node, tmp_path: Path, seen: list[list[str]], told: list[str]
) -> None:
    for number, lines in enumerate(seen, start=1):
        (tmp_path / str(number)).write_text("".join(f"{line}\n" for line in lines))
    count = tmp_path / "count"
    fakes = f"look() {{ devices=''; }}\nfind_openers() {{ echo >>{count}; cat {tmp_path}/$(wc -l <{count}); }}\n"
    with shell.stream(node, f"root=\npatience=1\n{SCRIPT}\n{fakes}openers res\n") as stream:
        assert list(stream) == told
        assert stream.end().status == 0
    assert len(count.read_text().splitlines()) == len(seen)


def test_a_second_look_that_fails_says_nothing(shell: Shell, node: Node, tmp_path: Path) -> None:
    count = tmp_path / "count"
    fakes = (
        f"look() {{ devices=''; }}\n"
        f"find_openers() {{ [ ! -e {count} ] || fail 94 no; echo >{count}; echo '{OTHER_OPEN}'; }}\n"
    )
    with shell.stream(node, f"root=\npatience=1\n{SCRIPT}\n{fakes}openers res\n") as stream:
        assert list(stream) == []
        assert stream.end().status == 94


@pytest.mark.parametrize("version", ["8.4.11", "9.3.3"])
def test_whoever_keeps_a_device_from_being_demoted_is_named(shell: Shell, node: Node, version: str) -> None:
    """Also where the kernel alone has said that there is somebody."""
    fakes = f"""
look() {{ role=Primary version={version} devices=' 0:0'; }}
want_devices() {{ :; }}
each() {{ say '0: State change failed: (-12) Device is held open by someone' >&2; return 11; }}
find_openers() {{ say '{OTHER_OPEN}'; }}
sleep() {{ :; }}
demote res
"""
    with shell.stream(node, f"root=\npatience=1\n{SCRIPT}\n{fakes}") as stream:
        assert list(stream) == [OTHER_OPEN]
        assert stream.end().status == 97


def test_a_process_that_calls_the_device_something_else(
    openers: Callable[[], tuple[Opener, ...]], device: Path, tmp_path: Path
) -> None:
    alias = tmp_path / "an alias"
    os.mknod(alias, 0o600 | 0o060000, device.stat().st_rdev)
    with holding(alias, "rb") as process:
        assert [f"(pid {process.pid})" in opener.what for opener in openers()] == [True]


def test_a_mount_here_and_in_another_namespace(
    openers: Callable[[], tuple[Opener, ...]], device: Path, tmp_path: Path
) -> None:
    subprocess.run(["mke2fs", "-q", str(device)], check=True)
    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", str(device), str(point)], check=True)
    try:
        assert [opener.what for opener in openers()] == [f"mounted on {point}"]
    finally:
        subprocess.run(["umount", str(point)], check=True)
    hidden = f"mount {device} {point} && echo mounted && cat"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", hidden],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mounted\n"
        assert [opener.what for opener in openers()] == [f"mounted on {point}"]
    assert openers() == ()


def test_a_loop_device_on_top(openers: Callable[[], tuple[Opener, ...]], device: Path, tmp_path: Path) -> None:
    # Only what is called like one of DRBD's is looked at: other paths may hang.
    alias = tmp_path / "drbd7"
    os.mknod(alias, 0o600 | 0o060000, device.stat().st_rdev)
    made = subprocess.run(["losetup", "-f", "--show", str(alias)], capture_output=True, text=True, check=True)
    above = Path(made.stdout.strip())
    try:
        assert [opener.what for opener in openers()] == [f"behind the device {above.name}"]
    finally:
        subprocess.run(["losetup", "-d", str(above)], check=True)
    assert openers() == ()


def test_missing_tools_are_no_proof_that_nobody_is_there(
    shell: Shell, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "find").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "find").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = f"root=\npatience=1\n{SCRIPT}\nwanted=' '\nfind_openers\n"
    with shell.stream(node, script) as stream:
        assert list(stream) == []
        assert stream.end().status == 94


def test_a_file_system_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    """A stat of a file whose server is gone does not come back: here find itself does not."""
    find = tmp_path / "find"
    find.write_text("#!/bin/sh\nexec sleep 1000\n")
    find.chmod(0o755)
    script = f"root=\npatience=1\nlooking_s=1\n{SCRIPT}\nPATH={tmp_path}:$PATH\nwanted=' '\nfind_openers\n"
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 94
    assert "took more than 1 s" in done.stderr


def test_what_is_on_other_machines_is_not_looked_at(tmp_path: Path) -> None:
    """Not even asked for: find is told to leave out what is below their mount points."""
    find = tmp_path / "find"
    find.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{tmp_path}/asked\nexec /usr/bin/find "$@"\n')
    find.chmod(0o755)
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:21 / /proc rw - proc proc rw\n"
        "30 1 0:40 / /srv/vms rw,relatime shared:1 - nfs4 filer:/vms rw,hard\n"
        "31 1 8:1 / /srv/local rw - ext4 /dev/sda1 rw\n"
        "32 1 0:41 / /srv/gluster rw - fuse.glusterfs gl:/v rw\n"
    )
    looks = SCRIPT.replace("</proc/self/mountinfo", f"<{mounts}", 1)
    script = f"root=\npatience=1\n{looks}\nPATH={tmp_path}:$PATH\nwanted=' '\nfind_openers\n"
    subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True, timeout=60)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [word for word in asked if word.startswith("/srv")] == ["/srv/vms/*", "/srv/gluster/*"]
