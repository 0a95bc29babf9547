"""Ways to a node, and streams on it: on this very machine, or over ssh.

The only module that imports ``sh``.  One ssh connection per node carries everything (ControlMaster); it is opened by
the first command and ended by `Shell.close`, or by ssh itself some time after the last command when this process
was killed.

Three things of ``sh`` 2.4.0 shape this module.  ``wait(timeout)`` polls ten times a second, so what has a deadline is
waited for without a timeout and a timer kills it when it is late.  An ``_out`` callback has no back-pressure and loses
exceptions, so a stream is read from a pipe of our own.  The child would share our process group, and Ctrl-C would hit
``drbdsetup`` in mid-change, so each gets a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import sh

from lvmigrate.errors import CommandFailed, NodeUnreachable
from lvmigrate.node import Node

#: ssh's own exit status when it could not do its part.
SSH_FAILED: Final = 255
#: How long the shared connection outlives its last command, in seconds, if nobody ends it.
PERSIST_S: Final = 60
#: A peer that is gone is noticed after the product of these, in seconds.
ALIVE_INTERVAL_S: Final = 3
ALIVE_COUNT: Final = 4

#: On leaving a stream: how long its end of file, then SIGTERM, may take to work, in seconds.
PATIENCE_EOF_S: Final = 1.0
PATIENCE_TERM_S: Final = 2.0

#: How often whoever reads a stream makes itself heard on the node, in seconds: what hears nothing for several of these
#: ends itself there (``heard`` in node.sh).
BEAT_S: Final = 5.0

#: The longest line of a stream that is kept whole, in bytes; of a longer one so much is kept at least, and not all.
MAX_LINE: Final = 65_536

#: Every way in which a child can end; none is an exception here.
_ANY_STATUS: Final = range(-64, 256)

_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "_bg": True,
        "_bg_exc": False,
        "_new_session": True,
        "_tty_out": False,
        "_decode_errors": "replace",
        "_ok_code": _ANY_STATUS,
        "_return_cmd": True,
    }
)

#: Words of ssh -> the next thing to do.
_HINTS: Final = (
    ("Permission denied", "Let the public key of this user into authorized_keys on the node."),
    ("Host key verification failed", "Check the node's host key and put it into known_hosts."),
    ("Could not resolve", "Check the node's ssh target in the configuration, and name resolution."),
    ("Connection refused", "Start sshd on the node, or correct the port in the ssh configuration."),
    ("No route to host", "Check that the node is up and its network reachable."),
    ("timed out", "Check that the node is up and its network reachable."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a command ended, and what it said."""

    #: The exit code, or 128 + the number of the signal that ended it.
    status: int
    out: str
    err: str


