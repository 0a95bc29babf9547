"""Shells that stay on nodes: loaded with the functions of node.sh once, then asked for one after the other.

A command of its own for each call would cost a login, and reading some 40 KiB of functions by the login shell and by
sh, which on a busy node is more than what the functions do.  The functions come by standard input for the same reason.

Each call runs in a process of its own, which ``serve`` of node.sh forks, so nothing of it stays.  A session works at
one call at a time; calls at the same time have a session each.  It ends with its standard input, that is with us.
"""

from __future__ import annotations

import os
import select
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from lvmigrate.errors import NodeUnreachable
from lvmigrate.node import Node
from lvmigrate.together import together
from storage.shell import Answer, Shell, Stream, too_late

log = structlog.get_logger(__name__)

#: How many sessions are kept for a node; of more than these at once the rest ends with its call.
_KEPT: Final = 3
#: How many serve a node at once. sshd takes 10 over one connection (MaxSessions): the rest is for streams of events.
#: What is refused there costs a connection of its own, with a login.
_MOST: Final = 8
#: How long a call waits for one of them, in seconds. Then it has one more all the same: what hangs on a node, as a
#: command does on a disk that does not answer, must not keep the tokens of others from being renewed.
_PATIENCE_S: Final = 1.0
_CHUNK: Final = 65_536
#: The longest answer that is taken, in bytes: thousands of resources are told of in some MiB.
MOST: Final = 64 << 20


class _NotBegunError(Exception):
    """Nobody reads any more, so the call was not begun: a request without its end is none."""


class _EndedError(Exception):
    """The other end is gone; whether the call acted is not known."""


class _EndlessError(Exception):
    """The answer is longer than any that makes sense."""


class _LateError(Exception):
    """The deadline came first; whether the call acted, or will, is not known."""


class _Session(Stream):
    """One shell that serves."""

    def lives(self) -> bool:
        """Whether it is there, as far as can be told: one that ended has an end of file to be read."""
        poll = select.poll()  # select() knows no file above 1023
        poll.register(self._out, select.POLLIN)
        return not poll.poll(0)

    def ask(self, request: str, deadline: float) -> Answer:
        """What came of one call. Raises one of the four above."""
        mark = uuid.uuid4().hex
        left = f"{mark}\n{request}\n".encode()
        while left:
            _wait(self._hold, select.POLLOUT, deadline)
            try:
                left = left[os.write(self._hold, left) :]
            except BrokenPipeError:
                raise _NotBegunError from None
        end = f"\n{mark}.\n".encode()
        said = bytearray()
        while not said.endswith(end):
            _wait(self._out, select.POLLIN, deadline)
            chunk = os.read(self._out, _CHUNK)
            if not chunk:
                raise _EndedError
            said += chunk
            if len(said) > MOST:
                raise _EndlessError
        out, _, rest = bytes(said[: -len(end)]).rpartition(f"\n{mark} ".encode())
        status, _, err = rest.partition(b"\n")
        return Answer(status=int(status), out=out.decode(errors="replace"), err=err.decode(errors="replace"))

    def leave(self) -> None:
        """End it by its standard input."""
        self.__exit__(None, None, None)


def _wait(file: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(file, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise _LateError


class Sessions:
    """The sessions of every node, each of which runs ``script`` with ``text`` to be read first. Thread-safe."""

    def __init__(self, shell: Shell, script: str, text: str) -> None:
        self._shell = shell
        self._script = script
        self._text = text.encode()
        self._idle: dict[str, list[_Session]] = {}
        #: By node: who may serve.
        self._turns: dict[str, threading.Semaphore] = {}
        self._closed = False
        self._guard = threading.Lock()

    def ask(self, node: Node, request: str, *, what: str, timeout_s: float) -> Answer:
        """Run ``request``, a line for sh, on ``node`` and wait for its end. ``what`` is its name in the log.

        Raises `NodeUnreachable` when the node gave no answer within ``timeout_s``: whether the request did anything is
        not known then.
        """
        with self._turn(node, timeout_s):
            return self._ask(node, request, what=what, timeout_s=timeout_s)

    def _ask(self, node: Node, request: str, *, what: str, timeout_s: float) -> Answer:
        begin = time.monotonic()
        answer = None
        while answer is None:
            kept = self._kept(node)
            session = kept or self._open(node, timeout_s)
            try:
                answer = session.ask(request, begin + timeout_s)
            except _NotBegunError:
                session.leave()
                if kept is None:
                    raise self._ended(node, session, what) from None
            except _EndedError:
                session.leave()
                raise self._ended(node, session, what) from None
            except BaseException as error:
                session.kill()
                session.leave()
                if isinstance(error, _LateError):
                    raise too_late(node, what, timeout_s) from None
                if isinstance(error, _EndlessError):
                    raise _endless(node, what) from None
                raise
        self._keep(node, session)
        log.debug(
            "ran_on_node",
            node=node.name,
            what=what,
            status=answer.status,
            ms=round((time.monotonic() - begin) * 1000, 1),
        )
        return answer

    def close(self) -> None:
        """End all of them."""
        with self._guard:
            self._closed = True
            idle = [session for sessions in self._idle.values() for session in sessions]
            self._idle.clear()
        together([session.leave for session in idle])

    @contextmanager
    def _turn(self, node: Node, timeout_s: float) -> Iterator[None]:
        with self._guard:
            turns = self._turns.setdefault(node.name, threading.Semaphore(_MOST))
        ours = turns.acquire(timeout=min(_PATIENCE_S, timeout_s))
        try:
            yield
        finally:
            if ours:
                turns.release()

    def _open(self, node: Node, timeout_s: float) -> _Session:
        self._shell.connect(node, timeout_s)
        session = _Session(self._shell.command(node, self._script), node, self._text)
        session.__enter__()
        return session

    def _kept(self, node: Node) -> _Session | None:
        """One that nobody uses; those that have ended meanwhile are left."""
        while True:
            with self._guard:
                idle = self._idle.get(node.name)
                session = idle.pop() if idle else None
            if session is None or session.lives():
                return session
            session.leave()

    def _keep(self, node: Node, session: _Session) -> None:
        with self._guard:
            idle = self._idle.setdefault(node.name, [])
            keep = not self._closed and len(idle) < _KEPT
            if keep:
                idle.append(session)
        if not keep:
            session.leave()

    def _ended(self, node: Node, session: _Session, what: str) -> NodeUnreachable:
        """Why a session ended in the middle of a call."""
        answer = session.end()
        return self._shell.unreachable(node, answer) or NodeUnreachable(
            node.name,
            f"its shell ended during {what}, so whether it acted is not known",
            hint="Look at the node's kernel log, then run the same command again.",
            detail=answer.err.strip(),
        )


def _endless(node: Node, what: str) -> NodeUnreachable:
    return NodeUnreachable(
        node.name,
        f"it says more than {MOST >> 20} MiB during {what}, so whether it acted is not known",
        hint="Look at what drbdsetup says there: `drbdsetup events2 --now | head`.",
    )
