"""What a trip to a node is, and how trips are counted: the same for whoever makes them.

A trip begins when something that is to be answered leaves for a node, and ends when its answer is there.  There are
three such things: a command that ssh is started with, be it over a connection that is kept; a line for a shell that is
kept open on a node; and a call of libvirt's, over a connection that is kept.  Nobody is asked how many they made: ssh
is started by a wrapper in front of ``PATH``, and the others leave a line in a log.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: ``-O`` speaks with the ssh that keeps a connection here, and with no node.
_WRAPPER = """#!/bin/sh
case " $* " in *" -O "*) ;; *) echo ssh >>{counted} ;; esac
exec {ssh} "$@"
"""
#: In lvmigrate's log at level debug.
_LINE = "ran_on_node"
#: libvirt's log of what it sends: a call (0), not a keepalive's word (2) nor a part of a stream (3).
_SENT, _CALL = "RPC_CLIENT_MSG_TX_QUEUE", " type=0 "
_LIBVIRT = {"LIBVIRT_LOG_FILTERS": "2:rpc.netclient 4:*"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """So many of each kind."""

    commands: int = 0
    lines: int = 0
    calls: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.commands + self.lines + self.calls


class Counter:
    """Counts the trips of this process and of what it starts."""

    def __init__(self, folder: Path) -> None:
        self._commands = folder / "commands"
        self._calls = folder / "calls"
        self.begin()

    def begin(self) -> None:
        """None was made yet."""
        for file in (self._commands, self._calls):
            file.write_text("")

    def made(self, log: str = "") -> Trips:
        """Those since `begin`; ``log`` is what lvmigrate logged meanwhile."""
        return Trips(
            commands=len(self._commands.read_text().splitlines()),
            lines=sum(_LINE in line for line in log.splitlines()),
            calls=sum(_SENT in line and _CALL in line for line in self._calls.read_text().splitlines()),
        )


@contextmanager
def counted() -> Iterator[Counter]:
    """Within this, every ssh that is started by its name, and every libvirt, is counted."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise FileNotFoundError("there is no ssh")
    with tempfile.TemporaryDirectory(prefix="trips-") as made:
        folder = Path(made)
        (folder / "bin").mkdir()
        wrapper = folder / "bin" / "ssh"
        wrapper.write_text(_WRAPPER.format(ssh=shlex.quote(ssh), counted=shlex.quote(str(folder / "commands"))))
        wrapper.chmod(0o755)
        ours = {
            **_LIBVIRT,
            "LIBVIRT_LOG_OUTPUTS": f"2:file:{folder / 'calls'}",
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }
        before = {key: os.environ.get(key) for key in ours}
        os.environ.update(ours)
        try:
            yield Counter(folder)
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