class Stream:
    """A running command, whose lines are read by iterating. Made by `Shell.stream`, used as a context manager.

    While it is iterated over, its standard input gets a dot every `BEAT_S`.  Guaranteed after the context: the local
    child and its group are gone.  What runs on a node sees end of file on its standard input, or no more dots where its
    connection was cut, and is expected to end then.
    """

    def __init__(self, command: list[str], node: Node, first: bytes = b"") -> None:
        self._command = command
        self._node = node
        self._first = first

    def __enter__(self) -> Self:
        self._guard = threading.Lock()
        self._open = True
        with contextlib.ExitStack() as ours, _foreign(self._node), contextlib.ExitStack() as the_childs:
            stdin, self._hold = os.pipe()
            ours.callback(os.close, self._hold)
            child_in = the_childs.enter_context(os.fdopen(stdin, "rb"))
            self._out, stdout = os.pipe()
            ours.callback(os.close, self._out)
            child_out = the_childs.enter_context(os.fdopen(stdout, "wb"))
            self._wake, self._waker = os.pipe()
            ours.callback(os.close, self._wake)
            ours.callback(os.close, self._waker)
            self._child = _start(self._command, _in=child_in, _out=child_out, _err_bufsize=1024, _internal_bufsize=64)
            ours.pop_all()
        # It fits into the pipe, so nobody waits here; and what has ended already says so at its end.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._hold, self._first)
        os.set_blocking(self._hold, False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        with self._guard:
            self._open = False
        os.close(self._hold)
        group = self._child.process.pid
        late = [
            threading.Timer(PATIENCE_EOF_S, _signal, (group, signal.SIGTERM)),
            threading.Timer(PATIENCE_EOF_S + PATIENCE_TERM_S, _signal, (group, signal.SIGKILL)),
        ]
        try:
            for timer in late:
                timer.start()
        except RuntimeError:  # no thread is to be had: nobody else would end what does not end by itself
            _signal(group, signal.SIGKILL)
        try:
            self._answer()
        finally:
            for timer in late:
                timer.cancel()
            # Others of its group may have outlived the child itself.
            _signal(group, signal.SIGKILL)
            for pipe in (self._out, self._wake, self._waker):
                os.close(pipe)

    def __iter__(self) -> Iterator[str]:
        """Every line, without its end, until the command ends or `stop` is called."""
        rest, dropping = b"", False
        for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not dropping:
                    yield line.decode(errors="replace")
                dropping = False
            if dropping:
                rest = b""
            elif len(rest) > MAX_LINE or (rest and not chunk):
                yield rest.decode(errors="replace")
                rest, dropping = b"", True

    def _chunks(self) -> Iterator[bytes]:
        """What it says, as it comes, and an empty one when it ends; nothing more once `stop` is called."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        beat = time.monotonic() + BEAT_S
        while True:
            ready = dict(poll.poll(max(0.0, beat - time.monotonic()) * 1000))
            if self._wake in ready:
                return
            if time.monotonic() >= beat:
                self._beat()
                beat = time.monotonic() + BEAT_S
            if self._out in ready:
                yield (chunk := os.read(self._out, MAX_LINE))
                if not chunk:
                    return

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """The stream as a context in which it makes itself heard, and nobody has to read what it says."""
        with self:
            reader = threading.Thread(target=lambda: deque(self, maxlen=0), name="attended stream", daemon=True)
            try:
                with _foreign(self._node):
                    reader.start()
                yield
            finally:
                self.stop()
                # It writes to what is closed next.
                if reader.ident is not None:
                    reader.join()

    def _beat(self) -> None:
        # What has ended says so at its end; a pipe that is full has more than enough in it.
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._hold, b".")

    def kill(self) -> None:
        """End the local child and its group at once; what runs on a node may go on."""
        _signal(self._child.process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the iteration, from any thread, at any time."""
        with self._guard:
            if self._open:
                os.write(self._waker, b"\0")

    def end(self) -> Answer:
        """How the command ended; call it after the iteration ended by itself."""
        return self._answer()

    def _answer(self) -> Answer:
        return _answer(self._child)


class Shell:
    """Starts scripts for ``sh`` on nodes. Thread-safe."""

    def __init__(self, *, ssh_config: Path | None, connect_timeout_s: float) -> None:
        self._ssh_config = ssh_config
        self._connect_timeout_s = connect_timeout_s
        # A socket's path holds 107 bytes, of which ssh wants some 18 for itself: TMPDIR may be too long.
        base = "/run" if os.access("/run", os.W_OK) else "/tmp"  # noqa: S108 -- mkdtemp makes it private
        self._sockets = Path(tempfile.mkdtemp(prefix="lvm-", dir=base))
        self._paths: dict[str, Path] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._finish = weakref.finalize(self, _end_masters, self._sockets, self._paths)

    def stream(self, node: Node, script: str, *, first: str = "") -> Stream:
        """Start ``script`` on ``node`` when the context is entered; its standard input stays open until it is left.

        ``first`` (up to 64 KiB) is there to be read.  Raises `NodeUnreachable` when the node gives no answer.
        """
        self.connect(node, self._connect_timeout_s)
        return Stream(self.command(node, script), node, first.encode())

    def unreachable(self, node: Node, answer: Answer) -> NodeUnreachable | None:
        """The error in ``answer`` if it is ssh's own and not the script's."""
        if node.ssh is None or answer.status != SSH_FAILED:
            return None
        words = " ".join(answer.err.split())
        what = answer.err.strip().splitlines()[-1].strip().rstrip(".") if words else "ssh ended without a word"
        hint = next((hint for pattern, hint in _HINTS if pattern in words), f"Try: ssh {node.ssh} true")
        return NodeUnreachable(node.name, what, hint=hint, detail=answer.err.strip())

    def close(self) -> None:
        """End the shared connections and remove their directory. Idempotent."""
        self._finish()

    def connect(self, node: Node, timeout_s: float) -> None:
        """Open the shared connection if there is none. Raises `NodeUnreachable`.

        One at a time for each node: of several that start at once, all but one would find the socket taken, complain
        on standard error and go on without sharing.
        """
        if node.ssh is None:
            return
        with self._guard:
            if not self._finish.alive:
                raise RuntimeError("this shell was closed")
            lock = self._locks.setdefault(node.ssh, threading.Lock())
            path = self._paths.setdefault(node.ssh, self._sockets / str(len(self._paths)))
        with lock:
            if not path.exists():
                self._greet(node, max(timeout_s, self._connect_timeout_s + 1))

    def _greet(self, node: Node, timeout_s: float) -> None:
        """The first command over a connection, which opens it."""
        late = threading.Event()
        with _foreign(node):
            # No standard input: ssh would take what is meant for us.
            with Path(os.devnull).open("rb") as nothing:
                child = _start(self.command(node, "true"), _in=nothing)
            group = child.process.pid

            def give_up() -> None:
                late.set()
                _signal(group, signal.SIGKILL)

            timer = threading.Timer(timeout_s, give_up)
            try:
                timer.start()
                answer = _answer(child)
            except BaseException:
                _signal(group, signal.SIGKILL)
                raise
            finally:
                timer.cancel()
        if late.is_set():
            raise too_late(node, "ssh's greeting", timeout_s, answer.err)
        error = self.unreachable(node, answer)
        if error is not None:
            raise error
        if answer.status and node.sudo:
            words = " ".join(answer.err.split()).rstrip(".")
            raise NodeUnreachable(
                node.name,
                f"sudo there answers with {answer.status}: {words or 'nothing'}",
                hint="Let the user run `sh` as root without a password: docs/howto/rights.md.",
                detail=answer.err.strip(),
            )

    def command(self, node: Node, script: str) -> list[str]:
        """The command line that runs ``script`` on ``node``; what another way to a node would replace."""
        become = ["sudo", "-n", "--"] if node.sudo else []
        if node.ssh is None:
            return [*become, "/bin/sh", "-c", script]
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": f"{max(1, round(self._connect_timeout_s))}",
            "ServerAliveInterval": f"{ALIVE_INTERVAL_S}",
            "ServerAliveCountMax": f"{ALIVE_COUNT}",
            "ControlMaster": "auto",
            "ControlPath": f"{self._paths[node.ssh]}",
            "ControlPersist": f"{PERSIST_S}",
            "LogLevel": "ERROR",
        }
        config = [] if self._ssh_config is None else ["-F", str(self._ssh_config)]
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        # Whatever the login shell is, the script is read by sh.
        return ["ssh", "-T", *config, *words, "--", node.ssh, f"exec {shlex.join([*become, 'sh', '-c', script])}"]


