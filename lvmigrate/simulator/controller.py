"""A controller: one process somewhere that runs tasklets, and its ways to the nodes. It can die, and be stopped."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, TypeVar

from lvmigrate.clock import Clock
from lvmigrate.errors import Code, CommandFailed, LvmigrateError, NodeUnreachable
from lvmigrate.simulator.calls import Call, Kind, Place
from lvmigrate.simulator.drbd import KernelRefused, Replicated
from lvmigrate.simulator.truth import Truth
from lvmigrate.simulator.watch import SimulatedWatch

T = TypeVar("T")

#: How long a controller that is stopped sleeps: longer than any lease.
STOPPED_S: Final = 90.0
#: When a call that acts late is given up, and how much later it acts: after the caller's undoing.
_LATE_S: Final = 30.0
_MUCH_LATER_S: Final = 20.0
_BROKEN_S: Final = 0.1


class ControllerKilled(BaseException):
    """The controller is dead. Every call that it makes after its death raises this, so that it changes nothing more."""


class Controller:
    """One controller of a world: it counts its calls, and lets time pass while it waits for them."""

    def __init__(self, world: Truth, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.stopped = False
        #: The nodes that it cannot reach.
        self.cut_from: Counter[str] = Counter()
        self.cancel = threading.Event()
        self.watches: list[SimulatedWatch] = []
        self._listeners: list[tuple[str, Callable[[str, str], None]]] = []
        self._unheard: list[tuple[str, str, str]] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._stop_s = 0.0
        #: Seconds that the calls made beside the tasklet's own work have taken, since the last tick.
        self._debt: list[float] = []

    @property
    def clock(self) -> Clock:
        """Its time, as its tasklets see it."""
        return Clock(now=self.now, sleep=self.sleep, every=self.every)

    # ---- its time

    def now(self) -> float:
        """Its monotonic clock. Reading it never takes time, even of one that is about to be stopped."""
        if self.dead:
            raise ControllerKilled(self.name)
        return self.world.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.world.only_here()
        self.wake()
        self.world.timeline.advance(seconds)
        self.wake()

    @contextmanager
    def every(self, seconds: float, call: Callable[[], None], name: str) -> Iterator[None]:  # noqa: ARG002
        """While in the context, ``call`` is called that often, beside all else; what it takes delays the next."""
        over = False

        def tick() -> None:
            if over or self.dead:
                return
            took = 0.0
            if not self.stopped:
                self._debt.append(0.0)
                try:
                    call()
                finally:
                    took = self._debt.pop()
            self.world.timeline.after(seconds + took, tick)

        self.world.timeline.after(seconds, tick)
        try:
            yield
        finally:
            over = True

    def kill(self) -> None:
        """Kill it. What it has running ends; its jobs and guards on the nodes go on."""
        if not self.dead:
            self.world.tell(f"controller {self.name} is killed")
        self.dead = True
        self.watches.clear()
        self._listeners.clear()

    def stop(self, seconds: float = STOPPED_S) -> None:
        """SIGSTOP, and SIGCONT so much later. It takes effect when it next does anything."""
        self._stop_s = max(self._stop_s, seconds)

    def wake(self) -> None:
        """Raise `ControllerKilled` if it is dead; sleep through what it was stopped for."""
        if self.dead:
            raise ControllerKilled(self.name)
        if self._stop_s and not self.stopped:
            seconds, self._stop_s = self._stop_s, 0.0
            self.world.tell(f"controller {self.name} is stopped for {seconds:g} s")
            self.stopped = True
            try:
                self.world.timeline.advance(seconds)
            finally:
                self.stopped = False
            self.world.tell(f"controller {self.name} goes on")
            unheard, self._unheard = self._unheard, []
            for node, of, event in unheard:
                self.hear(node, of, event)

    def spend(self, seconds: float) -> None:
        """A call takes so long: time passes, unless the call is made beside the tasklet's own work."""
        if self._debt:
            self._debt[-1] += seconds
        else:
            self.world.timeline.advance(seconds)
        self.wake()

    # ---- its calls

    def call(self, method: str, node: str, act: Callable[[], T], *, acts: bool, libvirt: bool, what: str) -> T:
        """One call: numbered, with whatever fault was put at it. ``libvirt``: over libvirt, else over ssh."""
        settings = self.world.settings
        deadline = settings.hypervisor_deadline_s if libvirt else settings.storage_deadline_s
        fault = self.arrive(method, node, acts=acts)
        if fault is not None:
            self._fail_before(fault, node, what, act, deadline=deadline, libvirt=libvirt)
        if not self.reaches(node, libvirt=libvirt):
            refused_at_once = libvirt and self.world.hosts[node].powered and not self.cut_from[node]
            self.spend(_BROKEN_S if refused_at_once else settings.connect_s)
            self._lose(node, what, "no connection")
        self.spend(settings.hypervisor_call_s if libvirt else settings.storage_call_s)
        if acts and libvirt:
            self.world.catch_up(node)
        with self.world.acting(f"controller {self.name}"):
            result = act()
        if fault is not None:
            self._fail_after(fault, node, what, deadline)
            self.wake()
        return result

    def _fail_before(
        self, fault: Kind, node: str, what: str, act: Callable[[], object], *, deadline: float, libvirt: bool
    ) -> None:
        match fault:
            case Kind.REFUSED_BEFORE:
                self.spend(_BROKEN_S)
                self._refuse(node, what)
            case Kind.LOST_BEFORE:
                self.spend(_BROKEN_S)
                self._lose(node, what, "the connection broke before")
            case Kind.HANGS_BEFORE:
                self.spend(deadline)
                self._lose(node, what, "no answer in time")
            case Kind.LATE:
                late = self.world.timeline.after(_LATE_S + _MUCH_LATER_S, lambda: self._act_late(act, what))
                if libvirt:
                    self.world.unanswered.append((node, late))
                self.spend(_LATE_S)
                self._lose(node, what, "no answer in time")

    def _fail_after(self, fault: Kind, node: str, what: str, deadline: float) -> None:
        match fault:
            case Kind.REFUSED_AFTER:
                self._refuse(node, what)
            case Kind.LOST_AFTER:
                self._lose(node, what, "the connection broke after")
            case Kind.HANGS_AFTER:
                self.spend(deadline)
                self._lose(node, what, "no answer in time")
            case Kind.KILLED_AFTER:
                self.kill()
            case Kind.STOPPED_AFTER:
                self.stop()

    def arrive(self, method: str, node: str, *, acts: bool) -> Kind | None:
        """Number a call, have happen what was to happen before it, and tell which fault was put at it, if any."""
        world = self.world
        world.only_here()
        self.wake()
        self._counts[method, node] = occurrence = self._counts[method, node] + 1
        place = Place(self.name, method, node, occurrence)
        call = Call(len(world.calls) + 1, place, world.timeline.now, acts, bool(self._debt))
        world.calls.append(call)
        fault = world.before(call)
        match fault:
            case None:
                # What happens between calls may have killed or stopped it.
                if self.dead or self._stop_s:
                    self.wake()
                return None
            case Kind.KILLED_BEFORE:
                self.kill()
            case Kind.STOPPED_BEFORE:
                self.stop()
        self.wake()
        return fault

    def reaches(self, node: str, *, libvirt: bool) -> bool:
        """Whether the node (and its libvirt daemon) would answer."""
        host = self.world.hosts[node]
        return not self.cut_from[node] and host.powered and (host.daemon or not libvirt)

    def _act_late(self, act: Callable[[], object], what: str) -> None:
        self.world.tell(f"late, of controller {self.name}: {what}")
        with self.world.acting(f"controller {self.name}, late"):
            try:
                act()
            except (LvmigrateError, KernelRefused, KeyError) as error:
                self.world.tell(f"  refused: {error}")

    def _refuse(self, node: str, what: str) -> NoReturn:
        raise CommandFailed(
            node, what, status=1, hint="This is a simulated fault.", detail="simulated", code=Code.COMMAND_FAILED
        )

    def _lose(self, node: str, what: str, detail: str) -> NoReturn:
        raise NodeUnreachable(node, what, hint="Look at the node, and at the way to it.", detail=detail)

    # ---- what it hears

    def cut_way(self, node: str, seconds: float | None = None) -> None:
        """Cut its way to a node, ssh and libvirt alike; mended after ``seconds``, if given."""
        self.world.tell(f"controller {self.name} cannot reach {node}" + (f" for {seconds:g} s" if seconds else ""))
        self.cut_from[node] += 1
        self.way_changed()

        def back() -> None:
            if self.cut_from[node]:
                self.cut_from[node] -= 1
                self.way_changed()

        if seconds is not None:
            self.world.timeline.after(seconds, back)

    def way_changed(self) -> None:
        """A way to a node, or a node, went or came back."""
        for watch in list(self.watches):
            watch.way_changed()

    def way_mended(self) -> None:
        """Every way of its own to a node is mended."""
        self.cut_from.clear()
        self.way_changed()

    def wait_begins(self) -> None:
        """It begins to wait for a watch."""
        self.arrive("watch.wait", "", acts=False)

    def see(self, resource: Replicated) -> None:
        """A resource changed."""
        for watch in list(self.watches):
            watch.see(resource)

    def hear(self, node: str, of: str, event: str) -> None:
        """A life-cycle event of a guest, if the way is open."""
        if self.stopped or self._stop_s:
            self._unheard.append((node, of, event))
        elif not self.dead and self.reaches(node, libvirt=True):
            for uuid, call in list(self._listeners):
                if uuid == of:
                    call(node, event)

    @contextmanager
    def listening(self, uuid: str, call: Callable[[str, str], None]) -> Iterator[None]:
        """While in the context, events of this guest are told."""
        entry = (uuid, call)
        self._listeners.append(entry)
        try:
            yield
        finally:
            if entry in self._listeners:
                self._listeners.remove(entry)
