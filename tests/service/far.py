"""The adapters of a process that works in the world of another one (`tests.service.stage`)."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection
from typing import Any, Final

from lvmigrate.errors import LvmigrateError
from lvmigrate.token import Token

_LOOK_S: Final = 0.02


class Door:
    """The way into the world, as the controller of this name: a connection for each thread."""

    def __init__(self, path: str, controller: str) -> None:
        self._path = path
        self._controller = controller
        self._own = threading.local()

    def call(self, target: str | int, method: str, *args: Any, **kwargs: Any) -> Any:
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = Client(self._path, family="AF_UNIX")
            connection.send(self._controller)
        connection.send((target, method, tuple(map(_sent, args)), kwargs))
        what, value = connection.recv()
        if what == "value":
            return value
        if what == "defect":
            raise RuntimeError(value)
        kind, words, known = value
        error: LvmigrateError = kind.__new__(kind)
        error.args = words
        error.__dict__.update(known)
        raise error


def _sent(word: Any) -> Any:
    """The keys of a dict do not go over a line."""
    return tuple(word) if isinstance(word, KeysView | ValuesView) else word


class Far:
    """An adapter."""

    def __init__(self, door: Door, target: str | int) -> None:
        self._door = door
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._door.call(self._target, name, *args, **kwargs)

    def close(self) -> None:
        """The world stays."""


class FarCopy(Far):
    """A copy of memory."""

    def wait(self, timeout_s: float, *, cancel: threading.Event | None = None) -> Any:
        until = time.monotonic() + timeout_s
        while (end := self._door.call(self._target, "wait", 0.0)) is None:
            if time.monotonic() > until or (cancel is not None and cancel.is_set()):
                return None
            time.sleep(_LOOK_S)
        return end


class FarHypervisor(Far):
    """libvirt."""

    def __init__(self, door: Door) -> None:
        super().__init__(door, "hypervisor")

    def copy_memory(self, *args: Any) -> FarCopy:
        return FarCopy(self._door, self._door.call(self._target, "copy_memory", *args))

    def activity(self, *args: Any, cancel: threading.Event) -> Any:
        """Nobody stops it there."""
        return self._door.call(self._target, "activity", *args)

    def adopt(self, *args: Any) -> FarCopy:
        return FarCopy(self._door, self._door.call(self._target, "adopt", *args))

    @contextmanager
    def on_change(self, uuid: str, call: Callable[[str, str], None]) -> Iterator[None]:
        heard = self._door.call(self._target, "listen", uuid)

        def tell() -> None:
            for event in self._door.call(heard, "fetch"):
                call(*event)

        with _polled(tell):
            yield
        self._door.call(heard, "close")


class FarWatch(Far):
    """DRBD's events."""

    def wait(self, holds: Callable[[], bool], timeout_s: float, *, cancel: threading.Event | None = None) -> bool:
        until = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > until or (cancel is not None and cancel.is_set()):
                return False
            time.sleep(_LOOK_S)
        return True


class FarStorage(Far):
    """DRBD."""

    def __init__(self, door: Door) -> None:
        super().__init__(door, "storage")

    @contextmanager
    def watch(self, nodes: Any, names: Any, *, on_change: Callable[[str], None] | None = None) -> Iterator[FarWatch]:
        number = self._door.call(self._target, "watch", tuple(nodes), tuple(names))

        def tell() -> None:
            for change in self._door.call(number, "fetch"):
                if on_change is not None:
                    on_change(change)

        with _polled(tell):
            yield FarWatch(self._door, number)
        self._door.call(number, "close")

    @contextmanager
    def inhibit(self, _node: str, _token: Token) -> Iterator[None]:
        """Nobody shuts a node down in an orderly way there."""
        yield


@contextmanager
def _polled(look: Callable[[], object]) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        while not over.wait(_LOOK_S):
            look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


CONTROLLERS: Final = itertools.count(1)
