"""A migration under way on the lab's nodes, which is followed line by line, and ended in ways it does not like."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

from lvmigrate.move import STEPS
from tests.lab.support import LVMIGRATE
from vagrant.labkit.guests import Guest

NAMES = tuple(step.name for step in STEPS)
_END_S = 500


class EndlessError(Exception):
    """The command neither gets on nor ends."""


class Under:
    """``lvmigrate migrate`` of one guest, in a session of its own."""

    def __init__(self, guest: Guest, config: Path, *words: str) -> None:
        command = [str(LVMIGRATE), "migrate", guest.name, "--config", str(config), *words]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said = ""

    def until(self, step: str) -> bool:
        """Wait until ``step`` begins; whether it did: it does not if the command ends before. Raises `EndlessError`."""
        if self.process.stderr is None:
            raise ValueError("it has no standard error")
        late = threading.Event()

        def give_up() -> None:
            late.set()
            os.killpg(self.process.pid, signal.SIGKILL)

        timer = threading.Timer(_END_S, give_up)
        timer.start()
        try:
            while f"/{len(NAMES)} {step}:" not in self.said:
                line = self.process.stderr.readline()
                if late.is_set():
                    raise EndlessError(f"neither {step} nor an end within {_END_S:g} s: {self.said[-300:]}")
                if not line:
                    return False
                self.said += line
        finally:
            timer.cancel()
        return True

    def kill(self) -> None:
        """End it and everything it has started here, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.said += self.process.communicate()[1]

    def stop(self) -> None:
        """Have it, and everything it has started here, stand still."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

    @property
    def alive(self) -> bool:
        """Whether nobody has waited for its end yet."""
        return self.process.returncode is None

    @property
    def killed(self) -> bool:
        """Whether `kill` has ended it."""
        return self.process.returncode == -signal.SIGKILL

    def end(self) -> int:
        """Wait for its end; its exit code. Raises `EndlessError`."""
        if self.process.returncode is None:
            try:
                self.said += self.process.communicate(timeout=_END_S)[1]
            except subprocess.TimeoutExpired:
                raise EndlessError(f"no end within {_END_S:g} s: {self.said[-300:]}") from None
        return self.process.returncode
