"""A simulated world in real time, which outlives the services that work in it: for killing them.

It belongs to one thread, and lets its time pass as the clock's does. Other processes reach its adapters by a socket.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from lvmigrate.errors import LvmigrateError
from lvmigrate.simulator import Settings, World
from lvmigrate.simulator.hypervisor import SimulatedHypervisor
from lvmigrate.simulator.storage import SimulatedStorage

T = TypeVar("T")

_TICK_S: Final = 0.01
#: Calls take no time of the world's: they take real time on their way.
SETTINGS: Final = {
    "hypervisor_call_s": 0.0,
    "storage_call_s": 0.0,
    "copy_s": 0.3,
    "shutdown_s": 0.2,
    "target_cleans_s": 0.5,
}


class Stage:
    """The world, and its doors."""

    def __init__(self, path: Path, *, nodes: Sequence[str] = ("node1", "node2"), **settings: Any) -> None:
        self.path = path
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self._nodes = nodes
        self._settings = Settings(**{**SETTINGS, **settings})
        self._things: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._listener = Listener(str(path), family="AF_UNIX", backlog=64)
        self._thread = threading.Thread(target=self._live, name="world", daemon=True)
        self.world: World

    def __enter__(self) -> Self:
        self._thread.start()
        threading.Thread(target=self._let_in, name="door", daemon=True).start()
        self.do(lambda: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._asked.put(None)
        self._thread.join(10)
        self._listener.close()

    def do(self, act: Callable[[], T]) -> T:
        """Have the world's own thread do it."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked.put((act, answer))
        ok, value = answer.get(timeout=60)
        if not ok:
            raise value
        return cast("T", value)

    def kill(self, controller: str) -> None:
        """Its process is dead: nothing more comes of it."""

        def act() -> None:
            if controller in self.world.controllers:
                self.world.controllers[controller].kill()

        self.do(act)

    # ---- the world's thread

    def _live(self) -> None:
        with World(self._nodes, self._settings) as self.world:
            began = time.monotonic()
            while True:
                try:
                    asked = self._asked.get(timeout=_TICK_S)
                except queue.Empty:
                    asked = (lambda: None), queue.SimpleQueue()
                if asked is None:
                    return
                act, answer = asked
                self.world.timeline.advance(time.monotonic() - began - self.world.now)
                try:
                    answer.put((True, act()))
                except BaseException as error:  # noqa: BLE001 -- whoever asked hears of it
                    answer.put((False, error))

    # ---- the doors

    def _let_in(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with suppress(EOFError, OSError):
            controller = connection.recv()
            while True:
                target, method, args, kwargs = connection.recv()
                try:
                    answer = "value", self.do(lambda: self._call(controller, target, method, args, kwargs))  # noqa: B023
                except LvmigrateError as error:
                    answer = "error", (type(error), error.args, error.__dict__)
                except BaseException as error:  # noqa: BLE001 -- ControllerKilled among others
                    answer = "defect", repr(error)
                connection.send(answer)

    def _call(self, controller: str, target: str | int, method: str, args: Any, kwargs: Any) -> Any:
        if isinstance(target, int):
            thing = self._things[target]
            if method == "close":
                return self._things.pop(target).close()
        else:
            self.world.controller(controller)
            adapter = {"hypervisor": SimulatedHypervisor, "storage": SimulatedStorage}[target]
            # A storage learns names: one object for each controller.
            key = hash((controller, target))
            thing = self._things.setdefault(key, adapter(self.world.controllers[controller]))
        match method:
            case "copy_memory" | "adopt" | "resume_post_copy":
                return self._keep(getattr(thing, method)(*args, **kwargs))
            case "watch":
                return self._keep(_Watched(thing, args))
            case "activity":
                return thing.activity(*args, cancel=threading.Event())
            case "listen":
                return self._keep(_Heard(thing, args))
        return getattr(thing, method)(*args, **kwargs)

    def _keep(self, thing: Any) -> int:
        number = next(self._numbers)
        self._things[number] = thing
        return number


class _Heard:
    """What libvirt tells of a guest, until it is fetched."""

    def __init__(self, hypervisor: SimulatedHypervisor, args: Any) -> None:
        self._events: list[tuple[str, str]] = []
        self._context: AbstractContextManager[Any] = hypervisor.on_change(
            args[0], lambda node, event: self._events.append((node, event))
        )
        self._context.__enter__()

    def fetch(self) -> list[tuple[str, str]]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._context.__exit__(None, None, None)


class _Watched:
    """What DRBD tells, until it is fetched."""

    def __init__(self, storage: SimulatedStorage, args: Any) -> None:
        self._changes: list[str] = []
        self._context = storage.watch(*args, on_change=self._changes.append)
        self._watch = self._context.__enter__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watch, name)

    def fetch(self) -> list[str]:
        changes, self._changes[:] = list(self._changes), []
        return changes

    def close(self) -> None:
        self._context.__exit__(None, None, None)
