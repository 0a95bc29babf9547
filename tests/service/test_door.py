"""Who is let in: so many in all and of one origin, and with no file left nobody, quietly."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from lvmigrate.service import door
from lvmigrate.service.door import Door


@pytest.fixture
def said() -> Iterator[LogCapture]:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    yield capture
    structlog.reset_defaults()


@pytest.fixture
def there() -> Iterator[tuple[Door, ExitStack]]:
    """Eight may come in, two of them of one origin."""
    with ExitStack() as stack:
        listener = stack.enter_context(closing(Door(socket.create_server(("127.0.0.1", 0), backlog=64), most=8)))
        listener.settimeout(0)
        yield listener, stack


def come(there: tuple[Door, ExitStack], source: str = "127.0.0.1") -> socket.socket:
    listener, stack = there
    connection = socket.create_connection(listener.getsockname(), 10, source_address=(source, 0))
    return stack.enter_context(closing(connection))


def let_in(listener: Door) -> list[socket.socket]:
    found = []
    try:
        while True:
            found.append(listener.accept()[0])
    except BlockingIOError:
        return found


def test_one_origin_does_not_take_the_place_of_others(there: tuple[Door, ExitStack], said: LogCapture) -> None:
    listener, stack = there
    for _ in range(5):
        come(there)
    first = let_in(listener)
    assert len(first) == 2
    for number in range(2, 7):
        come(there, f"127.0.0.{number}")
        come(there, f"127.0.0.{number}")
    others = let_in(listener)
    assert len(others) == 6
    # Whoever was turned away is told by the end of the connection; the log, by one line.
    away = come(there, "127.0.0.99")
    assert let_in(listener) == []
    away.settimeout(10)
    assert away.recv(1) == b""
    assert len([line for line in said.entries if line["event"] == "turned_away"]) == 1
    # Where one goes, another may come: whether it was closed or forgotten.
    others.pop().close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del others[-1]
    for _ in range(3):
        come(there, "127.0.0.99")
    again = let_in(listener)
    assert len(again) == 2
    for connection in (*first, *others, *again):
        connection.close()
        connection.close()
    come(there)
    stack.enter_context(closing(let_in(listener)[0]))


def test_of_a_unix_socket_the_origin_is_the_user(tmp_path: Path) -> None:
    plain = socket.socket(socket.AF_UNIX)
    plain.bind(str(tmp_path / "s"))
    plain.listen(8)
    with closing(Door(plain, most=8)) as listener, ExitStack() as stack:
        listener.settimeout(0)
        for _ in range(3):
            stack.enter_context(closing(socket.socket(socket.AF_UNIX))).connect(str(tmp_path / "s"))
        inside = [stack.enter_context(closing(each)) for each in let_in(listener)]
        assert len(inside) == 2
        assert door.credentials(inside[0]) == (os.getpid(), os.getuid(), os.getgid())


def test_of_ipv6_the_origin_is_the_network() -> None:
    class Six:
        family = socket.AF_INET6

    six: Any = Six()
    first, second, other = ((f"2001:db8:0:{net}::{host}", 1, 0, 0) for net, host in ((1, 1), (1, "ffff"), (2, 1)))
    assert door._origin(six, first) == door._origin(six, second) != door._origin(six, other)
    assert door._origin(six, ("fe80::1%eth0", 1, 0, 2)) == "fe80::/64"


def test_with_no_file_left_whoever_comes_is_turned_away_and_the_log_is_not_flooded(
    there: tuple[Door, ExitStack], said: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, _ = there
    away = [come(there) for _ in range(3)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(file.name) for file in Path("/proc/self/fd").iterdir()) + 8, before[1])
    )
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.dup(0))
        for _ in range(20):
            with pytest.raises(BlockingIOError):
                listener.accept()
        # Not even the one that was kept for this: nothing is raised but that nobody can be let in.
        spare, listener._spare = listener._spare, None
        assert spare is not None
        held.append(spare)
        monkeypatch.setattr(door, "_PAUSE_S", 0.0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    finally:
        for file in held:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for connection in away:
        connection.settimeout(10)
        assert connection.recv(1) == b""
    assert len(said.entries) == 1
    come(there)
    (inside,) = let_in(listener)
    inside.close()


def test_another_error_is_told(there: tuple[Door, ExitStack]) -> None:
    listener, _ = there
    listener.close()
    with pytest.raises(OSError, match="Bad file") as told:
        listener.accept()
    assert told.value.errno == errno.EBADF


@pytest.mark.parametrize(
    ("limits", "files", "connections"),
    [((256, 1024), 1024, 256), ((1024, 4096), 4096, 1000), ((64, 600), 600, 44), ((64, 100), 100, 16)],
)
def test_a_process_may_open_as_many_files_as_it_may(limits: tuple[int, int], files: int, connections: int) -> None:
    code = (
        "import resource\n"
        "from lvmigrate.service import door\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limits})\n"
        "files = door.raise_limit()\n"
        "print(files, resource.getrlimit(resource.RLIMIT_NOFILE)[0], door.most_connections(files))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(files), str(files), str(connections)]
