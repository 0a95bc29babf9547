"""The pair's wires: one between the hosts, and one from each to the witness, which hears the guests' serial ports.

The witness is a network namespace without a process: it lives as long as this object holds its file descriptor.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from tests.pair.host import Host

T = TypeVar("T")

#: Where the guests send their serial port to, on whichever host they run.
WITNESS: Final = "10.78.0.1"
_CLONE_NEWNET: Final = 0x4000_0000
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Network:
    """The wires of two hosts. `close` lets the witness go; the rest ends with the hosts."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        self._namespace = _in_thread(_new_namespace)
        try:
            self._connect(hosts)
        except BaseException:
            self.close()
            raise

    def _connect(self, hosts: tuple[Host, Host]) -> None:
        one, two = hosts
        witness = f"/proc/{os.getpid()}/fd/{self._namespace}"
        _ip(f"link add eth0 netns {one.pid} type veth peer name eth0 netns {two.pid}")
        for number, host in enumerate(hosts, start=1):
            _ip(f"link add eth1 netns {host.pid} type veth peer name w{number} netns {witness}")
        for number, host in enumerate(hosts, start=1):
            host.run(
                f"ip address add {host.address}/24 dev eth0; ip link set eth0 up;"
                f"ip address add 10.78.{number}.2/24 dev eth1; ip link set eth1 up;"
                f"ip route add {WITNESS} via 10.78.{number}.1"
            )
        self.inside(
            lambda: _ip(
                f"link set lo up\naddress add {WITNESS}/32 dev lo\n"
                "address add 10.78.1.1/24 dev w1\nlink set w1 up\naddress add 10.78.2.1/24 dev w2\nlink set w2 up"
            )
        )

    def inside(self, call: Callable[[], T]) -> T:
        """The result of ``call``, made in the witness's network namespace: a socket that it opens stays there."""

        def enter() -> T:
            _check(_libc.setns(self._namespace, _CLONE_NEWNET))
            return call()

        return _in_thread(enter)

    def close(self) -> None:
        """Let the witness go."""
        os.close(self._namespace)


def _in_thread(call: Callable[[], T]) -> T:
    # A thread that changed its namespace must never be used for anything else: it ends here.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(call).result()


def _new_namespace() -> int:
    _check(_libc.unshare(_CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=commands + "\n", text=True, check=True)