def too_late(node: Node, what: str, timeout_s: float, said: str = "") -> NodeUnreachable:
    """What a command becomes that has no end in time."""
    return NodeUnreachable(
        node.name,
        f"no end of {what} within {timeout_s:g} s, so whether it acted is not known",
        hint="Look at the node's load and its kernel log, then run the same command again.",
        detail=said.strip(),
    )


def _start(command: list[str], **options: Any) -> Any:  # noqa: ANN401 -- sh's types do not tell what _bg returns
    return sh.Command(command[0])(*command[1:], **_OPTIONS, **options)


def _answer(child: Any) -> Answer:  # noqa: ANN401 -- as above
    child.wait()
    process = child.process
    status = process.exit_code
    return Answer(
        status=status if status >= 0 else 128 - status,
        out=process.stdout.decode(errors="replace"),
        err=process.stderr.decode(errors="replace"),
    )


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def _foreign(node: Node) -> Iterator[None]:
    """The border: what ``sh`` and the operating system raise becomes ours here, and nowhere else."""
    try:
        yield
    except sh.CommandNotFound as error:
        raise CommandFailed(
            node.name,
            f"starting {error}",
            status=127,
            hint=f"Install {error} on the machine that runs lvmigrate.",
            detail=f"{error} is not there",
        ) from error
    except (sh.ForkException, OSError, RuntimeError) as error:  # a thread that cannot be started is a RuntimeError
        raise CommandFailed(
            node.name,
            "starting a process here",
            status=126,
            hint="Look at this machine's limits on processes, open files and memory.",
            detail=str(error),
        ) from error


def _end_masters(sockets: Path, paths: Mapping[str, Path]) -> None:
    for target, path in paths.items():
        if path.exists():
            # At the interpreter's end no thread can be started any more: the master ends by itself then.
            with contextlib.suppress(sh.CommandNotFound, sh.ForkException, OSError, RuntimeError):
                child = _start(["ssh", "-O", "exit", "-o", f"ControlPath={path}", "--", target])
                timer = threading.Timer(PATIENCE_TERM_S, _signal, (child.process.pid, signal.SIGKILL))
                timer.start()
                _answer(child)
                timer.cancel()
    shutil.rmtree(sockets, ignore_errors=True)
