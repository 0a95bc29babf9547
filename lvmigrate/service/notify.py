"""What systemd is told of the service (sd_notify(3)): a few lines in one datagram, where it has said to which socket.

Nothing is sent where nobody has asked (`NOTIFY_SOCKET`), and a message that cannot be sent does not end the service.
The watchdog is fed by the loop that answers everybody: one that hangs is noticed, and the service is started anew.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

import structlog

_log = structlog.get_logger()

#: How often the status is looked at, in seconds.
_LOOK_S: Final = 1.0
#: What an end takes beyond the deadline of what it waits for: last answers, connections, the journal.
_LAST_S: Final = 30.0
_USEC: Final = 1_000_000


class Notify:
    """The way to the service manager, if there is one."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Take what it says out of the environment: the programs that are started are not the service."""
        self._address = _address(environment.pop("NOTIFY_SOCKET", ""))
        usec, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        meant = not pid or pid == str(os.getpid())
        #: How long it may hear nothing before it ends the service; 0: as long as it likes.
        self.watchdog_s = int(usec) / _USEC if meant and usec.isdecimal() else 0.0
        self._status = ""

    def ready(self, status: str) -> None:
        """It answers."""
        self._send("READY=1", self._worded(status))

    def reloading(self) -> None:
        """The configuration is being read again; `ready` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, deadline_s: float) -> None:
        """It is about to end, and what is under way may take ``deadline_s``: whatever the unit says, so long it has."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round((deadline_s + _LAST_S) * _USEC)}")

    def waiting(self, status: str, deadline_s: float) -> None:
        """It is not ready yet, for a reason that passes: it is not given up before ``deadline_s`` from now."""
        self._send(self._worded(status), f"EXTEND_TIMEOUT_USEC={round(deadline_s * _USEC)}")

    def says(self, status: str) -> None:
        """What it is doing, in a line; nothing is sent where that has not changed."""
        if status != self._status:
            self._send(self._worded(status))

    async def live(self, status: Callable[[], str]) -> None:
        """Feed the watchdog and keep the status up to date, until cancelled.

        ``status`` is called in a thread and waited for: where it hangs, or no thread is to be had, nothing is fed.
        """
        pause_s = min(_LOOK_S, self.watchdog_s / 3) if self.watchdog_s else _LOOK_S
        while self._address:
            self.says(await asyncio.to_thread(status))
            if self.watchdog_s:
                self._send("WATCHDOG=1")
            await asyncio.sleep(pause_s)

    def _worded(self, status: str) -> str:
        self._status = status
        return "STATUS=" + " ".join(status.split())

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
                way.settimeout(0)  # a manager that does not read must not stop the loop
                way.connect(self._address)
                way.send("\n".join(lines).encode())
        except OSError as error:
            _log.warning("service_manager_not_told", told=lines[0], error=str(error))


def _address(told: str) -> str:
    """An abstract socket is told with an @ for its first byte, which is zero. Only unix sockets are spoken to."""
    if told.startswith("@"):
        return "\0" + told[1:]
    return told if told.startswith("/") else ""
