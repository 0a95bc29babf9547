"""Run a program of the operator's on this machine: never by a shell, never for longer than its time, never too much."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

from lvmigrate.errors import Code, ExitCode, LvmigrateError

#: How long a program that was asked to end (SIGTERM) may still take, in seconds.
_GRACE_S: Final = 2.0
#: How often it is looked whether somebody asked to stop.
_LOOK_S: Final = 0.1
_PIECE: Final = 1 << 16


class NotStarted(LvmigrateError):
    """The program could not be started: it is not there, not executable, or its interpreter is missing."""

    code = Code.COMMAND_FAILED
    exit_code = ExitCode.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended."""

    #: Its exit code; below 0: the signal that ended it.
    status: int
    #: What it said, at most so much of it; what is no UTF-8 is shown as such.
    output: str
    errors: str
    #: Whether it said more than that.
    cut_off: bool
    #: Its time was up, or somebody asked to stop: it was ended, with whatever else ran in its process group.
    overdue: bool
    stopped: bool

    @property
    def ok(self) -> bool:
        """It did its work."""
        return self.status == 0 and not self.overdue and not self.stopped

    @property
    def how(self) -> str:
        """How it ended, as a clause."""
        if self.stopped:
            return "was stopped, as asked"
        if self.overdue:
            return "did not end in time"
        return f"was ended by signal {-self.status}" if self.status < 0 else f"ended with {self.status}"


def run(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    within_s: float,
    most_bytes: int,
    cancel: threading.Event | None = None,
) -> Ended:
    """Run ``words`` in ``/`` with nothing to read, in a session of its own.

    Guaranteed afterwards: the program has ended.  One whose time was up, or which runs when ``cancel`` is set, is asked
    to end and then killed, together with its process group.  What it has started and left running is left alone if it
    ended by itself, and never waited for.  Of each of its two outputs ``most_bytes`` are kept; more is read and thrown
    away.  Raises `NotStarted`.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 -- the operator's own program
            list(words),
            cwd="/",
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotStarted(
            f"{words[0]} cannot be started: {reason}.", hint="See that it is executable, and that its #! line is right."
        ) from error
    with process, contextlib.ExitStack() as stack:
        try:
            listening = stack.enter_context(_Listening(process, most_bytes))
        except OSError as error:
            _signal(process, signal.SIGKILL)  # nobody would hear of its end, and it would be waited for without one
            raise NotStarted(
                f"{words[0]} cannot be listened to: {error.strerror}.", hint="Let lvmigrate have more open files."
            ) from error
        deadline = time.monotonic() + within_s
        overdue = stopped = False
        while listening.runs(_LOOK_S):
            overdue = time.monotonic() > deadline
            stopped = cancel is not None and cancel.is_set()
            if overdue or stopped:
                _end(process, listening)
                break
        return Ended(
            status=process.wait(),
            output=listening.text(process.stdout),
            errors=listening.text(process.stderr),
            cut_off=listening.cut_off,
            overdue=overdue and not stopped,
            stopped=stopped,
        )


def _end(process: subprocess.Popen[bytes], listening: _Listening) -> None:
    """Ask the whole process group to end, then kill what is left of it."""
    _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while listening.runs(_LOOK_S) and time.monotonic() < deadline:
        pass
    _signal(process, signal.SIGKILL)  # the group may outlive its leader, whom nobody has waited for yet


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Listening(contextlib.AbstractContextManager["_Listening"]):
    """Both outputs of a program, and word of its end, in one place."""

    def __init__(self, process: subprocess.Popen[bytes], most_bytes: int) -> None:
        self._most = most_bytes
        self._said: dict[int, bytearray] = {}
        self._open: set[int] = set()
        self.cut_off = False
        self._selector = selectors.DefaultSelector()
        #: Becomes readable at the end of the program, and does not wait for it: its number stays taken.
        self._end = os.pidfd_open(process.pid)
        self._selector.register(self._end, selectors.EVENT_READ)
        for stream in (process.stdout, process.stderr):
            assert stream is not None  # noqa: S101 -- both were asked for
            os.set_blocking(stream.fileno(), False)
            self._said[stream.fileno()] = bytearray()
            self._open.add(stream.fileno())
            self._selector.register(stream, selectors.EVENT_READ)

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        os.close(self._end)

    def runs(self, seconds: float) -> bool:
        """Listen for so long at most; whether the program is still running. What it said until its end was read."""
        ready = {key.fd for key, _ in self._selector.select(seconds)}
        for stream in ready & self._open:
            self._read(stream)
        if self._end not in ready:
            return True
        for stream in tuple(self._open):  # what was still in the pipes; whoever else holds their other end may go on
            while self._read(stream):
                if len(self._said[stream]) >= self._most:
                    break
        return False

    def text(self, stream: IO[bytes] | None) -> str:
        """What was heard of it."""
        assert stream is not None  # noqa: S101 -- as above
        return bytes(self._said[stream.fileno()]).decode(errors="backslashreplace")

    def _read(self, stream: int) -> bool:
        """Read one piece; whether there may be more at once."""
        try:
            piece = os.read(stream, _PIECE)
        except BlockingIOError:
            return False
        if not piece:
            self._open.discard(stream)
            self._selector.unregister(stream)
            return False
        said = self._said[stream]
        self.cut_off = self.cut_off or len(said) + len(piece) > self._most
        said += piece[: self._most - len(said)]
        return True
