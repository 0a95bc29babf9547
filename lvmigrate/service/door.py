"""The doors: who is let in at a socket, before anything is said, encrypted or known.

Open files are what a service runs out of first, and the moves under way need some for every shell, libvirt and the
journal.  So the process has as many as it may, each socket lets in so many connections and so many of one origin, and
whoever comes beyond that is turned away at once: the connection is closed without a word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
import time
import weakref
from collections import Counter
from typing import Any, Final

import structlog

from lvmigrate.service.origin import origin

_log = structlog.get_logger()

#: Open files that are enough for any service. No more: every child inherits the limit, and some programs close as many
#: files as they may have, one by one, before they begin.
_ENOUGH: Final = 65_536
#: What is left to all that is no connection: shells (seven files each), libvirt, the journal.
_RESERVE: Final = 512
#: Connections of one socket, at the most and where there are but a few files; and which part of them may be of one
#: origin, or follow events for one subject.
_MOST: Final = 1000
_LEAST: Final = 16
_OF_ONE: Final = 4
_FOLLOW: Final = 5
#: So many are turned away at once, before others have their turn.
_AT_ONCE: Final = 256
#: Between two lines of the log, in seconds; and between two tries when there is no file left at all.
_TELL_S: Final = 10.0
_PAUSE_S: Final = 0.02
_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_CREDENTIALS: Final = struct.Struct("3i")


def raise_limit() -> int:
    """Let this process open as many files as it may, and as is enough; how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY:
        return _ENOUGH
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def most_connections(files: int) -> int:
    """How many connections each of two sockets may have, of a process that may open so many files."""
    return max(_LEAST, min(_MOST, (files - _RESERVE) // 2))


def most_followed(connections: int) -> int:
    """How many streams of events one subject may follow at once."""
    return connections // _FOLLOW


def credentials(connection: socket.socket) -> tuple[int, int, int]:
    """The process, user and group at the other end of a unix socket, by the kernel's word."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


class Door(socket.socket):
    """A socket that listens, in place of ``plain``. `accept` gives only those who are let in."""

    def __init__(self, plain: socket.socket, *, most: int) -> None:
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self._most = most
        self._of_one = max(1, most // _OF_ONE)
        self._inside: Counter[str] = Counter()
        self._turned_away = 0
        self._told_at = -_TELL_S
        #: Held so that somebody can be turned away though no file is left: else they would wait, and wake us, for ever.
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next who is let in. Raises `BlockingIOError` while there is nobody, or no file for them."""
        for _ in range(_AT_ONCE):
            try:
                connection, address = super().accept()
            except OSError as error:
                if error.errno not in _NO_FILES:
                    raise
                self._turn_away_one()
                self._tell(error.strerror or "no files")
                break
            who = _origin(connection, address)
            if who is not None and self._inside[who] < self._of_one and self._inside.total() < self._most:
                self._inside[who] += 1
                return _Inside(connection, weakref.WeakMethod(self._left), who), address
            connection.close()
            self._tell("too many of one origin" if self._inside.total() < self._most else "too many")
        raise BlockingIOError

    def close(self) -> None:
        """Nobody is let in any more."""
        super().close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _left(self, origin: str) -> None:
        self._inside[origin] -= 1
        if not self._inside[origin]:
            del self._inside[origin]

    def _turn_away_one(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            with contextlib.suppress(OSError):  # another thread took the file, or nobody waits
                super().accept()[0].close()
        else:
            time.sleep(_PAUSE_S)
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = None

    def _tell(self, why: str) -> None:
        self._turned_away += 1
        now = time.monotonic()
        if now - self._told_at >= _TELL_S:
            _log.warning("turned_away", at=str(self.getsockname()), connections=self._turned_away, why=why)
            self._turned_away, self._told_at = 0, now


class _Inside(socket.socket):
    """A connection, counted until it is closed or forgotten."""

    def __init__(self, plain: socket.socket, left: weakref.WeakMethod[Any], origin: str) -> None:
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())

        def gone() -> None:
            if (tell := left()) is not None:
                tell(origin)

        self._gone = weakref.finalize(self, gone)
        self._gone.atexit = False

    def close(self) -> None:
        super().close()
        self._gone()


def _origin(connection: socket.socket, address: Any) -> str | None:  # noqa: ANN401 -- as the family has it
    """Where it comes from; ``None``: it has gone already."""
    if connection.family == socket.AF_UNIX:
        try:
            return f"uid {credentials(connection)[1]}"
        except OSError:
            return None
    return origin(str(address[0]))
